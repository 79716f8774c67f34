//! The bans in force, the bans of the past, and which ends next. Knows networks and times; must
//! not know what an offence is or who may be banned. It exists apart because it holds a million
//! bans: a network has one record of 40 bytes for its ban and its history together, chained to its
//! bucket of a hash table that grows by one bucket at a time (linear hashing: no pause to rehash),
//! and the two orders of expiry are heaps of record numbers. Measured as resident memory with
//! 1,000,000 bans in force: 53 bytes each, with the history full 77, refilled after all ended 84.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::chunks::Chunks;
use super::networks::overlap;
use super::record::{Key, NONE, Record, State, Tagged};
use super::{History, Lifted, Sentence};
use crate::ban::Action;

/// Every ban in force, soonest end first, and what is remembered of ended ones.
#[derive(Debug)]
pub(super) struct Book {
    records: Chunks<Record>,
    free: u32,
    /// The first record of each bucket.
    buckets: Chunks<u32>,
    /// Keyed at random: clients choose the addresses that they come from.
    hasher: RandomState,
    active: Chunks<u32>,
    past: Chunks<u32>,
    /// How many bans in force have this prefix length: the others need no look-up.
    lengths: [u32; 65],
    max_active: usize,
    max_past: usize,
}

impl Book {
    /// `max_active` bans in force, and half as many networks remembered.
    pub(super) fn new(max_active: usize) -> Self {
        let max_active = max_active.clamp(1, 1 << 30);
        Self {
            records: Chunks::new(),
            free: NONE,
            buckets: Chunks::new(),
            hasher: RandomState::new(),
            active: Chunks::new(),
            past: Chunks::new(),
            lengths: [0; 65],
            max_active,
            max_past: (max_active / 2).max(1),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.active.len()
    }

    pub(super) fn max(&self) -> usize {
        self.max_active
    }

    /// Enters a ban in place of what was known of its network. Returns what had to leave for it:
    /// the soonest to end, which the history keeps as ended at `now`.
    pub(super) fn enter(&mut self, key: Key, sentence: &Sentence, now: u64) -> Option<Sentence> {
        let known = self.find(key);
        if let Some(number) = known {
            self.discard(number);
        }
        let mut evicted = None;
        if self.active.len() >= self.max_active
            && let Some(soonest) = self.active.first()
        {
            evicted = Some(self.record(soonest).sentence());
            self.end(soonest, now);
        }
        let state = if sentence.action == Action::Throttle { State::Throttled } else { State::Banned };
        let number = self.allocate(Record::new(key, sentence, state));
        self.lengths[usize::from(key.length)] += 1;
        self.push(number);
        evicted
    }

    /// Remembers a ban that is over already, unless more is known of its network.
    pub(super) fn remember(&mut self, key: Key, sentence: &Sentence) {
        match self.find(key) {
            Some(number) => {
                let record = self.record_mut(number);
                let times = record.until.tag().max(sentence.times);
                record.until = Tagged::new(record.until(), times);
            }
            None => {
                let number = self.allocate(Record::new(key, sentence, State::Past));
                self.push(number);
                self.trim_past();
            }
        }
    }

    /// The ban in force of exactly this network.
    pub(super) fn standing(&self, key: Key, now: u64) -> Option<Sentence> {
        let record = self.record(self.find(key)?);
        (record.in_force() && record.until() > now).then(|| record.sentence())
    }

    /// Every ban in force that `address`, in canonical form, falls under.
    pub(super) fn covering(&self, address: IpAddr, now: u64) -> impl Iterator<Item = Sentence> + '_ {
        let lengths = if address.is_ipv4() { 24..=32_u8 } else { 48..=64 };
        lengths
            .filter(|length| self.lengths[usize::from(*length)] > 0)
            .filter_map(move |length| self.standing(Key::of(address, length), now))
    }

    /// Every ban in force, in no order.
    pub(super) fn active(&self, now: u64) -> impl Iterator<Item = Sentence> + '_ {
        self.active
            .iter()
            .map(|number| self.record(*number))
            .filter(move |record| record.until() > now)
            .map(Record::sentence)
    }

    /// Every ban in force and every one that is remembered, in no order.
    pub(super) fn known(&self) -> impl Iterator<Item = Sentence> + '_ {
        self.active.iter().chain(self.past.iter()).map(|number| self.record(*number).sentence())
    }

    /// How often and until when; of a ban in force, when it will end.
    pub(super) fn history(&self, key: Key) -> Option<History> {
        let record = self.record(self.find(key)?);
        Some(History { times: record.until.tag(), last_end: Duration::from_millis(record.until()) })
    }

    /// When the first ban in force ends.
    pub(super) fn soonest(&self) -> Option<u64> {
        self.active.first().map(|number| self.record(number).until())
    }

    /// Moves the first ban that has ended by `now` to the past.
    pub(super) fn next_ended(&mut self, now: u64) -> Option<Sentence> {
        let number = self.active.first()?;
        let record = *self.record(number);
        if record.until() > now {
            return None;
        }
        self.end(number, record.until());
        Some(record.sentence())
    }

    /// Forgets, at most `most` at a time, who was last banned before `horizon`.
    pub(super) fn forget_before(&mut self, horizon: u64, most: usize) {
        for _ in 0..most {
            match self.past.first() {
                Some(number) if self.record(number).until() <= horizon => self.discard(number),
                _ => return,
            }
        }
    }

    /// Ends and forgets every ban in force that `chosen` names; the history of the networks that
    /// `forgotten` names goes, too. Looks at every record: an operator's act, not a client's.
    pub(super) fn pardon(
        &mut self,
        chosen: impl Fn(&Sentence) -> bool,
        forgotten: impl Fn(IpNet) -> bool,
    ) -> Lifted {
        let ended: Vec<u32> =
            (self.active.iter().copied()).filter(|number| chosen(&self.record(*number).sentence())).collect();
        let past: Vec<u32> = (self.past.iter().copied())
            .filter(|number| forgotten(self.record(*number).key().network()))
            .collect();
        let lifted = Lifted {
            ended: ended.iter().map(|number| self.record(*number).sentence()).collect(),
            forgotten: past.iter().map(|number| self.record(*number).key().network()).collect(),
        };
        for number in ended.into_iter().chain(past) {
            self.discard(number);
        }
        lifted
    }

    /// Ends and forgets the ban in force of exactly this network.
    pub(super) fn withdraw(&mut self, key: Key) -> Option<Sentence> {
        let number = self.find(key).filter(|number| self.record(*number).in_force())?;
        let sentence = self.record(number).sentence();
        self.discard(number);
        Some(sentence)
    }

    /// As [`Book::pardon`], of everything that overlaps one network in canonical form.
    pub(super) fn pardon_overlapping(&mut self, network: IpNet) -> Lifted {
        self.pardon(|sentence| overlap(sentence.network, network), |past| overlap(past, network))
    }

    /// Puts every time earlier by as much as the clock was set back, so that what remains of a
    /// ban remains the same. Keeps both orders, because all move alike.
    pub(super) fn set_back(&mut self, by: u64) {
        let earlier = |at: Tagged| Tagged::new(at.time().saturating_sub(by), at.tag());
        for record in self.records.iter_mut() {
            record.since = earlier(record.since);
            record.until = earlier(record.until);
        }
    }

    /// Gives every record the number that its jail has now.
    pub(super) fn renumber(&mut self, jail_now: impl Fn(u16) -> u16) {
        for record in self.records.iter_mut() {
            record.since = Tagged::new(record.since.time(), jail_now(record.since.tag()));
        }
    }

    /// Bytes allocated for all of it.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.records.bytes() + self.buckets.bytes() + self.active.bytes() + self.past.bytes()
    }

    fn end(&mut self, number: u32, at: u64) {
        self.unqueue(number);
        let record = self.record_mut(number);
        let length = usize::from(record.length);
        record.state = State::Past;
        record.until = Tagged::new(record.until().min(at), record.until.tag());
        self.lengths[length] -= 1;
        self.push(number);
        self.trim_past();
    }

    fn trim_past(&mut self) {
        while self.past.len() > self.max_past
            && let Some(oldest) = self.past.first()
        {
            self.discard(oldest);
        }
    }

    fn discard(&mut self, number: u32) {
        self.unqueue(number);
        let record = *self.record(number);
        if record.in_force() {
            self.lengths[usize::from(record.length)] -= 1;
        }
        self.unlink(number);
        let next = self.free;
        let record = self.record_mut(number);
        record.state = State::Free;
        record.next = next;
        self.free = number;
    }

    fn allocate(&mut self, record: Record) -> u32 {
        let number = if self.free == NONE {
            debug_assert!(self.records.len() <= self.max_active + self.max_past);
            self.records.push(record);
            u32::try_from(self.records.len() - 1).unwrap_or(NONE)
        } else {
            let number = self.free;
            self.free = self.record(number).next;
            *self.record_mut(number) = record;
            number
        };
        if self.buckets.len() < self.records.len() {
            self.split();
        }
        self.link(number);
        number
    }

    fn record(&self, number: u32) -> &Record {
        self.records.at(number as usize)
    }

    fn record_mut(&mut self, number: u32) -> &mut Record {
        self.records.at_mut(number as usize)
    }
}

/// The hash table. There are as many buckets as there ever were records; the ones added last
/// share out what is in as many of the first.
impl Book {
    fn find(&self, key: Key) -> Option<u32> {
        if self.buckets.len() == 0 {
            return None;
        }
        let mut number = *self.buckets.at(self.bucket(key));
        while number != NONE {
            let record = self.record(number);
            if record.key() == key {
                return Some(number);
            }
            number = record.next;
        }
        None
    }

    /// With n buckets, between the powers 2^k and 2^(k+1): the lower k+1 bits of the hash where
    /// that bucket exists already, else the lower k.
    fn bucket(&self, key: Key) -> usize {
        let buckets = self.buckets.len().max(1);
        let hash = usize::try_from(self.hasher.hash_one(key) & u64::from(u32::MAX)).unwrap_or(0);
        let below = 1 << buckets.ilog2();
        let wide = hash & (2 * below - 1);
        if wide < buckets { wide } else { hash & (below - 1) }
    }

    /// Adds a bucket and moves to it what now belongs there, all of it out of one other.
    fn split(&mut self) {
        let buckets = self.buckets.len();
        self.buckets.push(NONE);
        let Some(power) = buckets.checked_ilog2() else { return };
        let shared = buckets - (1 << power);
        let mut number = std::mem::replace(self.buckets.at_mut(shared), NONE);
        while number != NONE {
            let next = self.record(number).next;
            self.link(number);
            number = next;
        }
    }

    fn link(&mut self, number: u32) {
        let bucket = self.bucket(self.record(number).key());
        let first = std::mem::replace(self.buckets.at_mut(bucket), number);
        self.record_mut(number).next = first;
    }

    fn unlink(&mut self, number: u32) {
        let (bucket, next) = (self.bucket(self.record(number).key()), self.record(number).next);
        let mut before = *self.buckets.at(bucket);
        if before == number {
            *self.buckets.at_mut(bucket) = next;
            return;
        }
        while before != NONE {
            let record = self.record_mut(before);
            if record.next == number {
                record.next = next;
                return;
            }
            before = record.next;
        }
        debug_assert!(false, "a record is in its bucket");
    }
}

/// The two heaps: bans in force and bans of the past, each with the earliest end on top.
impl Book {
    fn heap(&mut self, number: u32) -> &mut Chunks<u32> {
        if self.record(number).in_force() { &mut self.active } else { &mut self.past }
    }

    fn push(&mut self, number: u32) {
        let heap = self.heap(number);
        heap.push(number);
        let place = heap.len() - 1;
        self.settle(number, place);
    }

    fn unqueue(&mut self, number: u32) {
        let place = self.record(number).place as usize;
        let heap = self.heap(number);
        debug_assert_eq!(heap.at(place), &number, "a record knows its place");
        if let Some(last) = heap.pop()
            && last != number
        {
            self.settle(last, place);
        }
    }

    /// Puts `number` to `place`, or up or down from there to where its end belongs.
    fn settle(&mut self, number: u32, mut place: usize) {
        let mut heap = std::mem::replace(self.heap(number), Chunks::new());
        let until = self.record(number).until();
        let end_at = |book: &Self, heap: &Chunks<u32>, place: usize| book.record(*heap.at(place)).until();
        while let Some(parent) = place.checked_sub(1).map(|below| below / 2) {
            if end_at(self, &heap, parent) <= until {
                break;
            }
            let moved = *heap.at(parent);
            self.seat(&mut heap, moved, place);
            place = parent;
        }
        loop {
            let children = (2 * place + 1)..(2 * place + 3).min(heap.len());
            let Some(child) = children.min_by_key(|child| end_at(self, &heap, *child)) else { break };
            if until <= end_at(self, &heap, child) {
                break;
            }
            let moved = *heap.at(child);
            self.seat(&mut heap, moved, place);
            place = child;
        }
        self.seat(&mut heap, number, place);
        *self.heap(number) = heap;
    }

    fn seat(&mut self, heap: &mut Chunks<u32>, number: u32, place: usize) {
        *heap.at_mut(place) = number;
        self.record_mut(number).place = u32::try_from(place).unwrap_or(NONE);
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::millis;
    use super::*;
    use ipnet::{Ipv4Net, Ipv6Net};
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn sentence(network: IpNet, until: u64) -> Sentence {
        Sentence {
            network,
            jail: 0,
            since: Duration::ZERO,
            until: Duration::from_millis(until),
            offences: 5,
            times: 1,
            action: Action::Ban,
        }
    }

    fn numbered(number: u32) -> IpNet {
        if number.is_multiple_of(2) {
            IpNet::V4(Ipv4Net::new(Ipv4Addr::from_bits(number), 32).unwrap())
        } else {
            let address = (0x2001_u128 << 112) | (u128::from(number) << 64);
            IpNet::V6(Ipv6Net::new(Ipv6Addr::from_bits(address), 64).unwrap())
        }
    }

    fn enter(book: &mut Book, number: u32, until: u64) -> Option<Sentence> {
        let network = numbered(number);
        book.enter(Key::new(network).unwrap(), &sentence(network, until), 0)
    }

    #[test]
    fn a_million_bans_and_a_full_history_take_85_bytes_a_ban() {
        let mut book = Book::new(1_000_000);
        for number in 0..1_500_000_u32 {
            enter(&mut book, number, u64::from(number % 1000) + u64::from(number));
        }
        assert_eq!((book.active.len(), book.past.len()), (1_000_000, 500_000));
        assert!(book.bytes() <= 85_000_000, "{} bytes", book.bytes());
    }

    #[test]
    fn full_evicts_the_soonest_to_end_and_remembers_it() {
        let mut book = Book::new(2);
        assert_eq!(enter(&mut book, 2, 300), None);
        assert_eq!(enter(&mut book, 4, 200), None);
        assert_eq!(enter(&mut book, 4, 250), None, "the same network takes no second place");
        assert_eq!(enter(&mut book, 6, 100).map(|left| left.network), Some(numbered(4)));
        assert_eq!(book.len(), 2);
        assert_eq!(book.history(Key::new(numbered(4)).unwrap()).map(|past| past.times), Some(1));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Enter(u32, u64),
        Pardon(u32),
        Elapse(u64),
        SetBack(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (0..40_u32, 1..200_u64).prop_map(|(number, lasting)| Step::Enter(number, lasting)),
            1 => (0..40_u32).prop_map(Step::Pardon),
            3 => (0..60_u64).prop_map(Step::Elapse),
            1 => (0..500_u64).prop_map(Step::SetBack),
        ];
        proptest::collection::vec(step, 0..200)
    }

    proptest! {
        #[test]
        fn the_book_is_a_sorted_map_of_ends(steps in steps()) {
            let (mut book, mut plain) = (Book::new(100), BTreeMap::new());
            let mut now = 1000_u64;
            for step in steps {
                match step {
                    Step::Enter(number, lasting) => {
                        enter(&mut book, number, now + lasting);
                        plain.insert(numbered(number), now + lasting);
                    }
                    Step::Pardon(number) => {
                        let ended = book.pardon_overlapping(numbered(number)).ended.len();
                        prop_assert_eq!(ended, usize::from(plain.remove(&numbered(number)).is_some()));
                    }
                    Step::Elapse(by) => {
                        now += by;
                        let mut last = 0;
                        while let Some(ended) = book.next_ended(now) {
                            let until = plain.remove(&ended.network);
                            prop_assert_eq!(until, Some(millis(ended.until)));
                            prop_assert!(until.unwrap_or(0) >= last, "in order of their ends");
                            last = until.unwrap_or(0);
                        }
                        prop_assert!(plain.values().all(|until| *until > now));
                    }
                    Step::SetBack(by) => {
                        book.set_back(by);
                        now = now.saturating_sub(by);
                        plain.values_mut().for_each(|until| *until = until.saturating_sub(by));
                    }
                }
                prop_assert_eq!(book.len(), plain.len());
                prop_assert_eq!(book.soonest(), plain.values().min().copied());
                let lengths: u32 = book.lengths.iter().sum();
                prop_assert_eq!(lengths as usize, plain.len());
            }
        }
    }
}
