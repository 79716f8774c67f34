//! Why the room of numbers cannot start; each says what the operator does.

use std::path::Path;

use super::database::DatabaseError;
use super::database::note::Kept;
use super::database::operator::OpenError;
use super::database::{Role, Settings};
use super::journal::JournalError;
use super::witness::WitnessError;

/// Why the room cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// What is remembered of it.
    #[error(transparent)]
    Witness(#[from] WitnessError),
    /// The database of the ledger's copy.
    #[error("sequence.database: {0}")]
    Database(#[from] DatabaseError),
    /// What is remembered of it.
    #[error(transparent)]
    Copy(#[from] OpenError),
    /// etcd has become the ledger.
    #[error(
        "sequence.database: this vault's ledger is etcd itself, and its journal only an index of it: write kind = \"etcd\" and role = \"truth\" again"
    )]
    Truth,
    /// The system gives no random numbers.
    #[error("no randomness for this life's name: {0}")]
    Random(#[from] getrandom::Error),
    /// A metric's name is taken.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// No thread.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// Would the room start with this database, or with none, for what the journal is? Changes nothing.
///
/// # Errors
/// etcd has become the ledger, and is not named.
pub fn fits(journal: &Path, database: Option<&Settings>) -> Result<(), StartError> {
    let is_truth = database.is_some_and(|database| database.role == Role::Truth);
    if !is_truth && Kept::open(journal).map_err(OpenError::from)?.note().truth {
        return Err(StartError::Truth);
    }
    Ok(())
}
