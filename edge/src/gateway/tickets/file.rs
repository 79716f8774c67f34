//! The tickets' SQLite file: made, opened, brought to the present version, known again, set aside.
//! Knows what stands in it about itself; must not know what a ticket is for.
//!
//! A file is known again by its *place*, which is the host's present boot, its device and its inode,
//! by its *token* (see `witness`), since an inode is used again at once, and by its *seal*. Any other
//! may be an earlier state of itself, from a snapshot or a backup, and lack what was written since.
//!
//! A killed edge leaves a log beside the file, which SQLite replays into whatever lies there: over an
//! earlier file, what had left the log for the file would be missing, and the token, which comes out
//! of the log, would be the last one all the same; and pages of two states make no whole file. So
//! nothing but edge's own step changes the file (see [`copy_log`]), and the seal tells any other. Both
//! also count their commits (`turn`), and the log says from which one on it has them all (`base`): over
//! any other file it is not replayed.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior, ffi, params};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::seal::{self, Stamp};
use super::secret::Secret;
use super::witness::Witness;
use super::{Mark, TicketsError};

/// `edtk` in ASCII: tells our file from another program's.
const APPLICATION: i64 = 0x6564_746b;
/// The file's `user_version`. Version 1 had marks without period, and days by the wall clock;
/// version 2 had no token, version 3 counted no commits.
const VERSION: i64 = 4;
const TICKETS: &str = "
    CREATE TABLE tickets (mark BLOB PRIMARY KEY, life BLOB NOT NULL, day INTEGER NOT NULL) WITHOUT ROWID;
";
const ABOUT: &str = "
    CREATE TABLE about (id INTEGER PRIMARY KEY CHECK (id = 1), secret BLOB NOT NULL,
        settled INTEGER NOT NULL, kept INTEGER NOT NULL, former INTEGER NOT NULL,
        ran INTEGER NOT NULL, place TEXT NOT NULL, token BLOB NOT NULL, turn INTEGER NOT NULL,
        base INTEGER NOT NULL);
";
/// What version 1 wrote counts on, as if it were written today: its days may be any clock's.
const FROM_1: &str = "
    ALTER TABLE tickets RENAME TO former;
    ALTER TABLE about RENAME COLUMN both_gave TO settled;
    ALTER TABLE about ADD COLUMN former INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE about ADD COLUMN ran INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE about ADD COLUMN place TEXT NOT NULL DEFAULT '';
    UPDATE about SET former = kept;
";
const FROM_2: &str = "ALTER TABLE about ADD COLUMN token BLOB NOT NULL DEFAULT x'';";
const FROM_3: &str = "
    ALTER TABLE about ADD COLUMN turn INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE about ADD COLUMN base INTEGER NOT NULL DEFAULT 0;
";
/// How long another process may hold the file, such as an edge that is just ending.
const BUSY: Duration = Duration::from_secs(5);
/// And how often it is tried in that time.
const TURN: Duration = Duration::from_millis(10);
/// So many that were set aside are kept, the first ones and the last.
const MOST_ASIDE: u32 = 9;

/// An open file and what it says about itself.
pub(super) struct Opened {
    pub(super) connection: Connection,
    /// The file as it is now.
    pub(super) stamp: Stamp,
    pub(super) witness: Witness,
    /// Keeps other edges away while it is held.
    pub(super) lock: File,
    /// Was it last open in another place, or made just now?
    pub(super) fresh: Option<Fresh>,
    /// Were both vaults together since its last doubt?
    pub(super) settled: bool,
    /// Tickets in all.
    pub(super) kept: u64,
    /// Those of version 1 among them.
    pub(super) former: u64,
    /// How long edge has run with it.
    pub(super) ran: Duration,
    /// The commit since which its log has them all.
    pub(super) base: i64,
}

/// Why an open file proves nothing of what was sent before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fresh {
    /// It was made just now.
    Made,
    /// It was last open in another boot, lay elsewhere, is an earlier state of itself, or of an
    /// earlier version.
    Elsewhere,
}

/// Opens or makes the file (mode 0600), in this `boot` of the host, with its seal at `memory` too. One
/// that is damaged or was written with another secret is set aside and a fresh one made.
pub(super) fn open(
    file: &Path,
    memory: Option<&Path>,
    secret: &Secret,
    boot: Option<&str>,
) -> Result<Opened, TicketsError> {
    match try_open(file, memory, secret, boot) {
        Ok(Some(opened)) => return Ok(opened),
        Ok(None) => set_aside(file, "was written with another secret")?,
        Err(TicketsError::Database { source, .. }) if is_damage(&source) => {
            set_aside(file, &format!("is damaged: {source}"))?;
        }
        Err(error) => return Err(error),
    }
    let gone =
        || TicketsError::Database { file: file.to_owned(), source: rusqlite::Error::QueryReturnedNoRows };
    try_open(file, memory, secret, boot)?.ok_or_else(gone)
}

/// `None`: another secret.
fn try_open(
    file: &Path,
    memory: Option<&Path>,
    secret: &Secret,
    boot: Option<&str>,
) -> Result<Option<Opened>, TicketsError> {
    let wrap = |source| TicketsError::Database { file: file.to_owned(), source };
    let looked = |source| TicketsError::File { file: file.to_owned(), what: "cannot be looked at", source };
    let (lock, found) = take(file)?;
    let turn = turn_without_log(file);
    let has_log = std::fs::metadata(beside(file, "-wal")).is_ok_and(|log| log.len() > 0);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(file, flags).map_err(wrap)?;
    connection.busy_timeout(BUSY).map_err(wrap)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(wrap)?;
    if !is_ours(&connection).map_err(wrap)? {
        return Err(TicketsError::Foreign(file.to_owned()));
    }
    configure(&connection).map_err(wrap)?;
    let mut witness = Witness::of(file, memory).map_err(wrap)?;
    // To open it may have changed it, where it was no store that edge left so.
    let stamp = Stamp::at(file).map_err(looked)?;
    let is_left = stamp == found && witness.is_sealed(Some(stamp));
    if !is_left && has_log && !is_of_one_piece(&connection, turn).map_err(wrap)? {
        drop((connection, witness, lock));
        set_aside_log(file)?;
        return try_open(file, memory, secret, boot);
    }
    // Killed while it copied the log: all of it is still there, and this is the file for it.
    let is_sealed = is_left || (stamp == found && has_log && witness.is_sealed(None));
    if !is_sealed {
        check(&connection).map_err(wrap)?;
    }
    let known = stamp.place(boot).filter(|_| is_sealed);
    let place = stamp.place(boot).unwrap_or_default();
    let (about, fresh) = prepare(&mut connection, secret, &place, known.is_some(), &witness).map_err(wrap)?;
    if about.sign != secret.sign() {
        return Ok(None);
    }
    let token = Mark::try_from(&about.token[..]).unwrap_or(witness.next());
    witness.begin(token, stamp).map_err(wrap)?;
    let About { settled, kept, former, ran, base, .. } = about;
    let ran = Duration::from_secs(ran);
    Ok(Some(Opened { connection, stamp, witness, lock, fresh, settled, kept, former, ran, base }))
}

/// The file, made where it is missing, as edge's own; and what it is then. Waits a little for an edge
/// that is just ending.
fn take(file: &Path) -> Result<(File, Stamp), TicketsError> {
    let fault = |what| move |source| TicketsError::File { file: file.to_owned(), what, source };
    let turns = BUSY.as_millis() / TURN.as_millis();
    for _ in 0..turns {
        let opened = seal::open(file).map_err(fault("cannot be opened"))?;
        match flock(&opened, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                let stamp = Stamp::at(file).map_err(fault("cannot be looked at"))?;
                let own = opened.metadata().map_err(fault("cannot be looked at"))?;
                if stamp.is_same_file(Stamp::of(&own)) {
                    return Ok((opened, stamp));
                }
                // Whoever had it before has put another in its place.
            }
            Err(Errno::WOULDBLOCK) => {}
            Err(errno) => return Err(fault("cannot be locked")(errno.into())),
        }
        std::thread::sleep(TURN);
    }
    Err(TicketsError::Taken(file.to_owned()))
}

/// The last commit that is in the file itself, if it can be told. To be asked before the file is opened:
/// a second connection's end would let go of the first one's locks. Edge may have been killed while it
/// copied the log: the first page then tells of pages that are not there yet, which only whoever may
/// write the schema is allowed to read.
fn turn_without_log(file: &Path) -> Option<i64> {
    let path = std::path::absolute(file).ok()?;
    let path: String =
        path.as_os_str().as_encoded_bytes().iter().map(|byte| format!("%{byte:02x}")).collect();
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    let connection = Connection::open_with_flags(format!("file:{path}?immutable=1"), flags).ok()?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_WRITABLE_SCHEMA, true).ok()?;
    connection.query_row("SELECT turn FROM about", [], |row| row.get(0)).ok()
}

/// Has the log every commit since the last one that is in the file itself, and no earlier file's?
fn is_of_one_piece(connection: &Connection, in_file: Option<i64>) -> rusqlite::Result<bool> {
    let columns = "SELECT count(*) FROM pragma_table_info('about') WHERE name IN ('turn', 'base')";
    if connection.query_row(columns, [], |row| row.get::<_, i64>(0))? < 2 {
        // It is new, or of an earlier version.
        return Ok(true);
    }
    let (turn, base): (i64, i64) =
        connection.query_row("SELECT turn, base FROM about", [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(in_file.map_or(base == 0, |in_file| (base..=turn).contains(&in_file)))
}

/// Is it one whole file?
fn check(connection: &Connection) -> rusqlite::Result<()> {
    let found: String = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    if found == "ok" {
        return Ok(());
    }
    Err(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CORRUPT), Some(found)))
}

/// Brings what stands in the log into the file itself, as far as nobody reads it; tells whether all of
/// it is there now. Nothing else may change the file, so that whatever else does is noticed.
pub(super) fn copy_log(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| {
        let (busy, all, copied): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        Ok(busy == 0 && all == copied)
    })
}

/// Nobody else's, nor a newer program's.
fn is_ours(connection: &Connection) -> rusqlite::Result<bool> {
    let number = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let version = 1..=VERSION;
    Ok(tables == 0
        || (number("application_id")? == APPLICATION && version.contains(&number("user_version")?)))
}

/// WAL, and every commit on the disk before it returns.
fn configure(connection: &Connection) -> rusqlite::Result<()> {
    let _mode: String = connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
    connection.pragma_update(None, "synchronous", "full")?;
    let _pages: i64 = connection.pragma_update_and_check(None, "wal_autocheckpoint", 0, |row| row.get(0))?;
    connection.pragma_update(None, "journal_size_limit", 64 * 1024 * 1024)?;
    connection.pragma_update(None, "cache_size", -16 * 1024)?;
    connection.set_prepared_statement_cache_capacity(16);
    Ok(())
}

struct About {
    sign: Mark,
    settled: bool,
    kept: u64,
    former: u64,
    ran: u64,
    place: String,
    token: Vec<u8>,
    base: i64,
}

/// The tables of the present version; and what is written about the file, whose place is noted.
/// Nothing is written where everything is as it was.
fn prepare(
    connection: &mut Connection,
    secret: &Secret,
    place: &str,
    is_sealed: bool,
    witness: &Witness,
) -> rusqlite::Result<(About, Option<Fresh>)> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let tables: i64 = transaction.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let version: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if tables == 0 {
        transaction.execute_batch(&format!("{TICKETS}{ABOUT}"))?;
        let insert = "INSERT INTO about VALUES (1, ?1, 0, 0, 0, 0, '', x'', 0, 0)";
        transaction.execute(insert, [secret.sign()])?;
        transaction.pragma_update(None, "application_id", APPLICATION)?;
    } else if version == 1 {
        transaction.execute_batch(&format!("{FROM_1}{TICKETS}{FROM_2}{FROM_3}"))?;
    } else if version == 2 {
        transaction.execute_batch(&format!("{FROM_2}{FROM_3}"))?;
    } else if version == 3 {
        transaction.execute_batch(FROM_3)?;
    }
    if version != VERSION {
        transaction.pragma_update(None, "user_version", VERSION)?;
    }
    let select = "SELECT secret, settled, kept, former, ran, place, token, base FROM about";
    let mut about = transaction.query_row(select, [], |row| {
        let (sign, settled, kept) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let (former, ran, place, token) = (row.get(3)?, row.get(4)?, row.get(5)?, row.get(6)?);
        Ok(About { sign, settled, kept, former, ran, place, token, base: row.get(7)? })
    })?;
    let is_known = is_sealed && about.place == place && witness.vouches(&about.token);
    let fresh = match tables {
        0 => Some(Fresh::Made),
        _ => (!is_known).then_some(Fresh::Elsewhere),
    };
    if fresh.is_some() && about.sign == secret.sign() {
        // From here on it is another file than any that may be put back one day.
        let [a, b, c, d, ..] = witness.next();
        let leap = i64::from(u32::from_be_bytes([a, b, c, d])) + 1;
        let set = "UPDATE about SET settled = 0, place = ?1, token = ?2, turn = turn + ?3";
        transaction.execute(set, params![place, witness.next(), leap])?;
        (about.settled, about.token) = (false, witness.next().to_vec());
    }
    transaction.commit()?;
    Ok((about, fresh))
}

/// The file is no database, or not a whole one.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    match error {
        rusqlite::Error::SqliteFailure(failure, _) => {
            matches!(failure.code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
        }
        // A column is not what we made it, or the one row is missing.
        rusqlite::Error::InvalidColumnType(..)
        | rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::IntegralValueOutOfRange(..)
        | rusqlite::Error::QueryReturnedNoRows => true,
        _ => false,
    }
}

/// Puts the file out of the way and says what that means. It is kept for whoever wants to know what
/// happened.
pub(super) fn set_aside(file: &Path, why: &str) -> Result<(), TicketsError> {
    // The file first: without it, its log alone is never read again. The other way round a crash in
    // between would leave a file that lacks its last tickets and looks whole.
    let to = rename(file, &["", "-wal", "-shm"])?;
    tracing::error!(
        "tickets: {}: {why}; it is set aside as {} and a fresh one begun. No number is given twice by it, but a vault \
         that is alone gives this host none until both were together again. Look at the disk; what was set aside may \
         be deleted, and must not be put back",
        file.display(),
        to.display()
    );
    Ok(())
}

/// The file was put back without the log beside it: that one is another's.
fn set_aside_log(file: &Path) -> Result<(), TicketsError> {
    let to = rename(file, &["-wal", "-shm"])?;
    tracing::error!(
        "tickets: {}: the log beside it (-wal) is not its own, as where one of the two alone is put back; the log is \
         set aside as {}-wal, and what was written down only there is not known any more; it may be deleted",
        file.display(),
        to.display()
    );
    Ok(())
}

/// What lies beside it, where SQLite puts it: beside the file to which a link leads.
fn beside(file: &Path, end: &str) -> PathBuf {
    PathBuf::from(format!("{}{end}", target(file).display()))
}

fn target(file: &Path) -> PathBuf {
    std::fs::canonicalize(file).unwrap_or(file.to_owned())
}

/// Renames these parts of it to a name that is free; tells that.
fn rename(file: &Path, parts: &[&str]) -> Result<PathBuf, TicketsError> {
    // Once: the link leads nowhere when its file is renamed.
    let target = target(file);
    let beside = |end: &str| PathBuf::from(format!("{}{end}", target.display()));
    let ends = (1..=MOST_ASIDE).map(|count| match count {
        1 => ".damaged".to_owned(),
        count => format!(".damaged-{count}"),
    });
    let ends: Vec<String> = ends.collect();
    let is_free = |end: &&String| !parts.iter().any(|part| beside(&format!("{end}{part}")).exists());
    let to = ends.iter().find(is_free).or(ends.last()).map_or(".damaged", String::as_str);
    for part in parts {
        match std::fs::rename(beside(part), beside(&format!("{to}{part}"))) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(TicketsError::File { file: beside(part), what: "cannot be set aside", source });
            }
            _ => {}
        }
    }
    Ok(beside(to))
}
