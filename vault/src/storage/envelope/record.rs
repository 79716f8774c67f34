//! A record's plaintext: `# {json}`, the one-off identity's line, and a comment that pads it
//! to length. As a whole it is an identity file, so `age -d -i` takes it as it is.

use serde::{Deserialize, Serialize};

use super::EnvelopeError;
use crate::storage::object::{Metadata, OneOff};

/// No record's plaintext is longer.
pub const MAX_RECORD: usize = 4032;
/// Bytes of a label that a record always holds: escaped in JSON to six times as many, they still
/// fit beside the longest of everything else. A longer label is whole in the body.
pub const RECORD_LABEL: usize = 384;
/// Stands in a record for the rest of a label. Three bytes: a label that was cut is thus longer
/// than [`RECORD_LABEL`], and only such a one.
const CUT: char = '…';

/// What a slot says of its object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// What is known of the object. A label of more than [`RECORD_LABEL`] bytes is cut where the
    /// record comes out of a slot: [`super::Opened::label`] has the whole one.
    pub metadata: Metadata,
    /// What decrypts its body.
    pub identity: OneOff,
}

/// The JSON in it. `v` allows for later layouts.
#[derive(Serialize, Deserialize)]
struct Json {
    v: u32,
    /// To which keys the record is sealed, as [`super::seal_name`] writes it; records of
    /// earlier programs do not say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    to: String,
    #[serde(flatten)]
    metadata: Metadata,
}

/// Reads a record's plaintext.
///
/// # Errors
/// Anything that `write_record` would not have written.
pub fn parse_record(plaintext: &[u8]) -> Result<Record, EnvelopeError> {
    parse_sealed_record(plaintext).map(|(record, _)| record)
}

/// The same, and to which keys the record says it is sealed.
pub(super) fn parse_sealed_record(plaintext: &[u8]) -> Result<(Record, String), EnvelopeError> {
    let damaged = || EnvelopeError::Damaged("a record is not in its form");
    if plaintext.len() > MAX_RECORD {
        return Err(damaged());
    }
    let text = std::str::from_utf8(plaintext).map_err(|_| damaged())?;
    let mut lines = text.lines();
    let json = lines.next().and_then(|line| line.strip_prefix("# ")).ok_or_else(damaged)?;
    let json: Json = serde_json::from_str(json).map_err(|_| damaged())?;
    let identity = lines.next().ok_or_else(damaged)?;
    let padding_only = lines.all(|line| line.starts_with('#'));
    if json.v != 1 || !padding_only || identity.parse::<age::x25519::Identity>().is_err() {
        return Err(damaged());
    }
    Ok((Record { metadata: json.metadata, identity: OneOff(identity.to_owned()) }, json.to))
}

/// Writes a record's plaintext in exactly `room` bytes.
pub(super) fn write_record(record: &Record, to: String, room: usize) -> Result<Vec<u8>, EnvelopeError> {
    let mut metadata = record.metadata.clone();
    cut(&mut metadata.label);
    let json = serde_json::to_string(&Json { v: 1, to, metadata }).map_err(|_| EnvelopeError::TooLong)?;
    let mut text = format!("# {json}\n{}\n", record.identity.0);
    // The last line is `#…#\n`, at least two bytes.
    let padding =
        room.checked_sub(text.len() + 1).filter(|count| *count > 0).ok_or(EnvelopeError::TooLong)?;
    text.extend(std::iter::repeat_n('#', padding));
    text.push('\n');
    Ok(text.into_bytes())
}

/// Shortens a long label; one that was cut stays as it is.
fn cut(label: &mut String) {
    if label.len() > RECORD_LABEL {
        let end = (0..=RECORD_LABEL).rev().find(|at| label.is_char_boundary(*at)).unwrap_or_default();
        label.truncate(end);
        label.push(CUT);
    }
}
