//! The embedded broker's queues on SQLite; not the wire. Knows who is given which message and what
//! survives; bodies are opaque bytes, and OpenWire is spoken by whoever holds a [`Session`].
//!
//! [`Queues::open`] starts one thread that has a pure core (`core`) and the journal (`journal`).
//! A connection calls [`Queues::connect`] once and gets two halves:
//! - [`Session`] for its reader: sends, consumers, acknowledgements, transactions, temporary queues.
//!   Each call waits for room in the thread's inbox and returns an [`Answer`], a future that ends once
//!   the request is true, and durable where it has to be. Requests take effect in the order of
//!   the calls, so a reader may go on and answer its client later. Dropping the session ends all
//!   that was its own; what its consumers held goes back in front.
//! - [`Deliveries`] for its writer: messages for all its consumers. Asking for the next one says that
//!   the one before has left for the socket; so a slow reader holds its share of memory and no more.
//!
//! **Durable** means committed and synced. Many requests share one commit (group commit): while one
//! is synced the next gather. Acknowledgements without a transaction are answered at once and
//! written within 10 ms; [`Session::sync`] waits for them. A commit that fails refuses whoever waited
//! for it with the reason; acknowledgements stay owed and are written when the disk works again.
//!
//! **Memory**: of each queue a window of the most urgent messages; the rest is read from disk when
//! its turn comes. Non-persistent messages are never on disk: when they fill
//! [`Settings::memory_bytes`], and when persistent ones fill [`Settings::journal_bytes`] or the disk but for a
//! reserve that consuming needs, senders are held, and refused after [`Settings::hold`].
//!
//! **Once**: a message is dispatched again only if it was not acknowledged durably. A producer that
//! sends again after its connection broke says so, and what is kept already is answered and not
//! kept twice. Redeliveries are counted in memory only, as in ActiveMQ; what an earlier life may have
//! given out counts as given out once.

pub mod core;
mod engine;
mod gate;
pub mod journal;
pub mod message;
pub mod overview;

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use self::core::{
    AckKind, Action, ConnectionKey, ConsumerKey, Core, Done, Limits, QueueState, Refusal, Seen, Terms,
};
use engine::{Asked, Engine, Operate, Page, ROWS, Reply, Request};
pub use gate::{Gate, Lack};
use journal::{Journal, JournalError};
use message::{DEAD_LETTERS, Destination, Id, Message, Placed};

/// Those who are no connection ask in one lane.
const OPERATORS: ConnectionKey = 0;
/// What every request counts against the inbox, beside its message.
const REQUEST: usize = 512;

/// Where the queues are kept, and how much of everything there may be.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The journal's file.
    pub file: PathBuf,
    /// Bounds of what is in memory.
    pub limits: Limits,
    /// What the journal's messages may count, in bytes; see [`Message::size`]. The file takes a third to two thirds
    /// of it with small messages, as much with large ones, and with those of 1 to 4 KiB, of which few share a page,
    /// up to 1.8 times it.
    pub journal_bytes: u64,
    /// What non-persistent messages and open transactions may count, in bytes.
    pub memory_bytes: usize,
    /// Requests that wait for the thread, in bytes; one larger body may always wait.
    pub inbox_bytes: usize,
    /// So long is a sender held that finds no room.
    pub hold: Duration,
}

impl Settings {
    /// The defaults.
    #[must_use]
    pub fn new(file: PathBuf) -> Self {
        Self {
            file,
            limits: Limits::default(),
            journal_bytes: 10 << 30,
            memory_bytes: 64 << 20,
            inbox_bytes: 8 << 20,
            hold: Duration::from_secs(30),
        }
    }
}

/// What the thread compares its figures with.
#[derive(Debug, Clone, Copy)]
struct Room {
    memory_bytes: usize,
    journal_bytes: u64,
}

/// What can go wrong with the queues.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The rules say no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The journal says no.
    #[error("queues: {0}")]
    Journal(#[from] JournalError),
    /// There is no such queue.
    #[error("{destination}: there is none")]
    NoQueue {
        /// What was asked for.
        destination: Destination,
    },
    /// The sender was held, and no room came.
    #[error("queues: {} has been full for {} s; {}, and send it again", lack.named(), held.as_secs(), lack.remedy())]
    Full {
        /// What has no room.
        lack: Lack,
        /// How long.
        held: Duration,
    },
    /// The thread has ended.
    #[error("queues: they are stopped; send it again when the vault runs")]
    Stopped,
    /// The thread cannot be started.
    #[error("queues: no thread for them: {source}; look at the host's limits")]
    Thread {
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
}

/// A queue as operators see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueStatus {
    /// Depth and counts.
    pub state: QueueState,
    /// When the message that has waited longest came, in ms since 1970.
    pub oldest_at: Option<u64>,
}

/// A message for a consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Whose it is.
    pub consumer: ConsumerKey,
    /// By which it is acknowledged.
    pub id: Id,
    /// What it counts under way, in bytes.
    pub size: usize,
    /// How often it was given away before.
    pub redeliveries: u32,
    /// Its group begins with it, for this consumer.
    pub first: bool,
    /// The message. Its expiration counts, not the one in its body: dead letters have none.
    pub message: Arc<Message>,
}

#[derive(Debug)]
struct Shared {
    inbox: std::sync::mpsc::Sender<Asked>,
    room: Arc<Semaphore>,
    settings: Settings,
    gate: watch::Receiver<Gate>,
    keys: AtomicU64,
    opened_at: u64,
}

/// All queues. Clones are the same queues; the thread ends with the last of them and of the
/// sessions.
#[derive(Debug, Clone)]
pub struct Queues {
    shared: Arc<Shared>,
}

/// Ends when a request is true, or refused. May be dropped: the request goes on.
#[derive(Debug)]
#[must_use = "it tells whether the request was refused"]
pub struct Answer<T = Done>(oneshot::Receiver<Result<T, QueueError>>);

impl<T> Future for Answer<T> {
    type Output = Result<T, QueueError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|answer| answer.unwrap_or(Err(QueueError::Stopped)))
    }
}

impl Shared {
    /// Waits for room, and asks.
    async fn ask<T, R: Into<Request>>(
        &self,
        lane: ConnectionKey,
        bytes: usize,
        request: impl FnOnce(Reply<T>) -> R,
    ) -> Result<Answer<T>, QueueError> {
        let room = self.room(bytes).await?;
        let (reply, answer) = oneshot::channel();
        let asked = Asked { lane, request: request(reply).into(), room: Some(room) };
        self.inbox.send(asked).map_err(|_| QueueError::Stopped)?;
        Ok(Answer(answer))
    }

    /// Waits for room, and says what has no answer.
    async fn post(&self, lane: ConnectionKey, request: Request) -> Result<(), QueueError> {
        let room = Some(self.room(0).await?);
        self.inbox.send(Asked { lane, request, room }).map_err(|_| QueueError::Stopped)
    }

    async fn room(&self, bytes: usize) -> Result<OwnedSemaphorePermit, QueueError> {
        let bytes = bytes.saturating_add(REQUEST).min(self.settings.inbox_bytes);
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.room.clone().acquire_many_owned(bytes).await.map_err(|_| QueueError::Stopped)
    }

    /// What is bounded by itself needs no room.
    fn tell(&self, lane: ConnectionKey, request: Request) {
        // Nobody is there to be told when the thread has ended.
        let _stopped = self.inbox.send(Asked { lane, request, room: None });
    }
}

impl Queues {
    /// Opens or creates the journal and starts the thread. What waits is not read yet.
    ///
    /// # Errors
    /// [`QueueError::Journal`], [`QueueError::Thread`].
    pub fn open(settings: Settings) -> Result<Self, QueueError> {
        let (journal, kept) = Journal::open(&settings.file)?;
        let limits = Limits { resident_bytes: settings.memory_bytes, ..settings.limits.clone() };
        let core = Core::new(limits, kept);
        let (inbox, asked) = std::sync::mpsc::channel();
        let (gate, seen) = watch::channel(Gate::default());
        let room = Room { memory_bytes: settings.memory_bytes, journal_bytes: settings.journal_bytes };
        let engine = move || Engine::new(core, journal, room, gate).run(&asked);
        std::thread::Builder::new()
            .name("queues".to_owned())
            .spawn(engine)
            .map_err(|source| QueueError::Thread { source })?;
        let permits = settings.inbox_bytes.min(Semaphore::MAX_PERMITS);
        let (room, keys) = (Arc::new(Semaphore::new(permits)), AtomicU64::new(1));
        let opened_at = engine::milliseconds();
        Ok(Self { shared: Arc::new(Shared { inbox, room, settings, gate: seen, keys, opened_at }) })
    }

    /// Ends the thread, if no other clone and no session is left, and waits until the file is closed.
    pub async fn close(self) {
        let mut gate = self.shared.gate.clone();
        drop(self);
        // It fails when the thread has ended.
        while gate.changed().await.is_ok() {}
    }

    /// The two halves of a new connection.
    #[must_use]
    pub fn connect(&self) -> (Session, Deliveries) {
        let key = self.key();
        let (sender, inbox) = unbounded_channel();
        self.shared.tell(key, Request::Connect(key, sender));
        let deliveries = Deliveries { shared: self.shared.clone(), inbox, passed: None };
        (Session { shared: self.shared.clone(), key }, deliveries)
    }

    /// Whether senders are held, and the disk's trouble.
    #[must_use]
    pub fn gate(&self) -> Gate {
        self.shared.gate.borrow().clone()
    }

    /// Since when queues count what came, was finished and died, in ms since 1970.
    #[must_use]
    pub fn opened_at(&self) -> u64 {
        self.shared.opened_at
    }

    /// All queues.
    ///
    /// # Errors
    /// [`QueueError::Journal`], [`QueueError::Stopped`].
    pub async fn list(&self) -> Result<Vec<QueueStatus>, QueueError> {
        self.shared.ask(OPERATORS, 0, Operate::List).await?.await
    }

    /// Messages of a queue from behind a place, those in consumers' hands too (if they are
    /// persistent), as they would be dispatched: at most so many, and so many bytes, or one. None is
    /// the end. [`Id::default`] is before all.
    ///
    /// # Errors
    /// [`QueueError::NoQueue`], [`QueueError::Journal`], [`QueueError::Stopped`].
    pub async fn browse(
        &self,
        destination: Destination,
        after: Id,
        most: usize,
        bytes: usize,
    ) -> Result<Vec<Placed>, QueueError> {
        let ask = |reply| Operate::Browse { destination, after, most, bytes, reply };
        self.shared.ask(OPERATORS, 0, ask).await?.await
    }

    /// Bytes of the first message that [`Queues::browse`] would show; `None` at the end.
    ///
    /// # Errors
    /// As there.
    pub async fn weigh(&self, destination: Destination, after: Id) -> Result<Option<usize>, QueueError> {
        self.shared.ask(OPERATORS, 0, |reply| Operate::Weigh(destination, after, reply)).await?.await
    }

    /// Deletes all messages that no consumer holds; tells how many.
    ///
    /// # Errors
    /// [`QueueError::NoQueue`], [`Refusal::NotWritten`], [`QueueError::Stopped`]; what was done
    /// until then is done.
    pub async fn purge(&self, destination: Destination) -> Result<u64, QueueError> {
        self.act(destination, None, Action::Purge).await
    }

    /// Moves messages that no consumer holds, all or these, to another queue; tells how many.
    ///
    /// # Errors
    /// As [`Queues::purge`], and those of a new queue.
    pub async fn relocate(
        &self,
        from: Destination,
        only: Option<Vec<Id>>,
        to: Destination,
    ) -> Result<u64, QueueError> {
        self.act(from, only, Action::Move(to)).await
    }

    /// Puts dead letters back into the queue they came from, all or these; tells how many.
    ///
    /// # Errors
    /// As [`Queues::relocate`].
    pub async fn retry(&self, only: Option<Vec<Id>>) -> Result<u64, QueueError> {
        self.act(Destination::Queue(DEAD_LETTERS.into()), only, Action::Return).await
    }

    /// Removes a queue that is empty and that nobody reads.
    ///
    /// # Errors
    /// [`Refusal::InUse`], [`Refusal::Gone`], [`Refusal::NotWritten`], [`QueueError::Stopped`].
    pub async fn remove(&self, destination: Destination) -> Result<(), QueueError> {
        self.shared.ask(OPERATORS, 0, |reply| Operate::Remove(destination, reply)).await?.await.map(drop)
    }

    /// Is this number of a producer's, or a later one, kept? Who has been silent longest is forgotten,
    /// so it is asked soon after a crash.
    ///
    /// # Errors
    /// [`QueueError::Stopped`].
    pub async fn has(&self, producer: &str, number: u64) -> Result<bool, QueueError> {
        self.shared.ask(OPERATORS, 0, |reply| Operate::Has(producer.into(), number, reply)).await?.await
    }

    /// Waits until all that was asked before, by whomever, is done and durable.
    ///
    /// # Errors
    /// [`Refusal::NotWritten`], [`QueueError::Stopped`].
    pub async fn settle(&self) -> Result<(), QueueError> {
        self.shared.ask(OPERATORS, 0, Operate::Settle).await?.await.map(drop)
    }

    /// Page by page, so that others are served in between.
    async fn act(
        &self,
        destination: Destination,
        only: Option<Vec<Id>>,
        action: Action,
    ) -> Result<u64, QueueError> {
        let mut count = 0;
        if let Some(mut only) = only {
            only.sort_unstable();
            only.dedup();
            for ids in only.chunks(ROWS) {
                let (destination, ids, action) = (destination.clone(), ids.to_vec(), action.clone());
                let pick = |reply| Operate::Pick(destination, ids, action, reply);
                count += self.shared.ask(OPERATORS, 0, pick).await?.await?.count;
            }
            return Ok(count);
        }
        let (before, mut after) = (self.position().await?, Id::default());
        loop {
            let page = Page { destination: destination.clone(), after, before };
            let action = action.clone();
            let acted =
                self.shared.ask(OPERATORS, 0, |reply| Operate::Act(page, action, reply)).await?.await?;
            count += acted.count;
            let Some(last) = acted.last else { return Ok(count) };
            after = last;
        }
    }

    /// Of what is sent or moved from now on no [`Id::sequence`] is before it.
    ///
    /// # Errors
    /// [`QueueError::Stopped`].
    pub async fn position(&self) -> Result<u64, QueueError> {
        self.shared.ask(OPERATORS, 0, Operate::Position).await?.await
    }

    fn key(&self) -> u64 {
        self.shared.keys.fetch_add(1, Ordering::Relaxed)
    }
}

/// A connection's own half for what it asks.
#[derive(Debug)]
pub struct Session {
    shared: Arc<Shared>,
    key: ConnectionKey,
}

impl Session {
    /// Sends a message. While there is no room the call waits, so nothing behind it should: other
    /// requests of the connection may be what makes room.
    ///
    /// # Errors
    /// [`QueueError::Full`], [`QueueError::Stopped`]; the answer also refuses.
    pub async fn send(&self, send: self::core::Send, transaction: Option<u64>) -> Result<Answer, QueueError> {
        let persistent = send.persistent && !send.destination.is_temporary();
        self.hold(persistent, transaction.is_some()).await?;
        self.send_now(send, transaction).await
    }

    /// Sends a message for which there was room.
    ///
    /// # Errors
    /// [`QueueError::Stopped`]; the answer also refuses.
    pub async fn send_now(
        &self,
        send: self::core::Send,
        transaction: Option<u64>,
    ) -> Result<Answer, QueueError> {
        let bytes = send.message.size();
        self.shared.ask(self.key, bytes, |reply| Request::Send(self.key, send, transaction, reply)).await
    }

    /// Is there room for a message of that kind, so that [`Session::hold`] would end at once?
    #[must_use]
    pub fn has_room(&self, persistent: bool, in_transaction: bool) -> bool {
        self.shared.gate.borrow().admits(persistent, in_transaction)
    }

    /// What has no room for a message of that kind.
    #[must_use]
    pub fn lack(&self, persistent: bool) -> Option<Lack> {
        self.shared.gate.borrow().lack(persistent)
    }

    /// Waits for room for a message of that kind; ends at once where there is some.
    ///
    /// # Errors
    /// [`QueueError::Full`], [`QueueError::Stopped`].
    pub async fn hold(&self, persistent: bool, in_transaction: bool) -> Result<(), QueueError> {
        let mut gate = self.shared.gate.clone();
        let may_pass = |gate: &Gate| gate.admits(persistent, in_transaction);
        let held = self.shared.settings.hold;
        match tokio::time::timeout(held, gate.wait_for(may_pass)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(QueueError::Stopped),
            Err(_) => {
                // It may have ended just now.
                let most = if persistent { Lack::Journal } else { Lack::Memory };
                let lack = self.lack(persistent).unwrap_or(most);
                Err(QueueError::Full { lack, held })
            }
        }
    }

    /// A new consumer; its messages come by [`Deliveries`], perhaps before the answer. With a
    /// prefetch of 0 it gets only what [`Session::pull`] asks for. `terms` may be a prefetch alone.
    ///
    /// # Errors
    /// [`QueueError::Stopped`]; the answer also refuses.
    pub async fn subscribe(
        &self,
        consumer: ConsumerKey,
        destination: Destination,
        terms: impl Into<Terms>,
    ) -> Result<Answer, QueueError> {
        let terms = terms.into();
        let ask = |reply| Request::Subscribe(self.key, consumer, destination, terms, reply);
        self.shared.ask(self.key, 0, ask).await
    }

    /// A number for a new consumer, so that its deliveries are known when they come.
    #[must_use]
    pub fn consumer(&self) -> ConsumerKey {
        self.shared.keys.fetch_add(1, Ordering::Relaxed)
    }

    /// From now on a consumer may have so many messages under way; with 0 it pulls.
    ///
    /// # Errors
    /// [`QueueError::Stopped`].
    pub async fn prefetch(&self, consumer: ConsumerKey, prefetch: usize) -> Result<(), QueueError> {
        self.shared.post(self.key, Request::Prefetch(consumer, prefetch)).await
    }

    /// Ends a consumer. What it held goes back in front; that of `seen` counts as given away.
    ///
    /// # Errors
    /// [`QueueError::Stopped`].
    pub async fn unsubscribe(&self, consumer: ConsumerKey, seen: Seen) -> Result<Answer, QueueError> {
        self.shared.ask(self.key, 0, |reply| Request::Unsubscribe(consumer, seen, reply)).await
    }

    /// A consumer of prefetch 0 waits for so many messages; 0 takes it back.
    ///
    /// # Errors
    /// [`QueueError::Stopped`].
    pub async fn pull(&self, consumer: ConsumerKey, count: usize) -> Result<(), QueueError> {
        self.shared.post(self.key, Request::Pull(consumer, count)).await
    }

    /// What a consumer says of the messages from the first (its oldest, if none is named) to the
    /// last, in the order they were delivered; see [`AckKind`]. In a transaction it takes effect
    /// with its commit.
    ///
    /// # Errors
    /// [`QueueError::Stopped`]; the answer also refuses.
    pub async fn acknowledge(
        &self,
        consumer: ConsumerKey,
        range: (Option<Id>, Id),
        kind: AckKind,
        transaction: Option<u64>,
    ) -> Result<Answer, QueueError> {
        self.acknowledge_counted(consumer, range, usize::MAX, kind, transaction).await
    }

    /// As [`Session::acknowledge`], by a client that has counted them: where the consumer holds more of that
    /// range, the client has not seen all that it would lose, and the answer refuses.
    ///
    /// # Errors
    /// As there.
    pub async fn acknowledge_counted(
        &self,
        consumer: ConsumerKey,
        range: (Option<Id>, Id),
        most: usize,
        kind: AckKind,
        transaction: Option<u64>,
    ) -> Result<Answer, QueueError> {
        let ask = |reply| Request::Acknowledge(consumer, range, most, kind, transaction, reply);
        self.shared.ask(self.key, 0, ask).await
    }

    /// Waits until all that was acknowledged before is durable.
    ///
    /// # Errors
    /// [`QueueError::Stopped`]; the answer also [`Refusal::NotWritten`].
    pub async fn sync(&self) -> Result<Answer, QueueError> {
        self.shared.ask(self.key, 0, Request::Sync).await
    }

    /// Begins a local transaction, under the client's number.
    ///
    /// # Errors
    /// [`QueueError::Stopped`]; the answer also refuses.
    pub async fn begin(&self, transaction: u64) -> Result<Answer, QueueError> {
        self.shared.ask(self.key, 0, |reply| Request::Begin(self.key, transaction, reply)).await
    }

    /// Commits it: all its sends become visible and all its acknowledgements take effect, durably,
    /// or the answer refuses and it is rolled back.
    ///
    /// # Errors
    /// As [`Session::begin`].
    pub async fn commit(&self, transaction: u64) -> Result<Answer, QueueError> {
        self.shared.ask(self.key, 0, |reply| Request::Commit(self.key, transaction, reply)).await
    }

    /// Rolls it back: its sends are forgotten, what it acknowledged is with its consumers again.
    ///
    /// # Errors
    /// As [`Session::begin`].
    pub async fn rollback(&self, transaction: u64) -> Result<Answer, QueueError> {
        self.shared.ask(self.key, 0, |reply| Request::Rollback(self.key, transaction, reply)).await
    }

    /// Makes a temporary queue, which ends with this connection.
    ///
    /// # Errors
    /// [`QueueError::Stopped`]; the answer also refuses.
    pub async fn create_temporary(&self, destination: Destination) -> Result<Answer, QueueError> {
        self.shared.ask(self.key, 0, |reply| Request::CreateTemporary(self.key, destination, reply)).await
    }

    /// Ends a temporary queue that has no consumers.
    ///
    /// # Errors
    /// [`QueueError::Stopped`]; the answer also refuses.
    pub async fn delete_temporary(&self, destination: Destination) -> Result<Answer, QueueError> {
        self.shared.ask(self.key, 0, |reply| Request::DeleteTemporary(self.key, destination, reply)).await
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shared.tell(self.key, Request::Disconnect(self.key));
    }
}

/// A connection's own half for what it is given.
#[derive(Debug)]
pub struct Deliveries {
    shared: Arc<Shared>,
    inbox: UnboundedReceiver<Delivery>,
    /// To be told: whose messages have left, their bytes, and those of big ones.
    passed: Option<(ConsumerKey, usize, usize)>,
}

impl Deliveries {
    /// The next message; the one before has left for the socket. `None` once the session is gone.
    pub async fn next(&mut self) -> Option<Delivery> {
        let next = match self.inbox.try_recv() {
            Ok(next) => next,
            Err(_) => {
                self.tell();
                self.inbox.recv().await?
            }
        };
        let size = next.size;
        let big = self::core::is_big(size);
        if big || self.passed.is_some_and(|(key, bytes, _)| key != next.consumer || bytes >= 4096) {
            self.tell();
        }
        let (_, bytes, big_bytes) = self.passed.unwrap_or((next.consumer, 0, 0));
        self.passed = Some((next.consumer, bytes + size, big_bytes + if big { size } else { 0 }));
        Some(next)
    }

    /// Many small ones at once.
    fn tell(&mut self) {
        if let Some((key, bytes, big)) = self.passed.take() {
            self.shared.tell(OPERATORS, Request::PassedOn(key, bytes, big));
        }
    }
}

#[cfg(test)]
mod tests;
