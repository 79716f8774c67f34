//! The steps of storing an object, in the order in which they must become durable. Names
//! them for whoever watches; decides nothing. Outside of tests nobody does, and a step costs
//! one branch.

use std::path::PathBuf;
use std::sync::Arc;

/// What is about to be done (or, for `…Synced`, has just become durable).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// The upload is encrypted and its spool file whole.
    Spooled,
    /// A transaction of the catalog is about to commit.
    Commit,
    /// The intent is durable; the peer is about to be told.
    Intended,
    /// The file servers are about to be written.
    Replicate,
    /// The upload is about to be acknowledged.
    Acknowledge,
    /// A folder is about to be made.
    MakeFolder(PathBuf),
    /// A file is about to be made.
    MakeFile(PathBuf),
    /// A file's next piece is about to be written.
    WriteFile(PathBuf),
    /// A file's contents are durable.
    FileSynced(PathBuf),
    /// A file is about to get a second name.
    Link(PathBuf, PathBuf),
    /// A name is about to go.
    Unlink(PathBuf),
    /// A file is about to change its name.
    Rename(PathBuf, PathBuf),
    /// A folder's names are durable.
    FolderSynced(PathBuf),
}

/// Who watches the steps; usually nobody.
#[derive(Clone, Default)]
pub(super) struct Steps(Option<Watch>);

type Watch = Arc<dyn Fn(&Step) + Send + Sync>;

impl Steps {
    /// Calls `watch` at every step; a panic in it is a crash at that step.
    #[cfg(test)]
    pub(super) fn watched(watch: impl Fn(&Step) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(watch)))
    }

    /// Says that a step is reached.
    pub(super) fn reach(&self, step: impl FnOnce() -> Step) {
        if let Some(watch) = &self.0 {
            watch(&step());
        }
    }
}
