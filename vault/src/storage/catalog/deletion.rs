//! Deleted, undeleted, purged: the states in which an object leaves, and how two catalogs agree
//! on them. A counter of deletions and undeletions decides between the first two, so that any
//! order of news ends alike; purged is for ever and wins over both.

use rusqlite::{Connection, OptionalExtension, params};

use super::rows::{add_replica, number, touch};
use super::tombstones::forget;
use super::{Catalog, CatalogError};
use crate::storage::object::{ObjectId, ReplicaState, State};
use crate::storage::witness::Witness;

/// A deleted object whose time is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::storage) struct Due {
    /// The object.
    pub(in crate::storage) id: ObjectId,
    /// Unix second by this vault's clock at which it learnt of the deletion.
    pub(in crate::storage) since: i64,
    /// The change that tells of it: a peer that has merged so far knows.
    pub(in crate::storage) seq: u64,
}

/// What an undeletion came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::storage) enum Undeletion {
    /// It can be read again, as this change says.
    Done(u64),
    /// It was not deleted; nothing was changed.
    NotDeleted,
    /// Its time is over; it waits for its purge.
    TooLate,
    /// It is purged.
    Purged,
    /// There is no such object.
    Unknown,
}

impl Catalog {
    /// Marks an object deleted; everything of it stays until it is purged. Returns the change that
    /// tells of it; `None` if there is nothing to tell.
    ///
    /// # Errors
    /// As every write.
    pub(in crate::storage) async fn delete(
        &self,
        id: ObjectId,
        now: i64,
    ) -> Result<Option<u64>, CatalogError> {
        self.write(move |db| {
            let sql = "UPDATE objects SET state = 3, revision = revision + 1, deleted = ?2
                WHERE id = ?1 AND state < 3";
            if db.prepare_cached(sql)?.execute(params![id.to_string(), now])? > 0 {
                return touch(db, &id).map(Some);
            }
            Ok(None)
        })
        .await
    }

    /// Takes a deletion back, unless `within` seconds of it were witnessed.
    ///
    /// # Errors
    /// As every write.
    pub(in crate::storage) async fn undelete(
        &self,
        id: ObjectId,
        witness: Witness,
        now: i64,
        within: i64,
    ) -> Result<Undeletion, CatalogError> {
        self.write(move |db| {
            let found = db
                .prepare_cached("SELECT state, deleted FROM objects WHERE id = ?1")?
                .query_row([id.to_string()], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Option<i64>>(1)?)))
                .optional()?;
            Ok(match found {
                None | Some((..=1, _)) => Undeletion::Unknown,
                Some((2, _)) => Undeletion::NotDeleted,
                Some((3, since)) if witness.age(since.unwrap_or(now), now) < within => {
                    let sql = "UPDATE objects SET state = 2, revision = revision + 1, deleted = NULL
                        WHERE id = ?1";
                    db.prepare_cached(sql)?.execute([id.to_string()])?;
                    Undeletion::Done(touch(db, &id)?)
                }
                Some((3, _)) => Undeletion::TooLate,
                Some(_) => Undeletion::Purged,
            })
        })
        .await
    }

    /// Objects deleted before this second, the oldest first.
    ///
    /// # Errors
    /// As every read.
    pub(in crate::storage) async fn due(&self, before: i64, limit: usize) -> Result<Vec<Due>, CatalogError> {
        self.read(move |db| due(db, before, limit)).await
    }

    /// Destroys what decrypts these objects if they are still deleted, and owes the removal of
    /// their replicas. Returns how many were.
    ///
    /// # Errors
    /// As every write.
    pub(in crate::storage) async fn purge(
        &self,
        ids: Vec<ObjectId>,
        now: i64,
    ) -> Result<usize, CatalogError> {
        let servers = std::sync::Arc::clone(&self.servers);
        self.write(move |db| {
            let mut purged = 0;
            for id in &ids {
                let sql = "SELECT state FROM objects WHERE id = ?1";
                let state: Option<i64> =
                    db.prepare_cached(sql)?.query_row([id.to_string()], |row| row.get(0)).optional()?;
                // Undeleted since it was found due?
                if state == Some(number(State::Deleted)) && purge(db, id, &servers, now, true)? {
                    touch(db, id)?;
                    purged += 1;
                }
            }
            Ok(purged)
        })
        .await
    }
}

fn due(db: &Connection, before: i64, limit: usize) -> rusqlite::Result<Vec<Due>> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let sql = "SELECT o.id, o.deleted, c.seq FROM objects o JOIN changes c ON c.id = o.id
        WHERE o.state = 3 AND o.deleted < ?1 ORDER BY o.deleted LIMIT ?2";
    let read = |row: &rusqlite::Row<'_>| {
        let seq = u64::try_from(row.get::<_, i64>(2)?).unwrap_or_default();
        Ok(Due { id: super::rows::id_at(row, 0)?, since: row.get(1)?, seq })
    };
    db.prepare_cached(sql)?.query_map(params![before, limit], read)?.collect()
}

/// The peer says stored or deleted, after so many deletions and undeletions; true if that is news.
pub(super) fn settle(
    db: &Connection,
    id: &ObjectId,
    state: State,
    revision: u32,
    now: i64,
) -> rusqlite::Result<bool> {
    debug_assert!(matches!(state, State::Stored | State::Deleted), "{state:?}");
    let sql = "UPDATE objects SET state = ?2, revision = ?3, deleted = iif(?2 = 3, ?4, NULL)
        WHERE id = ?1 AND state < 4 AND (state < 2 OR revision < ?3)";
    let values = params![id.to_string(), number(state), revision, now];
    Ok(db.prepare_cached(sql)?.execute(values)? > 0)
}

/// Destroys what decrypts an object and owes the removal of its replicas; true if that changed it.
pub(super) fn purge(
    db: &Connection,
    id: &ObjectId,
    servers: &[String],
    now: i64,
    observed: bool,
) -> rusqlite::Result<bool> {
    let sql = "UPDATE objects SET state = 4, identity = NULL, label = '', revision = 0, deleted = NULL
        WHERE id = ?1 AND state < 4";
    if db.prepare_cached(sql)?.execute([id.to_string()])? == 0 {
        return Ok(false);
    }
    forget(db, id)?;
    db.prepare_cached("DELETE FROM replicas WHERE id = ?1")?.execute([id.to_string()])?;
    for server in servers {
        add_replica(db, id, server, ReplicaState::RemovalOwed, now, observed)?;
    }
    Ok(true)
}
