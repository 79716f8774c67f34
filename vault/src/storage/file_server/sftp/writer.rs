//! Writing a file to the server as fast as the line carries it: what is not acknowledged yet
//! is passed again with new bytes behind it, so that the line never runs dry. Knows nothing
//! of names.

use std::io::Write;
use std::time::Duration;

use ssh2::File;

use super::link::{Flushed, Link};
use super::moment;
use super::trouble::{Kind, Trouble};

/// Unacknowledged at most. OpenSSH's server grants 2 MiB: more of it would only wait here, and less
/// leaves the line idle (measured over 10 ms: 1 MiB 66 MiB/s, 2 MiB 130, 4 MiB no more).
const WINDOW: usize = 2 << 20;
/// For what is short.
const LEAST: usize = 64 << 10;
/// How much is written between two flushes, so that the last one is short and a hanging disk
/// is told from a slow one.
pub(super) const FLUSH_EVERY: u64 = 128 << 20;

/// Patience for a few bytes.
pub(super) const SHORT: Duration = Duration::from_secs(10);

/// Why a file was not written.
#[derive(Debug)]
pub(super) enum Unwritten<E> {
    /// What was to be written cannot be had.
    Source(E),
    /// The server's or the connection's word.
    Trouble(Trouble),
}

/// Writes everything that `source` gives (0 is the end) and returns how much that was. On an error
/// nothing may be asked of the session any more: requests may be half sent.
pub(super) fn write<E>(
    link: &mut Link,
    file: &mut File,
    timeout: Duration,
    source: impl FnMut(&mut [u8]) -> Result<usize, E>,
) -> Result<u64, Unwritten<E>> {
    write_long(link, file, timeout, LEAST as u64, source, |_| 0)
}

/// The same of about `length` bytes. `on_disk` is told how much the server has and answers how much
/// of it somebody else has flushed.
pub(super) fn write_long<E>(
    link: &mut Link,
    file: &mut File,
    timeout: Duration,
    length: u64,
    mut source: impl FnMut(&mut [u8]) -> Result<usize, E>,
    mut on_disk: impl FnMut(u64) -> u64,
) -> Result<u64, Unwritten<E>> {
    let window = usize::try_from(length).unwrap_or(usize::MAX).clamp(LEAST, WINDOW);
    // Twice the window, so that moving its rest to the front is rare.
    let mut buffer = vec![0; 2 * window];
    let (mut start, mut end) = (0, 0);
    let (mut written, mut flushed, mut ended) = (0_u64, 0_u64, false);
    loop {
        flushed = flushed.max(on_disk(written));
        let flush_due = written - flushed >= FLUSH_EVERY;
        while !ended && !flush_due && end - start < window {
            if start >= window {
                buffer.copy_within(start..end, 0);
                (start, end) = (0, end - start);
            }
            let room = end..(start + window).min(buffer.len());
            let count = source(&mut buffer[room]).map_err(Unwritten::Source)?;
            end += count;
            ended = count == 0;
        }
        if start < end {
            let count = push(link, file, timeout, &buffer[start..end]).map_err(Unwritten::Trouble)?;
            start += count;
            written += count as u64;
        } else if flush_due {
            if link.flush(file).map_err(Unwritten::Trouble)? == Flushed::Unknown {
                tracing::debug!("the server cannot flush in between");
            }
            flushed = written;
        } else {
            return Ok(written);
        }
    }
}

/// Sends what can be sent and returns how much of it the server has acknowledged.
fn push(link: &mut Link, file: &mut File, timeout: Duration, bytes: &[u8]) -> Result<usize, Trouble> {
    let until = moment() + timeout;
    loop {
        // libssh2 says 0 where the line took nothing more just now.
        match file.write(bytes).map_err(|error| link.told(&error))? {
            0 if moment() >= until => {
                link.cut();
                return Err(Trouble::new(Kind::TimedOut, "timed out"));
            }
            0 => {}
            count => return Ok(count),
        }
    }
}
