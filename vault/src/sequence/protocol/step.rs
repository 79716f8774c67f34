//! What goes into the core and comes out of it, one step at a time. Words only.

use serde::{Deserialize, Serialize};

use crate::sequence::entry::{Draft, Entry, Life, Tail};
use crate::sequence::message::{Message, Nonce};

/// What this side keeps durably beside the entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// This journal's identity, made with it.
    pub journal: Nonce,
    /// The highest epoch obeyed.
    pub epoch: u64,
    /// Does this vault own the ledger in that epoch?
    pub owns: bool,
    /// Has an operator told it to go on without the other?
    pub alone: bool,
    /// Has this journal all that it ever should? A new one in the place of a lost one has not,
    /// until everything has been carried over.
    pub whole: bool,
    /// Where the chain of the rows that this vault gave alone ends.
    pub solo: Tail,
    /// The other side's journal, from the first session on.
    pub peer_journal: Option<Nonce>,
    /// How far the other side is known to be durable.
    pub peer_durable: u64,
    /// Up to where the ledger may be answered from: what was durable on both sides when all that
    /// either had given alone stood in the chain.
    pub settled: u64,
}

/// What must become durable in one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// First drop the entries after this one, which must stand there as said.
    pub cut: Option<Tail>,
    /// Then add these to the chain.
    pub entries: Vec<Entry>,
    /// And these to the rows given alone.
    pub rows: Vec<Entry>,
    /// And remember this.
    pub memory: Memory,
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
    /// Time to see whether the disk takes writes again. Only when
    /// [`cannot_write`](super::Core::cannot_write).
    TryAgain,
    /// The last [`Output::Write`] contradicts what stands in this journal, and was not kept.
    CutRefused,
    /// The entries that an [`Output::Load`] asked for, with the index it named.
    Loaded(u64, Vec<Entry>),
    /// The rows that an [`Output::LoadSolo`] asked for, with the index it named.
    SoloLoaded(u64, Vec<Entry>),
    /// The answer to [`Output::Adopt`]: what must be entered for its rows up to this one.
    Adopt(Vec<Draft>, u64),
    /// New entries, wanted by callers (only when [`may_propose`](super::Core::may_propose)), or the answer to
    /// [`Output::Settle`].
    Propose(Vec<Draft>),
    /// The other answer to [`Output::Settle`]: nothing need be entered any more.
    Settled,
    /// Rows to be given alone. Only when [`may_give_alone`](super::Core::may_give_alone).
    Give(Vec<Draft>),
    /// An operator has brought the token of this life, which the draft tells. Only when
    /// [`may_begin`](super::Core::may_begin).
    Begin(Life, Draft),
    /// Does the session still stand? Counts the questions.
    Ask(u64),
    /// The operator makes this vault the owner; with `true`, of a ledger that goes on without the
    /// other vault, which he has made sure is off. Only when [`may_take_over`](super::Core::may_take_over).
    TakeOver(bool),
    /// The operator says that of two owners of one epoch the other one is right. Only when
    /// [`may_yield`](super::Core::may_yield).
    Yield,
    /// The operator says that the other vault's empty journal replaces the one it had, and that
    /// this vault's own is undamaged. Only when [`may_reseed`](super::Core::may_reseed).
    Reseed,
}

/// What a vault must do next, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Say this to the peer.
    Send(Message),
    /// Make it durable, then report `Written`, `WriteFailed` or `CutRefused`.
    Write(Write),
    /// Read up to [`BATCH`](crate::sequence::entry::BATCH) entries after this index, then report `Loaded`.
    Load(u64),
    /// Read up to [`BATCH`](crate::sequence::entry::BATCH) of the rows given alone after this one, then report `SoloLoaded`.
    LoadSolo(u64),
    /// These were given alone. Report with `Adopt` what must be entered for a first part of them.
    Adopt(Vec<Entry>),
    /// All that was given alone is in the chain. Report with `Propose` what must be entered before
    /// callers' wishes are, or with `Settled` that there is nothing.
    Settle,
    /// What was proposed is final: answer the callers.
    Final,
    /// What was given alone is durable: answer the callers.
    Given,
    /// What was proposed or given is not known to be final: the callers hear "in doubt".
    InDoubt,
    /// The session stood when the question of this count was asked.
    Stands(u64),
    /// End the connection at once, for the peer still believes in a session; the shell connects
    /// again. A connection that merely leads to no session is left standing, for it serves
    /// others too; the shell ends it after a while, to try again.
    HangUp,
}
