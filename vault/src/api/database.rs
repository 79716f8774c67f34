//! What an operator asks about the ledger's copy in a database, and decides about its servers.
//! Knows paths, bodies and who may; `sequence::database` does it.

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use shared::tls::Role;

use super::caller::Caller;
use super::refusal::Refusal;
use crate::sequence::Sequence;
use crate::sequence::database::operator::{Database, Decided, OperatorError, Report};

/// Which server is meant.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Which {
    /// `host:port`, or the host alone.
    #[serde(default)]
    pub host: Option<String>,
}

/// The operators' routes. Every one of them is for role admin alone.
pub fn routes(sequence: Sequence) -> Router {
    Router::new()
        .route("/v1/database", get(report))
        .route("/v1/database/take-over", post(take_over))
        .route("/v1/database/fence", post(fence))
        .route("/v1/database/rejoin", post(rejoin))
        .with_state(sequence)
}

async fn report(State(sequence): State<Sequence>, caller: Caller) -> Result<Json<Report>, Refusal> {
    Ok(Json(door(&sequence, &caller)?.report().await))
}

async fn take_over(
    State(sequence): State<Sequence>,
    caller: Caller,
    Query(which): Query<Which>,
) -> Result<Json<Decided>, Refusal> {
    let door = door(&sequence, &caller)?;
    // It goes on to its end also when the operator has gone: a promotion is not half undone.
    let (door, host) = (door.clone(), which.host);
    let done = tokio::spawn(async move { door.take_over(host.as_deref()).await }).await;
    done.map_err(|_| Refusal::internal())?.map(Json).map_err(|error| refusal(&error))
}

async fn fence(
    State(sequence): State<Sequence>,
    caller: Caller,
    Query(which): Query<Which>,
) -> Result<Json<Decided>, Refusal> {
    let door = door(&sequence, &caller)?;
    let Some(host) = which.host else {
        let detail = "say which server; add ?host=HOST:PORT";
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "invalid", detail));
    };
    door.fence(&host).await.map(Json).map_err(|error| refusal(&error))
}

async fn rejoin(
    State(sequence): State<Sequence>,
    caller: Caller,
    Query(which): Query<Which>,
) -> Result<Json<Decided>, Refusal> {
    let door = door(&sequence, &caller)?;
    door.rejoin(which.host.as_deref()).await.map(Json).map_err(|error| refusal(&error))
}

fn door<'s>(sequence: &'s Sequence, caller: &Caller) -> Result<&'s Database, Refusal> {
    caller.must_be(&[Role::Admin])?;
    let none = "this vault keeps no copy in a database; write [sequence.database] in its configuration";
    sequence.database().ok_or_else(|| Refusal::not_found(none))
}

fn refusal(error: &OperatorError) -> Refusal {
    let (status, code) = match error {
        OperatorError::Unknown(..) | OperatorError::WhichHost(..) => (StatusCode::BAD_REQUEST, "invalid"),
        OperatorError::Truth(_) => (StatusCode::CONFLICT, "no_copy"),
        OperatorError::NotHere { .. } => (StatusCode::CONFLICT, "not_the_owner"),
        OperatorError::NotTaken { .. } => (StatusCode::CONFLICT, "not_taken"),
        OperatorError::Database(_) => (StatusCode::BAD_GATEWAY, "database"),
        OperatorError::NotYet { .. } => (StatusCode::GATEWAY_TIMEOUT, "not_yet"),
        OperatorError::Note(_) => (StatusCode::INTERNAL_SERVER_ERROR, "disk"),
    };
    Refusal::new(status, code, error.to_string())
}
