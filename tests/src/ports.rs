//! Free TCP ports on loopback. Taken from below the kernel's ephemeral range, so that no
//! outgoing connection takes a listener's port while its program is being restarted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

/// First port tried, and how many there are.
const FIRST: u32 = 11_000;
const COUNT: u32 = 20_000;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A port of 127.0.0.1 on which nothing listens, never the same twice in this process.
///
/// # Errors
/// Everything is taken.
pub fn free() -> anyhow::Result<SocketAddr> {
    free_on(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

/// As [`free`], on another of this host's addresses.
///
/// # Errors
/// Everything is taken, or the host has no such address.
pub fn free_on(address: IpAddr) -> anyhow::Result<SocketAddr> {
    // Two test processes that run side by side start in different places.
    let start = std::process::id().wrapping_mul(97);
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = u16::try_from(FIRST + start.wrapping_add(step) % COUNT)?;
        let candidate = SocketAddr::new(address, port);
        if TcpListener::bind(candidate).is_ok() {
            return Ok(candidate);
        }
    }
    anyhow::bail!("{address}: no free port from {FIRST} on")
}

/// Has this host IPv6 on loopback? Containers often have none.
#[must_use]
pub fn has_ipv6() -> bool {
    TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}
