//! A browser: shows a queue's messages in their order, page by page, and takes none. Knows how far
//! it is; its client tells by acknowledging how much more it may be shown.

use std::sync::Arc;

use tokio::sync::mpsc::Sender;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::openwire::{Command, ConsumerId, Destination, MessageDispatch};
use crate::queue::message::{self, Id, Placed};
use crate::queue::{Delivery, QueueError, Queues};

use super::letter;
use super::moment_ms;
use super::seats::Window;
use super::telling::Reply;

/// Messages read at once, and bytes of them (or one message).
const PAGE: (usize, usize) = (100, 64 << 10);

/// Who browses what.
pub(super) struct Browser {
    pub(super) queues: Queues,
    pub(super) queue: message::Destination,
    pub(super) consumer: ConsumerId,
    pub(super) source: Destination,
    pub(super) window: Window,
    pub(super) replies: Sender<Reply>,
    pub(super) room: Pages,
}

/// Where pages are held until the client's socket has them. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Pages {
    /// Of all connections, in KiB, for messages larger than a page: others need none but their own.
    all: Arc<Semaphore>,
    most: usize,
    /// Of this one: its browsers have one page among them.
    own: Arc<Semaphore>,
}

/// A page's room; free once all that it showed is on its way.
#[derive(Debug)]
pub(super) struct Room {
    _own: OwnedSemaphorePermit,
    _all: Option<OwnedSemaphorePermit>,
}

impl Pages {
    /// For a connection that takes its room from all that there is. `most`: for one message, in bytes.
    pub(super) fn new(all: Arc<Semaphore>, most: usize) -> Self {
        Self { all, most, own: Arc::new(Semaphore::new(1)) }
    }

    /// Waits for room for so many bytes; `None` once the broker has ended.
    async fn take(&self, own: OwnedSemaphorePermit, bytes: usize) -> Option<Arc<Room>> {
        let kib = u32::try_from(bytes.min(self.most) >> 10).unwrap_or(u32::MAX);
        let all = if bytes > PAGE.1 {
            Some(Arc::clone(&self.all).acquire_many_owned(kib).await.ok()?)
        } else {
            None
        };
        Some(Arc::new(Room { _own: own, _all: all }))
    }
}

impl Browser {
    /// Shows everything, and tells the end. Ends early with its connection.
    pub(super) async fn run(self) {
        let mut after = Id::default();
        loop {
            // Nothing is read that the client does not take now, and nothing without room for it.
            let most = self.window.room().await.min(PAGE.0);
            let Ok(own) = Arc::clone(&self.room.own).acquire_owned().await else { return };
            let size = self.queues.weigh(self.queue.clone(), after).await;
            let size = size.inspect_err(|error| self.complain(error)).ok().flatten();
            let Some(size) = size else { break };
            let Some(room) = self.room.take(own, size).await else { return };
            let page = self.queues.browse(self.queue.clone(), after, most, PAGE.1).await;
            let page = page.inspect_err(|error| self.complain(error)).unwrap_or_default();
            let Some(last) = page.last() else { break };
            after = last.id;
            for shown in page.into_iter().filter_map(|placed| self.shown(placed)) {
                self.window.show();
                let shown = Reply::Shown(Box::new(shown), Arc::clone(&room));
                if self.replies.send(shown).await.is_err() {
                    return;
                }
            }
        }
        // Nobody is there to be told once the connection has ended.
        let _gone = self.replies.send(Reply::Now(MessageDispatch::end(self.consumer.clone()).into())).await;
    }

    fn complain(&self, error: &QueueError) {
        // A queue that nobody has used yet is empty.
        if !matches!(error, QueueError::NoQueue { .. }) {
            tracing::warn!("broker: browsing {}: {error}; the browser sees the end there", self.queue);
        }
    }

    fn shown(&self, placed: Placed) -> Option<Command> {
        let Placed { id, message, .. } = placed;
        let delivery = Delivery { consumer: 0, id, size: 0, redeliveries: 0, first: false, message };
        let shown = letter::dispatch(&delivery, &self.consumer, &self.source, moment_ms());
        shown.map(Command::from).inspect_err(|error| tracing::error!("broker: {}: {error}", self.queue)).ok()
    }
}
