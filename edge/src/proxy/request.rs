//! What the phases remember of one request. Knows results of the rooms; decides nothing.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use tokio::time::Instant;

use crate::admission::Permit;
use crate::client::Client;
use crate::listen::connection::Connection;
use crate::listen::live::Busy;
use crate::proxy::refusal::Refusal;
use crate::route::Route;
use crate::upstream::Upstream;

/// One request's memory, made before its first phase and dropped after its last.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) began: Instant,
    pub(crate) id: String,
    pub(crate) connection: Option<Arc<Connection>>,
    /// Its connection is not idle while this request lives.
    pub(crate) busy: Option<Busy>,
    /// Of the bans, when this client was last looked up.
    pub(crate) generation: u64,
    pub(crate) client: Option<Client>,
    /// The client itself asks over TLS, whoever ends it.
    pub(crate) secure: bool,
    /// Held while the request is in flight; taken once, though phases may run again.
    pub(crate) permit: Option<Permit>,
    /// The target as sent, where a phase rewrote it.
    pub(crate) target: Option<Vec<u8>>,
    pub(crate) host: String,
    pub(crate) route: Option<Arc<Route>>,
    pub(crate) upstream: Option<Arc<Upstream>>,
    /// Servers that could not be reached, and the one that is asked now.
    pub(crate) tried: Vec<usize>,
    pub(crate) server: Option<usize>,
    pub(crate) server_name: Option<String>,
    /// What went wrong on the way to the servers, oldest first.
    pub(crate) attempts: Vec<String>,
    pub(crate) body_seen: u64,
    pub(crate) body_done: bool,
    /// Answers edge gave itself: what was refused, to be sent and logged.
    pub(crate) refusal: Option<Refusal>,
    /// For the log, once the refusal is sent.
    pub(crate) reason: Option<String>,
    /// It was refused for being a visitor's.
    pub(crate) spared: bool,
    pub(crate) status: u16,
    pub(crate) logged: bool,
}

impl Request {
    /// A request that begins now.
    pub(crate) fn new(id: String) -> Self {
        Self {
            began: Instant::now(),
            id,
            connection: None,
            busy: None,
            generation: 0,
            client: None,
            secure: false,
            permit: None,
            target: None,
            host: String::new(),
            route: None,
            upstream: None,
            tried: Vec::new(),
            server: None,
            server_name: None,
            attempts: Vec::new(),
            body_seen: 0,
            body_done: false,
            refusal: None,
            reason: None,
            spared: false,
            status: 0,
            logged: false,
        }
    }

    /// How the address begins that the client asks for.
    pub(crate) const fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }

    /// Who the log names: the client, or the socket's other end where that is not known.
    pub(crate) fn address(&self) -> IpAddr {
        match (self.client, &self.connection) {
            (Some(client), _) => client.address,
            (None, Some(connection)) => connection.client.address,
            (None, None) => IpAddr::from([0, 0, 0, 0]),
        }
    }

    /// It in words, which most requests' connections have already.
    pub(crate) fn address_in_words(&self) -> Cow<'_, str> {
        match &self.connection {
            Some(connection) if self.client.is_none_or(|client| client == connection.client) => {
                Cow::Borrowed(connection.address())
            }
            _ => Cow::Owned(self.address().to_string()),
        }
    }
}
