//! Brings the copy up to date with the entries that are final, in batches. A database that is late
//! is behind: replies wait no longer, it is connected again and caught up by itself, and then they
//! wait again. Knows no SQL and no implementer; decides nothing about numbers.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shared::retry::Backoff;
use shared::shutdown::Shutdown;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::super::coordinator::Seen;
use super::super::digest::Digest;
use super::super::entry::{Entry, Tail};
use super::super::journal::{Journal, JournalError};
use super::note::{Kept, Note};
use super::open::{Connection, choose, survey};
use super::operator::Metrics;
use super::replies::{Replies, Waiters};
use super::{DatabaseError, Host, Settings};

/// How often the servers are looked at.
pub(super) const PROBE: Duration = Duration::from_secs(5);
/// How often it is written down how far the copy goes.
const NOTE: Duration = Duration::from_secs(2);
/// No batch is larger, unless one entry is. etcd takes 1.5 MiB at a time, and a control character of
/// a record's value becomes six bytes in its JSON.
const BATCH_BYTES: usize = 192 * 1024;
/// Waits between two attempts to connect.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// How the copy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Not connected yet.
    Connecting,
    /// It has every final entry; replies wait for it.
    Current,
    /// It is being caught up; replies do not wait.
    Behind,
    /// It is not reached, and tried again.
    Away,
    /// Not written to until an operator acts.
    Refused,
    /// The other vault writes it.
    Watched,
}

/// Where the copy stands.
#[derive(Debug, Clone, Serialize)]
pub struct State {
    /// How it is.
    pub phase: Phase,
    /// The server that is written to.
    pub place: Option<String>,
    /// What is wrong, if anything is.
    pub why: Option<String>,
    /// Entries in the copy, as last seen.
    pub holds: u64,
    /// How often it was connected.
    pub connected: u64,
    /// Servers that take writes; more than one is a split brain.
    pub writable: Vec<String>,
    /// That more than one does, and what to do.
    pub alarm: Option<String>,
    /// What is gone of that which makes good the loss of a server.
    pub thin: Option<String>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            phase: Phase::Connecting,
            place: None,
            why: None,
            holds: 0,
            connected: 0,
            writable: Vec::new(),
            alarm: None,
            thin: None,
        }
    }
}

/// What the copy's door and its task share.
pub(super) struct Shared {
    pub(super) settings: Settings,
    /// The other vault's name.
    pub(super) peer: String,
    pub(super) kept: Kept,
    pub(super) journal: Mutex<Journal>,
    pub(super) seen: watch::Receiver<Seen>,
    /// The operator has changed the note: connect again.
    pub(super) again: Notify,
    pub(super) metrics: Metrics,
}

impl Shared {
    /// The entries after `after` up to `upto`: a batch of them.
    pub(super) fn read(&self, after: u64, upto: u64) -> Result<Vec<Entry>, JournalError> {
        let journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = 0;
        let mut entries = journal.entries(after)?;
        let fits = |entry: &Entry| {
            bytes += entry.bytes();
            entry.index <= upto && (entry.index == after + 1 || bytes <= BATCH_BYTES)
        };
        let count = entries.iter().map(fits).take_while(|fits| *fits).count();
        entries.truncate(count);
        Ok(entries)
    }

    /// Where the chain stood at `index`; `None` where it does not reach so far.
    pub(super) fn tail_at(&self, index: u64) -> Result<Option<Tail>, JournalError> {
        let Some(before) = index.checked_sub(1) else { return Ok(Some(Tail::default())) };
        Ok(self.read(before, index)?.first().map(Entry::tail))
    }
}

/// What the copy's end says of it.
#[derive(Debug, PartialEq, Eq)]
enum Judged {
    /// It is a prefix of the chain.
    Prefix,
    /// It goes beyond what is known to be final here; when both vaults are together it shows.
    Later,
    /// It holds what is not this ledger's.
    Foreign(String),
}

/// Pure. `ours` is the chain's hash at the copy's last index, where it reaches so far.
fn judge(copy: Tail, ours: Option<Digest>, final_index: u64, together: bool) -> Judged {
    match ours {
        Some(hash) if hash != copy.hash && (copy.index <= final_index || together) => {
            Judged::Foreign(format!(
                "its entry {} is another than this ledger's; restore the database, or give the vault an empty one",
                copy.index
            ))
        }
        _ if copy.index <= final_index => Judged::Prefix,
        _ if together => Judged::Foreign(format!(
            "it holds {} entries, this ledger {final_index}; one of them was restored from a copy, or it is another ledger's",
            copy.index
        )),
        _ => Judged::Later,
    }
}

/// The task that keeps the copy.
pub(super) struct Keeper {
    shared: Arc<Shared>,
    seen: watch::Receiver<Seen>,
    waiters: Waiters,
    state: watch::Sender<State>,
    noted: Instant,
    /// The operator's decisions that this connection was made under.
    decided: u64,
    /// What the log last heard.
    said: Option<String>,
    backoff: Backoff,
}

impl Keeper {
    /// The task, what the coordinator gets, and what the outside sees.
    pub(super) fn new(shared: Arc<Shared>) -> (Self, Replies, watch::Receiver<State>) {
        let (state, shown) = watch::channel(State::default());
        let (replies, waiters) = Replies::new(shared.settings.wait, state.clone());
        let keeper = Self {
            seen: shared.seen.clone(),
            shared,
            waiters,
            state,
            noted: Instant::now(),
            decided: 0,
            said: None,
            backoff: Backoff::new(FIRST_WAIT, LONGEST_WAIT),
        };
        (keeper, replies, shown)
    }

    pub(super) async fn run(mut self, shutdown: Shutdown) {
        loop {
            let ended = tokio::select! {
                () = shutdown.cancelled() => return,
                ended = self.session() => ended,
            };
            self.waiters.give_up();
            if let Err(error) = ended {
                self.tell_trouble(&error);
                let mut jitter = [0; 4];
                // Without randomness two vaults come back together, which is only slower.
                let _ = getrandom::fill(&mut jitter);
                let wait = self.backoff.next(u32::from_le_bytes(jitter));
                let shared = Arc::clone(&self.shared);
                let again = async move {
                    tokio::select! {
                        () = sleep(wait) => {}
                        () = shared.again.notified() => {}
                    }
                };
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = self.waiters.during(again) => {}
                }
            }
        }
    }

    /// Connects, compares, and copies until something changes or goes wrong.
    async fn session(&mut self) -> Result<(), DatabaseError> {
        let note = self.shared.kept.note();
        self.decided = note.decided;
        let (hosts, mut connections) = self.waiters.during(survey(&self.shared.settings, &note.fenced)).await;
        // Who follows is to be known on the day of a take-over, also where nothing is written until then.
        self.look_at(&hosts, note.decided);
        if let Some(what) = note.refused {
            let place = self.place();
            let next = "put it right, then write vault database rejoin".to_owned();
            return Err(DatabaseError::Foreign { place, what, next });
        }
        let place = choose(&hosts, &note)?;
        let Some(mut connection) = connections.get_mut(place).and_then(Option::take) else { return Ok(()) };
        // The others stay open as long as they are needed, no longer.
        drop(connections);
        if !self.seen.borrow_and_update().leads {
            return self.watch(&hosts, place).await;
        }
        let held = self.waiters.during(connection.prepare()).await?;
        self.state.send_modify(|state| {
            state.place = Some(connection.place().to_owned());
            state.connected += 1;
        });
        self.shared.metrics.connected();
        self.compare(connection.place(), held).await?;
        let copied = self.keep(&mut connection, held).await;
        self.take_note(&connection);
        copied
    }

    /// The other vault writes; this one looks at the servers now and then.
    async fn watch(&mut self, hosts: &[Host], place: usize) -> Result<(), DatabaseError> {
        let holds = hosts.get(place).and_then(|host| host.holds).map_or(0, |tail| tail.index);
        self.show(Phase::Watched, holds, None);
        self.backoff.reset();
        let (mut seen, shared) = (self.seen.clone(), Arc::clone(&self.shared));
        let change = async move {
            tokio::select! {
                _leads = seen.wait_for(|seen| seen.leads) => {}
                () = sleep(PROBE) => {}
                () = shared.again.notified() => {}
            }
        };
        self.waiters.during(change).await;
        Ok(())
    }

    /// Is the copy a prefix of the chain?
    async fn compare(&mut self, place: &str, held: Tail) -> Result<(), DatabaseError> {
        let (final_index, together) = {
            let seen = self.seen.borrow();
            (seen.final_index, seen.refusal.is_none())
        };
        let ours = self.in_journal(move |shared| shared.tail_at(held.index)).await?;
        match judge(held, ours.map(|tail| tail.hash), final_index, together) {
            Judged::Prefix => Ok(()),
            Judged::Later => Err(DatabaseError::Away {
                place: place.to_owned(),
                why: format!(
                    "it holds {} entries, of which {final_index} are known to be final here; compared again when both vaults are together",
                    held.index
                ),
            }),
            Judged::Foreign(what) => {
                let refused = what.clone();
                self.note(move |note| note.refused = Some(refused)).await;
                let next = "put it right, then write vault database rejoin".to_owned();
                Err(DatabaseError::Foreign { place: place.to_owned(), what, next })
            }
        }
    }

    /// Copies what becomes final, until this vault no longer leads or something goes wrong.
    async fn keep(&mut self, connection: &mut Connection, held: Tail) -> Result<(), DatabaseError> {
        let mut copied = held;
        let (mut looks, mut looked) = (JoinSet::new(), None);
        self.look_around(&mut looks);
        loop {
            // However much there is to copy.
            if let Some(look) = looked.take().or_else(|| looks.try_join_next()) {
                if let Ok((note, hosts)) = look
                    && !self.probe(connection, copied, &note, &hosts).await?
                {
                    return Ok(());
                }
                self.look_around(&mut looks);
            }
            let (leads, final_index) = {
                let seen = self.seen.borrow_and_update();
                (seen.leads, seen.final_index)
            };
            if !leads {
                return Ok(());
            }
            self.waiters.copied(copied.index);
            let upto = final_index.max(self.waiters.awaited());
            if copied.index < upto {
                if !self.waiters.is_current() {
                    self.show(Phase::Behind, copied.index, None);
                }
                copied = self.copy_on(connection, copied, upto).await?;
                self.shared.metrics.lag(upto.saturating_sub(copied.index));
                if self.noted.elapsed() >= NOTE {
                    self.take_note(connection);
                }
                continue;
            }
            self.waiters.begin();
            self.backoff.reset();
            self.show(Phase::Current, copied.index, None);
            tokio::select! {
                changed = self.seen.changed() => if changed.is_err() { return Ok(()) },
                () = self.waiters.next() => {}
                () = self.shared.again.notified() => return Ok(()),
                look = looks.join_next() => looked = look,
            }
        }
    }

    /// One batch more. Gives the new end of the copy.
    async fn copy_on(
        &mut self,
        connection: &mut Connection,
        copied: Tail,
        upto: u64,
    ) -> Result<Tail, DatabaseError> {
        let after = copied.index;
        let entries = self.in_journal(move |shared| shared.read(after, upto)).await?;
        let Some(end) = entries.last().map(Entry::tail) else {
            let why = format!("it has no entry after {after}");
            return Err(DatabaseError::Away { place: "this vault's journal".to_owned(), why });
        };
        match self.waiters.during(connection.append(copied, &entries)).await {
            Ok(()) => Ok(end),
            Err(DatabaseError::Moved { .. }) => {
                // An append that was given up may have arrived after all.
                let held = self.waiters.during(connection.tail()).await?;
                self.compare(connection.place(), held).await?;
                Ok(held)
            }
            Err(error) => Err(error),
        }
    }

    /// Looks at every server in a while, beside the copying: one that does not answer takes its time.
    fn look_around(&self, looks: &mut JoinSet<(Note, Vec<Host>)>) {
        let shared = Arc::clone(&self.shared);
        looks.spawn(async move {
            sleep(PROBE).await;
            // What is written down later, no server needs to have had yet.
            let note = shared.kept.note();
            let (hosts, _closed) = survey(&shared.settings, &note.fenced).await;
            (note, hosts)
        });
    }

    /// Is the server that is written to still the right one?
    async fn probe(
        &mut self,
        connection: &mut Connection,
        copied: Tail,
        note: &Note,
        hosts: &[Host],
    ) -> Result<bool, DatabaseError> {
        self.take_note(connection);
        self.look_at(hosts, note.decided);
        let right = choose(hosts, note)?;
        let held = self.waiters.during(connection.tail()).await?;
        let same = hosts.get(right).is_some_and(|host| host.host == connection.place());
        Ok(same && held.index >= copied.index)
    }

    /// Reads the journal where blocking is allowed. Replies that wait go on waiting meanwhile.
    async fn in_journal<T: Send + 'static>(
        &mut self,
        read: impl FnOnce(&Shared) -> Result<T, JournalError> + Send + 'static,
    ) -> Result<T, DatabaseError> {
        let shared = Arc::clone(&self.shared);
        let read = self.waiters.during(tokio::task::spawn_blocking(move || read(&shared))).await;
        let away = |why: String| DatabaseError::Away { place: "this vault's journal".to_owned(), why };
        read.map_err(|error| away(error.to_string()))?.map_err(|error| away(error.to_string()))
    }

    async fn note(&mut self, change: impl FnOnce(&mut Note) + Send + 'static) {
        let shared = Arc::clone(&self.shared);
        let changed = tokio::task::spawn_blocking(move || shared.kept.change(change));
        if let Ok(Err(error)) = self.waiters.during(changed).await {
            tracing::error!("sequence: database: {error}; after a restart this is not known");
        }
    }

    /// Writes down how far the copy goes, beside everything else: a lower bound that may be old.
    fn take_note(&mut self, connection: &Connection) {
        self.noted = Instant::now();
        let (copied, lineage) = (self.state.borrow().holds, connection.lineage().cloned());
        let (shared, decided) = (Arc::clone(&self.shared), self.decided);
        tokio::task::spawn_blocking(move || {
            let changed = shared.kept.change(|note| {
                // What an operator has decided meanwhile is not undone.
                if note.decided == decided {
                    note.copied = note.copied.max(copied);
                    note.lineage = lineage.or(note.lineage.take());
                }
            });
            if let Err(error) = changed {
                tracing::warn!("sequence: database: {error}");
            }
        });
    }

    /// Remembers who follows, and shows what the servers are.
    fn look_at(&mut self, hosts: &[Host], decided: u64) {
        self.remember(hosts, decided);
        self.shared.saw(&self.state, hosts);
    }

    /// Writes down who follows, for the day on which some are away, unless an operator has decided
    /// something since they were looked at.
    fn remember(&self, hosts: &[Host], decided: u64) {
        let (shared, hosts) = (Arc::clone(&self.shared), hosts.to_vec());
        tokio::task::spawn_blocking(move || {
            let changed = shared.kept.change(|note| {
                if note.decided == decided {
                    note.saw(&hosts);
                }
            });
            if let Err(error) = changed {
                tracing::warn!("sequence: database: {error}");
            }
        });
    }

    fn place(&self) -> String {
        self.state.borrow().place.clone().unwrap_or_else(|| "the database".to_owned())
    }

    fn tell_trouble(&mut self, error: &DatabaseError) {
        let phase = if error.needs_operator() { Phase::Refused } else { Phase::Away };
        let holds = self.state.borrow().holds;
        self.show(phase, holds, Some(error.to_string()));
    }

    fn show(&mut self, phase: Phase, holds: u64, why: Option<String>) {
        self.shared.metrics.phase(phase);
        if why != self.said {
            match &why {
                Some(why) if phase == Phase::Refused => tracing::error!("sequence: database: {why}"),
                Some(why) => {
                    tracing::warn!("sequence: database: {why}; replies do not wait for it meanwhile");
                }
                None => tracing::info!("sequence: database: {} holds {holds} entries", self.place()),
            }
            self.said.clone_from(&why);
        }
        self.state.send_if_modified(|state| {
            let changed = state.phase != phase || state.holds != holds || state.why != why;
            (state.phase, state.holds, state.why) = (phase, holds, why);
            changed
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Digest = Digest([1; 32]);
    const B: Digest = Digest([2; 32]);

    #[test]
    fn a_copy_is_written_on_only_as_a_prefix_of_the_chain() {
        let copy = |index| Tail { index, hash: A };
        assert_eq!(judge(Tail::default(), Some(Digest::default()), 0, false), Judged::Prefix);
        assert_eq!(judge(copy(3), Some(A), 7, false), Judged::Prefix);
        assert!(matches!(judge(copy(3), Some(B), 7, false), Judged::Foreign(_)));
        // Beyond what is final: only both vaults together know.
        assert_eq!(judge(copy(9), Some(B), 7, false), Judged::Later);
        assert_eq!(judge(copy(9), None, 7, false), Judged::Later);
        assert!(matches!(judge(copy(9), None, 7, true), Judged::Foreign(_)));
        assert!(matches!(judge(copy(9), Some(B), 7, true), Judged::Foreign(_)));
    }
}
