//! Whose ids of connections are: of the user who had each first, while it is connected and for some
//! minutes after, so that nobody else makes the temporary queues that are called after it while its client
//! is away. Knows no socket; times are handed in.
//!
//! Each user's own are counted by themselves: who connects ever again under new ids forgets none but its
//! own. A vault that was started anew knows none.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::openwire::Text;

/// An id is its user's for so long after its connection has ended.
const REMEMBERED: Duration = Duration::from_secs(600);
/// Ids of one user's ended connections; of more, those that ended first are forgotten.
const MOST: usize = 4_096;
/// A longer one is forgotten with its connection, in bytes; ActiveMQ's have some sixty.
const LONGEST: usize = 256;

/// All that are known.
#[derive(Debug, Default)]
pub(super) struct Ids {
    owners: HashMap<Text, Owner>,
    /// Those of connections that have ended, in that order, each user's for itself; none is empty.
    away: HashMap<Arc<str>, BTreeMap<u64, Text>>,
    ends: u64,
}

#[derive(Debug)]
struct Owner {
    user: Arc<str>,
    /// When its connection ended, and as which of all; none while it is connected.
    ended: Option<(Instant, u64)>,
}

impl Ids {
    /// A connection of this user has it: is it its own? It is another's while that is connected, and
    /// another user's for a while after.
    pub(super) fn take(&mut self, user: &Arc<str>, id: &Text, now: Instant) -> bool {
        match self.owners.entry(id.clone()) {
            Entry::Vacant(free) => {
                free.insert(Owner { user: Arc::clone(user), ended: None });
                true
            }
            Entry::Occupied(mut known) => {
                let Some((at, end)) = known.get().ended else { return false };
                if known.get().user != *user && now < at + REMEMBERED {
                    return false;
                }
                let before = known.insert(Owner { user: Arc::clone(user), ended: None });
                self.forget(&before.user, end);
                true
            }
        }
    }

    /// The connection that had it has ended.
    pub(super) fn leave(&mut self, id: &Text, now: Instant) {
        let Some(owner) = self.owners.get_mut(id) else { return };
        // Where everybody is let in, nobody can prove to have had it.
        if owner.user.is_empty() || id.as_bytes().len() > LONGEST {
            self.owners.remove(id);
            return;
        }
        self.ends += 1;
        owner.ended = Some((now, self.ends));
        let user = Arc::clone(&owner.user);
        let away = self.away.entry(Arc::clone(&user)).or_default();
        away.insert(self.ends, id.clone());
        while let Some((end, first)) = away.first_key_value().map(|(end, first)| (*end, first.clone())) {
            let ended = self.owners.get(&first).and_then(|owner| owner.ended);
            if away.len() <= MOST && ended.is_some_and(|(at, _)| now < at + REMEMBERED) {
                break;
            }
            away.remove(&end);
            self.owners.remove(&first);
        }
        if away.is_empty() {
            self.away.remove(&user);
        }
    }

    fn forget(&mut self, user: &Arc<str>, end: u64) {
        if let Some(away) = self.away.get_mut(user) {
            away.remove(&end);
            if away.is_empty() {
                self.away.remove(user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(name: &str) -> Text {
        Text::shortened(name)
    }

    #[test]
    fn an_id_is_its_users_for_minutes_after_its_end_and_anybodys_then() {
        let (mut ids, begun) = (Ids::default(), Instant::now());
        let (alice, mallory): (Arc<str>, Arc<str>) = ("alice".into(), "mallory".into());
        assert!(ids.take(&alice, &id("ID:a"), begun));
        assert!(!ids.take(&alice, &id("ID:a"), begun) && !ids.take(&mallory, &id("ID:a"), begun));
        ids.leave(&id("ID:a"), begun);
        let soon = begun + REMEMBERED - Duration::from_secs(1);
        assert!(!ids.take(&mallory, &id("ID:a"), soon));
        assert!(ids.take(&alice, &id("ID:a"), soon), "she is back");
        ids.leave(&id("ID:a"), soon);
        assert!(!ids.take(&mallory, &id("ID:a"), begun + REMEMBERED), "it counts from her last end");
        assert!(ids.take(&mallory, &id("ID:a"), soon + REMEMBERED));
        assert!(!ids.take(&alice, &id("ID:a"), soon + REMEMBERED));
        assert!(ids.away.is_empty());
    }

    #[test]
    fn who_has_been_away_longest_is_forgotten_first_and_by_its_own_user_alone() {
        let (mut ids, now) = (Ids::default(), Instant::now());
        let (alice, mallory): (Arc<str>, Arc<str>) = ("alice".into(), "mallory".into());
        let mut visit = |user: &Arc<str>, name: &str| {
            let had = ids.take(user, &id(name), now);
            if had {
                ids.leave(&id(name), now);
            }
            had
        };
        assert!(visit(&alice, "ID:a"));
        for number in 0..=MOST {
            assert!(visit(&mallory, &format!("ID:m:{number}")));
        }
        assert!(!visit(&mallory, "ID:a"), "a crowd of another's forgets nothing");
        assert!(visit(&alice, "ID:m:0") && !visit(&alice, "ID:m:1"));
        assert!(visit(&mallory, &"long".repeat(LONGEST)) && visit(&alice, &"long".repeat(LONGEST)));
        assert_eq!(ids.owners.len(), MOST + 2);
    }

    #[test]
    fn where_everybody_is_let_in_none_is_remembered() {
        let (mut ids, now) = (Ids::default(), Instant::now());
        assert!(ids.take(&Arc::default(), &id("ID:a"), now) && !ids.take(&Arc::default(), &id("ID:a"), now));
        ids.leave(&id("ID:a"), now);
        assert!(ids.owners.is_empty() && ids.away.is_empty());
    }

    proptest! {
        /// Whoever comes and goes in whatever order: nobody has an id that another user has or had minutes
        /// ago, and each user's own comes back to it.
        #[test]
        fn no_id_changes_hands_within_minutes(
            steps in proptest::collection::vec((0..3_usize, 0..4_usize, any::<bool>(), 0..400_u64), 0..200),
        ) {
            let (mut ids, mut now) = (Ids::default(), Instant::now());
            let users: [Arc<str>; 3] = ["a".into(), "b".into(), "c".into()];
            // Who had each last, is it connected, and when it ended.
            let mut had: [Option<(usize, bool, Instant)>; 4] = [None; 4];
            for (user, number, leaves, seconds) in steps {
                now += Duration::from_secs(seconds);
                let name = id(&format!("ID:{number}"));
                match had[number] {
                    Some((_, true, _)) if leaves => {
                        ids.leave(&name, now);
                        had[number] = had[number].map(|(owner, _, _)| (owner, false, now));
                    }
                    other => {
                        let is_free = other.is_none_or(|(owner, is_there, ended)| {
                            !is_there && (owner == user || now >= ended + REMEMBERED)
                        });
                        prop_assert_eq!(ids.take(&users[user], &name, now), is_free);
                        if is_free {
                            had[number] = Some((user, true, now));
                        }
                    }
                }
                let away = had.iter().flatten().filter(|(_, is_there, _)| !is_there).count();
                prop_assert!(ids.away.values().map(BTreeMap::len).sum::<usize>() <= away);
                prop_assert!(ids.away.values().all(|ends| !ends.is_empty()));
            }
        }
    }
}
