//! The message groups of one queue: which consumer a group belongs to while it is open. Knows no
//! messages but the lowest that somebody was refused because the group is another's.
//!
//! As in ActiveMQ a group belongs to whom its first message is given, until that consumer ends or the
//! group is closed, and groups that are not in use are forgotten when there are too many. Never is one
//! forgotten while its owner holds messages of it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::ConsumerKey;
use crate::queue::message::Id;

/// One open group.
#[derive(Debug)]
struct Group {
    owner: ConsumerKey,
    /// Messages in its owner's hands.
    held: usize,
    /// Since when there are none, as a count.
    idle: Option<u64>,
    /// No message of it below this place was refused to anybody.
    declined: Option<Id>,
}

/// All open groups of a queue.
#[derive(Debug, Default)]
pub(super) struct Groups {
    open: HashMap<Arc<str>, Group>,
    /// Those whose owners hold nothing of them, longest first.
    idle: BTreeMap<u64, Arc<str>>,
    count: u64,
}

/// What follows from giving a message away.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Given {
    /// Its group begins with it, for its consumer.
    pub(super) first: bool,
    /// From this place on there may be messages that others may have now.
    pub(super) freed: Option<Id>,
}

impl Groups {
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub(super) fn owner(&self, name: &str) -> Option<ConsumerKey> {
        self.open.get(name).map(|group| group.owner)
    }

    /// A message was refused to somebody because its group is another's.
    pub(super) fn decline(&mut self, name: &str, id: Id) {
        if let Some(group) = self.open.get_mut(name) {
            group.declined = Some(group.declined.map_or(id, |before| before.min(id)));
        }
    }

    /// A message goes to a consumer who may have it; the last one of a group closes it. Of groups that
    /// nobody holds anything of at most so many are remembered.
    pub(super) fn give(&mut self, name: &Arc<str>, key: ConsumerKey, closes: bool, most: usize) -> Given {
        let first = !self.open.contains_key(name);
        if closes {
            return Given { first, freed: self.close(name) };
        }
        let freed = if first && self.open.len() >= most { self.forget() } else { None };
        let new = || Group { owner: key, held: 0, idle: None, declined: None };
        let group = self.open.entry(name.clone()).or_insert_with(new);
        group.held += 1;
        if let Some(since) = group.idle.take() {
            self.idle.remove(&since);
        }
        Given { first, freed }
    }

    /// A message is in its consumer's hands no more.
    pub(super) fn land(&mut self, name: &str, key: ConsumerKey) {
        let Some((name, group)) = self.open.get_key_value(name) else { return };
        // It may have been closed meanwhile, and be another's.
        if group.owner != key || group.held == 0 {
            return;
        }
        let name = name.clone();
        if let Some(group) = self.open.get_mut(&name) {
            group.held -= 1;
            if group.held == 0 {
                self.count += 1;
                group.idle = Some(self.count);
                self.idle.insert(self.count, name);
            }
        }
    }

    /// The consumer has ended: its groups are anybody's. Tells as [`Given::freed`].
    pub(super) fn leave(&mut self, key: ConsumerKey) -> Option<Id> {
        let own = self.open.iter().filter(|(_, group)| group.owner == key);
        let own: Vec<Arc<str>> = own.map(|(name, _)| name.clone()).collect();
        own.iter().filter_map(|name| self.close(name)).min()
    }

    /// The one that nobody has used for longest.
    fn forget(&mut self) -> Option<Id> {
        let (_, name) = self.idle.pop_first()?;
        self.close(&name)
    }

    fn close(&mut self, name: &str) -> Option<Id> {
        let group = self.open.remove(name)?;
        if let Some(since) = group.idle {
            self.idle.remove(&since);
        }
        group.declined
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_that_is_held_is_never_forgotten_and_idle_ones_are_bounded() {
        let mut groups = Groups::default();
        let name = |number: u64| -> Arc<str> { format!("g{number}").into() };
        for number in 0..100 {
            groups.give(&name(number), number, false, 10);
        }
        assert_eq!(groups.open.len(), 100, "all are held");
        for number in 0..100 {
            groups.land(&name(number), number);
        }
        groups.decline(&name(0), Id::from_number(7));
        let given = groups.give(&name(100), 1, false, 10);
        assert_eq!(
            given,
            Given { first: true, freed: Some(Id::from_number(7)) },
            "the longest idle one goes"
        );
        assert_eq!((groups.owner("g0"), groups.owner("g1")), (None, Some(1)));
        for number in 101..300 {
            groups.give(&name(number), 1, false, 10);
            groups.land(&name(number), 1);
        }
        assert!(groups.open.len() <= 100 && groups.idle.len() == groups.open.len() - 1, "{groups:?}");
        groups.leave(1);
        assert!(groups.open.values().all(|group| group.owner != 1) && groups.owner("g100").is_none());
    }
}
