//! The marshalled map of simple values that carries a message's properties, a map message's body
//! and the greeting's settings. Knows nothing of messages. What is read and written again has the
//! same bytes: the order of the entries and the form of each value are kept. What was read takes a
//! small multiple of its bytes: maps and lists inside are looked through and stay as they are.
//!
//! Source: ActiveMQ's `MarshallingSupport.marshalPrimitiveMap`.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use super::fault::Fault;
use super::text::{self, Text};

/// How deep maps and lists may lie in each other.
const MAX_DEPTH: u8 = 16;

/// More entries than this has no map that somebody set by hand; a map message's body may, and is
/// nobody's to read here.
pub const MOST_ENTRIES: usize = 65_536;

/// Bytes of the shortest entry: two of its name's length, and a null.
const SHORTEST: usize = 3;

/// Java writes strings of fewer characters than this with two bytes of length, others with four.
const SHORT_TEXT: usize = 8_191;

/// A value of a property.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Java's null.
    Null,
    /// `boolean`.
    Boolean(bool),
    /// `byte`.
    Byte(i8),
    /// `char`: one UTF-16 unit.
    Char(u16),
    /// `short`.
    Short(i16),
    /// `int`.
    Integer(i32),
    /// `long`.
    Long(i64),
    /// `double`.
    Double(f64),
    /// `float`.
    Float(f32),
    /// A string with two bytes of length.
    String(Text),
    /// A string with four bytes of length, as modified UTF-8.
    BigString(Bytes),
    /// Bytes; map messages only.
    Bytes(Bytes),
    /// A map, as it is marshalled.
    Map(Bytes),
    /// A list, as it is marshalled.
    List(Bytes),
}

/// Named values in the order in which they were written.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Properties {
    entries: Vec<(Text, Value)>,
}

impl Properties {
    /// Reads a marshalled map; its strings are slices of `bytes`.
    ///
    /// # Errors
    /// Bytes that are no such map, or that go on after its end; more than [`MOST_ENTRIES`].
    pub fn read(bytes: &Bytes) -> Result<Self, Fault> {
        let mut rest = bytes.clone();
        let number = read_number(&mut rest)?;
        if number > MOST_ENTRIES {
            return Err(Fault::TooMany { number, most: MOST_ENTRIES });
        }
        // No more capacity on a stranger's word than as many entries could fill.
        let mut entries = Vec::with_capacity(number.min(rest.len() / SHORTEST));
        for _ in 0..number {
            entries.push((read_text(&mut rest)?, read_value(&mut rest, 0)?));
        }
        if rest.is_empty() { Ok(Self { entries }) } else { Err(Fault::Trailing(rest.len())) }
    }

    /// The marshalled map.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        let mut bytes = BytesMut::new();
        bytes.put_i32(counted(self.entries.len()));
        for (name, value) in &self.entries {
            name.put(&mut bytes);
            write_value(value, &mut bytes);
        }
        bytes.freeze()
    }

    /// The value of that name.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&Value> {
        let name = text::encode(name);
        self.entries.iter().find(|(known, _)| known.as_bytes() == name).map(|(_, value)| value)
    }

    /// The value of that name where it is a string of either form.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<String> {
        match self.value(name)? {
            Value::String(text) => Some(text.to_string()),
            Value::BigString(bytes) => Some(text::decode(bytes)),
            _ => None,
        }
    }

    /// The value of that name where it is a whole number of any width.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<i64> {
        match *self.value(name)? {
            Value::Byte(number) => Some(i64::from(number)),
            Value::Short(number) => Some(i64::from(number)),
            Value::Integer(number) => Some(i64::from(number)),
            Value::Long(number) => Some(number),
            _ => None,
        }
    }

    /// The value of that name where it is a truth value.
    #[must_use]
    pub fn flag(&self, name: &str) -> Option<bool> {
        match self.value(name)? {
            Value::Boolean(flag) => Some(*flag),
            _ => None,
        }
    }

    /// Sets a value: in its place if the name is there, else at the end.
    pub fn set(&mut self, name: Text, value: Value) {
        match self.entries.iter_mut().find(|(known, _)| *known == name) {
            Some((_, place)) => *place = value,
            None => self.entries.push((name, value)),
        }
    }

    /// Takes a value away.
    pub fn remove(&mut self, name: &str) {
        let name = text::encode(name);
        self.entries.retain(|(known, _)| known.as_bytes() != name);
    }

    /// All entries in order.
    pub fn iter(&self) -> impl Iterator<Item = &(Text, Value)> {
        self.entries.iter()
    }
}

impl Value {
    /// A string in the form that Java gives one of its length.
    #[must_use]
    pub fn string(string: &str) -> Self {
        let bytes = Bytes::from(text::encode(string));
        // Java counts characters of UTF-16 here.
        if string.encode_utf16().count() < SHORT_TEXT {
            Text::from_bytes(bytes.clone()).map_or(Value::BigString(bytes), Value::String)
        } else {
            Value::BigString(bytes)
        }
    }
}

/// How many entries or elements follow, or bytes. −1 is how Java writes a map that is null; it
/// is none here, where a presence byte says so.
fn read_number(bytes: &mut Bytes) -> Result<usize, Fault> {
    let number = bytes.try_get_i32().map_err(|_| Fault::Truncated)?;
    usize::try_from(number).map_err(|_| Fault::Length(number))
}

/// A map or list inside: looked through, and left as it is.
fn read_nested(bytes: &mut Bytes, element: impl Fn(&mut Bytes) -> Result<(), Fault>) -> Result<Bytes, Fault> {
    let whole = bytes.clone();
    for _ in 0..read_number(bytes)? {
        element(bytes)?;
    }
    Ok(whole.slice(..whole.len() - bytes.len()))
}

fn read_value(bytes: &mut Bytes, depth: u8) -> Result<Value, Fault> {
    let short = |_| Fault::Truncated;
    let code = bytes.try_get_u8().map_err(short)?;
    Ok(match code {
        0 => Value::Null,
        1 => match bytes.try_get_u8().map_err(short)? {
            0 => Value::Boolean(false),
            1 => Value::Boolean(true),
            other => return Err(Fault::Boolean(other)),
        },
        2 => Value::Byte(bytes.try_get_i8().map_err(short)?),
        3 => Value::Char(bytes.try_get_u16().map_err(short)?),
        4 => Value::Short(bytes.try_get_i16().map_err(short)?),
        5 => Value::Integer(bytes.try_get_i32().map_err(short)?),
        6 => Value::Long(bytes.try_get_i64().map_err(short)?),
        7 => Value::Double(bytes.try_get_f64().map_err(short)?),
        8 => Value::Float(bytes.try_get_f32().map_err(short)?),
        9 => Value::String(read_text(bytes)?),
        10 => Value::Bytes(read_bytes(bytes)?),
        11 | 12 if depth == MAX_DEPTH => return Err(Fault::TooDeep),
        11 => Value::Map(read_nested(bytes, |bytes| {
            read_text(bytes)?;
            read_value(bytes, depth + 1).map(drop)
        })?),
        12 => Value::List(read_nested(bytes, |bytes| read_value(bytes, depth + 1).map(drop))?),
        13 => Value::BigString(read_bytes(bytes)?),
        other => return Err(Fault::UnknownValue(other)),
    })
}

fn read_text(bytes: &mut Bytes) -> Result<Text, Fault> {
    Text::take(bytes).ok_or(Fault::Truncated)
}

fn read_bytes(bytes: &mut Bytes) -> Result<Bytes, Fault> {
    let length = read_number(bytes)?;
    if length > bytes.len() { Err(Fault::Truncated) } else { Ok(bytes.split_to(length)) }
}

fn write_value(value: &Value, bytes: &mut BytesMut) {
    bytes.put_u8(value.code());
    match value {
        Value::Null => {}
        Value::Boolean(flag) => bytes.put_u8(u8::from(*flag)),
        Value::Byte(number) => bytes.put_i8(*number),
        Value::Char(unit) => bytes.put_u16(*unit),
        Value::Short(number) => bytes.put_i16(*number),
        Value::Integer(number) => bytes.put_i32(*number),
        Value::Long(number) => bytes.put_i64(*number),
        Value::Double(number) => bytes.put_f64(*number),
        Value::Float(number) => bytes.put_f32(*number),
        Value::String(text) => text.put(bytes),
        Value::BigString(sequence) | Value::Bytes(sequence) => {
            bytes.put_i32(counted(sequence.len()));
            bytes.put_slice(sequence);
        }
        Value::Map(marshalled) | Value::List(marshalled) => bytes.put_slice(marshalled),
    }
}

impl Value {
    fn code(&self) -> u8 {
        match self {
            Value::Null => 0,
            Value::Boolean(_) => 1,
            Value::Byte(_) => 2,
            Value::Char(_) => 3,
            Value::Short(_) => 4,
            Value::Integer(_) => 5,
            Value::Long(_) => 6,
            Value::Double(_) => 7,
            Value::Float(_) => 8,
            Value::String(_) => 9,
            Value::Bytes(_) => 10,
            Value::Map(_) => 11,
            Value::List(_) => 12,
            Value::BigString(_) => 13,
        }
    }
}

/// Four bytes of a length. More than they count was never in memory: frames are shorter.
fn counted(length: usize) -> i32 {
    debug_assert!(i32::try_from(length).is_ok(), "longer than any frame");
    i32::try_from(length).unwrap_or(i32::MAX)
}
