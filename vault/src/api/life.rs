//! `GET /v1/life`, and the `Vault-Life` header on every answer: which process answers, and whether
//! it is together with the other vault. Tickets name lives; what they decide is the ledger's.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use axum::routing::get;
use axum::{Json, Router};
use http::{HeaderValue, Method};
use shared::api::{LifeAnswer, VAULT_LIFE};

use super::caller::Caller;
use crate::sequence::Sequence;

/// The life that answers, asked for each answer: a token begins a new one without a new process.
#[derive(Clone)]
pub struct Life(Arc<dyn Fn() -> u128 + Send + Sync>);

impl Life {
    /// Whatever this tells.
    #[must_use]
    pub fn of(life: impl Fn() -> u128 + Send + Sync + 'static) -> Self {
        Self(Arc::new(life))
    }
}

/// The routes under `/v1/life`.
pub fn routes(sequence: Sequence) -> Router {
    Router::new().route("/v1/life", get(tell)).with_state(sequence)
}

/// Any verified caller may ask: it names no one but this process. Only who reads the answer's body
/// has the other vault asked.
async fn tell(_caller: Caller, State(sequence): State<Sequence>, method: Method) -> Json<LifeAnswer> {
    let together = method != Method::HEAD && sequence.are_together().await;
    Json(LifeAnswer { life: format!("{:032x}", sequence.life()), together })
}

/// Puts the header on an answer, a refusal too.
pub(super) async fn sign(State(Life(life)): State<Life>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    if let Ok(life) = HeaderValue::try_from(format!("{:032x}", life())) {
        response.headers_mut().insert(VAULT_LIFE, life);
    }
    response
}
