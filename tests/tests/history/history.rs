//! What was asked and what came of it: one record a call, with the time it began and the time it
//! ended, and what the nemesis did meanwhile. Judges nothing.
#![expect(clippy::disallowed_methods, reason = "a history is told in real time")]

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What a caller asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Act {
    /// A number for a key.
    Reserve {
        series: String,
        key: String,
        /// The life that the key was first sent to.
        ticket: Option<String>,
    },
    /// A document uses the number.
    Confirm { series: String, number: u64, hash: String },
    /// The number is spoiled.
    Void { series: String, number: u64 },
    /// Which number has the key?
    Lookup { series: String, key: String },
    /// `value`, if version `base` is the present one (0: if there is none).
    Write { record: String, base: u64, value: String },
    /// The present version.
    Read { record: String },
    /// To hold the lease.
    Acquire { lease: String, token: String },
    /// To hold it longer.
    Renew { lease: String, token: String, epoch: u64 },
    /// To hold it no more.
    Release { lease: String, token: String, epoch: u64 },
}

/// A number as a vault tells it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Line {
    pub(crate) number: u64,
    pub(crate) key: String,
    /// `reserved`, `confirmed`, `void`, `doubtful`.
    pub(crate) state: String,
    pub(crate) hash: Option<String>,
}

/// What came of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// This number.
    Number(Line),
    /// This version of a record; a write's answer need not repeat the value.
    Version { version: u64, value: Option<String> },
    /// The lease is held, in this epoch.
    Held { epoch: u64 },
    /// So it is.
    Done,
    /// There is no such thing.
    Nothing,
    /// Refused; the code says whether it may have acted.
    Refused { status: u16, code: String },
    /// No answer that says anything: it may have acted, or may yet act.
    Unknown(String),
}

/// One call.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// Which vault was asked.
    pub(crate) vault: usize,
    pub(crate) invoked: Duration,
    pub(crate) ended: Duration,
    pub(crate) act: Act,
    pub(crate) outcome: Outcome,
}

/// A time in which `living` vaults had to go on by themselves.
#[derive(Debug, Clone)]
pub(crate) struct Window {
    pub(crate) what: String,
    pub(crate) living: Vec<usize>,
    pub(crate) from: Duration,
    pub(crate) to: Duration,
    /// The one of them that an operator has made the owner of the records, to go on alone.
    pub(crate) records: Option<usize>,
}

/// A time in which the database was away or in trouble, and nothing else was wrong.
#[derive(Debug, Clone)]
pub(crate) struct Outage {
    pub(crate) what: String,
    pub(crate) from: Duration,
    pub(crate) to: Duration,
}

/// A journal that was deleted: what its vault gave alone from `since` on may be forgotten.
#[derive(Debug, Clone)]
pub(crate) struct Loss {
    pub(crate) vault: usize,
    pub(crate) since: Duration,
    pub(crate) at: Duration,
}

/// A series as it stands at the end, when both vaults are together and nothing is under way.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ending {
    /// As each vault lists it.
    pub(crate) listed: [Vec<Line>; 2],
    /// Numbers that will never be given, because nobody can know whether they were.
    pub(crate) unaccounted: Vec<(u64, u64)>,
    /// Numbers above it are still to be given, in whatever order.
    pub(crate) upto: u64,
}

/// All that is known of one run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Story {
    pub(crate) calls: Vec<Call>,
    pub(crate) windows: Vec<Window>,
    pub(crate) outages: Vec<Outage>,
    pub(crate) losses: Vec<Loss>,
    /// How often the nemesis ended a vault's life in a way after which nobody can know whether that
    /// answered more alone than is written down.
    pub(crate) unknown_ends: u64,
    /// How many numbers of each available series are set aside for a vault.
    pub(crate) range: u64,
    /// The vaults' lives: each was still there to hear a call that began then.
    pub(crate) lives: BTreeMap<String, Duration>,
    /// Series whose numbers are given in order.
    pub(crate) strict: Vec<String>,
    /// Neither vault needs the other for anything: etcd is the ledger.
    pub(crate) apart: bool,
    /// By series.
    pub(crate) ending: BTreeMap<String, Ending>,
}

/// Takes down what happens, from many threads.
#[derive(Debug)]
pub(crate) struct History {
    start: Instant,
    story: Mutex<Story>,
}

impl History {
    pub(crate) fn new(strict: &[&str]) -> Self {
        let strict = strict.iter().map(|series| (*series).to_owned()).collect();
        Self { start: Instant::now(), story: Mutex::new(Story { strict, ..Story::default() }) }
    }

    /// The same of vaults that do not need each other.
    pub(crate) fn apart(self, apart: bool) -> Self {
        self.change(|story| story.apart = apart);
        self
    }

    /// The same where so many numbers are set aside for each vault.
    pub(crate) fn range(self, range: u64) -> Self {
        self.change(|story| story.range = range);
        self
    }

    /// The time since the beginning.
    pub(crate) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Makes the call and takes it down.
    pub(crate) fn call(&self, vault: usize, act: Act, make: impl FnOnce() -> Outcome) -> Outcome {
        let outcomes = self.call_many(vault, vec![act], |_| vec![make()]);
        outcomes.into_iter().next().unwrap_or(Outcome::Nothing)
    }

    /// This life has answered a call that began then.
    pub(crate) fn saw_life(&self, life: &str, invoked: Duration) {
        self.change(|story| {
            let last = story.lives.entry(life.to_owned()).or_default();
            *last = (*last).max(invoked);
        });
    }

    /// Makes one call for many acts and takes each down, with the same times.
    pub(crate) fn call_many(
        &self,
        vault: usize,
        acts: Vec<Act>,
        make: impl FnOnce(&[Act]) -> Vec<Outcome>,
    ) -> Vec<Outcome> {
        let invoked = self.now();
        let outcomes = make(&acts);
        let ended = self.now();
        self.change(|story| {
            for (act, outcome) in acts.into_iter().zip(outcomes.clone()) {
                story.calls.push(Call { vault, invoked, ended, act, outcome });
            }
        });
        outcomes
    }

    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Story) -> T) -> T {
        change(&mut self.story.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// All of it.
    pub(crate) fn story(&self) -> Story {
        self.change(|story| story.clone())
    }
}

impl Act {
    /// The series it is about.
    pub(crate) fn series(&self) -> Option<&str> {
        match self {
            Self::Reserve { series, .. }
            | Self::Confirm { series, .. }
            | Self::Void { series, .. }
            | Self::Lookup { series, .. } => Some(series),
            Self::Write { .. }
            | Self::Read { .. }
            | Self::Acquire { .. }
            | Self::Renew { .. }
            | Self::Release { .. } => None,
        }
    }
}

impl Call {
    /// The number it told.
    pub(crate) fn line(&self) -> Option<(&str, &Line)> {
        match (&self.outcome, self.act.series()) {
            (Outcome::Number(line), Some(series)) => Some((series, line)),
            _ => None,
        }
    }
}
