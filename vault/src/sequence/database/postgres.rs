//! The ledger's copy in PostgreSQL: a row per entry, and one row that tells where the copy ends.
//! An append is one statement: it moves that row from where it must be, and adds the entries if
//! it did. Never a database sequence: a promoted standby gives its values again.

use std::borrow::Cow;
use std::error::Error as _;

use async_trait::async_trait;
use tokio::task::JoinHandle;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, Error, NoTls, Statement};

use super::super::entry::{BATCH, Entry, Tail};
use super::lineage::{self, Lineage};
use super::row::{COLUMNS, Row, tail};
use super::tls::{Tls, dial, password, place};
use super::{DatabaseError, Host, Ledger, Place, Settings, VERSION};

/// Two vaults that connect at once make the tables once. Any number that nobody else uses.
const LOCK: i64 = 0x7661_756c_7400;

const TABLES: &str = "
    CREATE TABLE vault_ledger (
        one boolean PRIMARY KEY DEFAULT true CHECK (one),
        version integer NOT NULL,
        idx bigint NOT NULL,
        hash bytea NOT NULL
    );
    CREATE TABLE vault_entry (
        idx bigint PRIMARY KEY,
        epoch bigint NOT NULL,
        life bytea NOT NULL,
        carried bigint NOT NULL,
        owner text NOT NULL,
        series text NOT NULL,
        number bigint NOT NULL,
        entry_key text NOT NULL,
        act text NOT NULL,
        body bytea NOT NULL,
        at bigint NOT NULL,
        previous bytea NOT NULL,
        hash bytea NOT NULL
    );
    CREATE INDEX vault_entry_number ON vault_entry (owner, series, number);
";

/// A lower bound of where this commit stands in the log comes back with it.
const APPEND: &str = "
    WITH moved AS (
        UPDATE vault_ledger SET idx = $3, hash = $4 WHERE idx = $1 AND hash = $2 RETURNING 1
    ), added AS (
        INSERT INTO vault_entry
        SELECT entry.* FROM moved, unnest(
            $5::bigint[], $6::bigint[], $7::bytea[], $8::bigint[], $9::text[], $10::text[], $11::bigint[],
            $12::text[], $13::text[], $14::bytea[], $15::bigint[], $16::bytea[], $17::bytea[]
        ) AS entry
        RETURNING 1
    )
    SELECT (SELECT count(*) FROM added), pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint";

const LOOK: &str = "
    SELECT pg_is_in_recovery(), current_setting('transaction_read_only'), system_identifier::text,
        timeline_id, current_setting('server_encoding')
    FROM pg_control_system(), pg_control_checkpoint()";

const LOOK_AT_PRIMARY: &str = "
    SELECT ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::integer,
        pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint,
        (SELECT max(pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn))::bigint FROM pg_stat_replication)";

/// The last checkpoint may lie on an older timeline than what came after it, above all in a server
/// that was wound back a moment ago. Without rights on `pg_stat_wal_receiver` its columns are empty.
const LOOK_AT_STANDBY: &str = "
    SELECT pg_wal_lsn_diff(greatest(pg_last_wal_replay_lsn(), pg_last_wal_receive_lsn()), '0/0')::bigint,
        pg_wal_lsn_diff(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())::bigint,
        (SELECT greatest(min_recovery_end_timeline, (SELECT received_tli FROM pg_stat_wal_receiver))
            FROM pg_control_recovery())";

/// Rights on `pg_stat_replication` may be missing; then its columns are empty.
const FED: &str = "
    SELECT concat_ws(', ', coalesce(nullif(application_name, ''), 'a standby'), client_addr::text, state,
        sync_state) FROM pg_stat_replication
    UNION ALL
    SELECT concat_ws(', ', 'fed by ' || sender_host || ':' || sender_port, status) FROM pg_stat_wal_receiver";

/// A connection to one server.
pub struct Postgres {
    place: String,
    user: String,
    client: Client,
    connection: JoinHandle<()>,
    append: Option<Statement>,
    lineage: Option<Lineage>,
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // A server that does not answer would keep it for ever.
        self.connection.abort();
    }
}

impl Postgres {
    /// Connects to one server.
    ///
    /// # Errors
    /// It is away, or refuses the account.
    pub async fn connect(settings: &Settings, host: &(String, u16)) -> Result<Self, DatabaseError> {
        let place = place(host);
        let mut config = Config::new();
        config.user(&settings.user).dbname(&settings.database).application_name("vault");
        if let Some(password) = password(settings, &place)? {
            config.password(password);
        }
        let told = |error: Error| told(&place, &settings.user, &error);
        let stream = dial(host).await?;
        let (client, connection) = match &settings.authority_file {
            Some(authority) => {
                config.ssl_mode(SslMode::Require);
                let (client, connection) =
                    config.connect_raw(stream, Tls::new(authority, host)?).await.map_err(told)?;
                (client, tokio::spawn(async move { drop(connection.await) }))
            }
            None => {
                config.ssl_mode(SslMode::Disable);
                let (client, connection) = config.connect_raw(stream, NoTls).await.map_err(told)?;
                (client, tokio::spawn(async move { drop(connection.await) }))
            }
        };
        Ok(Self { user: settings.user.clone(), place, client, connection, append: None, lineage: None })
    }

    fn told(&self, error: &Error) -> DatabaseError {
        told(&self.place, &self.user, error)
    }

    fn unfit(&self, what: impl Into<String>, next: impl Into<String>) -> DatabaseError {
        DatabaseError::Unfit { place: self.place.clone(), what: what.into(), next: next.into() }
    }

    async fn row(&self, sql: &str) -> Result<tokio_postgres::Row, DatabaseError> {
        self.client.query_one(sql, &[]).await.map_err(|error| self.told(&error))
    }

    /// Is the one table there, and the other?
    async fn tables(&self) -> Result<(bool, bool), DatabaseError> {
        let sql = "SELECT to_regclass('vault_ledger') IS NOT NULL, to_regclass('vault_entry') IS NOT NULL";
        let row = self.row(sql).await?;
        Ok((cell(&row, 0)?, cell(&row, 1)?))
    }

    async fn make_tables(&mut self) -> Result<(), DatabaseError> {
        let make = async {
            let transaction = self.client.transaction().await?;
            transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await?;
            let there = transaction.query_one("SELECT to_regclass('vault_ledger') IS NOT NULL", &[]).await?;
            if !there.try_get::<_, bool>(0)? {
                transaction.batch_execute(TABLES).await?;
                let sql = "INSERT INTO vault_ledger (version, idx, hash) VALUES ($1, 0, $2)";
                transaction.execute(sql, &[&VERSION, &Tail::default().hash.0.as_slice()]).await?;
            }
            transaction.commit().await
        };
        let made = make.await;
        made.map_err(|error| self.told(&error))
    }

    /// May the account do what it must?
    async fn check_rights(&self) -> Result<(), DatabaseError> {
        let row = self
            .row(
                "SELECT has_table_privilege('vault_ledger', 'SELECT') AND has_table_privilege('vault_ledger', 'UPDATE')
                 AND has_table_privilege('vault_entry', 'SELECT') AND has_table_privilege('vault_entry', 'INSERT')",
            )
            .await?;
        if cell(&row, 0)? {
            return Ok(());
        }
        Err(self.unfit(
            format!("account {} may not write the ledger's tables", self.user),
            format!(
                "write: GRANT SELECT, UPDATE ON vault_ledger TO {0}; GRANT SELECT, INSERT ON vault_entry TO {0}",
                self.user
            ),
        ))
    }

    async fn history(&self, timeline: u32) -> Option<Vec<(u32, u64)>> {
        if timeline == 1 {
            return Some(Vec::new());
        }
        let sql = "SELECT pg_read_file('pg_wal/' || lpad(to_hex($1::integer), 8, '0') || '.history')";
        let timeline = i32::try_from(timeline).ok()?;
        // Without the right to read it nothing is told.
        let row = self.client.query_one(sql, &[&timeline]).await.ok()?;
        lineage::history(&row.try_get::<_, String>(0).ok()?)
    }

    async fn held(&self) -> Result<Option<Tail>, DatabaseError> {
        match self.tables().await? {
            (true, true) => self.read_tail().await.map(Some),
            _ => Ok(None),
        }
    }

    async fn read_tail(&self) -> Result<Tail, DatabaseError> {
        let row = self.row("SELECT idx, hash FROM vault_ledger").await?;
        let hash: &[u8] = cell(&row, 1)?;
        tail(cell(&row, 0)?, hash)
            .ok_or_else(|| self.unfit("vault_ledger holds no hash", "restore the database"))
    }
}

#[async_trait]
impl Ledger for Postgres {
    fn place(&self) -> &str {
        &self.place
    }

    fn lineage(&self) -> Option<&Lineage> {
        self.lineage.as_ref()
    }

    async fn look(&mut self) -> Result<Host, DatabaseError> {
        let row = self.row(LOOK).await?;
        let (standby, read_only): (bool, String) = (cell(&row, 0)?, cell(&row, 1)?);
        let (system, checkpoint): (String, i32) = (cell(&row, 2)?, cell(&row, 3)?);
        let encoding: String = cell(&row, 4)?;
        let (timeline, at, lag): (i32, Option<i64>, Option<i64>) = if standby {
            let row = self.row(LOOK_AT_STANDBY).await?;
            let replayed: Option<i32> = cell(&row, 2)?;
            (checkpoint.max(replayed.unwrap_or(0)), cell(&row, 0)?, cell(&row, 1)?)
        } else {
            let row = self.row(LOOK_AT_PRIMARY).await?;
            (cell(&row, 0)?, cell(&row, 1)?, cell(&row, 2)?)
        };
        let fed = self.client.query(FED, &[]).await.map_err(|error| self.told(&error))?;
        let timeline = u32::try_from(timeline).unwrap_or(0);
        let forks = self.history(timeline).await;
        let bytes = |count: Option<i64>| count.and_then(|count| u64::try_from(count).ok());
        let lineage = Lineage { system, timeline, forks, at: bytes(at).unwrap_or(0) };
        self.lineage = (!standby).then(|| lineage.clone());
        let why = match (encoding.as_str(), standby) {
            ("UTF8", true) => None,
            ("UTF8", false) if read_only == "off" => None,
            ("UTF8", false) => Some(
                "it is read-only; write: ALTER DATABASE … SET default_transaction_read_only = off".to_owned(),
            ),
            (other, _) => Some(format!(
                "the database's encoding is {other}; make another: CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
            )),
        };
        let place = match (&why, standby) {
            (Some(_), _) => Place::Unfit,
            (None, true) => Place::Standby,
            (None, false) => Place::Primary,
        };
        Ok(Host {
            host: self.place.clone(),
            place,
            why,
            lineage: Some(lineage),
            lag_bytes: bytes(lag),
            replication: fed.iter().filter_map(|row| row.try_get(0).ok()).collect(),
            holds: self.held().await?,
            fenced: false,
            leads: None,
        })
    }

    async fn prepare(&mut self) -> Result<Tail, DatabaseError> {
        // A commit that the server forgets in a power failure would be replayed, yet trusted until then.
        let durable = "SELECT set_config('synchronous_commit', 'on', false)
             WHERE current_setting('synchronous_commit') IN ('off', 'local')";
        self.client.execute(durable, &[]).await.map_err(|error| self.told(&error))?;
        match self.tables().await? {
            (true, true) => {}
            (false, false) => self.make_tables().await?,
            (one, _) => {
                let missing = if one { "vault_entry" } else { "vault_ledger" };
                return Err(self.unfit(
                    format!("table {missing} is missing beside the other"),
                    "restore the database, or give the vault an empty one",
                ));
            }
        }
        let version = self.client.query_opt("SELECT version FROM vault_ledger", &[]).await;
        let version = version.map_err(|error| self.told(&error))?;
        let version: Option<i32> = version.map(|row| cell(&row, 0)).transpose()?;
        if version != Some(VERSION) {
            let found = version.map_or_else(|| "none".to_owned(), |version| version.to_string());
            return Err(self.unfit(
                format!("its layout is version {found}, this program writes version {VERSION}"),
                "run the program that made it, or give this one an empty database",
            ));
        }
        self.check_rights().await?;
        let append = self.client.prepare(APPEND).await.map_err(|error| self.told(&error))?;
        self.append = Some(append);
        let tail = self.read_tail().await?;
        let last = self.row("SELECT coalesce(max(idx), 0) FROM vault_entry").await?;
        let last: i64 = cell(&last, 0)?;
        if u64::try_from(last).ok() != Some(tail.index) {
            return Err(DatabaseError::Damaged { place: self.place.clone(), index: tail.index });
        }
        Ok(tail)
    }

    async fn tail(&mut self) -> Result<Tail, DatabaseError> {
        self.read_tail().await
    }

    async fn append(&mut self, after: Tail, entries: &[Entry]) -> Result<(), DatabaseError> {
        let Some(end) = entries.last().map(Entry::tail) else { return Ok(()) };
        let rows: Option<Vec<Row<'_>>> = entries.iter().map(Row::of).collect();
        let (Some(rows), Some(append)) = (rows, &self.append) else {
            return Err(self.unfit("a number is beyond 2^63-1", "restore this vault's journal"));
        };
        let signed = |index: u64| i64::try_from(index).unwrap_or(i64::MAX);
        let integers = |field: fn(&Row<'_>) -> i64| rows.iter().map(field).collect::<Vec<_>>();
        let (index, epoch) = (integers(|row| row.index), integers(|row| row.epoch));
        let (carried, number, at) =
            (integers(|row| row.carried), integers(|row| row.number), integers(|row| row.at));
        let owner: Vec<&str> = rows.iter().map(|row| &*row.owner).collect();
        let series: Vec<&str> = rows.iter().map(|row| &*row.series).collect();
        let key: Vec<&str> = rows.iter().map(|row| &*row.key).collect();
        let act: Vec<&str> = rows.iter().map(|row| &*row.act).collect();
        let life: Vec<&[u8]> = rows.iter().map(|row| &*row.life).collect();
        let body: Vec<&[u8]> = rows.iter().map(|row| &*row.body).collect();
        let previous: Vec<&[u8]> = rows.iter().map(|row| &*row.previous).collect();
        let hash: Vec<&[u8]> = rows.iter().map(|row| &*row.hash).collect();
        let done = self
            .client
            .query_one(
                append,
                &[
                    &signed(after.index),
                    &after.hash.0.as_slice(),
                    &signed(end.index),
                    &end.hash.0.as_slice(),
                    &index,
                    &epoch,
                    &life,
                    &carried,
                    &owner,
                    &series,
                    &number,
                    &key,
                    &act,
                    &body,
                    &at,
                    &previous,
                    &hash,
                ],
            )
            .await;
        let added = match done {
            Ok(row) => {
                let at: i64 = cell(&row, 1)?;
                if let (Some(lineage), Ok(at)) = (&mut self.lineage, u64::try_from(at)) {
                    lineage.at = at;
                }
                usize::try_from(cell::<i64>(&row, 0)?).unwrap_or(0)
            }
            // Another isolation level tells of another writer so.
            Err(error) if error.code() == Some(&SqlState::T_R_SERIALIZATION_FAILURE) => 0,
            Err(error) => return Err(self.told(&error)),
        };
        if added == entries.len() {
            return Ok(());
        }
        let found = self.read_tail().await?.index;
        Err(DatabaseError::Moved { place: self.place.clone(), found })
    }

    async fn entries(&mut self, after: u64) -> Result<Vec<Entry>, DatabaseError> {
        let sql = format!("SELECT {COLUMNS} FROM vault_entry WHERE idx > $1 ORDER BY idx LIMIT {BATCH}");
        let after = i64::try_from(after).unwrap_or(i64::MAX);
        let rows = self.client.query(&sql, &[&after]).await.map_err(|error| self.told(&error))?;
        rows.iter()
            .map(|row| {
                let index: i64 = cell(row, 0)?;
                let index = u64::try_from(index).unwrap_or(0);
                read(row)?.entry().ok_or_else(|| DatabaseError::Damaged { place: self.place.clone(), index })
            })
            .collect()
    }

    async fn promote(&mut self) -> Result<bool, DatabaseError> {
        let done: bool = cell(&self.row("SELECT pg_promote(true, 20)").await?, 0)?;
        if done {
            return Ok(true);
        }
        Err(DatabaseError::Away { place: self.place.clone(), why: "it was not promoted in 20 s".to_owned() })
    }
}

fn read(row: &tokio_postgres::Row) -> Result<Row<'static>, DatabaseError> {
    Ok(Row {
        index: cell(row, 0)?,
        epoch: cell(row, 1)?,
        life: Cow::Owned(cell(row, 2)?),
        carried: cell(row, 3)?,
        owner: Cow::Owned(cell(row, 4)?),
        series: Cow::Owned(cell(row, 5)?),
        number: cell(row, 6)?,
        key: Cow::Owned(cell(row, 7)?),
        act: Cow::Owned(cell(row, 8)?),
        body: Cow::Owned(cell(row, 9)?),
        at: cell(row, 10)?,
        previous: Cow::Owned(cell(row, 11)?),
        hash: Cow::Owned(cell(row, 12)?),
    })
}

/// A column of another type than ours says that the table is another program's.
fn cell<'r, T: tokio_postgres::types::FromSql<'r>>(
    row: &'r tokio_postgres::Row,
    column: usize,
) -> Result<T, DatabaseError> {
    row.try_get(column).map_err(|error| DatabaseError::Unfit {
        place: "vault_entry".to_owned(),
        what: error.to_string(),
        next: "another program made the table; give the vault a database of its own".to_owned(),
    })
}

/// What the server says, and who acts.
fn told(place: &str, user: &str, error: &Error) -> DatabaseError {
    let place = place.to_owned();
    let Some(server) = error.as_db_error() else {
        let cause = error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"));
        return DatabaseError::Away { place, why: cause };
    };
    let (what, code) = (server.message().to_owned(), server.code());
    let next = if *code == SqlState::INSUFFICIENT_PRIVILEGE {
        format!(
            "write: ALTER DATABASE … OWNER TO {user}, or GRANT CREATE ON SCHEMA public TO {user} \
             and, for take-over, GRANT EXECUTE ON FUNCTION pg_promote TO {user}"
        )
    } else if *code == SqlState::INVALID_PASSWORD || *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION {
        format!("look at sequence.database.password_file and at pg_hba.conf for {user}")
    } else if *code == SqlState::INVALID_CATALOG_NAME {
        format!("write: CREATE DATABASE … OWNER {user} ENCODING 'UTF8'")
    } else if *code == SqlState::UNDEFINED_TABLE || *code == SqlState::UNDEFINED_COLUMN {
        "another program made the table; give the vault a database of its own".to_owned()
    } else {
        return DatabaseError::Away { place, why: format!("{what} ({})", code.code()) };
    };
    DatabaseError::Unfit { place, what, next }
}
