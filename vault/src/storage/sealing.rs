//! Which storage keys are in use: reads their file again when an operator changed it, and tells how
//! many records are sealed to which. What the other vault has is `agreement`'s.

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
    /// Has the other vault the same? Unknown before it was asked.
    #[serde(default)]
    pub escrow_at_peer: Option<bool>,
    /// What an operator has to mend about the two vaults' keys.
    #[serde(default)]
    pub trouble: Option<String>,
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
    /// Reads the key file again; a bad one changes nothing.
    ///
    /// # Errors
    /// The catalog's.
    pub async fn read_keys(&self) -> Result<(), StorageError> {
        self.0.reload_keys().await
    }

    /// The keys and what is sealed to them.
    ///
    /// # Errors
    /// The catalog's.
    pub async fn keys(&self) -> Result<Keys, StorageError> {
        let ring = self.0.ring();
        let heard = self.0.agreement.heard();
        let at_peer = match &heard {
            Some(peer) => peer.recipients.clone(),
            None => self.0.catalog.shared_keys().await?,
        };
        let seals = self.0.catalog.seals().await?;
        let count = |wanted: &str| seals.iter().filter(|(seal, _)| seal == wanted).map(|(_, n)| n).sum();
        let keys: Vec<_> = ring
            .keys()
            .map(|(key, used)| {
                let recipient = key.recipient().to_string();
                let at_peer = at_peer.contains(&recipient);
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
            escrow_at_peer: heard
                .and_then(|peer| peer.escrow)
                .map(|theirs| theirs == ring.escrow().to_string()),
            trouble: self.key_trouble(),
            other_records: all.saturating_sub(named + unseen_records),
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

    /// Why nothing can be sealed.
    pub(super) fn no_key(&self) -> StorageError {
        StorageError::NoKey { why: self.key_trouble().unwrap_or_else(|| "no key is in use".to_owned()) }
    }

    /// Reads the key file again; a bad one changes nothing.
    pub(super) async fn reload_keys(&self) -> Result<(), StorageError> {
        let _turning = self.agreement.turning.lock().await;
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

    /// Puts these keys of the file into use. Call it with `agreement.turning` held.
    pub(super) fn turn_ring(&self, keys: Vec<key::Key>, shared: &[String]) {
        let before = self.ring();
        let (kept, escrow) = (before.active().cloned(), before.escrow().clone());
        let Some(mut ring) = Ring::new(keys, shared, kept, escrow) else { return };
        if self.is_apart(&ring.all(), shared) {
            ring = ring.resting();
        }
        let sealed_to = |ring: &Ring| ring.active().map(|key| key.recipient().to_string());
        let (was, is) = (sealed_to(&before), sealed_to(&ring));
        // What is wrong with it is told by whoever compares the two vaults' keys.
        if let Some(active) = is.filter(|is| was.as_ref() != Some(is)) {
            let known = if shared.contains(&active) { "; both vaults have it" } else { "" };
            tracing::info!("storage: records are sealed to {active} from now on{known}");
            // An earlier key may leave the file one day, and what only it opens is lost then.
            self.reseal().extend(self.servers.iter().map(|server| server.name().to_owned()));
        }
        *self.ring.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(ring);
    }
}
