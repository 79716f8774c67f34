//! What one SFTP server's settings say. Opens nothing.

use std::path::PathBuf;

/// Data sessions where nothing else is written.
pub const SESSIONS: usize = 6;
/// Most data sessions; the control session is one more, and hosting providers allow about 10.
pub const MOST_SESSIONS: usize = 9;

/// `[[file_server]]` with `kind = "sftp"`; its `path` is a folder on the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SftpSettings {
    /// Host name or address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Who to log in as.
    pub user: String,
    /// The file (as OpenSSH's `known_hosts`) that pins the server's key.
    pub known_hosts: PathBuf,
    /// What proves who we are.
    pub login: Login,
    /// Data sessions, 1 to [`MOST_SESSIONS`].
    pub sessions: usize,
}

/// How vault proves who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Login {
    /// A private key without passphrase, OpenSSH's format or PEM, mode 0600.
    KeyFile(PathBuf),
    /// The agent at `SSH_AUTH_SOCK`.
    Agent,
}

impl SftpSettings {
    /// `host:port`, with brackets around an IPv6 address.
    #[must_use]
    pub fn address(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// Splits `host`, `host:port` or `[address]:port`; without a port it is 22.
#[must_use]
pub fn parse_address(text: &str) -> Option<(String, u16)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            (host, port.strip_prefix(':').or_else(|| port.is_empty().then_some("22"))?)
        }
        None => text.split_once(':').unwrap_or((text, "22")),
    };
    let named =
        !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_:%".contains(&byte));
    let port = port.parse().ok().filter(|port| *port != 0)?;
    named.then(|| (host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_with_and_without_port_and_in_brackets() {
        let some = |host: &str, port| Some((host.to_owned(), port));
        assert_eq!(parse_address("files.example:2222"), some("files.example", 2222));
        assert_eq!(parse_address("10.0.0.9"), some("10.0.0.9", 22));
        assert_eq!(parse_address("[fe80::1]:2022"), some("fe80::1", 2022));
        assert_eq!(parse_address("[::1]"), some("::1", 22));
        for wrong in
            ["", ":22", "host:", "host:0", "host:66000", "a b:22", "[::1", "[::1]22", "::1", "user@host:22"]
        {
            assert_eq!(parse_address(wrong), None, "{wrong}");
        }
    }
}
