//! What an upstream is told about the client, and what it is not: every header by which a client
//! could pass itself off as somebody else is taken away before ours are set. Knows header names.

use std::borrow::Cow;

use http::{HeaderName, HeaderValue, header};
use pingora_core::Result;
use pingora_http::{RequestHeader, ResponseHeader};

use crate::listen::connection::Connection;
use crate::proxy::request::Request;

/// Taken from every request, like all that starts with [`FORWARDED`]: ours follow, or nobody may
/// set them. What one product or another believes about a client's address, host, scheme or path.
const FORGEABLE: [&str; 28] = [
    "forwarded",
    "forwarded-for",
    "client-ip",
    "true-client-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-real-ip",
    "x-remote-ip",
    "x-remote-addr",
    "x-originating-ip",
    "x-original-forwarded-for",
    "x-envoy-external-address",
    "x-appengine-user-ip",
    "x-azure-clientip",
    "cf-connecting-ip",
    "cf-connecting-ipv6",
    "fastly-client-ip",
    "proxy-client-ip",
    "wl-proxy-client-ip",
    "x-host",
    "x-original-host",
    "x-original-url",
    "x-rewrite-url",
    "x-scheme",
    "x-url-scheme",
    "front-end-https",
    // CGI would hand it on as HTTP_PROXY.
    "proxy",
    "x-request-id",
];

/// Taken where they are spelt with underscores: to us they are no framing, to CGI they are.
const FRAMING: [&str; 2] = ["content-length", "transfer-encoding"];

/// `x-forwarded-for` and all its relatives.
const FORWARDED: &str = "x-forwarded";

/// Hop-by-hop headers that no answer carries on (RFC 9110 section 7.6.1); the engine sets
/// Connection itself and needs Upgrade and Transfer-Encoding.
const HOP_BY_HOP: [&str; 3] = ["keep-alive", "proxy-connection", "proxy-authenticate"];

/// A year, as the preload lists ask.
const STRICT_TRANSPORT: &str = "max-age=31536000";

/// Does the client ask over TLS? Of a client in clear only a trusted proxy knows: it may have ended TLS.
pub(crate) fn is_secure(head: &RequestHeader, connection: &Connection) -> bool {
    let said =
        || head.headers.get_all("x-forwarded-proto").iter().map(HeaderValue::as_bytes).collect::<Vec<_>>();
    connection.secure || (connection.presence.is_trusted() && said() == [b"https"])
}

/// Makes the head that the upstream reads.
///
/// # Errors
/// A value that is no header value; none of ours is.
pub(crate) fn request(head: &mut RequestHeader, request: &Request) -> Result<()> {
    let forged: Vec<HeaderName> = head.headers.keys().filter(|name| is_forgeable(name)).cloned().collect();
    for name in &forged {
        head.remove_header(name);
    }
    if asks_for_h2c(head) {
        // A tunnel through us in which nothing is looked at: RFC 9113 section 3.1 has withdrawn it.
        head.remove_header(&header::UPGRADE);
        head.remove_header("http2-settings");
    }
    head.insert_header("X-Forwarded-For", &*request.address_in_words())?;
    head.insert_header("X-Forwarded-Proto", request.scheme())?;
    if !request.host.is_empty() {
        head.insert_header("X-Forwarded-Host", request.host.as_str())?;
    }
    if !head.headers.contains_key(header::HOST) {
        // A client of HTTP/1.0 may leave it out; the upstream is asked in HTTP/1.1, which demands it.
        head.insert_header(header::HOST, request.host.as_str())?;
    }
    head.insert_header("X-Request-Id", request.id.as_str())?;
    Ok(())
}

fn asks_for_h2c(head: &RequestHeader) -> bool {
    let is_h2c = |token: &[u8]| token.trim_ascii().eq_ignore_ascii_case(b"h2c");
    let upgrades = head.headers.get_all(header::UPGRADE);
    upgrades.iter().any(|value| value.as_bytes().split(|byte| *byte == b',').any(is_h2c))
}

/// CGI and its heirs (WSGI, Rack, PHP) read `X_Forwarded_For` as they read `X-Forwarded-For`.
fn is_forgeable(name: &HeaderName) -> bool {
    let plain = match name.as_str() {
        disguised if disguised.contains('_') => Cow::Owned(disguised.replace('_', "-")),
        plain => Cow::Borrowed(plain),
    };
    let is = |known: &&str| *known == plain;
    plain.starts_with(FORWARDED)
        || FORGEABLE.iter().any(is)
        || (matches!(plain, Cow::Owned(_)) && FRAMING.iter().any(is))
}

/// Makes the head that the client reads.
///
/// # Errors
/// As [`request`].
pub(crate) fn answer(head: &mut ResponseHeader, request: &Request) -> Result<()> {
    for name in HOP_BY_HOP {
        head.remove_header(name);
    }
    if !request.secure {
        // RFC 6797 section 7.2: never in clear.
        head.remove_header("strict-transport-security");
    } else if !head.headers.contains_key("strict-transport-security") {
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
        let disguised = FORGEABLE.iter().chain(&FRAMING).map(|name| name.replace('-', "_"));
        let relatives = ["x-forwarded-by", "x-forwarded-protocol", "x-forwarded_for", "x_forwarded-ssl"];
        let plain = FORGEABLE.iter().chain(&relatives).map(|name| (*name).to_owned());
        for name in plain.chain(disguised) {
            head.append_header(name.clone(), "forged").unwrap();
            head.append_header(name, "forged twice").unwrap();
        }
        let mut ours = Request::new("1a".repeat(16));
        ours.client = Some(Client { address: [192, 0, 2, 7].into() });
        ours.secure = true;
        ours.host = "www.example.org".to_owned();
        request(&mut head, &ours).unwrap();
        assert!(head.headers.values().all(|value| !value.as_bytes().starts_with(b"forged")));
        assert_eq!(head.headers["x-forwarded-for"], "192.0.2.7");
        assert_eq!(head.headers["x-forwarded-proto"], "https");
        assert_eq!(head.headers["x-forwarded-host"], "www.example.org");
        assert_eq!(head.headers["x-request-id"], ours.id.as_str());
        assert_eq!(head.headers["host"], "www.example.org");
    }

    #[test]
    fn what_a_client_may_say_is_left_alone() {
        let mut head = RequestHeader::build("POST", b"/", None).unwrap();
        for (name, value) in
            [("host", "a.test"), ("content-length", "5"), ("x_my_header", "1"), ("cookie", "a=b")]
        {
            head.append_header(name, value).unwrap();
        }
        request(&mut head, &Request::new("1a".repeat(16))).unwrap();
        assert_eq!(
            ["host", "content-length", "x_my_header", "cookie"].map(|name| head.headers[name].clone()),
            ["a.test", "5", "1", "a=b"]
        );
    }

    #[test]
    fn only_who_asks_over_tls_is_told_to_stay_there() {
        let answered = |secure: bool, own: Option<&str>| {
            let mut head = ResponseHeader::build(200, None).unwrap();
            if let Some(own) = own {
                head.insert_header("Strict-Transport-Security", own).unwrap();
            }
            let mut request = Request::new("1a".repeat(16));
            request.secure = secure;
            answer(&mut head, &request).unwrap();
            head.headers.get("strict-transport-security").map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(answered(true, None).as_deref(), Some(STRICT_TRANSPORT));
        assert_eq!(answered(true, Some("max-age=5")).as_deref(), Some("max-age=5"));
        assert_eq!((answered(false, None), answered(false, Some("max-age=5"))), (None, None));
    }
}
