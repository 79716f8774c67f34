//! The control socket's file: made 0660, taken over from a dead edge but never from a living
//! one, removed at the end. Must not know what is said on it.

use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};

use super::AdminError;

/// Owner and group may command.
const MODE: u32 = 0o660;
/// A living edge takes a connection at once; one that does not within this time still lives.
const PROBE: Duration = Duration::from_secs(1);

/// The listening socket; its file is removed when this is dropped.
#[derive(Debug)]
pub(super) struct ControlSocket {
    pub(super) listener: UnixListener,
    path: PathBuf,
    /// Device and inode, so that another edge's file is never removed.
    file: (u64, u64),
}

/// Makes the socket under another name with its final mode and renames it: nobody ever meets
/// it with other rights, and a stale one is replaced in the same step.
pub(super) async fn open(path: &Path) -> Result<ControlSocket, AdminError> {
    let failed =
        |what: &'static str| move |source| AdminError::Socket { path: path.to_owned(), what, source };
    refuse_living(path).await?;
    let fresh = path.with_file_name(format!(".{}", std::process::id()));
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed("tidying up")(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&fresh).map_err(failed("binding"))?;
    let placed = std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(MODE))
        .and_then(|()| std::fs::symlink_metadata(&fresh))
        .and_then(|metadata| std::fs::rename(&fresh, path).map(|()| (metadata.dev(), metadata.ino())));
    match placed {
        Ok(file) => Ok(ControlSocket { listener, path: path.to_owned(), file }),
        Err(error) => {
            let _ = std::fs::remove_file(&fresh);
            Err(failed("putting it in place")(error))
        }
    }
}

/// Two edges could otherwise share their ports without noticing.
async fn refuse_living(path: &Path) -> Result<(), AdminError> {
    let failed =
        |what: &'static str| move |source| AdminError::Socket { path: path.to_owned(), what, source };
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(AdminError::NoSocket(path.to_owned()));
        }
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("looking at it")(error)),
    }
    match tokio::time::timeout(PROBE, UnixStream::connect(path)).await {
        Ok(Err(error)) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => {
            Ok(())
        }
        Ok(Err(error)) => Err(failed("asking who listens there")(error)),
        Ok(Ok(_)) | Err(_) => Err(AdminError::InUse(path.to_owned())),
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.file);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(
                "admin: {}: cannot be removed: {error}; the next start takes it over",
                self.path.display()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dead_edges_socket_is_taken_over_and_removed_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let socket = open(&path).await.unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, MODE);
        assert!(UnixStream::connect(&path).await.is_ok());
        drop(socket);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
    }

    #[tokio::test]
    async fn a_living_edge_keeps_its_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let first = open(&path).await.unwrap();
        assert!(matches!(open(&path).await, Err(AdminError::InUse(_))));
        assert!(UnixStream::connect(&path).await.is_ok());
        drop(first);
    }

    #[tokio::test]
    async fn what_is_no_socket_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        std::fs::write(&path, "precious").unwrap();
        let error = open(&path).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "admin: {}: is no socket and stays; remove it, or change admin.control_socket",
                path.display()
            )
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[tokio::test]
    async fn another_edges_file_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let first = open(&path).await.unwrap();
        std::fs::remove_file(&path).unwrap();
        let second = open(&path).await.unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }
}
