//! One client connection's state that both sides of the engine see: the stream below it and the
//! request phases above it. Knows counters and addresses; must not know bytes or routes. It exists
//! because the engine between them passes on neither whose turn it is nor why it refused something.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use crate::client::Client;
use crate::listen::head::Fault;
use crate::listen::live::{Busy, Presence};

/// Shared by the stream and the request phases of one connection.
#[derive(Debug)]
pub struct Connection {
    /// The socket's other end.
    pub peer: SocketAddr,
    /// The client there, unless it is a trusted proxy that speaks for others.
    pub client: Client,
    address: OnceLock<String>,
    /// Over TLS, and not in clear.
    pub secure: bool,
    /// Its part in the list of live connections.
    pub presence: Presence,
    h2: AtomicBool,
    turns: AtomicU32,
    heads: AtomicU32,
    phases: AtomicU32,
    tunnel: AtomicBool,
    fault: OnceLock<Fault>,
}

impl Connection {
    /// A connection that was just accepted.
    #[must_use]
    pub fn new(peer: SocketAddr, secure: bool, presence: Presence) -> Self {
        Self {
            peer,
            client: Client::new(peer.ip()),
            address: OnceLock::new(),
            secure,
            presence,
            h2: AtomicBool::new(false),
            turns: AtomicU32::new(0),
            heads: AtomicU32::new(0),
            phases: AtomicU32::new(0),
            tunnel: AtomicBool::new(false),
            fault: OnceLock::new(),
        }
    }

    /// The client's address as headers say it, put into words for its first request.
    #[must_use]
    pub fn address(&self) -> &str {
        self.address.get_or_init(|| self.client.address.to_string())
    }

    /// How the client's own addresses begin, as far as this connection tells: RFC 9110 section 4.2.
    #[must_use]
    pub const fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }

    /// The handshake chose HTTP/2.
    pub(crate) fn speaks_h2(&self) {
        self.h2.store(true, Ordering::Release);
    }

    /// Does the client speak HTTP/2?
    #[must_use]
    pub fn is_h2(&self) -> bool {
        self.h2.load(Ordering::Acquire)
    }

    /// The engine asks for the next request.
    pub fn next_turn(&self) {
        self.turns.fetch_add(1, Ordering::AcqRel);
    }

    /// How many requests the engine has asked for.
    #[must_use]
    pub fn turns(&self) -> u32 {
        self.turns.load(Ordering::Acquire)
    }

    /// The engine was handed that many heads so far.
    pub(crate) fn heads_released(&self, heads: u32) {
        self.heads.store(heads, Ordering::Release);
    }

    /// The request phases have begun for one request; they end in its line in the log. The
    /// connection is busy while the answer lives.
    pub fn phases_began(self: &Arc<Self>) -> Busy {
        self.phases.fetch_add(1, Ordering::AcqRel);
        Busy::new(self)
    }

    /// Requests whose phases have begun.
    #[must_use]
    pub fn phases(&self) -> u32 {
        self.phases.load(Ordering::Acquire)
    }

    /// HTTP/1 heads that the engine was handed and refused without starting the phases.
    #[must_use]
    pub fn refused_by_engine(&self) -> u32 {
        self.heads.load(Ordering::Acquire).saturating_sub(self.phases())
    }

    /// Another protocol from here on: bytes pass unread.
    pub fn become_tunnel(&self) {
        self.tunnel.store(true, Ordering::Release);
    }

    /// Do bytes pass unread?
    #[must_use]
    pub fn is_tunnel(&self) -> bool {
        self.tunnel.load(Ordering::Acquire)
    }

    /// The gate found a fault in the middle of a body; the phases report it.
    pub(crate) fn broke(&self, fault: Fault) {
        let _ = self.fault.set(fault);
    }

    /// What the gate found in the middle of a body.
    #[must_use]
    pub fn fault(&self) -> Option<Fault> {
        self.fault.get().copied()
    }
}
