//! What the servers show when they are looked at now and then: may one more be lost? A database
//! goes on with one server less and says nothing of it; this is where somebody notices. Decides
//! nothing about which server is written to.

use std::collections::BTreeSet;
use std::sync::Arc;

use shared::shutdown::Shutdown;
use tokio::sync::watch;
use tokio::time::sleep;

use super::copy::{PROBE, Shared, State};
use super::open::{survey, writable};
use super::{Host, Kind, Place, Role};

/// What is gone of that which makes good the loss of a server; nothing where one server is all
/// there is, or nothing is gone.
#[must_use]
pub fn thin(kind: Kind, role: Role, hosts: &[Host]) -> Option<String> {
    if hosts.len() < 2 {
        return None;
    }
    if kind == Kind::Etcd {
        return thin_quorum(role, hosts);
    }
    let taken = hosts.iter().position(|host| host.place == Place::Primary && !host.fenced);
    let others = hosts.iter().enumerate().filter(|(place, _)| Some(*place) != taken).map(|(_, host)| host);
    if others.clone().any(|host| host.place == Place::Standby && !host.fenced) {
        return None;
    }
    let said = others.map(said).collect::<Vec<_>>().join(", ");
    Some(format!("no standby of the database answers: {said}"))
}

/// Servers that take writes, each without the other, and what to do; nothing where it is one.
#[must_use]
pub fn alarm(kind: Kind, hosts: &[Host]) -> Option<String> {
    let names = writable(kind, hosts);
    if names.len() < 2 {
        return None;
    }
    let fenced = hosts.iter().filter(|host| host.fenced && names.contains(&host.host));
    let fenced: Vec<&str> = fenced.map(|host| host.host.as_str()).collect();
    let next = if fenced.len() + 1 < names.len() || fenced.is_empty() {
        "decide for one: vault database fence --host the other".to_owned()
    } else {
        let (verb, plural) = if fenced.len() == 1 { ("is", "s") } else { ("are", "") };
        format!(
            "{} {verb} fenced here and take{plural} writes all the same: stop it, bring it to the new history (pg_rewind, or a new base backup), and start it as a standby",
            fenced.join(" and ")
        )
    };
    Some(format!("{} take writes, each without the other; {next}", names.join(" and ")))
}

fn thin_quorum(role: Role, hosts: &[Host]) -> Option<String> {
    let gone: Vec<_> = hosts.iter().filter(|host| host.place != Place::Primary).map(said).collect();
    if gone.is_empty() {
        return None;
    }
    let (all, needed) = (hosts.len(), hosts.len() / 2 + 1);
    let up = all - gone.len();
    let what = if role == Role::Truth { "numbers" } else { "the copy" };
    let next = match up.checked_sub(needed) {
        None => format!("{needed} must"),
        Some(0) => format!("one more loss stops {what}"),
        Some(spare) => format!("{spare} more may be lost"),
    };
    Some(format!("etcd: {}; {up} of {all} answer, {next}", gone.join(", ")))
}

fn said(host: &Host) -> String {
    let how = match (host.fenced, host.place) {
        (true, _) => "is fenced",
        (false, Place::Away) if host.leads.is_some() => "has no quorum",
        (false, Place::Away) => "is away",
        (false, Place::Unfit) => "cannot be used",
        (false, Place::Primary) => "takes writes itself",
        (false, Place::Standby) => "is a standby",
    };
    format!("{} {how}", host.host)
}

impl Shared {
    /// Shows the outside what the servers are, and tells the log what changes of it.
    pub(super) fn saw(&self, state: &watch::Sender<State>, hosts: &[Host]) {
        let kind = self.settings.kind;
        let (writable, alarm) = (writable(kind, hosts), alarm(kind, hosts));
        let thin = thin(kind, self.settings.role, hosts);
        let fit = |host: &&Host| matches!(host.place, Place::Primary | Place::Standby) && !host.fenced;
        self.metrics.writable(writable.len());
        self.metrics.answering(hosts.iter().filter(fit).count());
        state.send_if_modified(|state| {
            let changed = state.writable != writable || state.alarm != alarm || state.thin != thin;
            match (&state.alarm, &alarm) {
                (before, Some(now)) if before.as_ref() != Some(now) => {
                    tracing::error!("sequence: database: {now}");
                }
                (Some(_), None) => {
                    tracing::info!(
                        "sequence: database: over: {} take writes, each without the other",
                        state.writable.join(" and ")
                    );
                }
                _ => {}
            }
            match (&state.thin, &thin) {
                (before, Some(now)) if before.as_ref() != Some(now) => {
                    tracing::warn!("sequence: database: {now}")
                }
                (Some(before), None) => tracing::info!("sequence: database: over: {before}"),
                _ => {}
            }
            (state.writable, state.alarm, state.thin) = (writable, alarm, thin);
            changed
        });
    }
}

/// Looks at the members of a database that holds the ledger itself, beside whoever appends to it:
/// that one asks a single member, and goes on with the next.
pub(super) async fn patrol(shared: Arc<Shared>, state: watch::Sender<State>, shutdown: Shutdown) {
    let none = BTreeSet::new();
    loop {
        let look = async {
            let (hosts, _closed) = survey(&shared.settings, &none).await;
            shared.saw(&state, &hosts);
            sleep(PROBE).await;
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = look => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::DatabaseError;
    use super::*;

    fn hosts(places: &[Place]) -> Vec<Host> {
        let host = |(name, place): (&str, &Place)| Host {
            place: *place,
            ..Host::closed(name.to_owned(), &DatabaseError::NoPrimary(String::new()))
        };
        ["a", "b", "c", "d", "e"].into_iter().zip(places).map(host).collect()
    }

    #[test]
    fn a_database_without_a_standby_left_is_told_and_a_single_server_never_had_one() {
        use Place::{Away, Primary, Standby, Unfit};
        let told = |hosts: &[Host]| thin(Kind::Postgres, Role::Copy, hosts);
        for well in [&[Primary, Standby][..], &[Away, Standby], &[Away, Standby, Primary], &[Primary]] {
            assert_eq!(told(&hosts(well)), None, "{well:?}");
        }
        assert_eq!(told(&hosts(&[Primary, Away])).unwrap(), "no standby of the database answers: b is away");
        let mut three = hosts(&[Standby, Primary, Unfit]);
        three[0].fenced = true;
        assert_eq!(
            told(&three).unwrap(),
            "no standby of the database answers: a is fenced, c cannot be used"
        );
    }

    #[test]
    fn an_alarm_tells_no_one_to_fence_what_is_fenced() {
        let mut two = hosts(&[Place::Primary, Place::Primary]);
        let told = |hosts: &[Host]| alarm(Kind::Postgres, hosts).unwrap();
        let begin = "a and b take writes, each without the other; ";
        assert_eq!(told(&two), format!("{begin}decide for one: vault database fence --host the other"));
        two[0].fenced = true;
        let fenced = told(&two);
        assert!(
            fenced.starts_with(&format!("{begin}a is fenced here")) && fenced.contains("stop it"),
            "{fenced}"
        );
        assert_eq!(alarm(Kind::Postgres, &two[..1]), None);
        assert_eq!(alarm(Kind::Etcd, &two), None);
    }

    #[test]
    fn members_of_etcd_that_are_away_are_told_with_what_the_next_loss_does() {
        use Place::{Away, Primary};
        let told = |role, places: &[Place]| thin(Kind::Etcd, role, &hosts(places));
        assert_eq!(told(Role::Truth, &[Primary, Primary, Primary]), None);
        assert_eq!(
            told(Role::Truth, &[Primary, Away, Primary]).unwrap(),
            "etcd: b is away; 2 of 3 answer, one more loss stops numbers"
        );
        assert_eq!(
            told(Role::Copy, &[Away, Away, Primary]).unwrap(),
            "etcd: a is away, b is away; 1 of 3 answer, 2 must"
        );
        let five = told(Role::Copy, &[Primary, Primary, Primary, Primary, Away]).unwrap();
        assert!(five.ends_with("4 of 5 answer, 1 more may be lost"), "{five}");
    }
}
