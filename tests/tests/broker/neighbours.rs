//! Users beside each other, one of whom means no good: nobody's messages, connections, queues and time are
//! another's to take.

use std::io::Write as _;

use harness::cluster::temporary_folder;
use harness::java_client::{Acknowledge, Body, Letter};
use harness::{plain, wait};
use tempfile::TempDir;

use super::house::{House, OPEN, SOON, put, waiting};
use super::peer::{Guise, Peer, queue, temporary};

const PASSWORD: &str = "right-enough";

/// A vault for two users.
fn house() -> (House, TempDir) {
    let folder = temporary_folder().unwrap();
    let users = folder.path().join("users");
    let known = ["alice", "mallory"]
        .map(|user| (user.to_owned(), vault::broker::users::hash(user, PASSWORD).unwrap()));
    vault::broker::users::write(&users, &known.into()).unwrap();
    (House::start(&format!("in_clear = true\nusers_file = \"{}\"\n", users.display())), folder)
}

fn guise(user: &str, name: &str, again: bool) -> Guise {
    let account = Some((user.to_owned(), PASSWORD.to_owned()));
    Guise { account, again, ..Guise::called(name) }
}

fn login(house: &House, user: &str, name: &str, again: bool) -> Peer {
    Peer::connect(house, &guise(user, name, again)).unwrap()
}

fn browsed(peer: &mut Peer, number: i64, name: &str) -> usize {
    let mut info = peer.consumer(number, queue(name), 100);
    info.browser = true;
    peer.ask(info).unwrap();
    std::iter::from_fn(|| peer.next()).count()
}

#[test]
fn numbers_that_another_user_has_sent_make_nobodys_messages_duplicates() {
    let (house, _folder) = house();
    let mut mallory = login(&house, "mallory", "m", false);
    let poison = mallory.message("ID:alice", 1 << 62, queue("junk"));
    mallory.ask(poison).unwrap();
    let mut alice = login(&house, "alice", "ID:alice", true);
    for number in 1..=3 {
        let message = alice.message("ID:alice", number, queue("orders"));
        alice.ask(message).unwrap();
    }
    // What she sends again herself is recognised as ever, on another connection of hers too.
    let mut back = login(&house, "alice", "ID:alice", true);
    for number in 1..=3 {
        let message = back.message("ID:alice", number, queue("orders"));
        back.ask(message).unwrap();
    }
    assert_eq!(browsed(&mut back, 1, "orders"), 3);
}

#[test]
fn a_client_is_replaced_by_its_own_user_alone() {
    let (house, _folder) = house();
    let mut alice = login(&house, "alice", "ID:a", false);
    let mut mallory = login(&house, "mallory", "ID:a", true);
    for peer in [&mut alice, &mut mallory] {
        let message = peer.message("ID:a", 1, queue("both"));
        peer.ask(message).unwrap();
    }
    assert!(Peer::connect(&house, &guise("alice", "ID:a", false)).is_err_and(|why| why.contains("already")));
    login(&house, "alice", "ID:a", true);
    let log = house.log();
    assert!(log.contains("its client \"ID:a\", user alice, is back from"), "{log}");
    let message = mallory.message("ID:a", 2, queue("both"));
    mallory.ask(message).unwrap();
    assert_eq!(browsed(&mut mallory, 1, "both"), 3);
}

#[test]
fn a_temporary_queue_is_made_read_and_browsed_by_its_own_connection_alone() {
    let (house, _folder) = house();
    let alice = login(&house, "alice", "ID:a", false);
    let mut other = login(&house, "mallory", "m", false);
    let mut double = login(&house, "mallory", "ID:a", false);
    for peer in [&mut other, &mut double] {
        let early = peer.temporary("ID:a:1");
        assert!(peer.ask(early).is_err_and(|why| why.contains("belongs to another connection")));
    }
    // Nor by another user while its own client is away, as it is while it reconnects.
    drop(alice);
    wait::until("she is gone", SOON, || {
        let clients = house.clients()?;
        anyhow::ensure!(clients == 2, "{clients} clients");
        Ok(())
    })
    .unwrap();
    let late = Guise { connection: "ID:a".to_owned(), ..guise("mallory", "late", true) };
    let mut late = Peer::connect(&house, &late).unwrap();
    for peer in [&mut double, &mut late] {
        let early = peer.temporary("ID:a:1");
        assert!(peer.ask(early).is_err_and(|why| why.contains("connect under an id of your own")));
    }
    let mut alice = login(&house, "alice", "ID:a", true);
    let makes = alice.temporary("ID:a:1");
    alice.ask(makes).unwrap();
    let mut reply = other.message("m", 1, temporary("ID:a:1"));
    reply.persistent = false;
    other.ask(reply).unwrap();
    for browser in [false, true] {
        let mut info = other.consumer(1, temporary("ID:a:1"), 10);
        info.browser = browser;
        assert!(other.ask(info).is_err_and(|why| why.contains("belongs to another connection")));
    }
    let mut info = alice.consumer(1, temporary("ID:a:1"), 10);
    info.browser = true;
    alice.ask(info).unwrap();
    assert_eq!(std::iter::from_fn(|| alice.next()).count(), 1);
}

#[test]
fn a_browser_that_reads_nothing_holds_its_share_of_memory_and_no_more() {
    let house = House::start(OPEN);
    let session = house.session(Acknowledge::Auto);
    session.send("large", &Letter::new(Body::Filled(20 << 20))).unwrap();
    put(&session, "small", &["yes"]);
    let before = house.resident();
    let mut deaf = Vec::new();
    for number in 0..6 {
        let mut peer = Peer::connect(&house, &Guise::called(&format!("deaf-{number}"))).unwrap();
        for browser in 0..16 {
            let mut info = peer.consumer(browser, queue("large"), 1);
            info.browser = true;
            peer.say(info, false);
        }
        deaf.push(peer);
    }
    for _ in 0..40 {
        assert_eq!(waiting(&session, "small"), ["yes"]);
        let more = house.resident() - before;
        assert!(more < 640.0, "{more} MiB for one message of 20 MiB");
    }
}

#[test]
fn large_frames_that_do_not_come_hold_up_nobody_and_are_given_up() {
    let house = House::start(OPEN);
    let session = house.session(Acknowledge::Auto);
    let mut slow = Vec::new();
    for number in 0..8_u8 {
        let mut peer = Peer::connect(&house, &Guise::called(&format!("slow-{number}"))).unwrap();
        peer.socket.write_all(&(64_u32 << 20).to_be_bytes()).unwrap();
        peer.socket.write_all(&vec![28; 70_000]).unwrap();
        slow.push(peer);
    }
    session.send("wide", &Letter::new(Body::Filled(200 << 10))).unwrap();
    wait::until("the slow ones are closed and counted", SOON * 2, || {
        let metrics = plain::expect_ok(house.pair.vaults[0].admin, "/metrics")?;
        let closed = metrics.contains("vault_broker_connections_refused_total{reason=\"slow\"} 8");
        anyhow::ensure!(closed, "{metrics}");
        Ok(())
    })
    .unwrap();
    assert!(house.log().contains("comes at less than 64 KiB/s"), "{}", house.log());
    session.send("wide", &Letter::new(Body::Filled(200 << 10))).unwrap();
}
