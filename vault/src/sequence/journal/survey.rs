//! What the journal tells about whole series: which there are, how far each is counted, what is
//! open, what is set aside or unaccounted. Reads alone; every list is bounded.

use rusqlite::{OptionalExtension as _, Row, params};
use serde::Serialize;
use shared::api::{Count, MAX_SPANS, Number, NumberState, Span};

use super::derived::last_number;
use super::{Journal, JournalError, entry, known};
use crate::sequence::book::{Known, SeriesName};
use crate::sequence::definition::{base_of, period_of};
use crate::sequence::entry::{Act, BATCH, Entry, Grant, Life};
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

/// Of so many series is told what is left of them.
const TOLD: usize = if cfg!(test) { 3 } else { 1000 };

/// What one life of a vault may still give alone of a series, or of one of its periods.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Left {
    /// Whose.
    pub owner: String,
    /// The series.
    pub series: String,
    /// Which period of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub period: Option<String>,
    /// So many numbers are left.
    pub left: u64,
    /// So many were set aside.
    pub of: u64,
}

/// What one life of a vault may still give alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllLeft {
    /// From these series, by their names.
    pub series: Vec<Left>,
    /// Are there others, of which nothing is told?
    pub more: bool,
    /// Is a number left, of any of all these?
    pub any: bool,
}

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

    /// A page of the numbers above `after` that this vault gave alone and that are not in the
    /// chain, marked as such; those made before `before` are expired.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn numbers_given_alone(
        &self,
        name: &SeriesName,
        which: Which,
        after: u64,
        limit: usize,
        before: Option<i64>,
    ) -> Result<Vec<Number>, JournalError> {
        let sql =
            "SELECT number, at FROM solo WHERE owner = ?1 AND series = ?2 AND number > ?3 AND act = 'reserve'
             ORDER BY number";
        let wrong = |source| self.sql(source);
        let mut statement = self.connection.prepare_cached(sql).map_err(wrong)?;
        let mut rows = statement.query(params![name.owner, name.series, after]).map_err(wrong)?;
        let mut page = Vec::new();
        while page.len() < limit
            && let Some(row) = rows.next().map_err(wrong)?
        {
            let (number, at): (u64, i64) = (row.get(0).map_err(wrong)?, row.get(1).map_err(wrong)?);
            if self.by_number(name, number)?.is_some() {
                continue;
            }
            let Some(Known { number, .. }) = self.own_by_number(name, number)? else { continue };
            let expired = number.state == NumberState::Reserved && before.is_some_and(|before| at < before);
            let wanted = match which {
                Which::All => true,
                Which::State(state) => number.state == state,
                Which::ReservedBefore(_) => expired,
            };
            if wanted {
                page.push(Number { expired, alone: true, ..number });
            }
        }
        Ok(page)
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

    /// What that life of that vault may still give alone, by ranges among the first `last` entries.
    ///
    /// # Errors
    /// SQLite's own, or a damaged table.
    pub fn left_alone(&self, vault: &str, life: Life, last: u64) -> Result<AllLeft, JournalError> {
        let wrong = |source| self.sql(source);
        // Only those of which it holds a range; of a long ledger most are periods that are over.
        let sql = "SELECT owner, series, text FROM series WHERE instr(text, ?1) > 0 ORDER BY owner, series";
        let mut statement = self.connection.prepare_cached(sql).map_err(wrong)?;
        let mut rows = statement.query([format!("\"life\":{life},")]).map_err(wrong)?;
        let mut all = AllLeft::default();
        while let Some(row) = rows.next().map_err(wrong)? {
            let column = |index| row.get::<_, String>(index).map_err(wrong);
            let (owner, series, text) = (column(0)?, column(1)?, column(2)?);
            let Ok(ranges) = serde_json::from_str::<Series>(&text) else {
                return Err(JournalError::Series { file: self.file.clone(), owner, series });
            };
            let after = self.last_alone(&owner, &series, life)?;
            let [left, of] = ranges.left(vault, life, last, after);
            if of == 0 {
                continue;
            }
            all.any |= left > 0;
            if all.series.len() < TOLD {
                let period = period_of(&series).map(str::to_owned);
                all.series.push(Left { owner, series: base_of(&series).to_owned(), period, left, of });
            } else {
                all.more = true;
                if all.any {
                    break;
                }
            }
        }
        Ok(all)
    }

    /// The highest number of the series that this life gave alone.
    fn last_alone(&self, owner: &str, series: &str, life: Life) -> Result<Option<u64>, JournalError> {
        let sql = "SELECT number FROM solo WHERE owner = ?1 AND series = ?2 AND act = 'reserve' AND life = ?3
             ORDER BY number DESC LIMIT 1";
        let read = || {
            let mut statement = self.connection.prepare_cached(sql)?;
            statement.query_row(params![owner, series, life.to_be_bytes()], |row| row.get(0)).optional()
        };
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
            alone: self.numbers_alone(name)?,
            ranges: self.ranges(name)?,
            unaccounted: self.unaccounted(name)?,
        })
    }

    /// How many numbers this vault gave alone that are not in the chain.
    fn numbers_alone(&self, name: &SeriesName) -> Result<u64, JournalError> {
        let sql = "SELECT count(*) FROM solo WHERE owner = ?1 AND series = ?2 AND act = 'reserve'";
        self.connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.query_row([&name.owner, &name.series], |row| row.get(0)))
            .map_err(|source| self.sql(source))
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
