//! The filters and jails that edge brings along, proven: each finds its own samples, none finds
//! ordinary traffic, and no client can make them name another. They are read as data, so that
//! what is tested is what is shipped.

#![expect(clippy::unwrap_used, reason = "a step of a test that fails is the test's failure")]

#[path = "builtin_jails/attacks.rs"]
mod attacks;
#[path = "builtin_jails/book.rs"]
mod book;
#[path = "builtin_jails/line.rs"]
mod line;
#[path = "builtin_jails/ordinary.rs"]
mod ordinary;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use book::Book;
use line::{Chance, Request};
use proptest::prelude::*;

static BOOK: LazyLock<Book> = LazyLock::new(Book::read);

/// Filters that ask how a request ended, and not what it holds: attacks and honest mistakes meet
/// in them, and only their number tells them apart.
const COUNTING: &[&str] =
    &["handshakes", "login-failures", "malformed", "not-found-flood", "too-many-requests"];

/// Ordinary on a site that has WordPress; counted all the same, because only repetition betrays guessing.
const WORDPRESS_CALLS: &[&str] = &["wordpress-login", "wordpress-xmlrpc"];

fn is_content(name: &str) -> bool {
    !COUNTING.contains(&name)
}

fn content(line: &str) -> Vec<(&'static str, String)> {
    let mut found = BOOK.offences(line.as_bytes());
    found.retain(|(name, _)| is_content(name));
    found
}

#[test]
fn every_sample_offends_exactly_its_own_filter() {
    let mut wrong = Vec::new();
    for filter in &BOOK.filters {
        for sample in &filter.matches {
            let host = sample.split(' ').next().unwrap();
            let found = BOOK.offences(sample.as_bytes());
            let own = found.iter().any(|(name, named)| *name == filter.name && named == host);
            let foreign = found.iter().any(|(name, _)| *name != filter.name && is_content(name));
            if !own || (foreign && is_content(&filter.name)) {
                wrong.push(format!("{}: {sample}: {found:?}", filter.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_a_filter_lets_pass_offends_none() {
    let mut wrong = Vec::new();
    for filter in &BOOK.filters {
        for sample in &filter.passes {
            let mut found = BOOK.offences(sample.as_bytes());
            found.retain(|(name, _)| is_content(name) || *name == filter.name);
            if !found.is_empty() {
                wrong.push(format!("{}: {sample}: {found:?}", filter.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_filter_has_samples_of_both_kinds_and_every_sample_is_a_line_of_the_log() {
    for filter in &BOOK.filters {
        for (kind, samples) in [("matches", &filter.matches), ("passes", &filter.passes)] {
            let different: BTreeSet<_> = samples.iter().collect();
            assert!(different.len() >= 8, "{}: only {} {kind}", filter.name, different.len());
            for sample in samples {
                assert!(sample.contains(" - - [] \""), "{}: {sample}", filter.name);
            }
        }
    }
}

#[test]
fn every_pattern_begins_with_the_host_and_is_found_by_a_sample() {
    for filter in &BOOK.filters {
        assert!(!filter.failregex.is_empty(), "{}", filter.name);
        for (index, pattern) in filter.failregex.iter().enumerate() {
            assert!(pattern.starts_with("^<HOST> "), "{}: {pattern}", filter.name);
            assert_eq!(pattern.matches("<HOST>").count(), 1, "{}: {pattern}", filter.name);
            assert!(!pattern.contains(".*"), "{}: could run over a quote: {pattern}", filter.name);
            let host = "(?P<host>[0-9A-Fa-f.:]+)";
            let regex = regex::bytes::Regex::new(&pattern.replace("<HOST>", host)).unwrap();
            let samples = || filter.matches.iter().map(String::as_bytes);
            assert!(
                samples().any(|sample| regex.is_match(sample)),
                "{}: pattern {} is found by no sample: {pattern}",
                filter.name,
                index + 1,
            );
        }
        for pattern in &filter.ignoreregex {
            assert!(pattern.starts_with("^<HOST> "), "{}: {pattern}", filter.name);
        }
    }
}

#[test]
fn every_jail_has_its_filter_and_every_filter_its_jail() {
    let names: BTreeSet<_> = BOOK.filters.iter().map(|filter| filter.name.as_str()).collect();
    assert_eq!(names.len(), BOOK.filters.len(), "no name twice");
    let watched: BTreeSet<_> = BOOK.jails.iter().map(|jail| jail.filter.as_str()).collect();
    assert_eq!(names, watched);
    let known = [
        "name",
        "filter",
        "max_offences",
        "find_time",
        "ban_time",
        "escalation_factor",
        "escalation_cap",
        "forgiveness",
        "action",
    ];
    for jail in &BOOK.jails {
        for (key, value) in &jail.keys {
            assert!(known.contains(&key.as_str()), "{}: {key}", jail.name);
            if ["find_time", "ban_time", "escalation_cap", "forgiveness"].contains(&key.as_str()) {
                assert!(shared::config::parse_duration(value).is_some(), "{}: {key} = {value}", jail.name);
            }
        }
        assert!(jail.max_offences >= 1, "{}", jail.name);
    }
}

#[test]
fn what_a_shared_address_could_do_by_mistake_is_slowed_down_and_not_shut_out() {
    for name in ["login-failures", "not-found-flood", "handshakes", "wordpress-xmlrpc"] {
        let jail = BOOK.jails.iter().find(|jail| jail.name == name).unwrap();
        assert_eq!(jail.keys.get("action").map(String::as_str), Some("throttle"), "{name}");
    }
}

#[test]
fn a_statuss_filters_ask_for_more_than_a_few_offences() {
    for jail in BOOK.jails.iter().filter(|jail| COUNTING.contains(&jail.filter.as_str())) {
        assert!(jail.max_offences >= 20, "{}: {}", jail.name, jail.max_offences);
    }
}

#[test]
fn ordinary_traffic_offends_no_filter_of_content() {
    let mut chance = Chance(20_240_611);
    let mut counted: BTreeMap<&str, usize> = BTreeMap::new();
    let mut different = BTreeSet::new();
    let mut wrong = Vec::new();
    for _ in 0..40_000 {
        let line = ordinary::line(&mut chance);
        for (name, _) in BOOK.offences(line.as_bytes()) {
            if is_content(name) && !WORDPRESS_CALLS.contains(&name) {
                wrong.push(format!("{name}: {line}"));
            } else {
                *counted.entry(name).or_default() += 1;
            }
        }
        different.insert(line);
    }
    assert!(different.len() >= 20_000, "the lines must differ: {}", different.len());
    println!("ordinary lines\t40000\tdifferent\t{}\tcounted by status\t{counted:?}", different.len());
    assert!(wrong.is_empty(), "{} offences:\n{}", wrong.len(), wrong[..wrong.len().min(40)].join("\n"));
}

#[test]
fn known_payloads_are_caught_by_the_right_filter() {
    let attacks = attacks::corpus();
    assert!(attacks.len() >= 300, "{}", attacks.len());
    let mut families: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    let mut missed = Vec::new();
    for attack in &attacks {
        let line = attack.line();
        let found = content(&line);
        let caught = found.iter().any(|(name, host)| *name == attack.family && host == attacks::CLIENT);
        let (all, right) = families.entry(attack.family).or_default();
        *all += 1;
        *right += usize::from(caught);
        if !caught {
            missed.push(format!("{}: {line}: {found:?}", attack.family));
        }
    }
    let caught = attacks.len() - missed.len();
    println!("attacks\t{}\tcaught\t{caught}\tby family (all, caught)\t{families:?}", attacks.len());
    println!("missed:\n{}", missed.join("\n"));
    assert!(caught * 100 >= attacks.len() * 95, "{caught} of {}", attacks.len());
}

/// Whole lines and their pieces, so that chance finds the places where fields meet.
fn forged_bytes() -> impl Strategy<Value = Vec<u8>> {
    let samples: Vec<String> = BOOK.filters.iter().flat_map(|filter| filter.matches.clone()).collect();
    let whole = proptest::sample::select(samples)
        .prop_map(|line| line.replace("203.0.113.7", "198.51.100.66").into_bytes());
    let piece = proptest::sample::select(vec![
        "\"",
        "\\\"",
        "\\x22",
        "\n",
        "\r\n198.51.100.66 - - [] \"GET /.env HTTP/1.1\" 404 0 \"-\" \"-\"",
        "\" 404 0 \"-\" \"sqlmap/1\"",
        "[] \"",
        "198.51.100.66 - - [] \"",
        "\" 401 ",
        "\" 429 ",
        "- - TLS\" 000 0 \"-\" \"-\"",
        "/../../etc/passwd",
        "${jndi:ldap://x/a}",
        " ",
        "\\",
    ])
    .prop_map(|piece| piece.as_bytes().to_vec());
    let part = prop_oneof![whole, piece, proptest::collection::vec(any::<u8>(), 0..24)];
    proptest::collection::vec(part, 0..5).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_client_can_make_a_filter_name_another(
        target in forged_bytes(),
        referer in forged_bytes(),
        user_agent in forged_bytes(),
        method in prop_oneof![Just(b"GET".to_vec()), Just(b"POST".to_vec()), forged_bytes()],
        status in proptest::sample::select(vec![200_u16, 302, 400, 401, 403, 404, 429, 500]),
    ) {
        let method = String::from_utf8_lossy(&method).into_owned();
        let request = Request {
            client: "203.0.113.7", method: &method, target: &target, status, bytes: 1,
            referer: &referer, user_agent: &user_agent,
        };
        for (name, host) in BOOK.offences(request.line().as_bytes()) {
            prop_assert_eq!(host, "203.0.113.7", "{}", name);
        }
    }

    /// A status that is written into a field is not taken for the answer's.
    #[test]
    fn no_client_can_forge_the_status(
        target in forged_bytes(), referer in forged_bytes(), user_agent in forged_bytes(),
    ) {
        let request = Request {
            client: "203.0.113.7", method: "GET", target: &target, status: 200, bytes: 1,
            referer: &referer, user_agent: &user_agent,
        };
        for (name, _) in BOOK.offences(request.line().as_bytes()) {
            prop_assert!(is_content(name), "{name}");
        }
    }

    /// Referers are what other sites say; only Log4j's look-ups, call-backs of scanners and
    /// Shellshock are looked for there.
    #[test]
    fn attack_lines_in_a_referer_are_read_as_text(sample in 0_usize..10_000) {
        let samples: Vec<_> = BOOK.filters.iter()
            .filter(|filter| !["log4shell", "scanners", "shell-injection"].contains(&filter.name.as_str()))
            .flat_map(|filter| &filter.matches).collect();
        let sample = samples[sample % samples.len()];
        let request = Request {
            client: "203.0.113.7", method: "GET", target: b"/", status: 200, bytes: 1,
            referer: sample.as_bytes(), user_agent: b"Mozilla/5.0",
        };
        prop_assert_eq!(BOOK.offences(request.line().as_bytes()), vec![]);
    }
}
