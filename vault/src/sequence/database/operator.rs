//! The copy's front door: how it stands, and what an operator decides about its servers. A server
//! is promoted, forbidden or taken back at an operator's word alone.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prometheus::{IntCounter, IntGauge, Registry};
use serde::{Deserialize, Serialize};
use shared::shutdown::Shutdown;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::super::coordinator::Seen;
use super::super::entry::{Entry, Tail};
use super::super::journal::{Journal, JournalError};
use super::super::reason::Reason;
use super::copy::{Keeper, Phase, Shared, State};
use super::lineage::{Descent, Lineage, written};
use super::note::{Kept, Note, NoteError};
use super::open::{Connection, lacks, survey};
use super::others::Others;
use super::redundancy::{alarm, patrol};
use super::replies::Replies;
use super::tls::place;
use super::{DatabaseError, Host, Kind, Place, Role, Settings};

/// A promoted server must have everything within this time.
const REPLAY: Duration = Duration::from_secs(20);

/// Why the door cannot open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// What is remembered of the databases.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A metric's name is taken.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// Why an operator's word is not followed. Nothing was changed then.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// No such server.
    #[error("{0} is none of sequence.database.hosts; write one of: {1}")]
    Unknown(String, String),
    /// The other vault writes the copy.
    #[error("this vault does not own the ledger and does not write its copy; {}", owner_next(.owner, *.away))]
    NotHere {
        /// The other vault.
        owner: String,
        /// There is no connection to it.
        away: bool,
    },
    /// There is no copy.
    #[error(
        "{0} does not apply: etcd holds this ledger itself (role = \"truth\"), and its members agree by themselves; add, remove or restore members with etcdctl; vault database status shows them"
    )]
    Truth(&'static str),
    /// Which server?
    #[error(
        "take-over promotes one server and forbids the one that is written to, at once: name it: {}",
        named(.0, .1)
    )]
    WhichHost(Vec<String>, String),
    /// It does not answer, or refuses.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// It must not be written to.
    #[error("{host} is not taken: {why}; {next}")]
    NotTaken {
        /// Host and port.
        host: String,
        /// Why.
        why: String,
        /// What to do.
        next: &'static str,
    },
    /// What was decided cannot be written down.
    #[error("the decision cannot be kept: {0}")]
    Note(#[from] NoteError),
    /// It was promoted, and is not up to date yet.
    #[error(
        "{host} takes writes now, but does not have every entry yet: {why}; it goes on by itself, see vault database status; meanwhile: {}",
        .to_do.join("; ")
    )]
    NotYet {
        /// Host and port.
        host: String,
        /// How it stands.
        why: String,
        /// What is left to do with the others meanwhile.
        to_do: Vec<String>,
    },
}

/// What Prometheus sees of the copy.
#[derive(Clone)]
pub(super) struct Metrics {
    lag: IntGauge,
    current: IntGauge,
    refused: IntGauge,
    writable: IntGauge,
    answering: IntGauge,
    connects: IntCounter,
}

impl Metrics {
    fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            lag: IntGauge::new("vault_database_lag_entries", "Final entries that the database's copy lacks")?,
            current: IntGauge::new(
                "vault_database_current",
                "1 while the copy has every final entry and replies wait for it",
            )?,
            refused: IntGauge::new(
                "vault_database_refused",
                "1 while the copy is not written to until an operator acts",
            )?,
            writable: IntGauge::new(
                "vault_database_writable_servers",
                "Database servers that take writes; more than 1 is a split brain",
            )?,
            answering: IntGauge::new(
                "vault_database_answering_servers",
                "Database servers that answer and may be used, primary and standbys or members",
            )?,
            connects: IntCounter::new("vault_database_connects_total", "Connections made to write the copy")?,
        };
        let Self { lag, current, refused, writable, answering, .. } = &metrics;
        for gauge in [lag, current, refused, writable, answering] {
            registry.register(Box::new(gauge.clone()))?;
        }
        registry.register(Box::new(metrics.connects.clone()))?;
        Ok(metrics)
    }

    pub(super) fn lag(&self, entries: u64) {
        self.lag.set(i64::try_from(entries).unwrap_or(i64::MAX));
    }

    pub(super) fn phase(&self, phase: Phase) {
        self.current.set(i64::from(phase == Phase::Current));
        self.refused.set(i64::from(phase == Phase::Refused));
    }

    pub(super) fn writable(&self, servers: usize) {
        self.writable.set(i64::try_from(servers).unwrap_or(i64::MAX));
    }

    pub(super) fn answering(&self, servers: usize) {
        self.answering.set(i64::try_from(servers).unwrap_or(i64::MAX));
    }

    pub(super) fn connected(&self) {
        self.connects.inc();
    }
}

/// In a line, for `vault status`.
#[derive(Debug, Clone, Serialize)]
pub struct Brief {
    /// Which kind of database.
    pub kind: Kind,
    /// What it is for.
    pub role: Role,
    /// Where the copy stands.
    #[serde(flatten)]
    pub state: State,
    /// Final entries that it lacks.
    pub lag: u64,
}

/// Everything, for `vault database status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Which kind of database.
    pub kind: Kind,
    /// What it is for.
    #[serde(default)]
    pub role: Role,
    /// How the copy is.
    pub phase: Phase,
    /// Why it is not current.
    pub why: Option<String>,
    /// Final entries in the journals.
    pub final_entries: u64,
    /// Entries in the copy, as last seen.
    pub holds: u64,
    /// What the journals know of the server last written to.
    pub known: Option<Lineage>,
    /// Each server, as it shows itself now.
    pub servers: Vec<Server>,
    /// What needs an operator.
    pub alarms: Vec<String>,
}

/// One server in a [`Report`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Server {
    /// As it shows itself.
    #[serde(flatten)]
    pub host: Host,
    /// What keeps it from being written to.
    pub lacks: Option<String>,
    /// Is it written to now?
    pub written: bool,
}

/// What was done at the operator's word, and what is left to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Decided {
    /// The server.
    pub host: Option<String>,
    /// What was done, in order.
    pub done: Vec<String>,
    /// What the operator must do now.
    pub to_do: Vec<String>,
}

/// What whoever appends to the ledger itself tells the door, and asks it.
pub(in crate::sequence) struct Told {
    shared: Arc<Shared>,
    state: watch::Sender<State>,
}

impl Told {
    /// The members, and how they are reached.
    pub(in crate::sequence) fn settings(&self) -> &Settings {
        &self.shared.settings
    }

    /// What is remembered outside the journal.
    pub(in crate::sequence) fn note(&self) -> Note {
        self.shared.kept.note()
    }

    /// Remembers something, durably; blocks for a disk's flush.
    pub(in crate::sequence) fn remember(&self, change: impl FnOnce(&mut Note)) -> Result<(), NoteError> {
        self.shared.kept.change(change)
    }

    /// This vault's entries after `after`: as many as one append takes.
    pub(in crate::sequence) fn read(&self, after: u64) -> Result<Vec<Entry>, JournalError> {
        self.shared.read(after, u64::MAX)
    }

    /// Where this vault's chain stood at `index`; `None` where it does not reach so far.
    pub(in crate::sequence) fn tail_at(&self, index: u64) -> Result<Option<Tail>, JournalError> {
        self.shared.tail_at(index)
    }

    /// Another connection was made.
    pub(in crate::sequence) fn connected(&self, place: &str) {
        self.shared.metrics.connected();
        self.state.send_modify(|state| {
            state.place = Some(place.to_owned());
            state.connected += 1;
        });
    }

    /// How it stands.
    pub(in crate::sequence) fn show(&self, phase: Phase, holds: u64, why: Option<String>) {
        self.shared.metrics.phase(phase);
        self.state.send_if_modified(|state| {
            let changed = state.phase != phase || state.holds != holds || state.why != why;
            (state.phase, state.holds, state.why) = (phase, holds, why);
            changed
        });
    }
}

/// The door; cheap to clone.
#[derive(Clone)]
pub struct Database {
    shared: Arc<Shared>,
    state: watch::Receiver<State>,
}

impl Database {
    /// Opens the door and starts the task that keeps the copy; call inside a runtime.
    ///
    /// # Errors
    /// The note or the journal cannot be read.
    pub(in crate::sequence) fn start(
        settings: Settings,
        peer: &str,
        journal: &Path,
        seen: watch::Receiver<Seen>,
        registry: &Registry,
        shutdown: Shutdown,
    ) -> Result<(Self, Replies), OpenError> {
        let shared = share(settings, peer, journal, seen, registry)?;
        let (keeper, replies, state) = Keeper::new(Arc::clone(&shared));
        tokio::spawn(keeper.run(shutdown));
        Ok((Self { shared, state }, replies))
    }

    /// The door to a database that holds the ledger itself, whose members are looked at now and
    /// then. Whoever appends to it gets the rest; call inside a runtime.
    ///
    /// # Errors
    /// The note or the journal cannot be read.
    pub(in crate::sequence) fn of_truth(
        settings: Settings,
        peer: &str,
        journal: &Path,
        seen: watch::Receiver<Seen>,
        registry: &Registry,
        shutdown: Shutdown,
    ) -> Result<(Self, Told), OpenError> {
        let shared = share(settings, peer, journal, seen, registry)?;
        let (state, shown) = watch::channel(State::default());
        tokio::spawn(patrol(Arc::clone(&shared), state.clone(), shutdown));
        Ok((Self { shared: Arc::clone(&shared), state: shown }, Told { shared, state }))
    }

    /// Where the copy stands.
    #[must_use]
    pub fn brief(&self) -> Brief {
        let state = self.state.borrow().clone();
        let lag = self.final_index().saturating_sub(state.holds);
        self.shared.metrics.lag(lag);
        Brief { kind: self.shared.settings.kind, role: self.shared.settings.role, lag, state }
    }

    /// Looks at every server now.
    pub async fn report(&self) -> Report {
        let mut note = self.shared.kept.note();
        if self.shared.settings.role == Role::Truth {
            // The mark in it says which one it is, and not what a copy in it was once.
            note.lineage = None;
        }
        let (hosts, _closed) = survey(&self.shared.settings, &note.fenced).await;
        let state = self.state.borrow().clone();
        let refused = state.why.clone().filter(|_| state.phase == Phase::Refused);
        let mut alarms: Vec<String> = refused.into_iter().collect();
        alarms.extend(alarm(self.shared.settings.kind, &hosts));
        let servers = hosts.into_iter().map(|host| {
            let lacks = (host.place == Place::Primary).then(|| lacks(&host, &note)).flatten();
            let written = matches!(state.phase, Phase::Current | Phase::Behind)
                && state.place.as_deref() == Some(host.host.as_str());
            Server { host, lacks, written }
        });
        Report {
            kind: self.shared.settings.kind,
            role: self.shared.settings.role,
            servers: servers.collect(),
            phase: state.phase,
            why: state.why,
            final_entries: self.final_index(),
            holds: state.holds,
            known: note.lineage,
            alarms,
        }
    }

    /// Never writes to this server again, until [`Database::rejoin`]. Kept over restarts.
    ///
    /// # Errors
    /// No such server, or the disk.
    pub async fn fence(&self, host: &str) -> Result<Decided, OperatorError> {
        self.refuse_truth("fence")?;
        let host = self.known_host(host)?;
        let fenced = host.clone();
        self.decide(move |note| {
            note.fenced.insert(fenced);
        })
        .await?;
        tracing::warn!("sequence: database: {host} is fenced at the operator's word");
        Ok(Decided {
            done: vec![format!("{host} is not written to by this vault, also after a restart")],
            to_do: vec![
                format!("write the same on the other vault: vault database fence --host {host}"),
                format!(
                    "stop the server on {host}, or make it a standby of the other, then vault database rejoin --host {host}"
                ),
            ],
            host: Some(host),
        })
    }

    /// Takes a server back after it was made a standby again, or, without a host, a database that
    /// was refused and put right.
    ///
    /// # Errors
    /// It does not answer, or goes on apart from the one that is written to.
    pub async fn rejoin(&self, host: Option<&str>) -> Result<Decided, OperatorError> {
        self.refuse_truth("rejoin")?;
        let host = host.map(|host| self.known_host(host)).transpose()?;
        let Some(host) = host else {
            self.decide(|note| (note.refused, note.copied, note.lineage) = (None, 0, None)).await?;
            return Ok(Decided {
                host: None,
                done: vec![
                    "what was known of the database is forgotten; it is compared with the journals again"
                        .to_owned(),
                ],
                to_do: vec!["see vault database status".to_owned()],
            });
        };
        let (seen, _connection) = self.look(&host).await?;
        let note = self.shared.kept.note();
        let descent = descent(&seen, &note);
        let apart = matches!(descent, Some(Descent::Aside(_) | Descent::Stranger))
            || (seen.place == Place::Primary && lacks(&seen, &note).is_some());
        if apart {
            return Err(OperatorError::NotTaken {
                why: aside(&seen, &note),
                host,
                next: "stop it, bring it to the other's history (pg_rewind, or a new base backup), start it as a standby, then write this again",
            });
        }
        let back = host.clone();
        self.decide(move |note| {
            note.fenced.remove(&back);
        })
        .await?;
        let place = if seen.place == Place::Standby { "a standby" } else { "a primary" };
        tracing::warn!("sequence: database: {host} is taken back at the operator's word, as {place}");
        Ok(Decided {
            done: vec![format!("{host} is {place} and may be written to when it is the primary")],
            to_do: vec![format!("write the same on the other vault: vault database rejoin --host {host}")],
            host: Some(host),
        })
    }

    /// Makes this server the one that is written to: checks where it comes from and what it
    /// holds, promotes it if it is a standby, forbids the others that may still take writes, and
    /// replays what it lacks. A standby that is away is not forbidden.
    ///
    /// # Errors
    /// Its history or its entries are not this ledger's; then nothing was changed.
    pub async fn take_over(&self, host: Option<&str>) -> Result<Decided, OperatorError> {
        self.refuse_truth("take-over")?;
        if !self.shared.seen.borrow().leads {
            return Err(self.not_here());
        }
        let note = self.shared.kept.note();
        let (hosts, mut connections) = survey(&self.shared.settings, &note.fenced).await;
        let Some(host) = host else {
            let standbys = hosts.iter().filter(|host| host.place == Place::Standby && !host.fenced);
            let standbys = standbys.map(|host| host.host.clone()).collect();
            return Err(OperatorError::WhichHost(standbys, self.names()));
        };
        let host = self.known_host(host)?;
        let chosen = hosts.iter().position(|seen| seen.host == host);
        let chosen = chosen.and_then(|place| Some((hosts.get(place)?, connections.get_mut(place)?)));
        let Some((target, connection)) = chosen else {
            return Err(OperatorError::Unknown(host, self.names()));
        };
        let Some(connection) = connection else {
            let why = target.why.clone().unwrap_or_else(|| "it does not answer".to_owned());
            let next = "see that the server answers, or name another; vault database status shows them";
            return Err(OperatorError::NotTaken { host, why, next });
        };
        let mut done = vec![self.check(target, &note).await?];
        if target.place == Place::Standby {
            if !connection.promote().await? {
                return Err(OperatorError::NotTaken {
                    host: target.host.clone(),
                    why: "this kind of database is promoted with its own tools".to_owned(),
                    next: "promote it there (STOP REPLICA; SET GLOBAL read_only = 0), then write this again",
                });
            }
            done.push(format!("{} is promoted: it takes writes now", target.host));
        }
        let others = Others::of(&hosts, &target.host, &note.standbys);
        let (fenced, back) = (others.former.clone(), target.host.clone());
        self.decide(move |note| {
            note.fenced.extend(fenced);
            note.fenced.remove(&back);
            note.standbys.remove(&back);
            // What it lost is known, and replayed.
            (note.refused, note.copied, note.lineage) = (None, 0, None);
        })
        .await?;
        done.extend(
            others.former.iter().map(|other| format!("{other} is fenced: this vault never writes to it")),
        );
        tracing::warn!("sequence: database: take-over by {} at the operator's word", target.host);
        let mut to_do = others.to_do(&target.host);
        to_do.extend(self.rewind(&target.host).filter(|_| !to_do.is_empty()));
        to_do.push("tables of other programs in this database may lack what was not replicated: they are theirs to mend".to_owned());
        if let Err(why) = self.wait_replayed(&target.host).await {
            return Err(OperatorError::NotYet { host: target.host.clone(), why, to_do });
        }
        let held = target.holds.map_or(0, |tail| tail.index);
        let upto = self.final_index();
        done.push(format!(
            "{} holds all {upto} entries; {} of them were replayed",
            target.host,
            upto.saturating_sub(held)
        ));
        Ok(Decided { host: Some(target.host.clone()), done, to_do })
    }

    /// How a server of PostgreSQL is brought to the history of `source`, and what stands in the way.
    fn rewind(&self, source: &str) -> Option<String> {
        let settings = &self.shared.settings;
        let (name, port) = settings.hosts.iter().find(|address| place(address) == source)?;
        (settings.kind == Kind::Postgres).then(|| format!(
            "pg_rewind, on a server that is stopped: pg_rewind -D DATA --source-server='host={name} port={port} user=postgres dbname=postgres' -R; it needs wal_log_hints = on or data checksums there, a superuser at the source, and brings the source's postgresql.conf along: set the port and the like back before the start"
        ))
    }

    fn not_here(&self) -> OperatorError {
        let away = self.shared.seen.borrow().refusal == Some(Reason::Away);
        OperatorError::NotHere { owner: self.shared.peer.clone(), away }
    }

    /// May this server be written to at the operator's word?
    async fn check(&self, target: &Host, note: &Note) -> Result<String, OperatorError> {
        let refuse =
            |why: String, next| Err(OperatorError::NotTaken { host: target.host.clone(), why, next });
        if !matches!(target.place, Place::Standby | Place::Primary) {
            return refuse(target.why.clone().unwrap_or_default(), "put that right first");
        }
        if matches!(descent(target, note), Some(Descent::Aside(_) | Descent::Stranger)) {
            return refuse(
                aside(target, note),
                "bring it to the history that the journals know (pg_rewind, or a new base backup) first",
            );
        }
        let held = target.holds.unwrap_or_default();
        let upto = self.final_index();
        let shared = Arc::clone(&self.shared);
        let ours = tokio::task::spawn_blocking(move || shared.tail_at(held.index)).await;
        let ours = match ours {
            Ok(Ok(ours)) => ours,
            Ok(Err(error)) => return refuse(error.to_string(), "look at this vault's disk"),
            Err(error) => return refuse(error.to_string(), "write it again"),
        };
        if held.index > upto || ours != Some(held) {
            return refuse(
                format!("its {} entries are not the first ones of this ledger's {upto}", held.index),
                "find out whose they are; vault database rejoin when it is put right",
            );
        }
        let past = target.lineage.as_ref().map(|lineage| format!(" ({lineage})")).unwrap_or_default();
        Ok(format!("{}{past}: its {} entries are the first of this ledger's {upto}", target.host, held.index))
    }

    /// Waits until it is the one that is written to and has everything.
    ///
    /// # Errors
    /// Why it does not come to that soon.
    async fn wait_replayed(&self, host: &str) -> Result<(), String> {
        let mut state = self.state.clone();
        let settled =
            state.wait_for(|state| state.phase == Phase::Current && state.place.as_deref() == Some(host));
        let arrived = timeout(REPLAY, settled).await.is_ok_and(|settled| settled.is_ok());
        let why = || self.state.borrow().why.clone().unwrap_or_else(|| "it is being replayed".to_owned());
        if arrived { Ok(()) } else { Err(why()) }
    }

    async fn look(&self, host: &str) -> Result<(Host, Connection), OperatorError> {
        let settings = &self.shared.settings;
        let Some(address) = settings.hosts.iter().find(|address| place(address) == host) else {
            return Err(OperatorError::Unknown(host.to_owned(), self.names()));
        };
        let mut connection = Connection::open(settings, address).await?;
        Ok((connection.look().await?, connection))
    }

    /// `host` as it is named everywhere; the port may be left out where only one server has it.
    fn known_host(&self, host: &str) -> Result<String, OperatorError> {
        let mut hits = self
            .shared
            .settings
            .hosts
            .iter()
            .map(|address| (address.0.as_str(), place(address)))
            .filter(|(name, place)| *name == host || place == host);
        match (hits.next(), hits.next()) {
            (Some((_, place)), None) => Ok(place),
            _ => Err(OperatorError::Unknown(host.to_owned(), self.names())),
        }
    }

    fn refuse_truth(&self, word: &'static str) -> Result<(), OperatorError> {
        match self.shared.settings.role {
            Role::Truth => Err(OperatorError::Truth(word)),
            Role::Copy => Ok(()),
        }
    }

    fn names(&self) -> String {
        self.shared.settings.hosts.iter().map(place).collect::<Vec<_>>().join(", ")
    }

    fn final_index(&self) -> u64 {
        self.shared.seen.borrow().final_index
    }

    async fn decide(&self, change: impl FnOnce(&mut Note) + Send + 'static) -> Result<(), OperatorError> {
        let shared = Arc::clone(&self.shared);
        let decided = tokio::task::spawn_blocking(move || {
            shared.kept.change(|note| {
                change(note);
                note.decided += 1;
            })
        });
        match decided.await {
            Ok(decided) => decided?,
            Err(error) => tracing::error!("sequence: database: {error}"),
        }
        self.shared.again.notify_one();
        Ok(())
    }
}

/// What the door has in common with whoever keeps the copy, or appends to the ledger itself.
fn share(
    settings: Settings,
    peer: &str,
    journal: &Path,
    seen: watch::Receiver<Seen>,
    registry: &Registry,
) -> Result<Arc<Shared>, OpenError> {
    let kept = Kept::open(journal)?;
    kept.change(|note| note.is_of(settings.kind))?;
    Ok(Arc::new(Shared {
        settings,
        peer: peer.to_owned(),
        kept,
        journal: Mutex::new(Journal::open_to_read(journal)?),
        seen,
        again: Notify::new(),
        metrics: Metrics::new(registry)?,
    }))
}

fn owner_next(owner: &str, away: bool) -> String {
    if away {
        format!(
            "its owner {owner} is away: if that one is lost, first here: vault number take-over, then this again"
        )
    } else {
        format!("write the same on its owner {owner}")
    }
}

/// What is to be written for each standby that answers.
fn named(standbys: &[String], all: &str) -> String {
    if standbys.is_empty() {
        return format!("--host, one of {all}; no standby answers now");
    }
    let each: Vec<_> =
        standbys.iter().map(|host| format!("vault database take-over --host {host}")).collect();
    format!("{}; no other standby answers now", each.join(", or "))
}

fn descent(host: &Host, note: &Note) -> Option<Descent> {
    Some(host.lineage.as_ref()?.descent(note.lineage.as_ref()?))
}

/// How a server's history differs from the one that the journals know.
fn aside(host: &Host, note: &Note) -> String {
    match (descent(host, note), &note.lineage) {
        (Some(Descent::Aside(at) | Descent::Forked(at)), Some(known)) => {
            format!("its history branched off at {}; the journals know {known}", written(at))
        }
        _ => {
            lacks(host, note).unwrap_or_else(|| "it goes on apart from the one that is written to".to_owned())
        }
    }
}
