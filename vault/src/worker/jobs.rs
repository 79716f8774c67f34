//! Jobs: runs what schedules say is due, on one of the two vaults at a time. Knows the lease, the
//! record of a job's state and what a run does; not when a job is due (`schedule`).
//!
//! Both vaults look at their own clock and journal. Where something is due, each asks for the job's
//! lease; who has it reads the state again, enters that the run has begun, runs it while it renews
//! the lease, and enters how it ended. Whoever loses the lease stops. If the holder dies, the other
//! vault gets the lease when its time is over, finds a run begun and not ended, and begins it again
//! under the same key. As leases do, jobs wait while the ledger's owner is away.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use shared::retry::Backoff;
use shared::shutdown::Shutdown;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::task::{Task, TaskError};
use crate::schedule::Job;
use crate::schedule::turn::{Run, State, Step, key};
use crate::sequence::Sequence;
use crate::sequence::record::lease::{Claim, Holder};
use crate::sequence::record::{
    Content, Done, Expect, Held, Kind, RecordError, RecordName, Refused, Wish, Written,
};

/// Whose the records are.
const OWNER: &str = "vault";
/// A lease lasts so long without a renewal, in seconds.
const TTL: u64 = 15;
const RENEW_EVERY: Duration = Duration::from_secs(4);
/// Without a renewal for so long a run is ended, before anybody else may hold the lease.
const TRUST: Duration = Duration::from_secs(12);
/// The clock may be set meanwhile, and the other vault may have run it.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Whoever comes too late for the lease looks again.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// A run may take so long to end when the vault stops; then the other vault begins it again.
const DRAIN: Duration = Duration::from_secs(20);

/// Why a job cannot be run now; it is tried again by itself.
#[derive(Debug, thiserror::Error)]
enum JobError {
    /// The ledger.
    #[error("{0}")]
    Ledger(#[from] RecordError),
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

/// An operator names a job that is not configured.
#[derive(Debug, thiserror::Error)]
#[error("there is no job {job}; these are: {known}")]
pub struct UnknownJob {
    /// As asked for.
    pub job: String,
    /// All there are.
    pub known: String,
}

/// How a job stands, as this vault knows it.
#[derive(Debug, Clone, Serialize)]
pub struct JobStatus {
    /// Its name.
    pub name: String,
    /// When it is due next.
    pub next: Option<Timestamp>,
    /// What both vaults know of it; `None` while it was never looked at.
    pub state: Option<State>,
    /// Why it cannot be run at present.
    pub trouble: Option<String>,
}

/// All jobs of this vault. Clones are the same.
#[derive(Clone, Default)]
pub struct Jobs {
    runners: Arc<[Arc<Runner>]>,
}

struct Runner {
    job: Job,
    task: Task,
    sequence: Sequence,
    holder: Holder,
    asked: Mutex<Option<Timestamp>>,
    wake: Notify,
    trouble: Mutex<Option<String>>,
}

impl Jobs {
    /// Starts every job; the handles end after `shutdown`, once runs have ended. `own`: this
    /// vault's name.
    #[must_use]
    pub fn start(
        jobs: Vec<(Job, Task)>,
        own: &str,
        sequence: &Sequence,
        shutdown: &Shutdown,
    ) -> (Self, Vec<JoinHandle<()>>) {
        let runner = |(job, task)| {
            // Another start of this vault is another holder: what it began, it begins again.
            let token = format!("{:016x}", getrandom::u64().unwrap_or_default());
            Arc::new(Runner {
                job,
                task,
                sequence: sequence.clone(),
                holder: Holder { by: own.to_owned(), token },
                asked: Mutex::default(),
                wake: Notify::new(),
                trouble: Mutex::default(),
            })
        };
        let runners: Arc<[_]> = jobs.into_iter().map(runner).collect();
        let keep = |runner: &Arc<Runner>| tokio::spawn(Arc::clone(runner).keep(shutdown.clone()));
        let handles = runners.iter().map(keep).collect();
        (Self { runners }, handles)
    }

    /// How each stands.
    pub async fn status(&self) -> Vec<JobStatus> {
        let mut all = Vec::with_capacity(self.runners.len());
        for runner in self.runners.iter() {
            let state = runner.here().await.ok().flatten().map(|(state, _)| state);
            all.push(JobStatus {
                name: runner.job.name.clone(),
                next: runner.job.plan.next_after(timestamp()),
                state,
                trouble: runner.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            });
        }
        all
    }

    /// Runs a job now, whatever its plan says; by this vault, once it has the lease. Gives the
    /// run's key.
    ///
    /// # Errors
    /// There is no such job.
    pub fn run(&self, name: &str) -> Result<String, UnknownJob> {
        let Some(runner) = self.runners.iter().find(|runner| runner.job.name == name) else {
            let known: Vec<_> = self.runners.iter().map(|runner| &*runner.job.name).collect();
            return Err(UnknownJob { job: name.to_owned(), known: known.join(", ") });
        };
        // Whole seconds: a key has no full stop. Who asks again meanwhile gets the same run.
        let now = Timestamp::from_second(timestamp().as_second()).unwrap_or_default();
        let at = *runner.asked.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(now);
        runner.wake.notify_one();
        Ok(key(name, at))
    }
}

impl Runner {
    async fn keep(self: Arc<Self>, shutdown: Shutdown) {
        let mut backoff = Backoff::new(Duration::from_millis(500), LONGEST_WAIT);
        loop {
            let mut turn = std::pin::pin!(self.turn());
            let turned = tokio::select! {
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
    async fn turn(&self) -> Result<Duration, JobError> {
        let Some((state, _)) = self.here().await? else {
            let first = self.put(&State::new(timestamp()), Expect::Absent).await;
            return match first {
                Ok(_) | Err(JobError::Ledger(RecordError::Refused(Refused::Differs { .. }))) => {
                    Ok(Duration::ZERO)
                }
                Err(error) => Err(error),
            };
        };
        if let Step::Wait(next) = self.step(&state) {
            return Ok(until(next));
        }
        let asked_at = Instant::now();
        let claim = Claim::Acquire { holder: self.holder.clone(), ttl: TTL };
        let lease = match self.sequence.write_record(self.lease(), Wish::Lease(claim)).await {
            Ok(Done { lease: Some(lease), .. }) => lease,
            Ok(_) | Err(RecordError::Refused(Refused::Held { .. })) => return Ok(LOOK_AGAIN),
            Err(error) => return Err(error.into()),
        };
        tokio::select! {
            done = self.holding(lease.epoch) => done,
            () = self.renewing(lease.epoch, asked_at) => Err(JobError::LeaseLost),
        }
    }

    async fn holding(&self, epoch: u64) -> Result<Duration, JobError> {
        // Only now nobody else changes it.
        let held = self.sequence.record(self.record(), false).await?.found;
        let Some((state, version)) = self.read(held)? else { return Ok(Duration::ZERO) };
        match self.step(&state) {
            Step::Wait(next) => Ok(until(next)),
            Step::Skip(upto) => {
                tracing::info!("worker: job {}: the run for {upto} is left out", self.job.name);
                self.put(&state.skipping(upto), Expect::Version(version)).await?;
                Ok(Duration::ZERO)
            }
            Step::Run { at, asked } => {
                let began = timestamp();
                let run = Run { at, asked, by: self.holder.by.clone(), epoch, began };
                let state = state.running(run.clone());
                let version = self.put(&state, Expect::Version(version)).await?;
                let fault = self.run(at).await.err().map(|error| error.to_string());
                if let Some(fault) = &fault {
                    tracing::warn!("worker: job {}: the run for {at} failed: {fault}", self.job.name);
                }
                self.put(&state.ended(run, timestamp(), fault), Expect::Version(version)).await?;
                let mut wanted = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
                wanted.take_if(|wanted| *wanted == at);
                Ok(Duration::ZERO)
            }
        }
    }

    async fn run(&self, at: Timestamp) -> Result<(), TaskError> {
        let limit = self.job.time_limit;
        match timeout(limit, self.task.run(&self.job.name, at)).await {
            Ok(ended) => ended,
            Err(_) => Err(TaskError::TooLong { limit }),
        }
    }

    /// Ends when the lease may be another's soon. A time counts from before it was asked for.
    async fn renewing(&self, epoch: u64, mut renewed: Instant) {
        let claim = Claim::Renew { holder: self.holder.clone(), epoch };
        loop {
            sleep(RENEW_EVERY).await;
            let asking = Instant::now();
            let left = TRUST.saturating_sub(renewed.elapsed());
            let renewal = self.sequence.write_record(self.lease(), Wish::Lease(claim.clone()));
            match timeout(left, renewal).await {
                Ok(Ok(_)) => renewed = asking,
                Ok(Err(RecordError::Refused(_))) => return,
                Ok(Err(_)) | Err(_) if renewed.elapsed() >= TRUST => return,
                Ok(Err(_)) | Err(_) => {}
            }
        }
    }

    fn step(&self, state: &State) -> Step {
        let asked = *self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        state.step(&self.job.plan, self.job.rules, asked, timestamp())
    }

    /// What this vault's own journal has; the other may have more.
    async fn here(&self) -> Result<Option<(State, u64)>, JobError> {
        self.read(self.sequence.record_here(self.record()).await?)
    }

    fn read(&self, held: Option<Held>) -> Result<Option<(State, u64)>, JobError> {
        let Some(held) = held else { return Ok(None) };
        let Some(written) = held.written() else { return Ok(None) };
        let wrong = |source| JobError::State { record: held.name.clone(), source };
        let state = serde_json::from_str(&written.content.value).map_err(wrong)?;
        Ok(Some((state, held.version)))
    }

    /// The version that it makes.
    async fn put(&self, state: &State, expect: Expect) -> Result<u64, JobError> {
        let record = self.record();
        let wrong = |source| JobError::State { record: record.name.clone(), source };
        let value = serde_json::to_string(state).map_err(wrong)?;
        let written = Written {
            content: Content { value, json: true },
            by: self.holder.by.clone(),
            key: format!("{:016x}", getrandom::u64().unwrap_or_default()),
        };
        let wish = Wish::Put { written, expect };
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

    fn record(&self) -> RecordName {
        RecordName { owner: OWNER.to_owned(), kind: Kind::Record, name: format!("worker/{}", self.job.name) }
    }

    fn lease(&self) -> RecordName {
        RecordName { kind: Kind::Lease, ..self.record() }
    }
}

fn until(next: Option<Timestamp>) -> Duration {
    let left = next.map(|next| next.duration_since(timestamp()).max(SignedDuration::ZERO));
    left.and_then(|left| Duration::try_from(left).ok()).unwrap_or(LONGEST_WAIT).min(LONGEST_WAIT)
}

fn timestamp() -> Timestamp {
    Timestamp::try_from(super::wall_clock()).unwrap_or_default()
}
