//! Which object lies where, and what is owed: on SQLite, one writer with group commit.
//! Knows no way to reach a file server. Two catalogs merge without conflict: objects by
//! union, later states win, replicas known to be stored add up.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::listing::Wanted;
use super::object::{Entry, ObjectId, ReplicaState, State};
use super::repair::{Condition, Debt};
use super::step::Steps;
use crate::marks::{self, Mark};
use crate::sqlite::{self, SqliteError};

mod change;
pub(super) mod deletion;
pub(super) mod rows;
pub(super) mod seals;
mod survey;
mod tasks;
pub(super) mod tombstones;
mod witness;
mod writer;

pub use change::Change;
use change::{changes_since, last_change, merge_one};
use writer::Job;

/// Writes that wait for the next commit; more wait in line without a place.
const QUEUE: usize = 256;
/// Connections that read at once.
const READERS: usize = 4;
/// A commit that takes longer means a sick disk.
const PATIENCE: Duration = Duration::from_secs(30);

const MIGRATIONS: &[&str] = &[
    include_str!("catalog/schema.sql"),
    marks::MIGRATION,
    include_str!("catalog/survey.sql"),
    include_str!("catalog/upkeep.sql"),
    include_str!("catalog/lasting.sql"),
    include_str!("catalog/scrub.sql"),
    include_str!("catalog/witness.sql"),
];

/// Why the catalog cannot answer.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The file cannot be opened.
    #[error("catalog: {0}")]
    Open(#[from] SqliteError),
    /// SQLite failed; nothing was changed.
    #[error("catalog: {0}; nothing was changed; check the disk")]
    Sqlite(#[from] rusqlite::Error),
    /// The whole batch failed to commit; nothing was changed.
    #[error("catalog: commit failed: {0}; nothing was changed; check the disk")]
    Commit(String),
    /// The writer's or the readers' queue did not move in time; what became of it is unknown.
    #[error("catalog: no answer within {} s; check the disk", PATIENCE.as_secs())]
    Slow,
    /// The writer ended: the program is stopping.
    #[error("catalog: closed")]
    Closed,
}

/// An object found on the file servers.
#[derive(Debug)]
pub(super) struct FoundObject {
    /// What it is.
    pub(super) entry: Entry,
    /// Where it lies.
    pub(super) on: Vec<String>,
    /// To which keys the record there is sealed, where that was looked at.
    pub(super) sealed: Option<(String, String)>,
}

/// What recording an intent came to.
#[derive(Debug)]
pub(super) enum Intended {
    /// It is recorded, as this change.
    Recorded(u64),
    /// The key is taken by this object; nothing was recorded.
    Taken(Box<Entry>),
}

/// The catalog. Cheap to clone.
#[derive(Clone)]
pub(super) struct Catalog {
    jobs: mpsc::Sender<Job>,
    readers: Arc<Readers>,
    last: watch::Receiver<u64>,
    servers: Arc<[String]>,
    life: Arc<str>,
}

struct Readers {
    idle: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
}

impl Catalog {
    /// Opens or creates the catalog in `file`. `servers` are the file servers' names.
    ///
    /// # Errors
    /// SQLite's.
    pub(super) fn open(file: &Path, servers: &[String], steps: Steps) -> Result<Self, CatalogError> {
        let connection = sqlite::open(file, MIGRATIONS)?;
        let mut idle = Vec::with_capacity(READERS);
        for _ in 0..READERS {
            idle.push(sqlite::open_to_read(file)?);
        }
        let (jobs, queue) = mpsc::channel(QUEUE);
        let latest = last_change(&connection)?;
        let life = marks::begin(&connection, latest, "changes")?.into();
        let (news, last) = watch::channel(latest);
        writer::start(connection, queue, news, steps).map_err(|_| CatalogError::Closed)?;
        let readers =
            Arc::new(Readers { idle: Mutex::new(idle), permits: Arc::new(Semaphore::new(READERS)) });
        Ok(Self { jobs, readers, last, servers: servers.into(), life })
    }

    /// Records that `entry` (pending) is about to be written, unless a live or deleted object
    /// already answers its key.
    ///
    /// # Errors
    /// As every write.
    pub(super) async fn intend(&self, entry: Entry) -> Result<Intended, CatalogError> {
        self.write(move |db| {
            intend(db, &entry, rows::by_key(db, &entry.metadata.owner, &entry.metadata.key)?)
        })
        .await
    }

    /// The same where nothing is known of the key's earlier attempts. If some of them may have come
    /// to something, nothing is recorded and all that is known of the key is given back.
    ///
    /// # Errors
    /// As every write.
    pub(super) async fn intend_first(
        &self,
        entry: Entry,
    ) -> Result<Result<Intended, Vec<Entry>>, CatalogError> {
        self.write(move |db| {
            let holders = rows::by_key(db, &entry.metadata.owner, &entry.metadata.key)?;
            if holders.iter().any(|held| held.state == State::Pending) {
                return Ok(Err(holders));
            }
            intend(db, &entry, holders).map(Ok)
        })
        .await
    }

    /// Records an object as stored `on` these servers (adding it if need be) and owed to the
    /// others, and returns it. A deleted one stays deleted, a purged one is owed removal.
    ///
    /// # Errors
    /// As every write.
    pub(super) async fn stored(
        &self,
        entry: Entry,
        on: Vec<String>,
        now: i64,
    ) -> Result<Entry, CatalogError> {
        self.stored_sealed(entry, on, String::new(), now).await
    }

    /// The same, where it is known which keys the records are sealed to.
    ///
    /// # Errors
    /// As every write.
    pub(super) async fn stored_sealed(
        &self,
        entry: Entry,
        on: Vec<String>,
        seal: String,
        now: i64,
    ) -> Result<Entry, CatalogError> {
        let servers = Arc::clone(&self.servers);
        self.write(move |db| {
            take_stored(db, &servers, &entry, &on, &seal, now)?;
            rows::entry(db, &entry.id)?.ok_or(rusqlite::Error::QueryReturnedNoRows)
        })
        .await
    }

    /// Records objects found on the file servers as stored there, and with them how far the walk
    /// that found them is; `None`: it has come to its end. Returns how many of them are deleted
    /// all the same.
    ///
    /// # Errors
    /// As every write.
    pub(super) async fn take_in(
        &self,
        found: Vec<FoundObject>,
        walk: &'static str,
        after: Option<ObjectId>,
        now: i64,
    ) -> Result<u64, CatalogError> {
        let servers = Arc::clone(&self.servers);
        self.write(move |db| {
            let mut deleted = 0;
            for FoundObject { entry, on, sealed } in &found {
                take_stored(db, &servers, entry, on, "", now)?;
                if let Some((server, seal)) = sealed {
                    seals::note(db, &entry.id, server, seal)?;
                }
                let taken = rows::entry(db, &entry.id)?;
                deleted += u64::from(taken.is_some_and(|entry| entry.state == State::Deleted));
            }
            rows::keep_walk(db, walk, after.as_ref())?;
            if !found.is_empty() {
                rows::use_it(db)?;
            }
            Ok(deleted)
        })
        .await
    }

    /// How far a walk is, and whether this catalog is in use: an upload was begun with it, or a walk
    /// took something in. What it knows else was found by the way or told by the peer.
    ///
    /// # Errors
    /// As every read.
    pub(super) async fn walk(&self, walk: &'static str) -> Result<(Option<ObjectId>, bool), CatalogError> {
        self.read(move |db| Ok((rows::walk(db, walk)?, rows::is_used(db)?))).await
    }

    /// An intent came to nothing. Does not undo what was stored meanwhile.
    ///
    /// # Errors
    /// As every write.
    pub(super) async fn dropped(&self, id: ObjectId) -> Result<(), CatalogError> {
        self.write(move |db| {
            if rows::advance(db, &id, State::Dropped)? {
                rows::touch(db, &id)?;
            }
            Ok(())
        })
        .await
    }

    /// Notes what was seen of one replica of an object. One that turns up stored after the object
    /// was purged has to go again.
    ///
    /// # Errors
    /// As every write.
    pub(super) async fn observed(
        &self,
        id: ObjectId,
        server: String,
        state: ReplicaState,
        now: i64,
    ) -> Result<(), CatalogError> {
        self.write(move |db| observe(db, &id, &server, state, now)).await
    }

    /// A replica of a purged object is gone.
    ///
    /// # Errors
    /// As every write.
    pub(super) async fn removed(&self, id: ObjectId, server: String) -> Result<(), CatalogError> {
        self.write(move |db| rows::forget_replica(db, &id, &server)).await
    }

    /// Remembers the id of the place that a file server's name stands for.
    ///
    /// # Errors
    /// As every write.
    pub(super) async fn remember_place(&self, server: String, place: String) -> Result<(), CatalogError> {
        self.write(move |db| rows::remember_place(db, &server, &place)).await
    }

    /// The place a file server's name stands for, and whether objects are known there.
    ///
    /// # Errors
    /// As every read.
    pub(super) async fn place(&self, server: String) -> Result<(Option<String>, bool), CatalogError> {
        self.read(move |db| Ok((rows::place(db, &server)?, rows::knows_objects(db, &server)?))).await
    }

    /// An object, in whatever state.
    ///
    /// # Errors
    /// As every read.
    pub(super) async fn entry(&self, id: ObjectId) -> Result<Option<Entry>, CatalogError> {
        self.read(move |db| rows::entry(db, &id)).await
    }

    /// Every object under a key, in order of id: several only after both vaults took the same
    /// key while apart, or where earlier attempts came to nothing.
    ///
    /// # Errors
    /// As every read.
    pub(super) async fn by_key(&self, owner: String, key: String) -> Result<Vec<Entry>, CatalogError> {
        self.read(move |db| rows::by_key(db, &owner, &key)).await
    }

    /// Those objects that are wanted after `after`, in order of id, and when this vault learnt of
    /// their deletion.
    ///
    /// # Errors
    /// As every read.
    pub(super) async fn list(
        &self,
        wanted: Wanted,
        after: Option<ObjectId>,
        limit: usize,
    ) -> Result<Vec<(Entry, Option<i64>)>, CatalogError> {
        self.read(move |db| rows::list(db, &wanted, after.as_ref(), limit)).await
    }

    /// What is owed and can be paid between these file servers in this turn: what failed least
    /// first, then the oldest.
    ///
    /// # Errors
    /// As every read.
    pub(super) async fn debts(
        &self,
        servers: Vec<Condition>,
        turn: u32,
        limit: usize,
    ) -> Result<Vec<Debt>, CatalogError> {
        self.read(move |db| rows::debts(db, &servers, turn, limit)).await
    }

    /// Paying what is owed of these objects has failed once more.
    ///
    /// # Errors
    /// As every write.
    pub(super) async fn tried(&self, ids: Vec<ObjectId>) -> Result<(), CatalogError> {
        self.write(move |db| ids.iter().try_for_each(|id| rows::tried(db, id))).await
    }

    /// Intents of `origin` that have not come to anything yet.
    ///
    /// # Errors
    /// As every read.
    pub(super) async fn pending(&self, origin: String, limit: usize) -> Result<Vec<Entry>, CatalogError> {
        self.read(move |db| rows::pending(db, &origin, limit)).await
    }

    /// Tells the peer once more of those of these objects that are intents.
    ///
    /// # Errors
    /// As every write.
    pub(super) async fn tell_again(&self, ids: Vec<ObjectId>) -> Result<(), CatalogError> {
        self.write(move |db| {
            for id in &ids {
                if rows::entry(db, id)?.is_some_and(|entry| entry.state == State::Pending) {
                    rows::touch(db, id)?;
                }
            }
            Ok(())
        })
        .await
    }

    /// How much there is of what.
    ///
    /// # Errors
    /// As every read.
    pub(super) async fn counts(&self) -> Result<rows::Counts, CatalogError> {
        self.read(rows::counts).await
    }

    /// What changed after `cursor`, in order, at most `limit`: each object's present state
    /// once, under its latest change's number.
    ///
    /// # Errors
    /// As every read.
    pub(super) async fn changes_since(&self, cursor: u64, limit: usize) -> Result<Vec<Change>, CatalogError> {
        self.read(move |db| changes_since(db, cursor, limit)).await
    }

    /// Takes over what the peer knows, and keeps with it how far that goes. Any order and any
    /// repetition come to the same. `seal` names the keys in use.
    ///
    /// # Errors
    /// As every write.
    pub(super) async fn merge(
        &self,
        changes: Vec<Change>,
        mark: Option<Mark>,
        seal: String,
        now: i64,
    ) -> Result<(), CatalogError> {
        let servers = Arc::clone(&self.servers);
        self.write(move |db| {
            for change in changes.into_iter().map(Change::understood).filter(Change::is_sound) {
                if merge_one(db, &change, &servers, now)? {
                    rows::touch(db, &change.id)?;
                }
                // Nothing to tell on: the peer knows it.
                change.take_over_seals(db, &seal)?;
            }
            mark.iter().try_for_each(|mark| marks::keep(db, mark))
        })
        .await
    }

    /// How far everything that the peer told is taken over.
    ///
    /// # Errors
    /// As every read.
    pub(super) async fn heard(&self) -> Result<Mark, CatalogError> {
        self.read(marks::heard).await
    }

    /// As far as a peer with this mark has this catalog's history.
    ///
    /// # Errors
    /// As every read.
    pub(super) async fn shared(&self, mark: Mark) -> Result<u64, CatalogError> {
        let life = Arc::clone(&self.life);
        self.read(move |db| marks::shared(db, &life, &mark)).await
    }

    /// This start's name, under which its changes are told.
    pub(super) fn life(&self) -> &str {
        &self.life
    }

    /// The number of the last committed change.
    #[must_use]
    pub(super) fn last_change(&self) -> u64 {
        *self.last.borrow()
    }

    /// Signals every new change by its number.
    #[must_use]
    pub(super) fn watch(&self) -> watch::Receiver<u64> {
        self.last.clone()
    }

    /// Runs `job` in the next transaction and returns when it is durable. If `job` fails, what
    /// it did is undone and the others of the batch go on.
    async fn write<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, CatalogError> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |db| {
            let outcome = db.map_or(Err(rusqlite::Error::InvalidQuery), job);
            let failed = outcome.is_err();
            let reply = Box::new(move |committed: Result<(), &str>| {
                let outcome = match committed {
                    Ok(()) => outcome.map_err(CatalogError::Sqlite),
                    Err(why) => Err(CatalogError::Commit(why.to_owned())),
                };
                // Whoever asked may have gone.
                let _ = answer.send(outcome);
            });
            (failed, reply)
        });
        let asked = async {
            self.jobs.send(job).await.map_err(|_| CatalogError::Closed)?;
            answered.await.map_err(|_| CatalogError::Closed)?
        };
        tokio::time::timeout(PATIENCE, asked).await.map_err(|_| CatalogError::Slow)?
    }

    async fn read<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, CatalogError> {
        let readers = Arc::clone(&self.readers);
        let permit = tokio::time::timeout(PATIENCE, Arc::clone(&self.readers.permits).acquire_owned());
        let permit = permit.await.map_err(|_| CatalogError::Slow)?.map_err(|_| CatalogError::Closed)?;
        let read = tokio::task::spawn_blocking(move || {
            // Given back with the connection, also when whoever asked has gone.
            let _permit = permit;
            let lock = || readers.idle.lock().unwrap_or_else(PoisonError::into_inner);
            let connection = lock().pop().ok_or(CatalogError::Slow)?;
            let outcome = job(&connection);
            lock().push(connection);
            outcome.map_err(CatalogError::Sqlite)
        });
        read.await.map_err(|_| CatalogError::Closed)?
    }
}

/// The object that a key answers: the smallest stored id, else a deleted one.
pub(super) fn answering(holders: Vec<Entry>) -> Option<Entry> {
    let settled = holders.into_iter().filter(|entry| entry.state >= State::Stored);
    settled.min_by_key(|entry| (entry.state, entry.id))
}

fn intend(db: &Connection, entry: &Entry, holders: Vec<Entry>) -> rusqlite::Result<Intended> {
    if let Some(holder) = answering(holders) {
        return Ok(Intended::Taken(Box::new(holder)));
    }
    // Attempts that came to nothing have nothing to tell any more.
    rows::forget_dropped(db, &entry.metadata.owner, &entry.metadata.key)?;
    rows::insert(db, entry)?;
    rows::use_it(db)?;
    rows::touch(db, &entry.id).map(Intended::Recorded)
}

/// The place that a file server's name stands for, and whether objects are known there, out of a
/// catalog that may be in use; nothing where there is no catalog yet.
pub(super) fn known_place(file: &Path, server: &str) -> Option<(Option<String>, bool)> {
    let db = file.exists().then(|| sqlite::open_to_read(file).ok()).flatten()?;
    Some((rows::place(&db, server).ok()?, rows::knows_objects(&db, server).ok()?))
}

fn observe(
    db: &Connection,
    id: &ObjectId,
    server: &str,
    state: ReplicaState,
    now: i64,
) -> rusqlite::Result<()> {
    match rows::entry(db, id)?.map(|entry| entry.state) {
        Some(State::Stored | State::Deleted) => {
            rows::set_replica(db, id, server, state, now)?;
            rows::touch(db, id).map(drop)
        }
        Some(State::Purged) if state == ReplicaState::Stored => {
            rows::set_replica(db, id, server, ReplicaState::RemovalOwed, now)
        }
        _ => Ok(()),
    }
}

fn take_stored(
    db: &Connection,
    servers: &[String],
    entry: &Entry,
    on: &[String],
    seal: &str,
    now: i64,
) -> rusqlite::Result<()> {
    let id = &entry.id;
    rows::insert(db, entry)?;
    rows::advance(db, id, State::Stored)?;
    tombstones::apply(db, id, now)?;
    let purged = rows::entry(db, id)?.is_some_and(|entry| entry.state == State::Purged);
    for server in servers.iter().filter(|_| !purged) {
        let state = if on.contains(server) { ReplicaState::Stored } else { ReplicaState::Owed };
        rows::add_replica(db, id, server, state, now, true)?;
    }
    for server in on {
        // Purged while it was written: what lies there now has to go again.
        let state = if purged { ReplicaState::RemovalOwed } else { ReplicaState::Stored };
        rows::set_replica(db, id, server, state, now)?;
        seals::note(db, id, server, seal)?;
    }
    rows::touch(db, id).map(drop)
}

#[cfg(test)]
mod tests;
