//! What this vault had entered and what gave way to the other vault's chain. Most of it nobody was
//! ever told of; but what an owner that went on alone, by an operator's word, had written of
//! records was answered, and somebody may rely on it. Such writes are kept until an operator has
//! looked at them.

use rusqlite::{Connection, Transaction, params};

use super::{Journal, JournalError};
use crate::sequence::entry::{Act, Entry};
use crate::sequence::record::desk::ROUND_BYTES;

/// `alone_upto`: entries about records up to there were answered without the other vault.
pub(super) const MIGRATION: &str = "
    ALTER TABLE memory ADD COLUMN alone_upto INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE dropped ADD COLUMN answered INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE dropped ADD COLUMN looked_at INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX dropped_answered ON dropped (looked_at) WHERE answered = 1;
";

/// A write that was answered and dropped, and its place in the list of them.
pub type Dropped = (u64, Entry);

/// Whatever the chain holds now is answered without the other vault.
pub(super) fn note_alone(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    let sql = "UPDATE memory SET alone_upto = coalesce((SELECT max(idx) FROM entry), 0)";
    transaction.prepare_cached(sql)?.execute([]).map(drop)
}

/// Keeps what the chain has no more.
pub(super) fn keep(transaction: &Transaction<'_>, dropped: &[Entry]) -> rusqlite::Result<()> {
    let alone = alone_upto(transaction)?;
    for entry in dropped {
        let text = serde_json::to_string(entry).unwrap_or_default();
        let answered = entry.index <= alone && matches!(entry.act, Act::Put(_) | Act::Remove);
        transaction
            .prepare_cached(
                "INSERT INTO dropped (idx, hash, entry, answered) VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING",
            )?
            .execute(params![entry.index, entry.hash.0, text, answered])?;
    }
    Ok(())
}

/// The chain ends at `index` now: what comes after it was answered by nobody yet.
pub(super) fn cut_off(transaction: &Transaction<'_>, index: u64) -> rusqlite::Result<()> {
    let sql = "UPDATE memory SET alone_upto = min(alone_upto, ?1)";
    transaction.execute(sql, [index]).map(drop)
}

fn alone_upto(connection: &Connection) -> rusqlite::Result<u64> {
    connection.query_row("SELECT alone_upto FROM memory", [], |row| row.get(0))
}

impl Journal {
    /// How many writes were answered, gave way, and were not looked at yet.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn dropped_unseen(&self) -> Result<u64, JournalError> {
        let sql = "SELECT count(*) FROM dropped WHERE answered = 1 AND looked_at = 0";
        self.connection.query_row(sql, [], |row| row.get(0)).map_err(|source| self.sql(source))
    }

    /// How many writes of records were answered without the other vault after that entry, and so
    /// give way if its chain prevails.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn answered_alone(&self, after: u64) -> Result<u64, JournalError> {
        let sql = "SELECT count(*) FROM entry WHERE idx > ?1 AND idx <= ?2 AND act IN ('put', 'remove')";
        alone_upto(&self.connection)
            .and_then(|upto| self.connection.query_row(sql, [after, upto], |row| row.get(0)))
            .map_err(|source| self.sql(source))
    }

    /// A page of the writes that were answered and gave way, after that place; fewer where their
    /// texts are long.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn dropped(&self, after: u64, limit: usize) -> Result<Vec<Dropped>, JournalError> {
        let sql =
            "SELECT rowid, entry FROM dropped WHERE answered = 1 AND rowid > ?1 ORDER BY rowid LIMIT ?2";
        let read = || -> rusqlite::Result<Vec<Dropped>> {
            let mut statement = self.connection.prepare_cached(sql)?;
            let mut rows = statement.query(params![after, limit])?;
            let (mut page, mut bytes) = (Vec::new(), 0);
            while bytes < ROUND_BYTES
                && let Some(row) = rows.next()?
            {
                let text: String = row.get(1)?;
                let entry = serde_json::from_str(&text).map_err(|error| {
                    rusqlite::Error::FromSqlConversionFailure(1, rusqlite::types::Type::Text, error.into())
                })?;
                bytes += text.len();
                page.push((row.get(0)?, entry));
            }
            Ok(page)
        };
        read().map_err(|source| self.sql(source))
    }

    /// Notes that an operator has looked at what gave way, up to that place. Tells how much is left.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn looked_at(&self, upto: u64) -> Result<u64, JournalError> {
        let sql = "UPDATE dropped SET looked_at = 1 WHERE answered = 1 AND looked_at = 0 AND rowid <= ?1";
        self.connection.execute(sql, [upto]).map_err(|source| self.sql(source))?;
        self.dropped_unseen()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::entry::{Draft, Tail};
    use crate::sequence::protocol::{Memory, Write};

    #[test]
    fn of_what_gives_way_only_what_was_answered_alone_is_told_until_it_was_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("journal.db");
        let mut journal = Journal::open(&file, 5).unwrap();
        let together = journal.memory().unwrap();
        let mut tail = Tail::default();
        let mut write = |journal: &mut Journal, act: Act, alone: bool| {
            let (owner, series) = ("erp".to_owned(), "record".to_owned());
            let (number, key) = (tail.index + 1, "lot".to_owned());
            let draft = Draft { owner, series, number, key, act, at: 0, carried: None };
            let entry = Entry::append(tail, 1, 7, draft);
            tail = entry.tail();
            let memory = Memory { alone, ..together };
            journal.write(&Write { cut: None, entries: vec![entry], rows: Vec::new(), memory }).unwrap();
            tail
        };
        let put = || Act::Put("{}".to_owned());
        let kept = write(&mut journal, put(), false);
        write(&mut journal, put(), true);
        write(&mut journal, Act::Reserve(None), true);
        write(&mut journal, Act::Remove, true);
        // In doubt: it was proposed together, and nobody heard of it.
        write(&mut journal, put(), false);
        assert_eq!((journal.answered_alone(kept.index).unwrap(), journal.dropped_unseen().unwrap()), (2, 0));
        let cut = Write { cut: Some(kept), entries: Vec::new(), rows: Vec::new(), memory: together };
        journal.write(&cut).unwrap();
        drop(journal);
        let journal = Journal::open(&file, 5).unwrap();
        let dropped = journal.dropped(0, 10).unwrap();
        let entries: Vec<_> = dropped.iter().map(|(_, entry)| (entry.index, entry.act.clone())).collect();
        assert_eq!(entries, [(2, put()), (4, Act::Remove)]);
        assert_eq!(
            (journal.dropped(dropped[0].0, 10).unwrap().len(), journal.dropped_unseen().unwrap()),
            (1, 2)
        );
        assert_eq!(journal.looked_at(dropped[0].0).unwrap(), 1);
        assert_eq!(journal.looked_at(dropped[1].0).unwrap(), 0);
        assert_eq!(journal.dropped(0, 10).unwrap().len(), 2, "it stays to be read");
    }

    #[test]
    fn what_takes_the_place_of_writes_answered_alone_was_not_answered_by_that() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(&folder.path().join("journal.db"), 5).unwrap();
        let together = journal.memory().unwrap();
        let put = |tail: Tail, key: &str| {
            let (owner, series, key) = ("erp".to_owned(), "record".to_owned(), key.to_owned());
            let act = Act::Put("{}".to_owned());
            let draft = Draft { owner, series, number: 1, key, act, at: 0, carried: None };
            Entry::append(tail, 1, 7, draft)
        };
        let mut write = |cut: Option<Tail>, entries: &[Entry], alone: bool| {
            let memory = Memory { alone, ..together };
            journal.write(&Write { cut, entries: entries.to_vec(), rows: Vec::new(), memory }).unwrap();
            (journal.dropped_unseen().unwrap(), journal.answered_alone(0).unwrap())
        };
        let kept = put(Tail::default(), "a");
        let alone = put(kept.tail(), "b");
        assert_eq!(write(None, &[kept.clone(), alone], true), (0, 2));
        // It gives way, and what came instead gives way, too: that nobody was told of.
        let other = put(kept.tail(), "c");
        assert_eq!(write(Some(kept.tail()), &[other], false), (1, 1));
        assert_eq!(write(Some(kept.tail()), &[], false), (1, 1));
    }
}
