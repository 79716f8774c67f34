//! Tells systemd where edge is in its life (`sd_notify(3)`): one datagram to the socket that
//! `NOTIFY_SOCKET` names. Without that variable it does nothing.

use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// What is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// Clients are served.
    Ready,
    /// Nothing new is taken; what is under way goes on.
    Stopping,
}

/// Tells it. A supervisor that cannot be reached is a warning: the service itself is well.
pub fn tell(life: Life) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(&socket, life) {
        tracing::warn!("systemd: {}: {error}; it may think that edge does not answer", socket.display());
    }
}

fn send(socket: &OsStr, life: Life) -> std::io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    let text: &[u8] = match life {
        Life::Ready => b"READY=1",
        Life::Stopping => b"STOPPING=1",
    };
    UnixDatagram::unbound()?.send_to_addr(text, &address).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_arrives_at_the_named_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let supervisor = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), Life::Ready).unwrap();
        let mut text = [0; 32];
        let count = supervisor.recv(&mut text).unwrap();
        assert_eq!(&text[..count], b"READY=1");
    }
}
