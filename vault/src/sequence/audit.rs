//! What an auditor asks of the ledger, proved from its rows alone: that nothing was altered, that
//! no number has two keys and no key two numbers, and that each number that is missing is missing
//! for a reason that the ledger itself gives. Pure; rows go in one after the other, of an export
//! or of a whole journal. Needs no vault.
//!
//! What cannot be seen in one export: an end that was cut off and closed with another `end` row,
//! and a confirmation or void at the end of a number's life that was hidden as a `skipped` row. The
//! first shows in the last hash, which `vault status` has too; the second in the whole journal.

mod findings;

use std::collections::{BTreeMap, HashMap, HashSet};

use rangemap::RangeInclusiveMap;
use sha2::{Digest as _, Sha256};
use shared::api::NumberState;

use super::book::{Known, SeriesName, given_up_for};
use super::carry::unused;
use super::definition::{base_of, period_of};
use super::entry::{Act, Entry, Grant, Tail};
use super::export::Row;
use super::standing::Standing;
pub use findings::{Findings, Missing, SeriesFindings, VoidNumber};

/// Most problems and spans that are named one by one.
const MAX_NAMED: usize = 100;

/// Takes rows, and tells in the end what is wrong with them.
#[derive(Debug, Default)]
pub struct Audit {
    tail: Tail,
    rows: u64,
    skipped: u64,
    ended: bool,
    apart: Option<u64>,
    standing: Standing,
    series: HashMap<SeriesName, Held>,
    problems: Vec<String>,
    more: u64,
}

/// What is kept of a series while rows go by.
#[derive(Debug, Default)]
struct Held {
    numbers: BTreeMap<u64, One>,
    /// Which number a key has.
    keys: HashMap<Short, u64>,
    /// Keys that were given up without one.
    burnt: HashSet<Short>,
    /// Ranges whose rest is lost, with their holder.
    lost: RangeInclusiveMap<u64, String>,
    /// The highest number given.
    last: u64,
}

/// What is kept of a number.
#[derive(Debug)]
struct One {
    key: Short,
    state: NumberState,
    reason: Option<String>,
    /// The hash of the document that uses it, or did before it was void.
    document: Option<Short>,
    /// The last entry about it.
    last: Tail,
}

/// A text by its digest, so that a long journal fits into memory.
type Short = [u8; 16];

fn short(text: &str) -> Short {
    let mut short = Short::default();
    short.copy_from_slice(&Sha256::digest(text)[..16]);
    short
}

impl Audit {
    /// Takes the next row.
    pub fn take(&mut self, row: Row) {
        if self.ended {
            self.problem("rows follow the end".to_owned());
        }
        match row {
            Row::Entry(entry) => {
                self.rows += 1;
                self.link(entry.index, &entry);
                self.tail = entry.tail();
                self.apply(&entry);
            }
            Row::Skipped { index, previous, hash } => {
                self.skipped += 1;
                if index != self.tail.index + 1 || previous != self.tail.hash {
                    self.problem(format!(
                        "entry {index}: it does not follow entry {}: entries are missing between them, or a hash was altered",
                        self.tail.index
                    ));
                }
                self.tail = Tail { index, hash };
            }
            Row::Apart { alone, .. } => self.apart = Some(alone),
            Row::End(tail) => {
                self.ended = true;
                if tail != self.tail {
                    self.problem(format!(
                        "the end: it says that entry {} is the last, but {} is, or the hash was altered",
                        tail.index, self.tail.index
                    ));
                }
            }
        }
    }

    /// All rows were taken. `whole`: is an `end` row wanted?
    #[must_use]
    pub fn finish(mut self, whole: bool) -> Findings {
        if whole && !self.ended {
            self.problem("the end is missing: the export broke off; write it again".to_owned());
        }
        let mut names: Vec<SeriesName> = self.series.keys().cloned().collect();
        names.sort();
        let mut series = Vec::new();
        for name in names {
            let Some(held) = self.series.remove(&name) else { continue };
            let missing = self.missing(&name, &held);
            series.push(found(name, &held, missing));
        }
        Findings {
            proved: self.problems.is_empty(),
            entries: self.rows,
            skipped: self.skipped,
            last_index: self.tail.index,
            last_hash: self.tail.hash.to_string(),
            apart: self.apart,
            series,
            problems: self.problems,
            more_problems: self.more,
        }
    }

    /// Is that what the rows so far say of the number?
    #[must_use]
    pub fn agrees(&self, name: &SeriesName, known: &Known) -> bool {
        let Known { number, index } = known;
        let one = self.series.get(name).and_then(|held| held.numbers.get(&number.number));
        one.is_some_and(|one| {
            one.key == short(&number.key)
                && one.state == number.state
                && one.reason == number.reason
                && one.document == number.document_hash.as_deref().map(short)
                && one.last.index == *index
                && one.last.hash.to_string() == number.entry_hash
        })
    }

    /// How many numbers were given so far, in all series.
    #[must_use]
    pub fn numbers(&self) -> u64 {
        self.series.values().map(|held| held.numbers.len() as u64).sum()
    }

    /// The last row taken.
    #[must_use]
    pub fn last(&self) -> Tail {
        self.tail
    }

    /// Something beside the rows is wrong.
    pub fn problem(&mut self, problem: String) {
        if self.problems.len() < MAX_NAMED {
            self.problems.push(problem);
        } else {
            self.more += 1;
        }
    }

    fn link(&mut self, index: u64, entry: &Entry) {
        if entry.follows(self.tail) {
            return;
        }
        let before = Tail { index: index.wrapping_sub(1), hash: entry.previous };
        if !entry.follows(before) {
            self.problem(format!("entry {index}: its hash is not that of what stands there: it was altered"));
        }
        if before != self.tail {
            self.problem(format!(
                "entry {index}: it does not follow entry {}: entries are missing between them, or a hash was altered",
                self.tail.index
            ));
        }
    }

    fn apply(&mut self, entry: &Entry) {
        let name = SeriesName { owner: entry.owner.clone(), series: entry.series.clone() };
        if is_about_numbers(&entry.act) {
            let next = self.standing.series(&name).map(|series| series.next(0));
            let held = self.series.entry(name.clone()).or_default();
            let wrong = match &entry.act {
                Act::Reserve(_) | Act::Spoil(_) => held.give(entry, next),
                Act::Supersede(_) if entry.number == 0 => held.burn(entry),
                Act::Lost(Grant { to, .. }) if entry.number <= *to => {
                    held.lost.insert(entry.number..=*to, entry.key.clone());
                    None
                }
                Act::Grant(Grant { to, .. }) | Act::Close(Grant { to, .. }) | Act::Lost(Grant { to, .. }) => {
                    (entry.number > *to).then(|| "a range that ends before it begins".to_owned())
                }
                _ => held.change(entry),
            };
            if let Some(wrong) = wrong {
                let period = period_of(&name.series).map_or_else(String::new, |period| format!(" {period}"));
                let series = format!("{}{period} of {}", base_of(&name.series), name.owner);
                self.problem(format!("entry {}: series {series}: {wrong}", entry.index));
            }
        }
        // A range that ends before it begins would not be taken by it.
        let is_sound = match entry.act {
            Act::Grant(grant) | Act::Close(grant) | Act::Lost(grant) => {
                (1..=grant.to).contains(&entry.number) && grant.to <= i64::MAX as u64
            }
            Act::Reserve(_) | Act::Spoil(_) => (1..=i64::MAX as u64).contains(&entry.number),
            _ => true,
        };
        if is_sound {
            let last = self.series.get(&name).map_or(0, |held| held.last);
            let _touched = self.standing.apply(entry, || last);
        }
    }

    /// The spans up to the highest number that were not given, each with its reason.
    fn missing(&mut self, name: &SeriesName, held: &Held) -> Vec<Missing> {
        let mut missing = Vec::new();
        let mut from = 1;
        for number in held.numbers.keys().copied() {
            if number > from {
                self.explain(name, held, from, number - 1, &mut missing);
            }
            from = number.saturating_add(1);
        }
        missing
    }

    /// Cuts a span into parts of one reason each.
    fn explain(&mut self, name: &SeriesName, held: &Held, from: u64, to: u64, missing: &mut Vec<Missing>) {
        let mut from = from;
        while from <= to {
            let open = self.standing.series(name).and_then(|series| {
                series.ranges().find(|(begin, range)| range.to >= from && *begin <= to).map(
                    |(begin, range)| {
                        (
                            begin,
                            range.to,
                            format!("set aside for {}, which may have given it alone", range.holder),
                        )
                    },
                )
            });
            let lost = held.lost.overlapping(from..=to).next().map(|(range, vault)| {
                let why = format!("unaccounted: {vault} lost what it may have given of it");
                (*range.start(), *range.end(), why)
            });
            let reason = [open, lost].into_iter().flatten().min_by_key(|(begin, ..)| *begin);
            let next = self.standing.series(name).and_then(|series| series.next(0));
            let (end, why) = match reason {
                Some((begin, end, why)) if begin <= from => (end.min(to), Some(why)),
                other => {
                    let end = other.map_or(to, |(begin, ..)| begin - 1);
                    // What comes next, or later, in a session.
                    let comes = next.is_some_and(|next| from >= next);
                    (end, comes.then(|| "comes next".to_owned()))
                }
            };
            match why {
                Some(why) if missing.len() < MAX_NAMED => missing.push(Missing { from, to: end, why }),
                Some(_) => {}
                None => self.problem(format!(
                    "series {} of {}: {} missing, and the ledger gives no reason: a hole",
                    name.series,
                    name.owner,
                    if from == end {
                        format!("number {from} is")
                    } else {
                        format!("numbers {from} to {end} are")
                    }
                )),
            }
            from = end.saturating_add(1);
        }
    }
}

impl Held {
    /// A number goes to a key. `next`: what a session gives next, where ranges are set aside.
    fn give(&mut self, entry: &Entry, next: Option<Option<u64>>) -> Option<String> {
        let (number, key) = (entry.number, short(&entry.key));
        if number == 0 || number > i64::MAX as u64 {
            return Some(format!("{number} is no number"));
        }
        if self.numbers.contains_key(&number) {
            return Some(format!("number {number} is given twice, now to key {}", entry.key));
        }
        if self.burnt.remove(&key) && entry.carried == 0 {
            return Some(format!("key {} is given number {number}, and was given up", entry.key));
        }
        if let Some(other) = self.keys.get(&key) {
            return Some(format!("key {} is given number {number}, and has {other} already", entry.key));
        }
        let expected = next.unwrap_or(self.last.checked_add(1));
        let is_next = entry.carried > 0 || expected == Some(number);
        let (state, reason) = match &entry.act {
            Act::Spoil(reason) => (NumberState::Void, Some(reason.clone())),
            _ => (NumberState::Reserved, None),
        };
        self.numbers.insert(number, One { key, state, reason, document: None, last: entry.tail() });
        self.keys.insert(key, number);
        self.last = self.last.max(number);
        let expected = expected.map_or_else(|| "none".to_owned(), |expected| expected.to_string());
        (!is_next).then(|| format!("number {number} is given, but {expected} comes next"))
    }

    /// A key without a number is given up.
    fn burn(&mut self, entry: &Entry) -> Option<String> {
        let key = short(&entry.key);
        if let Some(number) = self.keys.get(&key) {
            return Some(format!("key {} is given up as one without a number, and has {number}", entry.key));
        }
        let fresh = self.burnt.insert(key);
        (!fresh).then(|| format!("key {} is given up twice", entry.key))
    }

    fn change(&mut self, entry: &Entry) -> Option<String> {
        let (number, word) = (entry.number, entry.act.parts().0);
        let Some(one) = self.numbers.get_mut(&number) else {
            return Some(format!("{word} of number {number}, which nobody was given"));
        };
        if one.key != short(&entry.key) {
            return Some(format!("{word} of number {number} by key {}, which is another's", entry.key));
        }
        let before = one.state;
        let fits = match (&entry.act, before) {
            (Act::Confirm(_), NumberState::Reserved | NumberState::Doubtful) => NumberState::Confirmed,
            (Act::Void(_), NumberState::Reserved | NumberState::Confirmed | NumberState::Doubtful)
            | (Act::Supersede(_), NumberState::Reserved | NumberState::Doubtful)
            | (Act::Displace(_), _) => NumberState::Void,
            // That it was void was never answered, or it would not be doubted.
            (Act::Doubt, NumberState::Reserved | NumberState::Void) => NumberState::Doubtful,
            _ => return Some(format!("{word} of number {number}, which is {}", word_of(before))),
        };
        one.state = fits;
        one.last = entry.tail();
        match &entry.act {
            Act::Confirm(document) => one.document = Some(short(document)),
            Act::Void(reason) => one.reason = Some(reason.clone()),
            Act::Supersede(by) => one.reason = Some(given_up_for(by)),
            Act::Doubt => one.reason = None,
            Act::Displace(reason) => {
                one.reason = Some(reason.clone());
                // The key is free of it.
                self.keys.remove(&one.key);
                one.key = short(&unused(&entry.key, number));
            }
            _ => {}
        }
        None
    }
}

fn is_about_numbers(act: &Act) -> bool {
    matches!(
        act,
        Act::Reserve(_)
            | Act::Confirm(_)
            | Act::Void(_)
            | Act::Spoil(_)
            | Act::Displace(_)
            | Act::Doubt
            | Act::Supersede(_)
            | Act::Grant(_)
            | Act::Close(_)
            | Act::Lost(_)
    )
}

fn word_of(state: NumberState) -> &'static str {
    match state {
        NumberState::Reserved => "reserved",
        NumberState::Confirmed => "confirmed",
        NumberState::Void => "void",
        NumberState::Doubtful => "doubtful",
    }
}

fn found(name: SeriesName, held: &Held, missing: Vec<Missing>) -> SeriesFindings {
    let count = |state| held.numbers.values().filter(|one| one.state == state).count() as u64;
    let void = held.numbers.iter().filter(|(_, one)| one.state == NumberState::Void);
    let void = void.take(MAX_NAMED).map(|(number, one)| {
        let reason = one.reason.clone().unwrap_or_default();
        VoidNumber { number: *number, reason }
    });
    SeriesFindings {
        series: base_of(&name.series).to_owned(),
        period: period_of(&name.series).map(str::to_owned),
        given: held.numbers.len() as u64,
        last: held.last,
        confirmed: count(NumberState::Confirmed),
        reserved: count(NumberState::Reserved),
        void: void.collect(),
        voided: count(NumberState::Void),
        doubtful: count(NumberState::Doubtful),
        missing,
        owner: name.owner,
    }
}

/// For the fuzzer: whatever can be read can be audited.
pub fn fuzz(data: &[u8]) {
    let mut audit = Audit::default();
    let _unread = super::export::read(data, |row| audit.take(row));
    let findings = audit.finish(true);
    assert_eq!(findings.proved, findings.problems.is_empty());
}

#[cfg(test)]
mod tests {
    use shared::api::Number;

    use super::super::definition::Definition;
    use super::super::digest::Digest;
    use super::super::entry::{Birth, Draft};
    use super::super::export::{Format, read};
    use super::*;

    /// A chain of these acts of owner `erp`; a series of another name is another's.
    fn chain(acts: &[(&str, u64, &str, Act)]) -> Vec<Entry> {
        carried(&acts.iter().map(|(s, n, k, a)| (*s, *n, *k, a.clone(), 0)).collect::<Vec<_>>())
    }

    fn carried(acts: &[(&str, u64, &str, Act, u64)]) -> Vec<Entry> {
        let mut tail = Tail::default();
        let entry = |(series, number, key, act, carried): &(&str, u64, &str, Act, u64)| {
            let (owner, carried) = ("erp".to_owned(), (*carried > 0).then_some((9, *carried)));
            let (series, key) = ((*series).to_owned(), (*key).to_owned());
            let draft = Draft { owner, series, number: *number, key, act: act.clone(), at: 7, carried };
            let entry = Entry::append(tail, 1, 9, draft);
            tail = entry.tail();
            entry
        };
        acts.iter().map(entry).collect()
    }

    fn text(entries: &[Entry], format: Format) -> String {
        let mut text = format.head();
        let end = entries.last().map_or_else(Tail::default, Entry::tail);
        let rows = entries.iter().map(|entry| Row::of(entry.clone(), "erp", "INV"));
        for (place, row) in rows.chain([Row::End(end)]).enumerate() {
            text.push_str(&row.text(format, place == 0));
        }
        text + format.foot()
    }

    fn audited(text: &str) -> Result<Findings, String> {
        let mut audit = Audit::default();
        read(text.as_bytes(), |row| audit.take(row)).map_err(|error| error.to_string())?;
        Ok(audit.finish(true))
    }

    fn of(entries: &[Entry]) -> Findings {
        audited(&text(entries, Format::Csv)).unwrap()
    }

    fn reserve() -> Act {
        Act::Reserve(None)
    }

    fn good() -> Vec<Entry> {
        chain(&[
            ("", 0, "vault-a", Act::Life(Birth { life: 9, former: None, proven: false })),
            ("INV", 1, "a", reserve()),
            ("ORDER", 1, "a", reserve()),
            ("INV", 2, "b", Act::Reserve(Some(9))),
            ("INV", 1, "a", Act::Confirm("h".to_owned())),
            ("INV", 2, "b", Act::Void("torn, \"twice\"\nover".to_owned())),
            ("INV", 3, "c", reserve()),
        ])
    }

    #[test]
    fn a_whole_export_is_proved_and_shows_what_became_of_each_number() {
        for format in [Format::Csv, Format::Json] {
            let findings = audited(&text(&good(), format)).unwrap();
            assert!(findings.proved, "{findings:?}");
            assert_eq!((findings.entries, findings.skipped, findings.last_index), (5, 2, 7));
            assert_eq!(findings.last_hash, good()[6].hash.to_string());
            let [series] = findings.series.as_slice() else { panic!("{findings:?}") };
            assert_eq!((series.given, series.confirmed, series.voided, series.reserved), (3, 1, 1, 1));
            assert_eq!(series.void[0].reason, "torn, \"twice\"\nover");
            assert_eq!(series.missing, []);
        }
    }

    #[test]
    fn any_altered_field_of_an_export_is_found() {
        let good = text(&good(), Format::Json);
        let rows: Vec<serde_json::Value> = serde_json::from_str(&good).unwrap();
        let mut altered = 0;
        for place in 0..rows.len() {
            for field in rows[place].as_object().unwrap().keys() {
                let mut rows = rows.clone();
                rows[place][field] = match &rows[place][field] {
                    serde_json::Value::Number(number) => (number.as_u64().unwrap() + 1).into(),
                    serde_json::Value::String(text) if text.len() >= 32 => {
                        let first = if text.starts_with('0') { "1" } else { "0" };
                        format!("{first}{}", &text[1..]).into()
                    }
                    serde_json::Value::String(text) if field == "act" => match text.as_str() {
                        "reserve" => "doubt".into(),
                        "confirm" => "void".into(),
                        "void" => "confirm".into(),
                        "skipped" => "end".into(),
                        _ => "skipped".into(),
                    },
                    serde_json::Value::String(text) => format!("{text}x").into(),
                    other => panic!("{field}: {other}"),
                };
                let text = serde_json::to_string(&rows).unwrap();
                let found = audited(&text);
                assert!(!found.as_ref().is_ok_and(|found| found.proved), "row {place}, {field}: {found:?}");
                altered += 1;
            }
        }
        assert_eq!(altered, 5 * 13 + 2 * 4 + 3);
    }

    #[test]
    fn rows_left_out_doubled_or_moved_are_found() {
        let good = text(&good(), Format::Csv);
        // One reason has a line break in it.
        let mut rows = Vec::new();
        read(good.as_bytes(), |row| rows.push(row.text(Format::Csv, false))).unwrap();
        let audited = |rows: &[String]| audited(&(Format::Csv.head() + &rows.concat())).unwrap();
        assert!(audited(&rows).proved);
        for place in 0..rows.len() {
            let (mut without, mut doubled) = (rows.clone(), rows.clone());
            without.remove(place);
            assert!(!audited(&without).proved, "without row {place}");
            doubled.insert(place, rows[place].clone());
            assert!(!audited(&doubled).proved, "row {place} twice");
            if place > 0 {
                let mut moved = rows.clone();
                moved.swap(place, place - 1);
                assert!(!audited(&moved).proved, "row {place} before its time");
            }
            assert!(!audited(&rows[..place]).proved, "cut off before row {place}");
        }
    }

    #[test]
    fn whoever_writes_the_whole_chain_anew_is_found_out_by_what_it_says() {
        for (acts, told) in [
            (vec![("INV", 1, "a", reserve()), ("INV", 1, "b", reserve())], "number 1 is given twice"),
            (
                vec![("INV", 1, "a", reserve()), ("INV", 2, "a", reserve())],
                "key a is given number 2, and has 1",
            ),
            (
                vec![("INV", 1, "a", reserve()), ("INV", 3, "b", reserve())],
                "number 3 is given, but 2 comes next",
            ),
            (vec![("INV", 1, "a", reserve()), ("INV", 3, "b", reserve())], "number 2 is missing"),
            (vec![("INV", 1, "a", Act::Doubt)], "doubt of number 1, which nobody was given"),
            (
                vec![("INV", 1, "a", reserve()), ("INV", 1, "b", Act::Confirm("h".to_owned()))],
                "confirm of number 1 by key b",
            ),
            (
                vec![
                    ("INV", 1, "a", reserve()),
                    ("INV", 1, "a", Act::Void("x".to_owned())),
                    ("INV", 1, "a", Act::Confirm("h".to_owned())),
                ],
                "confirm of number 1, which is void",
            ),
            (vec![("INV", 0, "a", reserve())], "0 is no number"),
            (vec![("INV", u64::MAX, "a", reserve())], "is no number"),
        ] {
            let findings = of(&chain(&acts));
            assert!(!findings.proved);
            assert!(findings.problems.iter().any(|problem| problem.contains(told)), "{told}: {findings:?}");
        }
    }

    #[test]
    fn a_number_hidden_as_anothers_entry_is_missed() {
        let mut entries = good();
        entries[3].owner = "shop".to_owned();
        let findings = of(&entries);
        assert!(!findings.proved, "{findings:?}");
    }

    #[test]
    fn what_is_missing_is_named_with_its_reason() {
        let range = |to| Grant { to, life: 9 };
        let define = Act::Define(Definition { range: 10, ..Definition::default() });
        let start = [
            ("INV", 0, "", define, 0),
            ("INV", 11, "vault-a", Act::Grant(range(20)), 0),
            ("INV", 21, "vault-b", Act::Grant(range(30)), 0),
            ("INV", 1, "a", reserve(), 0),
            ("INV", 12, "b", reserve(), 1),
            ("INV", 23, "c", reserve(), 1),
        ];
        let findings = of(&carried(&start));
        assert!(findings.proved, "{findings:?}");
        let missing = |findings: &Findings| -> Vec<String> {
            let missing = &findings.series[0].missing;
            missing.iter().map(|m| format!("{}-{} {}", m.from, m.to, &m.why[..9])).collect()
        };
        assert_eq!(
            missing(&findings),
            ["2-10 comes nex", "11-11 set aside", "13-20 set aside", "21-22 set aside"]
        );
        // vault-b's range is lost, vault-a's is given back.
        let mut ended = start.to_vec();
        ended.push(("INV", 21, "vault-b", Act::Lost(range(30)), 0));
        ended.push(("INV", 11, "vault-a", Act::Close(range(20)), 0));
        let findings = of(&carried(&ended));
        assert!(findings.proved, "{findings:?}");
        assert_eq!(missing(&findings), ["2-11 comes nex", "13-20 comes nex", "21-22 unaccount"]);
        // A session leaves nothing out.
        ended.push(("INV", 2, "d", reserve(), 0));
        assert!(of(&carried(&ended)).proved);
        ended.push(("INV", 4, "e", reserve(), 0));
        assert!(!of(&carried(&ended)).proved);
    }

    #[test]
    fn a_journal_needs_no_end_and_an_empty_ledger_is_proved() {
        let mut audit = Audit::default();
        good().into_iter().for_each(|entry| audit.take(Row::Entry(entry)));
        let name = SeriesName { owner: "erp".to_owned(), series: "INV".to_owned() };
        let reserved = Number::reserved("INV".to_owned(), 3, "c".to_owned(), audit.last().hash.to_string());
        assert!(audit.agrees(&name, &Known { number: reserved.clone(), index: 7 }));
        assert!(!audit.agrees(&name, &Known { number: reserved, index: 6 }));
        let findings = audit.finish(false);
        assert!(findings.proved && findings.series.len() == 2, "{findings:?}");
        assert!(of(&[]).proved);
        assert_eq!(of(&[]).last_hash, Digest::default().to_string());
    }
}
