//! `edge replay`: who would be banned by a configuration, had it been in force when these logs
//! were written; and what the configuration in force would have done. Changes nothing anywhere.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::io::{self, BufRead as _, Read as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use serde::Serialize;

use super::{FAILED, Failure, logs, pretty, read, say};
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
    /// Access logs (combined format) and logs that a jail of either configuration names, rotated ones
    /// too, plain or gzip's; the one that was last written is read last.
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
    /// No filter found a date in them; or it is an access log's, and no client's address first.
    lines_not_understood: u64,
    /// Logs that were not read, or not to their end, and why.
    unread: Vec<String>,
    clients: usize,
    new: Outcome,
    present: Option<Outcome>,
    only_new: Vec<String>,
    only_present: Vec<String>,
}

/// Runs it.
///
/// # Errors
/// A configuration is bad, or a log cannot be read; the others are read all the same.
pub fn run(arguments: &Arguments, config: &Path, json: bool) -> Result<(), Failure> {
    let report = rehearse(arguments, config)?;
    let unread = report.unread.clone();
    if report.lines > 0 || unread.is_empty() {
        say(&if json { pretty(&report)? } else { report.to_string().trim_end().to_owned() })?;
    }
    if unread.is_empty() { Ok(()) } else { Err(Failure { code: FAILED, lines: unread }) }
}

fn rehearse(arguments: &Arguments, config: &Path) -> Result<Report, Failure> {
    let mut new = Rehearsal::new(&read(config)?)?;
    let same = same_file(config, &arguments.present);
    // Without another configuration there is nothing to compare with.
    let mut present = match same || !arguments.present.exists() {
        true => None,
        false => Some(Rehearsal::new(&read(&arguments.present)?)?),
    };
    let mut read = Read::default();
    for log in in_order(&arguments.logs) {
        let each = |line: Option<&[u8]>| {
            let Some(line) = line else {
                read.too_long += 1;
                return;
            };
            read.lines += 1;
            if let Some(client) = first_address(line) {
                read.clients.insert(client);
            }
            let understood = new.line(&log, line);
            let by_present = present.as_mut().is_some_and(|present| present.line(&log, line));
            read.not_understood += u64::from(!understood && !by_present);
        };
        if let Err(error) = each_line(&log, each) {
            read.unread.push(format!("{}: cannot be read: {error}", log.display()));
        }
    }
    Ok(Report::new(read, new, present))
}

/// Of all logs together.
#[derive(Debug, Default)]
struct Read {
    lines: u64,
    too_long: u64,
    not_understood: u64,
    clients: HashSet<IpAddr>,
    unread: Vec<String>,
}

/// As they were last written, oldest first: a shell names `access.log` before `access.log.1`.
fn in_order(logs: &[PathBuf]) -> Vec<PathBuf> {
    // Jails name their logs by absolute paths.
    let absolute = logs.iter().map(|log| log.canonicalize().unwrap_or_else(|_| log.clone()));
    let mut logs: Vec<PathBuf> = absolute.collect();
    logs.sort_by_cached_key(|log| log.metadata().and_then(|about| about.modified()).ok());
    logs
}

fn same_file(left: &Path, right: &Path) -> bool {
    match (left.canonicalize(), right.canonicalize()) {
        (Ok(left), Ok(right)) => left == right,
        _ => left == right,
    }
}

/// Calls `each` for every line; with `None` for one that is too long.
fn each_line(log: &Path, mut each: impl FnMut(Option<&[u8]>)) -> io::Result<()> {
    let mut reader = logs::open(log)?;
    let mut line = Vec::new();
    let mut skipping = false;
    loop {
        line.clear();
        let read = (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line)?;
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

    /// Whether any source understood it.
    fn line(&mut self, log: &Path, text: &[u8]) -> bool {
        let sources: Vec<usize> = std::iter::once(OWN).chain(self.detector.sources_of(log)).collect();
        let client = first_address(text);
        self.clients.extend(client);
        let mut understood = false;
        for source in sources {
            let undated = self.detector.figures().undated;
            let line = Line { source, text, at: None, client: None, cross_site: false };
            self.detector.read(line, Clock::Rehearsal(self.now), self.clients.len(), &mut self.found);
            let dated = self.detector.figures().undated == undated;
            understood |= dated && (source != OWN || client.is_some());
        }
        understood |= !self.found.is_empty();
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
        understood
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
    fn new(read: Read, new: Rehearsal, present: Option<Rehearsal>) -> Self {
        let new = new.outcome(&read.clients);
        let present = present.map(|present| present.outcome(&read.clients));
        let only = |left: &Outcome, right: &Outcome| -> Vec<String> {
            left.banned.keys().filter(|network| !right.banned.contains_key(*network)).cloned().collect()
        };
        let (only_new, only_present) = match &present {
            Some(present) => (only(&new, present), only(present, &new)),
            None => (Vec::new(), Vec::new()),
        };
        Self {
            lines: read.lines,
            lines_too_long: read.too_long,
            lines_not_understood: read.not_understood,
            unread: read.unread,
            clients: read.clients.len(),
            new,
            present,
            only_new,
            only_present,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.clients {
            0 => writeln!(f, "{} lines; none begins with a client's address", self.lines)?,
            clients => writeln!(f, "{} lines of {clients} clients", self.lines)?,
        }
        if self.lines_not_understood > 0 {
            let count = self.lines_not_understood;
            writeln!(f, "{count} lines were not understood: no date, or of no log that a jail reads")?;
        }
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
    let hit = match clients {
        // An application's log names its clients elsewhere, or not at all.
        0 => "of how many clients cannot be told".to_owned(),
        _ => format!("{} clients hit, {share:.2} % of all", outcome.clients_hit),
    };
    writeln!(
        f,
        "{who}: {} banned, {} throttled, {} only logged; {hit}",
        outcome.banned.len(),
        outcome.throttled.len(),
        outcome.logged.len(),
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

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::SystemTime;

    use super::*;

    const LEAST: &str = "name = \"www.example.org\"\n[listen]\nhttps = [\"0.0.0.0:8443\"]\n[[certificate]]\n\
                         names = [\"www.example.org\"]\ncertificate_file = \"/c\"\nkey_file = \"/k\"\n[[upstream]]\n\
                         name = \"app\"\nservers = [\"127.0.0.1:9000\"]\n[[route]]\nupstream = \"app\"\n\
                         [bans]\njails_folder = \"none\"\n";

    /// Logs by name and age in minutes, in a folder with a configuration that ends with `jails`.
    fn replayed(logs: &[(&str, &[u8], u64)], jails: &str) -> Report {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().canonicalize().unwrap();
        let config = place.join("edge.toml");
        std::fs::write(&config, format!("{LEAST}{}", jails.replace("PLACE", &place.display().to_string())))
            .unwrap();
        for (name, bytes, age) in logs {
            std::fs::write(place.join(name), bytes).unwrap();
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000 - age * 60);
            std::fs::File::options().write(true).open(place.join(name)).unwrap().set_modified(at).unwrap();
        }
        let logs = logs.iter().map(|(name, ..)| place.join(name)).chain([place.join("gone")]);
        let arguments = Arguments { logs: logs.collect(), present: place.join("none") };
        rehearse(&arguments, &config).unwrap()
    }

    fn packed(text: &str) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    }

    fn attack(minute: u32) -> String {
        format!(
            "203.0.113.7 - - [21/Sep/2026:14:{minute:02}:00 +0000] \"GET /../../etc/passwd HTTP/1.1\" 400 0 \"-\" \"-\"\n"
        )
    }

    #[test]
    fn rotated_and_compressed_logs_are_read_in_the_order_of_their_lines_and_the_others_named() {
        let old = packed(&attack(1));
        let zstd: &[u8] = &[0x28, 0xB5, 0x2F, 0xFD, 0];
        let new = attack(3);
        let logs: [(&str, &[u8], u64); 3] =
            [("access.log", new.as_bytes(), 0), ("access.log.2.gz", &old, 9), ("access.log.3", zstd, 20)];
        let report = replayed(&logs, "");
        assert_eq!((report.lines, report.clients, report.lines_not_understood), (2, 1, 0));
        assert!(report.new.banned["203.0.113.7"].contains_key("path-traversal"), "{report}");
        assert_eq!(report.unread.len(), 2, "{:?}", report.unread);
        assert!(
            report
                .unread
                .iter()
                .any(|what| what.contains("access.log.3: cannot be read: is compressed with zstd"))
        );
        assert!(report.unread.iter().any(|what| what.contains("gone: cannot be read")));
    }

    #[test]
    fn lines_that_nobody_understands_are_counted_and_no_share_of_no_clients_is_told() {
        let logs: [(&str, &[u8], u64); 1] = [("access.log", b"rubbish\nmore of it\n", 0)];
        let report = replayed(&logs, "");
        assert_eq!((report.lines, report.lines_not_understood), (2, 2));
        let text = report.to_string();
        assert!(
            text.starts_with("2 lines; none begins with a client's address\n2 lines were not understood: "),
            "{text}"
        );
        assert!(!text.contains("0 clients hit"), "{text}");
    }

    #[test]
    fn an_applications_rotated_log_is_read_by_its_jail() {
        let jails = "[[filter]]\nname = \"app\"\nfailregex = ['refused <HOST>$']\n[[jail]]\nname = \"app\"\n\
                     filter = \"app\"\nmax_offences = 2\nlogs = [\"PLACE/app.log\"]\n";
        let line = |minute: u32| format!("2026-09-21 14:{minute:02}:00 refused 203.0.113.7\n");
        let log = packed(&format!("{}{}2026-09-21 14:03:00 all is well\n", line(1), line(2)));
        let report = replayed(&[("app.log.2.gz", &log, 0)], jails);
        assert_eq!((report.lines, report.lines_not_understood, report.clients), (3, 0, 0));
        assert!(report.new.banned["203.0.113.7"].contains_key("app"), "{report}");
        assert!(
            report
                .to_string()
                .contains("1 banned, 0 throttled, 0 only logged; of how many clients cannot be told")
        );
    }
}
