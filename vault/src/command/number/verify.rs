//! `vault number verify`: reads an export or a journal, has it audited, and tells what was found.
//! Runs without a vault; opens the journal for reading alone.

use std::fmt;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use clap::Args;

use super::super::file::shown;
use super::super::{CommandError, Output};
use crate::sequence::audit::{Audit, Findings, Missing, SeriesFindings, VoidNumber};
use crate::sequence::book::SeriesName;
use crate::sequence::export::{Row, read};
use crate::sequence::journal::{Journal, JournalError};

/// `vault number verify`
#[derive(Debug, Args)]
pub struct Verify {
    /// What vault number export has written; - is standard input
    #[arg(default_value = "-")]
    file: PathBuf,
    /// A vault's journal.db, or a copy of it, instead of an export
    #[arg(long, value_name = "FILE", conflicts_with = "file")]
    journal: Option<PathBuf>,
}

/// The ledger is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotProved {
    problems: u64,
}

impl fmt::Display for NotProved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "not proved: {} problems; compare with the other vault's journal and with earlier exports to find what was altered",
            self.problems
        )
    }
}

impl Verify {
    /// Reads, audits, tells.
    ///
    /// # Errors
    /// What cannot be read, or [`NotProved`].
    pub fn run(&self, output: &mut Output<'_>) -> Result<(), CommandError> {
        let findings = match &self.journal {
            Some(journal) => audit_journal(journal).map_err(|source| match source {
                // It reads well, and as something else.
                source @ (JournalError::Damaged { .. } | JournalError::Series { .. }) => source.into(),
                source => CommandError::NoJournal { source },
            })?,
            None => audit_export(&self.file)?,
        };
        output.show(&findings, &told(&findings))?;
        if findings.proved {
            return Ok(());
        }
        let problems = findings.problems.len() as u64 + findings.more_problems;
        Err(CommandError::NotProved(NotProved { problems }))
    }
}

fn audit_export(file: &Path) -> Result<Findings, CommandError> {
    let from: Box<dyn Read> = if file == Path::new("-") {
        Box::new(std::io::stdin().lock())
    } else {
        let unread = |source| CommandError::Unread { file: file.to_owned(), source };
        Box::new(File::open(file).map_err(unread)?)
    };
    let mut audit = Audit::default();
    let rows = read(BufReader::new(from), |row| audit.take(row));
    rows.map_err(|source| CommandError::Export { file: file.to_owned(), source })?;
    Ok(audit.finish(true))
}

/// Every entry, and whether the journal's own table of numbers says what they say.
fn audit_journal(file: &Path) -> Result<Findings, JournalError> {
    let journal = Journal::open_to_read(file)?;
    journal.stand_still()?;
    let mut audit = Audit::default();
    let mut after = 0;
    loop {
        let entries = journal.entries(after)?;
        let Some(last) = entries.last() else { break };
        after = last.index;
        entries.into_iter().for_each(|entry| audit.take(Row::Entry(entry)));
    }
    let (mut place, mut count) = (None, 0);
    loop {
        let page = journal.every_number(place.as_ref())?;
        let Some((name, last)) = page.last() else { break };
        place = Some((name.clone(), last.number.number));
        for (SeriesName { owner, series }, known) in page {
            count += 1;
            let name = SeriesName { owner, series };
            let number = &known.number;
            if !audit.agrees(&name, &known) {
                audit.problem(format!(
                    "number {} of series {} of {}: the journal's table says otherwise than its entries",
                    number.number, name.series, name.owner
                ));
            }
        }
    }
    if count != audit.numbers() {
        let numbers = audit.numbers();
        audit.problem(format!("the journal's table has {count} numbers, its entries give {numbers}"));
    }
    Ok(audit.finish(false))
}

fn told(findings: &Findings) -> String {
    let Findings { proved, entries, skipped, last_index, last_hash, .. } = findings;
    let verdict = if *proved { "proved" } else { "NOT PROVED" };
    let others =
        if *skipped > 0 { format!(", {skipped} of others by their hashes alone") } else { String::new() };
    let mut text =
        format!("{verdict}: {entries} entries{others}, the last is {last_index}\nits hash: {last_hash}\n");
    if *entries == 0 && *skipped > 0 {
        text.push_str("no such series in it: nothing is said here of any series; was its name, or its owner's, mistyped?\n");
    }
    if let Some(alone) = findings.apart {
        text.push_str(&format!(
            "not the whole: the vaults were apart, and {alone} numbers that this one had given alone are not in it, nor \
             those of the other; export again when both have met\n"
        ));
    }
    for series in &findings.series {
        let SeriesFindings { owner, given, last, confirmed, reserved, voided, doubtful, .. } = series;
        let period = series.period.as_deref().map_or_else(String::new, |period| format!(" {period}"));
        text.push_str(&format!(
            "{}{period} of {owner}: {given} numbers up to {last}: {confirmed} confirmed, {reserved} reserved, {voided} void, {doubtful} doubtful\n",
            shown(&series.series)
        ));
        for VoidNumber { number, reason } in &series.void {
            text.push_str(&format!("  {number} is void: {}\n", shown(reason)));
        }
        for Missing { from, to, why } in &series.missing {
            text.push_str(&format!("  {from} to {to} not given: {}\n", shown(why)));
        }
    }
    for problem in &findings.problems {
        text.push_str(&format!("! {}\n", shown(problem)));
    }
    if findings.more_problems > 0 {
        text.push_str(&format!("! and {} more\n", findings.more_problems));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::entry::{Act, Draft, Entry, Tail};
    use crate::sequence::protocol::Write;

    fn journal(folder: &Path) -> PathBuf {
        let file = folder.join("journal.db");
        let mut journal = Journal::open(&file, 5).unwrap();
        let mut tail = Tail::default();
        let acts = [
            (1, "a", Act::Reserve(None)),
            (2, "b", Act::Reserve(Some(9))),
            (1, "a", Act::Confirm("h".to_owned())),
            (2, "b", Act::Void("torn".to_owned())),
        ];
        let entries = acts.map(|(number, key, act)| {
            let (owner, series, key) = ("erp".to_owned(), "INV".to_owned(), key.to_owned());
            let entry =
                Entry::append(tail, 1, 9, Draft { owner, series, number, key, act, at: 7, carried: None });
            tail = entry.tail();
            entry
        });
        let memory = journal.memory().unwrap();
        journal.write(&Write { cut: None, entries: entries.into(), rows: Vec::new(), memory }).unwrap();
        file
    }

    #[test]
    fn an_export_of_a_mistyped_series_says_that_it_holds_none() {
        let folder = tempfile::tempdir().unwrap();
        let entries = Journal::open_to_read(&journal(folder.path())).unwrap().entries(0).unwrap();
        for (series, says) in [("INV", false), ("INF", true)] {
            let mut audit = Audit::default();
            entries.iter().for_each(|entry| audit.take(Row::of(entry.clone(), "erp", series)));
            audit.take(Row::End(entries.last().unwrap().tail()));
            let findings = audit.finish(true);
            let text = told(&findings);
            assert!(findings.proved && text.contains("no such series in it") == says, "{text}");
        }
    }

    #[test]
    fn whatever_is_altered_in_a_journal_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let file = journal(folder.path());
        let findings = audit_journal(&file).unwrap();
        assert!(findings.proved && findings.entries == 4, "{findings:?}");
        let mut altered = 0;
        for (table, columns) in [
            ("entry", &["epoch", "carried", "number", "at"][..]),
            ("entry", &["life", "owner", "series", "key", "act", "text", "previous", "hash"]),
            ("number", &["number", "idx"]),
            ("number", &["owner", "series", "key", "state", "document_hash", "reason", "hash"]),
        ] {
            for column in columns {
                let other = match *column {
                    "life" => "randomblob(16)",
                    "previous" | "hash" => "randomblob(32)",
                    "act" => "'doubt'",
                    "state" => "'doubtful'",
                    "epoch" | "carried" | "number" | "at" | "idx" => "$ + 7",
                    _ => "coalesce($, '') || 'x'",
                };
                let other = other.replace('$', column);
                let row = if table == "entry" { "idx = 3" } else { "number = 2" };
                let connection = rusqlite::Connection::open(&file).unwrap();
                let copy = format!("CREATE TABLE kept AS SELECT * FROM {table}");
                connection.execute_batch(&copy).unwrap();
                let alter = format!("UPDATE {table} SET {column} = {other} WHERE {row}");
                assert_eq!(connection.execute(&alter, []).unwrap(), 1, "{alter}");
                let found = audit_journal(&file);
                assert!(!found.as_ref().is_ok_and(|found| found.proved), "{alter}: {found:?}");
                let back =
                    format!("DELETE FROM {table}; INSERT INTO {table} SELECT * FROM kept; DROP TABLE kept");
                connection.execute_batch(&back).unwrap();
                assert!(audit_journal(&file).unwrap().proved, "put back");
                altered += 1;
            }
        }
        assert_eq!(altered, 21);
        let connection = rusqlite::Connection::open(&file).unwrap();
        for alter in ["DELETE FROM number WHERE number = 1", "DELETE FROM entry WHERE idx = 2"] {
            assert_eq!(connection.execute(alter, []).unwrap(), 1);
            assert!(!audit_journal(&file).unwrap().proved, "{alter}");
        }
    }
}
