//! How one field stands on the wire in OpenWire's loose encoding without caches: the reader, the
//! writer and the few forms that a field has. Knows no command and no socket.
//!
//! Source: ActiveMQ's OpenWire page ("loose encoding"); numbers are big-endian. What may be null
//! (strings, byte sequences, arrays, nested structures) has a byte 0 or 1 in front; a string is
//! 2 bytes of length and modified UTF-8, a byte sequence 4 bytes of length and the bytes, an array
//! 2 bytes of number and its elements, a nested structure its type's byte and its fields.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use super::Version;
use super::fault::{DecodeError, EncodeError, Fault};
use super::text::{Password, Text};

/// How deep structures may lie in each other: real traffic needs 3 (an advisory message in a
/// dispatch carries a command).
const MAX_DEPTH: u8 = 8;

/// Structures of one frame, which take memory of their own: real ones have some ten, and one more
/// for each subscription or broker that they list.
const MOST_STRUCTURES: usize = 16_384;

/// Room for a usual frame, so that its fields do not make it piece by piece.
const ROOM: usize = 2 << 10;

/// Bytes of a frame's length.
pub(super) const PREFIX: usize = 4;

/// What four bytes count, as Java counts.
const MAX_LENGTH: usize = 0x7FFF_FFFF;

/// Byte sequences from this length on are sent from where they lie instead of being copied.
const ASIDE: usize = 16 << 10;

/// Reads one structure from its frame; strings and bytes are slices of it.
pub(super) struct Reader {
    bytes: Bytes,
    version: Version,
    depth: u8,
    structures: usize,
}

impl Reader {
    pub(super) fn new(bytes: Bytes, version: Version) -> Self {
        Self { bytes, version, depth: 0, structures: 0 }
    }

    pub(super) fn version(&self) -> Version {
        self.version
    }

    /// The whole of a structure: its type's byte and fields, and nothing after them.
    pub(super) fn whole<T: Structure>(mut self) -> Result<T, DecodeError> {
        let structure = self.structure()?;
        match self.bytes.len() {
            0 => Ok(structure),
            left => Err(Fault::Trailing(left).into()),
        }
    }

    fn structure<T: Structure>(&mut self) -> Result<T, DecodeError> {
        if self.depth == MAX_DEPTH {
            return Err(Fault::TooDeep.into());
        }
        self.structures += 1;
        if self.structures > MOST_STRUCTURES {
            return Err(Fault::TooMany { number: self.structures, most: MOST_STRUCTURES }.into());
        }
        let code = self.byte()?;
        self.depth += 1;
        let structure = T::read_fields(code, self)?;
        self.depth -= 1;
        Ok(structure)
    }

    fn byte(&mut self) -> Result<u8, Fault> {
        self.bytes.try_get_u8().map_err(|_| Fault::Truncated)
    }

    fn present(&mut self) -> Result<bool, Fault> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            byte => Err(Fault::Boolean(byte)),
        }
    }

    pub(super) fn take(&mut self, length: usize) -> Result<Bytes, Fault> {
        // Checked first: nothing is allocated for a length whose bytes are not there.
        if length > self.bytes.len() { Err(Fault::Truncated) } else { Ok(self.bytes.split_to(length)) }
    }
}

/// Writes structures one behind the other; large byte sequences are put aside uncopied.
#[derive(Debug)]
pub(super) struct Writer {
    buffer: BytesMut,
    /// Bytes that belong at a place of the buffer.
    aside: Vec<(usize, Bytes)>,
    aside_length: usize,
    version: Version,
    fault: Option<EncodeError>,
}

impl Writer {
    pub(super) fn new(version: Version) -> Self {
        Self { buffer: BytesMut::new(), aside: Vec::new(), aside_length: 0, version, fault: None }
    }

    pub(super) fn version(&self) -> Version {
        self.version
    }

    /// Type's byte and fields, as in a frame after its length.
    pub(super) fn structure<T: Structure>(&mut self, structure: &T) {
        self.buffer.put_u8(structure.code());
        structure.write_fields(self);
    }

    pub(super) fn put(&mut self, bytes: &[u8]) {
        self.buffer.put_slice(bytes);
    }

    fn put_shared(&mut self, bytes: &Bytes) {
        if bytes.len() < ASIDE {
            self.buffer.put_slice(bytes);
        } else {
            self.aside.push((self.buffer.len(), bytes.clone()));
            self.aside_length += bytes.len();
        }
    }

    /// From now on writes for that version.
    pub(super) fn speak(&mut self, version: Version) {
        self.version = version;
    }

    /// Opens a frame and says where it starts. Nothing may lie aside.
    pub(super) fn begin(&mut self) -> usize {
        debug_assert!(self.aside.is_empty(), "the last frame's pieces were taken");
        self.buffer.reserve(ROOM);
        let start = self.buffer.len();
        self.buffer.put_u32(0);
        start
    }

    /// Closes the frame that starts there and says its length with the prefix, or takes all of it
    /// back.
    pub(super) fn end(&mut self, start: usize, limit: usize) -> Result<usize, EncodeError> {
        let total = self.buffer.len() - start + self.aside_length;
        let length = total - PREFIX;
        let fault = self.fault.take().or((length > limit).then_some(EncodeError::TooLong { length, limit }));
        match (fault, u32::try_from(length)) {
            (None, Ok(prefix)) => {
                self.buffer[start..start + PREFIX].copy_from_slice(&prefix.to_be_bytes());
                Ok(total)
            }
            (fault, _) => {
                self.buffer.truncate(start);
                self.aside.clear();
                self.aside_length = 0;
                Err(fault.unwrap_or(EncodeError::TooLong { length, limit }))
            }
        }
    }

    /// Does a sequence lie aside, so that [`Writer::pieces`] must be taken?
    pub(super) fn has_aside(&self) -> bool {
        !self.aside.is_empty()
    }

    /// What lies in the buffer.
    pub(super) fn written(&self) -> &[u8] {
        &self.buffer
    }

    /// Takes what was sent off the buffer's front.
    pub(super) fn sent(&mut self, count: usize) {
        self.buffer.advance(count);
        if self.buffer.is_empty() {
            // A burst's memory is not kept by a connection that is idle now.
            self.buffer = BytesMut::new();
        }
    }

    /// The bytes in order, in as few pieces as there are large sequences; the writer is empty then.
    pub(super) fn pieces(&mut self) -> impl Iterator<Item = Bytes> {
        let mut rest = self.buffer.split();
        let mut done = 0;
        let mut pieces = Vec::with_capacity(1 + 2 * self.aside.len());
        for (at, bytes) in self.aside.drain(..) {
            pieces.push(rest.split_to(at - done).freeze());
            pieces.push(bytes);
            done = at;
        }
        self.aside_length = 0;
        pieces.push(rest.freeze());
        pieces.into_iter().filter(|piece| !piece.is_empty())
    }

    /// One structure without a frame, in one piece.
    pub(super) fn contiguous<T: Structure>(structure: &T, version: Version) -> Result<Bytes, EncodeError> {
        let mut writer = Self::new(version);
        writer.buffer.reserve(ROOM);
        writer.structure(structure);
        if let Some(fault) = writer.fault {
            return Err(fault);
        }
        let mut whole = BytesMut::with_capacity(writer.buffer.len() + writer.aside_length);
        writer.pieces().for_each(|piece| whole.put_slice(&piece));
        Ok(whole.freeze())
    }
}

/// A field's form on the wire.
pub(super) trait Wire: Sized {
    /// Takes the field off the reader.
    fn read(reader: &mut Reader) -> Result<Self, DecodeError>;
    /// Puts the field into the writer, which remembers what could not be written.
    fn write(&self, writer: &mut Writer);
}

/// Something with a type's number on the wire.
pub(super) trait Structure: Sized {
    /// The type's number.
    fn code(&self) -> u8;
    /// Reads the fields that follow the number `code`.
    ///
    /// # Errors
    /// Not a number of this structure, or fields that are none.
    fn read_fields(code: u8, reader: &mut Reader) -> Result<Self, DecodeError>;
    /// Writes the fields that follow the number.
    fn write_fields(&self, writer: &mut Writer);
}

/// Numbers, big-endian.
macro_rules! numbers {
    ($($number:ident $read:ident $write:ident),*) => {$(
        impl Wire for $number {
            fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
                reader.bytes.$read().map_err(|_| Fault::Truncated.into())
            }

            fn write(&self, writer: &mut Writer) {
                writer.buffer.$write(*self);
            }
        }
    )*};
}

numbers! { u8 try_get_u8 put_u8, i8 try_get_i8 put_i8, i32 try_get_i32 put_i32, i64 try_get_i64 put_i64 }

impl Wire for bool {
    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(reader.present()?)
    }

    fn write(&self, writer: &mut Writer) {
        writer.buffer.put_u8(u8::from(*self));
    }
}

impl Wire for Option<Text> {
    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        if !reader.present()? {
            return Ok(None);
        }
        Ok(Some(Text::take(&mut reader.bytes).ok_or(Fault::Truncated)?))
    }

    fn write(&self, writer: &mut Writer) {
        match self {
            None => writer.buffer.put_u8(0),
            Some(text) => text.write(writer),
        }
    }
}

/// A string that must be there.
impl Wire for Text {
    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(<Option<Text>>::read(reader)?.ok_or(Fault::Null)?)
    }

    fn write(&self, writer: &mut Writer) {
        writer.buffer.put_u8(1);
        self.put(&mut writer.buffer);
    }
}

impl Wire for Option<Password> {
    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(<Option<Text>>::read(reader)?.map(Password::new))
    }

    fn write(&self, writer: &mut Writer) {
        match self {
            None => writer.buffer.put_u8(0),
            Some(password) => password.reveal().write(writer),
        }
    }
}

impl Wire for Option<Bytes> {
    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        if !reader.present()? {
            return Ok(None);
        }
        let length = i32::read(reader)?;
        let length = usize::try_from(length).map_err(|_| Fault::Length(length))?;
        Ok(Some(reader.take(length)?))
    }

    fn write(&self, writer: &mut Writer) {
        let Some(bytes) = self else { return writer.buffer.put_u8(0) };
        writer.buffer.put_u8(1);
        match i32::try_from(bytes.len()) {
            Ok(length) => writer.buffer.put_i32(length),
            Err(_) => writer.fault = Some(EncodeError::TooLong { length: bytes.len(), limit: MAX_LENGTH }),
        }
        writer.put_shared(bytes);
    }
}

impl<T: Structure> Wire for Option<T> {
    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        if reader.present()? { Ok(Some(reader.structure()?)) } else { Ok(None) }
    }

    fn write(&self, writer: &mut Writer) {
        match self {
            None => writer.buffer.put_u8(0),
            Some(structure) => structure.write(writer),
        }
    }
}

/// A structure that must be there.
impl<T: Structure> Wire for T {
    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(<Option<T>>::read(reader)?.ok_or(Fault::Null)?)
    }

    fn write(&self, writer: &mut Writer) {
        writer.buffer.put_u8(1);
        writer.structure(self);
    }
}

impl<T: Structure> Wire for Option<Vec<T>> {
    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        if !reader.present()? {
            return Ok(None);
        }
        let number = reader.bytes.try_get_i16().map_err(|_| Fault::Truncated)?;
        let number = usize::try_from(number).map_err(|_| Fault::Length(i32::from(number)))?;
        // No capacity on a stranger's word: the vector grows as the elements are read.
        let elements: Result<_, _> = (0..number).map(|_| T::read(reader)).collect();
        Ok(Some(elements?))
    }

    fn write(&self, writer: &mut Writer) {
        let Some(elements) = self else { return writer.buffer.put_u8(0) };
        writer.buffer.put_u8(1);
        match i16::try_from(elements.len()) {
            Ok(number) => writer.buffer.put_i16(number),
            Err(_) => writer.fault = Some(EncodeError::TooMany(elements.len())),
        }
        for element in elements {
            element.write(writer);
        }
    }
}
