//! A vault's journal as a model: what the core has written. Knows the core's writes; not its rules.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::super::{Badge, Held, Kept, Load, Row, Write};
use super::destination;

/// A vault's journal as it is on disk.
#[derive(Debug, Default)]
pub(super) struct Disk {
    next_batch: u64,
    last_sequence: u64,
    rows: BTreeMap<u64, u32>,
    /// Batches that are not ours yet, where they were to be taken, and their rows.
    pub(super) open: BTreeMap<u64, (Option<Badge>, Vec<u64>)>,
    /// Those of them that were found to be the source's, and when.
    pub(super) returned: BTreeMap<u64, Duration>,
    pub(super) dead: Vec<u32>,
    /// Set aside, and whether the target had answered.
    aside: BTreeMap<u64, bool>,
    source: Option<Badge>,
    target: Option<Badge>,
}

impl Disk {
    /// What was set aside is settled before the journal is worked with again.
    pub(super) fn open(&mut self) {
        for (sequence, is_answered) in std::mem::take(&mut self.aside) {
            self.write(
                match is_answered {
                    true => Write::Pass(vec![sequence]),
                    false => Write::Bury { sequence, why: String::new() },
                },
                Duration::ZERO,
            );
        }
    }

    fn put(&mut self, messages: Vec<u32>) -> Vec<u64> {
        let place = |message| {
            self.last_sequence += 1;
            self.rows.insert(self.last_sequence, message);
            self.last_sequence
        };
        messages.into_iter().map(place).collect()
    }

    pub(super) fn write(&mut self, write: Write<u32>, now: Duration) {
        if let Write::Ours { batch, .. } | Write::Drop(batch) = &write {
            self.returned.remove(batch);
        }
        match write {
            Write::Batch(batch, messages) => {
                self.next_batch = batch + 1;
                let sequences = self.put(messages);
                self.open.insert(batch, (self.source, sequences));
            }
            Write::Ours { batch, afresh } => {
                let (_, sequences) = self.open.remove(&batch).unwrap();
                if afresh {
                    let messages = sequences.iter().map(|it| self.rows.remove(it).unwrap()).collect();
                    self.put(messages);
                }
            }
            Write::Return(batches) => {
                for batch in batches {
                    self.returned.entry(batch).or_insert(now);
                }
            }
            Write::Drop(batch) => {
                for sequence in self.open.remove(&batch).unwrap().1 {
                    self.rows.remove(&sequence).unwrap();
                }
            }
            Write::Remove { forwarded, expired } => {
                for sequence in forwarded.iter().chain(&expired) {
                    self.rows.remove(sequence).unwrap();
                }
            }
            Write::Aside { sequence, is_answered, .. } => drop(self.aside.insert(sequence, is_answered)),
            Write::Acquit => self.aside.clear(),
            Write::Pass(sequences) => {
                let messages = sequences.iter().map(|it| self.rows.remove(it).unwrap()).collect();
                self.put(messages);
            }
            Write::From(badge) => self.source = Some(badge),
            Write::To(badge) => self.target = Some(badge),
            Write::Jump(batch) => {
                self.next_batch = batch;
                self.last_sequence += 1 << 40;
            }
            Write::Bury { sequence, .. } => {
                self.aside.remove(&sequence);
                self.dead.push(self.rows.remove(&sequence).unwrap());
            }
        }
    }

    pub(super) fn load(&self, after: u64, most: usize, but: &[i64]) -> Vec<Row<u32>> {
        let is_open = |sequence| self.open.values().any(|(_, rows)| rows.contains(sequence));
        let behind = self.rows.range(after + 1..).filter(|(sequence, _)| !is_open(sequence));
        let behind = behind.filter(|(_, message)| !but.contains(&destination(**message))).take(most);
        let row = |(sequence, message): (&u64, &u32)| Row {
            sequence: *sequence,
            bytes: 1,
            is_expired: false,
            destination: destination(*message),
            message: *message,
        };
        behind.map(row).collect()
    }

    pub(super) fn kept(&self, now: Duration) -> Kept {
        let load = |rows: usize| Load { rows: rows as u64, bytes: rows as u64 };
        let not_ours: usize = self.open.values().map(|(_, rows)| rows.len()).sum();
        let open = self.open.iter();
        let held = |at: &Option<Badge>, rows: &Vec<u64>| Held { at: *at, load: load(rows.len()) };
        let uncertain = |(batch, (at, rows)): (&u64, &(_, Vec<u64>))| (*batch, held(at, rows));
        let returned = |(batch, since): (&u64, &Duration)| {
            let (at, rows) = &self.open[batch];
            (*batch, (now.saturating_sub(*since), held(at, rows)))
        };
        Kept {
            next_batch: self.next_batch,
            last_sequence: self.last_sequence,
            source: self.source,
            target: self.target,
            uncertain: open.filter(|(batch, _)| !self.returned.contains_key(batch)).map(uncertain).collect(),
            returned: self.returned.iter().map(returned).collect(),
            waiting: load(self.rows.len() - not_ours),
            dead: load(self.dead.len()),
        }
    }
}
