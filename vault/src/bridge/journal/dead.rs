//! What an operator sees and does of a journal's dead letters, beside the thread that works with it: over a
//! connection of its own, in short transactions. After a change the direction opens its journal
//! anew.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior};
use serde::Serialize;

use super::{JournalError, Load, MIGRATIONS, NOT_RETURNED, OURS, ROW, Write, apply, number};
use crate::openwire::Message;
use crate::sqlite;

/// Dead letters that are moved in one transaction.
const AT_ONCE: usize = 500;

/// A message that the target did not take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Dead {
    /// Its place in the journal.
    pub sequence: u64,
    /// The target's words.
    pub why: String,
    /// Of the journal's row.
    pub bytes: u64,
    /// `JMSMessageID`; none where the bytes are no message.
    pub message_id: Option<String>,
    /// Where it was going.
    pub destination: Option<String>,
    /// `JMSTimestamp`, ms since 1970.
    pub timestamp: Option<i64>,
}

/// Some of a journal's dead letters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Letters {
    /// In order.
    pub letters: Vec<Dead>,
    /// How many come behind these.
    pub behind: u64,
    /// How many there are.
    pub total: u64,
}

/// What a journal that nobody works with any more still holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Left {
    /// The bridge that it was of.
    pub name: String,
    /// Messages that are the bridge's, or may be; not those that were found to be the source's.
    pub messages: u64,
    /// Dead letters.
    pub dead: u64,
}

/// Dead letters behind that sequence, at most so many.
///
/// # Errors
/// SQLite's own.
pub fn dead_letters(file: &Path, after: u64, most: usize) -> Result<Letters, JournalError> {
    let connection = sqlite::open_to_read(file)?;
    let read = || {
        let sql = "SELECT sequence, why, message FROM dead WHERE sequence > ?1 ORDER BY sequence LIMIT ?2";
        let mut statement = connection.prepare(sql)?;
        let dead = |row: &rusqlite::Row<'_>| {
            let bytes: Vec<u8> = row.get(2)?;
            let (length, message) = (bytes.len() as u64, Message::from_bytes(bytes.into()).ok());
            Ok(Dead {
                sequence: row.get(0)?,
                why: row.get(1)?,
                bytes: length + ROW,
                message_id: message.as_ref().map(|it| it.message_id.to_string()),
                destination: message.as_ref().map(|it| it.destination.to_string()),
                timestamp: message.as_ref().map(|it| it.timestamp),
            })
        };
        let letters =
            statement.query_map([after, most as u64], dead)?.collect::<rusqlite::Result<Vec<Dead>>>()?;
        let last = letters.last().map_or(after, |letter| letter.sequence);
        let sql = "SELECT count(*), coalesce(sum(sequence > ?1), 0) FROM dead";
        let (total, behind) = connection.query_row(sql, [last], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(Letters { letters, behind, total })
    };
    read().map_err(|source| JournalError::Sql { file: file.to_owned(), source })
}

/// Has all of them wait for the target again, behind what waits already; tells how many. What is no
/// message stays.
///
/// # Errors
/// SQLite's own.
pub fn revive(file: &Path, at: i64) -> Result<u64, JournalError> {
    let (mut after, mut revived) = (0, 0);
    loop {
        let dead = dead_letters(file, after, AT_ONCE)?.letters;
        let Some(last) = dead.last() else { return Ok(revived) };
        after = last.sequence;
        let whole = dead.iter().filter(|it| it.message_id.is_some()).map(|it| it.sequence);
        revived += wake(file, &whole.collect::<Vec<_>>(), at)?;
    }
}

/// Gives up those up to this sequence, or all of them, for good; tells how many.
///
/// # Errors
/// SQLite's own.
pub fn purge(file: &Path, through: Option<u64>) -> Result<u64, JournalError> {
    let connection = sqlite::open(file, MIGRATIONS)?;
    // SQLite has no larger number.
    let through = through.and_then(|it| i64::try_from(it).ok()).unwrap_or(i64::MAX);
    let purged = connection.execute("DELETE FROM dead WHERE sequence <= ?1", [through]);
    purged.map(|rows| rows as u64).map_err(|source| JournalError::Sql { file: file.to_owned(), source })
}

/// Makes a message that waits for the target a dead letter, for this reason; tells whether it waited.
///
/// # Errors
/// SQLite's own.
pub fn bury(file: &Path, sequence: u64, why: String) -> Result<bool, JournalError> {
    let mut connection = sqlite::open(file, MIGRATIONS)?;
    let mut bury = || {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let sql = format!("SELECT 1 FROM row WHERE sequence = ?1 AND {OURS}");
        let waits = transaction.query_row(&sql, [sequence], |_| Ok(())).optional()?.is_some();
        if waits {
            apply(&transaction, &Write::Bury { sequence, why: why.clone() }, 0)?;
        }
        transaction.commit()?;
        Ok(waits)
    };
    bury().map_err(|source| JournalError::Sql { file: file.to_owned(), source })
}

/// What lies in the journal of a bridge that is not configured any more.
///
/// # Errors
/// SQLite's own.
pub fn left(file: &Path, name: &str) -> Result<Left, JournalError> {
    let connection = sqlite::open_to_read(file)?;
    let count =
        |from: &str| connection.query_row(&format!("SELECT count(*) FROM {from}"), [], |row| row.get(0));
    let messages = format!("row WHERE {NOT_RETURNED}");
    let left = || Ok(Left { name: name.to_owned(), messages: count(&messages)?, dead: count("dead")? });
    left().map_err(|source| JournalError::Sql { file: file.to_owned(), source })
}

fn wake(file: &Path, sequences: &[u64], at: i64) -> Result<u64, JournalError> {
    let mut connection = sqlite::open(file, MIGRATIONS)?;
    let mut wake = || {
        // Locked from the start: the direction's thread writes too.
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut woken = 0;
        for sequence in sequences {
            let sql = "DELETE FROM dead WHERE sequence = ?1 RETURNING message";
            let message: Option<Vec<u8>> =
                transaction.query_row(sql, [sequence], |row| row.get(0)).optional()?;
            let Some(message) = message else { continue };
            let bytes = message.len() as u64 + ROW;
            transaction.execute(
                "UPDATE life SET last_sequence = last_sequence + 1, dead = dead - 1,
                 waiting_bytes = waiting_bytes + ?1",
                [bytes],
            )?;
            // What is no message was not asked for.
            let whole = Message::from_bytes(message.clone().into()).ok();
            let destination = whole.map_or(0, |it| number(&it.destination));
            transaction.execute(
                "INSERT INTO row SELECT last_sequence, ?1, ?2, ?3, ?4 FROM life",
                rusqlite::params![bytes, at, destination, message],
            )?;
            woken += 1;
        }
        transaction.commit()?;
        Ok(woken)
    };
    wake().map_err(|source| JournalError::Sql { file: file.to_owned(), source })
}

/// How many lie there, and their bytes.
pub(super) fn load(connection: &Connection) -> rusqlite::Result<Load> {
    let sql = "SELECT count(*), coalesce(sum(length(message)), 0) FROM dead";
    connection.query_row(sql, [], |row| {
        let (rows, bytes): (u64, u64) = (row.get(0)?, row.get(1)?);
        Ok(Load { rows, bytes: bytes + rows * ROW })
    })
}
