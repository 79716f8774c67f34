//! Joins the rooms behind the API: who tells whom, who answers whom. Decides nothing; the order
//! in which the program starts and stops is `serve`'s.

mod alike;
mod chores;

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use prometheus::Registry;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use shared::shutdown::Shutdown;
use tokio::sync::{mpsc, watch};

use crate::api::admin::{Health, Readiness};
use crate::api::server::PairDoor;
use crate::api::status::Sources;
use crate::api::upkeep::TellOfAdoption;
use crate::api::{bridge, database, files, leases, life, names, numbers, records, upkeep};
use crate::bridge::{Bridge, BridgeError};
use crate::config::Config;
use crate::config::alike::Alike;
use crate::pair::{Answerer, Event, Pair, PairError, Topic};
use crate::pki::Pki;
use crate::posting::{self, PostError, Posting};
use crate::sequence::run_folder::run_folder;
use crate::sequence::{self, Events, Forward, Sequence, Unheard};
use crate::storage::{Adoption, AskPeerKeys, PeerAdoption, Storage, StorageError};
use crate::worker::upkeep::Upkeep;
use crate::worker::{self, HeardOf, Listener, Merge, Merged, SharedWith, Source, Worker};

mod bridging;
pub(crate) mod queuing;

/// How long a change of the catalog that nobody waits for waits for others: the other vault would
/// otherwise tell back each upload by itself, and flush its catalog once more for it.
const COMPANY: Duration = Duration::from_millis(20);
/// The owner must have answered a forwarded wish within this time.
const FORWARD_DEADLINE: Duration = Duration::from_secs(4);
/// An operator waits no longer than this for the other vault's side.
const STATUS_DEADLINE: Duration = Duration::from_millis(1500);
/// The other vault must have said within this time whether it has a message: its caller waits, and goes
/// to the other vault after little more.
const POST_DEADLINE: Duration = Duration::from_millis(700);
/// The other vault must have adopted a file server within this time.
const ADOPT_DEADLINE: Duration = Duration::from_secs(20);
/// How soon the keys of messages are tried again when their book cannot begin.
const JOIN_AGAIN: Duration = Duration::from_secs(10);
/// How often readiness and gauges hear how the rooms are.
const LOOK: Duration = Duration::from_secs(1);
/// Events of the connection that wait for the coordinator.
const EVENTS: usize = 64;

/// Why a room cannot open.
#[derive(Debug, thiserror::Error)]
pub enum RoomsError {
    /// Numbers.
    #[error(transparent)]
    Sequence(#[from] sequence::StartError),
    /// Files.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Messages between brokers.
    #[error(transparent)]
    Bridge(#[from] BridgeError),
}

/// What the rooms behind the API contribute to it.
pub(crate) struct Rooms {
    /// Their routes.
    pub(crate) routes: Router,
    /// Which life answers.
    pub(crate) life: life::Life,
    /// What they say in `vault status`.
    pub(crate) status: Sources,
    /// Where the peer's connections go.
    pub(crate) door: PairDoor,
    /// Numbers, for whoever is in the same program.
    pub(crate) sequence: Sequence,
    /// Metrics kept apart from the program's own registry.
    pub(crate) registries: Vec<Registry>,
}

impl Rooms {
    /// Opens numbers, files and the link to the other vault, over which `posting` asks too. They run until
    /// `shutdown`.
    ///
    /// # Errors
    /// A room that cannot open; the program does not start without it.
    pub(crate) async fn open(
        config: &Config,
        pki: &Pki,
        registry: &Registry,
        (upkeep, readiness): (&Upkeep, Readiness),
        posting: Option<&Posting>,
        shutdown: &Shutdown,
    ) -> Result<Self, RoomsError> {
        let pair = Pair::new(config.pair.clone());
        let (ordered, events) = mpsc::channel(EVENTS);
        if let Some(database) = &config.database {
            // A ledger that is gone is not begun anew.
            let prepare = database.role == sequence::database::Role::Copy;
            sequence::database::open::check(database, prepare)
                .await
                .map_err(sequence::StartError::Database)?;
        }
        let (sequence, feed) = open_sequence(config, &pair, registry, shutdown)?;
        tokio::spawn(pass_on(events, feed));
        let storage = Storage::open(config.storage.clone(), &config.name).await?;
        let worker = Worker::new(pair.clone());
        let merged = worker.tell(catalog_source(&storage), shutdown.clone());
        worker.tell(certificate_source(pki), shutdown.clone());
        tell_of_intents(&storage, &worker, merged.clone());
        let link = pair.up();
        storage.set_peer_knowledge(Arc::new(move || link.borrow().then(|| merged.upto())));

        let (acceptor, accepted) = mpsc::channel(2);
        let bridge = Bridge::start(&config.bridge, &config.name, &config.state, registry, shutdown)?;
        let own = config.alike();
        let mut answerers = answerers(&sequence, &storage, &bridge, pki, &own);
        answerers.insert(Topic::Post, answer_posts(posting, posting::file(&config.state)));
        if let Some(posting) = posting
            && let Err(error) = posting.join(sequence.life(), ask_for_posts(&pair)).await
        {
            let joining =
                join_later(posting.clone(), sequence.life(), ask_for_posts(&pair), error, readiness.clone());
            let stop = shutdown.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = joining => {}
                    () = stop.cancelled() => {}
                }
            });
        }
        tokio::spawn(pair.clone().run(config.tls.clone(), accepted, ordered, answerers, shutdown.clone()));
        tokio::spawn(cut_revoked(pair.clone(), pki.revocations(), shutdown.clone()));
        storage.set_peer_keys(ask_for_keys(&pair));
        storage.set_peer_up(pair.up());
        chores::start(upkeep, &storage, &pair, &readiness, shutdown);
        bridging::prefer(&bridge, &pair, shutdown);
        alike::look(own.clone(), &pair, readiness.clone(), shutdown);
        bridging::look(&bridge, readiness.clone(), shutdown);
        let registries = vec![storage.metrics().await?];
        look(&pair, &sequence, &storage, readiness, shutdown);
        Ok(Self {
            routes: numbers::routes(sequence.clone())
                .merge(records::routes(sequence.clone()))
                .merge(names::routes(sequence.clone(), storage.clone(), config.api.idle_timeout))
                .merge(leases::routes(sequence.clone()))
                .merge(database::routes(sequence.clone()))
                .merge(life::routes(sequence.clone()))
                .merge(bridge::routes(bridge.clone(), bridging::ask_peer(&pair)))
                .merge(files::routes(storage.clone(), config.api.idle_timeout))
                .merge(upkeep::routes(storage.clone(), tell_of_adoption(&pair))),
            life: life::Life::of({
                let sequence = sequence.clone();
                move || sequence.life()
            }),
            status: status(&pair, &sequence, &storage, &bridge, own),
            door: PairDoor { peer: config.pair.peer.clone(), acceptor },
            sequence,
            registries,
        })
    }
}

fn open_sequence(
    config: &Config,
    pair: &Pair,
    registry: &Registry,
    shutdown: &Shutdown,
) -> Result<(Sequence, Events), sequence::StartError> {
    let settings = sequence::Settings {
        journal: journal(&config.state),
        own: config.name.clone(),
        peer: config.pair.peer.clone(),
        owner: config.sequence_owner.clone(),
        run: run_folder(std::env::var_os("RUNTIME_DIRECTORY"), &config.api.control_socket),
        database: config.database.clone(),
    };
    let (tell, hang_up, ask) = (pair.clone(), pair.clone(), pair.clone());
    let forward: Forward = Arc::new(move |body| {
        let pair = ask.clone();
        Box::pin(async move {
            let asked = pair.ask(Topic::Number, body, FORWARD_DEADLINE).await;
            asked.map_err(|error| match error {
                PairError::Away(_) => Unheard::Away,
                PairError::Late(_) => Unheard::Late,
                _ => Unheard::Unknown,
            })
        })
    });
    Sequence::start(
        &settings,
        registry,
        Box::new(move |body| tell.tell(Topic::Sequence, body)),
        Box::new(move || hang_up.hang_up()),
        forward,
        shutdown.clone(),
    )
}

/// Where the ledger's journal lies in the state folder.
pub(crate) fn journal(state: &Path) -> std::path::PathBuf {
    state.join("journal.db")
}

/// The connection's events reach the coordinator in their order.
async fn pass_on(mut events: mpsc::Receiver<Event>, feed: Events) {
    while let Some(event) = events.recv().await {
        match event {
            Event::Up => feed.up().await,
            Event::Down(noted) => feed.down(noted).await,
            Event::Told(body) => feed.told(body).await,
        }
    }
}

fn catalog_source(storage: &Storage) -> Source {
    let (room, asked) = (storage.clone(), storage.clone());
    let shared: SharedWith = Arc::new(move |mark| {
        let room = asked.clone();
        Box::pin(async move { room.shared(mark).await.map_err(|error| error.to_string()) })
    });
    Source {
        topic: Topic::Catalog,
        life: storage.life().to_owned(),
        shared,
        latest: storage.watch_changes(),
        pause: COMPANY,
        changes_since: Arc::new(move |cursor, limit| {
            let room = room.clone();
            Box::pin(async move {
                let changes = room.changes_since(cursor, limit).await.map_err(|error| error.to_string())?;
                let upto = changes.last().map_or(cursor, |change| change.seq);
                Ok((as_json(&changes)?, upto))
            })
        }),
    }
}

fn certificate_source(pki: &Pki) -> Source {
    let (room, asked) = (pki.clone(), pki.clone());
    let shared: SharedWith = Arc::new(move |mark| {
        let room = asked.clone();
        Box::pin(async move { room.shared(mark).await.map_err(|error| error.to_string()) })
    });
    Source {
        topic: Topic::Certificates,
        life: pki.life().to_owned(),
        shared,
        latest: pki.changed(),
        // A revocation waits for nothing.
        pause: Duration::ZERO,
        changes_since: Arc::new(move |cursor, limit| {
            let room = room.clone();
            Box::pin(async move {
                let changes = room.changes_since(cursor, limit).await.map_err(|error| error.to_string())?;
                let upto = changes.last().map_or(cursor, |change| change.seq);
                Ok((as_json(&changes)?, upto))
            })
        }),
    }
}

/// An upload's intent is at the other vault before its replicas are written, so that a retry
/// there finds it.
fn tell_of_intents(storage: &Storage, worker: &Worker, merged: Merged) {
    let worker = worker.clone();
    storage.set_peer(Arc::new(move |change| {
        let (worker, merged) = (worker.clone(), merged.clone());
        Box::pin(async move { worker.told(merged, change).await })
    }));
}

/// An operator says it once: the other vault looks itself, and adopts that very place or nothing.
fn tell_of_adoption(pair: &Pair) -> TellOfAdoption {
    let pair = pair.clone();
    Arc::new(move |adoption| {
        let pair = pair.clone();
        Box::pin(async move {
            let body = Bytes::from(json!(adoption).to_string());
            match pair.ask(Topic::Adopt, body, ADOPT_DEADLINE).await {
                Ok(_) => PeerAdoption::Adopted,
                Err(error @ PairError::Refused { .. }) => PeerAdoption::Not(error.to_string()),
                Err(error) => {
                    PeerAdoption::Not(format!("{error}; if the place is mounted there, say the same there"))
                }
            }
        })
    })
}

fn answerers(
    sequence: &Sequence,
    storage: &Storage,
    bridge: &Bridge,
    pki: &Pki,
    own: &Alike,
) -> HashMap<Topic, Answerer> {
    let (asked, files, bridge, own) = (sequence.clone(), storage.clone(), bridge.clone(), json!(own));
    let status: Answerer = Arc::new(move |_question| {
        let (sequence, files, bridge, own) = (asked.clone(), files.clone(), bridge.clone(), own.clone());
        Box::pin(async move {
            // The asker may be about to use what the operator has just put into both files.
            if let Err(error) = files.read_keys().await {
                tracing::warn!("{error}; the keys read before stay in use");
            }
            let about = json!({
                "numbers": sequence.status(),
                "files": status_of_files(&files).await,
                "bridge": bridging::told(&bridge),
                (alike::KEY): own,
            });
            Ok(Bytes::from(about.to_string()))
        })
    });
    let sequence = sequence.clone();
    let numbers: Answerer = Arc::new(move |body: Bytes| {
        let sequence = sequence.clone();
        Box::pin(async move { sequence.forwarded(body).await })
    });
    let room = storage.clone();
    let adopt: Answerer = Arc::new(move |told: Bytes| {
        let room = room.clone();
        Box::pin(async move {
            let told: Adoption = serde_json::from_slice(&told).map_err(|error| error.to_string())?;
            room.follow_adoption(told).await.map_err(|error| error.to_string())?;
            Ok(Bytes::new())
        })
    });
    HashMap::from([
        (Topic::Number, numbers),
        (Topic::Status, status),
        (Topic::Adopt, adopt),
        (Topic::Catalog, worker::hear(catalog_listener(storage))),
        (Topic::Certificates, worker::hear(certificate_listener(pki))),
    ])
}

fn answer_posts(posting: Option<&Posting>, file: PathBuf) -> Answerer {
    let posting = posting.cloned();
    Arc::new(move |question| {
        let (posting, file) = (posting.clone(), file.clone());
        Box::pin(async move {
            match posting {
                Some(posting) => posting.answer(&question).await,
                None => posting::answer_without(&file),
            }
        })
    })
}

fn ask_for_posts(pair: &Pair) -> posting::AskPeer {
    let pair = pair.clone();
    Arc::new(move |question| {
        let pair = pair.clone();
        Box::pin(async move {
            let asked = pair.ask(Topic::Post, question, POST_DEADLINE).await;
            asked.map_err(|error| error.to_string())
        })
    })
}

/// Their book has refused to begin this life, for want of room on its disk perhaps: it is asked until it does.
async fn join_later(
    posting: Posting,
    life: u128,
    ask: posting::AskPeer,
    mut refused: PostError,
    readiness: Readiness,
) {
    let mut told = String::new();
    loop {
        let error = refused.to_string();
        if error != told {
            tracing::error!(
                "messages: {error}; none are taken over HTTP; it is tried again every {JOIN_AGAIN:?}"
            );
            readiness.report("posts", Health::Degraded, error.clone());
            told = error;
        }
        tokio::time::sleep(JOIN_AGAIN).await;
        match posting.join(life, Arc::clone(&ask)).await {
            Ok(()) => {
                tracing::info!("messages: they are taken over HTTP from now on");
                return readiness.report("posts", Health::Good, "messages are taken over HTTP");
            }
            Err(again) => refused = again,
        }
    }
}

fn catalog_listener(storage: &Storage) -> Listener {
    let (asked, told) = (storage.clone(), storage.clone());
    let heard: HeardOf = Arc::new(move || {
        let room = asked.clone();
        Box::pin(async move { room.heard().await.map_err(|error| error.to_string()) })
    });
    let merge: Merge = Arc::new(move |changes, mark| {
        let room = told.clone();
        Box::pin(async move {
            room.merge(from_json(changes)?, Some(mark)).await.map_err(|error| error.to_string())
        })
    });
    Listener { heard, merge }
}

fn certificate_listener(pki: &Pki) -> Listener {
    let (asked, told) = (pki.clone(), pki.clone());
    let heard: HeardOf = Arc::new(move || {
        let room = asked.clone();
        Box::pin(async move { room.heard().await.map_err(|error| error.to_string()) })
    });
    let merge: Merge = Arc::new(move |changes, mark| {
        let room = told.clone();
        Box::pin(async move {
            room.merge(from_json(changes)?, Some(mark)).await.map_err(|error| error.to_string())
        })
    });
    Listener { heard, merge }
}

fn as_json<T: serde::Serialize>(changes: &[T]) -> Result<Vec<Value>, String> {
    changes.iter().map(|change| serde_json::to_value(change).map_err(|error| error.to_string())).collect()
}

fn from_json<T: DeserializeOwned>(changes: Vec<Value>) -> Result<Vec<T>, String> {
    changes
        .into_iter()
        .map(|change| serde_json::from_value(change).map_err(|error| error.to_string()))
        .collect()
}

/// A peer whose certificate is revoked is cut, whoever dialled.
async fn cut_revoked(
    pair: Pair,
    mut revocations: watch::Receiver<Arc<BTreeSet<String>>>,
    shutdown: Shutdown,
) {
    let mut up = pair.up();
    loop {
        let revoked = revocations.borrow_and_update().clone();
        let connected = *up.borrow_and_update();
        if connected && pair.serial().is_some_and(|serial| revoked.contains(&serial)) {
            tracing::error!(
                "pair: the certificate of {} is revoked; its connection is cut. Enrol it anew",
                pair.peer()
            );
            pair.hang_up();
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = revocations.changed() => if changed.is_err() { return },
            changed = up.changed() => if changed.is_err() { return },
        }
    }
}

fn ask_for_keys(pair: &Pair) -> AskPeerKeys {
    let pair = pair.clone();
    Arc::new(move || {
        let pair = pair.clone();
        Box::pin(async move { serde_json::from_value(status_of_peer(&pair).await["files"].take()).ok() })
    })
}

/// Readiness and gauges follow the rooms.
fn look(pair: &Pair, sequence: &Sequence, storage: &Storage, readiness: Readiness, shutdown: &Shutdown) {
    let (pair, sequence, storage) = (pair.clone(), sequence.clone(), storage.clone());
    let look = move || -> BoxFuture<'static, ()> {
        let (pair, sequence, storage) = (pair.clone(), sequence.clone(), storage.clone());
        let readiness = readiness.clone();
        Box::pin(async move {
            let (health, detail) = match *pair.up().borrow() {
                true => (Health::Good, format!("{} is connected", pair.peer())),
                false => (Health::Degraded, format!("{} is away", pair.peer())),
            };
            readiness.report("pair", health, detail);
            let numbers = sequence.status();
            match numbers.reason {
                None => readiness.report("numbers", Health::Good, "given"),
                Some(reason) => readiness.report("numbers", Health::Degraded, reason),
            }
            report_files(&storage, &readiness).await;
        })
    };
    worker::every(LOOK, look, shutdown.clone());
}

async fn report_files(storage: &Storage, readiness: &Readiness) {
    let status = match storage.status().await {
        Ok(status) => status,
        Err(error) => return readiness.report("files", Health::Bad, error.to_string()),
    };
    // Brings the gauges up to date.
    if let Err(error) = storage.metrics().await {
        tracing::warn!("{error}; storage's gauges are old");
    }
    let away: Vec<_> = status.file_servers.iter().filter(|server| !server.up).map(|s| &*s.name).collect();
    let health = match away.len() {
        0 => Health::Good,
        count if count < status.file_servers.len() => Health::Degraded,
        _ => Health::Bad,
    };
    let detail = match away.as_slice() {
        [] => format!("both file servers answer, {} replicas owed", status.owed),
        away => format!("file servers away: {}, {} replicas owed", away.join(", "), status.owed),
    };
    readiness.report("files", health, detail);
}

/// What `vault status` shows of the rooms: this vault's, and the other's own words.
fn status(pair: &Pair, sequence: &Sequence, storage: &Storage, bridge: &Bridge, own: Alike) -> Sources {
    let (pair, sequence, files) = (pair.clone(), sequence.clone(), storage.clone());
    let mut sources: Sources = vec![
        (
            "pair",
            Arc::new(move || {
                let (pair, own) = (pair.clone(), own.clone());
                Box::pin(async move {
                    let its_status = status_of_peer(&pair).await;
                    json!({
                        "peer": pair.peer(),
                        "connected": *pair.up().borrow(),
                        "unlike": alike::differs(&own, pair.peer(), &its_status),
                        "its_status": its_status,
                    })
                })
            }),
        ),
        (
            "numbers",
            Arc::new(move || {
                let sequence = sequence.clone();
                Box::pin(async move { json!(sequence.status_in_full().await) })
            }),
        ),
        (
            "files",
            Arc::new(move || {
                let files = files.clone();
                Box::pin(async move { status_of_files(&files).await })
            }),
        ),
    ];
    if !bridge.is_empty() {
        let bridge = bridge.clone();
        sources.push((
            "bridge",
            Arc::new(move || {
                let bridge = bridge.clone();
                Box::pin(async move { bridging::told(&bridge) })
            }),
        ));
    }
    sources
}

async fn status_of_files(storage: &Storage) -> Value {
    match storage.status().await {
        Ok(status) => json!(status),
        Err(error) => json!({ "error": error.to_string() }),
    }
}

async fn status_of_peer(pair: &Pair) -> Value {
    match pair.ask(Topic::Status, Bytes::new(), STATUS_DEADLINE).await {
        Ok(body) => {
            serde_json::from_slice(&body).unwrap_or_else(|error| json!({ "error": error.to_string() }))
        }
        Err(error) => json!({ "error": error.to_string() }),
    }
}
