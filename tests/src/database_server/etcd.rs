//! etcd: how the members of one cluster are made, one or several.

use super::{DatabaseServer, Kind, Place};
use crate::ports;

/// Where a member that has an address of its own hears the others.
const PEER_PORT: u16 = 2380;

/// Makes one cluster of these members, and waits until all answer.
pub(super) fn cluster(places: Vec<Place>) -> anyhow::Result<Vec<DatabaseServer>> {
    let peers = places.iter().map(|place| match place.ip() {
        ip if ip.is_loopback() => Ok(format!("http://{}", ports::free()?)),
        ip => Ok(format!("http://{ip}:{PEER_PORT}")),
    });
    let peers: Vec<String> = peers.collect::<anyhow::Result<_>>()?;
    let all: Vec<String> =
        places.iter().zip(&peers).map(|(place, peer)| format!("{}={peer}", place.seat.name)).collect();
    let all = all.join(",");
    let members = places.into_iter().zip(&peers).map(|(place, peer)| {
        let client = format!("https://{}", place.seat.address);
        let arguments = vec![
            format!("--name={}", place.seat.name),
            format!("--data-dir={}", place.data.display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster={all}"),
            format!("--cert-file={}", place.certificate.display()),
            format!("--key-file={}", place.key.display()),
        ];
        place.launch(Kind::Etcd, "/usr/bin/etcd".into(), arguments)
    });
    let mut members: Vec<DatabaseServer> = members.collect::<anyhow::Result<_>>()?;
    members.iter_mut().try_for_each(DatabaseServer::wait_ready)?;
    Ok(members)
}
