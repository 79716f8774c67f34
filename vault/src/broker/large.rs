//! Room for large frames, of all connections together: taken as their bytes come, never on the word of
//! a length, and given back once the queues have what was read. Knows how fast a frame must come, and no
//! socket.
//!
//! Frames that wait for each other's room would wait for ever. So a room has a last part, enough for
//! the largest frame, which one of them has at a time to come to its end. And there are two rooms, so that
//! the few huge frames, which come for long, keep none of the many others waiting.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Frames above this take room, bytes.
pub(super) const LARGE: usize = 64 << 10;
/// Of a frame of which nothing has come yet so much may be taken, bytes.
const AHEAD: usize = 128 << 10;
/// Frames up to this have a room of their own, bytes.
const HUGE: usize = 1 << 20;
/// So many of the largest of them have room at once.
const LARGE_AT_ONCE: usize = 17;
/// So many of the largest of the others have.
const HUGE_AT_ONCE: usize = 3;
/// So many bytes of a large frame, or its end, must come
const LEAST: usize = 640 << 10;
/// within each such time of waiting for them.
const PATIENCE: Duration = Duration::from_secs(10);
/// A frame that has waited so long for room is told of.
pub(super) const LONG: Duration = Duration::from_secs(10);

/// The rooms. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Large {
    large: Room,
    huge: Room,
}

#[derive(Debug, Clone)]
struct Room {
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
    pub(super) pace: Pace,
    /// It has been told of that there is no room for it.
    pub(super) is_told: bool,
}

/// Do bytes come, or go, fast enough?
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// What had been waited, and the bytes that had moved, when there were enough of them last.
    waited: Duration,
    moved: usize,
}

impl Large {
    /// For frames of at most so many bytes.
    pub(super) fn new(max_frame: usize) -> Self {
        Self { large: Room::new(HUGE, LARGE_AT_ONCE), huge: Room::new(max_frame, HUGE_AT_ONCE) }
    }

    fn room(&self, length: usize) -> &Room {
        if length <= HUGE { &self.large } else { &self.huge }
    }
}

impl Room {
    fn new(largest: usize, at_once: usize) -> Self {
        let shared = (largest.saturating_mul(at_once - 1) >> 10).clamp(1, Semaphore::MAX_PERMITS);
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
        let room = large.room(length);
        // Neither is ever closed.
        tokio::select! {
            biased;
            Ok(more) = Arc::clone(&room.shared).acquire_many_owned(missing) => match &mut self.shared {
                Some(shared) => shared.merge(more),
                None => self.shared = Some(more),
            },
            Ok(last) = Arc::clone(&room.last).acquire_owned() => self.last = Some(last),
        }
    }

    fn kib(&self) -> usize {
        self.shared.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
    }
}

impl Pace {
    /// How long may still be waited, after so much of it and so many bytes?
    pub(super) fn left(&mut self, waited: Duration, moved: usize) -> Duration {
        if moved.saturating_sub(self.moved) >= LEAST {
            *self = Self { waited, moved };
        }
        (self.waited + PATIENCE).saturating_sub(waited)
    }
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
        honest.grow(&large, 2 * MIB, 0).await;
        assert_eq!((honest.kib(), honest.last.is_some()), (128, false));
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

    #[tokio::test]
    async fn huge_frames_that_never_end_keep_no_others_waiting() {
        let large = Large::new(64 * MIB);
        let mut huge = Vec::new();
        for _ in 0..HUGE_AT_ONCE {
            let mut taken = Taken::default();
            taken.grow(&large, 64 * MIB, 64 * MIB - 4096).await;
            huge.push(taken);
        }
        let mut other = Taken::default();
        assert!(tokio::time::timeout(SHORT, other.grow(&large, 2 * MIB, 0)).await.is_err());
        other.grow(&large, MIB, 0).await;
        assert_eq!((other.kib(), other.last.is_some()), (128, false));
    }

    #[test]
    fn so_much_must_come_within_each_ten_seconds_whatever_came_before() {
        let (mut pace, seconds) = (Pace::default(), Duration::from_secs);
        assert_eq!(pace.left(seconds(0), 0), PATIENCE);
        assert_eq!(pace.left(seconds(9), LEAST - 1), seconds(1));
        assert_eq!(pace.left(seconds(9), 64 * MIB), PATIENCE);
        assert_eq!(
            pace.left(seconds(19), 64 * MIB + LEAST - 1),
            seconds(0),
            "it lives on nothing that came before"
        );
    }
}
