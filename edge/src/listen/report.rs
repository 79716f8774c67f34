//! Writes down what never becomes a request: handshakes that fail, heads that the gate refuses,
//! streams that the engine refuses. Knows the access log and the counters; must not decide anything.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::access_log::{AccessLog, Entry};
use crate::admission::Denied;
use crate::listen::connection::Connection;
use crate::listen::head::{self, Fault};
use crate::metrics::Metrics;

/// One line and one count for each event.
#[derive(Clone)]
pub struct Report {
    access_log: AccessLog,
    metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Report")
    }
}

impl Report {
    /// Writes to these.
    #[must_use]
    pub const fn new(access_log: AccessLog, metrics: Arc<Metrics>) -> Self {
        Self { access_log, metrics }
    }

    /// The counters, for what is counted and not logged.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// A handshake that came to nothing.
    pub fn handshake_failed(&self, peer: SocketAddr, why: &str, took: Duration) {
        self.metrics.handshake_failures.inc();
        self.access_log.record(Entry {
            reason: Some(format!("handshake: {why}")),
            duration: took,
            ..entry(peer, "TLS", 0)
        });
    }

    /// A connection that was closed before a byte of its own was taken; `protocol` is what it failed at.
    pub fn turned_away(&self, peer: SocketAddr, protocol: &'static str, why: &str) {
        let reason = Some(why.to_owned());
        self.access_log.record(Entry { reason, ..entry(peer, protocol, 0) });
    }

    /// A head that was refused; `held` is what had arrived of it.
    pub fn malformed(&self, connection: &Connection, fault: Fault, held: &[u8], took: Duration) {
        self.metrics.malformed.inc();
        self.metrics.answered(fault.status(), took);
        let (method, target) = head::first_line(held);
        self.access_log.record(Entry {
            method,
            target,
            reason: Some(fault.to_string()),
            duration: took,
            cross_site: fault.is_of_size(),
            scheme: connection.scheme(),
            ..entry(connection.peer, "HTTP/1.1", fault.status())
        });
    }

    /// An HTTP/1 request that the engine refused on its own.
    pub fn refused_by_engine(&self, connection: &Connection) {
        self.metrics.malformed.inc();
        self.access_log.record(Entry {
            reason: Some("refused by the HTTP engine".to_owned()),
            scheme: connection.scheme(),
            ..entry(connection.peer, "HTTP/1.1", 400)
        });
    }

    /// An HTTP/2 stream or connection that ended with an error before any request came of it.
    /// `large`: for a head of about the size that is allowed, as any page can make a browser send.
    pub fn broken_h2(&self, peer: SocketAddr, reason: String, large: bool) {
        self.metrics.malformed.inc();
        let reason = Some(reason);
        let scheme = "https";
        self.access_log.record(Entry { reason, cross_site: large, scheme, ..entry(peer, "HTTP/2.0", 400) });
    }

    /// An HTTP/2 connection that was ended because its client sent too many frames of one kind.
    pub fn flooded(&self, peer: SocketAddr, kind: &'static str) {
        self.metrics.floods.with_label_values(&[kind]).inc();
        self.broken_h2(peer, format!("flood of {kind} frames"), false);
    }

    /// A plain request that was answered with a redirect, or refused one.
    pub fn redirected(&self, connection: &Connection, answer: Redirected<'_>, took: Duration) {
        self.metrics.answered(answer.status, took);
        if let Some(denied) = answer.denied {
            self.metrics.rejected.with_label_values(&[denied.label()]).inc();
        }
        self.access_log.record(Entry {
            method: answer.method.to_owned(),
            target: answer.target.as_bytes().to_vec(),
            host: answer.host.to_owned(),
            duration: took,
            // In clear no browser says whose page asked.
            cross_site: true,
            reason: answer.denied.map(Denied::reason),
            spared: matches!(answer.denied, Some(Denied::TooFast { visitor: true, .. })),
            scheme: connection.scheme(),
            ..entry(connection.peer, if answer.one_one { "HTTP/1.1" } else { "HTTP/1.0" }, answer.status)
        });
    }
}

/// What is logged of a redirect.
#[derive(Debug, Clone, Copy)]
pub struct Redirected<'r> {
    /// As sent.
    pub method: &'r str,
    /// As sent.
    pub target: &'r str,
    /// As sent.
    pub host: &'r str,
    /// HTTP/1.1 and not 1.0.
    pub one_one: bool,
    /// 301 or 308; 429 where it was refused.
    pub status: u16,
    /// Why it was refused.
    pub denied: Option<Denied>,
}

fn entry(peer: SocketAddr, protocol: &'static str, status: u16) -> Entry {
    Entry {
        at: wall_clock(),
        client: unmapped(peer.ip()),
        method: String::new(),
        target: Vec::new(),
        protocol,
        scheme: "",
        host: String::new(),
        status,
        bytes: 0,
        duration: Duration::ZERO,
        referer: Vec::new(),
        user_agent: Vec::new(),
        upstream: None,
        reason: None,
        request_id: String::new(),
        cross_site: false,
        spared: false,
    }
}

fn unmapped(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

#[expect(clippy::disallowed_methods, reason = "this corridor stamps its log lines")]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}
