//! What waits to be written, and what is known of the writing: bounded, and nobody who puts
//! something in waits for the disk. Must not know SQLite.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Change, EVIDENCE_BYTES, EVIDENCE_LINES};

/// At most so many changes wait: some seconds of the worst flood.
pub(super) const CAPACITY: usize = 65_536;
/// And so many bytes of their texts; counted until they are written.
const TEXTS: usize = 16 << 20;
/// Of which so many may be log lines: a ban is worth more than its evidence.
const LINES: usize = 8 << 20;
/// A transaction is begun when so many wait, or after [`WITHIN`].
pub(super) const BATCH: usize = 2000;
/// A change waits at most so long for others.
pub(super) const WITHIN: Duration = Duration::from_millis(50);
/// Behind a flood one transaction takes so many.
const LARGEST: usize = 8192;

#[derive(Default)]
struct Inner {
    changes: VecDeque<Change>,
    /// What waits.
    waiting: Weight,
    /// What is being written.
    writing: Weight,
    told_lines: bool,
    /// So many were put in, and so many have been written or given up.
    saved: u64,
    settled: u64,
    lost: u64,
    /// Of `lost`, what a resync has not repaired yet.
    unrepaired: u64,
    /// What was lost before the latest resync was handed in: it repairs no more than that.
    covered: u64,
    resync: bool,
    flushing: usize,
    closed: bool,
    damage: Option<String>,
    fault: Option<String>,
}

/// Bytes on the heap, about.
#[derive(Clone, Copy, Default)]
struct Weight {
    lines: usize,
    rest: usize,
}

impl Weight {
    fn of(change: &Change) -> Self {
        // What an allocation costs beside its bytes.
        const EACH: usize = 32;
        match change {
            Change::Ban(ban, lines) => Self {
                lines: lines.iter().map(|line| line.len() + EACH).sum(),
                rest: ban.jail.len() + ban.reason.len() + 2 * EACH,
            },
            Change::WouldBan(would) => {
                let line = if would.line.is_empty() { 0 } else { would.line.len() + EACH };
                Self { lines: line, rest: would.jail.len() + EACH }
            }
            // The few that are made by hand, and the resync, which is one.
            _ => Self::default(),
        }
    }

    fn add(&mut self, other: Self) {
        self.lines += other.lines;
        self.rest += other.rest;
    }

    fn remove(&mut self, other: Self) {
        self.lines = self.lines.saturating_sub(other.lines);
        self.rest = self.rest.saturating_sub(other.rest);
    }
}

pub(super) struct Queue {
    inner: Mutex<Inner>,
    filled: Condvar,
    emptied: Condvar,
}

/// What the writer shall do.
pub(super) enum Work {
    Write(Vec<Change>),
    /// Nothing came for the time it was asked to wait.
    Idle,
    Closed,
}

impl Queue {
    pub(super) fn new() -> Self {
        Self { inner: Mutex::new(Inner::default()), filled: Condvar::new(), emptied: Condvar::new() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, mut change: Change) {
        bound(&mut change);
        let mut inner = self.inner();
        if let Change::Positions(_) = change
            && let Some(waiting) =
                inner.changes.iter_mut().rev().take(8).find(|c| matches!(c, Change::Positions(_)))
        {
            *waiting = change;
            return;
        }
        inner.saved += 1;
        // The few changes that no resync repairs always find a place: an engine makes them by hand.
        let room = if is_by_hand(&change) { CAPACITY + 1024 } else { CAPACITY };
        let mut weight = Weight::of(&change);
        if inner.waiting.lines + inner.writing.lines + weight.lines > LINES && weight.lines > 0 {
            lighten(&mut change);
            weight.lines = 0;
            if !std::mem::replace(&mut inner.told_lines, true) {
                tracing::warn!(
                    "ban store: bans come faster than the disk takes their evidence; some are kept without their lines"
                );
            }
        }
        let texts = inner.waiting.rest + inner.writing.rest + weight.rest;
        if inner.changes.len() >= room || weight.rest > 0 && texts > TEXTS {
            inner.settled += 1;
            inner.lost += 1;
            inner.unrepaired += 1;
            if inner.fault.is_none() {
                inner.fault = Some("its queue is full: the disk is too slow".to_owned());
                tracing::error!(
                    "ban store: its queue is full: the disk is too slow; bans hold, and all are written again later"
                );
            }
            return;
        }
        if matches!(change, Change::Replace(_)) {
            inner.covered = inner.lost;
        }
        inner.waiting.add(weight);
        inner.changes.push_back(change);
        let waiting = inner.changes.len();
        drop(inner);
        if waiting == 1 || waiting == BATCH {
            self.filled.notify_one();
        }
    }

    /// Waits for changes, at most `idle` long, and a moment more so that many share a transaction.
    pub(super) fn take(&self, idle: Duration) -> Work {
        let inner = self.inner();
        let waited = self.filled.wait_timeout_while(inner, idle, |i| i.changes.is_empty() && !i.closed);
        let (inner, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if inner.changes.is_empty() {
            return if inner.closed { Work::Closed } else { Work::Idle };
        }
        let hurry = |i: &mut Inner| i.changes.len() < BATCH && !i.closed && i.flushing == 0;
        let waited = self.filled.wait_timeout_while(inner, WITHIN, hurry);
        let (mut inner, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let count = inner.changes.len().min(LARGEST);
        let changes: Vec<Change> = inner.changes.drain(..count).collect();
        let mut weight = Weight::default();
        changes.iter().for_each(|change| weight.add(Weight::of(change)));
        inner.waiting.remove(weight);
        inner.writing = weight;
        if inner.changes.is_empty() && inner.changes.capacity() > 4 * BATCH {
            inner.changes.shrink_to(BATCH);
        }
        Work::Write(changes)
    }

    /// So many changes were written, or lost for this reason.
    pub(super) fn settle(&self, count: usize, repaired: bool, lost: Option<String>) {
        let count = count as u64;
        let mut inner = self.inner();
        inner.settled += count;
        inner.writing = Weight::default();
        if lost.is_some() {
            inner.lost += count;
            inner.unrepaired += count;
            inner.fault = lost;
        } else if repaired {
            inner.unrepaired = inner.lost - inner.covered;
            inner.resync = inner.unrepaired > 0;
            if !inner.resync {
                inner.fault = None;
            }
        } else if inner.unrepaired > 0 && inner.changes.len() < CAPACITY / 2 {
            // The disk is fast enough again.
            inner.resync = true;
        }
        drop(inner);
        self.emptied.notify_all();
    }

    /// Writing works again: what was lost can be handed in.
    pub(super) fn ask_resync(&self) {
        self.inner().resync = true;
    }

    pub(super) fn take_resync(&self) -> bool {
        std::mem::take(&mut self.inner().resync)
    }

    pub(super) fn tell(&self, damage: String) {
        self.inner().damage = Some(damage);
    }

    pub(super) fn fault(&self, fault: String) {
        self.inner().fault = Some(fault);
    }

    pub(super) fn faults(&self) -> Option<String> {
        let inner = self.inner();
        let lost = inner.fault.as_ref().map(|fault| {
            format!("{fault}; {} changes are not written and will be handed in again", inner.unrepaired)
        });
        match (&inner.damage, lost) {
            (None, lost) => lost,
            (Some(damage), None) => Some(damage.clone()),
            (Some(damage), Some(lost)) => Some(format!("{damage}; {lost}")),
        }
    }

    pub(super) fn lost(&self) -> u64 {
        self.inner().lost
    }

    pub(super) fn flush(&self, deadline: Duration) -> bool {
        let mut inner = self.inner();
        let (upto, lost) = (inner.saved, inner.lost);
        inner.flushing += 1;
        self.filled.notify_one();
        let waited = self.emptied.wait_timeout_while(inner, deadline, |inner| inner.settled < upto);
        let (mut inner, _) = waited.unwrap_or_else(PoisonError::into_inner);
        inner.flushing -= 1;
        inner.settled >= upto && inner.lost == lost
    }

    pub(super) fn close(&self) {
        self.inner().closed = true;
        self.filled.notify_one();
    }
}

fn is_by_hand(change: &Change) -> bool {
    matches!(
        change,
        Change::Off(_) | Change::Lease(_) | Change::Clear | Change::Positions(_) | Change::Replace(_)
    )
}

fn lighten(change: &mut Change) {
    match change {
        Change::Ban(_, lines) => *lines = Vec::new(),
        Change::WouldBan(would) => would.line = Box::default(),
        _ => {}
    }
}

fn bound(change: &mut Change) {
    match change {
        Change::Ban(ban, lines) => {
            crop(&mut ban.reason);
            lines.truncate(EVIDENCE_LINES);
            lines.iter_mut().for_each(shorten);
        }
        Change::WouldBan(would) => shorten(&mut would.line),
        Change::Replace(bans) => bans.iter_mut().for_each(|ban| crop(&mut ban.reason)),
        _ => {}
    }
}

fn crop(text: &mut String) {
    let end = (0..=EVIDENCE_BYTES.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text.truncate(end.unwrap_or(0));
}

fn shorten(line: &mut Box<[u8]>) {
    if line.len() > EVIDENCE_BYTES {
        *line = line[..EVIDENCE_BYTES].into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log_watch::ban_store::StoredBan;

    #[test]
    fn what_waits_is_bounded_in_bytes_and_gives_up_lines_before_bans() {
        let queue = Queue::new();
        let line: Box<[u8]> = vec![b'x'; EVIDENCE_BYTES].into();
        for number in 0..CAPACITY {
            let ban = StoredBan {
                network: std::net::IpAddr::from(u32::try_from(number).unwrap().to_be_bytes()).into(),
                jail: "ssh".to_owned(),
                since: Duration::ZERO,
                until: Duration::ZERO,
                offences: 1,
                times: 1,
                throttle: false,
                reason: String::new(),
            };
            queue.push(Change::Ban(ban, vec![line.clone(); EVIDENCE_LINES]));
        }
        let mut written = 0;
        let mut lines = 0;
        while let Work::Write(changes) = queue.take(Duration::ZERO) {
            let inner = queue.inner();
            assert!(inner.waiting.lines + inner.writing.lines <= LINES);
            drop(inner);
            written += changes.len();
            lines +=
                changes.iter().map(|c| if let Change::Ban(_, l) = c { l.len() } else { 0 }).sum::<usize>();
            queue.settle(changes.len(), false, None);
        }
        assert_eq!((written, queue.lost()), (CAPACITY, 0), "no ban is lost");
        assert!(lines > LINES / 2 / (EVIDENCE_BYTES + 32), "{lines}: the first ones keep theirs");
        let inner = queue.inner();
        assert_eq!((inner.waiting.lines, inner.waiting.rest, inner.writing.lines), (0, 0, 0));
        assert!(inner.changes.capacity() <= 4 * BATCH, "{}", inner.changes.capacity());
    }
}
