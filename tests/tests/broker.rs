//! Stories of the vault's own broker, told by the stock Java client of ActiveMQ: each is called after
//! the behaviour that ActiveMQ documents. Those that harm nobody share one pair of vaults and one
//! virtual machine, each with queues of its own.
#![expect(clippy::unwrap_used, reason = "a story's own steps fail the story when they fail")]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::TcpStream;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Buf as _;
use harness::broker::failover;
use harness::cluster::temporary_folder;
use harness::java_client::{
    Acknowledge, Body, Connection, Consumer, Delivery, JavaClient, Kind, Letter, Load, Login, Received,
    Refusal, Session, Value, lines,
};
use harness::vault_host::{Pair, PairPlan};
use harness::{raw, wait};
use tempfile::TempDir;
use vault::openwire::{
    Command, ConnectionId, ConnectionInfo, ConsumerId, ConsumerInfo, Destination, Offer, Outgoing, Text,
};

const SOON: Duration = Duration::from_secs(20);
/// How long nothing must come for nothing to be taken as the answer.
const QUIET: Duration = Duration::from_millis(300);
/// Redelivered at once, once, and dead then.
const ONCE: &str = "jms.redeliveryPolicy.maximumRedeliveries=1&jms.redeliveryPolicy.initialRedeliveryDelay=0";
const OPEN: &str = "in_clear = true\nanonymous = true\n";

struct House {
    // Ends before the vaults do.
    java: JavaClient,
    pair: Pair,
    _folder: TempDir,
}

static HOUSE: Mutex<Weak<House>> = Mutex::new(Weak::new());

impl House {
    fn start(lines: &str) -> Self {
        let folder = temporary_folder().unwrap();
        let plan = PairPlan { broker: Some(lines.to_owned()), ..PairPlan::default() };
        let pair = Pair::start(folder.path(), &plan).unwrap();
        let java = JavaClient::start(folder.path()).unwrap();
        Self { java, pair, _folder: folder }
    }

    /// The one that stories share which run at the same time.
    fn shared() -> Arc<Self> {
        let mut known = HOUSE.lock().unwrap_or_else(PoisonError::into_inner);
        known.upgrade().unwrap_or_else(|| {
            let house = Arc::new(Self::start(OPEN));
            *known = Arc::downgrade(&house);
            house
        })
    }

    fn uri(&self) -> String {
        format!("tcp://{}", self.pair.vaults[0].broker)
    }

    fn connect(&self, options: &str) -> Connection {
        self.java.connect(&Login::to(&format!("{}?{options}", self.uri()))).unwrap()
    }

    fn session(&self, mode: Acknowledge) -> Session {
        self.connect("").session(mode).unwrap()
    }
}

fn put(session: &Session, queue: &str, texts: &[&str]) {
    for text in texts {
        session.send(queue, &Letter::text(text)).unwrap();
    }
}

fn take(consumer: &Consumer<'_>, count: usize) -> Vec<Received> {
    (0..count).map(|_| consumer.receive(SOON).unwrap().expect("nothing comes")).collect()
}

fn texts(received: &[Received]) -> Vec<&str> {
    received.iter().filter_map(Received::text).collect()
}

/// What each says of itself: its text, is it redelivered, how often was it delivered.
fn counted(received: &[Received]) -> Vec<(&str, bool, u32)> {
    received.iter().map(counts).collect()
}

fn counts(received: &Received) -> (&str, bool, u32) {
    (received.text().unwrap_or(""), received.redelivered, received.delivery_count)
}

fn waiting(session: &Session, queue: &str) -> Vec<String> {
    let seen = session.browse(queue, 1000).unwrap();
    texts(&seen).into_iter().map(str::to_owned).collect()
}

fn refused<T: std::fmt::Debug>(asked: anyhow::Result<T>) -> Refusal {
    let error = asked.unwrap_err();
    Refusal::of(&error).unwrap_or_else(|| panic!("{error:#}")).clone()
}

/// One value of every type that a property has.
fn values() -> BTreeMap<String, Value> {
    let values = [
        ("boolean", Value::Boolean(true)),
        ("byte", Value::Byte(i8::MIN)),
        ("short", Value::Short(i16::MIN)),
        ("int", Value::Int(i32::MIN)),
        ("long", Value::Long(i64::MIN)),
        ("float", Value::Float(-0.1)),
        ("double", Value::Double(f64::MIN_POSITIVE)),
        ("string", Value::String("Grüße\t\u{20ac} \"quoted\"".to_owned())),
        ("empty", Value::String(String::new())),
        ("null", Value::Null),
        ("list", Value::List(vec![Value::Int(1), Value::String("two".to_owned())])),
    ];
    values.map(|(name, value)| (name.to_owned(), value)).into()
}

/// A letter of every type, with every header and property that an application can set.
fn letters() -> Vec<Letter> {
    let mut content = values();
    content.insert("char".to_owned(), Value::Char('ß'));
    content.insert("string".to_owned(), Value::String("\u{0} \u{1f600}".to_owned()));
    content.insert("bytes".to_owned(), Value::Bytes(vec![0, 127, 128, 255]));
    let mut streamed: Vec<_> = content.values().cloned().collect();
    // Only maps hold lists.
    streamed.retain(|value| !matches!(value, Value::List(_)));
    let bodies = [
        Body::Plain,
        Body::Text(Some("Ein Brief \u{20ac}".to_owned())),
        Body::Text(None),
        Body::Bytes((0..=255).collect()),
        Body::Filled(200_000),
        Body::Map(content.clone()),
        Body::Stream(streamed),
        Body::Object(Value::Map(content)),
    ];
    let letter = |body| {
        let mut letter = Letter::new(body).reply_to("queue://answers");
        letter.correlation_id = Some("order-17".to_owned());
        letter.kind = Some("invoice".to_owned());
        letter.properties = values();
        letter
    };
    bodies.map(letter).into()
}

#[test]
fn every_type_of_message_arrives_with_all_headers_and_typed_properties_as_it_was_sent() {
    let house = House::shared();
    let receiver = house.session(Acknowledge::Auto);
    let consumer = receiver.consumer("letters").unwrap();
    for options in ["", "jms.useCompression=true", "jms.useAsyncSend=true"] {
        let sender = house.connect(options).session(Acknowledge::Auto).unwrap();
        for persistent in [true, false] {
            for letter in letters() {
                let delivery = Delivery { persistent, priority: 9, time_to_live: Duration::from_secs(3600) };
                let sent = sender.send_as("letters", &letter, delivery).unwrap();
                let arrived = consumer.receive(SOON).unwrap().expect("nothing arrives");
                assert_eq!(sent.differences(&arrived), Vec::<String>::new(), "{options}");
            }
        }
    }
    assert_eq!(consumer.receive(QUIET).unwrap(), None);
}

#[test]
fn auto_and_dups_ok_acknowledge_each_message_by_itself() {
    let house = House::shared();
    for (mode, queue) in [(Acknowledge::Auto, "auto"), (Acknowledge::DupsOk, "dups")] {
        let session = house.session(mode);
        put(&session, queue, &["1", "2", "3"]);
        let consumer = session.consumer(queue).unwrap();
        assert_eq!(texts(&take(&consumer, 2)), ["1", "2"]);
        drop(consumer);
        assert_eq!(waiting(&session, queue), ["3"]);
    }
}

#[test]
fn client_acknowledges_all_that_its_session_has_received() {
    let house = House::shared();
    let session = house.session(Acknowledge::Client);
    put(&session, "client", &["1", "2", "3", "4"]);
    let consumer = session.consumer("client").unwrap();
    let got = take(&consumer, 3);
    session.acknowledge(&got[1]).unwrap();
    drop(consumer);
    assert_eq!(waiting(&session, "client"), ["4"]);
}

#[test]
fn recover_has_all_that_is_unacknowledged_delivered_again_in_order_and_counted() {
    let house = House::shared();
    let session = house.session(Acknowledge::Client);
    put(&session, "recover", &["1", "2", "3"]);
    let consumer = session.consumer("recover").unwrap();
    assert_eq!(counted(&take(&consumer, 3)), [("1", false, 1), ("2", false, 1), ("3", false, 1)]);
    session.recover().unwrap();
    let again = take(&consumer, 3);
    assert_eq!(counted(&again), [("1", true, 2), ("2", true, 2), ("3", true, 2)]);
    session.acknowledge(&again[2]).unwrap();
    drop(consumer);
    assert!(waiting(&session, "recover").is_empty());
}

#[test]
fn individual_acknowledges_one_message_whatever_the_others_are() {
    let house = House::shared();
    let connection = house.connect("jms.prefetchPolicy.all=10");
    let session = connection.session(Acknowledge::Individual).unwrap();
    let numbers: Vec<String> = (0..40).map(|number| number.to_string()).collect();
    let numbers: Vec<&str> = numbers.iter().map(String::as_str).collect();
    put(&session, "singles", &numbers);
    let consumer = session.consumer("singles").unwrap();
    // Far more than its prefetch, none of the even ones acknowledged.
    let got = take(&consumer, 40);
    assert_eq!(texts(&got), numbers);
    for message in got.iter().skip(1).step_by(2) {
        session.acknowledge(message).unwrap();
    }
    drop(consumer);
    let left: Vec<&str> = numbers.iter().copied().step_by(2).collect();
    assert_eq!(waiting(&session, "singles"), left);
    let consumer = session.consumer("singles").unwrap();
    assert!(take(&consumer, 20).iter().all(|message| message.redelivered));
}

#[test]
fn a_transactions_messages_are_seen_at_its_commit_and_never_after_its_rollback() {
    let house = House::shared();
    let (session, other) = (house.session(Acknowledge::Transacted), house.session(Acknowledge::Auto));
    put(&session, "sent together", &["1", "2"]);
    assert!(waiting(&other, "sent together").is_empty());
    session.rollback().unwrap();
    put(&session, "sent together", &["3", "4"]);
    session.commit().unwrap();
    assert_eq!(waiting(&other, "sent together"), ["3", "4"]);
}

#[test]
fn rollback_has_messages_delivered_again_in_order_and_counted_and_commit_takes_them() {
    let house = House::shared();
    let session = house.session(Acknowledge::Transacted);
    put(&session, "rolled back", &["1", "2", "3"]);
    session.commit().unwrap();
    let consumer = session.consumer("rolled back").unwrap();
    assert_eq!(texts(&take(&consumer, 2)), ["1", "2"]);
    session.rollback().unwrap();
    assert_eq!(counted(&take(&consumer, 3)), [("1", true, 2), ("2", true, 2), ("3", false, 1)]);
    session.rollback().unwrap();
    assert_eq!(counted(&take(&consumer, 3)), [("1", true, 3), ("2", true, 3), ("3", true, 2)]);
    session.commit().unwrap();
    drop(consumer);
    assert!(waiting(&house.session(Acknowledge::Auto), "rolled back").is_empty());
}

#[test]
fn after_its_redeliveries_a_message_lies_in_activemq_dlq_with_its_origin_and_the_reason() {
    let house = House::shared();
    let session = house.connect(ONCE).session(Acknowledge::Transacted).unwrap();
    let sent = session.send("poison", &Letter::text("bitter")).unwrap();
    session.commit().unwrap();
    let consumer = session.consumer("poison").unwrap();
    for delivery in 1..3 {
        assert_eq!(counted(&take(&consumer, 1)), [("bitter", delivery > 1, delivery)]);
        session.rollback().unwrap();
    }
    assert_eq!(consumer.receive(QUIET).unwrap(), None);
    let other = house.session(Acknowledge::Auto);
    let dead = wait::until("it is a dead letter", SOON, || {
        let dead = other.browse("ActiveMQ.DLQ", 100)?;
        dead.into_iter().find(|dead| dead.id == sent.id).ok_or_else(|| anyhow::anyhow!("not yet"))
    });
    let dead = dead.unwrap();
    let cause = dead.properties.get("dlqDeliveryFailureCause");
    let Some(Value::String(cause)) = cause else { panic!("{dead:?}") };
    assert!(cause.contains("redelivery policy"), "{cause}");
    assert_eq!(dead.text(), Some("bitter"));
}

#[test]
fn higher_priorities_come_first() {
    let house = House::shared();
    let session = house.session(Acknowledge::Auto);
    for (text, priority) in [("low", 0), ("usual", 4), ("high", 9), ("usual too", 4)] {
        let delivery = Delivery { priority, ..Delivery::default() };
        session.send_as("priorities", &Letter::text(text), delivery).unwrap();
    }
    let consumer = session.consumer("priorities").unwrap();
    assert_eq!(texts(&take(&consumer, 4)), ["high", "usual", "usual too", "low"]);
}

#[test]
fn an_expired_message_is_not_delivered() {
    let house = House::shared();
    let session = house.session(Acknowledge::Auto);
    for (text, persistent) in [("kept", true), ("volatile", false)] {
        let time_to_live = Duration::from_millis(50);
        let delivery = Delivery { persistent, time_to_live, ..Delivery::default() };
        let sent = session.send_as("expires", &Letter::text(text), delivery).unwrap();
        wait::until("its time is over", SOON, || {
            let now = std::time::UNIX_EPOCH.elapsed()?.as_millis();
            anyhow::ensure!(now > u128::try_from(sent.expiration)?, "{now}");
            Ok(())
        })
        .unwrap();
    }
    put(&session, "expires", &["fresh"]);
    let consumer = session.consumer("expires").unwrap();
    assert_eq!(texts(&take(&consumer, 1)), ["fresh"]);
    assert_eq!(consumer.receive(QUIET).unwrap(), None);
}

#[test]
fn a_browser_sees_all_in_order_and_takes_nothing() {
    let house = House::shared();
    let session = house.session(Acknowledge::Auto);
    let many: Vec<String> = (0..700).map(|number| number.to_string()).collect();
    put(&session, "browsed", &many.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(waiting(&session, "browsed"), many, "more than its prefetch");
    assert_eq!(waiting(&session, "browsed"), many);
    assert!(waiting(&session, "never used").is_empty());
    let consumer = session.consumer("browsed").unwrap();
    assert_eq!(texts(&take(&consumer, 1)), ["0"]);
}

#[test]
fn a_receive_without_prefetch_waits_as_long_as_it_says() {
    let house = House::shared();
    let session = house.connect("jms.prefetchPolicy.all=0").session(Acknowledge::Auto).unwrap();
    let consumer = session.consumer("pulled").unwrap();
    assert_eq!(consumer.receive(Duration::ZERO).unwrap(), None);
    assert_eq!(consumer.receive(QUIET).unwrap(), None);
    put(&session, "pulled", &["1", "2", "3"]);
    let second = session.consumer("pulled").unwrap();
    assert_eq!(consumer.receive(Duration::ZERO).unwrap().unwrap().text(), Some("1"));
    assert_eq!(second.receive(SOON).unwrap().unwrap().text(), Some("2"));
    assert_eq!(consumer.receive(SOON).unwrap().unwrap().text(), Some("3"));
    assert_eq!(second.receive(Duration::ZERO).unwrap(), None);
}

#[test]
fn prefetch_1_shares_a_queue_fairly_between_two_consumers() {
    let house = House::shared();
    let [one, two] =
        [(); 2].map(|()| house.connect("jms.prefetchPolicy.all=1").session(Acknowledge::Auto).unwrap());
    let (left, right) = (one.consumer("shared").unwrap(), two.consumer("shared").unwrap());
    put(&one, "shared", &["1", "2", "3", "4", "5", "6"]);
    let mut got = Vec::new();
    for _ in 0..3 {
        got.extend(take(&left, 1));
        got.extend(take(&right, 1));
    }
    let mut seen = texts(&got);
    seen.sort_unstable();
    assert_eq!(seen, ["1", "2", "3", "4", "5", "6"]);
}

#[test]
fn what_a_closed_consumer_had_fetched_goes_back_to_the_front_for_the_next() {
    let house = House::shared();
    let session = house.session(Acknowledge::Client);
    put(&session, "handed over", &["1", "2", "3"]);
    let first = session.consumer("handed over").unwrap();
    assert_eq!(texts(&take(&first, 2)), ["1", "2"]);
    drop(first);
    let second = session.consumer("handed over").unwrap();
    // The application has seen two of them.
    assert_eq!(counted(&take(&second, 3)), [("1", true, 2), ("2", true, 2), ("3", false, 1)]);
}

#[test]
fn request_and_reply_go_over_a_temporary_queue_of_another_connection() {
    let house = House::shared();
    let (asks, answers) = (house.connect(""), house.connect(""));
    let (asking, answering) =
        (asks.session(Acknowledge::Auto).unwrap(), answers.session(Acknowledge::Auto).unwrap());
    let inbox = asking.temporary_queue().unwrap();
    let consumer = asking.consumer(&inbox).unwrap();
    asking.send("questions", &Letter::text("how much?").reply_to(&inbox)).unwrap();
    let asked = answering.consumer("questions").unwrap().receive(SOON).unwrap().unwrap();
    answering.send(&asked.reply_to.unwrap(), &Letter::text("17")).unwrap();
    assert_eq!(consumer.receive(SOON).unwrap().unwrap().text(), Some("17"));

    // Nobody else reads it.
    let foreign = refused(answering.consumer(&inbox));
    assert_eq!(foreign.class, "javax.jms.InvalidDestinationException", "{foreign}");
    drop(consumer);
    asking.delete_temporary(&inbox).unwrap();
    let gone = refused(asking.send(&inbox, &Letter::text("18")));
    assert_eq!(gone.class, "javax.jms.InvalidDestinationException", "{gone}");

    // It ends with its connection, even for a client that is told nothing.
    let inbox = asking.temporary_queue().unwrap();
    let deaf = house.connect("jms.watchTopicAdvisories=false").session(Acknowledge::Auto).unwrap();
    deaf.send(&inbox, &Letter::text("19")).unwrap();
    asks.close().unwrap();
    let gone = refused(deaf.send(&inbox, &Letter::text("20")));
    assert_eq!(gone.class, "javax.jms.InvalidDestinationException", "{gone}");
}

#[test]
fn a_producer_window_is_freed_message_by_message() {
    let house = House::shared();
    let options = "jms.producerWindowSize=3000&jms.useAsyncSend=true";
    let session = house.connect(options).session(Acknowledge::Auto).unwrap();
    for number in 0..20 {
        session.send("windowed", &Letter::text(&number.to_string())).unwrap();
    }
    let consumer = session.consumer("windowed").unwrap();
    assert_eq!(take(&consumer, 20).len(), 20);
}

/// Sends these to a queue, each in the group that its first letter names; "!" closes it.
fn put_grouped(session: &Session, queue: &str, texts: &[&str]) {
    for text in texts {
        let sequence = if text.ends_with('!') { -1 } else { 1 };
        session.send(queue, &Letter::text(text).group(&text[..1], sequence)).unwrap();
    }
}

#[test]
fn a_message_group_goes_to_one_consumer_until_that_one_ends_or_the_group_is_closed() {
    let house = House::shared();
    let [one, two] =
        [(); 2].map(|()| house.connect("jms.prefetchPolicy.all=1").session(Acknowledge::Auto).unwrap());
    let (left, right) = (one.consumer("grouped").unwrap(), two.consumer("grouped").unwrap());
    put_grouped(&one, "grouped", &["a1", "b1", "a2", "a3", "b2", "a4"]);
    let (lefts, rights) = (take(&left, 4), take(&right, 2));
    assert_eq!((texts(&lefts), texts(&rights)), (vec!["a1", "a2", "a3", "a4"], vec!["b1", "b2"]));
    assert!(lefts.iter().all(|letter| letter.group.as_deref() == Some("a")));
    // Closed by its last message, the group is whose turn it is.
    put_grouped(&two, "grouped", &["a5!", "a6", "a7"]);
    assert_eq!(texts(&take(&left, 1)), ["a5!"]);
    assert_eq!(texts(&take(&right, 2)), ["a6", "a7"]);
    drop(right);
    put_grouped(&two, "grouped", &["a8", "b3"]);
    assert_eq!(texts(&take(&left, 2)), ["a8", "b3"], "who is left has them all");
}

#[test]
fn an_exclusive_consumer_has_all_and_when_it_ends_another_follows() {
    let house = House::shared();
    let session = house.session(Acknowledge::Auto);
    let plain = session.consumer("exclusive").unwrap();
    let [first, second] = [(); 2].map(|()| session.consumer("exclusive?consumer.exclusive=true").unwrap());
    put(&session, "exclusive", &["1", "2", "3"]);
    assert_eq!(texts(&take(&first, 3)), ["1", "2", "3"]);
    drop(first);
    put(&session, "exclusive", &["4", "5"]);
    assert_eq!(texts(&take(&second, 2)), ["4", "5"]);
    assert_eq!(plain.receive(QUIET).unwrap(), None);
    drop(second);
    put(&session, "exclusive", &["6"]);
    assert_eq!(texts(&take(&plain, 1)), ["6"]);
}

#[test]
fn a_consumer_of_higher_priority_is_served_first_and_others_once_it_is_full() {
    let house = House::shared();
    let connection = house.connect("jms.prefetchPolicy.all=2");
    let session = connection.session(Acknowledge::Client).unwrap();
    let low = session.consumer("preferred").unwrap();
    let high = session.consumer("preferred?consumer.priority=10").unwrap();
    put(&session, "preferred", &["1", "2", "3"]);
    assert_eq!(texts(&take(&low, 1)), ["3"], "it has what the other has no room for");
    assert_eq!(texts(&take(&high, 2)), ["1", "2"]);
}

#[test]
fn a_listener_is_given_again_what_it_has_refused() {
    let house = House::shared();
    let session = house.connect(ONCE).session(Acknowledge::Auto).unwrap();
    put(&session, "heard", &["first", "second", "third"]);
    let consumer = session.consumer("heard").unwrap();
    consumer.listen(1).unwrap();
    let heard = wait::until("all are heard", SOON, || {
        let heard = consumer.heard()?;
        anyhow::ensure!(heard.len() == 4, "{}", heard.len());
        Ok(heard)
    });
    let heard = heard.unwrap();
    assert_eq!(texts(&heard), ["first", "first", "second", "third"]);
    assert!(heard[1].redelivered);
}

#[test]
fn topics_selectors_and_durable_subscriptions_are_refused_with_words() {
    let house = House::shared();
    let login = Login { client_id: "words".to_owned(), ..Login::to(&house.uri()) };
    let session = house.java.connect(&login).unwrap().session(Acknowledge::Auto).unwrap();
    for (refusal, words) in [
        (refused(session.consumer("topic://news")), "topics are not served"),
        (refused(session.send("topic://news", &Letter::text("t"))), "topics are not served"),
        (refused(session.selecting("orders", "colour = 'red'")), "selectors are not served"),
        (refused(session.durable("topic://news", "archive")), "are not served"),
        (refused(session.consumer("orders.>")), "patterns and lists"),
    ] {
        assert!(refusal.message.contains(words), "{refusal}");
    }
    // The connection is as good as before.
    put(&session, "still there", &["yes"]);
    assert_eq!(waiting(&session, "still there"), ["yes"]);
}

#[test]
fn a_client_id_is_connected_once() {
    let house = House::shared();
    let login = Login { client_id: "erp".to_owned(), ..Login::to(&house.uri()) };
    let first = house.java.connect(&login).unwrap();
    let second = refused(house.java.connect(&login));
    assert_eq!(second.class, "javax.jms.InvalidClientIDException", "{second}");
    first.close().unwrap();
    house.java.connect(&login).unwrap().close().unwrap();
}

#[test]
fn garbage_beside_a_working_client_is_closed_and_disturbs_nobody() {
    let house = House::shared();
    let session = house.session(Acknowledge::Auto);
    let address = house.pair.vaults[0].broker;
    let greeting = b"\0\0\0\x0e\x01ActiveMQ\0\0\0\x0c\0".to_vec();
    let with = |more: &[u8]| [&greeting[..], more].concat();
    let wrong: [Vec<u8>; 6] = [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
        b"\0\0\0\x0e\x01ActiveMQ\0\0\0\x02\0".to_vec(),
        with(&[0, 0, 0, 1, 200]),
        with(&[0x7f, 0xff, 0xff, 0xff]),
        with(&[0, 0, 0, 6, 10, 0, 0, 0, 1, 7]),
        vec![0; 1000],
    ];
    for bytes in &wrong {
        let answer = raw::in_clear(address, bytes).unwrap();
        assert!(answer.windows(8).any(|word| word == b"ActiveMQ"), "it greets, and closes: {answer:?}");
        put(&session, "undisturbed", &["one more"]);
    }
    let mut truncated = TcpStream::connect(address).unwrap();
    truncated.write_all(&greeting[..9]).unwrap();
    drop(truncated);
    assert_eq!(waiting(&session, "undisturbed").len(), wrong.len());
    let log = house.pair.vaults[0].program.as_ref().unwrap().log();
    assert!(log.contains("broker: connection from"), "{log}");
}

/// Megabytes that a vault has in memory.
fn resident(house: &House) -> f64 {
    let pid = house.pair.vaults[0].program.as_ref().unwrap().pid().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
}

/// A client that says these and reads nothing.
fn mute(house: &House, name: &str, more: &[Command]) -> TcpStream {
    let offer = Offer { inactivity: Duration::ZERO, ..Offer::default() };
    let mut says = Outgoing::new(&offer.greeting()).unwrap();
    let id = ConnectionId { value: Text::shortened(name) };
    says.push(&ConnectionInfo::new(id.clone(), id.value).into()).unwrap();
    more.iter().for_each(|command| says.push(command).unwrap());
    let mut socket = TcpStream::connect(house.pair.vaults[0].broker).unwrap();
    socket.write_all(&says.copy_to_bytes(says.remaining())).unwrap();
    socket
}

#[test]
fn ten_thousand_idle_connections_cost_a_few_kib_each() {
    const IDLE: usize = 10_000;
    let house = House::start(&format!("{OPEN}max_connections = {IDLE}\n"));
    let clients = || -> anyhow::Result<usize> {
        let status = house.pair.vaults[0].command(&["--json", "status"])?;
        let status: serde_json::Value = serde_json::from_str(&status)?;
        Ok(usize::try_from(status["broker"]["clients"].as_u64().unwrap_or(0))?)
    };
    let session = house.session(Acknowledge::Auto);
    put(&session, "before", &["yes"]);
    let before = resident(&house);
    let idle: Vec<TcpStream> =
        (0..IDLE - 1).map(|number| mute(&house, &format!("idle-{number}"), &[])).collect();
    wait::until("all are connected", SOON, || {
        let clients = clients()?;
        anyhow::ensure!(clients == IDLE, "{clients}");
        Ok(())
    })
    .unwrap();
    let each = (resident(&house) - before) * 1024.0 / IDLE as f64;
    assert!(each < 32.0, "{each} KiB for each");
    // Nobody else is let in, and who is in is served.
    let answer = raw::in_clear(house.pair.vaults[0].broker, b"").unwrap();
    assert!(answer.is_empty(), "{answer:?}");
    assert_eq!(waiting(&session, "before"), ["yes"]);
    drop(idle);
    wait::until("they are gone", SOON, || {
        let clients = clients()?;
        anyhow::ensure!(clients == 1, "{clients}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_slow_reader_holds_a_bounded_share_of_memory_and_disturbs_nobody() {
    let house = House::start(OPEN);
    let session = house.session(Acknowledge::Auto);
    put(&session, "before", &["yes"]);
    let consumer_id = ConsumerId { connection: Text::shortened("slow"), session: 1, value: 1 };
    let queue = |name| Destination::queue(Text::shortened(name));
    let subscribes = ConsumerInfo::new(consumer_id, queue("slow"), 32_000);
    let _slow = mute(&house, "slow", &[subscribes.into()]);
    let before = resident(&house);
    let load = Load { bytes: 200_000, ..Load::new(Kind::Send, "slow", 400) };
    let outcome = house.java.load(&Login::to(&house.uri()), &load).unwrap().wait(SOON * 2).unwrap();
    assert_eq!((outcome.messages, outcome.errors), (400, vec![]));
    let more = resident(&house) - before;
    assert!(more < 48.0, "{more} MiB for 80 MB that nobody reads");
    put(&session, "before", &["still"]);
    assert_eq!(waiting(&session, "before"), ["yes", "still"]);
}

#[test]
fn a_wrong_password_is_a_security_exception_and_a_right_one_goes_over_tls_too() {
    let folder = temporary_folder().unwrap();
    let users = folder.path().join("users");
    let hash = vault::broker::users::hash("erp", "right").unwrap();
    vault::broker::users::write(&users, &[("erp".to_owned(), hash)].into()).unwrap();
    let house = House::start(&format!("users_file = \"{}\"\n", users.display()));
    let vault = &house.pair.vaults[0];
    let authority = Some(vault.folder.join("state/tls/authority.crt"));
    let uri = format!("ssl://{}?socket.verifyHostName=false", vault.broker);
    let login = Login { authority, ..Login::to(&uri) };
    for (user, password) in [("erp", "wrong"), ("shop", "right"), ("", "")] {
        let refusal = refused(house.java.connect(&login.clone().account(user, password)));
        assert_eq!(refusal.class, "javax.jms.JMSSecurityException", "{refusal}");
    }
    let connection = house.java.connect(&login.account("erp", "right")).unwrap();
    let session = connection.session(Acknowledge::Auto).unwrap();
    put(&session, "secret", &["yes"]);
    assert_eq!(waiting(&session, "secret"), ["yes"]);
}

#[test]
fn a_kill_under_load_loses_nothing_and_failover_finds_the_second_vault() {
    const MESSAGES: u64 = 3000;
    let mut house = House::start(OPEN);
    let folder = house.pair.vaults[0].folder.clone();
    let [a, b] = [0, 1].map(|at| format!("tcp://{}", house.pair.vaults[at].broker));
    let options = "initialReconnectDelay=50&useExponentialBackOff=false";
    let only = Login::to(&failover(std::slice::from_ref(&a), options));
    let [sent, received] = ["sent", "received"].map(|name| folder.join(name));
    let load = |kind, file: &std::path::Path| Load {
        connections: 4,
        file: Some(file.to_owned()),
        idle: Duration::from_secs(5),
        // Receivers end when nothing more comes: some may come twice.
        ..Load::new(kind, "loaded", if kind == Kind::Send { MESSAGES } else { 2 * MESSAGES })
    };
    let sending = house.java.load(&only, &load(Kind::Send, &sent)).unwrap();
    let receiving = house.java.load(&only, &load(Kind::Receive, &received)).unwrap();
    for until in [MESSAGES / 4, MESSAGES / 2] {
        wait::until("it is in the middle", SOON, || {
            let state = sending.state()?;
            anyhow::ensure!(state.messages > until || state.done, "{state:?}");
            Ok(())
        })
        .unwrap();
        let vault = house.pair.vaults[0].program().unwrap();
        vault.kill().unwrap();
        vault.restart().unwrap();
    }
    let outcome = sending.wait(SOON * 3).unwrap();
    assert_eq!((outcome.messages, outcome.errors), (MESSAGES, vec![]));
    let outcome = receiving.wait(SOON * 3).unwrap();
    assert_eq!(outcome.errors, vec![]);

    let mut confirmed = lines(&sent).unwrap();
    let mut got: Vec<_> = lines(&received).unwrap().iter().map(|line| line[1..3].to_vec()).collect();
    let total = got.len();
    got.sort();
    got.dedup();
    confirmed.sort();
    assert_eq!(got, confirmed, "sent = received");
    // Acknowledgements of the last 10 ms before a kill may be lost with it.
    assert!(total - got.len() < 100, "{total} received, {} sent", got.len());

    // The second vault takes over who knows both.
    let both = house.java.connect(&Login::to(&failover(&[a, b], options))).unwrap();
    let session = both.session(Acknowledge::Auto).unwrap();
    assert_eq!(both.broker().unwrap(), house.pair.vaults[0].name);
    house.pair.vaults[0].program().unwrap().kill().unwrap();
    put(&session, "elsewhere", &["yes"]);
    assert_eq!(both.broker().unwrap(), house.pair.vaults[1].name);
    assert_eq!(waiting(&session, "elsewhere"), ["yes"]);
}
