//! One direction of the bridge at work: joins the rules ([`super::core`]), the journal, and the two
//! connections. Decides nothing that the rules decide. It never ends by itself: whatever fails is
//! told in its [`Status`] and the log, and tried again.

mod source;
mod stand;
mod target;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use shared::retry::Backoff;
use shared::shutdown::Shutdown;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::core::{Core, Input, Limits, Load, Step};
use super::journal::{Birth, Counts, Errand, Journal, JournalError, Told};
use crate::openwire::client::{ClientError, Login};
use crate::openwire::uri::{Address, Uri};
use crate::openwire::{Destination, Message};
use source::Link;
use stand::Stand;

/// Queues that belong to the bridge itself begin so.
pub const OWN_QUEUES: &str = "vault.bridge.";
/// What lasted so long had not failed at once.
const STEADY: Duration = Duration::from_secs(10);
/// How often times are looked at.
const TICK: Duration = Duration::from_secs(1);
/// Events of a connection that wait for the rules.
const MOST_EVENTS: usize = 64;

/// A broker to connect to.
#[derive(Debug, Clone)]
pub struct Broker {
    /// Where.
    pub uri: Uri,
    /// As whom: account and trust; the bridge gives the names.
    pub login: Login,
}

/// One direction's settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its name: in the lock's client id, in its queue of receipts and in the log. Both vaults of a
    /// pair give the same direction the same name.
    pub name: String,
    /// This vault's name.
    pub vault: String,
    /// The journal's file.
    pub file: PathBuf,
    /// Where messages come from.
    pub from: Broker,
    /// Where they go.
    pub to: Broker,
    /// Which ones: a queue, or a topic, or a pattern (`orders.>`).
    pub destination: Destination,
    /// Bounds and times.
    pub limits: Limits,
    /// Messages that may be under way from the source.
    pub prefetch: u16,
}

/// What an operator sees of a direction.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Status {
    /// The source's connection: none is connected, else why it is not.
    pub source: Option<String>,
    /// The target's, likewise.
    pub target: Option<String>,
    /// Why the journal cannot be written.
    pub journal: Option<String>,
    /// It is full: nothing is taken until the target takes some.
    pub is_full: bool,
    /// Messages since the journal's birth.
    pub counts: Counts,
    /// What waits for the target.
    pub waiting: Load,
    /// Batches of which only a receipt can tell whether they were taken.
    pub uncertain: usize,
}

/// Why settings cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// The bridge would carry its own receipts away.
    #[error(
        "bridge {name}: {destination} also names the bridge's own queues, vault.bridge.>; name a prefix, as orders.>"
    )]
    OwnQueues {
        /// The direction.
        name: String,
        /// What it should carry.
        destination: String,
    },
}

/// What a connection's task tells.
#[derive(Debug)]
enum Event {
    /// The lock is held; here is the connection.
    Holding(Link),
    /// The other vault holds the lock; all our receipts that lie at the source.
    Receipts(Vec<u64>),
    /// The source is connected no more, or not yet.
    SourceLost(String),
    /// The target is connected, and takes what to send.
    TargetUp(mpsc::Sender<target::Send>),
    /// It is not, or not any more.
    TargetLost(String),
    /// Something for the rules.
    Told(Input<Arc<Message>>),
}

impl Settings {
    /// That a direction can work so.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn check(&self) -> Result<(), SettingsError> {
        let destination = self.destination.to_string();
        let name = self.destination.name.to_string();
        let covers = |part: &str| {
            let first = part.trim_start_matches("queue://").split('.').next().unwrap_or_default();
            matches!(first, ">" | "*") || part.contains(OWN_QUEUES)
        };
        if name.split(',').any(|part| covers(part.trim())) {
            return Err(SettingsError::OwnQueues { name: self.name.clone(), destination });
        }
        Ok(())
    }

    /// The queue of this vault's receipts at the source.
    #[must_use]
    pub fn receipts(&self) -> String {
        format!("{OWN_QUEUES}receipts.{}.{}", self.name, self.vault)
    }
}

/// Carries messages until `shutdown`; call inside a runtime.
pub async fn run(settings: Arc<Settings>, status: watch::Sender<Status>, shutdown: Shutdown) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
    loop {
        let begun = Instant::now();
        let ended = tokio::select! {
            ended = carry(&settings, &status) => ended,
            () = shutdown.cancelled() => return,
        };
        tracing::warn!(bridge = %settings.name, "bridge {}: {ended}; it is tried again", settings.name);
        status.send_modify(|status| status.journal = Some(ended.to_string()));
        if begun.elapsed() >= STEADY {
            backoff.reset();
        }
        tokio::select! {
            () = sleep(backoff.next(random())) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// Until the journal fails.
async fn carry(settings: &Arc<Settings>, status: &watch::Sender<Status>) -> JournalError {
    match Direction::open(settings, status).await {
        Ok(mut direction) => direction.work().await,
        Err(error) => error,
    }
}

struct Direction<'a> {
    core: Core<Arc<Message>>,
    name: String,
    status: &'a watch::Sender<Status>,
    stand: Stand,
    counts: Counts,
    errands: mpsc::Sender<Errand>,
    told: mpsc::UnboundedReceiver<Told>,
    events: mpsc::Receiver<Event>,
    link: Option<Link>,
    target: Option<mpsc::Sender<target::Send>>,
    /// End with it.
    _connections: JoinSet<()>,
}

impl<'a> Direction<'a> {
    async fn open(settings: &Arc<Settings>, status: &'a watch::Sender<Status>) -> Result<Self, JournalError> {
        let file = settings.file.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let journal = Journal::open(&file, fresh())?;
            Ok::<_, JournalError>((journal.kept()?, journal.counts()?, journal.birth(), journal.run()?))
        });
        let (kept, counts, birth, (errands, told)) = match opened.await {
            Ok(opened) => opened?,
            // It is never cancelled.
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        let (tell, events) = mpsc::channel(MOST_EVENTS);
        let mut connections = JoinSet::new();
        connections.spawn(source::run(settings.clone(), birth, tell.clone()));
        connections.spawn(target::run(settings.clone(), birth, tell));
        let core = Core::new(settings.limits.clone(), kept);
        status.send_modify(|status| status.journal = None);
        Ok(Self {
            name: settings.name.clone(),
            core,
            status,
            stand: Stand::default(),
            counts,
            errands,
            told,
            events,
            link: None,
            target: None,
            _connections: connections,
        })
    }

    async fn work(&mut self) -> JournalError {
        let begun = Instant::now();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            let wants = self.core.wants_messages();
            let input = tokio::select! {
                biased;
                told = self.told.recv() => match told {
                    Some(Told::Written(counts)) => {
                        self.counts = counts;
                        Some(Input::Written)
                    }
                    Some(Told::Loaded(rows)) => Some(Input::Loaded(rows)),
                    Some(Told::Failed(error)) => return error,
                    None => return JournalError::Ended,
                },
                Some(event) = self.events.recv() => self.heard(event),
                Some(message) = next(self.link.as_mut()), if wants => {
                    let bytes = weight(&message);
                    Some(Input::Received(message, bytes))
                }
                _ = ticks.tick() => {
                    let due = self.stand.look(begun.elapsed(), &self.status.borrow());
                    if let Some(warning) = due {
                        tracing::warn!(bridge = %self.name, "bridge {}: {warning}", self.name);
                    }
                    Some(Input::Tick(begun.elapsed()))
                }
            };
            if let Some(input) = input {
                for step in self.core.apply(input) {
                    self.go(step).await;
                }
            }
            self.show();
        }
    }

    fn heard(&mut self, event: Event) -> Option<Input<Arc<Message>>> {
        match event {
            Event::Holding(link) => {
                self.status.send_modify(|status| status.source = None);
                let receipts = link.receipts.clone();
                self.link = Some(link);
                Some(Input::Holding(receipts))
            }
            Event::Receipts(receipts) => Some(Input::Receipts(receipts)),
            Event::SourceLost(why) => {
                self.status.send_modify(|status| status.source = Some(why));
                self.link.take().map(|_| Input::Released)
            }
            Event::TargetUp(target) => {
                self.status.send_modify(|status| status.target = None);
                self.target = Some(target);
                Some(Input::TargetUp)
            }
            Event::TargetLost(why) => {
                self.status.send_modify(|status| status.target = Some(why));
                self.target.take().map(|_| Input::TargetLost)
            }
            Event::Told(input) => Some(input),
        }
    }

    async fn go(&mut self, step: Step<Arc<Message>>) {
        // Whoever does not listen any more has ended, and its end is told.
        match step {
            Step::Write(write) => drop(self.errands.send(Errand::Write(write)).await),
            Step::Load { after, rows, bytes } => {
                drop(self.errands.send(Errand::Load { after, rows, bytes, now: now() }).await);
            }
            Step::Consume => self.ask_source(source::Ask::Consume).await,
            Step::Take { batch, first, last, count, spent } => {
                let (first, last) = (first.message_id.clone(), last.message_id.clone());
                self.ask_source(source::Ask::Take(Box::new(source::Take {
                    batch,
                    first,
                    last,
                    count,
                    spent,
                })))
                .await;
            }
            Step::Send(rows) => {
                if let Some(target) = &self.target {
                    drop(target.send(target::Send(rows)).await);
                }
            }
        }
    }

    async fn ask_source(&self, ask: source::Ask) {
        if let Some(link) = &self.link {
            drop(link.asks.send(ask).await);
        }
    }

    fn show(&self) {
        let (waiting, uncertain) = (self.core.waiting(), self.core.uncertain());
        let (is_full, counts) = (self.core.is_full(), self.counts);
        self.status.send_if_modified(|status| {
            let shown = (status.is_full, status.counts, status.waiting, status.uncertain);
            (status.is_full, status.counts, status.waiting, status.uncertain) =
                (is_full, counts, waiting, uncertain);
            shown != (is_full, counts, waiting, uncertain)
        });
    }
}

/// The next message of the connection, if there is one.
async fn next(link: Option<&mut Link>) -> Option<Arc<Message>> {
    match link {
        Some(link) => link.messages.recv().await,
        None => None,
    }
}

/// What a message counts against the bounds of a batch, in bytes.
fn weight(message: &Message) -> u64 {
    let length = |bytes: Option<&bytes::Bytes>| bytes.map_or(0, |bytes| bytes.len() as u64);
    512 + length(message.content.as_ref()) + length(message.properties.as_ref())
}

/// Tries the brokers of a URI one after the other, waiting after each round; never ends unless
/// nobody listens any more.
struct Tries<'a> {
    uri: &'a Uri,
    next: usize,
    backoff: Backoff,
}

impl<'a> Tries<'a> {
    fn new(uri: &'a Uri) -> Self {
        let next = if uri.randomize { random() as usize % uri.brokers.len() } else { 0 };
        Self {
            uri,
            next,
            backoff: Backoff::new(uri.first_wait.max(Duration::from_millis(10)), uri.longest_wait),
        }
    }

    fn address(&self) -> &'a Address {
        &self.uri.brokers[self.next % self.uri.brokers.len()]
    }

    /// The last try failed, perhaps after it had been connected for so long.
    async fn failed(&mut self, connected: Option<Duration>) {
        match connected {
            Some(time) if time >= STEADY => self.backoff.reset(),
            Some(_) => {}
            None => self.next += 1,
        }
        if connected.is_some() || self.next.is_multiple_of(self.uri.brokers.len()) {
            sleep(self.backoff.next(random())).await;
        }
    }
}

/// The words of a failure for status and log, once for each new one.
fn tell_failure(name: &str, side: &str, before: &mut String, error: &ClientError) -> String {
    let why = error.to_string();
    if *before != why {
        tracing::warn!(bridge = %name, "bridge {name}: {side}: {why}");
        before.clone_from(&why);
    }
    why
}

fn random() -> u32 {
    getrandom::u32().unwrap_or(u32::MAX / 2)
}

/// A new journal's identity.
fn fresh() -> Birth {
    let mut birth = Birth::default();
    birth.chunks_mut(4).for_each(|part| part.copy_from_slice(&random().to_be_bytes()));
    birth
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Milliseconds since 1970.
#[expect(clippy::disallowed_methods, reason = "messages expire by the calendar")]
fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.ok().and_then(|since| i64::try_from(since.as_millis()).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
