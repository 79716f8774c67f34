//! A private SFTP server (OpenSSH's, or ProFTPD) that serves one folder by SFTP: own configuration, host key, port
//! and account key, as an operator of a file server would set it up. It can be stopped,
//! killed, frozen and started again with all its sessions, and its folder wiped or rolled back.

use std::ffi::OsString;
use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, kill_process};

use crate::program::{Program, Recipe, Signal, run};
use crate::vault_host::files_below;
use crate::{ports, proftpd, wait};

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
    key_in_agent: bool,
}

impl SftpServer {
    /// Starts one that serves `place`; its own files lie in `folder`, which is made.
    ///
    /// # Errors
    /// A key cannot be made, or it takes no connections; with its log.
    pub fn start(folder: &Path, place: &Path) -> anyhow::Result<Self> {
        Self::start_behind(Vec::new(), folder, place)
    }

    /// As [`Self::start`], with its place on a disk of so many MiB that only it sees, and that is
    /// gone when it ends.
    ///
    /// # Errors
    /// As [`Self::start`]; only root may.
    pub fn start_on_small_disk(mebibytes: u32, folder: &Path, place: &Path) -> anyhow::Result<Self> {
        let mount = format!("mount -t tmpfs -o size={mebibytes}m none \"$0\" && exec \"$@\"");
        let mut wrapper: Vec<OsString> = ["unshare", "--mount", "sh", "-c"].map(Into::into).to_vec();
        wrapper.extend([mount.into(), place.into()]);
        Self::start_behind(wrapper, folder, place)
    }

    /// As [`Self::start`], and modes count for it as for any account: root's power to pass over
    /// them is taken from it.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_bound_by_modes(folder: &Path, place: &Path) -> anyhow::Result<Self> {
        let powers = "--bounding-set=-dac_override,-dac_read_search";
        let wrapper = if rustix::process::geteuid().is_root() {
            ["setpriv", powers].map(Into::into).to_vec()
        } else {
            Vec::new()
        };
        Self::start_behind(wrapper, folder, place)
    }

    /// As [`Self::start`], with a program in front of sshd that keeps its process id.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_behind(wrapper: Vec<OsString>, folder: &Path, place: &Path) -> anyhow::Result<Self> {
        Self::start_program(folder, place, |address| {
            // sshd wants its empty folder even where nobody is separated into it.
            std::fs::create_dir_all("/run/sshd")?;
            let mut recipe = Recipe::new("sshd", SSHD.into(), sshd_words(folder, address)?, folder);
            recipe.wrapper = wrapper;
            Ok(recipe)
        })
    }

    /// As [`Self::start`], but it is ProFTPD.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_proftpd(folder: &Path, place: &Path) -> anyhow::Result<Self> {
        Self::start_program(folder, place, |address| proftpd::recipe(folder, address))
    }

    fn start_program(
        folder: &Path,
        place: &Path,
        recipe: impl FnOnce(SocketAddr) -> anyhow::Result<Recipe>,
    ) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        std::fs::create_dir_all(place)?;
        let address = ports::free()?;
        for name in ["host", "user"] {
            make_key(&folder.join(name))?;
        }
        let program = Program::start(recipe(address)?)?;
        let server = Self {
            place: place.to_owned(),
            address,
            folder: folder.to_owned(),
            program,
            key_in_agent: false,
        };
        server.pin_host_key()?;
        server.wait_ready()?;
        Ok(server)
    }

    /// The lines of a `[[file_server]]` that reach it, but for name and path.
    ///
    /// # Errors
    /// Nobody knows who this user is.
    pub fn config(&self) -> anyhow::Result<String> {
        let user = run(Path::new("id"), &["-un"])?.well()?;
        let login = match self.key_in_agent {
            true => "agent = true".to_owned(),
            false => format!("key_file = \"{}\"", self.user_key().display()),
        };
        Ok(format!(
            "kind = \"sftp\"\naddress = \"{}\"\nuser = \"{}\"\nknown_hosts_file = \"{}\"\n{login}\n",
            self.address,
            user.trim(),
            self.folder.join("known_hosts").display(),
        ))
    }

    /// Whoever reaches it finds the key to its account in an agent, and not in a file.
    #[must_use]
    pub fn with_key_in_agent(mut self) -> Self {
        self.key_in_agent = true;
        self
    }

    /// The private key that its account takes.
    #[must_use]
    pub fn user_key(&self) -> PathBuf {
        self.folder.join("user")
    }

    /// Its place as it sees it itself, on whatever disk; after its end the bare folder.
    #[must_use]
    pub fn view(&self) -> PathBuf {
        let inside = self.program.pid().map(|pid| PathBuf::from(format!("/proc/{pid}/root")));
        let own = self.place.strip_prefix("/").unwrap_or(&self.place);
        inside.map_or_else(|| self.place.clone(), |root| root.join(own))
    }

    /// Where its own files lie: configuration, keys, log.
    #[must_use]
    pub const fn folder(&self) -> &PathBuf {
        &self.folder
    }

    /// Where the replica of an object lies, if it does.
    #[must_use]
    pub fn replica(&self, id: &str) -> PathBuf {
        let part = |range| id.get(range).unwrap_or_default();
        self.view().join(part(0..2)).join(part(2..4)).join(id)
    }

    /// Bytes of what is being written there now.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn being_written(&self) -> anyhow::Result<u64> {
        let folder = self.view().join("tmp");
        let files = if folder.exists() { files_below(&folder)? } else { Vec::new() };
        // One may just get its final name.
        Ok(files.iter().filter_map(|file| file.metadata().ok()).map(|known| known.len()).sum())
    }

    /// Bytes that its sessions have read or taken in so far, from disk and from the line.
    ///
    /// # Errors
    /// It does not run.
    pub fn bytes_moved(&self) -> anyhow::Result<u64> {
        let of = |session: &Pid| {
            let io = std::fs::read_to_string(format!("/proc/{}/io", session.as_raw_nonzero())).ok()?;
            io.lines().find_map(|line| line.strip_prefix("rchar: ")?.parse::<u64>().ok())
        };
        Ok(self.sessions()?.iter().filter_map(of).sum())
    }

    /// Leaves only so many bytes of its disk free, with a file that is nobody's.
    ///
    /// # Errors
    /// Whatever the disk says.
    pub fn fill_up(&self, left: u64) -> anyhow::Result<()> {
        let ballast = std::fs::File::create(self.ballast())?;
        // Others may write just now: what is free is asked again.
        wait::until("the disk is filled up", READY, || {
            let disk = rustix::fs::statvfs(self.view())?;
            let free = disk.f_bavail.saturating_mul(disk.f_frsize).saturating_sub(left);
            let taken = ballast.metadata()?.len();
            let all = rustix::fs::FallocateFlags::empty();
            Ok(rustix::fs::fallocate(&ballast, all, taken, free.max(1))?)
        })
    }

    /// Frees what [`Self::fill_up`] took.
    ///
    /// # Errors
    /// It was not filled.
    pub fn make_room(&self) -> anyhow::Result<()> {
        Ok(std::fs::remove_file(self.ballast())?)
    }

    fn ballast(&self) -> PathBuf {
        self.view().join("ballast")
    }

    /// Changes the mode of its place, or of a folder in it.
    ///
    /// # Errors
    /// There is no such folder.
    pub fn set_mode(&self, folder: &str, mode: u32) -> anyhow::Result<()> {
        let permissions = std::fs::Permissions::from_mode(mode);
        Ok(std::fs::set_permissions(self.place.join(folder), permissions)?)
    }

    /// Installs the machine anew: another host key, which nobody has pinned. It must not run.
    ///
    /// # Errors
    /// No key can be made.
    pub fn exchange_host_key(&self) -> anyhow::Result<()> {
        let key = self.folder.join("host");
        std::fs::remove_file(&key)?;
        make_key(&key)
    }

    /// What its operator does after comparing fingerprints: the present host key is the known one.
    ///
    /// # Errors
    /// A file that cannot be read or written.
    pub fn pin_host_key(&self) -> anyhow::Result<()> {
        let key = std::fs::read_to_string(self.folder.join("host.pub"))?;
        let known = format!("[{}]:{} {key}", self.address.ip(), self.address.port());
        Ok(std::fs::write(self.folder.join("known_hosts"), known)?)
    }

    /// Ends it and all its sessions with KILL: a power failure, as its callers see it.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        // A session that it makes meanwhile would keep the port.
        self.freeze()?;
        send(Signal::KILL, &self.sessions()?);
        self.program.kill()
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
        // A port may also take connections that nobody serves any more.
        let greets = || {
            let mut stream = TcpStream::connect(self.address)?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            let mut name = [0; 4];
            stream.read_exact(&mut name)?;
            anyhow::ensure!(name == *b"SSH-", "it says {name:?}");
            Ok(())
        };
        wait::until("sshd says its name (RFC 4253, 4.2)", READY, greets)
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

/// Writes sshd's configuration into `folder`, where the keys lie, and tells its arguments.
fn sshd_words(folder: &Path, address: SocketAddr) -> anyhow::Result<[OsString; 4]> {
    std::fs::copy(folder.join("user.pub"), folder.join("authorized_keys"))?;
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
    Ok(["-D".into(), "-e".into(), "-f".into(), file.into()])
}

/// Makes an ed25519 key without passphrase.
fn make_key(file: &Path) -> anyhow::Result<()> {
    let mut words: Vec<OsString> =
        ["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"].map(Into::into).to_vec();
    words.push(file.into());
    run(Path::new("ssh-keygen"), &words)?.well().map(drop)
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
