//! What a simulated vault's disk holds, and where chance comes from. Knows nothing of crashes.

use shared::api::{Number, NumberState};
use vault::sequence::book::{Context, Known, SeriesName, Wish};
use vault::sequence::entry::{Act, Entry, Tail};
use vault::sequence::protocol::Memory;

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
}

impl Disk {
    pub(crate) fn new(random: &mut Random) -> Self {
        let memory = Memory { journal: random.nonce(), epoch: 1, peer_journal: None, peer_durable: 0 };
        Self { memory, entries: Vec::new() }
    }
    pub(crate) fn tail(&self) -> Tail {
        self.entries.last().map_or_else(Tail::default, Entry::tail)
    }
    pub(crate) fn apply(&mut self, entries: &[Entry], memory: Memory) {
        self.entries.extend_from_slice(entries);
        self.memory = memory;
    }
    /// The numbers as the entries leave them.
    pub(crate) fn known(&self, pick: impl Fn(&Entry) -> bool) -> Option<Known> {
        let mut found: Option<Known> = None;
        for entry in self.entries.iter().filter(|entry| pick(entry)) {
            let mut number = found.map_or_else(
                || Number {
                    series: entry.series.clone(),
                    number: entry.number,
                    key: entry.key.clone(),
                    state: NumberState::Reserved,
                    document_hash: None,
                    reason: None,
                    entry_hash: String::new(),
                },
                |known| known.number,
            );
            match &entry.act {
                Act::Reserve => {}
                Act::Confirm(hash) => {
                    number.state = NumberState::Confirmed;
                    number.document_hash = Some(hash.clone());
                }
                Act::Void(reason) => {
                    number.state = NumberState::Void;
                    number.reason = Some(reason.clone());
                }
            }
            found = Some(Known { number, index: entry.index });
        }
        found
    }
    pub(crate) fn context(&self, name: &SeriesName, wish: &Wish) -> Context {
        let of_series = |entry: &Entry| entry.owner == name.owner && entry.series == name.series;
        let last = self.entries.iter().filter(|e| of_series(e)).map(|e| e.number).max().unwrap_or(0);
        let known = self.known(|entry| {
            of_series(entry)
                && match wish {
                    Wish::Reserve { key } => entry.key == *key,
                    Wish::Confirm { number, .. } | Wish::Void { number, .. } => entry.number == *number,
                }
        });
        Context { known, last }
    }
}
