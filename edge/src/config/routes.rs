//! Readers of `[[upstream]]` and `[[route]]`. Knows keys, defaults and that routes name
//! upstreams; must not open anything.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use shared::config::{ByteSize, Section};

use super::addresses::Taken;
use super::sections::{name, time};
use super::throttle;
use crate::route::{HostPattern, Route, Routes, checked_path, host_of};
use crate::upstream::{self, Server};

/// What a list of sections gave: all of it, and the part that others check against even
/// where something in it is faulty.
pub(super) struct Upstreams {
    pub(super) read: Option<Vec<upstream::Settings>>,
    pub(super) names: BTreeSet<String>,
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
            let rate = throttle::rate(s, "rate", "burst");
            Some(Route {
                host: host?,
                path_prefix: path_prefix?,
                upstream: upstream?,
                max_body,
                timeout,
                rate: rate?,
            })
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
