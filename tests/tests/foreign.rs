//! Stories of what the bridge takes for granted of a foreign broker, told by the bridge's own client
//! to a real ActiveMQ. Bridges themselves stand in `bridge.rs`.
#![expect(clippy::unwrap_used, reason = "a story's own steps fail the story when they fail")]

use std::time::Duration;

use harness::activemq::ActiveMq;
use harness::broker::{Broker, Seat};
use harness::cluster::temporary_folder;
use harness::java_client::{Acknowledge, JavaClient, Login};
use vault::openwire::client::{Client, ClientError, Dispatches, Login as Account};
use vault::openwire::uri::Uri;
use vault::openwire::{
    AckKind, Command, ConsumerId, ConsumerInfo, Destination, Head, LocalTransactionId, Message, MessageAck,
    MessageId, MessageKind, ProducerId, ProducerInfo, SessionId, SessionInfo, Text, TransactionAct,
    TransactionId, TransactionInfo,
};

/// Long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long nothing must come for nothing to be taken as the answer.
const QUIET: Duration = Duration::from_secs(1);
const NAME: &str = "ID:story-0:1";
/// Nobody may write into the queues of `closed`. What several entries allow adds up.
const CLOSED: &str = r#"<authorizationPlugin><map><authorizationMap><authorizationEntries>
<authorizationEntry queue="orders.>" read="users" write="users" admin="users"/>
<authorizationEntry queue="receipts" read="users" write="users" admin="users"/>
<authorizationEntry queue="closed.>" read="users" write="nobody" admin="users"/>
<authorizationEntry topic=">" read="users" write="users" admin="users"/>
</authorizationEntries></authorizationMap></map></authorizationPlugin>"#;

fn account() -> (String, String) {
    ("vault".to_owned(), "right".to_owned())
}

fn guarded(folder: &std::path::Path) -> Broker {
    let (user, password) = account();
    let seat = Seat::new("guarded").unwrap().with_account(&user, &password);
    let plugins = vec![CLOSED.to_owned()];
    ActiveMq { plugins, ..ActiveMq::at(seat) }.start(folder).unwrap()
}

/// One connection with a session and a producer, and its transaction.
struct Teller {
    client: Client,
    dispatches: Dispatches,
    sent: i64,
}

impl Teller {
    async fn connect(broker: &Broker) -> Self {
        let uri: Uri = broker.uri().parse().unwrap();
        let (user, password) = account();
        let login = Account {
            client_id: "story".to_owned(),
            connection_id: NAME.to_owned(),
            user: Some(user),
            password: Some(password),
            patience: PATIENCE,
            ..Account::default()
        };
        let (client, dispatches) = Client::connect(&uri.brokers[0], &login).await.unwrap();
        let session_id = SessionId { connection: Text::shortened(NAME), value: 1 };
        client.tell(SessionInfo { head: Head::default(), session_id }).await.unwrap();
        let info = ProducerInfo {
            head: Head::default(),
            producer_id: producer(),
            destination: None,
            broker_path: None,
            dispatch_async: false,
            window: 0,
        };
        client.request(info).await.unwrap();
        Self { client, dispatches, sent: 0 }
    }

    async fn tell(&self, command: impl Into<Command>) {
        // Once the broker has told of a failure nothing more can be said.
        let _ended = self.client.tell(command).await;
    }

    async fn act(&self, act: TransactionAct) -> Result<Command, ClientError> {
        let info = TransactionInfo {
            head: Head::default(),
            connection_id: Some(self.client.connection_id().clone()),
            transaction_id: Some(transaction(&self.client)),
            act,
        };
        self.client.request(info).await
    }

    /// In the transaction.
    async fn send(&mut self, queue: &str) {
        let message = Message { transaction_id: Some(transaction(&self.client)), ..self.message(queue) };
        self.tell(message).await;
    }

    fn message(&mut self, queue: &str) -> Message {
        self.sent += 1;
        let id = producer().message(self.sent);
        let message = Message::new(MessageKind::Plain, id, Destination::queue(Text::shortened(queue)));
        Message { persistent: true, ..message }
    }

    /// The commit is refused, and what the broker told of the refused part comes too.
    async fn commits_nothing(mut self, reason: &str) {
        assert!(self.act(TransactionAct::Commit).await.is_err(), "the commit is refused");
        let told = loop {
            match tokio::time::timeout(PATIENCE, self.dispatches.next()).await.unwrap() {
                Ok(_) => {}
                Err(told) => break told.to_string(),
            }
        };
        assert!(told.contains(reason), "{told}");
    }
}

fn producer() -> ProducerId {
    ProducerId { connection: Text::shortened(NAME), value: 1, session: 1 }
}

fn transaction(client: &Client) -> TransactionId {
    TransactionId::Local(LocalTransactionId { value: 1, connection: client.connection_id().clone() })
}

fn run(story: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(story);
}

/// So many messages lie in a queue.
fn waiting(folder: &std::path::Path, broker: &Broker, queue: &str) -> usize {
    let (user, password) = account();
    let java = JavaClient::start(folder).unwrap();
    let login = Login::to(&broker.uri()).account(&user, &password);
    let session = java.connect(&login).unwrap().session(Acknowledge::Auto).unwrap();
    let consumer = session.consumer(queue).unwrap();
    std::iter::from_fn(|| consumer.receive(QUIET).unwrap()).count()
}

#[test]
fn activemq_commits_nothing_of_a_transaction_of_which_it_refused_a_message_unasked() {
    let folder = temporary_folder().unwrap();
    let broker = guarded(folder.path());
    run(async {
        let mut teller = Teller::connect(&broker).await;
        teller.act(TransactionAct::Begin).await.unwrap();
        for queue in ["orders.a", "closed.b", "orders.a"] {
            teller.send(queue).await;
        }
        teller.commits_nothing("not authorized to write to: queue://closed.b").await;
    });
    assert_eq!(waiting(folder.path(), &broker, "orders.a"), 0);
}

#[test]
fn activemq_commits_nothing_of_a_transaction_of_which_it_refused_an_acknowledgement_unasked() {
    let folder = temporary_folder().unwrap();
    let broker = guarded(folder.path());
    run(async {
        let mut teller = Teller::connect(&broker).await;
        let orders = Destination::queue(Text::shortened("orders.a"));
        let consumer_id = ConsumerId { connection: Text::shortened(NAME), session: 1, value: 1 };
        teller.client.request(ConsumerInfo::new(consumer_id.clone(), orders.clone(), 10)).await.unwrap();
        // Before it has given any it takes no notice of acknowledgements.
        let given = teller.message("orders.a");
        teller.client.request(given).await.unwrap();
        tokio::time::timeout(PATIENCE, teller.dispatches.next()).await.unwrap().unwrap();
        teller.act(TransactionAct::Begin).await.unwrap();
        let never_given: MessageId = producer().message(99);
        let transaction_id = Some(transaction(&teller.client));
        teller
            .tell(MessageAck {
                head: Head::default(),
                destination: orders,
                transaction_id,
                consumer_id,
                kind: AckKind::Standard,
                first: Some(never_given.clone()),
                last: never_given,
                count: 1,
                poison_cause: None,
            })
            .await;
        teller.send("receipts").await;
        teller.commits_nothing("acknowledg").await;
    });
    assert_eq!(waiting(folder.path(), &broker, "receipts"), 0);
}
