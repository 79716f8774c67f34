//! The thread between handlers and the tickets' file: whoever waits while a commit is under way
//! shares the next one. Knows days and retries; must not know keys or requests.

use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime};

use shared::api::client::Life;
use tokio::sync::oneshot;

use super::clock::{Clock, Moved, Now};
use super::file::{is_damage, set_aside};
use super::secret::Secret;
use super::store::{Doubt, Round, Sought, Store};
use super::{Mark, Metrics, Settings, Standing, TicketsError, Told};

/// Most keys of one transaction; one batch is not split.
const ROUND: usize = 20_000;
/// A file that cannot be opened is tried again so often.
const RETRY: Duration = Duration::from_secs(5);
/// Tickets looked at in one step for old ones.
const STEP: u32 = 1000;
/// Between two steps when nothing else is to be done.
const PAUSE: Duration = Duration::from_millis(100);
/// How often it is looked at the clocks.
const IDLE: Duration = Duration::from_secs(60);
/// What tells one boot of the host from another.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

pub(super) enum Work {
    Ask(Ask),
    /// Both vaults were together since this doubt was told.
    WereTogether(u64),
    /// Edge ends: the file is put in order, then this is answered.
    End(oneshot::Sender<()>),
}

/// Marks that go to a life, unless an earlier one is known.
pub(super) struct Ask {
    pub(super) marks: Vec<Sought>,
    pub(super) life: Life,
    pub(super) answer: oneshot::Sender<Vec<Option<Life>>>,
}

pub(super) struct Writer {
    settings: Settings,
    standing: Standing,
    metrics: Metrics,
    boot: Option<String>,
    clock: Clock,
    /// The clock was moved, and no store was open to doubt.
    moved: Option<Moved>,
    store: Option<(Store, Secret)>,
    /// When opening it was tried last, in the clock's running time.
    tried: Option<Duration>,
    /// What is wrong with the file that has to be set aside.
    damaged: Option<String>,
    /// Counts doubts, so that none is ended by what was seen before it arose.
    doubts: u64,
    /// What the log last heard.
    told: Option<String>,
    full: bool,
    walk: Walk,
}

/// The search for old tickets, once a day through all of them.
enum Walk {
    Due,
    At(Option<Mark>),
    Done(u32),
}

impl Writer {
    pub(super) fn new(settings: Settings, standing: Standing, metrics: Metrics, now: Now) -> Self {
        let boot = std::fs::read_to_string(BOOT).ok().map(|boot| boot.trim().to_owned());
        Self {
            settings,
            standing,
            metrics,
            boot,
            clock: Clock::new(now),
            moved: None,
            store: None,
            tried: None,
            damaged: None,
            doubts: 0,
            told: None,
            full: false,
            walk: Walk::Due,
        }
    }

    /// Takes work until nobody has any more.
    pub(super) fn run(mut self, queue: &Receiver<Work>) {
        let mut ending = None;
        while ending.is_none() {
            let wait = match (&self.store, &self.walk) {
                (None, _) => RETRY,
                (Some(_), Walk::Due | Walk::At(_)) => PAUSE,
                (Some(_), Walk::Done(_)) => IDLE,
            };
            let mut next = match queue.recv_timeout(wait) {
                Ok(work) => Some(work),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let (mut work, mut keys) = (Vec::new(), 0);
            while let Some(one) = next {
                match one {
                    Work::End(ended) => ending = Some(ended),
                    Work::Ask(ask) => {
                        keys += ask.marks.len();
                        work.push(Work::Ask(ask));
                    }
                    one @ Work::WereTogether(_) => work.push(one),
                }
                next = if keys < ROUND { queue.try_recv().ok() } else { None };
            }
            self.turn(work, now());
        }
        if let Some((store, _)) = &mut self.store {
            // What is not noted keeps tickets a little longer.
            let _unnoted = store.note();
        }
        self.store = None;
        if let Some(ended) = ending {
            // Whoever waited may have gone.
            let _gone = ended.send(());
        }
    }

    /// One turn: what the clocks say, then what was asked, then a little tidying up.
    pub(super) fn turn(&mut self, work: Vec<Work>, now: Now) {
        self.open(now);
        let (ran, moved) = self.clock.look(now);
        self.pass(ran, moved);
        let (mut asks, mut ended) = (Vec::new(), None);
        for one in work {
            match one {
                Work::Ask(ask) => asks.push(ask),
                Work::WereTogether(doubt) => ended = ended.max(Some(doubt)),
                Work::End(_) => {}
            }
        }
        if !asks.is_empty() {
            self.round(asks);
        }
        if ended == Some(self.doubts) {
            self.end_doubt();
        }
        self.walk();
        self.tidy();
        if self.damaged.is_some() {
            self.open(now);
        }
    }

    /// Opens the file where that is due.
    pub(super) fn open(&mut self, now: Now) {
        if self.store.as_ref().is_some_and(|(store, _)| !store.is_there()) {
            tracing::error!(
                "tickets: {}: was removed, replaced or touched while edge was running",
                self.settings.store.display()
            );
            (self.store, self.tried) = (None, None);
        }
        let waits = self.tried.is_some_and(|tried| now.running.saturating_sub(tried) < RETRY);
        if self.store.is_some() || waits {
            return;
        }
        self.tried = Some(now.running);
        match self.try_open() {
            Ok((store, secret)) => {
                if let Some(doubt) = store.doubt() {
                    self.say_doubt(doubt);
                }
                self.store = Some((store, secret));
                self.walk = Walk::Due;
                self.tell(None);
            }
            Err(error) => self.tell(Some(error)),
        }
    }

    fn try_open(&mut self) -> Result<(Store, Secret), TicketsError> {
        let file = &self.settings.store;
        if let Some(why) = &self.damaged {
            set_aside(file, why)?;
            self.damaged = None;
        }
        let secret = Secret::of(file)?;
        let memory = self.settings.memory.as_deref();
        Ok((Store::open(file, memory, &secret, self.boot.as_deref())?, secret))
    }

    /// A doubt has arisen that nothing seen before can end.
    fn say_doubt(&mut self, doubt: Doubt) {
        self.doubts += 1;
        tracing::warn!(
            "tickets: {}: {doubt}: every ticket in it is kept, new ones are written as soon as both vaults are together; \
             until then a vault that is alone gives this host's new keys no numbers",
            self.settings.store.display()
        );
    }

    /// Edge has run for so long, and perhaps the clock was moved.
    fn pass(&mut self, ran: Duration, moved: Option<Moved>) {
        self.moved = moved.or(self.moved);
        let Some((store, _)) = &mut self.store else { return };
        let mut trouble = store.pass(ran).and_then(|()| store.write_doubt()).err();
        if let Some(moved) = self.moved.take() {
            let doubt = Doubt::Clock(moved);
            trouble = store.begin_doubt(doubt).err().or(trouble);
            self.say_doubt(doubt);
            self.tell_kept();
        }
        if let Some(source) = trouble {
            self.failed(source);
        }
    }

    fn round(&mut self, asks: Vec<Ask>) {
        let Some((store, _)) = &mut self.store else {
            // Their senders hear it by the dropped answer.
            return;
        };
        let marks: Vec<(&[Sought], Life)> = asks.iter().map(|ask| (&ask.marks[..], ask.life)).collect();
        let round = store.write_down(&marks, self.settings.most);
        let Round { lives, written, known, committed, no_room, trouble } = round;
        self.metrics.count("written", written);
        self.metrics.count("known", known);
        self.metrics.commits.inc_by(u64::from(committed));
        self.say_room(no_room, committed);
        match trouble {
            None if committed => self.tell(None),
            None => {}
            Some(source) => self.failed(source),
        }
        for (ask, lives) in asks.into_iter().zip(lives) {
            // One that waited too long has gone without.
            let _gone = ask.answer.send(lives);
        }
    }

    fn end_doubt(&mut self) {
        let Some((store, _)) = self.store.as_mut().filter(|(store, _)| store.doubt().is_some()) else {
            return;
        };
        match store.end_doubt() {
            Ok(()) => {
                tracing::info!("tickets: both vaults were together; tickets are written from now on");
                self.tell(None);
            }
            Err(source) => self.failed(source),
        }
    }

    fn failed(&mut self, source: rusqlite::Error) {
        if is_damage(&source) {
            (self.store, self.tried) = (None, None);
            self.damaged = Some(format!("is damaged: {source}"));
        }
        self.tell(Some(TicketsError::Database { file: self.settings.store.clone(), source }));
    }

    /// Looks for old tickets, a little at a time.
    fn walk(&mut self) {
        let Some((store, _)) = &mut self.store else { return };
        let today = store.today();
        let from = match self.walk {
            Walk::Done(day) if day == today => return,
            Walk::Due | Walk::Done(_) => None,
            Walk::At(mark) => mark,
        };
        match store.thin_out(from, self.settings.days, STEP) {
            Ok(Some(last)) => self.walk = Walk::At(Some(last)),
            Ok(None) => {
                self.walk = Walk::Done(today);
                self.tell_kept();
            }
            Err(error) if is_damage(&error) => self.failed(error),
            Err(error) => {
                // Tomorrow again; whoever writes tickets tells what is wrong.
                tracing::debug!("tickets: looking for old ones: {error}");
                self.walk = Walk::Done(today);
            }
        }
    }

    fn tidy(&mut self) {
        let Some((store, _)) = &mut self.store else { return };
        match store.tidy() {
            Err(error) if is_damage(&error) => self.failed(error),
            // The log grows on; where that has no room, writing tickets tells.
            Err(error) => tracing::debug!("tickets: the log is not copied: {error}"),
            Ok(()) => {}
        }
    }

    /// Tells the log and the status how it is, the log only what is new.
    fn tell(&mut self, trouble: Option<TicketsError>) {
        let text = trouble.map(|error| error.to_string());
        if text != self.told {
            match &text {
                Some(text) => tracing::error!(
                    "tickets: {text}; keys go out without tickets meanwhile: a vault that is alone refuses them"
                ),
                None => tracing::info!("tickets: {}: is written again", self.settings.store.display()),
            }
            self.told = text;
        }
        self.metrics.failing.set(i64::from(self.told.is_some()));
        self.tell_kept();
    }

    fn tell_kept(&self) {
        let secret = self.store.as_ref().map(|(_, secret)| secret.clone());
        let kept = self.store.as_ref().map_or(0, |(store, _)| store.kept());
        self.metrics.kept.set(i64::try_from(kept).unwrap_or(i64::MAX));
        let doubt = self.store.as_ref().and_then(|(store, _)| store.doubt());
        self.metrics.doubted.set(i64::from(doubt.is_some()));
        let words = match (&self.told, doubt) {
            (Some(trouble), _) => format!("NOT written: {trouble}"),
            (None, Some(doubt)) => {
                format!("{kept} kept, new ones as soon as both vaults are together: {doubt}")
            }
            (None, None) if self.full => {
                format!("FULL: {kept} kept, new keys go without; raise gateway.max_tickets")
            }
            (None, None) => format!("{kept} kept, of at most {}", self.settings.most),
        };
        let doubt = doubt.map(|_| self.doubts);
        self.standing.say(Told { secret, doubt, words });
    }

    fn say_room(&mut self, no_room: usize, committed: bool) {
        if no_room > 0 && !self.full {
            self.full = true;
            tracing::error!(
                "tickets: {} are kept already; further keys go out without, and a vault that is alone refuses them; raise gateway.max_tickets or lower gateway.tickets_days",
                self.settings.most
            );
            self.tell_kept();
        } else if no_room == 0 && committed {
            self.full = false;
        }
    }
}

#[cfg(test)]
impl Writer {
    /// The files are left as a process that is killed leaves them.
    pub(super) fn kill(mut self) {
        if let Some((store, _)) = self.store.take() {
            store.kill();
        }
    }
}

/// What both clocks say.
#[expect(
    clippy::disallowed_methods,
    reason = "this thread is a corridor's: it alone decides when to try again, and what the clocks are good for"
)]
pub(super) fn now() -> Now {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    let running = BEGAN.get_or_init(Instant::now).elapsed();
    Now { wall: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default(), running }
}
