//! A direction's connection to its source: takes the lock, reads what receipts lie there, then gives
//! what is dispatched and takes what the rules say. Knows OpenWire; not what a batch is for.

mod receipts;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

use super::tries::{Tries, forget_told, tell_failure};
use super::work::Event;
use super::{Birth, Settings, badge, hex, random};
use crate::bridge::core::{Badge, Found, Input, Needed};
use crate::openwire::client::{Client, ClientError, Dispatches, Held, Login};
use crate::openwire::uri::Address;
use crate::openwire::{
    AckKind, BRIDGES, BrokerId, ConsumerId, ConsumerInfo, Destination, Head, LocalTransactionId, Message,
    MessageAck, MessageDispatch, MessageId, MessageKind, MessagePull, NetworkBridgeFilter, ProducerId,
    ProducerInfo, SessionId, SessionInfo, Text, TransactionAct, TransactionId, TransactionInfo,
};
use receipts::Receipts;

/// A message that passed so many brokers goes round in circles: one of them has two names.
const MOST_HOPS: i32 = 32;
/// The broker waits so long before it says that no receipt lies there.
const LAST_RECEIPT: Duration = Duration::from_millis(300);
/// So long the broker may say nothing while receipts are read. Mostly there are one or two; all that lie there
/// are read, however long it takes.
const STANDSTILL: Duration = Duration::from_secs(30);
/// What takes longer is told, and again after so long.
const LONG: Duration = Duration::from_secs(10);
/// Receipts that are of no use are taken away in such portions.
const PORTION: u64 = 500;
/// Receipts that were dispatched and not taken away; more are not asked for.
const MOST_KEPT: usize = 1000;
/// The broker let this vault in and told nothing more: the other one may try for so long, beside its longest wait.
const ROOM_FOR_THE_OTHER: Duration = Duration::from_secs(5);
/// A vault that stands back looks after so long whether it still is to.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// A vault without the lock reads its receipts so often.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// A broker that is away while another one answers is looked for so often.
const SEARCH_EVERY: Duration = Duration::from_secs(10);
/// Why it does not try.
pub(super) const STANDS_BACK: &str = "the other vault is to carry: it is preferred, or has room";
/// Who is let in, if not this one: the names of the lock are the bridge's alone.
const TAKEN: &str = "the other vault carries: it holds the lock at the source";
/// What is late if none of them is told.
const RECEIPTS: &str = "a look at its receipts";
/// Asks that wait.
const MOST_ASKS: usize = 4;

const SESSION: i64 = 1;
const RECEIPT_CONSUMER: i64 = 1;
const CONSUMER: i64 = 2;

/// An open connection, for the direction.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) asks: mpsc::Sender<Ask>,
    /// Each counts as waiting until the rules have it.
    pub(super) messages: mpsc::Receiver<(Arc<Message>, Held)>,
    /// What of ours lay at the source.
    pub(super) found: Found,
}

/// What the rules want of the source.
#[derive(Debug)]
pub(super) enum Ask {
    Consume,
    Take(Box<Take>),
}

/// See [`crate::bridge::core::Step::Take`].
#[derive(Debug)]
pub(super) struct Take {
    pub(super) batch: u64,
    pub(super) first: MessageId,
    pub(super) last: MessageId,
    pub(super) count: usize,
    pub(super) spent: Vec<u64>,
}

/// An ask at work, and what the rules are told when it is done.
type Work = BoxFuture<'static, Result<Option<Input<Arc<Message>>>, ClientError>>;

/// What the connections of a direction to its source share.
#[derive(Debug, Clone)]
pub(super) struct Ways {
    pub(super) settings: Arc<Settings>,
    pub(super) birth: Birth,
    pub(super) events: mpsc::Sender<Event>,
    /// Which receipts tell something yet.
    pub(super) needed: watch::Receiver<Needed>,
    /// Who is connected with the lock; nobody, if there is none.
    pub(super) connected: watch::Sender<BTreeSet<Badge>>,
}

/// For ever, or until nobody listens; tries nothing while it is to stand back.
pub(super) async fn run(ways: Ways, mut stand_back: watch::Receiver<bool>) {
    let Ways { settings, events, connected, .. } = &ways;
    let mut tries = Tries::new(&settings.from.uri);
    let mut prefetch = settings.prefetch;
    let (mut before, mut looked): (BTreeSet<String>, Option<Instant>) = (BTreeSet::new(), None);
    // Where the other vault holds the lock.
    let mut taken: Option<&Address> = None;
    while !events.is_closed() {
        if *stand_back.borrow_and_update() {
            drop(events.send(Event::Standby(STANDS_BACK.to_owned())).await);
            if is_due(looked) {
                looked = ways.tell_receipts(tries.address()).await;
                if looked.is_none() {
                    tries.failed(None).await;
                }
            }
            match timeout(LOOK_AGAIN, stand_back.wait_for(|it| !*it)).await {
                Ok(Err(_)) => return,
                Ok(Ok(_)) | Err(_) => continue,
            }
        }
        let (begun, address) = (Instant::now(), tries.address());
        let opened = ways.open(address).await;
        let (was_connected, error) = match opened {
            Ok(source) => {
                (looked, taken) = (None, None);
                (true, source.serve(prefetch, events).await)
            }
            Err(error) if error.is_taken() && is_due(looked) => {
                looked = ways.tell_receipts(address).await;
                (false, error)
            }
            Err(error) => (false, error),
        };
        connected.send_replace(BTreeSet::new());
        if matches!(error, ClientError::GivenUp) && !*stand_back.borrow() {
            // Whoever let it go wants another.
            continue;
        }
        // An answer that lies behind too many bytes: fewer messages at a time.
        prefetch = if error.is_overrun() { prefetch / 4 } else { prefetch.saturating_mul(2) }
            .clamp(1, settings.prefetch);
        let why = error.to_string();
        let event = if error.is_taken() && !was_connected {
            taken = Some(address);
            Some(Event::Standby(TAKEN.to_owned()))
        } else if was_connected && *stand_back.borrow() {
            // It was given up here.
            Some(Event::Standby(STANDS_BACK.to_owned()))
        } else {
            forget_told(&mut before, was_connected.then(|| begun.elapsed()));
            tell_failure(&settings.name, "source", &mut before, &why);
            // Another address of the URI answers nobody: the other vault carries all the same.
            let is_standby = taken.is_some_and(|it| it != address);
            taken = taken.filter(|_| is_standby);
            (!is_standby).then_some(Event::SourceLost(why))
        };
        if let Some(event) = event {
            drop(events.send(event).await);
        }
        if matches!(error, ClientError::Late(what, _) if what == RECEIPTS) {
            sleep(settings.from.uri.longest_wait.min(STANDSTILL) + ROOM_FOR_THE_OTHER).await;
        }
        tries.failed(was_connected.then(|| begun.elapsed())).await;
    }
}

/// The client id that only one vault of the pair can have.
fn lock(settings: &Settings) -> String {
    format!("{BRIDGES}{}", settings.name)
}

/// Looks for the broker from which uncertain batches were to be taken, as long as another one answers, at
/// every address of the URI. For ever, or until nobody listens.
pub(super) async fn search(ways: Ways, mut wanted: watch::Receiver<bool>) {
    while wanted.wait_for(|it| *it).await.is_ok() {
        for address in &ways.settings.from.uri.brokers {
            // One that is away is asked again.
            ways.tell_receipts(address).await;
        }
        sleep(SEARCH_EVERY).await;
    }
}

/// Are the receipts to be read again? One may have come late.
fn is_due(looked: Option<Instant>) -> bool {
    looked.is_none_or(|at| at.elapsed() >= LOOK_EVERY)
}

impl Ways {
    /// Takes the lock, and reads what of ours lies there.
    async fn open(&self, address: &Address) -> Result<Source, ClientError> {
        let mut source = Source::connect(self, address, &lock(&self.settings)).await?;
        // From now on nobody else of ours reads there.
        self.connected.send_replace(source.badges.clone());
        source.read_receipts(&self.needed).await?;
        Ok(source)
    }

    /// What lies there of ours, for the direction; tells when it was read, if it was.
    async fn tell_receipts(&self, address: &Address) -> Option<Instant> {
        let found = self.look(address).await.ok()??;
        drop(self.events.send(Event::Receipts(found)).await);
        Some(Instant::now())
    }

    /// A connection without the lock reads this vault's receipts, and leaves there those that tell something. None
    /// where the broker is the one that is connected with it: two readers would take them from each other.
    async fn look(&self, address: &Address) -> Result<Option<Found>, ClientError> {
        let client_id = format!("{}-receipts-{}", lock(&self.settings), self.settings.vault);
        let mut source = Source::connect(self, address, &client_id).await?;
        let is_connected = !self.connected.borrow().is_disjoint(&source.badges);
        let found = if is_connected {
            None
        } else {
            source.read_receipts(&self.needed).await?;
            Some(source.found())
        };
        source.client.close().await;
        Ok(found)
    }
}

/// Was the message at the target, or does it go round in circles? A broker that was asked for others
/// alone forgets that of a durable subscription when it starts again (ActiveMQ 5.17).
fn was_there(message: &Message, target: &BrokerId) -> bool {
    let path = message.broker_path.as_deref().unwrap_or_default();
    path.contains(target) || i32::try_from(path.len()).is_ok_and(|hops| hops > MOST_HOPS)
}

struct Source {
    settings: Arc<Settings>,
    client: Client,
    dispatches: Dispatches,
    badges: BTreeSet<Badge>,
    receipts: Receipts,
    /// Is one asked for? Two asks may count as one, so there is one at a time, until all are here.
    is_asking: bool,
    transactions: i64,
}

impl Source {
    /// Connects, and finds out who it is.
    async fn connect(ways: &Ways, address: &Address, client_id: &str) -> Result<Self, ClientError> {
        let settings = ways.settings.clone();
        let login = settings.from.login().await?;
        let connection_id = format!("ID:vault-bridge-{:08x}{:08x}-0:1", random(), random());
        let login = Login { client_id: client_id.to_owned(), connection_id, ..login };
        let (client, mut dispatches) = Client::connect(address, &login).await?;
        let session_id = SessionId { connection: client.connection_id().value.clone(), value: SESSION };
        client.tell(SessionInfo { head: Head::default(), session_id: session_id.clone() }).await?;
        let badges = badge::read(&client, &mut dispatches, &session_id, &settings.badge()).await?;
        Ok(Self {
            settings,
            client,
            dispatches,
            badges,
            receipts: Receipts::new(ways.birth),
            is_asking: false,
            transactions: 0,
        })
    }

    /// All that lie there; those that tell nothing are taken away.
    async fn read_receipts(&mut self, needed: &watch::Receiver<Needed>) -> Result<(), ClientError> {
        self.client.request(self.receipt_consumer()).await?;
        let (mut read, mut gone, mut told) = (0_u64, 0, Instant::now());
        let mut is_over = false;
        while !is_over {
            self.client
                .tell(self.receipt_pull(i64::try_from(LAST_RECEIPT.as_millis()).unwrap_or_default()))
                .await?;
            let dispatch = timeout(STANDSTILL, self.dispatches.next()).await;
            match dispatch.map_err(|_| ClientError::Late(RECEIPTS, STANDSTILL))??.message {
                Some(message) => {
                    self.receipts.put(&message);
                    read += 1;
                }
                None => is_over = true,
            }
            if is_over || read.is_multiple_of(PORTION) {
                let useless = self.receipts.useless(&needed.borrow());
                gone += useless.len();
                self.take_away(useless).await?;
            }
            if told.elapsed() >= LONG {
                told = Instant::now();
                let (name, queue) = (&self.settings.name, self.settings.receipts());
                tracing::info!(
                    bridge = %name,
                    "bridge {name}: reads what lies in {queue} at the source before it takes anything: {read} so far, \
                     {gone} of them of no use any more and taken away"
                );
            }
        }
        Ok(())
    }

    /// Takes these receipts from the queue, in one transaction.
    async fn take_away(&mut self, useless: Vec<MessageId>) -> Result<(), ClientError> {
        if useless.is_empty() {
            return Ok(());
        }
        let transaction = self.next_transaction();
        self.client.tell(self.act(&transaction, TransactionAct::Begin)).await?;
        for id in useless {
            self.client.tell(self.spent(id, &transaction)).await?;
        }
        self.client.request(self.act(&transaction, TransactionAct::Commit)).await.map(drop)
    }

    fn found(&self) -> Found {
        Found { badges: self.badges.clone(), receipts: self.receipts.batches() }
    }

    /// Until the connection ends, or nobody listens.
    async fn serve(mut self, prefetch: u16, events: &mpsc::Sender<Event>) -> ClientError {
        let (asks, mut asked) = mpsc::channel(MOST_ASKS);
        let (give, messages) = mpsc::channel(usize::from(prefetch));
        let link = Link { asks, messages, found: self.found() };
        if let Err(error) = self.client.request(self.producer_info()).await {
            return error;
        }
        // One may be dispatched late.
        if let Err(error) = self.ask_for_receipt().await {
            return error;
        }
        drop(events.send(Event::Holding(link)).await);
        let mut work: Option<Work> = None;
        loop {
            let is_free = work.is_none();
            let done = async {
                match work.as_mut() {
                    Some(work) => work.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                done = done => {
                    work = None;
                    match done {
                        Ok(Some(input)) => drop(events.send(Event::Told(input)).await),
                        Ok(None) => {}
                        Err(error) => return error,
                    }
                }
                ask = asked.recv(), if is_free => match ask {
                    Some(Ask::Consume) => {
                        let (client, info) = (self.client.clone(), self.consumer(prefetch));
                        work = Some(Box::pin(async move { client.request(info).await.map(|_| None) }));
                    }
                    Some(Ask::Take(take)) => work = Some(Box::pin(self.take(*take))),
                    // The direction has let go of this connection.
                    None => return ClientError::GivenUp,
                },
                (room, dispatch) = async { (give.reserve().await, self.dispatches.next_held().await) } => {
                    let (dispatch, held) = match dispatch {
                        Ok(dispatch) => dispatch,
                        Err(error) => return error,
                    };
                    let Ok(room) = room else { return ClientError::GivenUp };
                    if let Some(message) = self.dispatched(*dispatch, events).await {
                        room.send((Arc::new(message), held));
                    }
                }
            }
        }
    }

    /// A message for the direction; a receipt is kept.
    async fn dispatched(
        &mut self,
        dispatch: MessageDispatch,
        events: &mpsc::Sender<Event>,
    ) -> Option<Message> {
        let message = dispatch.message?;
        if dispatch.consumer_id.value != RECEIPT_CONSUMER {
            if !was_there(&message, &self.settings.to.mark()) {
                return Some(message);
            }
            drop(events.send(Event::Circled(message.message_id.clone())).await);
            // What is told to a connection that ends is dispatched again.
            let _ended = self
                .client
                .tell(self.individual(self.settings.destination.clone(), CONSUMER, message.message_id))
                .await;
            return None;
        }
        self.is_asking = false;
        let told = match self.receipts.put(&message) {
            Some(batch) => {
                drop(events.send(Event::Told(Input::Receipt(batch))).await);
                Ok(())
            }
            // One of another journal is of no use to anybody.
            None => {
                let foreign =
                    self.receipts.foreign().into_iter().map(|id| {
                        self.client.tell(self.individual(self.receipt_queue(), RECEIPT_CONSUMER, id))
                    });
                futures_util::future::try_join_all(foreign).await.map(drop)
            }
        };
        // A connection that has ended tells so by itself.
        let _ended = told.and(self.ask_for_receipt().await);
        None
    }

    /// For the next one, as long as few are here.
    async fn ask_for_receipt(&mut self) -> Result<(), ClientError> {
        if self.is_asking || self.receipts.len() >= MOST_KEPT {
            return Ok(());
        }
        self.is_asking = true;
        self.client.tell(self.receipt_pull(0)).await
    }

    /// One transaction: the batch is acknowledged, its receipt sent, spent ones acknowledged. Its parts
    /// ask for no answers: for an acknowledgement with one the source syncs every message by itself. A
    /// source that refuses a part commits nothing (as in [`super::target`]).
    fn take(
        &mut self,
        take: Take,
    ) -> impl Future<Output = Result<Option<Input<Arc<Message>>>, ClientError>> + use<> {
        let transaction = self.next_transaction();
        let mut acknowledgements = vec![MessageAck {
            head: Head::default(),
            destination: self.settings.destination.clone(),
            transaction_id: Some(transaction.clone()),
            consumer_id: self.consumer_id(CONSUMER),
            kind: AckKind::Standard,
            first: Some(take.first),
            last: take.last,
            count: i32::try_from(take.count).unwrap_or(i32::MAX),
            poison_cause: None,
        }];
        let spent = self.receipts.spent(&take.spent);
        acknowledgements.extend(spent.into_iter().map(|id| self.spent(id, &transaction)));
        let mut receipt = Message::new(
            MessageKind::Plain,
            self.producer_id().message(self.transactions),
            self.receipt_queue(),
        );
        receipt.transaction_id = Some(transaction.clone());
        receipt.timestamp = super::now();
        receipt.correlation_id =
            Some(Text::shortened(&format!("{}:{}", hex(&self.receipts.birth()), take.batch)));
        let begin = self.act(&transaction, TransactionAct::Begin);
        let commit = self.act(&transaction, TransactionAct::Commit);
        let asks = !self.is_asking && self.receipts.len() < MOST_KEPT;
        self.is_asking |= asks;
        let pull = asks.then(|| self.receipt_pull(0));
        let client = self.client.clone();
        async move {
            client.tell(begin).await?;
            for acknowledgement in acknowledgements {
                client.tell(acknowledgement).await?;
            }
            client.tell(receipt).await?;
            client.request(commit).await?;
            if let Some(pull) = pull {
                client.tell(pull).await?;
            }
            Ok(Some(Input::Taken))
        }
    }

    fn next_transaction(&mut self) -> TransactionId {
        self.transactions += 1;
        let connection = self.client.connection_id().clone();
        TransactionId::Local(LocalTransactionId { value: self.transactions, connection })
    }

    fn act(&self, transaction: &TransactionId, act: TransactionAct) -> TransactionInfo {
        TransactionInfo {
            head: Head::default(),
            connection_id: Some(self.client.connection_id().clone()),
            transaction_id: Some(transaction.clone()),
            act,
        }
    }

    /// Acknowledges a receipt.
    fn spent(&self, id: MessageId, transaction: &TransactionId) -> MessageAck {
        MessageAck {
            transaction_id: Some(transaction.clone()),
            ..self.individual(self.receipt_queue(), RECEIPT_CONSUMER, id)
        }
    }

    /// Acknowledges one message, in no transaction.
    fn individual(&self, destination: Destination, consumer: i64, id: MessageId) -> MessageAck {
        MessageAck {
            head: Head::default(),
            destination,
            transaction_id: None,
            consumer_id: self.consumer_id(consumer),
            kind: AckKind::Individual,
            first: Some(id.clone()),
            last: id,
            count: 1,
            poison_cause: None,
        }
    }

    /// Asks for one receipt; `wait` in milliseconds, 0 for ever.
    fn receipt_pull(&self, wait: i64) -> MessagePull {
        MessagePull {
            head: Head::default(),
            consumer_id: self.consumer_id(RECEIPT_CONSUMER),
            destination: self.receipt_queue(),
            timeout: wait,
            correlation_id: None,
            message_id: None,
        }
    }

    fn consumer_id(&self, value: i64) -> ConsumerId {
        ConsumerId { connection: self.client.connection_id().value.clone(), session: SESSION, value }
    }

    fn producer_id(&self) -> ProducerId {
        ProducerId { connection: self.client.connection_id().value.clone(), value: 1, session: SESSION }
    }

    fn receipt_queue(&self) -> Destination {
        Destination::queue(Text::shortened(&self.settings.receipts()))
    }

    fn receipt_consumer(&self) -> ConsumerInfo {
        ConsumerInfo::new(self.consumer_id(RECEIPT_CONSUMER), self.receipt_queue(), 0)
    }

    /// All that was not at the target before, as far as bridges tell. Of a topic it is a durable
    /// subscription.
    fn consumer(&self, prefetch: u16) -> ConsumerInfo {
        let filter = NetworkBridgeFilter {
            network_broker: self.settings.to.mark(),
            message_ttl: MOST_HOPS,
            consumer_ttl: 1,
        };
        let destination = self.settings.destination.clone();
        let is_topic = destination.kind == crate::openwire::DestinationKind::Topic;
        ConsumerInfo {
            subscription: is_topic.then(|| Text::shortened(&self.settings.name)),
            additional_predicate: Some(filter),
            ..ConsumerInfo::new(self.consumer_id(CONSUMER), destination, i32::from(prefetch))
        }
    }

    fn producer_info(&self) -> ProducerInfo {
        ProducerInfo {
            head: Head::default(),
            producer_id: self.producer_id(),
            destination: None,
            broker_path: None,
            dispatch_async: false,
            window: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_was_at_the_target_or_passed_too_many_brokers_goes_no_further() {
        let broker = |name: &str| BrokerId { value: Text::shortened(name) };
        let producer = ProducerId { connection: Text::shortened("p"), value: 1, session: 1 };
        let queue = Destination::queue(Text::shortened("orders"));
        let mut message = Message::new(MessageKind::Plain, producer.message(1), queue);
        let mut passed = |path: Option<Vec<BrokerId>>| {
            message.broker_path = path;
            was_there(&message, &broker("dmz"))
        };
        assert!(!passed(None) && !passed(Some(vec![broker("erp"), broker("lab")])));
        assert!(passed(Some(vec![broker("dmz"), broker("erp")])));
        let hops = |number: usize| Some(vec![broker("erp"); number]);
        assert!(!passed(hops(32)) && passed(hops(33)));
    }
}
