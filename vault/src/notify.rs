//! Tells systemd how the program is (sd_notify(3)): one datagram to the socket that
//! `NOTIFY_SOCKET` names, nothing without it. Knows the words, not when to say them.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// What systemd is told.
#[derive(Debug, Clone, Copy)]
pub enum State<'a> {
    /// The listeners are open; carries one line for `systemctl status`.
    Ready(&'a str),
    /// Draining.
    Stopping,
}

/// Says it; a service manager that does not listen is no reason to fail.
pub fn tell(state: State<'_>) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let text = match state {
        State::Ready(status) => format!("READY=1\nSTATUS={}", status.replace('\n', " ")),
        State::Stopping => "STOPPING=1".to_owned(),
    };
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(&socket),
    };
    let sent = address.and_then(|address| {
        let datagram = UnixDatagram::unbound()?;
        datagram.set_nonblocking(true)?;
        datagram.send_to_addr(text.as_bytes(), &address)
    });
    if let Err(error) = sent {
        tracing::warn!("systemd was not told {text:?}: {error}");
    }
}
