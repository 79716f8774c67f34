//! The other vault is connected and says nothing: its disk may hang while its connection stands.
//! Nobody waits for such a one longer than for one that is away. Decides when a connection is
//! given up, and how long the next greeting waits meanwhile; not what is said.

use std::time::Duration;

use tokio::time::Instant;

use super::Coordinator;
use crate::sequence::protocol::Input;

/// By when the other vault must have said its first word on a new connection.
const FIRST_WORD: Duration = Duration::from_secs(3);
/// By when the next one, until a session stands: it may have much to compare.
const NEXT_WORD: Duration = Duration::from_secs(10);
/// By when it must have written a round, or confirmed to the owner that the session stands.
const ROUND: Duration = Duration::from_secs(3);
/// How long the first greeting waits after a connection on which nothing was said; it doubles with
/// each further one. While it waits this vault gives what it may give alone.
const PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What is waited for, and how often in vain.
#[derive(Debug, Default)]
pub(in crate::sequence) struct Silence {
    /// By when something must have been said.
    due: Option<Instant>,
    /// When this side greets; sooner if the other does.
    greeting: Option<Instant>,
    /// Was anything said on this connection?
    heard: bool,
    /// Connections in a row on which nothing was.
    times: u32,
    /// What the other must write or confirm, and since when.
    waits: Option<(Awaited, Instant)>,
}

/// A round by its last entry, and a question by its number.
type Awaited = (Option<u64>, Option<u64>);

impl Silence {
    fn pause(&self) -> Option<Duration> {
        let doubled = PAUSE.saturating_mul(1 << self.times.saturating_sub(1).min(8));
        (self.times > 0).then_some(doubled.min(LONGEST_PAUSE))
    }

    /// Has the same been waited for too long?
    fn is_late(&mut self, awaited: Awaited, now: Instant) -> bool {
        if awaited == (None, None) {
            self.waits = None;
            return false;
        }
        match self.waits {
            Some((same, since)) if same == awaited => now.duration_since(since) >= ROUND,
            _ => {
                self.waits = Some((awaited, now));
                false
            }
        }
    }
}

impl Coordinator {
    /// A connection stands. Where the last one was silent, the other vault speaks first, or this one
    /// after a pause.
    pub(super) fn connected(&mut self) {
        self.end_chores();
        match self.silence.pause() {
            None => self.greet(),
            Some(pause) => self.silence.greeting = Some(Instant::now() + pause),
        }
    }

    fn greet(&mut self) {
        match crate::sequence::nonce() {
            Ok(nonce) => {
                let due = Some(Instant::now() + FIRST_WORD);
                self.silence = Silence { due, times: self.silence.times, ..Silence::default() };
                self.feed(Input::Connected(nonce));
            }
            Err(error) => {
                tracing::error!("sequence: no randomness for a session: {error}; no session");
                (self.hang_up)();
            }
        }
    }

    /// The connection is gone.
    pub(super) fn disconnected(&mut self) {
        self.silence = Silence { times: self.silence.times, ..Silence::default() };
        self.end_chores();
        self.feed(Input::Disconnected);
    }

    /// The other vault says something; as long as it does, it goes on.
    pub(super) fn heard(&mut self) {
        if self.silence.greeting.is_some() {
            self.greet();
        }
        (self.silence.heard, self.silence.times) = (true, 0);
        self.silence.due = self.silence.due.map(|_| Instant::now() + NEXT_WORD);
    }

    /// Greets when it is time, and gives up a connection on which the other vault keeps silent.
    pub(super) fn watch_silence(&mut self) {
        let now = Instant::now();
        if self.silence.greeting.is_some_and(|due| now >= due) {
            self.greet();
        }
        let refusal = self.core.refusal();
        if refusal.is_none() {
            self.silence.due = None;
        } else if self.silence.due.is_some_and(|due| now >= due) {
            self.silence.due = None;
            match refusal {
                // Said once, where it arose.
                Some(reason) if reason.needs_operator() => {
                    tracing::debug!("sequence: {reason}; connecting again");
                }
                _ if self.silence.heard => {
                    tracing::warn!("sequence: no session within {NEXT_WORD:?}; connecting again");
                }
                _ => tracing::warn!(
                    "sequence: the other vault is connected and says nothing of the ledger; look at its disk and its log; it is greeted again in {:?}, and this vault gives what it may give alone",
                    self.silence.pause().unwrap_or(PAUSE)
                ),
            }
            self.give_up();
        }
        let awaited = (self.core.awaits(), self.records.awaits());
        if refusal.is_none() && self.silence.is_late(awaited, now) {
            tracing::error!(
                "sequence: the other vault has not written its journal for {ROUND:?} though it is connected; look at its disk; the connection is made anew, and until then this vault gives what it may give alone"
            );
            self.give_up();
        }
    }

    /// The owner does not answer what callers of this vault ask.
    pub(super) fn owner_is_silent(&mut self) {
        if self.core.refusal().is_none() && !self.core.leads() {
            tracing::error!(
                "sequence: the ledger's owner does not answer though it is connected; look at its disk; the connection is made anew, and until then this vault gives what it may give alone"
            );
            self.give_up();
        }
    }

    fn give_up(&mut self) {
        if !self.silence.heard {
            self.silence.times = self.silence.times.saturating_add(1);
        }
        self.silence.waits = None;
        (self.hang_up)();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_longest_and_a_vault_that_spoke_is_greeted_at_once() {
        let pauses: Vec<_> = [0, 1, 2, 3, 4, 5, u32::MAX]
            .map(|times| Silence { times, ..Silence::default() }.pause().map(|pause| pause.as_secs()))
            .to_vec();
        assert_eq!(pauses, [None, Some(2), Some(4), Some(8), Some(16), Some(30), Some(30)]);
    }

    #[test]
    fn only_what_is_waited_for_all_the_time_is_late() {
        let (mut silence, begun) = (Silence::default(), Instant::now());
        let at = |seconds| begun + Duration::from_secs(seconds);
        assert!(!silence.is_late((Some(1), None), at(0)));
        assert!(!silence.is_late((Some(2), None), at(2)), "another round");
        assert!(!silence.is_late((Some(2), None), at(4)));
        assert!(silence.is_late((Some(2), None), at(5)));
        assert!(!silence.is_late((None, None), at(6)), "it is written");
        assert!(!silence.is_late((None, Some(1)), at(7)));
        assert!(silence.is_late((None, Some(1)), at(10)), "a question");
    }
}
