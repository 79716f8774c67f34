//! Who is let in slowly for what pages of other origins may have made its browser ask for. Knows
//! networks and ends; must not know who is banned. It stands apart from the book of bans because a
//! visit is none: it makes no later ban longer, reaches no kernel and no file, and a restart forgets
//! it. Bounded by 16,384 networks, of which the soonest to end leaves first, and by how many may
//! begin within a minute: no advertisement shall slow all clients down at once.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::Visit;
use super::brake::{MINUTE, limit};
use super::record::{Key, millis};
use crate::ban::Brake;

/// However long its jail bans, a visit lasts no longer, in milliseconds.
pub(super) const LONGEST: u64 = 600_000;
/// So many networks at once.
const MOST: usize = 16_384;
/// So many may begin within a minute.
const A_MINUTE: Brake = Brake { percent: 5.0, least: 100 };
/// One in so many refusals of a visitor counts against it. Whoever asks is refused then, most often
/// for no fault of its own; but a flood must not hide behind that.
const FLOOD: u32 = 10;

#[derive(Clone, Copy, Debug)]
struct Stay {
    jail: u16,
    until: u64,
    offences: u32,
    refused: u32,
}

/// What becomes of one more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    Taken,
    /// So many began within the minute that there is no place; to be told once a minute.
    TooMany {
        throttled: usize,
        tell: bool,
    },
}

/// Every visitor that is throttled.
#[derive(Debug, Default)]
pub(super) struct Visitors {
    /// Keyed at random: clients choose the addresses that they come from.
    stays: HashMap<Key, Stay>,
    /// End, bits and length of each; the soonest first.
    ends: BTreeSet<(u64, u64, u8)>,
    /// When those of the last minute began.
    recent: VecDeque<u64>,
    told: Option<u64>,
    /// Whose visit is over before its time, until somebody asks.
    departed: Vec<IpNet>,
}

impl Visitors {
    /// One more at `now`, while so many clients are active.
    pub(super) fn enter(&mut self, key: Key, visit: &Visit, now: u64, active_clients: usize) -> Arrival {
        while self.recent.front().is_some_and(|at| at.saturating_add(MINUTE) <= now) {
            self.recent.pop_front();
        }
        let throttled = self.recent.len();
        if throttled >= limit(A_MINUTE, active_clients) {
            let tell = self.told.is_none_or(|told| told.saturating_add(MINUTE) <= now);
            if tell {
                self.told = Some(now);
            }
            return Arrival::TooMany { throttled, tell };
        }
        self.recent.push_back(now);
        self.forget(key);
        if self.stays.len() >= MOST
            && let Some((_, bits, length)) = self.ends.first().copied()
        {
            self.depart(Key { bits, length });
        }
        let stay =
            Stay { jail: visit.jail, until: millis(visit.until), offences: visit.offences, refused: 0 };
        self.ends.insert((stay.until, key.bits, key.length));
        self.stays.insert(key, stay);
        Arrival::Taken
    }

    pub(super) fn soonest(&self) -> Option<u64> {
        self.ends.first().map(|(until, ..)| *until)
    }

    /// Forgets those whose time is over.
    pub(super) fn expire(&mut self, now: u64) {
        while let Some((_, bits, length)) = self.ends.first().copied().filter(|(until, ..)| *until <= now) {
            self.forget(Key { bits, length });
        }
    }

    /// Those that this address, in canonical form, is one of.
    pub(super) fn covering(&self, address: IpAddr, now: u64) -> impl Iterator<Item = Visit> + '_ {
        keys(address)
            .filter(|_| !self.stays.is_empty())
            .filter_map(|key| self.stays.get(&key).map(|stay| stay.visit(key)))
            .filter(move |visit| millis(visit.until) > now)
    }

    /// All of them, in no order.
    pub(super) fn all(&self) -> impl ExactSizeIterator<Item = Visit> + '_ {
        self.stays.iter().map(|(key, stay)| stay.visit(*key))
    }

    /// One more request of this address was refused for being a visitor's. Does that count?
    pub(super) fn counts_refusal(&mut self, address: IpAddr) -> bool {
        let Some(key) = keys(address).find(|key| self.stays.contains_key(key)) else { return false };
        self.stays.get_mut(&key).is_some_and(|stay| {
            stay.refused = stay.refused.saturating_add(1);
            stay.refused.is_multiple_of(FLOOD)
        })
    }

    /// Ends those that `chosen` names before their time.
    pub(super) fn dismiss(&mut self, chosen: impl Fn(&Visit) -> bool) {
        let gone = self.stays.iter().filter(|(key, stay)| chosen(&stay.visit(**key)));
        let gone: Vec<Key> = gone.map(|(key, _)| *key).collect();
        for key in gone {
            self.depart(key);
        }
    }

    /// Whose visits ended before their time, since the last call.
    pub(super) fn departed(&mut self) -> Vec<IpNet> {
        std::mem::take(&mut self.departed)
    }

    /// Puts every end earlier by as much as the clock was set back.
    pub(super) fn set_back(&mut self, by: u64) {
        self.recent.clear();
        self.told = None;
        for stay in self.stays.values_mut() {
            stay.until = stay.until.saturating_sub(by);
        }
        self.ends = self.stays.iter().map(|(key, stay)| (stay.until, key.bits, key.length)).collect();
    }

    /// Gives every visit the number that its jail has now.
    pub(super) fn renumber(&mut self, jail_now: impl Fn(u16) -> u16) {
        for stay in self.stays.values_mut() {
            stay.jail = jail_now(stay.jail);
        }
    }

    fn forget(&mut self, key: Key) -> bool {
        let Some(stay) = self.stays.remove(&key) else { return false };
        self.ends.remove(&(stay.until, key.bits, key.length))
    }

    fn depart(&mut self, key: Key) {
        if self.forget(key) {
            self.departed.push(key.network());
        }
    }
}

impl Stay {
    fn visit(&self, key: Key) -> Visit {
        let Self { jail, until, offences, .. } = *self;
        Visit { network: key.network(), jail, until: Duration::from_millis(until), offences }
    }
}

/// Every network that could be throttled and that holds the address, the widest first.
fn keys(address: IpAddr) -> impl Iterator<Item = Key> {
    let lengths = if address.is_ipv4() { 24..=32_u8 } else { 48..=64 };
    lengths.map(move |length| Key::of(address, length))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn who(number: u32) -> Key {
        Key::of(Ipv4Addr::from_bits(0xCB00_0000 | number).into(), 32)
    }

    fn enter(visitors: &mut Visitors, number: u32, now: u64, active_clients: usize) -> Arrival {
        let until = Duration::from_millis(now + LONGEST);
        let visit = Visit { network: who(number).network(), jail: 0, until, offences: 1 };
        visitors.enter(who(number), &visit, now, active_clients)
    }

    #[test]
    fn the_hundred_and_first_of_a_quiet_minute_is_not_throttled_and_that_is_told_once() {
        let mut visitors = Visitors::default();
        for number in 0..100 {
            assert_eq!(enter(&mut visitors, number, 1000, 100), Arrival::Taken);
        }
        let too_many = |tell| Arrival::TooMany { throttled: 100, tell };
        assert_eq!(enter(&mut visitors, 100, 1000, 100), too_many(true));
        assert_eq!(enter(&mut visitors, 101, 60_999, 100), too_many(false));
        assert_eq!(enter(&mut visitors, 101, 60_999, 4000), Arrival::Taken, "of many, more");
        assert_eq!(enter(&mut visitors, 102, 61_000, 100), Arrival::Taken, "a minute later, others");
        assert_eq!(visitors.stays.len(), 102);
    }

    #[test]
    fn full_the_soonest_to_end_goes_and_whoever_asks_hears_of_it() {
        let mut visitors = Visitors::default();
        let most = u32::try_from(MOST).unwrap();
        for number in 0..=most {
            assert_eq!(enter(&mut visitors, number, u64::from(number), 10_000_000), Arrival::Taken);
        }
        assert_eq!((visitors.stays.len(), visitors.ends.len()), (MOST, MOST));
        assert_eq!(visitors.departed(), [who(0).network()]);
        assert_eq!(visitors.departed(), []);
        assert_eq!(visitors.soonest(), Some(1 + LONGEST));
        visitors.expire(10 + LONGEST);
        assert_eq!((visitors.stays.len(), visitors.departed()), (MOST - 10, vec![]), "their time was over");
    }

    #[test]
    fn what_remains_of_a_visit_stays_when_the_clock_is_set_back() {
        let mut visitors = Visitors::default();
        enter(&mut visitors, 1, 5_000_000, 0);
        visitors.set_back(4_000_000);
        assert_eq!(visitors.soonest(), Some(1_000_000 + LONGEST));
        visitors.expire(1_000_000 + LONGEST);
        assert_eq!((visitors.stays.len(), visitors.ends.len()), (0, 0));
    }
}
