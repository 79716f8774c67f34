//! This vault's own certificate as new connections get it: read again when its files change,
//! and kept as it is while they are unusable. Knows files, not connections.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::ServerConfig;
use shared::shutdown::Shutdown;
use shared::tls::{Files, TlsError};
use tokio::sync::Notify;

use super::{HTTP, PAIR};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Device, inode, size and change time: a replaced or rewritten file differs in one of them.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

/// The configuration that new connections get.
pub struct Certificates {
    files: Files,
    current: RwLock<(Arc<ServerConfig>, [Stamp; 3])>,
}

impl Certificates {
    /// Reads the files.
    ///
    /// # Errors
    /// Unreadable, not belonging together, no authority.
    pub fn load(files: &Files) -> Result<Self, TlsError> {
        let seen = stamps(files);
        Ok(Self { files: files.clone(), current: RwLock::new((read(files)?, seen)) })
    }

    /// For the next connection.
    #[must_use]
    pub fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner).0)
    }

    /// Reads the files again where they have changed or `anyway`; tells whether they were
    /// taken. Blocks on the disk.
    ///
    /// # Errors
    /// The new files cannot be used; the old ones stay.
    pub fn reload(&self, anyway: bool) -> Result<bool, TlsError> {
        let seen = stamps(&self.files);
        let known = self.current.read().unwrap_or_else(PoisonError::into_inner).1;
        if seen == known && !anyway {
            return Ok(false);
        }
        let fresh = read(&self.files);
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        // A faulty set is complained about once, not every second.
        current.1 = seen;
        current.0 = fresh?;
        Ok(true)
    }

    /// Looks at the files every second, and at once when `asked`; ends with `shutdown`.
    pub async fn watch(self: Arc<Self>, asked: Arc<Notify>, shutdown: Shutdown) {
        loop {
            let anyway = tokio::select! {
                () = tokio::time::sleep(LOOK) => false,
                () = asked.notified() => true,
                () = shutdown.cancelled() => return,
            };
            let this = Arc::clone(&self);
            match tokio::task::spawn_blocking(move || this.reload(anyway)).await {
                Ok(Ok(true)) => tracing::info!("tls: certificates read again; new connections get them"),
                Ok(Ok(false)) => {}
                Ok(Err(error)) => {
                    tracing::error!("tls: {error}; the old certificates stay until the files are mended");
                }
                Err(_) => return,
            }
        }
    }
}

fn read(files: &Files) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = shared::tls::server(files, &[HTTP, PAIR])?;
    // A revoked certificate must not come back by a ticket.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(Arc::new(config))
}

fn stamps(files: &Files) -> [Stamp; 3] {
    let stamp = |file: &Path| {
        let about = std::fs::metadata(file).ok()?;
        Some((about.dev(), about.ino(), about.size(), about.mtime(), about.mtime_nsec()))
    };
    [stamp(&files.certificate), stamp(&files.key), stamp(&files.authority)]
}
