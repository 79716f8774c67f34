//! How clients connect and with which options; what they are told of, and what they are refused
//! with words.

use harness::cluster::temporary_folder;
use harness::java_client::{Acknowledge, Letter, Login, Value, letters};
use harness::wait;

use super::house::{House, SOON, put, refused, take, texts, waiting};

#[test]
fn a_client_may_set_any_option_of_its_wire_and_of_its_connection() {
    let house = House::shared();
    let options = [
        "wireFormat.tightEncodingEnabled=true&wireFormat.cacheEnabled=true&wireFormat.cacheSize=2048",
        "wireFormat.tightEncodingEnabled=false&wireFormat.cacheEnabled=false",
        "wireFormat.stackTraceEnabled=true&wireFormat.tcpNoDelayEnabled=false",
        "wireFormat.version=10",
        "wireFormat.version=11&wireFormat.maxFrameSize=1048576",
        "wireFormat.maxInactivityDuration=0",
        "jms.alwaysSyncSend=true&jms.dispatchAsync=false&jms.copyMessageOnSend=false",
        "jms.useAsyncSend=true&jms.alwaysSessionAsync=false&jms.useDedicatedTaskRunner=true",
        "jms.optimizeAcknowledge=true&jms.optimizeAcknowledgeTimeOut=100",
        "jms.watchTopicAdvisories=false&jms.checkForDuplicates=false",
        "jms.nestedMapAndListEnabled=true&jms.messagePrioritySupported=true",
        "jms.closeTimeout=1000&jms.sendTimeout=60000&jms.connectResponseTimeout=60000",
        "keepAlive=true&soTimeout=0&connectionTimeout=20000&socketBufferSize=8192",
    ];
    for options in options {
        let connection = house.connect(options);
        let session = connection.session(Acknowledge::Auto).unwrap();
        let consumer = session.consumer("any option").unwrap();
        for letter in letters() {
            let sent = session.send("any option", &letter).unwrap();
            let got = take(&consumer, 1);
            assert_eq!(sent.differences(&got[0]), Vec::<String>::new(), "{options}");
        }
        drop(consumer);
        // In this order: what closes a connection does not wait for what its sessions are at.
        session.close().unwrap();
        connection.close().unwrap();
    }
}

#[test]
fn what_an_asynchronous_send_is_refused_is_told_to_the_exception_listener() {
    let house = House::shared();
    let connection = house.connect("jms.useAsyncSend=true");
    let session = connection.session(Acknowledge::Auto).unwrap();
    session.send("topic://news", &Letter::text("refused")).unwrap();
    let told = wait::until("it is told", SOON, || {
        let told = connection.told()?;
        anyhow::ensure!(!told.is_empty(), "nothing yet");
        Ok(told)
    });
    assert!(told.unwrap()[0].message.contains("topics are not served"));
    put(&session, "after a refusal", &["goes on"]);
    let consumer = session.consumer("after a refusal").unwrap();
    assert_eq!(texts(&take(&consumer, 1)), ["goes on"]);
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
fn patterns_lists_virtual_topics_and_scheduled_messages_are_refused_with_words() {
    let house = House::shared();
    let session = house.session(Acknowledge::Auto);
    let later = |name: &str, value| Letter::text("later").property(name, value);
    for (refusal, words) in [
        (refused(session.consumer("ORDERS.>")), "patterns and lists"),
        (refused(session.consumer("ORDERS.*.new")), "patterns and lists"),
        (refused(session.consumer("one,two")), "patterns and lists"),
        (refused(session.send("ORDERS.>", &Letter::text("to all"))), "patterns and lists"),
        (refused(session.send("topic://VirtualTopic.orders", &Letter::text("v"))), "topics are not served"),
        (
            refused(session.send("later", &later("AMQ_SCHEDULED_DELAY", Value::Long(1000)))),
            "scheduled messages",
        ),
        (
            refused(
                session.send("later", &later("AMQ_SCHEDULED_CRON", Value::String("0 * * * *".to_owned()))),
            ),
            "scheduled messages",
        ),
    ] {
        assert!(refusal.message.contains(words), "{refusal}");
    }
    // A virtual topic's queue is a queue, and nothing else.
    put(&session, "Consumer.erp.VirtualTopic.orders", &["direct"]);
    assert_eq!(waiting(&session, "Consumer.erp.VirtualTopic.orders"), ["direct"]);
    assert!(waiting(&session, "later").is_empty());
}
