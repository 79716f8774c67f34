//! Questions to the running vault over its control socket: HTTP/1.1. Small ones have three
//! seconds; those that carry files may take as long as they get on.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use shared::api::Problem;
use tokio::net::UnixStream;

use super::CommandError;

/// From connecting to the whole answer.
const DEADLINE: Duration = Duration::from_secs(3);
/// No JSON answer is longer: a thousand files with the longest labels, escaped.
const MOST_JSON: usize = 64 << 20;

/// A request's body, of one piece or many.
pub(super) type Body = BoxBody<Bytes, std::io::Error>;

/// Moves whenever a long call gets on.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress(Arc<AtomicU64>);

impl Progress {
    /// Something was sent or received.
    pub(super) fn note(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Asks and reads the JSON answer.
pub(super) async fn ask<Q: Serialize + Sync, A: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    question: Option<&Q>,
) -> Result<A, CommandError> {
    let body = question.map(serde_json::to_vec).transpose().map_err(std::io::Error::from)?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::CONTENT_TYPE, "application/json")
        .body(whole(body.unwrap_or_default()))
        .map_err(std::io::Error::other)?;
    let late = |_| CommandError::Late { socket: socket.to_owned(), deadline: DEADLINE };
    let exchange = async { json(socket, call(socket, request, DEADLINE, &Progress::default()).await?).await };
    tokio::time::timeout(DEADLINE, exchange).await.map_err(late)?
}

/// A body of one piece.
pub(super) fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

/// Sends `request` and waits for the answer's head. A call that makes no `progress` for
/// `patience` is given up. The connection lives as long as the answer.
pub(super) async fn call(
    socket: &Path,
    mut request: Request<Body>,
    patience: Duration,
    progress: &Progress,
) -> Result<Response<Incoming>, CommandError> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|source| CommandError::NotRunning { socket: socket.to_owned(), source })?;
    let broken = |source| CommandError::Broken { socket: socket.to_owned(), source };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    tokio::spawn(connection);
    request.headers_mut().insert(header::HOST, header::HeaderValue::from_static("vault"));
    let mut answer = std::pin::pin!(sender.send_request(request));
    loop {
        let before = progress.0.load(Ordering::Relaxed);
        match tokio::time::timeout(patience, &mut answer).await {
            Ok(answered) => return answered.map_err(broken),
            Err(_) if progress.0.load(Ordering::Relaxed) != before => {}
            Err(_) => return Err(CommandError::Late { socket: socket.to_owned(), deadline: patience }),
        }
    }
}

/// The JSON of an answer, or the refusal in it.
pub(super) async fn json<A: DeserializeOwned>(
    socket: &Path,
    response: Response<Incoming>,
) -> Result<A, CommandError> {
    let status = response.status();
    let body = collect(socket, response).await?;
    if status.is_success() {
        return serde_json::from_slice(&body).map_err(|_| strange(socket, status));
    }
    let problem: Problem = serde_json::from_slice(&body).map_err(|_| strange(socket, status))?;
    Err(CommandError::Refused(problem))
}

/// The answer itself where it is a success; the refusal in it otherwise.
pub(super) async fn accepted(
    socket: &Path,
    response: Response<Incoming>,
) -> Result<Response<Incoming>, CommandError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = collect(socket, response).await?;
    let problem: Problem = serde_json::from_slice(&body).map_err(|_| strange(socket, status))?;
    Err(CommandError::Refused(problem))
}

async fn collect(socket: &Path, response: Response<Incoming>) -> Result<Bytes, CommandError> {
    let status = response.status();
    match Limited::new(response.into_body(), MOST_JSON).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) => Err(match error.downcast::<hyper::Error>() {
            Ok(source) => CommandError::Broken { socket: socket.to_owned(), source: *source },
            Err(_) => strange(socket, status),
        }),
    }
}

fn strange(socket: &Path, status: StatusCode) -> CommandError {
    CommandError::Strange { socket: socket.to_owned(), status }
}
