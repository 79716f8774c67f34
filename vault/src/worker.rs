//! Corridor 2: the work that nobody waits for. Tells the other vault what changed here, takes
//! over what it tells, and gives storage its repair turns. Knows the rooms' doors; decides
//! nothing about files or certificates.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shared::retry::Backoff;
use shared::shutdown::Shutdown;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::marks::Mark;
use crate::pair::{Answerer, Pair, PairError, Topic};

/// Most changes told at once.
/// Their longest labels, escaped in JSON to six times their length, fill three quarters of a frame.
const CHANGES: usize = 120;
/// The peer must have merged what it was told within this time.
const DEADLINE: Duration = Duration::from_secs(10);
/// A caller waits no longer than this for the peer to know of an intent.
const TOLD_DEADLINE: Duration = Duration::from_secs(1);

/// Some changes as JSON, and the cursor behind them.
pub type Changes = (Vec<Value>, u64);

/// Reads at most so many changes behind a cursor, in order.
pub type ChangesSince = Arc<dyn Fn(u64, usize) -> BoxFuture<'static, Result<Changes, String>> + Send + Sync>;

/// A room that has changes to tell.
pub struct Source {
    /// What they are about.
    pub topic: Topic,
    /// The register's life, under which its changes are told.
    pub life: String,
    /// As far as a peer with this mark has the register's history.
    pub shared: SharedWith,
    /// Where they are read.
    pub changes_since: ChangesSince,
    /// The cursor of the latest change.
    pub latest: watch::Receiver<u64>,
}

/// Takes over changes and the mark behind them, durably and together; any order, any number
/// of times.
pub type Merge = Arc<dyn Fn(Vec<Value>, Mark) -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// How far everything that the peer told is taken over.
pub type HeardOf = Arc<dyn Fn() -> BoxFuture<'static, Result<Mark, String>> + Send + Sync>;

/// Up to which change a peer with this mark knows everything.
pub type SharedWith = Arc<dyn Fn(Mark) -> BoxFuture<'static, Result<u64, String>> + Send + Sync>;

/// A room that takes over changes.
pub struct Listener {
    /// How far it is.
    pub heard: HeardOf,
    /// How it goes on.
    pub merge: Merge,
}

/// What goes over the link: first without changes, to hear how far the peer is.
#[derive(Debug, Serialize, Deserialize)]
struct Telling {
    /// How far the peer is once it has taken these changes over.
    mark: Mark,
    changes: Vec<Value>,
}

/// Why telling stopped; it starts again by itself.
#[derive(Debug, thiserror::Error)]
enum TellError {
    #[error(transparent)]
    Pair(#[from] PairError),
    #[error("the changes cannot be read: {0}")]
    Source(String),
    #[error("the other vault's answer is not understood: {0}; are both of one version?")]
    Answer(#[from] serde_json::Error),
}

/// The corridor's handle; cheap to clone.
#[derive(Clone)]
pub struct Worker {
    pair: Pair,
}

impl Worker {
    /// A worker that reaches the other vault over `pair`.
    #[must_use]
    pub const fn new(pair: Pair) -> Self {
        Self { pair }
    }

    /// Tells the peer every change of `source` until `shutdown`. The receiver given back follows
    /// how far the peer has merged.
    pub fn tell(&self, source: Source, shutdown: Shutdown) -> watch::Receiver<u64> {
        let merged = watch::Sender::new(0);
        let follow = merged.subscribe();
        let worker = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = worker.keep_telling(source, merged) => {}
            }
        });
        follow
    }

    /// Waits until the peer has merged up to `change`, is away, or a second has passed.
    pub async fn told(&self, mut merged: watch::Receiver<u64>, change: u64) {
        let mut up = self.pair.up();
        tokio::select! {
            _merged = timeout(TOLD_DEADLINE, merged.wait_for(|upto| *upto >= change)) => {}
            _away = up.wait_for(|up| !*up) => {}
        }
    }

    async fn keep_telling(&self, mut source: Source, merged: watch::Sender<u64>) {
        let mut up = self.pair.up();
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        loop {
            if up.wait_for(|up| *up).await.is_err() {
                return;
            }
            match self.tell_all(&mut source, &merged, &mut backoff).await {
                // The connection's own log line says it.
                Err(TellError::Pair(PairError::Away(_) | PairError::Broken(_))) => {}
                Err(error) => tracing::warn!("worker: telling {:?}: {error}; trying again", source.topic),
                Ok(()) => return,
            }
            tokio::time::sleep(backoff.next(getrandom::u32().unwrap_or(u32::MAX))).await;
        }
    }

    /// Tells until the connection fails (`Err`) or the room has ended (`Ok`).
    async fn tell_all(
        &self,
        source: &mut Source,
        merged: &watch::Sender<u64>,
        backoff: &mut Backoff,
    ) -> Result<(), TellError> {
        let heard = self.say(source, 0, Vec::new()).await?;
        let mut cursor = (source.shared)(heard).await.map_err(TellError::Source)?;
        let mut up = self.pair.up();
        loop {
            merged.send_replace(cursor);
            let (changes, upto) = (source.changes_since)(cursor, CHANGES).await.map_err(TellError::Source)?;
            if changes.is_empty() {
                tokio::select! {
                    latest = source.latest.wait_for(|latest| *latest > cursor) => {
                        if latest.is_err() {
                            return Ok(());
                        }
                    }
                    _away = up.wait_for(|up| !*up) => {
                        return Err(PairError::Away(self.pair.peer().to_owned()).into());
                    }
                }
            } else {
                cursor = self.say(source, upto, changes).await?.upto;
                backoff.reset();
            }
        }
    }

    async fn say(&self, source: &Source, upto: u64, changes: Vec<Value>) -> Result<Mark, TellError> {
        let telling = Telling { mark: Mark { life: source.life.clone(), upto }, changes };
        let body = Bytes::from(serde_json::to_vec(&telling)?);
        let answer = self.pair.ask(source.topic, body, DEADLINE).await?;
        Ok(serde_json::from_slice(&answer)?)
    }
}

/// The answer to the peer's telling about one topic.
#[must_use]
pub fn hear(listener: Listener) -> Answerer {
    let listener = Arc::new(listener);
    Arc::new(move |body| {
        let listener = Arc::clone(&listener);
        Box::pin(async move { take_over(&listener, &body).await })
    })
}

async fn take_over(listener: &Listener, body: &[u8]) -> Result<Bytes, String> {
    let Telling { mark, changes } = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let heard = if changes.is_empty() {
        (listener.heard)().await?
    } else {
        (listener.merge)(changes, mark.clone()).await?;
        mark
    };
    serde_json::to_vec(&heard).map(Bytes::from).map_err(|error| error.to_string())
}

/// Does `turn` every `every`, one at a time, until `shutdown`.
pub fn every(
    every: Duration,
    turn: impl Fn() -> BoxFuture<'static, ()> + Send + 'static,
    shutdown: Shutdown,
) {
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _now = ticks.tick() => turn().await,
            }
        }
    });
}
