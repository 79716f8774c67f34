//! `GET /v1/status`: what each room says about itself, joined by name; and the contract's
//! own document. Knows no room: each contributes a source.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use futures_util::future::{BoxFuture, join_all};
use http::header;
use serde_json::{Map, Value, json};
use shared::tls::Role;

use super::caller::Caller;
use super::refusal::Refusal;

/// A room's answer to "how are you".
pub type StatusSource = Arc<dyn Fn() -> BoxFuture<'static, Value> + Send + Sync>;

/// Every source by its room's name; shown in the order of the names.
pub type Sources = Vec<(&'static str, StatusSource)>;

/// A room that does not answer within this time is shown as silent.
const DEADLINE: Duration = Duration::from_secs(2);

/// The contract of this API, OpenAPI 3.1.
pub const OPENAPI: &str = include_str!("../../../conf/vault.openapi.yaml");

pub(super) fn routes(sources: Sources) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .with_state(Arc::new(sources))
        .route("/v1/openapi.yaml", get(openapi))
}

async fn status(caller: Caller, State(sources): State<Arc<Sources>>) -> Result<Json<Value>, Refusal> {
    caller.must_be(&[Role::Admin])?;
    let answers = sources.iter().map(|(name, source)| {
        let answer = source();
        async move {
            let silent = |_| json!({ "error": format!("no answer within {DEADLINE:?}") });
            ((*name).to_owned(), tokio::time::timeout(DEADLINE, answer).await.unwrap_or_else(silent))
        }
    });
    Ok(Json(Value::Object(join_all(answers).await.into_iter().collect::<Map<_, _>>())))
}

/// Any verified caller may read the contract; it holds no secret, but nobody else needs it.
async fn openapi(_caller: Caller) -> ([(header::HeaderName, &'static str); 1], &'static str) {
    ([(header::CONTENT_TYPE, "application/yaml")], OPENAPI)
}
