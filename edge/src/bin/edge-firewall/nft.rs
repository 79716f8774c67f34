//! Runs `nft`: loads our own text as one transaction, and lists our table as JSON through the crate
//! `nftables`. Must not know what the rules mean. The crate is not trusted with loading: read and
//! written again through its types, `ct count over 50` is lost.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use edge::firewall::ruleset::TABLE;
use nftables::helper::{NftablesError, get_current_ruleset_raw};
use serde_json::Value;

use crate::own::PATH;

/// Loading takes milliseconds; rebuilding a table of a million bans, seconds.
const PATIENCE: Duration = Duration::from_secs(30);
const STEP: Duration = Duration::from_millis(5);

/// `nft` could not be run, or refuses.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NftError {
    /// It is not where the system's programs are.
    #[error("nft: not found in {PATH}; install nftables")]
    NotFound,
    /// It cannot be run to its end.
    #[error("nft: cannot be run: {0}; nothing has changed")]
    Run(#[from] std::io::Error),
    /// It says no; nothing of the transaction is in force.
    #[error("nft: refused, nothing has changed: {0}")]
    Refused(String),
    /// It did not end.
    #[error("nft: still runs after 30 s and was ended; see `nft list table inet edge`")]
    Late,
    /// A listing failed.
    #[error("nft: {0}")]
    List(#[from] NftablesError),
    /// A listing is no JSON.
    #[error("nft: its listing is no JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// Loads `text`, all of it or nothing.
///
/// # Errors
/// See [`NftError`].
pub(crate) fn load(text: &str) -> Result<(), NftError> {
    let mut child = Command::new(program()?)
        .args(["-f", "-"])
        .env_clear()
        .env("PATH", PATH)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let fed = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(text.as_bytes()));
    let success = ended(&mut child)?;
    let mut told = String::new();
    if let Some(stderr) = child.stderr.take() {
        let _readable = stderr.take(16 * 1024).read_to_string(&mut told);
    }
    match (success, fed) {
        (true, Ok(())) => Ok(()),
        (_, Err(error)) if told.is_empty() => Err(error.into()),
        _ => Err(NftError::Refused(told.lines().take(4).collect::<Vec<_>>().join(" | "))),
    }
}

fn ended(child: &mut Child) -> Result<bool, NftError> {
    let mut waited = Duration::ZERO;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.success());
        }
        if waited > PATIENCE {
            child.kill()?;
            child.wait()?;
            return Err(NftError::Late);
        }
        std::thread::sleep(STEP);
        waited += STEP;
    }
}

/// Our table without the sets' elements.
///
/// # Errors
/// There is no such table, or see [`NftError`].
pub(crate) fn table() -> Result<Vec<Value>, NftError> {
    list(&["--terse", "list", "table", "inet", TABLE])
}

/// One set with its elements.
///
/// # Errors
/// There is no such set, or see [`NftError`].
pub(crate) fn set(name: &str) -> Result<Vec<Value>, NftError> {
    list(&["list", "set", "inet", TABLE, name])
}

fn list(arguments: &[&str]) -> Result<Vec<Value>, NftError> {
    let raw = get_current_ruleset_raw(Some(&program()?), arguments.iter().copied())?;
    let listing: Value = serde_json::from_str(&raw)?;
    Ok(listing.get("nftables").and_then(Value::as_array).cloned().unwrap_or_default())
}

fn program() -> Result<PathBuf, NftError> {
    let places = PATH.split(':').map(|folder| PathBuf::from(folder).join("nft"));
    places.into_iter().find(|path| path.is_file()).ok_or(NftError::NotFound)
}
