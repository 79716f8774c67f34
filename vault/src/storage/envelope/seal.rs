//! Plaintext → body, streaming: frames, encryption, both digests. Holds a few frames at a time.

use std::io::Write;

use age::secrecy::ExposeSecret;
use age::stream::StreamWriter;

use super::compress::{Compressed, Lanes};
use super::record::RECORD_LABEL;
use super::seek_table::{write_note, write_seek_table};
use super::{EnvelopeError, FRAME};
use crate::storage::object::{ObjectId, OneOff};

/// Writes one object's body.
pub struct Sealer<W: Write> {
    age: StreamWriter<Hashing<W>>,
    lanes: Lanes,
    frame: Vec<u8>,
    frames: Vec<(u32, u32)>,
    digest: blake3::Hasher,
    size: u64,
    identity: OneOff,
}

/// A finished body.
#[derive(Debug)]
pub struct Sealed<W> {
    /// Hash of its ciphertext.
    pub id: ObjectId,
    /// BLAKE3 of the plaintext, hex.
    pub digest: String,
    /// Plaintext bytes.
    pub size: u64,
    /// What decrypts it.
    pub identity: OneOff,
    /// Where it was written.
    pub out: W,
}

impl<W: Write> Sealer<W> {
    /// As [`Sealer::new`]; a `label` that no record holds goes in front of the data.
    ///
    /// # Errors
    /// `out`'s own, or a label beyond all limits.
    pub fn labelled(out: W, label: &str) -> Result<Self, EnvelopeError> {
        let mut sealer = Self::new(out)?;
        if label.len() > RECORD_LABEL {
            let note = write_note(label)?;
            sealer.append(Compressed { bytes: note, plain: 0 })?;
        }
        Ok(sealer)
    }

    /// Makes a one-off identity and starts a body in `out`.
    ///
    /// # Errors
    /// `out`'s own.
    pub fn new(out: W) -> Result<Self, EnvelopeError> {
        let identity = age::x25519::Identity::generate();
        let recipient = identity.to_public();
        let age = age::Encryptor::with_recipients(std::iter::once(&recipient as &dyn age::Recipient))?
            .wrap_output(Hashing { out, hash: blake3::Hasher::new() })
            .map_err(EnvelopeError::Beneath)?;
        Ok(Self {
            age,
            lanes: Lanes::new()?,
            frame: Vec::new(),
            frames: Vec::new(),
            digest: blake3::Hasher::new(),
            size: 0,
            identity: OneOff(identity.to_string().expose_secret().to_owned()),
        })
    }

    /// The next plaintext.
    ///
    /// # Errors
    /// `out`'s own.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), EnvelopeError> {
        self.digest.update(bytes);
        self.size += bytes.len() as u64;
        while !bytes.is_empty() {
            let taken = bytes.len().min(FRAME - self.frame.len());
            self.frame.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if self.frame.len() == FRAME {
                let whole = std::mem::replace(&mut self.frame, Vec::with_capacity(FRAME));
                if let Some(done) = self.lanes.push(whole)? {
                    self.append(done)?;
                }
            }
        }
        Ok(())
    }

    /// Plaintext bytes so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Ends the body with its seek table.
    ///
    /// # Errors
    /// `out`'s own.
    pub fn finish(mut self) -> Result<Sealed<W>, EnvelopeError> {
        while let Some(done) = self.lanes.pop()? {
            self.append(done)?;
        }
        if !self.frame.is_empty() {
            let last = std::mem::take(&mut self.frame);
            let done = self.lanes.compress(&last)?;
            self.append(done)?;
        }
        let table = write_seek_table(&self.frames)?;
        self.age.write_all(&table).map_err(EnvelopeError::Beneath)?;
        let Hashing { out, hash } = self.age.finish().map_err(EnvelopeError::Beneath)?;
        Ok(Sealed {
            id: ObjectId::new(*hash.finalize().as_bytes()),
            digest: self.digest.finalize().to_hex().to_string(),
            size: self.size,
            identity: self.identity,
            out,
        })
    }

    fn append(&mut self, done: Compressed) -> Result<(), EnvelopeError> {
        let short = u32::try_from(done.bytes.len()).map_err(|_| EnvelopeError::TooLong)?;
        self.frames.push((short, done.plain));
        self.age.write_all(&done.bytes).map_err(EnvelopeError::Beneath)
    }
}

/// Hashes what passes through to `out`.
struct Hashing<W> {
    out: W,
    hash: blake3::Hasher,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.hash.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}
