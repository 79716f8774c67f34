//! One upload: spool, intent, peer, both file servers, catalog, and only then yes. A key
//! never acts twice: the same content under it answers the same object, other content is refused.

use std::sync::Arc;
use std::time::Duration;

use age::x25519::Recipient;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, mpsc};
use tokio::task::JoinSet;

use super::catalog::{Intended, answering};
use super::envelope::Record;
use super::file_server::{FileServer, FileServerError, Put, Replica};
use super::object::{Entry, ObjectId, State};
use super::sessions::{Kind, Progress, Sessions};
use super::spool::{Piece, SpoolFile, Spooled};
use super::step::Step;
use super::{Inner, KeyLocks, Storage, StorageError, clock, now};

/// How long an upload waits for another one with the same key.
const KEY_PATIENCE: Duration = Duration::from_secs(5);
/// The peer hook keeps a shorter deadline of its own; this one is for a broken hook.
const PEER_PATIENCE: Duration = Duration::from_secs(10);
/// Pieces between the body's reader and the encryption.
const PIECES: usize = 4;

/// Larger objects leave sessions to others; smaller ones are soon over.
const LARGE: u64 = 1 << 20;

/// What comes with an upload.
#[derive(Debug, Clone)]
pub struct Upload {
    /// Who it will belong to.
    pub owner: String,
    /// The idempotency key.
    pub key: String,
    /// What the owner calls it.
    pub label: String,
    /// Media type.
    pub media_type: String,
}

/// Why an upload's body did not come through.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// No progress within the API's deadline.
    #[error("no byte came within {} s", .0.as_secs())]
    Idle(Duration),
    /// The body is not what its digest says; `0` names the algorithm.
    #[error("the body is not what its {0} digest says")]
    Digest(&'static str),
    /// The connection broke, or the body was not what its head said.
    #[error("{0}")]
    Broken(String),
}

/// An acknowledged upload.
#[derive(Debug)]
pub struct Stored {
    /// The object that the key answers.
    pub entry: Entry,
    /// Stored by this very call?
    pub new: bool,
}

/// Writes under way, each with its file server's name.
type Puts = JoinSet<(String, Result<Put, FileServerError>)>;

/// Held while an upload runs.
struct Held {
    _permit: OwnedSemaphorePermit,
    _key: KeyGuard,
}

impl Storage {
    /// Stores `body`. When this returns, at least `min_replicas` replicas are durable.
    ///
    /// # Errors
    /// See [`StorageError`]; after any of them, repeating with the same key is safe.
    pub async fn put(
        &self,
        upload: Upload,
        body: impl Stream<Item = Result<Bytes, BodyError>> + Send,
    ) -> Result<Stored, StorageError> {
        let outcome = self.0.put(upload, body).await;
        let word = match &outcome {
            Ok(Stored { new: true, .. }) => "stored",
            Ok(Stored { new: false, .. }) => "repeated",
            Err(StorageError::Busy(_)) => "busy",
            Err(StorageError::Body(_)) => "broken_off",
            Err(StorageError::NotDurable { .. } | StorageError::NoPlace { .. }) => "not_durable",
            Err(_) => "refused",
        };
        self.0.metrics.uploads.with_label_values(&[word]).inc();
        outcome
    }
}

impl Inner {
    async fn put(
        self: &Arc<Self>,
        upload: Upload,
        body: impl Stream<Item = Result<Bytes, BodyError>> + Send,
    ) -> Result<Stored, StorageError> {
        let permit = Arc::clone(&self.uploads).try_acquire_owned();
        let permit = permit.map_err(|_| StorageError::Busy("as many uploads as allowed are under way"))?;
        let key = self.hold_key(&upload.owner, &upload.key).await?;
        let holders = self.catalog.by_key(upload.owner.clone(), upload.key.clone()).await?;
        if let Some(holder) = answering(holders) {
            let digest = self.digest(body).await?;
            return self.repeated(holder, &digest).await;
        }
        self.check_places()?;
        let ring = self.ring();
        let recipients = ring.recipients().ok_or_else(|| self.no_key())?;
        let spooled = self.spool(upload, recipients, body).await?;
        // From here on the caller's connection no longer matters.
        let (inner, held) = (Arc::clone(self), Held { _permit: permit, _key: key });
        let finished = tokio::spawn(async move {
            let Spooled { id, record, file } = spooled;
            let stored = inner.store(id, record, ring.seal(), &file).await;
            // Removing a large file takes a while.
            if file.is_large() {
                let removed = tokio::task::spawn_blocking(move || drop(file)).await;
                debug_assert!(removed.is_ok(), "dropping does not panic");
            }
            drop(held);
            stored
        });
        finished.await.map_err(|_| StorageError::Stopping)?
    }

    /// Refuses at once where the upload could only fail.
    fn check_places(&self) -> Result<(), StorageError> {
        let health: Vec<_> = self.servers.iter().map(|server| server.health()).collect();
        let able = health.iter().filter(|health| health.suspended.is_none() && !health.full).count();
        let needed = self.settings.min_replicas;
        if able >= needed {
            return Ok(());
        }
        let full = health.iter().all(|health| health.suspended.is_none());
        let ails: Vec<_> =
            health.into_iter().filter_map(|health| health.suspended.or(health.last_error)).collect();
        Err(StorageError::NoPlace { able, needed, why: ails.join("; "), full })
    }

    /// Only reads the body, to tell a repeated upload from other content under the same key.
    async fn digest(
        &self,
        body: impl Stream<Item = Result<Bytes, BodyError>> + Send,
    ) -> Result<String, StorageError> {
        let mut body = std::pin::pin!(body);
        let (mut hasher, mut size) = (blake3::Hasher::new(), 0_u64);
        while let Some(bytes) = body.next().await {
            let bytes = bytes?;
            size += bytes.len() as u64;
            self.check_size(size)?;
            hasher.update(&bytes);
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// Encrypts the body into the spool. Whatever ends this early removes the spool's file.
    async fn spool(
        &self,
        upload: Upload,
        [active, escrow]: [Recipient; 2],
        body: impl Stream<Item = Result<Bytes, BodyError>> + Send,
    ) -> Result<Spooled, StorageError> {
        let (pieces, queue) = mpsc::channel(PIECES);
        let mut body = std::pin::pin!(body);
        // What is short is there as a whole before a thread begins with it, and the thread waits
        // for nothing.
        let mut size = 0;
        let more = self.feed(&mut body, &pieces, &mut size, true).await?;
        let spool = self.spool.clone();
        let created = OffsetDateTime::from(clock()).format(&Rfc3339).unwrap_or_default();
        let writing =
            tokio::task::spawn_blocking(move || spool.write(&upload, created, [&active, &escrow], queue));
        let fed = match more {
            true => self.feed(&mut body, &pieces, &mut size, false).await.map(drop),
            false => Ok(()),
        };
        drop(pieces);
        let written = writing.await.map_err(|_| StorageError::Stopping)?;
        match (fed, written) {
            (Err(error), _) => Err(error),
            (Ok(()), Err(error)) => Err(error.into()),
            (Ok(()), Ok(spooled)) => spooled.ok_or(StorageError::Stopping),
        }
    }

    /// Hands the body over until its end; if `at_once`, until the queue would have to be waited for.
    /// Is there more?
    async fn feed(
        &self,
        body: &mut (impl Stream<Item = Result<Bytes, BodyError>> + Send + Unpin),
        pieces: &mpsc::Sender<Piece>,
        size: &mut u64,
        at_once: bool,
    ) -> Result<bool, StorageError> {
        while !at_once || pieces.capacity() > 0 {
            let Some(bytes) = body.next().await else {
                let _ = pieces.send(Piece::End).await;
                return Ok(false);
            };
            let bytes = bytes?;
            *size += bytes.len() as u64;
            self.check_size(*size)?;
            // A closed queue means that the spool failed; it says itself why.
            if pieces.send(Piece::Bytes(bytes)).await.is_err() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn check_size(&self, size: u64) -> Result<(), StorageError> {
        if size > self.settings.max_file.0 {
            return Err(StorageError::TooLarge(self.settings.max_file));
        }
        Ok(())
    }

    /// Everything after the last byte of the body.
    async fn store(
        self: &Arc<Self>,
        id: ObjectId,
        record: Record,
        seal: &str,
        file: &SpoolFile,
    ) -> Result<Stored, StorageError> {
        self.steps.reach(|| Step::Spooled);
        let digest = record.metadata.digest.clone();
        let entry = Entry {
            id,
            metadata: record.metadata,
            state: State::Pending,
            origin: self.own.clone(),
            identity: Some(record.identity),
            replicas: Vec::new(),
        };
        let live = Live::new(self, id);
        let intended = match self.catalog.intend_first(entry.clone()).await? {
            Ok(intended) => intended,
            Err(holders) => match self.settle(holders).await? {
                Some(settled) => return self.repeated(settled, &digest).await,
                None => self.catalog.intend(entry.clone()).await?,
            },
        };
        let seq = match intended {
            Intended::Recorded(seq) => seq,
            Intended::Taken(holder) => return self.repeated(*holder, &digest).await,
        };
        self.steps.reach(|| Step::Intended);
        self.tell_peer(seq, "the upload goes on").await;
        self.steps.reach(|| Step::Replicate);
        let stored = self.replicate(entry, live, seal, file).await?;
        self.steps.reach(|| Step::Acknowledge);
        self.metrics.uploaded_bytes.inc_by(stored.metadata.size);
        Ok(Stored { entry: stored, new: true })
    }

    /// Writes both file servers at once and records what came of it. Once enough of them have
    /// it, the others are waited for one deadline more; what arrives later is noted then.
    async fn replicate(
        self: &Arc<Self>,
        entry: Entry,
        live: Live,
        seal: &str,
        file: &SpoolFile,
    ) -> Result<Entry, StorageError> {
        let (id, needed) = (entry.id, self.settings.min_replicas);
        let (mut on, mut refusals) = (Vec::new(), Vec::new());
        let mut puts = self.begin_puts(id, file, &mut refusals);
        let mut until = None;
        loop {
            let next = if on.len() < needed {
                puts.join_next().await
            } else {
                let grace = self.settings.file_server_timeout;
                let until = *until.get_or_insert_with(|| tokio::time::Instant::now() + grace);
                let Ok(next) = tokio::time::timeout_at(until, puts.join_next()).await else { break };
                next
            };
            match next {
                None => break,
                Some(Ok((server, Ok(_)))) => on.push(server),
                Some(Ok((_, Err(error)))) => refusals.push(error),
                // The intent stays, and is settled by looking.
                Some(Err(_)) => return Err(StorageError::Stopping),
            }
        }
        if on.len() >= needed {
            for error in &refusals {
                tracing::warn!("{error}; kept on {}, owed there", on.join(", "));
            }
            let stored = self.catalog.stored_sealed(entry.clone(), on, seal.to_owned(), now()).await?;
            if !puts.is_empty() {
                self.follow_late(entry, live, seal.to_owned(), puts);
            }
            return Ok(stored);
        }
        // Where every refusal is final, the intent has come to nothing. Otherwise a write that
        // timed out may still arrive: the intent stays, and is settled by looking.
        if on.is_empty() && refusals.iter().all(is_final) {
            self.catalog.dropped(id).await?;
        }
        let full = refusals.iter().all(|error| matches!(error, FileServerError::Full { .. }));
        let why = refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        Err(StorageError::NotDurable { id, durable: on.len(), needed, why, full })
    }

    /// Begins to write every file server that is not to be spared.
    fn begin_puts(
        self: &Arc<Self>,
        id: ObjectId,
        file: &SpoolFile,
        refusals: &mut Vec<FileServerError>,
    ) -> Puts {
        let mut puts = JoinSet::new();
        let conditions = self.conditions(self.settings.min_replicas);
        for (at, condition) in conditions.into_iter().enumerate() {
            let server = &self.servers[at];
            // What has refused is asked again; what is low is spared before it must refuse.
            if condition.low && condition.full && !server.health().full {
                refusals.push(low_on_space(server.name(), &id));
                continue;
            }
            match file.replica(server.name(), &id) {
                Ok(source) => {
                    let inner = Arc::clone(self);
                    puts.spawn(async move {
                        (condition.server, inner.put_from(id, &inner.servers[at], source, Kind::Long).await)
                    });
                }
                Err(error) => refusals.push(error),
            }
        }
        puts
    }

    /// Notes replicas that become durable after the answer. Until then repairs leave the object
    /// alone; with too many such writes under way, they do not, and this one counts for nothing.
    fn follow_late(self: &Arc<Self>, entry: Entry, live: Live, seal: String, mut puts: Puts) {
        let Ok(permit) = Arc::clone(&self.late).try_acquire_owned() else { return };
        let inner = Arc::clone(self);
        tokio::spawn(async move {
            let _held = (permit, live);
            while let Some(put) = puts.join_next().await {
                let Ok((server, put)) = put else { return };
                if let Err(error) = put {
                    tracing::warn!("{error}; stays owed there");
                    continue;
                }
                let noted = inner.catalog.stored_sealed(entry.clone(), vec![server], seal.clone(), now());
                if let Err(error) = noted.await {
                    tracing::warn!("storage: object {}: {error}; stays owed", entry.id);
                }
            }
        });
    }

    /// Writes one replica; a large one in a place of this `kind`.
    pub(super) async fn put_on(
        &self,
        id: ObjectId,
        server: &Sessions,
        file: &SpoolFile,
        kind: Kind,
    ) -> Result<Put, FileServerError> {
        let source = file.replica(server.name(), &id)?;
        self.put_from(id, server, source, kind).await
    }

    async fn put_from(
        &self,
        id: ObjectId,
        server: &Sessions,
        source: Replica,
        kind: Kind,
    ) -> Result<Put, FileServerError> {
        let length = source.length();
        let kind = if length > LARGE { kind } else { Kind::Short };
        let put = move |server: &dyn FileServer, progress: &Progress| {
            server.put_watched(&id, &mut progress.watch(source), &|count| progress.moved(count))
        };
        let done = server.run_as(kind, id, put).await;
        match &done {
            Ok(_) => server.set_full(false),
            Err(FileServerError::Full { .. }) => server.note_refused(length),
            Err(_) => {}
        }
        done
    }

    /// Answers a repeat, by nothing that is less durable than a first upload's answer: replicas
    /// that are missing are copied first.
    async fn repeated(&self, holder: Entry, digest: &str) -> Result<Stored, StorageError> {
        if holder.state > State::Stored {
            return Err(StorageError::KeyDeleted { id: holder.id });
        }
        if holder.metadata.digest != digest {
            return Err(StorageError::KeyReused { id: holder.id });
        }
        let (id, needed) = (holder.id, self.settings.min_replicas);
        let (mut entry, mut whys) = (holder, Vec::new());
        for to in &self.servers {
            let on = entry.stored_on();
            if on.len() >= needed {
                break;
            }
            if on.iter().any(|name| name == to.name()) {
                continue;
            }
            for from in &on {
                match self.copy(id, self.server(id, from)?, to, Kind::Long).await {
                    Ok(()) => break,
                    Err(error) => whys.push(error.to_string()),
                }
            }
            entry = self.catalog.entry(id).await?.unwrap_or(entry);
        }
        let durable = entry.stored_on().len();
        if durable >= needed {
            return Ok(Stored { entry, new: false });
        }
        if durable == 0 {
            whys.push("no file server is known to hold it".to_owned());
        }
        Err(StorageError::NotDurable { id, durable, needed, why: whys.join("; "), full: false })
    }

    /// Intents of earlier attempts with one key, here or at the peer, may have come to
    /// something: what is whole on a file server answers the key.
    async fn settle(&self, holders: Vec<Entry>) -> Result<Option<Entry>, StorageError> {
        let mut settled = Vec::new();
        for holder in holders {
            if holder.state >= State::Stored {
                settled.push(holder);
                continue;
            }
            // What was dropped is on no file server for sure.
            if holder.state == State::Dropped {
                continue;
            }
            // However few they are: beside a second object this one would answer the key, too.
            let looked = self.look(holder.id, Some(&holder)).await;
            settled.extend(self.adopt(holder.id, Some(holder), &looked).await?);
        }
        Ok(answering(settled))
    }

    /// Waits for the peer to hear of a change, within reason; `meanwhile` says what becomes of it
    /// where that takes too long.
    pub(super) async fn tell_peer(&self, seq: u64, meanwhile: &str) {
        let tell = self.tell_peer.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        if let Some(tell) = tell
            && tokio::time::timeout(PEER_PATIENCE, tell(seq)).await.is_err()
        {
            tracing::warn!("storage: telling the peer took too long; {meanwhile}");
        }
    }

    async fn hold_key(self: &Arc<Self>, owner: &str, key: &str) -> Result<KeyGuard, StorageError> {
        let name = (owner.to_owned(), key.to_owned());
        let lock = Arc::clone(self.keys().entry(name.clone()).or_default());
        let held = tokio::time::timeout(KEY_PATIENCE, lock.lock_owned()).await;
        let guard = KeyGuard { inner: Arc::clone(self), name, held: held.ok() };
        if guard.held.is_none() {
            return Err(StorageError::Busy("an upload with the same key is under way"));
        }
        Ok(guard)
    }

    fn keys(&self) -> std::sync::MutexGuard<'_, KeyLocks> {
        self.keys.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn low_on_space(server: &str, id: &ObjectId) -> FileServerError {
    let source = std::io::Error::new(std::io::ErrorKind::StorageFull, "less than storage.keep_free is left");
    FileServerError::Full { server: server.to_owned(), object: id.to_string(), source }
}

/// Is it sure that nothing has been or will be stored?
const fn is_final(error: &FileServerError) -> bool {
    matches!(
        error,
        FileServerError::Full { .. }
            | FileServerError::Denied { .. }
            | FileServerError::NotOurs { .. }
            | FileServerError::BadSource { .. }
    )
}

/// One key's uploads run one after another.
struct KeyGuard {
    inner: Arc<Inner>,
    name: (String, String),
    held: Option<OwnedMutexGuard<()>>,
}

impl Drop for KeyGuard {
    fn drop(&mut self) {
        let mut keys = self.inner.keys();
        self.held = None;
        // Nobody else holds or awaits it: only the map's own reference is left.
        if keys.get(&self.name).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            keys.remove(&self.name);
        }
    }
}

/// Marks an object's upload as under way.
struct Live {
    inner: Arc<Inner>,
    id: ObjectId,
}

impl Live {
    fn new(inner: &Arc<Inner>, id: ObjectId) -> Self {
        inner.live().insert(id);
        Self { inner: Arc::clone(inner), id }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.inner.live().remove(&self.id);
    }
}
