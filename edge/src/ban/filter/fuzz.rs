//! Bodies of the fuzz targets: whatever comes from outside, nothing panics and nothing is without
//! bound. They also run bounded under proptest.

use std::time::Duration;

use jiff::tz::TimeZone;

use super::{Filter, FilterSet, Hit, Limits};
use crate::ban::FilterText;

const NOW: Duration = Duration::from_secs(1_124_013_600);

fn set(text: &FilterText) -> Option<FilterSet> {
    let filter = Filter::compile(text).ok()?;
    FilterSet::with(vec![filter], Limits { line: 4096, zone: TimeZone::UTC }).ok()
}

/// With one way to write dates, so that much is tried in little time.
fn undated() -> FilterText {
    FilterText { datepattern: vec!["%b %d %H:%M:%S".into()], max_lines: 1, ..FilterText::default() }
}

fn read(set: &mut FilterSet, data: &[u8]) -> Vec<(usize, Hit)> {
    let mut hits = Vec::new();
    for line in data.split(|byte| *byte == b'\n') {
        set.read(line, None, NOW, &mut hits);
    }
    hits
}

/// A pattern, a line feed, and lines.
pub fn fuzz_pattern(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (pattern, lines) = text.split_once('\n').unwrap_or((&text, "192.0.2.1 x"));
    let filter = FilterText { failregex: vec![pattern.to_owned()], ..undated() };
    let _ = Filter::forgeable(&filter);
    if let Some(mut set) = set(&filter) {
        let _ = read(&mut set, lines.as_bytes());
    }
}

/// Lines against filters with every kind of state.
pub fn fuzz_line(data: &[u8]) {
    let filter = FilterText {
        name: "state".into(),
        prefregex: Some(r"^<F-MLFID>\S+ sshd\[\d+\]</F-MLFID>: <F-CONTENT>.+</F-CONTENT>$".into()),
        failregex: vec![
            r"^Failed \S+ for <F-USER>(?:(?! from ).)*</F-USER> from <HOST>".into(),
            r"^<F-NOFAIL>Connection</F-NOFAIL> from <ADDR>".into(),
            r"^<F-MLFFORGET>Closed</F-MLFFORGET>".into(),
            r"^<F-MLFGAINED>Accepted</F-MLFGAINED>".into(),
        ],
        ignoreregex: vec!["nobody".into()],
        ..undated()
    };
    let several = FilterText {
        name: "several".into(),
        failregex: vec![r"^begin (\d+)$<SKIPLINES>^end \1 <SUBNET>$".into(), r"^<F-ID>\w+</F-ID>$".into()],
        max_lines: 4,
        ..undated()
    };
    for text in [filter, several] {
        if let Some(mut set) = set(&text) {
            let _ = read(&mut set, data);
        }
    }
}

/// A date pattern, a line feed, and lines; without a pattern the usual templates are asked.
pub fn fuzz_date(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (pattern, lines) = text.split_once('\n').unwrap_or(("", &text));
    let filter = |datepattern| FilterText {
        failregex: vec!["<HOST>".into()],
        datepattern,
        max_lines: 1,
        ..FilterText::default()
    };
    let datepattern = if pattern.is_empty() { Vec::new() } else { vec![pattern.to_owned()] };
    if let Some(mut set) = set(&filter(datepattern)) {
        let _ = read(&mut set, lines.as_bytes());
    }
}
