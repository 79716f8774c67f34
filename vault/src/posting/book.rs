//! Under which keys messages were posted, in a small SQLite file with one thread that writes it. Knows
//! rows; neither queues nor the other vault.
//!
//! Many share one commit. That a message is kept is written with the next commit of others, or after
//! a tenth of a second: a crash before it is found out by asking the queue.

use std::collections::HashMap;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension as _, Transaction, params};
use tokio::sync::oneshot;

use super::PostError;
use crate::sqlite;

/// Keys that are remembered; the oldest is forgotten for the next. No clock forgets one.
const MOST: u64 = 2_000_000;
/// Most changes of one commit, so that nobody waits for an endless one.
const BATCH: usize = 256;
/// So many changes that cannot be written are kept for later; with more nothing new begins.
const MOST_OWED: usize = 4096;
/// So long may wait what nobody waits for.
const COMPANY: Duration = Duration::from_millis(100);

const MIGRATIONS: &[&str] = &["
    CREATE TABLE post (
        -- Counts them, and is the message's number of its producer.
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        -- SHA-256 of owner and key.
        key BLOB NOT NULL UNIQUE,
        -- 0: being put into its queue. 1: kept. 2: the other vault's.
        state INTEGER NOT NULL,
        -- SHA-256 of the message.
        print BLOB NOT NULL,
        producer TEXT NOT NULL
    ) STRICT;
    CREATE INDEX post_begun ON post (number) WHERE state = 0;
"];

const BEGUN: i64 = 0;
const KEPT: i64 = 1;
const THEIRS: i64 = 2;

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

/// What is known of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    /// It was begun, and nobody has written how it ended.
    Begun(Row),
    /// Its message is in a queue, or was.
    Kept(Row),
    /// The other vault was told to go on with it.
    Theirs,
}

type Reply<T> = oneshot::Sender<Result<T, PostError>>;

/// What is asked of the thread.
enum Ask {
    Find(Hash, Reply<Option<Entry>>),
    Unsettled(Reply<Vec<Row>>),
    Write(Write, Reply<u64>),
    /// Nobody waits for it.
    Later(Write),
}

enum Write {
    Begin { key: Hash, print: Hash, producer: String },
    Theirs(Hash),
    Kept(u64),
    Forget { number: u64, producer: String },
}

/// The keys. The thread ends with it.
#[derive(Debug)]
pub(super) struct Book(Sender<Ask>);

impl Book {
    /// Opens or creates the file and starts the thread.
    ///
    /// # Errors
    /// [`PostError::File`], [`PostError::Thread`].
    pub(super) fn open(file: &Path) -> Result<Self, PostError> {
        let connection = sqlite::open(file, MIGRATIONS)?;
        let count = connection
            .query_row("SELECT count(*) FROM post", [], |row| row.get(0))
            .map_err(|error| unwritten(&error))?;
        let waiting = Waiting { count, ..Waiting::default() };
        let (sender, inbox) = channel();
        std::thread::Builder::new()
            .name("posts".to_owned())
            .spawn(move || run(&connection, waiting, &inbox))
            .map_err(PostError::Thread)?;
        Ok(Self(sender))
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
    pub(super) async fn begin(&self, key: Hash, print: Hash, producer: String) -> Result<u64, PostError> {
        self.ask(|reply| Ask::Write(Write::Begin { key, print, producer }, reply)).await
    }

    /// Writes down that the other vault goes on with a key.
    ///
    /// # Errors
    /// As [`Book::begin`].
    pub(super) async fn theirs(&self, key: Hash) -> Result<(), PostError> {
        self.ask(|reply| Ask::Write(Write::Theirs(key), reply)).await.map(drop)
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
#[derive(Default)]
struct Waiting {
    writes: Vec<(Write, Reply<u64>)>,
    later: Vec<Write>,
    /// Rows in the file.
    count: u64,
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
        match commit(connection, &mut self.later, &writes, self.count, MOST) {
            Ok(committed) => {
                self.count = committed.count;
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

/// What came of a commit.
struct Committed {
    /// Of each write, its row's number, or why it could not be written.
    written: Vec<Result<u64, String>>,
    /// Rows that are left.
    count: u64,
    /// Why something was not written.
    trouble: Option<String>,
}

/// Does it all, with `count` rows there before. A change that fails fails alone: of `later` it stays,
/// and its producer begins nothing.
fn commit(
    connection: &Connection,
    later: &mut Vec<Write>,
    writes: &[Write],
    mut count: u64,
    most: u64,
) -> rusqlite::Result<Committed> {
    let mut transaction = connection.unchecked_transaction()?;
    let mut owed = Vec::new();
    for write in later.iter() {
        owed.push(alone(&mut transaction, write, &mut count)?.err());
    }
    let forgets = later.iter().zip(&owed).filter_map(|(write, why)| match (write, why) {
        (Write::Forget { producer, .. }, Some(why)) => Some((producer.as_str(), why)),
        _ => None,
    });
    let barred: HashMap<&str, &String> = forgets.collect();
    let mut written = Vec::with_capacity(writes.len());
    for write in writes {
        let why =
            if let Write::Begin { producer, .. } = write { barred.get(producer.as_str()) } else { None };
        written.push(match why {
            Some(why) => Err((*why).clone()),
            None => alone(&mut transaction, write, &mut count)?,
        });
    }
    if count > most {
        let sql = "DELETE FROM post WHERE number IN (SELECT number FROM post ORDER BY number LIMIT ?1)";
        count -= transaction.prepare_cached(sql)?.execute([count - most])? as u64;
    }
    transaction.commit()?;
    let trouble = owed.iter().flatten().chain(written.iter().filter_map(|done| done.as_ref().err()));
    let trouble = trouble.min().cloned();
    let mut owed = owed.into_iter();
    later.retain(|_| owed.next().flatten().is_some());
    Ok(Committed { written, count, trouble })
}

/// A change that is undone by itself where it fails.
///
/// # Errors
/// The whole transaction has failed.
fn alone(
    transaction: &mut Transaction<'_>,
    write: &Write,
    count: &mut u64,
) -> rusqlite::Result<Result<u64, String>> {
    let savepoint = transaction.savepoint()?;
    let mut counted = *count;
    match change(&savepoint, write, &mut counted) {
        Ok(number) => {
            savepoint.commit()?;
            *count = counted;
            Ok(Ok(number))
        }
        // As a full disk does: <https://www.sqlite.org/lang_transaction.html>, "Response To Errors".
        Err(error) if savepoint.is_autocommit() => Err(error),
        Err(error) => {
            savepoint.finish()?;
            Ok(Err(error.to_string()))
        }
    }
}

/// Gives the number of a row that is new, and counts the rows.
fn change(connection: &Connection, write: &Write, count: &mut u64) -> rusqlite::Result<u64> {
    let delete = "DELETE FROM post WHERE key = ?1";
    let insert = "INSERT INTO post (key, state, print, producer) VALUES (?1, ?2, ?3, ?4)";
    match write {
        Write::Begin { key, print, producer } => {
            *count -= connection.prepare_cached(delete)?.execute([key])? as u64;
            connection.prepare_cached(insert)?.execute(params![key, BEGUN, print, producer])?;
            *count += 1;
        }
        Write::Theirs(key) => {
            *count -= connection.prepare_cached(delete)?.execute([key])? as u64;
            connection.prepare_cached(insert)?.execute(params![key, THEIRS, Hash::default(), ""])?;
            *count += 1;
        }
        Write::Kept(number) => {
            let sql = "UPDATE post SET state = ?2 WHERE number = ?1";
            connection.prepare_cached(sql)?.execute(params![number, KEPT])?;
        }
        Write::Forget { number, .. } => {
            let sql = "DELETE FROM post WHERE number = ?1";
            *count -= connection.prepare_cached(sql)?.execute([number])? as u64;
        }
    }
    Ok(u64::try_from(connection.last_insert_rowid()).unwrap_or_default())
}

fn find(connection: &Connection, key: &Hash) -> rusqlite::Result<Option<Entry>> {
    let sql = "SELECT number, producer, print, state FROM post WHERE key = ?1";
    let entry = |row: &rusqlite::Row<'_>| {
        let (read, state) = (read(row)?, row.get::<_, i64>(3)?);
        Ok(match state {
            BEGUN => Entry::Begun(read),
            KEPT => Entry::Kept(read),
            _ => Entry::Theirs,
        })
    };
    connection.prepare_cached(sql)?.query_row([key], entry).optional()
}

fn unsettled(connection: &Connection) -> rusqlite::Result<Vec<Row>> {
    let sql = "SELECT number, producer, print FROM post WHERE state = 0 ORDER BY number";
    connection.prepare_cached(sql)?.query_map([], read)?.collect()
}

fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    Ok(Row { number: row.get(0)?, producer: row.get(1)?, print: row.get(2)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(number: u64, print: u8) -> Row {
        Row { number, producer: "p".to_owned(), print: [print; 32] }
    }

    #[tokio::test]
    async fn a_key_is_known_over_a_restart_as_far_as_it_came() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("posts.db");
        let book = Book::open(&file).unwrap();
        let mut numbers = Vec::new();
        for key in 1..=4 {
            numbers.push(book.begin([key; 32], [key; 32], "p".to_owned()).await.unwrap());
        }
        assert!(numbers.is_sorted_by(|one, other| one < other), "{numbers:?}");
        book.kept(numbers[0]);
        book.forget(numbers[1], "p".to_owned());
        book.theirs([4; 32]).await.unwrap();
        drop(book);
        let book = Book::open(&file).unwrap();
        assert_eq!(book.find([1; 32]).await.unwrap(), Some(Entry::Kept(row(numbers[0], 1))));
        assert_eq!(book.find([2; 32]).await.unwrap(), None);
        assert_eq!(book.find([3; 32]).await.unwrap(), Some(Entry::Begun(row(numbers[2], 3))));
        assert_eq!(book.find([4; 32]).await.unwrap(), Some(Entry::Theirs));
        assert_eq!(book.unsettled().await.unwrap(), [row(numbers[2], 3)]);
        assert!(book.begin([2; 32], [2; 32], "p".to_owned()).await.unwrap() > numbers[3]);
    }

    #[tokio::test]
    async fn a_change_that_can_never_be_written_refuses_nobody_but_its_own_producer() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("posts.db");
        let book = Book::open(&file).unwrap();
        let begin = |key: u8, producer: &str| book.begin([key; 32], [key; 32], producer.to_owned());
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
        let book = Book::open(&file).unwrap();
        assert_eq!(book.find([1; 32]).await.unwrap(), Some(Entry::Kept(row(kept, 1))));
        assert_eq!(book.find([2; 32]).await.unwrap(), None);
    }

    #[test]
    fn the_oldest_key_is_forgotten_and_what_was_refused_counts_for_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let connection = sqlite::open(&folder.path().join("posts.db"), MIGRATIONS).unwrap();
        let begin = |key: u8| Write::Begin { key: [key; 32], print: [key; 32], producer: "p".to_owned() };
        let mut count = 0;
        let mut write = |writes: &[Write]| {
            let committed = commit(&connection, &mut Vec::new(), writes, count, 3).unwrap();
            count = committed.count;
            (committed.written.last().unwrap().clone().unwrap(), count)
        };
        write(&[begin(1), begin(2), Write::Theirs([3; 32])]);
        for _ in 0..5 {
            let (number, left) = write(&[begin(3)]);
            assert_eq!(left, 3, "the same key again");
            assert_eq!(write(&[Write::Forget { number, producer: "p".to_owned() }]).1, 2);
        }
        assert!(find(&connection, &[1; 32]).unwrap().is_some());
        assert_eq!(write(&[begin(4), begin(5)]).1, 3);
        let known: Vec<bool> = (1..=5).map(|key| find(&connection, &[key; 32]).unwrap().is_some()).collect();
        assert_eq!(known, [false, true, false, true, true]);
    }
}
