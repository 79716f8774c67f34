//! The storage keys in use: which one seals, which ones open. Knows nothing of files or slots.
//!
//! A key seals only once both vaults have it: what is sealed to a key that one disk alone holds
//! would be for the escrow key, should that disk die. So the newest key of those that both had
//! when they last met is the active one, and before they ever met the oldest.

use age::x25519::{Identity, Recipient};
use serde::{Deserialize, Serialize};

use super::envelope::seal_name;
use super::key::Key;

/// What a key is for at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Use {
    /// Waits until the other vault has it too.
    Next,
    /// Seals new records.
    Active,
    /// Opens records that are not rewrapped yet.
    Earlier,
}

/// The keys of one moment.
pub(super) struct Ring {
    /// The newest first; never empty.
    keys: Vec<Key>,
    active: usize,
    identities: Vec<Identity>,
    escrow: Recipient,
    seal: String,
}

impl Ring {
    /// The ring of these keys (the newest first) and of the recipients that both vaults have;
    /// `None` without a key.
    pub(super) fn new(keys: Vec<Key>, shared: &[String], escrow: Recipient) -> Option<Self> {
        let common = keys.iter().position(|key| shared.contains(&key.recipient().to_string()));
        let active = common.unwrap_or(keys.len().checked_sub(1)?);
        let seal = seal_name([&keys.get(active)?.recipient(), &escrow]);
        let identities = keys.iter().map(|key| key.identity.clone()).collect();
        Some(Self { keys, active, identities, escrow, seal })
    }

    /// What new records are sealed to: the active key and the escrow.
    pub(super) fn recipients(&self) -> [Recipient; 2] {
        [self.keys[self.active].recipient(), self.escrow.clone()]
    }

    /// The name of these two.
    pub(super) fn seal(&self) -> &str {
        &self.seal
    }

    /// What opens records.
    pub(super) fn identities(&self) -> Vec<Identity> {
        self.identities.clone()
    }

    /// Each key with its use, the newest first.
    pub(super) fn keys(&self) -> impl Iterator<Item = (&Key, Use)> {
        self.keys.iter().enumerate().map(|(at, key)| {
            let used = match at.cmp(&self.active) {
                std::cmp::Ordering::Less => Use::Next,
                std::cmp::Ordering::Equal => Use::Active,
                std::cmp::Ordering::Greater => Use::Earlier,
            };
            (key, used)
        })
    }

    /// Every recipient, the newest first.
    pub(super) fn all(&self) -> Vec<String> {
        self.keys.iter().map(|key| key.recipient().to_string()).collect()
    }

    /// The escrow's recipient.
    pub(super) const fn escrow(&self) -> &Recipient {
        &self.escrow
    }

    /// The names of every pair that a record may be sealed to, for reports: key and escrow.
    pub(super) fn seal_of(&self, key: &Key) -> String {
        seal_name([&key.recipient(), &self.escrow])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_seals_only_once_both_vaults_have_it() {
        let key = || Key { identity: Identity::generate(), created: None };
        let keys = vec![key(), key(), key()];
        let escrow = Identity::generate().to_public();
        let name = |at: usize| keys[at].recipient().to_string();
        let active = |shared: &[String]| {
            let ring = Ring::new(keys.clone(), shared, escrow.clone()).unwrap();
            assert_eq!(ring.identities().len(), 3, "all of them open");
            let uses: Vec<_> = ring.keys().map(|(_, used)| used).collect();
            let at = uses.iter().position(|used| *used == Use::Active).unwrap();
            assert!(uses[..at].iter().all(|used| *used == Use::Next));
            assert_eq!(ring.recipients()[0].to_string(), name(at));
            at
        };
        assert_eq!(active(&[]), 2, "the oldest before they ever met");
        assert_eq!(active(&[name(2)]), 2);
        assert_eq!(active(&[name(1), name(2)]), 1);
        assert_eq!(active(&[name(2), name(0), name(1)]), 0);
        assert_eq!(active(&["age1stranger".to_owned()]), 2);
        assert!(Ring::new(Vec::new(), &[], escrow).is_none());
    }
}
