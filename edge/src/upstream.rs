//! Named upstreams and their servers.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// `[[upstream]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// As routes name it.
    pub name: String,
    /// Where it listens; asked in turn.
    pub servers: Vec<Server>,
    /// Until a connection stands.
    pub connect_timeout: Duration,
    /// How long a server that failed is passed over.
    pub fail_timeout: Duration,
}

/// One server of an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Server {
    /// `"127.0.0.1:9000"`
    Tcp(SocketAddr),
    /// `"unix:/run/app.sock"`
    Unix(PathBuf),
}
