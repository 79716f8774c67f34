//! fail2ban's own filters against its own sample logs: the same lines are offences, of the same
//! hosts, at the same times. Needs the package `fail2ban` (1.0 or later), whose samples say what
//! is expected above each line: `# failJSON: {"match": true, "host": …, "time": …}`.
//!
//! `cargo test -p edge --test fail2ban_filters -- --nocapture` prints the shares and every difference.

#![expect(clippy::unwrap_used, reason = "a step of a test that fails is the test's failure")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use edge::ban::FilterText;
use edge::ban::fail2ban::read_filter;
use edge::ban::filter::{Filter, FilterSet, Limits, TimeZone};
use serde_json::Value;

/// The samples' present: 2005-08-14T10:00:00Z.
const NOW: Duration = Duration::from_secs(1_124_013_600);
/// Where they were written.
const ZONE: &str = "Europe/Zurich";
/// Filters of web servers and what runs on them: all of these must agree.
const WEB: [&str; 6] = ["apache-", "nginx-", "lighttpd-", "haproxy-", "traefik-", "php-"];

/// One sample log under one set of options of its filter.
struct Case {
    name: String,
    folder: PathBuf,
    options: BTreeMap<String, String>,
}

/// The filters' texts, read out of fail2ban's files as an import reads them.
fn texts(cases: &[Case]) -> Vec<FilterText> {
    cases.iter().map(|case| read_filter(&case.folder, &case.name, &case.options).unwrap()).collect()
}

/// The package's Python part, where its samples lie.
fn package() -> PathBuf {
    let folder = PathBuf::from("/usr/lib/python3/dist-packages/fail2ban/tests");
    assert!(folder.is_dir(), "{} is absent: install the package fail2ban", folder.display());
    folder
}

/// The filters that only fail2ban's tests have, beside the installed ones that they include.
fn own_filters(into: &Path) {
    let filters = into.join("filter.d");
    std::fs::create_dir(&filters).unwrap();
    for folder in [PathBuf::from("/etc/fail2ban/filter.d"), package().join("config/filter.d")] {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "conf") {
                let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
                let text = text.replace("../", "").replace("before = config/filter.d/", "before = ");
                std::fs::write(filters.join(path.file_name().unwrap()), text).unwrap();
            }
        }
    }
}

/// A line of a sample log and what is expected of it.
struct Sample {
    place: String,
    line: Vec<u8>,
    expected: Option<Value>,
    /// Indices of [`Case`]s, and what stands before the line.
    runs: Vec<(usize, Value)>,
}

/// All sample logs, with the options that they ask for.
fn samples(cases: &mut Vec<Case>, tests_own: &Path) -> Vec<Sample> {
    let mut samples = Vec::new();
    let package = package();
    for (folder, chosen) in [(Path::new("/etc/fail2ban"), ""), (tests_own, "zzz-")] {
        let mut names: Vec<String> = std::fs::read_dir(folder.join("filter.d"))
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_suffix(".conf").map(str::to_owned))
            .filter(|name| !name.ends_with("common") && name.starts_with(chosen))
            .collect();
        names.sort();
        for name in names {
            let mut files = vec![name.clone()];
            let mut at = 0;
            while let Some(file) = files.get(at).cloned() {
                at += 1;
                let path = package.join("files/logs").join(&file);
                if path.is_file() {
                    read_log(&path, &name, folder, cases, &mut files, &mut samples);
                }
            }
        }
    }
    samples
}

fn read_log(
    path: &Path,
    name: &str,
    folder: &Path,
    cases: &mut Vec<Case>,
    files: &mut Vec<String>,
    samples: &mut Vec<Sample>,
) {
    let bytes = std::fs::read(path).unwrap();
    let mut common = Value::Object(serde_json::Map::default());
    let mut runs: Vec<(usize, Value)> = Vec::new();
    let mut skipped = false;
    let mut expected: Option<Value> = None;
    for (number, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let text = String::from_utf8_lossy(line);
        if let Some((directive, json)) = directive(&text).filter(|_| expected.is_none()) {
            let value: Value = serde_json::from_str(json).unwrap();
            match directive {
                "fileOptions" => common = value,
                "addFILE" => files.push(value.as_str().unwrap().to_owned()),
                "failJSON" => expected = Some(value),
                _ => {
                    runs.clear();
                    skipped = false;
                    let each = if value.is_array() { value.as_array().unwrap().clone() } else { vec![value] };
                    for mut options in each {
                        for (key, value) in common.as_object().unwrap() {
                            options.as_object_mut().unwrap().entry(key.clone()).or_insert(value.clone());
                        }
                        if let Some(condition) = options["test.condition"].as_str() {
                            skipped = !holds(condition, name, &options);
                        }
                        if !skipped {
                            runs.push((case(cases, name, folder, &options), options));
                        }
                    }
                }
            }
            continue;
        }
        if expected.is_none() && (text.starts_with('#') || text.trim().is_empty()) {
            continue;
        }
        let annotated = expected.take();
        if skipped {
            continue;
        }
        if runs.is_empty() {
            let none = Value::Object(serde_json::Map::default());
            runs.push((case(cases, name, folder, &none), none));
        }
        let place = format!("{}:{}", path.file_name().unwrap().to_string_lossy(), number + 1);
        samples.push(Sample { place, line: line.to_vec(), expected: annotated, runs: runs.clone() });
    }
}

fn directive(line: &str) -> Option<(&str, &str)> {
    let rest = line.strip_prefix('#')?.trim_start_matches('#');
    let (name, json) = rest.strip_prefix(' ').unwrap_or(rest).split_once(':')?;
    ["failJSON", "fileOptions", "filterOptions", "addFILE"].contains(&name).then_some((name, json))
}

fn case(cases: &mut Vec<Case>, name: &str, folder: &Path, options: &Value) -> usize {
    let options: BTreeMap<String, String> = options
        .as_object()
        .unwrap()
        .iter()
        .filter(|(key, _)| !key.starts_with("test."))
        .map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned()))
        .collect();
    if let Some(known) = cases.iter().position(|case| case.name == name && case.options == options) {
        return known;
    }
    cases.push(Case { name: name.to_owned(), folder: folder.to_owned(), options });
    cases.len() - 1
}

/// The few expressions that the samples hold: `name == 'sshd'`, `opts.get('mode') != 'aggressive'`.
fn holds(condition: &str, name: &str, options: &Value) -> bool {
    let (left, right, equal) = match condition.split_once("==") {
        Some((left, right)) => (left, right, true),
        None => condition.split_once("!=").map(|(left, right)| (left, right, false)).unwrap(),
    };
    let right = right.trim().trim_matches('\'');
    let left = match left.trim() {
        "name" => name,
        option => {
            options[option.strip_prefix("opts.get('").unwrap().trim_end_matches("')")].as_str().unwrap_or("")
        }
    };
    (left == right) == equal
}

/// What differs, or nothing.
fn difference(
    set: &mut FilterSet,
    sample: &Sample,
    options: &Value,
    zone: &TimeZone,
) -> Option<(&'static str, String)> {
    let mut hits = Vec::new();
    let journal = options["logtype"] == "journal";
    let mut line = sample.line.clone();
    if let Some(prefix) = options["test.prefix-line"].as_str().filter(|_| journal) {
        line.splice(0..0, prefix.bytes());
    }
    set.read(&line, journal.then_some(NOW), NOW, &mut hits);
    let nothing = Value::Null;
    let expected = sample.expected.as_ref().unwrap_or(&nothing);
    let matches = expected["match"].as_bool().unwrap_or(false);
    let Some((_, hit)) = hits.pop() else {
        return matches.then(|| ("not matched", String::from_utf8_lossy(&line).into_owned()));
    };
    if !matches {
        return Some((
            "matched",
            format!("failregex {}: {}", hit.pattern + 1, String::from_utf8_lossy(&line)),
        ));
    }
    if let Some(host) = expected["host"].as_str() {
        let same = match host.parse::<std::net::IpAddr>() {
            Ok(address) => hit.subject.to_string() == address.to_canonical().to_string(),
            Err(_) => hit.subject.to_string() == host,
        };
        if !same {
            return Some(("host", format!("{} instead of {host}", hit.subject)));
        }
    }
    if let Some(user) = expected["user"].as_str()
        && hit.user.as_deref() != Some(user)
    {
        return Some(("user", format!("{:?} instead of {user}", hit.user)));
    }
    let time = expected["time"].as_str()?;
    let expected = local(time, zone);
    let told = hit.at.map(|at| at.as_secs() as i64);
    (told != Some(expected)).then(|| ("time", format!("{told:?} instead of {expected} ({time})")))
}

/// `2005-8-14T12:00:00`, in the samples' zone.
fn local(time: &str, zone: &TimeZone) -> i64 {
    let numbers: Vec<i16> =
        time.split(['-', 'T', ':', '.']).map(|number| number.parse().unwrap_or(0)).collect();
    let small = |index: usize| i8::try_from(numbers[index]).unwrap();
    let date = jiff::civil::date(numbers[0], small(1), small(2)).at(small(3), small(4), small(5), 0);
    zone.to_timestamp(date).unwrap().as_second()
}

#[test]
fn fail2bans_filters_find_in_its_samples_what_fail2ban_finds() {
    let mut cases = Vec::new();
    let folder = tempfile::tempdir().unwrap();
    own_filters(folder.path());
    let samples = samples(&mut cases, folder.path());
    let zone = TimeZone::get(ZONE).unwrap();
    let mut report = String::new();
    let mut sets: Vec<Option<FilterSet>> = Vec::new();
    for text in texts(&cases) {
        let limits = Limits { zone: zone.clone(), ..Limits::default() };
        let set = Filter::compile(&text).and_then(|filter| FilterSet::with(vec![filter], limits));
        if let Err(faults) = &set {
            let _ = writeln!(report, "not compiled: {faults:?}");
        }
        sets.push(set.ok());
    }
    let (mut all, mut web) = ([0_u32; 2], [0_u32; 2]);
    for sample in &samples {
        for (case, options) in &sample.runs {
            if let Some(constraint) = sample.expected.as_ref().and_then(|json| json["constraint"].as_str())
                && !holds(constraint, &cases[*case].name, options)
            {
                continue;
            }
            let difference = match &mut sets[*case] {
                Some(set) => difference(set, sample, options, &zone),
                None => Some(("not compiled", String::new())),
            };
            let name = &cases[*case].name;
            all[0] += 1;
            all[1] += u32::from(difference.is_none());
            if WEB.iter().any(|web| name.starts_with(web)) {
                web[0] += 1;
                web[1] += u32::from(difference.is_none());
            }
            if let Some((reason, what)) = difference {
                let _ = writeln!(
                    report,
                    "{reason}: {} by {name} {:?}: {what}",
                    sample.place, cases[*case].options
                );
            }
        }
    }
    let share = |counts: [u32; 2]| 100.0 * f64::from(counts[1]) / f64::from(counts[0].max(1));
    println!("{report}bans_fail2ban_same_pct {:.2} ({} of {})", share(all), all[1], all[0]);
    println!("bans_fail2ban_web_same_pct {:.2} ({} of {})", share(web), web[1], web[0]);
    assert!(all[0] > 900 && web[0] > 100, "the samples are not all there");
    assert!(share(all) >= 95.0 && web[0] == web[1], "{report}");
}
