//! What a direction must not lose: its messages between the brokers, in one SQLite file (see
//! [`crate::sqlite`]: synced at every commit). Knows SQL and the core's writes; not what they mean.
//!
//! One thread writes. All that waits for it goes into one transaction (group commit) and is told in
//! the order in which it was asked. After an error nothing more is written: whoever drives the
//! direction opens the journal again and goes on from what it holds.

mod aside;
mod dead;
mod kept;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension as _, Transaction, params};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;

use super::core::{Badge, Load, Row, Write};
use crate::openwire::{Destination, EncodeError, Message};
use crate::sqlite::{self, SqliteError};

pub use dead::{Dead, Left, Letters, bury, dead_letters, left, purge, revive};

/// A row counts so many bytes beside its message.
const ROW: u64 = 64;
/// Errands that wait for the thread.
const MOST_ERRANDS: usize = 64;
/// Pages that SQLite keeps, as SQLite counts: so many KiB; a batch is seldom larger.
const CACHE: i64 = -2_048;
/// Pages in SQLite's log before they go into the file itself, 16 MiB: what is forwarded at once
/// never gets there.
const LOG: i64 = 4096;

/// Bytes of the file that may hold nothing once no message waits; what is over it goes back to the disk.
const MOST_FREE: u64 = 16 << 20;
/// Pages that go back at once, so that nothing waits for it.
const AT_ONCE: u64 = 1024;

/// `batch` has those whose rows are not ours, or not yet; all other rows wait for the target.
const MIGRATIONS: &[&str] = &["
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
        ends TEXT NOT NULL DEFAULT '',
        source BLOB,
        target BLOB
    ) STRICT;
    CREATE TABLE row (
        sequence INTEGER PRIMARY KEY,
        bytes INTEGER NOT NULL,
        at INTEGER NOT NULL,
        destination INTEGER NOT NULL,
        message BLOB NOT NULL
    ) STRICT;
    CREATE TABLE batch (
        number INTEGER PRIMARY KEY,
        first INTEGER NOT NULL,
        last INTEGER NOT NULL,
        rows INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        source BLOB,
        returned_at INTEGER
    ) STRICT;
    CREATE TABLE dead (sequence INTEGER PRIMARY KEY, why TEXT NOT NULL, message BLOB NOT NULL) STRICT;
    CREATE TABLE aside (sequence INTEGER PRIMARY KEY, why TEXT NOT NULL, is_answered INTEGER NOT NULL) STRICT;
"];

/// So far a journal jumps that is an old copy: no life gives so many sequences.
const JUMP: u64 = 1 << 40;

/// Rows that are ours: they wait for the target.
const OURS: &str = "NOT EXISTS (SELECT 1 FROM batch WHERE row.sequence BETWEEN first AND last)";

/// Rows that are ours, or may be.
const NOT_RETURNED: &str = "NOT EXISTS (
    SELECT 1 FROM batch WHERE returned_at IS NOT NULL AND row.sequence BETWEEN first AND last)";

/// A message as it is kept.
#[derive(Debug, Clone)]
struct Encoded {
    /// See [`Row::destination`].
    destination: i64,
    bytes: bytes::Bytes,
}

/// A row as it is read: its sequence, its bytes, where it goes, and the message.
type Raw = (u64, u64, i64, Vec<u8>);

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
    /// The sequence of the message that goes next.
    pub first: Option<u64>,
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
        /// None that goes to one of these destinations.
        but: Vec<i64>,
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
        let mut connection = sqlite::open(file, MIGRATIONS)?;
        let mut prepare = || {
            connection.pragma_update(None, "cache_size", CACHE)?;
            connection.pragma_update(None, "wal_autocheckpoint", LOG)?;
            if connection.pragma_query_value(None, "auto_vacuum", |row| row.get::<_, u64>(0))? == 0 {
                // A new file: it shall shrink, and learns that by being written anew.
                connection.pragma_update(None, "auto_vacuum", "incremental")?;
                connection.execute("VACUUM", [])?;
            }
            connection
                .execute("INSERT INTO life (one, birth) VALUES (1, ?1) ON CONFLICT DO NOTHING", [fresh])?;
            aside::settle(&mut connection, 0)?;
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
        // A commit may have been stuck at the source for a while.
        let rows = format!(
            "SELECT (SELECT count(*) FROM (SELECT 1 FROM row WHERE {NOT_RETURNED} LIMIT 1000000))
             + (SELECT coalesce(sum(rows), 0) FROM batch WHERE returned_at > (unixepoch() - 600) * 1000)"
        );
        let rows: u64 =
            self.connection.query_row(&rows, [], |row| row.get(0)).map_err(|source| self.sql(source))?;
        if rows > 0 && !was.is_empty() {
            let (file, now) = (self.file.clone(), ends.to_owned());
            return Err(JournalError::Elsewhere { file, was, now, rows });
        }
        let set = || {
            if rows == 0 {
                // What is left are the source's.
                self.connection.execute_batch("DELETE FROM row; DELETE FROM batch")?;
            }
            self.connection.execute("UPDATE life SET ends = ?1", [ends])
        };
        set().map(drop).map_err(|source| self.sql(source))
    }

    /// Its identity.
    #[must_use]
    pub fn birth(&self) -> Birth {
        self.birth
    }

    /// What is shown of it.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn figures(&self) -> Result<Figures, JournalError> {
        let figures = || {
            let first = format!("SELECT sequence, at FROM row WHERE {OURS} ORDER BY sequence LIMIT 1");
            let mut first = self.connection.prepare_cached(&first)?;
            let first = first.query_row([], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
            let (first, oldest) = first.unzip();
            let pragma = |name| self.connection.pragma_query_value(None, name, |row| row.get::<_, u64>(0));
            let free = pragma("freelist_count")? * pragma("page_size")?;
            Ok(Figures { counts: counts(&self.connection)?, first, oldest, free })
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
            let bytes = message.to_bytes();
            let bytes = bytes.map_err(|source| JournalError::Encode { file: file.clone(), source })?;
            Ok::<_, JournalError>(Encoded { destination: number(&message.destination), bytes })
        };
        let mut encoded = Vec::with_capacity(writes.len());
        for write in writes {
            encoded.push(match write {
                Write::Batch(number, messages) => {
                    Write::Batch(number, messages.into_iter().map(encode).collect::<Result<_, _>>()?)
                }
                Write::Ours { batch, afresh } => Write::Ours { batch, afresh },
                Write::Return(batches) => Write::Return(batches),
                Write::Drop(batch) => Write::Drop(batch),
                Write::Remove { forwarded, expired } => Write::Remove { forwarded, expired },
                Write::Bury { sequence, why } => Write::Bury { sequence, why },
                Write::Aside { sequence, why, is_answered } => Write::Aside { sequence, why, is_answered },
                Write::Acquit => Write::Acquit,
                Write::Pass(sequences) => Write::Pass(sequences),
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
        but: &[i64],
        now: i64,
    ) -> Result<(Rows, Load), JournalError> {
        let found = self.read(after, most, bytes, but).map_err(|source| self.sql(source))?;
        let (mut rows, mut damaged) = (Vec::with_capacity(found.len()), Load::default());
        for (sequence, bytes, destination, message) in found {
            match Message::from_bytes(message.into()) {
                Ok(message) => {
                    let is_expired = message.expiration > 0 && message.expiration <= now;
                    rows.push(Row { sequence, bytes, is_expired, destination, message: Arc::new(message) });
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

    fn read(&self, after: u64, most: usize, bytes: u64, but: &[i64]) -> rusqlite::Result<Vec<Raw>> {
        let but: Vec<String> = but.iter().map(ToString::to_string).collect();
        let but = match but.as_slice() {
            [] => String::new(),
            some => format!("AND destination NOT IN ({})", some.join(",")),
        };
        let sql = format!(
            "SELECT sequence, bytes, destination, message FROM row WHERE sequence > ?1 AND {OURS} {but}
             ORDER BY sequence"
        );
        let mut statement = self.connection.prepare_cached(&sql)?;
        let mut rows = statement.query([after])?;
        let (mut found, mut load): (Vec<Raw>, u64) = (Vec::new(), 0);
        while let Some(row) = rows.next()? {
            load += row.get::<_, u64>(1)?;
            if found.len() == most || (load > bytes && !found.is_empty()) {
                break;
            }
            found.push((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?));
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
        let mut may_shrink = false;
        loop {
            let errand = match asked.try_recv() {
                Ok(errand) => errand,
                Err(TryRecvError::Empty) if may_shrink => {
                    // Whatever keeps it from that keeps it from nothing else.
                    may_shrink =
                        self.shrink().inspect_err(|error| tracing::debug!("{error}")).unwrap_or(false);
                    continue;
                }
                Err(_) => match asked.blocking_recv() {
                    Some(errand) => errand,
                    None => return Ok(()),
                },
            };
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
                may_shrink = figures.counts.waiting() == 0 && figures.free > MOST_FREE;
                for _ in 0..number {
                    let _gone = tell.send(Told::Written(figures));
                }
            }
            if let Some(Errand::Load { after, rows, bytes, but, now }) = load {
                let (rows, damaged) = self.load(after, rows, bytes, &but, now)?;
                if damaged.rows > 0 {
                    let _gone = tell.send(Told::Damaged(damaged, self.figures()?));
                }
                let _gone = tell.send(Told::Loaded(rows));
            }
        }
    }

    /// Gives some of what holds nothing back to the disk; tells whether there is more.
    fn shrink(&self) -> Result<bool, JournalError> {
        let shrink = || {
            let free: u64 = self.connection.pragma_query_value(None, "freelist_count", |row| row.get(0))?;
            let size: u64 = self.connection.pragma_query_value(None, "page_size", |row| row.get(0))?;
            let over = free.saturating_sub(MOST_FREE / size);
            if over > 0 {
                let pages = over.min(AT_ONCE);
                let mut vacuum = self.connection.prepare(&format!("PRAGMA incremental_vacuum({pages})"))?;
                let mut freed = vacuum.query([])?;
                while freed.next()?.is_some() {}
            }
            if over <= AT_ONCE {
                // The file itself is cut where the log goes into it.
                self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?;
            }
            Ok(over > AT_ONCE)
        };
        shrink().map_err(|source| self.sql(source))
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

/// The same for the same destination: it is kept.
fn number(destination: &Destination) -> i64 {
    let digest = Sha256::digest(destination.to_string());
    digest.first_chunk().copied().map_or(0, i64::from_be_bytes)
}

fn apply(transaction: &Transaction<'_>, write: &Write<Encoded>, at: i64) -> rusqlite::Result<()> {
    match write {
        Write::Batch(number, messages) => put_batch(transaction, *number, messages, at),
        Write::Ours { batch, afresh } => take_over(transaction, *batch, *afresh),
        Write::Return(batches) => {
            let sql = "UPDATE batch SET returned_at = coalesce(returned_at, ?2) WHERE number = ?1";
            let mut mark = transaction.prepare_cached(sql)?;
            batches.iter().try_for_each(|batch| mark.execute(params![batch, at]).map(drop))
        }
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
        Write::Aside { sequence, why, is_answered } => aside::put(transaction, *sequence, why, *is_answered),
        Write::Acquit => aside::clear(transaction),
        Write::Pass(sequences) => aside::pass(transaction, sequences),
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
    messages: &[Encoded],
    at: i64,
) -> rusqlite::Result<()> {
    let last: u64 =
        transaction.prepare_cached("SELECT last_sequence FROM life")?.query_row([], |row| row.get(0))?;
    let mut insert = transaction.prepare_cached("INSERT INTO row VALUES (?1, ?2, ?3, ?4, ?5)")?;
    let (mut sequence, mut bytes) = (last, 0);
    for message in messages {
        sequence += 1;
        let size = message.bytes.len() as u64 + ROW;
        bytes += size;
        insert.execute(params![sequence, size, at, message.destination, &message.bytes[..]])?;
    }
    transaction
        .prepare_cached("INSERT INTO batch SELECT ?1, ?2, ?3, ?4, ?5, source, NULL FROM life")?
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
        for table in ["row", "aside"] {
            transaction
                .prepare_cached(&format!("DELETE FROM {table} WHERE sequence BETWEEN ?1 AND ?2"))?
                .execute([first, last])?;
        }
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
