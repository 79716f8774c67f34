//! A server of ours as the engine wants it, with every deadline set. Knows the engine's options.

use std::time::Duration;

use pingora_core::Result;
use pingora_core::upstreams::peer::HttpPeer;

use crate::upstream::{Server, Settings};

/// How long an unused connection to a server is kept; shorter than what servers keep theirs.
const IDLE: Duration = Duration::from_secs(30);

/// # Errors
/// A socket path that is no path.
pub(crate) fn peer(
    server: &Server,
    settings: &Settings,
    answer: Duration,
    write: Duration,
) -> Result<HttpPeer> {
    let mut peer = match server {
        Server::Tcp(address) => HttpPeer::new(address, false, String::new()),
        Server::Unix(path) => HttpPeer::new_uds(&path.to_string_lossy(), false, String::new())?,
    };
    let options = &mut peer.options;
    options.connection_timeout = Some(settings.connect_timeout);
    options.total_connection_timeout = Some(settings.connect_timeout);
    options.read_timeout = Some(answer);
    options.write_timeout = Some(write);
    options.idle_timeout = Some(IDLE);
    Ok(peer)
}
