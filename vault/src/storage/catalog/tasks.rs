//! Long walks that an operator asked for: what was asked outlives a restart. Knows names and texts;
//! not what a walk does.

use rusqlite::OptionalExtension;

use super::{Catalog, CatalogError};

impl Catalog {
    /// What was asked of the walk of this name, if it has not come to its end.
    ///
    /// # Errors
    /// As every read.
    pub(in crate::storage) async fn asked(&self, name: &'static str) -> Result<Option<String>, CatalogError> {
        self.read(move |db| {
            let sql = "SELECT asked FROM tasks WHERE name = ?1";
            db.prepare_cached(sql)?.query_row([name], |row| row.get(0)).optional()
        })
        .await
    }

    /// Keeps what is asked of a walk; `None`: it has come to its end.
    ///
    /// # Errors
    /// As every write.
    pub(in crate::storage) async fn keep_asked(
        &self,
        name: &'static str,
        asked: Option<String>,
    ) -> Result<(), CatalogError> {
        self.write(move |db| {
            let kept = match &asked {
                Some(asked) => db
                    .prepare_cached("INSERT OR REPLACE INTO tasks (name, asked) VALUES (?1, ?2)")?
                    .execute([name, asked]),
                None => db.execute("DELETE FROM tasks WHERE name = ?1", [name]),
            };
            kept.map(drop)
        })
        .await
    }
}
