//! OpenWire, the language of ActiveMQ, Artemis and their JMS clients: bytes ↔ commands. Pure but for
//! [`client`], which connects to foreign brokers: the codec owns no socket and no clock, and does
//! not know what a client or a broker does on a command.
//!
//! Spoken are versions 10 to 12 in loose encoding without caches, which the greeting settles with
//! every peer. Strings, properties and bodies stay the bytes that their sender wrote, as slices
//! of the frame that they came in; what is decoded and encoded again has the same bytes.
//!
//! One connection has an [`Incoming`] and an [`Outgoing`]:
//!
//! ```
//! use vault::openwire::{Arrival, Incoming, Offer, Outgoing};
//! # use bytes::Buf;
//! let offer = Offer::default();
//! let mut outgoing = Outgoing::new(&offer.greeting())?;
//! let mut incoming = Incoming::new(offer.clone());
//! // A socket does these two: `stream.write_buf(&mut outgoing)`, `stream.read_buf(incoming.buffer())`.
//! let sent = outgoing.copy_to_bytes(outgoing.remaining());
//! incoming.buffer().extend_from_slice(&sent);
//!
//! let Some(Arrival::Greeting(_, settled)) = incoming.arrival()? else { unreachable!("it is first") };
//! outgoing.settle(&settled);
//! assert!(incoming.arrival()?.is_none(), "no command yet");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What is kept for long must not keep a whole read buffer alive: messages by
//! [`Message::to_bytes`], names by [`Text::detached`].

mod any;
mod body;
pub mod client;
mod command;
mod fault;
mod frame;
mod greeting;
mod id;
mod message;
pub mod properties;
#[cfg(test)]
mod sample;
mod table;
mod text;
mod types;
pub mod uri;
mod usual;
mod wire;

#[cfg(test)]
mod tests;

/// So begin the client ids under which bridges connect; that at a source is a lock, for which the vault
/// that stands by asks again and again.
pub const BRIDGES: &str = "vault-bridge-";

pub use any::{Command, DataStructure};
pub use body::{Body, BodyError};
pub use command::*;
pub use fault::{DecodeError, EncodeError, Fault};
pub use frame::{Arrival, Incoming, Outgoing};
pub use greeting::{Offer, Settled, WireFormatInfo};
pub use id::{
    BrokerId, ConnectionId, ConsumerId, Destination, DestinationKind, LocalTransactionId, MessageId,
    ObjectId, ProducerId, SessionId, TransactionId, XaTransactionId,
};
pub use message::{Blob, Message, MessageKind};
pub use text::{Password, Text, TextTooLong};

/// A version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Version {
    /// The oldest one spoken here.
    V10,
    /// A durable subscription tells `noLocal`.
    V11,
    /// A broker tells its durable subscriptions; ActiveMQ's newest, and Artemis's.
    V12,
}

impl Version {
    const ALL: [Version; 3] = [Version::V12, Version::V11, Version::V10];

    /// Its number on the wire.
    #[must_use]
    pub fn number(self) -> i32 {
        match self {
            Version::V10 => 10,
            Version::V11 => 11,
            Version::V12 => 12,
        }
    }

    /// The newest one spoken here that a peer of that version speaks too.
    #[must_use]
    pub fn at_most(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.number() <= number)
    }
}

/// For the fuzzer: whatever the bytes, reading them ends, and what is accepted, as a frame after
/// the greeting or as a marshalled map, has the same bytes again.
pub fn fuzz(bytes: &[u8]) {
    let frame = bytes::Bytes::copy_from_slice(bytes);
    for version in Version::ALL {
        if let Ok(command) = wire::Reader::new(frame.clone(), version).whole::<Command>() {
            let again = wire::Writer::contiguous(&command, version);
            assert_eq!(again.as_ref(), Ok(&frame), "{command:?} in {version:?}");
        }
    }
    if let Ok(map) = properties::Properties::read(&frame) {
        assert_eq!(map.to_bytes(), frame, "{map:?}");
    }
    let mut incoming = Incoming::new(Offer::default());
    for portion in bytes.chunks(7) {
        incoming.buffer().extend_from_slice(portion);
        while let Ok(Some(_)) = incoming.arrival() {}
    }
}
