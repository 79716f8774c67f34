//! A file server that is a directory on this host or on anything mounted there. Knows the
//! write protocol and what must be flushed when; not what the bytes mean.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::{FileServer, FileServerError, Put, Replica, SetAside, layout, verify};
use crate::storage::envelope::{BODY, Checker, EnvelopeError, Side, parse_slot};
use crate::storage::note::{MAX_NOTE, is_note_name};
use crate::storage::object::ObjectId;
use crate::storage::random_hex;
use crate::storage::step::{Step, Steps};

mod aside;
mod place;

use place::Place;

/// How much is written between two flushes, so that the last one is short and a hanging
/// disk is told from a slow one.
const FLUSH_EVERY: usize = 32 << 20;
const PIECE: usize = 256 * 1024;
/// Operations at once.
const SESSIONS: usize = 6;
/// How often a name that turns out taken by a damaged replica is cleared for the new one.
const TRIES: usize = 3;

/// See the module.
pub(in crate::storage) struct Directory {
    name: String,
    root: PathBuf,
    own: String,
    steps: Steps,
    place: Arc<Place>,
    /// Folders whose own names this process has made durable: another process may have made
    /// a folder and died before it flushed the parent.
    durable: Mutex<HashSet<PathBuf>>,
    /// Temporary files that this process writes just now.
    live: Mutex<HashSet<String>>,
}

impl Directory {
    /// The directory at `root`, used by the vault of name `own`.
    pub(in crate::storage) fn new(name: &str, root: &Path, own: &str, steps: Steps) -> Self {
        Self {
            name: name.to_owned(),
            root: root.to_owned(),
            own: own.to_owned(),
            steps,
            place: Arc::new(Place::new(name, root)),
            durable: Mutex::default(),
            live: Mutex::default(),
        }
    }

    fn replica_path(&self, id: &ObjectId) -> PathBuf {
        layout::replica_path(&self.root, id)
    }

    fn write_marker(&self) -> Result<String, FileServerError> {
        let place = random_hex();
        let temporary = self.root.join(format!("tmp/{}~{}", self.own, random_hex()));
        let marker = self.root.join("marker");
        let fail = wrap(&self.name, "marker");
        std::fs::create_dir_all(self.root.join("tmp")).map_err(&fail)?;
        std::fs::create_dir_all(self.root.join("quarantine")).map_err(&fail)?;
        let mut file = OpenOptions::new().write(true).create_new(true).open(&temporary).map_err(&fail)?;
        file.write_all(layout::marker(&self.name, &place).as_bytes()).map_err(&fail)?;
        self.sync_file(&file, &temporary).map_err(&fail)?;
        // Whoever links first has claimed the place; the peer may be just as far.
        let linked = match std::fs::hard_link(&temporary, &marker) {
            // Some mounts know no hard links: there the claim is made by making the file.
            Err(error) if knows_no_links(&error) => self.copy_marker(&temporary, &marker),
            other => other,
        };
        std::fs::remove_file(&temporary).map_err(&fail)?;
        match linked {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(fail(error)),
            _ => {}
        }
        self.sync_folder(&self.root).map_err(&fail)?;
        if let Some(parent) = self.root.parent() {
            self.sync_folder(parent).map_err(&fail)?;
        }
        self.place.read()?.ok_or_else(|| self.place.not_ours("its marker vanished"))
    }

    fn copy_marker(&self, temporary: &Path, marker: &Path) -> std::io::Result<()> {
        let text = std::fs::read(temporary)?;
        let mut file = OpenOptions::new().write(true).create_new(true).open(marker)?;
        file.write_all(&text)?;
        self.sync_file(&file, marker)
    }

    /// "Not there" counts only in the right place.
    fn absent(&self, id: &ObjectId) -> FileServerError {
        match self.place.check() {
            Ok(()) => FileServerError::Absent { server: self.name.clone(), object: id.to_string() },
            Err(error) => error,
        }
    }

    /// Is a whole replica there, of `length` bytes at most? One that is damaged or cannot be read is
    /// set aside.
    fn whole(&self, id: &ObjectId, length: u64, moved: &dyn Fn(usize)) -> Result<bool, FileServerError> {
        let damage = |error| match error {
            EnvelopeError::Beneath(error) => unwrap_or(error, &self.name, id),
            damage => {
                let (server, object) = (self.name.clone(), id.to_string());
                FileServerError::Damaged { server, object, why: damage.reason() }
            }
        };
        match self.open(id).and_then(|replica| verify(replica, id, length, moved).map_err(damage)) {
            Ok(()) => Ok(true),
            Err(FileServerError::Absent { .. }) => Ok(false),
            Err(error) if error.shows().is_some() => {
                tracing::error!("{error}; quarantined");
                match self.set_aside(id, length, moved) {
                    // The other vault was faster.
                    Err(FileServerError::Absent { .. }) | Ok(()) => Ok(false),
                    Err(error) => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }

    fn open_at(&self, path: &Path, id: &ObjectId) -> Result<Replica, FileServerError> {
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path);
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(self.absent(id)),
            Err(error) => return Err(self.place.blame(id, error)),
        };
        let length = file.metadata().map_err(|error| self.place.blame(id, error))?.len();
        let (place, id) = (Arc::clone(&self.place), *id);
        Ok(Replica::new(
            length,
            Box::new(move |buffer, position| {
                file.read_at(buffer, position).map_err(|error| place.blame(&id, error))
            }),
        ))
    }

    fn write_temporary(
        &self,
        id: &ObjectId,
        source: &mut Replica,
        temporary: &Path,
    ) -> Result<(), FileServerError> {
        let fail = |error| self.place.blame_write(id, error);
        self.steps.reach(|| Step::MakeFile(temporary.to_owned()));
        let mut file = self.make_temporary(temporary).map_err(fail)?;
        let mut checker = Checker::default();
        let mut piece = vec![0; PIECE];
        let mut unflushed = 0;
        let mut written = 0_u64;
        loop {
            let count = source.read(&mut piece).map_err(|error| unwrap_or(error, &self.name, id))?;
            if count == 0 {
                break;
            }
            checker.update(&piece[..count]);
            self.steps.reach(|| Step::WriteFile(temporary.to_owned()));
            file.write_all(&piece[..count]).map_err(fail)?;
            written += count as u64;
            unflushed += count;
            if unflushed >= FLUSH_EVERY {
                unflushed = 0;
                flush_data(&file).map_err(fail)?;
            }
        }
        if let Err(why) = checker.finish(id) {
            let (server, object) = (self.name.clone(), id.to_string());
            return Err(FileServerError::BadSource { server, object, why: why.to_string() });
        }
        self.sync_file(&file, temporary).map_err(fail)?;
        drop(file);
        let size = std::fs::metadata(temporary).map_err(fail)?.len();
        if size != written {
            let (server, object) = (self.name.clone(), id.to_string());
            let why = format!("{written} bytes were written and {size} are there");
            return Err(FileServerError::Damaged { server, object, why });
        }
        Ok(())
    }

    /// Makes a temporary file. A backup may have left its folder out: then it is made again, in the
    /// right place only.
    fn make_temporary(&self, path: &Path) -> std::io::Result<File> {
        let open = || OpenOptions::new().write(true).create_new(true).mode(0o640).open(path);
        match open() {
            Err(error) if error.kind() == ErrorKind::NotFound && self.place.check().is_ok() => {
                std::fs::create_dir(layout::temporaries(&self.root))?;
                open()
            }
            other => other,
        }
    }

    /// Gives the finished file of `length` bytes its final name without overwriting, durably. What has
    /// that name already counts if it is whole.
    fn publish(
        &self,
        id: &ObjectId,
        length: u64,
        temporary: &Path,
        moved: &dyn Fn(usize),
    ) -> Result<Put, FileServerError> {
        let path = self.replica_path(id);
        for _ in 0..TRIES {
            if self.name_finally(temporary, &path).map_err(|error| self.place.blame_write(id, error))? {
                return Ok(Put::Written);
            }
            if self.whole(id, length, moved)? {
                return self.settle(id);
            }
        }
        let why = "a damaged replica takes its name again and again".to_owned();
        Err(FileServerError::Damaged { server: self.name.clone(), object: id.to_string(), why })
    }

    /// Makes a replica that is there already as durable as a new one: whoever wrote it may have died
    /// before it was flushed.
    fn settle(&self, id: &ObjectId) -> Result<Put, FileServerError> {
        let path = self.replica_path(id);
        let flushed = File::open(&path).and_then(|file| self.sync_file(&file, &path));
        let named = flushed.and_then(|()| self.make_folders(&path));
        let synced = named.and_then(|()| path.parent().map_or(Ok(()), |folder| self.sync_folder(folder)));
        synced.map_err(|error| self.place.blame_write(id, error))?;
        Ok(Put::Verified)
    }

    /// `false`: something else has the name. A folder that was there may have gone under us
    /// (restored, cleaned up): then it is made again.
    fn name_finally(&self, temporary: &Path, path: &Path) -> std::io::Result<bool> {
        match self.name_in_folders(temporary, path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.forget_folders(path);
                self.name_in_folders(temporary, path)
            }
            other => other,
        }
    }

    fn name_in_folders(&self, temporary: &Path, path: &Path) -> std::io::Result<bool> {
        self.make_folders(path)?;
        self.steps.reach(|| Step::Link(temporary.to_owned(), path.to_owned()));
        match std::fs::hard_link(temporary, path) {
            // The other vault was first, or somebody copies something there by hand.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(false),
            // Some mounts know no hard links. The name is the content's hash, so what rename
            // might overwrite is the same object.
            Err(error) if knows_no_links(&error) => {
                std::fs::rename(temporary, path)?;
            }
            other => other?,
        }
        if let Some(folder) = path.parent() {
            self.sync_folder(folder)?;
        }
        Ok(true)
    }

    /// Makes `ab` and `ab/cd` above `path` and flushes the folder that holds each name.
    fn make_folders(&self, path: &Path) -> std::io::Result<()> {
        let Some(inner) = path.parent() else { return Ok(()) };
        let Some(outer) = inner.parent() else { return Ok(()) };
        for (folder, parent) in [(outer, self.root.as_path()), (inner, outer)] {
            if lock(&self.durable).contains(folder) {
                continue;
            }
            self.steps.reach(|| Step::MakeFolder(folder.to_owned()));
            match std::fs::create_dir(folder) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                other => other?,
            }
            self.sync_folder(parent)?;
            lock(&self.durable).insert(folder.to_owned());
        }
        Ok(())
    }

    fn note_path(&self, name: &str) -> Result<PathBuf, FileServerError> {
        if !is_note_name(name) {
            return Err(self.bad_note(name, "that is no note's name"));
        }
        Ok(self.root.join("notes").join(name))
    }

    fn bad_note(&self, name: &str, why: &str) -> FileServerError {
        let (server, object) = (self.name.clone(), name.to_owned());
        FileServerError::BadSource { server, object, why: why.to_owned() }
    }

    /// Puts a small file in another's place, durably, in one step.
    fn replace(&self, temporary: &Path, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
        let folder = self.root.join("notes");
        if !folder.is_dir() {
            self.steps.reach(|| Step::MakeFolder(folder.clone()));
            std::fs::create_dir_all(&folder)?;
            self.sync_folder(&self.root)?;
        }
        self.steps.reach(|| Step::MakeFile(temporary.to_owned()));
        let mut file = self.make_temporary(temporary)?;
        self.steps.reach(|| Step::WriteFile(temporary.to_owned()));
        file.write_all(bytes)?;
        self.sync_file(&file, temporary)?;
        self.steps.reach(|| Step::Rename(temporary.to_owned(), path.to_owned()));
        std::fs::rename(temporary, path)?;
        self.sync_folder(&folder)
    }

    fn forget_folders(&self, path: &Path) {
        let mut durable = lock(&self.durable);
        for folder in path.ancestors().skip(1).take(2) {
            durable.remove(folder);
        }
    }

    fn sync_file(&self, file: &File, path: &Path) -> std::io::Result<()> {
        flush(file)?;
        if !cfg!(feature = "without-fsync") {
            self.steps.reach(|| Step::FileSynced(path.to_owned()));
        }
        Ok(())
    }

    fn sync_folder(&self, folder: &Path) -> std::io::Result<()> {
        flush(&File::open(folder)?)?;
        if !cfg!(feature = "without-fsync") {
            self.steps.reach(|| Step::FolderSynced(folder.to_owned()));
        }
        Ok(())
    }
}

impl FileServer for Directory {
    fn name(&self) -> &str {
        &self.name
    }

    fn sessions(&self) -> usize {
        SESSIONS
    }

    fn attach(&self, expected: Option<&str>, may_claim: bool) -> Result<String, FileServerError> {
        let recognised = layout::recognise(self.place.read()?, expected, may_claim);
        let found = match recognised.map_err(|why| self.place.not_ours(why))? {
            Some(found) => found,
            None => self.write_marker()?,
        };
        self.place.attached(&found);
        // A backup may have left it out. Where it cannot be made, whoever writes is told why.
        let _ = std::fs::create_dir(layout::temporaries(&self.root));
        Ok(found)
    }

    fn marker(&self) -> Result<Option<String>, FileServerError> {
        self.place.read()
    }

    fn put_watched(
        &self,
        id: &ObjectId,
        source: &mut Replica,
        moved: &dyn Fn(usize),
    ) -> Result<Put, FileServerError> {
        self.place.check()?;
        let length = source.length();
        if self.whole(id, length, moved)? {
            return self.settle(id);
        }
        let name = format!("{}~{}", self.own, random_hex());
        let temporary = self.root.join("tmp").join(&name);
        lock(&self.live).insert(name.clone());
        let written = self.write_temporary(id, source, &temporary);
        let done = written.and_then(|()| self.publish(id, length, &temporary, moved));
        if done.is_err() {
            // A folder may have gone under us (restored, cleaned up): look again next time.
            self.forget_folders(&self.replica_path(id));
        }
        self.steps.reach(|| Step::Unlink(temporary.clone()));
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::warn!(server = %self.name, file = %temporary.display(), "temporary file stays: {error}; collected later");
            }
            _ => {}
        }
        lock(&self.live).remove(&name);
        done
    }

    fn open(&self, id: &ObjectId) -> Result<Replica, FileServerError> {
        self.open_at(&self.replica_path(id), id)
    }

    fn write_slot(&self, id: &ObjectId, side: Side, bytes: &[u8]) -> Result<(), FileServerError> {
        let (server, object) = (self.name.clone(), id.to_string());
        if let Err(why) = parse_slot(bytes) {
            return Err(FileServerError::BadSource { server, object, why: why.to_string() });
        }
        let path = self.replica_path(id);
        let opened = OpenOptions::new().write(true).custom_flags(libc::O_NOFOLLOW).open(&path);
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(self.absent(id)),
            Err(error) => return Err(self.place.blame(id, error)),
        };
        if file.metadata().map_err(|error| self.place.blame(id, error))?.len() < BODY {
            let why = "it is too short for its slots".to_owned();
            return Err(FileServerError::Damaged { server, object, why });
        }
        self.steps.reach(|| Step::WriteFile(path.clone()));
        let written = file.write_all_at(bytes, side.offset()).and_then(|()| self.sync_file(&file, &path));
        written.map_err(|error| self.place.blame(id, error))
    }

    fn remove(&self, id: &ObjectId) -> Result<(), FileServerError> {
        let path = self.replica_path(id);
        self.steps.reach(|| Step::Unlink(path.clone()));
        match std::fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => return self.place.check(),
            Err(error) => return Err(self.place.blame_write(id, error)),
        }
        let synced = path.parent().map_or(Ok(()), |folder| self.sync_folder(folder));
        synced.map_err(|error| self.place.blame_write(id, error))
    }

    fn list_watched(
        &self,
        prefix: &str,
        after: Option<&ObjectId>,
        limit: usize,
        progress: &dyn Fn(),
    ) -> Result<Vec<ObjectId>, FileServerError> {
        self.place.check()?;
        let fault = |folder: &str, error| self.place.fault(format!("list {folder}"), error);
        let after = after.map(ToString::to_string).unwrap_or_default();
        let mut found = Vec::new();
        for outer in names(&self.root, 2).map_err(|error| fault(".", error))? {
            if !layout::fits(&outer, prefix, &after) {
                continue;
            }
            let folder = self.root.join(&outer);
            for inner in names(&folder, 2).map_err(|error| fault(&outer, error))? {
                if !layout::fits(&format!("{outer}{inner}"), prefix, &after) {
                    continue;
                }
                progress();
                let listed = names(&folder.join(&inner), 64);
                for name in listed.map_err(|error| fault(&format!("{outer}/{inner}"), error))? {
                    found.extend(layout::wanted(&name, &outer, &inner, prefix, &after));
                    if found.len() == limit {
                        return Ok(found);
                    }
                }
            }
        }
        Ok(found)
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
        self.place.check()?;
        let fail = |error| self.place.fault("list tmp".to_owned(), error);
        let entries = match std::fs::read_dir(layout::temporaries(&self.root)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
            other => other.map_err(fail)?,
        };
        let mut removed = 0;
        for entry in entries {
            let entry = entry.map_err(fail)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let own = name.split_once('~').is_some_and(|(vault, _)| vault == self.own);
            let stale = entry
                .metadata()
                .and_then(|metadata| metadata.modified())
                .is_ok_and(|touched| now.duration_since(touched).is_ok_and(|idle| idle >= age));
            if (own || stale)
                && !lock(&self.live).contains(&name)
                && std::fs::remove_file(entry.path()).is_ok()
            {
                removed += 1;
            }
        }
        Ok(removed)
    }

    fn free_space(&self) -> Result<u64, FileServerError> {
        self.place.check()?;
        self.free_space_anywhere()
    }

    fn free_space_anywhere(&self) -> Result<u64, FileServerError> {
        let space = rustix::fs::statvfs(&self.root)
            .map_err(|error| wrap(&self.name, "free space")(std::io::Error::from(error)))?;
        Ok(space.f_bavail.saturating_mul(space.f_frsize))
    }

    fn read_note(&self, name: &str) -> Result<Option<Vec<u8>>, FileServerError> {
        let path = self.note_path(name)?;
        let file = match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return self.place.check().map(|()| None),
            Err(error) => return Err(self.place.fault(name.to_owned(), error)),
        };
        let mut bytes = Vec::new();
        let read = file.take(MAX_NOTE as u64 + 1).read_to_end(&mut bytes);
        read.map_err(|error| self.place.fault(name.to_owned(), error))?;
        Ok(Some(bytes))
    }

    fn write_note(&self, name: &str, bytes: &[u8]) -> Result<(), FileServerError> {
        let path = self.note_path(name)?;
        if bytes.len() > MAX_NOTE {
            return Err(self.bad_note(name, "it is too long"));
        }
        self.place.check()?;
        let temporary_name = format!("{}~{}", self.own, random_hex());
        let temporary = self.root.join("tmp").join(&temporary_name);
        lock(&self.live).insert(temporary_name.clone());
        let mut written = self.replace(&temporary, &path, bytes);
        if written.as_ref().is_err_and(place::is_of_one_file) && self.move_aside(name, &path).is_ok() {
            // It is made anew, and may not be there.
            let _ = std::fs::remove_file(&temporary);
            written = self.replace(&temporary, &path, bytes);
        }
        if written.is_err() {
            // Collected later if it cannot be removed now.
            let _ = std::fs::remove_file(&temporary);
        }
        lock(&self.live).remove(&temporary_name);
        written.map_err(|error| self.place.fault(name.to_owned(), error))
    }
}

fn knows_no_links(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::PermissionDenied)
}

/// The sorted names in `folder` that are `length` hex digits; none if it is not there.
fn names(folder: &Path, length: usize) -> std::io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if layout::is_digits(&name, length) {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Sorts the system's reasons into those that call for different answers.
fn wrap(server: &str, object: impl ToString) -> impl Fn(std::io::Error) -> FileServerError {
    let (server, object) = (server.to_owned(), object.to_string());
    move |source| {
        let (server, object) = (server.clone(), object.clone());
        match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                FileServerError::Full { server, object, source }
            }
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
                FileServerError::Denied { server, object, source }
            }
            _ => FileServerError::Away { server, object, source },
        }
    }
}

/// The file server's error that a [`Replica`]'s reader carries, or a plain one wrapped.
fn unwrap_or(error: std::io::Error, server: &str, id: &ObjectId) -> FileServerError {
    error.downcast::<FileServerError>().unwrap_or_else(wrap(server, id))
}

fn flush(file: &File) -> std::io::Result<()> {
    if cfg!(feature = "without-fsync") { Ok(()) } else { file.sync_all() }
}

fn flush_data(file: &File) -> std::io::Result<()> {
    if cfg!(feature = "without-fsync") { Ok(()) } else { file.sync_data() }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
