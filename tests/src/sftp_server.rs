//! A private OpenSSH server that serves one folder by SFTP: own configuration, host key, port
//! and account key, as an operator of a file server would set it up. It can be stopped,
//! killed, frozen and started again with all its sessions, and its folder wiped or rolled back.

use std::ffi::OsString;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, kill_process};

use crate::program::{Program, Recipe, Signal, run};
use crate::{ports, wait};

/// How long it may take until it takes connections.
const READY: Duration = Duration::from_secs(15);
const SSHD: &str = "/usr/sbin/sshd";

/// See the module.
#[derive(Debug)]
pub struct SftpServer {
    /// What it serves.
    pub place: PathBuf,
    /// Where it takes connections.
    pub address: SocketAddr,
    folder: PathBuf,
    program: Program,
}

impl SftpServer {
    /// Starts one that serves `place`; its own files lie in `folder`, which is made.
    ///
    /// # Errors
    /// A key cannot be made, or it takes no connections; with its log.
    pub fn start(folder: &Path, place: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        std::fs::create_dir_all(place)?;
        // sshd wants its empty folder even where nobody is separated into it.
        std::fs::create_dir_all("/run/sshd")?;
        let address = ports::free()?;
        for name in ["host", "user"] {
            let file = folder.join(name);
            let mut words: Vec<OsString> =
                ["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"].map(Into::into).to_vec();
            words.push(file.into());
            run(Path::new("ssh-keygen"), &words)?.well()?;
        }
        std::fs::copy(folder.join("user.pub"), folder.join("authorized_keys"))?;
        let key = std::fs::read_to_string(folder.join("host.pub"))?;
        let known = format!("[{}]:{} {key}", address.ip(), address.port());
        std::fs::write(folder.join("known_hosts"), known)?;
        let config = format!(
            "Port {port}\nListenAddress {ip}\nHostKey {host}\nAuthorizedKeysFile {keys}\nPidFile none\n\
             StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\n\
             Subsystem sftp internal-sftp\n",
            port = address.port(),
            ip = address.ip(),
            host = folder.join("host").display(),
            keys = folder.join("authorized_keys").display(),
        );
        let file = folder.join("sshd_config");
        std::fs::write(&file, config)?;
        let words: [OsString; 4] = ["-D".into(), "-e".into(), "-f".into(), file.into()];
        let program = Program::start(Recipe::new("sshd", SSHD.into(), words, folder))?;
        let server = Self { place: place.to_owned(), address, folder: folder.to_owned(), program };
        server.wait_ready()?;
        Ok(server)
    }

    /// The lines of a `[[file_server]]` that reach it, but for name and path.
    ///
    /// # Errors
    /// Nobody knows who this user is.
    pub fn config(&self) -> anyhow::Result<String> {
        let user = run(Path::new("id"), &["-un"])?.well()?;
        Ok(format!(
            "kind = \"sftp\"\naddress = \"{}\"\nuser = \"{}\"\nknown_hosts_file = \"{}\"\nkey_file = \"{}\"\n",
            self.address,
            user.trim(),
            self.folder.join("known_hosts").display(),
            self.folder.join("user").display(),
        ))
    }

    /// Ends it and all its sessions with KILL: a power failure, as its callers see it.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        // The listener first, so that no session starts meanwhile.
        let sessions = self.sessions()?;
        self.program.kill()?;
        send(Signal::KILL, &sessions);
        Ok(())
    }

    /// Ends its sessions with KILL; it takes new ones.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill_sessions(&self) -> anyhow::Result<()> {
        send(Signal::KILL, &self.sessions()?);
        Ok(())
    }

    /// Starts it again after [`Self::kill`].
    ///
    /// # Errors
    /// It still runs, or takes no connections.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        self.program.restart()?;
        self.wait_ready()
    }

    /// Stops it and all its sessions in mid-air: connections stay open and nothing answers.
    ///
    /// # Errors
    /// It does not run.
    pub fn freeze(&self) -> anyhow::Result<()> {
        self.program.freeze()?;
        send(Signal::STOP, &self.sessions()?);
        Ok(())
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// It does not run.
    pub fn thaw(&self) -> anyhow::Result<()> {
        send(Signal::CONT, &self.sessions()?);
        self.program.thaw()
    }

    /// Removes everything that it holds: a new disk.
    ///
    /// # Errors
    /// A file that cannot be removed.
    pub fn wipe(&self) -> anyhow::Result<()> {
        std::fs::remove_dir_all(&self.place)?;
        std::fs::create_dir(&self.place)?;
        Ok(())
    }

    /// Copies everything that it holds to `backup`, which must not be there.
    ///
    /// # Errors
    /// Whatever cp says.
    pub fn back_up(&self, backup: &Path) -> anyhow::Result<()> {
        copy(&self.place, backup)
    }

    /// Puts a backup in place of everything that it holds.
    ///
    /// # Errors
    /// Whatever cp says.
    pub fn restore(&self, backup: &Path) -> anyhow::Result<()> {
        std::fs::remove_dir_all(&self.place)?;
        copy(backup, &self.place)
    }

    fn wait_ready(&self) -> anyhow::Result<()> {
        wait::until("sshd takes connections", READY, || Ok(TcpStream::connect(self.address)?))
            .with_context(|| self.program.log_tail(20))
            .map(drop)
    }

    /// The processes that serve its sessions now.
    fn sessions(&self) -> anyhow::Result<Vec<Pid>> {
        let listener = self.program.pid().context("sshd does not run")?;
        let mut found = vec![listener];
        let parents = parents()?;
        let mut at = 0;
        while let Some(parent) = found.get(at).copied() {
            found.extend(parents.iter().filter(|(_, above)| *above == parent).map(|(pid, _)| *pid));
            at += 1;
        }
        let pids =
            found.into_iter().skip(1).filter_map(|pid| i32::try_from(pid).ok().and_then(Pid::from_raw));
        Ok(pids.collect())
    }
}

impl Drop for SftpServer {
    fn drop(&mut self) {
        // Its sessions would outlive the listener. It may have been killed already.
        let _ = self.kill();
    }
}

fn send(signal: Signal, processes: &[Pid]) {
    for process in processes {
        // It may just have ended by itself, which is as good.
        let _ = kill_process(*process, signal);
    }
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status()?;
    anyhow::ensure!(status.success(), "cp -a {} {}: {status}", from.display(), to.display());
    Ok(())
}

/// Every process on this host with its parent.
fn parents() -> anyhow::Result<Vec<(u32, u32)>> {
    let pairs = std::fs::read_dir("/proc")?.flatten().filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let parent = stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()?;
        Some((pid, parent))
    });
    Ok(pairs.collect())
}
