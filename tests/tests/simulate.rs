//! Seeded histories of the pure pair protocol: two vaults, two disks that forget what was not
//! synced, a network that cuts, delays and repeats, crashes between any two steps. Asserts that
//! no number is given twice, none is skipped, and none that was answered is lost. A failure
//! prints its seed; `SEEDS` sets how many histories run, `SEED` runs one.
//!
//! Each safeguard has a control: with it taken away, the same checks must fail.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use shared::api::{Number, NumberState};
use vault::sequence::book::{Context, Known, Round, SeriesName, Verdict, Wish};
use vault::sequence::entry::{Act, BATCH, Entry, Tail, verified};
use vault::sequence::protocol::{Core, Input, Memory, Message, Output};

/// What is taken away from a history to see whether the checks notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Control {
    Nothing,
    /// The disk says "durable" before it is.
    DiskLies,
    /// Callers are answered although the entry may be on one disk only.
    AnswersInDoubt,
    /// A lost journal is taken for a new one, on both sides.
    LossPassesUnseen,
}

/// SplitMix64: the sequence is the seed's alone.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
    fn nonce(&mut self) -> u128 {
        (u128::from(self.next()) << 64) | u128::from(self.next())
    }
    /// A place in a list of that length.
    fn place(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap_or(0)
    }
    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

#[derive(Debug, Clone)]
struct Disk {
    memory: Memory,
    entries: Vec<Entry>,
}

impl Disk {
    fn new(random: &mut Random) -> Self {
        let memory = Memory { journal: random.nonce(), epoch: 1, peer_journal: None, peer_durable: 0 };
        Self { memory, entries: Vec::new() }
    }
    fn tail(&self) -> Tail {
        self.entries.last().map_or_else(Tail::default, Entry::tail)
    }
    fn apply(&mut self, entries: &[Entry], memory: Memory) {
        self.entries.extend_from_slice(entries);
        self.memory = memory;
    }
    /// The numbers as the entries leave them.
    fn known(&self, pick: impl Fn(&Entry) -> bool) -> Option<Known> {
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
    fn context(&self, name: &SeriesName, wish: &Wish) -> Context {
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

struct Vault {
    name: &'static str,
    disk: Disk,
    core: Option<Core>,
    /// Handed to the disk, not yet reported durable.
    writing: Option<(Vec<Entry>, Memory)>,
    /// A lying disk's cache: reported durable, lost by a crash.
    cache: Vec<(Vec<Entry>, Memory)>,
    waiting: Vec<(SeriesName, Wish)>,
    under_way: Vec<(SeriesName, Wish)>,
    damaged: bool,
}

impl Vault {
    /// What the process sees of its disk, cache included.
    fn seen(&self) -> Disk {
        let mut disk = self.disk.clone();
        for (entries, memory) in &self.cache {
            disk.apply(entries, *memory);
        }
        disk
    }
}

struct World {
    random: Random,
    control: Control,
    vaults: [Vault; 2],
    /// Messages under way, by receiver.
    network: [VecDeque<Message>; 2],
    /// Everything ever said, to be repeated out of season.
    old: Vec<(usize, Message)>,
    connected: bool,
    /// What callers were told: key to number, per series.
    answered: BTreeMap<(SeriesName, String), u64>,
    final_numbers: BTreeMap<(SeriesName, u64), String>,
    next_key: u64,
    log: Vec<String>,
}

type Checked = Result<(), String>;

impl World {
    fn new(seed: u64, control: Control) -> Self {
        let mut random = Random(seed);
        let vault = |name, random: &mut Random| Vault {
            name,
            disk: Disk::new(random),
            core: None,
            writing: None,
            cache: Vec::new(),
            waiting: Vec::new(),
            under_way: Vec::new(),
            damaged: false,
        };
        let vaults = [vault("a", &mut random), vault("b", &mut random)];
        let mut world = Self {
            random,
            control,
            vaults,
            network: [VecDeque::new(), VecDeque::new()],
            old: Vec::new(),
            connected: false,
            answered: BTreeMap::new(),
            final_numbers: BTreeMap::new(),
            next_key: 0,
            log: Vec::new(),
        };
        world.start(0);
        world.start(1);
        world
    }

    fn start(&mut self, who: usize) {
        let life = self.random.nonce();
        let vault = &mut self.vaults[who];
        vault.core = Some(Core::new(vault.name, "a", life, vault.disk.memory, vault.disk.tail()));
    }

    fn input(&mut self, who: usize, input: Input) -> Checked {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let Some(core) = &mut self.vaults[who].core else { return Ok(()) };
            let outputs = core.step(input);
            for output in outputs {
                match output {
                    Output::Send(message) => {
                        if self.connected {
                            self.network[1 - who].push_back(message.clone());
                            self.old.push((1 - who, message));
                        }
                    }
                    Output::Write(entries, memory) => {
                        if self.control == Control::DiskLies {
                            self.vaults[who].cache.push((entries, memory));
                            inputs.push_back(Input::Written);
                        } else {
                            self.vaults[who].writing = Some((entries, memory));
                        }
                    }
                    Output::Load(after) => {
                        let entries = self.vaults[who]
                            .seen()
                            .entries
                            .iter()
                            .filter(|entry| entry.index > after)
                            .take(BATCH.min(3))
                            .cloned()
                            .collect();
                        inputs.push_back(Input::Loaded(after, entries));
                    }
                    Output::Final => self.answer_round(who)?,
                    Output::InDoubt if self.control == Control::AnswersInDoubt => {
                        if let Some((entries, memory)) = self.vaults[who].writing.clone() {
                            let kept = self.vaults[who].disk.clone();
                            self.vaults[who].disk.apply(&entries, memory);
                            let told = self.answer_round(who);
                            self.vaults[who].disk = kept;
                            told?;
                        }
                    }
                    Output::InDoubt => self.vaults[who].under_way.clear(),
                    Output::HangUp => self.cut()?,
                }
            }
        }
        Ok(())
    }

    /// The callers of the round hear their numbers.
    fn answer_round(&mut self, who: usize) -> Checked {
        for (name, wish) in std::mem::take(&mut self.vaults[who].under_way) {
            let known = self.vaults[who].seen().context(&name, &wish).known;
            let known = known.ok_or_else(|| format!("{wish:?} is final and not in the journal"))?;
            self.told(&name, &known.number.key, known.number.number)?;
        }
        Ok(())
    }

    /// A caller hears that `key` has `number`: the heart of the matter.
    fn told(&mut self, name: &SeriesName, key: &str, number: u64) -> Checked {
        self.log.push(format!("told {key} = {number}"));
        if let Some(old) = self.answered.insert((name.clone(), key.to_owned()), number)
            && old != number
        {
            return Err(format!("key {key} was told {old}, now {number}"));
        }
        match self.final_numbers.insert((name.clone(), number), key.to_owned()) {
            Some(old) if old != key => Err(format!("number {number} was given to {old}, now to {key}")),
            _ => Ok(()),
        }
    }

    /// Any vault may answer what is final, at any time, together or alone.
    fn look_up(&mut self, who: usize) -> Checked {
        let Some(core) = &self.vaults[who].core else { return Ok(()) };
        let last = core.final_index();
        let disk = self.vaults[who].seen();
        let numbers: Vec<_> = disk
            .entries
            .iter()
            .filter(|entry| entry.index <= last && entry.act == Act::Reserve)
            .map(|entry| {
                let name = SeriesName { owner: entry.owner.clone(), series: entry.series.clone() };
                (name, entry.key.clone(), entry.number)
            })
            .collect();
        for (name, key, number) in numbers {
            self.told(&name, &key, number)?;
        }
        Ok(())
    }

    fn wish(&mut self) {
        let series = if self.random.chance(70) { "INV" } else { "CRN" };
        let name = SeriesName { owner: "erp".to_owned(), series: series.to_owned() };
        let wish = match self.random.below(10) {
            0..=5 => {
                self.next_key += 1;
                Wish::Reserve { key: format!("k{}", self.next_key) }
            }
            6 | 7 => Wish::Reserve { key: format!("k{}", 1 + self.random.below(self.next_key + 1)) },
            8 => Wish::Confirm {
                number: 1 + self.random.below(6),
                document_hash: format!("h{}", self.random.below(2)),
            },
            _ => Wish::Void { number: 1 + self.random.below(6), reason: "torn".to_owned() },
        };
        self.vaults[0].waiting.push((name, wish));
    }

    fn propose(&mut self) -> Checked {
        let vault = &mut self.vaults[0];
        if !vault.core.as_ref().is_some_and(Core::may_propose) || vault.waiting.is_empty() {
            return Ok(());
        }
        let seen = vault.seen();
        let mut round = Round::default();
        let mut drafts = Vec::new();
        let mut answers = Vec::new();
        for (name, wish) in std::mem::take(&mut vault.waiting) {
            match round.decide(&name, &wish, seen.context(&name, &wish), 0) {
                Verdict::Answer(known) => answers.push((name, known)),
                Verdict::Refuse(_) => {}
                Verdict::Make(draft) => {
                    drafts.push(draft);
                    vault.under_way.push((name, wish));
                }
                Verdict::Wait => vault.waiting.push((name, wish)),
            }
        }
        for (name, known) in answers {
            self.told(&name, &known.number.key, known.number.number)?;
        }
        if drafts.is_empty() { Ok(()) } else { self.input(0, Input::Propose(drafts)) }
    }

    fn connect(&mut self) -> Checked {
        if self.connected || self.vaults.iter().any(|vault| vault.core.is_none()) {
            return Ok(());
        }
        self.connected = true;
        for who in 0..2 {
            let nonce = self.random.nonce();
            self.input(who, Input::Connected(nonce))?;
        }
        Ok(())
    }

    fn cut(&mut self) -> Checked {
        if !self.connected {
            return Ok(());
        }
        self.connected = false;
        self.network = [VecDeque::new(), VecDeque::new()];
        self.input(0, Input::Disconnected)?;
        self.input(1, Input::Disconnected)
    }

    fn deliver(&mut self, who: usize) -> Checked {
        match self.network[who].pop_front() {
            Some(message) => self.input(who, Input::Received(message)),
            None => Ok(()),
        }
    }

    /// Something said long ago arrives now. (A greeting cannot: it opens its own connection.)
    fn repeat(&mut self) -> Checked {
        if self.old.is_empty() {
            return Ok(());
        }
        let pick = self.random.place(self.old.len());
        let (who, message) = self.old[pick].clone();
        match message {
            Message::Hello(_) => Ok(()),
            message if self.is_current(&message) => Ok(()),
            message => self.input(who, Input::Received(message)),
        }
    }

    /// Within one connection the transport neither repeats nor reorders.
    fn is_current(&self, message: &Message) -> bool {
        let session = |message: &Message| match message {
            Message::Append { session, .. }
            | Message::Acknowledge { session, .. }
            | Message::Fetch { session, .. }
            | Message::Fetched { session, .. }
            | Message::Grant { session, .. } => Some(*session),
            Message::Hello(_) => None,
        };
        let last = self.old.iter().rev().find_map(|(_, old)| session(old));
        session(message) == last
    }

    fn disk_finishes(&mut self, who: usize) -> Checked {
        if let Some((entries, memory)) = self.vaults[who].cache.first().cloned() {
            self.vaults[who].cache.remove(0);
            self.vaults[who].disk.apply(&entries, memory);
        }
        match self.vaults[who].writing.take() {
            Some((entries, memory)) => {
                self.vaults[who].disk.apply(&entries, memory);
                self.input(who, Input::Written)
            }
            None => Ok(()),
        }
    }

    fn disk_fails(&mut self, who: usize) -> Checked {
        match self.vaults[who].writing.take() {
            Some(_) => self.input(who, Input::WriteFailed),
            None => Ok(()),
        }
    }

    fn crash(&mut self, who: usize) -> Checked {
        let hit_the_disk = self.random.chance(50);
        let vault = &mut self.vaults[who];
        if let Some((entries, memory)) = vault.writing.take()
            && hit_the_disk
        {
            vault.disk.apply(&entries, memory);
        }
        vault.cache.clear();
        vault.waiting.clear();
        vault.under_way.clear();
        vault.core = None;
        self.cut()
    }

    /// One vault's disk is lost, or an old copy of it is put back.
    fn damage(&mut self, who: usize) -> Checked {
        let unseen = self.control == Control::LossPassesUnseen;
        if !unseen && self.vaults.iter().any(|vault| vault.damaged) {
            return Ok(());
        }
        self.crash(who)?;
        let roll_back = self.random.chance(50);
        let fresh = Disk::new(&mut self.random);
        let keep = self.random.place(self.vaults[who].disk.entries.len().max(1));
        let vault = &mut self.vaults[who];
        vault.damaged = true;
        if roll_back && !unseen {
            vault.disk.entries.truncate(keep);
            vault.disk.memory.peer_durable = vault.disk.memory.peer_durable.min(vault.disk.tail().index);
        } else {
            vault.disk = fresh;
        }
        if unseen {
            for vault in &mut self.vaults {
                vault.disk.memory.peer_journal = None;
                vault.disk.memory.peer_durable = 0;
            }
        }
        Ok(())
    }

    fn step(&mut self, with_damage: bool) -> Checked {
        let who = self.random.place(2);
        match self.random.below(100) {
            0..=21 => self.deliver(0),
            22..=43 => self.deliver(1),
            44..=57 => self.disk_finishes(who),
            58..=71 => {
                self.wish();
                Ok(())
            }
            72..=81 => self.propose(),
            82..=87 => self.connect(),
            88..=89 => self.cut(),
            90..=91 => self.look_up(who),
            92..=93 => self.repeat(),
            94 => self.disk_fails(who),
            95..=96 => self.crash(who),
            97..=98 => {
                if self.vaults[who].core.is_none() {
                    self.start(who);
                }
                Ok(())
            }
            _ if with_damage && self.random.chance(20) => self.damage(who),
            _ => Ok(()),
        }
    }

    /// Everything comes back and settles; then both journals must tell the same, whole story.
    fn settle(&mut self) -> Checked {
        for who in 0..2 {
            if self.vaults[who].core.is_none() {
                self.start(who);
            }
        }
        for _ in 0..2_000 {
            self.connect()?;
            for who in 0..2 {
                self.deliver(who)?;
                self.disk_finishes(who)?;
            }
            self.propose()?;
        }
        let refused: Vec<_> =
            self.vaults.iter().filter_map(|v| v.core.as_ref().and_then(Core::refusal)).collect();
        if self.vaults.iter().any(|vault| vault.damaged) {
            // A damaged pair may stay closed; what it does say is checked all the same.
            return self.intact_journal_has_everything();
        }
        if !refused.is_empty() {
            return Err(format!("an undamaged pair does not come together again: {refused:?}"));
        }
        let [a, b] = [self.vaults[0].seen(), self.vaults[1].seen()];
        if a.entries != b.entries {
            return Err("the journals differ after both came back".to_owned());
        }
        self.look_up(0)?;
        self.look_up(1)?;
        whole(&a.entries)?;
        self.recorded(&a.entries)
    }

    fn intact_journal_has_everything(&mut self) -> Checked {
        for who in 0..2 {
            if !self.vaults[who].damaged {
                self.look_up(who)?;
                let entries = self.vaults[who].seen().entries;
                self.recorded(&entries)?;
            }
        }
        Ok(())
    }

    /// Whatever a caller was told stands in the ledger.
    fn recorded(&self, entries: &[Entry]) -> Checked {
        for ((name, key), number) in &self.answered {
            let found = entries.iter().any(|entry| {
                entry.act == Act::Reserve
                    && entry.owner == name.owner
                    && entry.series == name.series
                    && entry.key == *key
                    && entry.number == *number
            });
            if !found {
                return Err(format!("{key} was told {number}, and the ledger does not know it"));
            }
        }
        Ok(())
    }
}

/// The chain holds, numbers rise by one, no key and no number stands twice.
fn whole(entries: &[Entry]) -> Checked {
    if verified(Tail::default(), entries).is_none() {
        return Err("the chain is broken".to_owned());
    }
    let mut last: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    let mut keys = BTreeSet::new();
    for entry in entries.iter().filter(|entry| entry.act == Act::Reserve) {
        let last = last.entry((&entry.owner, &entry.series)).or_insert(0);
        if entry.number != *last + 1 {
            return Err(format!("{} follows {last} in {}", entry.number, entry.series));
        }
        *last = entry.number;
        if !keys.insert((&entry.series, &entry.key)) {
            return Err(format!("key {} stands twice", entry.key));
        }
    }
    Ok(())
}

fn history(seed: u64, control: Control, with_damage: bool) -> Result<usize, String> {
    let mut world = World::new(seed, control);
    let mut run = || {
        for _ in 0..400 {
            world.step(with_damage)?;
        }
        world.settle()
    };
    match run() {
        Ok(()) => Ok(world.answered.len()),
        Err(why) => {
            let from = world.log.len().saturating_sub(12);
            Err(format!("seed {seed}: {why}\n{}", world.log[from..].join("\n")))
        }
    }
}

fn seeds() -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(3_000),
    }
}

#[test]
fn crashes_cuts_and_lost_writes_never_give_a_number_twice_or_skip_one() {
    let mut answered = 0;
    for seed in seeds() {
        answered += history(seed, Control::Nothing, false).unwrap_or_else(|why| panic!("{why}"));
    }
    assert!(answered > 0, "histories in which nobody is answered prove nothing");
}

#[test]
fn a_lost_or_rolled_back_journal_never_leads_to_a_number_given_twice() {
    let mut answered = 0;
    for seed in seeds() {
        answered += history(seed, Control::Nothing, true).unwrap_or_else(|why| panic!("{why}"));
    }
    assert!(answered > 0, "histories in which nobody is answered prove nothing");
}

/// A number given twice must turn up within as many histories as the gate can afford.
fn must_give_a_number_twice(control: Control, with_damage: bool) {
    let twice = |seed| history(seed, control, with_damage).is_err_and(|why| why.contains("was given to"));
    assert!((0..3_000).any(twice), "{control:?} passes unnoticed: the checks check nothing");
}

#[test]
fn control_a_disk_that_answers_before_it_has_synced_is_noticed() {
    must_give_a_number_twice(Control::DiskLies, false);
}

#[test]
fn control_answering_what_is_in_doubt_is_noticed() {
    must_give_a_number_twice(Control::AnswersInDoubt, false);
}

#[test]
fn control_a_loss_that_passes_unseen_is_noticed() {
    must_give_a_number_twice(Control::LossPassesUnseen, true);
}
