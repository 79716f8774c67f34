//! Is a lease one holder's at a time? A holder believes from its answer on, until the time it asked
//! for is over by its own clock, counted from before it asked. Each holder is another token, and none
//! is used again after it was given up. Pure; part of the checker.
//!
//! Nothing is excused: the nemesis makes a vault the owner that goes on alone, and none that did so
//! is lost or gives way before it has met the other again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::history::{Act, Call, Outcome};

/// For how long everybody asks.
pub(crate) const TTL: Duration = Duration::from_secs(5);

/// Somebody was told that he holds it.
struct Sight<'a> {
    token: &'a str,
    epoch: u64,
    invoked: Duration,
    ended: Duration,
    /// Until then he believes it, unless he hears otherwise or gives it up.
    until: Duration,
}

/// Tells every fault of every lease.
pub(crate) fn check(calls: &[Call], mut fault: impl FnMut(String)) {
    let mut leases: BTreeMap<&str, Vec<&Call>> = BTreeMap::new();
    for call in calls {
        if let Act::Acquire { lease, .. } | Act::Renew { lease, .. } | Act::Release { lease, .. } = &call.act
        {
            leases.entry(lease).or_default().push(call);
        }
    }
    for (lease, calls) in leases {
        let sights = sights(&calls);
        one_token_each(lease, &sights, &mut fault);
        ever_higher(lease, &calls, &sights, &mut fault);
        one_believer(lease, &sights, &mut fault);
        never_shorter(lease, &calls, &sights, &mut fault);
    }
}

fn sights<'a>(calls: &[&'a Call]) -> Vec<Sight<'a>> {
    let mut given_up: BTreeMap<&str, Duration> = BTreeMap::new();
    for call in calls {
        let at = match (&call.act, &call.outcome) {
            (Act::Release { token, .. }, _) => (token, call.invoked),
            (Act::Renew { token, .. }, Outcome::Refused { status: 409, .. }) => (token, call.ended),
            _ => continue,
        };
        let first = given_up.entry(at.0).or_insert(at.1);
        *first = at.1.min(*first);
    }
    let told = calls.iter().filter_map(|call| match (&call.act, &call.outcome) {
        (Act::Acquire { token, .. } | Act::Renew { token, .. }, Outcome::Held { epoch }) => {
            let (epoch, invoked, ended) = (*epoch, call.invoked, call.ended);
            let until = given_up.get(token.as_str()).copied().unwrap_or(Duration::MAX).min(invoked + TTL);
            Some(Sight { token, epoch, invoked, ended, until })
        }
        _ => None,
    });
    let mut sights: Vec<_> = told.collect();
    sights.sort_unstable_by_key(|sight| sight.invoked);
    sights
}

fn one_token_each(lease: &str, sights: &[Sight<'_>], fault: &mut impl FnMut(String)) {
    let mut tokens: BTreeMap<u64, BTreeSet<&str>> = BTreeMap::new();
    for sight in sights {
        tokens.entry(sight.epoch).or_default().insert(sight.token);
    }
    for (epoch, tokens) in tokens.iter().filter(|(_, tokens)| tokens.len() > 1) {
        fault(format!("{lease}: epoch {epoch} was given to {tokens:?}"));
    }
}

/// Whoever asks after another was answered is told no lower epoch, and after its end a higher one. An
/// epoch has one holder, so a new holder's is higher.
fn ever_higher(lease: &str, calls: &[&Call], sights: &[Sight<'_>], fault: &mut impl FnMut(String)) {
    let mut least: Vec<_> = sights.iter().map(|sight| (sight.ended, sight.epoch)).collect();
    least.extend(calls.iter().filter_map(|call| match (&call.act, &call.outcome) {
        (Act::Release { epoch, .. }, Outcome::Done) => Some((call.ended, epoch + 1)),
        _ => None,
    }));
    least.sort_unstable();
    let mut least = least.into_iter().peekable();
    let mut highest = 0;
    for Sight { token, epoch, invoked, .. } in sights {
        while let Some((_, epoch)) = least.next_if(|(ended, _)| ended < invoked) {
            highest = highest.max(epoch);
        }
        if *epoch < highest {
            fault(format!(
                "{lease}: {token} asked at {invoked:?} and was told epoch {epoch}, below {highest}"
            ));
        }
    }
}

fn one_believer(lease: &str, sights: &[Sight<'_>], fault: &mut impl FnMut(String)) {
    for (place, first) in sights.iter().enumerate() {
        // Nobody asks after the other's time is over and believes before.
        let mut later = sights.iter().skip(place + 1).take_while(|other| other.invoked < first.until);
        let both = |other: &&Sight<'_>| {
            other.token != first.token && other.ended < first.until && first.ended < other.until
        };
        if let Some(other) = later.find(both) {
            fault(format!(
                "{lease}: {} believes in epoch {} from {:?} to {:?}, {} in epoch {} from {:?} to {:?}",
                first.token,
                first.epoch,
                first.ended,
                first.until,
                other.token,
                other.epoch,
                other.ended,
                other.until
            ));
        }
    }
}

/// Nobody is told that he has lost it before his time is over.
fn never_shorter(lease: &str, calls: &[&Call], sights: &[Sight<'_>], fault: &mut impl FnMut(String)) {
    for call in calls {
        let (Act::Renew { token, .. }, Outcome::Refused { status: 409, .. }) = (&call.act, &call.outcome)
        else {
            continue;
        };
        let before = sights.iter().filter(|sight| sight.token == token && sight.ended < call.invoked);
        if let Some(until) = before.map(|sight| sight.invoked + TTL).max().filter(|until| call.ended < *until)
        {
            fault(format!(
                "{lease}: {token} lost it at {:?}, and it was to last until {until:?}",
                call.ended
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::check::Promise;
    use crate::history::{Act, Outcome};
    use crate::made::{Made, refused};

    fn acquire(token: &str) -> Act {
        Act::Acquire { lease: "job".to_owned(), token: token.to_owned() }
    }

    fn renew(token: &str, epoch: u64) -> Act {
        Act::Renew { lease: "job".to_owned(), token: token.to_owned(), epoch }
    }

    fn release(token: &str, epoch: u64) -> Act {
        Act::Release { lease: "job".to_owned(), token: token.to_owned(), epoch }
    }

    fn held(epoch: u64) -> Outcome {
        Outcome::Held { epoch }
    }

    impl Made {
        /// For so many seconds nothing happens.
        fn rests(self, seconds: u64) -> Self {
            (0..seconds).fold(self, |made, _| made.call(0, acquire("idle"), refused(409, "lease_held")))
        }
    }

    fn born() -> Made {
        Made::default().call(0, acquire("a"), held(1))
    }

    #[test]
    fn a_lease_that_goes_from_hand_to_hand_is_blamed_for_nothing() {
        born()
            .call(1, acquire("b"), refused(409, "lease_held"))
            .call(1, renew("a", 1), held(1))
            .call(0, release("a", 1), Outcome::Unknown(String::new()))
            .call(1, acquire("b"), held(3))
            .rests(5)
            .call(0, acquire("c"), held(4))
            .rests(5)
            .call(1, renew("c", 4), refused(409, "lease_lost"))
            .call(1, acquire("d"), held(5))
            .call(1, release("d", 5), Outcome::Done)
            .call(0, acquire("e"), held(7))
            .is_well();
    }

    #[test]
    fn two_who_hold_a_lease_at_once_are_found() {
        born().rests(3).call(1, acquire("b"), held(2)).breaks(Promise::Lease);
        born().rests(4).call(1, acquire("b"), held(2)).is_well();
        // A renewal lasts as long, and one that nobody heard of lasts for nobody.
        let renewed = |outcome| born().rests(2).call(0, renew("a", 1), outcome).rests(3);
        renewed(held(1)).call(1, acquire("b"), held(2)).breaks(Promise::Lease);
        renewed(Outcome::Unknown(String::new())).call(1, acquire("b"), held(2)).is_well();
    }

    #[test]
    fn an_epoch_that_does_not_rise_is_found() {
        born().rests(5).call(1, acquire("b"), held(1)).breaks(Promise::Lease);
        let twice = || born().rests(5).call(1, acquire("b"), held(3)).rests(5);
        twice().call(0, acquire("c"), held(2)).breaks(Promise::Lease);
        twice().call(0, acquire("c"), held(4)).is_well();
        let over = || born().call(0, release("a", 1), Outcome::Done);
        over().call(1, renew("a", 1), held(1)).breaks(Promise::Lease);
    }

    #[test]
    fn a_lease_that_is_lost_before_its_time_is_found() {
        born().call(1, renew("a", 1), refused(409, "lease_lost")).breaks(Promise::Lease);
        born().rests(5).call(1, renew("a", 1), refused(409, "lease_lost")).is_well();
    }
}
