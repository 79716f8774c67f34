//! One target at work: takes messages of its queue, sends them, and tells the queue what became of
//! each. Decides nothing about answers (`course`) and speaks no HTTP (`handler`).
//!
//! As many messages are taken as may be under way at once; one that waits for its next try keeps
//! its place, so an ailing handler is not given more. A message is acknowledged after its 2xx alone.
//! While the target is paused it takes none, and what it had taken is in front of its queue again.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use governor::DefaultDirectRateLimiter;
use http::{HeaderMap, HeaderValue};
use serde::Serialize;
use shared::retry::Backoff;
use shared::shutdown::Shutdown;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::ailing::Ailing;
use super::course::{Course, Next, Outcome};
use super::letter::{Letter, LetterError};
use super::metrics::Metrics;
use super::signature::Secrets;
use super::{Caller, Settings};
use crate::pause::Pause;
use crate::queue::core::AckKind;
use crate::queue::message::{Destination, Message};
use crate::queue::{Delivery, QueueError, Queues, Session};

/// What is under way may take so long to end when the vault stops, as long as the API's and the broker's
/// connections may; then it goes back to its queue.
const DRAIN: Duration = Duration::from_secs(10);

/// Bodies are counted in pieces of so many bytes,
const PIECE: usize = 4096;
/// and all targets together send so many pieces at once: 128 MiB.
pub(super) const PIECES: usize = (128 << 20) / PIECE;

/// How a target stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// Whose messages it gets.
    pub queue: String,
    /// Why nothing is sent to it; `None`: it is at work.
    pub paused: Option<String>,
    /// Messages taken and not done yet.
    pub under_way: usize,
    /// Of these, such as were tried and wait for their next try.
    pub retrying: usize,
    /// Since when the oldest of them was in its queue, in milliseconds since 1970.
    pub oldest: Option<u64>,
    /// Messages that the handler took, since the vault started.
    pub delivered: u64,
    /// Tries that failed, since then.
    pub failed: u64,
    /// Messages given up, since then: they are dead letters.
    pub dead: u64,
    /// Messages given up, since then, whose senders wanted them not persistent: they are gone.
    pub gone: u64,
    /// Tries that failed since the handler last took a message.
    pub in_a_row: u64,
    /// What went wrong last.
    pub last_failure: Option<String>,
}

/// So many failed tries in a row need somebody.
const ALARMING: u64 = 3;

impl Status {
    /// What an operator should look at, in a few words.
    #[must_use]
    pub fn worry(&self) -> Option<String> {
        let Self { name, paused, in_a_row, last_failure, .. } = self;
        match (paused, last_failure) {
            (Some(why), _) => Some(format!("{name} gets nothing: {why}")),
            (None, Some(why)) if *in_a_row >= ALARMING => Some(format!("{name} takes nothing: {why}")),
            _ => None,
        }
    }
}

/// A message that is under way.
#[derive(Debug, Clone, Copy)]
struct UnderWay {
    /// When it came into its queue, in milliseconds since 1970.
    at: u64,
    tried: bool,
}

#[derive(Debug, Default)]
struct Counts {
    /// By the order in which they were taken.
    under_way: BTreeMap<u64, UnderWay>,
    taken: u64,
    delivered: u64,
    failed: u64,
    dead: u64,
    gone: u64,
    in_a_row: u64,
    last_failure: Option<String>,
    ailing: Ailing,
}

/// Whether, and from when, something may be sent.
#[derive(Debug, Clone, Default)]
struct Gate {
    paused: Option<String>,
    not_before: Option<Instant>,
}

/// One target.
pub(super) struct Target {
    settings: Settings,
    destination: Destination,
    caller: Caller,
    rate: DefaultDirectRateLimiter,
    gate: watch::Sender<Gate>,
    counts: Mutex<Counts>,
    pause: Pause,
    /// Room for the bodies of all targets that are being sent, in pieces.
    bodies: Arc<Semaphore>,
    metrics: Metrics,
}

impl Target {
    pub(super) fn new(
        settings: Settings,
        destination: Destination,
        caller: Caller,
        (pause, bodies): (Pause, Arc<Semaphore>),
        metrics: Metrics,
    ) -> Self {
        let rate = governor::RateLimiter::direct(governor::Quota::per_second(settings.per_second));
        let gate = watch::Sender::new(Gate { paused: pause.reason(), not_before: None });
        Self { settings, destination, caller, rate, gate, counts: Mutex::default(), pause, bodies, metrics }
    }

    pub(super) fn name(&self) -> &str {
        &self.settings.name
    }

    /// Where its pause is kept.
    pub(super) fn mark(&self) -> &Path {
        self.pause.file()
    }

    /// Nothing more is sent, over restarts too. Requests under way end; then what waits goes back to its
    /// queue.
    pub(super) fn pause(&self, why: &str) -> std::io::Result<()> {
        self.gate.send_modify(|gate| gate.paused = Some(why.to_owned()));
        self.pause.set(why)
    }

    pub(super) fn resume(&self) -> std::io::Result<()> {
        self.pause.lift()?;
        self.gate.send_modify(|gate| *gate = Gate::default());
        Ok(())
    }

    /// Brings the gauges up to date.
    pub(super) fn show(&self, now: SystemTime) {
        self.metrics.show(&self.status(), now);
    }

    pub(super) fn status(&self) -> Status {
        let counts = self.counts();
        Status {
            name: self.settings.name.clone(),
            queue: self.settings.queue.clone(),
            paused: self.gate.borrow().paused.clone(),
            under_way: counts.under_way.len(),
            retrying: counts.under_way.values().filter(|message| message.tried).count(),
            oldest: counts.under_way.values().map(|message| message.at).min(),
            delivered: counts.delivered,
            failed: counts.failed,
            dead: counts.dead,
            gone: counts.gone,
            in_a_row: counts.in_a_row,
            last_failure: counts.last_failure.clone(),
        }
    }

    /// Works until `shutdown`, and then until what is under way has ended; not while it is paused.
    pub(super) async fn run(self: Arc<Self>, queues: Queues, shutdown: Shutdown) {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
        while !shutdown.is_cancelled() {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.is_paused(false) => {}
            }
            let worked = Arc::clone(&self).work(&queues, &shutdown).await;
            let Err(error) = worked else { continue };
            tracing::warn!("delivery {}: {error}; trying again", self.name());
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = sleep(backoff.next(getrandom::u32().unwrap_or(u32::MAX))) => {}
            }
        }
    }

    /// Takes messages and sends them, until `shutdown` or a pause.
    async fn work(self: Arc<Self>, queues: &Queues, shutdown: &Shutdown) -> Result<(), QueueError> {
        let (session, mut deliveries) = queues.connect();
        let session = Arc::new(session);
        let (consumer, most) = (session.consumer(), self.settings.concurrency);
        session.subscribe(consumer, self.destination.clone(), most).await?.await?;
        let (mut under_way, ending) = (JoinSet::new(), shutdown.child_token());
        let worked = loop {
            tokio::select! {
                () = shutdown.cancelled() => break Ok(()),
                () = self.is_paused(true) => break Ok(()),
                delivery = deliveries.next() => {
                    let Some(delivery) = delivery else { break Err(QueueError::Stopped) };
                    let (target, session, ending) = (Arc::clone(&self), Arc::clone(&session), ending.clone());
                    let number = self.take(delivery.message.at);
                    under_way.spawn(async move {
                        let ended = target.deliver(&session, delivery, number, &ending).await;
                        target.counts().under_way.remove(&number);
                        ended
                    });
                }
                Some(ended) = under_way.join_next() => match ended {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => break Err(error),
                    // It panicked; its message goes back with the others.
                    Err(_) => break Err(QueueError::Stopped),
                }
            }
        };
        // Those that only wait end at once and go back to the queue, and so does what takes too long.
        ending.cancel();
        let overdue = async {
            shutdown.cancelled().await;
            sleep(DRAIN).await;
        };
        let in_time = worked.is_ok()
            && tokio::select! {
                () = async { while under_way.join_next().await.is_some() {} } => true,
                () = overdue => false,
            };
        if !in_time {
            under_way.shutdown().await;
        }
        self.counts().under_way.clear();
        if let Ok(synced) = session.sync().await {
            drop(synced.await);
        }
        worked
    }

    /// The number by which a message that is under way is counted.
    fn take(&self, at: u64) -> u64 {
        let mut counts = self.counts();
        counts.taken += 1;
        let number = counts.taken;
        counts.under_way.insert(number, UnderWay { at, tried: false });
        number
    }

    /// One message, until it is done or given up; or until `ending`, then it stays in the queue.
    async fn deliver(
        &self,
        session: &Session,
        delivery: Delivery,
        number: u64,
        ending: &Shutdown,
    ) -> Result<(), QueueError> {
        let end = self.send(&delivery.message, number, ending).await;
        let Some(kind) = end else { return Ok(()) };
        let range = (Some(delivery.id), delivery.id);
        session.acknowledge(delivery.consumer, range, kind, None).await?.await?;
        Ok(())
    }

    async fn send(&self, message: &Message, number: u64, ending: &Shutdown) -> Option<AckKind> {
        let mut course = Course::new(self.settings.policy);
        loop {
            tokio::select! {
                biased;
                () = ending.cancelled() => return None,
                () = self.opened() => {}
            }
            let now = now();
            if message.expiration != 0 && u128::from(message.expiration) <= since_1970(now).as_millis() {
                return Some(AckKind::Expired);
            }
            let outcome = match self.post(message, now).await {
                Ok(outcome) => outcome,
                Err(error) => return Some(self.give_up(message, error.to_string())),
            };
            match self.after(&mut course, outcome, message) {
                Ok(kind) => return Some(kind),
                Err(wait) => {
                    if let Some(message) = self.counts().under_way.get_mut(&number) {
                        message.tried = true;
                    }
                    tokio::select! {
                        () = ending.cancelled() => return None,
                        () = sleep(wait) => {}
                    }
                }
            }
        }
    }

    /// One try. Its body is in memory no longer than that.
    async fn post(&self, message: &Message, now: SystemTime) -> Result<Outcome, LetterError> {
        let room = Letter::room(message).div_ceil(PIECE).min(PIECES);
        // It is never closed.
        let mut held = self.bodies.acquire_many(u32::try_from(room).unwrap_or(u32::MAX)).await.ok();
        let letter = Letter::of(self.destination.name(), message)?;
        let surplus = room.saturating_sub(letter.body.len().div_ceil(PIECE));
        drop(held.as_mut().and_then(|held| held.split(surplus)));
        let began = Instant::now();
        let outcome = self.caller.post(&letter, now).await;
        self.metrics.tried(self.name(), began.elapsed());
        Ok(outcome)
    }

    /// How the message ends, or how long it waits.
    fn after(&self, course: &mut Course, outcome: Outcome, message: &Message) -> Result<AckKind, Duration> {
        match course.after(outcome, getrandom::u32().unwrap_or(u32::MAX)) {
            Next::Done => {
                self.metrics.delivered(self.name());
                self.note_success();
                Ok(AckKind::Standard)
            }
            Next::Again { wait, hold, why } => {
                tracing::debug!("delivery {}: {}: {why}; again in {wait:?}", self.name(), message.name);
                self.tell_failure(&why);
                self.note_failure(why);
                if hold {
                    let until = Instant::now() + wait;
                    self.gate.send_modify(|gate| gate.not_before = gate.not_before.max(Some(until)));
                }
                Err(wait)
            }
            Next::Dead(why) => Ok(self.give_up(message, why)),
            Next::Gone(why) => {
                tracing::warn!(
                    "delivery {}: {why}; it is paused. Once that is put right: vault worker resume {}",
                    self.name(),
                    self.name()
                );
                if let Err(error) = self.pause(&why) {
                    tracing::warn!(
                        "delivery {}: the pause ends with this vault's next restart: {}: {error}",
                        self.name(),
                        self.mark().display()
                    );
                }
                Ok(self.give_up(message, why))
            }
        }
    }

    fn give_up(&self, message: &Message, why: String) -> AckKind {
        // What is not persistent has no dead letter.
        let read = crate::openwire::Message::from_bytes(message.body.clone());
        let is_gone = read.is_ok_and(|read| !read.persistent);
        let end = if is_gone { "given up and gone" } else { "a dead letter" };
        tracing::warn!("delivery {}: message {} is {end}: {why}", self.name(), message.name);
        self.note_failure(why.clone());
        if is_gone {
            self.metrics.gone(self.name());
            self.counts().gone += 1;
        } else {
            self.metrics.died(self.name());
            self.counts().dead += 1;
        }
        AckKind::Poison(Some(why))
    }

    fn note_success(&self) {
        let mut counts = self.counts();
        counts.delivered += 1;
        let failures = std::mem::take(&mut counts.in_a_row);
        if counts.ailing.took() {
            let name = self.name();
            tracing::info!(
                "delivery {name}: its handler takes messages again; {failures} tries failed before"
            );
        }
    }

    fn tell_failure(&self, why: &str) {
        if self.counts().ailing.failed(Instant::now()) {
            let name = self.name();
            tracing::warn!(
                "delivery {name}: its handler takes nothing: {why}; it is tried again, and told when it does"
            );
        }
    }

    fn note_failure(&self, why: String) {
        self.metrics.failed(self.name());
        let mut counts = self.counts();
        counts.failed += 1;
        counts.in_a_row += 1;
        counts.last_failure = Some(why);
    }

    /// Waits until it is paused, or until it is not.
    async fn is_paused(&self, paused: bool) {
        let mut gate = self.gate.subscribe();
        // The sender is this target's own.
        let _open = gate.wait_for(|gate| gate.paused.is_some() == paused).await;
    }

    /// Waits until something may be sent: neither paused nor held, and not too fast. Those that wait
    /// at the gate have not been counted yet, so that they do not all go at once when it opens.
    async fn opened(&self) {
        let mut gate = self.gate.subscribe();
        let mut counted = false;
        loop {
            let Gate { paused, not_before } = gate.borrow_and_update().clone();
            let held = not_before.filter(|until| *until > Instant::now());
            match (paused, held) {
                (None, None) if counted => return,
                (None, None) => {
                    self.rate.until_ready().await;
                    counted = true;
                    continue;
                }
                (Some(_), _) => drop(gate.changed().await),
                (None, Some(until)) => tokio::select! {
                    _changed = gate.changed() => {}
                    () = sleep_until(until) => {}
                },
            }
            counted = false;
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A letter's headers, with those of Standard Webhooks.
pub(super) fn signed(letter: &Letter, secrets: Option<&Secrets>, now: SystemTime) -> HeaderMap {
    let mut headers = letter.headers.clone();
    let timestamp = since_1970(now).as_secs();
    let signature = secrets.map(|secrets| secrets.sign(&letter.id, timestamp, &letter.body));
    let said = [
        ("webhook-id", Some(letter.id.clone())),
        ("webhook-timestamp", Some(timestamp.to_string())),
        ("webhook-signature", signature),
    ];
    for (name, value) in said {
        if let Some(Ok(value)) = value.map(HeaderValue::try_from) {
            headers.insert(name, value);
        }
    }
    headers
}

fn since_1970(now: SystemTime) -> Duration {
    now.duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[expect(clippy::disallowed_methods, reason = "handlers compare the time of a signature with the calendar's")]
fn now() -> SystemTime {
    SystemTime::now()
}
