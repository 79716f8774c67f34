//! What a request does to a number, given what the ledger already says of it: an answer, a
//! refusal, or an entry to be made. Pure; knows neither the pair nor the disk.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};
use shared::api::{Number, NumberState};

use super::definition::{Definition, base_of};
use super::entry::{Act, Draft, Life};
use super::standing::{MAX_AVAILABLE, Standing};

/// Whose series it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct SeriesName {
    /// The certificate's owner.
    pub owner: String,
    /// The name within that owner.
    pub series: String,
}

/// What a caller wants done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wish {
    /// A number for this key; the same key gets the same number for ever.
    Reserve {
        /// Chosen by the caller, unique in the series.
        key: String,
        /// The life of the vault that the key was first sent to, as its sender has written down.
        ticket: Option<Life>,
    },
    /// The sender of this key, who never heard its number, has taken another key instead.
    Supersede {
        /// The old key.
        key: String,
        /// The new one.
        by: String,
    },
    /// This document uses the number.
    Confirm {
        /// Which one.
        number: u64,
        /// Identifies the document.
        document_hash: String,
    },
    /// The number is spoiled.
    Void {
        /// Which one.
        number: u64,
        /// For the auditor.
        reason: String,
    },
    /// An operator says this of the series and all its periods.
    Define(Definition),
}

/// A number as the journal knows it, and the last entry about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// What callers see.
    pub number: Number,
    /// Index of the last entry about it.
    pub index: u64,
}

/// What the ledger says that matters to one wish.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Context {
    /// The number the wish is about, if there is one.
    pub known: Option<Known>,
    /// The series' highest number; 0 if it has none. For a [`Wish::Define`]: not 0
    /// if the series or one of its periods has any.
    pub last: u64,
}

/// Why a wish cannot be granted, whatever the pair's state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Refused {
    /// Nobody reserved it.
    #[error("series {series} has no number {number}")]
    Unknown {
        /// The series.
        series: String,
        /// What was asked for.
        number: u64,
    },
    /// The life that the key was first sent to may have answered it, and took the answer with it.
    #[error(
        "the vault that this key was first sent to lost what it had answered last: this key never gets a number; take a new key"
    )]
    KeyLost,
    /// Its sender has taken another key.
    #[error("key {key} was given up for key {by}: it never gets a number")]
    Superseded {
        /// The old key.
        key: String,
        /// The new one.
        by: String,
    },
    /// There is no doubt about that key.
    #[error("key {key} of series {series} has number {number}: use that one, or void it")]
    HasNumber {
        /// The series.
        series: String,
        /// The key that was to be given up.
        key: String,
        /// Its number.
        number: u64,
    },
    /// There are no more numbers.
    #[error("series {series} has no number left")]
    Exhausted {
        /// The series.
        series: String,
    },
    /// Another document has it.
    #[error("number {number} of series {series} is confirmed for another document, {document_hash}")]
    Confirmed {
        /// The series.
        series: String,
        /// The number.
        number: u64,
        /// What identifies that document.
        document_hash: String,
    },
    /// It is spoiled.
    #[error("number {number} of series {series} is void: {reason}")]
    Void {
        /// The series.
        series: String,
        /// The number.
        number: u64,
        /// As recorded.
        reason: String,
    },
    /// It is counted by other periods than the caller says.
    #[error("series {series} is counted otherwise since a moment ago: ask again")]
    Period {
        /// The series, as the caller meant it.
        series: String,
    },
    /// Each of them costs a little at every session.
    #[error(
        "{MAX_AVAILABLE} series and periods are available already, which is the most; define this one with range 0"
    )]
    TooMany,
    /// Two numbers might come to read the same.
    #[error(
        "series {series} has numbers already, and its pattern stays as it is, so that no two of its numbers ever read the same; define a new series"
    )]
    InUse {
        /// The series.
        series: String,
    },
}

/// What becomes of a wish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The ledger holds the answer already, as of the entry named.
    Answer(Known),
    /// No.
    Refuse(Refused),
    /// An entry must become final first.
    Make(Draft),
    /// An earlier wish of the same round touches the same number or key: ask again after it.
    Wait,
}

/// Decides one round of wishes: they become final together. Within a round a number or key
/// is touched once; the rest waits for the next round.
#[derive(Debug, Default)]
pub struct Round {
    last: HashMap<SeriesName, u64>,
    keys: HashMap<SeriesName, HashSet<String>>,
    defined: Vec<SeriesName>,
}

impl Round {
    /// What becomes of `wish` in a session. `at` only labels the entry (milliseconds since 1970).
    pub fn decide(
        &mut self,
        name: &SeriesName,
        wish: &Wish,
        context: Context,
        standing: &Standing,
        at: i64,
    ) -> Verdict {
        if self.defined.iter().any(|base| name.is_of(base)) {
            return Verdict::Wait;
        }
        let key = match (wish, &context.known) {
            (Wish::Define(definition), _) => {
                return self.define(name, definition, context.last, standing, at);
            }
            (Wish::Reserve { key, .. } | Wish::Supersede { key, .. }, _) => key,
            (_, Some(known)) => &known.number.key,
            (Wish::Confirm { number, .. } | Wish::Void { number, .. }, None) => {
                return Verdict::Refuse(Refused::Unknown { series: name.series.clone(), number: *number });
            }
        };
        if self.keys.get(name).is_some_and(|touched| touched.contains(key)) {
            return Verdict::Wait;
        }
        let key = key.clone();
        let verdict = match (wish, context.known) {
            (Wish::Reserve { key, ticket }, None) => {
                if !standing.counts(name) {
                    return Verdict::Refuse(Refused::Period { series: name.series.clone() });
                }
                let series = standing.series(name);
                if series.is_some() && ticket.is_some_and(|life| standing.is_lost(life)) {
                    return Verdict::Refuse(Refused::KeyLost);
                }
                let first = if series.is_some() { 0 } else { context.last };
                let last = place(&mut self.last, name, || first);
                let next = match series {
                    Some(series) => series.next(*last),
                    None => last.checked_add(1).filter(|next| *next <= i64::MAX as u64),
                };
                let Some(next) = next else {
                    return Verdict::Refuse(Refused::Exhausted { series: name.series.clone() });
                };
                *last = next;
                draft(name, next, key, Act::Reserve(*ticket), at)
            }
            (Wish::Supersede { key, by }, None) => draft(name, 0, key, Act::Supersede(by.clone()), at),
            (_, Some(known)) => match amend(name, wish, known, at) {
                Verdict::Make(draft) => draft,
                answered => return answered,
            },
            (Wish::Confirm { .. } | Wish::Void { .. } | Wish::Define(_), None) => unreachable!("done above"),
        };
        place(&mut self.keys, name, HashSet::default).insert(key);
        Verdict::Make(verdict)
    }

    /// What becomes of a definition. Whatever else the round does is not of its series.
    fn define(
        &mut self,
        name: &SeriesName,
        definition: &Definition,
        last: u64,
        standing: &Standing,
        at: i64,
    ) -> Verdict {
        if self.last.keys().any(|series| series.is_of(name)) {
            return Verdict::Wait;
        }
        let before = standing.definition(name).cloned().unwrap_or_default();
        let used = last > 0 || standing.names().any(|series| series.is_of(name));
        if used && !before.may_become(definition) {
            return Verdict::Refuse(Refused::InUse { series: name.series.clone() });
        }
        if definition.range > 0 && before.range == 0 && standing.is_full() {
            return Verdict::Refuse(Refused::TooMany);
        }
        self.defined.push(name.clone());
        Verdict::Make(draft(name, 0, "", Act::Define(definition.clone()), at))
    }
}

impl SeriesName {
    /// Is this `base`, or one of its periods?
    #[must_use]
    pub fn is_of(&self, base: &SeriesName) -> bool {
        self.owner == base.owner && base_of(&self.series) == base.series
    }
}

/// What becomes of a wish to confirm or void a number that is known.
pub(super) fn amend(name: &SeriesName, wish: &Wish, known: Known, at: i64) -> Verdict {
    let change = |known: &Known, act| draft(name, known.number.number, &known.number.key, act, at);
    match (wish, known.number.state) {
        (Wish::Reserve { .. }, _) if known.number.number == 0 => Verdict::Refuse(given_up(known.number)),
        (Wish::Supersede { by, .. }, NumberState::Doubtful) => {
            Verdict::Make(change(&known, Act::Supersede(by.clone())))
        }
        (Wish::Supersede { by, .. }, NumberState::Void) if successor(&known.number) == Some(by) => {
            Verdict::Answer(known)
        }
        (Wish::Supersede { .. }, _) if known.number.number == 0 => Verdict::Refuse(given_up(known.number)),
        (Wish::Supersede { key, .. }, _) => Verdict::Refuse(Refused::HasNumber {
            series: known.number.series,
            key: key.clone(),
            number: known.number.number,
        }),
        (Wish::Reserve { .. }, NumberState::Doubtful) => Verdict::Refuse(Refused::KeyLost),
        // A definition is about no number.
        (Wish::Reserve { .. } | Wish::Define(_), _) => Verdict::Answer(known),
        (Wish::Confirm { document_hash, .. }, NumberState::Reserved | NumberState::Doubtful) => {
            Verdict::Make(change(&known, Act::Confirm(document_hash.clone())))
        }
        (Wish::Confirm { document_hash, .. }, NumberState::Confirmed)
            if known.number.document_hash.as_deref() == Some(document_hash) =>
        {
            Verdict::Answer(known)
        }
        (Wish::Confirm { .. }, NumberState::Confirmed) => Verdict::Refuse(confirmed(known.number)),
        (
            Wish::Void { reason, .. },
            NumberState::Reserved | NumberState::Confirmed | NumberState::Doubtful,
        ) => Verdict::Make(change(&known, Act::Void(reason.clone()))),
        (Wish::Void { reason, .. }, NumberState::Void) if known.number.reason.as_deref() == Some(reason) => {
            Verdict::Answer(known)
        }
        (Wish::Confirm { .. } | Wish::Void { .. }, NumberState::Void) => Verdict::Refuse(void(known.number)),
    }
}

/// What is kept of a series; its name is copied only where nothing is yet.
fn place<'m, T>(
    of: &'m mut HashMap<SeriesName, T>,
    name: &SeriesName,
    first: impl FnOnce() -> T,
) -> &'m mut T {
    if !of.contains_key(name) {
        return of.entry(name.clone()).or_insert_with(first);
    }
    of.get_mut(name).unwrap_or_else(|| unreachable!("it is there"))
}

pub(super) fn draft(name: &SeriesName, number: u64, key: &str, act: Act, at: i64) -> Draft {
    let (owner, series) = (name.owner.clone(), name.series.clone());
    Draft { owner, series, number, key: key.to_owned(), act, at, carried: None }
}

/// Why the number of a key that was given up is void.
#[must_use]
pub fn given_up_for(by: &str) -> String {
    format!("{GIVEN_UP}{by}")
}

const GIVEN_UP: &str = "given up for key ";

/// The key that took this one's place.
#[must_use]
pub fn successor(number: &Number) -> Option<&str> {
    number.reason.as_deref()?.strip_prefix(GIVEN_UP)
}

pub(super) fn given_up(number: Number) -> Refused {
    let by = successor(&number).unwrap_or_default().to_owned();
    Refused::Superseded { key: number.key, by }
}

fn confirmed(number: Number) -> Refused {
    let Number { series, number, document_hash, .. } = number;
    Refused::Confirmed { series, number, document_hash: document_hash.unwrap_or_default() }
}

fn void(number: Number) -> Refused {
    Refused::Void { series: number.series, number: number.number, reason: number.reason.unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> SeriesName {
        SeriesName { owner: "erp".to_owned(), series: "INV".to_owned() }
    }

    fn known(number: u64, state: NumberState) -> Context {
        let number = Number {
            state,
            document_hash: (state == NumberState::Confirmed).then(|| "h".to_owned()),
            reason: (state == NumberState::Void).then(|| "torn".to_owned()),
            ..Number::reserved("INV".to_owned(), number, "k".to_owned(), String::new())
        };
        Context { known: Some(Known { number, index: 1 }), last: 9 }
    }

    fn reserve(key: &str) -> Wish {
        Wish::Reserve { key: key.to_owned(), ticket: None }
    }

    #[test]
    fn one_round_gives_consecutive_numbers_and_each_key_one() {
        let mut round = Round::default();
        let mut numbers = Vec::new();
        for key in ["a", "b", "a", "c"] {
            match round.decide(
                &name(),
                &reserve(key),
                Context { known: None, last: 4 },
                &Standing::default(),
                0,
            ) {
                Verdict::Make(draft) => numbers.push(draft.number),
                other => assert_eq!((key, other), ("a", Verdict::Wait)),
            }
        }
        assert_eq!(numbers, [5, 6, 7]);
    }

    #[test]
    fn the_same_key_gets_its_old_number() {
        let verdict = Round::default().decide(
            &name(),
            &reserve("k"),
            known(3, NumberState::Reserved),
            &Standing::default(),
            0,
        );
        assert!(matches!(verdict, Verdict::Answer(known) if known.number.number == 3));
    }

    #[test]
    fn a_number_is_confirmed_for_one_document_only() {
        let confirm = |hash: &str| Wish::Confirm { number: 3, document_hash: hash.to_owned() };
        let decide = |wish: &Wish, state| {
            Round::default().decide(&name(), wish, known(3, state), &Standing::default(), 0)
        };
        assert!(matches!(decide(&confirm("h"), NumberState::Reserved), Verdict::Make(_)));
        assert!(matches!(decide(&confirm("h"), NumberState::Confirmed), Verdict::Answer(_)));
        let Verdict::Refuse(refused) = decide(&confirm("x"), NumberState::Confirmed) else {
            panic!("granted")
        };
        assert_eq!(refused.to_string(), "number 3 of series INV is confirmed for another document, h");
        let Verdict::Refuse(refused) = decide(&confirm("h"), NumberState::Void) else { panic!("granted") };
        assert_eq!(refused.to_string(), "number 3 of series INV is void: torn");
    }

    #[test]
    fn a_definition_never_makes_two_numbers_read_the_same() {
        let by = |pattern: Option<&str>| Definition {
            pattern: pattern.map(str::to_owned),
            ..Definition::default()
        };
        let decide = |before: &Definition, now: &Definition, last| {
            let standing = Standing::restored([(name(), before.clone())], [], []);
            let context = Context { known: None, last };
            Round::default().decide(&name(), &Wish::Define(now.clone()), context, &standing, 0)
        };
        let (plain, through, yearly) = (by(None), by(Some("INV-{n}")), by(Some("{year}-{n}")));
        for (before, now) in [(&plain, &yearly), (&through, &by(Some("1{n}"))), (&yearly, &plain)] {
            assert!(matches!(decide(before, now, 0), Verdict::Make(_)), "nothing was given yet");
            assert_eq!(
                decide(before, now, 7),
                Verdict::Refuse(Refused::InUse { series: "INV".to_owned() }),
                "{before:?} {now:?}"
            );
        }
        let available = Definition { range: 50, expires_after: Some(60), ..through.clone() };
        for (before, now) in [(&plain, &through), (&through, &available), (&available, &through)] {
            assert!(matches!(decide(before, now, 7), Verdict::Make(_)), "{before:?} {now:?}");
        }
    }

    #[test]
    fn so_many_series_are_available_and_no_more() {
        let available = Definition { range: 9, ..Definition::default() };
        let define = |series: usize| (name_of(series), Act::Define(available.clone()));
        let (mut standing, mut tail) = (Standing::default(), crate::sequence::entry::Tail::default());
        let mut enter = |standing: &mut Standing, (name, act): (SeriesName, Act)| {
            let draft = draft(&name, 1, "k", act, 0);
            let entry = crate::sequence::entry::Entry::append(tail, 1, 7, draft);
            tail = entry.tail();
            let _touched = standing.apply(&entry, || 0);
        };
        let yearly = Definition { pattern: Some("{year}-{n}".to_owned()), ..available.clone() };
        enter(&mut standing, (name(), Act::Define(yearly.clone())));
        (0..MAX_AVAILABLE).map(define).for_each(|entry| enter(&mut standing, entry));
        let wish = |name: &SeriesName, definition: &Definition| {
            let wish = Wish::Define(definition.clone());
            Round::default().decide(name, &wish, Context::default(), &standing, 0)
        };
        assert_eq!(wish(&name_of(MAX_AVAILABLE), &available), Verdict::Refuse(Refused::TooMany));
        assert!(matches!(wish(&name_of(MAX_AVAILABLE), &Definition::default()), Verdict::Make(_)));
        let larger = Definition { range: 10, ..yearly };
        assert!(matches!(wish(&name(), &larger), Verdict::Make(_)), "it is available already");
        let period = SeriesName { series: "INV/2026".to_owned(), ..name() };
        enter(&mut standing, (period.clone(), Act::Reserve(None)));
        assert_eq!(standing.series(&period), None, "it is strict");
        enter(&mut standing, define(MAX_AVAILABLE));
        assert_eq!(standing.names().count(), MAX_AVAILABLE);
    }

    fn name_of(series: usize) -> SeriesName {
        SeriesName { series: format!("S{series}"), ..name() }
    }

    #[test]
    fn a_definition_shares_no_round_with_its_series() {
        let define = Wish::Define(Definition::default());
        let decide = |round: &mut Round, name: &SeriesName, wish: &Wish| {
            round.decide(name, wish, Context::default(), &Standing::default(), 0)
        };
        let other = SeriesName { owner: "erp".to_owned(), series: "ORDER".to_owned() };
        let mut round = Round::default();
        assert!(matches!(decide(&mut round, &name(), &reserve("a")), Verdict::Make(_)));
        assert_eq!(decide(&mut round, &name(), &define), Verdict::Wait);
        assert!(matches!(decide(&mut round, &other, &define), Verdict::Make(_)));
        assert_eq!(decide(&mut round, &other, &reserve("b")), Verdict::Wait);
    }

    #[test]
    fn a_period_that_the_series_has_not_is_refused() {
        let yearly = Definition { pattern: Some("{year}-{n}".to_owned()), ..Definition::default() };
        let standing = Standing::restored([(name(), yearly)], [], []);
        let in_year = SeriesName { series: "INV/2026".to_owned(), ..name() };
        let decide = |name: &SeriesName, standing: &Standing| {
            Round::default().decide(name, &reserve("a"), Context::default(), standing, 0)
        };
        assert!(matches!(decide(&in_year, &standing), Verdict::Make(_)));
        assert!(matches!(decide(&name(), &standing), Verdict::Refuse(Refused::Period { .. })));
        assert!(matches!(decide(&in_year, &Standing::default()), Verdict::Refuse(Refused::Period { .. })));
    }

    #[test]
    fn the_last_number_is_the_last() {
        let last = |last| {
            let context = Context { known: None, last };
            Round::default().decide(&name(), &reserve("a"), context, &Standing::default(), 0)
        };
        assert!(matches!(last(i64::MAX as u64 - 1), Verdict::Make(draft) if draft.number == i64::MAX as u64));
        let refused = Verdict::Refuse(Refused::Exhausted { series: "INV".to_owned() });
        assert_eq!(last(i64::MAX as u64), refused);
        assert_eq!(last(u64::MAX), refused);
    }

    #[test]
    fn a_number_nobody_reserved_can_be_neither_confirmed_nor_voided() {
        let wish = Wish::Void { number: 8, reason: "x".to_owned() };
        let verdict = Round::default().decide(&name(), &wish, Context::default(), &Standing::default(), 0);
        assert_eq!(verdict, Verdict::Refuse(Refused::Unknown { series: "INV".to_owned(), number: 8 }));
    }
}
