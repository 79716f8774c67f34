//! Opens a SQLite file the one way this project does, and brings its schema up to date.
//! Knows pragmas and migrations, not anybody's tables.
//!
//! `synchronous=FULL` in WAL mode syncs the log at every commit, so a committed
//! transaction survives power loss (<https://www.sqlite.org/pragma.html#pragma_synchronous>).

#[cfg(test)]
pub(crate) mod small_disk;

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

/// Statements that a connection keeps ready; a room has fewer. rusqlite's own 16 are fewer than one
/// upload takes.
const READY: usize = 128;

/// Why a database file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SqliteError {
    /// The file cannot be made.
    #[error("{file}: {source}; make its folder and give it to vault's user")]
    Create {
        /// The file.
        file: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// SQLite refuses to open or prepare it.
    #[error("{file}: {source}; check the disk and the file's owner")]
    Open {
        /// The file.
        file: PathBuf,
        /// SQLite's own reason.
        #[source]
        source: rusqlite::Error,
    },
    /// A newer program has migrated it.
    #[error("{file}: schema {found} is newer than this program's {known}; install the newer program")]
    Newer {
        /// The file.
        file: PathBuf,
        /// What the file says.
        found: usize,
        /// What this program can do.
        known: usize,
    },
}

/// Opens `file` for reading and writing, creating it for this user alone, and runs the `migrations` it has not
/// seen. Each migration is SQL text that runs once, in order, in its own transaction.
///
/// # Errors
/// SQLite's own, the system's, or a schema from the future.
pub fn open(file: &Path, migrations: &[&str]) -> Result<Connection, SqliteError> {
    let wrap = |source| SqliteError::Open { file: file.to_owned(), source };
    // Keys, owners and one-off identities are nobody else's to read, and a reader's lock would
    // hold up writers. SQLite gives its log files the same mode.
    let private = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(file);
    private.map_err(|source| SqliteError::Create { file: file.to_owned(), source })?;
    let mut connection = Connection::open(file).map_err(wrap)?;
    prepare(&connection).map_err(wrap)?;
    let found: usize = connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(wrap)?;
    if found > migrations.len() {
        return Err(SqliteError::Newer { file: file.to_owned(), found, known: migrations.len() });
    }
    for (index, migration) in migrations.iter().enumerate().skip(found) {
        let transaction = connection.transaction().map_err(wrap)?;
        transaction.execute_batch(migration).map_err(wrap)?;
        transaction.pragma_update(None, "user_version", (index + 1).to_string()).map_err(wrap)?;
        transaction.commit().map_err(wrap)?;
    }
    Ok(connection)
}

/// Opens a file that [`open`] has prepared, for reading only.
///
/// # Errors
/// SQLite's own.
pub fn open_to_read(file: &Path) -> Result<Connection, SqliteError> {
    let wrap = |source| SqliteError::Open { file: file.to_owned(), source };
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(file, flags).map_err(wrap)?;
    keep_ready(&connection).map_err(wrap)?;
    Ok(connection)
}

fn prepare(connection: &Connection) -> Result<(), rusqlite::Error> {
    keep_ready(connection)?;
    let _mode: String = connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
    connection.pragma_update(
        None,
        "synchronous",
        if cfg!(feature = "without-fsync") { "off" } else { "full" },
    )?;
    connection.pragma_update(None, "foreign_keys", "on")?;
    Ok(())
}

/// What every connection waits for and keeps.
fn keep_ready(connection: &Connection) -> Result<(), rusqlite::Error> {
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.set_prepared_statement_cache_capacity(READY);
    // Otherwise a plan may hang on the values it was made with, and many a ready statement is
    // made anew at every use.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_file_and_its_logs_are_for_this_user_alone() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let _open = open(&folder.path().join("x.db"), &["CREATE TABLE a (x)"]).unwrap();
        for file in std::fs::read_dir(folder.path()).unwrap() {
            let file = file.unwrap();
            let mode = file.metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{}", file.path().display());
        }
    }

    #[test]
    fn a_ready_statement_is_not_made_anew_for_other_values() {
        use rusqlite::StatementStatus::RePrepare;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.db");
        let schema = "CREATE TABLE a (x TEXT PRIMARY KEY, y TEXT, z INT) WITHOUT ROWID;
            CREATE INDEX some ON a (y) WHERE z = 1";
        let writer = open(&file, &[schema]).unwrap();
        for connection in [&writer, &open_to_read(&file).unwrap()] {
            for sql in [
                "SELECT z FROM a WHERE x = ?1 AND y = ?2 ORDER BY x",
                "SELECT z FROM a WHERE x > ?1 LIMIT ?2",
            ] {
                for turn in 0..5 {
                    let mut ready = connection.prepare_cached(sql).unwrap();
                    let found: Vec<i64> = ready
                        .query_map([turn, turn], |row| row.get(0))
                        .unwrap()
                        .map(Result::unwrap)
                        .collect();
                    assert_eq!((found.len(), ready.get_status(RePrepare)), (0, 0), "{sql}");
                }
            }
        }
    }

    #[test]
    fn migrations_run_once_and_a_newer_schema_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.db");
        drop(open(&file, &["CREATE TABLE a (x)"]).unwrap());
        drop(open(&file, &["CREATE TABLE a (x)", "CREATE TABLE b (x)"]).unwrap());
        let refused = open(&file, &["CREATE TABLE a (x)"]).unwrap_err().to_string();
        assert!(
            refused.ends_with("schema 2 is newer than this program's 1; install the newer program"),
            "{refused}"
        );
    }
}
