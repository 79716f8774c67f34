//! What edge offers browsers: certificates by server name, TLS 1.2 and 1.3, reload without a
//! restart. Knows PEM files and names; must not know sockets or HTTP. mTLS between our own
//! programs is `shared::tls`'s matter.

mod certificates;

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::ring::Ticketer;
use tokio_rustls::TlsAcceptor;

pub use certificates::{Certificates, Reload};

/// Why TLS cannot be offered.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file that cannot be read, or a key that belongs to another certificate.
    #[error("certificates: {0}; repair the file or name another in [[certificate]]")]
    Files(#[from] shared::tls::TlsError),
    /// Two certificates claim one server name.
    #[error("certificates: {name:?} is given twice: {first} and {second}; leave it in one of them")]
    Twice {
        /// The server name.
        name: String,
        /// The first certificate's file.
        first: String,
        /// The second one's.
        second: String,
    },
    /// More than one default.
    #[error("certificates: {first} and {second} are both default = true; leave it in one of them")]
    TwoDefaults {
        /// The first certificate's file.
        first: String,
        /// The second one's.
        second: String,
    },
    /// rustls refuses the configuration.
    #[error("TLS cannot be set up: {0}; this is a fault of the build, not of the configuration")]
    Setup(#[source] rustls::Error),
}

/// What every listener shares: one acceptor, so that a ticket given by one thread is taken by another.
///
/// # Errors
/// rustls's own set-up.
pub fn acceptor(certificates: Arc<Certificates>) -> Result<TlsAcceptor, TlsError> {
    let mut config = ServerConfig::builder_with_provider(shared::tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(TlsError::Setup)?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Tickets need no memory on our side; their keys change every six hours and never touch a disk.
    config.ticketer = Ticketer::new().map_err(TlsError::Setup)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
