//! This vault's own record of the ledger: a SQLite file with the chain of entries, the numbers
//! as those entries leave them, and what this side remembers of the other. Knows SQL; not the
//! pair, and not who may write what.
//!
//! One transaction per write, synced before it returns (see [`crate::sqlite`]). The entries are
//! the truth; the `number` table is derived from them in the same transaction.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, params};
use shared::api::{Number, NumberState};

use super::book::{Context, Known, SeriesName, Wish};
use super::digest::Digest;
use super::entry::{Act, BATCH, Entry, Tail};
use super::protocol::{Memory, Nonce};
use crate::sqlite::{self, SqliteError};

const MIGRATIONS: &[&str] = &["
    CREATE TABLE memory (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        journal BLOB NOT NULL,
        epoch INTEGER NOT NULL,
        peer_journal BLOB,
        peer_durable INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE entry (
        idx INTEGER PRIMARY KEY,
        epoch INTEGER NOT NULL,
        life BLOB NOT NULL,
        owner TEXT NOT NULL,
        series TEXT NOT NULL,
        number INTEGER NOT NULL,
        key TEXT NOT NULL,
        act TEXT NOT NULL,
        text TEXT NOT NULL,
        at INTEGER NOT NULL,
        previous BLOB NOT NULL,
        hash BLOB NOT NULL
    ) STRICT;
    CREATE TABLE number (
        owner TEXT NOT NULL,
        series TEXT NOT NULL,
        number INTEGER NOT NULL,
        key TEXT NOT NULL,
        state TEXT NOT NULL,
        document_hash TEXT,
        reason TEXT,
        idx INTEGER NOT NULL,
        hash BLOB NOT NULL,
        PRIMARY KEY (owner, series, number),
        UNIQUE (owner, series, key)
    ) STRICT, WITHOUT ROWID;
"];

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
    /// The last entry does not hash to what it says.
    #[error("{file}: entry {index} is damaged; stop this vault and restore its state folder")]
    Damaged {
        /// The file.
        file: PathBuf,
        /// Which entry.
        index: u64,
    },
}

/// The open journal; one thread writes.
#[derive(Debug)]
pub struct Journal {
    file: PathBuf,
    connection: Connection,
}

impl Journal {
    /// Opens or creates the journal. `fresh` becomes its identity if it is new.
    ///
    /// # Errors
    /// The file, or a damaged last entry.
    pub fn open(file: &Path, fresh: Nonce) -> Result<Self, JournalError> {
        let connection = sqlite::open(file, MIGRATIONS)?;
        let journal = Self { file: file.to_owned(), connection };
        journal
            .connection
            .execute(
                "INSERT INTO memory VALUES (1, ?1, 1, NULL, 0) ON CONFLICT DO NOTHING",
                params![fresh.to_be_bytes()],
            )
            .map_err(|source| journal.sql(source))?;
        if let Some(last) = journal.last()? {
            let before = Tail { index: last.index - 1, hash: last.previous };
            if !last.follows(before) {
                return Err(JournalError::Damaged { file: file.to_owned(), index: last.index });
            }
        }
        Ok(journal)
    }

    /// Opens a journal that [`Journal::open`] has prepared, for reading only.
    ///
    /// # Errors
    /// The file.
    pub fn open_to_read(file: &Path) -> Result<Self, JournalError> {
        Ok(Self { file: file.to_owned(), connection: sqlite::open_to_read(file)? })
    }

    /// What this side remembers.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn memory(&self) -> Result<Memory, JournalError> {
        self.connection
            .query_row("SELECT journal, epoch, peer_journal, peer_durable FROM memory", [], |row| {
                let peer: Option<[u8; 16]> = row.get(2)?;
                Ok(Memory {
                    journal: Nonce::from_be_bytes(row.get(0)?),
                    epoch: row.get(1)?,
                    peer_journal: peer.map(Nonce::from_be_bytes),
                    peer_durable: row.get(3)?,
                })
            })
            .map_err(|source| self.sql(source))
    }

    /// Where the chain ends.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn tail(&self) -> Result<Tail, JournalError> {
        Ok(self.last()?.map_or_else(Tail::default, |entry| entry.tail()))
    }

    /// Adds entries and replaces the memory, durably, in one transaction.
    ///
    /// # Errors
    /// SQLite's own; then nothing was kept.
    pub fn write(&mut self, entries: &[Entry], memory: Memory) -> Result<(), JournalError> {
        let file = self.file.clone();
        let mut write = || -> rusqlite::Result<()> {
            let transaction = self.connection.transaction()?;
            for entry in entries {
                insert(&transaction, entry)?;
                apply(&transaction, entry)?;
            }
            transaction.execute(
                "UPDATE memory SET journal = ?1, epoch = ?2, peer_journal = ?3, peer_durable = ?4",
                params![
                    memory.journal.to_be_bytes(),
                    memory.epoch,
                    memory.peer_journal.map(Nonce::to_be_bytes),
                    memory.peer_durable
                ],
            )?;
            transaction.commit()
        };
        write().map_err(|source| JournalError::Sql { file, source })
    }

    /// Up to [`BATCH`] entries after `after`, in order.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn entries(&self, after: u64) -> Result<Vec<Entry>, JournalError> {
        let read = || -> rusqlite::Result<Vec<Entry>> {
            let mut statement =
                self.connection.prepare_cached("SELECT * FROM entry WHERE idx > ?1 ORDER BY idx LIMIT ?2")?;
            statement.query_map(params![after, BATCH], entry)?.collect()
        };
        read().map_err(|source| self.sql(source))
    }

    /// What the ledger says that matters to a wish.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn context(&self, name: &SeriesName, wish: &Wish) -> Result<Context, JournalError> {
        let known = match wish {
            Wish::Reserve { key } => self.by_key(name, key)?,
            Wish::Confirm { number, .. } | Wish::Void { number, .. } => self.by_number(name, *number)?,
        };
        Ok(Context { known, last: self.last_number(name)? })
    }

    /// The number that a key got.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn by_key(&self, name: &SeriesName, key: &str) -> Result<Option<Known>, JournalError> {
        self.one("owner = ?1 AND series = ?2 AND key = ?3", params![name.owner, name.series, key])
    }

    /// What became of a number.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn by_number(&self, name: &SeriesName, number: u64) -> Result<Option<Known>, JournalError> {
        self.one("owner = ?1 AND series = ?2 AND number = ?3", params![name.owner, name.series, number])
    }

    /// A page of a series' numbers above `after`.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn numbers(&self, name: &SeriesName, after: u64, limit: usize) -> Result<Vec<Known>, JournalError> {
        let read = || -> rusqlite::Result<Vec<Known>> {
            let mut statement = self.connection.prepare_cached(
                "SELECT * FROM number WHERE owner = ?1 AND series = ?2 AND number > ?3 ORDER BY number LIMIT ?4",
            )?;

            statement.query_map(params![name.owner, name.series, after, limit], known)?.collect()
        };
        read().map_err(|source| self.sql(source))
    }

    fn last_number(&self, name: &SeriesName) -> Result<u64, JournalError> {
        self.connection
            .prepare_cached("SELECT coalesce(max(number), 0) FROM number WHERE owner = ?1 AND series = ?2")
            .and_then(|mut statement| statement.query_row(params![name.owner, name.series], |row| row.get(0)))
            .map_err(|source| self.sql(source))
    }

    fn last(&self) -> Result<Option<Entry>, JournalError> {
        self.connection
            .query_row("SELECT * FROM entry ORDER BY idx DESC LIMIT 1", [], entry)
            .optional()
            .map_err(|source| self.sql(source))
    }

    fn one(&self, clause: &str, values: impl rusqlite::Params) -> Result<Option<Known>, JournalError> {
        self.connection
            .prepare_cached(&format!("SELECT * FROM number WHERE {clause}"))
            .and_then(|mut statement| statement.query_row(values, known).optional())
            .map_err(|source| self.sql(source))
    }

    fn sql(&self, source: rusqlite::Error) -> JournalError {
        JournalError::Sql { file: self.file.clone(), source }
    }
}

fn insert(transaction: &Transaction<'_>, entry: &Entry) -> rusqlite::Result<()> {
    let (act, text) = entry.act.parts();
    transaction
        .prepare_cached("INSERT INTO entry VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12)")?
        .execute(params![
            entry.index,
            entry.epoch,
            entry.life.to_be_bytes(),
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

/// Brings the derived `number` row up to date. A reserve that meets a taken number or key
/// violates the table's keys, and the whole write fails: the last fence.
fn apply(transaction: &Transaction<'_>, entry: &Entry) -> rusqlite::Result<()> {
    let Entry { owner, series, number, key, index, hash, .. } = entry;
    let changed = match &entry.act {
        Act::Reserve => transaction
            .prepare_cached("INSERT INTO number VALUES (?1,?2,?3,?4,'reserved',NULL,NULL,?5,?6)")?
            .execute(params![owner, series, number, key, index, hash.0])?,
        Act::Confirm(document) => transaction
            .prepare_cached(
                "UPDATE number SET state = 'confirmed', document_hash = ?4, idx = ?5, hash = ?6
                 WHERE owner = ?1 AND series = ?2 AND number = ?3",
            )?
            .execute(params![owner, series, number, document, index, hash.0])?,
        Act::Void(reason) => transaction
            .prepare_cached(
                "UPDATE number SET state = 'void', reason = ?4, idx = ?5, hash = ?6
                 WHERE owner = ?1 AND series = ?2 AND number = ?3",
            )?
            .execute(params![owner, series, number, reason, index, hash.0])?,
    };
    if changed == 1 { Ok(()) } else { Err(rusqlite::Error::StatementChangedRows(changed)) }
}

fn entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    let act: String = row.get("act")?;
    let act = Act::from_parts(&act, row.get("text")?).ok_or(rusqlite::Error::InvalidQuery)?;
    Ok(Entry {
        index: row.get("idx")?,
        epoch: row.get("epoch")?,
        life: Nonce::from_be_bytes(row.get("life")?),
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
        _ => return Err(rusqlite::Error::InvalidQuery),
    };
    Ok(Known {
        number: Number {
            series: row.get("series")?,
            number: row.get("number")?,
            key: row.get("key")?,
            state,
            document_hash: row.get("document_hash")?,
            reason: row.get("reason")?,
            entry_hash: Digest(row.get("hash")?).to_string(),
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
                };
                let entry = Entry::append(tail, 1, u128::MAX, draft);
                tail = entry.tail();
                entry
            })
            .collect()
    }

    fn name() -> SeriesName {
        SeriesName { owner: "erp".to_owned(), series: "INV".to_owned() }
    }

    #[test]
    fn what_was_written_is_there_after_reopening() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("journal.db");
        let entries =
            chain(&[(1, "a", Act::Reserve), (2, "b", Act::Reserve), (1, "a", Act::Confirm("h".to_owned()))]);
        let memory = Memory { journal: 5, epoch: 3, peer_journal: Some(u128::MAX), peer_durable: 2 };
        Journal::open(&file, 5).unwrap().write(&entries, memory).unwrap();
        let journal = Journal::open(&file, 6).unwrap();
        assert_eq!(journal.memory().unwrap(), memory);
        assert_eq!(journal.entries(0).unwrap(), entries);
        assert_eq!(journal.tail().unwrap(), entries[2].tail());
        let first = journal.by_key(&name(), "a").unwrap().unwrap();
        assert_eq!((first.number.number, first.number.state, first.index), (1, NumberState::Confirmed, 3));
        assert_eq!(journal.context(&name(), &Wish::Reserve { key: "c".to_owned() }).unwrap().last, 2);
        assert_eq!(journal.numbers(&name(), 1, 10).unwrap().len(), 1);
    }

    #[test]
    fn a_second_reserve_of_a_number_or_key_is_refused_whole() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(&folder.path().join("journal.db"), 5).unwrap();
        let memory = journal.memory().unwrap();
        for second in [(1, "b"), (2, "a")] {
            let entries = chain(&[(1, "a", Act::Reserve), (second.0, second.1, Act::Reserve)]);
            journal.write(&entries, memory).unwrap_err();
            assert_eq!(journal.tail().unwrap(), Tail::default());
        }
    }

    #[test]
    fn a_damaged_last_entry_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("journal.db");
        let mut journal = Journal::open(&file, 5).unwrap();
        let memory = journal.memory().unwrap();
        journal.write(&chain(&[(1, "a", Act::Reserve)]), memory).unwrap();
        journal.connection.execute("UPDATE entry SET key = 'z'", []).unwrap();
        drop(journal);
        let told = Journal::open(&file, 5).unwrap_err().to_string();
        assert!(told.ends_with("entry 1 is damaged; stop this vault and restore its state folder"), "{told}");
    }
}
