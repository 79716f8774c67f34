//! Health and metrics in clear, for probes and Prometheus. Tells how the parts are; changes
//! nothing, and shows no certificate, file or number.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{StatusCode, header};
use prometheus::{Registry, TextEncoder};

/// How a part of the program is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// As it should be.
    Good,
    /// Something is away, but the vault does its work: readiness stays.
    Degraded,
    /// The vault should get no work.
    Bad,
}

#[derive(Debug, Default)]
struct Parts {
    serving: bool,
    draining: bool,
    parts: BTreeMap<&'static str, (Health, String)>,
}

/// What `/readyz` answers by. Rooms report, probes ask. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<Mutex<Parts>>);

impl Readiness {
    /// The listeners are open.
    pub fn serving(&self) {
        self.change(|state| state.serving = true);
    }

    /// No new work, please.
    pub fn draining(&self) {
        self.change(|state| state.draining = true);
    }

    /// A part says how it is; the latest word counts.
    pub fn report(&self, part: &'static str, health: Health, detail: impl Into<String>) {
        let detail = detail.into();
        self.change(|state| {
            state.parts.insert(part, (health, detail));
        });
    }

    /// Ready, and the lines of the verbose answer.
    #[must_use]
    pub fn answer(&self) -> (bool, String) {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bad = state.parts.values().any(|(health, _)| *health == Health::Bad);
        let ready = state.serving && !state.draining && !bad;
        let mut lines = String::new();
        let word = match (state.serving, state.draining) {
            (_, true) => "draining",
            (true, false) => "serving",
            (false, false) => "starting",
        };
        let _ = writeln!(lines, "vault: {word}");
        for (part, (health, detail)) in &state.parts {
            let sign = match health {
                Health::Good => '+',
                Health::Degraded => '~',
                Health::Bad => '-',
            };
            let _ = writeln!(lines, "[{sign}] {part}: {detail}");
        }
        (ready, lines)
    }

    fn change(&self, change: impl FnOnce(&mut Parts)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// `/livez`, `/readyz` (`?verbose`), `/healthz` (as `/readyz`), `/metrics`.
pub(super) fn routes(readiness: Readiness, registries: Vec<Registry>) -> Router {
    Router::new()
        .route("/readyz", get(ready))
        .route("/healthz", get(ready))
        .with_state(readiness)
        .route("/livez", get("ok\n"))
        .route("/metrics", get(metrics))
        .with_state(registries)
}

async fn ready(State(readiness): State<Readiness>, RawQuery(query): RawQuery) -> Response {
    let (ready, lines) = readiness.answer();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let verbose =
        query.is_some_and(|query| query.split('&').any(|word| word.split('=').next() == Some("verbose")));
    let short = if ready { "ok\n" } else { "not ready\n" };
    (status, if verbose { lines } else { short.to_owned() }).into_response()
}

async fn metrics(State(registries): State<Vec<Registry>>) -> Response {
    let families: Vec<_> = registries.iter().flat_map(Registry::gather).collect();
    match TextEncoder::new().encode_to_string(&families) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => {
            tracing::error!("metrics cannot be written: {error}");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bad_part_takes_readiness_away() {
        let readiness = Readiness::default();
        assert!(!readiness.answer().0);
        readiness.serving();
        readiness.report("pair", Health::Degraded, "vault-b is away since 14:05Z");
        assert!(readiness.answer().0);
        readiness.report("storage", Health::Bad, "both file servers are away");
        assert_eq!(
            readiness.answer(),
            (
                false,
                "vault: serving\n[~] pair: vault-b is away since 14:05Z\n[-] storage: both file servers are away\n"
                    .to_owned()
            )
        );
        readiness.report("storage", Health::Good, "2 of 2");
        readiness.draining();
        assert!(!readiness.answer().0);
    }
}
