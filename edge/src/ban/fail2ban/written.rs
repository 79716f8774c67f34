//! What was imported → a file of `[[filter]]` and `[[jail]]` sections for people to read and for
//! `bans.jails_folder`. Knows TOML's quoting and our keys; must not know fail2ban.

use std::fmt::Write;
use std::time::Duration;

use super::{Import, ImportedFilter, ImportedJail, Note};
use crate::ban::{Action, Source};

pub(super) fn toml(import: &Import) -> String {
    let mut out = String::new();
    comment(
        &mut out,
        &format!("Filters and jails of {}, as edge fail2ban import read them.", import.folder.display()),
    );
    comment(&mut out, "Below each jail's origin stands what could not be carried over.");
    for note in import.notes.iter().filter(|note| !import.jails.iter().any(|jail| is_of(note, jail))) {
        comment(&mut out, &note.to_string());
    }
    for written in &import.filters {
        filter(&mut out, written);
    }
    for written in &import.jails {
        jail(&mut out, written, &import.notes);
    }
    out
}

fn is_of(note: &Note, jail: &ImportedJail) -> bool {
    note.jail.as_ref() == Some(&jail.settings.name)
}

fn filter(out: &mut String, filter: &ImportedFilter) {
    let text = &filter.text;
    out.push('\n');
    comment(out, &filter.file.display().to_string());
    out.push_str("[[filter]]\n");
    pair(out, "name", &quoted(&text.name));
    if let Some(regex) = &text.prefregex {
        pair(out, "prefregex", &quoted(regex));
    }
    for (key, lines) in [
        ("failregex", &text.failregex),
        ("ignoreregex", &text.ignoreregex),
        ("datepattern", &text.datepattern),
    ] {
        list(out, key, lines);
    }
    if text.max_lines != 1 {
        pair(out, "max_lines", &text.max_lines.to_string());
    }
}

fn jail(out: &mut String, jail: &ImportedJail, notes: &[Note]) {
    let settings = &jail.settings;
    out.push('\n');
    comment(out, &format!("{}:{}", jail.file.display(), jail.line));
    for note in notes.iter().filter(|note| is_of(note, jail)) {
        comment(out, &format!("{}: {}", note.kind, note.what));
    }
    out.push_str("[[jail]]\n");
    pair(out, "name", &quoted(&settings.name));
    pair(out, "enabled", &jail.enabled.to_string());
    pair(out, "filter", &quoted(&settings.filter));
    if let Source::Files(files) = &settings.source {
        list(out, "logs", &files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>());
    }
    pair(out, "max_offences", &settings.max_offences.to_string());
    pair(out, "find_time", &duration(settings.find_time));
    pair(out, "ban_time", &duration(settings.ban_time));
    if let Some(escalation) = settings.escalation {
        pair(out, "escalation_factor", &format!("{:?}", escalation.factor));
        pair(out, "escalation_cap", &duration(escalation.cap));
        pair(out, "forgiveness", &duration(escalation.forgiveness));
    }
    if settings.action == Action::Log {
        pair(out, "action", "\"log\"");
    }
    list(out, "allow", &settings.allow.iter().map(|network| crate::ban::shown(*network)).collect::<Vec<_>>());
}

fn pair(out: &mut String, key: &str, value: &str) {
    let _ = writeln!(out, "{key} = {value}");
}

/// Nothing for an empty list, one line for a single value.
fn list(out: &mut String, key: &str, values: &[String]) {
    match values {
        [] => {}
        [one] => pair(out, key, &format!("[{}]", quoted(one))),
        many => {
            let _ = writeln!(out, "{key} = [");
            for value in many {
                let _ = writeln!(out, "    {},", quoted(value));
            }
            out.push_str("]\n");
        }
    }
}

/// One line, whatever stands in a file's name.
fn comment(out: &mut String, text: &str) {
    out.push_str("# ");
    out.extend(text.chars().map(|c| if c.is_control() { ' ' } else { c }));
    out.push('\n');
}

/// As plain as the text allows: patterns stay readable between single quotes.
fn quoted(text: &str) -> String {
    let plain = |c: char| c == '\t' || !c.is_control();
    if text.chars().all(plain) && !text.contains('"') && !text.contains('\\') {
        return format!("\"{text}\"");
    }
    if text.chars().all(plain) && !text.contains('\'') {
        return format!("'{text}'");
    }
    if text.chars().all(plain) && !text.contains("'''") && !text.ends_with('\'') {
        return format!("'''{text}'''");
    }
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if plain(c) => out.push(c),
            c => {
                let _ = write!(out, "\\U{:08X}", u32::from(c));
            }
        }
    }
    out.push('"');
    out
}

fn duration(time: Duration) -> String {
    let seconds = time.as_secs().max(1);
    for (unit, length) in [("d", 86_400), ("h", 3_600), ("m", 60)] {
        if seconds.is_multiple_of(length) {
            return format!("\"{}{unit}\"", seconds / length);
        }
    }
    format!("\"{seconds}s\"")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use shared::config::read_text;

    use super::*;

    fn read_back(text: &str) -> Vec<String> {
        read_text(Path::new("x.toml"), text, |root| Some(root.list("x"))).unwrap()
    }

    proptest::proptest! {
        #[test]
        fn any_pattern_reads_back(texts in proptest::collection::vec("(?s)(.|'''|\\\\|\"|'){0,12}", 0..4)) {
            let mut out = String::new();
            list(&mut out, "x", &texts);
            proptest::prop_assert_eq!(read_back(&out), texts);
        }

        #[test]
        fn a_duration_reads_back(seconds in 1_u64..400_000_000) {
            let time = Duration::from_secs(seconds);
            let written = duration(time);
            proptest::prop_assert_eq!(shared::config::parse_duration(written.trim_matches('"')), Some(time));
        }

        #[test]
        fn a_comment_stays_one(text in "(?s).{0,40}") {
            let mut out = String::new();
            comment(&mut out, &text);
            proptest::prop_assert_eq!(read_back(&out), Vec::<String>::new());
        }
    }
}
