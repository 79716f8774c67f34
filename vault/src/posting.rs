//! Messages that come by HTTP: each once, at whichever vault it is posted. Knows keys and which vault
//! has taken which; not who may post, and nothing of what a message says.
//!
//! A key is written down here (`book`) before its message goes to a queue, under the producer and
//! number by which the queue, asked after a crash, tells whether it has it. A repeated key is answered
//! what it was answered first.
//!
//! The other vault has a book of its own, and is asked before a key is taken:
//!
//! | the other vault | answers | and this one |
//! |---|---|---|
//! | has its message | `Kept` | answers what that was answered |
//! | is posting it, or asks about it itself | `UnderWay` | refuses: it is in doubt |
//! | has nothing, and one of the two remembers | `Yours`, and writes down that it asks in its turn from now on | takes it |
//! | has nothing, and neither remembers | `Yours` | refuses: what became of it is lost |
//! | was left the key, in a life that it does not remember | `Unknown` | refuses: what became of it is lost |
//! | cannot be asked, and the key is known to have come here first | | takes it |
//! | cannot be asked otherwise, or the key was left to it before | | refuses: it is in doubt |
//!
//! A key is known to have come here first by its ticket, which names the life of the vault that its
//! sender went to first; that vault remembers as long as nothing of its book since that life was lost
//! (`memory`). The other one has kept it only if it was left to it, which the first has written down, with
//! the life in which that was: so that one must remember, too. So a key that both vaults could speak about
//! is kept once, whoever is killed when, and whichever book is lost or put back; one that comes by two
//! senders, each with a ticket of its own, while the vaults are apart may be kept twice, and so may one
//! without a ticket once both books were lost.

mod book;
mod counts;
mod letter;
mod memory;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use prometheus::Registry;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::openwire::{EncodeError, ProducerId, Text};
use crate::queue::{QueueError, Queues, Session};
use crate::sqlite::SqliteError;
pub use book::Standing;
use book::{Begin, Book, Entry, Hash, Row};
use counts::Counts;
pub use letter::Post;
use memory::Life;

/// Messages that are put into queues at once; each is a producer of its own, so that its numbers come
/// in their order.
const SEATS: u32 = 64;
/// A message waits no longer for one.
const SEATED_WITHIN: Duration = Duration::from_secs(2);

/// A caller over HTTP is held no longer by queues that are full.
const HELD: Duration = Duration::from_secs(1);

/// Asks the other vault; why it does not answer, in words.
pub type AskPeer = Arc<dyn Fn(Bytes) -> BoxFuture<'static, Result<Bytes, String>> + Send + Sync>;

/// What can go wrong with a post.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// The file of keys.
    #[error("messages: {0}")]
    File(#[from] SqliteError),
    /// Its thread.
    #[error("messages: no thread for their keys: {0}; look at the host's limits")]
    Thread(#[source] std::io::Error),
    /// The metrics.
    #[error("messages: their metrics: {0}; this is a fault of the program")]
    Metrics(#[from] prometheus::Error),
    /// The system gives none.
    #[error("messages: the system gives no randomness for this run's producers; start it again")]
    NoRandomness,
    /// The file cannot be written or read now.
    #[error(
        "the keys of messages (posts.db) cannot be read or written: {0}; nothing was kept, repeat it later"
    )]
    Book(String),
    /// The same key came with something else.
    #[error("this idempotency key has posted another message; take a new key")]
    KeyReused,
    /// The same key is being posted at this moment, here or at the other vault.
    #[error("a post with this key is under way, and its outcome not known yet; repeat it with the same key")]
    UnderWay,
    /// A book that could tell what became of it is lost.
    #[error(
        "a vault has lost its record of what it was sent when this key came first: its message may have been kept, \
         and this key keeps none any more; take a new key if it did not arrive"
    )]
    KeyLost,
    /// The other vault may have posted it.
    #[error(
        "the key may have been posted at the other vault, which cannot be asked now: {why}; repeat it with the same key"
    )]
    InDoubt {
        /// Why not.
        why: String,
    },
    /// Too much at once.
    #[error("{SEATS} messages are being kept already; repeat it in a moment")]
    Busy,
    /// What is full.
    #[error("{what} is full; consume or purge messages, or have its operator make room")]
    Full {
        /// Which store.
        what: &'static str,
    },
    /// More than the protocol holds.
    #[error("the message cannot be made: {0}")]
    Encode(#[from] EncodeError),
    /// The queues.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The vault ends.
    #[error("this vault is stopping")]
    Stopped,
}

/// What became of a post.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Posted {
    /// JMSMessageID.
    pub id: String,
    /// Was it kept just now, or by an earlier one with its key?
    pub fresh: bool,
}

/// What one vault asks the other about a key, before it goes on with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Claim {
    key: Hash,
    /// The life that it was sent to first, as its ticket says.
    ticket: Option<Life>,
    /// The life of the other vault in which it was left to that.
    left: Option<Life>,
    /// The life that asks.
    from: Life,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Claimed {
    /// It has the key's message.
    Kept { print: Hash, id: String },
    /// It is about to know.
    UnderWay,
    /// It has not, and takes the key no more without asking.
    Yours {
        /// It knows all that came in the ticket's life.
        remembers: bool,
        /// Since when it has not: the asker's life of that time.
        left: Option<Life>,
    },
    /// It was left the key, and does not know any more what it did with it.
    Unknown,
}

struct Inner {
    book: Book,
    counts: Counts,
    queues: Queues,
    session: Session,
    /// What is common to this run's producers.
    run: String,
    seats: Arc<Semaphore>,
    free: Mutex<Vec<i64>>,
    /// The next producer's number.
    fresh: AtomicI64,
    /// Keys that are being posted or asked about.
    under_way: Mutex<HashSet<Hash>>,
    /// How the other vault is asked, once this life has begun.
    joined: OnceLock<Joined>,
}

struct Joined {
    ask: AskPeer,
    life: Life,
    /// Since nothing of the book was lost.
    lives: HashSet<Life>,
}

/// The handle; cheap to clone.
#[derive(Clone)]
pub struct Posting {
    inner: Arc<Inner>,
}

/// A message's producer while it is being kept.
struct Seat<'i> {
    inner: &'i Inner,
    number: i64,
    _permit: OwnedSemaphorePermit,
}

/// Nobody else posts or asks about a key meanwhile.
struct Hold<'i> {
    inner: &'i Inner,
    key: Hash,
}

/// Where the keys lie in the state folder.
#[must_use]
pub fn file(state: &Path) -> PathBuf {
    state.join("posts.db")
}

impl Posting {
    /// Opens the keys, and finds out how those ended that a crash cut off.
    ///
    /// # Errors
    /// The file of keys, the queues, or no randomness.
    pub async fn open(file: &Path, vault: &str, queues: Queues) -> Result<Self, PostError> {
        let counts = Counts::new()?;
        let book = Book::open(file, counts.early.clone())?;
        for row in book.unsettled().await? {
            settle(&book, &queues, &row).await?;
        }
        let random = getrandom::u64().map_err(|_| PostError::NoRandomness)?;
        let (session, _) = queues.connect();
        let inner = Inner {
            book,
            counts,
            queues,
            session,
            run: format!("ID:{vault}-post-{random:016x}"),
            seats: Arc::new(Semaphore::new(SEATS as usize)),
            free: Mutex::new((1..=i64::from(SEATS)).collect()),
            fresh: AtomicI64::new(i64::from(SEATS) + 1),
            under_way: Mutex::default(),
            joined: OnceLock::new(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Has the posts counted there.
    ///
    /// # Errors
    /// They are counted there already.
    pub fn register(&self, registry: &Registry) -> Result<(), PostError> {
        Ok(self.inner.counts.register(registry)?)
    }

    /// How many keys there are, and who has too many.
    ///
    /// # Errors
    /// [`PostError::Stopped`].
    pub async fn standing(&self) -> Result<Standing, PostError> {
        self.inner.book.standing().await
    }

    /// This vault's life begins, and from now on the other one is asked so. Until then every key is in
    /// doubt.
    ///
    /// # Errors
    /// [`PostError::Book`], [`PostError::Stopped`].
    pub async fn join(&self, life: u128, ask: AskPeer) -> Result<(), PostError> {
        let lives = self.inner.book.live(life).await?;
        // Said once, when the rooms are joined.
        let _said = self.inner.joined.set(Joined { ask, life, lives });
        Ok(())
    }

    /// Keeps a message under its owner's key, durably if it is persistent. `ticket`: the life of the
    /// vault that the key was first sent to. Goes on when its caller leaves, and holds `room` until its
    /// end. `now` in ms since 1970.
    ///
    /// # Errors
    /// See [`PostError`]; but for [`PostError::KeyReused`] repeating it with the same key is safe.
    pub async fn post(
        &self,
        post: Post,
        (owner, key): (&str, &str),
        ticket: Option<u128>,
        now: u64,
        room: impl Send + 'static,
    ) -> Result<Posted, PostError> {
        let digest = Sha256::new().chain_update(owner).chain_update([0]).chain_update(key).finalize();
        let (inner, owner) = (Arc::clone(&self.inner), owner.to_owned());
        let work = async move {
            let posted = inner.post(&post, (&owner, digest.into()), ticket, now).await;
            inner.counts.count(&posted);
            drop((post, room));
            posted
        };
        tokio::spawn(work).await.unwrap_or(Err(PostError::Stopped))
    }

    /// Answers the other vault's question.
    ///
    /// # Errors
    /// Why there is no answer, in words.
    pub async fn answer(&self, question: &[u8]) -> Result<Bytes, String> {
        let claim = serde_json::from_slice(question).map_err(|error| error.to_string())?;
        let claimed = self.inner.give_up(&claim).await.map_err(|error| error.to_string())?;
        encoded(&claimed)
    }
}

/// The answer of a vault that takes no posts: it has no message if it never had a book, of which its
/// witness would be left.
///
/// # Errors
/// There was a book, and nobody to read it: the other vault must take the key as being in doubt.
pub fn answer_without(file: &Path) -> Result<Bytes, String> {
    match (file.try_exists(), memory::witness_of(file).try_exists()) {
        (Ok(false), Ok(false)) => encoded(&Claimed::Yours { remembers: true, left: None }),
        _ => Err("it has kept messages before, and takes none now".to_owned()),
    }
}

fn encoded(answer: &impl Serialize) -> Result<Bytes, String> {
    serde_json::to_vec(answer).map(Bytes::from).map_err(|error| error.to_string())
}

impl Inner {
    async fn post(
        &self,
        post: &Post,
        (owner, key): (&str, Hash),
        ticket: Option<Life>,
        now: u64,
    ) -> Result<Posted, PostError> {
        let joined = self.joined()?;
        let print = post.print();
        let _hold = self.hold(key).ok_or(PostError::UnderWay)?;
        let known = self.known(key).await?;
        if let Some(Entry::Kept(row)) = &known {
            return repeated(print, row.print, message(row));
        }
        let came_here_first = ticket.is_some_and(|life| joined.lives.contains(&life));
        let left = if let Some(Entry::Theirs(left)) = known { left } else { None };
        match joined.claim(Claim { key, ticket, left, from: joined.life }).await {
            Ok(Claimed::Kept { print: theirs, id }) => return repeated(print, theirs, id),
            Ok(Claimed::UnderWay) => return Err(PostError::UnderWay),
            Ok(Claimed::Unknown) => return Err(PostError::KeyLost),
            Ok(Claimed::Yours { remembers, left }) => {
                let is_lost = ticket.is_some() && !remembers && !came_here_first;
                if is_lost || left.is_some_and(|life| !joined.lives.contains(&life)) {
                    return Err(PostError::KeyLost);
                }
            }
            Err(PostError::InDoubt { .. }) if came_here_first && known.is_none() => {}
            Err(error) => return Err(error),
        }
        self.has_room(post.persistent)?;
        let mut seat = self.seat().await?;
        let connection = Text::shortened(&self.run);
        let producer = ProducerId { connection, value: seat.number, session: 1 };
        let owner = owner.to_owned();
        let begin = Begin { key, owner, print, producer: producer.to_string(), now };
        let begun = self.book.begin(begin).await;
        let number = begun.inspect_err(|_| seat.change())?;
        match self.send(post, &producer, number, now).await {
            Ok(()) => {
                self.book.kept(number);
                let id = producer.message(i64::try_from(number).unwrap_or(i64::MAX)).to_string();
                Ok(Posted { id, fresh: true })
            }
            // It may be kept: the next start asks the queue.
            Err(PostError::Queue(QueueError::Stopped)) => Err(PostError::Stopped),
            Err(error) => {
                self.book.forget(number, producer.to_string());
                Err(error)
            }
        }
    }

    async fn send(&self, post: &Post, producer: &ProducerId, number: u64, now: u64) -> Result<(), PostError> {
        let send = post.to_queue(producer, number, now)?;
        // A send that is held has not gone to the queues yet: given up, it is nowhere.
        let sent = tokio::time::timeout(HELD, self.session.send(send, None)).await;
        let answer = sent.map_err(|_| PostError::Full { what: "the queues' room" })??;
        answer.await?;
        Ok(())
    }

    /// A caller over HTTP is told at once what a JMS client is held for.
    fn has_room(&self, persistent: bool) -> Result<(), PostError> {
        let lack = self.queues.gate().lack(persistent);
        lack.map_or(Ok(()), |lack| Err(PostError::Full { what: lack.named() }))
    }

    /// What is known of a key that is held, with nothing left open.
    async fn known(&self, key: Hash) -> Result<Option<Entry>, PostError> {
        match self.book.find(key).await? {
            Some(Entry::Begun(row)) => {
                let kept = settle(&self.book, &self.queues, &row).await?;
                Ok(kept.then_some(Entry::Kept(row)))
            }
            known => Ok(known),
        }
    }

    fn joined(&self) -> Result<&Joined, PostError> {
        let why = || "this vault has not begun its keys (posts.db), or cannot; its log tells".to_owned();
        self.joined.get().ok_or_else(|| PostError::InDoubt { why: why() })
    }

    /// The other vault asks for a key.
    async fn give_up(&self, claim: &Claim) -> Result<Claimed, PostError> {
        let (key, joined) = (claim.key, self.joined()?);
        let Some(_hold) = self.hold(key) else { return Ok(Claimed::UnderWay) };
        let left = match self.known(key).await? {
            Some(Entry::Kept(row)) => return Ok(Claimed::Kept { print: row.print, id: message(&row) }),
            Some(Entry::Theirs(left)) => left,
            _ => Some(claim.from),
        };
        if claim.left.is_some_and(|life| !joined.lives.contains(&life)) {
            return Ok(Claimed::Unknown);
        }
        self.book.theirs(key, left).await?;
        Ok(Claimed::Yours { remembers: claim.ticket.is_some_and(|life| joined.lives.contains(&life)), left })
    }

    fn hold(&self, key: Hash) -> Option<Hold<'_>> {
        let is_free = lock(&self.under_way).insert(key);
        // Made only where it is: it frees the key when it goes.
        is_free.then(|| Hold { inner: self, key })
    }

    async fn seat(&self) -> Result<Seat<'_>, PostError> {
        let seats = Arc::clone(&self.seats).acquire_owned();
        let permit = tokio::time::timeout(SEATED_WITHIN, seats).await;
        let permit = permit.map_err(|_| PostError::Busy)?.map_err(|_| PostError::Stopped)?;
        let number = lock(&self.free).pop().ok_or(PostError::Busy)?;
        Ok(Seat { inner: self, number, _permit: permit })
    }
}

impl Joined {
    /// Asks the other vault for a key that is held.
    async fn claim(&self, claim: Claim) -> Result<Claimed, PostError> {
        let in_doubt = |why| PostError::InDoubt { why };
        let question = encoded(&claim).map_err(in_doubt)?;
        let answer = (self.ask)(question).await.map_err(in_doubt)?;
        serde_json::from_slice(&answer).map_err(|error| in_doubt(error.to_string()))
    }
}

/// Was a message kept that was begun, by this run or one before? Writes down which.
async fn settle(book: &Book, queues: &Queues, row: &Row) -> Result<bool, PostError> {
    let kept = queues.has(&row.producer, row.number).await?;
    if kept {
        book.kept(row.number);
    } else {
        book.forget(row.number, row.producer.clone());
    }
    Ok(kept)
}

fn repeated(print: Hash, first: Hash, id: String) -> Result<Posted, PostError> {
    if print == first { Ok(Posted { id, fresh: false }) } else { Err(PostError::KeyReused) }
}

/// As JMSMessageID shows it.
fn message(row: &Row) -> String {
    format!("{}:{}", row.producer, row.number)
}

impl Seat<'_> {
    /// Its producer cannot go on: another takes its place.
    fn change(&mut self) {
        self.number = self.inner.fresh.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        lock(&self.inner.free).push(self.number);
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        lock(&self.inner.under_way).remove(&self.key);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
