//! Why a caller gets no number, and an operator not what he asked for. Words only.

use serde::{Deserialize, Serialize};

use super::ANSWER_DEADLINE;
use super::alone::Waits;
use super::book::Refused;
use super::definition::DefinitionError;
use super::protocol::Reason;
use super::reason::Told;

/// What a refusal means where a number was asked for.
const NOT_GIVEN: &str = "nothing was given, the same key may be tried again";
/// Where something was to be changed.
const UNCHANGED: &str = "nothing was changed, and it may be said again";
/// Where something was looked for.
const UNSURE: &str = "so this vault cannot tell whether something is missing here: with ?stale=true (--stale) it tells what it has";

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
    #[error("numbers need both vaults: {0}; {NOT_GIVEN}")]
    Apart(String),
    /// The pair is not together, and this vault may not do it alone.
    #[error("{reason}; {waits}; {NOT_GIVEN}")]
    Waits {
        /// Why they are apart.
        reason: String,
        /// Why that matters here.
        waits: String,
    },
    /// The same, of what is no wish for a number.
    #[error("{0}; {UNCHANGED}")]
    Unchanged(String),
    /// It cannot be said that something is not there.
    #[error("{0}; {UNSURE}")]
    Unsure(String),
    /// Nobody has used or defined it.
    #[error("{owner} has no series {series}; vault number list --owner {owner} names those there are")]
    NoSeries {
        /// Whose it would be.
        owner: String,
        /// What was asked for.
        series: String,
    },
    /// etcd is the ledger, and is not there; it passes by itself.
    #[error("{reason}; {rest}")]
    NoLedger {
        /// Why.
        reason: String,
        /// What that means for what was asked.
        rest: String,
    },
    /// etcd is the ledger: there is no pair, and no owner.
    #[error(
        "etcd holds this ledger (role = \"truth\" in [sequence.database]): either vault gives numbers at any time, and there is no owner to be changed; vault database status shows etcd's members"
    )]
    NoPair,
    /// The pair is closed until an operator acts.
    #[error("numbering is closed: {0}")]
    Closed(String),
    /// It may have been given; the same key will tell.
    #[error("it is not known yet whether this was recorded; repeat it with the same key")]
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
    /// It is not known whether a definition was written down.
    #[error(
        "it is not known yet whether this was recorded; vault number show tells what the series is counted by, and the same may be said again"
    )]
    DefinitionInDoubt,
    /// The other vault does not stand there with an empty journal in the place of a lost one.
    #[error(
        "there is nothing to re-seed: the other vault must be connected, with an empty journal in the place of the one it had; vault status tells how things stand"
    )]
    NothingToReseed,
    /// Where etcd is the ledger: it is not filled again.
    #[error("etcd is not filled from this vault's journal: {0}; no entry was written")]
    NotRefilled(String),
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
    /// It is the owner, and the other follows.
    #[error(
        "this vault is the ledger's owner already (epoch {0}), and the other one is with it; nothing was changed"
    )]
    OwnerAlready(u64),
    /// There are no two owners.
    #[error("there is nothing to yield: {0}")]
    NothingToYield(String),
    /// No token can be made here and now.
    #[error("no token was made: {0}")]
    MayNotSeal(String),
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
            Waits::Elsewhere => Self::Unchanged(format!("{reason}; {waits}")),
            waits => Self::Waits { reason: reason.to_string(), waits: waits.to_string() },
        }
    }

    /// As it reads where a definition was to be made, or where a number was to be changed.
    pub(super) fn of_a_change(self, of: &str) -> Self {
        match self {
            Self::Apart(reason) | Self::Waits { reason, .. } => {
                Self::Unchanged(format!("{of} by both vaults together: {reason}"))
            }
            Self::NoLedger { reason, .. } => Self::NoLedger { reason, rest: UNCHANGED.to_owned() },
            error => error,
        }
    }

    /// As it reads where something is looked for, and not found here.
    pub(super) fn of_a_look(told: Told) -> Self {
        match Self::from(told) {
            Self::Closed(reason) => {
                Self::Closed(format!("{reason}; with ?stale=true (--stale) this vault tells what it has"))
            }
            Self::Apart(reason) => Self::Unsure(reason),
            Self::NoLedger { reason, .. } => Self::NoLedger { reason, rest: UNSURE.to_owned() },
            error => error,
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
        Told::from(reason).into()
    }
}

impl From<Told> for SequenceError {
    fn from(told: Told) -> Self {
        let text = told.to_string();
        match told.reason {
            reason if reason.needs_operator() => Self::Closed(text),
            Reason::NoQuorum | Reason::NotBegun | Reason::Behind => {
                Self::NoLedger { reason: text, rest: NOT_GIVEN.to_owned() }
            }
            _ => Self::Apart(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_it_means_for_what_was_asked_also_where_etcd_is_the_ledger() {
        for reason in [Reason::Away, Reason::NoQuorum] {
            let number = SequenceError::from(reason);
            let change = number.clone().of_a_change("such a number is changed").to_string();
            assert!(change.ends_with(UNCHANGED) && !change.contains("key"), "{change}");
            let look = SequenceError::of_a_look(reason.into()).to_string();
            assert!(look.ends_with(UNSURE) && !look.contains("given"), "{look}");
            assert!(number.to_string().ends_with(NOT_GIVEN), "{number}");
        }
    }
}
