//! One network's ban and its history in 40 bytes, and the key that it is found by. Knows how a
//! sentence is packed; must not know where records lie or in which order they end.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Sentence;
use super::networks::canonical;
use crate::ban::Action;

/// The end of a chain of records.
pub(super) const NONE: u32 = u32::MAX;
/// The year 10889: what is later is a mistake, and sums of two cannot overflow.
pub(super) const LATEST: u64 = (1 << 48) - 1;

/// Milliseconds since the epoch, as records hold time.
pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(LATEST).min(LATEST)
}

/// A network that can be banned: IPv4 /24 to /32, IPv6 /48 to /64. The length tells the family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// IPv4's 32 bits, or the upper 64 of IPv6.
    pub(super) bits: u64,
    pub(super) length: u8,
}

impl Key {
    /// `None` where it is too wide. IPv6 beyond /64 becomes its /64: the rest is one customer's.
    pub(super) fn new(network: IpNet) -> Option<Self> {
        let (address, length) = match canonical(network) {
            IpNet::V4(v4) => (IpAddr::V4(v4.addr()), v4.prefix_len()),
            IpNet::V6(v6) => (IpAddr::V6(v6.addr()), v6.prefix_len().min(64)),
        };
        let possible = if address.is_ipv4() { 24..=32 } else { 48..=64 };
        possible.contains(&length).then(|| Self::of(address, length))
    }

    pub(super) fn of(address: IpAddr, length: u8) -> Self {
        let (bits, width) = match address {
            IpAddr::V4(v4) => (u64::from(v4.to_bits()), 32),
            IpAddr::V6(v6) => (u64::try_from(v6.to_bits() >> 64).unwrap_or(u64::MAX), 64),
        };
        let host = width - u32::from(length).min(width);
        Self { bits: bits.checked_shr(host).and_then(|bits| bits.checked_shl(host)).unwrap_or(0), length }
    }

    pub(super) fn network(self) -> IpNet {
        if self.length <= 32 {
            let address = Ipv4Addr::from_bits(u32::try_from(self.bits).unwrap_or(u32::MAX));
            IpNet::V4(Ipv4Net::new(address, self.length).unwrap_or_else(|_| Ipv4Net::from(address)))
        } else {
            let address = Ipv6Addr::from_bits(u128::from(self.bits) << 64);
            IpNet::V6(Ipv6Net::new(address, self.length).unwrap_or_else(|_| Ipv6Net::from(address)))
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Banned,
    Throttled,
    /// The ban is over; the record is the network's history.
    Past,
    Free,
}

/// A time up to [`LATEST`] and 16 bits that stand beside it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tagged(u64);

impl Tagged {
    pub(super) fn new(time: u64, tag: u16) -> Self {
        Self(time.min(LATEST) << 16 | u64::from(tag))
    }

    pub(super) fn time(self) -> u64 {
        self.0 >> 16
    }

    pub(super) fn tag(self) -> u16 {
        u16::try_from(self.0 & 0xFFFF).unwrap_or(u16::MAX)
    }
}

/// 40 bytes; see the test that holds it to that.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    pub(super) bits: u64,
    /// And the jail.
    pub(super) since: Tagged,
    /// And the how manieth.
    pub(super) until: Tagged,
    pub(super) offences: u32,
    /// Where it stands in its heap.
    pub(super) place: u32,
    /// Whose bucket is the same, or who is free, too.
    pub(super) next: u32,
    pub(super) length: u8,
    pub(super) state: State,
}

impl Record {
    pub(super) fn new(key: Key, sentence: &Sentence, state: State) -> Self {
        Self {
            bits: key.bits,
            since: Tagged::new(millis(sentence.since), sentence.jail),
            until: Tagged::new(millis(sentence.until), sentence.times),
            offences: sentence.offences,
            place: NONE,
            next: NONE,
            length: key.length,
            state,
        }
    }

    pub(super) fn key(&self) -> Key {
        Key { bits: self.bits, length: self.length }
    }

    pub(super) fn until(&self) -> u64 {
        self.until.time()
    }

    pub(super) fn sentence(&self) -> Sentence {
        Sentence {
            network: self.key().network(),
            jail: self.since.tag(),
            since: Duration::from_millis(self.since.time()),
            until: Duration::from_millis(self.until()),
            offences: self.offences,
            times: self.until.tag(),
            action: if self.state == State::Throttled { Action::Throttle } else { Action::Ban },
        }
    }

    pub(super) fn in_force(&self) -> bool {
        matches!(self.state, State::Banned | State::Throttled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_takes_40_bytes() {
        assert_eq!(size_of::<Record>(), 40);
    }

    #[test]
    fn a_key_returns_its_network_and_refuses_what_is_too_wide() {
        for text in ["203.0.113.7/32", "203.0.113.0/24", "2001:db8:1:2::/64", "2001:db8:1::/48", "0.0.0.0/32"]
        {
            let network: IpNet = text.parse().unwrap();
            assert_eq!(Key::new(network).unwrap().network(), network, "{text}");
        }
        let narrow = Key::new("2001:db8::7/128".parse().unwrap()).unwrap();
        assert_eq!(narrow.network(), "2001:db8::/64".parse::<IpNet>().unwrap());
        for wide in ["203.0.113.0/23", "0.0.0.0/0", "2001:db8::/47", "::/0"] {
            assert_eq!(Key::new(wide.parse().unwrap()), None, "{wide}");
        }
    }
}
