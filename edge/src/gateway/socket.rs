//! The gateway's socket: taken, given its group and mode, and left clean. No HTTP.

use std::io;
use std::path::Path;

use shared::local_socket::LocalSocket;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio_util::either::Either;

use super::{Address, GatewayError};

/// A handler's connection.
pub(super) type Stream = Either<UnixStream, TcpStream>;

pub(super) struct Listener {
    address: Address,
    socket: Either<LocalSocket, TcpListener>,
}

impl Listener {
    /// Takes the socket; its file goes when this is dropped.
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
            Either::Left(listener) => Ok(Either::Left(listener.accept().await?)),
            Either::Right(listener) => {
                let stream = listener.accept().await?.0;
                stream.set_nodelay(true)?;
                Ok(Either::Right(stream))
            }
        }
    }
}

async fn bind_unix(path: &Path, group: Option<&str>) -> Result<LocalSocket, GatewayError> {
    let group = match group {
        Some(name) => Some(group_id(name, &groups(name).await?)?),
        None => None,
    };
    Ok(LocalSocket::bind(path, group).await?)
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
}
