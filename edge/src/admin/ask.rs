//! The other end of the control socket: how `edge status` and `edge bans` ask the edge that runs here.
//! Knows the socket's path and the answer's type; must not know how it is shown.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::Status;
use crate::ban::words::{Answer, Question};

/// The whole conversation.
const DEADLINE: Duration = Duration::from_secs(5);
/// Far over any status, and room for as many bans as may be asked for at once.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

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
        "control socket {path}: answered {status} and nothing that can be shown; is it the socket of another program or version?"
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
/// Nobody answers within five seconds, or not with a status.
pub async fn ask_status(socket: &Path) -> Result<Status, AskError> {
    let (status, body) = ask(socket, Method::GET, "/status", Bytes::new()).await?;
    let no_status = || AskError::NoStatus { path: socket.to_owned(), status };
    if status != StatusCode::OK {
        return Err(no_status());
    }
    serde_json::from_slice(&body).map_err(|_| no_status())
}

/// Asks the ban engine of the edge behind `socket`.
///
/// # Errors
/// As [`ask_status`].
pub async fn ask_bans(socket: &Path, question: &Question) -> Result<Answer, AskError> {
    let broken = |source| AskError::Broken { path: socket.to_owned(), source };
    let json = serde_json::to_vec(question).map_err(|error| broken(error.into()))?;
    let (status, body) = ask(socket, Method::POST, "/bans", Bytes::from(json)).await?;
    match serde_json::from_slice(&body) {
        Ok(answer) if status == StatusCode::OK => Ok(answer),
        _ => Err(AskError::NoStatus { path: socket.to_owned(), status }),
    }
}

async fn ask(
    socket: &Path,
    method: Method,
    path: &'static str,
    body: Bytes,
) -> Result<(StatusCode, Bytes), AskError> {
    tokio::time::timeout(DEADLINE, converse(socket, method, path, body))
        .await
        .map_err(|_| AskError::TooLate(socket.to_owned()))?
}

async fn converse(
    socket: &Path,
    method: Method,
    path: &'static str,
    body: Bytes,
) -> Result<(StatusCode, Bytes), AskError> {
    fn broken(socket: &Path, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> AskError {
        AskError::Broken { path: socket.to_owned(), source: source.into() }
    }
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|source| AskError::Unreachable { path: socket.to_owned(), source })?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(socket, error))?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "control")
        .body(Full::new(body))
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
