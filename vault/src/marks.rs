//! How far a register has taken over what the other vault tells, and the lives in which it has
//! told itself. Lies in the file of the register it speaks of, so that one that is lost or put
//! back from a copy loses its marks with it, and is told everything again: a mark that outlived
//! its register would hide files and revocations for ever. Knows two small tables; not what the
//! changes are.
//!
//! A register that is put back counts its changes from where the copy ended, and may reach
//! numbers that it had counted before: other changes under cursors that the peer has heard. So
//! each start is a life of its own, on record with the change it began behind, and a peer's
//! mark holds only as far as both lives' histories are the same.

use rusqlite::{Connection, OptionalExtension as _, params};
use serde::{Deserialize, Serialize};

/// The tables, for the register's own list of migrations.
pub const MIGRATION: &str = "
CREATE TABLE lives (
    place INTEGER PRIMARY KEY AUTOINCREMENT,
    life  TEXT NOT NULL UNIQUE,
    began INTEGER NOT NULL
) STRICT;
CREATE TABLE heard (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    life TEXT NOT NULL,
    upto INTEGER NOT NULL
) STRICT;
";

/// Lives on record; a peer that has heard nothing in so many starts is told everything again.
const LIVES: u32 = 100;

/// Everything that the peer told up to this change is taken over. The default: nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The teller's life in which it counted.
    pub life: String,
    /// The last change taken over.
    pub upto: u64,
}

/// Puts a new life on record, which begins behind change `latest`, and returns its name.
///
/// # Errors
/// SQLite's.
pub fn begin(db: &Connection, latest: u64) -> rusqlite::Result<String> {
    let began = i64::try_from(latest).unwrap_or(i64::MAX);
    let sql = "INSERT INTO lives (life, began) VALUES (lower(hex(randomblob(16))), ?1) RETURNING life";
    let life = db.query_row(sql, [began], |row| row.get(0))?;
    let sql = "DELETE FROM lives WHERE place NOT IN (SELECT place FROM lives ORDER BY place DESC LIMIT ?1)";
    db.execute(sql, [LIVES])?;
    Ok(life)
}

/// As far as a peer with this mark has this register's history: all of it in the latest life,
/// what came before the next one in an earlier life, nothing in one that is not on record.
///
/// # Errors
/// SQLite's.
pub fn shared(db: &Connection, mark: &Mark) -> rusqlite::Result<u64> {
    let sql = "SELECT (SELECT min(began) FROM lives later WHERE later.place > own.place)
        FROM lives own WHERE own.life = ?1";
    let end: Option<Option<i64>> = db.query_row(sql, [&mark.life], |row| row.get(0)).optional()?;
    Ok(match end {
        None => 0,
        Some(None) => mark.upto,
        Some(Some(end)) => mark.upto.min(u64::try_from(end).unwrap_or_default()),
    })
}

/// How far everything that the peer told is taken over.
///
/// # Errors
/// SQLite's.
pub fn heard(db: &Connection) -> rusqlite::Result<Mark> {
    let read = |row: &rusqlite::Row<'_>| {
        let upto: i64 = row.get(1)?;
        Ok(Mark { life: row.get(0)?, upto: u64::try_from(upto).unwrap_or_default() })
    };
    Ok(db.query_row("SELECT life, upto FROM heard", [], read).optional()?.unwrap_or_default())
}

/// Keeps the mark in place of the one before. Belongs into the transaction that takes over
/// the changes.
///
/// # Errors
/// SQLite's.
pub fn keep(db: &Connection, mark: &Mark) -> rusqlite::Result<()> {
    let upto = i64::try_from(mark.upto).unwrap_or(i64::MAX);
    let sql = "INSERT OR REPLACE INTO heard VALUES (1, ?1, ?2)";
    db.prepare_cached(sql)?.execute(params![mark.life, upto]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sqlite;

    fn mark(life: &str, upto: u64) -> Mark {
        Mark { life: life.to_owned(), upto }
    }

    #[test]
    fn marks_are_kept_with_their_file_and_go_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("register.db");
        let db = sqlite::open(&file, &[MIGRATION]).unwrap();
        assert_eq!(heard(&db).unwrap(), Mark::default());
        for upto in [7, 9] {
            keep(&db, &mark("x", upto)).unwrap();
        }
        drop(db);
        assert_eq!(heard(&sqlite::open(&file, &[MIGRATION]).unwrap()).unwrap(), mark("x", 9));
        let other = sqlite::open(&folder.path().join("new.db"), &[MIGRATION]).unwrap();
        assert_eq!(heard(&other).unwrap(), Mark::default());
    }

    #[test]
    fn a_restored_copy_tells_again_what_it_counts_twice() {
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("copy.db");
        let db = sqlite::open(&folder.path().join("register.db"), &[MIGRATION]).unwrap();
        let first = begin(&db, 10).unwrap();
        db.execute("VACUUM INTO ?1", [copy.to_str().unwrap()]).unwrap();
        assert_eq!(shared(&db, &mark(&first, 80)).unwrap(), 80);
        let second = begin(&db, 80).unwrap();
        assert_eq!(shared(&db, &mark(&second, 100)).unwrap(), 100);
        assert_eq!(shared(&db, &mark(&first, 70)).unwrap(), 70);

        // The copy, made at change 50, is put back and has counted to 120 since.
        let restored = sqlite::open(&copy, &[MIGRATION]).unwrap();
        let third = begin(&restored, 50).unwrap();
        assert_eq!(shared(&restored, &mark(&second, 100)).unwrap(), 0, "a forgotten life");
        assert_eq!(shared(&restored, &mark(&first, 80)).unwrap(), 50, "shared up to the copy");
        assert_eq!(shared(&restored, &mark(&third, 120)).unwrap(), 120);
        assert_eq!(shared(&restored, &Mark::default()).unwrap(), 0);
    }

    #[test]
    fn lives_on_record_are_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let db = sqlite::open(&folder.path().join("register.db"), &[MIGRATION]).unwrap();
        let lives: Vec<_> = (1..=u64::from(LIVES) + 1).map(|began| begin(&db, began).unwrap()).collect();
        assert_eq!(shared(&db, &mark(&lives[0], 1)).unwrap(), 0);
        assert_eq!(shared(&db, &mark(&lives[1], 2)).unwrap(), 2);
    }
}
