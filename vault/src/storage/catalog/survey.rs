//! The catalog's questions and notes about all objects at once: what to compare with the file
//! servers' listings, inventories, deleted objects, rounds. The SQL of single objects is in `rows`.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::deletion;
use super::rows::{self, id_at, number, word};
use super::tombstones::{each_revised, forget};
use super::{Catalog, CatalogError};
use crate::storage::comparison::Known;
use crate::storage::debts::Owed;
use crate::storage::inventory::{Gathering, Inventory, Remembered};
use crate::storage::object::{Entry, Metadata, ObjectId, ReplicaState, State};
use crate::storage::round::Round;

/// What one file server is owed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::storage) struct ServerDebts {
    /// The file server.
    pub(in crate::storage) server: String,
    /// Replicas owed.
    pub(in crate::storage) owed: u64,
    /// The Unix second since when the oldest is.
    pub(in crate::storage) since: i64,
}

impl Catalog {
    /// The objects whose ids start with `prefix`, in order, with each file server's replica in
    /// the order of the settings.
    ///
    /// # Errors
    /// As every read.
    pub(in crate::storage) async fn known_under(&self, prefix: String) -> Result<Vec<Known>, CatalogError> {
        let servers = Arc::clone(&self.servers);
        self.read(move |db| known_under(db, &prefix, &servers)).await
    }

    /// What lies on a file server as far as the catalog knows, and which objects are purged, or
    /// were deleted or taken back.
    ///
    /// # Errors
    /// As every read.
    pub(in crate::storage) async fn inventory(&self, server: String) -> Result<Inventory, CatalogError> {
        self.read(move |db| {
            let mut gathering = Gathering::default();
            let sql = "SELECT id FROM replicas WHERE server = ?1 AND state = 'stored' ORDER BY id";
            each_id(db, sql, &[&server], |id| gathering.replica(&id))?;
            each_id(db, PURGED, &["", "g"], |id| gathering.purged(&id))?;
            each_revised(db, "", |id, revision| gathering.revised(&id, revision))?;
            Ok(gathering.finish())
        })
        .await
    }

    /// Purged objects whose ids start with `prefix`, in order.
    ///
    /// # Errors
    /// As every read.
    pub(in crate::storage) async fn purged_under(
        &self,
        prefix: String,
    ) -> Result<Vec<ObjectId>, CatalogError> {
        self.read(move |db| {
            let mut found = Vec::new();
            each_id(db, PURGED, &[&prefix, &behind(&prefix)], |id| found.push(id))?;
            Ok(found)
        })
        .await
    }

    /// Those of these objects that are purged.
    ///
    /// # Errors
    /// As every read.
    pub(in crate::storage) async fn purged_among(
        &self,
        mut ids: Vec<ObjectId>,
    ) -> Result<Vec<ObjectId>, CatalogError> {
        self.read(move |db| {
            let mut statement = db.prepare_cached("SELECT 1 FROM objects WHERE id = ?1 AND state = 4")?;
            let mut failed = None;
            ids.retain(|id| match statement.exists([id.to_string()]) {
                Ok(purged) => purged,
                Err(error) => {
                    failed.get_or_insert(error);
                    false
                }
            });
            failed.map_or(Ok(ids), Err)
        })
        .await
    }

    /// Takes over that these objects are purged, as a note on a file server tells; of one that is
    /// known nothing else, nothing else is.
    ///
    /// # Errors
    /// As every write.
    pub(in crate::storage) async fn bury(&self, ids: Vec<ObjectId>, now: i64) -> Result<(), CatalogError> {
        let servers = Arc::clone(&self.servers);
        self.write(move |db| {
            for id in &ids {
                let known = rows::entry(db, id)?;
                if known.is_none() {
                    // The peer knows more of it or has the same note: nothing to tell.
                    rows::insert(db, &nameless(*id))?;
                    forget(db, id)?;
                } else if deletion::purge(db, id, &servers, now, true)? {
                    rows::touch(db, id)?;
                }
            }
            Ok(())
        })
        .await
    }

    /// Notes in one go what was seen of replicas, as [`Catalog::observed`] does of one.
    ///
    /// # Errors
    /// As every write; then none is noted.
    pub(in crate::storage) async fn observed_all(
        &self,
        seen: Vec<(ObjectId, String, ReplicaState)>,
        now: i64,
    ) -> Result<(), CatalogError> {
        self.write(move |db| {
            seen.iter().try_for_each(|(id, server, state)| super::observe(db, id, server, *state, now))
        })
        .await
    }

    /// The last inventory written to a file server.
    ///
    /// # Errors
    /// As every read.
    pub(in crate::storage) async fn generation(
        &self,
        server: String,
    ) -> Result<Option<Remembered>, CatalogError> {
        self.read(move |db| {
            let sql = "SELECT generation, confirmed, change, at FROM generations WHERE server = ?1";
            let read = |row: &Row<'_>| {
                Ok(Remembered {
                    generation: unsigned(row.get(0)?),
                    confirmed: row.get(1)?,
                    change: unsigned(row.get(2)?),
                    at: row.get(3)?,
                })
            };
            db.prepare_cached(sql)?.query_row([server], read).optional()
        })
        .await
    }

    /// Remembers the inventory that is about to be written, or has been.
    ///
    /// # Errors
    /// As every write.
    pub(in crate::storage) async fn remember_generation(
        &self,
        server: String,
        memory: Remembered,
    ) -> Result<(), CatalogError> {
        self.write(move |db| {
            let sql = "INSERT OR REPLACE INTO generations (server, generation, confirmed, change, at)
                VALUES (?1,?2,?3,?4,?5)";
            let Remembered { generation, confirmed, change, at } = memory;
            db.prepare_cached(sql)?
                .execute(params![server, signed(generation), confirmed, signed(change), at])
                .map(drop)
        })
        .await
    }

    /// A round's state; the default for one that never was.
    ///
    /// # Errors
    /// As every read.
    pub(in crate::storage) async fn round(&self, name: &'static str) -> Result<Round, CatalogError> {
        self.read(move |db| stored_round(db, name)).await
    }

    /// Keeps a round's state.
    ///
    /// # Errors
    /// As every write.
    pub(in crate::storage) async fn keep_round(
        &self,
        name: &'static str,
        round: Round,
    ) -> Result<(), CatalogError> {
        self.write(move |db| keep_round(db, name, &round)).await
    }

    /// Keeps a round's state, unless somebody has changed it since it was `was`; true if kept.
    ///
    /// # Errors
    /// As every write.
    pub(in crate::storage) async fn keep_round_if(
        &self,
        name: &'static str,
        was: Round,
        round: Round,
    ) -> Result<bool, CatalogError> {
        self.write(move |db| {
            let unchanged = stored_round(db, name)? == was;
            if unchanged {
                keep_round(db, name, &round)?;
            }
            Ok(unchanged)
        })
        .await
    }

    /// A file server's name will stand for a new place, for `successor` where that is known already:
    /// nothing of what was there is, all of it is owed.
    ///
    /// # Errors
    /// As every write.
    pub(in crate::storage) async fn forget_place(
        &self,
        server: String,
        successor: Option<String>,
        now: i64,
    ) -> Result<u64, CatalogError> {
        self.write(move |db| {
            db.execute("DELETE FROM places WHERE server = ?1", [&server])?;
            if let Some(place) = &successor {
                rows::remember_place(db, &server, place)?;
            }
            db.execute("DELETE FROM generations WHERE server = ?1", [&server])?;
            let sql = "DELETE FROM replicas WHERE server = ?1 AND state = 'removal_owed'";
            db.execute(sql, [&server])?;
            let sql = "UPDATE replicas SET state = 'owed', since = ?2, observed = 1, tried = 0
                WHERE server = ?1 AND state <> 'owed'";
            let owed = db.execute(sql, params![server, now])?;
            Ok(owed as u64)
        })
        .await
    }

    /// Objects that have replicas, deleted ones that may be taken back among them, after `after`, in
    /// order of id.
    ///
    /// # Errors
    /// As every read.
    pub(in crate::storage) async fn held(
        &self,
        after: Option<ObjectId>,
        limit: usize,
    ) -> Result<Vec<Entry>, CatalogError> {
        self.read(move |db| rows::held(db, after.as_ref(), limit)).await
    }

    /// What is owed, the oldest first.
    ///
    /// # Errors
    /// As every read.
    pub(in crate::storage) async fn owed(&self, limit: usize) -> Result<Vec<Owed>, CatalogError> {
        self.read(move |db| {
            let sql = "SELECT r.id, r.server, r.state, r.since, r.tried, EXISTS
                    (SELECT 1 FROM replicas s WHERE s.id = r.id AND s.state = 'stored')
                FROM replicas r WHERE r.state <> 'stored' ORDER BY r.since, r.id LIMIT ?1";
            let read = |row: &Row<'_>| {
                let state: String = row.get(2)?;
                let removal = state == word(ReplicaState::RemovalOwed);
                Ok(Owed {
                    id: id_at(row, 0)?,
                    server: row.get(1)?,
                    removal,
                    since: row.get(3)?,
                    tried: unsigned(row.get(4)?),
                    somewhere: row.get(5)?,
                    why: String::new(),
                })
            };
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            db.prepare_cached(sql)?.query_map([limit], read)?.collect()
        })
        .await
    }

    /// What each file server is owed; those that are owed nothing are left out.
    ///
    /// # Errors
    /// As every read.
    pub(in crate::storage) async fn debts_by_server(&self) -> Result<Vec<ServerDebts>, CatalogError> {
        self.read(|db| {
            let sql = "SELECT server, count(*), min(since) FROM replicas
                WHERE state <> 'stored' AND state IN ('owed', 'damaged') GROUP BY server";
            let read = |row: &Row<'_>| {
                Ok(ServerDebts { server: row.get(0)?, owed: unsigned(row.get(1)?), since: row.get(2)? })
            };
            db.prepare_cached(sql)?.query_map([], read)?.collect()
        })
        .await
    }
}

const PURGED: &str = "SELECT id FROM objects WHERE state = 4 AND id >= ?1 AND id < ?2 ORDER BY id";

/// What comes behind every id with this prefix: no hex digit is larger than `f`.
pub(super) fn behind(prefix: &str) -> String {
    format!("{prefix}g")
}

fn stored_round(db: &Connection, name: &str) -> rusqlite::Result<Round> {
    let sql = "SELECT running, position, begun, finished, checked, damaged, mended, skipped, left_out, again,
        paused FROM rounds WHERE name = ?1";
    let read = |row: &Row<'_>| {
        let position: Option<String> = row.get(1)?;
        let left_out: String = row.get(8)?;
        Ok(Round {
            running: row.get(0)?,
            // One that does not read is begun anew.
            position: position.and_then(|text| text.parse().ok()),
            begun: row.get(2)?,
            finished: row.get(3)?,
            checked: unsigned(row.get(4)?),
            damaged: unsigned(row.get(5)?),
            mended: unsigned(row.get(6)?),
            skipped: unsigned(row.get(7)?),
            left_out: serde_json::from_str(&left_out).unwrap_or_default(),
            again: row.get(9)?,
            paused: row.get(10)?,
        })
    };
    Ok(db.prepare_cached(sql)?.query_row([name], read).optional()?.unwrap_or_default())
}

fn keep_round(db: &Connection, name: &str, round: &Round) -> rusqlite::Result<()> {
    let sql = "INSERT OR REPLACE INTO rounds (name, running, position, begun, finished, checked, damaged,
        mended, skipped, left_out, again, paused) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12)";
    let position = round.position.map(|id| id.to_string());
    let Round { running, begun, finished, again, paused, .. } = round;
    let [checked, damaged, mended, skipped] =
        [round.checked, round.damaged, round.mended, round.skipped].map(signed);
    let left_out = serde_json::Value::from(round.left_out.clone()).to_string();
    let values = params![
        name, running, position, begun, finished, checked, damaged, mended, skipped, left_out, again, paused
    ];
    db.prepare_cached(sql)?.execute(values).map(drop)
}

fn known_under(db: &Connection, prefix: &str, servers: &[String]) -> rusqlite::Result<Vec<Known>> {
    let sql = "SELECT o.id, o.state, r.server, r.state FROM objects o LEFT JOIN replicas r ON r.id = o.id
        WHERE o.id >= ?1 AND o.id < ?2 ORDER BY o.id";
    let mut statement = db.prepare_cached(sql)?;
    let mut found = statement.query([prefix, &behind(prefix)])?;
    let mut objects: Vec<Known> = Vec::new();
    while let Some(row) = found.next()? {
        let id = id_at(row, 0)?;
        if objects.last().is_none_or(|last| last.id != id) {
            let state = rows::state_of(row.get(1)?);
            objects.push(Known { id, state, replicas: vec![None; servers.len()] });
        }
        let (server, state): (Option<String>, Option<String>) = (row.get(2)?, row.get(3)?);
        let at = servers.iter().position(|name| Some(name) == server.as_ref());
        if let (Some(object), Some(at), Some(state)) = (objects.last_mut(), at, state) {
            object.replicas[at] = Some(rows::replica_state_of(&state));
        }
    }
    Ok(objects)
}

fn each_id(
    db: &Connection,
    sql: &str,
    values: &[&str],
    mut each: impl FnMut(ObjectId),
) -> rusqlite::Result<()> {
    let mut statement = db.prepare_cached(sql)?;
    let mut found = statement.query(rusqlite::params_from_iter(values))?;
    while let Some(row) = found.next()? {
        each(id_at(row, 0)?);
    }
    Ok(())
}

/// A purged object of which nothing else is known.
fn nameless(id: ObjectId) -> Entry {
    debug_assert!(number(State::Purged) == 4, "the index of purged objects counts on it");
    let metadata = Metadata {
        owner: String::new(),
        key: String::new(),
        label: String::new(),
        media_type: String::new(),
        size: 0,
        created: String::new(),
        digest: String::new(),
    };
    let (origin, replicas) = (String::new(), Vec::new());
    Entry { id, metadata, state: State::Purged, origin, identity: None, replicas }
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
