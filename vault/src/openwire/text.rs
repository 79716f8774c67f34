//! Strings as Java writes them: "modified UTF-8", where NUL is `C0 80` and characters beyond
//! U+FFFF are surrogate pairs of three bytes each. Knows no protocol. The bytes are kept as they
//! came, so that a name passes through unchanged even where it is no valid text.
//!
//! Source: `java.io.DataInput`, "Modified UTF-8".

use std::fmt;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

/// A Java string of at most 65,535 bytes of modified UTF-8; cheap to clone.
///
/// It may be a slice of a larger buffer: what is kept for long is [`Text::detached`] first.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Text(Bytes);

/// A string that does not fit the protocol's two bytes of length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a string of {0} bytes is over the protocol's 65535")]
pub struct TextTooLong(pub usize);

impl Text {
    /// Longest string, in bytes of modified UTF-8.
    pub const MAX: usize = 65_535;

    /// Takes bytes as they are, checking nothing but their number.
    ///
    /// # Errors
    /// More than [`Text::MAX`].
    pub fn from_bytes(bytes: Bytes) -> Result<Self, TextTooLong> {
        if bytes.len() > Self::MAX { Err(TextTooLong(bytes.len())) } else { Ok(Self(bytes)) }
    }

    /// As much of `text` as fits; for what only people read, as an error's message.
    #[must_use]
    pub fn shortened(text: &str) -> Self {
        let mut bytes = Vec::with_capacity(text.len().min(Self::MAX));
        for letter in text.chars() {
            let before = bytes.len();
            write_letter(letter, &mut bytes);
            if bytes.len() > Self::MAX {
                bytes.truncate(before);
                break;
            }
        }
        Self(bytes.into())
    }

    /// Takes two bytes of length and as many bytes more off the front, if they are there.
    pub(super) fn take(bytes: &mut Bytes) -> Option<Self> {
        let length = usize::from(bytes.try_get_u16().ok()?);
        (length <= bytes.len()).then(|| Self(bytes.split_to(length)))
    }

    /// Writes two bytes of length and the bytes.
    pub(super) fn put(&self, buffer: &mut BytesMut) {
        // Never longer: every constructor sees to that.
        buffer.put_u16(u16::try_from(self.0.len()).unwrap_or(u16::MAX));
        buffer.put_slice(&self.0);
    }

    /// The bytes of modified UTF-8.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The same text in memory of its own, so that it does not keep a whole buffer alive.
    #[must_use]
    pub fn detached(&self) -> Self {
        Self(Bytes::copy_from_slice(&self.0))
    }
}

/// A password on its way: a text that never shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(Text);

impl Password {
    /// Hides a text.
    #[must_use]
    pub fn new(text: Text) -> Self {
        Self(text)
    }

    /// What it is.
    #[must_use]
    pub fn reveal(&self) -> &Text {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Password(hidden)")
    }
}

impl TryFrom<&str> for Text {
    type Error = TextTooLong;

    fn try_from(text: &str) -> Result<Self, TextTooLong> {
        Self::from_bytes(encode(text).into())
    }
}

impl fmt::Display for Text {
    /// What is no character shows as U+FFFD.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&decode(&self.0))
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&decode(&self.0), formatter)
    }
}

/// Modified UTF-8 of a text of any length.
#[must_use]
pub(super) fn encode(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    for letter in text.chars() {
        write_letter(letter, &mut bytes);
    }
    bytes
}

/// The text that modified UTF-8 stands for; plain UTF-8 is understood too, and each byte that is
/// neither shows as U+FFFD.
#[must_use]
pub(super) fn decode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    let mut rest = bytes;
    while !rest.is_empty() {
        let (letter, used) = read_letter(rest).unwrap_or((char::REPLACEMENT_CHARACTER, 1));
        text.push(letter);
        rest = rest.get(used..).unwrap_or_default();
    }
    text
}

fn write_letter(letter: char, bytes: &mut Vec<u8>) {
    if letter == '\0' {
        bytes.extend([0xC0, 0x80]);
        return;
    }
    for unit in letter.encode_utf16(&mut [0; 2]) {
        match *unit {
            unit @ 0..0x80 => bytes.push(low(unit)),
            unit @ 0x80..0x800 => bytes.extend([0xC0 | low(unit >> 6), 0x80 | low(unit & 0x3F)]),
            unit => {
                bytes.extend([0xE0 | low(unit >> 12), 0x80 | low(unit >> 6 & 0x3F), 0x80 | low(unit & 0x3F)])
            }
        }
    }
}

/// The lower byte, which is all there is where this is called.
fn low(unit: u16) -> u8 {
    unit.to_be_bytes()[1]
}

/// The first letter and how many bytes it took.
fn read_letter(bytes: &[u8]) -> Option<(char, usize)> {
    let (unit, used) = read_unit(bytes)?;
    if let Ok(letter) = char::try_from(unit) {
        return Some((letter, used));
    }
    // A surrogate: its other half follows in three bytes of its own.
    let (second, more) = read_unit(bytes.get(used..)?)?;
    let pair = [u16::try_from(unit).ok()?, u16::try_from(second).ok()?];
    let letter = char::decode_utf16(pair).next()?.ok()?;
    Some((letter, used + more))
}

/// One UTF-16 unit, or the four bytes that only plain UTF-8 has.
fn read_unit(bytes: &[u8]) -> Option<(u32, usize)> {
    let tail =
        |at: usize| bytes.get(at).filter(|byte| *byte & 0xC0 == 0x80).map(|byte| u32::from(byte & 0x3F));
    let first = u32::from(*bytes.first()?);
    match first {
        0..0x80 => Some((first, 1)),
        0xC0..0xE0 => Some(((first & 0x1F) << 6 | tail(1)?, 2)),
        0xE0..0xF0 => Some(((first & 0x0F) << 12 | tail(1)? << 6 | tail(2)?, 3)),
        0xF0..0xF8 => Some(((first & 0x07) << 18 | tail(1)? << 12 | tail(2)? << 6 | tail(3)?, 4)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_text_reads_back(text in any::<String>()) {
            let wire = Text::try_from(text.as_str()).unwrap();
            prop_assert!(!wire.as_bytes().contains(&0), "NUL never stands as one byte");
            prop_assert_eq!(wire.to_string(), text);
        }

        #[test]
        fn any_bytes_show_as_something(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let text = Text::from_bytes(bytes.clone().into()).unwrap();
            prop_assert_eq!(text.as_bytes(), bytes);
            prop_assert!(text.to_string().chars().count() <= text.as_bytes().len());
        }
    }

    #[test]
    fn nul_and_emoji_are_written_as_java_writes_them() {
        assert_eq!(encode("\0"), [0xC0, 0x80]);
        assert_eq!(encode("é€"), [0xC3, 0xA9, 0xE2, 0x82, 0xAC]);
        assert_eq!(encode("😀"), [0xED, 0xA0, 0xBD, 0xED, 0xB8, 0x80]);
        assert_eq!(decode("😀".as_bytes()), "😀", "plain UTF-8 is understood too");
        assert_eq!(decode(&[0xED, 0xA0, 0xBD]), "\u{FFFD}\u{FFFD}\u{FFFD}", "half a pair");
    }

    #[test]
    fn a_text_over_two_bytes_of_length_is_refused_or_shortened_between_letters() {
        let long = "€".repeat(30_000);
        assert_eq!(Text::try_from(long.as_str()), Err(TextTooLong(90_000)));
        assert_eq!(Text::shortened(&long).as_bytes().len(), 65_535);
        assert_eq!(Text::shortened(&format!("a{long}")).as_bytes().len(), 65_533);
    }
}
