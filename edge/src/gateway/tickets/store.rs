//! The tickets in their file: asked, written down and forgotten. Must not know threads, clocks or
//! keys: it is handed marks and how long edge has run.
//!
//! A store cannot always know every key that was sent before: it is new, or may be an earlier state
//! of itself (see `file`), or the host's clock makes that likely. A key that one vault has answered
//! alone could then get a ticket for the other. So while there is such a doubt it writes no ticket,
//! until both vaults were together after the doubt arose, for then each knows what the other had
//! given alone. What it knows, it tells all the same.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use shared::api::client::Life;

use super::clock::Moved;
use super::file::{self, Fresh, Opened};
use super::seal::Stamp;
use super::secret::Secret;
use super::witness::{Witness, failure};
use super::{Mark, TicketsError};

/// How often it is written down how long edge has run: so much is lost by a crash, and the tickets
/// are kept the longer.
const NOTE: Duration = Duration::from_secs(3600);
const DAY: u64 = 86_400;
/// So many pages stand in the log, as far as can be guessed, before they are copied into the file.
const LOG: usize = 1000;
/// Tickets on one page, when they are looked at in order.
const ON_A_PAGE: usize = 64;

pub(super) struct Store {
    connection: Connection,
    file: PathBuf,
    /// The file as edge changed it last; as any other, it is not ours.
    stamp: Stamp,
    witness: Witness,
    /// Somebody else has written into it.
    is_foreign: bool,
    /// Pages in the log, at most.
    logged: usize,
    /// The commit since which the log has them all.
    base: i64,
    doubt: Option<Doubt>,
    /// The doubt could not be written down yet.
    owes_doubt: bool,
    kept: u64,
    former: u64,
    /// How long edge has run with it, as it stands in the file, and since.
    ran: Duration,
    since: Duration,
    /// Last, so that it is let go last.
    _lock: File,
}

/// Why the store may not know every key that was sent before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doubt {
    /// It was made just now.
    New,
    /// It may be an earlier state of itself.
    Elsewhere,
    /// The host may have been put back to an earlier state while edge was running.
    Clock(Moved),
    /// It had one of these before edge was started again.
    Earlier,
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::New => f.write_str("is new"),
            Self::Elsewhere => f.write_str(
                "was last used before the host was started, lay elsewhere, or is an earlier state of itself",
            ),
            Self::Clock(moved) => write!(f, "the host's clock went {moved}"),
            Self::Earlier => f.write_str("has not seen both vaults together yet"),
        }
    }
}

/// A series and a key, as the store knows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sought {
    /// The series with its period, and the key.
    pub(super) mark: Mark,
    /// The series without it: what the first version wrote down.
    pub(super) former: Mark,
}

/// What became of a round of asks.
#[derive(Default)]
pub(super) struct Round {
    /// For each ask, in order, its marks' lives.
    pub(super) lives: Vec<Vec<Option<Life>>>,
    pub(super) written: usize,
    pub(super) known: usize,
    pub(super) committed: bool,
    /// Marks that found no room.
    pub(super) no_room: usize,
    /// Why nothing could be written, or not everything be read.
    pub(super) trouble: Option<rusqlite::Error>,
}

impl Round {
    fn nothing(asks: &[(&[Sought], Life)], trouble: Option<rusqlite::Error>) -> Self {
        let lives = asks.iter().map(|(marks, _)| vec![None; marks.len()]).collect();
        Self { lives, trouble, ..Self::default() }
    }
}

impl Store {
    /// Opens or makes the file, in this `boot` of the host; see [`file::open`].
    pub(super) fn open(
        file: &Path,
        memory: Option<&Path>,
        secret: &Secret,
        boot: Option<&str>,
    ) -> Result<Self, TicketsError> {
        let opened = file::open(file, memory, secret, boot)?;
        let Opened { connection, stamp, witness, lock, fresh, settled, kept, former, ran, base } = opened;
        let doubt = match fresh {
            Some(Fresh::Made) => Some(Doubt::New),
            Some(Fresh::Elsewhere) => Some(Doubt::Elsewhere),
            None => (!settled).then_some(Doubt::Earlier),
        };
        let mut store = Self {
            connection,
            file: file.to_owned(),
            stamp,
            witness,
            is_foreign: false,
            // A log that was left is not known to be short.
            logged: LOG,
            base,
            doubt,
            owes_doubt: false,
            kept,
            former,
            ran,
            since: Duration::ZERO,
            _lock: lock,
        };
        // The log of the last one is not built upon. It is tried again where it fails.
        let _later = store.tidy();
        Ok(store)
    }

    /// Is the file still where it was, and as edge left it? Else what is written goes nowhere, or to
    /// an earlier state. A file that cannot be looked at is taken to be there.
    pub(super) fn is_there(&self) -> bool {
        let is_same = match Stamp::at(&self.file) {
            Ok(stamp) => stamp == self.stamp,
            Err(error) => error.kind() != std::io::ErrorKind::NotFound,
        };
        is_same && !self.is_foreign
    }

    /// Copies the log into the file where it has become long.
    pub(super) fn tidy(&mut self) -> rusqlite::Result<()> {
        if self.logged >= LOG { self.copy_log().map(drop) } else { Ok(()) }
    }

    /// Tells whether all of it is in the file now.
    fn copy_log(&mut self) -> rusqlite::Result<bool> {
        if !self.is_there() {
            return Ok(false);
        }
        self.witness.reseal(None)?;
        let copied = file::copy_log(&self.connection);
        if let Ok(stamp) = Stamp::at(&self.file) {
            self.stamp = stamp;
        }
        self.witness.reseal(Some(self.stamp))?;
        self.logged = 0;
        if copied.as_ref().is_ok_and(|all| *all) {
            self.base = self.connection.query_row("SELECT turn FROM about", [], |row| row.get(0))?;
        }
        copied
    }

    /// Why it writes no tickets, where it does not.
    pub(super) fn doubt(&self) -> Option<Doubt> {
        self.doubt
    }

    /// How many tickets it holds.
    pub(super) fn kept(&self) -> u64 {
        self.kept
    }

    /// How many days edge has run with it.
    pub(super) fn today(&self) -> u32 {
        u32::try_from((self.ran + self.since).as_secs() / DAY).unwrap_or(u32::MAX)
    }

    /// Edge has run for so long since it was told last.
    pub(super) fn pass(&mut self, ran: Duration) -> rusqlite::Result<()> {
        self.since += ran;
        if self.since >= NOTE { self.note() } else { Ok(()) }
    }

    /// Writes down how long edge has run.
    pub(super) fn note(&mut self) -> rusqlite::Result<()> {
        let ran = self.ran + self.since;
        self.connection.execute(
            "UPDATE about SET ran = ?1, turn = turn + 1, base = ?2",
            params![ran.as_secs(), self.base],
        )?;
        (self.ran, self.since) = (ran, Duration::ZERO);
        Ok(())
    }

    /// From now on it cannot be sure, even after a crash.
    pub(super) fn begin_doubt(&mut self, doubt: Doubt) -> rusqlite::Result<()> {
        (self.doubt, self.owes_doubt) = (Some(doubt), true);
        self.write_doubt()
    }

    /// Writes down a doubt that could not be written down before.
    pub(super) fn write_doubt(&mut self) -> rusqlite::Result<()> {
        if self.owes_doubt {
            self.witness.settle(self.stamp)?;
            let set = "UPDATE about SET settled = 0, token = ?1, turn = turn + 1, base = ?2";
            self.connection.execute(set, params![self.witness.next(), self.base])?;
            self.witness.tell(self.stamp)?;
            self.owes_doubt = false;
        }
        Ok(())
    }

    /// Both vaults were together since the doubt arose.
    pub(super) fn end_doubt(&mut self) -> rusqlite::Result<()> {
        self.connection.execute("UPDATE about SET settled = 1, turn = turn + 1, base = ?1", [self.base])?;
        (self.doubt, self.owes_doubt) = (None, false);
        Ok(())
    }

    /// Finds each mark's life, and writes the ask's own down for those that have none, all asks in
    /// one transaction, durable when it returns. What is known is told even if nothing can be
    /// written.
    pub(super) fn write_down(&mut self, asks: &[(&[Sought], Life)], most: u64) -> Round {
        let mut trouble = self.witness.settle(self.stamp).err();
        if trouble.is_none() && self.doubt.is_none() {
            match self.try_write(asks, most) {
                Ok(round) => return round,
                Err(error) => trouble = Some(error),
            }
        }
        if self.witness.owes() {
            // What is written could be lost unseen by a copy put back: none of it may go out.
            return Round::nothing(asks, trouble);
        }
        // Nothing is written: what was there before still counts.
        self.look(asks, trouble)
    }

    fn try_write(&mut self, asks: &[(&[Sought], Life)], most: u64) -> rusqlite::Result<Round> {
        let (today, has_former) = (self.today(), self.former > 0);
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let (mut round, mut fresh) = (Round::default(), HashSet::new());
        let room = most.saturating_sub(self.kept);
        for (marks, life) in asks {
            let mut lives = Vec::with_capacity(marks.len());
            for sought in *marks {
                let (known, mark) = (found(&transaction, sought, has_former)?, &sought.mark);
                if known.is_some() {
                    // Twice in one round is written once, and both find it.
                    round.known += usize::from(!fresh.contains(mark));
                } else if (fresh.len() as u64) < room {
                    let insert = "INSERT INTO tickets (mark, life, day) VALUES (?1, ?2, ?3)";
                    let values = params![mark, life.0.to_be_bytes(), today];
                    transaction.prepare_cached(insert)?.execute(values)?;
                    fresh.insert(*mark);
                } else {
                    round.no_room += 1;
                }
                lives.push(known.or_else(|| fresh.contains(mark).then_some(*life)));
            }
            round.lives.push(lives);
        }
        if !fresh.is_empty() {
            let update = "UPDATE about SET kept = kept + ?1, token = ?2, turn = turn + 1, base = ?3
                WHERE token = ?4";
            let values = params![fresh.len(), self.witness.next(), self.base, self.witness.told()];
            if transaction.prepare_cached(update)?.execute(values)? != 1 {
                self.is_foreign = true;
                return Err(failure("another program has changed it while edge was running".to_owned()));
            }
            transaction.commit()?;
            self.kept += fresh.len() as u64;
            self.logged += fresh.len() + 1;
            self.witness.tell(self.stamp)?;
            (round.written, round.committed) = (fresh.len(), true);
        }
        Ok(round)
    }

    /// What is known, without writing; nothing where it cannot be read.
    fn look(&self, asks: &[(&[Sought], Life)], trouble: Option<rusqlite::Error>) -> Round {
        let each = |marks: &[Sought]| -> rusqlite::Result<Vec<Option<Life>>> {
            marks.iter().map(|sought| found(&self.connection, sought, self.former > 0)).collect()
        };
        match asks.iter().map(|(marks, _)| each(marks)).collect::<rusqlite::Result<Vec<_>>>() {
            Ok(lives) => {
                let known = lives.iter().flatten().flatten().count();
                Round { lives, known, trouble, ..Round::default() }
            }
            Err(error) => Round::nothing(asks, Some(error)),
        }
    }

    /// Forgets what is older than `days` among the next `most` tickets after `from`, and all of the
    /// first version once they are. Tells the last one looked at; `None` at the end.
    pub(super) fn thin_out(
        &mut self,
        from: Option<Mark>,
        days: u32,
        most: u32,
    ) -> rusqlite::Result<Option<Mark>> {
        let today = self.today();
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // They count from the day on which the file came to this version, the first one.
        let former = if today > days { self.former } else { 0 };
        if former > 0 {
            transaction.execute_batch(
                "DROP TABLE former; UPDATE about SET kept = max(0, kept - former), former = 0",
            )?;
        }
        let (mut last, mut old) = (None, Vec::new());
        {
            let sql = "SELECT mark, day FROM tickets WHERE mark > ?1 ORDER BY mark LIMIT ?2";
            let mut rows = transaction.prepare_cached(sql)?;
            let mut rows = rows.query(params![from.as_ref().map_or(&[][..], |mark| &mark[..]), most])?;
            while let Some(row) = rows.next()? {
                let mark: Mark = row.get(0)?;
                if row.get::<_, u32>(1)? < today.saturating_sub(days) {
                    old.push(mark);
                }
                last = Some(mark);
            }
        }
        for mark in &old {
            transaction.prepare_cached("DELETE FROM tickets WHERE mark = ?1")?.execute([mark])?;
        }
        if former > 0 || !old.is_empty() {
            let update = "UPDATE about SET kept = max(0, kept - ?1), turn = turn + 1, base = ?2";
            transaction.execute(update, params![old.len(), self.base])?;
            transaction.commit()?;
            self.logged += old.len() / ON_A_PAGE + 1;
            self.kept = self.kept.saturating_sub(old.len() as u64).saturating_sub(former);
            self.former -= former;
        }
        Ok(last)
    }
}

impl Drop for Store {
    /// In order, all of it is in the file, and no log stays. A log beside a file that is not as edge
    /// left it is left there as well.
    fn drop(&mut self) {
        let copied = self.copy_log().unwrap_or(false);
        if copied {
            // Nothing is left to be copied: the file is not changed any more.
            let _kept = self.connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false);
        }
    }
}

#[cfg(test)]
impl Store {
    /// The files are left as a process that is killed leaves them.
    pub(super) fn kill(mut self) {
        self.is_foreign = true;
    }
}

fn found(connection: &Connection, sought: &Sought, has_former: bool) -> rusqlite::Result<Option<Life>> {
    let find = |sql, mark: &Mark| -> rusqlite::Result<Option<Life>> {
        let life: Option<[u8; 16]> =
            connection.prepare_cached(sql)?.query_row([mark], |row| row.get(0)).optional()?;
        Ok(life.map(|life| Life(u128::from_be_bytes(life))))
    };
    let known = find("SELECT life FROM tickets WHERE mark = ?1", &sought.mark)?;
    if known.is_some() || !has_former {
        return Ok(known);
    }
    find("SELECT life FROM former WHERE mark = ?1", &sought.former)
}
