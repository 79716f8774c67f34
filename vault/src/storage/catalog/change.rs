//! What one catalog tells the other, and how it is taken over: a merge that may come in any
//! order and any number of times.

use std::collections::BTreeMap;

use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};
use shared::api::{MAX_KEY, MAX_LABEL};
use shared::tls::is_name;

use super::deletion::{purge, settle};
use super::rows::{add_replica, advance, believe_stored, entry, from_row, insert, with_replicas};
use super::seals::{believe, seals_of};
use super::tombstones::apply;
use crate::storage::object::{Entry, Metadata, ObjectId, OneOff, ReplicaState, State};

/// One object's state, as one catalog tells it to the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Counts the teller's changes; the receiver's cursor.
    pub seq: u64,
    /// Which object.
    pub id: ObjectId,
    /// What is known of it.
    pub metadata: Metadata,
    /// What became of it.
    pub state: State,
    /// The vault that took the upload.
    pub origin: String,
    /// Deletions and undeletions so far: between these two states the larger wins.
    #[serde(default)]
    pub revision: u32,
    /// What decrypts it; none once purged.
    pub identity: Option<OneOff>,
    /// File servers where the teller knows it stored.
    pub stored_on: Vec<String>,
    /// By file server: to which keys its record is sealed, where the teller has seen it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub seals: BTreeMap<String, String>,
}

impl Change {
    /// As this program says it: for earlier ones a deletion destroyed the one-off identity at once.
    pub(super) fn understood(mut self) -> Self {
        if self.state == State::Deleted && self.identity.is_none() {
            self.state = State::Purged;
        }
        self
    }

    /// Takes over which keys the records are sealed to, where this vault has not looked itself. That
    /// they follow the keys in use (`seal`) is believed: rewrapping on one vault is enough for both.
    pub(super) fn take_over_seals(&self, db: &Connection, seal: &str) -> rusqlite::Result<()> {
        let stored = |server: &String| self.state >= State::Stored && self.stored_on.contains(server);
        for (server, told) in self.seals.iter().filter(|(server, _)| stored(server)) {
            believe(db, &self.id, server, told, seal)?;
        }
        Ok(())
    }

    /// Within the limits that every change of ours keeps? Others are not merged.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let known = &self.metadata;
        is_name(&known.owner)
            && is_name(&self.origin)
            && known.key.len() <= MAX_KEY
            && known.label.len() <= MAX_LABEL
            && known.media_type.len() <= 1024
            && known.created.len() <= 64
            && known.digest.len() <= 64
            && self.stored_on.len() <= 16
            && self.seals.len() <= 16
            && self.seals.values().all(|seal| seal.len() <= 256)
            && (self.state == State::Purged || self.identity.is_some())
            && self.revision % 2 == u32::from(self.state == State::Deleted)
            && (self.revision == 0 || matches!(self.state, State::Stored | State::Deleted))
    }
}

pub(super) fn last_change(db: &Connection) -> rusqlite::Result<u64> {
    let sql = "SELECT ifnull(max(seq), 0) FROM changes";
    let last: i64 = db.prepare_cached(sql)?.query_row([], |row| row.get(0))?;
    Ok(u64::try_from(last).unwrap_or_default())
}

pub(super) fn changes_since(db: &Connection, cursor: u64, limit: usize) -> rusqlite::Result<Vec<Change>> {
    let cursor = i64::try_from(cursor).unwrap_or(i64::MAX);
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let sql =
        "SELECT o.id, owner, key, label, media_type, size, created, digest, state, origin, identity, seq, revision
        FROM changes c JOIN objects o ON o.id = c.id WHERE c.seq > ?1 ORDER BY c.seq LIMIT ?2";
    let found: Vec<(Entry, i64, u32)> = db
        .prepare_cached(sql)?
        .query_map(params![cursor, limit], |row| Ok((from_row(row)?, row.get(11)?, row.get(12)?)))?
        .collect::<Result<_, _>>()?;
    found
        .into_iter()
        .map(|(entry, seq, revision)| {
            let entry = with_replicas(db, entry)?;
            let stored_on = entry.stored_on();
            let Entry { id, metadata, state, origin, identity, .. } = entry;
            let (seq, seals) = (u64::try_from(seq).unwrap_or_default(), seals_of(db, &id)?);
            Ok(Change { seq, id, metadata, state, origin, revision, identity, stored_on, seals })
        })
        .collect()
}

/// Takes over one change; true if anything is new.
pub(super) fn merge_one(
    db: &Connection,
    change: &Change,
    servers: &[String],
    now: i64,
) -> rusqlite::Result<bool> {
    let known = entry(db, &change.id)?;
    if known.as_ref().is_some_and(|known| is_known(known, change, servers)) {
        return Ok(false);
    }
    let mut new = known.is_none() && insert(db, &entry_of(change))?;
    match change.state {
        State::Purged => return Ok(purge(db, &change.id, servers, now, false)? || new),
        State::Stored | State::Deleted => {
            new |= settle(db, &change.id, change.state, change.revision, now)?;
        }
        State::Pending | State::Dropped => new |= advance(db, &change.id, change.state)?,
    }
    new |= apply(db, &change.id, now)?;
    let Some(merged) = entry(db, &change.id)? else { return Ok(new) };
    if !matches!(merged.state, State::Stored | State::Deleted) {
        return Ok(new);
    }
    for server in servers {
        let told = change.state >= State::Stored && change.stored_on.contains(server);
        let state = if told { ReplicaState::Stored } else { ReplicaState::Owed };
        new |= add_replica(db, &change.id, server, state, now, false)?;
        // What this vault has seen missing stays owed until it has seen it stored.
        new |= told && believe_stored(db, &change.id, server, now)?;
    }
    Ok(new)
}

/// Says it nothing new? Most of what comes has been told to the peer by this vault.
fn is_known(known: &Entry, change: &Change, servers: &[String]) -> bool {
    let holds = |server: &String| {
        let state = known.replicas.iter().find(|(name, _)| name == server).map(|(_, state)| *state);
        state.is_some() && (state == Some(ReplicaState::Stored) || !change.stored_on.contains(server))
    };
    match (change.state, known.state) {
        (State::Pending, State::Pending) => true,
        // What has been deleted once is counted.
        (State::Pending | State::Stored, State::Stored) => change.revision == 0 && servers.iter().all(holds),
        _ => false,
    }
}

fn entry_of(change: &Change) -> Entry {
    // One that has left is added as pending, so that its leaving does to it what it does to any.
    let state = if change.state > State::Stored { State::Pending } else { change.state };
    Entry {
        id: change.id,
        metadata: change.metadata.clone(),
        state,
        origin: change.origin.clone(),
        identity: change.identity.clone(),
        replicas: Vec::new(),
    }
}
