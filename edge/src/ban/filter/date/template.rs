//! One way to write dates: fail2ban's date patterns (`%d/%b/%Y`, `{^LN-BEG}`, `{EPOCH}`; jail.conf(5))
//! → an expression whose named groups are fields. Must not know which of many ways a log uses.

use std::time::Duration;

use super::calendar::{Calendar, Fields, offset};
use super::quick::Shape;
use crate::ban::filter::pattern::{Pattern, Spans};

/// ISO 8601 with blanks, fractions and zone as logs have them.
const ISO: &str = r"%ExY(?P<_sep>[-/.])%m(?P=_sep)%d(?:T|  ?)%H:%M:%S(?:[.,]%f)?(?:\s*%z)?";
const ISO_NGINX: &str = r"%ExY(?P<_sep>[-/.])%m(?P=_sep)%d[T ]%H:%M:%S(?:[.,]%f)?(?:\s*%z)?";
const SYSLOG: &str = r"(?:%a )?%b %d %k:%M:%S(?:\.%f)?(?: %ExY)?";
const CLF: &str = r"%d(?P<_sep>[-/])%b(?P=_sep)%ExY[ :]?%H:%M:%S(?:\.%f)?(?: %z)?";

/// What is looked for where no date pattern is given: fail2ban's list, in its order.
pub(crate) const DEFAULTS: [&str; 18] = [
    ISO,
    SYSLOG,
    r"(?:%a )?%b %d %ExY %k:%M:%S(?:\.%f)?",
    r"%d(?P<_sep>[-/])%m(?P=_sep)(?:%ExY|%Exy) %k:%M:%S",
    CLF,
    r"%m/%d/%ExY:%H:%M:%S",
    r"%m-%d-%ExY %k:%M:%S(?:\.%f)?",
    "EPOCH",
    AUDIT,
    r"{^LN-BEG}%H:%M:%S",
    r"^<%m/%d/%Exy@%H:%M:%S>",
    r"%Exy%Exm%Exd  ?%H:%M:%S",
    r"%b %d, %ExY %I:%M:%S %p",
    r"^%b-%d-%Exy %k:%M:%S",
    r"%ExY%Exm%Exd(?:T|  ?)%ExH%ExM%ExS(?:[.,]%f)?(?:\s*%z)?",
    r"(?:%Z )?(?:%a )?%b %d %k:%M:%S(?:\.%f)?(?: %ExY)?",
    r"(?:%z )?(?:%a )?%b %d %k:%M:%S(?:\.%f)?(?: %ExY)?",
    "TAI64N",
];
/// The kernel's audit log: `audit(1700000000.123:42)`.
const AUDIT: &str = r"**\baudit\(({EPOCH}):\d+\)**";
const BEGIN: &str = "{^LN-BEG}";
const BRACKET: &str = r"^[^\[]*\[(";
const BRACKETS: &str = r"^[^\[]*(\[";

/// Where the date must stand for the hand-written reader to answer for this template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Behind at most two characters that belong to no word.
    LineBegin,
    /// Behind the line's first `[`.
    Bracket,
    /// The same, and both brackets are cut out with it.
    Brackets,
    /// Anywhere.
    Free,
}

pub(crate) struct Template {
    /// As it was written.
    pub(crate) name: String,
    pub(crate) pattern: Pattern,
    /// Its match begins or ends the line: no other template is asked.
    pub(crate) anchored: bool,
    pub(crate) shape: Option<(Shape, Place)>,
    codes: Vec<(String, usize)>,
    /// Both must hold the same.
    separators: Option<(usize, usize)>,
}

/// A date in a line.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// What is cut out.
    pub(crate) start: usize,
    pub(crate) end: usize,
    spans: Spans,
}

impl Template {
    /// # Errors
    /// What is wrong with the pattern.
    pub(crate) fn compile(written: &str) -> Result<Self, String> {
        let (text, anchored) = expression(written)?;
        let (text, twice) = same_separator(&text);
        let pattern = Pattern::compile(&text, false).map_err(|wrong| format!("{}: in {text}", wrong.what))?;
        let place = |name: &str| pattern.names().iter().position(|known| known.as_deref() == Some(name));
        let separators = if twice { place("_sep").zip(place("_sep_again")) } else { None };
        let codes = pattern
            .names()
            .iter()
            .enumerate()
            .filter_map(|(group, name)| name.as_deref().map(|name| (name.to_owned(), group)))
            .collect();
        Ok(Self { name: written.to_owned(), anchored, shape: shape(written), codes, separators, pattern })
    }

    /// The first date of this kind.
    pub(crate) fn find(&self, line: &str) -> Option<Found> {
        let mut from = 0;
        loop {
            let spans = self.pattern.find(line, from).ok()??;
            let text = |group: usize| spans.get(group).copied().flatten().and_then(|(s, e)| line.get(s..e));
            let whole = spans.first().copied().flatten()?;
            if self.separators.is_none_or(|(one, two)| text(one) == text(two)) {
                let (start, end) = spans.get(1).copied().flatten().unwrap_or((whole.0, whole.0));
                return Some(Found { start, end, spans });
            }
            from = whole.0 + line.get(whole.0..)?.chars().next()?.len_utf8();
        }
    }

    /// The time of what [`Self::find`] found; `None` if there is no such date.
    pub(crate) fn time(
        &self,
        line: &str,
        found: &Found,
        calendar: &mut Calendar,
        now: Duration,
    ) -> Option<Duration> {
        let mut fields = Fields::default();
        let (mut afternoon, mut twelve) = (None, false);
        for (code, group) in &self.codes {
            let Some(text) = found.spans.get(*group).copied().flatten().and_then(|(s, e)| line.get(s..e))
            else {
                continue;
            };
            let number = || text.trim_start().parse::<i16>().ok();
            let small = || text.trim_start().parse::<i8>().ok();
            match code.as_str() {
                "epoch" => {
                    return text.parse::<f64>().ok().and_then(|time| Duration::try_from_secs_f64(time).ok());
                }
                "lepoch" => return long_epoch(text),
                "tai" => return tai64n(text),
                "y" => fields.year = Some(number()? + 2000),
                "Y" => fields.year = Some(number()?),
                "m" => fields.month = Some(small()?),
                "b" | "B" => fields.month = Some(index(&MONTHS, text)? + 1),
                "d" => fields.day = Some(small()?),
                "H" => fields.hour = small()?,
                "I" => (fields.hour, twelve) = (small()?, true),
                "p" => afternoon = Some(text.eq_ignore_ascii_case("pm")),
                "M" => fields.minute = small()?,
                "S" => fields.second = small()?,
                "a" | "A" => fields.weekday = Some(i16::from(index(&DAYS, text)?)),
                "w" => fields.weekday = Some((number()? + 6) % 7),
                "u" => fields.weekday = Some(number()? - 1),
                "j" => fields.day_of_year = Some(number()?),
                "U" => fields.week = Some((number()?, false)),
                "W" => fields.week = Some((number()?, true)),
                "z" | "Z" => fields.offset = Some(offset(&text.to_ascii_uppercase())?),
                _ => {}
            }
        }
        if twelve {
            fields.hour = fields.hour % 12 + if afternoon == Some(true) { 12 } else { 0 };
        }
        if fields.hour > 23 || fields.minute > 59 {
            return None;
        }
        calendar.time(&fields, now)
    }
}

const MONTHS: [&str; 12] = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];
const DAYS: [&str; 7] = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];

fn index(names: &[&str], text: &str) -> Option<i8> {
    let text = text.to_ascii_lowercase();
    names.iter().position(|name| name.starts_with(&text)).and_then(|index| i8::try_from(index).ok())
}

/// Seconds, or with 13 digits milliseconds, or with 16 microseconds.
fn long_epoch(text: &str) -> Option<Duration> {
    let value = text.parse::<f64>().ok()?;
    let scale = match text.len() {
        ..13 => 1.0,
        16.. if !text.contains('.') => 1_000_000.0,
        _ => 1000.0,
    };
    Duration::try_from_secs_f64(value / scale).ok()
}

/// `@4000000053a6a2c0…`: hexadecimal seconds since 1970, after a 4. The nanoseconds are left out.
fn tai64n(text: &str) -> Option<Duration> {
    u64::from_str_radix(text.get(2..17)?, 16).ok().map(Duration::from_secs)
}

fn shape(written: &str) -> Option<(Shape, Place)> {
    let (bare, place) = if let Some(bare) = written.strip_prefix(BEGIN) {
        (bare, Place::LineBegin)
    } else if let Some(bare) = written.strip_prefix(BRACKET) {
        (bare.strip_suffix(')')?, Place::Bracket)
    } else if let Some(bare) = written.strip_prefix(BRACKETS) {
        (bare.strip_suffix(r"\s*\])")?, Place::Brackets)
    } else {
        (written, Place::Free)
    };
    let shape = match bare {
        ISO | ISO_NGINX => Shape::Iso,
        SYSLOG => Shape::Syslog,
        CLF => Shape::Clf,
        _ => return None,
    };
    Some((shape, place))
}

/// A default template, as part of a pattern with `{DATE}`.
pub(crate) fn unbound(default: &str) -> String {
    let bare = default.strip_prefix(BEGIN).unwrap_or(default);
    let bare = bare.strip_prefix("**").unwrap_or(bare);
    match bare.strip_suffix("**").unwrap_or(bare) {
        "EPOCH" => "{EPOCH}".to_owned(),
        "TAI64N" => TAI.to_owned(),
        other => other.to_owned(),
    }
}

const EPOCH: &str = r"(?P<epoch>\d{10,11}\b(?:\.\d{3,6})?)";
const LONG_EPOCH: &str = r"(?P<lepoch>\d{10,11}(?:\d{3}(?:\.\d{1,6}|\d{3})?)?)";
const TAI: &str = "(?P<tai>@[0-9a-f]{24})";

/// The expression, and whether it is bound to the line's begin or end.
fn expression(written: &str) -> Result<(String, bool), String> {
    let upper = written.to_uppercase();
    let written = match upper.as_str() {
        "EPOCH" => format!(r"**^\[?({EPOCH})**"),
        "LEPOCH" => format!(r"**^\[?({LONG_EPOCH})**"),
        "{^LN-BEG}EPOCH" | "^EPOCH" => format!("{BEGIN}({EPOCH})"),
        "{^LN-BEG}LEPOCH" | "^LEPOCH" => format!("{BEGIN}({LONG_EPOCH})"),
        "TAI64N" => format!("({TAI})"),
        "{^LN-BEG}TAI64N" | "^TAI64N" => format!("{BEGIN}({TAI})"),
        "{NONE}" => "{UNB}^".to_owned(),
        _ => written.to_owned(),
    };
    let (written, words) = match written.strip_prefix("{UNB}") {
        Some(rest) => (rest, false),
        None => (written.as_str(), true),
    };
    let (written, begin) = match written.strip_prefix(BEGIN) {
        Some(rest) if words => (rest, true),
        _ => (written, false),
    };
    let (text, letters) = substituted(written)?;
    let (flags, text) = leading_flags(text.trim());
    let stars = |text: &str| text.trim_start_matches('(').starts_with("**");
    let bound_begin =
        words && !text.trim_start_matches("(?:").trim_start_matches('(').starts_with('^') && !stars(text);
    let closed = text.trim_end_matches(')');
    let line_end = text.ends_with('$') && !text.ends_with(r"\$") || text.ends_with("$)");
    let bound_end =
        words && !(line_end || text.ends_with(r"\b") || text.ends_with(r"\s") || closed.ends_with("**"));
    let text = text.strip_prefix("**").unwrap_or(text);
    let text = match closed.ends_with("**") {
        true => text.replacen("**", "", usize::from(text.contains("**"))),
        false => text.to_owned(),
    };
    let mut regex = if has_group(&text) { text } else { grouped(&text) };
    if begin {
        regex = format!(r"^(?:\W{{0,2}})?{regex}");
    } else if bound_begin {
        regex = format!(r"(?=^|\b|\W){regex}");
    }
    let anchored = regex.starts_with('^') || regex.starts_with("(^") || regex.starts_with("(?:^") || line_end;
    if bound_end {
        regex.push_str(r"(?=\b|\W|$)");
    }
    let flags = if letters { "(?i)" } else { flags };
    Ok((format!("{flags}{regex}"), anchored))
}

fn leading_flags(text: &str) -> (&str, &str) {
    let end = text.strip_prefix("(?").and_then(|rest| rest.find(|char: char| !char.is_ascii_lowercase()));
    match end {
        Some(end) if end > 0 && text.get(end + 2..end + 3) == Some(")") => text.split_at(end + 3),
        _ => ("", text),
    }
}

/// Whether a plain group says what is cut out.
fn has_group(text: &str) -> bool {
    let bytes = text.as_bytes();
    (0..bytes.len()).any(|at| {
        bytes.get(at) == Some(&b'(')
            && bytes.get(at + 1) != Some(&b'?')
            && (at == 0 || bytes.get(at - 1) != Some(&b'\\'))
            && !(at >= 2 && bytes.get(at - 2..at) == Some(b"(?"))
    })
}

/// Everything between the anchors is cut out.
fn grouped(text: &str) -> String {
    let (begin, rest) = match text.strip_prefix('^') {
        Some(rest) => ("^", rest),
        None => ("", text),
    };
    match rest.strip_suffix('$') {
        Some(rest) if !rest.ends_with('\\') => format!("{begin}({rest})$"),
        _ => format!("{begin}({rest})"),
    }
}

/// `(?P=_sep)` as a second group that must hold the same, which a regular expression can find.
fn same_separator(text: &str) -> (String, bool) {
    let class =
        text.split_once("(?P<_sep>").and_then(|(_, rest)| rest.split_once(')')).map(|(class, _)| class);
    match class {
        Some(class)
            if class.starts_with('[')
                && class.find(']') == Some(class.len() - 1)
                && text.matches("(?P=_sep)").count() == 1 =>
        {
            (text.replace("(?P=_sep)", &format!("(?P<_sep_again>{class})")), true)
        }
        _ => (text.to_owned(), false),
    }
}

/// `%` codes and `{EPOCH}` → groups, and whether names of months or days are among them.
fn substituted(written: &str) -> Result<(String, bool), String> {
    let mut out = String::with_capacity(written.len() * 4);
    let mut letters = false;
    let mut rest = written;
    while let Some(char) = rest.chars().next() {
        let lower = rest.get(..8).map(str::to_ascii_lowercase);
        if rest.starts_with('{') && !out.ends_with('\\') {
            if lower.as_deref().is_some_and(|lower| lower.starts_with("{epoch}")) {
                out.push_str(EPOCH);
                rest = rest.get(7..).unwrap_or_default();
                continue;
            }
            if lower.as_deref() == Some("{lepoch}") {
                out.push_str(LONG_EPOCH);
                rest = rest.get(8..).unwrap_or_default();
                continue;
            }
        }
        rest = rest.get(char.len_utf8()..).unwrap_or_default();
        if char != '%' {
            out.push(char);
            continue;
        }
        let (code, meaning) = CODES
            .iter()
            .filter(|(code, _)| rest.starts_with(code))
            .max_by_key(|(code, _)| code.len())
            .ok_or_else(|| {
                "`%` stands before no code that is known; write `%%` for the character".to_owned()
            })?;
        letters |= matches!(*code, "a" | "A" | "b" | "B" | "p" | "c");
        out.push_str(meaning);
        rest = rest.get(code.len()..).unwrap_or_default();
    }
    Ok((out, letters))
}

const CODES: [(&str, &str); 39] = [
    ("%", "%"),
    ("a", "(?P<a>mon|tue|wed|thu|fri|sat|sun)"),
    ("A", "(?P<A>monday|tuesday|wednesday|thursday|friday|saturday|sunday)"),
    ("b", "(?P<b>jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)"),
    ("B", "(?P<B>january|february|march|april|may|june|july|august|september|october|november|december)"),
    ("d", "(?P<d>[12][0-9]|[0 ]?[1-9]|3[01])"),
    ("m", "(?P<m>0?[1-9]|1[0-2])"),
    ("Y", "(?P<Y>[0-9]{4})"),
    ("y", "(?P<y>[0-9]{2})"),
    ("H", "(?P<H>[01]?[0-9]|2[0-3])"),
    ("k", " ?(?P<H>[0-2]?[0-9])"),
    ("I", "(?P<I>1[0-2]|0[1-9]|[1-9])"),
    ("l", " ?(?P<I>1?[0-9])"),
    ("M", "(?P<M>[0-5]?[0-9])"),
    ("S", "(?P<S>[0-5]?[0-9]|6[01])"),
    ("f", "(?P<f>[0-9]{1,6})"),
    ("p", "(?P<p>am|pm)"),
    ("j", "(?P<j>36[0-6]|3[0-5][0-9]|[12][0-9][0-9]|0[1-9][0-9]|00[1-9]|[1-9][0-9]|0[1-9]|[1-9])"),
    ("U", "(?P<U>5[0-3]|[0-4]?[0-9])"),
    ("W", "(?P<W>5[0-3]|[0-4]?[0-9])"),
    ("w", "(?P<w>[0-6])"),
    ("u", "(?P<u>[1-7])"),
    ("z", "(?P<z>Z|UTC|GMT|[+-][01][0-9](?::?[0-9]{2})?)"),
    ("Z", "(?P<Z>Z|[A-Z]{3,5})"),
    (
        "c",
        r"(?P<a>mon|tue|wed|thu|fri|sat|sun)\s+(?P<b>jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)\s+(?P<d>[12][0-9]|[0 ]?[1-9]|3[01])\s+(?P<H>[01]?[0-9]|2[0-3]):(?P<M>[0-5]?[0-9]):(?P<S>[0-5]?[0-9]|6[01])\s+(?P<Y>[0-9]{4})",
    ),
    ("x", "(?P<m>0?[1-9]|1[0-2])/(?P<d>[12][0-9]|[0 ]?[1-9]|3[01])/(?P<y>[0-9]{2})"),
    ("X", "(?P<H>[01]?[0-9]|2[0-3]):(?P<M>[0-5]?[0-9]):(?P<S>[0-5]?[0-9]|6[01])"),
    ("ExY", "(?P<Y>20[0-9]{2})"),
    ("Exy", "(?P<y>[0-9]{2})"),
    ("Exm", "(?P<m>0[1-9]|1[0-2])"),
    ("Exd", "(?P<d>[12][0-9]|0[1-9]|3[01])"),
    ("ExH", "(?P<H>[01][0-9]|2[0-3])"),
    ("Exk", " ?(?P<H>[01]?[0-9]|2[0-3])"),
    ("Exl", " ?(?P<I>1[0-2]|[0-9])"),
    ("ExM", "(?P<M>[0-5][0-9])"),
    ("ExS", "(?P<S>[0-5][0-9]|6[01])"),
    ("ExZ", "(?P<Z>[A-Z](?:[A-Z]{2,4})?)"),
    ("Exz", "(?P<z>(?:[A-Z](?:[A-Z]{2,4})?)?[+-][01][0-9](?::?[0-9]{2})?|[A-Z](?:[A-Z]{2,4})?)"),
    ("G", "(?P<Y>[0-9]{4})"),
];
