//! Listening sockets. Knows socket options; must not know who connects.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use crate::listen::ListenError;

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: i32 = 4096;

/// One listener a thread on `address`, all sharing it.
///
/// # Errors
/// The address is in use by another program, not this host's, or not permitted.
pub fn listeners(address: SocketAddr, threads: usize) -> Result<Vec<TcpListener>, ListenError> {
    // With SO_REUSEPORT a second edge of the same user would silently share the port and take half
    // of the connections: look first whether anybody else has it.
    probe(address)?;
    let mut listeners = Vec::with_capacity(threads);
    let mut address = address;
    for _ in 0..threads.max(1) {
        let listener = listener(address)?;
        if address.port() == 0 {
            // Port 0 is chosen once and shared.
            address = listener.local_addr().map_err(failed(address, "its port cannot be read"))?;
        }
        listeners.push(listener);
    }
    Ok(listeners)
}

/// Can the address be had?
///
/// # Errors
/// It cannot.
pub fn probe(address: SocketAddr) -> Result<(), ListenError> {
    let socket = socket(address)?;
    socket.bind(&address.into()).map_err(failed(address, "cannot be bound"))?;
    socket.listen(1).map_err(failed(address, "cannot listen"))
}

fn listener(address: SocketAddr) -> Result<TcpListener, ListenError> {
    let socket = socket(address)?;
    socket.set_reuse_port(true).map_err(failed(address, "cannot be shared by the threads"))?;
    socket.bind(&address.into()).map_err(failed(address, "cannot be bound"))?;
    socket.listen(BACKLOG).map_err(failed(address, "cannot listen"))?;
    Ok(socket.into())
}

fn socket(address: SocketAddr) -> Result<Socket, ListenError> {
    let set_up = || -> std::io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            // `[::]` and `0.0.0.0` on one port are two listeners, each with its own addresses.
            socket.set_only_v6(true)?;
        }
        socket.set_nonblocking(true)?;
        // Accepted connections inherit both.
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_keepalive(
            &TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(20)),
        )?;
        Ok(socket)
    };
    set_up().map_err(failed(address, "no socket for it"))
}

fn failed(address: SocketAddr, what: &'static str) -> impl Fn(std::io::Error) -> ListenError {
    move |source| ListenError::Socket { address, what, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_in_use_is_refused_by_name() {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = held.local_addr().unwrap();
        let error = listeners(address, 2).unwrap_err().to_string();
        assert!(error.contains(&address.to_string()) && error.contains("cannot be bound"), "{error}");
    }

    #[test]
    fn threads_share_one_port() {
        let shared = listeners("127.0.0.1:0".parse().unwrap(), 3).unwrap();
        let ports: Vec<u16> = shared.iter().map(|one| one.local_addr().unwrap().port()).collect();
        assert_eq!(ports.len(), 3);
        assert!(ports.windows(2).all(|pair| pair[0] == pair[1]));
    }
}
