//! A listening Unix socket whose file is never met with other rights than it shall have: taken
//! over from a dead process but not from a living one, removed at the end. Must not know what
//! is said on it.

use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};

/// Owner and group talk to it; nobody else.
pub const MODE: u32 = 0o660;
/// A living process takes a connection at once; one that does not within this time still lives.
const PROBE: Duration = Duration::from_secs(1);

/// Why the socket cannot be had. The room that wanted it says which key configures its path.
#[derive(Debug, thiserror::Error)]
pub enum LocalSocketError {
    /// A living process has it.
    #[error("{0}: another process answers there; stop it, or configure another path")]
    InUse(PathBuf),
    /// Something that we did not make lies there.
    #[error("{0}: is no socket and stays; move it away, or configure another path")]
    NotASocket(PathBuf),
    /// There is nowhere to make it.
    #[error("{0}: its folder does not exist; create it, writable for this program's user")]
    NoFolder(PathBuf),
    /// The system refuses a step.
    #[error("{path}: {what} failed: {source}; this program's user must be able to write in the folder")]
    File {
        /// The socket's path.
        path: PathBuf,
        /// The step.
        what: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// The listening socket; its file is removed when this is dropped.
#[derive(Debug)]
pub struct LocalSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode, so that another process's file is never removed.
    file: (u64, u64),
}

impl LocalSocket {
    /// Makes the socket under another name, with its final mode and group, and renames it, which
    /// replaces a stale one in the same step.
    ///
    /// # Errors
    /// See [`LocalSocketError`].
    pub async fn bind(path: &Path, group: Option<u32>) -> Result<Self, LocalSocketError> {
        let failed = |what| move |source| LocalSocketError::File { path: path.to_owned(), what, source };
        if !path.parent().is_some_and(|folder| folder.as_os_str().is_empty() || folder.is_dir()) {
            return Err(LocalSocketError::NoFolder(path.to_owned()));
        }
        refuse_living(path).await?;
        let fresh = path.with_file_name(format!(".{}", std::process::id()));
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed("tidying up")(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&fresh).map_err(failed("binding"))?;
        // Group before mode: the group that was there by chance never gets in.
        let placed = group
            .map_or(Ok(()), |group| chown(&fresh, None, Some(group)))
            .and_then(|()| std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(MODE)))
            .and_then(|()| std::fs::symlink_metadata(&fresh))
            .and_then(|metadata| std::fs::rename(&fresh, path).map(|()| (metadata.dev(), metadata.ino())));
        match placed {
            Ok(file) => Ok(Self { listener, path: path.to_owned(), file }),
            Err(error) => {
                // The reason that matters is the first one.
                let _second = std::fs::remove_file(&fresh);
                Err(failed("putting it in place")(error))
            }
        }
    }

    /// The next connection.
    ///
    /// # Errors
    /// The system's.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

async fn refuse_living(path: &Path) -> Result<(), LocalSocketError> {
    let failed = |what| move |source| LocalSocketError::File { path: path.to_owned(), what, source };
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(LocalSocketError::NotASocket(path.to_owned()));
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
        Ok(Ok(_)) | Err(_) => Err(LocalSocketError::InUse(path.to_owned())),
    }
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.file);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(
                "{}: cannot be removed: {error}; the next start takes it over",
                self.path.display()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dead_process_s_socket_is_taken_over_and_removed_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let socket = LocalSocket::bind(&path, None).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        assert!(UnixStream::connect(&path).await.is_ok());
        drop(socket);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
    }

    #[tokio::test]
    async fn a_living_process_keeps_its_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.sock");
        let first = LocalSocket::bind(&path, None).await.unwrap();
        assert!(matches!(LocalSocket::bind(&path, None).await, Err(LocalSocketError::InUse(_))));
        assert!(UnixStream::connect(&path).await.is_ok());
        drop(first);
    }

    #[tokio::test]
    async fn a_missing_folder_and_a_foreign_file_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("absent/x.sock");
        assert!(matches!(LocalSocket::bind(&missing, None).await, Err(LocalSocketError::NoFolder(_))));
        let path = folder.path().join("file");
        std::fs::write(&path, "precious").unwrap();
        let told = LocalSocket::bind(&path, None).await.unwrap_err().to_string();
        let expected = "is no socket and stays; move it away, or configure another path";
        assert_eq!(told, format!("{}: {expected}", path.display()));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[tokio::test]
    async fn another_process_s_file_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.sock");
        let first = LocalSocket::bind(&path, None).await.unwrap();
        std::fs::remove_file(&path).unwrap();
        let second = LocalSocket::bind(&path, None).await.unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }
}
