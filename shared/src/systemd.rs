//! Tells systemd where a program is in its life (`sd_notify(3)`): one datagram to the socket
//! that `NOTIFY_SOCKET` names, nothing without it. Knows the words, not when to say them.

use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// What is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life<'a> {
    /// Callers are served; carries one line for `systemctl status`.
    Ready(&'a str),
    /// Nothing new is taken; what is under way goes on.
    Stopping,
}

/// Tells it. A supervisor that cannot be reached is a warning: the service itself is well.
pub fn tell(life: Life<'_>) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(&socket, life) {
        tracing::warn!("systemd: {}: {error}; it may think that nobody answers", socket.display());
    }
}

fn send(socket: &OsStr, life: Life<'_>) -> std::io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    let text = match life {
        Life::Ready(status) => format!("READY=1\nSTATUS={}", status.replace('\n', " ")),
        Life::Stopping => "STOPPING=1".to_owned(),
    };
    let datagram = UnixDatagram::unbound()?;
    datagram.set_nonblocking(true)?;
    datagram.send_to_addr(text.as_bytes(), &address).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_arrives_at_the_named_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let supervisor = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), Life::Ready("serving\nwell")).unwrap();
        let mut text = [0; 64];
        let count = supervisor.recv(&mut text).unwrap();
        assert_eq!(&text[..count], b"READY=1\nSTATUS=serving well");
    }
}
