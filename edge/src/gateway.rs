//! Corridor 3: the handlers' one door to the vault pair. HTTP/1.1 on a Unix socket, or on
//! loopback with a token for each handler; what comes in goes to whichever vault answers.
//! Knows requests and bounds; must not know what a number, a file or a message means, nor which vault
//! is asked (that is the client in `shared::api`). It exists so that handlers need neither
//! certificates nor retries, and see nothing of tickets but their effect.

mod door;
mod intake;
mod paced;
mod reply;
mod socket;
pub mod tickets;
mod tokens;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry};
use shared::api::client::{self, Client, ClientError, VaultAddress, VaultState};
use shared::api::{IDEMPOTENCY_KEY, Problem, VAULT_TICKET};
use shared::config::ByteSize;
use shared::local_socket::LocalSocketError;
use shared::shutdown::Shutdown;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;

use self::intake::{Intake, IntakeFault};
use self::paced::Paced;
use self::reply::{Body, Refusal};
use self::socket::{Listener, Stream};
use self::tickets::{Tickets, TicketsError};
use self::tokens::Tokens;

/// `[gateway]`
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where handlers find it.
    pub listen: Address,
    /// One `name:token` a line; demanded for TCP.
    pub tokens_file: Option<PathBuf>,
    /// The group that may use the socket.
    pub socket_group: Option<String>,
    /// One or two.
    pub vaults: Vec<VaultAddress>,
    /// This edge's certificate, key and the authority's certificate.
    pub tls: shared::tls::Files,
    /// Largest request body that is kept for a retry.
    pub max_kept_body: ByteSize,
    /// Largest upload.
    pub max_file: ByteSize,
    /// What is kept of the keys that numbers were asked for.
    pub tickets: tickets::Settings,
}

/// Where the gateway listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A socket file.
    Unix(PathBuf),
    /// Loopback only.
    Tcp(SocketAddr),
}

/// What bounds the gateway beside its [`Settings`].
#[derive(Debug, Clone)]
pub struct Limits {
    /// Handlers' connections at a time; 256.
    pub connections: usize,
    /// A request's whole head, also the wait for the next one on a kept connection; 30 s.
    pub head: Duration,
    /// Without a byte moving towards or from a handler; 30 s.
    pub idle: Duration,
    /// One request from its head to the last byte of its answer; 1 h.
    pub total: Duration,
    /// How long requests under way may go on after the word to stop; 10 s.
    pub drain: Duration,
    /// A vault that nobody heard for so long is asked whether it lives; 10 s.
    pub probe: Duration,
    /// How long a key waits until its ticket is written down; then it goes out without; 1 s.
    pub ticket: Duration,
    /// The client's own.
    pub client: client::Limits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            head: Duration::from_secs(30),
            idle: Duration::from_secs(30),
            total: Duration::from_secs(3600),
            drain: Duration::from_secs(10),
            probe: Duration::from_secs(10),
            ticket: Duration::from_secs(1),
            client: client::Limits::default(),
        }
    }
}

/// Longest request head, bytes.
const MAX_HEAD: usize = 32 << 10;
/// Most header fields of a request.
const MAX_HEADERS: usize = 64;
/// Connections beyond the limit that are still told so, rather than dropped.
const TURNED_AWAY: usize = 32;
/// How often it is looked whether a vault is due for a probe.
const PROBE_TURN: Duration = Duration::from_secs(1);
/// Advice to a handler when the pair is out of reach.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why the gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// It carries no TLS, so it never leaves the host.
    #[error("gateway: {0}: is not loopback; set gateway.listen to a socket path, 127.0.0.1 or [::1]")]
    NotLoopback(SocketAddr),
    /// Every local user reaches a TCP port.
    #[error("gateway: {0}: TCP needs gateway.tokens_file, since every local user reaches the port")]
    TokensNeeded(SocketAddr),
    /// The tokens file cannot be read.
    #[error("gateway: {}: {source}; write one name:token a line", .file.display())]
    TokensUnreadable {
        /// The file.
        file: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A secret that is none.
    #[error("gateway: {}: is readable by every user; chmod 640 it", .0.display())]
    TokensOpen(PathBuf),
    /// A line of it is wrong.
    #[error("gateway: {}:{line}: {why}", .file.display())]
    Tokens {
        /// The file.
        file: PathBuf,
        /// 1-based; 0 for the whole file.
        line: usize,
        /// What is wrong and what to write.
        why: &'static str,
    },
    /// The Unix socket.
    #[error("gateway: {0} (gateway.listen)")]
    Socket(#[from] LocalSocketError),
    /// The group for the socket is unknown.
    #[error("gateway: group {group:?}: {why}; create it or change gateway.socket_group")]
    Group {
        /// As configured.
        group: String,
        /// Unknown, or not to be looked up.
        why: String,
    },
    /// The socket cannot be made or given its mode and group.
    #[error("gateway: {at}: {what}: {source}")]
    Bind {
        /// Path or address.
        at: String,
        /// The step.
        what: &'static str,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The vaults or the certificate files.
    #[error("gateway: {0}")]
    Client(#[from] ClientError),
    /// Tickets could not be kept; told by `edge check` alone, edge itself starts without.
    #[error("gateway: tickets: {0}")]
    Tickets(#[from] TicketsError),
    /// The thread that writes tickets.
    #[error("gateway: the tickets' thread does not start: {0}; raise the limit of tasks")]
    Thread(#[source] std::io::Error),
    /// The metrics are already there: two gateways in one process.
    #[error("gateway: metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// What the gateway last heard of each vault, and how its tickets are; cheap to clone, asks nobody.
#[derive(Clone)]
pub struct Vaults(Client, Tickets);

impl Vaults {
    /// Each vault's last word, in the configured order.
    #[must_use]
    pub fn states(&self) -> Vec<VaultState> {
        self.0.vaults()
    }

    /// Does at least one answer?
    #[must_use]
    pub fn any_up(&self) -> bool {
        self.states().iter().any(|vault| vault.up)
    }

    /// How the tickets' store is, in words.
    #[must_use]
    pub fn tickets(&self) -> String {
        self.1.words()
    }
}

/// A gateway that has its socket and waits to be run.
pub struct Gateway {
    listener: Listener,
    room: Arc<Room>,
}

/// What every request needs.
struct Room {
    client: Client,
    tickets: Tickets,
    tokens: Option<Tokens>,
    requests: IntCounterVec,
    max_kept: usize,
    max_file: u64,
    limits: Limits,
}

/// Opens the gateway and runs it with the usual limits until `shutdown`. The task ends when
/// the last request is answered or the drain time is over. Cancel `shutdown` only after the
/// requests that need the gateway are through.
///
/// # Errors
/// As [`Gateway::open`].
pub async fn start(
    settings: Settings,
    registry: &Registry,
    shutdown: Shutdown,
) -> Result<JoinHandle<()>, GatewayError> {
    let gateway = Gateway::open(settings, Limits::default(), registry).await?;
    Ok(tokio::spawn(gateway.run(shutdown)))
}

/// Why [`Gateway::open`] would fail now, certificate files aside; opens its socket and closes it again.
pub async fn faults(settings: &Settings) -> Vec<GatewayError> {
    let mut faults = Vec::new();
    faults.extend(settings.tokens_file.as_deref().and_then(|file| Tokens::read(file).err()));
    match Listener::bind(&settings.listen, settings.socket_group.as_deref()).await {
        Ok(listener) => drop(listener),
        Err(error) => faults.push(error),
    }
    faults.extend(tickets::fault(&settings.tickets).map(GatewayError::Tickets));
    faults
}

impl Gateway {
    /// Reads the files, registers the metrics and takes the socket. Needs no vault to be up.
    ///
    /// # Errors
    /// The address, the tokens, the socket, the certificate files or the metrics.
    pub async fn open(settings: Settings, limits: Limits, registry: &Registry) -> Result<Self, GatewayError> {
        if let Address::Tcp(address) = settings.listen {
            if !address.ip().is_loopback() {
                return Err(GatewayError::NotLoopback(address));
            }
            if settings.tokens_file.is_none() {
                return Err(GatewayError::TokensNeeded(address));
            }
        }
        let tokens = settings.tokens_file.as_deref().map(Tokens::read).transpose()?;
        let client = Client::with_limits(settings.vaults, settings.tls, limits.client.clone())?;
        let tickets = Tickets::start(settings.tickets, limits.ticket, registry)?;
        let client = client.with_tickets(Arc::new(tickets.clone()));
        let requests = IntCounterVec::new(
            Opts::new("edge_gateway_requests_total", "Handlers' requests by class of answer"),
            &["class"],
        )?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(PairGauges::new(client.clone())?))?;
        let listener = Listener::bind(&settings.listen, settings.socket_group.as_deref()).await?;
        let (max_kept, max_file) = (settings.max_kept_body.as_usize(), settings.max_file.0);
        let room = Room { client, tickets, tokens, requests, max_kept, max_file, limits };
        Ok(Self { listener, room: Arc::new(room) })
    }

    /// For readiness reports.
    #[must_use]
    pub fn vaults(&self) -> Vaults {
        Vaults(self.room.client.clone(), self.room.tickets.clone())
    }

    /// Where it listens: the path, or the address with the port that was given.
    #[must_use]
    pub fn address(&self) -> &Address {
        self.listener.address()
    }

    /// Serves handlers until `shutdown`, then finishes what is under way.
    pub async fn run(self, shutdown: Shutdown) {
        let Self { listener, room } = self;
        let tasks = TaskTracker::new();
        let cut = Shutdown::new();
        let places = Arc::new(Semaphore::new(room.limits.connections));
        let turned_away = Arc::new(Semaphore::new(TURNED_AWAY));
        tasks.spawn(keep_probing(room.client.clone(), room.limits.probe, shutdown.clone()));
        tasks.spawn(end_doubts(room.client.clone(), room.tickets.clone(), shutdown.clone()));
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::warn!("gateway: cannot accept: {error}; goes on in a moment");
                    sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let (place, busy) = match Arc::clone(&places).try_acquire_owned() {
                Ok(place) => (place, false),
                Err(_) => match Arc::clone(&turned_away).try_acquire_owned() {
                    Ok(place) => (place, true),
                    Err(_) => continue,
                },
            };
            let (room, shutdown, cut) = (Arc::clone(&room), shutdown.clone(), cut.clone());
            tasks.spawn(async move {
                tokio::select! {
                    () = connection(stream, room, busy, shutdown) => {}
                    () = cut.cancelled() => {}
                }
                drop(place);
            });
        }
        drop(listener);
        tasks.close();
        if timeout(room.limits.drain, tasks.wait()).await.is_err() {
            tracing::warn!("gateway: {} connections cut after {:?}", tasks.len(), room.limits.drain);
            cut.cancel();
            tasks.wait().await;
        }
        room.tickets.end().await;
    }
}

async fn keep_probing(client: Client, silent_for: Duration, shutdown: Shutdown) {
    let probing = async {
        loop {
            client.probe(silent_for).await;
            sleep(PROBE_TURN).await;
        }
    };
    tokio::select! {
        () = probing => {}
        () = shutdown.cancelled() => {}
    }
}

/// While the tickets' store waits for it, asks the vaults whether they are together.
async fn end_doubts(client: Client, tickets: Tickets, shutdown: Shutdown) {
    use client::Tickets as _;
    let asking = async {
        loop {
            // Told before the vaults are asked: what they say counts for what was doubted by then.
            if let Some(doubt) = tickets.doubt()
                && client.are_together().await
            {
                tickets.were_together(doubt);
            }
            sleep(PROBE_TURN).await;
        }
    };
    tokio::select! {
        () = asking => {}
        () = shutdown.cancelled() => {}
    }
}

async fn connection(stream: Stream, room: Arc<Room>, busy: bool, shutdown: Shutdown) {
    let limits = room.limits.clone();
    let service = service_fn(move |request| {
        let room = Arc::clone(&room);
        async move { Ok::<_, Infallible>(room.answer(request, busy).await) }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .keep_alive(!busy);
    let serving = builder.serve_connection(TokioIo::new(Paced::new(stream, limits.idle)), service);
    tokio::pin!(serving);
    let done = tokio::select! {
        done = &mut serving => done,
        () = shutdown.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = done {
        tracing::debug!("gateway: a handler's connection ended: {error}");
    }
}

impl Room {
    async fn answer(&self, request: Request<Incoming>, busy: bool) -> Response<Body> {
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        let mut handler = None;
        let answered = if busy {
            let what = format!("all {} connections are in use; repeat the call", self.limits.connections);
            Err(Refusal::later("gateway_busy", what, RETRY_AFTER))
        } else {
            match self.admit(&request, &mut handler) {
                Ok(()) => timeout(self.limits.total, self.forward(request)).await.unwrap_or_else(|_| {
                    let what = "the call took longer than the gateway allows; repeat it with its key";
                    Err(Refusal::later("too_late", what, RETRY_AFTER))
                }),
                Err(refusal) => Err(refusal),
            }
        };
        let (response, why) = match answered {
            Ok(response) => (response, None),
            Err(refusal) => {
                let why = refusal.to_string();
                (refusal.into_response(), Some(why))
            }
        };
        let status = response.status();
        self.requests.with_label_values(&[reply::class(status)]).inc();
        if why.is_some() || status.is_server_error() {
            let handler = handler.unwrap_or("-");
            let why = why.unwrap_or_else(|| "the vault's own refusal".to_owned());
            tracing::warn!(%method, ?path, handler, status = status.as_u16(), "gateway: call failed: {why}");
        }
        response
    }

    /// Known handler, known path, known method?
    fn admit<'r>(
        &'r self,
        request: &Request<Incoming>,
        handler: &mut Option<&'r str>,
    ) -> Result<(), Refusal> {
        if let Some(tokens) = &self.tokens {
            let given = request.headers().get(header::AUTHORIZATION);
            *handler = Some(tokens.holder(given.map(HeaderValue::as_bytes)).ok_or_else(Refusal::no_token)?);
        }
        if request.headers().contains_key(VAULT_TICKET) {
            return Err(Refusal::ticket());
        }
        door::admit(request.method(), request.uri().path())
    }

    async fn forward(&self, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
        let (mut parts, body) = request.into_parts();
        let waits = parts.headers.contains_key(header::EXPECT);
        let is_file = door::is_file(parts.uri.path());
        parts.headers = door::inward(&parts.headers);
        if matches!(parts.method, Method::POST | Method::PUT) && !parts.headers.contains_key(IDEMPOTENCY_KEY)
        {
            let key = client::fresh_key().ok().and_then(|key| HeaderValue::try_from(key).ok());
            parts.headers.insert(IDEMPOTENCY_KEY, key.ok_or_else(Refusal::internal)?);
        }
        let key = parts.headers.get(IDEMPOTENCY_KEY).cloned();
        let most = if is_file { self.max_file } else { self.max_kept as u64 };
        let intake = Intake::new(body, most, self.limits.idle);
        let body = match intake.take(self.max_kept).await {
            Ok(body) => body,
            Err(fault) => {
                intake.drain(waits).await;
                let kept = matches!(fault, IntakeFault::TooLarge(_)) && !is_file;
                return Err(if kept { Refusal::kept(fault) } else { Refusal::of_intake(fault) });
            }
        };
        let uri = parts.uri.path_and_query().cloned();
        let mut outward = Request::new(body);
        *outward.method_mut() = parts.method;
        *outward.uri_mut() = uri.map_or_else(|| parts.uri.clone(), http::Uri::from);
        *outward.headers_mut() = parts.headers;
        let called = self.client.call(outward).await;
        // An answer before the body's end would be lost with the connection otherwise.
        intake.drain(waits).await;
        match called {
            Ok(response) => Ok(reply::outward(response, key.as_ref(), self.limits.total)),
            Err(error) => Err(self.refusal(&error, intake.fault(), key.as_ref())),
        }
    }

    fn refusal(&self, error: &ClientError, fault: Option<IntakeFault>, key: Option<&HeaderValue>) -> Refusal {
        let refusal = match error {
            ClientError::BrokenSource(_) => {
                return Refusal::of_intake(fault.unwrap_or(IntakeFault::Broken));
            }
            ClientError::ForeignTicket => return Refusal::ticket(),
            ClientError::Unreachable(_) => {
                let what = "no vault answered; nothing is lost, repeat with the same Idempotency-Key";
                Refusal::later("vaults_unreachable", what, RETRY_AFTER)
            }
            ClientError::BrokenUpload { .. } => {
                let what = "the vault broke off in the middle of the body; \
                            repeat with the same Idempotency-Key";
                Refusal::later("upload_broken", what, RETRY_AFTER)
            }
            _ => Refusal::new(Problem::new(
                StatusCode::BAD_GATEWAY,
                "vault_failed",
                "the vault's answer cannot be passed on; the operator finds the cause in edge's log",
            )),
        };
        refusal.because(error.to_string()).with_key(key)
    }
}

/// The pair as Prometheus sees it, read off the client when asked.
struct PairGauges {
    client: Client,
    failovers: IntCounter,
    up: IntGaugeVec,
}

impl PairGauges {
    fn new(client: Client) -> Result<Self, prometheus::Error> {
        let failovers =
            IntCounter::new("edge_gateway_failovers_total", "Calls that went on at another vault")?;
        let up = IntGaugeVec::new(
            Opts::new("edge_gateway_vault_up", "1 if the vault answered last time"),
            &["vault"],
        )?;
        Ok(Self { client, failovers, up })
    }
}

impl Collector for PairGauges {
    fn desc(&self) -> Vec<&Desc> {
        self.failovers.desc().into_iter().chain(self.up.desc()).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.failovers.reset();
        self.failovers.inc_by(self.client.failovers());
        for vault in self.client.vaults() {
            self.up.with_label_values(&[&vault.name]).set(i64::from(vault.up));
        }
        self.failovers.collect().into_iter().chain(self.up.collect()).collect()
    }
}
