//! A pair of small vaults over real TLS, for tests of whoever calls the pair: they share one
//! set of deeds as a joined pair does, and misbehave on demand. Asserts nothing.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use sha2::{Digest, Sha256};
use shared::api::client::{Life, VaultAddress};
use shared::api::{File, IDEMPOTENCY_KEY, Number, NumberState, Problem, VAULT_LIFE, VAULT_TICKET};
use shared::tls::Files;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::ports;

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Each start of a vault is another life.
static LIVES: AtomicUsize = AtomicUsize::new(1);

/// What a vault does with its next request; behaviours are used up in order.
pub(crate) enum Behaviour {
    /// Acts, then cuts the connection before a word of the answer.
    ActAndCut,
    /// Takes the request and never answers.
    Hang,
    /// 503 with this code and `Retry-After: 7`.
    Refuse(&'static str),
    /// 410 with this code.
    Gone(&'static str),
    /// Reads so much of the body, then cuts the connection.
    CutUpload(usize),
    /// Sends the head and so much of the body, then cuts the connection.
    CutDownload(usize),
    /// Waits for the word, then acts as usual.
    Wait(Arc<Notify>),
}

/// What both vaults have done together.
#[derive(Default)]
pub(crate) struct Deeds {
    /// Vault, method, path and key of every request, in order; questions for a life aside.
    pub(crate) asked: Vec<(String, String, Option<String>)>,
    /// The tickets that each vault saw, in order: by header, or each in a batch's body.
    pub(crate) tickets: Vec<(String, Option<Life>)>,
    /// How often each key really acted.
    pub(crate) acts: HashMap<String, u32>,
    /// Numbers by key.
    pub(crate) numbers: HashMap<String, u64>,
    /// Content by id.
    pub(crate) files: HashMap<String, Bytes>,
}

/// Both vaults, their authority and their files.
pub(crate) struct Pair {
    /// vault-a and vault-b.
    pub(crate) vaults: [FakeVault; 2],
    /// What they did.
    pub(crate) deeds: Arc<Mutex<Deeds>>,
    folder: tempfile::TempDir,
}

/// One of them.
pub(crate) struct FakeVault {
    name: &'static str,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    shared: Arc<Inner>,
    serving: Option<JoinHandle<()>>,
}

struct Inner {
    name: &'static str,
    deeds: Arc<Mutex<Deeds>>,
    behaviours: Mutex<VecDeque<Behaviour>>,
    /// New at each start; 0: a vault that knows no lives.
    life: Mutex<Life>,
    connections: AtomicUsize,
    connected: Notify,
}

impl Pair {
    /// Starts both.
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = params.self_signed(&authority_key).unwrap();
        std::fs::write(folder.path().join("authority.pem"), authority.pem()).unwrap();
        let issuer = Issuer::new(params, authority_key);
        for name in ["vault-a", "vault-b", "www1"] {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            let certificate = params.signed_by(&key, &issuer).unwrap();
            std::fs::write(folder.path().join(format!("{name}.pem")), certificate.pem()).unwrap();
            std::fs::write(folder.path().join(format!("{name}.key")), key.serialize_pem()).unwrap();
        }
        let deeds = Arc::new(Mutex::new(Deeds::default()));
        let mut vaults = Vec::new();
        for name in ["vault-a", "vault-b"] {
            vaults.push(FakeVault::start(name, &files(folder.path(), name), Arc::clone(&deeds)).await);
        }
        let Ok(vaults) = <[FakeVault; 2]>::try_from(vaults) else { unreachable!("two were started") };
        Self { vaults, deeds, folder }
    }

    /// As a caller is configured.
    pub(crate) fn addresses(&self) -> Vec<VaultAddress> {
        self.vaults
            .iter()
            .map(|vault| VaultAddress { name: vault.name.to_owned(), address: vault.address })
            .collect()
    }

    /// A caller's certificate.
    pub(crate) fn caller(&self) -> Files {
        files(self.folder.path(), "www1")
    }

    /// For sockets and the like.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// How many requests each vault has seen.
    pub(crate) fn asked(&self) -> [usize; 2] {
        let deeds = self.deeds.lock().unwrap();
        ["vault-a", "vault-b"].map(|name| deeds.asked.iter().filter(|(vault, ..)| vault == name).count())
    }

    /// Stores content as if it had been uploaded.
    pub(crate) fn store(&self, content: impl Into<Bytes>) -> String {
        let content = content.into();
        let id = hash(&content);
        self.deeds.lock().unwrap().files.insert(id.clone(), content);
        id
    }
}

fn files(folder: &Path, name: &str) -> Files {
    Files {
        certificate: folder.join(format!("{name}.pem")),
        key: folder.join(format!("{name}.key")),
        authority: folder.join("authority.pem"),
    }
}

impl FakeVault {
    async fn start(name: &'static str, files: &Files, deeds: Arc<Mutex<Deeds>>) -> Self {
        let config = shared::tls::server(files, &[b"http/1.1"]).unwrap();
        let listener = TcpListener::bind(ports::free().unwrap()).await.unwrap();
        let shared = Arc::new(Inner {
            name,
            deeds,
            behaviours: Mutex::default(),
            life: Mutex::new(Life(0)),
            connections: AtomicUsize::new(0),
            connected: Notify::new(),
        });
        let address = listener.local_addr().unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let mut vault = Self { name, address, acceptor, shared, serving: None };
        vault.serve(listener);
        vault
    }

    fn serve(&mut self, listener: TcpListener) {
        let life = LIVES.fetch_add(1, Ordering::SeqCst) as u128;
        *self.shared.life.lock().unwrap() = Life(life);
        let (acceptor, shared) = (self.acceptor.clone(), Arc::clone(&self.shared));
        self.serving = Some(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, shared) = (acceptor.clone(), Arc::clone(&shared));
                connections.spawn(async move {
                    let Ok(tls) = acceptor.accept(tcp).await else { return };
                    shared.connections.fetch_add(1, Ordering::SeqCst);
                    shared.connected.notify_waiters();
                    let service = service_fn(move |request| {
                        let shared = Arc::clone(&shared);
                        async move { shared.answer(request).await }
                    });
                    // Cut connections end in errors; that is their purpose.
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(tls), service).await;
                });
            }
        }));
    }

    /// As kill -9: every socket closed, the answer or not.
    pub(crate) async fn kill(&mut self) {
        let serving = self.serving.take().unwrap();
        serving.abort();
        assert!(serving.await.unwrap_err().is_cancelled());
    }

    /// Starts it again at its address.
    pub(crate) async fn start_again(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.serve(listener);
    }

    /// The life that it tells.
    pub(crate) fn life(&self) -> Life {
        *self.shared.life.lock().unwrap()
    }

    /// From now on it knows no lives, as an earlier version.
    pub(crate) fn forget_life(&self) {
        *self.shared.life.lock().unwrap() = Life(0);
    }

    /// What it shall do with its next requests.
    pub(crate) fn will(&self, behaviours: impl IntoIterator<Item = Behaviour>) {
        self.shared.behaviours.lock().unwrap().extend(behaviours);
    }

    /// Connections whose handshake succeeded.
    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Returns once there have been so many.
    pub(crate) async fn connected(&self, times: usize) {
        loop {
            let connected = self.shared.connected.notified();
            if self.connections() >= times {
                return;
            }
            connected.await;
        }
    }
}

impl Inner {
    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Body>, io::Error> {
        let life = *self.life.lock().unwrap();
        let mut response = if request.uri().path() == "/v1/life" {
            refuse("not_found")
        } else {
            self.answer_call(request).await?
        };
        if life != Life(0) {
            response.headers_mut().insert(VAULT_LIFE, life.to_string().parse().unwrap());
        }
        Ok(response)
    }

    async fn answer_call(&self, request: Request<Incoming>) -> Result<Response<Body>, io::Error> {
        let (parts, mut body) = request.into_parts();
        let key = parts.headers.get(IDEMPOTENCY_KEY).map(|key| key.to_str().unwrap().to_owned());
        let line = format!("{} {}", parts.method, parts.uri);
        {
            let mut deeds = self.deeds.lock().unwrap();
            deeds.asked.push((self.name.to_owned(), line, key.clone()));
            if parts.uri.path().ends_with("/numbers") {
                let ticket =
                    parts.headers.get(VAULT_TICKET).map(|life| life.to_str().unwrap().parse().unwrap());
                deeds.tickets.push((self.name.to_owned(), ticket));
            }
        }
        let behaviour = self.behaviours.lock().unwrap().pop_front();
        let cut = || Err(io::Error::other("cut on demand"));
        let mut cut_download = None;
        match &behaviour {
            Some(Behaviour::Hang) => std::future::pending().await,
            Some(Behaviour::Refuse(code)) => return Ok(refuse(code)),
            Some(Behaviour::Gone(code)) => {
                return Ok(json(StatusCode::GONE, &Problem::new(StatusCode::GONE, code, "on demand")));
            }
            Some(Behaviour::CutUpload(most)) => {
                let mut taken = 0;
                while taken < *most {
                    match body.frame().await {
                        Some(Ok(frame)) => taken += frame.data_ref().map_or(0, Bytes::len),
                        _ => break,
                    }
                }
                return cut();
            }
            Some(Behaviour::CutDownload(most)) => cut_download = Some(*most),
            Some(Behaviour::Wait(word)) => word.notified().await,
            Some(Behaviour::ActAndCut) | None => {}
        }
        let content = body.collect().await.map_err(io::Error::other)?.to_bytes();
        if parts.uri.path().ends_with("/batch") {
            let batch: serde_json::Value = serde_json::from_slice(&content).unwrap();
            let tickets: Vec<Option<Life>> =
                serde_json::from_value(batch["tickets"].clone()).unwrap_or_default();
            let seen = tickets.into_iter().map(|ticket| (self.name.to_owned(), ticket));
            self.deeds.lock().unwrap().tickets.extend(seen);
        }
        let response = self.act(&parts.method, parts.uri.path(), key, content, &parts.headers, cut_download);
        if matches!(behaviour, Some(Behaviour::ActAndCut)) { cut() } else { Ok(response) }
    }

    fn act(
        &self,
        method: &Method,
        path: &str,
        key: Option<String>,
        content: Bytes,
        headers: &HeaderMap,
        cut: Option<usize>,
    ) -> Response<Body> {
        let mut deeds = self.deeds.lock().unwrap();
        let Some(id) = path.strip_prefix("/v1/files") else { return number(&mut deeds, path, key) };
        if method == Method::POST {
            let key = key.unwrap();
            let id = hash(&content);
            let (label, size) = (String::new(), content.len() as u64);
            if deeds.files.insert(id.clone(), content).is_none() {
                *deeds.acts.entry(key).or_default() += 1;
            }
            let file = File {
                id,
                owner: "erp".to_owned(),
                label,
                media_type: "application/pdf".to_owned(),
                size,
                created: "2026-01-01T00:00:00Z".to_owned(),
                replicas: vec!["one".to_owned(), "two".to_owned()],
                owed: Vec::new(),
                deleted: None,
                purged_after: None,
            };
            return json(StatusCode::CREATED, &file);
        }
        let id = id.trim_start_matches('/');
        match deeds.files.get(id) {
            Some(content) => file(method, id, content, headers, cut),
            None => {
                json(StatusCode::NOT_FOUND, &Problem::new(StatusCode::NOT_FOUND, "not_found", "no such file"))
            }
        }
    }
}

fn number(deeds: &mut Deeds, path: &str, key: Option<String>) -> Response<Body> {
    let key = key.unwrap_or_default();
    let next = deeds.numbers.len() as u64 + 1;
    let number = *deeds.numbers.entry(key.clone()).or_insert(next);
    if number == next {
        *deeds.acts.entry(key.clone()).or_default() += 1;
    }
    let series = path.split('/').nth(3).unwrap_or_default().to_owned();
    let state = if path.ends_with("/confirm") { NumberState::Confirmed } else { NumberState::Reserved };
    let entry_hash = "0".repeat(64);
    json(StatusCode::CREATED, &Number { state, ..Number::reserved(series, number, key, entry_hash) })
}

fn file(
    method: &Method,
    id: &str,
    content: &Bytes,
    headers: &HeaderMap,
    cut: Option<usize>,
) -> Response<Body> {
    let etag = format!("\"{id}\"");
    let whole = content.len();
    let mut response = Response::builder().header(header::ETAG, &etag).header(header::ACCEPT_RANGES, "bytes");
    let fresh = headers.get(header::IF_RANGE).is_none_or(|given| given == &etag);
    let asked = headers.get(header::RANGE).filter(|_| fresh).map(|range| range.to_str().unwrap().to_owned());
    let part = match asked.as_deref().and_then(|range| range.strip_prefix("bytes=")?.split_once('-')) {
        Some((first, last)) => {
            let first: usize = first.parse().unwrap();
            let last = last.parse().unwrap_or(whole - 1).min(whole - 1);
            response = response
                .status(StatusCode::PARTIAL_CONTENT)
                .header(header::CONTENT_RANGE, format!("bytes {first}-{last}/{whole}"));
            content.slice(first..=last)
        }
        None => content.clone(),
    };
    response = response.header(header::CONTENT_LENGTH, part.len());
    let part = if method == Method::HEAD { Bytes::new() } else { part };
    response.body(Piecewise { rest: part, cut_after: cut, flushed: false }.boxed_unsync()).unwrap()
}

/// A body in pieces of 16 KiB that may end in a cut.
struct Piecewise {
    rest: Bytes,
    cut_after: Option<usize>,
    flushed: bool,
}

impl hyper::body::Body for Piecewise {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let mut length = self.rest.len().min(16 << 10);
        if let Some(left) = self.cut_after {
            length = length.min(left);
            if length == 0 {
                // The server sends what it has while a body makes it wait: the head must be out.
                if !std::mem::replace(&mut self.flushed, true) {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                return Poll::Ready(Some(Err(io::Error::other("cut on demand"))));
            }
            self.cut_after = Some(left - length);
        }
        if length == 0 {
            return Poll::Ready(None);
        }
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(length)))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

fn refuse(code: &str) -> Response<Body> {
    let status = StatusCode::SERVICE_UNAVAILABLE;
    let mut response = json(status, &Problem::new(status, code, "refused on demand"));
    response.headers_mut().insert(header::RETRY_AFTER, 7.into());
    response
}

fn json<T: serde::Serialize>(status: StatusCode, value: &T) -> Response<Body> {
    let bytes = Bytes::from(serde_json::to_vec(value).unwrap());
    let body = http_body_util::Full::new(bytes).map_err(|never: Infallible| match never {}).boxed_unsync();
    Response::builder().status(status).header(header::CONTENT_TYPE, "application/json").body(body).unwrap()
}

/// Bytes that look like a document: the same for the same length.
pub(crate) fn noise(length: usize) -> Bytes {
    let mut state = 0x9e37_79b9_u32;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state.to_le_bytes()[0]
        })
        .collect()
}

/// SHA-256 in hex.
pub(crate) fn hash(content: &[u8]) -> String {
    Sha256::digest(content).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
