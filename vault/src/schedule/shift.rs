//! One vault's shift at a job: from the look at its state to the end of a run, as acts that each ask one
//! thing of the ledger or of the handler. Pure; knows neither how that is done nor what a run does.
//!
//! ```text
//! look → Acquire → Read → Enter (begun) → Run → Enter (ended) → Again
//! ```
//!
//! A vault may die between any two acts. Before `Enter (begun)` nothing has happened; after it, whoever
//! gets the lease next finds a run begun and not ended, and begins it again under the same key.
//! The state is read again under the lease, and entered only over the version that was read.

use std::time::Duration;

use jiff::Timestamp;

use super::Job;
use super::turn::{Run, State, Step, Wishes};

/// How a job's lease is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tenure {
    /// It lasts so long without a renewal, in seconds.
    pub ttl: u64,
    /// It is renewed so often.
    pub renew_every: Duration,
    /// Without a renewal for so long, counted from before it was asked for, a run is broken off: before
    /// anybody else may hold the lease.
    pub trust: Duration,
}

impl Tenure {
    /// Where a renewal is an entry of the ledger, as in etcd, there are fewer.
    #[must_use]
    pub const fn of(renewals_are_entries: bool) -> Self {
        let (ttl, renew_every, trust) = if renewals_are_entries { (60, 15, 48) } else { (15, 4, 12) };
        Self { ttl, renew_every: Duration::from_secs(renew_every), trust: Duration::from_secs(trust) }
    }

    /// Is the lease to be given back after a shift? Otherwise its time ends it, which is no entry; but
    /// where the job is due again before, one vault would hold it for ever, and what the other is asked
    /// for would never begin.
    #[must_use]
    pub fn is_given_back(self, job: &Job, now: Timestamp) -> bool {
        let over = now.checked_add(Duration::from_secs(self.ttl)).unwrap_or(Timestamp::MAX);
        job.plan.next_after(now).is_some_and(|next| next <= over)
    }
}

/// What the ledger has of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its state,
    pub state: State,
    /// in this version of its record.
    pub version: u64,
}

/// What is entered about a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// A run begins.
    Begun,
    /// The run has ended.
    Ended,
    /// What was due is left out.
    LeftOut,
    /// What a wrong clock decided counts no more.
    PutRight,
}

/// How a run ended that this vault made, and may not have been able to enter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The run.
    pub run: Run,
    /// When it ended.
    pub ended: Timestamp,
    /// Why it failed; `None`: it did not.
    pub fault: Option<String>,
}

/// What a look says is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sight {
    /// Nothing until this time, or until somebody wishes something.
    Rest(Option<Timestamp>),
    /// Nobody has looked at it before: enter [`State::new`] if there is still none; then look again.
    New,
    /// Ask for the lease; with it, [`Shift::new`].
    Acquire,
}

/// What is to be done next under the lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Nothing until this time, or until somebody wishes something. The shift is over.
    Rest(Option<Timestamp>),
    /// The shift is over; look again at once.
    Again,
    /// Read the state as the ledger has it now; then [`Shift::read`].
    Read,
    /// Enter this state over that version of it; then [`Shift::entered`].
    Enter {
        /// What it says.
        entry: Entry,
        /// What is entered.
        state: State,
        /// What was read.
        over: u64,
    },
    /// Do it; then [`Shift::ran`].
    Run(Run),
}

/// What is done without the lease, by this vault's own copy of the state, which may be old.
#[must_use]
pub fn look(job: &Job, here: Option<&State>, wishes: Wishes, now: Timestamp) -> Sight {
    match here.map(|state| state.step(&job.plan, job.rules, wishes, now)) {
        None => Sight::New,
        Some(Step::Wait(next)) => Sight::Rest(next),
        Some(Step::Skip(_) | Step::PutRight(_) | Step::Run { .. }) => Sight::Acquire,
    }
}

/// A shift under the lease.
#[derive(Debug)]
pub struct Shift<'a> {
    job: &'a Job,
    by: String,
    epoch: u64,
    /// What is being entered or run: the state in which it is entered as begun.
    begun: Option<State>,
    /// That state's version, once it is entered.
    version: Option<u64>,
}

impl<'a> Shift<'a> {
    /// This vault has the lease in this epoch; the first act is [`Act::Read`].
    #[must_use]
    pub const fn new(job: &'a Job, by: String, epoch: u64) -> Self {
        Self { job, by, epoch, begun: None, version: None }
    }

    /// The ledger has this. `outcome`: of the run that this vault made last.
    pub fn read(
        &mut self,
        found: Option<Known>,
        outcome: Option<&Outcome>,
        wishes: Wishes,
        now: Timestamp,
    ) -> Act {
        let Some(Known { state, version }) = found else { return Act::Again };
        // It has ended, and only that was not entered when the lease was lost.
        if let Some(Outcome { run, ended, fault }) =
            outcome.filter(|it| state.running.as_ref() == Some(&it.run))
        {
            let state = state.ended(run.clone(), *ended, fault.clone());
            return Act::Enter { entry: Entry::Ended, state, over: version };
        }
        match state.step(&self.job.plan, self.job.rules, wishes, now) {
            Step::Wait(next) => Act::Rest(next),
            Step::Skip(upto) => {
                Act::Enter { entry: Entry::LeftOut, state: state.skipping(upto), over: version }
            }
            Step::PutRight(now) => {
                Act::Enter { entry: Entry::PutRight, state: state.put_right(now), over: version }
            }
            Step::Run { at, asked } => {
                let run = Run { at, asked, by: self.by.clone(), epoch: self.epoch, began: now };
                let begun = state.running(run);
                self.begun = Some(begun.clone());
                Act::Enter { entry: Entry::Begun, state: begun, over: version }
            }
        }
    }

    /// What was to be entered stands in this version.
    pub fn entered(&mut self, version: u64) -> Act {
        let begun = self.begun.as_ref().filter(|_| self.version.is_none());
        let Some(run) = begun.and_then(|begun| begun.running.clone()) else { return Act::Again };
        self.version = Some(version);
        Act::Run(run)
    }

    /// The run has ended so.
    pub fn ran(&mut self, outcome: &Outcome) -> Act {
        let (Some(begun), Some(over)) = (self.begun.take(), self.version) else { return Act::Again };
        let Outcome { run, ended, fault } = outcome.clone();
        Act::Enter { entry: Entry::Ended, state: begun.ended(run, ended, fault), over }
    }
}

#[cfg(test)]
mod world;
