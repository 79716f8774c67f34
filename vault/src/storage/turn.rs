//! Repair's turns: probe what is away, settle old intents, pay what is owed, each by itself, so
//! that a slow copy keeps nothing else waiting. Drives what `repair` decides; bounded, so that it
//! never starves uploads.

use std::collections::{BTreeMap, HashSet};
use std::io::Read;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{StreamExt, iter};

use super::envelope::{Checker, EnvelopeError};
use super::file_server::FileServerError;
use super::lookup::beneath;
use super::object::{ObjectId, ReplicaState};
use super::repair::{Action, Budget, Condition, plan, spared};
use super::sessions::Sessions;
use super::spool::{SpoolError, SpoolFile};
use super::{Inner, Storage, StorageError, clock, moment, now};

/// Actions under way at once.
const AT_ONCE: usize = 4;

/// Debts considered in a turn.
const DEBTS: usize = 1000;
const BUDGET: Budget = Budget { actions: 200, bytes: 1 << 30 };
/// Intents settled in a turn.
const INTENTS: usize = 64;
/// Every so many turns the peer is asked what became of its intents.
const ASK_EVERY: u32 = 16;
/// A temporary file of the peer's that nobody has touched for this long is nobody's.
const STALE: Duration = Duration::from_secs(24 * 3600);
/// They are looked for so often, and whenever a file server is attached.
const COLLECT_EVERY: Duration = Duration::from_secs(if cfg!(test) { 0 } else { 3600 });
/// A full file server is tried again once it has this much space.
const SPACE: u64 = 64 << 20;

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
        inner.collect_if_due().await;
        let purged = inner.purge_due().await?;
        Ok(Turn { settled: inner.settle_intents().await?, purged, ..Turn::default() })
    }

    /// Pays what is owed, as far as the file servers answer; large objects take their time. Call
    /// it every [`Storage::retry_every`], one at a time.
    ///
    /// # Errors
    /// The catalog's; single failures are logged and counted.
    pub async fn pay_turn(&self) -> Result<Turn, StorageError> {
        let inner = &self.0;
        let number = inner.turns.fetch_add(1, Ordering::Relaxed);
        let mut turn = Turn::default();
        let servers = inner.conditions(1);
        let mut debts = inner.catalog.debts(servers.clone(), number, DEBTS).await?;
        // What is still being written is not copied beside it.
        let live = inner.live().clone();
        debts.retain(|debt| !live.contains(&debt.id));
        let actions = plan(&debts, &servers, now(), BUDGET);
        turn.more = actions.len() == BUDGET.actions;
        let mut failed = Vec::new();
        let mut settle = |id: ObjectId, outcome: Result<(), StorageError>, paid: &mut usize| match outcome {
            Ok(()) => {
                *paid += 1;
                inner.reasons.settle(&id);
            }
            Err(error) => {
                tracing::warn!("{error}; stays owed");
                inner.reasons.note(id, error.to_string());
                failed.push(id);
            }
        };
        let mut copies = Vec::with_capacity(actions.len());
        let mut removals: BTreeMap<String, Vec<ObjectId>> = BTreeMap::new();
        for action in actions {
            match action {
                Action::Remove { id, server } => removals.entry(server).or_default().push(id),
                copy => copies.push(copy),
            }
        }
        // Deletions first: they are short, and nobody waits for them behind a large copy.
        for (name, ids) in removals {
            let Some(server) = inner.servers.iter().find(|server| server.name() == name) else { continue };
            for (id, outcome) in inner.remove_all(server, ids).await? {
                settle(id, outcome, &mut turn.removed);
            }
        }
        let mut done = iter(copies)
            .map(|action| async move { (inner.act(&action).await, action) })
            .buffer_unordered(AT_ONCE);
        while let Some((outcome, action)) = done.next().await {
            settle(action.object(), outcome, &mut turn.copied);
        }
        turn.failed = failed.len();
        turn.more &= failed.is_empty();
        if !failed.is_empty() {
            inner.catalog.tried(failed).await?;
        }
        Ok(turn)
    }
}

impl Inner {
    async fn probe(&self, server: &Sessions) {
        let health = server.health();
        if health.suspended.is_some() {
            self.attach(server).await;
        }
        let Ok(free) = server.run("space", |server, _| server.free_space()).await else { return };
        let keep = self.settings.keep_free.0;
        // A little more before it counts as roomy again, so that it does not change with every file.
        let wanted = if health.low { keep.saturating_add(keep / 10) } else { keep };
        server.set_low(free < wanted);
        if health.full && free >= SPACE.max(keep) {
            server.set_full(false);
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
    async fn collect_if_due(&self) {
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
            join_all(up.map(|server| self.collect_temporaries(server))).await;
        }
    }

    /// Removes what was left half-written on a file server and what nobody writes any more.
    pub(super) async fn collect_temporaries(&self, server: &Sessions) {
        match server.run_long("tmp", |server, _| server.collect_temporaries(clock(), STALE)).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(server = server.name(), count, "stale temporary files removed"),
            Err(error) => tracing::warn!("{error}"),
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
            let looked = self.look(id).await;
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

    async fn act(&self, action: &Action) -> Result<(), StorageError> {
        match action {
            // Gathered by file server: see `pay_turn`.
            Action::Remove { .. } => Ok(()),
            Action::Copy { id, from, to } => {
                self.copy(*id, self.server(*id, from)?, self.server(*id, to)?).await
            }
            Action::Search { id } => self.search(*id).await,
        }
    }

    pub(super) fn server(&self, id: ObjectId, name: &str) -> Result<&Sessions, StorageError> {
        let gone =
            || StorageError::Unreadable { id, why: format!("file server {name} is no longer configured") };
        self.servers.iter().find(|server| server.name() == name).ok_or_else(gone)
    }

    /// Copies a replica as it is, through the spool, so that a hanging source is not held
    /// against the target.
    pub(super) async fn copy(
        &self,
        id: ObjectId,
        from: &Sessions,
        to: &Sessions,
    ) -> Result<(), StorageError> {
        let spool = self.spool.clone();
        let fetched = from.run_long(id, move |server, progress| {
            let unspooled = |error: SpoolError| FileServerError::BadSource {
                server: server.name().to_owned(),
                object: id.to_string(),
                why: error.to_string(),
            };
            let mut passing = spool.create().map_err(unspooled)?;
            let mut replica = progress.watch(server.open(&id)?);
            fetch(&mut replica, &mut passing, server.name(), &id).map(|()| passing)
        });
        let passing = match fetched.await {
            Ok(passing) => passing,
            Err(error) => return self.bad_source(id, from, error).await,
        };
        let put = self.put_on(id, to, &passing).await;
        let removed = tokio::task::spawn_blocking(move || drop(passing)).await;
        debug_assert!(removed.is_ok(), "dropping does not panic");
        put.map_err(|error| StorageError::Unreadable { id, why: error.to_string() })?;
        self.catalog.observed(id, to.name().to_owned(), ReplicaState::Stored, now()).await?;
        self.metrics.healed.inc();
        tracing::info!(object = %id, from = from.name(), to = to.name(), "replica copied");
        Ok(())
    }

    /// What was to be copied is itself gone or damaged: then it is owed too.
    async fn bad_source(
        &self,
        id: ObjectId,
        from: &Sessions,
        error: FileServerError,
    ) -> Result<(), StorageError> {
        let state = match error {
            FileServerError::Damaged { .. } => {
                let aside =
                    from.run(id, move |server, progress| server.quarantine(&id, &|| progress.note())).await;
                aside.is_ok().then_some(ReplicaState::Damaged)
            }
            ref error => error.shows(),
        };
        if let Some(state) = state {
            self.metrics.damaged.with_label_values(&[from.name()]).inc();
            self.catalog.observed(id, from.name().to_owned(), state, now()).await?;
        }
        Err(StorageError::Unreadable { id, why: error.to_string() })
    }

    /// The catalog knows no replica of a stored object: look everywhere.
    async fn search(&self, id: ObjectId) -> Result<(), StorageError> {
        let entry = self.catalog.entry(id).await?;
        let looked = self.look(id).await;
        if self.adopt(id, entry, &looked).await?.is_some() {
            return Ok(());
        }
        let why = looked.unsure.unwrap_or_else(|| super::debts::LOST.to_owned());
        tracing::error!(object = %id, "no replica: {why}");
        Err(StorageError::Unreadable { id, why })
    }
}

fn fetch(
    replica: &mut impl Read,
    passing: &mut SpoolFile,
    server: &str,
    id: &ObjectId,
) -> Result<(), FileServerError> {
    let mut checker = Checker::default();
    let mut piece = vec![0; 256 * 1024];
    loop {
        let count = replica.read(&mut piece).map_err(|error| beneath(error, server, id))?;
        if count == 0 {
            break;
        }
        checker.update(&piece[..count]);
        passing.append(&piece[..count]).map_err(|error| FileServerError::BadSource {
            server: server.to_owned(),
            object: id.to_string(),
            why: format!("the spool cannot be written: {error}"),
        })?;
    }
    checker.finish(id).map_err(|damage: EnvelopeError| FileServerError::Damaged {
        server: server.to_owned(),
        object: id.to_string(),
        why: damage.to_string(),
    })
}
