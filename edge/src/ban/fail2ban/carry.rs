//! A folder of fail2ban's → all its jails and their filters, carried over one by one; a broken one is left
//! out, with a note. Knows how jails share filters; must not know what their options mean.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use super::files::Merged;
use super::interpolate::{self, Given};
use super::jail::{Jail, Jails};
use super::report::{General, missing_includes};
use super::translate::{Translation, named, whole};
use super::{Import, ImportFault, ImportedFilter, ImportedJail, Kind, Note, time};
use crate::ban::{FilterText, JailSettings, MAX_FILTER_LINES};

/// fail2ban forgets bans that are older, where `fail2ban.conf` says nothing.
pub(super) const SILENT_PURGE_AGE: Duration = Duration::from_secs(86_400);

pub(super) fn import(folder: &Path) -> Result<Import, ImportFault> {
    let mut jails = Jails::read(folder)?;
    let mut import = Import { folder: folder.to_owned(), ..Import::default() };
    missing_includes(&mut import.notes, &jails.merged().missing, None, true);
    let forgiveness = purge_age(folder)?;
    let mut all = General::default();
    for name in jails.names() {
        let was_enabled = jails.is_enabled(&name);
        match jails.jail(&name, false).and_then(|jail| readable(&mut jails, jail)).and_then(with_patterns) {
            Ok((jail, journal)) => {
                let mut one = Translation { jail: &jail, was_enabled, off: false, notes: Vec::new() };
                one.journal(journal);
                let settings = one.settings(forgiveness);
                all.look_at(&jail, was_enabled);
                let enabled = was_enabled && !one.off;
                missing_includes(&mut one.notes, &jail.missing, Some(&jail.name), was_enabled);
                import.notes.append(&mut one.notes);
                import.take(&jail, settings, was_enabled, enabled);
            }
            Err(fault) => {
                let (file, line) = jails.place(&name);
                let what = fault.to_string();
                import.notes.push(Note {
                    kind: Kind::LeftOut,
                    jail: Some(name),
                    enabled: was_enabled,
                    file,
                    line,
                    what,
                });
            }
        }
    }
    all.note(folder, &mut import.notes);
    Ok(import)
}

/// A jail on the journal is read for its log files where it names some; the second says whether it is one.
fn readable(jails: &mut Jails, jail: Jail) -> Result<(Jail, bool), ImportFault> {
    let journal = jail.said("backend").is_some_and(|backend| backend.starts_with("systemd"));
    if journal && jail.said("logpath").is_some() {
        return Ok((jails.jail(&jail.name, true)?, true));
    }
    Ok((jail, journal))
}

/// A jail whose filter matches nothing is none; and of lines no more are kept than edge can.
fn with_patterns((mut jail, journal): (Jail, bool)) -> Result<(Jail, bool), ImportFault> {
    if jail.text.failregex.is_empty() {
        let what = format!("its filter {} has no failregex, so nothing would ever match", jail.filter);
        return Err(ImportFault::Jail { file: jail.file, line: jail.line, jail: jail.name, what });
    }
    jail.text.max_lines = jail.text.max_lines.min(MAX_FILTER_LINES);
    Ok((jail, journal))
}

/// After how long fail2ban's database forgets, and with it the counting of repeated bans.
fn purge_age(folder: &Path) -> Result<Duration, ImportFault> {
    let Some(merged) = Merged::read(&folder.join("fail2ban"))? else { return Ok(SILENT_PURGE_AGE) };
    for section in ["Definition", "DEFAULT"] {
        let value = interpolate::value(&merged, section, "dbpurgeage", &Given::new()).ok().flatten();
        if let Some(age) = value.and_then(|value| time::seconds(&value.text)).filter(|age| *age > 0.0) {
            return Ok(whole(age));
        }
    }
    Ok(SILENT_PURGE_AGE)
}

impl Import {
    fn take(&mut self, jail: &Jail, mut settings: JailSettings, was_enabled: bool, enabled: bool) {
        settings.filter = self.filter(jail);
        let said = jail.options.iter().map(|(name, value)| (name.clone(), value.text.clone())).collect();
        self.jails.push(ImportedJail {
            settings,
            enabled,
            was_enabled,
            file: jail.file.clone(),
            line: jail.line,
            said,
        });
    }

    /// The name of this jail's filter: jails with the same patterns share one.
    fn filter(&mut self, jail: &Jail) -> String {
        let unnamed = FilterText { name: String::new(), ..jail.text.clone() };
        let base = named(jail.filter.strip_suffix(".conf").unwrap_or(&jail.filter).rsplit('/').next());
        let same = |filter: &&ImportedFilter| {
            filter.text.name.starts_with(&*base)
                && FilterText { name: String::new(), ..filter.text.clone() } == unnamed
        };
        if let Some(found) = self.filters.iter().find(same) {
            return found.text.name.clone();
        }
        let taken: BTreeSet<&str> = self.filters.iter().map(|filter| &*filter.text.name).collect();
        let numbered = (2..).map(|n| format!("{}-{n}", base.get(..58).unwrap_or(&base)));
        let name = [base.clone(), named(Some(&format!("{base}-{}", jail.name)))]
            .into_iter()
            .chain(numbered)
            .find(|name| !taken.contains(&**name))
            .unwrap_or(base);
        let text = FilterText { name: name.clone(), ..unnamed };
        self.filters.push(ImportedFilter { text, file: jail.filter_file.clone() });
        name
    }
}
