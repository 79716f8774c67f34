//! Corridor 2: log line → offence → ban → firewall. Drives the rooms and decides nothing: what an
//! offence is and who is banned are `ban`'s decisions. One thread reads every event of edge's own
//! and every followed file, and makes each ban hold in one step before it reads on.

mod active;
pub mod ban_store;
mod desk;
pub mod detector;
mod enforce;
mod engine;
mod figures;
#[cfg(test)]
mod pages;
mod protected;
mod reload;
pub mod tail;
#[cfg(test)]
mod trial;

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use prometheus::{IntCounter, Registry};

use crate::access_log::queue::{self, Sender};
use crate::access_log::{Entry, Tap};
use crate::admission::{Banned, Rates};
use crate::ban::words::{Answer, Question, Summary};
use crate::config::Bans;
use crate::firewall;
use crate::listen::live::Connections;
use crate::listen::wall_clock;
use ban_store::{BanStore, BanStoreError, Restored};
use detector::Detector;
use enforce::Enforcement;
use engine::{Engine, Flags, Questions, Schedule};
use figures::Counters;
use shared::config::Faults;
use tail::{Tail, TailError};

/// How long an operator waits for the engine.
const PATIENCE: Duration = Duration::from_secs(4);

/// Why the ban engine cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum LogWatchError {
    /// A jail or a filter.
    #[error("{0}")]
    Jails(Faults),
    /// The file of bans.
    #[error(transparent)]
    Store(#[from] BanStoreError),
    /// The files to follow.
    #[error(transparent)]
    Tail(#[from] TailError),
    /// The engine has too much to do, or has ended.
    #[error(
        "bans: the engine did not take over the new settings within 4 s; ask again with HUP, look at the log"
    )]
    Busy,
    /// Its thread.
    #[error("bans: their thread cannot be started: {0}; raise the limit of tasks")]
    Thread(#[source] std::io::Error),
}

/// Where bans hold inside edge.
#[derive(Debug, Clone)]
pub struct Places {
    /// What connections and requests are looked up in.
    pub banned: Arc<Banned>,
    /// Whose live sockets are closed.
    pub connections: Arc<Connections>,
    /// Whose exemptions penetration tests need.
    pub rates: Arc<Rates>,
}

/// The running ban engine.
pub struct LogWatch {
    events: Sender<Arc<Entry>>,
    flags: Arc<Flags>,
    questions: Arc<Questions>,
    status: Arc<Mutex<Summary>>,
    lost: IntCounter,
    /// What it was started with.
    started: Bans,
    thread: Option<JoinHandle<()>>,
}

impl LogWatch {
    /// Restores the bans that stand and starts the thread. Blocks for as long as the file of bans
    /// takes to be read.
    ///
    /// # Errors
    /// A bad filter, no file of bans, no thread.
    pub fn start(settings: Bans, places: Places, registry: &Registry) -> Result<Self, LogWatchError> {
        let started = settings.clone();
        let names: Vec<String> = settings.jails.iter().map(|jail| jail.name.clone()).collect();
        let detector =
            Detector::new(&settings.filters, settings.jails, settings.never.clone(), settings.max_bans)
                .map_err(LogWatchError::Jails)?;
        let (store, restored) = open_store(&settings.store)?;
        let (events, mut heard) = queue::bounded(settings.queue);
        let flags = Arc::new(Flags::default());
        let tail = open_tail(&detector, &restored, &events, &flags)?;
        let counters = Counters::new(registry, &names);
        let lost = counters.lost.clone();
        let status = Arc::new(Mutex::new(Summary::default()));
        let mut engine = Engine {
            detector,
            enforcement: Enforcement {
                banned: places.banned,
                connections: places.connections,
                firewall: firewall::open(&settings.firewall),
                kernel: None,
                store,
                counters,
                jails: names,
                reasons: HashMap::new(),
                in_step: false,
                owed: enforce::Owed::default(),
            },
            rates: places.rates,
            tail,
            never: settings.never.clone(),
            never_now: settings.never,
            leases: Vec::new(),
            max_bans: settings.max_bans,
            active: active::Active::default(),
            status: Arc::clone(&status),
            line: Vec::new(),
            found: Vec::new(),
            due: Vec::new(),
            looked: Schedule::default(),
        };
        engine.restore(restored);
        let questions = Arc::new(Questions::default());
        let (its_flags, its_questions) = (Arc::clone(&flags), Arc::clone(&questions));
        let thread = thread::Builder::new()
            .name("bans".to_owned())
            .spawn(move || engine.run(&mut heard, &its_flags, &its_questions))
            .map_err(LogWatchError::Thread)?;
        Ok(Self { events, flags, questions, status, lost, started, thread: Some(thread) })
    }

    /// Where the access log hands every event, whether it writes it down or not. Never waits: when
    /// the engine cannot follow, events are lost and counted.
    #[must_use]
    pub fn tap(&self) -> Tap {
        let (events, lost) = (self.events.clone(), self.lost.clone());
        Arc::new(move |entry: &Arc<Entry>| {
            if !events.send(Arc::clone(entry)) {
                lost.inc();
            }
        })
    }

    /// Answers an operator. Blocks for at most four seconds.
    #[must_use]
    pub fn asker(&self) -> Arc<dyn Fn(Question) -> Answer + Send + Sync> {
        let (events, questions) = (self.events.clone(), Arc::clone(&self.questions));
        Arc::new(move |question| ask(&events, &questions, question))
    }

    /// How it does, at most about a second old.
    #[must_use]
    pub fn summary(&self) -> Arc<dyn Fn() -> Option<Summary> + Send + Sync> {
        let status = Arc::clone(&self.status);
        Arc::new(move || Some(status.lock().unwrap_or_else(PoisonError::into_inner).clone()))
    }

    /// Has the thread ended by itself? Then nobody is banned any more, and edge must stop.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Ends the thread, after it has judged what it was handed; what is queued for the file of bans is
    /// written.
    pub fn close(mut self) {
        self.flags.stop.store(true, Ordering::Release);
        self.events.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("bans: their thread ended badly; bans that stand go on in the kernel");
        }
    }
}

fn ask(events: &Sender<Arc<Entry>>, questions: &Questions, question: Question) -> Answer {
    let refused = |why: &str| Answer::Refused { why: why.to_owned() };
    let Some(receiver) = questions.ask(question) else {
        return refused("bans: too many questions wait for an answer; ask again in a moment");
    };
    events.wake();
    receiver.recv_timeout(PATIENCE).unwrap_or_else(|_| {
        refused("bans: the engine did not answer within 4 s; it is busy or has ended, look at edge's log")
    })
}

/// A disk that is full or broken must not keep edge from serving: bans then end with edge, and what
/// the kernel holds is taken over. A mistake in the settings is the operator's to mend.
fn open_store(file: &Path) -> Result<(Option<BanStore>, Restored), BanStoreError> {
    match BanStore::open(file, wall_clock()) {
        Ok((store, restored)) => Ok((Some(store), restored)),
        Err(error) if is_of_the_disk(&error) => {
            tracing::error!("{error}; edge serves without it, restart it when the disk is well");
            Ok((None, Restored::default()))
        }
        Err(error) => Err(error),
    }
}

fn is_of_the_disk(error: &BanStoreError) -> bool {
    match error {
        BanStoreError::Create { source, .. } => {
            matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::ReadOnlyFilesystem)
        }
        BanStoreError::Database { .. } => true,
        _ => false,
    }
}

fn open_tail(
    detector: &Detector,
    restored: &Restored,
    events: &Sender<Arc<Entry>>,
    flags: &Arc<Flags>,
) -> Result<Option<Tail>, TailError> {
    if detector.watched().is_empty() {
        return Ok(None);
    }
    let tail = Tail::open(detector.watched(), &restored.positions, waker(events, flags))?;
    flags.files.store(true, Ordering::Release);
    Ok(Some(tail))
}

/// What tells the engine of changed files.
fn waker(events: &Sender<Arc<Entry>>, flags: &Arc<Flags>) -> impl Fn() + Send + Sync + 'static {
    let (events, flags) = (events.clone(), Arc::clone(flags));
    move || {
        // One word is enough for many changes.
        if !flags.files.swap(true, Ordering::AcqRel) {
            events.wake();
        }
    }
}

/// Every pattern that cannot be used, for `edge check`.
#[must_use]
pub fn faults(settings: &Bans) -> Option<Faults> {
    Detector::new(&settings.filters, settings.jails.clone(), Vec::new(), settings.max_bans).err()
}
