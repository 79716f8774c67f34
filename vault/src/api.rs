//! Corridor 1: HTTP. Knows who calls, what they may, and how an answer or a refusal is
//! worded; leaves numbers, files and certificates to their rooms.
//!
//! The walk: `server` accepts and finds out who calls → `guard` refuses the revoked, words
//! every refusal as a problem and logs it → the rooms' own routes.

pub mod admin;
pub mod body;
pub mod caller;
mod connection;
pub mod control_socket;
mod enrol;
mod guard;
pub mod key;
mod metrics;
mod pki;
pub mod refusal;
pub mod server;
pub mod status;
mod stream;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;

pub use body::MAX_JSON;
pub use metrics::Metrics;

/// What the router is joined from.
pub struct Parts {
    /// The routes of the rooms that have some: `Router::new().merge(…).merge(…)`.
    pub rooms: Router,
    /// Enrolment, revocation, and who is refused.
    pub pki: crate::pki::Pki,
    /// What `GET /v1/status` shows.
    pub status: status::Sources,
    /// Counts what passes.
    pub metrics: Metrics,
}

/// Joins every route. Whatever is refused comes out as an RFC 9457 problem and one line in
/// the log; a panic in a handler costs its own request only.
pub fn router(parts: Parts) -> Router {
    let guard = guard::Guard { pki: parts.pki.clone(), metrics: parts.metrics };
    Router::new()
        .merge(parts.rooms)
        .merge(enrol::routes(parts.pki.clone()))
        .merge(pki::routes(parts.pki))
        .merge(status::routes(parts.status))
        .fallback(guard::no_such_path)
        .layer(DefaultBodyLimit::max(MAX_JSON))
        .layer(from_fn_with_state(guard, guard::watch))
}

/// Text that a caller controls, fit for a log line: printable ASCII, the rest escaped, and
/// not longer than a line should be.
fn for_log(text: &str) -> String {
    text.chars().take(256).flat_map(char::escape_default).collect()
}
