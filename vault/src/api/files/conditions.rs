//! `If-None-Match` and `Range`, as RFC 9110 has them (13.1.2, 14.2). Pure; whatever is not
//! understood is ignored, as the RFC says, and the whole file is sent.

use std::ops::Range;

use http::{HeaderMap, header};

/// What a request asks of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// All of it.
    Whole,
    /// These bytes; not empty, and within the file.
    Part(Range<u64>),
    /// Bytes that it does not have.
    Nothing,
}

/// Does the caller have this version already?
#[must_use]
pub fn none_match(headers: &HeaderMap, etag: &str) -> bool {
    let values = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).any(|tag| {
        // Weak comparison: 13.1.2 asks for it.
        tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag
    })
}

/// Which bytes of a file of `size` are asked for. Several ranges at once are answered with
/// the whole file, which 14.2 allows.
#[must_use]
pub fn range_of(headers: &HeaderMap, etag: &str, size: u64) -> Asked {
    let same = headers.get(header::IF_RANGE).is_none_or(|condition| condition.as_bytes() == etag.as_bytes());
    let mut ranges = headers.get_all(header::RANGE).iter();
    let text = match (ranges.next(), ranges.next()) {
        (Some(range), None) if same => range.to_str().ok(),
        _ => None,
    };
    text.and_then(|text| parse_range(text, size)).unwrap_or(Asked::Whole)
}

fn parse_range(text: &str, size: u64) -> Option<Asked> {
    let (unit, range) = text.split_once('=')?;
    let (first, last) = range.trim().split_once('-')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") || range.contains(',') {
        return None;
    }
    let range = match (number(first)?, number(last)?) {
        (None, None) => return None,
        (Some(first), Some(last)) if last < first => return None,
        (Some(first), last) => first..last.map_or(size, |last| last.saturating_add(1).min(size)),
        (None, Some(count)) => size.saturating_sub(count)..size,
    };
    Some(if range.is_empty() { Asked::Nothing } else { Asked::Part(range) })
}

/// Digits, or nothing at all; a number beyond all sizes is as good as the largest.
fn number(text: &str) -> Option<Option<u64>> {
    match text.trim() {
        "" => Some(None),
        digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some(Some(digits.parse().unwrap_or(u64::MAX)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::{prop_assert, proptest};

    use super::*;

    fn asked(range: &str, size: u64) -> Asked {
        let range = HeaderValue::try_from(range).unwrap();
        range_of(&std::iter::once((header::RANGE, range)).collect(), "\"e\"", size)
    }

    #[test]
    fn one_range_is_read_as_rfc_9110_has_it() {
        for (text, expected) in [
            ("bytes=0-0", Asked::Part(0..1)),
            ("bytes=2-", Asked::Part(2..10)),
            ("bytes=2-99", Asked::Part(2..10)),
            ("bytes=-3", Asked::Part(7..10)),
            ("bytes=-99", Asked::Part(0..10)),
            ("Bytes = 1 - 2", Asked::Part(1..3)),
            ("bytes=10-", Asked::Nothing),
            ("bytes=-0", Asked::Nothing),
            ("bytes=99999999999999999999999-", Asked::Nothing),
            ("bytes=3-2", Asked::Whole),
            ("bytes=0-1,3-4", Asked::Whole),
            ("bytes=-", Asked::Whole),
            ("bytes=a-b", Asked::Whole),
            ("bytes=+1-2", Asked::Whole),
            ("lines=0-1", Asked::Whole),
            ("0-1", Asked::Whole),
        ] {
            assert_eq!(asked(text, 10), expected, "{text}");
        }
        assert_eq!(asked("bytes=0-", 0), Asked::Nothing);
    }

    #[test]
    fn a_range_of_another_version_is_answered_with_the_whole() {
        let mut headers = HeaderMap::new();
        headers.insert(header::RANGE, HeaderValue::from_static("bytes=0-0"));
        headers.insert(header::IF_RANGE, HeaderValue::from_static("\"other\""));
        assert_eq!(range_of(&headers, "\"e\"", 10), Asked::Whole);
        headers.insert(header::IF_RANGE, HeaderValue::from_static("\"e\""));
        assert_eq!(range_of(&headers, "\"e\"", 10), Asked::Part(0..1));
    }

    #[test]
    fn any_listed_tag_matches() {
        for (text, expected) in
            [("\"e\"", true), ("\"x\", W/\"e\"", true), ("*", true), ("\"x\"", false), ("e", false)]
        {
            let mut headers = HeaderMap::new();
            headers.insert(header::IF_NONE_MATCH, HeaderValue::from_static(text));
            assert_eq!(none_match(&headers, "\"e\""), expected, "{text}");
        }
        assert!(!none_match(&HeaderMap::new(), "\"e\""));
    }

    proptest! {
        #[test]
        fn a_part_lies_within_the_file_whatever_is_asked(text in "(bytes=)?[0-9,a -]{0,30}", size in 0_u64..1000) {
            if let Asked::Part(range) = asked(&text, size) {
                prop_assert!(range.start < range.end && range.end <= size);
            }
        }
    }
}
