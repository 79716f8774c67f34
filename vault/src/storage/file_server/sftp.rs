//! A file server that is reached by SFTP (version 3 with OpenSSH's fsync and statvfs; both may
//! be missing). Knows the write protocol and which requests it takes; not what the bytes mean.
//!
//! Data sessions carry what reads, writes and lists; one control session of its own carries
//! what is short, so that an operation that holds a replica can still set it aside.
//!
//! A replica is written under a temporary name, flushed, closed, measured, renamed without
//! overwriting, and its folder flushed. OpenSSH's RENAME never overwrites. That of some other
//! servers does: the name is the content's hash, so what is overwritten is the same object.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::{FileServer, FileServerError, Put, Replica, SetAside, layout, verify};
use crate::storage::envelope::{EnvelopeError, Side};
use crate::storage::object::ObjectId;
use crate::storage::random_hex;
use crate::storage::step::{Step, Steps};

mod abreast;
mod ahead;
mod aside;
mod blame;
mod enquiry;
mod flushing;
mod in_place;
mod link;
mod listing;
mod long;
mod message;
mod pipeline;
mod place;
mod pool;
mod publish;
mod reader;
mod settings;
mod short;
mod trouble;
mod trust;
mod writer;

#[cfg(test)]
#[path = "../../../../tests/src/ports.rs"]
#[expect(unreachable_pub, reason = "the harness' own file")]
mod ports;
#[cfg(test)]
mod proftpd;
#[cfg(test)]
mod sshd;
#[cfg(test)]
mod tests;

pub use enquiry::fuzz_listing;
pub use settings::{Login, MOST_SESSIONS, SESSIONS, SftpSettings, parse_address};

use blame::Blame;
use link::{Flushed, Link, Refusal};
use place::Place;
use pool::{Lane, Pool};
use reader::Reader;
use trouble::{Failed, Kind, Trouble};

/// A bare "failure" means a full disk where less than this is free.
const NO_SPACE: u64 = 1 << 20;

/// See the module.
pub(super) struct Sftp {
    name: String,
    address: String,
    root: PathBuf,
    own: String,
    steps: Steps,
    timeout: Duration,
    sessions: usize,
    data: Arc<Pool>,
    control: Arc<Pool>,
    place: Arc<Place>,
    /// Folders whose own names this process has made durable: another process may have made
    /// a folder and died before it flushed the parent.
    durable: Mutex<HashSet<PathBuf>>,
    /// Temporary files that this process writes just now.
    live: Mutex<HashSet<String>>,
    /// Has it been told that this server cannot flush?
    told_unflushed: AtomicBool,
    /// Has it been told that this server is listed slowly?
    told_slow: AtomicBool,
}

impl Sftp {
    /// The folder `root` on the server of `settings`, used by the vault of name `own`. Every
    /// request is bounded by `timeout`. Connects when first used.
    pub(super) fn new(
        name: &str,
        root: &Path,
        settings: &SftpSettings,
        own: &str,
        timeout: Duration,
        steps: Steps,
    ) -> Self {
        Self {
            name: name.to_owned(),
            address: settings.address(),
            root: root.to_owned(),
            own: own.to_owned(),
            steps,
            timeout,
            sessions: settings.sessions,
            data: Pool::new(settings.clone(), timeout, settings.sessions),
            control: Pool::new(settings.clone(), timeout, 1),
            place: Arc::new(Place::new(name, root)),
            durable: Mutex::default(),
            live: Mutex::default(),
            told_unflushed: AtomicBool::new(false),
            told_slow: AtomicBool::new(false),
        }
    }

    /// Connects, logs in and writes a file that goes again: would it serve?
    ///
    /// # Errors
    /// Why not.
    pub(super) fn try_out(&self) -> Result<(), FileServerError> {
        let probe = self.root.join(format!(".vault-check-{}", random_hex()));
        let tried = self.ask(&self.control, |link| {
            link.stat(&self.root)?;
            let file = link.create(&probe)?;
            link.close(file)?;
            link.unlink(&probe)
        });
        match tried {
            Err(Failed::Trouble(trouble)) if trouble.kind == Kind::Missing => Err(FileServerError::NoEntry {
                server: self.name.clone(),
                address: self.address.clone(),
                why: format!("{} is no folder there; make it and give it to that user", self.root.display()),
            }),
            other => other.map_err(|failed| self.fail(self.root.display(), failed)),
        }
    }

    /// Asks on a session of `pool`; once more on another where an idle one turns out dead.
    /// Questions only, and what may be done twice.
    fn ask<T>(
        &self,
        pool: &Arc<Pool>,
        mut question: impl FnMut(&mut Link) -> Result<T, Trouble>,
    ) -> Result<T, Failed> {
        let (answer, lane) = begin(pool, |link| question(link).map_err(Failed::Trouble))?;
        lane.give_back();
        Ok(answer)
    }

    /// As [`Self::ask`], on a data session on which the place's marker has been seen lately;
    /// the session stays with the caller.
    fn ask_in_place<T>(
        &self,
        mut question: impl FnMut(&mut Link) -> Result<T, Trouble>,
    ) -> Result<(T, Lane), Failed> {
        begin(&self.data, |link| {
            self.place.see(link)?;
            question(link).map_err(Failed::Trouble)
        })
    }

    /// Is it still the place that was attached?
    fn check_place(&self) -> Result<(), FileServerError> {
        let checked = begin(&self.control, |link| self.place.check(link));
        let ((), lane) = checked.map_err(|failed| self.fail("marker", failed))?;
        lane.give_back();
        Ok(())
    }

    /// "Not there" counts only in the right place.
    fn absent(&self, id: &ObjectId) -> FileServerError {
        match self.check_place() {
            Ok(()) => FileServerError::Absent { server: self.name.clone(), object: id.to_string() },
            Err(error) => error,
        }
    }

    /// Opens a replica; `None` where there is none.
    fn find(&self, id: &ObjectId) -> Result<Option<Replica>, FileServerError> {
        self.find_at(layout::replica_path(&self.root, id), id)
    }

    fn find_at(&self, path: PathBuf, id: &ObjectId) -> Result<Option<Replica>, FileServerError> {
        let opened = self.ask_in_place(|link| {
            let mut file = link.open(&path)?;
            let facts = link.facts(&mut file)?;
            Ok((file, facts.size.unwrap_or_default()))
        });
        let ((file, length), lane) = match opened {
            Ok(opened) => opened,
            Err(Failed::Trouble(trouble)) if trouble.kind == Kind::Missing => return Ok(None),
            Err(failed) => return Err(self.blame().of(id, failed)),
        };
        let mut reader = Reader::new(Arc::clone(&self.data), lane, file, path, length);
        let (blame, id) = (self.blame(), *id);
        let read = move |buffer: &mut [u8], position: u64| {
            reader.read_at(buffer, position).map_err(|failed| blame.of(&id, failed))
        };
        Ok(Some(Replica::new(length, Box::new(read))))
    }

    /// Is a whole replica there, of `length` bytes at most? One that is damaged or cannot be read is
    /// set aside.
    fn whole(&self, id: &ObjectId, length: u64, moved: &dyn Fn(usize)) -> Result<bool, FileServerError> {
        let damage = |error| match error {
            EnvelopeError::Beneath(error) => unwrap_or(error, &self.name, &self.address, id),
            damage => {
                let (server, object) = (self.name.clone(), id.to_string());
                FileServerError::Damaged { server, object, why: damage.reason() }
            }
        };
        let found = self.find(id).and_then(|replica| {
            replica.map_or(Ok(false), |replica| {
                verify(replica, id, length, moved).map(|()| true).map_err(damage)
            })
        });
        match found {
            Err(error) if error.shows().is_some() => {
                tracing::error!("{error}; quarantined");
                match self.set_aside(id, length, moved) {
                    // The other vault was faster.
                    Err(FileServerError::Absent { .. }) | Ok(()) => Ok(false),
                    Err(error) => Err(error),
                }
            }
            other => other,
        }
    }

    /// Writes the temporary file, flushes and measures it, and gives it its final name.
    fn write(
        &self,
        id: &ObjectId,
        source: &mut Replica,
        temporary: &Path,
        moved: &dyn Fn(usize),
    ) -> Result<Put, FileServerError> {
        let mut short = None;
        if Self::is_short(source) {
            let bytes = self.read_short(id, source)?;
            if let Some(put) = self.write_short(id, &bytes, temporary, moved)? {
                return Ok(put);
            }
            if self.whole(id, source.length(), moved)? {
                return self.settle(id);
            }
            short = Some(Replica::of_bytes(Arc::new(bytes)));
        }
        let source = short.as_mut().unwrap_or(source);
        self.write_long(id, source, temporary, moved)
    }

    fn note(&self, flushed: Flushed, step: impl FnOnce() -> Step) {
        match flushed {
            Flushed::Yes if cfg!(feature = "without-fsync") => {}
            Flushed::Yes => self.steps.reach(step),
            Flushed::Unknown if self.told_unflushed.swap(true, Ordering::Relaxed) => {}
            Flushed::Unknown => tracing::warn!(
                server = %self.name,
                "cannot flush files or folders (no fsync@openssh.com, or not for folders): \
                 a power failure there may cost what was written last; healed from the other replica"
            ),
        }
    }

    /// Removes a temporary file; one that stays is collected later.
    fn discard(&self, temporary: &Path) {
        self.steps.reach(|| Step::Unlink(temporary.to_owned()));
        match self.ask(&self.control, |link| link.unlink(temporary)) {
            Err(Failed::Trouble(trouble)) if trouble.kind == Kind::Missing => {}
            Err(failed) => tracing::warn!(
                "{}; the temporary file is collected later",
                self.fail(temporary.display(), failed)
            ),
            Ok(()) => {}
        }
    }

    /// Sorts what went wrong. A bare "failure" is a full disk where there is no space.
    fn fail(&self, object: impl ToString, failed: Failed) -> FileServerError {
        let failed = match failed {
            Failed::Trouble(trouble) if trouble.kind == Kind::Failure && self.is_full() => {
                Failed::Trouble(Trouble::new(Kind::Full, "failure, and the disk is full"))
            }
            Failed::Place(why) => return self.place.not_ours(why),
            other => other,
        };
        wrap(&self.name, &self.address, &object.to_string(), failed)
    }

    /// As [`Self::fail`], where a bare "failure" may be one replica's own.
    fn fail_on_one(&self, id: &ObjectId, failed: Failed) -> FileServerError {
        match failed {
            Failed::Trouble(trouble) if trouble.kind == Kind::Failure && !self.is_full() => {
                self.blame().of(id, Failed::Trouble(trouble))
            }
            other => self.fail(id, other),
        }
    }

    /// As [`Self::fail`], where a bare "failure" may be that of a disk which still can be read.
    fn fail_to_write(&self, id: &ObjectId, failed: Failed) -> FileServerError {
        match failed {
            Failed::Trouble(trouble) if trouble.kind == Kind::Failure && !self.is_full() => {
                self.blame().of_writing(id, Failed::Trouble(trouble))
            }
            other => self.fail(id, other),
        }
    }

    fn blame(&self) -> Blame {
        Blame {
            server: self.name.clone(),
            address: self.address.clone(),
            place: Arc::clone(&self.place),
            control: Arc::clone(&self.control),
        }
    }

    fn is_full(&self) -> bool {
        let space = self.ask(&self.control, |link| link.space(&self.root));
        matches!(space, Ok(Some((bytes, names))) if bytes < NO_SPACE || names == 0)
    }
}

impl FileServer for Sftp {
    fn name(&self) -> &str {
        &self.name
    }

    fn sessions(&self) -> usize {
        self.sessions
    }

    fn attach(&self, expected: Option<&str>, may_claim: bool) -> Result<String, FileServerError> {
        let attached = begin(&self.control, |link| {
            let found = self.place.attach(link, expected, may_claim, &self.own)?;
            Ok(found)
        });
        let ((found, flushed), lane) = attached.map_err(|failed| match failed {
            Failed::Trouble(trouble) if trouble.kind == Kind::Missing => {
                self.place.not_ours("there is no such folder on the server")
            }
            failed => self.fail("marker", failed),
        })?;
        lane.give_back();
        self.note(flushed, || Step::FolderSynced(self.root.clone()));
        Ok(found)
    }

    fn marker(&self) -> Result<Option<String>, FileServerError> {
        let read = begin(&self.control, |link| self.place.read(link));
        let (found, lane) = read.map_err(|failed| self.fail("marker", failed))?;
        lane.give_back();
        Ok(found)
    }

    fn put_watched(
        &self,
        id: &ObjectId,
        source: &mut Replica,
        moved: &dyn Fn(usize),
    ) -> Result<Put, FileServerError> {
        // With a short one it is looked for on the way.
        if !Self::is_short(source) && self.whole(id, source.length(), moved)? {
            return self.settle(id);
        }
        let name = format!("{}~{}", self.own, random_hex());
        let temporary = self.root.join("tmp").join(&name);
        lock(&self.live).insert(name.clone());
        let done = self.write(id, source, &temporary, moved);
        if let Err(error) = &done {
            // A folder may have gone under us (restored, cleaned up): look again next time.
            self.forget_folders(&layout::replica_path(&self.root, id));
            let hangs = |source: &std::io::Error| source.kind() == std::io::ErrorKind::TimedOut;
            if !matches!(error, FileServerError::Away { source, .. } if hangs(source)) {
                self.discard(&temporary);
            }
        }
        lock(&self.live).remove(&name);
        match done {
            Err(error @ FileServerError::Away { .. }) => Err(self.place_or(error)),
            other => other,
        }
    }

    fn open(&self, id: &ObjectId) -> Result<Replica, FileServerError> {
        self.find(id)?.ok_or_else(|| self.absent(id))
    }

    fn write_slot(&self, id: &ObjectId, side: Side, bytes: &[u8]) -> Result<(), FileServerError> {
        self.overwrite_slot(id, side, bytes)
    }

    fn read_note(&self, name: &str) -> Result<Option<Vec<u8>>, FileServerError> {
        self.whole_note(name)
    }

    fn write_note(&self, name: &str, bytes: &[u8]) -> Result<(), FileServerError> {
        self.overwrite_note(name, bytes)
    }

    fn remove(&self, id: &ObjectId) -> Result<(), FileServerError> {
        let path = layout::replica_path(&self.root, id);
        self.steps.reach(|| Step::Unlink(path.clone()));
        let removed = self.ask(&self.control, |link| {
            link.unlink(&path)?;
            self.flush_parent(link, &path)
        });
        match removed {
            Err(Failed::Trouble(trouble)) if trouble.kind == Kind::Missing => self.check_place(),
            other => other.map_err(|failed| self.fail_to_write(id, failed)),
        }
    }

    fn list_watched(
        &self,
        prefix: &str,
        after: Option<&ObjectId>,
        limit: usize,
        progress: &dyn Fn(),
    ) -> Result<Vec<ObjectId>, FileServerError> {
        let after = after.map(ToString::to_string).unwrap_or_default();
        self.ids(prefix, &after, limit, progress).map_err(|failed| self.blame().of_part("list", failed))
    }

    fn quarantine(&self, id: &ObjectId, longest: u64, progress: &dyn Fn()) -> Result<(), FileServerError> {
        self.set_aside(id, longest, &|_| progress())
    }

    fn list_set_aside(&self, progress: &dyn Fn()) -> Result<Vec<SetAside>, FileServerError> {
        self.all_set_aside(progress)
    }

    fn remove_set_aside(&self, aside: &SetAside) -> Result<(), FileServerError> {
        self.remove_aside(aside)
    }

    fn collect_temporaries(&self, now: SystemTime, age: Duration) -> Result<usize, FileServerError> {
        self.check_place()?;
        let folder = self.root.join("tmp");
        let entries = self.ask(&self.control, |link| link.entries(&folder));
        let mut removed = 0;
        for (name, facts) in entries.map_err(|failed| self.blame().of_part("list tmp", failed))? {
            let own = name.split_once('~').is_some_and(|(vault, _)| vault == self.own);
            let touched = facts.mtime.map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
            let stale =
                touched.is_some_and(|touched| now.duration_since(touched).is_ok_and(|idle| idle >= age));
            if (own || stale)
                && !lock(&self.live).contains(&name)
                && self.ask(&self.control, |link| link.unlink(&folder.join(&name))).is_ok()
            {
                removed += 1;
            }
        }
        Ok(removed)
    }

    fn free_space(&self) -> Result<u64, FileServerError> {
        self.check_place()?;
        self.free_space_anywhere()
    }

    /// A server that cannot say has, as far as anybody knows, space without end.
    fn free_space_anywhere(&self) -> Result<u64, FileServerError> {
        let space = self.ask(&self.control, |link| link.space(&self.root));
        Ok(space.map_err(|failed| self.fail("free space", failed))?.map_or(u64::MAX, |(bytes, _)| bytes))
    }
}

impl Sftp {
    /// An unmounted or exchanged place makes all kinds of trouble: name the cause.
    fn place_or(&self, error: FileServerError) -> FileServerError {
        match &error {
            FileServerError::Away { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                self.check_place().err().unwrap_or(error)
            }
            _ => error,
        }
    }
}

/// Puts a question on a session of `pool`, which stays with the caller; once more on another where
/// an idle one turns out dead.
fn begin<T>(
    pool: &Arc<Pool>,
    mut question: impl FnMut(&mut Link) -> Result<T, Failed>,
) -> Result<(T, Lane), Failed> {
    let mut again = true;
    loop {
        let mut lane = pool.borrow(None).map_err(Failed::Refused)?;
        match question(&mut lane.link) {
            Ok(answer) => return Ok((answer, lane)),
            Err(Failed::Trouble(trouble)) if trouble.kind == Kind::Lost && lane.reused && again => {
                again = false;
            }
            Err(failed) => {
                if !failed.spoils_session() {
                    lane.give_back();
                }
                return Err(failed);
            }
        }
    }
}

/// Sorts the reasons into those that call for different answers.
fn wrap(server: &str, address: &str, object: &str, failed: Failed) -> FileServerError {
    let (server, object) = (server.to_owned(), object.to_owned());
    match failed {
        Failed::Refused(Refusal::NoEntry(why)) => {
            FileServerError::NoEntry { server, address: address.to_owned(), why }
        }
        Failed::Refused(Refusal::Away(source)) => FileServerError::Away { server, object, source },
        Failed::Place(why) => FileServerError::NotOurs { server, path: PathBuf::from(address), why },
        Failed::Trouble(trouble) => match trouble.kind {
            Kind::Full => FileServerError::Full { server, object, source: trouble.into_io() },
            Kind::Denied => FileServerError::Denied { server, object, source: trouble.into_io() },
            _ => FileServerError::Away { server, object, source: trouble.into_io() },
        },
    }
}

/// The file server's error that a [`Replica`]'s reader carries, or a plain one wrapped.
fn unwrap_or(error: std::io::Error, server: &str, address: &str, id: &ObjectId) -> FileServerError {
    let plain = |error| wrap(server, address, &id.to_string(), Failed::Refused(Refusal::Away(error)));
    error.downcast::<FileServerError>().unwrap_or_else(plain)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The clock that deadlines and idle sessions are measured by.
#[expect(clippy::disallowed_methods, reason = "sessions age and requests time out in real time")]
fn moment() -> Instant {
    Instant::now()
}
