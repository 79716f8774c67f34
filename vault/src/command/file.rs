//! `vault file …`: what an operator does with files, over the control socket of the running
//! vault. Knows how to send, receive and show; the vault knows what a file is. Progress is
//! shown on a terminal alone, never in JSON.

mod listing;
mod transfer;
mod verify;

pub(super) use transfer::can_be_repeated;
pub use verify::Wanting;

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;
use http::{Method, Request};
use indicatif::ProgressBar;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use shared::api::{File, OwedReplica, Page};

use super::control::{self, Progress, whole};
use super::{CommandError, LOOK, Output, recover};
use crate::storage::{AdoptedServer, ObjectId, PeerAdoption, Progress as Walked, Round, Synced};

/// A list's page, or one file's deletion on both file servers, is answered within this time.
const SOON: Duration = Duration::from_secs(60);
/// A verification reads whole replicas, and tells nothing before it is done.
const LATE: Duration = Duration::from_secs(6 * 3600);

/// What can be done with files.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Store a file; the answer comes when it is durable
    Put(transfer::Put),
    /// Read a file, or some of its bytes
    Get(transfer::Get),
    /// Show what is known of a file: owner, label, size, and where its replicas lie
    Stat {
        /// As `vault file list` shows it
        id: String,
    },
    /// List files, in the order of their ids
    List(listing::List),
    /// Delete files
    Remove {
        /// As `vault file list` shows them
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
    },
    /// List what file servers are owed: replicas to get, replicas to lose
    Owed {
        /// At most so many, 1 to 1000
        #[arg(long, value_name = "COUNT", default_value_t = 100)]
        limit: usize,
    },
    /// Read every replica of files from end to end, and tell what is whole where
    ///
    /// Exit code 1 where one is not. What is damaged is set aside, and healed like what is missing;
    /// one of the two records in front of a file that has rotted is written anew at once.
    Verify {
        /// As `vault file list` shows them
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
    },
    /// Take a deletion back, within storage.undelete_within
    Undelete {
        /// The file's id, 64 hex digits
        #[arg(value_parser = |text: &str| text.parse::<ObjectId>())]
        id: ObjectId,
    },
    /// Compare the catalog with whole listings of both file servers, now
    ///
    /// What is missing is owed and copied, what is unknown is taken in. It also runs by itself.
    Sync,
    /// Begin a new scrub: every replica is read again, slowly; `vault status` tells how far it is
    ///
    /// What is damaged is set aside and copied from the other file server; one of the two records
    /// in front of a file that has rotted is written anew. The two vaults share the work: each
    /// needs to be told.
    Scrub {
        /// Stay until this vault's share is done; exit code 1 where something was damaged, missing or
        /// left out. Broken off, the scrub itself goes on
        #[arg(long)]
        follow: bool,
    },
    /// Accept a wiped or replaced file server as a new place, on which everything is owed
    AdoptServer {
        /// Its name in the configuration
        name: String,
    },
    /// Fill an empty catalog from both file servers
    ///
    /// For the day on which both vaults' disks are lost. What was deleted stays deleted, as far as
    /// the file servers note it. After a restart of vault it goes on by itself; with --identity, say
    /// it again.
    RebuildCatalog {
        /// A key file to try beside storage.key_file, such as the escrow key
        #[arg(long, value_name = "FILE")]
        identity: Option<PathBuf>,
        /// Add to a catalog that is not empty
        #[arg(long)]
        merge: bool,
    },
}

impl Verb {
    /// Does it.
    ///
    /// # Errors
    /// The vault does not run, or refuses; a local file cannot be read or written.
    pub async fn run(&self, socket: &Path, output: &mut Output<'_>) -> Result<(), CommandError> {
        match self {
            Self::Put(put) => put.run(socket, output).await,
            Self::Get(get) => get.run(socket, output).await,
            Self::Stat { id } => {
                let path = format!("{}/description", place(id)?);
                let file: File = ask(socket, Method::GET, &path, SOON).await?;
                output.show(&file, &described(&file))
            }
            Self::List(list) => list.run(socket, output).await,
            Self::Remove { ids } => remove(socket, ids, output).await,
            Self::Owed { limit } => owed(socket, *limit, output).await,
            Self::Verify { ids } => verify::verify(socket, ids, output).await,
            Self::Undelete { id } => recover::undelete(socket, id, output).await,
            Self::Sync => {
                let synced = sync(socket, output).await?;
                output.show(&synced, &compared(&synced))?;
                if synced.unlisted.is_empty() {
                    Ok(())
                } else {
                    Err(CommandError::NotListed(synced.unlisted))
                }
            }
            Self::Scrub { follow } => scrub(socket, *follow, output).await,
            Self::AdoptServer { name } => {
                let path = format!("/v1/file-servers/{}/adopt", encoded(name));
                let adopted: AdoptedServer = ask(socket, Method::POST, &path, SOON).await?;
                let AdoptedServer { server, place, owed, peer } = &adopted;
                let there = match peer {
                    PeerAdoption::Adopted => "so it is for the other vault".to_owned(),
                    PeerAdoption::NotAsked => "say the same on the other vault".to_owned(),
                    PeerAdoption::Not(why) => format!("NOT so for the other vault: {why}"),
                };
                let text = format!(
                    "{server} is a new place now, {place}; {owed} replicas are owed there and copied by themselves; {there}"
                );
                output.show(&adopted, &text)
            }
            Self::RebuildCatalog { identity, merge } => {
                recover::rebuild_catalog(socket, identity.as_deref(), *merge, output).await
            }
        }
    }
}

async fn remove(socket: &Path, ids: &[String], output: &mut Output<'_>) -> Result<(), CommandError> {
    let places = ids.iter().map(|id| place(id)).collect::<Result<Vec<_>, _>>()?;
    let (mut removed, mut before, mut text) = (Vec::with_capacity(ids.len()), Vec::new(), String::new());
    let (mut stopped, mut can_come_back) = (None, false);
    for (id, place) in ids.iter().zip(places) {
        let remove = async {
            let request = bare(Method::DELETE, &place)?;
            let answer = control::call(socket, request, SOON, &Progress::default()).await?;
            control::accepted(socket, answer).await
        };
        let answer = match remove.await {
            Ok(answer) => answer,
            Err(error) => {
                stopped = Some(error.about(id));
                break;
            }
        };
        let was = answer.headers().get(shared::api::FILE_WAS).and_then(|was| was.to_str().ok());
        can_come_back |= was != Some("purged");
        match was {
            Some("deleted") => text.push_str(&format!("{id} was already deleted\n")),
            Some("purged") => text.push_str(&format!("{id} was already deleted, and is purged\n")),
            _ => text.push_str(&format!("removed {id}\n")),
        }
        if matches!(was, Some("deleted" | "purged")) { &mut before } else { &mut removed }.push(id);
    }
    if stopped.is_none() || !text.is_empty() {
        if can_come_back {
            text.push_str("vault file undelete ID takes one back, within storage.undelete_within");
        }
        output.show(&serde_json::json!({ "removed": removed, "already_deleted": before }), &text)?;
    }
    stopped.map_or(Ok(()), Err)
}

async fn owed(socket: &Path, limit: usize, output: &mut Output<'_>) -> Result<(), CommandError> {
    let path = format!("/v1/files/owed?limit={limit}");
    let page: Page<OwedReplica> = ask(socket, Method::GET, &path, SOON).await?;
    let mut text = if page.items.is_empty() {
        "nothing is owed\n".to_owned()
    } else {
        format!("{:<64}  {:<12}  {:<7}  {:<20}  FAILED  WAITS FOR\n", "ID", "FILE SERVER", "OWED", "SINCE")
    };
    for debt in &page.items {
        let OwedReplica { id, file_server, what, since, failed, why } = debt;
        text.push_str(&format!(
            "{id}  {file_server:<12}  {what:<7}  {since:<20}  {failed:>6}  {}\n",
            shown(why)
        ));
    }
    output.show(&page.items, &text)
}

/// Compares, and shows how far that is where somebody watches.
async fn sync(socket: &Path, output: &Output<'_>) -> Result<Synced, CommandError> {
    const PATH: &str = "/v1/file-servers/sync";
    let bar = share_bar(output);
    let watch = async {
        while !bar.is_hidden() {
            tokio::time::sleep(LOOK).await;
            // The comparison's own answer tells what is wrong.
            let asked = ask::<Walked>(socket, Method::GET, PATH, SOON);
            let Ok(progress) = asked.await else { continue };
            bar.set_position(progress.percent.into());
            bar.set_message(format!("{} objects, {} differences", progress.passed, progress.done));
        }
        std::future::pending::<Infallible>().await
    };
    let synced = tokio::select! {
        synced = ask(socket, Method::POST, PATH, LATE) => synced,
        never = watch => match never {},
    };
    bar.finish_and_clear();
    synced
}

async fn scrub(socket: &Path, follow: bool, output: &mut Output<'_>) -> Result<(), CommandError> {
    const PATH: &str = "/v1/file-servers/scrub";
    let begun = control::call(socket, bare(Method::POST, PATH)?, SOON, &Progress::default()).await?;
    control::accepted(socket, begun).await?;
    if !follow {
        return output.show(
            &serde_json::json!({ "begun": true }),
            "the scrub of this vault's half has begun; vault status tells how far it is, --follow stays until its \
             end; the other half is the other vault's: say the same there",
        );
    }
    let bar = share_bar(output);
    let round = loop {
        let round: Round = ask(socket, Method::GET, PATH, SOON).await?;
        if !round.running {
            break round;
        }
        // In the order of their ids, which are hashes: the first byte tells how far it is.
        bar.set_position(round.position.map_or(0, |id| u64::from(id.first()) * 100 / 256));
        bar.set_message(scrubbed(&round));
        tokio::time::sleep(LOOK).await;
    };
    bar.finish_and_clear();
    let text = format!(
        "{}\nthis was this vault's half, or all while the other vault was away; the other half is the other vault's: \
         say the same there",
        scrubbed(&round)
    );
    output.show(&round, &text)?;
    let Round { damaged, checked, skipped, .. } = round;
    let servers = round.left_out.join(", ");
    match (damaged, skipped) {
        (0, 0) => Ok(()),
        (0, _) => Err(CommandError::NotScrubbed { skipped, servers }),
        _ => Err(CommandError::Damage { damaged, checked, skipped, servers }),
    }
}

fn scrubbed(round: &Round) -> String {
    let Round { checked, damaged, mended, skipped, .. } = round;
    format!(
        "{checked} replicas read, {damaged} damaged or missing, {mended} records written anew, {skipped} left out"
    )
}

/// A bar of a hundred steps, for what knows how far it is in per cent.
pub(super) fn share_bar(output: &Output<'_>) -> ProgressBar {
    transfer::bar(output, Some(100), transfer::SHARE)
}

async fn ask<A: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    patience: Duration,
) -> Result<A, CommandError> {
    let answer = control::call(socket, bare(method, path)?, patience, &Progress::default()).await?;
    control::json(socket, answer).await
}

fn bare(method: Method, path: &str) -> Result<Request<control::Body>, CommandError> {
    let request = Request::builder().method(method).uri(path).body(whole(Vec::new()));
    Ok(request.map_err(std::io::Error::other)?)
}

/// Where a file is asked for.
fn place(id: &str) -> Result<String, CommandError> {
    if id.len() != 64 || !id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(CommandError::Usage(
            "a file's id is 64 lower-case hex digits; vault file list shows them",
        ));
    }
    Ok(format!("/v1/files/{id}"))
}

fn compared(synced: &Synced) -> String {
    let Synced { known, listed, missing, present, damaged, adopted, foreign, risen, .. } = synced;
    format!(
        "objects known:     {known}\nreplicas listed:   {listed}\nmissing, now owed: {missing}\n\
         owed, but whole:   {present}\ndamaged, now owed: {damaged}\ntaken in:          {adopted}\n\
         not ours to open:  {foreign}\ndeleted, and back: {risen}"
    )
}

pub(super) fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

fn described(file: &File) -> String {
    let list = |names: &[String]| if names.is_empty() { "nobody".to_owned() } else { names.join(", ") };
    format!(
        "id:       {}\nowner:    {}\nlabel:    {}\ntype:     {}\nsize:     {}\ncreated:  {}\nreplicas: {}\nowed to:  {}",
        file.id,
        file.owner,
        shown(&file.label),
        shown(&file.media_type),
        file.size,
        file.created,
        list(&file.replicas),
        list(&file.owed),
    )
}

/// Text of others as it may stand on a terminal: what moves the cursor, breaks the line or turns
/// the direction of writing is escaped.
pub(super) fn shown(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '"' | '\'' | '\\' => line.push(character),
            other => line.extend(other.escape_debug()),
        }
    }
    line
}

/// A time without its fraction of a second.
fn seconds(time: &str) -> String {
    time.split_once('.').map_or_else(|| time.to_owned(), |(whole, _)| format!("{whole}Z"))
}

/// What `get --output` and `put` answer as JSON beside the file itself.
#[derive(Debug, Serialize)]
struct Fetched<'a> {
    id: &'a str,
    file: &'a PathBuf,
    bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_others_cannot_move_the_cursor() {
        assert_eq!(shown("Rechnung \"Ä\" 7\\1 \u{1f5c4}"), "Rechnung \"Ä\" 7\\1 \u{1f5c4}");
        assert_eq!(shown("a\n\u{1b}[2J\0\u{202e}b"), "a\\n\\u{1b}[2J\\0\\u{202e}b");
    }

    #[test]
    fn only_ids_are_asked_for() {
        assert_eq!(place(&"a".repeat(64)).unwrap(), format!("/v1/files/{}", "a".repeat(64)));
        for bad in ["", "x", "../../etc/passwd", &"A".repeat(64), &"a".repeat(65)] {
            assert!(place(bad).is_err(), "{bad}");
        }
    }
}
