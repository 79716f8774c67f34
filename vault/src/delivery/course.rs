//! The course of one message to one handler: what follows from each answer. Pure: owns no clock,
//! no randomness and no socket; knows no message and no queue.
//!
//! - 2xx: done.
//! - 410: the handler wants no more, ever (Standard Webhooks): a dead letter, and its target stops.
//! - 429 and 503 with Retry-After (RFC 9110, 10.2.3): the whole target is left alone for so long,
//!   within bounds.
//! - Anything else, 3xx and no answer too: again after a back-off with jitter, so many times.

use std::time::Duration;

use http::StatusCode;
use shared::retry::Backoff;

/// How often a message is tried, and how far apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Tries in all, at least 1; after the last one it is a dead letter.
    pub tries: u32,
    /// The wait after the first try; each later one is twice as long.
    pub first_wait: Duration,
    /// No wait is longer, whatever a handler's Retry-After says.
    pub longest_wait: Duration,
}

/// What became of one try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The handler answered.
    Answered {
        /// Its status.
        status: StatusCode,
        /// Its Retry-After, from now.
        retry_after: Option<Duration>,
    },
    /// No answer came; why.
    Unheard(String),
}

/// What is to be done now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Acknowledge it.
    Done,
    /// Try it again.
    Again {
        /// After this time.
        wait: Duration,
        /// Is the whole target to be left alone for that time?
        hold: bool,
        /// What went wrong.
        why: String,
    },
    /// Give it up, for this reason.
    Dead(String),
    /// Give it up and send this target nothing more until an operator says so.
    Gone(String),
}

/// One message's tries so far.
#[derive(Debug, Clone)]
pub struct Course {
    policy: Policy,
    backoff: Backoff,
    tried: u32,
}

impl Course {
    /// Nothing was tried yet.
    #[must_use]
    pub const fn new(policy: Policy) -> Self {
        let backoff = Backoff::new(policy.first_wait, policy.longest_wait);
        Self { policy, backoff, tried: 0 }
    }

    /// Takes one try's outcome in. `jitter` is any number; it places the wait between half and all
    /// of its step.
    pub fn after(&mut self, outcome: Outcome, jitter: u32) -> Next {
        self.tried = self.tried.saturating_add(1);
        let (why, asked) = match outcome {
            Outcome::Answered { status, .. } if status.is_success() => return Next::Done,
            Outcome::Answered { status: StatusCode::GONE, .. } => {
                return Next::Gone("the handler answers 410 Gone: it wants no more".to_owned());
            }
            Outcome::Answered { status, retry_after } => (said(status), asked(status, retry_after)),
            Outcome::Unheard(why) => (why, None),
        };
        if self.tried >= self.policy.tries {
            return Next::Dead(format!("given up after {} tries; the last: {why}", self.tried));
        }
        let own = self.backoff.next(jitter);
        let wait = asked.map_or(own, |asked| asked.max(own)).min(self.policy.longest_wait);
        Next::Again { wait, hold: asked.is_some(), why }
    }
}

/// How long the handler asks to be left alone; only these two statuses may.
fn asked(status: StatusCode, retry_after: Option<Duration>) -> Option<Duration> {
    let may = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
    retry_after.filter(|_| may)
}

fn said(status: StatusCode) -> String {
    if status.is_redirection() {
        return format!("the handler answers {status}: redirects are not followed; write its final URL");
    }
    format!("the handler answers {status}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLICY: Policy =
        Policy { tries: 4, first_wait: Duration::from_secs(1), longest_wait: Duration::from_secs(3) };

    fn answered(status: u16, retry_after: Option<u64>) -> Outcome {
        let status = StatusCode::from_u16(status).unwrap();
        Outcome::Answered { status, retry_after: retry_after.map(Duration::from_secs) }
    }

    fn wait(next: &Next) -> (Duration, bool) {
        match next {
            Next::Again { wait, hold, .. } => (*wait, *hold),
            other => panic!("{other:?} is no wait"),
        }
    }

    #[test]
    fn every_2xx_is_done_and_410_ends_the_target_at_once() {
        for status in [200, 201, 202, 204, 299] {
            assert_eq!(Course::new(POLICY).after(answered(status, None), 0), Next::Done, "{status}");
        }
        assert!(matches!(Course::new(POLICY).after(answered(410, None), 0), Next::Gone(_)));
    }

    #[test]
    fn waits_grow_to_the_longest_and_the_last_try_is_a_dead_letter_with_its_reason() {
        let mut course = Course::new(POLICY);
        let waits: Vec<_> =
            (0..3).map(|_| wait(&course.after(answered(500, None), u32::MAX)).0.as_secs()).collect();
        assert_eq!(waits, [1, 2, 3]);
        let Next::Dead(why) = course.after(Outcome::Unheard("no answer within 10 s".into()), 0) else {
            panic!("the fourth try is the last");
        };
        assert_eq!(why, "given up after 4 tries; the last: no answer within 10 s");
    }

    #[test]
    fn retry_after_of_429_and_503_holds_the_whole_target_within_bounds() {
        for status in [429, 503] {
            let next = Course::new(POLICY).after(answered(status, Some(2)), 0);
            assert_eq!(wait(&next), (Duration::from_secs(2), true), "{status}");
            let next = Course::new(POLICY).after(answered(status, Some(86_400)), 0);
            assert_eq!(wait(&next), (POLICY.longest_wait, true), "{status}");
            let next = Course::new(POLICY).after(answered(status, Some(0)), u32::MAX);
            assert_eq!(wait(&next), (POLICY.first_wait, true), "no handler asks for a flood");
        }
        assert!(!wait(&Course::new(POLICY).after(answered(500, Some(2)), 0)).1, "others may not ask");
    }

    #[test]
    fn a_redirect_is_a_fault_that_says_what_to_write() {
        let Next::Again { why, hold: false, .. } = Course::new(POLICY).after(answered(302, None), 0) else {
            panic!("it is tried again");
        };
        assert!(why.contains("write its final URL"), "{why}");
    }

    proptest! {
        #[test]
        fn whatever_is_answered_the_course_ends_within_its_tries_and_no_wait_is_over_the_longest(
            statuses in proptest::collection::vec((100_u16..1000, proptest::option::of(0_u64..1 << 40), any::<u32>()), 4)
        ) {
            let mut course = Course::new(POLICY);
            for (tried, (status, retry_after, jitter)) in statuses.into_iter().enumerate() {
                match course.after(answered(status, retry_after), jitter) {
                    Next::Again { wait, .. } => {
                        prop_assert!(tried < 3, "the fourth try is the last");
                        prop_assert!(wait <= POLICY.longest_wait && wait >= POLICY.first_wait / 2);
                    }
                    Next::Done | Next::Dead(_) | Next::Gone(_) => return Ok(()),
                }
            }
            prop_assert!(false, "four tries end it");
        }
    }
}
