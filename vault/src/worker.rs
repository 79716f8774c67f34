//! Corridor 2: the work that nobody waits for. Tells the other vault what changed here, takes
//! over what it tells, and gives storage its repair turns. Knows the rooms' doors; decides
//! nothing about files or certificates.
//!
//! `background` runs jobs by schedules (`jobs`, `task`) and the vault's own (`upkeep`), and starts
//! deliveries to handlers. Of every job `standing` tells the same, and `metrics` counts it.

pub mod background;
pub mod jobs;
pub mod metrics;
pub mod standing;
pub mod task;
pub mod upkeep;

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
/// A run may take so long to end when the vault stops, as long as the API's and the broker's connections
/// may; then it is begun again.
const DRAIN: Duration = Duration::from_secs(10);
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
    /// How long a change that nobody waits for may wait for others to be told with it.
    pub pause: Duration,
}

/// How far the peer has taken over one room's changes, and how far somebody waits for it.
#[derive(Clone)]
pub struct Merged {
    upto: watch::Receiver<u64>,
    wanted: watch::Sender<u64>,
}

impl Merged {
    /// The cursor behind what the peer has.
    #[must_use]
    pub fn upto(&self) -> u64 {
        *self.upto.borrow()
    }
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

    /// Tells the peer every change of `source` until `shutdown`. What is given back follows how far
    /// the peer has merged.
    pub fn tell(&self, source: Source, shutdown: Shutdown) -> Merged {
        let (merged, wanted) = (watch::Sender::new(0), watch::Sender::new(0));
        let follow = Merged { upto: merged.subscribe(), wanted: wanted.clone() };
        let worker = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = worker.keep_telling(source, merged, wanted.subscribe()) => {}
            }
        });
        follow
    }

    /// Waits until the peer has merged up to `change`, is away, or a second has passed.
    pub async fn told(&self, mut merged: Merged, change: u64) {
        let mut up = self.pair.up();
        merged.wanted.send_if_modified(|wanted| change > std::mem::replace(wanted, change.max(*wanted)));
        tokio::select! {
            _merged = timeout(TOLD_DEADLINE, merged.upto.wait_for(|upto| *upto >= change)) => {}
            _away = up.wait_for(|up| !*up) => {}
        }
    }

    async fn keep_telling(
        &self,
        mut source: Source,
        merged: watch::Sender<u64>,
        mut wanted: watch::Receiver<u64>,
    ) {
        let mut up = self.pair.up();
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        loop {
            if up.wait_for(|up| *up).await.is_err() {
                return;
            }
            match self.tell_all(&mut source, &merged, &mut wanted, &mut backoff).await {
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
        wanted: &mut watch::Receiver<u64>,
        backoff: &mut Backoff,
    ) -> Result<(), TellError> {
        let heard = self.say(source, 0, Vec::new()).await?;
        let mut cursor = (source.shared)(heard).await.map_err(TellError::Source)?;
        let mut up = self.pair.up();
        loop {
            merged.send_replace(cursor);
            let latest = *source.latest.borrow();
            await_company(cursor, latest, wanted, source.pause).await;
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

/// Waits until somebody waits for one of the changes between `cursor` and `latest`, or `pause` has
/// passed. Where there are none, or many already, it waits for nothing.
async fn await_company(cursor: u64, latest: u64, wanted: &mut watch::Receiver<u64>, pause: Duration) {
    let few = 1..CHANGES as u64;
    if !pause.is_zero() && few.contains(&latest.saturating_sub(cursor)) {
        // Late, wanted, or the room has ended: then they are told.
        let _ = timeout(pause, wanted.wait_for(|wanted| *wanted > cursor)).await;
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

fn timestamp() -> jiff::Timestamp {
    jiff::Timestamp::try_from(wall_clock()).unwrap_or_default()
}

#[expect(clippy::disallowed_methods, reason = "jobs are due by the calendar")]
fn wall_clock() -> std::time::SystemTime {
    std::time::SystemTime::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    async fn waits(cursor: u64, latest: u64, wanted: u64, pause: Duration) -> bool {
        let wanted = watch::Sender::new(wanted);
        let mut wanted = wanted.subscribe();
        timeout(Duration::from_millis(20), await_company(cursor, latest, &mut wanted, pause)).await.is_err()
    }

    #[tokio::test]
    async fn a_change_waits_for_company_unless_somebody_waits_for_it_or_there_are_many() {
        assert!(waits(7, 8, 7, LONG).await);
        assert!(!waits(7, 8, 8, LONG).await, "somebody waits");
        assert!(!waits(7, 7, 7, LONG).await, "nothing is to be told");
        assert!(!waits(7, 7 + CHANGES as u64, 7, LONG).await, "a telling is full");
        assert!(!waits(7, 8, 7, Duration::ZERO).await);
        assert!(!waits(7, 8, 7, Duration::from_millis(1)).await, "a pause ends");
    }

    #[tokio::test]
    async fn whoever_begins_to_wait_ends_the_pause() {
        let sender = watch::Sender::new(0);
        let mut wanted = sender.subscribe();
        let pausing = tokio::spawn(async move { await_company(7, 8, &mut wanted, LONG).await });
        tokio::task::yield_now().await;
        sender.send_replace(8);
        timeout(Duration::from_secs(5), pausing).await.unwrap().unwrap();
    }
}
