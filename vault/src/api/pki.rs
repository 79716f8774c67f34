//! Operators' calls on certificates: list, make a token, revoke. Admins only.

use axum::extract::{Path, Query, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use serde::Deserialize;
use shared::api::{IssuedCertificate, MAX_PAGE, Page, TokenAnswer, TokenRequest};
use shared::tls::Role;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::body::JsonBody;
use super::caller::Caller;
use super::enrol::{refusal, wall_clock};
use super::refusal::Refusal;
use crate::pki::Pki;

/// Certificates on a page unless the caller wants fewer or more.
const PAGE: usize = 100;

pub(super) fn routes(pki: Pki) -> Router {
    Router::new()
        .route("/v1/pki/certificates", get(list))
        .route("/v1/pki/tokens", post(token))
        .route("/v1/pki/certificates/{serial}/revoke", post(revoke))
        .with_state(pki)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    after: Option<String>,
    limit: Option<usize>,
}

async fn list(
    caller: Caller,
    State(pki): State<Pki>,
    Query(which): Query<Which>,
) -> Result<Json<Page<IssuedCertificate>>, Refusal> {
    caller.must_be(&[Role::Admin])?;
    let limit = which.limit.unwrap_or(PAGE).clamp(1, MAX_PAGE);
    pki.certificates(which.after, limit).await.map(Json).map_err(refusal)
}

async fn token(
    caller: Caller,
    State(pki): State<Pki>,
    JsonBody(asked): JsonBody<TokenRequest>,
) -> Result<(StatusCode, Json<TokenAnswer>), Refusal> {
    caller.must_be(&[Role::Admin])?;
    let now = wall_clock();
    let made = pki.token(asked.role, &asked.owner, &asked.name, now).await.map_err(refusal)?;
    let expires =
        OffsetDateTime::from(made.expires).replace_nanosecond(0).unwrap_or_else(|_| made.expires.into());
    let answer =
        TokenAnswer { token: made.token.to_string(), expires: expires.format(&Rfc3339).unwrap_or_default() };
    tracing::info!(by = caller.0.name, "pki: token made for {} {}/{}", asked.role, asked.owner, asked.name);
    Ok((StatusCode::CREATED, Json(answer)))
}

async fn revoke(
    caller: Caller,
    State(pki): State<Pki>,
    Path(serial): Path<String>,
) -> Result<Json<IssuedCertificate>, Refusal> {
    caller.must_be(&[Role::Admin])?;
    let revoked = pki.revoke(&serial).await.map_err(refusal)?;
    let (role, owner, name) = (revoked.role, &revoked.owner, &revoked.name);
    tracing::info!(by = caller.0.name, serial = revoked.serial, "pki: revoked {role} {owner}/{name}");
    Ok(Json(revoked))
}
