//! An entry as the columns of a table: the same in every SQL database, and the same as the
//! journal's. Pure. Numbers of the ledger stay below 2^63, so they fit a signed column.

use std::borrow::Cow;

use super::super::digest::Digest;
use super::super::entry::{Act, Entry, Life, Tail};

/// The columns, in the table's order.
pub(super) const COLUMNS: &str =
    "idx, epoch, life, carried, owner, series, number, entry_key, act, body, at, previous, hash";

/// One row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row<'e> {
    pub(super) index: i64,
    pub(super) epoch: i64,
    pub(super) life: Cow<'e, [u8]>,
    pub(super) carried: i64,
    pub(super) owner: Cow<'e, str>,
    pub(super) series: Cow<'e, str>,
    pub(super) number: i64,
    pub(super) key: Cow<'e, str>,
    pub(super) act: Cow<'e, str>,
    /// UTF-8; bytes, because a text column of PostgreSQL takes no NUL.
    pub(super) body: Cow<'e, [u8]>,
    pub(super) at: i64,
    pub(super) previous: Cow<'e, [u8]>,
    pub(super) hash: Cow<'e, [u8]>,
}

impl<'e> Row<'e> {
    /// `None` where a number is beyond 2^63-1: no ledger of ours has one.
    pub(super) fn of(entry: &'e Entry) -> Option<Self> {
        let signed = |number: u64| i64::try_from(number).ok();
        let (act, body) = entry.act.parts();
        Some(Self {
            index: signed(entry.index)?,
            epoch: signed(entry.epoch)?,
            life: Cow::Owned(entry.life.to_be_bytes().to_vec()),
            carried: signed(entry.carried)?,
            owner: Cow::Borrowed(&entry.owner),
            series: Cow::Borrowed(&entry.series),
            number: signed(entry.number)?,
            key: Cow::Borrowed(&entry.key),
            act: Cow::Borrowed(act),
            body: match body {
                Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
                Cow::Owned(text) => Cow::Owned(text.into_bytes()),
            },
            at: entry.at,
            previous: Cow::Borrowed(&entry.previous.0),
            hash: Cow::Borrowed(&entry.hash.0),
        })
    }

    /// The reverse; `None` for what this program has not written.
    pub(super) fn entry(self) -> Option<Entry> {
        let body = String::from_utf8(self.body.into_owned()).ok()?;
        Some(Entry {
            index: u64::try_from(self.index).ok()?,
            epoch: u64::try_from(self.epoch).ok()?,
            life: Life::from_be_bytes(self.life.as_ref().try_into().ok()?),
            carried: u64::try_from(self.carried).ok()?,
            owner: self.owner.into_owned(),
            series: self.series.into_owned(),
            number: u64::try_from(self.number).ok()?,
            key: self.key.into_owned(),
            act: Act::from_parts(&self.act, body)?,
            at: self.at,
            previous: digest(&self.previous)?,
            hash: digest(&self.hash)?,
        })
    }
}

/// A digest's 32 bytes.
pub(super) fn digest(bytes: &[u8]) -> Option<Digest> {
    Some(Digest(bytes.try_into().ok()?))
}

/// The tail that a copy's one row of state tells.
pub(super) fn tail(index: i64, hash: &[u8]) -> Option<Tail> {
    Some(Tail { index: u64::try_from(index).ok()?, hash: digest(hash)? })
}

#[cfg(test)]
mod tests {
    use super::super::super::entry::Draft;
    use super::*;

    #[test]
    fn a_row_reads_back_and_a_number_beyond_the_column_is_none() {
        let draft = Draft {
            owner: "erp".to_owned(),
            series: "Zürich".to_owned(),
            number: i64::MAX as u64,
            key: "k".to_owned(),
            act: Act::Void("zerrissen ✂\0".to_owned()),
            at: -1,
            carried: None,
        };
        let mut entry = Entry::append(Tail::default(), 1, u128::MAX, draft);
        assert_eq!(Row::of(&entry).unwrap().entry().as_ref(), Some(&entry));
        entry.number += 1;
        assert_eq!(Row::of(&entry), None);
    }
}
