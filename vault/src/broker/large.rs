//! Room for large frames, of all connections together: taken as their bytes come, never on the word of
//! a length, and given back once the queues have what was read. Knows no socket, and how fast a frame
//! must come.
//!
//! Frames that wait for each other's room would wait for ever. So the room has a last part, enough for
//! the largest frame, which one of them has at a time to come to its end.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Frames above this take room, bytes.
pub(super) const LARGE: usize = 64 << 10;
/// Of a frame of which nothing has come yet so much may be taken, bytes.
const AHEAD: usize = 128 << 10;
/// So many of the largest frames have room at once.
const AT_ONCE: usize = 3;
/// A large frame must come at this rate, bytes a second,
const LEAST_RATE: usize = 64 << 10;
/// after so long.
const PATIENCE: Duration = Duration::from_secs(10);

/// The room. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Large {
    shared: Arc<Semaphore>,
    last: Arc<Semaphore>,
}

/// What one frame has of it.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// In KiB.
    shared: Option<OwnedSemaphorePermit>,
    last: Option<OwnedSemaphorePermit>,
}

/// One that arrives.
#[derive(Debug, Default)]
pub(super) struct Frame {
    pub(super) room: Taken,
    /// So long it was waited for its bytes.
    pub(super) waited: Duration,
}

impl Large {
    /// For frames of at most so many bytes.
    pub(super) fn new(max_frame: usize) -> Self {
        let shared = (max_frame.saturating_mul(AT_ONCE - 1) >> 10).clamp(1, Semaphore::MAX_PERMITS);
        Self { shared: Arc::new(Semaphore::new(shared)), last: Arc::new(Semaphore::new(1)) }
    }
}

impl Taken {
    /// Waits for room for what comes next of a frame of `length` bytes, of which `come` have come. May be
    /// dropped while it waits.
    pub(super) async fn grow(&mut self, large: &Large, length: usize, come: usize) {
        let wanted = length.min(come.saturating_mul(2) + AHEAD).div_ceil(1024);
        let missing = wanted.saturating_sub(self.kib());
        if missing == 0 || self.last.is_some() {
            return;
        }
        let missing = u32::try_from(missing).unwrap_or(u32::MAX);
        // Neither is ever closed.
        tokio::select! {
            biased;
            Ok(more) = Arc::clone(&large.shared).acquire_many_owned(missing) => match &mut self.shared {
                Some(shared) => shared.merge(more),
                None => self.shared = Some(more),
            },
            Ok(last) = Arc::clone(&large.last).acquire_owned() => self.last = Some(last),
        }
    }

    fn kib(&self) -> usize {
        self.shared.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
    }
}

/// How long it may have been waited for a large frame of which so many bytes have come.
pub(super) fn patience(come: usize) -> Duration {
    PATIENCE + Duration::from_secs(u64::try_from(come / LEAST_RATE).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;
    const SHORT: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn a_word_of_a_length_takes_little_room_from_others() {
        let large = Large::new(64 * MIB);
        let mut told = Vec::new();
        for _ in 0..400 {
            let mut taken = Taken::default();
            taken.grow(&large, 64 * MIB, 70_000).await;
            assert!(taken.last.is_none());
            told.push(taken);
        }
        let mut honest = Taken::default();
        honest.grow(&large, 100 << 10, 0).await;
        assert_eq!((honest.kib(), honest.last.is_some()), (100, false));
    }

    #[tokio::test]
    async fn frames_that_wait_for_each_other_come_to_their_ends_one_by_one() {
        let large = Large::new(4 * MIB);
        let mut all = Vec::new();
        for _ in 0..4 {
            let mut taken = Taken::default();
            taken.grow(&large, 4 * MIB, MIB - AHEAD / 2).await;
            all.push(taken);
        }
        let (mut first, mut second) = (all.remove(0), all.remove(0));
        first.grow(&large, 4 * MIB, 2 * MIB).await;
        assert!(first.last.is_some());
        first.grow(&large, 4 * MIB, 4 * MIB).await;
        let waits = tokio::time::timeout(SHORT, second.grow(&large, 4 * MIB, 2 * MIB)).await;
        assert!(waits.is_err());
        drop(first);
        second.grow(&large, 4 * MIB, 2 * MIB).await;
        assert!(second.last.is_some() || second.kib() == 4096);
    }

    #[test]
    fn a_frame_has_ten_seconds_and_then_its_rate() {
        assert_eq!(patience(70_000), Duration::from_secs(11));
        assert_eq!(patience(64 * MIB), Duration::from_secs(1034));
    }
}
