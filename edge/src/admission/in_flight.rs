//! Counts each client's requests in flight, exactly: never more than the limit at once,
//! whatever runs in parallel. Knows keys and counts; must not know requests, nor wait.

use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::client::ClientKey;

/// Threads rarely meet on one of these.
const SHARDS: usize = 64;

/// The limit and the counts. Clients without a request in flight cost nothing.
#[derive(Debug)]
pub struct InFlight {
    max: u32,
    total: AtomicUsize,
    /// Keyed by chance, so that clients cannot choose to collide.
    hasher: RandomState,
    shards: Vec<Mutex<HashMap<ClientKey, u32>>>,
}

/// One admitted request; its place is free again when this is dropped.
#[derive(Debug)]
#[must_use = "a permit that is dropped frees its place at once"]
pub struct Permit {
    from: Arc<InFlight>,
    key: ClientKey,
}

/// The client already has as many requests in flight as it may. It may try again when one ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{in_flight} requests of this client are in flight, which is the limit; retry when one has ended")]
pub struct Rejected {
    /// How many are in flight, the rejected one not counted.
    pub in_flight: u32,
}

impl InFlight {
    /// Admits up to `max` requests at once for each key.
    #[must_use]
    pub fn new(max: u32) -> Arc<Self> {
        Arc::new(Self {
            max,
            total: AtomicUsize::new(0),
            hasher: RandomState::new(),
            shards: std::iter::repeat_with(Mutex::default).take(SHARDS).collect(),
        })
    }

    /// Takes a place for one request, or says that there is none. Never waits for a place.
    ///
    /// # Errors
    /// The client's places are all taken.
    pub fn admit(self: &Arc<Self>, key: ClientKey) -> Result<Permit, Rejected> {
        let mut shard = self.shard(key);
        match shard.entry(key) {
            Entry::Occupied(entry) if *entry.get() >= self.max => {
                return Err(Rejected { in_flight: *entry.get() });
            }
            Entry::Occupied(mut entry) => *entry.get_mut() += 1,
            Entry::Vacant(_) if self.max == 0 => return Err(Rejected { in_flight: 0 }),
            Entry::Vacant(entry) => {
                entry.insert(1);
            }
        }
        drop(shard);
        self.total.fetch_add(1, Ordering::Relaxed);
        Ok(Permit { from: Arc::clone(self), key })
    }

    /// Requests in flight of all clients.
    #[must_use]
    pub fn total(&self) -> usize {
        self.total.load(Ordering::Relaxed)
    }

    /// Clients with at least one request in flight.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.shards.iter().map(|shard| whole(shard).len()).sum()
    }

    fn shard(&self, key: ClientKey) -> MutexGuard<'_, HashMap<ClientKey, u32>> {
        let hash = self.hasher.hash_one(key);
        // The map inside takes other bits of its own hash; any bits serve here.
        let index = usize::try_from(hash % SHARDS as u64).unwrap_or(0);
        whole(&self.shards[index])
    }
}

/// Nothing under these locks can panic half-way, so a poisoned one is still whole.
fn whole<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut shard = self.from.shard(self.key);
        if let Entry::Occupied(mut entry) = shard.entry(self.key) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        } else {
            debug_assert!(false, "a permit's client is counted until it is dropped");
        }
        drop(shard);
        self.from.total.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Barrier;

    use proptest::prelude::*;

    use super::*;
    use crate::client::Client;

    fn key(last: u8) -> ClientKey {
        Client::new(IpAddr::from([192, 0, 2, last])).key()
    }

    #[test]
    fn fifty_are_admitted_and_the_next_is_told_so() {
        let limit = InFlight::new(50);
        let held: Vec<Permit> = (0..50).map(|_| limit.admit(key(1)).unwrap()).collect();
        assert_eq!(limit.admit(key(1)).unwrap_err(), Rejected { in_flight: 50 });
        assert!(limit.admit(key(2)).is_ok(), "another client has its own fifty");
        drop(held);
        assert_eq!((limit.total(), limit.clients()), (0, 0));
    }

    #[test]
    fn a_limit_of_nothing_admits_nobody_and_keeps_no_entry() {
        let limit = InFlight::new(0);
        assert_eq!(limit.admit(key(1)).unwrap_err(), Rejected { in_flight: 0 });
        assert_eq!(limit.clients(), 0);
    }

    #[test]
    fn threads_together_never_hold_more_than_the_limit() {
        const MAX: u32 = 7;
        let limit = InFlight::new(MAX);
        let held: Vec<AtomicUsize> = (0..3).map(|_| AtomicUsize::new(0)).collect();
        let start = Barrier::new(8);
        let admitted: usize = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..8_usize)
                .map(|worker| {
                    let (limit, held, start) = (&limit, &held, &start);
                    scope.spawn(move || {
                        start.wait();
                        let mut admitted = 0;
                        let mut mine = Vec::new();
                        for turn in 0..4_000 {
                            let client = (turn + worker) % held.len();
                            if let Ok(permit) = limit.admit(key(u8::try_from(client).unwrap())) {
                                let now = held[client].fetch_add(1, Ordering::SeqCst) + 1;
                                assert!(now <= MAX as usize, "{now} at once");
                                admitted += 1;
                                mine.push((client, permit));
                            }
                            if turn % 3 == 0
                                && let Some((client, permit)) = mine.pop()
                            {
                                held[client].fetch_sub(1, Ordering::SeqCst);
                                drop(permit);
                            }
                        }
                        for (client, permit) in mine {
                            held[client].fetch_sub(1, Ordering::SeqCst);
                            drop(permit);
                        }
                        admitted
                    })
                })
                .collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        assert!(admitted >= 3 * MAX as usize, "{admitted} admitted");
        assert_eq!((limit.total(), limit.clients()), (0, 0), "every place came back");
    }

    proptest! {
        #[test]
        fn counts_follow_a_plain_model(max in 1_u32..5, steps in proptest::collection::vec((any::<bool>(), 0_u8..4), 0..200)) {
            let limit = InFlight::new(max);
            let mut model: Vec<Vec<Permit>> = (0..4).map(|_| Vec::new()).collect();
            for (admit, client) in steps {
                let mine = &mut model[usize::from(client)];
                if admit {
                    match limit.admit(key(client)) {
                        Ok(permit) => mine.push(permit),
                        Err(rejected) => {
                            prop_assert_eq!(rejected.in_flight, max);
                            prop_assert_eq!(mine.len(), max as usize);
                        }
                    }
                } else {
                    mine.pop();
                }
                prop_assert!(mine.len() <= max as usize);
                prop_assert_eq!(limit.total(), model.iter().map(Vec::len).sum::<usize>());
                prop_assert_eq!(limit.clients(), model.iter().filter(|held| !held.is_empty()).count());
            }
        }
    }
}
