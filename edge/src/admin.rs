//! Health, metrics and operators' commands: HTTP/1.1 in clear on loopback, and the control
//! socket. Knows what the rooms report; must not know the traffic itself.

mod ask;
mod readiness;
mod server;
mod status;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use shared::local_socket::{LocalSocket, LocalSocketError};
use shared::shutdown::Shutdown;
use tokio::task::JoinHandle;

use crate::admission::InFlight;
use crate::ban::words::{Answer, Question, Summary};
use crate::metrics::Metrics;

pub use ask::{AskError, ask_bans, ask_status};
pub use readiness::{Part, Readiness, Stage};
pub use status::Status;

/// Reads the certificates anew: what was done, or why the old ones stay. May read files.
pub type Reload = Arc<dyn Fn() -> Result<String, String> + Send + Sync>;

/// Answers a question about bans. May wait for the ban engine, within a few seconds.
pub type AskBans = Arc<dyn Fn(Question) -> Answer + Send + Sync>;

/// How the ban engine does, without waiting for it; `None` where there is none.
pub type BansSummary = Arc<dyn Fn() -> Option<Summary> + Send + Sync>;

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
    /// What `POST /bans` on the control socket asks.
    pub bans: AskBans,
    /// What status shows of the bans.
    pub bans_summary: BansSummary,
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
    /// The control socket.
    #[error("admin: {0} (admin.control_socket)")]
    Socket(#[from] LocalSocketError),
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
    let control = LocalSocket::bind(control_socket, None).await?;
    Ok(tokio::spawn(server::run(tcp, control, Arc::new(parts), shutdown)))
}

/// Why [`start`] would fail now; opens both doors and closes them again.
pub async fn faults(listen: SocketAddr, control_socket: &Path) -> Vec<AdminError> {
    let tcp = tokio::net::TcpListener::bind(listen).await;
    let tcp = tcp.map(drop).map_err(|source| AdminError::Listen { address: listen, source });
    let control = LocalSocket::bind(control_socket, None).await.map(drop).map_err(AdminError::from);
    [tcp, control].into_iter().filter_map(Result::err).collect()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
    use tokio::net::{TcpStream, UnixStream};

    use super::*;
    use crate::client::Client;

    struct Running {
        parts: Parts,
        address: SocketAddr,
        socket: std::path::PathBuf,
        shutdown: Shutdown,
        task: JoinHandle<()>,
        _folder: tempfile::TempDir,
    }

    async fn running() -> Running {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("control.sock");
        let parts = Parts {
            name: "www.example.org".to_owned(),
            metrics: Metrics::new(),
            readiness: Readiness::new(),
            in_flight: InFlight::new(50),
            reload: Arc::new(|| Err("www.pem: no certificate; the old one stays".to_owned())),
            bans: Arc::new(|question| Answer::Refused { why: format!("asked {question:?}") }),
            bans_summary: Arc::new(|| None),
        };
        let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let control = LocalSocket::bind(&socket, None).await.unwrap();
        let shutdown = Shutdown::new();
        let task = tokio::spawn(server::run(tcp, control, Arc::new(parts.clone()), shutdown.clone()));
        Running { parts, address, socket, shutdown, task, _folder: folder }
    }

    async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
        stream.write_all(format!("{request}\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    impl Running {
        async fn health(&self, request: &str) -> String {
            exchange(TcpStream::connect(self.address).await.unwrap(), request).await
        }

        async fn control(&self, request: &str) -> String {
            exchange(UnixStream::connect(&self.socket).await.unwrap(), request).await
        }

        async fn stop(self) {
            self.shutdown.cancel();
            self.task.await.unwrap();
        }
    }

    #[tokio::test]
    async fn monitors_learn_whether_to_send_traffic_here() {
        let edge = running().await;
        assert!(edge.health("GET /livez HTTP/1.1").await.starts_with("HTTP/1.1 200 "));
        assert!(edge.health("GET /readyz HTTP/1.1").await.starts_with("HTTP/1.1 503 "));
        edge.parts.readiness.serving();
        edge.parts.readiness.report("upstream app", true, "2 of 2 servers".to_owned());
        let verbose = edge.health("GET /readyz?verbose HTTP/1.1").await;
        assert!(
            verbose.starts_with("HTTP/1.1 200 ")
                && verbose.ends_with("[+] upstream app: 2 of 2 servers\nok\n")
        );
        assert!(!edge.health("HEAD /healthz HTTP/1.1").await.contains("ok\n"));
        edge.stop().await;
    }

    #[tokio::test]
    async fn metrics_show_what_is_in_flight_now() {
        let edge = running().await;
        let permit = edge.parts.in_flight.admit(Client::new([192, 0, 2, 1].into()).key()).unwrap();
        let text = edge.health("GET /metrics HTTP/1.1").await;
        assert!(
            text.contains("content-type: text/plain; version=0.0.4") && text.contains("\nedge_in_flight 1\n"),
            "{text}"
        );
        drop(permit);
        assert!(edge.health("GET /metrics HTTP/1.1").await.contains("\nedge_in_flight 0\n"));
        edge.stop().await;
    }

    #[tokio::test]
    async fn operators_ask_on_the_control_socket_only() {
        let edge = running().await;
        let status = ask_status(&edge.socket).await.unwrap();
        assert_eq!((status.name.as_str(), status.stage), ("www.example.org", Stage::Starting));
        assert!(edge.health("GET /status HTTP/1.1").await.starts_with("HTTP/1.1 404 "));
        assert!(edge.control("GET /metrics HTTP/1.1").await.starts_with("HTTP/1.1 404 "));
        let refused = edge.control("POST /reload HTTP/1.1").await;
        assert!(refused.starts_with("HTTP/1.1 409 ") && refused.contains("the old one stays"), "{refused}");
        let wrong = edge.control("GET /reload HTTP/1.1").await;
        assert!(wrong.starts_with("HTTP/1.1 405 ") && wrong.contains("allow: POST"), "{wrong}");
        let (socket, folder) = (edge.socket.clone(), edge.socket.parent().unwrap().to_owned());
        edge.shutdown.cancel();
        edge.task.await.unwrap();
        assert_eq!(std::fs::read_dir(folder).unwrap().count(), 0, "the socket's file is gone");
        assert!(matches!(ask_status(&socket).await, Err(AskError::Unreachable { .. })));
    }

    #[tokio::test]
    async fn nonsense_is_answered_or_closed_and_the_next_is_served() {
        let edge = running().await;
        assert!(edge.health("NONSENSE").await.starts_with("HTTP/1.1 400 "));
        let endless = format!("GET /livez HTTP/1.1\r\nX: {}", "a".repeat(20_000));
        assert!(!edge.health(&endless).await.starts_with("HTTP/1.1 200 "));
        assert!(edge.health("GET /livez HTTP/1.1").await.starts_with("HTTP/1.1 200 "));
        edge.stop().await;
    }

    #[tokio::test]
    async fn a_crowd_cannot_hold_more_than_its_places() {
        let edge = running().await;
        let crowd: Vec<TcpStream> = {
            let mut crowd = Vec::new();
            for _ in 0..64 {
                crowd.push(TcpStream::connect(edge.address).await.unwrap());
            }
            crowd
        };
        let mut turned_away = TcpStream::connect(edge.address).await.unwrap();
        assert_eq!(turned_away.read(&mut [0]).await.unwrap_or(0), 0, "closed at once");
        assert!(ask_status(&edge.socket).await.is_ok(), "the operator has places of his own");
        drop(crowd);
        edge.stop().await;
    }

    #[tokio::test]
    async fn a_taken_address_is_said_with_what_to_do() {
        let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap();
        let edge = running().await;
        let error = start(address, Path::new("/nowhere"), edge.parts.clone(), Shutdown::new())
            .await
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            format!(
                "admin: {address}: cannot be listened on: Address already in use (os error 98); \
                 free the address or change admin.listen"
            )
        );
        edge.stop().await;
    }
}
