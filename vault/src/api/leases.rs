//! `/v1/leases`: who may do a job at present. Paths and bodies ↔ claims and outcomes; what a lease
//! promises stands in the ledger's own room.

use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;
use serde::Deserialize;
use shared::api::Page;
use shared::api::record::{AcquireLease, HeldLease, Lease};

use super::body::JsonBody;
use super::caller::Caller;
use super::records::{Window, by, marked, named, page, refusal};
use super::refusal::Refusal;
use crate::sequence::Sequence;
use crate::sequence::record::front::Seen;
use crate::sequence::record::lease::{Claim, Holder, MAX_TOKEN, TTL};
use crate::sequence::record::{Done, Held, Kind, Refused, Wish};

/// The routes under `/v1/leases`.
pub fn routes(sequence: Sequence) -> Router {
    Router::new()
        .route("/v1/leases", get(list))
        .route("/v1/leases/{*name}", get(look).post(acquire).put(renew).delete(release))
        .with_state(sequence)
}

#[derive(Debug, Deserialize)]
struct Whose {
    owner: Option<String>,
}

/// The query of a release.
#[derive(Debug, Deserialize)]
struct Release {
    owner: Option<String>,
    token: Option<String>,
    epoch: Option<u64>,
}

async fn list(
    State(sequence): State<Sequence>,
    caller: Caller,
    Query(window): Query<Window>,
) -> Result<Response, Refusal> {
    let Seen { found: (items, next), stale } = page(&sequence, &caller, Kind::Lease, window).await?;
    let items = items.iter().filter_map(shown).collect();
    Ok(marked(Json(Page { items, next }).into_response(), stale))
}

async fn look(
    State(sequence): State<Sequence>,
    caller: Caller,
    Path(name): Path<String>,
    Query(whose): Query<Whose>,
) -> Result<Response, Refusal> {
    claim(&sequence, &caller, whose.owner, name, Claim::Look).await
}

async fn acquire(
    State(sequence): State<Sequence>,
    caller: Caller,
    Path(name): Path<String>,
    Query(whose): Query<Whose>,
    JsonBody(AcquireLease { token, ttl_seconds: ttl }): JsonBody<AcquireLease>,
) -> Result<Response, Refusal> {
    if !TTL.contains(&ttl) {
        let detail = format!("ttl_seconds is {} to {}", TTL.start(), TTL.end());
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "bad_lease", detail));
    }
    let holder = holder(&caller, token)?;
    claim(&sequence, &caller, whose.owner, name, Claim::Acquire { holder, ttl }).await
}

async fn renew(
    State(sequence): State<Sequence>,
    caller: Caller,
    Path(name): Path<String>,
    Query(whose): Query<Whose>,
    JsonBody(HeldLease { token, epoch }): JsonBody<HeldLease>,
) -> Result<Response, Refusal> {
    let holder = holder(&caller, token)?;
    claim(&sequence, &caller, whose.owner, name, Claim::Renew { holder, epoch }).await
}

async fn release(
    State(sequence): State<Sequence>,
    caller: Caller,
    Path(name): Path<String>,
    Query(Release { owner, token, epoch }): Query<Release>,
) -> Result<Response, Refusal> {
    let (Some(token), Some(epoch)) = (token, epoch) else {
        let detail = "say which lease ends: add ?token=TOKEN&epoch=EPOCH, the token it was acquired with and the epoch of that answer";
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "bad_lease", detail));
    };
    let holder = holder(&caller, token)?;
    claim(&sequence, &caller, owner, name, Claim::Release { holder, epoch }).await
}

async fn claim(
    sequence: &Sequence,
    caller: &Caller,
    owner: Option<String>,
    name: String,
    claim: Claim,
) -> Result<Response, Refusal> {
    let name = named(caller, owner, Kind::Lease, name)?;
    let (looks, text) = (matches!(claim, Claim::Look), name.name.clone());
    match sequence.write_record(name, Wish::Lease(claim)).await {
        Ok(Done { lease: Some(lease), fresh, .. }) => {
            let status = if fresh { StatusCode::CREATED } else { StatusCode::OK };
            let left_ms = Some(lease.left);
            let (holder, epoch, ttl_seconds) = (lease.by, lease.epoch, lease.ttl);
            Ok((status, Json(Lease { name: text, holder, epoch, ttl_seconds, left_ms })).into_response())
        }
        Ok(Done { lease: None, .. }) => Ok(StatusCode::NO_CONTENT.into_response()),
        Err(error) if looks && error == Refused::Absent.into() => {
            Err(Refusal::not_found("nobody holds this lease"))
        }
        Err(error) => Err(refusal(error)),
    }
}

fn holder(caller: &Caller, token: String) -> Result<Holder, Refusal> {
    if (1..=MAX_TOKEN).contains(&token.len()) && token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(Holder { by: by(caller), token });
    }
    let detail = format!("a lease's token is 1 to {MAX_TOKEN} visible ASCII characters");
    Err(Refusal::new(StatusCode::BAD_REQUEST, "bad_lease", detail))
}

/// As the ledger has it: whether its time is over, its owner alone can say.
fn shown(held: &Held) -> Option<Lease> {
    let tenancy = held.tenancy()?;
    Some(Lease {
        name: held.name.clone(),
        holder: tenancy.holder.by,
        epoch: tenancy.epoch,
        ttl_seconds: tenancy.ttl,
        left_ms: None,
    })
}
