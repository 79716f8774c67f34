//! The queues' messages on disk: one SQLite file, one transaction for all that [`Writes`] says,
//! synced before it returns (see [`crate::sqlite`]). Knows SQL; not who is given what.

mod room;
mod schema;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rusqlite::{
    Connection, ErrorCode, OptionalExtension as _, Row as SqlRow, Transaction, TransactionBehavior, params,
};

use super::core::{Kept, Known, MOST_PRODUCERS, Move, Page, Row, Writes};
use super::message::{
    AROUND, Cause, Destination, Id, Level, Marks, Message, Origin, PRIORITIES, PRIORITY_BITS, Placed,
};
use crate::sqlite::{self, SqliteError};
use room::Room;
use schema::MIGRATIONS;

/// What SQLite keeps of the file for its one connection, as SQLite counts: so many KiB. It writes at
/// one end and deletes at the other; what lies between is not read again.
const CACHE: i64 = -2_048;
/// Larger bodies are kept in pieces of this size, so that SQLite never holds one as a whole.
const PIECE: usize = 256 * 1024;
/// A start writes so much anew to give a file's room back, some seconds;
const AT_START: u64 = 64 << 20;
/// who asks for nothing loses nothing by so much;
pub(super) const IDLE: u64 = 8 << 20;
/// and nobody notices so much.
pub(super) const BUSY: u64 = 1 << 20;
/// Rows between two places.
const IN_ORDER: &str = "WHERE place >= ?1 AND place < ?2 ORDER BY place LIMIT ?3";
/// A life has this number.
const BEGIN: &str = "UPDATE life SET number = ?1";
/// Places that one life may give without writing any.
const LIFE_BITS: u32 = 24;

/// What can go wrong with the journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file itself.
    #[error(transparent)]
    File(#[from] SqliteError),
    /// A statement failed; disk full reads as such in SQLite's own words.
    #[error("{file}: {source}; nothing of this write was kept")]
    Sql {
        /// The file.
        file: PathBuf,
        /// SQLite's reason.
        #[source]
        source: rusqlite::Error,
    },
    /// New messages would take what must be left for consuming the others.
    #[error("{file}: its disk is all but full, {} MiB are left; nothing of this write was kept", left >> 20)]
    NoRoom {
        /// The file.
        file: PathBuf,
        /// Bytes that are left on its disk and in it.
        left: u64,
    },
    /// A message's row says more than there is.
    #[error("{file}: message {place} is damaged")]
    Damaged {
        /// The file.
        file: PathBuf,
        /// Its place.
        place: i64,
    },
}

/// The open journal; one thread has it.
#[derive(Debug)]
pub struct Journal {
    file: PathBuf,
    connection: Connection,
    room: Room,
    /// The number of this life, until the disk has it.
    unbegun: Option<u64>,
}

/// What a level becomes by a transaction.
#[derive(Debug, Default)]
struct Change {
    next: u64,
    messages: i64,
    bytes: i64,
}

impl Journal {
    /// Opens or creates the journal, and begins a life with it. On a disk that is full, what is there can be
    /// consumed.
    ///
    /// # Errors
    /// The file.
    pub fn open(file: &Path) -> Result<(Self, Kept), JournalError> {
        let mut journal = Self::of(file, sqlite::open(file, MIGRATIONS)?);
        // Whoever was here before may have left the log so long that there is no room for one more word.
        journal.relieve();
        let kept = journal.begin().map_err(|source| journal.sql(source))?;
        // What keeps it from that keeps it from nothing else.
        let _later = journal.shrink(AT_START).inspect_err(|error| tracing::info!("queues: {error}"));
        Ok((journal, kept))
    }

    fn of(file: &Path, connection: Connection) -> Self {
        Self { file: file.to_owned(), connection, room: Room::of(file), unbegun: None }
    }

    fn begin(&mut self) -> rusqlite::Result<Kept> {
        self.connection.pragma_update(None, "cache_size", CACHE)?;
        self.room.bound_log(&self.connection)?;
        let sql = "SELECT number + 1 FROM life";
        let life: u64 = self.connection.query_row(sql, [], |row| row.get(0))?;
        match self.connection.execute(BEGIN, [life]) {
            Ok(_) => {}
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DiskFull) => self.unbegun = Some(life),
            Err(error) => return Err(error),
        }
        let next: Option<u64> =
            self.connection.query_row("SELECT max(next) FROM level", [], |row| row.get(0))?;
        let levels = |row: &SqlRow<'_>| {
            let level = Level::from_number(row.get(0)?).ok_or(rusqlite::Error::InvalidQuery)?;
            Ok((level, row.get(1)?, row.get(2)?))
        };
        let queue = |row: &SqlRow<'_>| {
            let name: String = row.get(1)?;
            Ok((row.get(0)?, Destination::Queue(name.into())))
        };
        let producer = |row: &SqlRow<'_>| {
            let name: String = row.get(1)?;
            Ok(Known { slot: row.get(0)?, name: name.into(), upto: row.get(2)?, heard: row.get(3)? })
        };
        let sql = "SELECT level, messages, max(bytes, 0) FROM level WHERE messages > 0";
        let levels = self.connection.prepare(sql)?.query_map([], levels)?.collect::<Result<_, _>>()?;
        let sql = "SELECT number, name FROM queue";
        let queues = self.connection.prepare(sql)?.query_map([], queue)?.collect::<Result<_, _>>()?;
        let sql = "SELECT slot, name, upto, heard FROM producer WHERE slot < ?1";
        let most = [MOST_PRODUCERS];
        let producers = self.connection.prepare(sql)?.query_map(most, producer)?.collect::<Result<_, _>>()?;
        Ok(Kept { next: next.unwrap_or(0).max(life << LIFE_BITS), queues, levels, producers })
    }

    /// Does all that `writes` says, durably, in one transaction.
    ///
    /// # Errors
    /// [`JournalError::NoRoom`] for new messages, SQLite's own for anything; then nothing was kept.
    pub fn write(&mut self, writes: &Writes) -> Result<(), JournalError> {
        let new = writes.stores.iter().map(|placed| placed.message.size()).sum::<usize>();
        if !self.room.fits(new as u64) {
            return Err(JournalError::NoRoom { file: self.file.clone(), left: self.room.left() });
        }
        self.try_write(writes).map_err(|source| self.sql(source))?;
        if !writes.stores.is_empty() {
            self.look();
        }
        Ok(())
    }

    /// Is there so little room that nothing new may be sent here? As it was when something new was written last,
    /// or looked at.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.room.is_short()
    }

    /// Looks how much room there is: others use the disk too.
    pub fn look(&mut self) {
        self.room.look(&self.connection);
    }

    /// After a failed write: what the log holds beyond the file may be all that fills the disk.
    pub fn relieve(&mut self) {
        // A full disk may refuse this too; the log then keeps what it has.
        let _later = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        self.look();
    }

    /// Gives the room of an emptied file back to the disk: writes what it holds anew, if that is at most so many
    /// bytes and little beside what holds nothing. So no send pays for it: SQLite's own way to shrink
    /// (`auto_vacuum`) notes for every page whose it is. Tells how many bytes went.
    ///
    /// # Errors
    /// SQLite's own; then the file is as it was.
    pub fn shrink(&mut self, most: u64) -> Result<u64, JournalError> {
        let filled = Room::filled(&self.connection).map_err(|source| self.sql(source))?;
        if filled.1 == 0 {
            return Ok(0);
        }
        self.look();
        if !self.room.may_shrink(filled, most) {
            return Ok(0);
        }
        // Not beside the file, and not in a folder for such things, which may be full or none of ours.
        let anew = "PRAGMA temp_store = memory; VACUUM; PRAGMA temp_store = default";
        let done = self.connection.execute_batch(anew);
        // The file itself is cut where the log goes into it.
        self.relieve();
        done.map(|()| filled.1).map_err(|source| self.sql(source))
    }

    fn try_write(&mut self, writes: &Writes) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if let Some(life) = self.unbegun {
            transaction.execute(BEGIN, [life])?;
        }
        let mut changes = BTreeMap::new();
        for (number, queue) in &writes.queues {
            match queue {
                Some(queue) => transaction
                    .prepare_cached("INSERT OR REPLACE INTO queue VALUES (?1, ?2)")?
                    .execute(params![number, queue.name()])?,
                None => {
                    transaction.prepare_cached("DELETE FROM queue WHERE number = ?1")?.execute([number])?
                }
            };
        }
        for placed in &writes.stores {
            store(&transaction, placed)?;
            let change: &mut Change = changes.entry(placed.id.level()).or_default();
            change.next = change.next.max(placed.id.sequence() + 1);
            change.messages += 1;
            change.bytes += signed(placed.message.size());
        }
        for (id, size) in &writes.deletes {
            if delete(&transaction, *id, *size)? {
                changes.entry(id.level()).or_default().less(*size);
            }
        }
        for step in &writes.moves {
            if relocate(&transaction, step)? {
                changes.entry(step.from.level()).or_default().less(step.size);
                let change = changes.entry(step.to.level()).or_default();
                change.next = change.next.max(step.to.sequence() + 1);
                change.messages += 1;
                change.bytes += signed(step.becomes);
            }
        }
        for (level, change) in changes {
            transaction
                .prepare_cached(
                    "INSERT INTO level VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO UPDATE SET next = max(next, ?2),
                     messages = messages + ?3, bytes = bytes + ?4",
                )?
                .execute(params![level.number(), change.next, change.messages, change.bytes])?;
        }
        for known in &writes.producers {
            transaction
                .prepare_cached("INSERT OR REPLACE INTO producer VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![known.slot, known.name, column(known.upto), known.heard])?;
        }
        transaction.commit()?;
        self.unbegun = None;
        Ok(())
    }

    /// The messages of a level behind a number: at most so many, and so many bytes, or one. It ends
    /// in front of what the disk does not give, and passes over rows that are damaged.
    ///
    /// # Errors
    /// SQLite's own, if there is nothing in front of it.
    pub fn page(
        &self,
        level: Level,
        after: u64,
        messages: usize,
        bytes: usize,
    ) -> Result<Page, JournalError> {
        let from = level.place(after).next().max(level.places().0);
        self.range(from, level.places().1, messages, bytes)
    }

    /// The messages of a queue behind a place, as [`Journal::page`].
    ///
    /// # Errors
    /// As there.
    pub fn browse(&self, queue: u16, after: Id, messages: usize, bytes: usize) -> Result<Page, JournalError> {
        let (from, to) = Id::places_of(queue);
        self.range(after.next().max(from), to, messages, bytes)
    }

    fn range(&self, from: Id, to: Id, messages: usize, bytes: usize) -> Result<Page, JournalError> {
        let mut page = Page::default();
        match self.read_range((from, to), messages, bytes, &mut page) {
            Err(source) if page == Page::default() => Err(self.sql(source)),
            _ => Ok(page),
        }
    }

    fn read_range(
        &self,
        (from, to): (Id, Id),
        messages: usize,
        bytes: usize,
        page: &mut Page,
    ) -> rusqlite::Result<()> {
        let mut room = bytes;
        let mut statement = self.connection.prepare_cached(&format!("SELECT * FROM message {IN_ORDER}"))?;
        let mut rows = statement.query(params![from.number(), to.number(), messages])?;
        while let Some(row) = rows.next()? {
            let id = Id::from_number(row.get("place")?);
            let (size, _) = counts(row)?;
            if size > room && !page.placed.is_empty() {
                break;
            }
            match self.message(row)? {
                Some(placed) => page.placed.push(placed),
                None => page.damaged.push(id),
            }
            room = room.saturating_sub(size);
        }
        Ok(())
    }

    /// One message.
    ///
    /// # Errors
    /// SQLite's own, or a damaged or missing message.
    pub fn read(&self, id: Id) -> Result<Placed, JournalError> {
        let read = || -> rusqlite::Result<Option<Placed>> {
            let sql = "SELECT * FROM message WHERE place = ?1";
            let mut statement = self.connection.prepare_cached(sql)?;
            let mut rows = statement.query([id.number()])?;
            rows.next()?.map_or(Ok(None), |row| self.message(row))
        };
        let damaged = || JournalError::Damaged { file: self.file.clone(), place: id.number() };
        read().map_err(|source| self.sql(source))?.ok_or_else(damaged)
    }

    /// Rows whose time is over, by their expiration and place, from behind such a pair: at most so
    /// many.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn expired(&self, now: u64, after: (u64, Id), most: usize) -> Result<Vec<Row>, JournalError> {
        let sql = "WHERE expiration > 0 AND expiration <= ?1 AND (expiration, place) > (?2, ?3)
                   ORDER BY expiration, place LIMIT ?4";
        self.rows(sql, params![now, column(after.0), after.1.number(), most])
    }

    /// Rows of a queue behind a place, at most so many.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn rows_of(&self, queue: u16, after: Id, most: usize) -> Result<Vec<Row>, JournalError> {
        let (from, to) = Id::places_of(queue);
        self.rows(IN_ORDER, params![after.next().max(from).number(), to.number(), most])
    }

    /// Rows of a level behind a number, at most so many.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn scan(&self, level: Level, after: u64, most: usize) -> Result<Vec<Row>, JournalError> {
        let (from, to) = level.places();
        let from = level.place(after).next().max(from);
        self.rows(IN_ORDER, params![from.number(), to.number(), most])
    }

    /// Those of these rows that are there.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn rows_at(&self, ids: &[Id]) -> Result<Vec<Row>, JournalError> {
        let one = |id: &Id| self.rows("WHERE place = ?1", [id.number()]);
        let rows: Result<Vec<Vec<Row>>, _> = ids.iter().map(one).collect();
        Ok(rows?.into_iter().flatten().collect())
    }

    fn rows(&self, which: &str, values: impl rusqlite::Params) -> Result<Vec<Row>, JournalError> {
        let sql = format!(
            "SELECT place, size, at, expiration, name, message_group, closes_group, path, origin, cause, why
             FROM message {which}"
        );
        let row = |row: &SqlRow<'_>| {
            let id = Id::from_number(row.get(0)?);
            // A damaged row can be removed still.
            let (size, epitaph) = counts(row)?;
            let (at, expiration) = (row.get(2).unwrap_or_default(), row.get(3).unwrap_or_default());
            let origin: Option<String> = row.get("origin").unwrap_or_default();
            let (marks, origin) = (marks(row).unwrap_or_default(), origin.map(Into::into));
            Ok(Row { id, size, epitaph, at, expiration, marks, origin })
        };
        let read = || -> rusqlite::Result<Vec<Row>> {
            self.connection.prepare_cached(&sql)?.query_map(values, row)?.collect()
        };
        read().map_err(|source| self.sql(source))
    }

    /// When the message of a queue that has waited longest came, in ms since 1970: the first one of
    /// a priority, whichever is oldest.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn oldest(&self, queue: u16) -> Result<Option<u64>, JournalError> {
        let first = |priority| -> rusqlite::Result<Option<u64>> {
            let (from, to) = Level::new(queue, priority).places();
            let sql = "SELECT at FROM message WHERE place >= ?1 AND place < ?2 ORDER BY place LIMIT 1";
            let values = params![from.number(), to.number()];
            self.connection.prepare_cached(sql)?.query_row(values, |row| row.get(0)).optional()
        };
        let all: Result<Vec<_>, _> = (0..PRIORITIES).map(first).collect();
        Ok(all.map_err(|source| self.sql(source))?.into_iter().flatten().min())
    }

    /// `None` is a damaged one.
    fn message(&self, row: &SqlRow<'_>) -> rusqlite::Result<Option<Placed>> {
        match self.try_message(row) {
            Ok(placed) => Ok(placed),
            // The row is there, and not what was written.
            Err(
                rusqlite::Error::FromSqlConversionFailure(..)
                | rusqlite::Error::IntegralValueOutOfRange(..)
                | rusqlite::Error::InvalidColumnType(..)
                | rusqlite::Error::Utf8Error(..),
            ) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn try_message(&self, row: &SqlRow<'_>) -> rusqlite::Result<Option<Placed>> {
        let place: i64 = row.get("place")?;
        let size: usize = row.get("size")?;
        let body = match row.get_ref("body")?.as_blob_or_null()? {
            Some(body) => Bytes::copy_from_slice(body),
            None => self.pieces(place, size)?,
        };
        if body.len() != size {
            return Ok(None);
        }
        let origin: Option<String> = row.get("origin")?;
        let cause: Option<String> = row.get("cause")?;
        let why: Option<String> = row.get("why")?;
        let cause = cause.and_then(|cause| Cause::from_words(&cause, why.as_deref()));
        let name: String = row.get("name")?;
        let message = Message {
            name: name.into(),
            at: row.get("at")?,
            expiration: row.get("expiration")?,
            marks: marks(row)?,
            origin: origin.zip(cause).map(|(queue, cause)| Origin { queue, cause }),
            body,
        };
        Ok(Some(Placed { id: Id::from_number(place), persistent: true, message: Arc::new(message) }))
    }

    fn pieces(&self, place: i64, size: usize) -> rusqlite::Result<Bytes> {
        // A damaged row may say anything.
        let mut body = BytesMut::with_capacity(size.min(64 << 20));
        let sql = "SELECT body FROM piece WHERE place = ?1 ORDER BY piece";
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut rows = statement.query([place])?;
        while let Some(row) = rows.next()? {
            body.extend_from_slice(row.get_ref(0)?.as_blob()?);
        }
        Ok(body.freeze())
    }

    fn left(&self) -> rusqlite::Result<Vec<(String, u64)>> {
        let sql = "SELECT name, messages FROM level JOIN queue ON number = level >> ?1 WHERE messages > 0";
        let mut statement = self.connection.prepare(sql)?;
        let mut left = BTreeMap::new();
        let rows = statement.query_map([PRIORITY_BITS], |row| Ok((row.get(0)?, row.get(1)?)))?;
        for row in rows {
            let (name, messages): (String, u64) = row?;
            *left.entry(name).or_default() += messages;
        }
        Ok(left.into_iter().collect())
    }

    fn sql(&self, source: rusqlite::Error) -> JournalError {
        JournalError::Sql { file: self.file.clone(), source }
    }
}

/// Queues of a file that hold something, with how many messages, by name. Changes nothing, and makes no
/// file.
///
/// # Errors
/// SQLite's own.
pub(super) fn left(file: &Path) -> Result<Vec<(String, u64)>, JournalError> {
    if !file.exists() {
        return Ok(Vec::new());
    }
    let journal = Journal::of(file, sqlite::open_to_read(file)?);
    journal.left().map_err(|source| journal.sql(source))
}

impl Change {
    fn less(&mut self, size: usize) {
        self.messages -= 1;
        self.bytes -= signed(size);
    }
}

fn signed(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

/// Clients say what they like, and SQLite's numbers are signed.
fn column(said: u64) -> i64 {
    i64::try_from(said).unwrap_or(i64::MAX)
}

fn store(transaction: &Transaction<'_>, Placed { id, message, .. }: &Placed) -> rusqlite::Result<()> {
    let whole = message.body.len() <= PIECE;
    let (origin, marks) = (message.origin.as_ref(), message.marks.as_ref());
    transaction
        .prepare_cached("INSERT INTO message VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)")?
        .execute(params![
            id.number(),
            column(message.at),
            column(message.expiration),
            message.body.len(),
            message.name,
            marks.and_then(|marks| marks.group.as_deref()),
            marks.is_some_and(|marks| marks.closes),
            marks.and_then(|marks| marks.path_text()),
            origin.map(|origin| &origin.queue),
            origin.map(|origin| origin.cause.word()),
            origin.and_then(|origin| origin.cause.why()),
            whole.then_some(&message.body[..])
        ])?;
    if !whole {
        let mut insert = transaction.prepare_cached("INSERT INTO piece VALUES (?1, ?2, ?3)")?;
        for (number, piece) in message.body.chunks(PIECE).enumerate() {
            insert.execute(params![id.number(), number, piece])?;
        }
    }
    Ok(())
}

fn marks(row: &SqlRow<'_>) -> rusqlite::Result<Option<Arc<Marks>>> {
    let group: Option<String> = row.get("message_group")?;
    let path: Option<String> = row.get("path")?;
    if group.is_none() && path.is_none() {
        return Ok(None);
    }
    // Without a path that can be read it is nobody's that has come back.
    let path = path.and_then(|path| serde_json::from_str(&path).ok()).unwrap_or_default();
    Ok(Some(Arc::new(Marks { group: group.map(Into::into), closes: row.get("closes_group")?, path })))
}

/// What a row's message counts (see [`Message::size`]), and how much of it is for how it died. It is read without
/// its body; of a damaged row what can be read counts.
fn counts(row: &SqlRow<'_>) -> rusqlite::Result<(usize, usize)> {
    let length = |name: &&str| {
        row.get_ref(*name).map(|text| text.as_bytes_or_null().ok().flatten().map_or(0, <[u8]>::len))
    };
    let sum = |names: &[&str]| names.iter().map(length).sum::<rusqlite::Result<usize>>();
    let (beside, epitaph) = (sum(&["name", "message_group", "path"])?, sum(&["origin", "cause", "why"])?);
    let body: usize = row.get("size").unwrap_or_default();
    Ok((body.saturating_add(beside + epitaph + AROUND), epitaph))
}

/// Was it there?
fn delete(transaction: &Transaction<'_>, id: Id, size: usize) -> rusqlite::Result<bool> {
    if size > PIECE {
        transaction.prepare_cached("DELETE FROM piece WHERE place = ?1")?.execute([id.number()])?;
    }
    let gone = transaction.prepare_cached("DELETE FROM message WHERE place = ?1")?.execute([id.number()])?;
    Ok(gone > 0)
}

/// Was it there?
fn relocate(transaction: &Transaction<'_>, step: &Move) -> rusqlite::Result<bool> {
    let (from, to) = (step.from.number(), step.to.number());
    let origin = step.origin.as_ref();
    let sql =
        "UPDATE message SET place = ?2, expiration = ?3, origin = ?4, cause = ?5, why = ?6 WHERE place = ?1";
    let moved = transaction.prepare_cached(sql)?.execute(params![
        from,
        to,
        column(step.expiration),
        origin.map(|origin| &origin.queue),
        origin.map(|origin| origin.cause.word()),
        origin.and_then(|origin| origin.cause.why())
    ])?;
    if step.size > PIECE {
        transaction.prepare_cached("UPDATE piece SET place = ?2 WHERE place = ?1")?.execute([from, to])?;
    }
    Ok(moved > 0)
}

#[cfg(test)]
mod tests;
