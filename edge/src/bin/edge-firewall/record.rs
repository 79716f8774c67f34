//! What the helper must know after a crash: the rules that are loaded, those last confirmed, and a
//! trial that ends in a roll-back. Files in the state folder, each replaced in one step and flushed;
//! must not know what the rules mean.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::drift::Shape;

/// Rules that were loaded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Loaded {
    /// The text of `firewall.toml` that they were made of.
    pub config: String,
    /// The rules, without their transaction.
    pub body: String,
    /// When, in seconds since the epoch.
    pub since: u64,
    /// As the kernel listed them right after.
    pub shape: Shape,
}

/// Rules that are rolled back unless confirmed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Trial {
    /// When, in seconds since the epoch.
    pub until: u64,
    /// How long the trial is; a clock that says more remains has been put back.
    pub seconds: u64,
    /// New connections of administrators that the rules had seen when they were loaded.
    pub administrators: u64,
    /// From where they were loaded, as `SSH_CONNECTION` says.
    pub ssh: Option<String>,
}

impl Trial {
    /// Has its time run out?
    pub(crate) fn is_over(&self, now: u64) -> bool {
        now >= self.until || self.until - now > self.seconds
    }
}

/// A file of the state folder cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("state: {path}: {what} failed: {source}; the folder must belong to the helper's user")]
pub(crate) struct RecordError {
    path: PathBuf,
    what: &'static str,
    #[source]
    source: std::io::Error,
}

/// The state folder.
#[derive(Clone, Debug)]
pub(crate) struct Records(pub PathBuf);

impl Records {
    const LOADED: &'static str = "loaded.json";
    const CONFIRMED: &'static str = "confirmed.json";
    const TRIAL: &'static str = "trial.json";

    /// The rules in the kernel.
    ///
    /// # Errors
    /// The file is there and cannot be read; so for the others.
    pub(crate) fn loaded(&self) -> Result<Option<Loaded>, RecordError> {
        self.read(Self::LOADED)
    }

    /// The rules to come back to.
    pub(crate) fn confirmed(&self) -> Result<Option<Loaded>, RecordError> {
        self.read(Self::CONFIRMED)
    }

    /// The trial under way.
    pub(crate) fn trial(&self) -> Result<Option<Trial>, RecordError> {
        self.read(Self::TRIAL)
    }

    /// Flushed when it returns; so for the others.
    pub(crate) fn set_loaded(&self, loaded: Option<&Loaded>) -> Result<(), RecordError> {
        self.write(Self::LOADED, loaded)
    }

    /// See [`Records::set_loaded`].
    pub(crate) fn set_confirmed(&self, loaded: Option<&Loaded>) -> Result<(), RecordError> {
        self.write(Self::CONFIRMED, loaded)
    }

    /// See [`Records::set_loaded`].
    pub(crate) fn set_trial(&self, trial: Option<&Trial>) -> Result<(), RecordError> {
        self.write(Self::TRIAL, trial)
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, RecordError> {
        let path = self.0.join(name);
        let failed = |source| RecordError { path: path.clone(), what: "reading", source };
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| failed(error.into())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    fn write<T: Serialize>(&self, name: &str, value: Option<&T>) -> Result<(), RecordError> {
        let path = self.0.join(name);
        let failed = |source| RecordError { path: path.clone(), what: "writing", source };
        match value {
            Some(value) => replace(&path, &serde_json::to_vec(value).map_err(|error| failed(error.into()))?),
            None => match std::fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
        }
        .and_then(|()| File::open(&self.0)?.sync_all())
        .map_err(failed)
    }
}

/// The old or the new, whatever happens.
fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = File::create(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_ends_at_its_time_and_when_the_clock_was_put_back() {
        let trial = Trial { until: 1060, seconds: 60, administrators: 0, ssh: None };
        assert!(!trial.is_over(1000) && !trial.is_over(1059));
        assert!(trial.is_over(1060) && trial.is_over(999));
    }

    #[test]
    fn what_is_written_reads_back_and_can_be_taken_away() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records(folder.path().to_owned());
        assert_eq!(records.trial().unwrap(), None);
        let trial = Trial { until: 7, seconds: 5, administrators: 3, ssh: Some("a b".to_owned()) };
        records.set_trial(Some(&trial)).unwrap();
        assert_eq!(records.trial().unwrap(), Some(trial));
        records.set_trial(None).unwrap();
        records.set_trial(None).unwrap();
        assert_eq!(records.trial().unwrap(), None);
        std::fs::write(folder.path().join("loaded.json"), "{").unwrap();
        assert!(records.loaded().is_err());
    }
}
