//! One line of the ledger: what was done to one number, chained by hash to the line before.
//! Pure. Knows how an entry is built and verified; not where it is kept or who may make one.
//!
//! The chain is SHA-256 over length-prefixed fields, so an auditor can recompute it from the
//! exported rows with nothing but a hash tool and this page:
//! `hash = SHA-256(previous ‖ index ‖ epoch ‖ life ‖ number ‖ at ‖ owner ‖ series ‖ key ‖ act ‖ text)`,
//! and after that `carried` where it is not 0; integers as 8 bytes big-endian (life: 16), texts as
//! an 8-byte length and their UTF-8.
//!
//! Most entries are about one number. Those that are about a series' ranges or a vault's life
//! use the same fields: see [`Act`].

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::definition::Definition;
use super::digest::Digest;

/// Most entries one message or one commit carries.
pub const BATCH: usize = 512;

/// The random identity of one process's life.
pub type Life = u128;

/// What an entry does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Act {
    /// Gives the number to the key, which was first sent to the vault of that life.
    Reserve(Option<Life>),
    /// A document with this hash uses it.
    Confirm(String),
    /// It is spoiled, for this reason.
    Void(String),
    /// It was given to a key that has another one, and is spoiled, for this reason.
    Spoil(String),
    /// It was never answered, and its key got another number from a vault alone: the number is
    /// spoiled, for this reason, and the key is free of it.
    Displace(String),
    /// Nobody knows whether its key was answered this number, or another by a vault that lost its
    /// journal.
    Doubt,
    /// Its sender has taken this other key instead: its number, if it has one, is spoiled; if it
    /// has none (then `number` is 0), it never counts.
    Supersede(String),
    /// An operator says this of the series and all its periods.
    Define(Definition),
    /// Sets the numbers from `number` to `to` aside for the vault that `key` names.
    Grant(Grant),
    /// The range that begins at `number` is given back: its rest may be given in session.
    Close(Grant),
    /// The range that begins at `number` has lost its holder: nobody knows whether its rest was
    /// given, so it never is.
    Lost(Grant),
    /// The vault that `key` names lives this life now.
    Life(Birth),
    /// The record that `key` names has this value in its version `number`.
    Put(String),
    /// The record that `key` names is gone with its version `number`.
    Remove,
    /// The vault that `key` names may live this life next, when an operator brings its token.
    Seal(Life),
    /// What a vault alone did to the number or key does not fit what became of it, for this
    /// reason; nothing changes by it.
    Note(String),
}

/// The end of a range, and who may give from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Its last number.
    pub to: u64,
    /// The holder's life.
    pub life: Life,
}

impl Grant {
    fn parse(text: &str) -> Option<Self> {
        let (to, life) = text.split_once(' ')?;
        Some(Self { to: to.parse().ok()?, life: Life::from_str_radix(life, 16).ok()? })
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:032x}", self.to, self.life)
    }
}

/// A life that begins, and what is known of the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Birth {
    /// The new one.
    pub life: Life,
    /// The one before, if the ledger knew one.
    pub former: Option<Life>,
    /// Is all known that the former one ever answered?
    pub proven: bool,
}

impl Act {
    /// The act's word and its text, as the journal's columns and the hash hold them.
    #[must_use]
    pub fn parts(&self) -> (&'static str, Cow<'_, str>) {
        match self {
            Act::Reserve(None) => ("reserve", Cow::Borrowed("")),
            Act::Reserve(Some(ticket)) => ("reserve", Cow::Owned(hex(*ticket))),
            Act::Confirm(hash) => ("confirm", Cow::Borrowed(hash)),
            Act::Void(reason) => ("void", Cow::Borrowed(reason)),
            Act::Spoil(reason) => ("spoil", Cow::Borrowed(reason)),
            Act::Displace(reason) => ("displace", Cow::Borrowed(reason)),
            Act::Doubt => ("doubt", Cow::Borrowed("")),
            Act::Supersede(by) => ("supersede", Cow::Borrowed(by)),
            Act::Define(definition) => {
                ("define", Cow::Owned(serde_json::to_string(definition).unwrap_or_default()))
            }
            Act::Grant(grant) => ("grant", Cow::Owned(grant.to_string())),
            Act::Close(grant) => ("close", Cow::Owned(grant.to_string())),
            Act::Lost(grant) => ("lost", Cow::Owned(grant.to_string())),
            Act::Life(Birth { life, former, proven }) => {
                let former = former.map_or_else(|| "-".to_owned(), |former| format!("{former:032x}"));
                let proven = if *proven { "proven" } else { "lost" };
                ("life", Cow::Owned(format!("{life:032x} {former} {proven}")))
            }
            Act::Put(value) => ("put", Cow::Borrowed(value)),
            Act::Remove => ("remove", Cow::Borrowed("")),
            Act::Seal(life) => ("seal", Cow::Owned(format!("{life:032x}"))),
            Act::Note(reason) => ("note", Cow::Borrowed(reason)),
        }
    }

    /// The reverse of [`Act::parts`].
    #[must_use]
    pub fn from_parts(word: &str, text: String) -> Option<Self> {
        Some(match word {
            "reserve" if text.is_empty() => Act::Reserve(None),
            "reserve" => Act::Reserve(Some(Life::from_str_radix(&text, 16).ok()?)),
            "confirm" => Act::Confirm(text),
            "void" => Act::Void(text),
            "spoil" => Act::Spoil(text),
            "displace" => Act::Displace(text),
            "doubt" => Act::Doubt,
            "supersede" => Act::Supersede(text),
            "define" => Act::Define(serde_json::from_str(&text).ok()?),
            "grant" => Act::Grant(Grant::parse(&text)?),
            "close" => Act::Close(Grant::parse(&text)?),
            "lost" => Act::Lost(Grant::parse(&text)?),
            "life" => {
                let mut words = text.split(' ');
                let life = Life::from_str_radix(words.next()?, 16).ok()?;
                let former = match words.next()? {
                    "-" => None,
                    former => Some(Life::from_str_radix(former, 16).ok()?),
                };
                let proven = match words.next()? {
                    "proven" => true,
                    "lost" => false,
                    _ => return None,
                };
                Act::Life(Birth { life, former, proven })
            }
            "put" => Act::Put(text),
            "remove" => Act::Remove,
            "seal" => Act::Seal(Life::from_str_radix(&text, 16).ok()?),
            "note" => Act::Note(text),
            _ => return None,
        })
    }
}

/// As `{life:032x}`, which takes as long as the entry's hash.
fn hex(life: Life) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |half: u8| char::from(DIGITS[usize::from(half)]);
    life.to_be_bytes().iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
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
    /// Where it was made by a vault alone: that life, and its place among the rows
    /// that it gave so.
    pub carried: Option<(Life, u64)>,
}

impl Draft {
    /// Its entry in JSON is no longer than this, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        json_bytes([&self.owner, &self.series, &self.key, &self.act.parts().1])
    }
}

/// Names, numbers, lives and hashes of one entry in JSON, without its texts.
const FIXED_BYTES: usize = 640;

fn json_bytes(texts: [&str; 4]) -> usize {
    let escaped = |byte: u8| match byte {
        b'"' | b'\\' => 2,
        0..0x20 => 6,
        _ => 1,
    };
    FIXED_BYTES + texts.into_iter().flat_map(str::bytes).map(escaped).sum::<usize>()
}

/// One line of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// From 1 upwards, without holes.
    pub index: u64,
    /// Whose rule it was made under; see [`super::protocol`].
    pub epoch: u64,
    /// The life of the process that made it.
    pub life: Life,
    /// Its place among the rows that this life made alone; 0 for what was made in session.
    pub carried: u64,
    /// See [`Draft`].
    pub owner: String,
    /// See [`Draft`].
    pub series: String,
    /// See [`Draft`].
    pub number: u64,
    /// See [`Draft`].
    pub key: String,
    /// See [`Draft`].
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
    pub fn append(tail: Tail, epoch: u64, life: Life, draft: Draft) -> Self {
        let Draft { owner, series, number, key, act, at, carried } = draft;
        let (life, carried) = carried.unwrap_or((life, 0));
        let index = tail.index + 1;
        let previous = tail.hash;
        let mut entry = Self {
            index,
            epoch,
            life,
            carried,
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

    /// It is no longer in JSON than this, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        json_bytes([&self.owner, &self.series, &self.key, &self.act.parts().1])
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
        for field in [self.owner.as_str(), &self.series, &self.key, act, &text] {
            sha.update((field.len() as u64).to_be_bytes());
            sha.update(field.as_bytes());
        }
        // Ledgers that are older than rows given alone hash without it.
        if self.carried > 0 {
            sha.update(self.carried.to_be_bytes());
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
        Draft { owner, series, number, key, act, at: 1_700_000_000_000, carried: None }
    }

    #[test]
    fn an_entry_is_never_longer_in_json_than_was_said() {
        let nasty: String = (0..0x80).map(char::from).chain("ü€𝄞".chars()).collect();
        let birth = Birth { life: Life::MAX, former: Some(Life::MAX), proven: true };
        let definition =
            Definition { range: u64::MAX, pattern: Some(nasty.clone()), expires_after: Some(u64::MAX) };
        let acts = [
            Act::Reserve(Some(Life::MAX)),
            Act::Void(nasty.clone()),
            Act::Put(nasty.clone()),
            Act::Define(definition),
            Act::Life(birth),
            Act::Grant(Grant { to: u64::MAX, life: Life::MAX }),
            Act::Remove,
        ];
        for act in acts {
            let draft = Draft {
                owner: nasty.clone(),
                key: nasty.clone(),
                at: i64::MIN,
                carried: Some((Life::MAX, u64::MAX)),
                ..draft(u64::MAX, act)
            };
            let said = draft.bytes();
            let tail = Tail { index: u64::MAX - 1, hash: Digest([255; 32]) };
            let entry = Entry::append(tail, u64::MAX, Life::MAX, draft);
            assert_eq!(entry.bytes(), said);
            let is = serde_json::to_vec(&entry).unwrap().len();
            assert!(is <= said, "{is} of {said}: {:?}", entry.act);
        }
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
        let alone = Draft { carried: Some((7, 5)), ..draft(1, Act::Void("torn".to_owned())) };
        bytes.extend(5_u64.to_be_bytes());
        assert_eq!(Entry::append(Tail::default(), 1, 9, alone).hash.0[..], Sha256::digest(&bytes)[..]);
    }

    #[test]
    fn any_altered_field_breaks_the_chain() {
        let good = Entry::append(Tail::default(), 1, 7, draft(1, Act::Confirm("ab".to_owned())));
        assert!(good.follows(Tail::default()));
        let alter: [fn(&mut Entry); 9] = [
            |e| e.epoch += 1,
            |e| e.life += 1,
            |e| e.carried += 1,
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

    fn acts() -> Vec<Act> {
        let birth = |former| Act::Life(Birth { life: 1, former, proven: former.is_some() });
        vec![
            Act::Reserve(None),
            Act::Reserve(Some(u128::MAX)),
            Act::Confirm("h".to_owned()),
            Act::Void("torn".to_owned()),
            Act::Spoil("twice".to_owned()),
            Act::Note("late".to_owned()),
            Act::Seal(7),
            Act::Displace("unanswered".to_owned()),
            Act::Doubt,
            Act::Define(Definition { range: 7, pattern: Some("{n}".to_owned()), expires_after: None }),
            Act::Grant(Grant { to: u64::MAX, life: u128::MAX }),
            Act::Close(Grant { to: 1, life: 2 }),
            Act::Lost(Grant { to: 1, life: 2 }),
            birth(None),
            birth(Some(u128::MAX)),
            Act::Put("v".to_owned()),
            Act::Remove,
        ]
    }

    #[test]
    fn every_act_reads_back_from_its_columns_and_from_json() {
        for act in acts() {
            let (word, text) = act.parts();
            assert_eq!(Act::from_parts(word, text.into_owned()).as_ref(), Some(&act));
            let entry = Entry::append(Tail::default(), 1, u128::MAX, draft(1, act));
            let json = serde_json::to_string(&entry).unwrap();
            assert_eq!(serde_json::from_str::<Entry>(&json).unwrap(), entry);
        }
        for text in ["", "1", "x 00", "1 zz", "00 - maybe", "00 -"] {
            assert_eq!(
                Act::from_parts("grant", text.to_owned()).or(Act::from_parts("life", text.to_owned())),
                None
            );
        }
    }
}
