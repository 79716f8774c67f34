//! The direction's far half: rows that wait → transactions to the target → removed. Pure. What the
//! target refuses is halved until the one message is found that it does not take. That one is set
//! aside for those behind it: once the target takes another, the message is to blame, and is
//! buried; as long as it takes none the target is, and all of them wait. What may have reached one
//! target goes to no other.
//!
//! The target drops what has no higher sequence than it has seen. So what is refused is not there, nor is
//! anything behind it; and what others pass may go to the target by its own sequence only while none
//! of them is there. It is durable before anything passes: rows that are *set aside* get new
//! sequences, should this program end, and so do those that are *passed* on the way to another
//! destination, which are not tried.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use super::{Badge, Kept, Limits, Load, Refusal, Step, Write};

/// A row that waits for the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row<M> {
    /// Its place: ascends in the order of sending.
    pub sequence: u64,
    /// Bytes that it counts.
    pub bytes: u64,
    /// It is worth nothing any more.
    pub is_expired: bool,
    /// Where it goes: the same number for the same destination.
    pub destination: i64,
    /// The message.
    pub message: M,
}

/// Refused by itself.
#[derive(Debug, Clone)]
struct Suspect<M> {
    row: Row<M>,
    why: String,
    /// The target said so; otherwise it hung up.
    is_answered: bool,
}

/// The search for a row of another destination than all that is set aside goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Search {
    /// There is none.
    Idle,
    /// It is to begin.
    Wanted,
    /// The journal looks.
    Asked,
    /// It has this sequence: all before it is passed.
    Found(u64),
}

#[derive(Debug, Clone)]
pub(super) struct Target<M> {
    most: usize,
    bytes: u64,
    tries: u32,
    most_suspects: usize,
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
    /// Nothing was sent since a connection was lost with something on its way.
    was_lost: bool,
    /// What was on its way then may be at the target, before what is set aside: it comes first.
    is_unsettled: bool,
    /// How often the row in front was refused by itself.
    refusals: u32,
    /// In order, and before all that is loaded.
    suspects: Vec<Suspect<M>>,
    search: Search,
    /// Writes without which nothing may be sent.
    owed: usize,
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
            most_suspects: limits.suspects,
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
            was_lost: false,
            is_unsettled: false,
            refusals: 0,
            suspects: Vec::new(),
            search: Search::Idle,
            owed: 0,
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
        let mut known = self.suspects.iter().map(|it| &it.row).chain(&self.sending).chain(&self.loaded);
        (is_unread && self.waiting.rows > 0) || known.any(|row| row.sequence <= self.sent_through)
    }

    /// What was on its way goes again, with the same sequences: it may be there. If it was too much for
    /// the connection, less of it is not.
    pub(super) fn lost(&mut self) {
        if !self.sending.is_empty() {
            self.window = (self.sending.len() / 2).max(1);
            self.was_lost = true;
            self.is_unsettled = !self.suspects.is_empty();
        }
        self.put_back();
    }

    fn put_back(&mut self) {
        self.is_up = false;
        self.sent_through = self.sending.last().map_or(0, |row| row.sequence).max(self.sent_through);
        for row in self.sending.drain(..).rev() {
            self.loaded.push_front(row);
        }
    }

    pub(super) fn loaded(&mut self, rows: Vec<Row<M>>) {
        self.is_loading = false;
        if self.search == Search::Asked {
            return match rows.first() {
                Some(row) => {
                    self.search = Search::Found(row.sequence);
                    self.may_load = true;
                }
                None => self.acquit(),
            };
        }
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

    /// One of the writes is durable without which nothing may be sent.
    pub(super) fn kept_aside(&mut self) {
        self.owed = self.owed.saturating_sub(1);
    }

    pub(super) fn sent(&mut self) {
        let forwarded = std::mem::take(&mut self.sending);
        self.refusals = 0;
        self.refused_since = None;
        (self.was_lost, self.is_unsettled) = (false, false);
        self.window = (self.window * 2).min(self.most);
        // It is not the target that ails.
        for Suspect { row, why, .. } in std::mem::take(&mut self.suspects) {
            self.bury(row, why);
        }
        self.remove(forwarded, Vec::new());
    }

    pub(super) fn refused(&mut self, why: String, how: Refusal, now: Duration) {
        let tried = self.sending.len();
        self.put_back();
        if tried == 0 {
            return;
        }
        self.window = (tried / 2).max(1);
        if tried != 1 {
            return;
        }
        let is_answered = how != Refusal::HungUp;
        self.is_unsettled &= !is_answered;
        if self.is_unsettled {
            return;
        }
        let is_long = is_answered && {
            let since = *self.refused_since.get_or_insert(now);
            now.saturating_sub(since) >= self.give_up
        };
        // One before it at which the target hangs up may stand for ever.
        let is_hopeless = is_long && !self.suspects.iter().any(|it| it.is_answered);
        self.refusals += 1;
        if how == Refusal::ForEver || is_hopeless {
            self.refusals = 0;
            self.refused_since = None;
            if let Some(row) = self.loaded.pop_front() {
                self.bury(row, why);
            }
        } else if self.refusals >= self.tries {
            self.refusals = 0;
            self.set_aside(why, is_answered);
        }
    }

    /// The row in front, for those behind it.
    fn set_aside(&mut self, why: String, is_answered: bool) {
        if self.loaded.len() <= 1 && !self.may_load && !self.is_loading {
            return self.acquit();
        }
        let Some(row) = self.loaded.pop_front() else { return };
        let why = if is_answered { why } else { hung_up(&why) };
        self.owe(Write::Aside { sequence: row.sequence, why: why.clone(), is_answered });
        self.suspects.push(Suspect { row, why, is_answered });
        if self.suspects.len() >= self.most_suspects {
            // Whether one that hung up is there nobody knows, so nothing before another destination
            // can get a new sequence.
            let can_pass = self.suspects.iter().all(|it| it.is_answered);
            match can_pass && self.suspects.len() < 2 * self.most_suspects {
                true => self.search = Search::Wanted,
                false => self.acquit(),
            }
        }
    }

    /// None behind them is taken either: all go again.
    fn acquit(&mut self) {
        debug_assert!(self.sending.is_empty() && !self.is_unsettled, "their places are in front of it");
        self.search = Search::Idle;
        if !self.suspects.is_empty() {
            self.owe(Write::Acquit);
        }
        for suspect in self.suspects.drain(..).rev() {
            self.loaded.push_front(suspect.row);
        }
    }

    /// Goes on with the search, so far as what is read tells.
    fn search(&mut self, steps: &mut Vec<Step<M>>) {
        let suspected = |row: &Row<M>| self.suspects.iter().any(|it| it.row.destination == row.destination);
        if self.search == Search::Wanted && !self.is_loading {
            if let Some(other) = self.loaded.iter().find(|row| !suspected(row)) {
                self.search = Search::Found(other.sequence);
            } else {
                self.search = Search::Asked;
                self.is_loading = true;
                let but = self.suspects.iter().map(|it| it.row.destination).collect();
                steps.push(Step::Load { after: self.after, rows: 1, bytes: self.bytes, but });
            }
        }
        if let Search::Found(other) = self.search {
            let passed = self.loaded.iter().take_while(|row| row.sequence < other && suspected(row)).count();
            let passed: Vec<u64> = self.loaded.drain(..passed).map(|row| row.sequence).collect();
            if !self.loaded.is_empty() {
                self.search = Search::Idle;
            }
            if !passed.is_empty() {
                // They are read again at the end.
                self.may_load = true;
                self.owe(Write::Pass(passed));
            }
        }
    }

    fn owe(&mut self, write: Write<M>) {
        self.owed += 1;
        self.done.push((write, Load::default()));
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
        self.search(steps);
        let is_free = self.unnoted == 0 && self.owed == 0 && self.search == Search::Idle;
        if self.is_up && is_free && self.sending.is_empty() && !self.loaded.is_empty() {
            let rows = self.window.min(self.loaded.len());
            self.sending = self.loaded.drain(..rows).collect();
            // Of one that may be to blame it is known how far it came.
            let is_careful = rows == 1 && (self.was_lost || !self.suspects.is_empty());
            steps.push(Step::Send { rows: self.sending.clone(), is_careful });
        }
        if self.is_up && self.may_load && !self.is_loading && self.loaded.is_empty() {
            self.is_loading = true;
            self.may_load = false;
            let but = Vec::new();
            steps.push(Step::Load { after: self.after, rows: self.most, bytes: self.bytes, but });
        }
        std::mem::take(&mut self.done)
    }
}

fn hung_up(why: &str) -> String {
    format!("the target hung up whenever it was sent, so it may have got it: {why}")
}
