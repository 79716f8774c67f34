//! Those who have connected and not said who they are. They have a place of their own beside the clients, and
//! when it is full the one that has waited longest goes for the next: whoever keeps sockets open and says
//! nothing keeps nobody out. Each has a moment in which to speak, for which those behind it wait at the
//! socket. Knows no bytes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// So long nobody has to go for another: far longer than a greeting and a name take.
const MOMENT: Duration = Duration::from_millis(500);
/// There may be such a part of the connections that clients may have,
const PART: usize = 4;
/// and so many at least.
const LEAST: usize = 64;

/// The place. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Porch {
    inside: Arc<Mutex<Inside>>,
    /// Somebody has left.
    left: Arc<Notify>,
    most: usize,
}

#[derive(Debug, Default)]
struct Inside {
    next: u64,
    /// In the order they came.
    waiting: BTreeMap<u64, (Instant, CancellationToken)>,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Stranger {
    porch: Porch,
    number: u64,
    /// Cancelled when it has to go for another.
    pub(super) cut: CancellationToken,
}

impl Porch {
    /// Beside so many connections of clients.
    pub(super) fn new(connections: usize) -> Self {
        Self { inside: Arc::default(), left: Arc::default(), most: (connections / PART).max(LEAST) }
    }

    /// One more, once there is room.
    pub(super) async fn enter(&self) -> Stranger {
        loop {
            let until = match self.try_enter(Instant::now()) {
                Ok(stranger) => return stranger,
                Err(until) => until,
            };
            tokio::select! {
                () = sleep_until(until) => {}
                () = self.left.notified() => {}
            }
        }
    }

    /// One more, or until when none has to go for it.
    fn try_enter(&self, now: Instant) -> Result<Stranger, Instant> {
        let mut inside = self.locked();
        if inside.waiting.len() >= self.most
            && let Some(oldest) = inside.waiting.first_entry()
        {
            let until = oldest.get().0 + MOMENT;
            if now < until {
                return Err(until);
            }
            oldest.remove().1.cancel();
        }
        let (number, cut) = (inside.next, CancellationToken::new());
        inside.next += 1;
        inside.waiting.insert(number, (now, cut.clone()));
        Ok(Stranger { porch: self.clone(), number, cut })
    }

    fn locked(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.porch.locked().waiting.remove(&self.number);
        self.porch.left.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_that_has_waited_longest_goes_for_the_next_and_none_at_once() {
        let (porch, now) = (Porch::new(1), Instant::now());
        let crowd: Vec<_> = (0..LEAST).map(|_| porch.try_enter(now).unwrap()).collect();
        assert_eq!(porch.try_enter(now).unwrap_err(), now + MOMENT);
        let next = porch.try_enter(now + MOMENT).unwrap();
        let cut: Vec<_> = crowd.iter().map(|stranger| stranger.cut.is_cancelled()).collect();
        assert!(cut[0] && !cut[1..].contains(&true) && !next.cut.is_cancelled());
        assert_eq!(porch.locked().waiting.len(), LEAST);
        drop((crowd, next));
        assert_eq!(porch.locked().waiting.len(), 0);
    }

    #[test]
    fn nobody_has_to_go_where_another_has_said_its_name() {
        let (porch, now) = (Porch::new(1), Instant::now());
        let mut crowd: Vec<_> = (0..LEAST).map(|_| porch.try_enter(now).unwrap()).collect();
        drop(crowd.pop());
        crowd.push(porch.try_enter(now + MOMENT).unwrap());
        assert!(crowd.iter().all(|stranger| !stranger.cut.is_cancelled()));
    }

    #[tokio::test]
    async fn whoever_waits_for_room_comes_in_by_itself() {
        let porch = Porch::new(1);
        let mut crowd = Vec::new();
        for _ in 0..=LEAST {
            crowd.push(porch.enter().await);
        }
        assert_eq!(porch.locked().waiting.len(), LEAST);
        assert!(crowd[0].cut.is_cancelled());
    }
}
