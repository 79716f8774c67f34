//! The secret that makes marks of keys, in a file of its own: made once, mode 0600. Knows
//! nothing of tickets. It exists so that the store tells no key to whoever steals it alone, and
//! no guess of a key can be tried on it.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::store::Sought;
use super::{Mark, TicketsError};

/// 256 random bits.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Secret([u8; 32]);

impl Secret {
    /// Reads the secret that belongs to `store`, or makes it. One that is no secret is made anew.
    pub(super) fn of(store: &Path) -> Result<Self, TicketsError> {
        let file = PathBuf::from(format!("{}.key", store.display()));
        let fault = |what| {
            let file = file.clone();
            move |source| TicketsError::File { file, what, source }
        };
        match std::fs::read(&file) {
            Ok(bytes) => {
                if let Ok(bits) = <[u8; 32]>::try_from(bytes) {
                    return Ok(Self(bits));
                }
                tracing::warn!("tickets: {}: is no secret; it is made anew", file.display());
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(fault("cannot be read")(error)),
        }
        let mut bits = [0; 32];
        rustls::crypto::ring::default_provider()
            .secure_random
            .fill(&mut bits)
            .map_err(|_| TicketsError::NoRandomness)?;
        write(&file, &bits).map_err(fault("cannot be written"))?;
        Ok(Self(bits))
    }

    /// How a key of a series, with its period, is found in the store.
    pub(super) fn sought(&self, series: &str, key: &str) -> Sought {
        let base = series.split_once('/').map_or(series, |(base, _)| base);
        Sought { mark: self.mark(series, key), former: self.mark(base, key) }
    }

    /// What is kept of a key.
    fn mark(&self, series: &str, key: &str) -> Mark {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        // No series and no period has a blank, so that two parts cannot be read as two others.
        hasher.update(series.as_bytes()).update(b" ").update(key.as_bytes());
        shortened(&hasher.finalize())
    }

    /// What the store keeps of the secret: enough to see that it is another one.
    pub(super) fn sign(&self) -> Mark {
        shortened(&blake3::keyed_hash(&self.0, b"the secret of these tickets"))
    }
}

fn shortened(hash: &blake3::Hash) -> Mark {
    let mut mark = Mark::default();
    for (to, from) in mark.iter_mut().zip(hash.as_bytes()) {
        *to = *from;
    }
    mark
}

/// Whole or not at all, and durable.
fn write(file: &Path, bits: &[u8]) -> std::io::Result<()> {
    let fresh = PathBuf::from(format!("{}.new", file.display()));
    let mut made = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    made.write_all(bits)?;
    made.sync_all()?;
    std::fs::rename(&fresh, file)?;
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_secret_is_made_once_and_for_edge_alone() {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("tickets.db");
        let secret = Secret::of(&store).unwrap();
        let file = folder.path().join("tickets.db.key");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(Secret::of(&store).unwrap() == secret);
        std::fs::write(&file, "short").unwrap();
        assert!(Secret::of(&store).unwrap() != secret);
    }

    #[test]
    fn a_key_has_a_mark_for_each_period_and_one_that_the_first_version_knew() {
        let secret = Secret([1; 32]);
        let (whole, year) = (secret.sought("INV", "k"), secret.sought("INV/2026", "k"));
        assert_eq!((whole.mark, whole.former), (secret.mark("INV", "k"), secret.mark("INV", "k")));
        assert_eq!((year.mark, year.former), (secret.mark("INV/2026", "k"), whole.mark));
        assert_ne!(year.mark, secret.sought("INV/2027", "k").mark);
        assert_ne!(year.mark, whole.mark);
    }

    #[test]
    fn marks_differ_by_series_key_and_secret() {
        let (one, other) = (Secret([1; 32]), Secret([2; 32]));
        let mark = one.mark("INV", "k");
        assert_eq!(mark, one.mark("INV", "k"));
        for different in [one.mark("INV", "kk"), one.mark("INVk", ""), other.mark("INV", "k"), one.sign()] {
            assert_ne!(mark, different);
        }
    }
}
