//! One jail of fail2ban's in our words, with a note on everything that has none. Knows both sides' meaning;
//! must not know other jails, nor how files are written.

use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::interpolate::Given;
use super::jail::Jail;
use super::paths::{absent, without_classes};
use super::{Kind, Note, options, time};
use crate::ban::{
    Action, Brake, CrossSite, Escalation, JailSettings, MAX_BAN_TIME, MAX_OFFENCES, Prefixes, Source,
};

/// What fail2ban's server does where nobody says anything.
const SILENT_MAX_RETRY: u32 = 3;
const SILENT_TIME: Duration = Duration::from_secs(600);

/// Whole seconds, at least one, and no longer than anybody is banned.
pub(super) fn whole(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.ceil().max(1.0)).map_or(MAX_BAN_TIME, |time| time.min(MAX_BAN_TIME))
}

/// A name as our configuration takes it.
pub(super) fn named(name: Option<&str>) -> String {
    let fit = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') { c } else { '-' };
    let name: String = name.unwrap_or_default().trim_start_matches('.').chars().take(64).map(fit).collect();
    if name.is_empty() { "unnamed".to_owned() } else { name }
}

/// One jail on its way.
pub(super) struct Translation<'j> {
    pub(super) jail: &'j Jail,
    pub(super) was_enabled: bool,
    /// On, it would do harm or nothing.
    pub(super) off: bool,
    pub(super) notes: Vec<Note>,
}

impl Translation<'_> {
    fn note(&mut self, kind: Kind, option: &str, what: String) {
        let place = self.jail.options.get(option).filter(|value| value.line > 0);
        let (file, line) = place
            .map_or((self.jail.file.clone(), self.jail.line), |value| (value.file.to_path_buf(), value.line));
        let jail = Some(self.jail.name.clone());
        self.notes.push(Note { kind, jail, enabled: self.was_enabled, file, line, what });
    }

    fn switch_off(&mut self, option: &str, what: String) {
        self.off = true;
        self.note(Kind::SwitchedOff, option, what);
    }

    pub(super) fn settings(&mut self, forgiveness: Duration) -> JailSettings {
        let ban_time = self.ban_time();
        let find_time = self.find_time();
        let source = self.source();
        let escalation = self.escalation(ban_time, forgiveness);
        self.small_print();
        JailSettings {
            name: named(Some(&self.jail.name)),
            filter: String::new(),
            source,
            max_offences: self.max_offences(),
            find_time,
            ban_time,
            escalation,
            allow: self.allow(),
            prefixes: Prefixes::default(),
            action: self.action(),
            cross_site: CrossSite::default(),
            brake: Some(Brake::default()),
        }
    }

    fn max_offences(&mut self) -> u32 {
        let Some(text) = self.jail.said("maxretry") else { return SILENT_MAX_RETRY };
        let count = text.parse::<i64>().map_or(i64::MAX, |count| count.max(1));
        match u32::try_from(count) {
            Ok(count) if count <= MAX_OFFENCES => count,
            _ => {
                let what = format!("maxretry = {text} is more than edge keeps; here it is {MAX_OFFENCES}");
                self.note(Kind::Different, "maxretry", what);
                MAX_OFFENCES
            }
        }
    }

    fn time(&mut self, option: &str) -> Option<f64> {
        let text = self.jail.said(option)?;
        let seconds = time::seconds(text);
        if seconds.is_none() {
            let what = format!("{option} = {text:?} is no time; fail2ban's default stands in for it");
            self.note(Kind::Different, option, what);
        }
        seconds
    }

    fn ban_time(&mut self) -> Duration {
        match self.time("bantime") {
            Some(seconds) if seconds < 0.0 => {
                let days = MAX_BAN_TIME.as_secs() / 86_400;
                self.note(Kind::Different, "bantime", format!("bans for ever; here that is {days} days"));
                MAX_BAN_TIME
            }
            Some(seconds) => whole(seconds),
            None => SILENT_TIME,
        }
    }

    fn find_time(&mut self) -> Duration {
        self.time("findtime").map_or(SILENT_TIME, whole)
    }

    pub(super) fn journal(&mut self, journal: bool) {
        if !journal {
            return;
        }
        const WHAT: &str = "reads systemd's journal, which edge does not";
        if self.jail.said("logpath").is_some() {
            let what =
                format!("{WHAT}; its logpath is read instead: see that something writes it (rsyslog does)");
            self.note(Kind::Different, "backend", what);
        } else {
            let what = format!("{WHAT}; let rsyslog write a file, name it in logs and write enabled = true");
            self.switch_off("backend", what);
        }
    }

    fn source(&mut self) -> Source {
        let mut files = Vec::new();
        for line in self.jail.said("logpath").unwrap_or_default().split('\n') {
            // "FILE tail": from its end on; the others are read from where they were left.
            let path = line.rsplit_once(' ').map_or(line, |(path, _)| path).trim();
            if path.is_empty() {
                continue;
            }
            if !path.starts_with('/') {
                let what = format!("{path:?} is left out: names of logs are absolute here");
                self.note(Kind::NotCarried, "logpath", what);
                continue;
            }
            let plain = without_classes(path);
            if plain != path {
                let what =
                    format!("{path} becomes {plain}: names hold * and ? only, so more files may be read");
                self.note(Kind::Different, "logpath", what);
            }
            let path = PathBuf::from(plain);
            if files.contains(&path) {
                continue;
            }
            if self.was_enabled && absent(&path) {
                let what = format!("{} is not there now; it is read when it comes", path.display());
                self.note(Kind::Missing, "logpath", what);
            }
            files.push(path);
        }
        if files.iter().any(|file| file.ends_with("fail2ban.log")) {
            let what =
                "reads fail2ban's own log, which nobody writes any more; escalation_factor does its work";
            self.switch_off("logpath", what.to_owned());
        } else if files.is_empty() && !self.off {
            self.switch_off(
                "logpath",
                "has no log file; name it in logs and write enabled = true".to_owned(),
            );
        }
        if files.is_empty() { Source::Edge } else { Source::Files(files) }
    }

    fn escalation(&mut self, ban_time: Duration, forgiveness: Duration) -> Option<Escalation> {
        if !self.jail.is("bantime.increment") || ban_time == MAX_BAN_TIME {
            return None;
        }
        let cap = self.time("bantime.maxtime").filter(|time| *time > 0.0).map_or(MAX_BAN_TIME, whole);
        let times = self.time("bantime.factor").filter(|times| *times > 0.0).unwrap_or(1.0);
        let multipliers: Vec<f64> = self.jail.said("bantime.multipliers").map_or_else(Vec::new, |list| {
            list.split_whitespace().filter_map(|word| word.parse().ok()).filter(|m| *m > 0.0).collect()
        });
        let (factor, cap, exact) = match multipliers.as_slice() {
            [first, .., last] => {
                let steps = i32::try_from(multipliers.len() - 1).unwrap_or(i32::MAX);
                let factor = (last / first).powf(1.0 / f64::from(steps)).clamp(1.0, MAX_FACTOR);
                let even = (0..).zip(&multipliers).all(|(n, m)| (m - factor.powi(n)).abs() < 0.01 * m);
                (factor, cap.min(whole(ban_time.as_secs_f64() * times * last)), even)
            }
            _ => (2.0, cap, self.jail.said("bantime.formula").is_none()),
        };
        let cap = cap.max(ban_time);
        #[allow(clippy::float_cmp, reason = "1 is written as 1")]
        if !exact || times != 1.0 {
            let option = if exact { "bantime.factor" } else { "bantime.increment" };
            let what = format!(
                "each further ban is {factor:.2} times longer than the last, up to {} s: fail2ban's own formula \
                 is more uneven; correct escalation_factor",
                cap.as_secs()
            );
            self.note(Kind::Different, option, what);
        }
        Some(Escalation { factor, cap, forgiveness })
    }

    fn allow(&mut self) -> Vec<IpNet> {
        let mut allow = Vec::new();
        let words = self.jail.said("ignoreip").unwrap_or_default();
        for word in words.split([' ', ',', '\n', '\t']).filter(|word| !word.is_empty()) {
            match network(word) {
                Some(network) if !allow.contains(&network) => allow.push(network),
                Some(_) => {}
                None => {
                    let what = format!(
                        "ignoreip names {word:?}, and edge looks no names up: write its addresses into allow, \
                         or who is there may be banned"
                    );
                    self.note(Kind::NotCarried, "ignoreip", what);
                }
            }
        }
        allow
    }

    fn action(&mut self) -> Action {
        let (mut bans, mut lets_in) = (false, false);
        let written = self.jail.said("action").unwrap_or_default().to_owned();
        for one in options::several(&written) {
            let (name, given) = options::named(one).unwrap_or_else(|_| (one.to_owned(), Given::new()));
            // Such a jail opens a port to who matches, after a knock.
            let verdict = given.get("blocktype").map(|verdict| verdict.to_ascii_uppercase());
            lets_in |=
                verdict.is_some_and(|verdict| verdict.starts_with("RETURN") || verdict.starts_with("ACCEPT"));
            if BANNING.iter().any(|start| name.starts_with(start)) {
                bans = true;
            } else {
                let what = format!(
                    "the action {name} is none of edge's: what it tells or does elsewhere stays undone"
                );
                self.note(Kind::NotCarried, "action", what);
            }
        }
        if !bans {
            let what = "bans nobody by this host's firewall, so it only logs here; write action = \"ban\" if it shall";
            self.note(Kind::Different, "action", what.to_owned());
        }
        if lets_in {
            let what = "lets in who matches instead of shutting out; edge has no such jails".to_owned();
            self.switch_off("action", what);
        }
        if bans && !lets_in { Action::Ban } else { Action::Log }
    }

    /// What is left: options that have no counterpart.
    fn small_print(&mut self) {
        if let Some(command) = self.jail.said("ignorecommand") {
            let what = format!(
                "{command:?} says who is spared, and edge runs no commands: on, it would ban them; write who is \
                 spared into allow and enabled = true"
            );
            self.switch_off("ignorecommand", what);
        }
        if self.jail.said("ignoreself").is_some() && !self.jail.is("ignoreself") {
            let what = "ignoreself = false: here nobody ever bans this host's own addresses".to_owned();
            self.note(Kind::Different, "ignoreself", what);
        }
        if let Some(range) = self.jail.said("bantime.rndtime") {
            let what = format!("bantime.rndtime = {range}: bans end on time here, without a random part");
            self.note(Kind::NotCarried, "bantime.rndtime", what);
        }
        if self.jail.is("bantime.overalljails") {
            let what = "bantime.overalljails: each jail counts its own bans".to_owned();
            self.note(Kind::NotCarried, "bantime.overalljails", what);
        }
        if let Some(zone) = self.jail.said("logtimezone") {
            let what = format!("logtimezone = {zone}: times without a zone are read in this host's own");
            self.note(Kind::NotCarried, "logtimezone", what);
        }
        let encoding = self.jail.said("logencoding").map(str::to_ascii_lowercase).unwrap_or_default();
        if !matches!(&*encoding, "" | "auto" | "utf-8" | "utf8" | "ascii" | "us-ascii") {
            let what = format!(
                "logencoding = {encoding}: lines are read as bytes; a pattern sees what is not ASCII as it lies in the file"
            );
            self.note(Kind::NotCarried, "logencoding", what);
        }
    }
}

/// Steeper escalations reach the cap at once anyway.
const MAX_FACTOR: f64 = 1000.0;

/// How the actions of fail2ban begin that close this host to somebody.
const BANNING: [&str; 16] = [
    "iptables",
    "nftables",
    "firewallcmd",
    "ufw",
    "shorewall",
    "pf",
    "npf",
    "ipfw",
    "bsd-ipfw",
    "osx-",
    "ipfilter",
    "hostsdeny",
    "route",
    "apf",
    "nginx-block-map",
    "symbiosis",
];

/// `10.0.0.1`, `10.0.0.0/8`, `10.0.0.0/255.0.0.0`; IPv4 within IPv6 is IPv4.
fn network(word: &str) -> Option<IpNet> {
    if let Ok(address) = word.parse::<std::net::IpAddr>() {
        return Some(IpNet::from(address.to_canonical()));
    }
    if let Ok(network) = word.parse::<IpNet>() {
        return Some(network.trunc());
    }
    let (address, mask) = word.split_once('/')?;
    IpNet::with_netmask(address.parse().ok()?, mask.parse().ok()?).ok().map(|network| network.trunc())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::carry::{SILENT_PURGE_AGE, import};
    use super::*;
    use crate::ban::FilterText;
    use crate::ban::fail2ban::Import;

    const JAILS: &str = "\
[DEFAULT]
bantime = 1h
findtime = 10m
maxretry = 5
banaction = iptables-multiport
port = 0:65535
action = %(banaction)s[port=\"%(port)s\"]
filter = %(__name__)s
[one]
enabled = true
port = ssh
logpath = /dev/null
  /dev/null tail
  /var/log/[ab].log
ignoreip = 127.0.0.1/8 ::1, 10.0.0.0/255.0.0.0
  admin.example.org
action = %(known/greeting)s
         iptables[port=\"%(port)s\"]
         sendmail-whois[dest=\"a b\"]
[two]
enabled = true
filter = one[mode=hard]
logpath = /dev/null
bantime = -1
bantime.increment = true
ignorecommand = /bin/true <ip>
failregex = %(known/failregex)s
            ^mine <HOST>
[three]
filter = one
backend = systemd
[four]
enabled = yes
[five]
filter = one
logpath = /dev/null
bantime.increment = true
bantime.multipliers = 1 5 30
bantime.maxtime = 2d
action = cloudflare
[knock]
enabled = true
filter = one
logpath = /dev/null
action = %(banaction)s[port=\"ftp\"][blocktype=RETURN, returntype=DROP,
    actionrepair_on_unban=true]
";
    const FILTER: &str = "\
[Definition]
greeting = iptables-new
re-soft = ^soft <HOST>$
re-hard = %(re-soft)s
          ^hard <lt_<logtype>/p><HOST>$
failregex = <re-<mode>>
ignoreregex =
datepattern = %%Y {^LN-BEG}
[lt_file]
p = file
[Init]
mode = soft
maxlines = 3
";

    fn imported() -> Import {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("filter.d")).unwrap();
        fs::write(folder.path().join("jail.conf"), JAILS).unwrap();
        fs::write(folder.path().join("filter.d/one.conf"), FILTER).unwrap();
        import(folder.path()).unwrap()
    }

    fn notes(import: &Import, jail: &str) -> Vec<String> {
        let of_jail = import.notes.iter().filter(|note| note.jail.as_deref() == Some(jail));
        of_jail.map(|note| format!("{}: {}: {}", note.line, note.kind, note.what)).collect()
    }

    #[test]
    fn a_jail_is_carried_over_whole() {
        let import = imported();
        let one = &import.jails[0];
        assert_eq!(
            one.settings,
            JailSettings {
                name: "one".to_owned(),
                filter: "one".to_owned(),
                source: Source::Files(vec![PathBuf::from("/dev/null"), PathBuf::from("/var/log/?.log")]),
                max_offences: 5,
                find_time: Duration::from_secs(600),
                ban_time: Duration::from_secs(3600),
                escalation: None,
                allow: vec![
                    "127.0.0.0/8".parse().unwrap(),
                    "::1/128".parse().unwrap(),
                    "10.0.0.0/8".parse().unwrap()
                ],
                prefixes: Prefixes::default(),
                action: Action::Ban,
                cross_site: CrossSite::Throttle,
                brake: Some(Brake::default()),
            }
        );
        assert!(one.enabled && one.was_enabled);
        let told = notes(&import, "one");
        assert_eq!(told.len(), 3, "{told:#?}");
        assert!(told[0].starts_with("12: different: /var/log/[ab].log becomes /var/log/?.log"));
        assert!(told[1].starts_with("15: not carried over: ignoreip names \"admin.example.org\""));
        assert!(told[2].starts_with("17: not carried over: the action sendmail-whois"));
        assert!(import.notes.iter().any(|note| note.what.contains("(ssh for one); edge closes all")));
    }

    #[test]
    fn a_filter_with_other_options_is_another_filter() {
        let import = imported();
        let texts: Vec<&FilterText> = import.filters.iter().map(|filter| &filter.text).collect();
        assert_eq!(texts[0].name, "one");
        assert_eq!(texts[0].failregex, ["^soft <HOST>$"]);
        assert_eq!(texts[0].datepattern, ["%Y {^LN-BEG}"]);
        assert_eq!(texts[0].max_lines, 3);
        assert_eq!(texts[1].name, "one-two");
        assert_eq!(texts[1].failregex, ["^soft <HOST>$", "^hard file<HOST>$", "^mine <HOST>"]);
        let used: Vec<&str> = import.jails.iter().map(|jail| &*jail.settings.filter).collect();
        assert_eq!(used, ["one", "one-two", "one", "one", "one"]);
    }

    #[test]
    fn who_might_be_banned_wrongly_is_switched_off() {
        let import = imported();
        let (two, told) = (&import.jails[1], notes(&import, "two"));
        assert!(two.was_enabled && !two.enabled);
        assert!(
            told.iter().any(|note| note.starts_with("26: switched off") && note.contains("runs no commands")),
            "{told:#?}"
        );
        assert_eq!(two.settings.ban_time, MAX_BAN_TIME);
        assert!(told.iter().any(|note| note.contains("for ever")));
        assert_eq!(two.settings.escalation, None);
        assert!(
            notes(&import, "three").iter().any(|note| note.contains("switched off: reads systemd's journal"))
        );
    }

    #[test]
    fn longer_bans_for_who_comes_back_are_carried_over() {
        let import = imported();
        let five = &import.jails[3];
        let escalation = five.settings.escalation.unwrap();
        assert!((escalation.factor - 30_f64.sqrt()).abs() < 1e-9);
        assert_eq!(escalation.cap, Duration::from_secs(30 * 3600));
        assert_eq!(escalation.forgiveness, SILENT_PURGE_AGE);
        let told = notes(&import, "five");
        assert!(
            told.iter().any(|note| note.contains("is 5.48 times longer than the last, up to 108000 s")),
            "{told:#?}"
        );
        // Its one action closes nothing on this host.
        assert_eq!((five.settings.action, told.len()), (Action::Log, 3));
    }

    #[test]
    fn a_jail_that_lets_in_bans_nobody() {
        let import = imported();
        let knock = &import.jails[4];
        assert!(knock.was_enabled && !knock.enabled && knock.settings.action == Action::Log);
        let told = notes(&import, "knock");
        assert!(
            told.iter().any(|note| note.starts_with("45: switched off: lets in who matches")),
            "{told:#?}"
        );
    }

    #[test]
    fn a_broken_jail_is_left_out_and_told() {
        let import = imported();
        assert!(import.jails.iter().all(|jail| jail.settings.name != "four"));
        let told = notes(&import, "four");
        assert!(
            told[0].starts_with("32: left out:") && told[0].contains("filter.d/four.conf is not there"),
            "{told:?}"
        );
    }

    #[test]
    fn only_what_is_on_can_be_kept() {
        let mut import = imported();
        import.keep_enabled();
        assert_eq!(
            import.jails.iter().map(|jail| &*jail.settings.name).collect::<Vec<_>>(),
            ["one", "two", "knock"]
        );
        assert_eq!(import.filters.len(), 2);
        assert!(notes(&import, "five").is_empty());
        import.note_forgeable(|text| vec![format!("{} patterns", text.failregex.len())]);
        assert_eq!(import.notes.iter().filter(|note| note.kind == Kind::Forgeable).count(), 2);
    }
}
