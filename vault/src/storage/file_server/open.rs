//! Settings → file server. Alone knows which kinds there are.

use std::time::Duration;

use super::directory::Directory;
use super::sftp::Sftp;
use super::{FileServer, FileServerError};
use crate::storage::step::Steps;
use crate::storage::{FileServerSettings, Kind};

/// The file server that `settings` describe. Touches nothing: it may be away.
/// `own_name` is this vault's, so that it knows its own temporary files again; what goes over
/// a network gives up after `timeout` without an answer.
pub(in crate::storage) fn open(
    settings: &FileServerSettings,
    own_name: &str,
    timeout: Duration,
    steps: Steps,
) -> Box<dyn FileServer> {
    let (name, root) = (&settings.name, &settings.path);
    match &settings.kind {
        Kind::Directory => Box::new(Directory::new(name, root, own_name, steps)),
        Kind::Sftp(sftp) => Box::new(Sftp::new(name, root, sftp, own_name, timeout, steps)),
    }
}

/// Would an SFTP server serve? Connects, logs in, and writes a file that goes again. Blocks.
///
/// # Errors
/// Why not.
pub fn try_out(settings: &FileServerSettings, timeout: Duration) -> Result<(), FileServerError> {
    match &settings.kind {
        Kind::Directory => Ok(()),
        Kind::Sftp(sftp) => {
            Sftp::new(&settings.name, &settings.path, sftp, "check", timeout, Steps::default()).try_out()
        }
    }
}
