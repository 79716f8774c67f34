//! The commands: one table of their fields in the protocol's order. Pure; knows no socket and not
//! what a broker does on a command.
//!
//! Source: ActiveMQ's marshallers of versions 10 to 12. They differ in two places only: durable
//! subscriptions tell `noLocal` since 11, and `BrokerSubscriptionInfo` came
//! with 12 (who sends it looks at the version).

use bytes::Bytes;

use super::any::DataStructure;
use super::fault::DecodeError;
use super::id::{
    BrokerId, ConnectionId, ConsumerId, Destination, MessageId, ObjectId, ProducerId, SessionId,
    TransactionId,
};
use super::message::Message;
#[cfg(test)]
use super::sample::{Dice, Sample};
use super::table::{byte_values, structures};
use super::text::{Password, Text};
use super::wire::{Reader, Wire, Writer};

/// What every command but the greeting begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Head {
    /// The sender's number for it; a response refers to it.
    pub command_id: i32,
    /// Does the sender wait for a response?
    pub response_required: bool,
}

impl Wire for Head {
    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self { command_id: Wire::read(reader)?, response_required: Wire::read(reader)? })
    }

    fn write(&self, writer: &mut Writer) {
        self.command_id.write(writer);
        self.response_required.write(writer);
    }
}

byte_values! {
    /// What a [`MessageAck`] says of its messages.
    AckKind {
        /// They arrived; the prefetch window may move on, they stay unacknowledged.
        Delivered = 0,
        /// They cannot be processed: dead letters.
        Poison = 1,
        /// They are consumed, from the first one to the last one.
        Standard = 2,
        /// They were rolled back and will be tried again by the same consumer.
        Redelivered = 3,
        /// This one is consumed, whatever others are.
        Individual = 4,
        /// A durable subscriber's selector does not want them.
        Unmatched = 5,
        /// They expired at the consumer.
        Expired = 6,
    }

    /// What a [`TransactionInfo`] wants.
    TransactionAct {
        Begin = 0,
        /// First phase of a distributed transaction; the response is an [`IntegerResponse`].
        Prepare = 1,
        /// Commit a local transaction, or a distributed one of a single branch.
        Commit = 2,
        /// Second phase of a distributed transaction.
        CommitPrepared = 3,
        Rollback = 4,
        /// Which prepared ones are there? The response is a [`DataArrayResponse`].
        Recover = 5,
        Forget = 6,
        End = 7,
    }

    /// What a [`DestinationInfo`] wants.
    DestinationAct {
        Add = 0,
        Remove = 1,
    }
}

/// An exception of Java's: its class and its message. Stack traces are negotiated away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Throwable {
    /// `javax.jms.JMSSecurityException`.
    pub class: Text,
    /// What it says.
    pub message: Option<Text>,
}

impl Throwable {
    /// An exception of the class with that message; both are cut to what the protocol holds.
    #[must_use]
    pub fn new(class: &str, message: &str) -> Self {
        Self { class: Text::shortened(class), message: Some(Text::shortened(message)) }
    }
}

impl Wire for Option<Throwable> {
    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        if !bool::read(reader)? {
            return Ok(None);
        }
        Ok(Some(Throwable { class: Wire::read(reader)?, message: Wire::read(reader)? }))
    }

    fn write(&self, writer: &mut Writer) {
        self.is_some().write(writer);
        if let Some(throwable) = self {
            throwable.class.write(writer);
            throwable.message.write(writer);
        }
    }
}

#[cfg(test)]
impl Sample for Head {
    fn sample(dice: &mut Dice) -> Self {
        Self { command_id: Sample::sample(dice), response_required: Sample::sample(dice) }
    }
}

#[cfg(test)]
impl Sample for Throwable {
    fn sample(dice: &mut Dice) -> Self {
        Self { class: Sample::sample(dice), message: Sample::sample(dice) }
    }
}

structures! {
    /// A broker tells who it is; the first thing that it says after the greeting. A client drops
    /// it; a network connector answers with its own.
    BrokerInfo = 2 {
        head: Head;
        broker_id: BrokerId;
        url: Option<Text>;
        peers: Option<Vec<BrokerInfo>>;
        name: Option<Text>;
        slave: bool;
        master: bool;
        fault_tolerant: bool;
        duplex: bool;
        network: bool;
        connection_id: i64;
        upload_url: Option<Text>;
        /// A network connector's settings, as Java properties.
        network_properties: Option<Text>;
    }

    /// A client introduces itself.
    ConnectionInfo = 3 {
        head: Head;
        connection_id: ConnectionId;
        client_id: Option<Text>;
        password: Option<Password>;
        user_name: Option<Text>;
        broker_path: Option<Vec<BrokerId>>;
        master_connector: bool;
        manageable: bool;
        client_master: bool;
        /// The client uses the failover transport.
        fault_tolerant: bool;
        /// It was connected before, perhaps elsewhere: what it sends may have been sent already.
        failover_reconnect: bool;
        client_ip: Option<Text>;
    }

    /// A client opens a session.
    SessionInfo = 4 {
        head: Head;
        session_id: SessionId;
    }

    /// A client opens a consumer.
    ConsumerInfo = 5 {
        head: Head;
        consumer_id: ConsumerId;
        browser: bool;
        destination: Destination;
        /// How many messages may be under way to it; 0 wants [`MessagePull`].
        prefetch: i32;
        maximum_pending: i32;
        dispatch_async: bool;
        selector: Option<Text>;
        client_id: Option<Text>;
        /// Name of a durable subscription.
        subscription: Option<Text>;
        no_local: bool;
        exclusive: bool;
        retroactive: bool;
        /// Higher is served first; network connectors ask for −5.
        priority: i8;
        broker_path: Option<Vec<BrokerId>>;
        /// The broker's side of a network: nothing is dispatched that passed this broker.
        additional_predicate: Option<NetworkBridgeFilter>;
        network: bool;
        optimized_acknowledge: bool;
        no_range_acks: bool;
        network_path: Option<Vec<ConsumerId>>;
    }

    /// A client opens a producer.
    ProducerInfo = 6 {
        head: Head;
        producer_id: ProducerId;
        /// None names the destination with each message.
        destination: Option<Destination>;
        broker_path: Option<Vec<BrokerId>>;
        dispatch_async: bool;
        /// Bytes that may be under way before a [`ProducerAck`]; 0 is no limit.
        window: i32;
    }

    /// A client begins or ends a transaction.
    TransactionInfo = 7 {
        head: Head;
        connection_id: Option<ConnectionId>;
        transaction_id: Option<TransactionId>;
        act: TransactionAct;
    }

    /// A client makes or removes a destination; temporary ones are made so.
    DestinationInfo = 8 {
        head: Head;
        connection_id: Option<ConnectionId>;
        destination: Destination;
        act: DestinationAct;
        timeout: i64;
        broker_path: Option<Vec<BrokerId>>;
    }

    /// A client gives up a durable subscription.
    RemoveSubscriptionInfo = 9 {
        head: Head;
        connection_id: ConnectionId;
        subscription: Option<Text>;
        client_id: Option<Text>;
    }

    /// A sign of life; wants a response if it says so.
    KeepAliveInfo = 10 {
        head: Head;
    }

    /// The last thing said.
    ShutdownInfo = 11 {
        head: Head;
    }

    /// A client closes a consumer, producer, session or its connection.
    RemoveInfo = 12 {
        head: Head;
        object: ObjectId;
        /// Broker sequence of the last message that its application saw; −1 none, −2 unknown.
        last_delivered: i64;
    }

    /// An operator's word to a broker, as `shutdown`.
    ControlCommand = 14 {
        head: Head;
        command: Option<Text>;
    }

    /// Asks for nothing but a response.
    FlushCommand = 15 {
        head: Head;
    }

    /// Something failed that no response tells of.
    ConnectionError = 16 {
        head: Head;
        exception: Option<Throwable>;
        connection_id: Option<ConnectionId>;
    }

    /// A broker changes a consumer, or a client tells of it.
    ConsumerControl = 17 {
        head: Head;
        destination: Option<Destination>;
        close: bool;
        consumer_id: Option<ConsumerId>;
        prefetch: i32;
        flush: bool;
        start: bool;
        stop: bool;
    }

    /// A broker tells a client where to go.
    ConnectionControl = 18 {
        head: Head;
        close: bool;
        exit: bool;
        fault_tolerant: bool;
        resume: bool;
        suspend: bool;
        /// Addresses of the brokers of its cluster, with commas.
        connected_brokers: Option<Text>;
        reconnect_to: Option<Text>;
        rebalance: bool;
        token: Option<Bytes>;
    }

    /// So much of a producer's window is free again.
    ProducerAck = 19 {
        head: Head;
        producer_id: ProducerId;
        /// Bytes.
        size: i32;
    }

    /// A consumer without prefetch wants one message.
    MessagePull = 20 {
        head: Head;
        consumer_id: ConsumerId;
        destination: Destination;
        /// Milliseconds to wait; 0 is for ever, −1 not at all.
        timeout: i64;
        correlation_id: Option<Text>;
        message_id: Option<MessageId>;
    }

    /// A message on its way to a consumer; without one it ends a browse or a pull.
    MessageDispatch = 21 {
        head: Head;
        consumer_id: ConsumerId;
        destination: Option<Destination>;
        message: Option<Message>;
        redelivery_counter: i32;
    }

    /// What became of messages that were dispatched.
    MessageAck = 22 {
        head: Head;
        destination: Destination;
        transaction_id: Option<TransactionId>;
        consumer_id: ConsumerId;
        kind: AckKind;
        /// None is the last one too.
        first: Option<MessageId>;
        last: MessageId;
        /// How many from first to last.
        count: i32;
        /// Why they are poison.
        poison_cause: Option<Throwable>;
    }

    /// Done.
    Response = 30 {
        head: Head;
        /// The command that is answered.
        correlation_id: i32;
    }

    /// Not done, and why.
    ExceptionResponse = 31 {
        head: Head;
        correlation_id: i32;
        exception: Option<Throwable>;
    }

    /// Done; here it is.
    DataResponse = 32 {
        head: Head;
        correlation_id: i32;
        data: Option<DataStructure>;
    }

    /// Done; here they are.
    DataArrayResponse = 33 {
        head: Head;
        correlation_id: i32;
        data: Option<Vec<DataStructure>>;
    }

    /// Done, and a number: what became of a prepare (3 read only, 0 prepared).
    IntegerResponse = 34 {
        head: Head;
        correlation_id: i32;
        result: i32;
    }

    /// A durable subscription.
    SubscriptionInfo = 55 {
        client_id: Option<Text>;
        destination: Option<Destination>;
        selector: Option<Text>;
        name: Option<Text>;
        subscribed_destination: Option<Destination>;
        no_local: bool, since V11;
    }

    /// Between a broker and its replica: a message was dispatched there.
    MessageDispatchNotification = 90 {
        head: Head;
        consumer_id: ConsumerId;
        destination: Destination;
        delivery_sequence: i64;
        message_id: MessageId;
    }

    /// What a network's consumer must not get: messages that passed this broker, or too many.
    NetworkBridgeFilter = 91 {
        network_broker: BrokerId;
        message_ttl: i32;
        consumer_ttl: i32;
    }

    /// A broker tells a network connector its durable subscriptions.
    BrokerSubscriptionInfo = 92 {
        head: Head;
        broker_id: Option<BrokerId>;
        broker_name: Option<Text>;
        subscriptions: Option<Vec<ConsumerInfo>>;
    }
}
