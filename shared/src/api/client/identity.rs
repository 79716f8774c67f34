//! The caller's certificate as it lies on disk now: renewed files are used from the next
//! connection on, without a restart. Knows files and rustls; not who is called.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::ClientConfig;

use crate::tls::{Files, TlsError, client};

/// Files, and what was last read from them.
pub(super) struct Identity {
    files: Files,
    loaded: Mutex<Loaded>,
}

struct Loaded {
    stamps: [Stamp; 3],
    config: Arc<ClientConfig>,
    generation: u64,
}

/// What changes when a file does: device-wide identity, size, modification time.
type Stamp = Option<(u64, u64, i64, i64)>;

/// A configuration and which reading of the files it is; connections of an older one are
/// not used again.
#[derive(Clone)]
pub(super) struct Current {
    pub(super) config: Arc<ClientConfig>,
    pub(super) generation: u64,
}

impl Identity {
    /// Blocking; for the start.
    pub(super) fn load(files: Files) -> Result<Self, TlsError> {
        let stamps = stamps(&files);
        let config = Arc::new(client(&files, &[b"http/1.1"])?);
        Ok(Self { files, loaded: Mutex::new(Loaded { stamps, config, generation: 0 }) })
    }

    /// Looks at the files and reads them again if they changed. Broken new files leave the
    /// old identity in use, and are reported once.
    pub(super) async fn current(self: &Arc<Self>) -> Current {
        let identity = Arc::clone(self);
        let looked = tokio::task::spawn_blocking(move || identity.look()).await;
        // A blocking task only fails when the runtime ends; the last reading serves.
        looked.unwrap_or_else(|_| self.last())
    }

    /// Which reading is in use.
    pub(super) fn generation(&self) -> u64 {
        self.last().generation
    }

    fn last(&self) -> Current {
        let loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        Current { config: Arc::clone(&loaded.config), generation: loaded.generation }
    }

    fn look(&self) -> Current {
        let stamps = stamps(&self.files);
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if stamps != loaded.stamps {
            loaded.stamps = stamps;
            match client(&self.files, &[b"http/1.1"]) {
                Ok(config) => {
                    loaded.config = Arc::new(config);
                    loaded.generation += 1;
                    tracing::info!(certificate = %self.files.certificate.display(), "certificate read again");
                }
                Err(error) => {
                    tracing::warn!("vault client: {error}; the certificate read before stays in use");
                }
            }
        }
        Current { config: Arc::clone(&loaded.config), generation: loaded.generation }
    }
}

fn stamps(files: &Files) -> [Stamp; 3] {
    [&files.certificate, &files.key, &files.authority].map(|file| stamp(file))
}

fn stamp(file: &Path) -> Stamp {
    let metadata = std::fs::metadata(file).ok()?;
    Some((metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, name: &str) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(folder.join("key"), key.serialize_pem()).unwrap();
        std::fs::write(folder.join("certificate"), certificate.pem()).unwrap();
        std::fs::write(folder.join("authority"), certificate.pem()).unwrap();
    }

    #[tokio::test]
    async fn renewed_files_are_read_and_broken_ones_leave_the_old_in_use() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "one");
        let files = Files {
            certificate: folder.path().join("certificate"),
            key: folder.path().join("key"),
            authority: folder.path().join("authority"),
        };
        let identity = Arc::new(Identity::load(files).unwrap());
        assert_eq!(identity.current().await.generation, 0);
        std::fs::write(folder.path().join("key"), "torn").unwrap();
        assert_eq!(identity.current().await.generation, 0);
        write(folder.path(), "another");
        assert_eq!(identity.current().await.generation, 1);
        assert_eq!(identity.generation(), 1);
    }
}
