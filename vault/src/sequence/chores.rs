//! What the owner of a session has to enter by itself beside lives: what must be doubted of what
//! was entered before, and ranges to be granted and to be ended. Pure; one value lives as long as
//! the process, and looks at each entry and each series only when there is something new about it.

use std::collections::BTreeSet;

use super::book::SeriesName;
use super::entry::{Act, Draft, Entry};
use super::standing::{Doubts, Present, Standing};

/// What is still to be looked at.
#[derive(Debug, Clone, Default)]
pub struct Chores {
    /// Has this session's work begun?
    begun: bool,
    /// Series whose ranges may have to be granted.
    granting: BTreeSet<SeriesName>,
    /// Series that have what they need, and perhaps ranges that must be ended.
    ending: BTreeSet<SeriesName>,
    doubts: Doubts,
    /// Entries up to here were looked at for doubts.
    looked_at: u64,
}

impl Chores {
    /// The session is over, or another begins.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    /// The first look of a session: the other vault, or its life, may be a new one, so that every
    /// series counts. Entries after `last` were not answered from before it.
    pub fn begin(&mut self, standing: &Standing, last: u64) {
        if !self.begun {
            let granting = standing.names().cloned().collect();
            *self = Self { begun: true, granting, looked_at: last, ..Self::default() };
        }
    }

    /// These entries are in the chain, and `standing` is what they leave.
    pub fn wrote(&mut self, entries: &[Entry], standing: &Standing) {
        if !self.begun {
            return;
        }
        if entries.iter().any(|entry| matches!(entry.act, Act::Seal(_))) {
            // Each needs a range for one holder more.
            self.granting.extend(standing.names().cloned());
        }
        for entry in entries.iter().filter(|entry| !entry.series.is_empty()) {
            let name = SeriesName { owner: entry.owner.clone(), series: entry.series.clone() };
            match entry.act {
                Act::Put(_) | Act::Remove => {}
                // All its periods are counted so from now on.
                Act::Define(_) => {
                    self.granting.extend(standing.names().filter(|series| series.is_of(&name)).cloned());
                }
                _ if standing.series(&name).is_some() => drop(self.granting.insert(name)),
                _ => {}
            }
        }
    }

    /// Up to which entry was looked for doubts?
    #[must_use]
    pub fn looked_at(&self) -> u64 {
        self.looked_at
    }

    /// Looks at those of the next entries, up to `upto`, that can raise or settle a doubt.
    pub fn look_at(&mut self, entries: &[Entry], upto: u64, standing: &Standing, at: i64) {
        standing.doubt(&mut self.doubts, entries, at);
        self.looked_at = upto;
    }

    /// What must be doubted, at most `most` of it; to be looked at again once it is entered.
    #[must_use]
    pub fn doubtful(&self, most: usize) -> Vec<Draft> {
        self.doubts.drafts(most)
    }

    /// Are there series to be looked at?
    #[must_use]
    pub fn are_due(&self) -> bool {
        !(self.granting.is_empty() && self.ending.is_empty())
    }

    /// Ranges that must be granted now, or if there are none, those that must be ended. What was
    /// told last must be final, or the session over.
    pub fn ranges(&mut self, standing: &Standing, vaults: &[Present], at: i64, most: usize) -> Vec<Draft> {
        let (grants, done) = look(&self.granting, most, |name| standing.grants(name, vaults, at));
        for name in done {
            self.granting.remove(&name);
            self.ending.insert(name);
        }
        if !grants.is_empty() {
            return grants;
        }
        let (ends, done) = look(&self.ending, most, |name| standing.ends(name, vaults, at));
        for name in done {
            self.ending.remove(&name);
        }
        ends
    }
}

/// At most `most` drafts for these series, and the series looked at that need none.
fn look(
    names: &BTreeSet<SeriesName>,
    most: usize,
    mut drafts_for: impl FnMut(&SeriesName) -> Vec<Draft>,
) -> (Vec<Draft>, Vec<SeriesName>) {
    let (mut drafts, mut done) = (Vec::new(), Vec::new());
    for name in names {
        let more = drafts_for(name);
        if more.is_empty() {
            done.push(name.clone());
        }
        drafts.extend(more);
        if drafts.len() >= most {
            break;
        }
    }
    drafts.truncate(most);
    (drafts, done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::definition::Definition;
    use crate::sequence::entry::{Life, Tail};

    /// A chain, and what it leaves.
    #[derive(Default)]
    struct Ledger {
        standing: Standing,
        tail: Tail,
        chores: Chores,
    }

    impl Ledger {
        fn enter(&mut self, drafts: Vec<Draft>) {
            for draft in drafts {
                let entry = Entry::append(self.tail, 1, 7, draft);
                self.tail = entry.tail();
                let _touched = self.standing.apply(&entry, || 0);
                self.chores.wrote(&[entry], &self.standing);
            }
        }
        fn draft(&mut self, series: &str, number: u64, act: Act) {
            let (owner, series, key) = ("erp".to_owned(), series.to_owned(), format!("k{number}"));
            self.enter(vec![Draft { owner, series, number, key, act, at: 0, carried: None }]);
        }
        /// Enters all that is to be entered, `most` at a time; tells how often and how much.
        fn work(&mut self, lives: [Life; 2], most: usize) -> (usize, usize) {
            let vaults = [("a", lives[0]), ("b", lives[1])].map(|(name, life)| {
                let (name, proven) = (name.to_owned(), None);
                Present { name, life, proven }
            });
            let (mut rounds, mut entries) = (0, 0);
            loop {
                let drafts = self.chores.ranges(&self.standing, &vaults, 0, most);
                if drafts.is_empty() {
                    return (rounds, entries);
                }
                (rounds, entries) = (rounds + 1, entries + drafts.len());
                self.enter(drafts);
            }
        }
    }

    #[test]
    fn every_series_gets_its_ranges_and_a_round_looks_only_at_what_it_touched() {
        let mut ledger = Ledger::default();
        ledger.chores.begin(&ledger.standing, 0);
        for series in 0..50 {
            let available = Definition { range: 10, ..Definition::default() };
            ledger.draft(&format!("S{series}"), 0, Act::Define(available));
        }
        assert_eq!(ledger.work([1, 2], 7), (15, 100), "two ranges each, seven a round");
        assert!(!ledger.chores.are_due());
        ledger.draft("S3", 1, Act::Reserve(None));
        assert_eq!(ledger.chores.granting.len(), 1);
        assert_eq!(ledger.work([1, 2], 7), (0, 0));
        ledger.draft("STRICT", 1, Act::Reserve(None));
        assert!(!ledger.chores.are_due());
        // Another life of one vault: its ranges are granted anew, and the old ones ended.
        ledger.chores.forget();
        ledger.chores.begin(&ledger.standing, 0);
        ledger.chores.begin(&Standing::default(), 0);
        assert_eq!(ledger.work([1, 3], 7).1, 100);
        // It is strict from now on.
        ledger.draft("S3", 0, Act::Define(Definition::default()));
        assert_eq!(ledger.work([1, 3], 7), (1, 2));
        let open = |series: &str| {
            let name = SeriesName { owner: "erp".to_owned(), series: series.to_owned() };
            ledger.standing.series(&name).unwrap().ranges().count()
        };
        assert_eq!((open("S3"), open("S4")), (0, 2));
    }

    #[test]
    fn a_definition_concerns_all_periods_of_its_series() {
        let mut ledger = Ledger::default();
        ledger.chores.begin(&ledger.standing, 0);
        let yearly =
            |range| Definition { range, pattern: Some("{year}-{n}".to_owned()), ..Definition::default() };
        ledger.draft("INV", 0, Act::Define(yearly(10)));
        for period in ["INV/2026", "INV/2027"] {
            ledger.draft(period, 1, Act::Reserve(None));
        }
        assert_eq!(ledger.work([1, 2], 100), (1, 4));
        ledger.draft("INV", 0, Act::Define(yearly(0)));
        assert_eq!(ledger.work([1, 2], 100), (1, 4), "all are ended");
    }
}
