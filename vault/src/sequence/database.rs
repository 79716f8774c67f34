//! The ledger's copy in a database: what every copy can do, and why one cannot be used. The copy
//! is always a prefix of the chain; the journals are the truth, and nothing is ever answered from
//! a copy. Knows no implementer: `open` chooses, `copy` keeps it up to date. etcd may also be the
//! truth itself ([`Role`]): see [`super::quorum`].

pub mod copy;
pub mod etcd;
mod lineage;
pub mod mariadb;
pub(super) mod note;
pub mod open;
pub mod operator;
mod others;
pub mod postgres;
pub mod redundancy;
pub(super) mod replies;
mod row;
pub mod sqlite;
mod tls;

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::entry::{Entry, Tail};

pub use lineage::Lineage;

/// The copy's layout. Another number in a database is another program's, or a newer one's.
pub const VERSION: i32 = 1;

/// `[sequence.database]`
#[derive(Debug, Clone)]
pub struct Settings {
    /// Which kind of database.
    pub kind: Kind,
    /// What it is for.
    pub role: Role,
    /// `host:port` of each server: primary and standbys, in any order.
    pub hosts: Vec<(String, u16)>,
    /// The database's name; for etcd the prefix of the keys.
    pub database: String,
    /// The account.
    pub user: String,
    /// Its password, alone in this file. None where the server asks for none.
    pub password_file: Option<PathBuf>,
    /// Who signs the servers' certificates. None: in clear.
    pub authority_file: Option<PathBuf>,
    /// A reply waits no longer than this for the database.
    pub wait: Duration,
}

/// Which kind of database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// PostgreSQL, from 12.
    Postgres,
    /// MariaDB or MySQL.
    Mariadb,
    /// etcd, from 3.4.
    Etcd,
}

/// What the database is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It holds a copy of what both journals hold.
    #[default]
    Copy,
    /// It is the ledger, and the journals are indexes of it. etcd alone.
    Truth,
}

/// What a database that is the ledger itself says of that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Since this entry.
    pub since: u64,
    /// Which database it is.
    pub id: String,
    /// The two vaults whose ledger it is, in order.
    pub vaults: [String; 2],
}

/// Why a copy cannot be used now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DatabaseError {
    /// It does not answer, or broke off. What was under way may have been done.
    #[error("{place}: {why}; will connect again by itself")]
    Away {
        /// Host and port.
        place: String,
        /// The system's or the server's words.
        why: String,
    },
    /// It takes too long. What was under way may have been done.
    #[error("{place}: no answer within {deadline:?}; will connect again by itself")]
    Late {
        /// Host and port.
        place: String,
        /// How long was waited.
        deadline: Duration,
    },
    /// Another writer was first: nothing was written.
    #[error(
        "{place}: another writer was first: it holds {found} entries now; will be compared again by itself"
    )]
    Moved {
        /// Host and port.
        place: String,
        /// How many it holds.
        found: u64,
    },
    /// It is not what it must be; nothing was changed in it.
    #[error("{place}: {what}; {next}")]
    Unfit {
        /// Host and port.
        place: String,
        /// What is wrong.
        what: String,
        /// What the operator writes.
        next: String,
    },
    /// No server of those configured takes writes.
    #[error("no server takes the ledger's copy: {0}")]
    NoPrimary(String),
    /// What it holds cannot be read.
    #[error("{place}: entry {index} is damaged; restore the database, or give the vault an empty one")]
    Damaged {
        /// Host and port.
        place: String,
        /// Which entry.
        index: u64,
    },
    /// Its entries are not this ledger's.
    #[error("{place}: {what}; it is not written to; {next}")]
    Foreign {
        /// Host and port.
        place: String,
        /// How that shows.
        what: String,
        /// What the operator does.
        next: String,
    },
}

impl DatabaseError {
    /// The server's own words and what the operator writes, where it answers and says no.
    #[must_use]
    pub fn words(&self) -> Option<String> {
        match self {
            Self::Unfit { what, next, .. } => Some(format!("{what}; {next}")),
            _ => None,
        }
    }

    /// What is wrong, where the place is told beside it and what follows goes without saying.
    #[must_use]
    pub fn said(&self) -> String {
        match self {
            Self::Away { why, .. } => why.clone(),
            Self::Late { deadline, .. } => format!("no answer within {deadline:?}"),
            Self::Unfit { what, next, .. } => format!("{what}; {next}"),
            Self::Moved { .. } | Self::NoPrimary(_) | Self::Damaged { .. } | Self::Foreign { .. } => {
                self.to_string()
            }
        }
    }

    /// Does it need an operator, or does it pass by itself?
    #[must_use]
    pub fn needs_operator(&self) -> bool {
        matches!(self, Self::Unfit { .. } | Self::Damaged { .. } | Self::Foreign { .. })
    }
}

/// What a server of the database is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// It takes writes.
    Primary,
    /// It follows another.
    Standby,
    /// It does not answer.
    Away,
    /// It answers and cannot be used.
    Unfit,
}

/// One server, as it shows itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Host {
    /// Host and port.
    pub host: String,
    /// What it is.
    pub place: Place,
    /// Why it cannot be used, in words.
    pub why: Option<String>,
    /// Where it comes from, where the kind of database tells.
    pub lineage: Option<Lineage>,
    /// Of a standby: how far behind it replays, in bytes. Of a primary: that of its slowest standby.
    pub lag_bytes: Option<u64>,
    /// Whom it feeds, or from whom it is fed, in the database's own words.
    pub replication: Vec<String>,
    /// Where the copy in it ends.
    pub holds: Option<Tail>,
    /// Has the operator forbidden it?
    #[serde(default)]
    pub fenced: bool,
    /// Does this member of etcd lead? It answers and is away all the same where no quorum stands.
    #[serde(default)]
    pub leads: Option<bool>,
}

impl Host {
    /// One that cannot be looked at.
    #[must_use]
    pub fn closed(host: String, error: &DatabaseError) -> Self {
        let place = if error.needs_operator() { Place::Unfit } else { Place::Away };
        Self {
            host,
            place,
            why: Some(error.said()),
            lineage: None,
            lag_bytes: None,
            replication: Vec::new(),
            holds: None,
            fenced: false,
            leads: None,
        }
    }
}

/// A connection to one server that holds the ledger, or a copy of it. Methods have no deadline of
/// their own; see [`open::Connection`]. After an error the connection is given up.
#[async_trait]
pub trait Ledger: Send {
    /// Host and port, or the file.
    fn place(&self) -> &str;

    /// Where the server comes from, as of the last append; where the kind of database tells.
    fn lineage(&self) -> Option<&Lineage> {
        None
    }

    /// What the server is, and what it holds. Changes nothing.
    async fn look(&mut self) -> Result<Host, DatabaseError>;

    /// Makes sure that the layout is there and is right, that it may be written, and tells where
    /// what it holds ends. Makes the layout where there is none of it.
    async fn prepare(&mut self) -> Result<Tail, DatabaseError>;

    /// Where what it holds ends.
    async fn tail(&mut self) -> Result<Tail, DatabaseError>;

    /// Writes up to [`BATCH`](super::entry::BATCH) entries that follow `after`: all or none,
    /// durably, and only if it holds exactly what ends there.
    async fn append(&mut self, after: Tail, entries: &[Entry]) -> Result<(), DatabaseError>;

    /// Up to [`BATCH`](super::entry::BATCH) entries after `after`, in order.
    async fn entries(&mut self, after: u64) -> Result<Vec<Entry>, DatabaseError>;

    /// Would it take an entry now? Writes nothing.
    async fn would_append(&mut self) -> Result<(), DatabaseError> {
        Ok(())
    }

    /// That it is the ledger itself, as of the last look at its end.
    fn begun(&self) -> Option<&Mark> {
        None
    }

    /// Which one it is among all that may stand under this address: random, and made once.
    async fn identity(&mut self) -> Result<String, DatabaseError> {
        let what = "it cannot be the ledger itself".to_owned();
        Err(DatabaseError::Unfit {
            place: self.place().to_owned(),
            what,
            next: "write role = \"copy\"".to_owned(),
        })
    }

    /// Makes it the ledger itself from this end on, if it ends there; no copy is ever written to it
    /// again.
    async fn begin(&mut self, at: Tail, _mark: Mark) -> Result<(), DatabaseError> {
        let (place, found) = (self.place().to_owned(), at.index);
        Err(DatabaseError::Moved { place, found })
    }

    /// What an append that was told [`DatabaseError::Moved`] has found in the place of its own
    /// entries: where the ledger ended then, and the first of them.
    fn found(&mut self) -> Option<(Tail, Vec<Entry>)> {
        None
    }

    /// Makes a standby take writes; `false` where this kind of database leaves that to its own tools.
    async fn promote(&mut self) -> Result<bool, DatabaseError> {
        Ok(false)
    }
}
