//! The catalog's SQL, one function a question. Runs on whatever connection it is handed.

use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::storage::listing::Wanted;
use crate::storage::object::{Entry, Metadata, ObjectId, OneOff, ReplicaState, State};
use crate::storage::repair::{Condition, Debt, DebtKind};

const COLUMNS: &str = "id, owner, key, label, media_type, size, created, digest, state, origin, identity";

/// How much there is of what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::storage) struct Counts {
    /// Objects that can be read.
    pub(in crate::storage) objects: u64,
    /// Intents that have not come to anything yet.
    pub(in crate::storage) pending: u64,
    /// Replicas owed, and the Unix second since when the oldest is.
    pub(in crate::storage) owed: u64,
    /// See `owed`.
    pub(in crate::storage) owed_since: Option<i64>,
    /// Objects of which no file server is known to hold a whole replica.
    pub(in crate::storage) without_replica: u64,
    /// Removals owed.
    pub(in crate::storage) removals_owed: u64,
    /// Deleted objects that wait for their purge, and since when the oldest does.
    pub(in crate::storage) deleted: u64,
    /// See `deleted`.
    pub(in crate::storage) deleted_since: Option<i64>,
}

/// Adds an object; one that is known stays as it is.
pub(super) fn insert(db: &Connection, entry: &Entry) -> rusqlite::Result<bool> {
    let known = &entry.metadata;
    let size = i64::try_from(known.size).unwrap_or(i64::MAX);
    let identity = entry.identity.as_ref().map(|identity| identity.0.as_str());
    let sql =
        format!("INSERT OR IGNORE INTO objects ({COLUMNS}) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11)");
    let added = db.prepare_cached(&sql)?.execute(params![
        entry.id.to_string(),
        known.owner,
        known.key,
        known.label,
        known.media_type,
        size,
        known.created,
        known.digest,
        number(entry.state),
        entry.origin,
        identity,
    ])?;
    Ok(added > 0)
}

/// Raises an object's state; true if that changed it.
pub(super) fn advance(db: &Connection, id: &ObjectId, state: State) -> rusqlite::Result<bool> {
    let sql = "UPDATE objects SET state = ?2 WHERE id = ?1 AND state < ?2";
    Ok(db.prepare_cached(sql)?.execute(params![id.to_string(), number(state)])? > 0)
}

/// Adds a replica unless one is known on that server; true if added.
pub(super) fn add_replica(
    db: &Connection,
    id: &ObjectId,
    server: &str,
    state: ReplicaState,
    now: i64,
    observed: bool,
) -> rusqlite::Result<bool> {
    let sql = "INSERT OR IGNORE INTO replicas (id, server, state, since, observed) VALUES (?1,?2,?3,?4,?5)";
    let values = params![id.to_string(), server, word(state), now, observed];
    Ok(db.prepare_cached(sql)?.execute(values)? > 0)
}

/// Notes what this vault saw of a replica; `since` starts anew only where the state changes.
pub(super) fn set_replica(
    db: &Connection,
    id: &ObjectId,
    server: &str,
    state: ReplicaState,
    now: i64,
) -> rusqlite::Result<()> {
    let sql = "INSERT INTO replicas (id, server, state, since, observed) VALUES (?1,?2,?3,?4,1)
        ON CONFLICT (id, server) DO UPDATE SET
            since = iif(state = excluded.state, since, excluded.since),
            tried = iif(state = excluded.state, tried, 0),
            -- Another replica than the one that was looked at.
            seal = iif(state = excluded.state, seal, ''),
            state = excluded.state, observed = 1";
    db.prepare_cached(sql)?.execute(params![id.to_string(), server, word(state), now]).map(drop)
}

/// The peer says a replica is stored where this vault has only derived that it is owed.
pub(super) fn believe_stored(
    db: &Connection,
    id: &ObjectId,
    server: &str,
    now: i64,
) -> rusqlite::Result<bool> {
    let sql = "UPDATE replicas SET state = 'stored', since = ?3
        WHERE id = ?1 AND server = ?2 AND state = 'owed' AND observed = 0";
    Ok(db.prepare_cached(sql)?.execute(params![id.to_string(), server, now])? > 0)
}

/// A replica is gone for good.
pub(super) fn forget_replica(db: &Connection, id: &ObjectId, server: &str) -> rusqlite::Result<()> {
    let sql = "DELETE FROM replicas WHERE id = ?1 AND server = ?2 AND state = 'removal_owed'";
    db.prepare_cached(sql)?.execute(params![id.to_string(), server]).map(drop)
}

/// Forgets the attempts with a key that came to nothing, so that retries do not pile up.
/// Where the peer knows one as an intent still, it comes back as that and is settled again.
pub(super) fn forget_dropped(db: &Connection, owner: &str, key: &str) -> rusqlite::Result<()> {
    let dropped = "SELECT id FROM objects WHERE owner = ?1 AND key = ?2 AND state = 1";
    for sql in [
        format!("DELETE FROM changes WHERE id IN ({dropped})"),
        "DELETE FROM objects WHERE owner = ?1 AND key = ?2 AND state = 1".to_owned(),
    ] {
        db.prepare_cached(&sql)?.execute([owner, key])?;
    }
    Ok(())
}

/// Gives an object the next change's number.
pub(super) fn touch(db: &Connection, id: &ObjectId) -> rusqlite::Result<u64> {
    db.prepare_cached("INSERT OR REPLACE INTO changes (id) VALUES (?1)")?.execute([id.to_string()])?;
    Ok(u64::try_from(db.last_insert_rowid()).unwrap_or_default())
}

pub(super) fn entry(db: &Connection, id: &ObjectId) -> rusqlite::Result<Option<Entry>> {
    let sql = format!("SELECT {COLUMNS} FROM objects WHERE id = ?1");
    let found = db.prepare_cached(&sql)?.query_row([id.to_string()], from_row).optional()?;
    found.map(|entry| with_replicas(db, entry)).transpose()
}

pub(super) fn by_key(db: &Connection, owner: &str, key: &str) -> rusqlite::Result<Vec<Entry>> {
    let sql = format!("SELECT {COLUMNS} FROM objects WHERE owner = ?1 AND key = ?2 ORDER BY id");
    let found: Vec<_> =
        db.prepare_cached(&sql)?.query_map([owner, key], from_row)?.collect::<Result<_, _>>()?;
    found.into_iter().map(|entry| with_replicas(db, entry)).collect()
}

/// With the Unix second at which this vault learnt of its deletion, where it is deleted.
pub(super) fn list(
    db: &Connection,
    wanted: &Wanted,
    after: Option<&ObjectId>,
    limit: usize,
) -> rusqlite::Result<Vec<(Entry, Option<i64>)>> {
    let after = after.map(ToString::to_string).unwrap_or_default();
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let of = if wanted.owner.is_some() { "owner = ?3" } else { "?3 IS NULL" };
    let named = if wanted.label.is_some() { "instr(lower(label), lower(?4)) > 0" } else { "?4 IS NULL" };
    let state = number(if wanted.deleted { State::Deleted } else { State::Stored });
    let sql = format!(
        "SELECT {COLUMNS}, deleted FROM objects
        WHERE {of} AND state = {state} AND {named} AND id > ?1 ORDER BY id LIMIT ?2"
    );
    let read = |row: &Row<'_>| Ok((from_row(row)?, row.get(11)?));
    let found: Vec<(Entry, Option<i64>)> = db
        .prepare_cached(&sql)?
        .query_map(params![after, limit, wanted.owner, wanted.label], read)?
        .collect::<Result<_, _>>()?;
    found.into_iter().map(|(entry, deleted)| Ok((with_replicas(db, entry)?, deleted))).collect()
}

pub(super) fn held(db: &Connection, after: Option<&ObjectId>, limit: usize) -> rusqlite::Result<Vec<Entry>> {
    let after = after.map(ToString::to_string).unwrap_or_default();
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let sql = format!("SELECT {COLUMNS} FROM objects WHERE id > ?1 AND state IN (2, 3) ORDER BY id LIMIT ?2");
    let found: Vec<_> =
        db.prepare_cached(&sql)?.query_map(params![after, limit], from_row)?.collect::<Result<_, _>>()?;
    found.into_iter().map(|entry| with_replicas(db, entry)).collect()
}

pub(super) fn pending(db: &Connection, origin: &str, limit: usize) -> rusqlite::Result<Vec<Entry>> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let sql = format!("SELECT {COLUMNS} FROM objects WHERE origin = ?1 AND state = 0 ORDER BY id LIMIT ?2");
    db.prepare_cached(&sql)?.query_map(params![origin, limit], from_row)?.collect()
}

/// Debts that can be paid between these file servers: of what is owed to one that is away there
/// may be any number, and it must not fill the page.
/// What failed several times is due ever more rarely, at last every 64th `turn`.
pub(super) fn debts(
    db: &Connection,
    servers: &[Condition],
    turn: u32,
    limit: usize,
) -> rusqlite::Result<Vec<Debt>> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let names = |write: bool| {
        let able = servers.iter().filter(|server| server.up && !(write && server.full));
        serde_json::Value::from(able.map(|server| server.server.as_str()).collect::<Vec<_>>()).to_string()
    };
    let sql = "SELECT r.id, r.server, r.state, r.since, r.observed, o.size,
            (SELECT group_concat(s.server, '/') FROM replicas s WHERE s.id = r.id AND s.state = 'stored'),
            r.tried
        FROM replicas r JOIN objects o ON o.id = r.id
        WHERE r.state <> 'stored' AND ?4 % (1 << min(max(r.tried - 2, 0), 6)) = 0 AND CASE r.state
            WHEN 'removal_owed' THEN r.server IN (SELECT value FROM json_each(?2))
            ELSE r.server IN (SELECT value FROM json_each(?3)) AND (
                NOT EXISTS (SELECT 1 FROM replicas s WHERE s.id = r.id AND s.state = 'stored')
                OR EXISTS (SELECT 1 FROM replicas s WHERE s.id = r.id AND s.state = 'stored'
                    AND s.server IN (SELECT value FROM json_each(?2))))
            END
        ORDER BY r.tried, r.since LIMIT ?1";
    let read = |row: &Row<'_>| {
        let sources: Option<String> = row.get(6)?;
        let state: String = row.get(2)?;
        Ok(Debt {
            id: id_at(row, 0)?,
            server: row.get(1)?,
            kind: if state == "removal_owed" { DebtKind::Removal } else { DebtKind::Replica },
            since: row.get(3)?,
            observed: row.get(4)?,
            size: u64::try_from(row.get::<_, i64>(5)?).unwrap_or_default(),
            sources: sources.iter().flat_map(|names| names.split('/')).map(str::to_owned).collect(),
            tried: row.get(7)?,
        })
    };
    db.prepare_cached(sql)?.query_map(params![limit, names(false), names(true), turn], read)?.collect()
}

/// Paying what is owed of this object has failed once more.
pub(super) fn tried(db: &Connection, id: &ObjectId) -> rusqlite::Result<()> {
    let sql = "UPDATE replicas SET tried = tried + 1 WHERE id = ?1 AND state <> 'stored'";
    db.prepare_cached(sql)?.execute([id.to_string()]).map(drop)
}

pub(super) fn counts(db: &Connection) -> rusqlite::Result<Counts> {
    let count = |sql: &str| -> rusqlite::Result<u64> {
        let found: i64 = db.prepare_cached(sql)?.query_row([], |row| row.get(0))?;
        Ok(u64::try_from(found).unwrap_or_default())
    };
    let owed = "FROM replicas WHERE state <> 'stored' AND state IN ('owed', 'damaged')";
    Ok(Counts {
        objects: count("SELECT count(*) FROM objects WHERE state = 2")?,
        pending: count("SELECT count(*) FROM objects WHERE state = 0")?,
        owed: count(&format!("SELECT count(*) {owed}"))?,
        owed_since: db.query_row(&format!("SELECT min(since) {owed}"), [], |row| row.get(0))?,
        without_replica: without_replica(db)?,
        removals_owed: count(
            "SELECT count(*) FROM replicas WHERE state <> 'stored' AND state = 'removal_owed'",
        )?,
        deleted: count("SELECT count(*) FROM objects WHERE state = 3")?,
        deleted_since: db
            .query_row("SELECT min(deleted) FROM objects WHERE state = 3", [], |row| row.get(0))?,
    })
}

/// What is owed to every file server. Asked of the one that is owed least: all that a wiped one is
/// owed may be millions.
fn without_replica(db: &Connection) -> rusqlite::Result<u64> {
    let sql = "SELECT server, count(*) FROM replicas WHERE state IN ('owed', 'damaged')
        GROUP BY server ORDER BY 2 LIMIT 2";
    let read = |row: &Row<'_>| row.get::<_, String>(0);
    let indebted: Vec<_> = db.prepare_cached(sql)?.query_map([], read)?.collect::<Result<_, _>>()?;
    let [least, _] = indebted.as_slice() else { return Ok(0) };
    let sql = "SELECT count(*) FROM replicas r WHERE r.server = ?1 AND r.state IN ('owed', 'damaged')
        AND NOT EXISTS (SELECT 1 FROM replicas s WHERE s.id = r.id AND s.state = 'stored')";
    let found: i64 = db.prepare_cached(sql)?.query_row([least], |row| row.get(0))?;
    Ok(u64::try_from(found).unwrap_or_default())
}

pub(super) fn place(db: &Connection, server: &str) -> rusqlite::Result<Option<String>> {
    db.query_row("SELECT place FROM places WHERE server = ?1", [server], |row| row.get(0)).optional()
}

pub(super) fn remember_place(db: &Connection, server: &str, place: &str) -> rusqlite::Result<()> {
    db.execute("INSERT OR IGNORE INTO places (server, place) VALUES (?1, ?2)", [server, place]).map(drop)
}

pub(super) fn knows_objects(db: &Connection, server: &str) -> rusqlite::Result<bool> {
    db.query_row(
        "SELECT EXISTS (SELECT 1 FROM replicas WHERE server = ?1 AND state = 'stored')",
        [server],
        |row| row.get(0),
    )
}

/// From now on this catalog is in use.
pub(super) fn use_it(db: &Connection) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT OR IGNORE INTO used VALUES (1)")?.execute([]).map(drop)
}

pub(super) fn is_used(db: &Connection) -> rusqlite::Result<bool> {
    db.query_row("SELECT EXISTS (SELECT 1 FROM used)", [], |row| row.get(0))
}

pub(super) fn walk(db: &Connection, name: &str) -> rusqlite::Result<Option<ObjectId>> {
    let sql = "SELECT after FROM walks WHERE name = ?1";
    db.query_row(sql, [name], |row| id_at(row, 0)).optional()
}

/// Notes how far a walk is, or that it has come to its end.
pub(super) fn keep_walk(db: &Connection, name: &str, after: Option<&ObjectId>) -> rusqlite::Result<()> {
    let done = match after {
        Some(id) => db
            .prepare_cached("INSERT OR REPLACE INTO walks (name, after) VALUES (?1, ?2)")?
            .execute([name, &id.to_string()]),
        None => db.execute("DELETE FROM walks WHERE name = ?1", [name]),
    };
    done.map(drop)
}

pub(super) fn from_row(row: &Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry {
        id: id_at(row, 0)?,
        metadata: Metadata {
            owner: row.get(1)?,
            key: row.get(2)?,
            label: row.get(3)?,
            media_type: row.get(4)?,
            size: u64::try_from(row.get::<_, i64>(5)?).unwrap_or_default(),
            created: row.get(6)?,
            digest: row.get(7)?,
        },
        state: state_of(row.get(8)?),
        origin: row.get(9)?,
        identity: row.get::<_, Option<String>>(10)?.map(OneOff),
        replicas: Vec::new(),
    })
}

pub(super) fn with_replicas(db: &Connection, mut entry: Entry) -> rusqlite::Result<Entry> {
    let sql = "SELECT server, state FROM replicas WHERE id = ?1 ORDER BY server";
    let read = |row: &Row<'_>| {
        let state: String = row.get(1)?;
        Ok((row.get(0)?, replica_state_of(&state)))
    };
    entry.replicas =
        db.prepare_cached(sql)?.query_map([entry.id.to_string()], read)?.collect::<Result<_, _>>()?;
    Ok(entry)
}

pub(super) fn id_at(row: &Row<'_>, index: usize) -> rusqlite::Result<ObjectId> {
    let text: String = row.get(index)?;
    text.parse().map_err(|why: &str| {
        rusqlite::Error::FromSqlConversionFailure(index, rusqlite::types::Type::Text, why.into())
    })
}

pub(super) const fn state_of(number: i64) -> State {
    match number {
        0 => State::Pending,
        1 => State::Dropped,
        2 => State::Stored,
        3 => State::Deleted,
        _ => State::Purged,
    }
}

pub(super) const fn number(state: State) -> i64 {
    match state {
        State::Pending => 0,
        State::Dropped => 1,
        State::Stored => 2,
        State::Deleted => 3,
        State::Purged => 4,
    }
}

pub(super) const fn word(state: ReplicaState) -> &'static str {
    match state {
        ReplicaState::Stored => "stored",
        ReplicaState::Owed => "owed",
        ReplicaState::Damaged => "damaged",
        ReplicaState::RemovalOwed => "removal_owed",
    }
}

pub(super) fn replica_state_of(word: &str) -> ReplicaState {
    match word {
        "stored" => ReplicaState::Stored,
        "owed" => ReplicaState::Owed,
        "damaged" => ReplicaState::Damaged,
        _ => ReplicaState::RemovalOwed,
    }
}
