//! Bans and leases in the kernel: checks each against the helper's own bounds, plans it in the book,
//! and makes it so by one transaction. Must not know sockets or the rules' text.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use edge::firewall::message::MAX_BATCH;
use edge::firewall::ruleset::{BanSet, gate_name};
use edge::firewall::settings::FirewallSettings;
use edge::firewall::{Ban, Reason, bannable};
use ipnet::IpNet;

use crate::book::Book;
use crate::netlink::{Change, Element, Netlink, NetlinkError};
use crate::own;

/// How often a full set is made emptier for one batch.
const ATTEMPTS: usize = 4;

/// A resize takes less.
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// The kernel's sets, and what we know of them.
#[derive(Debug)]
pub(crate) struct Keeper {
    netlink: Netlink,
    book: Book,
    leases: BTreeMap<IpNet, Duration>,
    /// From `firewall.toml`, and what holds everywhere.
    protected: Vec<IpNet>,
    /// As the host's interfaces and routes say.
    own: Vec<IpNet>,
    longest: Duration,
    start: Instant,
    evicted: u64,
    /// When evictions were told last.
    told: Option<Duration>,
}

/// A batch's refused places and why.
pub(crate) type Refused = Vec<(u16, Reason)>;

impl Keeper {
    /// Opens the way to the kernel; knows no elements until [`Keeper::learn`].
    ///
    /// # Errors
    /// The system gives no netlink socket.
    #[expect(clippy::disallowed_methods, reason = "the helper's corridor: times are since its start")]
    pub(crate) fn open(settings: &FirewallSettings) -> std::io::Result<Self> {
        let mut keeper = Self {
            netlink: Netlink::open()?,
            book: Book::new(settings),
            leases: BTreeMap::new(),
            protected: Vec::new(),
            own: Vec::new(),
            longest: settings.longest_ban,
            start: Instant::now(),
            evicted: 0,
            told: None,
        };
        keeper.adopt(settings);
        Ok(keeper)
    }

    /// The bounds of these settings hold from now on.
    pub(crate) fn adopt(&mut self, settings: &FirewallSettings) {
        self.protected = settings.protected().chain(own::always()).collect();
        self.longest = settings.longest_ban;
    }

    /// The host's own addresses are these.
    pub(crate) fn own_addresses(&mut self, own: Vec<IpNet>) {
        self.own = own;
    }

    /// Bans that gave way since the start.
    pub(crate) fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Is our table in the kernel?
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub(crate) fn has_table(&mut self) -> Result<bool, NetlinkError> {
        self.netlink.has_table()
    }

    /// Is our table there with every set of bans?
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub(crate) fn stands(&mut self) -> Result<bool, NetlinkError> {
        stands(&mut self.netlink)
    }

    /// Reads every set anew: after a start, and where the kernel surprised us.
    ///
    /// # Errors
    /// The kernel cannot be asked, or the table is not there.
    pub(crate) fn learn(&mut self) -> Result<(), NetlinkError> {
        for set in sets_of_bans() {
            let elements = self.dump_whole(&set)?;
            let now = self.now();
            let ends = elements.into_iter().map(|element| (element.address, now + element.expires));
            self.book.replace(&set, ends);
        }
        self.leases.clear();
        for set in ["lift4", "lift6"] {
            let elements = self.netlink.dump(set)?;
            let now = self.now();
            self.leases.extend(intervals(elements).into_iter().map(|(network, time)| (network, now + time)));
        }
        Ok(())
    }

    /// A listing of a set whose hash table the kernel is just making larger or smaller lacks elements,
    /// or has some twice. An element lives in the kernel at least as long as in the book, so a
    /// listing with fewer is asked for again; if they stay away, somebody else deleted them.
    fn dump_whole(&mut self, set: &str) -> Result<Vec<Element>, NetlinkError> {
        let mut pause = Duration::from_millis(5);
        let mut last = None;
        loop {
            let living = self.book.fill(set, self.now()).map_or(0, |(living, _)| living);
            let mut elements = self.netlink.dump(set)?;
            elements.sort_unstable_by_key(|element| element.address);
            elements.dedup_by_key(|element| element.address);
            let found = elements.len() as u64;
            let complete = if living > 0 { found >= living } else { last == Some(found) };
            if complete || pause > LONGEST_PAUSE {
                return Ok(elements);
            }
            if living > 0 || last.is_some() {
                std::thread::sleep(pause);
                pause *= 2;
            }
            last = Some(found);
        }
    }

    /// Bans and leases as the book has them, to carry them over a table that is made anew.
    pub(crate) fn carried(&self) -> (Vec<Ban>, Vec<Ban>) {
        let now = self.now();
        let leases = self.leases.iter().filter(|(_, end)| **end > now);
        let leases =
            leases.map(|(network, end)| Ban { network: *network, remaining: end.saturating_sub(now) });
        (self.book.bans(now), leases.collect())
    }

    /// The kernel's table is new and its sets are these settings': reads what is in it, and puts
    /// back what is not.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn refill(
        &mut self,
        settings: &FirewallSettings,
        (bans, leases): (Vec<Ban>, Vec<Ban>),
    ) -> Result<(), NetlinkError> {
        self.book = Book::new(settings);
        self.leases.clear();
        self.learn()?;
        for batch in bans.chunks(MAX_BATCH) {
            self.put(batch)?;
        }
        self.lift(&leases).map(drop)
    }

    /// Drops these; the refused ones are told by place.
    ///
    /// # Errors
    /// The kernel refuses the rest of the batch.
    pub(crate) fn ban(&mut self, bans: &[Ban]) -> Result<Refused, NetlinkError> {
        let (mut refused, mut wanted) = (Refused::new(), Vec::with_capacity(bans.len()));
        for (place, ban) in (0_u16..).zip(bans) {
            match self.objection(*ban) {
                Some(reason) => refused.push((place, reason)),
                None => wanted.push(*ban),
            }
        }
        match self.put(&wanted) {
            Ok(()) => Ok(refused),
            Err(NetlinkError::Full) => {
                // No room however often some gave way: tell it of each.
                let full = |(place, ban): (u16, &Ban)| wanted.contains(ban).then_some((place, Reason::Full));
                refused.extend((0_u16..).zip(bans).filter_map(full));
                Ok(refused)
            }
            Err(error) => Err(error),
        }
    }

    /// Admits these again.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn unban(&mut self, networks: &[IpNet]) -> Result<(), NetlinkError> {
        for surprised in [false, true] {
            let now = self.now();
            let changes = self.book.plan_end(networks, now);
            match self.netlink.transaction(&changes) {
                Ok(()) => {
                    self.book.made(&changes, now);
                    break;
                }
                Err(NetlinkError::Missing) if !surprised => self.learn()?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Every ban, as the kernel has it.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub(crate) fn list(&mut self) -> Result<Vec<Ban>, NetlinkError> {
        self.learn()?;
        Ok(self.book.bans(self.now()))
    }

    /// Admits everybody again.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn clear(&mut self) -> Result<(), NetlinkError> {
        let sets: Vec<_> = sets_of_bans().collect();
        self.netlink.flush(&sets)?;
        for set in &sets {
            self.book.replace(set, std::iter::empty());
        }
        Ok(())
    }

    /// Grants leases.
    ///
    /// # Errors
    /// The kernel refuses the rest of the batch.
    pub(crate) fn lift(&mut self, leases: &[Ban]) -> Result<Refused, NetlinkError> {
        let mut refused = Refused::new();
        for (place, lease) in (0_u16..).zip(leases) {
            let now = self.now();
            self.leases.retain(|_, end| *end > now);
            let Ban { network, remaining } = *lease;
            let around = |other: &IpNet| other.contains(&network) || network.contains(other);
            let reason = match () {
                () if network.prefix_len() == 0 || network.trunc() != network => Reason::Prefix,
                () if remaining.is_zero() || remaining > self.longest => Reason::Time,
                () if self.leases.keys().any(|other| *other != network && around(other)) => Reason::Overlaps,
                () => {
                    self.renew(network, Some(remaining))?;
                    continue;
                }
            };
            refused.push((place, reason));
        }
        Ok(refused)
    }

    /// Ends leases.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn unlift(&mut self, networks: &[IpNet]) -> Result<(), NetlinkError> {
        networks.iter().try_for_each(|network| self.renew(*network, None))
    }

    /// Members and sizes of the ban sets.
    pub(crate) fn fills(&mut self) -> Vec<(String, u64, u64)> {
        let now = self.now();
        let fill = |set: BanSet| {
            let (used, size) = self.book.fill(&set.name(), now)?;
            Some((set.name(), used, size))
        };
        BanSet::all().filter_map(fill).collect()
    }

    /// Elements of any set of the table.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub(crate) fn count(&mut self, set: &str) -> Result<u64, NetlinkError> {
        Ok(self.netlink.dump(set)?.len() as u64)
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Why a ban is refused by the helper's own bounds.
    fn objection(&self, ban: Ban) -> Option<Reason> {
        let touches = |other: &IpNet| other.contains(&ban.network) || ban.network.contains(other);
        match () {
            () if !bannable(ban.network) => Some(Reason::Prefix),
            () if ban.remaining.is_zero() || ban.remaining > self.longest => Some(Reason::Time),
            () if self.protected.iter().chain(&self.own).any(touches) => Some(Reason::Protected),
            () => None,
        }
    }

    fn put(&mut self, bans: &[Ban]) -> Result<(), NetlinkError> {
        let mut more = 0;
        for attempt in 1..=ATTEMPTS {
            let now = self.now();
            let plan = self.book.plan(bans, more, now);
            match self.netlink.transaction(&plan.changes) {
                Ok(()) => {
                    self.book.made(&plan.changes, now);
                    self.evicted += plan.evicted;
                    if plan.evicted > 0 {
                        self.tell_of_evictions(now);
                    }
                    return Ok(());
                }
                Err(error) if attempt == ATTEMPTS => return Err(error),
                // Somebody else changed the sets, or what has just ended is not swept yet: look, wait a
                // little, and make more room.
                Err(NetlinkError::Full | NetlinkError::Missing) => {
                    self.learn()?;
                    if attempt > 1 {
                        more += bans.len();
                        std::thread::sleep(LONGEST_PAUSE);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Err(NetlinkError::Full)
    }

    /// Once a minute at most: a flood fills sets, and must not fill the log.
    fn tell_of_evictions(&mut self, now: Duration) {
        if self.told.is_none_or(|told| now >= told + Duration::from_secs(60)) {
            self.told = Some(now);
            tracing::warn!(
                "firewall: a set is full: {} bans gave way to newer ones so far; raise sizes in firewall.toml",
                self.evicted
            );
        }
    }

    /// A lease with a new time, or none.
    fn renew(&mut self, network: IpNet, time: Option<Duration>) -> Result<(), NetlinkError> {
        for surprised in [false, true] {
            let now = self.now();
            let lives = self.leases.get(&network).is_some_and(|end| *end > now + Duration::from_millis(25));
            let mut changes = Vec::new();
            if lives {
                changes.extend(interval(network, None));
            }
            if let Some(time) = time {
                changes.extend(interval(network, Some(time)));
            }
            match self.netlink.transaction(&changes) {
                Ok(()) => {
                    match time {
                        Some(time) => self.leases.insert(network, now + time),
                        None => self.leases.remove(&network),
                    };
                    return Ok(());
                }
                Err(NetlinkError::Missing) if !surprised => self.learn()?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn sets_of_bans() -> impl Iterator<Item = String> {
    BanSet::all().map(BanSet::name).chain([true, false].map(|v4| gate_name(v4).to_owned()))
}

/// Is our table in the kernel with every set of bans?
///
/// # Errors
/// The kernel cannot be asked.
pub(crate) fn stands(netlink: &mut Netlink) -> Result<bool, NetlinkError> {
    let there = netlink.sets()?;
    Ok(sets_of_bans().all(|set| there.contains(&set)))
}

/// Both ends of a network in an interval set; the far one is the first address beyond it.
fn interval(network: IpNet, time: Option<Duration>) -> impl Iterator<Item = Change> {
    let beyond = match network.broadcast() {
        IpAddr::V4(last) => u32::from(last).checked_add(1).map(|next| IpAddr::V4(next.into())),
        IpAddr::V6(last) => u128::from(last).checked_add(1).map(|next| IpAddr::V6(next.into())),
    };
    let set = if network.addr().is_ipv4() { "lift4" } else { "lift6" };
    let change = move |address, interval_end| Change {
        set: set.to_owned(),
        add: time.is_some(),
        address,
        timeout: time.unwrap_or_default(),
        interval_end,
    };
    std::iter::once(change(network.network(), false)).chain(beyond.map(|address| change(address, true)))
}

/// The networks whose ends these are.
fn intervals(mut elements: Vec<Element>) -> Vec<(IpNet, Duration)> {
    elements.sort_by_key(|element| (element.address, !element.interval_end));
    let mut found = Vec::new();
    for (place, start) in elements.iter().enumerate().filter(|(_, element)| !element.interval_end) {
        let end =
            elements.get(place + 1).filter(|element| element.interval_end).map(|element| element.address);
        let zeros = match (start.address, end) {
            (IpAddr::V4(start), Some(IpAddr::V4(end))) => {
                u32::from(end).wrapping_sub(start.into()).trailing_zeros()
            }
            (IpAddr::V4(start), _) => u32::from(start).trailing_zeros(),
            (IpAddr::V6(start), Some(IpAddr::V6(end))) => {
                u128::from(end).wrapping_sub(start.into()).trailing_zeros()
            }
            (IpAddr::V6(start), _) => u128::from(start).trailing_zeros(),
        };
        let bits = if start.address.is_ipv4() { 32 } else { 128 };
        let prefix = u8::try_from(u32::saturating_sub(bits, zeros)).unwrap_or_default();
        found.extend(IpNet::new(start.address, prefix).map(|network| (network, start.expires)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_reads_back_also_next_to_another_and_at_the_end_of_all_addresses() {
        let networks =
            ["10.0.0.0/8", "11.0.0.0/30", "255.255.255.0/24", "2001:db8::/33", "2001:db8:8000::/33"];
        let networks = networks.map(|text| text.parse::<IpNet>().unwrap());
        let time = Duration::from_secs(9);
        let elements = |v4: bool| {
            let ends = networks.iter().filter(|network| network.addr().is_ipv4() == v4);
            let ends = ends.flat_map(|network| interval(*network, Some(time)));
            let element =
                |c: Change| Element { address: c.address, expires: c.timeout, interval_end: c.interval_end };
            ends.map(element).collect()
        };
        let found: Vec<_> = intervals(elements(true)).into_iter().chain(intervals(elements(false))).collect();
        assert_eq!(found, networks.map(|network| (network, time)));
    }
}
