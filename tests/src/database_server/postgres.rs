//! PostgreSQL: how a primary and its standbys are made and brought back to one history.

use std::net::SocketAddr;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::{DatabaseServer, Kind, PASSWORD, PATIENCE, Place, done, wrapped};

/// PostgreSQL refuses to run as root.
pub(super) const AS_POSTGRES: [&str; 4] =
    ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"];
/// Needed to be wound back after a promotion of the other.
const SETTINGS: &str = "wal_log_hints = on\nwal_keep_size = 128MB\n";
/// The folder of its Unix sockets, beside that of its data.
const SOCKETS: &str = "sockets";
/// Whoever shares a network with it may come with the password.
const NEIGHBOURS: &str = "host all all samenet scram-sha-256\nhost replication all samenet scram-sha-256\n";

impl Place {
    pub(super) fn postgres(self) -> anyhow::Result<DatabaseServer> {
        let owner = postgres_ids()?;
        chown(&self.data, Some(owner.0), Some(owner.1))?;
        let mut make = as_postgres(&binary("initdb")?);
        make.args(["-E", "UTF8", "--locale=C.UTF-8", "-A", "scram-sha-256", "-U", "postgres"])
            .args(["--no-sync", "--pwfile"])
            .arg(&self.password_file)
            .arg("-D")
            .arg(&self.data);
        done(&mut make)?;
        for (file, more) in [("pg_hba.conf", NEIGHBOURS), ("postgresql.conf", SETTINGS)] {
            let file = self.data.join(file);
            let text = std::fs::read_to_string(&file)?;
            std::fs::write(&file, text + more)?;
        }
        let server = self.start_postgres()?;
        server.sql("postgres", &format!("CREATE ROLE vault LOGIN PASSWORD '{PASSWORD}'"))?;
        server.sql("postgres", "CREATE DATABASE vault OWNER vault")?;
        let rights = "GRANT EXECUTE ON FUNCTION pg_read_file(text) TO vault;
            GRANT EXECUTE ON FUNCTION pg_promote TO vault; GRANT pg_read_all_stats TO vault";
        server.sql("vault", rights)?;
        Ok(server)
    }

    pub(super) fn postgres_standby(self, primary: SocketAddr) -> anyhow::Result<DatabaseServer> {
        let owner = postgres_ids()?;
        chown(&self.data, Some(owner.0), Some(owner.1))?;
        let mut copy = wrapped(&self.seat.wrapper, Path::new(AS_POSTGRES[0]));
        copy.args(&AS_POSTGRES[1..])
            .arg(binary("pg_basebackup")?)
            .args(["-R", "-X", "stream", "-c", "fast", "--no-sync", "-U", "postgres", "-h"])
            .arg(primary.ip().to_string())
            .arg("-p")
            .arg(primary.port().to_string())
            .arg("-D")
            .arg(&self.data)
            .current_dir("/")
            .env("PGPASSWORD", PASSWORD);
        done(&mut copy)?;
        self.start_postgres()
    }

    fn start_postgres(self) -> anyhow::Result<DatabaseServer> {
        let owner = postgres_ids()?;
        for file in [&self.data, &self.key] {
            chown(file, Some(owner.0), Some(owner.1))?;
        }
        // Not among the data, which are copied.
        let sockets = self.own.join(SOCKETS);
        std::fs::create_dir_all(&sockets)?;
        chown(&sockets, Some(owner.0), Some(owner.1))?;
        let data = self.data.display().to_string();
        let mut arguments: Vec<String> = [
            "-D",
            &data,
            "-h",
            &self.ip().to_string(),
            "-p",
            &self.seat.address.port().to_string(),
            "-k",
            &sockets.display().to_string(),
        ]
        .map(str::to_owned)
        .into();
        let settings = [
            "ssl=on".to_owned(),
            format!("ssl_cert_file={}", self.certificate.display()),
            format!("ssl_key_file={}", self.key.display()),
        ];
        arguments.extend(settings.into_iter().flat_map(|setting| ["-c".to_owned(), setting]));
        let mut server = self.launch(Kind::Postgres, binary("postgres")?, arguments)?;
        server.wait_ready()?;
        Ok(server)
    }
}

/// `psql`, on the server's own host.
pub(super) fn client(server: &DatabaseServer, database: &str) -> anyhow::Result<Command> {
    let mut client = Command::new("timeout");
    client
        .arg(PATIENCE)
        .arg(binary("psql")?)
        .args(["-qtAX", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", database, "-p"])
        .arg(server.address.port().to_string())
        .arg("-h")
        .arg(server.data.with_file_name(SOCKETS))
        .env("PGPASSWORD", PASSWORD);
    Ok(client)
}

/// Winds it back to where the primary's history left its own, and lets it follow from there.
pub(super) fn rewind(server: &mut DatabaseServer, primary: &DatabaseServer) -> anyhow::Result<()> {
    // Until then the primary's files tell its old timeline.
    primary.sql("postgres", "CHECKPOINT")?;
    let source = format!(
        "host={} port={} user=postgres password={PASSWORD} dbname=postgres",
        primary.address.ip(),
        primary.address.port()
    );
    let mut rewind = wrapped(&server.wrapper, Path::new(AS_POSTGRES[0]));
    rewind
        .args(&AS_POSTGRES[1..])
        .arg(binary("pg_rewind")?)
        .args(["--no-sync", "--write-recovery-conf", "--source-server", &source, "--target-pgdata"])
        .arg(&server.data)
        .current_dir("/");
    done(&mut rewind)?;
    server.restart()
}

fn as_postgres(binary: &Path) -> Command {
    let [wrapper, arguments @ ..] = AS_POSTGRES;
    let mut command = Command::new(wrapper);
    command.args(arguments).arg(binary).current_dir("/");
    command
}

/// Debian keeps each version's programs apart; the newest is taken.
fn binary(program: &str) -> anyhow::Result<PathBuf> {
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .context("install the package postgresql")?
        .flatten()
        .map(|version| version.path().join("bin").join(program))
        .filter(|program| program.is_file())
        .collect();
    versions.sort();
    versions.pop().with_context(|| format!("no {program}: install the package postgresql"))
}

fn postgres_ids() -> anyhow::Result<(u32, u32)> {
    let accounts = std::fs::read_to_string("/etc/passwd")?;
    let line = accounts.lines().find_map(|line| line.strip_prefix("postgres:"));
    let mut words = line.context("no account postgres: install the package postgresql")?.split(':').skip(1);
    let mut id = || anyhow::Ok(words.next().context("no id")?.parse()?);
    Ok((id()?, id()?))
}
