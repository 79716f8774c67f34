//! The rows of the book of keys: what one commit writes, and what is forgotten. Knows neither threads
//! nor who waits.
//!
//! A key is forgotten by its age, as long as the gateway remembers where it went first, and no clock
//! forgets one alone: only days in which something was posted count. A bound for each owner comes before
//! that where one posts very much, so that nobody uses up another's.

use std::collections::{BTreeMap, HashMap};

use rusqlite::{Connection, OptionalExtension as _, Transaction, params};

use super::{Begin, Entry, Hash, Row, Standing, Write};
use crate::posting::memory::Life;

pub(super) const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE post (
        -- Counts them, and is the message's number of its producer.
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        -- SHA-256 of owner and key.
        key BLOB NOT NULL UNIQUE,
        -- 0: being put into its queue. 1: kept. 2: the other vault's.
        state INTEGER NOT NULL,
        -- SHA-256 of the message.
        print BLOB NOT NULL,
        producer TEXT NOT NULL
    ) STRICT;
    CREATE INDEX post_begun ON post (number) WHERE state = 0;
",
    "
    -- Empty for the other vault's, and for those of before.
    ALTER TABLE post ADD COLUMN owner TEXT NOT NULL DEFAULT '';
    -- Which one it came on of those on which something was posted.
    ALTER TABLE post ADD COLUMN day INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX post_of ON post (owner, number);
    -- The one of today, and its date in days since 1970.
    CREATE TABLE post_day (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        day INTEGER NOT NULL,
        date INTEGER NOT NULL
    ) STRICT;
    INSERT INTO post_day VALUES (1, 0, 0);
",
    "
    -- Of the other vault's: in which of its lives it was left to it first.
    ALTER TABLE post ADD COLUMN life BLOB;
    -- This vault's lives since nothing of this book was lost, in their order.
    CREATE TABLE post_life (
        number INTEGER PRIMARY KEY,
        life BLOB NOT NULL UNIQUE,
        -- On which it began.
        day INTEGER NOT NULL
    ) STRICT;
",
];

const BEGUN: i64 = 0;
const KEPT: i64 = 1;
const THEIRS: i64 = 2;

/// In ms.
const DAY: u64 = 86_400_000;

/// What bounds the book.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Days that a key is remembered: the gateway's tickets (`tickets_days`, usually 30), and the begun one.
    pub(super) days: u64,
    /// Keys of one owner.
    pub(super) most: u64,
    /// Old keys that are deleted with one commit.
    pub(super) batch: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { days: 31, most: 2_000_000, batch: 500 }
    }
}

/// What the file holds.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Rows of each owner.
    owners: HashMap<String, u64>,
    pub(super) day: u64,
    date: u64,
    /// Whose keys were forgotten before their time: on which day last.
    crowded: BTreeMap<String, u64>,
}

impl Tally {
    /// Counts them.
    ///
    /// # Errors
    /// SQLite's.
    pub(super) fn of(connection: &Connection) -> rusqlite::Result<Self> {
        let sql = "SELECT owner, count(*) FROM post GROUP BY owner";
        let mut statement = connection.prepare(sql)?;
        let counts = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let owners = counts.collect::<rusqlite::Result<_>>()?;
        let today = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
        let (day, date) = connection.query_row("SELECT day, date FROM post_day", [], today)?;
        Ok(Self { owners, day, date, ..Self::default() })
    }

    pub(super) fn standing(&self) -> Standing {
        let lately = |(_, day): &(&String, &u64)| **day + 1 >= self.day;
        Standing {
            keys: self.owners.values().sum(),
            crowded: self.crowded.iter().filter(lately).map(|(owner, _)| owner.clone()).collect(),
        }
    }

    fn count(&self, owner: &str) -> u64 {
        self.owners.get(owner).copied().unwrap_or(0)
    }

    /// What a commit has changed is true now.
    fn follow(&mut self, changes: &Changes) {
        for owner in changes.owners.keys() {
            let left = changes.left(owner, self);
            self.owners.insert(owner.clone(), left);
        }
        self.owners.retain(|_, count| *count > 0);
    }

    /// Once a day.
    fn tell_crowded(&mut self, crowded: Vec<(String, u64)>, most: u64) {
        for (owner, _) in crowded {
            if self.crowded.insert(owner.clone(), self.day) != Some(self.day) {
                tracing::warn!(
                    "messages: {owner} has posted under more than {most} keys: the oldest are forgotten before their \
                     time, and a repeated one of those is posted again"
                );
            }
        }
    }

    /// Which day it is at that date. A clock that jumps makes one day of it, whatever it jumps over.
    fn day_at(&self, date: u64) -> Option<u64> {
        (date > self.date || date + 1 < self.date).then_some(self.day + 1)
    }
}

/// What of the tally one commit changes.
#[derive(Debug, Clone, Default)]
struct Changes {
    /// Rows that came and went.
    owners: HashMap<String, (u64, u64)>,
}

impl Changes {
    fn came(&mut self, owner: &str) {
        self.of(owner).0 += 1;
    }

    fn went(&mut self, owner: &str) {
        self.of(owner).1 += 1;
    }

    fn of(&mut self, owner: &str) -> &mut (u64, u64) {
        self.owners.entry(owner.to_owned()).or_default()
    }

    fn left(&self, owner: &str, tally: &Tally) -> u64 {
        let (came, went) = self.owners.get(owner).copied().unwrap_or_default();
        (tally.count(owner) + came).saturating_sub(went)
    }
}

/// What came of a commit.
pub(super) struct Committed {
    /// Of each write, its row's number, or why it could not be written.
    pub(super) written: Vec<Result<u64, String>>,
    /// Why something was not written.
    pub(super) trouble: Option<String>,
    /// Keys that were forgotten before their time.
    pub(super) early: u64,
}

/// Does it all. A change that fails fails alone: of `later` it stays, and its producer begins nothing.
///
/// # Errors
/// SQLite's; then nothing was done.
pub(super) fn commit(
    connection: &Connection,
    later: &mut Vec<Write>,
    writes: &[Write],
    tally: &mut Tally,
    bounds: Bounds,
) -> rusqlite::Result<Committed> {
    let mut transaction = connection.unchecked_transaction()?;
    let mut changes = Changes::default();
    let (day, date) = today(&transaction, writes, tally)?;
    let mut owed = Vec::new();
    for write in later.iter() {
        owed.push(apply(&mut transaction, write, day, &mut changes)?.err());
    }
    let barred = barred(later, &owed);
    let mut written = Vec::with_capacity(writes.len());
    for write in writes {
        let why = if let Write::Begin(begin) = write { barred.get(begin.producer.as_str()) } else { None };
        written.push(match why {
            Some(why) => Err(why.clone()),
            None => apply(&mut transaction, write, day, &mut changes)?,
        });
    }
    let forgotten = forget(&mut transaction, day, tally, bounds, &mut changes)?;
    transaction.commit()?;
    (tally.day, tally.date) = (day, date);
    tally.follow(&changes);
    let (crowded, stuck) = match forgotten {
        Ok(crowded) => (crowded, None),
        Err(why) => (Vec::new(), Some(why)),
    };
    let early = crowded.iter().map(|(_, count)| count).sum();
    tally.tell_crowded(crowded, bounds.most);
    let unwritten = written.iter().filter_map(|done| done.as_ref().err());
    let trouble = owed.iter().flatten().chain(unwritten).chain(&stuck).min().cloned();
    let mut owed = owed.into_iter();
    later.retain(|_| owed.next().flatten().is_some());
    Ok(Committed { written, trouble, early })
}

/// Producers whose messages could not be forgotten, and why.
fn barred<'w>(later: &'w [Write], owed: &[Option<String>]) -> HashMap<&'w str, String> {
    let forgets = later.iter().zip(owed).filter_map(|(write, why)| match (write, why) {
        (Write::Forget { producer, .. }, Some(why)) => Some((producer.as_str(), why.clone())),
        _ => None,
    });
    forgets.collect()
}

/// The day of a commit, and its date.
fn today(connection: &Connection, writes: &[Write], tally: &Tally) -> rusqlite::Result<(u64, u64)> {
    let dates = writes.iter().rev();
    let date = dates.into_iter().find_map(|write| match write {
        Write::Begin(begin) => Some(begin.now / DAY),
        _ => None,
    });
    let Some((date, day)) = date.and_then(|date| Some((date, tally.day_at(date)?))) else {
        return Ok((tally.day, tally.date));
    };
    connection.prepare_cached("UPDATE post_day SET day = ?1, date = ?2")?.execute([day, date])?;
    Ok((day, date))
}

/// What is too old or too much; tells whose was too much. Where that fails, the writes do not.
fn forget(
    transaction: &mut Transaction<'_>,
    day: u64,
    tally: &Tally,
    bounds: Bounds,
    changes: &mut Changes,
) -> rusqlite::Result<Result<Vec<(String, u64)>, String>> {
    let mut changed = changes.clone();
    let forgotten = alone(transaction, |connection| {
        forget_old(connection, day, bounds, &mut changed)?;
        forget_early(connection, tally, bounds, &mut changed)
    })?;
    if forgotten.is_ok() {
        *changes = changed;
    }
    Ok(forgotten)
}

/// Those whose time is over, some at a time.
fn forget_old(
    connection: &Connection,
    day: u64,
    bounds: Bounds,
    changes: &mut Changes,
) -> rusqlite::Result<()> {
    let before = day.saturating_sub(bounds.days);
    let sql = "SELECT day FROM post ORDER BY number LIMIT 1";
    let oldest: Option<u64> = connection.prepare_cached(sql)?.query_row([], |row| row.get(0)).optional()?;
    if oldest.is_some_and(|oldest| oldest < before) {
        let sql =
            "DELETE FROM post WHERE number IN (SELECT number FROM post ORDER BY number LIMIT ?1) AND day < ?2
                   RETURNING owner";
        let mut statement = connection.prepare_cached(sql)?;
        let owners = statement.query_map([bounds.batch, before], |row| row.get::<_, String>(0))?;
        for owner in owners {
            changes.went(&owner?);
        }
    }
    Ok(())
}

/// Those that are too many; tells whose, and how many. What the other vault has, has a bound of its own.
fn forget_early(
    connection: &Connection,
    tally: &Tally,
    bounds: Bounds,
    changes: &mut Changes,
) -> rusqlite::Result<Vec<(String, u64)>> {
    let owners: Vec<String> = changes.owners.keys().cloned().collect();
    let mut crowded = Vec::new();
    for owner in owners {
        let many = changes.left(&owner, tally).saturating_sub(bounds.most);
        if many > 0 {
            let sql = "DELETE FROM post WHERE number IN
                       (SELECT number FROM post WHERE owner = ?1 ORDER BY number LIMIT ?2)";
            let gone = connection.prepare_cached(sql)?.execute(params![owner, many])? as u64;
            changes.of(&owner).1 += gone;
            if !owner.is_empty() {
                crowded.push((owner, gone));
            }
        }
    }
    Ok(crowded)
}

/// Does one write; gives the number of the row that it made, or why it failed by itself.
fn apply(
    transaction: &mut Transaction<'_>,
    write: &Write,
    day: u64,
    changes: &mut Changes,
) -> rusqlite::Result<Result<u64, String>> {
    let change = |connection: &Connection| {
        let gone = change(connection, write, day)?;
        Ok((gone, u64::try_from(connection.last_insert_rowid()).unwrap_or_default()))
    };
    let (gone, number) = match alone(transaction, change)? {
        Ok(changed) => changed,
        Err(why) => return Ok(Err(why)),
    };
    if let Some(owner) = gone {
        changes.went(&owner);
    }
    match write {
        Write::Begin(begin) => changes.came(&begin.owner),
        Write::Theirs { .. } => changes.came(""),
        Write::Kept(_) | Write::Forget { .. } => {}
    }
    Ok(Ok(number))
}

/// What is undone by itself where it fails.
///
/// # Errors
/// The whole transaction has failed.
fn alone<T>(
    transaction: &mut Transaction<'_>,
    change: impl FnOnce(&Connection) -> rusqlite::Result<T>,
) -> rusqlite::Result<Result<T, String>> {
    let savepoint = transaction.savepoint()?;
    match change(&savepoint) {
        Ok(done) => {
            savepoint.commit()?;
            Ok(Ok(done))
        }
        // As a full disk does: <https://www.sqlite.org/lang_transaction.html>, "Response To Errors".
        Err(error) if savepoint.is_autocommit() => Err(error),
        Err(error) => {
            savepoint.finish()?;
            Ok(Err(error.to_string()))
        }
    }
}

/// Tells whose row has gone by it.
fn change(connection: &Connection, write: &Write, day: u64) -> rusqlite::Result<Option<String>> {
    let owner = |row: &rusqlite::Row<'_>| row.get(0);
    let replace = "DELETE FROM post WHERE key = ?1 RETURNING owner";
    match write {
        Write::Begin(Begin { key, owner: whose, print, producer, .. }) => {
            let gone = connection.prepare_cached(replace)?.query_row([key], owner).optional()?;
            let sql = "INSERT INTO post (key, state, print, producer, owner, day)
                       VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
            connection.prepare_cached(sql)?.execute(params![key, BEGUN, print, producer, whose, day])?;
            Ok(gone)
        }
        Write::Theirs { key, life } => {
            let gone = connection.prepare_cached(replace)?.query_row([key], owner).optional()?;
            let sql = "INSERT INTO post (key, state, print, producer, owner, day, life)
                       VALUES (?1, ?2, ?3, '', '', ?4, ?5)";
            let life = life.map(Life::to_be_bytes);
            connection.prepare_cached(sql)?.execute(params![key, THEIRS, Hash::default(), day, life])?;
            Ok(gone)
        }
        Write::Kept(number) => {
            let sql = "UPDATE post SET state = ?2 WHERE number = ?1";
            connection.prepare_cached(sql)?.execute(params![number, KEPT])?;
            Ok(None)
        }
        Write::Forget { number, .. } => {
            let sql = "DELETE FROM post WHERE number = ?1 RETURNING owner";
            connection.prepare_cached(sql)?.query_row([number], owner).optional()
        }
    }
}

/// What is written of a key.
///
/// # Errors
/// SQLite's.
pub(super) fn find(connection: &Connection, key: &Hash) -> rusqlite::Result<Option<Entry>> {
    let sql = "SELECT number, producer, print, state, life FROM post WHERE key = ?1";
    let entry = |row: &rusqlite::Row<'_>| {
        let (read, state) = (read(row)?, row.get::<_, i64>(3)?);
        Ok(match state {
            BEGUN => Entry::Begun(read),
            KEPT => Entry::Kept(read),
            _ => Entry::Theirs(row.get::<_, Option<_>>(4)?.map(Life::from_be_bytes)),
        })
    };
    connection.prepare_cached(sql)?.query_row([key], entry).optional()
}

/// All that were begun and are neither kept nor forgotten.
///
/// # Errors
/// SQLite's.
pub(super) fn unsettled(connection: &Connection) -> rusqlite::Result<Vec<Row>> {
    let sql = "SELECT number, producer, print FROM post WHERE state = 0 ORDER BY number";
    connection.prepare_cached(sql)?.query_map([], read)?.collect()
}

fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    Ok(Row { number: row.get(0)?, producer: row.get(1)?, print: row.get(2)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sqlite;

    struct File {
        connection: Connection,
        tally: Tally,
        bounds: Bounds,
        early: u64,
        _folder: tempfile::TempDir,
    }

    impl File {
        fn new(bounds: Bounds) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let connection = sqlite::open(&folder.path().join("posts.db"), MIGRATIONS).unwrap();
            let tally = Tally::of(&connection).unwrap();
            Self { connection, tally, bounds, early: 0, _folder: folder }
        }

        /// The last number, and how many there are.
        fn write(&mut self, writes: &[Write]) -> (u64, u64) {
            let done =
                commit(&self.connection, &mut Vec::new(), writes, &mut self.tally, self.bounds).unwrap();
            self.early += done.early;
            let counted = Tally::of(&self.connection).unwrap();
            assert_eq!((&counted.owners, counted.day), (&self.tally.owners, self.tally.day));
            (done.written.last().unwrap().clone().unwrap(), self.tally.standing().keys)
        }

        fn known(&self, keys: std::ops::RangeInclusive<u8>) -> Vec<u8> {
            keys.filter(|key| find(&self.connection, &[*key; 32]).unwrap().is_some()).collect()
        }
    }

    fn begin(key: u8, owner: &str, day: u64) -> Write {
        let (key, owner, producer) = ([key; 32], owner.to_owned(), "p".to_owned());
        Write::Begin(Begin { key, owner, print: key, producer, now: day * DAY })
    }

    #[test]
    fn too_many_keys_of_one_owner_are_told_and_cost_nobody_else_any() {
        let mut file = File::new(Bounds { most: 2, ..Bounds::default() });
        file.write(&[begin(1, "erp", 9), begin(2, "crm", 9)]);
        for _ in 0..5 {
            let (number, _) = file.write(&[begin(3, "erp", 9)]);
            assert_eq!(file.write(&[Write::Forget { number, producer: "p".to_owned() }]).1, 2, "refused");
        }
        for _ in 0..3 {
            file.write(&[4, 5, 6].map(|key| Write::Theirs { key: [key; 32], life: Some(1) }));
        }
        assert_eq!(file.known(1..=6), [1, 2, 5, 6]);
        assert_eq!(file.tally.standing().crowded, Vec::<String>::new());
        file.write(&[begin(7, "erp", 9), begin(8, "erp", 9), begin(8, "erp", 9)]);
        assert_eq!(file.known(1..=8), [2, 5, 6, 7, 8]);
        let standing = file.tally.standing();
        assert_eq!((standing.keys, file.early, standing.crowded), (5, 1, vec!["erp".to_owned()]));
        file.write(&[begin(9, "crm", 10)]);
        assert_eq!(file.tally.standing().crowded, ["erp"]);
        file.write(&[begin(9, "crm", 11)]);
        assert_eq!(file.tally.standing().crowded, Vec::<String>::new(), "it is over");
    }

    #[test]
    fn a_key_is_remembered_its_days_and_no_clock_forgets_it() {
        let mut file = File::new(Bounds { days: 3, ..Bounds::default() });
        file.write(&[begin(1, "erp", 100)]);
        // Forward by years, back again, and to and fro about midnight: two days.
        for day in [9_000, 101, 100, 101, 100] {
            file.write(&[begin(2, "erp", day)]);
        }
        assert_eq!(file.tally.day, 3);
        file.write(&[begin(3, "erp", 102)]);
        assert_eq!(file.known(1..=3), [1, 2, 3]);
        file.write(&[begin(4, "erp", 103)]);
        assert_eq!(file.known(1..=4), [2, 3, 4]);
    }

    #[test]
    fn an_old_key_that_cannot_be_deleted_refuses_nobody() {
        let mut file = File::new(Bounds { days: 1, ..Bounds::default() });
        file.write(&[begin(1, "erp", 100)]);
        // As a damaged page refuses it.
        let damage = "CREATE TRIGGER d BEFORE DELETE ON post WHEN old.number = 1 BEGIN SELECT RAISE(ABORT, 'damaged'); END";
        file.connection.execute_batch(damage).unwrap();
        for day in 101..105 {
            file.write(&[begin(2, "erp", day)]);
        }
        assert_eq!(file.known(1..=2), [1, 2]);
        file.connection.execute_batch("DROP TRIGGER d").unwrap();
        file.write(&[begin(2, "erp", 105)]);
        assert_eq!(file.known(1..=2), [2]);
    }

    #[test]
    fn old_keys_go_some_at_a_time() {
        let mut file = File::new(Bounds { days: 1, batch: 10, ..Bounds::default() });
        let old: Vec<Write> = (1..=25).map(|key| begin(key, "erp", 100)).collect();
        file.write(&old);
        file.write(&[begin(50, "erp", 101)]);
        let left: Vec<u64> = (0..4).map(|_| file.write(&[begin(51, "erp", 102)]).1).collect();
        assert_eq!(left, [17, 7, 2, 2]);
    }
}
