//! The other vault: whether it can be reached, and one ordered, authenticated stream to it.
//! Knows connections, beats and frames; not what any body means.
//!
//! The vault whose name sorts first dials, the other accepts, so there is one connection. It is
//! mTLS on the API's own port with ALPN `vault-pair/1`; a peer that is silent for
//! [`Settings::silence`] counts as away.

pub mod frame;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use rustls::pki_types::ServerName;
use shared::retry::Backoff;
use shared::shutdown::Shutdown;
use shared::tls::{self, Identity, Role, TlsError};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};
use tokio_rustls::{TlsConnector, TlsStream};

pub use frame::Topic;
use frame::{Frame, FrameError};

/// The protocol's name in the TLS handshake.
pub const ALPN: &[u8] = b"vault-pair/1";
/// Most frames waiting to be sent.
const QUEUE: usize = 256;
/// Most questions asked at once; further ones wait their turn within their own deadline.
const ASKING: usize = 256;
/// Most questions of the peer answered at once: those it asks, and as many that it has given up.
const ANSWERING: usize = 2 * ASKING;

/// Why a question has no answer here: no room is there for it, or this release knows none.
const NOBODY: &str = "nobody answers this topic here";

/// How long a new connection waits for the ordered topic's room to note the end of the last.
const NOTED: Duration = Duration::from_secs(5);

/// `[pair]`
#[derive(Debug, Clone)]
pub struct Settings {
    /// This vault's name.
    pub own: String,
    /// The other vault's name, as its certificate says it.
    pub peer: String,
    /// Where the other vault's API listens.
    pub address: SocketAddr,
    /// How often a sign of life is sent.
    pub beat: Duration,
    /// After how long a silent peer counts as away.
    pub silence: Duration,
}

/// Why the peer could not be asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PairError {
    /// There is no connection: the peer was not asked.
    #[error("the other vault {0} is away")]
    Away(String),
    /// The connection ended before the answer.
    #[error("the connection to the other vault {0} ended before it answered")]
    Broken(String),
    /// The question's own deadline passed.
    #[error("the other vault {0} did not answer in time")]
    Late(String),
    /// The peer's room refused.
    #[error("the other vault {peer} refused: {reason}")]
    Refused {
        /// Its name.
        peer: String,
        /// Its own words.
        reason: String,
    },
}

/// Why a connection ended; for the log.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("connecting: {0}")]
    Connect(#[source] std::io::Error),
    #[error("own certificate: {0}")]
    Tls(#[from] TlsError),
    #[error("the other vault closed it, or its program ended")]
    Closed,
    #[error("{0}")]
    Io(#[source] std::io::Error),
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("no sign of life for {0:?}")]
    Silent(Duration),
    #[error("it takes nothing more")]
    Clogged,
    #[error("its certificate is {0}'s, and not a vault's of that name")]
    Stranger(String),
    #[error("ended by this vault")]
    HungUp,
    #[error("a newer connection took its place")]
    Replaced,
}

impl From<std::io::Error> for LinkError {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::UnexpectedEof => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

/// What the ordered topic's room hears.
#[derive(Debug)]
pub enum Event {
    /// A connection stands.
    Up,
    /// It is gone. The room drops this when it has taken note, and says nothing until the next
    /// `Up`: no connection is made before that, so what it says is never heard on a later one.
    Down(oneshot::Sender<()>),
    /// The peer told this.
    Told(Bytes),
}

/// A room's answer to the peer's question.
pub type Answerer = Arc<dyn Fn(Bytes) -> BoxFuture<'static, Result<Bytes, String>> + Send + Sync>;

/// What the API's listener hands over: a connection it has verified to be the peer's.
pub type Accepted = (tokio_rustls::server::TlsStream<TcpStream>, Identity);

/// Either end's connection, and the certificate's serial at the other end.
type Connection = (TlsStream<TcpStream>, String);

/// The handle that rooms' owners hold; cheap to clone.
#[derive(Clone)]
pub struct Pair {
    inner: Arc<Inner>,
}

struct Inner {
    settings: Settings,
    up: watch::Sender<bool>,
    link: Mutex<Option<Link>>,
    serial: Mutex<Option<String>>,
    next: AtomicU64,
    asking: Semaphore,
}

/// The peer's answer, or its reason for giving none.
type Outcome = Result<Bytes, String>;

#[derive(Clone)]
struct Link {
    frames: mpsc::Sender<Frame>,
    waiting: Arc<Mutex<HashMap<u64, oneshot::Sender<Outcome>>>>,
    hang_up: Shutdown,
}

impl Pair {
    /// A pair that is not connected yet; [`Pair::run`] connects it.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let inner = Inner {
            settings,
            up: watch::Sender::new(false),
            link: Mutex::new(None),
            serial: Mutex::new(None),
            next: AtomicU64::new(1),
            asking: Semaphore::new(ASKING),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The other vault's name.
    #[must_use]
    pub fn peer(&self) -> &str {
        &self.inner.settings.peer
    }

    /// Changes whenever the connection comes or goes.
    #[must_use]
    pub fn up(&self) -> watch::Receiver<bool> {
        self.inner.up.subscribe()
    }

    /// The serial of the certificate that the peer last showed, for whoever watches revocations.
    #[must_use]
    pub fn serial(&self) -> Option<String> {
        lock(&self.inner.serial).clone()
    }

    /// Ends the connection that stands, if any; it is made again by itself.
    pub fn hang_up(&self) {
        if let Some(link) = self.link() {
            link.hang_up.cancel();
        }
    }

    /// Says something in order, without an answer. `false` when nobody is there to hear it or
    /// the queue is full; then the connection is ended, so that order is never broken.
    pub fn tell(&self, topic: Topic, body: Bytes) -> bool {
        let Some(link) = self.link() else { return false };
        let sent = link.frames.try_send(Frame::Tell(topic, body)).is_ok();
        if !sent {
            link.hang_up.cancel();
        }
        sent
    }

    /// Asks the peer's room and waits for its answer, `deadline` at most.
    ///
    /// # Errors
    /// After anything but [`PairError::Away`] the peer may have acted all the same.
    pub async fn ask(&self, topic: Topic, body: Bytes, deadline: Duration) -> Result<Bytes, PairError> {
        let peer = || self.inner.settings.peer.clone();
        let link = self.link().ok_or_else(|| PairError::Away(peer()))?;
        let id = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        lock(&link.waiting).insert(id, sender);
        let asked = async {
            // A crowd waits here rather than being turned away there.
            let _turn = self.inner.asking.acquire().await.map_err(|_| PairError::Away(peer()))?;
            link.frames.send(Frame::Ask(id, topic, body)).await.map_err(|_| PairError::Broken(peer()))?;
            tokio::select! {
                biased;
                answered = receiver => match answered {
                    Ok(Ok(body)) => Ok(body),
                    Ok(Err(reason)) => Err(PairError::Refused { peer: peer(), reason }),
                    Err(_) => Err(PairError::Broken(peer())),
                },
                () = link.hang_up.cancelled() => Err(PairError::Broken(peer())),
            }
        };
        let outcome = timeout(deadline, asked).await.unwrap_or_else(|_| Err(PairError::Late(peer())));
        lock(&link.waiting).remove(&id);
        outcome
    }

    fn link(&self) -> Option<Link> {
        lock(&self.inner.link).clone()
    }

    /// Keeps the connection standing until `shutdown`. `ordered` hears [`Topic::Sequence`];
    /// `answerers` answer the other topics; `accepted` brings the peer's connections.
    pub async fn run(
        self,
        tls: tls::Files,
        mut accepted: mpsc::Receiver<Accepted>,
        ordered: mpsc::Sender<Event>,
        answerers: HashMap<Topic, Answerer>,
        shutdown: Shutdown,
    ) {
        let rooms = Arc::new(Rooms { ordered, answerers, answering: Semaphore::new(ANSWERING) });
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        let mut next: Option<Connection> = None;
        let mut complained = String::new();
        loop {
            let connection = match next.take() {
                Some(newer) => Ok(newer),
                None => tokio::select! {
                    () = shutdown.cancelled() => return,
                    connection = self.connection(&tls, &mut accepted) => connection,
                },
            };
            let begun = Instant::now();
            let ended = match connection {
                Ok((stream, serial)) => {
                    *lock(&self.inner.serial) = Some(serial);
                    tokio::select! {
                        () = shutdown.cancelled() => { self.forget(&rooms).await; return }
                        Some(newer) = accepted.recv() => { next = Some(taken(newer)); LinkError::Replaced }
                        ended = self.drive(stream, &rooms) => ended,
                    }
                }
                Err(error) => error,
            };
            let was_up = *self.inner.up.borrow();
            self.forget(&rooms).await;
            let ended = ended.to_string();
            if was_up {
                // One that is cut as soon as it stands, for whatever reason, is no success.
                if begun.elapsed() > self.inner.settings.silence {
                    backoff.reset();
                }
                tracing::warn!(peer = self.peer(), "pair: connection ended: {ended}; connecting again");
                complained.clear();
            } else if complained == ended {
                tracing::debug!(peer = self.peer(), "pair: no connection: {ended}; trying again");
            } else {
                tracing::warn!(
                    peer = self.peer(),
                    "pair: no connection: {ended}; trying again, and saying so when the reason changes"
                );
                complained = ended;
            }
            if next.is_none() {
                let wait = backoff.next(jitter());
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(wait) => {}
                }
            }
        }
    }

    /// The next connection: dialled by the one, awaited by the other.
    async fn connection(
        &self,
        files: &tls::Files,
        accepted: &mut mpsc::Receiver<Accepted>,
    ) -> Result<Connection, LinkError> {
        let Settings { own, peer, address, silence, .. } = &self.inner.settings;
        if own > peer {
            return accepted.recv().await.map(taken).ok_or(LinkError::HungUp);
        }
        let connector = TlsConnector::from(Arc::new(tls::client(files, &[ALPN])?));
        let name = ServerName::try_from(peer.clone())
            .map_err(|error| LinkError::Connect(std::io::Error::other(error)))?;
        let connect = async {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            connector.connect(name, stream).await
        };
        let late = |_| LinkError::Silent(*silence);
        let stream = timeout(*silence, connect).await.map_err(late)?.map_err(LinkError::Connect)?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let identity = Identity::of(chain.first().ok_or(TlsError::NoIdentity)?)?;
        if identity.role != Role::Vault || identity.name != *peer {
            return Err(LinkError::Stranger(identity.name));
        }
        Ok((stream.into(), identity.serial))
    }

    async fn forget(&self, rooms: &Rooms) {
        if let Some(link) = lock(&self.inner.link).take() {
            link.hang_up.cancel();
        }
        if self.inner.up.send_replace(false) {
            let (noted, note) = oneshot::channel();
            // A room that does not listen any more is ending itself.
            if rooms.ordered.send(Event::Down(noted)).await.is_ok() {
                // Its disk may be slow. A word of the ended session on a new connection costs
                // that connection's session, and files shall not wait for numbers' disk.
                let _noted = timeout(NOTED, note).await;
            }
        }
    }

    /// Runs one connection to its end.
    async fn drive(&self, stream: TlsStream<TcpStream>, rooms: &Arc<Rooms>) -> LinkError {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let silence = self.inner.settings.silence;
        // A dialler's handshake is over before the other side has looked at its certificate: a
        // connection stands once the peer speaks.
        match timeout(silence, first_words(&mut reader, &mut writer)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error,
            Err(_) => return LinkError::Silent(silence),
        }
        let (frames, queue) = mpsc::channel(QUEUE);
        let link = Link { frames: frames.clone(), waiting: Arc::default(), hang_up: Shutdown::new() };
        *lock(&self.inner.link) = Some(link.clone());
        self.inner.up.send_replace(true);
        if rooms.ordered.send(Event::Up).await.is_err() {
            return LinkError::HungUp;
        }
        tracing::info!(peer = self.peer(), "pair: connected");
        tokio::select! {
            () = link.hang_up.cancelled() => LinkError::HungUp,
            ended = write(writer, queue, self.inner.settings.beat, silence) => ended,
            ended = read(reader, &link, rooms, silence) => ended,
        }
    }
}

struct Rooms {
    ordered: mpsc::Sender<Event>,
    answerers: HashMap<Topic, Answerer>,
    answering: Semaphore,
}

/// Both sides begin with a sign of life.
async fn first_words(
    reader: &mut ReadHalf<TlsStream<TcpStream>>,
    writer: &mut WriteHalf<TlsStream<TcpStream>>,
) -> Result<(), LinkError> {
    writer.write_all(&Frame::Beat.encode()).await?;
    writer.flush().await?;
    match read_frame(reader).await? {
        Frame::Beat => Ok(()),
        _ => Err(FrameError::Malformed.into()),
    }
}

async fn write(
    mut writer: WriteHalf<TlsStream<TcpStream>>,
    mut queue: mpsc::Receiver<Frame>,
    beat: Duration,
    silence: Duration,
) -> LinkError {
    loop {
        let frame = match timeout(beat, queue.recv()).await {
            Ok(Some(frame)) => frame,
            Ok(None) => return LinkError::HungUp,
            Err(_) => Frame::Beat,
        };
        let bytes = frame.encode();
        let send = async {
            writer.write_all(&bytes).await?;
            writer.flush().await
        };
        match timeout(silence, send).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error.into(),
            Err(_) => return LinkError::Clogged,
        }
    }
}

async fn read(
    mut reader: ReadHalf<TlsStream<TcpStream>>,
    link: &Link,
    rooms: &Arc<Rooms>,
    silence: Duration,
) -> LinkError {
    loop {
        let frame = match timeout(silence, read_frame(&mut reader)).await {
            Ok(Ok(frame)) => frame,
            Ok(Err(error)) => return error,
            Err(_) => return LinkError::Silent(silence),
        };
        match frame {
            Frame::Beat => {}
            Frame::Tell(Topic::Sequence, body) => {
                match timeout(silence, rooms.ordered.send(Event::Told(body))).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return LinkError::HungUp,
                    Err(_) => return LinkError::Clogged,
                }
            }
            Frame::Tell(..) => return FrameError::Malformed.into(),
            Frame::Ask(id, topic, body) => answer(id, topic, body, link, rooms),
            Frame::Strange(id) => {
                let refused = Frame::Answer(id, Err(NOBODY.to_owned()));
                match timeout(silence, link.frames.send(refused)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return LinkError::HungUp,
                    Err(_) => return LinkError::Clogged,
                }
            }
            Frame::Answer(id, outcome) => {
                if let Some(waiting) = lock(&link.waiting).remove(&id) {
                    // Whoever asked may have given up.
                    let _gone = waiting.send(outcome);
                }
            }
        }
    }
}

async fn read_frame(reader: &mut ReadHalf<TlsStream<TcpStream>>) -> Result<Frame, LinkError> {
    let length = Frame::checked_length(reader.read_u32().await?)?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body).await?;
    Ok(Frame::decode(Bytes::from(body))?)
}

/// Answers one question in a task of its own, so that a slow room does not stop the beats.
fn answer(id: u64, topic: Topic, body: Bytes, link: &Link, rooms: &Arc<Rooms>) {
    let (frames, rooms) = (link.frames.clone(), Arc::clone(rooms));
    let hang_up = link.hang_up.clone();
    tokio::spawn(async move {
        let outcome = match (rooms.answerers.get(&topic), rooms.answering.try_acquire()) {
            (Some(answerer), Ok(_permit)) => answerer(body).await,
            (None, _) => Err(NOBODY.to_owned()),
            (_, Err(_)) => Err("busy: too many questions at once".to_owned()),
        };
        tokio::select! {
            () = hang_up.cancelled() => {}
            _sent = frames.send(Frame::Answer(id, outcome)) => {}
        }
    });
}

fn taken((stream, identity): Accepted) -> Connection {
    (stream.into(), identity.serial)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn jitter() -> u32 {
    getrandom::u32().unwrap_or(u32::MAX)
}
