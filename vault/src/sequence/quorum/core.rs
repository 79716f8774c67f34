//! How one vault appends to a ledger that stands in etcd, where others append too: events in, what
//! must be asked or written out. Pure: owns no clock, no socket, no disk, no randomness, and is
//! simulated with lost answers, late arrivals and crashes between any two steps
//! (`tests/tests/quorum_model.rs`).
//!
//! - The ledger is what etcd holds; this vault's journal is an index of it, a prefix of its chain.
//! - A **block** of entries is appended only where the chain ends as this vault knows it: etcd
//!   compares. Of two that append at once one is first; the other reads what came, and decides anew.
//! - **Unknown** is not *no*: a block whose answer was lost may stand, or may still arrive. Until
//!   one of the two is certain, this vault appends nothing but that very block again. It stands
//!   when its first entry is found; it never will once another entry is found in that place.
//! - A ledger that ends before the journal, or goes on otherwise, is not this journal's: nothing is
//!   written on either side until an operator has mended that.

use crate::sequence::entry::{Draft, Entry, Life, Tail, verified};
use crate::sequence::reason::Reason;

/// What happens to a vault.
#[derive(Debug, Clone)]
pub enum Input {
    /// It shall be found out where the ledger ends.
    Ask,
    /// It ended there, at some moment after [`Output::Look`] was asked for.
    Found(Tail),
    /// The entries that [`Output::Fetch`] asked for: a first part of them.
    Fetched(Vec<Entry>),
    /// These shall be entered. Only when [`Core::may_propose`].
    Propose(Vec<Draft>),
    /// The block stands.
    Appended,
    /// It does not: the ledger ended elsewhere.
    Moved,
    /// It was refused for another reason, and surely was not entered by this attempt.
    Refused,
    /// What [`Output::Write`] asked for is in the journal.
    Written,
    /// It is not.
    WriteFailed,
}

/// What a vault must do next, in this order. Where a question is not answered, nothing is told to
/// the core, and [`Input::Ask`] begins anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Read where the ledger ends, from a quorum, then report `Found`.
    Look,
    /// Read entries after this index, then report `Fetched`.
    Fetch(u64),
    /// Append these if the ledger ends there; then report `Appended`, `Moved` or `Refused`, or
    /// nothing if the answer is not known.
    Append(Tail, Vec<Entry>),
    /// Add these to the journal, then report `Written` or `WriteFailed`.
    Write(Vec<Entry>),
    /// What was proposed is in the ledger and in the journal: these entries.
    Landed(Vec<Entry>),
    /// What was proposed never will be: it may be decided anew.
    Passed,
    /// The journal has everything that the ledger had when it was last asked.
    Current,
    /// This ledger is not the journal's.
    Closed(Reason),
}

/// A block that was sent and of which it is not certain what became.
#[derive(Debug, Clone)]
struct Block {
    after: Tail,
    entries: Vec<Entry>,
    /// How often it was sent.
    sent: u32,
    /// Was it found in the ledger?
    stands: bool,
}

impl Block {
    fn end(&self) -> u64 {
        self.entries.last().map_or(self.after.index, |entry| entry.index)
    }

    fn begins(&self, entry: &Entry) -> bool {
        self.entries.first().is_some_and(|first| first.hash == entry.hash)
    }
}

/// One vault's side.
#[derive(Debug, Clone)]
pub struct Core {
    life: Life,
    epoch: u64,
    /// Where the journal ends.
    tail: Tail,
    /// Where the ledger ended when it was last heard of.
    end: u64,
    /// It is known to have held so many.
    floor: u64,
    block: Option<Block>,
    writing: Option<Vec<Entry>>,
}

impl Core {
    /// A vault that has just started. Its journal ends at `tail`; the ledger is known to have held
    /// `floor` entries, also if the journal is gone.
    #[must_use]
    pub fn new(life: Life, epoch: u64, tail: Tail, floor: u64) -> Self {
        Self { life, epoch, tail, end: 0, floor, block: None, writing: None }
    }

    /// Where the journal ends.
    #[must_use]
    pub fn tail(&self) -> Tail {
        self.tail
    }

    /// The highest epoch that an entry was made in.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The ledger is known to have held so many entries.
    #[must_use]
    pub fn floor(&self) -> u64 {
        self.floor.max(self.tail.index)
    }

    /// The ledger was heard to hold so many, and the journal lacks the last of them.
    #[must_use]
    pub fn behind(&self) -> Option<u64> {
        (self.end > self.tail.index).then_some(self.end)
    }

    /// The other vault knows the ledger to have held so many.
    pub fn heard(&mut self, floor: u64) {
        self.floor = self.floor.max(floor);
    }

    /// Is nothing under way?
    #[must_use]
    pub fn may_propose(&self) -> bool {
        self.block.is_none() && self.writing.is_none()
    }

    /// Takes one event in.
    pub fn step(&mut self, input: Input) -> Vec<Output> {
        match input {
            Input::Ask | Input::Moved => vec![Output::Look],
            Input::Found(end) => self.found(end),
            Input::Fetched(entries) => self.fetched(entries),
            Input::Propose(drafts) => self.propose(drafts),
            Input::Appended => self.appended(),
            Input::Refused => self.refused(),
            Input::Written => self.written(),
            Input::WriteFailed => {
                // The ledger has it: it is read from there.
                self.writing = None;
                Vec::new()
            }
        }
    }

    fn found(&mut self, end: Tail) -> Vec<Output> {
        if end.index < self.floor() {
            return vec![Output::Closed(Reason::LedgerShrunk)];
        }
        if end.index == self.tail.index && end.hash != self.tail.hash {
            return vec![Output::Closed(Reason::LedgerForked)];
        }
        self.end = end.index;
        self.floor = self.floor.max(end.index);
        vec![self.go_on()]
    }

    fn go_on(&mut self) -> Output {
        if self.tail.index < self.end {
            return Output::Fetch(self.tail.index);
        }
        match &mut self.block {
            Some(block) => {
                block.sent += 1;
                Output::Append(block.after, block.entries.clone())
            }
            None => Output::Current,
        }
    }

    fn fetched(&mut self, entries: Vec<Entry>) -> Vec<Output> {
        let Some(first) = entries.first() else { return vec![Output::Closed(Reason::LedgerForked)] };
        if first.index == self.tail.index + 1 && first.previous != self.tail.hash {
            return vec![Output::Closed(Reason::LedgerForked)];
        }
        if verified(self.tail, &entries).is_none() {
            return vec![Output::Closed(Reason::LedgerDamaged)];
        }
        self.write(entries)
    }

    fn write(&mut self, entries: Vec<Entry>) -> Vec<Output> {
        self.writing = Some(entries.clone());
        vec![Output::Write(entries)]
    }

    fn propose(&mut self, drafts: Vec<Draft>) -> Vec<Output> {
        debug_assert!(self.may_propose() && !drafts.is_empty());
        let mut end = self.tail;
        let mut entries = Vec::with_capacity(drafts.len());
        for draft in drafts {
            let entry = Entry::append(end, self.epoch, self.life, draft);
            end = entry.tail();
            entries.push(entry);
        }
        self.block = Some(Block { after: self.tail, entries: entries.clone(), sent: 1, stands: false });
        vec![Output::Append(self.tail, entries)]
    }

    fn appended(&mut self) -> Vec<Output> {
        let Some(block) = &self.block else { return Vec::new() };
        self.end = self.end.max(block.end());
        let entries = block.entries.clone();
        self.write(entries)
    }

    /// An earlier attempt whose answer was lost may still arrive.
    fn refused(&mut self) -> Vec<Output> {
        match self.block.take_if(|block| block.sent == 1) {
            Some(_) => vec![Output::Passed],
            None => Vec::new(),
        }
    }

    fn written(&mut self) -> Vec<Output> {
        let Some(entries) = self.writing.take() else { return Vec::new() };
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return Vec::new() };
        self.tail = last.tail();
        self.end = self.end.max(self.tail.index);
        self.epoch = entries.iter().map(|entry| entry.epoch).fold(self.epoch, u64::max);
        let mut outputs = Vec::new();
        if let Some(mut block) = self.block.take() {
            // The journal ended where the block begins: what came first there decides.
            block.stands |= block.begins(first);
            if !block.stands {
                outputs.push(Output::Passed);
            } else if block.end() <= self.tail.index {
                outputs.push(Output::Landed(block.entries));
            } else {
                self.block = Some(block);
            }
        }
        let next = if self.tail.index < self.end { Output::Fetch(self.tail.index) } else { Output::Current };
        outputs.push(next);
        outputs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::entry::Act;

    fn drafts(keys: &[&str]) -> Vec<Draft> {
        let draft = |key: &&str| Draft {
            owner: "erp".to_owned(),
            series: "INV".to_owned(),
            number: 1,
            key: (*key).to_owned(),
            act: Act::Reserve(None),
            at: 0,
            carried: None,
        };
        keys.iter().map(draft).collect()
    }

    fn chain(life: Life, after: Tail, keys: &[&str]) -> Vec<Entry> {
        let mut tail = after;
        drafts(keys)
            .into_iter()
            .map(|draft| {
                let entry = Entry::append(tail, 1, life, draft);
                tail = entry.tail();
                entry
            })
            .collect()
    }

    fn core() -> Core {
        Core::new(7, 1, Tail::default(), 0)
    }

    #[test]
    fn a_block_is_answered_when_it_stands_in_ledger_and_journal() {
        let mut core = core();
        let sent = core.step(Input::Propose(drafts(&["a", "b"])));
        let block = chain(7, Tail::default(), &["a", "b"]);
        assert_eq!(sent, [Output::Append(Tail::default(), block.clone())]);
        assert!(!core.may_propose());
        assert_eq!(core.step(Input::Appended), [Output::Write(block.clone())]);
        assert_eq!(core.step(Input::Written), [Output::Landed(block), Output::Current]);
        assert!(core.may_propose());
    }

    #[test]
    fn a_lost_answer_is_asked_for_and_the_same_block_sent_until_it_is_certain() {
        let mut core = core();
        let block = chain(7, Tail::default(), &["a"]);
        core.step(Input::Propose(drafts(&["a"])));
        assert_eq!(core.step(Input::Ask), [Output::Look]);
        // Not there yet: nothing else may take its place but by being first.
        let again = core.step(Input::Found(Tail::default()));
        assert_eq!(again, [Output::Append(Tail::default(), block.clone())]);
        // The first attempt has arrived meanwhile.
        assert_eq!(core.step(Input::Moved), [Output::Look]);
        assert_eq!(core.step(Input::Found(block[0].tail())), [Output::Fetch(0)]);
        assert_eq!(core.step(Input::Fetched(block.clone())), [Output::Write(block.clone())]);
        assert_eq!(core.step(Input::Written), [Output::Landed(block), Output::Current]);
    }

    #[test]
    fn a_block_that_others_were_before_never_stands_and_is_decided_anew() {
        let mut core = core();
        core.step(Input::Propose(drafts(&["a"])));
        assert_eq!(core.step(Input::Moved), [Output::Look]);
        let theirs = chain(9, Tail::default(), &["x", "y"]);
        assert_eq!(core.step(Input::Found(theirs[1].tail())), [Output::Fetch(0)]);
        core.step(Input::Fetched(theirs[..1].to_vec()));
        assert_eq!(core.step(Input::Written), [Output::Passed, Output::Fetch(1)]);
        core.step(Input::Fetched(theirs[1..].to_vec()));
        assert_eq!(core.step(Input::Written), [Output::Current]);
        assert_eq!(core.tail(), theirs[1].tail());
    }

    #[test]
    fn what_was_refused_is_given_up_only_if_no_earlier_attempt_may_arrive() {
        let mut core = core();
        core.step(Input::Propose(drafts(&["a"])));
        assert_eq!(core.step(Input::Refused), [Output::Passed]);
        core.step(Input::Propose(drafts(&["a"])));
        core.step(Input::Found(Tail::default()));
        assert_eq!(core.step(Input::Refused), []);
        assert!(!core.may_propose());
    }

    #[test]
    fn a_journal_that_cannot_be_written_is_caught_up_from_the_ledger() {
        let mut core = core();
        let block = chain(7, Tail::default(), &["a"]);
        core.step(Input::Propose(drafts(&["a"])));
        core.step(Input::Appended);
        assert_eq!(core.step(Input::WriteFailed), []);
        assert_eq!(core.step(Input::Found(block[0].tail())), [Output::Fetch(0)]);
        core.step(Input::Fetched(block.clone()));
        assert_eq!(core.step(Input::Written), [Output::Landed(block), Output::Current]);
    }

    #[test]
    fn a_ledger_that_is_not_the_journals_closes_it() {
        let ours = chain(7, Tail::default(), &["a", "b"]);
        let theirs = chain(9, Tail::default(), &["a", "b", "c"]);
        let journal = || Core::new(7, 1, ours[1].tail(), 0);
        let closed = |reason| [Output::Closed(reason)];
        assert_eq!(journal().step(Input::Found(ours[0].tail())), closed(Reason::LedgerShrunk));
        assert_eq!(journal().step(Input::Found(theirs[1].tail())), closed(Reason::LedgerForked));
        let mut ahead = journal();
        assert_eq!(ahead.step(Input::Found(theirs[2].tail())), [Output::Fetch(2)]);
        assert_eq!(ahead.step(Input::Fetched(theirs[2..].to_vec())), closed(Reason::LedgerForked));
        let mut torn = chain(7, ours[1].tail(), &["c"]);
        torn[0].number = 9;
        assert_eq!(ahead.step(Input::Fetched(torn)), closed(Reason::LedgerDamaged));
        // It was seen to hold more than was fetched, or the other vault has seen it.
        let mut seen = journal();
        assert_eq!(seen.step(Input::Found(theirs[2].tail())), [Output::Fetch(2)]);
        assert_eq!(seen.step(Input::Found(ours[1].tail())), closed(Reason::LedgerShrunk));
        let mut told = journal();
        told.heard(3);
        assert_eq!(told.step(Input::Found(ours[1].tail())), closed(Reason::LedgerShrunk));
        // The journal is gone, and the ledger with it: something else remembers.
        let mut bare = Core::new(7, 1, Tail::default(), 2);
        assert_eq!(bare.step(Input::Found(ours[0].tail())), closed(Reason::LedgerShrunk));
    }
}
