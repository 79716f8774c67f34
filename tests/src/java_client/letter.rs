//! A message as an application writes it and as it sees it: body, headers, typed properties. Tells
//! in what two of them differ; whether that is right is for others to say.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What is to be sent, without what the sender's call and the client itself add.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Letter {
    /// Its body, and with that its type.
    pub body: Body,
    /// `JMSCorrelationID`.
    pub correlation_id: Option<String>,
    /// `JMSReplyTo`: a destination as [`super::Session`] takes it.
    pub reply_to: Option<String>,
    /// `JMSType`.
    pub kind: Option<String>,
    /// `JMSXGroupID`.
    pub group: Option<String>,
    /// `JMSXGroupSeq`; −1 closes the group.
    pub group_sequence: i32,
    /// The application's own, and those that the broker reads, as `AMQ_SCHEDULED_DELAY`.
    pub properties: BTreeMap<String, Value>,
}

/// A body; its kind is the message's type.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Body {
    /// A `Message` without a body.
    Plain,
    /// A `TextMessage`, which may hold no text at all.
    Text(Option<String>),
    /// A `BytesMessage`.
    Bytes(#[serde(with = "hexadecimal")] Vec<u8>),
    /// A `MapMessage`.
    Map(BTreeMap<String, Value>),
    /// A `StreamMessage`.
    Stream(Vec<Value>),
    /// An `ObjectMessage` that holds this value.
    Object(Value),
    /// To be sent: a `BytesMessage` of so many bytes that do not compress, the same ones each time.
    Filled(u32),
    /// Received: so many bytes, too many to be shown; see [`Received::digest`].
    Large(u64),
}

/// A value with its Java type.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "Java's types, by their names")]
pub enum Value {
    Null,
    Boolean(bool),
    Byte(i8),
    Short(i16),
    Char(char),
    Int(i32),
    Long(i64),
    #[serde(with = "bits_of_float")]
    Float(f32),
    #[serde(with = "bits_of_double")]
    Double(f64),
    String(String),
    Bytes(#[serde(with = "hexadecimal")] Vec<u8>),
    List(Vec<Value>),
    Map(BTreeMap<String, Value>),
}

/// All that an application sees of a message.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Received {
    /// `JMSMessageID`.
    pub id: String,
    /// `JMSDestination`, as `queue://orders`.
    pub destination: String,
    /// `JMSDeliveryMode`.
    pub persistent: bool,
    /// `JMSPriority`.
    pub priority: u8,
    /// `JMSTimestamp`, milliseconds since 1970.
    pub timestamp: i64,
    /// `JMSExpiration`, milliseconds since 1970; 0: never.
    pub expiration: i64,
    /// `JMSCorrelationID`.
    pub correlation_id: Option<String>,
    /// `JMSReplyTo`, as [`Self::destination`].
    pub reply_to: Option<String>,
    /// `JMSType`.
    pub kind: Option<String>,
    /// `JMSXGroupID`.
    pub group: Option<String>,
    /// `JMSXGroupSeq`.
    pub group_sequence: i32,
    /// `JMSRedelivered`.
    pub redelivered: bool,
    /// `JMSXDeliveryCount`; the first time 1.
    pub delivery_count: u32,
    /// Did the body travel compressed?
    pub compressed: bool,
    /// The brokers that it has come through, by their ids.
    pub broker_path: Vec<String>,
    /// Without the `JMSX…` ones above.
    pub properties: BTreeMap<String, Value>,
    /// Its body.
    pub body: Body,
    /// Its body's length in bytes: of the text in UTF-8, of the bytes, of the values as they are told.
    pub length: u64,
    /// SHA-256 of the same, hexadecimal.
    pub digest: String,
}

impl Letter {
    /// Nothing but a body.
    #[must_use]
    pub fn new(body: Body) -> Self {
        Self {
            body,
            correlation_id: None,
            reply_to: None,
            kind: None,
            group: None,
            group_sequence: 0,
            properties: BTreeMap::new(),
        }
    }

    /// A `TextMessage`.
    #[must_use]
    pub fn text(text: &str) -> Self {
        Self::new(Body::Text(Some(text.to_owned())))
    }

    /// The same with one more property.
    #[must_use]
    pub fn property(mut self, name: &str, value: Value) -> Self {
        self.properties.insert(name.to_owned(), value);
        self
    }

    /// The same, to be answered there.
    #[must_use]
    pub fn reply_to(mut self, destination: &str) -> Self {
        self.reply_to = Some(destination.to_owned());
        self
    }

    /// The same, in a group.
    #[must_use]
    pub fn group(mut self, name: &str, sequence: i32) -> Self {
        (self.group, self.group_sequence) = (Some(name.to_owned()), sequence);
        self
    }
}

impl Received {
    /// The text of a `TextMessage`.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        match &self.body {
            Body::Text(text) => text.as_deref(),
            _ => None,
        }
    }

    /// In what another one differs from this one, line by line; not in what each delivery has of
    /// its own: the way it came, how often it was delivered.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut found = Vec::new();
        let mut compare = |what: &str, one: String, two: String| {
            if one != two {
                found.push(format!("{what}: {one}, then {two}"));
            }
        };
        macro_rules! each {
            ($($field:ident)*) => {
                $(compare(stringify!($field), format!("{:?}", self.$field), format!("{:?}", other.$field));)*
            };
        }
        each!(id destination persistent priority timestamp expiration correlation_id reply_to kind group
            group_sequence compressed body length digest);
        let names = self.properties.keys().chain(other.properties.keys());
        for name in names.collect::<std::collections::BTreeSet<_>>() {
            let value = |of: &Self| format!("{:?}", of.properties.get(name));
            compare(name, value(self), value(other));
        }
        found
    }
}

/// Bytes as hexadecimal digits.
mod hexadecimal {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        to.serialize_str(&digits)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let digits = String::deserialize(from)?;
        let pairs = digits.as_bytes().chunks(2);
        let bytes = pairs.map(|pair| {
            let pair = std::str::from_utf8(pair).map_err(D::Error::custom)?;
            u8::from_str_radix(pair, 16).map_err(D::Error::custom)
        });
        bytes.collect()
    }
}

/// A `float` as its bits: nothing is rounded on the way.
mod bits_of_float {
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(number: &f32, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u32(number.to_bits())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f32, D::Error> {
        u32::deserialize(from).map(f32::from_bits)
    }
}

/// A `double` as its bits.
mod bits_of_double {
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(number: &f64, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(number.to_bits())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
        u64::deserialize(from).map(f64::from_bits)
    }
}
