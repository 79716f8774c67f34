//! The open files: which is whose predecessor, who is read next, and where a saved position or a
//! truncated file's copy lies. Must not know patterns or inotify.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Position;
use super::stream::{HEAD, Identity, Step, Stream, fits, open_regular};
use super::watch::Mark;

/// A file without a name is let go after so many looks without growth (about ten minutes): a
/// program may write to it until it reopens.
const QUIET: u32 = 600;
/// The same for a deleted one, whose disk space is held meanwhile.
const QUIET_DELETED: u32 = 10;
/// Of one log, at most so many predecessors are held open.
const PREDECESSORS: usize = 8;
/// In one folder, at most so many files are asked whether they are a predecessor.
const SIBLINGS: usize = 256;
/// A head must be so long to tell a file without its inode's help.
const TELLING: u64 = 256;

/// What happened while reading.
#[derive(Default)]
pub(super) struct Ended {
    /// Logs that were truncated.
    pub(super) truncated: Vec<Arc<Path>>,
    /// Files that could not be read on, and why. They are closed, and remembered.
    pub(super) failed: Vec<(u64, Arc<Path>, String)>,
}

/// A file that is not open any more, or could not be opened again.
struct Left {
    position: Position,
    tags: Vec<usize>,
    /// It was not read to its end: it is looked for, and its position saved.
    owed: bool,
    /// How often it was looked for while its log was read on.
    tries: u32,
}

/// Oldest first.
#[derive(Default)]
pub(super) struct OpenFiles {
    streams: Vec<Stream>,
    ids: u64,
    /// Who is read first at the next call, so that a busy log starves none.
    turn: usize,
    left: Vec<Left>,
}

impl OpenFiles {
    pub(super) fn of(&self, id: u64) -> Option<&Stream> {
        self.streams.iter().find(|stream| stream.id == id)
    }

    pub(super) fn of_mut(&mut self, id: u64) -> Option<&mut Stream> {
        self.streams.iter_mut().find(|stream| stream.id == id)
    }

    /// Follows a newly opened file, or the one that is already open under another name.
    #[allow(clippy::too_many_arguments, reason = "everything a file has when it is opened")]
    pub(super) fn take_up(
        &mut self,
        path: &Path,
        real: PathBuf,
        opened: (File, std::fs::Metadata),
        offset: u64,
        mark: Arc<Mark>,
        tags: &[usize],
        before: Option<u64>,
    ) -> io::Result<u64> {
        let identity = Identity::of(&opened.1);
        let known = self.streams.iter_mut().find(|stream| {
            stream.identity == identity
                && (&*stream.path == path || tags.iter().all(|tag| stream.tags.contains(tag)))
        });
        if let Some(stream) = known {
            stream.quiet = None;
            stream.pending = true;
            stream.mark = mark;
            stream.real = real;
            return Ok(stream.id);
        }
        let offset = self.recall(path, &opened.0, identity)?.unwrap_or(offset);
        self.ids += 1;
        let mut stream = Stream::new(self.ids, (Arc::from(path), real), opened, offset, mark)?;
        stream.tags = tags.to_vec();
        stream.after = before.or_else(|| self.newest(path));
        if let Some(before) = stream.after.and_then(|id| self.of_mut(id)) {
            before.pending = true;
        }
        self.streams.push(stream);
        Ok(self.ids)
    }

    /// How far this file had been read when it was closed.
    fn recall(&mut self, path: &Path, file: &File, identity: Identity) -> io::Result<Option<u64>> {
        let is_it = |left: &Left| {
            let Position { device, inode, .. } = left.position;
            left.position.path == path && Identity { device, inode } == identity
        };
        let Some(index) = self.left.iter().rposition(is_it) else { return Ok(None) };
        let Position { offset, fingerprint, .. } = self.left[index].position;
        // Where its beginning cannot be read it stays remembered.
        let same = fits(file, offset, fingerprint)?;
        self.left.retain(|left| !is_it(left));
        Ok(same.then_some(offset))
    }

    fn remember(&mut self, left: Left) {
        let Position { path, device, inode, .. } = &left.position;
        self.left.retain(|old| {
            (&old.position.path, old.position.device, old.position.inode) != (path, *device, *inode)
        });
        let same = |old: &Left| old.position.path == *path;
        if self.left.iter().filter(|old| same(old)).count() >= PREDECESSORS
            && let Some(oldest) = self.left.iter().position(same)
        {
            self.left.remove(oldest);
        }
        self.left.push(left);
    }

    /// Logs of which an earlier file was not read to its end.
    pub(super) fn owed(&self) -> Vec<PathBuf> {
        let mut paths: Vec<PathBuf> =
            self.left.iter().filter(|left| left.owed).map(|left| left.position.path.clone()).collect();
        paths.sort();
        paths.dedup();
        paths
    }

    /// Looks for what is owed of a log that is itself read on.
    pub(super) fn look_for(&mut self, path: &Path, mark: impl Fn(&Path) -> Arc<Mark>) {
        let (owed, rest) = std::mem::take(&mut self.left)
            .into_iter()
            .partition(|left| left.owed && left.position.path == path);
        self.left = rest;
        let owed: Vec<Left> = owed;
        for mut left in owed {
            left.tries += 1;
            if !self.reopen(path, &left.position, &left.tags, &mark) {
                if left.tries < QUIET {
                    self.remember(left);
                } else {
                    tracing::warn!(
                        "log_watch: {}: an earlier file of it is not found or cannot be read; the rest of its lines \
                         is given up",
                        path.display()
                    );
                }
            }
        }
    }

    fn newest(&self, path: &Path) -> Option<u64> {
        self.streams.iter().rev().find(|stream| &*stream.path == path).map(|stream| stream.id)
    }

    /// Whether `id` has a predecessor under this name.
    pub(super) fn has_older(&self, path: &Path, id: u64) -> bool {
        self.streams.iter().any(|stream| &*stream.path == path && stream.id != id)
    }

    /// No name leads to it any more; it is read until it is quiet.
    pub(super) fn nameless(&mut self, id: u64) {
        let Some(stream) = self.of_mut(id) else { return };
        stream.pending = true;
        stream.quiet = Some(0);
        let path = Arc::clone(&stream.path);
        let mut older = self.streams.iter().filter(|s| s.path == path && s.quiet.is_some()).count();
        while older > PREDECESSORS {
            let oldest = self.streams.iter().position(|s| s.path == path && s.quiet.is_some());
            if let Some(oldest) = oldest.map(|oldest| self.streams.remove(oldest))
                && oldest.pending
            {
                tracing::warn!(
                    "log_watch: {}: is rotated faster than it is read; {} bytes of an old file are given up",
                    path.display(),
                    oldest.behind()
                );
            }
            older -= 1;
        }
    }

    pub(super) fn all_pending(&mut self) {
        self.streams.iter_mut().for_each(|stream| stream.pending = true);
    }

    pub(super) fn any_pending(&self) -> bool {
        self.streams.iter().any(|stream| stream.pending)
    }

    pub(super) fn any_nameless(&self) -> bool {
        self.streams.iter().any(|stream| stream.quiet.is_some())
    }

    pub(super) fn folders(&self) -> Vec<PathBuf> {
        let named = self.streams.iter().filter(|stream| stream.quiet.is_none());
        named.filter_map(|stream| stream.real.parent().map(Path::to_owned)).collect()
    }

    /// Block by block, each file in turn, until the budget is used or all are at their end.
    pub(super) fn read(
        &mut self,
        budget: usize,
        max_line: usize,
        buffer: &mut [u8],
        each: &mut dyn FnMut(usize, &Path, &[u8]),
    ) -> Ended {
        let (mut ended, mut left) = (Ended::default(), budget.max(1));
        loop {
            let count = self.streams.len();
            let mut moved = false;
            for step in 0..count {
                if left == 0 {
                    self.turn = self.turn.wrapping_add(step);
                    return ended;
                }
                let index = self.turn.wrapping_add(step) % count;
                if self.is_due(index) {
                    moved = true;
                    left = left.saturating_sub(self.step(index, max_line, buffer, each, &mut ended));
                }
            }
            if !ended.failed.is_empty() {
                for (id, ..) in &ended.failed {
                    if let Some(index) = self.streams.iter().position(|stream| stream.id == *id) {
                        let stream = self.streams.remove(index);
                        self.close(&stream, true);
                    }
                }
                return ended;
            }
            if !moved {
                return ended;
            }
        }
    }

    fn close(&mut self, stream: &Stream, owed: bool) {
        let (position, tags) = (position(stream), stream.tags.clone());
        self.remember(Left { position, tags, owed, tries: 0 });
    }

    fn is_due(&mut self, index: usize) -> bool {
        let stream = &mut self.streams[index];
        let written = stream.mark.written.load(Ordering::Acquire);
        stream.pending |= written != stream.seen;
        stream.seen = written;
        let (pending, after) = (stream.pending, stream.after);
        pending && !after.and_then(|id| self.of(id)).is_some_and(|older| older.pending)
    }

    fn step(
        &mut self,
        index: usize,
        max_line: usize,
        buffer: &mut [u8],
        each: &mut dyn FnMut(usize, &Path, &[u8]),
        ended: &mut Ended,
    ) -> usize {
        let stream = &mut self.streams[index];
        let (before, path, tags) =
            (stream.offset, Arc::clone(&stream.path), std::mem::take(&mut stream.tags));
        let step = stream.step(buffer, max_line, &mut |line| {
            for tag in &tags {
                each(*tag, &path, line);
            }
        });
        stream.tags = tags;
        match step {
            Step::More => {}
            Step::End => stream.pending = false,
            Step::Truncated => {
                self.truncated(index);
                ended.truncated.push(path);
                return 0;
            }
            Step::Failed(error) => {
                stream.pending = false;
                ended.failed.push((stream.id, path, error.to_string()));
            }
        }
        // An empty step counts, too, so that no call is endless.
        usize::try_from(self.streams[index].offset.saturating_sub(before)).unwrap_or(usize::MAX).max(1)
    }

    /// Copytruncate: what had not been read is in the copy, if it lies beside the log.
    fn truncated(&mut self, index: usize) {
        let copy = self.find_copy(&self.streams[index]);
        let (ids, stream) = (&mut self.ids, &mut self.streams[index]);
        let offset = stream.offset;
        let copied = copy.and_then(|(real, opened)| {
            *ids += 1;
            let mark = Arc::new(Mark::default());
            let mut copy = Stream::new(*ids, (Arc::clone(&stream.path), real), opened, offset, mark).ok()?;
            copy.tags.clone_from(&stream.tags);
            copy.quiet = Some(0);
            copy.after = stream.after;
            Some(copy)
        });
        stream.start_again();
        if let Some(copy) = copied {
            stream.after = Some(copy.id);
            // Behind it, so that the indices of this pass stay true.
            self.streams.push(copy);
        }
    }

    fn find_copy(&self, stream: &Stream) -> Option<(PathBuf, (File, std::fs::Metadata))> {
        siblings(&stream.real).into_iter().find_map(|path| {
            let (file, metadata) = open_regular(&path).ok()?;
            let identity = Identity::of(&metadata);
            let fits = metadata.len() >= stream.offset
                && !self.streams.iter().any(|other| other.identity == identity)
                && stream.is_copied_in(&file);
            fits.then_some((path, (file, metadata)))
        })
    }

    /// Goes on with what `saved` says was read of `path`: the file itself, or where it was
    /// rotated to. What is not found is remembered for when it is.
    pub(super) fn restore(
        &mut self,
        path: &Path,
        saved: &[&Position],
        tags: &[usize],
        mark: impl Fn(&Path) -> Arc<Mark>,
    ) {
        // One that is not even waited for was only watched for.
        for position in saved.iter().filter(|position| position.inode != 0) {
            if !self.reopen(path, position, tags, &mark) {
                let (position, tags) = ((*position).clone(), tags.to_vec());
                // Rotated and gone, most often: it is not looked for again for long.
                self.remember(Left { position, tags, owed: true, tries: QUIET - 3 });
            }
        }
    }

    /// Follows a file again without a name; whether one leads to it is found out next.
    fn reopen(
        &mut self,
        path: &Path,
        position: &Position,
        tags: &[usize],
        mark: &impl Fn(&Path) -> Arc<Mark>,
    ) -> bool {
        let Ok(real) = path.canonicalize().or_else(|_| real_folder(path)) else { return false };
        let Some((found, opened)) = find_saved(&real, position) else { return false };
        let identity = Identity::of(&opened.1);
        if self.streams.iter().any(|s| s.identity == identity && &*s.path == path) {
            return true;
        }
        let after = self.newest(path);
        self.ids += 1;
        let names = (Arc::from(path), found.clone());
        let Ok(mut stream) = Stream::new(self.ids, names, opened, position.offset, mark(&found)) else {
            return false;
        };
        stream.tags = tags.to_vec();
        stream.after = after;
        stream.quiet = Some(0);
        self.streams.push(stream);
        true
    }

    /// Looks at the files that have no name, lets the quiet ones go and returns what they had
    /// counted: their log's name and its long lines.
    pub(super) fn look(&mut self) -> Vec<(Arc<Path>, u64)> {
        let (mut gone, mut closed) = (Vec::new(), Vec::new());
        self.streams.retain_mut(|stream| {
            let Some(quiet) = stream.quiet else { return true };
            let before = stream.looked;
            let (names, failed) = stream.look().map_or((0, true), |names| (names, false));
            if stream.pending && !failed || stream.looked != before {
                stream.quiet = Some(0);
                return true;
            }
            stream.quiet = Some(quiet + 1);
            let stays = !failed && quiet < if names == 0 { QUIET_DELETED } else { QUIET };
            if !stays {
                gone.push((Arc::clone(&stream.path), stream.splitter.long_lines));
                let (position, tags) = (position(stream), stream.tags.clone());
                closed.push(Left { position, tags, owed: failed, tries: 0 });
            }
            stays
        });
        closed.into_iter().for_each(|left| self.remember(left));
        gone
    }

    pub(super) fn positions(&self) -> Vec<Position> {
        // A log that goes on from its copy comes after it.
        let mut streams: Vec<&Stream> = self.streams.iter().collect();
        streams.sort_by_key(|stream| stream.quiet.is_none());
        let owed = self.left.iter().filter(|left| left.owed).map(|left| left.position.clone());
        owed.chain(streams.into_iter().map(position)).collect()
    }

    /// Bytes not handed out and long lines skipped, of all files of this name.
    pub(super) fn sums(&self, path: &Path) -> (u64, u64) {
        let streams = self.streams.iter().filter(|stream| &*stream.path == path);
        streams.fold((0, 0), |(behind, long), s| (behind + s.behind(), long + s.splitter.long_lines))
    }
}

fn position(stream: &Stream) -> Position {
    Position {
        path: stream.path.to_path_buf(),
        device: stream.identity.device,
        inode: stream.identity.inode,
        offset: stream.offset,
        fingerprint: stream.fingerprint(),
    }
}

fn find_saved(real: &Path, position: &Position) -> Option<(PathBuf, (File, std::fs::Metadata))> {
    let mut candidates = vec![real.to_owned()];
    candidates.extend(same_inode(real, position.inode));
    candidates.extend(siblings(real));
    let mut copies = Vec::new();
    for path in candidates {
        let Ok(opened) = open_regular(&path) else { continue };
        if !fits(&opened.0, position.offset, position.fingerprint).is_ok_and(|fits| fits) {
            continue;
        }
        if opened.1.ino() == position.inode {
            return Some((path, opened));
        }
        copies.push((path, opened));
    }
    // Copytruncate gives a copy with another inode, and some file systems new inodes at a mount.
    let telling = position.offset >= TELLING.min(HEAD as u64);
    copies.into_iter().next().filter(|_| telling)
}

/// The file beside `real` that has this inode, whatever its name: asks no file but the one found.
fn same_inode(real: &Path, inode: u64) -> Option<PathBuf> {
    let entries = std::fs::read_dir(real.parent()?).ok()?;
    entries.filter_map(Result::ok).find(|entry| entry.ino() == inode).map(|entry| entry.path())
}

/// Files beside `real` whose names begin with its own, newest first.
fn siblings(real: &Path) -> Vec<PathBuf> {
    let (Some(folder), Some(name)) = (real.parent(), real.file_name()) else { return Vec::new() };
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut found: Vec<_> = entries
        .filter_map(Result::ok)
        .filter(|entry| {
            entry.file_name() != name && is_sibling(name.as_bytes(), entry.file_name().as_bytes())
        })
        .filter_map(|entry| Some((entry.metadata().ok()?, entry.path())))
        .filter(|(metadata, _)| metadata.is_file())
        .map(|(metadata, path)| ((metadata.ctime(), metadata.ctime_nsec()), path))
        .collect();
    found.sort_by(|a, b| b.cmp(a));
    found.truncate(SIBLINGS);
    found.into_iter().map(|(_, path)| path).collect()
}

/// `a.log.1`, `a.log-20261122`, `a-20261122.log`: rotation keeps the stem.
fn is_sibling(name: &[u8], other: &[u8]) -> bool {
    let stem = name.iter().position(|byte| *byte == b'.').map_or(name, |dot| &name[..dot.max(1)]);
    other.starts_with(stem)
}

fn real_folder(path: &Path) -> io::Result<PathBuf> {
    let folder = path.parent().unwrap_or(Path::new("/")).canonicalize()?;
    Ok(folder.join(path.file_name().unwrap_or_default()))
}
