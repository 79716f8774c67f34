//! What is owed → what to do about it this turn. Pure: is handed the debts, the file servers'
//! condition and the time, and returns actions; reaches nothing.

use super::object::ObjectId;

/// Debts that only the peer's word tells of are the peer's to settle first; this vault takes
/// over after so many seconds.
pub const GRACE: i64 = 60;

/// Something owed to one file server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Debt {
    /// The object.
    pub id: ObjectId,
    /// The file server that it is owed to.
    pub server: String,
    /// A replica, or a replica's removal.
    pub kind: DebtKind,
    /// Unix seconds.
    pub since: i64,
    /// Seen by this vault, or derived from the peer's word?
    pub observed: bool,
    /// Plaintext bytes: about what a copy moves.
    pub size: u64,
    /// File servers that hold a replica.
    pub sources: Vec<String>,
    /// How often paying it has failed.
    pub tried: u64,
}

/// What is owed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DebtKind {
    /// A replica: missing or damaged there.
    Replica,
    /// The removal of a deleted object's replica.
    Removal,
}

/// A file server's condition at the turn's start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Its name.
    pub server: String,
    /// Answers?
    pub up: bool,
    /// Has refused a write for lack of space, or is spared?
    pub full: bool,
    /// Has little space left?
    pub low: bool,
}

/// Which file servers are not to be written to because they are low on space and others have
/// room. Nobody is spared where fewer than `needed` would be left.
#[must_use]
pub fn spared(servers: &[Condition], needed: usize) -> Vec<bool> {
    let roomy = |server: &&Condition| server.up && !server.full && !server.low;
    let enough = servers.iter().filter(roomy).count() >= needed.max(1);
    servers.iter().map(|server| server.low && enough).collect()
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Copy the object as it is.
    Copy {
        /// The object.
        id: ObjectId,
        /// Where a replica lies.
        from: String,
        /// Where one is owed.
        to: String,
    },
    /// Remove a deleted object's replica.
    Remove {
        /// The object.
        id: ObjectId,
        /// From where.
        server: String,
    },
    /// No replica is known anywhere: look on every file server, and tell the operator.
    Search {
        /// The object.
        id: ObjectId,
    },
}

impl Action {
    /// What it is about.
    #[must_use]
    pub const fn object(&self) -> ObjectId {
        match self {
            Self::Copy { id, .. } | Self::Remove { id, .. } | Self::Search { id } => *id,
        }
    }
}

/// How much one turn may do.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Most actions.
    pub actions: usize,
    /// Most plaintext bytes copied; a turn's first copy may exceed it, or a large object
    /// would never be copied.
    pub bytes: u64,
}

/// Decides a turn: debts that failed least first, of these the oldest, only between file servers
/// that can do it. What fails every time thus never keeps the rest waiting for ever.
#[must_use]
pub fn plan(debts: &[Debt], servers: &[Condition], now: i64, budget: Budget) -> Vec<Action> {
    let can = |name: &str, write: bool| {
        servers.iter().any(|server| server.server == name && server.up && !(write && server.full))
    };
    let mut debts: Vec<_> =
        debts.iter().filter(|debt| debt.observed || !young(now.saturating_sub(debt.since))).collect();
    debts.sort_by_key(|debt| (debt.tried, debt.since, debt.id));
    let mut actions: Vec<Action> = Vec::new();
    let mut copied = 0_u64;
    for debt in debts {
        if actions.len() == budget.actions {
            break;
        }
        if !can(&debt.server, debt.kind == DebtKind::Replica) {
            continue;
        }
        if debt.kind == DebtKind::Removal {
            actions.push(Action::Remove { id: debt.id, server: debt.server.clone() });
            continue;
        }
        let sources = || debt.sources.iter().filter(|source| **source != debt.server);
        let Some(from) = sources().find(|source| can(source, false)) else {
            let search = Action::Search { id: debt.id };
            // With a source that is merely away there is nothing to do but wait.
            if sources().next().is_none() && !actions.contains(&search) {
                actions.push(search);
            }
            continue;
        };
        if copied > 0 && copied.saturating_add(debt.size) > budget.bytes {
            continue;
        }
        copied = copied.saturating_add(debt.size.max(1));
        actions.push(Action::Copy { id: debt.id, from: from.clone(), to: debt.server.clone() });
    }
    actions
}

/// A debt from the future is of a clock that was put right since; it must not wait for it.
fn young(age: i64) -> bool {
    (0..GRACE).contains(&age)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Strategy, any};
    use proptest::{prop_assert, proptest};

    use super::*;

    const LIMITLESS: Budget = Budget { actions: 100, bytes: u64::MAX };

    fn debt(number: u8, server: &str, sources: &[&str]) -> Debt {
        Debt {
            id: ObjectId::new([number; 32]),
            server: server.to_owned(),
            kind: DebtKind::Replica,
            since: i64::from(number),
            observed: true,
            size: 10,
            sources: sources.iter().map(|&name| name.to_owned()).collect(),
            tried: 0,
        }
    }

    fn both_up() -> Vec<Condition> {
        ["one", "two"]
            .map(|name| Condition { server: name.to_owned(), up: true, full: false, low: false })
            .to_vec()
    }

    #[test]
    fn the_oldest_debt_is_settled_first_and_the_budget_holds() {
        let debts = [debt(3, "two", &["one"]), debt(1, "two", &["one"]), debt(2, "one", &["two"])];
        let planned = plan(&debts, &both_up(), 100, Budget { actions: 100, bytes: 20 });
        let ids: Vec<_> = planned
            .iter()
            .map(|action| match action {
                Action::Copy { id, .. } => *id,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(ids, [ObjectId::new([1; 32]), ObjectId::new([2; 32])]);
        assert_eq!(plan(&debts, &both_up(), 100, Budget { actions: 100, bytes: 0 }).len(), 1, "never stuck");
    }

    #[test]
    fn the_peers_debts_are_left_to_the_peer_for_a_while() {
        let mut foreign = debt(1, "two", &["one"]);
        foreign.observed = false;
        foreign.since = 100;
        assert_eq!(plan(std::slice::from_ref(&foreign), &both_up(), 100 + GRACE - 1, LIMITLESS), []);
        assert_eq!(plan(&[foreign], &both_up(), 100 + GRACE, LIMITLESS).len(), 1);
    }

    #[test]
    fn the_peers_debts_do_not_wait_for_a_clock_that_was_ahead() {
        let mut foreign = debt(1, "two", &["one"]);
        foreign.observed = false;
        foreign.since = 4_000_000_000;
        assert_eq!(plan(&[foreign], &both_up(), 1_800_000_000, LIMITLESS).len(), 1);
    }

    #[test]
    fn what_fails_every_time_does_not_stand_before_what_can_be_done() {
        let mut lost = debt(1, "two", &[]);
        lost.tried = 1;
        let planned =
            plan(&[lost, debt(9, "two", &["one"])], &both_up(), 100, Budget { actions: 1, ..LIMITLESS });
        assert!(matches!(planned[..], [Action::Copy { .. }]), "{planned:?}");
    }

    #[test]
    fn an_object_without_a_known_replica_is_searched_once() {
        let debts = [debt(1, "one", &[]), debt(1, "two", &[])];
        assert_eq!(plan(&debts, &both_up(), 100, LIMITLESS), [Action::Search { id: ObjectId::new([1; 32]) }]);
    }

    #[test]
    fn nothing_is_written_to_a_full_server_but_it_is_read_and_emptied() {
        let mut servers = both_up();
        servers[1].full = true;
        let mut removal = debt(2, "two", &[]);
        removal.kind = DebtKind::Removal;
        let debts = [debt(1, "two", &["one"]), removal, debt(3, "one", &["two"])];
        let planned = plan(&debts, &servers, 100, LIMITLESS);
        assert!(matches!(planned[0], Action::Remove { .. }), "{planned:?}");
        assert!(matches!(planned[1], Action::Copy { ref from, .. } if from == "two"), "{planned:?}");
        assert_eq!(planned.len(), 2);
    }

    #[test]
    fn a_server_low_on_space_is_spared_only_while_enough_others_have_room() {
        let mut servers = both_up();
        assert_eq!(spared(&servers, 1), [false, false]);
        servers[1].low = true;
        assert_eq!(spared(&servers, 1), [false, true]);
        assert_eq!(spared(&servers, 2), [false, false], "two replicas are wanted at once");
        servers[0].up = false;
        assert_eq!(spared(&servers, 1), [false, false], "the other is away");
        servers[0].up = true;
        servers[0].low = true;
        assert_eq!(spared(&servers, 1), [false, false], "both are low");
    }

    fn any_debt() -> impl Strategy<Value = Debt> {
        (any::<u8>(), any::<[bool; 5]>(), any::<u64>(), 0_i64..200).prop_map(
            |(number, flags, size, since)| Debt {
                id: ObjectId::new([number; 32]),
                server: if flags[0] { "one" } else { "two" }.to_owned(),
                kind: if flags[1] { DebtKind::Replica } else { DebtKind::Removal },
                since,
                observed: flags[2],
                size,
                sources: [("one", flags[3]), ("two", flags[4])]
                    .iter()
                    .filter(|(_, there)| *there)
                    .map(|(name, _)| (*name).to_owned())
                    .collect(),
                tried: size % 3,
            },
        )
    }

    proptest! {
        #[test]
        fn a_turn_never_uses_a_server_that_is_away_nor_copies_to_where_it_reads(
            debts in proptest::collection::vec(any_debt(), 0..40),
            up in any::<[bool; 2]>(),
            actions in 0_usize..20,
        ) {
            let mut servers = both_up();
            servers[0].up = up[0];
            servers[1].up = up[1];
            let usable = |name: &str| servers.iter().any(|server| server.server == name && server.up);
            let planned = plan(&debts, &servers, 150, Budget { actions, bytes: 1 << 40 });
            prop_assert!(planned.len() <= actions);
            for action in &planned {
                match action {
                    Action::Copy { from, to, .. } => prop_assert!(usable(from) && usable(to) && from != to),
                    Action::Remove { server, .. } => prop_assert!(usable(server)),
                    Action::Search { .. } => {}
                }
            }
        }
    }
}
