//! Plaintext ↔ object: compress, encrypt, digest, and back. Bytes only: knows neither
//! catalogs nor file servers.
//!
//! ```text
//! 0     slot A, 4096 B        4096  slot B, 4096 B (the same content at creation)
//! 8192  body: age v1 file to the object's one-off identity, to the end;
//!       inside it zstd in independent 1 MiB frames and the seekable format's table;
//!       a label too long for a record (384 B) stands before them in a skippable frame
//! id    BLAKE3 of the body's ciphertext
//! ```
//!
//! A slot holds the record (metadata and the one-off identity) in a second age file to the
//! active and the escrow recipient, so stock tools recover a file `f` with either key:
//! `tail -c +65 f | head -c 4032 | age -d -i key >id` (slot B: `+4161`), then
//! `tail -c +8193 f | age -d -i id | zstd -d`.

use std::io::Read;

use super::object::ObjectId;

mod compress;
mod open;
mod record;
mod rotation;
mod seal;
mod seek_table;
mod slot;

pub use open::Opened;
pub use record::{MAX_RECORD, RECORD_LABEL, Record, parse_record};
pub use rotation::{Next, examine};
pub use seal::{Sealed, Sealer};
pub use seek_table::{SeekTable, parse_seek_table};
pub use slot::{SLOT, Side, Slot, parse_slot, read_slots, seal_name, seal_slot};

/// Where the body starts: behind both slots.
pub const BODY: u64 = 2 * SLOT as u64;
/// Plaintext bytes in a frame; only an object's last frame is shorter.
pub const FRAME: usize = 1 << 20;

/// No object of so many plaintext bytes is longer. What is not compressible grows by a 256th in zstd
/// and by a 4096th in age; headers, a long label and the seek table add a little.
#[must_use]
pub const fn longest(size: u64) -> u64 {
    size.saturating_add(size / 64).saturating_add(64 << 10)
}

/// Why an envelope cannot be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// The bytes are not what was written: bit rot, truncation or foul play.
    #[error("damaged: {0}")]
    Damaged(&'static str),
    /// Neither slot opens with the keys at hand: another key wrote them.
    #[error("its record is sealed to none of these keys; name the file of the key it was written with")]
    ForeignKey,
    /// The record does not fit its slot; limits of the API prevent it.
    #[error("the metadata is too long for a record")]
    TooLong,
    /// age refuses to encrypt.
    #[error("age: {0}")]
    Encrypt(#[source] Box<age::EncryptError>),
    /// What lies beneath cannot be read or written.
    #[error(transparent)]
    Beneath(std::io::Error),
}

impl From<age::EncryptError> for EnvelopeError {
    fn from(error: age::EncryptError) -> Self {
        Self::Encrypt(Box::new(error))
    }
}

impl EnvelopeError {
    /// What is wrong, for a sentence that says already that something is damaged.
    pub(super) fn reason(&self) -> String {
        match self {
            Self::Damaged(why) => (*why).to_owned(),
            other => other.to_string(),
        }
    }

    /// Tells an error of the medium beneath from age's and zstd's word that bytes are wrong.
    fn of_reading(error: std::io::Error, what: &'static str) -> Self {
        use std::io::ErrorKind::{InvalidData, UnexpectedEof};
        if error.get_ref().is_some_and(|inner| inner.is::<crate::storage::file_server::FileServerError>()) {
            return Self::Beneath(error);
        }
        match error.kind() {
            InvalidData | UnexpectedEof => Self::Damaged(what),
            _ => Self::Beneath(error),
        }
    }
}

/// Checks a whole object that is read from its first byte: the body hashes to `id`, and at
/// least one slot is whole. Needs no key.
///
/// # Errors
/// Damage, or the medium's own.
pub fn verify(object: impl Read, id: &ObjectId) -> Result<(), EnvelopeError> {
    inspect(object, id).map(drop)
}

/// The same check, and which of the two slots has rotted, if one has.
///
/// # Errors
/// As [`verify`].
pub fn inspect(mut object: impl Read, id: &ObjectId) -> Result<Option<Side>, EnvelopeError> {
    let mut checker = Checker::default();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match object.read(&mut buffer) {
            Ok(0) => return checker.rotten(id),
            Ok(count) => checker.update(&buffer[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(EnvelopeError::Beneath(error)),
        }
    }
}

/// The same check over bytes that pass by, for whoever copies an object.
#[derive(Default)]
pub struct Checker {
    slots: Vec<u8>,
    body: blake3::Hasher,
}

impl Checker {
    /// The object's next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        let missing = (2 * SLOT).saturating_sub(self.slots.len()).min(bytes.len());
        self.slots.extend_from_slice(&bytes[..missing]);
        bytes = &bytes[missing..];
        self.body.update(bytes);
    }

    /// The verdict after the last byte.
    ///
    /// # Errors
    /// Damage.
    pub fn finish(self, id: &ObjectId) -> Result<(), EnvelopeError> {
        self.rotten(id).map(drop)
    }

    fn rotten(self, id: &ObjectId) -> Result<Option<Side>, EnvelopeError> {
        if ObjectId::new(*self.body.finalize().as_bytes()) != *id {
            return Err(EnvelopeError::Damaged("the body's hash is not the object's id"));
        }
        match Side::BOTH.map(|side| parse_slot(side.of(&self.slots)).is_ok()) {
            [true, true] => Ok(None),
            [true, false] => Ok(Some(Side::B)),
            [false, true] => Ok(Some(Side::A)),
            [false, false] => Err(EnvelopeError::Damaged("neither slot is whole")),
        }
    }
}

#[cfg(test)]
mod tests;
