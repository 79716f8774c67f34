//! What an operator's word changes: the owner, which of two owners is right, whose journal is
//! new.

use super::{Core, Link, Memory, Output};
use crate::sequence::entry::{Draft, Life};
use crate::sequence::reason::Reason;

impl Core {
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
