//! Quarantine: damaged replicas are moved there, out of the readers' reach, listed, and removed
//! when their object is purged. Knows names and what must be flushed; not what is damaged.

use std::path::Path;

use super::super::{FileServerError, SetAside, layout, verify};
use super::link::Link;
use super::trouble::{Failed, Kind, Trouble};
use super::{Sftp, begin};
use crate::storage::object::ObjectId;
use crate::storage::step::Step;

impl Sftp {
    /// See [`FileServer::quarantine`](super::FileServer::quarantine); calls `moved` with the bytes
    /// that it reads.
    pub(super) fn set_aside(
        &self,
        id: &ObjectId,
        longest: u64,
        moved: &dyn Fn(usize),
    ) -> Result<(), FileServerError> {
        let path = layout::replica_path(&self.root, id);
        let aside = layout::aside_path(&self.root, &id.to_string());
        self.steps.reach(|| Step::Rename(path.clone(), aside.clone()));
        let renamed = self.ask(&self.control, |link| {
            self.move_aside(link, &path, &aside)?;
            self.flush_parent(link, &aside)?;
            self.flush_parent(link, &path)
        });
        match renamed {
            Err(Failed::Trouble(trouble)) if trouble.kind == Kind::Missing => return Err(self.absent(id)),
            other => other.map_err(|failed| self.fail_on_one(id, failed))?,
        }
        let whole = self
            .find_at(aside.clone(), id)
            .is_ok_and(|found| found.is_some_and(|replica| verify(replica, id, longest, moved).is_ok()));
        if !whole {
            return Ok(());
        }
        let back = self.ask(&self.control, |link| {
            self.steps.reach(|| Step::Rename(aside.clone(), path.clone()));
            link.rename(&aside, &path)
        });
        if back.is_err() {
            return Ok(());
        }
        tracing::warn!(server = %self.name, object = %id, "another vault had healed it; put back");
        let flushed = self.ask(&self.control, |link| {
            self.flush_parent(link, &path)?;
            self.flush_parent(link, &aside)
        });
        flushed.map_err(|failed| self.fail_on_one(id, failed))
    }

    /// Gives what has the name `path` the name `aside` in quarantine.
    pub(super) fn move_aside(&self, link: &mut Link, path: &Path, aside: &Path) -> Result<(), Trouble> {
        match link.rename(path, aside) {
            // Either of the two is missing; one can be made.
            Err(trouble) if trouble.kind == Kind::Missing => {
                link.make_folder(&layout::quarantine(&self.root))?;
                link.rename(path, aside)
            }
            other => other,
        }
    }

    /// See [`FileServer::list_set_aside`](super::FileServer::list_set_aside).
    pub(super) fn all_set_aside(&self, progress: &dyn Fn()) -> Result<Vec<SetAside>, FileServerError> {
        let list = || {
            // Looked at afresh: an unmounted place would look like one without any.
            let ((), lane) = begin(&self.data, |link| self.place.check(link))?;
            lane.give_back();
            let folder = [layout::quarantine(&self.root)];
            self.names(&folder, layout::Names::SetAside, usize::MAX, progress)
        };
        let names = list().map_err(|failed| self.blame().of_part("list quarantine", failed))?;
        Ok(names.iter().flatten().filter_map(|name| layout::set_aside(name)).collect())
    }

    /// See [`FileServer::remove_set_aside`](super::FileServer::remove_set_aside).
    pub(super) fn remove_aside(&self, aside: &SetAside) -> Result<(), FileServerError> {
        let path = layout::quarantine(&self.root).join(&aside.name);
        self.steps.reach(|| Step::Unlink(path.clone()));
        let removed = self.ask(&self.control, |link| {
            link.unlink(&path)?;
            self.flush_parent(link, &path)
        });
        match removed {
            Err(Failed::Trouble(trouble)) if trouble.kind == Kind::Missing => self.check_place(),
            other => other.map_err(|failed| self.fail_to_write(&aside.id, failed)),
        }
    }
}
