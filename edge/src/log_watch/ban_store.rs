//! Bans, leases and positions that survive a restart, in one SQLite file. Must not know their
//! cause.
//!
//! The engine never waits: [`BanStore::save`] puts a change into a bounded queue, and a thread of
//! its own writes what is queued in one transaction, at most 50 ms later. A program that is killed
//! loses those 50 ms; a machine that loses power also what the system had not yet written to its
//! disk, which is asked for after five seconds without changes. What cannot be written (full
//! disk, full queue) is counted and told, and the ledger is asked to hand in everything again.

mod compact;
mod newest;
mod queue;
mod rows;
mod schema;
mod writer;

#[cfg(test)]
mod stories;

pub use rows::fuzz_rows;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use ipnet::IpNet;

use super::tail::Position;
use queue::Queue;
use writer::Writer;

/// History is kept for so long after a ban's end; it makes the next ban longer.
pub const KEEP: Duration = Duration::from_secs(90 * 86_400);
/// Evidence kept with one ban: lines.
pub const EVIDENCE_LINES: usize = 10;
/// And bytes of each line; the rest is cut off.
pub const EVIDENCE_BYTES: usize = 512;

/// A ban, over or not. Times are since the UNIX epoch and kept to the microsecond.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredBan {
    /// Whom; a network's later ban takes the earlier one's place.
    pub network: IpNet,
    /// Which jail decided.
    pub jail: String,
    /// When it began.
    pub since: Duration,
    /// When it ends or has ended.
    pub until: Duration,
    /// Offences that led to it.
    pub offences: u32,
    /// Which ban of this network it is; 0 was forgiven.
    pub times: u16,
    /// It is slowed down, not shut out.
    pub throttle: bool,
    /// For operators; at most 512 bytes are kept.
    pub reason: String,
}

/// An agreed penetration test: who is tested for and not banned meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// From [`BanStore::lease_id`].
    pub id: i64,
    /// Who tests.
    pub network: IpNet,
    /// The customer's word for it.
    pub ticket: String,
    /// When it began.
    pub since: Duration,
    /// When it ends at the latest.
    pub until: Duration,
    /// When it was ended early.
    pub ended: Option<Duration>,
}

/// A ban that a lease has prevented.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WouldBan {
    /// The lease's number.
    pub lease: i64,
    /// Who would have been banned.
    pub network: IpNet,
    /// By which jail.
    pub jail: String,
    /// When.
    pub at: Duration,
    /// The last line that led to it; at most 512 bytes are kept.
    pub line: Box<[u8]>,
}

/// A line that led to a ban.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// When the ban began.
    pub at: Duration,
    /// Which jail decided.
    pub jail: String,
    /// As it was read, at most 512 bytes of it.
    pub line: Box<[u8]>,
}

/// What shall be remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A ban, which takes the place of the network's last one, and the lines that led to it.
    Ban(StoredBan, Vec<Box<[u8]>>),
    /// A ban is over early.
    End {
        /// Whose.
        network: IpNet,
        /// Since when.
        at: Duration,
        /// It counts no more as an earlier ban; nor does one that was over before.
        forgiven: bool,
    },
    /// All bans are forgotten, and that there were any.
    Clear,
    /// Banning is off, until when; `None`: it is on.
    Off(Option<Duration>),
    /// A lease, new or changed.
    Lease(Lease),
    /// A lease has prevented a ban.
    WouldBan(WouldBan),
    /// How far the logs have been read; takes the place of all earlier positions.
    Positions(Vec<Position>),
    /// All the ledger knows, active and history: the answer to [`BanStore::needs_resync`].
    Replace(Vec<StoredBan>),
}

/// What an earlier run has left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Active ones, and those that ended within the last [`KEEP`].
    pub bans: Vec<StoredBan>,
    /// Banning is off until then.
    pub off: Option<Duration>,
    /// All that are not older than [`KEEP`].
    pub leases: Vec<Lease>,
    /// How far the logs had been read.
    pub positions: Vec<Position>,
}

/// Why bans cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum BanStoreError {
    /// The file cannot be made.
    #[error(
        "ban store: {file}: {source}; make its folder and give it to edge's user; until then bans end with edge"
    )]
    Create {
        /// The file.
        file: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// SQLite refuses.
    #[error("ban store: {file}: {source}; check the disk and the file's owner")]
    Database {
        /// The file.
        file: PathBuf,
        /// SQLite's reason.
        #[source]
        source: rusqlite::Error,
    },
    /// A newer program has written it.
    #[error(
        "ban store: {file}: schema {found} is newer than this program's {known}; install the newer program, or name another file"
    )]
    Newer {
        /// The file.
        file: PathBuf,
        /// What the file says.
        found: i64,
        /// What this program can read.
        known: i64,
    },
    /// Another program's database must not be touched.
    #[error("ban store: {file}: is another program's database; name another file")]
    Foreign {
        /// The file.
        file: PathBuf,
    },
    /// No thread could be started.
    #[error("ban store: its thread does not start: {source}; raise the limit of tasks")]
    Thread {
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
}

/// The open file and its thread. Dropped without [`close`](Self::close), it still writes what is
/// queued.
pub struct BanStore {
    file: PathBuf,
    queue: Arc<Queue>,
    lease: AtomicI64,
    thread: Option<JoinHandle<()>>,
}

impl BanStore {
    /// Opens or makes the file (mode 0600). A damaged one is moved aside as `*.damaged-<n>` and a
    /// fresh one begun; [`faults`](Self::faults) tells so.
    ///
    /// # Errors
    /// A file that may not be used, or a newer program's.
    pub fn open(file: &Path, now: Duration) -> Result<(Self, Restored), BanStoreError> {
        let queue = Arc::new(Queue::new());
        let opened = schema::open(file, now)?;
        if let Some(damage) = opened.damage {
            queue.tell(damage);
        }
        let lease =
            opened.restored.leases.iter().map(|lease| lease.id).max().unwrap_or(0).max(opened.last_lease);
        let rows = (opened.rows, opened.restored.bans.len());
        let writer = Writer::new(file.to_owned(), opened.connection, rows, Arc::clone(&queue), now);
        let thread = std::thread::Builder::new().name("ban-store".to_owned()).spawn(move || writer.run());
        let thread = Some(thread.map_err(|source| BanStoreError::Thread { source })?);
        Ok((Self { file: file.to_owned(), queue, lease: AtomicI64::new(lease), thread }, opened.restored))
    }

    /// Why [`BanStore::open`] would fail now, as far as can be told without opening the file, which
    /// a running edge may have.
    #[must_use]
    pub fn fault(file: &Path) -> Option<BanStoreError> {
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let probe = folder.join(format!(".edge-bans-{}", std::process::id()));
        let made = std::fs::File::options().write(true).create_new(true).open(&probe);
        let source = match made.and_then(|_| std::fs::remove_file(&probe)) {
            Err(error) => Some(error),
            Ok(()) if file.is_dir() => Some(std::io::Error::from(std::io::ErrorKind::IsADirectory)),
            Ok(()) => None,
        };
        source.map(|source| BanStoreError::Create { file: file.to_owned(), source })
    }

    /// Remembers a change soon. Never waits for the disk.
    pub fn save(&self, change: Change) {
        self.queue.push(change);
    }

    /// A number for a new lease.
    pub fn lease_id(&self) -> i64 {
        self.lease.fetch_add(1, Ordering::Relaxed).saturating_add(1)
    }

    /// The lines that led to the bans of exactly this network, newest ban first, as far as they
    /// have been written.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn evidence(&self, network: IpNet) -> Result<Vec<Evidence>, BanStoreError> {
        schema::evidence(&self.file, network)
    }

    /// What a lease has prevented, oldest first, as far as it has been written.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn would_bans(&self, lease: i64) -> Result<Vec<WouldBan>, BanStoreError> {
        schema::would_bans(&self.file, lease)
    }

    /// Waits until everything saved so far is written, at most `deadline` long. `false`: it is
    /// not, or some of it was lost.
    #[must_use]
    pub fn flush(&self, deadline: Duration) -> bool {
        self.queue.flush(deadline)
    }

    /// Whether changes were lost and can be written again: save [`Change::Replace`] with all bans.
    /// Says so once.
    #[must_use]
    pub fn needs_resync(&self) -> bool {
        self.queue.take_resync()
    }

    /// What is wrong or was lost, for status.
    #[must_use]
    pub fn faults(&self) -> Option<String> {
        self.queue.faults()
    }

    /// Changes lost since the start because the queue or the disk was full.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.queue.lost()
    }

    /// Writes what is queued and ends the thread.
    pub fn close(self) {
        drop(self);
    }
}

impl Drop for BanStore {
    fn drop(&mut self) {
        self.queue.close();
        if let Some(thread) = self.thread.take() {
            // A panic in it has been told by the panic hook; there is nothing to add.
            let _ended = thread.join();
        }
    }
}
