//! Lists of files: those that can be read, and those that are deleted and can still be taken back,
//! with when they go for good. Knows what may be asked for; tells, and changes nothing.

use super::object::{Entry, ObjectId};
use super::witness::Witness;
use super::{Storage, StorageError, now};

/// Which objects are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// This owner's alone.
    pub owner: Option<String>,
    /// Those whose label contains this; large and small letters of ASCII are the same.
    pub label: Option<String>,
    /// Deleted ones instead of those that can be read.
    pub deleted: bool,
}

/// One object of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    /// The object.
    pub entry: Entry,
    /// Where it is deleted.
    pub deletion: Option<Deletion>,
}

/// When a deleted object was deleted, and when it goes. Unix seconds by this vault's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deletion {
    /// When this vault learnt of it.
    pub since: i64,
    /// It is purged no earlier. Time in which this vault does not run is added.
    pub purged_after: i64,
}

impl Storage {
    /// Those objects that are wanted after `after`, in order of id.
    ///
    /// # Errors
    /// The catalog's.
    pub async fn list(
        &self,
        wanted: Wanted,
        after: Option<ObjectId>,
        limit: usize,
    ) -> Result<Vec<Listed>, StorageError> {
        let inner = &self.0;
        let (terms, now) = (inner.terms(), now());
        let witness = if wanted.deleted { inner.witnessed_grace(now).await? } else { Witness::default() };
        let found = inner.catalog.list(wanted, after, limit).await?;
        let listed = found.into_iter().map(|(entry, since)| {
            let deletion = since.map(|since| {
                let left = terms.left(witness.age(since, now));
                Deletion { since, purged_after: now.saturating_add(left) }
            });
            Listed { entry, deletion }
        });
        Ok(listed.collect())
    }
}
