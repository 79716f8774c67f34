//! What the journal derives of the ledger's entries, in the transaction that adds them:
//! numbers as they stand, ranges, lives, and which rows given alone are needed no more.

use rusqlite::{Connection, OptionalExtension as _, Transaction, params};

use super::keys::{Change, Keys};
use crate::sequence::book::{SeriesName, given_up_for};
use crate::sequence::carry::unused;
use crate::sequence::definition::base_of;
use crate::sequence::entry::{Act, Entry, Tail};
use crate::sequence::standing::{LifeState, Standing};

pub(super) fn last_number(connection: &Connection, owner: &str, series: &str) -> rusqlite::Result<u64> {
    connection
        .prepare_cached(
            "SELECT max(coalesce(max(number), 0), 0) FROM number WHERE owner = ?1 AND series = ?2",
        )?
        .query_row(params![owner, series], |row| row.get(0))
}

/// Does the chain run through there?
pub(super) fn stands(transaction: &Transaction<'_>, tail: Tail) -> rusqlite::Result<bool> {
    let hash = transaction
        .query_row("SELECT hash FROM entry WHERE idx = ?1", params![tail.index], |row| {
            row.get::<_, [u8; 32]>(0)
        })
        .optional()?;
    Ok(tail == Tail::default() || hash == Some(tail.hash.0))
}

pub(super) fn name_of(entry: &Entry) -> SeriesName {
    SeriesName { owner: entry.owner.clone(), series: entry.series.clone() }
}

pub(super) fn put_series(
    transaction: &Transaction<'_>,
    standing: &Standing,
    name: &SeriesName,
) -> rusqlite::Result<()> {
    let put = |table: &str, text: serde_json::Result<String>| {
        let text = text.map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
        let sql =
            format!("INSERT INTO {table} VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET text = excluded.text");
        transaction.prepare_cached(&sql)?.execute(params![name.owner, name.series, text]).map(drop)
    };
    if let Some(definition) = standing.definition(name).filter(|_| base_of(&name.series) == name.series) {
        put("definition", serde_json::to_string(definition))?;
    }
    match standing.series(name) {
        Some(series) => put("series", serde_json::to_string(series)),
        None => Ok(()),
    }
}

pub(super) fn put_lives(transaction: &Transaction<'_>, standing: &Standing) -> rusqlite::Result<()> {
    transaction.execute("DELETE FROM life", [])?;
    for (life, state, vault, carried) in standing.lives() {
        transaction.prepare_cached("INSERT INTO life VALUES (?1, ?2, ?3, ?4)")?.execute(params![
            life.to_be_bytes(),
            vault,
            life_word(state),
            carried
        ])?;
    }
    Ok(())
}

fn life_word(state: LifeState) -> &'static str {
    match state {
        LifeState::Present => "present",
        LifeState::Proven => "proven",
        LifeState::Lost => "lost",
        LifeState::Sealed => "sealed",
        LifeState::Replaced => "replaced",
    }
}

pub(super) fn life_state(word: &str) -> Option<LifeState> {
    use LifeState::{Lost, Present, Proven, Replaced, Sealed};
    [Present, Proven, Lost, Sealed, Replaced].into_iter().find(|state| life_word(*state) == word)
}

/// Removes the rows that stand in the chain for good; tells whether others are left.
pub(super) fn forget_carried(transaction: &Transaction<'_>, last: u64) -> rusqlite::Result<bool> {
    let lives: Vec<[u8; 16]> = transaction
        .prepare_cached("SELECT DISTINCT life FROM solo")?
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    for life in lives {
        transaction
            .prepare_cached(
                "DELETE FROM solo WHERE life = ?1 AND idx <= (SELECT carried FROM entry
                 WHERE life = ?1 AND carried > 0 AND idx <= ?2 ORDER BY carried DESC LIMIT 1)",
            )?
            .execute(params![life, last])?;
    }
    transaction
        .prepare_cached("SELECT count(*) FROM (SELECT 1 FROM solo LIMIT 1)")?
        .query_row([], |row| Ok(row.get::<_, u64>(0)? > 0))
}

/// Does it give the next number to a new key, as nearly all entries do?
pub(super) fn is_plain(entry: &Entry) -> bool {
    matches!(entry.act, Act::Reserve(_)) && entry.carried == 0
}

/// As [`apply`], for plain entries in a row that stand in their table already: all at once, since
/// each statement has its price.
pub(super) fn reserve(
    transaction: &Transaction<'_>,
    entries: &[Entry],
    keys: &Keys,
    change: &mut Change,
) -> rusqlite::Result<()> {
    let [first, .., last] = entries else {
        return entries.iter().try_for_each(|entry| apply(transaction, entry, keys, change));
    };
    entries.iter().try_for_each(|entry| keys.add(transaction, change, entry))?;
    let added = transaction
        .prepare_cached(
            "INSERT INTO number SELECT owner, series, number, key, 'reserved', NULL, NULL, idx, hash
             FROM entry WHERE idx BETWEEN ?1 AND ?2 ORDER BY idx",
        )?
        .execute([first.index, last.index])?;
    if added == entries.len() { Ok(()) } else { Err(rusqlite::Error::StatementChangedRows(added)) }
}

/// Brings the entry's key and the derived `number` row up to date. A reserve that meets a taken
/// number or key violates the table's keys, and the whole write fails: the last fence.
pub(super) fn apply(
    transaction: &Transaction<'_>,
    entry: &Entry,
    keys: &Keys,
    change: &mut Change,
) -> rusqlite::Result<()> {
    take_key(transaction, entry, keys, change)?;
    put_number(transaction, entry)
}

/// What [`apply`] does about the key.
pub(super) fn take_key(
    transaction: &Transaction<'_>,
    entry: &Entry,
    keys: &Keys,
    change: &mut Change,
) -> rusqlite::Result<()> {
    match &entry.act {
        Act::Reserve(_) if entry.carried > 0 => {
            // A key that was given up, and turns out to have been answered before.
            if let Some(burnt) = keys.free_burnt(transaction, change, entry)? {
                transaction
                    .prepare_cached("DELETE FROM number WHERE owner = ?1 AND series = ?2 AND number = -?3")?
                    .execute(params![entry.owner, entry.series, burnt])?;
            }
            keys.add(transaction, change, entry)?;
        }
        Act::Reserve(_) | Act::Spoil(_) => keys.add(transaction, change, entry)?,
        Act::Supersede(_) if entry.number == 0 => keys.add(transaction, change, entry)?,
        Act::Displace(_) => keys.free(transaction, change, entry)?,
        _ => {}
    }
    Ok(())
}

/// What [`apply`] does about the number.
pub(super) fn put_number(transaction: &Transaction<'_>, entry: &Entry) -> rusqlite::Result<()> {
    let Entry { owner, series, number, key, index, hash, .. } = entry;
    let update = |assignments: &str, text: &str| -> rusqlite::Result<usize> {
        let sql = format!(
            "UPDATE number SET {assignments}, idx = ?5, hash = ?6 WHERE owner = ?1 AND series = ?2 AND number = ?3"
        );
        transaction.prepare_cached(&sql)?.execute(params![owner, series, number, text, index, hash.0])
    };
    let changed = match &entry.act {
        Act::Reserve(_) => transaction
            .prepare_cached("INSERT INTO number VALUES (?1,?2,?3,?4,'reserved',NULL,NULL,?5,?6)")?
            .execute(params![owner, series, number, key, index, hash.0])?,
        Act::Spoil(reason) => transaction
            .prepare_cached("INSERT INTO number VALUES (?1,?2,?3,?4,'void',NULL,?7,?5,?6)")?
            .execute(params![owner, series, number, key, index, hash.0, reason])?,
        Act::Confirm(document) => update("state = 'confirmed', document_hash = ?4", document)?,
        Act::Void(reason) => update("state = 'void', reason = ?4", reason)?,
        Act::Displace(reason) => {
            update("state = 'void', reason = ?4", reason)?;
            update("key = ?4", &unused(key, *number))?
        }
        Act::Supersede(by) if *number > 0 => update("state = 'void', reason = ?4", &given_up_for(by))?,
        // It stands below all numbers, so that the key is taken.
        Act::Supersede(by) => transaction
            .prepare_cached("INSERT INTO number VALUES (?1,?2,-?5,?3,'void',NULL,?4,?5,?6)")?
            .execute(params![owner, series, key, given_up_for(by), index, hash.0])?,
        Act::Doubt => update("state = 'doubtful', reason = nullif(?4, '')", "")?,
        Act::Define(_)
        | Act::Grant(_)
        | Act::Close(_)
        | Act::Lost(_)
        | Act::Life(_)
        | Act::Put(_)
        | Act::Remove
        | Act::Seal(_)
        | Act::Note(_) => 1,
    };
    if changed == 1 { Ok(()) } else { Err(rusqlite::Error::StatementChangedRows(changed)) }
}

impl super::Journal {
    /// The whole journal is derived from now on, of entries that stand elsewhere: a power failure
    /// may take the last writes with it.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn relax(&self) -> Result<(), super::JournalError> {
        self.connection.pragma_update(None, "synchronous", "NORMAL").map_err(|source| self.sql(source))
    }
}
