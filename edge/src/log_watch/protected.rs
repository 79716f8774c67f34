//! Who can never be banned, whatever a log says: this host's own addresses, its gateway, and what
//! the configuration names. Reads the system's tables; decides nothing else.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The same on every host: loopback, and the neighbours' link-local addresses, routers among them.
fn everywhere() -> [IpNet; 4] {
    [
        IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)),
        IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 32)),
        IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128)),
        IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10)),
    ]
}

/// `configured`, and what this host is and needs at this moment. Where its addresses cannot be read,
/// those of `before` stay.
pub(super) fn never_banned(configured: &[IpNet], before: &[IpNet]) -> Vec<IpNet> {
    let mut never: Vec<IpNet> = configured.iter().map(IpNet::trunc).chain(everywhere()).collect();
    match if_addrs::get_if_addrs() {
        Ok(interfaces) => never.extend(interfaces.iter().map(|one| IpNet::from(one.ip()))),
        Err(error) => {
            never.extend(before);
            tracing::warn!(
                "bans: this host's own addresses cannot be read: {error}; those of before stay, new ones \
                 belong into bans.never until they can"
            );
        }
    }
    never.extend(gateways().into_iter().map(IpNet::from));
    never.sort();
    never.dedup();
    never
}

/// The default gateways, as the kernel's tables tell them. proc_net(5).
fn gateways() -> Vec<IpAddr> {
    let v4 = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let v6 = fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
    v4_gateways(&v4).chain(v6_gateways(&v6)).collect()
}

/// Columns: interface, destination, gateway, …; addresses are hexadecimal in the host's byte order.
fn v4_gateways(table: &str) -> impl Iterator<Item = IpAddr> + '_ {
    table.lines().skip(1).filter_map(|line| {
        let mut columns = line.split_ascii_whitespace().skip(1);
        let (destination, gateway) = (columns.next()?, columns.next()?);
        let gateway = u32::from_str_radix(gateway, 16).ok()?;
        (destination == "00000000" && gateway != 0).then(|| IpAddr::V4(Ipv4Addr::from(gateway.to_ne_bytes())))
    })
}

/// Columns: destination, its prefix, source, its prefix, next hop, …
fn v6_gateways(table: &str) -> impl Iterator<Item = IpAddr> + '_ {
    table.lines().filter_map(|line| {
        let mut columns = line.split_ascii_whitespace();
        let (destination, prefix, hop) = (columns.next()?, columns.next()?, columns.nth(2)?);
        let hop = u128::from_str_radix(hop, 16).ok()?;
        let default = prefix == "00" && destination.bytes().all(|byte| byte == b'0');
        (default && hop != 0).then(|| IpAddr::V6(Ipv6Addr::from_bits(hop)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_itself_is_protected() {
        let never = never_banned(&["198.51.100.7/24".parse().unwrap()], &[]);
        for address in ["127.0.0.1", "127.8.8.8", "::1", "fe80::1", "198.51.100.250"] {
            let address: IpAddr = address.parse().unwrap();
            assert!(never.iter().any(|network| network.contains(&address)), "{address}");
        }
    }

    #[test]
    fn default_gateways_are_read_from_the_kernels_tables() {
        let table = "Iface\tDestination\tGateway\tFlags\neth0\t00000000\t0101A8C0\t0003\n\
                     eth0\t0001A8C0\t00000000\t0001\n";
        let expected = Ipv4Addr::from(0x0101_A8C0_u32.to_ne_bytes());
        assert_eq!(v4_gateways(table).collect::<Vec<_>>(), [IpAddr::V4(expected)]);
        let table = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
                     fe800000000000000000000000000001 00000400 00000001 00000000 00000003 eth0\n\
                     fe800000000000000000000000000000 40 00000000000000000000000000000000 00 \
                     00000000000000000000000000000000 00000100 00000001 00000000 00000001 eth0\n";
        assert_eq!(v6_gateways(table).collect::<Vec<_>>(), ["fe80::1".parse::<IpAddr>().unwrap()]);
        assert_eq!(v4_gateways("garbage\n\n\u{0} x").count(), 0);
        assert_eq!(v6_gateways("garbage").count(), 0);
    }
}
