//! `/v1/bridges`: what operators see of what is carried between brokers, and what they do with dead
//! letters and with what waits for a broker that is away. Knows paths, bodies and who may; the bridge does it.

use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shared::tls::Role;

use super::caller::Caller;
use super::refusal::Refusal;
use crate::bridge::direction::Wish;
use crate::bridge::journal::Dead;
use crate::bridge::{Bridge, BridgeError, Overview};

/// Dead letters in one answer.
const PAGE: usize = 100;

/// The other vault's name, and its bridges as it sees them.
pub type AskPeer = Arc<dyn Fn() -> BoxFuture<'static, (String, Value)> + Send + Sync>;

#[derive(Clone)]
struct Behind {
    bridge: Bridge,
    ask_peer: AskPeer,
}

/// Answer of `GET /v1/bridges`.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    own: Overview,
    /// What an operator should know of.
    troubles: Vec<String>,
    peer: String,
    /// The same of the other vault; `null` where it does not answer.
    its: Value,
}

/// Answer of `POST …/dead/retry`, `DELETE …/dead`, `POST …/settle` and `POST …/accept`.
#[derive(Debug, Serialize)]
struct Done {
    count: u64,
}

#[derive(Debug, Deserialize)]
struct After {
    #[serde(default)]
    after: u64,
}

#[derive(Debug, Deserialize)]
struct Settled {
    taken: bool,
}

/// The routes under `/v1/bridges`. Every one of them is for role admin alone.
pub fn routes(bridge: Bridge, ask_peer: AskPeer) -> Router {
    Router::new()
        .route("/v1/bridges", get(status))
        .route("/v1/bridges/{name}/dead", get(dead))
        .route("/v1/bridges/{name}/dead", delete(purge))
        .route("/v1/bridges/{name}/dead/retry", post(retry))
        .route("/v1/bridges/{name}/settle", post(settle))
        .route("/v1/bridges/{name}/accept", post(accept))
        .with_state(Behind { bridge, ask_peer })
}

async fn status(State(behind): State<Behind>, caller: Caller) -> Result<Json<Report>, Refusal> {
    caller.must_be(&[Role::Admin])?;
    let (peer, its) = (behind.ask_peer)().await;
    let own = behind.bridge.overview();
    Ok(Json(Report { troubles: own.troubles(), own, peer, its }))
}

async fn dead(
    State(behind): State<Behind>,
    caller: Caller,
    Path(name): Path<String>,
    Query(After { after }): Query<After>,
) -> Result<Json<Vec<Dead>>, Refusal> {
    caller.must_be(&[Role::Admin])?;
    behind.bridge.dead_letters(&name, after, PAGE).await.map(Json).map_err(|error| refuse(&error))
}

async fn retry(
    State(behind): State<Behind>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<Done>, Refusal> {
    wish(behind, caller, &name, Wish::Revive).await
}

async fn purge(
    State(behind): State<Behind>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<Done>, Refusal> {
    wish(behind, caller, &name, Wish::Purge).await
}

async fn settle(
    State(behind): State<Behind>,
    caller: Caller,
    Path(name): Path<String>,
    Query(Settled { taken }): Query<Settled>,
) -> Result<Json<Done>, Refusal> {
    wish(behind, caller, &name, Wish::Settle { taken }).await
}

async fn accept(
    State(behind): State<Behind>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<Done>, Refusal> {
    wish(behind, caller, &name, Wish::Accept).await
}

async fn wish(behind: Behind, caller: Caller, name: &str, wish: Wish) -> Result<Json<Done>, Refusal> {
    caller.must_be(&[Role::Admin])?;
    let count = behind.bridge.wish(name, wish).await.map_err(|error| refuse(&error))?;
    tracing::info!(bridge = %name, by = %caller.0.name, ?wish, count, "an operator's wish");
    Ok(Json(Done { count }))
}

fn refuse(error: &BridgeError) -> Refusal {
    match error {
        BridgeError::Unknown(_) => Refusal::not_found(error.to_string()),
        _ => {
            tracing::error!("{error}");
            Refusal::internal()
        }
    }
}
