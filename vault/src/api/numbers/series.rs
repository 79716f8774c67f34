//! Series as a whole: what an operator says of one, and how far it is counted.

use axum::Json;
use axum::extract::{Query, State};
use serde::Deserialize;
use shared::api::{MAX_PAGE, Page, Series};
use shared::tls::Role;

use super::asked::{Asked, NoMore, invalid, owner_of, refusal};
use crate::api::body::JsonBody;
use crate::api::caller::Caller;
use crate::api::refusal::Refusal;
use crate::sequence::Sequence;
use crate::sequence::definition::Definition;

/// Operators only: it decides what happens while the vaults are apart.
pub(super) async fn define(
    State(sequence): State<Sequence>,
    caller: Caller,
    asked: Asked<NoMore>,
    JsonBody(definition): JsonBody<Definition>,
) -> Result<Json<Series>, Refusal> {
    caller.must_be(&[Role::Admin])?;
    if asked.period.is_some() {
        return Err(invalid("a definition is of a series and all its periods; leave period out"));
    }
    let name = asked.base;
    sequence.define(name.clone(), definition).await.map_err(refusal)?;
    tracing::info!(by = caller.0.name, "numbers: series {} of {} is defined", name.series, name.owner);
    found(&sequence, name).await
}

pub(super) async fn one(
    State(sequence): State<Sequence>,
    asked: Asked<NoMore>,
) -> Result<Json<Series>, Refusal> {
    found(&sequence, asked.base).await
}

async fn found(
    sequence: &Sequence,
    name: crate::sequence::book::SeriesName,
) -> Result<Json<Series>, Refusal> {
    let absent = format!("{} has no series {}", name.owner, name.series);
    let series = sequence.survey(name).await.map_err(refusal)?;
    series.map(Json).ok_or_else(|| Refusal::not_found(absent))
}

#[derive(Debug, Deserialize)]
pub(super) struct List {
    owner: Option<String>,
    #[serde(default)]
    after: String,
    limit: Option<usize>,
}

pub(super) async fn list(
    State(sequence): State<Sequence>,
    caller: Caller,
    Query(list): Query<List>,
) -> Result<Json<Page<Series>>, Refusal> {
    let owner = owner_of(&caller, list.owner)?;
    let limit = list.limit.unwrap_or(100).clamp(1, MAX_PAGE);
    let names = sequence.series_names(owner.clone(), list.after, limit).await.map_err(refusal)?;
    let next = if names.len() == limit { names.last().cloned() } else { None };
    let mut items = Vec::with_capacity(names.len());
    for series in names {
        let name = crate::sequence::book::SeriesName { owner: owner.clone(), series };
        items.extend(sequence.survey(name).await.map_err(refusal)?);
    }
    Ok(Json(Page { items, next }))
}
