//! The operator says that a file server is a new place: wiped, replaced, or set up anew.
//! Nothing else ever makes a vault that knows objects on a place believe in another one.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::file_server::FileServerError;
use super::sessions::{Kind, Sessions};
use super::{Storage, StorageError, now};

/// A place that a file server's name stands for from now on, as one vault tells the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adoption {
    /// The file server's name.
    pub server: String,
    /// The place's id, as its marker tells.
    pub place: String,
}

/// What adopting a file server came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdoptedServer {
    /// Its name.
    pub server: String,
    /// The new place's id.
    #[serde(default)]
    pub place: String,
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
    /// It has found that very place and taken it for a new one, too, or had done so.
    Adopted,
    /// It has not, for this reason, which says what to do.
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
        let (inner, server) = (&self.0, self.server_named(name)?);
        let (expected, _) = inner.catalog.place(name.to_owned()).await?;
        match server.probe(move |server, _| server.attach(expected.as_deref(), false)).await {
            Ok(_) => return Err(StorageError::SamePlace { name: name.to_owned() }),
            Err(FileServerError::NotOurs { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let owed = inner.catalog.forget_place(name.to_owned(), None, now()).await?;
        inner.request_comparison().await?;
        inner.attach(server).await;
        let place = inner.catalog.place(name.to_owned()).await?.0;
        let unusable = |why| StorageError::NotAdopted { name: name.to_owned(), why };
        if let Some(why) = server.health().suspended {
            return Err(unusable(why));
        }
        let place = place.ok_or_else(|| unusable("the catalog did not keep its id".to_owned()))?;
        tracing::warn!(server = name, place, owed, "adopted as a new place; everything is owed there");
        Ok(AdoptedServer { server: name.to_owned(), place, owed, peer: PeerAdoption::NotAsked })
    }

    /// Follows the other vault in what its operator has adopted there, if exactly that place is found
    /// here. Claims nothing: what this vault reaches may be a folder where a mount is missing.
    ///
    /// # Errors
    /// No such file server, another place or none stands here, or it cannot be reached or used.
    pub async fn follow_adoption(&self, told: Adoption) -> Result<(), StorageError> {
        let Adoption { server: name, place } = told;
        let (inner, server) = (&self.0, self.server_named(&name)?);
        // Not a probe: it must not end the suspension of a place that nobody knows yet.
        let found = server.run_as(Kind::Probe, "marker", |server, _| server.marker()).await?;
        if found.as_ref() != Some(&place) {
            let found = found.map_or_else(|| "no marker".to_owned(), |found| format!("place {found}"));
            return Err(StorageError::OtherPlace { name, found, told: place });
        }
        if inner.catalog.place(name.clone()).await?.0.as_ref() == Some(&place) {
            return Ok(());
        }
        // Once the catalog knows the place, attaching never claims one.
        let owed = inner.catalog.forget_place(name.clone(), Some(place.clone()), now()).await?;
        inner.request_comparison().await?;
        inner.attach(server).await;
        if let Some(why) = server.health().suspended {
            return Err(StorageError::NotAdopted { name, why });
        }
        tracing::warn!(
            server = name,
            place,
            owed,
            "adopted as the other vault has; everything is owed there"
        );
        Ok(())
    }

    fn server_named(&self, name: &str) -> Result<&Arc<Sessions>, StorageError> {
        let servers = &self.0.servers;
        let unknown = || StorageError::NoSuchServer {
            name: name.to_owned(),
            known: servers.iter().map(|server| server.name()).collect::<Vec<_>>().join(", "),
        };
        servers.iter().find(|server| server.name() == name).ok_or_else(unknown)
    }
}
