//! The coordinator where etcd is the ledger: a thread that owns the journal and a connection to one
//! of etcd's members. Either vault has one and appends at any time, also with the other away; what
//! both may do at once is settled by etcd, which compares where the ledger ends. No lives, ranges or
//! epochs count here; a number is refused only while no quorum of etcd's members answers.
//!
//! The core ([`core`]) says what must be asked and written; this file asks and writes, answers
//! callers, and never lets one wait for a member that does not answer.

pub mod begin;
pub mod core;
mod members;
mod refill;
mod shown;
mod turn;

use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prometheus::Registry;
use shared::retry::Backoff;
use shared::shutdown::Shutdown;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};

pub(super) use self::begin::Ready;
use self::begin::{Greeting, misfit};
use self::core::{Core, Input, Output};
use super::coordinator::{Metrics, Seen, WAITING, Waiting, Work, answer};
use super::database::open::Connection;
use super::database::operator::{Database, Told};
use super::database::{self, DatabaseError, Mark};
use super::entry::{Act, BATCH, Entry, Life, Tail};
use super::journal::{Journal, JournalError};
use super::protocol::{Memory, Reason, Write};
use super::readers::Readers;
use super::record::desk::Desk;
use super::record::{RecordError, front};
use super::witness::Witness;
use super::{Events, Forward, Outcome, Sequence, SequenceError, Settings, StartError};
use members::{PATIENCE, Reached};

/// Callers wait this long for another member before they are refused.
const GRACE: Duration = Duration::from_secs(1);
/// How often the ledger's end is looked at while nobody asks for anything.
const PROBE: Duration = Duration::from_secs(1);
/// How often the vaults ask each other whether etcd may become the ledger, and how often a ledger
/// that is not the journal's is looked at again.
const AGAIN: Duration = Duration::from_secs(1);
/// A vault that has just started waits so long for the other, to ask how far the ledger goes.
const COMPANY: Duration = Duration::from_secs(3);
/// The other vault's answer to that.
const ASKED: Duration = Duration::from_secs(1);
/// Waits between two attempts to reach a member.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// A block in JSON, in bytes; etcd takes 1.5 MiB at a time.
pub(super) const BLOCK_BYTES: usize = 1 << 20;
/// So much of it is left to numbers.
pub(super) const NUMBER_BYTES: usize = 64 << 10;
/// How often it is written down outside the journal how far the ledger goes.
const NOTE: Duration = Duration::from_secs(5);

/// The journal as it was found.
pub(super) struct Found {
    pub(super) journal: Journal,
    pub(super) readers: Readers,
    pub(super) life: Life,
    pub(super) proven: Option<Life>,
    pub(super) witnessed: Option<Witness>,
}

/// Opens the room and starts the thread; call inside a runtime.
pub(super) fn start(
    settings: &Settings,
    database: database::Settings,
    found: Found,
    forward: Forward,
    registry: &Registry,
    shutdown: Shutdown,
) -> Result<(Sequence, Events), StartError> {
    let Found { journal, readers, life, proven, witnessed } = found;
    let names = [settings.own.clone(), settings.peer.clone()];
    let (work, queue) = mpsc::channel(WAITING);
    let metrics = Metrics::new(registry)?;
    let expired = metrics.expired.clone();
    let (memory, tail) = (journal.memory()?, journal.tail()?);
    let (shown, seen) = watch::channel(Seen {
        life,
        leads: true,
        refusal: Some(Reason::NoQuorum),
        why: None,
        tail,
        final_index: tail.index,
        entered_index: tail.index,
        complete: false,
        epoch: memory.epoch,
        sealed: [None; 2],
        apart: Default::default(),
        dropped: 0,
        definitions: journal.standing().shown_definitions(),
    });
    let (database, told) =
        Database::of_truth(database, &names[1], &settings.journal, seen.clone(), registry, shutdown.clone())?;
    let note = told.note();
    if !note.truth {
        tracing::warn!(
            "sequence: role = \"truth\": as soon as both vaults run so and are connected, etcd becomes the ledger itself, for good: there is no way back to a pair; where that is not meant, write role = \"copy\" and start this vault again now"
        );
    }
    let rows = has_rows(&journal)?;
    let floor = if note.truth { note.copied } else { 0 };
    let (ready, told_of) = watch::channel(Ready {
        name: names[0].clone(),
        life,
        proven,
        tail,
        end: if note.truth { floor.max(tail.index) } else { 0 },
        reads: note.ledger.clone(),
        begun: note.truth,
        level: false,
        journal: memory.journal,
        knows: memory.peer_journal,
        unfit: begin::unfit(&memory, tail, witnessed, rows),
    });
    let quorum = Quorum {
        core: Core::new(life, memory.epoch, tail, floor),
        journal,
        memory,
        names: names.clone(),
        ready,
        forward: Arc::clone(&forward),
        queue,
        waiting: VecDeque::new(),
        under_way: Vec::new(),
        told_later: Vec::new(),
        decided_at: tail,
        question: None,
        records: Desk::shared(),
        refill: None,
        connection: None,
        passed_by: None,
        current: false,
        begun: false,
        rows,
        ledger: note.ledger.filter(|_| note.truth),
        theirs: None,
        asked: false,
        alone: false,
        passed: Vec::new(),
        started: Instant::now(),
        known: floor,
        noted: Instant::now(),
        door: Arc::new(told),
        refusal: Some(Reason::NoQuorum),
        why: None,
        stuck: None,
        catches_up: false,
        failures: 0,
        said: None,
        backoff: Backoff::new(FIRST_WAIT, LONGEST_WAIT),
        seen: shown,
        metrics,
    };
    let runtime = tokio::runtime::Handle::current();
    let end = shutdown.clone();
    std::thread::Builder::new()
        .name("sequence".to_owned())
        .spawn(move || runtime.block_on(quorum.run(end)))?;
    let (database, ready) = (Some(database), Some(told_of));
    let (late, no_run_folder) = (Arc::default(), None);
    let own = work.clone();
    let sequence =
        Sequence { work: own, readers, seen, names, forward, late, database, ready, no_run_folder };
    tokio::spawn(sequence.clone().count_expired(expired, shutdown));
    Ok((sequence, Events(work)))
}

/// Are there rows given alone that the chain does not hold?
fn has_rows(journal: &Journal) -> Result<bool, JournalError> {
    let mut after = 0;
    loop {
        let rows = journal.rows(after)?;
        let Some(last) = rows.last() else { return Ok(false) };
        after = last.index;
        if rows.iter().any(|row| journal.standing().carried(row.life) < row.index) {
            return Ok(true);
        }
    }
}

/// The thread's own state.
struct Quorum {
    core: Core,
    journal: Journal,
    memory: Memory,
    names: [String; 2],
    /// What the other vault is told whenever it asks.
    ready: watch::Sender<Ready>,
    forward: Forward,
    queue: mpsc::Receiver<Work>,
    waiting: VecDeque<Waiting>,
    /// In the block that was sent.
    under_way: Vec<Waiting>,
    /// Decided without an entry; told once it is known that this journal had everything then.
    told_later: Vec<(Waiting, Result<Outcome, SequenceError>)>,
    /// Where the journal ended when those were decided.
    decided_at: Tail,
    /// Readers wait to hear that this journal has everything.
    question: Option<u64>,
    records: Desk,
    /// An operator wants an empty etcd filled again.
    refill: Option<refill::Asked>,
    connection: Option<Connection>,
    /// What an append has found in its place.
    passed_by: Option<Vec<Entry>>,
    /// Has the journal everything, as of the last time that the ledger was asked?
    current: bool,
    /// Is etcd the ledger, as this process has seen?
    begun: bool,
    /// Did this vault, as one of a pair, give numbers alone that the ledger may not have?
    rows: bool,
    /// Which etcd is the ledger, as this vault has written down.
    ledger: Option<String>,
    /// Which one the other vault has said that it uses as the ledger.
    theirs: Option<String>,
    /// Was the other vault asked how far the ledger goes, since a member or the other was reached?
    asked: bool,
    /// Was it said that it could not be?
    alone: bool,
    /// Members that were passed over, as the log last heard.
    passed: Vec<String>,
    started: Instant,
    /// As far as is written down outside the journal.
    known: u64,
    noted: Instant,
    door: Arc<Told>,
    refusal: Option<Reason>,
    /// What the members said.
    why: Option<String>,
    /// They take no entries, and said so with these words.
    stuck: Option<String>,
    /// Does the journal lack more than one fetch brings?
    catches_up: bool,
    /// How often in a row a member has failed.
    failures: u32,
    /// What the log last heard.
    said: Option<(Reason, Option<String>)>,
    backoff: Backoff,
    seen: watch::Sender<Seen>,
    metrics: Metrics,
}

impl Quorum {
    async fn run(mut self, shutdown: Shutdown) {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.turns() => {}
        }
    }

    async fn turns(&mut self) {
        loop {
            if let Some(done) = self.refill.take()
                && let Err(error) = self.refill(done).await
            {
                tracing::error!("sequence: etcd is not filled: {error}; write it again");
            }
            if self.connection.is_none() && !self.connect().await {
                continue;
            }
            if let Err(error) = self.advance().await {
                self.connection = None;
                self.current = false;
                tracing::debug!("sequence: etcd: {error}");
                // Another member may answer at once; whoever waits is refused if that fails too.
                self.failures += 1;
                if self.failures > 1 || error.needs_operator() {
                    self.give_up(&error).await;
                }
            }
        }
    }

    /// Reaches a member, while callers are told that none answers.
    async fn connect(&mut self) -> bool {
        let door = Arc::clone(&self.door);
        let (floor, names) = (self.floor(), self.names.clone());
        let (own, theirs) = (self.ledger.clone(), self.theirs.clone());
        let fits = move |end: Tail, mark: Option<&Mark>| match &own {
            // What it must say of itself is known only where it has begun.
            None => Ok(()),
            Some(_) if end.index < floor => Err(Reason::LedgerShrunk),
            Some(_) => misfit(mark, &names, [own.as_ref(), theirs.as_ref()]).map_or(Ok(()), Err),
        };
        match self.meanwhile(members::reach(door.settings(), fits)).await {
            Ok(Reached { connection, mut passed }) => {
                passed.sort();
                if passed != self.passed {
                    for member in &passed {
                        tracing::error!("sequence: database: {member}");
                    }
                    self.passed = passed;
                }
                self.asked = false;
                self.door.connected(connection.place());
                self.connection = Some(connection);
                true
            }
            Err(error) => {
                self.give_up(&error).await;
                false
            }
        }
    }

    /// Nobody is kept waiting any more, and the members are left alone for a while.
    async fn give_up(&mut self, error: &DatabaseError) {
        let words = error.words();
        let reason = if words.is_some() { Reason::LedgerRefuses } else { Reason::NoQuorum };
        self.why = Some(words.unwrap_or_else(|| error.to_string()));
        self.refuse(reason);
        let mut jitter = [0; 4];
        // Without randomness two vaults come back together, which is only slower.
        let _ = getrandom::fill(&mut jitter);
        let wait = self.backoff.next(u32::from_le_bytes(jitter));
        self.meanwhile(sleep(wait)).await;
    }

    /// One step further with the member that is connected.
    async fn advance(&mut self) -> Result<(), DatabaseError> {
        if !self.asked {
            self.ask_other().await;
        }
        if !self.begun {
            return self.advance_to_begin().await;
        }
        if !self.current {
            self.drive(Input::Ask).await?;
            if !self.current {
                // It was said why.
                self.meanwhile(sleep(AGAIN)).await;
                return Ok(());
            }
        }
        if self.stuck.is_some() {
            return self.wait_for_room().await;
        }
        self.be_well();
        if !self.waiting.is_empty() || self.question.is_some() {
            return self.work(false).await;
        }
        let probe = match timeout(PROBE, self.queue.recv()).await {
            Ok(Some(work)) => {
                self.take(work);
                false
            }
            // The room has ended, and this thread is about to.
            Ok(None) => return std::future::pending().await,
            Err(_) => true,
        };
        self.work(probe).await
    }

    /// Numbers are given.
    fn be_well(&mut self) {
        (self.refusal, self.why, self.failures, self.catches_up) = (None, None, 0, false);
        self.backoff.reset();
        self.ready.send_if_modified(|ready| !std::mem::replace(&mut ready.level, true));
        self.show();
    }

    /// Enters what waits, round after round, and tells what is known.
    async fn work(&mut self, probe: bool) -> Result<(), DatabaseError> {
        let mut probe = probe;
        loop {
            self.take_more();
            if !self.asked {
                return Ok(());
            }
            self.question = self.question.or_else(|| self.records.question());
            let drafts = self.decide();
            if !drafts.is_empty() {
                self.drive(Input::Propose(drafts)).await?;
            } else if self.question.is_some() || !self.told_later.is_empty() || probe {
                self.drive(Input::Ask).await?;
            } else {
                return Ok(());
            }
            if !self.current {
                return Ok(());
            }
            self.be_well();
            probe = false;
        }
    }

    /// Steps the core until it asks for nothing more.
    async fn drive(&mut self, input: Input) -> Result<(), DatabaseError> {
        self.current = false;
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let outputs = self.core.step(input);
            self.publish();
            for output in outputs {
                if let Some(next) = self.carry_out(output).await? {
                    inputs.push_back(next);
                }
            }
        }
        Ok(())
    }

    async fn carry_out(&mut self, output: Output) -> Result<Option<Input>, DatabaseError> {
        Ok(match output {
            Output::Look => {
                if let Some((end, entries)) = self.connection()?.found() {
                    self.passed_by = Some(entries);
                    return Ok(self.may_use()?.then_some(Input::Found(end)));
                }
                let end = within(self.connection()?.tail()).await?;
                self.may_use()?.then_some(Input::Found(end))
            }
            Output::Fetch(after) => {
                if let Some(end) = self.core.behind().filter(|end| *end > after + BATCH as u64) {
                    let why = format!("it has {after} of {end} entries");
                    if !std::mem::replace(&mut self.catches_up, true) {
                        tracing::info!("sequence: the journal is brought up to the ledger in etcd ({why})");
                    }
                    self.why = Some(why);
                    self.refuse(Reason::Behind);
                }
                Some(Input::Fetched(self.fetch(after).await?))
            }
            Output::Append(after, entries) => {
                match within(self.connection()?.append(after, &entries)).await {
                    Ok(()) => {
                        self.stuck = None;
                        Some(Input::Appended)
                    }
                    Err(DatabaseError::Moved { .. }) => Some(Input::Moved),
                    Err(error) if error.needs_operator() => {
                        for output in self.core.step(Input::Refused) {
                            debug_assert_eq!(output, Output::Passed);
                            self.decide_anew();
                        }
                        let Some(words) = error.words() else { return Err(error) };
                        self.stuck = Some(words.clone());
                        self.why = Some(words);
                        self.refuse(Reason::LedgerRefuses);
                        None
                    }
                    Err(error) => return Err(error),
                }
            }
            Output::Write(entries) => Some(self.write(entries)),
            Output::Landed(entries) => {
                self.conclude(entries);
                None
            }
            Output::Passed => {
                self.decide_anew();
                None
            }
            Output::Current => {
                if self.lacks_rows()? {
                    self.close(Reason::AloneLost);
                    return Ok(None);
                }
                self.current = true;
                self.tell();
                None
            }
            Output::Closed(reason) => {
                self.close(reason);
                None
            }
        })
    }

    async fn fetch(&mut self, after: u64) -> Result<Vec<Entry>, DatabaseError> {
        if let Some(entries) = self.passed_by.take()
            && entries.first().is_some_and(|entry| entry.index == after + 1)
        {
            return Ok(entries);
        }
        let Some(mut connection) = self.connection.take() else { return Err(away()) };
        let fetch = within(connection.entries(after));
        // Callers are told how far it is, and are not kept.
        let fetched = match self.catches_up {
            true => self.meanwhile(fetch).await,
            false => fetch.await,
        };
        self.connection = Some(connection);
        fetched
    }

    /// Into the journal; where etcd has it already, a restart reads it from there again.
    fn write(&mut self, entries: Vec<Entry>) -> Input {
        let last = entries.last().map_or(self.core.tail().index, |entry| entry.index);
        let epoch = entries.iter().map(|entry| entry.epoch).fold(self.memory.epoch, u64::max);
        let mut memory = Memory { epoch, ..self.memory };
        if self.begun {
            (memory.settled, memory.whole) = (last, true);
        }
        let write = Write { cut: None, entries, rows: Vec::new(), memory };
        match self.journal.write(&write) {
            Ok(()) => {
                self.memory = memory;
                self.records.entered(&write.entries, Instant::now().into_std());
                if write.entries.iter().any(|entry| matches!(entry.act, Act::Define(_))) {
                    let now = self.journal.standing().shown_definitions();
                    self.seen.send_modify(|seen| seen.definitions = now);
                }
                self.seen.send_modify(|seen| {
                    seen.tail = write.entries.last().map_or(seen.tail, Entry::tail);
                    (seen.final_index, seen.entered_index) = (last, last);
                    seen.epoch = memory.epoch;
                });
                Input::Written
            }
            Err(error) => {
                tracing::error!("sequence: {error}; numbering waits until the journal can be written");
                self.why = Some(error.to_string());
                self.refuse(Reason::CannotWrite);
                Input::WriteFailed
            }
        }
    }

    fn connection(&mut self) -> Result<&mut Connection, DatabaseError> {
        self.connection.as_mut().ok_or_else(away)
    }

    /// Is the connected etcd still the ledger of these two vaults? Closes the room if not.
    fn may_use(&mut self) -> Result<bool, DatabaseError> {
        if !self.begun {
            return Ok(true);
        }
        let mark = self.connection()?.begun().cloned();
        let reason = misfit(mark.as_ref(), &self.names, [self.ledger.as_ref(), self.theirs.as_ref()]);
        if let Some(reason) = reason {
            self.close(reason);
        }
        Ok(reason.is_none())
    }

    /// Does the ledger lack what this vault gave alone, now that the journal has all of it?
    fn lacks_rows(&mut self) -> Result<bool, DatabaseError> {
        if self.begun && self.rows {
            self.rows = has_rows(&self.journal).map_err(|error| DatabaseError::Away {
                place: "this vault's journal".to_owned(),
                why: error.to_string(),
            })?;
        }
        Ok(self.begun && self.rows)
    }

    /// So many entries the ledger is known to have held.
    fn floor(&self) -> u64 {
        self.core.floor()
    }

    /// What the other vault hears from now on when it asks.
    fn publish(&self) {
        let (tail, end, begun) = (self.core.tail(), self.floor(), self.begun);
        self.ready.send_modify(|ready| {
            (ready.tail, ready.begun) = (tail, begun || ready.begun);
            ready.end = if ready.begun { end } else { 0 };
        });
    }

    /// The member that is connected may be asked no more: another may hold the right ledger.
    fn close(&mut self, reason: Reason) {
        self.current = false;
        self.connection = None;
        self.refuse(reason);
    }

    /// Does `work`; whoever wants something meanwhile waits for a moment and is then refused.
    async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        let mut grace = pin!(sleep(GRACE));
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = &mut grace, if self.refusal.is_none() => self.refuse(Reason::NoQuorum),
                Some(wanted) = self.queue.recv(), if self.waiting.len() < WAITING => {
                    self.take(wanted);
                    if let Some(reason) = self.refusal {
                        self.refuse(reason);
                    }
                }
            }
        }
    }

    fn take_more(&mut self) {
        while self.waiting.len() < WAITING
            && let Ok(work) = self.queue.try_recv()
        {
            self.take(work);
        }
    }

    fn take(&mut self, work: Work) {
        match work {
            // The other vault is needed for nothing here.
            Work::Told(_) | Work::Unanswered => {}
            // It may know of more.
            Work::Up => self.asked = false,
            Work::Down(noted) => drop(noted),
            Work::Wish(waiting) if self.waiting.len() >= WAITING => {
                answer(waiting, Err(SequenceError::Busy));
            }
            Work::Wish(waiting) => self.waiting.push_back(waiting),
            Work::Record(waiting) => self.records.take(waiting),
            Work::Sure(reader) => self.records.take_reader(reader),
            Work::Reseed(done) => self.refill = Some(done),
            Work::Adopt(id, done) => match self.adopt(id) {
                // The other vault looks what this one says of itself now.
                Ok(()) => drop(done.send(())),
                Err(why) => tracing::error!("sequence: the other vault wants to fill another etcd: {why}"),
            },
            Work::TakeOver(_, done)
            | Work::Seal(_, _, done)
            | Work::Open(_, done)
            | Work::LookedAt(_, done) => {
                // An operator who has gone looks at the status.
                let _gone = done.send(Err(SequenceError::NoPair));
            }
            // As above.
            Work::Yield(done) => drop(done.send(Err(SequenceError::NoPair))),
        }
    }
}

fn away() -> DatabaseError {
    DatabaseError::Away { place: "etcd".to_owned(), why: "no member is connected".to_owned() }
}

/// A member that takes longer is left for another.
async fn within<T>(work: impl Future<Output = Result<T, DatabaseError>>) -> Result<T, DatabaseError> {
    let late = |_| Err(DatabaseError::Late { place: "etcd".to_owned(), deadline: PATIENCE });
    timeout(PATIENCE, work).await.unwrap_or_else(late)
}

impl Sequence {
    /// Where etcd is the ledger: this vault's journal has everything that was entered before now.
    /// Elsewhere there is nothing to be asked.
    pub(super) async fn newest(&self) -> Result<(), SequenceError> {
        if self.ready.is_none() {
            return Ok(());
        }
        let (sure, told) = oneshot::channel();
        self.work.try_send(Work::Sure(sure)).map_err(|_| SequenceError::Busy)?;
        match timeout(front::SURE_DEADLINE, told).await {
            Ok(Ok(Ok(_index))) => Ok(()),
            Ok(Ok(Err(RecordError::Busy))) => Err(SequenceError::Busy),
            _ => Err(SequenceError::of_a_look(self.seen().told().unwrap_or(Reason::NoQuorum.into()))),
        }
    }

    /// The other vault asks whether etcd may become the ledger; `None`: it asks for something else.
    pub(super) async fn greeted(&self, body: &Bytes) -> Option<Result<Bytes, String>> {
        let ready = self.ready.as_ref()?;
        if let Greeting::Refill(id) = serde_json::from_slice(body).ok()? {
            let (done, adopted) = oneshot::channel();
            // Refused or late: what is told of itself says so.
            if self.work.try_send(Work::Adopt(id, done)).is_ok() {
                let _late = timeout(ASKED, adopted).await;
            }
        }
        let ready = ready.borrow().clone();
        Some(serde_json::to_vec(&Greeting::Truth(ready)).map(Bytes::from).map_err(|e| e.to_string()))
    }
}
