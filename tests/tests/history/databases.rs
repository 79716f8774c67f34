//! The database servers that hold the ledger's copy, each in a namespace of its own: which ones a
//! seed gets, how they are set up, and what can befall their machines and their replication. Knows
//! no vault, and not what is right.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use harness::database_server::{DatabaseServer, Kind, Seat};
use harness::wait;
use vault::sequence::database::{self, Settings};

use crate::network::{Network, Place};

/// How long replication may take to get going, on a busy machine.
const FED: Duration = Duration::from_secs(30);
/// Everything of etcd's that is ours lies under this.
const PREFIX: &str = r#"{"key":"dmF1bHQv","range_end":"dmF1bHQw"}"#;

/// Where the ledger is kept beside the journals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ledger {
    /// Nowhere else.
    Journals,
    /// A primary whose standby follows when it can.
    Postgres,
    /// A primary that waits for its standby at each commit.
    PostgresSync,
    /// A primary and a replica.
    Mariadb,
    /// Three members that hold a copy.
    Etcd,
    /// Three members that hold the ledger itself.
    EtcdTruth,
}

impl Ledger {
    const ALL: [(Self, &'static str); 6] = [
        (Self::Journals, "journals"),
        (Self::Postgres, "postgres"),
        (Self::PostgresSync, "postgres-sync"),
        (Self::Mariadb, "mariadb"),
        (Self::EtcdTruth, "etcd-truth"),
        (Self::Etcd, "etcd"),
    ];

    /// The one that `HISTORY_LEDGER` names, or the seed's: five neighbours get all, but of the two ways
    /// of etcd one.
    ///
    /// # Errors
    /// There is none of that name.
    pub(crate) fn of(seed: u64) -> anyhow::Result<Self> {
        let Ok(wanted) = std::env::var("HISTORY_LEDGER") else {
            let place = if seed % 10 == 9 { 5 } else { seed % 5 };
            return Ok(Self::ALL[usize::try_from(place).unwrap_or(0)].0);
        };
        let found = Self::ALL.iter().find(|(_, name)| *name == wanted).map(|(ledger, _)| *ledger);
        let names = Self::ALL.map(|(_, name)| name).join(", ");
        found.with_context(|| format!("HISTORY_LEDGER: {wanted} is none of {names}"))
    }

    pub(crate) const fn servers(self) -> usize {
        match self {
            Self::Journals => 0,
            Self::Etcd | Self::EtcdTruth => 3,
            _ => 2,
        }
    }

    /// Is it the ledger itself, and no copy?
    pub(crate) const fn is_truth(self) -> bool {
        matches!(self, Self::EtcdTruth)
    }

    /// Which program, and where it listens.
    const fn program(self) -> (Kind, u16) {
        match self {
            Self::Mariadb => (Kind::Mariadb, 3306),
            Self::Etcd | Self::EtcdTruth => (Kind::Etcd, 2379),
            _ => (Kind::Postgres, 5432),
        }
    }

    /// Arguments for servers whose programs die here, never their machines: what the system was
    /// given is there after any kill.
    fn arguments(self) -> Vec<String> {
        let arguments: &[&str] = match self {
            Self::Mariadb => {
                &["--innodb-flush-log-at-trx-commit=2", "--sync-binlog=0", "--innodb-buffer-pool-size=16M"]
            }
            Self::Etcd | Self::EtcdTruth => &["--heartbeat-interval=200", "--election-timeout=2000"],
            Self::Journals => &[],
            Self::Postgres | Self::PostgresSync => &[
                "-c",
                "fsync=off",
                "-c",
                "shared_buffers=16MB",
                "-c",
                "max_connections=30",
                "-c",
                "wal_receiver_timeout=5s",
                "-c",
                "wal_retrieve_retry_interval=500ms",
            ],
        };
        arguments.iter().map(|word| (*word).to_owned()).collect()
    }
}

/// All servers.
pub(crate) struct Databases {
    pub(crate) ledger: Ledger,
    pub(crate) servers: Vec<DatabaseServer>,
    /// Which of two feeds the other.
    pub(crate) primary: usize,
    authorities: PathBuf,
}

impl Databases {
    /// Sets them up below `folder` and starts them.
    ///
    /// # Errors
    /// What a program said.
    pub(crate) fn start(ledger: Ledger, folder: &Path, network: &Network) -> anyhow::Result<Self> {
        let (kind, port) = ledger.program();
        let seats = (0..ledger.servers()).map(|server| {
            let place = Place::Database(server);
            Seat {
                name: format!("db{server}"),
                folder: folder.to_owned(),
                address: (place.address(), port).into(),
                wrapper: network.wrapper(place),
                arguments: ledger.arguments(),
            }
        });
        let seats: Vec<Seat> = seats.collect();
        let servers = match (kind, seats.as_slice()) {
            (Kind::Etcd, _) => DatabaseServer::etcd(seats)?,
            (_, [first, second]) => {
                let first = DatabaseServer::start_at(kind, first.clone())?;
                let second = first.standby_at(second.clone())?;
                vec![first, second]
            }
            _ => Vec::new(),
        };
        // Each has an authority of its own: all of them in one file.
        let authorities = folder.join("authorities.crt");
        let all = servers.iter().map(|server| std::fs::read_to_string(&server.authority));
        std::fs::write(&authorities, all.collect::<Result<String, _>>()?)?;
        let databases = Self { ledger, servers, primary: 0, authorities };
        databases.synchronous()?;
        Ok(databases)
    }

    /// How a vault finds them.
    pub(crate) fn config(&self) -> String {
        let Some(first) = self.servers.first() else { return String::new() };
        let hosts: Vec<_> =
            (0..self.servers.len()).map(|server| format!("\"{}\"", self.host(server))).collect();
        let (kind, password) = match self.ledger {
            Ledger::Mariadb => ("mariadb", true),
            Ledger::Etcd | Ledger::EtcdTruth => ("etcd", false),
            _ => ("postgres", true),
        };
        let role = if self.ledger.is_truth() { "truth" } else { "copy" };
        let password = if password {
            format!("password_file = \"{}\"\n", first.password_file.display())
        } else {
            String::new()
        };
        format!(
            "[sequence.database]\nkind = \"{kind}\"\nrole = \"{role}\"\nhosts = [{}]\n{password}authority_file = \"{}\"\n",
            hosts.join(", "),
            self.authorities.display()
        )
    }

    /// How the copies are read at the end.
    pub(crate) fn settings(&self) -> Option<Settings> {
        let first = self.servers.first()?;
        let kind = match self.ledger {
            Ledger::Mariadb => database::Kind::Mariadb,
            Ledger::Etcd | Ledger::EtcdTruth => database::Kind::Etcd,
            _ => database::Kind::Postgres,
        };
        let host = |server: &DatabaseServer| (server.address.ip().to_string(), server.address.port());
        Some(Settings {
            role: database::Role::Copy,
            kind,
            hosts: self.servers.iter().map(host).collect(),
            database: "vault".to_owned(),
            user: "vault".to_owned(),
            password_file: (kind != database::Kind::Etcd).then(|| first.password_file.clone()),
            authority_file: Some(self.authorities.clone()),
            wait: Duration::from_secs(1),
        })
    }

    /// As the vaults name it.
    pub(crate) fn host(&self, server: usize) -> String {
        self.servers.get(server).map(|server| server.address.to_string()).unwrap_or_default()
    }

    /// The one of two that is fed.
    pub(crate) const fn standby(&self) -> usize {
        1 - self.primary
    }

    /// Entries that a server holds, in its own words; of PostgreSQL and MariaDB.
    ///
    /// # Errors
    /// It does not answer.
    pub(crate) fn held(&self, server: usize) -> anyhow::Result<u64> {
        Ok(self.servers[server].sql("vault", "SELECT idx FROM vault_ledger")?.parse()?)
    }

    /// The tables are gone.
    ///
    /// # Errors
    /// What the server says.
    pub(crate) fn wipe(&self) -> anyhow::Result<()> {
        let primary = &self.servers[self.primary];
        match self.ledger {
            Ledger::Etcd | Ledger::EtcdTruth => primary.call("/v3/kv/deleterange", PREFIX).map(drop),
            _ => primary.sql("vault", "DROP TABLE vault_entry, vault_ledger").map(drop),
        }
    }

    /// The standby hears its primary no longer, so that it falls behind.
    ///
    /// # Errors
    /// There is no receiver, or `nft` refuses.
    pub(crate) fn starve_standby(&self, network: &Network) -> anyhow::Result<()> {
        match self.ledger {
            Ledger::Postgres | Ledger::PostgresSync => {
                let standby = &self.servers[self.standby()];
                wait::until("the standby has a receiver", FED, || {
                    anyhow::ensure!(standby.freeze_children("walreceiver")? > 0, "none");
                    Ok(())
                })
            }
            _ => network.cut(crate::network::Cut::Feed(self.standby())),
        }
    }

    /// SIGKILL of the primary and all its children, and of a receiver that stands still: it must not
    /// drain what the dead have sent.
    ///
    /// # Errors
    /// It does not run.
    pub(crate) fn kill_primary(&mut self) -> anyhow::Result<()> {
        let (primary, standby) = (self.primary, self.standby());
        self.servers[primary].kill()?;
        if matches!(self.ledger, Ledger::Postgres | Ledger::PostgresSync) {
            self.servers[standby].kill_children("walreceiver")?;
            // Its server begins anew when a child dies so.
            self.servers[standby].wait_ready()?;
        }
        Ok(())
    }

    /// The other one, which does not run any more, follows `primary` from now on.
    ///
    /// # Errors
    /// What a program says.
    pub(crate) fn follow(&mut self, primary: usize) -> anyhow::Result<()> {
        self.primary = primary;
        let [first, second] = self.servers.as_mut_slice() else { return Ok(()) };
        let (leader, other) = if primary == 0 { (first, second) } else { (second, first) };
        if other.is_running() {
            other.kill()?;
        }
        other.follow(leader)?;
        self.synchronous()
    }

    /// Lets the primary wait for its standby, where it is to.
    fn synchronous(&self) -> anyhow::Result<()> {
        if self.ledger != Ledger::PostgresSync {
            return Ok(());
        }
        let primary = &self.servers[self.primary];
        primary.sql("postgres", "ALTER SYSTEM SET synchronous_standby_names = '*'")?;
        primary.sql("postgres", "SELECT pg_reload_conf()")?;
        wait::until("the standby is synchronous", FED, || {
            let state = primary.sql("postgres", "SELECT sync_state FROM pg_stat_replication")?;
            anyhow::ensure!(state == "sync", "{state:?}");
            Ok(())
        })
    }
}

impl Drop for Databases {
    fn drop(&mut self) {
        for server in &mut self.servers {
            if server.is_running() {
                // With all children, also those that stand still.
                let _ = server.kill();
            }
        }
    }
}
