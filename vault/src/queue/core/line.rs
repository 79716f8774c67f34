//! One queue: what waits in memory, and how much more waits on disk. Decides what is next for a
//! consumer, not whether it gets it. A window of the most urgent messages is in memory; per level
//! everything behind `cursor` is on disk only, but for what was `ahead` of the others: given from there
//! to a consumer that had declined all before.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use super::operator::Row;
use super::reader::Readers;
use super::{ConnectionKey, ConsumerKey, Limits};
use crate::queue::message::{DEAD_LETTERS, Destination, Id, Level, Marks, Message, PRIORITIES};

/// Damaged rows of a queue that are remembered.
const MOST_ASIDE: usize = 10_000;

/// What is known of one message in memory.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) persistent: bool,
    /// Times that it was given to a consumer who did not keep it.
    pub(super) redeliveries: u32,
    /// As [`Message::size`] counts.
    pub(super) size: usize,
    pub(super) at: u64,
    pub(super) expiration: u64,
    pub(super) marks: Option<Arc<Marks>>,
    /// Not kept for a persistent one that was dispatched already: it is read again.
    pub(super) message: Option<Arc<Message>>,
}

impl Entry {
    pub(super) fn new(persistent: bool, message: Arc<Message>) -> Self {
        let (size, at, expiration) = (message.size(), message.at, message.expiration);
        let marks = message.marks.clone();
        Self { persistent, redeliveries: 0, size, at, expiration, marks, message: Some(message) }
    }

    /// One that is on disk, and is read when it is given away.
    pub(super) fn of(row: &Row) -> Self {
        let Row { size, at, expiration, ref marks, .. } = *row;
        Self { persistent: true, redeliveries: 0, size, at, expiration, marks: marks.clone(), message: None }
    }

    pub(super) fn is_expired(&self, now: u64) -> bool {
        self.expiration != 0 && self.expiration <= now
    }

    /// Bytes that could be read again from disk.
    fn cached(&self) -> usize {
        if self.persistent && self.message.is_some() { self.size } else { 0 }
    }
}

/// What the journal keeps of one level.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Stock {
    /// Rows, wherever else their messages are.
    pub(super) rows: u64,
    /// What they count, in bytes.
    pub(super) bytes: u64,
    /// Rows that are on disk only; all of them behind `cursor`.
    pub(super) beyond: u64,
    pub(super) cursor: u64,
    /// No row has a higher number.
    pub(super) last: u64,
    /// A page of them was asked for.
    pub(super) loading: bool,
}

/// What is next for a consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Nothing,
    /// The window has to go on.
    Load(Level),
    /// The window is full of what it declines: it looks on, on disk, behind a number.
    Scan(Level, u64),
    Ready(Id),
}

/// One queue.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) number: u16,
    pub(super) destination: Destination,
    /// Places of its own have this number or a higher one: those below are of a queue that had its
    /// number before.
    pub(super) born: u64,
    /// Of a temporary one.
    pub(super) owner: Option<ConnectionKey>,
    pub(super) ready: BTreeMap<Id, Entry>,
    ready_bytes: usize,
    pub(super) stock: [Stock; PRIORITIES as usize],
    /// Persistent messages behind the cursor that are in memory or in hands, and not only on disk.
    ahead: BTreeSet<Id>,
    /// Damaged rows that nobody is given, the first of them.
    aside: BTreeSet<Id>,
    pub(super) readers: Readers,
    pub(super) in_flight: usize,
    /// Since it was looked at whether it is.
    pub(super) used: bool,
    pub(super) enqueued: u64,
    pub(super) dequeued: u64,
    pub(super) dead: u64,
}

impl Line {
    pub(super) fn new(number: u16, destination: Destination, owner: Option<ConnectionKey>) -> Self {
        Self {
            number,
            destination,
            born: 0,
            owner,
            ready: BTreeMap::new(),
            ready_bytes: 0,
            stock: [Stock::default(); PRIORITIES as usize],
            ahead: BTreeSet::new(),
            aside: BTreeSet::new(),
            readers: Readers::default(),
            in_flight: 0,
            used: true,
            enqueued: 0,
            dequeued: 0,
            dead: 0,
        }
    }

    /// Dead letters stay where they are.
    pub(super) fn is_for_the_dead(&self) -> bool {
        matches!(&self.destination, Destination::Queue(name) if &**name == DEAD_LETTERS)
    }

    /// Is there nothing of it, in memory, in hands or on disk?
    pub(super) fn is_empty(&self) -> bool {
        self.waiting() == 0 && self.in_flight == 0 && self.stock.iter().all(|stock| stock.rows == 0)
    }

    /// A temporary one ends with its connection, that of dead letters never.
    pub(super) fn is_removable(&self) -> bool {
        self.owner.is_none() && !self.is_for_the_dead()
    }

    /// Messages that nobody holds.
    pub(super) fn waiting(&self) -> u64 {
        (self.ready.len() + self.aside.len()) as u64
            + self.stock.iter().map(|stock| stock.beyond).sum::<u64>()
    }

    pub(super) fn stock(&mut self, id: Id) -> &mut Stock {
        // A level's index is below the number of priorities.
        &mut self.stock[id.level().index().min(usize::from(PRIORITIES) - 1)]
    }

    /// What a consumer that has room may have next; what it declines it will not look at again.
    pub(super) fn next_for(&mut self, key: ConsumerKey, limits: &Limits) -> Next {
        let disk = self.unread(key);
        // Within a level the disk has only what comes behind the cursor; what is in memory may be
        // farther behind.
        let end = disk.map_or(Bound::Unbounded, |(level, after)| Bound::Included(level.place(after)));
        let near = self.readers.near(key);
        let (mut declined, mut found) = (None, None);
        if near.is_none_or(|near| disk.is_none_or(|(level, after)| near < level.place(after))) {
            let from = near.map_or(Bound::Unbounded, Bound::Excluded);
            for (id, entry) in self.ready.range((from, end)) {
                if self.readers.takes(key, *id, entry.marks.as_deref()) {
                    found = Some(*id);
                    break;
                }
                declined = Some(*id);
            }
        }
        if let Some(declined) = declined {
            self.readers.pass(key, declined);
        }
        match (found, disk) {
            (Some(id), _) => Next::Ready(id),
            (None, None) => Next::Nothing,
            (None, Some((level, after))) => {
                let room =
                    self.ready.len() < limits.window_messages && self.ready_bytes < limits.window_bytes;
                // Who declines nothing takes what is read.
                let reads = room || self.readers.near(key).is_none();
                let at_window = after == self.stock(level.place(0)).cursor;
                if reads && at_window { Next::Load(level) } else { Next::Scan(level, after) }
            }
        }
    }

    /// The most urgent level of which there is more on disk than the consumer has looked at, and how
    /// far it has.
    fn unread(&self, key: ConsumerKey) -> Option<(Level, u64)> {
        let unread = |(index, stock): (usize, &Stock)| {
            if stock.beyond == 0 {
                return None;
            }
            let after = stock.cursor.max(self.readers.far(key, index));
            let priority = PRIORITIES - 1 - u8::try_from(index).unwrap_or(0);
            (after < stock.last).then(|| (Level::new(self.number, priority), after))
        };
        self.stock.iter().enumerate().find_map(unread)
    }

    /// Does the row wait on disk only?
    pub(super) fn is_beyond(&mut self, id: Id) -> bool {
        let stock = *self.stock(id);
        stock.beyond > 0 && id.sequence() > stock.cursor && !self.ahead.contains(&id)
    }

    /// Takes a row that [`Line::is_beyond`].
    pub(super) fn take_beyond(&mut self, id: Id) {
        self.stock(id).beyond -= 1;
        self.ahead.insert(id);
    }

    /// It is damaged: nobody is given it before the next start, and operators may remove it.
    pub(super) fn set_aside(&mut self, id: Id) {
        if self.aside.len() < MOST_ASIDE {
            self.aside.insert(id);
        }
    }

    /// Was it set aside? Not any more.
    pub(super) fn take_aside(&mut self, id: Id) -> bool {
        self.aside.remove(&id)
    }

    /// The window goes on with this row; tells whether it waited on disk only.
    pub(super) fn enter(&mut self, id: Id) -> bool {
        self.stock(id).cursor = id.sequence();
        !self.ahead.remove(&id)
    }

    /// A message that stands in the journal now: into the window if there is room and nothing
    /// before it is on disk only.
    pub(super) fn arrive(&mut self, id: Id, entry: Entry, cached: &mut usize, limits: &Limits) {
        let size = entry.size;
        let room = self.ready.len() < limits.window_messages
            && self.ready_bytes + size <= limits.window_bytes
            && *cached + size <= limits.cached_bytes;
        let stock = self.stock(id);
        stock.rows += 1;
        stock.bytes += size as u64;
        stock.last = stock.last.max(id.sequence());
        if id.sequence() <= stock.cursor {
            // Written after what was placed behind it: the window is past it already.
            return self.put(id, entry, cached);
        }
        let stock = self.stock(id);
        if stock.beyond > 0 || !room {
            stock.beyond += 1;
            return;
        }
        stock.cursor = id.sequence();
        self.put(id, entry, cached);
    }

    /// Into the window, whatever is there.
    pub(super) fn put(&mut self, id: Id, entry: Entry, cached: &mut usize) {
        self.ready_bytes += entry.cached();
        *cached += entry.cached();
        self.ready.insert(id, entry);
        self.readers.returned(id);
    }

    pub(super) fn take(&mut self, id: Id, cached: &mut usize) -> Option<Entry> {
        let entry = self.ready.remove(&id)?;
        self.ready_bytes -= entry.cached();
        *cached -= entry.cached();
        Some(entry)
    }

    /// What was to be removed stays after all.
    pub(super) fn keep(&mut self, id: Id, entry: Entry, cached: &mut usize) {
        let stock = self.stock(id);
        if entry.persistent && id.sequence() > stock.cursor {
            stock.beyond += 1;
            self.ahead.remove(&id);
            self.readers.look_again(id);
        } else {
            self.put(id, entry, cached);
        }
    }

    /// The journal has dropped it.
    pub(super) fn drop_row(&mut self, id: Id, size: usize) {
        self.ahead.remove(&id);
        let stock = self.stock(id);
        stock.rows = stock.rows.saturating_sub(1);
        stock.bytes = stock.bytes.saturating_sub(size as u64);
    }
}
