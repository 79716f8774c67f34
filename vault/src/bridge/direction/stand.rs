//! Notices that messages wait and none leaves, so that a bridge never stands silently. Pure.

use std::time::Duration;

use super::status::{Full, Status};

/// What stands so long is told.
const LONG: Duration = Duration::from_secs(60);

/// Since when nothing has left.
#[derive(Debug, Default)]
pub(super) struct Stand {
    done: u64,
    since: Duration,
    is_told: bool,
}

impl Stand {
    /// The warning that is due now, once for each time that it stands.
    pub(super) fn look(&mut self, now: Duration, status: &Status) -> Option<String> {
        let counts = status.figures.counts;
        let done = counts.journalled - counts.waiting();
        if counts.waiting() == 0 || done != self.done {
            *self = Self { done, since: now, is_told: false };
        }
        if self.is_told || now.saturating_sub(self.since) < LONG {
            return None;
        }
        self.is_told = true;
        let why = status
            .strange
            .as_deref()
            .or(status.target.as_deref())
            .or(status.refusal.as_deref())
            .unwrap_or("it is connected and takes none; look at its log and its limits");
        let full = match status.full {
            Some(Full::Journal) => "; the journal is full, nothing more is taken from the source",
            Some(Full::Disk) => "; the journal's disk is full, nothing more is taken from the source",
            None => "",
        };
        let (rows, seconds) = (counts.waiting(), LONG.as_secs());
        Some(format!("{rows} messages wait and none has reached the target for {seconds} s: {why}{full}"))
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::bridge::journal::{Counts, Figures};

    fn status(journalled: u64, forwarded: u64) -> Status {
        let counts = Counts { journalled, forwarded, ..Counts::default() };
        let figures = Figures { counts, ..Figures::default() };
        Status { figures, target: Some("it is away".to_owned()), ..Status::at(Instant::now()) }
    }

    #[test]
    fn what_stands_is_told_once_and_again_after_it_moved() {
        let mut stand = Stand::default();
        let at = Duration::from_secs;
        assert_eq!(stand.look(at(100), &status(5, 5)), None, "nothing waits");
        assert_eq!(stand.look(at(159), &status(9, 5)), None);
        let told = "4 messages wait and none has reached the target for 60 s: it is away";
        assert_eq!(stand.look(at(160), &status(9, 5)).as_deref(), Some(told));
        assert_eq!(stand.look(at(400), &status(9, 5)), None);
        assert_eq!(stand.look(at(401), &status(9, 6)), None);
        let full = Status { full: Some(Full::Journal), ..status(9, 6) };
        let told = stand.look(at(461), &full).unwrap();
        assert!(
            told.starts_with("3 messages wait")
                && told.ends_with("the journal is full, nothing more is taken from the source"),
            "{told}"
        );
    }
}
