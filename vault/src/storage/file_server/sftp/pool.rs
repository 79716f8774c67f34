//! The sessions to one server: made when needed, each lent to one operation at a time, given
//! back only by who found it sound, cut and thrown away otherwise. A reader leaves its open
//! file on a session between reads and finds both again, unless somebody else needed the
//! session meanwhile: so no reader, however slow, keeps anybody waiting. Knows no paths.

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
    /// Ends the housekeeper with this value.
    _alive: mpsc::Sender<()>,
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
    // First, as in `Lane`.
    link: Link,
    since: Instant,
    open: Option<(Ticket, File)>,
}

/// One session, lent to one operation. Dropped, it is cut: whatever is dropped with it waits
/// for nobody.
pub(super) struct Lane {
    // First: it cuts the connection before the file is closed.
    pub(super) link: Link,
    /// The file that a reader left open here.
    pub(super) open: Option<(Ticket, File)>,
    /// Was it idle before, so that it may have died unseen?
    pub(super) reused: bool,
    loan: Loan,
}

/// Counts a session as lent.
struct Loan(Arc<Pool>);

impl Pool {
    /// At most `limit` sessions; none is made yet.
    pub(super) fn new(settings: SftpSettings, timeout: Duration, limit: usize) -> Arc<Self> {
        let (alive, ended) = mpsc::channel();
        Arc::new_cyclic(|pool: &Weak<Self>| {
            let pool = Weak::clone(pool);
            let thread = std::thread::Builder::new().name("sftp-idle".to_owned());
            if let Err(error) = thread.spawn(move || close_idle(&pool, &ended)) {
                tracing::warn!("idle sftp sessions stay open: {error}; check the limits of vault's unit");
            }
            Self { settings, timeout, limit, state: Mutex::default(), changed: Condvar::new(), _alive: alive }
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
                let loan = self.lend(&mut state);
                drop(state);
                if let Some(lane) = check(parked, ticket, loan) {
                    return Ok(lane);
                }
                state = self.lock();
            } else if state.lent + state.parked.len() < self.limit && !state.connecting {
                let loan = self.lend(&mut state);
                state.connecting = true;
                drop(state);
                return self.connect(loan);
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

    /// Borrows an idle session or makes a new one, if that keeps nobody waiting: the last one is
    /// left to others.
    pub(super) fn borrow_spare(self: &Arc<Self>) -> Option<Lane> {
        let mut state = self.lock();
        if state.lent + 1 >= self.limit {
            return None;
        }
        if let Some(parked) = state.choose(None, usize::MAX) {
            let loan = self.lend(&mut state);
            drop(state);
            return check(parked, None, loan);
        }
        if state.connecting || state.lent + state.parked.len() + 1 >= self.limit {
            return None;
        }
        let loan = self.lend(&mut state);
        state.connecting = true;
        drop(state);
        self.connect(loan).ok()
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

    fn lend(self: &Arc<Self>, state: &mut State) -> Loan {
        state.lent += 1;
        Loan(Arc::clone(self))
    }

    fn connect(&self, loan: Loan) -> Result<Lane, Refusal> {
        let link = Link::connect(&self.settings, self.timeout);
        self.lock().connecting = false;
        self.changed.notify_all();
        Ok(Lane { link: link?, open: None, reused: false, loan })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
    /// Gives the session back as sound.
    pub(super) fn give_back(self) {
        let Self { link, open, loan, .. } = self;
        loan.0.lock().parked.push(Parked { link, since: moment(), open });
        drop(loan);
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.0.lock().lent -= 1;
        self.0.changed.notify_all();
    }
}

/// Is it still alive? Closes another reader's file. `None`: it is dead, and gone.
fn check(parked: Parked, ticket: Option<Ticket>, loan: Loan) -> Option<Lane> {
    let Parked { link, since, open } = parked;
    let mut lane = Lane { link, open, reused: true, loan };
    if lane.link.is_closed() {
        return None;
    }
    if lane.open.as_ref().is_some_and(|(mark, _)| Some(*mark) != ticket) {
        let (_, file) = lane.open.take()?;
        lane.link.close(file).ok()?;
    } else if moment().saturating_duration_since(since) >= CHECK_AFTER && !lane.link.answers() {
        return None;
    }
    Some(lane)
}

/// Closes sessions that nobody has used for long. Lives as long as the pool.
fn close_idle(pool: &Weak<Pool>, ended: &mpsc::Receiver<()>) {
    while ended.recv_timeout(LOOK_EVERY) == Err(mpsc::RecvTimeoutError::Timeout) {
        let Some(pool) = pool.upgrade() else { return };
        let now = moment();
        let old = |parked: &mut Parked| now.saturating_duration_since(parked.since) >= CLOSE_AFTER;
        let idle: Vec<_> = pool.lock().parked.extract_if(.., old).collect();
        for parked in idle {
            parked.link.say_goodbye();
        }
    }
}
