//! Our types ↔ what a row holds. Pure; must not know SQL.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;

/// Prefix length, then the address: IPv4 in 5 bytes, IPv6 in 17.
pub(super) fn network_to_row(network: IpNet) -> Vec<u8> {
    let mut row = Vec::with_capacity(17);
    row.push(network.prefix_len());
    match network.addr() {
        IpAddr::V4(v4) => row.extend_from_slice(&v4.octets()),
        IpAddr::V6(v6) => row.extend_from_slice(&v6.octets()),
    }
    row
}

/// `None` for what is no network.
pub(super) fn network_from_row(row: &[u8]) -> Option<IpNet> {
    let (bits, address) = row.split_first()?;
    let address = match address.len() {
        4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(address).ok()?)),
        16 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?)),
        _ => return None,
    };
    IpNet::new(address, *bits).ok()
}

/// Microseconds; a time beyond SQLite's integers is for ever.
pub(super) fn time_to_row(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

pub(super) fn time_from_row(row: i64) -> Duration {
    if row == i64::MAX { Duration::MAX } else { Duration::from_micros(u64::try_from(row).unwrap_or(0)) }
}

/// SQLite's integers are signed: the same 64 bits.
pub(super) fn bits_to_row(bits: u64) -> i64 {
    i64::from_ne_bytes(bits.to_ne_bytes())
}

pub(super) fn bits_from_row(row: i64) -> u64 {
    u64::from_ne_bytes(row.to_ne_bytes())
}

/// Each line behind its length in two bytes, big endian.
pub(super) fn lines_to_row(lines: &[Box<[u8]>]) -> Vec<u8> {
    let mut row = Vec::new();
    for line in lines {
        let length = u16::try_from(line.len()).unwrap_or(u16::MAX);
        row.extend_from_slice(&length.to_be_bytes());
        row.extend_from_slice(&line[..usize::from(length)]);
    }
    row
}

/// What is cut off is left out.
pub(super) fn lines_from_row(mut row: &[u8]) -> Vec<Box<[u8]>> {
    let mut lines = Vec::new();
    while let Some((length, rest)) = row.split_first_chunk::<2>() {
        let Some((line, rest)) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length))) else {
            break;
        };
        lines.push(line.into());
        row = rest;
    }
    lines
}

/// Body of the fuzz target: a row is read without panic, and what is read gives the same row.
#[doc(hidden)]
pub fn fuzz_rows(data: &[u8]) {
    if let Some(network) = network_from_row(data) {
        assert_eq!(network_to_row(network), data);
    }
    let lines = lines_from_row(data);
    let row = lines_to_row(&lines);
    assert_eq!(row, data[..row.len()]);
    assert_eq!(lines_from_row(&row), lines);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, proptest};

    proptest! {
        #[test]
        fn rows_give_back_what_was_put_into_them(bytes in any::<Vec<u8>>(), micros in 0..i64::MAX, bits in any::<u64>(),
            v4 in any::<[u8; 4]>(), v6 in any::<[u8; 16]>(), prefix in 0u8..=32) {
            fuzz_rows(&bytes);
            assert_eq!(time_to_row(time_from_row(micros)), micros);
            assert_eq!(bits_from_row(bits_to_row(bits)), bits);
            for address in [IpAddr::from(v4), IpAddr::from(v6)] {
                let network = IpNet::new(address, prefix).unwrap();
                assert_eq!(network_from_row(&network_to_row(network)), Some(network));
            }
        }
    }

    #[test]
    fn for_ever_stays_for_ever() {
        assert_eq!(time_from_row(time_to_row(Duration::MAX)), Duration::MAX);
    }
}
