//! `jail.conf` and all that stands on top of it → each jail's options and its filter's patterns, as
//! fail2ban itself would have them. Knows fail2ban's jails; must not know ours.

use std::path::{Path, PathBuf};

use super::definition::{Definition, PATTERN_OPTIONS};
use super::files::Merged;
use super::ini::Value;
use super::interpolate::{self, Given};
use super::options;
use super::{ImportFault, as_bool};
use crate::ban::FilterText;
use indexmap::IndexMap;

/// What a jail may say, apart from [`PATTERN_OPTIONS`]; and what it says where it says nothing.
const OPTIONS: [(&str, Option<&str>); 24] = [
    ("enabled", Some("False")),
    ("backend", Some("auto")),
    ("maxretry", None),
    ("maxmatches", None),
    ("findtime", None),
    ("bantime", None),
    ("bantime.increment", None),
    ("bantime.factor", None),
    ("bantime.formula", None),
    ("bantime.multipliers", None),
    ("bantime.maxtime", None),
    ("bantime.rndtime", None),
    ("bantime.overalljails", None),
    ("ignorecommand", None),
    ("ignoreself", None),
    ("ignoreip", None),
    ("ignorecache", None),
    ("filter", Some("")),
    ("logtimezone", None),
    ("logencoding", None),
    ("logpath", None),
    ("action", Some("")),
    ("port", None),
    ("banaction", None),
];
const NUMBERS: [&str; 3] = ["maxretry", "maxmatches", "maxlines"];
const BOOLEANS: [&str; 4] = ["enabled", "bantime.increment", "bantime.overalljails", "ignoreself"];

/// One jail as fail2ban reads it.
pub(super) struct Jail {
    pub(super) name: String,
    /// Where it begins, and where its options stand.
    pub(super) file: PathBuf,
    pub(super) line: usize,
    pub(super) options: IndexMap<String, Value>,
    /// The filter's file, without its options.
    pub(super) filter: String,
    pub(super) filter_file: PathBuf,
    pub(super) text: FilterText,
    /// Includes of the filter that are not there.
    pub(super) missing: Vec<(PathBuf, Value)>,
}

impl Jail {
    /// What it says, where it says something.
    pub(super) fn said(&self, option: &str) -> Option<&str> {
        self.options.get(option).map(|value| value.text.trim()).filter(|text| !text.is_empty())
    }

    pub(super) fn is(&self, option: &str) -> bool {
        self.said(option).is_some_and(as_bool)
    }
}

/// All jails of a folder.
pub(super) struct Jails {
    folder: PathBuf,
    merged: Merged,
}

impl Jails {
    /// Reads `jail.conf`, `jail.d/*.conf`, `jail.local`, `jail.d/*.local`.
    pub(super) fn read(folder: &Path) -> Result<Self, ImportFault> {
        let Some(mut merged) = Merged::read(&folder.join("jail"))? else {
            return Err(ImportFault::NoJails { folder: folder.to_owned() });
        };
        let own = |text: String| Value { text, file: folder.into(), line: 0 };
        merged.defaults.insert("fail2ban_version".to_owned(), own("1".to_owned()));
        merged.defaults.insert("fail2ban_confpath".to_owned(), own(folder.display().to_string()));
        Ok(Self { folder: folder.to_owned(), merged })
    }

    pub(super) fn merged(&self) -> &Merged {
        &self.merged
    }

    /// Their names, in the files' order.
    pub(super) fn names(&self) -> Vec<String> {
        let real = |name: &&String| *name != "INCLUDES" && !name.starts_with("KNOWN/");
        self.merged.sections.keys().filter(real).cloned().collect()
    }

    /// Where a jail begins.
    pub(super) fn place(&self, name: &str) -> (PathBuf, usize) {
        let place = self.merged.places.get(name);
        place.map_or_else(Default::default, |(file, line)| (file.to_path_buf(), *line))
    }

    /// Is it on? A jail that cannot be read is on where its own text says so.
    pub(super) fn is_enabled(&self, name: &str) -> bool {
        let value = interpolate::value(&self.merged, name, "enabled", &Given::new());
        value.ok().flatten().is_some_and(|value| as_bool(value.text.trim()))
    }

    /// One jail. `log_type` is what the filter is read for where neither it nor the jail says: log files,
    /// or the journal where the jail's backend is systemd and `files_only` is false.
    pub(super) fn jail(&mut self, name: &str, files_only: bool) -> Result<Jail, ImportFault> {
        let (file, line) = self.place(name);
        let first = self.options(name, &["enabled", "backend", "filter"])?;
        let written = first.get("filter").map_or("", |value| &*value.text);
        let at = |what: String| {
            let place = first.get("filter").filter(|value| value.line > 0);
            let (file, line) =
                place.map_or((file.clone(), line), |value| (value.file.to_path_buf(), value.line));
            ImportFault::Jail { file, line, jail: name.to_owned(), what }
        };
        if written.is_empty() {
            return Err(at("has no filter".to_owned()));
        }
        let (filter, options) =
            options::named(written).map_err(|what| at(format!("filter = {written:?} {what}")))?;
        let options: Given = options;
        let journal =
            !files_only && first.get("backend").is_some_and(|backend| backend.text.starts_with("systemd"));
        let Some(mut definition) = Definition::read(&self.folder, &filter, &options)? else {
            let file = self.folder.join("filter.d").join(format!("{filter}.conf"));
            return Err(at(format!("its filter {} is not there", file.display())));
        };
        definition.choose_log_type(journal);
        definition.take_options(&texts(&first), true)?;
        self.make_known(name, &definition.combined()?, &definition);
        let wanted: Vec<&str> = OPTIONS.iter().map(|(option, _)| *option).chain(PATTERN_OPTIONS).collect();
        let options = self.options(name, &wanted)?;
        let from_jail = texts(&options);
        definition.take_options(&from_jail, false)?;
        let combined = definition.combined()?;
        Ok(Jail {
            name: name.to_owned(),
            file,
            line,
            text: Definition::text(&filter, &combined, &from_jail),
            filter,
            filter_file: definition.merged().files.last().cloned().unwrap_or_default(),
            missing: definition.merged().missing.clone(),
            options,
        })
    }

    /// A jail may build on what its filter says: `failregex = %(known/failregex)s …`.
    fn make_known(&mut self, jail: &str, combined: &Given, definition: &Definition) {
        let Some(section) = self.merged.sections.get_mut(jail) else { return };
        for (option, text) in combined.iter().filter(|(option, _)| !option.starts_with("known/")) {
            let place = definition.place(option);
            let value = place.map_or_else(
                || Value { text: text.clone(), file: self.folder.as_path().into(), line: 0 },
                |place| Value { text: text.clone(), ..place },
            );
            section.insert(format!("known/{option}"), value);
        }
    }

    fn options(&self, jail: &str, wanted: &[&str]) -> Result<IndexMap<String, Value>, ImportFault> {
        let mut options = IndexMap::new();
        for option in wanted {
            let default = OPTIONS.iter().find(|(name, _)| name == option).and_then(|(_, default)| *default);
            // `port` and `banaction` only tell us more: fail2ban reads them through `action`.
            let found = match interpolate::value(&self.merged, jail, option, &Given::new()) {
                Err(_) if matches!(*option, "port" | "banaction") => None,
                found => found?,
            };
            let value = match (found, default) {
                (Some(value), _) => converted(option, value),
                (None, Some(default)) => {
                    Some(Value { text: default.to_owned(), file: self.folder.as_path().into(), line: 0 })
                }
                (None, None) => None,
            };
            if let Some(value) = value {
                options.insert((*option).to_owned(), value);
            }
        }
        Ok(options)
    }
}

/// What fail2ban makes of a value of that option; `None` where it is none and the default holds.
fn converted(option: &str, value: Value) -> Option<Value> {
    if BOOLEANS.contains(&option) {
        let text = if as_bool(&value.text) { "True" } else { "False" };
        return Some(Value { text: text.to_owned(), ..value });
    }
    if NUMBERS.contains(&option) {
        let number: i64 = value.text.trim().parse().ok()?;
        return Some(Value { text: number.to_string(), ..value });
    }
    Some(value)
}

fn texts(options: &IndexMap<String, Value>) -> Given {
    let reads = |name: &str| !matches!(name, "port" | "banaction");
    options
        .iter()
        .filter(|(name, _)| reads(name))
        .map(|(name, value)| (name.clone(), value.text.clone()))
        .collect()
}
