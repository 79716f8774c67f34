//! Repair's turns: probe what is away, settle old intents, pay what is owed (see `paying`), each by
//! itself, so that a slow copy keeps nothing else waiting. Bounded, so that it never starves uploads.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;

use super::object::ObjectId;
use super::repair::{Condition, spared};
use super::sessions::{Kind, Sessions};
use super::{Inner, Storage, StorageError, clock, moment};

/// Intents settled in a turn.
const INTENTS: usize = 64;
/// Every so many turns the peer is asked what became of its intents.
const ASK_EVERY: u32 = 16;
/// A temporary file of the peer's that nobody has touched for this long is nobody's.
const STALE: Duration = Duration::from_secs(24 * 3600);
/// They are looked for so often, and whenever a file server is attached.
const COLLECT_EVERY: Duration = Duration::from_secs(if cfg!(test) { 0 } else { 3600 });

/// What a turn came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Turn {
    /// Replicas copied.
    pub copied: usize,
    /// Deleted objects purged.
    pub purged: usize,
    /// Replicas of purged objects removed.
    pub removed: usize,
    /// Old intents that turned out stored, or came to nothing.
    pub settled: usize,
    /// Actions that failed and stay owed.
    pub failed: usize,
    /// Did all that a turn may do, so that there is probably more?
    pub more: bool,
}

impl Storage {
    /// A probing, a tending and a paying, one after the other.
    ///
    /// # Errors
    /// The catalog's; single failures are logged and counted.
    pub async fn repair_turn(&self) -> Result<Turn, StorageError> {
        self.probe_turn().await;
        let tended = self.tend_turn().await?;
        let paid = self.pay_turn().await?;
        Ok(Turn { settled: tended.settled, purged: tended.purged, ..paid })
    }

    /// Asks every file server whether it answers and has space. Call it every
    /// [`Storage::retry_every`], one at a time, whatever else goes on.
    pub async fn probe_turn(&self) {
        join_all(self.0.servers.iter().map(|server| self.0.probe(server))).await;
    }

    /// What moves little: keys that changed, walks that go on, purges, leftovers, old intents. Call it every
    /// [`Storage::retry_every`], one at a time.
    ///
    /// # Errors
    /// The catalog's.
    pub async fn tend_turn(&self) -> Result<Turn, StorageError> {
        let inner = &self.0;
        let number = inner.tended.fetch_add(1, Ordering::Relaxed);
        inner.reload_keys().await?;
        if number.is_multiple_of(ASK_EVERY) && inner.peer_is_up() {
            inner.ask_for_intents().await?;
        }
        inner.go_on_with_asked().await?;
        inner.collect_if_due();
        let purged = inner.purge_due().await?;
        Ok(Turn { settled: inner.settle_intents().await?, purged, ..Turn::default() })
    }
}

impl Inner {
    async fn probe(&self, server: &Arc<Sessions>) {
        if server.health().suspended.is_some() {
            self.attach(server).await;
        }
        self.measure(server).await;
    }

    /// Asks a file server for its space.
    pub(super) async fn measure(&self, server: &Sessions) {
        if let Ok(free) = server.run("space", |server, _| server.free_space()).await {
            server.note_space(free, self.settings.keep_free.0);
        }
    }

    /// The file servers' condition for writing; those that are to be spared count as full unless
    /// fewer than `needed` would be left.
    pub(super) fn conditions(&self, needed: usize) -> Vec<Condition> {
        let mut servers: Vec<_> = self
            .servers
            .iter()
            .map(|server| {
                let health = server.health();
                let (up, full, low) = (health.suspended.is_none(), health.full, health.low);
                Condition { server: server.name().to_owned(), up, full, low }
            })
            .collect();
        for (at, spared) in spared(&servers, needed).into_iter().enumerate() {
            servers[at].full |= spared;
        }
        servers
    }

    /// The other vault may have died in mid-write and stay away, while this one never attaches anew.
    fn collect_if_due(&self) {
        let due = {
            let mut last = self.collected.lock().unwrap_or_else(PoisonError::into_inner);
            let due = last.is_some_and(|last| moment().saturating_duration_since(last) >= COLLECT_EVERY);
            if due || last.is_none() {
                *last = Some(moment());
            }
            due
        };
        if due {
            let up = self.servers.iter().filter(|server| server.health().suspended.is_none());
            up.for_each(collect_temporaries);
        }
    }

    /// Intents of this vault whose upload is no longer running: stored if whole somewhere,
    /// dropped if every file server is sure that it has none.
    async fn settle_intents(&self) -> Result<usize, StorageError> {
        let mut settled = 0;
        for entry in self.catalog.pending(self.own.clone(), INTENTS).await? {
            if self.live().contains(&entry.id) {
                continue;
            }
            let id = entry.id;
            let looked = self.look(id, Some(&entry)).await;
            if self.adopt(id, Some(entry), &looked).await?.is_some() {
                settled += 1;
            } else if looked.unsure.is_none() {
                self.catalog.dropped(id).await?;
                settled += 1;
            }
        }
        Ok(settled)
    }

    /// Intents of the peer's that stay intents: it may have forgotten them, as attempts that came
    /// to nothing, before this vault heard of their end. Told again, they come back to it as
    /// intents and are settled there. Those of uploads under way change nothing there.
    async fn ask_for_intents(&self) -> Result<(), StorageError> {
        let pending = self.catalog.pending(self.settings.peer.clone(), INTENTS).await?;
        let pending: HashSet<_> = pending.into_iter().map(|entry| entry.id).collect();
        let before = std::mem::take(&mut *self.foreign());
        let lasting: Vec<_> = pending.intersection(&before).copied().collect();
        *self.foreign() = pending;
        if !lasting.is_empty() {
            self.catalog.tell_again(lasting).await?;
        }
        Ok(())
    }

    fn foreign(&self) -> std::sync::MutexGuard<'_, HashSet<ObjectId>> {
        self.foreign.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Begins to remove what was left half-written on a file server and what nobody writes any more,
/// unless that goes on already. Nobody waits for it: however long it takes, or waits for a place,
/// probing and tending go on.
pub(super) fn collect_temporaries(server: &Arc<Sessions>) {
    let Some(begun) = server.begin_collecting() else { return };
    let server = Arc::clone(server);
    tokio::spawn(async move {
        let _begun = begun;
        let collected =
            server.run_as(Kind::Listing, "tmp", |server, _| server.collect_temporaries(clock(), STALE));
        match collected.await {
            Ok(0) => {}
            Ok(count) => tracing::info!(server = server.name(), count, "stale temporary files removed"),
            Err(error) => tracing::warn!("{error}"),
        }
    });
}
