//! The spool: where an object is encrypted to before it goes to the file servers, and where
//! a replica passes on its way from one to the other. Never holds plaintext; a file here
//! lives as long as its guard, and leftovers of a previous life go at start. A small object stays
//! in memory: a file's name coming and going would cost the disk more than the object.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use age::x25519::Recipient;
use bytes::Bytes;
use tokio::sync::mpsc;

use super::envelope::{BODY, EnvelopeError, Record, SLOT, Sealer, seal_slot};
use super::file_server::{FileServerError, Replica};
use super::object::{Metadata, ObjectId};
use super::{Upload, random_hex};

/// Why the spool cannot take an upload.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The spool's disk is full.
    #[error("spool {folder}: no space left: {source}; the upload is refused; make room")]
    Full {
        /// The spool's folder.
        folder: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The spool cannot be used.
    #[error("spool {folder}: {source}; check its owner and disk")]
    Unusable {
        /// The spool's folder.
        folder: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The upload cannot be encrypted.
    #[error("spool {folder}: {source}")]
    Envelope {
        /// The spool's folder.
        folder: PathBuf,
        /// The envelope's reason.
        #[source]
        source: EnvelopeError,
    },
}

/// Bytes that this user may still write on the disk of `folder`; nothing where that does not tell.
#[must_use]
pub fn free_below(folder: &Path) -> Option<u64> {
    let space = rustix::fs::statvfs(folder).ok()?;
    Some(space.f_bavail.saturating_mul(space.f_frsize))
}

/// The spool's folder.
#[derive(Debug, Clone)]
pub(super) struct Spool {
    folder: PathBuf,
}

/// Objects up to this stay in memory. Every upload may hold so much.
const SMALL: usize = 256 * 1024;

/// An object in the spool: a file that goes with this value, or memory.
#[derive(Debug)]
pub(super) enum SpoolFile {
    /// All of a small one.
    Small(Arc<Vec<u8>>),
    /// A file.
    Large {
        /// Its name, until this value goes.
        path: PathBuf,
        /// Its bytes.
        file: Arc<File>,
    },
}

/// An object on its way into the spool: in memory until it is no longer small.
struct Spooling<'s> {
    spool: &'s Spool,
    small: Vec<u8>,
    large: Option<SpoolFile>,
}

/// What of an upload comes next.
pub(super) enum Piece {
    /// So many bytes more.
    Bytes(Bytes),
    /// That was all. An upload whose pieces stop without it was broken off.
    End,
}

/// An upload, encrypted and whole.
pub(super) struct Spooled {
    pub(super) id: ObjectId,
    pub(super) record: Record,
    pub(super) file: SpoolFile,
}

impl Spool {
    /// Makes the folder and removes what a previous life left there.
    pub(super) fn open(folder: &Path) -> Result<Self, SpoolError> {
        let spool = Self { folder: folder.to_owned() };
        spool.clean().map_err(|error| spool.fail(error))?;
        Ok(spool)
    }

    /// Bytes free on its disk.
    pub(super) fn free(&self) -> Option<u64> {
        free_below(&self.folder)
    }

    fn clean(&self) -> std::io::Result<()> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        for entry in std::fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "object") {
                std::fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Makes an empty file.
    pub(super) fn create(&self) -> Result<SpoolFile, SpoolError> {
        self.create_file().map_err(|error| self.fail(error))
    }

    fn create_file(&self) -> std::io::Result<SpoolFile> {
        let path = self.folder.join(format!("{}.object", random_hex()));
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(SpoolFile::Large { path, file: Arc::new(file) })
    }

    /// Encrypts an upload's pieces into a new file; `None` if it was broken off. Blocks.
    pub(super) fn write(
        &self,
        upload: &Upload,
        created: String,
        recipients: [&Recipient; 2],
        mut pieces: mpsc::Receiver<Piece>,
    ) -> Result<Option<Spooled>, SpoolError> {
        let refused = |error: EnvelopeError| match error {
            EnvelopeError::Beneath(source) => self.fail(source),
            source => SpoolError::Envelope { folder: self.folder.clone(), source },
        };
        let mut sealer = Sealer::labelled(Spooling::new(self), &upload.label).map_err(refused)?;
        loop {
            match pieces.blocking_recv() {
                Some(Piece::Bytes(bytes)) => sealer.write(&bytes).map_err(refused)?,
                Some(Piece::End) => break,
                None => return Ok(None),
            }
        }
        let sealed = sealer.finish().map_err(refused)?;
        let metadata = Metadata {
            owner: upload.owner.clone(),
            key: upload.key.clone(),
            label: upload.label.clone(),
            media_type: upload.media_type.clone(),
            size: sealed.size,
            created,
            digest: sealed.digest,
        };
        let record = Record { metadata, identity: sealed.identity };
        let slot = seal_slot(&record, recipients, 0).map_err(refused)?;
        let slots = [&slot[..], &slot[..]].concat();
        let file = sealed.out.finish(&slots).map_err(|error| self.fail(error))?;
        Ok(Some(Spooled { id: sealed.id, record, file }))
    }

    fn fail(&self, source: std::io::Error) -> SpoolError {
        let folder = self.folder.clone();
        match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                SpoolError::Full { folder, source }
            }
            _ => SpoolError::Unusable { folder, source },
        }
    }
}

impl<'s> Spooling<'s> {
    /// Room for the slots, which come last.
    fn new(spool: &'s Spool) -> Self {
        Self { spool, small: vec![0; 2 * SLOT], large: None }
    }

    fn finish(self, slots: &[u8]) -> std::io::Result<SpoolFile> {
        debug_assert_eq!(slots.len() as u64, BODY, "the body starts behind them");
        match self.large {
            Some(large) => {
                large.write_at(slots, 0)?;
                Ok(large)
            }
            None => {
                let mut small = self.small;
                small.splice(..slots.len(), slots.iter().copied());
                Ok(SpoolFile::Small(Arc::new(small)))
            }
        }
    }
}

impl Write for Spooling<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.large.is_none() {
            if self.small.len() + bytes.len() <= SMALL {
                self.small.extend_from_slice(bytes);
                return Ok(bytes.len());
            }
            let mut large = self.spool.create_file()?;
            large.append(&std::mem::take(&mut self.small))?;
            self.large = Some(large);
        }
        if let Some(large) = &mut self.large {
            large.append(bytes)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl SpoolFile {
    /// Appends; for copies that pass through.
    pub(super) fn append(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Small(small) => Arc::make_mut(small).extend_from_slice(bytes),
            Self::Large { file, .. } => file.as_ref().write_all(bytes)?,
        }
        Ok(())
    }

    /// Does it take a while to remove?
    pub(super) const fn is_large(&self) -> bool {
        matches!(self, Self::Large { .. })
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> std::io::Result<()> {
        match self {
            Self::Small(_) => Err(std::io::ErrorKind::Unsupported.into()),
            Self::Large { file, .. } => file.write_all_at(bytes, at),
        }
    }

    /// Reads it as an object that is to be stored on `server`.
    pub(super) fn replica(&self, server: &str, id: &ObjectId) -> Result<Replica, FileServerError> {
        let (server, id) = (server.to_owned(), *id);
        let fail = move |error: std::io::Error| FileServerError::BadSource {
            server: server.clone(),
            object: id.to_string(),
            why: format!("the spool cannot be read: {error}"),
        };
        match self {
            Self::Small(bytes) => Ok(Replica::of_bytes(Arc::clone(bytes))),
            Self::Large { file, .. } => {
                let (length, file) = (self.length().map_err(&fail)?, Arc::clone(file));
                Ok(Replica::new(length, Box::new(move |buffer, at| file.read_at(buffer, at).map_err(&fail))))
            }
        }
    }

    fn length(&self) -> std::io::Result<u64> {
        match self {
            Self::Small(bytes) => Ok(bytes.len() as u64),
            Self::Large { file, .. } => file.metadata().map(|known| known.len()),
        }
    }
}

impl Drop for SpoolFile {
    fn drop(&mut self) {
        if let Self::Large { path, .. } = self
            && let Err(error) = std::fs::remove_file(&path)
        {
            tracing::warn!("spool: {}: stays: {error}; it goes at the next start", path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upload() -> Upload {
        Upload {
            owner: "accounting".to_owned(),
            key: "k".to_owned(),
            label: "invoice".to_owned(),
            media_type: "text/plain".to_owned(),
        }
    }

    fn files(folder: &Path) -> usize {
        std::fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn an_upload_that_breaks_off_leaves_nothing_and_a_whole_one_no_plaintext() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::open(folder.path()).unwrap();
        let key = age::x25519::Identity::generate().to_public();
        let mut noise = vec![0; SMALL];
        getrandom::fill(&mut noise).unwrap();
        for (more, large) in [(Vec::new(), false), (noise[..SMALL / 2].to_vec(), false), (noise, true)] {
            for whole in [false, true] {
                let (send, pieces) = mpsc::channel(8);
                send.try_send(Piece::Bytes(Bytes::from_static(b"the secret of the invoice"))).unwrap();
                send.try_send(Piece::Bytes(more.clone().into())).unwrap();
                if whole {
                    send.try_send(Piece::End).unwrap();
                }
                drop(send);
                let spooled = spool.write(&upload(), String::new(), [&key, &key], pieces).unwrap();
                assert_eq!(files(folder.path()), usize::from(whole && large), "small ones make no file");
                if let Some(spooled) = spooled {
                    let mut bytes = Vec::new();
                    let mut replica = spooled.file.replica("one", &spooled.id).unwrap();
                    std::io::Read::read_to_end(&mut replica, &mut bytes).unwrap();
                    assert_eq!(bytes.len() as u64, replica.length());
                    assert!(crate::storage::envelope::verify(&bytes[..], &spooled.id).is_ok());
                    // Long enough never to stand in ciphertext by chance.
                    for word in [&b"the secret"[..], b"invoice", b"accounting"] {
                        assert!(!bytes.windows(word.len()).any(|window| window == word));
                    }
                }
                assert_eq!(files(folder.path()), 0);
            }
        }
    }

    #[test]
    fn leftovers_go_at_start() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("0.object"), "torn").unwrap();
        Spool::open(folder.path()).unwrap();
        assert_eq!(files(folder.path()), 0);
    }
}
