//! This vault's own record of the ledger: a SQLite file with the chain of entries, the rows that
//! this vault gave alone, what both leave behind, and what this side remembers of the other.
//! Knows SQL; not the pair, and not who may write what.
//!
//! One transaction per write, synced before it returns (see [`crate::sqlite`]). The entries are
//! the truth; the tables `number`, `series` and `life` are derived from them in the same
//! transaction.

mod cut;
mod derived;
mod dropped;
mod keys;
mod line;
mod records;
mod schema;
mod survey;
mod tokens;

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, InterruptHandle, OptionalExtension as _, Row, Transaction, params};
use serde::de::DeserializeOwned;
use shared::api::{Number, NumberState};

use super::book::{Context, Known, SeriesName, Wish, given_up_for};
use super::digest::Digest;
use super::entry::{Act, BATCH, Entry, Life, Tail};
use super::protocol::{Memory, Nonce, Write};
use super::record::desk::ROUND_BYTES;
use super::standing::Standing;
use crate::sqlite::{self, SqliteError};

pub use dropped::Dropped;
pub use records::Leaf;
pub use survey::{AllLeft, Left, Open, Which};

use cut::cut_off;
use derived::{
    apply, forget_carried, is_plain, last_number, life_state, put_lives, put_series, reserve, stands,
};
use keys::{Absent, Change, Keys};
use schema::MIGRATIONS;

/// Pages that SQLite keeps for the writer, as SQLite counts: so many KiB.
const CACHE: i64 = -32_768;
/// Pages in SQLite's log before they go into the file itself, 16 MiB: what is written again and
/// again, as the ends of tables are, goes there once.
const LOG: i64 = 4096;
/// Series whose highest number is kept at hand.
const SERIES: usize = 4096;

/// So many entries are looked through at a time.
const LOOKED_THROUGH: u64 = if cfg!(test) { 100 } else { 10_000 };

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
    /// What is derived of the entries cannot be read.
    #[error("{file}: series {series} of {owner} is damaged; stop this vault and restore its state folder")]
    Series {
        /// The file.
        file: PathBuf,
        /// Whose series.
        owner: String,
        /// Which one.
        series: String,
    },
    /// The entries to be cut off do not follow what should stay.
    #[error("{file}: what the other vault would keep of this journal does not stand in it")]
    Cut {
        /// The file.
        file: PathBuf,
    },
    /// The last entry does not hash to what it says.
    #[error("{file}: entry {index} is damaged; stop this vault and restore its state folder")]
    Damaged {
        /// The file.
        file: PathBuf,
        /// Which entry.
        index: u64,
    },
}

impl JournalError {
    /// Does what was to be written contradict what stands there? It will not fit later either.
    #[must_use]
    pub fn contradicts(&self) -> bool {
        match self {
            Self::Cut { .. } => true,
            Self::Sql { source, .. } => source.sqlite_error_code() == Some(ErrorCode::ConstraintViolation),
            Self::File(_) | Self::Series { .. } | Self::Damaged { .. } => false,
        }
    }
}

/// See [`Journal::at_once`].
#[derive(Debug)]
pub struct AtOnce<'a>(#[expect(dead_code, reason = "held, not used")] Transaction<'a>);

/// The open journal; one thread writes.
#[derive(Debug)]
pub struct Journal {
    file: PathBuf,
    connection: Connection,
    /// Derived from the entries; as durable as they are.
    standing: Standing,
    /// Do any rows given alone wait to be carried over?
    has_rows: bool,
    /// Rows that stand in the chain up to this entry are not kept any more.
    forgotten: u64,
    keys: Keys,
    /// The writer's alone: beside others nobody knows when it was last written.
    absent: Option<RefCell<Absent>>,
    /// Highest numbers; the writer's alone.
    last: RefCell<HashMap<SeriesName, u64>>,
    /// The life that uses this journal, until the disk has it.
    unbegun: Option<Life>,
}

impl Journal {
    /// Opens or creates the journal. `fresh` becomes its identity if it is new.
    ///
    /// # Errors
    /// The file, or a damaged last entry.
    pub fn open(file: &Path, fresh: Nonce) -> Result<Self, JournalError> {
        let mut journal = Self::prepared(file, sqlite::open(file, MIGRATIONS)?);
        for (pragma, pages) in [("cache_size", CACHE), ("wal_autocheckpoint", LOG)] {
            let set = journal.connection.pragma_update(None, pragma, pages);
            set.map_err(|source| journal.sql(source))?;
        }
        journal
            .connection
            .execute(
                "INSERT INTO memory VALUES (1, ?1, 1, 0, 0, 1, 0, ?2, NULL, 0, 0, NULL, 0, 0) ON CONFLICT DO NOTHING",
                params![fresh.to_be_bytes(), Digest::default().0],
            )
            .map_err(|source| journal.sql(source))?;
        for last in [journal.last("entry")?, journal.last("solo")?].into_iter().flatten() {
            let before = Tail { index: last.index - 1, hash: last.previous };
            if !last.follows(before) {
                return Err(JournalError::Damaged { file: file.to_owned(), index: last.index });
            }
        }
        journal.standing = journal.restored()?;
        journal.absent = Some(RefCell::default());
        journal.has_rows = journal.last("solo")?.is_some();
        journal.keys = Keys::read(&journal.connection).map_err(|source| journal.sql(source))?;
        Ok(journal)
    }

    /// Opens a journal that [`Journal::open`] has prepared, for reading only, while nobody writes
    /// it. It has no [`Journal::standing`].
    ///
    /// # Errors
    /// The file.
    pub fn open_to_read(file: &Path) -> Result<Self, JournalError> {
        let mut journal = Self::prepared(file, sqlite::open_to_read(file)?);
        journal.keys = Keys::read(&journal.connection).map_err(|source| journal.sql(source))?;
        Ok(Self { has_rows: true, ..journal })
    }

    /// As [`Journal::open_to_read`], beside this one which is written.
    ///
    /// # Errors
    /// The file.
    pub fn reader(&self) -> Result<Self, JournalError> {
        let reader = Self::prepared(&self.file, sqlite::open_to_read(&self.file)?);
        Ok(Self { has_rows: true, keys: self.keys.clone(), ..reader })
    }

    /// Ends what a reader is just about, from another thread.
    #[must_use]
    pub fn interrupt(&self) -> InterruptHandle {
        self.connection.get_interrupt_handle()
    }

    /// A walk that has no end of its own.
    #[cfg(test)]
    pub(super) fn walk_for_ever(&self) -> Result<u64, JournalError> {
        let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
        self.connection.query_row(sql, [], |row| row.get(0)).map_err(|source| self.sql(source))
    }

    fn prepared(file: &Path, connection: Connection) -> Self {
        Self {
            file: file.to_owned(),
            connection,
            standing: Standing::default(),
            has_rows: false,
            forgotten: 0,
            keys: Keys::default(),
            absent: None,
            last: RefCell::default(),
            unbegun: None,
        }
    }

    /// What this side remembers.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn memory(&self) -> Result<Memory, JournalError> {
        let sql = "SELECT journal, epoch, owns, alone, whole, solo, solo_hash, peer_journal, peer_durable, settled FROM memory";
        let memory = |row: &Row<'_>| {
            let peer: Option<[u8; 16]> = row.get(7)?;
            Ok(Memory {
                journal: Nonce::from_be_bytes(row.get(0)?),
                epoch: row.get(1)?,
                owns: row.get(2)?,
                alone: row.get(3)?,
                whole: row.get(4)?,
                solo: Tail { index: row.get(5)?, hash: Digest(row.get(6)?) },
                peer_journal: peer.map(Nonce::from_be_bytes),
                peer_durable: row.get(8)?,
                settled: row.get(9)?,
            })
        };
        self.connection.query_row(sql, [], memory).map_err(|source| self.sql(source))
    }

    /// Lives and ranges, as the entries leave them.
    #[must_use]
    pub fn standing(&self) -> &Standing {
        &self.standing
    }

    /// The life that used this journal last.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn used_by(&self) -> Result<Option<Life>, JournalError> {
        let used_by: rusqlite::Result<Option<[u8; 16]>> =
            self.connection.query_row("SELECT used_by FROM memory", [], |row| row.get(0));
        Ok(used_by.map_err(|source| self.sql(source))?.map(Life::from_be_bytes))
    }

    /// Is there a row that was given alone in that life?
    ///
    /// # Errors
    /// SQLite's own.
    pub fn gave_in(&self, life: Life) -> Result<bool, JournalError> {
        let sql = "SELECT EXISTS (SELECT 1 FROM solo WHERE life = ?1)";
        let gave = self.connection.query_row(sql, params![life.to_be_bytes()], |row| row.get(0));
        gave.map_err(|source| self.sql(source))
    }

    /// Writes down, durably, in which life this journal is used from now on. On a disk that is full the first
    /// write that succeeds does it, in its own transaction: nothing of a life stands here before the life does.
    /// Tells why it is not done yet, if so.
    ///
    /// # Errors
    /// SQLite's own, but for the full disk.
    pub fn begin(&mut self, life: Life) -> Result<Option<JournalError>, JournalError> {
        self.unbegun = Some(life);
        match use_in(&self.connection, life) {
            Ok(()) => self.unbegun = None,
            Err(full) if full.sqlite_error_code() == Some(ErrorCode::DiskFull) => {
                return Ok(Some(self.sql(full)));
            }
            Err(source) => return Err(self.sql(source)),
        }
        Ok(None)
    }

    /// Does the disk know the life that uses this journal?
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.unbegun.is_none()
    }

    /// Where the chain ends.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn tail(&self) -> Result<Tail, JournalError> {
        Ok(self.last("entry")?.map_or_else(Tail::default, |entry| entry.tail()))
    }

    /// Does all that a [`Write`] says, durably, in one transaction.
    ///
    /// # Errors
    /// [`JournalError::Cut`], or SQLite's own; then nothing was kept.
    pub fn write(&mut self, write: &Write) -> Result<(), JournalError> {
        let file = self.file.clone();
        let (before, mut uncut) = (self.standing.before(&write.entries), None);
        match self.try_write(write, &mut uncut) {
            Ok(true) => Ok(()),
            Ok(false) => Err(JournalError::Cut { file }),
            Err(source) => {
                // A disk that cannot be written is not asked what it holds.
                self.last.get_mut().clear();
                match uncut {
                    Some(standing) => self.standing = standing,
                    None => self.standing.take_back(before),
                }
                Err(JournalError::Sql { file, source })
            }
        }
    }

    /// `uncut` becomes what stood before a cut, if that changes it.
    fn try_write(&mut self, write: &Write, uncut: &mut Option<Standing>) -> rusqlite::Result<bool> {
        let Write { cut, entries, rows, memory } = write;
        let transaction = self.connection.transaction()?;
        if let Some(life) = self.unbegun {
            use_in(&transaction, life)?;
        }
        let (keys, mut change) =
            (&self.keys, Change::after(self.absent.as_ref().map(RefCell::take).unwrap_or_default()));
        let mut touched = HashSet::new();
        if let Some(cut) = cut {
            if !stands(&transaction, *cut)? {
                return Ok(false);
            }
            let left = cut_off(&transaction, cut.index, keys, &mut change, &self.standing)?;
            self.last.get_mut().clear();
            if let Some((left, names)) = left {
                *uncut = Some(std::mem::replace(&mut self.standing, left));
                touched.extend(names);
            }
        }
        line::append(&transaction, entries)?;
        for run in entries.chunk_by(|one, next| is_plain(one) && is_plain(next)) {
            match run {
                [entry] if !is_plain(entry) => apply(&transaction, entry, keys, &mut change)?,
                _ => reserve(&transaction, run, keys, &mut change)?,
            }
            for entry in run {
                records::apply(&transaction, entry)?;
                let last =
                    || last_number(&transaction, &entry.owner, &entry.series).unwrap_or(i64::MAX as u64);
                touched.extend(self.standing.apply(entry, last));
                if let Act::Life(_) | Act::Seal(_) = entry.act {
                    put_lives(&transaction, &self.standing)?;
                } else if entry.carried > 0 {
                    let sql = "UPDATE life SET carried = ?2 WHERE life = ?1";
                    let carried = params![entry.life.to_be_bytes(), entry.carried];
                    transaction.prepare_cached(sql)?.execute(carried)?;
                }
            }
        }
        for name in touched {
            put_series(&transaction, &self.standing, &name)?;
        }
        line::append_alone(&transaction, rows)?;
        remember(&transaction, memory)?;
        if memory.alone {
            dropped::note_alone(&transaction)?;
        }
        let mut has_rows = self.has_rows || !rows.is_empty();
        if has_rows && memory.settled > self.forgotten {
            has_rows = forget_carried(&transaction, memory.settled)?;
        }
        keys.sweep(&transaction, &mut change)?;
        transaction.commit()?;
        self.unbegun = None;
        self.has_rows = has_rows;
        self.forgotten = memory.settled;
        keys.changed(change, entries.last().map(Entry::tail).or(*cut).map(|tail| tail.index));
        for same in entries.chunk_by(|one, next| one.owner == next.owner && one.series == next.series) {
            let gives = |entry: &&Entry| matches!(entry.act, Act::Reserve(_) | Act::Spoil(_));
            let (Some(entry), Some(most)) =
                (same.first(), same.iter().filter(gives).map(|entry| entry.number).max())
            else {
                continue;
            };
            // Only what is there already: a series that nobody asked for is read when asked for.
            let name = SeriesName { owner: entry.owner.clone(), series: entry.series.clone() };
            if let Some(last) = self.last.get_mut().get_mut(&name) {
                *last = most.max(*last);
            }
        }
        Ok(true)
    }

    /// Up to [`BATCH`] entries after `after`, in order; fewer where their texts are long, so that a
    /// message of them stays short.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn entries(&self, after: u64) -> Result<Vec<Entry>, JournalError> {
        self.after("SELECT * FROM entry WHERE idx > ?1 ORDER BY idx LIMIT ?2", after)
    }

    /// Up to [`BATCH`] of the rows given alone after `after`, in order.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn rows(&self, after: u64) -> Result<Vec<Entry>, JournalError> {
        self.after("SELECT * FROM solo WHERE idx > ?1 ORDER BY idx LIMIT ?2", after)
    }

    /// Those of the next [`LOOKED_THROUGH`] entries after `after` that can raise or settle a doubt,
    /// and up to where they were looked through.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn doubtable(&self, after: u64) -> Result<(Vec<Entry>, u64), JournalError> {
        let sql = "SELECT * FROM entry WHERE idx > ?1 AND idx <= ?2 AND act IN ('reserve', 'close', 'lost',
             'displace', 'doubt', 'confirm', 'void', 'supersede') ORDER BY idx";
        let upto = after.saturating_add(LOOKED_THROUGH);
        let read = || -> rusqlite::Result<Vec<Entry>> {
            self.connection.prepare_cached(sql)?.query_map([after, upto], entry)?.collect()
        };
        Ok((read().map_err(|source| self.sql(source))?, upto))
    }

    fn after(&self, sql: &str, after: u64) -> Result<Vec<Entry>, JournalError> {
        let read = || -> rusqlite::Result<Vec<Entry>> {
            let (mut entries, mut bytes) = (Vec::new(), 0);
            for entry in self.connection.prepare_cached(sql)?.query_map(params![after, BATCH], entry)? {
                let entry = entry?;
                if let Act::Put(text) = &entry.act {
                    bytes += text.len();
                }
                entries.push(entry);
                if bytes >= ROUND_BYTES {
                    break;
                }
            }
            Ok(entries)
        };
        read().map_err(|source| self.sql(source))
    }

    /// All that is read until this is dropped is read at once: each look by itself would lock the
    /// file anew, which takes longer than the look.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn at_once(&self) -> Result<AtOnce<'_>, JournalError> {
        self.connection.unchecked_transaction().map(AtOnce).map_err(|source| self.sql(source))
    }

    /// What the chain says that matters to a wish.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn context(&self, name: &SeriesName, wish: &Wish) -> Result<Context, JournalError> {
        let known = match wish {
            Wish::Reserve { key, .. } | Wish::Supersede { key, .. } => self.by_key(name, key)?,
            Wish::Confirm { number, .. } | Wish::Void { number, .. } => self.by_number(name, *number)?,
            Wish::Define(_) => {
                let last = u64::from(self.has_numbers(name)?);
                return Ok(Context { known: None, last });
            }
        };
        Ok(Context { known, last: self.last_number(name)? })
    }

    /// The series' highest number; 0 if it has none.
    fn last_number(&self, name: &SeriesName) -> Result<u64, JournalError> {
        if let Some(last) = self.last.borrow().get(name) {
            return Ok(*last);
        }
        let last = last_number(&self.connection, &name.owner, &name.series);
        let last = last.map_err(|source| self.sql(source))?;
        let mut kept = self.last.borrow_mut();
        if kept.len() >= SERIES {
            kept.clear();
        }
        kept.insert(name.clone(), last);
        Ok(last)
    }

    /// What the rows given alone say of the number that a wish is about.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn own(&self, name: &SeriesName, wish: &Wish) -> Result<Option<Known>, JournalError> {
        match wish {
            Wish::Reserve { key, .. } | Wish::Supersede { key, .. } => self.own_by_key(name, key),
            Wish::Confirm { number, .. } | Wish::Void { number, .. } => self.own_by_number(name, *number),
            Wish::Define(_) => Ok(None),
        }
    }

    /// The number that this vault alone gave to a key, not yet in the chain for good. Its index is
    /// that of the last row about it.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn own_by_key(&self, name: &SeriesName, key: &str) -> Result<Option<Known>, JournalError> {
        self.own_rows("key = ?3", params![name.owner, name.series, key])
    }

    /// What became of a number that this vault gave alone; see [`Journal::own_by_key`].
    ///
    /// # Errors
    /// SQLite's own.
    pub fn own_by_number(&self, name: &SeriesName, number: u64) -> Result<Option<Known>, JournalError> {
        self.own_rows("number = ?3", params![name.owner, name.series, number])
    }

    fn own_rows(&self, clause: &str, values: impl rusqlite::Params) -> Result<Option<Known>, JournalError> {
        if !self.has_rows {
            return Ok(None);
        }
        let sql = format!("SELECT * FROM solo WHERE owner = ?1 AND series = ?2 AND {clause} ORDER BY idx");
        let read = || -> rusqlite::Result<Vec<Entry>> {
            self.connection.prepare_cached(&sql)?.query_map(values, entry)?.collect()
        };
        Ok(read()
            .map_err(|source| self.sql(source))?
            .into_iter()
            .fold(None, |number, row| left_by(number, &row)))
    }

    /// The number that a key got.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn by_key(&self, name: &SeriesName, key: &str) -> Result<Option<Known>, JournalError> {
        let mut absent = self.absent.as_ref().map(RefCell::borrow_mut);
        let found = self.keys.find(&self.connection, absent.as_deref_mut(), name, key);
        match found.map_err(|source| self.sql(source))? {
            Some(index) => self.one(
                "SELECT number.* FROM entry JOIN number USING (owner, series)
                 WHERE entry.idx = ?1 AND number.number = iif(entry.number = 0, -entry.idx, entry.number)",
                params![index],
            ),
            None => Ok(None),
        }
    }

    /// What became of a number.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn by_number(&self, name: &SeriesName, number: u64) -> Result<Option<Known>, JournalError> {
        self.one(
            "SELECT * FROM number WHERE owner = ?1 AND series = ?2 AND number = ?3",
            params![name.owner, name.series, number],
        )
    }

    fn last(&self, table: &str) -> Result<Option<Entry>, JournalError> {
        self.connection
            .query_row(&format!("SELECT * FROM {table} ORDER BY idx DESC LIMIT 1"), [], entry)
            .optional()
            .map_err(|source| self.sql(source))
    }

    fn one(&self, sql: &str, values: impl rusqlite::Params) -> Result<Option<Known>, JournalError> {
        self.connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.query_row(values, known).optional())
            .map_err(|source| self.sql(source))
    }

    /// What [`Journal::write`] has derived of the entries.
    fn restored(&self) -> Result<Standing, JournalError> {
        let lives = || -> rusqlite::Result<Vec<_>> {
            let life = |row: &Row<'_>| {
                let state = life_state(&row.get::<_, String>(2)?).ok_or(rusqlite::Error::InvalidQuery)?;
                Ok((Life::from_be_bytes(row.get(0)?), state, row.get(1)?, row.get(3)?))
            };
            self.connection.prepare("SELECT * FROM life")?.query_map([], life)?.collect()
        };
        let lives = lives().map_err(|source| self.sql(source))?;
        Ok(Standing::restored(self.texts("definition")?, self.texts("series")?, lives))
    }

    /// What a table holds as JSON of each series.
    fn texts<T: DeserializeOwned>(&self, table: &str) -> Result<Vec<(SeriesName, T)>, JournalError> {
        let name = |row: &Row<'_>| {
            Ok((SeriesName { owner: row.get(0)?, series: row.get(1)? }, row.get::<_, String>(2)?))
        };
        let read = || -> rusqlite::Result<Vec<(SeriesName, String)>> {
            self.connection.prepare(&format!("SELECT * FROM {table}"))?.query_map([], name)?.collect()
        };
        let whole = |(name, text): (SeriesName, String)| match serde_json::from_str(&text) {
            Ok(value) => Ok((name, value)),
            Err(_) => {
                let SeriesName { owner, series } = name;
                Err(JournalError::Series { file: self.file.clone(), owner, series })
            }
        };
        read().map_err(|source| self.sql(source))?.into_iter().map(whole).collect()
    }

    fn sql(&self, source: rusqlite::Error) -> JournalError {
        JournalError::Sql { file: self.file.clone(), source }
    }
}

/// From now on the journal is used in that life.
fn use_in(connection: &Connection, life: Life) -> rusqlite::Result<()> {
    connection.execute("UPDATE memory SET used_by = ?1", params![life.to_be_bytes()]).map(drop)
}

fn remember(transaction: &Transaction<'_>, memory: &Memory) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "UPDATE memory SET journal = ?1, epoch = ?2, owns = ?3, alone = ?4, whole = ?5, solo = ?6,
             solo_hash = ?7, peer_journal = ?8, peer_durable = ?9, settled = ?10",
        )?
        .execute(params![
            memory.journal.to_be_bytes(),
            memory.epoch,
            memory.owns,
            memory.alone,
            memory.whole,
            memory.solo.index,
            memory.solo.hash.0,
            memory.peer_journal.map(Nonce::to_be_bytes),
            memory.peer_durable,
            memory.settled
        ])?;
    Ok(())
}

/// The number as the row leaves it.
fn left_by(number: Option<Known>, row: &Entry) -> Option<Known> {
    let fresh = || Number::reserved(row.series.clone(), row.number, row.key.clone(), String::new());
    let mut number = number.map_or_else(fresh, |known| known.number);
    match &row.act {
        Act::Confirm(hash) => {
            number.state = NumberState::Confirmed;
            number.document_hash = Some(hash.clone());
        }
        Act::Void(reason) => {
            number.state = NumberState::Void;
            number.reason = Some(reason.clone());
        }
        Act::Supersede(by) => {
            number.state = NumberState::Void;
            number.reason = Some(given_up_for(by));
        }
        _ => {}
    }
    number.entry_hash = row.hash.to_string();
    Some(Known { number, index: row.index })
}

fn entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    let act: String = row.get("act")?;
    let unknown = || {
        let why = format!("{act:?} with this text is no act of this version");
        rusqlite::Error::FromSqlConversionFailure(8, rusqlite::types::Type::Text, why.into())
    };
    let act = Act::from_parts(&act, row.get("text")?).ok_or_else(unknown)?;
    Ok(Entry {
        index: row.get("idx")?,
        epoch: row.get("epoch")?,
        life: Life::from_be_bytes(row.get("life")?),
        carried: row.get("carried")?,
        owner: row.get("owner")?,
        series: row.get("series")?,
        number: row.get("number")?,
        key: row.get("key")?,
        act,
        at: row.get("at")?,
        previous: Digest(row.get("previous")?),
        hash: Digest(row.get("hash")?),
    })
}

fn known(row: &Row<'_>) -> rusqlite::Result<Known> {
    let state: String = row.get("state")?;
    let state = match state.as_str() {
        "reserved" => NumberState::Reserved,
        "confirmed" => NumberState::Confirmed,
        "void" => NumberState::Void,
        "doubtful" => NumberState::Doubtful,
        _ => return Err(rusqlite::Error::InvalidQuery),
    };
    Ok(Known {
        number: Number {
            state,
            document_hash: row.get("document_hash")?,
            reason: row.get("reason")?,
            ..Number::reserved(
                row.get("series")?,
                // A key that was given up stands below all numbers.
                row.get::<_, i64>("number")?.try_into().unwrap_or(0),
                row.get("key")?,
                Digest(row.get("hash")?).to_string(),
            )
        },
        index: row.get("idx")?,
    })
}

#[cfg(test)]
mod tests;
