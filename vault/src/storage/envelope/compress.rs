//! Frames compressed beside the thread that encrypts them: two lanes, a thread each, which start
//! only when an object has a second whole frame, so that small ones pay for no thread. Frames come
//! back in the order in which they went in. Knows nothing of what is in them.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::EnvelopeError;

/// zstd's own default: fast enough not to be the bottleneck beside encryption.
const LEVEL: i32 = 3;
/// Threads of one object: zstd takes about twice the time of encryption and digests together.
const LANES: usize = 2;

/// A finished frame.
pub(super) struct Compressed {
    pub(super) bytes: Vec<u8>,
    /// How many bytes of plaintext are in it.
    pub(super) plain: u32,
}

/// Compresses one object's frames.
pub(super) struct Lanes {
    own: zstd::bulk::Compressor<'static>,
    /// Where frames go, in turn.
    lanes: Vec<SyncSender<(Vec<u8>, Answer)>>,
    next: usize,
    /// Frames under way, oldest first; never more than [`LANES`] + 1, so memory is bounded.
    pending: VecDeque<Receiver<Result<Compressed, EnvelopeError>>>,
    /// The first whole frame is compressed here.
    begun: bool,
}

type Answer = SyncSender<Result<Compressed, EnvelopeError>>;

impl Lanes {
    /// No thread yet.
    pub(super) fn new() -> Result<Self, EnvelopeError> {
        let own = zstd::bulk::Compressor::new(LEVEL).map_err(EnvelopeError::Beneath)?;
        Ok(Self { own, lanes: Vec::new(), next: 0, pending: VecDeque::new(), begun: false })
    }

    /// Takes a frame in; gives back the oldest one where enough are under way.
    pub(super) fn push(&mut self, frame: Vec<u8>) -> Result<Option<Compressed>, EnvelopeError> {
        if self.begun && self.lanes.is_empty() {
            self.start();
        }
        self.begun = true;
        if self.lanes.is_empty() {
            return self.compress(&frame).map(Some);
        }
        let (answer, answered) = sync_channel(1);
        let lane = self.next % self.lanes.len();
        self.next += 1;
        // A lane that has ended gives no answer, and `pop` says so.
        let _ = self.lanes[lane].send((frame, answer));
        self.pending.push_back(answered);
        if self.pending.len() > LANES { self.pop() } else { Ok(None) }
    }

    /// The oldest frame under way.
    pub(super) fn pop(&mut self) -> Result<Option<Compressed>, EnvelopeError> {
        let Some(oldest) = self.pending.pop_front() else { return Ok(None) };
        let ended = |_| EnvelopeError::Beneath(std::io::Error::other("a thread that compresses has ended"));
        oldest.recv().map_err(ended)?.map(Some)
    }

    /// Compresses here and now.
    pub(super) fn compress(&mut self, frame: &[u8]) -> Result<Compressed, EnvelopeError> {
        compress(&mut self.own, frame)
    }

    /// Without threads (the system has no more) everything is compressed here.
    fn start(&mut self) {
        for _ in 0..LANES {
            let (lane, frames) = sync_channel::<(Vec<u8>, Answer)>(1);
            let work = move || {
                let Ok(mut compressor) = zstd::bulk::Compressor::new(LEVEL) else { return };
                for (frame, answer) in frames {
                    // Nobody waits for it any more: the upload has ended.
                    let _ = answer.send(compress(&mut compressor, &frame));
                }
            };
            if std::thread::Builder::new().name("compress".to_owned()).spawn(work).is_ok() {
                self.lanes.push(lane);
            }
        }
    }
}

fn compress(
    compressor: &mut zstd::bulk::Compressor<'static>,
    frame: &[u8],
) -> Result<Compressed, EnvelopeError> {
    let plain = u32::try_from(frame.len()).map_err(|_| EnvelopeError::TooLong)?;
    let mut bytes = compressor.compress(frame).map_err(EnvelopeError::Beneath)?;
    // zstd asks for room for the worst case; what it did not need is not held while waiting.
    bytes.shrink_to_fit();
    Ok(Compressed { bytes, plain })
}
