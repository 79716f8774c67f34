//! How much time this vault has seen pass, for what cannot be taken back: a clock that steps ahead
//! (a wrong hardware clock at boot, a mistyped date) must not end a grace. Time in which no running
//! vault watched does not count; it only makes things later. Pure: is told the clocks, owns none.

use std::time::Duration;

/// The clock may run ahead of the time seen by so much between two looks, seconds: a restart, a
/// correction.
const SLACK: i64 = 300;
/// Looked at again after this time at the earliest, seconds: each look is a write.
const EVERY: i64 = 60;
/// Gaps remembered; the oldest ones grow together beyond that, which counts too little time.
const MOST: usize = 64;

/// A time that passed unseen, Unix seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gap {
    /// Its first second.
    pub(super) began: i64,
    /// The first second after it.
    pub(super) ended: i64,
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Witness {
    /// The second of the last look.
    pub(super) watched: Option<i64>,
    /// In order, and apart from each other.
    pub(super) gaps: Vec<Gap>,
}

impl Witness {
    /// It is `now`, and this process saw `seen` of the time since the last look. True if there is
    /// something to remember.
    pub(super) fn watch(&mut self, now: i64, seen: Duration) -> bool {
        let Some(watched) = self.watched else {
            self.watched = Some(now);
            return true;
        };
        if (0..EVERY).contains(&now.saturating_sub(watched)) {
            return false;
        }
        // Set back: a gap that the clock has not come to yet was none.
        self.gaps.retain(|gap| gap.began < now);
        if let Some(last) = self.gaps.last_mut() {
            last.ended = last.ended.min(now);
        }
        let seen = i64::try_from(seen.as_secs()).unwrap_or(i64::MAX);
        let began = watched.saturating_add(seen);
        if now.saturating_sub(began) > SLACK {
            // A clock that went back and forth within one look may lie before the last gap's end.
            let began = self.gaps.last().map_or(began, |last| began.max(last.ended));
            self.gaps.extend((began < now).then_some(Gap { began, ended: now }));
        }
        if self.gaps.len() > MOST {
            let oldest = self.gaps.remove(0);
            self.gaps[0].began = oldest.began;
        }
        self.watched = Some(now);
        true
    }

    /// The seconds from `since` to `now` that were seen; negative for what lies ahead.
    pub(super) fn age(&self, since: i64, now: i64) -> i64 {
        let unseen = |gap: &Gap| gap.ended.min(now).saturating_sub(gap.began.max(since)).max(0);
        let unseen = self.gaps.iter().map(unseen).fold(0, i64::saturating_add);
        now.saturating_sub(since).saturating_sub(unseen)
    }

    /// Forgets gaps that nothing younger than `age` seconds is from before.
    pub(super) fn forget(&mut self, age: i64, now: i64) {
        while let Some(oldest) = self.gaps.first()
            && self.age(oldest.ended, now) > age
        {
            self.gaps.remove(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::any;
    use proptest::{prop_assert, prop_assert_eq, proptest};

    use super::*;

    const DAY: i64 = 86_400;
    const BEGIN: i64 = 1_800_000_000;

    fn seconds(count: i64) -> Duration {
        Duration::from_secs(count.try_into().unwrap())
    }

    #[test]
    fn a_clock_that_steps_ahead_ages_nothing_and_once_set_right_only_delays() {
        for seen in [0, 10] {
            let mut witness = Witness::default();
            witness.watch(BEGIN, Duration::ZERO);
            // At boot without having seen anything, or under the running vault.
            assert!(witness.watch(BEGIN + 30 * DAY, seconds(seen)));
            assert_eq!(witness.age(BEGIN, BEGIN + 30 * DAY), seen);
            witness.watch(BEGIN + 31 * DAY, seconds(DAY));
            assert_eq!(witness.age(BEGIN, BEGIN + 31 * DAY), DAY + seen);
            let right = BEGIN + DAY + seen;
            witness.watch(right, seconds(10));
            assert_eq!(witness.age(BEGIN, right), seen, "too little is counted, never too much");
            witness.watch(right + DAY, seconds(DAY));
            assert_eq!(witness.age(right, right + DAY), DAY, "later deletions are not touched");
        }
    }

    #[test]
    fn a_clock_of_long_ago_that_is_set_right_ages_nothing() {
        let mut witness = Witness::default();
        witness.watch(BEGIN, Duration::ZERO);
        witness.watch(1000, Duration::ZERO);
        witness.watch(BEGIN + 100, seconds(60));
        assert!(witness.age(BEGIN - DAY, BEGIN + 100) <= 0);
        assert!(witness.age(1000, BEGIN + 100) <= SLACK);
    }

    #[test]
    fn restarts_and_small_corrections_count_as_time() {
        let mut witness = Witness::default();
        witness.watch(BEGIN, Duration::ZERO);
        assert!(!witness.watch(BEGIN + 10, seconds(10)), "no write every turn");
        assert!(witness.watch(BEGIN + 200, Duration::ZERO));
        assert!(witness.watch(BEGIN + DAY, seconds(DAY - 300)));
        assert_eq!((witness.gaps.len(), witness.age(BEGIN, BEGIN + DAY)), (0, DAY));
    }

    proptest! {
        #[test]
        fn never_is_more_time_counted_than_was_seen_and_slack(
            steps in proptest::collection::vec((0..5 * DAY, 0..5 * DAY), 1..200),
        ) {
            let (mut witness, mut now, mut seen) = (Witness::default(), BEGIN, 0);
            witness.watch(now, Duration::ZERO);
            for &(step, awake) in &steps {
                now += step;
                if witness.watch(now, seconds(awake)) {
                    seen += awake.min(step) + SLACK;
                }
                prop_assert!(witness.age(BEGIN, now) <= seen + EVERY);
                prop_assert!(witness.gaps.len() <= MOST);
                prop_assert!(witness.gaps.windows(2).all(|two| two[0].ended <= two[1].began));
            }
            let (before, since) = (witness.clone(), now - DAY);
            witness.forget(7 * DAY, now);
            if before.age(since, now) <= 7 * DAY {
                prop_assert_eq!(before.age(since, now), witness.age(since, now));
            }
        }

        #[test]
        fn no_clock_panics(clocks in proptest::collection::vec((any::<i64>(), any::<u64>()), 0..20), at in any::<i64>()) {
            let mut witness = Witness::default();
            for (now, seen) in clocks {
                witness.watch(now, Duration::from_secs(seen));
                witness.forget(DAY, now);
                witness.age(at, now);
            }
        }
    }
}
