//! Tickets that survive a crash: to which vault's life a key was first sent, written down before
//! it is. Knows keys as marks alone (a keyed hash of series and key), so that nothing worth
//! stealing lies on a DMZ host; must not know vaults or requests. It exists so that a vault that
//! is alone may give numbers to this host's keys.
//!
//! Many handlers share one commit: their asks wait in a bounded queue for a thread of its own
//! (`writer`). What cannot be written goes out without a ticket, which is always safe: only a
//! vault that is alone refuses it then.

mod clock;
mod file;
mod seal;
mod secret;
mod store;
mod witness;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use shared::api::client::{self, Life};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use self::secret::Secret;
use self::writer::{Ask, Work, Writer};

/// How long the end of edge waits for the file.
const END: Duration = Duration::from_secs(5);
/// Asks that may wait for the disk; further ones go without a ticket.
const QUEUE: usize = 1024;

/// `[gateway]`, the keys about tickets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The SQLite file; the secret lies beside it, with `.key` added to its name.
    pub store: PathBuf,
    /// Where in memory (`/run`) its seal is kept as well, if there is such a place.
    pub memory: Option<PathBuf>,
    /// How many days of edge's running a ticket is kept after its key was first sent.
    pub days: u32,
    /// Most tickets kept; further keys go out without.
    pub most: u64,
}

/// A series and a key, as nobody without the secret can read them.
type Mark = [u8; 16];

/// Why tickets cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum TicketsError {
    /// The file, its folder or the secret beside it.
    #[error(
        "{file}: {what}: {source}; make its folder and give it to edge's user (gateway.tickets), or make room on its disk"
    )]
    File {
        /// The file.
        file: PathBuf,
        /// The step.
        what: &'static str,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// SQLite refuses.
    #[error("{file}: {source}; check the disk and the file's owner (gateway.tickets)")]
    Database {
        /// The file.
        file: PathBuf,
        /// SQLite's reason.
        #[source]
        source: rusqlite::Error,
    },
    /// Another program's database, or a newer edge's, must not be touched.
    #[error("{0}: is another program's database, or a newer edge's; name another file (gateway.tickets)")]
    Foreign(PathBuf),
    /// Two edges cannot share it.
    #[error("{0}: is another edge's, which is running; give each its own file (gateway.tickets)")]
    Taken(PathBuf),
    /// The system gives no randomness for the secret.
    #[error("the system gives no randomness for a secret; edge tries again")]
    NoRandomness,
}

/// What is counted.
#[derive(Clone)]
struct Metrics {
    /// By what became of a key: written, known, without.
    tickets: IntCounterVec,
    commits: IntCounter,
    kept: IntGauge,
    failing: IntGauge,
    doubted: IntGauge,
}

impl Metrics {
    fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let tickets = IntCounterVec::new(
            Opts::new(
                "edge_gateway_tickets_total",
                "Keys sent to a vault, by ticket: written down now, known from before, without",
            ),
            &["ticket"],
        )?;
        let commits =
            IntCounter::new("edge_gateway_ticket_commits_total", "Transactions that wrote tickets down")?;
        let kept = IntGauge::new("edge_gateway_tickets_kept", "Tickets in the store")?;
        let failing =
            IntGauge::new("edge_gateway_tickets_failing", "1 while tickets cannot be written down")?;
        let doubted = IntGauge::new(
            "edge_gateway_tickets_doubted",
            "1 while no new tickets are written until both vaults were together",
        )?;
        registry.register(Box::new(doubted.clone()))?;
        registry.register(Box::new(tickets.clone()))?;
        registry.register(Box::new(commits.clone()))?;
        registry.register(Box::new(kept.clone()))?;
        registry.register(Box::new(failing.clone()))?;
        Ok(Self { tickets, commits, kept, failing, doubted })
    }

    fn count(&self, ticket: &str, keys: usize) {
        if keys > 0 {
            self.tickets.with_label_values(&[ticket]).inc_by(keys as u64);
        }
    }
}

/// How the store is, in words; shared with the thread.
#[derive(Clone, Default)]
struct Standing(Arc<Mutex<Told>>);

#[derive(Clone, Default)]
struct Told {
    /// The secret, once it is read: no key can be marked without.
    secret: Option<Secret>,
    /// Which doubt keeps tickets from being written, if one does.
    doubt: Option<u64>,
    /// For `edge status`.
    words: String,
}

impl Standing {
    fn say(&self, told: Told) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = told;
    }

    fn told(&self) -> Told {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The store, as the vaults' client asks it. Cheap to clone.
#[derive(Clone)]
pub(super) struct Tickets {
    queue: SyncSender<Work>,
    standing: Standing,
    metrics: Metrics,
    patience: Duration,
}

impl Tickets {
    /// Starts the thread, which opens the file and tries again while that fails. An ask waits
    /// `patience` at most.
    ///
    /// # Errors
    /// No thread, or metrics that are there already.
    pub(super) fn start(
        settings: Settings,
        patience: Duration,
        registry: &Registry,
    ) -> Result<Self, super::GatewayError> {
        let metrics = Metrics::register(registry)?;
        let standing = Standing::default();
        let (queue, work) = sync_channel(QUEUE);
        let mut writer = Writer::new(settings, standing.clone(), metrics.clone(), writer::now());
        // The first handler must not find it closed for a moment only.
        writer.open(writer::now());
        std::thread::Builder::new()
            .name("tickets".to_owned())
            .spawn(move || writer.run(&work))
            .map_err(super::GatewayError::Thread)?;
        Ok(Self { queue, standing, metrics, patience })
    }

    /// How it is, for `edge status`.
    pub(super) fn words(&self) -> String {
        self.standing.told().words
    }

    /// Edge ends: the file is put in order.
    pub(super) async fn end(&self) {
        let (done, ended) = oneshot::channel();
        let asking = async {
            let mut work = Work::End(done);
            while let Err(TrySendError::Full(back)) = self.queue.try_send(work) {
                work = back;
                sleep(Duration::from_millis(10)).await;
            }
            ended.await
        };
        // One that does not end is as good as killed: no ticket that went out is lost by it.
        let _late = timeout(END, asking).await;
    }

    async fn ask(&self, series: &str, keys: &[String], life: Life) -> Option<Vec<Option<Life>>> {
        let secret = self.standing.told().secret?;
        let marks = keys.iter().map(|key| secret.sought(series, key)).collect();
        let (answer, answered) = oneshot::channel();
        self.queue.try_send(Work::Ask(Ask { marks, life, answer })).ok()?;
        timeout(self.patience, answered).await.ok()?.ok()
    }
}

impl client::Tickets for Tickets {
    fn write_down(&self, series: &str, keys: Vec<String>, life: Life) -> BoxFuture<'_, Vec<Option<Life>>> {
        let series = series.to_owned();
        Box::pin(async move {
            let lives = self.ask(&series, &keys, life).await.unwrap_or_else(|| vec![None; keys.len()]);
            self.metrics.count("without", lives.iter().filter(|life| life.is_none()).count());
            lives
        })
    }

    fn doubt(&self) -> Option<u64> {
        self.standing.told().doubt
    }

    fn were_together(&self, doubt: u64) {
        // A full queue has enough to do; it is said again.
        let _full = self.queue.try_send(Work::WereTogether(doubt));
    }
}

/// Why tickets could not be kept now, as far as can be told without opening the file, which a
/// running edge may have.
pub(super) fn fault(settings: &Settings) -> Option<TicketsError> {
    let file = &settings.store;
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let probe = folder.join(format!(".edge-tickets-{}", std::process::id()));
    let made = std::fs::File::options().write(true).create_new(true).open(&probe);
    let source = made.and_then(|_| std::fs::remove_file(&probe)).err()?;
    Some(TicketsError::File { file: file.clone(), what: "its folder cannot be written", source })
}

#[cfg(test)]
mod tests;
