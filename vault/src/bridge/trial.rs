//! Logs in at the brokers that bridges name, as the bridges will, asks the sources for what is to be taken from
//! them, and leaves again: for `vault check`. Takes and sends nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::net::lookup_host;
use tokio::time::timeout;

use super::direction::random;
use super::{Place, Plan};
use crate::openwire::client::{Client, ClientError, Login};
use crate::openwire::uri::Address;
use crate::openwire::{ConsumerId, ConsumerInfo, Destination, Head, SessionId, SessionInfo};

/// A broker that needs longer for a login is as good as away.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was found of one broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// In its own words, also where it is merely away: that ends by itself.
    Fine(String),
    /// It needs the operator.
    Fault(String),
}

/// Tries every address of every broker, all at once; a line each.
pub async fn try_out(plans: &[Plan]) -> Vec<Found> {
    // What is to be taken from each.
    let mut places: BTreeMap<&str, (&Place, Vec<&Destination>)> = BTreeMap::new();
    for Plan { from, to, destination, .. } in plans {
        places.entry(&from.name).or_insert((from, Vec::new())).1.push(destination);
        places.entry(&to.name).or_insert((to, Vec::new()));
    }
    join_all(places.into_values().map(|(place, sources)| visit(place, sources))).await.concat()
}

async fn visit(place: &Place, sources: Vec<&Destination>) -> Vec<Found> {
    let login = match place.login().await {
        Ok(login) => login,
        Err(error) => return vec![Found::Fault(format!("remote_broker {}: {error}", place.name))],
    };
    let (login, sources) = (&login, &*sources);
    let each = place.uri.brokers.iter().map(|address| async move {
        let name = format!("remote_broker {}: {address}", place.name);
        let visited = timeout(PATIENCE, async {
            if let Err(error) = lookup_host((&*address.host, address.port)).await {
                return Ok(Some(error));
            }
            log_in(address, login, sources).await.map(|()| None)
        });
        match visited.await {
            Ok(Ok(None)) => Found::Fine(format!("{name}: logged in")),
            // The name servers may be away.
            Ok(Ok(Some(error))) => Found::Fine(format!(
                "{name}: WARNING: its name has no address here: {error}; look at DNS, or write it into /etc/hosts"
            )),
            Ok(Err(error)) if needs_operator(&error) => {
                Found::Fault(format!("{name}: {}", once(&error.to_string(), address)))
            }
            Ok(Err(error)) => {
                Found::Fine(format!("{name}: WARNING: away: {}", once(&error.to_string(), address)))
            }
            Err(_) => Found::Fine(format!("{name}: WARNING: no answer within {} s", PATIENCE.as_secs())),
        }
    });
    join_all(each).await
}

/// Nothing is given to a consumer that asks for nothing, but it is refused as the bridge's would be.
async fn log_in(address: &Address, login: &Login, sources: &[&Destination]) -> Result<(), ClientError> {
    let id = format!("vault-check-{:08x}{:08x}", random(), random());
    let login = Login { client_id: id.clone(), connection_id: format!("ID:{id}-0:1"), ..login.clone() };
    let (client, _dispatches) = Client::connect(address, &login).await?;
    let session_id = SessionId { connection: client.connection_id().value.clone(), value: 1 };
    client.tell(SessionInfo { head: Head::default(), session_id: session_id.clone() }).await?;
    for (value, source) in (1..).zip(sources) {
        let SessionId { connection, value: session } = session_id.clone();
        let id = ConsumerId { connection, session, value };
        client.request(ConsumerInfo::new(id, (*source).clone(), 0)).await?;
    }
    client.close().await;
    Ok(())
}

/// A refusal or a certificate that is not trusted stays as it is.
fn needs_operator(error: &ClientError) -> bool {
    match error {
        ClientError::Reach { source, .. } => source.kind() == std::io::ErrorKind::InvalidData,
        other => other.exception().is_some(),
    }
}

/// Nothing is tried again here, and the address stands in front already.
fn once(text: &str, address: &Address) -> String {
    text.trim_start_matches(&format!("{address}: ")).trim_end_matches("; it is tried again").to_owned()
}
