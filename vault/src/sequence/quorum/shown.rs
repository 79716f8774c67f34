//! What the outside sees of the ledger in etcd: what callers are refused with, what the log, the status
//! and the metrics say, and what is written down beside the journal. Asks etcd nothing.

use std::sync::Arc;

use tokio::time::Instant;

use super::{NOTE, Quorum};
use crate::sequence::coordinator::answer;
use crate::sequence::database::copy::Phase;
use crate::sequence::database::note::Note;
use crate::sequence::reason::{Reason, Told};

impl Quorum {
    /// May what is there be read, though nothing is added to it?
    fn reads(&self) -> bool {
        self.stuck.is_some() && self.current
    }

    /// A reason as callers are told it: with what is known beyond, where that is for them.
    fn told(&self, reason: Reason) -> Told {
        let for_callers = matches!(reason, Reason::LedgerRefuses | Reason::Behind);
        let why = self.why.as_deref().filter(|_| for_callers).map(Arc::from);
        Told { reason, why }
    }

    /// Tells everybody who waits that nothing is entered now. What was sent stays under way.
    pub(super) fn refuse(&mut self, reason: Reason) {
        self.refusal = Some(reason);
        let told = self.told(reason);
        for waiting in self.waiting.drain(..) {
            answer(waiting, Err(told.clone().into()));
        }
        for (waiting, _) in self.told_later.drain(..) {
            answer(waiting, Err(told.clone().into()));
        }
        self.records.refuse(&told);
        if !self.reads() {
            self.question = None;
        }
        self.show();
    }

    /// Shows the outside where things stand, and tells the log when that changes.
    pub(super) fn show(&mut self) {
        let (refusal, tail) = (self.refusal, self.core.tail());
        let said = refusal.map(|reason| (reason, self.why.clone()));
        if said != self.said {
            match &said {
                None => tracing::info!("sequence: etcd is the ledger; numbers are given"),
                Some((reason, why)) => {
                    let why = why.as_deref().map(|why| format!(" ({why})")).unwrap_or_default();
                    if reason.needs_operator() {
                        tracing::error!("sequence: numbering is closed: {reason}{why}");
                    } else if self.said.as_ref().map(|said| said.0) != Some(*reason)
                        || *reason == Reason::NotBegun
                    {
                        tracing::warn!("sequence: no new numbers: {reason}{why}");
                    }
                }
            }
            self.said = said;
        }
        let phase = match refusal {
            None => Phase::Current,
            Some(reason) if reason.needs_operator() => Phase::Refused,
            Some(Reason::NotBegun) => Phase::Connecting,
            Some(_) => Phase::Away,
        };
        let why = refusal.map(|reason| match &self.why {
            Some(why) => format!("{reason} ({why})"),
            None => reason.to_string(),
        });
        self.door.show(phase, tail.index, why);
        let told = refusal.map(|reason| self.told(reason));
        let reads = self.reads();
        let (complete, now) = (refusal.is_none() || reads, Instant::now().into_std());
        match told.clone() {
            Some(_) if reads => self.records.follow_reading(now),
            Some(told) => self.records.follow(Err(told), now),
            None => self.records.follow(Ok(()), now),
        }
        self.seen.send_if_modified(|seen| {
            let why = told.and_then(|told| told.why);
            let changed = (seen.refusal, seen.complete) != (refusal, complete) || seen.why != why;
            (seen.refusal, seen.complete, seen.why) = (refusal, complete, why);
            changed
        });
        self.metrics.together.set(i64::from(refusal.is_none()));
        self.take_note();
    }

    /// Writes down outside the journal how far the ledger goes: a lower bound that may be old.
    fn take_note(&mut self) {
        let index = self.floor();
        if !self.begun || index == self.known || self.noted.elapsed() < NOTE {
            return;
        }
        (self.known, self.noted) = (index, Instant::now());
        let door = Arc::clone(&self.door);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = door.remember(|note: &mut Note| note.copied = note.copied.max(index)) {
                tracing::warn!("sequence: database: {error}");
            }
        });
    }
}
