//! Was anybody told that there is no number where one was answered, or that there never will be one
//! where nothing was lost? Pure; part of the checker.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::check::{births, may_be_forgotten};
use crate::history::{Act, Outcome, Story};

/// Tells `fault` in words of every denial that is wrong.
pub(crate) fn check(story: &Story, mut fault: impl FnMut(String)) {
    not_denied(story, &mut fault);
    not_unknown(story, &mut fault);
    not_refused(story, &mut fault);
    not_given_up(story, &mut fault);
}

fn not_denied(story: &Story, fault: &mut impl FnMut(String)) {
    for series in story.calls.iter().filter_map(|call| call.act.series()).collect::<BTreeSet<_>>() {
        let births = births(story, series);
        for call in story.calls.iter().filter(|call| call.act.series() == Some(series)) {
            let (key, lost) = match (&call.act, &call.outcome) {
                (Act::Lookup { key, .. } | Act::Reserve { key, .. }, Outcome::Nothing) => (key, false),
                (Act::Reserve { key, .. }, Outcome::Refused { status: 410, .. }) => (key, true),
                _ => continue,
            };
            let Some((at, number)) = births.get(key.as_str()).and_then(|birth| birth.told) else { continue };
            // A key that was refused for good must not be answered later either.
            if (at < call.invoked || lost) && !may_be_forgotten(story, series, number) {
                let words = format!(
                    "{series}: key {key} was answered {number} at {at:?}; vault {} said at {:?} that there is none",
                    call.vault, call.ended
                );
                fault(words);
            }
        }
    }
}

/// Who confirms or spoils a number that somebody has been told is not told that there is none.
fn not_unknown(story: &Story, fault: &mut impl FnMut(String)) {
    let mut told: BTreeMap<(&str, u64), Duration> = BTreeMap::new();
    for call in &story.calls {
        if let Some((series, line)) = call.line() {
            let first = told.entry((series, line.number)).or_insert(call.ended);
            *first = call.ended.min(*first);
        }
    }
    for call in story.calls.iter().filter(|call| call.outcome == Outcome::Nothing) {
        let (Act::Confirm { series, number, .. } | Act::Void { series, number }) = &call.act else {
            continue;
        };
        let told = told.get(&(series.as_str(), *number));
        if let Some(at) = told.filter(|at| **at < call.invoked)
            && !may_be_forgotten(story, series, *number)
        {
            fault(format!(
                "{series} {number} was told at {at:?}; vault {} said at {:?} that there is no such number",
                call.vault, call.ended
            ));
        }
    }
}

/// Nobody here gives a key up for another one, and no series comes to its end: then no key is refused
/// with a conflict, whether it was answered before or not.
fn not_refused(story: &Story, fault: &mut impl FnMut(String)) {
    for call in &story.calls {
        if let (Act::Reserve { series, key, .. }, Outcome::Refused { status: 409, code }) =
            (&call.act, &call.outcome)
        {
            let (vault, at) = (call.vault, call.ended);
            fault(format!("{series}: vault {vault} refused key {key} at {at:?} with 409 {code}"));
        }
    }
}

/// Only a key whose first vault is no more, as it was then, is refused for good.
fn not_given_up(story: &Story, fault: &mut impl FnMut(String)) {
    for call in &story.calls {
        let Act::Reserve { series, key, ticket: Some(ticket) } = &call.act else { continue };
        if matches!(call.outcome, Outcome::Refused { status: 410, .. })
            && story.lives.get(ticket).is_some_and(|last| *last > call.ended)
        {
            let at = call.ended;
            let words = format!("{series}: key {key} was given up at {at:?}, and its ticket's life went on");
            fault(words);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::check::Promise;
    use crate::history::Outcome;
    use crate::made::{confirm, lookup, refused, reserve, strict, void};

    #[test]
    fn a_key_that_was_answered_and_is_denied_is_found() {
        strict().gets("a", 1).call(1, lookup("a"), Outcome::Nothing).breaks(Promise::NotDenied);
        strict().gets("a", 1).late().call(1, lookup("a"), Outcome::Nothing).is_well();
        let lost = || refused(410, "key_lost");
        strict().gets("a", 1).call(1, reserve("INV", "a"), lost()).breaks(Promise::NotDenied);
        strict().call(1, reserve("INV", "a"), lost()).gets("a", 1).breaks(Promise::NotDenied);
        strict().gets("a", 1).call(1, reserve("INV", "b"), lost()).is_well();
    }

    #[test]
    fn a_key_that_is_given_up_while_its_first_vault_lives_is_found() {
        let mut lost = strict().call(1, reserve("INV", "a"), refused(410, "key_lost"));
        lost.is_well();
        lost.0.lives.insert("life".to_owned(), Duration::ZERO);
        lost.is_well();
        lost.0.lives.insert("life".to_owned(), Duration::from_secs(9));
        lost.breaks(Promise::NotDenied);
    }

    #[test]
    fn a_number_that_was_told_and_is_unknown_to_who_decides_it_is_found() {
        for act in [confirm(1), void(1)] {
            let denied = || strict().gets("a", 1).call(1, act.clone(), Outcome::Nothing);
            denied().breaks(Promise::NotDenied);
            // Whoever spoke of it while nobody had been told yet may not have been heard.
            strict().gets("a", 1).late().call(1, act.clone(), Outcome::Nothing).is_well();
            strict().call(1, act.clone(), Outcome::Nothing).gets("a", 1).is_well();
            // Where it alone had it and lost its journal since, it cannot know.
            let mut lost = strict().gets("a", 1).call(0, act.clone(), Outcome::Nothing).loses(0, 0, 1);
            lost.breaks(Promise::NotDenied);
            lost.0.strict.clear();
            lost.is_well();
        }
        let elsewhere = void(2);
        strict().gets("a", 1).call(1, elsewhere, Outcome::Nothing).is_well();
    }

    #[test]
    fn a_key_that_is_refused_for_good_without_its_sender_having_given_it_up_is_found() {
        for code in ["key_superseded", "series_exhausted", ""] {
            strict().call(0, reserve("INV", "a"), refused(409, code)).breaks(Promise::NotDenied);
            strict().gets("a", 1).call(0, reserve("INV", "a"), refused(409, code)).breaks(Promise::NotDenied);
        }
        // Of a number it may be said.
        strict().gets("a", 1).call(0, confirm(1), refused(409, "already_void")).is_well();
        strict().gets("a", 1).call(0, reserve("INV", "a"), Outcome::Nothing).breaks(Promise::NotDenied);
    }
}
