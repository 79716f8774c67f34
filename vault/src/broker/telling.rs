//! The writing half of a connection: answers in the order in which they were asked for, deliveries,
//! news and signs of life, gathered into portions for the socket. Knows the wire's frames and no
//! queue's rules. A slow reader holds one portion and what the queues count against it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Buf as _;
use futures_util::FutureExt as _;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, sleep_until, timeout};

use crate::openwire::{
    Command, ConnectionError, ConnectionId, ConsumerId, EncodeError, ExceptionResponse, Head, KeepAliveInfo,
    MessageDispatch, Outgoing, ProducerAck, ProducerId, Response,
};
use crate::queue::core::{AckKind, ConsumerKey, Done, Refusal};
use crate::queue::message::Id;
use crate::queue::{Answer, Deliveries, Delivery, QueueError, Session};

use super::browser::Room;
use super::connection::End;
use super::fault::Refused;
use super::large::Pace;
use super::letter;
use super::seats::Seats;
use super::temporaries::{Temporaries, Watch};
use super::{Hall, moment_ms};

/// Bytes that are gathered before the socket is asked.
const PORTION: usize = 64 << 10;
/// Deliveries to others that may come before the one that a pull waits for.
const MOST_AT_ONCE: usize = 1000;
/// A peer that takes not one byte for so long is given up.
const STALLED: Duration = Duration::from_secs(60);

/// A client with short frames waits so long at most for what comes behind its first message to be looked at.
const LOOKS: Duration = Duration::from_secs(1);

/// Why the broker itself gives a message up.
const UNDELIVERABLE: &str = "vault: it is larger than any consumer takes, or damaged; see the vault's log";

/// What the reading half hands over, in order.
#[derive(Debug)]
pub(super) enum Reply {
    /// Ready to go.
    Now(Command),
    /// A message for a browser, and its page's room.
    Shown(Box<Command>, Arc<Room>),
    /// Once the queues have answered.
    Later(Answer<Done>, Box<Then>),
    /// From now on this consumer is told of temporary queues.
    Watch(ConsumerId),
    /// Nobody is told any more.
    Unwatch,
    /// The messages that came until the answer are all that a pull without patience gets.
    Pulled(Answer<Done>, ConsumerKey),
}

/// What an answer of the queues is turned into.
#[derive(Debug)]
pub(super) struct Then {
    /// Of the command that asked.
    pub(super) head: Head,
    /// For a producer with a window: so many bytes of it are free again.
    pub(super) window: Option<(ProducerId, i32)>,
    /// How the transaction is called that the queues may not know.
    pub(super) transaction: Option<String>,
    /// Where it is refused the transaction is rolled back.
    pub(super) commits: bool,
}

/// The writing half.
pub(super) struct Telling<'a, W> {
    pub(super) socket: W,
    pub(super) outgoing: Outgoing,
    pub(super) deliveries: Deliveries,
    pub(super) replies: Replies,
    pub(super) session: &'a Session,
    pub(super) seats: Seats,
    pub(super) connection: ConnectionId,
    pub(super) temporaries: Temporaries,
    pub(super) watch: Option<Watch>,
    /// The longest that nothing is said.
    pub(super) beat: Option<Duration>,
    pub(super) hall: Arc<Hall>,
    /// The longest frame that this client takes, in bytes, where others take longer ones.
    pub(super) narrow: Option<usize>,
    /// What can be delivered to nobody: it would come back for ever.
    pub(super) poison: Vec<(ConsumerKey, Id)>,
    /// What this client does not take though others may: it is the connection's end.
    pub(super) ends: Option<Refused>,
    /// Those who pulled, and wait no more.
    pub(super) given_up: Vec<ConsumerKey>,
    /// Rooms of browsers' pages that are gathered for the socket.
    pub(super) shown: Vec<Arc<Room>>,
}

/// Replies in the order in which they were asked for, each when it is known.
pub(super) struct Replies {
    inbox: Receiver<Reply>,
    first: Option<Reply>,
}

/// A reply that is known.
enum Known {
    Tell(Command),
    Show(Box<Command>, Arc<Room>),
    Answered(Result<Done, QueueError>, Box<Then>),
    Watch(Option<ConsumerId>),
    Pulled(ConsumerKey),
}

/// What comes next.
enum Next {
    Delivery(Option<Delivery>),
    Reply(Option<Known>),
    News(Vec<Command>),
    PullEnds(ConsumerKey),
    Beat,
    Look,
}

impl Replies {
    pub(super) fn new(inbox: Receiver<Reply>) -> Self {
        Self { inbox, first: None }
    }

    /// The next one; `None` when the reading half has ended and all is said. May be dropped while it
    /// waits.
    async fn next(&mut self) -> Option<Known> {
        if self.first.is_none() {
            self.first = Some(self.inbox.recv().await?);
        }
        let answered = match &mut self.first {
            Some(Reply::Later(answer, _) | Reply::Pulled(answer, _)) => Some(answer.await),
            _ => None,
        };
        Some(match (self.first.take()?, answered) {
            (Reply::Later(_, then), Some(answered)) => Known::Answered(answered, then),
            (Reply::Pulled(_, key), _) => Known::Pulled(key),
            (Reply::Watch(consumer), _) => Known::Watch(Some(consumer)),
            (Reply::Now(command), _) => Known::Tell(command),
            (Reply::Shown(command, room), _) => Known::Show(command, room),
            (Reply::Unwatch, _) | (Reply::Later(..), None) => Known::Watch(None),
        })
    }
}

impl<W: AsyncWrite + Unpin> Telling<'_, W> {
    /// Tells until the reading half has ended and its last reply is out.
    ///
    /// # Errors
    /// The socket's; [`io::ErrorKind::TimedOut`] for a peer that reads nothing; [`Refused::Misfit`].
    pub(super) async fn run(mut self) -> Result<(), End> {
        let mut said = Instant::now();
        loop {
            let next = self.next(said).await;
            let mut goes_on = self.take_warily(next).await;
            while goes_on && self.ends.is_none() && self.outgoing.remaining() < PORTION {
                let before = self.outgoing.remaining();
                if let Some(delivery) = self.deliveries.next().now_or_never() {
                    goes_on = self.take_warily(Next::Delivery(delivery)).await;
                }
                if !self.is_telling_all()
                    && let Some(reply) = self.replies.next().now_or_never()
                {
                    goes_on = self.take(Next::Reply(reply));
                }
                if self.outgoing.remaining() == before {
                    break;
                }
            }
            for (consumer, id) in std::mem::take(&mut self.poison) {
                // Where even that is refused the consumer has ended.
                let kind = AckKind::Poison(Some(UNDELIVERABLE.to_owned()));
                let _asked = self.session.acknowledge(consumer, (Some(id), id), kind, None).await;
            }
            if self.ends.is_some() {
                // Only what was said to it counts as given away once more.
                for (consumer, seen) in self.seats.seen() {
                    let _asked = self.session.unsubscribe(consumer, seen).await;
                }
            }
            for key in std::mem::take(&mut self.given_up) {
                // Where that fails the queues are stopped.
                let _asked = self.session.pull(key, 0).await;
            }
            if self.outgoing.has_remaining() {
                self.flush().await?;
                said = Instant::now();
            }
            self.shown.clear();
            if let Some(refused) = self.ends.take() {
                return Err(End::Refused(refused));
            }
            if !goes_on {
                return Ok(());
            }
        }
    }

    /// A watcher must have heard of all that there are before it is told that it watches: to what it has not
    /// heard of it sends nothing.
    fn is_telling_all(&self) -> bool {
        self.watch.as_ref().is_some_and(Watch::is_telling_all)
    }

    async fn next(&mut self, said: Instant) -> Next {
        let is_telling_all = self.is_telling_all();
        let pull = self.seats.next_to_give_up();
        let beat = self.beat;
        let news = async {
            match &mut self.watch {
                Some(watch) => watch.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            delivery = self.deliveries.next() => Next::Delivery(delivery),
            reply = self.replies.next(), if !is_telling_all => Next::Reply(reply),
            news = news => Next::News(news),
            key = pull_ends(pull) => Next::PullEnds(key),
            () = self.seats.waits.notified() => Next::Look,
            () = beats(said, beat) => Next::Beat,
        }
    }

    /// Does it go on? A client whose frames are short is given nothing in front of what does not fit, as far
    /// as that can be seen beforehand: it comes back at once, and each time all of it would have been tried.
    async fn take_warily(&mut self, next: Next) -> bool {
        match (next, self.narrow) {
            (Next::Delivery(Some(first)), Some(limit)) if self.seats.is_new(first.consumer) => {
                Box::pin(self.look_ahead(first, limit)).await;
                true
            }
            (next, _) => self.take(next),
        }
    }

    /// Looks through what has come before any of it is said.
    async fn look_ahead(&mut self, first: Delivery, limit: usize) {
        // What a new consumer is given at once has come when its queue answers.
        let _in_trouble = timeout(LOOKS, async { self.session.sync().await?.await }).await;
        let most = self.hall.settings.max_frame();
        let (mut ahead, mut bytes) = (vec![first], 0);
        while let Some(last) = ahead.last() {
            let length = last.message.body.len();
            if length > limit && length <= most {
                return self.end(Refused::Misfit { length, limit });
            }
            bytes += length;
            if bytes >= PORTION || ahead.len() >= MOST_AT_ONCE {
                break;
            }
            let Some(Some(more)) = self.deliveries.next().now_or_never() else { break };
            ahead.push(more);
        }
        ahead.iter().for_each(|delivery| self.deliver(delivery));
    }

    /// Does it go on?
    fn take(&mut self, next: Next) -> bool {
        match next {
            Next::Delivery(Some(delivery)) => self.deliver(&delivery),
            Next::Delivery(None) | Next::Reply(None) => return false,
            Next::Reply(Some(reply)) => return self.reply(reply),
            Next::News(news) => news.iter().for_each(|news| self.say(news)),
            Next::PullEnds(key) => self.end_pull(key),
            Next::Beat => {
                self.say(&KeepAliveInfo { head: Head::default() }.into());
            }
            Next::Look => {}
        }
        true
    }

    fn deliver(&mut self, delivery: &Delivery) {
        // One that has been closed meanwhile gave its messages back, and so does a connection that ends.
        let Some(seat) = self.seats.take(delivery.consumer).filter(|_| self.ends.is_none()) else { return };
        let fault = match letter::dispatch(delivery, &seat.id, &seat.source, moment_ms()) {
            Ok(dispatch) => match self.outgoing.push(&dispatch.into()) {
                Ok(()) => {
                    seat.say(delivery.id);
                    return self.hall.counts.delivered.inc();
                }
                Err(too_long) => match self.misfit(&too_long) {
                    Some(refused) => return self.end(refused),
                    None => too_long.to_string(),
                },
            },
            Err(damaged) => damaged.to_string(),
        };
        let (name, queue) = (&delivery.message.name, &seat.source.name);
        let what = format!("message {name} of {queue} cannot be delivered: {fault}; it is a dead letter");
        self.hall.complaints.tell(&what);
        self.poison.push((delivery.consumer, delivery.id));
    }

    /// Why a frame that this client does not take is the client's own matter: this broker's limit passes it.
    fn misfit(&self, error: &EncodeError) -> Option<Refused> {
        let most = self.hall.settings.max_frame();
        match *error {
            EncodeError::TooLong { length, limit } if limit < most && length <= most => {
                Some(Refused::Misfit { length, limit })
            }
            _ => None,
        }
    }

    /// Tells a client why its connection ends; it may be given what it has not seen once it has changed that.
    fn end(&mut self, refused: Refused) {
        if self.ends.is_none() {
            let told = refusal(&refused, Head::default(), &self.connection);
            // Where even that is too long for it, the log alone tells why.
            let _too_long = self.outgoing.push(&told);
            self.ends = Some(refused);
        }
    }

    fn reply(&mut self, reply: Known) -> bool {
        match reply {
            Known::Tell(command) => self.say(&command),
            Known::Show(command, room) => {
                let pushed = self.outgoing.push(&command).map_err(|error| (self.misfit(&error), error));
                match pushed {
                    Ok(()) => {}
                    Err((Some(refused), _)) => self.end(refused),
                    Err((None, error)) => {
                        self.hall.complaints.tell(&format!("a message cannot be shown: {error}"));
                    }
                }
                self.shown.push(room);
            }
            Known::Answered(answered, then) => return self.answered(answered, *then),
            Known::Watch(None) => self.watch = None,
            Known::Watch(Some(consumer)) => self.watch = Some(self.temporaries.watch(consumer)),
            Known::Pulled(key) => {
                // What there was has come by now.
                for _ in 0..MOST_AT_ONCE {
                    let Some(Some(delivery)) = self.deliveries.next().now_or_never() else { break };
                    self.deliver(&delivery);
                }
                self.end_pull(key);
            }
        }
        true
    }

    fn answered(&mut self, answered: Result<Done, QueueError>, then: Then) -> bool {
        let refused = match answered {
            Ok(_) => {
                if let Some((producer_id, size)) = then.window {
                    self.say(&ProducerAck { head: Head::default(), producer_id, size }.into());
                }
                if then.head.response_required {
                    self.say(&done(then.head));
                }
                return true;
            }
            // The client asks the other broker.
            Err(QueueError::Stopped) => return false,
            Err(error) => match then.transaction {
                Some(transaction) if is_unknown(&error) => Refused::NoTransaction(transaction),
                Some(transaction) if then.commits => {
                    Refused::RolledBack { transaction, why: error.to_string() }
                }
                _ => Refused::from(error),
            },
        };
        self.say(&refusal(&refused, then.head, &self.connection));
        true
    }

    fn end_pull(&mut self, key: ConsumerKey) {
        if let Some(seat) = self.seats.give_up(key) {
            self.given_up.push(key);
            self.say(&MessageDispatch::end(seat.id.clone()).into());
        }
    }

    /// Says it, or ends the connection: who waits for an answer that cannot be sent would wait for ever.
    fn say(&mut self, command: &Command) {
        match self.outgoing.push(command) {
            Ok(()) => {}
            Err(EncodeError::TooLong { length, limit }) => self.end(Refused::Narrow { length, limit }),
            Err(error @ EncodeError::TooMany(_)) => self.end(error.into()),
        }
    }

    async fn flush(&mut self) -> io::Result<()> {
        let (begun, mut written, mut pace) = (Instant::now(), 0, Pace::default());
        while self.outgoing.has_remaining() {
            // Other browsers wait for the room of what these are shown.
            let paced = pace.left(begun.elapsed(), written);
            let longest = if self.shown.is_empty() { STALLED } else { STALLED.min(paced) };
            let wrote = timeout(longest, self.socket.write_buf(&mut self.outgoing)).await;
            match wrote.map_err(|_| io::ErrorKind::TimedOut)?? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                more => written += more,
            }
        }
        timeout(STALLED, self.socket.flush()).await.map_err(|_| io::ErrorKind::TimedOut)?
    }
}

async fn pull_ends(pull: Option<(ConsumerKey, Instant)>) -> ConsumerKey {
    match pull {
        Some((key, end)) => {
            sleep_until(end).await;
            key
        }
        None => std::future::pending().await,
    }
}

async fn beats(said: Instant, beat: Option<Duration>) {
    match beat {
        Some(beat) => sleep_until(said + beat).await,
        None => std::future::pending().await,
    }
}

fn is_unknown(error: &QueueError) -> bool {
    matches!(error, QueueError::Refused(Refusal::NoTransaction))
}

/// The answer to a command that has been done.
pub(super) fn done(head: Head) -> Command {
    Response::to(head).into()
}

/// The answer to a command that has not: to one that nobody waits for, an error of the connection.
pub(super) fn refusal(refused: &Refused, head: Head, connection: &ConnectionId) -> Command {
    if head.response_required {
        ExceptionResponse::to(head, refused.throwable()).into()
    } else {
        let connection_id = Some(connection.clone());
        let exception = Some(refused.throwable());
        ConnectionError { head: Head::default(), exception, connection_id }.into()
    }
}
