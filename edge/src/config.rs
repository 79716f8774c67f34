//! `edge.toml` → ready settings. Knows the keys and their defaults; opens nothing but the
//! file itself. Each room owns the settings it is handed.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use shared::config::ByteSize;

use crate::{access_log, gateway, route, upstream};

/// Everything edge needs to run.
#[derive(Debug, Clone)]
pub struct Config {
    /// The cluster's host name, which DNS round robin spreads: `www.example.org`.
    pub name: String,
    /// This host's own name, where health is answered: `www1.example.org`.
    pub direct_name: Option<String>,
    /// Sockets and their deadlines.
    pub listen: Listen,
    /// Certificates for browsers, chosen by SNI; exactly one is the default where HTTPS is served.
    pub certificates: Vec<CertificateFiles>,
    /// Who clients are and how much one may do at a time.
    pub clients: Clients,
    /// Host and path → upstream.
    pub routes: Vec<route::Route>,
    /// The upstreams that routes name.
    pub upstreams: Vec<upstream::Settings>,
    /// One line a request.
    pub access_log: access_log::Settings,
    /// Health and metrics in clear.
    pub admin: SocketAddr,
    /// Operators' commands on this host.
    pub control_socket: PathBuf,
    /// The handlers' door to the vault pair.
    pub gateway: Option<gateway::Settings>,
    /// Threads that serve clients.
    pub threads: usize,
}

/// `[listen]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// TLS, HTTP/1.1 and HTTP/2.
    pub https: Vec<SocketAddr>,
    /// In clear; only redirects to HTTPS.
    pub http: Vec<SocketAddr>,
    /// Most client connections at once; further ones are closed at once.
    pub max_connections: usize,
    /// A TLS handshake must be over within this time.
    pub handshake_timeout: Duration,
    /// A request's whole head must have come within this time.
    pub head_timeout: Duration,
    /// A connection without a request is closed after this time.
    pub idle_timeout: Duration,
    /// A request's body that makes no progress for this long is ended.
    pub body_timeout: Duration,
    /// An answer that the client does not take for this long is ended.
    pub write_timeout: Duration,
    /// Largest request head.
    pub max_head: ByteSize,
    /// Most header lines of a request.
    pub max_headers: usize,
    /// Longest request target.
    pub max_uri: ByteSize,
    /// Most requests at once on one HTTP/2 connection.
    pub h2_streams: u32,
    /// How long requests in flight may go on when edge stops.
    pub drain: Duration,
}

/// `[[certificate]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// SNI names in lower case, exact or `*.x`.
    pub names: Vec<String>,
    /// The chain, PEM, leaf first.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// Shown to clients that ask for no name we know.
    pub default: bool,
}

/// `[clients]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clients {
    /// Requests of one client in flight at once; further ones are answered 429.
    pub max_in_flight: u32,
    /// The networks whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// What a 429 tells the client to wait; whole seconds.
    pub retry_after: Duration,
}
