//! `POST /v1/enrol`: the one call that needs no certificate, because it gives one. What
//! admits the caller is the token's secret, and nothing else does.

use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use http::StatusCode;
use shared::api::EnrolRequest;

use super::body::JsonBody;
use super::refusal::Refusal;
use crate::pki::{Pki, PkiError};

pub(super) fn routes(pki: Pki) -> Router {
    Router::new().route("/v1/enrol", post(enrol)).with_state(pki)
}

async fn enrol(State(pki): State<Pki>, JsonBody(asked): JsonBody<EnrolRequest>) -> Result<Response, Refusal> {
    let answer = pki.enrol(&asked.secret, &asked.request, wall_clock()).await.map_err(refusal)?;
    Ok((StatusCode::OK, axum::Json(answer)).into_response())
}

/// Certificates and tokens live by the calendar.
#[expect(clippy::disallowed_methods, reason = "a corridor reads the clock for the room")]
pub(super) fn wall_clock() -> SystemTime {
    SystemTime::now()
}

/// Words a fault of the authority for callers; what is the operator's goes to the log.
pub(super) fn refusal(error: PkiError) -> Refusal {
    let detail = error.to_string();
    match error {
        PkiError::TokenRefused => Refusal::new(StatusCode::FORBIDDEN, "token_refused", detail),
        PkiError::BadRequest(_) => Refusal::new(StatusCode::BAD_REQUEST, "request_refused", detail),
        PkiError::Offline(_) => Refusal::later("authority_offline", detail, Duration::from_secs(60)),
        PkiError::TooManyTokens(_) => Refusal::later("too_many_tokens", detail, Duration::from_secs(60)),
        PkiError::BadName { .. } | PkiError::NoDnsName(_) => {
            Refusal::new(StatusCode::BAD_REQUEST, "name_refused", detail)
        }
        PkiError::NoSuchCertificate(_) => Refusal::not_found(detail),
        _ => {
            tracing::error!("pki: {detail}");
            Refusal::internal()
        }
    }
}
