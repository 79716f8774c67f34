//! Jobs by schedules, on one of the two vaults at a time. Does what a shift asks for (`schedule`): the
//! lease and the record of a job's state in the ledger, the run itself. Decides neither when a job is
//! due nor what follows from its state.
//!
//! Both vaults look at their own clock and journal. Where something is due, each asks for the job's
//! lease; who has it works a shift, while it renews the lease. Whoever loses the lease stops. If the
//! holder dies, the other vault gets the lease when its time is over. As leases do, jobs wait while the
//! ledger's owner is away.
//!
//! The ledger keeps what is entered for good: up to three entries a run, a fourth where the next one is due
//! soon, and where etcd is the ledger one more for each renewal, which is why a lease is longer there. So no job is due more often than every few seconds (`plan`), and what each
//! vault does for itself (`upkeep`) is not entered at all.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use shared::retry::Backoff;
use shared::shutdown::Shutdown;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::metrics::Metrics;
use super::standing::{RunsOn, Standing, between, tell_failure};
use super::task::{Task, TaskError};
use super::{DRAIN, timestamp};
use crate::schedule::Job;
use crate::schedule::shift::{Act, Entry, Known, Outcome, Shift, Sight, Tenure, look};
use crate::schedule::turn::{Run, State, Wishes, key};
use crate::sequence::Sequence;
use crate::sequence::record::lease::{Claim, Holder};
use crate::sequence::record::{
    Content, Done, Expect, Held, Kind, RecordError, RecordName, Refused, Wish, Written,
};

/// Whose the records are.
const OWNER: &str = "vault";
/// The clock may be set meanwhile, and the other vault may have run it.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Whoever comes too late for the lease looks again.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// What a job does while the vaults are apart, and what its operator may do.
pub(super) const APART: &str = "jobs wait until both vaults are together again; if the other one is dead for sure, \
    vault number take-over --alone lets them go on";

/// Why a job cannot be run now; it is tried again by itself.
#[derive(Debug, thiserror::Error)]
enum JobError {
    /// The pair is not together.
    #[error("{0}; {APART}")]
    Apart(String),
    /// etcd is the ledger, and is not there.
    #[error("{0}; the job waits for it")]
    NoLedger(String),
    /// The ledger says something else.
    #[error("{0}")]
    Ledger(RecordError),
    /// The record is not what this version writes.
    #[error("its record {record} is not understood: {source}; are both vaults of one version?")]
    State {
        /// Its name.
        record: String,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// The run was ended; the other vault may have begun it.
    #[error("its lease was lost in mid-run; it is run again")]
    LeaseLost,
}

impl From<RecordError> for JobError {
    fn from(error: RecordError) -> Self {
        match error {
            RecordError::Apart(why) => Self::Apart(why),
            RecordError::NoLedger(why) => Self::NoLedger(why),
            error => Self::Ledger(error),
        }
    }
}

/// All jobs of this vault. Clones are the same.
#[derive(Clone, Default)]
pub struct Jobs {
    keepers: Arc<[Arc<Keeper>]>,
}

/// One job on this vault.
pub(super) struct Keeper {
    job: Job,
    task: Task,
    sequence: Sequence,
    holder: Holder,
    tenure: Tenure,
    /// An operator's wish. It lives as long as this vault runs, until its run is entered as begun.
    asked: Mutex<Option<Timestamp>>,
    /// Of the last run that was made here.
    outcome: Mutex<Option<Outcome>>,
    wake: Notify,
    trouble: Mutex<Option<String>>,
    metrics: Metrics,
}

impl Jobs {
    /// Starts every job; the handles end after `shutdown`, once runs have ended. `own`: this
    /// vault's name.
    #[must_use]
    pub fn start(
        jobs: Vec<(Job, Task)>,
        own: &str,
        sequence: &Sequence,
        metrics: &Metrics,
        shutdown: &Shutdown,
    ) -> (Self, Vec<JoinHandle<()>>) {
        let keeper = |(job, task)| {
            // Another start of this vault is another holder: what it began, it begins again.
            let token = format!("{:016x}", getrandom::u64().unwrap_or_default());
            Arc::new(Keeper {
                job,
                task,
                sequence: sequence.clone(),
                holder: Holder { by: own.to_owned(), token },
                tenure: Tenure::of(sequence.is_shared()),
                asked: Mutex::default(),
                outcome: Mutex::default(),
                wake: Notify::new(),
                trouble: Mutex::default(),
                metrics: metrics.clone(),
            })
        };
        let keepers: Arc<[_]> = jobs.into_iter().map(keeper).collect();
        let keep = |keeper: &Arc<Keeper>| tokio::spawn(Arc::clone(keeper).keep(shutdown.clone()));
        let handles = keepers.iter().map(keep).collect();
        (Self { keepers }, handles)
    }

    /// How each stands.
    pub async fn standings(&self) -> Vec<Standing> {
        let mut all = Vec::with_capacity(self.keepers.len());
        for keeper in self.keepers.iter() {
            all.push(keeper.standing().await);
        }
        all
    }

    pub(super) fn names(&self) -> impl Iterator<Item = String> {
        self.keepers.iter().map(|keeper| keeper.job.name.clone())
    }

    pub(super) fn find(&self, name: &str) -> Option<&Arc<Keeper>> {
        self.keepers.iter().find(|keeper| keeper.job.name == name)
    }
}

impl Keeper {
    /// Runs it now, whatever its plan says; on this vault, once it has the lease. Gives the run's key.
    pub(super) async fn ask(&self) -> String {
        // A wish that came true at the other vault is none any more.
        let known = self.here().await.ok().flatten();
        let has_run = |at| known.as_ref().is_some_and(|known| known.state.has_run(at));
        // Whole seconds: a key has no full stop. A time that is due or was asked for has a run of its own.
        let mut now = Timestamp::from_second(timestamp().as_second()).unwrap_or_default();
        while has_run(now) || self.job.plan.last_until(now) == Some(now) {
            now += SignedDuration::from_secs(1);
        }
        // Who asks again meanwhile gets the same run.
        let at = *self.asked().get_or_insert(now);
        self.wake.notify_one();
        key(&self.job.name, at)
    }

    /// It begins no more on either vault; what is under way ends. Durable when this returns.
    pub(super) async fn pause(&self, why: &str) -> Result<(), RecordError> {
        let wish = Wish::Put { written: self.written(why.to_owned(), false), expect: Expect::Absent };
        match self.sequence.write_record(self.pause_record(), wish).await {
            // It is paused already.
            Err(RecordError::Refused(Refused::Differs { .. })) => Ok(()),
            paused => paused.map(drop),
        }
    }

    /// It begins again; what was due meanwhile was missed.
    pub(super) async fn resume(&self) -> Result<(), RecordError> {
        let wish = Wish::Remove { expect: Expect::Any };
        match self.sequence.write_record(self.pause_record(), wish).await {
            Ok(_) | Err(RecordError::Refused(Refused::Absent)) => {}
            Err(error) => return Err(error),
        }
        self.wake.notify_one();
        Ok(())
    }

    async fn standing(&self) -> Standing {
        let known = self.here().await.ok().flatten();
        let state = known.as_ref().map(|known| &known.state);
        let paused = self.sequence.record_here(self.pause_record()).await.ok().flatten();
        let paused = paused.and_then(|held| held.written()).map(|written| written.content.value);
        let now = timestamp();
        let running = state.and_then(|state| state.running.as_ref());
        Standing {
            name: self.job.name.clone(),
            runs_on: RunsOn::One,
            next: state
                .map_or_else(|| self.job.plan.next_after(now), |state| state.next(&self.job.plan, now))
                .filter(|_| paused.is_none()),
            ahead: state.filter(|state| state.is_of_a_wrong_clock(now)).map(|state| state.upto),
            running: running.map(Into::into),
            last: state.and_then(|state| state.last.as_ref()).map(Into::into),
            failures: state.map_or(0, |state| state.failures),
            skipped: state.map_or(0, |state| state.skipped),
            asked: self.asked().filter(|at| running.is_none_or(|run| run.at != *at)),
            late_since: state
                .and_then(|state| state.late_since(&self.job.plan, now))
                .filter(|_| paused.is_none()),
            trouble: self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            paused,
        }
    }

    async fn keep(self: Arc<Self>, shutdown: Shutdown) {
        let mut backoff = Backoff::new(Duration::from_millis(500), LONGEST_WAIT);
        loop {
            let mut turn = std::pin::pin!(self.turn(&shutdown));
            let turned = tokio::select! {
                biased;
                turned = &mut turn => turned,
                () = shutdown.cancelled() => {
                    let _ended_or_left_to_the_other = timeout(DRAIN, turn).await;
                    return;
                }
            };
            let wait = match turned {
                Ok(wait) => {
                    backoff.reset();
                    self.note(None);
                    wait
                }
                Err(error) => {
                    self.note(Some(error.to_string()));
                    backoff.next(getrandom::u32().unwrap_or(u32::MAX))
                }
            };
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = self.wake.notified() => {}
                () = sleep(wait) => {}
            }
        }
    }

    /// Said when it changes, not at each try.
    fn note(&self, trouble: Option<String>) {
        let mut noted = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*noted, &trouble) {
            (before, Some(now)) if before.as_ref() != Some(now) => {
                tracing::warn!("worker: job {}: {now}; trying again", self.job.name);
            }
            (Some(_), None) => tracing::info!("worker: job {}: all is well again", self.job.name),
            _ => {}
        }
        *noted = trouble;
    }

    /// Looks whether something is due, and does it. How long to wait before the next look.
    async fn turn(&self, shutdown: &Shutdown) -> Result<Duration, JobError> {
        let (known, paused) = (self.here().await?, self.sequence.record_here(self.pause_record()).await?);
        let state = known.as_ref().map(|known| &known.state);
        match look(&self.job, state, self.wishes(paused.as_ref()), timestamp()) {
            Sight::Rest(next) => return Ok(until(next)),
            Sight::New => {
                return match self.put(&State::new(timestamp()), Expect::Absent).await {
                    Ok(_) | Err(JobError::Ledger(RecordError::Refused(Refused::Differs { .. }))) => {
                        Ok(Duration::ZERO)
                    }
                    Err(error) => Err(error),
                };
            }
            Sight::Acquire => {}
        }
        let asked_at = Instant::now();
        let claim = Claim::Acquire { holder: self.holder.clone(), ttl: self.tenure.ttl };
        let lease = match self.sequence.write_record(self.lease(), Wish::Lease(claim)).await {
            Ok(Done { lease: Some(lease), .. }) => lease,
            Ok(_) | Err(RecordError::Refused(Refused::Held { .. })) => return Ok(LOOK_AGAIN),
            Err(error) => return Err(error.into()),
        };
        let done = tokio::select! {
            done = self.shift(lease.epoch, shutdown) => done?,
            () = self.renewing(lease.epoch, asked_at) => return Err(JobError::LeaseLost),
        };
        if self.tenure.is_given_back(&self.job, timestamp()) {
            let claim = Claim::Release { holder: self.holder.clone(), epoch: lease.epoch };
            // Else its time ends it.
            let _given_back = self.sequence.write_record(self.lease(), Wish::Lease(claim)).await;
        }
        Ok(done)
    }

    /// Works a shift under the lease.
    async fn shift(&self, epoch: u64, shutdown: &Shutdown) -> Result<Duration, JobError> {
        let mut shift = Shift::new(&self.job, self.holder.by.clone(), epoch);
        let mut act = Act::Read;
        loop {
            act = match act {
                Act::Read => {
                    let paused = self.sequence.record(self.pause_record(), false).await?.found;
                    let found = self.read(self.sequence.record(self.record(), false).await?.found)?;
                    let outcome = self.outcome().clone();
                    shift.read(found, outcome.as_ref(), self.wishes(paused.as_ref()), timestamp())
                }
                // Nothing begins any more; what was asked for is forgotten.
                Act::Enter { entry: Entry::Begun, .. } if shutdown.is_cancelled() => return Ok(LONGEST_WAIT),
                Act::Enter { entry, state, over } => {
                    let version = self.put(&state, Expect::Version(over)).await?;
                    self.tell(entry, &state);
                    shift.entered(version)
                }
                Act::Run(run) => {
                    let fault = self.run(&run).await.err().map(|error| error.to_string());
                    let outcome = Outcome { run, ended: timestamp(), fault };
                    *self.outcome() = Some(outcome.clone());
                    shift.ran(&outcome)
                }
                Act::Rest(next) => return Ok(until(next)),
                Act::Again => return Ok(Duration::ZERO),
            };
        }
    }

    /// What has become of the job, once that is in the ledger.
    fn tell(&self, entry: Entry, state: &State) {
        let name = &self.job.name;
        match (entry, &state.last) {
            (Entry::Ended, Some(last)) => {
                self.metrics.ran(name, last.fault.is_none(), between(last.run.began, last.ended));
                if let Some(fault) = &last.fault {
                    let fault = format!("the run for {} failed: {fault}", last.run.at);
                    tell_failure(name, state.failures, &fault, false);
                }
                self.asked().take_if(|wanted| *wanted == last.run.at);
            }
            (Entry::PutRight, _) => tracing::warn!(
                "worker: job {name}: it was decided too far ahead, by a clock that was wrong; it goes on from {}",
                state.upto
            ),
            (Entry::LeftOut, _) => {
                self.metrics.left_out(name);
                tracing::info!("worker: job {name}: the run for {} is left out", state.upto);
            }
            (Entry::Begun | Entry::Ended, _) => {}
        }
    }

    async fn run(&self, run: &Run) -> Result<(), TaskError> {
        let limit = self.job.time_limit;
        match timeout(limit, self.task.run(&self.job.name, run)).await {
            Ok(ended) => ended,
            Err(_) => Err(TaskError::TooLong { limit }),
        }
    }

    /// Ends when the lease may be another's soon. A time counts from before it was asked for.
    async fn renewing(&self, epoch: u64, mut renewed: Instant) {
        let claim = Claim::Renew { holder: self.holder.clone(), epoch };
        let Tenure { renew_every, trust, .. } = self.tenure;
        loop {
            sleep(renew_every).await;
            let asking = Instant::now();
            let left = trust.saturating_sub(renewed.elapsed());
            let renewal = self.sequence.write_record(self.lease(), Wish::Lease(claim.clone()));
            match timeout(left, renewal).await {
                Ok(Ok(_)) => renewed = asking,
                Ok(Err(RecordError::Refused(_))) => return,
                Ok(Err(_)) | Err(_) if renewed.elapsed() >= trust => return,
                Ok(Err(_)) | Err(_) => {}
            }
        }
    }

    fn wishes(&self, paused: Option<&Held>) -> Wishes {
        let asked = *self.asked();
        Wishes { asked, paused: paused.is_some_and(|held| held.text.is_some()) }
    }

    /// What this vault's own journal has; the other may have more.
    async fn here(&self) -> Result<Option<Known>, JobError> {
        self.read(self.sequence.record_here(self.record()).await?)
    }

    fn read(&self, held: Option<Held>) -> Result<Option<Known>, JobError> {
        let Some(held) = held else { return Ok(None) };
        let Some(written) = held.written() else { return Ok(None) };
        let wrong = |source| JobError::State { record: held.name.clone(), source };
        let state: State = serde_json::from_str(&written.content.value).map_err(wrong)?;
        self.asked().take_if(|asked| state.has_run(*asked));
        Ok(Some(Known { state, version: held.version }))
    }

    fn asked(&self) -> MutexGuard<'_, Option<Timestamp>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn outcome(&self) -> MutexGuard<'_, Option<Outcome>> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The version that it makes.
    async fn put(&self, state: &State, expect: Expect) -> Result<u64, JobError> {
        let record = self.record();
        let wrong = |source| JobError::State { record: record.name.clone(), source };
        let value = serde_json::to_string(state).map_err(wrong)?;
        let wish = Wish::Put { written: self.written(value, true), expect };
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(2));
        loop {
            match self.sequence.write_record(record.clone(), wish.clone()).await {
                Ok(done) => return Ok(done.version),
                // The same key again: it is answered what it was answered first. The lease's end ends this.
                Err(
                    RecordError::InDoubt
                    | RecordError::Apart(_)
                    | RecordError::NoLedger(_)
                    | RecordError::Busy,
                ) if expect != Expect::Absent => {
                    sleep(backoff.next(getrandom::u32().unwrap_or(u32::MAX))).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn written(&self, value: String, json: bool) -> Written {
        let key = format!("{:016x}", getrandom::u64().unwrap_or_default());
        Written { content: Content { value, json }, by: self.holder.by.clone(), key }
    }

    fn record(&self) -> RecordName {
        RecordName { owner: OWNER.to_owned(), kind: Kind::Record, name: format!("worker/{}", self.job.name) }
    }

    fn pause_record(&self) -> RecordName {
        RecordName { name: format!("worker-paused/{}", self.job.name), ..self.record() }
    }

    fn lease(&self) -> RecordName {
        RecordName { kind: Kind::Lease, ..self.record() }
    }
}

fn until(next: Option<Timestamp>) -> Duration {
    next.map_or(LONGEST_WAIT, |next| between(timestamp(), next)).min(LONGEST_WAIT)
}
