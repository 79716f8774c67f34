//! A second or third channel on a session, on which requests are sent before earlier ones are
//! answered: a folder costs a little of two round trips instead of four whole ones, a short object
//! four instead of fourteen. Moves bytes; what they say is `message`'s, what is asked when is
//! `enquiry`'s, `short`'s and `abreast`'s.
//!
//! The two sides do not wait for each other to read: what is asked of an enquiry and not answered
//! fits into what the server takes unread (see [`LEAST_WINDOW`]), and the answers to an object's
//! pieces are a few bytes each, so the server gets to its answers, and libssh2 takes these in, 2 MiB of
//! them, while it writes. Whoever waits all the same waits one time-out.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use ssh2::{Channel, ErrorCode, ExtendedData, Session};

use super::super::layout::Names;
use super::enquiry::Enquiry;
use super::message::{Oddity, Reply, Request, VERSION};
use super::moment;
use super::trouble::{Kind, Trouble};

/// A server that takes fewer bytes unread is asked one thing at a time instead. An enquiry has
/// about 8 KiB under way: a hundred paths, or twice as many handles of a few bytes.
const LEAST_WINDOW: u32 = 16 * 1024;
/// Read at once.
const PIECE: usize = 64 * 1024;

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// How it went (`SSH_FX_…`, 0 is well).
    Status(u32),
    /// What it opened.
    Handle(Vec<u8>),
    /// How many bytes it has.
    Size(Option<u64>),
}

/// See the module.
pub(super) struct Pipeline {
    channel: Channel,
    timeout: Duration,
    /// What has come; the first `taken` bytes of it are done with.
    come: Vec<u8>,
    taken: usize,
    /// Where the next bytes come to first.
    piece: Box<[u8]>,
}

impl Pipeline {
    /// Opens the channel; `None` where the server does not give a session two of them, or none
    /// that would serve.
    ///
    /// # Errors
    /// The connection is of no use any more.
    pub(super) fn open(session: &Session, timeout: Duration) -> Result<Option<Self>, Trouble> {
        let mut channel = match session.channel_session() {
            Err(error) if is_refusal(&error) => return Ok(None),
            other => other.map_err(|error| Trouble::from(&error))?,
        };
        // Words for a terminal would fill the window.
        channel.handle_extended_data(ExtendedData::Ignore).map_err(|error| Trouble::from(&error))?;
        match channel.subsystem("sftp") {
            Err(error) if is_refusal(&error) => return Ok(None),
            other => other.map_err(|error| Trouble::from(&error))?,
        }
        let mut pipeline =
            Self { channel, timeout, come: Vec::new(), taken: 0, piece: vec![0; PIECE].into() };
        let mut hello = Vec::new();
        Request::Init.write_to(&mut hello);
        pipeline.send(&hello)?;
        let mut version = None;
        while version.is_none() {
            // Some servers grant a channel and have no process left for it.
            if !pipeline.receive()? {
                return Ok(None);
            }
            version = pipeline.answer(|reply| match reply {
                Reply::Version(version) => Ok(version),
                _ => Err(Oddity::Unasked),
            })?;
        }
        // OpenSSH opens the window only when its sftp program runs: now.
        let window = pipeline.channel.write_window().remaining;
        Ok((version == Some(VERSION) && window >= LEAST_WINDOW).then_some(pipeline))
    }

    /// The sorted names that are `wanted` in each of `folders`, from the first on
    /// until there are `enough`. Calls `progress` whenever something comes.
    ///
    /// # Errors
    /// The server's refusal, or the connection's end.
    pub(super) fn list(
        &mut self,
        folders: &[PathBuf],
        wanted: Names,
        enough: usize,
        progress: &dyn Fn(),
    ) -> Result<Vec<Vec<String>>, Trouble> {
        let mut enquiry = Enquiry::new(folders, wanted, enough);
        let mut asked = Vec::new();
        enquiry.ask_more(&mut asked);
        while !enquiry.is_over() {
            self.send(&asked)?;
            asked.clear();
            if !self.receive()? {
                return Err(Trouble::new(Kind::Lost, "the server ended the listing's channel"));
            }
            progress();
            while self.answer(|reply| enquiry.take(reply, &mut asked))?.is_some() {}
            enquiry.ask_more(&mut asked);
        }
        enquiry.finish().map_err(Trouble::of_status)
    }

    /// Asks several things at once; the place of each is its number. The answers come in the same
    /// order, whatever order the server gives them in.
    ///
    /// # Errors
    /// The connection's end. A refusal is an answer.
    pub(super) fn ask(&mut self, requests: &[Request<'_>]) -> Result<Vec<Answer>, Trouble> {
        self.put(requests)?;
        self.answers(requests.len())
    }

    /// The first half of [`Self::ask`].
    ///
    /// # Errors
    /// The connection's end.
    pub(super) fn put(&mut self, requests: &[Request<'_>]) -> Result<(), Trouble> {
        let mut bytes = Vec::new();
        for request in requests {
            request.write_to(&mut bytes);
        }
        self.send(&bytes)
    }

    /// The second half of [`Self::ask`], for so many requests.
    ///
    /// # Errors
    /// The connection's end.
    pub(super) fn answers(&mut self, requests: usize) -> Result<Vec<Answer>, Trouble> {
        let mut answers: Vec<Option<Answer>> = vec![None; requests];
        let mut open = answers.len();
        while open > 0 {
            let taken = self.answer(|reply| {
                let (id, answer) = match reply {
                    Reply::Status { id, code } => (id, Answer::Status(code)),
                    Reply::Handle { id, handle } => (id, Answer::Handle(handle.to_vec())),
                    Reply::Facts { id, size } => (id, Answer::Size(size)),
                    Reply::Version(_) | Reply::Names { .. } => return Err(Oddity::Unasked),
                };
                let place = usize::try_from(id).ok().and_then(|id| answers.get_mut(id));
                let place = place.filter(|place| place.is_none()).ok_or(Oddity::Unasked)?;
                *place = Some(answer);
                Ok(())
            });
            match taken? {
                Some(()) => open -= 1,
                None if self.receive()? => {}
                None => return Err(Trouble::new(Kind::Lost, "the server ended the channel")),
            }
        }
        Ok(answers.into_iter().flatten().collect())
    }

    /// How many bytes the server takes now without making anybody wait, as far as is known.
    pub(super) fn window(&self) -> usize {
        usize::try_from(self.channel.write_window().remaining).unwrap_or(usize::MAX)
    }

    /// Sends whole messages. Where the server takes nothing for a whole time-out, it fails.
    ///
    /// # Errors
    /// The connection's end.
    pub(super) fn send(&mut self, mut bytes: &[u8]) -> Result<(), Trouble> {
        let until = moment() + self.timeout;
        while !bytes.is_empty() {
            // libssh2 says 0 where the server took nothing more just now.
            let sent = self.channel.write(bytes).map_err(|error| Trouble::from(&error))?;
            if sent == 0 && moment() >= until {
                return Err(Trouble::new(Kind::TimedOut, "timed out"));
            }
            bytes = &bytes[sent..];
        }
        Ok(())
    }

    /// Waits for more bytes, no longer than the time-out; false at the channel's end.
    ///
    /// # Errors
    /// The connection's end.
    pub(super) fn receive(&mut self) -> Result<bool, Trouble> {
        self.come.drain(..self.taken);
        self.taken = 0;
        let read = self.channel.read(&mut self.piece).map_err(|error| Trouble::from(&error))?;
        self.come.extend_from_slice(&self.piece[..read]);
        Ok(read > 0)
    }

    /// Hands over the next whole message, if one has come.
    ///
    /// # Errors
    /// It makes no sense.
    pub(super) fn answer<T>(
        &mut self,
        take: impl FnOnce(Reply<'_>) -> Result<T, Oddity>,
    ) -> Result<Option<T>, Trouble> {
        let odd = |oddity: Oddity| Trouble::new(Kind::Lost, format!("the server sent {oddity}"));
        let Some((reply, size)) = Reply::first(&self.come[self.taken..]).map_err(odd)? else {
            return Ok(None);
        };
        let answer = take(reply).map_err(odd)?;
        self.taken += size;
        Ok(Some(answer))
    }
}

/// The server says no, and the session is as good as before.
fn is_refusal(error: &ssh2::Error) -> bool {
    // Channel not opened, request not granted.
    matches!(error.code(), ErrorCode::Session(-21 | -22))
}
