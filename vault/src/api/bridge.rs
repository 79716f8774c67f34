//! `/v1/bridges`: what operators see of what is carried between brokers, and what they do with dead
//! letters and with what waits for a broker that is away. Knows paths, bodies and who may; the bridge does it.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use futures_util::future::BoxFuture;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shared::tls::Role;

use super::caller::Caller;
use super::refusal::Refusal;
use crate::bridge::direction::Wish;
use crate::bridge::journal::Letters;
use crate::bridge::{Bridge, BridgeError, Overview};

/// Dead letters in one answer.
const PAGE: usize = 100;
/// A vault that stops is back by then, if it is to be.
const SOON: Duration = Duration::from_secs(10);

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

/// Answer of what changes messages of a bridge.
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
struct Through {
    through: Option<u64>,
}

/// Body of `POST …/dead`: a message that waits, and why it is taken out of the way.
#[derive(Debug, Deserialize)]
struct Burial {
    sequence: u64,
    why: String,
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
        .route("/v1/bridges/{name}/dead", post(bury))
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
) -> Result<Json<Letters>, Refusal> {
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
    Query(Through { through }): Query<Through>,
) -> Result<Json<Done>, Refusal> {
    wish(behind, caller, &name, Wish::Purge(through)).await
}

async fn bury(
    State(behind): State<Behind>,
    caller: Caller,
    Path(name): Path<String>,
    Json(Burial { sequence, why }): Json<Burial>,
) -> Result<Json<Done>, Refusal> {
    wish(behind, caller, &name, Wish::Bury { sequence, why }).await
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
    let count = behind.bridge.wish(name, wish.clone()).await.map_err(|error| refuse(&error))?;
    tracing::info!(bridge = %name, by = %caller.0.name, ?wish, count, "an operator's wish");
    Ok(Json(Done { count }))
}

/// Whoever asks is an operator, and told the reason.
fn refuse(error: &BridgeError) -> Refusal {
    match error {
        BridgeError::Unknown(_) | BridgeError::NoMessage { .. } => Refusal::not_found(error.to_string()),
        BridgeError::NothingHeld(_) | BridgeError::NoneRefused(_) => {
            Refusal::new(StatusCode::CONFLICT, "not_in_doubt", error.to_string())
        }
        BridgeError::Stopping(_) => Refusal::later("stopping", error.to_string(), SOON),
        BridgeError::Journal(_) => {
            tracing::error!("{error}");
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "journal_failed", error.to_string())
        }
        _ => {
            tracing::error!("{error}");
            Refusal::internal()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::journal::JournalError;

    #[test]
    fn an_operator_is_told_why_a_journal_cannot_be_changed() {
        let refused = refuse(&BridgeError::Journal(JournalError::Ended)).problem;
        assert_eq!((refused.status, refused.detail), (500, JournalError::Ended.to_string()));
        for none in
            [BridgeError::NothingHeld("there".to_owned()), BridgeError::NoneRefused("there".to_owned())]
        {
            assert_eq!(
                (refuse(&none).problem.status, refuse(&none).problem.code.as_str()),
                (409, "not_in_doubt")
            );
        }
        let stopping = refuse(&BridgeError::Stopping("there".to_owned()));
        assert_eq!((stopping.problem.status, stopping.retry_after), (503, Some(SOON)));
    }
}
