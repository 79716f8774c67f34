//! The ids below a folder on the server, in order and no further than asked. Only folders that
//! may hold what is wanted are read; there are up to 65,536 of them, so they are asked for with
//! requests in flight. Where a server gives no second channel for that, each costs four round
//! trips, and several sessions share them. Knows no messages.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use super::super::layout;
use super::Sftp;
use super::link::Link;
use super::trouble::{Failed, Kind, Trouble};
use crate::storage::object::ObjectId;

/// Folders that one session reads in turn before the names found are counted again.
const EACH: usize = 8;
/// Digits of an id.
const WHOLE: usize = 64;

impl Sftp {
    /// The ids that start with `prefix` and come after `after`, in order, at most `limit`.
    pub(super) fn ids(&self, prefix: &str, after: &str, limit: usize) -> Result<Vec<ObjectId>, Failed> {
        // Looked at afresh: an unmounted place would look like an empty one.
        let ((), lane) = self.begin(&self.data, |link| self.place.check(link))?;
        lane.give_back();
        let mut found = Vec::new();
        if limit == 0 {
            return Ok(found);
        }
        for outer in self.folders(&self.root, prefix.get(..2))? {
            if !layout::fits(&outer, prefix, after) {
                continue;
            }
            let folder = self.root.join(&outer);
            let mut inners = self.folders(&folder, prefix.get(2..4))?;
            inners.retain(|inner| layout::fits(&format!("{outer}{inner}"), prefix, after));
            let paths: Vec<_> = inners.iter().map(|inner| folder.join(inner)).collect();
            let mut at = 0;
            while at < paths.len() {
                let names = self.names(&paths[at..], WHOLE, limit - found.len())?;
                for (inner, names) in inners[at..].iter().zip(&names) {
                    for name in names {
                        found.extend(layout::wanted(name, &outer, inner, prefix, after));
                        if found.len() == limit {
                            return Ok(found);
                        }
                    }
                }
                at += names.len().max(1);
            }
        }
        Ok(found)
    }

    /// The folders in `parent` that are two digits of an id; the one that is `known` needs no look,
    /// and may be missing.
    fn folders(&self, parent: &Path, known: Option<&str>) -> Result<Vec<String>, Failed> {
        if let Some(known) = known.filter(|known| layout::is_digits(known, 2)) {
            return Ok(vec![known.to_owned()]);
        }
        let names = self.names(&[parent.to_owned()], 2, usize::MAX)?;
        Ok(names.into_iter().flatten().collect())
    }

    /// The sorted names that are `length` digits in each of `folders`, from the first on, until
    /// there are `enough` or a few more: those of one folder at least.
    fn names(&self, folders: &[PathBuf], length: usize, enough: usize) -> Result<Vec<Vec<String>>, Failed> {
        let ask = |link: &mut Link| link.digits_of_many(folders, length, enough);
        let (names, lane) = self.ask_in_place(ask)?;
        lane.give_back();
        if let Some(names) = names {
            return Ok(names);
        }
        if !self.told_slow.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                server = %self.name,
                "allows one channel a session only (MaxSessions 1?): listing it takes four round trips a folder"
            );
        }
        self.names_in_turn(&folders[..folders.len().min(self.sessions * EACH)], length)
    }

    /// The same of all `folders`, [`EACH`] of them a session.
    fn names_in_turn(&self, folders: &[PathBuf], length: usize) -> Result<Vec<Vec<String>>, Failed> {
        let names = |part: &[PathBuf]| {
            let all = |link: &mut Link| part.iter().map(|folder| link.digits(folder, length)).collect();
            let (names, lane) = self.ask_in_place(all)?;
            lane.give_back();
            Ok(names)
        };
        if folders.len() <= EACH {
            return names(folders);
        }
        let parts: Result<Vec<Vec<Vec<String>>>, Failed> = std::thread::scope(|scope| {
            let names = &names;
            let spawn = |part| std::thread::Builder::new().spawn_scoped(scope, move || names(part));
            let threads: Vec<_> = folders.chunks(EACH).map(spawn).collect();
            let joined = threads.into_iter().map(|thread| {
                let thread = thread.map_err(|error| Trouble::new(Kind::Failure, error.to_string()))?;
                thread.join().map_err(|_| Trouble::new(Kind::Failure, "a thread ended early"))?
            });
            joined.collect()
        });
        Ok(parts?.into_iter().flatten().collect())
    }
}
