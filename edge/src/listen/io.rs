//! A client's bytes, through TLS or in clear. Knows both kinds of connection; must not know what is
//! said. It exists so that the stream above is one and the same for every listener.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use rustls::ServerConnection;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::server::TlsStream;

use crate::listen::wire::Wire;

/// A connection that stands.
#[derive(Debug)]
pub enum Io {
    /// Its handshake is done.
    Tls(Box<TlsStream<Wire>>),
    /// In clear.
    Clear(Wire),
}

impl Io {
    /// The socket below.
    #[must_use]
    pub fn wire(&self) -> &Wire {
        match self {
            Self::Tls(tls) => tls.get_ref().0,
            Self::Clear(wire) => wire,
        }
    }

    /// The same, to read what is no longer understood.
    pub fn wire_mut(&mut self) -> &mut Wire {
        match self {
            Self::Tls(tls) => tls.get_mut().0,
            Self::Clear(wire) => wire,
        }
    }

    /// What the handshake agreed on; `None` in clear.
    #[must_use]
    pub fn tls(&self) -> Option<&ServerConnection> {
        match self {
            Self::Tls(tls) => Some(tls.get_ref().1),
            Self::Clear(_) => None,
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, into),
            Self::Clear(wire) => Pin::new(wire).poll_read(cx, into),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, data),
            Self::Clear(wire) => Pin::new(wire).poll_write(cx, data),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, parts),
            Self::Clear(wire) => Pin::new(wire).poll_write_vectored(cx, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
            Self::Clear(wire) => Pin::new(wire).poll_flush(cx),
        }
    }

    /// Says farewell where there is one, and that nothing more is sent.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
            Self::Clear(wire) => Pin::new(wire).poll_shutdown(cx),
        }
    }
}
