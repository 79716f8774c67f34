//! How a direction is, as operators and the other vault see it. Pure: the clock is handed in.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::bridge::core::Load;
use crate::bridge::journal::{Counts, Figures};

/// What a direction is to its source.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The source is not connected.
    #[default]
    Away,
    /// This vault holds the lock and carries.
    Carrying,
    /// The other vault holds the lock, or is to have it. What waits here goes on all the same.
    Standby,
    /// The journal cannot be written.
    Stopped,
}

/// Why nothing is taken from the source although it is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Full {
    /// The journal holds what it may.
    Journal,
    /// Its disk has too little room.
    Disk,
}

/// The latest failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LastError {
    /// When, in seconds since 1970.
    pub at: i64,
    /// Its words.
    pub what: String,
}

/// A direction as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// To its source.
    pub state: State,
    /// Since when it is so.
    pub since: Instant,
    /// Why the source is not connected, or who holds the lock.
    pub source: Option<String>,
    /// The target's connection: none is connected, else why it is not.
    pub target: Option<String>,
    /// Why nothing is sent to the target that answers: some of what waits may be at the one before it.
    pub strange: Option<String>,
    /// Why it does not take what it was sent last; none since it took something, or nothing waits.
    pub refusal: Option<String>,
    /// Why the journal cannot be written.
    pub journal: Option<String>,
    /// Why nothing is taken.
    pub full: Option<Full>,
    /// Since when, if something is.
    pub full_since: Instant,
    /// The latest failure, whatever came of it.
    pub last_error: Option<LastError>,
    /// Of the journal.
    pub figures: Figures,
    /// What waits for the target.
    pub waiting: Load,
    /// Of which only a receipt can tell whether it was taken.
    pub uncertain: Load,
    /// Found to be the source's, and kept for a while.
    pub returned: Load,
    /// What of it waits for the source that it was to be taken from.
    pub elsewhere: Load,
    /// Dead letters that are kept.
    pub dead: Load,
    /// Messages of the source that had been at the target before, since this vault's start; they end here.
    pub circled: u64,
}

/// The same, told: with ages in place of times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// See [`Status::state`].
    pub state: State,
    /// For so long.
    pub state_seconds: u64,
    /// See [`Status::source`].
    pub source: Option<String>,
    /// See [`Status::target`]; before it [`Status::strange`], as only an operator can do something about that.
    pub target: Option<String>,
    /// Is there something of [`Status::strange`]?
    pub is_refusing: bool,
    /// See [`Status::refusal`].
    pub refusal: Option<String>,
    /// See [`Status::journal`].
    pub journal: Option<String>,
    /// See [`Status::full`].
    pub full: Option<Full>,
    /// For so long; 0 where nothing is.
    pub full_seconds: u64,
    /// See [`Status::last_error`].
    pub last_error: Option<LastError>,
    /// Messages since the journal's birth, per hop; `received` are `journalled` and uncertain ones.
    pub received: u64,
    /// The other hops.
    #[serde(flatten)]
    pub counts: Counts,
    /// See [`Status::circled`].
    pub circled: u64,
    /// See [`Status::waiting`].
    pub waiting: Load,
    /// The sequence of the one that goes next.
    pub first: Option<u64>,
    /// See [`Status::uncertain`].
    pub uncertain: Load,
    /// See [`Status::returned`].
    pub returned: Load,
    /// See [`Status::elsewhere`].
    pub elsewhere: Load,
    /// Dead letters that are kept.
    pub dead_letters: Load,
    /// The age of the oldest message that waits, since it was journalled.
    pub lag_seconds: u64,
    /// What the journal may hold, in bytes.
    pub journal_bytes: u64,
}

impl Status {
    /// Before anything is known.
    #[must_use]
    pub fn at(since: Instant) -> Self {
        Self {
            state: State::Away,
            since,
            source: None,
            target: None,
            strange: None,
            refusal: None,
            journal: None,
            full: None,
            full_since: since,
            last_error: None,
            figures: Figures::default(),
            waiting: Load::default(),
            uncertain: Load::default(),
            returned: Load::default(),
            elsewhere: Load::default(),
            dead: Load::default(),
            circled: 0,
        }
    }

    /// It is that from now on, if it was not before.
    pub(super) fn turn(&mut self, state: State, now: Instant) {
        if self.state != state {
            (self.state, self.since) = (state, now);
        }
    }

    /// Nothing is taken for that reason from now on, or for none.
    pub(super) fn fill(&mut self, full: Option<Full>, now: Instant) {
        if self.full.is_none() {
            self.full_since = now;
        }
        self.full = full;
    }

    /// Told at this time, on both clocks; `wall` in ms since 1970.
    #[must_use]
    pub fn report(&self, now: Instant, wall: i64, journal_bytes: u64) -> Report {
        let lag = self.figures.oldest.map(|oldest| wall.saturating_sub(oldest));
        let lag = lag.and_then(|lag| u64::try_from(lag).ok()).unwrap_or_default();
        Report {
            state: self.state,
            state_seconds: now.saturating_duration_since(self.since).as_secs(),
            source: self.source.clone(),
            target: self.strange.clone().or_else(|| self.target.clone()),
            is_refusing: self.strange.is_some(),
            refusal: self.refusal.clone(),
            journal: self.journal.clone(),
            full: self.full,
            full_seconds: match self.full {
                Some(_) => now.saturating_duration_since(self.full_since).as_secs(),
                None => 0,
            },
            last_error: self.last_error.clone(),
            received: self.figures.counts.journalled + self.uncertain.rows,
            counts: self.figures.counts,
            circled: self.circled,
            waiting: self.waiting,
            first: self.figures.first,
            uncertain: self.uncertain,
            returned: self.returned,
            elsewhere: self.elsewhere,
            dead_letters: self.dead,
            lag_seconds: Duration::from_millis(lag).as_secs(),
            journal_bytes,
        }
    }
}

impl Report {
    /// What an operator should know of, in a few words; `None` where all is well.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let away =
            |side: &str, why: &Option<String>| why.as_ref().map(|why| format!("its {side} is away: {why}"));
        let dead = self.dead_letters.rows;
        let waits = self.waiting.rows > 0;
        // It hangs up with these words, and is asked again at once.
        let is_there = self.target.is_none() || self.target == self.refusal;
        let refusal = self.refusal.as_ref().filter(|_| waits && is_there);
        self.journal
            .clone()
            .or_else(|| self.full.map(|full| full.words(self.journal_bytes)))
            .or_else(|| if self.state == State::Away { away("source", &self.source) } else { None })
            .or_else(|| refusal.map(|why| refuses(self.waiting.rows, why)))
            .or_else(
                || if waits || self.state == State::Carrying { away("target", &self.target) } else { None },
            )
            .or_else(|| (self.elsewhere.rows > 0).then(|| elsewhere(self.elsewhere.rows)))
            .or_else(|| (dead > 0).then(|| format!("{dead} dead letters: vault bridge dead shows them")))
    }
}

/// The target is up, and has said no.
pub(super) fn refuses(rows: u64, why: &str) -> String {
    format!(
        "its target refuses what it is sent: {why}; {rows} messages wait and are sent again, and the one to blame is \
         a dead letter once another is taken"
    )
}

/// So many messages wait for another source than the one that answers.
pub(super) fn elsewhere(rows: u64) -> String {
    format!(
        "whether {rows} messages were taken only the broker can tell that they came from, and another one \
         answers; they wait until it is back. If it never will be: vault bridge settle NAME"
    )
}

impl Full {
    fn words(self, journal_bytes: u64) -> String {
        match self {
            Self::Journal => {
                let mib = journal_bytes >> 20;
                format!(
                    "its journal of {mib} MiB is full; nothing more is taken until some of it has gone on"
                )
            }
            Self::Disk => {
                "the disk of its journal is full; nothing more is taken until there is room".to_owned()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_report_tells_ages_and_the_first_trouble() {
        let begun = Instant::now();
        let mut status = Status::at(begun);
        status.turn(State::Carrying, begun);
        status.figures = Figures {
            counts: Counts { journalled: 9, forwarded: 6, ..Counts::default() },
            oldest: Some(1_000),
            ..Figures::default()
        };
        (status.waiting, status.uncertain) = (Load { rows: 3, bytes: 30 }, Load { rows: 2, bytes: 20 });
        let later = begun + Duration::from_secs(5);
        let report = |status: &Status| status.report(later, 64_000, 64 << 20);
        let told = report(&status);
        assert_eq!((told.state_seconds, told.lag_seconds, told.received, told.trouble()), (5, 63, 11, None));
        let shown = serde_json::to_value(&told).unwrap();
        assert_eq!((&shown["state"], &shown["forwarded"]), (&"carrying".into(), &6.into()));

        status.dead = Load { rows: 1, bytes: 9 };
        assert!(report(&status).trouble().unwrap().starts_with("1 dead letters"));
        status.elsewhere = Load { rows: 2, bytes: 20 };
        assert!(report(&status).trouble().unwrap().starts_with("whether 2 messages were taken"));
        status.target = Some("refused".to_owned());
        assert_eq!(report(&status).trouble().unwrap(), "its target is away: refused");
        status.refusal = status.target.clone();
        let told = report(&status).trouble().unwrap();
        assert!(told.starts_with("its target refuses what it is sent: refused; 3 messages wait"), "{told}");
        let again = Status { target: None, ..status.clone() };
        assert_eq!(report(&again).trouble().unwrap(), told, "it answers again");
        let away = Status { target: Some("no route".to_owned()), ..status.clone() };
        assert_eq!(report(&away).trouble().unwrap(), "its target is away: no route");
        status.strange = Some("it is another broker".to_owned());
        let told = report(&status);
        assert_eq!(
            (told.trouble().unwrap().as_str(), told.is_refusing),
            ("its target is away: it is another broker", true)
        );
        status.fill(Some(Full::Disk), begun + Duration::from_secs(1));
        status.fill(Some(Full::Journal), begun + Duration::from_secs(2));
        assert_eq!(report(&status).full_seconds, 4);
        assert!(report(&status).trouble().unwrap().starts_with("its journal of 64 MiB is full"));
        status.journal = Some("disk I/O error".to_owned());
        assert_eq!(report(&status).trouble().unwrap(), "disk I/O error");

        let mut other = Status::at(begun);
        (other.source, other.target) = (Some("b holds the lock".to_owned()), Some("refused".to_owned()));
        other.turn(State::Standby, later);
        assert_eq!((report(&other).trouble(), report(&other).state_seconds), (None, 0));
    }
}
