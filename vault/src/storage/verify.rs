//! Asked to look: every replica of one object read from end to end. What is found bad is set
//! aside and owed, so that the next turn heals it; a rotten record is written anew at once.

use futures_util::future::join_all;

use super::file_server::FileServerError;
use super::mending::Slots;
use super::object::{Entry, ReplicaState};
use super::{Storage, StorageError, now};

/// One replica, as re-reading it showed.
#[derive(Debug)]
pub struct Checked {
    /// Where it lies.
    pub server: String,
    /// Why it is not whole; nothing where it is.
    pub refused: Option<FileServerError>,
    /// What its two records are like, where it is whole.
    pub slots: Slots,
}

impl Storage {
    /// Reads every replica of a stored object and tells what is whole where. Costs each file
    /// server the whole object.
    ///
    /// # Errors
    /// The catalog's, after looking.
    pub async fn verify(&self, entry: &Entry) -> Result<Vec<Checked>, StorageError> {
        let inner = &self.0;
        let looks = inner.servers.iter().map(|server| inner.look_on(entry.id, Some(entry), server));
        let mut found = Vec::new();
        let known = entry.stored_on();
        for (server, answer) in inner.servers.iter().zip(join_all(looks).await) {
            let server = server.name().to_owned();
            let state = match &answer {
                Ok(_) => (!known.contains(&server)).then_some(ReplicaState::Stored),
                Err(error) => error.shows(),
            };
            if state == Some(ReplicaState::Damaged) {
                inner.metrics.damaged.with_label_values(&[&server]).inc();
            }
            if let Some(state) = state {
                inner.catalog.observed(entry.id, server.clone(), state, now()).await?;
            }
            found.push(match answer {
                Ok(seen) => Checked { server, refused: None, slots: seen.slots },
                Err(refused) => Checked { server, refused: Some(refused), slots: Slots::Whole },
            });
        }
        Ok(found)
    }
}
