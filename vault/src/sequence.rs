//! Numbers: never twice, never a hole. The shell around the pure protocol: one thread owns the
//! core and the journal, takes events in, carries out what the core asks, and answers callers
//! when their entries are final. Wishes that wait while a round is under way share the next one
//! (group commit). Knows neither HTTP nor the connection to the peer: it is handed both ends.

pub mod book;
pub mod digest;
pub mod entry;
pub mod journal;
pub mod protocol;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use prometheus::{IntCounterVec, IntGauge, Opts, Registry};
use serde::{Deserialize, Serialize};
use shared::api::Number;
use shared::shutdown::Shutdown;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

use book::{Known, Refused, Round, SeriesName, Verdict, Wish};
use entry::{BATCH, Tail};
use journal::{Journal, JournalError};
use protocol::{Core, Input, Message, Nonce, Output, Reason};

/// Most wishes waiting for their round; further ones are refused as busy.
const WAITING: usize = 4096;
/// A caller hears "in doubt" after this long; the same key gets the same number later.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// A connection that has not led to a session within this time is ended and made anew.
const SESSION_DEADLINE: Duration = Duration::from_secs(10);
/// How often the thread looks at its deadlines when nothing happens.
const TICK: Duration = Duration::from_millis(500);

/// What the room needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The journal's SQLite file.
    pub journal: PathBuf,
    /// This vault's name.
    pub own: String,
    /// The ledger's owner: this vault or the other.
    pub owner: String,
}

/// Why a caller gets no number. Crosses the link when a wish was forwarded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SequenceError {
    /// The ledger's own rules say no.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The pair is not together; it passes by itself.
    #[error("numbers need both vaults: {0}; nothing was given, the same key may be tried again")]
    Apart(String),
    /// The pair is closed until an operator acts.
    #[error("numbering is closed: {0}")]
    Closed(String),
    /// It may have been given; the same key will tell.
    #[error("it is not known yet whether this was recorded on both vaults; repeat it with the same key")]
    InDoubt,
    /// Too many wait already.
    #[error("too many requests for numbers wait already")]
    Busy,
    /// The journal cannot be read.
    #[error("the journal cannot be read; the operator finds the cause in the log")]
    Unreadable,
}

impl From<Reason> for SequenceError {
    fn from(reason: Reason) -> Self {
        let text = reason.to_string();
        if reason.needs_operator() { Self::Closed(text) } else { Self::Apart(text) }
    }
}

/// A number, and whether this very call made the entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// As the ledger has it now.
    pub number: Number,
    /// `false` where an earlier call had done the same.
    pub fresh: bool,
}

/// Where the room stands, for `vault status`.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// The ledger's owner.
    pub owner: String,
    /// Are numbers given now?
    pub together: bool,
    /// Why not.
    pub reason: Option<String>,
    /// Does that need an operator?
    pub needs_operator: bool,
    /// Entries in this vault's journal.
    pub entries: u64,
    /// Entries known to be in both.
    pub final_entries: u64,
    /// Hash of the last entry.
    pub last_hash: String,
    /// The epoch.
    pub epoch: u64,
    /// This process's life, hex.
    pub life: String,
}

/// Forwards a wish to the owner vault: JSON of [`Forwarded`] there, JSON of the outcome back.
/// `Err(true)` means the owner may have acted, `Err(false)` that it surely has not.
pub type Forward = Arc<dyn Fn(Bytes) -> BoxFuture<'static, Result<Bytes, bool>> + Send + Sync>;

/// A wish on its way to the owner vault.
#[derive(Debug, Serialize, Deserialize)]
struct Forwarded {
    name: SeriesName,
    wish: Wish,
}

/// Says something to the peer in order; `false` when nobody hears it.
pub type Tell = Box<dyn Fn(Bytes) -> bool + Send>;
/// Ends the connection to the peer.
pub type HangUp = Box<dyn Fn() + Send>;

/// What the thread takes in.
enum Work {
    Up,
    Down,
    Told(Bytes),
    Wish(Waiting),
}

struct Waiting {
    name: SeriesName,
    wish: Wish,
    answer: oneshot::Sender<Result<Done, SequenceError>>,
}

/// The front door; cheap to clone.
#[derive(Clone)]
pub struct Sequence {
    work: mpsc::Sender<Work>,
    reader: Arc<Mutex<Journal>>,
    seen: Arc<Mutex<Seen>>,
    owns: bool,
    forward: Forward,
}

/// What the thread shows the outside after each step.
#[derive(Debug, Clone)]
struct Seen {
    owner: String,
    life: Nonce,
    refusal: Option<Reason>,
    tail: Tail,
    final_index: u64,
    epoch: u64,
}

struct Metrics {
    entries: IntCounterVec,
    together: IntGauge,
}

impl Metrics {
    fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let entries = IntCounterVec::new(
            Opts::new("vault_ledger_entries_total", "Entries made final by this vault as owner, by act"),
            &["act"],
        )?;
        let together = IntGauge::new(
            "vault_sequence_together",
            "1 while both vaults are together and numbers are given",
        )?;
        registry.register(Box::new(entries.clone()))?;
        registry.register(Box::new(together.clone()))?;
        Ok(Self { entries, together })
    }
}

/// Why the room cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The system gives no random numbers.
    #[error("no randomness for this life's name: {0}")]
    Random(#[from] getrandom::Error),
    /// A metric's name is taken.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// No thread.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// The connection's events, to be fed by whoever holds the link.
#[derive(Clone)]
pub struct Events(mpsc::Sender<Work>);

impl Events {
    /// A connection stands.
    pub async fn up(&self) {
        self.send(Work::Up).await;
    }
    /// It is gone.
    pub async fn down(&self) {
        self.send(Work::Down).await;
    }
    /// The peer told this.
    pub async fn told(&self, body: Bytes) {
        self.send(Work::Told(body)).await;
    }
    async fn send(&self, work: Work) {
        // The thread ends with the program only.
        let _ended = self.0.send(work).await;
    }
}

impl Sequence {
    /// Opens the journal and starts the thread; call inside a runtime.
    ///
    /// # Errors
    /// The journal, randomness, or the thread.
    pub fn start(
        settings: &Settings,
        registry: &Registry,
        tell: Tell,
        hang_up: HangUp,
        forward: Forward,
        shutdown: Shutdown,
    ) -> Result<(Self, Events), StartError> {
        let journal = Journal::open(&settings.journal, nonce()?)?;
        let reader = Arc::new(Mutex::new(Journal::open_to_read(&settings.journal)?));
        let (memory, tail, life) = (journal.memory()?, journal.tail()?, nonce()?);
        let core = Core::new(&settings.own, &settings.owner, life, memory, tail);
        let seen = Arc::new(Mutex::new(Seen {
            owner: settings.owner.clone(),
            life,
            refusal: core.refusal(),
            tail,
            final_index: core.final_index(),
            epoch: core.epoch(),
        }));
        let (work, queue) = mpsc::channel(WAITING);
        let thread = Thread {
            core,
            journal,
            queue,
            waiting: VecDeque::new(),
            under_way: Vec::new(),
            session_due: None,
            seen: Arc::clone(&seen),
            metrics: Metrics::new(registry)?,
            tell,
            hang_up,
        };
        let runtime = tokio::runtime::Handle::current();
        std::thread::Builder::new()
            .name("sequence".to_owned())
            .spawn(move || runtime.block_on(thread.run(shutdown)))?;
        let owns = settings.own == settings.owner;
        Ok((Self { work: work.clone(), reader, seen, owns, forward }, Events(work)))
    }

    /// A number for this key; the same key gets the same number for ever.
    ///
    /// # Errors
    /// See [`SequenceError`].
    pub async fn reserve(&self, name: SeriesName, key: String) -> Result<Done, SequenceError> {
        self.wish(name, Wish::Reserve { key }).await
    }

    /// This document uses the number.
    ///
    /// # Errors
    /// See [`SequenceError`].
    pub async fn confirm(
        &self,
        name: SeriesName,
        number: u64,
        document_hash: String,
    ) -> Result<Done, SequenceError> {
        self.wish(name, Wish::Confirm { number, document_hash }).await
    }

    /// The number is spoiled.
    ///
    /// # Errors
    /// See [`SequenceError`].
    pub async fn void(&self, name: SeriesName, number: u64, reason: String) -> Result<Done, SequenceError> {
        self.wish(name, Wish::Void { number, reason }).await
    }

    /// What became of a number.
    ///
    /// # Errors
    /// [`SequenceError::InDoubt`] where its last entry is not known to be on both vaults.
    pub async fn by_number(&self, name: SeriesName, number: u64) -> Result<Option<Number>, SequenceError> {
        let known = self.read(move |journal| journal.by_number(&name, number)).await?;
        self.only_final(known)
    }

    /// The number that a key got.
    ///
    /// # Errors
    /// As [`Sequence::by_number`].
    pub async fn by_key(&self, name: SeriesName, key: String) -> Result<Option<Number>, SequenceError> {
        let known = self.read(move |journal| journal.by_key(&name, &key)).await?;
        self.only_final(known)
    }

    /// A page of the series' numbers above `after`, as far as they are on both vaults.
    ///
    /// # Errors
    /// As [`Sequence::by_number`].
    pub async fn list(
        &self,
        name: SeriesName,
        after: u64,
        limit: usize,
    ) -> Result<Vec<Number>, SequenceError> {
        let known = self.read(move |journal| journal.numbers(&name, after, limit)).await?;
        known.into_iter().map(|known| self.only_final(Some(known))).filter_map(Result::transpose).collect()
    }

    /// The answer to the other vault's [`Forward`]: JSON in, JSON out.
    ///
    /// # Errors
    /// The question is no JSON of ours; text for the log.
    pub async fn forwarded(&self, body: Bytes) -> Result<Bytes, String> {
        let Forwarded { name, wish } = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
        let outcome = if self.owns {
            self.enter(name, wish).await
        } else {
            Err(SequenceError::from(Reason::OtherOwner))
        };
        serde_json::to_vec(&outcome).map(Bytes::from).map_err(|error| error.to_string())
    }

    /// Where the room stands.
    #[must_use]
    pub fn status(&self) -> Status {
        let seen = self.seen();
        Status {
            owner: seen.owner,
            together: seen.refusal.is_none(),
            reason: seen.refusal.map(|reason| reason.to_string()),
            needs_operator: seen.refusal.is_some_and(Reason::needs_operator),
            entries: seen.tail.index,
            final_entries: seen.final_index,
            last_hash: seen.tail.hash.to_string(),
            epoch: seen.epoch,
            life: format!("{:032x}", seen.life),
        }
    }

    async fn wish(&self, name: SeriesName, wish: Wish) -> Result<Done, SequenceError> {
        if self.owns {
            return self.enter(name, wish).await;
        }
        // What both vaults have already, this one may answer even alone.
        if let Wish::Reserve { key } = &wish {
            let (name, key) = (name.clone(), key.clone());
            let known = self.read(move |journal| journal.by_key(&name, &key)).await?;
            if let Ok(Some(number)) = self.only_final(known) {
                return Ok(Done { number, fresh: false });
            }
        }
        if let Some(reason) = self.seen().refusal {
            return Err(reason.into());
        }
        let body = serde_json::to_vec(&Forwarded { name, wish }).map_err(|_| SequenceError::Unreadable)?;
        match (self.forward)(Bytes::from(body)).await {
            Ok(outcome) => serde_json::from_slice(&outcome).unwrap_or(Err(SequenceError::InDoubt)),
            Err(true) => Err(SequenceError::InDoubt),
            Err(false) => Err(Reason::Away.into()),
        }
    }

    async fn enter(&self, name: SeriesName, wish: Wish) -> Result<Done, SequenceError> {
        let (answer, answered) = oneshot::channel();
        self.work.try_send(Work::Wish(Waiting { name, wish, answer })).map_err(|_| SequenceError::Busy)?;
        match timeout(ANSWER_DEADLINE, answered).await {
            Ok(Ok(outcome)) => outcome,
            // Late, or the thread has ended: the entry may stand all the same.
            Ok(Err(_)) | Err(_) => Err(SequenceError::InDoubt),
        }
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Journal) -> Result<T, JournalError> + Send + 'static,
    ) -> Result<T, SequenceError> {
        let reader = Arc::clone(&self.reader);
        let read =
            tokio::task::spawn_blocking(move || read(&reader.lock().unwrap_or_else(PoisonError::into_inner)));
        match read.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                tracing::error!("sequence: reading: {error}");
                Err(SequenceError::Unreadable)
            }
            Err(_) => Err(SequenceError::Unreadable),
        }
    }

    /// Lets out what is final. Whatever was answered anywhere is durable in both journals, so
    /// this journal has it, unless the journal itself is not the one it was.
    fn only_final(&self, known: Option<Known>) -> Result<Option<Number>, SequenceError> {
        let seen = self.seen();
        match known {
            Some(known) if known.index <= seen.final_index => Ok(Some(known.number)),
            Some(_) => Err(SequenceError::InDoubt),
            None => match seen.refusal {
                Some(reason) if reason.needs_operator() => Err(reason.into()),
                _ => Ok(None),
            },
        }
    }

    fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The thread's own state.
struct Thread {
    core: Core,
    journal: Journal,
    queue: mpsc::Receiver<Work>,
    waiting: VecDeque<Waiting>,
    under_way: Vec<Waiting>,
    session_due: Option<Instant>,
    seen: Arc<Mutex<Seen>>,
    metrics: Metrics,
    tell: Tell,
    hang_up: HangUp,
}

impl Thread {
    async fn run(mut self, shutdown: Shutdown) {
        loop {
            let work = tokio::select! {
                () = shutdown.cancelled() => return,
                work = timeout(TICK, self.queue.recv()) => work,
            };
            match work {
                Ok(Some(work)) => self.take(work),
                Ok(None) => return,
                Err(_) => {}
            }
            while self.waiting.len() < WAITING
                && let Ok(work) = self.queue.try_recv()
            {
                self.take(work);
            }
            self.rounds();
            self.watch_session();
        }
    }

    fn take(&mut self, work: Work) {
        match work {
            Work::Up => match nonce() {
                Ok(nonce) => {
                    self.session_due = Some(Instant::now() + SESSION_DEADLINE);
                    self.feed(Input::Connected(nonce));
                }
                Err(error) => {
                    tracing::error!("sequence: no randomness for a session: {error}; no session");
                    (self.hang_up)();
                }
            },
            Work::Down => {
                self.session_due = None;
                self.feed(Input::Disconnected);
            }
            Work::Told(body) => match serde_json::from_slice::<Message>(&body) {
                Ok(message) => self.feed(Input::Received(message)),
                Err(error) => {
                    tracing::error!(
                        "sequence: the other vault says what this one does not understand: {error}; are both of one version?"
                    );
                    (self.hang_up)();
                }
            },
            Work::Wish(waiting) => self.waiting.push_back(waiting),
        }
    }

    /// Steps the core until it asks for nothing more.
    fn feed(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            for output in self.core.step(input) {
                if let Some(next) = self.carry_out(output) {
                    inputs.push_back(next);
                }
            }
        }
        self.show();
    }

    fn carry_out(&mut self, output: Output) -> Option<Input> {
        match output {
            Output::Send(message) => {
                match serde_json::to_vec(&message) {
                    // An unheard message ends the connection, and Down follows.
                    Ok(body) => drop((self.tell)(Bytes::from(body))),
                    Err(error) => tracing::error!("sequence: a message cannot be written: {error}"),
                }
                None
            }
            Output::Write(entries, memory) => Some(match self.journal.write(&entries, memory) {
                Ok(()) => Input::Written,
                Err(error) => {
                    tracing::error!("sequence: {error}; numbering waits until the journal can be written");
                    Input::WriteFailed
                }
            }),
            Output::Load(after) => match self.journal.entries(after) {
                Ok(entries) => Some(Input::Loaded(after, entries)),
                Err(error) => {
                    tracing::error!("sequence: {error}; comparing journals again later");
                    (self.hang_up)();
                    None
                }
            },
            Output::Final => {
                self.conclude();
                None
            }
            Output::InDoubt => {
                for waiting in self.under_way.drain(..) {
                    answer(waiting, Err(SequenceError::InDoubt));
                }
                None
            }
            Output::HangUp => {
                (self.hang_up)();
                None
            }
        }
    }

    /// The round is final: everybody in it hears what the ledger says now.
    fn conclude(&mut self) {
        for waiting in std::mem::take(&mut self.under_way) {
            let outcome = match self.journal.context(&waiting.name, &waiting.wish) {
                Ok(context) => context
                    .known
                    .map(|known| Done { number: known.number, fresh: true })
                    .ok_or(SequenceError::InDoubt),
                Err(error) => {
                    tracing::error!("sequence: {error}");
                    Err(SequenceError::Unreadable)
                }
            };
            let act = match waiting.wish {
                Wish::Reserve { .. } => "reserve",
                Wish::Confirm { .. } => "confirm",
                Wish::Void { .. } => "void",
            };
            self.metrics.entries.with_label_values(&[act]).inc();
            answer(waiting, outcome);
        }
    }

    /// Proposes what waits, round after round, as long as rounds end at once.
    fn rounds(&mut self) {
        while !self.waiting.is_empty() {
            let may_propose = self.core.may_propose();
            if !may_propose && self.core.refusal().is_none() {
                // A round is under way; what waits shares the next one.
                return;
            }
            if !self.round(may_propose) {
                return;
            }
        }
    }

    /// Decides up to [`BATCH`] waiting wishes. `false` when a round is under way now.
    fn round(&mut self, may_propose: bool) -> bool {
        let mut round = Round::default();
        let mut drafts = Vec::new();
        let mut later = VecDeque::new();
        let at = label();
        while drafts.len() < BATCH
            && let Some(waiting) = self.waiting.pop_front()
        {
            if waiting.answer.is_closed() {
                continue;
            }
            let context = match self.journal.context(&waiting.name, &waiting.wish) {
                Ok(context) => context,
                Err(error) => {
                    tracing::error!("sequence: {error}");
                    answer(waiting, Err(SequenceError::Unreadable));
                    continue;
                }
            };
            match round.decide(&waiting.name, &waiting.wish, context, at) {
                Verdict::Answer(known) if known.index > self.core.final_index() => {
                    answer(waiting, Err(SequenceError::InDoubt));
                }
                Verdict::Answer(known) => answer(waiting, Ok(Done { number: known.number, fresh: false })),
                Verdict::Refuse(refused) => answer(waiting, Err(refused.into())),
                Verdict::Make(draft) if may_propose => {
                    drafts.push(draft);
                    self.under_way.push(waiting);
                }
                Verdict::Make(_) => {
                    let reason = self.core.refusal().unwrap_or(Reason::Syncing);
                    answer(waiting, Err(reason.into()));
                }
                Verdict::Wait => later.push_back(waiting),
            }
        }
        later.append(&mut self.waiting);
        self.waiting = later;
        if drafts.is_empty() {
            return true;
        }
        self.feed(Input::Propose(drafts));
        self.core.may_propose()
    }

    /// A connection that leads to no session is ended, so that it can be made anew.
    fn watch_session(&mut self) {
        if self.core.refusal().is_none() {
            self.session_due = None;
        } else if self.session_due.is_some_and(|due| Instant::now() >= due) {
            self.session_due = None;
            tracing::warn!("sequence: no session within {SESSION_DEADLINE:?}; connecting again");
            (self.hang_up)();
        }
    }

    /// Shows the outside where things stand, and tells the log when that changes.
    fn show(&mut self) {
        let refusal = self.core.refusal();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.refusal != refusal {
            match refusal {
                None => tracing::info!("sequence: both vaults are together; numbers are given"),
                Some(Reason::Syncing) => tracing::debug!("sequence: comparing journals"),
                Some(reason) if reason.needs_operator() => {
                    tracing::error!("sequence: numbering is closed: {reason}");
                }
                Some(reason) => tracing::warn!("sequence: no new numbers: {reason}"),
            }
        }
        seen.refusal = refusal;
        seen.tail = self.core.tail();
        seen.final_index = self.core.final_index();
        seen.epoch = self.core.epoch();
        self.metrics.together.set(i64::from(refusal.is_none()));
    }
}

fn answer(waiting: Waiting, outcome: Result<Done, SequenceError>) {
    // A caller that has gone repeats its key and hears the same.
    let _gone = waiting.answer.send(outcome);
}

fn nonce() -> Result<Nonce, getrandom::Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    Ok(Nonce::from_be_bytes(bytes))
}

/// The entries' time label, milliseconds since 1970.
#[expect(clippy::disallowed_methods, reason = "a label for auditors; nothing is decided by it")]
fn label() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
