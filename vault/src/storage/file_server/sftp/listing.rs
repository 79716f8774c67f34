//! The ids below a folder on the server, in order and no further than asked. Only folders that
//! may hold what is wanted are read, several at once: there are up to 65,536 of them, and each
//! costs four round trips. Knows no sessions.

use std::path::{Path, PathBuf};

use super::super::layout;
use super::trouble::{Failed, Kind, Trouble};
use crate::storage::object::ObjectId;

/// Innermost folders that one session reads before the ids found are counted again.
const EACH: usize = 8;

/// The ids that start with `prefix` and come after `after`, in order, at most `limit`.
///
/// `names` tells, for each of some folders, the sorted names that are so many digits long; it
/// is asked from up to `sessions` threads at once.
pub(super) fn list(
    names: &(impl Fn(&[PathBuf], usize) -> Result<Vec<Vec<String>>, Failed> + Sync),
    sessions: usize,
    root: &Path,
    prefix: &str,
    after: &str,
    limit: usize,
) -> Result<Vec<ObjectId>, Failed> {
    let of_one = |folder: &Path| Ok::<_, Failed>(names(&[folder.to_owned()], 2)?.into_iter().flatten());
    let mut found = Vec::new();
    for outer in of_one(root)? {
        if !layout::fits(&outer, prefix, after) {
            continue;
        }
        let folder = root.join(&outer);
        let mut inners: Vec<_> = of_one(&folder)?.collect();
        inners.retain(|inner| layout::fits(&format!("{outer}{inner}"), prefix, after));
        for batch in inners.chunks(sessions * EACH) {
            let folders: Vec<_> = batch.iter().map(|inner| folder.join(inner)).collect();
            for (inner, found_there) in batch.iter().zip(at_once(names, &folders)?) {
                for name in found_there {
                    found.extend(layout::wanted(&name, &outer, inner, prefix, after));
                    if found.len() == limit {
                        return Ok(found);
                    }
                }
            }
        }
    }
    Ok(found)
}

/// The replicas' names in each of `folders`, [`EACH`] of them a thread.
fn at_once(
    names: &(impl Fn(&[PathBuf], usize) -> Result<Vec<Vec<String>>, Failed> + Sync),
    folders: &[PathBuf],
) -> Result<Vec<Vec<String>>, Failed> {
    let parts: Result<Vec<_>, Failed> = std::thread::scope(|scope| {
        let spawn = |part| std::thread::Builder::new().spawn_scoped(scope, move || names(part, 64));
        let threads: Vec<_> = folders.chunks(EACH).map(spawn).collect();
        let joined = threads.into_iter().map(|thread| {
            let thread = thread.map_err(|error| Trouble::new(Kind::Failure, error.to_string()))?;
            thread.join().map_err(|_| Trouble::new(Kind::Failure, "a thread ended early"))?
        });
        joined.collect()
    });
    Ok(parts?.into_iter().flatten().collect())
}
