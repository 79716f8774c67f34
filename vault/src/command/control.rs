//! One question to the running vault over its control socket: HTTP/1.1, three seconds.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use shared::api::Problem;
use tokio::net::UnixStream;

use super::CommandError;

/// From connecting to the whole answer.
const DEADLINE: Duration = Duration::from_secs(3);

/// Asks and reads the JSON answer.
pub(super) async fn ask<Q: Serialize + Sync, A: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    question: Option<&Q>,
) -> Result<A, CommandError> {
    let late = |_| CommandError::Late { socket: socket.to_owned(), deadline: DEADLINE };
    tokio::time::timeout(DEADLINE, exchange(socket, method, path, question)).await.map_err(late)?
}

async fn exchange<Q: Serialize + Sync, A: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    question: Option<&Q>,
) -> Result<A, CommandError> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|source| CommandError::NotRunning { socket: socket.to_owned(), source })?;
    let broken = |source| CommandError::Broken { socket: socket.to_owned(), source };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let driver = tokio::spawn(connection);
    let body = question.map(serde_json::to_vec).transpose().map_err(std::io::Error::from)?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "vault")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body.unwrap_or_default())))
        .map_err(std::io::Error::other)?;
    let response = sender.send_request(request).await.map_err(broken)?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(broken)?.to_bytes();
    driver.abort();
    let strange = |_| CommandError::Strange { socket: socket.to_owned(), status };
    if status.is_success() {
        serde_json::from_slice(&body).map_err(strange)
    } else {
        let problem: Problem = serde_json::from_slice(&body).map_err(strange)?;
        Err(CommandError::Refused(problem))
    }
}
