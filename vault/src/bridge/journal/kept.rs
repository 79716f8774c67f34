//! What a journal held when it was opened, for the rules to go on from. Knows SQL; not what follows from it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Journal, JournalError, counts, dead};
use crate::bridge::core::{Held, Kept, Load};

/// See [`Kept::uncertain`].
type Uncertain = BTreeMap<u64, Held>;

/// See [`Kept::returned`].
type Returned = BTreeMap<u64, (Duration, Held)>;

impl Journal {
    /// What it holds, for the core to go on from; `now` in ms since 1970.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn kept(&self, now: i64) -> Result<Kept, JournalError> {
        let kept = || {
            let (uncertain, returned) = self.batches(now)?;
            let (rows, dead) = (counts(&self.connection)?.waiting(), dead::load(&self.connection)?);
            let sql = "SELECT next_batch, last_sequence, waiting_bytes, source, target FROM life";
            self.connection.query_row(sql, [], |row| {
                Ok(Kept {
                    next_batch: row.get(0)?,
                    last_sequence: row.get(1)?,
                    waiting: Load { rows, bytes: row.get(2)? },
                    source: row.get(3)?,
                    target: row.get(4)?,
                    uncertain,
                    returned,
                    dead,
                })
            })
        };
        kept().map_err(|source| self.sql(source))
    }

    /// Those that are not ours, or not yet, and those that were found to be the source's.
    fn batches(&self, now: i64) -> rusqlite::Result<(Uncertain, Returned)> {
        let sql = "SELECT number, rows, bytes, source, returned_at FROM batch";
        let mut batches = self.connection.prepare(sql)?;
        let mut batches = batches.query([])?;
        let (mut uncertain, mut returned) = (Uncertain::new(), Returned::new());
        while let Some(row) = batches.next()? {
            let (number, load) = (row.get(0)?, Load { rows: row.get(1)?, bytes: row.get(2)? });
            let held = Held { at: row.get(3)?, load };
            match row.get::<_, Option<i64>>(4)? {
                Some(at) => {
                    // None where the clock was set back.
                    let age = u64::try_from(now.saturating_sub(at)).unwrap_or_default();
                    returned.insert(number, (Duration::from_millis(age), held));
                }
                None => drop(uncertain.insert(number, held)),
            }
        }
        Ok((uncertain, returned))
    }
}
