//! Waiting for something to become true: poll, with a deadline, and say at the end what was
//! seen last. The one place of the harness that reads a clock.
#![expect(
    clippy::disallowed_methods,
    reason = "the harness waits for real programs, so it reads the real clock"
)]

use std::time::{Duration, Instant};

/// How often a probe is repeated.
const PAUSE: Duration = Duration::from_millis(20);

/// A point in time after which waiting is over.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Instant);

impl Deadline {
    /// The deadline `within` from now.
    #[must_use]
    pub fn after(within: Duration) -> Self {
        Self(Instant::now() + within)
    }

    /// Is it over?
    #[must_use]
    pub fn passed(self) -> bool {
        Instant::now() >= self.0
    }

    /// What is left of it.
    #[must_use]
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }
}

/// Runs a piece of work and tells how long it took.
pub fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let done = work();
    (done, start.elapsed())
}

/// Repeats `probe` until it answers `Ok` or `within` has passed.
///
/// # Errors
/// `what` did not happen; the text names the last refusal of the probe.
pub fn until<T>(
    what: &str,
    within: Duration,
    mut probe: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let deadline = Deadline::after(within);
    loop {
        match probe() {
            Ok(found) => return Ok(found),
            Err(last) if deadline.passed() => {
                return Err(last.context(format!("{what}: not within {within:?}; seen last")));
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}
