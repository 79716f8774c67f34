//! What holds for every request, whatever its route: the revoked are refused, a panic becomes
//! a 500, a refusal is a problem body whoever worded it, and leaves one line in the log.

use std::panic::AssertUnwindSafe;

use axum::body::Body;
use axum::extract::State;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use shared::api::PROBLEM_JSON;
use shared::tls::Identity;
use tokio::time::Instant;

use super::connection::Origin;
use super::for_log;
use super::metrics::Metrics;
use super::refusal::Refusal;
use crate::pki::Pki;

/// As much of another's plain-text reason is kept in our problem.
const MAX_REASON: usize = 1024;

#[derive(Clone)]
pub(super) struct Guard {
    pub(super) pki: Pki,
    pub(super) metrics: Metrics,
}

/// The answer to a path that no room serves.
pub(super) async fn no_such_path() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "no_such_path", "no such path here; GET /v1/openapi.yaml lists them")
}

/// Wraps every request.
pub(super) async fn watch(State(guard): State<Guard>, request: Request<Body>, next: Next) -> Response {
    let began = Instant::now();
    let line = Line::of(&request);
    let revoked =
        request.extensions().get::<Identity>().is_some_and(|caller| guard.pki.is_revoked(&caller.serial));
    let response = if revoked {
        Refusal::new(
            StatusCode::FORBIDDEN,
            "certificate_revoked",
            "this certificate has been revoked; enrol again with a new token",
        )
        .into_response()
    } else {
        AssertUnwindSafe(next.run(request)).catch_unwind().await.unwrap_or_else(|panic| {
            tracing::error!(reason = panic_text(&panic), "a handler panicked: {line}");
            Refusal::internal().into_response()
        })
    };
    guard.metrics.answered(response.status(), began.elapsed());
    if response.status().as_u16() < 400 {
        return response;
    }
    let (response, detail) = as_problem(response).await;
    line.log(response.status(), &detail, began);
    response
}

/// Makes a problem of a refusal that a library worded, and tells the reason for the log.
async fn as_problem(response: Response) -> (Response, String) {
    let kind = response.headers().get(header::CONTENT_TYPE);
    if kind.is_some_and(|kind| kind == PROBLEM_JSON) {
        let told = response.extensions().get::<shared::api::Problem>();
        let detail = told.map_or_else(String::new, |problem| format!("{}: {}", problem.code, problem.detail));
        return (response, detail);
    }
    let (head, body) = response.into_parts();
    let text = Limited::new(body, MAX_REASON).collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let reason = |otherwise: &str| if text.is_empty() { otherwise.to_owned() } else { text.clone() };
    let refusal = match head.status {
        StatusCode::METHOD_NOT_ALLOWED => {
            // The router adds the header further out.
            let detail = "this path does not take this method; the Allow header names those it takes";
            Refusal::new(head.status, "method_refused", detail)
        }
        StatusCode::PAYLOAD_TOO_LARGE => {
            Refusal::new(head.status, "too_large", reason("the body is longer than this call takes"))
        }
        StatusCode::NOT_FOUND => Refusal::not_found(reason("no such thing")),
        StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY | StatusCode::UNSUPPORTED_MEDIA_TYPE => {
            Refusal::new(StatusCode::BAD_REQUEST, "bad_request", reason("the request cannot be read"))
        }
        status if status.is_client_error() => {
            Refusal::new(status, "refused", reason("the request is refused"))
        }
        _ => Refusal::internal(),
    };
    let detail = format!("{}: {}", refusal.problem.code, refusal.problem.detail);
    let mut response = refusal.into_response();
    for name in [header::ALLOW, header::RETRY_AFTER] {
        if let Some(value) = head.headers.get(&name) {
            response.headers_mut().insert(name, HeaderValue::clone(value));
        }
    }
    (response, detail)
}

/// Who asked for what, escaped: clients cannot forge a line.
struct Line {
    method: Method,
    path: String,
    caller: String,
}

impl Line {
    fn of(request: &Request<Body>) -> Self {
        let caller = match (request.extensions().get::<Identity>(), request.extensions().get::<Origin>()) {
            (Some(caller), _) => format!("{} {}/{}", caller.role, caller.owner, caller.name),
            (None, Some(Origin(from))) => format!("nobody at {from}"),
            (None, None) => "nobody".to_owned(),
        };
        Self { method: request.method().clone(), path: for_log(request.uri().path()), caller }
    }

    fn log(&self, status: StatusCode, detail: &str, began: Instant) {
        let (status, milliseconds) = (status.as_u16(), began.elapsed().as_millis());
        let detail = for_log(detail);
        if status >= 500 {
            tracing::warn!(status, milliseconds, "api: {self}: refused: {detail}");
        } else {
            tracing::info!(status, milliseconds, "api: {self}: refused: {detail}");
        }
    }
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} by {}", self.method, self.path, self.caller)
    }
}

fn panic_text(panic: &Box<dyn std::any::Any + Send>) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no reason given")
}
