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
use crate::sequence::database::open::check;
use crate::sequence::database::operator::{Decided, Report, Server};
use crate::sequence::database::{Lineage, Place, Role};

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
    /// tells what is left to do on the other side. Numbers go on meanwhile.
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

/// What would keep vault from starting, found out without changing anything.
pub async fn trouble(config: &Config) -> Option<String> {
    let checked = check(config.database.as_ref()?, false).await;
    checked.err().map(|error| format!("sequence.database: {error}"))
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
        text.push_str(&about(server));
    }
    text
}

fn about(server: &Server) -> String {
    let host = &server.host;
    let place = match host.place {
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
    if let Some(lag) = host.lag_bytes {
        text.push_str(&format!(", {lag} bytes behind"));
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
    use crate::sequence::database::{DatabaseError, Host, Kind};

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
