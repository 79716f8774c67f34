//! The operators' verbs: what `edge bans`, `why`, `pentest`, `replay`, `firewall` and `fail2ban`
//! do with their arguments. Joins rooms for one question each; decides nothing.

pub mod bans;
pub mod fail2ban;
pub mod firewall;
mod logs;
pub mod replay;

use std::io::Write;
use std::path::Path;

use crate::config::Config;

/// It failed at run time.
pub const FAILED: u8 = 1;
/// The command line is wrong.
pub const WRONG_USAGE: u8 = 2;
/// EX_CONFIG of sysexits.h.
pub const BAD_CONFIGURATION: u8 = 78;

/// Why the program ends with other than 0: the code, and the lines to print.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub code: u8,
    /// One sentence each.
    pub lines: Vec<String>,
}

impl Failure {
    /// Something failed at run time.
    pub fn run(error: impl std::fmt::Display) -> Self {
        Self { code: FAILED, lines: vec![error.to_string()] }
    }

    /// The operator asked for something that makes no sense.
    pub fn usage(what: impl std::fmt::Display) -> Self {
        Self { code: WRONG_USAGE, lines: vec![what.to_string()] }
    }

    /// Faults of a configuration.
    pub fn configuration(faults: impl IntoIterator<Item = impl std::fmt::Display>) -> Self {
        Self { code: BAD_CONFIGURATION, lines: faults.into_iter().map(|fault| fault.to_string()).collect() }
    }
}

/// The configuration, or every fault of it.
///
/// # Errors
/// Code 78 with one line a fault.
pub fn read(file: &Path) -> Result<Config, Failure> {
    Config::read(file).map_err(|faults| Failure::configuration(faults.0))
}

/// Runs one conversation, which needs no more than this thread.
///
/// # Errors
/// The system gives no runtime.
pub fn block_on<F: Future>(future: F) -> Result<F::Output, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
        Failure::run(format!("the runtime cannot be started: {error}; raise the limits of this user"))
    })?;
    Ok(runtime.block_on(future))
}

/// As JSON for people and programs alike.
///
/// # Errors
/// The value has no JSON form.
pub fn pretty(value: &impl serde::Serialize) -> Result<String, Failure> {
    serde_json::to_string_pretty(value).map_err(Failure::run)
}

/// To standard output; a reader that has left is no failure.
///
/// # Errors
/// The output cannot be written.
pub fn say(text: &str) -> Result<(), Failure> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::run(error)),
        _ => Ok(()),
    }
}
