//! Numbers: never twice, never a hole. The front door: wishes go to the coordinator's thread (at
//! the ledger's owner) or to the other vault, and what both vaults have may be read at either.
//! Knows neither HTTP nor the connection to the peer: it is handed both ends.

pub mod alone;
pub mod book;
pub mod carry;
mod coordinator;
pub mod database;
pub mod definition;
pub mod digest;
pub mod entry;
pub mod journal;
pub mod message;
mod mirror;
pub mod protocol;
pub mod reason;
pub mod standing;
pub mod witness;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use prometheus::Registry;
use serde::{Deserialize, Serialize};
use shared::api::Number;
use shared::shutdown::Shutdown;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use alone::{Alone, Waits};
use book::{Known, Refused, SeriesName, Wish};
use coordinator::{Coordinator, Metrics, Seen, WAITING, Waiting, Work};
use database::operator::{Brief, Database, OpenError};
use entry::Life;
use journal::{Journal, JournalError};
use mirror::Mirror;
use protocol::{Core, Memory, Nonce, Reason};
use witness::WitnessError;

/// A caller hears "in doubt" after this long; the same key gets the same number later.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// A reader hears "in doubt" after this long.
const FINAL_DEADLINE: Duration = Duration::from_secs(1);

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
    /// A folder in memory that outlives the process, if there is one.
    pub run: Option<PathBuf>,
    /// Where a copy of the ledger is kept beside the journals, if anywhere.
    pub database: Option<database::Settings>,
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
    /// The pair is not together, and this vault may not do it alone.
    #[error("{reason}; {waits}; nothing was given, the same key may be tried again")]
    Waits {
        /// Why they are apart.
        reason: String,
        /// Why that matters here.
        waits: String,
    },
    /// The pair is closed until an operator acts.
    #[error("numbering is closed: {0}")]
    Closed(String),
    /// It may have been given; the same key will tell.
    #[error("it is not known yet whether this was recorded on both vaults; repeat it with the same key")]
    InDoubt,
    /// Too many wait already.
    #[error("too many requests for numbers wait already")]
    Busy,
    /// The other vault does not stand there with an empty journal in the place of a lost one.
    #[error(
        "there is nothing to re-seed: the other vault must be connected, with an empty journal in the place of the one it had; vault status tells how things stand"
    )]
    NothingToReseed,
    /// The journal cannot be read.
    #[error("the journal cannot be read; the operator finds the cause in the log")]
    Unreadable,
}

impl SequenceError {
    fn waits(reason: Reason, waits: Waits) -> Self {
        match waits {
            Waits::Strict => reason.into(),
            waits => Self::Waits { reason: reason.to_string(), waits: waits.to_string() },
        }
    }
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
    /// The copy in a database, if there is one.
    pub database: Option<Brief>,
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

/// The front door; cheap to clone.
#[derive(Clone)]
pub struct Sequence {
    work: mpsc::Sender<Work>,
    reader: Arc<Mutex<Journal>>,
    seen: watch::Receiver<Seen>,
    names: [String; 2],
    forward: Forward,
    database: Option<Database>,
}

/// Why the room cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// What is remembered of it.
    #[error(transparent)]
    Witness(#[from] WitnessError),
    /// The database of the ledger's copy.
    #[error("sequence.database: {0}")]
    Database(#[from] database::DatabaseError),
    /// What is remembered of it.
    #[error(transparent)]
    Copy(#[from] OpenError),
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
        let journal = Journal::open(&settings.journal, nonce()?)?;
        let reader = Arc::new(Mutex::new(Journal::open_to_read(&settings.journal)?));
        let (memory, tail, life) = (journal.memory()?, journal.tail()?, nonce()?);
        // Until somebody takes over, the configuration says who the owner is.
        let owns = if memory.epoch == 1 { settings.own == settings.owner } else { memory.owns };
        let memory = Memory { owns, ..memory };
        let former = journal.begin(life)?;
        let mirror = settings.run.as_ref().map(|run| run.join("sequence.mirror"));
        let (mirror, proven) = Mirror::begin(mirror, memory.journal, memory.solo, former, life);
        let witness_file = witness::beside(&settings.journal);
        let witnessed = witness::read(&witness_file)?;
        let core = Core::new(life, proven, memory, tail).witnessed(witnessed);
        let (shown, seen) = watch::channel(Seen {
            life,
            leads: core.leads(),
            refusal: core.refusal(),
            tail,
            final_index: core.final_index(),
            complete: core.is_complete(),
            epoch: core.epoch(),
        });
        let (database, replies) = match settings.database.clone() {
            Some(database) => {
                let (database, replies) =
                    Database::start(database, &settings.journal, seen.clone(), registry, shutdown.clone())?;
                (Some(database), replies)
            }
            None => Default::default(),
        };
        let (work, queue) = mpsc::channel(WAITING);
        let coordinator = Coordinator {
            core,
            journal,
            names: [settings.own.clone(), settings.peer.clone()],
            alone: Alone::default(),
            mirror,
            chores_due: false,
            queue,
            waiting: VecDeque::new(),
            under_way: Vec::new(),
            session_due: None,
            witness_file,
            witnessed,
            witness_failed: false,
            said: Some(Reason::Away),
            seen: shown,
            metrics: Metrics::new(registry)?,
            replies,
            tell,
            hang_up,
        };
        let runtime = tokio::runtime::Handle::current();
        std::thread::Builder::new()
            .name("sequence".to_owned())
            .spawn(move || runtime.block_on(coordinator.run(shutdown)))?;
        let names = [settings.own.clone(), settings.peer.clone()];
        Ok((Self { work: work.clone(), reader, seen, names, forward, database }, Events(work)))
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
        self.wish(name, Wish::Reserve { key, ticket }).await
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
        let last = self.seen().final_index;
        let known = self.read(move |journal| {
            let chain = journal.by_number(&name, number)?;
            own_first(chain, last, || journal.own_by_number(&name, number))
        });
        self.once_final(known.await?).await
    }

    /// The number that a key got.
    ///
    /// # Errors
    /// As [`Sequence::by_number`].
    pub async fn by_key(&self, name: SeriesName, key: String) -> Result<Option<Number>, SequenceError> {
        let last = self.seen().final_index;
        let known = self.read(move |journal| {
            let chain = journal.by_key(&name, &key)?;
            own_first(chain, last, || journal.own_by_key(&name, &key))
        });
        self.once_final(known.await?).await
    }

    /// A page of the series' numbers above `after`: whole, or refused.
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
        // A short page says that there is no more.
        self.complete()?;
        self.wait_final(known.iter().map(|known| known.index).max().unwrap_or(0)).await?;
        Ok(known.into_iter().map(|known| known.number).collect())
    }

    /// Takes the other vault's empty journal for its new one; the word of an operator who knows
    /// that its old one is lost and that this vault's own was never restored from a copy. Tells
    /// how many entries are carried over.
    ///
    /// # Errors
    /// [`SequenceError::NothingToReseed`], or the disk.
    pub async fn reseed(&self) -> Result<u64, SequenceError> {
        let (done, outcome) = oneshot::channel();
        self.work.try_send(Work::Reseed(done)).map_err(|_| SequenceError::Busy)?;
        match timeout(ANSWER_DEADLINE, outcome).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) | Err(_) => Err(SequenceError::Busy),
        }
    }

    /// The answer to the other vault's [`Forward`]: JSON in, JSON out.
    ///
    /// # Errors
    /// The question is no JSON of ours; text for the log.
    pub async fn forwarded(&self, body: Bytes) -> Result<Bytes, String> {
        let Forwarded { name, wish } = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
        let outcome = if self.seen().leads {
            self.enter(name, wish).await
        } else {
            Err(SequenceError::from(Reason::Syncing))
        };
        serde_json::to_vec(&outcome).map(Bytes::from).map_err(|error| error.to_string())
    }

    /// Where the room stands.
    #[must_use]
    pub fn status(&self) -> Status {
        let seen = self.seen();
        Status {
            owner: self.names[usize::from(!seen.leads)].clone(),
            together: seen.refusal.is_none(),
            reason: seen.refusal.map(|reason| reason.to_string()),
            needs_operator: seen.refusal.is_some_and(Reason::needs_operator),
            entries: seen.tail.index,
            final_entries: seen.final_index,
            last_hash: seen.tail.hash.to_string(),
            epoch: seen.epoch,
            life: format!("{:032x}", seen.life),
            database: self.database.as_ref().map(Database::brief),
        }
    }

    async fn wish(&self, name: SeriesName, wish: Wish) -> Result<Done, SequenceError> {
        let seen = self.seen();
        // Apart, each decides for itself what it may give.
        if seen.leads || seen.refusal.is_some() {
            return self.enter(name, wish).await;
        }
        // What both vaults have already, this one may answer even alone.
        if let Wish::Reserve { key, .. } = &wish {
            let (name, key) = (name.clone(), key.clone());
            let known = self.read(move |journal| journal.by_key(&name, &key)).await?;
            let last = seen.final_index;
            if let Some(Known { number, .. }) = known.filter(|known| known.index <= last) {
                return Ok(Done { number, fresh: false });
            }
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
    async fn once_final(&self, known: Option<Known>) -> Result<Option<Number>, SequenceError> {
        match known {
            Some(known) => {
                self.wait_final(known.index).await?;
                Ok(Some(known.number))
            }
            None => self.complete().map(|()| None),
        }
    }

    /// While both are together an entry becomes final in the time that a message takes: this
    /// vault hears of it after whoever asked for it, and the two may be one caller.
    async fn wait_final(&self, index: u64) -> Result<(), SequenceError> {
        let mut seen = self.seen.clone();
        let settled = seen.wait_for(|seen| seen.final_index >= index || seen.refusal.is_some());
        match timeout(FINAL_DEADLINE, settled).await {
            Ok(Ok(seen)) if seen.final_index >= index => Ok(()),
            _ => Err(SequenceError::InDoubt),
        }
    }

    /// May it be said that something is not there?
    fn complete(&self) -> Result<(), SequenceError> {
        let seen = self.seen();
        if seen.complete { Ok(()) } else { Err(seen.refusal.unwrap_or(Reason::Syncing).into()) }
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

/// What this vault gave alone it may answer until the chain says it for good.
fn own_first(
    chain: Option<Known>,
    last: u64,
    own: impl FnOnce() -> Result<Option<Known>, JournalError>,
) -> Result<Option<Known>, JournalError> {
    if chain.as_ref().is_some_and(|known| known.index <= last) {
        return Ok(chain);
    }
    // Index 0: there is nothing to wait for.
    Ok(own()?.map(|known| Known { index: 0, ..known }).or(chain))
}

#[cfg(test)]
mod tests {
    use shared::api::NumberState;

    use super::*;

    /// Two rooms in one process, joined by a link that can be cut.
    struct Two {
        rooms: [Sequence; 2],
        events: [Events; 2],
        /// Nothing is heard before both sides know of the connection, as on a real one.
        open: tokio::sync::watch::Sender<bool>,
        _folder: tempfile::TempDir,
    }

    fn two() -> Two {
        let folder = tempfile::tempdir().unwrap();
        let (to_a, mut from_b) = mpsc::unbounded_channel::<Bytes>();
        let (to_b, mut from_a) = mpsc::unbounded_channel::<Bytes>();
        let owner_room: Arc<std::sync::OnceLock<Sequence>> = Arc::default();
        let start = |own: &str, to: mpsc::UnboundedSender<Bytes>| {
            let settings = Settings {
                journal: folder.path().join(format!("{own}.db")),
                own: own.to_owned(),
                peer: if own == "a" { "b" } else { "a" }.to_owned(),
                owner: "a".to_owned(),
                run: None,
                database: None,
            };
            let owner_room = Arc::clone(&owner_room);
            let forward: Forward = Arc::new(move |body| {
                let room = owner_room.get().cloned();
                Box::pin(async move { room.ok_or(false)?.forwarded(body).await.map_err(|_| true) })
            });
            let tell: Tell = Box::new(move |body| to.send(body).is_ok());
            Sequence::start(&settings, &Registry::new(), tell, Box::new(|| {}), forward, Shutdown::new())
                .unwrap()
        };
        let (a, events_a) = start("a", to_b);
        let (b, events_b) = start("b", to_a);
        let _first = owner_room.set(a.clone());
        let (hear_a, hear_b) = (events_a.clone(), events_b.clone());
        let open = tokio::sync::watch::Sender::new(false);
        let (mut open_a, mut open_b) = (open.subscribe(), open.subscribe());
        tokio::spawn(async move {
            while let Some(body) = from_b.recv().await {
                open_a.wait_for(|open| *open).await.unwrap();
                hear_a.told(body).await;
            }
        });
        tokio::spawn(async move {
            while let Some(body) = from_a.recv().await {
                open_b.wait_for(|open| *open).await.unwrap();
                hear_b.told(body).await;
            }
        });
        Two { rooms: [a, b], events: [events_a, events_b], open, _folder: folder }
    }

    impl Two {
        async fn connect(&self) {
            for events in &self.events {
                events.up().await;
            }
            self.open.send_replace(true);
            while !self.rooms.iter().all(|room| room.status().together) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        async fn cut(&self) {
            self.open.send_replace(false);
            for events in &self.events {
                let (noted, note) = oneshot::channel();
                events.down(noted).await;
                note.await.unwrap_err();
            }
            while self.rooms.iter().any(|room| room.status().together) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    }

    fn invoices() -> SeriesName {
        SeriesName { owner: "erp".to_owned(), series: "INV".to_owned() }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn either_vault_gives_numbers_while_both_are_together_and_none_while_apart() {
        let two = two();
        let [a, b] = &two.rooms;
        let away = a.reserve(invoices(), "k0".to_owned(), None).await.unwrap_err();
        assert!(matches!(away, SequenceError::Apart(_)), "{away:?}");
        two.connect().await;
        let first = a.reserve(invoices(), "k1".to_owned(), None).await.unwrap();
        let second = b.reserve(invoices(), "k2".to_owned(), None).await.unwrap();
        assert_eq!((first.number.number, second.number.number, second.fresh), (1, 2, true));
        let confirmed = b.confirm(invoices(), 1, "hash".to_owned()).await.unwrap();
        assert_eq!(confirmed.number.state, NumberState::Confirmed);
        two.cut().await;
        let again = a.reserve(invoices(), "k1".to_owned(), None).await.unwrap();
        assert_eq!((again.number.number, again.fresh), (1, false));
        let apart = b.reserve(invoices(), "k3".to_owned(), None).await.unwrap_err();
        assert_eq!(
            apart.to_string(),
            "numbers need both vaults: the other vault is away; nothing was given, the same key may be tried again"
        );
        two.connect().await;
        assert_eq!(b.reserve(invoices(), "k3".to_owned(), None).await.unwrap().number.number, 3);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_thousand_callers_at_once_get_consecutive_numbers() {
        let two = two();
        two.connect().await;
        let calls: Vec<_> = (0..1000)
            .map(|call| {
                let room = two.rooms[call % 2].clone();
                tokio::spawn(async move {
                    room.reserve(invoices(), format!("k{call}"), None).await.unwrap().number.number
                })
            })
            .collect();
        let mut numbers = Vec::new();
        for call in calls {
            numbers.push(call.await.unwrap());
        }
        numbers.sort_unstable();
        assert_eq!(numbers, (1..=1000).collect::<Vec<u64>>());
    }
}
