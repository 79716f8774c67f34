//! `edge fail2ban import | test`. Knows arguments, files and how a report is shown; what fail2ban's files
//! mean is read elsewhere.

pub mod test;

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::json;

use super::{Failure, pretty, say};
use crate::ban::FilterText;
use crate::ban::fail2ban::{Import, import};
use crate::ban::filter::Filter;

/// What `edge fail2ban` can do.
#[derive(Debug, Subcommand)]
pub enum Fail2banVerb {
    /// Carry fail2ban's filters and jails over, and tell what cannot be.
    Import {
        /// fail2ban's folder.
        #[arg(default_value = "/etc/fail2ban")]
        folder: PathBuf,
        /// The file to write, in bans.jails_folder; without it the filters and jails are only shown.
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Leave out the jails that are off.
        #[arg(long)]
        enabled_only: bool,
        /// Write over a file that is there already.
        #[arg(long, requires = "output")]
        replace: bool,
    },
    /// Try a filter on a log or a line, as fail2ban-regex does.
    Test(test::Arguments),
}

/// Carries `verb` out.
///
/// # Errors
/// fail2ban's files cannot be read, or the output not be written.
pub fn run(verb: &Fail2banVerb, json: bool) -> Result<(), Failure> {
    match verb {
        Fail2banVerb::Import { folder, output, enabled_only, replace } => {
            let mut import = import(folder).map_err(|fault| Failure::run(format!("fail2ban: {fault}")))?;
            if *enabled_only {
                import.keep_enabled();
            }
            import.note_forgeable(forgeable);
            if let Some(file) = output {
                write(file, &import.to_toml(), *replace)?;
            }
            let shown =
                if json { as_json(&import, output.as_deref())? } else { as_text(&import, output.as_deref()) };
            say(shown.trim_end())
        }
        Fail2banVerb::Test(arguments) => test::run(arguments, json),
    }
}

/// Patterns into which a client could write another's address, one sentence each.
fn forgeable(filter: &FilterText) -> Vec<String> {
    Filter::forgeable(filter).iter().map(ToString::to_string).collect()
}

/// A new file under another name first: whoever reads the folder meanwhile sees all of it or nothing.
fn write(file: &Path, text: &str, replace: bool) -> Result<(), Failure> {
    let failed =
        |what: &str, error: std::io::Error| Failure::run(format!("{}: {what}: {error}", file.display()));
    if !replace && file.symlink_metadata().is_ok() {
        let what = format!("{}: is there already; give another name, or --replace", file.display());
        return Err(Failure::run(what));
    }
    let mut name = file.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let new = PathBuf::from(name);
    let written = fs::File::options().write(true).create_new(true).open(&new).and_then(|mut open| {
        open.write_all(text.as_bytes())?;
        open.sync_all()
    });
    let placed = written.and_then(|()| fs::rename(&new, file));
    placed.map_err(|error| {
        let _ = fs::remove_file(&new);
        let what = match error.kind() {
            ErrorKind::NotFound => "cannot be written; make its folder first",
            _ => "cannot be written",
        };
        failed(what, error)
    })
}

fn as_text(import: &Import, output: Option<&Path>) -> String {
    let mut shown = String::new();
    if output.is_none() {
        shown.push_str(&import.to_toml());
        shown.push_str("\n# ");
    }
    let on = import.jails.iter().filter(|jail| jail.enabled).count();
    let were = import.jails.iter().filter(|jail| jail.was_enabled).count();
    shown.push_str(&format!(
        "{}: {} jails ({on} on, {were} in fail2ban), {} filters, {} notes\n",
        import.folder.display(),
        import.jails.len(),
        import.filters.len(),
        import.notes.len()
    ));
    if let Some(file) = output {
        for note in import.notes.iter().filter(|note| note.enabled) {
            shown.push_str(&format!("{note}\n"));
        }
        let later = import.notes.iter().filter(|note| !note.enabled).count();
        if later > 0 {
            shown.push_str(&format!("{later} notes on jails that are off stand in the file only\n"));
        }
        shown.push_str(&format!(
            "written to {}; now `edge check`, then stop fail2ban and restart edge\n",
            file.display()
        ));
    }
    shown
}

fn as_json(import: &Import, output: Option<&Path>) -> Result<String, Failure> {
    let jails: Vec<_> = import
        .jails
        .iter()
        .map(|jail| {
            json!({
                "name": jail.settings.name, "filter": jail.settings.filter, "enabled": jail.enabled,
                "was_enabled": jail.was_enabled, "file": jail.file, "line": jail.line,
            })
        })
        .collect();
    let filters: Vec<_> = import
        .filters
        .iter()
        .map(|filter| json!({ "name": filter.text.name, "file": filter.file }))
        .collect();
    pretty(&json!({
        "folder": import.folder,
        "jails": jails,
        "filters": filters,
        "notes": import.notes,
        "output": output,
        "toml": if output.is_none() { Some(import.to_toml()) } else { None },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let jail = "[DEFAULT]\naction = iptables\nfilter = f\nlogpath = /dev/null\n[on]\nenabled = true\n[off]\nbantime = -1\n";
        fs::write(folder.path().join("jail.conf"), jail).unwrap();
        fs::create_dir(folder.path().join("filter.d")).unwrap();
        fs::write(folder.path().join("filter.d/f.conf"), "[Definition]\nfailregex = ^<HOST>$\n").unwrap();
        folder
    }

    fn verb(folder: &Path, output: &Path, replace: bool) -> Fail2banVerb {
        let (folder, output) = (folder.to_owned(), Some(output.to_owned()));
        Fail2banVerb::Import { folder, output, enabled_only: false, replace }
    }

    #[test]
    fn a_file_that_is_there_is_only_replaced_on_demand() {
        let folder = folder();
        let file = folder.path().join("jails.toml");
        run(&verb(folder.path(), &file, false), false).unwrap();
        let written = fs::read_to_string(&file).unwrap();
        assert!(written.contains("[[jail]]\nname = \"on\"\nenabled = true\n"), "{written}");
        fs::write(&file, "mine").unwrap();
        let told = run(&verb(folder.path(), &file, false), false).unwrap_err().lines;
        assert!(
            told[0].ends_with("jails.toml: is there already; give another name, or --replace"),
            "{told:?}"
        );
        assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
        run(&verb(folder.path(), &file, true), true).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), written);
        // Nothing half-written stays behind.
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
        let nowhere = folder.path().join("none/jails.toml");
        let told = run(&verb(folder.path(), &nowhere, false), false).unwrap_err().lines;
        assert!(told[0].contains("make its folder first"), "{told:?}");
    }

    #[test]
    fn the_report_counts_what_is_on_and_names_what_is_lost() {
        let folder = folder();
        let import = import(folder.path()).unwrap();
        let shown = as_text(&import, Some(Path::new("x.toml")));
        assert!(shown.contains(": 2 jails (1 on, 1 in fail2ban), 1 filters, 1 notes\n"), "{shown}");
        assert!(shown.contains("1 notes on jails that are off stand in the file only\n"), "{shown}");
        let json: serde_json::Value = serde_json::from_str(&as_json(&import, None).unwrap()).unwrap();
        assert_eq!(
            (&json["jails"][1]["name"], &json["notes"][0]["kind"]),
            (&json!("off"), &json!("different"))
        );
        assert!(json["toml"].as_str().unwrap().contains("[[filter]]"));
    }

    #[test]
    fn a_folder_without_jails_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let told = run(&verb(folder.path(), Path::new("x"), false), false).unwrap_err().lines;
        assert!(
            told[0].contains("there is no jail.conf nor jail.local; write fail2ban's own folder"),
            "{told:?}"
        );
    }
}
