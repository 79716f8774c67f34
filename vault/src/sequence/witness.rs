//! What this vault remembers of its journal outside of it: whose it was, and how far it went. A
//! journal that is gone, or put back from a copy, is then noticed even where the other vault has
//! forgotten too. One small file beside the journal; knows nothing of entries.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::protocol::Nonce;

/// A journal that was seen, durable up to an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Witness {
    /// Its identity.
    pub journal: Nonce,
    /// Its last entry then that both vaults had.
    pub index: u64,
    /// The last row that this vault gave alone.
    #[serde(default)]
    pub solo: u64,
}

/// Why the file cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum WitnessError {
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
    #[error("{file}: is damaged: {source}; if journal.db beside it is the right one, remove this file")]
    Damaged {
        /// The file.
        file: PathBuf,
        /// The parser's reason.
        #[source]
        source: serde_json::Error,
    },
}

/// Where the witness of that journal lies.
#[must_use]
pub fn beside(journal: &Path) -> PathBuf {
    journal.with_extension("witness")
}

/// Reads the file; `None` where there is none yet.
///
/// # Errors
/// Unreadable or damaged.
pub fn read(file: &Path) -> Result<Option<Witness>, WitnessError> {
    match std::fs::read(file) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|source| WitnessError::Damaged { file: file.to_owned(), source }),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(WitnessError::File { file: file.to_owned(), source }),
    }
}

/// Replaces the file; whole at any moment, also after a power failure.
///
/// # Errors
/// The system's; then the old one stands.
pub fn write(file: &Path, witness: Witness) -> Result<(), WitnessError> {
    let fresh = file.with_extension("witness.new");
    let put = || -> io::Result<()> {
        let mut new = File::create(&fresh)?;
        serde_json::to_writer(&mut new, &witness)?;
        new.flush()?;
        new.sync_all()?;
        std::fs::rename(&fresh, file)
    };
    put().map_err(|source| WitnessError::File { file: file.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_witness_reads_back_and_damage_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = beside(&folder.path().join("journal.db"));
        assert_eq!(read(&file).unwrap(), None);
        let witness = Witness { journal: u128::MAX, index: 7, solo: 2 };
        write(&file, witness).unwrap();
        assert_eq!(read(&file).unwrap(), Some(witness));
        std::fs::write(&file, "{").unwrap();
        assert!(matches!(read(&file), Err(WitnessError::Damaged { .. })));
    }
}
