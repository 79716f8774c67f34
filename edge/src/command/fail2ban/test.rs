//! `edge fail2ban test LOG FILTER`: what a filter finds in a log, told as fail2ban-regex tells it.
//! Knows files and how an answer is shown; must not know how lines are matched. Bans nobody.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::io::{BufRead as _, Read as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::Args;
use serde::Serialize;

use crate::ban::FilterText;
use crate::ban::fail2ban::{filter_and_options, read_filter};
use crate::ban::filter::{Figures, Filter, FilterSet, Hit, Limits, TimeZone};
use crate::command::{Failure, logs, pretty, say};

/// Lines that are shown of each kind, where not all are asked for.
const SHOWN: usize = 20;
/// Lines that are shown of each kind where all are: an answer that fits in memory.
const MOST_SHOWN: usize = 100_000;
/// Hosts that are told apart.
const MOST_HOSTS: usize = 100_000;
/// A line is read this far; the rest of a longer one is passed over.
const LONGEST: u64 = 1 << 20;

/// What `edge fail2ban test` is asked.
#[derive(Debug, Args)]
pub struct Arguments {
    /// A log file, or one line of it.
    pub log: String,
    /// A filter's name (`sshd`, `sshd[mode=aggressive]`), its file (`…/filter.d/sshd.conf`), or a failregex.
    pub filter: String,
    /// An ignoreregex, besides the filter's own.
    pub ignoreregex: Option<String>,
    /// Where filter.d lies.
    #[arg(long, short, default_value = "/etc/fail2ban")]
    pub config: PathBuf,
    /// How dates are written, instead of the filter's own way.
    #[arg(long, short)]
    pub datepattern: Option<String>,
    /// How many lines one offence may span, instead of the filter's own number.
    #[arg(long, short = 'L')]
    pub maxlines: Option<usize>,
    /// Where dates that name no zone were written (`Europe/Zurich`, `UTC`), instead of here.
    #[arg(long)]
    pub timezone: Option<String>,
    /// Show every line that is an offence.
    #[arg(long)]
    pub print_all_matched: bool,
    /// Show every line that is none, not only the first 20.
    #[arg(long, conflicts_with = "print_no_missed")]
    pub print_all_missed: bool,
    /// Show every line that an ignoreregex took back, not only the first 20.
    #[arg(long)]
    pub print_all_ignored: bool,
    /// Show no line that is no offence.
    #[arg(long)]
    pub print_no_missed: bool,
}

/// The answer.
#[derive(Debug, Default, Serialize)]
struct Report {
    filter: String,
    lines: u64,
    matched: u64,
    ignored: u64,
    missed: u64,
    failregex: Vec<PatternHits>,
    hosts: Vec<HostHits>,
    dates: Vec<DateHits>,
    undated: u64,
    too_long: u64,
    backtrack_limit: u64,
    forgeable: Vec<String>,
    matched_lines: Vec<String>,
    ignored_lines: Vec<String>,
    missed_lines: Vec<String>,
}

#[derive(Debug, Serialize)]
struct PatternHits {
    number: usize,
    hits: u64,
    pattern: String,
}

#[derive(Debug, Serialize)]
struct HostHits {
    host: String,
    hits: u64,
    /// Seconds since 1970 of the last one that had a date.
    last: Option<u64>,
}

#[derive(Debug, Serialize)]
struct DateHits {
    template: String,
    hits: u64,
}

/// Tries the filter on the log and says what came of it.
///
/// # Errors
/// No such filter, a filter that is wrong, or a log that cannot be read.
pub fn run(arguments: &Arguments, json: bool) -> Result<(), Failure> {
    let text = filter_text(arguments)?;
    let zone = match &arguments.timezone {
        None => TimeZone::system(),
        Some(name) => TimeZone::get(name).map_err(|error| {
            Failure::usage(format!("--timezone {name}: {error}; write a name such as Europe/Zurich, or UTC"))
        })?,
    };
    let limits = Limits { zone, ..Limits::default() };
    let set = Filter::compile(&text).and_then(|filter| FilterSet::with(vec![filter], limits));
    let set = set.map_err(Failure::configuration)?;
    let report = examine(arguments, &text, set)?;
    match json {
        true => say(&pretty(&report)?),
        false => say(&shown(&report, arguments)),
    }
}

/// The filter that is asked for, with what the command line says instead.
fn filter_text(arguments: &Arguments) -> Result<FilterText, Failure> {
    let asked = arguments.filter.as_str();
    let mut text = match named(asked, &arguments.config)? {
        Some((folder, name, options)) => read_filter(&folder, &name, &options).map_err(Failure::run)?,
        None => FilterText {
            name: "failregex".into(),
            failregex: vec![asked.to_owned()],
            max_lines: 1,
            ..FilterText::default()
        },
    };
    text.ignoreregex.extend(arguments.ignoreregex.clone());
    if let Some(pattern) = &arguments.datepattern {
        text.datepattern = vec![pattern.clone()];
    }
    text.max_lines = arguments.maxlines.unwrap_or(text.max_lines);
    Ok(text)
}

/// A filter's folder, name and options; `None`: it is a pattern.
#[expect(clippy::type_complexity, reason = "three words that mean what they are")]
fn named(asked: &str, config: &Path) -> Result<Option<(PathBuf, String, BTreeMap<String, String>)>, Failure> {
    let name = asked.split_once('[').map_or(asked, |(name, _)| name);
    let of_name = |char: char| char.is_alphanumeric() || "/_-.".contains(char);
    if name.is_empty() || !name.chars().all(of_name) || (name.len() < asked.len() && !asked.ends_with(']')) {
        return Ok(None);
    }
    let (name, options) =
        filter_and_options(asked).map_err(|what| Failure::usage(format!("filter {asked}: {what}")))?;
    if !name.contains('/') {
        let stem =
            name.strip_suffix(".conf").or_else(|| name.strip_suffix(".local")).unwrap_or(&name).to_owned();
        return Ok(Some((config.to_owned(), stem, options)));
    }
    let file = Path::new(&name);
    let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned();
    let folder = file.parent().filter(|folder| folder.ends_with("filter.d")).and_then(Path::parent);
    match folder {
        Some(folder) if folder.as_os_str().is_empty() => Ok(Some((PathBuf::from("."), stem, options))),
        Some(folder) => Ok(Some((folder.to_owned(), stem, options))),
        None => Err(Failure::usage(format!(
            "{name}: is in no folder called filter.d, where its includes are looked for; put it there"
        ))),
    }
}

#[expect(clippy::disallowed_methods, reason = "a command reads the clock once, for dates without a year")]
fn present() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

fn examine(arguments: &Arguments, text: &FilterText, mut set: FilterSet) -> Result<Report, Failure> {
    let now = present();
    let mut tally = Tally { counts: vec![0; text.failregex.len()], ..Tally::default() };
    let path = Path::new(&arguments.log);
    if path.exists() || is_path(&arguments.log) {
        let unreadable = |error: std::io::Error| {
            Failure::run(format!(
                "{}: cannot be read: {error}; give a log that this user may read, or a whole line in quotes",
                arguments.log
            ))
        };
        let mut file = logs::open(path).map_err(unreadable)?;
        let mut line = Vec::new();
        loop {
            line.clear();
            if (&mut file).take(LONGEST).read_until(b'\n', &mut line).map_err(unreadable)? == 0 {
                break;
            }
            if !line.ends_with(b"\n") && line.len() as u64 == LONGEST {
                file.skip_until(b'\n').map_err(unreadable)?;
            }
            tally.read(&line, &mut set, now, arguments);
        }
    } else {
        for line in arguments.log.lines() {
            tally.read(line.as_bytes(), &mut set, now, arguments);
        }
    }
    Ok(tally.report(text, &set))
}

/// One word that can only be meant as a file's name, whether there is such a file or not.
fn is_path(log: &str) -> bool {
    let word = !log.contains(char::is_whitespace);
    word && (log.contains('/') || [".log", ".gz"].iter().any(|end| log.ends_with(end)))
}

/// What has been counted so far.
#[derive(Default)]
struct Tally {
    report: Report,
    counts: Vec<u64>,
    hosts: HashMap<String, (u64, Option<Duration>)>,
    hits: Vec<(usize, Hit)>,
}

impl Tally {
    fn read(&mut self, line: &[u8], set: &mut FilterSet, now: Duration, arguments: &Arguments) {
        let end = line.iter().rposition(|byte| !matches!(byte, b'\r' | b'\n')).map_or(0, |last| last + 1);
        let line = line.get(..end).unwrap_or_default();
        // As fail2ban-regex: so that its sample logs can be tried.
        if line.is_empty() || line.starts_with(b"#") {
            return;
        }
        let before = set.figures().ignored;
        self.hits.clear();
        set.read(line, None, now, &mut self.hits);
        self.report.lines += 1;
        let shown = || String::from_utf8_lossy(line).into_owned();
        let most = |all: bool| if all { MOST_SHOWN } else { SHOWN };
        if let Some((_, hit)) = self.hits.first() {
            self.report.matched += 1;
            if let Some(count) = self.counts.get_mut(hit.pattern) {
                *count += 1;
            }
            let host = hit.subject.to_string();
            if self.hosts.len() < MOST_HOSTS || self.hosts.contains_key(&host) {
                let known = self.hosts.entry(host).or_default();
                *known = (known.0 + 1, hit.at.or(known.1));
            }
            if arguments.print_all_matched && self.report.matched_lines.len() < MOST_SHOWN {
                self.report.matched_lines.push(shown());
            }
        } else if set.figures().ignored > before {
            self.report.ignored += 1;
            if self.report.ignored_lines.len() < most(arguments.print_all_ignored) {
                self.report.ignored_lines.push(shown());
            }
        } else {
            self.report.missed += 1;
            if !arguments.print_no_missed && self.report.missed_lines.len() < most(arguments.print_all_missed)
            {
                self.report.missed_lines.push(shown());
            }
        }
    }

    fn report(mut self, text: &FilterText, set: &FilterSet) -> Report {
        let Figures { undated, too_long, backtrack_limit, .. } = set.figures();
        let patterns = self.counts.iter().zip(&text.failregex).enumerate();
        self.report.failregex = patterns
            .map(|(index, (hits, pattern))| PatternHits {
                number: index + 1,
                hits: *hits,
                pattern: pattern.clone(),
            })
            .collect();
        let hosts = self.hosts.into_iter();
        self.report.hosts = hosts
            .map(|(host, (hits, last))| HostHits { host, hits, last: last.map(|at| at.as_secs()) })
            .collect();
        self.report.hosts.sort_by(|one, two| two.hits.cmp(&one.hits).then_with(|| one.host.cmp(&two.host)));
        self.report.dates =
            set.date_hits().into_iter().map(|(template, hits)| DateHits { template, hits }).collect();
        self.report.forgeable = Filter::forgeable(text).iter().map(ToString::to_string).collect();
        Report { filter: text.name.clone(), undated, too_long, backtrack_limit, ..self.report }
    }
}

fn shown(report: &Report, arguments: &Arguments) -> String {
    let mut out = String::new();
    let Report { lines, matched, ignored, missed, .. } = report;
    let _ = writeln!(
        out,
        "Filter {}: {lines} lines, {matched} matched, {ignored} ignored, {missed} missed",
        report.filter
    );
    let _ = writeln!(out, "\nFailregex (hits, pattern):");
    for PatternHits { number, hits, pattern } in report.failregex.iter().filter(|pattern| pattern.hits > 0) {
        let _ = writeln!(out, "  {number:>3}) [{hits}] {pattern}");
    }
    list(
        &mut out,
        "Hosts (hits):",
        report.hosts.iter().map(|host| format!("{:>8}  {}", host.hits, host.host)),
        SHOWN,
    );
    let dates = report.dates.iter().map(|date| format!("{:>8}  {}", date.hits, date.template));
    list(&mut out, "Date templates (hits):", dates, MOST_SHOWN);
    for (count, what) in [
        (report.undated, "lines had no date that a template knows; give --datepattern"),
        (report.too_long, "lines were too long and skipped"),
        (
            report.backtrack_limit,
            "matches were given up: a pattern with look-around or back-references went back too often; write it simpler",
        ),
    ] {
        if count > 0 {
            let _ = writeln!(out, "\n{count} {what}");
        }
    }
    list(&mut out, "A client may forge:", report.forgeable.iter().cloned(), MOST_SHOWN);
    list(&mut out, "Matched lines:", report.matched_lines.iter().cloned(), MOST_SHOWN);
    list(&mut out, "Ignored lines:", report.ignored_lines.iter().cloned(), MOST_SHOWN);
    list(&mut out, "Missed lines:", report.missed_lines.iter().cloned(), MOST_SHOWN);
    let left = report.missed.saturating_sub(report.missed_lines.len() as u64);
    if left > 0 && !arguments.print_no_missed {
        let _ = writeln!(out, "  and {left} more; --print-all-missed shows them");
    }
    out.trim_end().to_owned()
}

/// What outsiders wrote is shown without what a terminal would obey.
fn list(out: &mut String, title: &str, lines: impl Iterator<Item = String>, most: usize) {
    let mut lines = lines.enumerate().peekable();
    if lines.peek().is_none() {
        return;
    }
    let _ = writeln!(out, "\n{title}");
    for (number, line) in lines {
        if number == most {
            let _ = writeln!(out, "  and more; --json tells all");
            break;
        }
        let plain: String = line
            .chars()
            .map(|char| if char.is_control() && char != '\t' { '\u{FFFD}' } else { char })
            .collect();
        let _ = writeln!(out, "  {plain}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn examined(line: &[&str]) -> Report {
        tried(line).unwrap()
    }

    fn tried(line: &[&str]) -> Result<Report, Failure> {
        let parsed = Command::parse_from(std::iter::once("test").chain(line.iter().copied()));
        let text = filter_text(&parsed.arguments).unwrap();
        let set = FilterSet::new(vec![Filter::compile(&text).unwrap()]).unwrap();
        examine(&parsed.arguments, &text, set)
    }

    #[test]
    fn a_log_that_is_not_there_is_no_line() {
        for path in ["/var/log/no-such-log", "no-such.log", "no-such.log.2.gz", "/"] {
            let told = tried(&[path, "from <HOST>"]).unwrap_err().lines.remove(0);
            assert!(told.starts_with(path) && told.contains("cannot be read"), "{told}");
        }
        assert_eq!(examined(&["from-nowhere", "from <HOST>"]).lines, 1, "a word is a line");
        assert_eq!(examined(&["GET /a.log from 192.0.2.7", "from <HOST>"]).matched, 1);
    }

    #[test]
    fn a_line_and_a_pattern_are_enough() {
        let report = examined(&[
            "2026-01-02T03:04:05Z from 192.0.2.7 user x",
            r"^ from <HOST> user <F-USER>\S+</F-USER>$",
        ]);
        assert_eq!((report.lines, report.matched, report.missed), (1, 1, 0));
        assert_eq!((report.hosts[0].host.as_str(), report.hosts[0].last), ("192.0.2.7", Some(1_767_323_045)));
    }

    #[test]
    fn matched_ignored_and_missed_lines_are_counted_in_a_file() {
        let log = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            log.path(),
            "# no line\nfrom 192.0.2.7\nfrom 192.0.2.8\n\nelse\x1b[31m\nfrom 192.0.2.7",
        )
        .unwrap();
        let report =
            examined(&[log.path().to_str().unwrap(), "^from <HOST>$", r"\.8$", "--print-all-matched"]);
        assert_eq!((report.lines, report.matched, report.ignored, report.missed), (4, 2, 1, 1));
        assert_eq!((report.hosts[0].hits, report.failregex[0].hits, report.undated), (2, 2, 4));
        assert_eq!(report.matched_lines.len(), 2);
        let arguments = Command::parse_from(["test", "x", "y"]).arguments;
        assert!(!shown(&report, &arguments).contains('\x1b'), "a terminal must not obey a log");
    }

    #[test]
    fn a_name_is_a_filter_and_anything_else_a_pattern() {
        let config = Path::new("/etc/fail2ban");
        let (folder, name, options) = named("sshd[mode=ddos]", config).unwrap().unwrap();
        assert_eq!((folder.as_path(), name.as_str(), options["mode"].as_str()), (config, "sshd", "ddos"));
        let (folder, name, _) = named("/a/filter.d/x.conf", config).unwrap().unwrap();
        assert_eq!((folder.as_path(), name.as_str()), (Path::new("/a"), "x"));
        assert!(named("^<HOST> [a-z]", config).unwrap().is_none());
        assert!(named("/a/x.conf", config).is_err());
    }
}
