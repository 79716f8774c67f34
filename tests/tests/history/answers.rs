//! What must be answered at all: by a vault alone, and by both while the ledger's database is away
//! and nothing else is wrong, when after the documented deadline nobody waits for it any more. Pure;
//! part of the checker.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::history::{Act, Call, Outage, Outcome, Story, Window};

/// How soon a vault must give numbers alone: it has to notice that the other is away.
const NOTICE: Duration = Duration::from_secs(5);
/// A shorter window says nothing.
const LONG: Duration = Duration::from_secs(7);
/// How long a reply may wait for the database (`sequence.database.wait`), and as much again for a
/// busy machine.
const WAIT: Duration = Duration::from_secs(2);
/// Afterwards the database is behind, and half of all callers must be answered sooner than this.
const SOON: Duration = Duration::from_millis(800);
/// Fewer are no answer, and say nothing about how long they took.
const TELLING: usize = 10;
/// The code that stands here for a refusal because nothing is left of what was set aside: the vaults
/// say `peer_away`, and why in words.
pub(crate) const USED_UP: &str = "used_up";
/// So few of one kind say nothing.
const FEW: usize = 3;

/// What a vault must answer alone: numbers of available series through every single failure, and
/// records where an operator has made it the owner; whatever it is asked where it needs no other.
/// Tells `fault` in words of whatever is wrong.
pub(crate) fn alone(story: &Story, mut fault: impl FnMut(String)) {
    let is_available = |call: &Call| {
        let series = call.act.series().unwrap_or_default();
        story.apart || !story.strict.iter().any(|strict| strict == series)
    };
    let fresh = fresh(story);
    for window in story.windows.iter().filter(|window| window.to.saturating_sub(window.from) >= LONG) {
        for living in &window.living {
            let due: Vec<_> = story
                .calls
                .iter()
                .filter(|call| call.vault == *living && is_available(call))
                .filter(|call| matches!(&call.act, Act::Reserve { ticket: Some(_), .. }))
                .filter(|call| call.invoked >= window.from + NOTICE && call.ended <= window.to)
                .collect();
            let answered = due.iter().any(|call| matches!(call.outcome, Outcome::Number(_)));
            if !due.is_empty() && !answered {
                let words = format!(
                    "{}: from {:?} to {:?} vault {living} answered none of {} calls, the last with {:?}",
                    window.what,
                    window.from,
                    window.to,
                    due.len(),
                    due.last().map(|call| &call.outcome)
                );
                fault(words);
            }
            most_new_keys(&fresh, story, window, *living, &is_available, &mut fault);
        }
        let owners: Vec<usize> =
            if story.apart { window.living.clone() } else { window.records.into_iter().collect() };
        for owner in owners {
            records_alone(story, window, owner, &mut fault);
        }
    }
}

/// A key that was sent nowhere else, with a ticket of the vault's own life, is refused for one reason
/// alone: that nothing is left of what was set aside. Some may meet a moment's trouble; not most.
fn most_new_keys(
    fresh: &[&Call],
    story: &Story,
    window: &Window,
    living: usize,
    is_available: &impl Fn(&Call) -> bool,
    fault: &mut impl FnMut(String),
) {
    // That a life was seen after the window began tells that it was the living vault's throughout.
    let lives = |call: &Call| match &call.act {
        Act::Reserve { ticket: Some(ticket), .. } => {
            story.lives.get(ticket).is_some_and(|last| *last >= window.from)
        }
        _ => false,
    };
    let within = |call: &Call| call.invoked >= window.from + NOTICE && call.ended <= window.to;
    let due: Vec<_> = fresh
        .iter()
        .filter(|call| call.vault == living && is_available(call) && within(call) && lives(call))
        .collect();
    let refused: Vec<_> = due
        .iter()
        .filter(|call| matches!(&call.outcome, Outcome::Refused { code, .. } if code != USED_UP))
        .collect();
    if due.len() >= FEW && refused.len() * 2 > due.len() {
        fault(format!(
            "{}: from {:?} to {:?} vault {living} refused {} of {} new keys, the last with {:?}",
            window.what,
            window.from,
            window.to,
            refused.len(),
            due.len(),
            refused.last().map(|call| &call.outcome)
        ));
    }
}

/// A vault that an operator has made the owner alone, or that needs no other, tells and takes records.
fn records_alone(story: &Story, window: &Window, owner: usize, fault: &mut impl FnMut(String)) {
    let is_due = |call: &&Call| {
        let is_record = matches!(call.act, Act::Read { .. } | Act::Write { .. });
        let within = call.invoked >= window.from + NOTICE && call.ended <= window.to;
        call.vault == owner && is_record && within
    };
    let due: Vec<_> = story.calls.iter().filter(is_due).collect();
    let is_answer = |call: &&&Call| {
        matches!(
            call.outcome,
            Outcome::Version { .. } | Outcome::Nothing | Outcome::Refused { status: 412, .. }
        )
    };
    if !due.is_empty() && !due.iter().any(|call| is_answer(&call)) {
        let words = format!(
            "{}: from {:?} to {:?} vault {owner} answered none of {} calls about records, the last with {:?}",
            window.what,
            window.from,
            window.to,
            due.len(),
            due.last().map(|call| &call.outcome)
        );
        fault(words);
    }
}

/// The database's outage alone stops nothing, and after a while nobody waits for it. Tells `fault` in
/// words of whatever is wrong.
pub(crate) fn outages(story: &Story, mut fault: impl FnMut(String)) {
    let fresh = fresh(story);
    for Outage { what, from, to } in &story.outages {
        let during: Vec<_> = fresh.iter().filter(|call| call.invoked >= *from && call.ended <= *to).collect();
        let answered = during.iter().filter(|call| call.line().is_some()).count();
        if answered < TELLING {
            fault(format!("{what}: from {from:?} to {to:?} only {answered} new numbers were given"));
        }
        let late: Vec<_> = during.into_iter().filter(|call| call.invoked >= *from + WAIT).collect();
        let kinds: BTreeSet<_> = late.iter().map(|call| (call.vault, call.act.series())).collect();
        for (vault, series) in kinds {
            let of_kind = || late.iter().filter(|call| (call.vault, call.act.series()) == (vault, series));
            if of_kind().count() >= FEW && of_kind().all(|call| call.line().is_none()) {
                let last = of_kind().next_back().map(|call| &call.outcome);
                fault(format!(
                    "{what}: from {from:?} to {to:?} vault {vault} answered none of {} calls for {}, the last with {last:?}",
                    of_kind().count(),
                    series.unwrap_or_default()
                ));
            }
        }
        let took = late.iter().filter(|call| call.line().is_some());
        let mut took: Vec<_> = took.map(|call| call.ended.saturating_sub(call.invoked)).collect();
        took.sort_unstable();
        match took.get(took.len() / 2) {
            Some(median) if took.len() >= TELLING && *median > SOON => fault(format!(
                "{what}: from {from:?} to {to:?} half of {} answers took longer than {median:?}",
                took.len()
            )),
            _ => {}
        }
    }
}

/// The first call for each key: further ones find its number in the journals.
fn fresh(story: &Story) -> Vec<&Call> {
    let mut first: BTreeMap<(&str, &str), &Call> = BTreeMap::new();
    for call in &story.calls {
        if let Act::Reserve { series, key, .. } = &call.act {
            let first = first.entry((series, key)).or_insert(call);
            if call.invoked < first.invoked {
                *first = call;
            }
        }
    }
    first.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Promise;
    use crate::history::Line;
    use crate::made::{Made, line, refused, reserve};

    fn story(took: u64, answered: [bool; 2]) -> Story {
        let outage =
            Outage { what: "frozen".to_owned(), from: Duration::from_secs(10), to: Duration::from_secs(60) };
        let mut story = Story { outages: vec![outage], ..Story::default() };
        for turn in 0..40_u64 {
            let vault = usize::from(turn % 2 == 1);
            let (invoked, key) = (Duration::from_secs(11 + turn), format!("k{turn}"));
            let line = Line { number: turn + 1, key: key.clone(), state: "reserved".to_owned(), hash: None };
            let outcome = if answered[vault] {
                Outcome::Number(line)
            } else {
                Outcome::Refused { status: 503, code: "peer_away".to_owned() }
            };
            let act = Act::Reserve { series: "INV".to_owned(), key, ticket: None };
            let ended = invoked + Duration::from_millis(took);
            story.calls.push(Call { vault, invoked, ended, act, outcome });
        }
        story
    }

    fn found(story: &Story) -> usize {
        let mut found = 0;
        outages(story, |_| found += 1);
        found
    }

    #[test]
    fn an_outage_that_stops_a_vault_or_makes_everybody_wait_is_found() {
        assert_eq!(found(&story(20, [true, true])), 0);
        assert_eq!(found(&story(20, [true, false])), 1);
        // Each of them, and both together.
        assert_eq!(found(&story(20, [false, false])), 3);
        assert_eq!(found(&story(1_100, [true, true])), 1);
    }

    /// A vault alone, asked for twelve keys with a ticket of its life.
    fn asked(outcome: impl Fn(u64, &str) -> Outcome) -> Made {
        let mut made = Made::default();
        for turn in 0..12 {
            let key = format!("k{turn}");
            made = made.call(1, reserve("TKT", &key), outcome(turn, &key));
        }
        let (what, living) = ("Kill(0)".to_owned(), vec![1]);
        let (from, to) = (Duration::ZERO, Duration::from_secs(20));
        made.0.windows.push(Window { what, living, from, to, records: None });
        made.0.lives.insert("life".to_owned(), to);
        made
    }

    #[test]
    fn a_vault_alone_that_refuses_most_new_keys_is_found() {
        let every = |which: u64, code: &'static str| {
            asked(move |turn, key| {
                if turn % which == which - 1 {
                    Outcome::Number(line(turn + 1, key, "reserved"))
                } else {
                    refused(503, code)
                }
            })
        };
        every(1, "peer_away").is_well();
        every(2, "peer_away").is_well();
        every(3, "peer_away").breaks(Promise::Answers);
        // It has no more to give.
        every(3, USED_UP).is_well();
        // A ticket of a life that was over before is no ticket there.
        let mut former = every(3, "peer_away");
        former.0.lives.clear();
        former.is_well();
        // Nor is a key that was tried before a new one.
        let mut tried = every(3, "peer_away");
        for call in &mut tried.0.calls {
            if call.line().is_none() {
                call.act = reserve("TKT", "k0");
            }
        }
        tried.is_well();
    }
}
