//! What becomes of callers' wishes where etcd is the ledger, and how it comes to be the ledger: a
//! round decided on this vault's journal, and answered once etcd has it.

use std::collections::VecDeque;

use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::begin::{Greeting, Plan, Ready, misfit, plan, sorted};
use super::core::Input;
use super::{AGAIN, ASKED, BLOCK_BYTES, COMPANY, Quorum, within};
use crate::sequence::book::{Round, Verdict, Wish};
use crate::sequence::coordinator::{Waiting, answer, given, gives, held, label};
use crate::sequence::database::{DatabaseError, Mark};
use crate::sequence::entry::{Act, BATCH, Draft, Entry, Tail};
use crate::sequence::journal::JournalError;
use crate::sequence::protocol::Reason;
use crate::sequence::standing::{Doubts, LifeState, Present};
use crate::sequence::{Done, Outcome, SequenceError};

/// No entry of a number is longer in JSON, in bytes.
const LONGEST: usize = 16 << 10;

impl Quorum {
    /// Decides up to [`BATCH`] waiting wishes on the journal as it is.
    pub(super) fn decide(&mut self) -> Vec<Draft> {
        let at = label();
        self.decided_at = self.core.tail();
        let mut drafts = self.records.round(&self.journal, BATCH / 2, Instant::now().into_std(), at);
        let mut bytes: usize = drafts.iter().map(Draft::bytes).sum();
        let (mut round, mut later) = (Round::default(), VecDeque::new());
        while drafts.len() < BATCH
            && bytes + LONGEST <= BLOCK_BYTES
            && let Some(waiting) = self.waiting.pop_front()
        {
            if waiting.answer.is_closed() {
                continue;
            }
            match self.verdict(&mut round, &waiting, at) {
                Ok(Verdict::Answer(known)) => self.told_later.push((waiting, Ok(held(known)))),
                Ok(Verdict::Refuse(refused)) => self.told_later.push((waiting, Err(refused.into()))),
                Ok(Verdict::Make(draft)) => {
                    bytes += draft.bytes();
                    drafts.push(draft);
                    self.under_way.push(waiting);
                }
                Ok(Verdict::Wait) => later.push_back(waiting),
                Err(error) => unreadable(waiting, &error),
            }
        }
        later.append(&mut self.waiting);
        self.waiting = later;
        drafts
    }

    fn verdict(&self, round: &mut Round, waiting: &Waiting, at: i64) -> Result<Verdict, JournalError> {
        let wish = self.without_ticket(&waiting.wish);
        let wish = wish.as_ref().unwrap_or(&waiting.wish);
        let context = self.journal.context(&waiting.name, wish)?;
        Ok(round.decide(&waiting.name, wish, context, self.journal.standing(), at))
    }

    /// A ticket says nothing here, but of a life that was lost when the vaults were a pair: what it
    /// answered alone nobody knows.
    fn without_ticket(&self, wish: &Wish) -> Option<Wish> {
        let Wish::Reserve { key, ticket: Some(life) } = wish else { return None };
        let is_lost = self.journal.standing().life(*life) == Some(LifeState::Lost);
        (!is_lost).then(|| Wish::Reserve { key: key.clone(), ticket: None })
    }

    /// The journal has everything that the ledger had a moment ago.
    pub(super) fn tell(&mut self) {
        if let Some(question) = self.question.take() {
            self.records.stands(question, self.core.tail().index);
        }
        let unchanged = self.decided_at == self.core.tail();
        let (mut round, at) = (Round::default(), label());
        for (waiting, outcome) in std::mem::take(&mut self.told_later) {
            if unchanged {
                answer(waiting, outcome);
                continue;
            }
            // Decided once more, now on everything that had been entered when it came.
            match self.verdict(&mut round, &waiting, at) {
                Ok(Verdict::Answer(known)) => answer(waiting, Ok(held(known))),
                Ok(Verdict::Refuse(refused)) => answer(waiting, Err(refused.into())),
                Ok(Verdict::Make(_) | Verdict::Wait) => self.waiting.push_back(waiting),
                Err(error) => unreadable(waiting, &error),
            }
        }
    }

    /// The block stands: everybody in it hears what the ledger says now.
    pub(super) fn conclude(&mut self, entries: Vec<Entry>) {
        // Appended where the journal ended: what was decided with it was true then.
        for (waiting, outcome) in std::mem::take(&mut self.told_later) {
            answer(waiting, outcome);
        }
        let of_record = |entry: &Entry| matches!(entry.act, Act::Put(_) | Act::Remove);
        let mut made = entries.into_iter().filter(|entry| !of_record(entry));
        for waiting in std::mem::take(&mut self.under_way) {
            let made = made.next();
            let word = made.as_ref().map_or("reserve", |entry| entry.act.parts().0);
            self.metrics.entries.with_label_values(&[word]).inc();
            let outcome = if let Wish::Define(_) = waiting.wish {
                let now = self.journal.standing().definition(&waiting.name).cloned().unwrap_or_default();
                Ok(Outcome::Defined(now))
            } else if let Some(entry) = made.filter(|entry| gives(&waiting, entry)) {
                Ok(given(entry))
            } else {
                let known = self.journal.context(&waiting.name, &waiting.wish).map(|context| context.known);
                match known {
                    Ok(Some(known)) => Ok(Outcome::Number(Done { number: known.number, fresh: true })),
                    Ok(None) => Err(SequenceError::InDoubt),
                    Err(error) => {
                        unreadable(waiting, &error);
                        continue;
                    }
                }
            };
            answer(waiting, outcome);
        }
        let counts = self.records.conclude(Instant::now().into_std());
        for (act, count) in ["put", "remove"].into_iter().zip(counts) {
            self.metrics.entries.with_label_values(&[act]).inc_by(count);
        }
    }

    /// The block never will stand: whoever is in it is decided anew, before all others.
    pub(super) fn decide_anew(&mut self) {
        let told = std::mem::take(&mut self.told_later).into_iter().map(|(waiting, _)| waiting);
        let again: Vec<Waiting> = std::mem::take(&mut self.under_way).into_iter().chain(told).collect();
        again.into_iter().rev().for_each(|waiting| self.waiting.push_front(waiting));
        self.records.again();
    }

    /// etcd takes no entries: nobody waits for it, what is there is read, and now and then it is
    /// looked whether it takes them again.
    pub(super) async fn wait_for_room(&mut self) -> Result<(), DatabaseError> {
        self.why.clone_from(&self.stuck);
        self.refuse(Reason::LedgerRefuses);
        let again = Instant::now() + AGAIN;
        while let Ok(work) = timeout_at(again, self.queue.recv()).await {
            // The room has ended, and this thread is about to.
            let Some(work) = work else { return std::future::pending().await };
            self.take(work);
            self.take_more();
            self.refuse(Reason::LedgerRefuses);
            self.question = self.question.or_else(|| self.records.question());
            if self.question.is_some() {
                self.drive(Input::Ask).await?;
            }
            if !self.asked || !self.current {
                return Ok(());
            }
            if Instant::now() >= again {
                break;
            }
        }
        match within(self.connection()?.would_append()).await {
            Ok(()) => self.stuck = None,
            Err(error) => self.stuck = Some(error.words().ok_or(error)?),
        }
        Ok(())
    }

    /// etcd is not the ledger yet, as far as this process knows.
    pub(super) async fn advance_to_begin(&mut self) -> Result<(), DatabaseError> {
        let was = self.door.note().truth;
        // A member that has lost everything gets no new layout where there was one.
        let end = match was {
            true => within(self.connection()?.tail()).await?,
            false => within(self.connection()?.prepare()).await?,
        };
        if self.connection()?.begun().is_some() {
            return self.has_begun().await;
        }
        if was {
            self.close(Reason::LedgerShrunk);
        } else if let Err(why) = self.begin(end).await? {
            self.why = Some(why);
            self.refuse(if self.theirs.is_some() { Reason::OtherLedger } else { Reason::NotBegun });
        } else {
            return self.has_begun().await;
        }
        self.meanwhile(sleep(AGAIN)).await;
        Ok(())
    }

    async fn has_begun(&mut self) -> Result<(), DatabaseError> {
        let mark = self.connection()?.begun().cloned();
        let reason = misfit(mark.as_ref(), &self.names, [self.ledger.as_ref(), self.theirs.as_ref()]);
        if let Some(reason) = reason {
            self.close(reason);
            self.meanwhile(sleep(AGAIN)).await;
            return Ok(());
        }
        let id = mark.map(|mark| mark.id);
        let kept = self.door.remember(|note| (note.truth, note.ledger) = (true, id.clone()));
        let here = |why: String| DatabaseError::Away { place: "this vault's state folder".to_owned(), why };
        kept.map_err(|error| here(error.to_string()))?;
        // What is lost with the power is read from etcd again.
        self.journal.relax().map_err(|error| here(error.to_string()))?;
        (self.begun, self.ledger) = (true, id.clone());
        self.ready.send_modify(|ready| (ready.reads, ready.begun) = (id, true));
        self.publish();
        Ok(())
    }

    /// Asks the other vault how far the ledger goes, as it knows: etcd may have been put back from a
    /// backup while this vault was off. One that has just started waits a moment for the other.
    pub(super) async fn ask_other(&mut self) {
        self.asked = true;
        let peer = loop {
            let peer = timeout(ASKED, self.ask_peer()).await.ok().flatten();
            if peer.is_some() || self.alone || self.started.elapsed() >= COMPANY {
                break peer;
            }
            self.why = Some("the other vault is asked first".to_owned());
            self.refuse(Reason::Behind);
            self.meanwhile(sleep(COMPANY / 30)).await;
        };
        match peer {
            Some(peer) if peer.begun => {
                self.alone = false;
                self.core.heard(peer.end);
                self.theirs = peer.reads;
                // What the ledger holds is looked at after this, never before.
                self.current = false;
                self.publish();
            }
            Some(_) => self.alone = false,
            None if !self.alone => {
                self.alone = true;
                tracing::warn!(
                    "sequence: the other vault cannot be asked how far the ledger in etcd goes; if etcd was restored from a backup, stop this vault, and start the one first that was on until then"
                );
            }
            None => {}
        }
    }

    /// Makes etcd the ledger, if both vaults are ready for it; tells why not.
    async fn begin(&mut self, end: Tail) -> Result<Result<(), String>, DatabaseError> {
        let reads = within(self.connection()?.identity()).await?;
        self.ready.send_modify(|ready| ready.reads = Some(reads));
        let Some(peer) = self.ask_peer().await else {
            return Ok(Err("the other vault is not connected, or runs with another role".to_owned()));
        };
        let here = |error: JournalError| DatabaseError::Away {
            place: "this vault's journal".to_owned(),
            why: error.to_string(),
        };
        if peer.begun {
            // It may have begun it here, a moment ago.
            within(self.connection()?.tail()).await?;
            if self.connection()?.begun().is_some() {
                return Ok(Ok(()));
            }
            self.theirs.clone_from(&peer.reads);
        }
        let own = self.ready.borrow().clone();
        let ours = self.door.tail_at(peer.tail.index).map_err(here)?;
        match plan(&own, &peer, ours.map(|tail| tail.hash)) {
            Ok(Plan::Begin) => {}
            Ok(Plan::Follow) => return Ok(Err(format!("{} brings its journal into etcd first", peer.name))),
            Err(why) => return Ok(Err(why)),
        }
        if self.door.tail_at(end.index).map_err(here)? != Some(end) {
            let why = "what etcd holds is no part of the two journals; give the vaults another prefix in sequence.database.database, or put etcd's data right";
            return Ok(Err(why.to_owned()));
        }
        let mut end = end;
        while end.index < own.tail.index {
            let entries = self.door.read(end.index).map_err(here)?;
            let Some(next) = entries.last().map(Entry::tail) else { break };
            within(self.connection()?.append(end, &entries)).await?;
            end = next;
        }
        self.drive(Input::Ask).await?;
        // What the pair would do before it gives numbers again: lives have ended, and ranges with them.
        loop {
            let drafts = self.chores(&own, &peer).map_err(here)?;
            if drafts.is_empty() || !self.current {
                break;
            }
            self.drive(Input::Propose(drafts)).await?;
        }
        if !self.current {
            return Ok(Err("etcd moved meanwhile".to_owned()));
        }
        let tail = self.core.tail();
        let mark =
            Mark { since: tail.index, id: own.reads.unwrap_or_default(), vaults: sorted(self.names.clone()) };
        within(self.connection()?.begin(tail, mark)).await?;
        tracing::info!("sequence: etcd is the ledger itself from now on, after entry {}", tail.index);
        Ok(Ok(()))
    }

    fn chores(&self, own: &Ready, peer: &Ready) -> Result<Vec<Draft>, JournalError> {
        let present =
            |ready: &Ready| Present { name: ready.name.clone(), life: ready.life, proven: ready.proven };
        let (own, peer, at) = (present(own), present(peer), label());
        let standing = self.journal.standing();
        let births = standing.births([&own, &peer], at);
        if !births.is_empty() {
            return Ok(births);
        }
        let (mut doubts, mut after) = (Doubts::default(), self.memory.settled);
        loop {
            let fresh = self.journal.entries(after)?;
            let Some(last) = fresh.last() else { break };
            after = last.index;
            standing.doubt(&mut doubts, &fresh, at);
        }
        let doubtful = doubts.drafts(BATCH);
        let vaults = [own, peer];
        let ends =
            || standing.names().flat_map(|name| standing.ends(name, &vaults, at)).take(BATCH).collect();
        Ok(if doubtful.is_empty() { ends() } else { doubtful })
    }

    /// What the other vault says of itself, if it takes etcd for the ledger too.
    pub(super) async fn ask_peer(&mut self) -> Option<Ready> {
        let greeting = Greeting::Truth(self.ready.borrow().clone());
        self.greet(&greeting).await
    }

    /// Says this to the other vault, and hears what it says of itself then.
    pub(super) async fn greet(&mut self, greeting: &Greeting) -> Option<Ready> {
        let body = serde_json::to_vec(greeting).ok()?;
        let asked = (self.forward)(Bytes::from(body));
        let told = self.meanwhile(asked).await.ok()?;
        match serde_json::from_slice(&told).ok()? {
            Greeting::Truth(peer) => Some(peer),
            Greeting::Refill(_) => None,
        }
    }
}

fn unreadable(waiting: Waiting, error: &JournalError) {
    tracing::error!("sequence: {error}");
    answer(waiting, Err(SequenceError::Unreadable));
}
