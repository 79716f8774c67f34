//! The headers that come with a posted message. Pure; outside bytes in, JMS's values or a refusal out.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, StatusCode};
use percent_encoding::percent_decode;
use serde_json::Value as Json;
use shared::api::message::{
    MESSAGE_CORRELATION_ID, MESSAGE_GROUP, MESSAGE_HEADERS, MESSAGE_PERSISTENT, MESSAGE_PREFIX,
    MESSAGE_PRIORITY, MESSAGE_PROPERTIES, MESSAGE_REPLY_TO, MESSAGE_TIME_TO_LIVE, MESSAGE_TYPE,
};

use crate::api::files::media_type_of;
use crate::api::refusal::Refusal;
use crate::openwire::properties::{Properties, Value};
use crate::openwire::{Body, Text};
use crate::posting::Post;
use crate::queue::message::Destination;

/// Longest text of a header after decoding, in bytes.
const MAX_TEXT: usize = 1024;
/// Longest JSON of the properties, in bytes.
const MAX_PROPERTIES: usize = 16 << 10;
/// Most properties, and longest name of one in bytes: as many as deliveries to handlers carry.
const MOST_PROPERTIES: usize = 64;
const MAX_NAME: usize = 64;
/// Highest priority of JMS, and the usual one.
const MAX_PRIORITY: u8 = 9;
const USUAL_PRIORITY: u8 = 4;
/// The property by which deliveries to handlers name the content type.
const CONTENT_TYPE: &str = "content_type";
/// What a text message and a bytes message are without it.
const USUAL_TYPES: [&str; 3] = ["text/plain", "text/plain; charset=utf-8", "application/octet-stream"];

/// The message that a body with these headers is. A body whose `Content-Type` is text (`text/…`, JSON,
/// XML, a form; in UTF-8) makes a text message, any other a bytes message; a content type that says
/// more than that becomes the property `content_type`.
///
/// # Errors
/// 400 that names the header and what it takes.
pub fn post_of(destination: Destination, headers: &HeaderMap, body: Bytes) -> Result<Post, Refusal> {
    all_known(headers)?;
    let media_type = media_type_of(headers)?;
    let mut properties = properties_of(headers)?;
    let is_usual = USUAL_TYPES.iter().any(|usual| media_type.eq_ignore_ascii_case(usual));
    if !is_usual && properties.value(CONTENT_TYPE).is_none() {
        properties.set(Text::shortened(CONTENT_TYPE), Value::string(&media_type));
    }
    let body = if is_text(&media_type) { Body::Text(utf8(&body)?) } else { Body::Bytes(body) };
    let reply_to = text_of(headers, MESSAGE_REPLY_TO)?;
    if let Some(name) = &reply_to {
        Destination::queue(&name.to_string()).map_err(|why| bad(MESSAGE_REPLY_TO, &why.to_string()))?;
    }
    Ok(Post {
        destination,
        persistent: persistent_of(headers)?,
        priority: priority_of(headers)?,
        time_to_live: time_to_live_of(headers)?,
        correlation_id: text_of(headers, MESSAGE_CORRELATION_ID)?,
        jms_type: text_of(headers, MESSAGE_TYPE)?,
        group: text_of(headers, MESSAGE_GROUP)?,
        reply_to,
        properties,
        body,
    })
}

/// For the fuzzer: no bytes in any header make a reader panic.
pub fn fuzz_headers(bytes: &[u8]) {
    let Ok(value) = http::HeaderValue::from_bytes(bytes) else { return };
    let names = MESSAGE_HEADERS.into_iter().chain(["content-type"]);
    for name in names {
        let headers = HeaderMap::from_iter([(HeaderName::from_static(name), value.clone())]);
        let Ok(queue) = Destination::queue("q") else { return };
        let _ = post_of(queue, &headers, Bytes::copy_from_slice(bytes));
    }
}

fn bad(name: &str, what: &str) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, "bad_header", format!("{name}: {what}"))
}

/// Who mistypes one means something by it.
fn all_known(headers: &HeaderMap) -> Result<(), Refusal> {
    let is_unknown = |name: &&str| name.starts_with(MESSAGE_PREFIX) && !MESSAGE_HEADERS.contains(name);
    match headers.keys().map(HeaderName::as_str).find(is_unknown) {
        None => Ok(()),
        Some(unknown) => {
            let known = MESSAGE_HEADERS.join(", ");
            Err(bad(unknown, &format!("there is no such header; there are {known}")))
        }
    }
}

/// The one value of a header.
fn one<'h>(headers: &'h HeaderMap, name: &str) -> Result<Option<&'h [u8]>, Refusal> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => Ok(Some(value.as_bytes())),
        (Some(_), Some(_)) => Err(bad(name, "comes more than once; send it once")),
    }
}

fn persistent_of(headers: &HeaderMap) -> Result<bool, Refusal> {
    match one(headers, MESSAGE_PERSISTENT)? {
        None | Some(b"true") => Ok(true),
        Some(b"false") => Ok(false),
        Some(_) => Err(bad(MESSAGE_PERSISTENT, "write true or false")),
    }
}

fn priority_of(headers: &HeaderMap) -> Result<u8, Refusal> {
    let Some(priority) = number_of(headers, MESSAGE_PRIORITY)? else { return Ok(USUAL_PRIORITY) };
    let priority = u8::try_from(priority).ok().filter(|priority| *priority <= MAX_PRIORITY);
    priority.ok_or_else(|| bad(MESSAGE_PRIORITY, "write 0 to 9; 4 is usual"))
}

fn time_to_live_of(headers: &HeaderMap) -> Result<Option<Duration>, Refusal> {
    let time = number_of(headers, MESSAGE_TIME_TO_LIVE)?.unwrap_or(0);
    Ok((time > 0).then(|| Duration::from_millis(time)))
}

/// A whole number that a `long` of Java's holds.
fn number_of(headers: &HeaderMap, name: &str) -> Result<Option<u64>, Refusal> {
    let Some(value) = one(headers, name)? else { return Ok(None) };
    let digits =
        std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let number =
        digits.and_then(|digits| digits.parse().ok()).filter(|number| i64::try_from(*number).is_ok());
    number.map(Some).ok_or_else(|| bad(name, "write a whole number (a time in milliseconds)"))
}

/// A text, percent-encoded UTF-8.
fn text_of(headers: &HeaderMap, name: &str) -> Result<Option<Text>, Refusal> {
    let Some(value) = one(headers, name)? else { return Ok(None) };
    let refused = || bad(name, "write percent-encoded UTF-8 of 1 to 1024 bytes");
    let stray = value
        .split(|byte| *byte == b'%')
        .skip(1)
        .any(|rest| rest.len() < 2 || !rest[..2].iter().all(u8::is_ascii_hexdigit));
    if stray || !value.is_ascii() {
        return Err(refused());
    }
    let text = percent_decode(value).decode_utf8().map_err(|_| refused())?;
    let fits = (1..=MAX_TEXT).contains(&text.len());
    fits.then(|| Text::try_from(&*text).ok()).flatten().map(Some).ok_or_else(refused)
}

/// JMS's types: whole numbers are `int` where they fit, else `long`; others `double`.
fn properties_of(headers: &HeaderMap) -> Result<Properties, Refusal> {
    let mut properties = Properties::default();
    let Some(json) = one(headers, MESSAGE_PROPERTIES)? else { return Ok(properties) };
    let refused = |what: &str| bad(MESSAGE_PROPERTIES, what);
    if json.len() > MAX_PROPERTIES {
        return Err(refused(&format!("has at most {MAX_PROPERTIES} bytes")));
    }
    let entries: serde_json::Map<String, Json> = serde_json::from_slice(json)
        .map_err(|error| refused(&format!("write a JSON object, such as {{\"lot\":7}}: {error}")))?;
    if entries.len() > MOST_PROPERTIES {
        return Err(refused(&format!("a message has at most {MOST_PROPERTIES} properties")));
    }
    for (name, value) in entries {
        if !is_property(&name) {
            let what = format!(
                "{name:?} is no property: a Java name of at most {MAX_NAME} ASCII letters, which begins with none of JMS's own (JMS…)"
            );
            return Err(refused(&what));
        }
        let value = property(&value)
            .ok_or_else(|| refused(&format!("{name}: a property is a string, a number or true or false")))?;
        let name = Text::try_from(&*name).map_err(|_| refused("a name is too long"))?;
        properties.set(name, value);
    }
    Ok(properties)
}

fn is_property(name: &str) -> bool {
    let first = name.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$');
    first && name.len() <= MAX_NAME && name.bytes().all(plain) && !name.starts_with("JMS")
}

fn property(value: &Json) -> Option<Value> {
    match value {
        Json::Bool(flag) => Some(Value::Boolean(*flag)),
        Json::String(text) => Some(Value::string(text)),
        Json::Number(number) => match (number.as_i64(), number.is_u64(), number.as_f64()) {
            (Some(whole), _, _) => Some(i32::try_from(whole).map_or(Value::Long(whole), Value::Integer)),
            // A long of Java's does not hold it, and as a double it would be another number.
            (None, true, _) => None,
            (None, false, double) => double.map(Value::Double),
        },
        Json::Null | Json::Array(_) | Json::Object(_) => None,
    }
}

fn is_text(media_type: &str) -> bool {
    let media_type = media_type.to_ascii_lowercase();
    let (essence, parameters) = media_type.split_once(';').unwrap_or((&media_type, ""));
    let essence = essence.trim();
    let charset = parameters.split(';').find_map(|parameter| parameter.trim().strip_prefix("charset="));
    let is_utf8 = charset.is_none_or(|charset| matches!(charset.trim_matches('"'), "utf-8" | "us-ascii"));
    let texts = ["application/json", "application/xml", "application/x-www-form-urlencoded"];
    let is_text = essence.starts_with("text/")
        || texts.contains(&essence)
        || essence.ends_with("+json")
        || essence.ends_with("+xml");
    is_text && is_utf8
}

fn utf8(body: &[u8]) -> Result<String, Refusal> {
    std::str::from_utf8(body).map(str::to_owned).map_err(|error| {
        let detail = format!(
            "the content type says text, and the body is no UTF-8: {error}; name its charset, or send application/octet-stream"
        );
        Refusal::new(StatusCode::BAD_REQUEST, "bad_body", detail)
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn posted(headers: &[(&'static str, &str)], body: &[u8]) -> Result<Post, String> {
        let pair = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        let mut map = HeaderMap::new();
        for (name, value) in headers.iter().map(pair) {
            map.append(name, value);
        }
        let queue = Destination::queue("orders").unwrap();
        post_of(queue, &map, Bytes::copy_from_slice(body)).map_err(|refusal| refusal.problem.detail)
    }

    #[test]
    fn what_is_not_said_is_as_jms_has_it() {
        let post = posted(&[], b"\xff").unwrap();
        assert!(post.persistent && post.priority == 4 && post.time_to_live.is_none());
        assert_eq!((post.body, post.properties), (Body::Bytes(b"\xff"[..].into()), Properties::default()));
    }

    #[test]
    fn text_is_a_text_message_and_all_else_are_bytes_and_the_type_goes_with_them() {
        for (kind, is_text, told) in [
            ("text/plain", true, None),
            ("text/plain; charset=UTF-8", true, None),
            ("text/csv", true, Some("text/csv")),
            ("application/json", true, Some("application/json")),
            ("application/vnd.x+json; v=1", true, Some("application/vnd.x+json; v=1")),
            ("application/x-www-form-urlencoded", true, Some("application/x-www-form-urlencoded")),
            ("text/plain; charset=iso-8859-1", false, Some("text/plain; charset=iso-8859-1")),
            ("application/octet-stream", false, None),
            ("image/png", false, Some("image/png")),
        ] {
            let post = posted(&[("content-type", kind)], b"x").unwrap();
            assert_eq!(matches!(post.body, Body::Text(_)), is_text, "{kind}");
            assert_eq!(post.properties.text(CONTENT_TYPE).as_deref(), told, "{kind}");
        }
        let told = posted(&[("content-type", "text/plain")], b"\xff").unwrap_err();
        assert!(told.contains("no UTF-8") && told.contains("octet-stream"), "{told}");
    }

    #[test]
    fn headers_are_jms_values_of_the_right_type() {
        let json = r#"{"lot":7,"far":5000000000,"rate":0.5,"text":"Köln","urgent":true}"#;
        let post = posted(
            &[
                (MESSAGE_PERSISTENT, "false"),
                (MESSAGE_PRIORITY, "9"),
                (MESSAGE_TIME_TO_LIVE, "1500"),
                (MESSAGE_CORRELATION_ID, "order%2017"),
                (MESSAGE_TYPE, "invoice"),
                (MESSAGE_GROUP, "K%C3%B6ln"),
                (MESSAGE_REPLY_TO, "answers"),
                (MESSAGE_PROPERTIES, json),
            ],
            b"",
        )
        .unwrap();
        let shown = |text: &Option<Text>| text.as_ref().map(ToString::to_string).unwrap_or_default();
        assert_eq!((post.persistent, post.priority), (false, 9));
        assert_eq!(post.time_to_live, Some(Duration::from_millis(1500)));
        assert_eq!((shown(&post.correlation_id), shown(&post.group)), ("order 17".into(), "Köln".into()));
        assert_eq!((shown(&post.jms_type), shown(&post.reply_to)), ("invoice".into(), "answers".into()));
        let value = |name| post.properties.value(name);
        assert_eq!(value("lot"), Some(&Value::Integer(7)));
        assert_eq!(value("far"), Some(&Value::Long(5_000_000_000)));
        assert_eq!(value("rate"), Some(&Value::Double(0.5)));
        assert_eq!(value("urgent"), Some(&Value::Boolean(true)));
        assert_eq!(post.properties.text("text").as_deref(), Some("Köln"));
    }

    #[test]
    fn what_is_no_value_is_refused_by_the_headers_name() {
        let many: Vec<String> = (0..65).map(|number| format!("\"p{number}\":1")).collect();
        let many = format!("{{{}}}", many.join(","));
        let long = "a".repeat(MAX_TEXT + 1);
        for (name, bad) in [
            (MESSAGE_PERSISTENT, "yes"),
            (MESSAGE_PRIORITY, "10"),
            (MESSAGE_PRIORITY, "-1"),
            (MESSAGE_PRIORITY, ""),
            (MESSAGE_TIME_TO_LIVE, "10s"),
            (MESSAGE_TIME_TO_LIVE, "9223372036854775808"),
            (MESSAGE_CORRELATION_ID, ""),
            (MESSAGE_CORRELATION_ID, "%4"),
            (MESSAGE_CORRELATION_ID, "%zz"),
            (MESSAGE_CORRELATION_ID, "%ff"),
            (MESSAGE_GROUP, &long),
            (MESSAGE_REPLY_TO, "a,b"),
            (MESSAGE_PROPERTIES, "[]"),
            (MESSAGE_PROPERTIES, "{"),
            (MESSAGE_PROPERTIES, r#"{"a":null}"#),
            (MESSAGE_PROPERTIES, r#"{"a":[1]}"#),
            (MESSAGE_PROPERTIES, r#"{"a":18446744073709551615}"#),
            (MESSAGE_PROPERTIES, r#"{"a-b":1}"#),
            (MESSAGE_PROPERTIES, r#"{"7a":1}"#),
            (MESSAGE_PROPERTIES, r#"{"":1}"#),
            (MESSAGE_PROPERTIES, r#"{"JMSPriority":1}"#),
            (MESSAGE_PROPERTIES, &many),
        ] {
            let told = posted(&[(name, bad)], b"").unwrap_err();
            assert!(told.starts_with(&format!("{name}: ")), "{name}: {bad}: {told}");
            let twice = posted(&[(name, "1"), (name, "1")], b"").unwrap_err();
            assert!(twice.contains("more than once"), "{twice}");
        }
    }

    #[test]
    fn a_mistyped_header_is_refused_by_its_name() {
        let told = posted(&[("x-message-prority", "9")], b"").unwrap_err();
        assert!(told.starts_with("x-message-prority: there is no such header"), "{told}");
        assert!(told.contains(MESSAGE_PRIORITY), "{told}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_reader_panic(bytes in proptest::collection::vec(32_u8..=255, 0..200)) {
            fuzz_headers(&bytes);
        }

        #[test]
        fn every_text_of_a_header_reads_back(text in "(?s).{1,80}") {
            let sent = shared::api::client::encode(&text);
            let post = posted(&[(MESSAGE_CORRELATION_ID, &sent)], b"").unwrap();
            prop_assert_eq!(post.correlation_id.unwrap().to_string(), text);
        }

        #[test]
        fn every_property_reads_back(text in "(?s).{0,80}", number: i64, flag: bool) {
            let json = serde_json::json!({ "text": text, "number": number, "flag": flag }).to_string();
            // JSON escapes what a header may not have.
            let Ok(value) = HeaderValue::from_bytes(json.as_bytes()) else { return Ok(()) };
            let headers = HeaderMap::from_iter([(HeaderName::from_static(MESSAGE_PROPERTIES), value)]);
            let properties = properties_of(&headers).unwrap();
            prop_assert_eq!(properties.text("text"), Some(text));
            prop_assert_eq!(properties.number("number"), Some(number));
            prop_assert_eq!(properties.flag("flag"), Some(flag));
        }
    }
}
