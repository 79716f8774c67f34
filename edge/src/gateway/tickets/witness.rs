//! The store's witness: a small file beside it that says which state of the store was the last one
//! that anybody was told of. Knows states as random tokens; must not know tickets. It exists
//! because a copy of the store that is put back may get the very inode that was freed for it.
//!
//! Every commit gives the store a new token, which the witness announced before. Only when the
//! witness says that this is now the last one do answers go out. So a crash between the two leaves
//! a store that has the last token or the announced one, and lacks nothing that was sent; every
//! other token is an earlier state's. The witness is written without waiting for the disk: what it
//! says outlives edge, and after the host's own end the store is in doubt by its boot. That neither
//! of the two was put back since, the seal says.

use std::fs::File;
use std::path::{Path, PathBuf};

use rusqlite::ffi;

use super::Mark;
use super::seal::{Seal, Stamp, open, read, write};

pub(super) struct Witness {
    path: PathBuf,
    file: File,
    /// The file as edge wrote it last, or found it.
    stamp: Stamp,
    seal: Seal,
    /// The last state that was told, and the announced one, as the file said when it was opened.
    said: Option<[Mark; 2]>,
    told: Mark,
    next: Mark,
    /// The store has the announced token, and the file does not say so yet.
    owes: bool,
}

impl Witness {
    /// Opens or makes the witness of `store` (mode 0600), and its seal, which is at `memory` too.
    pub(super) fn of(store: &Path, memory: Option<&Path>) -> rusqlite::Result<Self> {
        let path = PathBuf::from(format!("{}.witness", store.display()));
        let opened = open(&path).and_then(|file| {
            let (said, stamp) = (read(&file)?, Stamp::of(&file.metadata()?));
            Ok((said, file, stamp, Seal::of(store, memory)?))
        });
        let (said, file, stamp, seal) = opened.map_err(|error| fault(&path, "opened", &error))?;
        let said = said.map(|both| {
            let (mut told, mut next) = (Mark::default(), Mark::default());
            let from = both.split_at(told.len());
            told.copy_from_slice(from.0);
            next.copy_from_slice(from.1);
            [told, next]
        });
        Ok(Self { path, file, stamp, seal, said, told: Mark::default(), next: random()?, owes: false })
    }

    /// Are this store and this witness the files that edge wrote last? No store: one that edge was just
    /// changing.
    pub(super) fn is_sealed(&self, store: Option<Stamp>) -> bool {
        self.seal.is_whole(store, self.stamp)
    }

    /// Is a store with this token as new as anything that was ever told of it?
    pub(super) fn vouches(&self, token: &[u8]) -> bool {
        self.said.is_some_and(|said| said.iter().any(|said| said[..] == *token))
    }

    /// The token that the store must have.
    pub(super) fn told(&self) -> Mark {
        self.told
    }

    /// The token of the next commit.
    pub(super) fn next(&self) -> Mark {
        self.next
    }

    /// This store is open, and has this token.
    pub(super) fn begin(&mut self, token: Mark, store: Stamp) -> rusqlite::Result<()> {
        self.write(token, random()?, store)
    }

    /// The store has the announced token now. Nothing of that commit may be told before this
    /// succeeds, or [`Self::settle`] does.
    pub(super) fn tell(&mut self, store: Stamp) -> rusqlite::Result<()> {
        self.owes = true;
        self.settle(store)
    }

    /// Says what could not be said before.
    pub(super) fn settle(&mut self, store: Stamp) -> rusqlite::Result<()> {
        if self.owes { self.write(self.next, random()?, store) } else { Ok(()) }
    }

    /// Does the store know what must not be told yet?
    pub(super) fn owes(&self) -> bool {
        self.owes
    }

    /// The store's file is this one now, by edge itself; none: edge is going to change it. Where that
    /// cannot be said, it is doubted later.
    pub(super) fn reseal(&self, store: Option<Stamp>) -> rusqlite::Result<()> {
        // Whoever else has changed the witness meanwhile breaks the seal.
        self.seal.put(store, self.stamp).map_err(|error| fault(&self.path, "sealed", &error))
    }

    fn write(&mut self, told: Mark, next: Mark, store: Stamp) -> rusqlite::Result<()> {
        let mut both = [0; size_of::<Mark>() * 2];
        let parts = both.split_at_mut(told.len());
        parts.0.copy_from_slice(&told);
        parts.1.copy_from_slice(&next);
        let written = write(&self.file, &both).and_then(|()| self.file.metadata());
        self.stamp = Stamp::of(&written.map_err(|error| fault(&self.path, "written", &error))?);
        self.reseal(Some(store))?;
        (self.told, self.next, self.owes) = (told, next, false);
        Ok(())
    }
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
pub(super) fn failure(why: String) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_IOERR), Some(why))
}
