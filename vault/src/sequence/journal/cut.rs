//! What a cut takes back: entries that were never answered, and give way to the other vault's chain.
//! It must cost what is dropped, not what is kept, since the pair answers nobody meanwhile: so only
//! the numbers, keys and series that the dropped entries were about are derived anew. The chain is
//! walked for that only where they changed what older entries say, and of those it passes nothing is
//! read but what is about the same. Knows SQL; not why the entries give way.

use std::collections::{HashMap, HashSet};

use rusqlite::{Transaction, params};

use super::derived::{apply, name_of, put_lives, put_number, take_key};
use super::keys::{Change, Keys};
use super::{dropped, entry, records};
use crate::sequence::book::SeriesName;
use crate::sequence::entry::{Act, BATCH, Entry};
use crate::sequence::standing::Standing;

/// What entries change that older ones say of a number.
const CHANGED: &str = "SELECT * FROM entry WHERE idx > ?1 AND number > 0
     AND act IN ('confirm', 'void', 'displace', 'doubt', 'supersede')";

/// What the entries up to `?2` say of the numbers that later ones change.
const NUMBERS: &str = "SELECT * FROM entry WHERE idx BETWEEN ?1 AND ?2 AND number > 0
     AND act IN ('reserve', 'spoil', 'confirm', 'void', 'displace', 'doubt', 'supersede')
     AND (owner, series, number) IN (SELECT owner, series, number FROM entry WHERE idx > ?2
         AND act IN ('confirm', 'void', 'displace', 'doubt', 'supersede'))
     ORDER BY idx";

/// What the entries up to `?1` say of the keys that later ones free of what they had.
const KEYS: &str = "SELECT * FROM entry WHERE idx <= ?1
     AND act IN ('reserve', 'spoil', 'supersede', 'displace')
     AND (owner, series, key) IN (SELECT owner, series, key FROM entry WHERE idx > ?1
         AND (act = 'displace' OR act = 'reserve' AND carried > 0))
     ORDER BY idx";

/// What the entries up to `?1` say of lives, and of the available series that later ones count on.
const STANDING: &str = "SELECT act, carried, owner, series, number, * FROM entry WHERE idx <= ?1
     AND (act IN ('define', 'life', 'seal') OR carried > 0
         OR act IN ('reserve', 'spoil', 'grant', 'close', 'lost')
         AND (owner, series) IN (SELECT entry.owner, entry.series
             FROM entry JOIN series USING (owner, series) WHERE idx > ?1
             AND act IN ('reserve', 'spoil', 'grant', 'close', 'lost', 'define')))
     ORDER BY idx";

/// What the dropped entries may have changed of a [`Standing`].
#[derive(Debug, Default)]
struct Touched {
    /// Available series whose numbers or ranges they were about.
    series: HashSet<SeriesName>,
    /// Series that they defined.
    defined: HashSet<SeriesName>,
    lives: bool,
}

impl Touched {
    fn by(&mut self, entry: &Entry, standing: &Standing) {
        let name = name_of(entry);
        self.lives |= entry.carried > 0;
        match entry.act {
            Act::Life(_) | Act::Seal(_) => {
                self.lives = true;
                return;
            }
            Act::Define(_) => drop(self.defined.insert(name.clone())),
            Act::Reserve(_) | Act::Spoil(_) | Act::Grant(_) | Act::Close(_) | Act::Lost(_) => {}
            _ => return,
        }
        if standing.series(&name).is_some() {
            self.series.insert(name);
        }
    }
}

/// Drops the entries after `index`, which were never answered. Tells what the others leave, and of
/// which series that may be something else, unless all is as it was.
pub(super) fn cut_off(
    transaction: &Transaction<'_>,
    index: u64,
    keys: &Keys,
    change: &mut Change,
    standing: &Standing,
) -> rusqlite::Result<Option<(Standing, HashSet<SeriesName>)>> {
    change.cut(transaction, index)?;
    let last: u64 = transaction.query_row("SELECT coalesce(max(idx), 0) FROM entry", [], |row| row.get(0))?;
    let count = last.saturating_sub(index);
    if count == 0 {
        return Ok(None);
    }
    tracing::info!("sequence: {count} entries after {index}, never answered, give way: taken back now");
    let oldest = oldest(transaction, keys, change, index)?;
    let (mut touched, mut upto) = (Touched::default(), index);
    // However many there are, a few at a time are in memory.
    loop {
        let given_up: Vec<Entry> = transaction
            .prepare_cached("SELECT * FROM entry WHERE idx > ?1 ORDER BY idx LIMIT ?2")?
            .query_map(params![upto, BATCH], entry)?
            .collect::<rusqlite::Result<_>>()?;
        let Some(last) = given_up.last() else { break };
        upto = last.index;
        for entry in &given_up {
            keys.forget_key(transaction, change, entry)?;
            forget_number(transaction, entry)?;
            touched.by(entry, standing);
        }
        dropped::keep(transaction, &given_up)?;
        records::cut_off(transaction, &given_up, index)?;
    }
    dropped::cut_off(transaction, index)?;
    if let Some(oldest) = oldest {
        for entry in transaction.prepare(NUMBERS)?.query_map([oldest, index], entry)? {
            put_number(transaction, &entry?)?;
        }
    }
    put_keys_back(transaction, keys, change, index)?;
    let left = put_standing_back(transaction, touched, standing, index)?;
    transaction.execute("DELETE FROM entry WHERE idx > ?1", params![index])?;
    tracing::info!("sequence: {count} entries after {index} are taken back");
    Ok(left)
}

/// The first of the entries up to `index` about any number that later ones change; an earlier one
/// where that is not known. None: they change none of these.
fn oldest(
    transaction: &Transaction<'_>,
    keys: &Keys,
    change: &Change,
    index: u64,
) -> rusqlite::Result<Option<u64>> {
    let mut oldest = None;
    for entry in transaction.prepare(CHANGED)?.query_map([index], entry)? {
        match keys.gave(transaction, change, &entry?)? {
            Some(gave) if gave > index => {}
            Some(gave) => oldest = Some(oldest.map_or(gave, |oldest| gave.min(oldest))),
            // Its key has another number by now.
            None => return Ok(Some(1)),
        }
    }
    Ok(oldest)
}

/// Removes what is derived of the number that an entry is about.
fn forget_number(transaction: &Transaction<'_>, entry: &Entry) -> rusqlite::Result<()> {
    let Entry { owner, series, number, index, .. } = entry;
    let row = match entry.act {
        // A key that was given up without a number stands below all numbers.
        Act::Supersede(_) if *number == 0 => -index.cast_signed(),
        Act::Reserve(_)
        | Act::Spoil(_)
        | Act::Confirm(_)
        | Act::Void(_)
        | Act::Displace(_)
        | Act::Doubt
        | Act::Supersede(_) => number.cast_signed(),
        _ => return Ok(()),
    };
    transaction
        .prepare_cached("DELETE FROM number WHERE owner = ?1 AND series = ?2 AND number = ?3")?
        .execute(params![owner, series, row])
        .map(drop)
}

/// Keys that dropped entries had freed have again what they had.
fn put_keys_back(
    transaction: &Transaction<'_>,
    keys: &Keys,
    change: &mut Change,
    index: u64,
) -> rusqlite::Result<()> {
    let freed =
        "SELECT 1 FROM entry WHERE idx > ?1 AND (act = 'displace' OR act = 'reserve' AND carried > 0)";
    if !transaction.prepare(freed)?.exists([index])? {
        return Ok(());
    }
    let mut about = transaction.prepare(KEYS)?;
    for entry in about.query_map([index], entry)? {
        let entry = entry?;
        keys.forget_key(transaction, change, &entry)?;
        if is_burnt(&entry) {
            forget_number(transaction, &entry)?;
        }
    }
    for entry in about.query_map([index], entry)? {
        match entry? {
            entry if is_burnt(&entry) => apply(transaction, &entry, keys, change)?,
            entry => take_key(transaction, &entry, keys, change)?,
        }
    }
    Ok(())
}

/// Does it give up a key that has no number?
fn is_burnt(entry: &Entry) -> bool {
    matches!(entry.act, Act::Supersede(_)) && entry.number == 0
}

/// What the entries up to `index` leave of ranges, definitions and lives, as [`cut_off`] tells it.
fn put_standing_back(
    transaction: &Transaction<'_>,
    touched: Touched,
    standing: &Standing,
    index: u64,
) -> rusqlite::Result<Option<(Standing, HashSet<SeriesName>)>> {
    let Touched { series, defined, lives } = touched;
    if series.is_empty() && defined.is_empty() && !lives {
        return Ok(None);
    }
    let mut left = standing.without(&series);
    let mut last: HashMap<SeriesName, u64> = HashMap::new();
    let mut name = SeriesName::default();
    let mut statement = transaction.prepare(STANDING)?;
    let mut rows = statement.query([index])?;
    while let Some(row) = rows.next()? {
        let (owner, of) = (row.get_ref(2)?.as_str()?, row.get_ref(3)?.as_str()?);
        if (name.owner.as_str(), name.series.as_str()) != (owner, of) {
            name = SeriesName { owner: owner.to_owned(), series: of.to_owned() };
        }
        let number: u64 = row.get(4)?;
        let known = last.get(&name).copied().unwrap_or(0);
        let act = row.get_ref(0)?.as_str()?;
        if matches!(act, "reserve" | "spoil") {
            match last.get_mut(&name) {
                Some(last) => *last = number.max(*last),
                None => drop(last.insert(name.clone(), number)),
            }
        }
        // Nearly all are such, and nothing else of them matters.
        if act == "reserve" && row.get::<_, u64>(1)? == 0 {
            left.give(&name, number);
        } else {
            left.apply_again(&entry(row)?, || known, &series);
        }
    }
    put_lives(transaction, &left)?;
    let names: HashSet<SeriesName> = series.into_iter().chain(defined).collect();
    for SeriesName { owner, series } in &names {
        for table in ["series", "definition"] {
            let sql = format!("DELETE FROM {table} WHERE owner = ?1 AND series = ?2");
            transaction.prepare_cached(&sql)?.execute([owner, series])?;
        }
    }
    Ok(Some((left, names)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use proptest::prelude::*;
    use rusqlite::types::Value;

    use super::super::Journal;
    use crate::sequence::definition::{Definition, base_of};
    use crate::sequence::entry::{Act, Birth, Draft, Entry, Grant, Life, Tail};
    use crate::sequence::protocol::Write;
    use crate::sequence::standing::{LifeState, MAX_AVAILABLE, Standing};

    /// What stands in the table of that name. Of no record there is the same as of none.
    const DERIVED: [&str; 8] = [
        "entry",
        "number",
        "series",
        "definition",
        "life",
        "record",
        "record_key",
        "record_count WHERE records > 0",
    ];
    type Derived = (Vec<Vec<Vec<Value>>>, BTreeSet<(i64, u64)>, Standing);

    fn open(folder: &Path, name: &str) -> Journal {
        let journal = Journal::open(&folder.join(name), 5).unwrap();
        journal.relax().unwrap();
        journal
    }

    fn derived(journal: &Journal) -> Derived {
        let table = |name: &str| {
            let mut statement = journal.connection.prepare(&format!("SELECT * FROM {name}")).unwrap();
            let columns = statement.column_count();
            let row = |row: &rusqlite::Row<'_>| (0..columns).map(|at| row.get(at)).collect();
            statement.query_map([], row).unwrap().collect::<rusqlite::Result<_>>().unwrap()
        };
        let tables = DERIVED.iter().map(|name| table(name)).collect();
        (tables, journal.keys.all(&journal.connection), journal.standing().clone())
    }

    fn write(journal: &mut Journal, cut: Option<Tail>, entries: &[Entry]) -> bool {
        let memory = journal.memory().unwrap();
        journal.write(&Write { cut, entries: entries.to_vec(), rows: Vec::new(), memory }).is_ok()
    }

    /// The same entries, written as if there had never been others.
    fn fresh(folder: &Path, name: &str, entries: &[Entry]) -> Derived {
        let mut journal = open(folder, name);
        assert!(write(&mut journal, None, entries));
        derived(&journal)
    }

    fn at(entries: &[Entry], count: usize) -> Tail {
        count.checked_sub(1).map_or_else(Tail::default, |last| entries[last].tail())
    }

    /// Acts of all kinds about few numbers and keys, so that they meet; whether the ledger takes
    /// them is tried.
    fn draft((kind, number, key, series): (u8, u64, u8, usize), place: u64) -> Draft {
        let (owner, series) =
            [("erp", "INV"), ("erp", "INV/2026"), ("erp", "record"), ("shop", "INV")][series];
        // No two vaults live the same one.
        let life = Life::from(10 * u64::from(key % 2) + number);
        let from = 4 * number;
        let grant = Grant { to: from + 3, life };
        let text = || "why".to_owned();
        let definition = Definition {
            range: [0, 4][usize::from(key % 2)],
            pattern: (key % 3 == 0).then(|| "{year}-{n}".to_owned()),
            expires_after: None,
        };
        let content = r#"{"content":{"value":"v","json":false},"by":"www1","key":"#;
        let (number, act) = match kind {
            0..8 => (number, Act::Reserve(None)),
            8..12 => (number, Act::Reserve(Some(life))),
            12 => (number, Act::Spoil(text())),
            13 => (number, Act::Confirm(text())),
            14 => (number, Act::Void(text())),
            15 | 16 => (number, Act::Displace(text())),
            17 => (number, Act::Doubt),
            18 => (number, Act::Supersede(text())),
            19 | 20 => (0, Act::Supersede(text())),
            21 => (0, Act::Define(definition)),
            22 => (from, Act::Grant(grant)),
            23 => (from, Act::Close(grant)),
            24 => (from, Act::Lost(grant)),
            25 => (0, Act::Life(Birth { life, former: Some(life ^ 1), proven: number % 2 == 0 })),
            26 => (0, Act::Seal(life)),
            27 => (number, Act::Note(text())),
            28 => (number, Act::Put(format!("{content}\"{place}\"}}"))),
            _ => (number, Act::Remove),
        };
        let series = if kind == 21 { base_of(series) } else { series };
        let (owner, series) = (owner.to_owned(), series.to_owned());
        let carried = (8..12).contains(&kind).then_some((life, place));
        let key = if matches!(kind, 25 | 26) { format!("v{}", key % 2) } else { format!("k{key}") };
        Draft { owner, series, number, key, act, at: 0, carried }
    }

    /// As much of it as the ledger takes.
    fn chain(folder: &Path, drafts: Vec<Draft>) -> Vec<Entry> {
        let mut journal = open(folder, "tried.db");
        let mut entries: Vec<Entry> = Vec::new();
        for draft in drafts {
            let lived = |life| journal.standing().life(life);
            let comes = match (&draft.act, draft.carried) {
                (Act::Life(Birth { life, .. }), _) => {
                    lived(*life).is_none_or(|state| state == LifeState::Sealed)
                }
                (Act::Seal(life), _) => lived(*life).is_none(),
                (_, Some((life, _))) => lived(life).is_some(),
                _ => true,
            };
            let entry = Entry::append(at(&entries, entries.len()), 1, 7, draft);
            if comes && write(&mut journal, None, std::slice::from_ref(&entry)) {
                entries.push(entry);
            }
        }
        entries
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 96 } else { 2048 }))]
        #[test]
        fn a_journal_that_was_cut_is_as_one_that_never_had_what_was_dropped(
            acts in proptest::collection::vec((0_u8..30, 1_u64..8, 0_u8..6, 0_usize..4), 1..90),
            kept in 0_usize..90, step in 1_usize..20,
        ) {
            let folder = tempfile::tempdir().unwrap();
            let folder = folder.path();
            let drafts = (1..).zip(&acts).map(|(place, act)| draft(*act, place)).collect();
            let entries = chain(folder, drafts);
            let kept = kept.min(entries.len());
            let cut = Some(at(&entries, kept));
            let mut journal = open(folder, "cut.db");
            for some in entries.chunks(step) {
                assert!(write(&mut journal, None, some));
            }
            let (left, all) = (fresh(folder, "left.db", &entries[..kept]), fresh(folder, "all.db", &entries));
            prop_assert_eq!(derived(&journal), all.clone());
            prop_assert!(write(&mut journal, cut, &[]));
            prop_assert_eq!(derived(&journal), left.clone());
            prop_assert_eq!(derived(&Journal::open(&folder.join("cut.db"), 5).unwrap()), left);
            // What was dropped may come again, also with the cut itself.
            prop_assert!(write(&mut journal, None, &entries[kept..]));
            prop_assert_eq!(derived(&journal), all.clone());
            prop_assert!(write(&mut journal, cut, &entries[kept..]));
            prop_assert_eq!(derived(&journal), all.clone());
            prop_assert_eq!(derived(&Journal::open(&folder.join("cut.db"), 5).unwrap()), all);
        }
    }

    #[test]
    fn a_cut_makes_no_series_available_that_came_when_there_were_too_many() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let about = |series: usize, number: u64, key: &str, act: Act| {
            let (owner, series) = ("erp".to_owned(), format!("S{series}"));
            Draft { owner, series, number, key: key.to_owned(), act, at: 0, carried: None }
        };
        let define = |range: u64| Act::Define(Definition { range, ..Definition::default() });
        let all = 0..MAX_AVAILABLE + 5;
        let strict = all.clone().map(|series| about(series, 1, "a", Act::Reserve(None)));
        let available = all.clone().map(|series| about(series, 0, "", define(4)));
        let more = all.clone().map(|series| about(series, 2, "b", Act::Reserve(None)));
        let again = all.clone().map(|series| about(series, 0, "", define(5)));
        let entries = chain(folder, strict.chain(available).chain(more).chain(again).collect());
        assert_eq!(entries.len(), 4 * all.len());
        let mut journal = open(folder, "cut.db");
        for kept in (0..entries.len()).rev().step_by(13) {
            let cut = journal.tail().unwrap().index;
            assert!(write(&mut journal, None, &entries[usize::try_from(cut).unwrap()..]));
            assert!(write(&mut journal, Some(at(&entries, kept)), &[]));
            assert_eq!(derived(&journal), fresh(folder, &format!("{kept}.db"), &entries[..kept]), "{kept}");
        }
    }

    #[test]
    fn a_cut_of_what_is_new_reads_nothing_of_what_is_old() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = open(folder.path(), "journal.db");
        let of = |number: u64, act: Act| {
            let (owner, series, key) = ("erp".to_owned(), "INV".to_owned(), format!("k{number}"));
            Draft { owner, series, number, key, act, at: 0, carried: None }
        };
        let drafts = (1..=9).map(|number| of(number, Act::Reserve(None)));
        let confirm = |number: u64| of(number, Act::Confirm("h".to_owned()));
        let drafts = drafts.chain([confirm(9), of(10, Act::Reserve(None)), confirm(10), confirm(8)]);
        let entries = chain(folder.path(), drafts.collect());
        assert_eq!(entries.len(), 13);
        assert!(write(&mut journal, None, &entries));
        // Whoever reads one of these fails.
        journal.connection.execute("UPDATE entry SET act = 'unread' WHERE idx < 8", []).unwrap();
        assert!(write(&mut journal, Some(entries[9].tail()), &[]));
        let mut statement = journal.connection.prepare("SELECT idx FROM number ORDER BY number").unwrap();
        let last: Vec<u64> = statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        assert_eq!(last, [1, 2, 3, 4, 5, 6, 7, 8, 10]);
    }
}
