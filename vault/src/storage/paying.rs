//! Paying what is owed, as `repair` decides: copies and removals, a few at once. A large copy over
//! a slow line may take a day, so what comes to be owed meanwhile is paid beside it. Bounded, so
//! that it never starves uploads.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::io::Read;
use std::sync::atomic::Ordering;

use futures_util::future::{BoxFuture, FutureExt, join_all};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, timeout_at};

use super::envelope::{Checker, EnvelopeError, longest};
use super::file_server::FileServerError;
use super::lookup::beneath;
use super::object::{ObjectId, ReplicaState};
use super::repair::{Action, Budget, plan};
use super::sessions::{Kind, Sessions};
use super::spool::{SpoolError, SpoolFile};
use super::{Inner, Storage, StorageError, Turn, now};

/// Copies under way at once.
const AT_ONCE: usize = 4;
/// Debts considered at once.
const DEBTS: usize = 1000;
const BUDGET: Budget = Budget { actions: 200, bytes: 1 << 30 };

/// What some work came to, by object.
struct Paid {
    /// Where; none for a search.
    server: Option<String>,
    /// Were replicas removed there, and not copied?
    emptied: bool,
    outcomes: Vec<(ObjectId, Result<(), StorageError>)>,
}

/// A turn's state.
#[derive(Default)]
struct Paying<'a> {
    turn: Turn,
    work: FuturesUnordered<BoxFuture<'a, Result<Paid, StorageError>>>,
    /// Copies not yet begun.
    waiting: VecDeque<Action>,
    copying: HashSet<ObjectId>,
    /// File servers on which removals are under way.
    emptying: HashSet<String>,
    failed: Vec<ObjectId>,
}

impl Storage {
    /// Pays what is owed, as far as the file servers answer; large objects take their time, and what
    /// comes to be owed meanwhile is paid beside them. Call it every [`Storage::retry_every`], one at
    /// a time.
    ///
    /// # Errors
    /// The catalog's; single failures are logged and counted.
    pub async fn pay_turn(&self) -> Result<Turn, StorageError> {
        let inner = &self.0;
        let mut paying = Paying::default();
        loop {
            inner.plan_on(&mut paying).await?;
            let until = Instant::now() + inner.settings.retry_every;
            let over = loop {
                paying.begin_copies(inner);
                match timeout_at(until, paying.work.next()).await {
                    Ok(Some(paid)) => paying.settle(inner, paid?),
                    Ok(None) => break true,
                    Err(_) => break false,
                }
            };
            let failed = std::mem::take(&mut paying.failed);
            paying.turn.failed += failed.len();
            if !failed.is_empty() {
                inner.catalog.tried(failed).await?;
            }
            if over {
                paying.turn.more &= paying.turn.failed == 0;
                return Ok(paying.turn);
            }
        }
    }
}

impl<'a> Paying<'a> {
    fn begin_copies(&mut self, inner: &'a Inner) {
        while self.copying.len() < AT_ONCE
            && let Some(action) = self.waiting.pop_front()
        {
            self.copying.insert(action.object());
            let copy = async move {
                let outcome = inner.act(&action).await;
                let outcomes = vec![(action.object(), outcome)];
                let server = match action {
                    Action::Copy { to, .. } => Some(to),
                    Action::Remove { .. } | Action::Search { .. } => None,
                };
                Ok(Paid { server, emptied: false, outcomes })
            };
            self.work.push(copy.boxed());
        }
    }

    fn begin_removals(&mut self, inner: &'a Inner, name: String, ids: Vec<ObjectId>) {
        let Some(server) = inner.servers.iter().find(|server| server.name() == name) else { return };
        self.emptying.insert(name.clone());
        let removals = async move {
            Ok(Paid { server: Some(name), emptied: true, outcomes: inner.remove_all(server, ids).await? })
        };
        self.work.push(removals.boxed());
    }

    fn settle(&mut self, inner: &Inner, paid: Paid) {
        let Paid { server, emptied, outcomes } = paid;
        let done = if emptied { &mut self.turn.removed } else { &mut self.turn.copied };
        if let Some(server) = server.as_ref().filter(|_| emptied) {
            self.emptying.remove(server);
        }
        for (id, outcome) in outcomes {
            if !emptied {
                self.copying.remove(&id);
            }
            let about = (id, server.clone());
            match outcome {
                Ok(()) => {
                    *done += 1;
                    inner.reasons.settle(&about);
                }
                Err(error) => {
                    tracing::warn!("{error}; stays owed");
                    inner.reasons.note(about, error.to_string());
                    self.failed.push(id);
                }
            }
        }
    }
}

impl Inner {
    /// Decides anew about all that is not under way, and begins the removals: they are short, and
    /// nobody waits for them behind a large copy.
    async fn plan_on<'a>(&'a self, paying: &mut Paying<'a>) -> Result<(), StorageError> {
        let number = self.turns.fetch_add(1, Ordering::Relaxed);
        // Whoever was told to make room may just have done so.
        let short = self.servers.iter().filter(|server| {
            let health = server.health();
            health.suspended.is_none() && (health.full || health.low)
        });
        join_all(short.map(|server| self.measure(server))).await;
        let servers = self.conditions(1);
        let mut debts = self.catalog.debts(servers.clone(), number, DEBTS).await?;
        // What is still being written is not copied beside it.
        let live = self.live().clone();
        debts.retain(|debt| !live.contains(&debt.id) && !paying.copying.contains(&debt.id));
        let actions = plan(&debts, &servers, now(), BUDGET);
        paying.turn.more = actions.len() == BUDGET.actions;
        paying.waiting.clear();
        let mut removals: BTreeMap<String, Vec<ObjectId>> = BTreeMap::new();
        for action in actions {
            match action {
                Action::Remove { server, .. } if paying.emptying.contains(&server) => {}
                Action::Remove { id, server } => removals.entry(server).or_default().push(id),
                copy => paying.waiting.push_back(copy),
            }
        }
        for (name, ids) in removals {
            paying.begin_removals(self, name, ids);
        }
        Ok(())
    }

    async fn act(&self, action: &Action) -> Result<(), StorageError> {
        match action {
            // Gathered by file server: see `pay_turn`.
            Action::Remove { .. } => Ok(()),
            Action::Copy { id, from, to } => {
                self.copy(*id, self.server(*id, from)?, self.server(*id, to)?, Kind::Copy).await
            }
            Action::Search { id } => self.search(*id).await,
        }
    }

    pub(super) fn server(&self, id: ObjectId, name: &str) -> Result<&Sessions, StorageError> {
        let gone =
            || StorageError::Unreadable { id, why: format!("file server {name} is no longer configured") };
        self.servers.iter().find(|server| server.name() == name).map(AsRef::as_ref).ok_or_else(gone)
    }

    /// Copies a replica as it is, through the spool, so that a hanging source is not held
    /// against the target; in places of this `kind`.
    pub(super) async fn copy(
        &self,
        id: ObjectId,
        from: &Sessions,
        to: &Sessions,
        kind: Kind,
    ) -> Result<(), StorageError> {
        let spool = self.spool.clone();
        let known = self.catalog.entry(id).await?;
        let longest = known.map_or(u64::MAX, |entry| longest(entry.metadata.size));
        let fetched = from.run_as(kind, id, move |server, progress| {
            let unspooled = |error: SpoolError| FileServerError::BadSource {
                server: server.name().to_owned(),
                object: id.to_string(),
                why: error.to_string(),
            };
            let mut passing = spool.create().map_err(unspooled)?;
            let mut replica = progress.watch(server.open_within(&id, longest)?);
            fetch(&mut replica, &mut passing, server.name(), &id).map(|()| passing)
        });
        let passing = match fetched.await {
            Ok(passing) => passing,
            Err(error) => return self.bad_source(id, longest, from, error).await,
        };
        let put = self.put_on(id, to, &passing, kind).await;
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
        longest: u64,
        from: &Sessions,
        error: FileServerError,
    ) -> Result<(), StorageError> {
        let state = match error {
            FileServerError::Damaged { .. } => {
                let aside = from
                    .run(id, move |server, progress| server.quarantine(&id, longest, &|| progress.note()));
                aside.await.is_ok().then_some(ReplicaState::Damaged)
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
        let looked = self.look(id, entry.as_ref()).await;
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
