//! Senders for whom there is no room: they are held or refused with words, everybody else goes on, and
//! nothing that was accepted is lost.

use std::collections::BTreeSet;
use std::time::Duration;

use harness::broker::failover;
use harness::java_client::{Acknowledge, Body, Connection, Delivery, Letter, Login, Session};
use harness::small_disk::{self, SmallDisk};
use harness::vault_host::PairPlan;
use harness::{plain, wait};

use super::house::{House, OPEN, QUIET, SOON, put, refused, take, texts, waiting};
use super::peer::{Guise, Peer, queue};

const LIGHT: Delivery = Delivery { persistent: false, priority: 4, time_to_live: Duration::ZERO };

/// So much that some four of them fill a memory of a megabyte.
fn heavy() -> Letter {
    Letter::new(Body::Filled(300_000))
}

fn house(hold: &str) -> House {
    House::start(&format!("{OPEN}memory = \"1MiB\"\nmax_message = \"1MiB\"\nhold = \"{hold}\"\n"))
}

fn synchronous(house: &House) -> Connection {
    house.connect("jms.alwaysSyncSend=true")
}

#[test]
fn a_held_senders_own_connection_takes_what_makes_room_for_it() {
    let house = house("60s");
    let connection = synchronous(&house);
    let (sends, consumes) =
        (connection.session(Acknowledge::Auto).unwrap(), connection.session(Acknowledge::Client).unwrap());
    let closing = connection.session(Acknowledge::Auto).unwrap();
    std::thread::scope(|scope| {
        let (told, sent) = std::sync::mpsc::channel();
        let sends = &sends;
        scope.spawn(move || {
            for number in 0..12 {
                sends.send_as("held", &heavy(), LIGHT).unwrap();
                told.send(number).unwrap();
            }
        });
        wait::until("the sender is held", SOON, || {
            let status = house.pair.vaults[0].command(&["--json", "status"])?;
            anyhow::ensure!(status.contains("the memory for non-persistent messages"), "{status}");
            Ok(())
        })
        .unwrap();
        // It is held now; others are opened, sent to and closed on the same connection.
        drop(closing.consumer("other").unwrap());
        put(&house.session(Acknowledge::Auto), "other", &["kept"]);
        assert_eq!(texts(&take(&closing.consumer("other").unwrap(), 1)), ["kept"]);
        let consumer = consumes.consumer("held").unwrap();
        for _ in 0..12 {
            let got = take(&consumer, 1);
            assert_eq!(got[0].length, 300_000);
            consumes.acknowledge(&got[0]).unwrap();
        }
        assert_eq!(sent.iter().count(), 12);
    });
}

#[test]
fn a_sender_that_is_held_for_too_long_is_told_what_to_do() {
    let house = house("1s");
    let session = synchronous(&house).session(Acknowledge::Auto).unwrap();
    let mut refusal = None;
    for _ in 0..8 {
        if let Err(error) = session.send_as("full", &heavy(), LIGHT) {
            refusal = Some(refused(Err::<(), _>(error)));
            break;
        }
    }
    let refusal = refusal.unwrap();
    assert_eq!(refusal.class, "javax.jms.ResourceAllocationException", "{refusal}");
    assert!(refusal.message.contains("consume or purge messages, or raise the limit"), "{refusal}");
    // Persistent ones have another room.
    put(&session, "on disk", &["kept"]);
    assert_eq!(texts(&take(&session.consumer("on disk").unwrap(), 1)), ["kept"]);
}

#[test]
fn a_held_sender_that_has_hung_up_is_noticed_though_it_is_not_read() {
    let house = house("600s");
    let mut peer = Peer::connect(&house, &Guise::called("held")).unwrap();
    let heavy = |peer: &Peer, number| {
        let mut message = peer.message("held", number, queue("full"));
        message.persistent = false;
        message.content = Some(vec![0; 300_000].into());
        message
    };
    // Four fill the memory, four are held, and what comes behind those is not read.
    for number in 0..4 {
        let message = heavy(&peer, number);
        peer.ask(message).unwrap();
    }
    wait::until("the memory is full", SOON, || {
        let status = house.pair.vaults[0].command(&["--json", "status"])?;
        anyhow::ensure!(status.contains("the memory for non-persistent messages"), "{status}");
        Ok(())
    })
    .unwrap();
    for number in 4..9 {
        let message = heavy(&peer, number);
        peer.say(message, false);
    }
    wait::until("it is held", SOON, || {
        let metrics = plain::expect_ok(house.pair.vaults[0].admin, "/metrics")?;
        anyhow::ensure!(metrics.contains("vault_broker_sends_held_total{full=\"memory\"} 4"), "{metrics}");
        Ok(())
    })
    .unwrap();
    drop(peer);
    wait::until("its connection is given up", SOON, || {
        let clients = house.clients()?;
        anyhow::ensure!(clients == 0, "{clients} clients");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_message_larger_than_any_may_be_is_refused_and_its_connection_goes_on() {
    let house = house("60s");
    let login = Login::to(&failover(&[house.uri()], "jms.useAsyncSend=false"));
    let connection = house.java.connect(&login).unwrap();
    let session = connection.session(Acknowledge::Auto).unwrap();
    let transacted = connection.session(Acknowledge::Transacted).unwrap();
    let large = Letter::new(Body::Filled(3 << 20));
    let above = Letter::new(Body::Filled((1 << 20) + 1));
    session.send("exact", &Letter::new(Body::Filled(1 << 20))).unwrap();
    for (number, large) in [&large, &above, &large].into_iter().enumerate() {
        let refusal = refused(session.send("sizes", large));
        assert_eq!(refusal.class, "javax.jms.MessageFormatException", "{refusal}");
        assert!(refusal.message.contains("raise broker.max_message"), "{refusal}");
        put(&session, "sizes", &[&number.to_string()]);
    }
    // Nobody waits for the answer to it in a transaction, of which half must not be done.
    put(&transacted, "sizes", &["half"]);
    transacted.send("sizes", &large).unwrap();
    let refusal = refused(transacted.commit());
    assert_eq!(refusal.class, "javax.jms.TransactionRolledBackException", "{refusal}");
    assert_eq!(waiting(&session, "sizes"), ["0", "1", "2"]);
    let told = connection.told().unwrap();
    assert!(told.iter().all(|told| told.class != "interrupted"), "{told:?}");
}

/// Sends until it is refused; what was taken, and the refusal's words.
fn send_until_refused(session: &Session, sent: &mut BTreeSet<String>) -> String {
    let bodies = (0..5_000).map(|number| format!("{:04} {}", number, "x".repeat(4_000)));
    for body in bodies {
        match session.send("disk", &Letter::text(&body)) {
            Ok(message) => assert!(sent.insert(message.id)),
            Err(error) => {
                let refusal = refused(Err::<(), _>(error));
                assert_eq!(refusal.class, "javax.jms.ResourceAllocationException", "{refusal}");
                return refusal.message;
            }
        }
    }
    panic!("the full disk is not felt");
}

#[test]
fn on_a_full_disk_senders_are_refused_consumers_go_on_and_nothing_is_lost() {
    let broker = Some(format!("{OPEN}hold = \"1s\"\n"));
    let plan = PairPlan { broker, wrapper: Some(small_disk::wrapper), ..PairPlan::default() };
    let house = House::planned(plan);
    let disk = SmallDisk::of(&house.pair.vaults[0]).unwrap();
    let session = house.session(Acknowledge::Auto);
    let (mut sent, mut got) = (BTreeSet::new(), BTreeSet::new());
    for number in 0..200 {
        sent.insert(session.send("disk", &Letter::text(&number.to_string())).unwrap().id);
    }
    disk.fill().unwrap();
    let words = send_until_refused(&session, &mut sent);
    // Whoever is there in the moment between the two is told by the disk itself.
    let is_told =
        words.contains("the journal's disk has been full") || words.contains("could not be written");
    assert!(is_told && words.contains("again"), "{words}");
    // Consumers go on all the while, and what they acknowledge is not given again.
    let consumer = session.consumer("disk").unwrap();
    for message in take(&consumer, 100) {
        assert!(got.insert(message.id), "twice");
    }
    drop(consumer);
    disk.make_room().unwrap();
    wait::until("senders are served again", SOON * 3, || {
        sent.insert(session.send("disk", &Letter::text("after"))?.id);
        Ok(())
    })
    .unwrap();

    let consumer = session.consumer("disk").unwrap();
    while let Some(message) = consumer.receive(QUIET * 10).unwrap() {
        assert!(got.insert(message.id), "twice");
    }
    assert_eq!(got, sent);
}

#[test]
fn a_broker_that_is_killed_on_a_full_disk_gives_what_waits_before_there_is_room() {
    let broker = Some(format!("{OPEN}hold = \"1s\"\n"));
    let plan = PairPlan { broker, wrapper: Some(small_disk::wrapper), ..PairPlan::default() };
    let mut house = House::planned(plan);
    let disk = SmallDisk::of(&house.pair.vaults[0]).unwrap();
    let (mut sent, mut got) = (BTreeSet::new(), BTreeSet::new());
    {
        let session = house.session(Acknowledge::Auto);
        for number in 0..200 {
            sent.insert(session.send("disk", &Letter::text(&number.to_string())).unwrap().id);
        }
        disk.fill().unwrap();
        send_until_refused(&session, &mut sent);
        house.pair.vaults[0].program().unwrap().kill().unwrap();
    }
    house.pair.vaults[0].program().unwrap().restart().unwrap();
    house.pair.vaults[0].wait_alive().unwrap();
    let disk = SmallDisk::of(&house.pair.vaults[0]).unwrap();
    let session = wait::until("the broker takes clients", SOON, || {
        house.java.connect(&Login::to(&house.uri()))?.session(Acknowledge::Auto)
    });
    let session = session.unwrap();
    send_until_refused(&session, &mut sent);
    let consumer = session.consumer("disk").unwrap();
    for message in take(&consumer, sent.len()) {
        assert!(got.insert(message.id), "twice");
    }
    assert_eq!(got, sent);
    disk.make_room().unwrap();
    wait::until("senders are served again", SOON * 3, || {
        session.send("disk", &Letter::text("after"))?;
        Ok(())
    })
    .unwrap();
    assert_eq!(texts(&take(&consumer, 1)), ["after"]);
}
