//! Files as immutable, encrypted objects with a replica on each of two file servers: put,
//! find, read, delete, repair. Knows what must be durable before what is said; not HTTP, not
//! the peer, not what kind of place a file server is.
//!
//! An upload's way: spool (encrypted, whole) → intent in the catalog → the peer is told →
//! both file servers at once → stored in the catalog → acknowledged. A crash between any two
//! leaves an intent that the next start, or the next question for its key or id, settles by
//! looking at the file servers.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::{BoxFuture, join_all};
use shared::config::ByteSize;
use tokio::sync::{Semaphore, watch};

pub mod comparison;
pub mod envelope;
pub mod file_server;
pub mod inventory;
pub mod key;
pub mod note;
pub mod object;
pub mod preference;
pub mod repair;
pub mod round;

mod adoption;
mod agreement;
mod catalog;
mod debts;
mod deletion;
mod download;
mod listing;
mod lookup;
mod mending;
mod metrics;
mod patrol;
mod paying;
mod rebuild;
mod removal;
mod rewrap;
mod ring;
mod scrub;
mod sealing;
mod sessions;
mod spool;
mod status;
mod step;
mod sync;
mod task;
mod tasks;
mod tombstones;
mod turn;
mod upload;
mod verify;
mod visit;
mod witness;

#[cfg(test)]
mod tests;

pub use adoption::{AdoptedServer, Adoption, PeerAdoption};
pub use agreement::{AskPeerKeys, PeerKeys};
pub use catalog::{CatalogError, Change};
pub use debts::Owed;
pub use deletion::Undeleted;
pub use download::Plaintext;
pub use file_server::{FileServerError, Login, SftpSettings};
pub use key::KeyError;
pub use listing::{Listed, Wanted};
pub use lookup::Found;
pub use mending::Slots;
pub use object::{Entry, Metadata, ObjectId, ReplicaState, State};
pub use patrol::Compared;
pub use ring::Use;
pub use round::Round;
pub use sealing::{KeyStatus, Keys};
pub use spool::{SpoolError, free_below};
pub use status::{ServerStatus, SpoolStatus, Status};
pub use sync::Synced;
pub use task::Progress;
pub use turn::Turn;
pub use upload::{BodyError, Stored, Upload};
pub use verify::Checked;
pub use visit::{Visit, visit};

use crate::marks::Mark;
use agreement::Agreement;
use catalog::Catalog;
use debts::Reasons;
use metrics::Metrics;
use patrol::Patrol;
use preference::Preference;
use ring::Ring;
use sessions::Sessions;
use spool::Spool;
use step::Steps;
use task::Task;
use tasks::Asked;

/// Downloads at once; each holds about two frames in memory.
const MAX_DOWNLOADS: usize = 256;
/// Writes at most that go on after their upload was answered; a small one holds all of its object.
const MAX_LATE: usize = 64;

/// `[storage]` and `[[file_server]]`
#[derive(Debug, Clone)]
pub struct Settings {
    /// The catalog's SQLite file.
    pub catalog: PathBuf,
    /// Where uploads are encrypted to before they go to the file servers; never plaintext.
    pub spool: PathBuf,
    /// The storage keys, age identities (`AGE-SECRET-KEY-1…`), the same on both vaults.
    pub key_file: PathBuf,
    /// The escrow's age recipient (`age1…`); its identity stays offline.
    pub escrow_recipient: String,
    /// How many replicas must be durable before an upload is acknowledged.
    pub min_replicas: usize,
    /// Largest plaintext accepted.
    pub max_file: ByteSize,
    /// Most uploads at once; further ones get 503.
    pub max_uploads: usize,
    /// How often owed replicas and deletions are tried again.
    pub retry_every: Duration,
    /// For how long a deleted file can be taken back; afterwards it is purged.
    pub undelete_within: Duration,
    /// A file server that makes no progress for this long is suspended.
    pub file_server_timeout: Duration,
    /// The other vault's name.
    pub peer: String,
    /// How often the catalog is compared with whole listings of the file servers; zero: only
    /// where something calls for it.
    pub sync_every: Duration,
    /// How often every replica is read again; zero: never by itself.
    pub scrub_every: Duration,
    /// How fast the scrub reads at most, in bytes a second.
    pub scrub_rate: ByteSize,
    /// How often changes are written into the inventories on the file servers.
    pub inventory_every: Duration,
    /// A file server with less space left is not written to while another has more.
    pub keep_free: ByteSize,
    /// Exactly two.
    pub file_servers: Vec<FileServerSettings>,
}

/// One `[[file_server]]`
#[derive(Debug, Clone)]
pub struct FileServerSettings {
    /// Its name in the catalog; never reuse one for another place.
    pub name: String,
    /// The folder that holds the replicas, on this host or on the server.
    pub path: PathBuf,
    /// What kind of place it is.
    pub kind: Kind,
}

/// What kind of place a file server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory of this host, or mounted there.
    Directory,
    /// Reached by SFTP.
    Sftp(SftpSettings),
}

impl FileServerSettings {
    /// A directory.
    #[must_use]
    pub fn directory(name: &str, path: PathBuf) -> Self {
        Self { name: name.to_owned(), path, kind: Kind::Directory }
    }
}

/// Why storage did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The key file or the escrow recipient.
    #[error("storage: {0}")]
    Key(#[from] KeyError),
    /// The catalog.
    #[error("storage: {0}")]
    Catalog(#[from] CatalogError),
    /// The spool.
    #[error("storage: {0}")]
    Spool(#[from] SpoolError),
    /// Threads or metrics cannot be made.
    #[error("storage: cannot start: {0}; check the limits of vault's unit")]
    Start(String),
    /// Too much at once. The caller tries again.
    #[error("storage: {0}; try again")]
    Busy(&'static str),
    /// The upload is longer than allowed. The caller must not repeat it.
    #[error("storage: the file is larger than {0}, the most that is accepted; nothing was kept")]
    TooLarge(ByteSize),
    /// The upload's body broke off. The caller repeats it with the same key.
    #[error("storage: the upload broke off: {0}; nothing was kept")]
    Body(#[from] BodyError),
    /// The key was used with other content. The caller takes a new key.
    #[error("storage: this key has stored other content as {id}; use a new key")]
    KeyReused {
        /// What the key answers.
        id: ObjectId,
    },
    /// What the key stored has been deleted. The caller takes a new key.
    #[error("storage: what this key stored, {id}, has been deleted; use a new key")]
    KeyDeleted {
        /// What the key answered.
        id: ObjectId,
    },
    /// Too few replicas became durable. The caller repeats it with the same key.
    #[error("storage: object {id}: {durable} of {needed} replicas durable: {why}; repeat with the same key")]
    NotDurable {
        /// The object.
        id: ObjectId,
        /// How many became durable.
        durable: usize,
        /// How many must.
        needed: usize,
        /// What the file servers said.
        why: String,
        /// Every one of them for lack of space?
        full: bool,
    },
    /// Too few file servers can take a replica at present; the upload was not even begun.
    #[error("storage: {able} of {needed} file servers can take a replica: {why}; try again")]
    NoPlace {
        /// How many can.
        able: usize,
        /// How many must.
        needed: usize,
        /// What ails the others.
        why: String,
        /// Every one of them lack of space?
        full: bool,
    },
    /// Unknown here, and not every file server could be asked. The caller tries again.
    #[error("storage: object {id}: not in the catalog, and not every file server answers: {why}; try again")]
    Unsure {
        /// The object.
        id: ObjectId,
        /// What the file servers said.
        why: String,
    },
    /// No replica can be read. The caller tries again; the operator looks at the file servers.
    #[error("storage: object {id}: no replica can be read: {why}; try again when the file servers are back")]
    Unreadable {
        /// The object.
        id: ObjectId,
        /// What the file servers said.
        why: String,
    },
    /// A purged object, or what was set aside of it, cannot be removed. It is tried again by itself.
    #[error("storage: object {id}: purged, and cannot be removed: {why}")]
    NotRemoved {
        /// The object.
        id: ObjectId,
        /// What the file server said.
        why: String,
    },
    /// The range starts behind the end.
    #[error("storage: the range starts behind the end of {size} bytes")]
    Range {
        /// Plaintext bytes.
        size: u64,
    },
    /// A file server cannot do what nobody waits for. It is tried again by itself.
    #[error("storage: {0}")]
    FileServer(#[from] FileServerError),
    /// The operator named a file server that is not configured.
    #[error("storage: there is no file server {name}; name one of: {known}")]
    NoSuchServer {
        /// What was named.
        name: String,
        /// What there is.
        known: String,
    },
    /// The operator would have a file server taken for new that is not.
    #[error("storage: file server {name} is the place it always was; nothing is adopted and nothing is owed")]
    SamePlace {
        /// The file server.
        name: String,
    },
    /// A file server cannot be made our place. The operator mends it and says it again.
    #[error("storage: file server {name} cannot be adopted: {why}; mend it and adopt it again")]
    NotAdopted {
        /// The file server.
        name: String,
        /// What it said.
        why: String,
    },
    /// The other vault has adopted a place that this one does not find. The operator sees to the mounts.
    #[error(
        "storage: file server {name}: here stands {found}, and the other vault has adopted place {told}; \
         nothing is adopted here: mount the same place on both vaults, then say adopt-server {name} on the one \
         that still calls it away"
    )]
    OtherPlace {
        /// The file server.
        name: String,
        /// What stands here.
        found: String,
        /// The place that the other vault has adopted.
        told: String,
    },
    /// The deletion can no longer be taken back.
    #[error(
        "storage: object {id}: deleted longer ago than storage.undelete_within, and about to be purged; \
         until then its replicas lie on the file servers and open by hand, with the escrow key"
    )]
    TooLate {
        /// The object.
        id: ObjectId,
    },
    /// It is gone for good.
    #[error(
        "storage: object {id}: purged: it was deleted longer ago than storage.undelete_within; \
         a replica in a backup of a file server opens by hand, with the storage key or the escrow key"
    )]
    Purged {
        /// The object.
        id: ObjectId,
    },
    /// There is nothing to take back.
    #[error("storage: object {id}: the catalog knows no such object")]
    Unknown {
        /// The object.
        id: ObjectId,
    },
    /// The catalog is in use; the operator says whether to add to it.
    #[error(
        "storage: this catalog is in use: it took uploads or was rebuilt; say --merge to add what it lacks"
    )]
    NotEmpty,
    /// A file server cannot be listed. The operator looks at it, then starts again.
    #[error("storage: both file servers must be listed: {0}; what was taken in is kept")]
    Listing(String),
    /// No key may seal. The operator mends the key file; the caller tries again, also at the other vault.
    #[error("storage: {why}")]
    NoKey {
        /// What the operator has to mend.
        why: String,
    },
    /// The newest key does not seal yet. The operator says it again when it does.
    #[error("storage: the newest key is not active yet: {why}; say it again then")]
    NotActive {
        /// What it waits for.
        why: String,
    },
    /// A task of ours ended early: the program is stopping.
    #[error("storage: stopping; try again")]
    Stopping,
}

/// Called after an intent is durable, with its change's number; returns when the peer has
/// merged that far, or after a short deadline.
pub type TellPeer = Arc<dyn Fn(u64) -> BoxFuture<'static, ()> + Send + Sync>;

/// How far the peer has merged this catalog's changes; `None` while it is away.
pub type PeerKnows = Arc<dyn Fn() -> Option<u64> + Send + Sync>;

/// The files of this vault. Cheap to clone.
#[derive(Clone)]
pub struct Storage(Arc<Inner>);

struct Inner {
    settings: Settings,
    own: String,
    catalog: Catalog,
    servers: Vec<Arc<Sessions>>,
    spool: Spool,
    /// The storage keys; replaced as a whole.
    ring: RwLock<Arc<Ring>>,
    /// What the other vault has of them.
    agreement: Agreement,
    /// Objects on the file servers that no key opens, when they were last looked for.
    unopened: AtomicU64,
    rewrap: Arc<Task>,
    rebuild: Arc<Task>,
    /// The comparison with the file servers.
    compare: Arc<Task>,
    /// Walks of a former life that go on when both file servers answer.
    broken_off: Mutex<Vec<Asked>>,
    uploads: Arc<Semaphore>,
    /// Writes that go on after their upload was answered.
    late: Arc<Semaphore>,
    downloads: Arc<Semaphore>,
    /// Keys with an upload under way.
    keys: Mutex<KeyLocks>,
    /// Objects with an upload under way: their intents are nobody's to settle.
    live: Mutex<HashSet<ObjectId>>,
    /// Replicas that a reader found damaged and that are looked at as a whole, by file server.
    suspects: Mutex<HashSet<(ObjectId, usize)>>,
    /// The peer's intents when they were last looked at.
    foreign: Mutex<HashSet<ObjectId>>,
    tell_peer: RwLock<Option<TellPeer>>,
    peer_knows: RwLock<Option<PeerKnows>>,
    /// When this process last noted in the catalog how much time it has seen.
    watched: Mutex<Option<Instant>>,
    /// When temporary files were last looked for beside the attaching of a file server.
    collected: Mutex<Option<Instant>>,
    /// Repair turns in a row that found the peer there.
    peer_turns: AtomicU32,
    /// Rounds of paying since start.
    turns: AtomicU32,
    /// Rounds of tending since start.
    tended: AtomicU32,
    /// Is the other vault there, so that it scrubs its half?
    peer_up: RwLock<Option<watch::Receiver<bool>>>,
    patrol: Patrol,
    /// File servers whose notes are sealed with a key that is no longer the active one.
    reseal: Mutex<HashSet<String>>,
    /// Why debts could not be paid.
    reasons: Reasons,
    /// Which file server is read first.
    preference: Mutex<Preference>,
    metrics: Metrics,
    steps: Steps,
}

/// By owner and key.
type KeyLocks = HashMap<(String, String), Arc<tokio::sync::Mutex<()>>>;

/// One file server by itself, outside of any storage: for measuring it. Touches nothing yet.
#[must_use]
pub fn file_server_alone(settings: &FileServerSettings, own_name: &str) -> Box<dyn file_server::FileServer> {
    file_server::open(settings, own_name, Duration::from_secs(30), Steps::default())
}

impl Storage {
    /// Opens the catalog and the spool, starts the sessions and attaches to the file servers.
    /// One that is away, or is not the place it should be, is suspended and probed at every
    /// repair turn; the other serves meanwhile.
    ///
    /// # Errors
    /// Key, catalog or spool unusable.
    pub async fn open(settings: Settings, own_name: &str) -> Result<Self, StorageError> {
        Self::open_watched(settings, own_name, Steps::default()).await
    }

    async fn open_watched(settings: Settings, own_name: &str, steps: Steps) -> Result<Self, StorageError> {
        let keys = key::load(&settings.key_file)?;
        let escrow = key::parse_recipient(&settings.escrow_recipient)?;
        let names: Vec<_> = settings.file_servers.iter().map(|server| server.name.clone()).collect();
        let (file, folder, watched) = (settings.catalog.clone(), settings.spool.clone(), steps.clone());
        let opened = tokio::task::spawn_blocking(move || {
            Ok::<_, StorageError>((Catalog::open(&file, &names, watched)?, Spool::open(&folder)?))
        });
        let (catalog, spool) = opened.await.map_err(|_| StorageError::Stopping)??;
        let shared = catalog.shared_keys().await?;
        let ring = Ring::new(keys, &shared, None, escrow).ok_or(KeyError::NoIdentity)?;
        let mut servers = Vec::new();
        for server in &settings.file_servers {
            let server = file_server::open(server, own_name, settings.file_server_timeout, steps.clone());
            let started = Sessions::start(server, settings.file_server_timeout);
            servers.push(Arc::new(started.map_err(|error| StorageError::Start(error.to_string()))?));
        }
        let storage = Self(Arc::new(Inner {
            own: own_name.to_owned(),
            catalog,
            preference: Mutex::new(Preference::new(servers.len())),
            servers,
            spool,
            ring: RwLock::new(Arc::new(ring)),
            agreement: Agreement::default(),
            unopened: AtomicU64::new(0),
            rewrap: Arc::default(),
            rebuild: Arc::default(),
            compare: Arc::default(),
            broken_off: Mutex::default(),
            uploads: Arc::new(Semaphore::new(settings.max_uploads)),
            late: Arc::new(Semaphore::new(MAX_LATE)),
            downloads: Arc::new(Semaphore::new(MAX_DOWNLOADS)),
            keys: Mutex::default(),
            live: Mutex::default(),
            suspects: Mutex::default(),
            foreign: Mutex::default(),
            tell_peer: RwLock::default(),
            peer_knows: RwLock::default(),
            watched: Mutex::default(),
            collected: Mutex::default(),
            peer_turns: AtomicU32::new(0),
            turns: AtomicU32::new(0),
            tended: AtomicU32::new(0),
            peer_up: RwLock::default(),
            patrol: Patrol::default(),
            reseal: Mutex::default(),
            reasons: Reasons::default(),
            metrics: Metrics::new().map_err(|error| StorageError::Start(error.to_string()))?,
            steps,
            settings,
        }));
        join_all(storage.0.servers.iter().map(|server| storage.0.attach(server))).await;
        storage.recall_asked().await?;
        Ok(storage)
    }

    /// Who tells the peer about intents; without one, nobody is told.
    pub fn set_peer(&self, tell: TellPeer) {
        *self.0.tell_peer.write().unwrap_or_else(PoisonError::into_inner) = Some(tell);
    }

    /// Who tells whether the peer is there; without one, it is not.
    pub fn set_peer_up(&self, up: watch::Receiver<bool>) {
        *self.0.peer_up.write().unwrap_or_else(PoisonError::into_inner) = Some(up);
    }

    /// What changed here after `cursor`, for the peer.
    ///
    /// # Errors
    /// The catalog's.
    pub async fn changes_since(&self, cursor: u64, limit: usize) -> Result<Vec<Change>, StorageError> {
        Ok(self.0.catalog.changes_since(cursor, limit).await?)
    }

    /// Takes over what the peer tells, and keeps with it how far that goes. Any order, any
    /// repetition.
    ///
    /// # Errors
    /// The catalog's; then nothing of it is taken over.
    pub async fn merge(&self, changes: Vec<Change>, mark: Option<Mark>) -> Result<(), StorageError> {
        Ok(self.0.catalog.merge(changes, mark, self.0.ring().seal().to_owned(), now()).await?)
    }

    /// How far everything that the peer told is taken over.
    ///
    /// # Errors
    /// The catalog's.
    pub async fn heard(&self) -> Result<Mark, StorageError> {
        Ok(self.0.catalog.heard().await?)
    }

    /// As far as a peer with this mark has this catalog's history; the rest is to be told.
    ///
    /// # Errors
    /// The catalog's.
    pub async fn shared(&self, mark: Mark) -> Result<u64, StorageError> {
        Ok(self.0.catalog.shared(mark).await?)
    }

    /// This start's name, under which its changes are told.
    #[must_use]
    pub fn life(&self) -> &str {
        self.0.catalog.life()
    }

    /// The number of this catalog's last change.
    #[must_use]
    pub fn last_change(&self) -> u64 {
        self.0.catalog.last_change()
    }

    /// Signals every new change.
    #[must_use]
    pub fn watch_changes(&self) -> watch::Receiver<u64> {
        self.0.catalog.watch()
    }

    /// The largest upload accepted.
    #[must_use]
    pub fn max_file(&self) -> ByteSize {
        self.0.settings.max_file
    }

    /// How often [`Storage::probe_turn`], [`Storage::tend_turn`] and [`Storage::pay_turn`] want to be called.
    #[must_use]
    pub fn retry_every(&self) -> Duration {
        self.0.settings.retry_every
    }
}

impl Inner {
    /// Attaches to a file server, or suspends it. Once attached, a name stands for one place.
    async fn attach(&self, server: &Arc<Sessions>) {
        let name = server.name().to_owned();
        let (expected, knows_objects) = match self.catalog.place(name.clone()).await {
            Ok(known) => known,
            Err(error) => return tracing::error!("storage: {error}"),
        };
        // A merged catalog knows objects on a place that this vault has never seen itself:
        // then the place must be there, whichever it is, and must not be claimed anew.
        let expect = expected.clone();
        let attached = server.probe(move |server, _| server.attach(expect.as_deref(), !knows_objects)).await;
        let place = match attached {
            Ok(place) => place,
            Err(error) => return server.suspend(&error),
        };
        if expected.is_none()
            && let Err(error) = self.catalog.remember_place(name, place).await
        {
            tracing::error!("storage: {error}");
        }
        turn::collect_temporaries(server);
    }

    fn preference(&self) -> std::sync::MutexGuard<'_, Preference> {
        self.preference.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn peer_is_up(&self) -> bool {
        let up = self.peer_up.read().unwrap_or_else(PoisonError::into_inner);
        up.as_ref().is_some_and(|up| *up.borrow())
    }

    fn reseal(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.reseal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn suspects(&self) -> std::sync::MutexGuard<'_, HashSet<(ObjectId, usize)>> {
        self.suspects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn live(&self) -> std::sync::MutexGuard<'_, HashSet<ObjectId>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The system's clock; labels and ages only, no guarantee rests on it.
#[expect(clippy::disallowed_methods, reason = "this room drives its own turns and stamps what it stores")]
fn clock() -> SystemTime {
    SystemTime::now()
}

/// The clock that nobody sets; it stands while the host sleeps.
#[expect(clippy::disallowed_methods, reason = "tells a clock that was set from time that passed")]
fn moment() -> Instant {
    Instant::now()
}

/// Unix seconds.
fn now() -> i64 {
    let since = clock().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// 32 hex digits that nobody can guess.
fn random_hex() -> String {
    let mut bytes = [0; 16];
    // The kernel's generator fails only before it is seeded, long before this program runs;
    // the names made of this are opened exclusively, so even then nothing is overwritten.
    if getrandom::fill(&mut bytes).is_err() {
        tracing::error!("storage: the system gives no randomness");
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
