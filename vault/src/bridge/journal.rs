//! What a direction must not lose: its messages between the brokers, in one SQLite file (see
//! [`crate::sqlite`]: synced at every commit). Knows SQL and the core's writes; not what they mean.
//!
//! One thread writes. All that waits for it goes into one transaction (group commit) and is told in
//! the order in which it was asked. After an error nothing more is written: whoever drives the
//! direction opens the journal again and goes on from what it holds.

mod dead;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension as _, Row as SqlRow, Transaction, params};
use serde::Serialize;
use tokio::sync::mpsc;

use super::core::{Badge, Held, Kept, Load, Row, Write};
use crate::openwire::{EncodeError, Message};
use crate::sqlite::{self, SqliteError};

pub use dead::{Dead, Left, dead_letters, left, purge, revive};

/// A row counts so many bytes beside its message.
const ROW: u64 = 64;
/// Errands that wait for the thread.
const MOST_ERRANDS: usize = 64;
/// Pages that SQLite keeps, as SQLite counts: so many KiB; a batch is seldom larger.
const CACHE: i64 = -2_048;
/// Pages in SQLite's log before they go into the file itself, 16 MiB: what is forwarded at once
/// never gets there.
const LOG: i64 = 4096;

/// `batch` has those whose rows are not ours, or not yet; all other rows wait for the target.
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE life (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        birth BLOB NOT NULL,
        next_batch INTEGER NOT NULL DEFAULT 1,
        last_sequence INTEGER NOT NULL DEFAULT 0,
        journalled INTEGER NOT NULL DEFAULT 0,
        forwarded INTEGER NOT NULL DEFAULT 0,
        expired INTEGER NOT NULL DEFAULT 0,
        dead INTEGER NOT NULL DEFAULT 0,
        waiting_bytes INTEGER NOT NULL DEFAULT 0,
        source BLOB,
        target BLOB
    ) STRICT;
    CREATE TABLE row (sequence INTEGER PRIMARY KEY, bytes INTEGER NOT NULL, message BLOB NOT NULL) STRICT;
    CREATE TABLE batch (
        number INTEGER PRIMARY KEY,
        first INTEGER NOT NULL,
        last INTEGER NOT NULL,
        rows INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        source BLOB
    ) STRICT;
    CREATE TABLE dead (sequence INTEGER PRIMARY KEY, why TEXT NOT NULL, message BLOB NOT NULL) STRICT;
",
    "
    ALTER TABLE row ADD COLUMN at INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE life ADD COLUMN ends TEXT NOT NULL DEFAULT '';
",
];

/// So far a journal jumps that is an old copy: no life gives so many sequences.
const JUMP: u64 = 1 << 40;

/// Rows that are ours: they wait for the target.
const OURS: &str = "NOT EXISTS (SELECT 1 FROM batch WHERE row.sequence BETWEEN first AND last)";

/// A journal's identity: given at its birth, never again.
pub type Birth = [u8; 16];

/// Messages since the journal's birth, per hop: those journalled are forwarded, expired, dead, or
/// wait.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Durably ours.
    pub journalled: u64,
    /// At the target.
    pub forwarded: u64,
    /// Worthless before they got there.
    pub expired: u64,
    /// Not taken by the target.
    pub dead: u64,
}

impl Counts {
    /// Those that wait for the target.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.journalled.saturating_sub(self.forwarded + self.expired + self.dead)
    }
}

/// Rows that wait, in order.
pub type Rows = Vec<Row<Arc<Message>>>;

/// What is shown of a journal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Per hop.
    pub counts: Counts,
    /// When the oldest message that waits was written, ms since 1970.
    pub oldest: Option<i64>,
    /// Bytes of the file that hold nothing any more and take what comes next.
    pub free: u64,
}

/// What can go wrong with the journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file itself.
    #[error(transparent)]
    File(#[from] SqliteError),
    /// A statement failed; disk full reads as such in SQLite's own words.
    #[error("{file}: {source}; nothing of this write was kept, its messages stay at the source")]
    Sql {
        /// The file.
        file: PathBuf,
        /// SQLite's reason.
        #[source]
        source: rusqlite::Error,
    },
    /// A message that cannot be kept.
    #[error("{file}: a message cannot be kept: {source}")]
    Encode {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: EncodeError,
    },
    /// It was written between other brokers.
    #[error(
        "{file}: {rows} messages in it were taken on the way {was}, and its bridge now leads {now}; name the \
         brokers as before until it is empty, or give the new way a name of its own"
    )]
    Elsewhere {
        /// The file.
        file: PathBuf,
        /// From where to where it led.
        was: String,
        /// From where to where it leads.
        now: String,
        /// How many.
        rows: u64,
    },
    /// The thread ended without a word.
    #[error("the journal's thread has ended; the log says why")]
    Ended,
    /// The thread cannot be started.
    #[error("{file}: no thread for it: {source}; look at the host's limits")]
    Thread {
        /// The file.
        file: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
}

/// What the thread is asked.
#[derive(Debug)]
pub enum Errand {
    /// To write this, at this time (ms since 1970).
    Write(Write<Arc<Message>>, i64),
    /// To read rows that wait: behind a sequence, at most so many, at most so many bytes or one.
    Load {
        /// Behind this sequence.
        after: u64,
        /// At most so many rows.
        rows: usize,
        /// At most so many bytes, or one row.
        bytes: u64,
        /// What expired before this time (ms since 1970) is marked so.
        now: i64,
    },
}

/// What the thread tells, in the order of the errands.
#[derive(Debug)]
pub enum Told {
    /// The oldest write is durable; so are these figures.
    Written(Figures),
    /// So much that waited is no message: it lies with the dead letters now.
    Damaged(Load, Figures),
    /// What was read.
    Loaded(Rows),
    /// It cannot go on, and has ended.
    Failed(JournalError),
}

/// The open file.
#[derive(Debug)]
pub struct Journal {
    file: PathBuf,
    connection: Connection,
    birth: Birth,
}

impl Journal {
    /// Opens or creates it. `fresh` becomes its identity if it is new; `ends` is the way that it leads.
    ///
    /// # Errors
    /// The file, or it holds what was taken on another way.
    pub fn open(file: &Path, fresh: Birth, ends: &str) -> Result<Self, JournalError> {
        let connection = sqlite::open(file, MIGRATIONS)?;
        let prepare = || {
            connection.pragma_update(None, "cache_size", CACHE)?;
            connection.pragma_update(None, "wal_autocheckpoint", LOG)?;
            connection
                .execute("INSERT INTO life (one, birth) VALUES (1, ?1) ON CONFLICT DO NOTHING", [fresh])?;
            connection.query_row("SELECT birth FROM life", [], |row| row.get(0))
        };
        let birth = prepare().map_err(|source| JournalError::Sql { file: file.to_owned(), source })?;
        let journal = Self { file: file.to_owned(), connection, birth };
        journal.lead(ends)?;
        Ok(journal)
    }

    /// What was taken from one broker must not be asked of another, nor go to another one as well.
    fn lead(&self, ends: &str) -> Result<(), JournalError> {
        let was: String = self
            .connection
            .query_row("SELECT ends FROM life", [], |row| row.get(0))
            .map_err(|source| self.sql(source))?;
        if was == ends {
            return Ok(());
        }
        let rows: u64 = self
            .connection
            .query_row("SELECT count(*) FROM (SELECT 1 FROM row LIMIT 1000000)", [], |row| row.get(0))
            .map_err(|source| self.sql(source))?;
        if rows > 0 && !was.is_empty() {
            let (file, now) = (self.file.clone(), ends.to_owned());
            return Err(JournalError::Elsewhere { file, was, now, rows });
        }
        let set = self.connection.execute("UPDATE life SET ends = ?1", [ends]);
        set.map(drop).map_err(|source| self.sql(source))
    }

    /// Its identity.
    #[must_use]
    pub fn birth(&self) -> Birth {
        self.birth
    }

    /// What it holds, for the core to go on from.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn kept(&self) -> Result<Kept, JournalError> {
        let kept = || {
            let mut batches = self.connection.prepare("SELECT number, rows, bytes, source FROM batch")?;
            let batch = |row: &SqlRow<'_>| {
                let load = Load { rows: row.get(1)?, bytes: row.get(2)? };
                Ok((row.get(0)?, Held { at: row.get(3)?, load }))
            };
            let uncertain: BTreeMap<u64, Held> = batches.query_map([], batch)?.collect::<Result<_, _>>()?;
            let (rows, dead) = (counts(&self.connection)?.waiting(), dead::load(&self.connection)?);
            let sql = "SELECT next_batch, last_sequence, waiting_bytes, source, target FROM life";
            self.connection.query_row(sql, [], |row| {
                Ok(Kept {
                    next_batch: row.get(0)?,
                    last_sequence: row.get(1)?,
                    waiting: Load { rows, bytes: row.get(2)? },
                    source: row.get(3)?,
                    target: row.get(4)?,
                    uncertain,
                    dead,
                })
            })
        };
        kept().map_err(|source| self.sql(source))
    }

    /// What is shown of it.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn figures(&self) -> Result<Figures, JournalError> {
        let figures = || {
            let oldest = format!("SELECT at FROM row WHERE {OURS} ORDER BY sequence LIMIT 1");
            let oldest =
                self.connection.prepare_cached(&oldest)?.query_row([], |row| row.get(0)).optional()?;
            let pragma = |name| self.connection.pragma_query_value(None, name, |row| row.get::<_, u64>(0));
            let free = pragma("freelist_count")? * pragma("page_size")?;
            Ok(Figures { counts: counts(&self.connection)?, oldest, free })
        };
        figures().map_err(|source| self.sql(source))
    }

    /// Does all of this, durably, in one transaction; `at` (ms since 1970) is when.
    ///
    /// # Errors
    /// SQLite's own, or a message that cannot be encoded; then nothing was kept.
    pub fn write(&mut self, writes: Vec<Write<Arc<Message>>>, at: i64) -> Result<(), JournalError> {
        let file = &self.file;
        let encode = |message: Arc<Message>| {
            message.to_bytes().map_err(|source| JournalError::Encode { file: file.clone(), source })
        };
        let mut encoded = Vec::with_capacity(writes.len());
        for write in writes {
            encoded.push(match write {
                Write::Batch(number, messages) => {
                    Write::Batch(number, messages.into_iter().map(encode).collect::<Result<_, _>>()?)
                }
                Write::Ours { batch, afresh } => Write::Ours { batch, afresh },
                Write::Drop(batch) => Write::Drop(batch),
                Write::Remove { forwarded, expired } => Write::Remove { forwarded, expired },
                Write::Bury { sequence, why } => Write::Bury { sequence, why },
                Write::From(badge) => Write::From(badge),
                Write::To(badge) => Write::To(badge),
                Write::Jump(next_batch) => Write::Jump(next_batch),
            });
        }
        let mut work = || {
            let transaction = self.connection.transaction()?;
            encoded.iter().try_for_each(|write| apply(&transaction, write, at))?;
            transaction.commit()
        };
        work().map_err(|source| JournalError::Sql { file: file.clone(), source })
    }

    /// Rows that wait, in order; see [`Errand::Load`]. What is no message is laid to the dead letters, and
    /// tells how much that was: it keeps nothing else from going on.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn load(
        &mut self,
        after: u64,
        most: usize,
        bytes: u64,
        now: i64,
    ) -> Result<(Rows, Load), JournalError> {
        let found = self.read(after, most, bytes).map_err(|source| self.sql(source))?;
        let (mut rows, mut damaged) = (Vec::with_capacity(found.len()), Load::default());
        for (sequence, bytes, message) in found {
            match Message::from_bytes(message.into()) {
                Ok(message) => {
                    let is_expired = message.expiration > 0 && message.expiration <= now;
                    rows.push(Row { sequence, bytes, is_expired, message: Arc::new(message) });
                }
                Err(error) => {
                    tracing::error!(
                        "{}: message {sequence} is damaged: {error}; check the disk. Its bytes lie with the dead \
                         letters, the others go on",
                        self.file.display()
                    );
                    self.write(vec![Write::Bury { sequence, why: format!("damaged here: {error}") }], now)?;
                    damaged = damaged + Load { rows: 1, bytes };
                }
            }
        }
        Ok((rows, damaged))
    }

    fn read(&self, after: u64, most: usize, bytes: u64) -> rusqlite::Result<Vec<(u64, u64, Vec<u8>)>> {
        let sql = format!(
            "SELECT sequence, bytes, message FROM row WHERE sequence > ?1 AND {OURS} ORDER BY sequence"
        );
        let mut statement = self.connection.prepare_cached(&sql)?;
        let mut rows = statement.query([after])?;
        let (mut found, mut load): (Vec<(u64, u64, Vec<u8>)>, u64) = (Vec::new(), 0);
        while let Some(row) = rows.next()? {
            load += row.get::<_, u64>(1)?;
            if found.len() == most || (load > bytes && !found.is_empty()) {
                break;
            }
            found.push((row.get(0)?, row.get(1)?, row.get(2)?));
        }
        Ok(found)
    }

    /// Gives it to a thread, which ends when nobody asks any more.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn run(self) -> Result<(mpsc::Sender<Errand>, mpsc::UnboundedReceiver<Told>), JournalError> {
        let file = self.file.clone();
        let (errands, asked) = mpsc::channel(MOST_ERRANDS);
        let (tell, told) = mpsc::unbounded_channel();
        std::thread::Builder::new()
            .name("bridge".to_owned())
            .spawn(move || {
                if let Err(error) = self.serve(asked, &tell) {
                    // Nobody listens any more when the direction has ended before.
                    let _gone = tell.send(Told::Failed(error));
                }
            })
            .map_err(|source| JournalError::Thread { file, source })?;
        Ok((errands, told))
    }

    fn serve(
        mut self,
        mut asked: mpsc::Receiver<Errand>,
        tell: &mpsc::UnboundedSender<Told>,
    ) -> Result<(), JournalError> {
        let mut next = asked.blocking_recv();
        while let Some(errand) = next.take() {
            let (mut writes, mut at) = (Vec::new(), 0);
            let mut load = Some(errand);
            while let Some(Errand::Write(write, now)) = load {
                writes.push(write);
                at = now;
                load = asked.try_recv().ok();
            }
            let number = writes.len();
            if number > 0 {
                self.write(writes, at)?;
                let figures = self.figures()?;
                for _ in 0..number {
                    let _gone = tell.send(Told::Written(figures));
                }
            }
            if let Some(Errand::Load { after, rows, bytes, now }) = load {
                let (rows, damaged) = self.load(after, rows, bytes, now)?;
                if damaged.rows > 0 {
                    let _gone = tell.send(Told::Damaged(damaged, self.figures()?));
                }
                let _gone = tell.send(Told::Loaded(rows));
            }
            next = asked.blocking_recv();
        }
        Ok(())
    }

    fn sql(&self, source: rusqlite::Error) -> JournalError {
        JournalError::Sql { file: self.file.clone(), source }
    }
}

fn counts(connection: &Connection) -> rusqlite::Result<Counts> {
    let mut statement = connection.prepare_cached("SELECT journalled, forwarded, expired, dead FROM life")?;
    statement.query_row([], |row| {
        Ok(Counts {
            journalled: row.get(0)?,
            forwarded: row.get(1)?,
            expired: row.get(2)?,
            dead: row.get(3)?,
        })
    })
}

fn apply(transaction: &Transaction<'_>, write: &Write<bytes::Bytes>, at: i64) -> rusqlite::Result<()> {
    match write {
        Write::Batch(number, messages) => put_batch(transaction, *number, messages, at),
        Write::Ours { batch, afresh } => take_over(transaction, *batch, *afresh),
        Write::Drop(batch) => {
            if let Some((first, last, _)) = settle(transaction, *batch)? {
                transaction
                    .prepare_cached("DELETE FROM row WHERE sequence BETWEEN ?1 AND ?2")?
                    .execute([first, last])?;
            }
            Ok(())
        }
        Write::Remove { forwarded, expired } => {
            remove(transaction, forwarded)?;
            remove(transaction, expired)?;
            count(transaction, "forwarded", forwarded.len() as u64)?;
            count(transaction, "expired", expired.len() as u64)
        }
        Write::Bury { sequence, why } => {
            transaction
                .prepare_cached("INSERT INTO dead SELECT sequence, ?2, message FROM row WHERE sequence = ?1")?
                .execute(params![sequence, why])?;
            remove(transaction, &[*sequence])?;
            count(transaction, "dead", 1)
        }
        Write::From(badge) => note(transaction, "source", badge),
        Write::To(badge) => note(transaction, "target", badge),
        Write::Jump(next_batch) => transaction
            .execute(
                "UPDATE life SET next_batch = ?1, last_sequence = last_sequence + ?2",
                [*next_batch, JUMP],
            )
            .map(drop),
    }
}

fn put_batch(
    transaction: &Transaction<'_>,
    number: u64,
    messages: &[bytes::Bytes],
    at: i64,
) -> rusqlite::Result<()> {
    let last: u64 =
        transaction.prepare_cached("SELECT last_sequence FROM life")?.query_row([], |row| row.get(0))?;
    let mut insert = transaction.prepare_cached("INSERT INTO row VALUES (?1, ?2, ?3, ?4)")?;
    let (mut sequence, mut bytes) = (last, 0);
    for message in messages {
        sequence += 1;
        let size = message.len() as u64 + ROW;
        bytes += size;
        insert.execute(params![sequence, size, &message[..], at])?;
    }
    transaction
        .prepare_cached("INSERT INTO batch SELECT ?1, ?2, ?3, ?4, ?5, source FROM life")?
        .execute([number, last + 1, sequence, messages.len() as u64, bytes])?;
    transaction
        .prepare_cached("UPDATE life SET next_batch = ?1, last_sequence = ?2")?
        .execute([number + 1, sequence])
        .map(drop)
}

/// The batch's rows wait from now on, with the next sequences if they are to be `afresh`.
fn take_over(transaction: &Transaction<'_>, batch: u64, afresh: bool) -> rusqlite::Result<()> {
    let Some((first, last, load)) = settle(transaction, batch)? else { return Ok(()) };
    if afresh {
        let highest: u64 = transaction.query_row("SELECT last_sequence FROM life", [], |row| row.get(0))?;
        // All of them move by the same step, so they stay in order.
        let step = highest + 1 - first;
        transaction.execute(
            "UPDATE row SET sequence = sequence + ?3 WHERE sequence BETWEEN ?1 AND ?2",
            [first, last, step],
        )?;
        transaction.execute("UPDATE life SET last_sequence = ?1", [last + step])?;
    }
    transaction
        .prepare_cached("UPDATE life SET journalled = journalled + ?1, waiting_bytes = waiting_bytes + ?2")?
        .execute([load.rows, load.bytes])
        .map(drop)
}

/// Ends a batch: its first and last row, and what it held.
fn settle(transaction: &Transaction<'_>, batch: u64) -> rusqlite::Result<Option<(u64, u64, Load)>> {
    transaction
        .prepare_cached("DELETE FROM batch WHERE number = ?1 RETURNING first, last, rows, bytes")?
        .query_row([batch], |row| {
            Ok((row.get(0)?, row.get(1)?, Load { rows: row.get(2)?, bytes: row.get(3)? }))
        })
        .optional()
}

/// Rows in ascending order; those beside each other go at once.
fn remove(transaction: &Transaction<'_>, sequences: &[u64]) -> rusqlite::Result<()> {
    for run in sequences.chunk_by(|one, next| one + 1 == *next) {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
        transaction
            .prepare_cached(
                "UPDATE life SET waiting_bytes = waiting_bytes
                 - (SELECT coalesce(sum(bytes), 0) FROM row WHERE sequence BETWEEN ?1 AND ?2)",
            )?
            .execute([first, last])?;
        transaction
            .prepare_cached("DELETE FROM row WHERE sequence BETWEEN ?1 AND ?2")?
            .execute([first, last])?;
    }
    Ok(())
}

/// Which broker it is from now on.
fn note(transaction: &Transaction<'_>, side: &str, badge: &Badge) -> rusqlite::Result<()> {
    transaction.execute(&format!("UPDATE life SET {side} = ?1"), [badge]).map(drop)
}

fn count(transaction: &Transaction<'_>, what: &str, more: u64) -> rusqlite::Result<()> {
    transaction.prepare_cached(&format!("UPDATE life SET {what} = {what} + ?1"))?.execute([more]).map(drop)
}

#[cfg(test)]
mod tests;
