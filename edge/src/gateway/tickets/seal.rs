//! The seal on the store and its witness: which files they are, as their file system sees them. Knows
//! inodes and times of change; must not know what stands in the files. It exists because both can be
//! put back together, and would then agree about an earlier state. But whatever copies, moves or
//! touches a file gives it another time of change, and nobody can set that to what it was.
//!
//! The seal is a small file beside the store, and one in memory (`/run`) where there is such a place:
//! that one stays when the store's whole folder or file system is put back, files and times alike.
//! No clock is read: two stamps are the same or not. The seal's own file needs none, since an earlier
//! seal names an earlier witness.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A file, as it was changed last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    seconds: i64,
    nanoseconds: i64,
}

impl Stamp {
    pub(super) fn of(file: &Metadata) -> Self {
        Self { device: file.dev(), inode: file.ino(), seconds: file.ctime(), nanoseconds: file.ctime_nsec() }
    }

    /// Of the file to which `path` leads.
    pub(super) fn at(path: &Path) -> io::Result<Self> {
        std::fs::metadata(path).map(|file| Self::of(&file))
    }

    pub(super) fn is_same_file(self, other: Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }

    /// Which file, whenever it was changed. An unknown boot of the host is never the same again.
    pub(super) fn place(self, boot: Option<&str>) -> Option<String> {
        boot.map(|boot| format!("{boot} {}:{}", self.device, self.inode))
    }
}

/// What the seal's files hold: a hash of the store's path and both stamps.
type Bits = [u8; 32];

pub(super) struct Seal {
    /// The store, wherever edge was started.
    store: PathBuf,
    file: File,
    memory: Option<File>,
    /// What all of them said when they were opened, where they said the same.
    said: Option<Bits>,
}

impl Seal {
    /// Opens or makes the seal of `store`, also at `memory` (mode 0600).
    pub(super) fn of(store: &Path, memory: Option<&Path>) -> io::Result<Self> {
        let file = open(&PathBuf::from(format!("{}.seal", store.display())))?;
        let mut said = read(&file)?;
        let memory = memory.filter(|memory| memory.parent().is_some_and(Path::is_dir));
        let was_there = memory.is_some_and(Path::exists);
        let memory = memory.and_then(|path| {
            open(path)
                .inspect_err(|error| {
                    tracing::warn!(
                        "tickets: {}: {error}; a store that is put back with its whole folder is not noticed; \
                         give the file to edge's user, or delete it",
                        path.display()
                    );
                })
                .ok()
        });
        // One that is not there any more says nothing: whoever ends a service may clear its place.
        if was_there && said.is_some() {
            let other = memory.as_ref().and_then(|memory| read(memory).ok().flatten());
            said = said.filter(|said| other == Some(*said));
        }
        Ok(Self { store: std::path::absolute(store)?, file, memory, said })
    }

    /// Are these the store and the witness that were sealed last? No store: one that edge was just
    /// changing.
    pub(super) fn is_whole(&self, store: Option<Stamp>, witness: Stamp) -> bool {
        self.said == Some(self.bits(store, witness))
    }

    pub(super) fn put(&self, store: Option<Stamp>, witness: Stamp) -> io::Result<()> {
        let bits = self.bits(store, witness);
        write(&self.file, &bits)?;
        if let Some(memory) = &self.memory {
            // What it says instead leads to a doubt.
            let _stale = write(memory, &bits);
        }
        Ok(())
    }

    fn bits(&self, store: Option<Stamp>, witness: Stamp) -> Bits {
        let mut hasher = blake3::Hasher::new();
        for Stamp { device, inode, seconds, nanoseconds } in store.into_iter().chain([witness]) {
            for part in [device.to_be_bytes(), inode.to_be_bytes()] {
                hasher.update(&part);
            }
            for part in [seconds, nanoseconds] {
                hasher.update(&part.to_be_bytes());
            }
        }
        *hasher.update(self.store.as_os_str().as_encoded_bytes()).finalize().as_bytes()
    }
}

/// Opens or makes a small file of edge's own (mode 0600).
pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// `None`: it is new, or nothing of ours.
pub(super) fn read(file: &File) -> io::Result<Option<Bits>> {
    let mut bits = Bits::default();
    if file.metadata()?.len() != bits.len() as u64 {
        return Ok(None);
    }
    file.read_exact_at(&mut bits, 0)?;
    Ok(Some(bits))
}

/// Written over what was there, which needs no room.
pub(super) fn write(file: &File, bits: &Bits) -> io::Result<()> {
    file.write_all_at(bits, 0)?;
    if file.metadata()?.len() == bits.len() as u64 { Ok(()) } else { file.set_len(bits.len() as u64) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Longer than a tick, after which a file system's time is another.
    const TICK: Duration = Duration::from_millis(50);

    #[test]
    fn a_copy_a_move_and_a_touch_break_the_seal_and_reading_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name| folder.path().join(name);
        let (store, witness, memory) = (path("store"), path("witness"), path("memory"));
        let stamps = || (Stamp::at(&store).ok(), Stamp::at(&witness).unwrap());
        let is_whole = || {
            let (store_is, witness_is) = stamps();
            Seal::of(&store, Some(&memory)).unwrap().is_whole(store_is, witness_is)
        };
        let seal = || {
            let (store_is, witness_is) = stamps();
            Seal::of(&store, Some(&memory)).unwrap().put(store_is, witness_is).unwrap();
            assert!(is_whole());
            std::thread::sleep(TICK);
        };
        for file in [&store, &witness] {
            std::fs::write(file, "x").unwrap();
        }
        assert!(!is_whole(), "never sealed");
        seal();
        assert_eq!(std::fs::read(&store).unwrap(), b"x");
        assert!(is_whole());
        for file in [&store, &witness] {
            let other = path("other");
            std::fs::copy(file, &other).unwrap();
            std::fs::copy(&other, file).unwrap();
            assert!(!is_whole(), "copied back in place");
            seal();
            std::fs::rename(&other, file).unwrap();
            assert!(!is_whole(), "another file");
            seal();
            std::fs::rename(file, &other).unwrap();
            std::fs::rename(&other, file).unwrap();
            assert!(!is_whole(), "moved away and back");
            seal();
            let opened = File::options().write(true).open(file).unwrap();
            let then = std::fs::metadata(file).unwrap();
            let times = std::fs::FileTimes::new().set_modified(then.modified().unwrap());
            opened.set_times(times).unwrap();
            assert!(!is_whole(), "its times were set");
            seal();
        }
        // Another place in memory, or none, says nothing; an earlier seal there does.
        std::fs::remove_file(&memory).unwrap();
        assert!(is_whole());
        std::fs::write(&memory, [7; 32]).unwrap();
        assert!(!is_whole());
        seal();
        // The same files at another path are another edge's.
        let (store_is, witness_is) = stamps();
        std::fs::rename(path("store.seal"), path("elsewhere.seal")).unwrap();
        assert!(!Seal::of(&path("elsewhere"), None).unwrap().is_whole(store_is, witness_is));
    }
}
