//! Numbers: never twice, never a hole. The front door: wishes go to the coordinator's thread (at
//! the ledger's owner) or to the other vault, and what both vaults have may be read at either.
//! Knows neither HTTP nor the connection to the peer: it is handed both ends.

pub mod alone;
mod apart;
pub mod audit;
pub mod book;
pub mod carry;
pub mod chores;
mod coordinator;
pub mod database;
pub mod definition;
pub mod digest;
pub mod entry;
pub mod export;
mod fault;
pub mod journal;
mod keeper;
pub mod message;
mod mirror;
pub mod proof;
pub mod protocol;
pub mod quorum;
mod readers;
pub mod reading;
pub mod reason;
pub mod record;
pub mod run_folder;
pub mod standing;
mod starting;
pub mod token;
pub mod witness;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use prometheus::Registry;
use serde::{Deserialize, Serialize};
use shared::api::Number;
use shared::shutdown::Shutdown;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};

use alone::Alone;
use apart::GoesOn;
pub use apart::{Apart, TokenOver};
use book::{SeriesName, Wish};
use chores::Chores;
use coordinator::{Coordinator, Metrics, Seen, Silence, WAITING, Waiting, Work};
use database::Role;
use database::operator::{Brief, Database};
use definition::Definition;
use entry::Life;
pub use fault::SequenceError;
use journal::{Dropped, Journal};
use keeper::Keeper;
use mirror::{Found, Mirror};
use protocol::{Core, Memory, Nonce, Reason};
use quorum::Ready;
use readers::Readers;
use record::desk::Desk;
use record::front::Question;
use run_folder::NoRunFolder;
pub use starting::{StartError, fits};
use token::Token;

/// A caller hears "in doubt" after this long; the same key gets the same number later.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// So long the program waits for the journal's last write.
const END_DEADLINE: Duration = Duration::from_secs(10);

/// So many wishes of one caller wait at once: single callers share its rounds.
const CHUNK: usize = 256;

/// A batch enters nothing more after this long; the rest may be sent again.
const BATCH_DEADLINE: Duration = Duration::from_secs(20);

/// How often the forgotten reservations are counted.
const COUNT_EXPIRED: Duration = Duration::from_secs(30);

/// Where it is not given, but confirmed or void.
const CHANGED: &str = "such a number is changed";

/// What the room needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The journal's SQLite file.
    pub journal: PathBuf,
    /// This vault's name.
    pub own: String,
    /// The other vault's.
    pub peer: String,
    /// The ledger's first owner: this vault or the other. After a take-over the journal says who
    /// is.
    pub owner: String,
    /// A folder in memory that outlives the process, or why there is none.
    pub run: Result<PathBuf, NoRunFolder>,
    /// Where a copy of the ledger is kept beside the journals, if anywhere.
    pub database: Option<database::Settings>,
}

/// A number, and whether this very call made the entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// As the ledger has it now.
    pub number: Number,
    /// `false` where an earlier call had done the same.
    pub fresh: bool,
}

/// What a wish came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// What became of a number.
    Number(Done),
    /// What is said of a series from now on.
    Defined(Definition),
}

impl Outcome {
    fn number(self) -> Result<Done, SequenceError> {
        match self {
            Self::Number(done) => Ok(done),
            Self::Defined(_) => Err(SequenceError::InDoubt),
        }
    }
}

/// Where the room stands, for `vault status`.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// The ledger's owner: a vault, or etcd where that is the ledger.
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
    /// The vaults for which a token holds.
    pub tokens: Vec<String>,
    /// Tokens made last for a vault, that hold no more. Only in [`Sequence::status_in_full`].
    pub tokens_over: Vec<TokenOver>,
    /// What goes on while the two vaults are apart. Only in [`Sequence::status_in_full`].
    pub apart: Option<Apart>,
    /// Why numbers of available series are unaccounted once this vault is killed. Only in
    /// [`Sequence::status_in_full`].
    pub unproven: Option<String>,
    /// Writes of records that this vault answered alone, that gave way to the other vault's, and that
    /// no operator has looked at yet.
    pub dropped: u64,
    /// The copy in a database, if there is one.
    pub database: Option<Brief>,
}

/// Forwards wishes to the owner vault: JSON of [`Forwarded`] there, JSON of the outcomes back.
pub type Forward = Arc<dyn Fn(Bytes) -> BoxFuture<'static, Result<Bytes, Unheard>> + Send + Sync>;

/// Why no outcomes came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unheard {
    /// The owner was not reached, and has surely not acted.
    Away,
    /// It may have acted.
    Unknown,
    /// As that; its connection stands, and its answer did not come in time.
    Late,
}

/// So many late answers in a row, and the owner counts as silent: one may have been too much to ask.
const LATE: u32 = 2;

/// Wishes on their way to the owner vault.
#[derive(Debug, Serialize, Deserialize)]
struct Forwarded {
    name: SeriesName,
    wishes: Vec<Wish>,
}

/// Says something to the peer in order; `false` when nobody hears it.
pub type Tell = Box<dyn Fn(Bytes) -> bool + Send>;
/// Ends the connection to the peer.
pub type HangUp = Box<dyn Fn() + Send>;

/// The front door; cheap to clone.
#[derive(Clone)]
pub struct Sequence {
    work: mpsc::Sender<Work>,
    readers: Readers,
    seen: watch::Receiver<Seen>,
    names: [String; 2],
    forward: Forward,
    /// Answers of the owner that came late, in a row.
    late: Arc<AtomicU32>,
    database: Option<Database>,
    /// Where etcd is the ledger: what this vault tells the other of itself.
    ready: Option<watch::Receiver<Ready>>,
    /// Why this vault, once it is killed, cannot prove what it gave alone.
    no_run_folder: Option<NoRunFolder>,
}

/// The connection's events, to be fed by whoever holds the link.
#[derive(Clone)]
pub struct Events(mpsc::Sender<Work>);

impl Events {
    /// A connection stands.
    pub async fn up(&self) {
        self.send(Work::Up).await;
    }
    /// It is gone; `noted` is dropped once the room acts on it.
    pub async fn down(&self, noted: oneshot::Sender<()>) {
        self.send(Work::Down(noted)).await;
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
        let mut journal = Journal::open(&settings.journal, nonce()?)?;
        let readers = Readers::beside(&journal)?;
        let (memory, tail, life) = (journal.memory()?, journal.tail()?, nonce()?);
        // Until somebody takes over, the configuration says who the owner is.
        let owns = if memory.epoch == 1 { settings.own == settings.owner } else { memory.owns };
        let memory = Memory { owns, ..memory };
        let last = journal.used_by()?;
        let met = last.is_some_and(|last| journal.standing().life(last).is_some());
        let found = Found { journal: memory.journal, rows: memory.solo, last, met };
        let mirror = settings.run.as_ref().ok().map(|run| run.join("sequence.mirror"));
        let ended = settings.journal.with_extension("ended");
        let (mut mirror, proven) = Mirror::open(mirror, ended, found, life);
        let witness_file = witness::beside(&settings.journal);
        let witnessed = witness::read(&witness_file)?;
        if let Some(database) = settings.database.clone().filter(|database| database.role == Role::Truth) {
            let found = quorum::Found { journal, readers, life, proven, witnessed };
            return quorum::start(settings, database, found, forward, registry, shutdown);
        }
        if let Err(none) = &settings.run {
            tracing::warn!("sequence: {none}");
        }
        fits(&settings.journal, settings.database.as_ref())?;
        let core = Core::new(life, proven, memory, tail).witnessed(witnessed);
        let sealed = journal.standing().sealed(&settings.own);
        let used = match sealed {
            Some(sealed) if journal.gave_in(sealed)? => Some(sealed),
            _ => None,
        };
        let (shown, seen) = watch::channel(Seen {
            life,
            leads: core.leads(),
            refusal: core.refusal(),
            why: None,
            tail,
            final_index: core.final_index(),
            entered_index: core.entered_index(),
            complete: core.is_complete(),
            epoch: core.epoch(),
            sealed: [&settings.own, &settings.peer]
                .map(|name| journal.standing().sealed(name).filter(|life| used != Some(*life))),
            apart: GoesOn::of(&core, used),
            definitions: journal.standing().shown_definitions(),
            dropped: journal.dropped_unseen()?,
        });
        let (database, replies) = match settings.database.clone() {
            Some(database) => {
                let (journal, shutdown) = (&settings.journal, shutdown.clone());
                let (database, replies) =
                    Database::start(database, &settings.peer, journal, seen.clone(), registry, shutdown)?;
                (Some(database), replies)
            }
            None => Default::default(),
        };
        let (work, queue) = mpsc::channel(WAITING);
        let metrics = Metrics::new(registry)?;
        let expired = metrics.expired.clone();
        let witness = Keeper::start(witness_file, witnessed)?;
        // A life that cannot begin leaves no trace.
        match journal.begin(life)? {
            None => mirror.begin(),
            Some(full) => tracing::error!(
                "sequence: {full}; no number is given before its disk has room again: it is tried again every 10 s"
            ),
        }
        let coordinator = Coordinator {
            core,
            journal,
            names: [settings.own.clone(), settings.peer.clone()],
            alone: Alone::default(),
            mirror,
            chores: Chores::default(),
            settling: false,
            seal: None,
            used,
            queue,
            waiting: VecDeque::new(),
            under_way: Vec::new(),
            looked_at: 0,
            company: 0,
            made: Vec::new(),
            records: Desk::default(),
            silence: Silence::default(),
            disk_due: None,
            witness,
            said: Some(Reason::Away),
            seen: shown,
            metrics,
            replies,
            tell,
            hang_up,
        };
        let runtime = tokio::runtime::Handle::current();
        std::thread::Builder::new().name("sequence".to_owned()).spawn({
            let shutdown = shutdown.clone();
            move || runtime.block_on(coordinator.run(shutdown))
        })?;
        let names = [settings.own.clone(), settings.peer.clone()];
        let (late, no_run_folder) = (Arc::default(), settings.run.clone().err());
        let (ready, to_it) = (None, work.clone());
        let sequence =
            Self { work: to_it, readers, seen, names, forward, late, database, ready, no_run_folder };
        tokio::spawn(sequence.clone().count_expired(expired, shutdown));
        Ok((sequence, Events(work)))
    }

    /// The door to the ledger's copy in a database, if there is one.
    #[must_use]
    pub fn database(&self) -> Option<&Database> {
        self.database.as_ref()
    }

    /// This process's life, which tickets name.
    #[must_use]
    pub fn life(&self) -> Life {
        self.seen().life
    }

    /// A number for this key; the same key gets the same number for ever. `ticket` is the life of
    /// the vault that the key was first sent to.
    ///
    /// # Errors
    /// See [`SequenceError`].
    pub async fn reserve(
        &self,
        name: SeriesName,
        key: String,
        ticket: Option<Life>,
    ) -> Result<Done, SequenceError> {
        let mut done = self.number(name.clone(), Wish::Reserve { key, ticket }).await?;
        if !done.fresh {
            self.flag(&name, &mut done.number).await?;
        }
        Ok(done)
    }

    /// As [`Sequence::reserve`] for each of many keys, in their order. What is refused as busy or
    /// in doubt may be sent again.
    pub async fn reserve_all(
        &self,
        name: &SeriesName,
        keys: Vec<(String, Option<Life>)>,
    ) -> Vec<Result<Done, SequenceError>> {
        let deadline = Instant::now() + BATCH_DEADLINE;
        let mut outcomes = Vec::with_capacity(keys.len());
        let mut keys = keys.into_iter().peekable();
        while keys.peek().is_some() {
            let wish = |(key, ticket)| Wish::Reserve { key, ticket };
            let wishes: Vec<Wish> = keys.by_ref().take(CHUNK).map(wish).collect();
            if Instant::now() >= deadline {
                outcomes.extend(wishes.iter().map(|_| Err(SequenceError::Busy)));
                continue;
            }
            let answered = self.wishes(name.clone(), wishes).await;
            outcomes.extend(answered.into_iter().map(|outcome| outcome.and_then(Outcome::number)));
        }
        outcomes
    }

    /// An operator says this of a series and all its periods.
    ///
    /// # Errors
    /// See [`SequenceError`].
    pub async fn define(
        &self,
        name: SeriesName,
        definition: Definition,
    ) -> Result<Definition, SequenceError> {
        definition.check()?;
        match self.wish(name, Wish::Define(definition)).await {
            Ok(Outcome::Defined(definition)) => Ok(definition),
            Ok(Outcome::Number(_)) | Err(SequenceError::InDoubt) => Err(SequenceError::DefinitionInDoubt),
            Err(error) => Err(error.of_a_change("a series is defined")),
        }
    }

    /// The sender of `key` never heard its number, and takes the key `by` instead: from now on
    /// `key` has none that counts.
    ///
    /// # Errors
    /// [`Refused::HasNumber`](book::Refused::HasNumber) where there is no doubt; else see [`SequenceError`].
    pub async fn supersede(&self, name: SeriesName, key: String, by: String) -> Result<(), SequenceError> {
        self.wish(name, Wish::Supersede { key, by }).await.map(drop)
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
        let done = self.number(name, Wish::Confirm { number, document_hash }).await;
        done.map_err(|error| error.of_a_change(CHANGED))
    }

    /// The number is spoiled.
    ///
    /// # Errors
    /// See [`SequenceError`].
    pub async fn void(&self, name: SeriesName, number: u64, reason: String) -> Result<Done, SequenceError> {
        let done = self.number(name, Wish::Void { number, reason }).await;
        done.map_err(|error| error.of_a_change(CHANGED))
    }

    /// Takes the other vault's empty journal for its new one; the word of an operator who knows
    /// that its old one is lost and that this vault's own was never restored from a copy. Tells
    /// how many entries are carried over.
    ///
    /// # Errors
    /// [`SequenceError::NothingToReseed`], or the disk.
    pub async fn reseed(&self) -> Result<u64, SequenceError> {
        self.told(Work::Reseed).await
    }

    /// Makes this vault the ledger's owner in a new epoch, which is told; the other follows as soon
    /// as they meet. With `alone`, records go on without the other vault: the word of an operator
    /// who has made sure that it is off. Numbers never do.
    ///
    /// # Errors
    /// [`SequenceError::MayNotTakeOver`], or the disk.
    pub async fn take_over(&self, alone: bool) -> Result<u64, SequenceError> {
        self.told(|done| Work::TakeOver(alone, done)).await
    }

    /// Of two owners of one epoch the other one is right: what this vault entered in that epoch,
    /// which was never answered as final, gives way. Tells the epoch, and how many writes of records
    /// that were answered alone give way at most.
    ///
    /// # Errors
    /// [`SequenceError::NothingToYield`], or the disk.
    pub async fn give_way(&self) -> Result<[u64; 2], SequenceError> {
        self.told(Work::Yield).await
    }

    /// Has a token made with which the vault of that name, started anew and alone, may give numbers
    /// of available series. It takes the place of an earlier one.
    ///
    /// # Errors
    /// [`SequenceError::MayNotSeal`], or that it is in doubt: then make another.
    pub async fn seal(&self, vault: String) -> Result<Token, SequenceError> {
        let token = nonce().map(Token).map_err(|_| SequenceError::Busy)?;
        let sealed = self.told(|done| Work::Seal(vault, token.life(), done)).await;
        match sealed {
            Ok(_) => Ok(token),
            Err(SequenceError::InDoubt | SequenceError::Unheard) => Err(SequenceError::SealInDoubt),
            Err(error) => Err(error),
        }
    }

    /// Lets this vault, started anew and alone, give numbers from what is set aside for the token:
    /// the word of an operator who has never used it before.
    ///
    /// # Errors
    /// [`SequenceError::NeedsNoToken`], [`SequenceError::NotThatToken`], or the disk.
    pub async fn bring(&self, token: Token) -> Result<u64, SequenceError> {
        self.told(|done| Work::Open(token.life(), done)).await
    }

    /// A page of what gave way although it was answered, after that place.
    ///
    /// # Errors
    /// The journal.
    pub async fn dropped(&self, after: u64, limit: usize) -> Result<Vec<Dropped>, SequenceError> {
        self.readers.walk(move |journal| journal.dropped(after, limit)).await
    }

    /// An operator has looked at what gave way, up to that place. Tells how much of it is left.
    ///
    /// # Errors
    /// The disk.
    pub async fn looked_at(&self, upto: u64) -> Result<u64, SequenceError> {
        self.told(|done| Work::LookedAt(upto, done)).await
    }

    /// Waits until the room's thread has ended, after its shutdown was asked for.
    pub async fn ended(&self) {
        if timeout(END_DEADLINE, self.work.closed()).await.is_err() {
            tracing::warn!(
                "sequence: still at work after {END_DEADLINE:?}; ended without a proof of what it gave last"
            );
        }
    }

    async fn told<T>(
        &self,
        word: impl FnOnce(oneshot::Sender<Result<T, SequenceError>>) -> Work,
    ) -> Result<T, SequenceError> {
        let (done, outcome) = oneshot::channel();
        self.work.try_send(word(done)).map_err(|_| SequenceError::Busy)?;
        match timeout(ANSWER_DEADLINE, outcome).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) | Err(_) => Err(SequenceError::Unheard),
        }
    }

    /// The answer to the other vault's [`Forward`]: JSON in, JSON out.
    ///
    /// # Errors
    /// The question is no JSON of ours; text for the log.
    pub async fn forwarded(&self, body: Bytes) -> Result<Bytes, String> {
        if let Some(answer) = self.greeted(&body).await {
            return answer;
        }
        if let Ok(question) = serde_json::from_slice::<Question>(&body) {
            return self.answer_follower(question).await;
        }
        let Forwarded { name, wishes } = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
        let outcomes = if self.seen().leads {
            self.enter(name, wishes).await
        } else {
            vec![Err(SequenceError::from(Reason::Syncing)); wishes.len()]
        };
        serde_json::to_vec(&outcomes).map(Bytes::from).map_err(|error| error.to_string())
    }

    /// Where the room stands.
    #[must_use]
    pub fn status(&self) -> Status {
        let seen = self.seen();
        Status {
            owner: match self.ready {
                Some(_) => "etcd".to_owned(),
                None => self.names[usize::from(!seen.leads)].clone(),
            },
            together: seen.refusal.is_none(),
            reason: seen.told().map(|told| told.to_string()),
            needs_operator: seen.refusal.is_some_and(Reason::needs_operator),
            entries: seen.tail.index,
            final_entries: seen.final_index,
            last_hash: seen.tail.hash.to_string(),
            epoch: seen.epoch,
            life: format!("{:032x}", seen.life),
            tokens: self
                .names
                .iter()
                .zip(seen.sealed)
                .filter_map(|(name, sealed)| sealed.map(|_| name.clone()))
                .collect(),
            tokens_over: Vec::new(),
            apart: None,
            unproven: None,
            dropped: seen.dropped,
            database: self.database.as_ref().map(Database::brief),
        }
    }

    async fn wish(&self, name: SeriesName, wish: Wish) -> Result<Outcome, SequenceError> {
        let outcome = self.wishes(name, vec![wish]).await.pop();
        outcome.unwrap_or(Err(SequenceError::InDoubt))
    }

    async fn number(&self, name: SeriesName, wish: Wish) -> Result<Done, SequenceError> {
        self.wish(name, wish).await?.number()
    }

    /// An outcome for each wish, in their order.
    async fn wishes(&self, name: SeriesName, wishes: Vec<Wish>) -> Vec<Result<Outcome, SequenceError>> {
        let seen = self.seen();
        // Apart, each decides for itself what it may give.
        if seen.leads || seen.refusal.is_some() {
            return self.enter(name, wishes).await;
        }
        // What both vaults have already, this one may answer even alone.
        let mut outcomes = match self.held(&name, &wishes, seen.final_index).await {
            Ok(outcomes) => outcomes,
            Err(error) => return vec![Err(error); wishes.len()],
        };
        let fresh = wishes.into_iter().zip(&outcomes).filter(|(_, held)| held.is_none());
        let fresh: Vec<Wish> = fresh.map(|(wish, _)| wish).collect();
        if !fresh.is_empty() {
            let mut answered = self.send(name, fresh).await.into_iter();
            for outcome in outcomes.iter_mut().filter(|outcome| outcome.is_none()) {
                *outcome = answered.next();
            }
        }
        outcomes.into_iter().map(|outcome| outcome.unwrap_or(Err(SequenceError::InDoubt))).collect()
    }

    /// Has the other vault enter these.
    async fn send(&self, name: SeriesName, wishes: Vec<Wish>) -> Vec<Result<Outcome, SequenceError>> {
        let count = wishes.len();
        let Ok(body) = serde_json::to_vec(&Forwarded { name, wishes }) else {
            return vec![Err(SequenceError::Unreadable); count];
        };
        match self.ask_other(Bytes::from(body)).await {
            Ok(outcomes) => serde_json::from_slice(&outcomes).unwrap_or_default(),
            Err(Unheard::Unknown | Unheard::Late) => vec![Err(SequenceError::InDoubt); count],
            Err(Unheard::Away) => vec![Err(Reason::Away.into()); count],
        }
    }

    /// Asks the other vault. If that is connected and answers nothing, the coordinator hears of it.
    async fn ask_other(&self, body: Bytes) -> Result<Bytes, Unheard> {
        let heard = (self.forward)(body).await;
        if heard != Err(Unheard::Late) {
            self.late.store(0, Ordering::Relaxed);
        } else if self.late.fetch_add(1, Ordering::Relaxed) + 1 == LATE {
            self.late.store(0, Ordering::Relaxed);
            // Where the queue is full, the next late answers tell it.
            drop(self.work.try_send(Work::Unanswered));
        }
        heard
    }

    /// Hands wishes to the coordinator, all at once.
    async fn enter(&self, name: SeriesName, wishes: Vec<Wish>) -> Vec<Result<Outcome, SequenceError>> {
        let enter = |wish| {
            let (answer, answered) = oneshot::channel();
            let waiting = Waiting { name: name.clone(), wish, answer };
            self.work.try_send(Work::Wish(waiting)).map_err(|_| SequenceError::Busy)?;
            Ok(answered)
        };
        let entered: Vec<_> = wishes.into_iter().map(enter).collect();
        let deadline = Instant::now() + ANSWER_DEADLINE;
        let mut outcomes = Vec::with_capacity(entered.len());
        for answered in entered {
            outcomes.push(match answered {
                Ok(answered) => match timeout_at(deadline, answered).await {
                    Ok(Ok(outcome)) => outcome.map(|outcome| self.dressed_outcome(&name, outcome)),
                    // Late, or the thread has ended: the entry may stand all the same.
                    Ok(Err(_)) | Err(_) => Err(SequenceError::InDoubt),
                },
                Err(busy) => Err(busy),
            });
        }
        outcomes
    }

    fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }
}

fn nonce() -> Result<Nonce, getrandom::Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    Ok(Nonce::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests;
