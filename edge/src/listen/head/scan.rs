//! Finds where a head ends while it arrives. Knows line ends, the bytes a head may have, and limits;
//! must not know what the lines say. It exists so that a fault is answered at once, and no byte is
//! looked at twice however small the portions.

use memchr::memchr2;

use super::{Fault, Limits, has_control};

/// Method, version, two spaces and a line end, generously.
const REQUEST_LINE_REST: usize = 64;

/// Looks for the end of the head while it arrives, so that a fault is answered at once and no
/// byte is looked at twice.
#[derive(Debug, Clone, Copy, Default)]
pub struct Scan {
    at: usize,
    /// Bytes of `CR LF CR LF` matched so far.
    matched: u8,
    lines: usize,
}

impl Scan {
    /// Looks at what is new in `buffer`, which holds the head from its first byte on.
    /// Returns the head's length once it is whole.
    ///
    /// # Errors
    /// A byte that no head has, or a limit that the head has already passed.
    pub fn advance(&mut self, buffer: &[u8], limits: &Limits) -> Result<Option<usize>, Fault> {
        while let Some(rest) = buffer.get(self.at..).filter(|rest| !rest.is_empty()) {
            if matches!(self.matched, 1 | 3) {
                if let Some(end) = self.line_end(rest, limits)? {
                    return Ok(Some(end));
                }
            } else {
                self.text(rest, limits)?;
            }
            // A request line longer than target and method together can be is the target's fault.
            if self.lines == 0 && self.at > limits.uri + REQUEST_LINE_REST {
                return Err(Fault::UriTooLong);
            }
            if self.at >= limits.head {
                return Err(Fault::HeadTooLarge);
            }
        }
        Ok(None)
    }

    /// The byte behind a CR. Returns the head's length if it was the last one.
    fn line_end(&mut self, rest: &[u8], limits: &Limits) -> Result<Option<usize>, Fault> {
        if rest.first() != Some(&b'\n') {
            return Err(Fault::BareCarriageReturn);
        }
        (self.matched, self.lines, self.at) = (self.matched + 1, self.lines + 1, self.at + 1);
        if self.matched == 4 {
            return if self.at > limits.head { Err(Fault::HeadTooLarge) } else { Ok(Some(self.at)) };
        }
        // The request line and then one line a header.
        if self.lines > limits.headers + 1 { Err(Fault::TooManyHeaders) } else { Ok(None) }
    }

    /// What stands before the next line end, and its CR. Looks no farther than the next limit.
    fn text(&mut self, rest: &[u8], limits: &Limits) -> Result<(), Fault> {
        let first = self.lines == 0;
        let line = if first { limits.uri + REQUEST_LINE_REST + 1 } else { usize::MAX };
        let near = rest.get(..line.min(limits.head).saturating_sub(self.at)).unwrap_or(rest);
        let (text, end) = near.split_at(memchr2(b'\r', b'\n', near).unwrap_or(near.len()));
        if let Some(fault) = fault_in(text, first) {
            return Err(fault);
        }
        if !text.is_empty() {
            self.matched = 0;
        }
        self.at += text.len();
        match end.first() {
            Some(b'\r') => (self.matched, self.at) = (self.matched + 1, self.at + 1),
            Some(_) => return Err(Fault::BareLineFeed),
            None => {}
        }
        Ok(())
    }
}

/// The fault of the first byte that cannot stand there: those above 127 only in the request line cannot.
fn fault_in(text: &[u8], first: bool) -> Option<Fault> {
    if !has_control(text) && (!first || text.is_ascii()) {
        return None;
    }
    text.iter().find_map(|byte| match byte {
        b'\t' | b' '..=0x7e => None,
        0x80.. => first.then_some(Fault::NotAscii),
        _ => Some(Fault::ControlByte),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What [`Scan`] says, one byte after the other.
    fn byte_by_byte(buffer: &[u8], limits: &Limits) -> Result<Option<usize>, Fault> {
        let (mut matched, mut lines) = (0, 0);
        for (at, byte) in (1..).zip(buffer) {
            match (matched, byte) {
                (0 | 2, b'\r') => matched += 1,
                (1 | 3, b'\n') => (matched, lines) = (matched + 1, lines + 1),
                (1 | 3, _) => return Err(Fault::BareCarriageReturn),
                (_, b'\n') => return Err(Fault::BareLineFeed),
                (_, 0x80..) if lines == 0 => return Err(Fault::NotAscii),
                (_, b'\t' | b' '..=0x7e | 0x80..) => matched = 0,
                _ => return Err(Fault::ControlByte),
            }
            match matched {
                4 if at > limits.head => return Err(Fault::HeadTooLarge),
                4 => return Ok(Some(at)),
                2 if lines > limits.headers + 1 => return Err(Fault::TooManyHeaders),
                _ if lines == 0 && at > limits.uri + REQUEST_LINE_REST => return Err(Fault::UriTooLong),
                _ if at >= limits.head => return Err(Fault::HeadTooLarge),
                _ => {}
            }
        }
        Ok(None)
    }

    proptest! {
        #[test]
        fn a_scan_in_any_portions_says_what_each_byte_says(
            parts in proptest::collection::vec(
                "(\r\n|\r\n|\r\n\r\n|\n|\r|\t|\u{7f}|\u{1}|\u{fc}|[a-z: ]{1,30}|[a-z]{60,90})", 0..20),
            (head, headers, uri) in (1_usize..300, 0_usize..6, 1_usize..60),
            portion in 1_usize..80,
        ) {
            let (wire, limits) = (parts.concat().into_bytes(), Limits { head, headers, uri });
            let mut scan = Scan::default();
            let ends = (portion..wire.len()).step_by(portion).chain([wire.len()]);
            let said = ends.map(|end| scan.advance(&wire[..end], &limits)).find(|said| *said != Ok(None));
            prop_assert_eq!(said.unwrap_or(Ok(None)), byte_by_byte(&wire, &limits));
        }
    }
}
