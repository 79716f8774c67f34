//! The gateway as handlers use it: plain HTTP on its socket, two vaults behind.

use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use bytes::Bytes;
use edge::gateway::{Address, Gateway, GatewayError, Limits, Settings, Vaults, tickets};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use prometheus::Registry;
use shared::api::{File, Number, Problem};
use shared::config::ByteSize;
use shared::shutdown::Shutdown;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;

use crate::pair::{Behaviour, Pair, hash, noise};

pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A gateway before a pair of fakes.
pub(crate) struct Door {
    pub(crate) pair: Pair,
    pub(crate) address: Address,
    pub(crate) registry: Registry,
    pub(crate) vaults: Vaults,
    pub(crate) shutdown: Shutdown,
    pub(crate) running: JoinHandle<()>,
}

fn settings(pair: &Pair) -> Settings {
    Settings {
        listen: Address::Unix(pair.folder().join("gateway.sock")),
        tokens_file: None,
        socket_group: None,
        vaults: pair.addresses(),
        tls: pair.caller(),
        max_kept_body: ByteSize::kib(64),
        max_file: ByteSize::mib(8),
        tickets: tickets::Settings {
            store: pair.folder().join("tickets.db"),
            memory: Some(pair.folder().join("control.tickets")),
            days: 30,
            most: 100_000,
        },
    }
}

/// Deadlines that a slow machine does not meet by chance.
fn limits() -> Limits {
    let minute = Duration::from_secs(60);
    let mut limits = Limits { probe: minute * 10, ticket: minute, ..Limits::default() };
    limits.client.connect = minute;
    limits.client.attempt = minute;
    limits
}

impl Door {
    pub(crate) async fn open() -> Self {
        Self::before(Pair::start().await).await
    }

    /// A gateway before that pair, whose store lies in the pair's folder.
    pub(crate) async fn before(pair: Pair) -> Self {
        let settings = settings(&pair);
        Self::open_with(pair, settings, limits()).await
    }

    pub(crate) async fn open_with(pair: Pair, settings: Settings, limits: Limits) -> Self {
        let registry = Registry::new();
        let gateway = Gateway::open(settings, limits, &registry).await.unwrap();
        let (vaults, address) = (gateway.vaults(), gateway.address().clone());
        let shutdown = Shutdown::new();
        let running = tokio::spawn(gateway.run(shutdown.clone()));
        Self { pair, address, registry, vaults, shutdown, running }
    }

    pub(crate) async fn call(&self, request: Request<Body>) -> Response<Incoming> {
        match &self.address {
            Address::Unix(path) => exchange(UnixStream::connect(path).await.unwrap(), request).await,
            Address::Tcp(address) => exchange(TcpStream::connect(address).await.unwrap(), request).await,
        }
    }

    pub(crate) async fn refused(&self, request: Request<Body>) -> Problem {
        let response = self.call(request).await;
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
        let status = response.status().as_u16();
        let problem: Problem = json(response).await;
        assert_eq!(problem.status, status);
        problem
    }

    pub(crate) fn metric(&self, name: &str, label: &str) -> f64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name).unwrap();
        let metric = family
            .get_metric()
            .iter()
            .find(|metric| label.is_empty() || metric.get_label().iter().any(|pair| pair.value() == label));
        metric.map_or(0.0, |metric| metric.get_counter().get_value() + metric.get_gauge().get_value())
    }
}

async fn exchange<S>(stream: S, request: Request<Body>) -> Response<Incoming>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender.send_request(request).await.unwrap()
}

async fn bytes(response: Response<Incoming>) -> Bytes {
    response.into_body().collect().await.unwrap().to_bytes()
}

pub(crate) async fn json<T: serde::de::DeserializeOwned>(response: Response<Incoming>) -> T {
    serde_json::from_slice(&bytes(response).await).unwrap()
}

pub(crate) fn request(method: Method, path: &str, content: impl Into<Bytes>) -> Request<Body> {
    let builder = Request::builder().method(method).uri(path).header(header::HOST, "gateway");
    builder.body(Full::new(content.into()).boxed_unsync()).unwrap()
}

fn upload(key: &str, content: &Bytes) -> Request<Body> {
    let mut request = request(Method::POST, "/v1/files", content.clone());
    request.headers_mut().insert("idempotency-key", key.parse().unwrap());
    request
}

/// The same without a length: chunked.
fn chunked(key: &str, content: &Bytes) -> Request<Body> {
    let frames: Vec<_> = content
        .chunks(10_000)
        .map(|piece| Ok::<_, Infallible>(Frame::data(Bytes::copy_from_slice(piece))))
        .collect();
    upload(key, &Bytes::new()).map(|_| StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync())
}

#[tokio::test]
async fn a_handler_reserves_without_certificate_or_key_and_learns_the_key_used() {
    let door = Door::open().await;
    let response = door.call(request(Method::POST, "/v1/series/INV/numbers", "")).await;
    assert_eq!(response.status(), StatusCode::CREATED);
    let key = response.headers()["idempotency-key"].to_str().unwrap().to_owned();
    assert_eq!(key.len(), 32);
    let number: Number = json(response).await;
    assert_eq!((number.number, number.key), (1, key));
    assert_eq!(door.metric("edge_gateway_requests_total", "2xx"), 1.0);
}

#[tokio::test]
async fn nothing_but_series_and_files_is_served() {
    let door = Door::open().await;
    for path in ["/", "/v1/pki/tokens", "/v1/status", "/v1/enrol"] {
        let problem = door.refused(request(Method::POST, path, "{}")).await;
        assert_eq!((problem.status, problem.code.as_str()), (404, "not_found"), "{path}");
    }
    assert_eq!(door.refused(request(Method::GET, "/v1/files/../status", "")).await.code, "bad_path");
    assert_eq!(door.refused(request(Method::PUT, "/v1/files", "x")).await.code, "method_not_allowed");
    assert_eq!(door.pair.asked(), [0, 0]);
    assert_eq!(door.metric("edge_gateway_requests_total", "4xx"), 6.0);
}

#[tokio::test]
async fn a_vaults_own_refusal_passes_as_it_is() {
    let door = Door::open().await;
    for vault in &door.pair.vaults {
        vault.will([Behaviour::Refuse("peer_away")]);
    }
    let response = door.call(request(Method::POST, "/v1/series/INV/numbers", "")).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()[header::RETRY_AFTER], "7");
    assert_eq!(json::<Problem>(response).await.code, "peer_away");
}

#[tokio::test]
async fn a_killed_vault_goes_unnoticed_by_handlers() {
    let mut door = Door::open().await;
    for count in 1..=3 {
        let response = door.call(request(Method::POST, "/v1/series/INV/numbers", "")).await;
        assert_eq!(json::<Number>(response).await.number, count);
        if count == 1 {
            door.pair.vaults[0].kill().await;
        }
    }
    assert_eq!(door.metric("edge_gateway_failovers_total", ""), 1.0);
    assert_eq!(door.metric("edge_gateway_vault_up", "vault-a"), 0.0);
    assert_eq!(door.metric("edge_gateway_vault_up", "vault-b"), 1.0);
    assert!(door.vaults.any_up());
}

#[tokio::test]
async fn a_small_upload_that_broke_is_repeated_for_the_handler_and_acts_once() {
    let door = Door::open().await;
    let content = noise(60_000);
    for (key, request) in [("one", upload("one", &content)), ("two", chunked("two", &content.slice(1..)))] {
        door.pair.vaults[0].will([Behaviour::CutUpload(1000)]);
        door.pair.vaults[1].will([Behaviour::ActAndCut]);
        let response = door.call(request).await;
        assert_eq!(response.status(), StatusCode::CREATED);
        assert_eq!(response.headers()["idempotency-key"], key);
        assert_eq!(door.pair.deeds.lock().unwrap().acts[key], 1);
    }
    assert!(door.pair.deeds.lock().unwrap().files.contains_key(&hash(&content)));
}

#[tokio::test]
async fn a_large_upload_that_broke_is_the_handlers_to_repeat_with_its_key() {
    let door = Door::open().await;
    let content = noise(3 << 20);
    for (key, make) in [("one", upload as fn(&str, &Bytes) -> _), ("two", chunked)] {
        for vault in &door.pair.vaults {
            vault.will([Behaviour::CutUpload(100_000)]);
        }
        for _ in 0..2 {
            let response = door.call(make(key, &content)).await;
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(response.headers()[header::RETRY_AFTER], "1");
            assert_eq!(response.headers()["idempotency-key"], key);
            let problem: Problem = json(response).await;
            assert_eq!(problem.code, "upload_broken");
            assert!(problem.detail.contains("repeat with the same Idempotency-Key"));
        }
        let response = door.call(make(key, &content)).await;
        assert!(response.status().is_success());
        assert_eq!(json::<File>(response).await.id, hash(&content));
    }
    let deeds = door.pair.deeds.lock().unwrap();
    assert_eq!(deeds.files.len(), 1);
    assert_eq!(deeds.acts["one"], 1);
}

#[tokio::test]
async fn a_download_streams_through_whole_though_its_vault_dies() {
    let door = Door::open().await;
    let content = noise(2 << 20);
    let id = door.pair.store(content.clone());
    door.pair.vaults[0].will([Behaviour::CutDownload(300_000)]);
    let response = door.call(request(Method::GET, &format!("/v1/files/{id}"), "")).await;
    assert_eq!(response.headers()[header::CONTENT_LENGTH], "2097152");
    assert_eq!(response.headers()[header::ETAG], format!("\"{id}\""));
    assert_eq!(bytes(response).await, content);
    let response = door.call(request(Method::HEAD, &format!("/v1/files/{id}"), "")).await;
    assert_eq!(response.headers()[header::CONTENT_LENGTH], "2097152");
    assert!(bytes(response).await.is_empty());
}

#[tokio::test]
async fn a_download_that_cannot_be_finished_breaks_visibly() {
    let mut door = Door::open().await;
    let id = door.pair.store(noise(2 << 20));
    door.pair.vaults[0].will([Behaviour::CutDownload(100_000)]);
    door.pair.vaults[1].kill().await;
    // A second cut in the continuation's head, and nobody is left.
    door.pair.vaults[0].will((0..20).map(|_| Behaviour::ActAndCut));
    let response = door.call(request(Method::GET, &format!("/v1/files/{id}"), "")).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(response.into_body().collect().await.is_err());
}

#[tokio::test]
async fn a_body_over_the_limit_is_413_and_leaves_nothing_behind() {
    let door = Door::open().await;
    let content = noise((8 << 20) + 1);
    for request in [upload("one", &content), chunked("two", &content)] {
        let problem = door.refused(request).await;
        assert_eq!((problem.status, problem.code.as_str()), (413, "too_large"));
    }
    let confirm = request(Method::POST, "/v1/series/INV/numbers/1/confirm", content.slice(..70_000));
    assert_eq!(door.refused(confirm).await.status, 413);
    assert!(door.pair.deeds.lock().unwrap().files.is_empty());
    assert_eq!(door.metric("edge_gateway_vault_up", "vault-a"), 1.0);
}

#[tokio::test]
async fn both_vaults_dead_is_503_with_retry_after() {
    let mut door = Door::open().await;
    for vault in &mut door.pair.vaults {
        vault.kill().await;
    }
    let problem = door.refused(request(Method::POST, "/v1/series/INV/numbers", "")).await;
    assert_eq!((problem.status, problem.code.as_str()), (503, "vaults_unreachable"));
    assert!(!door.vaults.any_up());
}

#[tokio::test]
async fn tcp_is_loopback_with_a_token_only() {
    let pair = Pair::start().await;
    let registry = Registry::new();
    let outside = Settings { listen: Address::Tcp("0.0.0.0:0".parse().unwrap()), ..settings(&pair) };
    let refused = Gateway::open(outside, limits(), &registry).await;
    assert!(matches!(refused, Err(GatewayError::NotLoopback(_))));
    let open = Settings { listen: Address::Tcp("127.0.0.1:0".parse().unwrap()), ..settings(&pair) };
    let refused = Gateway::open(open.clone(), limits(), &registry).await;
    assert!(matches!(refused, Err(GatewayError::TokensNeeded(_))));
    let file = pair.folder().join("tokens");
    std::fs::write(&file, "erp:0123456789abcdef\n").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let door = Door::open_with(pair, Settings { tokens_file: Some(file), ..open }, limits()).await;
    let mut asked = request(Method::POST, "/v1/series/INV/numbers", "");
    assert_eq!(door.refused(asked).await.code, "no_token");
    asked = request(Method::POST, "/v1/series/INV/numbers", "");
    asked.headers_mut().insert(header::AUTHORIZATION, "Bearer 0123456789abcdef".parse().unwrap());
    assert_eq!(door.call(asked).await.status(), StatusCode::CREATED);
}

#[tokio::test]
async fn a_connection_beyond_the_limit_is_told_so() {
    let pair = Pair::start().await;
    let settings = settings(&pair);
    let door = Door::open_with(pair, settings, Limits { connections: 1, ..limits() }).await;
    let Address::Unix(path) = &door.address else { unreachable!() };
    let first = UnixStream::connect(path).await.unwrap();
    let problem = door.refused(request(Method::GET, "/v1/files", "")).await;
    assert_eq!((problem.status, problem.code.as_str()), (503, "gateway_busy"));
    let response = exchange(first, request(Method::POST, "/v1/series/INV/numbers", "")).await;
    assert_eq!(response.status(), StatusCode::CREATED);
}

#[tokio::test]
async fn a_handler_that_stops_sending_is_told_so() {
    let pair = Pair::start().await;
    let settings = settings(&pair);
    let door = Door::open_with(pair, settings, Limits { idle: Duration::from_millis(50), ..limits() }).await;
    let silent = StreamBody::new(futures_util::stream::pending::<Result<Frame<Bytes>, Infallible>>());
    let problem = door.refused(upload("one", &Bytes::new()).map(|_| silent.boxed_unsync())).await;
    assert_eq!((problem.status, problem.code.as_str()), (408, "body_stalled"));
}

#[tokio::test]
async fn the_word_to_stop_lets_a_call_finish_and_removes_the_socket() {
    let door = Door::open().await;
    let word = std::sync::Arc::new(tokio::sync::Notify::new());
    door.pair.vaults[0].will([Behaviour::Wait(std::sync::Arc::clone(&word))]);
    let call = door.call(request(Method::POST, "/v1/series/INV/numbers", ""));
    let stop = async {
        while door.pair.asked() == [0, 0] {
            tokio::task::yield_now().await;
        }
        door.shutdown.cancel();
        word.notify_one();
    };
    let (response, ()) = tokio::join!(call, stop);
    assert_eq!(response.status(), StatusCode::CREATED);
    door.running.await.unwrap();
    let Address::Unix(path) = &door.address else { unreachable!() };
    assert!(!path.exists());
}
