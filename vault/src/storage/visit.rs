//! What stands at a file server's address, looked at without a running vault: `vault check` tells it
//! before anything is started. Claims nothing and writes nothing of ours.

use super::catalog;
use super::file_server::{self, FileServerError};
use super::step::Steps;
use super::{FileServerSettings, Settings};

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Visit {
    /// The place's id, as its marker tells; without one, it is a new place, which the vault makes its own.
    pub place: Option<String>,
    /// Bytes free there; without it, the server does not tell.
    pub free: Option<u64>,
}

/// Looks. Blocks, on a network too.
///
/// # Errors
/// It cannot be reached, or is not the place that this vault's catalog knows.
pub fn visit(settings: &Settings, server: &FileServerSettings) -> Result<Visit, FileServerError> {
    // Without a catalog nothing is known; one that does not read is told by `serve`.
    let known = catalog::known_place(&settings.catalog, &server.name);
    let (expected, knows_objects) = known.unwrap_or_default();
    let visited = file_server::open(server, "check", settings.file_server_timeout, Steps::default());
    let place = match visited.attach(expected.as_deref(), false) {
        Ok(place) => place,
        // What stands there is nobody's yet.
        Err(FileServerError::NotOurs { why, .. })
            if expected.is_none() && !knows_objects && why.starts_with("its marker is missing") =>
        {
            return Ok(Visit { place: None, free: None });
        }
        Err(error) => return Err(error),
    };
    let free = visited.free_space()?;
    Ok(Visit { place: Some(place), free: Some(free).filter(|free| *free != u64::MAX) })
}
