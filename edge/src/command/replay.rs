//! `edge replay`: who would be banned by a configuration, had it been in force when these logs
//! were written; and what the configuration in force would have done. Changes nothing anywhere.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use serde::Serialize;

use super::{Failure, pretty, read, say};
use crate::ban::jail::{Excuse, Ruling};
use crate::ban::{Action, shown};
use crate::config::Config;
use crate::log_watch::detector::{Clock, Detector, Finding, Line, OWN};

/// Longer lines are nobody's log lines.
const MAX_LINE: u64 = 64 * 1024;
/// Networks shown of each list; the JSON form has all.
const SHOWN: usize = 50;

/// `edge replay LOG…`
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// Access logs (combined format) and logs that a jail of either configuration names; oldest first.
    #[arg(required = true, value_name = "LOG")]
    logs: Vec<PathBuf>,
    /// The configuration in force, which the one of --config is compared with.
    #[arg(long, value_name = "FILE", default_value = "/etc/edge/edge.toml")]
    present: PathBuf,
}

/// What one configuration would have done.
#[derive(Debug, Default, Serialize)]
struct Outcome {
    /// Network → the jails that would have banned it, with how often.
    banned: BTreeMap<String, BTreeMap<String, u32>>,
    /// As `banned`, of jails that throttle.
    throttled: BTreeMap<String, BTreeMap<String, u32>>,
    /// As `banned`, of jails that only log.
    logged: BTreeMap<String, BTreeMap<String, u32>>,
    /// Jails that would have gone log-only, having banned too many at once.
    braked: Vec<String>,
    /// Clients of the logs that one of `banned` covers.
    clients_hit: usize,
}

/// The whole answer.
#[derive(Debug, Serialize)]
struct Report {
    lines: u64,
    lines_too_long: u64,
    clients: usize,
    new: Outcome,
    present: Option<Outcome>,
    only_new: Vec<String>,
    only_present: Vec<String>,
}

/// Runs it.
///
/// # Errors
/// A configuration is bad, or a log cannot be read.
pub fn run(arguments: &Arguments, config: &Path, json: bool) -> Result<(), Failure> {
    let mut new = Rehearsal::new(&read(config)?)?;
    let same = same_file(config, &arguments.present);
    // Without another configuration there is nothing to compare with.
    let mut present = match same || !arguments.present.exists() {
        true => None,
        false => Some(Rehearsal::new(&read(&arguments.present)?)?),
    };
    let (mut lines, mut too_long) = (0, 0);
    let mut clients = HashSet::new();
    for log in &arguments.logs {
        // Jails name their logs by absolute paths.
        let log = &log.canonicalize().unwrap_or_else(|_| log.clone());
        each_line(log, |line| {
            let Some(line) = line else {
                too_long += 1;
                return;
            };
            lines += 1;
            if let Some(client) = first_address(line) {
                clients.insert(client);
            }
            new.line(log, line);
            if let Some(present) = &mut present {
                present.line(log, line);
            }
        })?;
    }
    let report = Report::new(lines, too_long, &clients, new, present);
    if json { say(&pretty(&report)?) } else { say(report.to_string().trim_end()) }
}

fn same_file(left: &Path, right: &Path) -> bool {
    match (left.canonicalize(), right.canonicalize()) {
        (Ok(left), Ok(right)) => left == right,
        _ => left == right,
    }
}

/// Calls `each` for every line; with `None` for one that is too long.
fn each_line(log: &Path, mut each: impl FnMut(Option<&[u8]>)) -> Result<(), Failure> {
    let failed = |error| Failure::run(format!("{}: cannot be read: {error}", log.display()));
    let mut reader = BufReader::with_capacity(256 * 1024, File::open(log).map_err(failed)?);
    if reader.fill_buf().map_err(failed)?.starts_with(&[0x1f, 0x8b]) {
        let what = format!("{}: is compressed; write `gunzip -k {0}` first", log.display());
        return Err(Failure::run(what));
    }
    let mut line = Vec::new();
    let mut skipping = false;
    loop {
        line.clear();
        let read = reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line).map_err(failed)?;
        if read == 0 {
            return Ok(());
        }
        let whole = line.last() == Some(&b'\n') || (read as u64) < MAX_LINE;
        if !skipping {
            each(whole.then(|| line.trim_ascii_end()));
        }
        skipping = !whole;
    }
}

/// Every log that counts for clients begins with their address.
fn first_address(line: &[u8]) -> Option<IpAddr> {
    let word = line.split(|byte| byte.is_ascii_whitespace()).next()?;
    std::str::from_utf8(word).ok()?.parse().ok()
}

/// One configuration at work on old lines.
struct Rehearsal {
    detector: Detector,
    names: Vec<String>,
    now: Duration,
    clients: HashSet<IpAddr>,
    found: Vec<Finding>,
    banned: BTreeMap<IpNet, BTreeMap<String, u32>>,
    throttled: BTreeMap<IpNet, BTreeMap<String, u32>>,
    logged: BTreeMap<IpNet, BTreeMap<String, u32>>,
}

impl Rehearsal {
    fn new(config: &Config) -> Result<Self, Failure> {
        let bans = config.bans.clone();
        let names = bans.jails.iter().map(|jail| jail.name.clone()).collect();
        let detector = Detector::new(&bans.filters, bans.jails, bans.never, bans.max_bans)
            .map_err(|faults| Failure::configuration(faults.0))?;
        Ok(Self {
            detector,
            names,
            now: Duration::ZERO,
            clients: HashSet::new(),
            found: Vec::new(),
            banned: BTreeMap::new(),
            throttled: BTreeMap::new(),
            logged: BTreeMap::new(),
        })
    }

    fn line(&mut self, log: &Path, text: &[u8]) {
        let sources: Vec<usize> = std::iter::once(OWN).chain(self.detector.sources_of(log)).collect();
        if let Some(client) = first_address(text) {
            self.clients.insert(client);
        }
        for source in sources {
            let line = Line { source, text, at: None, client: None, cross_site: false };
            self.detector.read(line, Clock::Rehearsal(self.now), self.clients.len(), &mut self.found);
        }
        for Finding { jail, at, ruling, .. } in self.found.drain(..) {
            self.now = self.now.max(at);
            let (place, sentence) = match ruling {
                Ruling::Sentenced(sentence) if sentence.action == Action::Throttle => {
                    (&mut self.throttled, sentence)
                }
                Ruling::Sentenced(sentence) => (&mut self.banned, sentence),
                Ruling::Excused(sentence, Excuse::LogOnly) => (&mut self.logged, sentence),
                _ => continue,
            };
            let jail = self.names.get(jail).cloned().unwrap_or_default();
            *place.entry(sentence.network).or_default().entry(jail).or_default() += 1;
        }
        self.detector.jails.expire(self.now);
    }

    fn outcome(self, clients: &HashSet<IpAddr>) -> Outcome {
        let hit = |client: &&IpAddr| self.banned.keys().any(|network| network.contains(*client));
        let clients_hit = clients.iter().filter(hit).count();
        let braked = self.detector.jails.braked();
        let braked = braked.into_iter().filter_map(|jail| self.names.get(jail).cloned()).collect();
        Outcome {
            banned: named(self.banned),
            throttled: named(self.throttled),
            logged: named(self.logged),
            braked,
            clients_hit,
        }
    }
}

fn named(networks: BTreeMap<IpNet, BTreeMap<String, u32>>) -> BTreeMap<String, BTreeMap<String, u32>> {
    networks.into_iter().map(|(network, jails)| (shown(network), jails)).collect()
}

impl Report {
    fn new(
        lines: u64,
        lines_too_long: u64,
        clients: &HashSet<IpAddr>,
        new: Rehearsal,
        present: Option<Rehearsal>,
    ) -> Self {
        let new = new.outcome(clients);
        let present = present.map(|present| present.outcome(clients));
        let only = |left: &Outcome, right: &Outcome| -> Vec<String> {
            left.banned.keys().filter(|network| !right.banned.contains_key(*network)).cloned().collect()
        };
        let (only_new, only_present) = match &present {
            Some(present) => (only(&new, present), only(present, &new)),
            None => (Vec::new(), Vec::new()),
        };
        Self { lines, lines_too_long, clients: clients.len(), new, present, only_new, only_present }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} lines of {} clients", self.lines, self.clients)?;
        if self.lines_too_long > 0 {
            writeln!(f, "{} lines were too long and left out", self.lines_too_long)?;
        }
        outcome(f, "this configuration", &self.new, self.clients)?;
        let Some(present) = &self.present else {
            return writeln!(f, "no other configuration to compare with");
        };
        outcome(f, "the one in force", present, self.clients)?;
        writeln!(f, "banned only by this one: {}", self.only_new.len())?;
        shortened(f, &self.only_new)?;
        writeln!(f, "banned only by the one in force: {}", self.only_present.len())?;
        shortened(f, &self.only_present)
    }
}

fn outcome(f: &mut fmt::Formatter<'_>, who: &str, outcome: &Outcome, clients: usize) -> fmt::Result {
    #[expect(clippy::cast_precision_loss, reason = "a share for people to read")]
    let share = 100.0 * outcome.clients_hit as f64 / clients.max(1) as f64;
    writeln!(
        f,
        "{who}: {} banned, {} throttled, {} only logged; {} clients hit, {share:.2} % of all",
        outcome.banned.len(),
        outcome.throttled.len(),
        outcome.logged.len(),
        outcome.clients_hit,
    )?;
    if !outcome.braked.is_empty() {
        writeln!(f, "  went log-only after too many bans at once: {}", outcome.braked.join(", "))?;
    }
    let lists = [("banned", &outcome.banned), ("throttled", &outcome.throttled), ("logged", &outcome.logged)];
    for (what, networks) in lists {
        for (network, jails) in networks.iter().take(SHOWN) {
            let jails: Vec<String> = jails.iter().map(|(jail, times)| format!("{jail} {times}x")).collect();
            writeln!(f, "  {what:<10}{network:<24}{}", jails.join(", "))?;
        }
        if networks.len() > SHOWN {
            writeln!(f, "  {what:<10}and {} more; --json shows all", networks.len() - SHOWN)?;
        }
    }
    Ok(())
}

fn shortened(f: &mut fmt::Formatter<'_>, networks: &[String]) -> fmt::Result {
    for network in networks.iter().take(SHOWN) {
        writeln!(f, "  {network}")?;
    }
    if networks.len() > SHOWN {
        writeln!(f, "  and {} more; --json shows all", networks.len() - SHOWN)?;
    }
    Ok(())
}
