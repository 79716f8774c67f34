//! The operator says that a file server is a new place: wiped, replaced, or set up anew.
//! Nothing else ever makes a vault that knows objects on a place believe in another one.

use serde::{Deserialize, Serialize};

use super::file_server::FileServerError;
use super::{Storage, StorageError, now};

/// What adopting a file server came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdoptedServer {
    /// Its name.
    pub server: String,
    /// Replicas owed there from now on.
    pub owed: u64,
    /// What the other vault did when it was told.
    #[serde(default)]
    pub peer: PeerAdoption,
}

/// What the other vault said to an adoption.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerAdoption {
    /// It was not asked.
    #[default]
    NotAsked,
    /// It took the place for a new one, too, or had done so.
    Adopted,
    /// It has not, for this reason; the operator says it there.
    Not(String),
}

impl Storage {
    /// Accepts what stands at a file server's address as its new place. Everything is owed there;
    /// what lies there already is found by the comparison that follows. Each vault of the pair is
    /// told on its own.
    ///
    /// # Errors
    /// No such file server, it is the place it always was, or it cannot be reached or used.
    pub async fn adopt_server(&self, name: &str) -> Result<AdoptedServer, StorageError> {
        let inner = &self.0;
        let unknown = || StorageError::NoSuchServer {
            name: name.to_owned(),
            known: inner.servers.iter().map(|server| server.name()).collect::<Vec<_>>().join(", "),
        };
        let server = inner.servers.iter().find(|server| server.name() == name).ok_or_else(unknown)?;
        let (expected, _) = inner.catalog.place(name.to_owned()).await?;
        match server.probe(move |server, _| server.attach(expected.as_deref(), false)).await {
            Ok(_) => return Err(StorageError::SamePlace { name: name.to_owned() }),
            Err(FileServerError::NotOurs { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let owed = inner.catalog.forget_place(name.to_owned(), now()).await?;
        inner.request_comparison().await?;
        inner.attach(server).await;
        if let Some(why) = server.health().suspended {
            return Err(StorageError::NotAdopted { name: name.to_owned(), why });
        }
        tracing::warn!(server = name, owed, "adopted as a new place; everything is owed there");
        Ok(AdoptedServer { server: name.to_owned(), owed, peer: PeerAdoption::NotAsked })
    }
}
