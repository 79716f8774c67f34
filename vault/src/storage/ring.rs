//! The storage keys in use: which one seals, which ones open. Knows nothing of files or slots.
//!
//! A key seals only once both vaults have it: what is sealed to a key that one disk alone holds
//! would be for the escrow key, should that disk die. So the newest key of those that both had
//! when they last met is the active one, and before they ever met the oldest. A file that lost all
//! of those changes nothing: what sealed before goes on, and after a restart nothing is sealed.

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
    /// Those of the file, the newest first; never none. Behind them the one that is kept.
    keys: Vec<Key>,
    /// How many of them the file holds.
    filed: usize,
    /// None where no key is known to be at both vaults although there was one.
    active: Option<usize>,
    identities: Vec<Identity>,
    escrow: Recipient,
    seal: String,
}

impl Ring {
    /// The ring of the file's keys (the newest first) and of the recipients that both vaults had
    /// when they last met. `kept` sealed until now: where the file has none of those, it goes on.
    /// `None` without a key.
    pub(super) fn new(
        mut keys: Vec<Key>,
        shared: &[String],
        kept: Option<Key>,
        escrow: Recipient,
    ) -> Option<Self> {
        let filed = keys.len();
        let oldest = filed.checked_sub(1)?;
        let at_both = |key: &Key| shared.contains(&key.recipient().to_string());
        let mut active = keys.iter().position(at_both);
        if shared.is_empty() {
            active = Some(oldest);
        } else if active.is_none()
            && let Some(key) = kept.filter(at_both)
        {
            keys.push(key);
            active = Some(filed);
        }
        let seal = seal_name([&keys.get(active.unwrap_or(0))?.recipient(), &escrow]);
        let identities = keys.iter().map(|key| key.identity.clone()).collect();
        Some(Self { keys, filed, active, identities, escrow, seal })
    }

    /// The same keys, none of which seals: the other vault has shown that it has none of them.
    pub(super) fn resting(self) -> Self {
        Self { active: None, ..self }
    }

    /// What new records are sealed to, the active key and the escrow; `None` where none may be.
    pub(super) fn recipients(&self) -> Option<[Recipient; 2]> {
        Some([self.active()?.recipient(), self.escrow.clone()])
    }

    /// The key that seals.
    pub(super) fn active(&self) -> Option<&Key> {
        self.keys.get(self.active?)
    }

    /// Does the newest key of the file seal?
    pub(super) fn newest_is_active(&self) -> bool {
        self.active == Some(0)
    }

    /// Has the key that seals left the file?
    pub(super) fn is_kept(&self) -> bool {
        self.active.is_some_and(|at| at >= self.filed)
    }

    /// The name of these two; where none may be sealed to, that of the newest key and the escrow.
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
            let used = match self.active {
                Some(active) if at == active => Use::Active,
                Some(active) if at > active => Use::Earlier,
                _ => Use::Next,
            };
            (key, used)
        })
    }

    /// The keys of the file, the newest first.
    pub(super) fn filed(&self) -> &[Key] {
        &self.keys[..self.filed]
    }

    /// Their recipients.
    pub(super) fn all(&self) -> Vec<String> {
        self.filed().iter().map(|key| key.recipient().to_string()).collect()
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
        let ring = |shared: &[String], kept: Option<Key>| {
            Ring::new(keys.clone(), shared, kept, escrow.clone()).unwrap()
        };
        let active = |shared: &[String]| {
            let ring = ring(shared, None);
            assert_eq!(ring.identities().len(), 3, "all of them open");
            let uses: Vec<_> = ring.keys().map(|(_, used)| used).collect();
            let at = uses.iter().position(|used| *used == Use::Active)?;
            assert!(uses[..at].iter().all(|used| *used == Use::Next));
            assert_eq!(ring.recipients().unwrap()[0].to_string(), name(at));
            Some(at)
        };
        assert_eq!(active(&[]), Some(2), "the oldest before they ever met");
        assert_eq!(active(&[name(2)]), Some(2));
        assert_eq!(active(&[name(1), name(2)]), Some(1));
        assert_eq!(active(&[name(2), name(0), name(1)]), Some(0));
        assert_eq!(active(&["age1stranger".to_owned()]), None, "none of them is known to be at both");
        assert!(Ring::new(Vec::new(), &[], None, escrow.clone()).is_none());

        let lost = key();
        let before = lost.recipient().to_string();
        let kept = ring(std::slice::from_ref(&before), Some(lost.clone()));
        assert_eq!(kept.recipients().unwrap()[0].to_string(), before, "what sealed before goes on");
        assert!(kept.is_kept() && !kept.newest_is_active() && kept.all().len() == 3);
        assert_eq!(ring(&[name(1)], Some(lost.clone())).identities().len(), 3, "until one is at both");
        assert!(ring(&["age1stranger".to_owned()], Some(lost)).recipients().is_none());
    }
}
