//! Reads a TOML file into ready settings and reports EVERY fault at once, each with
//! file:line:column and what to write instead. Knows TOML and the value types
//! (durations, sizes, addresses); must not know any program's keys.
//!
//! Settings are pulled key by key from a [`Section`] rather than derived: a derived
//! reader stops at the first fault, and an operator wants them all.
//! A key that nobody pulled is unknown, and a fault.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// One thing wrong with a configuration file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// The file as the operator named it.
    pub file: PathBuf,
    /// 1-based line, or 0 where the fault is the file itself.
    pub line: usize,
    /// 1-based column in characters, or 0.
    pub column: usize,
    /// What is wrong and what to write instead.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        match self.line {
            0 => write!(f, "{file}: {}", self.what),
            _ => write!(f, "{file}:{}:{}: {}", self.line, self.column, self.what),
        }
    }
}

/// Every fault of one configuration, in file order. Callers exit with 78 (EX_CONFIG).
#[derive(Debug, Clone, thiserror::Error)]
pub struct Faults(pub Vec<Fault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{fault}")?;
        }
        Ok(())
    }
}

/// Reads `path` and lets `build` pull its settings. `build` returns `None` where a
/// required part is missing; the fault was noted when it was pulled.
///
/// # Errors
/// All faults together: unreadable file, TOML syntax, wrong types, missing and unknown keys.
pub fn read_file<T>(path: &Path, build: impl FnOnce(&mut Section<'_>) -> Option<T>) -> Result<T, Faults> {
    match std::fs::read_to_string(path) {
        Ok(text) => read_text(path, &text, build),
        Err(error) => Err(Faults(vec![Fault {
            file: path.to_owned(),
            line: 0,
            column: 0,
            what: format!("cannot be read: {error}; name the file with --config"),
        }])),
    }
}

/// As [`read_file`], from text already in memory; `path` is only named in faults.
///
/// # Errors
/// As [`read_file`].
pub fn read_text<T>(
    path: &Path,
    text: &str,
    build: impl FnOnce(&mut Section<'_>) -> Option<T>,
) -> Result<T, Faults> {
    let source = Source { file: path, text, faults: RefCell::default() };
    let (table, syntax) = DeTable::parse_recoverable(text);
    for error in &syntax {
        source.note(error.span().map_or(0, |span| span.start), error.message().to_owned());
    }
    let built = {
        let mut root = Section {
            source: &source,
            table: Some(table.get_ref()),
            at: 0,
            path: String::new(),
            asked: BTreeSet::new(),
            rest_is_left: false,
        };
        build(&mut root)
    };
    let mut faults = source.faults.into_inner();
    faults.sort();
    faults.dedup();
    match built {
        Some(built) if faults.is_empty() => Ok(built),
        _ => {
            debug_assert!(!faults.is_empty(), "a refused configuration names its fault");
            Err(Faults(faults))
        }
    }
}

/// Where a key stands, kept for a fault that only shows when the file has been read: a pattern that does
/// not compile, a name that another file should have brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    file: PathBuf,
    line: usize,
    column: usize,
    name: String,
}

impl Place {
    /// The fault that is there.
    #[must_use]
    pub fn fault(&self, what: impl fmt::Display) -> Fault {
        Fault {
            file: self.file.clone(),
            line: self.line,
            column: self.column,
            what: format!("{}: {what}", self.name),
        }
    }
}

struct Source<'d> {
    file: &'d Path,
    text: &'d str,
    faults: RefCell<Vec<Fault>>,
}

impl Source<'_> {
    fn note(&self, offset: usize, what: String) {
        let (line, column) = self.position(offset);
        self.faults.borrow_mut().push(Fault { file: self.file.to_owned(), line, column, what });
    }

    /// Line and column, 1-based.
    fn position(&self, offset: usize) -> (usize, usize) {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (before.matches('\n').count() + 1, before.get(line_start..).unwrap_or("").chars().count() + 1)
    }
}

/// A table of the file, from which settings are pulled. When it is dropped, every key
/// that was not pulled is reported as unknown.
pub struct Section<'d> {
    source: &'d Source<'d>,
    table: Option<&'d DeTable<'d>>,
    at: usize,
    path: String,
    asked: BTreeSet<&'static str>,
    rest_is_left: bool,
}

impl<'d> Section<'d> {
    /// A key that must be there; `None` after noting why not.
    pub fn required<T: Value>(&mut self, key: &'static str) -> Option<T> {
        match self.lookup(key) {
            Some(value) => self.convert(key, value),
            None => {
                self.source
                    .note(self.at, format!("{}: missing; write {key} = {}", self.name(key), T::EXAMPLE));
                None
            }
        }
    }

    /// A key with a default, which also stands in for a faulty value (the fault is noted).
    pub fn or<T: Value>(&mut self, key: &'static str, default: T) -> T {
        self.optional(key).unwrap_or(default)
    }

    /// A key that may be absent.
    pub fn optional<T: Value>(&mut self, key: &'static str) -> Option<T> {
        let value = self.lookup(key)?;
        self.convert(key, value)
    }

    /// An array of values; absent reads as empty.
    pub fn list<T: Value>(&mut self, key: &'static str) -> Vec<T> {
        let Some(value) = self.lookup(key) else { return Vec::new() };
        let Some(array) = value.get_ref().as_array() else {
            self.source.note(
                value.span().start,
                format!("{}: {} is no list; write [{}]", self.name(key), show(value.get_ref()), T::EXAMPLE),
            );
            return Vec::new();
        };
        array.iter().filter_map(|item| self.convert(key, item)).collect()
    }

    /// A `[section]`; absent reads as an empty one, so that its defaults hold.
    pub fn section(&mut self, key: &'static str) -> Section<'d> {
        self.optional_section(key).unwrap_or_else(|| self.child(key, None, self.at))
    }

    /// A `[section]` that may be absent.
    pub fn optional_section(&mut self, key: &'static str) -> Option<Section<'d>> {
        let value = self.lookup(key)?;
        let at = value.span().start;
        match value.get_ref().as_table() {
            Some(table) => Some(self.child(key, Some(table), at)),
            None => {
                let what = format!("{}: is a section; write [{}]", self.name(key), self.name(key));
                self.source.note(at, what);
                None
            }
        }
    }

    /// Every `[[section]]` of that name.
    pub fn sections(&mut self, key: &'static str) -> Vec<Section<'d>> {
        let Some(value) = self.lookup(key) else { return Vec::new() };
        let tables = value.get_ref().as_array().map(|array| {
            array
                .iter()
                .map(|item| item.get_ref().as_table().map(|table| (table, item.span().start)))
                .collect::<Option<Vec<_>>>()
        });
        if let Some(Some(tables)) = tables {
            tables.into_iter().map(|(table, at)| self.child(key, Some(table), at)).collect()
        } else {
            let what = format!("{0}: is a list of sections; write [[{0}]]", self.name(key));
            self.source.note(value.span().start, what);
            Vec::new()
        }
    }

    /// Notes a fault of meaning at `key`'s value (or at the section where the key is absent).
    pub fn fault(&mut self, key: &'static str, what: impl fmt::Display) {
        let at = self.lookup(key).map_or(self.at, |value| value.span().start);
        self.source.note(at, format!("{}: {what}", self.name(key)));
    }

    /// Where `key`'s value stands, or the section where the key is absent.
    pub fn place(&mut self, key: &'static str) -> Place {
        let at = self.lookup(key).map_or(self.at, |value| value.span().start);
        self.placed(key, at)
    }

    /// Where each value of the list `key` stands.
    pub fn places(&mut self, key: &'static str) -> Vec<Place> {
        let array = self.lookup(key).and_then(|value| value.get_ref().as_array());
        array.map_or_else(Vec::new, |array| {
            array.iter().map(|item| self.placed(key, item.span().start)).collect()
        })
    }

    fn placed(&self, key: &str, at: usize) -> Place {
        let (line, column) = self.source.position(at);
        Place { file: self.source.file.to_owned(), line, column, name: self.name(key) }
    }

    /// Adds faults that were found elsewhere, such as in a file that this one names.
    pub fn adopt(&mut self, faults: impl IntoIterator<Item = Fault>) {
        self.source.faults.borrow_mut().extend(faults);
    }

    /// Reports no key as unknown here: which ones are known depends on a value that is itself at fault.
    pub fn leave_rest(&mut self) {
        self.rest_is_left = true;
    }

    /// Is the key written in the file?
    pub fn has(&mut self, key: &'static str) -> bool {
        self.lookup(key).is_some()
    }

    /// The file's folder, for paths that the file gives relative to itself.
    pub fn folder(&self) -> &Path {
        self.source.file.parent().unwrap_or(Path::new("."))
    }

    fn child(&self, key: &str, table: Option<&'d DeTable<'d>>, at: usize) -> Section<'d> {
        let path = self.name(key);
        Section { source: self.source, table, at, path, asked: BTreeSet::new(), rest_is_left: false }
    }

    fn lookup(&mut self, key: &'static str) -> Option<&'d Spanned<DeValue<'d>>> {
        self.asked.insert(key);
        self.table?.get(key)
    }

    fn convert<T: Value>(&self, key: &str, value: &Spanned<DeValue<'_>>) -> Option<T> {
        match T::read(value.get_ref()) {
            Ok(read) => Some(read),
            Err(why) => {
                let what = match why {
                    Some(why) => format!("{}: {why}", self.name(key)),
                    None => format!(
                        "{}: {} is no {}; write {}",
                        self.name(key),
                        show(value.get_ref()),
                        T::NOUN,
                        T::EXAMPLE
                    ),
                };
                self.source.note(value.span().start, what);
                None
            }
        }
    }

    fn name(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        let Some(table) = self.table.filter(|_| !self.rest_is_left) else { return };
        for key in table.keys() {
            let name = key.get_ref().as_ref();
            if self.asked.contains(name) {
                continue;
            }
            let hint = match nearest(name, &self.asked) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("known here: {}", self.asked.iter().copied().collect::<Vec<_>>().join(", ")),
            };
            self.source.note(key.span().start, format!("{}: unknown key; {hint}", self.name(name)));
        }
    }
}

/// The known word that a mistyped one was probably meant to be.
#[must_use]
pub fn nearest<'a>(name: &str, known: &BTreeSet<&'a str>) -> Option<&'a str> {
    known
        .iter()
        .map(|key| (distance(name, key), *key))
        .filter(|(distance, key)| *distance <= 2.max(key.len() / 4))
        .min()
        .map(|(_, key)| key)
}

/// Levenshtein distance, by the usual two rows.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, r) in right.iter().enumerate() {
            let substitution = diagonal + usize::from(l != *r);
            diagonal = row[j + 1];
            row[j + 1] = substitution.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[right.len()]
}

fn show(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("{text:?}"),
        DeValue::Integer(integer) => integer.to_string(),
        DeValue::Float(float) => float.to_string(),
        DeValue::Boolean(boolean) => boolean.to_string(),
        other => format!("a {}", other.type_str()),
    }
}

/// A type that a key can hold.
pub trait Value: Sized {
    /// What it is called in "is no …".
    const NOUN: &'static str;
    /// What to write instead, as TOML.
    const EXAMPLE: &'static str;
    /// `Err(None)` gives the usual sentence from noun and example, `Err(Some)` its own.
    ///
    /// # Errors
    /// The value is of another type or out of range.
    fn read(value: &DeValue<'_>) -> Result<Self, Option<String>>;
}

fn text<'v>(value: &'v DeValue<'_>) -> Result<&'v str, Option<String>> {
    value.as_str().ok_or(None)
}

impl Value for String {
    const NOUN: &'static str = "text";
    const EXAMPLE: &'static str = "\"…\"";
    fn read(value: &DeValue<'_>) -> Result<Self, Option<String>> {
        text(value).map(str::to_owned)
    }
}

impl Value for PathBuf {
    const NOUN: &'static str = "path";
    const EXAMPLE: &'static str = "\"/path/to/it\"";
    fn read(value: &DeValue<'_>) -> Result<Self, Option<String>> {
        match text(value)? {
            "" => Err(Some("is empty; write \"/path/to/it\"".to_owned())),
            path => Ok(PathBuf::from(path)),
        }
    }
}

impl Value for bool {
    const NOUN: &'static str = "boolean";
    const EXAMPLE: &'static str = "true";
    fn read(value: &DeValue<'_>) -> Result<Self, Option<String>> {
        value.as_bool().ok_or(None)
    }
}

macro_rules! whole_numbers {
    ($($kind:ty),*) => {$(
        impl Value for $kind {
            const NOUN: &'static str = "whole number that fits";
            const EXAMPLE: &'static str = "50";
            fn read(value: &DeValue<'_>) -> Result<Self, Option<String>> {
                let integer = value.as_integer().ok_or(None)?;
                <$kind>::from_str_radix(integer.as_str(), integer.radix()).map_err(|_| None)
            }
        }
    )*};
}
whole_numbers!(u16, u32, u64, usize);

impl Value for f64 {
    const NOUN: &'static str = "number";
    const EXAMPLE: &'static str = "1.5";
    fn read(value: &DeValue<'_>) -> Result<Self, Option<String>> {
        let number: Self = match value {
            DeValue::Float(float) => float.as_str().parse().map_err(|_| None)?,
            DeValue::Integer(integer) if integer.radix() == 10 => {
                integer.as_str().parse().map_err(|_| None)?
            }
            _ => return Err(None),
        };
        if number.is_finite() { Ok(number) } else { Err(None) }
    }
}

/// The addresses and networks that the standard libraries parse.
macro_rules! parsed {
    ($($kind:ty, $noun:literal, $example:literal);*) => {$(
        impl Value for $kind {
            const NOUN: &'static str = $noun;
            const EXAMPLE: &'static str = $example;
            fn read(value: &DeValue<'_>) -> Result<Self, Option<String>> {
                text(value)?.parse().map_err(|_| None)
            }
        }
    )*};
}
parsed!(
    SocketAddr, "address with port", "\"127.0.0.1:8443\"";
    IpAddr, "IP address", "\"192.0.2.1\""
);

impl Value for IpNet {
    const NOUN: &'static str = "network";
    const EXAMPLE: &'static str = "\"10.0.0.0/8\"";
    fn read(value: &DeValue<'_>) -> Result<Self, Option<String>> {
        let text = text(value)?;
        text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).map_err(|_| None)
    }
}

impl Value for Duration {
    const NOUN: &'static str = "duration";
    const EXAMPLE: &'static str = "\"10m\"";
    fn read(value: &DeValue<'_>) -> Result<Self, Option<String>> {
        parse_duration(text(value)?).ok_or(None)
    }
}

/// `"250ms"`, `"10s"`, `"10m"`, `"2h"`, `"7d"`: a whole number and one unit.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let (count, unit) = number_and_unit(text)?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    count.checked_mul(milliseconds).map(Duration::from_millis)
}

/// A size in bytes, written `"64MiB"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// So many KiB.
    #[must_use]
    pub const fn kib(count: u64) -> Self {
        Self(count << 10)
    }
    /// So many MiB.
    #[must_use]
    pub const fn mib(count: u64) -> Self {
        Self(count << 20)
    }
    /// So many GiB.
    #[must_use]
    pub const fn gib(count: u64) -> Self {
        Self(count << 30)
    }
    /// In memory's own unit; sizes beyond it saturate.
    #[must_use]
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 >= 1 << shift && self.0.is_multiple_of(1 << shift) {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl Value for ByteSize {
    const NOUN: &'static str = "size";
    const EXAMPLE: &'static str = "\"64MiB\"";
    fn read(value: &DeValue<'_>) -> Result<Self, Option<String>> {
        let (count, unit) = number_and_unit(text(value)?).ok_or(None)?;
        let shift = match unit {
            "B" => 0,
            "KiB" => 10,
            "MiB" => 20,
            "GiB" => 30,
            "TiB" => 40,
            _ => return Err(None),
        };
        count.checked_mul(1 << shift).map(ByteSize).ok_or(None)
    }
}

fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let split = text.find(|c: char| !c.is_ascii_digit())?;
    let (count, unit) = text.split_at(split);
    Some((count.parse().ok()?, unit.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Limits {
        ban_time: Duration,
        body: ByteSize,
        networks: Vec<IpNet>,
        name: String,
    }

    fn limits(text: &str) -> Result<Limits, Faults> {
        read_text(Path::new("conf/edge.toml"), text, |root| {
            let name = root.required("name");
            let mut jail = root.section("jail");
            let ban_time = jail.or("ban_time", Duration::from_secs(600));
            let body = jail.or("body", ByteSize::mib(1));
            let networks = jail.list("networks");
            Some(Limits { ban_time, body, networks, name: name? })
        })
    }

    #[test]
    fn every_fault_is_told_at_once_with_its_place() {
        let faults = limits(
            "nam = 3\n[jail]\nban_time = \"10 minuts\"\nbody = 7\nnetworks = [\"10.0.0.0/8\", \"x\"]\n",
        )
        .unwrap_err()
        .to_string();
        assert_eq!(
            faults,
            "conf/edge.toml:1:1: nam: unknown key; did you mean name?\n\
             conf/edge.toml:1:1: name: missing; write name = \"…\"\n\
             conf/edge.toml:3:12: jail.ban_time: \"10 minuts\" is no duration; write \"10m\"\n\
             conf/edge.toml:4:8: jail.body: 7 is no size; write \"64MiB\"\n\
             conf/edge.toml:5:27: jail.networks: \"x\" is no network; write \"10.0.0.0/8\""
        );
    }

    #[test]
    fn syntax_faults_do_not_hide_faults_of_meaning() {
        let faults = limits("name = \n[jail]\nban_time = 3\n").unwrap_err().to_string();
        assert!(faults.contains("conf/edge.toml:1:"), "{faults}");
        assert!(faults.contains("jail.ban_time: 3 is no duration"), "{faults}");
    }

    #[test]
    fn defaults_hold_where_a_section_is_absent() {
        let read = limits("name = \"a\"").unwrap();
        assert_eq!(read.ban_time, Duration::from_secs(600));
        assert_eq!(read.networks, []);
    }

    #[test]
    fn a_number_may_be_whole_or_not() {
        let number = |text: &str| {
            read_text(Path::new("x"), text, |root| root.required::<f64>("x"))
                .map_err(|faults| faults.to_string())
        };
        assert_eq!(number("x = 2"), Ok(2.0));
        assert_eq!(number("x = 1_000.5"), Ok(1000.5));
        assert_eq!(number("x = -1e3"), Ok(-1000.0));
        for wrong in ["\"2\"", "inf", "nan", "1e999", "0x10"] {
            assert!(
                number(&format!("x = {wrong}")).unwrap_err().contains("is no number; write 1.5"),
                "{wrong}"
            );
        }
    }

    #[test]
    fn a_fault_found_later_is_told_with_its_place() {
        let text = "name = \"a\"\n[[filter]]\nregex = [\n  'x',  'y',\n]\n";
        let (absent, items) = read_text(Path::new("x.toml"), text, |root| {
            root.optional::<String>("name");
            let mut filter = root.sections("filter").pop()?;
            Some((filter.place("prefix"), filter.places("regex")))
        })
        .unwrap();
        assert_eq!(absent.fault("is bad").to_string(), "x.toml:2:1: filter.prefix: is bad");
        assert_eq!(items.len(), 2);
        assert_eq!(items[1].fault("is bad").to_string(), "x.toml:4:9: filter.regex: is bad");
    }

    #[test]
    fn faults_of_other_files_are_told_with_ones_own() {
        let other = read_text(Path::new("b.toml"), "x = 1", |_| Some(())).unwrap_err();
        let told = read_text(Path::new("a.toml"), "y = 1", |root| {
            root.adopt(other.0);
            Some(())
        });
        let told = told.unwrap_err().to_string();
        assert!(
            told.starts_with("a.toml:1:1: y: unknown key") && told.contains("\nb.toml:1:1: x:"),
            "{told}"
        );
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "(?s).{0,200}") {
            let _ = limits(&text);
        }

        #[test]
        fn a_duration_reads_back(count in 0_u64..1_000_000, unit in "ms|s|m|h|d") {
            let text = format!("{count}{unit}");
            proptest::prop_assert!(parse_duration(&text).is_some(), "{}", text);
        }
    }
}
