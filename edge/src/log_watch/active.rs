//! How many clients were active in the last minute or two, so that a jail that would ban too many
//! of them can be told from one that bans attackers. Pure; bounded.

use std::collections::HashSet;
use std::mem;
use std::time::Duration;

use crate::client::ClientKey;

/// One generation.
const PERIOD: Duration = Duration::from_secs(60);
/// Beyond it nobody needs to know more exactly: 5 % of it are 13,000 clients.
const MOST: usize = 262_144;

/// Two generations of clients: the current minute and the one before.
#[derive(Debug, Default)]
pub(super) struct Active {
    current: HashSet<ClientKey>,
    before: HashSet<ClientKey>,
    began: Duration,
}

impl Active {
    /// Notes that the client did something.
    pub(super) fn seen(&mut self, client: ClientKey, now: Duration) {
        self.turn(now);
        if self.current.len() < MOST {
            self.current.insert(client);
        }
    }

    /// Clients of the current minute or of the one before, whichever is more: a new minute does
    /// not begin with nobody.
    pub(super) fn count(&mut self, now: Duration) -> usize {
        self.turn(now);
        self.current.len().max(self.before.len())
    }

    fn turn(&mut self, now: Duration) {
        let age = now.saturating_sub(self.began);
        if age >= PERIOD {
            self.before = mem::take(&mut self.current);
            if age >= 2 * PERIOD {
                self.before = HashSet::new();
            }
            self.began = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Client;

    #[test]
    fn clients_of_the_last_minute_are_counted_once_each() {
        let mut active = Active::default();
        let key = |last: u8| Client::new([192, 0, 2, last].into()).key();
        let at = |seconds: u64| Duration::from_secs(1_000_000 + seconds);
        for second in 0..30 {
            active.seen(key(u8::try_from(second % 10).unwrap()), at(second));
        }
        assert_eq!(active.count(at(59)), 10);
        assert_eq!(active.count(at(61)), 10, "a new minute does not begin with nobody");
        assert_eq!(active.count(at(300)), 0);
    }
}
