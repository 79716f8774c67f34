//! `vault file undelete` and `vault file rebuild-catalog`: bringing back what an operator, or a
//! fire, took away. Knows the words; the running vault does it.

use std::io::Write;
use std::path::Path;

use http::Method;

use super::control::ask;
use super::{CommandError, Output, Walk, follow};
use crate::api::upkeep::Rebuild;
use crate::storage::key;
use crate::storage::{ObjectId, Progress, Undeleted};

/// `vault file undelete`
///
/// # Errors
/// The vault does not run, knows no such file, or it is too late.
pub async fn undelete(socket: &Path, id: &ObjectId, output: &mut Output<'_>) -> Result<(), CommandError> {
    let path = format!("/v1/files/{id}/undelete");
    let undeleted: Undeleted = ask(socket, Method::POST, &path, None::<&()>).await?;
    let text = if undeleted.peer_knows {
        format!("{id} can be read again at both vaults")
    } else {
        format!(
            "{id} can be read again here. The other vault has not heard of it: it purges the file when twice\n\
             storage.undelete_within has passed since the deletion, so let the two meet before"
        )
    };
    output.show(&undeleted, &text)
}

/// `vault file rebuild-catalog`
///
/// # Errors
/// The vault does not run, refuses, or could not take in every object.
pub async fn rebuild_catalog(
    socket: &Path,
    identity: Option<&Path>,
    merge: bool,
    output: &mut Output<'_>,
) -> Result<(), CommandError> {
    let read = |file: &Path| {
        std::fs::read_to_string(file).map_err(|source| CommandError::Unread { file: file.to_owned(), source })
    };
    if let Some(warning) = identity.and_then(key::told_others) {
        // If standard error is closed there is nobody to tell.
        let _ = writeln!(std::io::stderr(), "vault: {warning}");
    }
    let asked = Rebuild { identity: identity.map(read).transpose()?, merge };
    let _started: Progress = ask(socket, Method::POST, "/v1/catalog/rebuild", Some(&asked)).await?;
    let walk = Walk {
        path: "/v1/catalog/rebuild",
        what: "rebuilding the catalog",
        next: "mend that (vault's log may tell more), and vault file rebuild-catalog --merge tries again",
    };
    follow(socket, walk, output).await
}
