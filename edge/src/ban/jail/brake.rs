//! When a jail bans too many at once it is probably wrong: a bad pattern, a proxy that hides its
//! clients, a broken release of one's own. Knows how many bans a minute held; must not know whom.

use std::collections::VecDeque;
use std::net::IpAddr;

use super::record::Key;
use crate::ban::Brake;

/// What "at once" means, in milliseconds.
pub(super) const MINUTE: u64 = 60_000;
/// A braked jail bans again after so many milliseconds without one minute over the limit.
pub(super) const QUIET: u64 = 10 * MINUTE;

/// One jail's brake.
#[derive(Clone, Debug)]
pub(super) struct Pedal {
    brake: Option<Brake>,
    /// When the jail banned, or would have, within the last minute, and whom; no more than the
    /// limit and one, and of one [`site`] no more than one.
    recent: VecDeque<(u64, Key)>,
    /// The last time that a minute was over the limit, while the jail is braked.
    over: Option<u64>,
}

/// What the brake says to one more ban.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Free,
    /// With this one it is too many; so many in the last minute.
    Pulled(u32),
    /// It was pulled before.
    Held,
}

impl Pedal {
    pub(super) fn new(brake: Option<Brake>) -> Self {
        Self { brake, recent: VecDeque::new(), over: None }
    }

    /// One more ban, of `whom` at `now`, while so many clients are active.
    pub(super) fn press(&mut self, now: u64, whom: Key, active_clients: usize) -> Verdict {
        let Some(brake) = self.brake else { return Verdict::Free };
        let limit = limit(brake, active_clients);
        while self.recent.front().is_some_and(|(at, _)| at.saturating_add(MINUTE) <= now) {
            self.recent.pop_front();
        }
        let site = site(whom);
        if self.recent.iter().any(|(_, known)| *known == site) {
            return if self.is_pulled() { Verdict::Held } else { Verdict::Free };
        }
        self.recent.push_back((now, site));
        while self.recent.len() > limit.saturating_add(1) {
            self.recent.pop_front();
        }
        let over = self.recent.len() > limit;
        match self.over {
            None if !over => Verdict::Free,
            None => {
                self.over = Some(now);
                Verdict::Pulled(u32::try_from(self.recent.len()).unwrap_or(u32::MAX))
            }
            Some(_) => {
                if over {
                    self.over = Some(now);
                }
                Verdict::Held
            }
        }
    }

    pub(super) fn is_pulled(&self) -> bool {
        self.over.is_some()
    }

    /// When it will release itself, if nothing more comes.
    pub(super) fn releases_at(&self) -> Option<u64> {
        self.over.map(|over| over.saturating_add(QUIET))
    }

    /// Lets the jail ban again; `false` if it could.
    pub(super) fn release(&mut self) -> bool {
        self.recent.clear();
        self.over.take().is_some()
    }

    /// The clock was set back: bans of a time to come say nothing, and the quiet begins anew.
    pub(super) fn set_back(&mut self, now: u64) {
        self.recent.clear();
        self.over = self.over.map(|_| now);
    }
}

/// One attacker may have all of a /48 (RFC 6177), 65,536 customers' worth: it counts once, or it
/// could switch any jail off for everybody by itself.
fn site(whom: Key) -> Key {
    match whom.network().addr() {
        address @ IpAddr::V6(_) => Key::of(address, 48),
        IpAddr::V4(_) => whom,
    }
}

/// So many of so many active clients.
pub(super) fn limit(brake: Brake, active_clients: usize) -> usize {
    let share = brake.percent.clamp(0.0, 100.0) / 100.0;
    // Saturates, and is 0 for what is no number; a share of a count needs no more precision.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a share between 0 and 1 of a count of clients"
    )]
    let of_clients = (active_clients as f64 * share) as usize;
    of_clients.max(usize::try_from(brake.least).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    /// Somebody else each time.
    fn who(number: u32) -> Key {
        Key::of(Ipv4Addr::from_bits(0xCB00_0000 | number).into(), 32)
    }

    fn pedal() -> Pedal {
        Pedal::new(Some(Brake { percent: 5.0, least: 20 }))
    }

    #[test]
    fn the_twenty_first_ban_of_a_quiet_minute_pulls_it() {
        let mut pedal = pedal();
        for second in 0..20 {
            assert_eq!(pedal.press(u64::from(second) * 1000, who(second), 100), Verdict::Free);
        }
        assert_eq!(pedal.press(20_000, who(20), 100), Verdict::Pulled(21));
        assert_eq!(pedal.press(21_000, who(21), 100), Verdict::Held);
    }

    #[test]
    fn five_per_cent_of_many_clients_may_be_banned() {
        let mut pedal = pedal();
        for number in 0..500 {
            assert_eq!(pedal.press(0, who(number), 10_000), Verdict::Free);
        }
        assert_eq!(pedal.press(0, who(500), 10_000), Verdict::Pulled(501));
    }

    #[test]
    fn twenty_a_minute_never_pull_it() {
        let mut pedal = pedal();
        for step in 0..10_000 {
            assert_eq!(pedal.press(u64::from(step) * 3000, who(step), 0), Verdict::Free, "step {step}");
        }
        assert!(pedal.recent.len() <= 21);
    }

    #[test]
    fn its_quiet_lasts_from_the_last_minute_over_the_limit() {
        let mut pedal = pedal();
        for number in 0..40 {
            pedal.press(1000, who(number), 0);
        }
        assert_eq!(pedal.releases_at(), Some(1000 + QUIET));
        pedal.press(400_000, who(41), 0);
        assert_eq!(pedal.releases_at(), Some(1000 + QUIET), "one alone is quiet");
        assert!(pedal.release() && !pedal.is_pulled() && !pedal.release());
        assert_eq!(pedal.press(400_000, who(41), 0), Verdict::Free);
    }

    #[test]
    fn a_percentage_that_is_no_number_leaves_the_least() {
        for percent in [f64::NAN, -5.0, f64::NEG_INFINITY] {
            assert_eq!(limit(Brake { percent, least: 20 }, 1_000_000), 20);
        }
        assert_eq!(limit(Brake { percent: f64::INFINITY, least: 20 }, 1000), 1000);
    }

    #[test]
    fn one_attacker_with_a_whole_ipv6_network_does_not_pull_it() {
        let mut pedal = pedal();
        let of = |site: u128, customer: u128| {
            Key::of(Ipv6Addr::from_bits((0x2001_0db8 << 96) | (site << 80) | (customer << 64)).into(), 64)
        };
        for customer in 0..1000 {
            assert_eq!(pedal.press(0, of(7, customer), 100), Verdict::Free);
        }
        for site in 8..27 {
            assert_eq!(pedal.press(0, of(site, 0), 100), Verdict::Free);
        }
        assert_eq!(pedal.press(0, of(27, 0), 100), Verdict::Pulled(21), "but many sites do");
        assert_eq!(pedal.press(0, of(7, 1001), 100), Verdict::Held);
    }
}
