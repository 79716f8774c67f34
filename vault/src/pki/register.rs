//! The register's tables: certificates with the number of their last change, and tokens as
//! hashes. Knows SQL, neither keys nor who may ask.
//!
//! The change log is the certificates' own `change` column: a row that changes takes the next
//! number, so reading behind a cursor gives every row that is newer than it, once.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};
use serde::{Deserialize, Serialize};
use shared::api::{IssuedCertificate, MAX_PAGE, Page};
use shared::tls::Role;

use super::PkiError;
use crate::marks::{self, Mark};
use crate::sqlite::{self, SqliteError};

const MIGRATIONS: &[&str] = &[
    "
CREATE TABLE certificates (
    place     INTEGER PRIMARY KEY,
    serial    TEXT NOT NULL UNIQUE,
    role      TEXT NOT NULL,
    owner     TEXT NOT NULL,
    name      TEXT NOT NULL,
    not_after TEXT NOT NULL,
    revoked   INTEGER NOT NULL,
    change    INTEGER NOT NULL UNIQUE
) STRICT;
CREATE TABLE tokens (
    hash    TEXT PRIMARY KEY,
    role    TEXT NOT NULL,
    owner   TEXT NOT NULL,
    name    TEXT NOT NULL,
    expires INTEGER NOT NULL,
    used    INTEGER NOT NULL
) STRICT;
",
    marks::MIGRATION,
];

/// So many tokens may be open at once; enrolling is rare, a loop is a mistake.
const MAX_TOKENS: usize = 1000;
/// Used and old tokens stay this long, for whoever wonders why one was refused.
const KEPT: Duration = Duration::from_secs(7 * 86_400);

const COLUMNS: &str = "serial, role, owner, name, not_after, revoked";

/// What a token stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) role: Role,
    pub(super) owner: String,
    pub(super) name: String,
}

/// One certificate as it is after change number `seq` of the vault that tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The teller's own count; a cursor for its next question, nothing else.
    pub seq: u64,
    /// The row.
    pub certificate: IssuedCertificate,
}

pub(super) fn open(file: &Path) -> Result<Connection, SqliteError> {
    sqlite::open(file, MIGRATIONS)
}

pub(super) fn revoked(connection: &Connection) -> Result<BTreeSet<String>, rusqlite::Error> {
    connection
        .prepare("SELECT serial FROM certificates WHERE revoked = 1")?
        .query_map([], |row| row.get(0))?
        .collect()
}

pub(super) fn last_change(connection: &Connection) -> Result<u64, rusqlite::Error> {
    let last: i64 =
        connection.query_row("SELECT coalesce(max(change), 0) FROM certificates", [], |row| row.get(0))?;
    Ok(last.unsigned_abs())
}

pub(super) fn count(connection: &Connection) -> Result<usize, rusqlite::Error> {
    Ok(counted(connection.query_row("SELECT count(*) FROM certificates", [], |row| row.get(0))?))
}

pub(super) fn open_tokens(connection: &Connection, now: SystemTime) -> Result<usize, rusqlite::Error> {
    let sql = "SELECT count(*) FROM tokens WHERE used = 0 AND expires > ?1";
    Ok(counted(connection.query_row(sql, [seconds(now)], |row| row.get(0))?))
}

fn counted(rows: i64) -> usize {
    usize::try_from(rows).unwrap_or_default()
}

/// Adds a certificate that was just signed.
pub(super) fn add(connection: &Connection, entry: &IssuedCertificate) -> Result<(), rusqlite::Error> {
    connection.execute(
        "INSERT INTO certificates (serial, role, owner, name, not_after, revoked, change)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, (SELECT coalesce(max(change), 0) + 1 FROM certificates))",
        params![
            entry.serial,
            entry.role.to_string(),
            entry.owner,
            entry.name,
            entry.not_after,
            entry.revoked
        ],
    )?;
    Ok(())
}

/// Records a token's hash and forgets those long past.
pub(super) fn add_token(
    connection: &mut Connection,
    hash: &str,
    grant: &Grant,
    now: SystemTime,
    expires: SystemTime,
) -> Result<(), PkiError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute("DELETE FROM tokens WHERE expires < ?1", [seconds(now - KEPT)])?;
    let open = open_tokens(&transaction, now)?;
    if open >= MAX_TOKENS {
        return Err(PkiError::TooManyTokens(open));
    }
    transaction.execute(
        "INSERT INTO tokens (hash, role, owner, name, expires, used) VALUES (?1, ?2, ?3, ?4, ?5, 0)",
        params![hash, grant.role.to_string(), grant.owner, grant.name, seconds(expires)],
    )?;
    transaction.commit()?;
    Ok(())
}

/// Marks the token as used within the caller's transaction: without its commit nothing happened.
pub(super) fn take_token(
    transaction: &Transaction<'_>,
    hash: &str,
    now: SystemTime,
) -> Result<Option<Grant>, rusqlite::Error> {
    transaction
        .query_row(
            "UPDATE tokens SET used = 1 WHERE hash = ?1 AND used = 0 AND expires > ?2
             RETURNING role, owner, name",
            params![hash, seconds(now)],
            |row| Ok(Grant { role: role(row, 0)?, owner: row.get(1)?, name: row.get(2)? }),
        )
        .optional()
}

/// Takes a certificate back; one that is already taken back does not change again.
pub(super) fn revoke(connection: &mut Connection, serial: &str) -> Result<IssuedCertificate, PkiError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    mark_revoked(&transaction, serial)?;
    let sql = format!("SELECT {COLUMNS} FROM certificates WHERE serial = ?1");
    let entry = transaction.query_row(&sql, [serial], entry).optional()?;
    let entry = entry.ok_or_else(|| PkiError::NoSuchCertificate(serial.chars().take(64).collect()))?;
    transaction.commit()?;
    Ok(entry)
}

fn mark_revoked(transaction: &Transaction<'_>, serial: &str) -> Result<(), rusqlite::Error> {
    transaction.execute(
        "UPDATE certificates SET revoked = 1, change = (SELECT max(change) + 1 FROM certificates)
         WHERE serial = ?1 AND revoked = 0",
        [serial],
    )?;
    Ok(())
}

pub(super) fn page(
    connection: &Connection,
    after: Option<&str>,
    limit: usize,
) -> Result<Page<IssuedCertificate>, PkiError> {
    let behind: i64 = match after {
        None => 0,
        Some(serial) => connection
            .query_row("SELECT place FROM certificates WHERE serial = ?1", [serial], |row| row.get(0))
            .optional()?
            .ok_or_else(|| PkiError::NoSuchCertificate(serial.chars().take(64).collect()))?,
    };
    let limit = limit.clamp(1, MAX_PAGE);
    let sql = format!("SELECT {COLUMNS} FROM certificates WHERE place > ?1 ORDER BY place LIMIT ?2");
    let mut items: Vec<IssuedCertificate> = connection
        .prepare(&sql)?
        .query_map(params![behind, rows(limit + 1)], entry)?
        .collect::<Result<_, _>>()?;
    let more = items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| more).map(|last| last.serial.clone());
    Ok(Page { items, next })
}

pub(super) fn changes_since(
    connection: &Connection,
    cursor: u64,
    limit: usize,
) -> Result<Vec<Change>, rusqlite::Error> {
    let sql =
        format!("SELECT {COLUMNS}, change FROM certificates WHERE change > ?1 ORDER BY change LIMIT ?2");
    connection
        .prepare(&sql)?
        .query_map(params![i64::try_from(cursor).unwrap_or(i64::MAX), rows(limit)], |row| {
            let seq: i64 = row.get(6)?;
            Ok(Change { seq: seq.unsigned_abs(), certificate: entry(row)? })
        })?
        .collect()
}

/// Union by serial; revoked wins. A row that teaches nothing new takes no change number, so
/// that two vaults do not tell each other the same for ever.
pub(super) fn merge(
    connection: &mut Connection,
    changes: &[Change],
    mark: Option<&Mark>,
) -> Result<(), rusqlite::Error> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for Change { certificate, .. } in changes {
        let sql = "SELECT 1 FROM certificates WHERE serial = ?1";
        let known = transaction.query_row(sql, [&certificate.serial], |_| Ok(())).optional()?.is_some();
        if !known {
            add(&transaction, certificate)?;
        } else if certificate.revoked {
            mark_revoked(&transaction, &certificate.serial)?;
        }
    }
    if let Some(mark) = mark {
        marks::keep(&transaction, mark)?;
    }
    transaction.commit()
}

fn entry(row: &Row<'_>) -> Result<IssuedCertificate, rusqlite::Error> {
    Ok(IssuedCertificate {
        serial: row.get(0)?,
        role: role(row, 1)?,
        owner: row.get(2)?,
        name: row.get(3)?,
        not_after: row.get(4)?,
        revoked: row.get(5)?,
    })
}

fn role(row: &Row<'_>, column: usize) -> Result<Role, rusqlite::Error> {
    let text: String = row.get(column)?;
    text.parse().map_err(|why: String| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, why.into())
    })
}

fn rows(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// Whole seconds since 1970; a clock before that reads as 0.
fn seconds(at: SystemTime) -> i64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
