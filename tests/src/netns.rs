//! A street of hosts for the stories of bans and firewall: one network namespace each, joined by
//! a bridge in a namespace of its own, made for one test and gone with it. Knows addresses and
//! namespaces; must not know what runs in them.
//!
//! Work is brought into a host in two ways: [`Lab::inside`] runs a closure on a thread that has
//! moved there, so that every part of the harness (an edge, a neighbour, a curl, a socket) can be
//! started there as it is; [`Lab::command`] and [`Lab::wrapper`] start a program there. The
//! machine's own network and firewall are never touched.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where `ip netns` keeps the names.
const NAMES: &str = "/run/netns";
/// What every name of ours begins with; then the process id, a counter and the host.
const MARK: &str = "evt";
/// The namespace that holds the bridge and is everybody's default gateway.
const STREET: &str = "street";
/// Every host's interface.
const WIRE: &str = "wire0";
/// The street's own addresses.
const GATEWAY: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(10, 77, 255, 254), Ipv6Addr::new(0xfd77, 0, 0, 0xffff, 0, 0, 0, 1));

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Who lives in the street.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    /// The guarded one.
    Edge,
    /// Attacks. Also owns every address of [`CROWD4`] and [`CROWD6`].
    Attacker,
    /// Many people behind four addresses, all within one /64 (and one /30).
    Office,
    /// Tests with permission.
    Tester,
    /// Administers; the firewall lets it in.
    Admin,
    /// Shares its IPv6 /64 with the other neighbour, not its IPv4 /24.
    Neighbour,
    /// The other one.
    OtherNeighbour,
    /// Has nothing in common with anybody.
    Stranger,
}

/// A network of which the attacker can use every address.
pub const CROWD4: &str = "10.64.0.0/13";
/// The same in IPv6: 65,536 networks of /64.
pub const CROWD6: &str = "fd66::/48";

impl Host {
    /// Everybody.
    pub const ALL: [Self; 8] = [
        Self::Edge,
        Self::Attacker,
        Self::Office,
        Self::Tester,
        Self::Admin,
        Self::Neighbour,
        Self::OtherNeighbour,
        Self::Stranger,
    ];

    /// Its name in those of the namespaces.
    const fn name(self) -> &'static str {
        match self {
            Self::Edge => "edge",
            Self::Attacker => "attacker",
            Self::Office => "office",
            Self::Tester => "tester",
            Self::Admin => "admin",
            Self::Neighbour => "near",
            Self::OtherNeighbour => "nearer",
            Self::Stranger => "stranger",
        }
    }

    /// Its IPv4 addresses, the one it uses by itself first.
    #[must_use]
    pub fn v4(self) -> Vec<Ipv4Addr> {
        let at = |third, last| Ipv4Addr::new(10, 77, third, last);
        match self {
            Self::Edge => vec![at(0, 1)],
            Self::Attacker => vec![at(1, 1)],
            Self::Office => (4..8).map(|last| at(2, last)).collect(),
            Self::Tester => vec![at(3, 1)],
            Self::Admin => vec![at(9, 1)],
            Self::Neighbour => vec![at(4, 1)],
            Self::OtherNeighbour => vec![at(5, 1)],
            Self::Stranger => vec![at(6, 1)],
        }
    }

    /// Its IPv6 addresses, the one it uses by itself first.
    #[must_use]
    pub fn v6(self) -> Vec<Ipv6Addr> {
        let at = |network, last| Ipv6Addr::new(0xfd77, 0, 0, network, 0, 0, 0, last);
        match self {
            Self::Edge => vec![at(0, 1)],
            Self::Attacker => vec![at(1, 1)],
            Self::Office => (4..8).map(|last| at(2, last)).collect(),
            Self::Tester => vec![at(3, 1)],
            Self::Admin => vec![at(9, 1)],
            Self::Neighbour => vec![at(4, 0xa)],
            Self::OtherNeighbour => vec![at(4, 0xb)],
            Self::Stranger => vec![at(6, 1)],
        }
    }

    /// The address it uses by itself in IPv4.
    #[must_use]
    pub fn address(self) -> IpAddr {
        self.v4().first().copied().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V4)
    }

    /// The address it uses by itself in IPv6.
    #[must_use]
    pub fn address6(self) -> IpAddr {
        self.v6().first().copied().map_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V6)
    }
}

/// The street. Its namespaces go when it is dropped; what still runs in them should be stopped
/// before, so declare it first.
#[derive(Debug)]
pub struct Lab {
    prefix: String,
}

impl Lab {
    /// Builds the whole street, after removing those of processes that are gone.
    ///
    /// # Errors
    /// Not root, no `ip`, or the kernel refuses; the text says what to do.
    pub fn build() -> anyhow::Result<Self> {
        // From here on, dropping it cleans up, however far it got.
        let lab = Self { prefix: fresh_prefix()? };
        lab.lay_street()?;
        for host in Host::ALL {
            lab.move_in(host)?;
        }
        lab.bring_crowd()?;
        Ok(lab)
    }

    /// The namespace of `host`, as `ip netns` calls it.
    #[must_use]
    pub fn name(&self, host: Host) -> String {
        format!("{}-{}", self.prefix, host.name())
    }

    /// What stands before a program, so that it runs there with its own process id: for
    /// [`crate::program::Recipe::wrapper`].
    #[must_use]
    pub fn wrapper(&self, host: Host) -> Vec<OsString> {
        ["ip", "netns", "exec"].map(OsString::from).into_iter().chain([self.name(host).into()]).collect()
    }

    /// A program that runs there.
    #[must_use]
    pub fn command(&self, host: Host, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name(host)]).arg(program.as_ref());
        command
    }

    /// Runs `work` on a thread that has moved there. Sockets that it opens, threads and programs
    /// that it starts stay there, also after it has returned.
    ///
    /// # Errors
    /// The namespace is gone.
    ///
    /// # Panics
    /// Where `work` does, with its words.
    pub fn inside<T: Send>(&self, host: Host, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        inside_namespace(&self.name(host), work)
    }

    /// Takes the wire out of `host`, or puts it back: the host is away.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn set_wire(&self, host: Host, up: bool) -> anyhow::Result<()> {
        let state = if up { "up" } else { "down" };
        ip(&["-n", &self.name(host), "link", "set", WIRE, state])
    }

    fn street(&self) -> String {
        format!("{}-{STREET}", self.prefix)
    }

    fn lay_street(&self) -> anyhow::Result<()> {
        let street = self.street();
        add_namespace(&street)?;
        ip(&["-n", &street, "link", "add", "bridge0", "type", "bridge", "stp_state", "0"])?;
        let (v4, v6) = GATEWAY;
        give(&street, "bridge0", &[v4], &[v6])
    }

    fn move_in(&self, host: Host) -> anyhow::Result<()> {
        let (street, own) = (self.street(), self.name(host));
        add_namespace(&own)?;
        let plug = host.name();
        ip(&["-n", &street, "link", "add", plug, "type", "veth", "peer", "name", WIRE, "netns", &own])?;
        ip(&["-n", &street, "link", "set", plug, "master", "bridge0", "up"])?;
        give(&own, WIRE, &host.v4(), &host.v6())?;
        let (v4, v6) = GATEWAY;
        ip(&["-n", &own, "route", "add", "default", "via", &v4.to_string()])?;
        ip(&["-n", &own, "-6", "route", "add", "default", "via", &v6.to_string()])
    }

    /// The crowd's addresses are all the attacker's, and edge answers it directly.
    fn bring_crowd(&self) -> anyhow::Result<()> {
        let (edge, attacker) = (self.name(Host::Edge), self.name(Host::Attacker));
        let (v4, v6) = (Host::Attacker.address().to_string(), Host::Attacker.address6().to_string());
        ip(&["-n", &edge, "route", "add", CROWD4, "via", &v4])?;
        ip(&["-n", &edge, "-6", "route", "add", CROWD6, "via", &v6])?;
        ip(&["-n", &attacker, "route", "add", "local", CROWD4, "dev", "lo"])?;
        ip(&["-n", &attacker, "-6", "route", "add", "local", CROWD6, "dev", "lo"])?;
        // For IPv4 the route is enough to bind an address, for IPv6 it is not.
        let switch = "/proc/sys/net/ipv6/ip_nonlocal_bind";
        self.inside(Host::Attacker, || std::fs::write(switch, "1"))?.context(switch)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let hosts = Host::ALL.map(|host| self.name(host));
        for name in hosts.into_iter().chain([self.street()]) {
            // Perhaps it was never made.
            let _ = ip(&["netns", "delete", &name]);
        }
    }
}

/// What the names of the next network's namespaces begin with, so that those of processes that are
/// gone are told apart; these are removed now.
///
/// # Errors
/// Not root.
pub fn fresh_prefix() -> anyhow::Result<String> {
    anyhow::ensure!(
        rustix::process::geteuid().is_root(),
        "network namespaces need root; run these tests as root (tests/run does everything in \
         namespaces of its own and leaves the machine's network alone)"
    );
    remove_leftovers();
    Ok(format!("{MARK}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)))
}

/// Runs `work` on a thread that has moved into the namespace `name`; see [`Lab::inside`].
///
/// # Errors
/// The namespace is gone.
///
/// # Panics
/// Where `work` does, with its words.
pub fn inside_namespace<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
    let path = Path::new(NAMES).join(name);
    let door = File::open(&path).with_context(|| path.display().to_string())?;
    std::thread::scope(|scope| {
        let moved = scope.spawn(|| {
            move_into_link_name_space(door.as_fd(), Some(LinkNameSpaceType::Network))
                .with_context(|| format!("{}: cannot move there", path.display()))?;
            Ok(work())
        });
        moved.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A new namespace, whose own loopback is up.
///
/// # Errors
/// What `ip` said.
pub fn add_namespace(name: &str) -> anyhow::Result<()> {
    ip(&["netns", "add", name])?;
    ip(&["-n", name, "link", "set", "lo", "up"])
}

/// All addresses are on one link, whatever their /24 or /64: who shares a network is the
/// firewall's question, not the wire's.
fn give(namespace: &str, interface: &str, v4: &[Ipv4Addr], v6: &[Ipv6Addr]) -> anyhow::Result<()> {
    for address in v4 {
        let address = format!("{address}/16");
        ip(&["-n", namespace, "address", "add", &address, "dev", interface])?;
    }
    // The kernel prefers the last one added as source: the first shall be it. `nodad` makes it
    // usable at once.
    for address in v6.iter().rev() {
        let address = format!("{address}/48");
        ip(&["-n", namespace, "-6", "address", "add", &address, "dev", interface, "nodad"])?;
    }
    ip(&["-n", namespace, "link", "set", interface, "up"])
}

/// Namespaces of tests that were killed before they could clean up.
fn remove_leftovers() {
    let Ok(names) = std::fs::read_dir(NAMES) else { return };
    let names: BTreeSet<_> =
        names.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    for name in names.iter().filter(|name| is_leftover(name)) {
        let _ = ip(&["netns", "delete", name]);
    }
}

fn is_leftover(name: &str) -> bool {
    let mut parts = name.split('-');
    let ours = parts.next() == Some(MARK);
    let owner = parts.next().and_then(|pid| pid.parse::<u32>().ok());
    ours && owner.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}

/// Runs `ip` with these words.
///
/// # Errors
/// What it said.
pub fn ip(words: &[&str]) -> anyhow::Result<()> {
    let done = Command::new("ip")
        .args(words)
        .output()
        .context("ip is not installed; run: apt-get install iproute2 (tests/run does)")?;
    anyhow::ensure!(
        done.status.success(),
        "ip {}: {}",
        words.join(" "),
        String::from_utf8_lossy(&done.stderr).trim()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

    use super::*;

    /// Whom `from` is for edge when it connects to `to` on edge.
    fn seen_as(lab: &Lab, from: Host, to: IpAddr) -> IpAddr {
        let listener = lab.inside(Host::Edge, || TcpListener::bind((to, 0)).unwrap()).unwrap();
        let door = listener.local_addr().unwrap();
        let mut client = lab.inside(from, || TcpStream::connect(door).unwrap()).unwrap();
        let (mut served, peer) = listener.accept().unwrap();
        client.write_all(b"hello").unwrap();
        let mut heard = [0; 5];
        served.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"hello");
        peer.ip()
    }

    #[test]
    fn every_host_reaches_edge_with_its_own_address_in_both_families() {
        let lab = Lab::build().unwrap();
        for host in Host::ALL.into_iter().filter(|host| *host != Host::Edge) {
            assert_eq!(seen_as(&lab, host, Host::Edge.address()), host.address(), "{host:?}");
            assert_eq!(seen_as(&lab, host, Host::Edge.address6()), host.address6(), "{host:?}");
        }
    }

    #[test]
    fn the_attacker_is_whoever_of_the_crowd_it_likes() {
        let lab = Lab::build().unwrap();
        for (from, to) in [
            ("10.66.7.8", Host::Edge.address()),
            ("10.71.255.1", Host::Edge.address()),
            ("fd66:0:0:beef::7", Host::Edge.address6()),
        ] {
            let from: IpAddr = from.parse().unwrap();
            let sink = lab.inside(Host::Edge, || UdpSocket::bind((to, 0)).unwrap()).unwrap();
            let door = sink.local_addr().unwrap();
            let source = lab.inside(Host::Attacker, || UdpSocket::bind((from, 0)).unwrap()).unwrap();
            source.send_to(b"x", door).unwrap();
            let (_, heard): (_, SocketAddr) = sink.recv_from(&mut [0; 8]).unwrap();
            assert_eq!(heard.ip(), from);
            // And the answer finds it.
            sink.send_to(b"y", heard).unwrap();
            source.recv(&mut [0; 8]).unwrap();
        }
    }

    #[test]
    fn programs_run_in_the_namespace_they_are_started_in() {
        let lab = Lab::build().unwrap();
        let mut command = lab.command(Host::Office, "ip");
        let done = command.args(["-o", "-4", "address"]).output().unwrap();
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        assert!(text.contains("10.77.2.4/16") && !text.contains("10.77.0.1/"), "{text}");
        // A program started from a thread that has moved there is there, too.
        let inherited = || Command::new("ip").args(["-o", "-4", "address"]).output().unwrap();
        let done = lab.inside(Host::Office, inherited).unwrap();
        assert_eq!(text, String::from_utf8_lossy(&done.stdout));
    }

    #[test]
    fn nothing_is_left_behind() {
        let lab = Lab::build().unwrap();
        let path = Path::new(NAMES).join(lab.name(Host::Edge));
        let prefix = lab.prefix.clone();
        assert!(path.exists());
        drop(lab);
        let left: Vec<_> = std::fs::read_dir(NAMES)
            .unwrap()
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(&format!("{prefix}-")))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }

    #[test]
    fn only_the_dead_leave_leftovers() {
        let own = std::process::id();
        assert!(!is_leftover(&format!("{MARK}-{own}-0-edge")));
        // Process ids end well below this.
        assert!(is_leftover(&format!("{MARK}-4294967295-0-edge")));
        assert!(!is_leftover("somebody-4294967295-0-edge"));
        assert!(!is_leftover(MARK));
    }
}
