//! What an operator's word does at the ledger: an empty journal taken for the other vault's new
//! one, another owner, which of two owners is right. Asks the core whether it may be.

use tokio::sync::oneshot;

use super::{Coordinator, label};
use crate::sequence::SequenceError;
use crate::sequence::entry::{Draft, Life};
use crate::sequence::journal::JournalError;
use crate::sequence::protocol::{Input, Reason};
use crate::sequence::standing::{LifeState, Standing};

/// A token that is being made, and who waits for it.
pub(in crate::sequence) struct Seal {
    pub(super) vault: String,
    pub(super) life: Life,
    /// Has an entry been made after all that is set aside? A vault that is started anew knows what
    /// stands before its last entry to be final.
    pub(super) sealed: bool,
    pub(super) done: oneshot::Sender<Result<u64, SequenceError>>,
}

impl Seal {
    /// What must be entered, unless it is.
    pub(super) fn draft(&self, standing: &Standing, at: i64) -> Option<Draft> {
        let entered = standing.sealed(&self.vault) == Some(self.life);
        // An operator who has gone has no token, and keeps the one before.
        (!entered && !self.done.is_closed()).then(|| standing.sealing(&self.vault, self.life, at))
    }

    /// What is entered last.
    pub(super) fn last(&mut self, standing: &Standing, at: i64) -> Option<Draft> {
        let due = !std::mem::replace(&mut self.sealed, true) && !self.done.is_closed();
        due.then(|| standing.noting(&self.vault, "a token was made".to_owned(), at))
    }
}

impl Coordinator {
    /// Takes the other vault's empty journal for its new one. Tells how many entries it lacks.
    pub(super) fn reseed(&mut self) -> Result<u64, SequenceError> {
        if !self.core.may_reseed() {
            return Err(SequenceError::NothingToReseed);
        }
        let entries = self.core.tail().index;
        tracing::warn!(
            "sequence: re-seeding: the operator says that the other vault's journal is lost and this one undamaged; {entries} entries are carried over"
        );
        self.feed(Input::Reseed);
        match self.core.refusal() {
            Some(reason @ Reason::CannotWrite) => Err(reason.into()),
            _ => {
                // The next connection finds the two acquainted.
                (self.hang_up)();
                Ok(entries)
            }
        }
    }

    /// Makes this vault the ledger's owner in a new epoch, and tells which.
    pub(super) fn take_over(&mut self, alone: bool) -> Result<u64, SequenceError> {
        if !self.core.may_take_over() {
            let refused = SequenceError::MayNotTakeOver;
            return Err(if self.core.cannot_write() { SequenceError::CannotWrite } else { refused });
        }
        if self.core.leads() && self.core.refusal().is_none() {
            return Err(SequenceError::OwnerAlready(self.core.epoch()));
        }
        let how = if alone { "without the other vault" } else { "with the other vault" };
        tracing::warn!(
            "sequence: taking over: the operator makes this vault the ledger's owner, {how}; epoch {} begins",
            self.core.epoch() + 1
        );
        self.feed(Input::TakeOver(alone));
        self.written_down()
    }

    /// Follows the other of two owners. Tells the epoch, and how many answered writes give way with that.
    pub(super) fn give_way(&mut self) -> Result<[u64; 2], SequenceError> {
        if !self.core.may_yield() {
            return Err(SequenceError::NothingToYield(self.why_not_yield()));
        }
        tracing::warn!("sequence: yielding: the operator says that the other vault is the ledger's owner");
        let given_up = self.journal.answered_alone(self.core.final_index()).map_err(unreadable)?;
        self.feed(Input::Yield);
        self.written_down().map(|epoch| [epoch, given_up])
    }

    fn why_not_yield(&self) -> String {
        let [own, other] = &self.names;
        let (epoch, leads) = (self.core.epoch(), self.core.leads());
        match self.core.refusal() {
            None => {
                let owner = if leads { own } else { other };
                format!("the two are together, and {owner} owns the ledger in epoch {epoch}")
            }
            Some(Reason::Away | Reason::Syncing) if leads => format!(
                "the other vault is away, and whether it owns the ledger too is not known: {own} owns it in epoch {epoch}; once {other} is connected, the one in the lower epoch follows by itself, and vault status says if both own the same one"
            ),
            Some(Reason::Away | Reason::Syncing) => {
                format!("{own} does not own the ledger (epoch {epoch}), and follows the other by itself")
            }
            // It says itself what is to be done.
            Some(reason) => reason.to_string(),
        }
    }

    /// An operator has looked at what gave way. Tells how much of it is left.
    pub(super) fn looked_at(&mut self, upto: u64) -> Result<u64, SequenceError> {
        let left = self.journal.looked_at(upto).map_err(unreadable)?;
        self.seen.send_modify(|seen| seen.dropped = left);
        Ok(left)
    }

    /// The chain was cut: was anything dropped that somebody relies on?
    pub(super) fn tell_dropped(&mut self) {
        let Ok(dropped) = self.journal.dropped_unseen().map_err(unreadable) else { return };
        if dropped > self.seen.borrow().dropped {
            tracing::error!(
                "sequence: {dropped} writes of records, names and leases that this vault answered alone gave way to the other vault's; vault number dropped lists them: write again what shall hold"
            );
        }
        self.seen.send_modify(|seen| seen.dropped = dropped);
    }

    /// A token that its vault may not use any more is told: whoever keeps it relies on it.
    pub(super) fn tell_void(&self, now: [Option<Life>; 2]) {
        let before = self.seen.borrow().sealed;
        for ((vault, before), now) in self.names.iter().zip(before).zip(now) {
            let lost = |life| self.journal.standing().life(life) == Some(LifeState::Lost);
            if now.is_none() && before.is_some_and(lost) {
                tracing::warn!(
                    "sequence: the token for {vault} is void: {vault} lost power or its journal since, and with it perhaps that the token was used; make a new one: vault number token --for {vault}"
                );
            }
        }
    }

    /// Has the ledger know of a token, if this is the owner of a session.
    pub(super) fn seal(&mut self, seal: Seal) {
        if let Some(why) = self.why_not_seal(&seal.vault) {
            // An operator who has gone does without a token.
            let _gone = seal.done.send(Err(SequenceError::MayNotSeal(why)));
            return;
        }
        tracing::info!("sequence: a token is made for {}", seal.vault);
        self.seal = Some(seal);
    }

    fn why_not_seal(&self, vault: &String) -> Option<String> {
        let [own, other] = &self.names;
        let busy = self.seal.as_ref().is_some_and(|seal| !seal.done.is_closed());
        if !self.names.contains(vault) {
            Some(format!("there is no vault {vault} here; name {own} or {other}"))
        } else if let Some(reason) = self.core.refusal() {
            Some(format!("both vaults must be together for it: {reason}"))
        } else if !self.core.leads() {
            Some(format!("the ledger's owner makes it: run this on {other}"))
        } else {
            busy.then(|| "another one is being made at this moment; ask again".to_owned())
        }
    }

    /// A round has ended: does the ledger know of the token now, and is all set aside for it, or is
    /// there no hope?
    pub(super) fn sealed(&mut self, outcome: Result<u64, SequenceError>) {
        let over = |seal: &Seal| outcome.is_err() || seal.done.is_closed() || seal.sealed;
        if self.seal.as_ref().is_some_and(over)
            && let Some(seal) = self.seal.take()
        {
            // As above.
            let _gone = seal.done.send(outcome);
        }
    }

    /// Goes on as the life that a token begins.
    pub(super) fn open(&mut self, life: Life) -> Result<u64, SequenceError> {
        if !self.core.may_begin() {
            return Err(SequenceError::NeedsNoToken);
        }
        let (own, standing) = (&self.names[0], self.journal.standing());
        let used = self.journal.gave_in(life).map_err(|error| {
            tracing::error!("sequence: {error}");
            SequenceError::Unreadable
        })?;
        if standing.sealed(own) != Some(life) || used || !standing.holds(life, self.core.final_index()) {
            return Err(SequenceError::NotThatToken);
        }
        tracing::warn!("sequence: the operator has brought a token: this vault gives numbers alone");
        let draft = standing.begun(own, life, self.core.proven(), label());
        self.feed(Input::Begin(life, draft));
        let done = self.written_down();
        if done.is_ok() {
            self.used = Some(life);
        }
        if let (Ok(_), Err(error)) = (&done, self.journal.begin(life)) {
            tracing::warn!("sequence: {error}; after a restart the rest of what is set aside is lost");
        }
        done
    }

    /// The epoch, if the operator's word could be written down.
    fn written_down(&self) -> Result<u64, SequenceError> {
        match self.core.refusal() {
            Some(reason @ Reason::CannotWrite) => Err(reason.into()),
            _ => Ok(self.core.epoch()),
        }
    }
}

fn unreadable(error: JournalError) -> SequenceError {
    tracing::error!("sequence: {error}");
    SequenceError::Unreadable
}
