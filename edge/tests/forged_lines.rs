//! Whatever a client puts into the fields it controls, nobody but itself is ever held to account: over
//! the whole path from a request's fields through edge's own log (as the engine is told of it, and as
//! it is written to the file in either direction) to the jails that edge brings along.
#![expect(clippy::unwrap_used, reason = "a test's own steps fail the test when they fail")]

use std::cell::RefCell;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use edge::access_log::{AccessLog, Entry, Format, Settings, event_line};
use edge::ban::Source;
use edge::config::Config;
use edge::log_watch::detector::{Clock, Detector, Line, OWN};
use edge::metrics::Metrics;
use proptest::prelude::*;

/// Who sends, and who shall be blamed for it.
const SENDER: [u8; 4] = [203, 0, 113, 7];

/// What a forger would write: whole lines of others, ends of fields, attacks that are worth a ban.
const FRAGMENTS: &[&str] = &[
    "\n198.51.100.9 - - [] \"GET /../../../../etc/passwd HTTP/1.1\" 400 0 \"-\" \"sqlmap/1.7\"\n",
    "\r\n198.51.100.9 - - [22/Nov/2026:10:00:00 +0000] \"GET /.env HTTP/1.1\" 404 0 \"-\" \"-\"",
    "198.51.100.9 - - [] \"- - TLS\" 000 0 \"-\" \"-\"",
    "\" 404 0 \"-\" \"x\"\n198.51.100.9 - - [] \"GET /wp-login.php HTTP/1.1\" 200 1 \"-\" \"-\"",
    "\\x0A198.51.100.9 - - [] \"GET /shell.php HTTP/1.1\" 404 0 \"-\" \"-\"",
    "/../../../../etc/passwd",
    "/.env",
    "/.git/config",
    "${jndi:ldap://198.51.100.9/a}",
    "' UNION SELECT password FROM users-- ",
    "sqlmap/1.7.2#stable (https://sqlmap.org)",
    "198.51.100.9",
    "::ffff:198.51.100.9",
    "2001:db8::9 - - [] ",
    "\u{1b}[2K\u{1b}[1A",
    "\u{0}\u{7f}\u{85}\u{2028}",
    "\" \"",
    "\\\"",
    "[",
    "] \"GET",
    " - - [",
    "HTTP/1.1\" 200",
];

fn field() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        3 => proptest::sample::select(FRAGMENTS).prop_map(|text| text.as_bytes().to_vec()),
        2 => proptest::collection::vec(any::<u8>(), 0..40),
        1 => "[ -~]{0,40}".prop_map(String::into_bytes),
        1 => Just(vec![b'A'; 9000]),
    ];
    proptest::collection::vec(part, 0..4).prop_map(|parts| parts.concat())
}

fn entry() -> impl Strategy<Value = Entry> {
    let status = proptest::sample::select(vec![0_u16, 200, 400, 403, 404, 429, 500]);
    let protocol = proptest::sample::select(vec!["HTTP/1.1", "HTTP/2.0", "TLS"]);
    (field(), field(), field(), field(), field(), status, protocol).prop_map(
        |(method, target, referer, user_agent, host, status, protocol)| Entry {
            at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000),
            client: IpAddr::from(SENDER),
            method: String::from_utf8_lossy(&method).into_owned(),
            target,
            protocol,
            scheme: "https",
            host: String::from_utf8_lossy(&host).into_owned(),
            status,
            bytes: 0,
            duration: Duration::from_millis(3),
            referer,
            user_agent,
            upstream: None,
            reason: None,
            request_id: String::new(),
            cross_site: false,
            spared: false,
        },
    )
}

/// The jails that edge brings along, over its own events and, as a second source, over a file.
fn detector() -> Detector {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("edge.toml");
    let text = "name = \"www.example.org\"\n[listen]\nhttps = [\"0.0.0.0:8443\"]\n[[certificate]]\n\
                names = [\"www.example.org\"]\ncertificate_file = \"/c\"\nkey_file = \"/k\"\n[[upstream]]\n\
                name = \"app\"\nservers = [\"127.0.0.1:9000\"]\n[[route]]\nupstream = \"app\"\n\
                [bans]\njails_folder = \"none\"\n";
    std::fs::write(&file, text).unwrap();
    let bans = Config::read(&file).unwrap().bans;
    let mut jails = bans.jails.clone();
    assert!(jails.len() >= 15, "the jails that edge brings along are not all there");
    jails.extend(bans.jails.iter().cloned().map(|mut jail| {
        jail.name = format!("{}-file", jail.name);
        jail.source = Source::Files(vec![PathBuf::from("/log")]);
        jail
    }));
    Detector::new(&bans.filters, jails, Vec::new(), 1000).unwrap()
}

/// The lines as they stand in the file.
fn written(entries: &[Entry], folder: &Path, format: Format) -> Vec<u8> {
    let file = folder.join("access.log");
    let _ = std::fs::remove_file(&file);
    let settings = Settings { file: Some(file.clone()), format, queue: 4096 };
    let log = AccessLog::start(&settings, Metrics::new(), None).unwrap();
    for entry in entries {
        log.record(entry.clone());
    }
    log.close();
    std::fs::read(file).unwrap()
}

#[test]
fn forged_lines_never_blame_anybody_but_their_sender() {
    let detector = RefCell::new(detector());
    let folder = tempfile::tempdir().unwrap();
    let now = Duration::from_secs(1_790_000_001);
    let blamed = RefCell::new([0_usize; 2]);
    let cases = proptest::test_runner::Config::default();
    let mut runner = proptest::test_runner::TestRunner::new(cases);
    let lots = proptest::collection::vec(entry(), 1..20);
    let outcome = runner.run(&lots, |entries| {
        let mut found = Vec::new();
        let mut detector = detector.borrow_mut();
        for entry in &entries {
            let mut line = Vec::new();
            event_line(entry, &mut line);
            prop_assert!(!line.contains(&b'\n') && line.starts_with(b"203.0.113.7 - - [] \""));
            // Not told who the client is: the line alone must not be able to lie.
            let told = Line { source: OWN, text: &line, at: Some(now), client: None, cross_site: false };
            detector.read(told, Clock::Now(now), 1000, &mut found);
        }
        let own = found.len();
        let text = written(&entries, folder.path(), Format::Combined);
        let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
        prop_assert_eq!(lines.len(), entries.len());
        for text in lines {
            let line =
                Line { source: 1, text: text.trim_ascii_end(), at: None, client: None, cross_site: false };
            detector.read(line, Clock::Now(now), 1000, &mut found);
        }
        for finding in &found {
            prop_assert_eq!(finding.address, IpAddr::from(SENDER));
        }
        let mut blamed = blamed.borrow_mut();
        blamed[0] += own;
        blamed[1] += found.len() - own;
        detector.jails.clear();
        Ok(())
    });
    outcome.unwrap();
    let blamed = blamed.into_inner();
    assert_eq!(detector.borrow().unusable(), (0, 0), "a hit that names nobody, or somebody else");
    assert!(blamed[0] > 20 && blamed[1] > 20, "the sender itself was found only {blamed:?} times");
}
