//! Schedules: which job is due when, and what both vaults know of its runs. Pure; knows neither
//! who runs a job nor what it does.
//!
//! - `plan`: cron expressions, time zones, and what happens where clocks change.
//! - `turn`: state and time → wait, run, or leave out. `shift`: a run from the lease to its end.
//!
//! A run has a key made of the job and the time it is for. A run that was begun and is not known to
//! have ended is begun again under the same key: at least once.

pub mod plan;
pub mod shift;
pub mod turn;

use std::time::Duration;

use plan::Plan;
use turn::Rules;

/// One `[[schedule]]`, but for what a run does: that is its runner's matter.
#[derive(Debug, Clone)]
pub struct Job {
    /// Its name, without a full stop: keys of runs are ids of Standard Webhooks too.
    pub name: String,
    /// When it is due.
    pub plan: Plan,
    /// What becomes of times that passed.
    pub rules: Rules,
    /// A run that takes longer is ended, and has failed.
    pub time_limit: Duration,
}
