//! The ids below a folder on the server, in order and no further than asked. Only folders that
//! may hold what is wanted are read; there are up to 65,536 of them, so they are asked for with
//! requests in flight. Where a server gives no second channel for that, each costs four round
//! trips, and several sessions share them. Knows no messages.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use super::super::layout::{self, Names};
use super::link::Link;
use super::trouble::{Failed, Kind, Trouble};
use super::{Sftp, begin};
use crate::storage::object::ObjectId;

/// Folders that one session reads in turn before the names found are counted again.
const EACH: usize = 8;
/// Outer folders whose inner ones are gathered before these are read.
const OUTERS: usize = 16;
/// Ids, and folders by two digits of them.
const WHOLE: Names = Names::Digits(64);
const TWO: Names = Names::Digits(2);

/// A folder that holds replicas, by the two names that lead there.
struct Folder<'a> {
    outer: &'a str,
    inner: String,
}

impl Folder<'_> {
    /// How the ids in it start.
    fn start(&self) -> String {
        format!("{}{}", self.outer, self.inner)
    }

    fn below(&self, root: &Path) -> PathBuf {
        root.join(self.outer).join(&self.inner)
    }
}

impl Sftp {
    /// The ids that start with `prefix` and come after `after`, in order, at most `limit`.
    pub(super) fn ids(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
        progress: &dyn Fn(),
    ) -> Result<Vec<ObjectId>, Failed> {
        // Looked at afresh: an unmounted place would look like an empty one.
        let ((), lane) = begin(&self.data, |link| self.place.check(link))?;
        lane.give_back();
        let mut found = Vec::new();
        if limit == 0 {
            return Ok(found);
        }
        // A folder that the prefix spells out needs no look; it may be missing.
        let known =
            |at| prefix.get(at..at + 2).filter(|known| layout::is_digits(known, 2)).map(str::to_owned);
        let mut outers = match known(0) {
            Some(outer) => vec![outer],
            None => self.names(std::slice::from_ref(&self.root), TWO, usize::MAX, progress)?.concat(),
        };
        outers.retain(|outer| layout::fits(outer, prefix, after));
        for outers in outers.chunks(OUTERS) {
            let folders = self.inner_folders(outers, known(2), progress)?;
            let wanted = |folder: &Folder| layout::fits(&folder.start(), prefix, after);
            let folders: Vec<_> = folders.into_iter().filter(wanted).collect();
            let paths: Vec<_> = folders.iter().map(|folder| folder.below(&self.root)).collect();
            let mut at = 0;
            while at < paths.len() {
                let names = self.names(&paths[at..], WHOLE, limit - found.len(), progress)?;
                for (Folder { outer, inner }, names) in folders[at..].iter().zip(&names) {
                    for name in names {
                        found.extend(layout::wanted(name, outer, inner, prefix, after));
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

    /// The folders in each of `outers`, in order; the `known` one alone where there is one.
    fn inner_folders<'a>(
        &self,
        outers: &'a [String],
        known: Option<String>,
        progress: &dyn Fn(),
    ) -> Result<Vec<Folder<'a>>, Failed> {
        let paths: Vec<_> = outers.iter().map(|outer| self.root.join(outer)).collect();
        let mut inners = known.map(|inner| vec![vec![inner]]).unwrap_or_default();
        while inners.len() < paths.len() {
            inners.extend(self.names(&paths[inners.len()..], TWO, usize::MAX, progress)?);
        }
        let each = |(outer, inners): (&'a String, Vec<String>)| {
            inners.into_iter().map(move |inner| Folder { outer, inner })
        };
        Ok(outers.iter().zip(inners).flat_map(each).collect())
    }

    /// The sorted names that are `wanted` in each of `folders`, from the first on, until
    /// there are `enough` or a few more: those of one folder at least.
    pub(super) fn names(
        &self,
        folders: &[PathBuf],
        wanted: Names,
        enough: usize,
        progress: &dyn Fn(),
    ) -> Result<Vec<Vec<String>>, Failed> {
        let ask = |link: &mut Link| link.names_of_many(folders, wanted, enough, progress);
        let (names, lane) = self.ask_in_place(ask)?;
        lane.give_back();
        if let Some(names) = names {
            return Ok(names);
        }
        if !self.told_slow.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                server = %self.name,
                "gives a session no second channel for listings (MaxSessions 1?): each folder takes four round trips"
            );
        }
        let names = self.names_in_turn(&folders[..folders.len().min(self.sessions * EACH)], wanted);
        progress();
        names
    }

    /// The same of all `folders`, [`EACH`] of them a session.
    fn names_in_turn(&self, folders: &[PathBuf], wanted: Names) -> Result<Vec<Vec<String>>, Failed> {
        let names = |part: &[PathBuf]| {
            let all = |link: &mut Link| part.iter().map(|folder| link.names(folder, wanted)).collect();
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
