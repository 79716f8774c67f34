//! What stands at a file server's address, looked at without a running vault: `vault check` tells it
//! before anything is started. Claims nothing and writes nothing of ours.

use super::catalog;
use super::file_server::{self, FileServerError, recognise};
use super::step::Steps;
use super::{FileServerSettings, Settings};

/// What was found.
#[derive(Debug)]
pub struct Visit {
    /// The place's id, as its marker tells; without one, it is a new place, which the vault makes its own.
    /// Or why it is not the place that this vault's catalog knows.
    pub place: Result<Option<String>, FileServerError>,
    /// Bytes free there, whichever place it is; without it, the server does not tell.
    pub free: Option<u64>,
}

/// Looks. Blocks, on a network too.
///
/// # Errors
/// It cannot be reached or read.
pub fn visit(settings: &Settings, server: &FileServerSettings) -> Result<Visit, FileServerError> {
    // Without a catalog nothing is known; one that does not read is told by `serve`.
    let known = catalog::known_place(&settings.catalog, &server.name);
    let (expected, knows_objects) = known.unwrap_or_default();
    let visited = file_server::open(server, "check", settings.file_server_timeout, Steps::default());
    let strange = |why| {
        let (server, path) = (server.name.clone(), server.path.clone());
        FileServerError::NotOurs { server, path, why }
    };
    let place = match visited.marker() {
        Ok(found) => recognise(found, expected.as_deref(), !knows_objects).map_err(strange),
        Err(error @ FileServerError::NotOurs { .. }) => Err(error),
        Err(error) => return Err(error),
    };
    let free = match visited.free_space_anywhere() {
        Ok(free) => Some(free).filter(|free| *free != u64::MAX),
        Err(_) if place.is_err() => None,
        Err(error) => return Err(error),
    };
    Ok(Visit { place, free })
}
