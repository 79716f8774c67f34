//! The API's part about numbers: paths, bodies and statuses ↔ wishes and outcomes. Decides who
//! may touch which series; not what becomes of a number.

use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use serde::Deserialize;
use shared::api::{Confirm, MAX_KEY, MAX_PAGE, Number, Page, Reseeded, Void};
use shared::tls::{Role, is_name};

use super::body::JsonBody;
use super::caller::Caller;
use super::key::IdempotencyKey;
use super::refusal::Refusal;
use crate::sequence::book::{Refused, SeriesName};
use crate::sequence::{Done, Sequence, SequenceError};

/// Longest document hash, in bytes.
const MAX_DOCUMENT_HASH: usize = 128;
/// Longest reason, in bytes.
const MAX_REASON: usize = 512;

/// The routes under `/v1/series`.
pub fn routes(sequence: Sequence) -> Router {
    Router::new()
        .route("/v1/series/{series}/numbers", post(reserve).get(find))
        .route("/v1/series/{series}/numbers/{number}", get(one))
        .route("/v1/series/{series}/numbers/{number}/confirm", post(confirm))
        .route("/v1/series/{series}/numbers/{number}/void", post(void))
        .route("/v1/numbers/re-seed", post(reseed))
        .route("/v1/life", get(life))
        .route("/v1/series/{series}", put(define))
        .with_state(sequence.clone())
        .layer(axum::middleware::map_response(move |mut response: Response| {
            let life = format!("{:032x}", sequence.life());
            async move {
                if let Ok(life) = life.parse() {
                    response.headers_mut().insert(shared::api::VAULT_LIFE, life);
                }
                response
            }
        }))
}

async fn life(State(sequence): State<Sequence>) -> Response {
    Json(std::collections::BTreeMap::from([("life", format!("{:032x}", sequence.life()))])).into_response()
}

async fn define(
    State(sequence): State<Sequence>,
    caller: Caller,
    Path(series): Path<String>,
    Query(whose): Query<Whose>,
    JsonBody(body): JsonBody<crate::sequence::definition::Definition>,
) -> Result<StatusCode, Refusal> {
    caller.must_be(&[Role::Admin])?;
    let name = name(&caller, whose.owner, series)?;
    match sequence.define(name, body).await {
        Ok(_) | Err(SequenceError::InDoubt) => Ok(StatusCode::NO_CONTENT),
        Err(error) => Err(refusal(error)),
    }
}

/// Operators only: the other vault's journal is lost, this vault's is whole.
async fn reseed(State(sequence): State<Sequence>, caller: Caller) -> Result<Json<Reseeded>, Refusal> {
    caller.must_be(&[Role::Admin])?;
    let entries = sequence.reseed().await.map_err(refusal)?;
    tracing::warn!(by = caller.0.name, "numbers: re-seeding the other vault with {entries} entries");
    Ok(Json(Reseeded { entries }))
}

/// The query of every call: operators say for whom they act.
#[derive(Debug, Deserialize)]
struct Whose {
    owner: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Find {
    owner: Option<String>,
    key: Option<String>,
    after: Option<u64>,
    limit: Option<usize>,
}

async fn reserve(
    State(sequence): State<Sequence>,
    caller: Caller,
    Path(series): Path<String>,
    Query(whose): Query<Whose>,
    IdempotencyKey(key): IdempotencyKey,
    headers: axum::http::HeaderMap,
) -> Result<Response, Refusal> {
    let name = name(&caller, whose.owner, series)?;
    let ticket = headers.get(shared::api::VAULT_TICKET).and_then(|ticket| ticket.to_str().ok());
    let ticket = ticket.and_then(|ticket| u128::from_str_radix(ticket, 16).ok());
    let Done { number, fresh } = sequence.reserve(name, key, ticket).await.map_err(refusal)?;
    let status = if fresh { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(number)).into_response())
}

async fn find(
    State(sequence): State<Sequence>,
    caller: Caller,
    Path(series): Path<String>,
    Query(find): Query<Find>,
) -> Result<Response, Refusal> {
    let name = name(&caller, find.owner, series)?;
    if let Some(key) = find.key {
        let IdempotencyKey(key) = IdempotencyKey::read(key.as_bytes()).ok_or_else(|| {
            invalid(format!("an idempotency key is 1 to {MAX_KEY} visible ASCII characters"))
        })?;
        let absent = format!("series {} has no number for this key", name.series);
        let number = sequence.by_key(name, key).await.map_err(refusal)?;
        return number.map(|number| Json(number).into_response()).ok_or_else(|| Refusal::not_found(absent));
    }
    let limit = find.limit.unwrap_or(100).clamp(1, MAX_PAGE);
    // SQLite's integers end where i64 does, and so do the numbers.
    let after = find.after.unwrap_or(0).min(i64::MAX as u64);
    let items = sequence.list(name, after, limit).await.map_err(refusal)?;
    let next = if items.len() == limit { items.last().map(|number| number.number.to_string()) } else { None };
    Ok(Json(Page { items, next }).into_response())
}

async fn one(
    State(sequence): State<Sequence>,
    caller: Caller,
    Path((series, number)): Path<(String, String)>,
    Query(whose): Query<Whose>,
) -> Result<Json<Number>, Refusal> {
    let name = name(&caller, whose.owner, series)?;
    let number = checked_number(&number)?;
    let absent = format!("series {} has no number {number}", name.series);
    let found = sequence.by_number(name, number).await.map_err(refusal)?;
    found.map(Json).ok_or_else(|| Refusal::not_found(absent))
}

async fn confirm(
    State(sequence): State<Sequence>,
    caller: Caller,
    Path((series, number)): Path<(String, String)>,
    Query(whose): Query<Whose>,
    JsonBody(body): JsonBody<Confirm>,
) -> Result<Json<Number>, Refusal> {
    let name = name(&caller, whose.owner, series)?;
    let number = checked_number(&number)?;
    let hash = checked_text(body.document_hash, "document_hash", MAX_DOCUMENT_HASH)?;
    Ok(Json(sequence.confirm(name, number, hash).await.map_err(refusal)?.number))
}

async fn void(
    State(sequence): State<Sequence>,
    caller: Caller,
    Path((series, number)): Path<(String, String)>,
    Query(whose): Query<Whose>,
    JsonBody(body): JsonBody<Void>,
) -> Result<Json<Number>, Refusal> {
    let name = name(&caller, whose.owner, series)?;
    let number = checked_number(&number)?;
    let reason = checked_text(body.reason, "reason", MAX_REASON)?;
    Ok(Json(sequence.void(name, number, reason).await.map_err(refusal)?.number))
}

/// Whose series is meant: an edge's own owner's, or whichever an operator names.
fn name(caller: &Caller, owner: Option<String>, series: String) -> Result<SeriesName, Refusal> {
    caller.must_be(&[Role::Edge, Role::Admin])?;
    let owner = match (caller.0.role, owner) {
        (Role::Admin, None) => {
            return Err(invalid("an operator must say whose series is meant; add ?owner=NAME"));
        }
        (_, Some(owner)) => owner,
        (_, None) => caller.0.owner.clone(),
    };
    if !caller.may_touch(&owner) {
        let detail = format!("this certificate acts for {}, not for {owner}", caller.0.owner);
        return Err(Refusal::new(StatusCode::FORBIDDEN, "owner_refused", detail));
    }
    if !is_name(&series) || !is_name(&owner) {
        return Err(invalid(
            "a series or owner is named by 1 to 64 letters, digits, dots, dashes, underscores",
        ));
    }
    Ok(SeriesName { owner, series })
}

fn checked_number(text: &str) -> Result<u64, Refusal> {
    // SQLite's integers end where i64 does.
    text.parse::<u64>()
        .ok()
        .filter(|number| (1..=i64::MAX as u64).contains(number))
        .ok_or_else(|| invalid("a number is a whole number from 1 upwards"))
}

fn checked_text(text: String, what: &str, most: usize) -> Result<String, Refusal> {
    if (1..=most).contains(&text.len()) && !text.chars().any(char::is_control) {
        return Ok(text);
    }
    Err(invalid(format!("{what} is 1 to {most} bytes of text without control characters")))
}

fn invalid(detail: impl Into<String>) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, "invalid", detail)
}

fn refusal(error: SequenceError) -> Refusal {
    let text = error.to_string();
    match error {
        SequenceError::Refused(Refused::Unknown { .. }) => Refusal::not_found(text),
        SequenceError::Refused(Refused::Confirmed { .. }) => {
            Refusal::new(StatusCode::CONFLICT, "already_confirmed", text)
        }
        SequenceError::Refused(Refused::Void { .. }) => {
            Refusal::new(StatusCode::CONFLICT, "already_void", text)
        }
        SequenceError::Refused(Refused::KeyLost) => Refusal::new(StatusCode::GONE, "key_lost", text),
        SequenceError::Refused(Refused::Exhausted { .. }) => {
            Refusal::new(StatusCode::CONFLICT, "series_exhausted", text)
        }
        SequenceError::Apart(_) | SequenceError::Waits { .. } => {
            Refusal::later("peer_away", text, Duration::from_secs(2))
        }
        SequenceError::Closed(_) => Refusal::later("numbering_closed", text, Duration::from_secs(60)),
        SequenceError::NothingToReseed => Refusal::new(StatusCode::CONFLICT, "nothing_to_reseed", text),
        SequenceError::InDoubt => Refusal::later("in_doubt", text, Duration::from_secs(1)),
        SequenceError::Busy => Refusal::later("busy", text, Duration::from_secs(1)),
        SequenceError::Unreadable => Refusal::internal(),
    }
}
