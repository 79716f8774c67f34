//! How messages are acknowledged, one by one, all at once, in transactions, and where those go that
//! were not.

use harness::java_client::{Acknowledge, Letter, Refusal};

use super::house::{House, QUIET, SOON, counted, put, refused, take, texts, waiting};

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
fn optimized_acknowledgements_are_all_told_when_their_consumer_closes() {
    let house = House::shared();
    let options = "jms.optimizeAcknowledge=true&jms.prefetchPolicy.all=10";
    let session = house.connect(options).session(Acknowledge::Auto).unwrap();
    let numbers: Vec<String> = (0..25).map(|number| number.to_string()).collect();
    put(&session, "optimized", &numbers.iter().map(String::as_str).collect::<Vec<_>>());
    let consumer = session.consumer("optimized").unwrap();
    // More than its prefetch: some must have been told on the way.
    assert_eq!(texts(&take(&consumer, 24)), numbers[..24]);
    drop(consumer);
    assert_eq!(waiting(&session, "optimized"), ["24"]);
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
fn a_transaction_with_a_refusal_in_it_is_rolled_back_as_a_whole() {
    let house = House::shared();
    let session = house.session(Acknowledge::Transacted);
    put(&session, "half", &["taken"]);
    session.commit().unwrap();
    let consumer = session.consumer("half").unwrap();
    assert_eq!(texts(&take(&consumer, 1)), ["taken"]);
    put(&session, "half", &["sent"]);
    // Nobody waits for the answer to what is sent in a transaction: its commit tells.
    session.send("topic://news", &Letter::text("refused")).unwrap();
    let refusal = refused(session.commit());
    assert_eq!(refusal.class, "javax.jms.TransactionRolledBackException", "{refusal}");
    assert!(refusal.message.contains("topics are not served"), "{refusal}");
    drop(consumer);
    session.close().unwrap();
    assert_eq!(waiting(&house.session(Acknowledge::Auto), "half"), ["taken"]);
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
fn a_session_that_closes_rolls_its_transaction_back() {
    let house = House::shared();
    let other = house.session(Acknowledge::Auto);
    put(&other, "closed session", &["1", "2"]);
    let session = house.session(Acknowledge::Transacted);
    let consumer = session.consumer("closed session").unwrap();
    assert_eq!(texts(&take(&consumer, 1)), ["1"]);
    put(&session, "closed session", &["never seen"]);
    drop(consumer);
    session.close().unwrap();
    let next = other.consumer("closed session").unwrap();
    let got = take(&next, 2);
    assert_eq!(texts(&got), ["1", "2"]);
    assert!(got[0].redelivered && !got[1].redelivered, "{got:?}");
    assert_eq!(next.receive(QUIET).unwrap(), None);
}

#[test]
fn a_connection_that_closes_gives_back_what_it_has_not_acknowledged() {
    let house = House::shared();
    let other = house.session(Acknowledge::Auto);
    put(&other, "closed connection", &["1", "2", "3"]);
    let connection = house.connect("");
    let session = connection.session(Acknowledge::Client).unwrap();
    let consumer = session.consumer("closed connection").unwrap();
    assert_eq!(texts(&take(&consumer, 2)), ["1", "2"]);
    connection.close().unwrap();
    let next = other.consumer("closed connection").unwrap();
    assert_eq!(counted(&take(&next, 3)), [("1", true, 2), ("2", true, 2), ("3", false, 1)]);
}

#[test]
fn a_receive_that_waits_ends_when_its_connection_closes() {
    let house = House::shared();
    let connection = house.connect("");
    let session = connection.session(Acknowledge::Auto).unwrap();
    let (told, hears) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let session = &session;
        scope.spawn(move || {
            let consumer = session.consumer("closed while it waits").unwrap();
            told.send(None).unwrap();
            told.send(Some(consumer.receive(SOON * 10))).unwrap();
        });
        assert!(hears.recv_timeout(SOON).unwrap().is_none());
        connection.close().unwrap();
        match hears.recv_timeout(SOON).unwrap().unwrap() {
            Ok(message) => assert_eq!(message, None),
            // The close was there before the receive.
            Err(error) => {
                let refusal = Refusal::of(&error).unwrap_or_else(|| panic!("{error:#}"));
                assert_eq!(refusal.class, "javax.jms.IllegalStateException", "{refusal}");
            }
        }
    });
}
