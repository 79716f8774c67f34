//! The last number that each producer was told to be kept, so that what is sent again after a
//! connection broke is recognised. Bounded: who has been silent longest is forgotten. Knows no
//! messages.

use std::collections::{BTreeMap, HashMap};

use crate::queue::message::Marks;

/// Producers that are remembered; ActiveMQ remembers 1024.
pub(crate) const MOST_PRODUCERS: usize = 4096;

/// What is remembered of one producer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its row, below [`MOST_PRODUCERS`]; a forgotten producer's is used again.
    pub slot: u32,
    /// Its id, as text; of a long one the digest.
    pub name: Box<str>,
    /// Numbers below this one are kept.
    pub upto: u64,
    /// When it was heard last, as a count.
    pub heard: u64,
}

/// What a [`Producers::note`] has made of a producer.
#[derive(Debug)]
pub(super) struct Noted {
    /// To be written with the message.
    pub(super) known: Known,
    /// Numbers below this one were kept before.
    before: u64,
}

/// All that is remembered.
#[derive(Debug, Default)]
pub(super) struct Producers {
    known: HashMap<Box<str>, Known>,
    /// Slots by when they were heard.
    by_heard: BTreeMap<u64, Box<str>>,
    heard: u64,
    /// To be written: what was noted and taken back, and not noted again since.
    dirty: BTreeMap<u32, Known>,
}

impl Producers {
    pub(super) fn restored(rows: Vec<Known>) -> Self {
        let mut producers = Self::default();
        for row in rows {
            producers.heard = producers.heard.max(row.heard);
            producers.by_heard.insert(row.heard, row.name.clone());
            producers.known.insert(row.name.clone(), row);
        }
        producers
    }

    /// Is this one, or a later one, kept already?
    pub(super) fn has(&self, name: &str, sequence: u64) -> bool {
        self.known.get(&*Marks::shortened(name)).is_some_and(|known| sequence < known.upto)
    }

    /// From now on this number is kept.
    pub(super) fn note(&mut self, name: &str, sequence: u64) -> Noted {
        let name = &*Marks::shortened(name);
        self.heard += 1;
        let (heard, upto) = (self.heard, sequence.saturating_add(1));
        if let Some(known) = self.known.get_mut(name) {
            let before = known.upto;
            if let Some(name) = self.by_heard.remove(&known.heard) {
                self.by_heard.insert(heard, name);
            }
            (known.upto, known.heard) = (known.upto.max(upto), heard);
            self.dirty.remove(&known.slot);
            return Noted { known: known.clone(), before };
        }
        let slot = self.free_slot();
        let known = Known { slot, name: name.into(), upto, heard };
        self.by_heard.insert(heard, known.name.clone());
        self.dirty.remove(&slot);
        self.known.insert(known.name.clone(), known.clone());
        Noted { known, before: 0 }
    }

    /// What was noted could not be written; in reverse order of the notes.
    pub(super) fn take_back(&mut self, noted: &Noted) {
        let known = self.known.get_mut(&noted.known.name);
        // What it was heard of since stands or falls by itself.
        if let Some(known) = known.filter(|known| known.upto == noted.known.upto) {
            // A new one keeps its row, and has nothing in it.
            known.upto = noted.before;
            self.dirty.insert(known.slot, known.clone());
        }
    }

    pub(super) fn dirty(&self) -> impl Iterator<Item = &Known> {
        self.dirty.values()
    }

    pub(super) fn is_clean(&self) -> bool {
        self.dirty.is_empty()
    }

    pub(super) fn written(&mut self) {
        self.dirty.clear();
    }

    fn free_slot(&mut self) -> u32 {
        if self.known.len() >= MOST_PRODUCERS
            && let Some((_, name)) = self.by_heard.pop_first()
            && let Some(known) = self.known.remove(&name)
        {
            return known.slot;
        }
        // Slots are given in order and given on, so that they are as many as there are producers.
        u32::try_from(self.known.len()).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_silent_producer_gives_its_row_to_a_new_one() {
        let mut producers = Producers::default();
        let mut rows = BTreeMap::new();
        let mut note = |name: &str, sequence| {
            let known = producers.note(name, sequence).known;
            rows.insert(known.slot, known);
        };
        (0..MOST_PRODUCERS).for_each(|number| note(&format!("p{number}"), 1));
        note("p0", 2);
        note("new", 1);
        assert!(producers.has("p0", 2) && !producers.has("p0", 3) && !producers.has("p1", 1));
        assert_eq!(rows.len(), MOST_PRODUCERS, "no more rows than producers");
        let rows = rows.into_values().collect();
        let mut again = Producers::restored(rows);
        assert!(again.has("new", 1) && again.is_clean());
        again.note("newer", 1);
        assert!(!again.has("p2", 1) && again.has("p3", 1), "the order survives");
    }

    #[test]
    fn a_long_name_takes_no_more_memory_than_a_short_one() {
        let mut producers = Producers::default();
        let (one, other) = ("a".repeat(60_000), "b".repeat(60_000));
        assert!(producers.note(&one, 1).known.name.len() < 256);
        assert!(producers.has(&one, 1) && !producers.has(&other, 1));
    }

    #[test]
    fn what_could_not_be_written_is_not_taken_for_kept() {
        let mut producers = Producers::default();
        let first = producers.note("p", 0);
        let second = producers.note("p", 1);
        producers.take_back(&second);
        assert!(producers.has("p", 0) && !producers.has("p", 1));
        producers.take_back(&first);
        assert!(!producers.has("p", 0));
    }

    #[test]
    fn what_came_after_what_could_not_be_written_stays_known() {
        let mut producers = Producers::default();
        let first = producers.note("p", 0);
        producers.note("p", 1);
        producers.take_back(&first);
        assert!(producers.has("p", 1) && !producers.has("p", 2));
    }
}
