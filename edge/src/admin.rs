//! Health, metrics and operators' commands: HTTP/1.1 in clear on loopback, and the control
//! socket. Knows what the rooms report; must not know the traffic itself.

mod ask;
mod control_socket;
mod readiness;
mod server;
mod status;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use shared::shutdown::Shutdown;
use tokio::task::JoinHandle;

use crate::admission::InFlight;
use crate::metrics::Metrics;

pub use ask::{AskError, ask_status};
pub use readiness::{Part, Readiness, Stage};
pub use status::Status;

/// Reads the certificates anew: what was done, or why the old ones stay. May read files.
pub type Reload = Arc<dyn Fn() -> Result<String, String> + Send + Sync>;

/// What the admin room answers from.
#[derive(Clone)]
pub struct Parts {
    /// The cluster's host name.
    pub name: String,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Health.
    pub readiness: Arc<Readiness>,
    /// Requests in flight.
    pub in_flight: Arc<InFlight>,
    /// What `POST /reload` on the control socket does.
    pub reload: Reload,
}

/// Why the admin room could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The TCP listener.
    #[error("admin: {address}: cannot be listened on: {source}; free the address or change admin.listen")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The control socket's file.
    #[error("admin: {path}: {what} failed: {source}; create its folder and let edge's user write there, or change admin.control_socket")]
    Socket {
        /// The file.
        path: PathBuf,
        /// The step.
        what: &'static str,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// Somebody listens on the control socket.
    #[error("admin: {0}: another edge answers there; stop it first, or give this one its own admin.control_socket")]
    InUse(PathBuf),
    /// Something that we did not make lies there.
    #[error("admin: {0}: is no socket and stays; remove it, or change admin.control_socket")]
    NoSocket(PathBuf),
}

/// Opens the listener and the control socket and serves both until `shutdown`, inside the
/// runtime that calls it. The task ends when both are closed and the socket's file is gone.
///
/// Health must be answered while edge drains: hand it a `shutdown` that is cancelled last.
///
/// # Errors
/// An address or the socket's file cannot be had.
pub async fn start(
    listen: SocketAddr,
    control_socket: &Path,
    parts: Parts,
    shutdown: Shutdown,
) -> Result<JoinHandle<()>, AdminError> {
    let tcp = tokio::net::TcpListener::bind(listen)
        .await
        .map_err(|source| AdminError::Listen { address: listen, source })?;
    let control = control_socket::open(control_socket).await?;
    Ok(tokio::spawn(server::run(tcp, control, Arc::new(parts), shutdown)))
}
