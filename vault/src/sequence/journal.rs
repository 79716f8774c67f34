//! This vault's own record of the ledger: a SQLite file with the chain of entries, the rows that
//! this vault gave alone, what both leave behind, and what this side remembers of the other.
//! Knows SQL; not the pair, and not who may write what.
//!
//! One transaction per write, synced before it returns (see [`crate::sqlite`]). The entries are
//! the truth; the tables `number`, `series` and `life` are derived from them in the same
//! transaction.

mod derived;
mod keys;
mod records;
mod schema;
mod survey;

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension as _, Row, Statement, Transaction, params};
use serde::de::DeserializeOwned;
use shared::api::{Number, NumberState};

use super::book::{Context, Known, SeriesName, Wish, given_up_for};
use super::digest::Digest;
use super::entry::{Act, BATCH, Entry, Life, Tail};
use super::protocol::{Memory, Nonce, Write};
use super::record::desk::ROUND_BYTES;
use super::standing::Standing;
use crate::sqlite::{self, SqliteError};

pub use records::Leaf;
pub use survey::Which;

use derived::{apply, cut_off, forget_carried, last_number, life_state, put_lives, put_series, stands};
use keys::{Change, Keys};
use schema::MIGRATIONS;

/// Pages that SQLite keeps for the writer, as SQLite counts: so many KiB.
const CACHE: i64 = -32_768;
/// Series whose highest number is kept at hand.
const SERIES: usize = 4096;

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
    /// Highest numbers; the writer's alone.
    last: RefCell<HashMap<SeriesName, u64>>,
}

impl Journal {
    /// Opens or creates the journal. `fresh` becomes its identity if it is new.
    ///
    /// # Errors
    /// The file, or a damaged last entry.
    pub fn open(file: &Path, fresh: Nonce) -> Result<Self, JournalError> {
        let mut journal = Self::prepared(file, sqlite::open(file, MIGRATIONS)?);
        journal.connection.pragma_update(None, "cache_size", CACHE).map_err(|source| journal.sql(source))?;
        journal
            .connection
            .execute(
                "INSERT INTO memory VALUES (1, ?1, 1, 0, 0, 1, 0, ?2, NULL, 0, 0, NULL, 0) ON CONFLICT DO NOTHING",
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

    fn prepared(file: &Path, connection: Connection) -> Self {
        Self {
            file: file.to_owned(),
            connection,
            standing: Standing::default(),
            has_rows: false,
            forgotten: 0,
            keys: Keys::default(),
            last: RefCell::default(),
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

    /// Writes down, durably, in which life this journal is used from now on, and tells the one
    /// before.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn begin(&self, life: Life) -> Result<Option<Life>, JournalError> {
        let begin = || -> rusqlite::Result<Option<[u8; 16]>> {
            let former = self.connection.query_row("SELECT used_by FROM memory", [], |row| row.get(0))?;
            self.connection.execute("UPDATE memory SET used_by = ?1", params![life.to_be_bytes()])?;
            Ok(former)
        };
        Ok(begin().map_err(|source| self.sql(source))?.map(Life::from_be_bytes))
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
        let done = self.try_write(write);
        if done.is_err() {
            // What was derived half-way is read anew.
            self.last.get_mut().clear();
            self.standing = self.restored()?;
        }
        match done {
            Ok(true) => Ok(()),
            Ok(false) => Err(JournalError::Cut { file }),
            Err(source) => Err(JournalError::Sql { file, source }),
        }
    }

    fn try_write(&mut self, write: &Write) -> rusqlite::Result<bool> {
        let Write { cut, entries, rows, memory } = write;
        let transaction = self.connection.transaction()?;
        let (keys, mut change) = (&self.keys, Change::default());
        let mut touched = HashSet::new();
        if let Some(cut) = cut {
            if !stands(&transaction, *cut)? {
                return Ok(false);
            }
            self.standing = cut_off(&transaction, cut.index, keys, &mut change)?;
            self.last.get_mut().clear();
            touched.extend(
                self.standing.names().chain(self.standing.definitions().map(|(name, _)| name)).cloned(),
            );
        }
        let mut line = transaction.prepare_cached(INSERT_ENTRY)?;
        for entry in entries {
            insert(&mut line, entry)?;
            apply(&transaction, entry, keys, &mut change)?;
            records::apply(&transaction, entry)?;
            let last = || last_number(&transaction, &entry.owner, &entry.series).unwrap_or(i64::MAX as u64);
            touched.extend(self.standing.apply(entry, last));
            if let Act::Life(_) = entry.act {
                put_lives(&transaction, &self.standing)?;
            } else if entry.carried > 0 {
                let sql = "UPDATE life SET carried = ?2 WHERE life = ?1";
                transaction.prepare_cached(sql)?.execute(params![entry.life.to_be_bytes(), entry.carried])?;
            }
        }
        drop(line);
        for name in touched {
            put_series(&transaction, &self.standing, &name)?;
        }
        let mut line = transaction.prepare_cached(INSERT_ROW)?;
        for row in rows {
            insert(&mut line, row)?;
        }
        drop(line);
        remember(&transaction, memory)?;
        let mut has_rows = self.has_rows || !rows.is_empty();
        if has_rows && memory.settled > self.forgotten {
            has_rows = forget_carried(&transaction, memory.settled)?;
        }
        keys.sweep(&transaction, &mut change)?;
        transaction.commit()?;
        self.has_rows = has_rows;
        self.forgotten = memory.settled;
        keys.changed(change, entries.last().map(Entry::tail).or(*cut).map(|tail| tail.index));
        for entry in entries.iter().filter(|entry| matches!(entry.act, Act::Reserve(_) | Act::Spoil(_))) {
            // Only what is there already: a series that nobody asked for is read when asked for.
            let name = SeriesName { owner: entry.owner.clone(), series: entry.series.clone() };
            if let Some(last) = self.last.get_mut().get_mut(&name) {
                *last = entry.number.max(*last);
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
        match self.keys.find(&self.connection, name, key).map_err(|source| self.sql(source))? {
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

const INSERT_ENTRY: &str = "INSERT INTO entry VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13)";
const INSERT_ROW: &str = "INSERT INTO solo VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13)";

fn insert(statement: &mut Statement<'_>, entry: &Entry) -> rusqlite::Result<()> {
    let (act, text) = entry.act.parts();
    statement.execute(params![
        entry.index,
        entry.epoch,
        entry.life.to_be_bytes(),
        entry.carried,
        entry.owner,
        entry.series,
        entry.number,
        entry.key,
        act,
        text,
        entry.at,
        entry.previous.0,
        entry.hash.0
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
mod tests {
    use super::super::entry::Draft;
    use super::*;

    fn chain(acts: &[(u64, &str, Act)]) -> Vec<Entry> {
        let mut tail = Tail::default();
        acts.iter()
            .map(|(number, key, act)| {
                let draft = Draft {
                    owner: "erp".to_owned(),
                    series: "INV".to_owned(),
                    number: *number,
                    key: (*key).to_owned(),
                    act: act.clone(),
                    at: -1,
                    carried: None,
                };
                let entry = Entry::append(tail, 1, u128::MAX, draft);
                tail = entry.tail();
                entry
            })
            .collect()
    }

    fn whole(entries: &[Entry], memory: Memory) -> Write {
        Write { cut: None, entries: entries.to_vec(), rows: Vec::new(), memory }
    }

    fn name() -> SeriesName {
        SeriesName { owner: "erp".to_owned(), series: "INV".to_owned() }
    }

    #[test]
    fn what_was_written_is_there_after_reopening() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("journal.db");
        let entries = chain(&[
            (1, "a", Act::Reserve(None)),
            (2, "b", Act::Reserve(None)),
            (1, "a", Act::Confirm("h".to_owned())),
        ]);
        let memory = Memory {
            journal: 5,
            epoch: 3,
            owns: true,
            alone: true,
            whole: true,
            solo: entries[0].tail(),
            peer_journal: Some(u128::MAX),
            peer_durable: 2,
            settled: 1,
        };
        Journal::open(&file, 5).unwrap().write(&whole(&entries, memory)).unwrap();
        let journal = Journal::open(&file, 6).unwrap();
        assert_eq!(journal.memory().unwrap(), memory);
        assert_eq!(journal.entries(0).unwrap(), entries);
        assert_eq!(journal.tail().unwrap(), entries[2].tail());
        let first = journal.by_key(&name(), "a").unwrap().unwrap();
        assert_eq!((first.number.number, first.number.state, first.index), (1, NumberState::Confirmed, 3));
        assert_eq!(
            journal.context(&name(), &Wish::Reserve { key: "c".to_owned(), ticket: None }).unwrap().last,
            2
        );
        assert_eq!(journal.numbers(&name(), Which::All, 1, 10).unwrap().len(), 1);
    }

    #[test]
    fn a_second_reserve_of_a_number_or_key_is_refused_whole() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(&folder.path().join("journal.db"), 5).unwrap();
        let memory = journal.memory().unwrap();
        for second in [(1, "b"), (2, "a")] {
            let entries = chain(&[(1, "a", Act::Reserve(None)), (second.0, second.1, Act::Reserve(None))]);
            journal.write(&whole(&entries, memory)).unwrap_err();
            assert_eq!(journal.tail().unwrap(), Tail::default());
        }
    }

    #[test]
    fn a_damaged_last_entry_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("journal.db");
        let mut journal = Journal::open(&file, 5).unwrap();
        let memory = journal.memory().unwrap();
        journal.write(&whole(&chain(&[(1, "a", Act::Reserve(None))]), memory)).unwrap();
        journal.connection.execute("UPDATE entry SET key = 'z'", []).unwrap();
        drop(journal);
        let told = Journal::open(&file, 5).unwrap_err().to_string();
        assert!(told.ends_with("entry 1 is damaged; stop this vault and restore its state folder"), "{told}");
    }
}
