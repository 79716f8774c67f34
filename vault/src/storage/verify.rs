//! Asked to look: every replica of one object read from end to end, and what is owed of it or
//! of all objects. What is found bad is set aside and owed, so that the next turn heals it.

use futures_util::future::join_all;

use super::file_server::FileServerError;
use super::object::{Entry, ReplicaState};
use super::repair::{Condition, Debt};
use super::{Storage, StorageError, now};

/// One replica, as re-reading it showed.
#[derive(Debug)]
pub struct Checked {
    /// Where it lies.
    pub server: String,
    /// Why it is not whole; nothing where it is.
    pub refused: Option<FileServerError>,
}

impl Storage {
    /// Reads every replica of a stored object and tells what is whole where. Costs each file
    /// server the whole object.
    ///
    /// # Errors
    /// The catalog's, after looking.
    pub async fn verify(&self, entry: &Entry) -> Result<Vec<Checked>, StorageError> {
        let inner = &self.0;
        let looks = inner.servers.iter().map(|server| inner.look_on(entry.id, server));
        let mut found = Vec::new();
        let known = entry.stored_on();
        for (server, answer) in inner.servers.iter().zip(join_all(looks).await) {
            let server = server.name().to_owned();
            let state = match &answer {
                Ok(_) => (!known.contains(&server)).then_some(ReplicaState::Stored),
                Err(FileServerError::Absent { .. }) => Some(ReplicaState::Owed),
                Err(FileServerError::Damaged { .. }) => {
                    inner.metrics.damaged.with_label_values(&[&server]).inc();
                    Some(ReplicaState::Damaged)
                }
                Err(_) => None,
            };
            if let Some(state) = state {
                inner.catalog.observed(entry.id, server.clone(), state, now()).await?;
            }
            found.push(Checked { server, refused: answer.err() });
        }
        Ok(found)
    }

    /// What is owed to file servers, whether they answer at present or not: what failed least
    /// first, then the oldest; at most `limit`.
    ///
    /// # Errors
    /// The catalog's.
    pub async fn owed(&self, limit: usize) -> Result<Vec<Debt>, StorageError> {
        let up = |name: &str| Condition { server: name.to_owned(), up: true, full: false };
        let all = self.0.servers.iter().map(|server| up(server.name())).collect();
        // Every debt is due in turn 0.
        Ok(self.0.catalog.debts(all, 0, limit).await?)
    }
}
