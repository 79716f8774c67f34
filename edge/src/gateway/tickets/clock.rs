//! How long edge has surely run, and whether the host's clock went with it. Pure: it is handed
//! what both clocks say. It exists because the age of a ticket must never be taken for more than
//! it is: a wall clock that is wrong, or set, would have tickets forgotten while their keys are
//! still repeated. So age is counted in time that edge itself has run, which no clock can make
//! longer; a host that was off, or whose clock starts in 1970 or 2099, forgets nothing by it.
//!
//! What the wall clock is good for is a doubt: where it moves against the running time, it was set,
//! the host slept, or its memory was put back to an earlier state, and the store with it.

use std::fmt;
use std::time::Duration;

/// A wall clock that moves by more than this against the running time was set, or the host was not
/// running; corrections and drift are far below.
const MOVED: Duration = Duration::from_secs(60);

/// What the host's clocks say at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    /// Since 1970, by the wall clock.
    pub(super) wall: Duration,
    /// Since any moment of this process, by a clock that nobody sets.
    pub(super) running: Duration,
}

/// The clocks as they were last looked at.
#[derive(Debug)]
pub(super) struct Clock(Now);

/// The wall clock has moved against the running time by so much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moved {
    Ahead(Duration),
    Back(Duration),
}

impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (by, way) = match self {
            Self::Ahead(by) => (by, "ahead"),
            Self::Back(by) => (by, "back"),
        };
        write!(f, "{} s {way}", by.as_secs())
    }
}

impl Clock {
    pub(super) fn new(now: Now) -> Self {
        Self(now)
    }

    /// How long edge has run since the last look, and whether the wall clock went with it.
    pub(super) fn look(&mut self, now: Now) -> (Duration, Option<Moved>) {
        let before = std::mem::replace(&mut self.0, now);
        let ran = now.running.saturating_sub(before.running);
        let expected = before.wall.saturating_add(ran);
        let moved = match now.wall.checked_sub(expected) {
            Some(by) => Moved::Ahead(by),
            None => Moved::Back(expected.saturating_sub(now.wall)),
        };
        let (Moved::Ahead(by) | Moved::Back(by)) = moved;
        (ran, (by > MOVED).then_some(moved))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3600;

    fn at(wall: u64, running: u64) -> Now {
        Now { wall: Duration::from_secs(wall), running: Duration::from_secs(running) }
    }

    #[test]
    fn only_running_makes_older_and_a_set_clock_is_noticed_once() {
        let mut clock = Clock::new(at(0, 0));
        let hours = Duration::from_secs;
        assert_eq!(clock.look(at(HOUR, HOUR)), (hours(HOUR), None));
        // Slow or fast by what a clock may be.
        assert_eq!(clock.look(at(2 * HOUR + 30, 2 * HOUR)).1, None);
        assert_eq!(clock.look(at(3 * HOUR - 20, 3 * HOUR)).1, None);
        // From 1970 to 2026, and on to 2099, and back.
        let years = 56 * 365 * 24 * HOUR;
        assert_eq!(
            clock.look(at(years + 3 * HOUR, 3 * HOUR + 1)),
            (hours(1), Some(Moved::Ahead(hours(years + 19))))
        );
        assert_eq!(clock.look(at(years + 4 * HOUR, 4 * HOUR + 1)), (hours(HOUR), None));
        assert_eq!(
            clock.look(at(2 * years, 4 * HOUR + 2)).1.map(|moved| matches!(moved, Moved::Ahead(_))),
            Some(true)
        );
        let back = clock.look(at(years, 4 * HOUR + 3));
        assert_eq!(back, (hours(1), Some(Moved::Back(hours(years + 1)))));
        assert_eq!(back.1.map(|moved| moved.to_string()), Some(format!("{} s back", years + 1)));
    }

    proptest::proptest! {
        #[test]
        fn no_wall_clock_makes_anything_older(walls: Vec<u64>, start: u32) {
            let mut clock = Clock::new(at(0, u64::from(start)));
            let mut ran = Duration::ZERO;
            for (second, wall) in walls.iter().enumerate() {
                ran += clock.look(at(*wall, u64::from(start) + second as u64)).0;
            }
            proptest::prop_assert_eq!(ran.as_secs(), walls.len().saturating_sub(1) as u64);
        }
    }
}
