//! What the two vaults say to each other about the ledger, and how it reads as bytes. Words only;
//! what follows from them is the protocol's.
//!
//! A message is one byte of version and then its fields in the order of these types, as postcard
//! writes them (<https://postcard.jamesmunns.com/wire-format>).

use serde::{Deserialize, Serialize};

use super::entry::{Entry, Life, Tail};

/// The random identity of a journal or a greeting.
pub type Nonce = u128;

/// The first byte of every message. Another one is another program's.
const VERSION: u8 = 1;

/// Bytes that are no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Another version of vault speaks.
    #[error(
        "it speaks version {0} of the ledger's protocol, and this vault version {VERSION}; install the same vault on both"
    )]
    Version(u8),
    /// Nothing that any version says.
    #[error("a message about the ledger that cannot be read: {0}")]
    Malformed(#[from] postcard::Error),
}

/// Names a session: the nonce of the vault that leads it, then the other's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session(pub Nonce, pub Nonce);

/// What a vault says first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Fresh for this connection.
    pub nonce: Nonce,
    /// This process's life.
    pub life: Life,
    /// The former life of this vault of which it can prove that nothing it answered is missing.
    pub proven: Option<Life>,
    /// The highest epoch this side has durable.
    pub epoch: u64,
    /// Does this side own the ledger in that epoch?
    pub owns: bool,
    /// This side's journal.
    pub journal: Nonce,
    /// Where it ends, durably.
    pub tail: Tail,
    /// Up to where this side knows both to be durable.
    pub in_both: u64,
    /// Up to where this side knows the ledger to have been answered from.
    pub settled: u64,
    /// The other side's journal as this side remembers it.
    pub peer_journal: Option<Nonce>,
    /// How far the other side was durable, as this side remembers it.
    pub peer_durable: u64,
}

/// What the vaults say to each other. The one that *drives* makes the journals equal: the one
/// of the higher epoch, or, where the epochs are the same, the owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// Opens a session.
    Hello(Hello),
    /// From whoever drives or owns: these come next after `after`; I am durable up to `durable`.
    Append {
        /// The session.
        session: Session,
        /// Where they follow. Below the other's tail only where its epoch is over.
        after: Tail,
        /// May be empty, to tell `durable` alone.
        #[serde(with = "lines")]
        entries: Vec<Entry>,
        /// The sender's durable index.
        durable: u64,
    },
    /// The answer: durable up to here.
    Acknowledge {
        /// The session.
        session: Session,
        /// Where the journal ends, durably.
        tail: Tail,
    },
    /// From whoever drives: send what you have after `after`.
    Fetch {
        /// The session.
        session: Session,
        /// The asker's own last index.
        after: u64,
    },
    /// The entries asked for.
    Fetched {
        /// The session.
        session: Session,
        /// In order.
        #[serde(with = "lines")]
        entries: Vec<Entry>,
    },
    /// From whoever drives: both journals are equal.
    Grant {
        /// The session.
        session: Session,
        /// Where both end.
        tail: Tail,
    },
    /// Owner to follower: send what you gave alone after that row.
    FetchSolo {
        /// The session.
        session: Session,
        /// The last row known.
        after: u64,
    },
    /// The rows asked for; empty when there are no more.
    Solo {
        /// The session.
        session: Session,
        /// In order.
        #[serde(with = "lines")]
        rows: Vec<Entry>,
    },
    /// Owner to follower: all that either gave alone is in the chain; numbers are given.
    Settled {
        /// The session.
        session: Session,
    },
    /// Owner to follower: does the session still stand?
    Ask {
        /// The session.
        session: Session,
        /// Counts the questions.
        count: u64,
    },
    /// It does.
    Stands {
        /// The session.
        session: Session,
        /// The question's.
        count: u64,
    },
}

impl Message {
    /// The bytes to send.
    ///
    /// # Errors
    /// None that a message of this program can cause.
    pub fn encode(&self) -> Result<Vec<u8>, MessageError> {
        Ok(postcard::to_extend(self, vec![VERSION])?)
    }

    /// Reads what the other vault sent.
    ///
    /// # Errors
    /// Another version, or bytes that are no message.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        match bytes {
            [VERSION, rest @ ..] => Ok(postcard::from_bytes(rest)?),
            [version, ..] => Err(MessageError::Version(*version)),
            [] => Err(postcard::Error::DeserializeUnexpectedEnd.into()),
        }
    }

    /// The session it belongs to; `None` for a greeting.
    #[must_use]
    pub fn session(&self) -> Option<Session> {
        match self {
            Message::Hello(_) => None,
            Message::Append { session, .. }
            | Message::Acknowledge { session, .. }
            | Message::Fetch { session, .. }
            | Message::Fetched { session, .. }
            | Message::Grant { session, .. }
            | Message::FetchSolo { session, .. }
            | Message::Solo { session, .. }
            | Message::Settled { session }
            | Message::Ask { session, .. }
            | Message::Stands { session, .. } => Some(*session),
        }
    }
}

/// Entries as the journal holds them: the act in its two columns, whatever it is made of.
mod lines {
    use std::borrow::Cow;

    use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

    use crate::sequence::digest::Digest;
    use crate::sequence::entry::{Act, Entry, Life};

    #[derive(Serialize, Deserialize)]
    struct Line<'a> {
        index: u64,
        epoch: u64,
        life: Life,
        carried: u64,
        owner: Cow<'a, str>,
        series: Cow<'a, str>,
        number: u64,
        key: Cow<'a, str>,
        act: Cow<'a, str>,
        text: Cow<'a, str>,
        at: i64,
        previous: [u8; 32],
        hash: [u8; 32],
    }

    pub(super) fn serialize<S: Serializer>(entries: &[Entry], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(entries.iter().map(|entry| {
            let (act, text) = entry.act.parts();
            Line {
                index: entry.index,
                epoch: entry.epoch,
                life: entry.life,
                carried: entry.carried,
                owner: Cow::Borrowed(&entry.owner),
                series: Cow::Borrowed(&entry.series),
                number: entry.number,
                key: Cow::Borrowed(&entry.key),
                act: Cow::Borrowed(act),
                text,
                at: entry.at,
                previous: entry.previous.0,
                hash: entry.hash.0,
            }
        }))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Entry>, D::Error> {
        let entry = |line: Line<'_>| {
            let act = Act::from_parts(&line.act, line.text.into_owned());
            Ok(Entry {
                index: line.index,
                epoch: line.epoch,
                life: line.life,
                carried: line.carried,
                owner: line.owner.into_owned(),
                series: line.series.into_owned(),
                number: line.number,
                key: line.key.into_owned(),
                act: act.ok_or_else(|| de::Error::custom("an entry of an unknown kind"))?,
                at: line.at,
                previous: Digest(line.previous),
                hash: Digest(line.hash),
            })
        };
        Vec::<Line<'_>>::deserialize(deserializer)?.into_iter().map(entry).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::definition::Definition;
    use crate::sequence::entry::{Act, Draft};

    fn append(act: Act) -> Message {
        let draft = Draft {
            owner: "erp".to_owned(),
            series: "INV".to_owned(),
            number: i64::MAX as u64,
            key: "k".to_owned(),
            act,
            at: -1,
            carried: Some((7, 3)),
        };
        let entry = Entry::append(Tail::default(), u64::MAX, u128::MAX, draft);
        let (after, durable) = (entry.tail(), entry.index);
        Message::Append { session: Session(u128::MAX, 0), after, entries: vec![entry], durable }
    }

    #[test]
    fn a_message_reads_back_whatever_its_entries_do() {
        let definition = Definition { range: 7, pattern: None, expires_after: Some(1) };
        for act in
            [Act::Reserve(None), Act::Reserve(Some(1)), Act::Define(definition), Act::Void("é".to_owned())]
        {
            let message = append(act);
            assert_eq!(Message::decode(&message.encode().unwrap()), Ok(message));
        }
    }

    #[test]
    fn another_version_is_told_and_broken_bytes_are_refused() {
        let told = Message::decode(b"{\"settled\":1}").unwrap_err().to_string();
        assert!(told.starts_with("it speaks version 123 of the ledger's protocol"), "{told}");
        let whole = append(Act::Doubt).encode().unwrap();
        for length in 0..whole.len() {
            Message::decode(&whole[..length]).unwrap_err();
        }
    }
}
