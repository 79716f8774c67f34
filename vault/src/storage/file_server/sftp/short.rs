//! Storing a short object: the write protocol with requests in flight, in four round trips where
//! one after the other takes fifteen. What is not as it should be is left to the long way, which
//! tells why. Knows the order in which things must become durable; not the messages' bytes.

use std::io::Read;
use std::path::Path;

use super::link::Flushed;
use super::message::Request;
use super::pipeline::Answer;
use super::pool::Lane;
use super::trouble::{Failed, Kind, Trouble};
use super::{FileServerError, Put, Replica, Sftp, Step, begin, layout, lock, unwrap_or};
use crate::storage::envelope::Checker;
use crate::storage::object::ObjectId;

/// Longer ones are written with a window of their own.
const SHORT: u64 = 256 << 10;
/// Bytes of one request; every server takes so many.
const PIECE: usize = 32 << 10;
/// As the long way makes them.
pub(super) const FILE_MODE: u32 = 0o640;
const FOLDER_MODE: u32 = 0o750;
/// `SSH_FX_OK`, `SSH_FX_NO_SUCH_FILE`, `SSH_FX_OP_UNSUPPORTED`
pub(super) const WELL: u32 = 0;
const MISSING: u32 = 2;
const UNSUPPORTED: u32 = 8;

impl Sftp {
    /// Is it short enough?
    pub(super) const fn is_short(source: &Replica) -> bool {
        source.length() <= SHORT
    }

    /// Reads a short object whole and checks it against its id.
    pub(super) fn read_short(&self, id: &ObjectId, source: &mut Replica) -> Result<Vec<u8>, FileServerError> {
        let (mut bytes, mut checker) = (Vec::new(), Checker::default());
        let read = source.take(SHORT + 1).read_to_end(&mut bytes);
        read.map_err(|error| unwrap_or(error, &self.name, &self.address, id))?;
        checker.update(&bytes);
        checker.finish(id).map_err(|why| FileServerError::BadSource {
            server: self.name.clone(),
            object: id.to_string(),
            why: why.to_string(),
        })?;
        Ok(bytes)
    }

    /// Writes the temporary file and gives it its final name; `None`: this server takes one request
    /// at a time only, or has something under that name, and nothing was done.
    pub(super) fn write_short(
        &self,
        id: &ObjectId,
        bytes: &[u8],
        temporary: &Path,
        moved: &dyn Fn(usize),
    ) -> Result<Option<Put>, FileServerError> {
        let fail = |trouble| self.fail_to_write(id, Failed::Trouble(trouble));
        let path = layout::replica_path(&self.root, id);
        self.steps.reach(|| Step::MakeFile(temporary.to_owned()));
        let look = || Request::Measure { id: 0, path: name(&path) };
        let make = || Request::Make { id: 1, path: name(temporary), mode: FILE_MODE };
        let made = begin(&self.data, |link| {
            self.place.see(link)?;
            self.with_tmp(link, |link| {
                let answers = link.ask_at_once(&[look(), make()])?;
                match answers.as_deref().map(|answers| refusal(answers.get(1..).unwrap_or_default())) {
                    Some(missing) if missing.kind == Kind::Missing => Err(missing),
                    _ => Ok(answers),
                }
            })
        });
        let (made, mut lane) = made.map_err(|failed| self.fail_to_write(id, failed))?;
        let handle = match made.as_deref() {
            None => {
                lane.give_back();
                return Ok(None);
            }
            Some([Answer::Status(MISSING), Answer::Handle(handle)]) => handle.clone(),
            // It is there, though there may be no room for another.
            Some([Answer::Size(_), Answer::Status(_)]) => {
                lane.give_back();
                return Ok(None);
            }
            // Whoever looks closer says what it is.
            Some([_, Answer::Handle(handle)]) => {
                let close = Request::Close { id: 0, handle };
                let closed = lane.link.ask_at_once(&[close]).and_then(|_| lane.link.unlink(temporary));
                closed.map_err(fail)?;
                lane.give_back();
                return Ok(None);
            }
            Some(answers) => {
                let refusal = refusal(answers.get(1..).unwrap_or_default());
                give_back_if_sound(lane, &refusal);
                return Err(fail(refusal));
            }
        };
        match self.fill(&mut lane, &handle, bytes, temporary).map_err(fail)? {
            Ok(()) => {}
            Err(refusal) => {
                give_back_if_sound(lane, &refusal);
                return Err(fail(refusal));
            }
        }
        if self.name_at_once(&mut lane, temporary, &path).map_err(fail)? {
            lane.give_back();
            return Ok(Some(Put::Written));
        }
        self.publish(id, bytes.len() as u64, lane, temporary, moved).map(Some)
    }

    /// Writes, flushes, closes and measures; a refusal leaves the session sound.
    fn fill(
        &self,
        lane: &mut Lane,
        handle: &[u8],
        bytes: &[u8],
        temporary: &Path,
    ) -> Result<Result<(), Trouble>, Trouble> {
        self.steps.reach(|| Step::WriteFile(temporary.to_owned()));
        let mut requests = Vec::new();
        let mut at = 0;
        for piece in bytes.chunks(PIECE) {
            requests.push(Request::Write { id: number(&requests), handle, at, bytes: piece });
            at += piece.len() as u64;
        }
        let pieces = requests.len();
        if !cfg!(feature = "without-fsync") {
            requests.push(Request::Flush { id: number(&requests), handle });
        }
        requests.push(Request::Close { id: number(&requests), handle });
        requests.push(Request::Measure { id: number(&requests), path: name(temporary) });
        let answers = lane.link.ask_at_once(&requests)?.unwrap_or_default();
        let (written, rest) = answers.split_at_checked(pieces).unwrap_or_default();
        let (flushed, rest) = match rest {
            [Answer::Status(flushed), rest @ ..] if rest.len() == 2 => (flushed_of(*flushed), rest),
            rest => (Ok(Flushed::Yes), rest),
        };
        let all_well = |answers: &[Answer]| answers.iter().all(|answer| *answer == Answer::Status(WELL));
        if !all_well(written) || written.len() != pieces {
            return Ok(Err(refusal(written)));
        }
        let flushed = match flushed {
            Ok(flushed) => flushed,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let [closed, Answer::Size(Some(size))] = rest else { return Ok(Err(refusal(rest))) };
        if *closed != Answer::Status(WELL) {
            return Ok(Err(refusal(std::slice::from_ref(closed))));
        }
        if *size != bytes.len() as u64 {
            let why = format!("{} bytes were written and {size} are there", bytes.len());
            return Ok(Err(Trouble::new(Kind::Failure, why)));
        }
        self.note(flushed, || Step::FileSynced(temporary.to_owned()));
        Ok(Ok(()))
    }

    /// Makes the folders, renames, and flushes the folders' names. `false`: something was not as it
    /// should be, and the long way is to be gone.
    pub(super) fn name_at_once(
        &self,
        lane: &mut Lane,
        temporary: &Path,
        path: &Path,
    ) -> Result<bool, Trouble> {
        let folders: Vec<_> = path.ancestors().skip(1).take(2).collect();
        let mut unsure: Vec<_> =
            folders.iter().copied().filter(|folder| !lock(&self.durable).contains(*folder)).collect();
        unsure.reverse();
        // The folder of the name itself, and those that hold the names of folders just made.
        let mut to_flush: Vec<_> = folders.iter().take(1).copied().collect();
        to_flush.extend(unsure.iter().filter_map(|folder| folder.parent()));
        let mut requests = Vec::new();
        for folder in &unsure {
            self.steps.reach(|| Step::MakeFolder((*folder).to_owned()));
            let id = number(&requests);
            requests.push(Request::MakeFolder { id, path: name(folder), mode: FOLDER_MODE });
        }
        self.steps.reach(|| Step::Rename(temporary.to_owned(), path.to_owned()));
        requests.push(Request::Rename { id: number(&requests), from: name(temporary), to: name(path) });
        if !cfg!(feature = "without-fsync") {
            for folder in &to_flush {
                requests.push(Request::OpenToRead { id: number(&requests), path: name(folder) });
            }
        }
        let answers = lane.link.ask_at_once(&requests)?.unwrap_or_default();
        // A folder that was there already is refused; that the file could be renamed into it says
        // that it is there.
        let (_, answers) = answers.split_at_checked(unsure.len()).unwrap_or_default();
        let (renamed, opened) = answers.split_first().unwrap_or((&Answer::Size(None), &[]));
        let mut flushes = Vec::new();
        for answer in opened {
            if let Answer::Handle(handle) = answer {
                flushes.push(Request::Flush { id: number(&flushes), handle });
                flushes.push(Request::Close { id: number(&flushes), handle });
            }
        }
        let all_opened = flushes.len() == 2 * opened.len();
        let flushed = lane.link.ask_at_once(&flushes)?.unwrap_or_default();
        if *renamed != Answer::Status(WELL) {
            return Ok(false);
        }
        for answer in flushed.iter().step_by(2) {
            let Answer::Status(code) = answer else { return Err(refusal(std::slice::from_ref(answer))) };
            // A server that will not flush a folder cannot say.
            let flushed = match flushed_of(*code) {
                Err(trouble) if trouble.kind == Kind::Failure => Ok(Flushed::Unknown),
                other => other,
            };
            match flushed? {
                Flushed::Yes => {}
                Flushed::Unknown => self.note(Flushed::Unknown, || Step::FolderSynced(path.to_owned())),
            }
        }
        if !all_opened {
            self.note(Flushed::Unknown, || Step::FolderSynced(path.to_owned()));
        } else if flushed.iter().step_by(2).all(|answer| *answer == Answer::Status(WELL)) {
            for folder in &to_flush {
                self.note(Flushed::Yes, || Step::FolderSynced((*folder).to_owned()));
            }
        }
        lock(&self.durable).extend(unsure.into_iter().map(Path::to_owned));
        Ok(true)
    }
}

/// After a refusal; what makes no sense ends the session.
fn give_back_if_sound(lane: Lane, refusal: &Trouble) {
    if !refusal.spoils_session() {
        lane.give_back();
    }
}

/// The next request's.
pub(super) fn number(requests: &[Request<'_>]) -> u32 {
    u32::try_from(requests.len()).unwrap_or(u32::MAX)
}

pub(super) fn name(path: &Path) -> &[u8] {
    std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str())
}

pub(super) fn flushed_of(code: u32) -> Result<Flushed, Trouble> {
    match code {
        WELL => Ok(Flushed::Yes),
        UNSUPPORTED => Ok(Flushed::Unknown),
        code => match Trouble::of_status(code) {
            trouble if trouble.kind == Kind::Denied => Ok(Flushed::Unknown),
            trouble => Err(trouble),
        },
    }
}

/// The first refusal, or that an answer was of the wrong kind.
pub(super) fn refusal(answers: &[Answer]) -> Trouble {
    let code = answers.iter().find_map(|answer| match answer {
        Answer::Status(code) if *code != WELL => Some(*code),
        _ => None,
    });
    code.map_or_else(|| Trouble::new(Kind::Lost, "the server answered something else"), Trouble::of_status)
}
