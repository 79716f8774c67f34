//! Reads an HTTP/1 request head strictly: RFC 9112 without its leniencies. Knows bytes and limits;
//! must not know sockets, clocks, routes or the HTTP engine. It exists because the engine behind it
//! forgives what request smuggling lives on (bare LF, folded lines, two lengths), and what two
//! parsers read differently must be refused before the first of them reads it.

mod fault;
mod scan;

use std::fmt;

use memchr::{memchr, memchr_iter};

pub use fault::{Fault, phrase};
pub use scan::Scan;

/// What a head may cost.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of the whole head, request line and final empty line included.
    pub head: usize,
    /// Header lines.
    pub headers: usize,
    /// Bytes of the request target.
    pub uri: usize,
}

/// How long the body is (RFC 9112 section 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// No body.
    None,
    /// That many bytes; more than 0.
    Length(u64),
    /// Chunked transfer coding.
    Chunked,
}

/// A head that passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head<'b> {
    /// The method as sent.
    pub method: &'b str,
    /// The target as sent: visible ASCII without spaces.
    pub target: &'b str,
    /// `true` for HTTP/1.1, `false` for HTTP/1.0.
    pub one_one: bool,
    /// The Host header's value, if there is one.
    pub host: Option<&'b str>,
    /// Where the body ends.
    pub framing: Framing,
}

/// Reads a whole head, as [`Scan`] delimited it.
///
/// # Errors
/// The first fault in it.
pub fn parse<'b>(head: &'b [u8], limits: &Limits) -> Result<Head<'b>, Fault> {
    let text = head.strip_suffix(b"\r\n\r\n").ok_or(Fault::RequestLine)?;
    let mut lines = Lines(Some(text));
    let (method, target, one_one) = request_line(lines.next().unwrap_or_default(), limits)?;
    let mut fields = Fields::default();
    for (index, line) in lines.enumerate() {
        if index >= limits.headers {
            return Err(Fault::TooManyHeaders);
        }
        let (name, value) = header_line(line)?;
        fields.note(name, value)?;
    }
    if matches!(method, "CONNECT" | "TRACE") {
        return Err(Fault::MethodNotAllowed);
    }
    let framing = fields.framing(one_one)?;
    match (fields.host, absolute_authority(target)) {
        (None, _) if one_one => return Err(Fault::NoHost),
        // The engine behind refuses it too, but without a word in the log.
        (Some(host), Some(authority)) if host != authority => return Err(Fault::OtherHost),
        (None, Some(authority)) => {
            host_value(authority.as_bytes())?;
        }
        _ => {}
    }
    Ok(Head { method, target, one_one, host: fields.host, framing })
}

/// Splits at CRLF; [`Scan`] has already refused any other use of either byte, and a second
/// refusal here makes `parse` safe on its own.
struct Lines<'b>(Option<&'b [u8]>);

impl<'b> Iterator for Lines<'b> {
    type Item = &'b [u8];
    fn next(&mut self) -> Option<&'b [u8]> {
        let rest = self.0?;
        let end = memchr_iter(b'\r', rest).find(|at| rest.get(at + 1) == Some(&b'\n'));
        match end {
            Some(end) => {
                self.0 = rest.get(end + 2..);
                rest.get(..end)
            }
            None => {
                self.0 = None;
                Some(rest)
            }
        }
    }
}

fn request_line<'b>(line: &'b [u8], limits: &Limits) -> Result<(&'b str, &'b str, bool), Fault> {
    if has_control(line) || !line.is_ascii() || memchr(b'\t', line).is_some() {
        return Err(Fault::RequestLine);
    }
    let line = std::str::from_utf8(line).map_err(|_| Fault::NotAscii)?;
    let mut words = line.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Fault::RequestLine);
    };
    if method.is_empty() || method.len() > 32 || !method.bytes().all(is_token) {
        return Err(Fault::Method);
    }
    if target.len() > limits.uri {
        return Err(Fault::UriTooLong);
    }
    let one_one = match version {
        "HTTP/1.1" => true,
        "HTTP/1.0" => false,
        other if other.starts_with("HTTP/") => return Err(Fault::Version),
        _ => return Err(Fault::RequestLine),
    };
    let fits = target.starts_with('/')
        || (method == "OPTIONS" && target == "*")
        || method == "CONNECT"
        || absolute_path(target).is_some();
    if fits && !target.contains('#') { Ok((method, target, one_one)) } else { Err(Fault::Target) }
}

/// Of an absolute-form target the part that a server routes by, `/` where the path is empty
/// (RFC 9112 section 3.2.2).
#[must_use]
pub fn absolute_path(target: &str) -> Option<&str> {
    absolute(target).map(|(_, path)| if path.is_empty() { "/" } else { path })
}

/// Of an absolute-form target host and port.
#[must_use]
pub fn absolute_authority(target: &str) -> Option<&str> {
    absolute(target).map(|(authority, _)| authority)
}

fn absolute(target: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = target.split_once("://")?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return None;
    }
    let (authority, path) = rest.split_at(rest.find(['/', '?', '\\']).unwrap_or(rest.len()));
    (!authority.is_empty() && (path.is_empty() || path.starts_with('/'))).then_some((authority, path))
}

fn header_line(line: &[u8]) -> Result<(&str, &[u8]), Fault> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err(Fault::Folded);
    }
    let colon = memchr(b':', line).ok_or(Fault::HeaderLine)?;
    let (name, value) = line.split_at(colon);
    let value = value.get(1..).unwrap_or_default();
    if name.is_empty() || !name.iter().copied().all(is_token) {
        return Err(Fault::HeaderLine);
    }
    if has_control(value) {
        return Err(Fault::ControlByte);
    }
    let name = std::str::from_utf8(name).map_err(|_| Fault::HeaderLine)?;
    Ok((name, trim(value)))
}

/// Without a way out in the midst of it, so that many bytes are looked at together.
fn has_control(text: &[u8]) -> bool {
    let is_control = |byte: u8| ((byte < b' ') & (byte != b'\t')) | (byte == 0x7f);
    text.iter().fold(0, |seen, byte| seen | u8::from(is_control(*byte))) != 0
}

/// Optional white space (RFC 9110 section 5.6.3) is space and tab, nothing else.
fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// A token's byte (RFC 9110 section 5.6.2).
#[must_use]
pub const fn is_token(byte: u8) -> bool {
    TOKEN[byte as usize]
}

/// Looked up and not compared: names are looked at byte by byte.
static TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        table[byte as usize] = byte.is_ascii_alphanumeric();
        byte += 1;
    }
    let others = b"!#$%&'*+-.^_`|~";
    let mut at = 0;
    while at < others.len() {
        table[others[at] as usize] = true;
        at += 1;
    }
    table
};

#[derive(Default)]
struct Fields<'b> {
    host: Option<&'b str>,
    length: Option<u64>,
    chunked: bool,
}

impl<'b> Fields<'b> {
    fn note(&mut self, name: &str, value: &'b [u8]) -> Result<(), Fault> {
        if name.eq_ignore_ascii_case("host") {
            if self.host.is_some() {
                return Err(Fault::SeveralHosts);
            }
            self.host = Some(host_value(value)?);
        } else if name.eq_ignore_ascii_case("content-length") {
            if self.length.is_some() {
                return Err(Fault::SeveralLengths);
            }
            self.length = Some(length(value)?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Fault::TransferEncoding);
            }
            self.chunked = true;
        }
        Ok(())
    }

    fn framing(&self, one_one: bool) -> Result<Framing, Fault> {
        match (self.chunked, self.length) {
            (true, Some(_)) => Err(Fault::LengthAndChunked),
            (true, None) if !one_one => Err(Fault::TransferEncoding),
            (true, None) => Ok(Framing::Chunked),
            (false, Some(0) | None) => Ok(Framing::None),
            (false, Some(length)) => Ok(Framing::Length(length)),
        }
    }
}

/// Only that nothing in it could be read as two things; which hosts are served is no matter of a parser.
fn host_value(value: &[u8]) -> Result<&str, Fault> {
    let allowed = |byte: &u8| {
        byte.is_ascii_alphanumeric()
            || matches!(byte, b'.' | b'-' | b'_' | b':' | b'[' | b']' | b'%' | b'~' | b'!' | b'$' | b'&')
    };
    if value.is_empty() || value.len() > 300 || !value.iter().all(allowed) {
        return Err(Fault::BadHost);
    }
    std::str::from_utf8(value).map_err(|_| Fault::BadHost)
}

fn length(value: &[u8]) -> Result<u64, Fault> {
    if value.is_empty() || value.len() > 19 || !value.iter().all(u8::is_ascii_digit) {
        return Err(Fault::BadLength);
    }
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).ok_or(Fault::BadLength)
}

/// The request line of a head that was refused, for the log: at most 1 KiB, whatever it holds.
#[must_use]
pub fn first_line(buffer: &[u8]) -> (String, Vec<u8>) {
    let line = buffer.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    let line = line.get(..line.len().min(1024)).unwrap_or_default();
    match line.iter().position(|byte| *byte == b' ') {
        Some(space)
            if line.iter().take(space.min(33)).copied().all(is_token) && (1..=32).contains(&space) =>
        {
            let method = String::from_utf8_lossy(line.get(..space).unwrap_or_default()).into_owned();
            let rest = line.get(space + 1..).unwrap_or_default();
            let target = rest.strip_suffix(b" HTTP/1.1").or_else(|| rest.strip_suffix(b" HTTP/1.0"));
            (method, target.unwrap_or(rest).to_vec())
        }
        _ => (String::new(), line.to_vec()),
    }
}

impl fmt::Display for Framing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Framing::None => f.write_str("no body"),
            Framing::Length(length) => write!(f, "{length} bytes"),
            Framing::Chunked => f.write_str("chunked"),
        }
    }
}

/// The fuzz target's body: any bytes, in any portions, neither panic nor disagree with themselves.
pub fn fuzz(data: &[u8]) {
    let limits = Limits { head: 4096, headers: 20, uri: 512 };
    let mut whole = Scan::default();
    let at_once = whole.advance(data, &limits);
    let mut scan = Scan::default();
    let mut in_parts = Ok(None);
    for end in 1..=data.len() {
        in_parts = scan.advance(data.get(..end).unwrap_or_default(), &limits);
        if !matches!(in_parts, Ok(None)) {
            break;
        }
    }
    assert_eq!(at_once, in_parts, "the end of a head does not depend on how it arrives");
    let _ = first_line(data);
    let _ = parse(data, &limits);
    if let Ok(Some(end)) = at_once {
        let head = data.get(..end).unwrap_or_default();
        if let Ok(read) = parse(head, &limits) {
            assert!(read.target.len() <= limits.uri && !read.target.contains(' '));
            assert!(!read.one_one || read.host.is_some());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { head: 1024, headers: 5, uri: 100 };

    fn read(text: &str) -> Result<Head<'_>, Fault> {
        let mut scan = Scan::default();
        match scan.advance(text.as_bytes(), &LIMITS)? {
            Some(end) => parse(&text.as_bytes()[..end], &LIMITS),
            None => Err(Fault::Truncated),
        }
    }

    #[test]
    fn ordinary_heads_pass() {
        let head =
            read("POST /a?b=c HTTP/1.1\r\nHost: example.org:8443\r\nContent-Length: 5\r\n\r\nhello").unwrap();
        assert_eq!((head.method, head.target, head.host), ("POST", "/a?b=c", Some("example.org:8443")));
        assert_eq!(head.framing, Framing::Length(5));
        let old = read("GET / HTTP/1.0\r\n\r\n").unwrap();
        assert_eq!((old.one_one, old.framing), (false, Framing::None));
        let chunked = read("PUT /x HTTP/1.1\r\nhost:\ta\r\ntransfer-encoding:  Chunked \r\n\r\n").unwrap();
        assert_eq!((chunked.host, chunked.framing), (Some("a"), Framing::Chunked));
        assert!(read("GET http://a/x HTTP/1.1\r\nHost: a\r\n\r\n").is_ok());
        assert!(read("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").is_ok());
        assert!(read("GET / HTTP/1.1\r\nHost: a\r\nX: \u{fc}mlaut\r\n\r\n").is_ok());
    }

    #[test]
    fn every_smuggling_form_is_refused_by_its_name() {
        for (text, fault) in [
            ("GET / HTTP/1.1\nHost: a\r\n\r\n", Fault::BareLineFeed),
            ("GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n", Fault::BareCarriageReturn),
            ("GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", Fault::Folded),
            ("GET / HTTP/1.1\r\nHost: a\0\r\n\r\n", Fault::ControlByte),
            ("GET /\u{fc} HTTP/1.1\r\nHost: a\r\n\r\n", Fault::NotAscii),
            ("GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n", Fault::ControlByte),
            ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", Fault::RequestLine),
            ("GET /\r\nHost: a\r\n\r\n", Fault::RequestLine),
            ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", Fault::RequestLine),
            ("GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", Fault::RequestLine),
            ("G@T / HTTP/1.1\r\nHost: a\r\n\r\n", Fault::Method),
            ("GET x HTTP/1.1\r\nHost: a\r\n\r\n", Fault::Target),
            ("GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", Fault::Target),
            ("GET /#x HTTP/1.1\r\nHost: a\r\n\r\n", Fault::Target),
            ("PRI * HTTP/2.0\r\n\r\n", Fault::Version),
            ("GET / HTTP/1.2\r\nHost: a\r\n\r\n", Fault::Version),
            ("CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", Fault::MethodNotAllowed),
            ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", Fault::MethodNotAllowed),
            ("GET / HTTP/1.1\r\n\r\n", Fault::NoHost),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", Fault::SeveralHosts),
            ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", Fault::BadHost),
            ("GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", Fault::OtherHost),
            ("GET http://a@b/ HTTP/1.0\r\n\r\n", Fault::BadHost),
            ("GET http://a\\b/ HTTP/1.1\r\nHost: a\r\n\r\n", Fault::Target),
            ("GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", Fault::BadHost),
            ("GET / HTTP/1.1\r\nHost:\r\n\r\n", Fault::BadHost),
            ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", Fault::HeaderLine),
            ("GET / HTTP/1.1\r\nHost: a\r\nnothing\r\n\r\n", Fault::HeaderLine),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\ncontent-length: 5\r\n\r\n",
                Fault::SeveralLengths,
            ),
            ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\n", Fault::BadLength),
            ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\n", Fault::BadLength),
            ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n", Fault::BadLength),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
                Fault::LengthAndChunked,
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
                Fault::TransferEncoding,
            ),
            ("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n", Fault::TransferEncoding),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
                Fault::TransferEncoding,
            ),
            ("GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", Fault::TransferEncoding),
        ] {
            assert_eq!(read(text).unwrap_err(), fault, "{text:?}");
        }
    }

    #[test]
    fn limits_hold_while_the_head_is_still_arriving() {
        let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(100));
        assert_eq!(read(&long).unwrap_err(), Fault::UriTooLong);
        let endless = format!("GET /{}", "a".repeat(300));
        assert_eq!(read(&endless).unwrap_err(), Fault::UriTooLong);
        let wide = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "a".repeat(1024));
        assert_eq!(read(&wide).unwrap_err(), Fault::HeadTooLarge);
        let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}", "X: 1\r\n".repeat(5));
        assert_eq!(read(&many).unwrap_err(), Fault::TooManyHeaders);
        assert_eq!(Fault::TooManyHeaders.status(), 431);
    }

    #[test]
    fn a_refused_line_is_logged_with_what_could_be_read() {
        assert_eq!(first_line(b"GET /x HTTP/1.1\r\nbad"), ("GET".to_owned(), b"/x".to_vec()));
        assert_eq!(first_line(b"\x16\x03\x01"), (String::new(), b"\x16\x03\x01".to_vec()));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(data in proptest::collection::vec(any::<u8>(), 0..600)) {
            fuzz(&data);
        }

        #[test]
        fn near_misses_do_not_panic(
            text in "(GET|POST|G T) /[a-z%./]{0,9} HTTP/1.[01](\r\n|\n|\r)(Host: a\r\n|Content-Length: [0-9]{1,3}\r\n|Transfer-Encoding: chunked\r\n| fold\r\n){0,4}\r\n(.|\n){0,20}"
        ) {
            fuzz(text.as_bytes());
        }
    }
}
