//! Notes that are not on one option of one jail: what is true of many jails is said once, and files that
//! are not there. Knows fail2ban's jails; must not know ours.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::ini::Value;
use super::jail::Jail;
use super::{Kind, Note};

/// Files that others include and that are not there.
pub(super) fn missing_includes(
    notes: &mut Vec<Note>,
    missing: &[(PathBuf, Value)],
    jail: Option<&str>,
    enabled: bool,
) {
    notes.extend(missing.iter().map(|(file, named)| Note {
        kind: Kind::Missing,
        jail: jail.map(str::to_owned),
        enabled,
        file: named.file.to_path_buf(),
        line: named.line,
        what: format!("includes {}, which is not there; fail2ban passes it over, too", file.display()),
    }));
}

/// What is true of many jails is said once.
#[derive(Default)]
pub(super) struct General {
    ports: BTreeMap<String, Vec<String>>,
    names_looked_up: Vec<String>,
}

impl General {
    pub(super) fn look_at(&mut self, jail: &Jail, enabled: bool) {
        if !enabled {
            return;
        }
        let all_ports = jail.said("action").is_none_or(|action| action.contains("allports"));
        if let Some(port) = jail.said("port").filter(|port| !all_ports && *port != "0:65535") {
            self.ports.entry(port.to_owned()).or_default().push(jail.name.clone());
        }
        if jail.said("usedns").is_some_and(|how| matches!(how, "yes" | "warn")) {
            self.names_looked_up.push(jail.name.clone());
        }
    }

    pub(super) fn note(self, folder: &Path, notes: &mut Vec<Note>) {
        let mut note = |what| {
            notes.push(Note {
                kind: Kind::Different,
                jail: None,
                enabled: true,
                file: folder.join("jail.conf"),
                line: 0,
                what,
            });
        };
        if !self.ports.is_empty() {
            let list: Vec<String> =
                self.ports.iter().map(|(port, jails)| format!("{} for {}", port, jails.join(", "))).collect();
            note(format!("fail2ban closes single ports ({}); edge closes all of them", list.join("; ")));
        }
        if !self.names_looked_up.is_empty() {
            let jails = self.names_looked_up.join(", ");
            note(format!(
                "host names in log lines are never looked up (usedns of {jails}); addresses alone count"
            ));
        }
    }
}
