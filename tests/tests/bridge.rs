//! Stories of the bridge between two real brokers: every message arrives at the other one as it was
//! sent, and exactly once, whatever is killed. The bridges are processes of this test's own
//! program.
#![expect(clippy::unwrap_used, reason = "a story's own steps fail the story when they fail")]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use harness::activemq::ActiveMq;
use harness::broker::{Broker, Seat, failover};
use harness::cluster::temporary_folder;
use harness::java_client::{Acknowledge, Body, JavaClient, Kind, Letter, Load, Login, Value, lines};
use harness::program::{Program, Recipe};
use harness::receipts::Dice;
use harness::wait;
use serde::{Deserialize, Serialize};
use shared::shutdown::Shutdown;
use tokio::sync::watch;
use vault::bridge::core::Limits;
use vault::bridge::direction::{self, Settings, Status};
use vault::openwire::client::{Login as Account, trust};
use vault::openwire::{Destination, Text};

const SOON: Duration = Duration::from_secs(30);
/// A bridge's settings, for its process.
const BRIDGE: &str = "VAULT_BRIDGE_OF_A_STORY";

/// One direction, run by one vault.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Plan {
    name: String,
    vault: String,
    folder: PathBuf,
    from: String,
    to: String,
    queue: String,
    /// The target's account and authority, if it wants one.
    account: Option<(String, String, PathBuf)>,
}

impl Plan {
    fn start(&self) -> Program {
        std::fs::create_dir_all(&self.folder).unwrap();
        let test = "a_bridge_of_a_story";
        let arguments = ["--exact", test, "--nocapture", "--test-threads=1"].map(OsString::from);
        let mut recipe = Recipe::new(&self.vault, std::env::current_exe().unwrap(), arguments, &self.folder);
        let plan = format!("{BRIDGE}={}", serde_json::to_string(self).unwrap());
        recipe.wrapper = vec!["/usr/bin/env".into(), plan.into()];
        Program::start(recipe).unwrap()
    }

    fn settings(&self) -> Settings {
        let patience = Duration::from_secs(10);
        let from = Account { patience, ..Account::default() };
        let to = match &self.account {
            Some((user, password, authority)) => Account {
                user: Some(user.clone()),
                password: Some(password.clone()),
                tls: Some(trust(authority, None).unwrap()),
                ..from.clone()
            },
            None => from.clone(),
        };
        let broker = |uri: &str, login| direction::Broker { uri: uri.parse().unwrap(), login };
        Settings {
            name: self.name.clone(),
            vault: self.vault.clone(),
            file: self.folder.join("bridge.db"),
            from: broker(&self.from, from),
            to: broker(&self.to, to),
            destination: Destination::queue(Text::shortened(&self.queue)),
            limits: Limits::default(),
            prefetch: 1000,
        }
    }
}

/// Does nothing unless a story starts it as a process of its own; then it is killed.
#[test]
fn a_bridge_of_a_story() {
    let Ok(plan) = std::env::var(BRIDGE) else { return };
    let plan: Plan = serde_json::from_str(&plan).unwrap();
    let settings = plan.settings();
    settings.check().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (status, mut shown) = watch::channel(Status::default());
        let carried = direction::run(Arc::new(settings), status, Shutdown::new());
        let told = async {
            while shown.changed().await.is_ok() {
                println!("{:?}", shown.borrow_and_update().clone());
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        tokio::join!(carried, told);
    });
}

fn brokers(folder: &Path, seats: [Seat; 2]) -> [Broker; 2] {
    let launched = seats.map(|seat| ActiveMq::at(seat).launch(folder).unwrap());
    launched.map(|mut broker| {
        broker.wait_ready().unwrap();
        broker
    })
}

fn watched(broker: &Broker) -> String {
    let options = "wireFormat.maxInactivityDuration=3000&connectionTimeout=5000";
    format!("failover:({}?{options})?maxReconnectDelay=500", broker.uri())
}

fn plan(folder: &Path, name: &str, vault: &str, from: &Broker, to: &Broker) -> Plan {
    Plan {
        name: name.to_owned(),
        vault: vault.to_owned(),
        folder: folder.join(format!("{name}-{vault}")),
        from: watched(from),
        to: watched(to),
        queue: "orders.>".to_owned(),
        account: None,
    }
}

/// One of every type, with headers and properties.
fn letters() -> Vec<Letter> {
    let values = BTreeMap::from([
        ("boolean".to_owned(), Value::Boolean(true)),
        ("byte".to_owned(), Value::Byte(-128)),
        ("short".to_owned(), Value::Short(-32_768)),
        ("int".to_owned(), Value::Int(i32::MIN)),
        ("long".to_owned(), Value::Long(i64::MIN)),
        ("float".to_owned(), Value::Float(-0.1)),
        ("double".to_owned(), Value::Double(f64::MIN_POSITIVE)),
        ("string".to_owned(), Value::String("Grüße \u{20ac}".to_owned())),
    ]);
    let bodies = [
        Body::Plain,
        Body::Text(Some("Ein Brief \u{20ac}".to_owned())),
        Body::Bytes((0..=255).collect()),
        Body::Filled(2_000_000),
        Body::Map(values.clone()),
        Body::Stream(values.values().cloned().collect()),
        Body::Object(Value::Map(values.clone())),
    ];
    let letter = |body| {
        let mut letter = Letter::new(body).reply_to("queue://answers").group("one", 7);
        letter.correlation_id = Some("order-17".to_owned());
        letter.kind = Some("invoice".to_owned());
        letter.properties = values.clone();
        letter
    };
    bodies.map(letter).into()
}

#[test]
fn every_message_arrives_at_the_other_broker_as_it_was_sent_and_does_not_come_back() {
    let folder = temporary_folder().unwrap();
    let [a, b] = brokers(folder.path(), ["a", "b"].map(|name| Seat::new(name).unwrap()));
    let there = plan(folder.path(), "a-to-b", "left", &a, &b).start();
    let back = plan(folder.path(), "b-to-a", "left", &b, &a).start();
    let java = JavaClient::start(folder.path()).unwrap();
    let (at_a, at_b) =
        (java.connect(&Login::to(&a.uri())).unwrap(), java.connect(&Login::to(&b.uri())).unwrap());
    let (sender, receiver) =
        (at_a.session(Acknowledge::Auto).unwrap(), at_b.session(Acknowledge::Auto).unwrap());
    let sent: Vec<_> = letters().iter().map(|letter| sender.send("orders.new", letter).unwrap()).collect();
    wait_for(&there, sent.len());
    // Both ways are open, and what came by the bridge is not carried back.
    let consumer = receiver.consumer("orders.new").unwrap();
    let mut differences = Vec::new();
    for letter in &sent {
        let arrived = consumer.receive(SOON).unwrap().expect("it is there");
        assert_eq!(arrived.id, letter.id);
        differences.extend(letter.differences(&arrived));
    }
    assert_eq!(differences, Vec::<String>::new());
    assert!(!back.log().contains("journalled: 1"), "{}", back.log_tail(3));
}

#[test]
fn messages_arrive_in_order_over_tls_with_an_account() {
    const MESSAGES: u64 = 3000;
    let folder = temporary_folder().unwrap();
    let guarded = Seat::new("b").unwrap().with_tls().unwrap().with_account("vault", "right");
    let [a, b] = brokers(folder.path(), [Seat::new("a").unwrap(), guarded]);
    let account = Some(("vault".to_owned(), "right".to_owned(), b.authority.clone().unwrap()));
    let plan = plan(folder.path(), "a-to-b", "left", &a, &b);
    let bridge = Plan { to: b.tls_uri().unwrap(), account, ..plan }.start();
    let java = JavaClient::start(folder.path()).unwrap();
    let load = Load { connections: 3, ..Load::new(Kind::Send, "orders.new", MESSAGES) };
    java.load(&Login::to(&a.uri()), &load).unwrap().wait(Duration::from_secs(60)).unwrap();
    wait_for(&bridge, 3000);
    let received = folder.path().join("received");
    let load = Load { file: Some(received.clone()), ..Load::new(Kind::Receive, "orders.new", MESSAGES) };
    let login = Login::to(&b.uri()).account("vault", "right");
    java.load(&login, &load).unwrap().wait(Duration::from_secs(60)).unwrap();
    let mut by_producer: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for line in lines(&received).unwrap() {
        by_producer.entry(line[1].clone()).or_default().push(line[2].parse().unwrap());
    }
    assert_eq!(by_producer.values().map(Vec::len).sum::<usize>(), 3000);
    assert!(
        by_producer.values().all(|numbers| numbers.is_sorted_by(|one, next| one < next)),
        "{by_producer:?}"
    );
}

/// Until so many messages have passed the bridge.
fn wait_for(bridge: &Program, number: usize) {
    let passed = format!("journalled: {number}, forwarded: {number}, ");
    let all = wait::until("all of them are at the other broker", SOON, || {
        anyhow::ensure!(bridge.log().contains(&passed));
        Ok(())
    });
    assert!(all.is_ok(), "{all:?}\n{}", bridge.log_tail(3));
}

/// How often each message of a load came.
fn times(file: &Path, places: [usize; 2]) -> BTreeMap<(String, u64), u32> {
    let mut times = BTreeMap::new();
    for line in lines(file).unwrap() {
        *times.entry((line[places[0]].clone(), line[places[1]].parse().unwrap())).or_default() += 1;
    }
    times
}

#[test]
fn whatever_is_killed_under_load_each_message_arrives_once() {
    const MESSAGES: u64 = 12_000;
    let folder = temporary_folder().unwrap();
    let mut brokers = brokers(folder.path(), ["a", "b"].map(|name| Seat::new(name).unwrap()));
    let plans = ["left", "right"].map(|vault| plan(folder.path(), "a-to-b", vault, &brokers[0], &brokers[1]));
    let mut bridges = plans.map(|plan| plan.start());
    let java = JavaClient::start(folder.path()).unwrap();
    let (sent, received) = (folder.path().join("sent"), folder.path().join("received"));
    let load =
        Load { connections: 3, file: Some(sent.clone()), ..Load::new(Kind::Send, "orders.new", MESSAGES) };
    let run = java.load(&Login::to(&failover(&[brokers[0].uri()], "")), &load).unwrap();

    let seed = std::env::var("BRIDGE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let mut dice = Dice::new(seed);
    for _ in 0..12 {
        std::thread::sleep(Duration::from_millis(300 + dice.below(900) as u64));
        let which = dice.below(2);
        match dice.below(8) {
            0..=3 => {
                bridges[which].kill().unwrap();
                bridges[which].restart().unwrap();
            }
            4 | 5 => {
                brokers[which].kill().unwrap();
                brokers[which].restart().unwrap();
            }
            6 => {
                bridges[which].freeze().unwrap();
                std::thread::sleep(Duration::from_secs(1));
                bridges[which].thaw().unwrap();
            }
            _ => {
                brokers[which].freeze().unwrap();
                std::thread::sleep(Duration::from_secs(1));
                brokers[which].thaw().unwrap();
            }
        }
    }
    let outcome = run.wait(Duration::from_secs(120)).unwrap();
    assert_eq!((outcome.messages, outcome.errors.len()), (MESSAGES, 0), "{outcome:?}");
    let load = Load {
        file: Some(received.clone()),
        idle: Duration::from_secs(20),
        ..Load::new(Kind::Receive, "orders.new", MESSAGES * 2)
    };
    let run = java.load(&Login::to(&brokers[1].uri()), &load).unwrap();
    run.wait(Duration::from_secs(180)).unwrap();
    let (sent, received) = (times(&sent, [0, 1]), times(&received, [1, 2]));
    let doubled = received.values().filter(|times| **times > 1).count();
    let lost = sent.keys().filter(|message| !received.contains_key(*message)).count();
    let logs = || bridges.iter().map(|bridge| bridge.log_tail(6)).collect::<String>();
    assert_eq!((sent.len() as u64, received.len() as u64), (MESSAGES, MESSAGES), "seed {seed}\n{}", logs());
    assert_eq!((lost, doubled), (0, 0), "lost and doubled, seed {seed}\n{}", logs());
}
