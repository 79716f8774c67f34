//! Quarantine: damaged replicas are moved there, out of the readers' reach, listed, and removed
//! when their object is purged. Knows names and what must be flushed; not what is damaged.

use std::io::ErrorKind;
use std::path::Path;

use super::super::{FileServerError, SetAside, layout, verify};
use super::{Directory, knows_no_links};
use crate::storage::object::ObjectId;
use crate::storage::step::Step;

/// More than this is not believed; it would fill the memory.
const MOST: usize = 1 << 20;

impl Directory {
    /// See [`FileServer::quarantine`](super::FileServer::quarantine); calls `moved` with the bytes
    /// that it reads.
    pub(super) fn set_aside(
        &self,
        id: &ObjectId,
        longest: u64,
        moved: &dyn Fn(usize),
    ) -> Result<(), FileServerError> {
        let path = self.replica_path(id);
        let folder = layout::quarantine(&self.root);
        let aside = layout::aside_path(&self.root, &id.to_string());
        let renamed = std::fs::create_dir_all(&folder).and_then(|()| {
            self.steps.reach(|| Step::Rename(path.clone(), aside.clone()));
            std::fs::rename(&path, &aside)
        });
        match renamed {
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(self.absent(id)),
            other => other.map_err(|error| self.place.blame(id, error))?,
        }
        let whole = self.open_at(&aside, id).is_ok_and(|replica| verify(replica, id, longest, moved).is_ok());
        if whole && self.put_back(&aside, &path).is_ok() {
            tracing::warn!(server = %self.name, object = %id, "another vault had healed it; put back");
        }
        let flushed = self.sync_folder(&folder);
        flushed
            .and_then(|()| path.parent().map_or(Ok(()), |folder| self.sync_folder(folder)))
            .map_err(|error| self.place.blame(id, error))
    }

    /// Gives what was set aside its name again, unless something has it by now.
    fn put_back(&self, aside: &Path, path: &Path) -> std::io::Result<()> {
        self.steps.reach(|| Step::Link(aside.to_owned(), path.to_owned()));
        match std::fs::hard_link(aside, path) {
            Err(error) if knows_no_links(&error) => std::fs::rename(aside, path),
            other => other.and_then(|()| std::fs::remove_file(aside)),
        }
    }

    /// Moves something that is no replica aside, so that its name is free.
    pub(super) fn move_aside(&self, name: &str, path: &Path) -> std::io::Result<()> {
        std::fs::create_dir_all(layout::quarantine(&self.root))?;
        std::fs::rename(path, layout::aside_path(&self.root, name))
    }

    /// See [`FileServer::list_set_aside`](super::FileServer::list_set_aside).
    pub(super) fn all_set_aside(&self, progress: &dyn Fn()) -> Result<Vec<SetAside>, FileServerError> {
        self.place.check()?;
        let fault = |error| self.place.fault("list quarantine".to_owned(), error);
        let entries = match std::fs::read_dir(layout::quarantine(&self.root)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(fault)?,
        };
        let mut found = Vec::new();
        for (count, entry) in entries.enumerate() {
            if count == MOST {
                let source = std::io::Error::other(format!("it holds {MOST} names or more"));
                let (server, object) = (self.name.clone(), "list quarantine".to_owned());
                return Err(FileServerError::Faulty { server, object, source });
            }
            progress();
            found.extend(entry.map_err(fault)?.file_name().to_str().and_then(layout::set_aside));
        }
        Ok(found)
    }

    /// See [`FileServer::remove_set_aside`](super::FileServer::remove_set_aside).
    pub(super) fn remove_aside(&self, aside: &SetAside) -> Result<(), FileServerError> {
        let folder = layout::quarantine(&self.root);
        let path = folder.join(&aside.name);
        self.steps.reach(|| Step::Unlink(path.clone()));
        let removed = match std::fs::remove_file(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return self.place.check(),
            other => other.and_then(|()| self.sync_folder(&folder)),
        };
        removed.map_err(|error| self.place.blame_write(&aside.id, error))
    }
}
