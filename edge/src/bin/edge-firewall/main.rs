//! The only privileged program: loads the base rules and adds bans, with CAP_NET_ADMIN and nothing
//! else. Takes addresses and times from edge, never rule text. Arguments and exit code; no logic.

mod book;
mod drift;
mod keeper;
mod netlink;
mod nft;
mod own;
mod privilege;
mod record;
mod serve;
mod warden;
mod watch;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use edge::firewall::settings::DEFAULT_FILE;
use shared::systemd::{Life, tell};
use shared::telemetry::{self, Format};

use warden::{Warden, WardenError};
use watch::Watch;

/// Failed at run time.
const FAILED: u8 = 1;
/// EX_CONFIG of sysexits.h.
const BAD_CONFIGURATION: u8 = 78;

/// edge's privileged helper: the firewall's rules, and bans by the order of edge.
#[derive(Debug, Parser)]
#[command(name = "edge-firewall", version, max_term_width = 100)]
struct Arguments {
    /// The configuration file; it and its folder must be root's.
    #[arg(long, global = true, value_name = "FILE", default_value = DEFAULT_FILE)]
    config: PathBuf,
    /// How much to log.
    #[arg(long, global = true, value_name = "LEVEL", default_value = "info",
          value_parser = ["error", "warn", "info", "debug", "trace"])]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Load the rules, then take orders until TERM. The rules and bans stay when it ends.
    Serve,
}

fn main() -> ExitCode {
    let Arguments { config, log, command: Command::Serve } = Arguments::parse();
    telemetry::start(&log, Format::Text);
    match run(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, lines)) => {
            for line in lines {
                let _nobody_reads = writeln!(std::io::stderr(), "edge-firewall: {line}");
            }
            ExitCode::from(code)
        }
    }
}

/// Opens what needs rights, gives up the rest, loads, says so, serves.
fn run(config: &Path) -> Result<(), (u8, Vec<String>)> {
    let failed = |error: &dyn std::fmt::Display| (FAILED, vec![error.to_string()]);
    privilege::keep_net_admin_only().map_err(|error| failed(&error))?;
    let mut warden = Warden::open(config).map_err(|error| match error {
        WardenError::Settings(faults) => {
            (BAD_CONFIGURATION, faults.0.iter().map(ToString::to_string).collect())
        }
        other => failed(&other),
    })?;
    serve::make_state_folder(&warden.settings.state_folder).map_err(|error| failed(&error))?;
    let listener = serve::listen(&warden.settings.socket).map_err(|error| failed(&error))?;
    let status = match warden.boot() {
        Ok(()) => "the rules are loaded".to_owned(),
        // It stays, so that the operator can apply what is right.
        Err(error) => {
            tracing::error!("firewall: {error}; THE RULES ARE NOT LOADED");
            format!("the rules are not loaded: {error}")
        }
    };
    tell(Life::Ready(&status));
    tracing::info!("firewall: {status}; orders are taken on {}", warden.settings.socket.display());
    let watch = Watch::open().map_err(|error| failed(&WardenError::Kernel(error)))?;
    serve::serve(&listener, warden, watch);
    Ok(())
}
