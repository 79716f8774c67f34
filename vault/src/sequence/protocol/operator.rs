//! What an operator's word changes: the owner, which of two owners is right, whose journal is
//! new.

use super::{Core, Link, Memory, Output};
use crate::sequence::entry::{Draft, Life};
use crate::sequence::reason::Reason;

/// What a token does for a vault that is apart from the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Opens {
    /// Nothing.
    #[default]
    Never,
    /// It may be brought.
    Now,
    /// It may be brought once this process is replaced by another.
    AfterRestart,
}

impl Core {
    /// What the witness holds against this vault's own journal, until a session has mended it.
    #[must_use]
    pub fn damage(&self) -> Option<Reason> {
        self.damage
    }

    /// What a token does here, if there is one. The next process is one that has met nobody.
    #[must_use]
    pub fn opens(&self) -> Opens {
        let apart = matches!(&self.link, Link::Apart(reason) if reason.lets_give_alone());
        if !apart || self.damage.is_some() || !self.memory.whole {
            Opens::Never
        } else if self.stood || self.sealed || self.unsure {
            Opens::AfterRestart
        } else {
            Opens::Now
        }
    }

    pub(super) fn take_over(&mut self, alone: bool, out: &mut Vec<Output>) {
        debug_assert!(self.may_take_over(), "the shell asks first");
        if !self.may_take_over() {
            return;
        }
        self.start_over(out);
        let epoch = self.memory.epoch + 1;
        self.remember(Memory { epoch, owns: true, alone, ..self.current() }, out);
    }

    /// Goes on as the life that a session sealed, once its row is durable.
    pub(super) fn begin_sealed(&mut self, life: Life, draft: Draft, out: &mut Vec<Output>) {
        debug_assert!(self.may_begin(), "the shell asks first");
        if !self.may_begin() {
            return;
        }
        self.write_alone(life, vec![draft], Some(life), out);
    }

    /// Steps back below the epoch that two own, so that the other's chain prevails.
    pub(super) fn give_way(&mut self, out: &mut Vec<Output>) {
        debug_assert!(self.may_yield(), "the shell asks first");
        if !self.may_yield() {
            return;
        }
        self.start_over(out);
        let epoch = self.memory.epoch.saturating_sub(1);
        self.remember(Memory { epoch, owns: false, alone: false, ..self.current() }, out);
    }

    /// What was said in this connection's greetings holds no more.
    pub(super) fn start_over(&mut self, out: &mut Vec<Output>) {
        if !matches!(self.link, Link::Apart(Reason::Away)) {
            self.end(Reason::Away, out);
            out.push(Output::HangUp);
        }
    }

    /// From here on the peer is known to have nothing. What was answered stays so, though it can be
    /// lost with this vault until it is carried over.
    pub(super) fn reseed(&mut self, out: &mut Vec<Output>) {
        debug_assert!(self.may_reseed(), "the shell asks first");
        if !self.may_reseed() {
            return;
        }
        let peer_journal = self.stranger.take();
        self.remember(Memory { peer_journal, peer_durable: 0, ..self.current() }, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::entry::Tail;
    use crate::sequence::protocol::Input;
    use crate::sequence::witness::Witness;

    #[test]
    fn a_token_serves_a_vault_that_has_met_nobody_and_after_a_full_disk_only_the_next_process() {
        let memory = Memory {
            journal: 1,
            epoch: 1,
            owns: true,
            alone: false,
            whole: true,
            solo: Tail::default(),
            peer_journal: Some(2),
            peer_durable: 0,
            settled: 0,
        };
        let mut core = Core::new(1, None, memory, Tail::default());
        assert_eq!((core.opens(), core.may_begin()), (Opens::Now, true));
        // Its disk fills while the two are together, and then the other is gone.
        core.stood = true;
        drop(core.step(Input::Disconnected));
        drop(core.step(Input::WriteFailed));
        assert_eq!(core.opens(), Opens::Never, "the disk says what is to be done");
        drop(core.step(Input::TryAgain));
        drop(core.step(Input::Written));
        assert_eq!((core.opens(), core.may_begin(), core.is_known()), (Opens::AfterRestart, false, false));
        let unwhole = Memory { whole: false, ..memory };
        assert_eq!(Core::new(1, None, unwhole, Tail::default()).opens(), Opens::Never);
        let witness = Witness { journal: 1, index: 9, solo: 0 };
        let core = Core::new(1, None, memory, Tail::default()).witnessed(Some(witness));
        assert_eq!((core.opens(), core.damage()), (Opens::Never, Some(Reason::OwnRolledBack)));
    }
}
