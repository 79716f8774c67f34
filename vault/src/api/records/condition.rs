//! `If-Match` and `If-None-Match` of a write, as RFC 9110 has them (13.1.1, 13.1.2): which version
//! the writer has seen. Pure. A write that does not say is refused (RFC 6585, 428): a blind one
//! must be meant.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use crate::api::refusal::Refusal;
use crate::sequence::Sequence;
use crate::sequence::record::{Expect, Held, RecordName};

/// The code of a write that does not say what it follows.
const MISSING: &str = "condition_missing";

/// What a write of that record expects, as [`expected`]; one that does not say is told what it would
/// follow, as far as this vault knows.
///
/// # Errors
/// As [`expected`].
pub(in crate::api) async fn expected_of(
    sequence: &Sequence,
    name: &RecordName,
    headers: &HeaderMap,
) -> Result<Expect, Refusal> {
    let refusal = match expected(headers) {
        Err(refusal) if refusal.problem.code == MISSING => refusal,
        said => return said,
    };
    // The other vault is not asked for what is refused anyway.
    let Ok(found) = sequence.record_here(name.clone()).await else { return Err(refusal) };
    let detail = match found.filter(|held| held.text.is_some()) {
        Some(Held { version, .. }) => format!(
            "say which version this follows: as far as this vault knows the record is in version {version}, so If-Match: \"{version}\" once you have read it; If-Match: * for whichever is there"
        ),
        None => "say which version this follows: as far as this vault knows there is no such record, so If-None-Match: *".to_owned(),
    };
    Err(Refusal::new(StatusCode::PRECONDITION_REQUIRED, MISSING, detail))
}

/// Reads what a write expects.
///
/// # Errors
/// 428 where it says nothing, 400 where that cannot be understood.
fn expected(headers: &HeaderMap) -> Result<Expect, Refusal> {
    let bad = |detail: &str| Refusal::new(StatusCode::BAD_REQUEST, "bad_condition", detail);
    match (one(headers, &header::IF_MATCH)?, one(headers, &header::IF_NONE_MATCH)?) {
        (None, None) => Err(Refusal::new(
            StatusCode::PRECONDITION_REQUIRED,
            MISSING,
            "say which version this follows: If-Match with the ETag that a GET answers; If-Match: * for whichever is there; If-None-Match: * where there is none yet",
        )),
        (Some(_), Some(_)) => Err(bad("send If-Match or If-None-Match, not both")),
        (Some("*"), None) => Ok(Expect::Any),
        (Some(tag), None) => {
            let version = tag.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).and_then(version_of);
            version
                .map(Expect::Version)
                .ok_or_else(|| bad("If-Match names one version, such as \"3\", in quotes, or is *"))
        }
        (None, Some("*")) => Ok(Expect::Absent),
        (None, Some(_)) => Err(bad("If-None-Match of a write is *: there is none yet")),
    }
}

/// Any bytes as the condition of a write: an answer or a refusal.
pub fn fuzz_condition(data: &[u8]) {
    for name in [header::IF_MATCH, header::IF_NONE_MATCH] {
        if let Ok(value) = HeaderValue::from_bytes(data) {
            drop(expected(&std::iter::once((name, value)).collect()));
        }
    }
}

/// Digits alone, without a sign or leading zeros.
fn version_of(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    text.parse().ok().filter(|_| digits)
}

fn one<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<Option<&'h str>, Refusal> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        // What is no text is no version: the caller hears so.
        (Some(value), None) => Ok(Some(value.to_str().unwrap_or_default().trim())),
        (Some(_), Some(_)) => {
            let detail = format!("send {name} once");
            Err(Refusal::new(StatusCode::BAD_REQUEST, "bad_condition", detail))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(pairs: &[(&HeaderName, &str)]) -> Result<Expect, u16> {
        let headers = pairs
            .iter()
            .map(|(name, value)| ((*name).clone(), HeaderValue::from_bytes(value.as_bytes()).unwrap()))
            .collect();
        expected(&headers).map_err(|refusal| refusal.problem.status)
    }

    #[test]
    fn a_write_says_which_version_it_follows() {
        let (is, none) = (&header::IF_MATCH, &header::IF_NONE_MATCH);
        assert_eq!(told(&[(is, "\"3\"")]), Ok(Expect::Version(3)));
        assert_eq!(told(&[(is, " * ")]), Ok(Expect::Any));
        assert_eq!(told(&[(none, "*")]), Ok(Expect::Absent));
        assert_eq!(told(&[]), Err(428));
        for bad in [
            "3",
            "W/\"3\"",
            "\"3\", \"4\"",
            "\"03\"",
            "\"+3\"",
            "\"\"",
            "\"",
            "",
            "ä",
            "\"99999999999999999999\"",
        ] {
            assert_eq!(told(&[(is, bad)]), Err(400), "{bad}");
        }
        assert_eq!(told(&[(none, "\"3\"")]), Err(400));
        assert_eq!(told(&[(is, "\"3\""), (none, "*")]), Err(400));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(raw: Vec<u8>) {
            fuzz_condition(&raw);
        }
    }
}
