//! What several lines say of one connection: fail2ban's `<F-MLFID>`, `<F-NOFAIL>`, `<F-MLFGAINED>`
//! and `<F-MLFFORGET>`. A line may hold the offence and another one whose it is. Must not know
//! patterns. Bounded: the oldest connection is forgotten first.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use super::groups::Groups;

/// Connections that are remembered at once.
const MOST: usize = 4096;
/// And for how long, from their first line on.
const LONGEST: Duration = Duration::from_secs(300);
/// Names of users that are told apart in one connection.
const USERS: usize = 16;

#[derive(Default)]
pub(crate) struct Connections {
    open: HashMap<String, Connection>,
    /// By age; may name what is gone already.
    order: VecDeque<(Duration, String)>,
}

#[derive(Clone, Default)]
struct Connection {
    since: Duration,
    groups: Groups,
    users: BTreeSet<String>,
    /// An offence came before anybody knew whose.
    pending: bool,
    no_failure: bool,
}

impl Connections {
    /// Joins a line's groups with what its connection said before. `None`: it is no offence, or
    /// none yet, as nobody knows whose it is.
    pub(crate) fn merge(&mut self, id: &str, mut groups: Groups, now: Duration) -> Option<Groups> {
        self.forget_old(now);
        let gained = groups.says("mlfgained");
        let no_failure = groups.says("nofail") || gained;
        let forget = groups.remove("mlfforget").is_some_and(|value| !value.is_empty());
        let known = self.open.remove(id);
        let kept = known.is_some() || !forget;
        let mut connection = known.unwrap_or_else(|| Connection { since: now, ..Connection::default() });
        if kept && connection.users.len() < USERS {
            connection.users.extend(groups.value("user").filter(|user| !user.is_empty()).map(str::to_owned));
        }
        if gained {
            connection.pending = false;
        }
        connection.groups.overlay(groups, false);
        connection.no_failure = no_failure;
        // Who failed before, or tried several names, gains nothing by the one that was right.
        if std::mem::take(&mut connection.pending) || connection.users.len() > 1 {
            connection.no_failure = false;
        }
        let offence = !connection.no_failure;
        let whose = connection.groups.subject().is_some();
        connection.pending = offence && !whose;
        let merged = (offence && whose).then(|| connection.groups.clone());
        if !forget {
            self.keep(id, connection);
        }
        merged
    }

    fn keep(&mut self, id: &str, connection: Connection) {
        if !self.order.iter().rev().take(1).any(|(_, last)| last == id)
            && !self.order.contains(&(connection.since, id.to_owned()))
        {
            self.order.push_back((connection.since, id.to_owned()));
        }
        self.open.insert(id.to_owned(), connection);
    }

    fn forget_old(&mut self, now: Duration) {
        while let Some((since, id)) = self.order.front() {
            if self.order.len() <= MOST && now.saturating_sub(*since) <= LONGEST {
                break;
            }
            if self.open.get(id).is_some_and(|connection| connection.since == *since) {
                self.open.remove(id);
            }
            self.order.pop_front();
        }
    }
}
