//! Client connections through `listen`, the HTTP engine and the phases to a small upstream, in one
//! process and without a configuration file: the limit in flight, malformed requests, pipelining,
//! failing over, bans and rates. What needs the whole program is told in the stories.

#![expect(clippy::unwrap_used, reason = "a step of a test that fails is the test's failure")]

#[path = "front_door/bans.rs"]
mod bans;
#[path = "front_door/clear.rs"]
mod clear;
#[path = "front_door/foreign_pages.rs"]
mod foreign_pages;
#[path = "front_door/proxied.rs"]
mod proxied;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use edge::access_log::{self, AccessLog, Entry, Tap};
use edge::admin::Readiness;
use edge::admission::{Banned, InFlight, Rate, Rates};
use edge::client::TrustedProxies;
use edge::config::{CertificateFiles, Listen, Listener, Mode};
use edge::listen::live::{Connections, Idle};
use edge::listen::redirect::Redirect;
use edge::listen::report::Report;
use edge::listen::{self, Door, Sockets, socket};
use edge::metrics::Metrics;
use edge::proxy::{Engine, Site};
use edge::route::{HostPattern, Route, Routes};
use edge::tls::{self, Certificates};
use edge::upstream::{Server, Settings, Upstreams};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use shared::config::ByteSize;
use shared::shutdown::Shutdown;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Far beyond what any step takes: a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

struct Edge {
    address: SocketAddr,
    /// Plain HTTP, which is redirected.
    plain: SocketAddr,
    /// Plain HTTP, which is served.
    clear: SocketAddr,
    /// The same, behind a PROXY header.
    proxied: SocketAddr,
    connector: TlsConnector,
    in_flight: Arc<InFlight>,
    banned: Arc<Banned>,
    connections: Arc<Connections>,
    metrics: Arc<Metrics>,
    access_log: AccessLog,
    log_file: PathBuf,
    /// What the ban engine would hear.
    heard: Arc<Mutex<Vec<Arc<Entry>>>>,
    shutdown: Shutdown,
    thread: thread::JoinHandle<usize>,
    _folder: tempfile::TempDir,
}

/// Holds every answer back until told, so that requests are in flight for as long as a test wants.
struct Application {
    address: SocketAddr,
    arrived: Arc<AtomicUsize>,
    /// Every head that came, in lower case.
    heads: Arc<Mutex<Vec<String>>>,
    answer: watch::Sender<bool>,
}

fn certificate(folder: &tempfile::TempDir) -> (CertificateFiles, ClientConfig) {
    let made = rcgen::generate_simple_self_signed(vec!["a.test".to_owned()]).unwrap();
    let files = CertificateFiles {
        names: vec!["a.test".to_owned()],
        certificate: folder.path().join("a.pem"),
        key: folder.path().join("a.key"),
        default: true,
    };
    std::fs::write(&files.certificate, made.cert.pem()).unwrap();
    std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let client = ClientConfig::builder_with_provider(shared::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (files, client)
}

fn settings() -> Listen {
    Listen {
        listeners: Vec::new(),
        max_connections: 500,
        handshake_timeout: PATIENCE,
        head_timeout: PATIENCE,
        idle_timeout: PATIENCE,
        body_timeout: PATIENCE,
        min_rate: ByteSize(512),
        write_timeout: PATIENCE,
        max_head: ByteSize::kib(32),
        max_headers: 100,
        max_uri: ByteSize::kib(8),
        h2_streams: 100,
        drain: PATIENCE,
    }
}

fn start(servers: Vec<SocketAddr>) -> Edge {
    start_with(settings(), servers)
}

fn start_with(settings: Listen, servers: Vec<SocketAddr>) -> Edge {
    Limits::default().start(settings, servers)
}

/// What a test wants of the limits.
struct Limits {
    trusted: &'static [&'static str],
    client: Option<Rate>,
    route: Option<Rate>,
    offender: Rate,
    idle: Idle,
    /// Of one client.
    connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        let idle = Idle::default();
        Self { trusted: &[], client: None, route: None, offender: Rate::OFFENDER, idle, connections: 200 }
    }
}

impl Limits {
    fn start(self, settings: Listen, servers: Vec<SocketAddr>) -> Edge {
        start_under(self, settings, servers)
    }
}

fn start_under(limits: Limits, settings: Listen, servers: Vec<SocketAddr>) -> Edge {
    let folder = tempfile::tempdir().unwrap();
    let (files, client) = certificate(&folder);
    let log_file = folder.path().join("access.log");
    let metrics = Metrics::new();
    let log =
        access_log::Settings { file: Some(log_file.clone()), format: access_log::Format::Json, queue: 4096 };
    let heard = Arc::new(Mutex::new(Vec::new()));
    let ear = Arc::clone(&heard);
    let tap: Tap = Arc::new(move |entry| ear.lock().unwrap().push(Arc::clone(entry)));
    let access_log = AccessLog::start(&log, Arc::clone(&metrics), Some(tap)).unwrap();
    let in_flight = InFlight::new(50);
    let banned = Banned::new();
    let trusted = limits.trusted.iter().map(|text| text.parse().unwrap()).collect();
    let trusted = TrustedProxies::new(trusted);
    let connections =
        Connections::new(limits.idle, limits.connections, trusted.clone(), Arc::clone(&metrics));
    let site = Arc::new(Site {
        direct_name: None,
        listen: settings.clone(),
        trusted,
        banned: Arc::clone(&banned),
        rates: Rates::new(limits.client, &[limits.route], limits.offender),
        in_flight: Arc::clone(&in_flight),
        retry_after: Duration::from_secs(1),
        routes: Routes::new(vec![Route {
            host: HostPattern::Any,
            path_prefix: "/".to_owned(),
            upstream: "app".to_owned(),
            max_body: ByteSize::kib(64),
            timeout: settings.body_timeout,
            rate: None,
        }]),
        upstreams: Upstreams::new(vec![Settings {
            name: "app".to_owned(),
            servers: servers.into_iter().map(Server::Tcp).collect(),
            connect_timeout: PATIENCE,
            fail_timeout: PATIENCE,
        }]),
        readiness: Readiness::new(),
        access_log: access_log.clone(),
        metrics: Arc::clone(&metrics),
        started: tokio::time::Instant::now(),
    });
    let acceptor = tls::acceptor(Certificates::load(&[files]).unwrap()).unwrap();
    let redirect = Redirect::new("a.test".to_owned(), Vec::new());
    let report = Report::new(access_log.clone(), Arc::clone(&metrics));
    let door = Door::new(
        settings,
        acceptor,
        redirect,
        report,
        Arc::clone(&connections),
        Arc::clone(&banned),
        Arc::clone(&site.rates),
    );
    let mut sockets = Sockets::default();
    let doors = [(Mode::Tls, false), (Mode::Redirect, false), (Mode::Clear, false), (Mode::Clear, true)];
    let [address, plain, clear, proxied] = doors.map(|(mode, proxy)| {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let socket = socket::listeners(any, 1).unwrap().remove(0);
        let address = socket.local_addr().unwrap();
        sockets.push(Listener { proxy, ..Listener::new(address, mode) }, socket);
        address
    });
    let shutdown = Shutdown::new();
    let stop = shutdown.clone();
    let thread = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let engine = Engine::new(site);
            let drain = engine.clone();
            listen::run(door, sockets, engine, move || drain.drain(), stop).await.unwrap()
        })
    });
    Edge {
        address,
        plain,
        clear,
        proxied,
        connector: TlsConnector::from(Arc::new(client)),
        in_flight,
        banned,
        connections,
        metrics,
        access_log,
        log_file,
        heard,
        shutdown,
        thread,
        _folder: folder,
    }
}

impl Edge {
    async fn connect(&self) -> TlsStream<TcpStream> {
        let tcp = TcpStream::connect(self.address).await.unwrap();
        self.connector.connect(ServerName::try_from("a.test").unwrap(), tcp).await.unwrap()
    }

    /// How often edge has refused for this reason.
    fn rejected(&self, reason: &str) -> u64 {
        self.metrics.rejected.with_label_values(&[reason]).get()
    }

    /// Sends `bytes` and reads until edge closes.
    async fn ask(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect().await;
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        // A farewell that is missing is looked for elsewhere.
        let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
        String::from_utf8(answer).unwrap()
    }

    /// Stops in order and returns the lines of the log.
    async fn stop(self) -> Vec<serde_json::Value> {
        self.shutdown.cancel();
        let Self { thread, access_log, log_file, _folder, .. } = self;
        tokio::task::spawn_blocking(move || {
            assert_eq!(thread.join().unwrap(), 0, "no connection is cut");
            access_log.close();
            let text = std::fs::read_to_string(log_file).unwrap();
            drop(_folder);
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        })
        .await
        .unwrap()
    }
}

async fn application(answer_at_once: bool) -> Application {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let arrived = Arc::new(AtomicUsize::new(0));
    let (answer, told) = watch::channel(answer_at_once);
    let heads = Arc::default();
    let (count, seen) = (Arc::clone(&arrived), Arc::clone(&heads));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer_all(stream, Arc::clone(&count), Arc::clone(&seen), told.clone()));
        }
    });
    Application { address, arrived, heads, answer }
}

/// Answers each request with its own target.
async fn answer_all(
    stream: TcpStream,
    arrived: Arc<AtomicUsize>,
    heads: Arc<Mutex<Vec<String>>>,
    mut told: watch::Receiver<bool>,
) {
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => return,
            }
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        let length = head
            .split("content-length: ")
            .nth(1)
            .map_or(0, |rest| rest.split("\r\n").next().unwrap().parse().unwrap());
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.unwrap();
        heads.lock().unwrap().push(head.clone());
        arrived.fetch_add(1, Ordering::SeqCst);
        told.wait_for(|told| *told).await.unwrap();
        let target = head.split(' ').nth(1).unwrap();
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{target}", target.len());
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let reached = timeout(PATIENCE, async {
        while !condition() {
            sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(reached.await.is_ok(), "never: {what}");
}

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0)
}

#[tokio::test]
async fn sixty_requests_at_once_get_fifty_answers_and_ten_refusals() {
    let application = application(false).await;
    let edge = Arc::new(start(vec![application.address]));
    let mut asked = tokio::task::JoinSet::new();
    for _ in 0..60 {
        let edge = Arc::clone(&edge);
        asked.spawn(async move {
            edge.ask(b"GET /slow HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").await
        });
    }
    let mut answers = Vec::new();
    for _ in 0..10 {
        answers.push(asked.join_next().await.unwrap().unwrap());
    }
    assert!(answers.iter().all(|answer| status(answer) == 429), "{answers:?}");
    assert!(answers.iter().all(|answer| answer.to_lowercase().contains("\r\nretry-after: 1\r\n")));
    until("50 requests at the application", || application.arrived.load(Ordering::SeqCst) == 50).await;
    application.answer.send_replace(true);
    while let Some(answer) = asked.join_next().await {
        assert_eq!(status(&answer.unwrap()), 200);
    }
    until("every place is free again", || edge.in_flight.total() == 0).await;
    assert_eq!(status(&edge.ask(b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").await), 200);
    let lines = Arc::into_inner(edge).unwrap().stop().await;
    assert_eq!(lines.len(), 61, "one line a request");
}

#[tokio::test]
async fn a_malformed_request_gets_its_4xx_and_one_line() {
    let application = application(true).await;
    let edge = start(vec![application.address]);
    let long = format!("GET /{} HTTP/1.1\r\nHost: a.test\r\n\r\n", "a".repeat(9000));
    let wide = format!("GET / HTTP/1.1\r\nHost: a.test\r\nX: {}\r\n\r\n", "a".repeat(40_000));
    let many = format!("GET / HTTP/1.1\r\nHost: a.test\r\n{}\r\n", "X: 1\r\n".repeat(101));
    let cases = [
        ("GET / HTTP/1.1\nHost: a.test\n\n", 400),
        ("GET / HTTP/1.1\r\nHost: a.test\r\n x\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400),
        ("POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a.test\r\nHost: b.test\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a.test\r\nX: \0\r\n\r\n", 400),
        ("nonsense\r\n\r\n", 400),
        ("GET /%2e%2e/x HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n", 400),
        ("GET /%00 HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 70000\r\n\r\n", 413),
        (long.as_str(), 414),
        (wide.as_str(), 431),
        (many.as_str(), 431),
    ];
    for (request, expected) in cases {
        let shown: String = request.chars().take(60).collect();
        let answer = edge.ask(request.as_bytes()).await;
        assert_eq!(status(&answer), expected, "{shown:?}: {answer}");
        assert!(answer.contains("application/problem+json"), "{shown:?}: {answer}");
    }
    let lines = edge.stop().await;
    let logged: Vec<u64> =
        lines.iter().map(|line| line["http.response.status_code"].as_u64().unwrap()).collect();
    assert_eq!(logged, cases.map(|(_, expected)| u64::from(expected)));
    assert!(lines.iter().all(|line| line["event.reason"].is_string()), "{lines:?}");
}

#[tokio::test]
async fn pipelined_requests_are_answered_one_by_one_in_order() {
    let application = application(true).await;
    let edge = start(vec![application.address]);
    let answer = edge
        .ask(
            b"GET /1 HTTP/1.1\r\nHost: a.test\r\n\r\n\
              POST /2 HTTP/1.1\r\nHost: a.test\r\nContent-Length: 25\r\n\r\nGET /no HTTP/1.1\r\nHost: a\
              GET /3 HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n",
        )
        .await;
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 3, "{answer}");
    let places = ["\r\n\r\n/1", "\r\n\r\n/2", "\r\n\r\n/3"].map(|target| answer.find(target).unwrap());
    assert!(places.is_sorted(), "{answer}");
    assert_eq!(edge.stop().await.len(), 3);
}

#[tokio::test]
async fn a_dead_server_is_passed_over_and_none_left_is_a_502() {
    let application = application(true).await;
    let dead = {
        let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        held.local_addr().unwrap()
    };
    let request = b"POST /x HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi";
    let edge = start(vec![dead, application.address]);
    for _ in 0..4 {
        assert_eq!(status(&edge.ask(request).await), 200);
    }
    edge.stop().await;
    let edge = start(vec![dead]);
    assert_eq!(status(&edge.ask(request).await), 502);
    let lines = edge.stop().await;
    assert!(lines[0]["event.reason"].as_str().unwrap().contains("ConnectRefused"), "{lines:?}");
}

#[tokio::test]
async fn a_client_that_was_shaking_hands_when_edge_drains_is_answered() {
    let application = application(true).await;
    let edge = start(vec![application.address]);
    let waiting = TcpStream::connect(edge.address).await.unwrap();
    // Accepted for certain once a later connection has been served.
    edge.ask(b"GET /first HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").await;
    let mut idle = edge.connect().await;
    edge.shutdown.cancel();
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, idle.read_to_end(&mut rest)).await.unwrap();
    let mut stream = edge.connector.connect(ServerName::try_from("a.test").unwrap(), waiting).await.unwrap();
    stream.write_all(b"GET /late HTTP/1.1\r\nHost: a.test\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(status(&String::from_utf8(answer).unwrap()), 200);
    assert_eq!(edge.stop().await.len(), 2);
}

#[tokio::test]
async fn nothing_of_ours_is_written_into_a_tunnel() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let mut settings = settings();
    settings.body_timeout = Duration::from_secs(1);
    let edge = start_with(settings, vec![listener.local_addr().unwrap()]);
    let application = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let answer =
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhi";
        stream.write_all(answer).await.unwrap();
        // Silent from now on, until edge has had enough.
        let _ = stream.read_u8().await;
    });
    let answer = edge
        .ask(b"GET /ws HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        .await;
    assert_eq!(status(&answer), 101);
    assert!(answer.ends_with("\r\n\r\nhi"), "{answer}");
    application.await.unwrap();
    assert_eq!(edge.stop().await.len(), 1);
}

/// A frame of HTTP/2 (RFC 9113 section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header block of literals that nobody indexes.
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    fields.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
}

/// Opens an HTTP/2 connection and sends these frames.
async fn speak_h2(edge: &Edge, frames: &[Vec<u8>]) -> TlsStream<TcpStream> {
    let mut client = (**edge.connector.config()).clone();
    client.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = TcpStream::connect(edge.address).await.unwrap();
    let connector = TlsConnector::from(Arc::new(client));
    let mut stream = connector.connect(ServerName::try_from("a.test").unwrap(), tcp).await.unwrap();
    let preface = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, &[])].concat();
    stream.write_all(&[preface, frames.concat()].concat()).await.unwrap();
    stream
}

fn post<'a>(path: &'a str, more: &[(&'a str, &'a str)]) -> Vec<u8> {
    let fields = [(":method", "POST"), (":scheme", "https"), (":authority", "a.test"), (":path", path)];
    block(&[&fields, more].concat())
}

#[tokio::test]
async fn an_answered_http2_upload_that_stops_coming_gives_its_place_back() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let mut settings = settings();
    settings.body_timeout = Duration::from_secs(1);
    let edge = start_with(settings, vec![listener.local_addr().unwrap()]);
    let application = tokio::spawn(async move {
        let mut kept = Vec::new();
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().await.unwrap();
            // Answers before it has read the body, and goes on listening.
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            kept.push(stream);
        }
        kept
    });
    // One stops between two frames, the other in the midst of one.
    let length = [("content-length", "100")];
    let between = [frame(1, 4, 1, &post("/between", &length)), frame(0, 0, 1, b"abc")];
    let midst = [frame(1, 4, 1, &post("/midst", &length)), frame(0, 0, 1, &[0; 50])[..20].to_vec()];
    let clients = [speak_h2(&edge, &between).await, speak_h2(&edge, &midst).await];
    let kept = application.await.unwrap();
    until("both places are free", || edge.in_flight.total() == 0).await;
    drop((clients, kept));
    let lines = edge.stop().await;
    let statuses: Vec<_> = lines.iter().map(|line| line["http.response.status_code"].as_u64()).collect();
    assert_eq!(statuses, [Some(200), Some(200)], "{lines:?}");
}

#[tokio::test]
async fn http2_gets_nothing_through_that_the_gate_refuses_http1() {
    let application = application(true).await;
    let edge = start(vec![application.address]);
    let twice = post("/twice", &[("content-length", "2"), ("content-length", "2")]);
    let trace =
        block(&[(":method", "TRACE"), (":scheme", "https"), (":authority", "a.test"), (":path", "/t")]);
    let frames = [frame(1, 4, 1, &twice), frame(0, 1, 1, b"hi"), frame(1, 5, 3, &trace)];
    let client = speak_h2(&edge, &frames).await;
    let log = edge.log_file.clone();
    until("two lines", || std::fs::read_to_string(&log).unwrap().lines().count() == 2).await;
    drop(client);
    assert_eq!(application.arrived.load(Ordering::SeqCst), 0);
    let mut statuses: Vec<_> =
        edge.stop().await.iter().map(|line| line["http.response.status_code"].as_u64()).collect();
    statuses.sort();
    assert_eq!(statuses, [Some(400), Some(405)]);
}

#[tokio::test]
async fn http_1_0_may_name_its_host_in_the_target_alone() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let edge = start(vec![listener.local_addr().unwrap()]);
    let application = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        String::from_utf8(head).unwrap()
    });
    assert_eq!(status(&edge.ask(b"GET http://b.test/x HTTP/1.0\r\n\r\n").await), 200);
    let head = application.await.unwrap();
    assert!(head.starts_with("GET /x HTTP/1.1\r\n") && head.contains("\r\nHost: b.test\r\n"), "{head}");
    edge.stop().await;
}

#[tokio::test]
async fn a_request_in_flight_is_finished_while_edge_drains() {
    let application = application(false).await;
    let edge = Arc::new(start(vec![application.address]));
    let asking = {
        let edge = Arc::clone(&edge);
        tokio::spawn(async move { edge.ask(b"GET /live HTTP/1.1\r\nHost: a.test\r\n\r\n").await })
    };
    until("the request is at the application", || application.arrived.load(Ordering::SeqCst) == 1).await;
    let mut idle = edge.connect().await;
    edge.shutdown.cancel();
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, idle.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.is_empty(), "an idle connection is closed without a word");
    application.answer.send_replace(true);
    assert_eq!(status(&asking.await.unwrap()), 200);
    assert_eq!(Arc::into_inner(edge).unwrap().stop().await.len(), 1);
}
