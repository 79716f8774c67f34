//! A slow line in front of a server: bytes pass both ways at a rate, on every connection for itself; one that
//! may also hang up at words that it does not like, as some firewalls do. Knows no protocol. Ends when it
//! is dropped; connections end with their ends.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use socket2::SockRef;

/// Bytes that pass at once.
const PORTION: usize = 16 << 10;
/// Bytes that each end may hold back: those are on the line too.
const BUFFER: usize = 64 << 10;

/// The line's near end.
#[derive(Debug)]
pub struct SlowLine {
    /// Where to connect to.
    pub address: SocketAddr,
    is_over: Arc<AtomicBool>,
}

impl SlowLine {
    /// A line to this server that carries so many bytes a second each way.
    ///
    /// # Errors
    /// No port is free.
    pub fn to(server: SocketAddr, rate: u32) -> anyhow::Result<Self> {
        Self::hangs_up_at(None, server, rate)
    }

    /// As [`Self::to`], with words that a caller must not say.
    ///
    /// # Errors
    /// No port is free.
    pub fn hangs_up_at(words: Option<&'static str>, server: SocketAddr, rate: u32) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        SockRef::from(&listener).set_recv_buffer_size(BUFFER)?;
        let address = listener.local_addr()?;
        let is_over = Arc::new(AtomicBool::new(false));
        let ends = is_over.clone();
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                if ends.load(Ordering::Relaxed) {
                    return;
                }
                // Without a server the caller is hung up on.
                if let Ok(far) = TcpStream::connect(server) {
                    let _refused = join(near, far, rate, words);
                }
            }
        });
        Ok(Self { address, is_over })
    }
}

impl Drop for SlowLine {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        // Wakes whoever waits for connections.
        let _woken = TcpStream::connect(self.address);
    }
}

fn join(near: TcpStream, far: TcpStream, rate: u32, words: Option<&'static str>) -> std::io::Result<()> {
    let (near_too, far_too) = (near.try_clone()?, far.try_clone()?);
    std::thread::spawn(move || pass(near, far, rate, words));
    std::thread::spawn(move || pass(far_too, near_too, rate, None));
    Ok(())
}

/// Until either end hangs up, which the other one is told.
fn pass(mut from: TcpStream, mut to: TcpStream, rate: u32, words: Option<&str>) {
    let mut portion = vec![0; PORTION];
    let mut said = Vec::new();
    while let Ok(bytes @ 1..) = from.read(&mut portion) {
        if let Some(words) = words.map(str::as_bytes) {
            said.extend_from_slice(&portion[..bytes]);
            if said.windows(words.len()).any(|some| some == words) {
                break;
            }
            // They may come in two portions.
            said.drain(..said.len().saturating_sub(words.len()));
        }
        if to.write_all(&portion[..bytes]).is_err() {
            break;
        }
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        std::thread::sleep(Duration::from_secs(1) * bytes / rate);
    }
    // They may have hung up themselves.
    let _gone = from.shutdown(Shutdown::Both);
    let _gone = to.shutdown(Shutdown::Both);
}
