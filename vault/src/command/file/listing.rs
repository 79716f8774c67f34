//! `vault file list`: files as a table that is printed while it comes, or as one JSON document.
//! Knows columns; which files there are is the vault's to say.

use std::path::Path;

use clap::Args;
use http::Method;
use shared::api::{File, Page};

use super::super::{CommandError, Output};
use super::{SOON, ask, encoded, seconds, shown};

/// `vault file list`
#[derive(Debug, Args)]
pub struct List {
    /// Only this owner's
    #[arg(long, value_name = "NAME")]
    owner: Option<String>,
    /// Only those whose label contains this; large and small letters are the same
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,
    /// Deleted ones that can still be taken back: when each was deleted, and when it is purged at
    /// the earliest
    #[arg(long)]
    deleted: bool,
    /// At most so many
    #[arg(long, value_name = "COUNT")]
    limit: Option<usize>,
    /// Only those behind this id, as the last line of a list that was cut names it
    #[arg(long, value_name = "ID")]
    after: Option<String>,
}

impl List {
    pub(super) async fn run(&self, socket: &Path, output: &mut Output<'_>) -> Result<(), CommandError> {
        let word = |name: &str, value: &str| format!("&{name}={}", encoded(value));
        let mut asked = String::new();
        asked.extend(self.owner.iter().map(|owner| word("owner", owner)));
        asked.extend(self.label.iter().map(|label| word("label", label)));
        asked.extend(self.deleted.then(|| word("deleted", "true")));
        let mut left = self.limit.unwrap_or(usize::MAX);
        let mut after = self.after.clone();
        let mut table = Table { deleted: self.deleted, count: 0, begun: false };
        while left > 0 {
            let from = after.as_ref().map(|after| word("after", after)).unwrap_or_default();
            let path = format!("/v1/files?limit={}{asked}{from}", left.min(shared::api::MAX_PAGE));
            let page: Page<File> = ask(socket, Method::GET, &path, SOON).await?;
            table.begin(output)?;
            left -= page.items.len().min(left);
            for file in &page.items {
                table.add(output, file)?;
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        table.end(output, after.as_deref().filter(|_| left == 0))
    }
}

/// A list that is printed as it comes, so that its length costs no memory.
struct Table {
    deleted: bool,
    count: usize,
    begun: bool,
}

impl Table {
    /// The first answer is there.
    fn begin(&mut self, output: &mut Output<'_>) -> Result<(), CommandError> {
        if std::mem::replace(&mut self.begun, true) {
            return Ok(());
        }
        let when =
            if self.deleted { "DELETED               PURGED AFTER        " } else { "CREATED             " };
        if output.json {
            write!(output.to, "[")?;
        } else {
            writeln!(output.to, "{:<64}  {:>12}  {when}  {:<12}  LABEL", "ID", "SIZE", "OWNER")?;
        }
        Ok(())
    }

    fn add(&mut self, output: &mut Output<'_>, file: &File) -> Result<(), CommandError> {
        if output.json {
            let json = serde_json::to_string(file).map_err(std::io::Error::from)?;
            write!(output.to, "{}\n  {json}", if self.count == 0 { "" } else { "," })?;
        } else {
            let debt = if file.owed.is_empty() {
                String::new()
            } else {
                format!("  (owed to {})", file.owed.join(", "))
            };
            let when = match (&file.deleted, &file.purged_after) {
                (Some(deleted), Some(purged)) => format!("{deleted:<20}  {purged:<20}"),
                _ => format!("{:<20}", seconds(&file.created)),
            };
            let label = shown(&file.label);
            writeln!(output.to, "{}  {:>12}  {when}  {:<12}  {label}{debt}", file.id, file.size, file.owner)?;
        }
        self.count += 1;
        Ok(())
    }

    /// `more`: the list was cut there.
    fn end(mut self, output: &mut Output<'_>, more: Option<&str>) -> Result<(), CommandError> {
        self.begin(output)?;
        if output.json {
            writeln!(output.to, "{}]", if self.count == 0 { "" } else { "\n" })?;
        } else if let Some(after) = more {
            writeln!(output.to, "… and more: --after {after}")?;
        }
        Ok(output.to.flush()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> File {
        File {
            id: "a".repeat(64),
            owner: "erp".to_owned(),
            label: "\n".to_owned(),
            media_type: "text/plain".to_owned(),
            size: 5,
            created: "2026-01-01T00:00:00.5Z".to_owned(),
            replicas: vec!["paris".to_owned()],
            owed: vec!["lyon".to_owned()],
            deleted: None,
            purged_after: None,
        }
    }

    fn printed(json: bool, deleted: bool, files: &[File], more: Option<&str>) -> String {
        let mut told = Vec::new();
        let mut output = Output { to: &mut told, json };
        let mut table = Table { deleted, count: 0, begun: false };
        files.iter().for_each(|file| {
            table.begin(&mut output).unwrap();
            table.add(&mut output, file).unwrap();
        });
        table.end(&mut output, more).unwrap();
        String::from_utf8(told).unwrap()
    }

    #[test]
    fn a_list_is_one_json_document_whatever_its_length() {
        for count in 0..3 {
            let read: Vec<File> =
                serde_json::from_str(&printed(true, false, &vec![file(); count], Some("x"))).unwrap();
            assert_eq!(read.len(), count);
        }
        assert_eq!(printed(false, false, &[file()], None).lines().count(), 2, "a label breaks no line");
    }

    #[test]
    fn a_list_that_was_cut_says_how_to_go_on_and_deleted_files_say_when_they_go() {
        let gone = File {
            deleted: Some("2026-01-02T00:00:00Z".to_owned()),
            purged_after: Some("2026-01-09T01:00:00Z".to_owned()),
            owed: Vec::new(),
            ..file()
        };
        let told = printed(false, true, &[gone], Some("abc"));
        let lines: Vec<_> = told.lines().collect();
        assert_eq!(lines[2], "… and more: --after abc");
        for (column, value) in [("DELETED", "2026-01-02T00:00:00Z"), ("PURGED AFTER", "2026-01-09T01:00:00Z")]
        {
            assert_eq!(lines[0].find(column), lines[1].find(value), "{told}");
        }
    }
}
