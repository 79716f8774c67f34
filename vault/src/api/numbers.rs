//! The API's part about numbers: paths, bodies and statuses ↔ wishes and outcomes. Decides who
//! may touch which series; not what becomes of a number.

mod asked;
mod batch;
mod dropped;
mod export;
mod series;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use serde::Deserialize;
use shared::api::{
    Confirm, Epoch, MAX_NUMBER_KEY, MAX_PAGE, Number, NumberState, Page, Reseeded, TakeOver, TokenFor,
    TokenText, Void,
};
use shared::tls::Role;

use super::body::JsonBody;
use super::caller::Caller;
use super::key::IdempotencyKey;
use super::refusal::Refusal;
use crate::sequence::reading::Stale;
use crate::sequence::token::{NoToken, Token};
use crate::sequence::{Done, Sequence};
pub(super) use asked::Ticket;
use asked::{Asked, AskedNumber, NoMore, Supersedes, checked_text, invalid, marked, refusal};

/// Longest document hash, in bytes.
const MAX_DOCUMENT_HASH: usize = 128;
/// Longest reason, in bytes.
const MAX_REASON: usize = 512;

/// The routes under `/v1/series`.
pub fn routes(sequence: Sequence) -> Router {
    Router::new()
        .route("/v1/series", get(series::list))
        .route("/v1/series/{series}", put(series::define).get(series::one))
        .route("/v1/series/{series}/export", get(export::export))
        .route("/v1/series/{series}/numbers", post(reserve).get(find))
        .route("/v1/series/{series}/numbers/batch", post(batch::reserve))
        .route("/v1/series/{series}/numbers/{number}", get(one))
        .route("/v1/series/{series}/numbers/{number}/confirm", post(confirm))
        .route("/v1/series/{series}/numbers/{number}/void", post(void))
        .route("/v1/numbers/re-seed", post(reseed))
        .route("/v1/numbers/take-over", post(take_over))
        .route("/v1/numbers/yield", post(give_way))
        .route("/v1/numbers/token", post(seal))
        .route("/v1/numbers/token/open", post(open))
        .route("/v1/numbers/dropped", get(dropped::list).post(dropped::looked_at))
        .with_state(sequence)
}

/// Operators only: a token with which one of the vaults may give numbers when it is alone.
async fn seal(
    State(sequence): State<Sequence>,
    caller: Caller,
    JsonBody(TokenFor { vault }): JsonBody<TokenFor>,
) -> Result<Json<TokenText>, Refusal> {
    caller.must_be(&[Role::Admin])?;
    let token = sequence.seal(vault.clone()).await.map_err(refusal)?;
    tracing::warn!(by = caller.0.name, "numbers: a token was made for {vault}");
    Ok(Json(TokenText { token: token.to_string() }))
}

/// Operators only: this vault goes on by its token.
async fn open(
    State(sequence): State<Sequence>,
    caller: Caller,
    JsonBody(TokenText { token }): JsonBody<TokenText>,
) -> Result<Json<Epoch>, Refusal> {
    caller.must_be(&[Role::Admin])?;
    let token: Token = token.parse().map_err(|error: NoToken| invalid(error.to_string()))?;
    let epoch = sequence.bring(token).await.map_err(refusal)?;
    tracing::warn!(by = caller.0.name, "numbers: this vault gives numbers by a token");
    Ok(Json(Epoch { epoch, given_up: 0 }))
}

/// Operators only: the other vault's journal is lost, this vault's is whole.
async fn reseed(State(sequence): State<Sequence>, caller: Caller) -> Result<Json<Reseeded>, Refusal> {
    caller.must_be(&[Role::Admin])?;
    let entries = sequence.reseed().await.map_err(refusal)?;
    tracing::warn!(by = caller.0.name, "numbers: re-seeding with {entries} entries");
    Ok(Json(Reseeded { entries }))
}

/// Operators only: this vault is the ledger's owner from now on.
async fn take_over(
    State(sequence): State<Sequence>,
    caller: Caller,
    JsonBody(TakeOver { alone }): JsonBody<TakeOver>,
) -> Result<Json<Epoch>, Refusal> {
    caller.must_be(&[Role::Admin])?;
    let epoch = sequence.take_over(alone).await.map_err(refusal)?;
    tracing::warn!(by = caller.0.name, alone, "numbers: this vault has taken over in epoch {epoch}");
    Ok(Json(Epoch { epoch, given_up: 0 }))
}

/// Operators only: of two owners the other is right.
async fn give_way(State(sequence): State<Sequence>, caller: Caller) -> Result<Json<Epoch>, Refusal> {
    caller.must_be(&[Role::Admin])?;
    let [epoch, given_up] = sequence.give_way().await.map_err(refusal)?;
    tracing::warn!(by = caller.0.name, given_up, "numbers: this vault has yielded to the other");
    Ok(Json(Epoch { epoch, given_up }))
}

async fn reserve(
    State(sequence): State<Sequence>,
    asked: Asked<NoMore>,
    Ticket(ticket): Ticket,
    Supersedes(old): Supersedes,
    IdempotencyKey(key): IdempotencyKey,
) -> Result<Response, Refusal> {
    let name = asked.counted(&sequence)?;
    if old.as_ref() == Some(&key) {
        return Err(invalid("Vault-Supersedes names the key itself; take a new key"));
    }
    if let Some(old) = old {
        // Doing it again does nothing more, so the whole call may be repeated.
        sequence.supersede(name.clone(), old, key.clone()).await.map_err(refusal)?;
    }
    let Done { number, fresh } = sequence.reserve(name, key, ticket).await.map_err(refusal)?;
    let status = if fresh { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(number)).into_response())
}

/// What a list holds, beside whose and which series.
#[derive(Debug, Deserialize)]
struct Find {
    key: Option<String>,
    state: Option<Wanted>,
    after: Option<u64>,
    limit: Option<usize>,
}

/// Only these numbers.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Wanted {
    Reserved,
    Confirmed,
    Void,
    Doubtful,
    Expired,
}

async fn find(State(sequence): State<Sequence>, asked: Asked<Find>) -> Result<Response, Refusal> {
    let (name, stale) = (asked.counted(&sequence)?, sequence.stale(asked.stale));
    let find = asked.more;
    if let Some(key) = find.key {
        let IdempotencyKey(key) = IdempotencyKey::read(key.as_bytes()).ok_or_else(|| {
            invalid(format!("an idempotency key is 1 to {MAX_NUMBER_KEY} visible ASCII characters"))
        })?;
        let absent = absent(format!("series {} has no number for this key", name.series), stale);
        let number = sequence.by_key(name, key, stale.is_some()).await.map_err(refusal)?;
        return number.map(|number| marked(Json(number), stale)).ok_or(absent);
    }
    let limit = find.limit.unwrap_or(100).clamp(1, MAX_PAGE);
    // SQLite's integers end where i64 does, and so do the numbers.
    let after = find.after.unwrap_or(0).min(i64::MAX as u64);
    let (state, expired) = match find.state {
        None => (None, false),
        Some(Wanted::Reserved) => (Some(NumberState::Reserved), false),
        Some(Wanted::Confirmed) => (Some(NumberState::Confirmed), false),
        Some(Wanted::Void) => (Some(NumberState::Void), false),
        Some(Wanted::Doubtful) => (Some(NumberState::Doubtful), false),
        Some(Wanted::Expired) => (None, true),
    };
    let items = match stale {
        Some(upto) => sequence.list_stale(name, (state, expired), (after, limit), upto).await,
        None if expired => sequence.list_expired(name, after, limit).await,
        None => sequence.list(name, state, after, limit).await,
    };
    Ok(marked(Json(page(items.map_err(refusal)?, limit)), stale))
}

/// 404, which of a vault that is alone does not say much.
fn absent(detail: String, stale: Option<Stale>) -> Refusal {
    let known = if stale.is_some() { ", as far as this vault knows" } else { "" };
    Refusal::not_found(format!("{detail}{known}"))
}

fn page(items: Vec<Number>, limit: usize) -> Page<Number> {
    let next = if items.len() == limit { items.last().map(|number| number.number.to_string()) } else { None };
    Page { items, next }
}

async fn one(
    State(sequence): State<Sequence>,
    AskedNumber { name, number, stale }: AskedNumber,
) -> Result<Response, Refusal> {
    let stale = sequence.stale(stale);
    let absent = absent(format!("series {} has no number {number}", name.series), stale);
    let found = sequence.by_number(name, number, stale.is_some()).await.map_err(refusal)?;
    found.map(|number| marked(Json(number), stale)).ok_or(absent)
}

async fn confirm(
    State(sequence): State<Sequence>,
    AskedNumber { name, number, .. }: AskedNumber,
    JsonBody(body): JsonBody<Confirm>,
) -> Result<Json<Number>, Refusal> {
    let hash = checked_text(body.document_hash, "document_hash", MAX_DOCUMENT_HASH)?;
    Ok(Json(sequence.confirm(name, number, hash).await.map_err(refusal)?.number))
}

async fn void(
    State(sequence): State<Sequence>,
    AskedNumber { name, number, .. }: AskedNumber,
    JsonBody(body): JsonBody<Void>,
) -> Result<Json<Number>, Refusal> {
    let reason = checked_text(body.reason, "reason", MAX_REASON)?;
    Ok(Json(sequence.void(name, number, reason).await.map_err(refusal)?.number))
}
