//! What is an attack, and who has made too many: filters read lines, jails count offences.
//! Pure: owns no clock, no file and no socket; `now` is handed in, what must happen is returned.
//! Times are whole or fractional seconds since the UNIX epoch, as a [`Duration`], because bans
//! outlive the process that made them.

pub mod fail2ban;
pub mod filter;
pub mod jail;
pub mod words;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The longest ban, which stands for "for ever": ten years.
pub const MAX_BAN_TIME: Duration = Duration::from_secs(3650 * 86_400);
/// The most offences that a jail waits for: each client's are kept one by one.
pub const MAX_OFFENCES: u32 = 10_000;
/// The most lines that one offence may span.
pub const MAX_FILTER_LINES: usize = 100;

/// A filter as it is written: in `edge.toml`, in a file of jails, or out of fail2ban's files.
/// Patterns are fail2ban's: `<HOST>` and its other tags stand for what is captured, and the date
/// is cut out of the line before they are tried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilterText {
    /// As jails name it.
    pub name: String,
    /// Must match first; what its `<F-CONTENT>` holds is what the others see.
    pub prefregex: Option<String>,
    /// Any one of them makes the line an offence.
    pub failregex: Vec<String>,
    /// Any one of them makes it none.
    pub ignoreregex: Vec<String>,
    /// How the date is found; empty asks every known form.
    pub datepattern: Vec<String>,
    /// How many lines one offence may span; 1 is the usual.
    pub max_lines: usize,
}

/// How many leading bits of an address are one offender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefixes {
    /// 24 to 32; 32 is the single address.
    pub v4: u8,
    /// 48 to 64; 64 is what one customer has at least.
    pub v6: u8,
}

impl Default for Prefixes {
    fn default() -> Self {
        Self { v4: 32, v6: 64 }
    }
}

impl Prefixes {
    /// The network that is banned for `address`. IPv4-mapped IPv6 addresses are IPv4's.
    #[must_use]
    pub fn network(self, address: IpAddr) -> IpNet {
        match address.to_canonical() {
            IpAddr::V4(v4) => v4_network(v4, self.v4),
            IpAddr::V6(v6) => v6_network(v6, self.v6.min(64)),
        }
    }
}

fn v4_network(address: Ipv4Addr, bits: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new(address, bits.min(32)).unwrap_or_else(|_| Ipv4Net::from(address)).trunc())
}

fn v6_network(address: Ipv6Addr, bits: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new(address, bits.min(128)).unwrap_or_else(|_| Ipv6Net::from(address)).trunc())
}

/// `203.0.113.7` for a single address, else with the prefix: as operators write and read it.
#[must_use]
pub fn shown(network: IpNet) -> String {
    match network {
        IpNet::V4(v4) if v4.prefix_len() == 32 => v4.addr().to_string(),
        other => other.to_string(),
    }
}

/// What a jail does with an offender.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Action {
    /// Nothing of it gets in: kernel, live connections, requests.
    #[default]
    Ban,
    /// It gets in slowly: an office with logged-in users behind one address.
    Throttle,
    /// It is only told.
    Log,
}

/// What a jail that bans or throttles makes of an offence that a page of another origin can make a visitor's
/// browser commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CrossSite {
    /// Counted apart from the others, and throttled at most.
    #[default]
    Throttle,
    /// As any other.
    Ban,
    /// It is none, in no jail.
    Ignore,
}

/// Longer bans for who comes back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Escalation {
    /// Each further ban is so many times longer than the last one.
    pub factor: f64,
    /// And never longer than this.
    pub cap: Duration,
    /// Who stays away for so long after its last ban is new again.
    pub forgiveness: Duration,
}

/// A jail that would ban too many at once is probably wrong: it goes on log-only.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Brake {
    /// Of the clients that were active in the last minute, in per cent.
    pub percent: f64,
    /// But never fewer than so many bans in one minute.
    pub least: u32,
}

impl Default for Brake {
    fn default() -> Self {
        Self { percent: 5.0, least: 20 }
    }
}

/// Where a jail's lines come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// edge's own requests, malformed requests, failed handshakes and refusals.
    Edge,
    /// Log files; a name may hold `*` and `?`.
    Files(Vec<PathBuf>),
}

/// `[[jail]]`
#[derive(Clone, Debug, PartialEq)]
pub struct JailSettings {
    /// As `edge bans` and `edge why` show it.
    pub name: String,
    /// The filter that makes its offences.
    pub filter: String,
    /// Where its lines come from.
    pub source: Source,
    /// So many offences within `find_time` ban.
    pub max_offences: u32,
    /// How long an offence counts.
    pub find_time: Duration,
    /// How long the first ban lasts.
    pub ban_time: Duration,
    /// What becomes of repeat offenders; `None` gives each ban the same time.
    pub escalation: Option<Escalation>,
    /// Who is never punished by this jail, besides those whom nobody may ban.
    pub allow: Vec<IpNet>,
    /// Who is one offender.
    pub prefixes: Prefixes,
    /// What happens to it.
    pub action: Action,
    /// What happens to it where a foreign page may have made it do so.
    pub cross_site: CrossSite,
    /// `None` lets it ban as many as it likes.
    pub brake: Option<Brake>,
}
