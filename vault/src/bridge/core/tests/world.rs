//! The world of the histories: brokers, disks and wires as models, and the chance that picks what
//! happens next. Knows the core's steps; not its rules.

mod disk;

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use super::super::{Badge, Core, Found, Held, Input, Needed, Refusal, Row, Step, Write};
use super::limits;
use disk::Disk;

/// Messages of a history.
const MESSAGES: u32 = 24;
/// The target refuses this one, in histories with faults.
const POISON: u32 = 13;
/// The target hangs up at this one, in histories with faults.
const HANGS: u32 = 17;
/// In some histories it also refuses all to this destination.
const FORBIDDEN: i64 = 1;

fn destination(message: u32) -> i64 {
    i64::from(message % 4)
}

/// A safeguard that is taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flaw {
    /// The journal tells that it has written what a crash still takes away.
    AnswersBeforeDurable,
    /// What may have been taken is believed to be.
    ForwardsUncertain,
    /// What may not have been taken is believed not to be.
    DropsUncertain,
    /// The receipt is sent behind the transaction.
    ReceiptOutside,
    /// The receipt of a batch is taken before the batch is durably ours.
    SpendsAtOnce,
    /// No receipt is believed to tell that nothing was taken.
    NoneTells,
    /// The target takes whatever comes.
    TargetForgets,
    /// Who starts again takes what was set aside for what waits like all else.
    ForgetsAside,
    /// All sources of a URI have the same badge.
    OneSource,
    /// All targets of a URI have the same badge.
    OneTarget,
    /// What was under way is sent to whichever target answers.
    NoDoubt,
    /// Who starts again takes what was found to be the source's for uncertain.
    ForgetsReturned,
    /// Who reads receipts takes all but the last away.
    SpendsUnread,
}

/// `SplitMix64`.
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((mixed >> 33) % u64::try_from(end.max(1)).unwrap()).unwrap()
    }
}

/// What is on its way to the journal.
#[derive(Debug)]
enum Errand {
    Write(Write<u32>),
    Load(u64, usize, Vec<i64>),
}

#[derive(Debug, Default)]
struct Vault {
    disk: Disk,
    core: Option<Core<u32>>,
    is_frozen: bool,
    /// When it was started.
    started: Duration,
    /// What its connections know of that; it may be an older answer.
    needed: Needed,
    errands: VecDeque<Errand>,
    from_journal: VecDeque<Input<u32>>,
    /// Does it believe that it is connected to the source? Whether it is, the source knows.
    believes: bool,
    /// To which one, or the last.
    at: usize,
    to_source: VecDeque<Step<u32>>,
    from_source: VecDeque<Input<u32>>,
    target_believes: bool,
    target_is_connected: bool,
    target_at: usize,
    to_target: VecDeque<(Vec<Row<u32>>, bool)>,
    from_target: VecDeque<Input<u32>>,
}

impl Vault {
    /// Nothing is on its way, and what is kept are rows alone that are not ours.
    fn rests(&self) -> bool {
        // One at which the target hangs up waits for others, or for an operator.
        self.disk.load(0, usize::MAX, &[]).iter().all(|row| row.message == HANGS)
            && self.errands.is_empty()
            && self.from_source.is_empty()
            && self.core.as_ref().is_some_and(|core| core.open.is_none())
    }
}

#[derive(Debug, Default)]
struct Source {
    queue: VecDeque<u32>,
    /// Which vault is connected: it has the lock.
    holder: Option<usize>,
    consuming: bool,
    dispatched: VecDeque<u32>,
    /// Each vault's own queue.
    receipts: [BTreeSet<u64>; 2],
    /// Batches that were taken, for the operator to know.
    taken: [BTreeSet<u64>; 2],
    /// Those of the holder that are not dispatched yet.
    undispatched: BTreeSet<u64>,
}

impl Source {
    fn back(&mut self, messages: impl DoubleEndedIterator<Item = u32>) {
        messages.rev().for_each(|message| self.queue.push_front(message));
    }
}

#[derive(Debug)]
pub(super) struct World {
    dice: Dice,
    flaw: Option<Flaw>,
    is_calm: bool,
    is_forbidding: bool,
    faults: usize,
    now: Duration,
    /// One or two behind the same URI.
    sources: Vec<Source>,
    vaults: [Vault; 2],
    /// The same of targets: what each has of each vault.
    targets: Vec<[u64; 2]>,
    arrived: Vec<u32>,
    sent: u32,
}

impl World {
    pub(super) fn new(seed: u64, flaw: Option<Flaw>) -> Self {
        Self {
            dice: Dice(seed),
            flaw,
            is_calm: false,
            is_forbidding: seed.is_multiple_of(3),
            faults: 20,
            now: Duration::ZERO,
            sources: (0..=seed % 2).map(|_| Source::default()).collect(),
            vaults: Default::default(),
            targets: (0..=seed / 2 % 2).map(|_| [0; 2]).collect(),
            arrived: Vec::new(),
            sent: 0,
        }
    }

    pub(super) fn calm(seed: u64) -> Self {
        Self {
            is_calm: true,
            faults: 0,
            sources: vec![Source::default()],
            targets: vec![[0; 2]],
            ..Self::new(seed, None)
        }
    }

    /// Runs until all is sent and the faults are over, then until all rests; checks.
    pub(super) fn history(mut self) -> Result<Vec<u32>, String> {
        for _ in 0..900 {
            self.turn(true);
        }
        for vault in &mut self.vaults {
            vault.is_frozen = false;
        }
        while self.sent < MESSAGES {
            self.send();
        }
        for _ in 0..50_000 {
            self.turn(false);
            if self.rests() {
                return self.check();
            }
        }
        Err(format!("it does not come to rest: {self:?}"))
    }

    fn rests(&self) -> bool {
        let is_found = |source: &Source| {
            self.vaults.iter().zip(&source.receipts).all(|(vault, receipts)| {
                // What was taken has been found to be.
                !vault.disk.open.keys().any(|batch| receipts.contains(batch))
            })
        };
        let is_done = |source: &Source| source.queue.is_empty() && source.dispatched.is_empty();
        self.sources.iter().all(|source| is_done(source) && is_found(source))
            && self.vaults.iter().all(Vault::rests)
    }

    fn check(self) -> Result<Vec<u32>, String> {
        let dead = self.vaults.iter().flat_map(|vault| &vault.disk.dead);
        let stands = self.vaults.iter().flat_map(|vault| {
            let ours = vault.disk.load(0, usize::MAX, &[]);
            ours.into_iter().map(|row| row.message).filter(|message| *message == HANGS)
        });
        let stands: Vec<u32> = stands.collect();
        let mut all: Vec<u32> = self.arrived.iter().chain(dead).chain(&stands).copied().collect();
        all.sort_unstable();
        let wanted: Vec<u32> = (1..=MESSAGES).collect();
        if all == wanted { Ok(self.arrived) } else { Err(format!("arrived: {all:?}")) }
    }

    fn send(&mut self) {
        if self.sent < MESSAGES {
            self.sent += 1;
            let which = self.any_source();
            self.sources[which].queue.push_back(self.sent);
        }
    }

    fn any_source(&mut self) -> usize {
        self.dice.below(self.sources.len())
    }

    /// The source to which the vault is connected, as that one knows.
    fn connected(&mut self, vault: usize) -> Option<&mut Source> {
        let source = &mut self.sources[self.vaults[vault].at];
        (source.holder == Some(vault)).then_some(source)
    }

    /// One thing happens somewhere.
    fn turn(&mut self, with_faults: bool) {
        let vault = self.dice.below(2);
        if with_faults && self.faults > 0 && self.dice.below(20) == 0 {
            self.faults -= 1;
            return self.fault(vault);
        }
        if self.vaults[vault].core.is_none() {
            if self.dice.below(20) == 0 {
                self.start(vault);
            }
            return;
        }
        match self.dice.below(14) {
            0 => self.send(),
            1 | 2 => self.journal(vault),
            3 | 4 => self.source_works(vault),
            5 => self.target_works(vault),
            6 => self.connect(vault),
            7 => self.connect_target(vault),
            8 => self.read_receipts(vault),
            9 => self.tick(vault),
            10 => self.dispatch_receipt(),
            11 => self.settle(vault),
            _ => self.dispatch(),
        }
        self.deliver(vault);
    }

    fn start(&mut self, vault: usize) {
        if self.flaw != Some(Flaw::ForgetsAside) {
            self.vaults[vault].disk.open();
        }
        let mut kept = self.vaults[vault].disk.kept(self.now);
        if self.flaw == Some(Flaw::ForgetsReturned) {
            kept.uncertain.extend(
                std::mem::take(&mut kept.returned).into_iter().map(|(batch, (_, held))| (batch, held)),
            );
        }
        let it = &mut self.vaults[vault];
        it.core = Some(Core::new(limits(), kept));
        (it.is_frozen, it.started, it.needed) = (false, self.now, Needed::default());
    }

    fn fault(&mut self, vault: usize) {
        match self.dice.below(6) {
            0 | 1 => self.crash(vault),
            2 => self.cut(vault),
            3 => self.cut_target(vault),
            4 => self.vaults[vault].is_frozen = !self.vaults[vault].is_frozen,
            // A source falls: whoever is connected is cut.
            _ => {
                let which = self.any_source();
                self.sources[which].holder.into_iter().for_each(|holder| self.cut(holder));
            }
        }
    }

    fn crash(&mut self, vault: usize) {
        self.cut(vault);
        self.cut_target(vault);
        // Some of what was written is durable and was not told.
        let kept = self.dice.below(self.vaults[vault].errands.len() + 1);
        let Vault { mut disk, errands, .. } = std::mem::take(&mut self.vaults[vault]);
        for errand in errands.into_iter().take(kept) {
            if let Errand::Write(write) = errand {
                disk.write(write, self.now);
            }
        }
        self.vaults[vault].disk = disk;
    }

    /// The source loses a vault's connection: of what is on the wire some is still done.
    fn cut(&mut self, vault: usize) {
        if self.connected(vault).is_none() {
            return;
        }
        for _ in 0..self.dice.below(self.vaults[vault].to_source.len() + 1) {
            self.source_works(vault);
        }
        let heard = self.dice.below(self.vaults[vault].from_source.len() + 1);
        self.vaults[vault].from_source.truncate(heard);
        self.vaults[vault].to_source.clear();
        let Some(source) = self.connected(vault) else { return };
        let dispatched = std::mem::take(&mut source.dispatched);
        source.back(dispatched.into_iter());
        source.holder = None;
        source.consuming = false;
        source.undispatched.clear();
    }

    fn cut_target(&mut self, vault: usize) {
        if self.dice.below(2) == 0 {
            self.target_works(vault);
        }
        let answers_are_lost = self.dice.below(2) == 0;
        let it = &mut self.vaults[vault];
        let is_there = |row: &Row<u32>| row.sequence <= self.targets[it.target_at][vault];
        if it.target_is_connected
            && it
                .to_target
                .front()
                .is_some_and(|(rows, is_careful)| *is_careful && !rows.iter().any(is_there))
        {
            // Its commit was not asked for yet.
            it.from_target.push_back(refused(Refusal::HungUp));
        }
        it.target_is_connected = false;
        it.to_target.clear();
        if answers_are_lost {
            it.from_target.clear();
        }
    }

    fn connect(&mut self, vault: usize) {
        let at = self.any_source();
        let it = &mut self.vaults[vault];
        if it.believes || it.is_frozen || self.sources[at].holder.is_some() {
            return;
        }
        self.sources[at].holder = Some(vault);
        it.believes = true;
        it.at = at;
        it.to_source.clear();
        let found = self.found(vault, at);
        if found.receipts.iter().all(|it| *it == 0) && self.flaw != Some(Flaw::DropsUncertain) {
            let source = &mut self.sources[at];
            source.undispatched.clone_from(&source.receipts[vault]);
        }
        self.vaults[vault].from_source.push_back(Input::Holding(found));
    }

    /// What of the vault's lies at the source.
    fn found(&mut self, vault: usize, at: usize) -> Found {
        let badge = if self.flaw == Some(Flaw::OneSource) { 0 } else { at };
        let receipts = self.receipts(vault, at);
        self.take_away(vault, at, &receipts);
        Found { badges: badges(badge), receipts }
    }

    /// Who reads takes away what tells nothing any more, but not the last.
    fn take_away(&mut self, vault: usize, at: usize, read: &[u64]) {
        let Some(last) = read.iter().max() else { return };
        let needed = &self.vaults[vault].needed;
        let is_useless = |batch: &u64| needed.is_settled(*batch) || self.flaw == Some(Flaw::SpendsUnread);
        let useless = |batch: &u64| batch != last && read.contains(batch) && is_useless(batch);
        self.sources[at].receipts[vault].retain(|batch| !useless(batch));
    }

    /// An operator knows what became of what waits for another source. Whether that was found to be the source's
    /// he does not look up: he would not be asked.
    fn settle(&mut self, vault: usize) {
        let it = &self.vaults[vault];
        let Some(core) = it.core.as_ref().filter(|_| !it.is_frozen) else { return };
        let is_taken = |(batch, held): (u64, Held)| {
            let source = held.at.map(|badge| &self.sources[usize::from(badge[0])]);
            source.is_some_and(|it| it.taken[vault].contains(&batch)) || it.disk.returned.contains_key(&batch)
        };
        let answers: BTreeSet<bool> = core.strange().map(is_taken).collect();
        if let (1, Some(taken)) = (answers.len(), answers.first()) {
            self.tell(vault, Input::Settle { taken: *taken });
        }
    }

    /// Its receipts there, or none: they are not dispatched in time.
    fn receipts(&mut self, vault: usize, at: usize) -> Vec<u64> {
        match self.flaw {
            Some(Flaw::ForwardsUncertain) => self.vaults[vault].disk.open.keys().copied().collect(),
            // One that tells of nothing.
            Some(Flaw::DropsUncertain) => vec![0],
            _ if !self.is_calm && self.dice.below(3) == 0 => match self.flaw {
                Some(Flaw::NoneTells) => vec![0],
                _ => Vec::new(),
            },
            _ => self.sources[at].receipts[vault].iter().copied().collect(),
        }
    }

    /// One that was not dispatched before.
    fn dispatch_receipt(&mut self) {
        let which = self.any_source();
        let source = &mut self.sources[which];
        if let Some(holder) = source.holder
            && let Some(receipt) = source.undispatched.pop_first()
        {
            self.vaults[holder].from_source.push_back(Input::Receipt(receipt));
        }
    }

    /// A vault without the lock looks at its receipts, over a connection of its own: the lock is the other's, or
    /// it searches while another source is connected.
    fn read_receipts(&mut self, vault: usize) {
        let at = self.any_source();
        let it = &self.vaults[vault];
        let searches = it.believes && it.at != at && it.core.as_ref().is_some_and(Core::searches);
        let is_others = !it.believes && self.sources[at].holder == Some(1 - vault);
        if (searches || is_others) && !it.is_frozen {
            let found = self.found(vault, at);
            self.tell(vault, Input::Receipts(found));
        }
    }

    fn connect_target(&mut self, vault: usize) {
        let at = self.dice.below(self.targets.len());
        let it = &mut self.vaults[vault];
        if !it.target_believes && !it.is_frozen {
            it.target_believes = true;
            it.target_is_connected = true;
            it.target_at = at;
            it.to_target.clear();
            let badge = if self.flaw == Some(Flaw::OneTarget) { 0 } else { at };
            it.from_target.push_back(Input::TargetUp(badges(badge)));
        }
    }

    fn journal(&mut self, vault: usize) {
        let it = &mut self.vaults[vault];
        match it.errands.pop_front() {
            Some(Errand::Write(write)) => {
                it.disk.write(write, self.now);
                if self.flaw != Some(Flaw::AnswersBeforeDurable) {
                    it.from_journal.push_back(Input::Written);
                }
            }
            Some(Errand::Load(after, most, but)) => {
                it.from_journal.push_back(Input::Loaded(it.disk.load(after, most, &but)));
            }
            None => {}
        }
    }

    fn source_works(&mut self, vault: usize) {
        let it = &mut self.vaults[vault];
        let source = &mut self.sources[it.at];
        if source.holder != Some(vault) {
            return;
        }
        match it.to_source.pop_front() {
            Some(Step::Consume) => source.consuming = true,
            Some(Step::Take { batch, first, last, count, spent }) => {
                assert_eq!(source.dispatched.front(), Some(&first));
                let taken: Vec<u32> = source.dispatched.drain(..count).collect();
                assert_eq!(taken.last(), Some(&last));
                source.receipts[vault].retain(|receipt| !spent.contains(receipt));
                if self.flaw == Some(Flaw::SpendsAtOnce) {
                    source.receipts[vault].clear();
                }
                let is_sent = self.flaw != Some(Flaw::ReceiptOutside) || self.dice.below(2) == 0;
                if is_sent && self.flaw != Some(Flaw::SpendsAtOnce) {
                    assert!(source.receipts[vault].insert(batch), "a number is given once");
                }
                source.taken[vault].insert(batch);
                // The receipt may come before the answer.
                let receipt = source.receipts[vault].get(&batch).copied();
                match receipt.filter(|_| self.dice.below(4) == 0) {
                    Some(receipt) => it.from_source.push_back(Input::Receipt(receipt)),
                    None => source.undispatched.extend(receipt),
                }
                it.from_source.push_back(Input::Taken);
            }
            Some(other) => panic!("{other:?} is not the source's"),
            None => {}
        }
    }

    fn dispatch(&mut self) {
        let which = self.any_source();
        let source = &mut self.sources[which];
        let Some(holder) = source.holder else { return };
        if source.consuming
            && source.dispatched.len() < 8
            && let Some(message) = source.queue.pop_front()
        {
            source.dispatched.push_back(message);
            self.vaults[holder].from_source.push_back(Input::Received(message, 1));
        }
    }

    fn target_works(&mut self, vault: usize) {
        let it = &mut self.vaults[vault];
        if !it.target_is_connected {
            return;
        }
        let Some((mut rows, is_careful)) = it.to_target.pop_front() else { return };
        let last = &mut self.targets[it.target_at][vault];
        // What it has it drops before anything else.
        rows.retain(|row| row.sequence > *last || self.flaw == Some(Flaw::TargetForgets));
        let is_refused =
            |row: &Row<u32>| row.message == POISON || (self.is_forbidding && row.destination == FORBIDDEN);
        if !self.is_calm && rows.iter().any(|row| row.message == HANGS) {
            it.target_is_connected = false;
            it.from_target.extend(is_careful.then(|| refused(Refusal::HungUp)));
            return;
        }
        if !self.is_calm && rows.iter().any(is_refused) {
            it.target_is_connected = false;
            it.from_target.push_back(refused(Refusal::Answered));
            return;
        }
        for row in rows {
            *last = row.sequence;
            self.arrived.push(row.message);
        }
        it.from_target.push_back(Input::Sent);
    }

    fn tick(&mut self, vault: usize) {
        self.now += Duration::from_secs(30);
        if !self.vaults[vault].is_frozen {
            self.tell(vault, Input::Tick(self.now.saturating_sub(self.vaults[vault].started)));
        }
    }

    /// The vault hears the next of what has reached it.
    fn deliver(&mut self, vault: usize) {
        if self.vaults[vault].is_frozen {
            return;
        }
        let is_cut = self.connected(vault).is_none();
        let which = self.dice.below(3);
        let it = &mut self.vaults[vault];
        let next = match which {
            0 => it.from_journal.pop_front(),
            1 if it.from_source.is_empty() && it.believes && is_cut => {
                it.believes = false;
                Some(Input::Released)
            }
            1 => it.from_source.pop_front(),
            2 if it.from_target.is_empty() && it.target_believes && !it.target_is_connected => {
                it.target_believes = false;
                Some(Input::TargetLost)
            }
            _ => it.from_target.pop_front(),
        };
        if let Some(input) = next {
            self.vaults[vault].target_believes &= !matches!(input, Input::Refused { .. });
            self.tell(vault, input);
        }
    }

    fn tell(&mut self, vault: usize, input: Input<u32>) {
        let it = &mut self.vaults[vault];
        let Some(core) = &mut it.core else { return };
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            for step in core.apply(input) {
                match step {
                    Step::Write(write) => {
                        it.errands.push_back(Errand::Write(write));
                        if self.flaw == Some(Flaw::AnswersBeforeDurable) {
                            inputs.push_back(Input::Written);
                        }
                    }
                    Step::Load { after, rows, but, .. } => {
                        it.errands.push_back(Errand::Load(after, rows, but));
                    }
                    Step::Send { rows, is_careful } => it.to_target.push_back((rows, is_careful)),
                    Step::Refuse if self.flaw == Some(Flaw::NoDoubt) => {
                        inputs.push_back(Input::Accept);
                        inputs.push_back(Input::TargetUp(badges(it.target_at)));
                    }
                    Step::Refuse => {
                        (it.target_believes, it.target_is_connected) = (false, false);
                        it.from_target.clear();
                    }
                    other => it.to_source.push_back(other),
                }
            }
        }
        if self.dice.below(2) == 0 {
            it.needed = core.needed();
        }
    }
}

/// Of the broker of that number.
fn badges(number: usize) -> BTreeSet<Badge> {
    let mut badge = Badge::default();
    badge[0] = u8::try_from(number).unwrap();
    [badge].into()
}

fn refused(how: Refusal) -> Input<u32> {
    Input::Refused { why: "no".to_owned(), how }
}
