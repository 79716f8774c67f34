//! The stream under the HTTP engine: a client's bytes in, bytes that passed the gate out. Knows one
//! connection's deadlines, its gate and its buffers; must not know routes or answers beyond the
//! gate's own refusals. It exists because the engine's own stream has no whole-head deadline,
//! no write deadline and a lenient parser behind it.

mod h2;

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, BufMut, BytesMut};
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::tls::SslDigest;
use pingora_core::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest,
    UniqueID,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use crate::listen::answer;
use crate::listen::connection::Connection;
use crate::listen::gate::{Gate, Next};
use crate::listen::head::{Fault, Limits};
use crate::listen::io::Io;
use crate::listen::pace::Pace;
use crate::listen::report::Report;
use crate::listen::uploads::Event;
use h2::{H2, reset};

/// Written together until the engine flushes: head and body in one TLS record, one system call.
const COALESCE: usize = 16 * 1024;

/// How long a client may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// A whole head, and an HTTP/2 preface or header block.
    pub head: Duration,
    /// Between requests of a connection.
    pub idle: Duration,
    /// For the next byte of an HTTP/2 body that nobody waits for any more: its answer is sent.
    pub body: Duration,
    /// To take bytes that we send.
    pub write: Duration,
    /// Of an HTTP/1 body, in bytes a second; `body` is how far it may fall behind. 0 demands nothing.
    pub rate: u64,
}

/// What is left of a connection when the engine lets go of it.
#[derive(Debug)]
pub struct Remains {
    /// The connection itself.
    pub io: Io,
    /// Bytes written and not flushed.
    pub unsent: BytesMut,
}

/// One connection as the engine sees it.
pub struct EdgeStream {
    /// `None` only while dropping.
    io: Option<Io>,
    remains: Option<oneshot::Sender<Remains>>,
    connection: Arc<Connection>,
    report: Report,
    patience: Patience,
    protocol: Protocol,
    deadline: Option<(Waiting, Pin<Box<Sleep>>)>,
    pace: Pace,
    /// Since when we have been waiting for more of a body.
    waiting: Option<Instant>,
    since: Instant,
    /// Where the clock of `uploads` starts.
    began: Instant,
    ended: bool,
    refused: bool,
    out: BytesMut,
    stall: Option<Pin<Box<Sleep>>>,
    proxy_digest: Arc<ProxyDigest>,
    socket_digest: Arc<SocketDigest>,
    ssl_digest: Option<Arc<SslDigest>>,
    fd: i32,
}

enum Protocol {
    H1(Gate),
    H2(Box<H2>),
}

/// What a read deadline is about; it restarts only when that changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waiting {
    Request,
    Head,
}

/// What the engine asks of a connection besides its bytes.
#[derive(Debug)]
pub(crate) struct Digests {
    pub(crate) proxy: Arc<ProxyDigest>,
    pub(crate) socket: Arc<SocketDigest>,
    /// `None` in clear.
    pub(crate) ssl: Option<Arc<SslDigest>>,
    pub(crate) fd: i32,
}

impl EdgeStream {
    /// Wraps a connection whose handshake is done. What the engine leaves of it comes back
    /// through the receiver, so that the connection can be closed in order.
    pub(crate) fn new(
        io: Io,
        connection: Arc<Connection>,
        report: Report,
        patience: Patience,
        limits: Limits,
        digests: Digests,
    ) -> (Self, oneshot::Receiver<Remains>) {
        let (remains, receiver) = oneshot::channel();
        let protocol = if connection.is_h2() {
            Protocol::H2(Box::new(H2::new(&limits)))
        } else {
            Protocol::H1(Gate::new(limits))
        };
        let stream = Self {
            io: Some(io),
            remains: Some(remains),
            connection,
            report,
            patience,
            protocol,
            deadline: None,
            pace: Pace::new(patience.rate, patience.body),
            waiting: None,
            since: Instant::now(),
            began: Instant::now(),
            ended: false,
            refused: false,
            out: BytesMut::new(),
            stall: None,
            proxy_digest: digests.proxy,
            socket_digest: digests.socket,
            ssl_digest: digests.ssl,
            fd: digests.fd,
        };
        (stream, receiver)
    }

    fn poll_read_h1(&mut self, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.refused {
                return self.poll_refusal_out(cx);
            }
            let (Protocol::H1(gate), Some(io)) = (&mut self.protocol, &mut self.io) else {
                return Poll::Ready(Err(gone()));
            };
            if self.connection.is_tunnel() {
                gate.tunnel();
            }
            let next = match gate.advance(self.connection.turns()) {
                Ok(Next::Release(count)) => {
                    gate.take(into, count.min(into.remaining()));
                    self.connection.heads_released(gate.heads());
                    self.deadline = None;
                    return Poll::Ready(Ok(()));
                }
                Ok(next) => next,
                Err(fault) => match self.refuse(fault) {
                    Ok(()) => continue,
                    Err(error) => return Poll::Ready(Err(error)),
                },
            };
            if self.ended || !gate.has_room() {
                return self.ended_while(next);
            }
            match tokio_util::io::poll_read_buf(Pin::new(io), cx, gate.space()) {
                Poll::Ready(Ok(0)) => {
                    self.ended = true;
                    return self.ended_while(next);
                }
                Poll::Ready(Ok(_)) if next == Next::AwaitRequest => self.since = Instant::now(),
                Poll::Ready(Ok(count)) => {
                    let waited = self.waiting.take().map_or(Duration::ZERO, |since| since.elapsed());
                    if next == Next::AwaitBody
                        && self.pace.moved(count, waited).is_err()
                        && let Err(error) = self.refuse(Fault::TooSlow)
                    {
                        return Poll::Ready(Err(error));
                    }
                }
                Poll::Ready(Err(error)) => {
                    self.ended = true;
                    // A client that closes without TLS's farewell has closed all the same.
                    return if next == Next::AwaitBody {
                        Poll::Ready(Err(error))
                    } else {
                        self.ended_while(next)
                    };
                }
                // Asked to leave, and nothing of a request is here: the engine hears the end.
                Poll::Pending if next == Next::AwaitRequest && self.connection.presence.is_leaving() => {
                    self.ended = true;
                    return Poll::Ready(Ok(()));
                }
                Poll::Pending => {
                    match next {
                        // Nobody drips who speaks another protocol.
                        Next::AwaitBody if !self.connection.is_tunnel() => {
                            self.waiting.get_or_insert_with(Instant::now);
                        }
                        Next::AwaitRequest => self.pace.begin(),
                        _ => {}
                    }
                    ready!(self.poll_deadline(cx, next));
                    match next {
                        Next::AwaitHead => {
                            if let Err(error) = self.refuse(Fault::Timeout) {
                                return Poll::Ready(Err(error));
                            }
                        }
                        _ => return Poll::Ready(Ok(())),
                    }
                }
            }
        }
    }

    /// Nothing more comes (or nothing more is read now): what does the engine hear?
    fn ended_while(&mut self, next: Next) -> Poll<io::Result<()>> {
        let Protocol::H1(gate) = &self.protocol else { return Poll::Ready(Ok(())) };
        match next {
            // A pipelined request is still to be answered; the engine asks again at its turn.
            Next::AwaitTurn if !gate.held().is_empty() => Poll::Pending,
            Next::AwaitHead => {
                // What edge itself cut for a ban is no offence of the client.
                if !self.connection.presence.is_cut() {
                    let took = self.since.elapsed();
                    self.report.malformed(&self.connection, Fault::Truncated, gate.held(), took);
                }
                self.protocol_forgets();
                Poll::Ready(Ok(()))
            }
            _ => Poll::Ready(Ok(())),
        }
    }

    /// After its line in the log a broken head is forgotten, so that it is never reported twice.
    fn protocol_forgets(&mut self) {
        if let Protocol::H1(gate) = &mut self.protocol {
            gate.space().clear();
        }
    }

    /// Pending while there is time; ready when the client has used up its time.
    fn poll_deadline(&mut self, cx: &mut Context<'_>, next: Next) -> Poll<()> {
        let Protocol::H1(gate) = &self.protocol else { return Poll::Pending };
        let first = gate.heads() == 0;
        let waiting = match next {
            Next::AwaitRequest if !first => Waiting::Request,
            // The first head's time begins with the connection.
            Next::AwaitRequest | Next::AwaitHead => Waiting::Head,
            Next::Release(_) | Next::AwaitBody | Next::AwaitTurn => {
                self.deadline = None;
                return Poll::Pending;
            }
        };
        let limit = if waiting == Waiting::Head { self.patience.head } else { self.patience.idle };
        self.poll_timer(cx, waiting, limit)
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>, waiting: Waiting, limit: Duration) -> Poll<()> {
        match &mut self.deadline {
            Some((about, timer)) if *about == waiting => timer.as_mut().poll(cx),
            _ => {
                self.since = Instant::now();
                let (_, timer) = self.deadline.insert((waiting, Box::pin(sleep(limit))));
                timer.as_mut().poll(cx)
            }
        }
    }

    /// In a head: answers it here, since the engine has seen nothing. In a body: an error, which
    /// the request's phases answer and log.
    fn refuse(&mut self, fault: Fault) -> io::Result<()> {
        let Protocol::H1(gate) = &self.protocol else { return Ok(()) };
        if gate.in_body() {
            self.connection.broke(fault);
            self.ended = true;
            return Err(io::Error::new(io::ErrorKind::InvalidData, fault));
        }
        self.report.malformed(&self.connection, fault, gate.held(), self.since.elapsed());
        self.protocol_forgets();
        self.ended = true;
        self.refused = true;
        self.deadline = None;
        self.out.put(&answer::refusal(fault)[..]);
        Ok(())
    }

    fn poll_refusal_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_all_out(cx))?;
        Poll::Ready(Ok(()))
    }

    fn poll_read_h2(&mut self, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (Protocol::H2(h2), Some(io)) = (&mut self.protocol, &mut self.io) else {
            return Poll::Ready(Err(gone()));
        };
        if !h2.verdict.is_empty() {
            let count = h2.verdict.len().min(into.remaining());
            into.put_slice(&h2.verdict.split_to(count));
            return Poll::Ready(Ok(()));
        }
        let before = into.filled().len();
        match Pin::new(io).poll_read(cx, into) {
            Poll::Pending if h2.received.must_go_on() => {
                let limit = self.patience.head;
                ready!(self.poll_timer(cx, Waiting::Head, limit));
                if let Protocol::H2(h2) = &mut self.protocol {
                    h2.timed_out = true;
                }
                Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "preface or header block not complete in time",
                )))
            }
            Poll::Pending => {
                self.deadline = None;
                ready!(self.poll_overdue(cx))?;
                self.poll_read_h2(cx, into)
            }
            Poll::Ready(result) => {
                let now = self.began.elapsed();
                if !h2.take_in(into.filled().get(before..).unwrap_or_default(), now) {
                    self.out.extend(h2.farewell());
                    into.set_filled(before);
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "flooded")));
                }
                if !h2.received.must_go_on() {
                    self.deadline = None;
                }
                Poll::Ready(result)
            }
        }
    }

    /// Pending while no body of an answered request has stood still for too long; ready when a
    /// verdict about one lies there for the engine. In the midst of a frame there is no place for
    /// one, and nothing else of the connection can move either: that is an error.
    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = ready!(self.poll_due(cx));
        let Protocol::H2(h2) = &mut self.protocol else { return Poll::Pending };
        h2.overdue = None;
        if !h2.received.between_frames() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "request body stopped coming")));
        }
        h2.uploads.note(Event::Ended(stream), self.began.elapsed());
        h2.verdict = reset(stream);
        Poll::Ready(Ok(()))
    }

    /// Ready with the stream whose time is up.
    fn poll_due(&mut self, cx: &mut Context<'_>) -> Poll<u32> {
        let Protocol::H2(h2) = &mut self.protocol else { return Poll::Pending };
        let Some((stream, last)) = h2.uploads.longest() else {
            h2.overdue = None;
            return Poll::Pending;
        };
        let due = self.began + last + self.patience.body;
        let timer = h2.overdue.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if timer.deadline() != due {
            timer.as_mut().reset(due);
        }
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(stream)
    }

    /// Everything written so far goes to the socket.
    fn poll_all_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        let Some(io) = &mut self.io else { return Poll::Ready(Err(gone())) };
        let flushed = Pin::new(io).poll_flush(cx);
        self.in_time(cx, flushed)
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let Some(io) = &mut self.io else { return Poll::Ready(Err(gone())) };
            let written = Pin::new(io).poll_write(cx, &self.out);
            match ready!(self.in_time(cx, written))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.out.advance(count),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// A write that stands still too long is an error.
    fn in_time<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.stall = None;
            return result;
        }
        let limit = self.patience.write;
        let timer = self.stall.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes no data")))
    }
}

fn gone() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

impl AsyncRead for EdgeStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if into.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        match this.protocol {
            Protocol::H1(_) => this.poll_read_h1(cx, into),
            Protocol::H2(_) => this.poll_read_h2(cx, into),
        }
    }
}

impl AsyncWrite for EdgeStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.out.len() + data.len() > COALESCE {
            ready!(this.poll_drain(cx))?;
        }
        let count = if data.len() < COALESCE {
            if this.out.capacity() == 0 {
                // One allocation an answer, whatever small parts the engine writes it in.
                this.out.reserve(data.len().max(2048));
            }
            this.out.put(data);
            data.len()
        } else {
            let Some(io) = &mut this.io else { return Poll::Ready(Err(gone())) };
            let written = Pin::new(io).poll_write(cx, data);
            ready!(this.in_time(cx, written))?
        };
        if let Protocol::H2(h2) = &mut this.protocol {
            let now = this.began.elapsed();
            h2.put_out(data.get(..count).unwrap_or_default(), now);
            // The engine reads before it writes and may not be woken again: the timer starts here.
            if this.poll_due(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
        }
        Poll::Ready(Ok(count))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let mut count = 0;
        for part in parts {
            // What does not fit is written by the next call; nothing is refused half-way.
            if count > 0 && this.out.len() + part.len() > COALESCE {
                break;
            }
            match Pin::new(&mut *this).poll_write(cx, part) {
                Poll::Ready(Ok(written)) => {
                    count += written;
                    if written < part.len() {
                        break;
                    }
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if count > 0 => break,
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_all_out(cx))?;
        // An idle connection keeps no memory.
        this.out = BytesMut::new();
        Poll::Ready(Ok(()))
    }

    /// Only flushes: the closing itself, with TLS's farewell, follows when the engine lets go.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_all_out(cx)
    }
}

impl Drop for EdgeStream {
    fn drop(&mut self) {
        if let Protocol::H2(h2) = &self.protocol {
            h2.report(&self.connection, &self.report);
        }
        if let (Some(io), Some(remains)) = (self.io.take(), self.remains.take()) {
            // Nobody may wait any more: then the socket just closes.
            let _ = remains.send(Remains { io, unsent: std::mem::take(&mut self.out) });
        }
    }
}

impl fmt::Debug for EdgeStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connection from {}", self.connection.peer)
    }
}

#[async_trait]
impl Shutdown for EdgeStream {
    async fn shutdown(&mut self) {
        let peer = self.connection.peer;
        if let Err(error) = tokio::io::AsyncWriteExt::flush(self).await {
            tracing::debug!("{peer}: last bytes not delivered: {error}");
        }
    }
}

impl UniqueID for EdgeStream {
    fn id(&self) -> i32 {
        self.fd
    }
}

impl Ssl for EdgeStream {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.ssl_digest.clone()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        Some(if self.connection.is_h2() { ALPN::H2 } else { ALPN::H1 })
    }
}

impl GetTimingDigest for EdgeStream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for EdgeStream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        Some(Arc::clone(&self.proxy_digest))
    }
}

impl GetSocketDigest for EdgeStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(Arc::clone(&self.socket_digest))
    }
}

impl Peek for EdgeStream {}
