//! What we read out of fail2ban's files is what the installed fail2ban reads out of them: asked of its own
//! Python, for every filter it ships in every mode, for every jail, and for a folder with all that its
//! ini dialect can do. It must be installed: `tests/run` sees to it.

#![expect(clippy::unwrap_used, reason = "a step of a test that fails is the test's failure")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use edge::ban::fail2ban::{import, read_filter, seconds};
use edge::ban::{FilterText, JailSettings, Source};
use edge::config::Config;
use serde_json::Value;

const FOLDER: &str = "/etc/fail2ban";
const PYTHON: &str = "/usr/bin/python3";
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fail2ban_import.py");

/// Filters that we read in another way, and why. None today.
const DIFFERENT: [&str; 0] = [];

/// What the installed fail2ban says of `folder`.
fn peer(folder: &Path, times: &str) -> Value {
    let installed = Command::new(PYTHON).args(["-c", "import fail2ban"]).status().unwrap();
    assert!(
        installed.success() && folder.is_dir(),
        "Debian's package fail2ban is not installed; `tests/run` installs it"
    );
    let mut child = Command::new(PYTHON)
        .arg(SCRIPT)
        .arg(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(times.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "the peer failed");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().map_or_else(Vec::new, |list| list.iter().map(text).collect())
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The peer's commands as one of our filters.
fn as_filter(name: &str, said: &Value) -> FilterText {
    let one = |option: &str| said.get(option).map(text);
    FilterText {
        name: name.to_owned(),
        prefregex: one("prefregex").filter(|regex| !regex.is_empty()),
        failregex: texts(&said["failregex"]),
        ignoreregex: texts(&said["ignoreregex"]),
        datepattern: one("datepattern").map_or_else(Vec::new, |value| {
            value.split('\n').map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
        }),
        max_lines: one("maxlines").map_or(1, |lines| lines.parse().unwrap()),
    }
}

/// How many filters and jails are the same, and which are not.
fn compare(folder: &Path, peer: &Value) -> (usize, Vec<String>) {
    let (mut same, mut different) = (0, Vec::new());
    for one in peer["filters"].as_array().unwrap() {
        let name = one["name"].as_str().unwrap();
        let options: BTreeMap<String, String> =
            one["options"].as_object().unwrap().iter().map(|(k, v)| (k.clone(), text(v))).collect();
        let ours = read_filter(folder, name, &options);
        match (&ours, one["said"].get("error")) {
            (Err(_), Some(_)) => same += 1,
            (Ok(ours), None) if *ours == as_filter(name, &one["said"]) => same += 1,
            _ => different.push(format!("{name} {options:?}: {ours:#?} is not {:#}", one["said"])),
        }
    }
    (same, different)
}

#[test]
fn every_filter_is_read_as_fail2ban_reads_it() {
    let folder = Path::new(FOLDER);
    let peer = peer(folder, "");
    let (same, different) = compare(folder, &peer);
    let unexpected: Vec<&String> =
        different.iter().filter(|what| !DIFFERENT.iter().any(|name| what.starts_with(name))).collect();
    eprintln!("filters_same {same} of {}", same + different.len());
    assert!(same >= 90, "too few filters to prove anything: {same}");
    assert!(unexpected.is_empty(), "{unexpected:#?}");
}

/// What fail2ban tests its own reader with: includes, `.local` files, tags within tags, filters that fail.
#[test]
fn the_filters_that_fail2ban_tests_itself_with_are_read_as_it_reads_them() {
    let folder = Path::new("/usr/lib/python3/dist-packages/fail2ban/tests/config");
    let peer = peer(folder, "");
    let (same, different) = compare(folder, &peer);
    assert!(different.is_empty(), "{different:#?}");
    assert!(same >= 6, "{same}");
}

#[test]
fn every_jail_is_read_as_fail2ban_reads_it() {
    let folder = Path::new(FOLDER);
    let peer = peer(folder, "");
    let read = import(folder).unwrap();
    let (mut same, mut different) = (0, Vec::new());
    for (name, said) in peer["jails"].as_object().unwrap() {
        let Some(ours) = read.jails.iter().find(|jail| jail.settings.name == *name) else {
            different.push(format!("{name}: not read: {said:#}"));
            continue;
        };
        let filter = read.filters.iter().find(|filter| filter.text.name == ours.settings.filter).unwrap();
        let theirs = as_filter(&filter.text.name, said);
        if filter.text != theirs {
            different.push(format!("{name}: {:#?} is not {theirs:#?}", filter.text));
            continue;
        }
        let logs = match &ours.settings.source {
            Source::Edge => Vec::new(),
            Source::Files(files) => files.iter().map(|file| file.display().to_string()).collect(),
        };
        let time =
            |option: &str| text(&peer["times"].get(text(&said[option])).unwrap_or(&said[option]).clone());
        let expected = (
            text(&said["maxretry"]),
            seconds(&time("findtime")).unwrap(),
            seconds(&time("bantime")).unwrap(),
            texts(&said["logpath"]).into_iter().map(|path| path.replace("[0-9]", "?")).collect::<Vec<_>>(),
        );
        let found = (
            ours.settings.max_offences.to_string(),
            ours.settings.find_time.as_secs_f64(),
            ours.settings.ban_time.as_secs_f64(),
            logs,
        );
        let mut files = expected.3.clone();
        files.dedup();
        if (&found.0, found.1, found.2, &found.3) == (&expected.0, expected.1, expected.2, &files) {
            same += 1;
        } else {
            different.push(format!("{name}: {found:?} is not {expected:?}"));
        }
    }
    eprintln!("jails_same {same} of {}", same + different.len());
    assert!(same >= 80, "too few jails to prove anything: {same}");
    assert!(different.is_empty(), "{different:#?}");
}

#[test]
fn times_are_read_as_fail2ban_reads_them() {
    let times = "600\n-1\n10m\n1d12h\n1h 2m 3s\n1hour+30min\n0d 1h 30m\n1year-6mo\n6 months\n60*60\n1.5h\n2w\n1y 2mon 3da\n90 s\n4Weeks\n1d-12h\n2*(1h+5m)\n";
    let peer = peer(Path::new(FOLDER), times);
    let said = peer["times"].as_object().unwrap();
    assert_eq!(said.len(), times.lines().count());
    for (text, theirs) in said {
        let ours = seconds(text).unwrap_or_else(|| panic!("{text} is no time to us"));
        assert!((ours - theirs.as_f64().unwrap()).abs() < 0.001, "{text}: {ours} is not {theirs}");
    }
}

/// All that the dialect can do, more than the shipped files show.
const DIALECT: [(&str, &str); 7] = [
    (
        "jail.conf",
        "[INCLUDES]\nbefore = paths.conf\n[DEFAULT]\nmaxretry = 4\nfindtime = 5m\nbantime = 1h\nbackend = auto\n\
         enabled = false\nfilter = %(__name__)s[mode=%(mode)s]\nmode = soft\nlogpath = %(paths_log)s\n\
         [one]\nlogpath = %(paths_log)s tail ; a comment\n   /dev/zero\n[two]\nfilter = one[mode=hard, extra=\"a, b\"]\n\
         failregex = %(known/failregex)s\n            ^mine %(two/mine)s <HOST>\nmine = m%%\nmaxretry: 7\n\
         # a comment\n            ^not part of anything\nbantime = %(default/bantime)s\n\
         [three]\nfilter = one\nbackend = systemd\nmaxlines = 3\ndatepattern = %%Y-%%m\n",
    ),
    ("paths.conf", "[DEFAULT]\npaths_log = /dev/null\n[one]\nmaxretry = 9\n"),
    ("paths.local", "[DEFAULT]\npaths_log = /dev/full\n"),
    ("jail.local", "[one]\nmaxretry = 2\nignoreregex = ^%(known/maxretry)s\n[two]\nmode = hard\n"),
    ("jail.d/a.conf", "[one]\nmaxretry = 3\nENABLED = true\n"),
    (
        "filter.d/one.conf",
        "[INCLUDES]\nbefore = base.conf\n[DEFAULT]\n_d = own\n[Definition]\nprefregex = ^<pre> <F-CONTENT>.+</F-CONTENT>$\n\
         re-soft = ^soft %(__prefix)s <HOST>;x ;comment\nre-hard = %(re-soft)s\n\n   ^hard <lt_<logtype>/p> <extra> <HOST> <unknown>\n\
         failregex = <re-<mode>>\n  ^%(lt_file/p)s <known/_d> [a\n   b]\n\
         ignoreregex =\nDatePattern = {^LN-BEG}\n   %%d\n\n[lt_file]\np = file\n[lt_journal]\np = <pre>-journal\n\
         [Init]\nmode = soft\nextra = none<mode>\nmaxlines = 2\n[Init?family=inet6]\nextra = six\n",
    ),
    (
        "filter.d/base.conf",
        "[DEFAULT]\n_d = base\n__prefix = <_d>/%(_d)s\n[Definition]\npre = P<_d>\n_d = base\n",
    ),
];

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let file = folder.path().join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }
    folder
}

#[test]
fn the_whole_dialect_is_read_as_fail2ban_reads_it() {
    let folder = folder(&DIALECT);
    let peer = peer(folder.path(), "");
    let (same, different) = compare(folder.path(), &peer);
    assert!(different.is_empty(), "{different:#?}");
    assert_eq!(same, 8);
    let read = import(folder.path()).unwrap();
    for name in ["one", "two", "three"] {
        let said = &peer["jails"][name];
        let ours = read.jails.iter().find(|jail| jail.settings.name == name).unwrap();
        let filter = read.filters.iter().find(|filter| filter.text.name == ours.settings.filter).unwrap();
        assert_eq!(filter.text, as_filter(&filter.text.name, said), "{name}");
        // Where nothing readable is said, its server takes 3.
        let count = said.get("maxretry").filter(|count| !count.is_null()).map_or("3".to_owned(), text);
        assert_eq!(count, ours.settings.max_offences.to_string(), "{name}");
    }
}

/// As little as serves, with `folder` for jails.
fn least(folder: &Path) -> String {
    format!(
        "name = \"www.example.org\"\n[listen]\nhttps = [\"0.0.0.0:8443\"]\n[[certificate]]\nnames = [\"www.example.org\"]\n\
         certificate_file = \"/c\"\nkey_file = \"/k\"\n[[upstream]]\nname = \"app\"\nservers = [\"127.0.0.1:9000\"]\n\
         [[route]]\nupstream = \"app\"\n[bans]\nbuiltin = false\njails_folder = {folder:?}\n"
    )
}

/// What `edge` reads out of the written import, against what was imported.
fn reads_back(from: &Path) {
    let read = import(from).unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("fail2ban.toml"), read.to_toml()).unwrap();
    let file = folder.path().join("edge.conf");
    fs::write(&file, least(folder.path())).unwrap();
    let config = Config::read(&file).unwrap_or_else(|faults| panic!("{faults}"));
    for filter in &read.filters {
        assert!(config.bans.filters.iter().any(|found| found.text == filter.text), "{filter:#?}");
    }
    let on: Vec<JailSettings> =
        read.jails.iter().filter(|jail| jail.enabled).map(|jail| jail.settings.clone()).collect();
    assert_eq!(config.bans.jails, on);
    assert!(!on.is_empty());
}

#[test]
fn what_is_written_is_what_edge_reads() {
    let mut files = DIALECT.to_vec();
    // Beyond what edge takes, and a filter that matches nothing.
    files.push((
        "jail.d/y.local",
        "[odd]\nenabled = true\nfilter = one\nmaxretry = 99999999999\nfindtime = 30y\nbantime = 30y\nmaxlines = 5000\n\
         [empty]\nenabled = true\n",
    ));
    files.push(("filter.d/empty.conf", "[Definition]\nfailregex =\nignoreregex = x\n"));
    files.push((
        "jail.d/z.local",
        "[DEFAULT]\naction = iptables[port=\"%(port)s\"]\nport = ssh\nignoreip = ::1 192.0.2.0/24\n\
         bantime.increment = true\nbantime.maxtime = 3d\n[two]\nenabled = yes\n",
    ));
    reads_back(folder(&files).path());
    if Path::new(FOLDER).join("jail.conf").exists() {
        reads_back(Path::new(FOLDER));
    }
}
