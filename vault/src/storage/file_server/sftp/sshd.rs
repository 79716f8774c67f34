//! A real OpenSSH server for the tests: its own configuration, keys, port and folder; its
//! processes can be stopped, killed and started again.

use std::io::Read as _;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::ports;
use super::settings::{Login, SftpSettings};

/// See the module.
pub(super) struct Sshd {
    pub(super) folder: tempfile::TempDir,
    port: u16,
    /// Before sshd's own command, such as a namespace to run it in.
    wrapper: Vec<String>,
    child: Option<Child>,
}

impl Sshd {
    /// A server that answers.
    pub(super) fn start() -> Self {
        Self::start_in(&[])
    }

    /// As [`Self::start`], with the folder of the replicas on a disk of its own of so many MiB.
    pub(super) fn start_on_small_disk(mebibytes: u32) -> Self {
        let mount = format!("mount -t tmpfs -o size={mebibytes}m none \"$PLACE\" && exec \"$@\"");
        Self::start_in(&["unshare", "--mount", "sh", "-c", &mount, "sh"])
    }

    /// Mounts that small disk anew, `ro` or `rw`, under the running server.
    pub(super) fn remount(&self, how: &str) {
        let mut command = Command::new("nsenter");
        command.arg("--mount").arg(format!("--target={}", self.listener()));
        command.args(["mount", "-o", &format!("remount,{how}")]).arg(self.place());
        assert!(command.status().unwrap().success());
    }

    fn start_in(wrapper: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = ports::free().unwrap().port();
        let wrapper = wrapper.iter().map(|word| (*word).to_owned()).collect();
        let mut server = Self { folder, port, wrapper, child: None };
        std::fs::create_dir(server.place()).unwrap();
        for name in ["host", "other_host", "user", "stranger"] {
            server.key(name);
        }
        std::fs::copy(server.path("user.pub"), server.path("authorized_keys")).unwrap();
        server.pin("host");
        let path = |name: &str| server.path(name).display().to_string();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\n\
             StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\n\
             Subsystem sftp internal-sftp\n",
            path("host"),
            path("authorized_keys"),
        );
        std::fs::write(server.path("sshd_config"), config).unwrap();
        server.run();
        server
    }

    /// Starts it again on the same port.
    pub(super) fn run(&mut self) {
        let _ = std::fs::create_dir("/run/sshd");
        let mut words = self.wrapper.clone();
        words.extend(["/usr/sbin/sshd", "-D", "-e", "-f"].map(str::to_owned));
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(self.path("sshd_config")).env("PLACE", self.place());
        let log = std::fs::File::create(self.path("log")).unwrap();
        self.child = Some(command.stdin(Stdio::null()).stderr(log).spawn().unwrap());
        for _ in 0..500 {
            if greets(self.port) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("sshd does not answer: {}", std::fs::read_to_string(self.path("log")).unwrap());
    }

    /// Kills it and all its sessions.
    pub(super) fn kill(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // A session that it makes meanwhile would keep the port.
        signal("STOP", &[child.id()]);
        signal("KILL", &below(child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// The process that takes connections.
    pub(super) fn listener(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// The processes of its sessions now.
    pub(super) fn sessions(&self) -> Vec<u32> {
        self.child.as_ref().map(|child| below(child.id())).unwrap_or_default()
    }

    /// Changes its configuration for the next start.
    pub(super) fn configure(&self, from: &str, to: &str) {
        let config = std::fs::read_to_string(self.path("sshd_config")).unwrap();
        std::fs::write(self.path("sshd_config"), config.replace(from, to)).unwrap();
    }

    /// Where the replicas lie.
    pub(super) fn place(&self) -> PathBuf {
        self.path("place")
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes the key of this name into `known_hosts`, as the only one.
    pub(super) fn pin(&self, name: &str) {
        let key = std::fs::read_to_string(self.path(&format!("{name}.pub"))).unwrap();
        let line = format!("[127.0.0.1]:{} {key}", self.port);
        std::fs::write(self.path("known_hosts"), line).unwrap();
    }

    /// What an operator would write.
    pub(super) fn settings(&self, sessions: usize) -> SftpSettings {
        let user = Command::new("id").arg("-un").output().unwrap();
        SftpSettings {
            host: "127.0.0.1".to_owned(),
            port: self.port,
            user: String::from_utf8(user.stdout).unwrap().trim().to_owned(),
            known_hosts: self.path("known_hosts"),
            login: Login::KeyFile(self.path("user")),
            sessions,
        }
    }

    fn key(&self, name: &str) {
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"])
            .arg(self.path(name))
            .status();
        assert!(made.unwrap().success());
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Does an SSH server say its name there (RFC 4253, 4.2)? A port may also take connections that
/// nobody serves any more.
fn greets(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut name = [0; 4];
    stream.read_exact(&mut name).is_ok() && name == *b"SSH-"
}

/// Sends a signal to these processes; those that have ended meanwhile do not matter.
pub(super) fn signal(name: &str, processes: &[u32]) {
    let mut command = Command::new("kill");
    command.arg("-s").arg(name).args(processes.iter().map(ToString::to_string));
    let _ = command.stderr(Stdio::null()).status();
}

/// The processes that descend from this one.
pub(super) fn below(process: u32) -> Vec<u32> {
    let mut found = vec![process];
    let parents = parents();
    let mut at = 0;
    while at < found.len() {
        let parent = found[at];
        found.extend(parents.iter().filter(|(_, above)| *above == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    found.split_off(1)
}

/// Every process on this host with its parent.
fn parents() -> Vec<(u32, u32)> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pairs = entries.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let parent = stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()?;
        Some((pid, parent))
    });
    pairs.collect()
}
