//! The last step of writing a replica: its final name, and the names of the folders above it, durably
//! and without overwriting. Knows the order in which that must happen; not how the bytes came there.

use std::path::{Path, PathBuf};

use super::link::Link;
use super::pool::Lane;
use super::trouble::{Failed, Kind, Trouble};
use super::{FileServerError, Put, Sftp, layout, lock};
use crate::storage::object::ObjectId;
use crate::storage::step::Step;

/// How often a name that turns out taken by a damaged replica is cleared for the new one.
const TRIES: usize = 3;

impl Sftp {
    /// Puts a question that needs the folder of temporary files; once more where that is missing. A
    /// backup may have left it out: then it is made again, in the right place only.
    pub(super) fn with_tmp<T>(
        &self,
        link: &mut Link,
        mut question: impl FnMut(&mut Link) -> Result<T, Trouble>,
    ) -> Result<T, Failed> {
        match question(link) {
            Err(trouble) if trouble.kind == Kind::Missing => {
                self.place.check(link)?;
                link.make_folder(&layout::temporaries(&self.root))?;
                Ok(question(link)?)
            }
            other => Ok(other?),
        }
    }

    /// Gives the finished file of `length` bytes its final name without overwriting, durably. What has
    /// that name already counts if it is whole.
    pub(super) fn publish(
        &self,
        id: &ObjectId,
        length: u64,
        mut lane: Lane,
        temporary: &Path,
        moved: &dyn Fn(usize),
    ) -> Result<Put, FileServerError> {
        let path = layout::replica_path(&self.root, id);
        for _ in 0..TRIES {
            let named = self.name_finally(&mut lane.link, temporary, &path);
            match named.map_err(|trouble| self.fail_to_write(id, Failed::Trouble(trouble)))? {
                true => {
                    lane.give_back();
                    return Ok(Put::Written);
                }
                false => lane.give_back(),
            }
            if self.whole(id, length, moved)? {
                self.discard(temporary);
                return self.settle(id);
            }
            let next = self.ask_in_place(|_| Ok(()));
            ((), lane) = next.map_err(|failed| self.fail_to_write(id, failed))?;
        }
        let why = "a damaged replica takes its name again and again".to_owned();
        Err(FileServerError::Damaged { server: self.name.clone(), object: id.to_string(), why })
    }

    /// `false`: something else has the name. A folder that was there may have gone under us
    /// (restored, cleaned up): then it is made again.
    fn name_finally(&self, link: &mut Link, temporary: &Path, path: &Path) -> Result<bool, Trouble> {
        match self.name_in_folders(link, temporary, path) {
            Err(trouble) if trouble.kind == Kind::Missing => {
                self.forget_folders(path);
                self.name_in_folders(link, temporary, path)
            }
            other => other,
        }
    }

    fn name_in_folders(&self, link: &mut Link, temporary: &Path, path: &Path) -> Result<bool, Trouble> {
        let made = self.make_folders(link, path)?;
        self.steps.reach(|| Step::Rename(temporary.to_owned(), path.to_owned()));
        match link.rename(temporary, path) {
            Err(trouble) if matches!(trouble.kind, Kind::Exists | Kind::Failure) => {
                // An existing name and a full disk read the same.
                return if link.stat(path).is_ok() { Ok(false) } else { Err(trouble) };
            }
            other => other?,
        }
        self.flush_names(link, path, made)?;
        Ok(true)
    }

    /// Makes `ab` and `ab/cd` above `path` where that is not known to have been done durably, and
    /// returns which.
    fn make_folders(&self, link: &mut Link, path: &Path) -> Result<Vec<PathBuf>, Trouble> {
        let folders = path.ancestors().skip(1).take(2).map(Path::to_owned);
        let mut unsure: Vec<_> = folders.filter(|folder| !lock(&self.durable).contains(folder)).collect();
        unsure.reverse();
        for folder in &unsure {
            self.steps.reach(|| Step::MakeFolder(folder.clone()));
            link.make_folder(folder)?;
        }
        Ok(unsure)
    }

    /// Flushes the folders that hold the names of `path` and of the folders made above it: all of
    /// them at the end, where one commit of the file system's journal does for all.
    fn flush_names(&self, link: &mut Link, path: &Path, made: Vec<PathBuf>) -> Result<(), Trouble> {
        self.flush_parent(link, path)?;
        for folder in &made {
            self.flush_parent(link, folder)?;
        }
        lock(&self.durable).extend(made);
        Ok(())
    }

    pub(super) fn forget_folders(&self, path: &Path) {
        let mut durable = lock(&self.durable);
        for folder in path.ancestors().skip(1).take(2) {
            durable.remove(folder);
        }
    }

    pub(super) fn flush_parent(&self, link: &mut Link, path: &Path) -> Result<(), Trouble> {
        let Some(folder) = path.parent() else { return Ok(()) };
        let flushed = link.flush_folder(folder)?;
        self.note(flushed, || Step::FolderSynced(folder.to_owned()));
        Ok(())
    }

    /// Makes a replica that is there already as durable as a new one: whoever wrote it may
    /// have died before it was flushed.
    pub(super) fn settle(&self, id: &ObjectId) -> Result<Put, FileServerError> {
        let path = layout::replica_path(&self.root, id);
        let settled = self.ask_in_place(|link| {
            let mut file = link.open(&path)?;
            self.note(link.flush(&mut file)?, || Step::FileSynced(path.clone()));
            link.close(file)?;
            let made = self.make_folders(link, &path)?;
            self.flush_names(link, &path, made)
        });
        let ((), lane) = settled.map_err(|failed| self.fail_to_write(id, failed))?;
        lane.give_back();
        Ok(Put::Verified)
    }
}
