//! A connection's consumers as its two halves share them: the reading half opens and closes them, the
//! writing half finds whose a delivery is and which of those that pull still wait. Knows no socket.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::openwire::{ConsumerId, Destination};
use crate::queue::core::{ConsumerKey, Seen};
use crate::queue::message::Id;

/// No message's number.
const NONE: i64 = -1;

/// One that takes messages of a queue.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) id: ConsumerId,
    pub(super) source: Destination,
    /// The last message that was said to it.
    said: AtomicI64,
}

impl Seat {
    pub(super) fn new(id: ConsumerId, source: Destination) -> Self {
        Self { id, source, said: AtomicI64::new(NONE) }
    }

    /// This message goes to its socket.
    pub(super) fn say(&self, id: Id) {
        self.said.store(id.number(), Ordering::Relaxed);
    }

    /// What it can have seen of what it was given.
    fn seen(&self) -> Seen {
        match self.said.load(Ordering::Relaxed) {
            NONE => Seen::Nothing,
            last => Seen::UpTo(Id::from_number(last)),
        }
    }
}

/// How long one that pulls waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// Until there is a message.
    Endless,
    /// Until then; at once if it is over.
    Until(Instant),
}

/// All of a connection's. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Seats {
    inside: Arc<Mutex<Inside>>,
    /// Somebody began to wait.
    pub(super) waits: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Inside {
    seats: HashMap<ConsumerKey, Arc<Seat>>,
    pulls: HashMap<ConsumerKey, Patience>,
}

impl Seats {
    pub(super) fn add(&self, key: ConsumerKey, seat: Seat) {
        self.locked().seats.insert(key, Arc::new(seat));
    }

    pub(super) fn remove(&self, key: ConsumerKey) {
        let mut inside = self.locked();
        inside.seats.remove(&key);
        inside.pulls.remove(&key);
    }

    /// A message is there for it: whose it is, if it is anybody's still.
    pub(super) fn take(&self, key: ConsumerKey) -> Option<Arc<Seat>> {
        let mut inside = self.locked();
        let seat = inside.seats.get(&key).cloned()?;
        inside.pulls.remove(&key);
        Some(seat)
    }

    /// Has nothing been said to it yet?
    pub(super) fn is_new(&self, key: ConsumerKey) -> bool {
        self.locked().seats.get(&key).is_some_and(|seat| seat.seen() == Seen::Nothing)
    }

    /// All of them, and what each can have seen of what it was given.
    pub(super) fn seen(&self) -> Vec<(ConsumerKey, Seen)> {
        self.locked().seats.iter().map(|(key, seat)| (*key, seat.seen())).collect()
    }

    /// It waits for a message.
    pub(super) fn pull(&self, key: ConsumerKey, patience: Patience) {
        self.locked().pulls.insert(key, patience);
        self.waits.notify_one();
    }

    /// It waits no more; who it is, if it waited still.
    pub(super) fn give_up(&self, key: ConsumerKey) -> Option<Arc<Seat>> {
        let mut inside = self.locked();
        inside.pulls.remove(&key)?;
        inside.seats.get(&key).cloned()
    }

    /// Who gives up next, and when.
    pub(super) fn next_to_give_up(&self) -> Option<(ConsumerKey, Instant)> {
        let inside = self.locked();
        let ends = |(key, patience): (&ConsumerKey, &Patience)| match patience {
            Patience::Endless => None,
            Patience::Until(end) => Some((*key, *end)),
        };
        inside.pulls.iter().filter_map(ends).min_by_key(|(_, end)| *end)
    }

    fn locked(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many messages a browser may be shown before its client acknowledges some. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Window {
    inside: Arc<(AtomicUsize, Notify)>,
    most: usize,
}

impl Window {
    pub(super) fn new(most: usize) -> Self {
        Self { inside: Arc::new((AtomicUsize::new(0), Notify::new())), most: most.max(1) }
    }

    /// The client has seen so many of them.
    pub(super) fn seen(&self, count: usize) {
        let (shown, changed) = &*self.inside;
        let lower = |shown: usize| Some(shown.saturating_sub(count));
        let _always = shown.fetch_update(Ordering::AcqRel, Ordering::Acquire, lower);
        changed.notify_one();
    }

    /// Waits for room; for how many.
    pub(super) async fn room(&self) -> usize {
        let (shown, changed) = &*self.inside;
        loop {
            match self.most.saturating_sub(shown.load(Ordering::Acquire)) {
                0 => changed.notified().await,
                room => return room,
            }
        }
    }

    /// One more is shown.
    pub(super) fn show(&self) {
        self.inside.0.fetch_add(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::openwire::Text;

    fn seat() -> Seat {
        let id = ConsumerId { connection: Text::default(), session: 1, value: 1 };
        Seat::new(id, Destination::queue(Text::shortened("q")))
    }

    #[tokio::test]
    async fn a_pull_is_answered_once_by_a_message_or_by_its_end() {
        let seats = Seats::default();
        for key in [1, 2, 3] {
            seats.add(key, seat());
        }
        let now = Instant::now();
        seats.pull(1, Patience::Endless);
        seats.pull(2, Patience::Until(now + Duration::from_secs(2)));
        seats.pull(3, Patience::Until(now + Duration::from_secs(1)));
        assert_eq!(seats.next_to_give_up().map(|(key, _)| key), Some(3));
        assert!(seats.take(3).is_some() && seats.give_up(3).is_none());
        assert!(seats.give_up(2).is_some() && seats.give_up(2).is_none());
        assert_eq!(seats.next_to_give_up(), None);
        seats.remove(1);
        assert!(seats.take(1).is_none() && seats.give_up(1).is_none());
    }

    #[test]
    fn a_consumer_has_seen_what_was_said_to_it_and_no_more() {
        let seats = Seats::default();
        seats.add(1, seat());
        assert!(seats.is_new(1) && !seats.is_new(2));
        assert_eq!(seats.seen(), [(1, Seen::Nothing)]);
        seats.take(1).unwrap().say(Id::from_number(7));
        assert!(!seats.is_new(1));
        assert_eq!(seats.seen(), [(1, Seen::UpTo(Id::from_number(7)))]);
    }

    #[tokio::test]
    async fn a_browser_is_shown_no_more_than_its_window_before_it_acknowledges() {
        let window = Window::new(2);
        let short = Duration::from_millis(20);
        for _ in 0..2 {
            assert_eq!(window.room().await, 2, "what was seen twice makes no more room");
            window.show();
            window.show();
            assert!(timeout(short, window.room()).await.is_err());
            window.seen(5);
        }
    }
}
