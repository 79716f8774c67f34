//! One consumer and what it holds unacknowledged, in the order it was given. Knows no queue's
//! inside.

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;

use super::line::Entry;
use super::{ConnectionKey, ConsumerKey};
use crate::queue::message::Id;

/// A message in a consumer's hands.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) id: Id,
    pub(super) entry: Entry,
    /// The client has seen it and wants more before it acknowledges.
    pub(super) delivered: bool,
}

/// A flight that a transaction has acknowledged, and where it goes back to on rollback.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) consumer: ConsumerKey,
    pub(super) turn: u64,
    pub(super) flight: Flight,
    pub(super) fate: super::Fate,
    /// To the dead letters, once the transaction is committed.
    pub(super) step: Option<super::Move>,
}

/// One consumer.
#[derive(Debug)]
pub(super) struct Consumer {
    pub(super) connection: ConnectionKey,
    pub(super) queue: u16,
    pub(super) prefetch: usize,
    /// With a prefetch of 0: messages that it waits for.
    wanted: usize,
    flights: BTreeMap<u64, Flight>,
    turns: HashMap<Id, u64>,
    next: u64,
    /// Flights that count against the prefetch.
    open: usize,
    /// All before this turn are delivered.
    seen: u64,
    /// Acknowledged by transactions that are not over.
    pub(super) taken: usize,
    /// Bytes dispatched that its connection has not passed on yet.
    pub(super) outstanding: usize,
    /// As many of them are of big messages.
    pub(super) big: usize,
}

impl Consumer {
    pub(super) fn new(connection: ConnectionKey, queue: u16, prefetch: usize) -> Self {
        Self {
            connection,
            queue,
            prefetch,
            wanted: 0,
            flights: BTreeMap::new(),
            turns: HashMap::new(),
            next: 0,
            open: 0,
            seen: 0,
            taken: 0,
            outstanding: 0,
            big: 0,
        }
    }

    /// May it be given one more? Never more than `most`, however many it has seen.
    pub(super) fn has_room(&self, most: usize) -> bool {
        let wants = if self.prefetch == 0 { self.wanted > 0 } else { self.open < self.prefetch };
        wants && self.flights.len() + self.taken < most
    }

    pub(super) fn want(&mut self, count: usize) {
        self.wanted = count;
    }

    pub(super) fn give(&mut self, id: Id, entry: Entry) {
        let turn = self.next;
        self.next += 1;
        self.open += 1;
        self.wanted = self.wanted.saturating_sub(1);
        self.turns.insert(id, turn);
        self.flights.insert(turn, Flight { id, entry, delivered: false });
    }

    /// The turns of a range of messages, both ends included; from the oldest if no first one is named.
    pub(super) fn range(&self, first: Option<Id>, last: Id) -> Option<RangeInclusive<u64>> {
        let to = *self.turns.get(&last)?;
        let from = match first {
            Some(first) => *self.turns.get(&first)?,
            None => 0,
        };
        (from <= to).then_some(from..=to)
    }

    /// Those before are not looked at again, so that saying it of each costs no more than of all.
    pub(super) fn mark_delivered(&mut self, turns: RangeInclusive<u64>) {
        let (from, to) = turns.into_inner();
        if to < self.seen {
            return;
        }
        for flight in self.flights.range_mut(from.max(self.seen)..=to).map(|(_, flight)| flight) {
            if !std::mem::replace(&mut flight.delivered, true) {
                self.open -= 1;
            }
        }
        if from <= self.seen {
            self.seen = self.seen.max(to + 1);
        }
    }

    /// The first of a range, so many, and what comes behind them in it.
    pub(super) fn first_of(
        &self,
        turns: RangeInclusive<u64>,
        most: usize,
    ) -> (RangeInclusive<u64>, Option<Id>) {
        let (from, to) = turns.into_inner();
        match self.flights.range(from..=to).nth(most) {
            Some((behind, flight)) => (from..=behind.saturating_sub(1), Some(flight.id)),
            None => (from..=to, None),
        }
    }

    pub(super) fn count_redelivery(&mut self, turns: RangeInclusive<u64>) {
        for flight in self.flights.range_mut(turns).map(|(_, flight)| flight) {
            flight.entry.redeliveries = flight.entry.redeliveries.saturating_add(1);
        }
    }

    /// Takes a range out of its hands.
    pub(super) fn take(&mut self, turns: RangeInclusive<u64>) -> Vec<(u64, Flight)> {
        let found: Vec<u64> = self.flights.range(turns).map(|(turn, _)| *turn).collect();
        found.into_iter().filter_map(|turn| Some((turn, self.remove(turn)?))).collect()
    }

    pub(super) fn take_one(&mut self, id: Id) -> Option<Flight> {
        self.turns.get(&id).copied().and_then(|turn| self.remove(turn))
    }

    fn remove(&mut self, turn: u64) -> Option<Flight> {
        let flight = self.flights.remove(&turn)?;
        self.turns.remove(&flight.id);
        if !flight.delivered {
            self.open -= 1;
        }
        Some(flight)
    }

    /// Puts back what a transaction had taken, where it was. It counts no more against the
    /// prefetch: the client has it, and gives it again by itself.
    pub(super) fn put_back(&mut self, turn: u64, mut flight: Flight) {
        flight.delivered = true;
        self.turns.insert(flight.id, turn);
        self.flights.insert(turn, flight);
    }

    /// All that it holds, in the order it was given.
    pub(super) fn into_flights(self) -> BTreeMap<u64, Flight> {
        self.flights
    }

    /// How many it holds.
    pub(super) fn held(&self) -> usize {
        self.flights.len()
    }
}
