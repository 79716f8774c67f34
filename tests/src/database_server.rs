//! Real database servers, each with its own data folder and TLS, on loopback or in a network
//! namespace: PostgreSQL with standbys, MariaDB with replicas, etcd. Knows how they are made,
//! started and killed, not what is kept in them.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};

use crate::browser::Authority;
use crate::program::{Program, Recipe};
use crate::{ports, wait};

mod etcd;
mod mariadb;
mod postgres;

/// How long a server may take until it answers, on a busy machine.
const READY: Duration = Duration::from_secs(60);
/// A client program that takes longer is ended: a server that stands still keeps it waiting.
const PATIENCE: &str = "60";
/// The accounts' password: `postgres`, `vault`, MariaDB's `vault` and `feed`.
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

/// Where a server is to run.
#[derive(Debug, Clone)]
pub struct Seat {
    /// Its name, and that of its folder.
    pub name: String,
    /// Its own folder lies in this one, which other accounts may pass through.
    pub folder: PathBuf,
    /// Where it listens.
    pub address: SocketAddr,
    /// What stands before every program that must run there; see [`Recipe::wrapper`].
    pub wrapper: Vec<OsString>,
    /// Further arguments of the server.
    pub arguments: Vec<String>,
}

impl Seat {
    /// On loopback, at a free port.
    ///
    /// # Errors
    /// There is none.
    pub fn loopback(folder: &Path, name: &str) -> anyhow::Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            folder: folder.to_owned(),
            address: ports::free()?,
            wrapper: Vec::new(),
            arguments: Vec::new(),
        })
    }
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
    wrapper: Vec<OsString>,
    program: Program,
}

impl DatabaseServer {
    /// Makes one on loopback with an empty database `vault` of account `vault`, and starts it.
    ///
    /// # Errors
    /// Whatever a program says.
    pub fn start(kind: Kind, folder: &Path, name: &str) -> anyhow::Result<Self> {
        Self::start_at(kind, Seat::loopback(folder, name)?)
    }

    /// The same somewhere else.
    ///
    /// # Errors
    /// Whatever a program says.
    pub fn start_at(kind: Kind, seat: Seat) -> anyhow::Result<Self> {
        let place = Place::new(seat)?;
        match kind {
            Kind::Postgres => place.postgres(),
            Kind::Mariadb => place.mariadb(),
            Kind::Etcd => {
                let mut members = etcd::cluster(vec![place])?;
                members.pop().context("one member")
            }
        }
    }

    /// The members of one etcd.
    ///
    /// # Errors
    /// Whatever a program says.
    pub fn etcd(seats: Vec<Seat>) -> anyhow::Result<Vec<Self>> {
        etcd::cluster(seats.into_iter().map(Place::new).collect::<anyhow::Result<_>>()?)
    }

    /// A standby of this PostgreSQL server on loopback.
    ///
    /// # Errors
    /// Whatever a program says.
    pub fn standby(&self, folder: &Path, name: &str) -> anyhow::Result<Self> {
        self.standby_at(Seat::loopback(folder, name)?)
    }

    /// A standby of this PostgreSQL server, or a replica of this MariaDB.
    ///
    /// # Errors
    /// Whatever a program says.
    pub fn standby_at(&self, seat: Seat) -> anyhow::Result<Self> {
        let place = Place::new(seat)?;
        match self.kind {
            Kind::Postgres => place.postgres_standby(self.address),
            Kind::Mariadb => place.mariadb_replica(self),
            Kind::Etcd => anyhow::bail!("etcd's members are made together"),
        }
    }

    /// Makes this server, which must not run, a standby of `primary` again, and starts it: whatever
    /// it has beyond that one's history is gone.
    ///
    /// # Errors
    /// Whatever a program says.
    pub fn follow(&mut self, primary: &Self) -> anyhow::Result<()> {
        match self.kind {
            Kind::Postgres => postgres::rewind(self, primary),
            Kind::Mariadb => mariadb::build_anew(self, primary),
            Kind::Etcd => anyhow::bail!("etcd's members follow by themselves"),
        }
    }

    /// Makes this standby a primary with its own tools, whatever anybody thinks of it.
    ///
    /// # Errors
    /// Whatever it says.
    pub fn promote(&self) -> anyhow::Result<()> {
        match self.kind {
            Kind::Postgres => self.sql("postgres", "SELECT pg_promote(true, 30)").map(drop),
            Kind::Mariadb => mariadb::promote(self),
            Kind::Etcd => anyhow::bail!("etcd chooses by itself"),
        }
    }

    /// Runs SQL as the superuser, on the server's own host; what it prints, unaligned.
    ///
    /// # Errors
    /// What the server says.
    pub fn sql(&self, database: &str, text: &str) -> anyhow::Result<String> {
        let mut client = match self.kind {
            Kind::Postgres => postgres::client(self, database)?,
            Kind::Mariadb => mariadb::client(&self.data, database),
            Kind::Etcd => anyhow::bail!("etcd speaks no SQL"),
        };
        match self.kind {
            Kind::Postgres => client.args(["-c", text]),
            _ => client.args(["-e", text]),
        };
        done(&mut client)
    }

    /// Calls etcd's JSON gateway.
    ///
    /// # Errors
    /// What it says.
    pub fn call(&self, path: &str, question: &str) -> anyhow::Result<String> {
        let mut curl = wrapped(&self.wrapper, Path::new("curl"));
        curl.args(["-sf", "--max-time", "5", "-X", "POST", "-d", question, "--cacert"])
            .arg(&self.authority)
            .arg(format!("https://{}{path}", self.address));
        done(&mut curl)
    }

    /// SIGKILL for it and all its children: after the end of the first alone the others may go on.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        // It must not start new ones meanwhile.
        self.program.freeze()?;
        self.signal_children("", Signal::KILL)?;
        self.program.kill()
    }

    /// Stops it and all its children; see [`Self::thaw`].
    ///
    /// # Errors
    /// It does not run.
    pub fn freeze(&self) -> anyhow::Result<()> {
        self.program.freeze()?;
        self.signal_children("", Signal::STOP).map(drop)
    }

    /// Lets them go on.
    ///
    /// # Errors
    /// It does not run.
    pub fn thaw(&self) -> anyhow::Result<()> {
        self.signal_children("", Signal::CONT)?;
        self.program.thaw()
    }

    /// Stops those of its children whose command line has this word in it. Tells how many.
    ///
    /// # Errors
    /// It does not run.
    pub fn freeze_children(&self, word: &str) -> anyhow::Result<usize> {
        self.signal_children(word, Signal::STOP)
    }

    /// Kills those of its children whose command line has this word in it. Tells how many.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill_children(&self, word: &str) -> anyhow::Result<usize> {
        self.signal_children(word, Signal::KILL)
    }

    /// Does it run?
    pub fn is_running(&mut self) -> bool {
        self.program.is_running()
    }

    /// Starts it again where it was, and waits until it answers.
    ///
    /// # Errors
    /// It does not come back.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.program.restart()?;
        self.wait_ready()
    }

    /// Starts it again and waits for nothing: members of an etcd wait for each other.
    ///
    /// # Errors
    /// It still runs.
    pub fn launch(&mut self) -> anyhow::Result<()> {
        self.program.restart()
    }

    /// Waits until it answers.
    ///
    /// # Errors
    /// The end of its log.
    pub fn wait_ready(&mut self) -> anyhow::Result<()> {
        wait::until(&format!("{} answers", self.program.name()), READY, || {
            anyhow::ensure!(self.program.is_running(), "it has ended: {}", self.program.log_tail(20));
            match self.kind {
                Kind::Postgres => self.sql("postgres", "SELECT 1").map(drop),
                Kind::Mariadb => self.sql("mysql", "SELECT 1").map(drop),
                // Only with a quorum.
                Kind::Etcd => self.call("/v3/kv/range", r#"{"key":"AA=="}"#).map(drop),
            }
        })
    }

    fn signal_children(&self, word: &str, signal: Signal) -> anyhow::Result<usize> {
        let own = self.program.pid().context("it does not run")?;
        let mut count = 0;
        for child in children(own)? {
            let line = std::fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
            if !String::from_utf8_lossy(&line).contains(word) {
                continue;
            }
            let pid = Pid::from_raw(i32::try_from(child)?).context("a process id is positive")?;
            // It may have ended just now.
            count += usize::from(kill_process(pid, signal).is_ok());
        }
        Ok(count)
    }
}

/// Where a server is about to be.
struct Place {
    seat: Seat,
    own: PathBuf,
    data: PathBuf,
    authority: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
    password_file: PathBuf,
}

impl Place {
    fn new(seat: Seat) -> anyhow::Result<Self> {
        // PostgreSQL runs as an account of its own, which must get there.
        std::fs::set_permissions(&seat.folder, std::fs::Permissions::from_mode(0o711))?;
        let own = seat.folder.join(&seat.name);
        let data = own.join("data");
        std::fs::create_dir_all(&data)?;
        let authority = Authority::new(&own, "authority")?;
        let pair = authority.issue(&own, "server", &[&seat.address.ip().to_string()])?;
        let password_file = own.join("password");
        std::fs::write(&password_file, format!("{PASSWORD}\n"))?;
        for (file, mode) in [(&pair.key, 0o600), (&data, 0o700)] {
            std::fs::set_permissions(file, std::fs::Permissions::from_mode(mode))?;
        }
        Ok(Self {
            authority: authority.certificate,
            certificate: pair.certificate,
            key: pair.key,
            password_file,
            data,
            own,
            seat,
        })
    }

    fn ip(&self) -> IpAddr {
        self.seat.address.ip()
    }

    /// Starts `binary` with these arguments and the seat's own after them; waits for nothing.
    fn launch(self, kind: Kind, binary: PathBuf, arguments: Vec<String>) -> anyhow::Result<DatabaseServer> {
        let arguments = arguments.into_iter().chain(self.seat.arguments);
        let mut recipe = Recipe::new(&self.seat.name, binary, arguments, &self.own);
        recipe.wrapper.clone_from(&self.seat.wrapper);
        if kind == Kind::Postgres {
            recipe.wrapper.extend(postgres::AS_POSTGRES.iter().map(Into::into));
        }
        Ok(DatabaseServer {
            kind,
            address: self.seat.address,
            data: self.data,
            authority: self.authority,
            password_file: self.password_file,
            wrapper: self.seat.wrapper,
            program: Program::start(recipe)?,
        })
    }
}

/// `binary` as it runs behind a wrapper.
fn wrapped(wrapper: &[OsString], binary: &Path) -> Command {
    let mut words = wrapper.iter().map(OsString::as_os_str).chain([binary.as_os_str()]);
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words);
    command
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
