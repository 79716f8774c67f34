//! Real database servers on loopback, each with its own data folder and TLS: PostgreSQL with
//! standbys, MariaDB, etcd. Knows how they are made, started and killed, not what is kept in them.

use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};

use crate::browser::Authority;
use crate::program::{Program, Recipe};
use crate::{ports, wait};

/// How long a server may take until it answers, on a busy machine.
const READY: Duration = Duration::from_secs(60);
/// The accounts' password: `postgres`, `vault` and MariaDB's `vault`.
pub const PASSWORD: &str = "not-in-the-log";

/// Which program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// PostgreSQL.
    Postgres,
    /// MariaDB.
    Mariadb,
    /// etcd, one member.
    Etcd,
}

/// One server that runs, or ran.
#[derive(Debug)]
pub struct DatabaseServer {
    /// Which program.
    pub kind: Kind,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its data.
    pub data: PathBuf,
    /// Who signed its certificate.
    pub authority: PathBuf,
    /// A file with [`PASSWORD`].
    pub password_file: PathBuf,
    program: Program,
}

impl DatabaseServer {
    /// Makes one with an empty database `vault` of account `vault`, and starts it.
    ///
    /// # Errors
    /// Whatever a program says.
    pub fn start(kind: Kind, folder: &Path, name: &str) -> anyhow::Result<Self> {
        let place = Place::new(folder, name)?;
        match kind {
            Kind::Postgres => place.postgres(),
            Kind::Mariadb => place.mariadb(),
            Kind::Etcd => place.etcd(),
        }
    }

    /// A standby of this PostgreSQL server.
    ///
    /// # Errors
    /// Whatever a program says.
    pub fn standby(&self, folder: &Path, name: &str) -> anyhow::Result<Self> {
        let place = Place::new(folder, name)?;
        let owner = postgres_ids()?;
        chown(&place.data, Some(owner.0), Some(owner.1))?;
        let mut copy = as_postgres(&postgres("pg_basebackup")?);
        copy.args(["-R", "-X", "stream", "-c", "fast", "-h", "127.0.0.1", "-U", "postgres", "-p"])
            .arg(self.address.port().to_string())
            .arg("-D")
            .arg(&place.data)
            .env("PGPASSWORD", PASSWORD);
        done(&mut copy)?;
        place.start_postgres()
    }

    /// Runs SQL as the superuser; what it prints, unaligned.
    ///
    /// # Errors
    /// What the server says.
    pub fn sql(&self, database: &str, text: &str) -> anyhow::Result<String> {
        let mut client = match self.kind {
            Kind::Postgres => {
                let mut client = Command::new(postgres("psql")?);
                client
                    .args([
                        "-qtAX",
                        "-v",
                        "ON_ERROR_STOP=1",
                        "-h",
                        "127.0.0.1",
                        "-U",
                        "postgres",
                        "-d",
                        database,
                        "-p",
                    ])
                    .arg(self.address.port().to_string())
                    .args(["-c", text])
                    .env("PGPASSWORD", PASSWORD);
                client
            }
            Kind::Mariadb => {
                let mut client = Command::new("mariadb");
                client.args(["-N", "-B", "-u", "root", "--socket"]).arg(self.data.join("socket"));
                client.args([database, "-e", text]);
                client
            }
            Kind::Etcd => anyhow::bail!("etcd speaks no SQL"),
        };
        done(&mut client)
    }

    /// SIGKILL for it and all its children: after the end of the first alone the others may go on.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        // It must not start new ones meanwhile.
        self.program.freeze()?;
        self.signal_children(Signal::KILL)?;
        self.program.kill()
    }

    /// Stops it and all its children; see [`Self::thaw`].
    ///
    /// # Errors
    /// It does not run.
    pub fn freeze(&self) -> anyhow::Result<()> {
        self.program.freeze()?;
        self.signal_children(Signal::STOP)
    }

    /// Lets them go on.
    ///
    /// # Errors
    /// It does not run.
    pub fn thaw(&self) -> anyhow::Result<()> {
        self.signal_children(Signal::CONT)?;
        self.program.thaw()
    }

    /// Starts it again where it was, and waits until it answers.
    ///
    /// # Errors
    /// It does not come back.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.program.restart()?;
        self.wait_ready()
    }

    fn signal_children(&self, signal: Signal) -> anyhow::Result<()> {
        let own = self.program.pid().context("it does not run")?;
        for child in children(own)? {
            let pid = Pid::from_raw(i32::try_from(child)?).context("a process id is positive")?;
            // It may have ended just now.
            let _ = kill_process(pid, signal);
        }
        Ok(())
    }

    fn wait_ready(&mut self) -> anyhow::Result<()> {
        let kind = self.kind;
        wait::until(&format!("{} answers", self.program.name()), READY, || {
            anyhow::ensure!(self.program.is_running(), "it has ended: {}", self.program.log_tail(20));
            match kind {
                Kind::Postgres => self.sql("postgres", "SELECT 1").map(drop),
                Kind::Mariadb => self.sql("mysql", "SELECT 1").map(drop),
                Kind::Etcd => {
                    let mut curl = Command::new("curl");
                    curl.args(["-sf", "-X", "POST", "-d", "{}", "--cacert"])
                        .arg(&self.authority)
                        .arg(format!("https://{}/v3/maintenance/status", self.address));
                    done(&mut curl).map(drop)
                }
            }
        })
    }
}

/// Where a server is about to be.
struct Place {
    name: String,
    folder: PathBuf,
    data: PathBuf,
    address: SocketAddr,
    authority: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
    password_file: PathBuf,
}

impl Place {
    fn new(folder: &Path, name: &str) -> anyhow::Result<Self> {
        // PostgreSQL runs as an account of its own, which must get there.
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o711))?;
        let folder = folder.join(name);
        let data = folder.join("data");
        std::fs::create_dir_all(&data)?;
        let authority = Authority::new(&folder, "authority")?;
        let pair = authority.issue(&folder, "server", &["127.0.0.1"])?;
        let password_file = folder.join("password");
        std::fs::write(&password_file, format!("{PASSWORD}\n"))?;
        for file in [&pair.key, &data] {
            let mode = if file == &data { 0o700 } else { 0o600 };
            std::fs::set_permissions(file, std::fs::Permissions::from_mode(mode))?;
        }
        Ok(Self {
            name: name.to_owned(),
            address: ports::free()?,
            authority: authority.certificate,
            certificate: pair.certificate,
            key: pair.key,
            password_file,
            data,
            folder,
        })
    }

    fn run(self, kind: Kind, program: Recipe) -> anyhow::Result<DatabaseServer> {
        let mut server = DatabaseServer {
            kind,
            address: self.address,
            data: self.data,
            authority: self.authority,
            password_file: self.password_file,
            program: Program::start(program)?,
        };
        server.wait_ready()?;
        Ok(server)
    }

    fn postgres(self) -> anyhow::Result<DatabaseServer> {
        let owner = postgres_ids()?;
        chown(&self.data, Some(owner.0), Some(owner.1))?;
        let mut make = as_postgres(&postgres("initdb")?);
        make.args(["-E", "UTF8", "--locale=C.UTF-8", "-A", "scram-sha-256", "-U", "postgres", "--pwfile"])
            .arg(&self.password_file)
            .arg("-D")
            .arg(&self.data);
        done(&mut make)?;
        let server = self.start_postgres()?;
        server.sql("postgres", &format!("CREATE ROLE vault LOGIN PASSWORD '{PASSWORD}'"))?;
        server.sql("postgres", "CREATE DATABASE vault OWNER vault")?;
        let rights = "GRANT EXECUTE ON FUNCTION pg_read_file(text) TO vault;
            GRANT EXECUTE ON FUNCTION pg_promote TO vault; GRANT pg_read_all_stats TO vault";
        server.sql("vault", rights)?;
        Ok(server)
    }

    fn start_postgres(self) -> anyhow::Result<DatabaseServer> {
        let owner = postgres_ids()?;
        for file in [&self.data, &self.key] {
            chown(file, Some(owner.0), Some(owner.1))?;
        }
        let setting = |name: &str, value: &Path| format!("{name}={}", value.display());
        let arguments = [
            "-D".to_owned(),
            self.data.display().to_string(),
            "-h".to_owned(),
            "127.0.0.1".to_owned(),
            "-p".to_owned(),
            self.address.port().to_string(),
            "-k".to_owned(),
            self.data.display().to_string(),
        ];
        let settings = [
            "ssl=on".to_owned(),
            setting("ssl_cert_file", &self.certificate),
            setting("ssl_key_file", &self.key),
            // Needed to be wound back after a promotion of the other.
            "wal_log_hints=on".to_owned(),
        ];
        let settings = settings.into_iter().flat_map(|setting| ["-c".to_owned(), setting]);
        let mut recipe = Recipe::new(
            &self.name,
            postgres("postgres")?,
            arguments.into_iter().chain(settings),
            &self.folder,
        );
        recipe.wrapper = AS_POSTGRES.iter().map(Into::into).collect();
        self.run(Kind::Postgres, recipe)
    }

    fn mariadb(self) -> anyhow::Result<DatabaseServer> {
        let data = format!("--datadir={}", self.data.display());
        let mut make = Command::new("mariadb-install-db");
        make.args([
            "--no-defaults",
            "--user=root",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
        ])
        .arg(&data);
        done(&mut make)?;
        let arguments = [
            "--no-defaults".to_owned(),
            "--user=root".to_owned(),
            data,
            format!("--socket={}", self.data.join("socket").display()),
            format!("--port={}", self.address.port()),
            "--bind-address=127.0.0.1".to_owned(),
            "--skip-name-resolve".to_owned(),
            format!("--ssl-cert={}", self.certificate.display()),
            format!("--ssl-key={}", self.key.display()),
        ];
        let recipe = Recipe::new(&self.name, "/usr/sbin/mariadbd".into(), arguments, &self.folder);
        let server = self.run(Kind::Mariadb, recipe)?;
        server.sql(
            "mysql",
            &format!(
                "CREATE DATABASE vault CHARACTER SET utf8mb4; CREATE USER vault@'127.0.0.1' IDENTIFIED BY '{PASSWORD}';
                 GRANT SELECT, INSERT, UPDATE, CREATE ON vault.* TO vault@'127.0.0.1'"
            ),
        )?;
        Ok(server)
    }

    fn etcd(self) -> anyhow::Result<DatabaseServer> {
        let peer = format!("http://{}", ports::free()?);
        let client = format!("https://{}", self.address);
        let arguments = [
            format!("--data-dir={}", self.data.display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=default={peer}"),
            format!("--cert-file={}", self.certificate.display()),
            format!("--key-file={}", self.key.display()),
        ];
        let recipe = Recipe::new(&self.name, "/usr/bin/etcd".into(), arguments, &self.folder);
        self.run(Kind::Etcd, recipe)
    }
}

const AS_POSTGRES: [&str; 4] = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"];

/// PostgreSQL refuses to run as root.
fn as_postgres(binary: &Path) -> Command {
    let [wrapper, arguments @ ..] = AS_POSTGRES;
    let mut command = Command::new(wrapper);
    command.args(arguments).arg(binary).current_dir("/");
    command
}

/// Debian keeps each version's programs apart; the newest is taken.
fn postgres(program: &str) -> anyhow::Result<PathBuf> {
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

fn done(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    anyhow::ensure!(
        output.status.success(),
        "{command:?}: {} {}",
        text(&output.stderr),
        text(&output.stdout)
    );
    Ok(text(&output.stdout))
}

/// Whom a process has started and who still run.
fn children(parent: u32) -> anyhow::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        // The name in parentheses may hold anything.
        let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
        if after.split_whitespace().nth(1).and_then(|word| word.parse().ok()) == Some(parent) {
            found.push(pid);
        }
    }
    Ok(found)
}
