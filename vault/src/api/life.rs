//! `GET /v1/life`, and the `Vault-Life` header on every answer: which process answers, and whether
//! it is together with the other vault. Tickets name lives; what they decide is the ledger's.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use axum::routing::get;
use axum::{Json, Router};
use http::{HeaderValue, Method};
use shared::api::{LifeAnswer, VAULT_LIFE};

use super::caller::Caller;
use crate::sequence::Sequence;

/// The life of this process, as it stands on the wire.
#[derive(Debug, Clone)]
pub struct Life(HeaderValue);

impl Life {
    /// Of a life of the ledger.
    #[must_use]
    pub fn of(life: u128) -> Self {
        let digits = HeaderValue::try_from(format!("{life:032x}"));
        Self(digits.unwrap_or(HeaderValue::from_static("00000000000000000000000000000000")))
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
    response.headers_mut().insert(VAULT_LIFE, life);
    response
}
