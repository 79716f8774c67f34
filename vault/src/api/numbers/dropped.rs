//! What operators ask of writes that were answered by one vault alone and gave way to the other's:
//! which they are, and that they were looked at.

use axum::Json;
use axum::extract::{Query, State};
use serde::Deserialize;
use shared::api::{Dropped, Left, LookedAt, MAX_PAGE, Page};
use shared::tls::Role;

use super::asked::refusal;
use crate::api::body::JsonBody;
use crate::api::caller::Caller;
use crate::api::refusal::Refusal;
use crate::sequence::Sequence;
use crate::sequence::entry::{Act, Entry};

/// Which part of the list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Part {
    after: Option<u64>,
    limit: Option<usize>,
}

/// Operators only: a page of them.
pub(super) async fn list(
    State(sequence): State<Sequence>,
    caller: Caller,
    Query(part): Query<Part>,
) -> Result<Json<Page<Dropped>>, Refusal> {
    caller.must_be(&[Role::Admin])?;
    let limit = part.limit.unwrap_or(100).clamp(1, MAX_PAGE);
    // SQLite's integers end where i64 does.
    let after = part.after.unwrap_or(0).min(i64::MAX as u64);
    let found = sequence.dropped(after, limit).await.map_err(refusal)?;
    let items: Vec<Dropped> = found.into_iter().map(|(place, entry)| dropped(place, entry)).collect();
    // A page may be cut short by long texts, so its length does not tell.
    let next = match items.last() {
        Some(Dropped { place, .. }) if !sequence.dropped(*place, 1).await.map_err(refusal)?.is_empty() => {
            Some(place.to_string())
        }
        _ => None,
    };
    Ok(Json(Page { items, next }))
}

/// Operators only: status need not tell of these any more.
pub(super) async fn looked_at(
    State(sequence): State<Sequence>,
    caller: Caller,
    JsonBody(LookedAt { place }): JsonBody<LookedAt>,
) -> Result<Json<Left>, Refusal> {
    caller.must_be(&[Role::Admin])?;
    let left = sequence.looked_at(place.min(i64::MAX as u64)).await.map_err(refusal)?;
    tracing::info!(by = caller.0.name, "numbers: what gave way was looked at; {left} writes are left");
    Ok(Json(Left { left }))
}

fn dropped(place: u64, entry: Entry) -> Dropped {
    let Entry { owner, series: kind, key: name, number: version, at, act, .. } = entry;
    let text = if let Act::Put(text) = act { Some(text) } else { None };
    Dropped { place, owner, kind, name, version, text, at }
}
