//! A connection's consumers, as its client opens, steers and closes them: those that take messages,
//! browsers, and those that listen for news of the broker itself. Knows no transaction.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::mpsc::Sender;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::broker::browser::{Browser, Pages};
use crate::broker::fault::Refused;
use crate::broker::letter;
use crate::broker::seats::{Patience, Seat, Seats, Window};
use crate::broker::telling::Reply;
use crate::broker::temporaries::{is_advisory, tells_of_temporaries};
use crate::openwire::{
    AckKind, ConsumerControl, ConsumerId, ConsumerInfo, Destination, MessageAck, MessagePull,
};
use crate::queue::core::{ConsumerKey, Filter, Seen, Terms};
use crate::queue::{Queues, Session};

/// Consumers of one connection.
const MOST: usize = 10_000;
/// Browsers of one connection.
const MOST_BROWSERS: usize = 16;
/// The longest that a pull waits; longer is for ever.
const LONGEST_PULL: Duration = Duration::from_secs(365 * 86_400);

/// All of a connection's, by the client's numbers of session and consumer.
pub(super) struct Consumers<'a> {
    queues: Queues,
    session: &'a Session,
    seats: Seats,
    replies: Sender<Reply>,
    open: HashMap<(i64, i64), Reads>,
    pages: Pages,
}

/// What one does.
enum Reads {
    Messages(ConsumerKey),
    Browses { window: Window, _task: AbortOnDropHandle<()> },
    News { watches: bool },
}

impl<'a> Consumers<'a> {
    pub(super) fn new(
        queues: Queues,
        session: &'a Session,
        seats: Seats,
        replies: Sender<Reply>,
        pages: Pages,
    ) -> Self {
        Self { queues, session, seats, replies, open: HashMap::new(), pages }
    }

    /// Opens one.
    ///
    /// # Errors
    /// What is not served, and what the queues refuse.
    pub(super) async fn open(&mut self, info: ConsumerInfo) -> Result<(), Refused> {
        let place = place(&info.consumer_id);
        if self.open.contains_key(&place) {
            return Ok(());
        }
        if self.open.len() >= MOST {
            return Err(Refused::TooMany { what: "consumers", most: MOST });
        }
        let reads = if is_advisory(&info.destination) {
            let watches = tells_of_temporaries(&info.destination);
            if watches {
                let _deaf = self.replies.send(Reply::Watch(detached(&info.consumer_id))).await;
            }
            Reads::News { watches }
        } else {
            refuse_unserved(&info)?;
            if info.browser { self.browse(&info)? } else { self.read(&info).await? }
        };
        self.open.insert(place, reads);
        Ok(())
    }

    async fn read(&self, info: &ConsumerInfo) -> Result<Reads, Refused> {
        let queue = letter::queue_of(&info.destination)?;
        let key = self.session.consumer();
        // Its messages may come before the answer.
        self.seats.add(key, Seat::new(detached(&info.consumer_id), source(&info.destination)));
        let answered = match self.session.subscribe(key, queue, terms(info)).await {
            Ok(answer) => answer.await,
            Err(error) => Err(error),
        };
        match answered {
            Ok(_) => Ok(Reads::Messages(key)),
            Err(error) => {
                self.seats.remove(key);
                Err(error.into())
            }
        }
    }

    fn browse(&self, info: &ConsumerInfo) -> Result<Reads, Refused> {
        let browsers = self.open.values().filter(|reads| matches!(reads, Reads::Browses { .. })).count();
        if browsers >= MOST_BROWSERS {
            return Err(Refused::TooMany { what: "browsers", most: MOST_BROWSERS });
        }
        let window = Window::new(amount(info.prefetch));
        let browser = Browser {
            queues: self.queues.clone(),
            queue: letter::queue_of(&info.destination)?,
            consumer: detached(&info.consumer_id),
            source: source(&info.destination),
            window: window.clone(),
            replies: self.replies.clone(),
            room: self.pages.clone(),
        };
        Ok(Reads::Browses { window, _task: AbortOnDropHandle::new(tokio::spawn(browser.run())) })
    }

    /// Whose messages an acknowledgement is about; nobody's if it takes none out of a queue.
    ///
    /// # Errors
    /// [`Refused::NoConsumer`].
    pub(super) fn acknowledged(&self, ack: &MessageAck) -> Result<Option<ConsumerKey>, Refused> {
        match self.find(&ack.consumer_id)? {
            Reads::Messages(key) => Ok(Some(*key)),
            Reads::Browses { window, .. } => {
                let count = if ack.kind == AckKind::Individual { 1 } else { amount(ack.count) };
                window.seen(count);
                Ok(None)
            }
            Reads::News { .. } => Ok(None),
        }
    }

    /// One without prefetch wants a message.
    ///
    /// # Errors
    /// [`Refused::NoConsumer`]; the queues are stopped.
    pub(super) async fn pull(&self, pull: &MessagePull) -> Result<(), Refused> {
        let Reads::Messages(key) = *self.find(&pull.consumer_id)? else { return Ok(()) };
        let patience = match u64::try_from(pull.timeout) {
            Ok(1..) => {
                let time = Duration::from_millis(pull.timeout.unsigned_abs()).min(LONGEST_PULL);
                Patience::Until(Instant::now() + time)
            }
            _ => Patience::Endless,
        };
        self.seats.pull(key, patience);
        self.session.pull(key, 1).await?;
        if pull.timeout < 0 {
            let answer = self.session.sync().await?;
            let _deaf = self.replies.send(Reply::Pulled(answer, key)).await;
        }
        Ok(())
    }

    /// Closes one, or has another number of messages under way to it.
    ///
    /// # Errors
    /// [`Refused::NoConsumer`]; the queues are stopped.
    pub(super) async fn control(&mut self, control: &ConsumerControl) -> Result<(), Refused> {
        let Some(id) = &control.consumer_id else { return Ok(()) };
        if control.close {
            return self.close(id, Seen::Unknown).await;
        }
        if let Reads::Messages(key) = *self.find(id)? {
            self.session.prefetch(key, amount(control.prefetch)).await?;
        }
        Ok(())
    }

    /// Closes one. What it had goes back; that of `seen` has been delivered once more.
    ///
    /// # Errors
    /// The queues are stopped.
    pub(super) async fn close(&mut self, id: &ConsumerId, seen: Seen) -> Result<(), Refused> {
        match self.open.remove(&place(id)) {
            Some(reads) => self.end(reads, seen).await,
            // Closed before, with its session.
            None => Ok(()),
        }
    }

    /// Closes those of a session, or all.
    ///
    /// # Errors
    /// The queues are stopped.
    pub(super) async fn close_all(&mut self, session: Option<i64>, seen: Seen) -> Result<(), Refused> {
        let meant = |(of, _): &(i64, i64)| session.is_none_or(|session| session == *of);
        let closed: Vec<_> = self.open.extract_if(|place, _| meant(place)).collect();
        for (_, reads) in closed {
            self.end(reads, seen).await?;
        }
        Ok(())
    }

    async fn end(&self, reads: Reads, seen: Seen) -> Result<(), Refused> {
        match reads {
            Reads::Messages(key) => {
                self.seats.remove(key);
                // Waited for, so that whoever is told of the end finds the messages back in their queue.
                self.session.unsubscribe(key, seen).await?.await?;
            }
            Reads::News { watches: true } => {
                let _deaf = self.replies.send(Reply::Unwatch).await;
            }
            Reads::News { watches: false } | Reads::Browses { .. } => {}
        }
        Ok(())
    }

    fn find(&self, id: &ConsumerId) -> Result<&Reads, Refused> {
        let unknown = || Refused::NoConsumer(format!("{}:{}:{}", id.connection, id.session, id.value));
        self.open.get(&place(id)).ok_or_else(unknown)
    }
}

fn refuse_unserved(info: &ConsumerInfo) -> Result<(), Refused> {
    let selects = info.selector.as_ref().is_some_and(|selector| !selector.to_string().trim().is_empty());
    let unserved = [(info.subscription.is_some(), "durable subscriptions"), (selects, "selectors")];
    let unserved = unserved.into_iter().find(|(asked, _)| *asked);
    unserved.map_or(Ok(()), |(_, what)| Err(Refused::Unserved(what)))
}

fn terms(info: &ConsumerInfo) -> Terms {
    let filter = info.additional_predicate.as_ref();
    Terms {
        prefetch: amount(info.prefetch),
        priority: info.priority,
        exclusive: info.exclusive,
        filter: filter
            .map(|filter| Filter::new(&filter.network_broker.value.to_string(), filter.message_ttl)),
    }
}

fn place(id: &ConsumerId) -> (i64, i64) {
    (id.session, id.value)
}

/// A number of messages; none where it is negative.
fn amount(number: i32) -> usize {
    usize::try_from(number).unwrap_or_default()
}

/// Kept for long: not as a slice of what was read.
fn detached(id: &ConsumerId) -> ConsumerId {
    ConsumerId { connection: id.connection.detached(), ..*id }
}

fn source(destination: &Destination) -> Destination {
    Destination { kind: destination.kind, name: destination.name.detached() }
}
