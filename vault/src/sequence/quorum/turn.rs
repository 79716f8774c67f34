//! What becomes of callers' wishes where etcd is the ledger, and how it comes to be the ledger: a
//! round decided on this vault's journal, and answered once etcd has it.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::{Instant, sleep};

use super::begin::{Greeting, Plan, Ready, plan};
use super::core::Input;
use super::{AGAIN, Quorum, within};
use crate::sequence::book::{Round, Verdict, Wish};
use crate::sequence::coordinator::{Waiting, answer, given, gives, held, label};
use crate::sequence::database::DatabaseError;
use crate::sequence::entry::{Act, BATCH, Draft, Entry, Tail};
use crate::sequence::journal::JournalError;
use crate::sequence::protocol::Reason;
use crate::sequence::standing::{Doubts, LifeState, Present};
use crate::sequence::{Done, Outcome, SequenceError};

/// Keys and texts of one round's numbers: a control character becomes six bytes in a block's JSON,
/// and etcd takes 1.5 MiB at a time; see also `SHARED_BYTES` of records.
const NUMBER_BYTES: usize = 64 << 10;

impl Quorum {
    /// Decides up to [`BATCH`] waiting wishes on the journal as it is.
    pub(super) fn decide(&mut self) -> Vec<Draft> {
        let (at, mut bytes) = (label(), 0);
        self.decided_at = self.core.tail();
        let mut drafts = self.records.round(&self.journal, BATCH / 2, Instant::now().into_std(), at);
        let (mut round, mut later) = (Round::default(), VecDeque::new());
        while drafts.len() < BATCH
            && bytes < NUMBER_BYTES
            && let Some(waiting) = self.waiting.pop_front()
        {
            if waiting.answer.is_closed() {
                continue;
            }
            match self.verdict(&mut round, &waiting, at) {
                Ok(Verdict::Answer(known)) => self.told_later.push((waiting, Ok(held(known)))),
                Ok(Verdict::Refuse(refused)) => self.told_later.push((waiting, Err(refused.into()))),
                Ok(Verdict::Make(draft)) => {
                    bytes += draft.key.len() + draft.act.parts().1.len();
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

    /// etcd is not the ledger yet, as far as this process knows.
    pub(super) async fn advance_to_begin(&mut self) -> Result<(), DatabaseError> {
        let was = self.door.note().truth;
        // A member that has lost everything gets no new layout where there was one.
        let end = match was {
            true => within(self.connection()?.tail()).await?,
            false => within(self.connection()?.prepare()).await?,
        };
        if self.connection()?.begun().is_some() {
            return self.has_begun();
        }
        if was {
            self.close(Reason::LedgerShrunk);
        } else if let Err(why) = self.begin(end).await? {
            self.why = Some(why);
            self.refuse(Reason::NotBegun);
        } else {
            return self.has_begun();
        }
        self.meanwhile(sleep(AGAIN)).await;
        Ok(())
    }

    fn has_begun(&mut self) -> Result<(), DatabaseError> {
        let kept = self.door.remember(|note| note.truth = true);
        let here = |why: String| DatabaseError::Away { place: "this vault's state folder".to_owned(), why };
        kept.map_err(|error| here(error.to_string()))?;
        // What is lost with the power is read from etcd again.
        self.journal.relax().map_err(|error| here(error.to_string()))?;
        self.begun = true;
        Ok(())
    }

    /// Makes etcd the ledger, if both vaults are ready for it; tells why not.
    async fn begin(&mut self, end: Tail) -> Result<Result<(), String>, DatabaseError> {
        let own = Arc::clone(&self.ready);
        let Some(peer) = self.peer().await else {
            return Ok(Err("the other vault is not connected, or runs with another role".to_owned()));
        };
        let here = |error: JournalError| DatabaseError::Away {
            place: "this vault's journal".to_owned(),
            why: error.to_string(),
        };
        let own = Ready { tail: self.core.tail(), ..(*own).clone() };
        let ours = self.door.tail_at(peer.tail.index).map_err(here)?;
        match plan(&own, &peer, ours.map(|tail| tail.hash)) {
            Ok(Plan::Begin) => {}
            Ok(Plan::Follow) => return Ok(Err(format!("{} brings its journal into etcd first", peer.name))),
            Err(why) => {
                let next = "start both with role = \"copy\", or without [sequence.database], until vault status says that they are together";
                return Ok(Err(format!("{why}; {next}")));
            }
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
        within(self.connection()?.begin(tail)).await?;
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
    async fn peer(&mut self) -> Option<Ready> {
        let body = serde_json::to_vec(&Greeting::Truth((*self.ready).clone())).ok()?;
        let asked = (self.forward)(Bytes::from(body));
        let told = self.meanwhile(asked).await.ok()?;
        let Greeting::Truth(peer) = serde_json::from_slice(&told).ok()?;
        Some(peer)
    }
}

fn unreadable(waiting: Waiting, error: &JournalError) {
    tracing::error!("sequence: {error}");
    answer(waiting, Err(SequenceError::Unreadable));
}
