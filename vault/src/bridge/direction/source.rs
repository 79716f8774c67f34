//! A direction's connection to its source: takes the lock, reads what receipts lie there, then gives
//! what is dispatched and takes what the rules say. Knows OpenWire; not what a batch is for.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

use super::tries::{Tries, forget_told, tell_failure};
use super::work::Event;
use super::{Birth, Settings, badge, hex, random};
use crate::bridge::core::{Badge, Found, Input};
use crate::openwire::client::{Client, ClientError, Dispatches, Held, Login};
use crate::openwire::uri::Address;
use crate::openwire::{
    AckKind, BRIDGES, BrokerId, ConsumerId, ConsumerInfo, Destination, Head, LocalTransactionId, Message,
    MessageAck, MessageDispatch, MessageId, MessageKind, MessagePull, NetworkBridgeFilter, ProducerId,
    ProducerInfo, SessionId, SessionInfo, Text, TransactionAct, TransactionId, TransactionInfo,
};

/// A message that passed so many brokers goes round in circles: one of them has two names.
const MOST_HOPS: i32 = 32;
/// The broker waits so long before it says that no receipt lies there.
const LAST_RECEIPT: Duration = Duration::from_millis(300);
/// How long reading all receipts may take; there are one or two.
const RECEIPTS: Duration = Duration::from_secs(30);
/// A vault that stands back looks after so long whether it still is to.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// A vault without the lock reads its receipts so often.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// A broker that is away while another one answers is looked for so often.
const SEARCH_EVERY: Duration = Duration::from_secs(10);
/// Why it does not try.
pub(super) const STANDS_BACK: &str = "the other vault is to carry: it is preferred, or has room";
/// No journal comes so far: who writes such a receipt is not the bridge.
const NO_BATCH: u64 = 1 << 62;
/// Who is let in, if not this one: the names of the lock are the bridge's alone.
const TAKEN: &str = "the other vault carries: it holds the lock at the source";
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

/// For ever, or until nobody listens; tries nothing while it is to stand back.
pub(super) async fn run(
    settings: Arc<Settings>,
    birth: Birth,
    events: mpsc::Sender<Event>,
    mut stand_back: watch::Receiver<bool>,
) {
    let mut tries = Tries::new(&settings.from.uri);
    let mut prefetch = settings.prefetch;
    let (mut before, mut looked): (BTreeSet<String>, Option<Instant>) = (BTreeSet::new(), None);
    // Where the other vault holds the lock.
    let mut taken: Option<&Address> = None;
    while !events.is_closed() {
        if *stand_back.borrow_and_update() {
            drop(events.send(Event::Standby(STANDS_BACK.to_owned())).await);
            if is_due(looked) {
                looked = tell_receipts(&settings, birth, tries.address(), &events).await;
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
        let (was_connected, error) = match Source::open(&settings, birth, address, &lock(&settings)).await {
            Ok(source) => {
                (looked, taken) = (None, None);
                (true, source.serve(prefetch, &events).await)
            }
            Err(error) if error.is_taken() && is_due(looked) => {
                looked = tell_receipts(&settings, birth, address, &events).await;
                (false, error)
            }
            Err(error) => (false, error),
        };
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
        tries.failed(was_connected.then(|| begun.elapsed())).await;
    }
}

/// The client id that only one vault of the pair can have.
fn lock(settings: &Settings) -> String {
    format!("{BRIDGES}{}", settings.name)
}

/// Looks for the broker from which uncertain batches were to be taken, as long as another one answers, at
/// every address of the URI. For ever, or until nobody listens.
pub(super) async fn search(
    settings: Arc<Settings>,
    birth: Birth,
    events: mpsc::Sender<Event>,
    mut wanted: watch::Receiver<bool>,
) {
    while wanted.wait_for(|it| *it).await.is_ok() {
        for address in &settings.from.uri.brokers {
            // One that is away is asked again.
            tell_receipts(&settings, birth, address, &events).await;
        }
        sleep(SEARCH_EVERY).await;
    }
}

/// Are the receipts to be read again? One may have come late.
fn is_due(looked: Option<Instant>) -> bool {
    looked.is_none_or(|at| at.elapsed() >= LOOK_EVERY)
}

/// What lies there of ours, for the direction; tells when it was read, if it was.
async fn tell_receipts(
    settings: &Arc<Settings>,
    birth: Birth,
    address: &Address,
    events: &mpsc::Sender<Event>,
) -> Option<Instant> {
    let found = look(settings, birth, address).await.ok()?;
    drop(events.send(Event::Receipts(found)).await);
    Some(Instant::now())
}

/// A vault without the lock reads its receipts, and leaves them there.
async fn look(settings: &Arc<Settings>, birth: Birth, address: &Address) -> Result<Found, ClientError> {
    let client_id = format!("{}-receipts-{}", lock(settings), settings.vault);
    let source = Source::open(settings, birth, address, &client_id).await?;
    let found = source.found();
    source.client.close().await;
    Ok(found)
}

/// The batch that a receipt tells of, if it is of this journal. Every user of the source may write one.
fn batch_of(receipt: &str, birth: Birth) -> Option<u64> {
    let (journal, number) = receipt.split_once(':')?;
    let number = number.parse::<u64>().ok().filter(|number| *number < NO_BATCH)?;
    (journal == hex(&birth)).then_some(number)
}

/// Was the message at the target, or does it go round in circles? A broker that was asked for others
/// alone forgets that of a durable subscription when it starts again (ActiveMQ 5.17).
fn was_there(message: &Message, target: &BrokerId) -> bool {
    let path = message.broker_path.as_deref().unwrap_or_default();
    path.contains(target) || i32::try_from(path.len()).is_ok_and(|hops| hops > MOST_HOPS)
}

struct Source {
    settings: Arc<Settings>,
    birth: Birth,
    client: Client,
    dispatches: Dispatches,
    badges: BTreeSet<Badge>,
    /// Receipts that were dispatched here, by their batch; one of another journal has none.
    receipts: Vec<(Option<u64>, MessageId)>,
    transactions: i64,
}

impl Source {
    /// Connects, and reads what of ours lies there.
    async fn open(
        settings: &Arc<Settings>,
        birth: Birth,
        address: &Address,
        client_id: &str,
    ) -> Result<Self, ClientError> {
        let login = settings.from.login().await?;
        let connection_id = format!("ID:vault-bridge-{:08x}{:08x}-0:1", random(), random());
        let login = Login { client_id: client_id.to_owned(), connection_id, ..login };
        let (client, mut dispatches) = Client::connect(address, &login).await?;
        let session_id = SessionId { connection: client.connection_id().value.clone(), value: SESSION };
        client.tell(SessionInfo { head: Head::default(), session_id: session_id.clone() }).await?;
        let badges = badge::read(&client, &mut dispatches, &session_id, &settings.badge()).await?;
        let mut source = Self {
            settings: settings.clone(),
            birth,
            client,
            dispatches,
            badges,
            receipts: Vec::new(),
            transactions: 0,
        };
        source.client.request(source.receipt_consumer()).await?;
        let read = timeout(RECEIPTS, source.read_receipts()).await;
        read.map_err(|_| ClientError::Late("all receipts", RECEIPTS))??;
        Ok(source)
    }

    async fn read_receipts(&mut self) -> Result<(), ClientError> {
        loop {
            self.pull(i64::try_from(LAST_RECEIPT.as_millis()).unwrap_or_default()).await?;
            match self.dispatches.next().await?.message {
                Some(message) => self.keep_receipt(&message),
                None => return Ok(()),
            }
        }
    }

    fn keep_receipt(&mut self, message: &Message) {
        let text = message.correlation_id.as_ref().map(ToString::to_string).unwrap_or_default();
        self.receipts.push((batch_of(&text, self.birth), message.message_id.clone()));
    }

    fn found(&self) -> Found {
        let receipts = self.receipts.iter().filter_map(|(batch, _)| *batch).collect();
        Found { badges: self.badges.clone(), receipts }
    }

    /// Until the connection ends, or nobody listens.
    async fn serve(mut self, prefetch: u16, events: &mpsc::Sender<Event>) -> ClientError {
        let (asks, mut asked) = mpsc::channel(MOST_ASKS);
        let (give, messages) = mpsc::channel(usize::from(prefetch));
        let link = Link { asks, messages, found: self.found() };
        if let Err(error) = self.client.request(self.producer_info()).await {
            return error;
        }
        if link.found.receipts.is_empty()
            // One may be dispatched late.
            && let Err(error) = self.pull(0).await
        {
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
        self.keep_receipt(&message);
        if let Some((Some(batch), _)) = self.receipts.last() {
            drop(events.send(Event::Told(Input::Receipt(*batch))).await);
        }
        None
    }

    /// One transaction: the batch is acknowledged, its receipt sent, spent ones acknowledged. Its parts
    /// ask for no answers: for an acknowledgement with one the source syncs every message by itself. A
    /// source that refuses a part commits nothing (as in [`super::target`]).
    fn take(
        &mut self,
        take: Take,
    ) -> impl Future<Output = Result<Option<Input<Arc<Message>>>, ClientError>> + use<> {
        self.transactions += 1;
        let local =
            LocalTransactionId { value: self.transactions, connection: self.client.connection_id().clone() };
        let transaction = TransactionId::Local(local);
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
        // One of another journal is of no use to anybody.
        let is_spent =
            |(batch, _): &mut (Option<u64>, MessageId)| batch.is_none_or(|it| take.spent.contains(&it));
        let spent: Vec<_> = self.receipts.extract_if(.., is_spent).collect();
        acknowledgements.extend(spent.into_iter().map(|(_, id)| MessageAck {
            transaction_id: Some(transaction.clone()),
            ..self.individual(self.receipt_queue(), RECEIPT_CONSUMER, id)
        }));
        let mut receipt = Message::new(
            MessageKind::Plain,
            self.producer_id().message(self.transactions),
            self.receipt_queue(),
        );
        receipt.transaction_id = Some(transaction.clone());
        receipt.timestamp = super::now();
        receipt.correlation_id = Some(Text::shortened(&format!("{}:{}", hex(&self.birth), take.batch)));
        let connection_id = Some(self.client.connection_id().clone());
        let act = move |act| TransactionInfo {
            head: Head::default(),
            connection_id: connection_id.clone(),
            transaction_id: Some(transaction.clone()),
            act,
        };
        let (client, pull) = (self.client.clone(), self.receipt_pull(0));
        async move {
            client.tell(act(TransactionAct::Begin)).await?;
            for acknowledgement in acknowledgements {
                client.tell(acknowledgement).await?;
            }
            client.tell(receipt).await?;
            client.request(act(TransactionAct::Commit)).await?;
            client.tell(pull).await?;
            Ok(Some(Input::Taken))
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

    async fn pull(&self, wait: i64) -> Result<(), ClientError> {
        self.client.tell(self.receipt_pull(wait)).await
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

    #[test]
    fn a_receipt_of_another_journal_or_of_no_number_that_one_comes_to_tells_nothing() {
        let birth = [7; 16];
        let receipt = |number: &str| batch_of(&format!("{}:{number}", hex(&birth)), birth);
        assert_eq!(receipt("12"), Some(12));
        assert_eq!(receipt(&(NO_BATCH - 1).to_string()), Some(NO_BATCH - 1));
        for forged in [NO_BATCH, u64::MAX / 2, u64::MAX] {
            assert_eq!(receipt(&forged.to_string()), None, "{forged}");
        }
        for forged in ["", "-1", "1.5", "18446744073709551616", "12:12"] {
            assert_eq!(receipt(forged), None, "{forged}");
        }
        assert_eq!(batch_of(&format!("{}:12", hex(&[8; 16])), birth), None);
        assert_eq!(batch_of("12", birth), None);
    }
}
