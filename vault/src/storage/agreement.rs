//! What the two vaults know of each other's keys: hears what the other one has, remembers which
//! keys both have, and says what an operator has to mend. Knows neither the link nor how a key is
//! used; it is handed who asks.

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use futures_util::future::BoxFuture;
use serde::Deserialize;

use super::{Inner, Storage, StorageError};

/// The keys of the other vault, in its own words.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct PeerKeys {
    /// The recipients of its key file, the newest first.
    pub recipients: Vec<String>,
    /// Its escrow's recipient; earlier programs do not tell.
    #[serde(default, rename = "escrow_recipient")]
    pub escrow: Option<String>,
}

/// Asks the other vault, within a short deadline; `None` while it is away.
pub type AskPeerKeys = Arc<dyn Fn() -> BoxFuture<'static, Option<PeerKeys>> + Send + Sync>;

/// See the module.
#[derive(Default)]
pub(super) struct Agreement {
    /// Held while the keys in use change: what is read and what is heard come in one order.
    pub(super) turning: tokio::sync::Mutex<()>,
    ask: RwLock<Option<AskPeerKeys>>,
    /// Its last answer since start.
    heard: Mutex<Option<PeerKeys>>,
}

impl Agreement {
    /// The other vault's last answer since start.
    pub(super) fn heard(&self) -> Option<PeerKeys> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Storage {
    /// Who asks the other vault for its keys; without one, it is away.
    pub fn set_peer_keys(&self, ask: AskPeerKeys) {
        *self.0.agreement.ask.write().unwrap_or_else(PoisonError::into_inner) = Some(ask);
    }

    /// Reads the key file again and compares it with what the other vault has: the newest key that
    /// both have seals from now on.
    ///
    /// # Errors
    /// The catalog's.
    pub async fn compare_keys(&self) -> Result<(), StorageError> {
        let inner = &self.0;
        inner.reload_keys().await?;
        let ask = inner.agreement.ask.read().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(ask) = ask else { return Ok(()) };
        let Some(peer) = ask().await else { return Ok(()) };
        self.hear_keys(peer).await
    }

    /// The other vault has these keys' identities: the newest that both have seals from now on.
    ///
    /// # Errors
    /// The catalog's.
    pub async fn hear_keys(&self, peer: PeerKeys) -> Result<(), StorageError> {
        let inner = &self.0;
        let _turning = inner.agreement.turning.lock().await;
        let keys = inner.ring().filed().to_vec();
        let mut both: Vec<_> = keys.iter().map(|key| key.recipient().to_string()).collect();
        both.retain(|own| peer.recipients.contains(own));
        both.sort_unstable();
        *inner.agreement.heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(peer);
        let mut shared = inner.catalog.shared_keys().await?;
        // Without one in common nothing is better than what stands.
        if !both.is_empty() && both != shared {
            inner.catalog.share_keys(both.clone()).await?;
            shared = both;
        }
        inner.turn_ring(keys, &shared);
        Ok(())
    }

    /// What an operator has to mend about the two vaults' keys; `None` if nothing is known to be
    /// wrong.
    #[must_use]
    pub fn key_trouble(&self) -> Option<String> {
        self.0.key_trouble()
    }

    /// Have the two vaults' keys been compared since start?
    #[must_use]
    pub fn keys_compared(&self) -> bool {
        self.0.agreement.heard().is_some()
    }
}

impl Inner {
    pub(super) fn key_trouble(&self) -> Option<String> {
        let (ring, peer, heard) = (self.ring(), &self.settings.peer, self.agreement.heard());
        let mut what = Vec::new();
        match ring.active() {
            None => what.push(format!(
                "storage.key_file holds no key that both vaults are known to have, so uploads are refused: put \
                 the former key back, or copy the file of {peer}"
            )),
            Some(key) if ring.is_kept() => what.push(format!(
                "storage.key_file holds no key that both vaults are known to have; {} seals on, which is no longer \
                 in it, until this vault is started again: put it back, or copy the file of {peer}",
                key.recipient()
            )),
            Some(_) => {}
        }
        if let Some(heard) = heard {
            what.extend(difference(&ring.all(), &heard.recipients, peer));
            let own = ring.escrow().to_string();
            what.extend(heard.escrow.filter(|theirs| *theirs != own).map(|theirs| {
                format!(
                    "storage.escrow_recipient differs: {own} is here and {theirs} at {peer}; write the right one \
                     into both, start the one that is changed, then vault keys rewrap"
                )
            }));
        }
        (!what.is_empty()).then(|| what.join("; "))
    }

    /// Is nothing sealed at present because the other vault has shown that it has none of our keys,
    /// and there never was one that both had?
    pub(super) fn is_apart(&self, own: &[String], shared: &[String]) -> bool {
        let heard = self.agreement.heard();
        shared.is_empty() && heard.is_some_and(|peer| !peer.recipients.iter().any(|key| own.contains(key)))
    }
}

/// What an operator has to do about two key files; nothing if they hold the same keys.
fn difference(own: &[String], theirs: &[String], peer: &str) -> Option<String> {
    let lacks = |left: &[String], right: &[String]| right.iter().find(|key| !left.contains(key)).cloned();
    let what = match (lacks(own, theirs), lacks(theirs, own)) {
        (None, None) => return None,
        (Some(key), None) => format!("copy the file of {peer}, which also has {key}, to this vault"),
        (None, Some(key)) => format!("copy this vault's file, which also has {key}, to {peer}"),
        (Some(foreign), Some(key)) => {
            format!("{key} is here alone and {foreign} at {peer} alone; put the keys of both files into both")
        }
    };
    Some(format!("storage.key_file differs: {what}"))
}
