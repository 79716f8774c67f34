//! Which broker answers: a message of ours that lies there tells, the broker's *badge*. Where none lies one is
//! made. It is browsed and never taken, so that it stays, and no network of brokers moves it on. Knows
//! OpenWire; not what follows from it.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::timeout;

use super::{fresh, hex, now, random};
use crate::bridge::core::Badge;
use crate::openwire::client::{Client, ClientError, Dispatches};
use crate::openwire::{
    ConsumerId, ConsumerInfo, Destination, Head, Message, MessageKind, ObjectId, ProducerId, ProducerInfo,
    RemoveInfo, SessionId, Text,
};

/// How long reading may take.
const READING: Duration = Duration::from_secs(30);
/// More than will ever lie there.
const MOST: i32 = 100;
/// Consumers of the session with lower numbers are not ours.
const FIRST_CONSUMER: i64 = 100;

/// The badges in this queue; one at least. Call while nothing is consumed over the connection.
///
/// # Errors
/// The connection's end, or the broker refuses: the account needs every right to the queue.
pub(super) async fn read(
    client: &Client,
    dispatches: &mut Dispatches,
    session: &SessionId,
    queue: &Destination,
) -> Result<BTreeSet<Badge>, ClientError> {
    let reading = async {
        let mut consumers = FIRST_CONSUMER..;
        let mut browse = async || {
            let value = consumers.next().unwrap_or(FIRST_CONSUMER);
            let id = ConsumerId { connection: session.connection.clone(), session: session.value, value };
            browse(client, dispatches, id, queue).await
        };
        let found = browse().await?;
        if !found.is_empty() {
            return Ok(found);
        }
        make(client, session, queue).await?;
        // One that was made before, and was not seen, counts as well.
        browse().await
    };
    let found = timeout(READING, reading).await.map_err(|_| ClientError::Late("a badge", READING))??;
    if found.is_empty() { Err(ClientError::Late("a badge", READING)) } else { Ok(found) }
}

/// All that lie there; a message without one ends a browse.
async fn browse(
    client: &Client,
    dispatches: &mut Dispatches,
    id: ConsumerId,
    queue: &Destination,
) -> Result<BTreeSet<Badge>, ClientError> {
    let info = ConsumerInfo { browser: true, ..ConsumerInfo::new(id.clone(), queue.clone(), MOST) };
    client.request(info).await?;
    let mut found = BTreeSet::new();
    while let Some(message) = dispatches.next().await?.message {
        found.extend(badge(&message));
    }
    let object = ObjectId::Consumer(id);
    client.request(RemoveInfo { head: Head::default(), object, last_delivered: -2 }).await?;
    Ok(found)
}

fn badge(message: &Message) -> Option<Badge> {
    let text = message.correlation_id.as_ref()?.to_string();
    u128::from_str_radix(&text, 16).ok().map(u128::to_be_bytes)
}

/// Sends a new one; durable when the broker has answered.
async fn make(client: &Client, session: &SessionId, queue: &Destination) -> Result<(), ClientError> {
    // Not one that may have sent over a connection of the same name before: the broker compares.
    let value = (i64::from(random()) << 31) | i64::from(random() >> 1);
    let producer = ProducerId { connection: session.connection.clone(), value, session: session.value };
    let info = ProducerInfo {
        head: Head::default(),
        producer_id: producer.clone(),
        destination: None,
        broker_path: None,
        dispatch_async: false,
        window: 0,
    };
    client.request(info).await?;
    let mut message = Message::new(MessageKind::Plain, producer.message(1), queue.clone());
    message.timestamp = now();
    message.correlation_id = Some(Text::shortened(&hex(&fresh())));
    client.request(message).await?;
    let object = ObjectId::Producer(producer);
    client.request(RemoveInfo { head: Head::default(), object, last_delivered: -2 }).await.map(drop)
}
