//! Readers of the single sections of `edge.toml`, and of the limits that all sections have.
//! Knows keys, defaults and what makes sense; must not open anything.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use shared::config::{ByteSize, Section};
use shared::tls::is_name;

use super::addresses::Taken;
use super::{CertificateFiles, Clients};
use crate::access_log;
use crate::route::HostPattern;

/// Queue places are set aside at start; more than this is memory wasted on a dead disk.
const MAX_LOG_QUEUE: usize = 65_536;
/// One thread a core is best; this is only a guard against a slip of the finger.
const MAX_THREADS: usize = 1024;

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
    let max_connections = count(s, "max_connections", 200);
    Clients { max_in_flight, max_connections, trusted_proxies, retry_after }
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

/// A name of our own kind: an upstream's, a vault's.
pub(super) fn name(section: &mut Section<'_>, key: &'static str) -> Option<String> {
    let name: String = section.required(key)?;
    if is_name(&name) {
        return Some(name);
    }
    section
        .fault(key, format!("{name:?} is no name; use 1 to 64 letters, digits, dots, dashes, underscores"));
    None
}

/// A limit of which nothing is left at 0.
pub(super) fn count<T>(section: &mut Section<'_>, key: &'static str, default: T) -> T
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
pub(super) fn time(section: &mut Section<'_>, key: &'static str, default: u64) -> Duration {
    let time = section.or(key, Duration::from_secs(default));
    if time.is_zero() {
        section.fault(
            key,
            format!("no time at all would end everything; write \"{default}s\" or what you need"),
        );
    }
    time
}

pub(super) fn size(
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
