//! Which storage keys are in use: reads their file again when an operator changed it, agrees
//! with the other vault on the one that seals, and tells how many records are sealed to which.

use std::sync::{Arc, PoisonError};

use serde::{Deserialize, Serialize};

use super::ring::{Ring, Use};
use super::task::Progress;
use super::{Inner, Storage, StorageError, key};

/// The storage keys, for the operator.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Keys {
    /// Each, the newest first.
    pub keys: Vec<KeyStatus>,
    /// The escrow's recipient.
    pub escrow: String,
    /// Replicas whose record is sealed to other keys: removed ones, or a former escrow's.
    pub other_records: u64,
    /// Replicas whose record this vault has not looked at.
    pub unseen_records: u64,
    /// The last rewrapping since start.
    pub rewrap: Progress,
}

/// One storage key.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeyStatus {
    /// `age1…`
    pub recipient: String,
    /// What it is for.
    #[serde(rename = "use")]
    pub used: Use,
    /// RFC 3339, as its file says.
    pub created: Option<String>,
    /// Had the other vault this key when the two last met?
    pub at_peer: bool,
    /// Replicas whose record is sealed to it and the escrow.
    pub records: u64,
}

impl Storage {
    /// The other vault has these keys' identities: the newest that both have seals from now on.
    ///
    /// # Errors
    /// The catalog's.
    pub async fn agree_on_keys(&self, peers: &[String]) -> Result<(), StorageError> {
        let inner = &self.0;
        let mut shared = inner.ring().all();
        shared.retain(|own| peers.contains(own));
        shared.sort_unstable();
        // Without one in common nothing is better than what stands.
        if shared.is_empty() || shared == inner.catalog.shared_keys().await? {
            return Ok(());
        }
        inner.catalog.share_keys(shared.clone()).await?;
        inner.turn_ring(inner.ring().keys().map(|(key, _)| key.clone()).collect(), &shared);
        Ok(())
    }

    /// The keys and what is sealed to them.
    ///
    /// # Errors
    /// The catalog's.
    pub async fn keys(&self) -> Result<Keys, StorageError> {
        let ring = self.0.ring();
        let shared = self.0.catalog.shared_keys().await?;
        let seals = self.0.catalog.seals().await?;
        let count = |wanted: &str| seals.iter().filter(|(seal, _)| seal == wanted).map(|(_, n)| n).sum();
        let keys: Vec<_> = ring
            .keys()
            .map(|(key, used)| {
                let recipient = key.recipient().to_string();
                let at_peer = shared.contains(&recipient);
                let (created, records) = (key.created.clone(), count(&ring.seal_of(key)));
                KeyStatus { recipient, used, created, at_peer, records }
            })
            .collect();
        let unseen_records: u64 = count("");
        let named: u64 = keys.iter().map(|key| key.records).sum();
        let all: u64 = seals.iter().map(|(_, count)| count).sum();
        Ok(Keys {
            keys,
            escrow: ring.escrow().to_string(),
            other_records: all - named - unseen_records,
            unseen_records,
            rewrap: self.0.rewrap.progress(),
        })
    }
}

impl Inner {
    /// The keys in use.
    pub(super) fn ring(&self) -> Arc<Ring> {
        Arc::clone(&self.ring.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the key file again; a bad one changes nothing.
    pub(super) async fn reload_keys(&self) -> Result<(), StorageError> {
        let file = self.settings.key_file.clone();
        let read = tokio::task::spawn_blocking(move || key::load(&file)).await;
        let keys = match read.map_err(|_| StorageError::Stopping)? {
            Ok(keys) => keys,
            Err(error) => {
                tracing::warn!("storage: {error}; the keys read before stay in use");
                return Ok(());
            }
        };
        let told: Vec<_> = keys.iter().map(|key| key.recipient().to_string()).collect();
        if told != self.ring().all() {
            tracing::info!(keys = told.len(), "storage: the key file has changed");
            self.turn_ring(keys, &self.catalog.shared_keys().await?);
        }
        Ok(())
    }

    fn turn_ring(&self, keys: Vec<key::Key>, shared: &[String]) {
        let before = self.ring();
        let Some(ring) = Ring::new(keys, shared, before.escrow().clone()) else { return };
        if ring.seal() != before.seal() {
            let active = &ring.recipients()[0];
            tracing::info!("storage: records are sealed to {active} from now on; both vaults have it");
            // An earlier key may leave the file one day, and what only it opens is lost then.
            self.reseal().extend(self.servers.iter().map(|server| server.name().to_owned()));
        }
        *self.ring.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(ring);
    }
}
