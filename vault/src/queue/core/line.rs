//! One queue: what waits in memory, and how much more waits on disk. Decides who is next, not who
//! gets it. A window of the most urgent messages is in memory; per level everything behind
//! `cursor` is on disk only.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::{ConnectionKey, ConsumerKey, Limits};
use crate::queue::message::{DEAD_LETTERS, Destination, Id, Level, Message, PRIORITIES};

/// What is known of one message in memory.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) persistent: bool,
    /// Times that it was given to a consumer who did not keep it.
    pub(super) redeliveries: u32,
    /// Of its body, in bytes.
    pub(super) size: usize,
    pub(super) at: u64,
    pub(super) expiration: u64,
    /// Not kept for a persistent one that was dispatched already: it is read again.
    pub(super) message: Option<Arc<Message>>,
}

impl Entry {
    pub(super) fn new(persistent: bool, message: Arc<Message>) -> Self {
        let (size, at, expiration) = (message.body.len(), message.at, message.expiration);
        Self { persistent, redeliveries: 0, size, at, expiration, message: Some(message) }
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
    /// Bytes of their bodies.
    pub(super) bytes: u64,
    /// Rows that are on disk only; all of them behind `cursor`.
    pub(super) beyond: u64,
    pub(super) cursor: u64,
    /// A page of them was asked for.
    pub(super) loading: bool,
}

/// Who is next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Head {
    Nothing,
    /// It has to be read first.
    OnDisk(Level),
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
    /// Who may be given the next message, in turn. Those who are full are dropped when met.
    pub(super) hungry: VecDeque<ConsumerKey>,
    pub(super) consumers: usize,
    pub(super) in_flight: usize,
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
            hungry: VecDeque::new(),
            consumers: 0,
            in_flight: 0,
            enqueued: 0,
            dequeued: 0,
            dead: 0,
        }
    }

    /// Dead letters stay where they are.
    pub(super) fn is_for_the_dead(&self) -> bool {
        matches!(&self.destination, Destination::Queue(name) if &**name == DEAD_LETTERS)
    }

    /// Messages that nobody holds.
    pub(super) fn waiting(&self) -> u64 {
        self.ready.len() as u64 + self.stock.iter().map(|stock| stock.beyond).sum::<u64>()
    }

    pub(super) fn stock(&mut self, id: Id) -> &mut Stock {
        // A level's index is below the number of priorities.
        &mut self.stock[id.level().index().min(usize::from(PRIORITIES) - 1)]
    }

    pub(super) fn head(&self) -> Head {
        let ready = self.ready.keys().next().copied();
        let on_disk = self.stock.iter().position(|stock| stock.beyond > 0);
        match (ready, on_disk) {
            (None, None) => Head::Nothing,
            // Within a level the disk has only what comes behind the cursor; what is not persistent may
            // be farther behind.
            (Some(id), Some(index)) if self.is_before(id, index) => Head::Ready(id),
            (Some(id), None) => Head::Ready(id),
            (_, Some(index)) => {
                let priority = PRIORITIES - 1 - u8::try_from(index).unwrap_or(0);
                Head::OnDisk(Level::new(self.number, priority))
            }
        }
    }

    fn is_before(&self, id: Id, on_disk: usize) -> bool {
        let level = id.level().index();
        level < on_disk || level == on_disk && id.sequence() <= self.stock[on_disk].cursor
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
        } else {
            self.put(id, entry, cached);
        }
    }

    /// The journal has dropped it.
    pub(super) fn drop_row(&mut self, id: Id, size: usize) {
        let stock = self.stock(id);
        stock.rows = stock.rows.saturating_sub(1);
        stock.bytes = stock.bytes.saturating_sub(size as u64);
    }
}
