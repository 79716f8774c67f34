//! The ledger's entries as rows of text, so that anybody can keep and verify them without a
//! vault. Pure: rows to CSV (RFC 4180) or JSON, and back. Knows no file and no chain; what rows
//! must fulfil is [`super::audit`]'s.
//!
//! Both forms have the same thirteen fields, those of an [`Entry`], its act as its word and its
//! text. Entries of others stand as rows of their index and the two hashes alone, with the act
//! `skipped`, so that the chain holds. The last row has the act `end`: its index and hash are
//! those of the entry before, so that a copy that broke off is known. Where a vault made it while
//! the two were apart, a row of the act `apart` stands before that: numbers that were given alone
//! are not in the ledger yet, and its number says how many of this series that vault has given so.

use std::io::{BufRead, Read as _};

use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer as _, Serialize};

use super::definition::base_of;
use super::digest::Digest;
use super::entry::{Act, Entry, Life, Tail};

/// The columns, in their order; the first line of a CSV export.
pub const COLUMNS: [&str; 13] = [
    "index", "epoch", "life", "carried", "owner", "series", "number", "key", "act", "text", "at", "previous",
    "hash",
];
/// Longest row, in bytes; a reader refuses longer ones.
const MAX_ROW: usize = 1 << 20;
const SKIPPED: &str = "skipped";
const END: &str = "end";
const APART: &str = "apart";
/// What the row says in words.
const APART_TEXT: &str = "numbers that a vault gave alone are not in it; export again when both have met";

/// One row of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Row {
    /// An entry as it stands.
    Entry(Entry),
    /// An entry of somebody else.
    Skipped {
        /// Its index.
        index: u64,
        /// The hash of the entry before.
        previous: Digest,
        /// Its own.
        hash: Digest,
    },
    /// The two vaults were apart, and numbers of this series that either gave alone are missing.
    Apart {
        /// The last entry.
        tail: Tail,
        /// How many the vault that made the export gave alone.
        alone: u64,
    },
    /// There is no more.
    End(Tail),
}

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Comma-separated values with a line of names first.
    Csv,
    /// One array of objects.
    Json,
}

/// Why an export cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The file.
    #[error("it cannot be read: {0}")]
    Read(#[from] std::io::Error),
    /// A row is none.
    #[error("row {row}: {why}; name a file that vault number export has written")]
    Row {
        /// Which one, from 1; the line of names is none.
        row: u64,
        /// What is wrong with it.
        why: String,
    },
    /// The JSON.
    #[error("{0}; name a file that vault number export has written")]
    Json(#[from] serde_json::Error),
}

/// The fields as they are written; what a row has not is left out.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    index: u64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    epoch: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    life: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    carried: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    owner: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    series: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    number: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    key: Option<String>,
    act: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    at: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    previous: Option<Digest>,
    hash: Digest,
}

impl Row {
    /// The entry as an export of that series, with all its periods, shows it.
    #[must_use]
    pub fn of(entry: Entry, owner: &str, base: &str) -> Self {
        if entry.owner == owner && base_of(&entry.series) == base {
            return Self::Entry(entry);
        }
        Self::Skipped { index: entry.index, previous: entry.previous, hash: entry.hash }
    }

    /// The row as text, to stand after [`Format::head`] or another row.
    #[must_use]
    pub fn text(&self, format: Format, first: bool) -> String {
        let fields = Fields::from(self);
        match format {
            Format::Csv => fields.csv(),
            Format::Json => {
                let comma = if first { "" } else { "," };
                format!("{comma}\n{}", serde_json::to_string(&fields).unwrap_or_default())
            }
        }
    }
}

impl Format {
    /// What stands before the first row.
    #[must_use]
    pub fn head(self) -> String {
        match self {
            Self::Csv => format!("{}\r\n", COLUMNS.join(",")),
            Self::Json => "[".to_owned(),
        }
    }

    /// What stands behind the last.
    #[must_use]
    pub fn foot(self) -> &'static str {
        match self {
            Self::Csv => "",
            Self::Json => "\n]\n",
        }
    }

    /// Its media type.
    #[must_use]
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Csv => "text/csv; charset=utf-8",
            Self::Json => "application/json",
        }
    }
}

impl From<&Row> for Fields {
    fn from(row: &Row) -> Self {
        match row {
            Row::Entry(entry) => {
                let (act, text) = entry.act.parts();
                Self {
                    index: entry.index,
                    epoch: Some(entry.epoch),
                    life: Some(format!("{:032x}", entry.life)),
                    carried: Some(entry.carried),
                    owner: Some(entry.owner.clone()),
                    series: Some(entry.series.clone()),
                    number: Some(entry.number),
                    key: Some(entry.key.clone()),
                    act: act.to_owned(),
                    text: Some(text.into_owned()),
                    at: Some(entry.at),
                    previous: Some(entry.previous),
                    hash: entry.hash,
                }
            }
            Row::Skipped { index, previous, hash } => Self {
                index: *index,
                act: SKIPPED.to_owned(),
                previous: Some(*previous),
                hash: *hash,
                ..Self::default()
            },
            Row::Apart { tail, alone } => Self {
                index: tail.index,
                number: Some(*alone),
                act: APART.to_owned(),
                text: Some(APART_TEXT.to_owned()),
                hash: tail.hash,
                ..Self::default()
            },
            Row::End(tail) => {
                Self { index: tail.index, act: END.to_owned(), hash: tail.hash, ..Self::default() }
            }
        }
    }
}

impl Fields {
    fn row(self) -> Result<Row, String> {
        let missing = |name: &str| format!("it has no {name}");
        match self.act.as_str() {
            END => Ok(Row::End(Tail { index: self.index, hash: self.hash })),
            APART => {
                let alone = self.number.ok_or_else(|| missing("number"))?;
                Ok(Row::Apart { tail: Tail { index: self.index, hash: self.hash }, alone })
            }
            SKIPPED => {
                let previous = self.previous.ok_or_else(|| missing("previous"))?;
                Ok(Row::Skipped { index: self.index, previous, hash: self.hash })
            }
            word => {
                let text = self.text.ok_or_else(|| missing("text"))?;
                let unknown = || format!("{word:?} with this text is no act of this version");
                // Text that reads as the same act, but is not how the act is written, was altered.
                let act = Act::from_parts(word, text.clone()).filter(|act| act.parts().1 == text);
                let life = self.life.ok_or_else(|| missing("life"))?;
                Ok(Row::Entry(Entry {
                    index: self.index,
                    epoch: self.epoch.ok_or_else(|| missing("epoch"))?,
                    life: life_of(&life).ok_or_else(|| format!("{life:?} is no life of 32 hex digits"))?,
                    carried: self.carried.ok_or_else(|| missing("carried"))?,
                    owner: self.owner.ok_or_else(|| missing("owner"))?,
                    series: self.series.ok_or_else(|| missing("series"))?,
                    number: self.number.ok_or_else(|| missing("number"))?,
                    key: self.key.ok_or_else(|| missing("key"))?,
                    act: act.ok_or_else(unknown)?,
                    at: self.at.ok_or_else(|| missing("at"))?,
                    previous: self.previous.ok_or_else(|| missing("previous"))?,
                    hash: self.hash,
                }))
            }
        }
    }

    fn csv(&self) -> String {
        let number = |number: Option<u64>| number.map_or_else(String::new, |number| number.to_string());
        // A text that is there and empty is written as `""`, one that is not as nothing.
        let text = |text: &Option<String>| text.as_deref().map_or_else(String::new, quoted);
        let columns = [
            self.index.to_string(),
            number(self.epoch),
            self.life.clone().unwrap_or_default(),
            number(self.carried),
            text(&self.owner),
            text(&self.series),
            number(self.number),
            text(&self.key),
            self.act.clone(),
            text(&self.text),
            self.at.map_or_else(String::new, |at| at.to_string()),
            self.previous.map_or_else(String::new, |previous| previous.to_string()),
            self.hash.to_string(),
        ];
        columns.join(",") + "\r\n"
    }

    fn from_csv(columns: Vec<String>) -> Result<Self, String> {
        let count = columns.len();
        let [index, epoch, life, carried, owner, series, number, key, act, text, at, previous, hash] =
            <[String; 13]>::try_from(columns).map_err(|_| format!("it has {count} fields, not 13"))?;
        fn whole<T: std::str::FromStr + ToString>(text: &str) -> Result<Option<T>, String> {
            let read = || text.parse::<T>().ok().filter(|read| read.to_string() == text);
            if text.is_empty() {
                return Ok(None);
            }
            read().map(Some).ok_or_else(|| format!("{text:?} is no whole number"))
        }
        let digest = |text: &str| Digest::from_hex(text).ok_or_else(|| format!("{text:?} is no hash"));
        let is_entry = ![END, SKIPPED, APART].contains(&act.as_str());
        let kept = |text: String| is_entry.then_some(text);
        Ok(Self {
            index: whole(&index)?.ok_or("it has no index")?,
            epoch: whole(&epoch)?,
            life: kept(life),
            carried: whole(&carried)?,
            owner: kept(owner),
            series: kept(series),
            number: whole(&number)?,
            key: kept(key),
            text: kept(text),
            at: whole(&at)?,
            previous: if previous.is_empty() { None } else { Some(digest(&previous)?) },
            hash: digest(&hash)?,
            act,
        })
    }
}

fn life_of(text: &str) -> Option<Life> {
    let life = Life::from_str_radix(text, 16).ok()?;
    (format!("{life:032x}") == text).then_some(life)
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

/// Reads rows one after the other and hands each to `take`, whatever the file's length. Which form
/// it is, its first byte tells.
///
/// # Errors
/// The file, or a row that is none.
pub fn read(mut from: impl BufRead, mut take: impl FnMut(Row)) -> Result<(), ExportError> {
    match from.fill_buf()?.first() {
        Some(b'[') => read_json(from, take),
        _ => read_csv(from, &mut take),
    }
}

fn read_json(from: impl BufRead, take: impl FnMut(Row)) -> Result<(), ExportError> {
    struct Rows<F>(F);
    impl<'de, F: FnMut(Row)> Visitor<'de> for Rows<F> {
        type Value = ();
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an array of the ledger's entries")
        }
        fn visit_seq<A: SeqAccess<'de>>(mut self, mut rows: A) -> Result<(), A::Error> {
            while let Some(fields) = rows.next_element::<Fields>()? {
                (self.0)(fields.row().map_err(A::Error::custom)?);
            }
            Ok(())
        }
    }
    let mut json = serde_json::Deserializer::from_reader(from);
    json.deserialize_seq(Rows(take))?;
    Ok(json.end()?)
}

fn read_csv(mut from: impl BufRead, take: &mut impl FnMut(Row)) -> Result<(), ExportError> {
    let mut number = 0;
    while let Some(columns) = record(&mut from, number)? {
        if number == 0 {
            if columns != COLUMNS {
                let why = format!("the first line must be {}", COLUMNS.join(","));
                return Err(ExportError::Row { row: 0, why });
            }
        } else {
            let row = Fields::from_csv(columns).and_then(Fields::row);
            take(row.map_err(|why| ExportError::Row { row: number, why })?);
        }
        number += 1;
    }
    if number == 0 {
        return Err(ExportError::Row { row: 0, why: "it is empty".to_owned() });
    }
    Ok(())
}

/// One record as RFC 4180 has them: line breaks may stand between quotes.
fn record(from: &mut impl BufRead, row: u64) -> Result<Option<Vec<String>>, ExportError> {
    let (mut bytes, mut quotes, mut counted) = (Vec::new(), 0, 0);
    loop {
        let left = (MAX_ROW + 1).saturating_sub(bytes.len()) as u64;
        let read = from.by_ref().take(left).read_until(b'\n', &mut bytes)?;
        if bytes.len() > MAX_ROW {
            return Err(ExportError::Row { row, why: format!("it is longer than {MAX_ROW} bytes") });
        }
        quotes += bytes[counted..].iter().filter(|byte| **byte == b'"').count();
        counted = bytes.len();
        if read == 0 && bytes.is_empty() {
            return Ok(None);
        }
        if quotes % 2 == 0 || read == 0 {
            break;
        }
    }
    let text = String::from_utf8(bytes);
    let text = text.map_err(|_| ExportError::Row { row, why: "it is no UTF-8".to_owned() })?;
    let line = text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
    columns(line).map(Some).map_err(|why| ExportError::Row { row, why })
}

fn columns(line: &str) -> Result<Vec<String>, String> {
    let mut columns = Vec::new();
    let mut rest = line;
    loop {
        let (column, after) = match rest.strip_prefix('"') {
            Some(quoted) => unquoted(quoted)?,
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                (rest[..end].to_owned(), &rest[end..])
            }
        };
        columns.push(column);
        match after.strip_prefix(',') {
            Some(next) => rest = next,
            None if after.is_empty() => return Ok(columns),
            None => return Err("something stands behind a closing quote".to_owned()),
        }
    }
}

/// The text up to the closing quote, and what follows it.
fn unquoted(quoted: &str) -> Result<(String, &str), String> {
    let mut column = String::new();
    let mut rest = quoted;
    loop {
        let (text, after) = rest.split_once('"').ok_or("a quote is not closed")?;
        column.push_str(text);
        match after.strip_prefix('"') {
            Some(next) => {
                column.push('"');
                rest = next;
            }
            None => return Ok((column, after)),
        }
    }
}

/// For the fuzzer: whatever can be read is written so that it reads the same again.
pub fn fuzz(data: &[u8]) {
    let mut rows = Vec::new();
    if read(data, |row| rows.push(row)).is_err() {
        return;
    }
    for format in [Format::Csv, Format::Json] {
        let mut text = format.head();
        for (place, row) in rows.iter().enumerate() {
            text.push_str(&row.text(format, place == 0));
        }
        text.push_str(format.foot());
        let mut again = Vec::new();
        let read = read(text.as_bytes(), |row| again.push(row));
        assert!(read.is_ok() && again == rows, "{format:?}: {rows:?} was read back as {again:?}, {read:?}");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::entry::{Birth, Draft, Grant};
    use super::*;

    fn act() -> impl Strategy<Value = Act> {
        let text = "[ -~äß€\"',;\\n]{0,40}";
        prop_oneof![
            any::<Option<u128>>().prop_map(Act::Reserve),
            text.prop_map(Act::Confirm),
            text.prop_map(Act::Void),
            text.prop_map(Act::Spoil),
            text.prop_map(Act::Note),
            any::<u128>().prop_map(Act::Seal),
            text.prop_map(Act::Put),
            Just(Act::Doubt),
            Just(Act::Remove),
            any::<(u64, u128)>().prop_map(|(to, life)| Act::Grant(Grant { to, life })),
            any::<(u128, Option<u128>, bool)>().prop_map(|(life, former, proven)| Act::Life(Birth {
                life,
                former,
                proven
            })),
        ]
    }

    fn row() -> impl Strategy<Value = Row> {
        let digest = any::<[u8; 32]>().prop_map(Digest);
        let tail = (any::<u64>(), digest.clone()).prop_map(|(index, hash)| Tail { index, hash });
        let texts = ("[a-z]{0,5}", "[A-Z/0-9]{0,8}", "[ -~\r\n]{0,30}");
        let draft = (texts, any::<u64>(), act(), any::<i64>(), any::<Option<(u128, u64)>>()).prop_map(
            |((owner, series, key), number, act, at, carried)| Draft {
                owner,
                series,
                number,
                key,
                act,
                at,
                carried,
            },
        );
        prop_oneof![
            (0..u64::MAX, digest.clone(), any::<u64>(), any::<u128>(), draft).prop_map(
                |(index, hash, epoch, life, draft)| {
                    Row::Entry(Entry::append(Tail { index, hash }, epoch, life, draft))
                }
            ),
            (any::<u64>(), digest.clone(), digest).prop_map(|(index, previous, hash)| Row::Skipped {
                index,
                previous,
                hash
            }),
            (tail.clone(), any::<u64>()).prop_map(|(tail, alone)| Row::Apart { tail, alone }),
            tail.prop_map(Row::End),
        ]
    }

    proptest! {
        #[test]
        fn what_was_written_reads_back_the_same(rows in prop::collection::vec(row(), 0..8)) {
            for format in [Format::Csv, Format::Json] {
                let mut text = format.head();
                for (place, row) in rows.iter().enumerate() {
                    text.push_str(&row.text(format, place == 0));
                }
                text.push_str(format.foot());
                let mut again = Vec::new();
                read(text.as_bytes(), |row| again.push(row)).unwrap();
                prop_assert_eq!(&again, &rows, "{}", text);
            }
        }

        #[test]
        fn no_bytes_make_the_reader_panic(data: Vec<u8>) {
            fuzz(&data);
        }
    }

    #[test]
    fn what_is_no_export_is_refused_with_its_row() {
        let head = Format::Csv.head();
        let end = format!("1,,,,,,,,end,,,,{}\n", Digest::default());
        read(format!("{head}{end}").as_bytes(), drop).unwrap();
        for (text, told) in [
            (String::new(), "row 0: it is empty"),
            ("a,b\n".to_owned(), "row 0: the first line must be index,epoch"),
            (format!("{head}1,2\n"), "row 1: it has 2 fields, not 13"),
            (format!("{head}{end}\"x"), "row 2: a quote is not closed"),
            (format!("{head}+{end}"), "row 1: \"+1\" is no whole number"),
            (format!("{head}{}", end.replace("end", "vanish")), "row 1: it has no epoch"),
            (format!("{head}{}", "x".repeat(MAX_ROW + 1)), "row 1: it is longer than 1048576 bytes"),
            ("[{\"index\":1}]".to_owned(), "missing field `act`"),
            ("[".to_owned(), "EOF while parsing"),
        ] {
            let refused = read(text.as_bytes(), drop).unwrap_err().to_string();
            assert!(refused.starts_with(told), "{refused}");
        }
    }
}
