//! The one thread that has the core and the journal: takes what waits, gives away what it can,
//! commits once for all, answers after the commit. Decides nothing that the core decides; knows the
//! clock.

mod lanes;
mod operate;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};

use super::core::{
    AckKind, ConnectionKey, ConsumerKey, Core, Done, Effect, PORTION, Part, Refusal, Seen, Send, Terms, Token,
};
use super::journal::{BUSY, IDLE, Journal, JournalError};
use super::message::{Destination, Id, Level, Message};
use super::{Delivery, Gate, QueueError, Room};
use lanes::Lanes;
use operate::Acted;
pub(super) use operate::{Operate, Page, ROWS};

/// Most requests of one commit, so that nobody waits for an endless one;
const BATCH: usize = 1024;
/// one that is about many messages counts as one for each so many of them.
const MESSAGES: usize = 4;
/// Requests that are put in their connections' lanes at once.
const HEARD: usize = 16 * BATCH;
/// Acknowledgements that nobody waits for are written after so long,
const OWED_FOR: Duration = Duration::from_millis(10);
/// or when there are so many.
const OWED: usize = 1024;
/// So many that cannot be written, one after the other, are enough to refuse the rest of a commit.
const MOST_REFUSED: usize = 16;
/// So often is looked for queues that nobody uses, as in ActiveMQ; one that was not used from one time
/// to the next is forgotten.
const FORGET_EVERY: Duration = Duration::from_secs(60);
/// Queues that are looked at at once.
const FORGOTTEN: usize = 500;
/// Pages that are looked at in one turn for consumers that decline what is in them.
const SCANS: usize = 8;
/// So often is the disk tried again.
const TICK: Duration = Duration::from_secs(1);
/// So often is it looked whether the journal is emptied and can give room back to the disk.
const SHRINK_EVERY: Duration = Duration::from_secs(30);
/// So often are messages looked for whose time is over, as in ActiveMQ.
const EXPIRE_EVERY: Duration = Duration::from_secs(30);

pub(super) type Reply<T = Done> = oneshot::Sender<Result<T, QueueError>>;

/// What connections and operators ask for.
pub(super) enum Request {
    Connect(ConnectionKey, UnboundedSender<Delivery>),
    Disconnect(ConnectionKey),
    Subscribe(ConnectionKey, ConsumerKey, Destination, Terms, Reply),
    Unsubscribe(ConsumerKey, Seen, Reply),
    Pull(ConsumerKey, usize),
    Prefetch(ConsumerKey, usize),
    PassedOn(ConsumerKey, usize, usize),
    CreateTemporary(ConnectionKey, Destination, Reply),
    DeleteTemporary(ConnectionKey, Destination, Reply),
    Send(ConnectionKey, Send, Option<u64>, Reply),
    /// Refused where the consumer holds more of the range than this.
    Acknowledge(ConsumerKey, (Option<Id>, Id), usize, AckKind, Option<u64>, Reply),
    Begin(ConnectionKey, u64, Reply),
    Commit(ConnectionKey, u64, Reply),
    Rollback(ConnectionKey, u64, Reply),
    /// Waits until all that was acknowledged before is durable.
    Sync(Reply),
    Operate(Operate),
}

/// What is asked of the thread.
pub(super) struct Asked {
    /// Whose turn it takes.
    pub(super) lane: ConnectionKey,
    pub(super) request: Request,
    /// What it takes in the inbox until it is done.
    pub(super) room: Option<OwnedSemaphorePermit>,
}

/// What became of a request.
enum Step {
    /// It is done, or waits for a commit.
    Done,
    /// So many messages were looked at, and this is what is left to do in its connection's next turn.
    Left(usize, Request),
}

/// Who waits for a token.
enum Waiter {
    Done(Reply),
    Acted(Option<Id>, Reply<Acted>),
}

/// What the disk does not do. What cannot be read holds up its queue, not the senders.
#[derive(Debug, Default)]
struct Trouble {
    writing: Option<String>,
    reading: Option<String>,
}

pub(super) struct Engine {
    core: Core,
    journal: Journal,
    /// Room for more, as the settings say.
    room: Room,
    gate: watch::Sender<Gate>,
    connections: HashMap<ConnectionKey, UnboundedSender<Delivery>>,
    waiters: HashMap<Token, Waiter>,
    token: Token,
    /// What was asked and is not done.
    lanes: Lanes<(Request, Option<OwnedSemaphorePermit>)>,
    /// Since when something is owed to the journal.
    owed_since: Option<Instant>,
    /// Why the journal could not be written last, and read.
    trouble: Trouble,
    ticked: Instant,
    expired: Instant,
    /// When the journal might have given room back last, and whether anything was asked since the last tick.
    shrunk: Instant,
    is_asked: bool,
    /// When unused queues were looked for last, to the end.
    forgotten: Instant,
    /// Pages that were looked at in this turn, and those that wait for the next: which level, behind
    /// which number, how many rows.
    scans: usize,
    postponed: Vec<(Level, u64, usize)>,
    /// Behind which expiration and place the sweep for expired messages goes on.
    sweep: Option<(u64, Id)>,
}

impl Engine {
    pub(super) fn new(core: Core, journal: Journal, room: Room, gate: watch::Sender<Gate>) -> Self {
        let now = moment();
        Self {
            core,
            journal,
            room,
            gate,
            connections: HashMap::new(),
            waiters: HashMap::new(),
            token: 0,
            lanes: Lanes::new(),
            owed_since: None,
            trouble: Trouble::default(),
            ticked: now,
            expired: now,
            shrunk: now,
            is_asked: false,
            forgotten: now,
            scans: 0,
            postponed: Vec::new(),
            sweep: None,
        }
    }

    /// Ends when nobody can ask any more.
    pub(super) fn run(mut self, inbox: &Receiver<Asked>) {
        loop {
            let soon = self.owed_since.is_some() || self.sweep.is_some();
            let idle = if soon && self.trouble.writing.is_none() { OWED_FOR } else { TICK };
            let is_idle = self.postponed.is_empty() && self.lanes.is_empty();
            match inbox.recv_timeout(if is_idle { idle } else { Duration::ZERO }) {
                Ok(first) => {
                    self.is_asked = true;
                    for asked in std::iter::once(first).chain(inbox.try_iter().take(HEARD)) {
                        self.hear(asked);
                    }
                }
                Err(RecvTimeoutError::Disconnected) if self.lanes.is_empty() => break,
                Err(_) => {}
            }
            // Kept until the turn is over, so that what waits for one commit is bounded as well.
            let _rooms = self.obey();
            self.turn();
        }
        self.write();
    }

    fn hear(&mut self, asked: Asked) {
        match asked.request {
            // What makes room need not wait, and what comes first comes first.
            request @ (Request::PassedOn(..) | Request::Connect(..)) => drop(self.take(request)),
            Request::Operate(operate @ (Operate::Has(..) | Operate::Settle(_))) => {
                while !self.lanes.is_empty() {
                    drop(self.obey());
                }
                self.operate(operate);
            }
            request => self.lanes.push(asked.lane, (request, asked.room)),
        }
    }

    /// Does some of what was asked, of each connection in its turn.
    fn obey(&mut self) -> Vec<OwnedSemaphorePermit> {
        let (mut rooms, mut done) = (Vec::new(), 0);
        while done < BATCH
            && let Some((lane, (request, room))) = self.lanes.next()
        {
            done += 1;
            match self.take(request) {
                Step::Done => rooms.extend(room),
                Step::Left(messages, request) => {
                    done += messages / MESSAGES;
                    self.lanes.put_back(lane, (request, room));
                }
            }
        }
        rooms
    }

    /// What is durable already need not wait for the commit; what the commit makes durable follows.
    fn turn(&mut self) {
        self.scans = 0;
        for (level, after, rows) in std::mem::take(&mut self.postponed) {
            self.perform_one(Effect::Scan { level, after, rows });
        }
        self.perform();
        let now = moment();
        if now.duration_since(self.ticked) >= TICK {
            self.ticked = now;
            self.tick(now);
        }
        self.expire();
        if self.is_due(now) {
            self.write();
            self.perform();
        }
        self.owed_since = if self.core.is_clean() { None } else { self.owed_since.or(Some(now)) };
        let gate = Gate {
            memory: self.core.resident_bytes() >= self.room.memory_bytes,
            journal: self.core.stored_bytes() >= self.room.journal_bytes,
            disk: self.journal.is_short(),
            trouble: self.trouble.writing.clone().or_else(|| self.trouble.reading.clone()),
            stored_bytes: self.core.stored_bytes(),
            resident_bytes: self.core.resident_bytes(),
        };
        self.gate.send_if_modified(|known| {
            let changed = !known.is_like(&gate);
            *known = gate;
            changed
        });
    }

    fn is_due(&self, now: Instant) -> bool {
        let waits = self.owed_since.is_some_and(|since| now.duration_since(since) >= OWED_FOR);
        let due = waits || self.core.owed() >= OWED;
        // In trouble what nobody waits for is tried with the ticks.
        self.core.is_awaited() || (due && (self.trouble.writing.is_none() || self.ticked == now))
    }

    fn tick(&mut self, now: Instant) {
        self.journal.look();
        if self.core.is_stalled() {
            self.core.retry();
            self.perform();
        }
        if !self.core.is_stalled() && self.trouble.reading.take().is_some() {
            tracing::warn!("queues: the journal is read again");
        }
        if now.duration_since(self.forgotten) >= FORGET_EVERY && self.core.forget_unused(FORGOTTEN) {
            self.forgotten = now;
        }
        let is_idle = !std::mem::take(&mut self.is_asked);
        if now.duration_since(self.shrunk) >= SHRINK_EVERY {
            self.shrunk = now;
            self.shrink(if is_idle { IDLE } else { BUSY });
        }
        if now.duration_since(self.expired) >= EXPIRE_EVERY {
            self.expired = now;
            self.core.expire_volatile(milliseconds());
            self.sweep = Some((0, Id::default()));
        }
    }

    fn shrink(&mut self, most: u64) {
        match self.journal.shrink(most) {
            Ok(0) => {}
            Ok(bytes) => {
                tracing::info!("queues: the emptied journal gave {} MiB back to its disk", bytes >> 20)
            }
            Err(error) => tracing::debug!("queues: {error}"),
        }
    }

    fn write(&mut self) -> bool {
        if self.core.is_clean() {
            return true;
        }
        match self.write_part(Part::All) {
            Ok(()) => {
                self.written();
                true
            }
            Err(error) => {
                self.journal.relieve();
                self.write_singly(&error)
            }
        }
    }

    fn write_part(&mut self, part: Part) -> Result<(), JournalError> {
        let writes = self.core.writes(part);
        if !writes.is_empty() {
            self.journal.write(&writes)?;
        }
        self.core.committed(part);
        Ok(())
    }

    /// What cannot be written must not fail its neighbours. Was all that is owed written?
    fn write_singly(&mut self, error: &JournalError) -> bool {
        let owed = self.write_part(Part::Owed).is_ok();
        let (mut kept, mut told, mut in_a_row) = (0, 0, 0);
        while self.core.is_awaited() && in_a_row < MOST_REFUSED {
            match self.write_part(Part::First) {
                Ok(()) => (kept, in_a_row) = (kept + 1, 0),
                Err(error) => {
                    told += 1;
                    // For want of room the disk is not asked.
                    in_a_row += usize::from(!matches!(error, JournalError::NoRoom { .. }));
                    self.core.failed(Part::First, &error.to_string());
                }
            }
        }
        let is_crowded = owed && in_a_row == 0 && matches!(error, JournalError::NoRoom { .. });
        let is_broken = !owed || self.core.is_awaited() || kept == 0 && told > 0;
        if is_broken && !is_crowded {
            self.core.failed(Part::All, &error.to_string());
            self.unwritten(error);
            return owed;
        }
        if told > 0 {
            tracing::warn!("queues: {error}; {told} senders were told, all else is written");
        }
        if !is_crowded {
            self.written();
        }
        owed
    }

    fn written(&mut self) {
        if self.trouble.writing.take().is_some() {
            tracing::warn!("queues: the journal is written again");
            self.core.retry();
        }
    }

    fn unwritten(&mut self, error: &JournalError) {
        let why = error.to_string();
        if self.trouble.writing.as_ref() != Some(&why) {
            tracing::error!("queues: {why}; senders are refused, and it is tried again every second");
        }
        self.trouble.writing = Some(why);
    }

    fn unread(&mut self, error: &JournalError) {
        let why = error.to_string();
        if self.trouble.reading.as_ref() != Some(&why) {
            tracing::error!("queues: {why}; what stands there waits, and it is tried again every second");
        }
        self.trouble.reading = Some(why);
    }

    fn tell_damaged(&self, id: Id, more: usize) {
        let (queue, place) = (self.core.name_of(id), id.number());
        tracing::error!(
            "queues: {queue}: message {place} is damaged, and {more} behind it; set aside, and the others go \
             on: purge the queue when it holds nothing else, or stop this vault and restore its state folder"
        );
    }

    /// Does what the core wants done, until it wants nothing more.
    fn perform(&mut self) {
        loop {
            self.core.dispatch(milliseconds());
            let effects = self.core.effects();
            if effects.is_empty() {
                return;
            }
            for effect in effects {
                self.perform_one(effect);
            }
        }
    }

    fn perform_one(&mut self, effect: Effect) {
        match effect {
            Effect::Answer(token, answer) => match self.waiters.remove(&token) {
                // Whoever waited may have left.
                Some(Waiter::Done(reply)) => drop(reply.send(answer.map_err(Into::into))),
                Some(Waiter::Acted(last, reply)) => {
                    let acted = answer.map(|done| match done {
                        Done::Count(count) => Acted { count, last },
                        Done::Done | Done::Duplicate => Acted { count: 0, last },
                    });
                    drop(reply.send(acted.map_err(Into::into)));
                }
                None => {}
            },
            Effect::Load { level, after, messages, bytes } => {
                let page = self.journal.page(level, after, messages, bytes);
                let page = page.map_err(|error| self.unread(&error)).ok();
                if let Some([first, others @ ..]) = page.as_ref().map(|page| &page.damaged[..]) {
                    self.tell_damaged(*first, others.len());
                }
                self.core.loaded(level, page);
            }
            Effect::Scan { level, after, rows } if self.scans >= SCANS => {
                let scan = (level, after, rows);
                if !self.postponed.contains(&scan) {
                    self.postponed.push(scan);
                }
            }
            Effect::Scan { level, after, rows } => {
                self.scans += 1;
                let rows = self.journal.scan(level, after, rows);
                let rows = rows.map_err(|error| self.unread(&error)).ok();
                self.core.scanned(level, after, rows.as_deref());
            }
            Effect::Deliver { connection, consumer, id, size, redeliveries, first, message } => {
                let Some(message) = message.or_else(|| self.read(consumer, id, size)) else { return };
                if let Some(connection) = self.connections.get(&connection) {
                    // Whose connection has just ended is told by its end.
                    let _gone =
                        connection.send(Delivery { consumer, id, size, redeliveries, first, message });
                }
            }
        }
    }

    /// What is to be delivered, if it can be read.
    fn read(&mut self, consumer: ConsumerKey, id: Id, size: usize) -> Option<Arc<Message>> {
        match self.journal.read(id) {
            Ok(placed) => return Some(placed.message),
            Err(JournalError::Damaged { .. }) => {
                self.tell_damaged(id, 0);
                self.core.damaged(consumer, id, size);
            }
            Err(error) => {
                self.unread(&error);
                self.core.unreadable(consumer, id, size);
            }
        }
        None
    }

    fn take(&mut self, request: Request) -> Step {
        match request {
            Request::Connect(connection, deliveries) => {
                self.connections.insert(connection, deliveries);
            }
            Request::Disconnect(connection) => {
                self.connections.remove(&connection);
                if !self.core.disconnect(connection) {
                    return left(Request::Disconnect(connection));
                }
            }
            Request::Subscribe(connection, key, destination, terms, reply) => {
                let done = self.core.subscribe(connection, key, &destination, terms);
                self.answer(done, reply);
            }
            Request::Unsubscribe(key, seen, reply) if !self.core.unsubscribe(key, seen) => {
                return left(Request::Unsubscribe(key, seen, reply));
            }
            Request::Unsubscribe(_, _, reply) => self.answer(Ok(()), reply),
            Request::Pull(key, count) => self.core.pull(key, count),
            Request::Prefetch(key, prefetch) => self.core.prefetch(key, prefetch),
            Request::PassedOn(key, bytes, big) => self.core.passed_on(key, bytes, big),
            Request::CreateTemporary(connection, destination, reply) => {
                let done = self.core.create_temporary(connection, &destination);
                self.answer(done, reply);
            }
            Request::DeleteTemporary(connection, destination, reply) => {
                let done = self.core.delete_temporary(connection, &destination);
                self.answer(done, reply);
            }
            Request::Send(connection, send, transaction, reply) => {
                let token = self.wait(Waiter::Done(reply));
                self.core.send(token, connection, send, transaction);
            }
            Request::Acknowledge(key, range, most, kind, transaction, reply) => {
                let last = range.1;
                let counted = self.core.count_held(key, range, most, transaction);
                match counted.and_then(|()| self.core.acknowledge(key, range, kind.clone(), transaction)) {
                    Ok(Some(next)) => {
                        let range = (Some(next), last);
                        // Counted once.
                        let most = usize::MAX;
                        return left(Request::Acknowledge(key, range, most, kind, transaction, reply));
                    }
                    done => self.answer(done.map(drop), reply),
                }
            }
            Request::Begin(connection, transaction, reply) => {
                let done = self.core.begin(connection, transaction);
                self.answer(done, reply);
            }
            Request::Commit(connection, transaction, reply) if self.core.unwind(connection, transaction) => {
                return left(Request::Commit(connection, transaction, reply));
            }
            Request::Commit(connection, transaction, reply) => {
                let token = self.wait(Waiter::Done(reply));
                self.core.commit(token, connection, transaction);
            }
            Request::Rollback(connection, transaction, reply) => {
                match self.core.rollback(connection, transaction) {
                    Ok(false) => return left(Request::Rollback(connection, transaction, reply)),
                    done => self.answer(done.map(drop), reply),
                }
            }
            Request::Sync(reply) => {
                let token = self.wait(Waiter::Done(reply));
                self.core.sync(token);
            }
            Request::Operate(operate) => self.operate(operate),
        }
        Step::Done
    }

    fn answer(&self, done: Result<(), Refusal>, reply: Reply) {
        drop(reply.send(done.map(|()| Done::Done).map_err(Into::into)));
    }

    fn wait(&mut self, waiter: Waiter) -> Token {
        self.token += 1;
        self.waiters.insert(self.token, waiter);
        self.token
    }
}

/// A portion is done.
fn left(request: Request) -> Step {
    Step::Left(PORTION, request)
}

#[expect(clippy::disallowed_methods, reason = "this thread is the room's clock")]
fn moment() -> Instant {
    Instant::now()
}

/// Since 1970, as messages tell their times.
#[expect(clippy::disallowed_methods, reason = "this thread is the room's clock")]
pub(super) fn milliseconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
