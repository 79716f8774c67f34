//! The ids below a folder on the server, in order and no further than asked: only folders
//! that may hold what is wanted are read.

use std::path::Path;

use super::super::layout;
use super::link::Link;
use super::trouble::Trouble;
use crate::storage::object::ObjectId;

/// The ids that start with `prefix` and come after `after`, in order, at most `limit`.
pub(super) fn list(
    link: &mut Link,
    root: &Path,
    prefix: &str,
    after: &str,
    limit: usize,
) -> Result<Vec<ObjectId>, Trouble> {
    let mut found = Vec::new();
    for outer in names(link, root, 2)? {
        if !layout::fits(&outer, prefix, after) {
            continue;
        }
        let folder = root.join(&outer);
        for inner in names(link, &folder, 2)? {
            if !layout::fits(&format!("{outer}{inner}"), prefix, after) {
                continue;
            }
            for name in names(link, &folder.join(&inner), 64)? {
                found.extend(layout::wanted(&name, &outer, &inner, prefix, after));
                if found.len() == limit {
                    return Ok(found);
                }
            }
        }
    }
    Ok(found)
}

/// The sorted names in `folder` that are `length` hex digits; none if it is not there.
fn names(link: &mut Link, folder: &Path, length: usize) -> Result<Vec<String>, Trouble> {
    let entries = link.entries(folder)?;
    let mut names: Vec<_> =
        entries.into_iter().map(|(name, _)| name).filter(|name| layout::is_digits(name, length)).collect();
    names.sort_unstable();
    Ok(names)
}
