//! The queues' rules, as a machine without clock, disk or socket: what is asked goes in by a method,
//! what must happen comes out as [`Effect`]s, and what must be written as [`Writes`]. Knows no SQL
//! and no wire.
//!
//! Nothing that needs the disk is visible before it is written. A send, a commit or an operator's
//! move is *staged*: [`Core::committed`] makes it true and answers it, [`Core::failed`] undoes and
//! refuses it. What consumers have acknowledged, and what died, is *owed*: it is true at once, because
//! nobody is told that it is durable, and is written with the next commit that succeeds.

mod consumer;
mod line;
mod operator;
mod producers;
mod session;
mod unit;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::message::{Cause, DEAD_LETTERS, Destination, Id, Level, MOST_QUEUES, Message, Origin, Placed};
use consumer::{Consumer, Taken};
use line::{Entry, Head, Line};
use producers::Producers;

pub use operator::{Action, QueueState, Row};
pub use producers::Known;
pub(crate) use producers::MOST_PRODUCERS;
pub use session::{AckKind, Seen, Send};
pub use unit::{Move, Writes};

/// A connection, as its owner numbers it.
pub type ConnectionKey = u64;
/// A consumer, as its owner numbers it; never used twice.
pub type ConsumerKey = u64;
/// Names whoever waits for an answer.
pub type Token = u64;

/// Deletions that may wait for the disk before persistent messages are held back.
const MOST_OWED: usize = 100_000;
/// Deletions and burials that may wait for one commit before expired messages wait for it.
const MOST_BURIED: usize = 1_024;
/// Least that a consumer may have under way, in bytes; messages larger than that are big.
const LEAST_SHARE: usize = 16 * 1024;

/// What bounds the queues' memory. Bytes are those of bodies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Queues, temporary ones included; at most 16,384.
    pub queues: usize,
    /// Consumers of all connections.
    pub consumers: usize,
    /// Unacknowledged messages of one consumer, whatever its prefetch.
    pub in_flight: usize,
    /// Waiting persistent messages of one queue that are kept in memory.
    pub window_messages: usize,
    /// As above, in bytes.
    pub window_bytes: usize,
    /// All queues' windows, in bytes.
    pub cached_bytes: usize,
    /// Dispatched and not yet passed on to sockets: all consumers have equal shares of it, at
    /// least 16 KiB, and messages larger than that have as much again.
    pub outgoing_bytes: usize,
    /// Non-persistent messages, in bytes: a commit that would bring more is refused.
    pub resident_bytes: usize,
    /// Sent in open transactions, by all connections, in bytes.
    pub uncommitted_bytes: usize,
    /// Sent in one transaction.
    pub transaction_messages: usize,
    /// Open transactions of one connection.
    pub transactions: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            queues: 10_000,
            consumers: 20_000,
            in_flight: 100_000,
            window_messages: 1_000,
            window_bytes: 1 << 20,
            cached_bytes: 8 << 20,
            outgoing_bytes: 16 << 20,
            resident_bytes: 64 << 20,
            uncommitted_bytes: 64 << 20,
            transaction_messages: 100_000,
            transactions: 1_000,
        }
    }
}

/// Why something is refused. The texts go to the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There are too many.
    #[error("{destination}: there are {most} queues already; remove some, or raise the limit")]
    TooManyQueues {
        /// Which one was asked for.
        destination: Destination,
        /// The limit.
        most: usize,
    },
    /// There are too many.
    #[error("there are {most} consumers already; close some, or raise the limit")]
    TooManyConsumers {
        /// The limit.
        most: usize,
    },
    /// A temporary queue has ended with its connection.
    #[error("{destination}: its connection has ended, and it with it")]
    Gone {
        /// The queue.
        destination: Destination,
    },
    /// Only the connection that made a temporary queue reads it.
    #[error("{destination}: belongs to another connection")]
    NotYours {
        /// The queue.
        destination: Destination,
    },
    /// A queue that is still read or holds messages is not removed.
    #[error("{destination}: is in use; close its consumers and purge it first")]
    InUse {
        /// The queue.
        destination: Destination,
    },
    /// The acknowledged messages are not in that consumer's hands.
    #[error("the messages acknowledged are not with this consumer; they may have gone to another")]
    NotInFlight,
    /// The consumer has ended.
    #[error("this consumer has ended")]
    NoConsumer,
    /// No such transaction is open.
    #[error("this transaction is not open; begin it again")]
    NoTransaction,
    /// Too many are open.
    #[error("this connection has {most} open transactions; end some")]
    TooManyTransactions {
        /// The limit.
        most: usize,
    },
    /// It is kept in memory until its commit.
    #[error("what is sent in open transactions is too much; commit more often")]
    TransactionTooBig,
    /// Senders are held for as much; a transaction cannot be.
    #[error(
        "the memory for non-persistent messages is full; consume or purge some, and do this transaction again"
    )]
    MemoryFull,
    /// The disk.
    #[error("the queues' journal could not be written: {why}; nothing was kept, send it again later")]
    NotWritten {
        /// The journal's reason.
        why: String,
    },
}

/// What became of a request that is not refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// It is true, and durable where it has to be.
    Done,
    /// It was sent before, and is kept.
    Duplicate,
    /// So many messages.
    Count(u64),
}

/// What must happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Give it to the consumer; [`Core::passed_on`] follows. Without its message it is read first.
    Deliver {
        /// On which connection.
        connection: ConnectionKey,
        /// Who gets it.
        consumer: ConsumerKey,
        /// Its place, by which it is acknowledged.
        id: Id,
        /// Of its body, in bytes.
        size: usize,
        /// How often it was given away before.
        redeliveries: u32,
        /// What it is, if it is in memory.
        message: Option<Arc<Message>>,
    },
    /// Read a page of a level, from behind a place; [`Core::loaded`] follows.
    Load {
        /// Which one.
        level: Level,
        /// Behind which number.
        after: u64,
        /// At most so many.
        messages: usize,
        /// At most so many bytes, or one message.
        bytes: usize,
    },
    /// Tell who waits.
    Answer(Token, Result<Done, Refusal>),
}

/// How an acknowledged message ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fate {
    Done,
    Dead(Cause),
}

/// What the journal knows when it is opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    /// Numbers below it were used for places.
    pub next: u64,
    /// All queues.
    pub queues: Vec<(u16, Destination)>,
    /// Rows and bytes of each level.
    pub levels: Vec<(Level, u64, u64)>,
    /// All producers.
    pub producers: Vec<Known>,
}

/// All queues.
#[derive(Debug)]
pub struct Core {
    limits: Limits,
    lines: BTreeMap<u16, Line>,
    numbers: HashMap<Destination, u16>,
    consumers: HashMap<ConsumerKey, Consumer>,
    connections: HashMap<ConnectionKey, session::Connection>,
    producers: Producers,
    /// The number of their queue.
    dead_letters: u16,
    /// The next place's number.
    next: u64,
    units: Vec<unit::Unit>,
    owed: unit::Owed,
    /// Rows on disk that will go with the next commit; a page that still has them leaves them out.
    removing: HashSet<Id>,
    /// Lines in which something may be given away.
    ripe: BTreeSet<u16>,
    /// Lines whose next message is too big until others are passed on.
    held: BTreeSet<u16>,
    /// Lines that wait for the disk to work again.
    stalled: BTreeSet<u16>,
    /// Lines whose expired messages wait for the next commit.
    burying: BTreeSet<u16>,
    stored: u64,
    cached: usize,
    /// Bytes of non-persistent messages.
    resident: usize,
    uncommitted: usize,
    /// Bytes under way of big messages.
    big: usize,
    effects: Vec<Effect>,
}

impl Core {
    /// The queues as the journal left them.
    #[must_use]
    pub fn new(limits: Limits, kept: Kept) -> Self {
        let limits = Limits { queues: limits.queues.min(MOST_QUEUES), ..limits };
        let mut core = Self {
            limits,
            lines: BTreeMap::new(),
            numbers: HashMap::new(),
            consumers: HashMap::new(),
            connections: HashMap::new(),
            producers: Producers::restored(kept.producers),
            dead_letters: 0,
            next: kept.next,
            units: Vec::new(),
            owed: unit::Owed::default(),
            removing: HashSet::new(),
            ripe: BTreeSet::new(),
            held: BTreeSet::new(),
            stalled: BTreeSet::new(),
            burying: BTreeSet::new(),
            stored: 0,
            cached: 0,
            resident: 0,
            uncommitted: 0,
            big: 0,
            effects: Vec::new(),
        };
        for (number, destination) in kept.queues {
            core.numbers.insert(destination.clone(), number);
            core.lines.insert(number, Line::new(number, destination, None));
        }
        for (level, rows, bytes) in kept.levels {
            if let Some(line) = core.lines.get_mut(&level.queue()) {
                let stock = line.stock(level.place(0));
                (stock.rows, stock.bytes, stock.beyond) = (rows, bytes, rows);
                core.stored += bytes;
            }
        }
        core.dead_letters = core.dead_letters_line();
        core
    }

    /// What has come up since the last call.
    pub fn effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Bytes of the bodies that the journal keeps.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.stored
    }

    /// Bytes of non-persistent messages; open transactions have a bound of their own.
    #[must_use]
    pub fn resident_bytes(&self) -> usize {
        self.resident
    }

    /// Bytes that cannot be had from disk: non-persistent messages, and open transactions.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.resident + self.uncommitted
    }

    /// Is this number of a producer's, or a later one, kept already, as far as it is remembered?
    #[must_use]
    pub fn has(&self, producer: &str, number: u64) -> bool {
        self.producers.has(producer, number)
    }

    /// Places of messages that are sent from now on have this number or a higher one.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.next
    }

    /// The queue's number; a queue that is new is written with the next commit.
    ///
    /// # Errors
    /// [`Refusal::TooManyQueues`]; [`Refusal::Gone`] for a temporary one that nobody made.
    pub fn queue(&mut self, destination: &Destination) -> Result<u16, Refusal> {
        match self.numbers.get(destination) {
            Some(number) => Ok(*number),
            None if destination.is_temporary() => Err(Refusal::Gone { destination: destination.clone() }),
            None => self.create(destination, None),
        }
    }

    /// Always there, so that no dead letter is lost for want of a queue.
    fn dead_letters_line(&mut self) -> u16 {
        let destination = Destination::Queue(DEAD_LETTERS.into());
        if let Some(number) = self.numbers.get(&destination) {
            return *number;
        }
        // Numbers from 1 on are given to the others.
        self.numbers.insert(destination.clone(), 0);
        self.lines.insert(0, Line::new(0, destination.clone(), None));
        self.owed.queues.insert(0, Some(destination));
        0
    }

    fn create(&mut self, destination: &Destination, owner: Option<ConnectionKey>) -> Result<u16, Refusal> {
        let most = self.limits.queues;
        let too_many = || Refusal::TooManyQueues { destination: destination.clone(), most };
        if self.lines.len() >= most {
            return Err(too_many());
        }
        let last = self.lines.last_key_value().map_or(0, |(number, _)| *number);
        let free = if usize::from(last) + 1 < MOST_QUEUES {
            Some(last + 1)
        } else {
            (1..=last).find(|number| !self.lines.contains_key(number))
        };
        let number = free.ok_or_else(too_many)?;
        self.numbers.insert(destination.clone(), number);
        // Its own number, so that no two queues are born alike.
        let mut line = Line::new(number, destination.clone(), owner);
        line.born = self.next;
        self.next += 1;
        self.lines.insert(number, line);
        if owner.is_none() {
            self.owed.queues.insert(number, Some(destination.clone()));
        }
        Ok(number)
    }

    /// Gives away what can be given, at that time (ms since 1970). To be called after everything
    /// else, before the effects are looked at.
    pub fn dispatch(&mut self, now: u64) {
        while let Some(number) = self.ripe.pop_first() {
            self.dispatch_line(number, now);
        }
    }

    /// Is anything held back until the disk works again?
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        !self.stalled.is_empty()
    }

    /// The disk may work again.
    pub fn retry(&mut self) {
        self.ripe.append(&mut self.stalled);
    }

    fn dispatch_line(&mut self, number: u16, now: u64) {
        loop {
            let Some(line) = self.lines.get(&number) else { return };
            let Some(&key) = line.hungry.front() else { return };
            let has_room = |consumer: &Consumer| consumer.hungry && consumer.has_room(self.limits.in_flight);
            if !self.consumers.get(&key).is_some_and(has_room) {
                self.leave(number, key);
                continue;
            }
            if self.owed() >= MOST_OWED {
                self.stalled.insert(number);
                return;
            }
            match line.head() {
                Head::Nothing => return,
                Head::OnDisk(level) => return self.load(level),
                Head::Ready(id) => {
                    let Some(entry) = line.ready.get(&id) else { return };
                    if entry.is_expired(now) {
                        if self.owed() >= MOST_BURIED {
                            self.burying.insert(number);
                            return;
                        }
                        self.bury_ready(id, Cause::Expired);
                    } else if self.fits(key, entry.size) {
                        self.give(number, key, id);
                    } else if self.consumers.get(&key).is_some_and(|consumer| consumer.outstanding == 0) {
                        // Nothing of its own is under way: it waits for other big ones.
                        self.held.insert(number);
                        return;
                    } else {
                        self.leave(number, key);
                    }
                }
            }
        }
    }

    /// The first in turn has no room.
    fn leave(&mut self, number: u16, key: ConsumerKey) {
        if let Some(line) = self.lines.get_mut(&number) {
            line.hungry.pop_front();
        }
        if let Some(consumer) = self.consumers.get_mut(&key) {
            consumer.hungry = false;
        }
    }

    fn load(&mut self, level: Level) {
        let Some(line) = self.lines.get_mut(&level.queue()) else { return };
        let stock = line.stock(level.place(0));
        if !std::mem::replace(&mut stock.loading, true) {
            let (after, messages) = (stock.cursor, self.limits.window_messages);
            let free = self.limits.cached_bytes.saturating_sub(self.cached);
            let bytes = self.limits.window_bytes.min(free);
            self.effects.push(Effect::Load { level, after, messages, bytes });
        }
    }

    /// The page that [`Effect::Load`] asked for; `None` if it cannot be read now.
    pub fn loaded(&mut self, level: Level, page: Option<Vec<Placed>>) {
        let Some(line) = self.lines.get_mut(&level.queue()) else { return };
        line.stock(level.place(0)).loading = false;
        let Some(page) = page else {
            self.stalled.insert(level.queue());
            return;
        };
        if page.is_empty() {
            // What is counted and not there cannot be given away.
            line.stock(level.place(0)).beyond = 0;
        }
        for Placed { id, message, .. } in page {
            let stock = line.stock(id);
            stock.cursor = id.sequence();
            if !self.removing.contains(&id) {
                stock.beyond = stock.beyond.saturating_sub(1);
                let mut entry = Entry::new(true, message);
                if self.cached + entry.size > self.limits.cached_bytes {
                    // It is read again when it is given away.
                    entry.message = None;
                }
                line.put(id, entry, &mut self.cached);
            }
        }
        self.ripe.insert(level.queue());
    }

    /// May so much more be under way to that consumer? See [`Limits::outgoing_bytes`].
    fn fits(&self, key: ConsumerKey, size: usize) -> bool {
        let under_way = self.consumers.get(&key).map_or(0, |consumer| consumer.outstanding);
        let small = under_way == 0 || under_way + size <= self.share();
        let big = !is_big(size) || self.big == 0 || self.big + size <= self.limits.outgoing_bytes;
        small && big
    }

    fn share(&self) -> usize {
        (self.limits.outgoing_bytes / self.consumers.len().max(16)).max(LEAST_SHARE)
    }

    fn give(&mut self, number: u16, key: ConsumerKey, id: Id) {
        let (Some(line), Some(consumer)) = (self.lines.get_mut(&number), self.consumers.get_mut(&key)) else {
            return;
        };
        let Some(mut entry) = line.take(id, &mut self.cached) else { return };
        line.in_flight += 1;
        line.hungry.pop_front();
        line.hungry.push_back(key);
        consumer.outstanding += entry.size;
        if is_big(entry.size) {
            consumer.big += entry.size;
            self.big += entry.size;
        }
        let connection = consumer.connection;
        let message = if entry.persistent { entry.message.take() } else { entry.message.clone() };
        let (size, redeliveries) = (entry.size, entry.redeliveries);
        consumer.give(id, entry);
        self.effects.push(Effect::Deliver { connection, consumer: key, id, size, redeliveries, message });
    }

    /// So many bytes have left for the consumer's socket, or will not; and so many of them were of
    /// big messages (see [`is_big`]).
    pub fn passed_on(&mut self, key: ConsumerKey, bytes: usize, big: usize) {
        let Some(consumer) = self.consumers.get_mut(&key) else { return };
        consumer.outstanding = consumer.outstanding.saturating_sub(bytes);
        let big = big.min(consumer.big);
        consumer.big -= big;
        self.free_big(big);
        self.feed(key);
    }

    fn free_big(&mut self, big: usize) {
        if big > 0 {
            self.big = self.big.saturating_sub(big);
            self.ripe.append(&mut self.held);
        }
    }

    /// A delivered message could not be read: it waits in front until the disk is asked again.
    pub fn unreadable(&mut self, key: ConsumerKey, id: Id, size: usize) {
        let flight = self.consumers.get_mut(&key).and_then(|consumer| consumer.take_one(id));
        self.passed_on(key, size, if is_big(size) { size } else { 0 });
        if let Some(flight) = flight
            && let Some(line) = self.lines.get_mut(&id.level().queue())
        {
            line.in_flight = line.in_flight.saturating_sub(1);
            line.put(id, flight.entry, &mut self.cached);
            self.ripe.remove(&id.level().queue());
            self.stalled.insert(id.level().queue());
        }
    }

    /// Puts a consumer in its queue's line, if it has room.
    fn feed(&mut self, key: ConsumerKey) {
        let Some(consumer) = self.consumers.get_mut(&key) else { return };
        if !consumer.hungry
            && consumer.has_room(self.limits.in_flight)
            && let Some(line) = self.lines.get_mut(&consumer.queue)
        {
            consumer.hungry = true;
            line.hungry.push_back(key);
        }
        if consumer.hungry && !self.stalled.contains(&consumer.queue) {
            self.ripe.insert(consumer.queue);
        }
    }

    /// The queue that a message stands in, or came from; not another that has its number since.
    fn line_of(&mut self, id: Id) -> Option<&mut Line> {
        self.lines.get_mut(&id.level().queue()).filter(|line| line.born <= id.sequence())
    }

    fn place(&mut self, queue: u16, priority: u8) -> Id {
        let id = Level::new(queue, priority).place(self.next);
        self.next += 1;
        id
    }

    /// A message that nobody holds ends before it was taken.
    fn bury_ready(&mut self, id: Id, cause: Cause) {
        let Some(line) = self.lines.get_mut(&id.level().queue()) else { return };
        if let Some(entry) = line.take(id, &mut self.cached) {
            self.end(id, entry, &Fate::Dead(cause));
        }
    }

    /// A message that is in no line and in nobody's hands any more.
    fn end(&mut self, id: Id, entry: Entry, fate: &Fate) {
        self.count(id, fate);
        if !entry.persistent {
            // Nobody misses what was not to be kept.
            self.resident = self.resident.saturating_sub(entry.size);
        } else if let Some(step) = self.burial(id, &entry, fate) {
            self.owed.moves.push(step);
        } else {
            self.owed.deletes.push((id, entry.size));
        }
    }

    fn count(&mut self, id: Id, fate: &Fate) {
        if let Some(line) = self.line_of(id) {
            match fate {
                Fate::Done => line.dequeued += 1,
                Fate::Dead(_) => line.dead += 1,
            }
        }
    }

    /// Where a dead letter goes; `None` if it is deleted.
    fn burial(&mut self, id: Id, entry: &Entry, fate: &Fate) -> Option<Move> {
        let Fate::Dead(cause) = fate else { return None };
        // What dies among dead letters is gone.
        let line = self.lines.get(&id.level().queue()).filter(|line| !line.is_for_the_dead())?;
        let from = line.destination.name().to_owned();
        let queue = self.dead_letters;
        let to = self.place(queue, id.level().priority());
        let origin = Some(Origin { queue: from, cause: cause.clone() });
        Some(Move { from: id, to, size: entry.size, at: entry.at, expiration: 0, origin })
    }

    /// It is in no consumer's hands any more.
    fn landed(&mut self, id: Id) {
        if let Some(line) = self.line_of(id) {
            line.in_flight = line.in_flight.saturating_sub(1);
        }
    }

    /// Back to the front, as its place says.
    fn requeue(&mut self, id: Id, entry: Entry) {
        let number = id.level().queue();
        match self.lines.get_mut(&number).filter(|line| line.born <= id.sequence()) {
            Some(line) => {
                line.put(id, entry, &mut self.cached);
                self.ripe.insert(number);
            }
            // A temporary queue has ended meanwhile.
            None => self.resident = self.resident.saturating_sub(entry.size),
        }
    }

    /// Undoes what a transaction had taken out of consumers' hands.
    fn untake(&mut self, taken: Vec<Taken>) {
        for Taken { consumer: key, turn, mut flight, .. } in taken {
            if let Some(consumer) = self.consumers.get_mut(&key) {
                consumer.taken -= 1;
                consumer.put_back(turn, flight);
            } else {
                self.landed(flight.id);
                flight.entry.redeliveries = flight.entry.redeliveries.saturating_add(1);
                self.requeue(flight.id, flight.entry);
            }
        }
    }
}

/// Does a message of so many bytes count as a big one under way?
#[must_use]
pub fn is_big(size: usize) -> bool {
    size > LEAST_SHARE
}

#[cfg(test)]
mod tests;
