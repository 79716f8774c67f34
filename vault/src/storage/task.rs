//! A long walk that an operator starts: at most one of its kind at a time, and how far it is.
//! Knows nothing of what is walked over.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

/// How far a walk is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Is it under way?
    pub running: bool,
    /// Has it come to its end since this vault started?
    pub finished: bool,
    /// Per cent of the way, about.
    pub percent: u8,
    /// What was done.
    pub done: u64,
    /// What was as it should be already.
    pub passed: u64,
    /// Objects found that are deleted, and stay so: rebuilding only.
    #[serde(default)]
    pub deleted: u64,
    /// What could not be done; the log names each.
    pub failed: u64,
    /// Of these, objects whose record none of the keys opens: rebuilding only.
    #[serde(default)]
    pub unopened: u64,
    /// The last failure, or why the walk stopped before its end.
    pub last_error: Option<String>,
    /// What an operator should know of the result although nothing failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

/// One kind of walk.
#[derive(Default)]
pub(super) struct Task(Mutex<Progress>);

impl Task {
    /// Begins a walk; `None` while one is under way.
    pub(super) fn begin(self: &Arc<Self>) -> Option<Running> {
        let mut progress = self.lock();
        if progress.running {
            return None;
        }
        *progress = Progress { running: true, ..Progress::default() };
        drop(progress);
        Some(Running(Arc::clone(self)))
    }

    /// A walk of a former life did not come to its end: says what becomes of it.
    pub(super) fn interrupted(&self, what: &str) {
        let mut progress = self.lock();
        if !progress.running && !progress.finished {
            progress.last_error = Some(what.to_owned());
        }
    }

    /// How far it is.
    pub(super) fn progress(&self) -> Progress {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A walk under way; it has ended when this is dropped.
pub(super) struct Running(Arc<Task>);

impl Running {
    /// Notes what became of the next pieces.
    pub(super) fn note(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.0.lock());
    }

    /// Notes a failure that the walk goes on after.
    pub(super) fn failed(&self, error: &str) {
        self.note(|progress| {
            progress.failed += 1;
            progress.last_error = Some(error.to_owned());
        });
    }

    /// The walk came to its end, or to an error that stopped it.
    pub(super) fn end(self, stopped: Option<String>) {
        self.note(|progress| match stopped {
            Some(why) => progress.last_error = Some(why),
            None => (progress.finished, progress.percent) = (true, 100),
        });
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.lock().running = false;
    }
}
