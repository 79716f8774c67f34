//! Which addresses this edge listens on itself, so that no two sections want the same and no
//! upstream leads back here. Pure; must not know what is served there.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use shared::config::Section;

/// What has been given out, and to which key.
#[derive(Debug, Default)]
pub(super) struct Taken {
    tcp: Vec<(SocketAddr, String)>,
    sockets: Vec<(PathBuf, String)>,
}

impl Taken {
    /// Notes `address` as wanted by `section`'s `key`, whose full name is `owner`; a fault
    /// where it cannot be had.
    pub(super) fn take_tcp(
        &mut self,
        section: &mut Section<'_>,
        key: &'static str,
        owner: &str,
        address: SocketAddr,
    ) {
        if address.port() == 0 {
            section.fault(key, format!("\"{address}\" is another port at every start; write the port"));
            return;
        }
        if let Some((other, taker)) = self.tcp.iter().find(|(other, _)| overlap(*other, address)) {
            let what = match taker == owner {
                true if *other == address => format!("\"{address}\" stands here twice; write it once"),
                _ => format!("\"{address}\" is taken by {taker} = \"{other}\"; write another port"),
            };
            section.fault(key, what);
        }
        self.tcp.push((address, owner.to_owned()));
    }

    /// The same for a Unix socket.
    pub(super) fn take_socket(
        &mut self,
        section: &mut Section<'_>,
        key: &'static str,
        owner: &str,
        path: &Path,
    ) {
        if !path.is_absolute() {
            section.fault(
                key,
                format!("\"{}\" depends on the working folder; write a path from /", path.display()),
            );
        } else if let Some((_, taker)) = self.sockets.iter().find(|(other, _)| other == path) {
            section.fault(key, format!("\"{}\" is taken by {taker}; write another path", path.display()));
        }
        self.sockets.push((path.to_owned(), owner.to_owned()));
    }

    /// Who listens at `address`, if this edge does.
    pub(super) fn tcp_taker(&self, address: SocketAddr) -> Option<&str> {
        let loops = |own: SocketAddr| {
            own == address
                || own.port() == address.port() && own.ip().is_unspecified() && address.ip().is_loopback()
        };
        self.tcp.iter().find(|(own, _)| loops(*own)).map(|(_, taker)| taker.as_str())
    }

    /// Who listens on the socket `path`, if this edge does.
    pub(super) fn socket_taker(&self, path: &Path) -> Option<&str> {
        self.sockets.iter().find(|(own, _)| own == path).map(|(_, taker)| taker.as_str())
    }
}

/// The kernel would let two listeners share these, and spread connections over both.
/// `[::]` and `0.0.0.0` do not overlap: IPv6 listeners take IPv6 only.
fn overlap(left: SocketAddr, right: SocketAddr) -> bool {
    let same_ip = left.ip() == right.ip() || left.ip().is_unspecified() || right.ip().is_unspecified();
    left.port() == right.port() && left.is_ipv4() == right.is_ipv4() && same_ip
}
