//! Removing purged objects from a file server, wherever they lie there: the replica, and what was
//! ever set aside of it as damaged, which the escrow key would still open. Knows the order; a
//! removal is owed until both are gone.
//!
//! The replica goes first: what is not there any more cannot be set aside any more. Quarantine is
//! listed once for all that a turn removes from a file server, for nobody keeps a list of it: the
//! other vault or an earlier life may have put something there, and a restored backup may have
//! brought something back.

use std::collections::{HashMap, HashSet};

use futures_util::stream::{StreamExt, iter};

use super::file_server::{FileServer, FileServerError, SetAside};
use super::object::ObjectId;
use super::sessions::{Kind, Sessions};
use super::{Inner, StorageError};

/// Removals under way at once.
const AT_ONCE: usize = 4;
/// Objects that the catalog is asked about in one go.
const ASKED: usize = 10_000;

impl Inner {
    /// Removes purged objects from a file server, and settles the debts of those that are gone.
    pub(super) async fn remove_all(
        &self,
        server: &Sessions,
        ids: Vec<ObjectId>,
    ) -> Result<Vec<(ObjectId, Result<(), StorageError>)>, StorageError> {
        let refused = |id: ObjectId, why: String| (id, Err(StorageError::NotRemoved { id, why }));
        let removals = ids
            .into_iter()
            .map(|id| async move { (id, server.run(id, move |server, _| server.remove(&id)).await) });
        let mut removals = iter(removals).buffer_unordered(AT_ONCE);
        let (mut gone, mut outcomes) = (Vec::new(), Vec::new());
        while let Some((id, removed)) = removals.next().await {
            match removed {
                Ok(()) => gone.push(id),
                Err(error) => outcomes.push(refused(id, error.to_string())),
            }
        }
        if gone.is_empty() {
            return Ok(outcomes);
        }
        let cleared = self.clear_set_aside(server).await;
        for id in gone {
            let left = match &cleared {
                Ok(left) => left.get(&id).cloned(),
                Err(error) => Some(error.to_string()),
            };
            match left {
                Some(why) => outcomes.push(refused(id, why)),
                None => {
                    self.catalog.removed(id, server.name().to_owned()).await?;
                    outcomes.push((id, Ok(())));
                }
            }
        }
        Ok(outcomes)
    }

    /// Removes what was set aside of purged objects on all file servers, as far as they answer: what
    /// came there late, or came back.
    pub(super) async fn clear_all_set_aside(&self) -> Result<(), StorageError> {
        for server in &self.servers {
            match self.clear_set_aside(server).await {
                Err(StorageError::FileServer(error)) => tracing::warn!("{error}"),
                other => drop(other?),
            }
        }
        Ok(())
    }

    /// Removes what was set aside of purged objects. Returns what could not be removed, with why.
    pub(super) async fn clear_set_aside(
        &self,
        server: &Sessions,
    ) -> Result<HashMap<ObjectId, String>, StorageError> {
        let listed = server.run_as(Kind::Listing, "quarantine", |server, progress| {
            server.list_set_aside(&|| progress.note())
        });
        let mut set_aside = listed.await?;
        let mut purged = HashSet::new();
        let ids: HashSet<_> = set_aside.iter().map(SetAside::id).collect();
        for ids in ids.into_iter().collect::<Vec<_>>().chunks(ASKED) {
            purged.extend(self.catalog.purged_among(ids.to_vec()).await?);
        }
        set_aside.retain(|aside| purged.contains(&aside.id()));
        if set_aside.is_empty() {
            return Ok(HashMap::new());
        }
        let count = set_aside.len();
        let removed = server.run_as(Kind::Listing, "quarantine", move |server, progress| {
            remove_each(server, &set_aside, &|| progress.note())
        });
        let left = removed.await?;
        tracing::info!(
            server = server.name(),
            removed = count - left.len(),
            left = left.len(),
            "what was set aside of purged objects is removed from quarantine"
        );
        Ok(left)
    }
}

/// One that cannot be removed keeps no other; a file server that is away ends it.
fn remove_each(
    server: &dyn FileServer,
    set_aside: &[SetAside],
    progress: &dyn Fn(),
) -> Result<HashMap<ObjectId, String>, FileServerError> {
    let mut left = HashMap::new();
    for aside in set_aside {
        match server.remove_set_aside(aside) {
            Err(
                error @ (FileServerError::Unreadable { .. }
                | FileServerError::Unwritable { .. }
                | FileServerError::Denied { .. }),
            ) => {
                left.insert(aside.id(), error.to_string());
            }
            other => other?,
        }
        progress();
    }
    Ok(left)
}
