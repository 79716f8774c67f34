//! A direction's connection to its target: sends rows in one transaction each time, under a
//! producer that is the same for ever, so that the target knows what it has. Knows OpenWire; not
//! where rows come from.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::tries::{Tries, forget_told, tell_failure};
use super::work::Event;
use super::{Birth, Settings, badge, hex, random};
use crate::bridge::core::{Badge, Input, Refusal, Row};
use crate::openwire::client::{Client, ClientError, Dispatches, Login};
use crate::openwire::uri::Address;
use crate::openwire::{
    BRIDGES, BrokerId, Head, LocalTransactionId, Message, MessageId, ProducerId, ProducerInfo, SessionId,
    SessionInfo, Text, TransactionAct, TransactionId, TransactionInfo,
};

/// How long the reason for a refused commit is waited for.
const REASON: Duration = Duration::from_secs(5);

/// What the rules want of the target.
#[derive(Debug)]
pub(super) enum Order {
    /// To send rows in one transaction; see [`crate::bridge::core::Step::Send`].
    Send { rows: Vec<Row<Arc<Message>>>, is_careful: bool },
    /// To go on to the next address.
    Leave,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Lost(#[from] ClientError),
    #[error(
        "{0} is another broker than the one where messages of this bridge may be already, so nothing is sent to \
         it; take it out of the URI, or see vault bridge accept"
    )]
    Strange(String),
}

/// For ever, or until nobody listens.
pub(super) async fn run(settings: Arc<Settings>, birth: Birth, events: mpsc::Sender<Event>) {
    let mut tries = Tries::new(&settings.to.uri);
    let mut before = BTreeSet::new();
    while !events.is_closed() {
        let begun = Instant::now();
        let address = tries.address();
        let (was_connected, ended) = match Target::open(&settings, birth, address).await {
            Ok(target) => match target.serve(&events, &mut tries).await {
                lost @ Ended::Lost(_) => (true, lost),
                strange @ Ended::Strange(_) => (false, strange),
            },
            Err(error) => (false, error.into()),
        };
        let why = ended.to_string();
        forget_told(&mut before, was_connected.then(|| begun.elapsed()));
        tell_failure(&settings.name, "target", &mut before, &why);
        let is_strange = matches!(ended, Ended::Strange(_));
        let event = if is_strange { Event::TargetStrange(why) } else { Event::TargetLost(why) };
        drop(events.send(event).await);
        tries.failed(was_connected.then(|| begun.elapsed())).await;
    }
}

struct Target {
    client: Client,
    dispatches: Dispatches,
    badges: BTreeSet<Badge>,
    address: String,
    producer: ProducerId,
    /// Where all of it comes from.
    from: BrokerId,
    transactions: i64,
}

impl Target {
    async fn open(settings: &Arc<Settings>, birth: Birth, address: &Address) -> Result<Self, ClientError> {
        let login = settings.to.login().await?;
        // The same for as long as the journal lives. A connection of before that the broker still
        // has is ended by this one.
        let name = format!("ID:vault-bridge-{}-{}", settings.name, hex(&birth));
        let login = Login {
            client_id: format!("{BRIDGES}to-{}-{:08x}{:08x}", settings.name, random(), random()),
            connection_id: name.clone(),
            resumes: true,
            ..login
        };
        let (client, mut dispatches) = Client::connect(address, &login).await?;
        let connection = Text::shortened(&name);
        let session_id = SessionId { connection: connection.clone(), value: 1 };
        let producer = ProducerId { connection, value: 1, session: 1 };
        client.tell(SessionInfo { head: Head::default(), session_id: session_id.clone() }).await?;
        let badges = badge::read(&client, &mut dispatches, &session_id, &settings.badge()).await?;
        let info = ProducerInfo {
            head: Head::default(),
            producer_id: producer.clone(),
            destination: None,
            broker_path: None,
            dispatch_async: false,
            window: 0,
        };
        client.request(info).await?;
        let (address, from) = (address.to_string(), settings.from.mark());
        Ok(Self { client, dispatches, badges, address, producer, from, transactions: 0 })
    }

    /// Until the connection ends, or nobody listens.
    async fn serve(mut self, events: &mpsc::Sender<Event>, tries: &mut Tries<'_>) -> Ended {
        let (give, mut orders) = mpsc::channel(1);
        drop(events.send(Event::TargetUp(give, self.badges.clone())).await);
        loop {
            let order = tokio::select! {
                order = orders.recv() => order,
                // Nothing is consumed here, so this is the end.
                ended = self.dispatches.next() => match ended {
                    Ok(_) => continue,
                    Err(error) => return error.into(),
                },
            };
            let (rows, is_careful) = match order {
                Some(Order::Send { rows, is_careful }) => (rows, is_careful),
                Some(Order::Leave) => return Ended::Strange(self.address),
                None => return ClientError::Closed.into(),
            };
            let sent = match self.send(&rows, is_careful).await {
                Ok(commit) => self.commit(commit).await.map_err(|error| (error, false)),
                Err(error) => Err((error, is_careful)),
            };
            match sent {
                Ok(()) => {
                    tries.worked();
                    drop(events.send(Event::Told(Input::Sent)).await);
                }
                Err((error, is_uncommitted)) => {
                    // The target counts what it saw of a transaction, so it begins anew over
                    // another connection.
                    if let Some(how) = how_refused(&error, is_uncommitted) {
                        tries.refused();
                        let why = error.to_string();
                        drop(events.send(Event::Told(Input::Refused { why, how })).await);
                    }
                    return error.into();
                }
            }
        }
    }

    /// Sends the rows, in one transaction, and gives what commits it. Its parts ask for no answers, so that
    /// the target syncs once and not for each of them; a target that refuses a part commits nothing and
    /// says why (ActiveMQ since 5.11 by its `rollbackOnlyOnAsyncException`). A careful one waits until
    /// the target has taken them in.
    async fn send(
        &mut self,
        rows: &[Row<Arc<Message>>],
        is_careful: bool,
    ) -> Result<TransactionInfo, ClientError> {
        self.transactions += 1;
        let connection = self.client.connection_id().clone();
        let local = LocalTransactionId { value: self.transactions, connection: connection.clone() };
        let transaction = TransactionId::Local(local);
        let act = |act| TransactionInfo {
            head: Head::default(),
            connection_id: Some(connection.clone()),
            transaction_id: Some(transaction.clone()),
            act,
        };
        self.client.tell(act(TransactionAct::Begin)).await?;
        for row in rows {
            let message = passed_on(&row.message, row.sequence, (&self.producer, &self.from), &transaction);
            match is_careful {
                true => drop(self.client.request(message).await?),
                false => self.client.tell(message).await?,
            }
        }
        Ok(act(TransactionAct::Commit))
    }

    async fn commit(&mut self, commit: TransactionInfo) -> Result<(), ClientError> {
        match self.client.request(commit).await {
            Err(refused @ ClientError::Refused(_)) => Err(self.reason().await.unwrap_or(refused)),
            committed => committed.map(drop),
        }
    }

    /// Why a commit was refused: what the target told of the part that it did not take, which also
    /// ends the connection. It was told before, but not always comes before.
    async fn reason(&mut self) -> Option<ClientError> {
        let told = async {
            loop {
                if let Err(ended) = self.dispatches.next().await {
                    return ended;
                }
            }
        };
        timeout(REASON, told).await.ok()
    }
}

/// Does the failure tell that nothing of what was sent is at the target, and never will be? A target that
/// falls silent may have no room.
fn how_refused(error: &ClientError, is_uncommitted: bool) -> Option<Refusal> {
    match error {
        it if it.is_too_long() => Some(Refusal::ForEver),
        it if it.is_for_good() => Some(Refusal::Answered),
        it if it.is_hung_up() && is_uncommitted => Some(Refusal::HungUp),
        _ => None,
    }
}

/// The message as it goes to the target: the same to whoever receives it, and under the bridge's
/// own producer to the broker.
fn passed_on(
    message: &Message,
    sequence: u64,
    (producer, from): (&ProducerId, &BrokerId),
    transaction: &TransactionId,
) -> Message {
    let mut path = message.broker_path.clone().unwrap_or_default();
    path.push(from.clone());
    Message {
        head: Head::default(),
        producer_id: Some(producer.clone()),
        transaction_id: Some(transaction.clone()),
        original_transaction_id: None,
        message_id: MessageId {
            text_view: Some(Text::shortened(&message.message_id.to_string())),
            ..producer.message(i64::try_from(sequence).unwrap_or(i64::MAX))
        },
        broker_path: Some(path),
        target_consumer: None,
        redelivery_counter: 0,
        broker_in_time: 0,
        broker_out_time: 0,
        ..message.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openwire::{Destination, MessageKind};

    #[test]
    fn a_message_goes_on_as_it_was_under_the_bridges_own_producer() {
        let id = |name: &str| ProducerId { connection: Text::shortened(name), value: 1, session: 1 };
        let queue = Destination::queue(Text::shortened("orders"));
        let mut original = Message::new(MessageKind::Text, id("ID:java-1").message(9), queue);
        original.redelivery_counter = 3;
        original.broker_path = Some(vec![BrokerId { value: Text::shortened("ID:a") }]);
        original.content = Some(vec![1, 2, 3].into());
        let local = LocalTransactionId {
            value: 4,
            connection: crate::openwire::ConnectionId { value: Text::shortened("ID:vault") },
        };
        let from = BrokerId { value: Text::shortened("ID:vault-bridge-erp") };
        let passed = passed_on(&original, 77, (&id("ID:vault"), &from), &TransactionId::Local(local));
        assert_eq!(passed.message_id.to_string(), "ID:java-1:1:1:9", "JMSMessageID stays");
        assert_eq!((passed.message_id.producer_sequence, passed.redelivery_counter), (77, 0));
        assert_eq!(passed.producer_id, Some(id("ID:vault")));
        let path: Vec<String> = passed.broker_path.unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(path, ["ID:a", "ID:vault-bridge-erp"]);
        assert_eq!((passed.content, passed.kind), (original.content, original.kind));
    }
}
