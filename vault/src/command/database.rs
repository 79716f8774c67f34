//! `vault database …`: asks the running vault about the ledger's copy, and hands an operator's
//! decisions to it. Prints what was done and what is left to do; decides nothing.

use std::path::Path;
use std::time::Duration;

use clap::{Args, Subcommand};
use http::{Method, Request};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;

use super::control::{Progress, call, json, whole};
use super::{CommandError, Output};
use crate::config::Config;
use crate::sequence::database::open::look_over;
use crate::sequence::database::operator::{Decided, Report, Server};
use crate::sequence::database::{DatabaseError, Host, Kind, Lineage, Place, Role};
use crate::{rooms, sequence};

/// Servers that are away are waited for; a promotion and the replay after it take longer.
const LOOK: Duration = Duration::from_secs(15);
const DECIDE: Duration = Duration::from_secs(90);

/// `vault database …`
#[derive(Debug, Clone, Subcommand)]
pub enum Verb {
    /// Show every server of the database: primary or standby, its history, how far behind, what it holds
    Status,
    /// Make a standby the one that is written to (on the vault that owns the ledger)
    ///
    /// Checks that its history and its entries are those that the journals know, promotes it,
    /// forbids the servers that may still take writes, replays the entries that it lacks, and
    /// tells what is left to do on the other side, also with standbys that are away. Numbers go on
    /// meanwhile. The server must be named: without --host nothing is done, and the standbys that
    /// answer are told.
    #[command(name = "take-over")]
    TakeOver(Which),
    /// Never write to this server again, until it is taken back
    Fence(Which),
    /// Take a server back that was made a standby again; without --host: compare a database again
    /// that was refused and has been put right
    Rejoin(Which),
}

/// Which server is meant.
#[derive(Debug, Clone, Args)]
pub struct Which {
    /// As the configuration names it: HOST:PORT, or HOST
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
}

impl Verb {
    /// Asks, and prints the answer. True if nothing needs an operator.
    ///
    /// # Errors
    /// The vault does not run, or refuses.
    pub async fn run(&self, socket: &Path, output: &mut Output<'_>) -> Result<bool, CommandError> {
        let (path, which) = match self {
            Verb::Status => {
                let report: Report = ask(socket, Method::GET, "/v1/database", LOOK).await?;
                output.show(&report, &told(&report))?;
                return Ok(report.alarms.is_empty());
            }
            Verb::TakeOver(which) => ("take-over", which),
            Verb::Fence(which) if which.host.is_none() => {
                return Err(CommandError::Usage("say which server: vault database fence --host HOST"));
            }
            Verb::Fence(which) => ("fence", which),
            Verb::Rejoin(which) => ("rejoin", which),
        };
        let host = which.host.as_ref().map_or_else(String::new, |host| {
            format!("?host={}", utf8_percent_encode(host, NON_ALPHANUMERIC))
        });
        let path = format!("/v1/database/{path}{host}");
        let decided: Decided = ask(socket, Method::POST, &path, DECIDE).await?;
        let mut text = String::new();
        decided.done.iter().for_each(|done| text.push_str(&format!("done: {done}\n")));
        decided.to_do.iter().for_each(|to_do| text.push_str(&format!("now:  {to_do}\n")));
        output.show(&decided, &text)?;
        Ok(true)
    }
}

/// What `vault check` finds of the database's servers, a line each, and what would keep vault from
/// starting; changes nothing.
pub async fn check(config: &Config) -> (Vec<String>, Vec<String>) {
    let (mut found, mut faults) = (Vec::new(), Vec::new());
    let journal = rooms::journal(&config.state);
    faults.extend(sequence::fits(&journal, config.database.as_ref()).err().map(|error| error.to_string()));
    let Some(settings) = &config.database else { return (found, faults) };
    let looks = look_over(settings, false).await;
    let waits = match settings.role {
        Role::Copy => "numbers do not wait for it",
        Role::Truth => "numbers are given while most of the members answer",
    };
    for (place, look) in looks {
        match look {
            Ok(host) => {
                let told = about(&Server { host, lacks: None, written: false }, None);
                found.push(format!("database {}", told.lines().next().unwrap_or_default()));
            }
            Err(error) if error.needs_operator() => faults.push(format!("sequence.database: {error}")),
            Err(error) => {
                let said = format!("{}{}", error.said(), reached(&error, settings.kind));
                found.push(format!("database {place}: WARNING: {said} ({waits})"));
            }
        }
    }
    (found, faults)
}

/// Something listens there and does not speak as this kind of database does.
fn reached(error: &DatabaseError, kind: Kind) -> String {
    match error {
        DatabaseError::Away { why, .. } if !why.starts_with("no connection") => {
            format!("; is it {kind:?} that listens there?")
        }
        _ => String::new(),
    }
}

async fn ask<A: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    patience: Duration,
) -> Result<A, CommandError> {
    let request =
        Request::builder().method(method).uri(path).body(whole("")).map_err(std::io::Error::other)?;
    let late = |_| CommandError::Late { socket: socket.to_owned(), deadline: patience };
    let exchange = async { json(socket, call(socket, request, patience, &Progress::default()).await?).await };
    tokio::time::timeout(patience, exchange).await.map_err(late)?
}

fn told(report: &Report) -> String {
    let mut text = String::new();
    for alarm in &report.alarms {
        text.push_str(&format!("ALARM: {alarm}\n"));
    }
    let phase = match &report.why {
        Some(why) => why.clone(),
        None => format!("{:?}", report.phase).to_lowercase(),
    };
    text.push_str(&match report.role {
        Role::Copy => format!(
            "copy: {phase}; it holds {} entries of {} in the journals\n",
            report.holds, report.final_entries
        ),
        Role::Truth => {
            format!("etcd is the ledger: {phase}; this vault's journal has {} entries of it\n", report.holds)
        }
    });
    if let Some(known) = &report.known {
        text.push_str(&format!("the journals know: {known}\n"));
    }
    for server in &report.servers {
        text.push_str(&about(server, primary(report)));
    }
    text
}

/// Whom the standbys follow: the one that is written to, or the only one that takes writes.
fn primary(report: &Report) -> Option<&Host> {
    let mut primaries =
        report.servers.iter().filter(|server| server.host.place == Place::Primary && !server.host.fenced);
    let written = report.servers.iter().find(|server| server.written);
    let one = written.or_else(|| primaries.next().filter(|_| primaries.next().is_none()))?;
    Some(&one.host)
}

/// How far a standby is behind, or how far a primary's standbys are.
fn behind(host: &Host, primary: Option<&Host>) -> Option<String> {
    let bytes = host.lag_bytes;
    if host.place == Place::Primary {
        return Some(match bytes? {
            0 => "no standby of it is behind".to_owned(),
            bytes => format!("its slowest standby is {bytes} bytes behind"),
        });
    }
    let entries = primary.and_then(|primary| {
        let end = |host: &Host| host.holds.map(|tail| tail.index);
        let behind = end(primary)?.saturating_sub(end(host)?);
        Some(format!("{behind} entries behind the primary"))
    });
    let replayed = bytes.map(|bytes| match bytes {
        0 => "all it received is replayed".to_owned(),
        bytes => format!("{bytes} bytes of what it received are not replayed"),
    });
    match (entries, replayed) {
        (Some(entries), Some(replayed)) => Some(format!("{entries} ({replayed})")),
        (entries, replayed) => entries.or(replayed),
    }
}

fn about(server: &Server, primary: Option<&Host>) -> String {
    let host = &server.host;
    let place = match host.place {
        Place::Primary if host.leads == Some(true) => "member, leads",
        Place::Primary if host.leads == Some(false) => "member, follows",
        Place::Away if host.leads.is_some() => "answers, but has no quorum",
        Place::Primary => "primary",
        Place::Standby => "standby",
        Place::Away => "AWAY",
        Place::Unfit => "CANNOT BE USED",
    };
    let mut text = format!("{}: {place}", host.host);
    if host.fenced {
        text.push_str(", fenced");
    }
    if server.written {
        text.push_str(", written to");
    }
    if let Some(tail) = host.holds {
        text.push_str(&format!(", holds {} entries", tail.index));
    }
    if let Some(behind) = behind(host, primary) {
        text.push_str(&format!(", {behind}"));
    }
    text.push('\n');
    for line in
        [&host.why, &server.lacks, &host.lineage.as_ref().map(Lineage::to_string)].into_iter().flatten()
    {
        text.push_str(&format!("  {line}\n"));
    }
    host.replication.iter().for_each(|line| text.push_str(&format!("  {line}\n")));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::database::copy::Phase;
    use crate::sequence::entry::Tail;

    #[test]
    fn a_standby_is_told_behind_the_primary_and_the_primary_of_its_standby() {
        let server = |name: &str, place, holds, lag, written| {
            let mut host = Host::closed(name.to_owned(), &DatabaseError::NoPrimary(String::new()));
            (host.place, host.why, host.lag_bytes) = (place, None, Some(lag));
            host.holds = Some(Tail { index: holds, ..Tail::default() });
            Server { host, lacks: None, written }
        };
        let mut report = Report {
            kind: Kind::Postgres,
            role: Role::Copy,
            phase: Phase::Current,
            why: None,
            final_entries: 6,
            holds: 6,
            known: None,
            servers: vec![
                server("a", Place::Primary, 6, 2488, true),
                server("b", Place::Standby, 4, 0, false),
            ],
            alarms: Vec::new(),
        };
        let text = told(&report);
        assert!(
            text.contains(
                "a: primary, written to, holds 6 entries, its slowest standby is 2488 bytes behind\n"
            ),
            "{text}"
        );
        let words =
            "b: standby, holds 4 entries, 2 entries behind the primary (all it received is replayed)\n";
        assert!(text.contains(words), "{text}");
        // Behind whom is not known while the primary is away.
        report.servers.remove(0);
        let text = told(&report);
        assert!(text.contains("b: standby, holds 4 entries, all it received is replayed\n"), "{text}");
    }

    #[test]
    fn a_member_of_etcd_is_told_as_a_member() {
        let mut host = Host::closed("a".to_owned(), &DatabaseError::NoPrimary(String::new()));
        host.why = None;
        for (place, leads, words) in [
            (Place::Primary, Some(true), "a: member, leads\n"),
            (Place::Primary, Some(false), "a: member, follows\n"),
            (Place::Away, Some(false), "a: answers, but has no quorum\n"),
            (Place::Away, None, "a: AWAY\n"),
        ] {
            let host = Host { place, leads, ..host.clone() };
            assert_eq!(about(&Server { host, lacks: None, written: false }, None), words);
        }
    }

    #[test]
    fn alarms_come_first_and_every_server_is_told() {
        let mut host = Host::closed("b:5432".to_owned(), &DatabaseError::NoPrimary(String::new()));
        host.place = Place::Primary;
        host.why = None;
        host.lineage = Some(Lineage {
            system: "7".to_owned(),
            timeline: 2,
            forks: Some(vec![(1, 0x0300_0158)]),
            at: 0x0300_0200,
        });
        let report = Report {
            kind: Kind::Postgres,
            role: Role::Copy,
            phase: Phase::Current,
            why: None,
            final_entries: 9,
            holds: 9,
            known: None,
            servers: vec![Server { host, lacks: None, written: true }],
            alarms: vec!["two".to_owned()],
        };
        assert_eq!(
            told(&report),
            "ALARM: two\ncopy: current; it holds 9 entries of 9 in the journals\nb:5432: primary, written to\n  \
             system 7, timeline 2 at 0/3000200, left timeline 1 at 0/3000158\n"
        );
    }
}
