//! How the API says no: RFC 9457 problem bodies, with `Retry-After` where waiting helps.
//! The body is for the caller; the cause stays in the log of whoever refused.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use shared::api::{PROBLEM_JSON, Problem};

/// A refusal ready to be sent.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// The body.
    pub problem: Problem,
    /// When trying again may help.
    pub retry_after: Option<Duration>,
}

impl Refusal {
    /// A refusal that repeating will not change.
    #[must_use]
    pub fn new(status: StatusCode, code: &str, detail: impl Into<String>) -> Self {
        Self { problem: Problem::new(status, code, detail), retry_after: None }
    }

    /// 503 with `Retry-After`: the same request may succeed later, nothing was done.
    #[must_use]
    pub fn later(code: &str, detail: impl Into<String>, retry_after: Duration) -> Self {
        let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, code, detail);
        Self { problem, retry_after: Some(retry_after) }
    }

    /// 404.
    #[must_use]
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", detail)
    }

    /// 500; the caller learns nothing of the cause, which the room has logged.
    #[must_use]
    pub fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "the vault failed; the operator finds the cause in its log",
        )
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self.problem).unwrap_or_default();
        let mut response = (status, [(header::CONTENT_TYPE, PROBLEM_JSON)], body).into_response();
        if let Some(wait) = self.retry_after {
            let seconds = wait.as_secs().max(1);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        // The guard logs it without reading the body again.
        response.extensions_mut().insert(self.problem);
        response
    }
}
