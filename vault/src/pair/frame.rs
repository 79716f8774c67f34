//! The pair link's wire form: bytes ↔ frames. Pure; knows no socket and not what bodies mean.
//!
//! A frame is its length (4 bytes big-endian, of what follows), one byte of kind, and then by
//! kind: beat nothing; tell topic and body; ask id (8 bytes), topic, body; answer id, one byte
//! 0 (body) or 1 (reason as UTF-8), and that.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

/// Largest frame accepted, in bytes after the length.
pub const MAX_FRAME: usize = 4 << 20;

/// A byte that is no topic.
const NO_TOPIC: u8 = 0;

/// What a body is about; the receiving room is chosen by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Topic {
    /// The ledger's protocol.
    Sequence = 1,
    /// A caller's wish, forwarded to the ledger's owner.
    Number = 2,
    /// Changes of the catalog of files.
    Catalog = 3,
    /// Changes of the register of certificates.
    Certificates = 4,
    /// How the other vault is, for an operator who asks this one.
    Status = 5,
    /// An operator has had a file server adopted here: its name, and which place it is.
    Adopt = 6,
    /// A key under which a message is to be posted there: is it here already?
    Post = 7,
}

impl Topic {
    fn from_byte(byte: u8) -> Option<Self> {
        let sequence = [Topic::Sequence, Topic::Number];
        let rest = [Topic::Catalog, Topic::Certificates, Topic::Status, Topic::Adopt, Topic::Post];
        sequence.into_iter().chain(rest).find(|topic| *topic as u8 == byte)
    }
}

/// One thing said over the link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A sign of life.
    Beat,
    /// Wants no answer; kept in order.
    Tell(Topic, Bytes),
    /// Wants an answer with the same id.
    Ask(u64, Topic, Bytes),
    /// A question about something that this release does not know. It is refused, and the link stays.
    Strange(u64),
    /// The answer, or why there is none.
    Answer(u64, Result<Bytes, String>),
}

/// Bytes that are no frame; the connection is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Longer than [`MAX_FRAME`].
    #[error("a frame of {0} bytes is over the limit")]
    TooLong(usize),
    /// Shorter than its kind needs, or of no known kind or topic.
    #[error("a malformed frame")]
    Malformed,
}

impl Frame {
    /// The bytes to send, length included.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::new();
        bytes.put_u32(0);
        match self {
            Frame::Beat => bytes.put_u8(0),
            Frame::Tell(topic, body) => {
                bytes.put_u8(1);
                bytes.put_u8(*topic as u8);
                bytes.put_slice(body);
            }
            Frame::Ask(id, topic, body) => {
                bytes.put_u8(2);
                bytes.put_u64(*id);
                bytes.put_u8(*topic as u8);
                bytes.put_slice(body);
            }
            Frame::Strange(id) => {
                bytes.put_u8(2);
                bytes.put_u64(*id);
                bytes.put_u8(NO_TOPIC);
            }
            Frame::Answer(id, outcome) => {
                bytes.put_u8(3);
                bytes.put_u64(*id);
                match outcome {
                    Ok(body) => {
                        bytes.put_u8(0);
                        bytes.put_slice(body);
                    }
                    Err(reason) => {
                        bytes.put_u8(1);
                        bytes.put_slice(reason.as_bytes());
                    }
                }
            }
        }
        let length = u32::try_from(bytes.len() - 4).unwrap_or(u32::MAX);
        bytes[..4].copy_from_slice(&length.to_be_bytes());
        bytes.freeze()
    }

    /// Checks a length that was read, before anything is allocated for it.
    ///
    /// # Errors
    /// Over [`MAX_FRAME`], or empty.
    pub fn checked_length(length: u32) -> Result<usize, FrameError> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        match length {
            0 => Err(FrameError::Malformed),
            _ if length > MAX_FRAME => Err(FrameError::TooLong(length)),
            _ => Ok(length),
        }
    }

    /// Reads what follows the length.
    ///
    /// # Errors
    /// Too short, or an unknown kind or topic.
    pub fn decode(mut bytes: Bytes) -> Result<Self, FrameError> {
        let malformed = FrameError::Malformed;
        match bytes.try_get_u8().map_err(|_| malformed)? {
            0 if bytes.is_empty() => Ok(Frame::Beat),
            1 => Ok(Frame::Tell(topic(&mut bytes)?, bytes)),
            2 => {
                let id = bytes.try_get_u64().map_err(|_| malformed)?;
                let topic = Topic::from_byte(bytes.try_get_u8().map_err(|_| malformed)?);
                Ok(topic.map_or(Frame::Strange(id), |topic| Frame::Ask(id, topic, bytes)))
            }
            3 => {
                let id = bytes.try_get_u64().map_err(|_| malformed)?;
                match bytes.try_get_u8().map_err(|_| malformed)? {
                    0 => Ok(Frame::Answer(id, Ok(bytes))),
                    1 => Ok(Frame::Answer(id, Err(String::from_utf8_lossy(&bytes).into_owned()))),
                    _ => Err(malformed),
                }
            }
            _ => Err(malformed),
        }
    }
}

fn topic(bytes: &mut Bytes) -> Result<Topic, FrameError> {
    let byte = bytes.try_get_u8().map_err(|_| FrameError::Malformed)?;
    Topic::from_byte(byte).ok_or(FrameError::Malformed)
}

/// For the fuzzer: whatever the bytes, decoding ends, and what it accepts reads back the same.
pub fn fuzz(bytes: &[u8]) {
    if let Ok(frame) = Frame::decode(Bytes::copy_from_slice(bytes)) {
        let again = frame.encode();
        assert_eq!(Frame::decode(again.slice(4..)).as_ref(), Ok(&frame), "a frame reads back");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frames() -> impl Strategy<Value = Frame> {
        let body = || proptest::collection::vec(any::<u8>(), 0..64).prop_map(Bytes::from);
        let topic = || {
            proptest::sample::select(vec![
                Topic::Sequence,
                Topic::Number,
                Topic::Catalog,
                Topic::Certificates,
            ])
        };
        prop_oneof![
            Just(Frame::Beat),
            (topic(), body()).prop_map(|(topic, body)| Frame::Tell(topic, body)),
            (any::<u64>(), topic(), body()).prop_map(|(id, topic, body)| Frame::Ask(id, topic, body)),
            any::<u64>().prop_map(Frame::Strange),
            (any::<u64>(), body()).prop_map(|(id, body)| Frame::Answer(id, Ok(body))),
            (any::<u64>(), "[a-zé ]{0,20}").prop_map(|(id, reason)| Frame::Answer(id, Err(reason))),
        ]
    }

    proptest! {
        #[test]
        fn a_frame_reads_back(frame in frames()) {
            let bytes = frame.encode();
            let length = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            prop_assert_eq!(Frame::checked_length(length), Ok(bytes.len() - 4));
            prop_assert_eq!(Frame::decode(bytes.slice(4..)), Ok(frame));
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            fuzz(&bytes);
        }
    }

    #[test]
    fn a_question_of_a_newer_release_is_no_reason_to_end_the_link() {
        let asked = b"\x02\0\0\0\0\0\0\0\x07\x63what is this";
        assert_eq!(Frame::decode(Bytes::from_static(asked)), Ok(Frame::Strange(7)));
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_it_is_allocated() {
        assert_eq!(Frame::checked_length(u32::MAX), Err(FrameError::TooLong(u32::MAX as usize)));
        assert_eq!(Frame::checked_length(0), Err(FrameError::Malformed));
    }
}
