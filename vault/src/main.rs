//! Arguments and exit code; no logic. 78: bad configuration, 2: wrong usage, 1: failed, 0: done.

use std::io::Write;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use shared::api::TokenRequest;
use shared::config::Faults;
use shared::telemetry::{self, Format};
use shared::tls::Role;
use vault::command::{self, CommandError, Holder, Output};
use vault::config::Config;

/// A number takes some ten small allocations of ours: a tenth more numbers a second than by the
/// system's. SQLite keeps to the system's: in its place (`override`) this one does not start below
/// what is loaded before it, such as libfaketime.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// EX_CONFIG of sysexits.h.
const BAD_CONFIGURATION: u8 = 78;

const CONFIGURATION: &str = "/etc/vault/vault.toml";
/// Directives for the log: what a peer says at the end of a TLS session is told in our words where it matters.
const QUIET: &str = "rustls=error";

#[derive(Parser)]
#[command(name = "vault", version, about = "Numbers, messages and files of the green zone, always as a pair")]
struct Arguments {
    /// The configuration
    #[arg(long, global = true, value_name = "FILE", default_value = CONFIGURATION)]
    config: PathBuf,
    /// Answer (and log) in JSON
    #[arg(long, global = true)]
    json: bool,
    /// Log level: error, warn, info, debug, or tracing's directives
    #[arg(long, global = true, value_name = "LEVEL", default_value = "info")]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run until TERM; HUP reads the certificates again
    Serve,
    /// Report everything that would keep vault from starting
    Check,
    /// Ask the running vault how it is; exit code 1 where it is not well
    ///
    /// The first line is the verdict. With --json the whole of it, `well` and `wanting` among it, and
    /// exit code 0 whatever it says.
    Status,
    /// Certificates: the authority, enrolment, revocation
    #[command(subcommand)]
    Pki(Pki),
    /// Files: store, read, look, delete (the vault must be running)
    #[command(subcommand)]
    File(command::file::Verb),
    /// Records: read, write, list (the vault must be running)
    #[command(subcommand)]
    Record(command::record::Verb),
    /// Numbers: define series, reserve, confirm, export, verify; what to do when a journal is lost
    #[command(subcommand)]
    Number(command::number::Verb),
    /// The ledger's copy in a database: its servers, swap-over (the vault must be running)
    #[command(subcommand)]
    Database(command::database::Verb),
    /// What is carried between brokers (the vault must be running)
    #[command(subcommand)]
    Bridge(command::bridge::Verb),
    /// Queues of the embedded broker: send, look, move, purge, dead letters (the vault must be running)
    #[command(subcommand)]
    Message(command::message::Verb),
    /// The embedded broker: who may connect
    #[command(subcommand)]
    Broker(command::broker::Verb),
    /// The storage keys (age): making, rotating, rewrapping
    #[command(subcommand)]
    Keys(Keys),
    /// Jobs by schedules, and deliveries to handlers (the vault must be running)
    #[command(subcommand)]
    Worker(command::worker::Verb),
    /// Print the version
    Version,
}

#[derive(Subcommand)]
enum Pki {
    /// Make the authority and this vault's own certificate, once for both vaults
    Init {
        /// The authority's name, usually the organisation's
        #[arg(long, value_name = "NAME")]
        authority: String,
        /// A further DNS name of this vault; may be repeated
        #[arg(long, value_name = "NAME")]
        dns: Vec<String>,
    },
    /// Make a single-use token for one enrolment (the vault must be running)
    Token {
        /// edge, vault or admin
        #[arg(long)]
        role: Role,
        /// On whose behalf; series and files belong to owners
        #[arg(long)]
        owner: String,
        /// The host or person
        #[arg(long)]
        name: String,
    },
    /// List every certificate (the vault must be running)
    List,
    /// Take a certificate back and cut its live sessions (the vault must be running)
    Revoke {
        /// As `vault pki list` shows it
        serial: String,
    },
    /// Enrol this vault, or with --out somebody else, with a token
    Enrol(Enrol),
}

#[derive(Args)]
struct Enrol {
    /// The vault that made the token, and where it listens: NAME=ADDRESS:PORT
    #[arg(long, value_name = "NAME=ADDRESS", value_parser = dial)]
    vault: (String, SocketAddr),
    /// As `vault pki token` printed it
    #[arg(long)]
    token: String,
    /// Put key and certificates there instead of where this vault's configuration says
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Give up a key that is there already
    #[arg(long)]
    replace: bool,
}

#[derive(Subcommand)]
enum Keys {
    /// Make the storage key and the escrow key, once for both vaults; never overwrites
    Init {
        /// Where the storage key goes: storage.key_file of both vaults, and by default that of the
        /// configuration, or /etc/vault/storage.key without one
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Where the escrow key goes, to be taken offline at once
        #[arg(long, value_name = "FILE", default_value = "escrow.key")]
        escrow: PathBuf,
    },
    /// Show every key, and how many records are sealed to it (the vault must be running)
    List,
    /// Put a new key before those in storage.key_file; it is used once both vaults have it
    Rotate,
    /// Make another escrow key; storage.escrow_recipient of both vaults then names it
    Escrow {
        /// Where it goes, to be taken offline at once
        #[arg(long, value_name = "FILE", default_value = "escrow.key")]
        file: PathBuf,
    },
    /// Bring every record to the active key and the escrow (the vault must be running)
    ///
    /// Bodies are not touched. It goes on by itself after a restart of vault; one vault is enough
    /// for both.
    Rewrap {
        /// Most replicas a second
        #[arg(long, value_name = "COUNT", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
        per_second: u32,
    },
}

fn main() -> ExitCode {
    // The allocator asks for huge pages, which take 20 MiB where a vault at rest needs 3. A kernel that
    // cannot do without them runs vault as well.
    let _without = rustix::thread::disable_transparent_huge_pages(true);
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            if let Some(faults) = error.downcast_ref::<Faults>() {
                faults.0.iter().for_each(|fault| complain(&fault.to_string()));
                return ExitCode::from(BAD_CONFIGURATION);
            }
            if is_closed_pipe(&error) {
                // Whoever reads our output has seen enough.
                return ExitCode::SUCCESS;
            }
            // Our errors name their cause in their own text.
            complain(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let printing = match error.downcast_ref() {
        Some(CommandError::Print(error)) => Some(error),
        _ => error.downcast_ref(),
    };
    printing.is_some_and(|error: &std::io::Error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    if let Command::Version = arguments.command {
        writeln!(std::io::stdout(), "vault {}", env!("CARGO_PKG_VERSION"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let config = || Config::read(&arguments.config);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| anyhow::anyhow!("the runtime cannot start: {error}; are threads limited here?"))?;
    if let Command::Check = arguments.command {
        let config = config()?;
        // What only a running vault knows, that one is asked for.
        let trouble = runtime.block_on(command::keys::trouble(&config.api.control_socket));
        let looked = [
            runtime.block_on(command::database::check(&config)),
            runtime.block_on(command::bridge::check(&config)),
        ];
        let (found, faults): (Vec<_>, Vec<_>) = looked.into_iter().unzip();
        let faults = trouble.into_iter().chain(faults.into_iter().flatten());
        return check(&config, &arguments.config, found.concat(), faults);
    }
    let mut stdout = std::io::stdout();
    let mut output = Output { to: &mut stdout, json: arguments.json };
    runtime.block_on(async {
        match &arguments.command {
            Command::Serve => {
                let config = config()?;
                let format = if arguments.json { Format::Json } else { Format::Text };
                telemetry::start(&format!("{},{QUIET}", arguments.log), format);
                vault::serve(config).await?;
            }
            Command::Status => {
                let well = command::status(&config()?.api.control_socket, &mut output).await?;
                // A program reads `well` in the document.
                if !well && !arguments.json {
                    return Ok(ExitCode::FAILURE);
                }
            }
            Command::Pki(Pki::Init { authority, dns }) => {
                command::pki_init(&config()?, authority, dns, &mut output).await?;
            }
            Command::Pki(Pki::Token { role, owner, name }) => {
                let asked = TokenRequest { role: *role, owner: owner.clone(), name: name.clone() };
                command::pki_token(&config()?.api.control_socket, &asked, &mut output).await?;
            }
            Command::Pki(Pki::List) => command::pki_list(&config()?.api.control_socket, &mut output).await?,
            Command::Pki(Pki::Revoke { serial }) => {
                command::pki_revoke(&config()?.api.control_socket, serial, &mut output).await?;
            }
            Command::Pki(Pki::Enrol(Enrol { vault: (name, address), token, out, replace })) => {
                if let Some(folder) = out {
                    let holder = Holder::Folder(folder);
                    command::pki_enrol(name, *address, token, holder, *replace, &mut output).await?;
                } else {
                    let config = config()?;
                    let holder = Holder::Vault(&config);
                    command::pki_enrol(name, *address, token, holder, *replace, &mut output).await?;
                }
            }
            Command::File(verb) => verb.run(&config()?.api.control_socket, &mut output).await?,
            Command::Number(command::number::Verb::Verify(verify)) => verify.run(&mut output)?,
            Command::Number(verb) => verb.run(&config()?.api.control_socket, &mut output).await?,
            Command::Record(verb) => verb.run(&config()?.api.control_socket, &mut output).await?,
            Command::Bridge(verb) => verb.run(&config()?.api.control_socket, &mut output).await?,
            Command::Message(verb) => verb.run(&config()?.api.control_socket, &mut output).await?,
            Command::Worker(verb) => verb.run(&config()?.api.control_socket, &mut output).await?,
            Command::Database(verb) => {
                let well = verb.run(&config()?.api.control_socket, &mut output).await?;
                // A program reads the alarms in the document.
                if !well && !arguments.json {
                    return Ok(ExitCode::FAILURE);
                }
            }
            Command::Broker(verb) => verb.run(&config()?, &mut output).await?,
            Command::Keys(Keys::Init { file, escrow }) => {
                let file = match file {
                    Some(file) => file.clone(),
                    None => key_file(&arguments.config)?,
                };
                command::keys::init(&file, escrow, &mut output).await?;
            }
            Command::Keys(Keys::List) => {
                command::keys::list(&config()?.api.control_socket, &mut output).await?;
            }
            Command::Keys(Keys::Rotate) => {
                command::keys::rotate(&config()?.storage.key_file, &mut output).await?;
            }
            Command::Keys(Keys::Escrow { file }) => command::keys::escrow(file, &mut output).await?,
            Command::Keys(Keys::Rewrap { per_second }) => {
                command::keys::rewrap(&config()?.api.control_socket, *per_second, &mut output).await?;
            }
            Command::Version | Command::Check => {}
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Where the configuration says that the storage key lies. Before the first one is written, the usual
/// place is meant.
fn key_file(config: &Path) -> Result<PathBuf, Faults> {
    if config == Path::new(CONFIGURATION) && !config.exists() {
        return Ok(PathBuf::from("/etc/vault/storage.key"));
    }
    Config::read_key_file(config)
}

fn check(
    config: &Config,
    file: &Path,
    found: Vec<String>,
    trouble: impl Iterator<Item = String>,
) -> anyhow::Result<ExitCode> {
    let mut report = command::check::check(config);
    report.found.extend(found);
    report.faults.extend(trouble);
    for found in &report.found {
        writeln!(std::io::stdout(), "{found}")?;
    }
    report.faults.iter().for_each(|fault| complain(fault));
    if report.faults.is_empty() {
        writeln!(std::io::stdout(), "{}: fine, vault {} can start", file.display(), config.name)?;
        return Ok(ExitCode::SUCCESS);
    }
    Ok(ExitCode::FAILURE)
}

/// One line on standard error; if that is closed there is nobody to tell.
fn complain(what: &str) {
    let _ = writeln!(std::io::stderr(), "vault: {what}");
}

/// `NAME=ADDRESS:PORT`; a host name is looked up once.
fn dial(text: &str) -> Result<(String, SocketAddr), String> {
    let usage = "write NAME=ADDRESS:PORT, such as vault-a=10.0.0.5:7443";
    let (name, address) = text.split_once('=').ok_or(usage)?;
    let mut found = address.to_socket_addrs().map_err(|error| format!("{address:?}: {error}; {usage}"))?;
    let address = found.next().ok_or_else(|| format!("{address:?} has no address; {usage}"))?;
    Ok((name.to_owned(), address))
}
