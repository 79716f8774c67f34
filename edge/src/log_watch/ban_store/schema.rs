//! The file: opened, made, moved aside when it is damaged, and read. Must not know the queue.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row, params};

use super::newest::{Meaning, Newest};
use super::rows::{
    bits_from_row, lines_from_row, network_from_row, network_to_row, time_from_row, time_to_row,
};
use super::{BanStoreError, Evidence, KEEP, Lease, Position, Restored, StoredBan, WouldBan};

/// Bans and evidence have no index: an attack's networks come in no order, and each would touch a
/// page of its own. Rows of bans are only added: see [`super::newest`]. Who asks for evidence waits
/// for a scan. Each runs once, in order; the file's `user_version` counts them.
const MIGRATIONS: [&str; 2] = [
    "
    CREATE TABLE bans (id INTEGER PRIMARY KEY, network BLOB NOT NULL, jail TEXT NOT NULL, since INTEGER NOT NULL,
        ends INTEGER NOT NULL, offences INTEGER NOT NULL, times INTEGER NOT NULL,
        throttle INTEGER NOT NULL, reason TEXT NOT NULL);
    CREATE TABLE evidence (id INTEGER PRIMARY KEY, network BLOB NOT NULL, at INTEGER NOT NULL,
        jail TEXT NOT NULL, lines BLOB NOT NULL);
    CREATE TABLE leases (id INTEGER PRIMARY KEY, network BLOB NOT NULL, ticket TEXT NOT NULL,
        since INTEGER NOT NULL, ends INTEGER NOT NULL, ended INTEGER);
    CREATE TABLE would_bans (id INTEGER PRIMARY KEY, lease INTEGER NOT NULL, network BLOB NOT NULL,
        jail TEXT NOT NULL, at INTEGER NOT NULL, line BLOB NOT NULL);
    CREATE INDEX would_bans_lease ON would_bans (lease);
    CREATE TABLE positions (path BLOB NOT NULL, device INTEGER NOT NULL, inode INTEGER NOT NULL,
        position INTEGER NOT NULL, fingerprint INTEGER NOT NULL);
    CREATE TABLE settings (name TEXT PRIMARY KEY, value INTEGER) WITHOUT ROWID;
",
    // Not 0: the row ends its network's ban at `ends`, and is none itself; 2 forgives it, too.
    "ALTER TABLE bans ADD COLUMN over INTEGER NOT NULL DEFAULT 0;",
];
/// `edge` in ASCII: tells our file from another program's.
const APPLICATION: i64 = 0x6564_6765;
/// Pages of 4 KiB: the file stays below 1 GiB whatever happens.
const MAX_PAGES: u32 = 262_144;
/// More damaged files than this are not kept: the last takes the place of its predecessor.
const DAMAGED: u32 = 5;

pub(super) struct Opened {
    pub(super) connection: Connection,
    pub(super) restored: Restored,
    /// Rows of bans in the file, those that do not count among them.
    pub(super) rows: usize,
    pub(super) last_lease: i64,
    /// What was wrong with the file that was there before.
    pub(super) damage: Option<String>,
}

/// Opens the file and reads it whole; a damaged one is moved aside.
pub(super) fn open(file: &Path, now: Duration) -> Result<Opened, BanStoreError> {
    let damage = match try_open(file, now) {
        Err(BanStoreError::Database { source, .. }) if is_damage(&source) => source,
        opened => return opened,
    };
    let aside = set_aside(file)?;
    let text = format!(
        "{}: is damaged: {damage}; it was moved to {} and a fresh one begun, bans and history of the old one are gone",
        file.display(),
        aside.display()
    );
    tracing::error!("ban store: {text}");
    Ok(Opened { damage: Some(text), ..try_open(file, now)? })
}

/// The file is no database, or not a whole one.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    match error {
        rusqlite::Error::SqliteFailure(failure, _) => {
            matches!(failure.code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
        }
        // A column or a table is not what we made it.
        rusqlite::Error::InvalidColumnType(..) | rusqlite::Error::FromSqlConversionFailure(..) => true,
        rusqlite::Error::IntegralValueOutOfRange(..) | rusqlite::Error::Utf8Error(..) => true,
        _ => false,
    }
}

fn set_aside(file: &Path) -> Result<PathBuf, BanStoreError> {
    let named =
        |suffix: &str, number: u32| PathBuf::from(format!("{}{suffix}.damaged-{number}", file.display()));
    let number = (1..DAMAGED).find(|number| !named("", *number).exists()).unwrap_or(DAMAGED);
    for suffix in ["-wal", "-shm", ""] {
        let from = PathBuf::from(format!("{}{suffix}", file.display()));
        match std::fs::rename(&from, named(suffix, number)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(BanStoreError::Create { file: file.to_owned(), source: error });
            }
            _ => {}
        }
    }
    Ok(named("", number))
}

fn try_open(file: &Path, now: Duration) -> Result<Opened, BanStoreError> {
    let wrap = |source| BanStoreError::Database { file: file.to_owned(), source };
    // Who is banned and why is nobody else's to read. SQLite gives its log files the same mode.
    let private = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(file);
    private.map_err(|source| BanStoreError::Create { file: file.to_owned(), source })?;
    let mut connection = Connection::open_with_flags(
        file,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )
    .map_err(wrap)?;
    connection.busy_timeout(Duration::from_secs(5)).map_err(wrap)?;
    let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(wrap)?;
    let application: i64 =
        connection.pragma_query_value(None, "application_id", |row| row.get(0)).map_err(wrap)?;
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(wrap)?;
    if tables > 0 && application != APPLICATION {
        return Err(BanStoreError::Foreign { file: file.to_owned() });
    }
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    if found > known {
        return Err(BanStoreError::Newer { file: file.to_owned(), found, known });
    }
    prepare(&connection).map_err(wrap)?;
    migrate(&mut connection, found).map_err(wrap)?;
    prune_old(&connection, now).map_err(wrap)?;
    let (restored, rows) = restore(&connection, oldest(now)).map_err(wrap)?;
    let last =
        connection.query_row("SELECT max(lease) FROM would_bans", [], |row| row.get::<_, Option<i64>>(0));
    let last_lease = last.map_err(wrap)?.unwrap_or(0);
    Ok(Opened { connection, restored, rows, last_lease, damage: None })
}

fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    let _mode: String = connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
    connection.pragma_update(None, "synchronous", "normal")?;
    connection.pragma_update(None, "wal_autocheckpoint", 4096)?;
    connection.pragma_update(None, "journal_size_limit", 64 * 1024 * 1024)?;
    connection.pragma_update(None, "cache_size", -4 * 1024)?;
    let _pages: i64 =
        connection.pragma_update_and_check(None, "max_page_count", MAX_PAGES, |row| row.get(0))?;
    Ok(())
}

/// An empty file's tables.
#[cfg(test)]
pub(super) fn in_memory() -> rusqlite::Result<Connection> {
    let mut connection = Connection::open_in_memory()?;
    migrate(&mut connection, 0)?;
    Ok(connection)
}

fn migrate(connection: &mut Connection, found: i64) -> rusqlite::Result<()> {
    for (version, migration) in (1_i64..).zip(MIGRATIONS).filter(|(version, _)| *version > found) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(migration)?;
        transaction.pragma_update(None, "application_id", APPLICATION)?;
        transaction.pragma_update(None, "user_version", version)?;
        transaction.commit()?;
    }
    Ok(())
}

/// What ended before that is forgotten.
pub(super) fn oldest(now: Duration) -> i64 {
    time_to_row(now.saturating_sub(KEEP))
}

/// Forgets what is older than [`KEEP`], except bans: see [`super::compact`].
pub(super) fn prune_old(connection: &Connection, now: Duration) -> rusqlite::Result<()> {
    let before = oldest(now);
    connection.execute("DELETE FROM evidence WHERE at < ?1", [before])?;
    connection.execute("DELETE FROM leases WHERE coalesce(ended, ends) < ?1", [before])?;
    connection.execute("DELETE FROM would_bans WHERE at < ?1", [before])?;
    Ok(())
}

fn restore(connection: &Connection, before: i64) -> rusqlite::Result<(Restored, usize)> {
    let mut restored = Restored { bans: bans(connection, before)?, ..Restored::default() };
    let rows: i64 = connection.query_row("SELECT count(*) FROM bans", [], |row| row.get(0))?;
    let off = connection
        .query_row("SELECT value FROM settings WHERE name = 'off'", [], |row| row.get::<_, Option<i64>>(0));
    restored.off = off.optional()?.flatten().map(time_from_row);
    let mut read =
        connection.prepare("SELECT id, network, ticket, since, ends, ended FROM leases ORDER BY id")?;
    restored.leases = read
        .query_map([], |row| {
            Ok(Lease {
                id: row.get(0)?,
                network: network(row, 1)?,
                ticket: row.get(2)?,
                since: time(row, 3)?,
                until: time(row, 4)?,
                ended: row.get::<_, Option<i64>>(5)?.map(time_from_row),
            })
        })?
        .collect::<Result<_, _>>()?;
    let mut read = connection
        .prepare("SELECT path, device, inode, position, fingerprint FROM positions ORDER BY rowid")?;
    restored.positions = read.query_map([], position)?.collect::<Result<_, _>>()?;
    Ok((restored, usize::try_from(rows).unwrap_or(0)))
}

/// Oldest first.
pub(super) fn bans(connection: &Connection, before: i64) -> rusqlite::Result<Vec<StoredBan>> {
    let (mut bans, mut newest) = (Vec::new(), Newest::default());
    let mut read = connection.prepare(
        "SELECT id, network, over, ends, jail, since, offences, times, throttle, reason FROM bans ORDER BY id DESC",
    )?;
    let mut rows = read.query([])?;
    while let Some(row) = rows.next()? {
        let network = network(row, 1)?;
        match newest.judge(row.get(0)?, network, row.get(2)?, row.get(3)?) {
            Meaning::Stands { ends, forgiven, .. } if ends >= before => bans.push(StoredBan {
                network,
                jail: row.get(4)?,
                since: time(row, 5)?,
                until: time_from_row(ends),
                offences: row.get(6)?,
                times: if forgiven { 0 } else { row.get(7)? },
                throttle: row.get(8)?,
                reason: row.get(9)?,
            }),
            _ => {}
        }
    }
    bans.reverse();
    Ok(bans)
}

fn position(row: &Row<'_>) -> rusqlite::Result<Position> {
    use std::os::unix::ffi::OsStringExt as _;
    let bits = |index| row.get(index).map(bits_from_row);
    Ok(Position {
        path: PathBuf::from(std::ffi::OsString::from_vec(row.get(0)?)),
        device: bits(1)?,
        inode: bits(2)?,
        offset: bits(3)?,
        fingerprint: bits(4)?,
    })
}

pub(super) fn network(row: &Row<'_>, index: usize) -> rusqlite::Result<IpNet> {
    let kind = rusqlite::types::Type::Blob;
    network_from_row(row.get_ref(index)?.as_blob()?)
        .ok_or_else(|| rusqlite::Error::FromSqlConversionFailure(index, kind, "it is no network".into()))
}

fn time(row: &Row<'_>, index: usize) -> rusqlite::Result<Duration> {
    row.get(index).map(time_from_row)
}

/// A connection of its own, so that a question never waits for the writer.
fn open_to_read(file: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(file, flags)?;
    connection.busy_timeout(Duration::from_secs(2))?;
    Ok(connection)
}

pub(super) fn evidence(file: &Path, network: IpNet) -> Result<Vec<Evidence>, BanStoreError> {
    let read = || -> rusqlite::Result<Vec<Evidence>> {
        let connection = open_to_read(file)?;
        let sql = "SELECT at, jail, lines FROM evidence WHERE network = ?1 ORDER BY id DESC LIMIT 100";
        let mut read = connection.prepare(sql)?;
        let mut rows = read.query(params![network_to_row(network)])?;
        let mut evidence = Vec::new();
        while let Some(row) = rows.next()? {
            let (at, jail): (_, String) = (time(row, 0)?, row.get(1)?);
            let lines = lines_from_row(row.get_ref(2)?.as_blob()?);
            evidence.extend(lines.into_iter().map(|line| Evidence { at, jail: jail.clone(), line }));
        }
        Ok(evidence)
    };
    read().map_err(|source| BanStoreError::Database { file: file.to_owned(), source })
}

pub(super) fn would_bans(file: &Path, lease: i64) -> Result<Vec<WouldBan>, BanStoreError> {
    let read = || -> rusqlite::Result<Vec<WouldBan>> {
        let connection = open_to_read(file)?;
        let sql = "SELECT lease, network, jail, at, line FROM would_bans WHERE lease = ?1 ORDER BY id";
        let mut read = connection.prepare(sql)?;
        let found = read.query_map([lease], |row| {
            Ok(WouldBan {
                lease: row.get(0)?,
                network: network(row, 1)?,
                jail: row.get(2)?,
                at: time(row, 3)?,
                line: row.get::<_, Vec<u8>>(4)?.into(),
            })
        })?;
        found.collect()
    };
    read().map_err(|source| BanStoreError::Database { file: file.to_owned(), source })
}
