//! What a client has sent and there is no room for yet: in its order, and bounded. What must not
//! overtake it waits behind it; everything else goes on, for it may be what makes room. Knows
//! neither queues nor what a command means.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesOrdered, StreamExt as _};

use crate::openwire::Command;
use crate::queue::QueueError;

use super::large::Taken;

/// Commands that wait.
const MOST: usize = 1024;
/// Bytes of them; one command may always wait, however large.
const MOST_BYTES: usize = 1 << 20;
/// Bytes of those of all connections.
const MOST_OF_ALL: usize = 64 << 20;

/// One whose waiting is over.
pub(super) struct Waited {
    pub(super) command: Command,
    /// Is there room for it now?
    pub(super) room: Result<(), QueueError>,
    size: usize,
    /// What it takes of the room for large frames.
    _large: Taken,
}

/// All that wait.
#[derive(Default)]
pub(super) struct Held<'a> {
    waiting: FuturesOrdered<BoxFuture<'a, Waited>>,
    bytes: usize,
    /// Of all connections.
    all: Arc<AtomicUsize>,
}

impl<'a> Held<'a> {
    /// One connection's, beside those of others.
    pub(super) fn among(all: Arc<AtomicUsize>) -> Self {
        Self { waiting: FuturesOrdered::new(), bytes: 0, all }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Is it time to hear no more?
    pub(super) fn is_full(&self) -> bool {
        let are_too_much = || !self.is_empty() && self.all.load(Ordering::Relaxed) >= MOST_OF_ALL;
        self.waiting.len() >= MOST || self.bytes >= MOST_BYTES || are_too_much()
    }

    /// Has one wait for its room, which is counted from now on, and for those before it. `size` in
    /// bytes.
    pub(super) fn push(
        &mut self,
        command: Command,
        size: usize,
        large: Taken,
        room: impl Future<Output = Result<(), QueueError>> + Send + 'a,
    ) {
        self.bytes += size;
        self.all.fetch_add(size, Ordering::Relaxed);
        let waits = async move { Waited { command, room: room.await, size, _large: large } };
        self.waiting.push_back(Box::pin(waits));
    }

    /// The first one, once its waiting is over; never where none waits. May be dropped while it waits.
    pub(super) async fn next(&mut self) -> Waited {
        match self.waiting.next().await {
            Some(waited) => {
                self.bytes -= waited.size;
                self.all.fetch_sub(waited.size, Ordering::Relaxed);
                waited
            }
            None => std::future::pending().await,
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::time::Duration;

    use tokio::sync::oneshot;
    use tokio::time::timeout;

    use super::*;
    use crate::openwire::{FlushCommand, Head};

    fn command(number: i32) -> Command {
        FlushCommand { head: Head { command_id: number, response_required: false } }.into()
    }

    #[tokio::test]
    async fn none_overtakes_another_though_its_room_comes_first() {
        let (opens, opened) = oneshot::channel();
        let mut held = Held::default();
        held.push(command(1), 10, Taken::default(), async { opened.await.map_err(|_| QueueError::Stopped) });
        held.push(command(2), 10, Taken::default(), ready(Ok(())));
        assert!(timeout(Duration::from_millis(20), held.next()).await.is_err());
        opens.send(()).unwrap();
        for number in [1, 2] {
            let waited = held.next().await;
            assert_eq!((waited.command.head().command_id, waited.room.is_ok()), (number, true));
        }
        assert!(held.is_empty() && held.bytes == 0);
    }

    #[tokio::test]
    async fn so_much_waits_and_no_more() {
        let mut held = Held::default();
        for number in 0..1023 {
            held.push(command(number), 1, Taken::default(), pending());
        }
        assert!(!held.is_full());
        held.push(command(1023), 1, Taken::default(), pending());
        assert!(held.is_full());
        let mut held = Held::default();
        held.push(command(0), 64 << 20, Taken::default(), ready(Err(QueueError::Stopped)));
        assert!(held.is_full());
        assert!(held.next().await.room.is_err() && !held.is_full());
    }

    #[tokio::test]
    async fn what_all_hold_is_bounded_and_who_holds_nothing_is_heard() {
        let all = Arc::new(AtomicUsize::new(0));
        let crowd: Vec<Held<'_>> = (0..64)
            .map(|number| {
                let mut held = Held::among(Arc::clone(&all));
                held.push(command(number), MOST_BYTES - 1, Taken::default(), pending());
                held
            })
            .collect();
        let (mut one, none) = (Held::among(Arc::clone(&all)), Held::among(Arc::clone(&all)));
        one.push(command(64), 64, Taken::default(), ready(Ok(())));
        assert!(one.is_full() && crowd.iter().all(Held::is_full) && !none.is_full());
        assert!(one.next().await.room.is_ok() && !one.is_full() && !crowd[0].is_full());
        drop((crowd, one, none));
        assert_eq!(all.load(Ordering::Relaxed), 0);
    }
}
