//! How fast a client may ask: so many requests a second on average, and a burst. Knows clients, rates
//! and a clock that it is handed; must not know requests or why a client is an offender. The
//! arithmetic (GCRA) is governor's; ours is where the states lie and what happens when there are too
//! many.
//!
//! All rates together remember at most [`MAX_KEYS`] clients. Beyond that, a client that is not
//! remembered yet shares one client's rate with the other newcomers of its shard (a 64th of all): a
//! flood from countless addresses slows newcomers down and lets nobody by unlimited.

use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use governor::clock::{Clock, DefaultClock};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::state::keyed::ShrinkableKeyedStateStore;
use governor::{Quota, RateLimiter};
use ipnet::IpNet;

use crate::client::{Client, ClientKey, of_whole_clients};

/// Most clients remembered by all rates together; at most 20 MiB.
pub const MAX_KEYS: usize = 262_144;
/// Threads rarely meet on one of these.
const SHARDS: usize = 64;
/// One request may take no longer to be earned than this.
const SLOWEST: Duration = Duration::from_secs(24 * 3600);
/// A burst may take no longer to be earned anew than this.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// Why a rate is none.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum RateFault {
    /// Not a positive number, or out of bounds.
    #[error("{0} requests a second cannot be counted; write a number from 0.0001 to 1000000")]
    PerSecond(f64),
    /// No request at all.
    #[error("a burst of 0 admits nothing; write 1 or more")]
    NoBurst,
    /// It would take months to be earned anew.
    #[error("a burst of {burst} takes over 30 days at {per_second} requests a second; write a smaller one")]
    Burst {
        /// As written.
        per_second: f64,
        /// As written.
        burst: u32,
    },
}

/// Requests a second on average, and how many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    period: Duration,
    burst: NonZeroU32,
}

impl Rate {
    /// What an offender gets where nothing else is said: a request every two seconds, five at once.
    pub const OFFENDER: Self = Self {
        period: Duration::from_secs(2),
        burst: match NonZeroU32::new(5) {
            Some(burst) => burst,
            None => NonZeroU32::MIN,
        },
    };

    /// `per_second` may be a fraction: 0.5 is one request every two seconds. `burst` requests may come
    /// at once after a pause.
    ///
    /// # Errors
    /// Numbers that are no rate.
    pub fn new(per_second: f64, burst: u32) -> Result<Self, RateFault> {
        if !(per_second > 0.0 && per_second <= 1e6) {
            return Err(RateFault::PerSecond(per_second));
        }
        let period = Duration::try_from_secs_f64(1.0 / per_second).unwrap_or(Duration::MAX);
        if period > SLOWEST {
            return Err(RateFault::PerSecond(per_second));
        }
        let burst = NonZeroU32::new(burst).ok_or(RateFault::NoBurst)?;
        if period.checked_mul(burst.get()).is_none_or(|whole| whole > LONGEST) {
            return Err(RateFault::Burst { per_second, burst: burst.get() });
        }
        Ok(Self { period, burst })
    }

    fn quota(self) -> Quota {
        // A period of nothing is not made above.
        Quota::with_period(self.period)
            .unwrap_or_else(|| Quota::per_second(self.burst))
            .allow_burst(self.burst)
    }
}

/// The client asks too fast. It may come back after so long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("asks faster than it may; retry in {retry_after:?}")]
pub struct TooFast {
    /// Until its next request would be admitted.
    pub retry_after: Duration,
}

/// Every rate, with the clients that have used it lately.
#[derive(Debug)]
pub struct Rates<C: Clock = DefaultClock> {
    clock: C,
    client: Option<Limiter<C>>,
    routes: Vec<Option<Limiter<C>>>,
    offender: Limiter<C>,
    exempt: ArcSwap<Vec<IpNet>>,
    keys: Arc<Keys>,
}

type Limiter<C> = RateLimiter<ClientKey, Store, C, NoOpMiddleware<<C as Clock>::Instant>>;

impl Rates {
    /// `client` is for all requests of one client, `routes` for those to each route in order, and
    /// `offender` takes the place of `client` for who is throttled. `None` is unlimited.
    #[must_use]
    pub fn new(client: Option<Rate>, routes: &[Option<Rate>], offender: Rate) -> Arc<Self> {
        Arc::new(Self::with_clock(client, routes, offender, DefaultClock::default()))
    }
}

impl<C: Clock + Clone> Rates<C> {
    fn with_clock(client: Option<Rate>, routes: &[Option<Rate>], offender: Rate, clock: C) -> Self {
        let keys = Arc::new(Keys::default());
        let limiter =
            |rate: Rate| RateLimiter::new(rate.quota(), Store::new(Arc::clone(&keys)), clock.clone());
        Self {
            client: client.map(limiter),
            routes: routes.iter().map(|rate| rate.map(limiter)).collect(),
            offender: limiter(offender),
            exempt: ArcSwap::default(),
            keys: Arc::clone(&keys),
            clock,
        }
    }

    /// Who is held to no rate at all: allow-listed networks and pentesters with a lease.
    pub fn set_exempt(&self, networks: Vec<IpNet>) {
        self.exempt.store(Arc::new(networks.into_iter().map(of_whole_clients).collect()));
    }

    /// Counts one request of `client`; one that is throttled against the offenders' rate.
    ///
    /// # Errors
    /// It asks too fast. The request counts for nothing then.
    pub fn client(&self, client: Client, throttled: bool) -> Result<(), TooFast> {
        match &self.client {
            _ if self.is_exempt(client.address) => Ok(()),
            _ if throttled => self.ask(&self.offender, client),
            Some(limiter) => self.ask(limiter, client),
            None => Ok(()),
        }
    }

    /// Counts one request of `client` to the route with this number, from 0 in the order of
    /// [`Rates::new`]. A number without a rate is unlimited.
    ///
    /// # Errors
    /// As [`Rates::client`].
    pub fn route(&self, client: Client, route: usize) -> Result<(), TooFast> {
        match self.routes.get(route) {
            Some(Some(limiter)) if !self.is_exempt(client.address) => self.ask(limiter, client),
            _ => Ok(()),
        }
    }

    fn is_exempt(&self, address: IpAddr) -> bool {
        let exempt = self.exempt.load();
        !exempt.is_empty() && {
            let address = address.to_canonical();
            exempt.iter().any(|network| network.contains(&address))
        }
    }

    fn ask(&self, limiter: &Limiter<C>, client: Client) -> Result<(), TooFast> {
        limiter
            .check_key(&client.key())
            .map_err(|until| TooFast { retry_after: until.wait_time_from(self.clock.now()) })
    }

    /// Forgets who has earned its whole burst anew and so counts as new. Call it about once a second:
    /// it holds each shard for well under a millisecond.
    pub fn tidy(&self) {
        for limiter in self.client.iter().chain(self.routes.iter().flatten()).chain([&self.offender]) {
            limiter.retain_recent();
        }
    }

    /// Clients remembered now, once for each rate.
    #[must_use]
    pub fn remembered(&self) -> usize {
        self.keys.held.load(Ordering::Relaxed)
    }

    /// Requests that had to share a rate because [`MAX_KEYS`] were remembered.
    #[must_use]
    pub fn crowded(&self) -> u64 {
        self.keys.crowded.load(Ordering::Relaxed)
    }
}

/// What all rates of one edge share.
#[derive(Debug, Default)]
struct Keys {
    held: AtomicUsize,
    crowded: AtomicU64,
}

impl Keys {
    fn take(&self) -> bool {
        let taken = self
            .held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| (held < MAX_KEYS).then_some(held + 1));
        taken.is_ok()
    }
}

/// The states of one rate: for each client the time at which it has earned everything anew.
#[derive(Debug)]
struct Store {
    keys: Arc<Keys>,
    /// Keyed by chance, so that clients cannot choose to collide.
    hasher: RandomState,
    shards: Vec<Mutex<Shard>>,
}

#[derive(Debug, Default)]
struct Shard {
    known: HashMap<ClientKey, Nanos>,
    /// Of all for whom there was no room.
    others: Option<Nanos>,
}

impl Store {
    fn new(keys: Arc<Keys>) -> Self {
        Self {
            keys,
            hasher: RandomState::new(),
            shards: std::iter::repeat_with(Mutex::default).take(SHARDS).collect(),
        }
    }
}

impl StateStore for Store {
    type Key = ClientKey;

    fn measure_and_replace<T, F, E>(&self, key: &ClientKey, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        // The map inside takes other bits of its own hash; any bits serve here.
        let index = usize::try_from(self.hasher.hash_one(key) % SHARDS as u64).unwrap_or(0);
        let mut shard = whole(&self.shards[index]);
        let Shard { known, others } = &mut *shard;
        match known.entry(*key) {
            Entry::Occupied(mut entry) => {
                let (outcome, next) = decide(Some(*entry.get()))?;
                entry.insert(next);
                Ok(outcome)
            }
            Entry::Vacant(entry) if self.keys.take() => match decide(None) {
                Ok((outcome, next)) => {
                    entry.insert(next);
                    Ok(outcome)
                }
                Err(refused) => {
                    self.keys.held.fetch_sub(1, Ordering::Relaxed);
                    Err(refused)
                }
            },
            Entry::Vacant(_) => {
                self.keys.crowded.fetch_add(1, Ordering::Relaxed);
                let (outcome, next) = decide(*others)?;
                *others = Some(next);
                Ok(outcome)
            }
        }
    }
}

impl ShrinkableKeyedStateStore<ClientKey> for Store {
    fn retain_recent(&self, drop_below: Nanos) {
        for shard in &self.shards {
            let Shard { known, .. } = &mut *whole(shard);
            let before = known.len();
            known.retain(|_, earned| *earned > drop_below);
            self.keys.held.fetch_sub(before - known.len(), Ordering::Relaxed);
            if known.capacity() / 4 > known.len() + 16 {
                known.shrink_to(known.len() * 2);
            }
        }
    }

    fn len(&self) -> usize {
        self.shards.iter().map(|shard| whole(shard).known.len()).sum()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Nothing under these locks can panic half-way, so a poisoned one is still whole.
fn whole<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;
    use proptest::prelude::*;

    use super::*;

    fn client(number: u32) -> Client {
        Client::new(IpAddr::V4((0x0a00_0000 + number).into()))
    }

    fn rates(client: Option<Rate>, routes: &[Option<Rate>]) -> (Rates<FakeRelativeClock>, FakeRelativeClock) {
        let clock = FakeRelativeClock::default();
        let offender = Rate::new(0.2, 1).unwrap();
        (Rates::with_clock(client, routes, offender, clock.clone()), clock)
    }

    #[test]
    fn a_burst_passes_and_then_one_each_period() {
        let (rates, clock) = rates(Some(Rate::new(0.5, 3).unwrap()), &[]);
        for _ in 0..3 {
            assert_eq!(rates.client(client(1), false), Ok(()));
        }
        let wait = TooFast { retry_after: Duration::from_secs(2) };
        assert_eq!(rates.client(client(1), false), Err(wait));
        assert_eq!(rates.client(client(2), false), Ok(()), "another client has its own");
        clock.advance(Duration::from_millis(1500));
        let rest = TooFast { retry_after: Duration::from_millis(500) };
        assert_eq!(rates.client(client(1), false), Err(rest));
        clock.advance(Duration::from_millis(500));
        assert_eq!(rates.client(client(1), false), Ok(()));
        assert_eq!(
            rates.client(client(1), false),
            Err(wait),
            "what was refused cost nothing, what passed did"
        );
    }

    #[test]
    fn an_offender_is_held_to_its_own_rate_even_where_others_are_free() {
        let (rates, clock) = rates(None, &[]);
        assert_eq!(rates.client(client(1), false), Ok(()));
        assert_eq!(rates.client(client(1), true), Ok(()));
        let wait = TooFast { retry_after: Duration::from_secs(5) };
        assert_eq!(rates.client(client(1), true), Err(wait));
        clock.advance(Duration::from_secs(5));
        assert_eq!(rates.client(client(1), true), Ok(()));
    }

    #[test]
    fn each_route_counts_by_itself_and_one_without_a_rate_is_free() {
        let login = Rate::new(1.0, 2).unwrap();
        let (rates, _) = rates(None, &[None, Some(login), Some(login)]);
        for _ in 0..100 {
            assert_eq!(rates.route(client(1), 0), Ok(()));
            assert_eq!(rates.route(client(1), 99), Ok(()));
        }
        let passed = |route| (0..10).filter(|_| rates.route(client(1), route).is_ok()).count();
        assert_eq!((passed(1), passed(2)), (2, 2));
    }

    #[test]
    fn the_exempt_are_held_to_nothing_until_they_are_exempt_no_more() {
        let slow = Rate::new(0.01, 1).unwrap();
        let (rates, _) = rates(Some(slow), &[Some(slow)]);
        rates.set_exempt(vec!["10.0.0.0/30".parse().unwrap(), "2001:db8::7/128".parse().unwrap()]);
        let neighbour = Client::new("2001:db8::8".parse().unwrap());
        for _ in 0..20 {
            for who in [client(1), neighbour] {
                assert_eq!((rates.client(who, true), rates.route(who, 0)), (Ok(()), Ok(())));
            }
        }
        assert!(rates.client(client(9), false).is_ok() && rates.client(client(9), false).is_err());
        rates.set_exempt(Vec::new());
        assert!(rates.client(client(1), false).is_ok() && rates.client(client(1), false).is_err());
    }

    #[test]
    fn memory_is_bounded_and_beyond_it_newcomers_share_instead_of_passing() {
        let (rates, clock) = rates(Some(Rate::new(1.0, 1).unwrap()), &[]);
        let most = u32::try_from(MAX_KEYS).unwrap();
        for number in 0..most {
            assert_eq!(rates.client(client(number), false), Ok(()));
        }
        assert_eq!((rates.remembered(), rates.crowded()), (MAX_KEYS, 0));
        let passed =
            (most..most + 10_000).filter(|number| rates.client(client(*number), false).is_ok()).count();
        assert_eq!((passed, rates.remembered()), (SHARDS, MAX_KEYS), "one a shard");
        assert_eq!(rates.crowded(), 10_000);
        assert!(rates.client(client(7), false).is_err(), "who is remembered keeps its own count");
        clock.advance(Duration::from_secs(3));
        rates.tidy();
        assert_eq!(rates.remembered(), 0, "who has earned everything anew is forgotten");
        assert_eq!(rates.client(client(most), false), Ok(()));
    }

    #[test]
    fn what_is_no_rate_is_refused_with_what_to_write() {
        for wrong in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-9, 1e7] {
            assert!(matches!(Rate::new(wrong, 1), Err(RateFault::PerSecond(_))), "{wrong}");
        }
        assert_eq!(Rate::new(1.0, 0), Err(RateFault::NoBurst));
        assert!(matches!(Rate::new(0.001, u32::MAX), Err(RateFault::Burst { .. })));
        assert!(Rate::new(1e6, 1_000_000).is_ok() && Rate::new(0.0001, 1).is_ok());
    }

    proptest! {
        #[test]
        fn no_client_ever_gets_more_than_burst_and_rate_allow(
            per_second in 0.1_f64..50.0, burst in 1_u32..20,
            waits in proptest::collection::vec(0_u64..400, 1..200),
        ) {
            let (rates, clock) = rates(Some(Rate::new(per_second, burst).unwrap()), &[]);
            let (mut passed, mut elapsed) = (0_u32, Duration::ZERO);
            for wait in waits {
                clock.advance(Duration::from_millis(wait));
                elapsed += Duration::from_millis(wait);
                match rates.client(client(1), false) {
                    Ok(()) => passed += 1,
                    Err(slow) => {
                        prop_assert!(slow.retry_after > Duration::ZERO);
                        prop_assert!(slow.retry_after <= Duration::from_secs_f64(1.0 / per_second + 0.001));
                    }
                }
                let most = f64::from(burst) + elapsed.as_secs_f64() * per_second + 0.001;
                prop_assert!(f64::from(passed) <= most, "{} of {}", passed, most);
            }
        }
    }
}
