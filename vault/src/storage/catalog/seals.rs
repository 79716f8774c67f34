//! Which keys the replicas' records are sealed to, as far as this vault has seen, and which keys
//! both vaults have. Knows names of keys; no key.

use std::collections::BTreeMap;

use rusqlite::{Connection, params};

use super::rows::{entry, id_at, touch};
use super::{Catalog, CatalogError};
use crate::storage::object::{Entry, ObjectId};

/// A replica, by object and file server.
pub(in crate::storage) type At = (ObjectId, String);

impl Catalog {
    /// Replicas whose records are not known to be sealed to `seal`, in order after `after`, with
    /// their objects.
    ///
    /// # Errors
    /// As every read.
    pub(in crate::storage) async fn sealed_otherwise(
        &self,
        seal: String,
        after: Option<At>,
        limit: usize,
    ) -> Result<Vec<(Entry, String)>, CatalogError> {
        self.read(move |db| sealed_otherwise(db, &seal, after, limit)).await
    }

    /// These replicas' records are sealed to `seal`; the peer is told.
    ///
    /// # Errors
    /// As every write.
    pub(in crate::storage) async fn sealed(
        &self,
        replicas: Vec<At>,
        seal: String,
    ) -> Result<(), CatalogError> {
        self.write(move |db| {
            replicas.iter().try_for_each(|(id, server)| {
                note(db, id, server, &seal)?;
                touch(db, id).map(drop)
            })
        })
        .await
    }

    /// What the records on this file server are sealed to is no longer known.
    ///
    /// # Errors
    /// As every write.
    pub(in crate::storage) async fn forget_seals(&self, server: String) -> Result<(), CatalogError> {
        self.write(move |db| {
            let sql = "UPDATE replicas SET seal = '' WHERE server = ?1 AND seal <> ''";
            db.prepare_cached(sql)?.execute([&server]).map(drop)
        })
        .await
    }

    /// How many replicas are sealed to what; the empty name: not looked at.
    ///
    /// # Errors
    /// As every read.
    pub(in crate::storage) async fn seals(&self) -> Result<Vec<(String, u64)>, CatalogError> {
        self.read(|db| {
            let sql = "SELECT seal, count(*) FROM replicas WHERE state = 'stored' GROUP BY seal";
            let read = |row: &rusqlite::Row<'_>| {
                Ok((row.get(0)?, u64::try_from(row.get::<_, i64>(1)?).unwrap_or_default()))
            };
            db.prepare_cached(sql)?.query_map([], read)?.collect()
        })
        .await
    }

    /// The recipients that both vaults had when they last met.
    ///
    /// # Errors
    /// As every read.
    pub(in crate::storage) async fn shared_keys(&self) -> Result<Vec<String>, CatalogError> {
        self.read(|db| {
            let sql = "SELECT recipient FROM shared_keys ORDER BY recipient";
            db.prepare_cached(sql)?.query_map([], |row| row.get(0))?.collect()
        })
        .await
    }

    /// Remembers them.
    ///
    /// # Errors
    /// As every write.
    pub(in crate::storage) async fn share_keys(&self, recipients: Vec<String>) -> Result<(), CatalogError> {
        self.write(move |db| {
            db.execute("DELETE FROM shared_keys", [])?;
            let mut add = db.prepare_cached("INSERT OR IGNORE INTO shared_keys (recipient) VALUES (?1)")?;
            recipients.iter().try_for_each(|recipient| add.execute([recipient]).map(drop))
        })
        .await
    }
}

fn sealed_otherwise(
    db: &Connection,
    seal: &str,
    after: Option<At>,
    limit: usize,
) -> rusqlite::Result<Vec<(Entry, String)>> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let (id, server) = after.map(|(id, server)| (id.to_string(), server)).unwrap_or_default();
    let sql = "SELECT id, server FROM replicas
        WHERE (id, server) > (?2, ?3) AND state = 'stored' AND seal <> ?1 ORDER BY id, server LIMIT ?4";
    let found: Vec<At> = db
        .prepare_cached(sql)?
        .query_map(params![seal, id, server, limit], |row| Ok((id_at(row, 0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    let with_entry = |(id, server)| Ok(entry(db, &id)?.map(|entry| (entry, server)));
    found.into_iter().filter_map(|at| with_entry(at).transpose()).collect()
}

/// A replica's record is sealed to `seal`.
pub(super) fn note(db: &Connection, id: &ObjectId, server: &str, seal: &str) -> rusqlite::Result<()> {
    let sql =
        "UPDATE replicas SET seal = ?3 WHERE id = ?1 AND server = ?2 AND state = 'stored' AND seal <> ?3";
    db.prepare_cached(sql)?.execute(params![id.to_string(), server, seal]).map(drop)
}

/// The peer has seen to which keys this record is sealed. Its word counts where this vault has not
/// looked, and where the record has come to the keys in use.
pub(super) fn believe(
    db: &Connection,
    id: &ObjectId,
    server: &str,
    told: &str,
    in_use: &str,
) -> rusqlite::Result<()> {
    let sql = "UPDATE replicas SET seal = ?3
        WHERE id = ?1 AND server = ?2 AND state = 'stored' AND seal <> ?3 AND (seal = '' OR ?3 = ?4)";
    db.prepare_cached(sql)?.execute(params![id.to_string(), server, told, in_use]).map(drop)
}

/// To which keys an object's records are sealed, by file server, where that is known.
pub(super) fn seals_of(db: &Connection, id: &ObjectId) -> rusqlite::Result<BTreeMap<String, String>> {
    let sql = "SELECT server, seal FROM replicas WHERE id = ?1 AND state = 'stored' AND seal <> ''";
    db.prepare_cached(sql)?.query_map([id.to_string()], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}
