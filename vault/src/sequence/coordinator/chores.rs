//! What the owner of a session enters by itself: rows given alone become entries, lives begin, keys
//! are doubted, ranges are granted and ended. Reads what that takes from the journal, a bounded part
//! at a time; what must be entered is decided by others.

use super::{Coordinator, label};
use crate::sequence::book::SeriesName;
use crate::sequence::carry::{self, carry};
use crate::sequence::entry::{Act, BATCH, Draft, Entry, Grant};
use crate::sequence::journal::JournalError;
use crate::sequence::protocol::Input;
use crate::sequence::standing::Present;

/// What a look for chores came to.
enum Next {
    /// This must be entered now.
    Enter(Vec<Draft>),
    /// There is more to be looked at.
    Look,
    /// There is nothing more.
    Done,
}

impl Coordinator {
    /// What must be entered for a first part of the rows that a vault gave alone.
    pub(super) fn adopt(&self, rows: &[Entry]) -> Option<Input> {
        let look = |name: &SeriesName, row: &Entry| {
            Ok::<_, JournalError>(carry::Place {
                by_key: self.journal.by_key(name, &row.key)?,
                by_number: self.journal.by_number(name, row.number)?,
            })
        };
        let carried = self.loaded(carry(rows, self.journal.standing(), self.core.final_index(), look))?;
        for alarm in &carried.alarms {
            tracing::error!("sequence: {alarm}");
            self.metrics.alarms.inc();
        }
        Some(Input::Adopt(carried.drafts, carried.upto))
    }

    /// The next thing to be entered before callers' wishes are; `None` while there is more to be
    /// looked at first, or if it cannot be read.
    pub(super) fn settle(&mut self) -> Option<Input> {
        let next = self.chores(true);
        match self.loaded(next)? {
            Next::Enter(drafts) => {
                tell_lost(&drafts);
                Some(Input::Propose(drafts))
            }
            Next::Done => Some(Input::Settled),
            Next::Look => {
                self.settling = true;
                None
            }
        }
    }

    /// Goes on with [`Coordinator::settle`], and lets the other vault know that it does.
    pub(super) fn settle_on(&mut self) {
        if std::mem::take(&mut self.settling) {
            self.feed(Input::Ask(0));
            if let Some(input) = self.settle() {
                self.feed(input);
            }
        }
    }

    /// The session is over, or another begins.
    pub(super) fn end_chores(&mut self) {
        self.chores.forget();
        self.settling = false;
    }

    /// Is there something that the owner may have to enter by itself?
    pub(super) fn chores_due(&self) -> bool {
        self.chores.are_due() || self.seal.is_some()
    }

    /// `true`: a round of the owner's own is under way.
    pub(super) fn do_chores(&mut self) -> bool {
        match self.chores(false) {
            Ok(Next::Enter(drafts)) => {
                tell_lost(&drafts);
                self.feed(Input::Propose(drafts));
                !self.core.may_propose()
            }
            Ok(Next::Look) => false,
            Ok(Next::Done) => {
                let standing = self.journal.standing();
                let Some(last) = self.seal.as_mut().and_then(|seal| seal.last(standing, label())) else {
                    self.sealed(Ok(self.core.final_index()));
                    return false;
                };
                self.feed(Input::Propose(vec![last]));
                !self.core.may_propose()
            }
            Err(error) => {
                tracing::error!("sequence: {error}");
                false
            }
        }
    }

    /// `first`: before callers' wishes are entered; then what was not answered from before is
    /// looked at for doubts.
    fn chores(&mut self, first: bool) -> Result<Next, JournalError> {
        let (Some(peer), at) = (self.core.peer(), label()) else { return Ok(Next::Done) };
        let [own, other] = &self.names;
        let own = Present { name: own.clone(), life: self.core.life(), proven: self.core.proven() };
        let peer = Present { name: other.clone(), life: peer.life, proven: peer.proven };
        let standing = self.journal.standing();
        let births = standing.births([&own, &peer], at);
        if !births.is_empty() {
            return Ok(Next::Enter(births));
        }
        if first {
            self.chores.begin(standing, self.core.final_index());
            let (entries, upto) = self.journal.doubtable(self.chores.looked_at())?;
            let tail = self.core.tail().index;
            self.chores.look_at(&entries, upto.min(tail), standing, at);
            if upto < tail {
                return Ok(Next::Look);
            }
            let doubtful = self.chores.doubtful(BATCH);
            if !doubtful.is_empty() {
                return Ok(Next::Enter(doubtful));
            }
        }
        if let Some(draft) = self.seal.as_ref().and_then(|seal| seal.draft(standing, at)) {
            return Ok(Next::Enter(vec![draft]));
        }
        let holders = standing.holders([own, peer]);
        let ranges = self.chores.ranges(standing, &holders, at, BATCH);
        Ok(if ranges.is_empty() { Next::Done } else { Next::Enter(ranges) })
    }
}

/// Numbers that nobody gets any more are told one by one.
fn tell_lost(drafts: &[Draft]) {
    for Draft { owner, series, number, key, act, .. } in drafts {
        if let Act::Lost(Grant { to, .. }) = act {
            tracing::warn!(
                "sequence: series {series} of {owner}: the rest of {number} to {to}, set aside for {key}, is unaccounted: {key} ended without a proof of what it had given (killed with its control socket's folder not on a tmpfs, without power, or with another journal); nobody gets these numbers any more"
            );
        }
    }
}
