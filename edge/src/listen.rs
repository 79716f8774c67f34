//! Sockets, PROXY headers, TLS and deadlines → a connection that the HTTP engine may see. Knows addresses,
//! limits and the bytes of a request's head; must not know routes, upstreams or what a request
//! means. Each thread has its own listener on every address (SO_REUSEPORT), so that the threads
//! share nothing on the way of a request.

pub mod answer;
pub mod body;
pub mod connection;
pub mod floods;
pub mod frames;
pub mod gate;
pub mod head;
pub mod io;
pub mod live;
pub mod pace;
pub mod proxy_header;
pub mod redirect;
pub mod report;
pub mod socket;
pub mod stream;
pub mod uploads;
pub mod wire;
mod worker;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::IntGauge;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::admission::{self, Banned, Denied, Rates};
use crate::client::Client;
use crate::config::{Listen, Listener, Mode};
use connection::Connection;
use live::{Busy, Connections, Full, Listed};
use redirect::Redirect;
use report::Report;

use wire::Wire;

pub use worker::{AsyncServe, Sockets, run};

/// Why edge cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address cannot be had.
    #[error("listen: {address}: {what}: {source}; free the port or change it in [listen] or [[listener]]")]
    Socket {
        /// As configured.
        address: SocketAddr,
        /// The step that failed.
        what: &'static str,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
}

/// What all threads share on the way to a connection.
#[derive(Debug)]
pub struct Door {
    /// `[listen]`
    pub settings: Listen,
    /// Where events go that never become a request.
    pub report: Report,
    /// Plain HTTP is sent to HTTPS by it.
    pub redirect: Redirect,
    /// Who lives here now.
    pub connections: Arc<Connections>,
    banned: Arc<Banned>,
    rates: Arc<Rates>,
    tls: Tls,
    open: AtomicUsize,
}

struct Tls(TlsAcceptor);

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

impl Door {
    /// A door that nobody has passed yet. Who is `banned` does not; who has, is in `connections`. Plain
    /// requests are held to `rates`.
    #[must_use]
    pub fn new(
        settings: Listen,
        tls: TlsAcceptor,
        redirect: Redirect,
        report: Report,
        connections: Arc<Connections>,
        banned: Arc<Banned>,
        rates: Arc<Rates>,
    ) -> Arc<Self> {
        let (tls, open) = (Tls(tls), AtomicUsize::new(0));
        Arc::new(Self { settings, report, redirect, connections, banned, rates, tls, open })
    }

    /// Client connections open now.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Counts a connection in, or closes it at once: its client is banned, the cap is reached, or it shall
    /// begin with a PROXY header and comes from nobody who may write one.
    fn arrive(self: &Arc<Self>, tcp: TcpStream, peer: SocketAddr, listener: Listener) -> Option<Arrival> {
        let wire = Wire::new(tcp);
        // The cheap look first: this is where a flood of a banned client ends.
        if self.is_banned(peer) {
            self.turned_away(&wire, "banned");
            return None;
        }
        if listener.proxy && !self.connections.trusts(peer) {
            self.turned_away(&wire, "proxy_header");
            self.report.turned_away(peer, "PROXY", "PROXY header: only trusted proxies may connect here");
            return None;
        }
        let most = self.settings.max_connections;
        let counted = self
            .open
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |open| (open < most).then_some(open + 1));
        if counted.is_err() {
            self.report.metrics().rejected.with_label_values(&["connections"]).inc();
            return None;
        }
        let gauge = self.report.metrics().connections.clone();
        gauge.inc();
        Some(Arrival { wire, peer, place: Place { door: Arc::clone(self), gauge } })
    }

    /// Lists a connection as its client's, or closes it at once: its client is banned, or has too many.
    fn enter(&self, arrival: Arrival, mode: Mode) -> Option<Entered> {
        let Arrival { wire, peer, place } = arrival;
        let entered = self.connections.enter(peer, mode == Mode::Tls, &wire);
        let (listed, busy) = match entered {
            Ok(entered) => entered,
            Err(Full) => {
                self.turned_away(&wire, "client_connections");
                let why = "too many connections at once from this address";
                self.report.turned_away(peer, "TCP", why);
                return None;
            }
        };
        // Who bans cuts what is listed afterwards: a ban since the first look is seen by one of us.
        if self.is_banned(peer) {
            self.turned_away(&wire, "banned");
            return None;
        }
        Some(Entered { wire, busy, listed, place })
    }

    /// A trusted proxy is not judged by its own address: each request is by its client's.
    fn is_banned(&self, peer: SocketAddr) -> bool {
        !self.banned.is_empty()
            && self.banned.holds(peer.ip(), seconds_now())
            && !self.connections.trusts(peer)
    }

    /// May who asks over this plain connection be answered, and so soon? Whom a trusted proxy asks for
    /// is not known here, and all of them together are no offender.
    fn let_in(&self, connection: &Connection) -> Result<(), Denied> {
        if connection.presence.is_trusted() {
            return Ok(());
        }
        admission::let_in(&self.banned, &self.rates, Client::new(connection.peer.ip()), seconds_now())
    }

    fn turned_away(&self, wire: &Wire, why: &str) {
        self.report.metrics().rejected.with_label_values(&[why]).inc();
        wire.reset();
    }
}

/// What bans are measured by: the time since the epoch; a clock before it stands still.
#[expect(clippy::disallowed_methods, reason = "the corridors ask whether a ban has ended")]
pub(crate) fn wall_clock() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The same in whole seconds.
pub(crate) fn seconds_now() -> u64 {
    wall_clock().as_secs()
}

/// A connection that is counted and not yet known to be anybody's.
#[derive(Debug)]
struct Arrival {
    wire: Wire,
    /// The socket's other end, or whom a PROXY header names.
    peer: SocketAddr,
    place: Place,
}

/// A connection that may go on to its handshake.
#[derive(Debug)]
struct Entered {
    wire: Wire,
    /// Until the handshake is done.
    busy: Busy,
    listed: Listed,
    place: Place,
}

/// One connection's place below the cap; leaves it on drop.
#[derive(Debug)]
struct Place {
    door: Arc<Door>,
    gauge: IntGauge,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.door.open.fetch_sub(1, Ordering::AcqRel);
        self.gauge.dec();
    }
}
