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
            Some(journal) => audit_journal(journal)?,
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
            if !audit.agrees(&name, number.number, &number.key, number.state) {
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
