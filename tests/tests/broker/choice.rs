//! Who of several consumers is given a message: groups, exclusive consumers, priorities of consumers.

use harness::java_client::{Acknowledge, Letter, Session};

use super::house::{House, QUIET, put, take, texts};

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
