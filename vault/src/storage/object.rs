//! What an object is: its id, what is known of it, and what became of it. Knows no place
//! where one could lie.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// BLAKE3 of a body's ciphertext: the object's name everywhere, 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ObjectId([u8; 32]);

impl ObjectId {
    /// The id of a body with this hash.
    #[must_use]
    pub const fn new(hash: [u8; 32]) -> Self {
        Self(hash)
    }

    /// The hash.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Its first byte: of all objects, about as many parts of 256 come before it.
    #[must_use]
    pub const fn first(&self) -> u8 {
        self.0[0]
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ObjectId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        parse_hex(text).map(Self).ok_or("an object's id is 64 lower-case hex digits")
    }
}

impl TryFrom<String> for ObjectId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, &'static str> {
        text.parse()
    }
}

impl From<ObjectId> for String {
    fn from(id: ObjectId) -> Self {
        id.to_string()
    }
}

fn parse_hex(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(bytes)
}

const fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// An object's one-off age identity, `AGE-SECRET-KEY-1…`. Never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OneOff(pub(super) String);

impl fmt::Debug for OneOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OneOff(…)")
    }
}

/// What is known of an object, as its record and the catalog hold it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// Who it belongs to.
    pub owner: String,
    /// The idempotency key of its upload.
    pub key: String,
    /// What its owner calls it; may be empty.
    pub label: String,
    /// Media type of the plaintext.
    pub media_type: String,
    /// Plaintext bytes.
    pub size: u64,
    /// RFC 3339, UTC; a label only.
    pub created: String,
    /// BLAKE3 of the plaintext, 64 hex digits.
    pub digest: String,
}

/// What became of an object. Two catalogs merge to the larger: later states win; between
/// stored and deleted, the one that was changed more often.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Intended: it may or may not lie on a file server.
    Pending,
    /// The intent came to nothing: on no file server.
    Dropped,
    /// Durable, acknowledged or about to be.
    Stored,
    /// Deleted; may be undeleted until it is purged.
    Deleted,
    /// Gone for ever: no vault can decrypt it any more.
    Purged,
}

/// What a catalog knows of one replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaState {
    /// Durable there.
    Stored,
    /// Should be there and is not yet.
    Owed,
    /// Was found damaged or missing there; to be replaced.
    Damaged,
    /// Should be gone from there and is not yet.
    RemovalOwed,
}

/// One object with its replicas, as the catalog holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its id.
    pub id: ObjectId,
    /// What is known of it.
    pub metadata: Metadata,
    /// What became of it.
    pub state: State,
    /// The vault that took the upload.
    pub origin: String,
    /// What decrypts the body; `None` once it is deleted.
    pub identity: Option<OneOff>,
    /// File server and state, by the server's name.
    pub replicas: Vec<(String, ReplicaState)>,
}

impl Entry {
    /// File servers that hold a replica.
    #[must_use]
    pub fn stored_on(&self) -> Vec<String> {
        self.servers(|state| state == ReplicaState::Stored)
    }

    /// File servers that are still owed one.
    #[must_use]
    pub fn owed_to(&self) -> Vec<String> {
        self.servers(|state| matches!(state, ReplicaState::Owed | ReplicaState::Damaged))
    }

    fn servers(&self, wanted: impl Fn(ReplicaState) -> bool) -> Vec<String> {
        self.replicas.iter().filter(|(_, state)| wanted(*state)).map(|(server, _)| server.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_one_spelling_only() {
        let text = "0123456789abcdef".repeat(4);
        assert_eq!(text.parse::<ObjectId>().unwrap().to_string(), text);
        for bad in ["", "00", &text.to_uppercase(), &text[1..], &format!("{text}0"), &"../".repeat(22)[..64]]
        {
            assert!(bad.parse::<ObjectId>().is_err(), "{bad}");
        }
    }
}
