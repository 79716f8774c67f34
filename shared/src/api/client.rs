//! The failing-over client of the vault pair: whichever vault answers does the work. Knows
//! vaults, deadlines and how to repeat a call so that it never acts twice; must not know what
//! a number or a file means (only the calls by name know their paths). It exists so that no
//! caller ever handles a dead vault itself.
//!
//! Every POST carries an idempotency key, so repeating one is safe. A body in memory is
//! repeated as it is; a streamed one only while no byte of it has gone out. A download that
//! breaks is continued at the other vault where it stopped: ids name unchanging bytes.

mod answer;
mod body;
mod calls;
mod fault;
mod identity;
mod ticket;
mod turns;
mod vault;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use tokio::time::Instant;

pub use answer::Answer;
pub use body::Body;
pub use calls::encode;
pub use fault::{ClientError, Transport};
pub use ticket::{Life, NoLife, Tickets};

use self::answer::Resume;
use self::body::Load;
use self::identity::Identity;
use self::ticket::Stamp;
use self::vault::Vault;
use super::IDEMPOTENCY_KEY;

/// A vault as a caller knows it. Its certificate is verified against `name`, wherever
/// `address` leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VaultAddress {
    /// The vault's name, which its certificate carries as DNS name.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
}

/// How long the client waits for what, and how much it keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// TCP connect and TLS handshake together; 900 ms.
    pub connect: Duration,
    /// A first attempt, connect and answer's head together, while another vault is left; 900 ms.
    /// Later attempts get three times as long each.
    pub attempt: Duration,
    /// How long a small upload waits in its first attempt for a vault that still takes
    /// connections, since slow file servers are no reason to store it twice; 5 s.
    pub upload_attempt: Duration,
    /// A whole call whose body is in memory, until the answer's head; 10 s.
    pub total: Duration,
    /// Without any byte moving in a body, or between a streamed body's end and the answer; 30 s.
    pub idle: Duration,
    /// A whole call with a streamed body; 1 h.
    pub upload_total: Duration,
    /// Idle connections kept for each vault; 32.
    pub pooled: usize,
    /// How long one may idle before it is not trusted any more; 20 s.
    pub pooled_for: Duration,
    /// How often one download may be continued; 5.
    pub resumes: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_millis(900),
            attempt: Duration::from_millis(900),
            upload_attempt: Duration::from_secs(5),
            total: Duration::from_secs(10),
            idle: Duration::from_secs(30),
            upload_total: Duration::from_secs(3600),
            pooled: 32,
            pooled_for: Duration::from_secs(20),
            resumes: 5,
        }
    }
}

/// What the client last heard of a vault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VaultState {
    /// The vault's name.
    pub name: String,
    /// Did it answer last time? Not yet asked counts as no.
    pub up: bool,
    /// Why not, where it is not.
    pub why: Option<String>,
}

/// The vault whose answer this is, among a response's extensions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServedBy(pub String);

/// The client. Cheap to clone; clones share connections and what is known of the vaults.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
    tickets: Option<Arc<dyn Tickets>>,
}

struct Inner {
    vaults: Vec<Arc<Vault>>,
    /// Index of the vault that answered last: it goes first.
    preferred: AtomicUsize,
    failovers: AtomicU64,
    limits: Arc<Limits>,
}

/// What is repeated at each attempt, apart from the body.
#[derive(Debug, Clone)]
struct Head {
    method: Method,
    path: PathAndQuery,
    headers: HeaderMap,
}

impl Client {
    /// A client of one vault or of a pair, with the usual limits. Reads the files (blocking),
    /// connects to nobody yet.
    ///
    /// # Errors
    /// No vault or more than two, a name that no certificate can carry, or the files.
    pub fn new(vaults: Vec<VaultAddress>, files: crate::tls::Files) -> Result<Self, ClientError> {
        Self::with_limits(vaults, files, Limits::default())
    }

    /// As [`Client::new`], with limits of the caller's choice.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn with_limits(
        vaults: Vec<VaultAddress>,
        files: crate::tls::Files,
        limits: Limits,
    ) -> Result<Self, ClientError> {
        if !(1..=2).contains(&vaults.len()) {
            return Err(ClientError::VaultCount(vaults.len()));
        }
        let identity = Arc::new(Identity::load(files)?);
        let limits = Arc::new(limits);
        let vaults = vaults
            .into_iter()
            .map(|vault| Vault::new(vault, Arc::clone(&identity), Arc::clone(&limits)).map(Arc::new))
            .collect::<Result<_, _>>()?;
        let (preferred, failovers) = (AtomicUsize::new(0), AtomicU64::new(0));
        Ok(Self { inner: Arc::new(Inner { vaults, preferred, failovers, limits }), tickets: None })
    }

    /// The same client, whose reserves carry tickets from now on: before a key is first sent,
    /// `tickets` writes down to which vault's life it goes. Without, a vault that is alone gives
    /// no new numbers to this caller.
    #[must_use]
    pub fn with_tickets(self, tickets: Arc<dyn Tickets>) -> Self {
        Self { tickets: Some(tickets), ..self }
    }

    /// Sends a request to whichever vault answers. Method, path with query, headers and body
    /// count; scheme, authority and `Host` are the client's own. A POST or PUT without an
    /// idempotency key gets a random one. Refusals of a vault come back as responses;
    /// a refusal with 502, 503, 504 or 507 only after the other vault was asked too.
    ///
    /// # Errors
    /// No vault answered, a streamed body broke half-way ([`ClientError::BrokenUpload`]), the
    /// body's own source failed, or a ticket is there already ([`ClientError::ForeignTicket`]).
    pub async fn call(&self, request: Request<Body>) -> Result<Response<Answer>, ClientError> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
        let mut head = Head { method: parts.method, path, headers: parts.headers };
        head.headers.remove(header::HOST);
        if matches!(head.method, Method::POST | Method::PUT) && !head.headers.contains_key(IDEMPOTENCY_KEY) {
            let key = HeaderValue::try_from(fresh_key()?).map_err(|_| ClientError::NoRandomness)?;
            head.headers.insert(IDEMPOTENCY_KEY, key);
        }
        let mut load = Load::from(body);
        let stamp = match &self.tickets {
            Some(tickets) => Stamp::of(tickets, &head, &load)?,
            None => None,
        };
        let mut response = turns::take(&self.inner, &mut head, &mut load, stamp).await?;
        if let Some(resume) = Resume::of(self, &head, &response) {
            response.body_mut().resume_with(resume);
        }
        Ok(response)
    }

    /// What is known of each vault, without asking it.
    #[must_use]
    pub fn vaults(&self) -> Vec<VaultState> {
        self.inner.vaults.iter().map(|vault| vault.state()).collect()
    }

    /// How often a call went on at another vault since the client was made.
    #[must_use]
    pub fn failovers(&self) -> u64 {
        self.inner.failovers.load(Ordering::Relaxed)
    }

    /// Does a vault that answers make sure that both are together, at a moment during this call?
    /// Whatever either has given alone before is known to both then. Asks each that answered last
    /// time; changes nothing about which vault goes first.
    pub async fn are_together(&self) -> bool {
        for vault in self.inner.vaults.iter().filter(|vault| vault.state().up) {
            if vault.is_together().await {
                return true;
            }
        }
        false
    }

    /// Connects to each vault that is thought down and due, or that nobody has heard for
    /// `silent_for`; for a caller that wants to know before it needs to.
    pub async fn probe(&self, silent_for: Duration) {
        let now = Instant::now();
        let due = self.inner.vaults.iter().filter(|vault| vault.wants_probe(now, silent_for));
        futures_util::future::join_all(due.map(|vault| vault.probe())).await;
    }
}

/// 128 random bits in hex: an idempotency key that nobody else has.
///
/// # Errors
/// The system gives no randomness.
pub fn fresh_key() -> Result<String, ClientError> {
    let mut bits = [0_u8; 16];
    rustls::crypto::ring::default_provider()
        .secure_random
        .fill(&mut bits)
        .map_err(|_| ClientError::NoRandomness)?;
    Ok(bits.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_keys_are_valid_and_differ() {
        let (one, other) = (fresh_key().unwrap(), fresh_key().unwrap());
        assert_eq!(one.len(), 32);
        assert!(one.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_ne!(one, other);
    }
}
