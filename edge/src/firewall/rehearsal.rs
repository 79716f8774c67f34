//! A dry run, and no firewall at all. The first keeps bans in memory as the kernel would, with the
//! same refusals by width; the second takes everything and does nothing. Must not reach the kernel.

use std::collections::HashMap;
use std::time::Duration;

use ipnet::IpNet;

use super::{Ban, Figures, Fill, Firewall, FirewallError, Reason, Refusal, State, bannable};

/// Says the time, on any clock that only goes forward.
pub(super) type Clock = Box<dyn Fn() -> Duration + Send>;

/// Keeps bans and leases until they end by its clock.
pub(super) struct Rehearsal {
    clock: Clock,
    bans: HashMap<IpNet, Duration>,
    leases: HashMap<IpNet, Duration>,
    most: usize,
    evicted: u64,
}

impl Rehearsal {
    /// Holds at most `most` bans; as in the kernel, the soonest to expire then gives way.
    pub(super) fn new(clock: Clock, most: usize) -> Self {
        Self { clock, bans: HashMap::new(), leases: HashMap::new(), most: most.max(1), evicted: 0 }
    }

    fn expire(&mut self) -> Duration {
        let now = (self.clock)();
        self.bans.retain(|_, ends| *ends > now);
        self.leases.retain(|_, ends| *ends > now);
        now
    }
}

impl Firewall for Rehearsal {
    fn ban(&mut self, bans: &[Ban]) -> Result<Vec<Refusal>, FirewallError> {
        let now = self.expire();
        let mut refusals = Vec::new();
        for Ban { network, remaining } in bans.iter().copied() {
            let reason = match () {
                () if !bannable(network) => Reason::Prefix,
                () if remaining.is_zero() => Reason::Time,
                () => {
                    if self.bans.len() >= self.most && !self.bans.contains_key(&network) {
                        let soonest =
                            self.bans.iter().min_by_key(|(_, ends)| **ends).map(|(network, _)| *network);
                        self.evicted +=
                            u64::from(soonest.is_some_and(|soonest| self.bans.remove(&soonest).is_some()));
                    }
                    self.bans.insert(network, now.saturating_add(remaining));
                    continue;
                }
            };
            refusals.push(Refusal { network, reason });
        }
        Ok(refusals)
    }

    fn unban(&mut self, networks: &[IpNet]) -> Result<(), FirewallError> {
        for network in networks {
            self.bans.remove(network);
        }
        Ok(())
    }

    fn list(&mut self) -> Result<Vec<Ban>, FirewallError> {
        let now = self.expire();
        let ban = |(network, ends): (&IpNet, &Duration)| Ban {
            network: *network,
            remaining: ends.saturating_sub(now),
        };
        Ok(self.bans.iter().map(ban).collect())
    }

    fn clear(&mut self) -> Result<(), FirewallError> {
        self.bans.clear();
        Ok(())
    }

    fn lift(&mut self, leases: &[Ban]) -> Result<Vec<Refusal>, FirewallError> {
        let now = self.expire();
        let mut refusals = Vec::new();
        for Ban { network, remaining } in leases.iter().copied() {
            let around = |other: &IpNet| other.contains(&network) || network.contains(other);
            let reason = match () {
                () if network.prefix_len() == 0 || network.trunc() != network => Reason::Prefix,
                () if remaining.is_zero() => Reason::Time,
                () if self.leases.keys().any(|other| *other != network && around(other)) => Reason::Overlaps,
                () => {
                    self.leases.insert(network, now.saturating_add(remaining));
                    continue;
                }
            };
            refusals.push(Refusal { network, reason });
        }
        Ok(refusals)
    }

    fn unlift(&mut self, networks: &[IpNet]) -> Result<(), FirewallError> {
        for network in networks {
            self.leases.remove(network);
        }
        Ok(())
    }

    fn figures(&mut self) -> Result<Figures, FirewallError> {
        self.expire();
        let fill = |set: &str, used: usize, size: usize| Fill {
            set: set.to_owned(),
            used: used as u64,
            size: size as u64,
        };
        let sets =
            vec![fill("bans", self.bans.len(), self.most), fill("leases", self.leases.len(), self.most)];
        Ok(Figures { sets, counters: Vec::new(), evicted: self.evicted })
    }

    fn state(&mut self) -> State {
        State::Works
    }
}

/// `firewall = "none"`: edge holds its bans alone.
pub(super) struct Nobody;

impl Firewall for Nobody {
    fn ban(&mut self, _: &[Ban]) -> Result<Vec<Refusal>, FirewallError> {
        Ok(Vec::new())
    }
    fn unban(&mut self, _: &[IpNet]) -> Result<(), FirewallError> {
        Ok(())
    }
    fn list(&mut self) -> Result<Vec<Ban>, FirewallError> {
        Ok(Vec::new())
    }
    fn clear(&mut self) -> Result<(), FirewallError> {
        Ok(())
    }
    fn lift(&mut self, _: &[Ban]) -> Result<Vec<Refusal>, FirewallError> {
        Ok(Vec::new())
    }
    fn unlift(&mut self, _: &[IpNet]) -> Result<(), FirewallError> {
        Ok(())
    }
    fn figures(&mut self) -> Result<Figures, FirewallError> {
        Ok(Figures::default())
    }
    fn state(&mut self) -> State {
        State::NotConfigured
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::contract;
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "the suite waits for real time to pass")]
    fn rehearsal(most: usize) -> Rehearsal {
        let start = Instant::now();
        Rehearsal::new(Box::new(move || start.elapsed()), most)
    }

    #[test]
    fn a_rehearsal_keeps_the_contract() {
        contract::holds(&mut rehearsal(1_000));
    }

    #[test]
    fn the_soonest_to_expire_gives_way() {
        let mut rehearsal = rehearsal(2);
        let ban = |last: u8, seconds| Ban {
            network: IpNet::new([192, 0, 2, last].into(), 32).unwrap(),
            remaining: Duration::from_secs(seconds),
        };
        rehearsal.ban(&[ban(1, 50), ban(2, 10), ban(3, 30)]).unwrap();
        let mut left: Vec<_> = rehearsal.list().unwrap().iter().map(|ban| ban.network.to_string()).collect();
        left.sort();
        assert_eq!(left, ["192.0.2.1/32", "192.0.2.3/32"]);
        assert_eq!(rehearsal.figures().unwrap().evicted, 1);
    }
}
