//! Vaults that die, hang or leave, clients that die or hang, and what the failover transport makes
//! of it.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use harness::broker::failover;
use harness::java_client::{Acknowledge, JavaClient, Kind, Letter, Load, Login, Received, lines};
use harness::wait;

use super::house::{House, OPEN, QUIET, SOON, cause, counted, counts, put, refused, take, texts, waiting};

/// Both sides look for signs of life so often.
const SILENCE: Duration = Duration::from_secs(4);

/// The vaults' addresses with a wire that looks for signs of life. A client's own ones begin later than
/// it may be silent afterwards.
fn watchful(house: &House) -> [String; 2] {
    [0, 1].map(|at| {
        let silence = SILENCE.as_millis();
        let delay = (SILENCE * 3 / 2).as_millis();
        let options = format!(
            "wireFormat.maxInactivityDuration={silence}&wireFormat.maxInactivityDurationInitalDelay={delay}"
        );
        format!("tcp://{}?{options}", house.pair.vaults[at].broker)
    })
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
    let load = |kind, file: &Path| Load {
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
    let received = lines(&received).unwrap();
    let mut seen = BTreeSet::new();
    for line in &received {
        assert!(seen.insert(&line[1..3]) || line[3] == "true", "twice, and not marked: {line:?}");
    }
    let mut got: Vec<_> = received.iter().map(|line| line[1..3].to_vec()).collect();
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
    // What the client recognises as given before it puts aside.
    let dead = session.browse("ActiveMQ.DLQ", 1000).unwrap();
    assert!(dead.iter().all(|letter| cause(letter).contains("duplicate")), "{dead:?}");
    house.pair.vaults[0].program().unwrap().kill().unwrap();
    put(&session, "elsewhere", &["yes"]);
    assert_eq!(both.broker().unwrap(), house.pair.vaults[1].name);
    assert_eq!(waiting(&session, "elsewhere"), ["yes"]);
}

#[test]
fn a_frozen_clients_messages_go_to_another_and_one_that_only_idles_stays() {
    let house = House::start(OPEN);
    let [uri, _] = watchful(&house);
    let folder = house.pair.vaults[1].folder.clone();
    let frozen = JavaClient::start(&folder).unwrap();
    let idle = house.java.connect(&Login::to(&uri)).unwrap();
    let session = idle.session(Acknowledge::Auto).unwrap();
    put(&session, "dropped", &["1", "2"]);
    let hanging = frozen.connect(&Login::to(&uri)).unwrap().session(Acknowledge::Client).unwrap();
    let holds = hanging.consumer("dropped").unwrap();
    assert_eq!(texts(&take(&holds, 1)), ["1"]);
    frozen.freeze().unwrap();
    wait::until("it is dropped", SOON * 3, || {
        anyhow::ensure!(house.log().contains("closed: silent for 4s"), "{}", house.log());
        Ok(())
    })
    .unwrap();
    // Over its own limit twice.
    std::thread::sleep(SILENCE * 2);
    let told = idle.told().unwrap();
    assert!(told.is_empty(), "{told:?}");
    let consumer = session.consumer("dropped").unwrap();
    let got = take(&consumer, 2);
    assert_eq!(texts(&got), ["1", "2"]);
    assert!(got[0].redelivered, "{got:?}");
    frozen.thaw().unwrap();
}

#[test]
fn clients_of_a_frozen_vault_go_to_the_other_or_give_up_when_they_say_so() {
    let mut house = House::start(OPEN);
    let [a, b] = watchful(&house);
    let options = "initialReconnectDelay=50&useExponentialBackOff=false";
    let both = house.java.connect(&Login::to(&failover(&[a.clone(), b], options))).unwrap();
    let session = both.session(Acknowledge::Auto).unwrap();
    put(&session, "in time", &["1"]);
    let plain = house.java.connect(&Login::to(&format!("{}?jms.sendTimeout=1000", house.uri()))).unwrap();
    let plain = plain.session(Acknowledge::Auto).unwrap();
    put(&plain, "in time", &["2"]);

    house.pair.vaults[0].program().unwrap().freeze().unwrap();
    let late = refused(plain.send("in time", &Letter::text("late")));
    assert!(late.to_string().contains("imed") || late.to_string().contains("imeout"), "{late}");
    // Its sender waits until the silence is noticed, and is answered elsewhere.
    put(&session, "elsewhere", &["3"]);
    assert_eq!(both.broker().unwrap(), house.pair.vaults[1].name);
    assert_eq!(waiting(&session, "elsewhere"), ["3"]);
    house.pair.vaults[0].program().unwrap().thaw().unwrap();
}

#[test]
fn failover_gives_up_and_comes_home_as_its_options_say() {
    let mut house = House::start(OPEN);
    let [a, b] = [0, 1].map(|at| format!("tcp://{}", house.pair.vaults[at].broker));
    let connect = |uris: &[&String], options: &str| {
        let uris: Vec<String> = uris.iter().map(|uri| (*uri).clone()).collect();
        house.java.connect(&Login::to(&failover(&uris, options)))
    };
    let quick = "initialReconnectDelay=20&useExponentialBackOff=false";
    let timed = connect(&[&a], &format!("{quick}&timeout=700")).unwrap();
    let counted =
        connect(&[&a], &format!("{quick}&maxReconnectAttempts=3&warnAfterReconnectAttempts=1")).unwrap();
    let options = format!("{quick}&priorityBackup=true&updateURIsSupported=false&trackMessages=true");
    let homing = connect(&[&a, &b], &options).unwrap();
    let nested = format!("{quick}&nested.wireFormat.maxInactivityDuration=60000&jms.prefetchPolicy.all=3");
    let nested = connect(&[&b, &a], &nested).unwrap();
    assert_eq!(homing.broker().unwrap(), house.pair.vaults[0].name);
    assert_eq!(nested.broker().unwrap(), house.pair.vaults[1].name);
    let [timed, counted] =
        [&timed, &counted].map(|connection| connection.session(Acknowledge::Auto).unwrap());

    house.pair.vaults[0].program().unwrap().kill().unwrap();
    let gave_up = refused(timed.send("given up", &Letter::text("1")));
    assert!(gave_up.message.contains("timeout of 700"), "{gave_up}");
    refused(counted.send("given up", &Letter::text("2")));
    let options = format!("{quick}&startupMaxReconnectAttempts=2");
    let nobody = refused(house.java.connect(&Login::to(&failover(std::slice::from_ref(&a), &options))));
    assert!(nobody.class.contains("JMSException"), "{nobody}");
    let session = homing.session(Acknowledge::Auto).unwrap();
    put(&session, "meanwhile", &["3"]);
    assert_eq!(homing.broker().unwrap(), house.pair.vaults[1].name);

    house.pair.vaults[0].program().unwrap().restart().unwrap();
    wait::until("it is home again", SOON * 3, || {
        let broker = homing.broker()?;
        anyhow::ensure!(broker == house.pair.vaults[0].name, "{broker}");
        Ok(())
    })
    .unwrap();
    put(&session, "at home", &["4"]);
    assert_eq!(waiting(&session, "at home"), ["4"]);
}

#[test]
fn what_a_killed_client_had_goes_to_the_next_one_marked_as_redelivered() {
    let house = House::shared();
    let session = house.session(Acknowledge::Auto);
    put(&session, "killed", &["1", "2"]);
    let mut dies = JavaClient::start(&house.pair.vaults[1].folder).unwrap();
    let dying = dies.connect(&Login::to(&house.uri())).unwrap().session(Acknowledge::Client).unwrap();
    let had = dying.consumer("killed").unwrap();
    assert_eq!(texts(&take(&had, 1)), ["1"]);
    let consumer = session.consumer("killed").unwrap();
    assert_eq!(consumer.receive(QUIET).unwrap(), None);
    dies.kill().unwrap();
    let got = take(&consumer, 2);
    assert_eq!(texts(&got), ["1", "2"]);
    assert!(got[0].redelivered, "{got:?}");
}

#[test]
fn what_waited_for_a_vault_to_start_says_that_it_may_have_been_delivered() {
    let mut house = House::start(OPEN);
    let session = house.session(Acknowledge::Auto);
    put(&session, "before and after", &["1", "2", "3"]);
    let consumer = session.consumer("before and after").unwrap();
    assert_eq!(counted(&take(&consumer, 1)), [("1", false, 1)]);
    // Whether it still knows of that acknowledgement or not.
    let vault = house.pair.vaults[0].program().unwrap();
    vault.kill().unwrap();
    vault.restart().unwrap();
    let session = wait::until("it is back", SOON * 3, || {
        house.java.connect(&Login::to(&house.uri()))?.session(Acknowledge::Auto)
    });
    let session = session.unwrap();
    put(&session, "before and after", &["new"]);
    let consumer = session.consumer("before and after").unwrap();
    let mut got = Vec::new();
    while got.last().is_none_or(|last: &Received| last.text() != Some("new")) {
        got.extend(take(&consumer, 1));
    }
    let (new, old) = got.split_last().unwrap();
    assert_eq!(counts(new), ("new", false, 1));
    assert!(old.len() >= 2 && old.iter().all(|message| message.redelivered), "{old:?}");
}
