//! The kernel's part of a ban. Knows networks and times; must not know jails.
//!
//! [`Firewall`] is what the ban engine calls. `nftables` is the kernel through the privileged helper,
//! `rehearsal` a dry run, `open` alone chooses. `settings`, `ruleset` and `message` are what the
//! helper and `edge firewall` share: the file, the rules made of it, and the words between the two.

#[cfg(test)]
mod contract;
pub mod message;
mod nftables;
pub mod open;
mod rehearsal;
pub mod ruleset;
pub mod settings;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use nftables::ask;
pub use open::{Kind, Settings, open};

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
    /// Bans reach the kernel, and its rules drop them.
    Works,
    /// Bans reach the kernel, but somebody changed its rules by hand: what they drop is not known.
    Changed,
    /// The helper is well, but there are no rules that could drop anybody; edge holds its bans alone.
    NoRules,
    /// Nobody can be asked, and why; edge holds its bans alone.
    Absent(String),
    /// Nobody asked for a kernel: `firewall = "none"`.
    NotConfigured,
}

impl State {
    /// Can bans be handed to the kernel?
    #[must_use]
    pub fn takes_bans(&self) -> bool {
        matches!(self, Self::Works | Self::Changed)
    }
}

/// One clause for operators; it follows `kernel: `.
impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Works => f.write_str("drops what is banned"),
            Self::Changed => f.write_str(
                "takes bans, but its rules were CHANGED BY HAND: `edge firewall status` says where, \
                 `edge firewall apply --confirm 60s` loads them as configured",
            ),
            Self::NoRules => f.write_str(
                "no rules are loaded, so it drops nobody; bans hold in the proxy alone; \
                 write `edge firewall apply --confirm 60s`",
            ),
            Self::Absent(why) => write!(f, "out of reach: {why}; bans hold in the proxy alone"),
            Self::NotConfigured => {
                f.write_str("not configured (bans.firewall); bans hold in the proxy alone")
            }
        }
    }
}

/// Why one network was refused; the others of its batch are in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Reason {
    /// On a list of those whom nobody may ban, or this host's own address or gateway.
    #[error(
        "is protected by the helper's own list; see allow, never_ban and admin_networks in firewall.toml"
    )]
    Protected,
    /// Wider or narrower than a ban may be.
    #[error("is no network that can be banned; bans are IPv4 /24 to /32 and IPv6 /48 to /64")]
    Prefix,
    /// Longer than `longest_ban`, or no time at all.
    #[error("is for longer than longest_ban in firewall.toml, or for no time at all")]
    Time,
    /// No room even after the soonest to expire were evicted.
    #[error("found no room in the kernel's set; raise sizes.bans in firewall.toml")]
    Full,
    /// A lease that lies within or around another one.
    #[error("overlaps another lease; end that one first")]
    Overlaps,
}

/// A network that is not in force, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// As it was asked for.
    pub network: IpNet,
    /// Why not.
    pub reason: Reason,
}

/// How full one of the kernel's sets is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fill {
    /// As nftables calls it.
    pub set: String,
    /// Elements in it.
    pub used: u64,
    /// Most that fit.
    pub size: u64,
}

impl Fill {
    /// From 80 % on somebody should look: a full set of counts lets everybody through.
    #[must_use]
    pub fn alarms(&self) -> bool {
        self.used.saturating_mul(5) >= self.size.saturating_mul(4)
    }
}

/// What a named counter of the rules has seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// As nftables calls it: `c_ban`, `c_conn`, …
    pub counter: String,
    /// Packets.
    pub packets: u64,
}

/// Fill and counts of the kernel's part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// Every set that can run full.
    pub sets: Vec<Fill>,
    /// Every named counter.
    pub counters: Vec<Counted>,
    /// Bans that gave way to newer ones since the helper started, because their set was full.
    pub evicted: u64,
}

/// Why the firewall could not be asked. Bans go on in edge alone meanwhile.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// Nobody answers on the helper's socket.
    #[error(
        "firewall: helper on {socket}: {source}; edge holds its bans alone and tries again; start edge-firewall.service"
    )]
    Absent {
        /// Where it was looked for.
        socket: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// It failed a moment ago and is not asked again yet.
    #[error("firewall: helper on {socket}: {why}; it is asked again within a second")]
    Waiting {
        /// Where it was looked for.
        socket: PathBuf,
        /// What the last attempt met.
        why: String,
    },
    /// It answered with other words than the question allows.
    #[error("firewall: helper: {0}; edge and edge-firewall must be of one version")]
    Words(#[from] message::MessageError),
    /// There is no table with the sets of bans.
    #[error(
        "firewall: no rules are loaded, so the kernel drops nobody; write `edge firewall apply --confirm 60s`"
    )]
    NoRules,
    /// It said no, and why.
    #[error("firewall: helper: {0}")]
    Refused(String),
}

impl FirewallError {
    /// How it stands with the kernel, where this was the answer.
    #[must_use]
    pub fn state(&self) -> State {
        match self {
            Self::NoRules => State::NoRules,
            Self::Absent { socket, source } => absent(socket, source),
            Self::Waiting { socket, why } => absent(socket, why),
            Self::Refused(why) => State::Absent(format!("the helper says: {why}")),
            Self::Words(_) => State::Absent(self.to_string()),
        }
    }
}

fn absent(socket: &Path, why: &dyn fmt::Display) -> State {
    State::Absent(format!("helper on {}: {why}; start edge-firewall.service", socket.display()))
}

/// Who drops packets. Every implementer passes the suite in `contract.rs`.
pub trait Firewall: Send {
    /// Drops every packet of these networks from now on. A network that is banned already gets
    /// the new time. Returns those that are not in force.
    ///
    /// # Errors
    /// Nobody could be asked; what part of the batch is in force is unknown, and asking again is safe.
    fn ban(&mut self, bans: &[Ban]) -> Result<Vec<Refusal>, FirewallError>;

    /// Lets these in again; a network that is not banned is fine.
    ///
    /// # Errors
    /// As [`Firewall::ban`].
    fn unban(&mut self, networks: &[IpNet]) -> Result<(), FirewallError>;

    /// Every ban in force, in no order, with the time that remains (to the second or finer).
    ///
    /// # Errors
    /// Nobody could be asked.
    fn list(&mut self) -> Result<Vec<Ban>, FirewallError>;

    /// Ends every ban.
    ///
    /// # Errors
    /// As [`Firewall::ban`].
    fn clear(&mut self) -> Result<(), FirewallError>;

    /// A pentest lease: connections and rate of these networks (of any width) are not limited.
    ///
    /// # Errors
    /// As [`Firewall::ban`].
    fn lift(&mut self, leases: &[Ban]) -> Result<Vec<Refusal>, FirewallError>;

    /// Ends leases; one that is not there is fine.
    ///
    /// # Errors
    /// As [`Firewall::ban`].
    fn unlift(&mut self, networks: &[IpNet]) -> Result<(), FirewallError>;

    /// Fill and counts.
    ///
    /// # Errors
    /// Nobody could be asked.
    fn figures(&mut self) -> Result<Figures, FirewallError>;

    /// Asks how it stands now. Cheap: the engine asks each second, and notices no other way that the
    /// kernel has gone or come back.
    fn state(&mut self) -> State;
}

/// May `network` be banned by its width: IPv4 /24 to /32, IPv6 /48 to /64, truncated?
#[must_use]
pub fn bannable(network: IpNet) -> bool {
    let widths = match network {
        IpNet::V4(_) => 24..=32,
        IpNet::V6(_) => 48..=64,
    };
    widths.contains(&network.prefix_len()) && network.trunc() == network
}
