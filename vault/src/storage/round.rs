//! A round over all objects: when one is due, which objects are this vault's share of it, and
//! how slowly it reads. Pure: is handed the time.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::object::ObjectId;

/// While uploads run, a round reads so many times slower.
const YIELD: u32 = 4;
/// Replicas that a file server refuses while it answers are tried again after so many seconds.
const PAUSE: i64 = 3600;

/// How far a round is. It survives a restart in the catalog.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Round {
    /// Under way?
    pub running: bool,
    /// The last object it is done with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<ObjectId>,
    /// When it began, in Unix seconds.
    pub begun: i64,
    /// When the last whole one ended, in Unix seconds; none has yet without it.
    pub finished: Option<i64>,
    /// Replicas looked at in this round, or in the last one.
    pub checked: u64,
    /// Of those looked at, missing or damaged.
    pub damaged: u64,
    /// Of those looked at, whole but for one of their two records, which was written anew from the other.
    pub mended: u64,
    /// Replicas that could not be looked at: their file server was away, or refused.
    #[serde(default)]
    pub skipped: u64,
    /// The file servers of those: they are looked at again before the round comes to its end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
    /// Looking only at what was left out?
    #[serde(default)]
    pub again: bool,
    /// When what was left out was refused, in Unix seconds; without it, its file server was away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<i64>,
}

impl Round {
    /// Is there something to do now? A round from the future is of a clock that was put right
    /// since; it must not wait for it.
    #[must_use]
    pub fn is_due(&self, every: Duration, now: i64) -> bool {
        let every = i64::try_from(every.as_secs()).unwrap_or(i64::MAX);
        let waits = !self.left_out.is_empty();
        self.running
            || (self.finished.is_none() && !waits)
            || !(0..every).contains(&now.saturating_sub(self.begun))
    }

    /// The Unix second from which it is due again by itself; `None`: it is under way, or is never.
    #[must_use]
    pub fn next(&self, every: Duration) -> Option<i64> {
        let every = i64::try_from(every.as_secs()).unwrap_or(i64::MAX);
        (every > 0 && !self.running).then(|| self.begun.saturating_add(every))
    }

    /// Goes on, or begins anew.
    #[must_use]
    pub fn at_work(self, now: i64) -> Self {
        if self.running {
            return self;
        }
        Self { running: true, begun: now, finished: self.finished, ..Self::default() }
    }

    /// May it look again at what it left out? Not while one of those file servers is away.
    #[must_use]
    pub fn may_look_again(&self, now: i64, is_away: impl Fn(&str) -> bool) -> bool {
        let over = self.paused.is_none_or(|since| !(0..PAUSE).contains(&now.saturating_sub(since)));
        !self.running && !self.left_out.is_empty() && over && !self.left_out.iter().any(|name| is_away(name))
    }

    /// Looks again at what it left out.
    #[must_use]
    pub fn looking_again(self) -> Self {
        Self { running: true, again: true, position: None, skipped: 0, paused: None, ..self }
    }

    /// Is this file server to be looked at?
    #[must_use]
    pub fn looks_at(&self, server: &str) -> bool {
        !self.again || self.left_out.iter().any(|name| name == server)
    }

    /// A replica on this file server could not be looked at.
    pub fn skip(&mut self, server: &str) {
        self.skipped += 1;
        if !self.left_out.iter().any(|name| name == server) {
            self.left_out.push(server.to_owned());
        }
    }

    /// Has seen every object: comes to its end, or waits for what it left out. `is_away` tells
    /// which file servers are.
    #[must_use]
    pub fn passed(self, now: i64, is_away: impl Fn(&str) -> bool) -> Self {
        if self.skipped == 0 {
            return self.ended(now);
        }
        let away = self.left_out.iter().any(|name| is_away(name));
        Self { running: false, again: false, position: None, paused: (!away).then_some(now), ..self }
    }

    /// Comes to its end.
    #[must_use]
    pub fn ended(self, now: i64) -> Self {
        let finished = Some(now);
        Self { running: false, again: false, position: None, left_out: Vec::new(), finished, ..self }
    }
}

/// Is this object in this vault's half? `first` says which of the two vaults it is.
#[must_use]
pub fn is_mine(id: &ObjectId, first: bool) -> bool {
    // The last byte: the objects of each folder are shared out too.
    (id.as_bytes()[31] & 1 == 0) == first
}

/// How long to rest after reading so many bytes, to stay below `rate` bytes a second.
#[must_use]
pub fn rest(bytes: usize, rate: u64, yielding: bool) -> Duration {
    let factor = if yielding { YIELD } else { 1 };
    let micros = (bytes as u64).saturating_mul(1_000_000) / rate.max(1);
    Duration::from_micros(micros).saturating_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MONTH: Duration = Duration::from_secs(30 * 86_400);

    #[test]
    fn a_round_is_due_at_first_and_each_period_and_never_waits_for_a_clock_that_was_ahead() {
        let first = Round::default();
        assert!(first.is_due(MONTH, 1000));
        let running = first.at_work(1000);
        assert!(running.running && running.is_due(MONTH, 1001));
        let ended = running.ended(2000);
        assert!(!ended.is_due(MONTH, 2001));
        assert!(!ended.is_due(MONTH, 1000 + 30 * 86_400 - 1));
        assert!(ended.is_due(MONTH, 1000 + 30 * 86_400));
        assert!(ended.is_due(MONTH, 900), "the clock was set back");
        assert_eq!(ended.next(MONTH), Some(1000 + 30 * 86_400));
        assert_eq!((ended.next(Duration::ZERO), Round::default().at_work(1).next(MONTH)), (None, None));
    }

    #[test]
    fn a_restart_goes_on_where_the_round_stood_and_a_new_round_keeps_the_last_ones_end() {
        let at = Some(ObjectId::new([3; 32]));
        let running = Round { position: at, checked: 7, ..Round::default().at_work(10) };
        assert_eq!(running.clone().at_work(50), running);
        let next = running.ended(60).at_work(100);
        assert_eq!((next.position, next.checked, next.finished, next.begun), (None, 0, Some(60), 100));
    }

    #[test]
    fn a_round_that_left_something_out_is_not_finished_and_waits_for_that_file_server_alone() {
        let away = |name: &str| name == "paris";
        let none = |_: &str| false;
        let mut round = Round::default().at_work(1000);
        round.skip("paris");
        round.skip("paris");
        let waiting = round.passed(2000, away);
        assert_eq!((waiting.running, waiting.finished, waiting.skipped), (false, None, 2));
        assert!(!waiting.is_due(MONTH, 2001) && !waiting.may_look_again(9999, away));
        assert!(waiting.is_due(MONTH, 1000 + 30 * 86_400), "a new round reads everything");
        assert!(waiting.may_look_again(2001, none));
        let again = waiting.looking_again();
        assert!(again.looks_at("paris") && !again.looks_at("lyon") && again.is_due(MONTH, 2001));
        let ended = again.clone().passed(3000, none);
        assert_eq!((ended.finished, ended.skipped, ended.left_out.len()), (Some(3000), 0, 0));
        // Refused by a server that answers: later, not at once and for ever.
        let mut refused = again;
        refused.skip("paris");
        let refused = refused.passed(3000, none);
        assert!(!refused.may_look_again(3001, none) && refused.may_look_again(3000 + PAUSE, none));
        assert!(refused.may_look_again(2999, none), "the clock was set back");
    }

    #[test]
    fn two_vaults_share_every_object_and_none_twice() {
        for byte in 0..=255 {
            let id = ObjectId::new([byte; 32]);
            assert_ne!(is_mine(&id, true), is_mine(&id, false));
        }
    }

    #[test]
    fn reading_stays_below_the_rate_and_yields_to_uploads() {
        let second: Duration = (0..80).map(|_| rest(256 << 10, 20 << 20, false)).sum();
        assert_eq!(second.as_secs(), 1);
        assert_eq!(rest(1 << 20, 1 << 20, true).as_secs(), u64::from(YIELD));
        assert!(rest(usize::MAX, 0, true) > Duration::ZERO);
    }
}
