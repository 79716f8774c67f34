//! The spool: where an object is encrypted to before it goes to the file servers, and where
//! a replica passes on its way from one to the other. Never holds plaintext; a file here
//! lives as long as its guard, and leftovers of a previous life go at start.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use age::x25519::Recipient;
use bytes::Bytes;
use tokio::sync::mpsc;

use super::envelope::{BODY, EnvelopeError, Record, Sealer, seal_slot};
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

/// The spool's folder.
#[derive(Debug, Clone)]
pub(super) struct Spool {
    folder: PathBuf,
}

/// A file in the spool; it goes with this value.
#[derive(Debug)]
pub(super) struct SpoolFile {
    path: PathBuf,
    file: Arc<File>,
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
        let path = self.folder.join(format!("{}.object", random_hex()));
        let mut options = OpenOptions::new();
        let opened = options.read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = Arc::new(opened.map_err(|error| self.fail(error))?);
        Ok(SpoolFile { path, file })
    }

    /// Encrypts an upload's pieces into a new file; `None` if it was broken off. Blocks.
    pub(super) fn write(
        &self,
        upload: &Upload,
        created: String,
        recipients: [&Recipient; 2],
        mut pieces: mpsc::Receiver<Piece>,
    ) -> Result<Option<Spooled>, SpoolError> {
        let spooled = self.create()?;
        let refused = |error: EnvelopeError| match error {
            EnvelopeError::Beneath(source) => self.fail(source),
            source => SpoolError::Envelope { folder: self.folder.clone(), source },
        };
        let mut out = spooled.file.as_ref();
        out.seek(SeekFrom::Start(BODY)).map_err(|error| self.fail(error))?;
        let mut sealer = Sealer::labelled(out, &upload.label).map_err(refused)?;
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
        spooled.file.write_all_at(&slots, 0).map_err(|error| self.fail(error))?;
        Ok(Some(Spooled { id: sealed.id, record, file: spooled }))
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

impl SpoolFile {
    /// Appends; for copies that pass through.
    pub(super) fn append(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.as_ref().write_all(bytes)
    }

    /// Reads it as an object that is to be stored on `server`.
    pub(super) fn replica(&self, server: &str, id: &ObjectId) -> Result<Replica, FileServerError> {
        let (server, id) = (server.to_owned(), *id);
        let fail = move |error: std::io::Error| FileServerError::BadSource {
            server: server.clone(),
            object: id.to_string(),
            why: format!("the spool cannot be read: {error}"),
        };
        let length = self.file.metadata().map_err(&fail)?.len();
        let file = Arc::clone(&self.file);
        Ok(Replica::new(length, Box::new(move |buffer, at| file.read_at(buffer, at).map_err(&fail))))
    }
}

impl Drop for SpoolFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!("spool: {}: stays: {error}; it goes at the next start", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upload() -> Upload {
        Upload {
            owner: "erp".to_owned(),
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
        for whole in [false, true] {
            let (send, pieces) = mpsc::channel(8);
            send.try_send(Piece::Bytes(Bytes::from_static(b"the secret of the invoice"))).unwrap();
            if whole {
                send.try_send(Piece::End).unwrap();
            }
            drop(send);
            let spooled = spool.write(&upload(), String::new(), [&key, &key], pieces).unwrap();
            assert_eq!(files(folder.path()), usize::from(whole));
            if let Some(spooled) = spooled {
                let bytes = std::fs::read(&spooled.file.path).unwrap();
                for word in [&b"secret"[..], b"invoice", b"erp"] {
                    assert!(!bytes.windows(word.len()).any(|window| window == word));
                }
            }
            assert_eq!(files(folder.path()), 0);
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
