//! What an upstream is told about the client, and what it is not: every header by which a client
//! could pass itself off as somebody else is taken away before ours are set. Knows header names.

use http::HeaderValue;
use pingora_core::Result;
use pingora_http::{RequestHeader, ResponseHeader};

use crate::proxy::request::Request;

/// Taken from every request: ours follow, or nobody may set them.
const FORGEABLE: [&str; 16] = [
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-port",
    "x-forwarded-server",
    "x-forwarded-scheme",
    "x-forwarded-prefix",
    "x-forwarded-ssl",
    "x-real-ip",
    "x-client-ip",
    "true-client-ip",
    "forwarded",
    "x-original-url",
    "x-rewrite-url",
    // CGI would hand it on as HTTP_PROXY.
    "proxy",
    "x-request-id",
];

/// Hop-by-hop headers that no answer carries on (RFC 9110 section 7.6.1); the engine sets
/// Connection itself and needs Upgrade and Transfer-Encoding.
const HOP_BY_HOP: [&str; 3] = ["keep-alive", "proxy-connection", "proxy-authenticate"];

/// A year, as the preload lists ask.
const STRICT_TRANSPORT: &str = "max-age=31536000";

/// Makes the head that the upstream reads.
///
/// # Errors
/// A value that is no header value; none of ours is.
pub(crate) fn request(head: &mut RequestHeader, request: &Request) -> Result<()> {
    for name in FORGEABLE {
        head.remove_header(name);
    }
    head.insert_header("X-Forwarded-For", request.address().to_string())?;
    head.insert_header("X-Forwarded-Proto", "https")?;
    head.insert_header("X-Forwarded-Host", request.host.as_str())?;
    head.insert_header("X-Request-Id", request.id.as_str())?;
    Ok(())
}

/// Makes the head that the client reads.
///
/// # Errors
/// As [`request`].
pub(crate) fn answer(head: &mut ResponseHeader, request: &Request) -> Result<()> {
    for name in HOP_BY_HOP {
        head.remove_header(name);
    }
    if !head.headers.contains_key("strict-transport-security") {
        head.insert_header("Strict-Transport-Security", HeaderValue::from_static(STRICT_TRANSPORT))?;
    }
    head.insert_header("X-Request-Id", request.id.as_str())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Client;

    #[test]
    fn nothing_forged_reaches_the_upstream() {
        let mut head = RequestHeader::build("GET", b"/", None).unwrap();
        for name in FORGEABLE {
            head.append_header(name, "forged").unwrap();
            head.append_header(name, "forged twice").unwrap();
        }
        let mut ours = Request::new();
        ours.client = Some(Client { address: [192, 0, 2, 7].into() });
        ours.host = "www.example.org".to_owned();
        request(&mut head, &ours).unwrap();
        assert!(head.headers.values().all(|value| !value.as_bytes().starts_with(b"forged")));
        assert_eq!(head.headers["x-forwarded-for"], "192.0.2.7");
        assert_eq!(head.headers["x-forwarded-host"], "www.example.org");
        assert_eq!(head.headers["x-request-id"], ours.id.as_str());
    }
}
