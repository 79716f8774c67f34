//! Are records linearizable? Every write names the version it replaces and is answered with its
//! own, so versions are the order; what is left to check is that the order fits what everybody
//! saw and when. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::check::is_harmless;
use crate::history::{Act, Call, Outcome};

/// One sight of a version: a write's answer or a read's. 0 stands for "there is none".
struct Sight {
    invoked: Duration,
    ended: Duration,
    version: u64,
    wrote: bool,
}

/// Tells every fault of every record.
pub(crate) fn check(calls: &[Call], mut fault: impl FnMut(String)) {
    let mut records: BTreeMap<&str, Vec<&Call>> = BTreeMap::new();
    for call in calls {
        if let Act::Write { record, .. } | Act::Read { record } = &call.act {
            records.entry(record).or_default().push(call);
        }
    }
    for (record, calls) in records {
        one_value_each(record, &calls, &mut fault);
        one_successor_each(record, &calls, &mut fault);
        never_back(record, &calls, &mut fault);
    }
}

/// A version has one value, and it is one that somebody wrote, or may have written.
fn one_value_each(record: &str, calls: &[&Call], fault: &mut impl FnMut(String)) {
    let mut values: BTreeMap<u64, BTreeSet<&str>> = BTreeMap::new();
    let mut possible = BTreeSet::new();
    for call in calls {
        match (&call.act, &call.outcome) {
            (Act::Write { value, .. }, Outcome::Version { version, .. }) => {
                values.entry(*version).or_default().insert(value);
                possible.insert(value.as_str());
            }
            (Act::Write { value, .. }, outcome) if !is_harmless(outcome) => {
                possible.insert(value.as_str());
            }
            (Act::Read { .. }, Outcome::Version { version, value: Some(value) }) => {
                values.entry(*version).or_default().insert(value);
            }
            _ => {}
        }
    }
    for (version, values) in &values {
        if values.len() > 1 {
            fault(format!("{record}: version {version} is {values:?}"));
        }
        for value in values.iter().filter(|value| !possible.contains(**value)) {
            fault(format!("{record}: version {version} is {value}, which nobody wrote"));
        }
    }
}

/// A version is replaced once, by the next one.
fn one_successor_each(record: &str, calls: &[&Call], fault: &mut impl FnMut(String)) {
    let mut successors: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    for call in calls {
        if let (Act::Write { base, .. }, Outcome::Version { version, .. }) = (&call.act, &call.outcome) {
            if *version != base + 1 {
                fault(format!("{record}: version {base} was replaced by {version}"));
            }
            successors.entry(*base).or_default().insert(*version);
        }
    }
    for (base, successors) in successors.iter().filter(|(_, successors)| successors.len() > 1) {
        fault(format!("{record}: version {base} was replaced by {successors:?}"));
    }
}

/// Whoever asks later sees no earlier version; whoever writes later makes a later one.
fn never_back(record: &str, calls: &[&Call], fault: &mut impl FnMut(String)) {
    // A write that is sent again with the same key is still one write.
    let mut writes: BTreeMap<&str, Sight> = BTreeMap::new();
    let mut sights = Vec::new();
    for call in calls {
        let version = match &call.outcome {
            Outcome::Version { version, .. } => *version,
            Outcome::Nothing => 0,
            _ => continue,
        };
        let Call { invoked, ended, .. } = **call;
        match &call.act {
            Act::Write { value, .. } => {
                let write = writes.entry(value).or_insert(Sight { invoked, ended, version, wrote: true });
                write.ended = write.ended.min(ended);
            }
            _ => sights.push(Sight { invoked, ended, version, wrote: false }),
        }
    }
    for call in calls {
        if let Act::Write { value, .. } = &call.act
            && let Some(write) = writes.get_mut(value.as_str())
        {
            write.invoked = write.invoked.min(call.invoked);
        }
    }
    sights.extend(writes.into_values());
    let mut done: Vec<_> = sights.iter().map(|sight| (sight.ended, sight.version)).collect();
    done.sort_unstable();
    sights.sort_unstable_by_key(|sight| sight.invoked);
    let mut done = done.into_iter().peekable();
    let mut highest = 0;
    for sight in sights {
        while let Some((_, version)) = done.next_if(|(ended, _)| *ended < sight.invoked) {
            highest = highest.max(version);
        }
        let back = if sight.wrote { sight.version <= highest } else { sight.version < highest };
        if back {
            let verb = if sight.wrote { "made" } else { "saw" };
            let at = sight.invoked;
            fault(format!("{record}: who asked at {at:?} {verb} version {}, after {highest}", sight.version));
        }
    }
}
