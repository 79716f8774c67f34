//! A browser: shows a queue's messages in their order, page by page, and takes none. Knows how far
//! it is; its client tells by acknowledging how much more it may be shown.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::sync::mpsc::Sender;

use crate::openwire::{Command, ConsumerId, Destination, MessageDispatch};
use crate::queue::message::{self, Id, Placed};
use crate::queue::{Delivery, QueueError, Queues};

use super::letter;
use super::moment_ms;
use super::seats::Window;
use super::telling::Reply;

/// Messages read at once, and bytes of them (or one message).
const PAGE: (usize, usize) = (100, 64 << 10);
/// Bytes on their way to the client's socket; one larger message may always go.
const ON_THE_WAY: usize = 256 << 10;

/// Who browses what.
pub(super) struct Browser {
    pub(super) queues: Queues,
    pub(super) queue: message::Destination,
    pub(super) consumer: ConsumerId,
    pub(super) source: Destination,
    pub(super) window: Window,
    pub(super) replies: Sender<Reply>,
}

impl Browser {
    /// Shows everything, and tells the end. Ends early with its connection.
    pub(super) async fn run(self) {
        let on_the_way = Arc::new(Semaphore::new(ON_THE_WAY));
        let mut after = Id::default();
        loop {
            let page = self.queues.browse(self.queue.clone(), after, PAGE.0, PAGE.1).await;
            let page = page.unwrap_or_else(|error| self.give_up(&error));
            let Some(last) = page.last() else { break };
            after = last.id;
            for placed in page {
                let size = placed.message.body.len().min(ON_THE_WAY);
                let room = u32::try_from(size).unwrap_or(u32::MAX);
                let Ok(room) = Arc::clone(&on_the_way).acquire_many_owned(room).await else { return };
                self.window.show().await;
                let Some(shown) = self.shown(placed) else { continue };
                if self.replies.send(Reply::Shown(Box::new(shown), room)).await.is_err() {
                    return;
                }
            }
        }
        // Nobody is there to be told once the connection has ended.
        let _gone = self.replies.send(Reply::Now(MessageDispatch::end(self.consumer.clone()).into())).await;
    }

    fn give_up(&self, error: &QueueError) -> Vec<Placed> {
        // A queue that nobody has used yet is empty.
        if !matches!(error, QueueError::NoQueue { .. }) {
            tracing::warn!("broker: browsing {}: {error}; the browser sees the end there", self.queue);
        }
        Vec::new()
    }

    fn shown(&self, placed: Placed) -> Option<Command> {
        let Placed { id, message, .. } = placed;
        let delivery = Delivery { consumer: 0, id, redeliveries: 0, first: false, message };
        let shown = letter::dispatch(&delivery, &self.consumer, &self.source, moment_ms());
        shown.map(Command::from).inspect_err(|error| tracing::error!("broker: {}: {error}", self.queue)).ok()
    }
}
