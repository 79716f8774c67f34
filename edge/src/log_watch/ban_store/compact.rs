//! Takes the rows that no longer count out of the file, a piece at a time between two batches, so
//! that a flood is not held up. Knows the table of bans; must not know the queue.
//!
//! First the rows are read from the newest to the oldest: replaced ones go, and early ends and
//! forgiveness are written into the bans that they are about. Only then, when each network has one row left, are the bans
//! forgotten that were over long ago: while an older row of the network is there, forgetting the
//! newest would bring the older one back. Each piece is one transaction and leaves a table that
//! means what it meant.

use rusqlite::{Connection, params};

use super::newest::{Meaning, Newest};
use super::schema::network;

/// Rows of one piece: some milliseconds.
const PIECE: i64 = 4096;

/// A compaction on its way.
pub(super) struct Compaction {
    /// Later rows are left alone.
    upto: i64,
    /// What ended before this is forgotten.
    before: i64,
    /// Of so many bans at most those that end last are kept.
    most: usize,
    newest: Newest,
    ends: Vec<i64>,
    /// Bans that are left of those that it looked at.
    kept: usize,
    stage: Stage,
    piece: i64,
}

#[derive(Clone, Copy)]
enum Stage {
    /// Rows below this number are still to be read.
    Merge(i64),
    /// Rows from this number on are still to be asked for their age.
    Forget(i64),
}

/// What a piece has done.
pub(super) struct Done {
    /// Rows that are gone.
    pub(super) removed: usize,
    /// It was the last one.
    pub(super) finished: bool,
}

impl Compaction {
    pub(super) fn new(upto: i64, before: i64, most: usize) -> Self {
        let stage = Stage::Merge(upto.saturating_add(1));
        Self { upto, before, most, newest: Newest::default(), ends: Vec::new(), kept: 0, stage, piece: PIECE }
    }

    /// After the last piece: how many bans there were left when it began.
    pub(super) fn kept(&self) -> usize {
        self.kept
    }

    /// The next piece. After an error it must not be used again: what it knows is not what the
    /// file holds.
    pub(super) fn step(&mut self, connection: &mut Connection) -> rusqlite::Result<Done> {
        let transaction = connection.transaction()?;
        let done = match self.stage {
            Stage::Merge(below) => self.merge(&transaction, below)?,
            Stage::Forget(from) => self.forget(&transaction, from)?,
        };
        transaction.commit()?;
        Ok(done)
    }

    fn merge(&mut self, connection: &Connection, below: i64) -> rusqlite::Result<Done> {
        let mut gone = Vec::new();
        let mut ended = Vec::new();
        let mut read = connection.prepare_cached(
            "SELECT id, network, over, ends FROM bans WHERE id < ?1 ORDER BY id DESC LIMIT ?2",
        )?;
        let mut rows = read.query([below, self.piece])?;
        let (mut count, mut lowest) = (0, below);
        while let Some(row) = rows.next()? {
            (count, lowest) = (count + 1, row.get(0)?);
            let before: i64 = row.get(3)?;
            match self.newest.judge(lowest, network(row, 1)?, row.get(2)?, before) {
                Meaning::Stands { ends, forgiven, mut ended_by } => {
                    if !ended_by.is_empty() {
                        ended.push((lowest, ends, forgiven));
                        gone.append(&mut ended_by);
                    }
                    self.ends.push(ends);
                }
                Meaning::Replaced => gone.push(lowest),
                Meaning::Ends => {}
            }
        }
        drop(rows);
        self.stage = Stage::Merge(lowest);
        if count < self.piece {
            gone.append(&mut self.newest.idle());
            self.merged();
        }
        let mut end = connection
            .prepare_cached("UPDATE bans SET ends = ?2, times = iif(?3, 0, times) WHERE id = ?1")?;
        for (id, ends, forgiven) in ended {
            end.execute(params![id, ends, forgiven])?;
        }
        let mut remove = connection.prepare_cached("DELETE FROM bans WHERE id = ?1")?;
        for id in &gone {
            remove.execute([id])?;
        }
        Ok(Done { removed: gone.len(), finished: false })
    }

    /// Each network has one row left: says from which end on bans are kept.
    fn merged(&mut self) {
        debug_assert_eq!(self.ends.len(), self.newest.len(), "one row a network");
        self.kept = self.newest.len();
        self.newest = Newest::default();
        self.stage = Stage::Forget(0);
        let mut ends = std::mem::take(&mut self.ends);
        if let Some(surplus) = ends.len().checked_sub(self.most).filter(|surplus| *surplus > 0) {
            let (_, first_kept, _) = ends.select_nth_unstable(surplus);
            // Those that end together stay together.
            self.before = self.before.max(*first_kept);
        }
    }

    fn forget(&mut self, connection: &Connection, from: i64) -> rusqlite::Result<Done> {
        let to: Option<i64> = connection
            .prepare_cached(
                "SELECT max(id) FROM (SELECT id FROM bans WHERE id >= ?1 AND id <= ?2 ORDER BY id LIMIT ?3)",
            )?
            .query_row([from, self.upto, self.piece], |row| row.get(0))?;
        let Some(to) = to else { return Ok(Done { removed: 0, finished: true }) };
        let removed = connection
            .prepare_cached("DELETE FROM bans WHERE id >= ?1 AND id <= ?2 AND ends < ?3")?
            .execute([from, to, self.before])?;
        self.kept = self.kept.saturating_sub(removed);
        self.stage = Stage::Forget(to.saturating_add(1));
        Ok(Done { removed, finished: to >= self.upto })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::IpAddr;

    use ipnet::IpNet;
    use proptest::prelude::{any, proptest};

    use super::*;
    use crate::log_watch::ban_store::newest::{BAN, ENDED, FORGIVEN};
    use crate::log_watch::ban_store::rows::{network_to_row, time_to_row};
    use crate::log_watch::ban_store::schema;

    fn network_of(number: u8) -> IpNet {
        if number.is_multiple_of(2) {
            IpAddr::from([192, 0, 2, number]).into()
        } else {
            IpAddr::from([0x2001_u16, 0xdb8, 0, u16::from(number), 0, 0, 0, 0]).into()
        }
    }

    struct Table {
        connection: Connection,
        last: i64,
        /// Number, end and times of each network's ban.
        model: BTreeMap<IpNet, (i64, i64, u16)>,
    }

    impl Table {
        fn add(&mut self, (who, over, ends): (u8, u8, u8)) {
            self.last += 1;
            let over = [BAN, BAN, ENDED, FORGIVEN][usize::from(over % 4)];
            let (network, ends) = (network_of(who % 8), i64::from(ends));
            let sql =
                "INSERT INTO bans (id, network, jail, since, ends, offences, times, throttle, reason, over)
                       VALUES (?1, ?2, 'ssh', ?1, ?3, 1, 1, 0, '', ?4)";
            self.connection.execute(sql, params![self.last, network_to_row(network), ends, over]).unwrap();
            match self.model.get_mut(&network) {
                Some((_, known, times)) if over != BAN => {
                    *known = ends.min(*known);
                    *times = if over == FORGIVEN { 0 } else { *times };
                }
                _ if over != BAN => {}
                _ => drop(self.model.insert(network, (self.last, ends, 1))),
            }
        }

        fn assert_means_what_it_meant(&self, before: i64) {
            let bans = schema::bans(&self.connection, before).unwrap().into_iter();
            let bans: BTreeMap<_, _> = bans
                .map(|ban| (ban.network, (time_to_row(ban.since), time_to_row(ban.until), ban.times)))
                .collect();
            let model = self.model.iter().filter(|(_, (_, ends, _))| *ends >= before);
            assert_eq!(bans, model.map(|(network, ban)| (*network, *ban)).collect());
        }

        fn rows(&self) -> usize {
            let count: i64 =
                self.connection.query_row("SELECT count(*) FROM bans", [], |row| row.get(0)).unwrap();
            usize::try_from(count).unwrap()
        }
    }

    proptest! {
        /// A crash may come after any piece, and bans go on meanwhile.
        #[test]
        fn after_every_piece_the_table_means_what_it_meant(
            first in proptest::collection::vec(any::<(u8, u8, u8)>(), 0..60),
            meanwhile in proptest::collection::vec(any::<(u8, u8, u8)>(), 0..12),
            piece in 1_i64..9, before in 0_i64..200,
        ) {
            let connection = schema::in_memory().unwrap();
            let mut table = Table { connection, last: 0, model: BTreeMap::new() };
            first.into_iter().for_each(|row| table.add(row));
            let mut compaction = Compaction { piece, ..Compaction::new(table.last, before, 100) };
            let (mut left, mut later) = (table.rows(), meanwhile.into_iter());
            loop {
                let done = compaction.step(&mut table.connection).unwrap();
                left -= done.removed;
                assert_eq!(left, table.rows());
                table.assert_means_what_it_meant(before);
                if done.finished {
                    break;
                }
                if let Some(row) = later.next() {
                    table.add(row);
                    left += 1;
                    table.assert_means_what_it_meant(before);
                }
            }
            let mut whole = Compaction::new(table.last, before, 100);
            while !whole.step(&mut table.connection).unwrap().finished {}
            table.assert_means_what_it_meant(before);
            assert_eq!(table.rows(), table.model.values().filter(|(_, ends, _)| *ends >= before).count(), "one row a ban");
        }
    }

    #[test]
    fn of_too_many_bans_the_soonest_over_go() {
        let mut table = Table { connection: schema::in_memory().unwrap(), last: 0, model: BTreeMap::new() };
        (0..8).for_each(|who| table.add((who, 0, 100 - who)));
        let mut compaction = Compaction::new(table.last, 0, 5);
        while !compaction.step(&mut table.connection).unwrap().finished {}
        table.model.retain(|_, (_, ends, _)| *ends >= 96);
        assert_eq!(table.rows(), 5);
        table.assert_means_what_it_meant(0);
    }
}
