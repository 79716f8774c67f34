//! What is written in place and not published: a replica's slots, and notes. Whoever reads
//! either knows a torn one. Knows the requests it takes; not what the bytes mean.

use std::convert::Infallible;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use ssh2::File;

use super::link::Link;
use super::trouble::{Failed, Kind, Trouble};
use super::writer::{self, Unwritten};
use super::{Sftp, layout};
use crate::storage::envelope::{BODY, Side, parse_slot};
use crate::storage::file_server::FileServerError;
use crate::storage::note::{MAX_NOTE, is_note_name};
use crate::storage::object::ObjectId;
use crate::storage::step::Step;

impl Sftp {
    /// See [`FileServer::write_slot`](super::FileServer::write_slot).
    pub(super) fn overwrite_slot(
        &self,
        id: &ObjectId,
        side: Side,
        bytes: &[u8],
    ) -> Result<(), FileServerError> {
        if let Err(why) = parse_slot(bytes) {
            return Err(self.bad_source(&id.to_string(), &why.to_string()));
        }
        let path = layout::replica_path(&self.root, id);
        let written = self.ask_in_place(|link| {
            let mut file = link.open_to_overwrite(&path)?;
            let long_enough = link.facts(&mut file)?.size.is_some_and(|size| size >= BODY);
            if long_enough {
                self.steps.reach(|| Step::WriteFile(path.clone()));
                file.seek(SeekFrom::Start(side.offset())).map_err(|error| link.told(&error))?;
                self.write_all(link, &mut file, bytes)?;
                self.note(link.flush(&mut file)?, || Step::FileSynced(path.clone()));
            }
            link.close(file)?;
            Ok(long_enough)
        });
        match written {
            Ok((long_enough, lane)) => {
                lane.give_back();
                let why = "it is too short for its slots".to_owned();
                let (server, object) = (self.name.clone(), id.to_string());
                if long_enough { Ok(()) } else { Err(FileServerError::Damaged { server, object, why }) }
            }
            Err(Failed::Trouble(trouble)) if trouble.kind == Kind::Missing => Err(self.absent(id)),
            Err(failed) => Err(self.fail_on_one(id, failed)),
        }
    }

    /// See [`FileServer::read_note`](super::FileServer::read_note).
    pub(super) fn whole_note(&self, name: &str) -> Result<Option<Vec<u8>>, FileServerError> {
        let path = self.note_path(name)?;
        let read = self.ask_in_place(|link| {
            let mut file = link.open(&path)?;
            let mut bytes = Vec::new();
            let read = file.by_ref().take(MAX_NOTE as u64 + 1).read_to_end(&mut bytes);
            read.map_err(|error| link.told(&error))?;
            link.close(file)?;
            Ok(bytes)
        });
        match read {
            Ok((bytes, lane)) => {
                lane.give_back();
                Ok(Some(bytes))
            }
            Err(Failed::Trouble(trouble)) if trouble.kind == Kind::Missing => {
                self.check_place().map(|()| None)
            }
            Err(failed) => Err(self.blame().of_part(name, failed)),
        }
    }

    /// See [`FileServer::write_note`](super::FileServer::write_note). No rename overwrites on
    /// every server, so the file itself is.
    pub(super) fn overwrite_note(&self, name: &str, bytes: &[u8]) -> Result<(), FileServerError> {
        let path = self.note_path(name)?;
        if bytes.len() > MAX_NOTE {
            return Err(self.bad_source(name, "it is too long"));
        }
        let write = || {
            let ((), lane) = self.ask_in_place(|link| self.overwrite(link, &path, bytes))?;
            lane.give_back();
            Ok::<_, Failed>(())
        };
        let fault = |failed| match failed {
            Failed::Trouble(trouble) if trouble.kind == Kind::Failure && !self.is_full() => {
                self.blame().of_part(name, Failed::Trouble(trouble))
            }
            other => self.fail(name, other),
        };
        match write().map_err(fault) {
            Err(FileServerError::Faulty { .. }) => {
                let aside = layout::aside_path(&self.root, name);
                let moved = self.ask(&self.control, |link| self.move_aside(link, &path, &aside));
                moved.and_then(|()| write()).map_err(fault)
            }
            other => other,
        }
    }

    /// Writes all of a file, whatever it held.
    fn overwrite(&self, link: &mut Link, path: &Path, bytes: &[u8]) -> Result<(), Trouble> {
        let mut file = match link.open_anew(path) {
            Err(trouble) if trouble.kind == Kind::Missing => {
                let folder = self.root.join("notes");
                self.steps.reach(|| Step::MakeFolder(folder.clone()));
                link.make_folder(&folder)?;
                self.flush_parent(link, &folder)?;
                link.open_anew(path)?
            }
            other => other?,
        };
        self.steps.reach(|| Step::WriteFile(path.to_owned()));
        self.write_all(link, &mut file, bytes)?;
        self.note(link.flush(&mut file)?, || Step::FileSynced(path.to_owned()));
        link.close(file)?;
        self.flush_parent(link, path)
    }

    /// Writes from where the file stands. Where that fails, requests may be half sent: the
    /// connection is cut, so that nobody uses the session again.
    fn write_all(&self, link: &mut Link, file: &mut File, mut bytes: &[u8]) -> Result<(), Trouble> {
        let written = writer::write(link, file, self.timeout, |piece| {
            let count = bytes.len().min(piece.len());
            let (now, later) = bytes.split_at(count);
            piece[..count].copy_from_slice(now);
            bytes = later;
            Ok::<_, Infallible>(count)
        });
        match written {
            Ok(_) => Ok(()),
            Err(Unwritten::Trouble(trouble)) => {
                link.cut();
                Err(trouble)
            }
            Err(Unwritten::Source(never)) => match never {},
        }
    }

    fn note_path(&self, name: &str) -> Result<PathBuf, FileServerError> {
        if !is_note_name(name) {
            return Err(self.bad_source(name, "that is no note's name"));
        }
        Ok(self.root.join("notes").join(name))
    }

    fn bad_source(&self, object: &str, why: &str) -> FileServerError {
        FileServerError::BadSource {
            server: self.name.clone(),
            object: object.to_owned(),
            why: why.to_owned(),
        }
    }
}
