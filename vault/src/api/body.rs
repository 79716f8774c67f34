//! JSON bodies: bounded in size and time, and every fault a problem that says where it is.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use http::{StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use super::refusal::Refusal;

/// Longest JSON body of a call that does not say otherwise, in bytes.
pub const MAX_JSON: usize = 64 << 10;
/// A JSON body is there whole within this time; it is small.
const DEADLINE: Duration = Duration::from_secs(30);

/// A request's JSON body, of at most `MOST` bytes.
#[derive(Debug, Clone)]
pub struct JsonBody<T, const MOST: usize = MAX_JSON>(pub T);

impl<T: DeserializeOwned, S: Sync, const MOST: usize> FromRequest<S> for JsonBody<T, MOST> {
    type Rejection = Refusal;

    async fn from_request(request: Request<Body>, _state: &S) -> Result<Self, Refusal> {
        let kind = request.headers().get(header::CONTENT_TYPE).map(header::HeaderValue::as_bytes);
        if kind.is_some_and(|kind| !is_json(kind)) {
            let detail = "this call takes application/json: say Content-Type: application/json (curl -d says something else)";
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "bad_request", detail));
        }
        let whole = Limited::new(request.into_body(), MOST).collect();
        let body = match tokio::time::timeout(DEADLINE, whole).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                let detail = format!("the body is longer than {MOST} bytes");
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

fn is_json(kind: &[u8]) -> bool {
    let essence = kind.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    essence.eq_ignore_ascii_case(b"application/json")
}
