//! Sets of networks and the one form in which a network is compared. Knows prefixes; must not
//! know why a set is asked. Lists from outside may hold thousands of networks (a CDN's), and the
//! question is put for every offence, so it costs a binary search.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// What nobody's configuration may make a ban of, because more than one offender would go:
/// "this network" and multicast (RFC 6890), the link's own addresses, whose loss ends neighbour
/// discovery (RFC 4291), and the translator's prefix, one /64 of which is all of IPv4 (RFC 6052).
const NO_OFFENDER: [IpNet; 6] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 8)),
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 3)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 64)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 64)),
];

/// Networks without overlap, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Networks {
    v4: Vec<Ipv4Net>,
    v6: Vec<Ipv6Net>,
}

impl Networks {
    pub(super) fn new(networks: &[IpNet]) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for network in networks {
            match canonical(*network) {
                IpNet::V4(network) => v4.push(network),
                IpNet::V6(network) => v6.push(network),
            }
        }
        let mut v4 = Ipv4Net::aggregate(&v4);
        let mut v6 = Ipv6Net::aggregate(&v6);
        v4.sort_unstable();
        v6.sort_unstable();
        Self { v4, v6 }
    }

    /// These and what no ban may ever touch.
    pub(super) fn protecting(networks: &[IpNet]) -> Self {
        let mut all = networks.to_vec();
        all.extend(NO_OFFENDER);
        Self::new(&all)
    }

    /// Whether any address is in both.
    pub(super) fn overlaps(&self, network: IpNet) -> bool {
        match canonical(network) {
            IpNet::V4(asked) => {
                let next = self.v4.partition_point(|known| known.broadcast() < asked.network());
                self.v4.get(next).is_some_and(|known| known.network() <= asked.broadcast())
            }
            IpNet::V6(asked) => {
                let next = self.v6.partition_point(|known| known.broadcast() < asked.network());
                self.v6.get(next).is_some_and(|known| known.network() <= asked.broadcast())
            }
        }
    }
}

/// Without host bits, and IPv4 where it is IPv4 written as IPv6 (RFC 4291, section 2.5.5.2).
pub(super) fn canonical(network: IpNet) -> IpNet {
    let network = network.trunc();
    match (network.addr().to_canonical(), network.prefix_len().checked_sub(96)) {
        (IpAddr::V4(address), Some(length)) if matches!(network, IpNet::V6(_)) => {
            Ipv4Net::new(address, length).map_or(network, IpNet::V4)
        }
        _ => network,
    }
}

/// Whether any address is in both of two networks in canonical form.
pub(super) fn overlap(one: IpNet, other: IpNet) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn ipv4_written_as_ipv6_is_ipv4() {
        assert_eq!(canonical(net("::ffff:203.0.113.7/128")), net("203.0.113.7/32"));
        assert_eq!(canonical(net("::ffff:203.0.113.7/120")), net("203.0.113.0/24"));
        assert_eq!(canonical(net("2001:db8::7/64")), net("2001:db8::/64"));
        assert_eq!(canonical(net("10.1.2.3/8")), net("10.0.0.0/8"));
        assert!(Networks::new(&[net("10.0.0.0/8")]).overlaps(net("::ffff:10.9.9.9/128")));
    }

    #[test]
    fn what_many_share_is_protected_unasked() {
        let none = Networks::protecting(&[]);
        for many in ["fe80::1/128", "ff02::1/128", "224.0.0.1/32", "255.255.255.255/32", "0.0.0.0/32"] {
            assert!(none.overlaps(net(many)), "{many}");
        }
        assert!(none.overlaps(net("64:ff9b::c000:221/128")), "NAT64: one /64 is everybody");
        assert!(!none.overlaps(net("203.0.113.7/32")) && !none.overlaps(net("2001:db8::/64")));
    }

    fn any_network() -> impl Strategy<Value = IpNet> {
        // Few bits of choice, so that overlaps happen.
        prop_oneof![
            (0..64_u32, 26..=32_u8).prop_map(|(low, length)| {
                IpNet::V4(Ipv4Net::new(Ipv4Addr::from(0xCB00_7100 | low), length).unwrap())
            }),
            (0..64_u128, 58..=70_u8).prop_map(|(low, length)| {
                let address = (0x2001_0db8_u128 << 96) | (low << 60);
                IpNet::V6(Ipv6Net::new(Ipv6Addr::from(address), length).unwrap())
            }),
        ]
    }

    proptest! {
        #[test]
        fn a_set_answers_as_each_network_alone_does(
            known in proptest::collection::vec(any_network(), 0..12),
            asked in any_network(),
        ) {
            let plain = known.iter().any(|one| overlap(canonical(*one), canonical(asked)));
            prop_assert_eq!(Networks::new(&known).overlaps(asked), plain);
        }
    }
}
