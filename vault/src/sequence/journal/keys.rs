//! Which entry gave a key its number. Keys come in no order, and an index that is brought up to
//! date with each of them writes one page a key: so the latest ones wait in memory, sorted, and go
//! into the table a few at a time, neighbours together. Nothing is lost by that: the entries are
//! the truth, and what was waiting is read from them again when the journal is opened.
//!
//! A key is found by the first 8 bytes of a hash of it; whether an entry is really about it, the
//! entry says.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, Transaction, ffi, params, params_from_iter};
use sha2::{Digest as _, Sha256};

use crate::sequence::book::SeriesName;
use crate::sequence::entry::{Act, BATCH, Entry};

/// So many keys are brought into the table in one sweep; few in tests, so that they see many.
const SWEEP: usize = if cfg!(test) { 1 << 10 } else { 1 << 16 };
/// Entries after which a sweep begins however few keys wait: opening the journal reads as many.
const LONGEST: u64 = 4 * SWEEP as u64;
/// Fewest keys that a write takes along while a sweep is under way.
const FEWEST: usize = 64;

/// Places that one statement takes: starting one has its price too.
const PLACES: usize = 32;

static PUT_MANY: LazyLock<String> = LazyLock::new(|| {
    format!("INSERT INTO key VALUES {} ON CONFLICT DO NOTHING", ["(?,?)"; PLACES].join(","))
});

/// A key's hash, and the entry that gave it its number.
type Place = (i64, u64);

/// The keys that wait, for the journal's writer and those who read beside it.
#[derive(Debug, Clone, Default)]
pub(super) struct Keys(Arc<Mutex<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    fresh: Places,
    /// What is being brought into the table.
    sweep: Places,
    /// That, from its upper end downwards.
    order: Vec<Place>,
    /// All keys of entries up to here are in the table when the sweep is done.
    upto: u64,
    /// All keys of entries up to here are in the table.
    done: u64,
}

/// Places, found by their hash.
#[derive(Debug, Default)]
struct Places {
    one: HashMap<i64, u64>,
    /// What shares its hash with one of those.
    more: BTreeSet<Place>,
}

/// Hashes of keys that the writer has looked for in vain since its last write: it need not look again.
pub(super) type Absent = HashSet<i64>;

/// No more are noted than two of the largest rounds look for.
const ABSENT: usize = 2 * BATCH;

/// What there is of a key's hash.
enum Looked {
    /// The entry that gave the key its number.
    Found(u64),
    /// Other keys alone.
    Others,
    Nothing,
}

impl Looked {
    fn found(self) -> Option<u64> {
        match self {
            Self::Found(index) => Some(index),
            Self::Others | Self::Nothing => None,
        }
    }
}

/// What one transaction changes, once it is durable.
#[derive(Debug, Default)]
pub(super) struct Change {
    absent: Absent,
    added: Places,
    /// Of those that wait.
    removed: BTreeSet<Place>,
    swept: usize,
    /// The chain was cut there first.
    cut: Option<u64>,
}

impl Keys {
    /// Those that were waiting when the journal was last closed.
    pub(super) fn read(connection: &Connection) -> rusqlite::Result<Self> {
        let done: u64 = connection.query_row("SELECT keyed FROM memory", [], |row| row.get(0))?;
        let mut fresh = Places::default();
        let mut statement = connection
            .prepare("SELECT idx, owner, series, key, act, number FROM entry WHERE idx > ?1 ORDER BY idx")?;
        let mut burnt = BTreeSet::new();
        let mut rows = statement.query([done])?;
        while let Some(row) = rows.next()? {
            let (owner, series, key): (String, String, String) = (row.get(1)?, row.get(2)?, row.get(3)?);
            let wanted = Wanted { owner: &owner, series: &series, key: &key };
            let place = (wanted.hash(), row.get(0)?);
            match row.get::<_, String>(4)?.as_str() {
                "supersede" if row.get::<_, u64>(5)? == 0 => {
                    fresh.insert(place);
                    burnt.insert(place);
                }
                "reserve" | "spoil" => {
                    let same: Vec<Place> = burnt.range((place.0, 0)..=(place.0, u64::MAX)).copied().collect();
                    for old in same {
                        if wanted.is_of(connection, old.1)? {
                            fresh.remove(old);
                        }
                    }
                    fresh.insert(place);
                }
                "displace" => {
                    let same: Vec<u64> = fresh.at(place.0).collect();
                    for index in same {
                        if wanted.is_of(connection, index)? {
                            fresh.remove((place.0, index));
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(Self(Arc::new(Mutex::new(Waiting { fresh, upto: done, done, ..Waiting::default() }))))
    }

    /// The entry that gave this key its number.
    pub(super) fn find(
        &self,
        connection: &Connection,
        absent: Option<&mut Absent>,
        name: &SeriesName,
        key: &str,
    ) -> rusqlite::Result<Option<u64>> {
        let wanted = Wanted { owner: &name.owner, series: &name.series, key };
        let hash = wanted.hash();
        if absent.as_ref().is_some_and(|absent| absent.contains(&hash)) {
            return Ok(None);
        }
        let looked = self.look(connection, &Change::default(), wanted, hash)?;
        // Another key of the same hash may be asked for next: it is noted only where there is none.
        if let (Looked::Nothing, Some(absent)) = (&looked, absent)
            && absent.len() < ABSENT
        {
            absent.insert(hash);
        }
        Ok(looked.found())
    }

    fn look(
        &self,
        connection: &Connection,
        change: &Change,
        wanted: Wanted<'_>,
        hash: i64,
    ) -> rusqlite::Result<Looked> {
        let mut looked = Looked::Nothing;
        let fits = |index: u64| -> rusqlite::Result<bool> {
            Ok(!change.removed.contains(&(hash, index)) && wanted.is_of(connection, index)?)
        };
        // What leaves memory is in the table by then: so memory first.
        let waiting = self.waiting().at(hash);
        for index in change.added.at(hash).chain(waiting) {
            if fits(index)? {
                return Ok(Looked::Found(index));
            }
            looked = Looked::Others;
        }
        let mut statement = connection.prepare_cached("SELECT idx FROM key WHERE hash = ?1")?;
        let mut rows = statement.query([hash])?;
        while let Some(row) = rows.next()? {
            let index = row.get(0)?;
            if fits(index)? {
                return Ok(Looked::Found(index));
            }
            looked = Looked::Others;
        }
        Ok(looked)
    }

    /// Notes that an entry has given its key a number. A key that has one already is an error:
    /// the last fence.
    pub(super) fn add(
        &self,
        transaction: &Transaction<'_>,
        change: &mut Change,
        entry: &Entry,
    ) -> rusqlite::Result<()> {
        let place = (Wanted::by(entry).hash(), entry.index);
        // It may have been noted for another key of the same hash: two of a round are looked at.
        if change.absent.remove(&place.0) && change.cut.is_none() {
            change.added.insert(place);
            return Ok(());
        }
        match self.look(transaction, change, Wanted::by(entry), place.0)?.found() {
            // It stood there before the cut, and nobody would look for it again.
            None if change.cut.is_some_and(|cut| entry.index <= cut) => {
                change.removed.remove(&place);
                put(transaction, place)
            }
            None => {
                change.added.insert(place);
                Ok(())
            }
            Some(index) if index == entry.index => Ok(()),
            Some(index) => {
                let taken = format!("entry {} gives a number to the key of entry {index}", entry.index);
                Err(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CONSTRAINT), Some(taken)))
            }
        }
    }

    /// Notes that a key is free of the number that it has.
    pub(super) fn free(
        &self,
        transaction: &Transaction<'_>,
        change: &mut Change,
        entry: &Entry,
    ) -> rusqlite::Result<()> {
        let hash = Wanted::by(entry).hash();
        match self.look(transaction, change, Wanted::by(entry), hash)?.found() {
            Some(index) => self.forget(transaction, change, (hash, index)),
            None => Ok(()),
        }
    }

    /// Notes that a key which was given up without a number has one after all. Tells the entry that
    /// gave it up.
    pub(super) fn free_burnt(
        &self,
        transaction: &Transaction<'_>,
        change: &mut Change,
        entry: &Entry,
    ) -> rusqlite::Result<Option<u64>> {
        let hash = Wanted::by(entry).hash();
        let Some(index) = self.look(transaction, change, Wanted::by(entry), hash)?.found() else {
            return Ok(None);
        };
        let mut statement =
            transaction.prepare_cached("SELECT 1 FROM entry WHERE idx = ?1 AND number = 0")?;
        if !statement.exists([index])? {
            return Ok(None);
        }
        self.forget(transaction, change, (hash, index))?;
        Ok(Some(index))
    }

    /// The entry that gave its number to the key of this one; `None` where that has another one, or
    /// none.
    pub(super) fn gave(
        &self,
        transaction: &Transaction<'_>,
        change: &Change,
        entry: &Entry,
    ) -> rusqlite::Result<Option<u64>> {
        let wanted = Wanted::by(entry);
        let Some(index) = self.look(transaction, change, wanted, wanted.hash())?.found() else {
            return Ok(None);
        };
        let mut statement =
            transaction.prepare_cached("SELECT 1 FROM entry WHERE idx = ?1 AND number = ?2")?;
        Ok(statement.exists([index, entry.number])?.then_some(index))
    }

    /// Whatever the entry says of its key counts no more.
    pub(super) fn forget_key(
        &self,
        transaction: &Transaction<'_>,
        change: &mut Change,
        entry: &Entry,
    ) -> rusqlite::Result<()> {
        match entry.act {
            Act::Reserve(_) | Act::Spoil(_) | Act::Supersede(_) => {
                self.forget(transaction, change, (Wanted::by(entry).hash(), entry.index))
            }
            _ => Ok(()),
        }
    }

    fn forget(
        &self,
        transaction: &Transaction<'_>,
        change: &mut Change,
        place: Place,
    ) -> rusqlite::Result<()> {
        change.added.remove(place);
        // What does not wait is gone with its line, however many there are.
        if self.waiting().at(place.0).contains(&place.1) {
            change.removed.insert(place);
        }
        transaction
            .prepare_cached("DELETE FROM key WHERE hash = ?1 AND idx = ?2")?
            .execute(params![place.0, place.1])
            .map(drop)
    }

    /// Takes keys into the table, about twice as many as come in: a sweep always ends.
    pub(super) fn sweep(&self, transaction: &Transaction<'_>, change: &mut Change) -> rusqlite::Result<()> {
        let most = FEWEST.max(2 * change.added.len());
        let (swept, ends) = {
            let waiting = self.waiting();
            let swept = waiting.order[waiting.order.len().saturating_sub(most)..].to_vec();
            let ends = swept.len() == waiting.order.len() && waiting.done < waiting.upto;
            (swept, ends.then_some(waiting.upto))
        };
        let left: Vec<Place> =
            swept.iter().filter(|place| !change.removed.contains(place)).copied().collect();
        let (many, rest) = left.as_chunks::<PLACES>();
        for places in many {
            let mut statement = transaction.prepare_cached(&PUT_MANY)?;
            statement.execute(params_from_iter(
                places.iter().flat_map(|(hash, index)| [*hash, index.cast_signed()]),
            ))?;
        }
        rest.iter().try_for_each(|place| put(transaction, *place))?;
        change.swept = swept.len();
        if let Some(upto) = ends.map(|upto| upto.min(change.cut.unwrap_or(upto))) {
            transaction.prepare_cached("UPDATE memory SET keyed = ?1")?.execute([upto])?;
        }
        Ok(())
    }

    /// The change is durable; the journal ends at `tail` now, if that changed.
    pub(super) fn changed(&self, change: Change, tail: Option<u64>) {
        let mut waiting = self.waiting();
        if let Some(cut) = change.cut {
            waiting.upto = waiting.upto.min(cut);
            waiting.done = waiting.done.min(cut);
        }
        for place in &change.removed {
            waiting.fresh.remove(*place);
            waiting.sweep.remove(*place);
        }
        let left = waiting.order.len().saturating_sub(change.swept);
        waiting.order.truncate(left);
        if !change.removed.is_empty() {
            waiting.order.retain(|place| !change.removed.contains(place));
        }
        waiting.fresh.one.reserve(change.added.one.len());
        change.added.all().for_each(|place| waiting.fresh.insert(place));
        if waiting.order.is_empty() {
            waiting.done = waiting.upto;
            waiting.sweep = Places::default();
            let due =
                |tail: &u64| waiting.fresh.len() >= SWEEP || tail.saturating_sub(waiting.done) >= LONGEST;
            if let Some(tail) = tail.filter(due) {
                waiting.sweep = std::mem::take(&mut waiting.fresh);
                waiting.order = waiting.sweep.all().collect();
                waiting.order.sort_unstable();
                waiting.upto = tail;
            }
        }
    }

    /// All that is in the table or waits.
    #[cfg(test)]
    pub(super) fn all(&self, connection: &Connection) -> BTreeSet<Place> {
        let mut statement = connection.prepare("SELECT hash, idx FROM key").unwrap();
        let stored = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        let waiting = self.waiting();
        stored.map(Result::unwrap).chain(waiting.fresh.all()).chain(waiting.sweep.all()).collect()
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn at(&self, hash: i64) -> Vec<u64> {
        self.fresh.at(hash).chain(self.sweep.at(hash)).collect()
    }
}

impl Places {
    /// The entries that this hash leads to.
    fn at(&self, hash: i64) -> impl Iterator<Item = u64> {
        let more = self.more.range((hash, 0)..).take_while(move |place| place.0 == hash);
        self.one.get(&hash).copied().into_iter().chain(more.map(|(_, index)| *index))
    }

    fn all(&self) -> impl Iterator<Item = Place> {
        self.one.iter().map(|(hash, index)| (*hash, *index)).chain(self.more.iter().copied())
    }

    fn insert(&mut self, (hash, index): Place) {
        if *self.one.entry(hash).or_insert(index) != index {
            self.more.insert((hash, index));
        }
    }

    fn remove(&mut self, (hash, index): Place) {
        self.more.remove(&(hash, index));
        if self.one.get(&hash) == Some(&index) {
            self.one.remove(&hash);
        }
    }

    fn len(&self) -> usize {
        self.one.len() + self.more.len()
    }
}

impl Change {
    /// A write that begins after these lookups.
    pub(super) fn after(absent: Absent) -> Self {
        Self { absent, ..Self::default() }
    }

    /// The entries after `index` are dropped; each of their keys is forgotten, too.
    pub(super) fn cut(&mut self, transaction: &Transaction<'_>, index: u64) -> rusqlite::Result<()> {
        self.cut = Some(index);
        transaction.execute("UPDATE memory SET keyed = min(keyed, ?1)", [index]).map(drop)
    }
}

fn put(transaction: &Transaction<'_>, (hash, index): Place) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("INSERT INTO key VALUES (?1, ?2) ON CONFLICT DO NOTHING")?
        .execute(params![hash, index])
        .map(drop)
}

/// A key of somebody's series.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    owner: &'a str,
    series: &'a str,
    key: &'a str,
}

impl<'a> Wanted<'a> {
    fn by(entry: &'a Entry) -> Self {
        Self { owner: &entry.owner, series: &entry.series, key: &entry.key }
    }

    /// Is that entry about it?
    fn is_of(self, connection: &Connection, index: u64) -> rusqlite::Result<bool> {
        connection
            .prepare_cached("SELECT 1 FROM entry WHERE idx = ?1 AND owner = ?2 AND series = ?3 AND key = ?4")?
            .exists(params![index, self.owner, self.series, self.key])
    }

    fn hash(self) -> i64 {
        let mut sha = Sha256::new();
        for field in [self.owner, self.series, self.key] {
            sha.update((field.len() as u64).to_be_bytes());
            sha.update(field.as_bytes());
        }
        let mut first = [0; 8];
        first.copy_from_slice(&sha.finalize()[..8]);
        i64::from_be_bytes(first)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Journal;
    use super::*;
    use crate::sequence::entry::{BATCH, Draft, Tail};
    use crate::sequence::protocol::Write;

    fn name() -> SeriesName {
        SeriesName { owner: "erp".to_owned(), series: "INV".to_owned() }
    }

    fn entry(tail: Tail, number: u64, key: &str, act: Act) -> Entry {
        let SeriesName { owner, series } = name();
        let draft = Draft { owner, series, number, key: key.to_owned(), act, at: 0, carried: None };
        Entry::append(tail, 1, 7, draft)
    }

    fn write(journal: &mut Journal, cut: Option<Tail>, entries: Vec<Entry>) {
        let memory = journal.memory().unwrap();
        journal.write(&Write { cut, entries, rows: Vec::new(), memory }).unwrap();
    }

    fn reserves(journal: &mut Journal, count: u64) {
        let mut tail = journal.tail().unwrap();
        let upto = tail.index + count;
        while tail.index < upto {
            let batch = (tail.index + 1..=upto).take(BATCH).map(|number| {
                let entry = entry(tail, number, &format!("k{number}"), Act::Reserve(None));
                tail = entry.tail();
                entry
            });
            let entries = batch.collect();
            write(journal, None, entries);
        }
    }

    fn number(journal: &Journal, key: &str) -> Option<u64> {
        journal.by_key(&name(), key).unwrap().map(|known| known.number.number)
    }

    #[test]
    fn keys_are_found_before_during_and_after_their_sweep_and_after_reopening() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("journal.db");
        let mut journal = Journal::open(&file, 5).unwrap();
        let reader = journal.reader().unwrap();
        let sweep = SWEEP as u64;
        let mut states = Vec::new();
        for count in [sweep - 1, sweep / 4, sweep / 2, sweep] {
            reserves(&mut journal, count);
            let last = journal.tail().unwrap().index;
            {
                let waiting = journal.keys.waiting();
                states.push((waiting.order.is_empty(), waiting.done > 0));
                assert!(waiting.fresh.len() + waiting.sweep.len() <= 2 * SWEEP + BATCH);
            }
            for journal in [&journal, &reader, &Journal::open_to_read(&file).unwrap()] {
                for number in (1..=last).step_by(997).chain([last]) {
                    assert_eq!(super::tests::number(journal, &format!("k{number}")), Some(number));
                }
                assert_eq!(super::tests::number(journal, "none"), None);
            }
        }
        assert_eq!(states[0], (true, false), "all wait");
        assert!(states.contains(&(false, false)), "on the way: {states:?}");
        assert!(states.iter().any(|(_, done)| *done), "swept: {states:?}");
    }

    #[test]
    fn what_is_cut_off_is_forgotten_and_what_stands_again_is_found_also_after_reopening() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("journal.db");
        let mut journal = Journal::open(&file, 5).unwrap();
        reserves(&mut journal, 3);
        let three = journal.tail().unwrap();
        // Key k1 is freed of number 1 and gets another; then both give way to another chain.
        let freed = entry(three, 1, "k1", Act::Displace("never answered".to_owned()));
        let again = entry(freed.tail(), 4, "k1", Act::Reserve(None));
        write(&mut journal, None, vec![freed, again]);
        assert_eq!(number(&journal, "k1"), Some(4));
        assert_eq!(number(&Journal::open_to_read(&file).unwrap(), "k1"), Some(4));
        write(&mut journal, Some(three), vec![entry(three, 4, "new", Act::Reserve(None))]);
        for journal in [&journal, &Journal::open_to_read(&file).unwrap()] {
            let found = ["k1", "k2", "k3", "new"].map(|key| number(journal, key));
            assert_eq!(found, [Some(1), Some(2), Some(3), Some(4)]);
        }
        let taken = entry(journal.tail().unwrap(), 5, "k1", Act::Reserve(None));
        let memory = journal.memory().unwrap();
        let refused = journal.write(&Write { cut: None, entries: vec![taken], rows: Vec::new(), memory });
        assert!(refused.unwrap_err().to_string().contains("entry 5 gives a number to the key of entry 1"));
    }

    #[test]
    fn however_much_is_cut_off_at_once_its_keys_are_free_again_and_the_others_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("journal.db");
        let mut journal = Journal::open(&file, 5).unwrap();
        reserves(&mut journal, 10);
        let kept = journal.tail().unwrap();
        // Of these some are in the table, some on their way, some wait.
        reserves(&mut journal, 3 * SWEEP as u64);
        let last = journal.tail().unwrap().index;
        write(&mut journal, Some(kept), Vec::new());
        let found = |journal: &Journal, upto: u64| {
            let keys = (1..=last).filter(|key| *key <= 20 || key % 97 == 0);
            keys.filter(|key| number(journal, &format!("k{key}")).is_some()).all(|key| key <= upto)
        };
        for journal in [&journal, &Journal::open_to_read(&file).unwrap()] {
            assert!((1..=10).all(|key| number(journal, &format!("k{key}")) == Some(key)));
            assert!(found(journal, 10));
        }
        reserves(&mut journal, 10);
        assert_eq!((number(&journal, "k20"), found(&journal, 20)), (Some(20), true));
    }

    #[test]
    fn a_key_looked_for_in_vain_is_found_once_it_has_a_number_and_gets_no_second_one() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(&folder.path().join("journal.db"), 5).unwrap();
        let memory = journal.memory().unwrap();
        let twice = |tail: Tail| {
            let first = entry(tail, 1, "k", Act::Reserve(None));
            vec![entry(first.tail(), 2, "k", Act::Reserve(None)), first].into_iter().rev().collect()
        };
        assert_eq!(number(&journal, "k"), None);
        let entries: Vec<Entry> = twice(Tail::default());
        let one = entries[..1].to_vec();
        journal.write(&Write { cut: None, entries, rows: Vec::new(), memory }).unwrap_err();
        assert_eq!(number(&journal, "k"), None);
        write(&mut journal, None, one);
        assert_eq!(number(&journal, "k"), Some(1));
        let again = entry(journal.tail().unwrap(), 2, "k", Act::Reserve(None));
        journal.write(&Write { cut: None, entries: vec![again], rows: Vec::new(), memory }).unwrap_err();
    }
}
