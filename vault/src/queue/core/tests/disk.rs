//! What a simulated process finds after it was killed: a plain map, or the map and a real journal
//! that must agree at every look.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::queue::core::{Kept, Known, MOST_PRODUCERS, Page, Row, Writes};
use crate::queue::journal::Journal;
use crate::queue::message::{Destination, Id, Level, Message, Origin, Placed};

#[derive(Default)]
pub(super) struct Disk {
    rows: BTreeMap<Id, Arc<Message>>,
    queues: BTreeMap<u16, Destination>,
    producers: BTreeMap<u32, Known>,
    next: u64,
    lives: u64,
    journal: Option<(tempfile::TempDir, Option<Journal>)>,
}

impl Disk {
    pub(super) fn memory() -> Self {
        Self::default()
    }

    pub(super) fn both() -> Self {
        Self { journal: Some((tempfile::tempdir().unwrap(), None)), ..Self::default() }
    }

    pub(super) fn open(&mut self) -> Kept {
        self.lives += 1;
        let mut levels: BTreeMap<Level, (u64, u64)> = BTreeMap::new();
        for (id, message) in &self.rows {
            let level = levels.entry(id.level()).or_default();
            *level = (level.0 + 1, level.1 + message.size() as u64);
        }
        let kept = Kept {
            next: self.next.max(self.lives << 24),
            queues: self.queues.clone().into_iter().collect(),
            levels: levels.into_iter().map(|(level, (rows, bytes))| (level, rows, bytes)).collect(),
            producers: self.producers.values().cloned().collect(),
        };
        if let Some((folder, journal)) = &mut self.journal {
            *journal = None;
            let (opened, found) = Journal::open(&folder.path().join("queues.db")).unwrap();
            *journal = Some(opened);
            assert_eq!(found, kept, "the journal found something else");
        }
        kept
    }

    pub(super) fn write(&mut self, writes: &Writes) {
        for (number, queue) in &writes.queues {
            match queue {
                Some(queue) => self.queues.insert(*number, queue.clone()),
                None => self.queues.remove(number),
            };
        }
        for placed in &writes.stores {
            assert!(self.rows.insert(placed.id, placed.message.clone()).is_none(), "a place was given twice");
            self.next = self.next.max(placed.id.sequence() + 1);
        }
        for (id, _) in &writes.deletes {
            self.rows.remove(id);
        }
        for step in &writes.moves {
            if let Some(message) = self.rows.remove(&step.from) {
                let message = Message {
                    expiration: step.expiration,
                    origin: step.origin.clone(),
                    ..(*message).clone()
                };
                assert!(self.rows.insert(step.to, Arc::new(message)).is_none(), "a place was given twice");
                self.next = self.next.max(step.to.sequence() + 1);
            }
        }
        for known in &writes.producers {
            assert!((known.slot as usize) < MOST_PRODUCERS);
            self.producers.insert(known.slot, known.clone());
        }
        if let Some(journal) = self.journal() {
            journal.write(writes).unwrap();
        }
    }

    pub(super) fn page(&mut self, level: Level, after: u64, most: usize) -> Page {
        let (_, to) = level.places();
        let from = level.place(after).next().max(level.places().0);
        let placed = |(id, message): (&Id, &Arc<Message>)| Placed {
            id: *id,
            persistent: true,
            message: message.clone(),
        };
        let placed = self.rows.range(from..to).take(most).map(placed).collect();
        let page = Page { placed, damaged: Vec::new() };
        if let Some(journal) = self.journal() {
            assert_eq!(journal.page(level, after, most, usize::MAX).unwrap(), page);
        }
        page
    }

    pub(super) fn read(&mut self, id: Id) -> Arc<Message> {
        let message = self.rows[&id].clone();
        if let Some(journal) = self.journal() {
            assert_eq!(journal.read(id).unwrap().message, message);
        }
        message
    }

    pub(super) fn rows_of(&mut self, queue: u16, after: Id, most: usize) -> Vec<Row> {
        let (from, to) = Id::places_of(queue);
        let range = self.rows.range(after.next().max(from)..to);
        let rows: Vec<Row> = range.take(most).map(|(id, message)| row(*id, message)).collect();
        if let Some(journal) = self.journal() {
            assert_eq!(journal.rows_of(queue, after, most).unwrap(), rows);
        }
        rows
    }

    pub(super) fn scan(&mut self, level: Level, after: u64, most: usize) -> Vec<Row> {
        let (from, to) = level.places();
        let range = self.rows.range(level.place(after).next().max(from)..to);
        let rows: Vec<Row> = range.take(most).map(|(id, message)| row(*id, message)).collect();
        if let Some(journal) = self.journal() {
            assert_eq!(journal.scan(level, after, most).unwrap(), rows);
        }
        rows
    }

    pub(super) fn expired(&mut self, now: u64) -> Vec<Row> {
        let over = self.rows.iter().filter(|(_, message)| (1..=now).contains(&message.expiration));
        let rows: Vec<Row> = over.map(|(id, message)| row(*id, message)).collect();
        if let Some(journal) = self.journal() {
            let mut found = journal.expired(now, (0, Id::default()), usize::MAX >> 1).unwrap();
            found.sort_by_key(|row| row.id);
            assert_eq!(found, rows);
        }
        rows
    }

    pub(super) fn message(&self, id: Id) -> Option<&Message> {
        self.rows.get(&id).map(|message| &**message)
    }

    pub(super) fn rows(&self) -> impl Iterator<Item = (&Id, &Arc<Message>)> {
        self.rows.iter()
    }

    pub(super) fn forget_producers(&mut self) {
        self.producers.clear();
    }

    fn journal(&mut self) -> Option<&mut Journal> {
        self.journal.as_mut().and_then(|(_, journal)| journal.as_mut())
    }
}

fn row(id: Id, message: &Message) -> Row {
    let origin = message.origin.as_ref().map(|origin| origin.queue.as_str().into());
    let (marks, size) = (message.marks.clone(), message.size());
    let epitaph = message.origin.as_ref().map_or(0, Origin::size);
    Row { id, size, epitaph, at: message.at, expiration: message.expiration, marks, origin }
}
