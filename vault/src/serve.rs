//! The order in which vault's rooms open and close. Knows their front doors; decides nothing.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use prometheus::Registry;
use serde_json::json;
use shared::shutdown::Shutdown;
use shared::systemd::{self, Life};
use shared::tls::TlsError;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use crate::api;
use crate::api::admin::{Health, Readiness};
use crate::api::messages::NoPosts;
use crate::api::server::{Bound, Certificates, Server, ServerError};
use crate::api::status::{Sources, StatusSource};
use crate::api::worker::{Behind, NotDone, Wanted};
use crate::broker::{self, Broker, BrokerError};
use crate::config::Config;
use crate::pki::{Pki, PkiError};
use crate::posting::{self, Posting};
use crate::queue::overview;
use crate::queue::{self, QueueError, Queues};
use crate::rooms::{Rooms, RoomsError, queuing};
use crate::sequence::Sequence;
use crate::worker::background::{AskError, Background, BackgroundError, Ending};
use crate::worker::metrics::Metrics;
use crate::worker::upkeep::Upkeep;

/// Why vault does not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Its own certificate.
    #[error("{0}; run `vault pki init` (the first vault) or `vault pki enrol` (the second)")]
    Tls(#[from] TlsError),
    /// The register of certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// Numbers, files, the link to the other vault.
    #[error(transparent)]
    Rooms(#[from] RoomsError),
    /// The queues.
    #[error(transparent)]
    Queues(#[from] QueueError),
    /// Jobs and deliveries.
    #[error(transparent)]
    Background(#[from] Box<BackgroundError>),
    /// Its sockets.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// Its broker.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// A metric is named twice: a fault of the program.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// The system refuses something elementary.
    #[error("{what} failed: {source}")]
    System {
        /// What was asked of it.
        what: &'static str,
        /// Its reason.
        #[source]
        source: io::Error,
    },
}

/// Serves until TERM or INT, then drains. HUP reads the certificates again.
///
/// # Errors
/// Anything that keeps vault from starting; nothing was served then.
pub async fn serve(config: Config) -> Result<(), ServeError> {
    let system = |what| move |source| ServeError::System { what, source };
    let shutdown = shared::shutdown::on_signals().map_err(system("listening for signals"))?;
    let mut hang_up = signal(SignalKind::hangup()).map_err(system("listening for signals"))?;
    let reload = Arc::new(Notify::new());
    let asked = Arc::clone(&reload);
    tokio::spawn(async move {
        while hang_up.recv().await.is_some() {
            asked.notify_one();
        }
    });
    let vault = Vault::open(config).await?;
    vault.run(shutdown, reload).await;
    Ok(())
}

/// A vault whose rooms and sockets are open, and which serves nobody yet.
pub struct Vault {
    config: Config,
    pki: Pki,
    rooms: Rooms,
    certificates: Arc<Certificates>,
    bound: Bound,
    registry: Registry,
    metrics: api::Metrics,
    readiness: Readiness,
    broker: Option<(Broker, broker::Listening)>,
    /// The queues, where there are some.
    queues: Option<Queues>,
    /// Who puts messages into them over HTTP, or why nobody does.
    posting: Result<Posting, NoPosts>,
    /// Jobs and deliveries; ends before the rooms do.
    background: (Background, Ending, Shutdown),
    /// Ends the rooms once nobody calls any more.
    last: Shutdown,
}

impl Vault {
    /// Opens everything that can fail.
    ///
    /// # Errors
    /// See [`ServeError`].
    pub async fn open(config: Config) -> Result<Self, ServeError> {
        let registry = Registry::new();
        let metrics = api::Metrics::register(&registry)?;
        let certificates = Arc::new(Certificates::load(&config.tls)?);
        let pki = Pki::open(&config.pki, &config.tls.authority)?;
        let bound = Bound::bind(&config.api).await?;
        let readiness = Readiness::default();
        let last = Shutdown::new();
        let worked = Metrics::register(&registry)?;
        let upkeep = Upkeep::new(&config.name, &config.state, &worked);
        let broker = match &config.broker {
            Some(settings) => Some(Broker::open(settings.clone(), &registry).await?),
            None => None,
        };
        let queues = queues(&config, broker.as_ref().map(|(broker, _)| broker))?;
        if let Some(queues) = &queues {
            let watched = (&registry, readiness.clone());
            queuing::look_at_queues(queues, queuing::served(&config), watched, &last)?;
        }
        let posting = posting(&config, queues.as_ref(), (&registry, &readiness)).await;
        let watched = (&upkeep, readiness.clone());
        let rooms = Rooms::open(&config, &pki, &registry, watched, posting.as_ref().ok(), &last).await?;
        let (background, ending) = Background::of(upkeep, worked);
        let background = begin(&config, queues.as_ref(), (background, ending), &rooms.sequence, &registry)?;
        Ok(Self {
            config,
            pki,
            rooms,
            certificates,
            bound,
            registry,
            metrics,
            readiness,
            broker,
            queues,
            posting,
            background,
            last,
        })
    }

    /// Where the API listens.
    ///
    /// # Errors
    /// The system's.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.bound.address()
    }

    /// Where health and metrics listen.
    ///
    /// # Errors
    /// The system's.
    pub fn admin_address(&self) -> io::Result<SocketAddr> {
        self.bound.admin_address()
    }

    /// Its numbers, for callers in the same program: they skip HTTP, and nothing else.
    #[must_use]
    pub fn numbers(&self) -> Sequence {
        self.rooms.sequence.clone()
    }

    /// Where JMS clients connect, if they do.
    #[must_use]
    pub fn broker_address(&self) -> Option<SocketAddr> {
        self.broker.as_ref().map(|(broker, _)| broker.address())
    }

    /// Serves until `shutdown`; `reload` makes it read its certificates again.
    pub async fn run(self, shutdown: Shutdown, reload: Arc<Notify>) {
        let Self { config, pki, rooms, certificates, bound, registry, metrics, readiness, .. } = self;
        let Self { broker, queues, posting, background, last, .. } = self;
        let (background, ending, stop_background) = background;
        look_at_worker(&background, readiness.clone(), &last);
        let mut status = status_sources(&config, &pki);
        status.extend(rooms.status);
        status.push(worker_status(&background));
        let (broker, clients) = broker.unzip();
        if let Some(broker) = broker {
            queuing::look_at_broker(&broker, readiness.clone(), &last);
            status.push(broker_status(broker));
        }
        if let Some(queues) = &queues {
            status.push(queuing::status(queues, queuing::served(&config)));
        }
        if let Ok(posting) = &posting {
            status.push(posting_status(posting.clone()));
        }
        let serving_clients = clients.map(|clients| tokio::spawn(clients.run(shutdown.clone())));
        let mut registries = vec![registry];
        registries.extend(rooms.registries);
        let (name, sequence) = (config.name.clone(), rooms.sequence.clone());
        let watching = tokio::spawn(Arc::clone(&certificates).watch(reload, shutdown.clone()));
        let posts = api::messages::routes(posting, config.largest_message());
        let operators = api::worker::routes(behind(&background)).merge(api::queues::routes(queues));
        let router = api::router(api::Parts {
            rooms: rooms.routes.merge(operators).merge(posts),
            pki: pki.clone(),
            life: rooms.life,
            status,
            metrics: metrics.clone(),
        });
        let server = Server {
            api: config.api,
            router,
            pki,
            certificates,
            pair: Some(rooms.door),
            metrics,
            registries,
            readiness,
        };
        if let Ok(address) = bound.address() {
            tracing::info!("vault {name}: serving on {address}");
            systemd::tell(Life::Ready(&format!("{name} serves on {address}")));
        }
        let stopping = shutdown.clone();
        tokio::spawn(async move {
            stopping.cancelled().await;
            stop_background.cancel();
            systemd::tell(Life::Stopping);
        });
        server.run(bound, shutdown).await;
        ending.ended().await;
        if let Some(serving) = serving_clients {
            // It ends by the same word, within its own time.
            let _ended = serving.await;
        }
        last.cancel();
        sequence.ended().await;
        watching.abort();
        tracing::info!("vault {name}: stopped");
    }
}

fn posting_status(posting: Posting) -> (&'static str, StatusSource) {
    let source: StatusSource = Arc::new(move || {
        let posting = posting.clone();
        Box::pin(async move {
            match posting.standing().await {
                Ok(standing) => json!(standing),
                Err(error) => json!({ "error": error.to_string() }),
            }
        })
    });
    ("messages", source)
}

fn broker_status(broker: Broker) -> (&'static str, StatusSource) {
    let source: StatusSource = Arc::new(move || {
        let broker = broker.clone();
        Box::pin(async move {
            match broker.status().await {
                Ok(status) => json!(status),
                Err(error) => json!({ "error": error.to_string() }),
            }
        })
    });
    ("broker", source)
}

/// The broker's queues; where there is none, their thread runs only where a job or a delivery needs it, or
/// where messages wait that an operator must see.
fn queues(config: &Config, broker: Option<&Broker>) -> Result<Option<Queues>, QueueError> {
    let Some(broker) = broker else {
        let file = config.state.join("queue.db");
        let left = overview::left_behind(&file, &queuing::served(config)).unwrap_or_else(|error| {
            tracing::warn!("queues: {error}; whether messages wait there is not known");
            None
        });
        if let Some(left) = &left {
            tracing::warn!("queues: {}: {left}", file.display());
        }
        let are_needed = left.is_some() || works(config);
        return are_needed.then(|| Queues::open(queue::Settings::new(file))).transpose();
    };
    Ok(Some(broker.queues().clone()))
}

/// The keys of messages are opened. Numbers, files and JMS do not wait for a file that cannot be read.
async fn posting(
    config: &Config,
    queues: Option<&Queues>,
    (registry, readiness): (&Registry, &Readiness),
) -> Result<Posting, NoPosts> {
    let is_served = config.broker.is_some() || works(config);
    let queues = queues.filter(|_| is_served).ok_or(NoPosts::NoQueues)?;
    let file = posting::file(&config.state);
    let opened = Posting::open(&file, &config.name, queues.clone()).await;
    opened.and_then(|posting| posting.register(registry).map(|()| posting)).map_err(|error| {
        let what = format!("{}: {error}", file.display());
        tracing::error!(
            "messages: {what}; none are taken over HTTP. Set the file aside and start again: keys that came before now are refused then (410 key_lost)"
        );
        readiness.report("posts", Health::Degraded, what);
        NoPosts::Trouble
    })
}

/// Is there a job or a delivery?
fn works(config: &Config) -> bool {
    !(config.schedules.is_empty() && config.deliveries.is_empty())
}

/// Jobs and deliveries begin.
fn begin(
    config: &Config,
    queues: Option<&Queues>,
    (background, ending): (Background, Ending),
    sequence: &Sequence,
    registry: &Registry,
) -> Result<(Background, Ending, Shutdown), ServeError> {
    let stop = Shutdown::new();
    let Some(queues) = queues.filter(|_| works(config)) else {
        return Ok((background, ending, stop));
    };
    let work = (&*config.schedules, config.deliveries.clone());
    let whose = (&*config.name, &*config.state);
    let started = background.start(work, whose, (queues, sequence), registry, &stop);
    let (background, ending) = started.map_err(Box::new)?;
    Ok((background, ending, stop))
}

/// Readiness follows the jobs and the targets.
fn look_at_worker(background: &Background, readiness: Readiness, shutdown: &Shutdown) {
    let report = move |worries: Vec<String>| match worries.as_slice() {
        [] => readiness.report("worker", Health::Good, "jobs run, and handlers take their messages"),
        worries => readiness.report("worker", Health::Degraded, worries.join("; ")),
    };
    background.look(report, shutdown);
}

fn worker_status(background: &Background) -> (&'static str, StatusSource) {
    let background = background.clone();
    let source: StatusSource = Arc::new(move || {
        let background = background.clone();
        Box::pin(async move { json!({ "worries": background.worries().await }) })
    });
    ("worker", source)
}

/// What operators ask of the worker.
fn behind(background: &Background) -> Behind {
    let (shown, asked) = (background.clone(), background.clone());
    Behind {
        jobs: Arc::new(move || {
            let background = shown.clone();
            Box::pin(async move { json!(background.standings().await) })
        }),
        ask: Arc::new(move |job, wanted| {
            let background = asked.clone();
            Box::pin(async move {
                let done = match wanted {
                    Wanted::Run => background.run(&job).await,
                    Wanted::Pause(why) => background.pause(&job, &why).await.map(|()| None),
                    Wanted::Resume => background.resume(&job).await.map(|()| None),
                };
                done.map_err(|error| {
                    let told = error.to_string();
                    match error {
                        AskError::Unknown { .. } => NotDone::Unknown(told),
                        AskError::UnderWay { .. } => NotDone::UnderWay(told),
                        AskError::Apart { .. } => NotDone::Apart(told),
                        AskError::Ledger { .. } => NotDone::Later(told),
                        AskError::Mark { .. } => NotDone::Failed(told),
                    }
                })
            })
        }),
        targets: background.targets().clone(),
    }
}

/// One entry a room.
fn status_sources(config: &Config, pki: &Pki) -> Sources {
    let (name, started, pki) = (config.name.clone(), tokio::time::Instant::now(), pki.clone());
    vec![
        (
            "vault",
            Arc::new(move || {
                let about = json!({
                    "name": name,
                    "version": env!("CARGO_PKG_VERSION"),
                    "uptime_seconds": started.elapsed().as_secs(),
                });
                Box::pin(async move { about })
            }),
        ),
        (
            "pki",
            Arc::new(move || {
                let pki = pki.clone();
                Box::pin(async move {
                    match pki.status(wall_clock()).await {
                        Ok(status) => json!(status),
                        Err(error) => json!({ "error": error.to_string() }),
                    }
                })
            }),
        ),
    ]
}

#[expect(clippy::disallowed_methods, reason = "here the clock is handed to the rooms")]
fn wall_clock() -> std::time::SystemTime {
    std::time::SystemTime::now()
}
