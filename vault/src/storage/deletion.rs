//! Deleting a file and taking that back: a tombstone at once, the purge after a grace. Knows
//! when bytes and one-off identities may go; not how two catalogs agree on it.
//!
//! A purge cannot be taken back, and an undeletion at the other vault may still be under way. So
//! nothing is purged before its grace and a margin are over by this vault's own clock, counted
//! from when it learnt of the deletion, and without the time that it did not see pass; then it goes if the other vault is there and knows the
//! deletion, and after twice the grace in any case, for a peer may be gone for good.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::catalog::deletion::{Due, Undeletion};
use super::object::ObjectId;
use super::witness::Witness;
use super::{Inner, PeerKnows, Storage, StorageError, moment, now};

/// Purged in a turn.
const PURGES: usize = 1000;
/// Between the last undeletion and the first purge, for clocks that differ and news under way.
const LONGEST_MARGIN: Duration = Duration::from_secs(3600);
/// Turns in a row that must have found the peer there: news that waited has arrived since.
const PEER_TURNS: u32 = 3;

/// Where the peer does not hear of it in time.
const DELETED_HERE: &str = "the file is deleted here, and there as soon as it hears of it";
const BACK_HERE: &str =
    "the file is back here, and there as soon as it hears of it; till then it may purge it";

/// When what may be purged.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    /// Undeletion until then, seconds.
    within: i64,
    /// Purged if the peer knows, seconds.
    known: i64,
    /// Purged in any case, seconds.
    anyway: i64,
}

impl Terms {
    fn new(within: Duration) -> Self {
        let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        let known = within.saturating_add((within / 16).min(LONGEST_MARGIN));
        Self { within: seconds(within), known: seconds(known), anyway: seconds(within.saturating_add(known)) }
    }

    /// Seconds that a deletion of this age has at least until its purge.
    pub(super) const fn left(self, age: i64) -> i64 {
        // Behind the first of them it waits for the peer.
        let until = if age <= self.known { self.known } else { self.anyway };
        if age < until { until - age } else { 0 }
    }

    /// May it be purged at this age? `peer` is the change up to which the peer, being there, has
    /// merged.
    fn allow(&self, due: Due, peer: Option<u64>, age: i64) -> bool {
        age > self.anyway || (age > self.known && peer.is_some_and(|upto| upto >= due.seq))
    }
}

/// A file taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undeleted {
    /// Has the other vault heard of it? Until it has, it may still purge the file.
    pub peer_knows: bool,
}

impl Storage {
    /// Who tells how far the peer has merged this catalog's changes; `None` while it is away.
    pub fn set_peer_knowledge(&self, knows: PeerKnows) {
        *self.0.peer_knows.write().unwrap_or_else(PoisonError::into_inner) = Some(knows);
    }

    /// Deletes an object: it cannot be read from now on, and is purged after the grace. The peer is
    /// told first, if it is there: this disk may die. Deleting again changes nothing.
    ///
    /// # Errors
    /// The catalog's.
    pub async fn delete(&self, id: &ObjectId) -> Result<(), StorageError> {
        if let Some(change) = self.0.catalog.delete(*id, now()).await? {
            self.0.tell_peer(change, DELETED_HERE).await;
        }
        Ok(())
    }

    /// Takes a deletion back, unless more than its grace has been seen to pass. What is not deleted
    /// stays as it is.
    ///
    /// # Errors
    /// The catalog's, [`StorageError::TooLate`], [`StorageError::Purged`], [`StorageError::Unknown`].
    pub async fn undelete(&self, id: &ObjectId) -> Result<Undeleted, StorageError> {
        let (terms, now) = (self.0.terms(), now());
        let witness = self.0.witnessed_grace(now).await?;
        let change = match self.0.catalog.undelete(*id, witness, now, terms.within).await? {
            Undeletion::Done(change) => change,
            Undeletion::NotDeleted => return Ok(Undeleted { peer_knows: true }),
            Undeletion::TooLate => return Err(StorageError::TooLate { id: *id }),
            Undeletion::Purged => return Err(StorageError::Purged { id: *id }),
            Undeletion::Unknown => return Err(StorageError::Unknown { id: *id }),
        };
        self.0.tell_peer(change, BACK_HERE).await;
        Ok(Undeleted { peer_knows: self.0.peer_knows().is_some_and(|upto| upto >= change) })
    }
}

impl Inner {
    /// When what may be purged here.
    pub(super) fn terms(&self) -> Terms {
        Terms::new(self.settings.undelete_within)
    }

    fn peer_knows(&self) -> Option<u64> {
        let knows = self.peer_knows.read().unwrap_or_else(PoisonError::into_inner).clone();
        knows.and_then(|knows| knows())
    }

    /// What of the time until `now` was seen, as far as it matters to ages up to `age` seconds.
    async fn witnessed(&self, age: i64, now: i64) -> Result<Witness, StorageError> {
        let mut witness = self.catalog.witness().await?;
        let last = || self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = last().map(|last| moment().saturating_duration_since(last)).unwrap_or_default();
        let gaps = witness.gaps.clone();
        if witness.watch(now, seen) {
            witness.forget(age, now);
            if let Some(gap) = witness.gaps.last().filter(|gap| !gaps.contains(gap) && gap.ended == now) {
                let hours = gap.ended.saturating_sub(gap.began) / 3600;
                tracing::warn!(hours, "the clock went on unseen; what is deleted is kept so much longer");
            }
            self.catalog.keep_witness(witness.clone()).await?;
            *last() = Some(moment());
        }
        Ok(witness)
    }

    /// What of the time until `now` was seen, as far as it matters to what is deleted.
    pub(super) async fn witnessed_grace(&self, now: i64) -> Result<Witness, StorageError> {
        self.witnessed(self.terms().anyway, now).await
    }

    /// Purges what is due; the removal of the bytes is owed from then on.
    pub(super) async fn purge_due(&self) -> Result<usize, StorageError> {
        let peer = self.peer_knows();
        let seen = match peer {
            Some(_) => self.peer_turns.fetch_add(1, Ordering::Relaxed).saturating_add(1),
            None => {
                self.peer_turns.store(0, Ordering::Relaxed);
                0
            }
        };
        let peer = peer.filter(|_| seen >= PEER_TURNS);
        let (terms, now) = (self.terms(), now());
        let witness = self.witnessed_grace(now).await?;
        let mut due = self.catalog.due(now.saturating_sub(terms.known), PURGES).await?;
        due.retain(|due| terms.allow(*due, peer, witness.age(due.since, now)));
        if due.is_empty() {
            return Ok(0);
        }
        let purged = self.catalog.purge(due.iter().map(|due| due.id).collect(), now).await?;
        tracing::info!(purged, "deleted objects are purged; their replicas are removed next");
        Ok(purged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_purged_before_the_peer_knows_or_twice_the_grace_is_over() {
        let day = 86_400;
        let terms = Terms::new(Duration::from_secs(7 * 86_400));
        let due = Due { id: ObjectId::new([1; 32]), since: 1000, seq: 5 };
        let allows = |days: i64, peer| terms.allow(due, peer, days * day + 3601);
        assert!(!allows(6, Some(9)), "not within the grace, whoever knows");
        assert!(allows(7, Some(5)));
        assert!(!allows(7, Some(4)), "the peer does not know of the deletion");
        assert!(!allows(13, None), "the peer is away");
        assert!(allows(14, None), "a peer may be gone for good");
        assert!(!terms.allow(due, Some(9), -1000), "a clock set back purges nothing");
        assert!(!terms.allow(due, Some(9), terms.within + 1), "an undeletion may be under way");
    }
}
