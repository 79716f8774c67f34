//! `nextval` behind a synchronous standby, as a control: PostgreSQL's own programs, on Unix
//! sockets in a folder that goes when the servers go. Knows how they are started, frozen, killed
//! and promoted.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::Context;
use harness::program::{Program, Recipe, Signal};
use harness::wait;
use rustix::process::{Pid, kill_process};
use tempfile::TempDir;

/// Who runs it: it refuses to run as root.
const USER: &str = "postgres";
/// Their ports, which tell their sockets apart.
const PORTS: [(&str, &str); 2] = [("primary", "5432"), ("standby", "5433")];
/// How long a server may take to start.
const READY: Duration = Duration::from_secs(60);
/// What every server is told; nothing that concerns what is promised.
const SETTINGS: &str = "listen_addresses = ''\nfsync = off\nwal_level = replica\nhot_standby = on\n\
     max_connections = 20\nshared_buffers = '16MB'\n";

/// Primary and standby.
pub(crate) struct Servers {
    primary: Option<Program>,
    standby: Option<Program>,
    folder: TempDir,
}

impl Servers {
    /// Starts a primary that waits for its standby at each commit.
    ///
    /// # Errors
    /// What a program said, or that it is not installed.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("edge-vault-pg-").tempdir_in("/tmp")?;
        run(Command::new("chown").arg(USER).arg(folder.path()))?;
        let mut servers = Self { primary: None, standby: None, folder };
        let (primary, standby) = (servers.data("primary"), servers.data("standby"));
        let words = ["--username", USER, "--auth", "trust", "--no-sync", "--encoding", "UTF8", "--pgdata"];
        run(as_user(&program("initdb")?).args(words).arg(&primary))?;
        let settings = primary.join("postgresql.conf");
        let sockets = servers.folder.path();
        append(&settings, &format!("{SETTINGS}unix_socket_directories = '{}'\n", sockets.display()))?;
        servers.primary = Some(servers.launch("primary")?);
        servers.ready("primary")?;
        let words =
            ["--username", USER, "--port", port("primary"), "--checkpoint", "fast", "--write-recovery-conf"];
        run(as_user(&program("pg_basebackup")?).args(words).args([
            "--host".as_ref(),
            sockets.as_os_str(),
            "--pgdata".as_ref(),
            standby.as_os_str(),
        ]))?;
        servers.standby = Some(servers.launch("standby")?);
        servers.ready("standby")?;
        servers.ask("primary", "ALTER SYSTEM SET synchronous_standby_names = '*'")?;
        servers.ask("primary", "SELECT pg_reload_conf()")?;
        wait::until("the standby is synchronous", READY, || {
            let state = servers.ask("primary", "SELECT sync_state FROM pg_stat_replication")?;
            anyhow::ensure!(state == "sync", "{state:?}");
            Ok(())
        })?;
        Ok(servers)
    }

    /// Asks one of them in a session of its own, which is given up after some seconds.
    ///
    /// # Errors
    /// No answer in time, or what it said.
    pub(crate) fn ask(&self, name: &str, statement: &str) -> anyhow::Result<String> {
        let mut command = Command::new("timeout");
        command
            .args([
                "--kill-after=1",
                "4",
                "psql",
                "-qAtX",
                "-v",
                "ON_ERROR_STOP=1",
                "-U",
                USER,
                "-p",
                port(name),
            ])
            .arg("-h")
            .arg(self.folder.path())
            .args(["-c", statement, "postgres"]);
        let done = command.output().context("psql cannot be run")?;
        anyhow::ensure!(
            done.status.success(),
            "{statement}: {} {}",
            done.status,
            String::from_utf8_lossy(&done.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned())
    }

    /// SIGSTOP of the process that receives the primary's log.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn freeze_receiver(&self) -> anyhow::Result<Pid> {
        let receiver = children(self.standby.as_ref())?
            .into_iter()
            .find(|(_, line)| line.contains("walreceiver"))
            .context("the standby has no WAL receiver")?;
        kill_process(receiver.0, Signal::STOP)?;
        Ok(receiver.0)
    }

    /// The primary's machine goes down: every process of it ends at once. Then the frozen receiver,
    /// which must not drain what the dead have sent.
    ///
    /// # Errors
    /// It does not run.
    pub(crate) fn kill_primary(&mut self, receiver: Pid) -> anyhow::Result<()> {
        let primary = self.primary.as_mut().context("no primary")?;
        let all = children(Some(primary))?;
        // First the one that would notice.
        primary.signal(Signal::KILL)?;
        for (pid, _) in all {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::KILL);
        }
        primary.kill()?;
        Ok(kill_process(receiver, Signal::KILL)?)
    }

    /// Makes the standby the primary.
    ///
    /// # Errors
    /// What it said.
    pub(crate) fn promote(&self) -> anyhow::Result<()> {
        self.ready("standby")?;
        wait::until("the standby is promoted", READY, || {
            self.ask("standby", "SELECT pg_promote(true, 30)").map(drop)
        })?;
        self.ready("standby")
    }

    fn data(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn launch(&self, name: &str) -> anyhow::Result<Program> {
        let data = self.data(name);
        let arguments: [OsString; 4] = ["-D".into(), data.into(), "-p".into(), port(name).into()];
        let mut recipe = Recipe::new(name, program("postgres")?, arguments, self.folder.path());
        recipe.wrapper = USER_WORDS.iter().map(OsString::from).collect();
        Program::start(recipe)
    }

    fn ready(&self, name: &str) -> anyhow::Result<()> {
        wait::until(&format!("{name} answers"), READY, || self.ask(name, "SELECT 1").map(drop))
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for program in [self.standby.as_mut(), self.primary.as_mut()].into_iter().flatten() {
            if program.is_running() {
                // Fast shutdown: sessions that hang are ended.
                let _ = program.signal(Signal::INT);
                let _ = program.wait(Duration::from_secs(10));
            }
        }
    }
}

fn port(name: &str) -> &'static str {
    PORTS.iter().find(|(own, _)| *own == name).map_or("5432", |(_, port)| port)
}

/// What runs a program as the servers' user, with its own process id.
const USER_WORDS: [&str; 4] = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"];

fn as_user(program: &Path) -> Command {
    let mut command = Command::new(USER_WORDS[0]);
    command.args(&USER_WORDS[1..]).arg(program);
    command
}

/// One of the newest installed version's programs.
fn program(name: &str) -> anyhow::Result<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<_> = versions.map(|version| version.path().join("bin").join(name)).collect();
    found.sort();
    let found = found.into_iter().rev().find(|file| file.is_file());
    found
        .with_context(|| format!("{name} is not installed; run: apt-get install postgresql (tests/run does)"))
}

fn append(file: &Path, text: &str) -> anyhow::Result<()> {
    let mut all = std::fs::read_to_string(file)?;
    all += text;
    Ok(std::fs::write(file, all)?)
}

fn run(command: &mut Command) -> anyhow::Result<Output> {
    // Files of its own only, wherever this test was started from.
    let done = command.current_dir("/").output().with_context(|| format!("{command:?}"))?;
    anyhow::ensure!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr).trim());
    Ok(done)
}

/// Every process that `program` has started, with its command line.
fn children(program: Option<&Program>) -> anyhow::Result<Vec<(Pid, String)>> {
    let parent = program.and_then(Program::pid).context("it does not run")?.to_string();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // `pid (name) state parent …`, and a name may hold anything.
        let after = stat.rsplit_once(") ").map(|(_, rest)| rest).unwrap_or_default();
        if after.split(' ').nth(1) == Some(parent.as_str()) {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            found.extend(Pid::from_raw(pid).map(|pid| (pid, String::from_utf8_lossy(&line).into_owned())));
        }
    }
    Ok(found)
}
