//! The thread between handlers and the tickets' file: whoever waits while a commit is under way
//! shares the next one. Knows days and retries; must not know keys or requests.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime};

use shared::api::client::Life;
use tokio::sync::oneshot;

use super::secret::Secret;
use super::store::{Round, Store, is_damage};
use super::{Mark, Metrics, Settings, Standing, TicketsError};

/// Most keys of one transaction; one batch is not split.
const ROUND: usize = 20_000;
/// A file that cannot be opened is tried again so often.
const RETRY: Duration = Duration::from_secs(5);
/// Tickets looked at in one step for old ones.
const STEP: u32 = 1000;
/// Between two steps when nothing else is to be done.
const PAUSE: Duration = Duration::from_millis(100);
/// How often it is looked whether a new day has begun.
const IDLE: Duration = Duration::from_secs(60);

pub(super) enum Work {
    Ask(Ask),
    /// Both vaults have given a number together.
    BothGave,
}

/// Marks that go to a life, unless an earlier one is known.
pub(super) struct Ask {
    pub(super) marks: Vec<Mark>,
    pub(super) life: Life,
    pub(super) answer: oneshot::Sender<Vec<Option<Life>>>,
}

pub(super) struct Writer {
    settings: Settings,
    work: Receiver<Work>,
    standing: Standing,
    metrics: Metrics,
    store: Option<(Store, Secret)>,
    tried: Option<Instant>,
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
    pub(super) fn new(
        settings: Settings,
        work: Receiver<Work>,
        standing: Standing,
        metrics: Metrics,
    ) -> Self {
        let (store, tried, told, full, walk) = (None, None, None, false, Walk::Due);
        Self { settings, work, standing, metrics, store, tried, told, full, walk }
    }

    pub(super) fn run(mut self) {
        loop {
            let wait = match (&self.store, &self.walk) {
                (None, _) => RETRY,
                (Some(_), Walk::Due | Walk::At(_)) => PAUSE,
                (Some(_), Walk::Done(_)) => IDLE,
            };
            let mut next = match self.work.recv_timeout(wait) {
                Ok(work) => Some(work),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let (mut asks, mut keys, mut both_gave) = (Vec::new(), 0, false);
            while let Some(work) = next {
                match work {
                    Work::Ask(ask) => {
                        keys += ask.marks.len();
                        asks.push(ask);
                    }
                    Work::BothGave => both_gave = true,
                }
                next = if keys < ROUND { self.work.try_recv().ok() } else { None };
            }
            self.open();
            if !asks.is_empty() {
                self.round(asks);
            }
            if both_gave {
                self.note_both_gave();
            }
            self.walk();
        }
    }

    /// Opens the file where that is due.
    pub(super) fn open(&mut self) {
        if self.store.as_ref().is_some_and(|(store, _)| !store.is_there()) {
            tracing::error!("tickets: {}: was removed; a fresh one is begun", self.settings.store.display());
            (self.store, self.tried) = (None, None);
        }
        if self.store.is_some() || self.tried.is_some_and(|tried| tried.elapsed() < RETRY) {
            return;
        }
        self.tried = Some(now());
        let file = &self.settings.store;
        let opened = Secret::of(file).and_then(|secret| Ok((Store::open(file, &secret)?, secret)));
        match opened {
            Ok((store, secret)) => {
                if !store.both_gave() {
                    tracing::info!(
                        "tickets: {}: is new; tickets are written from the first number on that both vaults give",
                        file.display()
                    );
                }
                self.store = Some((store, secret));
                self.walk = Walk::Due;
                self.tell(None);
            }
            Err(error) => self.tell(Some(error)),
        }
    }

    fn round(&mut self, asks: Vec<Ask>) {
        let Some((store, _)) = &mut self.store else {
            // Their senders hear it by the dropped answer.
            return;
        };
        let marks: Vec<(&[Mark], Life)> = asks.iter().map(|ask| (&ask.marks[..], ask.life)).collect();
        let round = store.write_down(&marks, today(), self.settings.most);
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

    fn note_both_gave(&mut self) {
        let Some((store, _)) = self.store.as_mut().filter(|(store, _)| !store.both_gave()) else { return };
        match store.note_both_gave() {
            Ok(()) => {
                tracing::info!("tickets: both vaults gave a number; tickets are written from now on");
                self.tell(None);
            }
            Err(source) => self.failed(source),
        }
    }

    fn failed(&mut self, source: rusqlite::Error) {
        if is_damage(&source) {
            // Opening it anew sets it aside.
            (self.store, self.tried) = (None, None);
        }
        self.tell(Some(TicketsError::Database { file: self.settings.store.clone(), source }));
    }

    /// Looks for old tickets, a little at a time.
    fn walk(&mut self) {
        let Some((store, _)) = &mut self.store else { return };
        let today = today();
        let from = match self.walk {
            Walk::Done(day) if day == today => return,
            Walk::Due | Walk::Done(_) => None,
            Walk::At(mark) => mark,
        };
        match store.thin_out(from, today.saturating_sub(self.settings.days), STEP) {
            Ok(Some(last)) => self.walk = Walk::At(Some(last)),
            Ok(None) => {
                self.walk = Walk::Done(today);
                self.tell_kept();
            }
            Err(error) => {
                // Tomorrow again; whoever writes tickets tells what is wrong.
                tracing::debug!("tickets: looking for old ones: {error}");
                self.walk = Walk::Done(today);
            }
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
        let words = match (&self.told, &self.store) {
            (Some(trouble), _) => format!("NOT written: {trouble}"),
            (None, Some((store, _))) if !store.both_gave() => {
                "new: written from the first number on that both vaults give".to_owned()
            }
            (None, _) if self.full => {
                format!("FULL: {kept} kept, new keys go without; raise gateway.max_tickets")
            }
            (None, _) => format!("{kept} kept, of at most {}", self.settings.most),
        };
        self.standing.say(secret, words);
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

/// Days since 1970.
#[expect(clippy::disallowed_methods, reason = "the day on which a ticket is forgotten needs no other clock")]
fn today() -> u32 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u32::try_from(since.as_secs() / 86_400).unwrap_or(u32::MAX)
}

#[expect(
    clippy::disallowed_methods,
    reason = "this thread is a corridor's: it alone decides when to try again"
)]
fn now() -> Instant {
    Instant::now()
}
