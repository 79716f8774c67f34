//! `%(name)s` and `%(section/name)s` in an option's value, as Python's `configparser` and fail2ban fill
//! them in. Knows merged files; must not know `<tags>` or what an option means.

use indexmap::IndexMap;

use super::ImportFault;
use super::files::Merged;
use super::ini::Value;

/// Values within values, as Python's own limit.
const MAX_DEPTH: usize = 10;
/// What one option may come to, in bytes: fail2ban's longest has 13 KiB.
pub(super) const MAX_VALUE: usize = 256 << 10;
/// The longest `section/name`.
const MAX_NAME: usize = 256;
/// Names that one option may ask for, all in all.
const MAX_NAMES: usize = 20_000;

/// What stands above all sections: options that a jail hands to its filter.
pub(super) type Given = IndexMap<String, String>;

/// `[section]`'s `option` with every name filled in; `None` where there is no such section or option.
/// `given` wins over the section, the section over `[DEFAULT]`.
pub(super) fn value(
    merged: &Merged,
    section: &str,
    option: &str,
    given: &Given,
) -> Result<Option<Value>, ImportFault> {
    let defaults = (section == "DEFAULT").then_some(&merged.defaults);
    let Some(options) = merged.sections.get(section).or(defaults) else { return Ok(None) };
    let option = option.to_lowercase();
    let written = options.get(&option).or_else(|| merged.defaults.get(&option));
    let Some(raw) = given.get(&option).or_else(|| written.map(|value| &value.text)) else { return Ok(None) };
    let place = written.or_else(|| options.values().next());
    let mut filler =
        Filler { merged, section, given, option: &option, place, filled: String::new(), names: 0 };
    filler.fill(raw, &[], 1)?;
    let text = filler.filled;
    Ok(Some(match place {
        Some(place) => Value { text, ..place.clone() },
        None => {
            let file = merged.files.first().map_or_else(Default::default, Clone::clone);
            Value { text, file: file.into(), line: 0 }
        }
    }))
}

struct Filler<'m> {
    merged: &'m Merged,
    section: &'m str,
    given: &'m Given,
    option: &'m str,
    place: Option<&'m Value>,
    filled: String,
    names: usize,
}

impl<'m> Filler<'m> {
    /// `aside` holds the values of other sections that the text around this one named.
    fn fill(&mut self, text: &str, aside: &[(String, &'m str)], depth: usize) -> Result<(), ImportFault> {
        if depth > MAX_DEPTH {
            return Err(self.fault("asks for itself, or too deep"));
        }
        let mut aside = aside.to_vec();
        self.of_other_sections(text, &mut aside);
        let mut rest = text;
        while let Some(at) = rest.find('%') {
            self.push(&rest[..at])?;
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('%') {
                self.push("%")?;
                rest = after;
                continue;
            }
            let name = rest.strip_prefix('(').and_then(|inner| inner.split_once(')'));
            let Some((name, after)) = name
                .and_then(|(name, after)| Some((name, after.strip_prefix('s')?)))
                .filter(|(name, _)| !name.is_empty())
            else {
                return Err(self.fault("holds a % that is neither %% nor %(name)s"));
            };
            rest = after;
            self.names += 1;
            let Some(value) = self.lookup(&name.to_lowercase(), &aside).filter(|_| self.names <= MAX_NAMES)
            else {
                return Err(self.missing(name));
            };
            if value.contains('%') {
                self.fill(value, &aside, depth + 1)?;
            } else {
                self.push(value)?;
            }
        }
        self.push(rest)
    }

    fn lookup<'a>(&'a self, name: &str, aside: &'a [(String, &'m str)]) -> Option<&'m str> {
        if name == "__name__" {
            return Some(self.section);
        }
        if let Some((_, value)) = aside.iter().find(|(other, _)| other == name) {
            return Some(value);
        }
        let own = || self.merged.sections.get(self.section)?.get(name);
        match self.given.get(name) {
            Some(given) => Some(given),
            None => own().or_else(|| self.merged.defaults.get(name)).map(|value| &*value.text),
        }
    }

    /// `%(section/option)s`: taken raw from that section, else from `[DEFAULT]`.
    fn of_other_sections(&self, text: &str, aside: &mut Vec<(String, &'m str)>) {
        for start in text.match_indices("%(").map(|(at, _)| at + 2) {
            let ahead = text.as_bytes()[start..].iter().take(MAX_NAME).position(|byte| *byte == b')');
            let Some(name) = ahead.and_then(|length| text.get(start..start + length)) else { continue };
            if !text[start + name.len()..].starts_with(")s") {
                continue;
            }
            let Some((section, option)) = name.split_once('/') else { continue };
            if aside.len() >= MAX_DEPTH * 16 || self.lookup(name, aside).is_some() {
                continue;
            }
            let default = || self.merged.defaults.get(option);
            let found = match &*section.to_lowercase() {
                "default" => default(),
                "known" => {
                    let known = self.merged.sections.get(&format!("KNOWN/{}", self.section));
                    known.and_then(|options| options.get(option)).or_else(default)
                }
                _ => {
                    self.merged.sections.get(section).and_then(|options| options.get(option).or_else(default))
                }
            };
            if let Some(value) = found {
                aside.push((name.to_owned(), &value.text));
            }
        }
    }

    fn push(&mut self, text: &str) -> Result<(), ImportFault> {
        self.filled.push_str(text);
        if self.filled.len() > MAX_VALUE {
            return Err(self.fault("grows without end"));
        }
        Ok(())
    }

    fn place(&self) -> (std::path::PathBuf, usize) {
        self.place.map_or_else(
            || (self.merged.files.first().cloned().unwrap_or_default(), 0),
            |place| (place.file.to_path_buf(), place.line),
        )
    }

    fn fault(&self, what: &'static str) -> ImportFault {
        let (file, line) = self.place();
        ImportFault::Interpolation { file, line, option: self.option.to_owned(), what }
    }

    fn missing(&self, name: &str) -> ImportFault {
        let (file, line) = self.place();
        ImportFault::Unknown { file, line, option: self.option.to_owned(), name: name.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::ban::fail2ban::ini;

    fn merged(text: &str) -> Merged {
        let read = ini::parse(Path::new("x.conf"), text).unwrap();
        Merged { defaults: read.defaults, sections: read.sections, ..Merged::default() }
    }

    fn filled(text: &str) -> Result<String, String> {
        value(&merged(text), "a", "x", &Given::new())
            .map(|value| value.unwrap().text)
            .map_err(|fault| fault.to_string())
    }

    #[test]
    fn names_come_from_the_section_then_from_the_defaults() {
        assert_eq!(
            filled("[DEFAULT]\ny = d%%\nz = d\n[a]\nx = %(y)s %(z)s %%Y %(__name__)s\nz = own").unwrap(),
            "d% own %Y a"
        );
        let given = Given::from([("z".to_owned(), "given".to_owned())]);
        let merged = merged("[a]\nx = %(Z)s\nz = own\n");
        let found = value(&merged, "a", "X", &given).unwrap().unwrap();
        assert_eq!((found.text.as_str(), found.line), ("given", 2));
    }

    #[test]
    fn another_section_is_asked_by_its_name() {
        assert_eq!(
            filled("[DEFAULT]\nq = dq\nc = %(b/y)s\n[b]\ny = <%(q)s>\n[a]\nx = %(b/y)s %(b/q)s %(default/q)s %(c)s\nq = own").unwrap(),
            "<own> dq dq <own>"
        );
    }

    #[test]
    fn loops_and_gaps_are_faults_with_their_place() {
        assert_eq!(
            filled("[a]\n\nx = %(y)s\ny = %(x)s\n").unwrap_err(),
            "x.conf:3: x asks for itself, or too deep; fail2ban would not read this either: correct it"
        );
        assert_eq!(
            filled("[a]\nx = %(y)s\n").unwrap_err(),
            "x.conf:2: x asks for %(y)s, which nobody says; write y = … into the same section or [DEFAULT]"
        );
        assert!(filled("[a]\nx = 5%\n").unwrap_err().contains("neither %% nor %(name)s"));
        let many = "%(y)s".repeat(100);
        let bomb: String =
            (0..9).map(|n| format!("y{n} = {}\n", format!("%(y{})s", n + 1).repeat(30))).collect();
        assert!(
            filled(&format!("[a]\nx = %(y0)s\n{bomb}y9 = {}\n", "z".repeat(99)))
                .unwrap_err()
                .contains("without end")
        );
        assert!(filled(&format!("[a]\nx = {many}\ny =\n")).is_ok());
    }

    proptest::proptest! {
        #[test]
        fn no_value_makes_the_filler_panic(text in "[%()sxy/a é\\n]{0,60}", other in "[%()sxy/a]{0,30}") {
            let _ = filled(&format!("[DEFAULT]\ny = {other}\n[a]\nx = {}\n", text.replace('\n', "\n ")));
        }
    }
}
