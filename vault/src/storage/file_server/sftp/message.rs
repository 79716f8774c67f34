//! The few messages of SFTP version 3 that listing folders and storing a file take, and their
//! bytes (draft-ietf-secsh-filexfer-02, sections 3 to 7; flushing is OpenSSH's, its PROTOCOL
//! section 4.4). Pure: knows no channel, no order of requests and no paths; what a server sends is
//! outside input.

/// The version spoken, which every server knows.
pub(super) const VERSION: u32 = 3;
/// No server's message is longer: as much as OpenSSH sends and libssh2 takes.
pub(super) const MOST: usize = 256 * 1024;
/// A handle is no longer (section 6.2).
const MOST_HANDLE: usize = 256;

const INIT: u8 = 1;
const OPEN: u8 = 3;
const CLOSE: u8 = 4;
const WRITE: u8 = 6;
const LSTAT: u8 = 7;
const OPENDIR: u8 = 11;
const READDIR: u8 = 12;
const MKDIR: u8 = 14;
const RENAME: u8 = 18;
const EXTENDED: u8 = 200;
const FSYNC: &[u8] = b"fsync@openssh.com";
/// For reading; for writing; for writing, made, and not there before (section 6.3).
const TO_READ: u32 = 1;
const TO_WRITE: u32 = 2;
const TO_MAKE: u32 = 2 | 8 | 0x20;
/// The only fact that is sent: the mode (section 5).
const MODE: u32 = 4;
const REPLY_VERSION: u8 = 2;
const REPLY_STATUS: u8 = 101;
const REPLY_HANDLE: u8 = 102;
const REPLY_NAME: u8 = 104;
const REPLY_ATTRS: u8 = 105;

/// What a server sent that makes no sense. Nothing that comes after it can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Oddity {
    /// A message of more than [`MOST`] bytes, or of none.
    #[error("a message of {0} bytes")]
    Length(u32),
    /// It ends before what it says it holds.
    #[error("a message that ends too early")]
    Short,
    /// A handle of more than 256 bytes.
    #[error("a handle of {0} bytes")]
    Handle(usize),
    /// A kind that answers nothing that was asked.
    #[error("a message of kind {0}")]
    Kind(u8),
    /// An answer to no open request, or of the wrong kind for it.
    #[error("an answer to nothing that was asked")]
    Unasked,
    /// More names than any server of ours holds.
    #[error("more than {0} names in one listing")]
    TooMany(usize),
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request<'a> {
    /// Which version is spoken.
    Init,
    /// A handle for this folder.
    Open {
        /// Comes back with the answer.
        id: u32,
        /// The folder.
        path: &'a [u8],
    },
    /// The next names in an open folder.
    Read {
        /// Comes back with the answer.
        id: u32,
        /// The folder's.
        handle: &'a [u8],
    },
    /// The end of a handle.
    Close {
        /// Comes back with the answer.
        id: u32,
        /// The folder's or file's.
        handle: &'a [u8],
    },
    /// A handle for a file, or for a folder to be flushed.
    OpenToRead {
        /// Comes back with the answer.
        id: u32,
        /// Its name.
        path: &'a [u8],
    },
    /// A handle for a file that must not be there yet.
    Make {
        /// Comes back with the answer.
        id: u32,
        /// Its name.
        path: &'a [u8],
        /// Its mode.
        mode: u32,
    },
    /// A handle for a file that is there, to write parts of it.
    OpenToWrite {
        /// Comes back with the answer.
        id: u32,
        /// Its name.
        path: &'a [u8],
    },
    /// Some bytes of an open file.
    Write {
        /// Comes back with the answer.
        id: u32,
        /// The file's.
        handle: &'a [u8],
        /// Where.
        at: u64,
        /// What.
        bytes: &'a [u8],
    },
    /// The file or folder onto the disk.
    Flush {
        /// Comes back with the answer.
        id: u32,
        /// The file's or folder's.
        handle: &'a [u8],
    },
    /// A name's facts.
    Measure {
        /// Comes back with the answer.
        id: u32,
        /// The name.
        path: &'a [u8],
    },
    /// A new folder.
    MakeFolder {
        /// Comes back with the answer.
        id: u32,
        /// Its name.
        path: &'a [u8],
        /// Its mode.
        mode: u32,
    },
    /// Another name for a file.
    Rename {
        /// Comes back with the answer.
        id: u32,
        /// The name it has.
        from: &'a [u8],
        /// The name it gets.
        to: &'a [u8],
    },
}

impl Request<'_> {
    /// Appends its bytes.
    pub(super) fn write_to(self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend([0; 4]);
        let mut message = Writer(out);
        match self {
            Self::Init => message.head(INIT, VERSION),
            Self::Open { id, path } => message.head(OPENDIR, id).text(path),
            Self::Read { id, handle } => message.head(READDIR, id).text(handle),
            Self::Close { id, handle } => message.head(CLOSE, id).text(handle),
            Self::OpenToRead { id, path } => message.head(OPEN, id).text(path).number(TO_READ).number(0),
            Self::OpenToWrite { id, path } => message.head(OPEN, id).text(path).number(TO_WRITE).number(0),
            Self::Make { id, path, mode } => {
                message.head(OPEN, id).text(path).number(TO_MAKE).number(MODE).number(mode)
            }
            Self::Write { id, handle, at, bytes } => {
                message.head(WRITE, id).text(handle).position(at).text(bytes)
            }
            Self::Flush { id, handle } => message.head(EXTENDED, id).text(FSYNC).text(handle),
            Self::Measure { id, path } => message.head(LSTAT, id).text(path),
            Self::MakeFolder { id, path, mode } => {
                message.head(MKDIR, id).text(path).number(MODE).number(mode)
            }
            Self::Rename { id, from, to } => message.head(RENAME, id).text(from).text(to),
        };
        let length = length_of(out.len() - start - 4);
        out[start..start + 4].copy_from_slice(&length);
    }
}

/// A message that is being written.
struct Writer<'a>(&'a mut Vec<u8>);

impl Writer<'_> {
    fn head(&mut self, kind: u8, id: u32) -> &mut Self {
        self.0.push(kind);
        self.number(id)
    }

    fn number(&mut self, number: u32) -> &mut Self {
        self.0.extend(number.to_be_bytes());
        self
    }

    fn position(&mut self, position: u64) -> &mut Self {
        self.0.extend(position.to_be_bytes());
        self
    }

    fn text(&mut self, text: &[u8]) -> &mut Self {
        self.0.extend(length_of(text.len()));
        self.0.extend(text);
        self
    }
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply<'a> {
    /// The server's version.
    Version(u32),
    /// How a request went (`SSH_FX_…`).
    Status {
        /// The request's.
        id: u32,
        /// 0 is well.
        code: u32,
    },
    /// An open folder.
    Handle {
        /// The request's.
        id: u32,
        /// To be said with what is asked of it.
        handle: &'a [u8],
    },
    /// Some names of a folder.
    Names {
        /// The request's.
        id: u32,
        /// As the server has them, `.` and `..` too.
        names: Vec<&'a [u8]>,
    },
    /// A name's facts.
    Facts {
        /// The request's.
        id: u32,
        /// In bytes; the server may not say.
        size: Option<u64>,
    },
}

impl<'a> Reply<'a> {
    /// The first message in `bytes` and how many it takes; `None`: it has not come whole.
    ///
    /// # Errors
    /// It cannot become one.
    pub(super) fn first(bytes: &'a [u8]) -> Result<Option<(Self, usize)>, Oddity> {
        let Some((length, rest)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length);
        let size = usize::try_from(length).unwrap_or(usize::MAX);
        if size == 0 || size > MOST {
            return Err(Oddity::Length(length));
        }
        let Some(message) = rest.get(..size) else { return Ok(None) };
        Ok(Some((Self::read(Reader(message))?, 4 + size)))
    }

    fn read(mut from: Reader<'a>) -> Result<Self, Oddity> {
        let kind = from.take(1)?[0];
        // Of a version it is the number.
        let id = from.number()?;
        match kind {
            REPLY_VERSION => Ok(Self::Version(id)),
            // Its words are for nobody, and some servers leave them out.
            REPLY_STATUS => Ok(Self::Status { id, code: from.number()? }),
            REPLY_HANDLE => match from.text()? {
                handle if handle.len() > MOST_HANDLE => Err(Oddity::Handle(handle.len())),
                handle => Ok(Self::Handle { id, handle }),
            },
            REPLY_NAME => {
                let count = from.number()?;
                // No room is made for what is only announced.
                let mut names = Vec::new();
                for _ in 0..count {
                    names.push(from.text()?);
                    from.text()?;
                    from.facts()?;
                }
                Ok(Self::Names { id, names })
            }
            REPLY_ATTRS => Ok(Self::Facts { id, size: from.facts()? }),
            other => Err(Oddity::Kind(other)),
        }
    }
}

/// What is left of a message.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Oddity> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Oddity::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u32, Oddity> {
        let (number, rest) = self.0.split_first_chunk::<4>().ok_or(Oddity::Short)?;
        self.0 = rest;
        Ok(u32::from_be_bytes(*number))
    }

    fn text(&mut self) -> Result<&'a [u8], Oddity> {
        let length = self.number()?;
        self.take(usize::try_from(length).map_err(|_| Oddity::Short)?)
    }

    /// The facts that come with a name, of which only the size is wanted (section 5).
    fn facts(&mut self) -> Result<Option<u64>, Oddity> {
        let flags = self.number()?;
        let size = (flags & 1 != 0).then(|| self.position()).transpose()?;
        // Owner, mode, times.
        for (flag, length) in [(2, 8), (4, 4), (8, 8)] {
            if flags & flag != 0 {
                self.take(length)?;
            }
        }
        if flags & 0x8000_0000 != 0 {
            for _ in 0..self.number()? {
                self.text()?;
                self.text()?;
            }
        }
        Ok(size)
    }

    fn position(&mut self) -> Result<u64, Oddity> {
        let (position, rest) = self.0.split_first_chunk::<8>().ok_or(Oddity::Short)?;
        self.0 = rest;
        Ok(u64::from_be_bytes(*position))
    }
}

fn length_of(length: usize) -> [u8; 4] {
    // Whatever is sent is far shorter.
    u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes()
}

/// A message's bytes, as a server sends them.
#[cfg(test)]
pub(super) fn encoded(reply: &Reply<'_>) -> Vec<u8> {
    let text = |bytes: &[u8]| [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat();
    let (kind, id, rest) = match reply {
        Reply::Version(version) => (REPLY_VERSION, *version, Vec::new()),
        Reply::Status { id, code } => {
            (REPLY_STATUS, *id, [&code.to_be_bytes()[..], &text(b"why"), &text(b"en")].concat())
        }
        Reply::Handle { id, handle } => (REPLY_HANDLE, *id, text(handle)),
        Reply::Names { id, names } => {
            let mut rest = u32::try_from(names.len()).unwrap().to_be_bytes().to_vec();
            for (at, name) in names.iter().enumerate() {
                rest.extend([text(name), text(b"-rw-r----- 1 root")].concat());
                // With all facts, with some, with none.
                rest.extend(match at % 3 {
                    0 => [
                        &0x8000_000f_u32.to_be_bytes()[..],
                        &[7; 28],
                        &1_u32.to_be_bytes(),
                        &text(b"a"),
                        &text(b"b"),
                    ]
                    .concat(),
                    1 => [&4_u32.to_be_bytes()[..], &[7; 4]].concat(),
                    _ => vec![0; 4],
                });
            }
            (REPLY_NAME, *id, rest)
        }
        Reply::Facts { id, size: Some(size) } => {
            (REPLY_ATTRS, *id, [&5_u32.to_be_bytes()[..], &size.to_be_bytes(), &[7; 4]].concat())
        }
        Reply::Facts { id, size: None } => (REPLY_ATTRS, *id, vec![0; 4]),
    };
    text(&[&[kind][..], &id.to_be_bytes(), &rest].concat())
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::{Just, Strategy, any, prop_oneof};
    use proptest::{prop_assert, prop_assert_eq, proptest};

    use super::*;

    fn replies() -> impl Strategy<Value = (u8, u32, Vec<Vec<u8>>)> {
        let names = vec(vec(any::<u8>(), 0..40), 0..20);
        (prop_oneof![Just(0_u8), Just(1), Just(2), Just(3), Just(4)], any::<u32>(), names)
    }

    fn reply(parts: &(u8, u32, Vec<Vec<u8>>)) -> Reply<'_> {
        let (kind, id, names) = parts;
        let id = *id;
        match kind {
            0 => Reply::Version(id),
            1 => Reply::Status { id, code: 4 },
            2 => Reply::Handle { id, handle: names.first().map_or(b"h", |name| name) },
            3 => Reply::Facts { id, size: names.first().map(|name| name.len() as u64) },
            _ => Reply::Names { id, names: names.iter().map(Vec::as_slice).collect() },
        }
    }

    proptest! {
        #[test]
        fn a_reply_reads_back_wherever_the_next_begins_and_never_before_it_is_whole(
            parts in replies(),
            behind in vec(any::<u8>(), 0..20),
        ) {
            let reply = reply(&parts);
            let bytes = encoded(&reply);
            for cut in 0..bytes.len() {
                prop_assert_eq!(Reply::first(&bytes[..cut]), Ok(None));
            }
            let come = [&bytes[..], &behind].concat();
            prop_assert_eq!(Reply::first(&come), Ok(Some((reply, bytes.len()))));
        }

        #[test]
        fn a_reply_that_says_it_is_shorter_than_it_is_is_refused(parts in replies(), cut in 1..200_usize) {
            let bytes = encoded(&reply(&parts));
            let most = match parts.0 { 0 => 5, 1 => 9, _ => bytes.len() - 4 };
            let Some(length) = most.checked_sub(cut).filter(|length| *length > 0) else { return Ok(()) };
            let said = u32::try_from(length).unwrap().to_be_bytes();
            prop_assert!(Reply::first(&[&said, &bytes[4..]].concat()).is_err());
        }
    }

    #[test]
    fn requests_have_the_drafts_bytes() {
        let bytes = |request: Request<'_>| {
            let mut out = Vec::new();
            request.write_to(&mut out);
            out
        };
        assert_eq!(bytes(Request::Init), [0, 0, 0, 5, 1, 0, 0, 0, 3]);
        let open = Request::Open { id: 0x0102, path: b"/a" };
        assert_eq!(bytes(open), [0, 0, 0, 11, 11, 0, 0, 1, 2, 0, 0, 0, 2, b'/', b'a']);
        assert_eq!(
            bytes(Request::Read { id: 7, handle: b"h" }),
            [0, 0, 0, 10, 12, 0, 0, 0, 7, 0, 0, 0, 1, b'h']
        );
        assert_eq!(bytes(Request::Close { id: 8, handle: b"" }), [0, 0, 0, 9, 4, 0, 0, 0, 8, 0, 0, 0, 0]);
        let text = |text: &[u8]| [&[0, 0, 0, u8::try_from(text.len()).unwrap()][..], text].concat();
        let made = [&[3, 0, 0, 0, 1][..], &text(b"/t"), &[0, 0, 0, 42, 0, 0, 0, 4, 0, 0, 1, 0xa0]].concat();
        assert_eq!(bytes(Request::Make { id: 1, path: b"/t", mode: 0o640 }), text(&made));
        let opened = [&[3, 0, 0, 0, 1][..], &text(b"/t"), &[0, 0, 0, 1, 0, 0, 0, 0]].concat();
        assert_eq!(bytes(Request::OpenToRead { id: 1, path: b"/t" }), text(&opened));
        let to_write = [&[3, 0, 0, 0, 1][..], &text(b"/t"), &[0, 0, 0, 2, 0, 0, 0, 0]].concat();
        assert_eq!(bytes(Request::OpenToWrite { id: 1, path: b"/t" }), text(&to_write));
        let written = [&[6, 0, 0, 0, 2][..], &text(b"h"), &[0, 0, 0, 0, 0, 0, 1, 0], &text(b"xyz")].concat();
        assert_eq!(bytes(Request::Write { id: 2, handle: b"h", at: 256, bytes: b"xyz" }), text(&written));
        let flushed = [&[200, 0, 0, 0, 3][..], &text(b"fsync@openssh.com"), &text(b"h")].concat();
        assert_eq!(bytes(Request::Flush { id: 3, handle: b"h" }), text(&flushed));
        let measured = [&[7, 0, 0, 0, 4][..], &text(b"/t")].concat();
        assert_eq!(bytes(Request::Measure { id: 4, path: b"/t" }), text(&measured));
        let folder = [&[14, 0, 0, 0, 5][..], &text(b"/f"), &[0, 0, 0, 4, 0, 0, 1, 0xe8]].concat();
        assert_eq!(bytes(Request::MakeFolder { id: 5, path: b"/f", mode: 0o750 }), text(&folder));
        let renamed = [&[18, 0, 0, 0, 6][..], &text(b"/t"), &text(b"/u")].concat();
        assert_eq!(bytes(Request::Rename { id: 6, from: b"/t", to: b"/u" }), text(&renamed));
    }

    #[test]
    fn what_is_too_long_or_of_no_known_kind_is_refused_at_its_head() {
        assert_eq!(Reply::first(&[0, 0, 0, 0]), Err(Oddity::Length(0)));
        assert_eq!(Reply::first(&[0, 4, 0, 1]), Err(Oddity::Length(0x4_0001)));
        assert_eq!(Reply::first(&[0, 4, 0, 0]), Ok(None));
        assert_eq!(Reply::first(&[0, 0, 0, 5, 106, 0, 0, 0, 1]), Err(Oddity::Kind(106)));
        let handle = encoded(&Reply::Handle { id: 1, handle: &[0; 257] });
        assert_eq!(Reply::first(&handle), Err(Oddity::Handle(257)));
        let many = [0, 0, 0, 9, 104, 0, 0, 0, 1, 255, 255, 255, 255];
        assert_eq!(Reply::first(&many), Err(Oddity::Short), "four thousand million names in no bytes");
    }
}
