//! What operators do to files, file servers and keys as a whole: compare, scrub, adopt, rewrap
//! records, take a deletion back, rebuild the catalog. Knows paths, bodies and who may; `storage` does it.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use shared::tls::Role;

use super::body::JsonBody;
use super::caller::Caller;
use super::files::{parse_id, refuse};
use super::refusal::Refusal;
use crate::storage::{
    AdoptedServer, Adoption, Keys, PeerAdoption, Progress, Round, Storage, Synced, Undeleted,
};

/// Body of `POST /v1/keys/rewrap`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rewrap {
    /// Most replicas a second, at least 1.
    pub per_second: u32,
}

/// Body of `POST /v1/catalog/rebuild`.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rebuild {
    /// The text of a key file whose keys are tried beside this vault's own; never kept.
    #[serde(default)]
    pub identity: Option<String>,
    /// Add to a catalog that is not empty.
    #[serde(default)]
    pub merge: bool,
}

/// Tells the other vault of an adoption here.
pub type TellOfAdoption = Arc<dyn Fn(Adoption) -> BoxFuture<'static, PeerAdoption> + Send + Sync>;

/// The operators' routes. Every one of them is for role admin alone.
pub fn routes(storage: Storage, tell: TellOfAdoption) -> Router {
    Router::new()
        .route("/v1/keys", get(keys))
        .route("/v1/keys/rewrap", post(rewrap).get(rewrap_progress))
        .route("/v1/files/{id}/undelete", post(undelete))
        .route("/v1/catalog/rebuild", post(rebuild).get(rebuild_progress))
        .route("/v1/file-servers/sync", post(sync).get(sync_progress))
        .route("/v1/file-servers/scrub", post(scrub).get(scrub_round))
        .with_state(storage.clone())
        .route("/v1/file-servers/{name}/adopt", post(adopt))
        .with_state((storage, tell))
}

async fn keys(State(storage): State<Storage>, caller: Caller) -> Result<Json<Keys>, Refusal> {
    caller.must_be(&[Role::Admin])?;
    // What the operator has just done is told at once.
    storage.compare_keys().await.map_err(|error| refuse(&error))?;
    storage.keys().await.map(Json).map_err(|error| refuse(&error))
}

async fn rewrap(
    State(storage): State<Storage>,
    caller: Caller,
    JsonBody(asked): JsonBody<Rewrap>,
) -> Result<Json<Progress>, Refusal> {
    caller.must_be(&[Role::Admin])?;
    let started = storage.rewrap(asked.per_second).await.map_err(|error| refuse(&error))?;
    tracing::info!(by = %caller.0.name, per_second = asked.per_second, "rewrapping started");
    Ok(Json(started))
}

async fn rewrap_progress(State(storage): State<Storage>, caller: Caller) -> Result<Json<Progress>, Refusal> {
    caller.must_be(&[Role::Admin])?;
    Ok(Json(storage.rewrap_progress()))
}

async fn undelete(
    State(storage): State<Storage>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Undeleted>, Refusal> {
    caller.must_be(&[Role::Admin])?;
    let id = parse_id(&id, &caller)?;
    let undeleted = storage.undelete(&id).await.map_err(|error| refuse(&error))?;
    tracing::info!(object = %id, by = %caller.0.name, "undeleted");
    Ok(Json(undeleted))
}

async fn rebuild(
    State(storage): State<Storage>,
    caller: Caller,
    JsonBody(asked): JsonBody<Rebuild>,
) -> Result<Json<Progress>, Refusal> {
    caller.must_be(&[Role::Admin])?;
    let started = storage.rebuild(asked.identity.as_deref(), asked.merge).await;
    let started = started.map_err(|error| refuse(&error))?;
    tracing::warn!(by = %caller.0.name, merge = asked.merge, "rebuilding the catalog from the file servers");
    Ok(Json(started))
}

async fn rebuild_progress(State(storage): State<Storage>, caller: Caller) -> Result<Json<Progress>, Refusal> {
    caller.must_be(&[Role::Admin])?;
    Ok(Json(storage.rebuild_progress()))
}

/// Answers when the whole comparison is done.
async fn sync(State(storage): State<Storage>, caller: Caller) -> Result<Json<Synced>, Refusal> {
    caller.must_be(&[Role::Admin])?;
    tracing::info!(by = %caller.0.name, "comparing the catalog with the file servers");
    storage.sync().await.map(Json).map_err(|error| refuse(&error))
}

async fn sync_progress(State(storage): State<Storage>, caller: Caller) -> Result<Json<Progress>, Refusal> {
    caller.must_be(&[Role::Admin])?;
    Ok(Json(storage.sync_progress()))
}

/// Answers when the round has begun; status tells how far it is.
async fn scrub(State(storage): State<Storage>, caller: Caller) -> Result<StatusCode, Refusal> {
    caller.must_be(&[Role::Admin])?;
    storage.scrub().await.map_err(|error| refuse(&error))?;
    tracing::info!(by = %caller.0.name, "a scrub begins");
    Ok(StatusCode::NO_CONTENT)
}

async fn scrub_round(State(storage): State<Storage>, caller: Caller) -> Result<Json<Round>, Refusal> {
    caller.must_be(&[Role::Admin])?;
    storage.scrub_round().await.map(Json).map_err(|error| refuse(&error))
}

/// The same place is new to both vaults. The other one makes sure of that itself, before it believes it.
async fn adopt(
    State((storage, tell)): State<(Storage, TellOfAdoption)>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<AdoptedServer>, Refusal> {
    caller.must_be(&[Role::Admin])?;
    let mut adopted = storage.adopt_server(&name).await.map_err(|error| refuse(&error))?;
    tracing::warn!(by = %caller.0.name, server = %adopted.server, "a file server was adopted");
    adopted.peer = tell(Adoption { server: name, place: adopted.place.clone() }).await;
    Ok(Json(adopted))
}
