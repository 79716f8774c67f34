//! A bounded queue from the threads that serve clients to one that writes or judges. Knows when its
//! reader sleeps; must not know what passes through. It exists because a channel wakes its reader for
//! every entry, and on a busy host two such wakes cost a third of a request: here the first entry is
//! taken at once, then the reader rests for a moment and takes together what has come meanwhile.
//!
//! One lock for all threads, held for the time of one push: entries keep their order, nothing waits in
//! a thread that ends, and who asks for the file to be opened anew finds all that was recorded before.

use std::collections::VecDeque;
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long the reader rests after what it took: so much later an entry is read at most while others
/// come, and so seldom the reader is woken.
const REST: Duration = Duration::from_millis(5);
/// So many entries end the rest, and are taken at a time at most.
const CROWD: usize = 512;

/// Where entries are put in. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Sender<T>(Arc<Near<T>>);

/// Where they come out.
#[derive(Debug)]
pub(crate) struct Receiver<T> {
    shared: Arc<Shared<T>>,
    rest: Duration,
    /// Something was taken last time: it rests before it looks again.
    tired: bool,
}

/// What all senders hold together: the reader hears when the last of them is gone.
#[derive(Debug)]
struct Near<T>(Arc<Shared<T>>);

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    news: Condvar,
    most: usize,
    crowd: usize,
}

#[derive(Debug)]
struct State<T> {
    waiting: VecDeque<T>,
    reader: Reader,
    /// The reader is to look up, whatever waits.
    wanted: bool,
    /// Nobody can send any more.
    deserted: bool,
}

/// What the reader does, and so whether it must be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    /// It looks again by itself.
    Busy,
    /// It waits for a first entry.
    Asleep,
    /// It looks again soon, or when there is a crowd.
    Resting,
    /// It never looks again.
    Gone,
}

/// A queue in which `most` entries may wait.
pub(crate) fn bounded<T>(most: usize) -> (Sender<T>, Receiver<T>) {
    resting(most, REST)
}

fn resting<T>(most: usize, rest: Duration) -> (Sender<T>, Receiver<T>) {
    let state = State { waiting: VecDeque::new(), reader: Reader::Busy, wanted: false, deserted: false };
    // A queue that is half full is not left to fill up.
    let crowd = (most / 2).clamp(1, CROWD);
    let shared =
        Arc::new(Shared { state: Mutex::new(state), news: Condvar::new(), most: most.max(1), crowd });
    (Sender(Arc::new(Near(Arc::clone(&shared)))), Receiver { shared, rest, tired: false })
}

impl<T> Sender<T> {
    /// Puts one in, and wakes a reader that sleeps; `false` where there is no room, or no reader any
    /// more. Never waits but for the lock.
    pub(crate) fn send(&self, entry: T) -> bool {
        let shared = &*self.0.0;
        let mut state = shared.state();
        if state.reader == Reader::Gone || state.waiting.len() >= shared.most {
            return false;
        }
        state.waiting.push_back(entry);
        let wake = match state.reader {
            Reader::Asleep => true,
            Reader::Resting => state.waiting.len() >= shared.crowd,
            Reader::Busy | Reader::Gone => false,
        };
        if wake {
            // One wake is enough.
            state.reader = Reader::Busy;
        }
        drop(state);
        if wake {
            shared.news.notify_one();
        }
        true
    }

    /// Makes the reader look up at once, resting or not.
    pub(crate) fn wake(&self) {
        let shared = &*self.0.0;
        shared.state().wanted = true;
        shared.news.notify_one();
    }
}

impl<T> Drop for Near<T> {
    fn drop(&mut self) {
        self.0.state().deserted = true;
        self.0.news.notify_one();
    }
}

impl<T> Receiver<T> {
    /// Appends what waits to `into`, 512 at most: rests first, if something was taken last time, and
    /// waits until something is there, somebody calls, or `patience` is over. `false` when nobody can
    /// send any more and nothing waits.
    pub(crate) fn take(&mut self, into: &mut Vec<T>, patience: Duration) -> bool {
        let rest = if mem::take(&mut self.tired) { self.rest.min(patience) } else { Duration::ZERO };
        let shared = &*self.shared;
        let mut state = shared.pause(shared.state(), Reader::Resting, shared.crowd, rest);
        state = shared.pause(state, Reader::Asleep, 1, patience.saturating_sub(rest));
        state.wanted = false;
        let count = state.waiting.len().min(CROWD);
        into.extend(state.waiting.drain(..count));
        self.tired = count > 0;
        count > 0 || !state.deserted
    }

    /// Appends all that waits to `into`, and waits for nothing.
    pub(crate) fn take_all(&self, into: &mut Vec<T>) {
        into.extend(self.shared.state().waiting.drain(..));
    }

    /// As [`Receiver::take_all`], for the last time: what is sent from here on is refused.
    pub(crate) fn end(&self, into: &mut Vec<T>) {
        let mut state = self.shared.state();
        state.reader = Reader::Gone;
        into.extend(mem::take(&mut state.waiting));
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut left = Vec::new();
        self.end(&mut left);
    }
}

impl<T> Shared<T> {
    /// Nothing under this lock can panic half-way, so a poisoned one is still whole.
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for `enough` entries, a call, the last sender's end, or the end of `time`.
    fn pause<'s>(
        &'s self,
        mut state: MutexGuard<'s, State<T>>,
        reader: Reader,
        enough: usize,
        time: Duration,
    ) -> MutexGuard<'s, State<T>> {
        let idle = |state: &mut State<T>| !state.wanted && !state.deserted && state.waiting.len() < enough;
        if time.is_zero() || !idle(&mut state) {
            return state;
        }
        state.reader = reader;
        let waited = self.news.wait_timeout_while(state, time, idle);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.reader = Reader::Busy;
        state
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// Longer than any test: who waits for its end hangs.
    const AGES: Duration = Duration::from_secs(3600);

    #[test]
    fn the_first_is_taken_at_once_and_the_next_after_a_rest() {
        let (sender, mut receiver) = resting(100, AGES);
        let mut taken = Vec::new();
        let reader = thread::spawn(move || {
            assert!(receiver.take(&mut taken, AGES));
            assert_eq!(taken, [1]);
            // Half of the queue is a crowd, and ends the rest.
            assert!(receiver.take(&mut taken, AGES));
            taken
        });
        assert!(sender.send(1));
        while !sender.0.0.state().waiting.is_empty() {
            thread::yield_now();
        }
        for number in 2..=51 {
            assert!(sender.send(number));
        }
        assert_eq!(reader.join().unwrap(), (1..=51).collect::<Vec<_>>());
    }

    #[test]
    fn who_calls_is_heard_in_the_midst_of_a_rest() {
        let (sender, mut receiver) = resting(100, AGES);
        let mut taken = Vec::new();
        sender.send(1);
        assert!(receiver.take(&mut taken, AGES));
        sender.send(2);
        sender.wake();
        assert!(receiver.take(&mut taken, AGES));
        assert_eq!(taken, [1, 2]);
        sender.wake();
        assert!(receiver.take(&mut taken, AGES), "a call without an entry ends the waiting too");
        assert_eq!(taken, [1, 2]);
    }

    #[test]
    fn a_rest_ends_with_the_patience() {
        let (sender, mut receiver) = resting(100, AGES);
        let mut taken = Vec::new();
        sender.send(1);
        assert!(receiver.take(&mut taken, AGES));
        sender.send(2);
        assert!(receiver.take(&mut taken, Duration::ZERO));
        assert_eq!(taken, [1, 2]);
        assert!(receiver.take(&mut taken, Duration::from_millis(1)));
    }

    #[test]
    fn what_finds_no_room_or_no_reader_is_refused() {
        let (sender, receiver) = resting(2, AGES);
        assert!(sender.send(1) && sender.send(2) && !sender.send(3));
        let mut taken = Vec::new();
        receiver.take_all(&mut taken);
        assert!(sender.send(4));
        receiver.end(&mut taken);
        assert_eq!(taken, [1, 2, 4]);
        assert!(!sender.send(5));
        let (sender, receiver) = resting(2, AGES);
        drop(receiver);
        assert!(!sender.send(1));
    }

    #[test]
    fn the_reader_hears_when_the_last_sender_is_gone_and_loses_nothing() {
        let (sender, mut receiver) = resting(10, AGES);
        let other = sender.clone();
        sender.send(1);
        drop(sender);
        other.send(2);
        drop(other);
        let mut taken = Vec::new();
        assert!(receiver.take(&mut taken, AGES));
        assert!(!receiver.take(&mut taken, AGES));
        assert_eq!(taken, [1, 2]);
    }

    #[test]
    fn a_flood_from_many_threads_arrives_in_order_and_seldom_wakes() {
        const EACH: usize = 20_000;
        let (sender, mut receiver) = bounded(4 * EACH);
        let reader = thread::spawn(move || {
            let (mut taken, mut looks) = (Vec::new(), 0_usize);
            while receiver.take(&mut taken, AGES) {
                looks += 1;
            }
            (taken, looks)
        });
        let began = tokio::time::Instant::now();
        thread::scope(|scope| {
            for thread in 0..4 {
                let sender = sender.clone();
                scope.spawn(move || (0..EACH).for_each(|number| assert!(sender.send((thread, number)))));
            }
        });
        drop(sender);
        let (taken, looks) = reader.join().unwrap();
        let rests = usize::try_from(began.elapsed().as_millis() / REST.as_millis()).unwrap();
        let crowds = 4 * EACH / CROWD;
        assert!(looks <= rests + crowds + 2, "{looks} looks in {rests} rests");
        assert_eq!(taken.len(), 4 * EACH);
        for thread in 0..4 {
            let own = taken.iter().filter(|(from, _)| *from == thread).map(|(_, number)| *number);
            assert!(own.eq(0..EACH), "each thread's own are in order");
        }
    }
}
