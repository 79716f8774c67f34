//! What the kernel's ban sets hold, as far as we know, and what a batch changes in them; pure. Must
//! not know the kernel: it hands out changes, and is told when they are made.
//!
//! Times are since the helper's start. The kernel forgets an element at its end or a little later,
//! so what the book holds as living can be deleted for sure, and what has just ended still takes a
//! place for [`GRACE`].

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use edge::firewall::Ban;
use edge::firewall::ruleset::{BanSet, GATE_LONGER, gate_name, gate_of, gate_size};
use edge::firewall::settings::FirewallSettings;
use ipnet::IpNet;

use crate::netlink::Change;

/// The kernel sweeps ended elements out once a second.
const GRACE: Duration = Duration::from_secs(2);
/// The kernel's clock ticks every 1 to 10 ms: what ends within this time may have ended.
const TICK: Duration = Duration::from_millis(25);

/// The members of every ban set and gate.
#[derive(Debug, Default)]
pub(crate) struct Book {
    sets: HashMap<String, Members>,
}

/// What a batch comes to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// For the kernel, in this order, all or none.
    pub changes: Vec<Change>,
    /// Bans that give way.
    pub evicted: u64,
}

#[derive(Debug, Default)]
struct Members {
    size: usize,
    ends: HashMap<IpAddr, Duration>,
    by_end: BTreeSet<(Duration, IpAddr)>,
}

impl Members {
    fn insert(&mut self, address: IpAddr, end: Duration) {
        self.remove(address);
        self.ends.insert(address, end);
        self.by_end.insert((end, address));
    }

    fn remove(&mut self, address: IpAddr) {
        if let Some(end) = self.ends.remove(&address) {
            self.by_end.remove(&(end, address));
        }
    }

    fn sweep(&mut self, now: Duration) {
        while let Some((end, address)) = self.by_end.first().copied().filter(|(end, _)| *end + GRACE <= now) {
            self.by_end.remove(&(end, address));
            self.ends.remove(&address);
        }
    }

    fn living(&self, now: Duration) -> impl Iterator<Item = (Duration, IpAddr)> + '_ {
        self.by_end.range((now + TICK, IpAddr::V4(0.into()))..).copied()
    }
}

impl Book {
    /// Empty sets of the sizes that the rules give them.
    pub(crate) fn new(settings: &FirewallSettings) -> Self {
        let bans = BanSet::all().map(|set| (set.name(), set.size(settings)));
        let gates = [true, false].map(|v4| (gate_name(v4).to_owned(), gate_size(v4, settings)));
        let members =
            |size: u32| Members { size: usize::try_from(size).unwrap_or(usize::MAX), ..Members::default() };
        Self { sets: bans.chain(gates).map(|(name, size)| (name, members(size))).collect() }
    }

    /// A set's members are these, as the kernel lists them.
    pub(crate) fn replace(&mut self, set: &str, elements: impl Iterator<Item = (IpAddr, Duration)>) {
        let Some(members) = self.sets.get_mut(set) else { return };
        members.ends.clear();
        members.by_end.clear();
        for (address, end) in elements {
            members.insert(address, end);
        }
    }

    /// What the kernel must change for these bans, each [`edge::firewall::bannable`]. Room is made
    /// where a set is full, and for `more` than that.
    pub(crate) fn plan(&mut self, bans: &[Ban], more: usize, now: Duration) -> Plan {
        let mut plan = Plan::default();
        let mut by_set: HashMap<BanSet, HashMap<IpAddr, Duration>> = HashMap::new();
        let mut gates: HashMap<IpNet, Duration> = HashMap::new();
        for ban in bans {
            let Some(set) = BanSet::of(ban.network) else { continue };
            by_set.entry(set).or_default().insert(ban.network.addr(), ban.remaining);
            if set.is_wide() {
                let longest = gates.entry(gate_of(ban.network)).or_default();
                *longest = (*longest).max(ban.remaining + GATE_LONGER);
            }
        }
        // A gate opens before what lies behind it.
        for v4 in [true, false] {
            let name = gate_name(v4);
            let Some(members) = self.sets.get_mut(name) else { continue };
            members.sweep(now);
            let ends_earlier = |(gate, time): &(&IpNet, &Duration)| {
                gate.addr().is_ipv4() == v4
                    && members.ends.get(&gate.addr()).is_none_or(|end| *end < now + **time)
            };
            let wanted = gates.iter().filter(ends_earlier).map(|(gate, time)| (gate.addr(), *time)).collect();
            plan_set(&mut plan, name, members, &wanted, 0, now);
        }
        for (set, wanted) in by_set {
            let name = set.name();
            let Some(members) = self.sets.get_mut(&name) else { continue };
            members.sweep(now);
            plan_set(&mut plan, &name, members, &wanted, more, now);
        }
        plan
    }

    /// What the kernel must change so that these are banned no longer.
    pub(crate) fn plan_end(&self, networks: &[IpNet], now: Duration) -> Vec<Change> {
        let mut wanted: Vec<_> =
            networks.iter().filter_map(|network| Some((BanSet::of(*network)?, network.addr()))).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let lives = |set: &str, address: &IpAddr| {
            self.sets
                .get(set)
                .and_then(|members| members.ends.get(address))
                .is_some_and(|end| *end > now + TICK)
        };
        let change = |(set, address): (BanSet, IpAddr)| {
            let set = set.name();
            lives(&set, &address).then(|| deletion(&set, address))
        };
        wanted.into_iter().filter_map(change).collect()
    }

    /// The kernel made these changes at `now`.
    pub(crate) fn made(&mut self, changes: &[Change], now: Duration) {
        for change in changes {
            let Some(members) = self.sets.get_mut(&change.set) else { continue };
            match change.add {
                true => members.insert(change.address, now + change.timeout),
                false => members.remove(change.address),
            }
        }
    }

    /// Members and size of a set, which may count some that have just ended.
    pub(crate) fn fill(&mut self, set: &str, now: Duration) -> Option<(u64, u64)> {
        let members = self.sets.get_mut(set)?;
        members.sweep(now);
        Some((members.living(now).count() as u64, members.size as u64))
    }

    /// Every ban that lives, to put it back where the kernel lost it.
    pub(crate) fn bans(&self, now: Duration) -> Vec<Ban> {
        let mut bans = Vec::new();
        for set in BanSet::all() {
            let Some(members) = self.sets.get(&set.name()) else { continue };
            bans.extend(members.living(now).filter_map(|(end, address)| {
                let network = IpNet::new(address, set.prefix).ok()?;
                Some(Ban { network, remaining: end.saturating_sub(now) })
            }));
        }
        bans
    }
}

fn plan_set(
    plan: &mut Plan,
    name: &str,
    members: &Members,
    wanted: &HashMap<IpAddr, Duration>,
    more: usize,
    now: Duration,
) {
    let addition = |address: IpAddr, timeout| Change {
        set: name.to_owned(),
        add: true,
        address,
        timeout,
        interval_end: false,
    };
    let fresh = wanted.keys().filter(|address| !members.ends.contains_key(address)).count();
    let needed = (members.ends.len() + fresh + more).saturating_sub(members.size);
    let leaving = members.living(now).filter(|(_, address)| !wanted.contains_key(address)).take(needed);
    let leaving: Vec<_> = leaving.map(|(_, address)| deletion(name, address)).collect();
    plan.evicted += leaving.len() as u64;
    plan.changes.extend(leaving);
    // An element keeps the time it was made with, so a new time is a new element. Deleting one that
    // has ended fails the whole batch: where that is uncertain, it is added first.
    let known =
        || wanted.iter().filter_map(|(address, time)| Some((*address, *time, *members.ends.get(address)?)));
    plan.changes.extend(
        known().filter(|(.., end)| *end <= now + TICK).map(|(address, time, _)| addition(address, time)),
    );
    plan.changes.extend(known().map(|(address, ..)| deletion(name, address)));
    plan.changes.extend(wanted.iter().map(|(address, time)| addition(*address, *time)));
}

fn deletion(set: &str, address: IpAddr) -> Change {
    Change { set: set.to_owned(), add: false, address, timeout: Duration::ZERO, interval_end: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(bans: u32) -> FirewallSettings {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("firewall.toml");
        std::fs::write(&file, format!("[sizes]\nbans = {bans}\nwide_bans = 16\n")).unwrap();
        FirewallSettings::read(&file, "--config").unwrap()
    }

    fn ban(network: &str, seconds: u64) -> Ban {
        Ban { network: network.parse().unwrap(), remaining: Duration::from_secs(seconds) }
    }

    fn shown(changes: &[Change]) -> Vec<String> {
        let sign = |change: &Change| if change.add { '+' } else { '-' };
        changes
            .iter()
            .map(|c| format!("{}{} {} {}", sign(c), c.set, c.address, c.timeout.as_secs()))
            .collect()
    }

    const AT: Duration = Duration::from_secs(1000);

    #[test]
    fn a_new_time_is_a_new_element_and_one_at_its_end_is_made_sure_of() {
        let mut book = Book::new(&settings(16));
        let first = book.plan(&[ban("192.0.2.1/32", 60)], 0, AT);
        assert_eq!(shown(&first.changes), ["+ban4 192.0.2.1 60"]);
        book.made(&first.changes, AT);
        let again = book.plan(&[ban("192.0.2.1/32", 90)], 0, AT);
        assert_eq!(shown(&again.changes), ["-ban4 192.0.2.1 0", "+ban4 192.0.2.1 90"]);
        let at_its_end = AT + Duration::from_secs(60);
        let ended = book.plan(&[ban("192.0.2.1/32", 90)], 0, at_its_end);
        assert_eq!(shown(&ended.changes), ["+ban4 192.0.2.1 90", "-ban4 192.0.2.1 0", "+ban4 192.0.2.1 90"]);
        assert!(book.plan_end(&["192.0.2.1/32".parse().unwrap()], at_its_end).is_empty());
        let swept = book.plan(&[ban("192.0.2.1/32", 90)], 0, at_its_end + GRACE);
        assert_eq!(shown(&swept.changes), ["+ban4 192.0.2.1 90"]);
    }

    #[test]
    fn the_soonest_to_expire_give_way_when_a_set_is_full() {
        let mut book = Book::new(&settings(16));
        let bans: Vec<_> = (0..16).map(|n| ban(&format!("192.0.2.{n}/32"), 100 - n)).collect();
        let plan = book.plan(&bans, 0, AT);
        assert_eq!(plan.evicted, 0);
        book.made(&plan.changes, AT);
        let plan = book.plan(&[ban("192.0.2.20/32", 60), ban("192.0.2.15/32", 60)], 0, AT);
        assert_eq!(plan.evicted, 1, "the refreshed one needs no room");
        assert_eq!(shown(&plan.changes)[0], "-ban4 192.0.2.14 0");
        book.made(&plan.changes, AT);
        assert_eq!(book.fill("ban4", AT), Some((16, 16)));
        assert_eq!(book.bans(AT).len(), 16);
    }

    #[test]
    fn a_gate_stays_open_as_long_as_the_longest_ban_behind_it() {
        let mut book = Book::new(&settings(16));
        let plan = book.plan(&[ban("192.0.2.0/28", 60), ban("192.0.2.64/26", 100)], 0, AT);
        assert_eq!(shown(&plan.changes)[0], "+wide4 192.0.2.0 102");
        assert_eq!(plan.changes.len(), 3);
        book.made(&plan.changes, AT);
        assert_eq!(shown(&book.plan(&[ban("192.0.2.16/28", 90)], 0, AT).changes), ["+ban4_28 192.0.2.16 90"]);
        let longer = book.plan(&[ban("192.0.2.16/28", 200)], 0, AT);
        assert_eq!(
            shown(&longer.changes),
            ["-wide4 192.0.2.0 0", "+wide4 192.0.2.0 202", "+ban4_28 192.0.2.16 200"]
        );
    }

    proptest::proptest! {
        /// A model of the kernel: a set that deletes what is absent, or grows beyond its size, fails.
        #[test]
        fn no_plan_deletes_what_is_absent_or_grows_beyond_the_set(steps in proptest::collection::vec((0_u64..3000, proptest::collection::vec((0_u8..40, 1_u64..4), 1..8)), 1..40)) {
            let mut book = Book::new(&settings(16));
            let mut kernel: HashMap<(String, IpAddr), Duration> = HashMap::new();
            let mut now = AT;
            for (passed, bans) in steps {
                now += Duration::from_millis(passed);
                // The kernel's clock may be behind by a tick, and it sweeps late.
                kernel.retain(|_, end| *end + Duration::from_secs(1) > now);
                let bans: Vec<_> = bans.iter().map(|(n, s)| ban(&format!("192.0.2.{n}/32"), *s)).collect();
                let plan = book.plan(&bans, 0, now);
                for change in &plan.changes {
                    let key = (change.set.clone(), change.address);
                    let lives = kernel.get(&key).is_some_and(|end| *end > now);
                    if change.add {
                        if !lives {
                            kernel.insert(key, now + change.timeout);
                        }
                    } else {
                        proptest::prop_assert!(lives, "deletes the absent {:?}", key);
                        kernel.remove(&key);
                    }
                }
                // What has ended cannot be evicted; where it fills the set, the kernel says "full"
                // until it has swept, and the keeper asks again.
                let living = kernel.values().filter(|end| **end > now).count();
                let ended = kernel.len() - living;
                proptest::prop_assert!(kernel.len() <= 16 || living <= 16 && ended > 0, "{} living", living);
                book.made(&plan.changes, now);
                for ban in bans.iter().rev().take(1) {
                    proptest::prop_assert!(kernel.contains_key(&("ban4".to_owned(), ban.network.addr())));
                }
            }
        }
    }
}
