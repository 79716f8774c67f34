//! Starts and ends what the worker does in the background: jobs by schedules, deliveries to handlers.
//! Knows their doors; decides nothing.

use std::path::Path;

use shared::shutdown::Shutdown;
use tokio::task::JoinHandle;

use super::jobs::Jobs;
use super::task::{Task, UnfitError};
use crate::config::worker::Schedule;
use crate::delivery::{self, DeliveryError, Targets};
use crate::queue::Queues;
use crate::sequence::Sequence;

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

/// Jobs and targets at work; by default none. Clones are the same.
#[derive(Clone, Default)]
pub struct Background {
    jobs: Jobs,
    targets: Targets,
}

/// Ends once all of it has ended.
#[derive(Default)]
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

impl Background {
    /// Starts all of it, or nothing if one part is faulty. `own`: this vault's name; pauses are kept
    /// in `state`. It goes on until `shutdown`.
    ///
    /// # Errors
    /// See [`BackgroundError`].
    pub fn start(
        (schedules, deliveries): (&[Schedule], Vec<delivery::Settings>),
        (own, state): (&str, &Path),
        queues: &Queues,
        sequence: &Sequence,
        shutdown: &Shutdown,
    ) -> Result<(Self, Ending), BackgroundError> {
        let jobs: Result<Vec<_>, _> = schedules
            .iter()
            .map(|schedule| Ok((schedule.job.clone(), Task::new(schedule, queues)?)))
            .collect::<Result<_, UnfitError>>();
        let jobs = jobs?;
        let (targets, mut handles) = Targets::start(deliveries, queues, state, shutdown)?;
        let (jobs, more) = Jobs::start(jobs, own, sequence, shutdown);
        handles.extend(more);
        Ok((Self { jobs, targets }, Ending(handles)))
    }

    /// The jobs.
    #[must_use]
    pub fn jobs(&self) -> &Jobs {
        &self.jobs
    }

    /// The targets.
    #[must_use]
    pub fn targets(&self) -> &Targets {
        &self.targets
    }
}
