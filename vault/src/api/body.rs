//! JSON bodies: bounded in size and time, and every fault a problem that says where it is.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::{StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Body as _;
use serde::de::DeserializeOwned;

use super::refusal::Refusal;

/// Longest JSON body of any call, in bytes.
pub const MAX_JSON: usize = 64 << 10;
/// A JSON body is there whole within this time; it is small.
const DEADLINE: Duration = Duration::from_secs(30);

/// So much of a refused body is read, and for so long.
pub(super) const MOST_DISCARDED: usize = 8 << 20;
const DISCARDING: Duration = Duration::from_secs(1);

/// A request's JSON body.
#[derive(Debug, Clone)]
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned, S: Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request<Body>, _state: &S) -> Result<Self, Refusal> {
        let kind = request.headers().get(header::CONTENT_TYPE).map(header::HeaderValue::as_bytes);
        if kind.is_some_and(|kind| !is_json(kind)) {
            let detail = "this call takes application/json";
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "bad_request", detail));
        }
        let mut body = request.into_body();
        let whole = Limited::new(&mut body, MAX_JSON).collect();
        let body = match tokio::time::timeout(DEADLINE, whole).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                discard(body).await;
                let detail = format!("the body is longer than {MAX_JSON} bytes");
                return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail));
            }
            Ok(Err(_)) => {
                return Err(Refusal::new(StatusCode::BAD_REQUEST, "body_broken", "the body broke off"));
            }
            Err(_) => {
                let detail = format!("the body did not come within {DEADLINE:?}");
                return Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "body_late", detail));
            }
        };
        serde_json::from_slice(&body).map(Self).map_err(|error| {
            let detail = format!("the JSON body cannot be used: {error}");
            Refusal::new(StatusCode::BAD_REQUEST, "bad_request", detail)
        })
    }
}

/// Takes a body that is refused off the line, so that the connection serves the next call. One
/// that says itself that it is too long for that is not even asked for, where the caller waits to
/// be asked (`Expect: 100-continue`, RFC 9110, 10.1.1); its connection is closed.
pub(super) async fn discard(body: Body) {
    if body.size_hint().lower() > MOST_DISCARDED as u64 {
        return;
    }
    discard_pieces(body.into_data_stream()).await;
}

/// The same of a body that has been read in part.
pub(super) async fn discard_pieces<E>(mut pieces: impl Stream<Item = Result<Bytes, E>> + Unpin) {
    let mut left = MOST_DISCARDED;
    let taken = async {
        while let Some(Ok(bytes)) = pieces.next().await {
            left = left.saturating_sub(bytes.len());
            if left == 0 {
                break;
            }
        }
    };
    // Whoever sends slower than that does not see the answer.
    let _ = tokio::time::timeout(DISCARDING, taken).await;
}

fn is_json(kind: &[u8]) -> bool {
    let essence = kind.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    essence.eq_ignore_ascii_case(b"application/json")
}
