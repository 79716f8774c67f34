//! A small file of this project's own on a file server, beside the objects: sealed so that
//! only a vault can have written it, and in two slots so that a torn write leaves the other.
//! Knows bytes and names; not what a note says, nor how it gets to a file server.
//!
//! ```text
//! vault-note 1 <kind> <place> <vault> <generation>\n
//! <MAC, 32 bytes> <payload>
//! ```
//!
//! The MAC is BLAKE3's keyed hash over the first line and the payload, under a key that
//! BLAKE3's `derive_key` makes of the active age identity: both vaults hold that, and nobody
//! on a file server does. A signature would give no more, since only vaults check it. Place and
//! vault stand under the MAC, so that a note which is carried elsewhere says nothing there. An
//! old note put back is as good as new to the MAC; the catalog's generation tells it.
//!
//! Each vault writes notes under its own name alone, so that neither needs the other's leave.

use age::secrecy::ExposeSecret;

/// Most bytes of a note.
pub const MAX_NOTE: usize = 4 << 20;
/// Longest name of a note.
pub const MAX_NOTE_NAME: usize = 100;

/// Slots of a note; the valid one with the highest generation counts.
pub const SLOTS: [usize; 2] = [0, 1];

const CONTEXT: &str = "vault 2026-11 note on a file server";
const START: &str = "vault-note 1";
const MAC: usize = 32;
/// The first line is shorter, whatever stands in it.
const MAX_LINE: usize = 256;

/// Is this a name for a note: a plain file name that no kind of file server reads otherwise?
#[must_use]
pub fn is_note_name(name: &str) -> bool {
    (1..=MAX_NOTE_NAME).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// The key under which notes are sealed.
#[derive(Clone)]
pub struct NoteKey([u8; 32]);

impl NoteKey {
    /// The key that this age identity gives.
    #[must_use]
    pub fn of(identity: &age::x25519::Identity) -> Self {
        Self(blake3::derive_key(CONTEXT, identity.to_string().expose_secret().as_bytes()))
    }
}

/// Which note: what it is about, on which place, by whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Title {
    /// What it is about; part of its name.
    pub kind: String,
    /// The id of the place it lies on.
    pub place: String,
    /// The vault that wrote it.
    pub vault: String,
}

impl Title {
    /// The note's file name in a slot.
    #[must_use]
    pub fn name(&self, slot: usize) -> String {
        format!("{}.{}.{slot}", self.kind, self.vault)
    }

    /// The note's bytes.
    #[must_use]
    pub fn seal(&self, key: &NoteKey, generation: u64, payload: &[u8]) -> Vec<u8> {
        let line = format!("{START} {} {} {} {generation}\n", self.kind, self.place, self.vault);
        let mac = mac(key, line.as_bytes(), payload);
        [line.as_bytes(), &mac, payload].concat()
    }

    /// The generation that a note's first line claims, whether or not a key of ours opens it.
    #[must_use]
    pub fn claims(&self, bytes: &[u8]) -> Option<u64> {
        let end = bytes.iter().take(MAX_LINE).position(|byte| *byte == b'\n')?;
        self.generation(&bytes[..end])
    }

    fn generation(&self, line: &[u8]) -> Option<u64> {
        let words = std::str::from_utf8(line).ok()?.trim_end();
        let start = format!("{START} {} {} {} ", self.kind, self.place, self.vault);
        words.strip_prefix(&start)?.parse().ok()
    }

    /// The generation and payload of a note's bytes; `None` if this is not that note, whole and
    /// by a vault with this key.
    #[must_use]
    pub fn open<'b>(&self, key: &NoteKey, bytes: &'b [u8]) -> Option<(u64, &'b [u8])> {
        let end = bytes.iter().take(MAX_LINE).position(|byte| *byte == b'\n')? + 1;
        let (line, rest) = bytes.split_at(end);
        let (found, payload) = rest.split_at_checked(MAC)?;
        let found = blake3::Hash::from_bytes(found.try_into().ok()?);
        // `Hash` compares in constant time.
        if found != blake3::Hash::from_bytes(mac(key, line, payload)) {
            return None;
        }
        Some((self.generation(line)?, payload))
    }
}

fn mac(key: &NoteKey, line: &[u8], payload: &[u8]) -> [u8; MAC] {
    let mut hasher = blake3::Hasher::new_keyed(&key.0);
    hasher.update(line).update(payload);
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::any;
    use proptest::{prop_assert, prop_assert_eq, proptest};

    use super::*;

    fn title() -> Title {
        let [kind, place, vault] = ["generation", "0123", "vault-a"].map(str::to_owned);
        Title { kind, place, vault }
    }

    fn key(byte: u8) -> NoteKey {
        NoteKey([byte; 32])
    }

    #[test]
    fn a_note_opens_only_with_its_key_on_its_place_and_under_its_vault() {
        let note = title().seal(&key(1), 7, b"payload");
        assert_eq!(title().open(&key(1), &note), Some((7, &b"payload"[..])));
        assert_eq!(title().open(&key(2), &note), None);
        assert_eq!((title().claims(&note), title().claims(b"x\n")), (Some(7), None));
        assert_eq!(Title { place: "4567".to_owned(), ..title() }.open(&key(1), &note), None);
        assert_eq!(Title { vault: "vault-b".to_owned(), ..title() }.open(&key(1), &note), None);
        assert_eq!(Title { kind: "inventory".to_owned(), ..title() }.open(&key(1), &note), None);
    }

    #[test]
    fn both_vaults_make_the_same_key_of_one_identity() {
        let identity = age::x25519::Identity::generate();
        let note = title().seal(&NoteKey::of(&identity), 1, b"");
        assert!(title().open(&NoteKey::of(&identity.clone()), &note).is_some());
        assert!(title().open(&NoteKey::of(&age::x25519::Identity::generate()), &note).is_none());
    }

    #[test]
    fn every_name_of_a_note_is_one() {
        let longest = Title { kind: "deleted-ff".to_owned(), vault: "v".repeat(64), ..title() };
        assert!(is_note_name(&longest.name(1)));
        for bad in ["", ".hidden", "a/b", "..", "a b", "é", &"n".repeat(101)] {
            assert!(!is_note_name(bad), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_damage_passes_and_no_bytes_panic(
            payload in proptest::collection::vec(any::<u8>(), 0..200),
            at in any::<proptest::sample::Index>(),
            flip in 1_u8..=255,
            noise in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let note = title().seal(&key(1), 3, &payload);
            prop_assert_eq!(title().open(&key(1), &note), Some((3, &payload[..])));
            let mut bad = note.clone();
            bad[at.index(note.len())] ^= flip;
            prop_assert!(title().open(&key(1), &bad).is_none());
            prop_assert!(title().open(&key(1), &note[..at.index(note.len())]).is_none());
            prop_assert!(title().open(&key(1), &noise).is_none());
        }
    }
}
