//! Records' front door: wishes go to the ledger's owner, here or at the other vault, and reads are
//! answered from this vault's own journal, as far as the owner says that it may be.
//!
//! **Linearizable**: before a read, or an answer that made no entry, the owner asks the follower
//! whether the session still stands; it does only if nobody else can have become the owner up to
//! then. One question serves all who came before it was sent. A follower asks the owner, and what
//! that may answer from stands in both journals. Apart nobody can be asked, and nothing is answered
//! but what a reader has said may be old, unless an operator has let the owner go on alone.

use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::desk::Waiting;
use super::{Done, Held, RecordError, RecordName, Wish};
use crate::sequence::coordinator::Work;
use crate::sequence::journal::{Journal, JournalError, Leaf};
use crate::sequence::reason::Reason;
use crate::sequence::{ANSWER_DEADLINE, Sequence, SequenceError, Unheard};

/// The other vault has said within this time that the session stands, or nothing is answered.
pub(in crate::sequence) const SURE_DEADLINE: Duration = Duration::from_secs(2);

/// Whoever wants to know whether both are together hears no after this long.
const TOGETHER_DEADLINE: Duration = Duration::from_millis(500);

/// What a follower asks the owner.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub(in crate::sequence) enum Question {
    /// Enter this.
    Wish(RecordName, Wish),
    /// Up to where may the ledger be answered from now?
    Sure,
}

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen<T> {
    /// It.
    pub found: T,
    /// May it be old? Only where the reader has allowed it.
    pub stale: bool,
}

impl Sequence {
    /// Is etcd the ledger, which both vaults write? Then a lease's renewal is an entry.
    #[must_use]
    pub const fn is_shared(&self) -> bool {
        self.ready.is_some()
    }

    /// Writes, removes, or does something about a lease.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub async fn write_record(&self, name: RecordName, wish: Wish) -> Result<Done, RecordError> {
        if self.asks_the_owner() {
            self.ask_owner(&Question::Wish(name, wish), RecordError::InDoubt).await
        } else {
            self.enter_record(name, wish).await
        }
    }

    /// The record's present version. One that is gone has no text.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub async fn record(&self, name: RecordName, stale: bool) -> Result<Seen<Option<Held>>, RecordError> {
        self.look(stale, false, move |journal, upto| journal.record(&name, upto)).await
    }

    /// What this vault's own journal has of the record; asks nobody, and may be old.
    ///
    /// # Errors
    /// The journal.
    pub async fn record_here(&self, name: RecordName) -> Result<Option<Held>, RecordError> {
        let upto = self.seen().entered_index;
        let found = self.readers.look(move |journal| journal.record(&name, upto)).await;
        found.map_err(|_| RecordError::Unreadable)
    }

    /// A page of the record's versions above `after`.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub async fn record_versions(
        &self,
        name: RecordName,
        after: u64,
        limit: usize,
        stale: bool,
    ) -> Result<Seen<Leaf>, RecordError> {
        self.look(stale, true, move |journal, upto| journal.record_versions(&name, after, limit, upto)).await
    }

    /// A page of the records after `name` that begin with `prefix`.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub async fn records(
        &self,
        name: RecordName,
        prefix: String,
        limit: usize,
        stale: bool,
    ) -> Result<Seen<Leaf>, RecordError> {
        self.look(stale, true, move |journal, upto| journal.records(&name, &prefix, limit, upto)).await
    }

    /// Can it be made sure that both vaults are together at a moment during this call? Then each
    /// knows whatever the other has given alone before.
    pub async fn are_together(&self) -> bool {
        let stands = || self.seen().refusal.is_none();
        let asking = async {
            let unheard = RecordError::from(Reason::Away);
            match self.asks_the_owner() {
                true => self.ask_owner::<u64>(&Question::Sure, unheard).await,
                false => self.sure().await,
            }
        };
        // An owner that an operator lets go on alone is as sure of itself.
        stands() && matches!(timeout(TOGETHER_DEADLINE, asking).await, Ok(Ok(_))) && stands()
    }

    /// The answer to the other vault's question.
    pub(in crate::sequence) async fn answer_follower(&self, question: Question) -> Result<Bytes, String> {
        let leads = self.seen().leads;
        let answer = match question {
            Question::Wish(name, wish) if leads => serde_json::to_vec(&self.enter_record(name, wish).await),
            Question::Sure if leads => serde_json::to_vec(&self.sure().await),
            Question::Wish(..) | Question::Sure => {
                serde_json::to_vec(&Err::<(), _>(RecordError::from(Reason::Syncing)))
            }
        };
        answer.map(Bytes::from).map_err(|error| error.to_string())
    }

    /// Is the other vault the owner, and in session with this one?
    fn asks_the_owner(&self) -> bool {
        let seen = self.seen();
        !seen.leads && seen.refusal.is_none()
    }

    async fn ask_owner<T: DeserializeOwned>(
        &self,
        question: &Question,
        unheard: RecordError,
    ) -> Result<T, RecordError> {
        let body = serde_json::to_vec(question).map_err(|_| RecordError::Unreadable)?;
        match self.ask_other(Bytes::from(body)).await {
            Ok(answer) => serde_json::from_slice(&answer).unwrap_or(Err(unheard)),
            Err(Unheard::Unknown | Unheard::Late) => Err(unheard),
            Err(Unheard::Away) => Err(Reason::Away.into()),
        }
    }

    /// At the owner.
    async fn enter_record(&self, name: RecordName, wish: Wish) -> Result<Done, RecordError> {
        let before = self.seen().tail.index;
        let outcome = self.enter_once(name.clone(), wish.clone()).await;
        if self.ready.is_some() && wish.renews() && outcome.is_ok() {
            // An entry there, though it changes nothing that its holder sees.
            return outcome;
        }
        match &outcome {
            Ok(Done { fresh: false, .. }) | Err(RecordError::Refused(_)) => {
                // Nothing was entered: what was found is true only if this vault is the owner.
                let upto = self.sure().await?;
                // Of a ledger that the other vault enters in too, only if nothing was missing here;
                // now nothing is that was there when this was asked.
                if self.ready.is_some() && upto != before {
                    self.enter_once(name, wish).await
                } else {
                    outcome
                }
            }
            _ => outcome,
        }
    }

    async fn enter_once(&self, name: RecordName, wish: Wish) -> Result<Done, RecordError> {
        let (answer, answered) = oneshot::channel();
        self.work.try_send(Work::Record(Waiting { name, wish, answer })).map_err(|_| RecordError::Busy)?;
        match timeout(ANSWER_DEADLINE, answered).await {
            Ok(Ok(outcome)) => outcome,
            // Late, or the thread has ended: the entry may stand all the same.
            Ok(Err(_)) | Err(_) => Err(RecordError::InDoubt),
        }
    }

    /// At the owner: up to which entry may be answered, once it is sure to be the owner.
    async fn sure(&self) -> Result<u64, RecordError> {
        let (answer, answered) = oneshot::channel();
        self.work.try_send(Work::Sure(answer)).map_err(|_| RecordError::Busy)?;
        match timeout(SURE_DEADLINE, answered).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) | Err(_) if self.ready.is_some() => Err(Reason::NoQuorum.into()),
            Ok(Err(_)) | Err(_) => Err(RecordError::Apart("the other vault does not answer".to_owned())),
        }
    }

    /// At the follower: what the owner answers from is durable here too, and seen in a moment; not
    /// what it has gone on with alone.
    async fn here(&self, upto: u64) -> Result<u64, RecordError> {
        let mut seen = self.seen.clone();
        let here = seen.wait_for(|seen| seen.tail.index >= upto || seen.refusal.is_some());
        match timeout(SURE_DEADLINE, here).await {
            Ok(Ok(seen)) if seen.tail.index >= upto => Ok(upto),
            _ => Err(Reason::Syncing.into()),
        }
    }

    async fn look<T: Send + 'static>(
        &self,
        stale: bool,
        walks: bool,
        read: impl FnOnce(&Journal, u64) -> Result<T, JournalError> + Send + 'static,
    ) -> Result<Seen<T>, RecordError> {
        let upto = if self.asks_the_owner() {
            let unheard = RecordError::Apart("the other vault does not answer".to_owned());
            match self.ask_owner(&Question::Sure, unheard).await {
                Ok(upto) => self.here(upto).await,
                error => error,
            }
        } else {
            self.sure().await
        };
        let (upto, is_stale) = match upto {
            Ok(upto) => (upto, false),
            Err(_) if stale => (self.seen().entered_index, true),
            Err(error) => return Err(error),
        };
        let read = move |journal: &Journal| read(journal, upto);
        let found = if walks { self.readers.walk(read).await } else { self.readers.look(read).await };
        let found = found.map_err(|error| match error {
            SequenceError::TooLong => RecordError::Busy,
            _ => RecordError::Unreadable,
        });
        Ok(Seen { found: found?, stale: is_stale })
    }
}

#[cfg(test)]
mod tests;
