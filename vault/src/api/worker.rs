//! `/v1/worker`: what operators see of jobs and targets, and what they ask of them. Knows paths,
//! bodies and who may; the worker does it.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::future::BoxFuture;
use http::StatusCode;
use serde::Serialize;
use serde_json::Value;
use shared::tls::Role;

use super::caller::Caller;
use super::refusal::Refusal;
use super::status::StatusSource;
use crate::delivery::{self, DeliveryError, Targets};

/// Then the ledger may take it.
const AGAIN: Duration = Duration::from_secs(2);

/// What an operator asks of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// A run, now.
    Run,
    /// No more runs, for this reason.
    Pause(String),
    /// Runs again.
    Resume,
}

/// Why a job does not do it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotDone {
    /// There is no such job.
    Unknown(String),
    /// It does it already.
    UnderWay(String),
    /// The two vaults are not together.
    Apart(String),
    /// The ledger does not take it now.
    Later(String),
    /// The operator finds the cause in the log.
    Failed(String),
}

/// Hands it to the job: the run's key, where there is one.
pub type AskJob =
    Arc<dyn Fn(String, Wanted) -> BoxFuture<'static, Result<Option<String>, NotDone>> + Send + Sync>;

/// What stands behind the routes.
#[derive(Clone)]
pub struct Behind {
    /// How the jobs stand.
    pub jobs: StatusSource,
    /// What is asked of one.
    pub ask: AskJob,
    /// Where messages are delivered to.
    pub targets: Targets,
}

/// Answer of `GET /v1/worker`.
#[derive(Debug, Serialize)]
struct Report {
    /// In the configuration's order, and the vault's own behind them.
    jobs: Value,
    /// In the configuration's order.
    targets: Vec<delivery::Status>,
}

/// Answer of `POST /v1/worker/jobs/{name}/run`.
#[derive(Debug, Serialize)]
struct Asked {
    /// By which handlers and queues know the run; the vault's own jobs have none.
    key: Option<String>,
}

/// The routes under `/v1/worker`. Every one of them is for role admin alone.
pub fn routes(behind: Behind) -> Router {
    Router::new()
        .route("/v1/worker", get(status))
        .route("/v1/worker/jobs/{name}/run", post(run))
        .route("/v1/worker/jobs/{name}/pause", post(pause_job))
        .route("/v1/worker/jobs/{name}/resume", post(resume_job))
        .route("/v1/worker/targets/{name}/pause", post(pause))
        .route("/v1/worker/targets/{name}/resume", post(resume))
        .with_state(behind)
}

async fn status(State(behind): State<Behind>, caller: Caller) -> Result<Json<Report>, Refusal> {
    caller.must_be(&[Role::Admin])?;
    let jobs = (behind.jobs)().await;
    Ok(Json(Report { jobs, targets: behind.targets.status() }))
}

async fn run(
    State(behind): State<Behind>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<(StatusCode, Json<Asked>), Refusal> {
    caller.must_be(&[Role::Admin])?;
    let key = ask(&behind, &name, Wanted::Run).await?;
    tracing::info!(job = %name, by = %caller.0.name, "a run is asked for");
    Ok((StatusCode::ACCEPTED, Json(Asked { key })))
}

async fn pause_job(
    State(behind): State<Behind>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<StatusCode, Refusal> {
    caller.must_be(&[Role::Admin])?;
    ask(&behind, &name, Wanted::Pause(format!("paused by {}", caller.0.name))).await?;
    tracing::warn!(job = %name, by = %caller.0.name, "a job is paused");
    Ok(StatusCode::NO_CONTENT)
}

async fn resume_job(
    State(behind): State<Behind>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<StatusCode, Refusal> {
    caller.must_be(&[Role::Admin])?;
    ask(&behind, &name, Wanted::Resume).await?;
    tracing::info!(job = %name, by = %caller.0.name, "a job goes on");
    Ok(StatusCode::NO_CONTENT)
}

async fn ask(behind: &Behind, name: &str, wanted: Wanted) -> Result<Option<String>, Refusal> {
    (behind.ask)(name.to_owned(), wanted).await.map_err(|error| match error {
        NotDone::Unknown(told) => Refusal::not_found(told),
        NotDone::UnderWay(told) => Refusal::new(StatusCode::CONFLICT, "under_way", told),
        NotDone::Apart(told) => Refusal::later("peer_away", told, AGAIN),
        NotDone::Later(told) => Refusal::later("ledger_away", told, AGAIN),
        NotDone::Failed(told) => {
            tracing::error!("{told}");
            Refusal::internal()
        }
    })
}

async fn pause(
    State(behind): State<Behind>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<StatusCode, Refusal> {
    caller.must_be(&[Role::Admin])?;
    let why = format!("paused by {}", caller.0.name);
    behind.targets.pause(&name, &why).map_err(|error| refuse(&error))?;
    tracing::warn!(to = %name, by = %caller.0.name, "deliveries are paused");
    Ok(StatusCode::NO_CONTENT)
}

async fn resume(
    State(behind): State<Behind>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<StatusCode, Refusal> {
    caller.must_be(&[Role::Admin])?;
    behind.targets.resume(&name).map_err(|error| refuse(&error))?;
    tracing::info!(to = %name, by = %caller.0.name, "deliveries go on");
    Ok(StatusCode::NO_CONTENT)
}

fn refuse(error: &DeliveryError) -> Refusal {
    match error {
        DeliveryError::Unknown { .. } => Refusal::not_found(error.to_string()),
        _ => {
            tracing::error!("{error}");
            Refusal::internal()
        }
    }
}
