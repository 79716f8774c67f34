//! The ledger's copy in MariaDB or MySQL: the same two tables as in PostgreSQL, in one
//! transaction per append. Never AUTO_INCREMENT: a promoted replica may give its values again.

use std::borrow::Cow;

use async_trait::async_trait;
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Error, IsolationLevel, OptsBuilder, Params, SslOpts, TxOpts, Value};

use super::super::entry::{BATCH, Entry, Tail};
use super::row::{COLUMNS, Row, tail};
use super::tls::{password, place};
use super::{DatabaseError, Host, Ledger, Place, Settings, VERSION};

const TABLES: [&str; 2] = [
    "CREATE TABLE IF NOT EXISTS vault_entry (
        idx BIGINT PRIMARY KEY,
        epoch BIGINT NOT NULL,
        life BINARY(16) NOT NULL,
        carried BIGINT NOT NULL,
        owner VARCHAR(128) NOT NULL,
        series VARCHAR(255) NOT NULL,
        number BIGINT NOT NULL,
        entry_key TEXT NOT NULL,
        act VARCHAR(16) NOT NULL,
        body LONGBLOB NOT NULL,
        at BIGINT NOT NULL,
        previous BINARY(32) NOT NULL,
        hash BINARY(32) NOT NULL,
        KEY vault_entry_number (owner, series, number)
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin",
    "CREATE TABLE IF NOT EXISTS vault_ledger (
        one INT PRIMARY KEY,
        version INT NOT NULL,
        idx BIGINT NOT NULL,
        hash BINARY(32) NOT NULL
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin",
];

/// The columns of an entry.
const WIDTH: usize = 13;

/// A connection to one server.
pub struct Mariadb {
    place: String,
    user: String,
    database: String,
    connection: Conn,
}

impl Mariadb {
    /// Connects to one server.
    ///
    /// # Errors
    /// It is away, or refuses the account.
    pub async fn connect(settings: &Settings, host: &(String, u16)) -> Result<Self, DatabaseError> {
        let place = place(host);
        let tls = settings.authority_file.as_ref().map(|authority| {
            SslOpts::default()
                .with_root_certs(vec![authority.clone().into()])
                .with_disable_built_in_roots(true)
        });
        let options = OptsBuilder::default()
            .ip_or_hostname(host.0.clone())
            .tcp_port(host.1)
            .user(Some(&settings.user))
            .pass(password(settings, &place)?)
            .db_name(Some(&settings.database))
            .ssl_opts(tls)
            // The socket of another server may lie on this host.
            .prefer_socket(false)
            .tcp_nodelay(true)
            // A value that does not fit is refused, not cut.
            .init(vec!["SET SESSION sql_mode = 'STRICT_ALL_TABLES'", "SET NAMES utf8mb4"]);
        let connection = Conn::new(options).await.map_err(|error| told(&place, settings, &error))?;
        Ok(Self { user: settings.user.clone(), database: settings.database.clone(), place, connection })
    }

    fn told(&self, error: &Error) -> DatabaseError {
        told_by(&self.place, &self.user, &self.database, error)
    }

    fn unfit(&self, what: impl Into<String>, next: impl Into<String>) -> DatabaseError {
        DatabaseError::Unfit { place: self.place.clone(), what: what.into(), next: next.into() }
    }

    async fn one<T: mysql_async::prelude::FromRow + Send + 'static>(
        &mut self,
        sql: &str,
    ) -> Result<Option<T>, DatabaseError> {
        let found = self.connection.query_first(sql).await;
        found.map_err(|error| self.told(&error))
    }

    async fn tables(&mut self) -> Result<Vec<(String, Option<String>)>, DatabaseError> {
        let sql = "SELECT table_name, table_collation FROM information_schema.tables
            WHERE table_schema = DATABASE() AND table_name IN ('vault_entry', 'vault_ledger') ORDER BY 1";
        let found = self.connection.query(sql).await;
        found.map_err(|error| self.told(&error))
    }

    async fn read_tail(&mut self) -> Result<Option<Tail>, DatabaseError> {
        let row: Option<(i64, Vec<u8>)> = self.one("SELECT idx, hash FROM vault_ledger").await?;
        Ok(row.and_then(|(index, hash)| tail(index, &hash)))
    }

    async fn write(&mut self, after: Tail, end: Tail, values: Vec<Value>) -> Result<bool, Error> {
        let signed = |index: u64| i64::try_from(index).unwrap_or(i64::MAX);
        let mut options = TxOpts::default();
        options.with_isolation_level(IsolationLevel::ReadCommitted);
        let mut transaction = self.connection.start_transaction(options).await?;
        let sql = "UPDATE vault_ledger SET idx = ?, hash = ? WHERE one = 1 AND idx = ? AND hash = ?";
        let moved = (signed(end.index), &end.hash.0[..], signed(after.index), &after.hash.0[..]);
        transaction.exec_drop(sql, moved).await?;
        if transaction.affected_rows() != 1 {
            transaction.rollback().await?;
            return Ok(false);
        }
        let row = "(?,?,?,?,?,?,?,?,?,?,?,?,?)";
        let rows = vec![row; values.len() / WIDTH].join(",");
        let sql = format!("INSERT INTO vault_entry ({COLUMNS}) VALUES {rows}");
        transaction.exec_drop(sql, Params::Positional(values)).await?;
        transaction.commit().await?;
        Ok(true)
    }
}

#[async_trait]
impl Ledger for Mariadb {
    fn place(&self) -> &str {
        &self.place
    }

    async fn look(&mut self) -> Result<Host, DatabaseError> {
        let sql = "SELECT CAST(@@global.read_only AS SIGNED), VERSION(), CAST(@@server_id AS SIGNED), @@character_set_database";
        let row: Option<(i64, String, i64, String)> = self.one(sql).await?;
        let Some((read_only, version, id, encoding)) = row else {
            return Err(self.unfit("it tells nothing of itself", "is it MariaDB or MySQL?"));
        };
        let why = (encoding != "utf8mb4").then(|| {
            format!(
                "the database's encoding is {encoding}; write: ALTER DATABASE {} CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
                self.database
            )
        });
        let place = match (&why, read_only) {
            (Some(_), _) => Place::Unfit,
            (None, 0) => Place::Primary,
            (None, _) => Place::Standby,
        };
        let holds = if self.tables().await?.len() == 2 { self.read_tail().await? } else { None };
        Ok(Host {
            host: self.place.clone(),
            place,
            why,
            // No history here tells of branches: what it holds is compared all the same.
            lineage: None,
            lag_bytes: None,
            replication: vec![format!("{version}, server id {id}")],
            holds,
            fenced: false,
            leads: None,
        })
    }

    async fn prepare(&mut self) -> Result<Tail, DatabaseError> {
        if let Some((read_only,)) = self.one::<(i64,)>("SELECT CAST(@@global.read_only AS SIGNED)").await?
            && read_only != 0
        {
            return Err(DatabaseError::NoPrimary(format!("{} is read-only", self.place)));
        }
        let mut tables = self.tables().await?;
        // Each CREATE commits by itself: one that was broken off between them is gone on with.
        if !tables.iter().any(|(table, _)| table == "vault_ledger") {
            for sql in TABLES {
                let made = self.connection.query_drop(sql).await;
                made.map_err(|error| self.told(&error))?;
            }
            let sql = "INSERT IGNORE INTO vault_ledger VALUES (1, ?, 0, ?)";
            let made = self.connection.exec_drop(sql, (VERSION, &Tail::default().hash.0[..])).await;
            made.map_err(|error| self.told(&error))?;
            tables = self.tables().await?;
        }
        let again = "restore the database, or give the vault an empty one";
        if tables.len() != 2 {
            return Err(self.unfit("table vault_entry is missing beside vault_ledger", again));
        }
        if let Some((table, collation)) =
            tables.iter().find(|(_, collation)| !collation.as_deref().unwrap_or("").starts_with("utf8mb4"))
        {
            let collation = collation.clone().unwrap_or_default();
            return Err(self.unfit(
                format!("table {table} has the collation {collation}"),
                format!("write: ALTER TABLE {table} CONVERT TO CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"),
            ));
        }
        let version: Option<(i32,)> = self.one("SELECT version FROM vault_ledger").await?;
        if version != Some((VERSION,)) {
            let found = version.map_or_else(|| "none".to_owned(), |(version,)| version.to_string());
            return Err(self.unfit(
                format!("its layout is version {found}, this program writes version {VERSION}"),
                "run the program that made it, or give this one an empty database",
            ));
        }
        // Changes nothing, and is refused without the rights.
        for sql in [
            "UPDATE vault_ledger SET version = version WHERE one = 0",
            "INSERT INTO vault_entry SELECT * FROM vault_entry WHERE idx < 0",
        ] {
            let may = self.connection.query_drop(sql).await;
            may.map_err(|error| self.told(&error))?;
        }
        let tail = self.read_tail().await?.ok_or_else(|| self.unfit("vault_ledger holds no hash", again))?;
        let last: Option<(Option<i64>,)> = self.one("SELECT MAX(idx) FROM vault_entry").await?;
        let last = last.and_then(|(last,)| last).unwrap_or(0);
        if u64::try_from(last).ok() != Some(tail.index) {
            return Err(DatabaseError::Damaged { place: self.place.clone(), index: tail.index });
        }
        Ok(tail)
    }

    async fn tail(&mut self) -> Result<Tail, DatabaseError> {
        let tail = self.read_tail().await?;
        tail.ok_or_else(|| self.unfit("vault_ledger holds no hash", "restore the database"))
    }

    async fn append(&mut self, after: Tail, entries: &[Entry]) -> Result<(), DatabaseError> {
        let Some(end) = entries.last().map(Entry::tail) else { return Ok(()) };
        let rows: Option<Vec<Row<'_>>> = entries.iter().map(Row::of).collect();
        let Some(rows) = rows else {
            return Err(self.unfit("a number is beyond 2^63-1", "restore this vault's journal"));
        };
        match self.write(after, end, rows.into_iter().flat_map(values).collect()).await {
            Ok(true) => Ok(()),
            Ok(false) => {
                let found = Ledger::tail(self).await?.index;
                Err(DatabaseError::Moved { place: self.place.clone(), found })
            }
            Err(error) => Err(self.told(&error)),
        }
    }

    async fn entries(&mut self, after: u64) -> Result<Vec<Entry>, DatabaseError> {
        let sql = format!("SELECT {COLUMNS} FROM vault_entry WHERE idx > ? ORDER BY idx LIMIT {BATCH}");
        let after = i64::try_from(after).unwrap_or(i64::MAX);
        let rows: Result<Vec<mysql_async::Row>, Error> = self.connection.exec(sql, (after,)).await;
        let rows = rows.map_err(|error| self.told(&error))?;
        rows.into_iter()
            .map(|row| {
                let index = row.get_opt::<u64, _>(0).and_then(Result::ok).unwrap_or(0);
                read(row)
                    .and_then(Row::entry)
                    .ok_or_else(|| DatabaseError::Damaged { place: self.place.clone(), index })
            })
            .collect()
    }
}

fn values(row: Row<'_>) -> [Value; WIDTH] {
    let text = |text: Cow<'_, str>| Value::Bytes(text.into_owned().into_bytes());
    let bytes = |bytes: Cow<'_, [u8]>| Value::Bytes(bytes.into_owned());
    [
        Value::Int(row.index),
        Value::Int(row.epoch),
        bytes(row.life),
        Value::Int(row.carried),
        text(row.owner),
        text(row.series),
        Value::Int(row.number),
        text(row.key),
        text(row.act),
        bytes(row.body),
        Value::Int(row.at),
        bytes(row.previous),
        bytes(row.hash),
    ]
}

fn read(mut row: mysql_async::Row) -> Option<Row<'static>> {
    fn cell<T: mysql_async::prelude::FromValue>(row: &mut mysql_async::Row, column: usize) -> Option<T> {
        row.take_opt(column)?.ok()
    }
    Some(Row {
        index: cell(&mut row, 0)?,
        epoch: cell(&mut row, 1)?,
        life: Cow::Owned(cell(&mut row, 2)?),
        carried: cell(&mut row, 3)?,
        owner: Cow::Owned(cell(&mut row, 4)?),
        series: Cow::Owned(cell(&mut row, 5)?),
        number: cell(&mut row, 6)?,
        key: Cow::Owned(cell(&mut row, 7)?),
        act: Cow::Owned(cell(&mut row, 8)?),
        body: Cow::Owned(cell(&mut row, 9)?),
        at: cell(&mut row, 10)?,
        previous: Cow::Owned(cell(&mut row, 11)?),
        hash: Cow::Owned(cell(&mut row, 12)?),
    })
}

fn told(place: &str, settings: &Settings, error: &Error) -> DatabaseError {
    told_by(place, &settings.user, &settings.database, error)
}

/// What the server says, and who acts.
fn told_by(place: &str, user: &str, database: &str, error: &Error) -> DatabaseError {
    let place = place.to_owned();
    let Error::Server(server) = error else {
        return DatabaseError::Away { place, why: error.to_string() };
    };
    let next = match server.code {
        // Denied: the account, the database, a table.
        1045 | 1698 => format!("look at sequence.database.password_file and at the account {user}"),
        1044 | 1142 | 1143 | 1227 => {
            format!("write: GRANT SELECT, INSERT, UPDATE, CREATE ON {database}.* TO {user}")
        }
        1049 => format!("write: CREATE DATABASE {database} CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"),
        1054 | 1146 => "another program made the table; give the vault a database of its own".to_owned(),
        _ => return DatabaseError::Away { place, why: format!("{} ({})", server.message, server.code) },
    };
    DatabaseError::Unfit { place, what: server.message.clone(), next }
}
