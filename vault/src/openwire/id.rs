//! What names things in the protocol: connections, sessions, consumers, producers, brokers,
//! messages, transactions and destinations. Knows no command that carries them.
//!
//! Source: ActiveMQ's marshallers of versions 10 to 12, which agree on all of these.

use std::fmt;

use bytes::Bytes;

use super::fault::DecodeError;
#[cfg(test)]
use super::sample::{Dice, Sample};
use super::table::structures;
use super::text::Text;
use super::types;
use super::wire::{Reader, Structure, Writer};

structures! {
    /// A connection: what its client chose, as `ID:host-port-time-0:1`.
    #[derive(Hash)]
    ConnectionId = 120 {
        value: Text;
    }

    /// A session of a connection; −1 is the connection's own, which browses and advises.
    #[derive(Hash)]
    SessionId = 121 {
        connection: Text;
        value: i64;
    }

    /// A consumer of a session.
    #[derive(Hash)]
    ConsumerId = 122 {
        connection: Text;
        session: i64;
        value: i64;
    }

    /// A producer of a session. On the wire its own number stands before the session's.
    #[derive(Hash)]
    ProducerId = 123 {
        connection: Text;
        value: i64;
        session: i64;
    }

    /// A broker, as `ID:host-port-time-0:1`.
    #[derive(Hash)]
    BrokerId = 124 {
        value: Text;
    }

    /// A message: who produced it and as which of its own.
    #[derive(Hash)]
    MessageId = 110 {
        /// The JMSMessageID to show instead, if it was given by a stranger to the protocol.
        text_view: Option<Text>;
        producer: ProducerId;
        producer_sequence: i64;
        /// Where it lies in the broker's store; the broker's own matter.
        broker_sequence: i64;
    }

    /// A transaction of one connection.
    #[derive(Hash)]
    LocalTransactionId = 111 {
        value: i64;
        connection: ConnectionId;
    }

    /// A branch of a distributed transaction.
    #[derive(Hash)]
    XaTransactionId = 112 {
        format: i32;
        global: Option<Bytes>;
        branch: Option<Bytes>;
    }
}

/// Either kind of transaction.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TransactionId {
    /// Of one connection.
    Local(LocalTransactionId),
    /// A branch of a distributed one.
    Xa(XaTransactionId),
}

/// What a connection can close.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ObjectId {
    /// The connection itself.
    Connection(ConnectionId),
    /// A session and all in it.
    Session(SessionId),
    /// A consumer.
    Consumer(ConsumerId),
    /// A producer.
    Producer(ProducerId),
}

/// The four kinds of destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DestinationKind {
    /// Each message to one consumer.
    Queue = 100,
    /// Each message to every subscriber.
    Topic = 101,
    /// A queue that ends with the connection that made it.
    TempQueue = 102,
    /// A topic that ends with the connection that made it.
    TempTopic = 103,
}

/// Where messages go: a kind and a name. The name may be a list (`a,queue://b`), have options
/// (`a?consumer.prefetchSize=10`) or be a pattern (`a.>`); those are not read here.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Destination {
    /// Queue, topic or one of the temporary kinds.
    pub kind: DestinationKind,
    /// `orders.new`, without `queue://`.
    pub name: Text,
}

impl Destination {
    /// A queue.
    #[must_use]
    pub fn queue(name: Text) -> Self {
        Self { kind: DestinationKind::Queue, name }
    }

    /// A topic.
    #[must_use]
    pub fn topic(name: Text) -> Self {
        Self { kind: DestinationKind::Topic, name }
    }

    /// Does it end with the connection that made it?
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        matches!(self.kind, DestinationKind::TempQueue | DestinationKind::TempTopic)
    }
}

impl Structure for Destination {
    fn code(&self) -> u8 {
        self.kind as u8
    }

    fn read_fields(code: u8, reader: &mut Reader) -> Result<Self, DecodeError> {
        let kind = match code {
            100 => DestinationKind::Queue,
            101 => DestinationKind::Topic,
            102 => DestinationKind::TempQueue,
            103 => DestinationKind::TempTopic,
            other => return Err(types::stray("a destination", other).into()),
        };
        let name =
            super::wire::Wire::read(reader).map_err(|error| error.within("ActiveMQDestination", "name"))?;
        Ok(Self { kind, name })
    }

    fn write_fields(&self, writer: &mut Writer) {
        super::wire::Wire::write(&self.name, writer);
    }
}

impl Structure for TransactionId {
    fn code(&self) -> u8 {
        match self {
            TransactionId::Local(id) => id.code(),
            TransactionId::Xa(id) => id.code(),
        }
    }

    fn read_fields(code: u8, reader: &mut Reader) -> Result<Self, DecodeError> {
        match code {
            111 => Structure::read_fields(code, reader).map(TransactionId::Local),
            112 => Structure::read_fields(code, reader).map(TransactionId::Xa),
            other => Err(types::stray("a transaction's id", other).into()),
        }
    }

    fn write_fields(&self, writer: &mut Writer) {
        match self {
            TransactionId::Local(id) => id.write_fields(writer),
            TransactionId::Xa(id) => id.write_fields(writer),
        }
    }
}

impl Structure for ObjectId {
    fn code(&self) -> u8 {
        match self {
            ObjectId::Connection(id) => id.code(),
            ObjectId::Session(id) => id.code(),
            ObjectId::Consumer(id) => id.code(),
            ObjectId::Producer(id) => id.code(),
        }
    }

    fn read_fields(code: u8, reader: &mut Reader) -> Result<Self, DecodeError> {
        match code {
            120 => Structure::read_fields(code, reader).map(ObjectId::Connection),
            121 => Structure::read_fields(code, reader).map(ObjectId::Session),
            122 => Structure::read_fields(code, reader).map(ObjectId::Consumer),
            123 => Structure::read_fields(code, reader).map(ObjectId::Producer),
            other => Err(types::stray("the id of what can be closed", other).into()),
        }
    }

    fn write_fields(&self, writer: &mut Writer) {
        match self {
            ObjectId::Connection(id) => id.write_fields(writer),
            ObjectId::Session(id) => id.write_fields(writer),
            ObjectId::Consumer(id) => id.write_fields(writer),
            ObjectId::Producer(id) => id.write_fields(writer),
        }
    }
}

impl ConsumerId {
    /// The session that it belongs to.
    #[must_use]
    pub fn session_id(&self) -> SessionId {
        SessionId { connection: self.connection.clone(), value: self.session }
    }
}

impl ProducerId {
    /// The session that it belongs to.
    #[must_use]
    pub fn session_id(&self) -> SessionId {
        SessionId { connection: self.connection.clone(), value: self.session }
    }

    /// The id of its message number `sequence`; a producer counts from 1.
    #[must_use]
    pub fn message(&self, sequence: i64) -> MessageId {
        MessageId { text_view: None, producer: self.clone(), producer_sequence: sequence, broker_sequence: 0 }
    }

    /// The same id in memory of its own.
    #[must_use]
    pub fn detached(&self) -> Self {
        Self { connection: self.connection.detached(), ..*self }
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(formatter)
    }
}

impl fmt::Display for BrokerId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(formatter)
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.connection, self.value)
    }
}

impl fmt::Display for ConsumerId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}:{}", self.connection, self.session, self.value)
    }
}

impl fmt::Display for ProducerId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}:{}", self.connection, self.session, self.value)
    }
}

/// As `getJMSMessageID` of the Java client gives it.
impl fmt::Display for MessageId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.text_view {
            Some(text) if text.as_bytes().starts_with(b"ID:") => text.fmt(formatter),
            Some(text) => write!(formatter, "ID:{text}"),
            None => write!(formatter, "{}:{}", self.producer, self.producer_sequence),
        }
    }
}

impl fmt::Display for TransactionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TransactionId::Local(id) => write!(formatter, "TX:{}:{}", id.connection, id.value),
            TransactionId::Xa(id) => write!(formatter, "XID:{}", id.format),
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.kind {
            DestinationKind::Queue => "queue",
            DestinationKind::Topic => "topic",
            DestinationKind::TempQueue => "temp-queue",
            DestinationKind::TempTopic => "temp-topic",
        };
        write!(formatter, "{scheme}://{}", self.name)
    }
}

#[cfg(test)]
impl Sample for Destination {
    fn sample(dice: &mut Dice) -> Self {
        let kinds = [
            DestinationKind::Queue,
            DestinationKind::Topic,
            DestinationKind::TempQueue,
            DestinationKind::TempTopic,
        ];
        Self { kind: kinds[usize::from(dice.throw() % 4)], name: Sample::sample(dice) }
    }
}

#[cfg(test)]
impl Sample for TransactionId {
    fn sample(dice: &mut Dice) -> Self {
        if bool::sample(dice) {
            TransactionId::Xa(Sample::sample(dice))
        } else {
            TransactionId::Local(Sample::sample(dice))
        }
    }
}

#[cfg(test)]
impl Sample for ObjectId {
    fn sample(dice: &mut Dice) -> Self {
        match dice.throw() % 4 {
            0 => ObjectId::Connection(Sample::sample(dice)),
            1 => ObjectId::Session(Sample::sample(dice)),
            2 => ObjectId::Consumer(Sample::sample(dice)),
            _ => ObjectId::Producer(Sample::sample(dice)),
        }
    }
}
