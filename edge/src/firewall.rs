//! The kernel's part of a ban. Knows networks and times; must not know jails.

use std::time::Duration;

use ipnet::IpNet;

/// One network that the kernel shall drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ban {
    /// IPv4 /24 to /32, or IPv6 /48 to /64; truncated.
    pub network: IpNet,
    /// From now on. Ends by itself.
    pub remaining: Duration,
}

/// How it stands with the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Bans reach the kernel.
    Works,
    /// They do not, and why; edge holds them alone.
    Absent(String),
    /// Nobody asked for a kernel: `firewall = "none"`.
    NotConfigured,
}
