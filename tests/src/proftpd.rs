//! How ProFTPD is set up as an SFTP server: another one than OpenSSH, with keys in another form
//! and a RENAME that overwrites. Its host key and its account's key are those of the folder.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;

use crate::program::{Recipe, run};

const PROFTPD: &str = "/usr/sbin/proftpd";

/// Writes its configuration into `folder`, where the keys lie, and tells how to start it.
///
/// # Errors
/// A key that cannot be converted, a file that cannot be written.
pub fn recipe(folder: &Path, address: SocketAddr) -> anyhow::Result<Recipe> {
    let path = |name: &str| folder.join(name).display().to_string();
    let words = ["-e", "-m", "RFC4716", "-f", &path("user.pub")];
    let key = run(Path::new("ssh-keygen"), &words)?.well()?;
    std::fs::write(path("rfc4716"), key)?;
    let user = run(Path::new("id"), &["-un"])?.well()?;
    let config = format!(
        "ModulePath /usr/lib/proftpd\nLoadModule mod_sftp.c\nServerType standalone\nServerName files\n\
         DefaultAddress {ip}\nPort {port}\nUseReverseDNS off\nUseIPv6 off\nUser {user}\nRootLogin on\n\
         UseFtpUsers off\nRequireValidShell off\nPidFile {pid}\nScoreboardFile {scoreboard}\n\
         SystemLog {log}\nWtmpLog none\nDelayEngine off\nAllowOverwrite on\nSFTPEngine on\n\
         SFTPHostKey {host}\nSFTPAuthorizedUserKeys file:{keys}\nSFTPAuthMethods publickey\n",
        ip = address.ip(),
        port = address.port(),
        user = user.trim(),
        pid = path("pid"),
        scoreboard = path("scoreboard"),
        log = path("proftpd-system.log"),
        host = path("host"),
        keys = path("rfc4716"),
    );
    let file = folder.join("proftpd.conf");
    std::fs::write(&file, config)?;
    let words: [OsString; 4] = ["--nodaemon".into(), "--quiet".into(), "--config".into(), file.into()];
    Ok(Recipe::new("proftpd", PROFTPD.into(), words, folder))
}
