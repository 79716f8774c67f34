//! Consumers of a history and what they may have: the plain model of exclusive ones,
//! filters and groups.

use std::cmp::Reverse;
use std::sync::Arc;

use super::{CONNECTION, Control, Hands, World};
use crate::queue::core::{ConsumerKey, Filter, Seen, Terms};
use crate::queue::message::{DEAD_LETTERS, Destination, Id, Marks};

impl World {
    pub(super) fn subscribe(&mut self) {
        let queue = ["a", "b", DEAD_LETTERS][usize::try_from(self.random.below(3)).unwrap()];
        let destination = Destination::queue(queue).unwrap();
        let queue = self.core.queue(&destination).unwrap();
        let prefetch = usize::try_from(1 + self.random.below(5)).unwrap();
        let filter = [("x", usize::MAX), ("y", 1)][usize::try_from(self.random.below(2)).unwrap()];
        let hands = Hands {
            queue,
            prefetch,
            exclusive: self.random.chance(5),
            priority: i8::try_from(self.random.below(3)).unwrap() - 1,
            filter: self.random.chance(20).then_some(filter),
            ..Hands::default()
        };
        if self.consumers.len() < 5 {
            self.new_consumer(destination, hands);
        }
    }

    pub(super) fn new_consumer(&mut self, destination: Destination, hands: Hands) {
        self.key += 1;
        let key = self.key;
        self.note(|| format!("subscribe {key} to {destination}: {hands:?}"));
        let hops = |hops| i32::try_from(hops).unwrap_or(-1);
        let terms = Terms {
            prefetch: hands.prefetch,
            priority: hands.priority,
            exclusive: hands.exclusive,
            filter: hands.filter.map(|(broker, most)| Filter::new(broker, hops(most))),
        };
        self.consumers.insert(self.key, Hands { connection: CONNECTION, ..hands });
        self.core.subscribe(CONNECTION, self.key, &destination, terms).unwrap();
    }

    pub(super) fn unsubscribe(&mut self) {
        let keys: Vec<ConsumerKey> = self.consumers.keys().copied().collect();
        if let Some(key) = self.random.pick(&keys) {
            self.end(key);
        }
    }

    pub(super) fn end(&mut self, key: ConsumerKey) {
        let hands = self.consumers.remove(&key).unwrap();
        self.note(|| format!("unsubscribe {key} with {:?}", hands.held));
        self.owners.retain(|_, owner| *owner != key);
        self.put_back(hands.held);
        self.core.unsubscribe(key, Seen::Unknown);
    }

    pub(super) fn nothing_eligible_waits(&self) -> Result<(), String> {
        let waits = |key: &ConsumerKey, hands: &Hands| {
            let served = self.only(hands.queue).is_none_or(|only| only == *key);
            served.then(|| self.first_for(*key, hands.queue, None)).flatten()
        };
        match self.consumers.iter().find_map(|(key, hands)| Some((key, waits(key, hands)?))) {
            Some((key, id)) if self.control != Control::AnswersEarly => {
                Err(format!("{id:?} waits, and {key} might have it"))
            }
            _ => Ok(()),
        }
    }

    /// Who alone is served among a queue's consumers.
    pub(super) fn only(&self, queue: u16) -> Option<ConsumerKey> {
        let own = self.consumers.iter().filter(|(_, hands)| hands.queue == queue && hands.exclusive);
        own.max_by_key(|(key, hands)| (hands.priority, Reverse(**key))).map(|(key, _)| *key)
    }

    /// The first that is visible and that a consumer may have, up to a place.
    pub(super) fn first_for(&self, key: ConsumerKey, queue: u16, upto: Option<Id>) -> Option<Id> {
        let (from, to) = Id::places_of(queue);
        let visible = self.visible.range(from..upto.map_or(to, Id::next));
        let fits = |id: &Id| {
            let message = self.disk.message(*id)?;
            let over = message.expiration != 0 && message.expiration <= self.now;
            (!over && self.may_have(key, queue, message.marks.as_deref())).then_some(*id)
        };
        visible.into_iter().find_map(fits)
    }

    pub(super) fn may_have(&self, key: ConsumerKey, queue: u16, marks: Option<&Marks>) -> bool {
        let Some(marks) = marks else { return true };
        let passes = self.consumers.get(&key).and_then(|hands| hands.filter).is_none_or(|(broker, hops)| {
            marks.path.len() < hops && !marks.path.iter().any(|passed| &**passed == broker)
        });
        let owner = marks.group.clone().and_then(|group| self.owners.get(&(queue, group)));
        passes && owner.is_none_or(|owner| *owner == key)
    }

    pub(super) fn own(&mut self, key: ConsumerKey, queue: u16, marks: Option<&Marks>) {
        let Some((group, closes)) = marks.and_then(|marks| Some((marks.group.clone()?, marks.closes))) else {
            return;
        };
        if closes {
            self.owners.remove(&(queue, group));
        } else {
            self.owners.insert((queue, group), key);
        }
    }

    pub(super) fn marks(&mut self) -> Option<Arc<Marks>> {
        let group = ["", "", "", "g", "h", "i"][usize::try_from(self.random.below(6)).unwrap()];
        let sequence = if self.random.chance(15) { -1 } else { 1 };
        let path: &[&str] =
            [&[][..], &[], &["x"], &["y", "x"]][usize::try_from(self.random.below(4)).unwrap()];
        Marks::new(Some(group), sequence, path.iter().copied())
    }
}
