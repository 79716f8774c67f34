//! The thread that writes: one transaction a batch; what fails is counted, told once and asked
//! for again. Must not know who saves or why.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use rusqlite::{CachedStatement, Connection, Transaction, TransactionBehavior, params};

use super::compact::Compaction;
use super::newest::{BAN, ENDED, FORGIVEN};
use super::queue::{Queue, Work};
use super::rows::{bits_to_row, lines_to_row, network_to_row, time_to_row};
use super::{Change, Lease, Position, StoredBan, WouldBan, schema};

/// After so long without changes the disk is asked to keep what it has.
const IDLE: Duration = Duration::from_secs(5);
/// After a fault it is tried again so often.
const RETRY: Duration = Duration::from_secs(1);
/// Bans whose lines are kept; at 5 KiB each at most.
const EVIDENCE_ROWS: i64 = 50_000;
/// Prevented bans that are kept.
const WOULD_BAN_ROWS: i64 = 100_000;
/// Bans that are kept, history included: the soonest over go first.
const BANS: usize = 1_500_000;
/// Beside twice the bans, so many rows may lie in the file before those that do not count go.
const SPARE_ROWS: usize = 100_000;
/// Between two pieces of a compaction, when nothing else is to be done.
const PAUSE: Duration = Duration::from_millis(2);
/// Without a flood they go so often.
const COMPACT_EVERY: Duration = Duration::from_secs(86_400);
/// And forgotten what is older than is kept.
const PRUNE_EVERY: Duration = Duration::from_secs(3600);
/// Leases that wait for the disk.
const MAX_OWED: usize = 1024;

pub(super) struct Writer {
    file: PathBuf,
    connection: Connection,
    /// Rows of bans in the file.
    rows: usize,
    /// How many of them counted when that was last known.
    counting: usize,
    /// The last row's number; none is given twice.
    last_row: i64,
    compaction: Option<Compaction>,
    compacted: Duration,
    queue: Arc<Queue>,
    /// The latest time that a change has told, because this room has no clock.
    latest: Duration,
    pruned: Duration,
    unsynced: bool,
    trouble: Trouble,
}

/// What is remembered while nothing can be written.
#[derive(Default)]
struct Trouble {
    /// Changes were lost and are not handed in again yet.
    lost: bool,
    told: bool,
    /// Resyncs that failed in a row, and successes still to come before the next is asked for.
    failed_resyncs: u32,
    patience: u32,
    off: Option<Option<Duration>>,
    leases: BTreeMap<i64, Lease>,
    positions: Option<Vec<Position>>,
}

impl Writer {
    pub(super) fn new(
        file: PathBuf,
        connection: Connection,
        (rows, counting): (usize, usize),
        queue: Arc<Queue>,
        now: Duration,
    ) -> Self {
        connection.set_prepared_statement_cache_capacity(32);
        let trouble = Trouble::default();
        Self {
            file,
            connection,
            rows,
            counting,
            last_row: 0,
            compaction: None,
            compacted: now,
            queue,
            latest: now,
            pruned: now,
            unsynced: false,
            trouble,
        }
    }

    pub(super) fn run(mut self) {
        loop {
            let idle = match (&self.compaction, self.trouble.lost) {
                (Some(_), _) => PAUSE,
                (None, true) => RETRY,
                (None, false) => IDLE,
            };
            match self.queue.take(idle) {
                Work::Write(changes) => {
                    self.write(changes);
                    self.compact();
                }
                Work::Idle if self.compaction.is_some() => self.compact(),
                Work::Idle => self.idle(),
                Work::Closed => break,
            }
        }
        if self.trouble.has_owed() {
            self.write(Vec::new());
        }
        self.checkpoint("TRUNCATE");
    }

    fn idle(&mut self) {
        if !self.file.exists() {
            return self.begin_again("it was removed");
        }
        if self.trouble.lost {
            // An empty transaction that does write tells whether the disk takes anything.
            self.write(Vec::new());
        }
        if std::mem::take(&mut self.unsynced) {
            self.checkpoint("PASSIVE");
        }
    }

    fn checkpoint(&self, mode: &str) {
        let sql = format!("PRAGMA wal_checkpoint({mode})");
        // A reader may hold it up, a full disk refuse it: the log then keeps what it has.
        let _later = self.connection.query_row(&sql, [], |_| Ok(()));
    }

    fn write(&mut self, changes: Vec<Change>) {
        self.notice(&changes);
        let resync = changes.iter().any(|change| matches!(change, Change::Replace(_)));
        match self.transact(&changes) {
            Ok((cleared, added)) => {
                if cleared {
                    (self.rows, self.counting, self.compaction) = (0, 0, None);
                }
                self.rows += added;
                self.written(&changes, resync);
            }
            Err(error) => self.failed(changes, resync, &error),
        }
    }

    fn notice(&mut self, changes: &[Change]) {
        for change in changes {
            let at = match change {
                Change::Ban(ban, _) => ban.since,
                Change::End { at, .. } => *at,
                Change::WouldBan(would) => would.at,
                _ => continue,
            };
            self.latest = self.latest.max(at);
        }
    }

    fn written(&mut self, changes: &[Change], resync: bool) {
        let trouble = &mut self.trouble;
        (trouble.off, trouble.positions) = (None, None);
        trouble.leases.clear();
        self.unsynced = true;
        if resync && trouble.lost {
            tracing::warn!("ban store: {}: is whole again", self.file.display());
            *trouble = Trouble::default();
        }
        trouble.patience = trouble.patience.saturating_sub(1);
        let ask = !resync && trouble.patience == 0;
        self.queue.settle(changes.len(), resync, None);
        if self.trouble.lost && ask {
            self.trouble.patience = 8;
            self.queue.ask_resync();
        }
        self.prune();
    }

    fn failed(&mut self, changes: Vec<Change>, resync: bool, error: &rusqlite::Error) {
        self.compaction = None;
        let trouble = &mut self.trouble;
        trouble.lost = true;
        if resync {
            trouble.failed_resyncs = (trouble.failed_resyncs + 1).min(6);
        }
        trouble.patience = 1 << trouble.failed_resyncs;
        let why = format!("{}: {error}", self.file.display());
        if !std::mem::replace(&mut trouble.told, true) {
            tracing::error!(
                "ban store: {why}; bans hold but would not survive a restart; it is tried again every second, free \
                 space on its disk"
            );
        }
        let count = changes.len();
        for change in changes {
            trouble.owe(change);
        }
        self.queue.settle(count, false, Some(why));
        if schema::is_damage(error) {
            self.begin_again("it is damaged");
        } else {
            // What the log holds beyond the database may be all that fills the disk.
            self.checkpoint("TRUNCATE");
        }
    }

    /// The file is useless: a fresh one is begun, and the ledger asked for everything.
    fn begin_again(&mut self, why: &str) {
        // Closed before it is moved, so that SQLite removes nothing that is not its own.
        let Ok(nowhere) = Connection::open_in_memory() else { return };
        drop(std::mem::replace(&mut self.connection, nowhere));
        self.trouble.lost = true;
        let text = format!("{}: {why}; a fresh one is begun", self.file.display());
        match schema::open(&self.file, self.latest) {
            Ok(opened) => {
                tracing::error!("ban store: {text}");
                self.connection = opened.connection;
                (self.rows, self.counting, self.last_row) = (opened.rows, opened.restored.bans.len(), 0);
                self.compaction = None;
                self.connection.set_prepared_statement_cache_capacity(32);
                self.queue.tell(opened.damage.unwrap_or(text));
                self.queue.ask_resync();
            }
            Err(error) => self.queue.fault(error.to_string()),
        }
    }

    /// Returns whether all earlier bans are gone, and how many rows were added since.
    fn transact(&mut self, changes: &[Change]) -> rusqlite::Result<(bool, usize)> {
        // At once, because the last row's number is read before anything is written.
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        self.trouble.pay(&transaction)?;
        let mut batch = Batch::new(&transaction, &mut self.last_row)?;
        for change in changes {
            match change {
                Change::Ban(ban, lines) => {
                    batch.ban(ban)?;
                    batch.evidence(ban, lines)?;
                }
                Change::End { network, at, forgiven } => batch.end(*network, *at, *forgiven)?,
                Change::Clear => batch.clear()?,
                Change::Off(until) => off(&transaction, *until)?,
                Change::Lease(given) => lease(&transaction, given)?,
                Change::WouldBan(would) => would_ban(&transaction, would)?,
                Change::Positions(all) => positions(&transaction, all)?,
                Change::Replace(bans) => {
                    batch.clear()?;
                    for ban in bans {
                        batch.ban(ban)?;
                    }
                }
            }
        }
        let done = (batch.cleared, batch.added);
        drop(batch);
        bound_rows(&transaction)?;
        transaction.commit()?;
        Ok(done)
    }

    /// Now and then, as the changes' own times pass.
    fn prune(&mut self) {
        if self.latest.saturating_sub(self.pruned) >= PRUNE_EVERY {
            self.pruned = self.latest;
            // What is not forgotten now is forgotten an hour later.
            let _later = schema::prune_old(&self.connection, self.latest);
        }
        let grown = self.rows > self.counting.saturating_mul(2).saturating_add(SPARE_ROWS);
        let due = self.latest.saturating_sub(self.compacted) >= COMPACT_EVERY;
        if self.compaction.is_none() && (grown || due) {
            self.compacted = self.latest;
            self.compaction = Some(Compaction::new(self.last_row, schema::oldest(self.latest), BANS));
        }
    }

    /// One piece, where there is anything to do.
    fn compact(&mut self) {
        let Some(compaction) = &mut self.compaction else { return };
        match compaction.step(&mut self.connection) {
            Ok(done) => {
                self.rows = self.rows.saturating_sub(done.removed);
                self.unsynced = true;
                if done.finished {
                    self.counting = compaction.kept();
                    self.compaction = None;
                }
            }
            Err(error) => {
                tracing::debug!("ban store: {}: is compacted later: {error}", self.file.display());
                // Not again before as much has been added, or a day has passed.
                self.counting = self.rows;
                self.compaction = None;
            }
        }
    }
}

impl Trouble {
    fn has_owed(&self) -> bool {
        self.off.is_some() || self.positions.is_some() || !self.leases.is_empty()
    }

    /// What no resync brings back is kept until it can be written.
    fn owe(&mut self, change: Change) {
        match change {
            Change::Off(until) => self.off = Some(until),
            Change::Positions(all) => self.positions = Some(all),
            Change::Lease(lease) => {
                self.leases.insert(lease.id, lease);
                while self.leases.len() > MAX_OWED {
                    self.leases.pop_first();
                }
            }
            _ => {}
        }
    }

    fn pay(&self, transaction: &Transaction<'_>) -> rusqlite::Result<()> {
        if self.lost {
            transaction.execute("INSERT OR REPLACE INTO settings VALUES ('tried', 1)", [])?;
        }
        if let Some(until) = self.off {
            off(transaction, until)?;
        }
        if let Some(all) = &self.positions {
            positions(transaction, all)?;
        }
        self.leases.values().try_for_each(|owed| lease(transaction, owed))
    }
}

/// The statements of a flood, prepared once a transaction.
struct Batch<'a> {
    connection: &'a Connection,
    last_row: &'a mut i64,
    cleared: bool,
    added: usize,
    ban: CachedStatement<'a>,
    evidence: CachedStatement<'a>,
}

impl<'a> Batch<'a> {
    fn new(connection: &'a Connection, last_row: &'a mut i64) -> rusqlite::Result<Self> {
        // During an upgrade two programs may write. A number is never used again, even if its row
        // is gone: what was added later must stay behind what a compaction looks at.
        let last: Option<i64> =
            connection.prepare_cached("SELECT max(id) FROM bans")?.query_row([], |row| row.get(0))?;
        *last_row = last.unwrap_or(0).max(*last_row);
        Ok(Self {
            connection,
            last_row,
            cleared: false,
            added: 0,
            ban: connection.prepare_cached(
                "INSERT INTO bans (id, network, jail, since, ends, offences, times, throttle, reason, over)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            )?,
            evidence: connection
                .prepare_cached("INSERT INTO evidence (network, at, jail, lines) VALUES (?1, ?2, ?3, ?4)")?,
        })
    }

    fn ban(&mut self, ban: &StoredBan) -> rusqlite::Result<()> {
        self.add(
            ban.network,
            (ban.since, ban.until),
            &ban.jail,
            (ban.offences, ban.times),
            ban.throttle,
            &ban.reason,
            BAN,
        )
    }

    #[allow(clippy::too_many_arguments, reason = "a row's columns")]
    fn add(
        &mut self,
        network: IpNet,
        (since, ends): (Duration, Duration),
        jail: &str,
        (offences, times): (u32, u16),
        throttle: bool,
        reason: &str,
        over: i64,
    ) -> rusqlite::Result<()> {
        *self.last_row += 1;
        self.added += 1;
        let (network, since, ends) = (network_to_row(network), time_to_row(since), time_to_row(ends));
        let row =
            params![*self.last_row, network, jail, since, ends, offences, times, throttle, reason, over];
        self.ban.execute(row).map(drop)
    }

    fn evidence(&mut self, ban: &StoredBan, lines: &[Box<[u8]>]) -> rusqlite::Result<()> {
        if !lines.is_empty() {
            let (network, at) = (network_to_row(ban.network), time_to_row(ban.since));
            self.evidence.execute(params![network, at, ban.jail, lines_to_row(lines)])?;
        }
        Ok(())
    }

    /// Which row it ends is found out by who reads them.
    fn end(&mut self, network: IpNet, at: Duration, forgiven: bool) -> rusqlite::Result<()> {
        let over = if forgiven { FORGIVEN } else { ENDED };
        self.add(network, (at, at), "", (0, 0), false, "", over)
    }

    fn clear(&mut self) -> rusqlite::Result<()> {
        self.connection.execute("DELETE FROM bans", [])?;
        (self.cleared, self.added) = (true, 0);
        Ok(())
    }
}

fn off(connection: &Connection, until: Option<Duration>) -> rusqlite::Result<()> {
    let until = until.map(time_to_row);
    connection.execute("INSERT OR REPLACE INTO settings VALUES ('off', ?1)", [until]).map(drop)
}

fn lease(connection: &Connection, lease: &Lease) -> rusqlite::Result<()> {
    let row = params![
        lease.id,
        network_to_row(lease.network),
        lease.ticket,
        time_to_row(lease.since),
        time_to_row(lease.until),
        lease.ended.map(time_to_row)
    ];
    connection.execute("INSERT OR REPLACE INTO leases VALUES (?1, ?2, ?3, ?4, ?5, ?6)", row).map(drop)
}

fn would_ban(connection: &Connection, would: &WouldBan) -> rusqlite::Result<()> {
    let mut insert = connection.prepare_cached(
        "INSERT INTO would_bans (lease, network, jail, at, line) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?;
    let network = network_to_row(would.network);
    insert
        .execute(params![would.lease, network, would.jail, time_to_row(would.at), &would.line[..]])
        .map(drop)
}

fn positions(connection: &Connection, all: &[Position]) -> rusqlite::Result<()> {
    use std::os::unix::ffi::OsStrExt as _;
    connection.execute("DELETE FROM positions", [])?;
    let mut insert = connection.prepare_cached("INSERT INTO positions VALUES (?1, ?2, ?3, ?4, ?5)")?;
    for position in all {
        let [device, inode, offset, fingerprint] =
            [position.device, position.inode, position.offset, position.fingerprint].map(bits_to_row);
        insert.execute(params![position.path.as_os_str().as_bytes(), device, inode, offset, fingerprint])?;
    }
    Ok(())
}

/// Both tables are numbered: their oldest rows are found at once.
fn bound_rows(connection: &Connection) -> rusqlite::Result<()> {
    for (sql, rows) in [
        ("DELETE FROM evidence WHERE id <= (SELECT max(id) FROM evidence) - ?1", EVIDENCE_ROWS),
        ("DELETE FROM would_bans WHERE id <= (SELECT max(id) FROM would_bans) - ?1", WOULD_BAN_ROWS),
    ] {
        connection.prepare_cached(sql)?.execute([rows])?;
    }
    Ok(())
}
