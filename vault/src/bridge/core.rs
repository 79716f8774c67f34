//! One direction of the bridge as rules: what must be written, taken and sent, after what happened.
//! Pure: owns no clock, socket or disk; whoever drives it does what the steps say, in order, and
//! tells what became of it.
//!
//! A batch is taken from the source exactly once by the source's ordinary local transaction: its
//! messages are written into the journal; then one transaction at the source acknowledges them and
//! sends a **receipt**, a message with the batch's number, into a queue that only this vault
//! reads. If the outcome is not heard (a crash, a cut, a broker's fall) the receipt tells: it is
//! there, so the batch is ours; it is not, so the messages still are the source's. The transaction
//! of a later batch also takes the receipts of earlier ones, whose rows are durably ours by then. So
//! from the first batch on there always lies one receipt: where none is found it may not have been
//! dispatched yet, and nothing is known.
//!
//! A batch is *open* until its commit is heard, and *ours* then. If the connection ends before, it is
//! *uncertain* until receipts were looked for: ours if its own is there, else *returned*. The rows of a
//! returned one are kept in case its receipt comes late, until others were found without it for long; the
//! journal remembers since when, so that it is never uncertain again.
//!
//! Rows that are ours go to the target in one transaction at a time. Their sequences ascend in the
//! order of sending and never change once they may have been sent, so the target can tell what it
//! has already.
//!
//! The addresses of one URI may lead to brokers that know nothing of each other. So a **badge** lies at
//! each, a message with a number of ours that nobody takes away: it tells which of them answers. Every batch
//! remembers at whose it was taken. A receipt tells that its batch is ours wherever it lies; that a batch
//! returned is told at its own broker alone, and until that one is back it stays uncertain. The journal
//! remembers the badge of the target to which rows go. As long as one waits that may be there already,
//! no other target gets any: those of a transaction whose answer was not heard; after a crash, of
//! all that waited. So that much is known without a write for each transaction.

mod target;
mod words;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use serde::Serialize;

pub use target::Row;
use target::Target;
pub use words::{Input, Refusal, Step, Write};

/// An old copy of a journal is fewer batches behind the one that was lost: who writes a receipt for a later one
/// is not the bridge, and must not use its numbers up.
const MOST_BEHIND: u64 = 1 << 40;

/// Receipts that one transaction takes away: many may have gathered.
const MOST_SPENT: usize = 500;

/// Bounds and times.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Most messages in a batch, and in a transaction to the target.
    pub rows: usize,
    /// Most bytes in one, unless a single message is larger.
    pub bytes: u64,
    /// Messages that the journal may hold before nothing more is taken.
    pub journal_rows: u64,
    /// Bytes that it may hold, dead letters among them.
    pub journal_bytes: u64,
    /// So long are rows kept whose receipt was not found: a commit may have been stuck in the broker.
    pub keep_returned: Duration,
    /// So often may the target refuse one message before it is set aside; it is a dead letter once
    /// the target takes another.
    pub tries: u32,
    /// So many messages are set aside before one to another destination is looked for; twice as many at most.
    pub suspects: usize,
    /// A message that is refused for so long is a dead letter although no other was taken.
    pub give_up: Duration,
}

impl Default for Limits {
    /// 500 messages or 4 MiB at a time, 10 GiB in the journal.
    fn default() -> Self {
        Self {
            rows: 500,
            bytes: 4 << 20,
            journal_rows: 10_000_000,
            journal_bytes: 10 << 30,
            keep_returned: Duration::from_secs(600),
            tries: 3,
            suspects: 16,
            give_up: Duration::from_secs(600),
        }
    }
}

/// A number of ours that lies at one broker, and tells it from all others.
pub type Badge = [u8; 16];

/// What lies at the source for us.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Who it is; hardly ever more than one.
    pub badges: BTreeSet<Badge>,
    /// Receipts, by their batches.
    pub receipts: Vec<u64>,
}

/// A batch that is not known to be ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// The broker that it was to be taken from.
    pub at: Option<Badge>,
    /// What it is.
    pub load: Load,
}

/// What the journal held when it was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    /// The next batch's number; none is given twice.
    pub next_batch: u64,
    /// The highest sequence that was given.
    pub last_sequence: u64,
    /// The source that was connected last.
    pub source: Option<Badge>,
    /// The target to which rows go.
    pub target: Option<Badge>,
    /// Batches of which only a receipt can tell whether they were taken.
    pub uncertain: BTreeMap<u64, Held>,
    /// Batches that were found to be the source's, and so long ago.
    pub returned: BTreeMap<u64, (Duration, Held)>,
    /// What waits for the target.
    pub waiting: Load,
    /// Dead letters.
    pub dead: Load,
}

/// Which receipts tell something yet. Once a batch is settled it stays so: an older answer is never wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needed {
    /// From this batch on nothing is known.
    next: u64,
    /// What became of these is not durably known.
    batches: BTreeSet<u64>,
}

impl Needed {
    /// Is it durably known what became of the batch?
    #[must_use]
    pub fn is_settled(&self, batch: u64) -> bool {
        batch < self.next && !self.batches.contains(&batch)
    }
}

/// Messages and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Load {
    /// How many.
    pub rows: u64,
    /// Together.
    pub bytes: u64,
}

impl std::ops::Add for Load {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { rows: self.rows + other.rows, bytes: self.bytes + other.bytes }
    }
}

impl Load {
    /// Without these; none is owed.
    fn less(self, other: Self) -> Self {
        let (rows, bytes) = (self.rows.saturating_sub(other.rows), self.bytes.saturating_sub(other.bytes));
        Self { rows, bytes }
    }
}

/// The batch on its way from the source.
#[derive(Debug, Clone)]
struct Batch<M> {
    number: u64,
    is_written: bool,
    /// Rows got higher sequences since: its own must get new ones, as those may be sent before.
    is_passed: bool,
    first: M,
    last: M,
    held: Held,
}

/// What a write means once it is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Mark {
    Batch(u64),
    Ours(u64, Load),
    Buried(Load),
    Aside,
    /// Where rows go.
    To,
    Other,
    Removed(Load),
}

/// A direction's rules and state. `M` is a message, cheap to clone.
#[derive(Debug, Clone)]
pub struct Core<M> {
    limits: Limits,
    now: Duration,
    next_batch: u64,
    /// The lock is held and the consumer open.
    consuming: bool,
    gathered: VecDeque<(M, u64)>,
    gathered_bytes: u64,
    open: Option<Batch<M>>,
    /// The broker that the journal notes with what is written.
    at: Option<Badge>,
    /// Who answered last, with our lock or without.
    answers: BTreeSet<Badge>,
    /// Written, and nobody has heard yet whether they were taken.
    uncertain: BTreeMap<u64, Held>,
    /// Their receipts were not found; since when others were found without them.
    returned: BTreeMap<u64, (Option<Duration>, Held)>,
    /// Their receipts came late; they are ours once no batch is open, as its rows go first.
    late: BTreeMap<u64, Load>,
    /// Receipts that lie at the source and were dispatched to us.
    receipts: BTreeSet<u64>,
    /// Dead letters.
    dead: Load,
    is_held: bool,
    /// When all receipts were read over the connection that holds the lock.
    read_at: Duration,
    target: Target<M>,
    writing: VecDeque<Mark>,
    steps: Vec<Step<M>>,
}

impl<M: Clone> Core<M> {
    /// Goes on from what the journal held.
    #[must_use]
    pub fn new(limits: Limits, kept: Kept) -> Self {
        // So that what was found before the start was found at some time as well.
        let now = limits.keep_returned;
        let since = |(batch, (age, held))| (batch, (Some(now.saturating_sub(age)), held));
        Self {
            target: Target::new(&limits, &kept),
            now,
            next_batch: kept.next_batch,
            consuming: false,
            gathered: VecDeque::new(),
            gathered_bytes: 0,
            open: None,
            at: kept.source,
            answers: BTreeSet::new(),
            uncertain: kept.uncertain,
            returned: kept.returned.into_iter().map(since).collect(),
            late: BTreeMap::new(),
            receipts: BTreeSet::new(),
            dead: kept.dead,
            is_held: false,
            read_at: now,
            writing: VecDeque::new(),
            steps: Vec::new(),
            limits,
        }
    }

    /// Takes what happened and tells what must be done, in order.
    pub fn apply(&mut self, input: Input<M>) -> Vec<Step<M>> {
        match input {
            Input::Holding(found) => {
                self.answered(&found.badges);
                if self.read(&found.badges, &found.receipts) {
                    self.forget(&found.badges);
                }
                self.receipts.extend(found.receipts);
                self.consuming = true;
                self.read_at = self.now;
                self.steps.push(Step::Consume);
            }
            Input::Receipts(found) => {
                if !self.consuming {
                    self.answers.clone_from(&found.badges);
                }
                self.read(&found.badges, &found.receipts);
            }
            Input::Released => self.release(),
            Input::Received(message, bytes) => {
                self.gathered_bytes += bytes;
                self.gathered.push_back((message, bytes));
            }
            Input::Taken => self.taken(),
            Input::Receipt(batch) => {
                self.read(&self.answers.clone(), &[batch]);
                self.receipts.insert(batch);
            }
            Input::Written => self.written(),
            Input::TargetUp(badges) => {
                let noted = self.target.up(&badges, &mut self.steps);
                self.note(noted);
            }
            Input::TargetLost => self.target.lost(),
            Input::Loaded(rows) => self.target.loaded(rows),
            Input::Damaged(load) => {
                self.target.damaged(load);
                self.dead = self.dead + load;
            }
            Input::Hold(is_held) => self.is_held = is_held,
            Input::Sent => self.target.sent(),
            Input::Refused { why, how } => self.target.refused(why, how, self.now),
            Input::Settle { taken } => self.settle(taken),
            Input::Accept => {
                let noted = self.target.accept();
                self.note(noted);
            }
            Input::Tick(now) => self.now = now + self.limits.keep_returned,
        }
        if self.open.is_none() {
            self.own_late();
            self.begin();
        }
        for (write, load) in self.target.go_on(&mut self.steps) {
            let mark = match write {
                Write::Bury { .. } => Mark::Buried(load),
                Write::Aside { .. } | Write::Acquit | Write::Pass(_) => Mark::Aside,
                _ => Mark::Removed(load),
            };
            if let (Write::Pass(_), Some(batch)) = (&write, &mut self.open) {
                batch.is_passed = true;
            }
            self.write(write, mark);
        }
        std::mem::take(&mut self.steps)
    }

    /// May more messages be taken? If not, they stay on their way.
    #[must_use]
    pub fn wants_messages(&self) -> bool {
        self.gathered.len() < self.limits.rows && self.gathered_bytes < self.limits.bytes
    }

    /// Has the journal no room? Nothing more is taken from the source then.
    #[must_use]
    pub fn is_full(&self) -> bool {
        // What returned to the source is kept for a short time only, and waits between connections
        // keep it little.
        let kept = self.dead + self.target.waiting();
        kept.rows >= self.limits.journal_rows || kept.bytes >= self.limits.journal_bytes
    }

    /// Is nothing here that only this vault has, or is about to have?
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.open.is_none() && self.writing.is_empty() && self.waiting() == Load::default()
    }

    /// Should all receipts be read again, over a new connection? Some rows are kept that are not ours, and
    /// otherwise would be for ever.
    #[must_use]
    pub fn should_read(&self) -> bool {
        let keep = self.limits.keep_returned;
        let is_over = |since: Duration| self.now.saturating_sub(since) >= keep;
        let mut here = self.returned.values().filter(|(_, held)| !self.is_strange(held));
        let is_kept = here.any(|(since, _)| since.is_some_and(is_over));
        self.consuming && self.open.is_none() && is_kept && is_over(self.read_at)
    }

    /// What was found to be the source's, and is kept for a while in case its receipt comes late.
    #[must_use]
    pub fn returned(&self) -> Load {
        self.returned.values().fold(Load::default(), |all, (_, held)| all + held.load)
    }

    /// Dead letters.
    #[must_use]
    pub fn dead(&self) -> Load {
        self.dead
    }

    /// What waits for the target.
    #[must_use]
    pub fn waiting(&self) -> Load {
        self.target.waiting()
    }

    /// What was written and of which only a receipt can tell whether it was taken.
    #[must_use]
    pub fn uncertain(&self) -> Load {
        self.uncertain.values().fold(Load::default(), |all, held| all + held.load)
    }

    /// What of it waits for the source that it was to be taken from: another one answers.
    #[must_use]
    pub fn elsewhere(&self) -> Load {
        self.strange().fold(Load::default(), |all, (_, held)| all + held.load)
    }

    /// Is the target refused that answers?
    #[must_use]
    pub fn refuses(&self) -> bool {
        self.target.refuses()
    }

    /// Are receipts to be looked for at another source than the one that answers? One may also come late.
    #[must_use]
    pub fn searches(&self) -> bool {
        self.strange().next().is_some() || self.returned.values().any(|(_, held)| self.is_strange(held))
    }

    /// Which receipts tell something yet?
    #[must_use]
    pub fn needed(&self) -> Needed {
        let written = self.writing.iter().filter_map(|mark| match mark {
            Mark::Ours(batch, _) => Some(*batch),
            _ => None,
        });
        let known = self.uncertain.keys().chain(self.returned.keys()).chain(self.late.keys()).copied();
        let open = self.open.iter().map(|batch| batch.number);
        Needed { next: self.next_batch, batches: known.chain(open).chain(written).collect() }
    }

    fn strange(&self) -> impl Iterator<Item = (u64, Held)> {
        let held = self.uncertain.iter().map(|(batch, held)| (*batch, *held));
        held.filter(|(_, held)| self.is_strange(held))
    }

    fn is_strange(&self, held: &Held) -> bool {
        !self.answers.is_empty() && !is_of(held, &self.answers)
    }

    fn write(&mut self, write: Write<M>, mark: Mark) {
        self.writing.push_back(mark);
        self.steps.push(Step::Write(write));
    }

    fn note(&mut self, target: Option<Badge>) {
        if let Some(badge) = target {
            self.write(Write::To(badge), Mark::To);
        }
    }

    /// This source lets us in.
    fn answered(&mut self, badges: &BTreeSet<Badge>) {
        self.answers.clone_from(badges);
        let is_noted = self.at.is_some_and(|at| badges.contains(&at));
        if let Some(badge) = badges.first().filter(|_| !is_noted) {
            self.at = Some(*badge);
            self.write(Write::From(*badge), Mark::Other);
        }
    }

    /// An operator says what became of what waits for another source.
    fn settle(&mut self, taken: bool) {
        let strange: Vec<(u64, Held)> = self.strange().collect();
        for (batch, held) in strange {
            self.uncertain.remove(&batch);
            if taken {
                self.late.insert(batch, held.load);
            } else {
                self.write(Write::Drop(batch), Mark::Other);
            }
        }
    }

    /// Receipts that lie at a source tell what became of what is uncertain there; none tells nothing. Returns
    /// whether anything is told.
    fn read(&mut self, badges: &BTreeSet<Badge>, receipts: &[u64]) -> bool {
        // A receipt that this journal has not sent: it is an old copy of the one that did.
        let unsent = self.next_batch..self.next_batch.saturating_add(MOST_BEHIND);
        if let Some(last) = receipts.iter().filter(|batch| unsent.contains(batch)).max() {
            self.next_batch = last + 1;
            self.write(Write::Jump(last + 1), Mark::Other);
        }
        for batch in receipts {
            let uncertain = self.uncertain.remove(batch);
            let held = uncertain.or_else(|| self.returned.remove(batch).map(|(_, held)| held));
            self.late.extend(held.map(|held| (*batch, held.load)));
        }
        self.own_late();
        let uncertain = std::mem::take(&mut self.uncertain).into_iter();
        let not_found: BTreeMap<_, _>;
        (not_found, self.uncertain) = uncertain.partition(|(_, held)| is_of(held, badges));
        self.returned.extend(not_found.into_iter().map(|(batch, held)| (batch, (None, held))));
        let is_told = !receipts.is_empty();
        if is_told {
            let mut new = Vec::new();
            let here = self.returned.iter_mut().filter(|(_, (_, held))| is_of(held, badges));
            for (batch, (since, _)) in here.filter(|(_, (since, _))| since.is_none()) {
                *since = Some(self.now);
                new.push(*batch);
            }
            if !new.is_empty() {
                self.write(Write::Return(new), Mark::Other);
            }
        }
        is_told
    }

    /// What is known to have been taken, later than its transaction told. It gets new sequences, as rows
    /// behind it may be at the target already; those of an open batch must be ours before, for what is
    /// behind them is not looked for again.
    fn own_late(&mut self) {
        if self.open.is_none() {
            for (batch, load) in std::mem::take(&mut self.late) {
                self.write(Write::Ours { batch, afresh: true }, Mark::Ours(batch, load));
            }
        }
    }

    /// Rows whose receipt has not come for long. Only who holds the lock has seen them all: without it an
    /// old connection of ours may live on at the source, and keep them from us.
    fn forget(&mut self, badges: &BTreeSet<Badge>) {
        let is_over = |(since, held): &(Option<Duration>, Held)| {
            let is_long = |since: Duration| self.now.saturating_sub(since) >= self.limits.keep_returned;
            is_of(held, badges) && since.is_some_and(is_long)
        };
        let over: Vec<u64> =
            self.returned.iter().filter(|(_, it)| is_over(it)).map(|(batch, _)| *batch).collect();
        for batch in over {
            self.returned.remove(&batch);
            self.write(Write::Drop(batch), Mark::Other);
        }
    }

    fn release(&mut self) {
        self.consuming = false;
        self.gathered.clear();
        self.gathered_bytes = 0;
        self.receipts.clear();
        match self.open.take() {
            // The transaction may have been committed.
            Some(batch) if batch.is_written => drop(self.uncertain.insert(batch.number, batch.held)),
            // It was not sent, and will not be.
            Some(batch) => self.write(Write::Drop(batch.number), Mark::Other),
            None => {}
        }
    }

    fn taken(&mut self) {
        if let Some(batch) = self.open.take_if(|batch| batch.is_written) {
            let ours = Write::Ours { batch: batch.number, afresh: batch.is_passed };
            self.write(ours, Mark::Ours(batch.number, batch.held.load));
        }
    }

    fn written(&mut self) {
        match self.writing.pop_front() {
            Some(Mark::Batch(number)) => self.take(number),
            Some(Mark::Ours(_, load)) => self.target.add(load),
            Some(Mark::Removed(load)) => self.target.removed(load),
            Some(Mark::Buried(load)) => {
                self.target.removed(load);
                self.dead = self.dead + load;
            }
            Some(Mark::Aside) => self.target.kept_aside(),
            Some(Mark::To) => self.target.noted(),
            Some(Mark::Other) | None => {}
        }
    }

    /// The batch's rows are durable: it may be taken.
    fn take(&mut self, number: u64) {
        let Some(batch) = self.open.as_mut().filter(|batch| batch.number == number) else { return };
        batch.is_written = true;
        let (first, last) = (batch.first.clone(), batch.last.clone());
        let count = usize::try_from(batch.held.load.rows).unwrap_or(usize::MAX);
        // A receipt is needed until its batch is durably ours.
        let is_needed = |batch: u64| {
            self.late.contains_key(&batch)
                || self.writing.iter().any(|mark| matches!(mark, Mark::Ours(it, _) if *it == batch))
        };
        let spent = self.receipts.iter().copied().filter(|batch| !is_needed(*batch));
        let spent: Vec<u64> = spent.take(MOST_SPENT).collect();
        for batch in &spent {
            self.receipts.remove(batch);
        }
        self.steps.push(Step::Take { batch: number, first, last, count, spent });
    }

    /// The next batch: whatever has gathered while the one before was on its way.
    fn begin(&mut self) {
        if !self.consuming || self.is_held || self.gathered.is_empty() || self.is_full() {
            return;
        }
        let mut load = Load::default();
        let mut messages = Vec::new();
        while let Some((message, bytes)) = self.gathered.pop_front() {
            let fits = messages.len() < self.limits.rows && load.bytes + bytes <= self.limits.bytes;
            if !fits && !messages.is_empty() {
                self.gathered.push_front((message, bytes));
                break;
            }
            load = Load { rows: load.rows + 1, bytes: load.bytes + bytes };
            messages.push(message);
        }
        self.gathered_bytes -= load.bytes;
        if let (Some(first), Some(last)) = (messages.first().cloned(), messages.last().cloned()) {
            let number = self.next_batch;
            self.next_batch += 1;
            let held = Held { at: self.at, load };
            self.open = Some(Batch { number, is_written: false, is_passed: false, first, last, held });
            self.write(Write::Batch(number, messages), Mark::Batch(number));
        }
    }
}

/// Was it to be taken from that broker?
fn is_of(held: &Held, badges: &BTreeSet<Badge>) -> bool {
    held.at.is_some_and(|at| badges.contains(&at))
}

#[cfg(test)]
mod tests;
