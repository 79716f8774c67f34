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
//!
//! A register on a disk that is full is opened all the same: its life comes on record with the first change
//! that is written, and until then no mark holds but its own.

use rusqlite::{Connection, ErrorCode, OptionalExtension as _, params};
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

/// Puts a new life on record, which begins behind change `latest`, and returns its name. On a disk that is full
/// that is done with the first row that this very connection puts into the table `changes`, or changes there, in
/// the same transaction.
///
/// # Errors
/// SQLite's, but for the full disk.
pub fn begin(db: &Connection, latest: u64, changes: &str) -> rusqlite::Result<String> {
    let life: String = db.query_row("SELECT lower(hex(randomblob(16)))", [], |row| row.get(0))?;
    let began = i64::try_from(latest).unwrap_or(i64::MAX);
    match put(db, &life, began) {
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::DiskFull) => {
            put_with_a_change(db, &life, began, changes)?;
        }
        done => done?,
    }
    Ok(life)
}

fn put(db: &Connection, life: &str, began: i64) -> rusqlite::Result<()> {
    let transaction = db.unchecked_transaction()?;
    transaction.execute("INSERT INTO lives (life, began) VALUES (?1, ?2)", params![life, began])?;
    let sql = "DELETE FROM lives WHERE place NOT IN (SELECT place FROM lives ORDER BY place DESC LIMIT ?1)";
    transaction.execute(sql, [LIVES])?;
    transaction.commit()
}

/// Nothing is written now: a trigger of this connection alone does it.
fn put_with_a_change(db: &Connection, life: &str, began: i64, changes: &str) -> rusqlite::Result<()> {
    db.pragma_update(None, "temp_store", "memory")?;
    for act in ["INSERT", "UPDATE"] {
        db.execute_batch(&format!(
            "CREATE TEMP TRIGGER life_before_{act} BEFORE {act} ON main.{changes}
             WHEN NOT EXISTS (SELECT 1 FROM lives WHERE life = '{life}')
             BEGIN INSERT INTO lives (life, began) VALUES ('{life}', {began}); END"
        ))?;
    }
    Ok(())
}

/// As far as a peer with this mark has this register's history, which goes on in the life `own`: all of it in
/// that life, what came before the next one in an earlier life, nothing in one that is not on record. As long
/// as `own` is on no record itself, nobody knows where an earlier one ended: nothing in any other.
///
/// # Errors
/// SQLite's.
pub fn shared(db: &Connection, own: &str, mark: &Mark) -> rusqlite::Result<u64> {
    if mark.life == own {
        return Ok(mark.upto);
    }
    let sql = "SELECT (SELECT min(began) FROM lives later WHERE later.place > earlier.place)
        FROM lives earlier WHERE earlier.life = ?1 AND EXISTS (SELECT 1 FROM lives WHERE life = ?2)";
    let end: Option<Option<i64>> = db.query_row(sql, [&mark.life, own], |row| row.get(0)).optional()?;
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
    use crate::sqlite::small_disk::SmallDisk;

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

    const CHANGES: &str = "CREATE TABLE told (seq INTEGER PRIMARY KEY) STRICT";

    fn told(file: &std::path::Path) -> Connection {
        sqlite::open(file, &[MIGRATION, CHANGES]).unwrap()
    }

    #[test]
    fn a_restored_copy_tells_again_what_it_counts_twice() {
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("copy.db");
        let db = told(&folder.path().join("register.db"));
        let first = begin(&db, 10, "told").unwrap();
        db.execute("VACUUM INTO ?1", [copy.to_str().unwrap()]).unwrap();
        assert_eq!(shared(&db, &first, &mark(&first, 80)).unwrap(), 80);
        let second = begin(&db, 80, "told").unwrap();
        assert_eq!(shared(&db, &second, &mark(&second, 100)).unwrap(), 100);
        assert_eq!(shared(&db, &second, &mark(&first, 70)).unwrap(), 70);

        // The copy, made at change 50, is put back and has counted to 120 since.
        let restored = told(&copy);
        let third = begin(&restored, 50, "told").unwrap();
        assert_eq!(shared(&restored, &third, &mark(&second, 100)).unwrap(), 0, "a forgotten life");
        assert_eq!(shared(&restored, &third, &mark(&first, 80)).unwrap(), 50, "shared up to the copy");
        assert_eq!(shared(&restored, &third, &mark(&third, 120)).unwrap(), 120);
        assert_eq!(shared(&restored, &third, &Mark::default()).unwrap(), 0);
    }

    #[test]
    fn a_life_that_begins_on_a_full_disk_comes_on_record_with_the_first_change() {
        let disk = SmallDisk::new("size=1m");
        let file = disk.path().join("register.db");
        let db = told(&file);
        let first = begin(&db, 10, "told").unwrap();
        disk.fill();
        // Until the log's last page is full as well.
        let began = |life: &str| -> Option<i64> {
            db.query_row("SELECT began FROM lives WHERE life = ?1", [life], |row| row.get(0))
                .optional()
                .unwrap()
        };
        let last = &(0..100).map(|_| begin(&db, 8, "told").unwrap()).find(|life| began(life).is_none());
        let last = last.as_ref().expect("there is no room");
        assert_eq!(shared(&db, last, &mark(&first, 10)).unwrap(), 0, "of which copy is this?");
        assert_eq!(shared(&db, last, &mark(last, 9)).unwrap(), 9);
        db.execute("INSERT INTO told VALUES (9)", []).unwrap_err();
        disk.make_room();
        for seq in 9..12 {
            db.execute("INSERT INTO told VALUES (?1)", [seq]).unwrap();
        }
        assert_eq!(began(last), Some(8));
        assert_eq!(shared(&db, last, &mark(&first, 10)).unwrap(), 8, "up to where this life began");
        let next = begin(&db, 11, "told").unwrap();
        assert_eq!(shared(&db, &next, &mark(last, 11)).unwrap(), 11);
        assert_eq!(shared(&db, &next, &mark(&first, 10)).unwrap(), 8);
    }

    #[test]
    fn lives_on_record_are_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let db = told(&folder.path().join("register.db"));
        let lives: Vec<_> =
            (1..=u64::from(LIVES) + 1).map(|began| begin(&db, began, "told").unwrap()).collect();
        let own = lives.last().unwrap();
        assert_eq!(shared(&db, own, &mark(&lives[0], 1)).unwrap(), 0);
        assert_eq!(shared(&db, own, &mark(&lives[1], 2)).unwrap(), 2);
    }
}
