//! A vault pair that bridges brokers, for stories: writes `[[remote_broker]]` and `[[bridge]]`, and asks
//! the vaults how it stands. Must not know what should come of it.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;

use crate::broker::Broker;
use crate::vault_host::{Pair, PairPlan, Vault};
use crate::wait;

/// The sections of both vaults' files.
#[derive(Debug, Clone, Default)]
pub struct Sections(String);

impl Sections {
    /// A broker, with further lines of its section; a silent one is given up after seconds.
    #[must_use]
    pub fn broker(self, name: &str, uri: &str, lines: &str) -> Self {
        self.brokers(name, &[uri.to_owned()], lines)
    }

    /// The same with several addresses, tried from the first to the last.
    #[must_use]
    pub fn brokers(self, name: &str, uris: &[String], lines: &str) -> Self {
        let options = "wireFormat.maxInactivityDuration=3000&connectionTimeout=5000";
        let uris: Vec<String> = uris.iter().map(|uri| format!("{uri}?{options}")).collect();
        let uri = format!("failover:({})?randomize=false&maxReconnectDelay=500", uris.join(","));
        self.raw(&format!("[[remote_broker]]\nname = \"{name}\"\nuri = \"{uri}\"\n{lines}\n"))
    }

    /// A broker of the harness under its own name, open to everybody.
    #[must_use]
    pub fn open(self, broker: &Broker) -> Self {
        self.broker(&broker.name, &broker.uri(), "")
    }

    /// What is carried from one to another, named `FROM-to-TO`, with further lines of its section.
    #[must_use]
    pub fn way(self, from: &str, to: &str, destination: &str, lines: &str) -> Self {
        self.named(&format!("{from}-to-{to}"), [from, to], destination, lines)
    }

    /// The same under a name of its own.
    #[must_use]
    pub fn named(self, name: &str, [from, to]: [&str; 2], destination: &str, lines: &str) -> Self {
        self.raw(&format!(
            "[[bridge]]\nname = \"{name}\"\nfrom = \"{from}\"\nto = \"{to}\"\ndestination = \"{destination}\"\n{lines}\n"
        ))
    }

    fn raw(mut self, text: &str) -> Self {
        let _ = writeln!(self.0, "{text}");
        self
    }

    /// Starts a pair with them.
    ///
    /// # Errors
    /// As [`Pair::start`].
    pub fn start(self, folder: &Path, plan: PairPlan) -> anyhow::Result<Pair> {
        Pair::start(folder, &PairPlan { storage: self.0, ..plan })
    }
}

/// A bridge as a vault tells of it.
///
/// # Errors
/// The vault does not answer, or has no such bridge.
pub fn told(vault: &Vault, name: &str) -> anyhow::Result<Value> {
    let report: Value = serde_json::from_str(&vault.command(&["bridge", "status", "--json"])?)?;
    report["directions"].get(name).cloned().with_context(|| format!("no bridge {name} in {report}"))
}

/// A bridge's messages at one hop (as `forwarded`), over both vaults.
///
/// # Errors
/// As [`told`].
pub fn total(pair: &Pair, name: &str, hop: &str) -> anyhow::Result<u64> {
    let of = |vault: &Vault| told(vault, name)?[hop].as_u64().with_context(|| format!("no hop {hop}"));
    Ok(of(&pair.vaults[0])? + of(&pair.vaults[1])?)
}

/// Waits until so many have got to the target.
///
/// # Errors
/// The deadline, with what both vaults say.
pub fn wait_forwarded(pair: &Pair, name: &str, number: u64, within: Duration) -> anyhow::Result<()> {
    wait::until(&format!("{number} messages are forwarded by {name}"), within, || {
        let forwarded = total(pair, name, "forwarded")?;
        let told = || pair.vaults[0].command(&["bridge", "status"]).unwrap_or_default();
        anyhow::ensure!(forwarded == number, "{forwarded} are\n{}", told());
        Ok(())
    })
}

/// Waits until one of the vaults carries it, and tells which.
///
/// # Errors
/// The deadline, with what both vaults say.
pub fn wait_carried(pair: &Pair, name: &str, within: Duration) -> anyhow::Result<usize> {
    wait::until(&format!("{name} is carried"), within, || {
        let states: Vec<_> = pair.vaults.iter().map(|vault| told(vault, name)).collect();
        let carries = |told: &anyhow::Result<Value>| told.as_ref().is_ok_and(|it| it["state"] == "carrying");
        states.iter().position(carries).with_context(|| format!("{states:?}"))
    })
}

/// Waits until this one of the vaults carries it.
///
/// # Errors
/// The deadline, with what it says.
pub fn wait_carried_by(vault: &Vault, name: &str, within: Duration) -> anyhow::Result<()> {
    wait::until(&format!("{} carries {name}", vault.name), within, || {
        let told = told(vault, name)?;
        anyhow::ensure!(told["state"] == "carrying", "{told}");
        Ok(())
    })
}
