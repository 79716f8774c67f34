//! Reading a file on the server at any position. Reads ahead further and further while it is
//! read from front to back, and little where it is not; takes up again on another session
//! where its own has died or was needed elsewhere. Knows no ids and no marker.

use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;

use super::pool::{Lane, Pool, Ticket};
use super::trouble::{Failed, Kind, Trouble};

/// The first read asks for this much, and every further one in sequence for twice as much, up to
/// [`MOST`]. libssh2 asks the server for four times as much ahead of time.
const LEAST: usize = 32 * 1024;
/// Four times this in flight carries 200 MiB/s over 10 ms.
const MOST: usize = 512 * 1024;

/// See the module.
pub(super) struct Reader {
    pool: Arc<Pool>,
    ticket: Ticket,
    path: PathBuf,
    length: u64,
    /// Where the open file stands: behind the buffer's end.
    at: u64,
    buffer: Vec<u8>,
    window: usize,
}

impl Reader {
    /// Reads the file of `length` bytes that is open on `lane`, which goes back to its pool.
    pub(super) fn new(pool: Arc<Pool>, mut lane: Lane, file: ssh2::File, path: PathBuf, length: u64) -> Self {
        let ticket = pool.ticket();
        lane.open = Some((ticket, file));
        lane.give_back();
        Self { pool, ticket, path, length, at: 0, buffer: Vec::new(), window: LEAST }
    }

    /// Reads up to the target's length at a position; 0 is the end.
    pub(super) fn read_at(&mut self, target: &mut [u8], position: u64) -> Result<usize, Failed> {
        if position >= self.length || target.is_empty() {
            return Ok(0);
        }
        let start = self.at - self.buffer.len() as u64;
        if position < start || position >= self.at {
            self.fill(position)?;
        }
        let start = self.at - self.buffer.len() as u64;
        let skip = usize::try_from(position.saturating_sub(start)).unwrap_or(usize::MAX);
        let ready = self.buffer.get(skip..).unwrap_or_default();
        let count = ready.len().min(target.len());
        target[..count].copy_from_slice(&ready[..count]);
        Ok(count)
    }

    fn fill(&mut self, position: u64) -> Result<(), Failed> {
        if position == self.at && position != 0 {
            self.window = (self.window * 2).min(MOST);
        } else {
            self.window = LEAST;
        }
        let mut lane = self.pool.borrow(Some(self.ticket)).map_err(Failed::Refused)?;
        let tried = self.fill_on(&mut lane, position);
        let tried = match tried {
            // It died while it lay idle: once more on another.
            Err(trouble) if trouble.kind == Kind::Lost && lane.reused => {
                drop(lane);
                lane = self.pool.borrow(None).map_err(Failed::Refused)?;
                self.fill_on(&mut lane, position)
            }
            other => other,
        };
        // Whatever failed may have left an answer on its way: such a session is not used again.
        tried.map_err(Failed::Trouble)?;
        lane.give_back();
        Ok(())
    }

    fn fill_on(&mut self, lane: &mut Lane, position: u64) -> Result<(), Trouble> {
        let Lane { link, open, .. } = lane;
        let mut standing = self.at;
        if open.is_none() {
            *open = Some((self.ticket, link.open(&self.path)?));
            standing = 0;
        }
        let Some((_, file)) = open.as_mut() else { return Ok(()) };
        if standing != position {
            file.seek(SeekFrom::Start(position)).map_err(|error| link.told(&error))?;
        }
        // A quarter of what is left, so that libssh2 does not ask for what is behind the end.
        let left = usize::try_from((self.length - position).div_ceil(4)).unwrap_or(usize::MAX);
        self.buffer.resize(self.window.min(left), 0);
        let read = file.read(&mut self.buffer);
        let count = *read.as_ref().unwrap_or(&0);
        self.buffer.truncate(count);
        self.at = position + count as u64;
        read.map(|_| ()).map_err(|error| link.told(&error))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.pool.forget(self.ticket);
    }
}
