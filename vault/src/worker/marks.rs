//! How far this vault has merged what the other tells, kept over restarts, and this vault's own
//! identity and lives as a teller. Knows its small tables; not what the changes are.
//!
//! A state folder that is put back from a copy counts its changes from where the copy ended, and
//! may reach the numbers that it had counted before: other changes under cursors that the peer
//! has heard. So each start is a life of its own with the cursor it began at, and a peer's mark
//! holds only as far as both lives' histories are the same.

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
        life TEXT NOT NULL,
        upto INTEGER NOT NULL,
        PRIMARY KEY (topic, source)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE life (
        place INTEGER PRIMARY KEY,
        topic INTEGER NOT NULL,
        life TEXT NOT NULL,
        began INTEGER NOT NULL
    ) STRICT;
"];

/// Lives on record for each topic; a peer that has heard nothing since is told everything again.
const LIVES: u32 = 100;

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

    /// Puts a new life on record, which begins behind the change `latest`.
    pub(super) async fn begin(&self, topic: Topic, latest: u64) -> Result<String, WorkerError> {
        let life = format!("{:016x}", getrandom::u64()?);
        let new = life.clone();
        self.blocking(move |connection| {
            let sql = "INSERT INTO life (topic, life, began) VALUES (?1, ?2, ?3)";
            connection.execute(sql, params![topic as u8, new, latest])?;
            let sql = "DELETE FROM life WHERE topic = ?1 AND place NOT IN
                (SELECT place FROM life WHERE topic = ?1 ORDER BY place DESC LIMIT ?2)";
            connection.execute(sql, params![topic as u8, LIVES])
        })
        .await?;
        Ok(life)
    }

    /// As far as a peer that heard up to `upto` in `life` has this life's history: all of it in
    /// the latest life, what came before the next one in an earlier life, nothing in one that is
    /// not on record.
    pub(super) async fn shared(&self, topic: Topic, life: String, upto: u64) -> Result<u64, WorkerError> {
        self.blocking(move |connection| {
            let sql = "SELECT place FROM life WHERE topic = ?1 AND life = ?2";
            let place: Option<i64> =
                connection.query_row(sql, params![topic as u8, life], |row| row.get(0)).optional()?;
            let Some(place) = place else { return Ok(0) };
            let sql = "SELECT min(began) FROM life WHERE topic = ?1 AND place > ?2";
            let end: Option<u64> =
                connection.query_row(sql, params![topic as u8, place], |row| row.get(0))?;
            Ok(end.map_or(upto, |end| upto.min(end)))
        })
        .await
    }

    /// Up to which cursor of `source` everything is merged, and the life it was told in; 0 for a
    /// teller never heard.
    pub(super) async fn heard(&self, topic: Topic, source: String) -> Result<(String, u64), WorkerError> {
        self.blocking(move |connection| {
            let sql = "SELECT life, upto FROM heard WHERE topic = ?1 AND source = ?2";
            let heard = connection
                .query_row(sql, params![topic as u8, source], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            Ok(heard.unwrap_or_default())
        })
        .await
    }

    /// Keeps the mark, replacing the one before.
    pub(super) async fn keep(
        &self,
        topic: Topic,
        source: String,
        life: String,
        upto: u64,
    ) -> Result<(), WorkerError> {
        self.blocking(move |connection| {
            let sql = "INSERT INTO heard VALUES (?1, ?2, ?3, ?4)
                ON CONFLICT DO UPDATE SET life = excluded.life, upto = excluded.upto";
            connection.execute(sql, params![topic as u8, source, life, upto])?;
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
        let keep = |marks: Marks, upto| async move {
            marks.keep(Topic::Catalog, "x".to_owned(), "life".to_owned(), upto).await.unwrap();
        };
        keep(marks.clone(), 7).await;
        keep(marks.clone(), 9).await;
        let again = Marks::open(&file).unwrap();
        assert_eq!(again.own(), marks.own());
        let heard = |topic, source: &str| again.heard(topic, source.to_owned());
        assert_eq!(heard(Topic::Catalog, "x").await.unwrap(), ("life".to_owned(), 9));
        assert_eq!(heard(Topic::Catalog, "y").await.unwrap(), (String::new(), 0));
        assert_eq!(heard(Topic::Certificates, "x").await.unwrap(), (String::new(), 0));
    }

    #[tokio::test]
    async fn a_restored_copy_tells_again_what_it_counts_twice() {
        let folder = tempfile::tempdir().unwrap();
        let (file, copy) = (folder.path().join("worker.db"), folder.path().join("copy.db"));
        let marks = Marks::open(&file).unwrap();
        let first = marks.begin(Topic::Catalog, 10).await.unwrap();
        marks.connection.lock().unwrap().execute("VACUUM INTO ?1", [copy.to_str().unwrap()]).unwrap();
        assert_eq!(marks.shared(Topic::Catalog, first.clone(), 80).await.unwrap(), 80);
        let second = marks.begin(Topic::Catalog, 80).await.unwrap();
        assert_eq!(marks.shared(Topic::Catalog, second.clone(), 100).await.unwrap(), 100);
        assert_eq!(marks.shared(Topic::Catalog, first.clone(), 70).await.unwrap(), 70);

        // The copy, made at change 50, is put back and has counted to 120 since.
        let restored = Marks::open(&copy).unwrap();
        let third = restored.begin(Topic::Catalog, 50).await.unwrap();
        assert_eq!(restored.shared(Topic::Catalog, second, 100).await.unwrap(), 0, "a forgotten life");
        assert_eq!(restored.shared(Topic::Catalog, first, 80).await.unwrap(), 50, "shared up to the copy");
        assert_eq!(restored.shared(Topic::Catalog, third.clone(), 120).await.unwrap(), 120);
        assert_eq!(restored.shared(Topic::Certificates, third, 9).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn lives_on_record_are_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let marks = Marks::open(&folder.path().join("worker.db")).unwrap();
        let first = marks.begin(Topic::Catalog, 1).await.unwrap();
        let kept = marks.begin(Topic::Catalog, 2).await.unwrap();
        for began in 3..=u64::from(LIVES) + 1 {
            marks.begin(Topic::Catalog, began).await.unwrap();
        }
        assert_eq!(marks.shared(Topic::Catalog, first, 1).await.unwrap(), 0);
        assert_eq!(marks.shared(Topic::Catalog, kept, 2).await.unwrap(), 2);
    }
}
