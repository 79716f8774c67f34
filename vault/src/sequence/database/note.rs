//! What a vault remembers of the databases outside of them: how far the copy went, where the
//! server came from, whom the operator has forbidden, and what was refused. One small file beside
//! the journal; knows no connection.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::{Host, Kind, Lineage, Place};

/// What is remembered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Note {
    /// Which kind of database all this is of; `None` in a file of the time before it was noted.
    pub kind: Option<Kind>,
    /// The copy had at least so many entries.
    pub copied: u64,
    /// The server that had them.
    pub lineage: Option<Lineage>,
    /// Servers that must not be written to, as `host:port`.
    pub fenced: BTreeSet<String>,
    /// Servers that were standbys when they last answered.
    pub standbys: BTreeSet<String>,
    /// How often an operator has decided something.
    pub decided: u64,
    /// The database is the ledger itself, and no copy of it.
    pub truth: bool,
    /// Which one it is, then.
    pub ledger: Option<String>,
    /// Why the copy is not written to until an operator acts.
    pub refused: Option<String>,
}

/// Why the file cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum NoteError {
    /// The system refuses.
    #[error("{file}: {source}; look at the disk and the file's owner")]
    File {
        /// The file.
        file: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// It is not what this program writes.
    #[error("{file}: is damaged: {source}; remove it, then look at vault database status")]
    Damaged {
        /// The file.
        file: PathBuf,
        /// The parser's reason.
        #[source]
        source: serde_json::Error,
    },
}

/// The note and its file.
#[derive(Debug)]
pub(in crate::sequence) struct Kept {
    file: PathBuf,
    note: Mutex<Note>,
}

impl Note {
    /// What is remembered of another kind of database says nothing of this one. How far the ledger
    /// goes that the database itself is, stays.
    pub(super) fn is_of(&mut self, kind: Kind) {
        // PostgreSQL alone is told by where it comes from as of old.
        if self.kind.unwrap_or(Kind::Postgres) != kind {
            self.lineage = None;
        }
        if self.kind.is_some_and(|noted| noted != kind) && !self.truth {
            (self.copied, self.refused) = (0, None);
            self.standbys.clear();
            self.fenced.clear();
        }
        self.kind = Some(kind);
    }

    /// Notes who follows and who does not. Who does not answer is what it was.
    pub(super) fn saw(&mut self, hosts: &[Host]) {
        for Host { host, place, .. } in hosts {
            match place {
                Place::Standby => self.standbys.insert(host.clone()),
                Place::Primary | Place::Unfit => self.standbys.remove(host),
                Place::Away => false,
            };
        }
    }
}

impl Kept {
    /// Reads the file; an empty note where there is none yet.
    pub(in crate::sequence) fn open(journal: &Path) -> Result<Self, NoteError> {
        let file = journal.with_extension("database");
        let note = match std::fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|source| NoteError::Damaged { file: file.clone(), source })?,
            Err(source) if source.kind() == io::ErrorKind::NotFound => Note::default(),
            Err(source) => return Err(NoteError::File { file, source }),
        };
        Ok(Self { file, note: Mutex::new(note) })
    }

    pub(in crate::sequence) fn note(&self) -> Note {
        self.note.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the note, durably before it returns. Blocks for a disk's flush.
    pub(in crate::sequence) fn change(&self, change: impl FnOnce(&mut Note)) -> Result<(), NoteError> {
        let mut note = self.note.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = note.clone();
        change(&mut next);
        if next == *note {
            return Ok(());
        }
        let fresh = self.file.with_extension("database.new");
        let put = || -> io::Result<()> {
            let mut new = File::create(&fresh)?;
            serde_json::to_writer(&mut new, &next)?;
            new.flush()?;
            new.sync_all()?;
            std::fs::rename(&fresh, &self.file)?;
            // A fence must outlive a power failure.
            File::open(self.file.parent().unwrap_or(Path::new(".")))?.sync_all()
        };
        put().map_err(|source| NoteError::File { file: self.file.clone(), source })?;
        *note = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_is_there_after_a_restart_and_damage_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let journal = folder.path().join("journal.db");
        let kept = Kept::open(&journal).unwrap();
        kept.change(|note| {
            note.fenced.insert("paris:5432".to_owned());
            note.copied = 7;
        })
        .unwrap();
        assert_eq!(Kept::open(&journal).unwrap().note(), kept.note());
        assert_eq!(kept.note().copied, 7);
        // Of the same kind it is the same database, of another kind it is another.
        kept.change(|note| note.is_of(Kind::Postgres)).unwrap();
        assert_eq!((kept.note().copied, kept.note().fenced.len()), (7, 1));
        kept.change(|note| note.is_of(Kind::Etcd)).unwrap();
        assert_eq!(kept.note(), Note { kind: Some(Kind::Etcd), ..Note::default() });
        // But where it is the ledger, it must go as far as that is known to.
        let lineage = Lineage { system: "7".to_owned(), timeline: 2, forks: None, at: 1 };
        let mut truth = Note { truth: true, copied: 9, lineage: Some(lineage), ..Note::default() };
        truth.is_of(Kind::Etcd);
        assert_eq!((truth.copied, truth.lineage), (9, None));
        std::fs::write(folder.path().join("journal.database"), "{").unwrap();
        assert!(matches!(Kept::open(&journal), Err(NoteError::Damaged { .. })));
    }
}
