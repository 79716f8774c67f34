//! What becomes of the other servers when one is taken. Pure. Whoever was or may be a primary must
//! never be written to again; whoever merely follows is told to follow the new one, now or when it
//! is back. Decides for no server what it is: that it shows itself, or has shown when it last answered.

use std::collections::BTreeSet;

use super::{Host, Place};

/// The servers beside the one that is taken, as `host:port`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Others {
    /// They take writes, or may have done so last.
    pub(super) former: Vec<String>,
    /// They follow.
    standbys: Vec<String>,
    /// They do not answer, and followed when they last did.
    away: Vec<String>,
    /// Those of them that an operator has forbidden before, and that stay so.
    fenced: BTreeSet<String>,
}

impl Others {
    /// Of all but `target`; `standbys` are those that followed when they last answered.
    pub(super) fn of(hosts: &[Host], target: &str, standbys: &BTreeSet<String>) -> Self {
        let mut others = Self::default();
        for Host { host, place, fenced, .. } in hosts.iter().filter(|other| other.host != target) {
            let whose = match place {
                Place::Standby => &mut others.standbys,
                Place::Away if standbys.contains(host) => {
                    others.fenced.extend(fenced.then(|| host.clone()));
                    &mut others.away
                }
                Place::Primary | Place::Away | Place::Unfit => &mut others.former,
            };
            whose.push(host.clone());
        }
        others
    }

    /// What the operator must do with them now that `target` is written to.
    pub(super) fn to_do(&self, target: &str) -> Vec<String> {
        let former = self.former.iter().flat_map(|other| {
            [
                format!("on {other}: stop the server, or see that it is stopped; it must not come back as a primary"),
                format!("on {other}: bring it to the new history (pg_rewind, or a new base backup) and start it as a standby of {target}"),
                format!("then here: vault database rejoin --host {other}"),
                format!("on the other vault: vault database fence --host {other}, and rejoin when it is back"),
            ]
        });
        let follow = |other: &String, first: String| {
            [
                format!(
                    "{first}let it follow {target}; if it had received more than {target}: pg_rewind, or a new base backup, first"
                ),
                format!(
                    "then here: vault database rejoin --host {other}, which tells whether it has the new history"
                ),
            ]
        };
        let standbys = self.standbys.iter().flat_map(|other| follow(other, format!("on {other}: ")));
        let away = self.away.iter().flat_map(|other| {
            let fenced = if self.fenced.contains(other) {
                "; it was fenced before, and stays so until it is taken back"
            } else {
                ", so it is not fenced"
            };
            follow(other, format!("{other} is away and was a standby{fenced}; when it is back: "))
        });
        former.chain(standbys).chain(away).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::DatabaseError;
    use super::super::note::Note;
    use super::*;

    fn host(name: &str, place: Place) -> Host {
        let host = Host::closed(name.to_owned(), &DatabaseError::NoPrimary(String::new()));
        Host { place, ..host }
    }

    #[test]
    fn only_who_was_or_may_be_a_primary_is_fenced() {
        let mut note = Note::default();
        note.saw(&[host("a", Place::Primary), host("b", Place::Standby), host("c", Place::Standby)]);
        // All but the second one are away now; the last was never seen.
        let now = [("a", Place::Away), ("b", Place::Standby), ("c", Place::Away), ("d", Place::Away)];
        let now = now.map(|(name, place)| host(name, place));
        note.saw(&now);
        let others = Others::of(&now, "b", &note.standbys);
        assert_eq!(
            (others.former.as_slice(), others.away.as_slice()),
            (&["a", "d"].map(str::to_owned)[..], &["c".to_owned()][..])
        );
        let told = others.to_do("b").join("\n");
        assert!(told.contains("c is away and was a standby") && told.contains("rejoin --host c"), "{told}");
        assert!(!told.contains("fence --host c"), "{told}");

        // Who was fenced before stays so, and is not said to be free.
        let away = now.each_ref().map(|now| Host { fenced: now.host == "c", ..now.clone() });
        let told = Others::of(&away, "b", &note.standbys).to_do("b").join("\n");
        assert!(told.contains("c is away and was a standby; it was fenced before, and stays so"), "{told}");
        assert!(!told.contains("not fenced"), "{told}");

        // Whoever has taken writes since is a standby no more, and whoever cannot be used may be one.
        note.saw(&[host("c", Place::Primary), host("b", Place::Unfit)]);
        let later = ["b", "c"].map(|name| host(name, Place::Away));
        assert_eq!(Others::of(&later, "a", &note.standbys).former, ["b", "c"]);
    }
}
