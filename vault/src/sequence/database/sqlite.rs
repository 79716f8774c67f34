//! The ledger embedded: a journal, seen as what its copies are. Thin; the journal knows the SQL.

use std::path::Path;

use async_trait::async_trait;

use super::super::entry::{Entry, Tail};
use super::super::journal::{Journal, JournalError};
use super::super::protocol::{Nonce, Write};
use super::{DatabaseError, Host, Ledger, Place};

/// An open journal.
pub struct Sqlite {
    place: String,
    journal: Journal,
}

impl Sqlite {
    /// Opens or makes the journal; `fresh` becomes its identity if it is new.
    ///
    /// # Errors
    /// The file.
    pub fn open(file: &Path, fresh: Nonce) -> Result<Self, DatabaseError> {
        let place = file.display().to_string();
        let journal = Journal::open(file, fresh).map_err(|error| told(&place, &error))?;
        Ok(Self { place, journal })
    }

    fn read_tail(&self) -> Result<Tail, DatabaseError> {
        self.journal.tail().map_err(|error| told(&self.place, &error))
    }
}

#[async_trait]
impl Ledger for Sqlite {
    fn place(&self) -> &str {
        &self.place
    }

    async fn look(&mut self) -> Result<Host, DatabaseError> {
        Ok(Host {
            host: self.place.clone(),
            place: Place::Primary,
            why: None,
            lineage: None,
            lag_bytes: None,
            replication: Vec::new(),
            holds: Some(self.read_tail()?),
            fenced: false,
            leads: None,
        })
    }

    async fn prepare(&mut self) -> Result<Tail, DatabaseError> {
        self.read_tail()
    }

    async fn tail(&mut self) -> Result<Tail, DatabaseError> {
        self.read_tail()
    }

    async fn append(&mut self, after: Tail, entries: &[Entry]) -> Result<(), DatabaseError> {
        let moved = |found: Tail| DatabaseError::Moved { place: self.place.clone(), found: found.index };
        let found = self.read_tail()?;
        if found != after {
            return Err(moved(found));
        }
        let memory = self.journal.memory().map_err(|error| told(&self.place, &error))?;
        let write = Write { cut: None, entries: entries.to_vec(), rows: Vec::new(), memory };
        match self.journal.write(&write) {
            Ok(()) => Ok(()),
            // An index is given once: another writer was between.
            Err(error) => match self.read_tail()? {
                found if found != after => {
                    Err(DatabaseError::Moved { place: self.place.clone(), found: found.index })
                }
                _ => Err(told(&self.place, &error)),
            },
        }
    }

    async fn entries(&mut self, after: u64) -> Result<Vec<Entry>, DatabaseError> {
        self.journal.entries(after).map_err(|error| told(&self.place, &error))
    }
}

fn told(place: &str, error: &JournalError) -> DatabaseError {
    match error {
        JournalError::Damaged { index, .. } => {
            DatabaseError::Damaged { place: place.to_owned(), index: *index }
        }
        error => DatabaseError::Away { place: place.to_owned(), why: error.to_string() },
    }
}
