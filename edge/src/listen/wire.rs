//! A client's socket that two may hold: the connection's task, which reads and writes, and the list
//! of live connections, which may reset it from any thread. Knows one socket; must not know TLS, nor
//! why it is reset. It exists because a ban must cut a download at once, also while its task waits
//! in a write, and a second descriptor for each connection would halve how many there can be.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// One client's socket. Closed when the last holder lets go.
#[derive(Clone, Debug)]
pub struct Wire(Arc<TcpStream>);

impl Wire {
    /// Takes over an accepted socket.
    #[must_use]
    pub fn new(tcp: TcpStream) -> Self {
        Self(Arc::new(tcp))
    }

    /// Resets the connection now: the other end gets a reset, nothing that waits to be sent is, and
    /// whoever reads or writes here wakes up with an error. Does not wait; any thread may.
    pub fn reset(&self) {
        // To dissolve a TCP socket's association is to abort it: RFC 9293 section 3.10.5, connect(2).
        if let Err(error) = rustix::net::connect_unspec(&*self.0) {
            tracing::debug!("listen: a socket could not be reset: {error}; it is shut down");
            let socket = SockRef::from(&*self.0);
            let _ = socket.set_linger(Some(std::time::Duration::ZERO));
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
    }

    /// What has arrived, without taking it; waits for the first byte. 0 where none will come any more.
    ///
    /// # Errors
    /// The socket's.
    pub async fn peek(&self, into: &mut [u8]) -> io::Result<usize> {
        self.0.peek(into).await
    }

    /// Writes once the socket takes something.
    fn poll_written(
        &self,
        cx: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match write(&self.0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }
}

impl AsRawFd for Wire {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if into.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            let space = into.initialize_unfilled();
            let mut received = None;
            let result = self.0.try_io(Interest::READABLE, || {
                let count = rustix::io::read(&*self.0, &mut *space)?;
                received = Some(count);
                // Less than there was room for: the socket is empty, and saying so here saves the
                // system call that would find it out.
                if 0 < count && count < space.len() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            match (received, result) {
                (Some(count), _) => {
                    into.advance(count);
                    return Poll::Ready(Ok(()));
                }
                (None, Err(error)) if error.kind() != io::ErrorKind::WouldBlock => {
                    return Poll::Ready(Err(error));
                }
                (None, _) => {}
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_written(cx, |tcp| tcp.try_write(data))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_written(cx, |tcp| tcp.try_write_vectored(parts))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&*self.0).shutdown(std::net::Shutdown::Write))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::{Instant, timeout};

    use super::*;

    async fn pair() -> (Wire, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (Wire::new(listener.accept().await.unwrap().0), client)
    }

    #[tokio::test]
    async fn bytes_pass_both_ways_whatever_their_portions() {
        let (mut wire, mut client) = pair().await;
        let sent: Vec<u8> = (0..3_000_000_u32).map(|number| number.to_le_bytes()[1]).collect();
        let all = sent.clone();
        let echo = tokio::spawn(async move {
            let mut buffer = vec![0; 777];
            loop {
                match wire.read(&mut buffer).await.unwrap() {
                    0 => break,
                    count => wire.write_all(&buffer[..count]).await.unwrap(),
                }
            }
            wire.shutdown().await.unwrap();
        });
        let (mut reading, mut writing) = client.split();
        let mut back = Vec::new();
        let write = async {
            writing.write_all(&all).await.unwrap();
            writing.shutdown().await.unwrap();
        };
        let (_, read) = tokio::join!(write, reading.read_to_end(&mut back));
        read.unwrap();
        assert!(back == sent, "{} of {} bytes", back.len(), sent.len());
        echo.await.unwrap();
    }

    #[tokio::test]
    async fn a_reset_wakes_reader_and_writer_and_takes_back_what_was_queued() {
        let (wire, mut client) = pair().await;
        let (mut reader, mut writer) = (wire.clone(), wire.clone());
        let reading = tokio::spawn(async move { reader.read_u8().await });
        // The client reads nothing, so this fills both buffers and waits.
        let writing = tokio::spawn(async move {
            loop {
                writer.write_all(&[7; 65536]).await?;
            }
            #[expect(unreachable_code, reason = "names the type")]
            io::Result::Ok(())
        });
        tokio::time::sleep(Duration::from_millis(300)).await;
        let began = Instant::now();
        std::thread::spawn(move || wire.reset()).join().unwrap();
        let (read, written) = (reading.await.unwrap(), writing.await.unwrap());
        assert!(read.is_err() && written.is_err(), "{read:?} {written:?}");
        assert!(began.elapsed() < Duration::from_millis(100), "{:?}", began.elapsed());
        let mut rest = Vec::new();
        let end = timeout(Duration::from_secs(5), client.read_to_end(&mut rest)).await.unwrap();
        assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }
}
