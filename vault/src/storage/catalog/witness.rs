//! What `witness` remembers, kept in the catalog's file. Knows its rows, not what they mean.

use rusqlite::{Connection, Row, params};

use super::{Catalog, CatalogError};
use crate::storage::witness::{Gap, Witness};

impl Catalog {
    /// The time that passed unseen, as far as it is remembered.
    ///
    /// # Errors
    /// As every read.
    pub(in crate::storage) async fn witness(&self) -> Result<Witness, CatalogError> {
        self.read(read).await
    }

    /// Remembers it instead of what was remembered.
    ///
    /// # Errors
    /// As every write.
    pub(in crate::storage) async fn keep_witness(&self, witness: Witness) -> Result<(), CatalogError> {
        self.write(move |db| {
            db.execute("DELETE FROM gaps", [])?;
            let mut add = db.prepare_cached("INSERT OR REPLACE INTO gaps (began, ended) VALUES (?1, ?2)")?;
            for gap in &witness.gaps {
                add.execute(params![gap.began, gap.ended])?;
            }
            witness.watched.iter().try_for_each(|at| add.execute(params![at, None::<i64>]).map(drop))
        })
        .await
    }
}

fn read(db: &Connection) -> rusqlite::Result<Witness> {
    let mut witness = Witness::default();
    let mut statement = db.prepare_cached("SELECT began, ended FROM gaps ORDER BY began")?;
    let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
    for row in statement.query_map([], read)? {
        match row? {
            (began, Some(ended)) => witness.gaps.push(Gap { began, ended }),
            (watched, None) => witness.watched = Some(watched),
        }
    }
    Ok(witness)
}
