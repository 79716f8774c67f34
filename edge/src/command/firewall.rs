//! `edge firewall print | apply | confirm | rollback | status | remove`. Prints what the rules are,
//! or asks the helper; decides only that who comes over SSH must not lock itself out by haste.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};

use super::{Failure, pretty, say};
use crate::firewall::message::{Answer, Question, Status};
use crate::firewall::settings::{DEFAULT_FILE, FirewallSettings};
use crate::firewall::{FirewallError, ask, ruleset};

/// The helper answers at once, unless it makes a table of a million bans anew.
const PATIENCE: Duration = Duration::from_secs(60);

/// `edge firewall`
#[derive(Debug, Subcommand)]
pub enum FirewallVerb {
    /// Print the rules that the file comes to; loads nothing and needs no rights.
    Print {
        #[command(flatten)]
        at: At,
    },
    /// Load the rules of the file, as root. Bans and counts stay.
    Apply {
        #[command(flatten)]
        at: At,
        /// Roll back after this time, such as 60s, unless `edge firewall confirm` is written in a new session.
        #[arg(long, value_name = "TIME", value_parser = trial, conflicts_with = "no_confirm")]
        confirm: Option<Duration>,
        /// Keep them whatever happens, also over SSH.
        #[arg(long)]
        no_confirm: bool,
    },
    /// Keep the rules on trial; write it in a NEW session.
    Confirm {
        #[command(flatten)]
        at: At,
    },
    /// Go back to the rules before those on trial, at once.
    Rollback {
        #[command(flatten)]
        at: At,
    },
    /// Show what is loaded, what somebody changed by hand, how full the sets are.
    Status {
        #[command(flatten)]
        at: At,
    },
    /// Remove every rule and ban: all ports are open then.
    Remove {
        #[command(flatten)]
        at: At,
    },
}

/// Where the helper's file is.
#[derive(Debug, Args)]
pub struct At {
    /// The helper's configuration file.
    #[arg(long = "firewall-config", value_name = "FILE", default_value = DEFAULT_FILE)]
    file: PathBuf,
}

/// Does what the verb says.
///
/// # Errors
/// 78 with the faults of the file, 2 where `apply` must say whether it is to be confirmed, 1 where
/// the helper is away or refuses, and where `status` finds drift or no rules.
pub fn run(verb: &FirewallVerb, json: bool) -> Result<(), Failure> {
    let ssh = std::env::var("SSH_CONNECTION").ok().filter(|text| !text.is_empty());
    match verb {
        FirewallVerb::Print { at } => {
            let text = ruleset::whole(&settings(&at.file)?);
            if json { say(&pretty(&serde_json::json!({ "ruleset": text }))?) } else { say(text.trim_end()) }
        }
        FirewallVerb::Apply { at, confirm, no_confirm } => {
            if ssh.is_some() && confirm.is_none() && !no_confirm {
                return Err(Failure::usage(
                    "firewall apply: you came over SSH; write --confirm 60s to be let in again by a roll-back, or --no-confirm",
                ));
            }
            // Faults are told with their lines before the helper is asked.
            settings(&at.file)?;
            let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
            told(&at.file, Question::Apply { confirm: confirm.map(seconds), ssh }, json)
        }
        FirewallVerb::Confirm { at } => told(&at.file, Question::Confirm { ssh }, json),
        FirewallVerb::Rollback { at } => told(&at.file, Question::Rollback, json),
        FirewallVerb::Remove { at } => told(&at.file, Question::Remove, json),
        FirewallVerb::Status { at } => match asked(&at.file, Question::Status)? {
            Answer::Status(status) => {
                say(if json { pretty(&status)? } else { shown(&status) }.trim_end())?;
                verdict(&status)
            }
            other => Err(unexpected(other)),
        },
    }
}

/// Whole seconds, since the kernel's roll-back is not about less.
fn trial(text: &str) -> Result<Duration, String> {
    shared::config::parse_duration(text)
        .filter(|time| (Duration::from_secs(1)..=Duration::from_secs(3600)).contains(time))
        .ok_or_else(|| "write 1s to 1h, such as 60s".to_owned())
}

fn settings(file: &Path) -> Result<FirewallSettings, Failure> {
    FirewallSettings::read(file, "--firewall-config")
        .map_err(|faults| Failure::configuration(faults.0.iter().map(ToString::to_string)))
}

fn asked(file: &Path, question: Question) -> Result<Answer, Failure> {
    ask(&settings(file)?.socket, PATIENCE, question).map_err(Failure::run)
}

fn told(file: &Path, question: Question, json: bool) -> Result<(), Failure> {
    match asked(file, question)? {
        Answer::Told(text) if json => say(&pretty(&serde_json::json!({ "told": text }))?),
        Answer::Told(text) => say(&text),
        other => Err(unexpected(other)),
    }
}

fn unexpected(answer: Answer) -> Failure {
    match answer {
        Answer::Failed(why) => Failure::run(FirewallError::Refused(why)),
        _ => Failure::run(FirewallError::Words(crate::firewall::message::MessageError::Unexpected)),
    }
}

/// Scripts and monitors read the exit code.
fn verdict(status: &Status) -> Result<(), Failure> {
    match status {
        Status { loaded: false, .. } => {
            Err(Failure::run("firewall: no rules are loaded; write `edge firewall apply --confirm 60s`"))
        }
        Status { drift, .. } if !drift.is_empty() => Err(Failure::run(
            "firewall: the rules were changed by hand; write `edge firewall apply --confirm 60s` to have them as configured",
        )),
        _ => Ok(()),
    }
}

fn shown(status: &Status) -> String {
    let mut lines = Vec::new();
    match (status.loaded, status.since) {
        (true, Some(since)) => lines.push(format!("loaded since {}", moment(since))),
        (true, None) => lines.push("loaded, but not by this helper".to_owned()),
        (false, _) => lines.push("not loaded".to_owned()),
    }
    if let Some(until) = status.on_trial_until {
        lines.push(format!("ON TRIAL until {}: rolled back unless confirmed", moment(until)));
    }
    lines.extend(status.drift.iter().map(|what| format!("drift: {what}")));
    lines.extend(status.warnings.iter().map(|what| format!("warning: {what}")));
    if status.loaded {
        lines.push(format!("bans in the kernel: {}, evicted: {}", status.bans, status.figures.evicted));
        for fill in status.figures.sets.iter().filter(|fill| fill.used > 0) {
            let alarm = if fill.alarms() { "  ALARM" } else { "" };
            lines.push(format!("set {:<10} {:>9} of {}{alarm}", fill.set, fill.used, fill.size));
        }
        for counted in &status.figures.counters {
            lines.push(format!("counter {:<12} {:>12} packets", counted.counter, counted.packets));
        }
    }
    lines.join("\n")
}

fn moment(seconds: u64) -> String {
    let format = time::macros::format_description!("[year]-[month]-[day] [hour]:[minute]:[second]Z");
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| time::OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|moment| moment.format(format).ok())
        .unwrap_or_else(|| format!("@{seconds}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::{Counted, Figures, Fill};

    #[test]
    fn a_status_names_drift_trial_and_alarm() {
        let status = Status {
            loaded: true,
            since: Some(1_700_000_000),
            on_trial_until: Some(1_700_000_060),
            drift: vec!["chain input: rule 3 differs".to_owned()],
            warnings: vec!["w".to_owned()],
            bans: 9,
            figures: Figures {
                sets: vec![Fill { set: "ban4".to_owned(), used: 8, size: 10 }],
                counters: vec![Counted { counter: "c_ban".to_owned(), packets: 12 }],
                evicted: 1,
            },
        };
        assert_eq!(
            shown(&status),
            "loaded since 2023-11-14 22:13:20Z\n\
             ON TRIAL until 2023-11-14 22:14:20Z: rolled back unless confirmed\n\
             drift: chain input: rule 3 differs\n\
             warning: w\n\
             bans in the kernel: 9, evicted: 1\n\
             set ban4               8 of 10  ALARM\n\
             counter c_ban                  12 packets"
        );
        assert_eq!(verdict(&status).unwrap_err().code, crate::command::FAILED);
        assert!(verdict(&Status { loaded: true, ..Status::default() }).is_ok());
        assert!(verdict(&Status::default()).is_err());
    }

    #[test]
    fn a_file_that_is_not_there_is_named_by_this_command_s_own_option() {
        let told = settings(Path::new("/nope/firewall.toml")).unwrap_err().lines;
        assert!(told[0].ends_with("; name the file with --firewall-config"), "{told:?}");
    }

    #[test]
    fn a_trial_has_a_least_and_a_longest_time() {
        assert_eq!(trial("60s"), Ok(Duration::from_secs(60)));
        assert!(trial("500ms").is_err() && trial("2h").is_err() && trial("60").is_err());
    }
}
