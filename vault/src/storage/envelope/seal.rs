//! Plaintext → body, streaming: frames, encryption, both digests. Holds one frame at a time.

use std::io::Write;

use age::secrecy::ExposeSecret;
use age::stream::StreamWriter;

use super::seek_table::write_seek_table;
use super::{EnvelopeError, FRAME};
use crate::storage::object::{ObjectId, OneOff};

/// zstd's own default: fast enough not to be the bottleneck beside encryption.
const LEVEL: i32 = 3;

/// Writes one object's body.
pub struct Sealer<W: Write> {
    age: StreamWriter<Hashing<W>>,
    compressor: zstd::bulk::Compressor<'static>,
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
            compressor: zstd::bulk::Compressor::new(LEVEL).map_err(EnvelopeError::Beneath)?,
            frame: Vec::with_capacity(FRAME),
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
                self.end_frame()?;
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
        if !self.frame.is_empty() {
            self.end_frame()?;
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

    fn end_frame(&mut self) -> Result<(), EnvelopeError> {
        let compressed = self.compressor.compress(&self.frame).map_err(EnvelopeError::Beneath)?;
        let lengths = (u32::try_from(compressed.len()), u32::try_from(self.frame.len()));
        let (Ok(short), Ok(long)) = lengths else { return Err(EnvelopeError::TooLong) };
        self.frames.push((short, long));
        self.frame.clear();
        self.age.write_all(&compressed).map_err(EnvelopeError::Beneath)
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
