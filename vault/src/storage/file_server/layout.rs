//! How a place that holds replicas is laid out, whichever kind it is: a directory that is
//! mounted today can be served by SFTP tomorrow. Names only; touches nothing.
//!
//! ```text
//! marker                    whose place this is
//! tmp/<vault>~<random>      being written
//! ab/cd/<id>                replicas, by the id's first four digits
//! quarantine/<id>~<random>  damaged ones, for the operator
//! notes/<name>              what the vaults note about all of it
//! ```

use std::path::{Path, PathBuf};

use crate::storage::object::ObjectId;

/// A marker is one line; more is something else.
pub(super) const MAX_MARKER: u64 = 1024;
const MARKER_START: &str = "vault file server ";

/// The marker of the file server `name` on the place `place`.
pub(super) fn marker(name: &str, place: &str) -> String {
    format!("{MARKER_START}{name} {place}\n")
}

/// The place's id that a marker tells.
///
/// # Errors
/// It is for another file server, or none of ours.
pub(super) fn parse_marker<'text>(text: &'text str, name: &str) -> Result<&'text str, &'static str> {
    let words = text.strip_prefix(MARKER_START).and_then(|rest| rest.trim_end().split_once(' '));
    match words {
        Some((found, place)) if found == name && place.len() == 32 => Ok(place),
        Some((_, place)) if place.len() == 32 => Err("its marker names another file server"),
        _ => Err("its marker is no marker of ours"),
    }
}

/// Where an object's replica lies below `root`.
pub(super) fn replica_path(root: &Path, id: &ObjectId) -> PathBuf {
    let text = id.to_string();
    root.join(&text[..2]).join(&text[2..4]).join(&text)
}

/// May anything below a folder whose path spells `start` be wanted?
pub(super) fn fits(start: &str, prefix: &str, after: &str) -> bool {
    let shared = start.len().min(prefix.len());
    start[..shared] == prefix[..shared] && after.get(..start.len()).is_none_or(|cut| start >= cut)
}

/// Is it `length` digits of an id? Everything else in a place is not ours to list.
pub(super) fn is_digits(name: &str, length: usize) -> bool {
    name.len() == length && name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// The object whose replica is called `name` in the folders `outer` and `inner`, if it is wanted.
pub(super) fn wanted(name: &str, outer: &str, inner: &str, prefix: &str, after: &str) -> Option<ObjectId> {
    let placed = name.starts_with(outer) && name[2..].starts_with(inner);
    (placed && name.starts_with(prefix) && name > after).then(|| name.parse().ok()).flatten()
}
