//! The routes over queues without a socket: who may post, what is answered, what is refused.

use axum::body::Body;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use shared::api::{IDEMPOTENCY_KEY, Problem, VAULT_TICKET};
use shared::tls::Identity;
use tower::ServiceExt;

use super::*;
use crate::posting::AskPeer;
use crate::queue::{Queues, Settings};

const LIFE: u128 = 7;

fn request(path: &str, role: Option<Role>, key: &str, body: &'static str) -> Request<Body> {
    let mut request = Request::post(path).header(IDEMPOTENCY_KEY, key).body(Body::from(body)).unwrap();
    request.headers_mut().insert(VAULT_TICKET, format!("{LIFE:032x}").parse().unwrap());
    if let Some(role) = role {
        let (owner, name, serial) = ("erp".to_owned(), "www1".to_owned(), "4f".to_owned());
        request.extensions_mut().insert(Identity { role, owner, name, serial });
    }
    request
}

async fn answer(router: &Router, request: Request<Body>) -> (StatusCode, serde_json::Value) {
    let response = router.clone().oneshot(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap())
}

async fn code(router: &Router, request: Request<Body>) -> (u16, String) {
    let (_, body) = answer(router, request).await;
    let problem: Problem = serde_json::from_value(body).unwrap();
    (problem.status, problem.code)
}

async fn router_in(folder: &tempfile::TempDir) -> (Router, Queues) {
    router_beside(folder, Err("it is away".to_owned())).await
}

/// The other vault answers so.
async fn router_beside(folder: &tempfile::TempDir, other: Result<Bytes, String>) -> (Router, Queues) {
    let queues = Queues::open(Settings::new(folder.path().join("queue.db"))).unwrap();
    let posting = Posting::open(&folder.path().join("posts.db"), "a", queues.clone()).await.unwrap();
    let ask: AskPeer = Arc::new(move |_| Box::pin(std::future::ready(other.clone())));
    posting.join(LIFE, ask).await.unwrap();
    (routes(Ok(posting), 2048), queues)
}

#[tokio::test]
async fn a_message_is_answered_with_its_id_and_the_same_again_with_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let (router, queues) = router_in(&folder).await;
    let edge = Some(Role::Edge);
    let (status, first) = answer(&router, request("/v1/messages/B%C3%BCcher", edge, "k", "hello")).await;
    assert_eq!((status, &first["destination"]), (StatusCode::CREATED, &"Bücher".into()));
    assert!(first["id"].as_str().unwrap().starts_with("ID:a-post-"), "{first}");
    let (status, again) = answer(&router, request("/v1/messages/B%C3%BCcher", edge, "k", "hello")).await;
    assert_eq!((status, again), (StatusCode::OK, first));
    for other in [("/v1/messages/B%C3%BCcher", "other"), ("/v1/messages/books", "hello")] {
        let refused = code(&router, request(other.0, edge, "k", other.1)).await;
        assert_eq!(refused, (409, "key_reused".to_owned()));
    }
    let listed = queues.list().await.unwrap();
    assert_eq!(listed.iter().map(|queue| queue.state.depth).sum::<u64>(), 1);
}

#[tokio::test]
async fn what_may_not_or_cannot_be_posted_is_refused_and_nothing_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (router, queues) = router_in(&folder).await;
    let long: &'static str = Box::leak("x".repeat(2049).into_boxed_str());
    for (path, role, body, refused) in [
        ("/v1/messages/q", None, "", (401, "no_certificate")),
        ("/v1/messages/q", Some(Role::Vault), "", (403, "role_refused")),
        ("/v1/messages/ActiveMQ.DLQ", Some(Role::Edge), "", (400, "bad_destination")),
        ("/v1/messages/vault.x", Some(Role::Edge), "", (400, "bad_destination")),
        ("/v1/messages/a.%3E", Some(Role::Edge), "", (400, "bad_destination")),
        ("/v1/messages/a%3Fx=1", Some(Role::Edge), "", (400, "bad_destination")),
        ("/v1/messages/a%2Cb", Some(Role::Edge), "", (400, "bad_destination")),
        ("/v1/messages/a%0Ab", Some(Role::Edge), "", (400, "bad_destination")),
        ("/v1/messages/q", Some(Role::Edge), long, (413, "too_large")),
    ] {
        let (status, word) = code(&router, request(path, role, "k", body)).await;
        assert_eq!((status, word.as_str()), refused, "{path}");
    }
    let announced = {
        let mut announced = request("/v1/messages/q", Some(Role::Edge), "k", "");
        announced.headers_mut().insert(header::CONTENT_LENGTH, 2049.into());
        announced
    };
    assert_eq!(code(&router, announced).await.0, 413);
    let without_key = Request::post("/v1/messages/q").body(Body::empty()).unwrap();
    let mut without_key = without_key;
    without_key.extensions_mut().extend(request("/", Some(Role::Edge), "k", "").into_parts().0.extensions);
    assert_eq!(code(&router, without_key).await, (400, "key_missing".to_owned()));
    let mut elsewhere = request("/v1/messages/q", Some(Role::Edge), "k", "");
    elsewhere.headers_mut().insert(VAULT_TICKET, format!("{:032x}", 8).parse().unwrap());
    assert_eq!(code(&router, elsewhere).await, (503, "in_doubt".to_owned()));
    assert!(queues.list().await.unwrap().iter().all(|queue| queue.state.depth == 0));
}

#[tokio::test]
async fn a_key_that_neither_vault_remembers_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let other = Bytes::from_static(br#"{"yours":{"remembers":false,"left":null}}"#);
    let (router, queues) = router_beside(&folder, Ok(other)).await;
    let mut elsewhere = request("/v1/messages/q", Some(Role::Edge), "k", "");
    elsewhere.headers_mut().insert(VAULT_TICKET, format!("{:032x}", 8).parse().unwrap());
    assert_eq!(code(&router, elsewhere).await, (410, "key_lost".to_owned()));
    assert!(queues.list().await.unwrap().iter().all(|queue| queue.state.depth == 0));
    let here = request("/v1/messages/q", Some(Role::Edge), "l", "");
    assert_eq!(answer(&router, here).await.0, StatusCode::CREATED);
}

#[tokio::test]
async fn a_vault_without_queues_says_what_to_write_into_its_configuration() {
    let router = |why| routes(Err(why), 2048);
    let post = || request("/v1/messages/q", Some(Role::Edge), "k", "");
    let (status, body) = answer(&router(NoPosts::NoQueues), post()).await;
    assert_eq!((status.as_u16(), &body["code"]), (501, &"no_broker".into()));
    assert!(body["detail"].as_str().unwrap().contains("[broker]"), "{body}");
    assert_eq!(code(&router(NoPosts::Trouble), post()).await, (503, "not_written".to_owned()));
}

#[tokio::test]
async fn large_bodies_at_once_are_bounded_and_hold_no_small_one_up() {
    let desk = Desk::new(Err(NoPosts::NoQueues), 1 << 20);
    let announced = |length: usize| HeaderMap::from_iter([(header::CONTENT_LENGTH, length.into())]);
    let mut held = Vec::new();
    for _ in 0..LARGEST_AT_ONCE {
        held.push(desk.room_for(&HeaderMap::new()).await.unwrap());
    }
    assert_eq!(desk.room_for(&announced(SMALL + 1)).await.unwrap_err().problem.code, "busy");
    assert!(desk.room_for(&announced(SMALL)).await.is_ok());
    assert_eq!(desk.room_for(&announced((1 << 20) + 1)).await.unwrap_err().problem.code, "too_large");
    held.pop();
    assert!(desk.room_for(&announced(SMALL + 1)).await.is_ok());
}

#[tokio::test]
async fn a_body_that_is_not_what_its_digest_says_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (router, queues) = router_in(&folder).await;
    let mut post = request("/v1/messages/q", Some(Role::Edge), "k", "hello");
    let of_nothing = "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:";
    post.headers_mut().insert(shared::api::CONTENT_DIGEST, of_nothing.parse().unwrap());
    assert_eq!(code(&router, post).await, (422, "digest_mismatch".to_owned()));
    assert!(queues.list().await.unwrap().iter().all(|queue| queue.state.depth == 0));
}

#[tokio::test]
async fn a_body_that_trickles_gives_its_room_back() {
    let desk = Desk::new(Err(NoPosts::NoQueues), 1 << 20);
    let pace =
        Pace { grace: Duration::from_millis(100), per_second: 1000, longest: Duration::from_secs(3600) };
    let trickle = futures_util::stream::unfold((), |()| async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        Some((Ok::<_, std::convert::Infallible>("x"), ()))
    });
    let late = desk.whole(Body::from_stream(trickle), pace).await.unwrap_err().into_response();
    assert_eq!(late.status(), StatusCode::REQUEST_TIMEOUT);
    let fast = futures_util::stream::iter(["so", "on"].map(Ok::<_, std::convert::Infallible>));
    assert_eq!(desk.whole(Body::from_stream(fast), PACE).await.ok().as_deref(), Some(&b"soon"[..]));
    let within = |come| PACE.within(come).as_secs();
    assert_eq!((within(0), within(640 << 10), within(64 << 20)), (10, 20, 60));
}
