//! A message: headers in the clear, properties and body as the bytes that its sender wrote.
//! Knows no queue and no consumer.
//!
//! Source: ActiveMQ's `MessageMarshaller` of versions 10 to 12, which agree.

use bytes::Bytes;

use super::Version;
use super::any::DataStructure;
use super::command::Head;
use super::fault::{DecodeError, EncodeError, Fault};
use super::id::{BrokerId, ConsumerId, Destination, MessageId, ProducerId, TransactionId};
#[cfg(test)]
use super::sample::{Dice, Sample};
use super::text::Text;
use super::types;
use super::wire::{Reader, Structure, Wire, Writer};

/// The JMS type of a message; it says how the body is to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MessageKind {
    /// Headers and properties only.
    Plain,
    /// Bytes as they are.
    Bytes,
    /// A map of named values.
    Map,
    /// A serialised Java object.
    Object,
    /// A row of values.
    Stream,
    /// A string.
    Text,
    /// A body that lies elsewhere.
    Blob(Box<Blob>),
}

/// Where a blob message's body lies.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Blob {
    /// Address to fetch the body from.
    pub remote_url: Option<Text>,
    /// Its media type.
    pub mime_type: Option<Text>,
    /// Does the broker delete it after use?
    pub deleted_by_broker: bool,
}

/// Writes down the fields in the protocol's order, once for the structure and both directions.
macro_rules! message_fields {
    ($( $(#[$note:meta])* $field:ident: $type:ty; )*) => {
        /// A JMS message as it stands on the wire.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct Message {
            /// Its JMS type.
            pub kind: MessageKind,
            $( $(#[$note])* pub $field: $type, )*
        }

        impl Structure for Message {
            fn code(&self) -> u8 {
                self.kind.code()
            }

            fn read_fields(code: u8, reader: &mut Reader) -> Result<Self, DecodeError> {
                let mut kind = MessageKind::of(code)?;
                $( let $field = Wire::read(reader).map_err(|error| error.within("Message", stringify!($field)))?; )*
                if let MessageKind::Blob(blob) = &mut kind {
                    **blob = Blob::read(reader)?;
                }
                Ok(Self { kind, $( $field, )* })
            }

            fn write_fields(&self, writer: &mut Writer) {
                $( self.$field.write(writer); )*
                self.kind.write(writer);
            }
        }

        #[cfg(test)]
        impl Sample for Message {
            fn sample(dice: &mut Dice) -> Self {
                let mut kind = MessageKind::of(23 + dice.throw() % 7).unwrap_or(MessageKind::Plain);
                if let MessageKind::Blob(blob) = &mut kind {
                    blob.remote_url = Sample::sample(dice);
                    blob.deleted_by_broker = Sample::sample(dice);
                }
                Self { kind, $( $field: Sample::sample(dice), )* }
            }
        }
    };
}

message_fields! {
    head: Head;
    producer_id: Option<ProducerId>;
    destination: Destination;
    transaction_id: Option<TransactionId>;
    /// Where it was sent before it came here: set on dead letters and moved messages.
    original_destination: Option<Destination>;
    message_id: MessageId;
    original_transaction_id: Option<TransactionId>;
    /// JMSXGroupID.
    group_id: Option<Text>;
    /// JMSXGroupSeq; −1 closes the group.
    group_sequence: i32;
    correlation_id: Option<Text>;
    persistent: bool;
    /// Milliseconds since 1970 at which it is worthless; 0 is never.
    expiration: i64;
    /// 0 to 9, 4 by default; other values come from strangers.
    priority: i8;
    reply_to: Option<Destination>;
    /// When it was sent, in milliseconds since 1970.
    timestamp: i64;
    /// JMSType.
    jms_type: Option<Text>;
    /// The body in its type's form; deflated if `compressed`.
    content: Option<Bytes>;
    /// The marshalled properties; [`super::properties`] reads them.
    properties: Option<Bytes>;
    /// The command that an advisory message tells of.
    data_structure: Option<DataStructure>;
    /// The one consumer that an advisory message is for.
    target_consumer: Option<ConsumerId>;
    compressed: bool;
    /// How often it was dispatched before; JMSXDeliveryCount is one more.
    redelivery_counter: i32;
    /// The brokers that it passed.
    broker_path: Option<Vec<BrokerId>>;
    /// When the broker took it, in milliseconds since 1970.
    arrival: i64;
    /// JMSXUserID: who sent it.
    user_id: Option<Text>;
    received_by_bridge: bool;
    /// May it be dropped when memory is short?
    droppable: bool;
    cluster: Option<Vec<BrokerId>>;
    /// When the broker took it, in milliseconds since 1970; 0 is never.
    broker_in_time: i64;
    /// When the broker gave it to a consumer, in milliseconds since 1970; 0 is never.
    broker_out_time: i64;
    group_first_for_consumer: bool;
}

impl Message {
    /// The version in which messages are kept on disk.
    const STORED: Version = Version::V12;

    /// A new message, with JMS's defaults for all that is not named.
    #[must_use]
    pub fn new(kind: MessageKind, id: MessageId, destination: Destination) -> Self {
        Self {
            kind,
            head: Head::default(),
            producer_id: Some(id.producer.clone()),
            destination,
            transaction_id: None,
            original_destination: None,
            message_id: id,
            original_transaction_id: None,
            group_id: None,
            group_sequence: 0,
            correlation_id: None,
            persistent: true,
            expiration: 0,
            priority: 4,
            reply_to: None,
            timestamp: 0,
            jms_type: None,
            content: None,
            properties: None,
            data_structure: None,
            target_consumer: None,
            compressed: false,
            redelivery_counter: 0,
            broker_path: None,
            arrival: 0,
            user_id: None,
            received_by_bridge: false,
            droppable: false,
            cluster: None,
            broker_in_time: 0,
            broker_out_time: 0,
            group_first_for_consumer: false,
        }
    }

    /// The message alone, to be kept: no slice of a frame, so it holds no other memory alive.
    ///
    /// # Errors
    /// A path of too many brokers, or a body over what four bytes count.
    pub fn to_bytes(&self) -> Result<Bytes, EncodeError> {
        Writer::contiguous(self, Self::STORED)
    }

    /// What [`Message::to_bytes`] gave; strings and body are slices of it.
    ///
    /// # Errors
    /// Anything else.
    pub fn from_bytes(bytes: Bytes) -> Result<Self, DecodeError> {
        Reader::new(bytes, Self::STORED).whole()
    }
}

impl MessageKind {
    /// Is it the number of some kind?
    pub(super) fn is_code(code: u8) -> bool {
        Self::of(code).is_ok()
    }

    fn code(&self) -> u8 {
        match self {
            MessageKind::Plain => 23,
            MessageKind::Bytes => 24,
            MessageKind::Map => 25,
            MessageKind::Object => 26,
            MessageKind::Stream => 27,
            MessageKind::Text => 28,
            MessageKind::Blob(_) => 29,
        }
    }

    /// The kind of that number; a blob's own fields are read after the message's.
    fn of(code: u8) -> Result<Self, Fault> {
        Ok(match code {
            23 => MessageKind::Plain,
            24 => MessageKind::Bytes,
            25 => MessageKind::Map,
            26 => MessageKind::Object,
            27 => MessageKind::Stream,
            28 => MessageKind::Text,
            29 => MessageKind::Blob(Box::default()),
            other => return Err(types::stray("a message", other)),
        })
    }

    fn write(&self, writer: &mut Writer) {
        if let MessageKind::Blob(blob) = self {
            blob.remote_url.write(writer);
            blob.mime_type.write(writer);
            blob.deleted_by_broker.write(writer);
        }
    }
}

impl Blob {
    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let within = |field| move |error: DecodeError| error.within("ActiveMQBlobMessage", field);
        Ok(Self {
            remote_url: Wire::read(reader).map_err(within("remote_url"))?,
            mime_type: Wire::read(reader).map_err(within("mime_type"))?,
            deleted_by_broker: Wire::read(reader).map_err(within("deleted_by_broker"))?,
        })
    }
}
