//! What a connection meets: stories through the front door, on real files.
#![allow(clippy::disallowed_methods, reason = "stories wait and measure")]

mod rough;
mod scale;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::core::{AckKind, Done, Filter, Limits, Refusal, Seen, Send, Terms};
use super::message::{Cause, DEAD_LETTERS, Destination, Id, Marks, Message, Origin};
use super::{Deliveries, Delivery, Lack, QueueError, Queues, Session, Settings};

const SOON: Duration = Duration::from_secs(30);

fn open(folder: &Path) -> Queues {
    Queues::open(Settings::new(folder.join("queues.db"))).unwrap()
}

fn queue(name: &str) -> Destination {
    Destination::queue(name).unwrap()
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

fn message(name: &str, size: usize) -> Arc<Message> {
    let body = Bytes::from(vec![b'x'; size]);
    Arc::new(Message { name: name.into(), at: now(), expiration: 0, marks: None, origin: None, body })
}

fn to(destination: &Destination, name: &str) -> Send {
    Send {
        destination: destination.clone(),
        persistent: true,
        priority: 4,
        producer: None,
        again: false,
        message: message(name, 10),
    }
}

/// Sends it and waits until it is kept.
async fn keep(session: &Session, send: Send) -> Done {
    session.send(send, None).await.unwrap().await.unwrap()
}

async fn consumer(session: &Session, destination: &Destination, prefetch: usize) -> u64 {
    let key = session.consumer();
    session.subscribe(key, destination.clone(), prefetch).await.unwrap().await.unwrap();
    key
}

async fn next(deliveries: &mut Deliveries) -> Delivery {
    tokio::time::timeout(SOON, deliveries.next()).await.expect("a message in time").expect("a connection")
}

async fn names(deliveries: &mut Deliveries, count: usize) -> Vec<String> {
    let mut names = Vec::new();
    for _ in 0..count {
        names.push(next(deliveries).await.message.name.to_string());
    }
    names
}

/// Is nothing given away? What was asked before has taken effect when the answer is there.
async fn is_quiet(session: &Session, deliveries: &mut Deliveries) -> bool {
    session.sync().await.unwrap().await.unwrap();
    deliveries.inbox.is_empty()
}

async fn acknowledge(session: &Session, delivery: &Delivery) {
    let (key, id) = (delivery.consumer, delivery.id);
    let answer = session.acknowledge(key, (Some(id), id), AckKind::Standard, None).await.unwrap();
    answer.await.unwrap();
}

#[tokio::test]
async fn what_is_kept_outlives_a_restart_in_its_order_and_what_is_not_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let (queues, orders) = (open(folder.path()), queue("orders"));
    let (session, _) = queues.connect();
    for (name, priority, persistent) in
        [("a", 4, true), ("b", 4, true), ("c", 9, true), ("d", 0, true), ("e", 9, false)]
    {
        assert_eq!(keep(&session, Send { priority, persistent, ..to(&orders, name) }).await, Done::Done);
    }
    drop(session);
    queues.close().await;
    let queues = open(folder.path());
    let (session, mut deliveries) = queues.connect();
    consumer(&session, &orders, 10).await;
    assert_eq!(names(&mut deliveries, 4).await, ["c", "a", "b", "d"]);
    assert!(is_quiet(&session, &mut deliveries).await, "the non-persistent one is gone");
}

#[tokio::test]
async fn what_is_acknowledged_durably_does_not_come_again_and_the_rest_does() {
    let folder = tempfile::tempdir().unwrap();
    let (queues, orders) = (open(folder.path()), queue("orders"));
    let (session, mut deliveries) = queues.connect();
    for name in ["a", "b", "c"] {
        keep(&session, to(&orders, name)).await;
    }
    consumer(&session, &orders, 10).await;
    next(&mut deliveries).await;
    let second = next(&mut deliveries).await;
    let range = (None, second.id);
    let ack = session.acknowledge(second.consumer, range, AckKind::Standard, None).await.unwrap();
    assert_eq!(ack.await.unwrap(), Done::Done);
    session.sync().await.unwrap().await.unwrap();
    drop((session, deliveries));
    queues.close().await;
    let queues = open(folder.path());
    let (session, mut deliveries) = queues.connect();
    keep(&session, to(&orders, "d")).await;
    consumer(&session, &orders, 10).await;
    // An earlier life may have given it out, and nobody knows.
    for expected in [("c", 1), ("d", 0)] {
        let delivery = next(&mut deliveries).await;
        assert_eq!((&*delivery.message.name, delivery.redeliveries), expected);
    }
    assert!(is_quiet(&session, &mut deliveries).await);
}

#[tokio::test]
async fn consumers_take_turns_within_their_prefetch() {
    let folder = tempfile::tempdir().unwrap();
    let (queues, orders) = (open(folder.path()), queue("orders"));
    let (session, mut deliveries) = queues.connect();
    let (one, two) = (consumer(&session, &orders, 2).await, consumer(&session, &orders, 3).await);
    for number in 0..8 {
        keep(&session, to(&orders, &number.to_string())).await;
    }
    let mut given = Vec::new();
    for _ in 0..5 {
        given.push(next(&mut deliveries).await);
    }
    let owners: Vec<u64> = given.iter().map(|delivery| delivery.consumer).collect();
    assert_eq!(owners, [one, two, one, two, two]);
    assert!(is_quiet(&session, &mut deliveries).await, "both are full");
    let range = (None, given[2].id);
    let seen = session.acknowledge(one, range, AckKind::Delivered, None).await.unwrap();
    seen.await.unwrap();
    let more = [next(&mut deliveries).await, next(&mut deliveries).await];
    assert_eq!(more.map(|delivery| delivery.consumer), [one, one], "what is only delivered makes room");
    let status = queues.list().await.unwrap().into_iter().find(|queue| queue.state.destination == orders);
    let state = status.unwrap().state;
    assert_eq!((state.depth, state.in_flight, state.consumers, state.enqueued), (8, 7, 2, 8));
}

#[tokio::test]
async fn what_a_closed_consumer_held_comes_first_again_in_order_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let (queues, orders) = (open(folder.path()), queue("orders"));
    let (session, mut deliveries) = queues.connect();
    for name in ["a", "b", "c", "d"] {
        keep(&session, to(&orders, name)).await;
    }
    let first = consumer(&session, &orders, 3).await;
    let seen = next(&mut deliveries).await;
    names(&mut deliveries, 2).await;
    session.unsubscribe(first, Seen::UpTo(seen.id)).await.unwrap().await.unwrap();
    let (other, mut others) = queues.connect();
    consumer(&other, &orders, 10).await;
    let mut found = Vec::new();
    for _ in 0..4 {
        let delivery = next(&mut others).await;
        found.push((delivery.message.name.to_string(), delivery.redeliveries));
    }
    let expected = [("a", 1), ("b", 0), ("c", 0), ("d", 0)].map(|(name, count)| (name.to_owned(), count));
    assert_eq!(found, expected, "only what the client has seen counts");
    drop(other);
    consumer(&session, &orders, 10).await;
    assert_eq!(next(&mut deliveries).await.redeliveries, 2, "a connection that breaks may have seen all");
}

#[tokio::test]
async fn a_transaction_is_seen_as_a_whole_at_its_commit_or_never() {
    let folder = tempfile::tempdir().unwrap();
    let (queues, orders) = (open(folder.path()), queue("orders"));
    let (session, mut deliveries) = queues.connect();
    let (other, mut others) = queues.connect();
    keep(&session, to(&orders, "a")).await;
    let key = consumer(&session, &orders, 1).await;
    let taken = next(&mut deliveries).await;
    session.begin(1).await.unwrap().await.unwrap();
    session.send(to(&orders, "b"), Some(1)).await.unwrap().await.unwrap();
    let range = (None, taken.id);
    let ack = session.acknowledge(key, range, AckKind::Standard, Some(1)).await.unwrap();
    ack.await.unwrap();
    consumer(&other, &orders, 10).await;
    assert!(is_quiet(&other, &mut others).await, "b is not sent yet, a is taken");
    session.rollback(1).await.unwrap().await.unwrap();
    assert!(is_quiet(&other, &mut others).await, "b was never sent, a is with its consumer again");
    session.begin(2).await.unwrap().await.unwrap();
    let ack = session.acknowledge(key, range, AckKind::Standard, Some(2)).await.unwrap();
    ack.await.unwrap();
    for name in ["c", "d"] {
        session.send(to(&orders, name), Some(2)).await.unwrap().await.unwrap();
    }
    session.commit(2).await.unwrap().await.unwrap();
    let both = [next(&mut deliveries), next(&mut others)];
    let [one, two] = both;
    let mut found = [one.await.message.name.to_string(), two.await.message.name.to_string()];
    found.sort();
    assert_eq!(found, ["c", "d"]);
    let refused = session.commit(2).await.unwrap().await.unwrap_err();
    assert!(matches!(refused, QueueError::Refused(Refusal::NoTransaction)), "{refused}");
}

#[tokio::test]
async fn a_connection_that_breaks_takes_its_transactions_back() {
    let folder = tempfile::tempdir().unwrap();
    let (queues, orders) = (open(folder.path()), queue("orders"));
    let (session, mut deliveries) = queues.connect();
    keep(&session, to(&orders, "a")).await;
    let key = consumer(&session, &orders, 1).await;
    let taken = next(&mut deliveries).await;
    session.begin(1).await.unwrap().await.unwrap();
    session.send(to(&orders, "b"), Some(1)).await.unwrap().await.unwrap();
    let ack = session.acknowledge(key, (None, taken.id), AckKind::Standard, Some(1)).await.unwrap();
    ack.await.unwrap();
    drop((session, deliveries));
    let (other, mut others) = queues.connect();
    consumer(&other, &orders, 10).await;
    let again = next(&mut others).await;
    assert_eq!((&*again.message.name, again.redeliveries), ("a", 1));
    assert!(is_quiet(&other, &mut others).await);
}

#[tokio::test]
async fn what_expires_or_is_given_up_is_a_dead_letter_with_its_cause_and_can_be_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let (queues, orders, dead_letters) = (open(folder.path()), queue("orders"), queue(DEAD_LETTERS));
    let (session, mut deliveries) = queues.connect();
    let expiring = |name, persistent| {
        let message = Message { expiration: now() - 1, ..(*message(name, 10)).clone() };
        Send { persistent, message: Arc::new(message), ..to(&orders, name) }
    };
    keep(&session, expiring("late", true)).await;
    keep(&session, expiring("late and light", false)).await;
    keep(&session, to(&orders, "poison")).await;
    let key = consumer(&session, &orders, 10).await;
    let poison = next(&mut deliveries).await;
    assert_eq!(&*poison.message.name, "poison");
    let range = (None, poison.id);
    session
        .acknowledge(key, range, AckKind::Poison(Some("no stock".to_owned())), None)
        .await
        .unwrap()
        .await
        .unwrap();
    let dead = queues.browse(dead_letters.clone(), Id::default(), 10, 1_000).await.unwrap();
    let told = dead.iter().map(|placed| (&*placed.message.name, placed.message.origin.clone().unwrap()));
    let from = |cause| Origin { queue: "orders".to_owned(), cause };
    let mut told: Vec<_> = told.collect();
    told.sort_by_key(|(name, _)| name.len());
    assert_eq!(told, [("late", from(Cause::Expired)), ("poison", from(Cause::poison(Some("no stock"))))]);
    assert_eq!(queues.retry(None).await.unwrap(), 2);
    let mut again = names(&mut deliveries, 2).await;
    again.sort();
    assert_eq!(again, ["late", "poison"], "what is tried again does not expire");
    assert_eq!(queues.browse(dead_letters, Id::default(), 10, 1_000).await.unwrap(), []);
}

#[tokio::test]
async fn what_a_producer_sends_again_after_its_connection_broke_is_kept_once() {
    let folder = tempfile::tempdir().unwrap();
    let orders = queue("orders");
    let sent = |number: u64, again| Send {
        producer: Some(("ID:host-1:1:1:1".into(), number)),
        again,
        ..to(&orders, &number.to_string())
    };
    let queues = open(folder.path());
    let (session, _) = queues.connect();
    for number in 1..=3 {
        keep(&session, sent(number, false)).await;
    }
    drop(session);
    queues.close().await;
    let queues = open(folder.path());
    let (session, mut deliveries) = queues.connect();
    assert_eq!(keep(&session, sent(2, true)).await, Done::Duplicate);
    assert_eq!(keep(&session, sent(3, true)).await, Done::Duplicate);
    assert_eq!(keep(&session, sent(4, true)).await, Done::Done);
    consumer(&session, &orders, 10).await;
    assert_eq!(names(&mut deliveries, 4).await, ["1", "2", "3", "4"]);
    assert!(is_quiet(&session, &mut deliveries).await);
}

#[tokio::test]
async fn a_temporary_queue_is_its_connections_own_and_ends_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let queues = open(folder.path());
    let (session, mut deliveries) = queues.connect();
    let (other, _others) = queues.connect();
    let reply = Destination::temporary("ID:host-1:1:1").unwrap();
    session.create_temporary(reply.clone()).await.unwrap().await.unwrap();
    keep(&other, to(&reply, "answer")).await;
    let refused = other.subscribe(other.consumer(), reply.clone(), 1).await.unwrap();
    assert!(matches!(refused.await, Err(QueueError::Refused(Refusal::NotYours { .. }))));
    let key = consumer(&session, &reply, 1).await;
    assert_eq!(names(&mut deliveries, 1).await, ["answer"]);
    let in_use = session.delete_temporary(reply.clone()).await.unwrap().await;
    assert!(matches!(in_use, Err(QueueError::Refused(Refusal::InUse { .. }))));
    session.unsubscribe(key, Seen::Nothing).await.unwrap().await.unwrap();
    drop((session, deliveries));
    let gone = other.send(to(&reply, "late"), None).await.unwrap().await.unwrap_err();
    let told = "temporary queue ID:host-1:1:1: its connection has ended, and it with it";
    assert_eq!(gone.to_string(), told);
    assert_eq!(queues.list().await.unwrap().len(), 1, "only that of dead letters is left");
}

#[tokio::test]
async fn a_consumer_without_prefetch_gets_what_it_asks_for() {
    let folder = tempfile::tempdir().unwrap();
    let (queues, orders) = (open(folder.path()), queue("orders"));
    let (session, mut deliveries) = queues.connect();
    let key = consumer(&session, &orders, 0).await;
    for name in ["a", "b", "c"] {
        keep(&session, to(&orders, name)).await;
    }
    assert!(is_quiet(&session, &mut deliveries).await);
    session.pull(key, 1).await.unwrap();
    let first = next(&mut deliveries).await;
    assert_eq!(&*first.message.name, "a");
    assert!(is_quiet(&session, &mut deliveries).await);
    acknowledge(&session, &first).await;
    assert!(is_quiet(&session, &mut deliveries).await, "an acknowledgement asks for nothing");
    session.pull(key, 1).await.unwrap();
    assert_eq!(names(&mut deliveries, 1).await, ["b"]);
}

#[tokio::test]
async fn an_operator_moves_purges_and_removes_but_not_what_consumers_hold() {
    let folder = tempfile::tempdir().unwrap();
    let (queues, orders, archive) = (open(folder.path()), queue("orders"), queue("archive"));
    let (session, mut deliveries) = queues.connect();
    // More than a page.
    for number in 0..1_201 {
        drop(session.send(to(&orders, &number.to_string()), None).await.unwrap());
    }
    keep(&session, Send { persistent: false, ..to(&orders, "light") }).await;
    let key = consumer(&session, &orders, 1).await;
    let held = next(&mut deliveries).await;
    assert_eq!(queues.relocate(orders.clone(), None, archive.clone()).await.unwrap(), 1_201);
    let refused = queues.remove(orders.clone()).await.unwrap_err().to_string();
    assert_eq!(refused, "queue orders: is in use; close its consumers and purge it first");
    acknowledge(&session, &held).await;
    session.unsubscribe(key, Seen::Nothing).await.unwrap().await.unwrap();
    queues.remove(orders.clone()).await.unwrap();
    assert!(matches!(queues.purge(orders).await, Err(QueueError::NoQueue { .. })));
    let two = queues.browse(archive.clone(), Id::default(), 2, 1 << 20).await.unwrap();
    let two: Vec<_> = two.iter().map(|placed| (&*placed.message.name, placed.id)).collect();
    assert_eq!((two[0].0, two[1].0), ("1", "2"), "in their order");
    let one = Some(vec![two[1].1]);
    assert_eq!(queues.relocate(archive.clone(), one, queue("picked")).await.unwrap(), 1);
    assert_eq!(queues.purge(archive.clone()).await.unwrap(), 1_200);
    assert_eq!(queues.browse(archive, Id::default(), 2, 1 << 20).await.unwrap(), []);
}

#[tokio::test]
async fn what_is_acknowledged_and_not_with_the_consumer_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (queues, orders) = (open(folder.path()), queue("orders"));
    let (session, _deliveries) = queues.connect();
    let key = consumer(&session, &orders, 1).await;
    let foreign = Id::from_number(i64::MAX);
    for (first, last) in [(None, foreign), (Some(foreign), foreign)] {
        let refused = session.acknowledge(key, (first, last), AckKind::Standard, None).await.unwrap().await;
        assert!(matches!(refused, Err(QueueError::Refused(Refusal::NotInFlight))));
    }
    let refused = session.acknowledge(key + 1, (None, foreign), AckKind::Standard, None).await.unwrap();
    assert!(matches!(refused.await, Err(QueueError::Refused(Refusal::NoConsumer))));
}

#[tokio::test]
async fn the_largest_numbers_a_client_can_say_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (queues, orders) = (open(folder.path()), queue("orders"));
    let (session, _deliveries) = queues.connect();
    for number in [i64::MAX.cast_unsigned(), u64::MAX] {
        let message = Message { at: number, expiration: number, ..(*message("far", 10)).clone() };
        let producer = Some(("ID:host-1:1:1:1".into(), number));
        assert_eq!(
            keep(&session, Send { producer, message: Arc::new(message), ..to(&orders, "") }).await,
            Done::Done
        );
    }
    assert_eq!(queues.gate().trouble, None);
}

#[tokio::test]
async fn browsing_skips_nothing_whatever_is_kept_and_what_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let (queues, orders) = (open(folder.path()), queue("orders"));
    let (session, _deliveries) = queues.connect();
    for number in 0..31 {
        keep(&session, Send { persistent: number == 30, ..to(&orders, &number.to_string()) }).await;
    }
    let (mut after, mut seen) = (Id::default(), Vec::new());
    loop {
        let page = queues.browse(orders.clone(), after, 10, 1 << 20).await.unwrap();
        let Some(last) = page.last() else { break };
        after = last.id;
        seen.extend(page.iter().map(|placed| placed.message.name.to_string()));
    }
    assert_eq!(seen, (0..31).map(|number| number.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn of_a_range_no_more_is_taken_than_its_client_has_counted() {
    let folder = tempfile::tempdir().unwrap();
    let (queues, orders) = (open(folder.path()), queue("orders"));
    let (session, mut deliveries) = queues.connect();
    let key = consumer(&session, &orders, 10).await;
    let mut given = Vec::new();
    for name in ["a", "b", "c"] {
        keep(&session, to(&orders, name)).await;
        given.push(next(&mut deliveries).await.id);
    }
    let range = (Some(given[0]), given[2]);
    let acknowledge =
        |most, transaction| session.acknowledge_counted(key, range, most, AckKind::Standard, transaction);
    let miscounted =
        |refused: QueueError| matches!(refused, QueueError::Refused(Refusal::Miscounted { most: 2 }));
    assert!(miscounted(acknowledge(2, None).await.unwrap().await.unwrap_err()));
    session.begin(1).await.unwrap().await.unwrap();
    assert!(miscounted(acknowledge(2, Some(1)).await.unwrap().await.unwrap_err()));
    assert!(miscounted(session.commit(1).await.unwrap().await.unwrap_err()));
    acknowledge(3, None).await.unwrap().await.unwrap();
    let state = queues.list().await.unwrap().into_iter().find(|queue| queue.state.destination == orders);
    assert_eq!(state.unwrap().state.dequeued, 3);
}
