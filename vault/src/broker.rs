//! The embedded broker: who runs no ActiveMQ points its JMS clients here. Listens, lets in who may
//! come, and speaks OpenWire with each connection on behalf of the queues; knows no SQL, and nothing
//! of what the queues decide.
//!
//! A connection (`connection`) has two halves: what its client asks goes to the queues (`asking`),
//! their answers and deliveries go to the socket (`telling`). Served are queues in all acknowledge
//! modes, local transactions, priorities, expiry, groups, exclusive consumers, bridges' filters, browsers,
//! temporary queues with the advisories that request and reply need, failover. What is not (topics,
//! selectors, distributed transactions) is refused with a JMSException that names it.

mod asking;
mod browser;
mod clients;
mod connection;
mod counts;
pub mod encryption;
mod fault;
mod held;
mod ids;
mod large;
mod letter;
mod porch;
mod seats;
mod spell;
mod telling;
mod temporaries;
pub mod users;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use prometheus::Registry;
use serde::Serialize;
use shared::shutdown::Shutdown;
use shared::tls::TlsError;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use crate::openwire::{BRIDGES, BrokerId, Text};
use crate::queue::{self, Lack, QueueError, Queues};

use clients::Clients;
use connection::End;
use counts::{Complaints, Counts, Reason};
use encryption::Encryption;
use large::Large;
use porch::{Porch, Stranger};
use spell::Spell;
use temporaries::Temporaries;
use users::{Door, UsersError};

/// A handshake must be done within this time.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// After the word to stop, what is under way may finish within this time.
const DRAIN: Duration = Duration::from_secs(10);
/// When the system has no more sockets, trying at once would only burn the processor.
const OUT_OF_SOCKETS: Duration = Duration::from_millis(100);
/// Pages of browsers have room for so many of the largest messages.
const PAGES_AT_ONCE: usize = 3;

/// What a message's headers and properties may take beside its body, in bytes.
const HEADERS: usize = 1 << 20;

/// `[broker]`
#[derive(Debug, Clone)]
pub struct Settings {
    /// This broker's name, as its clients see it.
    pub name: String,
    /// OpenWire, for JMS clients.
    pub listen: SocketAddr,
    /// Its certificate and key; in clear without.
    pub tls: Option<encryption::Pair>,
    /// Who may connect; everybody without.
    pub users: Option<PathBuf>,
    /// Connections of clients at once; beside them there are some that have not said who they are.
    pub max_connections: usize,
    /// Largest body of a message, in bytes as they come.
    pub max_message: usize,
    /// A peer that says nothing for so long is given up; it may ask for less.
    pub silence: Duration,
    /// The queues.
    pub queues: queue::Settings,
}

impl Settings {
    /// Largest frame, in bytes: a message with its headers.
    fn max_frame(&self) -> usize {
        self.max_message.saturating_add(HEADERS)
    }
}

/// Why the broker does not start.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// Its address is taken or not ours.
    #[error("broker.listen = {address}: cannot be listened on: {source}; is another broker running there?")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Its certificate.
    #[error("broker: {0}")]
    Tls(#[from] TlsError),
    /// Its users.
    #[error(transparent)]
    Users(#[from] UsersError),
    /// Its queues.
    #[error(transparent)]
    Queues(#[from] QueueError),
    /// A metric is named twice: a fault of the program.
    #[error("broker: metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// What all connections share.
struct Hall {
    settings: Settings,
    id: BrokerId,
    queues: Queues,
    clients: Clients,
    door: Door,
    temporaries: Temporaries,
    counts: Arc<Counts>,
    complaints: Complaints,
    /// Of senders that find no room.
    spell: Spell,
    /// Bytes of what they hold.
    held: Arc<AtomicUsize>,
    /// Room for large frames.
    large: Large,
    /// Room for what browsers have read and their clients have not, in KiB.
    pages: Arc<Semaphore>,
    /// Room for clients that have said who they are.
    places: Arc<Semaphore>,
    shutdown: Shutdown,
}

/// What `vault status` shows.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Is every byte encrypted?
    pub tls: bool,
    /// Clients that are connected.
    pub clients: usize,
    /// Queues, without temporary ones.
    pub queues: usize,
    /// Messages that wait or are in consumers' hands.
    pub messages: u64,
    /// Messages that nobody could process.
    pub dead_letters: u64,
    /// Senders are held: what is full.
    pub full: Option<&'static str>,
    /// Why the journal cannot be written or read.
    pub trouble: Option<String>,
}

/// The broker's handle; cheap to clone.
#[derive(Clone)]
pub struct Broker {
    hall: Arc<Hall>,
    listen: SocketAddr,
}

/// The broker's open socket; nothing is accepted before [`Listening::run`].
pub struct Listening {
    hall: Arc<Hall>,
    listener: TcpListener,
    tls: Option<Encryption>,
    sessions: TaskTracker,
}

/// Looks whether the broker could start, its port apart; what it found, in words.
///
/// # Errors
/// See [`BrokerError`].
pub fn try_out(settings: &Settings) -> Result<String, BrokerError> {
    settings.tls.as_ref().map(encryption::Pair::acceptor).transpose()?;
    let clear = if settings.tls.is_none() { "; WARNING: in clear, passwords too" } else { "" };
    let who = match &settings.users {
        None => "everybody may connect".to_owned(),
        Some(file) => match users::read(file)?.len() {
            0 => format!("WARNING: {} names nobody yet: vault broker user add NAME", file.display()),
            users => format!("{users} users may connect"),
        },
    };
    Ok(format!("broker: {}: {who}{clear}", settings.listen))
}

impl Broker {
    /// Opens the queues and the socket.
    ///
    /// # Errors
    /// See [`BrokerError`].
    pub async fn open(settings: Settings, registry: &Registry) -> Result<(Self, Listening), BrokerError> {
        let address = settings.listen;
        let failed = |source| BrokerError::Listen { address, source };
        let tls = settings.tls.clone().map(Encryption::load).transpose()?;
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let listen = listener.local_addr().map_err(failed)?;
        if let Some(file) = &settings.users {
            users::read(file)?;
        }
        let queues = Queues::open(settings.queues.clone())?;
        let name = Text::shortened(&settings.name);
        let id = BrokerId { value: Text::shortened(&format!("ID:{}", settings.name)) };
        let pages = settings.max_frame().saturating_mul(PAGES_AT_ONCE) >> 10;
        let hall = Arc::new(Hall {
            clients: Clients::default(),
            door: Door::new(settings.users.clone())?,
            temporaries: Temporaries::new(id.clone(), name),
            counts: Arc::new(Counts::register(registry)?),
            complaints: Complaints::default(),
            spell: Spell::register(registry)?,
            held: Arc::default(),
            large: Large::new(settings.max_frame()),
            pages: Arc::new(Semaphore::new(pages.clamp(1, Semaphore::MAX_PERMITS))),
            places: Arc::new(Semaphore::new(settings.max_connections.clamp(1, Semaphore::MAX_PERMITS))),
            settings,
            id,
            queues,
            shutdown: Shutdown::new(),
        });
        let listening = Listening { hall: hall.clone(), listener, tls, sessions: TaskTracker::new() };
        Ok((Self { hall, listen }, listening))
    }

    /// Where it really listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.listen
    }

    /// Its queues, for operators and for those in the same program.
    #[must_use]
    pub fn queues(&self) -> &Queues {
        &self.hall.queues
    }

    /// Tells the log when senders are not held any more; call it every second or so.
    pub fn look(&self) {
        let gate = self.hall.queues.gate();
        self.hall.spell.look(gate.lack(true).or(gate.lack(false)).is_none());
    }

    /// How it is.
    ///
    /// # Errors
    /// [`QueueError::Journal`], [`QueueError::Stopped`].
    pub async fn status(&self) -> Result<Status, QueueError> {
        let queues = self.hall.queues.list().await?;
        let kept = queues.iter().map(|queue| &queue.state).filter(|state| !state.destination.is_temporary());
        let is_dead = |name: &str| name == queue::message::DEAD_LETTERS;
        let (dead, alive): (Vec<_>, Vec<_>) = kept.partition(|state| is_dead(state.destination.name()));
        let held = |states: &[&queue::core::QueueState]| states.iter().map(|state| state.depth).sum();
        let gate = self.hall.queues.gate();
        Ok(Status {
            listen: self.listen,
            tls: self.hall.settings.tls.is_some(),
            clients: self.hall.clients.count(),
            queues: alive.len(),
            messages: held(&alive),
            dead_letters: held(&dead),
            full: gate.lack(true).or(gate.lack(false)).map(Lack::named),
            trouble: gate.trouble,
        })
    }
}

impl Listening {
    /// Serves until `shutdown`; then lets what is under way finish for ten seconds, and leaves with all
    /// that was acknowledged on disk.
    pub async fn run(self, shutdown: Shutdown) {
        tokio::select! {
            () = self.accept() => {}
            () = shutdown.cancelled() => {}
        }
        let Self { hall, listener, sessions, .. } = self;
        hall.shutdown.cancel();
        // Closed sockets refuse new clients at once, so that they turn to the other vault.
        drop(listener);
        sessions.close();
        if tokio::time::timeout(DRAIN, sessions.wait()).await.is_err() {
            tracing::warn!("broker: {} connections were not done within {DRAIN:?}; closed", sessions.len());
        }
        if let Err(error) = hall.queues.settle().await {
            tracing::error!("broker: {error}; what was acknowledged last may be delivered once more");
        }
    }

    async fn accept(&self) {
        let porch = Porch::new(self.hall.settings.max_connections);
        loop {
            let (socket, from) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    self.hall.complaints.tell(&format!("broker.listen: the system refuses: {error}"));
                    tokio::time::sleep(OUT_OF_SOCKETS).await;
                    continue;
                }
            };
            if self.hall.places.available_permits() == 0 {
                ended(&self.hall, from, &End::Crowded);
                continue;
            }
            let stranger = porch.enter().await;
            let (hall, tls) = (Arc::clone(&self.hall), self.tls.as_ref().map(Encryption::current));
            self.sessions.spawn(client(hall, tls, socket, from, stranger));
        }
    }
}

async fn client(
    hall: Arc<Hall>,
    tls: Option<TlsAcceptor>,
    socket: TcpStream,
    from: SocketAddr,
    stranger: Stranger,
) {
    let _ = socket.set_nodelay(true);
    hall.counts.connections.inc();
    let end = match tls {
        None => connection::serve(Arc::clone(&hall), socket, from, stranger).await,
        Some(acceptor) => {
            let shaken = tokio::time::timeout(HANDSHAKE, acceptor.accept(socket));
            let shaken = Box::pin(async {
                tokio::select! {
                    shaken = shaken => shaken.map_err(|_| End::Silent(HANDSHAKE)),
                    () = stranger.cut.cancelled() => Err(End::Ousted),
                }
            });
            let shaken = shaken.await;
            match shaken {
                Ok(Ok(stream)) => connection::serve(Arc::clone(&hall), stream, from, stranger).await,
                Ok(Err(error)) => {
                    hall.counts.refused(Reason::Handshake);
                    let why = encryption::why_not(&error);
                    hall.complaints.tell(&format!("connection from {from} closed: {why}"));
                    End::Closed
                }
                Err(end) => end,
            }
        }
    };
    hall.counts.connections.dec();
    ended(&hall, from, &end);
}

/// What is told of an end, and counted.
fn ended(hall: &Hall, from: SocketAddr, end: &End) {
    let reason = match end {
        // Of a replaced one is told who took its place.
        End::Closed | End::Stopping | End::Replaced => return,
        End::Broken(error) if error.kind() == io::ErrorKind::TimedOut => {
            let why = "it takes nothing any more, or too little";
            hall.complaints.tell(&format!("connection from {from} closed: {why}"));
            Reason::Stalled
        }
        End::Broken(error) => return tracing::debug!("broker: connection from {from} ended: {error}"),
        End::Silent(silence) => {
            hall.complaints.tell(&format!("connection from {from} closed: silent for {silence:?}"));
            Reason::Silence
        }
        End::Ousted => {
            let why = "it has not said who it is, and too many others have not either";
            hall.complaints.tell(&format!("connection from {from} closed: {why}"));
            Reason::Ousted
        }
        End::Crowded => {
            let why = format!("{} are open (broker.max_connections)", hall.settings.max_connections);
            hall.complaints.tell(&format!("connection from {from} closed: {why}"));
            Reason::Limit
        }
        End::Slow(length) => {
            let why = format!("a frame of {length} bytes comes at less than 64 KiB/s");
            hall.complaints.tell(&format!("connection from {from} closed: {why}"));
            Reason::Slow
        }
        End::Refused(refused @ fault::Refused::ClientTaken { client, .. }) if client.starts_with(BRIDGES) => {
            return tracing::debug!("broker: connection from {from} closed: {refused}");
        }
        End::Refused(refused) => {
            let who = match refused {
                fault::Refused::Password { user } => format!(" as user {user:?}"),
                _ => String::new(),
            };
            hall.complaints.tell(&format!("connection from {from}{who} closed: {refused}"));
            Reason::of(refused)
        }
    };
    hall.counts.refused(reason);
}

/// Since 1970, as messages tell their times.
#[expect(clippy::disallowed_methods, reason = "messages carry the time at which they came and went")]
fn moment_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
