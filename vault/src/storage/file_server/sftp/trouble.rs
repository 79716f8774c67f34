//! What libssh2 and the server say when something fails, sorted into what calls for
//! different answers. Knows the codes of the SFTP drafts (`SSH_FX_…`); not what was asked.

use std::io::ErrorKind;

use ssh2::ErrorCode;

use super::link::Refusal;

/// What kind of failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The name is not there.
    Missing,
    /// The server's file system refuses this user.
    Denied,
    /// The name is taken.
    Exists,
    /// The server says that no space or quota is left; OpenSSH never does, see `Failure`.
    Full,
    /// The server does not know the request.
    Unsupported,
    /// `SSH_FX_FAILURE`: anything from a full disk to a name that is taken.
    Failure,
    /// No answer within the time-out.
    TimedOut,
    /// The connection is broken, or what comes over it makes no sense.
    Lost,
}

/// Why something could not be done.
#[derive(Debug)]
pub(super) enum Failed {
    /// No session.
    Refused(Refusal),
    /// The server's or the connection's word.
    Trouble(Trouble),
    /// It is not the place it should be.
    Place(&'static str),
}

impl Failed {
    /// May the session be used further?
    pub(super) fn spoils_session(&self) -> bool {
        matches!(self, Self::Trouble(trouble) if trouble.spoils_session())
    }
}

impl From<Trouble> for Failed {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

/// A failed request.
#[derive(Debug, Clone)]
pub(super) struct Trouble {
    pub(super) kind: Kind,
    pub(super) text: String,
}

impl Trouble {
    /// Something that this side found wrong.
    pub(super) fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }

    /// A refusal that came as a number (`SSH_FX_…`).
    pub(super) fn of_status(code: u32) -> Self {
        // No server's number is so large.
        let code = i32::try_from(code).unwrap_or(i32::MAX);
        Self::from(&ssh2::Error::from_errno(ErrorCode::SFTP(code)))
    }

    /// May the session be used further?
    pub(super) const fn spoils_session(&self) -> bool {
        matches!(self.kind, Kind::TimedOut | Kind::Lost)
    }

    /// As the system would say it.
    pub(super) fn into_io(self) -> std::io::Error {
        let kind = match self.kind {
            Kind::Missing => ErrorKind::NotFound,
            Kind::Denied => ErrorKind::PermissionDenied,
            Kind::Exists => ErrorKind::AlreadyExists,
            Kind::Full => ErrorKind::StorageFull,
            Kind::Unsupported => ErrorKind::Unsupported,
            Kind::TimedOut => ErrorKind::TimedOut,
            Kind::Lost => ErrorKind::ConnectionAborted,
            Kind::Failure => ErrorKind::Other,
        };
        std::io::Error::new(kind, self.text)
    }
}

impl From<&ssh2::Error> for Trouble {
    fn from(error: &ssh2::Error) -> Self {
        let kind = match error.code() {
            ErrorCode::SFTP(2 | 10) => Kind::Missing,
            ErrorCode::SFTP(3 | 12) => Kind::Denied,
            ErrorCode::SFTP(4 | 9 | 17..=21) => Kind::Failure,
            ErrorCode::SFTP(8) => Kind::Unsupported,
            ErrorCode::SFTP(11) => Kind::Exists,
            ErrorCode::SFTP(14 | 15) => Kind::Full,
            ErrorCode::Session(-9 | -30) => Kind::TimedOut,
            // Bad message, no connection, connection lost, and all of libssh2's own.
            ErrorCode::SFTP(_) | ErrorCode::Session(_) => Kind::Lost,
        };
        Self { kind, text: error.message().to_owned() }
    }
}

/// ssh2 hides the code of a failed read or write in words.
impl From<&std::io::Error> for Trouble {
    fn from(error: &std::io::Error) -> Self {
        let text = error.to_string();
        let kind = match (error.kind(), text.as_str()) {
            (ErrorKind::TimedOut, _) => Kind::TimedOut,
            (ErrorKind::NotFound, _) => Kind::Missing,
            (_, "permission denied" | "file is write protected") => Kind::Denied,
            (_, "no space on filesystem" | "quota exceeded") => Kind::Full,
            (_, "operation unsupported") => Kind::Unsupported,
            (_, "failure") => Kind::Failure,
            _ => Kind::Lost,
        };
        Self { kind, text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_means_the_same_whether_it_comes_as_a_number_or_as_words() {
        for code in [2, 3, 4, 8, 12, 14, 15] {
            let error = ssh2::Error::from_errno(ErrorCode::SFTP(code));
            let by_number = Trouble::from(&error).kind;
            assert_eq!(Trouble::from(&std::io::Error::from(error)).kind, by_number, "code {code}");
            assert_ne!(by_number, Kind::Lost, "code {code}");
        }
        for code in [-9, -13, -43] {
            let error = ssh2::Error::from_errno(ErrorCode::Session(code));
            let trouble = Trouble::from(&error);
            assert!(trouble.spoils_session() && Trouble::from(&std::io::Error::from(error)).spoils_session());
        }
    }
}
