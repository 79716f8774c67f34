//! What this vault gave alone last, kept outside of its journal: while it runs in a small file in
//! memory (`/run`), which outlives the process and not the machine; when it ends in order, in a
//! file beside the journal. A vault that finds its journal as one of them says has lost nothing it
//! answered; one whose machine went down cannot know. Knows nothing of ranges.

use std::fs::{File, Metadata};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::entry::{Life, Tail};
use super::proof::Proof;
use super::protocol::Nonce;

/// A file that was put back from a copy is changed, as the file system sees it, later than by this
/// many seconds after it was written.
const WRITTEN_WITHIN: i64 = 5;

/// What a life leaves beside its journal when it ends in order; and which file that is, so that a
/// copy of the folder, put back later, proves nothing.
#[derive(Debug, Serialize, Deserialize)]
struct Ended {
    proof: Proof,
    device: u64,
    inode: u64,
    /// In seconds since 1970.
    at: i64,
}

impl Ended {
    fn is_original(&self, file: &Metadata) -> bool {
        let since = file.ctime() - self.at;
        (file.dev(), file.ino()) == (self.device, self.inode) && (-1..=WRITTEN_WITHIN).contains(&since)
    }
}

/// The files, and what stands in them.
#[derive(Debug)]
pub(super) struct Mirror {
    /// In memory, if there is such a place.
    file: Option<PathBuf>,
    /// Beside the journal; stands there only between two lives.
    ended: PathBuf,
    seen: Proof,
    /// Does the life use the journal yet?
    begun: bool,
    /// Did the last write fail?
    failed: bool,
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
        // What outlived the process alone is newer than any file beside the journal.
        let mirrored = file.as_deref().and_then(read).filter(|proof| proof.journal == journal);
        let proof = mirrored.or_else(|| read_ended(&ended));
        let former = proof.and_then(|proof| proof.proven(journal, last, rows, met));
        (
            Self { file, ended, seen: Proof { journal, life, rows, former }, begun: false, failed: false },
            former,
        )
    }

    /// From now on the life uses the journal. Once; before it, what a former life has left stays.
    pub(super) fn begin(&mut self) {
        if std::mem::replace(&mut self.begun, true) {
            return;
        }
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
        if !self.begun {
            return;
        }
        let write = || -> io::Result<()> {
            let mut file = File::create(&self.ended)?;
            let (about, at) = (file.metadata()?, now());
            let ended = Ended { proof: self.seen, device: about.dev(), inode: about.ino(), at };
            file.write_all(&serde_json::to_vec(&ended)?)?;
            file.sync_all()
        };
        if let Err(error) = write() {
            tracing::warn!(
                "{}: {error}; the numbers set aside for this vault are lost unless it is started again before its machine is",
                self.ended.display()
            );
        }
    }

    fn write(&mut self) {
        let Some(file) = &self.file else { return };
        let write = || -> io::Result<()> {
            let fresh = file.with_extension("new");
            std::fs::write(&fresh, serde_json::to_vec(&self.seen)?)?;
            std::fs::rename(&fresh, file)
        };
        let written = write();
        if let Err(error) = &written
            && !self.failed
        {
            // What is not noted is not proven: numbers may become unaccounted, none is given twice.
            tracing::warn!(
                "{}: {error}; ranges will be lost when this vault is killed alone; make room there",
                file.display()
            );
        }
        self.failed = written.is_err();
    }
}

fn read_ended(file: &Path) -> Option<Proof> {
    let mut file = File::open(file).ok()?;
    let about = file.metadata().ok()?;
    let mut text = Vec::new();
    file.read_to_end(&mut text).ok()?;
    let ended: Ended = serde_json::from_slice(&text).ok()?;
    ended.is_original(&about).then_some(ended.proof)
}

#[expect(
    clippy::disallowed_methods,
    reason = "compared with the file system's own stamp, made at the same time"
)]
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
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
        let (mut next, proven) = open(None, 3, Some(10), 11);
        assert_eq!(proven, Some(10), "ended in order");
        let copy = folder.path().join("copy");
        std::fs::copy(&ended, &copy).unwrap();
        std::fs::rename(&copy, &ended).unwrap();
        assert_eq!(open(None, 3, Some(10), 11).1, None, "put back from a copy");
        mirror.note(9, rows(3));
        assert_eq!(open(Some(&memory), 3, Some(10), 11).1, None, "a later life is remembered");
        mirror.note(10, rows(3));
        next.begin();
        assert_eq!(open(None, 3, Some(11), 12).1, None, "and the next one did not");
    }

    #[test]
    fn a_life_that_never_used_the_journal_leaves_the_proof_of_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let (memory, ended) = (folder.path().join("mirror"), folder.path().join("journal.ended"));
        let found = Found { journal: 1, rows: Tail::default(), last: Some(10), met: true };
        for file in [None, Some(memory)] {
            let open = |life| Mirror::open(file.clone(), ended.clone(), found, life);
            let (mut first, _) = open(10);
            first.begin();
            first.end();
            let (second, proven) = open(11);
            assert_eq!(proven, Some(10));
            second.end();
            assert_eq!(open(12).1, Some(10), "nothing was given since");
        }
    }
}
