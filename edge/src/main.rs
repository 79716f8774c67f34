//! Arguments and exit code; no logic. 0 is done, 1 failed at run time, 2 is wrong usage,
//! 78 (EX_CONFIG) a bad configuration.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use edge::admin::ask_status;
use edge::command::bans::{self, Asked, BansVerb, PentestVerb};
use edge::command::fail2ban::{self, Fail2banVerb};
use edge::command::firewall::{self, FirewallVerb};
use edge::command::replay;
use edge::command::{Failure, WRONG_USAGE, block_on, pretty, read, say};
use edge::config::Config;
use shared::enrol::Enrolment;
use shared::telemetry::{self, Format};
use shared::tls::Role;

/// Holds its memory better than the system's under many short-lived buffers on many threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The DMZ program: ends TLS, limits clients, routes to upstreams, and is the handlers'
/// gateway to the vault pair.
#[derive(Debug, Parser)]
#[command(name = "edge", version, max_term_width = 100)]
struct Arguments {
    /// The configuration file.
    #[arg(long, global = true, value_name = "FILE", default_value = "/etc/edge/edge.toml")]
    config: PathBuf,
    /// Answer in JSON; with serve, log in JSON.
    #[arg(long, global = true)]
    json: bool,
    /// How much to log; the variable `RUST_LOG`, where set, says it in more detail.
    #[arg(long, global = true, value_name = "LEVEL", default_value = "info",
          value_parser = ["error", "warn", "info", "debug", "trace"])]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until TERM (drains; a second TERM ends at once). HUP reads the certificates, the
    /// filters, the jails and whom they never ban again.
    Serve,
    /// Report every fault of the configuration, and what would fail at start; start nothing.
    Check,
    /// Show how the edge that runs here does.
    Status {
        /// Ask on this control socket; without it, the configuration says which.
        #[arg(long, value_name = "FILE")]
        socket: Option<PathBuf>,
    },
    /// Get this edge's certificate for the gateway from a vault, with a token from `vault pki token`.
    Enrol {
        /// The vault's name and address: NAME=ADDRESS:PORT.
        #[arg(long, value_name = "NAME=ADDRESS", value_parser = vault_address)]
        vault: (String, SocketAddr),
        /// The single-use token.
        #[arg(long)]
        token: String,
        /// Give up the key that is there already.
        #[arg(long)]
        replace: bool,
    },
    /// Who is banned; ban and end bans.
    Bans {
        #[command(subcommand)]
        verb: BansVerb,
        /// Ask on this control socket; without it, the configuration says which.
        #[arg(long, global = true, value_name = "FILE")]
        socket: Option<PathBuf>,
    },
    /// All that is known of one address: bans, the lines that led to them, counters, the kernel.
    Why {
        /// The client.
        #[arg(value_parser = bans::address)]
        address: IpAddr,
        /// Ask on this control socket; without it, the configuration says which.
        #[arg(long, value_name = "FILE")]
        socket: Option<PathBuf>,
    },
    /// A penetration test: no bans and no limits for a network, detection goes on.
    Pentest {
        #[command(subcommand)]
        verb: PentestVerb,
        /// Ask on this control socket; without it, the configuration says which.
        #[arg(long, global = true, value_name = "FILE")]
        socket: Option<PathBuf>,
    },
    /// Who would be banned by the configuration of --config, had it been in force for these logs.
    Replay(replay::Arguments),
    /// This host's packet filter: print, apply, confirm, status, remove.
    Firewall {
        #[command(subcommand)]
        verb: FirewallVerb,
    },
    /// fail2ban's configuration: import it, try its filters.
    Fail2ban {
        #[command(subcommand)]
        verb: Fail2banVerb,
    },
    /// Print the version.
    Version,
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return usage(&error),
    };
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            for line in &failure.lines {
                complain(line);
            }
            ExitCode::from(failure.code)
        }
    }
}

/// Help and version, which clap sends where they belong, and wrong usage, said as all errors are.
fn usage(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind::{DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion};
    if matches!(error.kind(), DisplayHelp | DisplayHelpOnMissingArgumentOrSubcommand | DisplayVersion) {
        error.exit()
    }
    for line in error.to_string().lines().filter(|line| !line.trim().is_empty()) {
        complain(line.trim().trim_start_matches("error: "));
    }
    ExitCode::from(WRONG_USAGE)
}

/// One fault, one line, whatever a library's text holds.
fn complain(line: &str) {
    let line = line.split(['\r', '\n']).map(str::trim).collect::<Vec<_>>().join(" ");
    let _ = writeln!(std::io::stderr(), "edge: {line}");
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let Arguments { config, json, log, command } = arguments;
    let format = if *json && matches!(command, Command::Serve) { Format::Json } else { Format::Text };
    match command {
        Command::Serve => {
            let file = config;
            let config = read(file)?;
            telemetry::start(&format!("{log},{}", edge::proxy::QUIET), format);
            edge::serve(config, file).map_err(Failure::run)
        }
        Command::Check => check(config, *json),
        Command::Status { socket } => {
            let socket = match socket {
                Some(socket) => socket.clone(),
                None => read(config)?.control_socket,
            };
            let status = block_on(ask_status(&socket))?.map_err(Failure::run)?;
            let shown = if *json { pretty(&status)? } else { status.to_string() };
            say(shown.trim_end())
        }
        Command::Enrol { vault, token, replace } => {
            telemetry::start(log, format);
            enrol(config, *json, vault, token, *replace)
        }
        Command::Bans { verb, socket } => bans::bans(verb, asked(config, socket.as_ref(), *json)),
        Command::Why { address, socket } => bans::why(*address, asked(config, socket.as_ref(), *json)),
        Command::Pentest { verb, socket } => bans::pentest(verb, asked(config, socket.as_ref(), *json)),
        Command::Replay(arguments) => replay::run(arguments, config, *json),
        Command::Firewall { verb } => firewall::run(verb, *json),
        Command::Fail2ban { verb } => fail2ban::run(verb, *json),
        Command::Version if *json => {
            say(&serde_json::json!({ "version": env!("CARGO_PKG_VERSION") }).to_string())
        }
        Command::Version => say(concat!("edge ", env!("CARGO_PKG_VERSION"))),
    }
}

fn asked<'a>(config: &'a Path, socket: Option<&'a PathBuf>, json: bool) -> Asked<'a> {
    Asked { config, socket, json }
}

fn check(file: &Path, json: bool) -> Result<(), Failure> {
    let found = match Config::read(file) {
        Ok(config) => edge::check(file, &config),
        Err(faults) => faults.0,
    };
    let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
    if json {
        let fault = |fault: &shared::config::Fault| {
            serde_json::json!({
                "file": fault.file, "line": fault.line, "column": fault.column, "what": fault.what,
            })
        };
        let faults: Vec<serde_json::Value> = found.iter().map(fault).collect();
        say(&pretty(&serde_json::json!({ "good": faults.is_empty(), "faults": faults }))?)?;
    } else if lines.is_empty() {
        say(&format!("{}: good", file.display()))?;
    }
    if lines.is_empty() { Ok(()) } else { Err(Failure::configuration(lines)) }
}

fn enrol(
    file: &Path,
    json: bool,
    (vault, address): &(String, SocketAddr),
    token: &str,
    replace: bool,
) -> Result<(), Failure> {
    let config = read(file)?;
    let Some(gateway) = config.gateway else {
        let what = format!(
            "{}: gateway: missing; the certificate is for the gateway, so write the [gateway] section first",
            file.display()
        );
        return Err(Failure::configuration([what]));
    };
    let enrolment = Enrolment {
        vault,
        address: *address,
        token,
        files: &gateway.tls,
        replace,
        expected: Some((Role::Edge, None)),
    };
    let enrolled = block_on(enrolment.run())?.map_err(|error| Failure::run(format!("enrol: {error}")))?;
    let (identity, files) = (&enrolled.identity, &enrolled.files);
    if json {
        let shown = serde_json::json!({
            "identity": identity, "not_after": enrolled.not_after,
            "certificate": files.certificate, "key": files.key, "authority": files.authority,
        });
        return say(&pretty(&shown)?);
    }
    say(&format!(
        "enrolled as {role} {name} of {owner}, until {until} (serial {serial})\n\
         certificate {certificate}\nkey         {key}\nauthority   {authority}",
        role = identity.role,
        name = identity.name,
        owner = identity.owner,
        until = enrolled.not_after,
        serial = identity.serial,
        certificate = files.certificate.display(),
        key = files.key.display(),
        authority = files.authority.display(),
    ))
}

fn vault_address(text: &str) -> Result<(String, SocketAddr), String> {
    text.split_once('=')
        .and_then(|(name, address)| Some((name.to_owned(), address.parse().ok()?)))
        .filter(|(name, _)| shared::tls::is_name(name))
        .ok_or_else(|| "write the vault's name and IP address, such as vault-a=10.0.0.5:7443".to_owned())
}
