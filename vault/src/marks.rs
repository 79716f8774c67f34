//! How far this vault has merged what the other tells, kept over restarts, and this vault's own
//! identity as a teller. Knows its one small table; not what the changes are.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, OptionalExtension as _, params};

use super::WorkerError;
use crate::pair::Topic;
use crate::sqlite;

const MIGRATIONS: &[&str] = &["
    CREATE TABLE own (id INTEGER PRIMARY KEY CHECK (id = 1), source TEXT NOT NULL) STRICT;
    CREATE TABLE heard (
        topic INTEGER NOT NULL,
        source TEXT NOT NULL,
        upto INTEGER NOT NULL,
        PRIMARY KEY (topic, source)
    ) STRICT, WITHOUT ROWID;
"];

#[derive(Clone)]
pub(super) struct Marks {
    own: Arc<str>,
    connection: Arc<Mutex<Connection>>,
}

impl Marks {
    pub(super) fn open(file: &Path) -> Result<Self, WorkerError> {
        let connection = sqlite::open(file, MIGRATIONS)?;
        let fresh = format!("{:016x}", getrandom::u64()?);
        connection.execute("INSERT INTO own VALUES (1, ?1) ON CONFLICT DO NOTHING", [fresh])?;
        let own: String = connection.query_row("SELECT source FROM own", [], |row| row.get(0))?;
        Ok(Self { own: own.into(), connection: Arc::new(Mutex::new(connection)) })
    }

    /// This vault as a teller.
    pub(super) fn own(&self) -> &str {
        &self.own
    }

    /// Up to which cursor of `source` everything is merged; 0 for a teller never heard.
    pub(super) async fn heard(&self, topic: Topic, source: String) -> Result<u64, WorkerError> {
        self.blocking(move |connection| {
            let sql = "SELECT upto FROM heard WHERE topic = ?1 AND source = ?2";
            let upto =
                connection.query_row(sql, params![topic as u8, source], |row| row.get(0)).optional()?;
            Ok(upto.unwrap_or(0))
        })
        .await
    }

    /// Keeps the mark, replacing the one before.
    pub(super) async fn keep(&self, topic: Topic, source: String, upto: u64) -> Result<(), WorkerError> {
        self.blocking(move |connection| {
            let sql = "INSERT INTO heard VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET upto = excluded.upto";
            connection.execute(sql, params![topic as u8, source, upto])?;
            Ok(())
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        run: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, WorkerError> {
        let connection = Arc::clone(&self.connection);
        let run = move || run(&connection.lock().unwrap_or_else(PoisonError::into_inner));
        match tokio::task::spawn_blocking(run).await {
            Ok(outcome) => Ok(outcome?),
            // The runtime is ending; the mark is told again.
            Err(_) => Err(rusqlite::Error::QueryReturnedNoRows.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn marks_survive_and_are_kept_by_teller_and_topic() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("worker.db");
        let marks = Marks::open(&file).unwrap();
        marks.keep(Topic::Catalog, "x".to_owned(), 7).await.unwrap();
        marks.keep(Topic::Catalog, "x".to_owned(), 9).await.unwrap();
        let again = Marks::open(&file).unwrap();
        assert_eq!(again.own(), marks.own());
        assert_eq!(again.heard(Topic::Catalog, "x".to_owned()).await.unwrap(), 9);
        assert_eq!(again.heard(Topic::Catalog, "y".to_owned()).await.unwrap(), 0);
        assert_eq!(again.heard(Topic::Certificates, "x".to_owned()).await.unwrap(), 0);
    }
}
