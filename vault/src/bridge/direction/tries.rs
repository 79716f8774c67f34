//! Which broker of a URI is tried next, and when; and the words of a failure.

use std::collections::BTreeSet;
use std::time::Duration;

use shared::retry::Backoff;
use tokio::time::sleep;

use super::{STEADY, random};
use crate::openwire::uri::{Address, Uri};

/// So often in a row a broker may refuse without being spared: what it does not take is found by then.
const MOST_REFUSED: u32 = 64;
/// Failures that are known to have been told.
const MOST_TOLD: usize = 100;

/// Tries the brokers of a URI one after the other, waiting after each round; never ends.
pub(super) struct Tries<'a> {
    uri: &'a Uri,
    next: usize,
    backoff: Backoff,
    /// Since something was taken.
    refused: u32,
}

impl<'a> Tries<'a> {
    pub(super) fn new(uri: &'a Uri) -> Self {
        let next = if uri.randomize { random() as usize % uri.brokers.len() } else { 0 };
        Self {
            uri,
            next,
            backoff: Backoff::new(uri.first_wait.max(Duration::from_millis(10)), uri.longest_wait),
            refused: 0,
        }
    }

    pub(super) fn address(&self) -> &'a Address {
        &self.uri.brokers[self.next % self.uri.brokers.len()]
    }

    /// The broker did what was wanted of it: it is not to be spared when the connection ends.
    pub(super) fn worked(&mut self) {
        self.refused = 0;
        self.backoff.reset();
    }

    /// The broker answered, and did not take what it was sent. It need not be spared, unless it takes nothing.
    pub(super) fn refused(&mut self) {
        self.refused = self.refused.saturating_add(1);
        if self.refused <= MOST_REFUSED {
            self.backoff.reset();
        }
    }

    /// The last try failed, perhaps after it had been connected for so long.
    pub(super) async fn failed(&mut self, connected: Option<Duration>) {
        sleep(self.wait(connected)).await;
    }

    /// How long to wait after it.
    pub(super) fn wait(&mut self, connected: Option<Duration>) -> Duration {
        match connected {
            Some(time) if time >= STEADY => self.backoff.reset(),
            Some(_) => {}
            None => self.next += 1,
        }
        if connected.is_some() || self.next.is_multiple_of(self.uri.brokers.len()) {
            self.backoff.next(random())
        } else {
            Duration::ZERO
        }
    }
}

/// After it had been connected for so long, what fails is told anew.
pub(super) fn forget_told(before: &mut BTreeSet<String>, connected: Option<Duration>) {
    if connected.is_some_and(|time| time >= STEADY) {
        before.clear();
    }
}

/// A failure into the log, once for each that was not told since it was connected for a while: several
/// addresses fail in turns, and one that refuses a message is connected before each time.
pub(super) fn tell_failure(name: &str, side: &str, before: &mut BTreeSet<String>, why: &str) {
    if before.len() >= MOST_TOLD {
        before.clear();
    }
    if before.insert(why.to_owned()) {
        tracing::warn!(bridge = %name, "bridge {name}: {side}: {why}");
    }
}
