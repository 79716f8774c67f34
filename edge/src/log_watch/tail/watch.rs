//! What inotify tells: which names were written to and which now mean another file. Knows folders
//! and names; must not open or read a log. Its callback only counts and wakes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use notify::event::{EventKind, ModifyKind, RenameMode};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};

use super::names::Pattern;

/// What has happened to one name, counted by inotify's thread and compared by the engine's.
#[derive(Debug, Default)]
pub(super) struct Mark {
    /// Its file was written to.
    pub(super) written: AtomicU64,
    /// It may mean another file now, or none.
    pub(super) named: AtomicU64,
}

#[derive(Default)]
struct Known {
    names: HashMap<PathBuf, Arc<Mark>>,
    /// What a known file was renamed to: it may still be written to.
    renamed: HashMap<PathBuf, Arc<Mark>>,
    patterns: Vec<Pattern>,
    folders: HashSet<PathBuf>,
}

/// The names that matter; shared with inotify's thread.
struct Board {
    known: Mutex<Known>,
    /// inotify lost events.
    lost: AtomicBool,
    /// A name appeared that a pattern matches.
    appeared: AtomicBool,
    /// A watched folder was moved or removed.
    folders: AtomicBool,
    /// `wake` was called and nobody has come yet.
    woken: AtomicBool,
    wake: Box<dyn Fn() + Send + Sync>,
}

/// At most so many renamed files are remembered; what is written to further ones is found by
/// looking.
const MAX_RENAMED: usize = 1024;

impl Board {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, event: notify::Result<notify::Event>) {
        let Ok(event) = event else { return self.lose() };
        if event.need_rescan() {
            return self.lose();
        }
        let worth = match event.kind {
            EventKind::Modify(ModifyKind::Data(_)) => event.paths.iter().any(|path| self.written(path)),
            EventKind::Modify(ModifyKind::Name(RenameMode::Both)) => self.renamed(&event.paths),
            EventKind::Modify(_) | EventKind::Create(_) | EventKind::Remove(_) => {
                event.paths.iter().fold(false, |worth, path| self.named(path) | worth)
            }
            _ => false,
        };
        if worth {
            self.call();
        }
    }

    fn lose(&self) {
        self.lost.store(true, Ordering::Release);
        self.call();
    }

    fn call(&self) {
        if !self.woken.swap(true, Ordering::AcqRel) {
            (self.wake)();
        }
    }

    fn written(&self, path: &Path) -> bool {
        let known = self.known();
        let mark = known.names.get(path).or_else(|| known.renamed.get(path));
        mark.is_some_and(|mark| mark.written.fetch_add(1, Ordering::Release) < u64::MAX)
    }

    fn named(&self, path: &Path) -> bool {
        let known = self.known();
        let mark = known.names.get(path);
        if let Some(mark) = mark {
            mark.named.fetch_add(1, Ordering::Release);
        }
        // Asked even of known names: one that vanished may not have been forgotten yet.
        let appeared = known.patterns.iter().any(|pattern| pattern.matches(path));
        if appeared {
            self.appeared.store(true, Ordering::Release);
        }
        // A folder that vanishes takes its watch with it, even if it is back at once.
        if known.folders.contains(path) {
            self.folders.store(true, Ordering::Release);
        }
        appeared || mark.is_some()
    }

    fn renamed(&self, paths: &[PathBuf]) -> bool {
        let [from, to] = paths else { return false };
        let mut known = self.known();
        let mark = known.names.get(from).or_else(|| known.renamed.get(from)).cloned();
        let Some(mark) = mark else { return false };
        mark.written.fetch_add(1, Ordering::Release);
        if known.renamed.len() < MAX_RENAMED && !known.names.contains_key(to) {
            known.renamed.insert(to.clone(), mark);
        }
        true
    }
}

/// What has been found out since the last time it was asked.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Heard {
    /// Anything may have happened.
    pub(super) lost: bool,
    /// A new name may match a pattern.
    pub(super) appeared: bool,
}

/// The watched folders.
pub(super) struct Watch {
    board: Arc<Board>,
    inotify: Option<RecommendedWatcher>,
    folders: BTreeMap<PathBuf, Folder>,
    told: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Folder {
    inode: Option<(u64, u64)>,
    heard: bool,
}

impl Watch {
    /// `inotify: false` leaves everything to looking. Where inotify is not to be had, so does this.
    pub(super) fn new(
        patterns: Vec<Pattern>,
        inotify: bool,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let board = Arc::new(Board {
            known: Mutex::new(Known { patterns, ..Known::default() }),
            lost: AtomicBool::new(false),
            appeared: AtomicBool::new(false),
            folders: AtomicBool::new(false),
            woken: AtomicBool::new(false),
            wake: Box::new(wake),
        });
        let ear = Arc::clone(&board);
        let watcher = inotify.then(|| notify::recommended_watcher(move |event| ear.hear(event)));
        let inotify = watcher.and_then(|made| {
            made.inspect_err(|error| {
                tracing::warn!(
                    "log_watch: inotify is not to be had: {error}; logs are looked at every second"
                );
            })
            .ok()
        });
        Self { board, inotify, folders: BTreeMap::new(), told: false }
    }

    /// The mark of a name; `path`'s folder holds no symbolic links.
    pub(super) fn mark(&self, path: &Path) -> Arc<Mark> {
        Arc::clone(self.board.known().names.entry(path.to_owned()).or_default())
    }

    /// What was heard; from now on `wake` is called again.
    pub(super) fn heard(&self) -> Heard {
        if !self.board.woken.swap(false, Ordering::AcqRel) {
            return Heard::default();
        }
        Heard {
            lost: self.board.lost.swap(false, Ordering::AcqRel),
            appeared: self.board.appeared.swap(false, Ordering::AcqRel),
        }
    }

    /// Forgets marks that nobody holds; `quiet` says that no renamed file is followed any more.
    pub(super) fn forget(&self, quiet: bool) {
        let mut known = self.board.known();
        if quiet {
            known.renamed.clear();
        }
        let held = known.renamed.values().map(Arc::as_ptr).collect::<Vec<_>>();
        known.names.retain(|_, mark| Arc::strong_count(mark) > 1 || held.contains(&Arc::as_ptr(mark)));
    }

    /// Whether changes in `folder` are heard of at once.
    pub(super) fn hears(&self, folder: &Path) -> bool {
        self.folders.get(folder).is_some_and(|folder| folder.heard)
    }

    /// Watches exactly these folders; a folder that was replaced is watched anew. Returns whether
    /// any of them is newly watched, so that what happened before must be looked for.
    pub(super) fn follow(&mut self, wanted: impl Iterator<Item = PathBuf>) -> bool {
        let again = self.board.folders.swap(false, Ordering::AcqRel);
        let mut folders = BTreeMap::new();
        let mut newly = false;
        for path in wanted {
            if folders.contains_key(&path) {
                continue;
            }
            let inode = std::fs::metadata(&path).ok().map(|found| (found.dev(), found.ino()));
            let before = self.folders.remove(&path);
            let folder = match before {
                Some(before) if before.inode == inode && (before.heard || inode.is_none()) && !again => {
                    before
                }
                _ => {
                    let heard =
                        inode.is_some() && self.watch(&path, before.is_some_and(|before| before.heard));
                    newly |= heard && before.is_none_or(|before| before.inode != inode || !before.heard);
                    Folder { inode, heard }
                }
            };
            folders.insert(path, folder);
        }
        let gone = std::mem::replace(&mut self.folders, folders);
        self.board.known().folders = self.folders.keys().cloned().collect();
        if let Some(inotify) = self.inotify.as_mut() {
            for (path, _) in gone.iter().filter(|(_, folder)| folder.heard) {
                // It may have gone by itself.
                let _gone = inotify.unwatch(path);
            }
        }
        newly
    }

    fn watch(&mut self, folder: &Path, before: bool) -> bool {
        let Some(inotify) = self.inotify.as_mut() else { return false };
        if before {
            let _gone = inotify.unwatch(folder);
        }
        match inotify.watch(folder, RecursiveMode::NonRecursive) {
            Ok(()) => !is_remote(folder),
            Err(error) => {
                if !std::mem::replace(&mut self.told, true) {
                    tracing::warn!(
                        "log_watch: {}: inotify does not watch it: {error}; it is looked at every second \
                         (fs.inotify.max_user_watches may be too low)",
                        folder.display()
                    );
                }
                false
            }
        }
    }
}

/// File systems whose other writers inotify cannot see: NFS, SMB, FUSE, 9p, Ceph, AFS
/// (`/usr/include/linux/magic.h`).
fn is_remote(folder: &Path) -> bool {
    const REMOTE: [u64; 8] =
        [0x6969, 0x517B, 0xFE53_4D42, 0xFF53_4D42, 0x6573_5546, 0x0102_1997, 0x00C3_6400, 0x5346_414F];
    rustix::fs::statfs(folder).is_ok_and(|found| {
        u64::try_from(found.f_type).is_ok_and(|kind| REMOTE.contains(&(kind & 0xFFFF_FFFF)))
    })
}
