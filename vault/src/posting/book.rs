//! Under which keys messages were posted, in a small SQLite file with one thread that writes it. Knows
//! who waits for what; its rows are `rows`'. Neither queues nor the other vault.
//!
//! Many share one commit. That a message is kept is written with the next commit of others, or after
//! a tenth of a second: a crash before it is found out by asking the queue.

mod rows;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use prometheus::IntCounter;
use rusqlite::Connection;
use serde::Serialize;
use tokio::sync::oneshot;

use super::PostError;
use super::memory::{self, Life, Witness};
use crate::sqlite;
use rows::{Bounds, MIGRATIONS, Tally, commit, find, unsettled};

/// Most changes of one commit, so that nobody waits for an endless one.
const BATCH: usize = 256;
/// So many changes that cannot be written are kept for later; with more nothing new begins.
const MOST_OWED: usize = 4096;
/// So long may wait what nobody waits for.
const COMPANY: Duration = Duration::from_millis(100);

/// SHA-256 of something.
pub(super) type Hash = [u8; 32];

/// What was posted under a key, or is about to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    /// Of the producer's messages this one.
    pub(super) number: u64,
    /// By which the queue knows who sent it.
    pub(super) producer: String,
    /// Tells one message from another.
    pub(super) print: Hash,
}

/// How the keys stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Standing {
    /// Keys that are remembered.
    pub keys: u64,
    /// Owners that have too many: some of theirs were forgotten before their time today, or the day
    /// before.
    pub crowded: Vec<String>,
}

/// What is known of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    /// It was begun, and nobody has written how it ended.
    Begun(Row),
    /// Its message is in a queue, or was.
    Kept(Row),
    /// The other vault was told to go on with it, in this life of its first.
    Theirs(Option<Life>),
}

type Reply<T> = oneshot::Sender<Result<T, PostError>>;

/// What is asked of the thread.
enum Ask {
    Find(Hash, Reply<Option<Entry>>),
    Standing(Reply<Standing>),
    Live(Life, Reply<HashSet<Life>>),
    Unsettled(Reply<Vec<Row>>),
    Write(Write, Reply<u64>),
    /// Nobody waits for it.
    Later(Write),
}

enum Write {
    Begin(Begin),
    Theirs { key: Hash, life: Option<Life> },
    Kept(u64),
    Forget { number: u64, producer: String },
}

/// A message is about to be put into its queue.
#[derive(Debug)]
pub(super) struct Begin {
    pub(super) key: Hash,
    /// Whose key it is; not empty.
    pub(super) owner: String,
    pub(super) print: Hash,
    pub(super) producer: String,
    /// In ms since 1970.
    pub(super) now: u64,
}

/// The keys. The thread ends with it.
#[derive(Debug)]
pub(super) struct Book(Sender<Ask>);

impl Book {
    /// Opens or creates the file and starts the thread. Counts in `early` the keys that are forgotten
    /// before their time.
    ///
    /// # Errors
    /// [`PostError::File`], [`PostError::Thread`].
    pub(super) fn open(file: &Path, early: IntCounter) -> Result<Self, PostError> {
        let connection = sqlite::open(file, MIGRATIONS)?;
        let tally = Tally::of(&connection).map_err(|error| unwritten(&error))?;
        let waiting = Waiting {
            file: file.to_owned(),
            witness: None,
            writes: Vec::new(),
            later: Vec::new(),
            tally,
            early,
            trouble: None,
        };
        let (sender, inbox) = channel();
        std::thread::Builder::new()
            .name("posts".to_owned())
            .spawn(move || run(&connection, waiting, &inbox))
            .map_err(PostError::Thread)?;
        Ok(Self(sender))
    }

    /// A life of this vault begins. Gives all its lives since nothing of the book was lost.
    ///
    /// # Errors
    /// As [`Book::find`].
    pub(super) async fn live(&self, life: Life) -> Result<HashSet<Life>, PostError> {
        self.ask(|reply| Ask::Live(life, reply)).await
    }

    /// What is known of a key.
    ///
    /// # Errors
    /// [`PostError::Book`], [`PostError::Stopped`].
    pub(super) async fn find(&self, key: Hash) -> Result<Option<Entry>, PostError> {
        self.ask(|reply| Ask::Find(key, reply)).await
    }

    /// All that were begun and are neither kept nor forgotten.
    ///
    /// # Errors
    /// As [`Book::find`].
    pub(super) async fn unsettled(&self) -> Result<Vec<Row>, PostError> {
        self.ask(Ask::Unsettled).await
    }

    /// Writes down, before its message is sent, that a key is taken here. Gives the message's number,
    /// which is above all that were given before.
    ///
    /// # Errors
    /// As [`Book::find`]; then nothing was written, and another producer may have more success.
    pub(super) async fn begin(&self, begin: Begin) -> Result<u64, PostError> {
        self.ask(|reply| Ask::Write(Write::Begin(begin), reply)).await
    }

    /// How many keys there are, and whose are forgotten before their time.
    ///
    /// # Errors
    /// As [`Book::find`].
    pub(super) async fn standing(&self) -> Result<Standing, PostError> {
        self.ask(Ask::Standing).await
    }

    /// Writes down that the other vault goes on with a key, and in which life of its that was told first.
    ///
    /// # Errors
    /// As [`Book::begin`].
    pub(super) async fn theirs(&self, key: Hash, life: Option<Life>) -> Result<(), PostError> {
        self.ask(|reply| Ask::Write(Write::Theirs { key, life }, reply)).await.map(drop)
    }

    /// Its message is in its queue.
    pub(super) fn kept(&self, number: u64) {
        self.tell(Write::Kept(number));
    }

    /// Its message is nowhere. Written before any later [`Book::begin`] of its producer is answered, so
    /// that no later number of that can be taken for it.
    pub(super) fn forget(&self, number: u64, producer: String) {
        self.tell(Write::Forget { number, producer });
    }

    fn tell(&self, write: Write) {
        // A thread that has ended leaves it to the next start to ask the queue.
        let _ended = self.0.send(Ask::Later(write));
    }

    async fn ask<T>(&self, ask: impl FnOnce(Reply<T>) -> Ask) -> Result<T, PostError> {
        let (reply, answer) = oneshot::channel();
        self.0.send(ask(reply)).map_err(|_| PostError::Stopped)?;
        answer.await.unwrap_or(Err(PostError::Stopped))
    }
}

/// What waits for the next commit.
struct Waiting {
    file: PathBuf,
    /// Of the life that has begun.
    witness: Option<Witness>,
    writes: Vec<(Write, Reply<u64>)>,
    later: Vec<Write>,
    tally: Tally,
    early: IntCounter,
    /// Why the last commit failed.
    trouble: Option<String>,
}

fn run(connection: &Connection, mut waiting: Waiting, inbox: &Receiver<Ask>) {
    loop {
        let first = if waiting.later.is_empty() {
            inbox.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            inbox.recv_timeout(COMPANY)
        };
        let company = match first {
            Ok(first) => {
                std::iter::once(first).chain(inbox.try_iter().take(BATCH - 1)).for_each(|ask| {
                    waiting.take(connection, ask);
                });
                !waiting.writes.is_empty() || waiting.later.len() >= BATCH
            }
            Err(RecvTimeoutError::Timeout) => true,
            Err(RecvTimeoutError::Disconnected) => {
                waiting.write(connection);
                return;
            }
        };
        if company {
            waiting.write(connection);
        }
    }
}

impl Waiting {
    fn take(&mut self, connection: &Connection, ask: Ask) {
        match ask {
            Ask::Find(key, reply) => {
                let found = find(connection, &key).map_err(|error| unwritten(&error));
                drop(reply.send(found.map(|found| self.brought_up_to_date(found))));
            }
            Ask::Standing(reply) => drop(reply.send(Ok(self.tally.standing()))),
            Ask::Live(life, reply) => {
                let begun =
                    memory::begin(connection, &self.file, life, (self.tally.day, Bounds::default().days));
                let lives = begun.map(|(lives, witness)| {
                    self.witness = Some(witness);
                    lives
                });
                drop(reply.send(lives.map_err(PostError::Book)));
            }
            Ask::Unsettled(reply) => {
                self.write(connection);
                drop(reply.send(unsettled(connection).map_err(|error| unwritten(&error))));
            }
            Ask::Write(write, reply) => self.writes.push((write, reply)),
            Ask::Later(write) => self.later.push(write),
        }
    }

    /// What is known and not written yet counts, too.
    fn brought_up_to_date(&self, found: Option<Entry>) -> Option<Entry> {
        let Some(Entry::Begun(row)) = found else { return found };
        let ended = self.later.iter().rev().find_map(|write| match write {
            Write::Kept(number) if *number == row.number => Some(true),
            Write::Forget { number, .. } if *number == row.number => Some(false),
            _ => None,
        });
        match ended {
            Some(true) => Some(Entry::Kept(row)),
            Some(false) => None,
            None => Some(Entry::Begun(row)),
        }
    }

    /// One commit. What nobody waits for stays until it is written.
    fn write(&mut self, connection: &Connection) {
        let mut writes = std::mem::take(&mut self.writes);
        if self.later.len() >= MOST_OWED {
            let why = self.trouble.clone().unwrap_or_default();
            for (_, reply) in writes.drain(..) {
                drop(reply.send(Err(PostError::Book(why.clone()))));
            }
        }
        let (writes, replies): (Vec<_>, Vec<_>) = writes.into_iter().unzip();
        match commit(connection, &mut self.later, &writes, &mut self.tally, Bounds::default()) {
            Ok(committed) => {
                self.early.inc_by(committed.early);
                let last = committed.written.iter().flatten().max();
                if let Some((witness, last)) = self.witness.as_mut().zip(last) {
                    witness.saw(*last);
                }
                for (reply, written) in replies.into_iter().zip(committed.written) {
                    // Whoever asked may be gone.
                    drop(reply.send(written.map_err(PostError::Book)));
                }
                self.tell(committed.trouble);
            }
            Err(error) => {
                for reply in replies {
                    drop(reply.send(Err(unwritten(&error))));
                }
                self.tell(Some(error.to_string()));
            }
        }
    }

    /// Only what has changed.
    fn tell(&mut self, trouble: Option<String>) {
        match &trouble {
            Some(why) if self.trouble != trouble => tracing::error!(
                "messages: their keys (posts.db) cannot all be written: {why}; it is tried again"
            ),
            None if self.trouble.is_some() => tracing::warn!("messages: their keys are written again"),
            _ => {}
        }
        self.trouble = trouble;
    }
}

fn unwritten(error: &rusqlite::Error) -> PostError {
    PostError::Book(error.to_string())
}

/// A book without its thread.
#[cfg(test)]
pub(super) fn migrated(file: &Path) -> Connection {
    sqlite::open(file, MIGRATIONS).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(number: u64, print: u8) -> Row {
        Row { number, producer: "p".to_owned(), print: [print; 32] }
    }

    fn counter() -> IntCounter {
        IntCounter::new("early", "Keys").unwrap()
    }

    fn begun(key: u8, producer: &str) -> Begin {
        let (key, owner, producer) = ([key; 32], "erp".to_owned(), producer.to_owned());
        Begin { key, owner, print: key, producer, now: 1 }
    }

    #[tokio::test]
    async fn a_key_is_known_over_a_restart_as_far_as_it_came() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("posts.db");
        let book = Book::open(&file, counter()).unwrap();
        let mut numbers = Vec::new();
        for key in 1..=4 {
            numbers.push(book.begin(begun(key, "p")).await.unwrap());
        }
        assert!(numbers.is_sorted_by(|one, other| one < other), "{numbers:?}");
        book.kept(numbers[0]);
        book.forget(numbers[1], "p".to_owned());
        book.theirs([4; 32], Some(7)).await.unwrap();
        drop(book);
        let book = Book::open(&file, counter()).unwrap();
        assert_eq!(book.find([1; 32]).await.unwrap(), Some(Entry::Kept(row(numbers[0], 1))));
        assert_eq!(book.find([2; 32]).await.unwrap(), None);
        assert_eq!(book.find([3; 32]).await.unwrap(), Some(Entry::Begun(row(numbers[2], 3))));
        assert_eq!(book.find([4; 32]).await.unwrap(), Some(Entry::Theirs(Some(7))));
        assert_eq!(book.unsettled().await.unwrap(), [row(numbers[2], 3)]);
        assert!(book.begin(begun(2, "p")).await.unwrap() > numbers[3]);
    }

    #[tokio::test]
    async fn a_change_that_can_never_be_written_refuses_nobody_but_its_own_producer() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("posts.db");
        let book = Book::open(&file, counter()).unwrap();
        let begin = |key: u8, producer: &str| book.begin(begun(key, producer));
        let (kept, gone) = (begin(1, "p").await.unwrap(), begin(2, "q").await.unwrap());
        // As a damaged page refuses it.
        let damage = format!(
            "CREATE TRIGGER u BEFORE UPDATE ON post WHEN old.number = {kept} BEGIN SELECT RAISE(ABORT, 'damaged'); END;
             CREATE TRIGGER d BEFORE DELETE ON post WHEN old.number = {gone} BEGIN SELECT RAISE(ABORT, 'damaged'); END;"
        );
        let other = Connection::open(&file).unwrap();
        other.execute_batch(&damage).unwrap();
        book.kept(kept);
        book.forget(gone, "q".to_owned());
        assert!(begin(3, "p").await.is_ok());
        assert_eq!(book.find([1; 32]).await.unwrap(), Some(Entry::Kept(row(kept, 1))));
        assert_eq!(book.find([2; 32]).await.unwrap(), None);
        // Its next number would be taken for the one that is nowhere.
        assert!(matches!(begin(4, "q").await, Err(PostError::Book(why)) if why.contains("damaged")));
        assert_eq!(book.find([4; 32]).await.unwrap(), None);
        other.execute_batch("DROP TRIGGER u; DROP TRIGGER d").unwrap();
        assert!(begin(4, "q").await.is_ok());
        drop(book);
        let book = Book::open(&file, counter()).unwrap();
        assert_eq!(book.find([1; 32]).await.unwrap(), Some(Entry::Kept(row(kept, 1))));
        assert_eq!(book.find([2; 32]).await.unwrap(), None);
    }
}
