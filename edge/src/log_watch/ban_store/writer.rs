//! The thread that writes: one transaction a batch; what fails is counted, told once and asked
//! for again. Must not know who saves or why.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use rusqlite::{CachedStatement, Connection, Transaction, params};

use super::queue::{Queue, Work};
use super::rows::{bits_to_row, lines_to_row, network_to_row, time_to_row};
use super::schema::Rows;
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
const BAN_ROWS: i64 = 1_500_000;
/// So often is counted: new bans.
const COUNT_EVERY: usize = 250_000;
/// And forgotten what is older than is kept.
const PRUNE_EVERY: Duration = Duration::from_secs(3600);
/// Leases that wait for the disk.
const MAX_OWED: usize = 1024;

pub(super) struct Writer {
    file: PathBuf,
    connection: Connection,
    rows: Rows,
    /// The last ban's row; none is given twice.
    last_row: i64,
    queue: Arc<Queue>,
    /// The latest time that a change has told, because this room has no clock.
    latest: Duration,
    pruned: Duration,
    uncounted: usize,
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
        rows: Rows,
        queue: Arc<Queue>,
        now: Duration,
    ) -> Self {
        let last_row = last(&rows);
        connection.set_prepared_statement_cache_capacity(32);
        let trouble = Trouble::default();
        Self {
            file,
            connection,
            rows,
            last_row,
            queue,
            latest: now,
            pruned: now,
            uncounted: 0,
            unsynced: false,
            trouble,
        }
    }

    pub(super) fn run(mut self) {
        loop {
            match self.queue.take(if self.trouble.lost { RETRY } else { IDLE }) {
                Work::Write(changes) => self.write(changes),
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
        let written = self.transact(&changes);
        if written.is_err() && (resync || changes.iter().any(|change| matches!(change, Change::Clear))) {
            self.read_rows();
        }
        match written {
            Ok(()) => self.written(&changes, resync),
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
            self.uncounted += 1;
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
                self.last_row = last(&opened.rows);
                self.rows = opened.rows;
                self.connection.set_prepared_statement_cache_capacity(32);
                self.queue.tell(opened.damage.unwrap_or(text));
                self.queue.ask_resync();
            }
            Err(error) => self.queue.fault(error.to_string()),
        }
    }

    fn transact(&mut self, changes: &[Change]) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        self.trouble.pay(&transaction)?;
        let mut batch = Batch::new(&transaction, &mut self.rows, &mut self.last_row)?;
        for change in changes {
            match change {
                Change::Ban(ban, lines) => {
                    batch.ban(ban)?;
                    batch.evidence(ban, lines)?;
                }
                Change::End { network, at } => batch.end(*network, *at)?,
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
        drop(batch);
        bound_rows(&transaction)?;
        transaction.commit()
    }

    fn read_rows(&mut self) {
        // Where even reading fails, rows may come twice: the later one counts at the next start.
        if let Ok(rows) = schema::rows_of(&self.connection) {
            self.rows = rows;
        }
    }

    /// Now and then, as the changes' own times pass.
    fn prune(&mut self) {
        if self.latest.saturating_sub(self.pruned) >= PRUNE_EVERY {
            self.pruned = self.latest;
            // What is not forgotten now is forgotten an hour later.
            let _later = schema::prune_old(&self.connection, self.latest);
            self.read_rows();
        }
        if self.uncounted >= COUNT_EVERY {
            self.uncounted = 0;
            let _later = bound_bans(&self.connection);
            self.read_rows();
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
    rows: &'a mut Rows,
    last_row: &'a mut i64,
    ban: CachedStatement<'a>,
    evidence: CachedStatement<'a>,
    end: CachedStatement<'a>,
}

impl<'a> Batch<'a> {
    fn new(connection: &'a Connection, rows: &'a mut Rows, last_row: &'a mut i64) -> rusqlite::Result<Self> {
        Ok(Self {
            connection,
            rows,
            last_row,
            ban: connection
                .prepare_cached("INSERT OR REPLACE INTO bans VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)")?,
            evidence: connection
                .prepare_cached("INSERT INTO evidence (network, at, jail, lines) VALUES (?1, ?2, ?3, ?4)")?,
            end: connection.prepare_cached("UPDATE bans SET ends = min(ends, ?2) WHERE id = ?1")?,
        })
    }

    fn ban(&mut self, ban: &StoredBan) -> rusqlite::Result<()> {
        let row = *self.rows.entry(ban.network).or_insert_with(|| {
            *self.last_row += 1;
            *self.last_row
        });
        self.ban.execute(params![
            row,
            network_to_row(ban.network),
            ban.jail,
            time_to_row(ban.since),
            time_to_row(ban.until),
            ban.offences,
            ban.times,
            ban.throttle,
            ban.reason
        ])?;
        Ok(())
    }

    fn evidence(&mut self, ban: &StoredBan, lines: &[Box<[u8]>]) -> rusqlite::Result<()> {
        if !lines.is_empty() {
            let (network, at) = (network_to_row(ban.network), time_to_row(ban.since));
            self.evidence.execute(params![network, at, ban.jail, lines_to_row(lines)])?;
        }
        Ok(())
    }

    fn end(&mut self, network: IpNet, at: Duration) -> rusqlite::Result<()> {
        if let Some(row) = self.rows.get(&network) {
            self.end.execute(params![row, time_to_row(at)])?;
        }
        Ok(())
    }

    fn clear(&mut self) -> rusqlite::Result<()> {
        self.connection.execute("DELETE FROM bans", [])?;
        self.rows.clear();
        Ok(())
    }
}

fn last(rows: &Rows) -> i64 {
    rows.values().copied().max().unwrap_or(0)
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

fn bound_bans(connection: &Connection) -> rusqlite::Result<()> {
    let rows: i64 = connection.query_row("SELECT count(*) FROM bans", [], |row| row.get(0))?;
    if rows > BAN_ROWS {
        connection.execute(
            "DELETE FROM bans WHERE ends <= (SELECT ends FROM bans ORDER BY ends LIMIT 1 OFFSET ?1)",
            [rows - BAN_ROWS],
        )?;
    }
    Ok(())
}
