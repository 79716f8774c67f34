//! Body → plaintext, frame by frame, from any frame on. A frame is handed out only after age
//! has authenticated every chunk that it lies in.

use std::io::{BufReader, Read, Seek, SeekFrom};

use age::stream::StreamReader;

use super::seek_table::{FOOTER, parse_note, table_length};
use super::{BODY, EnvelopeError, FRAME, SeekTable, parse_seek_table};
use crate::storage::object::OneOff;

/// age's header of a body ends within this; a longer one is not ours, and reading on for its
/// end would let a damaged file fill the memory.
const MAX_HEADER: u64 = 4096;

/// An object's body, ready to be read.
pub struct Opened<R> {
    stream: StreamReader<BufReader<R>>,
    position: u64,
    table: SeekTable,
    decompressor: zstd::bulk::Decompressor<'static>,
    buffer: Vec<u8>,
}

impl<R: Read + Seek> Opened<R> {
    /// Opens the body of `object` (the whole file, slots first) and checks its length and seek
    /// table against the `size` its record tells.
    ///
    /// # Errors
    /// Damage, or the medium's own.
    pub fn new(mut object: R, identity: &OneOff, size: u64) -> Result<Self, EnvelopeError> {
        let foreign = EnvelopeError::Damaged("the body is not for its record's identity");
        check_header(&mut object)?;
        let identity: age::x25519::Identity =
            identity.0.parse().map_err(|_| EnvelopeError::Damaged("the one-off identity is none"))?;
        object.seek(SeekFrom::Start(BODY)).map_err(EnvelopeError::Beneath)?;
        let file = age::Decryptor::new_buffered(BufReader::with_capacity(128 * 1024, object));
        let stream = file.and_then(|file| file.decrypt(std::iter::once(&identity as &dyn age::Identity)));
        let mut stream = match stream {
            Ok(stream) => stream,
            Err(age::DecryptError::Io(error)) => {
                return Err(EnvelopeError::of_reading(error, "the body's header is cut short"));
            }
            Err(_) => return Err(foreign),
        };
        // Seeking to the end authenticates the last chunk as the last: the length is right.
        let total = stream.seek(SeekFrom::End(0)).map_err(wrong)?;
        let table = read_table(&mut stream, total)?;
        if table.plaintext() != size {
            return Err(EnvelopeError::Damaged("the body's length is not what its record tells"));
        }
        let decompressor = zstd::bulk::Decompressor::new().map_err(EnvelopeError::Beneath)?;
        Ok(Self { stream, position: total, table, decompressor, buffer: Vec::new() })
    }

    /// How many frames there are; none in an empty object.
    pub fn frames(&self) -> usize {
        self.table.frames()
    }

    /// The label in front of the data, where it is too long for a record.
    ///
    /// # Errors
    /// Damage, or the medium's own.
    pub fn label(&mut self) -> Result<Option<String>, EnvelopeError> {
        let length = self.table.note();
        if length == 0 {
            return Ok(None);
        }
        self.position = u64::MAX;
        self.stream.seek(SeekFrom::Start(0)).map_err(wrong)?;
        let mut note = vec![0; length];
        self.stream.read_exact(&mut note).map_err(wrong)?;
        parse_note(&note).map(Some)
    }

    /// The plaintext of a frame: [`FRAME`] bytes, in the last frame what is left.
    ///
    /// # Errors
    /// Damage, no such frame, or the medium's own.
    pub fn frame(&mut self, index: usize) -> Result<Vec<u8>, EnvelopeError> {
        let (start, length, plain) =
            self.table.frame(index).ok_or(EnvelopeError::Damaged("it ends before the frame asked for"))?;
        if start != self.position {
            // The table was checked against the authenticated length, so this never seeks past
            // the end, where age 0.12 panics.
            self.stream.seek(SeekFrom::Start(start)).map_err(wrong)?;
        }
        self.position = u64::MAX;
        self.buffer.resize(length, 0);
        self.stream.read_exact(&mut self.buffer).map_err(wrong)?;
        self.position = start + length as u64;
        debug_assert!(plain <= FRAME, "the table was checked");
        let frame = self
            .decompressor
            .decompress(&self.buffer, plain)
            .map_err(|_| EnvelopeError::Damaged("a frame does not decompress"))?;
        if frame.len() != plain {
            return Err(EnvelopeError::Damaged("a frame is shorter than the seek table tells"));
        }
        Ok(frame)
    }
}

fn wrong(error: std::io::Error) -> EnvelopeError {
    EnvelopeError::of_reading(error, "the body does not authenticate")
}

fn check_header<R: Read + Seek>(object: &mut R) -> Result<(), EnvelopeError> {
    object.seek(SeekFrom::Start(BODY)).map_err(EnvelopeError::Beneath)?;
    let mut head = Vec::new();
    object.by_ref().take(MAX_HEADER).read_to_end(&mut head).map_err(EnvelopeError::Beneath)?;
    if head.windows(5).any(|window| window == b"\n--- ") {
        return Ok(());
    }
    Err(EnvelopeError::Damaged("the body does not start with an age header"))
}

fn read_table<R: Read + Seek>(
    stream: &mut StreamReader<BufReader<R>>,
    total: u64,
) -> Result<SeekTable, EnvelopeError> {
    let none = EnvelopeError::Damaged("no seek table at the end");
    let footer_at = total.checked_sub(FOOTER as u64).ok_or(none)?;
    let mut footer = [0; FOOTER];
    stream.seek(SeekFrom::Start(footer_at)).map_err(wrong)?;
    stream.read_exact(&mut footer).map_err(wrong)?;
    let length = table_length(&footer)?;
    let table_at = total
        .checked_sub(length as u64)
        .ok_or(EnvelopeError::Damaged("the seek table is longer than the body"))?;
    let mut bytes = vec![0; length];
    stream.seek(SeekFrom::Start(table_at)).map_err(wrong)?;
    stream.read_exact(&mut bytes).map_err(wrong)?;
    parse_seek_table(&bytes, total)
}
