//! Letters for whoever looks whether what arrives is what was sent: one of every type, with every
//! header and property that an application sets. Sends none.

use std::collections::BTreeMap;

use super::{Body, Letter, Value};

/// One value of every type that a property has. The client reads the strings of properties lazily,
/// and then takes modified UTF-8 for plain: NUL and what lies beyond the first plane do not
/// survive there, whoever carries them.
#[must_use]
pub fn values() -> BTreeMap<String, Value> {
    let values = [
        ("boolean", Value::Boolean(true)),
        ("byte", Value::Byte(i8::MIN)),
        ("short", Value::Short(i16::MIN)),
        ("int", Value::Int(i32::MIN)),
        ("long", Value::Long(i64::MIN)),
        ("float", Value::Float(-0.1)),
        ("double", Value::Double(f64::MIN_POSITIVE)),
        ("string", Value::String("Grüße\t\u{20ac} \"quoted\"".to_owned())),
        ("empty", Value::String(String::new())),
        ("null", Value::Null),
        ("list", Value::List(vec![Value::Int(1), Value::String("two".to_owned())])),
    ];
    values.map(|(name, value)| (name.to_owned(), value)).into()
}

/// A letter of every type, with every header and property that an application can set but the
/// group's.
#[must_use]
pub fn letters() -> Vec<Letter> {
    let mut content = values();
    content.insert("char".to_owned(), Value::Char('ß'));
    content.insert("string".to_owned(), Value::String("\u{0} \u{1f600}".to_owned()));
    content.insert("bytes".to_owned(), Value::Bytes(vec![0, 127, 128, 255]));
    let mut streamed: Vec<_> = content.values().cloned().collect();
    // Only maps hold lists.
    streamed.retain(|value| !matches!(value, Value::List(_)));
    let bodies = [
        Body::Plain,
        Body::Text(Some("Ein Brief \u{20ac}".to_owned())),
        Body::Text(None),
        Body::Bytes((0..=255).collect()),
        Body::Filled(200_000),
        Body::Map(content.clone()),
        Body::Stream(streamed),
        Body::Object(Value::Map(content)),
    ];
    let letter = |body| {
        let mut letter = Letter::new(body).reply_to("queue://answers");
        letter.correlation_id = Some("order-17".to_owned());
        letter.kind = Some("invoice".to_owned());
        letter.properties = values();
        letter
    };
    bodies.map(letter).into()
}
