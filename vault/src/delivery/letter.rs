//! A queue's message as an HTTP request's headers and body. Pure; knows neither where it goes nor
//! how it is signed. What HTTP cannot carry is refused with words for the dead letter.
//!
//! The id is made of the queue's name and the message's: the same after any restart, move or
//! replay, and it has no full stop, which Standard Webhooks forbids in ids.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use sha2::{Digest as _, Sha256};

use crate::openwire::properties::{Properties, Value};
use crate::openwire::{Body, BodyError, DecodeError, Message};
use crate::queue::message::Message as Kept;

/// Largest body that is sent, in bytes, decompressed.
const MOST_BODY: usize = 64 << 20;
/// Properties beyond these are left off.
const MOST_PROPERTIES: usize = 64;
/// A longer name or value is left off, in bytes.
const LONGEST_NAME: usize = 64;
const LONGEST_VALUE: usize = 1024;
/// By these a sender names its own content type; Java's property names have no dash.
const OWN_TYPE: [&str; 2] = ["content_type", "contentType"];
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const BYTES: HeaderValue = HeaderValue::from_static("application/octet-stream");
/// What a header's value cannot carry, and the sign that tells so.
const UNSAFE: &AsciiSet = &CONTROLS.add(b'%');

/// What is sent for one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// The header `webhook-id`.
    pub id: String,
    /// Headers about the content.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

/// Why a message cannot be sent to a handler; its sender must send another.
#[derive(Debug, thiserror::Error)]
pub enum LetterError {
    /// It was damaged, on disk or by its sender.
    #[error("what lies in the queue is no message: {0}")]
    Damaged(#[from] DecodeError),
    /// A map, a stream, an object; or a broken or too long body.
    #[error("{0}; send handlers text or bytes")]
    Body(#[from] BodyError),
}

impl Letter {
    /// At most so many bytes of body are sent for a message, as far as can be told without unpacking it.
    #[must_use]
    pub fn room(kept: &Kept) -> usize {
        let is_compressed = Message::from_bytes(kept.body.clone()).is_ok_and(|message| message.compressed);
        if is_compressed { MOST_BODY } else { kept.body.len() }
    }

    /// What is sent for a message of that queue.
    ///
    /// # Errors
    /// See [`LetterError`].
    pub fn of(queue: &str, kept: &Kept) -> Result<Self, LetterError> {
        let message = Message::from_bytes(kept.body.clone())?;
        let (own, body) = match message.body(MOST_BODY)? {
            Body::Empty => (None, Bytes::new()),
            Body::Text(text) => (Some(TEXT), Bytes::from(text)),
            Body::Bytes(bytes) => (Some(BYTES), bytes),
        };
        let mut headers = HeaderMap::new();
        if let Some(own) = own {
            headers.insert(CONTENT_TYPE, own);
        }
        let mut set = |name: &'static str, text: Option<String>| {
            if let Some(value) = text.as_deref().and_then(value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        };
        set("x-message-id", Some(kept.name.to_string()));
        set("x-message-queue", Some(queue.to_owned()));
        set("x-message-timestamp", (message.timestamp != 0).then(|| message.timestamp.to_string()));
        set("x-message-type", message.jms_type.map(|text| text.to_string()));
        set("x-message-correlation-id", message.correlation_id.map(|text| text.to_string()));
        set("x-message-group", message.group_id.map(|text| text.to_string()));
        // Properties that cannot be read are nobody's headers; the body is whole all the same.
        if let Some(Ok(properties)) = message.properties.as_ref().map(Properties::read) {
            add_properties(&mut headers, &properties, body.is_empty());
        }
        Ok(Self { id: id(queue, &kept.name), headers, body })
    }
}

fn id(queue: &str, name: &str) -> String {
    let digest = Sha256::new().chain_update(queue).chain_update([0]).chain_update(name).finalize();
    digest[..16].iter().fold("msg_".to_owned(), |id, byte| format!("{id}{byte:02x}"))
}

fn add_properties(headers: &mut HeaderMap, properties: &Properties, is_empty: bool) {
    let own = OWN_TYPE.iter().find_map(|name| properties.text(name));
    if let (Some(own), false) = (own.and_then(|own| HeaderValue::from_str(&own).ok()), is_empty) {
        headers.insert(CONTENT_TYPE, own);
    }
    for (name, value) in properties.iter().take(MOST_PROPERTIES) {
        if let (Some(name), Some(value)) =
            (property(&name.to_string()), self::text(value).as_deref().and_then(self::value))
        {
            headers.insert(name, value);
        }
    }
}

/// Java's letters are all a header's name may have, but for case: HTTP has none.
fn property(name: &str) -> Option<HeaderName> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if name.is_empty() || name.len() > LONGEST_NAME || !name.bytes().all(plain) {
        return None;
    }
    HeaderName::try_from(format!("x-message-property-{}", name.to_ascii_lowercase())).ok()
}

/// As header: what is not visible ASCII as `%` and hexadecimal of its UTF-8.
fn value(text: &str) -> Option<HeaderValue> {
    let safe = utf8_percent_encode(text, UNSAFE).to_string();
    (safe.len() <= LONGEST_VALUE).then(|| HeaderValue::try_from(safe).ok()).flatten()
}

fn text(value: &Value) -> Option<String> {
    Some(match value {
        Value::Boolean(flag) => flag.to_string(),
        Value::Byte(number) => number.to_string(),
        Value::Char(unit) => char::from_u32(u32::from(*unit))?.to_string(),
        Value::Short(number) => number.to_string(),
        Value::Integer(number) => number.to_string(),
        Value::Long(number) => number.to_string(),
        Value::Double(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::String(text) => text.to_string(),
        Value::Null | Value::BigString(_) | Value::Bytes(_) | Value::Map(_) | Value::List(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::openwire::{Destination, MessageKind, ProducerId, Text};

    fn message() -> Message {
        let producer = ProducerId { connection: Text::shortened("ID:host.example-1"), value: 1, session: 1 };
        Message::new(MessageKind::Plain, producer.message(1), Destination::queue(Text::shortened("orders")))
    }

    fn kept(message: &Message) -> Kept {
        let body = message.to_bytes().unwrap();
        Kept { name: "ID:host.example-1:1:1:1".into(), at: 1, expiration: 0, marks: None, origin: None, body }
    }

    fn letter(message: &Message) -> Letter {
        Letter::of("orders", &kept(message)).unwrap()
    }

    #[test]
    fn a_text_goes_out_as_utf_8_and_bytes_as_they_are() {
        let mut message = message();
        message.set_text("Köln 🚀\0");
        let sent = letter(&message);
        assert_eq!(sent.body, "Köln 🚀\0".as_bytes());
        assert_eq!(sent.headers[CONTENT_TYPE], "text/plain; charset=utf-8");
        message.set_bytes(Bytes::from_static(&[0, 255]));
        let sent = letter(&message);
        assert_eq!((&sent.body[..], &sent.headers[CONTENT_TYPE]), (&[0, 255][..], &BYTES));
        assert!(!letter(&self::message()).headers.contains_key(CONTENT_TYPE), "of nothing");
    }

    #[test]
    fn a_senders_own_content_type_counts_and_its_properties_are_headers() {
        let mut message = message();
        message.set_text("{}");
        let mut properties = Properties::default();
        properties.set(Text::shortened("content_type"), Value::string("application/json"));
        properties.set(Text::shortened("Tenant"), Value::string("Köln 100%\r\nx: y"));
        properties.set(Text::shortened("count"), Value::Long(-7));
        properties.set(Text::shortened("no header"), Value::Long(1));
        properties.set(Text::shortened("long"), Value::string(&"x".repeat(2000)));
        message.properties = Some(properties.to_bytes());
        message.correlation_id = Some(Text::shortened("c-1"));
        let sent = letter(&message);
        assert_eq!(sent.headers[CONTENT_TYPE], "application/json");
        assert_eq!(sent.headers["x-message-property-tenant"], "K%C3%B6ln 100%25%0D%0Ax: y");
        assert_eq!(sent.headers["x-message-property-count"], "-7");
        assert_eq!(sent.headers["x-message-correlation-id"], "c-1");
        assert_eq!(sent.headers["x-message-id"], "ID:host.example-1:1:1:1");
        assert!(!sent.headers.keys().any(|name| name.as_str().contains("long")), "{:?}", sent.headers);
    }

    #[test]
    fn as_much_room_is_held_for_a_compressed_body_as_any_may_take() {
        let mut message = message();
        message.set_text(&"x".repeat(10_000));
        assert!((10_000..12_000).contains(&Letter::room(&kept(&message))));
        message.compressed = true;
        assert_eq!(Letter::room(&kept(&message)), MOST_BODY);
    }

    #[test]
    fn the_id_is_the_messages_own_and_has_no_full_stop() {
        let sent = letter(&message());
        assert_eq!(sent.id, letter(&message()).id);
        assert!(sent.id.starts_with("msg_") && sent.id.len() == 36 && !sent.id.contains('.'), "{}", sent.id);
        let other = Letter::of("invoices", &kept(&message())).unwrap();
        assert_ne!(other.id, sent.id, "another queue's is another event");
    }

    #[test]
    fn what_only_java_reads_is_refused_with_words() {
        let mut message = message();
        message.kind = MessageKind::Map;
        message.content = Some(Bytes::from_static(&[0, 0, 0, 0]));
        let error = Letter::of("orders", &kept(&message)).unwrap_err().to_string();
        assert!(error.ends_with("send handlers text or bytes"), "{error}");
    }

    proptest! {
        #[test]
        fn no_bytes_in_a_queue_do_harm(body in proptest::collection::vec(any::<u8>(), 0..200), properties in proptest::collection::vec(any::<u8>(), 0..100)) {
            let kept = Kept { body: body.into(), ..kept(&message()) };
            drop(Letter::of("orders", &kept));
            let mut strange = message();
            strange.set_text("x");
            strange.properties = Some(properties.into());
            prop_assert_eq!(letter(&strange).body, "x");
        }

        #[test]
        fn any_property_becomes_a_header_or_none(name in any::<String>(), said in any::<String>()) {
            let mut message = message();
            let mut properties = Properties::default();
            properties.set(Text::shortened(&name), Value::string(&said));
            message.properties = Some(properties.to_bytes());
            prop_assert!(letter(&message).headers.len() >= 2);
        }
    }
}
