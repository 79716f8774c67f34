//! Reading ahead: a thread reads and hashes what the caller's thread encrypts and sends, so
//! that a large file takes the longer of both and not their sum. Knows neither sessions nor
//! files.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::{Builder, scope};

/// Bytes read at once.
const PIECE: usize = 256 << 10;
/// Pieces that wait at most.
const WAITING: usize = 4;
/// Shorter ones are read where they are sent: a thread costs more than it saves.
const WORTH_IT: u64 = 4 << 20;

/// Calls `send` with a reader of what `source` gives (0 is the end), which is about `length`
/// bytes: ahead where that is worth it. The source's error comes in its place.
pub(super) fn reading_ahead<E: Send, T>(
    length: u64,
    mut source: impl FnMut(&mut [u8]) -> Result<usize, E> + Send,
    send: impl FnOnce(&mut dyn FnMut(&mut [u8]) -> Result<usize, E>) -> T,
) -> T {
    if length < WORTH_IT {
        return send(&mut source);
    }
    let source = Mutex::new(source);
    let lock = || source.lock().unwrap_or_else(PoisonError::into_inner);
    scope(|scope| {
        let (pieces, waiting) = sync_channel(WAITING);
        let (used, empty) = sync_channel(WAITING + 1);
        let read = move || read(&mut *lock(), &pieces, &empty);
        match Builder::new().name("sftp-ahead".to_owned()).spawn_scoped(scope, read) {
            Ok(_) => {
                let mut pieces = Pieces { waiting, used, piece: Vec::new(), at: 0 };
                send(&mut |buffer| pieces.take(buffer))
            }
            // It goes on, only slower.
            Err(_) => send(&mut *lock()),
        }
    })
}

/// Reads until the end, an error, or until nobody wants any more.
fn read<E>(
    source: &mut impl FnMut(&mut [u8]) -> Result<usize, E>,
    pieces: &SyncSender<Result<Vec<u8>, E>>,
    empty: &Receiver<Vec<u8>>,
) {
    loop {
        let mut piece = empty.try_recv().unwrap_or_default();
        piece.resize(PIECE, 0);
        let read = source(&mut piece).map(|count| {
            piece.truncate(count);
            piece
        });
        let last = read.as_ref().map_or(true, Vec::is_empty);
        if pieces.send(read).is_err() || last {
            return;
        }
    }
}

/// What has been read and not yet taken.
struct Pieces<E> {
    waiting: Receiver<Result<Vec<u8>, E>>,
    used: SyncSender<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
}

impl<E> Pieces<E> {
    fn take(&mut self, buffer: &mut [u8]) -> Result<usize, E> {
        if self.at == self.piece.len() {
            // Nothing comes behind the end.
            let next = self.waiting.recv().unwrap_or_else(|_| Ok(Vec::new()))?;
            let piece = std::mem::replace(&mut self.piece, next);
            // Where there are enough, it is freed.
            let _ = self.used.try_send(piece);
            self.at = 0;
        }
        let rest = &self.piece[self.at..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.at += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes everything in bites of `bite` bytes.
    fn all(take: &mut dyn FnMut(&mut [u8]) -> Result<usize, String>, bite: usize) -> Result<Vec<u8>, String> {
        let (mut all, mut buffer) = (Vec::new(), vec![0; bite]);
        loop {
            match take(&mut buffer)? {
                0 => return Ok(all),
                count => all.extend_from_slice(&buffer[..count]),
            }
        }
    }

    #[test]
    fn every_byte_comes_once_and_in_order_however_it_is_read_and_taken() {
        let bytes: Vec<u8> = (0..3_000_017_u32).flat_map(u32::to_le_bytes).collect();
        for (most, bite) in [(usize::MAX, 30_000), (70_001, 1 << 20), (PIECE, PIECE)] {
            for length in [bytes.len() as u64, 0] {
                let mut left = &bytes[..];
                let source = |buffer: &mut [u8]| {
                    let count = left.len().min(buffer.len()).min(most);
                    buffer[..count].copy_from_slice(&left[..count]);
                    left = &left[count..];
                    Ok(count)
                };
                assert!(reading_ahead(length, source, |take| all(take, bite)).unwrap() == bytes);
            }
        }
    }

    #[test]
    fn an_error_comes_in_its_place_and_whoever_stops_taking_is_not_waited_for() {
        for length in [0, u64::MAX] {
            let mut pieces = 0;
            let source = |buffer: &mut [u8]| {
                pieces += 1;
                if pieces > 3 { Err("gone".to_owned()) } else { Ok(buffer.len()) }
            };
            let mut taken = 0;
            let end = reading_ahead(length, source, |take| {
                let mut buffer = vec![0; PIECE];
                loop {
                    match take(&mut buffer) {
                        Ok(count) => taken += count,
                        Err(error) => return error,
                    }
                }
            });
            assert_eq!((end.as_str(), taken), ("gone", 3 * PIECE));
            // A source without an end.
            let endless = |buffer: &mut [u8]| Ok::<_, String>(buffer.len());
            assert_eq!(reading_ahead(length, endless, |take| take(&mut [0; 10])), Ok(10));
        }
    }
}
