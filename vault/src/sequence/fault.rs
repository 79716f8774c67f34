//! Why a caller gets no number, and an operator not what he asked for. Words only.

use serde::{Deserialize, Serialize};

use super::ANSWER_DEADLINE;
use super::alone::Waits;
use super::book::Refused;
use super::definition::DefinitionError;
use super::protocol::Reason;

/// Why a caller gets no number. Crosses the link when a wish was forwarded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SequenceError {
    /// The ledger's own rules say no.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The caller's period does not fit the series, or a definition is none.
    #[error("{0}")]
    Definition(String),
    /// The pair is not together; it passes by itself.
    #[error("numbers need both vaults: {0}; nothing was given, the same key may be tried again")]
    Apart(String),
    /// The pair is not together, and this vault may not do it alone.
    #[error("{reason}; {waits}; nothing was given, the same key may be tried again")]
    Waits {
        /// Why they are apart.
        reason: String,
        /// Why that matters here.
        waits: String,
    },
    /// etcd is the ledger, and is not there; it passes by itself.
    #[error("{0}; nothing was given, the same key may be tried again")]
    NoLedger(String),
    /// etcd is the ledger: there is no pair, and no owner.
    #[error(
        "etcd holds this ledger (role = \"truth\" in [sequence.database]): either vault gives numbers at any time, and there is no owner to be changed and no journal to be re-seeded; vault database status shows etcd's members"
    )]
    NoPair,
    /// The pair is closed until an operator acts.
    #[error("numbering is closed: {0}")]
    Closed(String),
    /// It may have been given; the same key will tell.
    #[error("it is not known yet whether this was recorded on both vaults; repeat it with the same key")]
    InDoubt,
    /// Too many wait already.
    #[error("too many requests for numbers wait already")]
    Busy,
    /// An operator's word was heard, and not what became of it.
    #[error(
        "the vault has not come to this within {} s and may still do it: vault status tells its owner, its epoch and whether it is busy; repeat it only if nothing has changed there",
        ANSWER_DEADLINE.as_secs()
    )]
    Unheard,
    /// It is not known whether both vaults wrote a definition down.
    #[error(
        "it is not known yet whether this was recorded on both vaults; vault number show tells what the series is counted by, and the same may be said again"
    )]
    DefinitionInDoubt,
    /// The other vault does not stand there with an empty journal in the place of a lost one.
    #[error(
        "there is nothing to re-seed: the other vault must be connected, with an empty journal in the place of the one it had; vault status tells how things stand"
    )]
    NothingToReseed,
    /// This vault's own journal is not to be relied on, or it has never met the other vault.
    #[error(
        "this vault cannot take over: its journal is damaged, not yet whole, or has never met the other vault's; vault status tells how things stand"
    )]
    MayNotTakeOver,
    /// The last write of this vault's journal failed.
    #[error(
        "this vault cannot take over now: its journal could not be written; look at its disk, which is tried again every 10 s, and repeat this"
    )]
    CannotWrite,
    /// There are no two owners.
    #[error(
        "there is nothing to yield: the two vaults are not both the ledger's owners of one epoch; in epoch 1 the configurations' [sequence] owner decides"
    )]
    NothingToYield,
    /// No token can be made here and now.
    #[error(
        "a token is made by the ledger's owner for one of the two vaults, while both are together; vault status tells where things stand"
    )]
    MayNotSeal,
    /// It may yet be entered, or have been; nobody has it.
    #[error(
        "it is not known whether a token was made; make another one now: an earlier one for the same vault may be void"
    )]
    SealInDoubt,
    /// This vault gives numbers as it is, or can give none by a token either.
    #[error(
        "a token serves a vault that was started anew and is apart from the other, with its journal undamaged; this one is not: vault status tells where things stand"
    )]
    NeedsNoToken,
    /// It is not this vault's token, or not any more.
    #[error(
        "this vault does not take that token: it is the other vault's, was used, was replaced by a newer one, was made before this vault lost what it may have answered, or nothing is set aside for it"
    )]
    NotThatToken,
    /// It was more than is read at once, or others read too.
    #[error("reading so much of the journal took too long; ask for less of it, or again a little later")]
    TooLong,
    /// The journal cannot be read.
    #[error("the journal cannot be read; the operator finds the cause in the log")]
    Unreadable,
}

impl SequenceError {
    pub(super) fn waits(reason: Reason, waits: Waits) -> Self {
        match waits {
            Waits::Strict => reason.into(),
            waits => Self::Waits { reason: reason.to_string(), waits: waits.to_string() },
        }
    }
}

impl From<DefinitionError> for SequenceError {
    fn from(error: DefinitionError) -> Self {
        Self::Definition(error.to_string())
    }
}

impl From<Reason> for SequenceError {
    fn from(reason: Reason) -> Self {
        let text = reason.to_string();
        match reason {
            _ if reason.needs_operator() => Self::Closed(text),
            Reason::NoQuorum | Reason::NotBegun | Reason::Behind => Self::NoLedger(text),
            _ => Self::Apart(text),
        }
    }
}
