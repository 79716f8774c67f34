//! What a vault pair has acknowledged, so that all of it can be asked back later: each body comes
//! from a seed and need not be kept. Must not know how it was stored, or what befell it since.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use shared::api::File;

use crate::curl::Curl;
use crate::wait;

/// How long a caller repeats an upload that is refused for now.
const PATIENCE: Duration = Duration::from_secs(60);
/// A large body on a busy machine.
const TRANSFER: Duration = Duration::from_secs(120);

/// A file that was acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The file's id.
    pub id: String,
    /// What its body was made from.
    pub seed: u64,
    /// Its body's length in bytes.
    pub length: usize,
}

/// A small generator: the same seed gives the same numbers. Any seed will do.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// The numbers of `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number, all 64 bits of it.
    pub const fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// The next number below `limit`, which is not 0.
    pub fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap_or_default()
    }
}

/// `length` bytes that no compressor makes smaller.
#[must_use]
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut dice = Dice::new(seed);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&dice.next().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

impl Receipt {
    /// Uploads a body made from `seed` by this call of `/v1/files`, once.
    ///
    /// # Errors
    /// It is not acknowledged; the text says how it was refused.
    pub fn ask(call: &Curl, seed: u64, length: usize) -> anyhow::Result<Self> {
        let call = call.clone().key(format!("k{seed}")).within(TRANSFER);
        let answer = call.body(noise(seed, length)).send()?.expect(&[200, 201])?;
        let file: File = serde_json::from_slice(&answer.body)?;
        anyhow::ensure!(file.size == length as u64, "{} bytes of {length} are acknowledged", file.size);
        Ok(Self { id: file.id, seed, length })
    }

    /// As [`Self::ask`], repeated with the same key while it is refused, as callers are told to.
    ///
    /// # Errors
    /// It is refused for a minute; the text says how at last.
    pub fn insist(call: &Curl, seed: u64, length: usize) -> anyhow::Result<Self> {
        wait::until(&format!("upload {seed} is kept"), PATIENCE, || Self::ask(call, seed, length))
    }

    /// Reads the file back by this call, to which its path is added, and compares every byte.
    ///
    /// # Errors
    /// It cannot be read, or is not what was sent.
    pub fn read_back(&self, call: &Curl) -> anyhow::Result<()> {
        let answer = call.clone().to(&format!("/{}", self.id)).within(TRANSFER).send()?.expect(&[200])?;
        let whole = answer.body == noise(self.seed, self.length);
        anyhow::ensure!(whole, "file {}: {} of {} bytes, or others", self.id, answer.body.len(), self.length);
        Ok(())
    }

    /// Does this file hold exactly that body?
    ///
    /// # Errors
    /// It cannot be read, or holds something else.
    pub fn compare(&self, file: &Path) -> anyhow::Result<()> {
        let mut bytes = Vec::new();
        std::fs::File::open(file)?.read_to_end(&mut bytes).with_context(|| file.display().to_string())?;
        let whole = bytes == noise(self.seed, self.length);
        anyhow::ensure!(whole, "{}: {} of {} bytes, or others", file.display(), bytes.len(), self.length);
        Ok(())
    }
}
