//! The gateway's socket: taken, given its group and mode, and left clean. No HTTP.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::path::Path;

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::either::Either;

use super::{Address, GatewayError};

/// A handler's connection.
pub(super) type Stream = Either<UnixStream, TcpStream>;

/// Owner and group talk to it; nobody else.
const MODE: u32 = 0o660;

pub(super) struct Listener {
    address: Address,
    socket: Either<UnixListener, TcpListener>,
}

impl Listener {
    /// Takes the socket; a stale one of a dead process is replaced, a living one is not.
    pub(super) async fn bind(address: &Address, group: Option<&str>) -> Result<Self, GatewayError> {
        match address {
            Address::Unix(path) => {
                let socket = Either::Left(bind_unix(path, group).await?);
                Ok(Self { address: address.clone(), socket })
            }
            Address::Tcp(wanted) => {
                let failed =
                    |source| GatewayError::Bind { at: wanted.to_string(), what: "cannot listen", source };
                let listener = TcpListener::bind(wanted).await.map_err(failed)?;
                let address = Address::Tcp(listener.local_addr().map_err(failed)?);
                Ok(Self { address, socket: Either::Right(listener) })
            }
        }
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    pub(super) async fn accept(&self) -> io::Result<Stream> {
        match &self.socket {
            Either::Left(listener) => Ok(Either::Left(listener.accept().await?.0)),
            Either::Right(listener) => {
                let stream = listener.accept().await?.0;
                stream.set_nodelay(true)?;
                Ok(Either::Right(stream))
            }
        }
    }

    /// Stops listening and removes the socket file.
    pub(super) async fn close(self) {
        drop(self.socket);
        if let Address::Unix(path) = &self.address
            && let Err(error) = tokio::fs::remove_file(path).await
        {
            tracing::warn!("gateway: {}: cannot be removed: {error}; the next start does", path.display());
        }
    }
}

async fn bind_unix(path: &Path, group: Option<&str>) -> Result<UnixListener, GatewayError> {
    let failed = |what| move |source| GatewayError::Bind { at: path.display().to_string(), what, source };
    let group = match group {
        Some(name) => Some(group_id(name, &groups(name).await?)?),
        None => None,
    };
    if !path.parent().is_some_and(|folder| folder.as_os_str().is_empty() || folder.is_dir()) {
        return Err(GatewayError::NoFolder(path.to_owned()));
    }
    match tokio::fs::symlink_metadata(path).await {
        Ok(found) if !found.file_type().is_socket() => return Err(GatewayError::NotASocket(path.to_owned())),
        Ok(_) => {
            if UnixStream::connect(path).await.is_ok() {
                return Err(GatewayError::InUse(path.to_owned()));
            }
            tokio::fs::remove_file(path).await.map_err(failed("the stale socket cannot be removed"))?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("cannot be looked at")(error)),
    }
    let listener = UnixListener::bind(path).map_err(failed("cannot listen"))?;
    // Group before mode: the group that was there by chance never gets in.
    if group.is_some() {
        chown(path, None, group).map_err(failed("cannot be given to its group"))?;
    }
    tokio::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE))
        .await
        .map_err(failed("cannot be given its mode"))?;
    Ok(listener)
}

async fn groups(group: &str) -> Result<String, GatewayError> {
    tokio::fs::read_to_string("/etc/group").await.map_err(|error| GatewayError::Group {
        group: group.to_owned(),
        why: format!("/etc/group cannot be read: {error}"),
    })
}

/// A group by number, or by name out of the text of `/etc/group`.
fn group_id(group: &str, groups: &str) -> Result<u32, GatewayError> {
    if let Ok(number) = group.parse() {
        return Ok(number);
    }
    groups
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let number = fields.nth(1)?;
            (name == group).then(|| number.parse().ok()).flatten()
        })
        .next()
        .ok_or_else(|| GatewayError::Group {
            group: group.to_owned(),
            why: "is not in /etc/group".to_owned(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_found_by_name_or_number() {
        let groups = "root:x:0:\nwebapps:x:998:erp\nbroken\n";
        assert_eq!(group_id("webapps", groups).unwrap(), 998);
        assert_eq!(group_id("77", groups).unwrap(), 77);
        assert!(group_id("absent", groups).is_err());
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let address = Address::Unix(folder.path().join("gateway.sock"));
        let Address::Unix(path) = &address else { unreachable!() };
        let living = Listener::bind(&address, None).await.unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, MODE);
        assert!(matches!(Listener::bind(&address, None).await, Err(GatewayError::InUse(_))));
        // Dropped without `close`, as by a killed process: the file stays.
        drop(living);
        assert!(path.exists());
        let again = Listener::bind(&address, None).await.unwrap();
        again.close().await;
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_missing_folder_and_a_foreign_file_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let missing = Address::Unix(folder.path().join("absent/gateway.sock"));
        assert!(matches!(Listener::bind(&missing, None).await, Err(GatewayError::NoFolder(_))));
        let file = folder.path().join("file");
        std::fs::write(&file, "kept").unwrap();
        let taken = Listener::bind(&Address::Unix(file.clone()), None).await;
        assert!(matches!(taken, Err(GatewayError::NotASocket(_))));
        assert_eq!(std::fs::read_to_string(file).unwrap(), "kept");
    }
}
