//! How far the stories go: bounded in the gate, longer where `tests/run full` says so.

use std::time::Duration;

/// Set by `tests/run full`.
const VARIABLE: &str = "STORIES";

/// Do the stories run that take minutes?
#[must_use]
pub fn is_full() -> bool {
    std::env::var_os(VARIABLE).is_some_and(|extent| extent == "full")
}

/// `gate`, or in the full run `full`.
#[must_use]
pub fn lasting(gate: Duration, full: Duration) -> Duration {
    if is_full() { full } else { gate }
}

/// The seed of what a story does by chance: `SEED`, or the usual one.
#[must_use]
pub fn seed() -> u64 {
    std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1)
}
