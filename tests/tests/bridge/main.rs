//! Stories of the bridge: two real vaults between real brokers. Every message arrives at the other
//! broker as it was sent, and exactly once, whatever is killed.
#![expect(clippy::unwrap_used, reason = "a story's own steps fail the story when they fail")]

mod doubt;
mod independent;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use harness::activemq::ActiveMq;
use harness::bridging::{Sections, told, total, wait_carried, wait_carried_by, wait_forwarded};
use harness::broker::{Broker, Seat, failover};
use harness::cluster::temporary_folder;
use harness::java_client::{
    Acknowledge, Body, Delivery, JavaClient, Kind, Letter, Load, Login, Received, Session, Value, lines,
};
use harness::jvm::Jvm;
use harness::program::Program;
use harness::receipts::Dice;
use harness::vault_host::{NAMES, Pair, PairPlan, Vault};
use harness::{artemis, extent, plain, wait};

const SOON: Duration = Duration::from_secs(60);
/// A load that is disturbed again and again.
const LATER: Duration = Duration::from_secs(300);

fn seats<const N: usize>(names: [&str; N]) -> [Seat; N] {
    names.map(|name| Seat::new(name).unwrap())
}

/// Starts them side by side.
fn brokers<const N: usize>(folder: &Path, plans: [ActiveMq; N]) -> [Broker; N] {
    let launched = plans.map(|plan| plan.launch(folder).unwrap());
    launched.map(|mut broker| {
        broker.wait_ready().unwrap();
        broker
    })
}

/// One value of every type. The client reads the strings of properties lazily, and then takes
/// modified UTF-8 for plain: NUL and what lies beyond the first plane do not survive there.
fn values() -> BTreeMap<String, Value> {
    let values = [
        ("boolean", Value::Boolean(true)),
        ("byte", Value::Byte(i8::MIN)),
        ("short", Value::Short(i16::MIN)),
        ("int", Value::Int(i32::MIN)),
        ("long", Value::Long(i64::MIN)),
        ("float", Value::Float(-0.1)),
        ("double", Value::Double(f64::MIN_POSITIVE)),
        ("string", Value::String("Grüße\t\u{20ac} \"quoted\"".to_owned())),
        ("empty", Value::String(String::new())),
        ("null", Value::Null),
        ("list", Value::List(vec![Value::Int(1), Value::String("two".to_owned())])),
    ];
    values.map(|(name, value)| (name.to_owned(), value)).into()
}

/// One of every type, with headers and properties.
fn letters() -> Vec<Letter> {
    let mut content = values();
    content.insert("char".to_owned(), Value::Char('ß'));
    content.insert("string".to_owned(), Value::String("\u{0} \u{1f600}".to_owned()));
    content.insert("bytes".to_owned(), Value::Bytes(vec![0, 127, 128, 255]));
    let mut streamed: Vec<_> = content.values().cloned().collect();
    // Only maps hold lists.
    streamed.retain(|value| !matches!(value, Value::List(_)));
    let bodies = [
        Body::Plain,
        Body::Text(Some("Ein Brief \u{20ac}".to_owned())),
        Body::Text(None),
        Body::Bytes((0..=255).collect()),
        Body::Filled(2_000_000),
        Body::Map(content.clone()),
        Body::Stream(streamed),
        Body::Object(Value::Map(content)),
    ];
    let letter = |body| {
        let mut letter = Letter::new(body).reply_to("queue://answers").group("one", 7);
        letter.correlation_id = Some("order-17".to_owned());
        letter.kind = Some("invoice".to_owned());
        letter.properties = values();
        letter
    };
    bodies.map(letter).into()
}

/// Sends one of every kind each way that an application can; tells what was sent.
fn send_all(sessions: &[&Session], destination: &str) -> Vec<Received> {
    let hour = Duration::from_secs(3600);
    let ways = [
        Delivery::default(),
        Delivery { persistent: false, priority: 9, time_to_live: hour },
        Delivery { persistent: true, priority: 0, time_to_live: hour },
    ];
    let mut sent = Vec::new();
    for session in sessions {
        for way in ways {
            sent.extend(letters().iter().map(|letter| session.send_as(destination, letter, way).unwrap()));
        }
    }
    sent
}

/// In what those that arrive differ from those that were sent, by their ids.
fn differences(sent: &[Received], consumer: &harness::java_client::Consumer<'_>) -> Vec<String> {
    let mut waited: BTreeMap<&str, &Received> = sent.iter().map(|it| (it.id.as_str(), it)).collect();
    let mut found = Vec::new();
    while !waited.is_empty() {
        let arrived = consumer.receive(SOON).unwrap().unwrap_or_else(|| panic!("missing: {waited:?}"));
        match waited.remove(arrived.id.as_str()) {
            Some(sent) => found.extend(sent.differences(&arrived)),
            None => found.push(format!("nobody sent this, or it came twice: {arrived:?}")),
        }
    }
    found
}

#[test]
fn every_message_arrives_at_the_other_broker_as_it_was_sent_and_does_not_come_back() {
    let folder = temporary_folder().unwrap();
    // A message of 64 MiB lies in each of them several times.
    let [left, right] = seats(["a", "b"]).map(|seat| Seat { jvm: Jvm::quick(768), ..seat });
    let [a, b] =
        brokers(folder.path(), [ActiveMq::at(left), ActiveMq { scheduler: true, ..ActiveMq::at(right) }]);
    let sections = Sections::default()
        .open(&a)
        .open(&b)
        .way("a", "b", "orders.>", "preferred = \"vault-b\"")
        .way("b", "a", "orders.>", "")
        .named("prices", ["a", "b"], "topic://prices.>", "");
    let pair = sections.start(folder.path(), PairPlan::default()).unwrap();
    for name in ["a-to-b", "b-to-a", "prices"] {
        wait_carried(&pair, name, SOON).unwrap();
    }
    let java = JavaClient::start_with(folder.path(), Jvm::quick(768)).unwrap();
    let session = |uri: &str| java.connect(&Login::to(uri)).unwrap().session(Acknowledge::Auto).unwrap();
    let (sender, receiver) = (session(&a.uri()), session(&b.uri()));
    let compressing = session(&format!("{}?jms.useCompression=true", a.uri()));
    let mut sent = send_all(&[&sender, &compressing], "orders.new");
    sent.push(sender.send("orders.new", &Letter::new(Body::Filled(64 << 20))).unwrap());
    wait_forwarded(&pair, "a-to-b", sent.len() as u64, SOON).unwrap();
    {
        let consumer = receiver.consumer("orders.new").unwrap();
        assert_eq!(differences(&sent, &consumer), Vec::<String>::new());
        // The other broker is the one that delays: this one has no scheduler.
        let later = Letter::text("later").property("AMQ_SCHEDULED_DELAY", Value::Long(1500));
        sender.send("orders.new", &later).unwrap();
        assert_eq!(consumer.receive(SOON).unwrap().unwrap().text(), Some("later"));
        assert_eq!(consumer.receive(Duration::from_secs(2)).unwrap(), None);
    }
    // And the other way; what came by the bridge was not carried back.
    assert_eq!(total(&pair, "b-to-a", "received").unwrap(), 0);
    let answers = send_all(&[&receiver], "orders.answers");
    let consumer = sender.consumer("orders.answers").unwrap();
    assert_eq!(differences(&answers, &consumer), Vec::<String>::new());
    assert_eq!(total(&pair, "a-to-b", "received").unwrap(), sent.len() as u64 + 1);
    topics_pass(&pair, &sender, &receiver);
    worthless_messages_are_counted(&pair, &sender, &b);
}

/// A pattern of topics, also while nobody carries it.
fn topics_pass(pair: &Pair, sender: &Session, receiver: &Session) {
    let consumer = receiver.consumer("topic://prices.eu.steel").unwrap();
    let sent = send_all(&[sender], "topic://prices.eu.steel");
    assert_eq!(differences(&sent, &consumer), Vec::<String>::new());
    assert_eq!(total(pair, "prices", "received").unwrap(), sent.len() as u64);
}

/// What expires while the target is away is counted, and not sent.
fn worthless_messages_are_counted(pair: &Pair, sender: &Session, target: &Broker) {
    let before = total(pair, "a-to-b", "forwarded").unwrap();
    target.freeze().unwrap();
    let soon = Delivery { time_to_live: Duration::from_secs(1), ..Delivery::default() };
    // One that is on its way already is still tried.
    sender.send("orders.new", &Letter::text("first")).unwrap();
    wait::until("the target is given up", SOON, || {
        let away = pair.vaults.iter().map(|vault| told(vault, "a-to-b").unwrap());
        anyhow::ensure!(away.into_iter().all(|told| told["target"].is_string()));
        Ok(())
    })
    .unwrap();
    sender.send_as("orders.new", &Letter::text("worthless"), soon).unwrap();
    wait::until("both are journalled", SOON, || {
        let waiting: u64 = (0..2)
            .map(|which| told(&pair.vaults[which], "a-to-b").unwrap()["waiting"]["rows"].as_u64().unwrap())
            .sum();
        anyhow::ensure!(waiting == 2, "{waiting}");
        Ok(())
    })
    .unwrap();
    std::thread::sleep(Duration::from_secs(1));
    target.thaw().unwrap();
    wait_forwarded(pair, "a-to-b", before + 1, SOON).unwrap();
    wait::until("it is counted", SOON, || {
        anyhow::ensure!(total(pair, "a-to-b", "expired")? == 1);
        Ok(())
    })
    .unwrap();
}

/// Nobody but others may send to `orders.secret`.
const RIGHTS: &str = r#"<authorizationPlugin><map><authorizationMap><authorizationEntries>
<authorizationEntry queue="orders.new" read="users" write="users" admin="users"/>
<authorizationEntry queue="orders.secret" read="users" write="others" admin="users"/>
<authorizationEntry queue="vault.bridge.>" read="users" write="users" admin="users"/>
<authorizationEntry topic=">" read="users" write="users" admin="users"/>
</authorizationEntries></authorizationMap></map></authorizationPlugin>"#;

#[test]
fn a_message_that_the_target_refuses_is_a_dead_letter_and_the_others_arrive_in_order_over_tls() {
    const MESSAGES: u64 = 3000;
    let folder = temporary_folder().unwrap();
    let [open] = seats(["a"]);
    let guarded = Seat::new("b").unwrap().with_tls().unwrap().with_account("vault", "right");
    let strict = ActiveMq { plugins: vec![RIGHTS.to_owned()], ..ActiveMq::at(guarded) };
    let [a, mut b] = brokers(folder.path(), [ActiveMq::at(open), strict]);
    let password = folder.path().join("password");
    std::fs::write(&password, "right\n").unwrap();
    let lines = format!(
        "user = \"vault\"\npassword_file = \"{}\"\nauthority_file = \"{}\"",
        password.display(),
        b.authority.as_ref().unwrap().display()
    );
    let sections = Sections::default().open(&a).broker("b", &b.tls_uri().unwrap(), &lines);
    let pair = sections.way("a", "b", "orders.>", "").start(folder.path(), PairPlan::default()).unwrap();
    let java = JavaClient::start(folder.path()).unwrap();
    let sender = java.connect(&Login::to(&a.uri())).unwrap().session(Acknowledge::Auto).unwrap();
    let secret = sender.send("orders.secret", &Letter::text("secret")).unwrap();
    // Alone it waits, and nobody calls the target away.
    let refusing = wait::until("the refusal is told", SOON, || {
        let refusal = |vault: &&Vault| {
            let told = told(vault, "a-to-b").unwrap();
            told["refusal"].as_str().is_some_and(|why| why.contains("vault is not authorized to write"))
        };
        pair.vaults.iter().find(refusal).context("no vault is refused")
    });
    let status = refusing.unwrap().command(&["--json", "status"]).unwrap();
    assert!(status.contains("bridge a-to-b: its target refuses what it is sent"), "{status}");
    let load = Load { connections: 3, ..Load::new(Kind::Send, "orders.new", MESSAGES) };
    java.load(&Login::to(&a.uri()), &load).unwrap().wait(SOON).unwrap();
    wait_forwarded(&pair, "a-to-b", MESSAGES, SOON).unwrap();
    let received = folder.path().join("received");
    let load = Load { file: Some(received.clone()), ..Load::new(Kind::Receive, "orders.new", MESSAGES) };
    let login = Login::to(&b.uri()).account("vault", "right");
    java.load(&login, &load).unwrap().wait(SOON).unwrap();
    in_order(&received, MESSAGES);

    let dead = wait::until("it is a dead letter", SOON, || {
        let dead: Vec<_> =
            (0..2).filter(|which| told(&pair.vaults[*which], "a-to-b").unwrap()["dead"] == 1).collect();
        anyhow::ensure!(dead.len() == 1);
        Ok(dead[0])
    });
    let vault = &pair.vaults[dead.unwrap()];
    let letters = vault.command(&["bridge", "dead", "a-to-b"]).unwrap();
    assert!(letters.contains(&secret.id) && letters.contains("to queue://orders.secret, "), "{letters}");
    assert!(letters.contains("vault is not authorized to write"), "{letters}");
    let status = vault.command(&["--json", "status"]).unwrap();
    assert!(status.contains("bridge a-to-b: 1 dead letters"), "{status}");

    // Once it may, it goes on.
    b.stop().unwrap();
    let file = folder.path().join("b").join("conf").join("activemq.xml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace(RIGHTS, "")).unwrap();
    b.restart().unwrap();
    let said = vault.command(&["bridge", "retry", "a-to-b"]).unwrap();
    assert_eq!(said.trim(), "a-to-b: 1 dead letters go on again");
    let login = Login::to(&b.uri()).account("vault", "right");
    let receiver = java.connect(&login).unwrap().session(Acknowledge::Auto).unwrap();
    let arrived = receiver.consumer("orders.secret").unwrap().receive(SOON).unwrap().unwrap();
    assert_eq!(secret.differences(&arrived), Vec::<String>::new());
}

/// Every producer's messages came in their order, and all of them.
fn in_order(received: &Path, messages: u64) {
    let mut by_producer: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for line in lines(received).unwrap() {
        by_producer.entry(line[1].clone()).or_default().push(line[2].parse().unwrap());
    }
    assert_eq!(by_producer.values().map(|numbers| numbers.len() as u64).sum::<u64>(), messages);
    let wrong = by_producer.iter().find(|(_, numbers)| !numbers.is_sorted_by(|one, next| one < next));
    assert_eq!(wrong, None);
}

/// How often each message of a load came, with those of before.
fn times(file: &Path, places: [usize; 2], times: &mut BTreeMap<(String, u64), u32>) {
    for line in lines(file).unwrap() {
        *times.entry((line[places[0]].clone(), line[places[1]].parse().unwrap())).or_default() += 1;
    }
}

/// Sends over these URIs and tells how to end it: what was sent arrived, each once.
struct Flow {
    java: JavaClient,
    runs: Vec<harness::java_client::Run>,
    folder: PathBuf,
    messages: u64,
}

impl Flow {
    /// So many messages over each of them.
    fn begin(folder: &Path, uris: &[String], messages: u64) -> Self {
        let java = JavaClient::start(folder).unwrap();
        let begin = |(which, uri): (usize, &String)| {
            let file = Some(folder.join(format!("sent-{which}")));
            let name = format!("over-{which}-");
            let load = Load { connections: 3, name, file, ..Load::new(Kind::Send, "orders.new", messages) };
            java.load(&Login::to(uri), &load).unwrap()
        };
        let runs = uris.iter().enumerate().map(begin).collect();
        Self { java, runs, folder: folder.to_owned(), messages }
    }

    /// All are sent; then whatever lies at these targets is received.
    fn end(self, targets: &[String], story: &str) -> Vec<PathBuf> {
        let (mut sent, mut received) = (BTreeMap::new(), BTreeMap::new());
        for (which, run) in self.runs.into_iter().enumerate() {
            let outcome = run.wait(LATER).unwrap();
            assert_eq!((outcome.messages, outcome.errors.len()), (self.messages, 0), "{outcome:?}");
            times(&self.folder.join(format!("sent-{which}")), [0, 1], &mut sent);
        }
        let mut files = Vec::new();
        for (which, target) in targets.iter().enumerate() {
            let file = self.folder.join(format!("received-{which}"));
            let load = Load {
                file: Some(file.clone()),
                idle: Duration::from_secs(25),
                ..Load::new(Kind::Receive, "orders.new", sent.len() as u64 * 2)
            };
            self.java.load(&Login::to(target), &load).unwrap().wait(LATER).unwrap();
            times(&file, [1, 2], &mut received);
            files.push(file);
        }
        let doubled = received.values().filter(|times| **times > 1).count();
        let lost = sent.keys().filter(|message| !received.contains_key(*message)).count();
        assert_eq!((lost, doubled), (0, 0), "lost and doubled: {story}");
        assert_eq!(sent.len(), received.len(), "{story}");
        files
    }
}

fn killed(program: &mut Program) {
    program.kill().unwrap();
    program.restart().unwrap();
}

#[test]
fn whatever_is_killed_under_load_each_message_arrives_once() {
    let (messages, turns) = if extent::is_full() { (60_000, 60) } else { (12_000, 12) };
    let folder = temporary_folder().unwrap();
    let mut brokers = brokers(folder.path(), seats(["a", "b"]).map(ActiveMq::at));
    let sections = Sections::default().open(&brokers[0]).open(&brokers[1]).way("a", "b", "orders.>", "");
    let mut pair = sections.start(folder.path(), PairPlan::default()).unwrap();
    wait_carried(&pair, "a-to-b", SOON).unwrap();
    let flow = Flow::begin(folder.path(), &[failover(&[brokers[0].uri()], "")], messages);
    let mut dice = Dice::new(extent::seed());
    let mut done = Vec::new();
    for _ in 0..turns {
        std::thread::sleep(Duration::from_millis(300 + dice.below(900) as u64));
        let (which, what) = (dice.below(2), dice.below(8));
        done.push((which, what));
        let pause = Duration::from_secs(1);
        let vault = pair.vaults[which].program().unwrap();
        match what {
            0..=3 => killed(vault),
            4 | 5 => {
                brokers[which].kill().unwrap();
                brokers[which].restart().unwrap();
            }
            6 => {
                vault.freeze().unwrap();
                std::thread::sleep(pause);
                vault.thaw().unwrap();
            }
            _ => {
                brokers[which].freeze().unwrap();
                std::thread::sleep(pause);
                brokers[which].thaw().unwrap();
            }
        }
    }
    let story = format!("seed {}: {done:?}", extent::seed());
    flow.end(&[brokers[1].uri()], &story);
    let hop = |hop| total(&pair, "a-to-b", hop).unwrap();
    wait::until("every hop's count is the same", SOON, || {
        let counts = ["received", "journalled", "forwarded"].map(hop);
        anyhow::ensure!(counts == [messages; 3], "{counts:?}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn the_preferred_vault_carries_in_order_over_falls_of_brokers_and_the_other_takes_over_from_one_that_hangs() {
    const MESSAGES: u64 = 6000;
    let folder = temporary_folder().unwrap();
    let mut brokers = brokers(folder.path(), seats(["a", "b"]).map(ActiveMq::at));
    let sections = Sections::default().open(&brokers[0]).open(&brokers[1]);
    let sections = sections.way("a", "b", "orders.>", "preferred = \"vault-b\"");
    let mut pair = sections.start(folder.path(), PairPlan::default()).unwrap();
    wait_carried_by(&pair.vaults[1], "a-to-b", SOON).unwrap();
    let flow = Flow::begin(folder.path(), &[failover(&[brokers[0].uri()], "")], MESSAGES);
    for which in [0, 1, 0] {
        std::thread::sleep(Duration::from_secs(1));
        brokers[which].kill().unwrap();
        brokers[which].restart().unwrap();
    }
    in_order(&flow.end(&[brokers[1].uri()], "brokers fall")[0], MESSAGES);
    assert_eq!(told(&pair.vaults[0], "a-to-b").unwrap()["received"], 0, "it has always stood back");

    // One that hangs keeps its lock until the source notices.
    pair.vaults[1].program().unwrap().freeze().unwrap();
    let java = JavaClient::start(folder.path()).unwrap();
    let session = |uri: &str| java.connect(&Login::to(uri)).unwrap().session(Acknowledge::Auto).unwrap();
    let (sender, receiver) = (session(&brokers[0].uri()), session(&brokers[1].uri()));
    let sent = sender.send("orders.urgent", &Letter::text("while it hangs")).unwrap();
    let consumer = receiver.consumer("orders.urgent").unwrap();
    let arrived = consumer.receive(SOON * 2).unwrap().expect("the other vault takes over");
    assert_eq!(arrived.id, sent.id);
    wait_carried_by(&pair.vaults[0], "a-to-b", SOON).unwrap();
    let shown = pair.vaults[0].command(&["bridge", "status"]).unwrap();
    assert!(shown.starts_with("a-to-b: carried here\n  here: carrying for "), "{shown}");

    // It wakes, and carries again.
    pair.vaults[1].program().unwrap().thaw().unwrap();
    wait_carried_by(&pair.vaults[1], "a-to-b", SOON).unwrap();
    let shown = pair.vaults[0].command(&["bridge", "status"]).unwrap();
    assert!(shown.starts_with("a-to-b: carried by vault-b\n  here: standby for "), "{shown}");
    let sent = sender.send("orders.urgent", &Letter::text("afterwards")).unwrap();
    assert_eq!(consumer.receive(SOON).unwrap().unwrap().id, sent.id);
    assert_eq!(consumer.receive(Duration::from_secs(2)).unwrap(), None);
}

#[test]
fn a_target_that_is_away_for_long_fills_the_journal_to_its_bound_and_then_everything_goes_on() {
    const MESSAGES: u64 = 100;
    let folder = temporary_folder().unwrap();
    let mut brokers = brokers(folder.path(), seats(["a", "b"]).map(ActiveMq::at));
    let sections = Sections::default().open(&brokers[0]).open(&brokers[1]);
    let sections = sections.way("a", "b", "orders.>", "journal_size = \"64MiB\"");
    let mut pair = sections.start(folder.path(), PairPlan::default()).unwrap();
    let carrier = wait_carried(&pair, "a-to-b", SOON).unwrap();
    // Otherwise it would go on with a journal of its own.
    pair.vaults[1 - carrier].program().unwrap().freeze().unwrap();
    brokers[1].kill().unwrap();
    let java = JavaClient::start(folder.path()).unwrap();
    let load = Load { bytes: 1 << 20, ..Load::new(Kind::Send, "orders.new", MESSAGES) };
    let outcome = java.load(&Login::to(&brokers[0].uri()), &load).unwrap().wait(LATER).unwrap();
    assert_eq!(outcome.messages, MESSAGES);
    let vault = &pair.vaults[carrier];
    wait::until("the journal is full", SOON, || {
        let told = told(vault, "a-to-b")?;
        let held = told["waiting"]["bytes"].as_u64().unwrap();
        anyhow::ensure!(told["full"] == "journal" && held >= 64 << 20, "{told}");
        Ok(())
    })
    .unwrap();
    let full = told(vault, "a-to-b").unwrap();
    assert!(full["waiting"]["bytes"].as_u64().unwrap() < 70 << 20, "one batch over it at most: {full}");
    assert!(full["lag_seconds"].as_u64().is_some_and(|lag| lag < 600), "{full}");
    let words = "its journal of 64 MiB is full; nothing more is taken";
    wait::until("readiness says so", SOON, || {
        let ready = plain::expect_ok(vault.admin, "/readyz?verbose")?;
        anyhow::ensure!(ready.contains(words), "{ready}");
        Ok(())
    })
    .unwrap();
    let metrics = plain::expect_ok(vault.admin, "/metrics").unwrap();
    assert!(metrics.contains("vault_bridge_carrying{bridge=\"a-to-b\"} 1"), "{metrics}");
    let taken =
        format!("vault_bridge_messages_total{{bridge=\"a-to-b\",hop=\"journalled\"}} {}", full["journalled"]);
    assert!(metrics.contains(&taken), "{taken}: {metrics}");

    brokers[1].restart().unwrap();
    pair.vaults[1 - carrier].program().unwrap().thaw().unwrap();
    let vault = &pair.vaults[carrier];
    wait_forwarded(&pair, "a-to-b", MESSAGES, LATER).unwrap();
    wait::until("all is well again", SOON, || {
        let told = told(vault, "a-to-b")?;
        anyhow::ensure!(
            told["full"].is_null() && told["waiting"]["rows"] == 0 && told["lag_seconds"] == 0,
            "{told}"
        );
        Ok(())
    })
    .unwrap();
}

/// The first vault's state lies on a disk of its own, which only it sees.
fn small_disk(folder: &Path) -> Vec<OsString> {
    if !folder.ends_with(NAMES[0]) {
        return Vec::new();
    }
    let mount = "mkdir \"$0/disk\" && mount -t tmpfs -o size=160m,mode=0700 none \"$0/disk\" \
        && cp -a \"$0/state/.\" \"$0/disk/\" && mount --bind \"$0/disk\" \"$0/state\" && exec \"$@\"";
    let mut words: Vec<OsString> = ["unshare", "--mount", "sh", "-c", mount].map(Into::into).to_vec();
    words.push(folder.into());
    words
}

#[test]
fn a_full_disk_below_the_journal_is_told_and_costs_no_message() {
    const MESSAGES: u64 = 8000;
    let folder = temporary_folder().unwrap();
    let brokers = brokers(folder.path(), seats(["a", "b"]).map(ActiveMq::at));
    let sections = Sections::default().open(&brokers[0]).open(&brokers[1]);
    let sections = sections.way("a", "b", "orders.>", "preferred = \"vault-a\"");
    let plan = PairPlan { wrapper: Some(small_disk), ..PairPlan::default() };
    let mut pair = sections.start(folder.path(), plan).unwrap();
    wait_carried_by(&pair.vaults[0], "a-to-b", SOON).unwrap();
    let flow = Flow::begin(folder.path(), &[brokers[0].uri()], MESSAGES);
    let pid = pair.vaults[0].program().unwrap().pid().unwrap();
    let state = pair.vaults[0].folder.join("state");
    let ballast = Path::new(&format!("/proc/{pid}/root{}", state.display())).join("ballast");
    let mut file = std::fs::File::create(&ballast).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    wait::until("it is told", SOON, || {
        let told = told(&pair.vaults[0], "a-to-b")?;
        anyhow::ensure!(told["full"] == "disk" || told["state"] == "stopped", "{told}");
        Ok(())
    })
    .unwrap();
    std::fs::remove_file(&ballast).unwrap();
    drop(file);
    flow.end(&[brokers[1].uri()], "the disk is full");
    let told = told(&pair.vaults[0], "a-to-b").unwrap();
    assert!(told["full"].is_null() && told["state"] == "carrying", "{told}");
}

#[test]
fn the_two_vaults_own_brokers_are_joined_as_foreign_ones_are() {
    const MESSAGES: u64 = 2000;
    let folder = temporary_folder().unwrap();
    let sections = Sections::default()
        .broker("left", "tcp://<vault-a>", "")
        .broker("right", "tcp://<vault-b>", "")
        .named("there", ["left", "right"], "orders.there", "preferred = \"vault-a\"")
        .named("back", ["right", "left"], "orders.back", "preferred = \"vault-b\"")
        .named("new", ["left", "right"], "orders.new", "preferred = \"vault-a\"")
        .named("new-back", ["right", "left"], "orders.new", "preferred = \"vault-b\"");
    let broker = Some("in_clear = true\nanonymous = true\n".to_owned());
    let mut pair = sections.start(folder.path(), PairPlan { broker, ..PairPlan::default() }).unwrap();
    for (which, names) in [(0, ["there", "new"]), (1, ["back", "new-back"])] {
        names.iter().for_each(|name| wait_carried_by(&pair.vaults[which], name, SOON).unwrap());
    }
    let uris = [0, 1].map(|which| format!("tcp://{}", pair.vaults[which].broker));
    {
        let java = JavaClient::start(folder.path()).unwrap();
        let session = |uri: &str| java.connect(&Login::to(uri)).unwrap().session(Acknowledge::Auto).unwrap();
        let (sender, receiver) = (session(&uris[0]), session(&uris[1]));
        let compressing = session(&format!("{}?jms.useCompression=true", uris[0]));
        // Both ways at once.
        let there = send_all(&[&sender, &compressing], "orders.there");
        let back = send_all(&[&receiver], "orders.back");
        let consumers = (receiver.consumer("orders.there").unwrap(), sender.consumer("orders.back").unwrap());
        assert_eq!(differences(&there, &consumers.0), Vec::<String>::new());
        assert_eq!(differences(&back, &consumers.1), Vec::<String>::new());
    }
    // Either of them falls under load.
    let flow = Flow::begin(folder.path(), &[failover(&uris[..1], "")], MESSAGES);
    for which in [1, 0] {
        std::thread::sleep(Duration::from_secs(1));
        killed(pair.vaults[which].program().unwrap());
        pair.vaults[which].wait_ready().unwrap();
    }
    wait_forwarded(&pair, "new", MESSAGES, LATER).unwrap();
    flow.end(&uris[1..], "the vaults fall");
    assert_eq!(total(&pair, "new-back", "received").unwrap(), 0, "nothing is carried back");
}

#[test]
fn check_asks_each_source_for_what_is_to_be_taken_and_tells_of_a_name_without_an_address() {
    let folder = temporary_folder().unwrap();
    let sections = Sections::default()
        .broker("own", "tcp://<vault-a>", "")
        .broker("gone", "tcp://no-such-host.invalid:61616", "")
        .named("orders", ["own", "gone"], "orders.new", "");
    let broker = || Some("in_clear = true\nanonymous = true\n".to_owned());
    let plan = || PairPlan { broker: broker(), ..PairPlan::default() };
    let pair = sections.start(folder.path(), plan()).unwrap();
    pair.vaults[0].wait_alive().unwrap();
    let said = pair.vaults[0].command(&["check"]).unwrap();
    let names: Vec<&str> = said.lines().filter(|line| line.starts_with("remote_broker")).collect();
    assert!(names[0].contains("no-such-host.invalid:61616: WARNING: its name has no address here"), "{said}");
    assert!(names[1].ends_with(": logged in"), "{said}");
    drop(pair);

    let folder = temporary_folder().unwrap();
    let sections = Sections::default()
        .broker("own", "tcp://<vault-a>", "")
        .broker("its", "tcp://<vault-b>", "")
        .named("orders", ["own", "its"], "orders.>", "");
    let pair = sections.start(folder.path(), plan()).unwrap();
    pair.vaults[0].wait_alive().unwrap();
    let refused = format!("{:#}", pair.vaults[0].command(&["check"]).unwrap_err());
    assert!(refused.contains("remote_broker own: ") && refused.contains("orders.>"), "{refused}");
}

#[test]
fn artemis_on_one_side_gets_and_gives_what_activemq_does() {
    // It is fetched from outside Debian.
    if !extent::is_full() {
        return;
    }
    const MESSAGES: u64 = 6000;
    let folder = temporary_folder().unwrap();
    let [left, right] = seats(["a", "art"]);
    let a = ActiveMq::at(left).start(folder.path()).unwrap();
    let mut art = artemis::start(&right, folder.path()).unwrap();
    let sections = Sections::default().open(&a).open(&art);
    let sections = sections.way("a", "art", "there.>", "").way("art", "a", "back.>", "");
    let mut pair = sections.start(folder.path(), PairPlan::default()).unwrap();
    for name in ["a-to-art", "art-to-a"] {
        wait_carried(&pair, name, SOON).unwrap();
    }
    let java = JavaClient::start(folder.path()).unwrap();
    let session = |uri: &str| java.connect(&Login::to(uri)).unwrap().session(Acknowledge::Auto).unwrap();
    let (here, there) = (session(&a.uri()), session(&art.uri()));
    for (from, to, destination) in [(&here, &there, "there.new"), (&there, &here, "back.new")] {
        let sent: Vec<_> = letters()
            .into_iter()
            .map(|mut letter| {
                // It throws a message with a list in its map away.
                letter.properties.remove("list");
                if let Body::Map(content) = &mut letter.body {
                    content.remove("list");
                }
                from.send(destination, &letter).unwrap()
            })
            .collect();
        let consumer = to.consumer(destination).unwrap();
        let mut found = differences(&sent, &consumer);
        // It notes whose connection it was.
        found.retain(|difference| !difference.starts_with("__AMQ_CID: "));
        assert_eq!(found, Vec::<String>::new(), "{destination}");
    }
    // Its falls and the vaults' under load, as a source.
    let load = Load { connections: 3, ..Load::new(Kind::Send, "back.load", MESSAGES) };
    let run = java.load(&Login::to(&failover(&[art.uri()], "")), &load).unwrap();
    for which in [0, 1] {
        std::thread::sleep(Duration::from_secs(1));
        killed(pair.vaults[which].program().unwrap());
        std::thread::sleep(Duration::from_secs(1));
        art.kill().unwrap();
        art.restart().unwrap();
    }
    let outcome = run.wait(LATER).unwrap();
    assert_eq!((outcome.messages, outcome.errors.len()), (MESSAGES, 0), "{outcome:?}");
    wait::until("all of them have passed", LATER, || {
        let waiting = total(&pair, "art-to-a", "journalled")? - total(&pair, "art-to-a", "forwarded")?;
        let passed = total(&pair, "art-to-a", "forwarded")?;
        anyhow::ensure!(waiting == 0 && passed >= MESSAGES, "{passed} passed, {waiting} wait");
        Ok(())
    })
    .unwrap();
    let received = folder.path().join("received");
    let load = Load {
        file: Some(received.clone()),
        idle: Duration::from_secs(25),
        ..Load::new(Kind::Receive, "back.load", MESSAGES * 2)
    };
    java.load(&Login::to(&a.uri()), &load).unwrap().wait(LATER).unwrap();
    let mut found = BTreeMap::new();
    times(&received, [1, 2], &mut found);
    let doubled = found.values().filter(|times| **times > 1).count();
    assert_eq!((found.len() as u64, doubled), (MESSAGES, 0), "received, and doubled of them");
}
