//! What passes the gateway: paths, methods and header fields. Pure. Everything not named
//! here stays outside, hop-by-hop fields and credentials among it.

use http::{HeaderMap, HeaderName, Method, StatusCode, header};
use shared::api::message::MESSAGE_PREFIX;
use shared::api::record::VAULT_STALE;
use shared::api::{CONTENT_DIGEST, FILE_LABEL, IDEMPOTENCY_KEY, Problem, VAULT_FINAL, VAULT_SUPERSEDES};

use super::reply::Refusal;

/// From a handler to the vault. Length and framing are the client's own.
const INWARD: [HeaderName; 11] = [
    header::ACCEPT,
    header::CONTENT_TYPE,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::IF_RANGE,
    header::RANGE,
    HeaderName::from_static(IDEMPOTENCY_KEY),
    HeaderName::from_static(FILE_LABEL),
    HeaderName::from_static(CONTENT_DIGEST),
    HeaderName::from_static(VAULT_SUPERSEDES),
    HeaderName::from_static("x-request-id"),
];

/// From the vault to a handler.
const OUTWARD: [HeaderName; 14] = [
    header::ACCEPT_RANGES,
    header::ALLOW,
    header::CACHE_CONTROL,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::CONTENT_TYPE,
    header::ETAG,
    header::LOCATION,
    header::RETRY_AFTER,
    header::X_CONTENT_TYPE_OPTIONS,
    HeaderName::from_static(FILE_LABEL),
    HeaderName::from_static(VAULT_FINAL),
    HeaderName::from_static(VAULT_STALE),
    HeaderName::from_static("x-request-id"),
];

const FILES: &str = "/v1/files";
const SERIES: &str = "/v1/series/";
const MESSAGES: &str = "/v1/messages/";
/// Lists, and what lies below them.
const LISTS: [&str; 4] = [FILES, "/v1/records", "/v1/names", "/v1/leases"];

/// Is this a call for the vault pair's handlers' part?
pub(super) fn admit(method: &Method, path: &str) -> Result<(), Refusal> {
    let is_message = path.starts_with(MESSAGES);
    if !(is_message || path.starts_with(SERIES) || LISTS.iter().any(|list| is_below(path, list))) {
        let what = "the gateway serves /v1/series/, /v1/files, /v1/records, /v1/names, /v1/leases and \
                    /v1/messages/ alone";
        return Err(Refusal::new(Problem::new(StatusCode::NOT_FOUND, "not_found", what)));
    }
    if !is_plain(path) {
        let what = "the path has an empty or dot segment, an encoded separator or a control character";
        return Err(Refusal::new(Problem::new(StatusCode::BAD_REQUEST, "bad_path", what)));
    }
    let is_put = !(is_file(path) || path.starts_with(SERIES));
    match *method {
        Method::POST if is_message => Ok(()),
        _ if is_message => Err(Refusal::method("POST")),
        Method::GET | Method::HEAD | Method::POST | Method::DELETE => Ok(()),
        Method::PUT if is_put => Ok(()),
        _ => Err(Refusal::method(if is_put {
            "GET, HEAD, POST, PUT, DELETE"
        } else {
            "GET, HEAD, POST, DELETE"
        })),
    }
}

/// Does it concern files, and may carry a large body?
pub(super) fn is_file(path: &str) -> bool {
    is_below(path, FILES)
}

fn is_below(path: &str, list: &str) -> bool {
    path.strip_prefix(list).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// No segment that another reader of the path could take for another path.
fn is_plain(path: &str) -> bool {
    let lower = path.to_ascii_lowercase();
    path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\')
        && path.split('/').skip(1).all(|segment| !matches!(segment, "" | "." | ".."))
        && ["%2e", "%2f", "%5c", "%25"].iter().all(|trick| !lower.contains(trick))
        && !lower.as_bytes().windows(3).any(|w| w[0] == b'%' && (matches!(w[1], b'0' | b'1') || w == b"%7f"))
}

/// A handler's fields that the vault shall see.
pub(super) fn inward(headers: &HeaderMap) -> HeaderMap {
    let mut picked = pick(headers, &INWARD);
    // Of those that there are not, too: the vault names what is wrong.
    let about_message = headers.iter().filter(|(name, _)| name.as_str().starts_with(MESSAGE_PREFIX));
    for (name, value) in about_message {
        picked.append(name.clone(), value.clone());
    }
    picked
}

/// A vault's fields that the handler shall see.
pub(super) fn outward(headers: &HeaderMap) -> HeaderMap {
    pick(headers, &OUTWARD)
}

fn pick(headers: &HeaderMap, names: &[HeaderName]) -> HeaderMap {
    let mut picked = HeaderMap::with_capacity(names.len());
    for name in names {
        for value in headers.get_all(name) {
            picked.append(name, value.clone());
        }
    }
    picked
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_what_handlers_may_call_passes() {
        for path in [
            "/v1/files",
            "/v1/files/abc",
            "/v1/series/INV/numbers",
            "/v1/series/INV/numbers/7/confirm",
            "/v1/records/lots/7",
            "/v1/names",
            "/v1/leases/nightly",
        ] {
            assert!(admit(&Method::GET, path).is_ok(), "{path}");
        }
        for path in [
            "/",
            "/v1/filesystem",
            "/v1/messages",
            "/v1/queues/orders/messages",
            "/v1/dead-letters/retry",
            "/v1/recordset",
            "/v1/pki/tokens",
            "/v1/enrol",
            "/v1/status",
            "*",
            "/v1/series",
            "",
        ] {
            assert_eq!(admit(&Method::GET, path).unwrap_err().status(), StatusCode::NOT_FOUND, "{path}");
        }
        for path in [
            "/v1/files/../pki/tokens",
            "/v1/files/%2e%2E/pki",
            "/v1/files//x",
            "/v1/series/a%2Fb/numbers",
            "/v1/series/a%00/numbers",
            "/v1/series/a%252e/numbers",
            "/v1/files/a\\b",
        ] {
            assert_eq!(admit(&Method::GET, path).unwrap_err().status(), StatusCode::BAD_REQUEST, "{path}");
        }
        assert!(admit(&Method::PUT, "/v1/records/lots/7").is_ok());
        assert!(admit(&Method::POST, "/v1/messages/orders.new").is_ok());
        for method in [Method::GET, Method::PUT, Method::DELETE] {
            let refused = admit(&method, "/v1/messages/orders.new").unwrap_err();
            assert_eq!(refused.status(), StatusCode::METHOD_NOT_ALLOWED, "{method}");
        }
        let refused = admit(&Method::CONNECT, "/v1/files").unwrap_err();
        assert_eq!(refused.status(), StatusCode::METHOD_NOT_ALLOWED);
    }

    #[test]
    fn hop_by_hop_fields_and_credentials_stay_outside() {
        let mut headers = HeaderMap::new();
        for name in
            ["connection", "transfer-encoding", "te", "authorization", "cookie", "upgrade", "x-forwarded-for"]
        {
            headers.insert(name, HeaderValue::from_static("x"));
        }
        headers.insert(IDEMPOTENCY_KEY, HeaderValue::from_static("k"));
        headers.insert("x-message-priority", HeaderValue::from_static("9"));
        headers.insert("x-message-prority", HeaderValue::from_static("9"));
        assert_eq!(inward(&headers).len(), 3);
        assert_eq!(outward(&headers).len(), 0);
    }

    proptest! {
        #[test]
        fn what_passes_stays_below_its_folder(path in "/v1/(files|series)/[a-zA-Z0-9./%\\\\\u{0}-\u{20}]{0,30}") {
            if admit(&Method::GET, &path).is_ok() {
                prop_assert!(path.split('/').skip(1).all(|segment| !segment.is_empty() && segment != ".."));
                prop_assert!(path.bytes().all(|byte| byte.is_ascii_graphic()));
            }
        }
    }
}
