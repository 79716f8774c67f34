//! Series as a whole: what an operator says of one, and how far it is counted.

use axum::Json;
use axum::extract::{Query, State};
use axum::response::Response;
use serde::Deserialize;
use shared::api::{MAX_PAGE, Page, Series};
use shared::tls::Role;

use super::asked::{Asked, NoMore, invalid, marked, owner_of, refusal};
use crate::api::body::JsonBody;
use crate::api::caller::Caller;
use crate::api::refusal::Refusal;
use crate::sequence::book::SeriesName;
use crate::sequence::definition::Definition;
use crate::sequence::{Sequence, SequenceError};

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
    found(&sequence, name, false).await.map(Json)
}

pub(super) async fn one(State(sequence): State<Sequence>, asked: Asked<NoMore>) -> Result<Response, Refusal> {
    let stale = sequence.stale(asked.stale);
    Ok(marked(Json(found(&sequence, asked.base, stale.is_some()).await?), stale))
}

async fn found(sequence: &Sequence, name: SeriesName, stale: bool) -> Result<Series, Refusal> {
    let SeriesName { owner, series } = name.clone();
    let found = sequence.survey(name, stale).await.map_err(refusal)?;
    found.ok_or_else(|| match stale {
        true => Refusal::not_found(format!("{owner} has no series {series}, as far as this vault knows")),
        false => refusal(SequenceError::NoSeries { owner, series }),
    })
}

#[derive(Debug, Deserialize)]
pub(super) struct List {
    owner: Option<String>,
    #[serde(default)]
    after: String,
    limit: Option<usize>,
    #[serde(default)]
    stale: bool,
}

pub(super) async fn list(
    State(sequence): State<Sequence>,
    caller: Caller,
    Query(list): Query<List>,
) -> Result<Response, Refusal> {
    let stale = sequence.stale(list.stale);
    let owner = owner_of(&caller, list.owner)?;
    let limit = list.limit.unwrap_or(100).clamp(1, MAX_PAGE);
    let names =
        sequence.series_names(owner.clone(), list.after, limit, stale.is_some()).await.map_err(refusal)?;
    let next = if names.len() == limit { names.last().cloned() } else { None };
    let mut items = Vec::with_capacity(names.len());
    for series in names {
        let name = SeriesName { owner: owner.clone(), series };
        items.extend(sequence.survey(name, stale.is_some()).await.map_err(refusal)?);
    }
    Ok(marked(Json(Page { items, next }), stale))
}
