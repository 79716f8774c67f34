//! The handlers' one door to the vault pair.

use std::net::SocketAddr;
use std::path::PathBuf;

use shared::api::client::VaultAddress;
use shared::config::ByteSize;

/// `[gateway]`
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where handlers find it.
    pub listen: Address,
    /// One `name:token` a line; demanded for TCP.
    pub tokens_file: Option<PathBuf>,
    /// The group that may use the socket.
    pub socket_group: Option<String>,
    /// One or two.
    pub vaults: Vec<VaultAddress>,
    /// This edge's certificate, key and the authority's certificate.
    pub tls: shared::tls::Files,
    /// Largest request body that is kept for a retry.
    pub max_kept_body: ByteSize,
    /// Largest upload.
    pub max_file: ByteSize,
}

/// Where the gateway listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A socket file.
    Unix(PathBuf),
    /// Loopback only.
    Tcp(SocketAddr),
}
