//! Who of a queue's consumers may have which of its messages, and whose turn it is. Knows neither
//! what consumers hold nor where messages are.
//!
//! Two questions are kept apart. *Whose turn*: consumers of a higher priority come first, those of one
//! take turns; while there are exclusive consumers only one of them has a turn. *Which message*: one
//! that its bridge's filter lets pass, and whose group is nobody's or its own. A consumer that
//! declines a message remembers how far it has looked, in memory and on disk, and looks from there:
//! so nothing is looked at twice, unless its group becomes free.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use super::ConsumerKey;
use super::group::{Given, Groups};
use crate::queue::message::{Id, Level, Marks, PRIORITIES};

/// What a consumer asks for. A number alone is a prefetch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Terms {
    /// Messages that may be under way to it; with 0 it pulls.
    pub prefetch: usize,
    /// Higher ones are served first, as long as they have room.
    pub priority: i8,
    /// While it is there no other is served, of several the one of the highest priority that came
    /// first.
    pub exclusive: bool,
    /// It is a bridge's.
    pub filter: Option<Filter>,
}

impl From<usize> for Terms {
    fn from(prefetch: usize) -> Self {
        Self { prefetch, ..Self::default() }
    }
}

/// What a bridge to another broker must not get, as ActiveMQ's NetworkBridgeFilter says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// Messages that have passed this broker.
    broker: Box<str>,
    /// Messages that have passed so many brokers.
    hops: usize,
}

impl Filter {
    /// Declines what has passed this broker, or so many brokers; below 0 is no limit.
    #[must_use]
    pub fn new(broker: &str, hops: i32) -> Self {
        Self { broker: Marks::shortened(broker).into(), hops: usize::try_from(hops).unwrap_or(usize::MAX) }
    }

    fn passes(&self, marks: Option<&Marks>) -> bool {
        let path = marks.map_or(&[][..], |marks| &marks.path);
        path.len() < self.hops && !path.contains(&self.broker)
    }
}

/// A place in the order of turns.
pub(super) type Turn = (Reverse<i8>, u64, ConsumerKey);

/// What is remembered of one consumer.
#[derive(Debug)]
struct Reader {
    priority: i8,
    exclusive: bool,
    filter: Option<Filter>,
    /// Set if it has room for more.
    turn: Option<u64>,
    /// All that waits in memory up to here it has declined.
    near: Option<Id>,
    /// As many numbers of each level on disk it has declined.
    far: Option<Box<[u64; PRIORITIES as usize]>>,
}

/// All consumers of one queue.
#[derive(Debug, Default)]
pub(super) struct Readers {
    all: BTreeMap<ConsumerKey, Reader>,
    hungry: BTreeSet<Turn>,
    exclusive: BTreeSet<(Reverse<i8>, ConsumerKey)>,
    groups: Groups,
    turns: u64,
    filters: usize,
    /// Nobody has declined anything in memory behind it.
    upto: Option<Id>,
}

impl Readers {
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// Would each decline what another declines?
    pub(super) fn are_alike(&self) -> bool {
        self.filters == 0 && self.groups.is_empty()
    }

    pub(super) fn enter(&mut self, key: ConsumerKey, terms: Terms) {
        let Terms { priority, exclusive, filter, .. } = terms;
        if exclusive {
            self.exclusive.insert((Reverse(priority), key));
        }
        self.filters += usize::from(filter.is_some());
        let reader = Reader { priority, exclusive, filter, turn: None, near: None, far: None };
        self.all.insert(key, reader);
    }

    pub(super) fn leave(&mut self, key: ConsumerKey) {
        self.sate(key);
        let Some(reader) = self.all.remove(&key) else { return };
        if reader.exclusive {
            self.exclusive.remove(&(Reverse(reader.priority), key));
        }
        self.filters -= usize::from(reader.filter.is_some());
        if let Some(freed) = self.groups.leave(key) {
            self.look_again(freed);
        }
        if self.all.is_empty() {
            self.upto = None;
        }
    }

    /// It has room: it stands behind the others of its priority.
    pub(super) fn join(&mut self, key: ConsumerKey) {
        if let Some(reader) = self.all.get_mut(&key).filter(|reader| reader.turn.is_none()) {
            self.turns += 1;
            reader.turn = Some(self.turns);
            self.hungry.insert((Reverse(reader.priority), self.turns, key));
        }
    }

    /// It has no room any more.
    pub(super) fn sate(&mut self, key: ConsumerKey) {
        if let Some(reader) = self.all.get_mut(&key)
            && let Some(turn) = reader.turn.take()
        {
            self.hungry.remove(&(Reverse(reader.priority), turn, key));
        }
    }

    /// Whose turn is next, behind that one.
    pub(super) fn next(&self, after: Option<Turn>) -> Option<Turn> {
        match self.exclusive.first() {
            Some((_, only)) => self.turn(*only).filter(|turn| after.is_none_or(|after| after < *turn)),
            None => {
                let from = after.map_or(Bound::Unbounded, Bound::Excluded);
                self.hungry.range((from, Bound::Unbounded)).next().copied()
            }
        }
    }

    /// When it is a consumer's turn, if it has room.
    pub(super) fn turn(&self, key: ConsumerKey) -> Option<Turn> {
        let reader = self.all.get(&key)?;
        Some((Reverse(reader.priority), reader.turn?, key))
    }

    /// May it have a message that waits at `id`? If not, it has looked there.
    pub(super) fn takes(&mut self, key: ConsumerKey, id: Id, marks: Option<&Marks>) -> bool {
        let Some(reader) = self.all.get(&key) else { return false };
        if !reader.filter.as_ref().is_none_or(|filter| filter.passes(marks)) {
            return false;
        }
        let Some(group) = marks.and_then(|marks| marks.group.as_ref()) else { return true };
        let is_free = self.groups.owner(group).is_none_or(|owner| owner == key);
        if !is_free {
            self.groups.decline(group, id);
        }
        is_free
    }

    /// All in memory up to there it has declined.
    pub(super) fn pass(&mut self, key: ConsumerKey, id: Id) {
        if let Some(reader) = self.all.get_mut(&key) {
            reader.near = reader.near.max(Some(id));
            self.upto = self.upto.max(Some(id));
        }
    }

    /// All of a level on disk up to there it has declined.
    pub(super) fn pass_far(&mut self, key: ConsumerKey, level: Level, upto: u64) {
        if let Some(reader) = self.all.get_mut(&key) {
            let far = reader.far.get_or_insert_default();
            if let Some(far) = far.get_mut(level.index()) {
                *far = upto.max(*far);
            }
        }
    }

    pub(super) fn near(&self, key: ConsumerKey) -> Option<Id> {
        self.all.get(&key).and_then(|reader| reader.near)
    }

    pub(super) fn far(&self, key: ConsumerKey, level: usize) -> u64 {
        let far = self.all.get(&key).and_then(|reader| reader.far.as_ref());
        far.and_then(|far| far.get(level)).copied().unwrap_or(0)
    }

    /// A message stands in memory now where some may have looked already.
    pub(super) fn returned(&mut self, id: Id) {
        if self.upto >= Some(id) {
            for reader in self.all.values_mut().filter(|reader| reader.near >= Some(id)) {
                reader.near = id.before();
            }
        }
    }

    /// From there on there is something new, on disk too, for those who have looked there.
    pub(super) fn look_again(&mut self, from: Id) {
        self.returned(from);
        let level = from.level().index();
        for reader in self.all.values_mut() {
            let far = reader.far.iter_mut().flat_map(|far| far.iter_mut().enumerate());
            for (index, far) in far.filter(|(index, _)| *index >= level) {
                *far = if index == level { from.sequence().saturating_sub(1).min(*far) } else { 0 };
            }
        }
    }

    /// A message goes to a consumer who may have it. [`Readers::look_again`] follows where something
    /// was freed.
    pub(super) fn give(&mut self, key: ConsumerKey, marks: Option<&Marks>, most_groups: usize) -> Given {
        // Behind the others of its priority.
        self.sate(key);
        self.join(key);
        let group = marks.and_then(|marks| Some((marks.group.as_ref()?, marks.closes)));
        group.map_or_else(Given::default, |(group, closes)| self.groups.give(group, key, closes, most_groups))
    }

    /// A message is in its consumer's hands no more.
    pub(super) fn land(&mut self, key: ConsumerKey, marks: Option<&Arc<Marks>>) {
        if let Some(group) = marks.and_then(|marks| marks.group.as_ref()) {
            self.groups.land(group, key);
        }
    }
}
