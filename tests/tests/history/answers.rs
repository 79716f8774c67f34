//! What must be answered at all: by a vault alone, and by both while the ledger's database is away
//! and nothing else is wrong, when after the documented deadline nobody waits for it any more. Pure;
//! part of the checker.

use std::collections::BTreeSet;
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
/// So few say nothing about how long they took.
const TELLING: usize = 10;

/// What a vault must answer alone: numbers of available series through every single failure, and
/// records where an operator has made it the owner. Tells `fault` in words of whatever is wrong.
pub(crate) fn alone(story: &Story, mut fault: impl FnMut(String)) {
    let is_available = |call: &Call| {
        let series = call.act.series().unwrap_or_default();
        !story.strict.iter().any(|strict| strict == series)
    };
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
        }
        if let Some(owner) = window.records {
            records_alone(story, window, owner, &mut fault);
        }
    }
}

/// The vault that an operator has made the owner alone tells and takes records.
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
            "{}: from {:?} to {:?} vault {owner}, made the owner, answered none of {} calls about records, the last with {:?}",
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
    for outage in &story.outages {
        let during: Vec<_> = story.calls.iter().filter(|call| is_due(call, outage)).collect();
        let kinds: BTreeSet<_> = during.iter().map(|call| (call.vault, call.act.series())).collect();
        let Outage { what, from, to } = outage;
        for (vault, series) in kinds {
            let of_kind = || during.iter().filter(|call| (call.vault, call.act.series()) == (vault, series));
            if of_kind().all(|call| call.line().is_none()) {
                let last = of_kind().next_back().map(|call| &call.outcome);
                fault(format!(
                    "{what}: from {from:?} to {to:?} vault {vault} answered none of {} calls for {}, the last with {last:?}",
                    of_kind().count(),
                    series.unwrap_or_default()
                ));
            }
        }
        let mut took: Vec<_> = during
            .iter()
            .filter(|call| call.invoked >= *from + WAIT && matches!(call.outcome, Outcome::Number(_)))
            .map(|call| call.ended.saturating_sub(call.invoked))
            .collect();
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

/// Was a number asked for meanwhile, and the answer not merely cut off by the outage's end?
fn is_due(call: &Call, outage: &Outage) -> bool {
    matches!(call.act, Act::Reserve { .. }) && call.invoked >= outage.from && call.ended <= outage.to
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Line;

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
        assert_eq!(found(&story(20, [false, false])), 2);
        assert_eq!(found(&story(1_100, [true, true])), 1);
    }
}
