//! The store's witness: a small file beside it that says which state of the store was the last one
//! that anybody was told of. Knows states as random tokens; must not know tickets. It exists
//! because a copy of the store that is put back may get the very inode that was freed for it.
//!
//! Every commit gives the store a new token, which the witness announced before. Only when the
//! witness says that this is now the last one do answers go out. So a crash between the two leaves
//! a store that has the last token or the announced one, and lacks nothing that was sent; every
//! other token is an earlier state's. The witness is written without waiting for the disk: what it
//! says outlives edge, and after the host's own end the store is in doubt by its boot.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rusqlite::ffi;

use super::Mark;

/// Both tokens.
const LENGTH: usize = size_of::<Mark>() * 2;

pub(super) struct Witness {
    path: PathBuf,
    file: File,
    /// The last state that was told, and the announced one, as the file said when it was opened.
    said: Option<[Mark; 2]>,
    next: Mark,
    /// The store has the announced token, and the file does not say so yet.
    owes: bool,
}

impl Witness {
    /// Opens or makes the witness of `store` (mode 0600).
    pub(super) fn of(store: &Path) -> rusqlite::Result<Self> {
        let path = PathBuf::from(format!("{}.witness", store.display()));
        let opened =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let read = opened.and_then(|file| Ok((read(&file)?, file)));
        let (said, file) = read.map_err(|error| fault(&path, "opened", &error))?;
        Ok(Self { path, file, said, next: random()?, owes: false })
    }

    /// Is a store with this token as new as anything that was ever told of it?
    pub(super) fn vouches(&self, token: &[u8]) -> bool {
        self.said.is_some_and(|said| said.iter().any(|said| said[..] == *token))
    }

    /// The token of the next commit.
    pub(super) fn next(&self) -> Mark {
        self.next
    }

    /// The store is open, and has this token.
    pub(super) fn begin(&mut self, token: &[u8]) -> rusqlite::Result<()> {
        self.write(token, random()?)
    }

    /// The store has the announced token now. Nothing of that commit may be told before this
    /// succeeds, or [`Self::settle`] does.
    pub(super) fn tell(&mut self) -> rusqlite::Result<()> {
        self.owes = true;
        self.settle()
    }

    /// Says what could not be said before.
    pub(super) fn settle(&mut self) -> rusqlite::Result<()> {
        if self.owes { self.write(&self.next(), random()?) } else { Ok(()) }
    }

    /// Does the store know what must not be told yet?
    pub(super) fn owes(&self) -> bool {
        self.owes
    }

    fn write(&mut self, told: &[u8], next: Mark) -> rusqlite::Result<()> {
        let both = [told, &next].concat();
        let written = self.file.write_all_at(&both, 0).and_then(|()| self.file.set_len(LENGTH as u64));
        written.map_err(|error| fault(&self.path, "written", &error))?;
        (self.next, self.owes) = (next, false);
        Ok(())
    }
}

/// `None`: it is new, or no witness.
fn read(file: &File) -> std::io::Result<Option<[Mark; 2]>> {
    if file.metadata()?.len() != LENGTH as u64 {
        return Ok(None);
    }
    let (mut told, mut next) = (Mark::default(), Mark::default());
    file.read_exact_at(&mut told, 0)?;
    file.read_exact_at(&mut next, size_of::<Mark>() as u64)?;
    Ok(Some([told, next]))
}

fn random() -> rusqlite::Result<Mark> {
    let mut token = Mark::default();
    let filled = rustls::crypto::ring::default_provider().secure_random.fill(&mut token);
    filled.map_err(|_| failure("the system gives no randomness".to_owned()))?;
    Ok(token)
}

fn fault(path: &Path, what: &str, error: &std::io::Error) -> rusqlite::Error {
    failure(format!("its witness {} cannot be {what}: {error}", path.display()))
}

/// The store as a whole cannot be written then.
fn failure(why: String) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_IOERR), Some(why))
}
