//! What every firewall must do, as one suite that runs over each of them.

use std::time::Duration;

use ipnet::IpNet;

use super::{Ban, Firewall, Reason, Refusal, State};

/// Fails the test where `firewall`, which holds no ban yet, breaks a promise of the trait.
pub(crate) fn holds(firewall: &mut dyn Firewall) {
    overlapping_bans_are_each_listed_with_their_own_time(firewall);
    a_second_ban_gives_the_new_time(firewall);
    what_cannot_be_banned_is_refused_and_the_rest_is_in_force(firewall);
    unbanning_twice_is_fine(firewall);
    a_large_batch_is_in_force_and_cleared_at_once(firewall);
    leases_overlap_nobody(firewall);
    a_ban_ends_by_itself(firewall);
    assert_eq!(firewall.state(), State::Works);
}

fn ban(network: &str, seconds: u64) -> Ban {
    Ban { network: network.parse().unwrap(), remaining: Duration::from_secs(seconds) }
}

fn network(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// Sorted, with whole seconds rounded up.
fn listed(firewall: &mut dyn Firewall) -> Vec<(String, u64)> {
    let seconds = |time: Duration| time.as_secs() + u64::from(time.subsec_nanos() > 0);
    let bans = firewall.list().unwrap();
    let mut listed: Vec<_> =
        bans.iter().map(|ban| (ban.network.to_string(), seconds(ban.remaining))).collect();
    listed.sort();
    listed
}

fn assert_listed(firewall: &mut dyn Firewall, expected: &[(&str, u64)]) {
    let found = listed(firewall);
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for ((network, seconds), (name, most)) in found.iter().zip(expected) {
        assert_eq!(network, name);
        assert!(seconds <= most && seconds + 5 >= *most, "{network}: {seconds} s of {most} s");
    }
}

fn overlapping_bans_are_each_listed_with_their_own_time(firewall: &mut dyn Firewall) {
    let bans = [
        ban("203.0.113.7/32", 600),
        ban("203.0.113.0/24", 300),
        ban("203.0.113.0/28", 900),
        ban("2001:db8:1:2::/64", 600),
        ban("2001:db8:1::/48", 60),
        ban("2001:db8:1::/56", 120),
    ];
    assert_eq!(firewall.ban(&bans).unwrap(), []);
    let expected = [
        ("2001:db8:1:2::/64", 600),
        ("2001:db8:1::/48", 60),
        ("2001:db8:1::/56", 120),
        ("203.0.113.0/24", 300),
        ("203.0.113.0/28", 900),
        ("203.0.113.7/32", 600),
    ];
    assert_listed(firewall, &expected);
    firewall.unban(&bans.map(|ban| ban.network)).unwrap();
    assert_listed(firewall, &[]);
}

fn a_second_ban_gives_the_new_time(firewall: &mut dyn Firewall) {
    for seconds in [600, 3_000, 60] {
        assert_eq!(
            firewall.ban(&[ban("203.0.113.7/32", seconds), ban("203.0.113.0/26", seconds)]).unwrap(),
            []
        );
        assert_listed(firewall, &[("203.0.113.0/26", seconds), ("203.0.113.7/32", seconds)]);
    }
    // The last one of a batch counts.
    firewall.ban(&[ban("203.0.113.7/32", 500), ban("203.0.113.7/32", 70)]).unwrap();
    firewall.unban(&[network("203.0.113.0/26")]).unwrap();
    assert_listed(firewall, &[("203.0.113.7/32", 70)]);
    firewall.clear().unwrap();
}

fn what_cannot_be_banned_is_refused_and_the_rest_is_in_force(firewall: &mut dyn Firewall) {
    let bans = [
        ban("203.0.113.7/32", 600),
        ban("203.0.0.0/23", 600),
        ban("2001:db8::/47", 600),
        ban("2001:db8::1/128", 600),
        ban("203.0.113.8/32", 0),
        ban("203.0.113.9/32", 600),
    ];
    let refused = |at: usize, reason| Refusal { network: bans[at].network, reason };
    let expected = [
        refused(1, Reason::Prefix),
        refused(2, Reason::Prefix),
        refused(3, Reason::Prefix),
        refused(4, Reason::Time),
    ];
    assert_eq!(firewall.ban(&bans).unwrap(), expected);
    assert_listed(firewall, &[("203.0.113.7/32", 600), ("203.0.113.9/32", 600)]);
    firewall.clear().unwrap();
}

fn unbanning_twice_is_fine(firewall: &mut dyn Firewall) {
    firewall.ban(&[ban("203.0.113.7/32", 600)]).unwrap();
    let networks = [network("203.0.113.7/32"), network("203.0.113.8/32"), network("10.0.0.0/8")];
    firewall.unban(&networks).unwrap();
    firewall.unban(&networks).unwrap();
    firewall.unban(&[]).unwrap();
    assert_eq!(firewall.ban(&[]).unwrap(), []);
    assert_listed(firewall, &[]);
}

fn a_large_batch_is_in_force_and_cleared_at_once(firewall: &mut dyn Firewall) {
    let address = |n: u16| IpNet::new([198, 18, n.to_be_bytes()[0], n.to_be_bytes()[1]].into(), 32).unwrap();
    let bans: Vec<_> =
        (0..900).map(|n| Ban { network: address(n), remaining: Duration::from_secs(600) }).collect();
    assert_eq!(firewall.ban(&bans).unwrap(), []);
    assert_eq!(firewall.list().unwrap().len(), 900);
    assert!(!firewall.figures().unwrap().sets.is_empty());
    firewall.clear().unwrap();
    assert_listed(firewall, &[]);
}

fn leases_overlap_nobody(firewall: &mut dyn Firewall) {
    let refused = |network: &str, reason| Refusal { network: network.parse().unwrap(), reason };
    let leases = [ban("198.51.100.0/25", 600), ban("2001:db8:7::/48", 600)];
    assert_eq!(firewall.lift(&leases).unwrap(), []);
    assert_eq!(firewall.lift(&[ban("198.51.100.0/25", 900)]).unwrap(), [], "the same one is renewed");
    assert_eq!(
        firewall.lift(&[ban("198.51.100.0/24", 60), ban("198.51.100.9/32", 60)]).unwrap(),
        [refused("198.51.100.0/24", Reason::Overlaps), refused("198.51.100.9/32", Reason::Overlaps)]
    );
    firewall.unlift(&[network("198.51.100.0/25"), network("192.0.2.0/24")]).unwrap();
    assert_eq!(firewall.lift(&[ban("198.51.100.0/24", 60)]).unwrap(), []);
    firewall.unlift(&[network("198.51.100.0/24"), network("2001:db8:7::/48")]).unwrap();
    assert_listed(firewall, &[]);
}

fn a_ban_ends_by_itself(firewall: &mut dyn Firewall) {
    firewall.ban(&[ban("203.0.113.7/32", 1), ban("203.0.113.0/30", 1), ban("203.0.113.9/32", 60)]).unwrap();
    std::thread::sleep(Duration::from_millis(1_200));
    assert_listed(firewall, &[("203.0.113.9/32", 60)]);
    // What has just ended can be banned again.
    assert_eq!(firewall.ban(&[ban("203.0.113.7/32", 50)]).unwrap(), []);
    assert_listed(firewall, &[("203.0.113.7/32", 50), ("203.0.113.9/32", 60)]);
    firewall.clear().unwrap();
}
