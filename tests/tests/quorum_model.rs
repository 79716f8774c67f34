//! Seeded histories of two vaults whose ledger is etcd: one register that appends only where it is
//! told it ends, answers that are lost, appends that arrive long after, crashes between any two
//! steps, journals that lose their end, or are deleted. Asserts that no number is given twice, none
//! is skipped, none that was answered is lost or denied, and that whoever was told *no* got nothing.
//! A failure prints its seed; `SEEDS` sets how many histories run, `SEED` runs one.
//!
//! Each safeguard has a control: with it taken away, the same checks must fail.
#![expect(clippy::unwrap_used, reason = "a model's own steps fail the model when they fail")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use shared::api::Number;
use vault::sequence::book::{Context, Known, Round, SeriesName, Verdict, Wish};
use vault::sequence::entry::{Act, Entry, Life, Tail, verified};
use vault::sequence::quorum::core::{Core, Input, Output};
use vault::sequence::standing::Standing;

/// A safeguard that is taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Control {
    Nothing,
    /// etcd appends wherever it is told, without comparing.
    NoCompare,
    /// A lost answer counts as *no*.
    LostIsNo,
    /// A reader is answered from the journal as it is.
    NoLook,
}

/// Chance that a seed repeats (`SplitMix64`).
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((mixed ^ (mixed >> 31)) % end.max(1) as u64).unwrap()
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// etcd, as its users see it.
#[derive(Default)]
struct Register {
    entries: Vec<Entry>,
    /// On their way; they may arrive at any time, or never.
    late: Vec<(Tail, Vec<Entry>)>,
}

impl Register {
    fn end(&self) -> Tail {
        self.entries.last().map_or_else(Tail::default, Entry::tail)
    }

    fn append(&mut self, after: Tail, entries: Vec<Entry>, control: Control) -> bool {
        if self.end() != after && control != Control::NoCompare {
            return false;
        }
        self.entries.truncate(usize::try_from(after.index).unwrap());
        self.entries.extend(entries);
        true
    }
}

struct Vault {
    core: Core,
    disk: Vec<Entry>,
    /// How far the ledger is known to go, outside the journal.
    noted: u64,
    to_do: VecDeque<Output>,
    current: bool,
    waiting: VecDeque<String>,
    under_way: Vec<String>,
    /// Who wants to know a key's number, and whether it had been told before they asked.
    readers: Vec<(String, bool)>,
    asked: Vec<(String, bool)>,
}

struct World {
    dice: Dice,
    control: Control,
    etcd: Register,
    vaults: [Vault; 2],
    lives: Life,
    told: BTreeMap<String, u64>,
    /// Keys that were asked for once, and told *no*.
    refused: BTreeSet<String>,
    /// How often each key was asked for.
    calls: BTreeMap<String, u32>,
    keys: usize,
    log: Vec<String>,
}

fn vault(life: Life, disk: Vec<Entry>, noted: u64) -> Vault {
    let tail = disk.last().map_or_else(Tail::default, Entry::tail);
    Vault {
        core: Core::new(life, 1, tail, noted),
        disk,
        noted,
        to_do: VecDeque::new(),
        current: false,
        waiting: VecDeque::new(),
        under_way: Vec::new(),
        readers: Vec::new(),
        asked: Vec::new(),
    }
}

fn name() -> SeriesName {
    SeriesName { owner: "erp".to_owned(), series: "INV".to_owned() }
}

/// What the journal says of a key.
fn context(disk: &[Entry], key: &str) -> Context {
    let entry = disk.iter().find(|entry| entry.key == key);
    let known = entry.map(|entry| Known {
        number: Number::reserved("INV".to_owned(), entry.number, key.to_owned(), String::new()),
        index: entry.index,
    });
    Context { known, last: disk.iter().map(|entry| entry.number).max().unwrap_or(0) }
}

impl World {
    fn new(seed: u64, control: Control) -> Self {
        Self {
            dice: Dice(seed.wrapping_mul(0x2545_F491_4F6C_DD1D) + 1),
            control,
            etcd: Register::default(),
            vaults: [vault(1, Vec::new(), 0), vault(2, Vec::new(), 0)],
            lives: 2,
            told: BTreeMap::new(),
            refused: BTreeSet::new(),
            calls: BTreeMap::new(),
            keys: 0,
            log: Vec::new(),
        }
    }

    fn step(&mut self) -> Result<(), String> {
        let place = self.dice.below(2);
        match self.dice.below(100) {
            0..12 => self.call(place),
            12..18 => self.look_up(place),
            18..22 => self.arrive(),
            22..24 => self.crash(place),
            _ => self.go_on(place)?,
        }
        Ok(())
    }

    /// A caller with a new key, or one that was asked for before, at either vault.
    fn call(&mut self, place: usize) {
        let key = if self.keys == 0 || self.dice.chance(60) { self.keys } else { self.dice.below(self.keys) };
        self.keys = self.keys.max(key + 1);
        let key = format!("k{key}");
        self.refused.remove(&key);
        *self.calls.entry(key.clone()).or_default() += 1;
        self.vaults[place].waiting.push_back(key);
    }

    fn look_up(&mut self, place: usize) {
        let key = format!("k{}", self.dice.below(self.keys + 1));
        let before = self.told.contains_key(&key);
        self.vaults[place].readers.push((key, before));
    }

    /// Something that was long under way reaches etcd.
    fn arrive(&mut self) {
        if self.etcd.late.is_empty() {
            return;
        }
        let which = self.dice.below(self.etcd.late.len());
        let (after, entries) = self.etcd.late.swap_remove(which);
        let done = self.etcd.append(after, entries, self.control);
        self.log.push(format!("late after {}: {done}", after.index));
    }

    /// A process ends between two steps; its machine may lose the journal's end, or all of it.
    fn crash(&mut self, place: usize) {
        self.lives += 1;
        let mut disk = std::mem::take(&mut self.vaults[place].disk);
        match self.dice.below(8) {
            0 => disk.clear(),
            1 | 2 => disk.truncate(self.dice.below(disk.len() + 1)),
            _ => {}
        }
        self.log.push(format!("{place} crashes, keeps {}", disk.len()));
        self.vaults[place] = vault(self.lives, disk, self.vaults[place].noted);
    }

    /// One step of a vault's own.
    fn go_on(&mut self, place: usize) -> Result<(), String> {
        match self.vaults[place].to_do.pop_front() {
            Some(output) => self.carry_out(place, output),
            None => self.begin_round(place),
        }
    }

    fn feed(&mut self, place: usize, input: Input) {
        let vault = &mut self.vaults[place];
        vault.current = false;
        let outputs = vault.core.step(input);
        vault.to_do.extend(outputs);
    }

    fn begin_round(&mut self, place: usize) -> Result<(), String> {
        if !self.vaults[place].current {
            self.feed(place, Input::Ask);
            return Ok(());
        }
        let vault = &mut self.vaults[place];
        vault.asked.append(&mut vault.readers);
        if self.control == Control::NoLook {
            self.answer_readers(place)?;
        }
        let vault = &mut self.vaults[place];
        let (mut round, mut drafts, mut known) = (Round::default(), Vec::new(), Vec::new());
        let mut later = VecDeque::new();
        while let Some(key) = vault.waiting.pop_front() {
            let wish = Wish::Reserve { key: key.clone(), ticket: None };
            let context = context(&vault.disk, &key);
            match round.decide(&name(), &wish, context, &Standing::default(), 0) {
                Verdict::Make(draft) => {
                    drafts.push(draft);
                    vault.under_way.push(key);
                }
                Verdict::Answer(found) => known.push((key, found.number.number)),
                Verdict::Wait => later.push_back(key),
                Verdict::Refuse(refused) => return Err(format!("{key}: {refused}")),
            }
        }
        vault.waiting = later;
        let asks = !vault.asked.is_empty();
        for (key, number) in known {
            self.answer(key, number)?;
        }
        if !drafts.is_empty() {
            self.feed(place, Input::Propose(drafts));
        } else if asks {
            self.feed(place, Input::Ask);
        }
        Ok(())
    }

    fn carry_out(&mut self, place: usize, output: Output) -> Result<(), String> {
        let lost = self.dice.chance(10);
        match output {
            Output::Look if lost => self.lose(place),
            Output::Look => {
                let end = self.etcd.end();
                self.feed(place, Input::Found(end));
            }
            Output::Fetch(_) if lost => self.lose(place),
            Output::Fetch(after) => {
                let rest =
                    self.etcd.entries.get(usize::try_from(after).unwrap()..).unwrap_or_default().to_vec();
                let most = 1 + self.dice.below(rest.len());
                self.feed(place, Input::Fetched(rest.into_iter().take(most).collect()));
            }
            Output::Append(after, entries) => self.append(place, after, entries),
            Output::Write(entries) => match self.dice.below(30) {
                0 => self.feed(place, Input::WriteFailed),
                1 => {
                    self.vaults[place].disk.extend(entries);
                    self.crash(place);
                }
                _ => {
                    let vault = &mut self.vaults[place];
                    vault.disk.extend(entries);
                    vault.noted = vault.disk.len() as u64;
                    self.feed(place, Input::Written);
                }
            },
            Output::Landed(entries) => {
                let keys = std::mem::take(&mut self.vaults[place].under_way);
                for (key, entry) in keys.into_iter().zip(entries) {
                    if key != entry.key {
                        return Err(format!("{key} is answered with the entry of {}", entry.key));
                    }
                    self.answer(key, entry.number)?;
                }
            }
            Output::Passed => {
                let vault = &mut self.vaults[place];
                let again = std::mem::take(&mut vault.under_way);
                again.into_iter().rev().for_each(|key| vault.waiting.push_front(key));
            }
            Output::Current => {
                self.vaults[place].current = true;
                self.answer_readers(place)?;
            }
            Output::Closed(reason) => return Err(format!("{place} is closed: {reason}")),
        }
        Ok(())
    }

    /// An append comes through, or not; its answer too, or not.
    fn append(&mut self, place: usize, after: Tail, entries: Vec<Entry>) {
        let fate = self.dice.below(100);
        match fate {
            0..70 => {
                let done = self.etcd.append(after, entries, self.control);
                self.log.push(format!("{place} appends after {}: {done}", after.index));
                self.feed(place, if done { Input::Appended } else { Input::Moved });
                return;
            }
            70..80 => {
                let done = self.etcd.append(after, entries, self.control);
                self.log.push(format!("{place} appends after {}: {done}, and hears nothing", after.index));
            }
            80..90 => {
                self.log.push(format!("{place} appends after {}: on its way", after.index));
                self.etcd.late.push((after, entries));
            }
            90..96 => self.log.push(format!("{place} appends after {}: lost", after.index)),
            _ => {
                self.log.push(format!("{place} appends after {}: refused", after.index));
                self.feed(place, Input::Refused);
                return;
            }
        }
        if self.control == Control::LostIsNo {
            self.lives += 1;
            let sent = std::mem::take(&mut self.vaults[place].under_way);
            self.refuse(sent);
            let vault = &mut self.vaults[place];
            let tail = vault.core.tail();
            vault.core = Core::new(self.lives, 1, tail, vault.noted);
        }
        self.lose(place);
    }

    /// The connection breaks. Whoever was not sent may be refused; whoever was is not.
    fn lose(&mut self, place: usize) {
        let vault = &mut self.vaults[place];
        vault.to_do.clear();
        vault.current = false;
        if self.dice.chance(30) {
            let waiting = std::mem::take(&mut self.vaults[place].waiting);
            self.refuse(waiting);
        }
    }

    fn refuse(&mut self, keys: impl IntoIterator<Item = String>) {
        for key in keys {
            if self.calls.get(&key) == Some(&1) {
                self.refused.insert(key);
            }
        }
    }

    fn answer(&mut self, key: String, number: u64) -> Result<(), String> {
        self.log.push(format!("{key} is told {number}"));
        if let Some((other, _)) = self.told.iter().find(|(other, told)| **told == number && **other != key) {
            return Err(format!("{number} was given to {other} and {key}"));
        }
        match self.told.insert(key.clone(), number) {
            Some(before) if before != number => Err(format!("{key} was told {before} and {number}")),
            _ => Ok(()),
        }
    }

    fn answer_readers(&mut self, place: usize) -> Result<(), String> {
        let vault = &mut self.vaults[place];
        for (key, before) in std::mem::take(&mut vault.asked) {
            let found = context(&vault.disk, &key).known.map(|known| known.number.number);
            match (found, self.told.get(&key)) {
                (None, Some(told)) if before => return Err(format!("{key} has {told}, which is denied")),
                (Some(found), Some(told)) if found != *told => {
                    return Err(format!("{key} was told {told}, and {found} is read"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// No trouble any more: everything that waits is answered, and both know the same.
    fn settle(&mut self) -> Result<(), String> {
        for _ in 0..10_000 {
            let busy = |vault: &Vault| {
                !vault.current
                    || !vault.to_do.is_empty()
                    || !vault.waiting.is_empty()
                    || !vault.under_way.is_empty()
            };
            let behind = |vault: &Vault| vault.disk.len() < self.etcd.entries.len();
            let Some(place) = (0..2).find(|place| busy(&self.vaults[*place]) || behind(&self.vaults[*place]))
            else {
                break;
            };
            if !busy(&self.vaults[place]) {
                self.feed(place, Input::Ask);
            }
            self.go_on(place)?;
        }
        for vault in &self.vaults {
            if vault.disk != self.etcd.entries {
                return Err("a journal is not what etcd holds".to_owned());
            }
        }
        if verified(Tail::default(), &self.etcd.entries).is_none() {
            return Err("the chain is broken".to_owned());
        }
        let numbers: Vec<u64> = self.etcd.entries.iter().map(|entry| entry.number).collect();
        if numbers != (1..=numbers.len() as u64).collect::<Vec<_>>() {
            return Err(format!("numbers are skipped or given twice: {numbers:?}"));
        }
        let of_key: BTreeMap<&str, u64> =
            self.etcd.entries.iter().map(|entry| (entry.key.as_str(), entry.number)).collect();
        if of_key.len() != numbers.len() {
            return Err("a key has two numbers".to_owned());
        }
        if let Some((key, told)) = self.told.iter().find(|(key, told)| of_key.get(key.as_str()) != Some(told))
        {
            return Err(format!("{key} was told {told}, which is lost"));
        }
        if let Some(key) = self.refused.iter().find(|key| of_key.contains_key(key.as_str())) {
            return Err(format!("{key} was refused, and has a number"));
        }
        debug_assert!(self.etcd.entries.iter().all(|entry| matches!(entry.act, Act::Reserve(None))));
        Ok(())
    }
}

/// How many keys were answered.
fn history(seed: u64, control: Control) -> Result<usize, String> {
    let mut world = World::new(seed, control);
    let mut run = || {
        for _ in 0..if seed % 50 == 49 { 4_000 } else { 400 } {
            world.step()?;
        }
        world.settle()
    };
    run().map(|()| world.told.len()).map_err(|why| {
        let from = world.log.len().saturating_sub(12);
        format!("seed {seed}: {why}\n{}", world.log[from..].join("\n"))
    })
}

fn seeds() -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(2_000),
    }
}

#[test]
fn lost_answers_late_arrivals_and_crashes_never_give_a_number_twice_or_skip_one() {
    let answered: usize =
        seeds().map(|seed| history(seed, Control::Nothing).unwrap_or_else(|why| panic!("{why}"))).sum();
    assert!(answered > 10 * seeds().count(), "histories in which nobody is answered prove nothing");
}

fn must_fail(control: Control, how: &[&str]) {
    let found = (0..2_000).find_map(|seed| history(seed, control).err());
    let found = found.unwrap_or_else(|| panic!("{control:?} is not noticed"));
    assert!(how.iter().any(|how| found.contains(how)), "{found}");
}

#[test]
fn without_comparison_the_same_checks_find_the_damage() {
    must_fail(Control::NoCompare, &["was given to", "was told", "closed", "lost"]);
}

#[test]
fn a_lost_answer_that_counts_as_no_is_found_out() {
    must_fail(Control::LostIsNo, &["was refused, and has a number"]);
}

#[test]
fn a_reader_who_is_answered_without_asking_etcd_is_denied_what_was_given() {
    must_fail(Control::NoLook, &["is denied"]);
}
