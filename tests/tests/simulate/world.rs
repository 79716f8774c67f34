//! Two vaults, their disks, the network, callers and an operator; everything that can happen to
//! them, and what must hold afterwards. Knows no seeds.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use vault::sequence::alone::{self, Alone, Sight};
use vault::sequence::book::{Refused, Round, SeriesName, Verdict, Wish};
use vault::sequence::carry::{self, carry};
use vault::sequence::entry::{Act, BATCH, Draft, Entry, Life};
use vault::sequence::protocol::{Core, Input, Message, Output, Reason, Write};
use vault::sequence::standing::{LifeState, Present};
use vault::sequence::witness::Witness;

use crate::checks::{Told, whole};
use crate::disk::{Disk, Random, given};

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
    /// A vault alone answers keys that were first sent elsewhere.
    AnyTicket,
    /// Every life that ended counts as known to the last answer.
    EveryLifeIsProven,
    /// A vault alone gives from ranges that stand in its own journal only.
    OwnJournalOnly,
    /// What a lost life may have answered alone counts although nobody was told of it.
    KeepsWhatIsDoubtful,
    /// A key of a lost life gets a number like any other.
    LostKeysLive,
}

pub(crate) const STRICT: [&str; 2] = ["INV", "CRN"];
pub(crate) const AVAILABLE: [(&str, u64); 2] = [("POS", 4), ("WEB", 7)];

/// A caller's wish, and the key's ticket.
pub(crate) type Wanted = (SeriesName, Wish);

pub(crate) struct Vault {
    pub(crate) name: &'static str,
    pub(crate) disk: Disk,
    pub(crate) core: Option<Core>,
    pub(crate) alone: Alone,
    /// Handed to the disk, not yet reported durable.
    pub(crate) writing: Option<Write>,
    /// What a failed write left on the disk; a crash may make it stand.
    pub(crate) remains: Option<Write>,
    /// A copy of the disk that an operator may put back.
    pub(crate) copy: Option<Disk>,
    /// A lying disk's cache: reported durable, lost by a crash.
    pub(crate) cache: Vec<Write>,
    pub(crate) waiting: Vec<Wanted>,
    pub(crate) under_way: Vec<Wanted>,
    pub(crate) damaged: bool,
    /// What it remembers of its journal outside of it.
    pub(crate) witness: Option<Witness>,
    /// In memory that outlives the process and not the machine: journal, life, last row given.
    pub(crate) mirror: Option<(u128, Life, u64)>,
}

impl Vault {
    /// What the process sees of its disk, cache included.
    pub(crate) fn seen(&self) -> Cow<'_, Disk> {
        if self.cache.is_empty() {
            return Cow::Borrowed(&self.disk);
        }
        let mut disk = self.disk.clone();
        self.cache.iter().for_each(|write| disk.apply(write));
        Cow::Owned(disk)
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
    pub(crate) told: Told,
    /// Every key ever sent, by number, with its series and ticket.
    pub(crate) keys: Vec<(SeriesName, Option<Life>)>,
    pub(crate) log: Vec<String>,
}

pub(crate) type Checked = Result<(), String>;

pub(crate) fn series(name: &str) -> SeriesName {
    SeriesName { owner: "erp".to_owned(), series: name.to_owned() }
}

impl World {
    pub(crate) fn new(seed: u64, control: Control) -> Self {
        let mut random = Random(seed);
        let mut vault = |name, owns| Vault {
            name,
            disk: Disk::new(&mut random, owns),
            core: None,
            alone: Alone::default(),
            writing: None,
            remains: None,
            copy: None,
            cache: Vec::new(),
            waiting: Vec::new(),
            under_way: Vec::new(),
            damaged: false,
            witness: None,
            mirror: None,
        };
        let vaults = [vault("a", true), vault("b", false)];
        let mut world = Self {
            random,
            control,
            vaults,
            network: [VecDeque::new(), VecDeque::new()],
            old: Vec::new(),
            connected: false,
            told: Told::default(),
            keys: Vec::new(),
            log: Vec::new(),
        };
        world.start(0);
        world.start(1);
        world
    }

    pub(crate) fn start(&mut self, who: usize) {
        let life = self.random.nonce();
        let every = self.control == Control::EveryLifeIsProven;
        let vault = &mut self.vaults[who];
        let former = vault.disk.life.replace(life);
        let solo = vault.disk.memory.solo.index;
        let is_proven = |former: &Life| vault.mirror == Some((vault.disk.memory.journal, *former, solo));
        let proven = former.filter(|former| every || is_proven(former));
        vault.mirror = Some((vault.disk.memory.journal, life, solo));
        vault.alone = Alone::default();
        let core = Core::new(life, proven, vault.disk.memory, vault.disk.tail());
        vault.core = Some(core.witnessed(vault.witness));
    }

    pub(crate) fn input(&mut self, who: usize, input: Input) -> Checked {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let Some(core) = &mut self.vaults[who].core else { return Ok(()) };
            let outputs = core.step(input);
            // A disk that lies loses the witness with the rest; the other controls show what its lack costs.
            let blind = [
                Control::LossPassesUnseen,
                Control::DiskLies,
                Control::ReseedsFromTheWrongSide,
                Control::EveryLifeIsProven,
            ];
            if !blind.contains(&self.control) {
                self.vaults[who].witness = core.witness().or(self.vaults[who].witness);
            }
            for output in outputs {
                self.carry_out(who, output, &mut inputs)?;
            }
        }
        Ok(())
    }

    fn carry_out(&mut self, who: usize, output: Output, inputs: &mut VecDeque<Input>) -> Checked {
        match output {
            Output::Send(message) => {
                if self.connected {
                    self.network[1 - who].push_back(message.clone());
                    self.old.push((1 - who, message));
                }
            }
            Output::Write(write) => {
                let vault = &mut self.vaults[who];
                if !vault.seen().fits(&write) {
                    inputs.push_back(Input::CutRefused);
                } else if self.control == Control::DiskLies {
                    vault.cache.push(write);
                    inputs.push_back(Input::Written);
                } else {
                    vault.writing = Some(write);
                }
            }
            Output::Load(after) => {
                let entries = some(&self.vaults[who].seen().entries, after);
                inputs.push_back(Input::Loaded(after, entries));
            }
            Output::LoadSolo(after) => {
                let rows = some(&self.vaults[who].seen().rows, after);
                inputs.push_back(Input::SoloLoaded(after, rows));
            }
            Output::Adopt(rows) => {
                let disk = self.vaults[who].seen();
                let place = |name: &SeriesName, row: &Entry| -> Result<carry::Place, String> {
                    let by_key = disk.context(name, &Wish::Reserve { key: row.key.clone(), ticket: None }).known;
                    let number = Wish::Void { number: row.number, reason: String::new() };
                    Ok(carry::Place { by_key, by_number: disk.context(name, &number).known })
                };
                let last = self.vaults[who].core.as_ref().map_or(0, Core::final_index);
                let carried = carry(&rows, &disk.standing, last, place)?;
                if let Some(alarm) = carried.alarms.first() {
                    return Err(format!("alarm: {alarm}"));
                }
                inputs.push_back(Input::Adopt(carried.drafts, carried.upto));
            }
            Output::Settle => {
                let drafts = self.chores(who);
                inputs.push_back(if drafts.is_empty() { Input::Settled } else { Input::Propose(drafts) });
            }
            Output::Final => self.answer_round(who, false)?,
            Output::Given => {
                let vault = &mut self.vaults[who];
                if let Some(mirror) = &mut vault.mirror {
                    mirror.2 = vault.disk.memory.solo.index;
                }
                self.answer_round(who, true)?;
            }
            Output::InDoubt if self.control == Control::AnswersInDoubt => {
                if let Some(write) = self.vaults[who].writing.clone() {
                    let kept = self.vaults[who].disk.clone();
                    self.vaults[who].disk.apply(&write);
                    let told = self.answer_round(who, false);
                    self.vaults[who].disk = kept;
                    told?;
                }
            }
            Output::InDoubt => self.vaults[who].under_way.clear(),
            Output::Stands(_) => {}
            Output::HangUp => self.cut()?,
        }
        Ok(())
    }

    /// What the owner must enter before callers' wishes are, or when the cursor is near a range.
    fn chores(&self, who: usize) -> Vec<Draft> {
        let vault = &self.vaults[who];
        let Some(core) = &vault.core else { return Vec::new() };
        let standing = vault.seen().standing.clone();
        let Some(peer) = core.peer() else { return Vec::new() };
        let other = self.vaults[1 - who].name;
        let own = Present { name: vault.name.to_owned(), life: core.life(), proven: core.proven() };
        let peer = Present { name: other.to_owned(), life: peer.life, proven: peer.proven };
        let births = standing.births([&own, &peer], 0);
        if !births.is_empty() {
            return births;
        }
        if core.refusal().is_some() {
            let disk = vault.seen();
            let fresh = disk.entries.partition_point(|entry| entry.index <= core.final_index());
            let doubtful = standing.doubtful(&disk.entries[fresh..], 0);
            if !doubtful.is_empty() && self.control != Control::KeepsWhatIsDoubtful {
                return doubtful;
            }
        }
        let opens = AVAILABLE.iter().find(|(name, _)| standing.series(&series(name)).is_none());
        if let Some((name, size)) = opens {
            let SeriesName { owner, series } = series(name);
            let key = String::new();
            return vec![Draft { owner, series, number: *size, key, act: Act::Available, at: 0, carried: None }];
        }
        let grants = standing.grants([&own, &peer], 0, 3);
        if grants.is_empty() { standing.ends([&own, &peer], 0, 3) } else { grants }
    }

    /// The callers of the round hear their numbers.
    fn answer_round(&mut self, who: usize, alone: bool) -> Checked {
        let wishes = std::mem::take(&mut self.vaults[who].under_way);
        let disk = self.vaults[who].seen();
        for (name, wish) in wishes {
            let known = if alone { disk.own(&name, &wish) } else { disk.context(&name, &wish).known };
            let known = known.ok_or_else(|| format!("{wish:?} is final and not in the journal"))?;
            let by = alone.then_some(disk.life).flatten();
            self.log.push(format!("{} tells {} = {}", self.vaults[who].name, known.number.key, known.number.number));
            self.told.tell(&name, &known.number.key, known.number.number, by)?;
        }
        Ok(())
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
            self.told.recorded(&disk.entries, |_| false).map_err(denies)?;
        }
        if self.vaults.iter().all(|vault| !vault.damaged) {
            let other = &self.vaults[1 - who].seen().entries;
            let mut seen = disk.entries.iter().take_while(|entry| entry.index <= last);
            if let Some(alone) = seen.find(|entry| other.get(crate::disk::place(entry.index)) != Some(*entry)) {
                return Err(format!("entry {} may be read and is on one disk only", alone.index));
            }
        }
        for entry in given(&disk.entries, |act| matches!(act, Act::Displace(_) | Act::Doubt)).filter(|entry| entry.index <= last) {
            let name = SeriesName { owner: entry.owner.clone(), series: entry.series.clone() };
            self.told.tell(&name, &entry.key, entry.number, None)?;
        }
        Ok(())
    }

    /// A caller sends a wish to one of the vaults.
    pub(crate) fn wish(&mut self) {
        let who = self.random.place(2);
        let Some(core) = &self.vaults[who].core else { return };
        let life = core.life();
        let (name, wish) = match self.random.below(10) {
            0..=5 => {
                let name = match self.random.below(4) {
                    0 => STRICT[0],
                    1 => STRICT[1],
                    2 => AVAILABLE[0].0,
                    _ => AVAILABLE[1].0,
                };
                let ticket = self.random.chance(85).then_some(life);
                self.keys.push((series(name), ticket));
                (series(name), Wish::Reserve { key: format!("k{}", self.keys.len()), ticket })
            }
            6 | 7 if !self.keys.is_empty() => {
                // Sent again, perhaps to the other vault.
                let pick = self.random.place(self.keys.len());
                let (name, ticket) = self.keys[pick].clone();
                (name, Wish::Reserve { key: format!("k{}", pick + 1), ticket })
            }
            of => {
                let all = [STRICT[0], STRICT[1], AVAILABLE[0].0, AVAILABLE[1].0];
                let (name, number) = (series(all[self.random.place(4)]), 1 + self.random.below(9));
                let document_hash = format!("h{}", self.random.below(2));
                let reason = "torn".to_owned();
                (name, if of == 8 { Wish::Confirm { number, document_hash } } else { Wish::Void { number, reason } })
            }
        };
        // The follower of a session sends it on.
        let leads = |vault: &Vault| vault.core.as_ref().is_some_and(|core| core.refusal().is_none() && core.leads());
        let together = self.connected && core.refusal().is_none() && !core.leads() && leads(&self.vaults[1 - who]);
        let to = if together { 1 - who } else { who };
        if self.vaults[to].waiting.len() < 12 {
            self.vaults[to].waiting.push((name, wish));
        }
    }

    /// Each vault does with its waiting wishes what its state allows.
    pub(crate) fn propose(&mut self, who: usize) -> Checked {
        let Some(core) = &self.vaults[who].core else { return Ok(()) };
        if core.may_propose() && core.refusal().is_none() {
            let chores = self.chores(who);
            if chores.is_empty() && self.vaults[who].waiting.is_empty() {
                Ok(())
            } else if chores.is_empty() {
                self.propose_together(who) 
            } else {
                self.input(who, Input::Propose(chores))
            }
        } else if core.may_give_alone() && !self.vaults[who].waiting.is_empty() {
            self.give_alone(who)
        } else {
            Ok(())
        }
    }

    fn propose_together(&mut self, who: usize) -> Checked {
        let vault = &mut self.vaults[who];
        let seen = vault.seen().into_owned();
        let mut round = Round::default();
        let mut drafts = Vec::new();
        let mut answers = Vec::new();
        for (name, mut wish) in std::mem::take(&mut vault.waiting) {
            if self.control == Control::LostKeysLive
                && let Wish::Reserve { ticket, .. } = &mut wish
            {
                *ticket = None;
            }
            match round.decide(&name, &wish, seen.context(&name, &wish), &seen.standing, 0) {
                Verdict::Answer(known) => answers.push((name, known)),
                Verdict::Refuse(Refused::KeyLost) => self.told.lost += 1,
                Verdict::Refuse(_) => {}
                Verdict::Make(draft) => {
                    drafts.push(draft);
                    vault.under_way.push((name, wish));
                }
                Verdict::Wait => vault.waiting.push((name, wish)),
            }
        }
        for (name, known) in answers {
            self.told.tell(&name, &known.number.key, known.number.number, None)?;
        }
        if drafts.is_empty() { Ok(()) } else { self.input(who, Input::Propose(drafts)) }
    }

    fn give_alone(&mut self, who: usize) -> Checked {
        let vault = &mut self.vaults[who];
        let Some(core) = &vault.core else { return Ok(()) };
        let seen = vault.seen().into_owned();
        let unsure = self.control == Control::OwnJournalOnly;
        let last = if unsure { seen.tail().index } else { core.final_index() };
        let place = alone::Place { vault: vault.name, life: core.life(), standing: &seen.standing, last };
        let mut drafts = Vec::new();
        let mut answers = Vec::new();
        vault.alone.begin();
        for (name, mut wish) in std::mem::take(&mut vault.waiting) {
            if self.control == Control::AnyTicket
                && let Wish::Reserve { ticket, .. } = &mut wish
            {
                *ticket = Some(place.life);
            }
            let sight = Sight { chain: seen.context(&name, &wish).known, own: seen.own(&name, &wish) };
            match vault.alone.decide(place, &name, &wish, sight, 0) {
                Ok(Verdict::Answer(known)) => answers.push((name, known)),
                Ok(Verdict::Make(draft)) => {
                    drafts.push(draft);
                    vault.under_way.push((name, wish));
                }
                Ok(Verdict::Refuse(_) | Verdict::Wait) | Err(_) => {}
            }
        }
        let life = place.life;
        for (name, known) in answers {
            let by = (known.index == 0 || seen.own_number(&name, known.number.number)).then_some(life);
            self.told.tell(&name, &known.number.key, known.number.number, by)?;
        }
        if drafts.is_empty() { Ok(()) } else { self.input(who, Input::Give(drafts)) }
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
        // Within one connection the transport neither repeats nor reorders.
        let last = self.old.iter().rev().find_map(|(_, old)| old.session());
        if message.session().is_none() || message.session() == last {
            return Ok(());
        }
        self.input(who, Input::Received(message))
    }

    pub(crate) fn disk_finishes(&mut self, who: usize) -> Checked {
        if !self.vaults[who].cache.is_empty() {
            let write = self.vaults[who].cache.remove(0);
            self.vaults[who].disk.apply(&write);
        }
        match self.vaults[who].writing.take() {
            Some(write) => {
                let vault = &mut self.vaults[who];
                if self.control != Control::RemainsLinger || !write.entries.is_empty() {
                    vault.remains = None;
                }
                vault.disk.apply(&write);
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
        let power_fails = self.random.chance(30);
        let vault = &mut self.vaults[who];
        if let Some(write) = vault.writing.take().or_else(|| vault.remains.take())
            && hit_the_disk
            && vault.disk.fits(&write)
        {
            vault.disk.apply(&write);
        }
        if power_fails {
            vault.mirror = None;
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
        let fresh = Disk::new(&mut self.random, who == 0);
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

    /// An operator makes one vault the owner; at times he takes it for alone, rightly or not.
    pub(crate) fn take_over(&mut self, who: usize) -> Checked {
        let alone = self.random.chance(40);
        match &self.vaults[who].core {
            Some(core) if core.may_take_over() && !self.vaults[who].damaged => {
                self.log.push(format!("{} takes over, alone: {alone}", self.vaults[who].name));
                self.input(who, Input::TakeOver(alone))
            }
            _ => Ok(()),
        }
    }

    /// Who goes on alone enters a record.
    pub(crate) fn record(&mut self, who: usize) -> Checked {
        let Some(core) = &self.vaults[who].core else { return Ok(()) };
        if !core.goes_on_alone() || !core.may_propose() {
            return Ok(());
        }
        let owner = "erp".to_owned();
        let number = 1 + self.random.below(9);
        let act = Act::Put(format!("v{}", self.random.below(9)));
        let draft = Draft { owner, series: String::new(), number, key: "r".to_owned(), act, at: 0, carried: None };
        self.input(who, Input::Propose(vec![draft]))
    }

    /// Does what the refusals tell an operator to do.
    pub(crate) fn operator(&mut self) -> Checked {
        if let Some(who) = self.vaults.iter().position(|v| v.core.as_ref().is_some_and(Core::may_yield)) {
            let who = if self.random.chance(50) { 1 - who } else { who };
            return match &self.vaults[who].core {
                Some(core) if core.may_yield() => self.input(who, Input::Yield),
                _ => Ok(()),
            };
        }
        let refusal = |vault: &Vault| vault.core.as_ref().and_then(Core::refusal);
        if self.vaults.iter().all(|vault| refusal(vault) == Some(Reason::NoOwner)) {
            return self.take_over(0);
        }
        let Some(mut lost) = self.vaults.iter().position(|vault| vault.damaged) else { return Ok(()) };
        if self.control == Control::ReseedsFromTheWrongSide {
            lost = 1 - lost;
        }
        let intact = refusal(&self.vaults[1 - lost]).filter(|reason| reason.needs_operator());
        match intact.or_else(|| refusal(&self.vaults[lost])) {
            Some(Reason::PeerRolledBack | Reason::OwnRolledBack | Reason::Forked) => self.empty(lost),
            Some(Reason::PeerJournalLost | Reason::OwnJournalLost) => {
                let may = self.vaults[1 - lost].core.as_ref().is_some_and(Core::may_reseed);
                if may {
                    return self.input(1 - lost, Input::Reseed);
                }
                let disk = &self.vaults[lost].disk;
                if disk.tail().index > 0 || disk.memory.peer_journal.is_some() { self.empty(lost) } else { Ok(()) }
            }
            _ => Ok(()),
        }
    }

    /// Its journal is moved away, and it starts with none.
    fn empty(&mut self, who: usize) -> Checked {
        self.crash(who)?;
        self.vaults[who].disk = Disk::new(&mut self.random, who == 0);
        self.start(who);
        Ok(())
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
            0..=22 => self.deliver(0),
            23..=45 => self.deliver(1),
            46..=60 => self.disk_finishes(who),
            61..=71 => {
                self.wish();
                Ok(())
            }
            72..=80 => self.propose(who),
            81..=86 => self.connect(),
            87 => self.cut(),
            88 => self.look_up(who),
            89 if with_damage && self.random.chance(30) => {
                self.vaults[who].copy = Some(self.vaults[who].disk.clone());
                Ok(())
            }
            89 => self.operator(),
            90..=91 => self.repeat(),
            92 => self.disk_fails(who),
            93 if self.random.chance(30) => self.take_over(who),
            93 => self.record(who),
            94..=95 => self.crash(who),
            96..=97 => {
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
    pub(crate) fn settle(&mut self) -> Checked {
        self.come_together()?;
        // Until the cursor has run over every range that was open.
        for _ in 0..6 {
            for (name, size) in AVAILABLE {
                for _ in 0..=size {
                    self.keys.push((series(name), None));
                    let key = format!("k{}", self.keys.len());
                    let leader = usize::from(!self.vaults[0].core.as_ref().is_some_and(Core::leads));
                    self.vaults[leader].waiting.push((series(name), Wish::Reserve { key, ticket: None }));
                }
            }
            self.come_together()?;
        }
        let [a, b] = [0, 1].map(|who: usize| self.vaults[who].seen().into_owned());
        if a.entries != b.entries {
            return Err("the journals differ after both came back".to_owned());
        }
        self.look_up(0)?;
        self.look_up(1)?;
        whole(&a)?;
        let is_lost = |life| a.standing.life(life).is_none_or(|state| state == LifeState::Lost);
        self.told.recorded(&a.entries, is_lost)
    }

    pub(crate) fn come_together(&mut self) -> Checked {
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
                self.propose(who)?;
            }
            let idle = self.network.iter().all(VecDeque::is_empty)
                && self.vaults.iter().all(|v| v.writing.is_none() && v.waiting.is_empty() && v.under_way.is_empty());
            if self.are_together() && idle {
                break;
            }
            if turn % 100 == 99 && !self.are_together() {
                // The shell gives up a connection that leads to no session; the operator acts.
                self.operator()?;
                for who in 0..2 {
                    self.disk_finishes(who)?;
                }
                self.cut()?;
            }
        }
        let refused: BTreeSet<_> = self
            .vaults
            .iter()
            .filter_map(|v| v.core.as_ref().and_then(Core::refusal).map(|reason| format!("{reason:?}")))
            .collect();
        if refused.is_empty() { Ok(()) } else { Err(format!("the pair does not come together again: {refused:?}")) }
    }
}

/// A few of them after that index.
fn some(entries: &[Entry], after: u64) -> Vec<Entry> {
    let start = entries.partition_point(|entry| entry.index <= after);
    entries[start..].iter().take(BATCH.min(3)).cloned().collect()
}

/// Numbers by key, for whoever compares.
pub(crate) type Numbers = BTreeMap<(SeriesName, String), u64>;
