//! The order in which edge's rooms open, and in which they close. Knows every room's front door;
//! decides nothing.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ipnet::IpNet;
use shared::shutdown::{self, Shutdown};
use shared::systemd::{self, Life};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::access_log::{AccessLog, AccessLogError};
use crate::admin::{self, AdminError, Readiness};
use crate::admission::{Banned, InFlight, Rate, Rates};
use crate::ban::words::Answer;
use crate::client::TrustedProxies;
use crate::config::{Config, Throttle};
use crate::firewall;
use crate::gateway::{Gateway, GatewayError, Limits, Settings as GatewaySettings, Vaults};
use crate::listen::live::{Connections, Idle};
use crate::listen::redirect::Redirect;
use crate::listen::report::Report;
use crate::listen::{self, Door, ListenError, Sockets, socket};
use crate::log_watch::{LogWatch, LogWatchError, Places};
use crate::metrics::Metrics;
use crate::proxy::{Engine, Site};
use crate::route::{HostPattern, Routes};
use crate::tls::{self, Certificates, Reload, TlsError};
use crate::upstream::{Server, Upstreams};

/// How often certificate files are looked at.
const CERTIFICATE_LOOK: Duration = Duration::from_secs(5);
/// How often readiness hears of the upstreams and vaults.
const HEALTH_LOOK: Duration = Duration::from_secs(1);
/// Beyond the drain time, for what follows a request: its line in the log, a socket's closing.
const AFTERMATH: Duration = Duration::from_secs(3);

/// Why edge could not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A runtime, a thread or a signal handler.
    #[error("{what}: {source}; raise the limits of its service")]
    System {
        /// What was asked of the system.
        what: &'static str,
        /// Its reason.
        #[source]
        source: io::Error,
    },
    /// The access log.
    #[error(transparent)]
    AccessLog(#[from] AccessLogError),
    /// The ban engine.
    #[error(transparent)]
    LogWatch(#[from] LogWatchError),
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A client address.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The admin listener or the control socket.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The handlers' gateway.
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    /// A thread ended while edge was serving.
    #[error("a thread that serves clients ended: {0}; edge stops, its supervisor restarts it")]
    Thread(String),
}

/// Serves until TERM or INT, then drains. Blocks. HUP reads `file`, where `config` stands, again.
///
/// # Errors
/// A room cannot be opened, or a thread ended early.
pub fn serve(config: Config, file: &Path) -> Result<(), ServeError> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| ServeError::System { what: "no runtime", source })?;
    runtime.block_on(run(config, file))
}

async fn run(config: Config, file: &Path) -> Result<(), ServeError> {
    let signals = |source| ServeError::System { what: "no signal handler", source };
    let shutdown = shutdown::on_signals().map_err(signals)?;
    let mut hang_up = signal(SignalKind::hangup()).map_err(signals)?;
    let mut rotated = signal(SignalKind::user_defined1()).map_err(signals)?;

    let metrics = Metrics::new();
    let readiness = Readiness::new();
    let trusted = TrustedProxies::new(config.clients.trusted_proxies.clone());
    let idle = Idle { most: config.bans.max_idle_connections, ..Idle::default() };
    let each = config.clients.max_connections;
    let places = Places {
        banned: Banned::new(),
        connections: Connections::new(idle, each, trusted, Arc::clone(&metrics)),
        rates: rates(&config),
    };
    let log_watch = start_log_watch(&config, &places, &metrics)?.map(Arc::new);
    let (needed, throttle) = (needed(&config), config.throttle);
    let tap = log_watch.as_deref().map(LogWatch::tap);
    let access_log = AccessLog::start(&config.access_log, Arc::clone(&metrics), tap)?;
    let certificates = Certificates::load(&config.certificates)?;
    let acceptor = tls::acceptor(Arc::clone(&certificates))?;
    let sockets = open_sockets(&config)?;
    let site = site(&config, &metrics, &readiness, &access_log, &places);
    let report = Report::new(access_log.clone(), Arc::clone(&metrics));
    let door = Door::new(
        config.listen.clone(),
        acceptor,
        redirect(&config),
        report,
        Arc::clone(&places.connections),
        Arc::clone(&places.banned),
        Arc::clone(&places.rates),
    );

    // Health is answered to the very end, handlers may call as long as requests are in flight.
    let last = Shutdown::new();
    let reload = Arc::clone(&certificates);
    let parts = admin::Parts {
        name: config.name.clone(),
        metrics: Arc::clone(&metrics),
        readiness: Arc::clone(&readiness),
        in_flight: Arc::clone(&site.in_flight),
        reload: Arc::new(move || told(&reload.reload(true))),
        bans: match &log_watch {
            Some(log_watch) => log_watch.asker(),
            None => Arc::new(|_| Answer::Refused { why: "bans are switched off (bans.enabled)".to_owned() }),
        },
        bans_summary: match &log_watch {
            Some(log_watch) => log_watch.summary(),
            None => Arc::new(|| None),
        },
    };
    let admin = admin::start(config.admin, &config.control_socket, parts, last.clone()).await?;
    let handlers_may_leave = Shutdown::new();
    let (vaults, gateway_ended) = match config.gateway {
        Some(settings) => {
            let (vaults, ended) = start_gateway(settings, &metrics, handlers_may_leave.clone()).await?;
            (Some(vaults), Some(ended))
        }
        None => (None, None),
    };

    let (ended, mut endings) = mpsc::channel(sockets.len().max(1));
    let threads = sockets.len();
    for (index, sockets) in sockets.into_iter().enumerate() {
        start_worker(index, sockets, Arc::clone(&door), Arc::clone(&site), shutdown.clone(), ended.clone())?;
    }
    drop(ended);
    site.report_upstreams();
    readiness.serving();
    systemd::tell(Life::Ready(&format!("{} is served", config.name)));
    let addresses: Vec<_> = config.listen.listeners.iter().map(|listener| listener.address).collect();
    tracing::info!("serving {} on {addresses:?} with {threads} threads", config.name);

    let mut certificate_look = every(CERTIFICATE_LOOK);
    let mut health_look = every(HEALTH_LOOK);
    let mut failure = None;
    let mut running = threads;
    loop {
        tokio::select! {
            // Looked at first: idle threads end as soon as edge is told to stop, and that is no
            // failure of theirs.
            biased;
            () = shutdown.cancelled() => break,
            _ = hang_up.recv() => {
                access_log.reopen();
                look(&certificates, true).await;
                if let Some(log_watch) = &log_watch {
                    let (log_watch, needed) = (Arc::clone(log_watch), needed.clone());
                    let file = file.to_owned();
                    let work = move || reload_bans(&log_watch, &file, needed, throttle);
                    let _ = tokio::task::spawn_blocking(work).await;
                }
                tracing::info!("reload: certificates, jails and log file; other settings need a restart");
            }
            _ = rotated.recv() => access_log.reopen(),
            _ = certificate_look.tick() => look(&certificates, false).await,
            _ = health_look.tick() => {
                places.connections.thin();
                site.tidy_rates();
                site.report_upstreams();
                if log_watch.as_deref().is_some_and(LogWatch::is_dead) {
                    failure = Some(ServeError::Thread("the ban engine's".to_owned()));
                    shutdown.cancel();
                    break;
                }
                report_vaults(vaults.as_ref(), &readiness);
            }
            ending = endings.recv() => {
                running -= 1;
                failure = Some(ServeError::Thread(describe(ending)));
                shutdown.cancel();
                break;
            }
        }
    }

    readiness.draining();
    systemd::tell(Life::Stopping);
    let wait = config.listen.drain + AFTERMATH;
    let drained = timeout(wait, async {
        let mut cut = 0;
        while running > 0 {
            match endings.recv().await {
                Some(Ok(count)) => cut += count,
                other => tracing::error!("edge: a thread ended badly: {}", describe(other)),
            }
            running -= 1;
        }
        cut
    });
    match drained.await {
        Ok(0) => tracing::info!("every request was finished"),
        Ok(cut) => {
            tracing::warn!("{cut} connections did not finish within {:?} and were cut", config.listen.drain)
        }
        Err(_) => tracing::warn!("threads did not end within {wait:?} and are left"),
    }
    handlers_may_leave.cancel();
    if let Some(ended) = gateway_ended {
        let _ = timeout(wait, ended).await;
    }
    last.cancel();
    let _ = timeout(AFTERMATH, admin).await;
    // Blocks for a bounded time until what is queued is written.
    let close = move || {
        access_log.close();
        if let Some(log_watch) = log_watch.and_then(Arc::into_inner) {
            log_watch.close();
        }
    };
    let _ = tokio::task::spawn_blocking(close).await;
    failure.map_or(Ok(()), Err)
}

fn describe(ending: Option<Result<usize, ListenError>>) -> String {
    match ending {
        Some(Ok(_)) => "without a word".to_owned(),
        Some(Err(error)) => error.to_string(),
        None => "it panicked".to_owned(),
    }
}

fn every(period: Duration) -> tokio::time::Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// Looks at the certificate files off this runtime's thread.
async fn look(certificates: &Arc<Certificates>, forced: bool) {
    let certificates = Arc::clone(certificates);
    if let Ok(result) = tokio::task::spawn_blocking(move || certificates.reload(forced)).await
        && !matches!(result, Reload::Unchanged)
    {
        let _ = told(&result);
    }
}

/// Logs what a look at the files came to, and says it to an operator who asked.
fn told(result: &Reload) -> Result<String, String> {
    match result {
        Reload::Unchanged => Ok("certificates: unchanged".to_owned()),
        Reload::Replaced => {
            tracing::info!("certificates: read anew; new connections get them");
            Ok("certificates: read anew; new connections get them".to_owned())
        }
        Reload::Kept(error) => {
            tracing::error!("{error}; the old certificates stay in use");
            Err(format!("{error}; the old certificates stay in use"))
        }
    }
}

/// That no vault answers makes no edge worse than another: it is told, and readiness stays.
fn report_vaults(vaults: Option<&Vaults>, readiness: &Readiness) {
    let Some(vaults) = vaults else { return };
    for vault in vaults.states() {
        let detail = match (vault.up, vault.why) {
            (true, _) => "answers".to_owned(),
            (false, Some(why)) => why,
            (false, None) => "not asked yet".to_owned(),
        };
        readiness.report(format!("vault {}", vault.name), true, detail);
    }
    readiness.report("tickets", true, vaults.tickets());
}

/// For each thread its own listener on every address.
fn open_sockets(config: &Config) -> Result<Vec<Sockets>, ServeError> {
    let threads = config.threads.max(1);
    let mut sockets: Vec<Sockets> = (0..threads).map(|_| Sockets::default()).collect();
    for listener in &config.listen.listeners {
        for (place, socket) in sockets.iter_mut().zip(socket::listeners(listener.address, threads)?) {
            place.push(*listener, socket);
        }
    }
    Ok(sockets)
}

fn site(
    config: &Config,
    metrics: &Arc<Metrics>,
    readiness: &Arc<Readiness>,
    access_log: &AccessLog,
    places: &Places,
) -> Arc<Site> {
    Arc::new(Site {
        direct_name: config.direct_name.clone(),
        listen: config.listen.clone(),
        trusted: TrustedProxies::new(config.clients.trusted_proxies.clone()),
        banned: Arc::clone(&places.banned),
        rates: Arc::clone(&places.rates),
        in_flight: InFlight::new(config.clients.max_in_flight),
        retry_after: config.clients.retry_after,
        routes: Routes::new(config.routes.clone()),
        upstreams: Upstreams::new(config.upstreams.clone()),
        readiness: Arc::clone(readiness),
        access_log: access_log.clone(),
        metrics: Arc::clone(metrics),
        started: Instant::now(),
    })
}

fn rates(config: &Config) -> Arc<Rates> {
    let routes: Vec<Option<Rate>> = config.routes.iter().map(|route| route.rate).collect();
    Rates::new(config.throttle.client, &routes, config.throttle.offender)
}

fn start_log_watch(
    config: &Config,
    places: &Places,
    metrics: &Metrics,
) -> Result<Option<LogWatch>, LogWatchError> {
    if !config.bans.enabled {
        tracing::warn!("bans are switched off (bans.enabled)");
        // The kernel keeps what it was given: up to a month, if nobody tells it.
        match firewall::open(&config.bans.firewall).clear() {
            Ok(()) | Err(firewall::FirewallError::NoRules) => {}
            Err(error) => {
                tracing::warn!("bans: what was banned before may still be dropped by the kernel: {error}");
            }
        }
        return Ok(None);
    }
    let mut settings = config.bans.clone();
    settings.never.extend(needed(config));
    LogWatch::start(settings, places.clone(), metrics.registry()).map(Some)
}

/// Whoever edge needs can never be banned, whatever the logs say.
fn needed(config: &Config) -> Vec<IpNet> {
    let mut needed = config.clients.trusted_proxies.clone();
    needed.extend(config.bans.peers.iter().copied().map(IpNet::from));
    let vaults = config.gateway.iter().flat_map(|gateway| &gateway.vaults);
    needed.extend(vaults.map(|vault| IpNet::from(vault.address.ip())));
    // Whoever makes an application ask for what is forbidden must not cut it off.
    let servers = config.upstreams.iter().flat_map(|upstream| &upstream.servers);
    needed.extend(servers.filter_map(|server| match server {
        Server::Tcp(address) => Some(IpNet::from(address.ip())),
        Server::Unix(_) => None,
    }));
    needed
}

/// Reads filters, jails and `never` again. Whom edge needs by the settings that it serves with, which
/// stay, stays `needed`. Blocks.
fn reload_bans(log_watch: &LogWatch, file: &Path, needed_now: Vec<IpNet>, throttle: Throttle) {
    let kept = "the jails of before go on";
    let config = match Config::read(file) {
        Ok(config) => config,
        Err(faults) => {
            for fault in faults.0 {
                tracing::error!("reload: {fault}; {kept}");
            }
            return;
        }
    };
    let mut settings = config.bans.clone();
    settings.never.extend(needed(&config).into_iter().chain(needed_now));
    let jails = settings.jails.len();
    match log_watch.reload(settings) {
        Ok(mut late) => {
            if config.throttle != throttle {
                late.push("[throttle]");
            }
            tracing::info!("reload: {jails} jails are in force");
            for key in late {
                tracing::warn!("reload: {key} has changed and needs a restart; what was set before goes on");
            }
        }
        Err(LogWatchError::Jails(faults)) => {
            for fault in faults.0 {
                tracing::error!("reload: {fault}; {kept}");
            }
        }
        Err(error) => tracing::error!("reload: {error}; {kept}"),
    }
}

fn redirect(config: &Config) -> Redirect {
    let named = std::iter::once(&config.name)
        .chain(&config.direct_name)
        .chain(config.certificates.iter().flat_map(|one| &one.names));
    let mut hosts: Vec<HostPattern> = named.filter_map(|name| HostPattern::parse(name).ok()).collect();
    hosts.extend(config.routes.iter().map(|route| route.host.clone()));
    Redirect::new(config.name.clone(), hosts)
}

/// A thread with one runtime of its own, which shares nothing on the way of a request.
fn start_worker(
    index: usize,
    sockets: Sockets,
    door: Arc<Door>,
    site: Arc<Site>,
    shutdown: Shutdown,
    ended: mpsc::Sender<Result<usize, ListenError>>,
) -> Result<(), ServeError> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| ServeError::System { what: "no runtime for a thread", source })?;
    let work = move || {
        let result = runtime.block_on(async {
            let engine = Engine::new(Arc::clone(&site));
            let drain = engine.clone();
            let cut = listen::run(door, sockets, engine, move || drain.drain(), shutdown).await?;
            // A stream's last phase may end just after its connection.
            let _ = timeout(Duration::from_secs(1), async {
                while cut == 0 && site.in_flight.total() > 0 {
                    sleep(Duration::from_millis(5)).await;
                }
            })
            .await;
            Ok(cut)
        });
        let _ = ended.blocking_send(result);
    };
    thread::Builder::new()
        .name(format!("clients-{index}"))
        .spawn(work)
        .map(drop)
        .map_err(|source| ServeError::System { what: "no thread", source })
}

/// The gateway has threads of its own: a burst of clients does not slow the handlers.
async fn start_gateway(
    settings: GatewaySettings,
    metrics: &Arc<Metrics>,
    shutdown: Shutdown,
) -> Result<(Vaults, oneshot::Receiver<()>), ServeError> {
    let runtime: Runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("gateway")
        .enable_all()
        .build()
        .map_err(|source| ServeError::System { what: "no runtime for the gateway", source })?;
    let (opened, is_open) = oneshot::channel();
    let (ended, has_ended) = oneshot::channel();
    let metrics = Arc::clone(metrics);
    let work = move || {
        runtime.block_on(async {
            match Gateway::open(settings, Limits::default(), metrics.registry()).await {
                Ok(gateway) => {
                    if opened.send(Ok(gateway.vaults())).is_ok() {
                        gateway.run(shutdown).await;
                    }
                }
                Err(error) => {
                    let _ = opened.send(Err(error));
                }
            }
        });
        let _ = ended.send(());
    };
    thread::Builder::new()
        .name("gateway".to_owned())
        .spawn(work)
        .map_err(|source| ServeError::System { what: "no thread for the gateway", source })?;
    match is_open.await {
        Ok(Ok(vaults)) => Ok((vaults, has_ended)),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(ServeError::Thread("the gateway's thread panicked".to_owned())),
    }
}
