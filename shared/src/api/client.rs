//! Placeholder of the failing-over client.

use std::net::SocketAddr;

/// One vault of the pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VaultAddress {
    /// As its certificate says it.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
}
