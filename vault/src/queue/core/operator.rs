//! What operators do with queues: list, purge, move, remove; and what time does: expiry. Rows that
//! are on disk only are named by whoever reads the disk.

use std::sync::Arc;

use super::line::{Entry, Line};
use super::unit::{Move, Unit};
use super::{Core, Done, Effect, Fate, Refusal, Token};
use crate::queue::message::{Cause, Destination, Id, Marks, Placed};

/// What is known of a row without its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its place.
    pub id: Id,
    /// What it counts, in bytes; see [`Message::size`](crate::queue::message::Message::size).
    pub size: usize,
    /// As much of it is for how it died.
    pub epitaph: usize,
    /// When it came, in ms since 1970.
    pub at: u64,
    /// When its time is over, in ms since 1970; 0 is never.
    pub expiration: u64,
    /// By what consumers are chosen.
    pub marks: Option<Arc<Marks>>,
    /// The queue that a dead letter came from.
    pub origin: Option<Box<str>>,
}

/// What an operator wants done with messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// They are deleted.
    Purge,
    /// They go to another queue, dead letters as if they had never died.
    Move(Destination),
    /// Dead letters go back to the queues that they came from; what never died stays.
    Return,
}

/// Where an operator has a message go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Nowhere,
    Queue(u16),
    Stays,
}

/// A queue as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueState {
    /// Its number.
    pub number: u16,
    /// Which one.
    pub destination: Destination,
    /// Messages, in flight or not.
    pub depth: u64,
    /// Messages in consumers' hands.
    pub in_flight: u64,
    /// Consumers.
    pub consumers: u64,
    /// Messages that came since the program started.
    pub enqueued: u64,
    /// Messages that consumers have finished since the program started.
    pub dequeued: u64,
    /// Messages that died since the program started.
    pub dead: u64,
    /// Bytes that count against the journal.
    pub bytes: u64,
    /// When the first message that waits in memory came, in ms since 1970.
    pub first_at: Option<u64>,
}

impl Core {
    /// All queues, by name.
    #[must_use]
    pub fn list(&self) -> Vec<QueueState> {
        let mut list: Vec<QueueState> = self.lines.values().map(state).collect();
        list.sort_by(|one, other| one.destination.cmp(&other.destination));
        list
    }

    /// The number of a queue that is there.
    #[must_use]
    pub fn find(&self, destination: &Destination) -> Option<u16> {
        self.numbers.get(destination).copied()
    }

    /// What waits in memory only, from behind a place: at most so many.
    #[must_use]
    pub fn volatile(&self, queue: u16, after: Id, most: usize) -> Vec<Placed> {
        let Some(line) = self.lines.get(&queue) else { return Vec::new() };
        let volatile = line.ready.range(after.next()..).filter(|(_, entry)| !entry.persistent);
        let placed = volatile.filter_map(|(id, entry)| {
            Some(Placed { id: *id, persistent: false, message: entry.message.clone()? })
        });
        placed.take(most).collect()
    }

    /// Does with these messages of one queue what the operator wants, those excepted that
    /// consumers hold. Of `rows` the journal knows; `volatile` ones are in memory only. The token
    /// is answered with their count, once it is durable.
    pub fn act(&mut self, token: Token, rows: &[Row], volatile: &[Id], action: &Action) {
        let targets: Result<Vec<Target>, Refusal> =
            rows.iter().map(|row| self.target(action, row.origin.as_deref())).collect();
        let (targets, other) = match (targets, self.target(action, None)) {
            (Ok(targets), Ok(other)) => (targets, other),
            (Err(refusal), _) | (_, Err(refusal)) => {
                return self.effects.push(Effect::Answer(token, Err(refusal)));
            }
        };
        let mut unit = Unit::new(token);
        for (row, target) in rows.iter().zip(targets).filter(|(_, target)| *target != Target::Stays) {
            if let Some((id, entry)) = self.pick(row) {
                self.depart(&mut unit, id, (entry, row.epitaph), target);
            }
        }
        for id in volatile.iter().filter(|_| other != Target::Stays) {
            let line = self.lines.get_mut(&id.level().queue());
            if let Some(entry) = line.and_then(|line| line.take(*id, &mut self.cached)) {
                self.depart(&mut unit, *id, (entry, 0), other);
            }
        }
        unit.done = Done::Count(unit.removed.len() as u64);
        self.units.push(unit);
    }

    /// Where a message goes that came from there, if it ever died.
    fn target(&mut self, action: &Action, origin: Option<&str>) -> Result<Target, Refusal> {
        match (action, origin) {
            (Action::Purge, _) => Ok(Target::Nowhere),
            // What is moved there would end with another's connection.
            (Action::Move(destination), _) if destination.is_temporary() => {
                Err(Refusal::NotYours { destination: destination.clone() })
            }
            (Action::Move(destination), _) => self.queue(destination).map(Target::Queue),
            (Action::Return, Some(origin)) => {
                self.queue(&Destination::Queue(origin.into())).map(Target::Queue)
            }
            (Action::Return, None) => Ok(Target::Stays),
        }
    }

    /// An entry goes there, without its epitaph.
    fn depart(&mut self, unit: &mut Unit, id: Id, (entry, epitaph): (Entry, usize), target: Target) {
        let step = if let Target::Queue(queue) = target {
            let to = self.place(queue, id.level().priority());
            let (size, at, expiration) = (entry.size, entry.at, entry.expiration);
            let (becomes, marks) = (size.saturating_sub(epitaph), entry.marks.clone());
            Some(Move { from: id, to, size, becomes, at, expiration, marks, origin: None })
        } else {
            None
        };
        unit.removed.push((id, entry, step));
    }

    /// Takes a row out of its line, unless a consumer or a commit under way has it.
    fn pick(&mut self, row: &Row) -> Option<(Id, Entry)> {
        let line = self.lines.get_mut(&row.id.level().queue())?;
        if let Some(entry) = line.take(row.id, &mut self.cached) {
            return Some((row.id, entry));
        }
        if line.is_beyond(row.id) {
            line.take_beyond(row.id);
        } else if !line.take_aside(row.id) {
            return None;
        }
        Some((row.id, Entry::of(row)))
    }

    /// The time of these rows is over.
    pub fn expire(&mut self, now: u64, rows: &[Row]) {
        for row in rows.iter().filter(|row| row.expiration != 0 && row.expiration <= now) {
            if let Some((id, entry)) = self.pick(row) {
                self.end(id, entry, &Fate::Dead(Cause::Expired));
            }
        }
    }

    /// Buries what waits in memory only and whose time is over.
    pub fn expire_volatile(&mut self, now: u64) {
        let expired = |line: &Line| -> Vec<Id> {
            let ready = line.ready.iter().filter(|(_, entry)| !entry.persistent && entry.is_expired(now));
            ready.map(|(id, _)| *id).collect()
        };
        let expired: Vec<Id> = self.lines.values().flat_map(expired).collect();
        for id in expired {
            self.bury_ready(id, Cause::Expired);
        }
    }

    /// Removes a queue that is empty and that nobody reads, if nothing else is staged or owed; the
    /// token is answered once it is durable.
    pub fn remove(&mut self, token: Token, destination: &Destination) {
        let gone = || Refusal::Gone { destination: destination.clone() };
        let Some(line) = self.find(destination).and_then(|number| self.lines.get(&number)) else {
            return self.effects.push(Effect::Answer(token, Err(gone())));
        };
        let number = line.number;
        let used = !line.is_empty() || line.readers.len() > 0 || !line.is_removable();
        if used || self.is_awaited() || self.owed() > 0 || self.sent_to().contains(&number) {
            let in_use = Refusal::InUse { destination: destination.clone() };
            return self.effects.push(Effect::Answer(token, Err(in_use)));
        }
        self.forget(number);
        self.sync(token);
    }
}

fn state(line: &Line) -> QueueState {
    QueueState {
        number: line.number,
        destination: line.destination.clone(),
        depth: line.waiting() + line.in_flight as u64,
        in_flight: line.in_flight as u64,
        consumers: line.readers.len() as u64,
        enqueued: line.enqueued,
        dequeued: line.dequeued,
        dead: line.dead,
        bytes: line.stock.iter().map(|stock| stock.bytes).sum(),
        first_at: line.ready.values().map(|entry| entry.at).next(),
    }
}
