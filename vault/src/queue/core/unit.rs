//! What waits for the disk: staged units, which stand or fall as a whole, and what is owed. Knows
//! nothing of who asked but a token.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::consumer::Taken;
use super::line::Entry;
use super::producers::{Before, Known};
use super::{Core, Done, Effect, Refusal, Token};
use crate::queue::message::{Destination, Id, Marks, Origin, Placed};

/// A message takes another place in the journal. Its body is not touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// Where it stands.
    pub from: Id,
    /// Where it will stand.
    pub to: Id,
    /// Of its body, in bytes.
    pub size: usize,
    /// When it came, in ms since 1970.
    pub at: u64,
    /// When its time is over there, in ms since 1970; 0 is never.
    pub expiration: u64,
    /// As before.
    pub marks: Option<Arc<Marks>>,
    /// Set on dead letters.
    pub origin: Option<Origin>,
}

/// All that one commit must write. Deleting or moving what is not there is no error.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Writes {
    /// Queues that are new, or gone.
    pub queues: Vec<(u16, Option<Destination>)>,
    /// New messages.
    pub stores: Vec<Placed>,
    /// Messages that are over, and the bytes of their bodies.
    pub deletes: Vec<(Id, usize)>,
    /// Messages that go elsewhere.
    pub moves: Vec<Move>,
    /// Producers that were heard.
    pub producers: Vec<Known>,
}

impl Writes {
    /// Is there nothing to write?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Stands or falls as a whole.
#[derive(Debug)]
pub(super) struct Unit {
    pub(super) token: Token,
    pub(super) done: Done,
    pub(super) arrivals: Vec<(Id, Entry)>,
    pub(super) taken: Vec<Taken>,
    /// Messages that go for good, or elsewhere, and what they were.
    pub(super) removed: Vec<(Id, Entry, Option<Move>)>,
    pub(super) producers: Vec<Before>,
}

impl Unit {
    pub(super) fn new(token: Token) -> Self {
        Self {
            token,
            done: Done::Done,
            arrivals: Vec::new(),
            taken: Vec::new(),
            removed: Vec::new(),
            producers: Vec::new(),
        }
    }
}

/// True already, and written with the next commit that succeeds.
#[derive(Debug, Default)]
pub(super) struct Owed {
    pub(super) queues: BTreeMap<u16, Option<Destination>>,
    pub(super) deletes: Vec<(Id, usize)>,
    pub(super) moves: Vec<Move>,
}

impl Owed {
    fn is_empty(&self) -> bool {
        self.queues.is_empty() && self.deletes.is_empty() && self.moves.is_empty()
    }
}

impl Core {
    /// Does anybody wait for a commit?
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        !self.units.is_empty()
    }

    /// Would [`Core::writes`] be empty?
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.units.is_empty() && self.owed.is_empty() && self.producers.is_clean()
    }

    /// So many deletions wait.
    #[must_use]
    pub fn owed(&self) -> usize {
        self.owed.deletes.len() + self.owed.moves.len()
    }

    /// What the next commit must write. Must be followed by [`Core::committed`] or
    /// [`Core::failed`] before anything else.
    pub fn writes(&self) -> Writes {
        let mut writes = Writes {
            queues: self.owed.queues.iter().map(|(number, name)| (*number, name.clone())).collect(),
            stores: Vec::new(),
            deletes: self.owed.deletes.clone(),
            moves: self.owed.moves.clone(),
            producers: self.producers.dirty().cloned().collect(),
        };
        for unit in &self.units {
            for (id, entry) in &unit.arrivals {
                if let (true, Some(message)) = (entry.persistent, &entry.message) {
                    writes.stores.push(Placed { id: *id, persistent: true, message: message.clone() });
                }
            }
            let taken = unit.taken.iter().map(|taken| (&taken.flight.id, &taken.flight.entry, &taken.step));
            let removed = unit.removed.iter().map(|(id, entry, step)| (id, entry, step));
            for (id, entry, step) in taken.chain(removed).filter(|(_, entry, _)| entry.persistent) {
                match step {
                    Some(step) => writes.moves.push(step.clone()),
                    None => writes.deletes.push((*id, entry.size)),
                }
            }
        }
        writes
    }

    /// All of [`Core::writes`] is durable.
    pub fn committed(&mut self) {
        self.producers.written();
        self.owed.queues.clear();
        self.ripe.append(&mut self.burying);
        for (id, size) in std::mem::take(&mut self.owed.deletes) {
            self.row_gone(id, size);
        }
        let mut arrivals: Vec<(Id, Entry)> = Vec::new();
        for step in std::mem::take(&mut self.owed.moves) {
            arrivals.push(self.moved(step));
        }
        let units = std::mem::take(&mut self.units);
        let mut answers = Vec::with_capacity(units.len());
        for unit in units {
            for Taken { consumer: key, flight, fate, step, .. } in unit.taken {
                self.landed(key, &flight);
                if let Some(consumer) = self.consumers.get_mut(&key) {
                    consumer.taken -= 1;
                    self.feed(key);
                }
                self.count(flight.id, &fate);
                arrivals.extend(self.removed(flight.id, flight.entry, step));
            }
            for (id, entry, step) in unit.removed {
                arrivals.extend(self.removed(id, entry, step));
            }
            arrivals.extend(unit.arrivals);
            answers.push(Effect::Answer(unit.token, Ok(unit.done)));
        }
        // In the order of their places, so that what is on disk only is behind all others.
        arrivals.sort_unstable_by_key(|(id, _)| *id);
        for (id, entry) in arrivals {
            self.arrived(id, entry);
        }
        self.effects.append(&mut answers);
    }

    /// Nothing of [`Core::writes`] was kept, for that reason. What was staged is refused and undone;
    /// what is owed stays owed.
    pub fn failed(&mut self, why: &str) {
        for unit in std::mem::take(&mut self.units).into_iter().rev() {
            for before in unit.producers.iter().rev() {
                self.producers.take_back(before);
            }
            for (_, entry) in unit.arrivals {
                if !entry.persistent {
                    self.resident = self.resident.saturating_sub(entry.size);
                }
            }
            for (id, entry, _) in unit.removed {
                let number = id.level().queue();
                if let Some(line) = self.lines.get_mut(&number) {
                    line.keep(id, entry, &mut self.cached);
                    self.ripe.insert(number);
                }
            }
            self.untake(unit.taken);
            self.effects.push(Effect::Answer(unit.token, Err(Refusal::NotWritten { why: why.to_owned() })));
        }
    }

    /// It goes for good, or arrives elsewhere.
    fn removed(&mut self, id: Id, entry: Entry, step: Option<Move>) -> Option<(Id, Entry)> {
        match step {
            Some(step) if entry.persistent => Some(self.moved(step)),
            // A non-persistent message moves in memory.
            Some(step) => Some((step.to, Entry { redeliveries: 0, ..entry })),
            None if entry.persistent => {
                self.row_gone(id, entry.size);
                None
            }
            None => {
                self.resident = self.resident.saturating_sub(entry.size);
                None
            }
        }
    }

    fn row_gone(&mut self, id: Id, size: usize) {
        if let Some(line) = self.lines.get_mut(&id.level().queue()) {
            line.drop_row(id, size);
            self.stored = self.stored.saturating_sub(size as u64);
        }
    }

    fn moved(&mut self, step: Move) -> (Id, Entry) {
        self.row_gone(step.from, step.size);
        let Move { to, size, at, expiration, marks, .. } = step;
        (to, Entry { persistent: true, redeliveries: 0, size, at, expiration, marks, message: None })
    }

    /// It stands, and whoever is next may have it.
    pub(super) fn arrived(&mut self, id: Id, entry: Entry) {
        let number = id.level().queue();
        let Some(line) = self.lines.get_mut(&number).filter(|line| line.born <= id.sequence()) else {
            self.resident = self.resident.saturating_sub(entry.size);
            return;
        };
        line.enqueued += 1;
        if entry.persistent {
            self.stored += entry.size as u64;
            line.arrive(id, entry, &mut self.cached, &self.limits);
        } else {
            line.put(id, entry, &mut self.cached);
        }
        if !self.stalled.contains(&number) {
            self.ripe.insert(number);
        }
    }
}
