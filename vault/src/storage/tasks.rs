//! Long walks over a restart: what an operator asked for stands in the catalog until it has come to
//! its end, and goes on by itself when both file servers answer. One thing cannot: a key that was
//! given for a rebuilding is kept nowhere, so the operator is told to give it again.

use std::sync::{Arc, PoisonError};

use serde::{Deserialize, Serialize};

use super::{Inner, Storage, StorageError};

/// The names under which the catalog keeps them.
pub(super) const REWRAP: &str = "rewrap";
pub(super) const REBUILD: &str = "rebuild";

const GOES_ON: &str = "a restart broke it off; it goes on by itself when both file servers answer";
const GIVE_KEY: &str = "a restart broke it off, and the key given with --identity is kept nowhere: \
                        vault file rebuild-catalog --identity FILE goes on where it was";

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Asked {
    /// `vault keys rewrap`
    Rewrap {
        /// Most replicas a second.
        per_second: u32,
    },
    /// `vault file rebuild-catalog`
    Rebuild {
        /// Was a key given?
        with_identity: bool,
        /// Has the log said that it was broken off?
        told: bool,
    },
}

impl Asked {
    const fn name(self) -> &'static str {
        match self {
            Self::Rewrap { .. } => REWRAP,
            Self::Rebuild { .. } => REBUILD,
        }
    }
}

impl Storage {
    /// Looks for walks that the last life did not end.
    pub(super) async fn recall_asked(&self) -> Result<(), StorageError> {
        let inner = &self.0;
        for name in [REWRAP, REBUILD] {
            let Some(text) = inner.catalog.asked(name).await? else { continue };
            match serde_json::from_str(&text) {
                Ok(Asked::Rebuild { with_identity: true, told }) => {
                    inner.rebuild.interrupted(GIVE_KEY);
                    if !told {
                        tracing::warn!("storage: rebuilding the catalog: {GIVE_KEY}");
                        inner.keep_asked(Asked::Rebuild { with_identity: true, told: true }).await?;
                    }
                }
                Ok(asked) => {
                    let task = if name == REWRAP { &inner.rewrap } else { &inner.rebuild };
                    task.interrupted(GOES_ON);
                    tracing::info!("storage: {name}: {GOES_ON}");
                    inner.broken_off().push(asked);
                }
                // A later program's; it may know what it meant.
                Err(error) => tracing::warn!("storage: {name}: what was asked is not understood: {error}"),
            }
        }
        Ok(())
    }
}

impl Inner {
    /// Goes on with what the last life did not end, once both file servers answer.
    pub(super) async fn go_on_with_asked(self: &Arc<Self>) -> Result<(), StorageError> {
        if self.servers.iter().any(|server| server.health().suspended.is_some()) {
            return Ok(());
        }
        let broken_off = std::mem::take(&mut *self.broken_off());
        for asked in broken_off {
            match asked {
                Asked::Rewrap { per_second } => self.rewrap_on(per_second),
                Asked::Rebuild { .. } => self.rebuild_on().await?,
            }
        }
        Ok(())
    }

    /// An operator asks; what a former life left of the same kind is this walk's.
    pub(super) async fn begin_asked(&self, asked: Asked) -> Result<(), StorageError> {
        self.keep_asked(asked).await?;
        self.broken_off().retain(|left| left.name() != asked.name());
        Ok(())
    }

    /// It came to its end, or to an error that the operator has been told.
    pub(super) async fn end_asked(&self, name: &'static str) {
        if let Err(error) = self.catalog.keep_asked(name, None).await {
            tracing::warn!("storage: {error}; {name} is begun once more after the next restart");
        }
    }

    async fn keep_asked(&self, asked: Asked) -> Result<(), StorageError> {
        let text = serde_json::to_string(&asked).unwrap_or_default();
        Ok(self.catalog.keep_asked(asked.name(), Some(text)).await?)
    }

    fn broken_off(&self) -> std::sync::MutexGuard<'_, Vec<Asked>> {
        self.broken_off.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
