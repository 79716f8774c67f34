//! `edge bans`, `edge why` and `edge pentest`: what an operator types → a question to the edge
//! that runs here, and its answer as text or JSON. Must not know how bans are kept.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;
use ipnet::IpNet;
use shared::config::parse_duration;

use super::{FAILED, Failure, block_on, pretty, read, say};
use crate::admin::ask_bans;
use crate::ban::words::{Answer, Question};

/// Most bans in one answer.
const MOST_SHOWN: usize = 100_000;

/// `edge bans …`
#[derive(Clone, Debug, Subcommand)]
pub enum BansVerb {
    /// Show who is banned, by whom and until when.
    List {
        /// Most bans to show.
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        limit: u32,
    },
    /// Ban addresses or networks: in the kernel, their open connections, their requests. A ban that you
    /// gave before is replaced; a jail's longer one keeps its end.
    Add {
        /// Addresses, or networks not wider than /24 or /48.
        #[arg(required = true, value_parser = network)]
        networks: Vec<IpNet>,
        /// How long: 10m, 2h, 7d.
        #[arg(long = "for", value_name = "TIME", default_value = "10m", value_parser = duration)]
        lasting: Duration,
        /// Why, for whoever asks later.
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// End every ban that covers or overlaps these.
    Remove {
        /// Addresses or networks.
        #[arg(required = true, value_parser = network)]
        networks: Vec<IpNet>,
    },
    /// End every ban.
    Clear,
    /// Ban nobody for a while; it arms itself again. Bans that stand go on, detection goes on.
    Off {
        /// How long: 10m, 2h, at most 7d.
        #[arg(long = "for", value_name = "TIME", value_parser = duration)]
        lasting: Duration,
    },
    /// Arm again before the time of `off` is over.
    On,
    /// Let a jail ban again that went log-only because it banned too many.
    Release {
        /// The jail's name.
        jail: String,
    },
    /// Show how the ban engine does.
    Status,
    /// Show each jail: what it does, has counted and banned since edge started, and reads.
    Jails,
}

/// `edge pentest …`
#[derive(Clone, Debug, Subcommand)]
pub enum PentestVerb {
    /// Nobody from this network is banned or slowed down while the test lasts; detection goes on.
    Start {
        /// Where the testers come from.
        #[arg(long, value_parser = network)]
        network: IpNet,
        /// How long, at most 30d; it ends by itself, also after a restart.
        #[arg(long = "for", value_name = "TIME", value_parser = duration)]
        lasting: Duration,
        /// Who ordered it: a ticket's number, for the record.
        #[arg(long)]
        ticket: String,
    },
    /// End it now.
    Stop {
        /// Only the one of this ticket.
        #[arg(long)]
        ticket: Option<String>,
    },
    /// Show which are under way, and which were.
    Status,
    /// Show who would have been banned, by which jail and line.
    Report {
        /// The one of this ticket; without, the last one.
        #[arg(long)]
        ticket: Option<String>,
    },
}

/// Where the running edge is asked: `socket`, or what `config` says.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// `--config`
    pub config: &'a Path,
    /// `--socket`
    pub socket: Option<&'a PathBuf>,
    /// `--json`
    pub json: bool,
}

/// Runs one of `edge bans`.
///
/// # Errors
/// No edge answers, or it refuses.
pub fn bans(verb: &BansVerb, asked: Asked<'_>) -> Result<(), Failure> {
    let question = match verb.clone() {
        BansVerb::List { limit } => {
            Question::List { limit: usize::try_from(limit).unwrap_or(MOST_SHOWN).min(MOST_SHOWN) }
        }
        BansVerb::Add { networks, lasting, reason } => {
            Question::Add { networks, seconds: lasting.as_secs(), reason }
        }
        BansVerb::Remove { networks } => Question::Remove { networks },
        BansVerb::Clear => Question::Clear,
        BansVerb::Off { lasting } => Question::Off { seconds: lasting.as_secs() },
        BansVerb::On => Question::On,
        BansVerb::Release { jail } => Question::Release { jail },
        BansVerb::Status => Question::Summary,
        BansVerb::Jails => Question::Jails,
    };
    ask(&question, asked)
}

/// Runs one of `edge pentest`.
///
/// # Errors
/// No edge answers, or it refuses.
pub fn pentest(verb: &PentestVerb, asked: Asked<'_>) -> Result<(), Failure> {
    let question = match verb.clone() {
        PentestVerb::Start { network, lasting, ticket } => {
            Question::PentestStart { network, seconds: lasting.as_secs(), ticket }
        }
        PentestVerb::Stop { ticket } => Question::PentestStop { ticket },
        PentestVerb::Status => Question::PentestStatus,
        PentestVerb::Report { ticket } => Question::PentestReport { ticket },
    };
    ask(&question, asked)
}

/// Runs `edge why`.
///
/// # Errors
/// No edge answers, or it refuses.
pub fn why(address: IpAddr, asked: Asked<'_>) -> Result<(), Failure> {
    ask(&Question::Why { address: address.to_canonical() }, asked)
}

fn ask(question: &Question, asked: Asked<'_>) -> Result<(), Failure> {
    let socket = match asked.socket {
        Some(socket) => socket.clone(),
        None => read(asked.config)?.control_socket,
    };
    match block_on(ask_bans(&socket, question))?.map_err(Failure::run)? {
        Answer::Refused { why } => Err(Failure::run(why)),
        answer => {
            say(&if asked.json { pretty(&answer)? } else { answer.to_string() })?;
            verdict(answer)
        }
    }
}

/// An order that was done in part has failed.
fn verdict(answer: Answer) -> Result<(), Failure> {
    match answer {
        Answer::Changed { undone, .. } if !undone.is_empty() => Err(Failure { code: FAILED, lines: undone }),
        _ => Ok(()),
    }
}

/// An address or a network, truncated; IPv4-mapped addresses are IPv4's.
///
/// # Errors
/// What to write instead.
pub fn network(text: &str) -> Result<IpNet, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(crate::ban::Prefixes::default().network(address));
    }
    text.parse::<IpNet>()
        .map(|network| network.trunc())
        .map_err(|_| "write an address or a network, such as 203.0.113.7 or 203.0.113.0/24".to_owned())
}

/// One client's address.
///
/// # Errors
/// What to write instead.
pub fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| {
        "write one address, such as 203.0.113.7 or 2001:db8::7; networks stand in `edge bans list`".to_owned()
    })
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text)
        .filter(|time| time.as_secs() > 0)
        .ok_or_else(|| "write a time such as 10m, 2h or 7d".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_ipv6_address_stands_for_its_network() {
        assert_eq!(network("2001:db8::7").unwrap().to_string(), "2001:db8::/64");
        assert_eq!(network("203.0.113.7").unwrap().to_string(), "203.0.113.7/32");
        assert_eq!(network("::ffff:203.0.113.7").unwrap().to_string(), "203.0.113.7/32");
        assert_eq!(network("203.0.113.9/24").unwrap().to_string(), "203.0.113.0/24");
        assert!(network("all").unwrap_err().contains("203.0.113.0/24"));
    }

    #[test]
    fn who_is_no_address_is_told_what_one_looks_like() {
        assert_eq!(address("2001:db8::7").unwrap().to_string(), "2001:db8::7");
        for text in ["nobody", "203.0.113.0/24", ""] {
            assert!(address(text).unwrap_err().contains("203.0.113.7"), "{text}");
        }
    }

    #[test]
    fn an_order_that_was_done_in_part_fails_with_what_was_not_done() {
        let changed = |undone: &[&str]| Answer::Changed {
            done: "ended".to_owned(),
            bans: Vec::new(),
            notes: Vec::new(),
            undone: undone.iter().map(ToString::to_string).collect(),
        };
        assert!(verdict(changed(&[])).is_ok());
        let failure = verdict(changed(&["the kernel was not told"])).unwrap_err();
        assert_eq!((failure.code, &failure.lines[..]), (FAILED, &["the kernel was not told".to_owned()][..]));
    }
}
