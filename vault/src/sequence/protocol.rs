//! How the two vaults keep one ledger, so that no number is given twice: messages and events
//! in, messages and writes out. Pure: owns no clock, no socket, no disk, no randomness, and is
//! simulated with crashes between any two steps (`tests/tests/simulate/`).
//!
//! One vault owns the ledger and alone appends to it; an entry is *final*, and may be answered,
//! when it is durable in BOTH journals. What one vault has durable and the other lacks is carried
//! over at the next session, before anything new is granted, so a restart forgets nothing and
//! invents nothing.
//!
//! - **Life**: each process start is a new random life; entries carry their maker's.
//! - **Session**: both sides greet with a fresh nonce; the two nonces name the session, every
//!   later message carries it, and a message of an ended session is ignored.
//! - **Epoch**: an operator's take-over begins a new one and names its owner. Whoever still lives
//!   in a lower one follows: what it knows to be final stands in the higher one's chain too, the
//!   rest of its chain was never answered and gives way.
//! - **Alone**: numbers of some series may be given by a vault without the other, from a range
//!   set aside for that vault and life ([`super::standing`]). They stand in a chain of rows of its
//!   own; the owner carries them into the ledger before anything else is entered in a session.
//!   By an operator's word an owner may also go on without the other; what it enters then is
//!   final on its own disk, and the operator answers for there being no second owner.
//! - **Journal**: each has an identity and remembers the other's, and how far the other was
//!   durable. A lost or rolled-back journal therefore blocks and says so, instead of counting
//!   from below. The operator of the undamaged vault may take the other's empty journal for
//!   its new one ([`Input::Reseed`]); nothing else opens it again.
//! - **Silence about the unknown**: until a session has stood in this life, "there is no such
//!   number" cannot be said ([`Core::is_complete`]): the journal may be an old copy.

mod meeting;
mod operator;
mod settling;
mod step;

use std::collections::VecDeque;

use super::entry::{BATCH, Draft, Entry, Life, Tail};
pub use super::message::{Hello, Message, Nonce, Session};
pub use super::reason::Reason;
use super::witness::Witness;
pub use operator::Opens;
pub use step::{Input, Memory, Output, Write};

/// The other vault, as its Hello tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its life.
    pub life: Life,
    /// Its former life of which nothing is missing.
    pub proven: Option<Life>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Link {
    Apart(Reason),
    /// Our Hello is out (or waits for a write to end); the peer's may have come.
    Greeting {
        nonce: Nonce,
        said: bool,
        heard: Option<Hello>,
    },
    /// Journals are being made equal.
    Syncing(Syncing),
    /// Equal.
    Together(Together),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Syncing {
    session: Session,
    peer: Tail,
    who: Peer,
    /// Up to where the peer knows the ledger to have been answered from.
    settled: u64,
    /// Does this side make the journals equal?
    drives: bool,
    /// Will it be the owner in this session?
    leads: bool,
    /// Driving: the peer's epoch is over, and all that stands after this index there gives way.
    base: Option<u64>,
    /// Driven: our epoch is over, and another takes its place.
    replaced: Option<Replaced>,
    /// Driven: both journals are equal, and that is being written down.
    granted: bool,
}

/// How far a journal whose epoch is over has been compared with that of the new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Replaced {
    epoch: u64,
    /// Both are the same up to here.
    same: Option<Tail>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Together {
    session: Session,
    peer: Tail,
    who: Peer,
    leads: bool,
    stage: Stage,
}

/// How far the owner has come with what must be entered before callers' wishes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Its own rows given alone, after this one.
    Own(u64),
    /// The peer's.
    Peer(u64),
    /// Lives and ranges.
    Ranges,
    /// Everything.
    Settled,
}

/// A write under way, and what holds once it is durable.
#[derive(Debug, Clone, Copy)]
struct UnderWay {
    tail: Tail,
    memory: Memory,
    /// Does the peer wait to hear of it?
    acknowledge: bool,
    /// Does a caller of rows given alone?
    gives: bool,
    /// The life that begins with it.
    begins: Option<Life>,
}

/// A well-behaved owner never has more messages under way than this.
const HELD: usize = 8;

/// One vault's side of the protocol.
#[derive(Debug, Clone)]
pub struct Core {
    life: Life,
    proven: Option<Life>,
    memory: Memory,
    /// Durable.
    tail: Tail,
    writing: Option<UnderWay>,
    /// The index that the load under way names.
    loading: Option<u64>,
    /// As `loading`, of the rows given alone.
    loading_solo: Option<u64>,
    /// What the peer said while this side was writing, in order.
    held: VecDeque<Message>,
    /// What the driver says stands after an entry, while ours are read to be compared with it.
    compared: Option<(Tail, Vec<Entry>, u64)>,
    /// Index up to which callers wait.
    proposed: Option<u64>,
    /// As [`Memory::peer_durable`], perhaps not yet durable itself. It grows only by what was
    /// verified to be the same chain as ours.
    peer_durable: u64,
    /// As [`Memory::settled`], perhaps not yet durable itself.
    settled: u64,
    /// Has a session stood in this life, and has no write failed since?
    met: bool,
    /// Has a session ever stood in this life?
    stood: bool,
    /// Is it one that a session sealed, and has no write failed since?
    sealed: bool,
    /// A write failed, and none has succeeded since.
    unsure: bool,
    /// What the witness holds against our own journal, until a session has mended it.
    damage: Option<Reason>,
    /// The empty journal that the peer showed instead of its own.
    stranger: Option<Nonce>,
    link: Link,
}

impl Core {
    /// A vault that has just started, with what its journal holds durably. `proven` is its former
    /// life, if nothing that one answered can be missing.
    #[must_use]
    pub fn new(life: Life, proven: Option<Life>, memory: Memory, tail: Tail) -> Self {
        Self {
            life,
            proven,
            memory,
            tail,
            writing: None,
            loading: None,
            loading_solo: None,
            held: VecDeque::new(),
            compared: None,
            proposed: None,
            peer_durable: memory.peer_durable,
            settled: memory.settled,
            met: false,
            stood: false,
            sealed: false,
            unsure: false,
            damage: None,
            stranger: None,
            link: Link::Apart(Reason::Away),
        }
    }

    /// Compares the journal with what its witness has seen: with both journals lost, nobody else
    /// would notice, and counting would begin from below.
    #[must_use]
    pub fn witnessed(mut self, witness: Option<Witness>) -> Self {
        self.damage = match witness {
            Some(witness) if witness.journal != self.memory.journal => Some(Reason::OwnJournalLost),
            Some(witness) if witness.index > self.tail.index || witness.solo > self.memory.solo.index => {
                Some(Reason::OwnRolledBack)
            }
            _ => None,
        };
        self
    }

    /// What the witness shall hold now; `None` while it accuses this journal, or while the chain
    /// is being cut back.
    #[must_use]
    pub fn witness(&self) -> Option<Witness> {
        let witness =
            Witness { journal: self.memory.journal, index: self.in_both(), solo: self.memory.solo.index };
        self.damage.is_none().then_some(witness)
    }

    /// May callers' entries be proposed: is a session settled, or does this owner go on alone by an
    /// operator's word, and is nothing under way?
    #[must_use]
    pub fn may_propose(&self) -> bool {
        let granted = match &self.link {
            Link::Together(together) => together.leads && together.stage == Stage::Settled,
            Link::Apart(_) => self.goes_on_alone(),
            Link::Greeting { .. } | Link::Syncing(_) => false,
        };
        granted && self.proposed.is_none() && self.writing.is_none()
    }

    /// The last entry of a round that the other vault has yet to write.
    #[must_use]
    pub fn awaits(&self) -> Option<u64> {
        let together = matches!(&self.link, Link::Together(_)) && self.writing.is_none();
        self.proposed.filter(|_| together)
    }

    /// Is this vault the owner without the other, by an operator's word?
    #[must_use]
    pub fn goes_on_alone(&self) -> bool {
        let apart = matches!(&self.link, Link::Apart(reason) if reason.lets_give_alone());
        apart && self.memory.owns && self.memory.alone && self.damage.is_none()
    }

    /// May rows be given alone? Not from the moment a greeting is out until its connection has
    /// ended again.
    #[must_use]
    pub fn may_give_alone(&self) -> bool {
        let apart = matches!(&self.link, Link::Apart(reason) if reason.lets_give_alone());
        apart && self.writing.is_none() && self.damage.is_none()
    }

    /// Is this vault the owner, of a session or of the last epoch it knows?
    #[must_use]
    pub fn leads(&self) -> bool {
        match &self.link {
            Link::Together(together) => together.leads,
            Link::Syncing(syncing) => syncing.leads,
            Link::Apart(_) | Link::Greeting { .. } => self.memory.owns,
        }
    }

    /// The other vault of the session that stands.
    #[must_use]
    pub fn peer(&self) -> Option<Peer> {
        match &self.link {
            Link::Together(together) => Some(together.who),
            _ => None,
        }
    }

    /// Where the rows that this vault gave alone end, durably.
    #[must_use]
    pub fn solo(&self) -> Tail {
        self.memory.solo
    }

    /// This process's life.
    #[must_use]
    pub fn life(&self) -> Life {
        self.life
    }

    /// This vault's former life, if all that it answered is known.
    #[must_use]
    pub fn proven(&self) -> Option<Life> {
        self.proven
    }

    /// Why entries are not made now, or `None` while both vaults are together.
    #[must_use]
    pub fn refusal(&self) -> Option<Reason> {
        match &self.link {
            Link::Apart(reason) => Some(*reason),
            Link::Greeting { .. } | Link::Syncing(_) => Some(Reason::Syncing),
            Link::Together(together) if together.stage == Stage::Settled => None,
            Link::Together(_) => Some(Reason::Syncing),
        }
    }

    /// Entries up to this index are durable in both journals and may be answered and acted on. Not
    /// those that a session has only just made so: while the two were apart, one of them may have
    /// answered the same key by itself.
    #[must_use]
    pub fn final_index(&self) -> u64 {
        self.tail.index.min(self.settled)
    }

    /// Entries up to this index are known to be durable in both journals.
    fn in_both(&self) -> u64 {
        self.tail.index.min(self.peer_durable)
    }

    /// Entries about records may be answered up to this index: those that are final, and those
    /// that an owner has entered alone by an operator's word.
    #[must_use]
    pub fn entered_index(&self) -> u64 {
        if self.memory.alone { self.tail.index } else { self.final_index() }
    }

    /// Has a session stood in this life, and has no write failed since?
    #[must_use]
    pub fn has_met(&self) -> bool {
        self.met
    }

    /// May this life answer keys by itself that were first sent to it? See [`Core::has_met`]; a
    /// life that a session sealed is known as well.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.met || self.sealed
    }

    /// May the life of a token begin here? Only in a vault that has not met the other since it was
    /// started.
    #[must_use]
    pub fn may_begin(&self) -> bool {
        self.may_give_alone() && !self.stood && !self.sealed && self.memory.whole && !self.unsure
    }

    /// May "there is no such entry" be said? Not before a session has shown that this journal
    /// is no old copy, and not while an operator is needed.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.met && !self.refusal().is_some_and(Reason::needs_operator)
    }

    /// Is the peer there with an empty journal in the place of the one it had?
    #[must_use]
    pub fn may_reseed(&self) -> bool {
        let stranger = self.stranger.is_some() && self.link == Link::Apart(Reason::PeerJournalLost);
        stranger && self.memory.whole && self.writing.is_none()
    }

    /// Is this journal whole and undamaged, and nothing under way?
    #[must_use]
    pub fn may_take_over(&self) -> bool {
        let has_all = self.memory.whole && self.memory.peer_journal.is_some();
        has_all && self.damage.is_none() && !self.unsure && self.writing.is_none()
    }

    /// Did the last write fail, and is nothing under way that would tell whether the next one does?
    #[must_use]
    pub fn cannot_write(&self) -> bool {
        self.unsure && self.writing.is_none() && matches!(self.link, Link::Apart(_))
    }

    /// Are there two owners of one epoch, by an operator's word? Of the first one the configuration
    /// says who owns it.
    #[must_use]
    pub fn may_yield(&self) -> bool {
        let two = matches!(self.link, Link::Apart(Reason::TwoOwners(epoch)) if epoch > 1);
        two && self.may_take_over()
    }

    /// Where this vault's journal ends, durably.
    #[must_use]
    pub fn tail(&self) -> Tail {
        self.tail
    }

    /// The epoch this vault obeys.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.memory.epoch
    }

    /// Takes one event and tells what must follow.
    pub fn step(&mut self, input: Input) -> Vec<Output> {
        let mut out = Vec::new();
        match input {
            Input::Connected(nonce) => {
                self.end(Reason::Syncing, &mut out);
                self.link = Link::Greeting { nonce, said: false, heard: None };
                self.greet(&mut out);
            }
            Input::Disconnected => {
                let reason = match self.link {
                    Link::Apart(reason) if reason != Reason::Syncing => reason,
                    _ => Reason::Away,
                };
                self.end(reason, &mut out);
            }
            Input::Received(message) => self.received(message, &mut out),
            Input::Written => self.written(&mut out),
            Input::WriteFailed => self.write_failed(Reason::CannotWrite, &mut out),
            Input::TryAgain => self.try_again(&mut out),
            Input::CutRefused => self.write_failed(Reason::Forked, &mut out),
            Input::Loaded(after, entries) => self.loaded(after, entries, &mut out),
            Input::SoloLoaded(after, rows) => self.solo_loaded(after, rows, &mut out),
            Input::Adopt(drafts, upto) => self.adopt(drafts, upto, &mut out),
            Input::Propose(drafts) => self.propose(drafts, &mut out),
            Input::Settled => self.settled(&mut out),
            Input::Give(drafts) => self.give(drafts, &mut out),
            Input::Begin(life, draft) => self.begin_sealed(life, draft, &mut out),
            Input::Ask(count) => self.ask(count, &mut out),
            Input::TakeOver(alone) => self.take_over(alone, &mut out),
            Input::Yield => self.give_way(&mut out),
            Input::Reseed => self.reseed(&mut out),
        }
        out
    }

    /// Ends whatever session stands; callers whose entries are not final are told.
    fn end(&mut self, reason: Reason, out: &mut Vec<Output>) {
        self.link = Link::Apart(reason);
        self.held.clear();
        self.compared = None;
        self.loading = None;
        self.loading_solo = None;
        if self.proposed.take().is_some() {
            out.push(Output::InDoubt);
        }
    }

    /// No session on this connection any more.
    fn hang_up(&mut self, reason: Reason, out: &mut Vec<Output>) {
        let stood = matches!(self.link, Link::Together(_));
        self.end(reason, out);
        if stood {
            out.push(Output::HangUp);
        }
    }

    fn received(&mut self, message: Message, out: &mut Vec<Output>) {
        if let Message::Hello(hello) = message {
            if let Link::Greeting { heard, .. } = &mut self.link {
                *heard = Some(hello);
                self.open(out);
            }
            return;
        }
        // Of an ended session, or not this side's to hear: never obeyed.
        let (session, follows) = match &self.link {
            Link::Syncing(syncing) => (syncing.session, !syncing.drives),
            Link::Together(together) => (together.session, !together.leads),
            Link::Apart(_) | Link::Greeting { .. } => return,
        };
        if message.session() != Some(session) {
            return;
        }
        if follows {
            if self.writing.is_some() {
                if self.held.len() == HELD {
                    // No owner of this protocol says so much; with a new session it starts over.
                    return self.hang_up(Reason::Syncing, out);
                }
                return self.held.push_back(message);
            }
            self.follow(message, out);
        } else {
            match message {
                Message::Acknowledge { tail, .. } => self.acknowledged(tail, out),
                Message::Fetched { entries, .. } => self.fetched(entries, out),
                Message::Solo { rows, .. } => self.peers_rows(rows, out),
                Message::Stands { count, .. } => out.push(Output::Stands(count)),
                _ => {}
            }
        }
    }

    /// What the side that drives or leads says.
    fn follow(&mut self, message: Message, out: &mut Vec<Output>) {
        let together = matches!(self.link, Link::Together(_));
        match message {
            Message::Append { after, entries, durable, .. } => self.append(after, entries, durable, out),
            Message::Fetch { after, .. } if !together => self.load(after, out),
            Message::Grant { tail, .. } if !together => self.granted(tail, out),
            Message::FetchSolo { after, .. } if together => self.load_solo(after, out),
            Message::Settled { .. } if together => self.settled(out),
            Message::Ask { session, count } if together => {
                out.push(Output::Send(Message::Stands { session, count }));
            }
            _ => {}
        }
    }

    fn acknowledged(&mut self, tail: Tail, out: &mut Vec<Output>) {
        match &mut self.link {
            Link::Syncing(syncing) => {
                syncing.peer = tail;
                self.sync(out);
            }
            Link::Together(together) => {
                together.peer = tail;
                self.conclude(out);
            }
            Link::Apart(_) | Link::Greeting { .. } => {}
        }
    }

    fn ask(&mut self, count: u64, out: &mut Vec<Output>) {
        match &self.link {
            Link::Together(Together { session, leads: true, .. }) => {
                out.push(Output::Send(Message::Ask { session: *session, count }));
            }
            _ if self.goes_on_alone() => out.push(Output::Stands(count)),
            _ => {}
        }
    }

    fn propose(&mut self, drafts: Vec<Draft>, out: &mut Vec<Output>) {
        let session = match &self.link {
            Link::Together(together) if together.leads => Some(together.session),
            Link::Apart(_) if self.goes_on_alone() => None,
            _ => return out.push(Output::InDoubt),
        };
        debug_assert!(self.proposed.is_none() && !drafts.is_empty() && drafts.len() <= BATCH);
        let after = self.tail;
        let entries = self.chained(after, self.life, drafts);
        self.proposed = entries.last().map(|entry| entry.index);
        if let Some(session) = session {
            // The peer's disk and ours work at the same time.
            let entries = entries.clone();
            out.push(Output::Send(Message::Append { session, after, entries, durable: after.index }));
        }
        self.add(entries, self.current(), out);
    }

    /// Rows of this vault alone; the shell has seen that they are within its own ranges.
    fn give(&mut self, drafts: Vec<Draft>, out: &mut Vec<Output>) {
        if !self.may_give_alone() {
            return out.push(Output::InDoubt);
        }
        debug_assert!(!drafts.is_empty() && drafts.len() <= BATCH);
        self.write_alone(self.life, drafts, None, out);
    }

    fn write_alone(&mut self, life: Life, drafts: Vec<Draft>, begins: Option<Life>, out: &mut Vec<Output>) {
        let rows = self.chained(self.memory.solo, life, drafts);
        let solo = rows.last().map_or(self.memory.solo, Entry::tail);
        let memory = Memory { solo, ..self.current() };
        self.writing = Some(UnderWay { tail: self.tail, memory, acknowledge: false, gives: true, begins });
        out.push(Output::Write(Write { cut: None, entries: Vec::new(), rows, memory }));
    }

    fn chained(&self, mut tail: Tail, life: Life, drafts: Vec<Draft>) -> Vec<Entry> {
        let chain = |draft| {
            let entry = Entry::append(tail, self.memory.epoch, life, draft);
            tail = entry.tail();
            entry
        };
        drafts.into_iter().map(chain).collect()
    }

    /// What is to be remembered as of now.
    fn current(&self) -> Memory {
        Memory { peer_durable: self.peer_durable, settled: self.settled, ..self.memory }
    }

    fn remember(&mut self, memory: Memory, out: &mut Vec<Output>) {
        self.add(Vec::new(), memory, out);
    }

    fn add(&mut self, entries: Vec<Entry>, memory: Memory, out: &mut Vec<Output>) {
        debug_assert!(self.writing.is_none(), "one write at a time");
        let tail = entries.last().map_or(self.tail, Entry::tail);
        self.writing =
            Some(UnderWay { tail, memory, acknowledge: !entries.is_empty(), gives: false, begins: None });
        out.push(Output::Write(Write { cut: None, entries, rows: Vec::new(), memory }));
    }

    fn written(&mut self, out: &mut Vec<Output>) {
        let Some(write) = self.writing.take() else { return };
        self.tail = write.tail;
        if self.memory.peer_journal != write.memory.peer_journal {
            self.peer_durable = write.memory.peer_durable;
            self.settled = write.memory.settled;
        }
        self.memory = write.memory;
        self.unsure = false;
        if let Some(life) = write.begins {
            (self.life, self.sealed) = (life, true);
        }
        if write.gives {
            out.push(Output::Given);
        }
        match self.link {
            Link::Greeting { .. } => self.greet(out),
            Link::Syncing(syncing @ Syncing { granted: true, .. }) => self.begin(syncing, out),
            Link::Syncing(Syncing { session, drives: false, .. })
            | Link::Together(Together { session, leads: false, .. }) => {
                if write.acknowledge {
                    out.push(Output::Send(Message::Acknowledge { session, tail: write.tail }));
                }
            }
            Link::Syncing(_) => self.sync(out),
            Link::Apart(Reason::CannotWrite) => self.start_over(out),
            Link::Together(_) | Link::Apart(_) => self.conclude(out),
        }
        while self.writing.is_none()
            && let Some(message) = self.held.pop_front()
        {
            self.follow(message, out);
        }
    }

    fn write_failed(&mut self, reason: Reason, out: &mut Vec<Output>) {
        let gave = self.writing.take().is_some_and(|write| write.gives);
        self.unsure = true;
        if !gave {
            // The other side may have what this one now lacks.
            (self.met, self.sealed) = (false, false);
        }
        if gave {
            out.push(Output::InDoubt);
        }
        self.hang_up(reason, out);
    }

    /// Writes what it remembers anyway: if that succeeds, the disk is well.
    fn try_again(&mut self, out: &mut Vec<Output>) {
        if self.cannot_write() {
            self.remember(self.current(), out);
        }
    }

    /// The owner: is what was proposed durable where it must be?
    fn conclude(&mut self, out: &mut Vec<Output>) {
        let Some(proposed) = self.proposed else { return };
        match &self.link {
            Link::Apart(_) if self.tail.index >= proposed => {
                self.proposed = None;
                out.push(Output::Final);
            }
            Link::Together(Together { session, peer, stage, .. })
                if self.tail.index >= proposed && peer.index >= proposed =>
            {
                if *peer != self.tail {
                    return self.hang_up(Reason::Forked, out);
                }
                let (session, after) = (*session, self.tail);
                self.proposed = None;
                self.peer_durable = proposed;
                if *stage == Stage::Settled {
                    self.settled = proposed;
                }
                out.push(Output::Final);
                let (entries, durable) = (Vec::new(), after.index);
                out.push(Output::Send(Message::Append { session, after, entries, durable }));
                self.settle(out);
            }
            _ => {}
        }
    }
}
