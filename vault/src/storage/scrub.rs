//! The scrub: reads every replica again within a period, slowly, and finds what rotted. Drives
//! what `round` decides; the two vaults share the objects while both are there. Damage is set
//! aside, owed, and copied by the repair turns; of two records one that has rotted is written anew
//! from the other on the spot.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::mending::{Checkup, Slots};
use super::object::{Entry, ReplicaState};
use super::round::{Round, is_mine, rest};
use super::sessions::Progress;
use super::{Inner, Storage, StorageError, now};

/// The round's name in the catalog.
pub(super) const SCRUB: &str = "scrub";
/// Objects of one turn: after them the position is kept.
const OBJECTS: usize = 64;
/// A long rest is taken in pieces, each of them a sign of life.
const NAP: Duration = Duration::from_millis(20);

/// How slowly to read.
#[derive(Clone)]
pub(super) struct Pace {
    rate: u64,
    uploads: Arc<Semaphore>,
    max_uploads: usize,
}

impl Pace {
    /// Rests after reading `count` bytes, on the reading thread.
    pub(super) fn rest_after(&self, count: usize, progress: &Progress) {
        let yielding = self.uploads.available_permits() < self.max_uploads;
        let mut left = rest(count, self.rate, yielding);
        while !left.is_zero() {
            let nap = left.min(NAP);
            std::thread::sleep(nap);
            progress.note();
            left -= nap;
        }
    }
}

impl Storage {
    /// Begins a new round at once, whatever the period says.
    ///
    /// # Errors
    /// The catalog's.
    pub async fn scrub(&self) -> Result<(), StorageError> {
        let Round { finished, .. } = self.0.catalog.round(SCRUB).await?;
        let anew = Round { finished, ..Round::default() }.at_work(now());
        Ok(self.0.catalog.keep_round(SCRUB, anew).await?)
    }

    /// How far the scrub is.
    ///
    /// # Errors
    /// The catalog's.
    pub async fn scrub_round(&self) -> Result<Round, StorageError> {
        Ok(self.0.catalog.round(SCRUB).await?)
    }

    /// Looks at the next objects of the round, if one is due. True if there is more at once.
    ///
    /// # Errors
    /// The catalog's; what ails a file server is left to the next turn.
    pub async fn scrub_turn(&self) -> Result<bool, StorageError> {
        let inner = &self.0;
        let was = inner.catalog.round(SCRUB).await?;
        let every = inner.settings.scrub_every;
        let is_away = |name: &str| inner.is_away(name);
        // Off, unless an operator began a round.
        let due = was.is_due(every, now()) && (was.running || !every.is_zero());
        let mut round = if due {
            was.clone().at_work(now())
        } else if was.may_look_again(now(), is_away) {
            was.clone().looking_again()
        } else {
            return Ok(false);
        };
        // Deleted ones too: whoever takes one back wants it whole.
        let objects = inner.catalog.held(round.position, OBJECTS).await?;
        let last = objects.len() < OBJECTS;
        for entry in &objects {
            self.scrub_object(entry, &mut round).await?;
            round.position = Some(entry.id);
        }
        if last {
            round = round.passed(now(), is_away);
            if round.skipped > 0 {
                tracing::warn!(
                    skipped = round.skipped,
                    "the scrub could not look at everything; goes on by itself when it can: {}",
                    round.left_out.join(", ")
                );
            }
            tracing::info!(
                checked = round.checked,
                damaged = round.damaged,
                mended = round.mended,
                "a scrub has come to the last object"
            );
            if !every.is_zero() && now() - round.begun > i64::try_from(every.as_secs()).unwrap_or(i64::MAX) {
                tracing::warn!(
                    "storage: the scrub took longer than storage.scrub_every; raise storage.scrub_rate"
                );
            }
        }
        // Unless an operator began a new round meanwhile: then this one's state is of no use.
        let kept = inner.catalog.keep_round_if(SCRUB, was, round).await?;
        Ok(!last || !kept)
    }

    /// A file server that is away is left out at first, not waited for: the other's replicas matter the more.
    async fn scrub_object(&self, entry: &Entry, round: &mut Round) -> Result<(), StorageError> {
        let inner = &self.0;
        let shared = inner.peer_is_up();
        if shared && !is_mine(&entry.id, inner.own < inner.settings.peer) {
            return Ok(());
        }
        let stored = entry.stored_on();
        for server in &inner.servers {
            let known = stored.iter().any(|name| name == server.name());
            if !known || !round.looks_at(server.name()) {
                continue;
            }
            if server.health().suspended.is_some() {
                round.skip(server.name());
                continue;
            }
            match inner.check(entry.id, server, Some(inner.pace())).await {
                Ok(Checkup { state, slots }) => {
                    round.checked += 1;
                    inner.metrics.scrubbed.inc();
                    let rotten = matches!(slots, Slots::Rotten(_));
                    round.damaged += u64::from(rotten || state != ReplicaState::Stored);
                    round.mended += u64::from(slots == Slots::Mended);
                }
                Err(StorageError::Unreadable { why, .. }) => {
                    tracing::warn!("{why}; not scrubbed this time");
                    round.skip(server.name());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Inner {
    fn pace(&self) -> Pace {
        Pace {
            rate: self.settings.scrub_rate.0,
            uploads: Arc::clone(&self.uploads),
            max_uploads: self.settings.max_uploads,
        }
    }

    fn is_away(&self, name: &str) -> bool {
        self.servers.iter().any(|server| server.name() == name && server.health().suspended.is_some())
    }
}
