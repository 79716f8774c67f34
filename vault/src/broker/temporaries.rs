//! Which temporary queues there are, and who is told of their coming and going: clients that watch for
//! it send to no other. Knows no queue's inside.
//!
//! Source: ActiveMQ's advisory messages, `ActiveMQ.Advisory.TempQueue`, as its Java client reads them.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::broadcast;

use crate::openwire::properties::{Properties, Value};
use crate::openwire::{
    BrokerId, Command, ConnectionId, ConsumerId, DataStructure, Destination, DestinationAct, DestinationInfo,
    DestinationKind, Head, Message, MessageDispatch, MessageId, MessageKind, ProducerId, Text,
};

/// News that wait for a slow watcher; whoever misses some is told of all again.
const NEWS: usize = 1024;
/// So many are told at once of all that there are.
const PORTION: usize = 64;
/// What begins the name of every topic on which a broker tells of itself.
const ADVISORY: &str = "ActiveMQ.Advisory.";
const TOPIC: &str = "ActiveMQ.Advisory.TempQueue";

/// A temporary queue has come or gone.
#[derive(Debug, Clone)]
pub(super) struct News {
    act: DestinationAct,
    name: Text,
}

/// All temporary queues. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Temporaries {
    known: Arc<Mutex<BTreeSet<Text>>>,
    news: broadcast::Sender<News>,
    told: Arc<AtomicI64>,
    broker: BrokerId,
    name: Text,
}

/// One connection's ear for them.
#[derive(Debug)]
pub(super) struct Watch {
    all: Temporaries,
    consumer: ConsumerId,
    news: broadcast::Receiver<News>,
    /// While it is told of all that there are: the last one told, in their order; empty at first.
    upto: Option<Text>,
}

/// Is it a topic on which a broker tells of itself, or a list of such? They are all silent but one.
pub(super) fn is_advisory(topic: &Destination) -> bool {
    topic.kind == DestinationKind::Topic
        && topic.name.to_string().split(',').all(|name| bare(name).starts_with(ADVISORY))
}

/// Does it tell of temporary queues?
pub(super) fn tells_of_temporaries(topic: &Destination) -> bool {
    is_advisory(topic) && topic.name.to_string().split(',').any(|name| bare(name) == TOPIC)
}

fn bare(name: &str) -> &str {
    let name = name.trim();
    name.strip_prefix("topic://").unwrap_or(name)
}

impl Temporaries {
    pub(super) fn new(broker: BrokerId, name: Text) -> Self {
        let news = broadcast::Sender::new(NEWS);
        Self { known: Arc::default(), news, told: Arc::default(), broker, name }
    }

    /// It is there.
    pub(super) fn add(&self, name: &Text) {
        let name = name.detached();
        let mut known = self.locked();
        known.insert(name.clone());
        // Told under the lock, so that nobody who begins to watch misses it or hears of its end first.
        let _nobody = self.news.send(News { act: DestinationAct::Add, name });
    }

    /// It is there no more.
    pub(super) fn remove(&self, name: &Text) {
        let mut known = self.locked();
        if known.remove(name) {
            let _nobody = self.news.send(News { act: DestinationAct::Remove, name: name.detached() });
        }
    }

    /// Watches on behalf of a consumer, which is told of all that there are first.
    pub(super) fn watch(&self, consumer: ConsumerId) -> Watch {
        Watch { all: self.clone(), consumer, news: self.news.subscribe(), upto: Some(Text::default()) }
    }

    fn locked(&self) -> MutexGuard<'_, BTreeSet<Text>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch {
    /// What the consumer is told next. May be dropped while it waits.
    pub(super) async fn next(&mut self) -> Vec<Command> {
        loop {
            if let Some(portion) = self.portion() {
                return portion;
            }
            match self.news.recv().await {
                Ok(news) => return vec![self.advisory(news.act, &news.name)],
                Err(broadcast::error::RecvError::Lagged(_)) => {
                    self.news = self.news.resubscribe();
                    self.upto = Some(Text::default());
                }
                // The sender lives in `all`.
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    }

    /// Has it not heard of all that there are yet?
    pub(super) fn is_telling_all(&self) -> bool {
        self.upto.is_some()
    }

    /// The next of all that there are. What comes or goes meanwhile is among the news, which are told
    /// behind them: it may be told twice, and is never missed.
    fn portion(&mut self) -> Option<Vec<Command>> {
        let upto = self.upto.take()?;
        let known = self.all.locked();
        let behind = known.range((Bound::Excluded(upto), Bound::Unbounded));
        let names: Vec<Text> = behind.take(PORTION).cloned().collect();
        drop(known);
        self.upto = names.last().filter(|_| names.len() == PORTION).cloned();
        Some(names.iter().map(|name| self.advisory(DestinationAct::Add, name)).collect())
    }

    fn advisory(&self, act: DestinationAct, name: &Text) -> Command {
        let topic = Destination::topic(Text::shortened(TOPIC));
        let producer = ProducerId { connection: self.all.broker.value.clone(), value: 0, session: 0 };
        let number = self.all.told.fetch_add(1, Ordering::Relaxed);
        let id = MessageId { text_view: None, producer, producer_sequence: number, broker_sequence: 0 };
        let about = DestinationInfo {
            head: Head::default(),
            connection_id: Some(ConnectionId { value: owner(name) }),
            destination: Destination { kind: DestinationKind::TempQueue, name: name.clone() },
            act,
            timeout: 0,
            broker_path: None,
        };
        let mut origin = Properties::default();
        for (key, text) in [("originBrokerId", &self.all.broker.value), ("originBrokerName", &self.all.name)]
        {
            origin.set(Text::shortened(key), Value::String(text.clone()));
        }
        let mut message = Message::new(MessageKind::Plain, id, topic.clone());
        message.persistent = false;
        message.jms_type = Some(Text::shortened("Advisory"));
        message.data_structure = Some(DataStructure::Command(Box::new(about.into())));
        message.properties = Some(origin.to_bytes());
        Command::from(MessageDispatch {
            head: Head::default(),
            consumer_id: self.consumer.clone(),
            destination: Some(topic),
            message: Some(message),
            redelivery_counter: 0,
        })
    }
}

/// A temporary queue is called after the connection that made it.
fn owner(name: &Text) -> Text {
    let name = name.to_string();
    Text::shortened(name.rsplit_once(':').map_or(&*name, |(owner, _)| owner))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(commands: &[Command]) -> Vec<(DestinationAct, String)> {
        let about = |command: &Command| {
            let Command::MessageDispatch(dispatch) = command else { panic!("{command:?}") };
            let message = dispatch.message.as_ref().unwrap();
            let Some(DataStructure::Command(about)) = &message.data_structure else { panic!("{message:?}") };
            let Command::DestinationInfo(about) = &**about else { panic!("{about:?}") };
            (about.act, about.destination.name.to_string())
        };
        commands.iter().map(about).collect()
    }

    #[tokio::test]
    async fn a_watcher_hears_what_is_there_and_what_comes_and_goes() {
        let name = |name| Text::shortened(name);
        let all = Temporaries::new(BrokerId { value: name("ID:b") }, name("b"));
        all.add(&name("ID:a:1"));
        let consumer = ConsumerId { connection: name("c"), session: -1, value: 1 };
        let mut watch = all.watch(consumer);
        assert!(watch.is_telling_all());
        assert_eq!(told(&watch.next().await), [(DestinationAct::Add, "ID:a:1".to_owned())]);
        assert!(!watch.is_telling_all());
        all.add(&name("ID:a:2"));
        all.remove(&name("ID:a:1"));
        all.remove(&name("unknown"));
        assert_eq!(told(&watch.next().await), [(DestinationAct::Add, "ID:a:2".to_owned())]);
        assert_eq!(told(&watch.next().await), [(DestinationAct::Remove, "ID:a:1".to_owned())]);
        for number in 0..2 * NEWS {
            all.add(&Text::shortened(&format!("ID:a:{number}")));
        }
        let mut again = 0;
        while again < 2 * NEWS {
            let portion = watch.next().await.len();
            assert!((1..=PORTION).contains(&portion), "{portion} at once");
            again += portion;
        }
        assert_eq!(again, 2 * NEWS, "a slow one is told of all");
    }

    #[test]
    fn the_java_clients_own_topics_are_known() {
        let topic = |name| Destination::topic(Text::shortened(name));
        let both = topic("ActiveMQ.Advisory.TempQueue,ActiveMQ.Advisory.TempTopic");
        assert!(is_advisory(&both) && tells_of_temporaries(&both));
        let other = topic("ActiveMQ.Advisory.Consumer.Queue.a");
        assert!(is_advisory(&other) && !tells_of_temporaries(&other));
        assert!(!is_advisory(&topic("news")) && !is_advisory(&topic("ActiveMQ.Advisory.TempQueue,news")));
        assert!(!is_advisory(&Destination::queue(Text::shortened("ActiveMQ.Advisory.TempQueue"))));
    }
}
