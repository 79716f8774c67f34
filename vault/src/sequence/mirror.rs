//! What this vault gave alone last, kept outside of its journal: while it runs in a small file in
//! memory (`/run`), which outlives the process and not the machine; when it ends in order, in a
//! file beside the journal. A vault that finds its journal as one of them says has lost nothing it
//! answered; one whose machine went down cannot know. Knows nothing of ranges.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::entry::{Life, Tail};
use super::proof::Proof;
use super::protocol::Nonce;

/// The files, and what stands in them.
#[derive(Debug)]
pub(super) struct Mirror {
    /// In memory, if there is such a place.
    file: Option<PathBuf>,
    /// Beside the journal; stands there only between two lives.
    ended: PathBuf,
    seen: Proof,
}

/// A journal as it stands before a new life begins to use it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    /// Its identity.
    pub(super) journal: Nonce,
    /// Where the rows given alone end.
    pub(super) rows: Tail,
    /// The life that used it last.
    pub(super) last: Option<Life>,
    /// Does its chain know of that life?
    pub(super) met: bool,
}

impl Mirror {
    /// The mirror of a journal that `life` will use, and the former life that one of the files
    /// proves. Nothing is written before [`Mirror::begin`].
    #[must_use]
    pub(super) fn open(
        file: Option<PathBuf>,
        ended: PathBuf,
        found: Found,
        life: Life,
    ) -> (Self, Option<Life>) {
        let Found { journal, rows, last, met } = found;
        let proofs = [file.as_deref(), Some(ended.as_path())].into_iter().flatten().filter_map(read);
        let former = proofs.filter_map(|proof| proof.proven(journal, last, rows, met)).next();
        (Self { file, ended, seen: Proof { journal, life, rows, former } }, former)
    }

    /// From now on the life uses the journal.
    pub(super) fn begin(&self) {
        // One that stays proves nothing: it names a life that is not the last.
        let _none = std::fs::remove_file(&self.ended);
        self.write();
    }

    /// These rows are durable in the journal; to be noted before anybody is told of them.
    pub(super) fn note(&mut self, life: Life, rows: Tail) {
        (self.seen.life, self.seen.rows) = (life, rows);
        self.write();
    }

    /// The life ends here, and gives nothing any more.
    pub(super) fn end(&self) {
        let write = || -> io::Result<()> {
            let mut file = File::create(&self.ended)?;
            file.write_all(&serde_json::to_vec(&self.seen)?)?;
            file.sync_all()
        };
        if let Err(error) = write() {
            tracing::warn!(
                "{}: {error}; the numbers set aside for this vault are lost unless it is started again before its machine is",
                self.ended.display()
            );
        }
    }

    fn write(&self) {
        let Some(file) = &self.file else { return };
        let write = || -> io::Result<()> {
            let fresh = file.with_extension("new");
            std::fs::write(&fresh, serde_json::to_vec(&self.seen)?)?;
            std::fs::rename(&fresh, file)
        };
        if let Err(error) = write() {
            // What is not noted is not proven: numbers may become unaccounted, none is given twice.
            tracing::warn!(
                "{}: {error}; ranges will be lost when this vault is killed alone",
                file.display()
            );
        }
    }
}

fn read(file: &Path) -> Option<Proof> {
    serde_json::from_slice(&std::fs::read(file).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_life_is_proven_by_the_file_in_memory_and_an_ended_one_by_that_beside_the_journal() {
        let folder = tempfile::tempdir().unwrap();
        let (memory, ended) = (folder.path().join("mirror"), folder.path().join("journal.ended"));
        let rows = |index| Tail { index, ..Tail::default() };
        let open = |file: Option<&PathBuf>, index, last, life| {
            let found = Found { journal: 1, rows: rows(index), last, met: true };
            Mirror::open(file.cloned(), ended.clone(), found, life)
        };
        let (mut mirror, proven) = open(Some(&memory), 0, None, 10);
        assert_eq!(proven, None);
        mirror.begin();
        mirror.note(10, rows(3));
        assert_eq!(open(Some(&memory), 3, Some(10), 11).1, Some(10), "killed");
        assert_eq!(open(Some(&memory), 2, Some(10), 11).1, None, "rolled back");
        assert_eq!(open(None, 3, Some(10), 11).1, None, "its machine went down");
        mirror.end();
        let (next, proven) = open(None, 3, Some(10), 11);
        assert_eq!(proven, Some(10), "ended in order");
        next.begin();
        assert_eq!(open(None, 3, Some(11), 12).1, None, "and the next one did not");
    }
}
