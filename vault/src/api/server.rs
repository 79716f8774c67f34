//! The sockets: accepts, proves who calls by mTLS, and hands on. HTTP goes to the router,
//! the peer's link to the pair; the control socket and the health listener live beside them.
//! Decides nothing about what callers ask.

mod certificates;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use prometheus::Registry;
use rustls::pki_types::CertificateDer;
use shared::local_socket::{LocalSocket, LocalSocketError};
use shared::shutdown::Shutdown;
use shared::tls::{Identity, Role};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::task::TaskTracker;
use x509_parser::prelude::FromDer;

use super::admin::{self, Readiness};
use super::connection::{End, Limits, Origin, Session, Validity};
use super::enrol::wall_clock;
use super::metrics::{Metrics, Reason};
use crate::config;
use crate::pki::Pki;
pub use certificates::Certificates;

/// ALPN of the API.
pub const HTTP: &[u8] = b"http/1.1";
/// ALPN of the pair's own link.
pub const PAIR: &[u8] = b"vault-pair/1";

/// Connections without a certificate (enrolment) at once; they must not crowd out the rest.
const UNKNOWN_AT_ONCE: usize = 32;
/// Operators' connections at once, and as many probes.
const LOCAL_AT_ONCE: usize = 64;
/// After TERM, what is under way may finish within this time.
const DRAIN: Duration = Duration::from_secs(10);
/// The timer's own limit is about two years; a session this old may as well dial again.
const LONGEST_SESSION: Duration = Duration::from_secs(365 * 86_400);
/// When the system has no more sockets, trying at once would only burn the processor.
const OUT_OF_SOCKETS: Duration = Duration::from_millis(100);

/// Where verified connections of the peer go. Whoever takes one owns it, and must watch
/// [`Pki::revocations`] itself.
pub type PairAcceptor = mpsc::Sender<(TlsStream<TcpStream>, Identity)>;

/// The pair's door: connections of ALPN [`PAIR`], from the peer alone.
#[derive(Debug, Clone)]
pub struct PairDoor {
    /// The peer's name; its certificate must have role vault.
    pub peer: String,
    /// Who takes them. A full queue closes the connection; the peer dials again.
    pub acceptor: PairAcceptor,
}

/// Why the API cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// An address is taken or not ours.
    #[error("{key} = {address}: cannot be listened on: {source}; is another vault running?")]
    Listen {
        /// The configuration key.
        key: &'static str,
        /// Its value.
        address: SocketAddr,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The control socket.
    #[error(transparent)]
    Control(#[from] LocalSocketError),
}

/// The three listeners, open. Nothing is accepted before [`Server::run`].
#[derive(Debug)]
pub struct Bound {
    tls: TcpListener,
    admin: TcpListener,
    control: LocalSocket,
}

impl Bound {
    /// Opens all of them. The TLS address comes first: of two vaults started at once on one
    /// host it stops the second.
    ///
    /// # Errors
    /// Taken addresses, or the control socket's folder.
    pub async fn bind(api: &config::Api) -> Result<Self, ServerError> {
        let listen = |key, address| async move {
            let listening = TcpListener::bind(address).await;
            listening.map_err(|source| ServerError::Listen { key, address, source })
        };
        Ok(Self {
            tls: listen("api.listen", api.listen).await?,
            admin: listen("api.admin", api.admin).await?,
            control: LocalSocket::bind(&api.control_socket, None).await?,
        })
    }

    /// Where the API really listens (with port 0 the system has chosen).
    ///
    /// # Errors
    /// The system's.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.tls.local_addr()
    }

    /// Where health and metrics really listen.
    ///
    /// # Errors
    /// The system's.
    pub fn admin_address(&self) -> io::Result<SocketAddr> {
        self.admin.local_addr()
    }
}

/// What the listeners serve.
pub struct Server {
    /// Limits.
    pub api: config::Api,
    /// Every route, from [`super::router`].
    pub router: Router,
    /// Who is revoked.
    pub pki: Pki,
    /// This vault's own certificate.
    pub certificates: Arc<Certificates>,
    /// The peer's link; without it such connections are closed.
    pub pair: Option<PairDoor>,
    /// What is counted here; the same as the router's.
    pub metrics: Metrics,
    /// What `/metrics` shows.
    pub registries: Vec<Registry>,
    /// What `/readyz` answers by.
    pub readiness: Readiness,
}

impl Server {
    /// Serves until `shutdown`, then lets what is under way finish for ten seconds.
    pub async fn run(self, bound: Bound, shutdown: Shutdown) {
        let readiness = self.readiness.clone();
        let listening = Arc::new(Listening {
            admin: admin::routes(self.readiness, self.registries),
            router: self.router,
            pki: self.pki,
            certificates: self.certificates,
            pair: self.pair,
            metrics: self.metrics,
            limits: Limits::new(self.api.head_timeout, self.api.idle_timeout),
            unknown: Arc::new(Semaphore::new(UNKNOWN_AT_ONCE)),
            sessions: TaskTracker::new(),
            drain: shutdown.clone(),
            stop: Shutdown::new(),
        });
        readiness.serving();
        let most = self.api.max_connections.clamp(1, Semaphore::MAX_PERMITS);
        let loops = async {
            tokio::join!(
                listening.accept_callers(&bound.tls, most),
                listening.accept_probes(&bound.admin),
                listening.accept_operators(&bound.control),
            )
        };
        tokio::select! {
            _ = loops => {}
            () = shutdown.cancelled() => {}
        }
        readiness.draining();
        // Closed sockets refuse new callers at once, so that they turn to the other vault.
        drop(bound);
        listening.sessions.close();
        if tokio::time::timeout(DRAIN, listening.sessions.wait()).await.is_err() {
            tracing::warn!(
                "api: {} connections were not done within {DRAIN:?}; closed",
                listening.sessions.len()
            );
            listening.stop.cancel();
            listening.sessions.wait().await;
        }
    }
}

struct Listening {
    admin: Router,
    router: Router,
    pki: Pki,
    certificates: Arc<Certificates>,
    pair: Option<PairDoor>,
    metrics: Metrics,
    limits: Limits,
    unknown: Arc<Semaphore>,
    sessions: TaskTracker,
    drain: Shutdown,
    stop: Shutdown,
}

impl Listening {
    async fn accept_callers(self: &Arc<Self>, listener: &TcpListener, most: usize) {
        let room = Arc::new(Semaphore::new(most));
        loop {
            let (socket, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    refused_by_the_system("api.listen", &error).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&room).try_acquire_owned() else {
                self.metrics.refused(Reason::Limit);
                tracing::warn!("api: connection from {from} closed: {most} are open (api.max_connections)");
                continue;
            };
            let this = Arc::clone(self);
            self.sessions.spawn(async move { this.caller(socket, from, place).await });
        }
    }

    async fn caller(&self, socket: TcpStream, from: SocketAddr, place: OwnedSemaphorePermit) {
        let _ = socket.set_nodelay(true);
        let acceptor = TlsAcceptor::from(self.certificates.current());
        let handshake = tokio::time::timeout(self.limits.head, acceptor.accept(socket));
        let stream = tokio::select! {
            shaken = handshake => match shaken {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return self.refuse(Reason::Handshake, from, &format!("TLS: {error}")),
                Err(_) => return self.refuse(Reason::Handshake, from, "TLS: the handshake took too long"),
            },
            () = self.drain.cancelled() => return,
        };
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let (caller, left) = match shown {
            None => (None, Duration::ZERO),
            Some(certificate) => match Identity::of(certificate) {
                Ok(identity) => (Some(identity), time_left(certificate)),
                Err(error) => return self.refuse(Reason::Identity, from, &error.to_string()),
            },
        };
        // Subscribed before looking, so that a revocation in between is not missed.
        let revocations = self.pki.revocations();
        if let Some(Identity { role, owner, name, serial }) = &caller
            && self.pki.is_revoked(serial)
        {
            let what = format!("certificate {serial} of {role} {owner}/{name} is revoked");
            return self.refuse(Reason::Revoked, from, &what);
        }
        if stream.get_ref().1.alpn_protocol() == Some(PAIR) {
            return self.peer(stream, caller, from);
        }
        let _unknown = match &caller {
            Some(_) => None,
            None => match self.unknown.try_acquire() {
                Ok(place) => Some(place),
                Err(_) => return self.refuse(Reason::Limit, from, "too many callers without a certificate"),
            },
        };
        self.metrics.connections.inc();
        let validity = caller.is_some().then_some(Validity { revocations, left });
        let who = caller
            .as_ref()
            .map_or_else(|| "nobody".to_owned(), |c| format!("{} {}/{}", c.role, c.owner, c.name));
        let end = self.session(self.router.clone(), caller, from.to_string(), validity).serve(stream).await;
        self.metrics.connections.dec();
        drop(place);
        match end {
            End::Closed => {}
            End::Failed(error) if error.is_parse() => {
                tracing::info!("api: connection of {who} at {from} closed: malformed HTTP: {error}");
            }
            End::Failed(error) => tracing::debug!("api: connection of {who} at {from} ended: {error}"),
            End::Revoked | End::Expired => {
                self.metrics.cut.inc();
                let why = if matches!(end, End::Revoked) { "revoked" } else { "too old" };
                tracing::warn!("api: live session of {who} at {from} cut: its certificate is {why}");
            }
        }
    }

    /// The connection is the pair's from here on, and takes no place of the callers'.
    fn peer(&self, stream: TlsStream<TcpStream>, caller: Option<Identity>, from: SocketAddr) {
        let Some(door) = &self.pair else {
            return self.refuse(Reason::Pair, from, "this vault has no pair link");
        };
        match caller {
            Some(peer) if peer.role == Role::Vault && peer.name == door.peer => {
                if door.acceptor.try_send((stream, peer)).is_err() {
                    self.refuse(Reason::Pair, from, "the pair link is busy or stopped; the peer dials again");
                }
            }
            _ => self.refuse(Reason::Pair, from, "only the configured peer may use the pair link"),
        }
    }

    async fn accept_probes(self: &Arc<Self>, listener: &TcpListener) {
        let room = Arc::new(Semaphore::new(LOCAL_AT_ONCE));
        loop {
            let (socket, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    refused_by_the_system("api.admin", &error).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&room).try_acquire_owned() else { continue };
            let session = self.session(self.admin.clone(), None, from.to_string(), None);
            self.sessions.spawn(async move {
                session.serve(socket).await;
                drop(place);
            });
        }
    }

    async fn accept_operators(self: &Arc<Self>, socket: &LocalSocket) {
        let room = Arc::new(Semaphore::new(LOCAL_AT_ONCE));
        loop {
            let stream = match socket.accept().await {
                Ok(stream) => stream,
                Err(error) => {
                    refused_by_the_system("api.control_socket", &error).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&room).try_acquire_owned() else { continue };
            let operator = Identity {
                role: Role::Admin,
                owner: "control".to_owned(),
                name: "control".to_owned(),
                serial: String::new(),
            };
            let origin = "control socket".to_owned();
            let session = self.session(self.router.clone(), Some(operator), origin, None);
            self.sessions.spawn(async move {
                session.serve(stream).await;
                drop(place);
            });
        }
    }

    fn session(
        &self,
        router: Router,
        caller: Option<Identity>,
        origin: String,
        validity: Option<Validity>,
    ) -> Session {
        let (drain, stop) = (self.drain.clone(), self.stop.clone());
        Session { router, caller, origin: Origin(origin), validity, limits: self.limits, drain, stop }
    }

    fn refuse(&self, reason: Reason, from: SocketAddr, why: &str) {
        self.metrics.refused(reason);
        tracing::info!("api: connection from {from} refused: {}", super::for_log(why));
    }
}

/// Accepting fails when descriptors run out; that passes, and must not end the loop.
async fn refused_by_the_system(key: &str, error: &io::Error) {
    tracing::warn!("api: {key}: accepting failed: {error}; trying again");
    tokio::time::sleep(OUT_OF_SOCKETS).await;
}

/// How long a verified certificate is still good.
fn time_left(certificate: &CertificateDer<'_>) -> Duration {
    let Ok((_, parsed)) = x509_parser::certificate::X509Certificate::from_der(certificate) else {
        return Duration::ZERO;
    };
    let until = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or_default();
    let now = wall_clock().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default();
    Duration::from_secs(until).saturating_sub(now).min(LONGEST_SESSION)
}
