//! A client's connection to a foreign broker: connects, greets, introduces itself; then requests
//! with their answers, and what the broker dispatches. Knows no queue and no bridge, and does not
//! connect again: whoever holds it knows what a lost connection means.
//!
//! One task (`client/connection.rs`) owns the socket. Every wait has a deadline, which waits itself as long
//! as bytes move: a large message on a slow line takes its time. What the broker dispatches faster than
//! it is taken is bounded by [`MOST_WAITING`] bytes.

mod connection;

use std::fmt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use shared::tls::{TlsError, certificates, private_key, provider};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::any::Command;
use super::command::{ConnectionInfo, Head, MessageDispatch, RemoveInfo, ShutdownInfo, Throwable};
use super::fault::{DecodeError, EncodeError};
use super::frame::{Arrival, Incoming, Outgoing};
use super::greeting::Settled;
use super::id::{ConnectionId, ObjectId};
use super::text::{Password, Text};
use super::uri::Address;
use connection::Connection;

/// Dispatched messages that wait to be taken, in bytes; then the socket is not read any more.
pub const MOST_WAITING: usize = 64 << 20;
/// Fewer bytes than these within a request's patience, both ways together, count as none: a sign of life
/// alone is no progress. What is dispatched before an answer is bounded, so the answer comes.
const LEAST_MOVED: u64 = 64 << 10;
/// Bytes that the system may hold behind those that are on the line; with its own buffers, megabytes
/// would count as moved that have not left.
const MOST_UNSENT: u32 = 256 << 10;
/// Commands that wait to be written.
const MOST_ASKED: usize = 1024;
/// How long a close may take.
const FAREWELL: Duration = Duration::from_secs(2);

/// As whom a client introduces itself.
#[derive(Clone, Default)]
pub struct Login {
    /// Shown in the broker's logs, and its lock: it refuses a second connection with the same one.
    pub client_id: String,
    /// Of this connection alone; also part of its sessions' and consumers' ids.
    pub connection_id: String,
    /// Account, if the broker wants one.
    pub user: Option<String>,
    /// Its password.
    pub password: Option<String>,
    /// Does the broker compare what is sent with what its producers sent before? (The failover
    /// transport's flags.)
    pub resumes: bool,
    /// Whom to trust, for `ssl://`.
    pub tls: Option<Arc<ClientConfig>>,
    /// How long a request may take while no bytes move.
    pub patience: Duration,
}

impl fmt::Debug for Login {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Login")
            .field("client_id", &self.client_id)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// Why a connection cannot be had, or ended, or a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No way to the broker.
    #[error("{address}: {step}: {source}; it is tried again")]
    Reach {
        /// The broker.
        address: String,
        /// `connect` or `TLS`.
        step: &'static str,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A step of connecting took too long.
    #[error("{address}: {step}: no answer within {} ms; it is tried again", after.as_millis())]
    Slow {
        /// The broker.
        address: String,
        /// Which step.
        step: &'static str,
        /// How long.
        after: Duration,
    },
    /// `ssl://` and nobody to trust, or a host that is no name.
    #[error("{0}: ssl needs an authority_file and a host name or address")]
    NoTrust(String),
    /// Bytes that are no OpenWire.
    #[error(
        "the broker sent {0}; check that the address is an OpenWire connector, and whether it wants ssl://"
    )]
    Protocol(#[from] DecodeError),
    /// More than the broker takes in one frame.
    #[error("{0}; raise wireFormat.maxFrameSize on both sides")]
    TooLong(#[from] EncodeError),
    /// The broker refused a request.
    #[error("the broker refused: {}", Words(.0))]
    Refused(Throwable),
    /// The broker told of a failure that no request waits for.
    #[error("the broker told of a failure: {}", Words(.0))]
    Told(Throwable),
    /// A request's deadline passed.
    #[error("no answer to {0} within {after} ms", after = .1.as_millis())]
    Late(&'static str, Duration),
    /// No byte for longer than was agreed.
    #[error("the broker was silent for {} ms", .0.as_millis())]
    Silent(Duration),
    /// The socket failed.
    #[error("the connection broke: {0}")]
    Broken(#[source] std::io::Error),
    /// The broker ended it.
    #[error("the broker closed the connection")]
    Closed,
    /// The password of the login.
    #[error("{file}: {source}; write the broker's password there, for vault's user alone")]
    Password {
        /// Its file.
        file: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A certificate or key of the login.
    #[error(transparent)]
    Trust(TlsError),
    /// It was ended here.
    #[error("the connection was given up here, to begin anew")]
    GivenUp,
    /// An answer lies behind more than may wait.
    #[error("over {} MiB were dispatched before an answer; a smaller prefetch is tried", MOST_WAITING >> 20)]
    Overrun,
    /// The connection ended before.
    #[error("{0}")]
    Ended(#[source] Arc<ClientError>),
}

impl ClientError {
    /// A socket's failure. TLS calls it one where the other side just ends.
    fn broken(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::UnexpectedEof => Self::Closed,
            _ => Self::Broken(error),
        }
    }

    /// The broker's exception, whether it answers a request or not.
    #[must_use]
    pub fn exception(&self) -> Option<&Throwable> {
        match self {
            Self::Refused(exception) | Self::Told(exception) => Some(exception),
            Self::Ended(cause) => cause.exception(),
            _ => None,
        }
    }

    /// Is it for what a command holds that it failed? It would fail again.
    #[must_use]
    pub fn is_for_good(&self) -> bool {
        // A broker without room is no reason to give a message up.
        let is_short = |it: &Throwable| is_a(it, "ResourceAllocationException");
        match self {
            it if it.is_too_long() => true,
            Self::Ended(cause) => cause.is_for_good(),
            other => other.exception().is_some_and(|exception| !is_short(exception)),
        }
    }

    /// Is a command longer than the broker takes?
    #[must_use]
    pub fn is_too_long(&self) -> bool {
        match self {
            Self::TooLong(_) => true,
            Self::Ended(cause) => cause.is_too_long(),
            _ => false,
        }
    }

    /// Did the other side end the connection, without a word?
    #[must_use]
    pub fn is_hung_up(&self) -> bool {
        match self {
            Self::Closed | Self::Broken(_) => true,
            Self::Ended(cause) => cause.is_hung_up(),
            _ => false,
        }
    }

    /// Another connection has this client id?
    #[must_use]
    pub fn is_taken(&self) -> bool {
        self.exception().is_some_and(|it| is_a(it, "InvalidClientIDException"))
    }

    /// Did an answer lie behind more than may wait?
    #[must_use]
    pub fn is_overrun(&self) -> bool {
        match self {
            Self::Overrun => true,
            Self::Ended(cause) => cause.is_overrun(),
            _ => false,
        }
    }
}

/// Has the exception this simple name? Its package is `javax.jms` up to ActiveMQ 5, and `jakarta.jms`
/// from 6 on.
fn is_a(exception: &Throwable, name: &str) -> bool {
    exception.class.to_string().rsplit('.').next() == Some(name)
}

/// An exception as people read it.
struct Words<'a>(&'a Throwable);

impl fmt::Display for Words<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.message {
            Some(message) => write!(formatter, "{message} ({})", self.0.class),
            None => self.0.class.fmt(formatter),
        }
    }
}

/// What both halves and the task share.
#[derive(Debug, Default)]
struct Shared {
    /// Why it ended.
    end: OnceLock<Arc<ClientError>>,
    /// Bytes read and written so far.
    moved: AtomicU64,
    /// Bytes of dispatched messages that nobody has taken yet.
    waiting: AtomicUsize,
    /// Some of them were taken.
    taken: Notify,
}

impl Shared {
    fn ended(&self) -> ClientError {
        self.end.get().map_or(ClientError::Closed, |cause| ClientError::Ended(cause.clone()))
    }

    /// Waits, and longer than `patience` only as long as bytes move.
    async fn patient<T>(
        &self,
        what: &'static str,
        patience: Duration,
        wait: impl Future<Output = T>,
    ) -> Result<T, ClientError> {
        let mut wait = pin!(wait);
        loop {
            let before = self.moved.load(Ordering::Relaxed);
            match timeout(patience, wait.as_mut()).await {
                Ok(done) => return Ok(done),
                Err(_) if self.moved.load(Ordering::Relaxed) - before >= LEAST_MOVED => {}
                Err(_) => return Err(ClientError::Late(what, patience)),
            }
        }
    }
}

/// What the task is asked to write, and who waits for the answer.
#[derive(Debug)]
struct Asked {
    command: Command,
    answer: Option<oneshot::Sender<Result<Command, ClientError>>>,
}

/// An open connection's half that asks. The connection ends when it is dropped.
#[derive(Debug, Clone)]
pub struct Client {
    asked: mpsc::Sender<Asked>,
    shared: Arc<Shared>,
    connection_id: ConnectionId,
    patience: Duration,
}

/// A response that is on its way.
#[derive(Debug)]
#[must_use = "a refusal would go unnoticed"]
pub struct Answer {
    answered: oneshot::Receiver<Result<Command, ClientError>>,
    what: &'static str,
    patience: Duration,
    shared: Arc<Shared>,
}

impl Answer {
    /// Waits for it.
    ///
    /// # Errors
    /// The broker's refusal, the deadline, or the connection's end.
    pub async fn response(self) -> Result<Command, ClientError> {
        let answered = self.shared.patient(self.what, self.patience, self.answered).await?;
        answered.map_err(|_| self.shared.ended())?
    }
}

/// Its half that is given messages.
#[derive(Debug)]
pub struct Dispatches {
    inbox: mpsc::UnboundedReceiver<Box<MessageDispatch>>,
    shared: Arc<Shared>,
}

/// Whom to trust for `ssl://`: the authority's certificates, and an own certificate with its key
/// where the broker wants one.
///
/// # Errors
/// Any of the files.
pub fn trust(authority: &Path, own: Option<(&PathBuf, &PathBuf)>) -> Result<Arc<ClientConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(authority)? {
        roots.add(certificate).map_err(|_| TlsError::NoAuthority(authority.to_owned()))?;
    }
    let refused = |source| TlsError::Refused { file: authority.to_owned(), source };
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(refused)?
        .with_root_certificates(roots);
    Ok(Arc::new(match own {
        Some((certificate, key)) => {
            let refused = |source| TlsError::Refused { file: certificate.clone(), source };
            config.with_client_auth_cert(certificates(certificate)?, private_key(key)?).map_err(refused)?
        }
        None => config.with_no_client_auth(),
    }))
}

impl Client {
    /// Connects, greets and introduces itself; call inside a runtime.
    ///
    /// # Errors
    /// The broker cannot be reached, is no broker, is too slow, or refuses.
    pub async fn connect(address: &Address, login: &Login) -> Result<(Self, Dispatches), ClientError> {
        let slow =
            |step| move |_| ClientError::Slow { address: address.to_string(), step, after: address.patience };
        let reach = |step| move |source| ClientError::Reach { address: address.to_string(), step, source };
        let dial = TcpStream::connect((address.host.as_str(), address.port));
        let stream =
            timeout(address.patience, dial).await.map_err(slow("connect"))?.map_err(reach("connect"))?;
        stream.set_nodelay(true).map_err(reach("connect"))?;
        socket2::SockRef::from(&stream).set_tcp_notsent_lowat(MOST_UNSENT).map_err(reach("connect"))?;
        if !address.tls {
            return Self::over(stream, address, login).await;
        }
        let no_trust = || ClientError::NoTrust(address.to_string());
        let config = login.tls.clone().ok_or_else(no_trust)?;
        let name = ServerName::try_from(address.host.clone()).map_err(|_| no_trust())?;
        let handshake = TlsConnector::from(config).connect(name, stream);
        let stream =
            timeout(address.patience, handshake).await.map_err(slow("TLS"))?.map_err(reach("TLS"))?;
        Self::over(stream, address, login).await
    }

    async fn over<S>(
        mut stream: S,
        address: &Address,
        login: &Login,
    ) -> Result<(Self, Dispatches), ClientError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let slow =
            |_| ClientError::Slow { address: address.to_string(), step: "greeting", after: address.patience };
        let mut outgoing = Outgoing::new(&address.offer.greeting())?;
        let mut incoming = Incoming::new(address.offer.clone());
        let greeted = timeout(address.patience, greet(&mut stream, &mut incoming, &mut outgoing));
        let settled = greeted.await.map_err(slow)??;
        let shared = Arc::<Shared>::default();
        let (asked, asks) = mpsc::channel(MOST_ASKED);
        let (dispatched, inbox) = mpsc::unbounded_channel();
        let connection =
            Connection::new(stream, incoming, outgoing, settled, asks, dispatched, shared.clone());
        tokio::spawn(connection.run());
        let connection_id = ConnectionId { value: Text::shortened(&login.connection_id) };
        let client = Self { asked, shared: shared.clone(), connection_id, patience: login.patience };
        client.request(client.introduction(login)).await?;
        Ok((client, Dispatches { inbox, shared }))
    }

    fn introduction(&self, login: &Login) -> ConnectionInfo {
        ConnectionInfo {
            password: login.password.as_deref().map(Text::shortened).map(Password::new),
            user_name: login.user.as_deref().map(Text::shortened),
            fault_tolerant: login.resumes,
            failover_reconnect: login.resumes,
            ..ConnectionInfo::new(self.connection_id.clone(), Text::shortened(&login.client_id))
        }
    }

    /// Under which its sessions, consumers and transactions are named.
    #[must_use]
    pub fn connection_id(&self) -> &ConnectionId {
        &self.connection_id
    }

    /// Sends a command that nobody answers; waits for room only.
    ///
    /// # Errors
    /// The connection has ended. Failures of the command end it.
    pub async fn tell(&self, command: impl Into<Command>) -> Result<(), ClientError> {
        let command = command.into();
        let what = connection::name(&command);
        self.queue(Asked { command, answer: None }, what).await
    }

    async fn queue(&self, asked: Asked, what: &'static str) -> Result<(), ClientError> {
        let sent = self.shared.patient(what, self.patience, self.asked.send(asked)).await?;
        sent.map_err(|_| self.shared.ended())
    }

    /// Sends a command whose response is waited for later: others may be sent in between.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn ask(&self, command: impl Into<Command>) -> Result<Answer, ClientError> {
        let mut command: Command = command.into();
        command.head_mut().response_required = true;
        let what = connection::name(&command);
        let (answer, answered) = oneshot::channel();
        self.queue(Asked { command, answer: Some(answer) }, what).await?;
        Ok(Answer { answered, what, patience: self.patience, shared: self.shared.clone() })
    }

    /// Sends a command and waits for its response.
    ///
    /// # Errors
    /// The broker's refusal, the deadline, or the connection's end.
    pub async fn request(&self, command: impl Into<Command>) -> Result<Command, ClientError> {
        self.ask(command).await?.response().await
    }

    /// Says farewell, so that the broker frees the client id at once. A broker that does not answer
    /// notices by itself.
    pub async fn close(self) {
        let object = ObjectId::Connection(self.connection_id.clone());
        let farewell = async {
            self.request(RemoveInfo { head: Head::default(), object, last_delivered: -2 }).await?;
            self.tell(ShutdownInfo { head: Head::default() }).await
        };
        // It ends either way.
        let _unanswered = timeout(FAREWELL, farewell).await;
    }
}

impl Dispatches {
    /// The next message, which is taken by that; none ends a browse or a pull.
    ///
    /// # Errors
    /// The connection's end.
    pub async fn next(&mut self) -> Result<Box<MessageDispatch>, ClientError> {
        self.next_held().await.map(|(dispatch, _)| dispatch)
    }

    /// The next message, which waits until the other part is dropped.
    ///
    /// # Errors
    /// The connection's end.
    pub async fn next_held(&mut self) -> Result<(Box<MessageDispatch>, Held), ClientError> {
        let Some(dispatch) = self.inbox.recv().await else { return Err(self.shared.ended()) };
        let held = Held { bytes: weight(&dispatch), shared: self.shared.clone() };
        Ok((dispatch, held))
    }
}

/// A dispatched message counts against [`MOST_WAITING`] as long as this lives.
#[derive(Debug)]
pub struct Held {
    bytes: usize,
    shared: Arc<Shared>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shared.waiting.fetch_sub(self.bytes, Ordering::Relaxed);
        self.shared.taken.notify_one();
    }
}

/// What a dispatched message counts against [`MOST_WAITING`], in bytes.
fn weight(dispatch: &MessageDispatch) -> usize {
    let message = dispatch.message.as_ref();
    let length = |bytes: Option<&bytes::Bytes>| bytes.map_or(0, bytes::Bytes::len);
    1024 + message.map_or(0, |it| length(it.content.as_ref()) + length(it.properties.as_ref()))
}

/// Both greetings. What the broker says right behind its own stays in `incoming`.
async fn greet<S>(
    stream: &mut S,
    incoming: &mut Incoming,
    outgoing: &mut Outgoing,
) -> Result<Settled, ClientError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    use tokio::io::AsyncReadExt as _;
    stream.write_all_buf(outgoing).await.map_err(ClientError::broken)?;
    stream.flush().await.map_err(ClientError::broken)?;
    loop {
        if let Some(Arrival::Greeting(_, settled)) = incoming.arrival()? {
            outgoing.settle(&settled);
            return Ok(settled);
        }
        if stream.read_buf(incoming.buffer()).await.map_err(ClientError::broken)? == 0 {
            return Err(ClientError::Closed);
        }
    }
}

#[cfg(test)]
mod tests;
