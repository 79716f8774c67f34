//! One vault of the pair: its idle connections, whether it answers, and one exchange with it.
//! Not which vault to ask: that is `turns`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Version, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::body::{Lent, Load, Outgoing};
use super::identity::Identity;
use super::ticket::{Life, life_of};
use super::{ClientError, Head, Limits, Transport, VaultAddress, VaultState};
use crate::api::LifeAnswer;
use crate::retry::Backoff;

/// Longest head of an answer; ours are far below.
const MAX_HEAD: usize = 64 << 10;
/// Longest answer to the question which life it is.
const MAX_LIFE: usize = 4 << 10;

pub(super) struct Vault {
    pub(super) name: String,
    address: std::net::SocketAddr,
    server_name: ServerName<'static>,
    host: HeaderValue,
    identity: Arc<Identity>,
    limits: Arc<Limits>,
    idle: Mutex<Vec<Idle>>,
    health: Mutex<Health>,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

struct Health {
    backoff: Backoff,
    suspended: Option<Suspension>,
    heard: Option<Instant>,
    why: Option<String>,
}

/// A vault that failed goes last for a while.
#[derive(Clone, Copy)]
struct Suspension {
    since: Instant,
    until: Instant,
}

/// An open connection; dropping it closes it.
pub(super) struct Connection {
    sender: SendRequest<Outgoing>,
    generation: u64,
    /// What is known of the process at the other end, which is one and the same for as long as
    /// the connection stands.
    life: Heard,
    _driver: AbortOnDropHandle<()>,
}

/// Whether a vault has told its life.
#[derive(Debug, Clone, Copy)]
enum Heard {
    NotAsked,
    /// It answers and does not say: a vault that knows no lives.
    Nothing,
    Life(Life),
}

/// How long an exchange may take until the answer's head.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// Unconditionally.
    pub(super) first: Duration,
    /// Further, while the vault still takes connections.
    pub(super) alive: Duration,
}

impl Vault {
    pub(super) fn new(
        vault: VaultAddress,
        identity: Arc<Identity>,
        limits: Arc<Limits>,
    ) -> Result<Self, ClientError> {
        let bad = || ClientError::VaultName(vault.name.clone());
        let server_name = ServerName::try_from(vault.name.clone()).map_err(|_| bad())?;
        let host = HeaderValue::try_from(vault.name.as_str()).map_err(|_| bad())?;
        let backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(5));
        let health = Health { backoff, suspended: None, heard: None, why: Some("not asked yet".to_owned()) };
        Ok(Self {
            name: vault.name,
            address: vault.address,
            server_name,
            host,
            identity,
            limits,
            idle: Mutex::default(),
            health: Mutex::new(health),
        })
    }

    /// A connection whose vault has told its life, if it does; a kept one if there is one.
    pub(super) async fn introduced(self: &Arc<Self>, within: Duration) -> Result<Connection, Transport> {
        let work = async {
            if let Some(connection) = self.take_idle() {
                match self.introduce(connection).await {
                    Err(Transport::Lost(error)) if !error.is_parse() => {
                        tracing::debug!(vault = self.name, %error, "kept connection was closed; trying a fresh one");
                    }
                    done => return done,
                }
            }
            self.introduce(self.connect().await?).await
        };
        timeout(within, work).await.unwrap_or(Err(Transport::AnswerTimeout(within)))
    }

    async fn introduce(&self, connection: Connection) -> Result<Connection, Transport> {
        if !matches!(connection.life, Heard::NotAsked) {
            return Ok(connection);
        }
        // The header says it; whatever the status, there is no body.
        let request = self.request(&life_call(Method::HEAD), &Load::Kept(Bytes::new()));
        let (_, mut connection) = send(connection, request).await?;
        connection.sender.ready().await.map_err(Transport::Lost)?;
        Ok(connection)
    }

    /// Does it make sure now that both vaults are together? No answer is no.
    pub(super) async fn is_together(self: &Arc<Self>) -> bool {
        let within = self.limits.attempt;
        let patience = Patience { first: within, alive: Duration::ZERO };
        let asking = async {
            let none = Load::Kept(Bytes::new());
            let asked = self.exchange(&life_call(Method::GET), &none, patience, None).await;
            let (response, connection) = asked.ok()?;
            let body = Limited::new(response.into_body(), MAX_LIFE).collect().await.ok()?.to_bytes();
            connection.give_back(self);
            serde_json::from_slice::<LifeAnswer>(&body).ok()
        };
        timeout(within, asking).await.ok().flatten().is_some_and(|answer| answer.together)
    }

    /// One exchange until the answer's head, on `opened` or a kept connection if there is one. One
    /// that turns out closed is replaced at once; a body that cannot be repeated never risks it.
    pub(super) async fn exchange(
        self: &Arc<Self>,
        head: &Head,
        load: &Load,
        patience: Patience,
        opened: Option<Connection>,
    ) -> Result<(Response<Incoming>, Connection), Transport> {
        match load {
            Load::Kept(_) => self.exchange_kept(head, load, patience, opened).await,
            Load::Streamed(lent) => {
                let connection = self.connect().await?;
                self.watched(lent, send(connection, self.request(head, load))).await
            }
        }
    }

    async fn exchange_kept(
        self: &Arc<Self>,
        head: &Head,
        load: &Load,
        patience: Patience,
        opened: Option<Connection>,
    ) -> Result<(Response<Incoming>, Connection), Transport> {
        let work = async {
            if let Some(connection) = opened.or_else(|| self.take_idle()) {
                match send(connection, self.request(head, load)).await {
                    Err(Transport::Lost(error)) if !error.is_parse() => {
                        tracing::debug!(vault = self.name, %error, "kept connection was closed; trying a fresh one");
                    }
                    done => return done,
                }
            }
            send(self.connect().await?, self.request(head, load)).await
        };
        let (half, late) = (sleep(patience.first / 2), sleep(patience.first));
        tokio::pin!(work, half, late);
        tokio::select! {
            done = &mut work => return done,
            () = &mut half => {}
        }
        // Dead or slow? Only a vault whose process runs finishes a handshake.
        if !patience.alive.is_zero() {
            tokio::select! {
                done = &mut work => return done,
                probed = timeout(patience.first / 2, self.connect()) => if let Ok(Ok(connection)) = probed {
                    connection.give_back(self);
                    let all = patience.first + patience.alive;
                    return timeout(patience.alive, work).await.unwrap_or(Err(Transport::AnswerTimeout(all)));
                }
            }
        }
        tokio::select! {
            done = &mut work => done,
            () = &mut late => Err(Transport::AnswerTimeout(patience.first)),
        }
    }

    /// Waits for an exchange with a streamed body as long as it moves.
    async fn watched<T>(
        &self,
        lent: &Lent,
        exchange: impl Future<Output = Result<T, Transport>>,
    ) -> Result<T, Transport> {
        tokio::pin!(exchange);
        let mut seen = 0;
        loop {
            if let Ok(done) = timeout(self.limits.idle, &mut exchange).await {
                return done;
            }
            let frames = lent.frames();
            if frames == seen {
                return Err(Transport::Stalled(self.limits.idle));
            }
            seen = frames;
        }
    }

    /// TCP, TLS and HTTP, within the connect deadline.
    async fn connect(&self) -> Result<Connection, Transport> {
        let deadline = self.limits.connect;
        timeout(deadline, self.dial()).await.unwrap_or(Err(Transport::ConnectTimeout(deadline)))
    }

    async fn dial(&self) -> Result<Connection, Transport> {
        let current = self.identity.current().await;
        let tcp = TcpStream::connect(self.address).await.map_err(Transport::Connect)?;
        tcp.set_nodelay(true).map_err(Transport::Connect)?;
        let tls = TlsConnector::from(current.config)
            .connect(self.server_name.clone(), tcp)
            .await
            .map_err(Transport::Handshake)?;
        let (sender, driver) = http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .handshake(TokioIo::new(tls))
            .await
            .map_err(Transport::Lost)?;
        let name = self.name.clone();
        let driver = tokio::spawn(async move {
            if let Err(error) = driver.await {
                tracing::debug!(vault = name, %error, "connection ended");
            }
        });
        let driver = AbortOnDropHandle::new(driver);
        Ok(Connection { sender, generation: current.generation, life: Heard::NotAsked, _driver: driver })
    }

    fn request(&self, head: &Head, load: &Load) -> Request<Outgoing> {
        let mut request = Request::new(load.lend());
        *request.method_mut() = head.method.clone();
        *request.uri_mut() = http::Uri::from(head.path.clone());
        *request.version_mut() = Version::HTTP_11;
        *request.headers_mut() = head.headers.clone();
        request.headers_mut().insert(header::HOST, self.host.clone());
        request
    }

    /// The kept connection used last, if it still looks sound.
    fn take_idle(&self) -> Option<Connection> {
        let generation = self.identity.generation();
        let now = Instant::now();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(Idle { connection, since }) = idle.pop() {
            let young = now.duration_since(since) <= self.limits.pooled_for;
            if young && connection.generation == generation && connection.sender.is_ready() {
                return Some(connection);
            }
        }
        None
    }

    fn put_idle(&self, connection: Connection) {
        let now = Instant::now();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|kept| {
            now.duration_since(kept.since) <= self.limits.pooled_for && !kept.connection.sender.is_closed()
        });
        if idle.len() >= self.limits.pooled && !idle.is_empty() {
            idle.remove(0);
        }
        if self.limits.pooled > 0 {
            idle.push(Idle { connection, since: now });
        }
    }

    /// It answered, whatever it said.
    pub(super) fn answered(&self) {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        if health.why.take().is_some() {
            tracing::info!(vault = self.name, "vault answers");
        }
        health.backoff.reset();
        health.suspended = None;
        health.heard = Some(Instant::now());
    }

    /// It did not; it goes last for a while.
    pub(super) fn failed(&self, why: &Transport) {
        // What is kept open leads to the same dead end.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        if health.suspended.is_none() {
            tracing::warn!(vault = self.name, "vault does not answer: {why}; the other is asked first");
        }
        let pause = health.backoff.next(jitter());
        let since = Instant::now();
        health.suspended = Some(Suspension { since, until: since + pause });
        health.why = Some(why.to_string());
    }

    /// Since when it goes last, if it does.
    pub(super) fn suspended_since(&self, now: Instant) -> Option<Instant> {
        let health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        health.suspended.filter(|suspension| now < suspension.until).map(|suspension| suspension.since)
    }

    pub(super) fn is_suspended(&self, now: Instant) -> bool {
        self.suspended_since(now).is_some()
    }

    pub(super) fn state(&self) -> VaultState {
        let health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        VaultState { name: self.name.clone(), up: health.why.is_none(), why: health.why.clone() }
    }

    pub(super) fn wants_probe(&self, now: Instant, silent_for: Duration) -> bool {
        let health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        match (health.suspended, health.heard) {
            (Some(suspension), _) => now >= suspension.until,
            (None, None) => true,
            (None, Some(heard)) => now.duration_since(heard) >= silent_for,
        }
    }

    /// Asks for nothing but a connection, and keeps it.
    pub(super) async fn probe(self: &Arc<Self>) {
        match self.connect().await {
            Ok(connection) => {
                self.answered();
                connection.give_back(self);
            }
            Err(why) => self.failed(&why),
        }
    }
}

impl Connection {
    /// The life of the vault at its other end, if that has told it.
    pub(super) fn life(&self) -> Option<Life> {
        match self.life {
            Heard::Life(life) => Some(life),
            Heard::NotAsked | Heard::Nothing => None,
        }
    }

    /// Gives the connection back once the exchange on it is over: a moment after the answer's
    /// last byte, when the driver is ready for another.
    pub(super) fn give_back(mut self, vault: &Arc<Vault>) {
        let vault = Arc::clone(vault);
        tokio::spawn(async move {
            if let Ok(Ok(())) = timeout(vault.limits.connect, self.sender.ready()).await {
                vault.put_idle(self);
            }
        });
    }
}

fn life_call(method: Method) -> Head {
    Head { method, path: PathAndQuery::from_static("/v1/life"), headers: HeaderMap::new() }
}

async fn send(
    mut connection: Connection,
    request: Request<Outgoing>,
) -> Result<(Response<Incoming>, Connection), Transport> {
    let response = connection.sender.send_request(request).await.map_err(Transport::Lost)?;
    connection.life = life_of(response.headers()).map_or(Heard::Nothing, Heard::Life);
    Ok((response, connection))
}

/// Where in its step a pause falls. Without randomness every host pauses alike, which is
/// no reason to fail.
fn jitter() -> u32 {
    let mut bits = [0_u8; 4];
    let filled = rustls::crypto::ring::default_provider().secure_random.fill(&mut bits);
    if filled.is_ok() { u32::from_ne_bytes(bits) } else { u32::MAX / 2 }
}
