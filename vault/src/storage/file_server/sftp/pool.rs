//! The sessions to one server: made when needed, each lent to one operation at a time, given
//! back only when that left it sound, thrown away on a thread of its own otherwise. A reader
//! leaves its open file on a session between reads and finds both again, unless somebody
//! else needed the session meanwhile: so no reader, however slow, keeps anybody waiting.
//! Knows no paths.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::time::{Duration, Instant};

use ssh2::File;

use super::link::{Link, Refusal};
use super::moment;
use super::settings::SftpSettings;

/// A session that has lain idle for so long is asked whether it still lives.
const CHECK_AFTER: Duration = Duration::from_secs(15);
/// A session that has lain idle for so long is closed.
const CLOSE_AFTER: Duration = Duration::from_secs(180);
/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// A reader's mark on the file it left open.
pub(super) type Ticket = u64;
/// Nobody's: the file is to be closed.
pub(super) const NOBODY: Ticket = 0;

/// See the module.
pub(super) struct Pool {
    settings: SftpSettings,
    timeout: Duration,
    limit: usize,
    state: Mutex<State>,
    changed: Condvar,
    reaper: mpsc::Sender<Doomed>,
}

#[derive(Default)]
struct State {
    /// The longest idle first.
    parked: Vec<Parked>,
    lent: usize,
    /// Is a session being made? One at a time: servers refuse many that are not logged in yet.
    connecting: bool,
    tickets: Ticket,
}

struct Parked {
    link: Link,
    since: Instant,
    open: Option<(Ticket, File)>,
}

/// What the reaper ends.
enum Doomed {
    Broken(Link, Option<File>),
    Idle(Link),
}

/// One session, lent to one operation.
pub(super) struct Lane {
    /// `None` only while it is being dropped.
    link: Option<Link>,
    /// The file that a reader left open here.
    open: Option<(Ticket, File)>,
    /// Was it idle before, so that it may have died unseen?
    pub(super) reused: bool,
    sound: bool,
    pool: Arc<Pool>,
}

impl Pool {
    /// At most `limit` sessions; none is made yet.
    pub(super) fn new(settings: SftpSettings, timeout: Duration, limit: usize) -> Arc<Self> {
        let (reaper, doomed) = mpsc::channel();
        Arc::new_cyclic(|pool: &Weak<Self>| {
            let pool = Weak::clone(pool);
            let thread = std::thread::Builder::new().name("sftp-reaper".to_owned());
            if let Err(error) = thread.spawn(move || reap(&pool, &doomed)) {
                // Sessions then end where they are dropped, which costs that caller some time.
                tracing::warn!(
                    "no thread for ending sftp sessions: {error}; check the limits of vault's unit"
                );
            }
            Self { settings, timeout, limit, state: Mutex::default(), changed: Condvar::new(), reaper }
        })
    }

    /// A new reader's mark.
    pub(super) fn ticket(&self) -> Ticket {
        let mut state = self.lock();
        state.tickets += 1;
        state.tickets
    }

    /// Borrows a session: the one with this reader's file if it is still there, else an idle
    /// one, else a new one, else the one that has waited longest for its reader. Waits no
    /// longer than the time-out.
    pub(super) fn borrow(self: &Arc<Self>, ticket: Option<Ticket>) -> Result<Lane, Refusal> {
        let until = moment() + self.timeout;
        let mut state = self.lock();
        loop {
            if let Some(parked) = state.choose(ticket, self.limit) {
                state.lent += 1;
                drop(state);
                if let Some(lane) = self.check(parked, ticket) {
                    return Ok(lane);
                }
                state = self.lock();
            } else if state.lent + state.parked.len() < self.limit && !state.connecting {
                state.lent += 1;
                state.connecting = true;
                drop(state);
                return self.connect();
            } else {
                let left = until.saturating_duration_since(moment());
                if left.is_zero() {
                    return Err(Refusal::Away(std::io::Error::new(
                        std::io::ErrorKind::TimedOut,
                        format!(
                            "all {} sessions stayed busy for {} s",
                            self.limit,
                            self.timeout.as_secs_f32()
                        ),
                    )));
                }
                state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    /// A reader is gone; whoever borrows the session next closes its file.
    pub(super) fn forget(&self, ticket: Ticket) {
        for (mark, _) in self.lock().parked.iter_mut().filter_map(|parked| parked.open.as_mut()) {
            if *mark == ticket {
                *mark = NOBODY;
            }
        }
    }

    /// Sessions that are idle and that are lent.
    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize) {
        let state = self.lock();
        (state.parked.len(), state.lent)
    }

    fn connect(self: &Arc<Self>) -> Result<Lane, Refusal> {
        let link = Link::connect(&self.settings, self.timeout);
        let mut state = self.lock();
        state.connecting = false;
        if link.is_err() {
            state.lent -= 1;
        }
        drop(state);
        self.changed.notify_all();
        Ok(Lane { link: Some(link?), open: None, reused: false, sound: false, pool: Arc::clone(self) })
    }

    /// Is it still alive? Closes another reader's file. `None`: it is dead and on its way out.
    fn check(self: &Arc<Self>, parked: Parked, ticket: Option<Ticket>) -> Option<Lane> {
        let Parked { link, since, open } = parked;
        let mut lane = Lane { link: Some(link), open, reused: true, sound: false, pool: Arc::clone(self) };
        let link = lane.link.as_mut()?;
        if link.is_closed() {
            return None;
        }
        if lane.open.as_ref().is_some_and(|(mark, _)| Some(*mark) != ticket) {
            let (_, file) = lane.open.take()?;
            link.close(file).ok()?;
        } else if moment().saturating_duration_since(since) >= CHECK_AFTER && !link.answers() {
            return None;
        }
        Some(lane)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, doomed: Doomed) {
        // Without a reaper it ends here.
        if let Err(mpsc::SendError(doomed)) = self.reaper.send(doomed) {
            doomed.end();
        }
    }
}

impl State {
    fn choose(&mut self, ticket: Option<Ticket>, limit: usize) -> Option<Parked> {
        let mark = |parked: &Parked| parked.open.as_ref().map(|(mark, _)| *mark);
        let own = self.parked.iter().rposition(|parked| ticket.is_some() && mark(parked) == ticket);
        let idle = || self.parked.iter().rposition(|parked| mark(parked).is_none_or(|mark| mark == NOBODY));
        let full = self.lent + self.parked.len() >= limit;
        let longest = || (full && !self.parked.is_empty()).then_some(0);
        let at = own.or_else(idle).or_else(longest)?;
        Some(self.parked.remove(at))
    }
}

impl Lane {
    /// The session. Ends the loan as unsound if it is gone, which cannot be.
    pub(super) fn link(&mut self) -> &mut Link {
        self.parts().0
    }

    /// The session and the file open on it.
    #[expect(clippy::expect_used, reason = "the link is taken only by drop, which nobody sees")]
    pub(super) fn parts(&mut self) -> (&mut Link, &mut Option<(Ticket, File)>) {
        (self.link.as_mut().expect("a lane has its link until it is dropped"), &mut self.open)
    }

    /// Gives the session back as sound.
    pub(super) fn give_back(mut self) {
        self.sound = true;
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let Some(link) = self.link.take() else { return };
        let open = self.open.take();
        let mut state = self.pool.lock();
        state.lent -= 1;
        if self.sound {
            state.parked.push(Parked { link, since: moment(), open });
            drop(state);
        } else {
            drop(state);
            link.cut();
            self.pool.end(Doomed::Broken(link, open.map(|(_, file)| file)));
        }
        self.pool.changed.notify_all();
    }
}

impl Doomed {
    fn end(self) {
        match self {
            // The file first: it speaks through the session.
            Self::Broken(link, file) => {
                link.cut();
                drop(file);
                drop(link);
            }
            Self::Idle(link) => link.say_goodbye(),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        for parked in std::mem::take(&mut state.parked) {
            let doomed = match parked.open {
                None => Doomed::Idle(parked.link),
                Some((_, file)) => Doomed::Broken(parked.link, Some(file)),
            };
            if let Err(mpsc::SendError(doomed)) = self.reaper.send(doomed) {
                doomed.end();
            }
        }
    }
}

/// Ends sessions: dropping one blocks while the other side hangs. Lives as long as the pool.
fn reap(pool: &Weak<Pool>, doomed: &mpsc::Receiver<Doomed>) {
    loop {
        match doomed.recv_timeout(LOOK_EVERY) {
            Ok(doomed) => doomed.end(),
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let Some(pool) = pool.upgrade() else { return };
                let now = moment();
                let old = |parked: &mut Parked| now.saturating_duration_since(parked.since) >= CLOSE_AFTER;
                let idle: Vec<_> = pool.lock().parked.extract_if(.., old).collect();
                for parked in idle {
                    pool.end(match parked.open {
                        None => Doomed::Idle(parked.link),
                        Some((_, file)) => Doomed::Broken(parked.link, Some(file)),
                    });
                }
            }
        }
    }
}
