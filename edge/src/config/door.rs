//! Reader of `[gateway]`, the handlers' door to the vault pair. Knows keys, defaults and who
//! may listen where; must not open anything.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use shared::api::client::VaultAddress;
use shared::config::{ByteSize, Section};
use shared::tls::Files;

use super::addresses::Taken;
use super::sections::{name, size};
use crate::gateway;

pub(super) fn gateway(
    mut section: Section<'_>,
    control_socket: &Path,
    taken: &mut Taken,
) -> Option<gateway::Settings> {
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
    let tickets = tickets(s, control_socket);
    Some(gateway::Settings {
        listen: listen?,
        tokens_file,
        socket_group,
        vaults: vaults?,
        tls,
        max_kept_body,
        max_file,
        tickets,
    })
}

/// A handler that repeats a key after its ticket is forgotten gets a new one, so that a day is the
/// least; a year is more than any handler waits. The seal's second file lies beside the control socket,
/// which is in `/run`.
fn tickets(s: &mut Section<'_>, control_socket: &Path) -> gateway::tickets::Settings {
    let store = s.or("tickets", PathBuf::from("/var/lib/edge/tickets.db"));
    let days: u32 = s.or("tickets_days", 30);
    if !(1..=366).contains(&days) {
        s.fault("tickets_days", format!("{days} is out of range; write 1 to 366, usually 30"));
    }
    let most: u64 = s.or("max_tickets", 5_000_000);
    if !(1_000..=100_000_000).contains(&most) {
        s.fault("max_tickets", format!("{most} is out of range; write 1000 to 100000000, usually 5000000"));
    }
    gateway::tickets::Settings { store, memory: Some(control_socket.with_extension("tickets")), days, most }
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
