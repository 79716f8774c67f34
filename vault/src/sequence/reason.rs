//! Why numbers are not given now, and what the operator must do where waiting does not help.

/// Why no session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// There is no connection.
    #[error("the other vault is away")]
    Away,
    /// Journals are being compared and carried over.
    #[error("the two vaults are comparing their journals")]
    Syncing,
    /// The configurations differ.
    #[error("the two vaults name different owners; write the same [sequence] owner on both")]
    OtherOwner,
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
    /// Another owner rules.
    #[error("this vault's epoch is over: the other vault has a higher one")]
    Fenced,
    /// The peer has not heard that its epoch is over.
    #[error("the other vault acts for an epoch that is over")]
    PeerFenced,
    /// Same index, different hashes.
    #[error(
        "the two journals disagree about an entry; find out which vault was restored from a copy or had a damaged disk, stop it, move its journal.db files out of its state folder, start it, and run vault number re-seed on the other"
    )]
    Forked,
    /// The disk refuses.
    #[error("this vault cannot write its journal; look at its disk")]
    CannotWrite,
}

impl Reason {
    /// Does it need an operator, or does it pass by itself?
    #[must_use]
    pub fn needs_operator(self) -> bool {
        !matches!(self, Reason::Away | Reason::Syncing | Reason::CannotWrite)
    }
}
