//! Replies that wait for the copy, each no longer than its deadline. The coordinator leaves them
//! here and never waits itself; the copy's task gives them. Whatever happens, each is given once.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::copy::{Phase, State};

/// Rounds whose replies wait at once; those of further ones do not wait.
const HELD: usize = 1024;

/// Tells one caller what became of its wish.
pub(in crate::sequence) type Reply = Box<dyn FnOnce() + Send>;

/// Replies of one round, until the copy has its entries.
struct Held {
    upto: u64,
    due: Instant,
    replies: Vec<Reply>,
}

impl Held {
    fn release(self) {
        self.replies.into_iter().for_each(|reply| reply());
    }
}

/// The coordinator's end: whoever has an answer leaves it here.
#[derive(Default)]
pub(in crate::sequence) struct Replies(Option<Line>);

struct Line {
    held: mpsc::Sender<Held>,
    current: Arc<AtomicBool>,
    wait: Duration,
}

impl Replies {
    /// Both ends. Nobody waits before [`Waiters::begin`].
    pub(super) fn new(wait: Duration, state: watch::Sender<State>) -> (Self, Waiters) {
        let (held, incoming) = mpsc::channel(HELD);
        let current = Arc::new(AtomicBool::new(false));
        let line = Line { held, current: Arc::clone(&current), wait };
        (Self(Some(line)), Waiters { incoming, queue: VecDeque::new(), current, state })
    }

    /// Gives these replies once the copy has all entries up to `upto`. What need not wait, for
    /// there is no copy or it is behind, comes back: the caller gives it. Never waits itself.
    #[must_use]
    pub(in crate::sequence) fn hold(&self, upto: u64, replies: Vec<Reply>) -> Vec<Reply> {
        // A round of records alone: nobody in it waits for the copy.
        if replies.is_empty() {
            return replies;
        }
        let Some(line) = self.0.as_ref().filter(|line| line.current.load(Ordering::Acquire)) else {
            return replies;
        };
        match line.held.try_send(Held { upto, due: Instant::now() + line.wait, replies }) {
            Ok(()) => Vec::new(),
            Err(full) => full.into_inner().replies,
        }
    }
}

/// Replies that wait now. Whatever happens, each is given once.
pub(super) struct Waiters {
    incoming: mpsc::Receiver<Held>,
    queue: VecDeque<Held>,
    current: Arc<AtomicBool>,
    state: watch::Sender<State>,
}

impl Waiters {
    fn take(&mut self, held: Held) {
        if self.is_current() { self.queue.push_back(held) } else { held.release() }
    }

    pub(super) fn is_current(&self) -> bool {
        self.current.load(Ordering::Acquire)
    }

    /// From now on replies wait.
    pub(super) fn begin(&self) {
        self.current.store(true, Ordering::Release);
    }

    /// The copy is behind: nobody waits any more.
    pub(super) fn give_up(&mut self) {
        if self.current.swap(false, Ordering::AcqRel) {
            self.state.send_modify(|state| state.phase = Phase::Behind);
        }
        self.queue.drain(..).for_each(Held::release);
        while let Ok(held) = self.incoming.try_recv() {
            held.release();
        }
    }

    /// The copy has all up to this index.
    pub(super) fn copied(&mut self, upto: u64) {
        while self.queue.front().is_some_and(|held| held.upto <= upto) {
            self.queue.pop_front().into_iter().for_each(Held::release);
        }
    }

    /// The last entry that somebody waits for.
    pub(super) fn awaited(&self) -> u64 {
        self.queue.back().map_or(0, |held| held.upto)
    }

    /// Takes in the next replies.
    pub(super) async fn next(&mut self) {
        match self.incoming.recv().await {
            Some(held) => self.take(held),
            // The coordinator has ended; nothing comes any more.
            None => std::future::pending().await,
        }
    }

    /// Does `work`, and meanwhile takes in replies and gives up when one has waited too long.
    pub(super) async fn during<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            let due = self.queue.front().map(|held| held.due);
            let late = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = late => self.give_up(),
                Some(held) = self.incoming.recv() => self.take(held),
            }
        }
    }
}

impl Drop for Waiters {
    fn drop(&mut self) {
        self.give_up();
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    fn line() -> (Replies, Waiters) {
        let (state, _) = watch::channel(State::default());
        let (replies, waiters) = Replies::new(Duration::from_millis(100), state);
        waiters.begin();
        (replies, waiters)
    }

    fn hold(replies: &Replies, upto: u64, held: Vec<Reply>) {
        replies.hold(upto, held).into_iter().for_each(|reply| reply());
    }

    fn reply(told: &mpsc::UnboundedSender<u64>, upto: u64) -> Vec<Reply> {
        let told = told.clone();
        vec![Box::new(move || told.send(upto).unwrap())]
    }

    #[tokio::test]
    async fn replies_wait_for_the_copy_and_no_longer_than_the_deadline() {
        let (replies, mut waiters) = line();
        let (told, mut heard) = mpsc::unbounded_channel();
        hold(&replies, 1, reply(&told, 1));
        hold(&replies, 2, reply(&told, 2));
        waiters.during(sleep(Duration::from_millis(10))).await;
        heard.try_recv().unwrap_err();
        waiters.copied(1);
        assert_eq!(heard.try_recv(), Ok(1));
        heard.try_recv().unwrap_err();
        waiters.during(sleep(Duration::from_millis(200))).await;
        assert_eq!(heard.try_recv(), Ok(2));
        // It is behind now: nobody waits.
        hold(&replies, 3, reply(&told, 3));
        assert_eq!(heard.try_recv(), Ok(3));
    }

    #[tokio::test]
    async fn a_round_that_nobody_waits_for_makes_no_copy_late() {
        let (replies, mut waiters) = line();
        hold(&replies, 1, Vec::new());
        waiters.during(sleep(Duration::from_millis(200))).await;
        assert!(waiters.is_current());
    }

    #[tokio::test]
    async fn no_reply_is_lost_when_too_many_wait_or_the_copy_ends() {
        let (replies, waiters) = line();
        let (told, mut heard) = mpsc::unbounded_channel();
        let most = HELD as u64;
        for upto in 1..=most + 1 {
            hold(&replies, upto, reply(&told, upto));
        }
        assert_eq!(heard.try_recv(), Ok(most + 1));
        heard.try_recv().unwrap_err();
        drop(waiters);
        let rest: Vec<u64> = std::iter::from_fn(|| heard.try_recv().ok()).collect();
        assert_eq!(rest, (1..=most).collect::<Vec<_>>());
    }
}
