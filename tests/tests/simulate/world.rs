//! Two vaults, their disks, the network, callers and an operator; everything that can happen to
//! them, and what must hold afterwards. Knows no seeds.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use vault::sequence::alone::Alone;
use vault::sequence::book::{SeriesName, Wish};
use vault::sequence::carry::{self, Alarm, carry};
use vault::sequence::chores::Chores;
use vault::sequence::entry::{Act, BATCH, Entry, Life};
use vault::sequence::proof::Proof;
use vault::sequence::protocol::{Core, Input, Memory, Message, Output, Write};
use vault::sequence::witness::Witness;

use crate::checks::{Told, whole};
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
    /// What a failed write left behind is not overwritten by the next one without entries, and
    /// the vault goes on giving alone.
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
    /// What is carried over counts although its key was given up.
    ForgetsGivenUp,
    /// A key of a lost life gets a number like any other.
    LostKeysLive,
    /// The operator brings a token again.
    TokenTwice,
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
    pub(crate) chores: Chores,
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
    /// In memory that outlives the process and not the machine.
    pub(crate) mirror: Option<Proof>,
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
    /// What an operator keeps: vaults, and lives that they may begin.
    pub(crate) tokens: Vec<(&'static str, Life)>,
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
            chores: Chores::default(),
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
            tokens: Vec::new(),
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
        let last = vault.disk.life.replace(life);
        let Memory { journal, solo: rows, .. } = vault.disk.memory;
        let met = last.is_some_and(|last| vault.disk.standing.life(last).is_some());
        let proves = |proof: Proof| proof.proven(journal, last, rows, met);
        let proofs = [vault.mirror, vault.disk.ended.take()];
        let former = proofs.into_iter().flatten().filter_map(proves).next();
        let proven = if every { last } else { former };
        vault.mirror = Some(Proof { journal, life, rows, former });
        vault.alone = Alone::default();
        vault.chores = Chores::default();
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
                Control::TokenTwice,
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
                    let entries = write.entries.clone();
                    vault.cache.push(write);
                    let standing = vault.seen().standing.clone();
                    vault.chores.wrote(&entries, &standing);
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
                    let by_key =
                        disk.context(name, &Wish::Reserve { key: row.key.clone(), ticket: None }).known;
                    let number = Wish::Void { number: row.number, reason: String::new() };
                    Ok(carry::Place { by_key, by_number: disk.context(name, &number).known })
                };
                let last = self.vaults[who].core.as_ref().map_or(0, Core::final_index);
                let carried = carry(&rows, &disk.standing, last, place)?;
                // A number that was confirmed by whoever was told it, or was given for a key that
                // its sender gave up, is for the operator to look at.
                let known = |alarm: &&Alarm| {
                    !matches!(alarm, Alarm::GivenUp { .. } | Alarm::Late { given_up: true, .. })
                };
                if let Some(alarm) = carried.alarms.iter().find(known) {
                    return Err(format!("alarm: {alarm}"));
                }
                let mut drafts = carried.drafts;
                if self.control == Control::ForgetsGivenUp {
                    drafts.retain(|draft| !matches!(draft.act, Act::Void(_)) || draft.carried.is_some());
                }
                inputs.push_back(Input::Adopt(drafts, carried.upto));
            }
            Output::Settle => {
                let drafts = self.chores(who);
                inputs.push_back(if drafts.is_empty() { Input::Settled } else { Input::Propose(drafts) });
            }
            Output::Final => self.answer_round(who, false)?,
            Output::Given => {
                let vault = &mut self.vaults[who];
                if let Some(life) = vault.core.as_ref().map(Core::life) {
                    vault.disk.life = Some(life);
                    if let Some(mirror) = &mut vault.mirror {
                        (mirror.life, mirror.rows) = (life, vault.disk.memory.solo);
                    }
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

    pub(crate) fn connect(&mut self) -> Checked {
        if self.connected || self.vaults.iter().any(|vault| vault.core.is_none()) {
            return Ok(());
        }
        self.connected = true;
        for who in 0..2 {
            let nonce = self.random.nonce();
            self.vaults[who].chores.forget();
            self.input(who, Input::Connected(nonce))?;
        }
        Ok(())
    }

    pub(crate) fn deliver(&mut self, who: usize) -> Checked {
        match self.network[who].pop_front() {
            Some(message) => self.input(who, Input::Received(message)),
            None => Ok(()),
        }
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
                vault.chores.wrote(&write.entries, &vault.disk.standing);
                self.input(who, Input::Written)
            }
            None => self.try_disk(who),
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
            88 if self.random.chance(50) => self.bring(who),
            // He is in a hurry.
            89..=91 if self.control == Control::TokenTwice => match self.random.below(3) {
                0 => self.damage(who),
                1 => {
                    self.vaults[who].copy = Some(self.vaults[who].disk.clone());
                    Ok(())
                }
                _ => self.bring(who),
            },
            88 => self.look_up(who),
            89 if with_damage && self.random.chance(30) => {
                self.vaults[who].copy = Some(self.vaults[who].disk.clone());
                Ok(())
            }
            89 => self.operator(),
            90..=91 => self.repeat(),
            92 => self.disk_fails(who),
            93 if self.random.chance(30) => self.take_over(who),
            93 if self.random.chance(30) => self.seal(who),
            93 => self.record(who),
            94 if self.random.chance(30) => self.stop(who),
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
        if let Some(row) = a.rows.iter().chain(&b.rows).next() {
            return Err(format!("what was given alone is not done with: {row:?}"));
        }
        whole(&a)?;
        let is_lost = |life| a.standing.is_lost(life);
        self.told.given_up(&a, is_lost)?;
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
                && self
                    .vaults
                    .iter()
                    .all(|v| v.writing.is_none() && v.waiting.is_empty() && v.under_way.is_empty());
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
        if refused.is_empty() {
            Ok(())
        } else {
            Err(format!("the pair does not come together again: {refused:?}"))
        }
    }
}

/// A few of them after that index.
fn some(entries: &[Entry], after: u64) -> Vec<Entry> {
    let start = entries.partition_point(|entry| entry.index <= after);
    entries[start..].iter().take(BATCH.min(3)).cloned().collect()
}

/// Numbers by key, for whoever compares.
pub(crate) type Numbers = BTreeMap<(SeriesName, String), u64>;
