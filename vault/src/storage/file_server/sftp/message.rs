//! The few messages of SFTP version 3 that listing folders takes, and their bytes
//! (draft-ietf-secsh-filexfer-02, sections 3 to 7). Pure: knows no channel, no order of requests
//! and no paths; what a server sends is outside input.

/// The version spoken, which every server knows.
pub(super) const VERSION: u32 = 3;
/// No server's message is longer: as much as OpenSSH sends and libssh2 takes.
pub(super) const MOST: usize = 256 * 1024;
/// A handle is no longer (section 6.2).
const MOST_HANDLE: usize = 256;

const INIT: u8 = 1;
const CLOSE: u8 = 4;
const OPENDIR: u8 = 11;
const READDIR: u8 = 12;
const REPLY_VERSION: u8 = 2;
const REPLY_STATUS: u8 = 101;
const REPLY_HANDLE: u8 = 102;
const REPLY_NAME: u8 = 104;

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
        /// The folder's.
        handle: &'a [u8],
    },
}

impl Request<'_> {
    /// Appends its bytes.
    pub(super) fn write_to(self, out: &mut Vec<u8>) {
        let (kind, id, text) = match self {
            Self::Init => (INIT, VERSION, None),
            Self::Open { id, path } => (OPENDIR, id, Some(path)),
            Self::Read { id, handle } => (READDIR, id, Some(handle)),
            Self::Close { id, handle } => (CLOSE, id, Some(handle)),
        };
        let length = 5 + text.map_or(0, |text| 4 + text.len());
        put_length(out, length);
        out.push(kind);
        out.extend(id.to_be_bytes());
        if let Some(text) = text {
            put_length(out, text.len());
            out.extend(text);
        }
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
                    from.skip_facts()?;
                }
                Ok(Self::Names { id, names })
            }
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

    /// Passes over the facts that come with a name (section 5).
    fn skip_facts(&mut self) -> Result<(), Oddity> {
        let flags = self.number()?;
        // Size, owner, mode, times.
        for (flag, length) in [(1, 8), (2, 8), (4, 4), (8, 8)] {
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
        Ok(())
    }
}

fn put_length(out: &mut Vec<u8>, length: usize) {
    // Paths and handles are far shorter.
    out.extend(u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
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
        (prop_oneof![Just(0_u8), Just(1), Just(2), Just(3)], any::<u32>(), names)
    }

    fn reply(parts: &(u8, u32, Vec<Vec<u8>>)) -> Reply<'_> {
        let (kind, id, names) = parts;
        let id = *id;
        match kind {
            0 => Reply::Version(id),
            1 => Reply::Status { id, code: 4 },
            2 => Reply::Handle { id, handle: names.first().map_or(b"h", |name| name) },
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
    }

    #[test]
    fn what_is_too_long_or_of_no_known_kind_is_refused_at_its_head() {
        assert_eq!(Reply::first(&[0, 0, 0, 0]), Err(Oddity::Length(0)));
        assert_eq!(Reply::first(&[0, 4, 0, 1]), Err(Oddity::Length(0x4_0001)));
        assert_eq!(Reply::first(&[0, 4, 0, 0]), Ok(None));
        assert_eq!(Reply::first(&[0, 0, 0, 5, 105, 0, 0, 0, 1]), Err(Oddity::Kind(105)));
        let handle = encoded(&Reply::Handle { id: 1, handle: &[0; 257] });
        assert_eq!(Reply::first(&handle), Err(Oddity::Handle(257)));
        let many = [0, 0, 0, 9, 104, 0, 0, 0, 1, 255, 255, 255, 255];
        assert_eq!(Reply::first(&many), Err(Oddity::Short), "four thousand million names in no bytes");
    }
}
