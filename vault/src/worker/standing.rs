//! How a job stands, whoever runs it: for `vault worker status`, metrics and readiness. Knows no job's
//! work, and neither the ledger nor a clock.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::schedule::turn::{Ended, Run};

/// So many failures in a row need somebody.
const ALARMING: u32 = 3;

/// Who runs a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RunsOn {
    /// One of the two vaults at a time.
    One,
    /// Each vault, for itself.
    Each,
}

/// A run that has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Running {
    /// The vault.
    pub by: String,
    /// When it was begun last.
    pub began: Timestamp,
    /// The time for which it is; `None` where it is for none.
    pub at: Option<Timestamp>,
}

/// The last run that ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Last {
    /// It.
    #[serde(flatten)]
    pub run: Running,
    /// When it ended.
    pub ended: Timestamp,
    /// Why it failed; `None`: it did not.
    pub fault: Option<String>,
    /// What it came to, where it tells.
    pub result: Option<String>,
}

/// How a job stands, as this vault knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Standing {
    /// Its name. Those of the vault's own upkeep have a full stop.
    pub name: String,
    /// Who runs it.
    pub runs_on: RunsOn,
    /// When it is due next; `None`: not before somebody asks for it.
    pub next: Option<Timestamp>,
    /// Why it does not begin by itself.
    pub paused: Option<String>,
    /// Begun, and not known to have ended.
    pub running: Option<Running>,
    /// The last run that ended.
    pub last: Option<Last>,
    /// So many of the last runs failed in a row.
    pub failures: u32,
    /// Times left out since the job is known; times missed in one go count as one.
    pub skipped: u64,
    /// Up to this time, in the future, it is said to be decided: a clock was wrong.
    pub ahead: Option<Timestamp>,
    /// The time of the run that an operator asked this vault for, as long as it has not begun.
    pub asked: Option<Timestamp>,
    /// Since when it is due, and nobody has begun it.
    pub late_since: Option<Timestamp>,
    /// Why it cannot be run at present.
    pub trouble: Option<String>,
}

impl Standing {
    /// What an operator should look at, in a few words.
    #[must_use]
    pub fn worry(&self) -> Option<String> {
        let name = &self.name;
        if self.failures >= ALARMING {
            return Some(format!("{name} has failed {} times in a row", self.failures));
        }
        if let Some(ahead) = self.ahead {
            return Some(format!("{name} waits for {ahead}: was the clock of a vault wrong?"));
        }
        match (&self.trouble, self.late_since) {
            (Some(trouble), Some(_)) => Some(format!("{name} is late: {trouble}")),
            (Some(trouble), None) if self.asked.is_some() => {
                Some(format!("{name} was asked for, and has not begun: {trouble}"))
            }
            _ => self.paused.as_ref().map(|_| format!("{name} is paused")),
        }
    }
}

impl From<&Run> for Running {
    fn from(run: &Run) -> Self {
        Self { by: run.by.clone(), began: run.began, at: Some(run.at) }
    }
}

impl From<&Ended> for Last {
    fn from(ended: &Ended) -> Self {
        let Ended { run, ended, fault } = ended;
        Self { run: run.into(), ended: *ended, fault: fault.clone(), result: None }
    }
}

/// Tells of a failure, unless the one before was `the_same`; and of a third in a row, a sixth, a twelfth,
/// what to do.
pub fn tell_failure(job: &str, failures: u32, fault: &str, the_same: bool) {
    if failures.is_multiple_of(ALARMING) && (failures / ALARMING).is_power_of_two() {
        tracing::error!(
            "worker: job {job}: {fault}; that is {failures} failures in a row. Once the cause is mended: vault \
             worker run {job}; until then: vault worker pause {job}"
        );
    } else if !the_same {
        tracing::warn!("worker: job {job}: {fault}");
    }
}

/// From one time to a later one.
#[must_use]
pub fn between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing() -> Standing {
        Standing {
            name: "nightly".to_owned(),
            runs_on: RunsOn::One,
            next: None,
            paused: None,
            running: None,
            last: None,
            failures: 0,
            skipped: 0,
            ahead: None,
            asked: None,
            late_since: None,
            trouble: None,
        }
    }

    #[test]
    fn a_job_worries_when_it_fails_again_and_again_or_is_late_or_paused() {
        assert_eq!(standing().worry(), None);
        assert_eq!(Standing { failures: 2, ..standing() }.worry(), None, "it may pass");
        let failing = Standing { failures: 3, paused: Some("by ops".into()), ..standing() };
        assert_eq!(failing.worry().unwrap(), "nightly has failed 3 times in a row");
        let trouble = Standing { trouble: Some("records need both vaults".into()), ..standing() };
        assert_eq!(trouble.worry(), None, "nothing is due");
        let asked = Standing { asked: Some(Timestamp::UNIX_EPOCH), ..trouble.clone() };
        assert_eq!(
            asked.worry().unwrap(),
            "nightly was asked for, and has not begun: records need both vaults"
        );
        let late = Standing { late_since: Some(Timestamp::UNIX_EPOCH), ..trouble };
        assert_eq!(late.worry().unwrap(), "nightly is late: records need both vaults");
        let ahead = Standing { ahead: Some(Timestamp::UNIX_EPOCH), ..standing() };
        assert!(ahead.worry().unwrap().contains("was the clock of a vault wrong?"));
        let paused = Standing { paused: Some("by ops".into()), ..standing() };
        assert_eq!(paused.worry().unwrap(), "nightly is paused");
    }
}
