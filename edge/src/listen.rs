//! Sockets, TLS and deadlines → a connection that the HTTP engine may see. Knows addresses,
//! limits and the bytes of a request's head; must not know routes, upstreams or what a request
//! means. Each thread has its own listener on every address (SO_REUSEPORT), so that the threads
//! share nothing on the way of a request.

pub mod answer;
pub mod body;
pub mod connection;
pub mod frames;
pub mod gate;
pub mod head;
pub mod redirect;
pub mod report;
pub mod socket;
pub mod stream;
pub mod uploads;
mod worker;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use prometheus::IntGauge;
use tokio_rustls::TlsAcceptor;

use crate::config::Listen;
use redirect::Redirect;
use report::Report;

pub use worker::{AsyncServe, Sockets, run};

/// Why edge cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address cannot be had.
    #[error("listen: {address}: {what}: {source}; free the port or change listen.https / listen.http")]
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
    /// A door that nobody has passed yet.
    #[must_use]
    pub fn new(settings: Listen, tls: TlsAcceptor, redirect: Redirect, report: Report) -> Arc<Self> {
        Arc::new(Self { settings, report, redirect, tls: Tls(tls), open: AtomicUsize::new(0) })
    }

    /// Client connections open now.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Counts a connection in, or refuses it where the cap is reached.
    fn enter(self: &Arc<Self>) -> Option<Place> {
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
        Some(Place { door: Arc::clone(self), gauge })
    }
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
