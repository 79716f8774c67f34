//! Which address is the client: the socket's own, or the one a trusted proxy reports. Knows
//! `X-Forwarded-For`; must not know what a client may do, nor any HTTP type.
//!
//! The header is read from the right, because only the right end was written by somebody
//! we trust: everything left of the first untrusted hop is the client's own invention.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net};

/// Most hops that are read; a longer chain of trusted proxies is a loop or an attack.
const MAX_HOPS: usize = 32;
/// An IPv6 client owns at least its /64, so that is what one client is.
const IPV6_CLIENT_BITS: u32 = 64;

/// Who a request comes from. IPv4-mapped IPv6 addresses are unmapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// As logged and forwarded.
    pub address: IpAddr,
}

/// What limits are counted by: an IPv4 address, or an IPv6 /64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientKey(IpAddr);

impl Client {
    /// The client at `address`.
    #[must_use]
    pub fn new(address: IpAddr) -> Self {
        Self { address: address.to_canonical() }
    }

    /// What its requests are counted under.
    #[must_use]
    pub fn key(&self) -> ClientKey {
        match self.address.to_canonical() {
            v4 @ IpAddr::V4(_) => ClientKey(v4),
            IpAddr::V6(v6) => {
                let network = v6.to_bits() & (u128::MAX << (128 - IPV6_CLIENT_BITS));
                ClientKey(IpAddr::V6(Ipv6Addr::from_bits(network)))
            }
        }
    }
}

/// Why `X-Forwarded-For` from a trusted proxy cannot be believed. Answer 400: the proxy must
/// be repaired, and guessing would let a client choose its own address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForwardedFault {
    /// An element that is no address.
    #[error("X-Forwarded-For from a trusted proxy holds something that is no address")]
    NoAddress,
    /// More than 32 hops, all of them trusted.
    #[error("X-Forwarded-For from a trusted proxy names more than {MAX_HOPS} hops")]
    TooLong,
}

/// The networks whose word about the client is believed.
#[derive(Clone, Debug, Default)]
pub struct TrustedProxies {
    networks: Vec<IpNet>,
}

impl TrustedProxies {
    /// Trusts these networks and nobody else.
    #[must_use]
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self { networks: networks.into_iter().map(unmapped).collect() }
    }

    /// Is `address` a trusted proxy?
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks.iter().any(|network| network.contains(&address))
    }

    /// The client behind `peer`. `forwarded_for` are the values of every `X-Forwarded-For`
    /// line in the order received; they are looked at only when `peer` is trusted.
    ///
    /// # Errors
    /// A trusted proxy's header is unreadable up to the client's place in it.
    pub fn client<'v>(
        &self,
        peer: IpAddr,
        forwarded_for: impl DoubleEndedIterator<Item = &'v [u8]>,
    ) -> Result<Client, ForwardedFault> {
        let mut client = Client::new(peer);
        if !self.contains(peer) {
            return Ok(client);
        }
        // RFC 9110 5.6.1: empty list elements are skipped, within reason.
        let hops = forwarded_for.rev().flat_map(|line| line.rsplit(|byte| *byte == b','));
        for (index, hop) in hops.enumerate() {
            if index == MAX_HOPS {
                return Err(ForwardedFault::TooLong);
            }
            let hop = hop.trim_ascii();
            if hop.is_empty() {
                continue;
            }
            client = Client::new(hop_address(hop).ok_or(ForwardedFault::NoAddress)?);
            if !self.contains(client.address) {
                break;
            }
        }
        Ok(client)
    }
}

/// `192.0.2.1`, `2001:db8::1`, and both with a port, as some proxies write them.
fn hop_address(hop: &[u8]) -> Option<IpAddr> {
    let hop = std::str::from_utf8(hop).ok()?;
    if let Ok(address) = hop.parse::<IpAddr>() {
        return Some(address);
    }
    if let Some(inner) = hop.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return inner.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    }
    match hop.parse::<SocketAddr>().ok()? {
        SocketAddr::V6(v6) if v6.scope_id() != 0 => None,
        address => Some(address.ip()),
    }
}

/// A network as clients are told apart: IPv4-mapped is IPv4's, IPv6 is no narrower than the /64 that
/// one client owns, and bits beyond the prefix are nil.
#[must_use]
pub fn of_whole_clients(network: IpNet) -> IpNet {
    match unmapped(network) {
        IpNet::V6(v6) if u32::from(v6.prefix_len()) > IPV6_CLIENT_BITS => {
            let bits = v6.addr().to_bits() & (u128::MAX << (128 - IPV6_CLIENT_BITS));
            ipnet::Ipv6Net::new(Ipv6Addr::from_bits(bits), 64).map_or(network, IpNet::V6)
        }
        other => other.trunc(),
    }
}

/// `::ffff:10.0.0.0/104` means `10.0.0.0/8`; addresses are compared unmapped.
fn unmapped(network: IpNet) -> IpNet {
    let IpNet::V6(v6) = network else { return network };
    let bits = v6.prefix_len().checked_sub(96);
    match (v6.addr().to_ipv4_mapped(), bits) {
        (Some(v4), Some(bits)) => Ipv4Net::new(v4, bits).map_or(network, IpNet::V4),
        _ => network,
    }
}

/// Body of the fuzz target: `data` is what a peer sent, one header line a line. From a trusted
/// one the answer, if any, is a canonical address; from a stranger it is the stranger.
pub fn fuzz_forwarded_for(data: &[u8]) {
    let trusted = TrustedProxies::new(vec![IpNet::V4(Ipv4Net::new_assert([10, 0, 0, 0].into(), 8))]);
    let peer = IpAddr::from([10, 0, 0, 1]);
    let lines = || data.split(|byte| *byte == b'\n');
    if let Ok(client) = trusted.client(peer, lines()) {
        assert_eq!(client.address, client.address.to_canonical());
        assert_eq!(Client::new(client.address).key(), client.key());
    }
    let stranger = IpAddr::from([192, 0, 2, 9]);
    assert_eq!(trusted.client(stranger, lines()), Ok(Client::new(stranger)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seen(peer: &str, lines: &[&str]) -> Result<String, ForwardedFault> {
        let networks = ["10.0.0.0/8", "fd00::/8", "::ffff:172.16.0.0/108"];
        let trusted = TrustedProxies::new(networks.iter().map(|text| text.parse().unwrap()).collect());
        trusted
            .client(peer.parse().unwrap(), lines.iter().map(|line| line.as_bytes()))
            .map(|client| client.address.to_string())
    }

    #[test]
    fn strangers_cannot_name_another_address() {
        assert_eq!(seen("192.0.2.1", &["198.51.100.7"]).unwrap(), "192.0.2.1");
        assert_eq!(seen("192.0.2.1", &["garbage"]).unwrap(), "192.0.2.1");
    }

    #[test]
    fn the_rightmost_untrusted_hop_is_the_client() {
        assert_eq!(seen("10.0.0.1", &["203.0.113.5, 198.51.100.7, 10.2.2.2"]).unwrap(), "198.51.100.7");
        assert_eq!(seen("10.0.0.1", &["198.51.100.7", "10.3.3.3", "fd00::1"]).unwrap(), "198.51.100.7");
        assert_eq!(seen("172.16.1.1", &["198.51.100.7:4711"]).unwrap(), "198.51.100.7");
        assert_eq!(seen("10.0.0.1", &["[2001:db8::7]:443"]).unwrap(), "2001:db8::7");
        assert_eq!(seen("10.0.0.1", &["[2001:db8::7]"]).unwrap(), "2001:db8::7");
    }

    #[test]
    fn what_a_client_forged_on_the_left_is_not_even_read() {
        assert_eq!(seen("10.0.0.1", &["<script>, 198.51.100.7"]).unwrap(), "198.51.100.7");
    }

    #[test]
    fn a_trusted_peer_without_the_header_is_itself_the_client() {
        assert_eq!(seen("10.0.0.1", &[]).unwrap(), "10.0.0.1");
        assert_eq!(seen("10.0.0.1", &["", " , "]).unwrap(), "10.0.0.1");
        assert_eq!(seen("10.0.0.1", &["10.9.9.9, 10.8.8.8"]).unwrap(), "10.9.9.9");
    }

    #[test]
    fn garbage_from_a_trusted_proxy_is_refused() {
        for bad in ["unknown", "1.2.3", "1.2.3.4:99999", "fe80::1%eth0", "[::1", "\u{7f}", "1.2.3.4;5.6.7.8"]
        {
            assert_eq!(seen("10.0.0.1", &[bad]), Err(ForwardedFault::NoAddress), "{bad}");
        }
        let endless = vec!["10.0.0.2"; MAX_HOPS + 1].join(",");
        assert_eq!(seen("10.0.0.1", &[&endless]), Err(ForwardedFault::TooLong));
    }

    #[test]
    fn mapped_addresses_are_the_ipv4_client_itself() {
        assert_eq!(seen("::ffff:192.0.2.1", &[]).unwrap(), "192.0.2.1");
        let mapped = Client { address: "::ffff:192.0.2.1".parse().unwrap() };
        assert_eq!(mapped.key(), Client::new([192, 0, 2, 1].into()).key());
    }

    proptest! {
        #[test]
        fn one_ipv6_network_is_one_client(network: u64, left: u64, right: u64) {
            let host = |low: u64| IpAddr::V6(Ipv6Addr::from_bits(u128::from(network) << 64 | u128::from(low)));
            // The range of mapped addresses is IPv4's.
            prop_assume!(network != 0);
            prop_assert_eq!(Client::new(host(left)).key(), Client::new(host(right)).key());
        }

        #[test]
        fn two_ipv4_addresses_are_two_clients(left: u32, right: u32) {
            let key = |bits: u32| Client::new(IpAddr::V4(bits.into())).key();
            prop_assert_eq!(left == right, key(left) == key(right));
        }

        #[test]
        fn an_appended_hop_decides_whatever_stands_left(left in proptest::collection::vec(any::<u8>(), 0..60), client: u32) {
            let trusted = TrustedProxies::new(vec!["10.0.0.0/8".parse().unwrap()]);
            let client = IpAddr::V4(client.into());
            prop_assume!(!trusted.contains(client));
            let appended = client.to_string();
            let found = trusted.client([10, 0, 0, 1].into(), [left.as_slice(), appended.as_bytes()].into_iter());
            prop_assert_eq!(found, Ok(Client { address: client }));
        }

        #[test]
        fn no_header_makes_the_reader_panic(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            fuzz_forwarded_for(&data);
        }
    }
}
