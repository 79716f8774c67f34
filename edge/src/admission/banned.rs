//! Who is banned now, as every connection and every request asks. Knows networks and when a ban
//! ends; must not know why anybody is banned, nor the kernel. It exists because a ban must hold
//! where no kernel sees the client: behind a trusted proxy, and on hosts without a firewall.
//!
//! An empty table costs one atomic load. Networks are kept by prefix length, so that a look-up is one
//! access for each length in use, and a million single addresses cost about 20 bytes each.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use ipnet::IpNet;

use crate::client::of_whole_clients;

/// Of each prefix length; a power of two.
const SHARDS: usize = 64;
/// How many of them one call of [`Banned::purge`] looks at, of each length in use.
const PURGED_AT_ONCE: usize = 4;
/// Ends are kept as 32 bits: what would end after the year 2106 never does.
const NEVER: u32 = u32::MAX;

/// How it stands with a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing is known against it.
    Free,
    /// It is let in at the offenders' rate.
    Throttled,
    /// As well, and that is no fault of its own: a page that it visits may have asked.
    Visitor,
    /// It gets nothing.
    Banned {
        /// Whole seconds since the UNIX epoch; `u32::MAX` for a ban without an end.
        until: u64,
    },
}

/// The bans and throttles in force. Shared by all threads.
#[derive(Debug, Default)]
pub struct Banned {
    /// Of all tables, so that a client of a host without bans costs one load.
    entries: AtomicUsize,
    generation: AtomicU64,
    turn: AtomicUsize,
    bans: Table,
    throttles: Table,
    visitors: Table,
}

impl Banned {
    /// Nobody is banned.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Bans `network` until `until` (whole seconds since the UNIX epoch). Of two bans of one network
    /// the later end holds; to shorten one, lift it first. IPv6 networks narrower than /64 are
    /// widened to it, since that is what one client owns; a prefix of 0 bits would be everybody and is
    /// refused.
    pub fn ban(&self, network: IpNet, until: u64) {
        if self.bans.note(network, until, &self.entries) {
            // After the entry: who sees the new generation finds the ban.
            self.generation.fetch_add(1, Ordering::Release);
        }
    }

    /// Lets `network` in at the offenders' rate only; otherwise as [`Banned::ban`]. A ban goes before.
    pub fn throttle(&self, network: IpNet, until: u64) {
        self.throttles.note(network, until, &self.entries);
    }

    /// The same for a visitor: no fault of its own. A ban and a throttle go before, and their end leaves
    /// it as it is.
    pub fn throttle_visitor(&self, network: IpNet, until: u64) {
        self.visitors.note(network, until, &self.entries);
    }

    /// Lets exactly this network in as anybody, unless a ban or a throttle says otherwise.
    pub fn lift_visitor(&self, network: IpNet) {
        self.visitors.lift(network, &self.entries);
    }

    /// Ends ban and throttle of exactly this network. `false` where there was neither.
    pub fn lift(&self, network: IpNet) -> bool {
        let ban = self.bans.lift(network, &self.entries);
        let throttle = self.throttles.lift(network, &self.entries);
        ban || throttle
    }

    /// Ends all.
    pub fn clear(&self) {
        self.bans.clear(&self.entries);
        self.throttles.clear(&self.entries);
        self.visitors.clear(&self.entries);
    }

    /// How it stands with `address` at `now` (whole seconds since the UNIX epoch). Of several bans
    /// that cover it, the last to end is told.
    #[must_use]
    pub fn standing(&self, address: IpAddr, now: u64) -> Standing {
        if self.entries.load(Ordering::Acquire) == 0 {
            return Standing::Free;
        }
        let now = seconds(now);
        match self.bans.end(address, now) {
            Some(until) => Standing::Banned { until: u64::from(until) },
            None if self.throttles.end(address, now).is_some() => Standing::Throttled,
            None if self.visitors.end(address, now).is_some() => Standing::Visitor,
            None => Standing::Free,
        }
    }

    /// Is `address` banned at `now`?
    #[must_use]
    pub fn holds(&self, address: IpAddr, now: u64) -> bool {
        matches!(self.standing(address, now), Standing::Banned { .. })
    }

    /// Networks that are banned, ended ones that are not purged yet included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bans.len()
    }

    /// Networks that are throttled, counted as by [`Banned::len`].
    #[must_use]
    pub fn throttled(&self) -> usize {
        self.throttles.len()
    }

    /// Is nobody banned or throttled?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.load(Ordering::Acquire) == 0
    }

    /// Grows with each ban: while it is the same, nobody who was free before is banned now.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Forgets what has ended by `now` (whole seconds since the UNIX epoch) in a sixteenth of the
    /// table, and the next time in the next one: no call holds anybody up for long. Returns how many
    /// were forgotten. Ended bans count for nothing before, too; this only gives their memory back.
    pub fn purge(&self, now: u64) -> usize {
        if self.is_empty() {
            return 0;
        }
        let first = self.turn.fetch_add(PURGED_AT_ONCE, Ordering::Relaxed) % SHARDS;
        let (now, shards) = (seconds(now), first..first + PURGED_AT_ONCE);
        let tables = [&self.bans, &self.throttles, &self.visitors];
        tables.map(|table| table.purge(now, shards.clone(), &self.entries)).iter().sum()
    }
}

fn seconds(since_epoch: u64) -> u32 {
    u32::try_from(since_epoch).unwrap_or(NEVER)
}

fn is_over(end: u32, now: u32) -> bool {
    end <= now && end != NEVER
}

/// Networks of both families and their ends.
#[derive(Debug)]
struct Table {
    v4: Family<u32, 32>,
    /// The upper half of an address: a client is a /64 at least.
    v6: Family<u64, 64>,
}

impl Default for Table {
    fn default() -> Self {
        Self { v4: Family::new(), v6: Family::new() }
    }
}

impl Table {
    fn note(&self, network: IpNet, until: u64, entries: &AtomicUsize) -> bool {
        let network = of_whole_clients(network);
        if network.prefix_len() == 0 {
            tracing::error!("admission: {network}: would be everybody; it is not banned");
            return false;
        }
        let until = seconds(until);
        match network {
            IpNet::V4(v4) => self.v4.note(v4.prefix_len(), v4.addr().to_bits().into(), until, entries),
            IpNet::V6(v6) => self.v6.note(v6.prefix_len(), upper(v6.addr()), until, entries),
        }
        true
    }

    fn lift(&self, network: IpNet, entries: &AtomicUsize) -> bool {
        match of_whole_clients(network) {
            IpNet::V4(v4) => self.v4.lift(v4.prefix_len(), v4.addr().to_bits().into(), entries),
            IpNet::V6(v6) => self.v6.lift(v6.prefix_len(), upper(v6.addr()), entries),
        }
    }

    fn clear(&self, entries: &AtomicUsize) {
        self.v4.clear(entries);
        self.v6.clear(entries);
    }

    fn end(&self, address: IpAddr, now: u32) -> Option<u32> {
        match address.to_canonical() {
            IpAddr::V4(v4) => self.v4.end(v4.to_bits().into(), now),
            IpAddr::V6(v6) => self.v6.end(upper(v6), now),
        }
    }

    fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    fn purge(&self, now: u32, shards: std::ops::Range<usize>, entries: &AtomicUsize) -> usize {
        self.v4.purge(now, shards.clone(), entries) + self.v6.purge(now, shards, entries)
    }
}

fn upper(address: std::net::Ipv6Addr) -> u64 {
    u64::try_from(address.to_bits() >> 64).unwrap_or_default()
}

/// One address family: `K` holds its `BITS` bits. Lengths are 1 to `BITS`.
#[derive(Debug)]
struct Family<K, const BITS: u8> {
    /// Made when the first network of that length is banned, and kept.
    lengths: Vec<OnceLock<Shards<K>>>,
    /// Bit `length - 1` of each length that was ever used.
    used: AtomicU64,
}

#[derive(Debug)]
struct Shards<K> {
    held: AtomicUsize,
    maps: Vec<RwLock<HashMap<K, u32>>>,
}

impl<K, const BITS: u8> Family<K, BITS>
where
    K: Copy + Eq + Hash + TryFrom<u64> + Default,
{
    fn new() -> Self {
        Self {
            lengths: std::iter::repeat_with(OnceLock::new).take(usize::from(BITS)).collect(),
            used: AtomicU64::new(0),
        }
    }

    fn note(&self, length: u8, bits: u64, until: u32, entries: &AtomicUsize) {
        let index = usize::from(length) - 1;
        let Some(place) = self.lengths.get(index) else { return };
        let shards = place.get_or_init(Shards::new);
        let mut map = shards.write(bits);
        match map.entry(key(bits)) {
            std::collections::hash_map::Entry::Occupied(mut known) => {
                let end = known.get_mut();
                *end = (*end).max(until);
            }
            std::collections::hash_map::Entry::Vacant(free) => {
                free.insert(until);
                shards.held.fetch_add(1, Ordering::AcqRel);
                self.used.fetch_or(1 << index, Ordering::AcqRel);
                entries.fetch_add(1, Ordering::AcqRel);
            }
        }
    }

    fn lift(&self, length: u8, bits: u64, entries: &AtomicUsize) -> bool {
        let Some(shards) =
            usize::from(length).checked_sub(1).and_then(|index| self.lengths.get(index)?.get())
        else {
            return false;
        };
        let was_there = shards.write(bits).remove(&key(bits)).is_some();
        if was_there {
            shards.held.fetch_sub(1, Ordering::AcqRel);
            entries.fetch_sub(1, Ordering::AcqRel);
        }
        was_there
    }

    /// The latest end of the networks that hold the address and have not ended.
    fn end(&self, address: u64, now: u32) -> Option<u32> {
        self.in_use()
            .filter_map(|(length, shards)| {
                let bits = address & !((1_u64 << (BITS - length)) - 1);
                shards.read(bits).get(&key(bits)).copied()
            })
            .filter(|end| !is_over(*end, now))
            .max()
    }

    /// Lengths with at least one network.
    fn in_use(&self) -> impl Iterator<Item = (u8, &Shards<K>)> {
        let used = self.used.load(Ordering::Acquire);
        (1..=BITS)
            .skip(usize::try_from(used.trailing_zeros()).unwrap_or(0))
            .take_while(move |length| used >> (length - 1) != 0)
            .filter(move |length| used >> (length - 1) & 1 == 1)
            .filter_map(|length| Some((length, self.lengths.get(usize::from(length) - 1)?.get()?)))
            .filter(|(_, shards)| shards.held.load(Ordering::Acquire) > 0)
    }

    fn len(&self) -> usize {
        self.in_use().map(|(_, shards)| shards.held.load(Ordering::Acquire)).sum()
    }

    fn clear(&self, entries: &AtomicUsize) {
        for (_, shards) in self.in_use() {
            for map in &shards.maps {
                let gone = std::mem::take(&mut *whole_mut(map)).len();
                shards.held.fetch_sub(gone, Ordering::AcqRel);
                entries.fetch_sub(gone, Ordering::AcqRel);
            }
        }
    }

    fn purge(&self, now: u32, which: std::ops::Range<usize>, entries: &AtomicUsize) -> usize {
        let mut purged = 0;
        for (_, shards) in self.in_use() {
            for map in shards.maps.get(which.clone()).unwrap_or_default() {
                let mut map = whole_mut(map);
                let before = map.len();
                map.retain(|_, end| !is_over(*end, now));
                let gone = before - map.len();
                if map.capacity() / 4 > map.len() + 16 {
                    let enough = map.len() * 2;
                    map.shrink_to(enough);
                }
                shards.held.fetch_sub(gone, Ordering::AcqRel);
                entries.fetch_sub(gone, Ordering::AcqRel);
                purged += gone;
            }
        }
        purged
    }
}

fn key<K: TryFrom<u64> + Default>(bits: u64) -> K {
    // An IPv4 network's bits are 32 by their making.
    K::try_from(bits).unwrap_or_default()
}

impl<K> Shards<K> {
    fn new() -> Self {
        Self {
            held: AtomicUsize::new(0),
            maps: std::iter::repeat_with(RwLock::default).take(SHARDS).collect(),
        }
    }

    /// Only spreads the locks; the map inside hashes by chance, so nobody gains by choosing bits.
    fn index(bits: u64) -> usize {
        let mixed = bits.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58;
        usize::try_from(mixed).unwrap_or(0) % SHARDS
    }

    fn read(&self, bits: u64) -> RwLockReadGuard<'_, HashMap<K, u32>> {
        self.maps[Self::index(bits)].read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, bits: u64) -> RwLockWriteGuard<'_, HashMap<K, u32>> {
        whole_mut(&self.maps[Self::index(bits)])
    }
}

/// Nothing under these locks can panic half-way, so a poisoned one is still whole.
fn whole_mut<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn standing(banned: &Banned, address: &str, now: u64) -> Standing {
        banned.standing(address.parse().unwrap(), now)
    }

    #[test]
    fn a_ban_holds_to_its_end_and_for_the_whole_64_of_ipv6() {
        let banned = Banned::new();
        banned.ban(net("203.0.113.7/32"), 100);
        banned.ban(net("2001:db8::1/128"), 100);
        assert_eq!(standing(&banned, "203.0.113.7", 99), Standing::Banned { until: 100 });
        assert_eq!(standing(&banned, "::ffff:203.0.113.7", 99), Standing::Banned { until: 100 });
        assert_eq!(standing(&banned, "203.0.113.7", 100), Standing::Free);
        assert_eq!(standing(&banned, "203.0.113.8", 99), Standing::Free);
        assert_eq!(standing(&banned, "2001:db8::ffff:1", 99), Standing::Banned { until: 100 });
        assert_eq!(standing(&banned, "2001:db8:0:1::1", 99), Standing::Free);
        assert!(banned.lift(net("2001:db8::/64")) && !banned.lift(net("2001:db8::/64")));
        assert_eq!(banned.len(), 1);
    }

    #[test]
    fn the_later_end_holds_and_a_ban_goes_before_a_throttle() {
        let banned = Banned::new();
        banned.throttle(net("203.0.113.0/24"), 500);
        assert_eq!((standing(&banned, "203.0.113.7", 1), banned.generation()), (Standing::Throttled, 0));
        banned.ban(net("203.0.113.7/32"), 100);
        banned.ban(net("203.0.113.7/32"), 50);
        banned.ban(net("203.0.113.0/28"), 70);
        assert_eq!(standing(&banned, "203.0.113.7", 1), Standing::Banned { until: 100 });
        assert_eq!(standing(&banned, "203.0.113.9", 1), Standing::Banned { until: 70 });
        assert_eq!(standing(&banned, "203.0.113.7", 100), Standing::Throttled);
        assert_eq!((banned.len(), banned.throttled(), banned.generation()), (2, 1, 3));
        banned.clear();
        assert!(banned.is_empty());
        assert_eq!((banned.len(), banned.throttled()), (0, 0));
    }

    #[test]
    fn a_ban_and_a_throttle_go_before_a_visit_and_leave_it_when_they_end() {
        let banned = Banned::new();
        let network = net("203.0.113.7/32");
        banned.throttle_visitor(network, 500);
        assert_eq!((standing(&banned, "203.0.113.7", 1), banned.generation()), (Standing::Visitor, 0));
        banned.throttle(network, 100);
        assert_eq!(standing(&banned, "203.0.113.7", 1), Standing::Throttled);
        banned.ban(network, 100);
        assert_eq!(standing(&banned, "203.0.113.7", 1), Standing::Banned { until: 100 });
        assert!(banned.lift(network));
        assert_eq!(standing(&banned, "203.0.113.7", 1), Standing::Visitor);
        banned.lift_visitor(network);
        assert_eq!((standing(&banned, "203.0.113.7", 1), banned.is_empty()), (Standing::Free, true));
    }

    #[test]
    fn nobody_bans_everybody_and_a_ban_without_end_never_ends() {
        let banned = Banned::new();
        banned.ban(net("0.0.0.0/0"), 100);
        banned.ban(net("::/0"), 100);
        assert_eq!((banned.len(), banned.generation()), (0, 0));
        assert!(!banned.lift(net("::/0")));
        banned.ban(net("198.51.100.1/32"), u64::MAX);
        let forever = Standing::Banned { until: u64::from(u32::MAX) };
        assert_eq!(standing(&banned, "198.51.100.1", u64::MAX), forever);
    }

    #[test]
    fn sixteen_purges_see_the_whole_table() {
        let banned = Banned::new();
        for host in 0..10_000_u32 {
            let network = IpNet::from(IpAddr::V4((0x0a00_0000 + host).into()));
            banned.ban(network, if host % 2 == 0 { 10 } else { 1000 });
        }
        let purged: Vec<usize> = (0..16).map(|_| banned.purge(10)).collect();
        assert_eq!((purged.iter().sum::<usize>(), banned.len()), (5000, 5000));
        assert!(purged.iter().all(|step| *step < 1000), "in steps: {purged:?}");
        assert_eq!(standing(&banned, "10.0.0.1", 10), Standing::Banned { until: 1000 });
    }

    #[test]
    fn who_sees_the_new_generation_sees_the_ban() {
        let banned = Banned::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for host in 1..=2000_u32 {
                    banned.ban(IpNet::from(IpAddr::V4(host.into())), 100);
                }
            });
            for _ in 0..2 {
                scope.spawn(|| {
                    loop {
                        let seen = banned.generation();
                        if let Ok(host @ 1..) = u32::try_from(seen) {
                            assert!(banned.holds(IpAddr::V4(host.into()), 1), "{host}");
                        }
                        if seen == 2000 {
                            break;
                        }
                    }
                });
            }
        });
    }

    #[derive(Clone, Debug)]
    enum Step {
        Ban(IpNet, u64),
        Throttle(IpNet, u64),
        Visit(IpNet, u64),
        Lift(IpNet),
        LiftVisitor(IpNet),
        Purge(u64),
        Clear,
    }

    fn any_network() -> impl Strategy<Value = IpNet> {
        // Few enough to meet each other.
        prop_oneof![
            (0_u32..64, 1_u8..=32).prop_map(|(low, length)| {
                IpNet::new(IpAddr::V4((0xcb00_7100 | low).into()), length).unwrap()
            }),
            (0_u128..16, 0_u128..4, 1_u8..=128).prop_map(|(network, low, length)| {
                let bits = (0x2001_0db8_u128 << 96) | (network << 64) | low;
                IpNet::new(IpAddr::V6(bits.into()), length).unwrap()
            }),
            (0_u128..64, 97_u8..=128).prop_map(|(low, length)| {
                IpNet::new(IpAddr::V6((0xffff_cb00_7100_u128 | low).into()), length).unwrap()
            }),
        ]
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (any_network(), 0_u64..20).prop_map(|(network, until)| Step::Ban(network, until)),
            3 => (any_network(), 0_u64..20).prop_map(|(network, until)| Step::Throttle(network, until)),
            3 => (any_network(), 0_u64..20).prop_map(|(network, until)| Step::Visit(network, until)),
            3 => any_network().prop_map(Step::Lift),
            1 => any_network().prop_map(Step::LiftVisitor),
            1 => (0_u64..20).prop_map(Step::Purge),
            1 => Just(Step::Clear),
        ]
    }

    /// As the words say it, without any of the table's cleverness.
    fn covers(network: &IpNet, address: IpAddr) -> bool {
        match (network, address.to_canonical()) {
            (IpNet::V6(v6), IpAddr::V4(v4)) => {
                v6.addr().to_ipv4_mapped().is_some() && v6.contains(&v4.to_ipv6_mapped())
            }
            (IpNet::V6(v6), IpAddr::V6(address)) => {
                let length = v6.prefix_len().min(64);
                let mask = u128::MAX << (128 - u32::from(length));
                v6.addr().to_ipv4_mapped().is_none() && v6.addr().to_bits() & mask == address.to_bits() & mask
            }
            (network, address) => network.contains(&address),
        }
    }

    /// One name for all ways to write a network.
    fn name(network: IpNet) -> IpNet {
        of_whole_clients(network)
    }

    proptest! {
        #[test]
        fn the_table_answers_as_a_plain_list_does(
            steps in proptest::collection::vec(any_step(), 1..60),
            v4 in 0_u32..64, v6 in 0_u128..16, low: u64, now in 0_u64..20,
        ) {
            let banned = Banned::new();
            let (mut bans, mut throttles) = (BTreeMap::<IpNet, (IpNet, u64)>::new(), BTreeMap::new());
            let mut visitors = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Ban(network, until) => {
                        banned.ban(network, until);
                        let known = bans.entry(name(network)).or_insert((network, 0));
                        known.1 = known.1.max(until);
                    }
                    Step::Throttle(network, until) => {
                        banned.throttle(network, until);
                        let known = throttles.entry(name(network)).or_insert((network, 0));
                        known.1 = known.1.max(until);
                    }
                    Step::Visit(network, until) => {
                        banned.throttle_visitor(network, until);
                        let known = visitors.entry(name(network)).or_insert((network, 0));
                        known.1 = known.1.max(until);
                    }
                    Step::LiftVisitor(network) => {
                        banned.lift_visitor(network);
                        visitors.remove(&name(network));
                    }
                    Step::Lift(network) => {
                        let there = [bans.remove(&name(network)), throttles.remove(&name(network))];
                        prop_assert_eq!(banned.lift(network), there.iter().any(Option::is_some));
                    }
                    Step::Purge(now) => {
                        (0..SHARDS / PURGED_AT_ONCE).for_each(|_| { banned.purge(now); });
                        bans.retain(|_, (_, end)| *end > now);
                        throttles.retain(|_, (_, end)| *end > now);
                        visitors.retain(|_, (_, end)| *end > now);
                    }
                    Step::Clear => {
                        banned.clear();
                        bans.clear();
                        throttles.clear();
                        visitors.clear();
                    }
                }
                prop_assert_eq!((banned.len(), banned.throttled()), (bans.len(), throttles.len()));
            }
            let v6 = (0x2001_0db8_u128 << 96) | (v6 << 64) | u128::from(low);
            for address in [IpAddr::V4((0xcb00_7100 | v4).into()), IpAddr::V6(v6.into())] {
                let end = |list: &BTreeMap<IpNet, (IpNet, u64)>| {
                    list.values().filter(|(network, end)| covers(network, address) && *end > now).map(|(_, end)| *end).max()
                };
                let expected = match (end(&bans), end(&throttles), end(&visitors)) {
                    (Some(until), ..) => Standing::Banned { until },
                    (None, Some(_), _) => Standing::Throttled,
                    (None, None, Some(_)) => Standing::Visitor,
                    (None, None, None) => Standing::Free,
                };
                prop_assert_eq!(banned.standing(address, now), expected, "{}", address);
            }
        }
    }
}
