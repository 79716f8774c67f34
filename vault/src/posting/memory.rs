//! How far back a book of keys is whole: since which of this vault's lives nothing of it was lost. Knows
//! lives, and the witness, a small file beside the book; no keys.
//!
//! The witness names the life that wrote last and how far the rows went. It is never ahead of the book,
//! so a book that does not know that life, or does not go so far, was lost or put back from a copy: its
//! memory begins anew. The witness is not synced but at a start: where a power failure takes its last
//! words, it only sees less.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension as _};

/// A vault's life, as tickets name it.
pub(super) type Life = u128;

/// No more lives are remembered.
const MOST: u64 = 100_000;

/// What the witness saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    life: Life,
    number: u64,
}

/// Writes the witness of one life.
#[derive(Debug)]
pub(super) struct Witness {
    file: File,
    seen: Seen,
    is_in_trouble: bool,
}

/// Where the witness of that book lies.
#[must_use]
pub(super) fn witness_of(book: &Path) -> PathBuf {
    book.with_extension("witness")
}

/// A life begins on the book's day `day`: gives all that the book remembers, this one too, and the
/// witness of it. Lives that ended `days` before are forgotten.
///
/// # Errors
/// The book's or the witness's, in words.
pub(super) fn begin(
    connection: &Connection,
    book: &Path,
    life: Life,
    (day, days): (u64, u64),
) -> Result<(HashSet<Life>, Witness), String> {
    let file = witness_of(book);
    let told = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
    let seen = read(&file).map_err(|error| told(&error))?;
    let (lives, number) = remember(connection, life, seen, (day, days)).map_err(|error| error.to_string())?;
    let witness = Witness::create(&file, Seen { life, number }).map_err(|error| told(&error))?;
    Ok((lives, witness))
}

fn remember(
    connection: &Connection,
    life: Life,
    seen: Option<Option<Seen>>,
    (day, days): (u64, u64),
) -> rusqlite::Result<(HashSet<Life>, u64)> {
    let transaction = connection.unchecked_transaction()?;
    let sql = "SELECT seq FROM sqlite_sequence WHERE name = 'post'";
    let number: u64 = transaction.query_row(sql, [], |row| row.get(0)).optional()?.unwrap_or(0);
    let known = lives(&transaction)?;
    let is_whole = match seen {
        None => known.is_empty(),
        Some(seen) => seen.is_some_and(|seen| known.contains(&seen.life) && seen.number <= number),
    };
    if !is_whole {
        tracing::warn!(
            "messages: their keys (posts.db) were lost or put back from a copy: keys that were first sent before \
             now are refused (410 key_lost) where nothing is known of them"
        );
        transaction.execute("DELETE FROM post_life", [])?;
    }
    transaction
        .execute("INSERT OR REPLACE INTO post_life (life, day) VALUES (?1, ?2)", (life.to_be_bytes(), day))?;
    // The last one that began so long ago may have ended since.
    let old = "DELETE FROM post_life WHERE number < (SELECT max(number) FROM post_life WHERE day < ?1)";
    transaction.execute(old, [day.saturating_sub(days)])?;
    let many = "DELETE FROM post_life WHERE number <= (SELECT max(number) FROM post_life) - ?1";
    transaction.execute(many, [MOST])?;
    let known = lives(&transaction)?;
    transaction.commit()?;
    Ok((known, number))
}

fn lives(connection: &Connection) -> rusqlite::Result<HashSet<Life>> {
    let mut statement = connection.prepare("SELECT life FROM post_life")?;
    let lives = statement.query_map([], |row| row.get(0).map(Life::from_be_bytes))?;
    lives.collect()
}

/// What the witness says; nothing inside where it says nothing that can be read.
fn read(file: &Path) -> io::Result<Option<Option<Seen>>> {
    match std::fs::read(file) {
        Ok(text) => Ok(Some(Seen::read(&text))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl Seen {
    /// Always as long, so that it is written in place.
    fn text(self) -> String {
        format!("{:032x} {:020}\n", self.life, self.number)
    }

    fn read(text: &[u8]) -> Option<Self> {
        let (life, number) = std::str::from_utf8(text).ok()?.strip_suffix('\n')?.split_once(' ')?;
        let seen = Self { life: Life::from_str_radix(life, 16).ok()?, number: number.parse().ok()? };
        (seen.text().as_bytes() == text).then_some(seen)
    }
}

impl Witness {
    fn create(file: &Path, seen: Seen) -> io::Result<Self> {
        let opened = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(file)?;
        let text = seen.text();
        opened.write_all_at(text.as_bytes(), 0)?;
        opened.set_len(text.len() as u64)?;
        opened.sync_all()?;
        if let Some(folder) = file.parent() {
            File::open(folder)?.sync_all()?;
        }
        Ok(Self { file: opened, seen, is_in_trouble: false })
    }

    /// The book's rows go so far now, durably.
    pub(super) fn saw(&mut self, number: u64) {
        if number <= self.seen.number {
            return;
        }
        self.seen.number = number;
        let written = self.file.write_all_at(self.seen.text().as_bytes(), 0);
        match &written {
            Err(error) if !self.is_in_trouble => tracing::error!(
                "messages: posts.witness cannot be written: {error}; a book of keys that is put back from a copy may \
                 not be noticed"
            ),
            _ => {}
        }
        self.is_in_trouble = written.is_err();
    }
}

/// Has a book and its witness say that it remembers these lives, in their order.
#[cfg(test)]
pub(super) fn pretend(book: &Path, lives: &[Life]) {
    let connection = super::book::migrated(book);
    for life in lives {
        let sql = "INSERT OR REPLACE INTO post_life (life, day) VALUES (?1, 0)";
        connection.execute(sql, [life.to_be_bytes()]).unwrap();
    }
    let seen = Seen { life: *lives.last().unwrap(), number: 0 };
    Witness::create(&witness_of(book), seen).unwrap();
}

#[cfg(test)]
mod tests {
    use super::super::book::migrated;
    use super::*;

    fn begun(book: &Path, life: Life) -> (HashSet<Life>, Witness) {
        begin(&migrated(book), book, life, (0, 31)).unwrap()
    }

    #[test]
    fn a_book_is_whole_over_restarts_and_begins_anew_where_it_or_its_witness_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let book = folder.path().join("posts.db");
        begun(&book, 1);
        assert_eq!(begun(&book, 2).0, HashSet::from([1, 2]));
        std::fs::remove_file(witness_of(&book)).unwrap();
        assert_eq!(begun(&book, 3).0, HashSet::from([3]));
        std::fs::remove_file(&book).unwrap();
        assert_eq!(begun(&book, 4).0, HashSet::from([4]));
        std::fs::write(witness_of(&book), "something else").unwrap();
        assert_eq!(begun(&book, 5).0, HashSet::from([5]));
        assert_eq!(begun(&book, 6).0, HashSet::from([5, 6]));
    }

    #[test]
    fn a_book_of_an_earlier_life_or_of_earlier_in_the_same_life_is_not_whole() {
        let folder = tempfile::tempdir().unwrap();
        let (book, copy) = (folder.path().join("posts.db"), folder.path().join("copy.db"));
        let (_, mut witness) = begun(&book, 1);
        std::fs::copy(&book, &copy).unwrap();
        witness.saw(1);
        std::fs::copy(&copy, &book).unwrap();
        assert_eq!(begun(&book, 2).0, HashSet::from([2]), "it does not go so far");
        std::fs::copy(&copy, &book).unwrap();
        assert_eq!(begun(&book, 3).0, HashSet::from([3]), "it does not know that life");
    }

    #[test]
    fn a_start_that_ended_before_its_witness_was_written_loses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let book = folder.path().join("posts.db");
        begun(&book, 1);
        let before = std::fs::read(witness_of(&book)).unwrap();
        begun(&book, 2);
        std::fs::write(witness_of(&book), before).unwrap();
        assert_eq!(begun(&book, 3).0, HashSet::from([1, 2, 3]));
    }

    #[test]
    fn lives_are_forgotten_by_the_books_days_but_for_the_last_before_them() {
        let folder = tempfile::tempdir().unwrap();
        let book = folder.path().join("posts.db");
        let connection = migrated(&book);
        for (life, day) in [(1, 0), (2, 5), (3, 36), (4, 37)] {
            begin(&connection, &book, life, (day, 31)).unwrap();
        }
        assert_eq!(lives(&connection).unwrap(), HashSet::from([2, 3, 4]));
    }
}
