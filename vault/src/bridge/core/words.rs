//! What the rules are told and what they say, in words. Knows no rule: each word tells what it means to whoever
//! drives the direction.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Badge, Found, Load, Row};

/// What to write into the journal, in the order of the steps; each write is durable before
/// [`Input::Written`] tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write<M> {
    /// A batch's messages, with the next sequences.
    Batch(u64, Vec<M>),
    /// The source has committed it: its rows wait for the target. `afresh` they get the next
    /// sequences, as rows behind them may be at the target already.
    Ours {
        /// Which batch.
        batch: u64,
        /// New sequences?
        afresh: bool,
    },
    /// Their messages are found to be the source's; their rows are kept for a while.
    Return(Vec<u64>),
    /// Its messages are the source's: forget its rows.
    Drop(u64),
    /// These rows are done.
    Remove {
        /// They are at the target.
        forwarded: Vec<u64>,
        /// They expired.
        expired: Vec<u64>,
    },
    /// The target does not take this one: it is kept apart.
    Bury {
        /// Which row.
        sequence: u64,
        /// The target's words.
        why: String,
    },
    /// This row was refused by itself: what is behind it may be at the target before it. Should the program
    /// end, it gets a new sequence; or is buried, if the target did not answer and may have it.
    Aside {
        /// Which row.
        sequence: u64,
        /// The target's words.
        why: String,
        /// Are they an answer?
        is_answered: bool,
    },
    /// Nothing behind those that were set aside is at the target: they are as they were.
    Acquit,
    /// These rows get the next sequences, in their order: others pass them.
    Pass(Vec<u64>),
    /// What is written next comes from this broker.
    From(Badge),
    /// What is sent next goes to this broker.
    To(Badge),
    /// The journal is an old copy, put back: batches begin there, and sequences far behind all that
    /// may have been given since.
    Jump(u64),
}

/// What must be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step<M> {
    /// Write it.
    Write(Write<M>),
    /// Open the consumer.
    Consume,
    /// In one transaction at the source: acknowledge from the first to the last, send the batch's
    /// receipt, acknowledge earlier ones.
    Take {
        /// The batch.
        batch: u64,
        /// First message in the order of dispatch.
        first: M,
        /// Last one.
        last: M,
        /// How many.
        count: usize,
        /// Receipts that are of no use any more, in order.
        spent: Vec<u64>,
    },
    /// Read rows that wait.
    Load {
        /// Behind this sequence.
        after: u64,
        /// At most so many.
        rows: usize,
        /// At most so many bytes, or one row.
        bytes: u64,
        /// None that goes to one of these destinations; they may be many rows.
        but: Vec<i64>,
    },
    /// Send them to the target in one transaction.
    Send {
        /// In order.
        rows: Vec<Row<M>>,
        /// Is the commit to be asked for only once the target has answered to the row?
        is_careful: bool,
    },
    /// It is not the target that has what may be under way: look for that one.
    Refuse,
}

/// How the target did not take what was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// One of the messages will be refused for ever.
    ForEver,
    /// It said no; it may be the one that ails.
    Answered,
    /// It hung up before the commit was asked for.
    HungUp,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Input<M> {
    /// The source let us in, so the lock is held; what of ours lies there.
    Holding(Found),
    /// What of ours lies at a source of which we do not hold the lock.
    Receipts(Found),
    /// The connection to the source is lost, and the lock perhaps.
    Released,
    /// The source dispatched a message of so many bytes.
    Received(M, u64),
    /// The source has committed the open batch.
    Taken,
    /// The source dispatched one of our receipts.
    Receipt(u64),
    /// The oldest write that was not told of yet is durable.
    Written,
    /// A target lets us in: this one.
    TargetUp(BTreeSet<Badge>),
    /// It does not any more.
    TargetLost,
    /// What a load read, in order.
    Loaded(Vec<Row<M>>),
    /// Rows that waited could not be read: they are dead letters now.
    Damaged(Load),
    /// Is nothing more to be taken for now? The disk is full, or the other vault shall carry.
    Hold(bool),
    /// The target has committed what was sent.
    Sent,
    /// The target refused what was sent; the connection to it is of no use any more.
    Refused {
        /// Its words.
        why: String,
        /// How.
        how: Refusal,
    },
    /// An operator knows what became of all that waits for another source: was it taken?
    Settle {
        /// Then it is ours; else the source's.
        taken: bool,
    },
    /// An operator knows that nothing is under way, or may come twice: the target that was refused takes
    /// the other one's place.
    Accept,
    /// The time, on any clock that only goes forward.
    Tick(Duration),
}
