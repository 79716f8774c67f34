//! What the two vaults say to each other about the ledger. Words only; what follows from them is
//! the protocol's.

use serde::{Deserialize, Serialize};

use super::entry::{Entry, Life, Tail};

/// The random identity of a journal or a greeting.
pub type Nonce = u128;

/// Names a session: the nonce of the vault that leads it, then the other's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session(pub Nonce, pub Nonce);

/// What a vault says first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Fresh for this connection.
    pub nonce: Nonce,
    /// This process's life.
    pub life: Life,
    /// The former life of this vault of which it can prove that nothing it answered is missing.
    pub proven: Option<Life>,
    /// The highest epoch this side has durable.
    pub epoch: u64,
    /// Does this side own the ledger in that epoch?
    pub owns: bool,
    /// This side's journal.
    pub journal: Nonce,
    /// Where it ends, durably.
    pub tail: Tail,
    /// Up to where this side knows both to be durable.
    pub in_both: u64,
    /// The other side's journal as this side remembers it.
    pub peer_journal: Option<Nonce>,
    /// How far the other side was durable, as this side remembers it.
    pub peer_durable: u64,
}

/// What the vaults say to each other. The one that *drives* makes the journals equal: the one
/// of the higher epoch, or, where the epochs are the same, the owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// Opens a session.
    Hello(Hello),
    /// From whoever drives or owns: these come next after `after`; I am durable up to `durable`.
    Append {
        /// The session.
        session: Session,
        /// Where they follow. Below the other's tail only where its epoch is over.
        after: Tail,
        /// May be empty, to tell `durable` alone.
        entries: Vec<Entry>,
        /// The sender's durable index.
        durable: u64,
    },
    /// The answer: durable up to here.
    Acknowledge {
        /// The session.
        session: Session,
        /// Where the journal ends, durably.
        tail: Tail,
    },
    /// From whoever drives: send what you have after `after`.
    Fetch {
        /// The session.
        session: Session,
        /// The asker's own last index.
        after: u64,
    },
    /// The entries asked for.
    Fetched {
        /// The session.
        session: Session,
        /// In order.
        entries: Vec<Entry>,
    },
    /// From whoever drives: both journals are equal.
    Grant {
        /// The session.
        session: Session,
        /// Where both end.
        tail: Tail,
    },
    /// Owner to follower: send what you gave alone after that row.
    FetchSolo {
        /// The session.
        session: Session,
        /// The last row known.
        after: u64,
    },
    /// The rows asked for; empty when there are no more.
    Solo {
        /// The session.
        session: Session,
        /// In order.
        rows: Vec<Entry>,
    },
    /// Owner to follower: all that either gave alone is in the chain; numbers are given.
    Settled {
        /// The session.
        session: Session,
    },
    /// Owner to follower: does the session still stand?
    Ask {
        /// The session.
        session: Session,
        /// Counts the questions.
        count: u64,
    },
    /// It does.
    Stands {
        /// The session.
        session: Session,
        /// The question's.
        count: u64,
    },
}

impl Message {
    /// The session it belongs to; `None` for a greeting.
    #[must_use]
    pub fn session(&self) -> Option<Session> {
        match self {
            Message::Hello(_) => None,
            Message::Append { session, .. }
            | Message::Acknowledge { session, .. }
            | Message::Fetch { session, .. }
            | Message::Fetched { session, .. }
            | Message::Grant { session, .. }
            | Message::FetchSolo { session, .. }
            | Message::Solo { session, .. }
            | Message::Settled { session }
            | Message::Ask { session, .. }
            | Message::Stands { session, .. } => Some(*session),
        }
    }
}
