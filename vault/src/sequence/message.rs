//! What the two vaults say to each other about the ledger. Words only; what follows from them is
//! the protocol's.

use serde::{Deserialize, Serialize};

use super::entry::{Entry, Tail};

/// The random identity of a journal, life or greeting.
pub type Nonce = u128;

/// Names a session: the owner's nonce, then the follower's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session(pub Nonce, pub Nonce);

/// What a vault says first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Fresh for this connection.
    pub nonce: Nonce,
    /// This process's life.
    pub life: Nonce,
    /// The owner's name, as this side is configured.
    pub owner: String,
    /// The highest epoch this side has durable.
    pub epoch: u64,
    /// This side's journal.
    pub journal: Nonce,
    /// Where it ends, durably.
    pub tail: Tail,
    /// The other side's journal as this side remembers it.
    pub peer_journal: Option<Nonce>,
    /// How far the other side was durable, as this side remembers it.
    pub peer_durable: u64,
}

/// What the vaults say to each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// Opens a session.
    Hello(Hello),
    /// Owner to follower: these come next; I am durable up to `durable`.
    Append {
        /// The session.
        session: Session,
        /// May be empty, to tell `durable` alone.
        entries: Vec<Entry>,
        /// The owner's durable index.
        durable: u64,
    },
    /// Follower to owner: durable up to here.
    Acknowledge {
        /// The session.
        session: Session,
        /// Where the follower's journal ends, durably.
        tail: Tail,
    },
    /// Owner to follower: send what you have after `after`.
    Fetch {
        /// The session.
        session: Session,
        /// The owner's own last index.
        after: u64,
    },
    /// Follower to owner: the entries asked for.
    Fetched {
        /// The session.
        session: Session,
        /// In order.
        entries: Vec<Entry>,
    },
    /// Owner to follower: both journals are equal; numbers may be given.
    Grant {
        /// The session.
        session: Session,
        /// Where both end.
        tail: Tail,
    },
}
