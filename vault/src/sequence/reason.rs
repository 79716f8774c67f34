//! Why numbers are not given now, and what the operator must do where waiting does not help.

use std::fmt;
use std::sync::Arc;

/// Why no session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// There is no connection.
    #[error("the other vault is away")]
    Away,
    /// Journals are being compared and carried over.
    #[error("the two vaults are comparing their journals")]
    Syncing,
    /// Both own the ledger in this epoch.
    #[error("{}", two_owners(*.0))]
    TwoOwners(u64),
    /// Neither does.
    #[error(
        "neither vault is the ledger's owner; if neither has given anything yet: write the same [sequence] owner on both; otherwise run vault number take-over on the one that shall be"
    )]
    NoOwner,
    /// The peer's journal is a new one.
    #[error(
        "the other vault's journal is not the one it had; if it is lost, and this vault was never restored from a copy: run vault number re-seed on this vault"
    )]
    PeerJournalLost,
    /// Our journal is a new one.
    #[error(
        "this vault's journal is not the one it had; put the right one back, or, if it is lost and the other vault was never restored from a copy: run vault number re-seed on the other vault"
    )]
    OwnJournalLost,
    /// The peer has forgotten what it had acknowledged.
    #[error(
        "the other vault's journal ends before what it had acknowledged: it is an old copy; stop that vault, move its journal.db files out of its state folder, start it, and run vault number re-seed on this vault"
    )]
    PeerRolledBack,
    /// We have forgotten what we had acknowledged.
    #[error(
        "this vault's journal ends before what it had acknowledged: it is an old copy; stop this vault, move its journal.db files out of its state folder, start it, and run vault number re-seed on the other vault"
    )]
    OwnRolledBack,
    /// Same index, different hashes.
    #[error(
        "the two journals disagree about an entry; find out which vault was restored from a copy or had a damaged disk, stop it, move its journal.db files out of its state folder, start it, and run vault number re-seed on the other"
    )]
    Forked,
    /// The disk refuses.
    #[error(
        "this vault cannot write its journal; look at its disk: it is tried again every 10 s, and goes on by itself once that succeeds"
    )]
    CannotWrite,
    /// Where etcd is the ledger: it is not reached.
    #[error(
        "no quorum of etcd's members answers; bring them back (vault database status shows each): numbers go on by themselves then"
    )]
    NoQuorum,
    /// etcd shall be the ledger, and is not yet.
    #[error(
        "etcd does not hold the ledger yet: both vaults must run with role = \"truth\" in [sequence.database] and be connected once; vault database status tells what is missing"
    )]
    NotBegun,
    /// Where etcd is the ledger: this vault has not caught up with it.
    #[error(
        "this vault is learning how far the ledger in etcd goes; it goes on by itself (vault database status tells how far)"
    )]
    Behind,
    /// Where etcd is the ledger: it answers, and says no.
    #[error("etcd refuses this vault; once what it says is put right, numbers go on by themselves")]
    LedgerRefuses,
    /// etcd is another one.
    #[error(
        "this etcd is not the one that this vault or the other one has used, or its ledger is that of other vaults; put hosts and database in [sequence.database] right on both; another pair of vaults needs another prefix (database); nothing was changed in it"
    )]
    OtherLedger,
    /// What this vault gave alone, when it was one of a pair, etcd does not hold.
    #[error(
        "numbers that this vault gave alone, as one of a pair, are not in the ledger that etcd became; stop this vault, keep its journal.db files (what it gave stands in them), move them out of its state folder and start it; enter or void those numbers by hand"
    )]
    AloneLost,
    /// etcd has forgotten what it held.
    #[error(
        "etcd holds less of the ledger than it did: its data was restored from a copy, or this is another cluster or prefix; put the right one back; if that is lost for good and all members in sequence.database.hosts are new and empty: run vault number re-seed on the vault with the longer journal, and start neither vault anew before that; nothing was changed in it"
    )]
    LedgerShrunk,
    /// etcd holds another ledger.
    #[error(
        "what etcd holds is not what this vault's journal holds; if etcd is the right one: stop this vault, move its journal.db files out of its state folder and start it, the journal is made anew from etcd; otherwise put etcd's data, hosts or prefix right"
    )]
    LedgerForked,
    /// What etcd holds cannot be read.
    #[error(
        "etcd's entries after this vault's journal are damaged; restore etcd's data; nothing was changed in it"
    )]
    LedgerDamaged,
}

/// In the first epoch the configurations say who the owner is, in later ones a take-over has.
fn two_owners(epoch: u64) -> String {
    if epoch == 1 {
        return "each vault's configuration makes that vault the ledger's owner (both are in epoch 1): write the same [sequence] owner on both, and start the one again whose file was wrong".to_owned();
    }
    format!(
        "both vaults were made the ledger's owner, this one and the other, each in epoch {epoch}: decide which one shall follow, and there, on that vault alone, run vault number yield (what that one answered of records alone gives way)"
    )
}

impl Reason {
    /// May a vault that is apart for this reason give what it may give alone? Not while its own
    /// journal is doubtful.
    #[must_use]
    pub fn lets_give_alone(self) -> bool {
        match self {
            Reason::Away
            | Reason::Syncing
            | Reason::TwoOwners(_)
            | Reason::NoOwner
            | Reason::PeerJournalLost
            | Reason::PeerRolledBack => true,
            Reason::OwnJournalLost | Reason::OwnRolledBack | Reason::Forked | Reason::CannotWrite => false,
            // Nobody is alone where etcd is the ledger.
            Reason::NoQuorum
            | Reason::NotBegun
            | Reason::Behind
            | Reason::LedgerRefuses
            | Reason::OtherLedger
            | Reason::AloneLost
            | Reason::LedgerShrunk
            | Reason::LedgerForked
            | Reason::LedgerDamaged => false,
        }
    }

    /// Does it need an operator, or does it pass by itself?
    #[must_use]
    pub fn needs_operator(self) -> bool {
        !matches!(
            self,
            Reason::Away
                | Reason::Syncing
                | Reason::CannotWrite
                | Reason::NoQuorum
                | Reason::NotBegun
                | Reason::Behind
        )
    }
}

/// A reason, and what is known of it beyond.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The reason.
    pub reason: Reason,
    /// How far it is, or what etcd says; for callers too.
    pub why: Option<Arc<str>>,
}

impl From<Reason> for Told {
    fn from(reason: Reason) -> Self {
        Self { reason, why: None }
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.why {
            Some(why) => write!(f, "{} ({why})", self.reason),
            None => write!(f, "{}", self.reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_owners_of_the_first_epoch_are_the_configurations_and_later_ones_an_operators_to_mend() {
        let [first, third] = [1, 3].map(|epoch| Reason::TwoOwners(epoch).to_string());
        assert!(
            first.contains("write the same [sequence] owner on both") && !first.contains("yield"),
            "{first}"
        );
        assert!(third.contains("in epoch 3") && third.contains("run vault number yield"), "{third}");
    }
}
