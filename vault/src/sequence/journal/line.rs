//! Entries on their way into their table: the columns in their order, several lines a statement.
//! Knows SQL's `INSERT`; not what is derived of an entry.

use std::sync::LazyLock;

use rusqlite::{Statement, Transaction};

use crate::sequence::entry::Entry;

/// Lines that one statement takes: starting one has its price too.
const LINES: usize = 16;
const COLUMNS: usize = 13;

static MANY: LazyLock<String> = LazyLock::new(|| insert("entry", LINES));
static ONE: LazyLock<String> = LazyLock::new(|| insert("entry", 1));
static ALONE: LazyLock<String> = LazyLock::new(|| insert("solo", 1));

/// Adds entries to the chain's table, in their order.
pub(super) fn append(transaction: &Transaction<'_>, entries: &[Entry]) -> rusqlite::Result<()> {
    let (many, rest) = entries.as_chunks::<LINES>();
    for lines in many {
        put(&mut *transaction.prepare_cached(&MANY)?, lines)?;
    }
    for line in rest {
        put(&mut *transaction.prepare_cached(&ONE)?, std::slice::from_ref(line))?;
    }
    Ok(())
}

/// Adds rows to those that this vault gave alone.
pub(super) fn append_alone(transaction: &Transaction<'_>, rows: &[Entry]) -> rusqlite::Result<()> {
    for row in rows {
        put(&mut *transaction.prepare_cached(&ALONE)?, std::slice::from_ref(row))?;
    }
    Ok(())
}

fn insert(table: &str, lines: usize) -> String {
    let line = format!("({})", vec!["?"; COLUMNS].join(","));
    format!("INSERT INTO {table} VALUES {}", vec![line; lines].join(","))
}

fn put(statement: &mut Statement<'_>, lines: &[Entry]) -> rusqlite::Result<()> {
    for (line, entry) in lines.iter().enumerate() {
        let (act, text) = entry.act.parts();
        let at = |column: usize| line * COLUMNS + column;
        statement.raw_bind_parameter(at(1), entry.index)?;
        statement.raw_bind_parameter(at(2), entry.epoch)?;
        statement.raw_bind_parameter(at(3), entry.life.to_be_bytes())?;
        statement.raw_bind_parameter(at(4), entry.carried)?;
        statement.raw_bind_parameter(at(5), &entry.owner)?;
        statement.raw_bind_parameter(at(6), &entry.series)?;
        statement.raw_bind_parameter(at(7), entry.number)?;
        statement.raw_bind_parameter(at(8), &entry.key)?;
        statement.raw_bind_parameter(at(9), act)?;
        statement.raw_bind_parameter(at(10), text)?;
        statement.raw_bind_parameter(at(11), entry.at)?;
        statement.raw_bind_parameter(at(12), entry.previous.0)?;
        statement.raw_bind_parameter(at(13), entry.hash.0)?;
    }
    statement.raw_execute().map(drop)
}

#[cfg(test)]
mod tests {
    use super::super::Journal;
    use super::*;
    use crate::sequence::entry::{Act, Draft};
    use crate::sequence::protocol::Write;

    #[test]
    fn entries_are_read_back_in_their_order_however_many_are_written_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(&folder.path().join("journal.db"), 5).unwrap();
        let memory = journal.memory().unwrap();
        let mut all = Vec::new();
        for count in [1, LINES - 1, LINES, LINES + 1, 3 * LINES + 5] {
            let mut tail = journal.tail().unwrap();
            let entries: Vec<Entry> = (0..count)
                .map(|_| {
                    let (owner, series) = ("erp".to_owned(), "INV".to_owned());
                    let (number, key) = (tail.index + 1, format!("k{}", tail.index));
                    let draft = Draft {
                        owner,
                        series,
                        number,
                        key,
                        act: Act::Reserve(Some(7)),
                        at: -1,
                        carried: None,
                    };
                    let entry = Entry::append(tail, 1, u128::MAX, draft);
                    tail = entry.tail();
                    entry
                })
                .collect();
            all.extend_from_slice(&entries);
            journal.write(&Write { cut: None, entries, rows: Vec::new(), memory }).unwrap();
        }
        assert_eq!(journal.entries(0).unwrap(), all);
    }
}
