//! The reading half of a connection: what each command of a client asks of the queues. Knows JMS's
//! rules as OpenWire tells them; answers go to the writing half in the order of the asking.
//!
//! Source: recorded connections of ActiveMQ 5.17's broker and Java client (tests/fixtures/openwire).

mod consumers;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use tokio::sync::mpsc::Sender;

use crate::openwire::{
    AckKind as Kind, Command, ConnectionId, ConsumerInfo, DataArrayResponse, DestinationAct, DestinationInfo,
    DestinationKind, Head, Message, MessageAck, ObjectId, ProducerId, ProducerInfo, RemoveInfo, Text,
    Throwable, TransactionAct, TransactionId, TransactionInfo,
};
use crate::queue::core::{AckKind, Done, Refusal, Seen, Send};
use crate::queue::message::{Destination, Id};
use crate::queue::{Answer, QueueError, Session};

use super::Hall;
use super::browser::Pages;
use super::connection::Client;
use super::fault::Refused;
use super::held::{Held, Waited};
use super::large::Taken;
use super::letter;
use super::moment_ms;
use super::seats::Seats;
use super::telling::{Reply, Then, done, refusal};
use super::temporaries::is_advisory;
use consumers::Consumers;

/// Producers with a window that one connection may have; and failed transactions that are remembered.
const MOST: usize = 10_000;

/// What a command without a body counts while it is held, bytes.
const TURN: usize = 512;

/// What a client asks for.
pub(super) struct Asking<'a> {
    hall: Arc<Hall>,
    client: &'a Client,
    session: &'a Session,
    consumers: Consumers<'a>,
    /// Producers that wait for their window to be freed.
    windows: BTreeSet<(i64, i64)>,
    temporaries: BTreeSet<Text>,
    /// Transactions that have begun and not ended.
    begun: BTreeSet<u64>,
    /// Transactions that cannot be committed any more, and why.
    failed: HashMap<u64, String>,
    /// Messages that find no room, and what must not overtake them.
    held: Held<'a>,
    /// Composite messages so far.
    composites: u64,
    replies: Sender<Reply>,
}

/// How it goes on after a command.
#[derive(Debug)]
pub(super) enum Goes {
    /// The next one.
    On,
    /// The client has said the last word.
    Closed,
    /// The connection is of no use any more.
    Refused(Refused),
    /// The writing half has ended.
    Deaf,
}

/// What became of a command.
enum Act {
    /// It is done; whoever waits is told.
    Done,
    /// Somebody else answers it.
    Told,
    /// The queues will say.
    Asked(Answer<Done>),
    /// The same, for a transaction's end.
    Ends(Answer<Done>, TransactionAct),
    /// It was the last one.
    Last,
}

impl<'a> Asking<'a> {
    pub(super) fn new(
        hall: &Arc<Hall>,
        client: &'a Client,
        session: &'a Session,
        seats: Seats,
        replies: Sender<Reply>,
    ) -> Self {
        let pages = Pages::new(Arc::clone(&hall.pages), hall.settings.max_frame());
        Self {
            hall: Arc::clone(hall),
            client,
            session,
            consumers: Consumers::new(hall.queues.clone(), session, seats, replies.clone(), pages),
            windows: BTreeSet::new(),
            temporaries: BTreeSet::new(),
            begun: BTreeSet::new(),
            failed: HashMap::new(),
            held: Held::among(Arc::clone(&hall.held)),
            composites: 0,
            replies,
        }
    }

    /// Does what a command asks, and has it answered. A message without room, and what must not
    /// overtake it, waits for [`Asking::obey_held`]; everything else goes on, for it may be what makes
    /// room. `large`: what it takes of the room for large frames.
    pub(super) async fn obey(&mut self, command: Command, large: Taken) -> Goes {
        let session = self.session;
        if let Command::Message(message) = &command {
            let (persistent, bound) = (letter::is_kept(message), message.transaction_id.is_some());
            if !self.held.is_empty() || !session.has_room(persistent, bound) {
                let (size, room) = (letter::size(message), session.hold(persistent, bound));
                if !session.has_room(persistent, bound)
                    && let Some(lack) = session.lack(persistent)
                {
                    self.hall.spell.held(lack, &self.client.user, &message.destination);
                }
                self.held.push(command, size, large, room);
                return Goes::On;
            }
        } else if !self.held.is_empty() && keeps_its_turn(&command) {
            self.held.push(command, TURN, large, std::future::ready(Ok(())));
            return Goes::On;
        }
        self.answer(command, Ok(())).await
    }

    /// Refuses a message that was too long to be read. Whose window it took, and for which transaction it
    /// was, stands in what was not read: with windows or held messages the connection ends, and every open
    /// transaction fails.
    pub(super) async fn miss(&mut self, head: Head, length: usize, limit: usize) -> Goes {
        let refused = Refused::Oversized { length, limit: limit.min(self.hall.settings.max_message) };
        let told = Reply::Now(refusal(&refused, head, &self.client.connection));
        let is_deaf = self.replies.send(told).await.is_err();
        let has_window = !self.windows.is_empty() && !head.response_required;
        if has_window || !self.held.is_empty() {
            return Goes::Refused(refused);
        }
        for key in &self.begun {
            self.failed.entry(*key).or_insert_with(|| refused.to_string());
        }
        if is_deaf { Goes::Deaf } else { Goes::On }
    }

    /// Waits for the first one that is held. May be dropped while it waits.
    pub(super) async fn next_held(&mut self) -> Waited {
        self.held.next().await
    }

    /// Does what one that was held asks, or refuses it for want of room.
    pub(super) async fn obey_held(&mut self, waited: Waited) -> Goes {
        let Waited { command, room, .. } = waited;
        if let (Command::Message(message), Err(QueueError::Full { lack, .. })) = (&command, &room) {
            self.hall.spell.refused(*lack, &self.client.user, &message.destination);
        }
        self.answer(command, room).await
    }

    /// Are so many held that no more should be heard?
    pub(super) fn is_full(&self) -> bool {
        self.held.is_full()
    }

    async fn answer(&mut self, command: Command, room: Result<(), QueueError>) -> Goes {
        let head = command.head();
        let (transaction, window) = (transaction_of(&command).cloned(), self.window_of(&command));
        let acted = match room {
            Ok(()) => self.act(command).await,
            Err(error) => Err(error.into()),
        };
        let reply = match acted {
            Ok(Act::Last) => return Goes::Closed,
            Ok(Act::Told) => return Goes::On,
            Ok(Act::Done) if !head.response_required => return Goes::On,
            Ok(Act::Done) => Reply::Now(done(head)),
            Ok(Act::Asked(answer)) => {
                let transaction = transaction.as_ref().map(named);
                Reply::Later(answer, Box::new(Then { head, window, transaction, commits: false }))
            }
            Ok(Act::Ends(answer, act)) => {
                let (transaction, commits) = (transaction.as_ref().map(named), act == TransactionAct::Commit);
                Reply::Later(answer, Box::new(Then { head, window, transaction, commits }))
            }
            Err(refused) => {
                self.fail(transaction.as_ref(), &refused);
                let told = Reply::Now(refusal(&refused, head, &self.client.connection));
                if refused.ends() {
                    let _deaf = self.replies.send(told).await;
                    return Goes::Refused(refused);
                }
                told
            }
        };
        if self.replies.send(reply).await.is_ok() { Goes::On } else { Goes::Deaf }
    }

    async fn act(&mut self, command: Command) -> Result<Act, Refused> {
        match command {
            Command::Message(message) => self.send(message).await,
            Command::MessageAck(ack) => self.acknowledge(ack).await,
            Command::MessagePull(pull) => self.consumers.pull(&pull).await.map(|()| Act::Told),
            Command::TransactionInfo(info) => self.transact(&info).await,
            // What is seldom asked has memory of its own, not some of every connection's.
            Command::ConsumerInfo(info) => Box::pin(self.open_consumer(*info)).await.map(|()| Act::Done),
            Command::ConsumerControl(control) => {
                Box::pin(self.consumers.control(&control)).await.map(|()| Act::Done)
            }
            Command::ProducerInfo(info) => self.open_producer(&info).map(|()| Act::Done),
            Command::DestinationInfo(info) => Box::pin(self.destination(*info)).await.map(|()| Act::Done),
            Command::RemoveInfo(info) => Box::pin(self.remove(*info)).await.map(|()| Act::Done),
            Command::FlushCommand(_) => Ok(Act::Asked(self.session.sync().await?)),
            Command::KeepAliveInfo(info) => self.alive(info.head).await,
            Command::ShutdownInfo(_) => Ok(Act::Last),
            Command::RemoveSubscriptionInfo(_) => Err(Refused::Unserved("durable subscriptions")),
            Command::BrokerInfo(info) => network(info.network),
            Command::ConnectionInfo(_) => Err(Refused::OutOfPlace("a second ConnectionInfo")),
            Command::ControlCommand(_) => Err(Refused::OutOfPlace("ControlCommand")),
            // Sessions have nothing of their own here. The rest tells a broker what it need not know.
            Command::SessionInfo(_)
            | Command::ConnectionControl(_)
            | Command::ConnectionError(_)
            | Command::ProducerAck(_)
            | Command::Response(_)
            | Command::ExceptionResponse(_) => Ok(Act::Done),
            Command::MessageDispatch(_) => Err(Refused::OutOfPlace("MessageDispatch")),
            Command::MessageDispatchNotification(_) => {
                Err(Refused::OutOfPlace("MessageDispatchNotification"))
            }
            Command::BrokerSubscriptionInfo(_) => network(true),
            Command::DataResponse(_) | Command::DataArrayResponse(_) | Command::IntegerResponse(_) => {
                Err(Refused::OutOfPlace("a response with data"))
            }
        }
    }

    async fn send(&mut self, message: Box<Message>) -> Result<Act, Refused> {
        if letter::is_scheduled(&message) {
            return Err(Refused::Unserved("scheduled messages (AMQ_SCHEDULED_DELAY and its like)"));
        }
        let (length, limit) = (letter::body_size(&message), self.hall.settings.max_message);
        if length > limit {
            return Err(Refused::Oversized { length, limit });
        }
        let transaction = message.transaction_id.as_ref().map(number).transpose()?;
        let queues = letter::queues_of(&message.destination)?;
        self.hall.counts.received.inc();
        match <[_; 1]>::try_from(queues) {
            Ok([queue]) => {
                let send = letter::to_queue(*message, queue, self.client.again, moment_ms())?;
                Ok(Act::Asked(self.session.send_now(self.own(send), transaction).await?))
            }
            Err(queues) => Box::pin(self.send_to_all(*message, queues, transaction)).await,
        }
    }

    /// To all of them or to none, whether its client has a transaction or not.
    async fn send_to_all(
        &mut self,
        message: Message,
        queues: Vec<Destination>,
        transaction: Option<u64>,
    ) -> Result<Act, Refused> {
        let (again, now) = (self.client.again, moment_ms());
        let sends = queues.into_iter().map(|queue| letter::to_one_of(&message, queue, again, now));
        let sends = sends.collect::<Result<Vec<_>, _>>()?;
        let own = u64::MAX - self.composites;
        if transaction.is_none() {
            self.composites += 1;
            let _begun = self.session.begin(own).await?;
        }
        let mut last = None;
        for send in sends {
            // A refusal of any of them is the transaction's: its commit tells it.
            last = Some(self.session.send_now(self.own(send), Some(transaction.unwrap_or(own))).await?);
        }
        match (transaction, last) {
            (Some(_), Some(last)) => Ok(Act::Asked(last)),
            _ => Ok(Act::Asked(self.session.commit(own).await?)),
        }
    }

    /// Producers' ids are their clients' own words: by user, nobody's messages are taken for another's
    /// that were sent before. No user's name has a space.
    fn own(&self, send: Send) -> Send {
        let owned = |(id, number)| (format!("{} {id}", self.client.user).into(), number);
        Send { producer: send.producer.map(owned), ..send }
    }

    async fn acknowledge(&mut self, ack: Box<MessageAck>) -> Result<Act, Refused> {
        let Some(key) = self.consumers.acknowledged(&ack)? else { return Ok(Act::Done) };
        let id = |id: &crate::openwire::MessageId| Id::from_number(id.broker_sequence);
        let (first, last) = (ack.first.as_ref().map(id), id(&ack.last));
        let (kind, first) = match ack.kind {
            // All that came before it has been seen too, whatever is acknowledged of it.
            Kind::Delivered => (AckKind::Delivered, None),
            Kind::Redelivered => (AckKind::Redelivered, first.or(Some(last))),
            Kind::Poison => (AckKind::Poison(ack.poison_cause.map(words)), first.or(Some(last))),
            Kind::Expired => (AckKind::Expired, first.or(Some(last))),
            Kind::Standard => (AckKind::Standard, first),
            Kind::Individual | Kind::Unmatched => (AckKind::Standard, Some(last)),
        };
        let ends = matches!(kind, AckKind::Standard | AckKind::Poison(_) | AckKind::Expired);
        let waits = kind != AckKind::Delivered;
        let transaction = ack.transaction_id.as_ref().filter(|_| ends).map(number).transpose()?;
        let single = first == Some(last);
        let most = if ends && !single { usize::try_from(ack.count).unwrap_or(0) } else { usize::MAX };
        let range = (first, last);
        let answer = self.session.acknowledge_counted(key, range, most, kind, transaction).await?;
        // What was seen may be acknowledged by now: then it takes no room any more.
        if waits { Ok(Act::Asked(answer)) } else { Ok(Act::Done) }
    }

    async fn transact(&mut self, info: &TransactionInfo) -> Result<Act, Refused> {
        let unserved = || Refused::Unserved("distributed (XA) transactions");
        if info.act == TransactionAct::Recover {
            // There is none that could wait for its second phase.
            let correlation_id = info.head.command_id;
            let none = DataArrayResponse { head: Head::default(), correlation_id, data: Some(Vec::new()) };
            let _deaf = self.replies.send(Reply::Now(none.into())).await;
            return Ok(Act::Told);
        }
        let id = info.transaction_id.as_ref().ok_or_else(unserved)?;
        let key = number(id)?;
        match info.act {
            TransactionAct::Begin if self.begun.len() >= MOST => {
                Err(Refused::TooMany { what: "open transactions", most: MOST })
            }
            TransactionAct::Begin => {
                self.begun.insert(key);
                Ok(Act::Asked(self.session.begin(key).await?))
            }
            TransactionAct::Commit => {
                self.begun.remove(&key);
                let Some(why) = self.failed.remove(&key) else {
                    return Ok(Act::Ends(self.session.commit(key).await?, info.act));
                };
                let _rolled_back = self.session.rollback(key).await?;
                Err(Refused::RolledBack { transaction: named(id), why })
            }
            TransactionAct::Rollback => {
                self.begun.remove(&key);
                self.failed.remove(&key);
                Ok(Act::Ends(self.session.rollback(key).await?, info.act))
            }
            _ => Err(unserved()),
        }
    }

    /// What a client is not told in time is told with the commit, which must not do half of it.
    fn fail(&mut self, transaction: Option<&TransactionId>, refused: &Refused) {
        let is_open = !matches!(refused, Refused::RolledBack { .. } | Refused::NoTransaction(_));
        if let Some(Ok(key)) = transaction.map(number)
            && is_open
            && self.failed.len() < MOST
        {
            self.failed.entry(key).or_insert_with(|| refused.to_string());
        }
    }

    async fn open_consumer(&mut self, info: ConsumerInfo) -> Result<(), Refused> {
        let (destination, temporary) = (&info.destination, DestinationKind::TempQueue);
        if info.browser && destination.kind == temporary && !self.temporaries.contains(&destination.name) {
            return Err(not_yours(destination));
        }
        self.consumers.open(info).await
    }

    fn open_producer(&mut self, info: &ProducerInfo) -> Result<(), Refused> {
        if let Some(destination) = &info.destination {
            letter::queues_of(destination)?;
        }
        if info.window > 0 {
            if self.windows.len() >= MOST {
                return Err(Refused::TooMany { what: "producers", most: MOST });
            }
            self.windows.insert(place(&info.producer_id));
        }
        Ok(())
    }

    /// How much of its producer's window a message has taken; whoever waits for an answer waits for
    /// no window.
    fn window_of(&self, command: &Command) -> Option<(ProducerId, i32)> {
        let Command::Message(message) = command else { return None };
        let producer = message.producer_id.as_ref().filter(|_| !message.head.response_required)?;
        let known = !self.windows.is_empty() && self.windows.contains(&place(producer));
        known.then(|| (producer.clone(), letter::window_size(message)))
    }

    async fn destination(&mut self, info: DestinationInfo) -> Result<(), Refused> {
        let name = &info.destination.name;
        match (info.destination.kind, info.act) {
            (DestinationKind::TempQueue, DestinationAct::Add) => {
                if !is_called_after(name, &self.client.connection) {
                    return Err(not_yours(&info.destination));
                }
                if !self.client.has_id {
                    return Err(Refused::ForeignId(self.client.connection.value.to_string()));
                }
                let queue = letter::queue_of(&info.destination)?;
                self.session.create_temporary(queue).await?.await?;
                self.hall.temporaries.add(name);
                self.temporaries.insert(name.detached());
                Ok(())
            }
            (DestinationKind::TempQueue, DestinationAct::Remove) => {
                let queue = letter::queue_of(&info.destination)?;
                self.session.delete_temporary(queue).await?.await?;
                self.temporaries.remove(name);
                self.hall.temporaries.remove(name);
                Ok(())
            }
            // Made at their first use.
            (DestinationKind::Queue, DestinationAct::Add) => letter::queue_of(&info.destination).map(drop),
            (DestinationKind::Queue, DestinationAct::Remove) => {
                Err(Refused::OutOfPlace("the removal of a queue, which its operator does,"))
            }
            _ if is_advisory(&info.destination) => Ok(()),
            _ => Err(Refused::Unserved("topics")),
        }
    }

    async fn remove(&mut self, info: RemoveInfo) -> Result<(), Refused> {
        let seen = match info.last_delivered {
            -1 => Seen::Nothing,
            number @ 0.. => Seen::UpTo(Id::from_number(number)),
            _ => Seen::Unknown,
        };
        match info.object {
            ObjectId::Consumer(id) => self.consumers.close(&id, seen).await,
            ObjectId::Session(id) => self.consumers.close_all(Some(id.value), seen).await,
            ObjectId::Connection(_) => self.consumers.close_all(None, seen).await,
            ObjectId::Producer(id) => {
                self.windows.remove(&place(&id));
                Ok(())
            }
        }
    }

    async fn alive(&mut self, head: Head) -> Result<Act, Refused> {
        if head.response_required {
            let head = Head { response_required: false, ..head };
            let alive = crate::openwire::KeepAliveInfo { head };
            let _deaf = self.replies.send(Reply::Now(alive.into())).await;
        }
        Ok(Act::Told)
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        for name in &self.temporaries {
            self.hall.temporaries.remove(name);
        }
    }
}

/// Clients call their temporary queues after their connection: `ID:…:1`, `ID:…:2`.
fn is_called_after(queue: &Text, connection: &ConnectionId) -> bool {
    let (queue, connection) = (queue.to_string(), connection.value.to_string());
    queue.rsplit_once(':').is_some_and(|(owner, _)| owner == connection)
}

fn not_yours(queue: &crate::openwire::Destination) -> Refused {
    letter::queue_of(queue)
        .map_or_else(Refused::from, |destination| QueueError::from(Refusal::NotYours { destination }).into())
}

/// As Java shows an exception.
fn words(cause: Throwable) -> String {
    match cause.message {
        Some(message) => format!("{}: {message}", cause.class),
        None => cause.class.to_string(),
    }
}

/// Must a command that is no message not overtake one?
fn keeps_its_turn(command: &Command) -> bool {
    match command {
        Command::TransactionInfo(_) | Command::FlushCommand(_) => true,
        Command::MessageAck(ack) => ack.transaction_id.is_some(),
        _ => false,
    }
}

/// A producer of this connection, by its session's number and its own.
fn place(producer: &ProducerId) -> (i64, i64) {
    (producer.session, producer.value)
}

fn transaction_of(command: &Command) -> Option<&TransactionId> {
    match command {
        Command::Message(message) => message.transaction_id.as_ref(),
        Command::MessageAck(ack) => ack.transaction_id.as_ref(),
        Command::TransactionInfo(info) => info.transaction_id.as_ref(),
        _ => None,
    }
}

/// The number of a transaction of this connection.
fn number(transaction: &TransactionId) -> Result<u64, Refused> {
    match transaction {
        // Numbers beyond a client's are composite messages' own.
        TransactionId::Local(id) => {
            u64::try_from(id.value).map_err(|_| Refused::OutOfPlace("a transaction with a negative number"))
        }
        TransactionId::Xa(_) => Err(Refused::Unserved("distributed (XA) transactions")),
    }
}

/// As ActiveMQ calls it.
fn named(transaction: &TransactionId) -> String {
    match transaction {
        TransactionId::Local(id) => format!("TX:{}:{}", id.connection.value, id.value),
        TransactionId::Xa(id) => format!("XID:[{}]", id.format),
    }
}

fn network(network: bool) -> Result<Act, Refused> {
    if network {
        return Err(Refused::Unserved(
            "network connectors of ActiveMQ (the vault's bridge takes their place)",
        ));
    }
    Ok(Act::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openwire::LocalTransactionId;

    #[test]
    fn no_transaction_of_a_client_is_one_of_a_composite_message() {
        let connection = ConnectionId { value: Text::shortened("a") };
        let local =
            |value| TransactionId::Local(LocalTransactionId { value, connection: connection.clone() });
        assert_eq!(number(&local(7)).unwrap(), 7);
        assert!(number(&local(i64::MAX)).unwrap() < u64::MAX / 2 + 1, "composites count down from the end");
        for value in [-1, i64::MIN] {
            assert!(matches!(number(&local(value)), Err(Refused::OutOfPlace(_))), "{value}");
        }
    }
}
