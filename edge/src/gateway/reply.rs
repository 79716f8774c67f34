//! What goes back to a handler: a vault's answer, passed through, or the gateway's own
//! refusal as an RFC 9457 problem. Decides nothing.

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Frame, SizeHint};
use shared::api::client::Answer;
use shared::api::{IDEMPOTENCY_KEY, PROBLEM_JSON, Problem};
use tokio::time::{Sleep, sleep};

use super::door;
use super::intake::IntakeFault;

/// A response body towards a handler.
pub(super) type Body = UnsyncBoxBody<Bytes, Box<dyn Error + Send + Sync>>;

/// A vault's answer as the handler sees it, with the key that was used.
pub(super) fn outward(
    response: Response<Answer>,
    key: Option<&HeaderValue>,
    total: Duration,
) -> Response<Body> {
    let (parts, answer) = response.into_parts();
    let body = Whole { answer, deadline: Box::pin(sleep(total)), total };
    let mut passed = Response::new(body.boxed_unsync());
    *passed.status_mut() = parts.status;
    *passed.headers_mut() = door::outward(&parts.headers);
    if let Some(key) = key {
        passed.headers_mut().insert(IDEMPOTENCY_KEY, key.clone());
    }
    passed
}

/// `2xx` to `5xx`, as metrics count.
pub(super) fn class(status: StatusCode) -> &'static str {
    match status.as_u16() / 100 {
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        5 => "5xx",
        _ => "1xx",
    }
}

/// A vault's answer under the total deadline; a break is logged, since no status can tell it.
struct Whole {
    answer: Answer,
    deadline: Pin<Box<Sleep>>,
    total: Duration,
}

/// An answer that did not end in time.
#[derive(Debug, thiserror::Error)]
#[error("the answer took longer than {0:?}")]
struct TooLong(Duration);

impl hyper::body::Body for Whole {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let polled = Pin::new(&mut self.answer).poll_frame(cx);
        let error: Self::Error = match polled {
            Poll::Ready(Some(Err(error))) => error.into(),
            Poll::Ready(Some(Ok(frame))) => return Poll::Ready(Some(Ok(frame))),
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Pending => {
                std::task::ready!(self.deadline.as_mut().poll(cx));
                TooLong(self.total).into()
            }
        };
        tracing::warn!(
            "gateway: call failed in its answer's body: {error}; the handler's connection is closed"
        );
        Poll::Ready(Some(Err(error)))
    }

    fn is_end_stream(&self) -> bool {
        self.answer.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.answer.size_hint()
    }
}

/// The gateway's own no.
#[derive(Debug)]
pub(super) struct Refusal {
    problem: Box<Problem>,
    fields: Vec<(HeaderName, HeaderValue)>,
    /// For the log alone.
    cause: Option<String>,
}

impl Refusal {
    pub(super) fn new(problem: Problem) -> Self {
        Self { problem: Box::new(problem), fields: Vec::new(), cause: None }
    }

    /// 503: nothing was lost, the same call may succeed later.
    pub(super) fn later(code: &str, detail: impl Into<String>, after: Duration) -> Self {
        let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, code, detail);
        Self::new(problem).with(header::RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)))
    }

    pub(super) fn no_token() -> Self {
        let what = "this gateway needs Authorization: Bearer with a handler's token";
        Self::new(Problem::new(StatusCode::UNAUTHORIZED, "no_token", what))
            .with(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
    }

    pub(super) fn method(allowed: &'static str) -> Self {
        let what = format!("the gateway passes {allowed} here");
        Self::new(Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", what))
            .with(header::ALLOW, HeaderValue::from_static(allowed))
    }

    pub(super) fn internal() -> Self {
        let what = "edge failed; the operator finds the cause in its log";
        Self::new(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", what))
    }

    /// The handler's own body was at fault.
    pub(super) fn of_intake(fault: IntakeFault) -> Self {
        let (status, code) = match fault {
            IntakeFault::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
            IntakeFault::Stalled(_) => (StatusCode::REQUEST_TIMEOUT, "body_stalled"),
            IntakeFault::Broken => (StatusCode::BAD_REQUEST, "body_broken"),
        };
        Self::new(Problem::new(status, code, format!("{fault}; nothing was stored")))
    }

    /// A body that is no file's: the bound is the gateway's own.
    pub(super) fn kept(fault: IntakeFault) -> Self {
        let what = format!(
            "{fault}, which is gateway.max_kept_body; nothing was done, send less at a time or have it raised"
        );
        Self::new(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", what))
    }

    /// The handler's own ticket.
    pub(super) fn ticket() -> Self {
        let what = "tickets are the gateway's to keep; leave Vault-Ticket, or tickets in a batch, out";
        Self::new(Problem::new(StatusCode::BAD_REQUEST, "ticket_refused", what))
    }

    pub(super) fn because(mut self, cause: String) -> Self {
        self.cause = Some(cause);
        self
    }

    /// Tells the handler which key to repeat.
    pub(super) fn with_key(self, key: Option<&HeaderValue>) -> Self {
        match key {
            Some(key) => self.with(HeaderName::from_static(IDEMPOTENCY_KEY), key.clone()),
            None => self,
        }
    }

    fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.fields.push((name, value));
        self
    }

    #[cfg(test)]
    pub(super) fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.problem.status).unwrap()
    }

    pub(super) fn into_response(self) -> Response<Body> {
        let json = serde_json::to_vec(&self.problem).unwrap_or_default();
        let mut response =
            Response::new(Full::new(json.into()).map_err(|never| match never {}).boxed_unsync());
        *response.status_mut() =
            StatusCode::from_u16(self.problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        headers.extend(self.fields);
        response
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Some(cause) => write!(f, "{}: {cause}", self.problem.code),
            None => write!(f, "{}: {}", self.problem.code, self.problem.detail),
        }
    }
}
