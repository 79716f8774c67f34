//! The operators' socket on this host: whoever may open the file may administer. Knows how
//! to tell a stale socket from a living vault's; not what is asked over it.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

/// Owner and group may use it: the group is the folder's, usually `vault-admin`.
const MODE: u32 = 0o660;

/// Why the socket is not there.
#[derive(Debug, thiserror::Error)]
pub enum ControlSocketError {
    /// Another vault answers on it.
    #[error("{0}: another vault answers there; stop it, or give this one another api.control_socket")]
    Taken(PathBuf),
    /// Something that is no socket lies there, and is not removed.
    #[error("{0}: is no socket; move it away, or write another api.control_socket")]
    NoSocket(PathBuf),
    /// It cannot be made.
    #[error(
        "{file}: {what} failed: {source}; the folder must exist and be this user's (see api.control_socket)"
    )]
    File {
        /// The socket's path.
        file: PathBuf,
        /// The step.
        what: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// A listening socket; its file goes when this is dropped.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ControlSocket {
    /// Binds under a temporary name, so that the socket never shows with other permissions
    /// than it shall have, and takes the place of a stale one.
    ///
    /// # Errors
    /// See [`ControlSocketError`].
    pub async fn bind(path: &Path) -> Result<Self, ControlSocketError> {
        let fail = |what, source| ControlSocketError::File { file: path.to_owned(), what, source };
        if let Ok(there) = std::fs::symlink_metadata(path) {
            if !there.file_type().is_socket() {
                return Err(ControlSocketError::NoSocket(path.to_owned()));
            }
            if UnixStream::connect(path).await.is_ok() {
                return Err(ControlSocketError::Taken(path.to_owned()));
            }
        }
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".new");
        let temporary = PathBuf::from(temporary);
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(fail("clearing the way", error));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&temporary).map_err(|error| fail("binding", error))?;
        std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(MODE))
            .and_then(|()| std::fs::rename(&temporary, path))
            .map_err(|error| fail("putting it in place", error))?;
        Ok(Self { listener, path: path.to_owned() })
    }

    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        // std leaves the file behind, as a killed vault does.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let living = ControlSocket::bind(&path).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        assert!(matches!(ControlSocket::bind(&path).await, Err(ControlSocketError::Taken(_))));
        drop(living);
        assert!(!path.exists());
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(ControlSocket::bind(&path).await, Err(ControlSocketError::NoSocket(_))));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }
}
