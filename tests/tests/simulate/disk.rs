//! What a simulated vault's disk holds, and where chance comes from. Knows nothing of crashes.

use shared::api::{Number, NumberState};
use vault::sequence::book::{Context, Known, SeriesName, Wish, given_up_for};
use vault::sequence::entry::{Act, Entry, Life, Tail, verified};
use vault::sequence::proof::Proof;
use vault::sequence::protocol::{Memory, Write};
use vault::sequence::standing::Standing;

/// SplitMix64: the sequence is the seed's alone.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
    pub(crate) fn nonce(&mut self) -> u128 {
        (u128::from(self.next()) << 64) | u128::from(self.next())
    }
    /// A place in a list of that length.
    pub(crate) fn place(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap_or(0)
    }
    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Disk {
    pub(crate) memory: Memory,
    pub(crate) entries: Vec<Entry>,
    /// What was given alone and is not yet in the chain for good.
    pub(crate) rows: Vec<Entry>,
    /// Derived from the entries.
    pub(crate) standing: Standing,
    /// The life of the process that used it last.
    pub(crate) life: Option<Life>,
    /// What that left behind, if it ended in order.
    pub(crate) ended: Option<Proof>,
}

impl Disk {
    pub(crate) fn new(random: &mut Random, owns: bool) -> Self {
        let memory = Memory {
            journal: random.nonce(),
            epoch: 1,
            owns,
            alone: false,
            whole: true,
            solo: Tail::default(),
            peer_journal: None,
            peer_durable: 0,
            settled: 0,
        };
        Self {
            memory,
            entries: Vec::new(),
            rows: Vec::new(),
            standing: Standing::default(),
            life: None,
            ended: None,
        }
    }

    pub(crate) fn tail(&self) -> Tail {
        self.entries.last().map_or_else(Tail::default, Entry::tail)
    }

    /// Does that write fit what stands here?
    pub(crate) fn fits(&self, write: &Write) -> bool {
        let after = write.cut.unwrap_or(self.tail());
        let stands = after == Tail::default()
            || self.entries.get(place(after.index)).is_some_and(|entry| entry.tail() == after);
        stands && verified(after, &write.entries).is_some()
    }

    pub(crate) fn apply(&mut self, write: &Write) {
        if let Some(cut) = write.cut {
            self.entries.truncate(usize::try_from(cut.index).unwrap_or(usize::MAX));
            self.standing = Standing::default();
            let entries = std::mem::take(&mut self.entries);
            entries.into_iter().for_each(|entry| self.enter(entry));
        }
        write.entries.iter().cloned().for_each(|entry| self.enter(entry));
        self.rows.extend_from_slice(&write.rows);
        self.memory = write.memory;
        let last = self.tail().index.min(self.memory.settled);
        let settled: Vec<_> =
            self.entries.iter().filter(|entry| entry.carried > 0 && entry.index <= last).collect();
        let is_settled =
            |row: &Entry| settled.iter().any(|entry| entry.life == row.life && entry.carried >= row.index);
        self.rows.retain(|row| !is_settled(row));
    }

    fn enter(&mut self, entry: Entry) {
        let last = || highest(&self.entries, &entry.owner, &entry.series);
        let _touched = self.standing.apply(&entry, last);
        self.entries.push(entry);
    }

    pub(crate) fn context(&self, name: &SeriesName, wish: &Wish) -> Context {
        let last = highest(&self.entries, &name.owner, &name.series);
        Context { known: known(&self.entries, name, |entry| concerns(entry, wish)), last }
    }

    /// The life that gave the number alone, if that stands among the rows.
    pub(crate) fn own_number(&self, name: &SeriesName, number: u64) -> Option<Life> {
        let gave = |row: &&Entry| matches!(row.act, Act::Reserve(_)) && row.number == number;
        self.rows.iter().filter(gave).find(|row| row.series == name.series).map(|row| row.life)
    }

    /// What this vault alone has given.
    pub(crate) fn own(&self, name: &SeriesName, wish: &Wish) -> Option<Known> {
        known(&self.rows, name, |row| concerns(row, wish))
    }
}

/// The entries that gave a number to a key, but for those that `but` took back.
pub(crate) fn given(entries: &[Entry], but: impl Fn(&Act) -> bool) -> impl Iterator<Item = &Entry> {
    let displaced: Vec<(&str, u64)> = entries
        .iter()
        .filter(|entry| but(&entry.act))
        .map(|entry| (entry.series.as_str(), entry.number))
        .collect();
    let stands = move |entry: &&Entry| !displaced.contains(&(entry.series.as_str(), entry.number));
    entries.iter().filter(|entry| matches!(entry.act, Act::Reserve(_))).filter(stands)
}

pub(crate) fn place(index: u64) -> usize {
    usize::try_from(index).map_or(usize::MAX, |index| index.wrapping_sub(1))
}

fn concerns(entry: &Entry, wish: &Wish) -> bool {
    match wish {
        Wish::Reserve { key, .. } | Wish::Supersede { key, .. } => entry.key == *key,
        Wish::Confirm { number, .. } | Wish::Void { number, .. } => entry.number == *number,
        Wish::Define(_) => false,
    }
}

fn is_about_a_number(act: &Act) -> bool {
    matches!(
        act,
        Act::Reserve(_)
            | Act::Confirm(_)
            | Act::Void(_)
            | Act::Spoil(_)
            | Act::Displace(_)
            | Act::Doubt
            | Act::Supersede(_)
    )
}

fn highest(entries: &[Entry], owner: &str, series: &str) -> u64 {
    let of = |entry: &&Entry| entry.owner == owner && entry.series == series && is_about_a_number(&entry.act);
    entries.iter().filter(of).map(|entry| entry.number).max().unwrap_or(0)
}

/// The number as the entries leave it.
pub(crate) fn known(entries: &[Entry], name: &SeriesName, pick: impl Fn(&Entry) -> bool) -> Option<Known> {
    let mut found: Option<Known> = None;
    let of = |entry: &&Entry| entry.owner == name.owner && entry.series == name.series;
    for entry in entries.iter().filter(of).filter(|entry| is_about_a_number(&entry.act) && pick(entry)) {
        if let Act::Displace(_) = entry.act {
            found = None;
            continue;
        }
        if let Act::Reserve(_) = entry.act {
            found = None;
        }
        let mut number = found.map_or_else(
            || Number::reserved(entry.series.clone(), entry.number, entry.key.clone(), String::new()),
            |known| known.number,
        );
        match &entry.act {
            Act::Confirm(hash) => {
                number.state = NumberState::Confirmed;
                number.document_hash = Some(hash.clone());
            }
            Act::Supersede(by) => {
                number.state = NumberState::Void;
                number.reason = Some(given_up_for(by));
            }
            Act::Doubt => number.state = NumberState::Doubtful,
            Act::Void(reason) | Act::Spoil(reason) => {
                number.state = NumberState::Void;
                number.reason = Some(reason.clone());
            }
            _ => {}
        }
        found = Some(Known { number, index: entry.index });
    }
    found
}
