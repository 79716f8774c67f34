//! Why a head or a body is refused before the engine sees it. Knows faults and what answers them; must
//! not know bytes, sockets or who is told. It exists so that gate, streams and log name a fault alike.

/// Why a request was refused before the engine saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// LF without CR.
    #[error("bare line feed")]
    BareLineFeed,
    /// CR without LF.
    #[error("bare carriage return")]
    BareCarriageReturn,
    /// NUL or another control byte.
    #[error("control byte in the head")]
    ControlByte,
    /// A byte above 126 where only ASCII may stand.
    #[error("non-ASCII byte in the request line")]
    NotAscii,
    /// Not `method SP target SP version`.
    #[error("bad request line")]
    RequestLine,
    /// The method is no token.
    #[error("bad method")]
    Method,
    /// A target that is neither a path, nor an http(s) URI, nor `*` of OPTIONS.
    #[error("bad request target")]
    Target,
    /// Neither HTTP/1.1 nor HTTP/1.0.
    #[error("unsupported HTTP version")]
    Version,
    /// CONNECT and TRACE are not served.
    #[error("method not allowed")]
    MethodNotAllowed,
    /// A header line that starts with white space (obs-fold).
    #[error("folded header line")]
    Folded,
    /// A header name that is no token, or white space before the colon.
    #[error("bad header line")]
    HeaderLine,
    /// More header lines than allowed.
    #[error("too many headers")]
    TooManyHeaders,
    /// More bytes than allowed.
    #[error("head too large")]
    HeadTooLarge,
    /// A target over the limit.
    #[error("request target too long")]
    UriTooLong,
    /// HTTP/1.1 without Host.
    #[error("no Host header")]
    NoHost,
    /// More than one Host.
    #[error("several Host headers")]
    SeveralHosts,
    /// An absolute-form target that names another host than Host does.
    #[error("Host header and request target differ")]
    OtherHost,
    /// A Host with bytes that no host name has.
    #[error("bad Host header")]
    BadHost,
    /// Content-Length that is no plain number.
    #[error("bad Content-Length")]
    BadLength,
    /// Content-Length more than once, equal or not.
    #[error("several Content-Length headers")]
    SeveralLengths,
    /// Content-Length together with Transfer-Encoding.
    #[error("Content-Length and Transfer-Encoding together")]
    LengthAndChunked,
    /// Any Transfer-Encoding but one `chunked` in HTTP/1.1.
    #[error("unsupported Transfer-Encoding")]
    TransferEncoding,
    /// A chunk's size line is malformed, too long, or the number does not fit.
    #[error("bad chunk size")]
    ChunkSize,
    /// The bytes after a chunk's data are no CRLF.
    #[error("chunk without its line end")]
    ChunkEnd,
    /// The trailer section is malformed or over the limit.
    #[error("bad trailer section")]
    Trailer,
    /// The head was not complete in time.
    #[error("request head not complete in time")]
    Timeout,
    /// The body came, and too slowly.
    #[error("request body came too slowly")]
    TooSlow,
    /// The connection ended in the middle of a head.
    #[error("connection closed in the middle of the request head")]
    Truncated,
}

impl Fault {
    /// Is the head well-formed, for all that is known, and only too large? Any page can make a browser
    /// send such a one.
    #[must_use]
    pub const fn is_of_size(self) -> bool {
        matches!(self, Fault::TooManyHeaders | Fault::HeadTooLarge | Fault::UriTooLong)
    }

    /// The status that answers it; 0 where nobody is left to answer.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Fault::TooManyHeaders | Fault::HeadTooLarge => 431,
            Fault::UriTooLong => 414,
            Fault::Version => 505,
            Fault::MethodNotAllowed => 405,
            Fault::Timeout | Fault::TooSlow => 408,
            Fault::Truncated => 0,
            _ => 400,
        }
    }
}

/// The words of a status that this room answers.
#[must_use]
pub const fn phrase(status: u16) -> &'static str {
    match status {
        301 => "Moved Permanently",
        308 => "Permanent Redirect",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        414 => "URI Too Long",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        505 => "HTTP Version Not Supported",
        _ => "Bad Request",
    }
}
