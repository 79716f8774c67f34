//! What the ledger's entries say of lives and of ranges: which numbers a session may give next,
//! which are set aside for a vault that may find itself alone, and which nobody gives any more.
//! Pure; derived from the entries alone, in their order. Knows neither the pair's state nor keys.
//!
//! A range lives one life of its holder. Its rest comes back into use only when that holder gave
//! it back in the same life, or when all that the life ever answered is proven to be known;
//! otherwise the rest is lost: nobody can say whether it was answered, so it never is again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use rangemap::RangeInclusiveSet;
use serde::{Deserialize, Serialize};

use super::book::SeriesName;
use super::definition::{Counted, Definition, base_of};
use super::entry::{Act, Birth, Draft, Entry, Grant, Life};

/// Most series, each of their periods by itself, that vaults may give from alone. Periods beyond
/// them are strict, and no definition makes more series available.
pub const MAX_AVAILABLE: usize = if cfg!(test) { 60 } else { 100_000 };
/// Most numbers that one range sets aside.
pub const MAX_RANGE: u64 = 1_000_000;

/// Numbers set aside for one vault alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// The last number.
    pub to: u64,
    /// Which vault.
    pub holder: String,
    /// In which of its lives.
    pub life: Life,
    /// Index of the entry that granted it.
    pub index: u64,
    /// What was given from it.
    used: RangeInclusiveSet<u64>,
}

/// A series that may be given from by a vault alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Series {
    /// Every number below is given or lost.
    cursor: u64,
    /// Above the cursor: given or lost.
    taken: RangeInclusiveSet<u64>,
    /// Open ranges by their first number.
    ranges: BTreeMap<u64, Range>,
}

/// The life of a vault that is no more of the pair; no process has it.
const NOBODY: Life = 0;

/// What the ledger knows of a life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LifeState {
    /// Its vault's last one.
    Present,
    /// Over, and all that it answered is known.
    Proven,
    /// Over, and what it answered may be lost.
    Lost,
    /// Not begun: its vault may live it next, when an operator brings its token.
    Sealed,
    /// Was sealed, and a newer token has taken its place; its vault may have begun it before it
    /// heard of that.
    Replaced,
}

/// What some entries may change of a [`Standing`], as it was before them.
#[derive(Debug, Default)]
pub struct Before {
    definitions: Arc<HashMap<SeriesName, Definition>>,
    series: Vec<(SeriesName, Option<Series>)>,
    /// Lives, whose are present or sealed, and how far their rows are carried; only where that may
    /// change.
    lives: Option<Lives>,
}

type Lives = (HashMap<Life, LifeState>, BTreeMap<String, Life>, BTreeMap<Life, String>, HashMap<Life, u64>);

/// Lives and ranges, as the entries leave them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    definitions: Arc<HashMap<SeriesName, Definition>>,
    series: HashMap<SeriesName, Series>,
    lives: HashMap<Life, LifeState>,
    present: BTreeMap<String, Life>,
    /// Lives that are sealed or replaced, and their vaults.
    sealed: BTreeMap<Life, String>,
    /// How far each life's own rows have been carried into the chain.
    carried: HashMap<Life, u64>,
}

impl Series {
    /// A series whose numbers up to `last` are given.
    fn after(last: u64) -> Self {
        Self { cursor: last + 1, taken: RangeInclusiveSet::new(), ranges: BTreeMap::new() }
    }

    /// The open ranges, by their first number.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, &Range)> {
        self.ranges.iter().map(|(from, range)| (*from, range))
    }

    /// The smallest number above `after` that a session may give; `None` at the end of all
    /// numbers.
    #[must_use]
    pub fn next(&self, after: u64) -> Option<u64> {
        let mut next = self.cursor.max(after.checked_add(1)?);
        while let Some(end) = self.end_of_taken(next) {
            next = end.checked_add(1)?;
        }
        (next <= i64::MAX as u64).then_some(next)
    }

    /// Where the range or the taken numbers that `number` lies in end.
    fn end_of_taken(&self, number: u64) -> Option<u64> {
        self.range_of(number).map(|(_, range)| range.to).or_else(|| self.taken.get(&number).map(|t| *t.end()))
    }

    fn range_of(&self, number: u64) -> Option<(u64, &Range)> {
        let (from, range) = self.ranges.range(..=number).next_back()?;
        (number <= range.to).then_some((*from, range))
    }

    /// The number that `holder` may give next from its own range in `life`: one above `after`, if
    /// that lies in the range; the grant must be among the first `last` entries.
    #[must_use]
    pub fn own(&self, holder: &str, life: Life, last: u64, after: Option<u64>) -> Option<u64> {
        let own = |range: &Range| range.holder == holder && range.life == life && range.index <= last;
        self.ranges.iter().filter(|(_, range)| own(range)).find_map(|(from, range)| {
            // Ranges are granted ever higher: a life never comes back to one below.
            let least = after.map_or(*from, |after| after.saturating_add(1).max(*from));
            (least <= range.to)
                .then(|| range.used.gaps(&(least..=range.to)).next().map(|gap| *gap.start()))?
        })
    }

    /// How many numbers `holder` may still give in `life`, and of how many; as [`Series::own`].
    #[must_use]
    pub fn left(&self, holder: &str, life: Life, last: u64, after: Option<u64>) -> [u64; 2] {
        let own = |range: &Range| range.holder == holder && range.life == life && range.index <= last;
        self.ranges.iter().filter(|(_, range)| own(range)).fold([0, 0], |[left, of], (from, range)| {
            let least = after.map_or(*from, |after| after.saturating_add(1).max(*from));
            let gaps =
                |least| range.used.gaps(&(least..=range.to)).map(|gap| gap.end() - gap.start() + 1).sum();
            let free: u64 = if least <= range.to { gaps(least) } else { 0 };
            [left + free, of + (range.to - from + 1)]
        })
    }

    /// The highest number that is given or set aside.
    fn highest(&self) -> u64 {
        let range = self.ranges.values().map(|range| range.to).max().unwrap_or(0);
        let taken = self.taken.last().map_or(0, |taken| *taken.end());
        range.max(taken).max(self.cursor - 1)
    }

    fn give(&mut self, number: u64) {
        let within = self.range_of(number).map(|(from, _)| from);
        if let Some(range) = within.and_then(|from| self.ranges.get_mut(&from)) {
            range.used.insert(number..=number);
        } else if number >= self.cursor {
            self.taken.insert(number..=number);
            self.advance();
        }
    }

    /// Moves the cursor over what is given or lost; an open range stops it.
    fn advance(&mut self) {
        while let Some(end) = self.taken.get(&self.cursor).map(|taken| *taken.end()) {
            self.taken.remove(self.cursor..=end);
            self.cursor = end + 1;
        }
    }

    /// Ends a range. Its unused rest may be given again, or is lost.
    fn end(&mut self, from: u64, to: u64, known: bool) {
        let range = self.ranges.remove(&from);
        if !known {
            // Also one that was given back and should not have been.
            if to >= self.cursor {
                self.taken.insert(from.max(self.cursor)..=to);
            }
        } else if let Some(range) = range {
            self.taken.extend(range.used);
        }
        self.advance();
    }
}

impl Standing {
    /// As it was left by [`Standing::names`], [`Standing::series`] and [`Standing::lives`] of an earlier one.
    #[must_use]
    pub fn restored(
        definitions: impl IntoIterator<Item = (SeriesName, Definition)>,
        series: impl IntoIterator<Item = (SeriesName, Series)>,
        lives: impl IntoIterator<Item = (Life, LifeState, String, u64)>,
    ) -> Self {
        let mut standing = Self {
            definitions: Arc::new(definitions.into_iter().collect()),
            series: series.into_iter().collect(),
            ..Self::default()
        };
        for (life, state, vault, carried) in lives {
            standing.lives.insert(life, state);
            match state {
                LifeState::Present => drop(standing.present.insert(vault, life)),
                LifeState::Sealed | LifeState::Replaced => drop(standing.sealed.insert(life, vault)),
                LifeState::Proven | LifeState::Lost => {}
            }
            if carried > 0 {
                standing.carried.insert(life, carried);
            }
        }
        standing
    }

    /// The series, if a vault may ever have given from it alone. All others are strict.
    #[must_use]
    pub fn series(&self, name: &SeriesName) -> Option<&Series> {
        self.series.get(name)
    }

    /// What is known of a life; `None` for one that was never in a session.
    #[must_use]
    pub fn life(&self, life: Life) -> Option<LifeState> {
        self.lives.get(&life).copied()
    }

    /// May that life have answered what nobody else knows of? Not one that was never in a session:
    /// it had no range to give from.
    #[must_use]
    pub fn is_lost(&self, life: Life) -> bool {
        self.life(life) == Some(LifeState::Lost)
    }

    /// How far that life's own rows have been carried into the chain.
    #[must_use]
    pub fn carried(&self, life: Life) -> u64 {
        self.carried.get(&life).copied().unwrap_or(0)
    }

    /// All that operators have said of series.
    pub fn definitions(&self) -> impl Iterator<Item = (&SeriesName, &Definition)> {
        self.definitions.iter()
    }

    /// The same, to be looked at while entries go on.
    #[must_use]
    pub fn shown_definitions(&self) -> Arc<HashMap<SeriesName, Definition>> {
        Arc::clone(&self.definitions)
    }

    /// All series that a vault may ever have given from alone.
    pub fn names(&self) -> impl Iterator<Item = &SeriesName> {
        self.series.keys()
    }

    /// All lives, each with its vault, where that is its last one or may be its next, and how far
    /// its rows have been carried over.
    pub fn lives(&self) -> impl Iterator<Item = (Life, LifeState, &str, u64)> {
        self.lives.iter().map(|(life, state)| {
            let present = || self.present.iter().find(|(_, present)| *present == life);
            let vault = self.sealed.get(life).or_else(|| present().map(|(vault, _)| vault));
            (*life, *state, vault.map_or("", String::as_str), self.carried(*life))
        })
    }

    /// Takes the next entry, and tells the series whose ranges it changed. `last` is the series'
    /// highest number before it, asked for only where a series becomes available.
    pub fn apply(&mut self, entry: &Entry, last: impl FnOnce() -> u64) -> Option<SeriesName> {
        self.live(entry);
        self.count(entry, last)
    }

    /// What it says of all but these series, which it must have and which are derived anew, and of
    /// neither lives nor definitions. Entries are taken by [`Standing::apply_again`] then.
    #[must_use]
    pub fn without(&self, series: &HashSet<SeriesName>) -> Self {
        let others = self.series.iter().filter(|(name, _)| !series.contains(name));
        let others = others.map(|(name, series)| (name.clone(), series.clone()));
        Self { series: others.collect(), ..Self::default() }
    }

    /// As [`Standing::apply`], of these series alone. That they are available now tells that there
    /// were never too many when they became it.
    pub fn apply_again(&mut self, entry: &Entry, last: impl FnOnce() -> u64, series: &HashSet<SeriesName>) {
        self.live(entry);
        let name = name_of(entry);
        if series.contains(&name) {
            let _touched = self.count(entry, last);
        } else if let Act::Define(definition) = &entry.act {
            Arc::make_mut(&mut self.definitions).insert(name, definition.clone());
        }
    }

    /// What the entry says of lives.
    fn live(&mut self, entry: &Entry) {
        if entry.carried > 0 {
            self.carried.insert(entry.life, entry.carried);
        }
        match entry.act {
            Act::Life(birth) => self.born(&entry.key, birth),
            Act::Seal(life) => self.seal(&entry.key, life),
            _ => {}
        }
    }

    /// What the entry says of its series; see [`Standing::apply`].
    fn count(&mut self, entry: &Entry, last: impl FnOnce() -> u64) -> Option<SeriesName> {
        if let Act::Life(_) | Act::Seal(_) = entry.act {
            return None;
        }
        let name = name_of(entry);
        if let Act::Define(definition) = &entry.act {
            return Some(self.define(name, definition, last));
        }
        if let Act::Reserve(_) = entry.act {
            return self.give(&name, entry.number).then_some(name);
        }
        let series = self.series.get_mut(&name)?;
        match &entry.act {
            Act::Spoil(_) => series.give(entry.number),
            Act::Grant(Grant { to, life }) => {
                let (holder, index) = (entry.key.clone(), entry.index);
                let used = RangeInclusiveSet::new();
                series.ranges.insert(entry.number, Range { to: *to, holder, life: *life, index, used });
            }
            Act::Close(grant) => series.end(entry.number, grant.to, true),
            Act::Lost(grant) => series.end(entry.number, grant.to, false),
            Act::Reserve(_)
            | Act::Confirm(_)
            | Act::Void(_)
            | Act::Displace(_)
            | Act::Doubt
            | Act::Supersede(_)
            | Act::Define(_)
            | Act::Life(_)
            | Act::Put(_)
            | Act::Remove
            | Act::Seal(_)
            | Act::Note(_) => return None,
        }
        Some(name)
    }

    /// Takes that a key got this number in a session, as [`Standing::apply`] does. Tells whether the
    /// series is available.
    pub fn give(&mut self, name: &SeriesName, number: u64) -> bool {
        if let Some(series) = self.series.get_mut(name) {
            series.give(number);
            return true;
        }
        if self.size(name) == 0 || self.is_full() {
            return false;
        }
        let mut series = Series::after(number - 1);
        series.give(number);
        self.series.insert(name.clone(), series);
        true
    }

    /// What [`Standing::take_back`] needs after these entries.
    #[must_use]
    pub fn before(&self, entries: &[Entry]) -> Before {
        let of_lives = |entry: &Entry| entry.carried > 0 || matches!(entry.act, Act::Life(_) | Act::Seal(_));
        let lives = || (self.lives.clone(), self.present.clone(), self.sealed.clone(), self.carried.clone());
        // All others are strict, and stay so.
        let defines = entries.iter().any(|entry| matches!(entry.act, Act::Define(_)));
        let may_change = |name: &SeriesName| defines || self.series.contains_key(name) || self.size(name) > 0;
        let same = |a: &Entry, b: &Entry| a.owner == b.owner && a.series == b.series;
        let names = entries.chunk_by(same).filter_map(|run| run.first()).map(name_of);
        let names: HashSet<SeriesName> = names.filter(may_change).collect();
        let part = |name: SeriesName| (self.series.get(&name).cloned(), name);
        Before {
            definitions: Arc::clone(&self.definitions),
            series: names.into_iter().map(part).map(|(series, name)| (name, series)).collect(),
            lives: entries.iter().any(of_lives).then(lives),
        }
    }

    /// Makes it as it was: none of the entries after that stands.
    pub fn take_back(&mut self, before: Before) {
        self.definitions = before.definitions;
        for (name, series) in before.series {
            match series {
                Some(series) => drop(self.series.insert(name, series)),
                None => drop(self.series.remove(&name)),
            }
        }
        if let Some((lives, present, sealed, carried)) = before.lives {
            (self.lives, self.present, self.sealed, self.carried) = (lives, present, sealed, carried);
        }
    }

    /// What is said of a series, or of the one whose period it is.
    #[must_use]
    pub fn definition(&self, name: &SeriesName) -> Option<&Definition> {
        if self.definitions.is_empty() {
            return None;
        }
        let (owner, series) = (name.owner.clone(), base_of(&name.series).to_owned());
        self.definitions.get(&SeriesName { owner, series })
    }

    /// Is that a series, or a period of one, that is counted so?
    #[must_use]
    pub fn counts(&self, name: &SeriesName) -> bool {
        match self.definition(name) {
            Some(definition) => definition.counts(&name.series),
            None => base_of(&name.series) == name.series,
        }
    }

    /// Are as many series available as may be?
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.series.len() >= MAX_AVAILABLE
    }

    /// How many numbers a range of that series has; 0: it is strict.
    fn size(&self, name: &SeriesName) -> u64 {
        self.definition(name).map_or(0, |definition| definition.range)
    }

    fn define(
        &mut self,
        base: SeriesName,
        definition: &Definition,
        last: impl FnOnce() -> u64,
    ) -> SeriesName {
        let full = self.is_full();
        if definition.range > 0 && definition.counted() == Counted::Through && !full {
            self.series.entry(base.clone()).or_insert_with(|| Series::after(last()));
        }
        Arc::make_mut(&mut self.definitions).insert(base.clone(), definition.clone());
        base
    }

    /// The life takes the place of another that nobody can live any more.
    fn seal(&mut self, vault: &str, life: Life) {
        if let Some(former) = self.sealed(vault) {
            self.lives.insert(former, LifeState::Replaced);
        }
        self.sealed.insert(life, vault.to_owned());
        self.lives.insert(life, LifeState::Sealed);
    }

    /// The life that this vault may live next, by a token.
    #[must_use]
    pub fn sealed(&self, vault: &str) -> Option<Life> {
        let of = |life: &Life| self.life(*life) == Some(LifeState::Sealed);
        self.sealed.iter().find(|(life, of_vault)| *of_vault == vault && of(life)).map(|(life, _)| *life)
    }

    /// Is anything set aside for that life, by one of the first `last` entries?
    #[must_use]
    pub fn holds(&self, life: Life, last: u64) -> bool {
        let holds = |range: &Range| range.life == life && range.index <= last;
        self.series.values().any(|series| series.ranges.values().any(holds))
    }

    /// For whom ranges are kept ready: these two, and those lives of theirs that are sealed.
    #[must_use]
    pub fn holders(&self, vaults: [Present; 2]) -> Vec<Present> {
        let sealed = vaults.each_ref().map(|vault| {
            let life = self.sealed(&vault.name)?;
            Some(Present { name: vault.name.clone(), life, proven: None })
        });
        vaults.into_iter().chain(sealed.into_iter().flatten()).collect()
    }

    fn born(&mut self, vault: &str, birth: Birth) {
        self.sealed.remove(&birth.life);
        if let Some(former) = self.present.insert(vault.to_owned(), birth.life) {
            let state = if birth.proven && birth.former == Some(former) {
                LifeState::Proven
            } else {
                LifeState::Lost
            };
            self.lives.insert(former, state);
            // One that lost what it answered may have lost that a token was used, too.
            if state == LifeState::Lost {
                let (lost, kept) =
                    std::mem::take(&mut self.sealed).into_iter().partition(|(_, of)| of == vault);
                self.sealed = kept;
                let lost: BTreeMap<Life, String> = lost;
                self.lives.extend(lost.into_keys().map(|life| (life, LifeState::Lost)));
            }
        }
        if birth.life != NOBODY {
            self.lives.insert(birth.life, LifeState::Present);
        }
    }

    /// What the owner enters for a token.
    #[must_use]
    pub fn sealing(&self, vault: &str, life: Life, at: i64) -> Draft {
        Draft { key: vault.to_owned(), ..about(&SeriesName::default(), 0, Act::Seal(life), at) }
    }

    /// What is only to be read, about a vault.
    #[must_use]
    pub fn noting(&self, vault: &str, text: String, at: i64) -> Draft {
        Draft { key: vault.to_owned(), ..about(&SeriesName::default(), 0, Act::Note(text), at) }
    }

    /// What a vault enters that begins its sealed life. `proven`: as in [`Present`].
    #[must_use]
    pub fn begun(&self, vault: &str, life: Life, proven: Option<Life>, at: i64) -> Draft {
        let former = self.present.get(vault).copied();
        let act = Act::Life(Birth { life, former, proven: former.is_some() && former == proven });
        Draft { key: vault.to_owned(), ..about(&SeriesName::default(), 0, act, at) }
    }

    /// What the owner must enter first in a session of these two: the lives that begin, and those of
    /// vaults that are no more of the pair.
    #[must_use]
    pub fn births(&self, vaults: [&Present; 2], at: i64) -> Vec<Draft> {
        let fresh = vaults.into_iter().filter(|vault| self.present.get(&vault.name) != Some(&vault.life));
        // A vault in whose place one of another name stands: what it answered last nobody knows.
        let replaced = self
            .present
            .iter()
            .filter(|(name, life)| **life != NOBODY && vaults.iter().all(|vault| vault.name != **name));
        let ended = replaced.map(|(name, life)| {
            let act = Act::Life(Birth { life: NOBODY, former: Some(*life), proven: false });
            Draft { key: name.clone(), ..about(&SeriesName::default(), 0, act, at) }
        });
        let born = fresh.map(|vault| {
            let former = self.present.get(&vault.name).copied();
            let proven = former.is_some() && former == vault.proven;
            let act = Act::Life(Birth { life: vault.life, former, proven });
            Draft { key: vault.name.clone(), ..about(&SeriesName::default(), 0, act, at) }
        });
        born.chain(ended).collect()
    }

    /// Looks at the next of the entries that were not answered from before this session: a key
    /// whose ticket's life is lost may have been answered by that life alone, and a range that was
    /// given back without its holder's knowledge may have been given from.
    pub fn doubt(&self, doubts: &mut Doubts, entries: &[Entry], at: i64) {
        for entry in entries {
            let name = name_of(entry);
            let (is_range, act) = match entry.act {
                // A life that made the entry itself answered nothing else.
                Act::Reserve(Some(ticket)) if self.is_lost(ticket) && entry.life != ticket => {
                    (false, Some(Act::Doubt))
                }
                Act::Close(grant) if self.is_lost(grant.life) => (true, Some(Act::Lost(grant))),
                Act::Lost(_) => (true, None),
                Act::Displace(_) | Act::Doubt | Act::Confirm(_) | Act::Void(_) | Act::Supersede(_) => {
                    (false, None)
                }
                _ => continue,
            };
            match act {
                Some(act) if self.series.contains_key(&name) => {
                    let draft = Draft { key: entry.key.clone(), ..about(&name, entry.number, act, at) };
                    doubts.0.insert((name, entry.number, is_range), draft);
                }
                _ => drop(doubts.0.remove(&(name, entry.number, is_range))),
            }
        }
    }

    /// Ranges of a series that must be granted now, so that each of the two holds an open one of its
    /// present life, unused and well ahead of what sessions give.
    #[must_use]
    pub fn grants(&self, name: &SeriesName, vaults: &[Present], at: i64) -> Vec<Draft> {
        let mut drafts = Vec::new();
        let (Some(series), size @ 1..) = (self.series(name), self.size(name)) else { return drafts };
        // Some numbers before the ranges are for sessions.
        let mut highest = series.highest().max(series.coming().saturating_add(size - 1));
        for vault in vaults {
            if series.ranges().any(|(from, range)| series.serves(size, from, range, vault)) {
                continue;
            }
            let to = highest.saturating_add(size);
            if to <= i64::MAX as u64 {
                let act = Act::Grant(Grant { to, life: vault.life });
                drafts.push(Draft { key: vault.name.clone(), ..about(name, highest + 1, act, at) });
                highest = to;
            }
        }
        drafts
    }

    /// Ranges of a series that must be ended now: of former lives, used ones, and those that
    /// sessions come near. To be asked when [`Standing::grants`] has nothing more to grant and what
    /// it granted is final.
    #[must_use]
    pub fn ends(&self, name: &SeriesName, vaults: &[Present], at: i64) -> Vec<Draft> {
        let (Some(series), size) = (self.series(name), self.size(name)) else { return Vec::new() };
        let serves = |from, range: &Range| {
            size > 0 && vaults.iter().any(|vault| series.serves(size, from, range, vault))
        };
        let end = |(from, range): (u64, &Range)| {
            let present = vaults.iter().any(|v| v.name == range.holder && v.life == range.life);
            let over = matches!(self.life(range.life), Some(LifeState::Proven | LifeState::Replaced));
            let known = present || over;
            let grant = Grant { to: range.to, life: range.life };
            let act = if known { Act::Close(grant) } else { Act::Lost(grant) };
            Draft { key: range.holder.clone(), ..about(name, from, act, at) }
        };
        series.ranges().filter(|(from, range)| !serves(*from, range)).map(end).collect()
    }
}

/// What is doubtful of the entries looked at so far: numbers, and ranges that were given back.
#[derive(Debug, Clone, Default)]
pub struct Doubts(BTreeMap<(SeriesName, u64, bool), Draft>);

impl Doubts {
    /// What must be entered for the first so many of them.
    #[must_use]
    pub fn drafts(&self, most: usize) -> Vec<Draft> {
        self.0.values().take(most).cloned().collect()
    }
}

/// A vault in a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Present {
    /// Its name.
    pub name: String,
    /// Its life.
    pub life: Life,
    /// The former life of which all is known, by the vault's own proof.
    pub proven: Option<Life>,
}

impl Series {
    /// Is this range what that vault shall hold: of its life, unused, not near what sessions give?
    fn serves(&self, size: u64, from: u64, range: &Range, vault: &Present) -> bool {
        range.holder == vault.name
            && range.life == vault.life
            && range.used.is_empty()
            && range.to - from + 1 == size
            && from > self.coming().saturating_add(size / 4)
    }

    /// What a session gives next.
    fn coming(&self) -> u64 {
        self.next(0).unwrap_or(i64::MAX as u64)
    }
}

fn name_of(entry: &Entry) -> SeriesName {
    SeriesName { owner: entry.owner.clone(), series: entry.series.clone() }
}

fn about(name: &SeriesName, number: u64, act: Act, at: i64) -> Draft {
    let SeriesName { owner, series } = name.clone();
    Draft { owner, series, number, key: String::new(), act, at, carried: None }
}
