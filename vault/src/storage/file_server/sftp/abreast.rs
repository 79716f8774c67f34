//! Writing a long file on several channels of a session at once. A server takes only so much unread
//! on a channel (OpenSSH 2 MiB), so over a distance one channel leaves the line idle: it waits for
//! the server's leave most of the time (measured, 256 MiB over 10 ms with all that belongs to it: 2.7 s
//! on libssh2's one, 2.1 s on two of these). Pieces go to whichever channel has room, each with its place
//! in the file. Knows neither names nor sessions.

use std::collections::VecDeque;

use super::message::{Oddity, Reply, Request};
use super::pipeline::Pipeline;
use super::short::{WELL, flushed_of};
use super::trouble::{Kind, Trouble};
use super::writer::{FLUSH_EVERY, Unwritten};

/// Bytes of one request; every server takes so many.
const PIECE: usize = 32 << 10;
/// Pieces that are sent together, on one channel.
const TOGETHER: usize = 8;
/// What they need at most of what the server takes unread: each has a head and a handle besides.
const ROOM: usize = TOGETHER * (PIECE + 512);
/// Pieces of a channel without an answer at most: twice what OpenSSH takes unread.
const MOST_OPEN: usize = 128;
/// A channel and what the file is called on it.
pub(super) struct Stream<'a> {
    pipeline: &'a mut Pipeline,
    handle: &'a [u8],
    /// Number and bytes of what is not answered; no bytes are a flush.
    open: VecDeque<(u32, usize)>,
    next: u32,
}

impl<'a> Stream<'a> {
    pub(super) const fn new(pipeline: &'a mut Pipeline, handle: &'a [u8]) -> Self {
        Self { pipeline, handle, open: VecDeque::new(), next: 0 }
    }

    /// May more be sent, without waiting for the server's leave?
    fn has_room(&self) -> bool {
        self.open.is_empty() || (self.open.len() < MOST_OPEN && self.pipeline.window() >= ROOM)
    }

    fn number(&mut self, bytes: usize) -> u32 {
        let number = self.next;
        self.next = number.wrapping_add(1);
        self.open.push_back((number, bytes));
        number
    }

    /// Waits for answers; says how many bytes more are there.
    fn wait(&mut self) -> Result<u64, Trouble> {
        if !self.pipeline.receive()? {
            return Err(Trouble::new(Kind::Lost, "the server ended the channel"));
        }
        let mut there = 0;
        let open = &mut self.open;
        while let Some((bytes, code)) = self.pipeline.answer(|reply| take(&reply, open))? {
            match bytes {
                0 => drop(flushed_of(code)?),
                _ if code != WELL => return Err(Trouble::of_status(code)),
                _ => there += bytes as u64,
            }
        }
        Ok(there)
    }
}

/// Which of the open requests is answered, and how it went.
fn take(reply: &Reply<'_>, open: &mut VecDeque<(u32, usize)>) -> Result<(usize, u32), Oddity> {
    let Reply::Status { id, code } = *reply else { return Err(Oddity::Unasked) };
    let at = open.iter().position(|(number, _)| *number == id).ok_or(Oddity::Unasked)?;
    let (_, bytes) = open.remove(at).ok_or(Oddity::Unasked)?;
    Ok((bytes, code))
}

/// Writes everything that `source` gives (0 is the end) and returns how much that was; all of it is
/// answered then. `on_disk` is told how much the server has and answers how much of it somebody else
/// has flushed. On an error nothing may be asked of the session any more.
pub(super) fn write<E>(
    streams: &mut [Stream<'_>],
    mut source: impl FnMut(&mut [u8]) -> Result<usize, E>,
    mut on_disk: impl FnMut(u64) -> u64,
) -> Result<u64, Unwritten<E>> {
    let (mut piece, mut bytes) = (vec![0; PIECE], Vec::with_capacity(ROOM));
    let (mut sent, mut there, mut flushed) = (0_u64, 0_u64, 0_u64);
    let (mut turn, mut ended) = (0, false);
    loop {
        flushed = flushed.max(on_disk(there));
        let free =
            (turn..turn + streams.len()).map(|at| at % streams.len()).find(|at| streams[*at].has_room());
        if let Some(at) = free.filter(|_| !ended) {
            let stream = &mut streams[at];
            bytes.clear();
            for _ in 0..TOGETHER {
                let count = fill(&mut piece, &mut source).map_err(Unwritten::Source)?;
                if count > 0 {
                    let id = stream.number(count);
                    Request::Write { id, handle: stream.handle, at: sent, bytes: &piece[..count] }
                        .write_to(&mut bytes);
                }
                sent += count as u64;
                ended = count < PIECE;
                if ended {
                    break;
                }
            }
            if there - flushed >= FLUSH_EVERY && !cfg!(feature = "without-fsync") {
                let id = stream.number(0);
                Request::Flush { id, handle: stream.handle }.write_to(&mut bytes);
                flushed = there;
            }
            stream.pipeline.send(&bytes).map_err(Unwritten::Trouble)?;
            turn = at + 1;
        } else {
            let longest = streams.iter_mut().max_by_key(|stream| stream.open.len());
            let Some(stream) = longest.filter(|stream| !stream.open.is_empty()) else { return Ok(sent) };
            there += stream.wait().map_err(Unwritten::Trouble)?;
        }
    }
}

/// Reads until `piece` is full or the source ends.
fn fill<E>(piece: &mut [u8], source: &mut impl FnMut(&mut [u8]) -> Result<usize, E>) -> Result<usize, E> {
    let mut filled = 0;
    while filled < piece.len() {
        match source(&mut piece[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_may_come_in_any_order_and_each_counts_once() {
        let mut open = VecDeque::from([(7, 100), (8, 50), (9, 0)]);
        assert_eq!(take(&Reply::Status { id: 8, code: WELL }, &mut open), Ok((50, WELL)));
        assert_eq!(take(&Reply::Status { id: 8, code: WELL }, &mut open), Err(Oddity::Unasked));
        assert_eq!(take(&Reply::Status { id: 7, code: 4 }, &mut open), Ok((100, 4)));
        assert_eq!(take(&Reply::Status { id: 10, code: WELL }, &mut open), Err(Oddity::Unasked));
        assert_eq!(take(&Reply::Handle { id: 9, handle: b"h" }, &mut open), Err(Oddity::Unasked));
        assert_eq!(open, [(9, 0)]);
    }
}
