//! What is in a message's body, for who must look inside: handlers that speak no JMS. Knows no
//! headers. Bodies that only pass through never come here.
//!
//! Source: ActiveMQ's `ActiveMQTextMessage` and `ActiveMQBytesMessage`. A text is four bytes of
//! length and modified UTF-8; compressed it is a zlib stream of that. Bytes stand as they are;
//! compressed they are four bytes of their length and a zlib stream of them.

use std::io::Read as _;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use flate2::read::ZlibDecoder;

use super::message::{Message, MessageKind};
use super::text;

/// Bytes of a text's length.
const PREFIX: usize = 4;

/// A body that cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// Neither text nor bytes: only Java's own classes read maps, streams and objects.
    #[error("message {message} is of a JMS type whose body only JMS clients read")]
    Type {
        /// The message's id.
        message: String,
    },
    /// Its length or its compression is broken.
    #[error("the body of message {message} is broken")]
    Broken {
        /// The message's id.
        message: String,
        /// What the decompressor says.
        #[source]
        source: Option<std::io::Error>,
    },
    /// Longer than the caller takes, perhaps only after decompression.
    #[error("the body of message {message} is over {limit} bytes")]
    TooLong {
        /// The message's id.
        message: String,
        /// The caller's limit in bytes.
        limit: usize,
    },
}

/// A body, as far as it is readable without Java.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// None at all: a plain message, or a text that was never set.
    Empty,
    /// Of a text message.
    Text(String),
    /// Of a bytes message.
    Bytes(Bytes),
}

impl Message {
    /// The body, decompressed, of at most `limit` bytes.
    ///
    /// # Errors
    /// Another type than plain, text and bytes, broken bytes, or more than `limit`.
    pub fn body(&self, limit: usize) -> Result<Body, BodyError> {
        let Some(content) = &self.content else { return Ok(Body::Empty) };
        match self.kind {
            MessageKind::Plain => Ok(Body::Empty),
            MessageKind::Text => {
                // One byte too many tells that there is more.
                let most = limit.saturating_add(PREFIX + 1);
                let plain = if self.compressed { self.inflated(content, most)? } else { content.clone() };
                self.bounded(plain.len().saturating_sub(PREFIX), limit)?;
                let text = counted(plain).ok_or_else(|| self.broken(None))?;
                Ok(Body::Text(text::decode(&text)))
            }
            MessageKind::Bytes if self.compressed => {
                let mut stream = content.clone();
                let length = stream.try_get_u32().map_err(|_| self.broken(None))?;
                let length = usize::try_from(length).map_err(|_| self.broken(None))?;
                self.bounded(length, limit)?;
                // Java deflates its whole buffer: what follows the length is waste.
                let plain = self.inflated(&stream, length)?;
                if plain.len() == length { Ok(Body::Bytes(plain)) } else { Err(self.broken(None)) }
            }
            MessageKind::Bytes => {
                self.bounded(content.len(), limit)?;
                Ok(Body::Bytes(content.clone()))
            }
            MessageKind::Map | MessageKind::Object | MessageKind::Stream | MessageKind::Blob(_) => {
                Err(BodyError::Type { message: self.message_id.to_string() })
            }
        }
    }

    /// Makes it a text message of that text.
    pub fn set_text(&mut self, text: &str) {
        let text = text::encode(text);
        let mut content = BytesMut::with_capacity(PREFIX + text.len());
        content.put_u32(u32::try_from(text.len()).unwrap_or(u32::MAX));
        content.put_slice(&text);
        self.kind = MessageKind::Text;
        self.content = Some(content.freeze());
        self.compressed = false;
    }

    /// Makes it a bytes message of these bytes.
    pub fn set_bytes(&mut self, bytes: Bytes) {
        self.kind = MessageKind::Bytes;
        self.content = Some(bytes);
        self.compressed = false;
    }

    /// The first bytes, at most `most`, of what the zlib stream holds.
    fn inflated(&self, stream: &Bytes, most: usize) -> Result<Bytes, BodyError> {
        let mut plain = Vec::new();
        let most = u64::try_from(most).unwrap_or(u64::MAX);
        ZlibDecoder::new(&stream[..])
            .take(most)
            .read_to_end(&mut plain)
            .map_err(|error| self.broken(Some(error)))?;
        Ok(plain.into())
    }

    fn bounded(&self, length: usize, limit: usize) -> Result<(), BodyError> {
        let too_long = || BodyError::TooLong { message: self.message_id.to_string(), limit };
        if length > limit { Err(too_long()) } else { Ok(()) }
    }

    fn broken(&self, source: Option<std::io::Error>) -> BodyError {
        BodyError::Broken { message: self.message_id.to_string(), source }
    }
}

/// What follows four bytes of its length, if that is all that follows.
fn counted(mut bytes: Bytes) -> Option<Bytes> {
    let length = bytes.try_get_u32().ok()?;
    (usize::try_from(length) == Ok(bytes.len())).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::id::{Destination, ProducerId};
    use super::super::text::Text;
    use super::*;

    fn message() -> Message {
        let producer = ProducerId { connection: Text::shortened("ID:c"), value: 1, session: 1 };
        Message::new(MessageKind::Plain, producer.message(1), Destination::queue(Text::shortened("q")))
    }

    proptest! {
        #[test]
        fn any_text_and_any_bytes_read_back(text in any::<String>(), bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut message = message();
            message.set_text(&text);
            prop_assert_eq!(message.body(1 << 20).unwrap(), Body::Text(text));
            message.set_bytes(bytes.clone().into());
            prop_assert_eq!(message.body(64).unwrap(), Body::Bytes(bytes.into()));
        }

        #[test]
        fn no_body_does_harm(content in proptest::collection::vec(any::<u8>(), 0..64), compressed: bool) {
            let mut message = message();
            message.content = Some(content.into());
            message.compressed = compressed;
            for kind in [MessageKind::Text, MessageKind::Bytes, MessageKind::Map] {
                message.kind = kind;
                drop(message.body(1_000));
            }
        }
    }

    #[test]
    fn a_compressed_body_is_never_longer_than_the_caller_takes() {
        let mut stream = Vec::new();
        flate2::read::ZlibEncoder::new(&[0; 1_000_000][..], flate2::Compression::best())
            .read_to_end(&mut stream)
            .unwrap();
        let mut message = message();
        message.set_bytes([&1_000_000_u32.to_be_bytes()[..], &stream].concat().into());
        message.compressed = true;
        assert!(matches!(message.body(999_999), Err(BodyError::TooLong { limit: 999_999, .. })));
        assert_eq!(message.body(1_000_000).unwrap(), Body::Bytes(vec![0; 1_000_000].into()));

        // As a text, whose own length is inside: the zeros say it is empty, and more follows.
        message.kind = MessageKind::Text;
        message.content = Some(stream.into());
        assert!(matches!(message.body(999_995), Err(BodyError::TooLong { limit: 999_995, .. })));
        assert!(matches!(message.body(1_000_000), Err(BodyError::Broken { .. })));
    }
}
