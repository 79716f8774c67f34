//! Who is given what, and what has to be read for it. Decides only how much may be under way; whose
//! turn it is and which message is next for it say [`super::reader`] and [`super::line`].

use std::collections::BTreeSet;

use super::consumer::Flight;
use super::line::{Entry, Next};
use super::operator::Row;
use super::reader::Turn;
use super::{ConsumerKey, Core, Effect};
use crate::queue::message::{AROUND, Cause, Id, Level, Placed};

/// Deletions that may wait for the disk before persistent messages are held back.
const MOST_OWED: usize = 100_000;
/// Deletions and burials that may wait for one commit before expired messages wait for it.
const MOST_BURIED: usize = 1_024;
/// Least that a consumer may have under way, in bytes; messages larger than that are big.
const LEAST_SHARE: usize = 16 * 1024;
/// Messages of a page that is read although there is no memory for it.
const LEAST_PAGE: usize = 16;
/// So many consumers may have a big message under way each, whatever the others have.
const BIG_READERS: usize = 4;

/// What is under way of big messages.
#[derive(Debug, Default)]
pub(super) struct Big {
    bytes: usize,
    readers: usize,
}

/// What came of a consumer's turn.
enum Served {
    /// It has got something, or there is nothing for it.
    Yes,
    /// It has another one: something has changed.
    Again,
    /// Nobody of its queue can be served now.
    Nobody,
}

/// Has a consumer room for a message?
enum Room {
    Yes,
    /// Once it has passed on what is under way to it.
    Later,
    /// Once others have passed on what is under way to them.
    Held,
}

impl Core {
    /// Gives away what can be given, at that time (ms since 1970). To be called after everything
    /// else, before the effects are looked at.
    pub fn dispatch(&mut self, now: u64) {
        self.now = now;
        while let Some(number) = self.ripe.pop_first() {
            if !self.returning.contains(&number) {
                self.dispatch_line(number);
            }
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

    fn dispatch_line(&mut self, number: u16) {
        let mut after = None;
        while let Some(turn) = self.lines.get(&number).and_then(|line| line.readers.next(after)) {
            match self.serve(number, turn) {
                Served::Yes => after = Some(turn),
                Served::Again => {}
                Served::Nobody => return,
            }
        }
    }

    fn serve(&mut self, number: u16, (_, _, key): Turn) -> Served {
        let has_room = self.has_room(key);
        if has_room && self.owed() >= MOST_OWED {
            self.stalled.insert(number);
            return Served::Nobody;
        }
        let Some(line) = self.lines.get_mut(&number) else { return Served::Nobody };
        if !has_room {
            line.readers.sate(key);
            return Served::Yes;
        }
        match line.next_for(key, &self.limits) {
            // What is nothing for one of them is nothing for all.
            Next::Nothing if line.readers.are_alike() => Served::Nobody,
            Next::Nothing => Served::Yes,
            Next::Load(level) => {
                self.load(level);
                Served::Nobody
            }
            Next::Scan(level, after) => {
                self.effects.push(Effect::Scan { level, after, rows: self.limits.scanned_rows });
                Served::Nobody
            }
            Next::Ready(id) => self.serve_ready(number, key, id),
        }
    }

    fn serve_ready(&mut self, number: u16, key: ConsumerKey, id: Id) -> Served {
        let entry = self.lines.get(&number).and_then(|line| line.ready.get(&id));
        let Some((is_expired, size)) = entry.map(|entry| (entry.is_expired(self.now), entry.size)) else {
            return Served::Nobody;
        };
        if is_expired {
            if self.owed() >= MOST_BURIED {
                self.burying.insert(number);
                return Served::Nobody;
            }
            self.bury_ready(id, Cause::Expired);
            return Served::Again;
        }
        match self.room(key, size) {
            Room::Yes => self.give_ready(number, key, id),
            Room::Later => self.sate(number, key),
            Room::Held => {
                self.held.insert(number);
            }
        }
        Served::Yes
    }

    /// May a consumer be given one more? Where all together hold too many, only those who hold few.
    fn has_room(&mut self, key: ConsumerKey) -> bool {
        let Some(consumer) = self.consumers.get(&key) else { return false };
        let is_crowded = self.flights >= self.limits.flights;
        let few = self.limits.flights / self.limits.consumers.max(1);
        let most = if is_crowded { few.max(1) } else { self.limits.in_flight };
        let has_room = consumer.has_room(most.min(self.limits.in_flight));
        if is_crowded && !has_room && consumer.has_room(self.limits.in_flight) {
            self.crowd.insert(key);
        }
        has_room
    }

    /// So many messages are in nobody's hands any more: those who waited for that may go on.
    pub(super) fn thin(&mut self, landed: usize) {
        self.flights = self.flights.saturating_sub(landed);
        while self.flights < self.limits.flights
            && let Some(key) = self.crowd.pop_first()
        {
            self.feed(key);
        }
    }

    fn sate(&mut self, number: u16, key: ConsumerKey) {
        if let Some(line) = self.lines.get_mut(&number) {
            line.readers.sate(key);
        }
    }

    fn load(&mut self, level: Level) {
        let Some(line) = self.lines.get_mut(&level.queue()) else { return };
        let stock = line.stock(level.place(0));
        if !std::mem::replace(&mut stock.loading, true) {
            let after = stock.cursor;
            let free = self.limits.cached_bytes.saturating_sub(self.cached);
            let messages = self.limits.window_messages.min((free / AROUND).max(LEAST_PAGE));
            let bytes = self.limits.window_bytes.min(free);
            self.effects.push(Effect::Load { level, after, messages, bytes });
        }
    }

    /// The page that [`Effect::Load`] asked for; `None` if it cannot be read now.
    pub fn loaded(&mut self, level: Level, page: Option<Page>) {
        let Some(line) = self.lines.get_mut(&level.queue()) else { return };
        line.stock(level.place(0)).loading = false;
        let Some(Page { placed, damaged }) = page else {
            self.stalled.insert(level.queue());
            return;
        };
        if placed.is_empty() && damaged.is_empty() {
            // What is counted and not there cannot be given away.
            line.stock(level.place(0)).beyond = 0;
        }
        // In their order, so that the window's end is that of the page.
        let upto = placed.last().map(|placed| placed.id).max(damaged.last().copied());
        for id in damaged {
            if line.enter(id) {
                let stock = line.stock(id);
                stock.beyond = stock.beyond.saturating_sub(1);
                line.set_aside(id);
            }
        }
        for Placed { id, message, .. } in placed {
            if line.enter(id) {
                let stock = line.stock(id);
                stock.beyond = stock.beyond.saturating_sub(1);
                let mut entry = Entry::new(true, message);
                if self.cached + entry.size > self.limits.cached_bytes {
                    // It is read again when it is given away.
                    entry.message = None;
                }
                line.put(id, entry, &mut self.cached);
            }
        }
        if let Some(upto) = upto {
            line.stock(upto).cursor = upto.sequence();
        }
        self.ripe.insert(level.queue());
    }

    /// The rows that [`Effect::Scan`] asked for; `None` if they cannot be read now. All who have
    /// looked as far have their share of them.
    pub fn scanned(&mut self, level: Level, after: u64, rows: Option<&[Row]>) {
        let number = level.queue();
        let Some(rows) = rows else {
            self.stalled.insert(number);
            return;
        };
        self.ripe.insert(number);
        if self.returning.contains(&number) {
            return;
        }
        let mut looking = self.looking(number, Next::Scan(level, after));
        let mut seen = after;
        for row in rows {
            for (id, entry) in self.up_to(level.place(seen), row) {
                if !entry.is_expired(self.now) && !self.offer(id, &entry, &mut looking) {
                    // What is free now they may have declined before.
                    return;
                }
            }
            seen = row.id.sequence();
        }
        let Some(line) = self.lines.get_mut(&number) else { return };
        if rows.len() < self.limits.scanned_rows {
            seen = line.stock(level.place(0)).last;
        }
        for (_, _, key) in looking {
            line.readers.pass_far(key, level, seen);
        }
    }

    /// What waits behind a place up to a row, the row if it does, and what has come back to memory.
    fn up_to(&mut self, seen: Id, row: &Row) -> Vec<(Id, Entry)> {
        let Some(line) = self.lines.get_mut(&row.id.level().queue()) else { return Vec::new() };
        let back = line.ready.range(seen.next()..=row.id);
        let mut waiting: Vec<(Id, Entry)> = back.map(|(id, entry)| (*id, entry.clone())).collect();
        if line.is_beyond(row.id) {
            waiting.push((row.id, Entry::of(row)));
        }
        waiting
    }

    /// Those for whom this is next.
    fn looking(&mut self, number: u16, next: Next) -> BTreeSet<Turn> {
        let (mut looking, mut after) = (BTreeSet::new(), None);
        let Some(line) = self.lines.get_mut(&number) else { return looking };
        while let Some(turn) = line.readers.next(after) {
            after = Some(turn);
            if line.next_for(turn.2, &self.limits) == next {
                looking.insert(turn);
            }
        }
        looking
    }

    /// Gives what waits, on disk or in memory, to one of those who look for something. False if a group has
    /// become free by that: all have looked up to here then.
    fn offer(&mut self, id: Id, entry: &Entry, looking: &mut BTreeSet<Turn>) -> bool {
        let (number, level) = (id.level().queue(), id.level());
        while let Some(line) = self.lines.get_mut(&number) {
            let takes = |(_, _, key): &Turn| line.readers.takes(*key, id, entry.marks.as_deref());
            let Some(taker) = looking.iter().copied().find(takes) else { return true };
            let key = taker.2;
            looking.remove(&taker);
            let room = self.room(key, entry.size);
            let Some(line) = self.lines.get_mut(&number) else { return true };
            if let Room::Yes = room {
                if line.take(id, &mut self.cached).is_none() {
                    line.take_beyond(id);
                }
                let freed = self.give(number, key, id, entry.clone());
                let is_full = !self.has_room(key);
                let Some(line) = self.lines.get_mut(&number) else { return true };
                line.readers.pass_far(key, level, id.sequence());
                if is_full {
                    line.readers.sate(key);
                }
                looking.extend(line.readers.turn(key));
                let Some(freed) = freed else { return true };
                for (_, _, key) in looking.iter() {
                    line.readers.pass_far(*key, level, id.sequence());
                }
                line.readers.look_again(freed);
                return false;
            }
            line.readers.pass_far(key, level, id.sequence().saturating_sub(1));
            if let Room::Later = room {
                line.readers.sate(key);
            } else {
                self.held.insert(number);
            }
        }
        true
    }

    /// May so much more be under way to that consumer? See [`super::Limits::outgoing_bytes`].
    fn room(&self, key: ConsumerKey, size: usize) -> Room {
        let own = self.consumers.get(&key).map(|consumer| (consumer.outstanding, consumer.big));
        let (under_way, own_big) = own.unwrap_or((0, 0));
        let small = under_way == 0 || under_way + size <= self.share();
        // One who does not read a large one must not stop the others.
        let alone = own_big == 0 && self.big.readers < BIG_READERS;
        let big = !is_big(size) || alone || self.big.bytes + size <= self.limits.outgoing_bytes;
        match (small && big, under_way) {
            (true, _) => Room::Yes,
            // Nothing of its own is under way: it waits for other big ones.
            (false, 0) => Room::Held,
            (false, _) => Room::Later,
        }
    }

    fn share(&self) -> usize {
        (self.limits.outgoing_bytes / self.consumers.len().max(16)).max(LEAST_SHARE)
    }

    fn give_ready(&mut self, number: u16, key: ConsumerKey, id: Id) {
        let Some(line) = self.lines.get_mut(&number) else { return };
        let Some(entry) = line.take(id, &mut self.cached) else { return };
        if let Some(freed) = self.give(number, key, id, entry)
            && let Some(line) = self.lines.get_mut(&number)
        {
            line.readers.look_again(freed);
            self.ripe.insert(number);
        }
    }

    /// Into a consumer's hands. Tells from where on others must look again.
    fn give(&mut self, number: u16, key: ConsumerKey, id: Id, mut entry: Entry) -> Option<Id> {
        let (line, consumer) = (self.lines.get_mut(&number)?, self.consumers.get_mut(&key)?);
        line.in_flight += 1;
        self.flights += 1;
        let given = line.readers.give(key, entry.marks.as_deref(), self.limits.groups);
        consumer.outstanding += entry.size;
        if is_big(entry.size) {
            self.big.readers += usize::from(consumer.big == 0);
            consumer.big += entry.size;
            self.big.bytes += entry.size;
        }
        let connection = consumer.connection;
        let message = if entry.persistent { entry.message.take() } else { entry.message.clone() };
        let before = u32::from(id.sequence() < self.earlier);
        let (size, redeliveries, first) =
            (entry.size, entry.redeliveries.saturating_add(before), given.first);
        consumer.give(id, entry);
        let deliver = Effect::Deliver { connection, consumer: key, id, size, redeliveries, first, message };
        self.effects.push(deliver);
        given.freed
    }

    /// So many bytes have left for the consumer's socket, or will not; and so many of them were of
    /// big messages (see [`is_big`]).
    pub fn passed_on(&mut self, key: ConsumerKey, bytes: usize, big: usize) {
        let Some(consumer) = self.consumers.get_mut(&key) else { return };
        consumer.outstanding = consumer.outstanding.saturating_sub(bytes);
        let big = big.min(consumer.big);
        consumer.big -= big;
        let is_last = consumer.big == 0;
        self.free_big(big, is_last);
        self.feed(key);
    }

    /// A consumer has passed on so much of big messages, and perhaps has none any more.
    pub(super) fn free_big(&mut self, big: usize, is_last: bool) {
        if big > 0 {
            self.big.bytes = self.big.bytes.saturating_sub(big);
            self.big.readers = self.big.readers.saturating_sub(usize::from(is_last));
            self.ripe.append(&mut self.held);
        }
    }

    /// A delivered message is damaged: it is set aside, and the others go on.
    pub fn damaged(&mut self, key: ConsumerKey, id: Id, size: usize) {
        if self.undeliver(key, id, size).is_some()
            && let Some(line) = self.line_of(id)
        {
            line.set_aside(id);
        }
    }

    fn undeliver(&mut self, key: ConsumerKey, id: Id, size: usize) -> Option<Flight> {
        let flight = self.consumers.get_mut(&key).and_then(|consumer| consumer.take_one(id));
        self.passed_on(key, size, if is_big(size) { size } else { 0 });
        let flight = flight?;
        self.landed(key, &flight);
        Some(flight)
    }

    /// A delivered message could not be read: it waits in front until the disk is asked again.
    pub fn unreadable(&mut self, key: ConsumerKey, id: Id, size: usize) {
        if let Some(flight) = self.undeliver(key, id, size) {
            self.requeue(id, flight.entry);
            self.ripe.remove(&id.level().queue());
            self.stalled.insert(id.level().queue());
        }
    }

    /// Puts a consumer in its queue's order of turns, if it has room.
    pub(super) fn feed(&mut self, key: ConsumerKey) {
        let Some(number) = self.consumers.get(&key).map(|consumer| consumer.queue) else { return };
        let has_room = self.has_room(key);
        let Some(line) = self.lines.get_mut(&number) else { return };
        if has_room {
            line.readers.join(key);
        }
        if line.readers.turn(key).is_some() && !self.stalled.contains(&number) {
            self.ripe.insert(number);
        }
    }
}

/// A page of a level as it could be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// Its messages, in their order.
    pub placed: Vec<Placed>,
    /// Rows between them, or behind them, that cannot be read.
    pub damaged: Vec<Id>,
}

/// Does a message of so many bytes count as a big one under way?
#[must_use]
pub fn is_big(size: usize) -> bool {
    size > LEAST_SHARE
}
