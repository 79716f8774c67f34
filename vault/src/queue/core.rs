//! The queues' rules, as a machine without clock, disk or socket: what is asked goes in by a method,
//! what must happen comes out as [`Effect`]s, and what must be written as [`Writes`]. Knows no SQL
//! and no wire.
//!
//! Nothing that needs the disk is visible before it is written. A send, a commit or an operator's
//! move is *staged*: [`Core::committed`] makes it true and answers it, [`Core::failed`] undoes and
//! refuses it. What consumers have acknowledged, and what died, is *owed*: it is true at once, because
//! nobody is told that it is durable, and is written with the next commit that succeeds.

mod consumer;
mod dispatch;
mod group;
mod line;
mod operator;
mod producers;
mod reader;
mod session;
mod unit;
mod unused;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::message::{Cause, DEAD_LETTERS, Destination, Id, Level, MOST_QUEUES, Message, Origin};
use consumer::{Consumer, Flight, Taken};
use line::{Entry, Line};
use producers::Producers;

pub use dispatch::{Page, is_big};
pub use operator::{Action, QueueState, Row};
pub use producers::Known;
pub(crate) use producers::MOST_PRODUCERS;
pub use reader::{Filter, Terms};
pub use session::{AckKind, PORTION, Seen, Send};
pub use unit::{Move, Part, Writes};

/// A connection, as its owner numbers it.
pub type ConnectionKey = u64;
/// A consumer, as its owner numbers it; never used twice.
pub type ConsumerKey = u64;
/// Names whoever waits for an answer.
pub type Token = u64;

/// What bounds the queues' memory. Bytes are what messages count, see [`Message::size`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Queues, temporary ones included; at most 16,384. A connection that has as many temporary ones as
    /// are left for all others, and more than 8, makes no more.
    pub queues: usize,
    /// Consumers of all connections; one has its share as with queues.
    pub consumers: usize,
    /// Unacknowledged messages of one consumer, whatever its prefetch.
    pub in_flight: usize,
    /// Unacknowledged messages of all consumers; then only those are given more who hold less than
    /// an equal share of the most consumers that there may be.
    pub flights: usize,
    /// Waiting persistent messages of one queue that are kept in memory.
    pub window_messages: usize,
    /// As above, in bytes.
    pub window_bytes: usize,
    /// All queues' windows, in bytes.
    pub cached_bytes: usize,
    /// Dispatched and not yet passed on to sockets: all consumers have equal shares of it, at
    /// least 16 KiB, and messages larger than that have as much again; four consumers may have one
    /// of those each, however large.
    pub outgoing_bytes: usize,
    /// Non-persistent messages, in bytes: a commit that would bring more is refused.
    pub resident_bytes: usize,
    /// Sent in open transactions, by all connections, in bytes. One connection has a quarter of it, and
    /// each as little as 16 KiB whatever others have.
    pub uncommitted_bytes: usize,
    /// Sent in one transaction.
    pub transaction_messages: usize,
    /// Open transactions of one connection.
    pub transactions: usize,
    /// Rows that are looked at at once for consumers that decline what comes before.
    pub scanned_rows: usize,
    /// Message groups of one queue that are remembered while their consumers hold nothing of them.
    pub groups: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            queues: 10_000,
            consumers: 20_000,
            in_flight: 100_000,
            flights: 400_000,
            window_messages: 1_000,
            window_bytes: 1 << 20,
            cached_bytes: 8 << 20,
            outgoing_bytes: 16 << 20,
            resident_bytes: 64 << 20,
            uncommitted_bytes: 64 << 20,
            transaction_messages: 100_000,
            transactions: 1_000,
            scanned_rows: 1_000,
            groups: 1_024,
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
    /// One connection has as many as are left for all others.
    #[error(
        "this connection has {own} {what} of the {most} that there may be, no fewer than are left for all others; close some"
    )]
    Share {
        /// Of what.
        what: &'static str,
        /// How many it has.
        own: usize,
        /// The limit.
        most: usize,
    },
    /// A temporary queue has ended with its connection, or there is no such queue.
    #[error("{destination}: {}", if destination.is_temporary() { "its connection has ended, and it with it" } else { "there is none" })]
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
    /// Taking them would lose what the client has not seen.
    #[error(
        "{most} messages are acknowledged, and more than these are with this consumer in that range; receive them again"
    )]
    Miscounted {
        /// As many as the client has counted.
        most: usize,
    },
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
        /// What it counts, in bytes.
        size: usize,
        /// How often it was given away before.
        redeliveries: u32,
        /// Its group begins with it, for this consumer.
        first: bool,
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
    /// Read the rows of a level without their messages, from behind a number; [`Core::scanned`]
    /// follows.
    Scan {
        /// Which one.
        level: Level,
        /// Behind which number.
        after: u64,
        /// At most so many.
        rows: usize,
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
    /// Numbers below it are of an earlier life, which may have given them out.
    earlier: u64,
    /// The queue up to which unused ones were looked for.
    swept: Option<u16>,
    /// When it was dispatched last, in ms since 1970.
    now: u64,
    units: Vec<unit::Unit>,
    owed: unit::Owed,
    /// Lines in which something may be given away.
    ripe: BTreeSet<u16>,
    /// Lines whose next message is too big until others are passed on.
    held: BTreeSet<u16>,
    /// Lines that wait for the disk to work again.
    stalled: BTreeSet<u16>,
    /// Consumers that have ended and of whose messages not all are back,
    leaving: BTreeMap<ConsumerKey, session::Leaving>,
    /// and their lines, of which nothing is given away until then: it would be out of its order.
    returning: BTreeSet<u16>,
    /// Lines whose expired messages wait for the next commit.
    burying: BTreeSet<u16>,
    stored: u64,
    cached: usize,
    /// Bytes of non-persistent messages.
    resident: usize,
    uncommitted: usize,
    /// Under way of big messages.
    big: dispatch::Big,
    /// Messages in consumers' hands.
    flights: usize,
    /// Consumers that hold enough as long as all together hold too many.
    crowd: BTreeSet<ConsumerKey>,
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
            earlier: kept.next,
            swept: None,
            now: 0,
            units: Vec::new(),
            owed: unit::Owed::default(),
            ripe: BTreeSet::new(),
            held: BTreeSet::new(),
            stalled: BTreeSet::new(),
            leaving: BTreeMap::new(),
            returning: BTreeSet::new(),
            burying: BTreeSet::new(),
            stored: 0,
            cached: 0,
            resident: 0,
            uncommitted: 0,
            big: dispatch::Big::default(),
            flights: 0,
            crowd: BTreeSet::new(),
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
                stock.last = kept.next.saturating_sub(1);
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

    /// Bytes that the journal's messages count.
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

    /// What the queue is called in which a place is.
    #[must_use]
    pub fn name_of(&self, id: Id) -> &str {
        self.lines.get(&id.level().queue()).map_or("a queue that is gone", |line| line.destination.name())
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
        if self.lines.len() >= most && !self.make_room() {
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
        let origin = Origin { queue: from, cause: cause.clone() };
        let (size, at, marks) = (entry.size, entry.at, entry.marks.clone());
        let becomes = size + origin.size();
        Some(Move { from: id, to, size, becomes, at, expiration: 0, marks, origin: Some(origin) })
    }

    /// It is in that consumer's hands no more.
    fn landed(&mut self, key: ConsumerKey, flight: &Flight) {
        if let Some(line) = self.line_of(flight.id) {
            line.in_flight = line.in_flight.saturating_sub(1);
            line.readers.land(key, flight.entry.marks.as_ref());
        }
        self.thin(1);
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
                self.landed(key, &flight);
                flight.entry.redeliveries = flight.entry.redeliveries.saturating_add(1);
                self.requeue(flight.id, flight.entry);
            }
        }
    }
}

#[cfg(test)]
mod tests;
