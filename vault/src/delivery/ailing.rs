//! When the log is told that a handler takes nothing, and that it takes messages again: at the first
//! failure and at the end of it, and of one that fails and works in turns at most once a minute. Pure;
//! knows no messages.

use std::time::Duration;

use tokio::time::Instant;

/// A handler that works by halves is told of no more often.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// Whether, and when last, the log was told that it fails.
#[derive(Debug, Default)]
pub(super) struct Ailing {
    told_at: Option<Instant>,
    is_told: bool,
}

impl Ailing {
    /// A try has failed: is that to be told?
    pub(super) fn failed(&mut self, now: Instant) -> bool {
        let is_due = self.told_at.is_none_or(|told| now.duration_since(told) >= TOLD_EVERY);
        if self.is_told || !is_due {
            return false;
        }
        (self.told_at, self.is_told) = (Some(now), true);
        true
    }

    /// A message was taken: is it to be told that its handler is well again?
    pub(super) fn took(&mut self) -> bool {
        std::mem::take(&mut self.is_told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_and_its_end_are_told_and_one_that_comes_and_goes_once_a_minute() {
        let (mut ailing, began) = (Ailing::default(), Instant::now());
        let at = |seconds| began + Duration::from_secs(seconds);
        assert!(!ailing.took(), "it was well");
        assert!(ailing.failed(at(0)), "the first");
        assert!(!ailing.failed(at(100)), "known");
        assert!(ailing.took() && !ailing.took(), "well again, told once");
        assert!(ailing.failed(at(101)) && ailing.took(), "a minute later it is another one");
        assert!(!ailing.failed(at(102)) && !ailing.took(), "it works by halves");
        assert!(ailing.failed(at(161)), "and is told of a minute later if it lasts");
    }
}
