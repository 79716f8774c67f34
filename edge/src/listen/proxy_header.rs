//! The PROXY protocol's header, versions 1 and 2, as a load balancer writes it before a connection's own
//! bytes: bytes → whom it speaks for. Pure; must not know who may say so, nor sockets. Neither version is
//! guessed: where the header is demanded, anything else is a fault.
//!
//! The document it follows is haproxy's `doc/proxy-protocol.txt`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Longest header of version 1, its line end included: the document's own figure.
const LONGEST_LINE: usize = 107;
/// Longest header of version 2 that is read. Addresses take 36 bytes, a client's certificate may stand in
/// the rest; what is longer is no load balancer's.
const LONGEST: usize = 4096;
/// Of version 2, before its addresses.
const FIXED: usize = 16;

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const WORD: &[u8] = b"PROXY ";

/// Whom the connection belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// This client, as the proxy saw it.
    Client(SocketAddr),
    /// The proxy itself (`LOCAL`, as for its health checks), or somebody whose address it does not know
    /// (`UNKNOWN`): the socket's other end is all there is.
    Own,
}

/// Why a header is none. Whoever demanded it closes the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderFault {
    /// Something else begins the connection.
    #[error("it does not begin with one")]
    Missing,
    /// Version 1 with a line that is not as the document has it.
    #[error("version 1 is malformed")]
    Line,
    /// Version 2 with another version, a command or an address that the document does not have.
    #[error("version 2 is malformed")]
    Block,
    /// Version 2 for something that is not TCP over IP.
    #[error("it speaks of no TCP connection")]
    NotTcp,
    /// More than any load balancer sends.
    #[error("it is too long")]
    TooLong,
}

/// What the beginning of a connection says, and how many bytes say it; `None` until all of them are here.
/// The type-length-value fields of version 2 are passed over.
///
/// # Errors
/// No further byte would make a header of it.
pub fn read(held: &[u8]) -> Result<Option<(Said, usize)>, HeaderFault> {
    if begins(held, SIGNATURE) {
        block(held)
    } else if begins(held, WORD) {
        line(held)
    } else {
        Err(HeaderFault::Missing)
    }
}

/// As far as either goes.
fn begins(held: &[u8], with: &[u8]) -> bool {
    held.iter().zip(with).all(|(left, right)| left == right)
}

fn line(held: &[u8]) -> Result<Option<(Said, usize)>, HeaderFault> {
    let line = held.get(..LONGEST_LINE).unwrap_or(held);
    let Some(end) = line.iter().position(|byte| *byte == b'\n') else {
        return if line.len() == LONGEST_LINE { Err(HeaderFault::TooLong) } else { Ok(None) };
    };
    let text = line.get(..end).and_then(|text| text.strip_suffix(b"\r")).ok_or(HeaderFault::Line)?;
    let text = std::str::from_utf8(text).map_err(|_| HeaderFault::Line)?;
    let mut words = text.split(' ').skip(1);
    let said = match words.next() {
        // What follows is for nobody.
        Some("UNKNOWN") => Said::Own,
        Some("TCP4") => addresses::<Ipv4Addr>(words)?,
        Some("TCP6") => addresses::<Ipv6Addr>(words)?,
        _ => return Err(HeaderFault::Line),
    };
    Ok(Some((said, end + 1)))
}

/// Source, destination and their ports, each by one space.
fn addresses<'w, A>(mut words: impl Iterator<Item = &'w str>) -> Result<Said, HeaderFault>
where
    A: std::str::FromStr + Into<IpAddr>,
{
    let mut address = || words.next().and_then(|word| word.parse::<A>().ok()).ok_or(HeaderFault::Line);
    let (source, _) = (address()?, address()?);
    let mut port = || words.next().and_then(port).ok_or(HeaderFault::Line);
    let (port, _) = (port()?, port()?);
    if words.next().is_some() {
        return Err(HeaderFault::Line);
    }
    Ok(Said::Client(SocketAddr::new(source.into(), port)))
}

/// Digits alone, and no zero before others.
fn port(word: &str) -> Option<u16> {
    let plain = word.bytes().all(|byte| byte.is_ascii_digit()) && (word == "0" || !word.starts_with('0'));
    if plain { word.parse().ok() } else { None }
}

fn block(held: &[u8]) -> Result<Option<(Said, usize)>, HeaderFault> {
    let Some(fixed) = held.first_chunk::<FIXED>() else { return Ok(None) };
    let [.., command, family, high, low] = *fixed;
    let end = FIXED + usize::from(u16::from_be_bytes([high, low]));
    if end > LONGEST {
        return Err(HeaderFault::TooLong);
    }
    let Some(told) = held.get(FIXED..end) else { return Ok(None) };
    let said = match (command, family) {
        (0x20, _) | (0x21, 0x00) => Said::Own,
        (0x21, 0x11) => {
            let [a, b, c, d, _, _, _, _, high, low] = *told.first_chunk::<10>().ok_or(HeaderFault::Block)?;
            // The destination's port is there, too.
            let _ = told.get(..12).ok_or(HeaderFault::Block)?;
            client(Ipv4Addr::new(a, b, c, d).into(), [high, low])
        }
        (0x21, 0x21) => {
            let source = *told.first_chunk::<16>().ok_or(HeaderFault::Block)?;
            let ports = told.get(32..36).and_then(<[u8]>::first_chunk::<2>).ok_or(HeaderFault::Block)?;
            client(Ipv6Addr::from(source).into(), *ports)
        }
        (0x21, 0x12 | 0x22 | 0x31 | 0x32) => return Err(HeaderFault::NotTcp),
        _ => return Err(HeaderFault::Block),
    };
    Ok(Some((said, end)))
}

const fn client(address: IpAddr, port: [u8; 2]) -> Said {
    Said::Client(SocketAddr::new(address, u16::from_be_bytes(port)))
}

/// The fuzz target's body: what is said does not depend on how the bytes arrive nor on what follows, and
/// the header is not a byte longer than it says.
pub fn fuzz(data: &[u8]) {
    let whole = read(data);
    let mut before = Ok(None);
    for count in 0..=data.len() {
        let now = read(data.get(..count).unwrap_or_default());
        if before != Ok(None) {
            assert_eq!(now, before, "what follows changes nothing");
        }
        if let Ok(Some((_, length))) = now {
            assert!(length <= count && length <= LONGEST);
            assert!(before != Ok(None) || length == count, "known as soon as it is there");
        }
        before = now;
    }
    assert_eq!(before, whole);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(text: &str) -> Result<Option<(Said, usize)>, HeaderFault> {
        read(text.as_bytes())
    }

    fn version2(command: u8, family: u8, told: &[u8]) -> Vec<u8> {
        let length = u16::try_from(told.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[command, family], &length, told].concat()
    }

    fn version2_of(source: SocketAddr, fields: &[u8]) -> Vec<u8> {
        let (family, mut told) = match source.ip() {
            IpAddr::V4(v4) => (0x11, [v4.octets(), [9; 4]].concat()),
            IpAddr::V6(v6) => (0x21, [v6.octets(), [9; 16]].concat()),
        };
        told.extend(source.port().to_be_bytes());
        told.extend([1, 187]);
        told.extend(fields);
        version2(0x21, family, &told)
    }

    #[test]
    fn the_source_is_the_client() {
        let client = |text: &str| Said::Client(text.parse().unwrap());
        let four = "PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n";
        assert_eq!(of(four), Ok(Some((client("192.0.2.7:56324"), four.len()))));
        let six = "PROXY TCP6 2001:db8::7 2001:db8::1 1 65535\r\nGET /";
        assert_eq!(of(six), Ok(Some((client("[2001:db8::7]:1"), six.len() - 5))));
        for own in ["PROXY UNKNOWN\r\n", "PROXY UNKNOWN ff ff 1 2 what ever\r\n"] {
            assert_eq!(of(own), Ok(Some((Said::Own, own.len()))));
        }
        for own in [version2(0x20, 0x11, &[1; 12]), version2(0x20, 0, &[]), version2(0x21, 0, b"abc")] {
            assert_eq!(read(&own), Ok(Some((Said::Own, own.len()))));
        }
    }

    #[test]
    fn what_the_document_does_not_have_is_refused() {
        for bad in [
            "PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 56324 443 \r\n",
            "PROXY TCP4  192.0.2.7 198.51.100.1 56324 443\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 56324\r\n",
            "PROXY TCP4 192.0.2.07 198.51.100.1 56324 443\r\n",
            "PROXY TCP4 2001:db8::7 198.51.100.1 56324 443\r\n",
            "PROXY TCP6 192.0.2.7 198.51.100.1 56324 443\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 65536 443\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 +1 443\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 01 443\r\n",
            "PROXY TCP4 192.0.2.7 x 1 443\r\n",
            "PROXY UDP4 192.0.2.7 198.51.100.1 1 443\r\n",
            "PROXY unknown\r\n",
            "PROXY \r\n",
        ] {
            assert_eq!(of(bad), Err(HeaderFault::Line), "{bad}");
        }
        for other in ["GET / HTTP/1.1\r\n", "\x16\x03\x01", "proxy TCP4", "PROXZ", "\r\n\r\n\0\r\nQUIX", " "]
        {
            assert_eq!(of(other), Err(HeaderFault::Missing), "{other}");
        }
        assert_eq!(of(&format!("PROXY UNKNOWN {}\r\n", "x".repeat(92))), Err(HeaderFault::TooLong));
        assert!(of(&format!("PROXY UNKNOWN {}\r\n", "x".repeat(91))).unwrap().is_some());
        let refused = |command, family, told: &[u8]| read(&version2(command, family, told)).unwrap_err();
        assert_eq!(refused(0x11, 0x11, &[1; 12]), HeaderFault::Block, "version 1 in version 2's place");
        assert_eq!(refused(0x22, 0x11, &[1; 12]), HeaderFault::Block, "no such command");
        assert_eq!(refused(0x21, 0x41, &[1; 12]), HeaderFault::Block, "no such family");
        assert_eq!(refused(0x21, 0x11, &[1; 11]), HeaderFault::Block, "too short for its addresses");
        assert_eq!(refused(0x21, 0x21, &[1; 35]), HeaderFault::Block, "too short for its addresses");
        assert_eq!(refused(0x21, 0x12, &[1; 12]), HeaderFault::NotTcp);
        assert_eq!(refused(0x21, 0x31, &[1; 216]), HeaderFault::NotTcp);
        assert_eq!(refused(0x21, 0x11, &[1; 4081]), HeaderFault::TooLong);
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_and_nothing_behind_it(
            source: SocketAddr,
            fields in proptest::collection::vec(any::<u8>(), 0..200),
            behind in proptest::collection::vec(any::<u8>(), 0..50),
        ) {
            // A scope is no part of the wire's address.
            let source = SocketAddr::new(source.ip(), source.port());
            let (family, other) = if source.is_ipv4() { ("TCP4", "192.0.2.1") } else { ("TCP6", "::1") };
            let line = format!("PROXY {family} {} {other} {} 443\r\n", source.ip(), source.port());
            for header in [line.into_bytes(), version2_of(source, &fields)] {
                let sent = [&header[..], &behind].concat();
                prop_assert_eq!(read(&sent), Ok(Some((Said::Client(source), header.len()))));
                fuzz(&sent);
            }
        }

        #[test]
        fn no_bytes_make_the_reader_panic(data in proptest::collection::vec(any::<u8>(), 0..200), begun: bool) {
            fuzz(&data);
            let start = if begun { SIGNATURE } else { WORD };
            fuzz(&[start, &data].concat());
        }
    }
}
