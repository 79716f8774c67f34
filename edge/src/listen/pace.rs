//! Does a client move a body fast enough? Knows bytes and how long was waited for them; must not know
//! clocks, directions nor what is moved. Pure. It exists because a deadline for the next byte alone lets a
//! client hold a request, a connection and a server's patience with one byte each half a minute.
//!
//! Only time that was spent waiting for the client counts, so that a slow application is nobody's fault.
//! Each byte pays for its share of it; who owes more than the patience is too slow. What was fast is no
//! credit for later.

use std::time::Duration;

/// One direction of one connection.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Bytes a second; 0 demands nothing.
    rate: u64,
    patience: Duration,
    owed: Duration,
}

/// The client owes more time than there is patience for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("slower than {rate} bytes a second for too long")]
pub struct TooSlow {
    /// What was demanded, in bytes a second.
    pub rate: u64,
}

impl Pace {
    /// Demands `rate` bytes a second of a client, and lets it owe `patience`.
    #[must_use]
    pub const fn new(rate: u64, patience: Duration) -> Self {
        Self { rate, patience, owed: Duration::ZERO }
    }

    /// `bytes` have moved after `waited` was spent waiting for them.
    ///
    /// # Errors
    /// The client is too slow.
    pub fn moved(&mut self, bytes: usize, waited: Duration) -> Result<(), TooSlow> {
        if self.rate == 0 {
            return Ok(());
        }
        let nanoseconds = u128::try_from(bytes).unwrap_or(u128::MAX).saturating_mul(1_000_000_000);
        let paid = u64::try_from(nanoseconds / u128::from(self.rate)).unwrap_or(u64::MAX);
        self.owed = self.owed.saturating_add(waited).saturating_sub(Duration::from_nanos(paid));
        if self.owed > self.patience { Err(TooSlow { rate: self.rate }) } else { Ok(()) }
    }

    /// Something else begins: nothing is owed.
    pub const fn begin(&mut self) {
        self.owed = Duration::ZERO;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// After how many seconds is a client cut that moves `bytes` each second?
    fn cut_after(pace: &mut Pace, bytes: usize) -> Option<u64> {
        (1..=1000).find(|_| pace.moved(bytes, seconds(1)).is_err())
    }

    #[test]
    fn a_drip_is_cut_and_who_keeps_the_pace_never_is() {
        let pace = || Pace::new(500, seconds(10));
        assert_eq!(cut_after(&mut pace(), 0), Some(11));
        assert_eq!(cut_after(&mut pace(), 100), Some(13), "each second it owes eight tenths more");
        assert_eq!(cut_after(&mut pace(), 500), None);
        assert_eq!(cut_after(&mut pace(), 499), None, "not within a thousand seconds");
        assert_eq!(cut_after(&mut Pace::new(0, seconds(10)), 0), None);
    }

    #[test]
    fn a_fast_beginning_is_no_credit_for_a_slow_end() {
        let mut pace = Pace::new(500, seconds(10));
        pace.moved(1 << 30, seconds(1)).unwrap();
        assert_eq!(cut_after(&mut pace, 1), Some(11));
        pace.begin();
        assert_eq!(pace.moved(1, seconds(10)), Ok(()));
    }

    #[test]
    fn one_long_pause_may_be_made_up_for() {
        let mut pace = Pace::new(500, seconds(10));
        for _ in 0..100 {
            pace.moved(0, seconds(9)).unwrap();
            pace.moved(5000, seconds(1)).unwrap();
        }
    }

    proptest! {
        #[test]
        fn only_waiting_makes_slow(steps in proptest::collection::vec((any::<u32>(), 0_u64..20), 0..100)) {
            let mut pace = Pace::new(1000, seconds(10));
            let mut waited = 0;
            for (bytes, wait) in steps {
                waited += wait;
                let told = pace.moved(usize::try_from(bytes).unwrap(), seconds(wait));
                prop_assert!(told.is_ok() || waited > 10);
            }
        }
    }
}
