//! The tickets' SQLite file: made, opened, brought to the present version, known again, set aside.
//! Knows what stands in it about itself; must not know what a ticket is for.
//!
//! A file is known again by its *place*, which is the host's present boot, its device and its inode,
//! and by its *token* (see `witness`), since an inode is used again at once. Any other may be an
//! earlier state of itself, from a snapshot or a backup, and lack what was written since.

use std::fs::{Metadata, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior, params};

use super::secret::Secret;
use super::witness::Witness;
use super::{Mark, TicketsError};

/// `edtk` in ASCII: tells our file from another program's.
const APPLICATION: i64 = 0x6564_746b;
/// The file's `user_version`. Version 1 had marks without period, and days by the wall clock;
/// version 2 had no token.
const VERSION: i64 = 3;
const TICKETS: &str = "
    CREATE TABLE tickets (mark BLOB PRIMARY KEY, life BLOB NOT NULL, day INTEGER NOT NULL) WITHOUT ROWID;
";
const ABOUT: &str = "
    CREATE TABLE about (id INTEGER PRIMARY KEY CHECK (id = 1), secret BLOB NOT NULL,
        settled INTEGER NOT NULL, kept INTEGER NOT NULL, former INTEGER NOT NULL,
        ran INTEGER NOT NULL, place TEXT NOT NULL, token BLOB NOT NULL);
";
/// What version 1 wrote counts on, as if it were written today: its days may be any clock's.
const FROM_1: &str = "
    ALTER TABLE tickets RENAME TO former;
    ALTER TABLE about RENAME COLUMN both_gave TO settled;
    ALTER TABLE about ADD COLUMN former INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE about ADD COLUMN ran INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE about ADD COLUMN place TEXT NOT NULL DEFAULT '';
    UPDATE about SET former = kept;
";
const FROM_2: &str = "ALTER TABLE about ADD COLUMN token BLOB NOT NULL DEFAULT x'';";
/// How long another process may hold the file, such as an edge that is just ending.
const BUSY: Duration = Duration::from_secs(5);
/// So many that were set aside are kept, the first ones and the last.
const MOST_ASIDE: u32 = 9;

/// An open file and what it says about itself.
pub(super) struct Opened {
    pub(super) connection: Connection,
    pub(super) place: Place,
    pub(super) witness: Witness,
    /// Was it last open in another place, or made just now?
    pub(super) fresh: Option<Fresh>,
    /// Were both vaults together since its last doubt?
    pub(super) settled: bool,
    /// Tickets in all.
    pub(super) kept: u64,
    /// Those of version 1 among them.
    pub(super) former: u64,
    /// How long edge has run with it.
    pub(super) ran: Duration,
}

/// Why an open file proves nothing of what was sent before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fresh {
    /// It was made just now.
    Made,
    /// It was last open in another boot, lay elsewhere, is an earlier state of itself, or of an
    /// earlier version.
    Elsewhere,
}

/// Which file, on which disk, in which boot of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    device: u64,
    inode: u64,
}

impl Place {
    fn of(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }

    /// Does `file` still lead there? A file that cannot be looked at is taken to be there.
    pub(super) fn is_at(self, file: &Path) -> bool {
        match std::fs::metadata(file) {
            Ok(metadata) => Self::of(&metadata) == self,
            Err(error) => error.kind() != std::io::ErrorKind::NotFound,
        }
    }

    /// An unknown boot is never the same again.
    fn text(self, boot: Option<&str>) -> Option<String> {
        boot.map(|boot| format!("{boot} {}:{}", self.device, self.inode))
    }
}

/// Opens or makes the file (mode 0600), in this `boot` of the host. One that is damaged or was
/// written with another secret is set aside and a fresh one made.
pub(super) fn open(file: &Path, secret: &Secret, boot: Option<&str>) -> Result<Opened, TicketsError> {
    match try_open(file, secret, boot) {
        Ok(Some(opened)) => return Ok(opened),
        Ok(None) => set_aside(file, "was written with another secret")?,
        Err(TicketsError::Database { source, .. }) if is_damage(&source) => {
            set_aside(file, &format!("is damaged: {source}"))?;
        }
        Err(error) => return Err(error),
    }
    let gone =
        || TicketsError::Database { file: file.to_owned(), source: rusqlite::Error::QueryReturnedNoRows };
    try_open(file, secret, boot)?.ok_or_else(gone)
}

/// `None`: another secret.
fn try_open(file: &Path, secret: &Secret, boot: Option<&str>) -> Result<Option<Opened>, TicketsError> {
    let wrap = |source| TicketsError::Database { file: file.to_owned(), source };
    let private = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(file);
    let metadata = private.and_then(|private| private.metadata());
    let metadata = metadata.map_err(|source| TicketsError::File {
        file: file.to_owned(),
        what: "cannot be opened",
        source,
    })?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(file, flags).map_err(wrap)?;
    connection.busy_timeout(BUSY).map_err(wrap)?;
    if !is_ours(&connection).map_err(wrap)? {
        return Err(TicketsError::Foreign(file.to_owned()));
    }
    configure(&connection).map_err(wrap)?;
    let place = Place::of(&metadata);
    let known = place.text(boot).unwrap_or_default();
    let mut witness = Witness::of(file).map_err(wrap)?;
    let (about, fresh) = prepare(&mut connection, secret, &known, &witness).map_err(wrap)?;
    if about.sign != secret.sign() {
        return Ok(None);
    }
    witness.begin(&about.token).map_err(wrap)?;
    let About { settled, kept, former, ran, .. } = about;
    let ran = Duration::from_secs(ran);
    Ok(Some(Opened { connection, place, witness, fresh, settled, kept, former, ran }))
}

/// Nobody else's, nor a newer program's.
fn is_ours(connection: &Connection) -> rusqlite::Result<bool> {
    let number = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let version = 1..=VERSION;
    Ok(tables == 0
        || (number("application_id")? == APPLICATION && version.contains(&number("user_version")?)))
}

/// WAL, and every commit on the disk before it returns.
fn configure(connection: &Connection) -> rusqlite::Result<()> {
    let _mode: String = connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "journal_size_limit", 64 * 1024 * 1024)?;
    connection.pragma_update(None, "cache_size", -16 * 1024)?;
    connection.set_prepared_statement_cache_capacity(16);
    Ok(())
}

struct About {
    sign: Mark,
    settled: bool,
    kept: u64,
    former: u64,
    ran: u64,
    place: String,
    token: Vec<u8>,
}

/// The tables of the present version; and what is written about the file, whose place is noted.
/// Nothing is written where everything is as it was.
fn prepare(
    connection: &mut Connection,
    secret: &Secret,
    place: &str,
    witness: &Witness,
) -> rusqlite::Result<(About, Option<Fresh>)> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let tables: i64 = transaction.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let version: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if tables == 0 {
        transaction.execute_batch(&format!("{TICKETS}{ABOUT}"))?;
        transaction.execute("INSERT INTO about VALUES (1, ?1, 0, 0, 0, 0, '', x'')", [secret.sign()])?;
        transaction.pragma_update(None, "application_id", APPLICATION)?;
    } else if version == 1 {
        transaction.execute_batch(&format!("{FROM_1}{TICKETS}{FROM_2}"))?;
    } else if version == 2 {
        transaction.execute_batch(FROM_2)?;
    }
    if version != VERSION {
        transaction.pragma_update(None, "user_version", VERSION)?;
    }
    let select = "SELECT secret, settled, kept, former, ran, place, token FROM about";
    let mut about = transaction.query_row(select, [], |row| {
        let (sign, settled, kept) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let (former, ran, place, token) = (row.get(3)?, row.get(4)?, row.get(5)?, row.get(6)?);
        Ok(About { sign, settled, kept, former, ran, place, token })
    })?;
    let is_known = !place.is_empty() && about.place == place && witness.vouches(&about.token);
    let fresh = match tables {
        0 => Some(Fresh::Made),
        _ => (!is_known).then_some(Fresh::Elsewhere),
    };
    if fresh.is_some() && about.sign == secret.sign() {
        let set = "UPDATE about SET settled = 0, place = ?1, token = ?2";
        transaction.execute(set, params![place, witness.next()])?;
        (about.settled, about.token) = (false, witness.next().to_vec());
    }
    transaction.commit()?;
    Ok((about, fresh))
}

/// The file is no database, or not a whole one.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    match error {
        rusqlite::Error::SqliteFailure(failure, _) => {
            matches!(failure.code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
        }
        // A column is not what we made it, or the one row is missing.
        rusqlite::Error::InvalidColumnType(..)
        | rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::IntegralValueOutOfRange(..)
        | rusqlite::Error::QueryReturnedNoRows => true,
        _ => false,
    }
}

/// Puts the file out of the way and says what that means. It is kept for whoever wants to know what
/// happened.
pub(super) fn set_aside(file: &Path, why: &str) -> Result<(), TicketsError> {
    let beside = |end: &str| PathBuf::from(format!("{}{end}", file.display()));
    let ends = (1..=MOST_ASIDE).map(|count| match count {
        1 => ".damaged".to_owned(),
        count => format!(".damaged-{count}"),
    });
    let ends: Vec<String> = ends.collect();
    let free = ends.iter().find(|end| !beside(end).exists()).or(ends.last());
    let to = free.map(String::as_str).unwrap_or(".damaged");
    // The file first: without it, its log alone is never read again. The other way round a crash in
    // between would leave a file that lacks its last tickets and looks whole.
    for part in ["", "-wal", "-shm"] {
        match std::fs::rename(beside(part), beside(&format!("{to}{part}"))) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(TicketsError::File { file: beside(part), what: "cannot be set aside", source });
            }
            _ => {}
        }
    }
    tracing::error!(
        "tickets: {}: {why}; it is set aside as {} and a fresh one begun. No number is given twice by it, but a vault \
         that is alone gives this host none until both were together again. Look at the disk; what was set aside may \
         be deleted, and must not be put back",
        file.display(),
        beside(to).display()
    );
    Ok(())
}
