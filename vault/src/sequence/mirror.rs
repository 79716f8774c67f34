//! What this vault gave alone last, kept where it outlives the process and not the machine: a
//! small file in memory (`/run`). A vault that was killed and finds its journal as the mirror
//! says has lost nothing it answered; one whose machine went down cannot know. Knows nothing of
//! ranges.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::entry::{Life, Tail};
use super::protocol::Nonce;

/// What the file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    journal: Nonce,
    life: Life,
    rows: Tail,
}

/// The file, and what stands in it.
#[derive(Debug)]
pub(super) struct Mirror {
    file: Option<PathBuf>,
    seen: Seen,
}

impl Mirror {
    /// The mirror of a journal that is used in `life` from now on; and, if the file holds of the
    /// `former` life what the journal holds, that life. Without a `file` nothing is ever proven.
    #[must_use]
    pub(super) fn begin(
        file: Option<PathBuf>,
        journal: Nonce,
        rows: Tail,
        former: Option<Life>,
        life: Life,
    ) -> (Self, Option<Life>) {
        let told = file.as_deref().and_then(read);
        let proven = former.filter(|former| told == Some(Seen { journal, life: *former, rows }));
        let mirror = Self { file, seen: Seen { journal, life, rows } };
        mirror.write();
        (mirror, proven)
    }

    /// These rows are durable in the journal; to be noted before anybody is told of them.
    pub(super) fn note(&mut self, rows: Tail) {
        self.seen.rows = rows;
        self.write();
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

fn read(file: &Path) -> Option<Seen> {
    serde_json::from_slice(&std::fs::read(file).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_rows_of_the_former_life_prove_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = Some(folder.path().join("mirror"));
        let rows = |index| Tail { index, ..Tail::default() };
        let (mut mirror, proven) = Mirror::begin(file.clone(), 1, rows(0), None, 10);
        assert_eq!(proven, None);
        mirror.note(rows(3));
        let begin = |journal, index, former| Mirror::begin(file.clone(), journal, rows(index), former, 10).1;
        assert_eq!(begin(1, 2, Some(10)), None, "rolled back");
        mirror.note(rows(3));
        assert_eq!(begin(2, 3, Some(10)), None, "another journal");
        mirror.note(rows(3));
        assert_eq!(begin(1, 3, Some(9)), None, "another life");
        mirror.note(rows(3));
        assert_eq!(begin(1, 3, Some(10)), Some(10));
        assert_eq!(Mirror::begin(None, 1, rows(3), Some(10), 11).1, None);
    }
}
