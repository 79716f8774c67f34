//! The end of a connection whose caller is still sending a body that is already refused. Closing
//! with unread bytes resets a connection, and the caller would never see the answer: so after the
//! last word of this side its bytes are taken and thrown away, for a while. Knows no HTTP.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// Who has not seen the answer by then will not.
const LONGEST: Duration = Duration::from_secs(2);
/// Nor whoever has sent this much since.
const MOST: usize = 64 << 20;
const PIECE: usize = 16 << 10;

/// Was a body left unread on this connection? Shared by the connection and its bodies.
#[derive(Debug, Clone, Default)]
pub(super) struct Unread(Arc<AtomicBool>);

impl Unread {
    /// A body was.
    pub(super) fn note(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_noted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// See the module.
pub(super) struct Lingering<S> {
    inner: S,
    unread: Unread,
    /// Since this side has said its last word.
    until: Option<Pin<Box<Sleep>>>,
    left: usize,
}

impl<S> Lingering<S> {
    /// Lingers at its end where `unread` says that it must.
    pub(super) const fn new(inner: S, unread: Unread) -> Self {
        Self { inner, unread, until: None, left: MOST }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Lingering<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lingering<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.until.is_none() {
            ready!(Pin::new(&mut this.inner).poll_shutdown(context))?;
            if !this.unread.is_noted() {
                return Poll::Ready(Ok(()));
            }
        }
        let until = this.until.get_or_insert_with(|| Box::pin(tokio::time::sleep(LONGEST)));
        let mut piece = [0; PIECE];
        while this.left > 0 && until.as_mut().poll(context).is_pending() {
            let mut buffer = ReadBuf::new(&mut piece);
            match ready!(Pin::new(&mut this.inner).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {
                    this.left = this.left.saturating_sub(buffer.filled().len());
                }
                // It has closed, or broken off: it knows enough.
                _ => break,
            }
        }
        this.left = 0;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// What a caller sees that sends 32 MiB while the other side answers and reads nothing.
    async fn seen(unread: Unread) -> io::Result<Vec<u8>> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let mut caller = TcpStream::connect(listener.local_addr()?).await?;
        let (server, _) = listener.accept().await?;
        let answering = tokio::spawn(async move {
            let mut server = Lingering::new(server, unread);
            server.write_all(b"too large").await?;
            server.shutdown().await
        });
        caller.write_all(&vec![0; 32 << 20]).await?;
        caller.shutdown().await?;
        let mut told = Vec::new();
        caller.read_to_end(&mut told).await?;
        answering.await??;
        Ok(told)
    }

    #[tokio::test]
    async fn a_caller_that_is_still_sending_sees_the_answer() {
        let unread = Unread::default();
        unread.note();
        assert_eq!(seen(unread).await.unwrap(), b"too large");
        let reset = seen(Unread::default()).await;
        assert!(reset.is_err(), "without it the connection is reset: {reset:?}");
    }

    #[tokio::test]
    async fn a_caller_that_never_ends_is_not_waited_for() {
        let (endless, server) = tokio::io::duplex(1024);
        let (mut from, mut to) = tokio::io::split(endless);
        let sending = tokio::spawn(async move { while to.write_all(&[0; 1024]).await.is_ok() {} });
        let unread = Unread::default();
        unread.note();
        let begun = tokio::time::Instant::now();
        let (_silent, to_silent) = tokio::io::duplex(1);
        Lingering::new(to_silent, unread.clone()).shutdown().await.unwrap();
        let mut server = Lingering::new(server, unread);
        server.shutdown().await.unwrap();
        assert!(begun.elapsed() < 3 * LONGEST);
        drop(server);
        assert_eq!(from.read(&mut [0; 8]).await.unwrap(), 0);
        sending.await.unwrap();
    }
}
