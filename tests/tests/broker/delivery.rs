//! What is delivered to whom and in which order: types, priorities, prefetch, browsers, listeners,
//! composite names.

use std::collections::BTreeSet;
use std::time::Duration;

use harness::java_client::{Acknowledge, Body, Consumer, Delivery, Letter, Received, letters};
use harness::wait;

use super::house::{House, QUIET, SOON, put, refused, take, texts, waiting};

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
fn a_time_to_live_is_told_as_the_moment_at_which_it_ends() {
    let house = House::shared();
    let session = house.session(Acknowledge::Auto);
    let delivery = Delivery { time_to_live: Duration::from_secs(3600), ..Delivery::default() };
    let sent = session.send_as("timed", &Letter::text("1"), delivery).unwrap();
    assert_eq!(sent.expiration, sent.timestamp + 3_600_000);
    let untimed = house.connect("jms.disableTimeStampsByDefault=true").session(Acknowledge::Auto).unwrap();
    put(&untimed, "timed", &["2"]);
    let consumer = session.consumer("timed").unwrap();
    let got = take(&consumer, 2);
    assert_eq!((got[0].timestamp, got[0].expiration), (sent.timestamp, sent.expiration));
    assert_eq!((got[1].timestamp, got[1].expiration), (0, 0));
}

#[test]
fn a_message_of_eight_megabytes_arrives_as_it_was_sent() {
    let house = House::shared();
    let session = house.session(Acknowledge::Auto);
    let consumer = session.consumer("large").unwrap();
    let sent = session.send("large", &Letter::new(Body::Filled(8 << 20))).unwrap();
    let got = take(&consumer, 1);
    assert_eq!(sent.differences(&got[0]), Vec::<String>::new());
    assert_eq!(got[0].length, 8 << 20);
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
fn a_browser_comes_to_its_end_while_its_queue_is_consumed() {
    let house = House::shared();
    let session = house.session(Acknowledge::Auto);
    let numbers: Vec<String> = (0..60).map(|number| number.to_string()).collect();
    put(&session, "seen and taken", &numbers.iter().map(String::as_str).collect::<Vec<_>>());
    let looking =
        house.connect("jms.prefetchPolicy.queueBrowserPrefetch=5").session(Acknowledge::Auto).unwrap();
    let mut browser = looking.browser("seen and taken").unwrap();
    let mut seen: Vec<Received> = (0..10).map(|_| browser.look().unwrap().unwrap()).collect();
    let consumer = session.consumer("seen and taken").unwrap();
    assert_eq!(texts(&take(&consumer, 60)), numbers, "a browser takes nothing");
    while let Some(message) = browser.look().unwrap() {
        seen.push(message);
    }
    // What it saw is in order, and nothing twice.
    let order: Vec<u32> = texts(&seen).iter().map(|text| text.parse().unwrap()).collect();
    assert!(order.len() >= 10 && order.is_sorted_by(|one, next| one < next), "{order:?}");
}

#[test]
fn a_browser_shows_what_a_consumer_holds() {
    let house = House::shared();
    let session = house.session(Acknowledge::Client);
    put(&session, "held and seen", &["1", "2"]);
    let consumer = session.consumer("held and seen").unwrap();
    assert_eq!(texts(&take(&consumer, 1)), ["1"]);
    assert_eq!(waiting(&house.session(Acknowledge::Auto), "held and seen"), ["1", "2"]);
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
fn a_prefetch_of_five_holds_five_and_leaves_the_rest_to_others() {
    let house = House::shared();
    let holding = house.connect("jms.prefetchPolicy.queuePrefetch=5").session(Acknowledge::Auto).unwrap();
    let holds = holding.consumer("held by five").unwrap();
    let session = house.session(Acknowledge::Auto);
    let other = session.consumer("held by five").unwrap();
    put(&session, "held by five", &["1", "2", "3", "4", "5", "6", "7", "8", "9", "10"]);
    let mut got = texts(&take(&other, 5)).join(" ");
    assert_eq!(other.receive(QUIET).unwrap(), None, "after {got}");
    got = got + " " + &texts(&take(&holds, 5)).join(" ");
    let all: BTreeSet<u32> = got.split(' ').map(|number| number.parse().unwrap()).collect();
    assert_eq!(all, (1..=10).collect());
}

#[test]
fn a_destinations_own_options_are_taken_from_its_name() {
    let house = House::shared();
    let holding = house.session(Acknowledge::Auto);
    let holds = holding.consumer("own options?consumer.prefetchSize=1&consumer.dispatchAsync=false").unwrap();
    let session = house.session(Acknowledge::Auto);
    let other = session.consumer("own options").unwrap();
    put(&session, "own options", &["1", "2", "3", "4"]);
    let rest = take(&other, 3);
    assert_eq!(other.receive(QUIET).unwrap(), None, "after {:?}", texts(&rest));
    assert_eq!(take(&holds, 1).len(), 1);
}

#[test]
fn a_connection_that_is_stopped_is_given_nothing_until_it_starts() {
    let house = House::shared();
    let connection = house.connect("");
    let session = connection.session(Acknowledge::Auto).unwrap();
    let consumer = session.consumer("stopped").unwrap();
    connection.pause().unwrap();
    put(&session, "stopped", &["1"]);
    assert_eq!(consumer.receive(QUIET).unwrap(), None);
    connection.resume().unwrap();
    assert_eq!(texts(&take(&consumer, 1)), ["1"]);
}

#[test]
fn listeners_of_several_sessions_share_a_queue_and_hear_nothing_twice() {
    let house = House::shared();
    let connection = house.connect("jms.prefetchPolicy.all=1");
    let sessions = [(); 4].map(|()| connection.session(Acknowledge::Auto).unwrap());
    let consumers = sessions.each_ref().map(|session| session.consumer("listened to").unwrap());
    consumers.iter().for_each(|consumer| consumer.listen(0).unwrap());
    let numbers: Vec<String> = (0..100).map(|number| number.to_string()).collect();
    put(
        &house.session(Acknowledge::Auto),
        "listened to",
        &numbers.iter().map(String::as_str).collect::<Vec<_>>(),
    );
    let heard = wait::until("all are heard", SOON, || {
        let heard = consumers.iter().map(Consumer::heard).collect::<Result<Vec<_>, _>>()?;
        let count: usize = heard.iter().map(Vec::len).sum();
        anyhow::ensure!(count >= numbers.len(), "{count}");
        Ok(heard)
    });
    let heard = heard.unwrap();
    assert!(heard.iter().all(|own| !own.is_empty()), "each has its share");
    let mut all: Vec<&str> = heard.iter().flat_map(|own| texts(own)).collect();
    all.sort_unstable_by_key(|text| text.parse::<u32>().unwrap());
    assert_eq!(all, numbers);
}

#[test]
fn a_composite_name_sends_to_each_of_its_queues_or_to_none() {
    let house = House::shared();
    let session = house.session(Acknowledge::Auto);
    put(&session, "queue://both one,both two", &["1"]);
    let transacted = house.session(Acknowledge::Transacted);
    put(&transacted, "both one,both two", &["2"]);
    assert_eq!(waiting(&session, "both one"), ["1"]);
    transacted.commit().unwrap();
    put(&transacted, "both one,both two", &["never"]);
    transacted.rollback().unwrap();
    let refusal = refused(session.send("queue://both one,topic://news", &Letter::text("3")));
    assert!(refusal.message.contains("topics are not served"), "{refusal}");
    for queue in ["both one", "both two"] {
        let consumer = session.consumer(queue).unwrap();
        let got = take(&consumer, 2);
        assert_eq!(texts(&got), ["1", "2"]);
        assert_eq!(got[0].destination, format!("queue://{queue}"));
        assert_eq!(consumer.receive(QUIET).unwrap(), None);
    }
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
fn a_temporary_queue_with_a_consumer_is_not_deleted() {
    let house = House::shared();
    let session = house.session(Acknowledge::Auto);
    let inbox = session.temporary_queue().unwrap();
    let consumer = session.consumer(&inbox).unwrap();
    let refusal = refused(session.delete_temporary(&inbox));
    assert!(refusal.message.contains("consumer"), "{refusal}");
    put(&session, &inbox, &["still there"]);
    assert_eq!(texts(&take(&consumer, 1)), ["still there"]);
    drop(consumer);
    session.delete_temporary(&inbox).unwrap();
}
