//! What operators ask of the ban engine, and what they are told: the words between the command
//! line and the running edge. Must not know how they travel, nor how an answer is found.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use super::shown;

const CLOCK: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day] [hour]:[minute]:[second]Z");

/// One question or order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Question {
    /// Who is banned or throttled now?
    List {
        /// Most bans to be told; the total is told besides.
        limit: usize,
    },
    /// Ban these.
    Add {
        /// At the widest /24 or /48 each.
        networks: Vec<IpNet>,
        /// How long.
        seconds: u64,
        /// Why, for whoever asks later.
        reason: String,
    },
    /// End every ban that overlaps these.
    Remove {
        /// Addresses or networks.
        networks: Vec<IpNet>,
    },
    /// End every ban.
    Clear,
    /// Ban nobody for a while; bans that stand go on, detection goes on.
    Off {
        /// How long; it arms itself again.
        seconds: u64,
    },
    /// Ban again, before `Off` is over.
    On,
    /// Let a jail ban again that went log-only by itself.
    Release {
        /// Its name.
        jail: String,
    },
    /// What is known of this address?
    Why {
        /// The client.
        address: IpAddr,
    },
    /// A penetration test begins.
    PentestStart {
        /// Where it comes from.
        network: IpNet,
        /// How long; it ends by itself.
        seconds: u64,
        /// Who ordered it.
        ticket: String,
    },
    /// It is over.
    PentestStop {
        /// Only this one; without, all.
        ticket: Option<String>,
    },
    /// Which are under way, and which were?
    PentestStatus,
    /// What would have been banned?
    PentestReport {
        /// Only this one; without, the last.
        ticket: Option<String>,
    },
    /// How does the engine do?
    Summary,
    /// What has each jail done?
    Jails,
}

/// The answer to a [`Question`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// To `List`.
    Bans {
        /// All that stand.
        total: usize,
        /// The first of them.
        bans: Vec<BanLine>,
    },
    /// These were banned, or their bans were ended.
    Changed {
        /// What was done, as a verb: `banned`, `ended`, `released`.
        done: String,
        /// The bans.
        bans: Vec<BanLine>,
        /// What else there is to know: what stood before. One sentence each.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        notes: Vec<String>,
        /// What of the order was not done, and why. One sentence each.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        undone: Vec<String>,
    },
    /// To `Off` and `On`: until when nobody is banned, in seconds since the epoch.
    Off {
        /// `None` is armed.
        until: Option<u64>,
    },
    /// To `Why`.
    Why(Box<Receipt>),
    /// To `PentestStart`, `PentestStop` and `PentestStatus`.
    Leases {
        /// Newest last.
        leases: Vec<LeaseLine>,
    },
    /// To `PentestReport`.
    Report {
        /// Which test.
        lease: LeaseLine,
        /// What would have been banned, oldest first.
        would: Vec<WouldLine>,
    },
    /// To `Summary`.
    Summary(Box<Summary>),
    /// To `Jails`.
    Jails {
        /// Those that are on, in the order of the configuration.
        jails: Vec<JailLine>,
    },
    /// It was not done, and why.
    Refused {
        /// One sentence for the operator.
        why: String,
    },
}

/// One ban.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BanLine {
    /// Who.
    pub network: IpNet,
    /// By which jail; `operator` and `kernel` are no jails.
    pub jail: String,
    /// `ban` or `throttle`.
    pub action: String,
    /// Seconds since the epoch.
    pub since: u64,
    /// Seconds since the epoch.
    pub until: u64,
    /// The offences that led to it.
    pub offences: u32,
    /// The how many-th ban in a row it is.
    pub times: u16,
    /// An operator's words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// All that is known of one address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Of whom.
    pub address: IpAddr,
    /// Why nobody can ban it, where that is so.
    pub protected: Option<String>,
    /// The bans that cover it.
    pub bans: Vec<BanLine>,
    /// The log lines that led to them, as they were read.
    pub lines: Vec<EvidenceLine>,
    /// For what foreign pages may have made it ask, it is let in slowly.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub visits: Vec<VisitLine>,
    /// What is being counted against it now.
    pub counters: Vec<CounterLine>,
    /// Earlier bans in a row, and when the last ended.
    pub history: Option<(u16, u64)>,
    /// What the kernel holds; `None` where it was not asked or did not answer.
    pub kernel: Option<Vec<(IpNet, u64)>>,
    /// Why what the kernel holds may be dropped or not; empty where it drops what is banned.
    pub kernel_state: String,
    /// A penetration test that covers it.
    pub pentest: Option<LeaseLine>,
    /// Its open connections.
    pub connections: usize,
}

/// A line that led to a ban.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvidenceLine {
    /// Seconds since the epoch.
    pub at: u64,
    /// For which jail.
    pub jail: String,
    /// As read; bytes that are no text are shown escaped.
    pub line: String,
}

/// A throttle that is no ban: no list, no file and no kernel holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VisitLine {
    /// Whom.
    pub network: IpNet,
    /// By which jail.
    pub jail: String,
    /// Seconds since the epoch.
    pub until: u64,
    /// The offences that led to it.
    pub offences: u32,
    /// The last of them.
    pub lines: Vec<String>,
}

/// Offences that have not led to a ban yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterLine {
    /// By which jail.
    pub jail: String,
    /// Foreign pages may have asked: they throttle at most.
    #[serde(default)]
    pub cross_site: bool,
    /// So many count now.
    pub offences: u32,
    /// So many ban.
    pub max_offences: u32,
    /// The last ones.
    pub lines: Vec<String>,
}

/// One penetration test.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseLine {
    /// From where.
    pub network: IpNet,
    /// Who ordered it.
    pub ticket: String,
    /// Seconds since the epoch.
    pub since: u64,
    /// Seconds since the epoch.
    pub until: u64,
    /// When it was stopped or ended; `None` is under way.
    pub ended: Option<u64>,
}

/// A ban that was not made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WouldLine {
    /// Seconds since the epoch.
    pub at: u64,
    /// Who.
    pub network: IpNet,
    /// By which jail.
    pub jail: String,
    /// The last line that led to it.
    pub line: String,
}

/// How the ban engine does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Bans that stand.
    pub bans: usize,
    /// Most that may stand.
    pub max_bans: usize,
    /// Clients that are throttled for what foreign pages may have asked; no bans.
    #[serde(default)]
    pub visitors: usize,
    /// Bans are off until then.
    pub off_until: Option<u64>,
    /// Penetration tests under way.
    pub pentests: usize,
    /// How it stands with the kernel.
    pub kernel: String,
    /// Do bans reach the kernel?
    pub kernel_works: bool,
    /// How it stands with the file of bans; empty is well.
    pub store: String,
    /// Jails that went log-only by themselves.
    pub braked: Vec<String>,
    /// Events that were lost because the engine could not follow.
    pub lost: u64,
    /// The files that are followed.
    pub files: Vec<FileLine>,
}

/// One followed file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileLine {
    /// Which.
    pub path: String,
    /// `followed`, `missing`, or why it cannot be read.
    pub state: String,
    /// Bytes that are not read yet.
    pub behind: u64,
}

/// One jail, since edge has started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JailLine {
    /// Its name.
    pub jail: String,
    /// `ban`, `throttle` or `log`.
    pub action: String,
    /// Offences counted.
    pub offences: u64,
    /// Bans and throttles made.
    pub bans: u64,
    /// Of its bans and throttles, also from before the start, so many are in force.
    pub in_force: usize,
    /// It went log-only by itself, having banned too many.
    pub braked: bool,
    /// The files it reads; empty is edge's own requests.
    pub files: Vec<FileLine>,
}

/// Why somebody is let in slowly who is not banned.
pub const CROSS_SITE: &str = "cross-site: foreign pages may have asked";

/// `2026-01-31 23:59:00Z`
#[must_use]
pub fn clock(seconds: u64) -> String {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|at| at.format(CLOCK).ok())
        .unwrap_or_else(|| format!("@{seconds}"))
}

/// A line of a log as it can be shown on a terminal: what is not printable ASCII is `\xHH`.
#[must_use]
pub fn legible(line: &[u8]) -> String {
    let mut shown = String::with_capacity(line.len());
    for byte in line {
        match byte {
            b' '..=b'~' => shown.push(char::from(*byte)),
            other => {
                use fmt::Write;
                // Writing to a String cannot fail.
                let _ = write!(shown, "\\x{other:02X}");
            }
        }
    }
    shown
}

impl fmt::Display for BanLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { network, jail, action, since, until, offences, times, reason } = self;
        let network = shown(*network);
        write!(f, "{network:<24} {action:<8} until {}  {jail}", clock(*until))?;
        if *offences > 0 {
            write!(f, ", {offences} offences")?;
        }
        if *times > 1 {
            write!(f, ", ban {times} in a row")?;
        }
        write!(f, ", since {}", clock(*since))?;
        if !reason.is_empty() {
            write!(f, ", {reason:?}")?;
        }
        Ok(())
    }
}

impl fmt::Display for LeaseLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { network, ticket, since, until, ended } = self;
        write!(f, "{:<24} ticket {ticket:?} since {}, ", shown(*network), clock(*since))?;
        match ended {
            None => write!(f, "until {}", clock(*until)),
            Some(ended) => write!(f, "ended {}", clock(*ended)),
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bans { total, bans } => {
                for ban in bans {
                    writeln!(f, "{ban}")?;
                }
                match total.saturating_sub(bans.len()) {
                    0 => write!(f, "{total} in force"),
                    more => write!(f, "{total} in force, {more} more than shown; raise --limit"),
                }
            }
            Self::Changed { done, bans, notes, undone } => {
                let bans = bans.iter().map(|ban| format!("{done} {ban}"));
                let told: Vec<String> = bans.chain(notes.iter().cloned()).collect();
                match (told.is_empty(), undone.is_empty() || done == "ended") {
                    (false, _) => lines(f, &told),
                    (true, true) => write!(f, "nothing {done}: no ban covers it"),
                    (true, false) => write!(f, "nothing {done}"),
                }
            }
            Self::Off { until: None } => write!(f, "armed: jails ban"),
            Self::Off { until: Some(until) } => {
                write!(f, "off until {}: nobody is banned, bans that stand go on", clock(*until))
            }
            Self::Why(receipt) => receipt.fmt(f),
            Self::Leases { leases } if leases.is_empty() => write!(f, "no penetration test is known"),
            Self::Leases { leases } => lines(f, leases),
            Self::Report { lease, would } => {
                writeln!(f, "{lease}")?;
                for WouldLine { at, network, jail, line } in would {
                    writeln!(f, "{}  {:<24} {jail}\n    {line}", clock(*at), shown(*network))?;
                }
                match would.len() {
                    1 => write!(f, "1 ban would have been made"),
                    bans => write!(f, "{bans} bans would have been made"),
                }
            }
            Self::Summary(summary) => summary.fmt(f),
            Self::Jails { jails } if jails.is_empty() => write!(f, "no jail is on"),
            Self::Jails { jails } => lines(f, jails),
            Self::Refused { why } => f.write_str(why),
        }
    }
}

impl fmt::Display for JailLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { jail, action, offences, bans, in_force, braked, files } = self;
        write!(f, "{jail:<24} {action:<8} offences {offences}, bans {bans}, in force {in_force}")?;
        if *braked {
            write!(f, "; LOG-ONLY after too many bans: `edge bans release {jail}`")?;
        }
        if files.is_empty() {
            write!(f, "; edge's own requests")?;
        }
        for FileLine { path, state, behind } in files {
            write!(f, "\n    {path}: {state}")?;
            if *behind > 0 {
                write!(f, ", {behind} bytes behind")?;
            }
        }
        Ok(())
    }
}

fn lines<T: fmt::Display>(f: &mut fmt::Formatter<'_>, all: &[T]) -> fmt::Result {
    for (index, one) in all.iter().enumerate() {
        if index > 0 {
            writeln!(f)?;
        }
        write!(f, "{one}")?;
    }
    Ok(())
}

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.address)?;
        match (&self.protected, self.bans.is_empty()) {
            (Some(why), true) => write!(f, "can never be banned: {why}")?,
            (_, true) if !self.visits.is_empty() => write!(f, "throttled")?,
            (_, true) => write!(f, "not banned")?,
            (_, false) if self.bans.iter().all(|ban| ban.action == "throttle") => write!(f, "throttled")?,
            (_, false) => write!(f, "banned")?,
        }
        for ban in &self.bans {
            write!(f, "\n  {ban}")?;
        }
        for EvidenceLine { at, jail, line } in &self.lines {
            write!(f, "\n    {} {jail}: {line}", clock(*at))?;
        }
        for VisitLine { network, jail, until, offences, lines } in &self.visits {
            let until = clock(*until);
            write!(
                f,
                "\n  {} throttled until {until}: {CROSS_SITE} (jail {jail}, {offences} offences)",
                shown(*network)
            )?;
            for line in lines {
                write!(f, "\n    {line}")?;
            }
        }
        for CounterLine { jail, cross_site, offences, max_offences, lines } in &self.counters {
            write!(f, "\n  counted by {jail}: {offences} of {max_offences} offences")?;
            if *cross_site {
                write!(f, ", cross-site, which throttle at most")?;
            }
            for line in lines {
                write!(f, "\n    {line}")?;
            }
        }
        if let Some((times, last_end)) = self.history {
            let times = if times == 1 { "once".to_owned() } else { format!("{times} times in a row") };
            write!(f, "\n  banned {times}, the last until {}", clock(last_end))?;
        }
        let drops = if self.kernel_state.is_empty() { "drops" } else { "holds" };
        match &self.kernel {
            Some(held) if held.is_empty() => write!(f, "\n  kernel: {drops} nothing of it")?,
            Some(held) => {
                for (network, remaining) in held {
                    write!(f, "\n  kernel: {drops} {} for another {remaining} s", shown(*network))?;
                }
            }
            None => {}
        }
        if !self.kernel_state.is_empty() {
            write!(f, "\n  kernel: {}", self.kernel_state)?;
        }
        if let Some(lease) = &self.pentest {
            write!(f, "\n  penetration test: {lease}")?;
        }
        write!(f, "\n  connections open: {}", self.connections)
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of at most {} in force; kernel: {}", self.bans, self.max_bans, self.kernel)?;
        if self.visitors > 0 {
            write!(f, "; {} throttled, no bans: {CROSS_SITE}", self.visitors)?;
        }
        if let Some(until) = self.off_until {
            write!(f, "; OFF until {}", clock(until))?;
        }
        if self.pentests > 0 {
            write!(f, "; {} penetration test(s) under way", self.pentests)?;
        }
        if !self.braked.is_empty() {
            write!(f, "; log-only after too many bans: {}", self.braked.join(", "))?;
        }
        if !self.store.is_empty() {
            write!(f, "; {}", self.store)?;
        }
        if self.lost > 0 {
            write!(f, "; {} events lost", self.lost)?;
        }
        for FileLine { path, state, behind } in &self.files {
            if state != "followed" || *behind > 0 {
                write!(f, "; {path}: {state}, {behind} bytes behind")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_in_utc() {
        assert_eq!(clock(0), "1970-01-01 00:00:00Z");
        assert_eq!(clock(1_790_000_000), "2026-09-21 14:13:20Z");
        assert_eq!(clock(u64::MAX), format!("@{}", u64::MAX));
    }

    #[test]
    fn a_logged_escape_code_never_reaches_the_terminal() {
        assert_eq!(legible(b"\x1b[31m \xff\n\"ok\""), "\\x1B[31m \\xFF\\x0A\"ok\"");
    }

    #[test]
    fn an_answer_says_what_was_done_what_stood_before_and_what_was_not_done() {
        let changed = |done: &str, notes: &[&str], undone: &[&str]| Answer::Changed {
            done: done.to_owned(),
            bans: Vec::new(),
            notes: notes.iter().map(ToString::to_string).collect(),
            undone: undone.iter().map(ToString::to_string).collect(),
        };
        assert_eq!(changed("ended", &[], &[]).to_string(), "nothing ended: no ban covers it");
        assert_eq!(changed("ended", &[], &["the kernel"]).to_string(), "nothing ended: no ban covers it");
        assert_eq!(changed("banned", &[], &["too wide", "protected"]).to_string(), "nothing banned");
        assert_eq!(changed("released", &["jail a bans again"], &[]).to_string(), "jail a bans again");
        // What an earlier program answers, and what one expects.
        let earlier = r#"{"answer":"changed","done":"ended","bans":[]}"#;
        assert_eq!(serde_json::from_str::<Answer>(earlier).unwrap(), changed("ended", &[], &[]));
        assert_eq!(serde_json::to_string(&changed("ended", &[], &[])).unwrap(), earlier);
    }

    #[test]
    fn a_jail_is_told_with_its_counters_and_its_files() {
        let own = JailLine {
            jail: "scanners".to_owned(),
            action: "ban".to_owned(),
            offences: 7,
            bans: 2,
            in_force: 1,
            braked: true,
            files: Vec::new(),
        };
        let log = FileLine { path: "/var/log/a".to_owned(), state: "followed".to_owned(), behind: 3 };
        let other = JailLine { jail: "ssh".to_owned(), braked: false, files: vec![log], ..own.clone() };
        assert_eq!(
            Answer::Jails { jails: vec![own, other] }.to_string(),
            "scanners                 ban      offences 7, bans 2, in force 1; LOG-ONLY after too many bans: \
             `edge bans release scanners`; edge's own requests\n\
             ssh                      ban      offences 7, bans 2, in force 1\n    \
             /var/log/a: followed, 3 bytes behind"
        );
    }

    #[test]
    fn a_receipt_says_who_why_and_until_when() {
        let ban = BanLine {
            network: "203.0.113.7/32".parse().unwrap(),
            jail: "path-traversal".to_owned(),
            action: "ban".to_owned(),
            since: 1_790_000_000,
            until: 1_790_000_600,
            offences: 2,
            times: 3,
            reason: String::new(),
        };
        let receipt = Receipt {
            address: "203.0.113.7".parse().unwrap(),
            protected: None,
            bans: vec![ban],
            lines: vec![EvidenceLine {
                at: 1_790_000_000,
                jail: "path-traversal".to_owned(),
                line: "GET /../../etc/passwd".to_owned(),
            }],
            visits: Vec::new(),
            counters: Vec::new(),
            history: None,
            kernel: Some(vec![("203.0.113.7/32".parse().unwrap(), 599)]),
            kernel_state: String::new(),
            pentest: None,
            connections: 0,
        };
        assert_eq!(
            Answer::Why(Box::new(receipt.clone())).to_string(),
            "203.0.113.7: banned\n  203.0.113.7              ban      until 2026-09-21 14:23:20Z  \
             path-traversal, 2 offences, ban 3 in a row, since 2026-09-21 14:13:20Z\n    \
             2026-09-21 14:13:20Z path-traversal: GET /../../etc/passwd\n  \
             kernel: drops 203.0.113.7 for another 599 s\n  connections open: 0"
        );
        let json = serde_json::to_string(&Answer::Why(Box::new(receipt.clone()))).unwrap();
        assert_eq!(serde_json::from_str::<Answer>(&json).unwrap(), Answer::Why(Box::new(receipt.clone())));
        // Rules that somebody changed may let through what their sets hold.
        let changed = Receipt { kernel_state: "takes bans, but …".to_owned(), ..receipt };
        let told = Answer::Why(Box::new(changed)).to_string();
        assert!(told.contains("kernel: holds 203.0.113.7 for another 599 s\n  kernel: takes bans"), "{told}");
    }
}
