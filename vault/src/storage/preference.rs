//! Which file server to read from first: the one whose first bytes come sooner. Pure: is told
//! what was measured. Changes its mind only for a clear gain, so that two equal servers do not
//! take turns by chance, and asks the other now and then, so that one which got faster is noticed.

use std::time::Duration;

/// A new measurement's weight in the average: one in so many.
const WEIGHT: u32 = 8;
/// The other must be faster than this share of the preferred one's time.
const GAIN: f64 = 0.75;
/// One read in so many begins with another server than the preferred one.
const TRY_OTHER: u64 = 32;

/// See the module. Servers are numbered in the order of the settings.
#[derive(Debug)]
pub struct Preference {
    first_byte: Vec<Option<Duration>>,
    preferred: usize,
    reads: u64,
}

impl Preference {
    /// Nothing is known of `servers` file servers yet.
    #[must_use]
    pub fn new(servers: usize) -> Self {
        Self { first_byte: vec![None; servers], preferred: 0, reads: 0 }
    }

    /// A read's first bytes came after this time.
    pub fn note(&mut self, server: usize, took: Duration) {
        let Some(average) = self.first_byte.get_mut(server) else { return };
        *average = Some(average.map_or(took, |known| (known * (WEIGHT - 1) + took) / WEIGHT));
        let time = |at: usize| self.first_byte.get(at).copied().flatten().map(|took| took.as_secs_f64());
        let fastest = (0..self.first_byte.len())
            .filter_map(|at| time(at).map(|took| (at, took)))
            .min_by(|left, right| left.1.total_cmp(&right.1));
        if let (Some((at, took)), Some(preferred)) = (fastest, time(self.preferred))
            && took < preferred * GAIN
        {
            self.preferred = at;
        }
    }

    /// The average time to the first bytes, if any were read.
    #[must_use]
    pub fn first_byte(&self, server: usize) -> Option<Duration> {
        self.first_byte.get(server).copied().flatten()
    }

    /// The next read's rank for each server: 0 first.
    pub fn ranks(&mut self) -> Vec<usize> {
        self.reads = self.reads.wrapping_add(1);
        let servers = self.first_byte.len();
        let unmeasured = self.first_byte.iter().position(Option::is_none);
        let first = match unmeasured {
            Some(at) if self.reads.is_multiple_of(2) => at,
            _ if self.reads.is_multiple_of(TRY_OTHER) => (self.preferred + 1) % servers.max(1),
            _ => self.preferred,
        };
        (0..servers).map(|at| (at + servers - first) % servers).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    fn share_of_first(preference: &mut Preference, server: usize) -> usize {
        (0..320).filter(|_| preference.ranks()[server] == 0).count()
    }

    #[test]
    fn the_faster_server_is_read_first_and_the_other_now_and_then() {
        let mut preference = Preference::new(2);
        preference.note(0, ms(20));
        preference.note(1, ms(5));
        assert_eq!(share_of_first(&mut preference, 1), 310);
    }

    #[test]
    fn nearly_equal_servers_do_not_take_turns() {
        let mut preference = Preference::new(2);
        for round in 0..50 {
            preference.note(0, ms(10 + round % 2));
            preference.note(1, ms(9 + round % 3));
            assert_eq!(preference.preferred, 0);
        }
    }

    #[test]
    fn a_server_that_gets_slow_loses_its_place_and_one_that_recovers_gets_it_back() {
        let mut preference = Preference::new(2);
        (0..20).for_each(|_| preference.note(0, ms(5)));
        preference.note(1, ms(6));
        (0..30).for_each(|_| preference.note(0, ms(50)));
        assert_eq!(preference.preferred, 1);
        (0..60).for_each(|_| preference.note(0, ms(1)));
        assert_eq!(preference.preferred, 0);
    }

    #[test]
    fn a_server_never_measured_is_tried_soon() {
        let mut preference = Preference::new(2);
        preference.note(0, ms(5));
        assert_eq!(share_of_first(&mut preference, 1), 160);
        assert_eq!(Preference::new(2).ranks().len(), 2);
    }
}
