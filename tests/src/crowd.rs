//! Many bare TCP connections of one host, held open and watched: who got in, who was turned
//! away, who has been cut since. Speaks nothing over them; must not know why they end.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Context;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::netns::{Host, Lab};

/// The connections of one host to one door.
#[derive(Debug)]
pub struct Crowd {
    streams: Vec<TcpStream>,
    /// Those that were answered with a reset before they were open.
    pub refused: usize,
    /// Those that nobody answered in time.
    pub silent: usize,
}

impl Crowd {
    /// Opens `count` connections from `host` at once, each within `patience`; from `source`, one
    /// of the host's own addresses, or from the one it uses by itself.
    ///
    /// # Errors
    /// Anything else than being refused or ignored.
    pub fn open(
        lab: &Lab,
        host: Host,
        source: Option<IpAddr>,
        door: SocketAddr,
        count: usize,
        patience: Duration,
    ) -> anyhow::Result<Self> {
        let tries: Vec<_> = lab.inside(host, || {
            std::thread::scope(|scope| {
                let runners: Vec<_> =
                    (0..count).map(|_| scope.spawn(|| dial(source, door, patience))).collect();
                let joined = runners.into_iter().map(std::thread::ScopedJoinHandle::join);
                joined.map(|done| done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
            })
        })?;
        let mut crowd = Self { streams: Vec::new(), refused: 0, silent: 0 };
        for tried in tries {
            match tried {
                Ok(stream) => crowd.streams.push(stream),
                Err(error) if error.kind() == ErrorKind::TimedOut => crowd.silent += 1,
                Err(error)
                    if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset) =>
                {
                    crowd.refused += 1;
                }
                Err(error) => return Err(error).with_context(|| format!("{host:?} to {door}")),
            }
        }
        Ok(crowd)
    }

    /// How many are open now. A connection that is reset just after its handshake counts only
    /// until the reset has arrived, so poll.
    #[must_use]
    pub fn alive(&self) -> usize {
        self.streams.iter().filter(|stream| is_alive(stream)).count()
    }

    /// How many were open once and are no longer.
    #[must_use]
    pub fn cut(&self) -> usize {
        self.streams.len() - self.alive()
    }

    /// Closes `count` of those that are open, as a client does that has what it wanted.
    pub fn close(&mut self, count: usize) {
        let mut left = count;
        self.streams.retain(|stream| {
            let closes = left > 0 && is_alive(stream);
            left -= usize::from(closes);
            !closes
        });
    }
}

/// A connection to `door`, from `source` where it says so.
///
/// # Errors
/// Refused, not answered within `patience`, or the source is none of this host's addresses.
pub fn dial(source: Option<IpAddr>, door: SocketAddr, patience: Duration) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(door), Type::STREAM, Some(Protocol::TCP))?;
    if let Some(source) = source {
        socket.bind(&SockAddr::from(SocketAddr::new(source, 0)))?;
    }
    socket.connect_timeout(&SockAddr::from(door), patience)?;
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Has the other side neither closed nor reset it?
#[must_use]
pub fn is_alive(stream: &TcpStream) -> bool {
    if stream.set_nonblocking(true).is_err() {
        return false;
    }
    let alive = match stream.peek(&mut [0]) {
        Ok(count) => count > 0,
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    };
    alive && stream.set_nonblocking(false).is_ok()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::wait;

    const SHORT: Duration = Duration::from_millis(700);
    const SOON: Duration = Duration::from_secs(10);

    /// Rules as a firewall could have them: port 1 refuses, port 2 is silent.
    fn guard(lab: &Lab) {
        let rules = "table inet story {\n\
             \tset banned { type ipv4_addr; }\n\
             \tchain early { type filter hook prerouting priority raw; ip saddr @banned drop; }\n\
             \tchain input { type filter hook input priority filter; tcp dport 2 drop; }\n}\n";
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), rules).unwrap();
        assert!(lab.command(Host::Edge, "nft").arg("-f").arg(file.path()).status().unwrap().success());
    }

    #[test]
    fn a_crowd_tells_open_refused_silent_and_cut_apart() {
        let lab = Lab::build().unwrap();
        guard(&lab);
        let edge = Host::Edge.address();
        let listener = lab.inside(Host::Edge, || TcpListener::bind((edge, 0)).unwrap()).unwrap();
        let door = listener.local_addr().unwrap();
        let office = Host::Office.v4();
        let second = office.get(1).copied().map(IpAddr::V4);

        let mut crowd = Crowd::open(&lab, Host::Office, second, door, 5, SOON).unwrap();
        assert_eq!((crowd.alive(), crowd.refused, crowd.silent), (5, 0, 0));
        let served: Vec<_> = (0..5).map(|_| listener.accept().unwrap()).collect();
        assert!(served.iter().all(|(_, peer)| Some(peer.ip()) == second), "{served:?}");
        let mut served = served.into_iter();
        drop((served.next(), served.next()));
        wait::until("two have been cut", SOON, || {
            anyhow::ensure!(crowd.cut() == 2, "{} cut", crowd.cut());
            Ok(())
        })
        .unwrap();
        crowd.close(2);
        assert_eq!((crowd.alive(), crowd.cut()), (1, 2));

        let closed = Crowd::open(&lab, Host::Office, None, SocketAddr::new(edge, 1), 3, SOON).unwrap();
        assert_eq!((closed.alive(), closed.refused, closed.silent), (0, 3, 0));
        let dropped = Crowd::open(&lab, Host::Office, None, SocketAddr::new(edge, 2), 3, SHORT).unwrap();
        assert_eq!((dropped.alive(), dropped.refused, dropped.silent), (0, 0, 3));
    }

    #[test]
    fn a_banned_crowd_is_neither_refused_nor_closed_but_ignored() {
        let lab = Lab::build().unwrap();
        guard(&lab);
        let listener =
            lab.inside(Host::Edge, || TcpListener::bind((Host::Edge.address(), 0)).unwrap()).unwrap();
        let door = listener.local_addr().unwrap();
        let before = Crowd::open(&lab, Host::Attacker, None, door, 2, SOON).unwrap();
        let ban = format!("add element inet story banned {{ {} }}", Host::Attacker.address());
        let nft: &mut Command = &mut lab.command(Host::Edge, "nft");
        assert!(nft.arg(ban).stdout(Stdio::null()).status().unwrap().success());
        let after = Crowd::open(&lab, Host::Attacker, None, door, 2, SHORT).unwrap();
        assert_eq!((after.alive(), after.refused, after.silent), (0, 0, 2));
        // The kernel alone stalls what is open; it takes edge to cut it.
        assert_eq!(before.alive(), 2);
    }
}
