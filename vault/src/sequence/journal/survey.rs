//! What the journal tells about whole series: which there are, how far each is counted, what is
//! open, what is set aside or unaccounted. Reads alone; every list is bounded.

use rusqlite::{OptionalExtension as _, Row, params};
use shared::api::{Count, MAX_SPANS, NumberState, Span};

use super::derived::last_number;
use super::{Journal, JournalError, entry, known};
use crate::sequence::book::{Known, SeriesName};
use crate::sequence::definition::period_of;
use crate::sequence::entry::{Act, BATCH, Entry, Grant};
use crate::sequence::standing::Series;

/// Which numbers of a series a list holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// All of them.
    All,
    /// Those of this state.
    State(NumberState),
    /// Those reserved before this (milliseconds since 1970) and neither confirmed nor voided since.
    ReservedBefore(i64),
}

/// So many open reservations are counted at a time.
const COUNTED: u64 = if cfg!(test) { 2 } else { 20_000 };

/// Reservations that are neither confirmed nor voided.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Open {
    /// All of them.
    pub open: u64,
    /// Those made too long ago.
    pub expired: u64,
    /// The number after which the count goes on; `None`: it is complete.
    pub after: Option<u64>,
}

impl Journal {
    /// A page of a series' numbers above `after`.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn numbers(
        &self,
        name: &SeriesName,
        which: Which,
        after: u64,
        limit: usize,
    ) -> Result<Vec<Known>, JournalError> {
        // The state stands in the text, so that its index serves.
        let (join, clause, before) = match which {
            Which::All => ("", "", 0),
            Which::State(NumberState::Reserved) => ("", "AND state = 'reserved'", 0),
            Which::State(NumberState::Confirmed) => ("", "AND state = 'confirmed'", 0),
            Which::State(NumberState::Void) => ("", "AND state = 'void'", 0),
            Which::State(NumberState::Doubtful) => ("", "AND state = 'doubtful'", 0),
            Which::ReservedBefore(before) => {
                ("JOIN entry ON entry.idx = number.idx", "AND state = 'reserved' AND entry.at < ?5", before)
            }
        };
        let sql = format!(
            "SELECT number.* FROM number {join} WHERE number.owner = ?1 AND number.series = ?2
             AND number.number > ?3 {clause} ORDER BY number.number LIMIT ?4"
        );
        let read = || -> rusqlite::Result<Vec<Known>> {
            let mut statement = self.connection.prepare_cached(&sql)?;
            let (owner, series) = (&name.owner, &name.series);
            match which {
                Which::ReservedBefore(_) => {
                    statement.query_map(params![owner, series, after, limit, before], known)?.collect()
                }
                _ => statement.query_map(params![owner, series, after, limit], known)?.collect(),
            }
        };
        read().map_err(|source| self.sql(source))
    }

    /// How many numbers of this series and its periods this vault gave alone that are not in the
    /// chain for good.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn given_alone(&self, base: &SeriesName) -> Result<u64, JournalError> {
        let sql = "SELECT count(*) FROM solo
             WHERE owner = ?1 AND (series = ?2 OR series > ?2 || '/' AND series < ?2 || '0') AND act = 'reserve'";
        let read =
            || self.connection.prepare_cached(sql)?.query_row([&base.owner, &base.series], |row| row.get(0));
        read().map_err(|source| self.sql(source))
    }

    /// From now on, what is read is what the journal holds at this moment, whatever a running vault
    /// writes meanwhile.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn stand_still(&self) -> Result<(), JournalError> {
        self.connection.execute_batch("BEGIN").map_err(|source| self.sql(source))
    }

    /// A page of all numbers of all owners, after that one.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn every_number(
        &self,
        after: Option<&(SeriesName, u64)>,
    ) -> Result<Vec<(SeriesName, Known)>, JournalError> {
        let sql = "SELECT * FROM number WHERE (owner, series, number) > (?1, ?2, ?3) AND number > 0
             ORDER BY owner, series, number LIMIT ?4";
        let read = || -> rusqlite::Result<Vec<(SeriesName, Known)>> {
            let (owner, series, number) = after
                .map_or(("", "", 0), |(name, number)| (name.owner.as_str(), name.series.as_str(), *number));
            let row = |row: &Row<'_>| {
                Ok((SeriesName { owner: row.get("owner")?, series: row.get("series")? }, known(row)?))
            };
            self.connection
                .prepare_cached(sql)?
                .query_map(params![owner, series, number, BATCH], row)?
                .collect()
        };
        read().map_err(|source| self.sql(source))
    }

    /// When the entry of this index was made, by its label; milliseconds since 1970.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn label(&self, index: u64) -> Result<Option<i64>, JournalError> {
        self.connection
            .prepare_cached("SELECT at FROM entry WHERE idx = ?1")
            .and_then(|mut statement| statement.query_row([index], |row| row.get(0)).optional())
            .map_err(|source| self.sql(source))
    }

    /// Counts on from `so_far`, which begins as nothing, over the next open reservations of a series;
    /// those made before `before` (milliseconds since 1970) are expired.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn count_open(
        &self,
        name: &SeriesName,
        before: Option<i64>,
        so_far: Open,
    ) -> Result<Open, JournalError> {
        let sql = match before {
            None => {
                "SELECT count(*), 0, max(number) FROM (SELECT number FROM number
                 WHERE owner = ?1 AND series = ?2 AND number > ?3 AND state = 'reserved' ORDER BY number LIMIT ?4)"
            }
            Some(_) => {
                "SELECT count(*), coalesce(sum(at < ?5), 0), max(number) FROM (
                 SELECT number.number AS number, at FROM number JOIN entry ON entry.idx = number.idx
                 WHERE number.owner = ?1 AND number.series = ?2 AND number.number > ?3 AND state = 'reserved'
                 ORDER BY number.number LIMIT ?4)"
            }
        };
        let count = || -> rusqlite::Result<Open> {
            let mut statement = self.connection.prepare_cached(sql)?;
            let after = so_far.after.unwrap_or(0);
            let open = |row: &Row<'_>| {
                let (more, expired): (u64, u64) = (row.get(0)?, row.get(1)?);
                let last: Option<u64> = row.get(2)?;
                Ok(Open {
                    open: so_far.open + more,
                    expired: so_far.expired + expired,
                    after: last.filter(|_| more >= COUNTED),
                })
            };
            match before {
                None => statement.query_row(params![name.owner, name.series, after, COUNTED], open),
                Some(before) => {
                    statement.query_row(params![name.owner, name.series, after, COUNTED, before], open)
                }
            }
        };
        count().map_err(|source| self.sql(source))
    }

    /// Names of an owner's series that have numbers, each period by itself, in their order: at
    /// most `limit` after `after`.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn counted(&self, owner: &str, after: &str, limit: usize) -> Result<Vec<String>, JournalError> {
        let sql = "SELECT min(series) FROM number WHERE owner = ?1 AND series > ?2";
        let mut names: Vec<String> = Vec::new();
        while names.len() < limit {
            let last = names.last().map_or(after, String::as_str);
            let next: Option<String> = self
                .connection
                .prepare_cached(sql)
                .and_then(|mut statement| statement.query_row([owner, last], |row| row.get(0)))
                .map_err(|source| self.sql(source))?;
            match next {
                Some(name) => names.push(name),
                None => break,
            }
        }
        Ok(names)
    }

    /// Was any number given of a series or one of its periods?
    ///
    /// # Errors
    /// SQLite's own.
    pub fn has_numbers(&self, base: &SeriesName) -> Result<bool, JournalError> {
        // `0` is what follows `/`.
        let sql = "SELECT EXISTS (SELECT 1 FROM number WHERE owner = ?1 AND series = ?2)
             OR EXISTS (SELECT 1 FROM number WHERE owner = ?1 AND series > ?2 || '/' AND series < ?2 || '0')";
        self.connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.query_row([&base.owner, &base.series], |row| row.get(0)))
            .map_err(|source| self.sql(source))
    }

    /// How far a series, or one period of it, is counted, with what is open of it.
    ///
    /// # Errors
    /// SQLite's own, or a damaged table.
    pub fn count(&self, name: &SeriesName, open: Open) -> Result<Count, JournalError> {
        let last = last_number(&self.connection, &name.owner, &name.series);
        Ok(Count {
            period: period_of(&name.series).map(str::to_owned),
            last: last.map_err(|source| self.sql(source))?,
            open: open.open,
            expired: open.expired,
            ranges: self.ranges(name)?,
            unaccounted: self.unaccounted(name)?,
        })
    }

    /// What is set aside for one vault.
    fn ranges(&self, name: &SeriesName) -> Result<Vec<Span>, JournalError> {
        let text: Option<String> = self
            .connection
            .prepare_cached("SELECT text FROM series WHERE owner = ?1 AND series = ?2")
            .and_then(|mut statement| {
                statement.query_row([&name.owner, &name.series], |row| row.get(0)).optional()
            })
            .map_err(|source| self.sql(source))?;
        let Some(text) = text else { return Ok(Vec::new()) };
        let series: Series = serde_json::from_str(&text).map_err(|_| JournalError::Series {
            file: self.file.clone(),
            owner: name.owner.clone(),
            series: name.series.clone(),
        })?;
        let span = |(from, range): (u64, &crate::sequence::standing::Range)| Span {
            from,
            to: range.to,
            vault: range.holder.clone(),
        };
        Ok(series.ranges().take(MAX_SPANS).map(span).collect())
    }

    /// What a lost vault may have given.
    fn unaccounted(&self, name: &SeriesName) -> Result<Vec<Span>, JournalError> {
        let read = || -> rusqlite::Result<Vec<Span>> {
            let lost: Vec<Entry> = self
                .connection
                .prepare_cached(
                    "SELECT * FROM entry WHERE owner = ?1 AND series = ?2 AND act = 'lost' ORDER BY number LIMIT ?3",
                )?
                .query_map(params![name.owner, name.series, MAX_SPANS], entry)?
                .collect::<rusqlite::Result<_>>()?;
            let mut spans = Vec::new();
            for lost in lost {
                let Act::Lost(Grant { to, .. }) = lost.act else { continue };
                let mut statement = self.connection.prepare_cached(
                    "SELECT number FROM number WHERE owner = ?1 AND series = ?2 AND number BETWEEN ?3 AND ?4
                     ORDER BY number",
                )?;
                let number = |row: &Row<'_>| row.get::<_, u64>(0);
                let mut from = lost.number;
                for given in statement.query_map(params![name.owner, name.series, lost.number, to], number)? {
                    let given = given?;
                    if given > from {
                        spans.push(Span { from, to: given - 1, vault: lost.key.clone() });
                    }
                    from = given + 1;
                }
                if from <= to {
                    spans.push(Span { from, to, vault: lost.key.clone() });
                }
            }
            spans.truncate(MAX_SPANS);
            Ok(spans)
        };
        read().map_err(|source| self.sql(source))
    }
}
