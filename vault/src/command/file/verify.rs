//! `vault file verify`: what reading every replica showed, and what becomes of what is not whole.
//! Knows the words; the vault reads.

use std::fmt;
use std::path::Path;

use http::Method;
use shared::api::{Verdict, VerifiedFile};

use super::super::{CommandError, Output};
use super::{LATE, ask, place, shown, transfer};

/// What is wanting among the files that were looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanting {
    /// How many were looked at.
    looked: usize,
    /// Files with a replica that is absent or damaged.
    bad: usize,
    /// Of these, files without any whole replica.
    lost: usize,
    /// Replicas that could not be read, so that nothing is known of them.
    unread: usize,
}

impl Wanting {
    fn of(files: &[VerifiedFile]) -> Self {
        let is_bad = |state: Verdict| matches!(state, Verdict::Absent | Verdict::Damaged);
        let bad = files.iter().filter(|file| file.replicas.iter().any(|replica| is_bad(replica.state)));
        let replicas = files.iter().flat_map(|file| &file.replicas);
        Self {
            looked: files.len(),
            bad: bad.count(),
            lost: files.iter().filter(|file| file.lost).count(),
            unread: replicas.filter(|replica| replica.state == Verdict::Unknown).count(),
        }
    }
}

impl fmt::Display for Wanting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { looked, bad, lost, unread } = *self;
        let mut parts = Vec::new();
        if bad > 0 {
            parts.push(format!("{bad} of {looked} files are not whole on every file server"));
        }
        if bad > lost {
            parts.push("what is bad is owed and healed by itself".to_owned());
        }
        if lost > 0 {
            parts.push(format!(
                "of {lost} no whole replica is left: restore one from quarantine/ on a file server or from a \
                 backup: README, When both replicas are damaged"
            ));
        }
        if unread > 0 {
            parts.push(format!(
                "{unread} replicas could not be read, and nothing is known of them: mend what their lines name, \
                 then verify again"
            ));
        }
        f.write_str(&parts.join("; "))
    }
}

pub(super) async fn verify(
    socket: &Path,
    ids: &[String],
    output: &mut Output<'_>,
) -> Result<(), CommandError> {
    let places = ids.iter().map(|id| place(id)).collect::<Result<Vec<_>, _>>()?;
    let bar = transfer::bar(output, Some(ids.len() as u64), transfer::COUNT);
    let (mut all, mut text, mut stopped) = (Vec::new(), String::new(), None);
    for (id, place) in ids.iter().zip(places) {
        let asked = ask::<VerifiedFile>(socket, Method::POST, &format!("{place}/verify"), LATE).await;
        let found = match asked {
            Ok(found) => found,
            Err(error) => {
                stopped = Some(error.about(id));
                break;
            }
        };
        for replica in &found.replicas {
            let state = match replica.state {
                Verdict::Whole => "whole",
                Verdict::Absent => "absent",
                Verdict::Damaged => "damaged",
                Verdict::Unknown => "unknown",
            };
            let why = replica.why.as_deref().map(|why| format!("  {}", shown(why))).unwrap_or_default();
            text.push_str(&format!("{}  {:<12}  {state}{why}\n", found.id, replica.file_server));
        }
        if found.lost {
            text.push_str(&format!("{}  {:<12}  no whole replica is left\n", found.id, "LOST"));
        }
        all.push(found);
        bar.inc(1);
    }
    bar.finish_and_clear();
    if stopped.is_none() || !all.is_empty() {
        output.show(&all, &text)?;
    }
    if let Some(error) = stopped {
        return Err(error);
    }
    if all.iter().any(|file| !file.whole) {
        return Err(CommandError::NotWhole(Wanting::of(&all)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_heals_what_is_lost_and_what_is_not_known_are_told_apart() {
        let told = |bad, lost, unread| Wanting { looked: 3, bad, lost, unread }.to_string();
        let heals = "what is bad is owed and healed by itself";
        let bad = "2 of 3 files are not whole on every file server";
        assert_eq!(told(2, 0, 0), format!("{bad}; {heals}"));
        assert!(!told(2, 2, 0).contains(heals), "nothing heals what is lost");
        assert!(told(2, 2, 0).starts_with(&format!("{bad}; of 2 no whole replica is left: restore")));
        assert!(told(2, 1, 0).contains(heals));
        let unknown = told(0, 0, 2);
        assert!(unknown.starts_with("2 replicas could not be read") && !unknown.contains("not whole"));
    }
}
