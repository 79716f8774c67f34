//! The filters and jails of `conf/jails`, read and compiled. Knows the files' format; must not
//! know what counts as an attack. Exists so that each test asks one question: who matches?

use std::collections::BTreeMap;
use std::path::Path;

use regex::bytes::{Regex, RegexSet, RegexSetBuilder};
use toml::de::{DeTable, DeValue};

/// What `<HOST>` stands for here: enough of an address, and nothing that a client could write.
const HOST: &str = "(?P<host>[0-9A-Fa-f.:]+)";

/// Room for the automaton of all patterns together: with the crate's two megabytes it is forgotten
/// and built again all the time, a hundred times slower.
const GATE: usize = 64 << 20;

pub(crate) struct Filter {
    pub(crate) name: String,
    pub(crate) failregex: Vec<String>,
    pub(crate) ignoreregex: Vec<String>,
    pub(crate) matches: Vec<String>,
    pub(crate) passes: Vec<String>,
}

pub(crate) struct Jail {
    pub(crate) name: String,
    pub(crate) filter: String,
    pub(crate) max_offences: i64,
    pub(crate) keys: BTreeMap<String, String>,
}

/// All of them, and one automaton that gates every line.
pub(crate) struct Book {
    pub(crate) filters: Vec<Filter>,
    pub(crate) jails: Vec<Jail>,
    gate: RegexSet,
    /// Filter and compiled pattern, in the order of the gate.
    patterns: Vec<(usize, Regex)>,
    ignored: Vec<(usize, Regex)>,
}

impl Book {
    pub(crate) fn read() -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf/jails");
        let mut files: Vec<_> = std::fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
            .collect();
        files.sort();
        let (mut filters, mut jails) = (Vec::new(), Vec::new());
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap();
            let table = DeTable::parse(&text).unwrap_or_else(|fault| panic!("{}: {fault}", file.display()));
            for (key, value) in table.get_ref() {
                match key.get_ref().as_ref() {
                    "filter" => filters.extend(tables(value.get_ref()).map(filter)),
                    "jail" => jails.extend(tables(value.get_ref()).map(jail)),
                    other => panic!("{}: {other} is neither a filter nor a jail", file.display()),
                }
            }
        }
        Self::compile(filters, jails)
    }

    fn compile(filters: Vec<Filter>, jails: Vec<Jail>) -> Self {
        let compiled = |which: fn(&Filter) -> &Vec<String>| -> Vec<(usize, Regex)> {
            let each = filters.iter().enumerate();
            each.flat_map(|(index, filter)| which(filter).iter().map(move |text| (index, text)))
                .map(|(index, text)| {
                    let regex = Regex::new(&text.replace("<HOST>", HOST));
                    (index, regex.unwrap_or_else(|fault| panic!("{}: {fault}", filters[index].name)))
                })
                .collect()
        };
        let patterns = compiled(|filter| &filter.failregex);
        let ignored = compiled(|filter| &filter.ignoreregex);
        let gate = RegexSetBuilder::new(patterns.iter().map(|(_, regex)| regex.as_str()))
            .dfa_size_limit(GATE)
            .build()
            .unwrap();
        Self { filters, jails, gate, patterns, ignored }
    }

    /// Which filters the line offends, each with the host that it names.
    pub(crate) fn offences(&self, line: &[u8]) -> Vec<(&str, String)> {
        let mut found: Vec<(&str, String)> = Vec::new();
        for pattern in &self.gate.matches(line) {
            let (index, regex) = &self.patterns[pattern];
            let name = self.filters[*index].name.as_str();
            if self.ignored.iter().any(|(of, regex)| of == index && regex.is_match(line)) {
                continue;
            }
            let host = String::from_utf8_lossy(&regex.captures(line).unwrap()["host"]).into_owned();
            if !found.iter().any(|(known, _)| *known == name) {
                found.push((name, host));
            }
        }
        found
    }
}

fn tables<'v, 'i>(value: &'v DeValue<'i>) -> impl Iterator<Item = &'v DeTable<'i>> {
    let DeValue::Array(array) = value else { panic!("write [[filter]] and [[jail]]") };
    array.iter().map(|item| match item.get_ref() {
        DeValue::Table(table) => table,
        other => panic!("{other:?} is no table"),
    })
}

fn filter(table: &DeTable<'_>) -> Filter {
    let known = ["name", "failregex", "ignoreregex", "matches", "passes"];
    assert!(table.iter().all(|(key, _)| known.contains(&key.get_ref().as_ref())), "{table:?}");
    Filter {
        name: text(table, "name"),
        failregex: texts(table, "failregex"),
        ignoreregex: texts(table, "ignoreregex"),
        matches: texts(table, "matches"),
        passes: texts(table, "passes"),
    }
}

fn jail(table: &DeTable<'_>) -> Jail {
    let keys: BTreeMap<_, _> =
        table.iter().map(|(key, value)| (key.get_ref().to_string(), shown(value.get_ref()))).collect();
    Jail {
        name: text(table, "name"),
        filter: text(table, "filter"),
        max_offences: keys["max_offences"].parse().unwrap(),
        keys,
    }
}

fn shown(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => text.to_string(),
        DeValue::Integer(number) => number.as_str().to_owned(),
        other => panic!("{other:?} in a jail"),
    }
}

fn text(table: &DeTable<'_>, key: &str) -> String {
    shown(table.get(key).unwrap_or_else(|| panic!("{key} is missing")).get_ref())
}

fn texts(table: &DeTable<'_>, key: &str) -> Vec<String> {
    let Some(DeValue::Array(array)) = table.get(key).map(toml::Spanned::get_ref) else {
        panic!("{key} is no list")
    };
    array.iter().map(|item| shown(item.get_ref())).collect()
}
