//! What the journal derives of the ledger's entries about records, in the transaction that adds or
//! drops them, and how it is read: versions stand in the entries themselves; beside them, which
//! version is the last, which key wrote which, and how many records an owner has.

use std::collections::BTreeSet;

use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, params};

use super::{Journal, JournalError};
use crate::sequence::entry::{Act, Entry};
use crate::sequence::record::desk::ROUND_BYTES;
use crate::sequence::record::{Context, Held, RecordName, Wish, Written};

/// A page looks at no more names or versions than this, and says where it stopped.
const LOOKED_AT: usize = 10_000;

pub(super) const MIGRATION: &str = "
    CREATE INDEX entry_record ON entry (owner, series, key, number) WHERE act IN ('put', 'remove');
    CREATE TABLE record (
        owner TEXT NOT NULL,
        kind TEXT NOT NULL,
        name TEXT NOT NULL,
        version INTEGER NOT NULL,
        idx INTEGER NOT NULL,
        here INTEGER NOT NULL,
        PRIMARY KEY (owner, kind, name)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE record_key (
        owner TEXT NOT NULL,
        kind TEXT NOT NULL,
        name TEXT NOT NULL,
        key TEXT NOT NULL,
        version INTEGER NOT NULL,
        PRIMARY KEY (owner, kind, name, key)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE record_count (
        owner TEXT PRIMARY KEY,
        records INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
";

const COUNTED: &str = "SELECT records FROM record_count WHERE owner = ?1";

/// Versions in their order, and where the next page starts, unless this was the last.
pub type Leaf = (Vec<Held>, Option<String>);

/// Takes an entry about a record. One whose version is not above the last violates what a record
/// is, and the whole write fails: the last fence.
pub(super) fn apply(transaction: &Transaction<'_>, entry: &Entry) -> rusqlite::Result<()> {
    let (here, written) = match &entry.act {
        Act::Put(text) => (true, serde_json::from_str::<Written>(text).ok()),
        Act::Remove => (false, None),
        _ => return Ok(()),
    };
    let Entry { owner, series, number, key, index, .. } = entry;
    let was = is_here(transaction, entry)?;
    let changed = transaction
        .prepare_cached(
            "INSERT INTO record VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO UPDATE
             SET version = excluded.version, idx = excluded.idx, here = excluded.here
             WHERE excluded.version > record.version",
        )?
        .execute(params![owner, series, key, number, index, here])?;
    if changed != 1 {
        return Err(rusqlite::Error::StatementChangedRows(changed));
    }
    if let Some(Written { key: by, .. }) = written {
        transaction
            .prepare_cached("INSERT INTO record_key VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING")?
            .execute(params![owner, series, key, by, number])?;
    }
    count(transaction, owner, i64::from(here) - i64::from(was))
}

/// Takes back what was derived of some of the entries after `index`, which the chain shall have no
/// more: whatever it holds up to there stands again.
pub(super) fn cut_off(transaction: &Transaction<'_>, dropped: &[Entry], index: u64) -> rusqlite::Result<()> {
    let mut names = BTreeSet::new();
    for entry in dropped.iter().filter(|entry| matches!(entry.act, Act::Put(_) | Act::Remove)) {
        let Entry { owner, series, number, key, .. } = entry;
        transaction
            .prepare_cached(
                "DELETE FROM record_key WHERE owner = ?1 AND kind = ?2 AND name = ?3 AND version = ?4",
            )?
            .execute(params![owner, series, key, number])?;
        if names.insert((owner, series, key)) {
            count(transaction, owner, -i64::from(is_here(transaction, entry)?))?;
            transaction
                .prepare_cached("DELETE FROM record WHERE owner = ?1 AND kind = ?2 AND name = ?3")?
                .execute(params![owner, series, key])?;
        }
    }
    for (owner, kind, name) in names {
        let Some(last) = last(transaction, [owner, kind, name], index)? else { continue };
        let here = last.text.is_some();
        transaction
            .prepare_cached("INSERT INTO record VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
            .execute(params![owner, kind, name, last.version, last.index, here])?;
        count(transaction, owner, i64::from(here))?;
    }
    Ok(())
}

fn is_here(transaction: &Transaction<'_>, entry: &Entry) -> rusqlite::Result<bool> {
    let here = transaction
        .prepare_cached("SELECT here FROM record WHERE owner = ?1 AND kind = ?2 AND name = ?3")?
        .query_row(params![entry.owner, entry.series, entry.key], |row| row.get(0))
        .optional()?;
    Ok(here.unwrap_or(false))
}

fn count(transaction: &Transaction<'_>, owner: &str, more: i64) -> rusqlite::Result<()> {
    if more == 0 {
        return Ok(());
    }
    transaction
        .prepare_cached(
            "INSERT INTO record_count VALUES (?1, ?2)
             ON CONFLICT DO UPDATE SET records = records + excluded.records",
        )?
        .execute(params![owner, more])
        .map(drop)
}

/// The last version of a record among the first `upto` entries.
fn last(
    connection: &Connection,
    [owner, kind, name]: [&str; 3],
    upto: u64,
) -> rusqlite::Result<Option<Held>> {
    connection
        .prepare_cached(
            "SELECT * FROM entry WHERE owner = ?1 AND series = ?2 AND key = ?3 AND idx <= ?4
             AND act IN ('put', 'remove') ORDER BY number DESC LIMIT 1",
        )?
        .query_row(params![owner, kind, name, upto], held)
        .optional()
}

fn held(row: &Row<'_>) -> rusqlite::Result<Held> {
    let act: String = row.get("act")?;
    Ok(Held {
        name: row.get("key")?,
        version: row.get("number")?,
        index: row.get("idx")?,
        at: row.get("at")?,
        text: if act == "put" { Some(row.get("text")?) } else { None },
    })
}

impl Journal {
    /// What the chain says that matters to a wish about a record.
    ///
    /// # Errors
    /// SQLite's own.
    pub(in crate::sequence) fn record_context(
        &self,
        name: &RecordName,
        wish: &Wish,
    ) -> Result<Context, JournalError> {
        let RecordName { owner, kind, name } = name;
        let whose = [owner.as_str(), kind.word(), name.as_str()];
        let read = || -> rusqlite::Result<Context> {
            let repeated = match wish.key() {
                Some(key) => self.wrote(whose, key)?,
                None => None,
            };
            let records = self
                .connection
                .prepare_cached(COUNTED)?
                .query_row(params![owner], |row| row.get(0))
                .optional()?;
            let held = last(&self.connection, whose, u64::MAX >> 1)?;
            Ok(Context { held, repeated, records: records.unwrap_or(0) })
        };
        read().map_err(|source| self.sql(source))
    }

    /// How often [`Journal::record_context`] was asked.
    #[cfg(test)]
    pub(in crate::sequence) fn records_looked_up(&self) -> i32 {
        let counted = self.connection.prepare_cached(COUNTED).unwrap();
        counted.get_status(rusqlite::StatementStatus::Run)
    }

    fn wrote(&self, [owner, kind, name]: [&str; 3], key: &str) -> rusqlite::Result<Option<Held>> {
        self.connection
            .prepare_cached(
                "SELECT entry.* FROM record_key JOIN entry ON entry.owner = record_key.owner
                 AND entry.series = kind AND entry.key = name AND entry.number = version
                 AND entry.act IN ('put', 'remove')
                 WHERE record_key.owner = ?1 AND kind = ?2 AND name = ?3 AND record_key.key = ?4",
            )?
            .query_row(params![owner, kind, name, key], held)
            .optional()
    }

    /// The last version of a record among the first `upto` entries.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn record(&self, name: &RecordName, upto: u64) -> Result<Option<Held>, JournalError> {
        let whose = [name.owner.as_str(), name.kind.word(), name.name.as_str()];
        last(&self.connection, whose, upto).map_err(|source| self.sql(source))
    }

    /// A record's versions above `after` among the first `upto` entries: at most `limit` and about
    /// [`ROUND_BYTES`] of them.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn record_versions(
        &self,
        name: &RecordName,
        after: u64,
        limit: usize,
        upto: u64,
    ) -> Result<Leaf, JournalError> {
        let read = || -> rusqlite::Result<Leaf> {
            let mut statement = self.connection.prepare_cached(
                "SELECT * FROM entry WHERE owner = ?1 AND series = ?2 AND key = ?3 AND number > ?4
                 AND idx <= ?5 AND act IN ('put', 'remove') ORDER BY number",
            )?;
            let whose = params![name.owner, name.kind.word(), name.name, after, upto];
            let (mut versions, mut bytes) = (Vec::new(), 0);
            for version in statement.query_map(whose, held)? {
                if versions.len() >= limit || bytes >= ROUND_BYTES {
                    let next = versions.last().map(|held: &Held| held.version.to_string());
                    return Ok((versions, next));
                }
                let version = version?;
                bytes += version.text.as_ref().map_or(0, String::len);
                versions.push(version);
            }
            Ok((versions, None))
        };
        read().map_err(|source| self.sql(source))
    }

    /// The records after `name` that begin with `prefix` and that the first `upto` entries have: at
    /// most `limit` and about [`ROUND_BYTES`] of them.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn records(
        &self,
        name: &RecordName,
        prefix: &str,
        limit: usize,
        upto: u64,
    ) -> Result<Leaf, JournalError> {
        let RecordName { owner, kind, name: after } = name;
        let read = || -> rusqlite::Result<Leaf> {
            let mut statement = self.connection.prepare_cached(
                "SELECT name, here, idx FROM record
                 WHERE owner = ?1 AND kind = ?2 AND name > ?3 AND name >= ?4 ORDER BY name",
            )?;
            let mut rows = statement.query(params![owner, kind.word(), after, prefix])?;
            let (mut page, mut bytes, mut looked_at) = (Vec::new(), 0, 0);
            let mut next = None;
            while let Some(row) = rows.next()? {
                let name: String = row.get("name")?;
                if !name.starts_with(prefix) {
                    break;
                }
                if page.len() >= limit || bytes >= ROUND_BYTES || looked_at >= LOOKED_AT {
                    return Ok((page, next));
                }
                looked_at += 1;
                // A record that is gone, unless that is not final yet.
                if row.get("here")? || row.get::<_, u64>("idx")? > upto {
                    let last = last(&self.connection, [owner, kind.word(), &name], upto)?;
                    if let Some(held) = last.filter(|held| held.text.is_some()) {
                        bytes += held.text.as_ref().map_or(0, String::len);
                        page.push(held);
                    }
                }
                next = Some(name);
            }
            Ok((page, None))
        };
        read().map_err(|source| self.sql(source))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Memory, Write};
    use super::*;
    use crate::sequence::entry::{BATCH, Draft, Tail};
    use crate::sequence::record::{Content, Expect, Kind};

    fn lot(name: &str) -> RecordName {
        RecordName { owner: "erp".to_owned(), kind: Kind::Record, name: name.to_owned() }
    }

    fn written(value: &str, key: &str) -> Written {
        let content = Content { value: value.to_owned(), json: false };
        Written { content, by: "www1".to_owned(), key: key.to_owned() }
    }

    struct Book {
        journal: Journal,
        memory: Memory,
        tail: Tail,
        _folder: tempfile::TempDir,
    }

    fn book() -> Book {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(&folder.path().join("journal.db"), 5).unwrap();
        let memory = journal.memory().unwrap();
        Book { journal, memory, tail: Tail::default(), _folder: folder }
    }

    impl Book {
        fn enter(&mut self, name: &str, version: u64, act: Act) -> Result<(), JournalError> {
            let (owner, series, key) = ("erp".to_owned(), "record".to_owned(), name.to_owned());
            let draft = Draft { owner, series, number: version, key, act, at: 0, carried: None };
            let entry = Entry::append(self.tail, 1, 7, draft);
            let tail = entry.tail();
            self.write(None, vec![entry])?;
            self.tail = tail;
            Ok(())
        }
        fn put(&mut self, name: &str, version: u64, value: &str) {
            let text = serde_json::to_string(&written(value, &format!("k{version}"))).unwrap();
            self.enter(name, version, Act::Put(text)).unwrap();
        }
        fn write(&mut self, cut: Option<Tail>, entries: Vec<Entry>) -> Result<(), JournalError> {
            self.journal.write(&Write { cut, entries, rows: Vec::new(), memory: self.memory })
        }
        fn context(&self, name: &str, key: &str) -> (Option<(u64, bool)>, Option<u64>, u64) {
            let wish = Wish::Put { written: written("", key), expect: Expect::Any };
            let Context { held, repeated, records } = self.journal.record_context(&lot(name), &wish).unwrap();
            (held.map(|held| (held.version, held.text.is_some())), repeated.map(|held| held.version), records)
        }
        fn list(&self, after: &str, prefix: &str, limit: usize, upto: u64) -> (Vec<String>, Option<String>) {
            let (page, next) = self.journal.records(&lot(after), prefix, limit, upto).unwrap();
            (page.into_iter().map(|held| format!("{}={}", held.name, held.version)).collect(), next)
        }
    }

    #[test]
    fn what_was_entered_is_found_by_name_version_key_and_prefix() {
        let mut book = book();
        book.put("a/1", 1, "x");
        book.put("a/1", 2, "y");
        book.put("a/2", 1, "z");
        book.put("b", 1, "w");
        assert_eq!(book.context("a/1", "k1"), (Some((2, true)), Some(1), 3));
        assert_eq!(book.context("a/3", "k1"), (None, None, 3));
        assert_eq!(book.list("", "a/", 10, 9), (vec!["a/1=2".to_owned(), "a/2=1".to_owned()], None));
        assert_eq!(book.list("", "", 1, 9), (vec!["a/1=2".to_owned()], Some("a/1".to_owned())));
        assert_eq!(book.list("a/1", "", 9, 9).0, ["a/2=1", "b=1"]);
        let (versions, next) = book.journal.record_versions(&lot("a/1"), 0, 1, 9).unwrap();
        assert_eq!(
            (versions[0].written().unwrap().content.value.as_str(), next.as_deref()),
            ("x", Some("1"))
        );
    }

    #[test]
    fn what_is_not_final_yet_is_not_seen() {
        let mut book = book();
        book.put("a", 1, "x");
        book.put("a", 2, "y");
        book.enter("a", 3, Act::Remove).unwrap();
        let seen = |upto| book.journal.record(&lot("a"), upto).unwrap().map(|held| held.version);
        assert_eq!([seen(0), seen(1), seen(2), seen(3)], [None, Some(1), Some(2), Some(3)]);
        assert_eq!(book.list("", "", 9, 2).0, ["a=2"]);
        assert!(book.list("", "", 9, 3).0.is_empty());
        assert_eq!(book.context("a", "k2"), (Some((3, false)), Some(2), 0));
    }

    #[test]
    fn a_cut_takes_back_what_was_derived() {
        let mut book = book();
        book.put("a", 1, "x");
        book.put("c", 1, "x");
        let kept = book.tail;
        book.put("a", 2, "y");
        book.put("b", 1, "z");
        // More than one step of it.
        for turn in 0..BATCH as u64 {
            book.put("d", turn + 1, "x");
        }
        book.put("a", 3, "y");
        book.enter("c", 2, Act::Remove).unwrap();
        assert_eq!(book.context("a", "k2"), (Some((3, true)), Some(2), 3));
        book.write(Some(kept), Vec::new()).unwrap();
        book.tail = kept;
        assert_eq!(book.context("a", "k2"), (Some((1, true)), None, 2));
        assert_eq!((book.context("b", "k1").0, book.context("d", "k9").1), (None, None));
        assert_eq!(book.list("", "", 9, 9).0, ["a=1", "c=1"]);
        // The version that was dropped is given again: it was never answered.
        book.put("a", 2, "other");
        assert_eq!(book.context("a", "k2"), (Some((2, true)), Some(2), 2));
    }

    #[test]
    fn a_version_that_is_there_already_is_refused_whole() {
        let mut book = book();
        book.put("a", 1, "x");
        let before = book.tail;
        book.enter("a", 1, Act::Put("{}".to_owned())).unwrap_err();
        assert_eq!(book.journal.tail().unwrap(), before);
    }

    #[test]
    fn a_page_of_long_values_ends_early_and_says_so() {
        let mut book = book();
        let long = "x".repeat(ROUND_BYTES / 2);
        for name in ["a", "b", "c"] {
            book.put(name, 1, &long);
        }
        assert_eq!(book.list("", "", 9, 9), (vec!["a=1".to_owned(), "b=1".to_owned()], Some("b".to_owned())));
        assert_eq!(book.journal.entries(0).unwrap().len(), 2, "nor does a message outgrow the link's frames");
    }
}
