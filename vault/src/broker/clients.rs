//! Which client names are connected: one connection each. Knows no socket; whoever must go is told by
//! a token, and whoever waits for its going is told too.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::openwire::{ConnectionId, Text};

/// A connection that was cut gives its queues' messages back within this time.
const LEAVES_WITHIN: Duration = Duration::from_secs(10);

/// The names in use. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Clients {
    known: Arc<Mutex<HashMap<Text, Known>>>,
}

#[derive(Debug)]
struct Known {
    connection: ConnectionId,
    from: SocketAddr,
    cut: CancellationToken,
    gone: CancellationToken,
}

/// A name's place; the name is free again when it is dropped. Hold it longer than the queues' session.
#[derive(Debug)]
pub(super) struct Place {
    clients: Clients,
    name: Text,
    /// Cancelled when the same client has come back on another connection.
    pub(super) cut: CancellationToken,
    gone: CancellationToken,
}

impl Clients {
    /// Takes a name. A client that was cut off and comes `again` takes the place of its own old
    /// connection, whose socket may still look alive.
    ///
    /// # Errors
    /// Whose it is.
    pub(super) async fn enter(
        &self,
        name: &Text,
        connection: &ConnectionId,
        from: SocketAddr,
        again: bool,
    ) -> Result<Place, SocketAddr> {
        let deadline = tokio::time::Instant::now() + LEAVES_WITHIN;
        loop {
            let (holder, gone) = match self.locked().entry(name.detached()) {
                Entry::Vacant(free) => {
                    let (cut, gone) = (CancellationToken::new(), CancellationToken::new());
                    let known = Known { connection: detached(connection), from, cut, gone };
                    let known = free.insert(known);
                    return Ok(Place {
                        clients: self.clone(),
                        name: name.detached(),
                        cut: known.cut.clone(),
                        gone: known.gone.clone(),
                    });
                }
                Entry::Occupied(taken) => {
                    let known = taken.get();
                    if !again || known.connection != *connection {
                        return Err(known.from);
                    }
                    known.cut.cancel();
                    (known.from, known.gone.clone())
                }
            };
            tokio::time::timeout_at(deadline, gone.cancelled()).await.map_err(|_| holder)?;
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.locked().len()
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<Text, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn detached(connection: &ConnectionId) -> ConnectionId {
    ConnectionId { value: connection.value.detached() }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.clients.locked().remove(&self.name);
        self.gone.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(name: &str) -> (Text, ConnectionId) {
        (Text::shortened(name), ConnectionId { value: Text::shortened(name) })
    }

    #[tokio::test]
    async fn a_second_connection_of_one_name_is_refused_until_the_first_is_gone() {
        let clients = Clients::default();
        let (first, second) = (SocketAddr::from(([127, 0, 0, 1], 1)), SocketAddr::from(([127, 0, 0, 1], 2)));
        let (name, connection) = who("a");
        let place = clients.enter(&name, &connection, first, false).await.unwrap();
        let other = who("b").1;
        assert_eq!(clients.enter(&name, &other, second, true).await.unwrap_err(), first);
        assert_eq!(clients.enter(&name, &connection, second, false).await.unwrap_err(), first);
        drop(place);
        clients.enter(&name, &other, second, false).await.unwrap();
    }

    #[tokio::test]
    async fn a_client_that_comes_back_cuts_its_own_old_connection_and_waits_for_its_end() {
        let clients = Clients::default();
        let from = SocketAddr::from(([127, 0, 0, 1], 1));
        let (name, connection) = who("a");
        let old = clients.enter(&name, &connection, from, false).await.unwrap();
        let cut = old.cut.clone();
        let ends = async move {
            cut.cancelled().await;
            drop(old);
        };
        let (place, ()) = tokio::join!(clients.enter(&name, &connection, from, true), ends);
        assert!(!place.unwrap().cut.is_cancelled());
        assert_eq!(clients.count(), 0);
    }
}
