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

use super::SetAside;
use crate::storage::object::ObjectId;
use crate::storage::random_hex;

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

/// Is the place of this marker the one that it should be? `None`: it is nobody's yet, and may be claimed.
///
/// # Errors
/// It is not.
pub(in crate::storage) fn recognise(
    found: Option<String>,
    expected: Option<&str>,
    may_claim: bool,
) -> Result<Option<String>, &'static str> {
    match (found, expected) {
        (Some(found), Some(expected)) if found != expected => {
            Err("its marker is not the one the catalog knows")
        }
        (None, _) if expected.is_some() || !may_claim => {
            Err("its marker is missing, and the catalog knows objects there: not mounted?")
        }
        (found, _) => Ok(found),
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

/// Which names in a folder are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Names {
    /// So many digits of an id.
    Digits(usize),
    /// Damaged replicas.
    SetAside,
}

impl Names {
    /// Is it one of them?
    pub(super) fn hold(self, name: &str) -> bool {
        match self {
            Self::Digits(length) => is_digits(name, length),
            Self::SetAside => set_aside(name).is_some(),
        }
    }
}

/// Where what is being written is.
pub(super) fn temporaries(root: &Path) -> PathBuf {
    root.join("tmp")
}

/// Where damaged replicas are.
pub(super) fn quarantine(root: &Path) -> PathBuf {
    root.join("quarantine")
}

/// Where a damaged replica, or something else called `name`, is set aside; nowhere twice.
pub(super) fn aside_path(root: &Path, name: &str) -> PathBuf {
    quarantine(root).join(format!("{name}~{}", random_hex()))
}

/// The damaged replica that has this name in quarantine. One that an operator has renamed still
/// is one; nothing that leads elsewhere is.
pub(super) fn set_aside(name: &str) -> Option<SetAside> {
    let (id, rest) = name.split_once('~')?;
    let id = (is_digits(id, 64) && !rest.contains(['/', '\0'])).then(|| id.parse().ok())??;
    Some(SetAside { id, name: name.to_owned() })
}

/// The object whose replica is called `name` in the folders `outer` and `inner`, if it is wanted.
pub(super) fn wanted(name: &str, outer: &str, inner: &str, prefix: &str, after: &str) -> Option<ObjectId> {
    let placed = name.starts_with(outer) && name[2..].starts_with(inner);
    (placed && name.starts_with(prefix) && name > after).then(|| name.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_replica_set_aside_is_one_and_none_leads_out_of_its_folder() {
        let id = ObjectId::new([0xab; 32]);
        let path = aside_path(Path::new("/place"), &id.to_string());
        assert!(path.starts_with("/place/quarantine"));
        let name = path.file_name().and_then(|name| name.to_str()).unwrap();
        assert_eq!(set_aside(name), Some(SetAside { id, name: name.to_owned() }));
        assert!(set_aside(&format!("{id}~looked-at")).is_some());
        for bad in [
            String::new(),
            id.to_string(),
            format!("{id}~/../../marker"),
            format!("{id}~a\0b"),
            format!("{}~a", "A".repeat(64)),
            format!("../{id}~a"),
            "generation.vault-a.0~a".to_owned(),
        ] {
            assert_eq!(set_aside(&bad), None, "{bad:?}");
        }
    }
}
