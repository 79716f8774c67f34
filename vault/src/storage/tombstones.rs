//! Deletions as the file servers keep them, so that a catalog which is lost and comes back from
//! the file servers alone resurrects nothing: in notes, by the first byte of the id. Knows what
//! they say and when one counts; the notes' form is `note`'s, the state of an object the
//! catalog's.
//!
//! ```text
//! deleted-<xx>    ids of purged objects, 32 bytes each: for ever
//! revisions-<xx>  of objects that were deleted or taken back and are not purged: the id and how
//!                 often, 4 bytes, big-endian; odd means deleted
//! ```
//!
//! Ids are the objects' names on the file server anyway: neither owner, label nor type is told. The
//! larger number wins, between both vaults' notes on both file servers too, so that one lost file
//! server loses no deletion, and an older note undoes no undeletion. A purge takes the object out
//! of the second kind and into the first.
//!
//! A deletion is acknowledged when the catalogs have it; it is here with the next inventory, at
//! most `inventory_every` and a turn later.

use super::catalog::tombstones::Revision;
use super::inventory::Inventory;
use super::note::{MAX_NOTE, NoteKey, Title};
use super::object::ObjectId;
use super::sessions::Sessions;
use super::{Inner, StorageError, now};

/// Bytes of a purged object in a note, and of a revised one.
const PURGED: usize = 32;
const REVISED: usize = PURGED + 4;
/// Room for the first line and the MAC.
const HEAD: usize = 1024;
/// Objects that fit into one note: thirty million purged ones altogether.
const MOST_PURGED: usize = (MAX_NOTE - HEAD) / PURGED;
const MOST_REVISED: usize = (MAX_NOTE - HEAD) / REVISED;
/// Taken over in one transaction.
const AT_ONCE: usize = 1000;

impl Inner {
    /// Writes the notes that are not as `left`, the inventory that lies there. The purged first: an
    /// object that a crash leaves in both is purged.
    pub(super) async fn write_tombstones(
        &self,
        server: &Sessions,
        place: &str,
        generation: u64,
        inventory: &Inventory,
        left: Option<&Inventory>,
    ) -> Result<(), StorageError> {
        for shelf in inventory.differing_purged(left) {
            let mut purged = self.catalog.purged_under(shelf.clone()).await?;
            bound(server, &shelf, &mut purged, MOST_PURGED);
            let ids = purged.iter().flat_map(ObjectId::as_bytes).copied().collect();
            let title = self.title(&format!("deleted-{shelf}"), place);
            self.write_note(server, title, None, generation, ids).await?;
        }
        for shelf in inventory.differing_revised(left) {
            let mut revised = self.catalog.revised_under(shelf.clone()).await?;
            bound(server, &shelf, &mut revised, MOST_REVISED);
            let title = self.title(&format!("revisions-{shelf}"), place);
            self.write_note(server, title, None, generation, encode(&revised)).await?;
        }
        Ok(())
    }

    /// Takes over what both vaults noted on a file server, as far as one of `keys` opens it. False
    /// if there are notes that none of them opens.
    pub(super) async fn take_over_tombstones(
        &self,
        server: &Sessions,
        place: &str,
        keys: &[NoteKey],
    ) -> Result<bool, StorageError> {
        let mut opened = true;
        for vault in [&self.own, &self.settings.peer] {
            let title = |kind: &str| Title { vault: vault.clone(), ..self.title(kind, place) };
            let title_of_marker = title("generation");
            let Some(marker) = self.read_marker(server, &title_of_marker, keys).await? else {
                opened &= !self.has_note(server, title_of_marker).await?;
                continue;
            };
            let inventory = self.read_inventory(server, &title("inventory"), &marker, keys).await?;
            let Some(inventory) = inventory else { continue };
            for shelf in inventory.differing_purged(None) {
                let ids = self.read_latest(server, &title(&format!("deleted-{shelf}")), keys).await?;
                for ids in ids.as_chunks::<PURGED>().0.chunks(AT_ONCE) {
                    let ids = ids.iter().map(|hash| ObjectId::new(*hash)).collect();
                    self.catalog.bury(ids, now()).await?;
                }
            }
            for shelf in inventory.differing_revised(None) {
                let told = self.read_latest(server, &title(&format!("revisions-{shelf}")), keys).await?;
                for told in decode(&told).chunks(AT_ONCE) {
                    self.catalog.take_over_revisions(told.to_vec(), now()).await?;
                }
            }
        }
        Ok(opened)
    }

    /// A note's latest payload; empty without one.
    async fn read_latest(
        &self,
        server: &Sessions,
        title: &Title,
        keys: &[NoteKey],
    ) -> Result<Vec<u8>, StorageError> {
        let notes = self.read_notes(server, title, keys).await?;
        let latest = notes.into_iter().max_by_key(|(generation, _)| *generation);
        Ok(latest.map(|(_, payload)| payload).unwrap_or_default())
    }
}

fn bound<T>(server: &Sessions, shelf: &str, found: &mut Vec<T>, most: usize) {
    if found.len() > most {
        let (server, left_out) = (server.name(), found.len() - most);
        tracing::error!(
            server,
            shelf,
            left_out,
            "more deletions than a note holds: with both catalogs lost, the rest would come back"
        );
        found.truncate(most);
    }
}

fn encode(revised: &[Revision]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(revised.len() * REVISED);
    for (id, revision) in revised {
        bytes.extend_from_slice(id.as_bytes());
        bytes.extend_from_slice(&revision.to_be_bytes());
    }
    bytes
}

/// Reads what [`encode`] wrote; a rest that is no whole entry is left out.
fn decode(bytes: &[u8]) -> Vec<Revision> {
    let entries = bytes.as_chunks::<REVISED>().0.iter();
    entries
        .filter_map(|entry| {
            let (id, revision) = entry.split_first_chunk::<PURGED>()?;
            Some((ObjectId::new(*id), u32::from_be_bytes(revision.try_into().ok()?)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::any;
    use proptest::{prop_assert, prop_assert_eq, proptest};

    use super::*;

    proptest! {
        #[test]
        fn revisions_read_back_and_no_bytes_panic(
            told in proptest::collection::vec((any::<[u8; 32]>(), any::<u32>()), 0..20),
            noise in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let told: Vec<_> = told.into_iter().map(|(hash, count)| (ObjectId::new(hash), count)).collect();
            prop_assert_eq!(decode(&encode(&told)), told);
            prop_assert!(decode(&noise).len() * REVISED <= noise.len());
        }
    }

    #[test]
    fn the_fullest_notes_are_notes() {
        let title = Title { kind: "revisions-ff".to_owned(), place: "0".repeat(32), vault: "v".repeat(64) };
        let key = NoteKey::of(&age::x25519::Identity::generate());
        for most in [MOST_PURGED * PURGED, MOST_REVISED * REVISED] {
            assert!(title.seal(&key, u64::MAX, &vec![0; most]).len() <= MAX_NOTE);
        }
    }
}
