//! Keeps the journal's witness written, on a thread of its own: whoever gives numbers does not
//! wait for a second file. Knows when to write again; not what a witness is for.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::time::Duration;

use super::witness::{self, Witness};

/// After how long a write that failed is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// Hands witnesses over to the thread, which ends when this is dropped.
#[derive(Debug)]
pub(super) struct Keeper {
    to: SyncSender<Witness>,
    /// The last one that was handed over.
    told: Option<Witness>,
}

impl Keeper {
    /// The keeper of a file that holds `written`.
    ///
    /// # Errors
    /// No thread.
    pub(super) fn start(file: PathBuf, written: Option<Witness>) -> io::Result<Self> {
        let (to, from) = mpsc::sync_channel(1);
        std::thread::Builder::new().name("witness".to_owned()).spawn(move || keep(&file, &from))?;
        Ok(Self { to, told: written })
    }

    /// Has this written down soon, unless it is already. It must be durable in the journal.
    pub(super) fn keep(&mut self, seen: Witness) {
        if self.told != Some(seen) && self.to.try_send(seen).is_ok() {
            self.told = Some(seen);
        }
    }
}

fn keep(file: &Path, from: &Receiver<Witness>) {
    let mut failed = false;
    while let Ok(mut seen) = from.recv() {
        while let Err(error) = witness::write(file, seen) {
            if !std::mem::replace(&mut failed, true) {
                tracing::warn!(
                    "sequence: {error}; a lost journal would be noticed by the other vault alone; trying again"
                );
            }
            match from.recv_timeout(RETRY) {
                Ok(newer) => seen = newer,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
        failed = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_witness_that_cannot_be_written_is_written_once_it_can() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("not there yet");
        let file = place.join("journal.witness");
        let mut keeper = Keeper::start(file.clone(), None).unwrap();
        let seen = Witness { journal: 1, index: 2, solo: 3 };
        keeper.keep(seen);
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(witness::read(&file).unwrap(), None);
        std::fs::create_dir(&place).unwrap();
        let written = (0..2000).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            witness::read(&file).unwrap() == Some(seen)
        });
        assert!(written, "not within 20 s");
    }
}
