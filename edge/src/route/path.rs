//! The raw path of a request, checked for tricks before anybody acts on it. Pure; must not
//! know routes. A path that two readers could understand differently is refused, not repaired.

use std::borrow::Cow;

/// Longest path, bytes as received.
pub const MAX_PATH: usize = 8 * 1024;
/// Longest segment of a path, bytes as received: far over any real name, below what makes an
/// upstream's file system or router misbehave.
pub const MAX_SEGMENT: usize = 2 * 1024;
/// `%252e` is one round of hiding, `%25252e` two. Deeper ones are `%` to every reader we know.
const HIDING_ROUNDS: usize = 2;

/// Why a path is refused (400; [`PathFault::TooLong`] is 414).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathFault {
    /// Does not start with `/`.
    #[error("the path does not start with /")]
    NotAbsolute,
    /// Over [`MAX_PATH`], or a segment over [`MAX_SEGMENT`].
    #[error("the path is too long")]
    TooLong,
    /// A space, control or non-ASCII byte, `?` or `#` that is not percent-encoded.
    #[error("the path holds a byte that must be percent-encoded")]
    RawByte,
    /// `%` without two hexadecimal digits.
    #[error("the path holds a broken percent-encoding")]
    BrokenEncoding,
    /// An encoded NUL or other control byte.
    #[error("the path holds an encoded control byte")]
    ControlByte,
    /// `\` plain or encoded: a separator to some upstreams.
    #[error("the path holds a backslash")]
    Backslash,
    /// `%2f`: a separator to some upstreams, a letter to others.
    #[error("the path holds an encoded slash")]
    EncodedSlash,
    /// `.` or `..` as a segment, plain or encoded, also before a `;`.
    #[error("the path holds a dot segment")]
    DotSegment,
    /// UTF-8 longer than it need be, such as `%c0%af` for `/`.
    #[error("the path holds overlong UTF-8")]
    Overlong,
    /// One of the above behind a second or third encoding.
    #[error("the path hides a trick behind repeated percent-encoding")]
    Hidden,
}

/// The path of a request target, without the query. Returned as received, so that what is
/// forwarded is what was checked.
///
/// # Errors
/// The first trick found.
pub fn checked_path(raw_path: &[u8]) -> Result<&str, PathFault> {
    if raw_path.len() > MAX_PATH {
        return Err(PathFault::TooLong);
    }
    if raw_path.first() != Some(&b'/') {
        return Err(PathFault::NotAbsolute);
    }
    if raw_path.iter().any(|byte| !byte.is_ascii_graphic() || matches!(byte, b'?' | b'#')) {
        return Err(PathFault::RawByte);
    }
    for segment in raw_path.split(|byte| *byte == b'/') {
        checked_segment(segment)?;
    }
    std::str::from_utf8(raw_path).map_err(|_| PathFault::RawByte)
}

fn checked_segment(raw: &[u8]) -> Result<(), PathFault> {
    if raw.len() > MAX_SEGMENT {
        return Err(PathFault::TooLong);
    }
    let mut name = strict(raw)?;
    refuse_tricks(&name)?;
    for _ in 0..HIDING_ROUNDS {
        // From the second round on a lone `%` is an ordinary character.
        let Cow::Owned(deeper) = lenient(&name) else { break };
        refuse_tricks(&deeper).map_err(|_| PathFault::Hidden)?;
        name = Cow::Owned(deeper);
    }
    Ok(())
}

fn refuse_tricks(name: &[u8]) -> Result<(), PathFault> {
    if name.iter().any(u8::is_ascii_control) {
        return Err(PathFault::ControlByte);
    }
    if name.contains(&b'\\') {
        return Err(PathFault::Backslash);
    }
    if name.contains(&b'/') {
        return Err(PathFault::EncodedSlash);
    }
    // Java's servers cut a segment at `;` before they resolve dots.
    if let Some(b"." | b"..") = name.split(|byte| *byte == b';').next() {
        return Err(PathFault::DotSegment);
    }
    if overlong(name) { Err(PathFault::Overlong) } else { Ok(()) }
}

/// RFC 3629: these lead-ins never stand in UTF-8. Other invalid UTF-8 is let through: old
/// applications encode paths in Latin-1.
fn overlong(name: &[u8]) -> bool {
    let follows = |byte: u8| (0x80..=0xbf).contains(&byte);
    name.windows(2).any(|pair| matches!(pair[0], 0xc0 | 0xc1) && follows(pair[1]))
        || name
            .windows(3)
            .any(|bytes| bytes[0] == 0xe0 && (0x80..=0x9f).contains(&bytes[1]) && follows(bytes[2]))
        || name.windows(4).any(|bytes| {
            bytes[0] == 0xf0 && (0x80..=0x8f).contains(&bytes[1]) && bytes[2..].iter().all(|b| follows(*b))
        })
}

/// Decodes one round; every `%` must be an encoding.
fn strict(raw: &[u8]) -> Result<Cow<'_, [u8]>, PathFault> {
    decoded(raw).ok_or(PathFault::BrokenEncoding)
}

/// Decodes one round; a `%` that is no encoding stays. Borrowed when nothing was decoded.
fn lenient(raw: &[u8]) -> Cow<'_, [u8]> {
    let mut out = Vec::new();
    let mut changed = false;
    let mut rest = raw;
    while let Some((first, after)) = rest.split_first() {
        match (first, after) {
            (b'%', [high, low, tail @ ..]) if hex(*high).is_some() && hex(*low).is_some() => {
                out.push(hex(*high).unwrap_or(0) << 4 | hex(*low).unwrap_or(0));
                changed = true;
                rest = tail;
            }
            _ => {
                out.push(*first);
                rest = after;
            }
        }
    }
    if changed { Cow::Owned(out) } else { Cow::Borrowed(raw) }
}

fn decoded(raw: &[u8]) -> Option<Cow<'_, [u8]>> {
    if !raw.contains(&b'%') {
        return Some(Cow::Borrowed(raw));
    }
    let mut out = Vec::with_capacity(raw.len());
    let mut bytes = raw.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => out.push(hex(*bytes.next()?)? << 4 | hex(*bytes.next()?)?),
            byte => out.push(*byte),
        }
    }
    Some(Cow::Owned(out))
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// A checked path as routes compare it: decoded, runs of slashes as one, so that `/%61dmin`
/// and `//admin` are `/admin`.
pub(super) fn comparable(checked: &str) -> Cow<'_, [u8]> {
    let decoded = decoded(checked.as_bytes()).unwrap_or(Cow::Borrowed(checked.as_bytes()));
    if !decoded.windows(2).any(|pair| pair == b"//") {
        return decoded;
    }
    let mut single = decoded.into_owned();
    single.dedup_by(|next, previous| *next == b'/' && *previous == b'/');
    Cow::Owned(single)
}

/// Body of the fuzz target: an accepted path is returned as it came and holds no trick after
/// up to three decodings.
pub fn fuzz_path(data: &[u8]) {
    let Ok(path) = checked_path(data) else { return };
    assert_eq!(path.as_bytes(), data);
    let mut text = data.to_vec();
    for _ in 0..=HIDING_ROUNDS {
        text = lenient(&text).into_owned();
        assert!(!text.contains(&0) && !text.contains(&b'\\'));
        assert!(!text.split(|byte| *byte == b'/').any(|segment| matches!(segment, b"." | b"..")));
    }
    assert!(comparable(path).starts_with(b"/"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ordinary_paths_pass_as_they_are() {
        for path in [
            "/",
            "/index.html",
            "/a/.../c",
            "/a//b",
            "/.well-known/acme-challenge/x",
            "/r%C3%A9sum%C3%A9.pdf",
            "/r%E9sum%E9.pdf",
            "/%C0lbum",
            "/100%25",
            "/50%25off",
            "/a;v=1/b",
            "/file..name",
            "/a%2eb",
            "/~x/(y)'!$&*+,=:@",
        ] {
            assert_eq!(checked_path(path.as_bytes()), Ok(path));
        }
    }

    #[test]
    fn tricks_are_refused_with_their_reason() {
        let (long, wide) = (format!("/{}", "a".repeat(MAX_SEGMENT + 1)), "/a".repeat(MAX_PATH / 2 + 1));
        for (path, fault) in [
            ("", PathFault::NotAbsolute),
            ("*", PathFault::NotAbsolute),
            ("http://x/", PathFault::NotAbsolute),
            ("/..", PathFault::DotSegment),
            ("/../etc/passwd", PathFault::DotSegment),
            ("/a/./b", PathFault::DotSegment),
            ("/%2e%2e/x", PathFault::DotSegment),
            ("/.%2E/x", PathFault::DotSegment),
            ("/..;/manager", PathFault::DotSegment),
            ("/..%3b/manager", PathFault::DotSegment),
            ("/%252e%252e/x", PathFault::Hidden),
            ("/%25252e./x", PathFault::Hidden),
            ("/a%252fb", PathFault::Hidden),
            ("/a%2500", PathFault::Hidden),
            ("/a%2fb", PathFault::EncodedSlash),
            ("/a%00", PathFault::ControlByte),
            ("/a%0d%0aX:y", PathFault::ControlByte),
            ("/a%7f", PathFault::ControlByte),
            ("/a\\b", PathFault::Backslash),
            ("/a%5cb", PathFault::Backslash),
            ("/..%5c..%5cx", PathFault::Backslash),
            ("/%c0%ae%c0%ae/x", PathFault::Overlong),
            ("/%e0%80%af", PathFault::Overlong),
            ("/%f0%80%80%af", PathFault::Overlong),
            ("/%", PathFault::BrokenEncoding),
            ("/%2", PathFault::BrokenEncoding),
            ("/%zz", PathFault::BrokenEncoding),
            ("/%+1", PathFault::BrokenEncoding),
            ("/a b", PathFault::RawByte),
            ("/a\0", PathFault::RawByte),
            ("/a\n", PathFault::RawByte),
            ("/\u{e9}", PathFault::RawByte),
            ("/a?b", PathFault::RawByte),
            ("/a#b", PathFault::RawByte),
            (long.as_str(), PathFault::TooLong),
            (wide.as_str(), PathFault::TooLong),
        ] {
            assert_eq!(checked_path(path.as_bytes()), Err(fault), "{path:.60}");
        }
        assert_eq!(checked_path(b"/\xff"), Err(PathFault::RawByte));
    }

    proptest! {
        #[test]
        fn plain_names_always_pass(path in "(/[a-zA-Z0-9_-]{1,20}){1,8}") {
            prop_assert_eq!(checked_path(path.as_bytes()), Ok(path.as_str()));
        }

        #[test]
        fn encoding_a_name_does_not_change_what_routes_compare(name in "[a-z]{1,20}") {
            let encoded: String = name.bytes().map(|byte| format!("%{byte:02X}")).collect();
            let path = format!("//{encoded}");
            prop_assert_eq!(comparable(checked_path(path.as_bytes()).unwrap()), format!("/{name}").into_bytes());
        }

        #[test]
        fn no_path_makes_the_check_panic(data in proptest::collection::vec(any::<u8>(), 0..120)) {
            fuzz_path(&data);
        }

        #[test]
        fn no_mixture_of_tricks_gets_through(path in "/([./;a\\\\]|%2[eEfF5]|%5c|%00|%25){0,24}") {
            fuzz_path(path.as_bytes());
        }
    }
}
