//! Corridor 2: the work that nobody waits for. Tells the other vault what changed here, takes
//! over what it tells, and gives storage its repair turns. Knows the rooms' doors; decides
//! nothing about files or certificates.

mod marks;

use std::path::Path;
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

use crate::pair::{Answerer, Pair, PairError, Topic};
use crate::sqlite::SqliteError;
use marks::Marks;

/// Most changes told at once.
const CHANGES: usize = 200;
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
    /// Where they are read.
    pub changes_since: ChangesSince,
    /// The cursor of the latest change.
    pub latest: watch::Receiver<u64>,
}

/// Takes over changes, durably; any order, any number of times.
pub type Merge = Arc<dyn Fn(Vec<Value>) -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// What goes over the link: first without changes, to hear how far the peer is.
#[derive(Debug, Serialize, Deserialize)]
struct Telling {
    /// Which teller's cursor it is: it changes when the teller's state folder is a new one.
    source: String,
    /// The teller's start; cursors of one life are one history.
    life: String,
    /// The cursor behind these changes.
    upto: u64,
    changes: Vec<Value>,
}

/// How far the peer is, and in which of the teller's lives it heard that.
#[derive(Debug, Serialize, Deserialize)]
struct Heard {
    life: String,
    upto: u64,
}

/// Why the corridor cannot start.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// Its own small database.
    #[error(transparent)]
    File(#[from] SqliteError),
    /// A statement in it.
    #[error("worker.db: {0}; how far the other vault is was not kept")]
    Sql(#[from] rusqlite::Error),
    /// No randomness for its identity.
    #[error("no randomness: {0}")]
    Random(#[from] getrandom::Error),
}

/// Why telling stopped; it starts again by itself.
#[derive(Debug, thiserror::Error)]
enum TellError {
    #[error(transparent)]
    Pair(#[from] PairError),
    #[error("the changes cannot be read: {0}")]
    Source(String),
    #[error(transparent)]
    Marks(#[from] WorkerError),
    #[error("the other vault's answer is not understood: {0}; are both of one version?")]
    Answer(#[from] serde_json::Error),
}

/// The corridor's handle; cheap to clone.
#[derive(Clone)]
pub struct Worker {
    pair: Pair,
    marks: Marks,
}

impl Worker {
    /// Opens `worker.db` in the state folder.
    ///
    /// # Errors
    /// The file, or no randomness for a new one's identity.
    pub fn open(state: &Path, pair: Pair) -> Result<Self, WorkerError> {
        Ok(Self { pair, marks: Marks::open(&state.join("worker.db"))? })
    }

    /// Tells the peer every change of `source` until `shutdown`. The receiver given back follows
    /// how far the peer has merged.
    pub fn tell(&self, source: Source, shutdown: Shutdown) -> watch::Receiver<u64> {
        let merged = watch::Sender::new(0);
        let follow = merged.subscribe();
        let worker = self.clone();
        // Before anybody is served: whatever comes after it is this life's.
        let began = *source.latest.borrow();
        tokio::spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = worker.keep_telling(source, began, merged) => {}
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

    /// The answer to the peer's telling about one topic.
    #[must_use]
    pub fn hear(&self, topic: Topic, merge: Merge) -> Answerer {
        let marks = self.marks.clone();
        Arc::new(move |body| {
            let (marks, merge) = (marks.clone(), Arc::clone(&merge));
            Box::pin(async move { hear(&marks, topic, &merge, &body).await })
        })
    }

    async fn keep_telling(&self, mut source: Source, began: u64, merged: watch::Sender<u64>) {
        let mut up = self.pair.up();
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        // A life that is not on record cannot be told apart from a restored copy's.
        let life = loop {
            match self.marks.begin(source.topic, began).await {
                Ok(life) => break life,
                Err(error) => {
                    tracing::warn!("worker: {error}; telling {:?} waits, trying again", source.topic);
                    tokio::time::sleep(backoff.next(getrandom::u32().unwrap_or(u32::MAX))).await;
                }
            }
        };
        loop {
            if up.wait_for(|up| *up).await.is_err() {
                return;
            }
            match self.tell_all(&mut source, &life, &merged, &mut backoff).await {
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
        life: &str,
        merged: &watch::Sender<u64>,
        backoff: &mut Backoff,
    ) -> Result<(), TellError> {
        let heard = self.say(source.topic, life, 0, Vec::new()).await?;
        let mut cursor = self.marks.shared(source.topic, heard.life, heard.upto).await?;
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
                cursor = self.say(source.topic, life, upto, changes).await?.upto;
                backoff.reset();
            }
        }
    }

    async fn say(
        &self,
        topic: Topic,
        life: &str,
        upto: u64,
        changes: Vec<Value>,
    ) -> Result<Heard, TellError> {
        let (source, life) = (self.marks.own().to_owned(), life.to_owned());
        let telling = Telling { source, life, upto, changes };
        let body = Bytes::from(serde_json::to_vec(&telling)?);
        let answer = self.pair.ask(topic, body, DEADLINE).await?;
        Ok(serde_json::from_slice(&answer)?)
    }
}

async fn hear(marks: &Marks, topic: Topic, merge: &Merge, body: &[u8]) -> Result<Bytes, String> {
    let telling: Telling = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let wrap = |error: WorkerError| error.to_string();
    let Telling { source, life, upto, changes } = telling;
    let heard = if changes.is_empty() {
        let (life, upto) = marks.heard(topic, source).await.map_err(wrap)?;
        Heard { life, upto }
    } else {
        merge(changes).await?;
        // Only what is merged durably is marked: after a crash in between it is told again.
        marks.keep(topic, source, life.clone(), upto).await.map_err(wrap)?;
        Heard { life, upto }
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
