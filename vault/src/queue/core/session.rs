//! What a connection does: consumers, sends, acknowledgements, transactions, temporary queues. All
//! of it ends with the connection, open transactions first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::consumer::{Consumer, Flight, Taken};
use super::line::Entry;
use super::reader::Terms;
use super::unit::Unit;
use super::{ConnectionKey, ConsumerKey, Core, Done, Effect, Fate, Refusal, Token};
use crate::queue::message::{Cause, Destination, Id, Marks, Message};

/// One connection's open transactions have this part of the room for all of them,
const SHARERS: usize = 4;
/// and this much, in bytes, whatever others have,
const LEAST_SENT: usize = 16 * 1024;
/// if it is not more than such a part.
const LEAST_SHARERS: usize = 64;
/// Consumers, and temporary queues, that one connection may have as long as there may be any more.
const LEAST_OF_EACH: usize = 8;
/// Messages that one request is about at a time: whoever asks for more than that does so in portions,
/// between which others are served.
pub const PORTION: usize = 2_048;
/// Messages given up that wait for the disk, or in a transaction, with their reasons.
const MOST_REASONS: usize = 4_096;

/// What is sent.
#[derive(Debug, Clone)]
pub struct Send {
    /// Where to.
    pub destination: Destination,
    /// Is it to survive restarts? In a temporary queue nothing does.
    pub persistent: bool,
    /// 0 to 9.
    pub priority: u8,
    /// The producer, in words that no other user can say, and its number of this message, by which
    /// one sent again is recognised.
    pub producer: Option<(Box<str>, u64)>,
    /// Its connection may have sent it before, on another that broke.
    pub again: bool,
    /// The message.
    pub message: Arc<Message>,
}

/// What a consumer says of messages in its hands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AckKind {
    /// They are done.
    Standard,
    /// It has seen them, and wants more before it says what became of them.
    Delivered,
    /// It took them back and gives them to its listener once more.
    Redelivered,
    /// It gives up, for this reason: they are dead letters.
    Poison(Option<String>),
    /// Their time was over when it got them.
    Expired,
}

/// Which messages a closing consumer has seen: those count as given away once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Perhaps all, as when its connection broke.
    Unknown,
    /// None.
    Nothing,
    /// Those up to this one, in the order they were given.
    UpTo(Id),
}

/// A message sent in a transaction.
#[derive(Debug)]
struct Pending {
    queue: u16,
    /// See [`super::line::Line::born`].
    born: u64,
    priority: u8,
    producer: Option<(Box<str>, u64)>,
    again: bool,
    entry: Entry,
}

/// An open transaction.
#[derive(Debug, Default)]
struct Transaction {
    sends: Vec<Pending>,
    taken: Vec<Taken>,
    /// Why it cannot be committed any more: something in it was refused.
    failed: Option<Refusal>,
}

impl Transaction {
    /// Bytes that it sends and that are not persistent.
    fn light(&self) -> usize {
        let light = self.sends.iter().filter(|pending| !pending.entry.persistent);
        light.map(|pending| pending.entry.size).sum()
    }
}

/// All that ends with a connection.
#[derive(Debug, Default)]
pub(super) struct Connection {
    consumers: BTreeSet<ConsumerKey>,
    transactions: BTreeMap<u64, Transaction>,
    temporaries: BTreeSet<u16>,
    /// Bytes sent in its open transactions.
    uncommitted: usize,
}

/// A consumer that has ended, and what of it has not gone back yet.
#[derive(Debug)]
pub(super) struct Leaving {
    connection: ConnectionKey,
    queue: u16,
    flights: BTreeMap<u64, Flight>,
    seen: Seen,
    /// In whose turn it was given what `seen` names, if it had that still.
    upto: Option<u64>,
}

/// May a connection that has so many of its own of something have one more? Of what is free, those who
/// want all leave as much as each has: nobody finds nothing left.
fn fits_share(what: &'static str, own: usize, all: usize, most: usize) -> Result<(), Refusal> {
    if own < LEAST_OF_EACH || own < most.saturating_sub(all) {
        return Ok(());
    }
    Err(Refusal::Share { what, own, most })
}

impl Core {
    /// The connection has ended: its transactions are rolled back, what its consumers held goes back
    /// in front, its temporary queues end. Done is one portion; false if it has to be said again.
    pub fn disconnect(&mut self, connection: ConnectionKey) -> bool {
        let mut room = PORTION;
        while let Some(open) = self.connections.get(&connection)
            && let Some((transaction, size)) =
                open.transactions.iter().next().map(|(key, transaction)| (*key, transaction.taken.len()))
        {
            // It is open: nothing refuses that.
            let _portion = self.rollback(connection, transaction);
            if size >= room {
                return false;
            }
            room -= size;
        }
        while let Some(key) =
            self.connections.get(&connection).and_then(|open| open.consumers.first().copied())
        {
            let size = self.consumers.get(&key).map_or(PORTION, Consumer::held);
            let is_done = self.unsubscribe(key, Seen::Unknown);
            if !is_done || size >= room {
                return false;
            }
            room -= size;
        }
        let Some(ended) = self.connections.remove(&connection) else { return true };
        for number in ended.temporaries {
            self.end_temporary(number);
        }
        true
    }

    /// Makes a temporary queue; one that the connection has made already is left as it is.
    ///
    /// # Errors
    /// [`Refusal::TooManyQueues`]; [`Refusal::Share`]; [`Refusal::NotYours`].
    pub fn create_temporary(
        &mut self,
        connection: ConnectionKey,
        destination: &Destination,
    ) -> Result<(), Refusal> {
        if let Some(number) = self.numbers.get(destination) {
            let owner = self.lines.get(number).and_then(|line| line.owner);
            let not_yours = || Refusal::NotYours { destination: destination.clone() };
            return if owner == Some(connection) { Ok(()) } else { Err(not_yours()) };
        }
        let own = self.connections.get(&connection).map_or(0, |open| open.temporaries.len());
        fits_share("temporary queues", own, self.lines.len(), self.limits.queues)?;
        let number = self.create(destination, Some(connection))?;
        self.connections.entry(connection).or_default().temporaries.insert(number);
        Ok(())
    }

    /// Ends a temporary queue, and what is in it.
    ///
    /// # Errors
    /// [`Refusal::Gone`], [`Refusal::NotYours`], or [`Refusal::InUse`] while it has consumers.
    pub fn delete_temporary(
        &mut self,
        connection: ConnectionKey,
        destination: &Destination,
    ) -> Result<(), Refusal> {
        let destination = || destination.clone();
        let number = self.numbers.get(&destination()).copied();
        let line = number.and_then(|number| self.lines.get(&number));
        let line = line.ok_or_else(|| Refusal::Gone { destination: destination() })?;
        if line.owner != Some(connection) {
            return Err(Refusal::NotYours { destination: destination() });
        }
        if line.readers.len() > 0 {
            return Err(Refusal::InUse { destination: destination() });
        }
        let number = line.number;
        if let Some(connection) = self.connections.get_mut(&connection) {
            connection.temporaries.remove(&number);
        }
        self.end_temporary(number);
        Ok(())
    }

    fn end_temporary(&mut self, number: u16) {
        let Some(line) = self.lines.remove(&number) else { return };
        self.numbers.remove(&line.destination);
        for entry in line.ready.values() {
            self.resident = self.resident.saturating_sub(entry.size);
        }
    }

    /// A new consumer. With a prefetch of 0 it is given only what [`Core::pull`] asks for.
    /// Those that come later have higher keys.
    ///
    /// # Errors
    /// Those of [`Core::queue`]; [`Refusal::NotYours`]; [`Refusal::TooManyConsumers`];
    /// [`Refusal::Share`].
    pub fn subscribe(
        &mut self,
        connection: ConnectionKey,
        key: ConsumerKey,
        destination: &Destination,
        terms: Terms,
    ) -> Result<(), Refusal> {
        let most = self.limits.consumers;
        if self.consumers.len() >= most {
            return Err(Refusal::TooManyConsumers { most });
        }
        let own = self.connections.get(&connection).map_or(0, |open| open.consumers.len());
        fits_share("consumers", own, self.consumers.len(), most)?;
        let number = self.queue(destination)?;
        let Some(line) = self.lines.get_mut(&number) else { return Err(Refusal::NoConsumer) };
        if line.owner.is_some_and(|owner| owner != connection) {
            return Err(Refusal::NotYours { destination: destination.clone() });
        }
        self.consumers.insert(key, Consumer::new(connection, number, terms.prefetch));
        line.readers.enter(key, terms);
        line.used = true;
        self.connections.entry(connection).or_default().consumers.insert(key);
        self.feed(key);
        Ok(())
    }

    /// The consumer has ended; what it held goes back in front, in order, and nothing of its queue is given
    /// away before all of it is there. Done is one portion; false if it has to be said again.
    pub fn unsubscribe(&mut self, key: ConsumerKey, seen: Seen) -> bool {
        if let Some(consumer) = self.consumers.remove(&key) {
            self.leave(key, consumer, seen);
        }
        let Some(leaving) = self.leaving.get_mut(&key) else { return true };
        let portion: Vec<_> = std::iter::from_fn(|| leaving.flights.pop_first()).take(PORTION).collect();
        let (is_done, queue, connection) = (leaving.flights.is_empty(), leaving.queue, leaving.connection);
        let (seen, upto) = (leaving.seen, leaving.upto);
        let was_seen = |turn: u64, id: Id| match (seen, upto) {
            (Seen::Unknown, _) => true,
            (Seen::Nothing, _) => false,
            (Seen::UpTo(_), Some(upto)) => turn <= upto,
            // The last one is acknowledged already: then as ActiveMQ does, by age.
            (Seen::UpTo(last), None) => id.sequence() <= last.sequence(),
        };
        for (turn, mut flight) in portion {
            if was_seen(turn, flight.id) {
                flight.entry.redeliveries = flight.entry.redeliveries.saturating_add(1);
            }
            self.landed(key, &flight);
            self.requeue(flight.id, flight.entry);
        }
        if !is_done {
            return false;
        }
        self.leaving.remove(&key);
        if let Some(connection) = self.connections.get_mut(&connection) {
            connection.consumers.remove(&key);
        }
        if self.leaving.values().all(|other| other.queue != queue) {
            self.returning.remove(&queue);
            // Another may be the exclusive one now, or have its groups.
            self.ripe.insert(queue);
        }
        true
    }

    /// From now on it is given nothing.
    fn leave(&mut self, key: ConsumerKey, consumer: Consumer, seen: Seen) {
        if let Some(line) = self.lines.get_mut(&consumer.queue) {
            line.readers.leave(key);
            line.used = true;
        }
        self.crowd.remove(&key);
        self.free_big(consumer.big, true);
        self.returning.insert(consumer.queue);
        let held = |last| consumer.range(None, last).map(|turns| *turns.end());
        let upto = if let Seen::UpTo(last) = seen { held(last) } else { None };
        let (connection, queue) = (consumer.connection, consumer.queue);
        let flights = consumer.into_flights();
        self.leaving.insert(key, Leaving { connection, queue, flights, seen, upto });
    }

    /// A consumer without prefetch waits for so many messages; 0 takes it back.
    pub fn pull(&mut self, key: ConsumerKey, count: usize) {
        if let Some(consumer) = self.consumers.get_mut(&key) {
            consumer.want(count);
            self.feed(key);
        }
    }

    /// From now on a consumer may have so many messages under way.
    pub fn prefetch(&mut self, key: ConsumerKey, prefetch: usize) {
        if let Some(consumer) = self.consumers.get_mut(&key) {
            consumer.prefetch = prefetch;
            self.feed(key);
        }
    }

    /// Sends a message; the token is answered once it is kept, or, in a transaction, at once.
    pub fn send(&mut self, token: Token, connection: ConnectionKey, send: Send, transaction: Option<u64>) {
        if let Err(refusal) = self.try_send(token, connection, send, transaction) {
            self.fail(connection, transaction, &refusal);
            self.effects.push(Effect::Answer(token, Err(refusal)));
        }
    }

    /// A commit must not do half of what its client asked for.
    fn fail(&mut self, connection: ConnectionKey, transaction: Option<u64>, refusal: &Refusal) {
        if let Some(key) = transaction
            && let Ok(open) = self.transaction(connection, key)
        {
            open.failed.get_or_insert_with(|| refusal.clone());
        }
    }

    fn try_send(
        &mut self,
        token: Token,
        connection: ConnectionKey,
        send: Send,
        transaction: Option<u64>,
    ) -> Result<(), Refusal> {
        let queue = self.queue(&send.destination)?;
        let persistent = send.persistent && !send.destination.is_temporary();
        let Send { priority, producer, again, message, .. } = send;
        let producer = producer.map(|(name, number)| (Marks::shortened(&name).into(), number));
        let (born, entry) = (self.born(queue), Entry::new(persistent, message));
        let pending = Pending { queue, born, priority, producer, again, entry };
        let Some(transaction) = transaction else {
            if persistent {
                let mut unit = Unit::new(token);
                if !self.stage(pending, &mut unit) {
                    unit.done = Done::Duplicate;
                }
                self.units.push(unit);
            } else {
                self.resident += pending.entry.size;
                let id = self.place(queue, priority);
                self.arrived(id, pending.entry);
                self.effects.push(Effect::Answer(token, Ok(Done::Done)));
            }
            return Ok(());
        };
        let size = pending.entry.size;
        let messages = self.limits.transaction_messages;
        let has_room = self.may_send(connection, size);
        let open = self.transaction(connection, transaction)?;
        if open.sends.len() >= messages || !has_room {
            return Err(Refusal::TransactionTooBig);
        }
        open.sends.push(pending);
        self.uncommitted += size;
        if let Some(connection) = self.connections.get_mut(&connection) {
            connection.uncommitted += size;
        }
        self.effects.push(Effect::Answer(token, Ok(Done::Done)));
        Ok(())
    }

    /// May a connection send so much more in a transaction? See [`super::Limits::uncommitted_bytes`].
    fn may_send(&self, connection: ConnectionKey, size: usize) -> bool {
        let own = self.connections.get(&connection).map_or(0, |connection| connection.uncommitted);
        let most = self.limits.uncommitted_bytes;
        // One message may be sent where there is nothing yet, however large.
        let fits = self.uncommitted == 0 || self.uncommitted + size <= most;
        let shares = own == 0 || own + size <= most / SHARERS;
        fits && shares || own + size <= LEAST_SENT.min(most / LEAST_SHARERS)
    }

    /// What was sent in a transaction is not uncommitted any more.
    fn settle(&mut self, connection: ConnectionKey, transaction: &Transaction) {
        let bytes: usize = transaction.sends.iter().map(|pending| pending.entry.size).sum();
        self.uncommitted = self.uncommitted.saturating_sub(bytes);
        if let Some(connection) = self.connections.get_mut(&connection) {
            connection.uncommitted = connection.uncommitted.saturating_sub(bytes);
        }
    }

    /// Makes a sent message part of a unit; tells whether it is new.
    fn stage(&mut self, pending: Pending, unit: &mut Unit) -> bool {
        let Pending { queue, born, priority, producer, again, entry } = pending;
        if self.born(queue) != born {
            // A temporary queue has ended meanwhile, and what was for it is nobody's.
            return true;
        }
        if let (true, Some((name, sequence))) = (entry.persistent, &producer) {
            let is_known = again && self.producers.has(name, *sequence);
            // One that is known already stands or falls with the first, which may not be written yet.
            unit.producers.push(self.producers.note(name, *sequence));
            if is_known {
                return false;
            }
        }
        if !entry.persistent {
            self.resident += entry.size;
        }
        let id = self.place(queue, priority);
        unit.arrivals.push((id, entry));
        true
    }

    fn born(&self, queue: u16) -> u64 {
        self.lines.get(&queue).map_or(u64::MAX, |line| line.born)
    }

    fn transaction(&mut self, connection: ConnectionKey, key: u64) -> Result<&mut Transaction, Refusal> {
        let connection = self.connections.get_mut(&connection);
        connection.and_then(|open| open.transactions.get_mut(&key)).ok_or(Refusal::NoTransaction)
    }

    /// Begins a transaction; one that is open stays so.
    ///
    /// # Errors
    /// [`Refusal::TooManyTransactions`].
    pub fn begin(&mut self, connection: ConnectionKey, transaction: u64) -> Result<(), Refusal> {
        let most = self.limits.transactions;
        let open = self.connections.entry(connection).or_default();
        if open.transactions.len() >= most && !open.transactions.contains_key(&transaction) {
            return Err(Refusal::TooManyTransactions { most });
        }
        open.transactions.entry(transaction).or_default();
        Ok(())
    }

    /// Commits: all its sends become visible and all its acknowledgements take effect, or nothing
    /// does. The token is answered once it is durable.
    pub fn commit(&mut self, token: Token, connection: ConnectionKey, transaction: u64) {
        let open = self.connections.get_mut(&connection);
        let Some(transaction) = open.and_then(|open| open.transactions.remove(&transaction)) else {
            self.effects.push(Effect::Answer(token, Err(Refusal::NoTransaction)));
            return;
        };
        if let Some(refusal) = &transaction.failed {
            self.effects.push(Effect::Answer(token, Err(refusal.clone())));
            return self.undo(connection, transaction);
        }
        if !self.has_memory(transaction.light()) {
            self.effects.push(Effect::Answer(token, Err(Refusal::MemoryFull)));
            return self.undo(connection, transaction);
        }
        let mut unit = Unit::new(token);
        self.settle(connection, &transaction);
        for pending in transaction.sends {
            self.stage(pending, &mut unit);
        }
        unit.taken = transaction.taken;
        for taken in unit.taken.iter_mut().filter(|taken| taken.flight.entry.persistent) {
            taken.step = self.burial(taken.flight.id, &taken.flight.entry, &taken.fate);
        }
        self.units.push(unit);
    }

    /// Rolls back: its sends are forgotten, what it acknowledged is in its consumers' hands again. Done is
    /// one portion; false if it has to be said again.
    ///
    /// # Errors
    /// [`Refusal::NoTransaction`].
    pub fn rollback(&mut self, connection: ConnectionKey, transaction: u64) -> Result<bool, Refusal> {
        let taken = &mut self.transaction(connection, transaction)?.taken;
        if taken.len() > PORTION {
            let portion = taken.split_off(taken.len() - PORTION);
            self.untake(portion);
            return Ok(false);
        }
        let open = self.connections.get_mut(&connection);
        let open = open.and_then(|open| open.transactions.remove(&transaction));
        self.undo(connection, open.ok_or(Refusal::NoTransaction)?);
        Ok(true)
    }

    /// Before a commit: where it will be refused, what the transaction acknowledged goes back in portions.
    /// Was this one, and more is to come?
    pub fn unwind(&mut self, connection: ConnectionKey, transaction: u64) -> bool {
        let Ok(open) = self.transaction(connection, transaction) else { return false };
        let (is_large, light) = (open.taken.len() > PORTION, open.light());
        let is_refused = open.failed.is_some() || !self.has_memory(light);
        is_large && is_refused && self.rollback(connection, transaction) == Ok(false)
    }

    /// May a commit bring so many bytes that are not persistent? One may always when there is nothing yet.
    fn has_memory(&self, light: usize) -> bool {
        light == 0 || self.resident == 0 || self.resident + light <= self.limits.resident_bytes
    }

    fn undo(&mut self, connection: ConnectionKey, transaction: Transaction) {
        self.settle(connection, &transaction);
        self.untake(transaction.taken);
    }

    /// Before [`Core::acknowledge`]: does the consumer hold no more of that range than its client has
    /// counted? A client whose connection broke may have a list that differs from what it was given since.
    ///
    /// # Errors
    /// [`Refusal::Miscounted`]; the transaction is rolled back at its commit.
    pub fn count_held(
        &mut self,
        key: ConsumerKey,
        (first, last): (Option<Id>, Id),
        most: usize,
        transaction: Option<u64>,
    ) -> Result<(), Refusal> {
        let Some(consumer) = self.consumers.get(&key).filter(|_| most < usize::MAX) else { return Ok(()) };
        let connection = consumer.connection;
        let turns = consumer.range(first, last);
        if turns.is_none_or(|turns| consumer.first_of(turns, most).1.is_none()) {
            return Ok(());
        }
        self.fail(connection, transaction, &Refusal::Miscounted { most });
        Err(Refusal::Miscounted { most })
    }

    /// What a consumer says of the messages from `first` (its oldest, if there is none) to `last`, in
    /// the order they were given. In a transaction it takes effect with the commit. Done is one portion;
    /// where there is more, from which one on it has to be said again.
    ///
    /// # Errors
    /// [`Refusal::NoConsumer`], [`Refusal::NotInFlight`], [`Refusal::NoTransaction`].
    pub fn acknowledge(
        &mut self,
        key: ConsumerKey,
        (first, last): (Option<Id>, Id),
        kind: AckKind,
        transaction: Option<u64>,
    ) -> Result<Option<Id>, Refusal> {
        let owed = self.owed();
        let consumer = self.consumers.get_mut(&key).ok_or(Refusal::NoConsumer)?;
        let has_few = owed + consumer.taken < MOST_REASONS;
        let connection = consumer.connection;
        let Some(turns) = consumer.range(first, last) else {
            self.fail(connection, transaction, &Refusal::NotInFlight);
            return Err(Refusal::NotInFlight);
        };
        let fate = match kind {
            AckKind::Standard => Fate::Done,
            // On a full disk they would fill the memory.
            AckKind::Poison(why) => Fate::Dead(Cause::poison(why.as_deref().filter(|_| has_few))),
            AckKind::Expired => Fate::Dead(Cause::Expired),
            AckKind::Delivered => {
                consumer.mark_delivered(turns);
                self.feed(key);
                return Ok(None);
            }
            AckKind::Redelivered => {
                let (turns, next) = consumer.first_of(turns, PORTION);
                consumer.count_redelivery(turns);
                return Ok(next);
            }
        };
        if let Some(transaction) = transaction {
            self.transaction(connection, transaction)?;
        }
        let Some(consumer) = self.consumers.get_mut(&key) else { return Err(Refusal::NoConsumer) };
        let (turns, next) = consumer.first_of(turns, PORTION);
        let flights = consumer.take(turns);
        if transaction.is_some() {
            consumer.taken += flights.len();
        }
        match transaction {
            None => {
                for (_, flight) in flights {
                    self.landed(key, &flight);
                    self.end(flight.id, flight.entry, &fate);
                }
            }
            Some(transaction) => {
                let taken =
                    |(turn, flight)| Taken { consumer: key, turn, flight, fate: fate.clone(), step: None };
                let taken = flights.into_iter().map(taken);
                self.transaction(connection, transaction)?.taken.extend(taken);
            }
        }
        self.feed(key);
        Ok(next)
    }

    /// Somebody waits until all that was acknowledged before is durable.
    pub fn sync(&mut self, token: Token) {
        self.units.push(Unit::new(token));
    }

    /// Queues that open transactions send to.
    pub(super) fn sent_to(&self) -> BTreeSet<u16> {
        let open = self.connections.values().flat_map(|connection| connection.transactions.values());
        open.flat_map(|transaction| &transaction.sends).map(|pending| pending.queue).collect()
    }
}
