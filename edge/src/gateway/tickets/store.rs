//! The tickets' SQLite file: opened, made, set aside when it is damaged, asked and thinned out.
//! Must not know threads, clocks or keys: it is handed marks and days.
//!
//! A store that was just made knows nothing of what was sent before it, by this host's earlier
//! store: a key that one vault has answered alone could get a ticket for the other. So it writes
//! no ticket before both vaults have given a number together, for then each knows what the other
//! had given alone.

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, TransactionBehavior, params};
use shared::api::client::Life;

use super::secret::Secret;
use super::{Mark, TicketsError};

/// `edtk` in ASCII: tells our file from another program's.
const APPLICATION: i64 = 0x6564_746b;
/// The file's `user_version`.
const VERSION: i64 = 1;
const TABLES: &str = "
    CREATE TABLE tickets (mark BLOB PRIMARY KEY, life BLOB NOT NULL, day INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE about (id INTEGER PRIMARY KEY CHECK (id = 1), secret BLOB NOT NULL,
        both_gave INTEGER NOT NULL, kept INTEGER NOT NULL);
";
/// How long another process may hold the file, such as an edge that is just ending.
const BUSY: Duration = Duration::from_secs(5);

pub(super) struct Store {
    connection: Connection,
    file: PathBuf,
    both_gave: bool,
    kept: u64,
}

/// What became of a round of asks.
#[derive(Default)]
pub(super) struct Round {
    /// For each ask, in order, its marks' lives.
    pub(super) lives: Vec<Vec<Option<Life>>>,
    pub(super) written: usize,
    pub(super) known: usize,
    pub(super) committed: bool,
    /// Marks that found no room.
    pub(super) no_room: usize,
    /// Why nothing could be written, or not everything be read.
    pub(super) trouble: Option<rusqlite::Error>,
}

impl Store {
    /// Opens or makes the file (mode 0600). One that is damaged or was written with another secret
    /// is set aside and a fresh one begun.
    pub(super) fn open(file: &Path, secret: &Secret) -> Result<Self, TicketsError> {
        let wrap = |source| TicketsError::Database { file: file.to_owned(), source };
        match Self::try_open(file, secret) {
            Ok(Some(store)) => return Ok(store),
            Ok(None) => tracing::error!(
                "tickets: {}: was written with another secret; it is set aside and a fresh one begun, as if it were lost",
                file.display()
            ),
            Err(TicketsError::Database { source, .. }) if is_damage(&source) => tracing::error!(
                "tickets: {}: is damaged: {source}; it is set aside and a fresh one begun, as if it were lost",
                file.display()
            ),
            Err(error) => return Err(error),
        }
        set_aside(file)?;
        Self::try_open(file, secret)?.ok_or_else(|| wrap(rusqlite::Error::QueryReturnedNoRows))
    }

    /// `None`: another secret.
    fn try_open(file: &Path, secret: &Secret) -> Result<Option<Self>, TicketsError> {
        let wrap = |source| TicketsError::Database { file: file.to_owned(), source };
        let private = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(file);
        private.map_err(|source| TicketsError::File {
            file: file.to_owned(),
            what: "cannot be made",
            source,
        })?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(file, flags).map_err(wrap)?;
        connection.busy_timeout(BUSY).map_err(wrap)?;
        if !is_ours(&connection).map_err(wrap)? {
            return Err(TicketsError::Foreign(file.to_owned()));
        }
        let (sign, both_gave, kept) = prepare(&mut connection, secret).map_err(wrap)?;
        if sign != secret.sign() {
            return Ok(None);
        }
        Ok(Some(Self { connection, file: file.to_owned(), both_gave, kept }))
    }

    /// Is the file still where it was? Else what is written goes nowhere.
    pub(super) fn is_there(&self) -> bool {
        self.file.exists()
    }

    /// Have both vaults given a number together since the store was made?
    pub(super) fn both_gave(&self) -> bool {
        self.both_gave
    }

    /// How many tickets it holds.
    pub(super) fn kept(&self) -> u64 {
        self.kept
    }

    /// Writes down that both vaults gave a number together.
    pub(super) fn note_both_gave(&mut self) -> rusqlite::Result<()> {
        self.connection.execute("UPDATE about SET both_gave = 1", [])?;
        self.both_gave = true;
        Ok(())
    }

    /// Finds each mark's life, and writes the ask's own down for those that have none, all asks in
    /// one transaction, durable when it returns. What is known is told even if nothing can be
    /// written.
    pub(super) fn write_down(&mut self, asks: &[(&[Mark], Life)], today: u32, most: u64) -> Round {
        let mut trouble = None;
        if self.both_gave {
            match self.try_write(asks, today, most) {
                Ok(round) => return round,
                Err(error) => trouble = Some(error),
            }
        }
        // Nothing is written: what was there before still counts.
        look(&self.connection, asks, trouble)
    }

    fn try_write(&mut self, asks: &[(&[Mark], Life)], today: u32, most: u64) -> rusqlite::Result<Round> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let (mut round, mut fresh) = (Round::default(), HashSet::new());
        let room = most.saturating_sub(self.kept);
        for (marks, life) in asks {
            let mut lives = Vec::with_capacity(marks.len());
            for mark in *marks {
                let known = found(&transaction, mark)?;
                if known.is_some() {
                    // Twice in one round is written once, and both find it.
                    round.known += usize::from(!fresh.contains(mark));
                } else if (fresh.len() as u64) < room {
                    let insert = "INSERT INTO tickets (mark, life, day) VALUES (?1, ?2, ?3)";
                    let values = params![mark, life.0.to_be_bytes(), today];
                    transaction.prepare_cached(insert)?.execute(values)?;
                    fresh.insert(*mark);
                } else {
                    round.no_room += 1;
                }
                lives.push(known.or_else(|| fresh.contains(mark).then_some(*life)));
            }
            round.lives.push(lives);
        }
        if !fresh.is_empty() {
            transaction.prepare_cached("UPDATE about SET kept = kept + ?1")?.execute([fresh.len()])?;
            transaction.commit()?;
            self.kept += fresh.len() as u64;
            (round.written, round.committed) = (fresh.len(), true);
        }
        Ok(round)
    }

    /// Forgets what was written before day `oldest` among the next `most` tickets after `from`.
    /// Tells the last one looked at; `None` at the end.
    pub(super) fn thin_out(
        &mut self,
        from: Option<Mark>,
        oldest: u32,
        most: u32,
    ) -> rusqlite::Result<Option<Mark>> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let (mut last, mut old) = (None, Vec::new());
        {
            let sql = "SELECT mark, day FROM tickets WHERE mark > ?1 ORDER BY mark LIMIT ?2";
            let mut rows = transaction.prepare_cached(sql)?;
            let mut rows = rows.query(params![from.as_ref().map_or(&[][..], |mark| &mark[..]), most])?;
            while let Some(row) = rows.next()? {
                let mark: Mark = row.get(0)?;
                if row.get::<_, u32>(1)? < oldest {
                    old.push(mark);
                }
                last = Some(mark);
            }
        }
        if !old.is_empty() {
            for mark in &old {
                transaction.prepare_cached("DELETE FROM tickets WHERE mark = ?1")?.execute([mark])?;
            }
            transaction.execute("UPDATE about SET kept = max(0, kept - ?1)", [old.len()])?;
            transaction.commit()?;
            self.kept = self.kept.saturating_sub(old.len() as u64);
        }
        Ok(last)
    }
}

/// Nobody else's, nor a newer program's.
fn is_ours(connection: &Connection) -> rusqlite::Result<bool> {
    let number = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    Ok(tables == 0 || (number("application_id")? == APPLICATION && number("user_version")? == VERSION))
}

/// WAL, every commit on the disk before it returns, and the tables.
fn prepare(connection: &mut Connection, secret: &Secret) -> rusqlite::Result<(Mark, bool, u64)> {
    let _mode: String = connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "journal_size_limit", 64 * 1024 * 1024)?;
    connection.pragma_update(None, "cache_size", -16 * 1024)?;
    connection.set_prepared_statement_cache_capacity(16);
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let tables: i64 = transaction.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if tables == 0 {
        transaction.execute_batch(TABLES)?;
        transaction.execute("INSERT INTO about VALUES (1, ?1, 0, 0)", [secret.sign()])?;
        transaction.pragma_update(None, "application_id", APPLICATION)?;
        transaction.pragma_update(None, "user_version", VERSION)?;
    }
    let about = transaction.query_row("SELECT secret, both_gave, kept FROM about", [], |row| {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?))
    })?;
    transaction.commit()?;
    Ok(about)
}

fn found(connection: &Connection, mark: &Mark) -> rusqlite::Result<Option<Life>> {
    let mut select = connection.prepare_cached("SELECT life FROM tickets WHERE mark = ?1")?;
    let life: Option<[u8; 16]> = select.query_row([mark], |row| row.get(0)).optional()?;
    Ok(life.map(|life| Life(u128::from_be_bytes(life))))
}

/// What is known, without writing; nothing where it cannot be read.
fn look(connection: &Connection, asks: &[(&[Mark], Life)], trouble: Option<rusqlite::Error>) -> Round {
    let each = |marks: &[Mark]| -> rusqlite::Result<Vec<Option<Life>>> {
        marks.iter().map(|mark| found(connection, mark)).collect()
    };
    match asks.iter().map(|(marks, _)| each(marks)).collect::<rusqlite::Result<Vec<_>>>() {
        Ok(lives) => {
            let known = lives.iter().flatten().flatten().count();
            Round { lives, known, trouble, ..Round::default() }
        }
        Err(error) => {
            let lives = asks.iter().map(|(marks, _)| vec![None; marks.len()]).collect();
            Round { lives, trouble: Some(error), ..Round::default() }
        }
    }
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

/// The last damaged one is kept, for whoever wants to know what happened.
fn set_aside(file: &Path) -> Result<(), TicketsError> {
    for suffix in ["-wal", "-shm", ""] {
        let from = PathBuf::from(format!("{}{suffix}", file.display()));
        let to = PathBuf::from(format!("{}.damaged{suffix}", file.display()));
        match std::fs::rename(&from, to) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(TicketsError::File { file: from, what: "cannot be set aside", source });
            }
            _ => {}
        }
    }
    Ok(())
}
