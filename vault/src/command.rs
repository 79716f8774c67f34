//! What an operator asks on the command line, beside `serve`: over the control socket of the
//! running vault where there is something to ask, on the files where there is not.
//! Knows how to print an answer; the rooms know what it means.

pub mod bridge;
pub mod broker;
pub mod check;
mod control;
pub mod database;
pub mod file;
pub mod keys;
pub mod message;
pub mod number;
pub mod record;
pub mod recover;
pub mod status;
pub mod worker;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use http::{Method, StatusCode};
use serde::Serialize;
use serde_json::Value;
use shared::api::{IssuedCertificate, Page, Problem, TokenAnswer, TokenRequest};
use shared::enrol::{EnrolError, Enrolment};
use shared::tls::{Files, Role};

use crate::bridge::BridgeError;
use crate::broker::users::UsersError;
use crate::config::Config;
use crate::pki::{self, PkiError};
use crate::sequence::export::ExportError;
use crate::sequence::journal::JournalError;
use crate::storage::{KeyError, Progress};
use control::ask;
use file::Wanting;
use number::NotProved;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// Nobody listens on the control socket.
    #[error(
        "no vault answers on {socket}: {source}; start it with `vault serve`, or name its configuration with --config"
    )]
    NotRunning {
        /// The socket.
        socket: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// It does not answer in time.
    #[error("the vault on {socket} gives no answer within {deadline:?}; its log may tell why")]
    Late {
        /// The socket.
        socket: PathBuf,
        /// How long was waited.
        deadline: std::time::Duration,
    },
    /// The answer broke off.
    #[error("the vault on {socket} broke off its answer: {source}")]
    Broken {
        /// The socket.
        socket: PathBuf,
        /// hyper's reason.
        #[source]
        source: hyper::Error,
    },
    /// The answer is not what this program knows.
    #[error("the vault on {socket} answers something else ({status}); is it of this version?")]
    Strange {
        /// The socket.
        socket: PathBuf,
        /// Its status.
        status: StatusCode,
    },
    /// There is nobody to be let in.
    #[error("this vault has no [broker] with a users_file; write one into its configuration")]
    NoUsers,
    /// Nobody of that name.
    #[error("{0:?} is no user; vault broker user list shows them")]
    NoUser(String),
    /// The file of users.
    #[error(transparent)]
    Users(UsersError),
    /// It says no.
    #[error("the vault refuses: {0}{next}", next = next_step(&.0.code))]
    Refused(Problem),
    /// Some of many keys got no number. The answer says why.
    #[error("{refused} of {of} keys got no number; each is named above with its reason")]
    WithoutNumber {
        /// How many.
        refused: usize,
        /// Of how many.
        of: usize,
    },
    /// There is something to lose.
    #[error("{queue} has {messages} messages; to delete those that no consumer holds, add --yes")]
    Unconfirmed {
        /// The queue.
        queue: String,
        /// How many are in it.
        messages: u64,
    },
    /// What goes back is worked on again.
    #[error("{told}. To put them back into their queues, add --yes")]
    RetryUnconfirmed {
        /// How many of which queue, and what stays.
        told: String,
    },
    /// None of the messages that were named could be had.
    #[error(
        "none of these is there to be had: they are gone, or consumers hold them; vault message browse {queue} shows \
         what there is"
    )]
    NoneLeft {
        /// Where they were to be.
        queue: String,
    },
    /// What may be repeated, and its idempotency key.
    #[error("{source}; to repeat this safely, add --key {key}")]
    Repeatable {
        /// What is wrong.
        #[source]
        source: Box<CommandError>,
        /// Its key.
        key: String,
    },
    /// What a bridge's report tells that the vault would refuse.
    #[error(transparent)]
    Bridge(#[from] BridgeError),
    /// One of several asked for.
    #[error("{id}: {source}; those after it are as they were")]
    About {
        /// The file.
        id: String,
        /// What is wrong with it.
        #[source]
        source: Box<CommandError>,
    },
    /// The authority.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// Enrolment.
    #[error(transparent)]
    Enrol(#[from] EnrolError),
    /// The storage key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A file named on the command line.
    #[error("{file}: cannot be read: {source}; nothing was begun")]
    Unread {
        /// The file.
        file: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// What should be an export cannot be read as one.
    #[error("{}: {source}", file.display())]
    Export {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ExportError,
    },
    /// A journal cannot be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// What should be a journal cannot be opened as one.
    #[error("{source}; name the journal.db of a vault's state folder, or a copy of it (with its -wal)")]
    NoJournal {
        /// What is wrong.
        #[source]
        source: JournalError,
    },
    /// The ledger was looked at, and is not as it should be. The answer says what.
    #[error("{0}")]
    NotProved(NotProved),
    /// A long walk ended before it had done everything.
    #[error("{what} is not complete: {failed} failed; {last}; {next}")]
    Incomplete {
        /// What was walked for.
        what: &'static str,
        /// How many pieces failed.
        failed: u64,
        /// The last failure.
        last: String,
        /// How to go on.
        next: &'static str,
    },
    /// A file on this host.
    #[error("{path}: {what}: {source}; {next}")]
    Local {
        /// The file.
        path: PathBuf,
        /// What was done to it.
        what: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
        /// What became of the rest, or what to write.
        next: &'static str,
    },
    /// Looked at, and found wanting. The answer says what.
    #[error("{0}")]
    NotWhole(Wanting),
    /// A scrub found damage.
    #[error(
        "{damaged} of {checked} replicas are damaged or missing; they are owed and healed by themselves, as \
         vault file owed tells{}", left_out(*skipped, servers)
    )]
    Damage {
        /// How many.
        damaged: u64,
        /// Of how many.
        checked: u64,
        /// How many could not be looked at.
        skipped: u64,
        /// Where.
        servers: String,
    },
    /// A scrub could not look at everything.
    #[error("{skipped} replicas could not be looked at on {servers}; the scrub goes on there by itself")]
    NotScrubbed {
        /// How many.
        skipped: u64,
        /// Where.
        servers: String,
    },
    /// A comparison could not see everything.
    #[error("not every file server could be listed: {}; compared again by itself when it answers", .0.join("; "))]
    NotListed(Vec<String>),
    /// The words do not go together.
    #[error("{0}")]
    Usage(&'static str),
    /// Standard output is closed.
    #[error("the answer cannot be printed: {0}")]
    Print(#[from] io::Error),
}

fn left_out(skipped: u64, servers: &str) -> String {
    match skipped {
        0 => String::new(),
        _ => format!(
            "; {skipped} replicas could not be looked at on {servers}; the scrub goes on there by itself"
        ),
    }
}

impl CommandError {
    /// The same, where several files were named.
    fn about(self, id: &str) -> Self {
        Self::About { id: id.to_owned(), source: Box::new(self) }
    }
}

/// Where answers go, and whether as JSON.
pub struct Output<'w> {
    /// Usually standard output.
    pub to: &'w mut dyn Write,
    /// One JSON document instead of text.
    pub json: bool,
}

impl Output<'_> {
    fn show<T: Serialize>(&mut self, answer: &T, text: &str) -> Result<(), CommandError> {
        if self.json {
            let json = serde_json::to_string_pretty(answer).map_err(io::Error::from)?;
            writeln!(self.to, "{json}")?;
        } else {
            writeln!(self.to, "{}", text.trim_end())?;
        }
        self.to.flush()?;
        Ok(())
    }
}

/// `vault pki init`
///
/// # Errors
/// See [`pki::initialise`].
pub async fn pki_init(
    config: &Config,
    authority: &str,
    dns: &[String],
    output: &mut Output<'_>,
) -> Result<(), CommandError> {
    let (settings, files) = (config.pki.clone(), config.tls.clone());
    let (authority_name, name, dns) = (authority.to_owned(), config.name.clone(), dns.to_vec());
    let made =
        blocking(move || pki::initialise(&settings, &files, &authority_name, &name, &dns, wall_clock()))
            .await?;
    let key = config.pki.authority_key.display();
    let answer = serde_json::json!({
        "authority": authority,
        "authority_key_file": config.pki.authority_key,
        "authority_certificate_file": config.tls.authority,
        "pin": made.pin.to_string(),
        "certificate": made.own,
    });
    let text = format!(
        "authority {authority} made\n  key:         {key} (mode 0600)\n  certificate: {}\n  pin:         {}\n\
         vault {} has its certificate: {}, serial {}, until {}\n\n\
         The key is needed only while something is enrolled. Move it offline when that is done,\n\
         and back to {key} for the next enrolment; without it everything else works.",
        config.tls.authority.display(),
        made.pin,
        config.name,
        config.tls.certificate.display(),
        made.own.serial,
        made.own.not_after,
    );
    output.show(&answer, &text)
}

/// `vault pki token`
///
/// # Errors
/// The vault does not run, or refuses.
pub async fn pki_token(
    socket: &Path,
    asked: &TokenRequest,
    output: &mut Output<'_>,
) -> Result<(), CommandError> {
    let made: TokenAnswer = ask(socket, Method::POST, "/v1/pki/tokens", Some(asked)).await?;
    let text = format!(
        "{}\n\nGood for one {} certificate of {}/{}, until {}. It is shown this once.",
        made.token, asked.role, asked.owner, asked.name, made.expires
    );
    output.show(&made, &text)
}

/// `vault pki list`
///
/// # Errors
/// The vault does not run, or refuses.
pub async fn pki_list(socket: &Path, output: &mut Output<'_>) -> Result<(), CommandError> {
    let mut all: Vec<IssuedCertificate> = Vec::new();
    let mut after = String::new();
    loop {
        let path = format!("/v1/pki/certificates?limit=1000{after}");
        let page: Page<IssuedCertificate> = ask(socket, Method::GET, &path, None::<&()>).await?;
        all.extend(page.items);
        match page.next {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    let mut text = format!("{:<32}  {:<5}  {:<24}  {:<20}  STATE\n", "SERIAL", "ROLE", "OWNER/NAME", "UNTIL");
    for entry in &all {
        let who = format!("{}/{}", entry.owner, entry.name);
        let state = if entry.revoked { "revoked" } else { "good" };
        let role = entry.role.to_string();
        text.push_str(&format!(
            "{:<32}  {role:<5}  {who:<24}  {:<20}  {state}\n",
            entry.serial, entry.not_after
        ));
    }
    output.show(&all, &text)
}

/// `vault pki revoke`
///
/// # Errors
/// The vault does not run, or knows no such certificate.
pub async fn pki_revoke(socket: &Path, serial: &str, output: &mut Output<'_>) -> Result<(), CommandError> {
    if serial.is_empty() || !serial.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(PkiError::NoSuchCertificate(serial.to_owned()).into());
    }
    let path = format!("/v1/pki/certificates/{serial}/revoke");
    let entry: IssuedCertificate = ask(socket, Method::POST, &path, None::<&()>).await?;
    let text = format!(
        "revoked {} {}/{} ({}); its live sessions here are cut, the other vault follows",
        entry.role, entry.owner, entry.name, entry.serial
    );
    output.show(&entry, &text)
}

/// For whom `vault pki enrol` asks.
#[derive(Debug, Clone, Copy)]
pub enum Holder<'a> {
    /// This vault itself, as its configuration says.
    Vault(&'a Config),
    /// Somebody else, mostly an operator: files go to this folder.
    Folder(&'a Path),
}

/// `vault pki enrol`
///
/// # Errors
/// See [`EnrolError`].
pub async fn pki_enrol(
    vault: &str,
    address: SocketAddr,
    token: &str,
    holder: Holder<'_>,
    replace: bool,
    output: &mut Output<'_>,
) -> Result<(), CommandError> {
    let (files, expected) = match holder {
        Holder::Vault(config) => (config.tls.clone(), Some((Role::Vault, Some(config.name.as_str())))),
        Holder::Folder(folder) => (files_in(folder), None),
    };
    let enrolled = Enrolment { vault, address, token, files: &files, replace, expected }.run().await?;
    let who = &enrolled.identity;
    let answer = serde_json::json!({
        "identity": who,
        "not_after": enrolled.not_after,
        "certificate_file": files.certificate,
        "key_file": files.key,
        "authority_file": files.authority,
    });
    let text = format!(
        "enrolled as {} {}/{}, serial {}, until {}\n  certificate: {}\n  key:         {} (mode 0600; it has not left this host)\n  authority:   {}",
        who.role,
        who.owner,
        who.name,
        who.serial,
        enrolled.not_after,
        files.certificate.display(),
        files.key.display(),
        files.authority.display(),
    );
    output.show(&answer, &text)
}

fn files_in(folder: &Path) -> Files {
    Files {
        certificate: folder.join("own.crt"),
        key: folder.join("own.key"),
        authority: folder.join("authority.crt"),
    }
}

/// `vault status`. True if the vault is well; the answer says what is wanting otherwise.
///
/// # Errors
/// The vault does not run.
pub async fn status(socket: &Path, output: &mut Output<'_>) -> Result<bool, CommandError> {
    let mut status: Value = ask(socket, Method::GET, "/v1/status", None::<&()>).await?;
    let wanting = status::wanting(&status);
    let now = time::OffsetDateTime::from(wall_clock()).unix_timestamp();
    let text = status::told(&status, &wanting, now);
    if let Some(document) = status.as_object_mut() {
        document.insert("well".to_owned(), wanting.is_empty().into());
        document.insert("wanting".to_owned(), wanting.clone().into());
    }
    output.show(&status, &text)?;
    Ok(wanting.is_empty())
}

/// How often a walk is looked at while it runs.
const LOOK: std::time::Duration = std::time::Duration::from_millis(500);

/// A walk of the running vault, and what to say of it.
struct Walk {
    /// Where its progress is asked for.
    path: &'static str,
    /// What it is.
    what: &'static str,
    /// How to go on where something of it failed.
    next: &'static str,
}

/// Shows a walk of the running vault until its end. Broken off, the walk itself goes on.
async fn follow(socket: &Path, walk: Walk, output: &mut Output<'_>) -> Result<(), CommandError> {
    let Walk { path, what, next } = walk;
    let bar = file::share_bar(output);
    let progress = loop {
        let progress: Progress = ask(socket, Method::GET, path, None::<&()>).await?;
        if !progress.running {
            break progress;
        }
        bar.set_position(progress.percent.into());
        bar.set_message(counts(&progress));
        tokio::time::sleep(LOOK).await;
    };
    bar.finish_and_clear();
    let warning = progress.warning.as_ref().map(|warning| format!("\n{warning}")).unwrap_or_default();
    output.show(&progress, &format!("{what}: {}{warning}", counts(&progress)))?;
    if progress.finished && progress.failed == 0 {
        return Ok(());
    }
    // Nothing but a key is missing, and the failure itself says so.
    let keyless = progress.unopened > 0 && progress.unopened == progress.failed;
    let next = if keyless { "say it again so, with --merge" } else { next };
    let last = progress.last_error.unwrap_or_else(|| "the vault was started again meanwhile".to_owned());
    Err(CommandError::Incomplete { what, failed: progress.failed, last, next })
}

fn counts(progress: &Progress) -> String {
    let Progress { done, passed, deleted, failed, .. } = progress;
    let deleted = match deleted {
        0 => String::new(),
        some => format!(", {some} of them are deleted: vault file undelete takes one back"),
    };
    format!("{done} done, {passed} were so already, {failed} failed{deleted}")
}

/// What an operator does about a refusal whose own words are meant for every caller.
fn next_step(code: &str) -> &'static str {
    match code {
        "deleted" => "; vault file undelete takes it back within storage.undelete_within",
        "purged" => {
            "; a replica in a backup of a file server opens by hand: README, Recovering a file by hand"
        }
        "file_server_away" | "not_durable" => "; vault status names the file server and what ails it",
        "unreadable" => "; vault file owed and vault status name the file servers that lack it, and why",
        "no_key" => "; vault keys list and vault status name what to mend about storage.key_file",
        "storage_full" => "; vault status names the file server that is full",
        "spool_full" => {
            "; vault status names the spool's folder (storage.spool_folder) and what is free there"
        }
        "catalog" | "internal" => "; vault's log has the cause; check the disk under `state`",
        "peer_away" => "; vault status tells what the two vaults wait for",
        "queue_full" | "not_written" | "journal" => {
            "; vault status names what is full, vault's log why the disk refuses"
        }
        "ledger_away" => "; vault database status shows etcd's members",
        "stopping" => "; or start it again with `vault serve`",
        _ => "",
    }
}

async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}

#[expect(clippy::disallowed_methods, reason = "certificates live by the calendar")]
fn wall_clock() -> std::time::SystemTime {
    std::time::SystemTime::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_says_what_to_do_next() {
        let detail = "this file has been deleted";
        let problem = Problem::new(StatusCode::GONE, "deleted", detail);
        let refused = CommandError::Refused(problem).about("7f3a");
        assert_eq!(
            refused.to_string(),
            "7f3a: the vault refuses: 410 deleted: this file has been deleted; vault file undelete \
             takes it back within storage.undelete_within; those after it are as they were"
        );
        let progress = Progress { done: 30, deleted: 2, ..Progress::default() };
        assert_eq!(
            counts(&progress),
            "30 done, 0 were so already, 0 failed, 2 of them are deleted: vault file undelete takes one back"
        );
    }

    #[test]
    fn a_scrub_tells_what_it_left_out() {
        let damage =
            |skipped| CommandError::Damage { damaged: 1, checked: 9, skipped, servers: "lyon".into() };
        assert!(
            !damage(0).to_string().contains("lyon") && damage(2).to_string().contains("2 replicas could not")
        );
    }
}
