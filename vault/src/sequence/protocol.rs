//! How the two vaults keep one ledger, so that no number is given twice: messages and events
//! in, messages and writes out. Pure: owns no clock, no socket, no disk, no randomness, and is
//! simulated with crashes between any two steps (`tests/tests/simulate/`).
//!
//! It is the strict half of the pair protocol. One vault owns the ledger and alone appends to
//! it; an entry is *final*, and may be answered, when it is durable in BOTH journals. What one
//! vault has durable and the other lacks is carried over at the next session, before anything
//! new is granted, so a restart forgets nothing and invents nothing.
//!
//! - **Life**: each process start is a new random life; entries carry their maker's.
//! - **Session**: both sides greet with a fresh nonce; the two nonces name the session, every
//!   later message carries it, and a message of an ended session is ignored.
//! - **Epoch**: fences an owner that has been replaced; a lower epoch is refused, never obeyed.
//! - **Journal**: each has an identity and remembers the other's, and how far the other was
//!   durable. A lost or rolled-back journal therefore blocks and says so, instead of counting
//!   from below. The operator of the undamaged vault may take the other's empty journal for
//!   its new one ([`Input::Reseed`]); nothing else opens it again.
//! - **Silence about the unknown**: until a session has stood in this life, "there is no such
//!   number" cannot be said ([`Core::is_complete`]): the journal may be an old copy.

use std::cmp::Ordering;
use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::entry::{BATCH, Draft, Entry, Tail, verified};
pub use super::message::{Hello, Message, Nonce, Session};
pub use super::reason::Reason;
use super::witness::Witness;

/// What this side keeps durably beside the entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// This journal's identity, made with it.
    pub journal: Nonce,
    /// The highest epoch seen.
    pub epoch: u64,
    /// The other side's journal, from the first session on.
    pub peer_journal: Option<Nonce>,
    /// How far the other side is known to be durable.
    pub peer_durable: u64,
}

/// What happens to a vault.
#[derive(Debug, Clone)]
pub enum Input {
    /// A connection to the peer stands; the nonce is fresh.
    Connected(Nonce),
    /// It is gone.
    Disconnected,
    /// The peer said this.
    Received(Message),
    /// The last [`Output::Write`] is durable.
    Written,
    /// The last [`Output::Write`] failed (disk full, I/O error). What it wrote may yet turn up
    /// after a crash, unless another write has succeeded since.
    WriteFailed,
    /// The entries that an [`Output::Load`] asked for, with the index it named.
    Loaded(u64, Vec<Entry>),
    /// New entries, wanted by callers. Only when [`Core::may_propose`].
    Propose(Vec<Draft>),
    /// The operator says that the other vault's empty journal replaces the one it had, and that
    /// this vault's own is undamaged. Only when [`Core::may_reseed`].
    Reseed,
}

/// What a vault must do next, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Say this to the peer.
    Send(Message),
    /// Make entries and memory durable in one transaction, then report `Written` or `WriteFailed`.
    Write(Vec<Entry>, Memory),
    /// Read up to [`BATCH`] entries after this index, then report `Loaded`.
    Load(u64),
    /// What was proposed is final: answer the callers.
    Final,
    /// What was proposed is not known to be final: the callers hear "in doubt".
    InDoubt,
    /// End the connection at once, for the peer still believes in a session; the shell connects
    /// again. A connection that merely leads to no session is left standing, for it serves
    /// others too; the shell ends it after a while, to try again.
    HangUp,
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
    Syncing {
        session: Session,
        peer: Tail,
    },
    /// Equal; the owner may propose.
    Together {
        session: Session,
        peer: Tail,
    },
}

/// A write under way, and what holds once it is durable.
#[derive(Debug, Clone, Copy)]
struct Write {
    tail: Tail,
    memory: Memory,
    has_entries: bool,
}

/// A well-behaved owner never has more messages under way than this.
const HELD: usize = 8;

/// One vault's side of the protocol.
#[derive(Debug, Clone)]
pub struct Core {
    owns: bool,
    owner: String,
    life: Nonce,
    memory: Memory,
    /// Durable.
    tail: Tail,
    writing: Option<Write>,
    /// The index that the load under way names.
    loading: Option<u64>,
    /// What the owner said while this follower was writing, in order.
    held: VecDeque<Message>,
    /// Index up to which callers wait.
    proposed: Option<u64>,
    /// As [`Memory::peer_durable`], perhaps not yet durable itself. It grows only by what was
    /// verified to be the same chain as ours.
    peer_durable: u64,
    /// Has a session stood in this life?
    met: bool,
    /// A write failed, and none has succeeded since.
    unsure: bool,
    /// What the witness holds against our own journal, until a session has mended it.
    damage: Option<Reason>,
    /// The empty journal that the peer showed instead of its own.
    stranger: Option<Nonce>,
    link: Link,
}

impl Core {
    /// A vault that has just started, with what its journal holds durably.
    #[must_use]
    pub fn new(own: &str, owner: &str, life: Nonce, memory: Memory, tail: Tail) -> Self {
        Self {
            owns: own == owner,
            owner: owner.to_owned(),
            life,
            memory,
            tail,
            writing: None,
            loading: None,
            held: VecDeque::new(),
            proposed: None,
            peer_durable: memory.peer_durable,
            met: false,
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
            Some(witness) if witness.index > self.tail.index => Some(Reason::OwnRolledBack),
            _ => None,
        };
        self
    }

    /// What the witness shall hold now; `None` while it accuses this journal.
    #[must_use]
    pub fn witness(&self) -> Option<Witness> {
        let witness = Witness { journal: self.memory.journal, index: self.tail.index };
        self.damage.is_none().then_some(witness)
    }

    /// Is a session granted and nothing under way?
    #[must_use]
    pub fn may_propose(&self) -> bool {
        self.owns
            && matches!(self.link, Link::Together { .. })
            && self.proposed.is_none()
            && self.writing.is_none()
    }

    /// Why numbers are not given now, or `None` while both vaults are together.
    #[must_use]
    pub fn refusal(&self) -> Option<Reason> {
        match &self.link {
            Link::Apart(reason) => Some(*reason),
            Link::Greeting { .. } | Link::Syncing { .. } => Some(Reason::Syncing),
            Link::Together { .. } => None,
        }
    }

    /// Entries up to this index are durable in both journals and may be answered.
    #[must_use]
    pub fn final_index(&self) -> u64 {
        self.tail.index.min(self.peer_durable)
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
        self.stranger.is_some() && self.link == Link::Apart(Reason::PeerJournalLost) && self.writing.is_none()
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
            Input::WriteFailed => self.write_failed(&mut out),
            Input::Loaded(after, entries) => self.loaded(after, entries, &mut out),
            Input::Propose(drafts) => self.propose(drafts, &mut out),
            Input::Reseed => self.reseed(&mut out),
        }
        out
    }

    /// Ends whatever session stands; callers whose entries are not final are told.
    fn end(&mut self, reason: Reason, out: &mut Vec<Output>) {
        self.link = Link::Apart(reason);
        self.held.clear();
        self.loading = None;
        if self.proposed.take().is_some() {
            out.push(Output::InDoubt);
        }
    }

    /// No session on this connection any more.
    fn hang_up(&mut self, reason: Reason, out: &mut Vec<Output>) {
        let stood = matches!(self.link, Link::Together { .. });
        self.end(reason, out);
        if stood {
            out.push(Output::HangUp);
        }
    }

    /// Says Hello as soon as no write is under way, for Hello tells what is durable.
    fn greet(&mut self, out: &mut Vec<Output>) {
        if self.writing.is_some() {
            return;
        }
        let Link::Greeting { nonce, said, .. } = &mut self.link else { return };
        if *said {
            return;
        }
        *said = true;
        let hello = Hello {
            nonce: *nonce,
            life: self.life,
            owner: self.owner.clone(),
            epoch: self.memory.epoch,
            journal: self.memory.journal,
            tail: self.tail,
            peer_journal: self.memory.peer_journal,
            peer_durable: self.peer_durable,
        };
        out.push(Output::Send(Message::Hello(hello)));
        self.open(out);
    }

    fn received(&mut self, message: Message, out: &mut Vec<Output>) {
        if !self.owns && self.writing.is_some() && !matches!(message, Message::Hello(_)) {
            if self.held.len() == HELD {
                // No owner of this protocol says so much; with a new session it starts over.
                return self.hang_up(Reason::Syncing, out);
            }
            return self.held.push_back(message);
        }
        match message {
            Message::Hello(hello) => {
                if let Link::Greeting { heard, .. } = &mut self.link {
                    *heard = Some(hello);
                    self.open(out);
                }
            }
            Message::Append { session, entries, durable } if self.is_current(session) && !self.owns => {
                self.append(entries, durable, out);
            }
            Message::Acknowledge { session, tail } if self.is_current(session) && self.owns => {
                self.acknowledged(tail, out);
            }
            Message::Fetch { session, after } if self.is_current(session) && !self.owns => {
                self.load(after, out);
            }
            Message::Fetched { session, entries } if self.is_current(session) && self.owns => {
                self.fetched(entries, out);
            }
            Message::Grant { session, tail } if self.is_current(session) && !self.owns => {
                self.granted(session, tail, out);
            }
            // Of an ended session, or not this side's to hear: never obeyed.
            Message::Append { .. }
            | Message::Acknowledge { .. }
            | Message::Fetch { .. }
            | Message::Fetched { .. }
            | Message::Grant { .. } => {}
        }
    }

    fn is_current(&self, session: Session) -> bool {
        match &self.link {
            Link::Syncing { session: current, .. } | Link::Together { session: current, .. } => {
                *current == session
            }
            Link::Apart(_) | Link::Greeting { .. } => false,
        }
    }

    /// Both Hellos are there: compare them, and begin to make the journals equal.
    fn open(&mut self, out: &mut Vec<Output>) {
        let Link::Greeting { nonce, said: true, heard: Some(hello) } = &self.link else { return };
        let (nonce, hello) = (*nonce, hello.clone());
        self.stranger = None;
        if let Some(reason) = self.objection(&hello) {
            if reason == Reason::PeerJournalLost && hello.tail.index == 0 && hello.peer_journal.is_none() {
                self.stranger = Some(hello.journal);
            }
            return self.hang_up(reason, out);
        }
        let session = if self.owns { Session(nonce, hello.nonce) } else { Session(hello.nonce, nonce) };
        self.link = Link::Syncing { session, peer: hello.tail };
        let epoch = self.memory.epoch.max(hello.epoch);
        let memory = Memory { epoch, peer_journal: Some(hello.journal), ..self.memory };
        if memory == self.memory && !self.unsure {
            self.sync(out);
        } else {
            // Whom we met must be known after a crash, or a lost journal would pass unseen. And
            // what a failed write left behind must be overwritten before others take its place.
            self.write(Vec::new(), memory, out);
        }
    }

    fn objection(&self, hello: &Hello) -> Option<Reason> {
        let peer_is_new = self.memory.peer_journal.is_some_and(|known| known != hello.journal);
        let own_is_new = hello.peer_journal.is_some_and(|known| known != self.memory.journal);
        if hello.owner != self.owner {
            Some(Reason::OtherOwner)
        } else if peer_is_new {
            Some(Reason::PeerJournalLost)
        } else if own_is_new {
            Some(Reason::OwnJournalLost)
        } else if let Some(damage) = self.damage
            && !(damage == Reason::OwnJournalLost && hello.peer_journal == Some(self.memory.journal))
        {
            // Only a peer that an operator has told of this very journal may fill it again.
            Some(damage)
        } else if self.owns && hello.epoch > self.memory.epoch {
            Some(Reason::Fenced)
        } else if !self.owns && hello.epoch < self.memory.epoch {
            Some(Reason::PeerFenced)
        } else if hello.tail.index < self.peer_durable {
            Some(Reason::PeerRolledBack)
        } else if self.tail.index < hello.peer_durable {
            Some(Reason::OwnRolledBack)
        } else if hello.tail.index == self.tail.index && hello.tail.hash != self.tail.hash {
            Some(Reason::Forked)
        } else {
            None
        }
    }

    /// The owner's next move towards equal journals.
    fn sync(&mut self, out: &mut Vec<Output>) {
        let Link::Syncing { session, peer } = self.link else { return };
        if !self.owns || self.writing.is_some() || self.loading.is_some() {
            return;
        }
        let tail = self.tail;
        match peer.index.cmp(&tail.index) {
            Ordering::Less => self.load(peer.index, out),
            Ordering::Greater => {
                out.push(Output::Send(Message::Fetch { session, after: tail.index }));
            }
            Ordering::Equal if peer.hash != tail.hash => self.hang_up(Reason::Forked, out),
            Ordering::Equal => {
                self.link = Link::Together { session, peer };
                self.peer_durable = tail.index;
                self.met = true;
                self.damage = None;
                out.push(Output::Send(Message::Grant { session, tail }));
            }
        }
    }

    fn load(&mut self, after: u64, out: &mut Vec<Output>) {
        self.loading = Some(after);
        out.push(Output::Load(after));
    }

    fn loaded(&mut self, after: u64, entries: Vec<Entry>, out: &mut Vec<Output>) {
        if self.loading != Some(after) {
            return;
        }
        self.loading = None;
        let Link::Syncing { session, .. } = self.link else { return };
        let durable = self.tail.index;
        out.push(Output::Send(if self.owns {
            Message::Append { session, entries, durable }
        } else {
            Message::Fetched { session, entries }
        }));
    }

    fn fetched(&mut self, entries: Vec<Entry>, out: &mut Vec<Output>) {
        if self.writing.is_some() || !matches!(self.link, Link::Syncing { .. }) {
            return;
        }
        if entries.is_empty() || verified(self.tail, &entries).is_none() {
            return self.hang_up(Reason::Forked, out);
        }
        self.write(entries, self.memory, out);
    }

    fn append(&mut self, entries: Vec<Entry>, durable: u64, out: &mut Vec<Output>) {
        if entries.len() > BATCH || verified(self.tail, &entries).is_none() {
            return self.hang_up(Reason::Forked, out);
        }
        if entries.is_empty() {
            // Said in answer to our own acknowledgement, so the chains were equal up to our tail.
            self.peer_durable = self.peer_durable.max(durable.min(self.tail.index));
            return;
        }
        // The owner's chain continues ours: what it has durable of our part is the same.
        self.peer_durable = self.peer_durable.max(durable.min(self.tail.index));
        let memory = Memory { peer_durable: self.peer_durable, ..self.memory };
        self.write(entries, memory, out);
    }

    fn acknowledged(&mut self, tail: Tail, out: &mut Vec<Output>) {
        match &mut self.link {
            Link::Syncing { peer, .. } => {
                *peer = tail;
                self.sync(out);
            }
            Link::Together { peer, .. } => {
                *peer = tail;
                self.conclude(out);
            }
            Link::Apart(_) | Link::Greeting { .. } => {}
        }
    }

    fn granted(&mut self, session: Session, tail: Tail, out: &mut Vec<Output>) {
        if tail != self.tail {
            return self.hang_up(Reason::Forked, out);
        }
        self.peer_durable = tail.index;
        self.met = true;
        self.damage = None;
        self.link = Link::Together { session, peer: tail };
    }

    /// From here on the peer is known to have nothing: what it had can be lost with this vault,
    /// and is final again when it is carried over.
    fn reseed(&mut self, out: &mut Vec<Output>) {
        debug_assert!(self.may_reseed(), "the shell asks first");
        if !self.may_reseed() {
            return;
        }
        let memory = Memory { peer_journal: self.stranger.take(), peer_durable: 0, ..self.memory };
        self.write(Vec::new(), memory, out);
    }

    fn propose(&mut self, drafts: Vec<Draft>, out: &mut Vec<Output>) {
        let Link::Together { session, .. } = self.link else {
            out.push(Output::InDoubt);
            return;
        };
        debug_assert!(self.may_propose() && !drafts.is_empty() && drafts.len() <= BATCH);
        let mut tail = self.tail;
        let entries: Vec<Entry> = drafts
            .into_iter()
            .map(|draft| {
                let entry = Entry::append(tail, self.memory.epoch, self.life, draft);
                tail = entry.tail();
                entry
            })
            .collect();
        self.proposed = Some(tail.index);
        let durable = self.tail.index;
        // The peer's disk and ours work at the same time.
        out.push(Output::Send(Message::Append { session, entries: entries.clone(), durable }));
        let memory = Memory { peer_durable: self.peer_durable, ..self.memory };
        self.write(entries, memory, out);
    }

    fn write(&mut self, entries: Vec<Entry>, memory: Memory, out: &mut Vec<Output>) {
        debug_assert!(self.writing.is_none(), "one write at a time");
        let tail = entries.last().map_or(self.tail, Entry::tail);
        self.writing = Some(Write { tail, memory, has_entries: !entries.is_empty() });
        out.push(Output::Write(entries, memory));
    }

    fn written(&mut self, out: &mut Vec<Output>) {
        let Some(write) = self.writing.take() else { return };
        self.tail = write.tail;
        if self.memory.peer_journal != write.memory.peer_journal {
            self.peer_durable = write.memory.peer_durable;
        }
        self.memory = write.memory;
        self.unsure = false;
        match self.link {
            Link::Greeting { .. } => self.greet(out),
            Link::Syncing { session, .. } | Link::Together { session, .. } if !self.owns => {
                if write.has_entries {
                    out.push(Output::Send(Message::Acknowledge { session, tail: write.tail }));
                }
            }
            Link::Syncing { .. } => self.sync(out),
            Link::Together { .. } => self.conclude(out),
            Link::Apart(_) => {}
        }
        while self.writing.is_none()
            && let Some(message) = self.held.pop_front()
        {
            self.received(message, out);
        }
    }

    fn write_failed(&mut self, out: &mut Vec<Output>) {
        self.writing = None;
        self.unsure = true;
        self.hang_up(Reason::CannotWrite, out);
    }

    /// Owner, together: are both journals durable up to what was proposed?
    fn conclude(&mut self, out: &mut Vec<Output>) {
        let Link::Together { session, peer } = self.link else { return };
        let Some(proposed) = self.proposed else { return };
        if self.tail.index < proposed || peer.index < proposed {
            return;
        }
        if peer != self.tail {
            return self.hang_up(Reason::Forked, out);
        }
        self.proposed = None;
        self.peer_durable = proposed;
        out.push(Output::Final);
        let durable = self.tail.index;
        out.push(Output::Send(Message::Append { session, entries: Vec::new(), durable }));
    }
}
