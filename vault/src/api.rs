//! Corridor 1: HTTP. Knows who calls, what they may, and how an answer or a refusal is
//! worded; leaves numbers, files and certificates to their rooms.
//!
//! The walk: `server` accepts and finds out who calls → `guard` refuses the revoked, words
//! every refusal as a problem and logs it → the rooms' own routes.

pub mod admin;
pub mod body;
pub mod bridge;
pub mod caller;
mod connection;
pub mod database;
mod enrol;
pub mod files;
mod guard;
pub mod key;
pub mod leases;
pub mod life;
mod lingering;
mod metrics;
pub mod names;
pub mod numbers;
mod pki;
pub mod records;
pub mod refusal;
pub mod server;
pub mod status;
mod stream;
pub mod upkeep;
pub mod worker;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;

pub use body::MAX_JSON;
pub use metrics::Metrics;

/// What the router is joined from.
pub struct Parts {
    /// The routes of the rooms that have some: `Router::new().merge(…).merge(…)`.
    pub rooms: Router,
    /// Enrolment, revocation, and who is refused.
    pub pki: crate::pki::Pki,
    /// Which life answers.
    pub life: life::Life,
    /// What `GET /v1/status` shows.
    pub status: status::Sources,
    /// Counts what passes.
    pub metrics: Metrics,
}

/// Joins every route. Whatever is refused comes out as an RFC 9457 problem and one line in
/// the log; a panic in a handler costs its own request only.
pub fn router(parts: Parts) -> Router {
    let guard = guard::Guard { pki: parts.pki.clone(), metrics: parts.metrics };
    Router::new()
        .merge(parts.rooms)
        .merge(enrol::routes(parts.pki.clone()))
        .merge(pki::routes(parts.pki))
        .merge(status::routes(parts.status))
        .fallback(guard::no_such_path)
        .layer(DefaultBodyLimit::max(MAX_JSON))
        .layer(from_fn_with_state(guard, guard::watch))
        .layer(from_fn_with_state(parts.life, life::sign))
}

/// As much of a caller's text is logged.
const MAX_LINE: usize = 256;

/// Text that a caller controls, fit for a log line: printable ASCII, the rest escaped, and
/// not longer than a line should be.
fn for_log(text: &str) -> String {
    let mut line = String::new();
    for character in text.chars().take(MAX_LINE) {
        match character {
            ' '..='~' if character != '\\' => line.push(character),
            other => line.extend(other.escape_default()),
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::body::Body;
    use axum::routing::{get, post};
    use http::{Request, Response, StatusCode, header};
    use http_body_util::BodyExt;
    use shared::api::{Confirm, PROBLEM_JSON, Problem};
    use shared::tls::{Identity, Role};
    use tower::ServiceExt;

    use super::*;
    use body::JsonBody;
    use key::IdempotencyKey;

    fn router_in(folder: &tempfile::TempDir) -> Router {
        let settings = crate::pki::Settings {
            database: folder.path().join("pki.db"),
            authority_key: folder.path().join("authority.key"),
            token_lifetime: Duration::from_secs(60),
            certificate_lifetime: Duration::from_secs(60),
        };
        let pki = crate::pki::Pki::open(&settings, &folder.path().join("authority.crt")).unwrap();
        async fn panics() {
            panic!("on purpose");
        }
        let rooms = Router::new()
            .route("/panics", get(panics))
            .route("/confirm", post(|JsonBody(_): JsonBody<Confirm>| async {}))
            .route("/axum", post(|_: axum::Json<Confirm>| async {}))
            .route("/write", post(|IdempotencyKey(key): IdempotencyKey| async { key }));
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        router(Parts { rooms, pki, life: life::Life::of(|| 7), status: Vec::new(), metrics })
    }

    fn call(method: &str, path: &str, role: Option<Role>, body: impl Into<Body>) -> Request<Body> {
        let mut request = Request::builder().method(method).uri(path).body(body.into()).unwrap();
        request.headers_mut().insert(header::CONTENT_TYPE, "application/json".parse().unwrap());
        if let Some(role) = role {
            let (owner, name, serial) = ("erp".to_owned(), "www1".to_owned(), "4f".to_owned());
            request.extensions_mut().insert(Identity { role, owner, name, serial });
        }
        request
    }

    async fn problem(response: Response<Body>) -> Problem {
        assert_eq!(response.headers()[header::CONTENT_TYPE], PROBLEM_JSON);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        serde_json::from_slice(&body).unwrap()
    }

    #[test]
    fn a_caller_cannot_forge_a_log_line() {
        assert_eq!(for_log("it's \"fine\""), "it's \"fine\"");
        assert_eq!(for_log("a\nb\u{1b}[31m\\ä"), "a\\nb\\u{1b}[31m\\\\\\u{e4}");
        assert_eq!(for_log(&"x".repeat(10_000)).len(), MAX_LINE);
    }

    #[tokio::test]
    async fn every_refusal_is_a_problem_whoever_words_it() {
        let folder = tempfile::tempdir().unwrap();
        let router = router_in(&folder);
        let (edge, admin) = (Some(Role::Edge), Some(Role::Admin));
        let long = format!("{{\"document_hash\":\"{}\"}}", "x".repeat(MAX_JSON));
        for (method, path, role, body, status, code) in [
            ("GET", "/nowhere", edge, "", 404, "no_such_path"),
            ("GET", "/v1/../etc", edge, "", 404, "no_such_path"),
            ("DELETE", "/v1/enrol", None, "", 405, "method_refused"),
            ("POST", "/v1/enrol", None, "{", 400, "bad_request"),
            ("POST", "/v1/enrol", None, "{\"secret\":1}", 400, "bad_request"),
            ("POST", "/v1/enrol", None, "{\"secret\":\"x\",\"request\":\"y\"}", 403, "token_refused"),
            ("POST", "/confirm", edge, "{\"document_hash\":\"x\",\"more\":1}", 400, "bad_request"),
            ("POST", "/confirm", edge, &long, 413, "too_large"),
            ("POST", "/axum", edge, "{", 400, "bad_request"),
            ("POST", "/axum", edge, "{}", 400, "bad_request"),
            ("POST", "/axum", edge, &long, 413, "too_large"),
            ("POST", "/write", edge, "", 400, "key_missing"),
            ("GET", "/panics", edge, "", 500, "internal"),
            ("GET", "/v1/status", None, "", 401, "no_certificate"),
            ("GET", "/v1/status", edge, "", 403, "role_refused"),
            ("GET", "/v1/pki/certificates", edge, "", 403, "role_refused"),
            (
                "POST",
                "/v1/pki/tokens",
                edge,
                "{\"role\":\"admin\",\"owner\":\"a\",\"name\":\"b\"}",
                403,
                "role_refused",
            ),
            (
                "POST",
                "/v1/pki/tokens",
                admin,
                "{\"role\":\"root\",\"owner\":\"a\",\"name\":\"b\"}",
                400,
                "bad_request",
            ),
            (
                "POST",
                "/v1/pki/tokens",
                admin,
                "{\"role\":\"edge\",\"owner\":\"../\",\"name\":\"b\"}",
                400,
                "name_refused",
            ),
            ("POST", "/v1/pki/certificates/00/revoke", Some(Role::Vault), "", 403, "role_refused"),
            ("POST", "/v1/pki/certificates/00/revoke", admin, "", 404, "not_found"),
            ("GET", "/v1/pki/certificates?limit=x", admin, "", 400, "bad_request"),
            ("GET", "/v1/pki/certificates?other=1", admin, "", 400, "bad_request"),
        ] {
            let request = call(method, path, role, body.to_owned());
            let response = router.clone().oneshot(request).await.unwrap();
            assert_eq!(response.headers()[shared::api::VAULT_LIFE], format!("{:032x}", 7));
            let allow = response.headers().contains_key(header::ALLOW);
            let problem = problem(response).await;
            assert_eq!((problem.status, problem.code.as_str()), (status, code), "{method} {path} {body:.60}");
            assert_eq!(allow, status == 405, "{method} {path}");
            assert!(!problem.detail.is_empty());
        }
    }

    #[tokio::test]
    async fn a_revoked_certificate_is_refused_on_every_path() {
        let folder = tempfile::tempdir().unwrap();
        let router = router_in(&folder);
        let certificate = shared::api::IssuedCertificate {
            serial: "4f".to_owned(),
            role: Role::Admin,
            owner: "erp".to_owned(),
            name: "www1".to_owned(),
            not_after: String::new(),
            revoked: true,
        };
        let settings = crate::pki::Settings {
            database: folder.path().join("other.db"),
            authority_key: folder.path().join("authority.key"),
            token_lifetime: Duration::from_secs(60),
            certificate_lifetime: Duration::from_secs(60),
        };
        let pki = crate::pki::Pki::open(&settings, &folder.path().join("authority.crt")).unwrap();
        pki.merge(vec![crate::pki::Change { seq: 1, certificate }], None).await.unwrap();
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let guarded = super::router(Parts {
            rooms: Router::new(),
            pki,
            life: life::Life::of(|| 7),
            status: Vec::new(),
            metrics,
        });
        let request = || call("GET", "/v1/openapi.yaml", Some(Role::Admin), "");
        assert_eq!(router.oneshot(request()).await.unwrap().status(), StatusCode::OK);
        let refused = guarded.oneshot(request()).await.unwrap();
        assert_eq!(problem(refused).await.code, "certificate_revoked");
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
        #[test]
        fn no_body_and_no_path_make_the_api_panic(body: Vec<u8>, path in "/v1/[a-z/%.{}0-9?=&]{0,40}", post: bool) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let folder = tempfile::tempdir().unwrap();
                let router = router_in(&folder);
                for path in [path.as_str(), "/v1/enrol", "/v1/pki/tokens", "/confirm", "/axum"] {
                    let Ok(uri) = path.parse::<http::Uri>() else { continue };
                    let method = if post { "POST" } else { "GET" };
                    let mut request = call(method, "/", Some(Role::Admin), body.clone());
                    *request.uri_mut() = uri;
                    let response = router.clone().oneshot(request).await.unwrap();
                    assert!(response.status().as_u16() < 500, "{method} {path}: {}", response.status());
                    if response.status().is_client_error() {
                        problem(response).await;
                    }
                }
            });
        }
    }
}
