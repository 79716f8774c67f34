//! `/v1/worker`: what operators see of jobs and targets, and what they ask of them. Knows paths,
//! bodies and who may; the worker does it.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use serde::Serialize;
use serde_json::Value;
use shared::tls::Role;

use super::caller::Caller;
use super::refusal::Refusal;
use super::status::StatusSource;
use crate::delivery::{self, DeliveryError, Targets};

/// Asks for a run of a job: the run's key, or why there is none.
pub type AskForRun = Arc<dyn Fn(&str) -> Result<String, String> + Send + Sync>;

/// What stands behind the routes.
#[derive(Clone)]
pub struct Behind {
    /// How the jobs stand.
    pub jobs: StatusSource,
    /// Runs one.
    pub run: AskForRun,
    /// Where messages are delivered to.
    pub targets: Targets,
}

/// Answer of `GET /v1/worker`.
#[derive(Debug, Serialize)]
struct Report {
    /// In the configuration's order.
    jobs: Value,
    /// In the configuration's order.
    targets: Vec<delivery::Status>,
}

/// Answer of `POST /v1/worker/jobs/{name}/run`.
#[derive(Debug, Serialize)]
struct Asked {
    /// By which handlers and queues know the run.
    key: String,
}

/// The routes under `/v1/worker`. Every one of them is for role admin alone.
pub fn routes(behind: Behind) -> Router {
    Router::new()
        .route("/v1/worker", get(status))
        .route("/v1/worker/jobs/{name}/run", post(run))
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
    let key = (behind.run)(&name).map_err(Refusal::not_found)?;
    tracing::info!(job = %name, by = %caller.0.name, "a run is asked for");
    Ok((StatusCode::ACCEPTED, Json(Asked { key })))
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
