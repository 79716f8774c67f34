//! Requests that wait for their turn: each connection's in their order, and one of each connection after
//! the other, so that nobody waits for all that another has asked. Knows nothing of what they ask.

use std::collections::{HashMap, VecDeque};

use super::ConnectionKey;

/// All that wait.
#[derive(Debug)]
pub(super) struct Lanes<T> {
    waiting: HashMap<ConnectionKey, VecDeque<T>>,
    /// Those of whom something waits, each once.
    turns: VecDeque<ConnectionKey>,
}

impl<T> Lanes<T> {
    pub(super) fn new() -> Self {
        Self { waiting: HashMap::new(), turns: VecDeque::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// Behind all that this connection has asked.
    pub(super) fn push(&mut self, connection: ConnectionKey, asked: T) {
        self.lane(connection).push_back(asked);
    }

    /// What was taken out is not done yet: in front of all that this connection has asked, in its next turn.
    pub(super) fn put_back(&mut self, connection: ConnectionKey, asked: T) {
        self.lane(connection).push_front(asked);
    }

    /// The next one.
    pub(super) fn next(&mut self) -> Option<(ConnectionKey, T)> {
        let connection = self.turns.pop_front()?;
        let lane = self.waiting.get_mut(&connection)?;
        let asked = lane.pop_front()?;
        if lane.is_empty() {
            self.waiting.remove(&connection);
        } else {
            self.turns.push_back(connection);
        }
        Some((connection, asked))
    }

    fn lane(&mut self, connection: ConnectionKey) -> &mut VecDeque<T> {
        let lane = self.waiting.entry(connection).or_default();
        if lane.is_empty() {
            self.turns.push_back(connection);
        }
        lane
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_each_connection_comes_after_the_other_and_each_in_its_order() {
        let mut lanes = Lanes::new();
        (0..4).for_each(|number| lanes.push(1, number));
        lanes.push(2, 10);
        lanes.push(2, 11);
        let mut taken = vec![lanes.next().unwrap(), lanes.next().unwrap()];
        lanes.put_back(2, 10);
        taken.extend(std::iter::from_fn(|| lanes.next()));
        assert_eq!(taken, [(1, 0), (2, 10), (1, 1), (2, 10), (1, 2), (2, 11), (1, 3)]);
        assert!(lanes.is_empty() && lanes.waiting.is_empty());
    }
}
