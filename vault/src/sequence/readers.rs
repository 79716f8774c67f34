//! The connections that read the journal beside its writer: one for looks, which take a moment, and
//! one for walks over many rows, which wait for each other and are given up in the end. So whoever
//! looks up a number never waits for whoever lists them. Knows not what is read.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::ErrorCode;
use tokio::sync::Mutex as Turn;
use tokio::time::timeout;

use super::SequenceError;
use super::journal::{Journal, JournalError};

/// A walk waits so long for the one before it.
const TURN: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });
/// A walk takes no longer.
const WALK: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 10 });

/// See the module; cheap to clone.
#[derive(Clone)]
pub(super) struct Readers {
    looks: Arc<Mutex<Journal>>,
    walks: Arc<Turn<Journal>>,
}

impl Readers {
    /// Opens both.
    ///
    /// # Errors
    /// The file.
    pub(super) fn beside(journal: &Journal) -> Result<Self, JournalError> {
        let (looks, walks) = (journal.reader()?, journal.reader()?);
        Ok(Self { looks: Arc::new(Mutex::new(looks)), walks: Arc::new(Turn::new(walks)) })
    }

    /// Reads a few rows that an index leads to.
    ///
    /// # Errors
    /// [`SequenceError::Unreadable`].
    pub(super) async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Journal) -> Result<T, JournalError> + Send + 'static,
    ) -> Result<T, SequenceError> {
        let looks = Arc::clone(&self.looks);
        let looked = move || look(&looks.lock().unwrap_or_else(PoisonError::into_inner));
        told(tokio::task::spawn_blocking(looked).await.ok())
    }

    /// Reads as many rows as it takes.
    ///
    /// # Errors
    /// [`SequenceError::Unreadable`], [`SequenceError::TooLong`].
    pub(super) async fn walk<T: Send + 'static>(
        &self,
        walk: impl FnOnce(&Journal) -> Result<T, JournalError> + Send + 'static,
    ) -> Result<T, SequenceError> {
        let walks = Arc::clone(&self.walks);
        let journal = timeout(TURN, walks.lock_owned()).await.map_err(|_| SequenceError::TooLong)?;
        let interrupt = journal.interrupt();
        // Whoever asked may go; the walk has its end all the same.
        let guarded = tokio::spawn(async move {
            let mut walking = tokio::task::spawn_blocking(move || walk(&journal));
            match timeout(WALK, &mut walking).await {
                Ok(walked) => walked.ok(),
                Err(_) => {
                    interrupt.interrupt();
                    walking.await.ok()
                }
            }
        });
        told(guarded.await.ok().flatten())
    }
}

fn told<T>(read: Option<Result<T, JournalError>>) -> Result<T, SequenceError> {
    match read {
        Some(Ok(value)) => Ok(value),
        Some(Err(JournalError::Sql { source, .. }))
            if source.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) =>
        {
            tracing::warn!("sequence: reading: given up after {WALK:?}");
            Err(SequenceError::TooLong)
        }
        Some(Err(error)) => {
            tracing::error!("sequence: reading: {error}");
            Err(SequenceError::Unreadable)
        }
        None => Err(SequenceError::Unreadable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::book::SeriesName;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_look_does_not_wait_for_a_walk_and_a_walk_has_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(&folder.path().join("journal.db"), 5).unwrap();
        let readers = Readers::beside(&journal).unwrap();
        let walks = readers.clone();
        let started = tokio::time::Instant::now();
        let walk = tokio::spawn(async move { walks.walk(|journal| journal.walk_for_ever()).await });
        let name = SeriesName { owner: "erp".to_owned(), series: "INV".to_owned() };
        tokio::time::sleep(Duration::from_millis(50)).await;
        for _ in 0..20 {
            let name = name.clone();
            assert_eq!(readers.look(move |journal| journal.by_number(&name, 1)).await, Ok(None));
        }
        assert!(started.elapsed() < WALK && !walk.is_finished(), "looks wait for the walk");
        let late = readers.walk(|journal| journal.tail()).await;
        assert_eq!(late.err(), Some(SequenceError::TooLong), "it waits {TURN:?} for its turn");
        assert_eq!(walk.await.unwrap(), Err(SequenceError::TooLong));
        assert!(readers.walk(|journal| journal.tail()).await.is_ok(), "the connection serves on");
    }
}
