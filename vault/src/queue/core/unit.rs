//! What waits for the disk: staged units, which stand or fall as a whole, and what is owed. Knows
//! nothing of who asked but a token.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::consumer::Taken;
use super::line::Entry;
use super::producers::{Known, Noted};
use super::{Core, Done, Effect, Refusal, Token};
use crate::queue::message::{Destination, Id, Marks, Origin, Placed};

/// A message takes another place in the journal. Its body is not touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// Where it stands.
    pub from: Id,
    /// Where it will stand.
    pub to: Id,
    /// What it counts where it stands, in bytes,
    pub size: usize,
    /// and what it will count.
    pub becomes: usize,
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
    /// Messages that are over, and what they count, in bytes.
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

/// What of all that waits for the disk one commit writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Everything.
    All,
    /// What is owed.
    Owed,
    /// The first of what stands or falls as a whole, and the queues that it may be for.
    First,
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
    pub(super) producers: Vec<Noted>,
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

    /// What the next commit must write. Must be followed by [`Core::committed`] or [`Core::failed`] of
    /// the same part before anything else.
    pub fn writes(&self, part: Part) -> Writes {
        let queues = self.owed.queues.iter().map(|(number, name)| (*number, name.clone())).collect();
        let mut writes = Writes { queues, ..Writes::default() };
        // Always, so that no row of a producer is missing between others.
        let dirty = self.producers.dirty().map(|known| (known.slot, known.clone()));
        let mut producers: BTreeMap<u32, Known> = dirty.collect();
        if part != Part::First {
            writes.deletes.clone_from(&self.owed.deletes);
            writes.moves.clone_from(&self.owed.moves);
        }
        for unit in self.units.iter().take(self.units_of(part)) {
            producers.extend(unit.producers.iter().map(|noted| (noted.known.slot, noted.known.clone())));
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
        writes.producers = producers.into_values().collect();
        writes
    }

    fn units_of(&self, part: Part) -> usize {
        match part {
            Part::All => self.units.len(),
            Part::Owed => 0,
            Part::First => self.units.len().min(1),
        }
    }

    /// All of [`Core::writes`] is durable.
    pub fn committed(&mut self, part: Part) {
        self.owed.queues.clear();
        self.producers.written();
        let arrivals = if part == Part::First { Vec::new() } else { self.settle_owed() };
        let units = self.units.drain(..self.units_of(part)).collect();
        self.settle_units(units, arrivals);
    }

    fn settle_owed(&mut self) -> Vec<(Id, Entry)> {
        self.ripe.append(&mut self.burying);
        for (id, size) in std::mem::take(&mut self.owed.deletes) {
            self.row_gone(id, size);
        }
        std::mem::take(&mut self.owed.moves).into_iter().map(|step| self.moved(step)).collect()
    }

    fn settle_units(&mut self, units: Vec<Unit>, mut arrivals: Vec<(Id, Entry)>) {
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
    /// what is owed stays owed. With a unit go those that its producers sent later: kept, they would
    /// tell a producer that asks again that the first is kept too.
    pub fn failed(&mut self, part: Part, why: &str) {
        let mut units: Vec<Unit> = self.units.drain(..self.units_of(part)).collect();
        let names =
            |unit: &Unit| unit.producers.iter().map(|noted| noted.known.name.clone()).collect::<Vec<_>>();
        let mut hit: BTreeSet<Box<str>> = units.iter().flat_map(names).collect();
        units.extend(self.units.extract_if(.., |unit| {
            let names = names(unit);
            let goes = names.iter().any(|name| hit.contains(name));
            hit.extend(names.into_iter().filter(|_| goes));
            goes
        }));
        for unit in units.into_iter().rev() {
            for noted in unit.producers.iter().rev() {
                self.producers.take_back(noted);
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
        let Move { to, becomes: size, at, expiration, marks, .. } = step;
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
        line.used = true;
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
