//! Settings → nftables text; pure. Knows the names of the table's sets, which the helper fills, and
//! why each rule stands where it does; must not load anything.
//!
//! Handshakes are kept out of connection tracking: a client's SYN and the answer to it pass
//! untracked, with the ports rewritten in place, and tracking begins with the client's ACK. If that
//! ACK is forged, the host answers with a reset, on which the kernel forgets the connection at once.
//! So only clients that have proven their address are counted or slowed, a flood in somebody else's
//! name locks nobody out and fills no table, and the listener's SYN cookies do the rest. It relies
//! on tracking picking connections up in the middle (`net.netfilter.nf_conntrack_tcp_loose = 1`, the
//! kernel's default).
//!
//! Each connection is counted once: until the host has said something, every packet of the client is
//! "new" to the kernel, which counts a second one again if it comes in the same tick. So what has been
//! counted bears a mark, and of packets that two processors handle before the connection is entered,
//! only the first to claim it goes on; the client sends the other again.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Ban;
use super::settings::{Door, FirewallSettings};

/// The one table, of family `inet`, that is ours.
pub const TABLE: &str = "edge";
/// Counts new connections of administrators: proof that they still get in.
pub const ADMIN_COUNTER: &str = "c_admin";
/// A gate stays open a little longer than what lies behind it.
pub const GATE_LONGER: Duration = Duration::from_secs(2);
/// Says "handshake of ours" on a packet and "already measured" on a connection.
const MARK: &str = "0x10000000";
/// Says "already counted" on a connection: until edge has said something, its further packets are new
/// to the kernel too.
const COUNTED: &str = "0x20000000";
/// A SYN and nothing else.
const SYN: &str = "tcp flags & (fin | syn | rst | ack) == syn";
/// Every counter.
const COUNTERS: [&str; 7] =
    [ADMIN_COUNTER, "c_ban", "c_conn", "c_rate", "c_invalid", "c_handshake", "c_policy"];
/// Begins the line that says what a running table cannot change in place.
const SHAPE: &str = "# shape: ";

/// A kernel set of bans of one prefix length. One set each, because networks of several lengths
/// overlap, and each must keep a time of its own, which interval sets cannot do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BanSet {
    /// IPv4, or IPv6.
    pub v4: bool,
    /// 24 to 32, or 48 to 64.
    pub prefix: u8,
}

impl BanSet {
    /// The set for bans of `network`; `None` where it cannot be banned.
    #[must_use]
    pub fn of(network: IpNet) -> Option<Self> {
        super::bannable(network).then(|| Self { v4: network.addr().is_ipv4(), prefix: network.prefix_len() })
    }

    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        let v4 = (24..=32).map(|prefix| Self { v4: true, prefix });
        v4.chain((48..=64).map(|prefix| Self { v4: false, prefix }))
    }

    /// As nftables calls it.
    #[must_use]
    pub fn name(self) -> String {
        match (self.v4, self.prefix) {
            (true, 32) => "ban4".to_owned(),
            (false, 64) => "ban6".to_owned(),
            (true, prefix) => format!("ban4_{prefix}"),
            (false, prefix) => format!("ban6_{prefix}"),
        }
    }

    /// Is it looked up only behind a gate?
    #[must_use]
    pub fn is_wide(self) -> bool {
        self.prefix != if self.v4 { 32 } else { 64 }
    }

    /// Most elements it holds.
    #[must_use]
    pub fn size(self, settings: &FirewallSettings) -> u32 {
        if self.is_wide() { settings.sizes.wide_bans } else { settings.sizes.bans }
    }

    fn mask(self) -> String {
        mask(self.v4, self.prefix)
    }
}

/// The set that says under which IPv4 /24, or IPv6 /48, there are wide bans at all, so that packets
/// of everybody else are looked up twice and not seventeen times.
#[must_use]
pub fn gate_name(v4: bool) -> &'static str {
    if v4 { "wide4" } else { "wide6" }
}

/// The gate's element for a wide ban.
#[must_use]
pub fn gate_of(network: IpNet) -> IpNet {
    let wide = match network {
        IpNet::V4(v4) => Ipv4Net::new(v4.addr(), v4.prefix_len().min(24)).map(IpNet::from),
        IpNet::V6(v6) => Ipv6Net::new(v6.addr(), v6.prefix_len().min(48)).map(IpNet::from),
    };
    wide.map_or(network, |wide| wide.trunc())
}

/// Most elements of a gate: every wide ban may need one of its own.
#[must_use]
pub fn gate_size(v4: bool, settings: &FirewallSettings) -> u32 {
    settings.sizes.wide_bans.saturating_mul(if v4 { 8 } else { 16 })
}

/// What `edge firewall print` shows and a fresh host loads.
#[must_use]
pub fn whole(settings: &FirewallSettings) -> String {
    transaction(&body(settings), false)
}

/// `body` as one transaction. Rules are replaced; bans, leases and counts stay, unless `rebuild`
/// says that the table must be made anew because its shape differs.
#[must_use]
pub fn transaction(body: &str, rebuild: bool) -> String {
    let verb = if rebuild { "delete" } else { "flush" };
    format!("#!/usr/sbin/nft -f\nadd table inet {TABLE}\n{verb} table inet {TABLE}\n{body}")
}

/// Bans and leases as text, to stand behind a [`body`] in the same transaction: so a table that is made
/// anew is never without them. Slower than the helper's own way to the kernel.
#[must_use]
pub fn elements(bans: &[Ban], leases: &[Ban]) -> String {
    let mut sets: BTreeMap<String, BTreeMap<IpNet, u64>> = BTreeMap::new();
    let mut put = |set: String, network: IpNet, time: Duration| {
        let longest = sets.entry(set).or_default().entry(network).or_default();
        *longest = (*longest).max(time.as_secs() + 1);
    };
    for ban in bans {
        let Some(set) = BanSet::of(ban.network) else { continue };
        put(set.name(), ban.network, ban.remaining);
        if set.is_wide() {
            put(gate_name(set.v4).to_owned(), gate_of(ban.network), ban.remaining + GATE_LONGER);
        }
    }
    for lease in leases {
        put(
            if lease.network.addr().is_ipv4() { "lift4" } else { "lift6" }.to_owned(),
            lease.network,
            lease.remaining,
        );
    }
    let mut text = String::new();
    for (set, networks) in &sets {
        let shown = |(network, seconds): (&IpNet, &u64)| match set.starts_with("lift") {
            true => format!("{network} timeout {seconds}s"),
            false => format!("{} timeout {seconds}s", network.addr()),
        };
        let networks: Vec<_> = networks.iter().map(shown).collect();
        for line in networks.chunks(1000) {
            // Writing to a String cannot fail.
            let _always = writeln!(text, "add element inet {TABLE} {set} {{ {} }}", line.join(", "));
        }
    }
    text
}

/// What cannot be changed while the table stands: sizes of sets, and limits that the kernel keeps
/// with every client it counts.
#[must_use]
pub fn shape(body: &str) -> &str {
    body.lines().find_map(|line| line.strip_prefix(SHAPE)).unwrap_or_default()
}

/// The table and what its lists hold.
#[must_use]
pub fn body(settings: &FirewallSettings) -> String {
    let mut text = String::with_capacity(16 * 1024);
    // Writing to a String cannot fail.
    let _always = write_body(&mut text, settings);
    text
}

fn write_body(out: &mut String, settings: &FirewallSettings) -> std::fmt::Result {
    let FirewallSettings { sizes, max_connections, new_connections: rate, .. } = settings;
    writeln!(
        out,
        "{SHAPE}bans {} wide {} clients {} connections {max_connections} rate {} burst {}",
        sizes.bans, sizes.wide_bans, sizes.clients, rate.per_second, rate.burst
    )?;
    writeln!(out, "table inet {TABLE} {{")?;
    write_sets(out, settings)?;
    for counter in COUNTERS {
        writeln!(out, "\tcounter {counter} {{ }}")?;
    }
    // A port used again right after its connection ended is a new connection, and counts.
    writeln!(
        out,
        "\tct timeout web {{\n\t\tprotocol tcp\n\t\tpolicy = {{ time_wait : 2, close : 2 }}\n\t}}"
    )?;
    write_early(out, settings)?;
    write_input(out, settings)?;
    writeln!(
        out,
        "\tchain forward {{\n\t\ttype filter hook forward priority filter; policy drop;\n\t}}\n}}"
    )?;
    let never_banned: Vec<_> = settings.protected().collect();
    let unlimited: Vec<_> = settings.allow.iter().chain(&settings.trusted_proxies).copied().collect();
    write_list(out, "allow", &never_banned)?;
    write_list(out, "free", &unlimited)?;
    write_list(out, "admin", &settings.admin_networks)
}

fn write_sets(out: &mut String, settings: &FirewallSettings) -> std::fmt::Result {
    for set in BanSet::all() {
        let (name, kind, size) = (set.name(), kind(set.v4), set.size(settings));
        writeln!(out, "\tset {name} {{ type {kind}; flags timeout; timeout 10m; size {size}; }}")?;
    }
    let clients = settings.sizes.clients;
    for v4 in [true, false] {
        let (gate, size) = (gate_name(v4), gate_size(v4, settings));
        let (kind, digit) = (kind(v4), if v4 { 4 } else { 6 });
        writeln!(out, "\tset {gate} {{ type {kind}; flags timeout; timeout 10m; size {size}; }}")?;
        for list in ["allow", "free", "admin"] {
            writeln!(out, "\tset {list}{digit} {{ type {kind}; flags interval; }}")?;
        }
        writeln!(out, "\tset lift{digit} {{ type {kind}; flags interval, timeout; timeout 1h; }}")?;
        // No timeout here: the kernel does not count connections in a set that has one.
        writeln!(out, "\tset cc{digit} {{ type {kind}; flags dynamic; size {clients}; }}")?;
        // Full, it lets all go on, and the count is a little too high. A claim need not outlive the moment
        // until the connection is entered.
        writeln!(
            out,
            "\tset claim{digit} {{ type {kind} . {kind} . inet_service . inet_service; flags dynamic, timeout; timeout 200ms; size {clients}; }}"
        )?;
        writeln!(
            out,
            "\tset rate{digit} {{ type {kind}; flags dynamic, timeout; timeout 1m; size {clients}; }}"
        )?;
        writeln!(
            out,
            "\tset slow{digit} {{ type {kind}; flags dynamic, timeout; timeout 1s; size {clients}; }}"
        )?;
    }
    Ok(())
}

/// Before connection tracking: bans, which so also stall what is already open, and handshakes. A reset
/// of the host takes a claim back, so that forged ACKs keep nobody from connecting. Resets
/// that belong to a handshake find no connection: `stray` brings a client's to the listener, and
/// `stray_answer` says to the client that nobody listens.
fn write_early(out: &mut String, settings: &FirewallSettings) -> std::fmt::Result {
    let Ports { public, inner, http, https, .. } = Ports::of(settings);
    let (gate4, gate6) = (mask(true, 24), mask(false, 48));
    let (host6, client6) = (mask(false, 64), mask(false, 64));
    write!(
        out,
        "\tchain early {{
		type filter hook prerouting priority raw; policy accept;
		iif lo accept
		ip saddr @allow4 goto doors
		ip6 saddr @allow6 goto doors
		ip saddr @ban4 counter name c_ban drop
		ip saddr & {gate4} @wide4 jump wide_bans4
		ip6 saddr & {host6} @ban6 counter name c_ban drop
		ip6 saddr & {gate6} @wide6 jump wide_bans6
		goto doors
	}}
"
    )?;
    for v4 in [true, false] {
        let (digit, family) = if v4 { (4, "ip") } else { (6, "ip6") };
        writeln!(out, "\tchain wide_bans{digit} {{")?;
        for set in BanSet::all().filter(|set| set.v4 == v4 && set.is_wide()) {
            let (mask, name) = (set.mask(), set.name());
            writeln!(out, "\t\t{family} saddr & {mask} @{name} counter name c_ban drop")?;
        }
        writeln!(out, "\t}}")?;
    }
    write!(
        out,
        "\tchain doors {{
		fib daddr type local {SYN} tcp dport {public} goto handshake
	}}
	chain handshake {{
		ip saddr @slow4 counter name c_rate drop
		ip6 saddr & {client6} @slow6 counter name c_rate drop
		counter name c_handshake
		notrack
		goto inward
	}}
	chain inward {{
		meta mark set meta mark | {MARK}
		tcp dport {hp} tcp dport set {ht}
		tcp dport {sp} tcp dport set {st}
	}}
	chain stray {{
		type filter hook prerouting priority mangle; policy accept;
		iif lo accept
		ct state invalid tcp flags & (syn | rst) == rst fib daddr type local tcp dport {public} goto inward
	}}
	chain answer {{
		type filter hook output priority raw; policy accept;
		oif lo accept
		tcp flags & (fin | syn | rst | ack) == syn | ack tcp sport {inner} notrack goto outward
		tcp flags & rst == rst tcp sport {inner} jump unclaim
	}}
	chain unclaim {{
		delete @claim4 {{ ip daddr . ip saddr . tcp dport . tcp sport }}
		delete @claim6 {{ ip6 daddr . ip6 saddr . tcp dport . tcp sport }}
	}}
	chain stray_answer {{
		type filter hook output priority filter; policy accept;
		oif lo accept
		ct state invalid tcp flags & (syn | rst) == rst goto outward
	}}
	chain outward {{
		tcp sport {ht} tcp sport set {hp}
		tcp sport {st} tcp sport set {sp}
	}}
	chain redirect_doors {{
		type nat hook prerouting priority dstnat; policy accept;
		fib daddr type local tcp dport {hp} dnat to :{ht}
		fib daddr type local tcp dport {sp} dnat to :{st}
	}}
",
        hp = http.port,
        ht = http.to,
        sp = https.port,
        st = https.to,
    )
}

fn write_input(out: &mut String, settings: &FirewallSettings) -> std::fmt::Result {
    let Ports { public, inner, admin, .. } = Ports::of(settings);
    let client6 = mask(false, 64);
    let (most, rate) = (settings.max_connections, settings.new_connections);
    let limit = format!("limit rate over {}/second burst {} packets", rate.per_second, rate.burst);
    write!(
        out,
        "\tchain input {{
		type filter hook input priority filter; policy drop;
		iif lo accept
		meta mark & {MARK} != 0 tcp dport {inner} accept
		ct state established ct direction original meta l4proto tcp ct original proto-dst {public} ct mark & {MARK} == 0 jump proven
		ct state vmap {{ established : accept, related : accept, invalid : jump bad }}
		meta l4proto icmp icmp type {{ echo-request, destination-unreachable, time-exceeded, parameter-problem }} limit rate 20/second accept
		meta l4proto ipv6-icmp icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert, nd-router-solicit, mld-listener-query }} accept
		meta l4proto ipv6-icmp icmpv6 type {{ echo-request, destination-unreachable, packet-too-big, time-exceeded, parameter-problem }} limit rate 20/second accept
		meta nfproto ipv4 udp sport 67 udp dport 68 accept
		ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept
		tcp dport {inner} meta l4proto tcp ct original proto-dst {public} goto web
"
    )?;
    if let Some(admin) = admin {
        for (family, digit) in [("ip", 4), ("ip6", 6)] {
            writeln!(out, "\t\t{family} saddr @admin{digit} tcp dport {admin} goto administrators")?;
        }
    }
    write!(
        out,
        "		counter name c_policy
	}}
	chain administrators {{
		ct state new {SYN} counter name {ADMIN_COUNTER}
		accept
	}}
	chain bad {{
		counter name c_invalid drop
	}}
	chain web {{
		ct mark & {COUNTED} != 0 accept
		ct timeout set \"web\"
		ip saddr @free4 accept
		ip6 saddr @free6 accept
		ip saddr @lift4 accept
		ip6 saddr @lift6 accept
		add @claim4 {{ ip saddr . ip daddr . tcp sport . tcp dport limit rate over 1/day burst 1 packets }} drop
		add @claim6 {{ ip6 saddr . ip6 daddr . tcp sport . tcp dport limit rate over 1/day burst 1 packets }} drop
		add @cc4 {{ ip saddr ct count over {most} }} counter name c_conn reject with tcp reset
		add @cc6 {{ ip6 saddr & {client6} ct count over {most} }} counter name c_conn reject with tcp reset
		ct mark set ct mark | {COUNTED}
		accept
	}}
	chain proven {{
		ct mark set ct mark | {MARK}
		ip saddr @free4 accept
		ip6 saddr @free6 accept
		ip saddr @lift4 accept
		ip6 saddr @lift6 accept
		add @rate4 {{ ip saddr {limit} }} add @slow4 {{ ip saddr }}
		add @rate6 {{ ip6 saddr & {client6} {limit} }} add @slow6 {{ ip6 saddr & {client6} }}
	}}
"
    )
}

/// A list of networks, replaced as a whole; without neighbours and overlaps, which the kernel refuses.
fn write_list(out: &mut String, name: &str, networks: &[IpNet]) -> std::fmt::Result {
    let (v4, v6): (Vec<IpNet>, Vec<IpNet>) =
        IpNet::aggregate(&networks.to_vec()).into_iter().partition(|network| network.addr().is_ipv4());
    for (digit, networks) in [(4, v4), (6, v6)] {
        writeln!(out, "flush set inet {TABLE} {name}{digit}")?;
        if !networks.is_empty() {
            let shown: Vec<_> = networks.iter().map(ToString::to_string).collect();
            writeln!(out, "add element inet {TABLE} {name}{digit} {{ {} }}", shown.join(", "))?;
        }
    }
    Ok(())
}

/// The ports as nftables writes them.
struct Ports {
    public: String,
    inner: String,
    admin: Option<String>,
    http: Door,
    https: Door,
}

impl Ports {
    fn of(settings: &FirewallSettings) -> Self {
        let FirewallSettings { http, https, .. } = *settings;
        let mut admin = settings.admin_ports.clone();
        admin.sort_unstable();
        admin.dedup();
        let admin = admin.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        Self {
            public: format!("{{ {}, {} }}", http.port, https.port),
            inner: format!("{{ {}, {} }}", http.to, https.to),
            admin: (!admin.is_empty()).then(|| format!("{{ {admin} }}")),
            http,
            https,
        }
    }
}

fn kind(v4: bool) -> &'static str {
    if v4 { "ipv4_addr" } else { "ipv6_addr" }
}

fn mask(v4: bool, prefix: u8) -> String {
    let mask: IpAddr = match v4 {
        true => Ipv4Net::new(Ipv4Addr::UNSPECIFIED, prefix).map(|net| net.netmask().into()),
        false => Ipv6Net::new(Ipv6Addr::UNSPECIFIED, prefix).map(|net| net.netmask().into()),
    }
    .unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED));
    mask.to_string()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn settings(text: &str) -> FirewallSettings {
        FirewallSettings::parse(Path::new("firewall.toml"), text).unwrap()
    }

    #[test]
    fn the_default_rules_are_as_reviewed() {
        // After an intended change: `edge firewall print --firewall-config conf/firewall.toml`.
        assert_eq!(whole(&settings("")), include_str!("ruleset/default.nft"));
    }

    #[test]
    fn lists_are_aggregated_and_replaced_whole() {
        let text = body(&settings(
            "admin_networks = [\"10.1.2.3/8\", \"2001:db8::/32\"]\nallow = [\"192.0.2.0/25\", \"192.0.2.128/25\"]\n\
             trusted_proxies = [\"192.0.2.7/32\"]\n",
        ));
        for line in [
            "flush set inet edge allow4\nadd element inet edge allow4 { 10.0.0.0/8, 192.0.2.0/24 }\n",
            "flush set inet edge allow6\nadd element inet edge allow6 { 2001:db8::/32 }\n",
            "flush set inet edge free4\nadd element inet edge free4 { 192.0.2.0/24 }\n",
            "flush set inet edge free6\nflush set inet edge admin4\n",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }

    #[test]
    fn elements_open_the_gate_of_a_wide_ban_for_longer() {
        let ban = |text: &str, seconds| Ban {
            network: text.parse().unwrap(),
            remaining: Duration::from_secs(seconds),
        };
        let bans = [
            ban("192.0.2.7/32", 60),
            ban("192.0.2.16/28", 60),
            ban("192.0.2.0/28", 90),
            ban("2001:db8::/64", 5),
        ];
        assert_eq!(
            elements(&bans, &[ban("10.0.0.0/8", 7)]),
            "add element inet edge ban4 { 192.0.2.7 timeout 61s }\n\
             add element inet edge ban4_28 { 192.0.2.0 timeout 91s, 192.0.2.16 timeout 61s }\n\
             add element inet edge ban6 { 2001:db8:: timeout 6s }\n\
             add element inet edge lift4 { 10.0.0.0/8 timeout 8s }\n\
             add element inet edge wide4 { 192.0.2.0 timeout 93s }\n"
        );
    }

    #[test]
    fn the_table_is_made_anew_only_for_what_cannot_change_in_place() {
        let shaped = |text: &str| shape(&body(&settings(text))).to_owned();
        let usual = shaped("");
        assert!(!usual.is_empty());
        assert_eq!(shaped("admin_ports = [2222]\nadmin_networks = [\"10.0.0.0/8\"]\n"), usual);
        for other in ["max_connections = 60", "[sizes]\nbans = 100", "[new_connections]\nburst = 7"] {
            assert_ne!(shaped(other), usual, "{other}");
        }
        assert!(transaction("x", false).contains("flush table inet edge\nx"));
        assert!(transaction("x", true).contains("add table inet edge\ndelete table inet edge\nx"));
    }

    #[test]
    fn no_port_is_open_to_administrators_without_networks_or_ports() {
        assert!(!body(&settings("admin_ports = []")).contains("goto administrators"));
        assert!(
            body(&settings("admin_ports = [22, 22]"))
                .contains("ip saddr @admin4 tcp dport { 22 } goto administrators")
        );
    }

    proptest! {
        #[test]
        fn every_bannable_network_has_its_set_and_lies_behind_its_gate(bits: u128, prefix in 24_u8..=64) {
            let v6 = Ipv6Net::new(Ipv6Addr::from(bits), prefix.max(48)).unwrap().trunc();
            let v4 = Ipv4Net::new(Ipv4Addr::from((bits >> 96) as u32), prefix.min(32)).unwrap().trunc();
            for network in [IpNet::from(v4), IpNet::from(v6)] {
                let set = BanSet::of(network).unwrap();
                prop_assert_eq!(BanSet::all().filter(|other| *other == set).count(), 1);
                prop_assert!(gate_of(network).contains(&network));
            }
            prop_assert_eq!(BanSet::of(IpNet::new(Ipv4Addr::from(0).into(), 23).unwrap()), None);
        }
    }
}
