//! How two vaults that have greeted each other come to equal journals: who drives, what either
//! lacks, what of an epoch that is over gives way.

use std::cmp::Ordering;

use super::{Core, Link, Memory, Output, Peer, Replaced, Stage, Syncing, Together, UnderWay, Write};
use crate::sequence::entry::{BATCH, Entry, Tail, verified};
use crate::sequence::message::{Hello, Message, Session};
use crate::sequence::reason::Reason;

impl Core {
    /// Says Hello as soon as no write is under way, for Hello tells what is durable.
    pub(super) fn greet(&mut self, out: &mut Vec<Output>) {
        if self.writing.is_some() {
            return;
        }
        let Link::Greeting { nonce, said, .. } = &mut self.link else { return };
        if *said {
            return;
        }
        *said = true;
        let nonce = *nonce;
        out.push(Output::Send(Message::Hello(Hello {
            nonce,
            life: self.life,
            proven: self.proven,
            epoch: self.memory.epoch,
            owns: self.memory.owns,
            journal: self.memory.journal,
            tail: self.tail,
            in_both: self.in_both(),
            settled: self.final_index(),
            peer_journal: self.memory.peer_journal,
            peer_durable: self.peer_durable,
        })));
        self.open(out);
    }

    /// Both Hellos are there: compare them, and begin to make the journals equal.
    pub(super) fn open(&mut self, out: &mut Vec<Output>) {
        let Link::Greeting { nonce, said: true, heard: Some(hello) } = &self.link else { return };
        let (nonce, hello) = (*nonce, hello.clone());
        self.stranger = None;
        if let Some(reason) = self.objection(&hello) {
            if reason == Reason::PeerJournalLost && hello.tail.index == 0 && hello.peer_journal.is_none() {
                self.stranger = Some(hello.journal);
            }
            return self.hang_up(reason, out);
        }
        let (leads, drives) = match self.memory.epoch.cmp(&hello.epoch) {
            Ordering::Equal => (self.memory.owns, self.memory.owns),
            Ordering::Greater => (self.memory.owns, true),
            Ordering::Less => (!hello.owns, false),
        };
        let session = if drives { Session(nonce, hello.nonce) } else { Session(hello.nonce, nonce) };
        let higher = self.memory.epoch > hello.epoch;
        let lower = self.memory.epoch < hello.epoch;
        self.link = Link::Syncing(Syncing {
            session,
            peer: hello.tail,
            who: Peer { life: hello.life, proven: hello.proven },
            settled: hello.settled,
            drives,
            leads,
            base: higher.then(|| hello.in_both.max(self.peer_durable)),
            replaced: lower.then_some(Replaced { epoch: hello.epoch, same: None }),
            granted: false,
        });
        let replaces = self.memory.peer_journal.is_none() && hello.tail.index > self.tail.index;
        let whole = self.memory.whole && !replaces;
        let memory = Memory { peer_journal: Some(hello.journal), whole, ..self.current() };
        if self.memory.peer_journal == memory.peer_journal && !self.unsure {
            self.sync(out);
        } else {
            // Whom we met must be known after a crash, or a lost journal would pass unseen. And
            // what a failed write left behind must be overwritten before others take its place.
            self.remember(memory, out);
        }
    }

    pub(super) fn objection(&self, hello: &Hello) -> Option<Reason> {
        let peer_is_new = self.memory.peer_journal.is_some_and(|known| known != hello.journal);
        let own_is_new = hello.peer_journal.is_some_and(|known| known != self.memory.journal);
        let same_epoch = hello.epoch == self.memory.epoch;
        if peer_is_new {
            Some(Reason::PeerJournalLost)
        } else if own_is_new {
            Some(Reason::OwnJournalLost)
        } else if let Some(damage) = self.damage
            && !(damage == Reason::OwnJournalLost && hello.peer_journal == Some(self.memory.journal))
        {
            // Only a peer that an operator has told of this very journal may fill it again.
            Some(damage)
        } else if same_epoch && hello.owns && self.memory.owns {
            Some(Reason::TwoOwners(hello.epoch))
        } else if same_epoch && !hello.owns && !self.memory.owns {
            Some(Reason::NoOwner)
        } else if hello.tail.index < self.peer_durable {
            Some(Reason::PeerRolledBack)
        } else if self.tail.index < hello.peer_durable.max(hello.in_both) {
            Some(Reason::OwnRolledBack)
        } else if same_epoch && hello.tail.index == self.tail.index && hello.tail.hash != self.tail.hash {
            Some(Reason::Forked)
        } else {
            None
        }
    }

    /// The next move towards equal journals of the side that drives.
    pub(super) fn sync(&mut self, out: &mut Vec<Output>) {
        let Link::Syncing(syncing) = self.link else { return };
        if !syncing.drives || self.writing.is_some() || self.loading.is_some() {
            return;
        }
        let (tail, session, peer) = (self.tail, syncing.session, syncing.peer);
        match syncing.base {
            Some(base) if base == tail.index => self.replace(tail, Vec::new(), out),
            // With the entry at the base itself, to name it.
            Some(base) => self.load(base.saturating_sub(1), out),
            None => match peer.index.cmp(&tail.index) {
                Ordering::Less => self.load(peer.index, out),
                Ordering::Greater => {
                    out.push(Output::Send(Message::Fetch { session, after: tail.index }));
                }
                Ordering::Equal if peer.hash != tail.hash => self.hang_up(Reason::Forked, out),
                // The other is there again: nobody goes on alone, and either has all.
                Ordering::Equal if self.memory.alone || !self.memory.whole => {
                    self.peer_durable = tail.index;
                    self.remember(Memory { alone: false, whole: true, ..self.current() }, out);
                }
                Ordering::Equal => {
                    out.push(Output::Send(Message::Grant { session, tail }));
                    self.begin(syncing, out);
                }
            },
        }
    }

    /// Tells the peer, whose epoch is over, what stands in the place of what it has after `after`.
    pub(super) fn replace(&mut self, after: Tail, entries: Vec<Entry>, out: &mut Vec<Output>) {
        let Link::Syncing(syncing) = &mut self.link else { return };
        syncing.base = None;
        let (session, durable) = (syncing.session, self.tail.index);
        out.push(Output::Send(Message::Append { session, after, entries, durable }));
    }

    /// Both journals are equal.
    pub(super) fn begin(&mut self, syncing: Syncing, out: &mut Vec<Output>) {
        let Syncing { session, who, leads, settled, .. } = syncing;
        self.peer_durable = self.tail.index;
        // What either has answered stands in both chains now.
        self.settled = self.settled.max(settled.min(self.tail.index));
        self.damage = None;
        self.link = Link::Together(Together { session, peer: self.tail, who, leads, stage: Stage::Own(0) });
        self.settle(out);
    }

    pub(super) fn load(&mut self, after: u64, out: &mut Vec<Output>) {
        self.loading = Some(after);
        out.push(Output::Load(after));
    }

    pub(super) fn loaded(&mut self, after: u64, mut entries: Vec<Entry>, out: &mut Vec<Output>) {
        if self.loading != Some(after) {
            return;
        }
        self.loading = None;
        let Link::Syncing(Syncing { session, drives, base, peer, .. }) = self.link else { return };
        if let Some(said) = self.compared.take() {
            return self.compare(&entries, said, out);
        }
        if !drives {
            return out.push(Output::Send(Message::Fetched { session, entries }));
        }
        match base {
            Some(0) => self.replace(Tail::default(), entries, out),
            Some(_) if entries.is_empty() => self.hang_up(Reason::Forked, out),
            Some(_) => {
                let after = entries.remove(0).tail();
                self.replace(after, entries, out);
            }
            None => {
                let durable = self.tail.index;
                out.push(Output::Send(Message::Append { session, after: peer, entries, durable }));
            }
        }
    }

    pub(super) fn fetched(&mut self, entries: Vec<Entry>, out: &mut Vec<Output>) {
        if self.writing.is_some() || !matches!(self.link, Link::Syncing(_)) {
            return;
        }
        if entries.is_empty() || verified(self.tail, &entries).is_none() {
            return self.hang_up(Reason::Forked, out);
        }
        self.add(entries, self.current(), out);
    }

    pub(super) fn append(&mut self, after: Tail, entries: Vec<Entry>, durable: u64, out: &mut Vec<Output>) {
        if let Link::Syncing(Syncing { replaced: Some(replaced), .. }) = self.link {
            return self.meet_new_epoch(replaced, (after, entries, durable), out);
        }
        if entries.len() > BATCH || after != self.tail || verified(after, &entries).is_none() {
            return self.hang_up(Reason::Forked, out);
        }
        // The sender's chain continues ours: what it has durable of our part is the same.
        self.peer_durable = self.peer_durable.max(durable.min(self.tail.index));
        if matches!(self.link, Link::Together(Together { stage: Stage::Settled, .. })) {
            self.settled = self.settled.max(self.in_both());
        }
        if !entries.is_empty() {
            self.add(entries, self.current(), out);
        }
    }

    /// Our epoch is over, and this is what stands in the new one's chain after `after`. What is
    /// the same in ours stays, for it may have been answered; the rest was not, and gives way.
    fn meet_new_epoch(
        &mut self,
        replaced: Replaced,
        (after, entries, durable): (Tail, Vec<Entry>, u64),
        out: &mut Vec<Output>,
    ) {
        let keeps = (self.in_both()..=self.tail.index).contains(&after.index);
        let goes_on = replaced.same.is_none_or(|same| same == after);
        let fits = keeps && goes_on && self.compared.is_none() && entries.len() <= BATCH;
        if !fits || verified(after, &entries).is_none() {
            return self.hang_up(Reason::Forked, out);
        }
        if after == self.tail || entries.is_empty() {
            return self.compare(&[], (after, entries, durable), out);
        }
        let from = after.index;
        self.compared = Some((after, entries, durable));
        self.load(from, out);
    }

    /// Keeps of `own` what is the same; where both go on differently, ours gives way.
    fn compare(
        &mut self,
        own: &[Entry],
        (after, mut entries, durable): (Tail, Vec<Entry>, u64),
        out: &mut Vec<Output>,
    ) {
        let Link::Syncing(Syncing { session, replaced: Some(replaced), .. }) = &mut self.link else {
            return;
        };
        let alike = own.iter().zip(&entries).take_while(|(own, new)| own == new).count();
        let rest = entries.split_off(alike);
        let same = entries.last().map_or(after, Entry::tail);
        if alike > 0 || after == self.tail {
            self.peer_durable = self.peer_durable.max(durable.min(same.index));
        }
        if rest.is_empty() {
            *replaced = Replaced { same: Some(same), ..*replaced };
            return out.push(Output::Send(Message::Acknowledge { session: *session, tail: same }));
        }
        if same.index < self.in_both() {
            return self.hang_up(Reason::Forked, out);
        }
        self.give_up(same, rest, out);
    }

    /// Ends our epoch: the chain goes on after `same` with these entries, and with nothing else.
    fn give_up(&mut self, same: Tail, entries: Vec<Entry>, out: &mut Vec<Output>) {
        let Link::Syncing(syncing) = &mut self.link else { return };
        let Some(Replaced { epoch, .. }) = syncing.replaced.take() else { return };
        let owns = syncing.leads;
        let memory = Memory { epoch, owns, alone: false, ..self.current() };
        let memory = Memory { whole: memory.whole || self.is_granted(), ..memory };
        let tail = entries.last().map_or(same, Entry::tail);
        self.writing =
            Some(UnderWay { tail, memory, acknowledge: !self.is_granted(), gives: false, begins: None });
        let cut = (same != self.tail).then_some(same);
        out.push(Output::Write(Write { cut, entries, rows: Vec::new(), memory }));
    }

    fn is_granted(&self) -> bool {
        matches!(self.link, Link::Syncing(Syncing { granted: true, .. }))
    }

    pub(super) fn granted(&mut self, tail: Tail, out: &mut Vec<Output>) {
        let Link::Syncing(syncing) = &mut self.link else { return };
        let same = syncing.replaced.map_or(Some(self.tail), |replaced| replaced.same);
        if same != Some(tail) || self.compared.is_some() {
            return self.hang_up(Reason::Forked, out);
        }
        syncing.granted = true;
        let syncing = *syncing;
        if syncing.replaced.is_some() {
            // What was the same so far was not written down anew.
            self.give_up(tail, Vec::new(), out);
        } else if self.memory.whole {
            self.begin(syncing, out);
        } else {
            self.remember(Memory { whole: true, ..self.current() }, out);
        }
    }
}
