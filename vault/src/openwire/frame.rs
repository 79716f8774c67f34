//! Frames: bytes as they arrive → commands, commands → bytes to send. Pure; knows no socket.
//!
//! A frame is four bytes of length (big-endian, of what follows) and one structure. The first one
//! each way is the greeting; both halves follow what was settled by it.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};

use super::Version;
use super::any::Command;
use super::command::Head;
use super::fault::{DecodeError, EncodeError, Fault};
use super::greeting::{Offer, Settled, WireFormatInfo};
use super::message::MessageKind;
use super::wire::{PREFIX, Reader, Wire, Writer};

/// Longest greeting taken, in bytes: real ones have some 400.
const MAX_GREETING: usize = 16 << 10;

/// Bytes from a frame's type to the end of what every command begins with.
const START: usize = 6;

/// Nothing longer is passed over: Java has no longer arrays, so no client sends it.
const LONGEST_PASSED: usize = 0x7FFF_FFFF;

/// Least and most room made for what arrives, in bytes: an idle connection costs little, a busy
/// one is read in large portions.
const ROOM: std::ops::RangeInclusive<usize> = 2 << 10..=64 << 10;

/// What arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arrival {
    /// The peer's greeting, once and first, and what is settled by it.
    Greeting(WireFormatInfo, Settled),
    /// A command.
    Command(Command),
    /// A message over the limit began to arrive; it is passed over. See [`Incoming::pass_over`].
    Oversized {
        /// What it begins with, so that its sender can be answered.
        head: Head,
        /// Its length, in bytes.
        length: usize,
        /// The limit in force, in bytes.
        limit: usize,
    },
}

/// Bytes that arrive, in whatever portions.
#[derive(Debug)]
pub struct Incoming {
    buffer: BytesMut,
    room: usize,
    offer: Offer,
    settled: Option<Settled>,
    /// Longest frame taken now, in bytes after the length.
    longest: usize,
    /// Are longer messages passed over?
    forgives: bool,
    /// Bytes of one that are still to be passed over.
    passing: usize,
}

impl Incoming {
    /// Waits for the greeting that answers `offer`, or that it answers.
    #[must_use]
    pub fn new(offer: Offer) -> Self {
        Self {
            buffer: BytesMut::new(),
            room: *ROOM.start(),
            offer,
            settled: None,
            longest: MAX_GREETING,
            forgives: false,
            passing: 0,
        }
    }

    /// Where to put bytes that arrive, behind those that are there; it has room for some.
    pub fn buffer(&mut self) -> &mut BytesMut {
        let filled = self.buffer.capacity() == self.buffer.len();
        self.room = if filled { self.room * 2 } else { self.room / 2 }.clamp(*ROOM.start(), *ROOM.end());
        // A large frame makes room as its bytes arrive, never on the word of its length.
        let missing = self.wanted().unwrap_or_default().saturating_sub(self.buffer.len());
        self.buffer.reserve(missing.min(self.buffer.len()).max(self.room));
        &mut self.buffer
    }

    /// The next command, or none until more bytes arrive.
    ///
    /// # Errors
    /// What is no OpenWire, or over the limit. The connection is of no use then.
    pub fn arrival(&mut self) -> Result<Option<Arrival>, DecodeError> {
        let passed = self.passing.min(self.buffer.len());
        self.buffer.advance(passed);
        self.passing -= passed;
        let Some(length) = self.wanted() else { return Ok(None) };
        let limit = self.longest;
        if length - PREFIX > limit {
            if self.forgives && length - PREFIX <= LONGEST_PASSED {
                return self.oversized(length - PREFIX, limit);
            }
            // What opens with a length out of all proportion is another protocol's text.
            let fault = Fault::TooLong { length: length - PREFIX, limit };
            return Err(if self.settled.is_some() { fault } else { Fault::NotOpenWire }.into());
        }
        if self.buffer.len() < length {
            return Ok(None);
        }
        let mut frame = self.buffer.split_to(length).freeze();
        frame.advance(PREFIX);
        match self.settled {
            Some(settled) => Reader::new(frame, settled.version).whole().map(Arrival::Command).map(Some),
            None => self.greeted(frame).map(Some),
        }
    }

    /// From now on takes no longer frame than so many bytes, nor than was settled: who is unknown
    /// is not given much memory, and who is known may have it.
    pub fn limit(&mut self, longest: usize) {
        self.longest = self.settled.map_or(MAX_GREETING, |settled| settled.max_frame).min(longest);
    }

    /// From now on a message over the limit is passed over instead of being the connection's end:
    /// a client that always sends again what its connection broke at would never come to an end.
    pub fn pass_over(&mut self) {
        self.forgives = true;
    }

    /// Length in bytes of the frame that has begun to arrive, as its sender says, if it will be taken.
    #[must_use]
    pub fn announced(&self) -> Option<usize> {
        self.wanted().filter(|length| length - PREFIX <= self.longest)
    }

    /// Bytes that have arrived and are no command yet.
    #[must_use]
    pub fn gathered(&self) -> usize {
        self.buffer.len()
    }

    /// What was settled, once the greeting has arrived.
    #[must_use]
    pub fn settled(&self) -> Option<Settled> {
        self.settled
    }

    fn greeted(&mut self, frame: Bytes) -> Result<Arrival, DecodeError> {
        let greeting: WireFormatInfo = Reader::new(frame, Version::V12).whole()?;
        let settled = self.offer.settle(&greeting)?;
        self.settled = Some(settled);
        self.longest = settled.max_frame;
        Ok(Arrival::Greeting(greeting, settled))
    }

    /// `length` in bytes after the prefix.
    fn oversized(&mut self, length: usize, limit: usize) -> Result<Option<Arrival>, DecodeError> {
        let start = self.buffer.get(PREFIX..PREFIX + START).map(Bytes::copy_from_slice);
        let Some(mut start) = start else { return Ok(None) };
        if !MessageKind::is_code(start.get_u8()) {
            return Err(Fault::TooLong { length, limit }.into());
        }
        let head = Wire::read(&mut Reader::new(start, Version::V12))?;
        self.passing = PREFIX + length;
        Ok(Some(Arrival::Oversized { head, length, limit }))
    }

    /// Length of the frame that has begun to arrive, its prefix included.
    fn wanted(&self) -> Option<usize> {
        if self.passing > 0 {
            return None;
        }
        let prefix = self.buffer.first_chunk()?;
        let length = usize::try_from(u32::from_be_bytes(*prefix)).ok()?;
        length.checked_add(PREFIX)
    }
}

/// Frames that wait to be sent; a [`Buf`], so that a socket's `write_buf` empties it. Large bodies
/// are not copied into it.
#[derive(Debug)]
pub struct Outgoing {
    ready: VecDeque<Bytes>,
    remaining: usize,
    writer: Writer,
    max_frame: usize,
}

impl Outgoing {
    /// Opens with a greeting.
    ///
    /// # Errors
    /// A greeting of more bytes than a frame may have.
    pub fn new(greeting: &WireFormatInfo) -> Result<Self, EncodeError> {
        let mut outgoing = Self {
            ready: VecDeque::new(),
            remaining: 0,
            writer: Writer::new(Version::V12),
            max_frame: MAX_GREETING,
        };
        outgoing.frame(|writer| writer.structure(greeting))?;
        Ok(outgoing)
    }

    /// From now on speaks as was settled.
    pub fn settle(&mut self, settled: &Settled) {
        self.writer.speak(settled.version);
        self.max_frame = settled.max_frame;
    }

    /// Puts a command behind the others.
    ///
    /// # Errors
    /// A frame over the limit that was settled; nothing of it is sent.
    pub fn push(&mut self, command: &Command) -> Result<(), EncodeError> {
        self.frame(|writer| writer.structure(command))
    }

    fn frame(&mut self, write: impl FnOnce(&mut Writer)) -> Result<(), EncodeError> {
        let start = self.writer.begin();
        write(&mut self.writer);
        self.remaining += self.writer.end(start, self.max_frame)?;
        if self.writer.has_aside() {
            self.ready.extend(self.writer.pieces());
        }
        Ok(())
    }
}

impl Buf for Outgoing {
    fn remaining(&self) -> usize {
        self.remaining
    }

    fn chunk(&self) -> &[u8] {
        self.ready.front().map_or(self.writer.written(), Bytes::as_ref)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let tail = Some(self.writer.written()).filter(|tail| !tail.is_empty());
        let chunks = self.ready.iter().map(Bytes::as_ref).chain(tail);
        slices.iter_mut().zip(chunks).map(|(slice, chunk)| *slice = IoSlice::new(chunk)).count()
    }

    fn advance(&mut self, count: usize) {
        self.remaining -= count;
        let mut left = count;
        while let Some(piece) = self.ready.front_mut() {
            let step = left.min(piece.len());
            piece.advance(step);
            left -= step;
            if !piece.is_empty() {
                return;
            }
            self.ready.pop_front();
        }
        self.writer.sent(left);
    }
}
