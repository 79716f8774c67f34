//! The other end of the control socket: how `edge status` asks the edge that runs here.
//! Knows the socket's path and the answer's type; must not know how it is shown.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::Status;

/// The whole conversation.
const DEADLINE: Duration = Duration::from_secs(3);
/// Far over any status.
const MAX_ANSWER: usize = 1024 * 1024;

/// Why there is no status to show.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens there, or the caller may not connect.
    #[error(
        "control socket {path}: {source}; is edge running, is this its admin.control_socket, and may you use it?"
    )]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// It took the connection and then said nothing.
    #[error("control socket {0}: no answer within {DEADLINE:?}; edge hangs or starves, look at its log")]
    TooLate(PathBuf),
    /// The conversation broke off.
    #[error("control socket {path}: the answer broke off: {source}; edge may just be stopping, ask again")]
    Broken {
        /// The socket.
        path: PathBuf,
        /// Where it broke.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Somebody answered, but not with a status.
    #[error(
        "control socket {path}: answered {status} and no status; is it the socket of another program or version?"
    )]
    NoStatus {
        /// The socket.
        path: PathBuf,
        /// The HTTP status.
        status: StatusCode,
    },
}

/// Asks the edge behind `socket` how it does.
///
/// # Errors
/// Nobody answers within three seconds, or not with a status.
pub async fn ask_status(socket: &Path) -> Result<Status, AskError> {
    let (status, body) = tokio::time::timeout(DEADLINE, ask(socket, "/status"))
        .await
        .map_err(|_| AskError::TooLate(socket.to_owned()))??;
    let no_status = || AskError::NoStatus { path: socket.to_owned(), status };
    if status != StatusCode::OK {
        return Err(no_status());
    }
    serde_json::from_slice(&body).map_err(|_| no_status())
}

async fn ask(socket: &Path, path: &'static str) -> Result<(StatusCode, Bytes), AskError> {
    fn broken(socket: &Path, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> AskError {
        AskError::Broken { path: socket.to_owned(), source: source.into() }
    }
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|source| AskError::Unreachable { path: socket.to_owned(), source })?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(socket, error))?;
    let request = Request::builder()
        .uri(path)
        .header(header::HOST, "control")
        .body(Empty::<Bytes>::new())
        .map_err(|error| broken(socket, error))?;
    let talk = async {
        let answer = sender.send_request(request).await.map_err(|error| broken(socket, error))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER)
            .collect()
            .await
            .map_err(|error| broken(socket, error))?;
        Ok((status, body.to_bytes()))
    };
    // The connection is driven while the answer is awaited, and dropped with it.
    tokio::pin!(talk);
    tokio::select! {
        answer = &mut talk => answer,
        driven = connection => match driven {
            Ok(()) => talk.await,
            Err(error) => Err(broken(socket, error)),
        },
    }
}
