//! Starts and ends what the worker does in the background: jobs by schedules, upkeep, deliveries to
//! handlers; and hands them what operators ask of jobs. Knows their doors; decides nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use prometheus::Registry;
use shared::shutdown::Shutdown;
use tokio::task::JoinHandle;

use super::jobs::{self, APART, Jobs};
use super::metrics::Metrics;
use super::standing::Standing;
use super::task::{Task, UnfitError};
use super::upkeep::{self, Upkeep};
use super::{every, timestamp};
use crate::config::worker::Schedule;
use crate::delivery::{self, DeliveryError, Targets};
use crate::queue::Queues;
use crate::sequence::Sequence;
use crate::sequence::record::RecordError;

/// How often gauges and whoever looks hear how the jobs stand.
const LOOK: Duration = Duration::from_secs(1);

/// Why the background cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BackgroundError {
    /// A job.
    #[error(transparent)]
    Job(#[from] UnfitError),
    /// A target.
    #[error(transparent)]
    Delivery(#[from] DeliveryError),
}

/// Why a job does not do what an operator asks of it.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// There is none of that name.
    #[error("there is no job {job}; these are: {known}")]
    Unknown {
        /// As asked for.
        job: String,
        /// All there are.
        known: String,
    },
    /// It does it already.
    #[error("job {job} is under way since {since}, and serves as well; vault worker status shows its end")]
    UnderWay {
        /// The job.
        job: String,
        /// When it began.
        since: jiff::Timestamp,
    },
    /// The pair is not together.
    #[error("job {job}: {why}; this changed nothing; {APART}")]
    Apart {
        /// The job.
        job: String,
        /// What the pair says.
        why: String,
    },
    /// The ledger does not take it.
    #[error("job {job}: {source}")]
    Ledger {
        /// The job.
        job: String,
        /// What the ledger says.
        #[source]
        source: RecordError,
    },
    /// The pause is in force or lifted in memory only.
    #[error("job {job}: {}: {source}; it would be otherwise after a restart", file.display())]
    Mark {
        /// The job.
        job: String,
        /// Where a pause is kept.
        file: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
}

/// Jobs and targets at work. Clones are the same.
#[derive(Clone)]
pub struct Background {
    jobs: Jobs,
    upkeep: Upkeep,
    targets: Targets,
    metrics: Metrics,
}

/// Ends once all of it has ended.
pub struct Ending(Vec<JoinHandle<()>>);

impl Ending {
    /// Waits for runs and deliveries that are under way; each has its deadline. Call after shutdown.
    pub async fn ended(self) {
        for handle in self.0 {
            // One that panicked has ended too.
            drop(handle.await);
        }
    }
}

/// One of them.
enum Keeper {
    Job(Arc<jobs::Keeper>),
    Chore(Arc<upkeep::Keeper>),
}

impl Background {
    /// Only the vault's own upkeep.
    #[must_use]
    pub fn of(upkeep: Upkeep, metrics: Metrics) -> (Self, Ending) {
        let (jobs, targets) = (Jobs::default(), Targets::default());
        (Self { jobs, upkeep, targets, metrics }, Ending(Vec::new()))
    }

    /// Starts jobs and deliveries, or nothing if one part is faulty. `own`: this vault's name; pauses
    /// are kept in `state`. They go on until `shutdown`.
    ///
    /// # Errors
    /// See [`BackgroundError`].
    pub fn start(
        self,
        (schedules, deliveries): (&[Schedule], Vec<delivery::Settings>),
        (own, state): (&str, &Path),
        (queues, sequence): (&Queues, &Sequence),
        registry: &Registry,
        shutdown: &Shutdown,
    ) -> Result<(Self, Ending), BackgroundError> {
        let jobs: Result<Vec<_>, _> = schedules
            .iter()
            .map(|schedule| Ok((schedule.job.clone(), Task::new(schedule, queues)?)))
            .collect::<Result<_, UnfitError>>();
        let jobs = jobs?;
        let (targets, mut handles) = Targets::start(deliveries, queues, state, registry, shutdown)?;
        let (jobs, more) = Jobs::start(jobs, own, sequence, &self.metrics, shutdown);
        handles.extend(more);
        Ok((Self { jobs, targets, ..self }, Ending(handles)))
    }

    /// How each job stands: those of the configuration first.
    pub async fn standings(&self) -> Vec<Standing> {
        let mut all = self.jobs.standings().await;
        all.extend(self.upkeep.standings());
        all
    }

    /// The targets.
    #[must_use]
    pub fn targets(&self) -> &Targets {
        &self.targets
    }

    /// Runs a job now, whatever its plan or a pause says. Gives the run's key, where runs have one.
    ///
    /// # Errors
    /// [`AskError::Unknown`], [`AskError::UnderWay`].
    pub async fn run(&self, name: &str) -> Result<Option<String>, AskError> {
        Ok(match self.find(name)? {
            Keeper::Job(job) => Some(job.ask().await),
            Keeper::Chore(chore) => {
                chore.ask().map_err(|since| AskError::UnderWay { job: name.to_owned(), since })?;
                None
            }
        })
    }

    /// It begins no more by itself, over restarts too. What is under way ends.
    ///
    /// # Errors
    /// See [`AskError`].
    pub async fn pause(&self, name: &str, why: &str) -> Result<(), AskError> {
        match self.find(name)? {
            Keeper::Job(job) => job.pause(why).await.map_err(|source| ledger(name, source)),
            Keeper::Chore(chore) => chore.pause(why).map_err(|source| mark(&chore, name, source)),
        }
    }

    /// It begins by itself again.
    ///
    /// # Errors
    /// See [`AskError`].
    pub async fn resume(&self, name: &str) -> Result<(), AskError> {
        match self.find(name)? {
            Keeper::Job(job) => job.resume().await.map_err(|source| ledger(name, source)),
            Keeper::Chore(chore) => chore.resume().map_err(|source| mark(&chore, name, source)),
        }
    }

    /// Brings the gauges up to date from now on, and tells `report` what an operator should look at.
    pub fn look(&self, report: impl Fn(Vec<String>) + Send + Sync + 'static, shutdown: &Shutdown) {
        let (own, report) = (self.clone(), Arc::new(report));
        let look = move || -> BoxFuture<'static, ()> {
            let (own, report) = (own.clone(), Arc::clone(&report));
            Box::pin(async move {
                let (standings, now) = (own.standings().await, timestamp());
                standings.iter().for_each(|standing| own.metrics.show(standing, now));
                own.targets.show(now.into());
                report(own.worries_of(&standings));
            })
        };
        every(LOOK, look, shutdown.clone());
    }

    /// What an operator should look at, each in a few words.
    pub async fn worries(&self) -> Vec<String> {
        self.worries_of(&self.standings().await)
    }

    fn worries_of(&self, standings: &[Standing]) -> Vec<String> {
        let mut worries: Vec<_> = standings.iter().filter_map(Standing::worry).collect();
        worries.extend(self.targets.status().iter().filter_map(delivery::Status::worry));
        worries
    }

    fn find(&self, name: &str) -> Result<Keeper, AskError> {
        if let Some(job) = self.jobs.find(name) {
            return Ok(Keeper::Job(Arc::clone(job)));
        }
        self.upkeep.find(name).map(Keeper::Chore).ok_or_else(|| {
            let known: Vec<_> = self.jobs.names().chain(self.upkeep.names()).collect();
            AskError::Unknown { job: name.to_owned(), known: known.join(", ") }
        })
    }
}

fn ledger(job: &str, source: RecordError) -> AskError {
    let job = job.to_owned();
    match source {
        RecordError::Apart(why) => AskError::Apart { job, why },
        source => AskError::Ledger { job, source },
    }
}

fn mark(chore: &upkeep::Keeper, job: &str, source: std::io::Error) -> AskError {
    AskError::Mark { job: job.to_owned(), file: chore.mark().to_owned(), source }
}
