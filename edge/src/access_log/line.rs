//! An entry as one line. Pure. Whatever a client sent, the line has one newline, at its end,
//! and its fields can be told apart and read back: what could not stand as itself is `\xHH`,
//! and so is the backslash.

use std::borrow::Cow;
use std::io::Write;
use std::time::SystemTime;

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use super::{Entry, Format};

const CLF_TIME: &[BorrowedFormatItem<'_>] =
    format_description!("[day]/[month repr:short]/[year]:[hour]:[minute]:[second] +0000");
const ISO_TIME: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
/// The version of the Elastic Common Schema whose names are used.
const ECS_VERSION: &str = "8.11";

/// Appends the entry's line to `out`.
pub(super) fn append(entry: &Entry, format: Format, out: &mut Vec<u8>) {
    match format {
        Format::Combined => combined(entry, out),
        Format::Json => json(entry, out),
    }
    out.push(b'\n');
}

/// `client - - [time] "METHOD target PROTOCOL" status bytes "referer" "user agent"`
fn combined(entry: &Entry, out: &mut Vec<u8>) {
    // Writing to a Vec cannot fail.
    let _ = write!(out, "{} - - [{}] ", entry.client, clock(entry.at, CLF_TIME));
    request_to_agent(entry, Space::Plain, out);
}

/// Appends the combined line as filters see it, with the date already cut out of it and no line end:
/// `203.0.113.7 - - [] "GET /x HTTP/1.1" 404 153 "-" "curl/8"`. A handshake that failed asks for
/// `- - TLS` and has status 000.
///
/// Whatever a client sent, it is one line that begins with the client's own address, and nothing else
/// in it looks like such a beginning: a pattern that forgot to say where a line starts finds no other
/// address to ban.
pub fn event_line(entry: &Entry, out: &mut Vec<u8>) {
    let _ = write!(out, "{} - - [] ", entry.client);
    request_to_agent(entry, Space::NoBeginning, out);
}

fn request_to_agent(entry: &Entry, text: Space, out: &mut Vec<u8>) {
    out.push(b'"');
    if !(entry.method.is_empty() && entry.target.is_empty() && entry.protocol.is_empty()) {
        escaped(entry.method.as_bytes(), Space::Escaped, out);
        out.push(b' ');
        escaped(&entry.target, Space::Escaped, out);
        out.push(b' ');
        escaped(entry.protocol.as_bytes(), Space::Escaped, out);
    } else {
        out.push(b'-');
    }
    let _ = write!(out, "\" {:03} {} \"", entry.status, entry.bytes);
    escaped(&entry.referer, text, out);
    out.extend_from_slice(b"\" \"");
    escaped(&entry.user_agent, text, out);
    out.push(b'"');
}

/// Within the request a space separates, elsewhere it is text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Space {
    Plain,
    Escaped,
    /// Text, but `- - [` is broken up: it stands at the beginning of a line only.
    NoBeginning,
}

/// As nginx escapes its variables; an absent value is `-`.
fn escaped(field: &[u8], space: Space, out: &mut Vec<u8>) {
    if field.is_empty() {
        out.push(b'-');
    }
    for (at, byte) in field.iter().enumerate() {
        match byte {
            b'"' | b'\\' => hex(*byte, out),
            b' ' if space == Space::Escaped => hex(*byte, out),
            b'[' if space == Space::NoBeginning && field[..at].ends_with(b"- - ") => hex(*byte, out),
            b' '..=b'~' => out.push(*byte),
            other => hex(*other, out),
        }
    }
}

fn hex(byte: u8, out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    out.extend_from_slice(&[b'\\', b'x', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
}

/// Names of the Elastic Common Schema, dotted as its loggers write them.
#[derive(Serialize)]
struct Ecs<'e> {
    #[serde(rename = "@timestamp")]
    timestamp: String,
    #[serde(rename = "ecs.version")]
    version: &'static str,
    #[serde(rename = "event.dataset")]
    dataset: &'static str,
    #[serde(rename = "source.ip")]
    client: std::net::IpAddr,
    #[serde(rename = "http.request.method", skip_serializing_if = "str::is_empty")]
    method: Cow<'e, str>,
    #[serde(rename = "url.path", skip_serializing_if = "str::is_empty")]
    path: Cow<'e, str>,
    #[serde(rename = "url.query", skip_serializing_if = "Option::is_none")]
    query: Option<Cow<'e, str>>,
    #[serde(rename = "url.scheme", skip_serializing_if = "str::is_empty")]
    scheme: &'static str,
    #[serde(rename = "url.domain", skip_serializing_if = "str::is_empty")]
    host: Cow<'e, str>,
    #[serde(rename = "http.version", skip_serializing_if = "str::is_empty")]
    protocol: &'static str,
    #[serde(rename = "http.response.status_code")]
    status: u16,
    #[serde(rename = "http.response.body.bytes")]
    bytes: u64,
    /// Nanoseconds, as the schema wants it.
    #[serde(rename = "event.duration")]
    duration: u64,
    #[serde(rename = "http.request.referrer", skip_serializing_if = "str::is_empty")]
    referer: Cow<'e, str>,
    #[serde(rename = "user_agent.original", skip_serializing_if = "str::is_empty")]
    user_agent: Cow<'e, str>,
    #[serde(rename = "trace.id", skip_serializing_if = "str::is_empty")]
    request_id: Cow<'e, str>,
    #[serde(rename = "edge.upstream", skip_serializing_if = "Option::is_none")]
    upstream: Option<Cow<'e, str>>,
    #[serde(rename = "event.reason", skip_serializing_if = "Option::is_none")]
    reason: Option<Cow<'e, str>>,
}

fn json(entry: &Entry, out: &mut Vec<u8>) {
    let question = entry.target.iter().position(|byte| *byte == b'?');
    let (path, query) = entry.target.split_at(question.unwrap_or(entry.target.len()));
    let ecs = Ecs {
        timestamp: clock(entry.at, ISO_TIME),
        version: ECS_VERSION,
        dataset: "edge.access",
        client: entry.client,
        method: legible(entry.method.as_bytes()),
        path: legible(path),
        query: query.get(1..).map(legible),
        scheme: entry.scheme,
        host: legible(entry.host.as_bytes()),
        protocol: entry.protocol.strip_prefix("HTTP/").unwrap_or(entry.protocol),
        status: entry.status,
        bytes: entry.bytes,
        duration: u64::try_from(entry.duration.as_nanos()).unwrap_or(u64::MAX),
        referer: legible(&entry.referer),
        user_agent: legible(&entry.user_agent),
        request_id: legible(entry.request_id.as_bytes()),
        upstream: entry.upstream.as_ref().map(|name| legible(name.as_bytes())),
        reason: entry.reason.as_ref().map(|text| legible(text.as_bytes())),
    };
    let start = out.len();
    if serde_json::to_writer(&mut *out, &ecs).is_err() {
        // Texts and numbers always serialise; half an object must not stand in the log.
        out.truncate(start);
    }
}

/// Text as itself; bytes that are no UTF-8, and characters that a terminal or a reader of
/// lines would act on, as `\xHH`.
fn legible(bytes: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(bytes)
        && text.chars().all(harmless)
    {
        return Cow::Borrowed(text);
    }
    let mut out = Vec::with_capacity(bytes.len() + 16);
    let mut buffer = [0; 4];
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            let encoded = character.encode_utf8(&mut buffer).as_bytes();
            if harmless(character) {
                out.extend_from_slice(encoded);
            } else {
                encoded.iter().for_each(|byte| hex(*byte, &mut out));
            }
        }
        chunk.invalid().iter().for_each(|byte| hex(*byte, &mut out));
    }
    Cow::Owned(String::from_utf8_lossy(&out).into_owned())
}

fn harmless(character: char) -> bool {
    match character {
        '\\' => false,
        // Line and paragraph separators, and what reverses the direction of writing.
        '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' | '\u{61c}' => false,
        other => !other.is_control(),
    }
}

fn clock(at: SystemTime, format: &[BorrowedFormatItem<'_>]) -> String {
    let at = OffsetDateTime::from(at);
    // Only a year that the format cannot hold fails, and no clock says it.
    at.format(format).unwrap_or_else(|_| at.unix_timestamp().to_string())
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::Duration;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn entry() -> Entry {
        Entry {
            at: SystemTime::UNIX_EPOCH + Duration::from_millis(971_186_136_042),
            client: IpAddr::from([192, 0, 2, 1]),
            method: "GET".to_owned(),
            target: b"/a?b=c".to_vec(),
            protocol: "HTTP/1.1",
            scheme: "https",
            host: "www.example.org".to_owned(),
            status: 200,
            bytes: 2326,
            duration: Duration::from_micros(1500),
            referer: b"https://example.org/".to_vec(),
            user_agent: b"curl/8.5 (x y)".to_vec(),
            upstream: Some("app".to_owned()),
            reason: None,
            request_id: "0123abcd".to_owned(),
            cross_site: false,
            spared: false,
        }
    }

    fn line(entry: &Entry, format: Format) -> String {
        let mut out = Vec::new();
        append(entry, format, &mut out);
        String::from_utf8(out).expect("every line is text")
    }

    fn unescaped(field: &str) -> Vec<u8> {
        let mut out = Vec::new();
        let mut rest = field;
        while let Some(at) = rest.find("\\x") {
            out.extend_from_slice(&rest.as_bytes()[..at]);
            out.push(u8::from_str_radix(&rest[at + 2..at + 4], 16).unwrap());
            rest = &rest[at + 4..];
        }
        out.extend_from_slice(rest.as_bytes());
        out
    }

    /// `-` stands for nothing.
    fn value(field: &[u8]) -> Vec<u8> {
        if field.is_empty() { b"-".to_vec() } else { field.to_vec() }
    }

    #[test]
    fn combined_is_what_fail2ban_and_goaccess_read() {
        assert_eq!(
            line(&entry(), Format::Combined),
            "192.0.2.1 - - [10/Oct/2000:13:55:36 +0000] \"GET /a?b=c HTTP/1.1\" 200 2326 \"https://example.org/\" \"curl/8.5 (x y)\"\n"
        );
    }

    #[test]
    fn a_connection_that_never_spoke_http_is_a_line_too() {
        let silent = Entry {
            client: "2001:db8::1".parse().unwrap(),
            method: String::new(),
            target: Vec::new(),
            protocol: "",
            scheme: "",
            host: String::new(),
            status: 0,
            bytes: 0,
            referer: Vec::new(),
            user_agent: Vec::new(),
            upstream: None,
            reason: Some("handshake".to_owned()),
            request_id: String::new(),
            ..entry()
        };
        assert_eq!(
            line(&silent, Format::Combined),
            "2001:db8::1 - - [10/Oct/2000:13:55:36 +0000] \"-\" 000 0 \"-\" \"-\"\n"
        );
        assert_eq!(
            line(&silent, Format::Json),
            "{\"@timestamp\":\"2000-10-10T13:55:36.042Z\",\"ecs.version\":\"8.11\",\"event.dataset\":\"edge.access\",\
             \"source.ip\":\"2001:db8::1\",\"http.response.status_code\":0,\"http.response.body.bytes\":0,\
             \"event.duration\":1500000,\"event.reason\":\"handshake\"}\n"
        );
    }

    #[test]
    fn an_event_is_the_combined_line_without_its_date() {
        let event = |entry: &Entry| {
            let mut out = Vec::new();
            event_line(entry, &mut out);
            String::from_utf8(out).unwrap()
        };
        let combined = line(&entry(), Format::Combined).replace("10/Oct/2000:13:55:36 +0000", "");
        assert_eq!(event(&entry()), combined.trim_end());
        let handshake = Entry {
            method: String::new(),
            target: Vec::new(),
            protocol: "TLS",
            status: 0,
            bytes: 0,
            referer: Vec::new(),
            user_agent: b"x - - [] \"".to_vec(),
            ..entry()
        };
        assert_eq!(event(&handshake), r#"192.0.2.1 - - [] "- - TLS" 000 0 "-" "x - - \x5B] \x22""#);
    }

    #[test]
    fn json_has_the_elastic_names() {
        assert_eq!(
            line(&entry(), Format::Json),
            "{\"@timestamp\":\"2000-10-10T13:55:36.042Z\",\"ecs.version\":\"8.11\",\"event.dataset\":\"edge.access\",\
             \"source.ip\":\"192.0.2.1\",\"http.request.method\":\"GET\",\"url.path\":\"/a\",\"url.query\":\"b=c\",\
             \"url.scheme\":\"https\",\"url.domain\":\"www.example.org\",\"http.version\":\"1.1\",\"http.response.status_code\":200,\
             \"http.response.body.bytes\":2326,\"event.duration\":1500000,\"http.request.referrer\":\"https://example.org/\",\
             \"user_agent.original\":\"curl/8.5 (x y)\",\"trace.id\":\"0123abcd\",\"edge.upstream\":\"app\"}\n"
        );
    }

    #[test]
    fn a_client_cannot_forge_a_line_or_a_field() {
        let forged = Entry {
            target: b"/\" 200 5 \"-\" \"x\"\n6.6.6.6 - - [".to_vec(),
            user_agent: b"a\\\"b\r\n\x1b[2Jc\xff\xc3\xa9\xe2\x80\xae".to_vec(),
            ..entry()
        };
        assert_eq!(
            line(&forged, Format::Combined),
            "192.0.2.1 - - [10/Oct/2000:13:55:36 +0000] \
             \"GET /\\x22\\x20200\\x205\\x20\\x22-\\x22\\x20\\x22x\\x22\\x0A6.6.6.6\\x20-\\x20-\\x20[ HTTP/1.1\" 200 2326 \
             \"https://example.org/\" \"a\\x5C\\x22b\\x0D\\x0A\\x1B[2Jc\\xFF\\xC3\\xA9\\xE2\\x80\\xAE\"\n"
        );
        let json = line(&forged, Format::Json);
        assert!(
            json.contains(r#""user_agent.original":"a\\x5C\"b\\x0D\\x0A\\x1B[2Jc\\xFFé\\xE2\\x80\\xAE""#),
            "{json}"
        );
    }

    prop_compose! {
        fn any_entry()(
            seconds in 0_u64..4_000_000_000,
            client: u128,
            method in "(?s).{0,12}",
            target in vec(any::<u8>(), 0..60),
            host in "(?s).{0,12}",
            status in 0_u16..1000,
            bytes: u64,
            nanoseconds: u64,
            referer in vec(any::<u8>(), 0..40),
            user_agent in vec(any::<u8>(), 0..40),
            reason in proptest::option::of("(?s).{0,20}"),
            request_id in "(?s).{0,8}",
            cross_site: bool,
            spared: bool,
        ) -> Entry {
            Entry {
                at: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
                client: IpAddr::V6(client.into()),
                method, target, host, status, bytes, referer, user_agent, reason, request_id, cross_site, spared,
                protocol: "HTTP/2.0",
                scheme: "https",
                duration: Duration::from_nanos(nanoseconds),
                upstream: None,
            }
        }
    }

    proptest! {
        #[test]
        fn combined_is_one_line_whose_fields_read_back(entry in any_entry()) {
            let line = line(&entry, Format::Combined);
            prop_assert_eq!(line.matches('\n').count(), 1);
            prop_assert!(line.ends_with('\n') && line.trim_end_matches('\n').bytes().all(|b| (b' '..=b'~').contains(&b)));
            let quoted: Vec<&str> = line.trim_end().split('"').collect();
            prop_assert_eq!(quoted.len(), 7, "three quoted fields in {}", line);
            let request: Vec<Vec<u8>> = quoted[1].split(' ').map(unescaped).collect();
            prop_assert_eq!(request, vec![value(entry.method.as_bytes()), value(&entry.target), b"HTTP/2.0".to_vec()]);
            prop_assert_eq!(quoted[2].trim(), format!("{:03} {}", entry.status, entry.bytes));
            prop_assert_eq!(unescaped(quoted[3]), value(&entry.referer));
            prop_assert_eq!(unescaped(quoted[5]), value(&entry.user_agent));
            let client = format!("{} - - [", entry.client);
            prop_assert!(quoted[0].starts_with(&client), "{}", quoted[0]);
        }

        #[test]
        fn an_event_is_one_line_that_begins_with_its_own_client_and_nowhere_else(
            entry in any_entry(), forged in "(6\\.6\\.6\\.6|-| |\\[|\\]|\"|\n|\r|GET /x){0,12}", place in 0..5,
        ) {
            let mut entry = entry;
            match place {
                0 => entry.method = forged,
                1 => entry.target = forged.into_bytes(),
                2 => entry.referer = forged.into_bytes(),
                3 => entry.user_agent = forged.into_bytes(),
                _ => entry.host = forged,
            }
            let mut out = Vec::new();
            event_line(&entry, &mut out);
            let line = String::from_utf8(out).unwrap();
            prop_assert!(line.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{}", line);
            let own = format!("{} - - [] \"", entry.client);
            prop_assert!(line.starts_with(&own), "{}", line);
            prop_assert_eq!(line.matches("- - [").count(), 1, "{}", line);
        }

        #[test]
        fn json_is_one_line_whose_fields_read_back(entry in any_entry()) {
            let line = line(&entry, Format::Json);
            prop_assert_eq!(line.lines().count(), 1);
            prop_assert!(!line.trim_end_matches('\n').chars().any(char::is_control));
            let read: serde_json::Value = serde_json::from_str(&line).unwrap();
            let field = |name: &str| read.get(name).and_then(|text| text.as_str()).map(unescaped);
            let mut target = field("url.path").unwrap_or_default();
            if let Some(query) = field("url.query") {
                target.push(b'?');
                target.extend(query);
            }
            prop_assert_eq!(target, entry.target);
            prop_assert_eq!(field("http.request.method").unwrap_or_default(), entry.method.into_bytes());
            prop_assert_eq!(field("url.domain").unwrap_or_default(), entry.host.into_bytes());
            prop_assert_eq!(field("http.request.referrer").unwrap_or_default(), entry.referer);
            prop_assert_eq!(field("user_agent.original").unwrap_or_default(), entry.user_agent);
            prop_assert_eq!(field("event.reason"), entry.reason.map(String::into_bytes));
            prop_assert_eq!(read["http.response.body.bytes"].as_u64(), Some(entry.bytes));
        }
    }
}
