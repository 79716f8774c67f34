//! `filter.d/NAME` with the options that a jail gives it → its patterns. Follows fail2ban's order: what a
//! jail gives wins over `[Init]`, `%(name)s` is filled in before `<name>`, and `[Init]`'s own values go by
//! `known/name` too. Knows `[Definition]` and `[Init]`; must not know jails.

use std::collections::BTreeSet;
use std::path::Path;

use indexmap::IndexMap;

use super::ImportFault;
use super::files::{Merged, condition};
use super::ini::Value;
use super::interpolate::{self, Given};
use super::tags;
use crate::ban::FilterText;

/// The options of a filter that make its patterns; a jail may give them too.
pub(super) const PATTERN_OPTIONS: [&str; 7] =
    ["usedns", "prefregex", "ignoreregex", "failregex", "maxlines", "datepattern", "journalmatch"];

/// A filter that is being read for one jail.
pub(super) struct Definition {
    merged: Merged,
    /// `[…]` behind its name, then `[Init]`.
    init: Given,
    own: Given,
    given: Given,
    /// fail2ban asks once for each option that only a tag names, with what was given at that time.
    asked: IndexMap<String, Option<String>>,
}

impl Definition {
    /// Reads `folder/filter.d/name`; `None` where there is no such file.
    pub(super) fn read(folder: &Path, name: &str, options: &Given) -> Result<Option<Self>, ImportFault> {
        let base = folder.join("filter.d").join(name.strip_suffix(".conf").unwrap_or(name));
        Ok(Merged::read(&base)?.map(|merged| Self { init: options.clone(), ..Self::of(merged) }))
    }

    /// What `merged` defines, with no options from a jail.
    pub(super) fn of(merged: Merged) -> Self {
        Self { merged, init: Given::new(), own: Given::new(), given: Given::new(), asked: IndexMap::new() }
    }

    pub(super) fn merged(&self) -> &Merged {
        &self.merged
    }

    /// The patterns for log files differ from those for the journal, unless somebody has chosen.
    pub(super) fn choose_log_type(&mut self, journal: bool) {
        let chosen = self.init.get("logtype").is_some_and(|chosen| !chosen.is_empty());
        let own = self.merged.sections.get("Definition").is_some_and(|own| own.contains_key("logtype"));
        if !chosen && !own {
            self.init.insert("logtype".to_owned(), if journal { "journal" } else { "file" }.to_owned());
        }
    }

    /// Fills in the options, with those `from_jail` in hand; `all` takes every option of `[Definition]`.
    pub(super) fn take_options(&mut self, from_jail: &Given, all: bool) -> Result<(), ImportFault> {
        self.given = from_jail.clone();
        self.given.extend(self.init.clone());
        self.own.clear();
        for option in PATTERN_OPTIONS.iter().filter(|option| !self.given.contains_key(**option)) {
            if let Some(value) = self.value("Definition", option, true)? {
                self.own.insert((*option).to_owned(), value);
            }
        }
        for option in self.names("Init") {
            let Some(value) = self.value("Init", &option, false)? else { continue };
            if !option.starts_with("known/") {
                self.init.insert(format!("known/{option}"), value.clone());
            }
            self.init.entry(option).or_insert(value);
        }
        if all {
            for option in self.names("Definition") {
                if !self.own.contains_key(&option)
                    && let Some(value) = self.value("Definition", &option, false)?
                {
                    self.own.insert(option, value);
                }
            }
        }
        Ok(())
    }

    fn names(&self, section: &str) -> Vec<String> {
        self.merged.sections.get(section).map_or_else(Vec::new, |own| own.keys().cloned().collect())
    }

    fn value(&self, section: &str, option: &str, with_given: bool) -> Result<Option<String>, ImportFault> {
        let nothing = Given::new();
        let lower: Given;
        let given = if with_given {
            lower = self.given.iter().map(|(name, value)| (name.to_lowercase(), value.clone())).collect();
            &lower
        } else {
            &nothing
        };
        Ok(interpolate::value(&self.merged, section, option, given)?.map(|value| value.text))
    }

    /// Every option with its tags filled in.
    pub(super) fn combined(&mut self) -> Result<Given, ImportFault> {
        let mut options = self.own.clone();
        options.extend(self.init.clone());
        let ignore: BTreeSet<String> =
            options.keys().filter_map(|name| Some(name[..condition(name)?].to_owned())).collect();
        let mut asked = std::mem::take(&mut self.asked);
        let mut failed = None;
        let mut more = |tag: &str| {
            if let Some(known) = asked.get(tag) {
                return known.clone();
            }
            let value = self.asked_by_a_tag(tag).unwrap_or_else(|fault| {
                failed.get_or_insert(fault);
                None
            });
            asked.insert(tag.to_owned(), value.clone());
            value
        };
        let combined = tags::substituted(options, &ignore, &mut more);
        self.asked = asked;
        match (combined, failed) {
            (Ok(combined), None) => Ok(combined),
            (_, Some(fault)) => Err(fault),
            (Err(looped), None) => {
                let place = self.place(&looped.option);
                Err(ImportFault::TagLoop {
                    file: place.as_ref().map_or_else(Default::default, |place| place.file.to_path_buf()),
                    line: place.map_or(0, |place| place.line),
                    option: looped.option,
                    tag: looped.tag,
                })
            }
        }
    }

    /// `<option>` of `[Definition]` or `[DEFAULT]`, or `<section/option>`.
    fn asked_by_a_tag(&self, tag: &str) -> Result<Option<String>, ImportFault> {
        let word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-');
        if let Some((section, option)) = tag.split_once('/')
            && !section.is_empty()
            && section.chars().all(word)
            && !option.is_empty()
            && !option.contains(char::is_whitespace)
        {
            let sections = match &*section.to_lowercase() {
                "known" => vec!["KNOWN/Definition".to_owned(), "Definition".to_owned()],
                "default" => vec!["DEFAULT".to_owned()],
                _ => vec![section.to_owned()],
            };
            for section in sections {
                if let Some(value) = self.value(&section, option, false)? {
                    return Ok(Some(value));
                }
            }
        }
        self.value("Definition", tag, true)
    }

    /// Where `option` is written.
    pub(super) fn place(&self, option: &str) -> Option<Value> {
        let in_section = |name: &str| self.merged.sections.get(name)?.get(option);
        in_section("Definition")
            .or_else(|| in_section("Init"))
            .or_else(|| self.merged.defaults.get(option))
            .or_else(|| self.merged.sections.get("Definition")?.values().next())
            .cloned()
    }

    /// The patterns, as `combined` gives them and with what the jail itself says on top.
    pub(super) fn text(name: &str, combined: &Given, from_jail: &Given) -> FilterText {
        let lines = |option: &str| {
            let all = [combined.get(option), from_jail.get(option)].into_iter().flatten();
            all.flat_map(|value| value.split('\n'))
                .filter(|line| !line.is_empty())
                .map(str::to_owned)
                .collect()
        };
        // Of these only one holds: the filter's own, but the jail's date pattern.
        let one = |option: &str| combined.get(option).or_else(|| from_jail.get(option));
        let dates = from_jail.get("datepattern").or_else(|| combined.get("datepattern"));
        FilterText {
            name: name.to_owned(),
            prefregex: one("prefregex").filter(|regex| !regex.is_empty()).cloned(),
            failregex: lines("failregex"),
            ignoreregex: lines("ignoreregex"),
            datepattern: dates.map_or_else(Vec::new, |value| {
                value.split('\n').map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
            }),
            max_lines: one("maxlines").and_then(|lines| lines.trim().parse().ok()).unwrap_or(1).max(1),
        }
    }
}
