//! Logs in at the brokers that bridges name, as the bridges will, and leaves again: for `vault check`.
//! Takes and sends nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::timeout;

use super::direction::random;
use super::{Place, Plan};
use crate::openwire::client::{Client, ClientError, Login};
use crate::openwire::uri::Address;

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
    let places: BTreeMap<&str, &Place> = plans
        .iter()
        .flat_map(|plan| [&plan.from, &plan.to].map(|place| (place.name.as_str(), place)))
        .collect();
    join_all(places.into_values().map(visit)).await.concat()
}

async fn visit(place: &Place) -> Vec<Found> {
    let login = match place.login().await {
        Ok(login) => login,
        Err(error) => return vec![Found::Fault(format!("remote_broker {}: {error}", place.name))],
    };
    let login = &login;
    let each = place.uri.brokers.iter().map(|address| async move {
        let name = format!("remote_broker {}: {address}", place.name);
        match timeout(PATIENCE, log_in(address, login)).await {
            Ok(Ok(())) => Found::Fine(format!("{name}: logged in")),
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

async fn log_in(address: &Address, login: &Login) -> Result<(), ClientError> {
    let id = format!("vault-check-{:08x}{:08x}", random(), random());
    let login = Login { client_id: id.clone(), connection_id: format!("ID:{id}-0:1"), ..login.clone() };
    let (client, _dispatches) = Client::connect(address, &login).await?;
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
