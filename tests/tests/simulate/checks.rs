//! What must hold of all that callers were told and of what the ledger says in the end.

use std::collections::{BTreeMap, BTreeSet};

use shared::api::NumberState;
use vault::sequence::audit::Audit;
use vault::sequence::book::{SeriesName, Wish};
use vault::sequence::entry::{Act, Entry, Life, Tail, verified};
use vault::sequence::export::Row;

use crate::disk::{Disk, given};
use crate::world::{AVAILABLE, Checked, Numbers, STRICT, series};

/// What callers were told.
#[derive(Default)]
pub(crate) struct Told {
    numbers: Numbers,
    keys: BTreeMap<(SeriesName, u64), String>,
    /// Who told it alone first, where nobody told it in a session.
    alone: BTreeMap<(SeriesName, String), Life>,
    /// Keys that were given up, as their senders were told, and who told it alone.
    pub(crate) gave_up: BTreeMap<(SeriesName, String), Option<Life>>,
    /// Keys of which nobody knows any more that they were answered.
    forgotten: BTreeSet<(SeriesName, String)>,
    /// How many were told alone, and how many keys were refused for good.
    pub(crate) given_alone: usize,
    pub(crate) lost: usize,
}

impl Told {
    pub(crate) fn len(&self) -> usize {
        self.numbers.len()
    }

    /// A caller hears that `key` has `number`: the heart of the matter.
    pub(crate) fn tell(&mut self, name: &SeriesName, key: &str, number: u64, by: Option<Life>) -> Checked {
        let place = (name.clone(), key.to_owned());
        match by {
            Some(life) if !self.numbers.contains_key(&place) => {
                self.alone.insert(place.clone(), life);
                self.given_alone += 1;
            }
            Some(_) => {}
            None => drop(self.alone.remove(&place)),
        }
        if let Some(old) = self.numbers.insert(place, number)
            && old != number
        {
            return Err(format!("key {key} was told {old}, now {number}"));
        }
        match self.keys.insert((name.clone(), number), key.to_owned()) {
            Some(old) if old != key => Err(format!("number {number} was given to {old}, now to {key}")),
            _ => Ok(()),
        }
    }

    /// One of the keys that a vault alone has answered: its place among all that were sent.
    pub(crate) fn alone_at(&self, pick: u64) -> Option<usize> {
        let pick = pick.checked_rem(self.alone.len() as u64)?;
        let (_, key) = self.alone.keys().nth(usize::try_from(pick).ok()?)?;
        key.strip_prefix('k')?.parse::<usize>().ok()?.checked_sub(1)
    }

    /// Nobody knows any more that these entries were answered from.
    pub(crate) fn forget<'a>(&mut self, entries: impl Iterator<Item = &'a Entry>) {
        let name = |entry: &Entry| SeriesName { owner: entry.owner.clone(), series: entry.series.clone() };
        self.forgotten.extend(entries.map(|entry| (name(entry), entry.key.clone())));
    }

    /// A caller hears that `key` never gets a number: not after a session has given it one, as far
    /// as anybody knows.
    pub(crate) fn refuse_for_good(&mut self, name: &SeriesName, key: &str) -> Checked {
        let place = (name.clone(), key.to_owned());
        self.lost += 1;
        match self.numbers.get(&place) {
            Some(number) if !self.alone.contains_key(&place) && !self.forgotten.contains(&place) => {
                Err(format!("key {key} was told {number}, and is refused for good"))
            }
            _ => Ok(()),
        }
    }

    /// No key that was given up has a number that counts, unless somebody confirmed it, or only a
    /// lost life knew of it.
    pub(crate) fn given_up(&self, disk: &Disk, is_excused: impl Fn(Life) -> bool) -> Checked {
        for ((name, key), by) in &self.gave_up {
            if by.is_some_and(&is_excused) {
                continue;
            }
            let wish = Wish::Reserve { key: key.clone(), ticket: None };
            let known = disk.context(name, &wish).known.map(|known| known.number);
            match known.map(|number| (number.state, number.number)) {
                Some((NumberState::Void | NumberState::Confirmed, _)) => {}
                left => return Err(format!("key {key} was given up, and the ledger says {left:?}")),
            }
        }
        Ok(())
    }

    /// Whatever a caller was told stands in the ledger, but for what a vault answered alone in a
    /// life of which that is excused: one that is lost or may yet come back.
    pub(crate) fn recorded(&self, entries: &[Entry], is_excused: impl Fn(Life) -> bool) -> Checked {
        for (place @ (name, key), number) in &self.numbers {
            if self.alone.get(place).is_some_and(|life| is_excused(*life)) {
                continue;
            }
            let stands = |entry: &Entry| {
                entry.owner == name.owner
                    && entry.series == name.series
                    && entry.key == *key
                    && entry.number == *number
            };
            if !given(entries, is_displaced).any(stands) {
                return Err(format!("{key} was told {number}, and the ledger does not know it"));
            }
        }
        Ok(())
    }
}

fn is_displaced(act: &Act) -> bool {
    matches!(act, Act::Displace(_))
}

/// The chain holds, no key and no number stands twice, and no number is left out: not in a strict
/// series, nor in the others below the cursor, but for what was lost or is set aside.
pub(crate) fn whole(disk: &Disk) -> Checked {
    let entries = &disk.entries;
    if verified(Tail::default(), entries).is_none() {
        return Err("the chain is broken".to_owned());
    }
    let mut keys = BTreeSet::new();
    for entry in given(entries, is_displaced) {
        if !keys.insert((&entry.series, &entry.key)) {
            return Err(format!("key {} stands twice", entry.key));
        }
    }
    for name in STRICT.iter().chain(AVAILABLE.iter().map(|(name, _)| name)) {
        let mut numbers = BTreeSet::new();
        let mut aside: BTreeSet<u64> = BTreeSet::new();
        let mut open: BTreeMap<u64, u64> = BTreeMap::new();
        let strict = STRICT.contains(name);
        for entry in entries.iter().filter(|entry| entry.series == **name) {
            match &entry.act {
                Act::Reserve(_) => {
                    if strict && numbers.last().copied().unwrap_or(0) + 1 != entry.number {
                        return Err(format!("{} follows {:?} in {name}", entry.number, numbers.last()));
                    }
                    if !numbers.insert(entry.number) {
                        return Err(format!("number {} stands twice in {name}", entry.number));
                    }
                }
                Act::Grant(grant) => {
                    if strict {
                        return Err(format!("a range of the strict series {name}"));
                    }
                    open.insert(entry.number, grant.to);
                }
                Act::Close(_) => drop(open.remove(&entry.number)),
                Act::Lost(grant) => {
                    open.remove(&entry.number);
                    aside.extend(entry.number..=grant.to);
                }
                _ => {}
            }
        }
        let next = disk.standing.series(&series(name)).and_then(|series| series.next(0));
        aside.extend(open.into_iter().flat_map(|(from, to)| from..=to));
        if let Some(next) = next
            && let Some(hole) = (1..next).find(|number| !numbers.contains(number) && !aside.contains(number))
        {
            return Err(format!("nobody has number {hole} of {name}, and {next} comes next"));
        }
    }
    // An auditor comes to the same.
    let mut audit = Audit::default();
    entries.iter().for_each(|entry| audit.take(Row::Entry(entry.clone())));
    let findings = audit.finish(false);
    if findings.proved { Ok(()) } else { Err(format!("the auditor says: {:?}", findings.problems)) }
}
