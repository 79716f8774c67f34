//! One reader a section of `edge.toml`. Knows keys, defaults and what makes sense; must not
//! open anything.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use shared::api::client::VaultAddress;
use shared::config::{ByteSize, Section};
use shared::tls::{Files, is_name};

use super::addresses::Taken;
use super::{CertificateFiles, Clients, Listen};
use crate::access_log;
use crate::gateway;
use crate::route::{HostPattern, Route, Routes, checked_path, host_of};
use crate::upstream::{self, Server};

/// Most header lines that pingora's parser takes.
const MAX_HEADERS: usize = 256;
/// Queue places are set aside at start; more than this is memory wasted on a dead disk.
const MAX_LOG_QUEUE: usize = 65_536;
/// One thread a core is best; this is only a guard against a slip of the finger.
const MAX_THREADS: usize = 1024;

/// What a list of sections gave: all of it, and the part that others check against even
/// where something in it is faulty.
pub(super) struct Upstreams {
    pub(super) read: Option<Vec<upstream::Settings>>,
    pub(super) names: BTreeSet<String>,
}

/// The certificates, and how many sections there are.
pub(super) struct Certificates {
    pub(super) read: Option<Vec<CertificateFiles>>,
    pub(super) count: usize,
}

/// A key that holds a host name without port, in lower case.
pub(super) fn host_name(section: &mut Section<'_>, key: &'static str) -> Option<String> {
    let written: String = section.required(key)?;
    match HostPattern::parse(&written) {
        Ok(HostPattern::Exact(name)) => Some(name),
        _ => {
            section.fault(key, format!("{written:?} is no host name; write one such as \"www.example.org\""));
            None
        }
    }
}

pub(super) fn direct_name(root: &mut Section<'_>, name: Option<&str>) -> Option<String> {
    if !root.has("direct_name") {
        return None;
    }
    let direct = host_name(root, "direct_name");
    if direct.is_some() && direct.as_deref() == name {
        root.fault(
            "direct_name",
            "is the cluster's name; write this host's own, such as \"www1.example.org\"",
        );
    }
    direct
}

pub(super) fn threads(root: &mut Section<'_>) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = root.or("threads", cores);
    if !(1..=MAX_THREADS).contains(&threads) {
        root.fault(
            "threads",
            format!("{threads} is out of range; write 1 to {MAX_THREADS}, or leave it out: one a core"),
        );
    }
    threads
}

pub(super) fn listen(mut section: Section<'_>, certificates: usize, taken: &mut Taken) -> Listen {
    let s = &mut section;
    let https: Vec<SocketAddr> = s.list("https");
    let http: Vec<SocketAddr> = s.list("http");
    for address in &https {
        taken.take_tcp(s, "https", "listen.https", *address);
    }
    for address in &http {
        taken.take_tcp(s, "http", "listen.http", *address);
    }
    let written = s.has("https") || s.has("http");
    match (https.is_empty(), http.is_empty()) {
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
    if !https.is_empty() && certificates == 0 {
        s.fault("https", "has no certificate to show; write a [[certificate]] section");
    }
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
        https,
        http,
        max_connections: count(s, "max_connections", 8192),
        handshake_timeout: time(s, "handshake_timeout", 10),
        head_timeout: time(s, "head_timeout", 10),
        idle_timeout: time(s, "idle_timeout", 60),
        body_timeout: time(s, "body_timeout", 30),
        write_timeout: time(s, "write_timeout", 30),
        max_head,
        max_headers,
        max_uri,
        h2_streams: count(s, "h2_streams", 100),
        // Nothing is a fair wish here: stop at once.
        drain: s.or("drain", Duration::from_secs(30)),
    }
}

pub(super) fn certificates(root: &mut Section<'_>) -> Certificates {
    let mut seen = BTreeSet::new();
    let mut defaults = 0;
    let mut sections = root.sections("certificate");
    let count = sections.len();
    let read: Option<Vec<CertificateFiles>> = sections
        .iter_mut()
        .map(|s| {
            let names = certificate_names(s, &mut seen);
            let certificate = s.required("certificate_file");
            let key = s.required("key_file");
            let default = s.or("default", count == 1);
            defaults += usize::from(default);
            if default && defaults > 1 {
                s.fault("default", "another certificate is the default already; write true at one only");
            }
            Some(CertificateFiles { names: names?, certificate: certificate?, key: key?, default })
        })
        .collect::<Vec<_>>()
        .into_iter()
        .collect();
    if let (0, Some(first)) = (defaults, sections.first_mut()) {
        let what = match count {
            1 => "clients that send no name need the one certificate; write true, or leave it out",
            _ => {
                "no certificate is the default; write default = true at the one for clients that send no name"
            }
        };
        first.fault("default", what);
    }
    Certificates { read, count }
}

fn certificate_names(s: &mut Section<'_>, seen: &mut BTreeSet<String>) -> Option<Vec<String>> {
    let written: Vec<String> = s.list("names");
    if written.is_empty() {
        s.fault(
            "names",
            "says for which names; write names = [\"www.example.org\"], or with \"*.example.org\"",
        );
        return None;
    }
    let mut names = Vec::new();
    for name in &written {
        match HostPattern::parse(name) {
            Ok(pattern @ (HostPattern::Exact(_) | HostPattern::Below(_))) => {
                let name = pattern.to_string();
                if !seen.insert(name.clone()) {
                    s.fault("names", format!("{name:?} has a certificate already; write it once"));
                }
                names.push(name);
            }
            _ => s.fault(
                "names",
                format!("{name:?} is no host name; write \"www.example.org\" or \"*.example.org\""),
            ),
        }
    }
    (names.len() == written.len()).then_some(names)
}

pub(super) fn clients(mut section: Section<'_>) -> Clients {
    let s = &mut section;
    let max_in_flight = count(s, "max_in_flight", 50_u32);
    let trusted_proxies: Vec<IpNet> = s.list("trusted_proxies");
    for network in trusted_proxies.iter().filter(|network| network.prefix_len() == 0) {
        s.fault(
            "trusted_proxies",
            format!("\"{network}\" lets every client choose its own address; write your proxies' networks"),
        );
    }
    let retry_after = s.or("retry_after", Duration::from_secs(1));
    if retry_after.is_zero() || retry_after.subsec_nanos() != 0 {
        s.fault("retry_after", "goes out as whole seconds; write \"1s\" or more");
    }
    Clients { max_in_flight, trusted_proxies, retry_after }
}

pub(super) fn upstreams(root: &mut Section<'_>, taken: &Taken) -> Upstreams {
    let mut names = BTreeSet::new();
    let read = root
        .sections("upstream")
        .into_iter()
        .map(|mut section| {
            let s = &mut section;
            let name = name(s, "name");
            if let Some(name) = &name
                && !names.insert(name.clone())
            {
                s.fault("name", format!("{name:?} is an upstream already; write another name"));
            }
            let servers = servers(s, taken);
            let connect_timeout = time(s, "connect_timeout", 3);
            let fail_timeout = time(s, "fail_timeout", 10);
            Some(upstream::Settings { name: name?, servers: servers?, connect_timeout, fail_timeout })
        })
        .collect::<Vec<_>>()
        .into_iter()
        .collect();
    Upstreams { read, names }
}

fn servers(s: &mut Section<'_>, taken: &Taken) -> Option<Vec<Server>> {
    const EXAMPLE: &str = "write \"127.0.0.1:9000\" or \"unix:/run/app.sock\"";
    let written: Vec<String> = s.list("servers");
    if written.is_empty() {
        s.fault("servers", "says where it listens; write servers = [\"127.0.0.1:9000\"]");
        return None;
    }
    let mut servers = Vec::new();
    for text in &written {
        let Some(server) = server(text) else {
            s.fault("servers", format!("{text:?} is no server; {EXAMPLE}"));
            continue;
        };
        let taker = match &server {
            Server::Tcp(address) => taken.tcp_taker(*address),
            Server::Unix(path) => taken.socket_taker(path),
        };
        if let Some(taker) = taker {
            s.fault(
                "servers",
                format!("{text:?} is {taker} of this very edge; write where the application listens"),
            );
        }
        if servers.contains(&server) {
            s.fault("servers", format!("{text:?} stands here twice; write it once"));
        }
        servers.push(server);
    }
    (servers.len() == written.len()).then_some(servers)
}

fn server(text: &str) -> Option<Server> {
    match text.strip_prefix("unix:").map(PathBuf::from) {
        Some(path) => path.is_absolute().then_some(Server::Unix(path)),
        None => text.parse().ok().filter(|address: &SocketAddr| address.port() != 0).map(Server::Tcp),
    }
}

pub(super) fn routes(root: &mut Section<'_>, upstreams: &BTreeSet<String>) -> Option<Vec<Route>> {
    let mut seen: Vec<(HostPattern, String)> = Vec::new();
    let sections = root.sections("route");
    if sections.is_empty() {
        root.fault("route", "missing, so every request would be answered 404; write a [[route]] section");
    }
    sections
        .into_iter()
        .map(|mut section| {
            let s = &mut section;
            let host = route_host(s);
            let path_prefix = route_path(s);
            let upstream = route_upstream(s, upstreams);
            if let (Some(host), Some(path)) = (&host, &path_prefix) {
                if seen.iter().any(|(other, prefix)| other == host && Routes::same_prefix(prefix, path)) {
                    s.fault(
                        "path_prefix",
                        format!(
                            "{path:?} for host \"{host}\" has a route already; write another path or host"
                        ),
                    );
                }
                seen.push((host.clone(), path.clone()));
            }
            // 0 B is a fair wish: this route takes no bodies.
            let max_body = s.or("max_body", ByteSize::mib(64));
            let timeout = time(s, "timeout", 60);
            Some(Route { host: host?, path_prefix: path_prefix?, upstream: upstream?, max_body, timeout })
        })
        .collect::<Vec<_>>()
        .into_iter()
        .collect()
}

fn route_host(s: &mut Section<'_>) -> Option<HostPattern> {
    let written = s.or("host", "*".to_owned());
    let pattern = HostPattern::parse(&written).ok();
    if pattern.is_none() {
        let hint = match host_of(&written) {
            Ok(name) if written.contains(':') => format!("a route is for every port; write \"{name}\""),
            _ => "write \"www.example.org\", \"*.example.org\" or \"*\"".to_owned(),
        };
        s.fault("host", format!("{written:?} is no host; {hint}"));
    }
    pattern
}

fn route_path(s: &mut Section<'_>) -> Option<String> {
    let written = s.or("path_prefix", "/".to_owned());
    match checked_path(written.as_bytes()) {
        Ok(_) => Some(written),
        Err(why) => {
            s.fault(
                "path_prefix",
                format!("{written:?} is no path: {why}; write \"/\" or one such as \"/api\""),
            );
            None
        }
    }
}

fn route_upstream(s: &mut Section<'_>, known: &BTreeSet<String>) -> Option<String> {
    let name: String = s.required("upstream")?;
    if known.contains(&name) {
        return Some(name);
    }
    let hint = match known.is_empty() {
        true => format!("write an [[upstream]] section with name = {name:?}"),
        false => format!(
            "write one of {}",
            known.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
        ),
    };
    s.fault("upstream", format!("there is no upstream {name:?}; {hint}"));
    None
}

pub(super) fn access_log(mut section: Section<'_>) -> Option<access_log::Settings> {
    let s = &mut section;
    let enabled = s.or("enabled", true);
    let file = s.or("file", PathBuf::from("/var/log/edge/access.log"));
    let written = s.or("format", "combined".to_owned());
    let format = match written.as_str() {
        "combined" => Some(access_log::Format::Combined),
        "json" => Some(access_log::Format::Json),
        other => {
            s.fault("format", format!("{other:?} is no format; write \"combined\" or \"json\""));
            None
        }
    };
    let queue = count(s, "queue", 4096);
    if queue > MAX_LOG_QUEUE {
        s.fault(
            "queue",
            format!("{queue} lines would only hide a disk that cannot follow; write at most {MAX_LOG_QUEUE}"),
        );
    }
    Some(access_log::Settings { file: enabled.then_some(file), format: format?, queue })
}

pub(super) fn admin(mut section: Section<'_>, taken: &mut Taken) -> (SocketAddr, PathBuf) {
    let s = &mut section;
    let listen = s.or("listen", SocketAddr::from(([127, 0, 0, 1], 8444)));
    taken.take_tcp(s, "listen", "admin.listen", listen);
    let control = s.or("control_socket", PathBuf::from("/run/edge/control.sock"));
    taken.take_socket(s, "control_socket", "admin.control_socket", &control);
    (listen, control)
}

pub(super) fn gateway(mut section: Section<'_>, taken: &mut Taken) -> Option<gateway::Settings> {
    let s = &mut section;
    let listen = gateway_address(s, taken);
    let tokens_file: Option<PathBuf> = s.optional("tokens_file");
    let socket_group: Option<String> = s.optional("socket_group");
    match &listen {
        Some(gateway::Address::Tcp(_)) => {
            if !s.has("tokens_file") {
                s.fault("tokens_file", "missing: over TCP any user of this host could call; write tokens_file = \"/etc/edge/gateway.tokens\", or listen on \"unix:/run/edge/gateway.sock\"");
            }
            if s.has("socket_group") {
                s.fault(
                    "socket_group",
                    "is for a unix socket; leave it out, tokens_file says who may call over TCP",
                );
            }
        }
        Some(gateway::Address::Unix(_)) if s.has("tokens_file") => {
            s.fault("tokens_file", "is for TCP; leave it out, socket_group says who may use a unix socket");
        }
        _ => {}
    }
    let vaults = vaults(s);
    let tls = tls(s);
    let max_kept_body = size(s, "max_kept_body", ByteSize::mib(1), ByteSize(0), ByteSize::mib(16));
    let max_file = size(s, "max_file", ByteSize::gib(4), ByteSize(1), ByteSize(u64::MAX));
    Some(gateway::Settings {
        listen: listen?,
        tokens_file,
        socket_group,
        vaults: vaults?,
        tls,
        max_kept_body,
        max_file,
    })
}

fn gateway_address(s: &mut Section<'_>, taken: &mut Taken) -> Option<gateway::Address> {
    const EXAMPLE: &str = "write \"unix:/run/edge/gateway.sock\"";
    let written = s.or("listen", "unix:/run/edge/gateway.sock".to_owned());
    if let Some(path) = written.strip_prefix("unix:").map(PathBuf::from) {
        taken.take_socket(s, "listen", "gateway.listen", &path);
        return Some(gateway::Address::Unix(path));
    }
    let Ok(address) = written.parse::<SocketAddr>() else {
        s.fault("listen", format!("{written:?} is no address; {EXAMPLE} or one such as \"127.0.0.1:8445\""));
        return None;
    };
    if !address.ip().is_loopback() {
        s.fault("listen", format!("{written:?} is not loopback, and the gateway speaks in clear; {EXAMPLE} or \"127.0.0.1:8445\""));
    }
    taken.take_tcp(s, "listen", "gateway.listen", address);
    Some(gateway::Address::Tcp(address))
}

fn vaults(s: &mut Section<'_>) -> Option<Vec<VaultAddress>> {
    let mut seen: Vec<VaultAddress> = Vec::new();
    let mut sections = s.sections("vault");
    let count = sections.len();
    for section in &mut sections {
        let name = name(section, "name");
        let address: Option<SocketAddr> = section.required("address");
        let (Some(name), Some(address)) = (name, address) else { continue };
        if seen.iter().any(|other| other.name == name) {
            section.fault("name", format!("{name:?} stands here already; write the other vault's"));
        }
        if seen.iter().any(|other| other.address == address) {
            section.fault("address", format!("\"{address}\" is the other vault's already; write this one's"));
        }
        seen.push(VaultAddress { name, address });
    }
    if !(1..=2).contains(&count) {
        s.fault(
            "vault",
            format!("{count} configured; write one [[gateway.vault]] section for each vault of the pair"),
        );
        return None;
    }
    (seen.len() == count).then_some(seen)
}

fn tls(section: &mut Section<'_>) -> Files {
    Files {
        certificate: section.or("certificate_file", PathBuf::from("/var/lib/edge/tls/edge.crt")),
        key: section.or("key_file", PathBuf::from("/var/lib/edge/tls/edge.key")),
        authority: section.or("authority_file", PathBuf::from("/var/lib/edge/tls/authority.crt")),
    }
}

/// A name of our own kind: an upstream's, a vault's.
fn name(section: &mut Section<'_>, key: &'static str) -> Option<String> {
    let name: String = section.required(key)?;
    if is_name(&name) {
        return Some(name);
    }
    section
        .fault(key, format!("{name:?} is no name; use 1 to 64 letters, digits, dots, dashes, underscores"));
    None
}

/// A limit of which nothing is left at 0.
fn count<T>(section: &mut Section<'_>, key: &'static str, default: T) -> T
where
    T: shared::config::Value + Display + Default + PartialEq + Copy,
{
    let count = section.or(key, default);
    if count == T::default() {
        section.fault(key, format!("0 would refuse everything; write 1 or more, usually {default}"));
    }
    count
}

/// A deadline; the default is in seconds.
fn time(section: &mut Section<'_>, key: &'static str, default: u64) -> Duration {
    let time = section.or(key, Duration::from_secs(default));
    if time.is_zero() {
        section.fault(
            key,
            format!("no time at all would end everything; write \"{default}s\" or what you need"),
        );
    }
    time
}

fn size(
    section: &mut Section<'_>,
    key: &'static str,
    default: ByteSize,
    least: ByteSize,
    most: ByteSize,
) -> ByteSize {
    let size = section.or(key, default);
    if size < least {
        section.fault(
            key,
            format!("{size} would refuse everything; write at least \"{least}\", usually \"{default}\""),
        );
    } else if size > most {
        section.fault(key, format!("{size} is too much memory for one connection; write at most \"{most}\", usually \"{default}\""));
    }
    size
}
