//! fail2ban's configuration → our filters and jails, with a report of what could not be carried
//! over and why. Reads the folder it is given; must not know how filters match or jails count.
//!
//! `ini` reads one file, `files` lays files over each other, `interpolate` and `tags` fill names in,
//! `definition` makes a filter of it and `jail` a jail, as fail2ban itself would have them; `carry`
//! and `translate` say the same in our words, with `paths` and `report`, and `written` writes it down.

mod carry;
mod definition;
mod files;
mod ini;
mod interpolate;
mod jail;
mod options;
mod paths;
mod report;
mod tags;
mod time;
mod translate;
mod written;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{FilterText, JailSettings};
use definition::Definition;
use interpolate::Given;

/// Why fail2ban's files cannot be read. Whoever wrote them acts.
#[derive(Debug, thiserror::Error)]
pub enum ImportFault {
    /// A file or folder.
    #[error("{}: cannot be read: {source}; let this user read it", file.display())]
    Unreadable {
        /// Which.
        file: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// No file of fail2ban's is so large.
    #[error("{}: {bytes} bytes are no configuration; at most {limit} are read", file.display())]
    TooLarge {
        /// Which.
        file: PathBuf,
        /// Its size.
        bytes: u64,
        /// What is read.
        limit: u64,
    },
    /// A line that is no part of an ini file.
    #[error("{}:{line}: {what}; fail2ban would not read this file either: correct the line", file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// 1-based.
        line: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// A section or an option twice in one file.
    #[error("{}:{line}: {name} stands here twice; fail2ban would not read this file either: write it once", file.display())]
    Twice {
        /// The file.
        file: PathBuf,
        /// Of the second one.
        line: usize,
        /// `[section]` or option.
        name: String,
    },
    /// Files that include each other.
    #[error("{}:{line}: includes {}, which led here; remove one of the two", file.display(), included.display())]
    IncludeLoop {
        /// The file that includes.
        file: PathBuf,
        /// 1-based.
        line: usize,
        /// What it includes.
        included: PathBuf,
    },
    /// Includes that multiply.
    #[error("{}:{line}: too many files, or too deep; include fewer", file.display())]
    TooManyFiles {
        /// The file that includes one more.
        file: PathBuf,
        /// 1-based.
        line: usize,
    },
    /// A `%` that cannot be filled in.
    #[error("{}:{line}: {option} {what}; fail2ban would not read this either: correct it", file.display())]
    Interpolation {
        /// The file.
        file: PathBuf,
        /// Of the option, 1-based.
        line: usize,
        /// Which option.
        option: String,
        /// What is wrong.
        what: &'static str,
    },
    /// `%(name)s` that nobody says.
    #[error("{}:{line}: {option} asks for %({name})s, which nobody says; write {name} = … into the same section or [DEFAULT]", file.display())]
    Unknown {
        /// The file.
        file: PathBuf,
        /// Of the option, 1-based.
        line: usize,
        /// Which option.
        option: String,
        /// What it asks for.
        name: String,
    },
    /// `<tag>`s that lead to themselves.
    #[error("{}:{line}: {option} holds <{tag}>, which leads back to it or grows without end; correct it", file.display())]
    TagLoop {
        /// The file.
        file: PathBuf,
        /// Of the option, 1-based.
        line: usize,
        /// Which option.
        option: String,
        /// The tag.
        tag: String,
    },
    /// A filter that is not there.
    #[error("{}: there is no filter {name} there; write the name of a file of that folder, without .conf", folder.display())]
    NoFilter {
        /// `filter.d`
        folder: PathBuf,
        /// The name asked for.
        name: String,
    },
    /// A folder without jails.
    #[error("{}: there is no jail.conf nor jail.local; write fail2ban's own folder, usually /etc/fail2ban", folder.display())]
    NoJails {
        /// The folder asked.
        folder: PathBuf,
    },
    /// A jail that cannot be.
    #[error("{}:{line}: jail {jail}: {what}; the jail is left out, correct it and import again", file.display())]
    Jail {
        /// The file.
        file: PathBuf,
        /// 1-based.
        line: usize,
        /// Which jail.
        jail: String,
        /// What is wrong.
        what: String,
    },
}

/// What a note of the report is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The jail could not be read and is left out.
    LeftOut,
    /// The jail is carried over, but off, because on it would do harm or nothing.
    SwitchedOff,
    /// A client could write the address of another into the line.
    Forgeable,
    /// Something that fail2ban does and we do not.
    NotCarried,
    /// Something that we do in another way.
    Different,
    /// A file that is not there.
    Missing,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LeftOut => "left out",
            Self::SwitchedOff => "switched off",
            Self::Forgeable => "forgeable",
            Self::NotCarried => "not carried over",
            Self::Different => "different",
            Self::Missing => "missing",
        })
    }
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Note {
    /// What it is about.
    pub kind: Kind,
    /// The jail, or none where it is about all.
    pub jail: Option<String>,
    /// Is that jail on in fail2ban? Notes on jails that are off can wait.
    pub enabled: bool,
    /// The file that says it.
    pub file: PathBuf,
    /// 1-based, or 0 for the file as a whole.
    pub line: usize,
    /// What it is, and what to do.
    pub what: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        write!(f, ": ")?;
        if let Some(jail) = &self.jail {
            write!(f, "{jail}: ")?;
        }
        write!(f, "{}: {}", self.kind, self.what)
    }
}

/// A jail in our words.
#[derive(Clone, Debug, PartialEq)]
pub struct ImportedJail {
    /// Ready to be written down.
    pub settings: JailSettings,
    /// Was it on, and can it be?
    pub enabled: bool,
    /// Was it on in fail2ban?
    pub was_enabled: bool,
    /// The file where it begins.
    pub file: PathBuf,
    /// The line there.
    pub line: usize,
    /// What fail2ban itself reads, option by option.
    pub said: BTreeMap<String, String>,
}

/// A filter with everything filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportedFilter {
    /// Patterns in fail2ban's own syntax.
    pub text: FilterText,
    /// The last of the files it was read from.
    pub file: PathBuf,
}

/// All of a folder of fail2ban's.
#[derive(Clone, Debug, Default)]
pub struct Import {
    /// The folder.
    pub folder: PathBuf,
    /// What the jails use.
    pub filters: Vec<ImportedFilter>,
    /// In the files' order.
    pub jails: Vec<ImportedJail>,
    /// What could not be carried over, and what is different.
    pub notes: Vec<Note>,
}

impl Import {
    /// Leaves out what was off in fail2ban, and the filters and notes of it.
    pub fn keep_enabled(&mut self) {
        self.jails.retain(|jail| jail.was_enabled);
        let used = |name: &str| self.jails.iter().any(|jail| jail.settings.filter == name);
        self.filters.retain(|filter| used(&filter.text.name));
        self.notes.retain(|note| note.jail.is_none() || note.enabled);
    }

    /// Adds a note for each pattern that `forgeable` names, one sentence each.
    pub fn note_forgeable(&mut self, forgeable: impl Fn(&FilterText) -> Vec<String>) {
        for filter in &self.filters {
            let jail = self.jails.iter().find(|jail| jail.settings.filter == filter.text.name);
            for what in forgeable(&filter.text) {
                self.notes.push(Note {
                    kind: Kind::Forgeable,
                    jail: jail.map(|jail| jail.settings.name.clone()),
                    enabled: jail.is_some_and(|jail| jail.was_enabled),
                    file: filter.file.clone(),
                    line: 0,
                    what: format!("{}: {what}", filter.text.name),
                });
            }
        }
    }

    /// A file for `bans.jails_folder`, each part with where it comes from and what is lost.
    #[must_use]
    pub fn to_toml(&self) -> String {
        written::toml(self)
    }
}

/// The filter `name` of `folder` (fail2ban's own, which holds `filter.d`) with `options` as a jail would
/// give them in `filter = name[option=value]`, everything filled in, read for log files.
///
/// # Errors
/// There is no such filter, or its files cannot be read.
pub fn read_filter(
    folder: &Path,
    name: &str,
    options: &BTreeMap<String, String>,
) -> Result<FilterText, ImportFault> {
    let options: Given = options.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    let Some(mut definition) = Definition::read(folder, name, &options)? else {
        return Err(ImportFault::NoFilter { folder: folder.join("filter.d"), name: name.to_owned() });
    };
    definition.choose_log_type(false);
    definition.take_options(&Given::new(), false)?;
    let combined = definition.combined()?;
    Ok(Definition::text(name, &combined, &Given::new()))
}

/// `name[option=value, …]`, as jails and `fail2ban-regex` name a filter: the name, and its options.
///
/// # Errors
/// What is wrong with it.
pub fn filter_and_options(text: &str) -> Result<(String, BTreeMap<String, String>), &'static str> {
    options::named(text).map(|(name, options)| (name, options.into_iter().collect()))
}

/// All jails of `folder`, usually `/etc/fail2ban`, whether they are on or off.
///
/// # Errors
/// The jails' own files cannot be read. A jail or filter that is broken by itself is left out, with a note.
pub fn import(folder: &Path) -> Result<Import, ImportFault> {
    carry::import(folder)
}

/// Seconds that fail2ban's text means: `10m`, `1d12h`, `-1`.
#[must_use]
pub fn seconds(text: &str) -> Option<f64> {
    time::seconds(text)
}

/// Anything that a file of fail2ban's can hold, and what its values then do to each other.
pub fn fuzz_ini(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let Ok(read) = ini::parse(Path::new("fuzz.conf"), &text) else { return };
    let merged = files::Merged { defaults: read.defaults, sections: read.sections, ..Default::default() };
    let mut definition = Definition::of(merged);
    let _ = definition.take_options(&Given::new(), true).and_then(|()| definition.combined());
    let _ = options::named(&text);
    let _ = options::several(&text);
    let _ = time::seconds(&text);
}

/// fail2ban's idea of true.
fn as_bool(text: &str) -> bool {
    ["1", "on", "true", "yes"].iter().any(|yes| text.eq_ignore_ascii_case(yes))
}

#[cfg(test)]
mod tests {
    proptest::proptest! {
        #[test]
        fn no_file_makes_the_reader_panic(data in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            super::fuzz_ini(&data);
        }

        #[test]
        fn no_filter_makes_the_reader_panic(a in "[a-c<>%()s/\\n =\\[\\]]{0,60}", b in "[a-c<>%()s/]{0,30}") {
            let text = format!("[DEFAULT]\na = {b}\n[Definition]\nfailregex = {a}\nb = {b}\n[Init]\nc = <a>\n");
            super::fuzz_ini(text.as_bytes());
        }
    }
}
