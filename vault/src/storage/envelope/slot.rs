//! The two fixed slots in front of a body: header line, checksum, generation. Knows where a
//! record lies and whether it is whole, not what it says.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::rc::Rc;

use age::x25519::{Identity, Recipient};

use super::record::{Record, parse_sealed_record, write_record};
use super::{EnvelopeError, MAX_RECORD};

/// Bytes of one slot.
pub const SLOT: usize = 4096;
/// Bytes of a slot's header line.
const HEADER: usize = 64;
const SEALED: usize = SLOT - HEADER;
/// Bytes that Poly1305 adds to a chunk.
const TAG: usize = 16;

/// One of the two slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// At the object's first byte.
    A,
    /// Behind slot A.
    B,
}

impl Side {
    /// Both, in the order in which they lie.
    pub const BOTH: [Self; 2] = [Self::A, Self::B];

    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// Where it starts in the object.
    #[must_use]
    pub const fn offset(self) -> u64 {
        match self {
            Self::A => 0,
            Self::B => SLOT as u64,
        }
    }

    /// Its bytes out of an object's first ones; fewer than a slot's where the object is cut short.
    #[must_use]
    pub fn of(self, bytes: &[u8]) -> &[u8] {
        let start = if self == Self::A { 0 } else { SLOT };
        bytes.get(start..).map_or(&[], |rest| &rest[..rest.len().min(SLOT)])
    }
}

/// Names the keys that a record is sealed to: short, the same on both vaults, and of no use to
/// whoever has neither.
#[must_use]
pub fn seal_name(recipients: [&Recipient; 2]) -> String {
    let name = |recipient: &Recipient| {
        blake3::hash(recipient.to_string().as_bytes()).to_hex().chars().take(8).collect::<String>()
    };
    recipients.map(name).join("/")
}

/// A slot whose checksum holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot<'a> {
    /// Counts rotations; of two whole slots the higher counts.
    pub generation: u32,
    /// The record's age file.
    pub sealed: &'a [u8],
}

/// Reads one slot: `OBJ1 s4096 g%010u b3 <32 hex>`, space-padded to 63, LF, age file.
///
/// # Errors
/// Anything else than a whole slot.
pub fn parse_slot(bytes: &[u8]) -> Result<Slot<'_>, EnvelopeError> {
    let damaged = EnvelopeError::Damaged;
    if bytes.len() != SLOT {
        return Err(damaged("a slot is cut short"));
    }
    let (header, sealed) = bytes.split_at(HEADER);
    let digits = header.get(12..22).ok_or(damaged("a slot's header is no header"))?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return Err(damaged("a slot's header is no header"));
    }
    let generation = digits.iter().fold(0_u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    let generation = u32::try_from(generation).map_err(|_| damaged("a slot's generation is too large"))?;
    // One spelling only: what we would write ourselves.
    if header != write_header(generation, sealed).as_slice() {
        return Err(damaged("a slot's header or checksum is wrong"));
    }
    Ok(Slot { generation, sealed })
}

fn write_header(generation: u32, sealed: &[u8]) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&u64::from(generation).to_be_bytes());
    hasher.update(sealed);
    let sum = hasher.finalize().to_hex();
    format!("{:<63}\n", format!("OBJ1 s{SLOT} g{generation:010} b3 {}", &sum[..32])).into_bytes()
}

/// Encrypts `record` to both recipients and makes a slot of it.
///
/// # Errors
/// The record does not fit.
pub fn seal_slot(
    record: &Record,
    recipients: [&Recipient; 2],
    generation: u32,
) -> Result<Vec<u8>, EnvelopeError> {
    let to = recipients.iter().map(|&recipient| recipient as &dyn age::Recipient);
    // age's header has no fixed length (it carries a random stanza), so it is written first
    // and the plaintext is padded to what is left.
    let written = Rc::new(RefCell::new(Vec::with_capacity(SEALED)));
    let mut writer = age::Encryptor::with_recipients(to)?
        .wrap_output(Shared(Rc::clone(&written)))
        .map_err(EnvelopeError::Beneath)?;
    let header = written.borrow().len();
    let room = SEALED.checked_sub(header + TAG).ok_or(EnvelopeError::TooLong)?;
    writer.write_all(&write_record(record, seal_name(recipients), room)?).map_err(EnvelopeError::Beneath)?;
    writer.finish().map_err(EnvelopeError::Beneath)?;
    let sealed = written.take();
    debug_assert_eq!(sealed.len(), SEALED, "the padding fits exactly");
    let mut slot = write_header(generation, &sealed);
    slot.extend_from_slice(&sealed);
    Ok(slot)
}

/// Reads the record out of both slots (the object's first bytes): of the whole slots that
/// open with one of `identities`, the one with the highest generation counts.
///
/// # Errors
/// Both damaged, or written for other keys.
pub fn read_slots(bytes: &[u8], identities: &[Identity]) -> Result<Record, EnvelopeError> {
    let mut whole: Vec<_> = bytes.chunks(SLOT).take(2).filter_map(|slot| parse_slot(slot).ok()).collect();
    whole.sort_by_key(|slot| std::cmp::Reverse(slot.generation));
    let mut refused = EnvelopeError::Damaged("neither slot is whole");
    for slot in whole {
        match open_slot(&slot, identities) {
            Ok((record, _)) => return Ok(record),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

/// Opens a whole slot: its record, and to which keys it says it is sealed.
pub(super) fn open_slot(slot: &Slot<'_>, identities: &[Identity]) -> Result<(Record, String), EnvelopeError> {
    let damaged = EnvelopeError::Damaged("a record's age file is damaged");
    let identities = identities.iter().map(|identity| identity as &dyn age::Identity);
    let reader = age::Decryptor::new(slot.sealed).and_then(|file| file.decrypt(identities));
    let reader = match reader {
        Ok(reader) => reader,
        Err(age::DecryptError::NoMatchingKeys) => return Err(EnvelopeError::ForeignKey),
        Err(_) => return Err(damaged),
    };
    let mut plaintext = Vec::with_capacity(MAX_RECORD);
    reader.take(MAX_RECORD as u64 + 1).read_to_end(&mut plaintext).map_err(|_| damaged)?;
    parse_sealed_record(&plaintext)
}

/// age's writer keeps what it writes to; this lets us look at it meanwhile.
struct Shared(Rc<RefCell<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
