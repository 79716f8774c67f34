//! Readers of `[[filter]]` and `[[jail]]`, wherever they stand: in edge itself, in a file of the jails'
//! folder, in `edge.toml`. Knows keys, defaults, and that a later section changes an earlier one of the same
//! name; compiles no pattern and opens nothing.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use indexmap::IndexMap;
use ipnet::IpNet;
use shared::config::{Fault, Place, Section, nearest};

use super::sections::name;
use crate::ban::{
    Action, Brake, CrossSite, Escalation, FilterText, JailSettings, MAX_BAN_TIME, MAX_FILTER_LINES,
    MAX_OFFENCES, Prefixes, Source,
};

/// Steeper escalations reach their cap at the first repetition anyway.
const MAX_FACTOR: f64 = 1000.0;
/// How long offences count and first bans last, where nobody says otherwise.
const USUAL_TIME: Duration = Duration::from_secs(600);
/// The longest ban of a repeat offender, where nobody says otherwise.
const DEFAULT_CAP: Duration = Duration::from_secs(7 * 86_400);
/// After how long a repeat offender is new again, where nobody says otherwise.
const DEFAULT_FORGIVENESS: Duration = Duration::from_secs(86_400);

/// A filter and the places of its patterns, which are compiled only later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenFilter {
    /// The filter.
    pub text: FilterText,
    name: Place,
    prefregex: Place,
    failregex: Vec<Place>,
    ignoreregex: Vec<Place>,
    datepattern: Vec<Place>,
}

impl WrittenFilter {
    /// A fault of the pattern `index` (from 0) of the list `key` (`"failregex"`, `"ignoreregex"`,
    /// `"datepattern"`) or of `"prefregex"`; of the filter itself for any other key or index.
    #[must_use]
    pub fn fault(&self, key: &str, index: usize, what: impl Display) -> Fault {
        let place = match key {
            "prefregex" => Some(&self.prefregex),
            "failregex" => self.failregex.get(index),
            "ignoreregex" => self.ignoreregex.get(index),
            "datepattern" => self.datepattern.get(index),
            _ => None,
        };
        place.unwrap_or(&self.name).fault(what)
    }
}

/// All filters and jails read so far, in order.
#[derive(Debug, Default)]
pub(super) struct Collected {
    filters: IndexMap<String, WrittenFilter>,
    jails: IndexMap<String, WrittenJail>,
}

#[derive(Clone, Debug)]
struct WrittenJail {
    settings: JailSettings,
    enabled: bool,
    /// Where its filter is named.
    filter: Place,
    /// Nobody but edge itself has spoken of it.
    builtin: bool,
}

impl Collected {
    /// Takes the `[[filter]]` and `[[jail]]` sections of one file.
    pub(super) fn take(&mut self, root: &mut Section<'_>, builtin: bool) {
        let mut here = BTreeSet::new();
        for mut section in root.sections("filter") {
            if let Some(filter) = filter(&mut section) {
                if !here.insert(filter.text.name.clone()) {
                    let what = format!(
                        "{:?} is a filter of this file already; write another name",
                        filter.text.name
                    );
                    section.fault("name", what);
                }
                self.filters.insert(filter.text.name.clone(), filter);
            }
        }
        here.clear();
        for mut section in root.sections("jail") {
            let Some(jail) = jail(&mut section, &self.jails, builtin) else { continue };
            if !here.insert(jail.settings.name.clone()) {
                let what =
                    format!("{:?} is a jail of this file already; write another name", jail.settings.name);
                section.fault("name", what);
            }
            self.jails.insert(jail.settings.name.clone(), jail);
        }
    }

    /// The filters, the jails that are on, and the faults that only all files together show.
    pub(super) fn finished(self, with_builtin: bool) -> (Vec<WrittenFilter>, Vec<JailSettings>, Vec<Fault>) {
        let Self { filters, jails } = self;
        let unknown = |jail: &&WrittenJail| !filters.contains_key(&jail.settings.filter);
        let faults = jails.values().filter(unknown).map(|jail| {
            let known: Vec<String> = filters.keys().map(|name| format!("{name:?}")).collect();
            let hint = match known.is_empty() {
                true => format!("write a [[filter]] section with name = {:?}", jail.settings.filter),
                false => format!("write one of {}", known.join(", ")),
            };
            jail.filter.fault(format!("there is no filter {:?}; {hint}", jail.settings.filter))
        });
        let faults = faults.collect();
        let on = |jail: &WrittenJail| jail.enabled && (with_builtin || !jail.builtin);
        let jails = jails.into_values().filter(on).map(|jail| jail.settings).collect();
        (filters.into_values().collect(), jails, faults)
    }
}

fn filter(s: &mut Section<'_>) -> Option<WrittenFilter> {
    let name = name(s, "name");
    let failregex: Vec<String> = s.list("failregex");
    if failregex.is_empty() {
        s.fault("failregex", "matches nothing; write failregex = ['^<HOST> …'], one pattern an attack");
    }
    let max_lines = s.or("max_lines", 1_usize);
    if !(1..=MAX_FILTER_LINES).contains(&max_lines) {
        s.fault(
            "max_lines",
            format!("{max_lines} is out of range; write 1 to {MAX_FILTER_LINES}, usually 1"),
        );
    }
    // Lines that must match and lines that must not: for whoever tests the file.
    s.list::<String>("matches");
    s.list::<String>("passes");
    let text = FilterText {
        name: name.unwrap_or_default(),
        prefregex: s.optional("prefregex"),
        failregex,
        ignoreregex: s.list("ignoreregex"),
        datepattern: s.list("datepattern"),
        max_lines,
    };
    (!text.name.is_empty()).then(|| WrittenFilter {
        text,
        name: s.place("name"),
        prefregex: s.place("prefregex"),
        failregex: s.places("failregex"),
        ignoreregex: s.places("ignoreregex"),
        datepattern: s.places("datepattern"),
    })
}

/// A jail, with the keys that are not given taken from an earlier one of that name. `None` after noting
/// what is wrong; every key has been read then, too.
fn jail(s: &mut Section<'_>, earlier: &IndexMap<String, WrittenJail>, builtin: bool) -> Option<WrittenJail> {
    let name = name(s, "name");
    let base = name.as_ref().and_then(|name| earlier.get(name));
    let settings = base.map(|base| &base.settings);
    let filter: Option<String> = match settings {
        Some(settings) => Some(s.or("filter", settings.filter.clone())),
        None if name.is_some() && !s.has("filter") && !earlier.is_empty() => {
            let name = name.as_deref().unwrap_or_default();
            s.fault("name", no_such_jail(name, earlier.keys().map(String::as_str).collect()));
            s.optional("filter")
        }
        None => s.required("filter"),
    };
    let place = match base {
        Some(base) if !s.has("filter") => base.filter.clone(),
        _ => s.place("filter"),
    };
    let enabled = s.or("enabled", base.is_none_or(|base| base.enabled));
    let max_offences = s.or("max_offences", settings.map_or(5, |jail| jail.max_offences));
    if !(1..=MAX_OFFENCES).contains(&max_offences) {
        s.fault(
            "max_offences",
            format!("{max_offences} is out of range; write 1 to {MAX_OFFENCES}, usually 5"),
        );
    }
    let find_time = period(s, "find_time", settings.map(|jail| jail.find_time));
    let ban_time = period(s, "ban_time", settings.map(|jail| jail.ban_time));
    let escalation = escalation(s, settings.and_then(|jail| jail.escalation), ban_time);
    let prefixes = prefixes(s, settings.map_or_else(Prefixes::default, |jail| jail.prefixes));
    let brake = brake(s, settings.map_or_else(|| Some(Brake::default()), |jail| jail.brake));
    let action = action(s, settings.map_or(Action::Ban, |jail| jail.action));
    let allow: Vec<IpNet> = match settings {
        Some(settings) if !s.has("allow") => settings.allow.clone(),
        _ => s.list("allow"),
    };
    let source = source(s, settings.map_or(Source::Edge, |jail| jail.source.clone()));
    let settings = JailSettings {
        name: name?,
        filter: filter?,
        source: source?,
        max_offences,
        find_time,
        ban_time,
        escalation: escalation?,
        allow,
        prefixes: prefixes?,
        action: action?,
        // `bans` says it of all jails.
        cross_site: CrossSite::default(),
        brake: brake?,
    };
    Some(WrittenJail { settings, enabled, filter: place, builtin })
}

/// A section without a filter changes an earlier jail, and there is none of its name.
fn no_such_jail(name: &str, known: BTreeSet<&str>) -> String {
    let hint = match nearest(name, &known) {
        Some(near) => format!("did you mean {near:?}?"),
        None => format!("known: {};", known.into_iter().collect::<Vec<_>>().join(", ")),
    };
    format!("there is no jail {name:?} to change; {hint} A new jail names its filter, too: filter = \"…\"")
}

/// 10 minutes where neither this section nor an earlier one says otherwise.
fn period(s: &mut Section<'_>, key: &'static str, earlier: Option<Duration>) -> Duration {
    let period = s.or(key, earlier.unwrap_or(USUAL_TIME));
    if period.is_zero() {
        s.fault(key, "no time at all would let everybody go; write \"10m\" or what you need");
    } else if period > MAX_BAN_TIME {
        s.fault(key, format!("is too long; write at most \"{}d\"", MAX_BAN_TIME.as_secs() / 86_400));
    }
    period
}

fn source(s: &mut Section<'_>, earlier: Source) -> Option<Source> {
    if !s.has("logs") {
        return Some(earlier);
    }
    let files: Vec<PathBuf> = s.list("logs");
    for file in files.iter().filter(|file| !file.is_absolute()) {
        s.fault(
            "logs",
            format!("{} is no absolute path; write \"/var/log/nginx/*access.log\"", file.display()),
        );
    }
    // Of several folders, each with its wildcard, following could find no end.
    let wild =
        |part: &std::ffi::OsStr| part.as_encoded_bytes().iter().any(|byte| matches!(byte, b'*' | b'?'));
    if files.iter().any(|file| file.iter().filter(|part| wild(part)).count() > 3) {
        s.fault("logs", "holds wildcards in more than three folders; name fewer");
        return None;
    }
    Some(if files.is_empty() { Source::Edge } else { Source::Files(files) })
}

fn escalation(
    s: &mut Section<'_>,
    earlier: Option<Escalation>,
    ban_time: Duration,
) -> Option<Option<Escalation>> {
    let factor = s.or("escalation_factor", earlier.map_or(1.0, |earlier| earlier.factor));
    if !(1.0..=MAX_FACTOR).contains(&factor) {
        s.fault(
            "escalation_factor",
            format!("{factor} is out of range; write 1 (each ban the same) to {MAX_FACTOR}, usually 2 to 4"),
        );
        return None;
    }
    let usual = earlier.map_or(DEFAULT_CAP, |earlier| earlier.cap).max(ban_time);
    let cap = s.or("escalation_cap", usual);
    if cap < ban_time {
        s.fault("escalation_cap", "is shorter than ban_time; write at least that");
    }
    if cap > MAX_BAN_TIME && s.has("escalation_cap") {
        s.fault(
            "escalation_cap",
            format!("is too long; write at most \"{}d\"", MAX_BAN_TIME.as_secs() / 86_400),
        );
    }
    let forgiveness =
        period(s, "forgiveness", Some(earlier.map_or(DEFAULT_FORGIVENESS, |earlier| earlier.forgiveness)));
    #[allow(clippy::float_cmp, reason = "1 is written as 1")]
    if factor == 1.0 {
        for key in ["escalation_cap", "forgiveness"] {
            if s.has(key) && !s.has("escalation_factor") {
                s.fault(key, "is for bans that grow; write escalation_factor = 2 too, or leave it out");
            }
        }
        return Some(None);
    }
    Some(Some(Escalation { factor, cap, forgiveness }))
}

fn prefixes(s: &mut Section<'_>, earlier: Prefixes) -> Option<Prefixes> {
    let mut prefix = |key, earlier: u8, least: u16, most: u16| {
        let bits = s.or(key, u16::from(earlier));
        if !(least..=most).contains(&bits) {
            s.fault(key, format!("{bits} is out of range; write {least} to {most}, usually {most}"));
        }
        u8::try_from(bits).ok()
    };
    let (v4, v6) = (prefix("ipv4_prefix", earlier.v4, 24, 32), prefix("ipv6_prefix", earlier.v6, 48, 64));
    Some(Prefixes { v4: v4?, v6: v6? })
}

fn brake(s: &mut Section<'_>, earlier: Option<Brake>) -> Option<Option<Brake>> {
    let on = s.or("brake", earlier.is_some());
    let usual = earlier.unwrap_or_default();
    let percent = s.or("brake_percent", usual.percent);
    let least = s.or("brake_least", usual.least);
    if !(percent > 0.0 && percent <= 100.0) {
        s.fault(
            "brake_percent",
            format!("{percent} is out of range; write more than 0 and at most 100, usually 5"),
        );
        return None;
    }
    if least == 0 {
        s.fault("brake_least", "0 would brake at the first ban; write 1 or more, usually 20");
    }
    if !on {
        for key in ["brake_percent", "brake_least"] {
            if s.has(key) {
                s.fault(key, "is for the brake, which is off; leave it out, or brake = false");
            }
        }
    }
    Some(on.then_some(Brake { percent, least }))
}

fn action(s: &mut Section<'_>, earlier: Action) -> Option<Action> {
    let Some(written) = s.optional::<String>("action") else {
        return (!s.has("action")).then_some(earlier);
    };
    match written.as_str() {
        "ban" => Some(Action::Ban),
        "throttle" => Some(Action::Throttle),
        "log" => Some(Action::Log),
        other => {
            s.fault("action", format!("{other:?} is no action; write \"ban\", \"throttle\" or \"log\""));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use shared::config::read_text;

    use super::*;

    const FILTER: &str = "[[filter]]\nname = \"f\"\nfailregex = ['^<HOST> x', '^<HOST> y']\n";

    /// The jails of these files, the first being edge's own, or all faults.
    fn read(files: &[&str], with_builtin: bool) -> Result<(Vec<WrittenFilter>, Vec<JailSettings>), String> {
        let mut collected = Collected::default();
        let mut told = Vec::new();
        for (index, text) in files.iter().enumerate() {
            let file = format!("{index}.toml");
            let read = read_text(Path::new(&file), text, |root| {
                collected.take(root, index == 0);
                Some(())
            });
            told.extend(read.err().map(|faults| faults.to_string()));
        }
        let (filters, jails, faults) = collected.finished(with_builtin);
        told.extend(faults.iter().map(ToString::to_string));
        if told.is_empty() { Ok((filters, jails)) } else { Err(told.join("\n")) }
    }

    fn one(text: &str) -> JailSettings {
        read(&[&format!("{FILTER}{text}")], true).unwrap().1.remove(0)
    }

    fn fault(text: &str) -> String {
        read(&["", &format!("[[jail]]\nname = \"j\"\nfilter = \"f\"\n{text}\n{FILTER}")], true).unwrap_err()
    }

    #[test]
    fn a_jail_needs_a_name_and_a_filter() {
        assert_eq!(
            one("[[jail]]\nname = \"j\"\nfilter = \"f\"\n"),
            JailSettings {
                name: "j".to_owned(),
                filter: "f".to_owned(),
                source: Source::Edge,
                max_offences: 5,
                find_time: Duration::from_secs(600),
                ban_time: Duration::from_secs(600),
                escalation: None,
                allow: Vec::new(),
                prefixes: Prefixes { v4: 32, v6: 64 },
                action: Action::Ban,
                cross_site: CrossSite::Throttle,
                brake: Some(Brake { percent: 5.0, least: 20 }),
            }
        );
        assert_eq!(
            read(&["", "[[jail]]\n"], true).unwrap_err(),
            "1.toml:1:1: jail.filter: missing; write filter = \"…\"\n\
             1.toml:1:1: jail.name: missing; write name = \"…\""
        );
        assert_eq!(
            read(&["", "[[jail]]\nname = \"j\"\nfilter = \"f\"\n"], true).unwrap_err(),
            "1.toml:3:10: jail.filter: there is no filter \"f\"; write a [[filter]] section with name = \"f\""
        );
        assert!(fault("filtr = \"x\"").contains("4:1: jail.filtr: unknown key; did you mean filter?"));
    }

    #[test]
    fn a_mistyped_jail_is_told_with_the_one_that_was_meant() {
        let builtin = format!("{FILTER}[[jail]]\nname = \"scanners\"\nfilter = \"f\"\n");
        let told = |text: &str| read(&[&builtin, text], true).unwrap_err();
        assert_eq!(
            told("[[jail]]\nname = \"scaners\"\naction = \"log\"\n"),
            "1.toml:2:8: jail.name: there is no jail \"scaners\" to change; did you mean \"scanners\"? A new jail \
             names its filter, too: filter = \"…\""
        );
        assert!(told("[[jail]]\nname = \"ssh\"\n").contains("to change; known: scanners; A new jail"));
        let new = "[[jail]]\nname = \"scaners\"\nfilter = \"f\"\n";
        assert_eq!(read(&[&builtin, new], true).unwrap().1.len(), 2, "which names its filter is meant");
    }

    #[test]
    fn a_later_section_changes_the_keys_it_gives_and_no_others() {
        let builtin = format!(
            "{FILTER}[[jail]]\nname = \"j\"\nfilter = \"f\"\nban_time = \"1h\"\nescalation_factor = 4\nescalation_cap = \"7d\"\n\
             forgiveness = \"2d\"\naction = \"throttle\"\nallow = [\"10.0.0.0/8\"]\nlogs = [\"/var/log/a\"]\nbrake = false\n"
        );
        let (_, before) = read(&[&builtin], true).unwrap();
        let (_, after) = read(&[&builtin, "[[jail]]\nname = \"j\"\nmax_offences = 9\n"], true).unwrap();
        assert_eq!(after, [JailSettings { max_offences: 9, ..before[0].clone() }]);
        let text = "[[jail]]\nname = \"j\"\nallow = []\nlogs = []\nescalation_factor = 1\nbrake = true\naction = \"log\"\n";
        let (_, changed) = read(&[&builtin, text], true).unwrap();
        let jail = &changed[0];
        assert_eq!((&jail.allow, &jail.source, jail.escalation), (&Vec::new(), &Source::Edge, None));
        assert_eq!((jail.action, jail.brake), (Action::Log, Some(Brake::default())));
        let (_, off) = read(&[&builtin, "", "[[jail]]\nname = \"j\"\nenabled = false\n"], true).unwrap();
        assert!(off.is_empty());
    }

    #[test]
    fn without_builtin_jails_only_those_that_are_named_are_on() {
        let jail = |name: &str| format!("[[jail]]\nname = \"{name}\"\nfilter = \"f\"\n");
        let builtin = format!("{FILTER}{}{}", jail("a"), jail("b"));
        let names = |mine: &str| -> Vec<String> {
            read(&[&builtin, mine], false).unwrap().1.into_iter().map(|jail| jail.name).collect()
        };
        assert!(names("").is_empty());
        assert_eq!(names(&jail("c")), ["c"]);
        assert_eq!(names("[[jail]]\nname = \"b\"\n"), ["b"]);
    }

    #[test]
    fn a_later_filter_replaces_an_earlier_one() {
        let mine = "[[filter]]\nname = \"f\"\nfailregex = ['^z']\nmatches = ['z']\npasses = ['y', 'x']\n";
        let (filters, _) = read(&[FILTER, mine], true).unwrap();
        assert_eq!((filters.len(), &filters[0].text.failregex[0]), (1, &"^z".to_owned()));
        assert_eq!(
            read(&["", &format!("{FILTER}{FILTER}")], true).unwrap_err(),
            "1.toml:5:8: filter.name: \"f\" is a filter of this file already; write another name"
        );
        let twice = "[[jail]]\nname = \"j\"\nfilter = \"f\"\n".repeat(2) + FILTER;
        assert_eq!(
            read(&["", &twice], true).unwrap_err(),
            "1.toml:5:8: jail.name: \"j\" is a jail of this file already; write another name"
        );
    }

    #[test]
    fn a_bad_pattern_is_told_with_its_place() {
        let text = format!("{FILTER}prefregex = 'p'\ndatepattern = ['a',\n 'b']\n");
        let (filters, _) = read(&[&text], true).unwrap();
        let at = |key, index| filters[0].fault(key, index, "is bad").to_string();
        assert_eq!(at("failregex", 1), "0.toml:3:27: filter.failregex: is bad");
        assert_eq!(at("prefregex", 0), "0.toml:4:13: filter.prefregex: is bad");
        assert_eq!(at("datepattern", 1), "0.toml:6:2: filter.datepattern: is bad");
        assert_eq!(at("ignoreregex", 0), "0.toml:2:8: filter.name: is bad");
    }

    #[test]
    fn what_makes_no_sense_is_told() {
        for (text, told) in [
            ("max_offences = 0", "4:16: jail.max_offences: 0 is out of range; write 1 to 10000, usually 5"),
            ("ban_time = \"4000d\"", "4:12: jail.ban_time: is too long; write at most \"3650d\""),
            ("find_time = \"0s\"", "4:13: jail.find_time: no time at all would let everybody go"),
            ("escalation_factor = 0.5", "4:21: jail.escalation_factor: 0.5 is out of range; write 1"),
            (
                "escalation_cap = \"2h\"",
                "4:18: jail.escalation_cap: is for bans that grow; write escalation_factor = 2 too",
            ),
            (
                "escalation_factor = 2\nescalation_cap = \"1m\"",
                "5:18: jail.escalation_cap: is shorter than ban_time",
            ),
            ("ipv4_prefix = 16", "4:15: jail.ipv4_prefix: 16 is out of range; write 24 to 32, usually 32"),
            ("ipv6_prefix = 128", "4:15: jail.ipv6_prefix: 128 is out of range; write 48 to 64, usually 64"),
            ("brake_percent = 0", "4:17: jail.brake_percent: 0 is out of range"),
            ("brake = false\nbrake_least = 3", "5:15: jail.brake_least: is for the brake, which is off"),
            (
                "action = \"drop\"",
                "4:10: jail.action: \"drop\" is no action; write \"ban\", \"throttle\" or \"log\"",
            ),
            ("action = 5", "4:10: jail.action: 5 is no text"),
            ("logs = [\"access.log\"]", "4:8: jail.logs: access.log is no absolute path"),
            ("logs = [\"/*/*/*/*/x\"]", "4:8: jail.logs: holds wildcards in more than three folders"),
            ("allow = [\"office\"]", "4:10: jail.allow: \"office\" is no network"),
        ] {
            let all = fault(text);
            assert!(all.starts_with(&format!("1.toml:{told}")) && all.lines().count() == 1, "{text}: {all}");
        }
        assert!(read(&["", "[[filter]]\nname = \"f\"\nmax_lines = 0\n"], true).unwrap_err().contains(
            "1.toml:1:1: filter.failregex: matches nothing; write failregex = ['^<HOST> …'], one pattern an attack\n\
             1.toml:3:13: filter.max_lines: 0 is out of range; write 1 to 100, usually 1"
        ));
    }
}
