//! This host's own addresses and its gateways, which a ban would cut off: never to be banned,
//! whatever the file says. Knows what `ip -j` prints; must not know bans.

use std::net::IpAddr;
use std::process::Command;

use ipnet::IpNet;
use serde_json::Value;

/// Where the system's network programs live; nothing else is looked for.
pub(crate) const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Who is never a client: loopback, link-local (neighbour discovery), multicast, the unspecified.
const ALWAYS: [&str; 9] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "255.255.255.255/32",
    "::/128",
    "::1/128",
    "fe80::/10",
    "ff00::/8",
];

/// Those that hold on every host.
pub(crate) fn always() -> Vec<IpNet> {
    ALWAYS.iter().filter_map(|text| text.parse().ok()).collect()
}

/// The addresses and gateways as they are now; what cannot be asked is told.
///
/// # Errors
/// `ip` is not there or prints something else.
pub(crate) fn addresses() -> Result<Vec<IpNet>, String> {
    let mut found = Vec::new();
    for interface in list(ask(&["-j", "address", "show"])?) {
        for address in list(interface.get("addr_info").cloned().unwrap_or_default()) {
            found.extend(address.get("local").and_then(single));
        }
    }
    for family in ["-4", "-6"] {
        for route in list(ask(&["-j", family, "route", "show", "default"])?) {
            found.extend(route.get("gateway").and_then(single));
            for hop in list(route.get("nexthops").cloned().unwrap_or_default()) {
                found.extend(hop.get("gateway").and_then(single));
            }
        }
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

fn ask(arguments: &[&str]) -> Result<Value, String> {
    let told = |why: &dyn std::fmt::Display| format!("ip {}: {why}", arguments.join(" "));
    let output = Command::new("ip")
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .output()
        .map_err(|error| told(&error))?;
    if !output.status.success() {
        return Err(told(&String::from_utf8_lossy(&output.stderr).trim()));
    }
    if output.stdout.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&output.stdout).map_err(|error| told(&error))
}

fn list(value: Value) -> Vec<Value> {
    match value {
        Value::Array(items) => items,
        _ => Vec::new(),
    }
}

fn single(value: &Value) -> Option<IpNet> {
    value.as_str()?.parse::<IpAddr>().ok().map(IpNet::from)
}
