//! A place that holds replicas: what every kind of it can do, and how it says no. Names no
//! kind; `open` alone does. Everything here blocks and may hang: callers bring their own
//! threads and deadlines.

use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::envelope::{EnvelopeError, Side};
use super::object::{ObjectId, ReplicaState};

pub(super) mod directory;
mod layout;
mod open;
mod sftp;

#[cfg(test)]
pub(super) mod contract;

pub(super) use layout::recognise;
pub(super) use open::open;
pub use open::try_out;
pub use sftp::{Login, MOST_SESSIONS, SESSIONS, SftpSettings, fuzz_listing, parse_address};

/// Why a file server did not do what it was asked. Tells the cases apart that call for
/// different answers; each names the server and the object.
#[derive(Debug, thiserror::Error)]
pub enum FileServerError {
    /// No space or no quota left. The operator makes room; reading goes on.
    #[error("file server {server}: {object}: no space left: {source}; make room, it is tried again")]
    Full {
        /// The file server's name.
        server: String,
        /// Object or file.
        object: String,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// Not there, and the file server is sure of it.
    #[error("file server {server}: {object}: not there")]
    Absent {
        /// The file server's name.
        server: String,
        /// Object or file.
        object: String,
    },
    /// There, but this program may not. The operator mends owner or mode.
    #[error("file server {server}: {object}: permission denied: {source}; give vault's user the right")]
    Denied {
        /// The file server's name.
        server: String,
        /// Object or file.
        object: String,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// There, but not what was written.
    #[error("file server {server}: {object}: damaged: {why}; set aside, healed from the other replica")]
    Damaged {
        /// The file server's name.
        server: String,
        /// Object or file.
        object: String,
        /// What is wrong with it.
        why: String,
    },
    /// There, but what is beneath does not give it, while it still gives the place's marker: a bad
    /// sector, a broken directory. As good as damaged; the rest of the server goes on.
    #[error("file server {server}: {object}: cannot be read: {source}; owed, healed from the other replica")]
    Unreadable {
        /// The file server's name.
        server: String,
        /// Object or file.
        object: String,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// It does not take what is to be written there, and not for lack of space or right, while it still
    /// gives the place's marker: a disk that went read-only, a user's quota, a bad sector. The operator
    /// looks at the disk; what lies there is read.
    #[error(
        "file server {server}: {object}: cannot be written: {source}; look whether that server's disk is \
         read-only, broken or over a quota: it is read meanwhile, and writing is tried again"
    )]
    Unwritable {
        /// The file server's name.
        server: String,
        /// Object or file.
        object: String,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A folder or a note of ours there, which is no replica, is not given or taken, while the place's
    /// marker can be read. The operator looks at the disk; the rest of the server goes on.
    #[error(
        "file server {server}: {object}: fails: {source}; look at that server's disk, the rest of it goes on"
    )]
    Faulty {
        /// The file server's name.
        server: String,
        /// What was read or written.
        object: String,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// What was to be stored there is not what it says; nothing was stored.
    #[error("file server {server}: {object}: the copy given to store is bad: {why}; nothing was stored")]
    BadSource {
        /// The file server's name.
        server: String,
        /// Object or file.
        object: String,
        /// What is wrong with it.
        why: String,
    },
    /// Cannot be reached or does not answer; nothing is known of what it holds.
    #[error("file server {server}: {object}: away: {source}; tried again by itself")]
    Away {
        /// The file server's name.
        server: String,
        /// Object or file.
        object: String,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// Answers, but is another place than the one the catalog knows by this name.
    #[error(
        "file server {server}: {path}: {why}; mount the right place there, or, if it was wiped or replaced: \
         vault file adopt-server {server}"
    )]
    NotOurs {
        /// The file server's name.
        server: String,
        /// Where it should be.
        path: PathBuf,
        /// What tells.
        why: &'static str,
    },
    /// Answers, but is not to be trusted, or does not let this program in. The operator mends
    /// host key, key or account; nothing is known of what it holds.
    #[error("file server {server}: {address}: {why}; tried again by itself")]
    NoEntry {
        /// The file server's name.
        server: String,
        /// Where it is.
        address: String,
        /// What is wrong, and what to do.
        why: String,
    },
}

impl FileServerError {
    /// Why it is away, without the object that was asked for and without what happens next.
    #[must_use]
    pub fn cause(&self) -> String {
        match self {
            Self::Away { source, .. } => source.to_string(),
            Self::NoEntry { why, .. } => why.clone(),
            other => other.to_string(),
        }
    }

    /// What this tells of the replica that was to be read, if anything.
    #[must_use]
    pub const fn shows(&self) -> Option<ReplicaState> {
        match self {
            Self::Absent { .. } => Some(ReplicaState::Owed),
            Self::Damaged { .. } | Self::Unreadable { .. } => Some(ReplicaState::Damaged),
            _ => None,
        }
    }

    /// Is it about the whole place, of which nothing is known then?
    #[must_use]
    pub const fn is_of_the_place(&self) -> bool {
        matches!(self, Self::Away { .. } | Self::NotOurs { .. } | Self::NoEntry { .. })
    }
}

/// Reads an object as a whole, unless it claims to be longer than `longest`; calls `moved` with the
/// bytes of every read.
fn verify(replica: Replica, id: &ObjectId, longest: u64, moved: &dyn Fn(usize)) -> Result<(), EnvelopeError> {
    struct Watched<'a>(Replica, &'a dyn Fn(usize));
    impl Read for Watched<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let count = self.0.read(buffer)?;
            (self.1)(count);
            Ok(count)
        }
    }
    if replica.length() > longest {
        return Err(EnvelopeError::Damaged("it is longer than the object"));
    }
    super::envelope::verify(Watched(replica, moved), id)
}

/// A damaged replica in quarantine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    id: ObjectId,
    /// In its folder.
    name: String,
}

impl SetAside {
    /// Whose replica it was.
    #[must_use]
    pub const fn id(&self) -> ObjectId {
        self.id
    }
}

/// What became of a replica that was to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// It was written.
    Written,
    /// A whole replica was there already.
    Verified,
}

/// A file server. One object, one operation at a time a call; calls from several threads may
/// overlap.
pub trait FileServer: Send + Sync {
    /// Its name in settings, catalog and errors.
    fn name(&self) -> &str;

    /// How many operations it carries at once, at least 1.
    fn sessions(&self) -> usize;

    /// Checks that this is the place it should be and returns the place's own id. With
    /// `expected`, only the place of that id will do; without, any will, and one never used
    /// before is claimed by writing a marker if `may_claim`.
    ///
    /// # Errors
    /// [`FileServerError::NotOurs`], or any other.
    fn attach(&self, expected: Option<&str>, may_claim: bool) -> Result<String, FileServerError>;

    /// The id of the place that stands there now, whichever it is; `None` where there is no marker.
    /// Believes nothing and writes nothing.
    ///
    /// # Errors
    /// [`FileServerError::NotOurs`] where the marker is another file server's or none of ours, or any
    /// other.
    fn marker(&self) -> Result<Option<String>, FileServerError>;

    /// Stores `source` (the whole object) under its id: temporary name, flush, publish without
    /// overwriting, and only then returns. What passes is checked against the id. A replica
    /// that is there already counts if it is whole, and is quarantined if not, or if it cannot be
    /// read.
    ///
    /// # Errors
    /// Any; nothing half-written is ever readable under the id.
    fn put(&self, id: &ObjectId, source: &mut Replica) -> Result<Put, FileServerError> {
        self.put_watched(id, source, &|_| ())
    }

    /// As [`Self::put`]; calls `moved` with the bytes that it reads of a replica which is there
    /// already, so that a caller can tell slow from stuck. What it reads of `source` is told there.
    ///
    /// # Errors
    /// As [`Self::put`].
    fn put_watched(
        &self,
        id: &ObjectId,
        source: &mut Replica,
        moved: &dyn Fn(usize),
    ) -> Result<Put, FileServerError>;

    /// Opens a replica for reading at any position.
    ///
    /// # Errors
    /// Any.
    fn open(&self, id: &ObjectId) -> Result<Replica, FileServerError>;

    /// As [`Self::open`], for whoever reads all of it. A replica that claims more than `longest`
    /// bytes is damaged, unread: what a rotten inode or a hostile server claims may have no end.
    ///
    /// # Errors
    /// [`FileServerError::Damaged`], or any other.
    fn open_within(&self, id: &ObjectId, longest: u64) -> Result<Replica, FileServerError> {
        let replica = self.open(id)?;
        let length = replica.length();
        if length > longest {
            let why = format!("it is {length} bytes long, and the object is no longer than {longest}");
            let (server, object) = (self.name().to_owned(), id.to_string());
            return Err(FileServerError::Damaged { server, object, why });
        }
        Ok(replica)
    }

    /// Overwrites one slot of a replica in place, and returns when that is durable. `bytes` is a
    /// whole slot; only a replica that is there and long enough to have both slots is touched,
    /// nothing else of it, and its length never changes. Several vaults may do this at once.
    ///
    /// # Errors
    /// [`FileServerError::Absent`], [`FileServerError::BadSource`] for anything but a whole slot,
    /// [`FileServerError::Damaged`] for a replica that is too short, or any other. The slot may
    /// then be torn: the other one counts.
    fn write_slot(&self, id: &ObjectId, side: Side, bytes: &[u8]) -> Result<(), FileServerError>;

    /// Removes a replica durably. One that is not there is removed already.
    ///
    /// # Errors
    /// Any but absence.
    fn remove(&self, id: &ObjectId) -> Result<(), FileServerError>;

    /// The ids that start with `prefix` and come after `after`, in order, at most `limit`.
    ///
    /// # Errors
    /// Any.
    fn list(
        &self,
        prefix: &str,
        after: Option<&ObjectId>,
        limit: usize,
    ) -> Result<Vec<ObjectId>, FileServerError> {
        self.list_watched(prefix, after, limit, &|| ())
    }

    /// As [`Self::list`]; calls `progress` whenever it gets on, so that a caller can tell slow from
    /// stuck.
    ///
    /// # Errors
    /// Any.
    fn list_watched(
        &self,
        prefix: &str,
        after: Option<&ObjectId>,
        limit: usize,
        progress: &dyn Fn(),
    ) -> Result<Vec<ObjectId>, FileServerError>;

    /// Takes a bad replica out of reach and keeps it for the operator. What was set aside is read,
    /// unless it claims more than `longest` bytes: if it is whole, because another vault had healed it
    /// meanwhile, it is put back. Calls `progress` as [`Self::list_watched`] does.
    ///
    /// # Errors
    /// Any.
    fn quarantine(&self, id: &ObjectId, longest: u64, progress: &dyn Fn()) -> Result<(), FileServerError>;

    /// The replicas in quarantine, whoever set them aside, in no order. Calls `progress` as
    /// [`Self::list_watched`] does.
    ///
    /// # Errors
    /// Any.
    fn list_set_aside(&self, progress: &dyn Fn()) -> Result<Vec<SetAside>, FileServerError>;

    /// Removes what was set aside, durably. What is not there is removed already.
    ///
    /// # Errors
    /// Any but absence.
    fn remove_set_aside(&self, aside: &SetAside) -> Result<(), FileServerError>;

    /// Removes temporary files that nobody writes any more: this vault's own of a previous
    /// life, and anybody's that have not been touched for `age`. Returns how many.
    ///
    /// # Errors
    /// Any.
    fn collect_temporaries(&self, now: SystemTime, age: Duration) -> Result<usize, FileServerError>;

    /// Bytes that may still be written in the right place.
    ///
    /// # Errors
    /// Any.
    fn free_space(&self) -> Result<u64, FileServerError>;

    /// The same, whichever place stands there.
    ///
    /// # Errors
    /// Any but that it is not ours.
    fn free_space_anywhere(&self) -> Result<u64, FileServerError>;

    /// A note: a small file of ours beside the objects. `None` if there is none of this name, in
    /// the right place; at most `MAX_NOTE` bytes and one more of a longer one.
    ///
    /// # Errors
    /// Any.
    fn read_note(&self, name: &str) -> Result<Option<Vec<u8>>, FileServerError>;

    /// Writes a note of at most `MAX_NOTE` bytes in place of what it held, and returns when it
    /// is durable. What has its name and cannot be replaced is set aside. A write that fails or is broken off may leave the old bytes, the new ones,
    /// torn ones or none: not every kind can replace a file in one step. Callers seal what they
    /// write and alternate between two names.
    ///
    /// # Errors
    /// Any.
    fn write_note(&self, name: &str, bytes: &[u8]) -> Result<(), FileServerError>;
}

/// Reads up to the buffer's length at a position; 0 is the end.
pub type ReadAt = Box<dyn FnMut(&mut [u8], u64) -> Result<usize, FileServerError> + Send>;

/// A whole object, opened for reading: a replica, or a spool file on its way to become one.
/// Its `io::Error`s carry the [`FileServerError`] inside.
pub struct Replica {
    length: u64,
    position: u64,
    read_at: ReadAt,
}

impl Replica {
    /// An object of `length` bytes that `read_at` reads.
    #[must_use]
    pub fn new(length: u64, read_at: ReadAt) -> Self {
        Self { length, position: 0, read_at }
    }

    /// An object that is in memory.
    #[must_use]
    pub fn of_bytes(bytes: Arc<Vec<u8>>) -> Self {
        let length = bytes.len() as u64;
        let read_at = move |buffer: &mut [u8], at: u64| {
            let rest = usize::try_from(at).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
            let count = rest.len().min(buffer.len());
            buffer[..count].copy_from_slice(&rest[..count]);
            Ok(count)
        };
        Self::new(length, Box::new(read_at))
    }

    /// Bytes altogether, both slots included.
    #[must_use]
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// Reads up to the buffer's length at a position; 0 is the end.
    ///
    /// # Errors
    /// The file server's, or the spool's.
    pub fn read_at(&mut self, buffer: &mut [u8], position: u64) -> Result<usize, FileServerError> {
        (self.read_at)(buffer, position)
    }

    /// Calls `progress` with every successful read's bytes, so that a caller can tell slow from stuck.
    #[must_use]
    pub fn watched(mut self, progress: impl Fn(usize) + Send + 'static) -> Self {
        let mut inner = self.read_at;
        self.read_at = Box::new(move |buffer, position| {
            let count = inner(buffer, position)?;
            progress(count);
            Ok(count)
        });
        self
    }
}

impl Read for Replica {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = (self.read_at)(buffer, self.position).map_err(std::io::Error::other)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for Replica {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let target = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
            SeekFrom::End(offset) => self.length.checked_add_signed(offset),
        };
        self.position = target.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::InvalidInput))?;
        Ok(self.position)
    }
}
