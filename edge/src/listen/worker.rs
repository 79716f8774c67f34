//! One thread's part: accepts, shakes hands, hands connections to the engine, and closes them in
//! order. Knows sockets and deadlines; must not know HTTP beyond the stream it builds.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use pingora_core::protocols::SocketDigest;
use pingora_core::protocols::l4::socket::SocketAddr as EngineAddress;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::tls::SslDigest;
use pingora_http::ResponseHeader;
use shared::shutdown::Shutdown;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_rustls::server::TlsStream;
use tokio_util::task::TaskTracker;

use crate::config::{Listener, Mode};
use crate::listen::connection::Connection;
use crate::listen::head::Limits;
use crate::listen::io::Io;
use crate::listen::proxy_header::{self, HeaderFault, Said};
use crate::listen::stream::{Digests, EdgeStream, Patience, Remains};
use crate::listen::wire::Wire;
use crate::listen::{Arrival, Door, Entered, ListenError};

/// What a client that was refused may still send before its connection is cut.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 1024 * 1024;

/// How long a client whose handshake ended after the word to stop may take to ask: its request
/// usually comes with the handshake's last message.
const LATE: Duration = Duration::from_secs(2);

/// One thread's listeners.
#[derive(Debug, Default)]
pub struct Sockets(Vec<(Listener, StdListener)>);

impl Sockets {
    /// One more, open as `listener` says.
    pub fn push(&mut self, listener: Listener, socket: StdListener) {
        self.0.push((listener, socket));
    }
}

/// Serves until `shutdown`, then waits for what is under way, `settings.drain` at most.
/// `serve` drives one connection through the engine and returns when the engine lets go of it;
/// `drain` tells the engine to let idle ones go. Returns how many connections were cut.
///
/// # Errors
/// A listener that the runtime refuses.
pub async fn run<F, D>(
    door: Arc<Door>,
    sockets: Sockets,
    serve: F,
    drain: D,
    shutdown: Shutdown,
) -> Result<usize, ListenError>
where
    F: AsyncServe,
    D: AsyncFnOnce(),
{
    let tracker = TaskTracker::new();
    let mut loops = Vec::new();
    for (listener, socket) in sockets.0 {
        let (door, serve, tracker) = (Arc::clone(&door), serve.clone(), tracker.clone());
        let stop = shutdown.clone();
        let socket = into_tokio(socket)?;
        let loop_door = Arc::clone(&door);
        loops.push(tokio::spawn(accept(socket, listener, loop_door, shutdown.clone(), move |arrival| {
            let (door, stop, serve) = (Arc::clone(&door), stop.clone(), serve.clone());
            let deadline = Instant::now() + door.settings.handshake_timeout;
            if listener.proxy {
                tracker.spawn(async move {
                    let Some(arrival) = proxied(&door, arrival, deadline).await else { return };
                    let Some(entered) = door.enter(arrival, listener.mode) else { return };
                    client(door, listener.mode, entered, deadline, stop, serve).await;
                });
            } else if let Some(entered) = door.enter(arrival, listener.mode) {
                tracker.spawn(client(door, listener.mode, entered, deadline, stop, serve));
            }
        })));
    }
    for accepting in loops {
        if let Err(error) = accepting.await {
            tracing::error!("listen: an accept loop ended early: {error}; this thread's share of it is gone");
        }
    }
    drain().await;
    tracker.close();
    if timeout(door.settings.drain, tracker.wait()).await.is_err() {
        return Ok(tracker.len());
    }
    Ok(0)
}

/// What drives a connection through the engine.
pub trait AsyncServe: Clone + Send + Sync + 'static {
    /// Returns when the engine lets go of the connection.
    fn serve(&self, stream: EdgeStream, connection: Arc<Connection>) -> impl Future<Output = ()> + Send;
}

fn into_tokio(listener: StdListener) -> Result<TcpListener, ListenError> {
    let address = listener.local_addr().unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)));
    TcpListener::from_std(listener).map_err(|source| ListenError::Socket {
        address,
        what: "the runtime refuses it",
        source,
    })
}

async fn accept(
    socket: TcpListener,
    listener: Listener,
    door: Arc<Door>,
    shutdown: Shutdown,
    take: impl Fn(Arrival),
) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = socket.accept() => accepted,
        };
        match accepted {
            Ok((tcp, peer)) => {
                if let Some(arrival) = door.arrive(tcp, peer, listener) {
                    take(arrival);
                }
            }
            // The client left between SYN and accept: its own matter.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                // Out of descriptors or memory: what is open must end before more can come.
                tracing::warn!("listen: no connection taken: {error}; tried again in 50 ms");
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
    // Closing a shared listener resets what waits in its own queue: take those in first.
    while let Some(Ok((tcp, peer))) = futures_util::FutureExt::now_or_never(socket.accept()) {
        if let Some(arrival) = door.arrive(tcp, peer, listener) {
            take(arrival);
        }
    }
}

/// Whom the load balancer speaks for; `None` after the line in the log. Its own other connections are its
/// own.
async fn proxied(door: &Door, mut arrival: Arrival, deadline: Instant) -> Option<Arrival> {
    let fault = match timeout_at(deadline, announced(&mut arrival.wire)).await {
        Ok(Ok(Said::Client(client))) => {
            // Another client than the socket's: it is looked up by its own name.
            if door.is_banned(client) {
                door.turned_away(&arrival.wire, "banned");
                return None;
            }
            return Some(Arrival { peer: client, ..arrival });
        }
        Ok(Ok(Said::Own)) => return Some(arrival),
        // A load balancer's look whether the port is open: nothing was begun.
        Ok(Err(Unannounced::Left { begun: false })) => return None,
        Ok(Err(fault)) => fault.to_string(),
        Err(_) => "not complete in time".to_owned(),
    };
    door.turned_away(&arrival.wire, "proxy_header");
    door.report.turned_away(arrival.peer, "PROXY", &format!("PROXY header: {fault}"));
    None
}

/// Why a connection is nobody's.
#[derive(Debug, thiserror::Error)]
enum Unannounced {
    #[error(transparent)]
    Fault(#[from] HeaderFault),
    #[error("the connection ended in it")]
    Left { begun: bool },
}

/// Takes the PROXY header and not a byte behind it, whatever came together with it.
async fn announced(wire: &mut Wire) -> Result<Said, Unannounced> {
    let mut held = Vec::new();
    let mut part = [0; 512];
    loop {
        let left = |_| Unannounced::Left { begun: !held.is_empty() };
        let count = match wire.peek(&mut part).await.map_err(left)? {
            0 => return Err(Unannounced::Left { begun: !held.is_empty() }),
            count => count,
        };
        let before = held.len();
        held.extend_from_slice(part.get(..count).unwrap_or_default());
        let read = proxy_header::read(&held)?;
        // What makes no whole header yet is all of it the header's.
        let taken = read.map_or(count, |(_, length)| length.saturating_sub(before));
        let of_it = part.get_mut(..taken).unwrap_or_default();
        wire.read_exact(of_it).await.map_err(|_| Unannounced::Left { begun: true })?;
        if let Some((said, _)) = read {
            return Ok(said);
        }
    }
}

async fn client(
    door: Arc<Door>,
    mode: Mode,
    entered: Entered,
    deadline: Instant,
    stop: Shutdown,
    serve: impl AsyncServe,
) {
    let Entered { wire, busy, listed, place } = entered;
    let connection = Arc::clone(listed.connection());
    let io = match mode {
        Mode::Redirect => return redirected(door, Entered { wire, busy, listed, place }).await,
        Mode::Clear => Io::Clear(wire),
        Mode::Tls => match shake_hands(&door, &connection, wire, deadline).await {
            Some(tls) => Io::Tls(Box::new(tls)),
            None => return,
        },
    };
    drop(busy);
    served(&door, io, &connection, &stop, serve).await;
    drop((listed, place));
}

/// `None` after the line in the log.
async fn shake_hands(
    door: &Door,
    connection: &Connection,
    wire: Wire,
    deadline: Instant,
) -> Option<TlsStream<Wire>> {
    let began = Instant::now();
    let shaken = timeout_at(deadline, door.tls.0.accept(wire)).await;
    let why = match shaken {
        Ok(Ok(tls)) => {
            if tls.get_ref().1.alpn_protocol() == Some(b"h2") {
                connection.speaks_h2();
            }
            return Some(tls);
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => "not complete in time".to_owned(),
    };
    // What edge itself cut for a ban is no offence of the client.
    if !connection.presence.is_cut() {
        door.report.handshake_failed(connection.peer, &why, began.elapsed());
    }
    None
}

/// Lets the engine have the connection, and closes it in order.
async fn served(door: &Door, io: Io, connection: &Arc<Connection>, stop: &Shutdown, serve: impl AsyncServe) {
    let Some(digests) = digests(&io, connection) else { return };
    let settings = &door.settings;
    let late = stop.is_cancelled();
    let patience = Patience {
        head: if late { settings.head_timeout.min(LATE) } else { settings.head_timeout },
        idle: settings.idle_timeout,
        body: settings.body_timeout,
        write: settings.write_timeout,
        rate: settings.min_rate.0,
    };
    let (stream, remains) =
        EdgeStream::new(io, Arc::clone(connection), door.report.clone(), patience, limits(door), digests);
    serve.serve(stream, Arc::clone(connection)).await;
    if !connection.is_h2() {
        for _ in 0..connection.refused_by_engine() {
            door.report.refused_by_engine(connection);
        }
    }
    if let Ok(remains) = remains.await
        && !connection.presence.is_cut()
    {
        close(remains).await;
    }
}

fn limits(door: &Door) -> Limits {
    let settings = &door.settings;
    Limits {
        head: settings.max_head.as_usize(),
        headers: settings.max_headers,
        uri: settings.max_uri.as_usize(),
    }
}

fn digests(io: &Io, connection: &Arc<Connection>) -> Option<Digests> {
    let fd = io.wire().as_raw_fd();
    let socket = SocketDigest::from_raw_fd(fd);
    let _ = socket.peer_addr.set(Some(EngineAddress::Inet(connection.peer)));
    // The engine's place for what a proxy in front said; ours for the connection itself.
    let response = ResponseHeader::build(200, Some(0)).ok()?;
    let carried: Box<dyn std::any::Any + Send + Sync> = Box::new(Arc::clone(connection));
    let ssl = io.tls().map(|session| {
        let cipher = session.negotiated_cipher_suite().map(|suite| format!("{:?}", suite.suite()));
        let version = session.protocol_version().map(|version| format!("{version:?}"));
        let (cipher, version) = (cipher.unwrap_or_default(), version.unwrap_or_default());
        Arc::new(SslDigest::new(cipher, version, None, None, Vec::new()))
    });
    Some(Digests {
        proxy: Arc::new(ProxyDigest::new(Box::new(response), Some(carried))),
        socket: Arc::new(socket),
        ssl,
        fd,
    })
}

/// Sends what is left and TLS's farewell, then reads on for a moment: closing a socket with
/// unread bytes resets it, and a reset takes the answer away from a client that still sends.
async fn close(remains: Remains) {
    let Remains { mut io, unsent } = remains;
    let farewell = async {
        io.write_all(&unsent).await?;
        io.shutdown().await
    };
    if !matches!(timeout(LINGER, farewell).await, Ok(Ok(()))) {
        return;
    }
    linger(io.wire_mut()).await;
}

async fn linger(tcp: &mut Wire) {
    let drained = timeout(LINGER, async {
        let mut sink = BytesMut::with_capacity(8192);
        let mut seen = 0;
        while seen < LINGER_BYTES {
            sink.clear();
            match tcp.read_buf(&mut sink).await {
                Ok(0) | Err(_) => break,
                Ok(count) => seen += count,
            }
        }
    });
    // Whether the client closed or the time is up, the socket closes now.
    let _ = drained.await;
}

async fn redirected(door: Arc<Door>, entered: Entered) {
    let Entered { mut wire, busy, listed, place } = entered;
    let patience = door.settings.head_timeout;
    let connection = listed.connection();
    let let_in = || door.let_in(connection);
    door.redirect.serve(&mut wire, connection, &limits(&door), patience, &door.report, let_in).await;
    if !connection.presence.is_cut() && wire.shutdown().await.is_ok() {
        linger(&mut wire).await;
    }
    drop((busy, listed, place));
}
