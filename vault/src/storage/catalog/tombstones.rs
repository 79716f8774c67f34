//! Deletions as notes on file servers tell them: of objects that this catalog holds, and of others
//! that it may find there later. Knows ids and how often each was deleted and taken back; what is
//! purged for ever is `survey`'s.

use rusqlite::{Connection, OptionalExtension, params};

use super::deletion::settle;
use super::rows::{self, id_at, touch};
use super::survey::behind;
use super::{Catalog, CatalogError};
use crate::storage::object::{ObjectId, State};

/// An object, and how often it was deleted and taken back: odd means deleted.
pub(in crate::storage) type Revision = (ObjectId, u32);

impl Catalog {
    /// Objects whose ids start with `prefix` and that were ever deleted or taken back and are not
    /// purged, in order.
    ///
    /// # Errors
    /// As every read.
    pub(in crate::storage) async fn revised_under(
        &self,
        prefix: String,
    ) -> Result<Vec<Revision>, CatalogError> {
        self.read(move |db| {
            let mut found = Vec::new();
            each_revised(db, &prefix, |id, revision| found.push((id, revision)))?;
            Ok(found)
        })
        .await
    }

    /// Takes over how often objects were deleted and taken back; the larger number wins, and what
    /// is purged stays so. Of an object that is not here it is kept until it is found.
    ///
    /// # Errors
    /// As every write.
    pub(in crate::storage) async fn take_over_revisions(
        &self,
        told: Vec<Revision>,
        now: i64,
    ) -> Result<(), CatalogError> {
        self.write(move |db| {
            for (id, revision) in &told {
                if rows::entry(db, id)?.is_some_and(|entry| entry.state == State::Purged) {
                    continue;
                }
                let sql = "INSERT INTO tombstones (id, revision) VALUES (?1, ?2)
                    ON CONFLICT (id) DO UPDATE SET revision = max(revision, excluded.revision)";
                db.prepare_cached(sql)?.execute(params![id.to_string(), revision])?;
                if apply(db, id, now)? {
                    touch(db, id)?;
                }
            }
            Ok(())
        })
        .await
    }
}

/// Hands over every object that was ever deleted or taken back and is not purged, in order.
pub(super) fn each_revised(
    db: &Connection,
    prefix: &str,
    mut each: impl FnMut(ObjectId, u32),
) -> rusqlite::Result<()> {
    let sql = "SELECT id, revision FROM objects
            WHERE revision > 0 AND state IN (2, 3) AND id >= ?1 AND id < ?2
        UNION ALL SELECT id, revision FROM tombstones WHERE id >= ?1 AND id < ?2
        ORDER BY id";
    let mut statement = db.prepare_cached(sql)?;
    let mut found = statement.query([prefix, &behind(prefix)])?;
    while let Some(row) = found.next()? {
        each(id_at(row, 0)?, row.get(1)?);
    }
    Ok(())
}

/// An object is stored or deleted here: what was told of it before counts now; true if that is news.
pub(super) fn apply(db: &Connection, id: &ObjectId, now: i64) -> rusqlite::Result<bool> {
    let sql = "SELECT t.revision FROM tombstones t JOIN objects o ON o.id = t.id
        WHERE t.id = ?1 AND o.state IN (2, 3)";
    let told: Option<u32> =
        db.prepare_cached(sql)?.query_row([id.to_string()], |row| row.get(0)).optional()?;
    let Some(revision) = told else { return Ok(false) };
    forget(db, id)?;
    let state = if revision % 2 == 1 { State::Deleted } else { State::Stored };
    settle(db, id, state, revision, now)
}

/// Nothing that was told of this object counts any more: it is purged.
pub(super) fn forget(db: &Connection, id: &ObjectId) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM tombstones WHERE id = ?1")?.execute([id.to_string()]).map(drop)
}
