//! Placeholder of the pair's link.

use std::net::SocketAddr;
use std::time::Duration;

/// `[pair]`
#[derive(Debug, Clone)]
pub struct Settings {
    /// This vault's name.
    pub own: String,
    /// The other vault's name, as its certificate says it.
    pub peer: String,
    /// Where the other vault's API listens.
    pub address: SocketAddr,
    /// How often a sign of life is sent.
    pub beat: Duration,
    /// After how long a silent peer counts as away.
    pub silence: Duration,
}
