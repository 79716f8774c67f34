//! Follows the framing of an HTTP/1 body to find where it ends. Knows lengths and chunks; must not
//! keep or change a byte of the body, nor know sockets. It exists so that the next request on a
//! connection is recognised by us and not by the engine's idle probe, and so that a malformed
//! chunk is refused here.

use crate::listen::head::{Fault, Framing, is_token};

/// Bytes of a chunk's size line: 16 digits and a modest extension.
const SIZE_LINE: u32 = 256;

/// Where in a body we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Body {
    state: State,
    trailer_limit: usize,
    trailer_seen: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Length(u64),
    Size { value: u64, digits: u8, line: u32 },
    Extension { value: u64, line: u32 },
    SizeEnd { value: u64 },
    Data(u64),
    DataReturn,
    DataEnd,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerReturn,
    LastEnd,
    Done,
}

impl Body {
    /// A body that starts now; its trailer section may be `trailer_limit` bytes long.
    #[must_use]
    pub const fn new(framing: Framing, trailer_limit: usize) -> Self {
        let state = match framing {
            Framing::None | Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Size { value: 0, digits: 0, line: 0 },
        };
        Self { state, trailer_limit, trailer_seen: 0 }
    }

    /// Is the last byte seen?
    #[must_use]
    pub const fn done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Walks over `input` and returns how many of its bytes belong to this body.
    ///
    /// # Errors
    /// Malformed chunked coding.
    pub fn advance(&mut self, input: &[u8]) -> Result<usize, Fault> {
        let mut at = 0;
        while at < input.len() && !self.done() {
            let rest = input.len() - at;
            match self.state {
                State::Length(left) => {
                    let (taken, left) = take(left, rest);
                    at += taken;
                    self.state = if left == 0 { State::Done } else { State::Length(left) };
                }
                State::Data(left) => {
                    let (taken, left) = take(left, rest);
                    at += taken;
                    self.state = if left == 0 { State::DataReturn } else { State::Data(left) };
                }
                _ => {
                    let Some(&byte) = input.get(at) else { break };
                    self.state = self.step(byte)?;
                    at += 1;
                }
            }
        }
        Ok(at)
    }

    fn step(&mut self, byte: u8) -> Result<State, Fault> {
        Ok(match (self.state, byte) {
            (State::Size { value, digits, line }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                if digits >= 16 || value >> 60 != 0 {
                    return Err(Fault::ChunkSize);
                }
                let digit = char::from(byte).to_digit(16).unwrap_or(0);
                State::Size { value: value << 4 | u64::from(digit), digits: digits + 1, line: line + 1 }
            }
            (State::Size { digits: 0, .. }, _) => return Err(Fault::ChunkSize),
            (State::Size { value, .. } | State::Extension { value, .. }, b'\r') => State::SizeEnd { value },
            (State::Size { value, line, .. }, b';') => State::Extension { value, line },
            (State::Extension { value, line }, b'\t' | b' '..=0x7e) if line < SIZE_LINE => {
                State::Extension { value, line: line + 1 }
            }
            (State::SizeEnd { value: 0 }, b'\n') => State::TrailerStart,
            (State::SizeEnd { value }, b'\n') => State::Data(value),
            (State::DataReturn, b'\r') => State::DataEnd,
            (State::DataEnd, b'\n') => State::Size { value: 0, digits: 0, line: 0 },
            (State::DataReturn | State::DataEnd, _) => return Err(Fault::ChunkEnd),
            (State::TrailerStart, b'\r') => State::LastEnd,
            (State::LastEnd, b'\n') => State::Done,
            (State::TrailerStart, byte) if is_token(byte) => {
                self.count_trailer()?;
                State::TrailerName
            }
            (State::TrailerName, byte) if is_token(byte) => {
                self.count_trailer()?;
                State::TrailerName
            }
            (State::TrailerName, b':') => State::TrailerValue,
            (State::TrailerValue, b'\r') => State::TrailerReturn,
            (State::TrailerReturn, b'\n') => State::TrailerStart,
            (State::TrailerValue, b'\t' | b' '..=0x7e | 0x80..) => {
                self.count_trailer()?;
                State::TrailerValue
            }
            (
                State::TrailerStart
                | State::LastEnd
                | State::TrailerName
                | State::TrailerValue
                | State::TrailerReturn,
                _,
            ) => {
                return Err(Fault::Trailer);
            }
            _ => return Err(Fault::ChunkSize),
        })
    }

    fn count_trailer(&mut self) -> Result<(), Fault> {
        self.trailer_seen += 1;
        if self.trailer_seen > self.trailer_limit { Err(Fault::Trailer) } else { Ok(()) }
    }
}

fn take(left: u64, available: usize) -> (usize, u64) {
    let taken = usize::try_from(left).unwrap_or(usize::MAX).min(available);
    (taken, left - taken as u64)
}

/// The fuzz target's body: the end of a body does not depend on how it arrives.
pub fn fuzz(data: &[u8]) {
    let start = Body::new(Framing::Chunked, 64);
    let mut whole = start;
    let at_once = whole.advance(data);
    let mut parts = start;
    let mut seen = Ok(0);
    for byte in data.chunks(1) {
        match parts.advance(byte) {
            Ok(taken) => seen = seen.map(|sum: usize| sum + taken),
            Err(fault) => {
                seen = Err(fault);
                break;
            }
        }
    }
    assert_eq!(at_once, seen, "a body's end does not depend on how it arrives");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chunked(input: &str) -> Result<(usize, bool), Fault> {
        let mut body = Body::new(Framing::Chunked, 64);
        let taken = body.advance(input.as_bytes())?;
        Ok((taken, body.done()))
    }

    #[test]
    fn a_length_ends_where_it_says() {
        let mut body = Body::new(Framing::Length(5), 64);
        assert_eq!(body.advance(b"hel"), Ok(3));
        assert!(!body.done());
        assert_eq!(body.advance(b"loGET /"), Ok(2));
        assert!(body.done());
        assert!(Body::new(Framing::None, 64).done());
    }

    #[test]
    fn chunks_end_after_the_trailers() {
        let text = "5\r\nhello\r\n0a;x=y\r\n0123456789\r\n0\r\nEtag: x\r\n\r\nGET /";
        assert_eq!(chunked(text), Ok((text.len() - 5, true)));
        assert_eq!(chunked("0\r\n\r\n"), Ok((5, true)));
        assert_eq!(chunked("5\r\nhel"), Ok((6, false)));
    }

    #[test]
    fn malformed_chunks_are_refused() {
        for (text, fault) in [
            ("x\r\n", Fault::ChunkSize),
            ("\r\n", Fault::ChunkSize),
            ("5\nhello\r\n", Fault::ChunkSize),
            ("5 \r\nhello\r\n", Fault::ChunkSize),
            ("0x5\r\nhello\r\n", Fault::ChunkSize),
            ("11111111111111111\r\n", Fault::ChunkSize),
            ("5;a\nb\r\nhello\r\n", Fault::ChunkSize),
            ("5\r\nhelloGET", Fault::ChunkEnd),
            ("5\r\nhello\n", Fault::ChunkEnd),
            ("0\r\n folded\r\n\r\n", Fault::Trailer),
            ("0\r\nname\r\n\r\n", Fault::Trailer),
            ("0\r\nname: a\n\r\n", Fault::Trailer),
        ] {
            assert_eq!(chunked(text), Err(fault), "{text:?}");
        }
        assert_eq!(chunked(&format!("0\r\nx: {}", "a".repeat(100))), Err(Fault::Trailer));
        assert_eq!(chunked(&format!("5;{}", "a".repeat(300))), Err(Fault::ChunkSize));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(data in proptest::collection::vec(any::<u8>(), 0..400)) {
            fuzz(&data);
        }

        #[test]
        fn what_is_well_chunked_ends_exactly_at_its_end(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..6),
            after in proptest::collection::vec(any::<u8>(), 0..20),
        ) {
            let mut wire = Vec::new();
            for chunk in &chunks {
                wire.extend(format!("{:x}\r\n", chunk.len()).bytes());
                wire.extend(chunk);
                wire.extend(b"\r\n");
            }
            wire.extend(b"0\r\n\r\n");
            let end = wire.len();
            wire.extend(after);
            let mut body = Body::new(Framing::Chunked, 64);
            prop_assert_eq!(body.advance(&wire), Ok(end));
            prop_assert!(body.done());
        }
    }
}
