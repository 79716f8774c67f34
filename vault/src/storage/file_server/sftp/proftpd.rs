//! A real ProFTPD for the tests: an SFTP server that is not OpenSSH. It serves the folder and
//! takes the keys of an [`Sshd`]'s fixture, on a port of its own.

use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::settings::SftpSettings;
use super::sshd::Sshd;

/// See the module.
pub(super) struct Proftpd {
    port: u16,
    child: Child,
}

impl Proftpd {
    /// One that answers.
    pub(super) fn start(fixture: &Sshd) -> Self {
        let port = super::ports::free().unwrap().port();
        let path = |name: &str| fixture.path(name).display().to_string();
        let keys = Command::new("ssh-keygen")
            .args(["-e", "-m", "RFC4716", "-f", &path("user.pub")])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        std::fs::write(path("rfc4716"), keys.stdout).unwrap();
        let user = fixture.settings(1).user;
        let config = format!(
            "ModulePath /usr/lib/proftpd\nLoadModule mod_sftp.c\nServerType standalone\nServerName files\n\
             DefaultAddress 127.0.0.1\nPort {port}\nUseReverseDNS off\nUseIPv6 off\nUser {user}\nRootLogin on\n\
             UseFtpUsers off\nRequireValidShell off\nPidFile {}\nScoreboardFile {}\nSystemLog {}\n\
             WtmpLog none\nDelayEngine off\nAllowOverwrite on\nSFTPEngine on\nSFTPHostKey {}\n\
             SFTPAuthorizedUserKeys file:{}\nSFTPAuthMethods publickey\n",
            path("pid"),
            path("scoreboard"),
            path("proftpd.log"),
            path("host"),
            path("rfc4716"),
        );
        std::fs::write(path("proftpd.conf"), config).unwrap();
        let child = Command::new("/usr/sbin/proftpd")
            .args(["--nodaemon", "--quiet", "--config", &path("proftpd.conf")])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { port, child };
        for _ in 0..500 {
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return server;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("proftpd does not answer: {}", std::fs::read_to_string(path("proftpd.log")).unwrap());
    }

    /// What an operator would write.
    pub(super) fn settings(&self, fixture: &Sshd, sessions: usize) -> SftpSettings {
        let key = std::fs::read_to_string(fixture.path("host.pub")).unwrap();
        let known_hosts = fixture.path("proftpd_known_hosts");
        std::fs::write(&known_hosts, format!("[127.0.0.1]:{} {key}", self.port)).unwrap();
        SftpSettings { port: self.port, known_hosts, ..fixture.settings(sessions) }
    }
}

impl Drop for Proftpd {
    fn drop(&mut self) {
        super::sshd::signal("KILL", &super::sshd::below(self.child.id()));
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}
