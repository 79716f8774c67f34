//! Stories of the bridge at its limits: slow lines, full disks, messages that stand before all others. What
//! is slow or full for one is told, and holds up nothing else for long.
#![expect(clippy::unwrap_used, reason = "a story's own steps fail the story when they fail")]

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use harness::activemq::ActiveMq;
use harness::bridging::{Sections, told, total, wait_carried, wait_carried_by, wait_forwarded};
use harness::broker::{Broker, Seat};
use harness::cluster::temporary_folder;
use harness::java_client::{Acknowledge, Body, JavaClient, Letter, Login};
use harness::jvm::Jvm;
use harness::slow_line::SlowLine;
use harness::vault_host::{NAMES, PairPlan};
use harness::wait;

const SOON: Duration = Duration::from_secs(60);
/// What itself has deadlines of a minute.
const LATER: Duration = Duration::from_secs(300);

/// Starts them side by side.
fn brokers<const N: usize>(folder: &Path, plans: [ActiveMq; N]) -> [Broker; N] {
    let launched = plans.map(|plan| plan.launch(folder).unwrap());
    launched.map(|mut broker| {
        broker.wait_ready().unwrap();
        broker
    })
}

fn seats(memory: u32) -> [ActiveMq; 2] {
    ["a", "b"].map(|name| ActiveMq::at(Seat { jvm: Jvm::quick(memory), ..Seat::new(name).unwrap() }))
}

#[test]
fn a_message_that_needs_longer_on_the_line_than_any_answer_arrives_once() {
    const BYTES: u32 = 64 << 20;
    let folder = temporary_folder().unwrap();
    let [a, b] = brokers(folder.path(), seats(768));
    // Longer than an answer may take, by a good deal.
    let lines = [&a, &b].map(|broker| SlowLine::to(broker.address, BYTES / 45).unwrap());
    let uris = [0, 1].map(|which: usize| format!("tcp://{}", lines[which].address));
    let sections = Sections::default().broker("a", &uris[0], "").broker("b", &uris[1], "");
    let pair = sections.way("a", "b", "orders.>", "").start(folder.path(), PairPlan::default()).unwrap();
    wait_carried(&pair, "a-to-b", SOON).unwrap();
    let java = JavaClient::start_with(folder.path(), Jvm::quick(768)).unwrap();
    let session = |uri: &str| java.connect(&Login::to(uri)).unwrap().session(Acknowledge::Auto).unwrap();
    let (sender, receiver) = (session(&a.uri()), session(&b.uri()));
    let letters = [Letter::new(Body::Filled(64 << 20)), Letter::text("behind it")];
    let (sent, took) = wait::timed(|| {
        let sent = letters.map(|letter| sender.send("orders.new", &letter).unwrap());
        wait_forwarded(&pair, "a-to-b", 2, LATER).unwrap();
        sent
    });
    assert!(took > Duration::from_secs(60), "the line is not slow: {took:?}");
    let consumer = receiver.consumer("orders.new").unwrap();
    for sent in sent {
        let arrived = consumer.receive(SOON).unwrap().unwrap();
        assert_eq!(sent.differences(&arrived), Vec::<String>::new());
    }
    assert_eq!(consumer.receive(Duration::from_secs(2)).unwrap(), None);
    assert_eq!(total(&pair, "a-to-b", "received").unwrap(), 2);
    // A broker that takes in so much may be silent for seconds, and is given up then; that is not it.
    let errors = pair.vaults.each_ref().map(|vault| told(vault, "a-to-b").unwrap()["last_error"].to_string());
    assert!(!errors.iter().any(|error| error.contains("no answer to")), "{errors:?}");
}

#[test]
fn a_message_at_which_the_line_to_the_target_hangs_up_holds_up_the_others_no_longer() {
    let folder = temporary_folder().unwrap();
    let [a, b] = brokers(folder.path(), seats(256));
    let line = SlowLine::hangs_up_at(Some("forbidden"), b.address, u32::MAX).unwrap();
    let sections = Sections::default().open(&a).broker("b", &format!("tcp://{}", line.address), "");
    // The other one stands back, also while this one's journal is changed.
    let sections = sections.way("a", "b", "orders.>", "preferred = \"vault-a\"");
    let pair = sections.start(folder.path(), PairPlan::default()).unwrap();
    let vault = &pair.vaults[0];
    wait_carried_by(vault, "a-to-b", SOON).unwrap();
    let java = JavaClient::start(folder.path()).unwrap();
    let session = |uri: &str| java.connect(&Login::to(uri)).unwrap().session(Acknowledge::Auto).unwrap();
    let (sender, receiver) = (session(&a.uri()), session(&b.uri()));
    let consumer = receiver.consumer("orders.new").unwrap();

    // Alone it stands: whether the message is to blame nobody knows. An operator decides.
    let first = sender.send("orders.new", &Letter::text("the first forbidden one")).unwrap();
    let sequence = wait::until("it stands", SOON, || {
        let told = told(vault, "a-to-b")?;
        anyhow::ensure!(told["target"].is_string() && told["waiting"]["rows"] == 1, "{told}");
        told["first"].as_u64().context("the first one")
    });
    let sequence = sequence.unwrap().to_string();
    let bury = |sequence: &str| vault.command(&["bridge", "bury", "a-to-b", sequence, "--why", "it is evil"]);
    assert_eq!(bury(&sequence).unwrap().trim(), format!("a-to-b: {sequence} is a dead letter"));
    let refused = format!("{:#}", bury(&sequence).unwrap_err());
    assert!(refused.contains(&format!("no message waits under {sequence}")), "{refused}");

    // With others it is found.
    let sent = ["before", "the second forbidden one", "behind"]
        .map(|text| sender.send("orders.new", &Letter::text(text)).unwrap());
    for sent in [&sent[0], &sent[2]] {
        assert_eq!(consumer.receive(SOON).unwrap().unwrap().id, sent.id);
    }
    wait::until("both are dead letters", SOON, || {
        let told = told(vault, "a-to-b")?;
        anyhow::ensure!(told["dead"] == 2 && told["waiting"]["rows"] == 0, "{told}");
        Ok(())
    })
    .unwrap();
    let letters = vault.command(&["bridge", "dead", "a-to-b"]).unwrap();
    let lines: Vec<&str> = letters.lines().collect();
    assert!(lines[0].contains(&first.id) && lines[0].ends_with("it is evil"), "{letters}");
    assert!(lines[1].contains(&sent[1].id) && lines[1].contains("the target hung up"), "{letters}");
    let asked = vault.command(&["bridge", "purge", "a-to-b", "--through", &sequence]).unwrap();
    assert_eq!(asked.trim(), "a-to-b: 1 dead letters would be lost; --yes does it");
    let purged = vault.command(&["bridge", "purge", "a-to-b", "--through", &sequence, "--yes"]).unwrap();
    assert_eq!(purged.trim(), "a-to-b: 1 dead letters are given up");
    // The direction begins anew with what is left.
    wait::until("one is left", SOON, || {
        let told = told(vault, "a-to-b")?;
        anyhow::ensure!(told["dead_letters"]["rows"] == 1, "{told}");
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
fn a_queue_that_the_target_refuses_holds_up_the_others_no_longer_than_a_few_of_its_messages() {
    const REFUSED: u64 = 60;
    let folder = temporary_folder().unwrap();
    let [a, b] = seats(256);
    let guarded = ActiveMq { seat: b.seat.clone().with_account("vault", "right"), ..b };
    let strict = ActiveMq { plugins: vec![RIGHTS.to_owned()], ..guarded };
    let [a, mut b] = brokers(folder.path(), [a, strict]);
    let password = folder.path().join("password");
    std::fs::write(&password, "right\n").unwrap();
    let lines = format!("user = \"vault\"\npassword_file = \"{}\"", password.display());
    let sections = Sections::default().open(&a).broker("b", &b.uri(), &lines);
    b.kill().unwrap();
    let pair = sections.way("a", "b", "orders.>", "").start(folder.path(), PairPlan::default()).unwrap();
    let java = JavaClient::start(folder.path()).unwrap();
    let sender = java.connect(&Login::to(&a.uri())).unwrap().session(Acknowledge::Auto).unwrap();
    for _ in 0..REFUSED {
        sender.send("orders.secret", &Letter::text("secret")).unwrap();
    }
    let sent = [1, 2].map(|_| sender.send("orders.new", &Letter::text("new")).unwrap());
    wait::until("all are journalled", SOON, || {
        anyhow::ensure!(total(&pair, "a-to-b", "journalled")? == REFUSED + 2);
        Ok(())
    })
    .unwrap();
    b.restart().unwrap();
    wait_forwarded(&pair, "a-to-b", 2, SOON).unwrap();
    let dead = total(&pair, "a-to-b", "dead").unwrap();
    assert!(dead < REFUSED, "all {dead} came before");
    let login = Login::to(&b.uri()).account("vault", "right");
    let receiver = java.connect(&login).unwrap().session(Acknowledge::Auto).unwrap();
    let consumer = receiver.consumer("orders.new").unwrap();
    for sent in sent {
        assert_eq!(consumer.receive(SOON).unwrap().unwrap().id, sent.id);
    }
}

/// The first vault's state lies on a disk of its own, which only it sees, and which is nearly full.
fn small_disk(folder: &Path) -> Vec<OsString> {
    if !folder.ends_with(NAMES[0]) {
        return Vec::new();
    }
    let mount = "mkdir \"$0/disk\" && mount -t tmpfs -o size=160m,mode=0700 none \"$0/disk\" \
        && cp -a \"$0/state/.\" \"$0/disk/\" && mount --bind \"$0/disk\" \"$0/state\" \
        && head -c 110m /dev/zero > \"$0/state/ballast\" && exec \"$@\"";
    let mut words: Vec<OsString> = ["unshare", "--mount", "sh", "-c", mount].map(Into::into).to_vec();
    words.push(folder.into());
    words
}

#[test]
fn a_vault_whose_disk_stays_full_lets_the_other_one_carry_until_there_is_room() {
    let folder = temporary_folder().unwrap();
    let [a, b] = brokers(folder.path(), seats(256));
    let sections = Sections::default().open(&a).open(&b);
    let sections = sections.way("a", "b", "orders.>", "preferred = \"vault-a\"");
    let plan = PairPlan { wrapper: Some(small_disk), ..PairPlan::default() };
    let mut pair = sections.start(folder.path(), plan).unwrap();
    let java = JavaClient::start(folder.path()).unwrap();
    let session = |uri: &str| java.connect(&Login::to(uri)).unwrap().session(Acknowledge::Auto).unwrap();
    let (sender, receiver) = (session(&a.uri()), session(&b.uri()));
    let consumer = receiver.consumer("orders.new").unwrap();
    sender.send("orders.new", &Letter::text("while it is full")).unwrap();
    wait::until("it is told", SOON, || {
        let told = told(&pair.vaults[0], "a-to-b")?;
        anyhow::ensure!(told["full"] == "disk", "{told}");
        Ok(())
    })
    .unwrap();
    wait_carried_by(&pair.vaults[1], "a-to-b", LATER).unwrap();
    assert_eq!(consumer.receive(SOON).unwrap().unwrap().text(), Some("while it is full"));
    let told = told(&pair.vaults[0], "a-to-b").unwrap();
    assert_eq!((&told["state"], &told["full"]), (&"standby".into(), &"disk".into()), "{told}");

    let pid = pair.vaults[0].program().unwrap().pid().unwrap();
    let state = pair.vaults[0].folder.join("state");
    std::fs::remove_file(Path::new(&format!("/proc/{pid}/root{}", state.display())).join("ballast")).unwrap();
    wait_carried_by(&pair.vaults[0], "a-to-b", LATER).unwrap();
    sender.send("orders.new", &Letter::text("afterwards")).unwrap();
    assert_eq!(consumer.receive(SOON).unwrap().unwrap().text(), Some("afterwards"));
    assert_eq!(consumer.receive(Duration::from_secs(2)).unwrap(), None);
}
