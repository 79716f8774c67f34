//! Storing a long object: hashed beside its sending, flushed beside its writing, and written with requests
//! in flight on two channels of one session where the server grants them, so that a distance does not
//! leave the line idle. Where it grants none, libssh2's
//! `Sftp` writes it. Knows the order of the steps; which request is sent when is `abreast`'s and `writer`'s.

use std::path::Path;

use super::abreast::{self, Stream};
use super::link::Flushed;
use super::message::Request;
use super::pipeline::{Answer, Pipeline};
use super::pool::{Lane, NOBODY};
use super::short::{FILE_MODE, WELL, flushed_of, name, number, refusal};
use super::trouble::{Failed, Trouble};
use super::writer::{self, Unwritten};
use super::{FileServerError, Put, Replica, Sftp, Step, ahead, begin, flushing, unwrap_or};
use crate::storage::envelope::Checker;
use crate::storage::object::ObjectId;

/// Shorter ones go on one channel: to open another takes three round trips once.
const WORTH_TWO: u64 = 8 << 20;

/// Gives the next bytes of what is written.
type Next<'a> = &'a mut dyn FnMut(&mut [u8]) -> std::io::Result<usize>;
/// Is told how much is there, and tells how much of it is on the disk.
type OnDisk<'a> = &'a mut dyn FnMut(u64) -> u64;

impl Sftp {
    /// Writes the temporary file, flushes and measures it, and gives it its final name.
    pub(super) fn write_long(
        &self,
        id: &ObjectId,
        source: &mut Replica,
        temporary: &Path,
        moved: &dyn Fn(usize),
    ) -> Result<Put, FileServerError> {
        self.steps.reach(|| Step::MakeFile(temporary.to_owned()));
        if let Some(put) = self.write_abreast(id, source, temporary, moved)? {
            return Ok(put);
        }
        let created = begin(&self.data, |link| {
            self.place.see(link)?;
            self.with_tmp(link, |link| link.create(temporary))
        });
        let (file, mut lane) = created.map_err(|failed| self.fail_to_write(id, failed))?;
        // On an error it goes with the session, and nobody waits for its end.
        let (_, file) = lane.open.insert((NOBODY, file));
        let (length, link) = (source.length(), &mut lane.link);
        let written = self.send(id, source, temporary, |next, on_disk| {
            writer::write_long(link, file, self.timeout, length, next, on_disk)
        })?;
        let finished = self.finish(&mut lane, temporary);
        let size = finished.map_err(|trouble| self.fail_to_write(id, Failed::Trouble(trouble)))?;
        self.check_size(id, written, size)?;
        self.publish(id, source.length(), lane, temporary, moved)
    }

    /// The same with requests in flight, on one channel or two; `None`: the server grants a session
    /// none for that, and nothing was done.
    fn write_abreast(
        &self,
        id: &ObjectId,
        source: &mut Replica,
        temporary: &Path,
        moved: &dyn Fn(usize),
    ) -> Result<Option<Put>, FileServerError> {
        let fail = |trouble| self.fail_to_write(id, Failed::Trouble(trouble));
        let most = if source.length() < WORTH_TWO { 1 } else { 2 };
        let made = begin(&self.data, |link| {
            self.place.see(link)?;
            self.with_tmp(link, |link| link.abreast(most, |channels| make(channels, temporary)))
        });
        let (handles, mut lane) = made.map_err(|failed| self.fail_to_write(id, failed))?;
        let Some(handles) = handles else {
            lane.give_back();
            return Ok(None);
        };
        let written = self.send(id, source, temporary, |next, on_disk| {
            let mut unread = None;
            let wrote = lane.link.abreast(most, |channels| {
                let mut streams: Vec<_> = channels
                    .iter_mut()
                    .zip(&handles)
                    .map(|(channel, handle)| Stream::new(channel, handle))
                    .collect();
                match abreast::write(&mut streams, next, on_disk) {
                    Err(Unwritten::Trouble(trouble)) => Err(trouble),
                    Err(Unwritten::Source(error)) => {
                        unread = Some(error);
                        Ok(0)
                    }
                    Ok(written) => Ok(written),
                }
            });
            match (wrote, unread) {
                (_, Some(error)) => Err(Unwritten::Source(error)),
                (Err(trouble), None) => Err(Unwritten::Trouble(trouble)),
                (Ok(written), None) => Ok(written.unwrap_or_default()),
            }
        })?;
        let finished =
            lane.link.abreast(most, |channels| finish(channels, &handles, temporary)).map_err(fail)?;
        let (flushed, size) = finished.unwrap_or((Flushed::Unknown, None));
        self.note(flushed, || Step::FileSynced(temporary.to_owned()));
        self.check_size(id, written, size)?;
        let path = super::layout::replica_path(&self.root, id);
        if self.name_at_once(&mut lane, temporary, &path).map_err(fail)? {
            lane.give_back();
            return Ok(Some(Put::Written));
        }
        self.publish(id, source.length(), lane, temporary, moved).map(Some)
    }

    /// Reads, hashes and flushes beside `write`; says how many bytes it wrote.
    fn send(
        &self,
        id: &ObjectId,
        source: &mut Replica,
        temporary: &Path,
        write: impl FnOnce(Next<'_>, OnDisk<'_>) -> Result<u64, Unwritten<std::io::Error>>,
    ) -> Result<u64, FileServerError> {
        let (length, mut checker) = (source.length(), Checker::default());
        let read = |piece: &mut [u8]| {
            let count = std::io::Read::read(source, piece)?;
            checker.update(&piece[..count]);
            Ok::<_, std::io::Error>(count)
        };
        let written = ahead::reading_ahead(length, read, |next| {
            let mut next = |piece: &mut [u8]| {
                let count = next(piece)?;
                self.steps.reach(|| Step::WriteFile(temporary.to_owned()));
                Ok(count)
            };
            let flush = || self.flush_beside(temporary);
            flushing::flushing_beside(length, flush, |on_disk| write(&mut next, on_disk))
        });
        let written = written.map_err(|unwritten| match unwritten {
            Unwritten::Source(error) => unwrap_or(error, &self.name, &self.address, id),
            Unwritten::Trouble(trouble) => self.fail_to_write(id, Failed::Trouble(trouble)),
        })?;
        let (server, object) = (self.name.clone(), id.to_string());
        checker.finish(id).map(|()| written).map_err(|why| FileServerError::BadSource {
            server,
            object,
            why: why.to_string(),
        })
    }

    fn check_size(&self, id: &ObjectId, written: u64, size: Option<u64>) -> Result<(), FileServerError> {
        if size == Some(written) {
            return Ok(());
        }
        let (server, object) = (self.name.clone(), id.to_string());
        let why = format!("{written} bytes were written and {} are there", size.unwrap_or_default());
        Err(FileServerError::Damaged { server, object, why })
    }

    /// Flushes what is written of a file on another session, where one is to spare. What comes of
    /// it the last flush tells, on the session that writes: an error of the disk shows on both.
    fn flush_beside(&self, temporary: &Path) -> bool {
        let Some(mut lane) = self.data.borrow_spare() else { return false };
        let flushed = lane.link.open(temporary).and_then(|mut file| {
            let flushed = lane.link.flush(&mut file)?;
            lane.link.close(file)?;
            Ok(flushed == Flushed::Yes)
        });
        match flushed {
            Err(trouble) if trouble.spoils_session() => false,
            other => {
                lane.give_back();
                other.unwrap_or(false)
            }
        }
    }

    /// Flushes, closes and measures.
    fn finish(&self, lane: &mut Lane, temporary: &Path) -> Result<Option<u64>, Trouble> {
        let Lane { link, open, .. } = lane;
        if let Some((_, file)) = open.as_mut() {
            self.note(link.flush(file)?, || Step::FileSynced(temporary.to_owned()));
        }
        if let Some((_, file)) = open.take() {
            link.close(file)?;
        }
        Ok(link.stat(temporary)?.size)
    }
}

/// Makes the file on the first channel and opens it on the others; the handles.
fn make(channels: &mut [&mut Pipeline], temporary: &Path) -> Result<Vec<Vec<u8>>, Trouble> {
    let mut handles = Vec::new();
    for channel in channels {
        let path = name(temporary);
        let request = match handles.len() {
            0 => Request::Make { id: 0, path, mode: FILE_MODE },
            _ => Request::OpenToWrite { id: 0, path },
        };
        match channel.ask(&[request])?.as_slice() {
            [Answer::Handle(handle)] => handles.push(handle.clone()),
            answers if handles.is_empty() => return Err(refusal(answers)),
            // It goes on one.
            _ => break,
        }
    }
    Ok(handles)
}

/// Flushes and closes on every channel, and measures.
fn finish(
    channels: &mut [&mut Pipeline],
    handles: &[Vec<u8>],
    temporary: &Path,
) -> Result<(Flushed, Option<u64>), Trouble> {
    let flush = !cfg!(feature = "without-fsync");
    for (at, (channel, handle)) in channels.iter_mut().zip(handles).enumerate() {
        let mut requests = Vec::new();
        if flush {
            requests.push(Request::Flush { id: number(&requests), handle });
        }
        requests.push(Request::Close { id: number(&requests), handle });
        if at == 0 {
            requests.push(Request::Measure { id: number(&requests), path: name(temporary) });
        }
        channel.put(&requests)?;
    }
    let (mut flushed, mut size) = (Flushed::Yes, None);
    for (at, (channel, _)) in channels.iter_mut().zip(handles).enumerate() {
        let answers = channel.answers(usize::from(flush) + 1 + usize::from(at == 0))?;
        let mut rest = answers.as_slice();
        if flush && let [Answer::Status(code), others @ ..] = rest {
            if flushed_of(*code)? == Flushed::Unknown {
                flushed = Flushed::Unknown;
            }
            rest = others;
        }
        match rest {
            [Answer::Status(WELL)] => {}
            [Answer::Status(WELL), Answer::Size(found)] => size = *found,
            answers => return Err(refusal(answers)),
        }
    }
    Ok((flushed, size))
}
