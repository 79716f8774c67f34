//! Delivery: the messages of a queue go to a handler's URL, each at least once, signed as Standard
//! Webhooks says. Knows targets by name; not who sends messages, nor what handlers do with them.
//!
//! - `letter`: a message as headers and body. `signature`: the secrets. `handler`: HTTP and TLS.
//! - `course`: what follows from an answer; pure. `ailing`: when the log hears of a handler that fails.
//! - `target`: one target at work.
//!
//! A handler tells by `webhook-id` that it has seen an event: the id stays the same over tries,
//! restarts and replays of a dead letter. How often a message was tried is in memory only: after a
//! restart of the vault its tries begin anew.

mod ailing;
pub mod course;
pub mod handler;
pub mod letter;
mod metrics;
pub mod signature;
mod target;

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use prometheus::Registry;
use shared::shutdown::Shutdown;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use self::course::{Outcome, Policy};
use self::handler::{Address, Deadlines, Handler, HandlerError};
use self::letter::Letter;
use self::metrics::Metrics;
use self::signature::{SecretError, Secrets};
pub use self::target::Status;
use self::target::Target;
use crate::pause::Pause;
use crate::queue::Queues;
use crate::queue::message::{Destination, NameError};

/// One `[[delivery]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The target's name.
    pub name: String,
    /// Whose messages.
    pub queue: String,
    /// Where they go.
    pub endpoint: Endpoint,
    /// How often each is tried.
    pub policy: Policy,
    /// Messages under way at once; at least 1.
    pub concurrency: usize,
    /// Requests a second at most.
    pub per_second: NonZeroU32,
}

/// Where a handler listens, and how it knows who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// An absolute URL.
    pub url: String,
    /// Who signs its certificate; `None`: whom the host trusts.
    pub authority_file: Option<PathBuf>,
    /// The file of one or two secrets; `None`: events are not signed.
    pub secret_file: Option<PathBuf>,
    /// How long it may take.
    pub deadlines: Deadlines,
}

/// What can go wrong with targets.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    /// Its URL or its authority.
    #[error("delivery {target}: {source}")]
    Handler {
        /// The target.
        target: String,
        /// What is wrong.
        #[source]
        source: HandlerError,
    },
    /// Its secrets.
    #[error("delivery {target}: {source}")]
    Secret {
        /// The target.
        target: String,
        /// What is wrong.
        #[source]
        source: SecretError,
    },
    /// Its queue's name.
    #[error("delivery {target}: queue {queue:?}: {source}")]
    Queue {
        /// The target.
        target: String,
        /// As configured.
        queue: String,
        /// What is wrong.
        #[source]
        source: NameError,
    },
    /// A fault of the program.
    #[error("delivery: metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// An operator names a target that is not configured.
    #[error("there is no target {target}; these are: {known}")]
    Unknown {
        /// As asked for.
        target: String,
        /// All there are.
        known: String,
    },
    /// The pause is in force or lifted in memory only.
    #[error("delivery {target}: {}: {source}; it would be otherwise after a restart", file.display())]
    Mark {
        /// The target.
        target: String,
        /// Where a pause is kept.
        file: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
}

/// A handler that is called, and how requests to it are signed.
pub struct Caller {
    handler: Handler,
    secrets: Option<Secrets>,
}

impl Caller {
    /// Reads authority and secrets; connects nowhere yet. `whose` names it in errors.
    ///
    /// # Errors
    /// [`DeliveryError::Handler`], [`DeliveryError::Secret`].
    pub fn new(whose: &str, endpoint: &Endpoint, most_idle: usize) -> Result<Self, DeliveryError> {
        let wrong = |source| DeliveryError::Handler { target: whose.to_owned(), source };
        let address = Address::parse(&endpoint.url).map_err(wrong)?;
        let authority = endpoint.authority_file.as_deref();
        let handler = Handler::new(address, authority, endpoint.deadlines, most_idle).map_err(wrong)?;
        let secrets = endpoint.secret_file.as_deref().map(Secrets::read).transpose();
        let secrets = secrets.map_err(|source| DeliveryError::Secret { target: whose.to_owned(), source })?;
        Ok(Self { handler, secrets })
    }

    /// One try.
    pub async fn post(&self, letter: &Letter, now: SystemTime) -> Outcome {
        let headers = target::signed(letter, self.secrets.as_ref(), now);
        self.handler.post(headers, letter.body.clone(), now).await
    }
}

/// All targets at work. Clones are the same.
#[derive(Clone, Default)]
pub struct Targets {
    targets: Arc<[Arc<Target>]>,
}

impl Targets {
    /// Starts every target; nothing is sent if one of them is faulty. Pauses are kept in `state`.
    /// The handles end after `shutdown`, once what was under way has ended.
    ///
    /// # Errors
    /// See [`DeliveryError`].
    pub fn start(
        settings: Vec<Settings>,
        queues: &Queues,
        state: &Path,
        registry: &Registry,
        shutdown: &Shutdown,
    ) -> Result<(Self, Vec<JoinHandle<()>>), DeliveryError> {
        let metrics = Metrics::register(registry)?;
        let bodies = Arc::new(Semaphore::new(target::PIECES));
        let made = |settings| target(settings, state, Arc::clone(&bodies), metrics.clone()).map(Arc::new);
        let targets: Result<Vec<_>, _> = settings.into_iter().map(made).collect();
        let targets: Arc<[_]> = targets?.into();
        let work = |target: &Arc<Target>| Arc::clone(target).run(queues.clone(), shutdown.clone());
        let handles = targets.iter().map(|target| tokio::spawn(work(target))).collect();
        Ok((Self { targets }, handles))
    }

    /// How each stands.
    #[must_use]
    pub fn status(&self) -> Vec<Status> {
        self.targets.iter().map(|target| target.status()).collect()
    }

    /// Brings the gauges up to date.
    pub fn show(&self, now: SystemTime) {
        self.targets.iter().for_each(|target| target.show(now));
    }

    /// Sends it nothing more, over restarts too; what is under way ends.
    ///
    /// # Errors
    /// [`DeliveryError::Unknown`], [`DeliveryError::Mark`].
    pub fn pause(&self, name: &str, why: &str) -> Result<(), DeliveryError> {
        self.set(name, |target| target.pause(why))
    }

    /// Sends it messages again.
    ///
    /// # Errors
    /// As [`Targets::pause`].
    pub fn resume(&self, name: &str) -> Result<(), DeliveryError> {
        self.set(name, Target::resume)
    }

    fn set(&self, name: &str, set: impl FnOnce(&Target) -> std::io::Result<()>) -> Result<(), DeliveryError> {
        let Some(target) = self.targets.iter().find(|target| target.name() == name) else {
            let known: Vec<_> = self.targets.iter().map(|target| target.name()).collect();
            return Err(DeliveryError::Unknown { target: name.to_owned(), known: known.join(", ") });
        };
        let wrong =
            |source| DeliveryError::Mark { target: name.to_owned(), file: target.mark().to_owned(), source };
        set(target).map_err(wrong)
    }
}

fn target(
    settings: Settings,
    state: &Path,
    bodies: Arc<Semaphore>,
    metrics: Metrics,
) -> Result<Target, DeliveryError> {
    let name = settings.name.clone();
    let destination = Destination::queue(&settings.queue).map_err(|source| DeliveryError::Queue {
        target: name.clone(),
        queue: settings.queue.clone(),
        source,
    })?;
    let caller = Caller::new(&name, &settings.endpoint, settings.concurrency)?;
    let pause = Pause::new(&state.join("delivery"), &name);
    Ok(Target::new(settings, destination, caller, (pause, bodies), metrics))
}

#[cfg(test)]
mod tests;
