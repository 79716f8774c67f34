//! Which client names are connected, each user's for itself: one connection each. Knows no socket;
//! whoever must go is told by a token, and whoever waits for its going is told too.
//!
//! Names are chosen by clients and stand in every message that they send, so none of them proves
//! anything: only the same user takes a connection's place, and only whose an id is (see [`super::ids`]) has
//! the temporary queues that are called after it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::openwire::{ConnectionId, Text};

use super::ids::Ids;

/// A connection that was cut gives its queues' messages back within this time.
const LEAVES_WITHIN: Duration = Duration::from_secs(10);

/// Who a connection says it is. Its user is proved, all else is its own choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Who {
    /// Empty where everybody is let in: then all are alike.
    pub(super) user: Arc<str>,
    /// The client id, or the connection's.
    pub(super) name: Text,
    pub(super) connection: ConnectionId,
}

/// The names in use. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Clients {
    inside: Arc<Mutex<Inside>>,
}

#[derive(Debug, Default)]
struct Inside {
    known: HashMap<(Arc<str>, Text), Known>,
    ids: Ids,
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
    who: Who,
    /// Is its connection's id its own? Another connection has it otherwise, or another user had it lately.
    pub(super) has_id: bool,
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
    pub(super) async fn enter(&self, who: Who, from: SocketAddr, again: bool) -> Result<Place, SocketAddr> {
        let deadline = Instant::now() + LEAVES_WITHIN;
        loop {
            let (holder, gone) = match self.take(&who, from, again)? {
                Ok(place) => return Ok(place),
                Err(leaving) => leaving,
            };
            tokio::time::timeout_at(deadline, gone.cancelled()).await.map_err(|_| holder)?;
        }
    }

    /// The place, or whose old connection has to go first and when it is gone.
    fn take(
        &self,
        who: &Who,
        from: SocketAddr,
        again: bool,
    ) -> Result<Result<Place, (SocketAddr, CancellationToken)>, SocketAddr> {
        let Inside { known, ids } = &mut *self.locked();
        match known.entry((Arc::clone(&who.user), who.name.clone())) {
            Entry::Vacant(free) => {
                let (cut, gone) = (CancellationToken::new(), CancellationToken::new());
                let connection = who.connection.clone();
                free.insert(Known { connection, from, cut: cut.clone(), gone: gone.clone() });
                let has_id = ids.take(&who.user, &who.connection.value, Instant::now());
                Ok(Ok(Place { clients: self.clone(), who: who.clone(), has_id, cut, gone }))
            }
            Entry::Occupied(taken) => {
                let known = taken.get();
                if !again || known.connection != who.connection {
                    return Err(known.from);
                }
                if !known.cut.is_cancelled() {
                    tracing::info!(
                        "broker: old connection from {} closed: its client {:?}, {}, is back from {from}",
                        known.from,
                        who.name.to_string(),
                        who.named()
                    );
                }
                known.cut.cancel();
                Ok(Err((known.from, known.gone.clone())))
            }
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.locked().known.len()
    }

    fn locked(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Who {
    /// In words.
    fn named(&self) -> String {
        if self.user.is_empty() { "without a user".to_owned() } else { format!("user {}", self.user) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Inside { known, ids } = &mut *self.clients.locked();
        known.remove(&(Arc::clone(&self.who.user), self.who.name.clone()));
        if self.has_id {
            ids.leave(&self.who.connection.value, Instant::now());
        }
        self.gone.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(user: &str, name: &str, connection: &str) -> Who {
        let connection = ConnectionId { value: Text::shortened(connection) };
        Who { user: user.into(), name: Text::shortened(name), connection }
    }

    fn from(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[tokio::test]
    async fn a_second_connection_of_one_name_is_refused_until_the_first_is_gone() {
        let clients = Clients::default();
        let (name, other) = (who("", "a", "a"), who("", "a", "b"));
        let place = clients.enter(name.clone(), from(1), false).await.unwrap();
        assert_eq!(clients.enter(other.clone(), from(2), true).await.unwrap_err(), from(1));
        assert_eq!(clients.enter(name, from(2), false).await.unwrap_err(), from(1));
        drop(place);
        clients.enter(other, from(2), false).await.unwrap();
    }

    #[tokio::test]
    async fn a_client_that_comes_back_cuts_its_own_old_connection_and_waits_for_its_end() {
        let clients = Clients::default();
        let name = who("erp", "a", "a");
        let old = clients.enter(name.clone(), from(1), false).await.unwrap();
        let cut = old.cut.clone();
        let ends = async move {
            cut.cancelled().await;
            drop(old);
        };
        let (place, ()) = tokio::join!(clients.enter(name, from(1), true), ends);
        let place = place.unwrap();
        assert!(!place.cut.is_cancelled() && place.has_id);
        drop(place);
        assert_eq!(clients.count(), 0);
    }

    #[tokio::test]
    async fn another_user_takes_neither_a_place_nor_an_id_nor_keeps_anybody_out() {
        let clients = Clients::default();
        let alice = clients.enter(who("alice", "a", "ID:a"), from(1), false).await.unwrap();
        let mallory = clients.enter(who("mallory", "a", "ID:a"), from(2), true).await.unwrap();
        assert!(!alice.cut.is_cancelled());
        assert!(alice.has_id && !mallory.has_id);
        drop((alice, mallory));
        let early = clients.enter(who("mallory", "a", "ID:a"), from(2), false).await.unwrap();
        let back = clients.enter(who("alice", "a", "ID:a"), from(1), true).await.unwrap();
        assert!(back.has_id && !early.has_id, "it is hers while she is away");
        drop(early);
        assert!(!clients.enter(who("alice", "b", "ID:a"), from(1), false).await.unwrap().has_id);
    }
}
