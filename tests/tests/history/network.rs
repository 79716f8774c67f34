//! Two vaults, their callers and the database servers, each in a network namespace of its own, on
//! one wire that can be cut anywhere. Knows addresses and packets; not what runs there. The machine's own network and
//! firewall are never touched.

use std::ffi::OsString;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};

use anyhow::Context;
use harness::netns::{add_namespace, fresh_prefix, inside_namespace, ip};

/// Where the wire's bridge is.
const STREET: &str = "street";
/// Everybody's interface.
const WIRE: &str = "wire0";

/// Who lives there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// The first or the second vault.
    Vault(usize),
    /// Everybody who asks them.
    Callers,
    /// A server of the ledger's database.
    Database(usize),
}

/// What is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The vaults do not hear each other.
    Link,
    /// This vault does not hear the other, which hears it.
    Deaf(usize),
    /// The callers and this vault do not hear each other.
    Callers(usize),
    /// The callers do not hear this vault, which hears them: it acts, and nobody is told.
    Mute(usize),
    /// This database server and both vaults do not hear each other.
    Database(usize),
    /// This database server and the others do not hear each other.
    Feed(usize),
}

/// The network. Its namespaces go when it is dropped; what runs in them must be stopped before.
#[derive(Debug)]
pub(crate) struct Network {
    prefix: String,
    places: Vec<Place>,
}

impl Place {
    fn name(self) -> String {
        match self {
            Self::Vault(0) => "one".to_owned(),
            Self::Vault(_) => "two".to_owned(),
            Self::Callers => "ask".to_owned(),
            Self::Database(server) => format!("db{server}"),
        }
    }

    /// Its address.
    pub(crate) fn address(self) -> IpAddr {
        let last = match self {
            Self::Vault(0) => 1,
            Self::Vault(_) => 2,
            Self::Callers => 3,
            Self::Database(server) => u8::try_from(server).map_or(u8::MAX, |server| 11 + server),
        };
        IpAddr::V4(Ipv4Addr::new(10, 79, 0, last))
    }
}

impl Network {
    /// Lays it, with room for so many database servers.
    ///
    /// # Errors
    /// Not root, no `ip`, or the kernel refuses.
    pub(crate) fn build(databases: usize) -> anyhow::Result<Self> {
        let places = [Place::Vault(0), Place::Vault(1), Place::Callers];
        let places = places.into_iter().chain((0..databases).map(Place::Database)).collect();
        let network = Self { prefix: fresh_prefix()?, places };
        let street = network.street();
        add_namespace(&street)?;
        ip(&["-n", &street, "link", "add", "bridge0", "type", "bridge", "stp_state", "0"])?;
        ip(&["-n", &street, "link", "set", "bridge0", "up"])?;
        for place in network.places.iter().copied() {
            let own = network.name(place);
            add_namespace(&own)?;
            let plug = &place.name();
            ip(&["-n", &street, "link", "add", plug, "type", "veth", "peer", "name", WIRE, "netns", &own])?;
            ip(&["-n", &street, "link", "set", plug, "master", "bridge0", "up"])?;
            ip(&["-n", &own, "address", "add", &format!("{}/24", place.address()), "dev", WIRE])?;
            ip(&["-n", &own, "link", "set", WIRE, "up"])?;
        }
        Ok(network)
    }

    /// Runs `work` there, with all threads and programs that it starts.
    ///
    /// # Errors
    /// The namespace is gone.
    pub(crate) fn inside<T: Send>(&self, place: Place, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        inside_namespace(&self.name(place), work)
    }

    /// What stands before a program, so that it runs there with its own process id.
    pub(crate) fn wrapper(&self, place: Place) -> Vec<OsString> {
        ["ip", "netns", "exec"].map(OsString::from).into_iter().chain([self.name(place).into()]).collect()
    }

    /// Drops the packets that `cut` stands for, beside those dropped already.
    ///
    /// # Errors
    /// What `nft` said.
    pub(crate) fn cut(&self, cut: Cut) -> anyhow::Result<()> {
        let vaults = || vec![Place::Vault(0), Place::Vault(1)];
        let others = |own: usize| {
            let is_other = |place: &Place| matches!(place, Place::Database(server) if *server != own);
            self.places.iter().copied().filter(is_other).collect::<Vec<_>>()
        };
        let (at, from, to) = match cut {
            Cut::Link => (Place::Vault(0), vec![Place::Vault(1)], vec![Place::Vault(1)]),
            Cut::Deaf(vault) => (Place::Vault(vault), vec![Place::Vault(1 - vault)], vec![]),
            Cut::Callers(vault) => (Place::Vault(vault), vec![Place::Callers], vec![Place::Callers]),
            Cut::Mute(vault) => (Place::Vault(vault), vec![], vec![Place::Callers]),
            Cut::Database(server) => (Place::Database(server), vaults(), vaults()),
            Cut::Feed(server) => (Place::Database(server), others(server), others(server)),
        };
        let mut rules = String::from(
            "add table inet cut\n\
             add chain inet cut hear { type filter hook input priority 0; }\n\
             add chain inet cut say { type filter hook output priority 0; }\n",
        );
        for from in from {
            rules += &format!("add rule inet cut hear ip saddr {} drop\n", from.address());
        }
        for to in to {
            rules += &format!("add rule inet cut say ip daddr {} drop\n", to.address());
        }
        self.nft(at, &rules)
    }

    /// The vaults hear each other and the callers again.
    ///
    /// # Errors
    /// What `nft` said.
    pub(crate) fn heal(&self) -> anyhow::Result<()> {
        [Place::Vault(0), Place::Vault(1)].into_iter().try_for_each(|place| self.mend(place))
    }

    /// Everybody hears every database server again.
    ///
    /// # Errors
    /// What `nft` said.
    pub(crate) fn heal_databases(&self) -> anyhow::Result<()> {
        let databases = self.places.iter().copied().filter(|place| matches!(place, Place::Database(_)));
        databases.into_iter().try_for_each(|place| self.mend(place))
    }

    fn mend(&self, place: Place) -> anyhow::Result<()> {
        self.nft(place, "add table inet cut\ndelete table inet cut\n")
    }

    fn nft(&self, place: Place, rules: &str) -> anyhow::Result<()> {
        let mut child = Command::new("ip")
            .args(["netns", "exec", &self.name(place), "nft", "-f", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("ip cannot be run")?;
        child.stdin.take().context("no input")?.write_all(rules.as_bytes())?;
        let done = child.wait_with_output()?;
        anyhow::ensure!(done.status.success(), "nft: {}", String::from_utf8_lossy(&done.stderr).trim());
        Ok(())
    }

    fn name(&self, place: Place) -> String {
        format!("{}-{}", self.prefix, place.name())
    }

    fn street(&self) -> String {
        format!("{}-{STREET}", self.prefix)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in self.places.iter().map(|place| self.name(*place)).chain([self.street()]) {
            // Perhaps it was never made.
            let _ = ip(&["netns", "delete", &name]);
        }
    }
}
