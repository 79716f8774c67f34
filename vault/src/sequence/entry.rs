//! One line of the ledger: what was done to one number, chained by hash to the line before.
//! Pure. Knows how an entry is built and verified; not where it is kept or who may make one.
//!
//! The chain is SHA-256 over length-prefixed fields, so an auditor can recompute it from the
//! exported rows with nothing but a hash tool and this page:
//! `hash = SHA-256(previous ‖ index ‖ epoch ‖ life ‖ number ‖ at ‖ owner ‖ series ‖ key ‖ act ‖ text)`,
//! integers as 8 bytes big-endian (life: 16), texts as an 8-byte length and their UTF-8.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::digest::Digest;

/// Most entries one message or one commit carries.
pub const BATCH: usize = 512;

/// What an entry does to its number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "act", content = "text")]
pub enum Act {
    /// Gives it to the key.
    Reserve,
    /// A document with this hash uses it.
    Confirm(String),
    /// It is spoiled, for this reason.
    Void(String),
}

impl Act {
    /// The act's word and its text, as the journal's columns hold them.
    #[must_use]
    pub fn parts(&self) -> (&'static str, &str) {
        match self {
            Act::Reserve => ("reserve", ""),
            Act::Confirm(hash) => ("confirm", hash),
            Act::Void(reason) => ("void", reason),
        }
    }

    /// The reverse of [`Act::parts`].
    #[must_use]
    pub fn from_parts(word: &str, text: String) -> Option<Self> {
        match word {
            "reserve" => Some(Act::Reserve),
            "confirm" => Some(Act::Confirm(text)),
            "void" => Some(Act::Void(text)),
            _ => None,
        }
    }
}

/// An entry before it has its place in the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// Whom the series belongs to.
    pub owner: String,
    /// The series' name.
    pub series: String,
    /// The number.
    pub number: u64,
    /// The key that reserved it.
    pub key: String,
    /// What is done.
    pub act: Act,
    /// Milliseconds since 1970, UTC. A label only: nothing is decided by it.
    pub at: i64,
}

/// One line of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// From 1 upwards, without holes.
    pub index: u64,
    /// Whose rule it was made under; see [`super::protocol`].
    pub epoch: u64,
    /// The life of the process that made it.
    pub life: u128,
    /// See [`Draft`].
    pub owner: String,
    /// See [`Draft`].
    pub series: String,
    /// See [`Draft`].
    pub number: u64,
    /// See [`Draft`].
    pub key: String,
    /// See [`Draft`].
    #[serde(flatten)]
    pub act: Act,
    /// See [`Draft`].
    pub at: i64,
    /// The hash of the entry before; all zero for the first.
    pub previous: Digest,
    /// This entry's own.
    pub hash: Digest,
}

/// Where a chain ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tail {
    /// The last entry's index; 0 for an empty chain.
    pub index: u64,
    /// The last entry's hash; all zero for an empty chain.
    pub hash: Digest,
}

impl Entry {
    /// Puts a draft at the end of a chain.
    #[must_use]
    pub fn append(tail: Tail, epoch: u64, life: u128, draft: Draft) -> Self {
        let Draft { owner, series, number, key, act, at } = draft;
        let index = tail.index + 1;
        let previous = tail.hash;
        let mut entry = Self {
            index,
            epoch,
            life,
            owner,
            series,
            number,
            key,
            act,
            at,
            previous,
            hash: Digest::default(),
        };
        entry.hash = entry.computed();
        entry
    }

    /// Is this the entry that follows `tail`, unaltered?
    #[must_use]
    pub fn follows(&self, tail: Tail) -> bool {
        self.index == tail.index + 1 && self.previous == tail.hash && self.hash == self.computed()
    }

    /// Where a chain ends whose last entry this is.
    #[must_use]
    pub fn tail(&self) -> Tail {
        Tail { index: self.index, hash: self.hash }
    }

    fn computed(&self) -> Digest {
        let mut sha = Sha256::new();
        sha.update(self.previous.0);
        sha.update(self.index.to_be_bytes());
        sha.update(self.epoch.to_be_bytes());
        sha.update(self.life.to_be_bytes());
        sha.update(self.number.to_be_bytes());
        sha.update(self.at.to_be_bytes());
        let (act, text) = self.act.parts();
        for field in [self.owner.as_str(), &self.series, &self.key, act, text] {
            sha.update((field.len() as u64).to_be_bytes());
            sha.update(field.as_bytes());
        }
        Digest(sha.finalize().into())
    }
}

/// Do these entries follow `tail` one after the other? Gives the new tail.
#[must_use]
pub fn verified(mut tail: Tail, entries: &[Entry]) -> Option<Tail> {
    for entry in entries {
        if !entry.follows(tail) {
            return None;
        }
        tail = entry.tail();
    }
    Some(tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(number: u64, act: Act) -> Draft {
        let (owner, series, key) = ("erp".to_owned(), "INV".to_owned(), format!("k{number}"));
        Draft { owner, series, number, key, act, at: 1_700_000_000_000 }
    }

    #[test]
    fn the_chain_can_be_recomputed_from_this_page() {
        let entry = Entry::append(Tail::default(), 1, 7, draft(1, Act::Void("torn".to_owned())));
        let mut bytes = vec![0_u8; 32];
        for word in [1_u64, 1] {
            bytes.extend(word.to_be_bytes());
        }
        bytes.extend(7_u128.to_be_bytes());
        bytes.extend(1_u64.to_be_bytes());
        bytes.extend(1_700_000_000_000_i64.to_be_bytes());
        for text in ["erp", "INV", "k1", "void", "torn"] {
            bytes.extend((text.len() as u64).to_be_bytes());
            bytes.extend(text.as_bytes());
        }
        assert_eq!(entry.hash.0[..], Sha256::digest(&bytes)[..]);
    }

    #[test]
    fn any_altered_field_breaks_the_chain() {
        let good = Entry::append(Tail::default(), 1, 7, draft(1, Act::Confirm("ab".to_owned())));
        assert!(good.follows(Tail::default()));
        let alter: [fn(&mut Entry); 8] = [
            |e| e.epoch += 1,
            |e| e.life += 1,
            |e| e.owner.push('x'),
            |e| e.series.push('x'),
            |e| e.number += 1,
            |e| e.key.push('x'),
            |e| e.act = Act::Confirm("ac".to_owned()),
            |e| e.at += 1,
        ];
        for change in alter {
            let mut bad = good.clone();
            change(&mut bad);
            assert!(!bad.follows(Tail::default()), "{bad:?}");
        }
    }

    #[test]
    fn an_entry_reads_back_from_json() {
        let entry = Entry::append(Tail::default(), 1, u128::MAX, draft(1, Act::Reserve));
        let json = serde_json::to_string(&entry).unwrap();
        assert_eq!(serde_json::from_str::<Entry>(&json).unwrap(), entry);
    }
}
