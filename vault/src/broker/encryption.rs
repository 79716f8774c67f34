//! The broker's certificate as new connections get it: read again when its files change, and kept as
//! it is while they are unusable. Knows files, not connections.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::{InvalidMessage, ServerConfig};
use shared::tls::{TlsError, certificates, private_key, provider};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

/// The files are looked at no more often.
const LOOK: Duration = Duration::from_secs(1);

/// Device, inode, size and change time: a replaced or rewritten file differs in one of them.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

/// A certificate and its key, PEM.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The chain, leaf first.
    pub certificate: PathBuf,
    /// The key.
    pub key: PathBuf,
}

/// Why a handshake failed, in words that name who acts.
pub(super) fn why_not(error: &io::Error) -> String {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    match (cause, error.kind()) {
        // A greeting would only have it send its password in clear.
        (Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)), _) => {
            "it speaks no TLS, as clients with tcp:// do; ssl:// is what this port takes".to_owned()
        }
        (_, io::ErrorKind::UnexpectedEof) => "it left before the TLS handshake was done".to_owned(),
        _ => format!("TLS: {error}"),
    }
}

/// What new connections get.
pub(super) struct Encryption {
    pair: Pair,
    current: Mutex<Current>,
}

struct Current {
    acceptor: TlsAcceptor,
    stamps: [Stamp; 2],
    looked: Instant,
}

impl Pair {
    /// Clients show no certificate: they have names and passwords.
    ///
    /// # Errors
    /// Unreadable, or not belonging together.
    pub(super) fn acceptor(&self) -> Result<TlsAcceptor, TlsError> {
        let refused = |source| TlsError::Refused { file: self.certificate.clone(), source };
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(refused)?
            .with_no_client_auth()
            .with_single_cert(certificates(&self.certificate)?, private_key(&self.key)?)
            .map_err(refused)?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    fn stamps(&self) -> [Stamp; 2] {
        let stamp = |file: &Path| {
            let about = std::fs::metadata(file).ok()?;
            Some((about.dev(), about.ino(), about.size(), about.mtime(), about.mtime_nsec()))
        };
        [stamp(&self.certificate), stamp(&self.key)]
    }
}

impl Encryption {
    /// Reads the files.
    ///
    /// # Errors
    /// See [`Pair::acceptor`].
    pub(super) fn load(pair: Pair) -> Result<Self, TlsError> {
        let stamps = pair.stamps();
        let current = Current { acceptor: pair.acceptor()?, stamps, looked: Instant::now() };
        Ok(Self { pair, current: Mutex::new(current) })
    }

    /// For the next connection.
    pub(super) fn current(&self) -> TlsAcceptor {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if now.duration_since(current.looked) >= LOOK {
            current.looked = now;
            let stamps = self.pair.stamps();
            // A faulty pair is complained about once.
            if std::mem::replace(&mut current.stamps, stamps) != stamps {
                match self.pair.acceptor() {
                    Ok(acceptor) => current.acceptor = acceptor,
                    Err(error) => tracing::error!(
                        "broker: {error}; the old certificate stays until the files are mended"
                    ),
                }
            }
        }
        current.acceptor.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_in_clear_is_told_of_as_such() {
        let told = |mut bytes: &[u8]| {
            let mut acceptor = rustls::server::Acceptor::default();
            acceptor.read_tls(&mut bytes).unwrap();
            let Err((error, _alert)) = acceptor.accept() else { panic!("{bytes:?} are taken") };
            why_not(&io::Error::new(io::ErrorKind::InvalidData, error))
        };
        assert!(told(b"\0\0\0\xf0\x01ActiveMQ\0\0\0\x0c").starts_with("it speaks no TLS"));
        assert!(told(b"\x16\x03\x01\0\x04\x02\0\0\0").starts_with("TLS: "));
        assert!(why_not(&io::ErrorKind::UnexpectedEof.into()).starts_with("it left before"));
    }
}
