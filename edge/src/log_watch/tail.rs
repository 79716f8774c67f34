//! Follows log files through rotation, truncation, symlinks and absence. Knows files and
//! positions; must not know what lines mean.
//!
//! inotify only wakes; [`Tail::read`] on the caller's thread does the work, and [`Tail::look`]
//! finds once a second what inotify does not tell (network file systems, lost events, a watch
//! limit). A renamed log is read to its end before its successor, and stays open until it has
//! been quiet for ten minutes, because programs write on until they reopen.
//!
//! What can be lost: with copytruncate, the lines written after logrotate's copy was made and
//! before it truncates (nobody can have them), and, where the copy is not found beside the log
//! (compressed at once, moved to another folder), those not yet read when it was truncated.
//! Across a restart: whole files that came and went meanwhile, and predecessors already
//! compressed. A last line that never gets its `\n` is no line.

mod names;
mod open_files;
mod split;
mod stream;
mod watch;

#[cfg(test)]
mod stories;

pub use names::fuzz_matches;
pub use split::fuzz_split;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use names::{MAX_FILES, Pattern};
use open_files::OpenFiles;
use stream::{Identity, open_regular};
use watch::{Mark, Watch};

/// A longer line is skipped; bytes.
const MAX_LINE: usize = 64 * 1024;
/// One block; holds several of the longest lines.
const BLOCK: usize = 256 * 1024;
/// Patterns in whose folders inotify hears are expanded at every so many looks only.
const EXPAND_EVERY: u32 = 10;

/// Log files to follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// Absolute; any part may hold `*` and `?`.
    pub pattern: PathBuf,
    /// The caller's number for the source; several patterns may share one.
    pub tag: usize,
}

impl Watched {
    /// Is `path` one of the files that are meant? Decided by the name alone.
    #[must_use]
    pub fn covers(&self, path: &Path) -> bool {
        names::Pattern { path: self.pattern.clone(), tag: self.tag }.covers(path)
    }

    /// Is it one of them, or was it before it was rotated?
    #[must_use]
    pub fn covered(&self, path: &Path) -> bool {
        self.covers(path) || self.covers(&names::before_rotation(path))
    }
}

/// How far a file has been read; survives a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// The name that was watched, not where a symbolic link led.
    pub path: PathBuf,
    /// The file's device.
    pub device: u64,
    /// The file's inode.
    pub inode: u64,
    /// The first byte that was not handed out.
    pub offset: u64,
    /// Of the file's first bytes, at most 1024 and at most up to `offset`: tells a reused inode
    /// and a truncated file.
    pub fingerprint: u64,
}

/// How it stands with one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Following {
    /// It is read.
    Followed,
    /// There is no such file now.
    Missing,
    /// It is there and cannot be read: why. It is tried again every second.
    Unreadable(String),
}

/// How it stands with one file, for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileState {
    /// The name that is watched.
    pub path: PathBuf,
    /// Followed, missing or unreadable.
    pub following: Following,
    /// The first byte of the current file that was not handed out.
    pub offset: u64,
    /// Bytes not handed out, those of rotated predecessors among them.
    pub behind: u64,
    /// Lines skipped because they were longer than 64 KiB.
    pub long_lines: u64,
    /// How often another file took its place, or it was truncated.
    pub rotations: u64,
    /// Whether changes are heard of at once; else within about a second.
    pub inotify: bool,
}

/// Why no logs can be followed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TailError {
    /// Which folder it means would depend on where edge was started.
    #[error("log_watch: {}: is no absolute path; write it from `/` on", .0.display())]
    Relative(PathBuf),
    /// Each costs a look a second.
    #[error("log_watch: {0} log names are more than 1024; write one name with `*` for many")]
    TooMany(usize),
}

/// What of a file is no news, because it was there when its name was first watched.
#[derive(Clone, Copy)]
enum Old {
    Nothing,
    /// Of this file so many bytes; another one in its place is new.
    Bytes(Identity, u64),
    /// It could not be asked: all that is there when it can be read.
    All,
}

/// One watched name, or one match of a pattern.
struct Name {
    tags: Vec<usize>,
    /// It exists because a pattern matched, and goes with its file.
    matched: bool,
    /// The link, where it is one.
    mark: Arc<Mark>,
    seen: u64,
    /// The folder of the link.
    folder: PathBuf,
    current: Option<u64>,
    following: Following,
    /// Why it could not be read the last time, until it has been open for a whole look.
    told: Option<String>,
    old: Old,
    rotations: u64,
    long_lines: u64,
}

/// All followed files.
pub struct Tail {
    patterns: Vec<Pattern>,
    names: BTreeMap<PathBuf, Name>,
    folders: Vec<PathBuf>,
    files: OpenFiles,
    watch: Watch,
    buffer: Box<[u8]>,
    looks: u32,
    told_many: bool,
}

impl Tail {
    /// Follows `watched` on from where `saved` says. A file without a position that exists now is
    /// followed from its end, even if it becomes readable later only; one that appears later, or
    /// appeared since `saved` was taken of the same pattern, from its beginning. `wake` is called on a
    /// thread of its own when there is something to [`read`](Self::read): once, until `read` is
    /// called. It must not block.
    ///
    /// # Errors
    /// Names that cannot be followed; never a file's state.
    pub fn open(
        watched: &[Watched],
        saved: &[Position],
        wake: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self, TailError> {
        Self::open_with(watched, saved, true, wake)
    }

    /// The same; `inotify: false` leaves everything to [`look`](Self::look).
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(
        watched: &[Watched],
        saved: &[Position],
        inotify: bool,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self, TailError> {
        if watched.len() > MAX_FILES {
            return Err(TailError::TooMany(watched.len()));
        }
        if let Some(relative) = watched.iter().find(|watched| !watched.pattern.is_absolute()) {
            return Err(TailError::Relative(relative.pattern.clone()));
        }
        let patterns: Vec<Pattern> =
            watched.iter().map(|w| Pattern { path: w.pattern.components().collect(), tag: w.tag }).collect();
        let watch = Watch::new(patterns.clone(), inotify, wake);
        let mut tail = Self {
            patterns,
            names: BTreeMap::new(),
            folders: Vec::new(),
            files: OpenFiles::default(),
            watch,
            buffer: vec![0; BLOCK].into_boxed_slice(),
            looks: 0,
            told_many: false,
        };
        tail.expand(true);
        // Watched before they are opened: what is written in between is then heard of.
        tail.follow_folders();
        tail.restore_nameless(saved);
        let paths: Vec<PathBuf> = tail.names.keys().cloned().collect();
        for path in &paths {
            tail.restore(path, saved);
        }
        tail.follow_folders();
        Ok(tail)
    }

    /// Hands out complete lines without their end, with the tag and the watched name; about
    /// `budget` bytes of each call at most. Returns whether more is waiting right now. A log's
    /// rotated predecessor comes before the log itself. Waits for nothing but the disk.
    pub fn read(&mut self, budget: usize, each: &mut dyn FnMut(usize, &Path, &[u8])) -> bool {
        let heard = self.watch.heard();
        if heard.appeared || heard.lost {
            self.expand(false);
        }
        let mut turned = heard.appeared;
        let named: Vec<PathBuf> = self
            .names
            .iter()
            .filter(|(_, name)| heard.lost || name.mark.named.load(Ordering::Acquire) != name.seen)
            .map(|(path, _)| path.clone())
            .collect();
        for path in &named {
            turned |= self.refresh(path);
        }
        if heard.lost {
            self.files.all_pending();
        }
        if turned {
            self.follow_folders();
        }
        let ended = self.files.read(budget, MAX_LINE, &mut self.buffer, each);
        for turned in ended.truncated {
            if let Some(name) = self.names.get_mut(&*turned) {
                name.rotations += 1;
            }
        }
        for (id, path, why) in ended.failed {
            if self.names.get(&*path).is_some_and(|name| name.current == Some(id)) {
                self.unreadable(&path, why);
            }
        }
        self.files.any_pending()
    }

    /// Looks for what inotify cannot tell; to be called about every second, before
    /// [`read`](Self::read). Costs one `stat` a file.
    pub fn look(&mut self) {
        self.looks = self.looks.wrapping_add(1);
        let heard = self.folders.iter().all(|folder| self.watch.hears(folder));
        if !heard || self.looks.is_multiple_of(EXPAND_EVERY) {
            self.expand(false);
        }
        for name in self.names.values_mut().filter(|name| name.current.is_some()) {
            name.told = None;
        }
        let paths: Vec<PathBuf> = self.names.keys().cloned().collect();
        for path in &paths {
            self.refresh(path);
        }
        for path in self.files.owed() {
            if self.names.get(&path).is_none_or(|name| name.following == Following::Followed) {
                let watch = &self.watch;
                self.files.look_for(&path, |real| watch.mark(real));
            }
        }
        for (path, long_lines) in self.files.look() {
            if let Some(name) = self.names.get_mut(&*path) {
                name.long_lines += long_lines;
            }
        }
        self.follow_folders();
        self.watch.forget(!self.files.any_nameless());
    }

    /// How far everything has been read: rotated predecessors included, and files that cannot be
    /// read now. A name without a file has an entry with inode 0, which says that it was watched:
    /// what appears while nobody watches is then new from its first byte on.
    #[must_use]
    pub fn positions(&self) -> Vec<Position> {
        let mut positions = self.files.positions();
        for pattern in &self.patterns {
            if !positions.iter().any(|position| position.path == pattern.path) {
                let path = pattern.path.clone();
                positions.push(Position { path, device: 0, inode: 0, offset: 0, fingerprint: 0 });
            }
        }
        positions
    }

    /// How it stands with every name.
    #[must_use]
    pub fn files(&self) -> Vec<FileState> {
        let state = |(path, name): (&PathBuf, &Name)| {
            let current = name.current.and_then(|id| self.files.of(id));
            let (behind, long_lines) = self.files.sums(path);
            FileState {
                path: path.clone(),
                following: name.following.clone(),
                offset: current.map_or(0, |stream| stream.offset),
                behind,
                long_lines: name.long_lines + long_lines,
                rotations: name.rotations,
                inotify: self.watch.hears(&name.folder)
                    && current.is_none_or(|s| s.real.parent().is_some_and(|folder| self.watch.hears(folder))),
            }
        };
        self.names.iter().map(state).collect()
    }

    /// Finds the names that the patterns mean now.
    fn expand(&mut self, at_start: bool) {
        self.folders.clear();
        let mut matched = BTreeSet::new();
        for pattern in self.patterns.clone() {
            let glob = pattern.is_glob();
            let mut files = Vec::new();
            if glob {
                pattern.expand(&mut files, &mut self.folders);
            } else if at_start {
                files.push(pattern.path.clone());
            }
            for path in files {
                matched.insert(path.clone());
                if let Some(name) = self.names.get_mut(&path) {
                    if !name.tags.contains(&pattern.tag) {
                        name.tags.push(pattern.tag);
                    }
                } else if self.names.len() < MAX_FILES {
                    self.add(path, pattern.tag, glob, at_start);
                } else if !std::mem::replace(&mut self.told_many, true) {
                    tracing::warn!(
                        "log_watch: {}: more than {MAX_FILES} logs match; the rest is not followed",
                        pattern.path.display()
                    );
                }
            }
        }
        // Gone, or only its log's rotated part since the log itself is there again.
        let gone = self.names.iter().filter(|(path, name)| name.matched && !matched.contains(*path));
        for path in gone.map(|(path, _)| path.clone()).collect::<Vec<_>>() {
            self.missing(&path);
        }
        self.folders = std::mem::take(&mut self.folders)
            .into_iter()
            .map(|folder| folder.canonicalize().unwrap_or(folder))
            .collect();
    }

    fn add(&mut self, path: PathBuf, tag: usize, matched: bool, at_start: bool) {
        let folder = path.parent().unwrap_or(Path::new("/"));
        let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        let mark = self.watch.mark(&folder.join(path.file_name().unwrap_or_default()));
        let name = Name {
            tags: vec![tag],
            matched,
            seen: mark.named.load(Ordering::Acquire),
            mark,
            folder,
            current: None,
            following: Following::Missing,
            told: None,
            old: Old::Nothing,
            rotations: 0,
            long_lines: 0,
        };
        self.names.insert(path.clone(), name);
        if !at_start {
            self.refresh(&path);
        }
    }

    /// Logs that a pattern matched and that are not there now: their rotated part may be.
    fn restore_nameless(&mut self, saved: &[Position]) {
        let nameless = saved.iter().filter(|position| !self.names.contains_key(&position.path));
        for position in nameless.take(MAX_FILES) {
            let covering = self.patterns.iter().filter(|pattern| pattern.covers(&position.path));
            let tags: Vec<usize> = covering.map(|pattern| pattern.tag).collect();
            if !tags.is_empty() {
                let watch = &self.watch;
                self.files.restore(&position.path, &[position], &tags, |real| watch.mark(real));
            }
        }
    }

    /// At the start: goes on where `saved` says. A file without a position is old as far as it
    /// goes now, if its name was not watched before, and else new.
    fn restore(&mut self, path: &Path, saved: &[Position]) {
        let watched = self.patterns.iter().any(|pattern| {
            pattern.covers(path) && saved.iter().any(|position| position.path == pattern.path)
        });
        let saved: Vec<&Position> = saved.iter().filter(|position| position.path == *path).collect();
        if let Some(name) = self.names.get_mut(path) {
            name.old = match path.metadata() {
                _ if watched || !saved.is_empty() => Old::Nothing,
                Ok(found) => Old::Bytes(Identity::of(&found), found.len()),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Old::Nothing,
                Err(_) => Old::All,
            };
            let tags = name.tags.clone();
            let watch = &self.watch;
            self.files.restore(path, &saved, &tags, |real| watch.mark(real));
        }
        self.refresh(path);
        if let Some(name) = self.names.get_mut(path) {
            name.rotations = 0;
        }
    }

    /// Asks which file a name means now; returns whether that has changed.
    fn refresh(&mut self, path: &Path) -> bool {
        let Some(name) = self.names.get_mut(path) else { return false };
        name.seen = name.mark.named.load(Ordering::Acquire);
        let metadata = match path.metadata() {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return self.missing(path),
            Err(error) => return self.unreadable(path, error.to_string()),
        };
        let identity = Identity::of(&metadata);
        if let Some(stream) = name.current.and_then(|id| self.files.of_mut(id))
            && stream.identity == identity
        {
            stream.compare(&metadata);
            return false;
        }
        if !metadata.is_file() {
            return self.unreadable(path, "it is no regular file".to_owned());
        }
        match open_regular(path) {
            Ok(opened) => self.turn_to(path, opened),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => self.missing(path),
            Err(error) => self.unreadable(path, error.to_string()),
        }
    }

    /// The name means another file now.
    fn turn_to(&mut self, path: &Path, (file, metadata): (File, std::fs::Metadata)) -> bool {
        let Some(name) = self.names.get_mut(path) else { return false };
        let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let mark = self.watch.mark(&real);
        let end = match name.old {
            Old::Bytes(identity, size) if identity == Identity::of(&metadata) && size <= metadata.len() => {
                stream::end_of(&file, size, MAX_LINE)
            }
            Old::All => stream::end_of(&file, metadata.len(), MAX_LINE),
            _ => Ok(0),
        };
        let before = name.current;
        let opened = end.and_then(|offset| {
            self.files.take_up(path, real, (file, metadata), offset, mark, &name.tags, before)
        });
        match opened {
            Ok(id) => {
                if before != Some(id) {
                    name.rotations += u64::from(self.files.has_older(path, id));
                    self.leave(path);
                }
                if let Some(name) = self.names.get_mut(path) {
                    name.current = Some(id);
                    name.old = Old::Nothing;
                    name.following = Following::Followed;
                }
                true
            }
            Err(error) => self.unreadable(path, error.to_string()),
        }
    }

    /// The file that `path` meant is followed without a name from now on.
    fn leave(&mut self, path: &Path) {
        let Some(id) = self.names.get_mut(path).and_then(|name| name.current.take()) else { return };
        if !self.names.values().any(|name| name.current == Some(id)) {
            self.files.nameless(id);
        }
    }

    fn missing(&mut self, path: &Path) -> bool {
        let turned = self.names.get(path).is_some_and(|name| name.current.is_some());
        self.leave(path);
        let Some(name) = self.names.get_mut(path) else { return turned };
        if name.matched {
            self.names.remove(path);
            return turned;
        }
        name.following = Following::Missing;
        name.old = Old::Nothing;
        turned
    }

    fn unreadable(&mut self, path: &Path, why: String) -> bool {
        let turned = self.names.get(path).is_some_and(|name| name.current.is_some());
        self.leave(path);
        let Some(name) = self.names.get_mut(path) else { return turned };
        if name.told.as_ref() != Some(&why) {
            tracing::warn!(
                "log_watch: {}: cannot be read: {why}; let edge's user read it (tried again every second)",
                path.display()
            );
            name.told = Some(why.clone());
        }
        name.following = Following::Unreadable(why);
        turned
    }

    /// Watches the folders of all names, of what they lead to, and of the patterns.
    fn follow_folders(&mut self) {
        let real = self.files.folders();
        let links = self.names.iter().map(|(path, name)| {
            let folder = path.parent().unwrap_or(Path::new("/"));
            folder.canonicalize().unwrap_or_else(|_| name.folder.clone())
        });
        let wanted: Vec<PathBuf> = links.chain(real).chain(self.folders.iter().cloned()).collect();
        // A link among the folders may lead elsewhere now: then the names are marked there.
        for (path, name) in &mut self.names {
            let folder = path.parent().unwrap_or(Path::new("/"));
            if let Ok(folder) = folder.canonicalize()
                && folder != name.folder
            {
                name.mark = self.watch.mark(&folder.join(path.file_name().unwrap_or_default()));
                name.seen = name.mark.named.load(Ordering::Acquire);
                name.folder = folder;
            }
        }
        if self.watch.follow(wanted.into_iter()) {
            // What happened before a watch began is not heard of.
            self.files.all_pending();
            for name in self.names.values_mut() {
                name.seen = name.seen.wrapping_sub(1);
            }
        }
    }
}
