//! What is rolled back and comes again, as the client's redelivery policy says, until it is a dead
//! letter.

use std::time::Duration;

use harness::java_client::{Acknowledge, Delivery, Letter, Session};
use harness::wait;

use super::house::{House, ONCE, QUIET, SOON, cause, counted, dead, put, take, texts, waiting};

/// A transacted session whose redelivery policy has these, each after `jms.redeliveryPolicy.`.
fn with(house: &House, policy: &[&str]) -> Session {
    let options: Vec<_> = policy.iter().map(|option| format!("jms.redeliveryPolicy.{option}")).collect();
    house.connect(&options.join("&")).session(Acknowledge::Transacted).unwrap()
}

const AT_ONCE: [&str; 2] = ["initialRedeliveryDelay=0", "redeliveryDelay=0"];

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
    let dead = dead(&house.session(Acknowledge::Auto), &sent);
    assert!(cause(&dead).contains("redelivery policy"), "{dead:?}");
    assert_eq!(dead.text(), Some("bitter"));
}

#[test]
fn by_default_the_seventh_rollback_makes_a_dead_letter() {
    let house = House::shared();
    let session = with(&house, &AT_ONCE);
    let sent = session.send("six times more", &Letter::text("6")).unwrap();
    session.commit().unwrap();
    let consumer = session.consumer("six times more").unwrap();
    for delivery in 1..=7 {
        assert_eq!(counted(&take(&consumer, 1)), [("6", delivery > 1, delivery)]);
        session.rollback().unwrap();
    }
    assert_eq!(consumer.receive(QUIET).unwrap(), None);
    dead(&house.session(Acknowledge::Auto), &sent);
}

#[test]
fn without_any_redelivery_the_first_rollback_makes_a_dead_letter() {
    let house = House::shared();
    let session = with(&house, &["maximumRedeliveries=0"]);
    let sent = session.send("once only", &Letter::text("0")).unwrap();
    put(&session, "once only", &["next"]);
    session.commit().unwrap();
    let consumer = session.consumer("once only").unwrap();
    assert_eq!(texts(&take(&consumer, 1)), ["0"]);
    session.rollback().unwrap();
    assert_eq!(counted(&take(&consumer, 1)), [("next", false, 1)]);
    session.commit().unwrap();
    dead(&house.session(Acknowledge::Auto), &sent);
}

#[test]
fn unlimited_redeliveries_never_make_a_dead_letter() {
    let house = House::shared();
    let session = with(&house, &["maximumRedeliveries=-1", AT_ONCE[0], AT_ONCE[1]]);
    put(&session, "for ever", &["again"]);
    session.commit().unwrap();
    let consumer = session.consumer("for ever").unwrap();
    for delivery in 1..=20 {
        assert_eq!(counted(&take(&consumer, 1)), [("again", delivery > 1, delivery)]);
        session.rollback().unwrap();
    }
    assert_eq!(texts(&take(&consumer, 1)), ["again"]);
    session.commit().unwrap();
}

#[test]
fn redelivery_delays_grow_by_their_multiplier() {
    let house = House::shared();
    let session = with(
        &house,
        &[
            "initialRedeliveryDelay=100",
            "redeliveryDelay=100",
            "useExponentialBackOff=true",
            "backOffMultiplier=3",
        ],
    );
    put(&session, "slower and slower", &["1"]);
    session.commit().unwrap();
    let consumer = session.consumer("slower and slower").unwrap();
    take(&consumer, 1);
    for least in [100, 300, 900] {
        // How much later it comes is the machine's affair.
        let due = wait::Deadline::after(Duration::from_millis(least));
        session.rollback().unwrap();
        assert_eq!(texts(&take(&consumer, 1)), ["1"]);
        assert!(due.passed(), "{least} ms");
    }
    session.commit().unwrap();
}

#[test]
fn a_redelivery_that_does_not_block_lets_the_others_pass() {
    let house = House::shared();
    let options = "jms.nonBlockingRedelivery=true&jms.redeliveryPolicy.initialRedeliveryDelay=5000";
    let session = house.connect(options).session(Acknowledge::Transacted).unwrap();
    put(&session, "passed by", &["1", "2", "3"]);
    session.commit().unwrap();
    let consumer = session.consumer("passed by").unwrap();
    assert_eq!(texts(&take(&consumer, 1)), ["1"]);
    session.rollback().unwrap();
    assert_eq!(texts(&take(&consumer, 2)), ["2", "3"]);
    session.commit().unwrap();
    assert_eq!(counted(&take(&consumer, 1)), [("1", true, 2)]);
    session.commit().unwrap();
}

#[test]
fn a_non_persistent_message_that_dies_is_dropped() {
    let house = House::shared();
    let session = house.connect(ONCE).session(Acknowledge::Transacted).unwrap();
    let volatile = Delivery { persistent: false, ..Delivery::default() };
    let light = session.send_as("dies", &Letter::text("light"), volatile).unwrap();
    let kept = session.send("dies", &Letter::text("kept")).unwrap();
    session.commit().unwrap();
    let consumer = session.consumer("dies").unwrap();
    for _ in 0..2 {
        assert_eq!(texts(&take(&consumer, 2)), ["light", "kept"]);
        session.rollback().unwrap();
    }
    assert_eq!(consumer.receive(QUIET).unwrap(), None);
    let other = house.session(Acknowledge::Auto);
    dead(&other, &kept);
    let letters = other.browse("ActiveMQ.DLQ", 1000).unwrap();
    assert!(letters.iter().all(|letter| letter.id != light.id), "{letters:?}");
}

#[test]
fn what_expires_is_a_dead_letter_with_the_reason_if_it_was_persistent() {
    let house = House::shared();
    let session = house.session(Acknowledge::Auto);
    // One waits in the queue, the other one in its consumer's hands.
    let time_to_live = Duration::from_millis(500);
    let sent = ["waits", "fetched"].map(|queue| {
        let consumer = (queue == "fetched").then(|| session.consumer(queue).unwrap());
        let [kept, light] = [true, false].map(|persistent| {
            let delivery = Delivery { persistent, time_to_live, ..Delivery::default() };
            session.send_as(queue, &Letter::text("old"), delivery).unwrap()
        });
        wait::until("their time is over", SOON, || {
            let now = std::time::UNIX_EPOCH.elapsed()?.as_millis();
            anyhow::ensure!(now > u128::try_from(light.expiration.max(kept.expiration))?, "{now}");
            Ok(())
        })
        .unwrap();
        let consumer = consumer.unwrap_or_else(|| session.consumer(queue).unwrap());
        assert_eq!(consumer.receive(QUIET).unwrap(), None);
        (kept, light)
    });
    let other = house.session(Acknowledge::Auto);
    for (kept, light) in &sent {
        let letter = dead(&other, kept);
        assert!(cause(&letter).contains("Message Expired"), "{letter:?}");
        assert_eq!(letter.expiration, 0, "it expires no more");
        let letters = other.browse("ActiveMQ.DLQ", 1000).unwrap();
        assert!(letters.iter().all(|letter| letter.id != light.id), "{letters:?}");
    }
    assert!(waiting(&other, "fetched").is_empty());
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
