//! The headers that come with an upload: key, label, media type. Pure; outside bytes in,
//! checked text or a refusal out.

use http::{HeaderMap, StatusCode, header};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode, utf8_percent_encode};
use shared::api::{FILE_LABEL, IDEMPOTENCY_KEY, MAX_KEY, MAX_LABEL};

use crate::api::refusal::Refusal;

/// Longest media type, in bytes.
const MAX_MEDIA_TYPE: usize = 127;
/// What a label's bytes are escaped for: everything that a header or a list could misread.
const ESCAPED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%').add(b',').add(b';').add(b'\\');

fn bad(code: &str, detail: impl Into<String>) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, code, detail)
}

/// The one `Idempotency-Key`: 1 to 128 visible ASCII characters.
///
/// # Errors
/// 400 where it is missing, repeated, too long or anything else.
pub fn idempotency_key(headers: &HeaderMap) -> Result<String, Refusal> {
    let mut keys = headers.get_all(IDEMPOTENCY_KEY).iter();
    let refused = || {
        let detail = format!("send one Idempotency-Key of 1 to {MAX_KEY} visible ASCII characters");
        bad("bad_idempotency_key", detail)
    };
    let key = keys.next().filter(|_| keys.next().is_none()).ok_or_else(refused)?.as_bytes();
    if !(1..=MAX_KEY).contains(&key.len()) || !key.iter().all(u8::is_ascii_graphic) {
        return Err(refused());
    }
    Ok(key.iter().map(|byte| char::from(*byte)).collect())
}

/// The `File-Label`: percent-encoded UTF-8, any of it, at most [`MAX_LABEL`] bytes decoded.
/// Whoever shows a label escapes it. Absent reads as empty.
///
/// # Errors
/// 400 for anything else.
pub fn label_of(headers: &HeaderMap) -> Result<String, Refusal> {
    let mut labels = headers.get_all(FILE_LABEL).iter();
    let Some(label) = labels.next() else { return Ok(String::new()) };
    let refused = || {
        let detail =
            format!("send one File-Label of percent-encoded UTF-8, at most {MAX_LABEL} bytes decoded");
        bad("bad_label", detail)
    };
    let bytes = label.as_bytes();
    if labels.next().is_some() || bytes.len() > 3 * MAX_LABEL || !well_encoded(bytes) {
        return Err(refused());
    }
    let label = percent_decode(bytes).decode_utf8().map_err(|_| refused())?;
    if label.len() > MAX_LABEL {
        return Err(refused());
    }
    Ok(label.into_owned())
}

/// ASCII only, and every `%` starts an escape.
fn well_encoded(bytes: &[u8]) -> bool {
    let escapes = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'%');
    bytes.is_ascii()
        && escapes.into_iter().all(|(at, _)| {
            bytes.get(at + 1..at + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
        })
}

/// A label as the header carries it.
pub(super) fn encode_label(label: &str) -> String {
    utf8_percent_encode(label, ESCAPED).to_string()
}

/// The `Content-Type`, or `application/octet-stream`.
///
/// # Errors
/// 400 for what is no `type/subtype` with printable parameters.
pub fn media_type_of(headers: &HeaderMap) -> Result<String, Refusal> {
    let mut types = headers.get_all(header::CONTENT_TYPE).iter();
    let Some(media_type) = types.next() else { return Ok("application/octet-stream".to_owned()) };
    let refused = || {
        bad(
            "bad_content_type",
            format!(
                "send one Content-Type: type/subtype, such as text/plain, at most {MAX_MEDIA_TYPE} bytes"
            ),
        )
    };
    let text = media_type.to_str().map_err(|_| refused())?;
    let essence = text.split(';').next().unwrap_or_default().trim();
    let token = |part: &str| {
        let special = |byte| b"!#$&-^_.+".contains(&byte);
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || special(byte))
    };
    let whole = essence.split_once('/').is_some_and(|(kind, subtype)| token(kind) && token(subtype));
    let printable = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if types.next().is_some() || text.len() > MAX_MEDIA_TYPE || !whole || !printable {
        return Err(refused());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use proptest::{prop_assert_eq, proptest};

    use super::*;

    fn with(name: &'static str, value: &[u8]) -> HeaderMap {
        let value = HeaderValue::from_bytes(value).unwrap();
        std::iter::once((HeaderName::from_static(name), value)).collect()
    }

    #[test]
    fn keys_are_visible_ascii_of_bounded_length_and_come_once() {
        assert_eq!(idempotency_key(&with(IDEMPOTENCY_KEY, b"a-1~!")).unwrap(), "a-1~!");
        let long = "k".repeat(MAX_KEY + 1);
        for bad in [&b""[..], b" ", b"a b", b"\xc3\xa4", long.as_bytes()] {
            assert!(idempotency_key(&with(IDEMPOTENCY_KEY, bad)).is_err(), "{bad:?}");
        }
        let mut twice = with(IDEMPOTENCY_KEY, b"a");
        twice.append(IDEMPOTENCY_KEY, HeaderValue::from_static("b"));
        assert!(idempotency_key(&twice).is_err());
        assert!(idempotency_key(&HeaderMap::new()).is_err());
    }

    #[test]
    fn labels_are_any_utf8_of_bounded_length() {
        assert_eq!(label_of(&with(FILE_LABEL, b"R%C3%A4chnung 7%2F1.pdf")).unwrap(), "Rächnung 7/1.pdf");
        assert_eq!(label_of(&HeaderMap::new()).unwrap(), "");
        assert_eq!(label_of(&with(FILE_LABEL, b"a%0A%00%1b[2J")).unwrap(), "a\n\0\u{1b}[2J");
        let longest = "%F0%9F%97%84".repeat(MAX_LABEL / 4);
        assert_eq!(label_of(&with(FILE_LABEL, longest.as_bytes())).unwrap().len(), MAX_LABEL);
        let (long, longer) = ("a".repeat(MAX_LABEL + 1), format!("{longest}a"));
        for bad in [&b"%"[..], b"%4", b"%zz", b"%ff", b"\xc3\xa4", long.as_bytes(), longer.as_bytes()] {
            assert!(label_of(&with(FILE_LABEL, bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn media_types_have_two_halves() {
        for good in ["text/plain", "text/html; charset=utf-8", "application/vnd.x+json"] {
            assert_eq!(media_type_of(&with("content-type", good.as_bytes())).unwrap(), good);
        }
        assert_eq!(media_type_of(&HeaderMap::new()).unwrap(), "application/octet-stream");
        let long = format!("text/{}", "a".repeat(MAX_MEDIA_TYPE));
        for bad in ["", "text", "/", "text/", "te xt/plain", &long] {
            assert!(media_type_of(&with("content-type", bad.as_bytes())).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn every_label_that_may_be_sent_comes_back(label in "(?s).{0,100}") {
            let sent = with(FILE_LABEL, encode_label(&label).as_bytes());
            prop_assert_eq!(label_of(&sent).unwrap(), label);
        }

        #[test]
        fn no_header_makes_a_reader_panic(value in proptest::collection::vec(32_u8..=255, 0..200)) {
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                let all = [IDEMPOTENCY_KEY, FILE_LABEL, "content-type"].map(|name| (HeaderName::from_static(name), value.clone()));
                let headers: HeaderMap = all.into_iter().collect();
                let _ = (idempotency_key(&headers), label_of(&headers), media_type_of(&headers));
            }
        }
    }
}
