//! Reader of `[listen]` and `[[listener]]`: the addresses that clients reach and what is spoken there.
//! Knows keys, defaults and what makes sense; must not open anything.

use std::net::SocketAddr;

use shared::config::{ByteSize, Section};

use super::Listen;
use super::addresses::Taken;
use super::sections::{count, size, time};

/// Most header lines that pingora's parser takes.
const MAX_HEADERS: usize = 256;

/// One address that clients reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    /// Where.
    pub address: SocketAddr,
    /// What is spoken there.
    pub mode: Mode,
    /// Every connection begins with a PROXY header, and trusted proxies alone may connect.
    pub proxy: bool,
}

/// What a listener speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// TLS, HTTP/1.1 and HTTP/2.
    Tls,
    /// HTTP/1.1 in clear; everything is sent to HTTPS.
    Redirect,
    /// HTTP/1.1 in clear, served as over TLS.
    Clear,
}

impl Listener {
    /// A listener that speaks `mode` to clients themselves.
    #[must_use]
    pub const fn new(address: SocketAddr, mode: Mode) -> Self {
        Self { address, mode, proxy: false }
    }
}

pub(super) fn listen(
    mut section: Section<'_>,
    mut more: Vec<Section<'_>>,
    certificates: usize,
    trusted: bool,
    taken: &mut Taken,
) -> Listen {
    let s = &mut section;
    let (mut listeners, https_empty) = addresses(s, "https", "listen.https", Mode::Tls, taken);
    let (redirecting, http_empty) = addresses(s, "http", "listen.http", Mode::Redirect, taken);
    listeners.extend(redirecting);
    let written = s.has("https") || s.has("http");
    match (https_empty, http_empty) {
        _ if !more.is_empty() => {}
        (true, true) if !written => {
            s.fault("https", "nothing is listened on; write https = [\"0.0.0.0:8443\", \"[::]:8443\"]")
        }
        (true, true) if !s.has("https") => {
            s.fault("http", "nothing is listened on; write https = [\"0.0.0.0:8443\"] too")
        }
        (true, true) => s.fault("https", "nothing is listened on; write [\"0.0.0.0:8443\", \"[::]:8443\"]"),
        (true, false) => s.fault("http", "only redirects to HTTPS; write https = [\"0.0.0.0:8443\"] too"),
        _ => {}
    }
    if !https_empty && certificates == 0 {
        s.fault("https", "has no certificate to show; write a [[certificate]] section");
    }
    let read: Vec<_> = more.iter_mut().map(|one| listener(one, certificates, trusted, taken)).collect();
    // A faulty one may have been meant to serve.
    let serves = |one: &Option<Listener>| one.is_none_or(|one| one.mode != Mode::Redirect);
    if let Some(first) = more.first_mut().filter(|_| https_empty && !read.iter().any(serves)) {
        first.fault("mode", "only redirects to HTTPS; write https = [\"0.0.0.0:8443\"] in [listen], too");
    }
    listeners.extend(read.into_iter().flatten());
    let max_head = size(s, "max_head", ByteSize::kib(32), ByteSize::kib(1), ByteSize::mib(1));
    let max_uri = size(s, "max_uri", ByteSize::kib(8), ByteSize(64), ByteSize::mib(1));
    if max_uri > max_head {
        s.fault("max_uri", format!("{max_uri} cannot come in a head of {max_head}; write at most max_head"));
    }
    let max_headers = count(s, "max_headers", 100_usize);
    if max_headers > MAX_HEADERS {
        s.fault(
            "max_headers",
            format!("{max_headers} is more than the parser takes; write at most {MAX_HEADERS}"),
        );
    }
    Listen {
        listeners,
        max_connections: count(s, "max_connections", 8192),
        handshake_timeout: time(s, "handshake_timeout", 10),
        head_timeout: time(s, "head_timeout", 10),
        idle_timeout: time(s, "idle_timeout", 60),
        body_timeout: time(s, "body_timeout", 30),
        write_timeout: time(s, "write_timeout", 30),
        min_rate: s.or("min_rate", ByteSize(512)),
        max_head,
        max_headers,
        max_uri,
        h2_streams: count(s, "h2_streams", 100),
        // Nothing is a fair wish here: stop at once.
        drain: s.or("drain", std::time::Duration::from_secs(30)),
    }
}

/// One `[[listener]]`; `None` after noting what is wrong.
fn listener(s: &mut Section<'_>, certificates: usize, trusted: bool, taken: &mut Taken) -> Option<Listener> {
    let address: Option<String> = s.required("address");
    let address = address.and_then(|text| address_of(s, "address", &text));
    if let Some(address) = address {
        taken.take_tcp(s, "address", "listener.address", address);
    }
    let proxy = s.or("proxy", false);
    if proxy && !trusted {
        s.fault("proxy", "nobody may write the header; write the load balancer into clients.trusted_proxies");
    }
    let mode = match s.required::<String>("mode")?.as_str() {
        "tls" => Mode::Tls,
        "redirect" => Mode::Redirect,
        "clear" => Mode::Clear,
        other => {
            s.fault(
                "mode",
                format!("{other:?} is nothing to speak; write \"tls\", \"redirect\" or \"clear\""),
            );
            return None;
        }
    };
    if mode == Mode::Tls && certificates == 0 {
        s.fault("mode", "has no certificate to show; write a [[certificate]] section");
    }
    Some(Listener { proxy, ..Listener::new(address?, mode) })
}

fn address_of(s: &mut Section<'_>, key: &'static str, text: &str) -> Option<SocketAddr> {
    let address = text.parse().ok();
    if address.is_none() {
        s.fault(key, format!("{text:?} is no address with port; write \"0.0.0.0:8443\" or \"[::]:8443\""));
    }
    address
}

/// The listeners of a list of addresses, and whether none was even written: a faulty one is its own
/// fault only.
fn addresses(
    s: &mut Section<'_>,
    key: &'static str,
    owner: &str,
    mode: Mode,
    taken: &mut Taken,
) -> (Vec<Listener>, bool) {
    let written: Vec<String> = s.list(key);
    let mut listeners = Vec::new();
    for text in &written {
        if let Some(address) = address_of(s, key, text) {
            taken.take_tcp(s, key, owner, address);
            listeners.push(Listener::new(address, mode));
        }
    }
    (listeners, written.is_empty())
}
