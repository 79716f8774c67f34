//! Writing a file to the server as fast as the line carries it: what is not acknowledged yet
//! is passed again with new bytes behind it, so that the line never runs dry. Knows nothing
//! of names.

use std::io::Write;
use std::time::Duration;

use ssh2::File;

use super::link::{Flushed, Link};
use super::moment;
use super::trouble::{Kind, Trouble};

/// Unacknowledged at most: 100 MiB/s over 10 ms.
const WINDOW: usize = 1 << 20;
/// How much is written between two flushes, so that the last one is short and a hanging disk
/// is told from a slow one.
const FLUSH_EVERY: u64 = 128 << 20;

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

/// Writes everything that `source` gives (0 is the end) and returns how much that was. On an
/// error nothing may be asked of the session any more: requests may be half sent.
pub(super) fn write<E>(
    link: &mut Link,
    file: &mut File,
    timeout: Duration,
    mut source: impl FnMut(&mut [u8]) -> Result<usize, E>,
) -> Result<u64, Unwritten<E>> {
    // Twice the window, so that moving its rest to the front is rare.
    let mut buffer = vec![0; 2 * WINDOW];
    let (mut start, mut end) = (0, 0);
    let (mut written, mut flushed, mut ended) = (0_u64, 0_u64, false);
    loop {
        let flush_due = written - flushed >= FLUSH_EVERY;
        while !ended && !flush_due && end - start < WINDOW {
            if start >= WINDOW {
                buffer.copy_within(start..end, 0);
                (start, end) = (0, end - start);
            }
            let room = end..(start + WINDOW).min(buffer.len());
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
