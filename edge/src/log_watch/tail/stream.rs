//! One open log file and how far it has been read. Knows offsets and what proves that the file
//! is still the one it was; must not know its names or why it was opened.
//!
//! Nothing of an incomplete line is kept: it is read again, with its end, at the next step. So
//! the offset alone says what has been handed out.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::split::Splitter;
use super::watch::Mark;

/// So many first bytes prove that a file is still the same one.
pub(super) const HEAD: usize = 1024;
/// So many bytes before the offset prove that another file is a copy of this one.
const LAST: usize = 64;

/// What one block gave.
pub(super) enum Step {
    /// A full block: there may be more.
    More,
    /// Everything there is now.
    End,
    /// The file is not what it was: it was truncated, and may have grown again.
    Truncated,
    /// The system's reason.
    Failed(io::Error),
}

/// Which file it is, for as long as somebody holds it open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) device: u64,
    pub(super) inode: u64,
}

impl Identity {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// One open file.
pub(super) struct Stream {
    /// Never given twice.
    pub(super) id: u64,
    /// The name that was watched when it was opened.
    pub(super) path: Arc<Path>,
    /// Where it really lies, behind symbolic links.
    pub(super) real: PathBuf,
    pub(super) identity: Identity,
    /// Who wants its lines.
    pub(super) tags: Vec<usize>,
    /// The first byte that has not been handed out.
    pub(super) offset: u64,
    /// What inotify says of it.
    pub(super) mark: Arc<Mark>,
    /// The count of `mark` up to which it has been read.
    pub(super) seen: u64,
    /// There may be more to read right now.
    pub(super) pending: bool,
    /// This one must be at its end first: it is the same log's older part.
    pub(super) after: Option<u64>,
    /// No name leads to it any more: for so many looks it has not grown.
    pub(super) quiet: Option<u32>,
    /// Size and time of change at the last look.
    pub(super) looked: (u64, i64, i64),
    pub(super) splitter: Splitter,
    file: File,
    head: Vec<u8>,
    last: Vec<u8>,
}

/// Opens a regular file without ever waiting: a FIFO or a device in its place is refused.
pub(super) fn open_regular(path: &Path) -> io::Result<(File, Metadata)> {
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits()).unwrap_or(0);
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    Ok((file, metadata))
}

impl Stream {
    /// Follows `file` from `offset`, which is a line's beginning or lies within a long line.
    pub(super) fn new(
        id: u64,
        names: (Arc<Path>, PathBuf),
        (file, metadata): (File, Metadata),
        offset: u64,
        mark: Arc<Mark>,
    ) -> io::Result<Self> {
        let head = exactly(&file, 0, HEAD.min(usize::try_from(offset).unwrap_or(HEAD)))?;
        let back = offset.saturating_sub(LAST as u64);
        let last = exactly(&file, back, usize::try_from(offset - back).unwrap_or(LAST))?;
        // A position within a line can only be one within a line that was too long.
        let skipping = last.last().is_some_and(|byte| !matches!(byte, b'\n' | 0));
        Ok(Self {
            id,
            path: names.0,
            real: names.1,
            identity: Identity::of(&metadata),
            tags: Vec::new(),
            offset,
            mark,
            seen: 0,
            pending: true,
            after: None,
            quiet: None,
            looked: state_of(&metadata),
            splitter: Splitter { skipping, long_lines: 0 },
            file,
            head,
            last,
        })
    }

    /// Reads one block and hands its lines out.
    pub(super) fn step(&mut self, buffer: &mut [u8], max_line: usize, each: &mut dyn FnMut(&[u8])) -> Step {
        let read = match read_at(&self.file, buffer, self.offset) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Step::More,
            Err(error) => return Step::Failed(error),
        };
        // Asked after the block was read: if the head is still the same, the block was read
        // before any truncation.
        match self.head_is_the_same() {
            Ok(true) => {}
            Ok(false) => return Step::Truncated,
            Err(error) => return Step::Failed(error),
        }
        if read == 0 {
            return match self.file.metadata() {
                Ok(metadata) if metadata.len() < self.offset => Step::Truncated,
                Ok(_) => Step::End,
                Err(error) => Step::Failed(error),
            };
        }
        let full = read == buffer.len();
        let block = &buffer[..read];
        if !self.splitter.skipping && full && block.iter().all(|byte| *byte == 0) {
            self.hop_over_hole(read as u64);
            return Step::More;
        }
        let settled = self.splitter.split(block, max_line, each);
        self.settle(&block[..settled]);
        if full { Step::More } else { Step::End }
    }

    /// A hole may be gigabytes long: the file system knows where it ends.
    fn hop_over_hole(&mut self, known: u64) {
        let from = self.offset + known;
        let to = match rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Data(from)) {
            Ok(data) => data.max(from),
            // Where holes are unknown, or nothing follows, it is read block by block.
            Err(_) => from,
        };
        self.offset = to;
        self.head.resize(HEAD.min(usize::try_from(to).unwrap_or(HEAD)).max(self.head.len()), 0);
        self.last.clear();
        self.last.push(0);
    }

    fn settle(&mut self, bytes: &[u8]) {
        if self.head.len() < HEAD && self.head.len() as u64 == self.offset {
            self.head.extend_from_slice(&bytes[..bytes.len().min(HEAD - self.head.len())]);
        }
        self.last.extend_from_slice(&bytes[bytes.len().saturating_sub(LAST)..]);
        self.last.drain(..self.last.len().saturating_sub(LAST));
        self.offset += bytes.len() as u64;
    }

    fn head_is_the_same(&self) -> io::Result<bool> {
        let mut now = [0; HEAD];
        let now = &mut now[..self.head.len()];
        Ok(read_fully(&self.file, 0, now)? == now.len() && now[..] == self.head[..])
    }

    /// It was truncated: what is in it now is new.
    pub(super) fn start_again(&mut self) {
        self.offset = 0;
        self.head.clear();
        self.last.clear();
        self.splitter.skipping = false;
        self.pending = true;
    }

    /// Whether `other` begins as this file did and goes on where it was left.
    pub(super) fn is_copied_in(&self, other: &File) -> bool {
        if self.head.is_empty() || self.last.is_empty() {
            return false;
        }
        let head = exactly(other, 0, self.head.len());
        let back = self.offset - (self.last.len() as u64).min(self.offset);
        let last = exactly(other, back, self.last.len());
        head.is_ok_and(|head| head == self.head) && last.is_ok_and(|last| last == self.last)
    }

    /// See [`fingerprint`].
    pub(super) fn fingerprint(&self) -> u64 {
        fingerprint(&self.head)
    }

    /// Bytes that have not been handed out, an incomplete last line among them.
    pub(super) fn behind(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.len().saturating_sub(self.offset))
    }

    /// Looks whether it has changed since the last look; returns how many names it still has.
    pub(super) fn look(&mut self) -> io::Result<u64> {
        let metadata = self.file.metadata()?;
        self.compare(&metadata);
        Ok(metadata.nlink())
    }

    /// The same, where its metadata is at hand.
    pub(super) fn compare(&mut self, metadata: &Metadata) -> bool {
        let now = state_of(metadata);
        let changed = now != self.looked;
        self.looked = now;
        self.pending |= changed;
        changed
    }
}

fn state_of(metadata: &Metadata) -> (u64, i64, i64) {
    (metadata.len(), metadata.mtime(), metadata.mtime_nsec())
}

/// FNV-1a, 64 bit, over the first bytes of a file: up to its offset, at most [`HEAD`].
pub(super) fn fingerprint(head: &[u8]) -> u64 {
    head.iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Whether `file` may be the one whose position this was.
pub(super) fn fits(file: &File, offset: u64, saved: u64) -> io::Result<bool> {
    if file.metadata()?.len() < offset {
        return Ok(false);
    }
    let head = exactly(file, 0, HEAD.min(usize::try_from(offset).unwrap_or(HEAD)))?;
    Ok(fingerprint(&head) == saved)
}

/// The end of `file`, or the beginning of its incomplete last line.
pub(super) fn end_of(file: &File, size: u64, max_line: usize) -> io::Result<u64> {
    let back = size.saturating_sub(max_line as u64 + 1);
    let tail = exactly(file, back, usize::try_from(size - back).unwrap_or(max_line))?;
    Ok(match memchr::memrchr(b'\n', &tail) {
        Some(last) => back + last as u64 + 1,
        None if back == 0 => 0,
        None => size,
    })
}

fn exactly(file: &File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let read = read_fully(file, offset, &mut bytes)?;
    if read < length {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter while it was opened"));
    }
    Ok(bytes)
}

#[cfg(not(test))]
fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    file.read_at(bytes, offset)
}

/// No ordinary file fails on demand: tests name inodes that do.
#[cfg(test)]
fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    if FAILING.get() == Some(file.metadata()?.ino()) {
        return Err(rustix::io::Errno::IO.into());
    }
    file.read_at(bytes, offset)
}

#[cfg(test)]
std::thread_local! {
    /// The inode whose file this thread cannot read.
    pub(super) static FAILING: std::cell::Cell<Option<u64>> = const { std::cell::Cell::new(None) };
}

fn read_fully(file: &File, mut offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < bytes.len() {
        match read_at(file, &mut bytes[filled..], offset) {
            Ok(0) => break,
            Ok(read) => {
                filled += read;
                offset += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
