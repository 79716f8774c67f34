//! Rows that others pass on the way to the target, and places behind all others for them. Knows SQL; why one
//! passes another the rules know.

use rusqlite::{Connection, Transaction, params};

use super::super::core::Write;
use super::apply;

/// One row is set aside.
pub(super) fn put(
    transaction: &Transaction<'_>,
    sequence: u64,
    why: &str,
    is_answered: bool,
) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("INSERT OR REPLACE INTO aside VALUES (?1, ?2, ?3)")?
        .execute(params![sequence, why, is_answered])
        .map(drop)
}

/// None is any more.
pub(super) fn clear(connection: &Connection) -> rusqlite::Result<()> {
    connection.prepare_cached("DELETE FROM aside")?.execute([]).map(drop)
}

/// These rows get the next sequences, in their order.
pub(super) fn pass(transaction: &Transaction<'_>, sequences: &[u64]) -> rusqlite::Result<()> {
    let mut last: u64 =
        transaction.prepare_cached("SELECT last_sequence FROM life")?.query_row([], |row| row.get(0))?;
    let mut go = transaction.prepare_cached("UPDATE row SET sequence = ?2 WHERE sequence = ?1")?;
    for sequence in sequences {
        last += 1;
        go.execute([*sequence, last])?;
    }
    transaction.prepare_cached("UPDATE life SET last_sequence = ?1")?.execute([last]).map(drop)
}

/// Nobody knows any more what passed those that were set aside: what the target had answered to is not
/// there, and goes behind all others; the rest may be there, and is a dead letter.
pub(super) fn settle(connection: &mut Connection, at: i64) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    let aside: Vec<(u64, String, bool)> = transaction
        .prepare("SELECT sequence, why, is_answered FROM aside ORDER BY sequence")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect::<rusqlite::Result<_>>()?;
    for (sequence, why, is_answered) in aside {
        match is_answered {
            true => pass(&transaction, &[sequence])?,
            false => apply(&transaction, &Write::Bury { sequence, why }, at)?,
        }
    }
    clear(&transaction)?;
    transaction.commit()
}
