//! Stories of the harness itself: the real brokers and the real Java client that every story about
//! messages stands on do what those stories take for granted.
#![expect(clippy::unwrap_used, reason = "a story's own steps fail the story when they fail")]

use std::path::Path;
use std::time::Duration;

use harness::activemq::{ActiveMq, INDIVIDUAL_DEAD_LETTERS, NetworkConnector, REPLAY_WHEN_NO_CONSUMERS};
use harness::broker::{Seat, failover};
use harness::cluster::temporary_folder;
use harness::java_client::{
    Acknowledge, Body, Connection, Consumer, Delivery, JavaClient, Kind, Letter, Load, Login, Received,
    Refusal, Session, Value, lines,
};
use harness::{artemis, extent, java_client, wait};

const SOON: Duration = Duration::from_secs(20);
/// How long nothing must come for nothing to be taken as the answer.
const QUIET: Duration = Duration::from_millis(300);

/// A letter of every type, each in a group.
fn letters() -> Vec<Letter> {
    java_client::letters().into_iter().map(|letter| letter.group("one", 7)).collect()
}

/// Sends all letters and tells in what those that arrive differ from them.
fn exchange(sender: &Session, receiver: &Session, letters: Vec<Letter>) -> Vec<String> {
    let delivery = Delivery { persistent: false, priority: 9, time_to_live: Duration::from_secs(3600) };
    let mut found = Vec::new();
    let consumer = receiver.consumer("letters").unwrap();
    for letter in letters {
        let sent = sender.send_as("letters", &letter, delivery).unwrap();
        let arrived = consumer.receive(SOON).unwrap().expect("nothing arrives");
        assert!(sent.priority == 9 && sent.expiration > 0 && sent.group_sequence == 7, "{sent:?}");
        found.extend(sent.differences(&arrived));
    }
    assert_eq!(consumer.receive(QUIET).unwrap(), None);
    found
}

/// The messages' numbers in a load's file, in order, from this place of its lines.
fn numbers(file: &Path, place: usize) -> Vec<u64> {
    lines(file).unwrap().iter().map(|line| line[place].parse().unwrap()).collect()
}

fn texts(received: &[Received]) -> Vec<&str> {
    received.iter().filter_map(Received::text).collect()
}

#[test]
fn every_message_arrives_as_it_was_sent_in_the_clear_and_over_tls() {
    let folder = temporary_folder().unwrap();
    let seat = Seat::new("a").unwrap().with_tls().unwrap().with_account("erp", "right");
    let broker = ActiveMq::at(seat).start(folder.path()).unwrap();
    let java = JavaClient::start(folder.path()).unwrap();

    let refused = java.connect(&Login::to(&broker.uri()).account("erp", "wrong")).unwrap_err();
    assert_eq!(Refusal::of(&refused).unwrap().class, "javax.jms.JMSSecurityException", "{refused}");

    let clear = java.connect(&Login::to(&broker.uri()).account("erp", "right")).unwrap();
    let uri = broker.tls_uri().unwrap();
    let login = Login { authority: broker.authority.clone(), ..Login::to(&uri) };
    let secure = java.connect(&login.account("erp", "right")).unwrap();
    let (sender, receiver) =
        (clear.session(Acknowledge::Auto).unwrap(), secure.session(Acknowledge::Auto).unwrap());
    assert_eq!(exchange(&sender, &receiver, letters()), Vec::<String>::new());

    // Compressed, and still the same.
    let uri = format!("{}?jms.useCompression=true", broker.uri());
    let compressing = java.connect(&Login::to(&uri).account("erp", "right")).unwrap();
    let sender = compressing.session(Acknowledge::Auto).unwrap();
    assert_eq!(exchange(&sender, &receiver, letters()), Vec::<String>::new());
    let zeros = Letter::new(Body::Bytes(vec![0; 10_000]));
    assert!(sender.send("zeros", &zeros).unwrap().compressed);
    let arrived = receiver.consumer("zeros").unwrap().receive(SOON).unwrap().unwrap();
    assert_eq!((arrived.compressed, arrived.body), (true, zeros.body));
}

#[test]
fn every_way_to_acknowledge_to_subscribe_and_to_answer_is_there() {
    let folder = temporary_folder().unwrap();
    let mut plan = ActiveMq::at(Seat::new("a").unwrap()).with_policy(INDIVIDUAL_DEAD_LETTERS);
    plan.scheduler = true;
    let broker = plan.start(folder.path()).unwrap();
    let java = JavaClient::start(folder.path()).unwrap();
    let options = "jms.redeliveryPolicy.maximumRedeliveries=1&jms.redeliveryPolicy.initialRedeliveryDelay=0";
    let login = Login { client_id: "erp".to_owned(), ..Login::to(&format!("{}?{options}", broker.uri())) };
    let connection = java.connect(&login).unwrap();
    acknowledges(&connection);
    answers_over_a_temporary_queue(&connection);
    subscribes(&connection);

    let session = connection.session(Acknowledge::Auto).unwrap();
    let later = Letter::text("later").property("AMQ_SCHEDULED_DELAY", Value::Long(1000));
    session.send("later", &later).unwrap();
    let consumer = session.consumer("later").unwrap();
    assert_eq!(consumer.receive(QUIET).unwrap(), None);
    assert_eq!(consumer.receive(SOON).unwrap().unwrap().text(), Some("later"));
}

fn acknowledges(connection: &Connection) {
    let sender = connection.session(Acknowledge::Auto).unwrap();
    let sent = sender.send("orders", &Letter::text("again")).unwrap();

    // What is rolled back comes again and says so, and is given up in the end.
    let transacted = connection.session(Acknowledge::Transacted).unwrap();
    let consumer = transacted.consumer("orders").unwrap();
    for delivery in 1..3 {
        let order = consumer.receive(SOON).unwrap().unwrap();
        assert_eq!((order.redelivered, order.delivery_count, &order.id), (delivery > 1, delivery, &sent.id));
        transacted.rollback().unwrap();
    }
    assert_eq!(consumer.receive(QUIET).unwrap(), None);
    let dead = sender.consumer("DLQ.orders").unwrap().receive(SOON).unwrap().unwrap();
    assert_eq!(dead.id, sent.id);

    let put = |queue: &str| {
        for text in ["first", "second", "third"] {
            sender.send(queue, &Letter::text(text)).unwrap();
        }
    };
    let waits = |queue: &str| -> Vec<_> {
        let messages = sender.browse(queue, 10).unwrap();
        messages.iter().filter_map(Received::text).map(str::to_owned).collect()
    };
    let take = |consumer: &Consumer<'_>| {
        (0..3).map(|_| consumer.receive(SOON).unwrap().unwrap()).collect::<Vec<_>>()
    };
    // One by one: what was not acknowledged is there for the next one.
    put("singles");
    let individual = connection.session(Acknowledge::Individual).unwrap();
    let consumer = individual.consumer("singles").unwrap();
    let got = take(&consumer);
    individual.acknowledge(&got[1]).unwrap();
    drop(consumer);
    assert_eq!(waits("singles"), ["first", "third"]);

    // All at once, after all have come a second time.
    put("all");
    let client = connection.session(Acknowledge::Client).unwrap();
    let consumer = client.consumer("all").unwrap();
    take(&consumer);
    client.recover().unwrap();
    let again = take(&consumer);
    assert!(again.iter().all(|message| message.redelivered), "{again:?}");
    client.acknowledge(&again[0]).unwrap();
    drop(consumer);
    assert!(waits("all").is_empty());

    // By a listener, which is given again what it has refused.
    put("heard");
    let consumer = sender.consumer("heard").unwrap();
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

fn answers_over_a_temporary_queue(connection: &Connection) {
    let asking = connection.session(Acknowledge::Auto).unwrap();
    let answering = connection.session(Acknowledge::DupsOk).unwrap();
    let answers = asking.temporary_queue().unwrap();
    asking.send("questions", &Letter::text("how much?").reply_to(&answers)).unwrap();
    let asked = answering.consumer("questions").unwrap().receive(SOON).unwrap().unwrap();
    answering.send(&asked.reply_to.unwrap(), &Letter::text("17")).unwrap();
    let consumer = asking.consumer(&answers).unwrap();
    assert_eq!(consumer.receive(SOON).unwrap().unwrap().text(), Some("17"));
    drop(consumer);
    asking.delete_temporary(&answers).unwrap();
    let gone = answering.send(&answers, &Letter::text("18")).unwrap_err();
    assert_eq!(Refusal::of(&gone).unwrap().class, "javax.jms.InvalidDestinationException", "{gone}");
}

fn subscribes(connection: &Connection) {
    let session = connection.session(Acknowledge::Auto).unwrap();
    drop(session.durable("topic://news", "archive").unwrap());
    let all = session.consumer("topic://news").unwrap();
    let some = session.selecting("topic://news", "colour = 'red' AND size > 5").unwrap();
    for (text, colour) in [("one", "red"), ("two", "blue")] {
        let letter = Letter::text(text)
            .property("colour", Value::String(colour.to_owned()))
            .property("size", Value::Int(6));
        session.send("topic://news", &letter).unwrap();
    }
    let durable = session.durable("topic://news", "archive").unwrap();
    for (consumer, expected) in
        [(all, vec!["one", "two"]), (some, vec!["one"]), (durable, vec!["one", "two"])]
    {
        for text in expected {
            assert_eq!(consumer.receive(SOON).unwrap().unwrap().text(), Some(text));
        }
        assert_eq!(consumer.receive(QUIET).unwrap(), None);
    }
    session.unsubscribe("archive").unwrap();
    let refused = session.selecting("orders", "colour = ").unwrap_err();
    assert_eq!(Refusal::of(&refused).unwrap().class, "javax.jms.InvalidSelectorException", "{refused}");
}

#[test]
fn a_killed_broker_comes_back_with_what_it_has_stored_and_failover_finds_it_or_the_other() {
    let folder = temporary_folder().unwrap();
    let [mut a, mut b] =
        ["a", "b"].map(|name| ActiveMq::at(Seat::new(name).unwrap()).launch(folder.path()).unwrap());
    a.wait_ready().unwrap();
    b.wait_ready().unwrap();
    let java = JavaClient::start(folder.path()).unwrap();
    let login = Login::to(&failover(&[a.uri(), b.uri()], "initialReconnectDelay=50"));
    let connection = java.connect(&login).unwrap();
    let session = connection.session(Acknowledge::Auto).unwrap();
    assert_eq!(connection.broker().unwrap(), "a");
    let letters: Vec<_> = (0..20).map(|number| format!("letter {number}")).collect();
    for letter in &letters {
        session.send("orders", &Letter::text(letter)).unwrap();
    }

    // One that knows of no other broker waits for this one to come back.
    let sent = folder.path().join("sent");
    let waiting = Login::to(&failover(&[a.uri()], "initialReconnectDelay=50"));
    let load = Load { file: Some(sent.clone()), ..Load::new(Kind::Send, "many", 2000) };
    let sending = java.load(&waiting, &load).unwrap();
    wait::until("it is in the middle", SOON, || {
        let outcome = sending.state()?;
        anyhow::ensure!(outcome.messages > 50, "{outcome:?}");
        Ok(())
    })
    .unwrap();

    a.kill().unwrap();
    assert!(!sending.state().unwrap().done);
    session.send("orders", &Letter::text("elsewhere")).unwrap();
    assert_eq!(connection.broker().unwrap(), "b");
    let told: Vec<_> = connection.told().unwrap().into_iter().map(|event| event.class).collect();
    assert_eq!(told, ["resumed", "interrupted", "resumed"]);
    connection.close().unwrap();

    a.restart().unwrap();
    for (broker, expected) in [(&a, letters), (&b, vec!["elsewhere".to_owned()])] {
        let connection = java.connect(&Login::to(&broker.uri())).unwrap();
        let session = connection.session(Acknowledge::Auto).unwrap();
        assert_eq!(texts(&session.browse("orders", 100).unwrap()), expected);
    }

    let outcome = sending.wait(SOON).unwrap();
    assert_eq!((outcome.messages, outcome.errors), (2000, vec![]));
    let received = folder.path().join("received");
    let idle = Duration::from_secs(1);
    let load = Load { file: Some(received.clone()), idle, ..Load::new(Kind::Receive, "many", 10_000) };
    java.load(&Login::to(&a.uri()), &load).unwrap().wait(SOON).unwrap();
    assert_eq!(numbers(&received, 2), numbers(&sent, 1));

    // Frozen, it is there and takes nothing.
    b.freeze().unwrap();
    let options = "wireFormat.maxInactivityDuration=500&wireFormat.maxInactivityDurationInitalDelay=500";
    let login = Login::to(&format!("{}?{options}", b.uri()));
    assert!(Refusal::of(&java.connect(&login).unwrap_err()).is_some());
    b.thaw().unwrap();
    wait::until("it goes on", SOON, || java.connect(&Login::to(&b.uri()))).unwrap();
}

#[test]
fn activemqs_own_network_connector_carries_a_load_and_each_of_its_messages_is_counted() {
    const MESSAGES: u64 = 500;
    let folder = temporary_folder().unwrap();
    let far = Seat::new("far").unwrap();
    let near = ActiveMq::at(Seat::new("near").unwrap()).forwards(NetworkConnector::to("bridge", &far.uri()));
    let mut near = near.with_policy(REPLAY_WHEN_NO_CONSUMERS).launch(folder.path()).unwrap();
    let mut far = ActiveMq::at(far).with_policy(REPLAY_WHEN_NO_CONSUMERS).launch(folder.path()).unwrap();
    near.wait_ready().unwrap();
    far.wait_ready().unwrap();
    let java = JavaClient::start(folder.path()).unwrap();
    let files = ["sent", "received"].map(|name| folder.path().join(name));
    let load = |kind, connections, file: usize| Load {
        connections,
        batch: if kind == Kind::Send { 0 } else { 10 },
        file: Some(files[file].clone()),
        ..Load::new(kind, "orders", MESSAGES)
    };
    let receiving = java.load(&Login::to(&far.uri()), &load(Kind::Receive, 2, 1)).unwrap();
    let sending = java.load(&Login::to(&near.uri()), &load(Kind::Send, 3, 0)).unwrap();
    for run in [sending, receiving] {
        let outcome = run.wait(SOON * 2).unwrap();
        assert!(outcome.done && outcome.errors.is_empty(), "{outcome:?}");
        assert_eq!(outcome.messages, MESSAGES);
        assert!(outcome.seconds > 0.0);
    }
    let mut sent: Vec<_> = lines(&files[0]).unwrap();
    let mut received: Vec<_> = lines(&files[1]).unwrap().iter().map(|line| line[1..3].to_vec()).collect();
    sent.sort();
    received.sort();
    assert_eq!(sent, received);
    assert_eq!(u64::try_from(sent.len()).unwrap(), MESSAGES);
}

#[test]
fn artemis_takes_the_stock_client_and_comes_back_with_what_it_has_stored() {
    // It is fetched from outside Debian.
    if !extent::is_full() {
        return;
    }
    let folder = temporary_folder().unwrap();
    let seat = Seat::new("art").unwrap().with_tls().unwrap().with_account("erp", "right");
    let mut broker = artemis::start(&seat, folder.path()).unwrap();
    let java = JavaClient::start(folder.path()).unwrap();
    let refused = java.connect(&Login::to(&broker.uri()).account("erp", "wrong")).unwrap_err();
    assert_eq!(Refusal::of(&refused).unwrap().class, "javax.jms.JMSSecurityException", "{refused}");
    let login = Login { authority: broker.authority.clone(), ..Login::to(&broker.tls_uri().unwrap()) };
    let secure = java.connect(&login.account("erp", "right")).unwrap();
    let session = secure.session(Acknowledge::Auto).unwrap();
    // It throws a message with a list in its map away.
    let mut letters = letters();
    for letter in &mut letters {
        letter.properties.remove("list");
        if let Body::Map(content) = &mut letter.body {
            content.remove("list");
        }
    }
    // And it notes whose connection it was.
    let mut found = exchange(&session, &session, letters);
    found.retain(|difference| !difference.starts_with("__AMQ_CID: "));
    assert_eq!(found, Vec::<String>::new());

    session.send("orders", &Letter::text("kept")).unwrap();
    broker.kill().unwrap();
    broker.restart().unwrap();
    let connection = java.connect(&Login::to(&broker.uri()).account("erp", "right")).unwrap();
    let session = connection.session(Acknowledge::Auto).unwrap();
    let kept = session.consumer("orders").unwrap().receive(SOON).unwrap().unwrap();
    assert_eq!(kept.text(), Some("kept"));
}
