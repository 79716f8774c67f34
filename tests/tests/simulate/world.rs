//! Two vaults, their disks, the network, callers and an operator; everything that can happen to
//! them, and what must hold afterwards. Knows no seeds.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use vault::sequence::book::{Round, SeriesName, Verdict, Wish};
use vault::sequence::entry::{Act, BATCH, Entry, Tail, verified};
use vault::sequence::protocol::{Core, Input, Memory, Message, Output, Reason};
use vault::sequence::witness::Witness;

use crate::disk::{Disk, Random};

/// What is taken away from a history to see whether the checks notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Control {
    Nothing,
    /// The disk says "durable" before it is.
    DiskLies,
    /// Callers are answered although the entry may be on one disk only.
    AnswersInDoubt,
    /// A lost journal is taken for a new one, on both sides.
    LossPassesUnseen,
    /// What a failed write left behind is not overwritten by the next one without entries.
    RemainsLinger,
    /// The operator re-seeds from the vault whose journal was lost or is an old copy.
    ReseedsFromTheWrongSide,
    /// Readers see what is in one journal.
    ReadsAhead,
    /// What the journal does not know is denied at any time.
    DeniesBlindly,
}

pub(crate) struct Vault {
    pub(crate) name: &'static str,
    pub(crate) disk: Disk,
    pub(crate) core: Option<Core>,
    /// Handed to the disk, not yet reported durable.
    pub(crate) writing: Option<(Vec<Entry>, Memory)>,
    /// What a failed write left on the disk; a crash may make it stand.
    pub(crate) remains: Option<(Vec<Entry>, Memory)>,
    /// A copy of the disk that an operator may put back.
    pub(crate) copy: Option<Disk>,
    /// A lying disk's cache: reported durable, lost by a crash.
    pub(crate) cache: Vec<(Vec<Entry>, Memory)>,
    pub(crate) waiting: Vec<(SeriesName, Wish)>,
    pub(crate) under_way: Vec<(SeriesName, Wish)>,
    pub(crate) damaged: bool,
    /// What it remembers of its journal outside of it.
    pub(crate) witness: Option<Witness>,
}

impl Vault {
    /// What the process sees of its disk, cache included.
    pub(crate) fn seen(&self) -> Disk {
        let mut disk = self.disk.clone();
        for (entries, memory) in &self.cache {
            disk.apply(entries, *memory);
        }
        disk
    }
}

pub(crate) struct World {
    pub(crate) random: Random,
    pub(crate) control: Control,
    pub(crate) vaults: [Vault; 2],
    /// Messages under way, by receiver.
    pub(crate) network: [VecDeque<Message>; 2],
    /// Everything ever said, to be repeated out of season.
    pub(crate) old: Vec<(usize, Message)>,
    pub(crate) connected: bool,
    /// What callers were told: key to number, per series.
    pub(crate) answered: BTreeMap<(SeriesName, String), u64>,
    pub(crate) final_numbers: BTreeMap<(SeriesName, u64), String>,
    pub(crate) next_key: u64,
    pub(crate) log: Vec<String>,
}

pub(crate) type Checked = Result<(), String>;

impl World {
    pub(crate) fn new(seed: u64, control: Control) -> Self {
        let mut random = Random(seed);
        let vault = |name, random: &mut Random| Vault {
            name,
            disk: Disk::new(random),
            core: None,
            writing: None,
            remains: None,
            copy: None,
            cache: Vec::new(),
            waiting: Vec::new(),
            under_way: Vec::new(),
            damaged: false,
            witness: None,
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

    pub(crate) fn start(&mut self, who: usize) {
        let life = self.random.nonce();
        let vault = &mut self.vaults[who];
        let core = Core::new(vault.name, "a", life, vault.disk.memory, vault.disk.tail());
        vault.core = Some(core.witnessed(vault.witness));
    }

    pub(crate) fn input(&mut self, who: usize, input: Input) -> Checked {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let Some(core) = &mut self.vaults[who].core else { return Ok(()) };
            let outputs = core.step(input);
            // A disk that lies loses the witness with the rest; the other controls show what its lack costs.
            let blind = [Control::LossPassesUnseen, Control::DiskLies, Control::ReseedsFromTheWrongSide];
            if !blind.contains(&self.control) {
                self.vaults[who].witness = core.witness().or(self.vaults[who].witness);
            }
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
    pub(crate) fn answer_round(&mut self, who: usize) -> Checked {
        for (name, wish) in std::mem::take(&mut self.vaults[who].under_way) {
            let known = self.vaults[who].seen().context(&name, &wish).known;
            let known = known.ok_or_else(|| format!("{wish:?} is final and not in the journal"))?;
            self.told(&name, &known.number.key, known.number.number)?;
        }
        Ok(())
    }

    /// A caller hears that `key` has `number`: the heart of the matter.
    pub(crate) fn told(&mut self, name: &SeriesName, key: &str, number: u64) -> Checked {
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

    /// Any vault may answer what is final, at any time, together or alone; and deny what it
    /// does not know, once it may.
    pub(crate) fn look_up(&mut self, who: usize) -> Checked {
        let Some(core) = &self.vaults[who].core else { return Ok(()) };
        let mut last = core.final_index();
        let disk = self.vaults[who].seen();
        if self.control == Control::ReadsAhead {
            last = disk.tail().index;
        }
        if core.is_complete() || self.control == Control::DeniesBlindly {
            let denies = |why| format!("{} denies that {why}", self.vaults[who].name);
            self.recorded(&disk.entries).map_err(denies)?;
        }
        if self.vaults.iter().all(|vault| !vault.damaged) {
            let other = self.vaults[1 - who].seen().entries;
            let mut seen = disk.entries.iter().take_while(|entry| entry.index <= last);
            let place = |entry: &Entry| usize::try_from(entry.index - 1).unwrap_or(usize::MAX);
            if let Some(alone) = seen.find(|entry| other.get(place(entry)) != Some(*entry)) {
                return Err(format!("entry {} may be read and is on one disk only", alone.index));
            }
        }
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

    pub(crate) fn wish(&mut self) {
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

    pub(crate) fn propose(&mut self) -> Checked {
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

    pub(crate) fn connect(&mut self) -> Checked {
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

    pub(crate) fn cut(&mut self) -> Checked {
        if !self.connected {
            return Ok(());
        }
        self.connected = false;
        self.network = [VecDeque::new(), VecDeque::new()];
        self.input(0, Input::Disconnected)?;
        self.input(1, Input::Disconnected)
    }

    pub(crate) fn deliver(&mut self, who: usize) -> Checked {
        match self.network[who].pop_front() {
            Some(message) => self.input(who, Input::Received(message)),
            None => Ok(()),
        }
    }

    /// Something said long ago arrives now. (A greeting cannot: it opens its own connection.)
    pub(crate) fn repeat(&mut self) -> Checked {
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
    pub(crate) fn is_current(&self, message: &Message) -> bool {
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

    pub(crate) fn disk_finishes(&mut self, who: usize) -> Checked {
        if let Some((entries, memory)) = self.vaults[who].cache.first().cloned() {
            self.vaults[who].cache.remove(0);
            self.vaults[who].disk.apply(&entries, memory);
        }
        match self.vaults[who].writing.take() {
            Some((entries, memory)) => {
                let vault = &mut self.vaults[who];
                if self.control != Control::RemainsLinger || !entries.is_empty() {
                    vault.remains = None;
                }
                vault.disk.apply(&entries, memory);
                self.input(who, Input::Written)
            }
            None => Ok(()),
        }
    }

    pub(crate) fn disk_fails(&mut self, who: usize) -> Checked {
        match self.vaults[who].writing.take() {
            Some(failed) => {
                self.vaults[who].remains = Some(failed);
                self.input(who, Input::WriteFailed)
            }
            None => Ok(()),
        }
    }

    pub(crate) fn crash(&mut self, who: usize) -> Checked {
        let hit_the_disk = self.random.chance(50);
        let vault = &mut self.vaults[who];
        if let Some((entries, memory)) = vault.writing.take().or_else(|| vault.remains.take())
            && hit_the_disk
            && verified(vault.disk.tail(), &entries).is_some()
        {
            vault.disk.apply(&entries, memory);
        }
        vault.remains = None;
        vault.cache.clear();
        vault.waiting.clear();
        vault.under_way.clear();
        vault.core = None;
        self.cut()
    }

    /// One vault's disk is lost, or an old copy of it is put back. Never both before they have
    /// been together again: that no pair survives.
    pub(crate) fn damage(&mut self, who: usize) -> Checked {
        let unseen = self.control == Control::LossPassesUnseen;
        if !unseen && self.vaults.iter().any(|vault| vault.damaged) {
            return Ok(());
        }
        self.crash(who)?;
        let fresh = Disk::new(&mut self.random);
        let put_back = if self.random.chance(50) { self.vaults[who].copy.clone() } else { None };
        let vault = &mut self.vaults[who];
        vault.damaged = true;
        vault.disk = put_back.filter(|_| !unseen).unwrap_or(fresh);
        if unseen {
            for vault in &mut self.vaults {
                vault.disk.memory.peer_journal = None;
                vault.disk.memory.peer_durable = 0;
            }
        }
        Ok(())
    }

    /// Does what the refusals tell an operator to do.
    pub(crate) fn operator(&mut self) -> Checked {
        let Some(mut lost) = self.vaults.iter().position(|vault| vault.damaged) else { return Ok(()) };
        if self.control == Control::ReseedsFromTheWrongSide {
            lost = 1 - lost;
        }
        let refusal = |vault: &Vault| vault.core.as_ref().and_then(Core::refusal);
        let intact = refusal(&self.vaults[1 - lost]).filter(|reason| reason.needs_operator());
        match intact.or_else(|| refusal(&self.vaults[lost])) {
            Some(Reason::PeerRolledBack | Reason::OwnRolledBack | Reason::Forked) => {
                self.crash(lost)?;
                self.vaults[lost].disk = Disk::new(&mut self.random);
                self.start(lost);
                Ok(())
            }
            Some(Reason::PeerJournalLost | Reason::OwnJournalLost) => {
                let may = self.vaults[1 - lost].core.as_ref().is_some_and(Core::may_reseed);
                if may {
                    return self.input(1 - lost, Input::Reseed);
                }
                let disk = &self.vaults[lost].disk;
                if disk.tail().index > 0 || disk.memory.peer_journal.is_some() {
                    self.crash(lost)?;
                    self.vaults[lost].disk = Disk::new(&mut self.random);
                    self.start(lost);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn are_together(&self) -> bool {
        let together = |vault: &Vault| vault.core.as_ref().is_some_and(|core| core.refusal().is_none());
        self.connected && self.vaults.iter().all(together)
    }

    pub(crate) fn step(&mut self, with_damage: bool) -> Checked {
        if self.are_together() && self.control != Control::LossPassesUnseen {
            // Both have everything again: the next one may come.
            for vault in &mut self.vaults {
                vault.damaged = false;
            }
        }
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
            90 => self.look_up(who),
            91 if with_damage && self.random.chance(30) => {
                self.vaults[who].copy = Some(self.vaults[who].disk.clone());
                Ok(())
            }
            91 => self.operator(),
            92..=93 => self.repeat(),
            94 => self.disk_fails(who),
            95..=96 => self.crash(who),
            97..=98 => {
                if self.vaults[who].core.is_none() {
                    if who == 0 && !with_damage && self.random.chance(10) {
                        // As a take-over will leave it.
                        self.vaults[0].disk.memory.epoch += 1;
                    }
                    self.start(who);
                }
                Ok(())
            }
            _ if with_damage && self.random.chance(20) => self.damage(who),
            _ => Ok(()),
        }
    }

    /// Everything comes back and settles; then both journals must tell the same, whole story.
    pub(crate) fn settle(&mut self) -> Checked {
        for who in 0..2 {
            if self.vaults[who].core.is_none() {
                self.start(who);
            }
        }
        for turn in 0..2_000 {
            self.connect()?;
            for who in 0..2 {
                self.deliver(who)?;
                self.disk_finishes(who)?;
            }
            self.propose()?;
            if turn % 100 == 99 && !self.are_together() {
                // The shell gives up a connection that leads to no session; the operator acts.
                self.operator()?;
                for who in 0..2 {
                    self.disk_finishes(who)?;
                }
                self.cut()?;
            }
        }
        let refused: Vec<_> =
            self.vaults.iter().filter_map(|v| v.core.as_ref().and_then(Core::refusal)).collect();
        if !refused.is_empty() {
            return Err(format!("the pair does not come together again: {refused:?}"));
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

    /// Whatever a caller was told stands in the ledger.
    pub(crate) fn recorded(&self, entries: &[Entry]) -> Checked {
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
pub(crate) fn whole(entries: &[Entry]) -> Checked {
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
