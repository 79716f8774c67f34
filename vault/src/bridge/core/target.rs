//! The direction's far half: rows that wait → transactions to the target → removed. Pure. What the
//! target refuses is halved until the one message is found that it does not take. That one is set
//! aside for those behind it: once the target takes another, the message is to blame, and is
//! buried; as long as it takes none the target is, and all of them wait. What may have reached one
//! target goes to no other.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use super::{Badge, Kept, Limits, Load, Step, Write};

/// Messages that are set aside at a time.
const MOST_SUSPECTS: usize = 16;

/// A row that waits for the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row<M> {
    /// Its place: ascends in the order of sending.
    pub sequence: u64,
    /// Bytes that it counts.
    pub bytes: u64,
    /// It is worth nothing any more.
    pub is_expired: bool,
    /// The message.
    pub message: M,
}

#[derive(Debug, Clone)]
pub(super) struct Target<M> {
    most: usize,
    bytes: u64,
    tries: u32,
    give_up: Duration,
    /// It is connected, and is the one to which rows go.
    is_up: bool,
    /// To whom rows go, and whose what is under way is.
    to: Option<Badge>,
    /// The journal does not say so yet, by so many writes.
    unnoted: u32,
    /// Another one that answered.
    refused: Option<Badge>,
    /// Rows up to here may be at the target, if they still wait.
    sent_through: u64,
    waiting: Load,
    /// Read, and not on their way.
    loaded: VecDeque<Row<M>>,
    is_loading: bool,
    /// All up to here were read.
    after: u64,
    /// Rows may have come since a load found nothing more.
    may_load: bool,
    sending: Vec<Row<M>>,
    /// Rows in the next transaction.
    window: usize,
    /// How often the row in front was refused by itself.
    refusals: u32,
    /// Refused by themselves, with the target's words: in order, and before all that is loaded.
    suspects: Vec<(Row<M>, String)>,
    /// Since when nothing but refusals has come of what was sent.
    refused_since: Option<Duration>,
    /// To be written.
    done: Vec<(Write<M>, Load)>,
}

impl<M: Clone> Target<M> {
    pub(super) fn new(limits: &Limits, kept: &Kept) -> Self {
        Self {
            most: limits.rows,
            bytes: limits.bytes,
            tries: limits.tries,
            give_up: limits.give_up,
            is_up: false,
            to: kept.target,
            unnoted: 0,
            refused: None,
            // Nobody knows how much of it was sent.
            sent_through: if kept.waiting.rows > 0 { kept.last_sequence } else { 0 },
            waiting: kept.waiting,
            loaded: VecDeque::new(),
            is_loading: false,
            after: 0,
            may_load: true,
            sending: Vec::new(),
            window: limits.rows,
            refusals: 0,
            suspects: Vec::new(),
            refused_since: None,
            done: Vec::new(),
        }
    }

    pub(super) fn waiting(&self) -> Load {
        self.waiting
    }

    pub(super) fn add(&mut self, load: Load) {
        self.waiting = self.waiting + load;
        self.may_load = true;
    }

    pub(super) fn removed(&mut self, load: Load) {
        self.waiting = self.waiting.less(load);
    }

    pub(super) fn damaged(&mut self, load: Load) {
        self.removed(load);
        // What could be read lies behind them.
        self.may_load = true;
    }

    /// One is connected. Returns what is to be noted before anything is sent to it.
    pub(super) fn up(&mut self, badges: &BTreeSet<Badge>, steps: &mut Vec<Step<M>>) -> Option<Badge> {
        self.refused = None;
        self.is_up = self.to.is_some_and(|to| badges.contains(&to));
        let badge = *badges.first().filter(|_| !self.is_up)?;
        if self.to.is_some() && self.is_in_doubt() {
            self.refused = Some(badge);
            steps.push(Step::Refuse);
            return None;
        }
        self.is_up = true;
        Some(self.go_to(badge))
    }

    /// An operator has the one that was refused take the place of the one that is not there.
    pub(super) fn accept(&mut self) -> Option<Badge> {
        let badge = self.refused.take()?;
        Some(self.go_to(badge))
    }

    fn go_to(&mut self, badge: Badge) -> Badge {
        self.to = Some(badge);
        self.unnoted += 1;
        badge
    }

    /// The journal says to whom rows go.
    pub(super) fn noted(&mut self) {
        self.unnoted = self.unnoted.saturating_sub(1);
    }

    pub(super) fn refuses(&self) -> bool {
        self.refused.is_some()
    }

    /// May a row that waits have reached the target?
    fn is_in_doubt(&self) -> bool {
        let is_unread = self.after < self.sent_through && (self.may_load || self.is_loading);
        let mut known = self.suspects.iter().map(|(row, _)| row).chain(&self.sending).chain(&self.loaded);
        (is_unread && self.waiting.rows > 0) || known.any(|row| row.sequence <= self.sent_through)
    }

    /// What was on its way goes again, with the same sequences.
    pub(super) fn lost(&mut self) {
        self.is_up = false;
        self.sent_through = self.sending.last().map_or(0, |row| row.sequence).max(self.sent_through);
        for row in self.sending.drain(..).rev() {
            self.loaded.push_front(row);
        }
    }

    pub(super) fn loaded(&mut self, rows: Vec<Row<M>>) {
        self.is_loading = false;
        self.may_load |= !rows.is_empty();
        self.after = rows.last().map_or(self.after, |row| row.sequence);
        let (expired, fresh): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.is_expired);
        self.loaded.extend(fresh);
        // What is on its way may still tell who is to blame, and lies behind them.
        if self.loaded.is_empty() && self.sending.is_empty() {
            self.acquit();
        }
        self.remove(Vec::new(), expired);
    }

    pub(super) fn sent(&mut self) {
        let forwarded = std::mem::take(&mut self.sending);
        self.refusals = 0;
        self.refused_since = None;
        self.window = (self.window * 2).min(self.most);
        // It is not the target that ails.
        let suspects = std::mem::take(&mut self.suspects);
        suspects.into_iter().for_each(|(row, why)| self.bury(row, why));
        self.remove(forwarded, Vec::new());
    }

    pub(super) fn refused(&mut self, why: String, for_ever: bool, now: Duration) {
        let tried = self.sending.len();
        self.lost();
        self.window = (tried / 2).max(1);
        if tried != 1 {
            return;
        }
        let since = *self.refused_since.get_or_insert(now);
        let is_hopeless = now.saturating_sub(since) >= self.give_up && self.suspects.is_empty();
        self.refusals += 1;
        if for_ever || is_hopeless {
            self.refusals = 0;
            self.refused_since = None;
            if let Some(row) = self.loaded.pop_front() {
                self.bury(row, why);
            }
        } else if self.refusals >= self.tries {
            self.refusals = 0;
            self.suspects.extend(self.loaded.pop_front().map(|row| (row, why)));
            let may_come = self.may_load || self.is_loading;
            if self.suspects.len() >= MOST_SUSPECTS || (self.loaded.is_empty() && !may_come) {
                self.acquit();
            }
        }
    }

    /// None behind them is taken either: all go again.
    fn acquit(&mut self) {
        debug_assert!(self.sending.is_empty(), "their places are in front of it");
        for (row, _) in self.suspects.drain(..).rev() {
            self.loaded.push_front(row);
        }
    }

    fn bury(&mut self, row: Row<M>, why: String) {
        let load = Load { rows: 1, bytes: row.bytes };
        self.done.push((Write::Bury { sequence: row.sequence, why }, load));
    }

    fn remove(&mut self, forwarded: Vec<Row<M>>, expired: Vec<Row<M>>) {
        let load = forwarded
            .iter()
            .chain(&expired)
            .fold(Load::default(), |load, row| Load { rows: load.rows + 1, bytes: load.bytes + row.bytes });
        if load.rows > 0 {
            let sequences = |rows: Vec<Row<M>>| rows.into_iter().map(|row| row.sequence).collect();
            let (forwarded, expired) = (sequences(forwarded), sequences(expired));
            self.done.push((Write::Remove { forwarded, expired }, load));
        }
    }

    /// The next transaction and the next load; returns what is to be written.
    pub(super) fn go_on(&mut self, steps: &mut Vec<Step<M>>) -> Vec<(Write<M>, Load)> {
        let may_send = self.is_up && self.unnoted == 0 && self.sending.is_empty();
        if may_send && !self.loaded.is_empty() {
            let rows = self.window.min(self.loaded.len());
            self.sending = self.loaded.drain(..rows).collect();
            steps.push(Step::Send(self.sending.clone()));
        }
        if self.is_up && self.may_load && !self.is_loading && self.loaded.is_empty() {
            self.is_loading = true;
            self.may_load = false;
            steps.push(Step::Load { after: self.after, rows: self.most, bytes: self.bytes });
        }
        std::mem::take(&mut self.done)
    }
}
