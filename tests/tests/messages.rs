//! Stories of messages by HTTP and by hand: handlers post at edge's gateway, operators use
//! `vault message`, the stock Java client of ActiveMQ reads what arrives.
#![expect(clippy::unwrap_used, reason = "a story's own steps fail the story when they fail")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use harness::cluster::{Cluster, temporary_folder};
use harness::curl::Answer;
use harness::java_client::{Acknowledge, Body, JavaClient, Login, Received, Session, Value};
use harness::vault_host::{Pair, PairPlan, Vault};
use harness::{plain, wait};

const SOON: Duration = Duration::from_secs(60);
/// A vault that was killed is back within this time, on a busy machine.
const BACK: Duration = Duration::from_secs(180);
/// How long nothing must come for nothing to be taken as the answer.
const QUIET: Duration = Duration::from_millis(300);
/// Redelivered at once, once, and dead then.
const ONCE: &str = "jms.redeliveryPolicy.maximumRedeliveries=1&jms.redeliveryPolicy.initialRedeliveryDelay=0";

fn plan() -> PairPlan {
    PairPlan { broker: Some("in_clear = true\nanonymous = true\n".to_owned()), ..PairPlan::default() }
}

fn session(java: &JavaClient, vault: &Vault, options: &str, mode: Acknowledge) -> Session {
    let uri = format!("tcp://{}?{options}", vault.broker);
    java.connect(&Login::to(&uri)).unwrap().session(mode).unwrap()
}

/// A handler posts a text.
fn post(cluster: &Cluster, queue: &str, key: &str, text: &str) -> anyhow::Result<Answer> {
    let call = cluster.handler(&format!("/v1/messages/{queue}")).key(key);
    call.header("Content-Type", "text/plain").body(text).send()
}

/// Repeats it until it is answered; tells the message's id.
fn posted(cluster: &Cluster, queue: &str, key: &str, text: &str) -> String {
    let answer = wait::until(&format!("{key} is posted"), BACK, || {
        post(cluster, queue, key, text)?.expect(&[200, 201])
    });
    answer.unwrap().word("id").unwrap()
}

/// How many messages each queue has.
fn depths(vault: &Vault) -> BTreeMap<String, u64> {
    let told = vault.command(&["message", "queues", "--json"]).unwrap();
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    let depth = |queue: &serde_json::Value| {
        (queue["name"].as_str().unwrap().to_owned(), queue["messages"].as_u64().unwrap())
    };
    told.as_array().unwrap().iter().map(depth).collect()
}

/// All texts of a queue, each with the message's id.
fn take_all(java: &JavaClient, vault: &Vault, queue: &str) -> Vec<(String, String)> {
    let count = depths(vault).get(queue).copied().unwrap_or_default();
    let session = session(java, vault, "", Acknowledge::Auto);
    let consumer = session.consumer(queue).unwrap();
    let received = (0..count).map(|_| consumer.receive(SOON).unwrap().expect("nothing comes"));
    let taken = received.map(|received| (received.text().unwrap().to_owned(), received.id)).collect();
    assert_eq!(consumer.receive(QUIET).unwrap(), None, "more than were counted");
    taken
}

fn first(java: &JavaClient, vault: &Vault, queue: &str) -> Received {
    let session = session(java, vault, "", Acknowledge::Auto);
    let consumer = session.consumer(queue).unwrap();
    let received = consumer.receive(SOON).unwrap().expect("nothing comes");
    assert_eq!(consumer.receive(QUIET).unwrap(), None);
    received
}

#[test]
fn what_a_handler_posts_at_the_gateway_java_receives_with_every_header_and_typed_property() {
    let cluster = Cluster::start_with(&plan()).unwrap();
    let java = JavaClient::start(cluster.folder()).unwrap();
    let vault = &cluster.pair.vaults[0];
    let call = cluster.handler("/v1/messages/B%C3%BCcher").key("k1");
    let properties = r#"{"lot":7,"far":5000000000,"rate":0.5,"town":"K\u00f6ln","urgent":true}"#;
    let answer = call
        .header("Content-Type", "application/json")
        .header("X-Message-Priority", 9)
        .header("X-Message-Time-To-Live", 3_600_000)
        .header("X-Message-Correlation-Id", "order%2017")
        .header("X-Message-Type", "invoice")
        .header("X-Message-Group", "g")
        .header("X-Message-Reply-To", "answers")
        .header("X-Message-Properties", properties)
        .body("{\"text\":\"Grüße \u{1f600}\"}")
        .send()
        .unwrap()
        .expect(&[201])
        .unwrap();
    let received = first(&java, vault, "Bücher");
    assert_eq!(received.id, answer.word("id").unwrap());
    assert_eq!(received.text(), Some("{\"text\":\"Grüße \u{1f600}\"}"));
    assert!(received.persistent && !received.redelivered && received.priority == 9);
    assert_eq!(received.expiration - received.timestamp, 3_600_000);
    let header = |header: &Option<String>| header.clone().unwrap_or_default();
    assert_eq!(header(&received.correlation_id), "order 17");
    assert_eq!((header(&received.kind), header(&received.group)), ("invoice".into(), "g".into()));
    assert_eq!(header(&received.reply_to), "queue://answers");
    let properties = [
        ("content_type", Value::String("application/json".to_owned())),
        ("far", Value::Long(5_000_000_000)),
        ("lot", Value::Int(7)),
        ("rate", Value::Double(0.5)),
        ("town", Value::String("Köln".to_owned())),
        ("urgent", Value::Boolean(true)),
    ];
    let properties: BTreeMap<_, _> =
        properties.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    // Java shows the group among the properties, too.
    let mut own = received.properties.clone();
    own.retain(|name, _| !name.starts_with("JMSX"));
    assert_eq!(own, properties);

    let bytes: Vec<u8> = (0..=255).collect();
    let call = cluster.handler("/v1/messages/bytes").key("k2").header("X-Message-Persistent", "false");
    call.header("Content-Type", "application/octet-stream")
        .body(&*bytes)
        .send()
        .unwrap()
        .expect(&[201])
        .unwrap();
    let received = first(&java, vault, "bytes");
    assert_eq!((received.persistent, received.body), (false, Body::Bytes(bytes)));
    assert!(received.properties.is_empty());

    // Without a key the gateway makes one for each request: who repeats it sends it twice.
    let keyless =
        || cluster.handler("/v1/messages/keyless").body("x").send().unwrap().expect(&[201]).unwrap();
    assert_ne!(keyless().word("id").unwrap(), keyless().word("id").unwrap());

    let refused = cluster.handler("/v1/messages/ActiveMQ.DLQ").key("k3").body("x").send().unwrap();
    assert_eq!((refused.status, refused.word("code").unwrap()), (400, "bad_destination".to_owned()));
    let refused = cluster.handler("/v1/queues").send().unwrap();
    assert_eq!(refused.status, 404, "operators' calls do not pass the gateway");
    cluster.stop().unwrap();
}

#[test]
fn a_key_whose_vault_is_killed_is_in_doubt_at_the_other_until_it_is_back_and_kept_once() {
    let mut cluster = Cluster::start_with(&plan()).unwrap();
    let java = JavaClient::start(cluster.folder()).unwrap();
    let mut count = 0;
    wait::until("its edge writes tickets", SOON, || {
        count += 1;
        post(&cluster, "others", &format!("settles-{count}"), "none")?.expect(&[201])?;
        let kept = plain::metric(cluster.edge.admin, "edge_gateway_tickets_kept")?;
        anyhow::ensure!(kept >= 1.0, "{kept} kept");
        Ok(())
    })
    .unwrap();
    let id = posted(&cluster, "orders", "k1", "one");
    let kept_by = cluster.pair.vaults.iter().position(|vault| id.contains(vault.name)).unwrap();
    cluster.pair.vaults[kept_by].program().unwrap().kill().unwrap();
    let refused = wait::until("the other vault says what it cannot know", SOON, || {
        let answer = post(&cluster, "orders", "k1", "one")?.expect(&[503])?;
        anyhow::ensure!(answer.word("code")? == "in_doubt", "{}", answer.text());
        Ok(answer)
    });
    assert!(refused.unwrap().header("retry-after").is_some());
    let other = posted(&cluster, "orders", "k2", "two");
    assert!(other.contains(cluster.pair.vaults[1 - kept_by].name), "a new key goes on: {other}");
    cluster.pair.vaults[kept_by].program().unwrap().restart().unwrap();
    assert_eq!(posted(&cluster, "orders", "k1", "one"), id);
    assert_eq!(posted(&cluster, "orders", "k2", "two"), other);
    let reused = post(&cluster, "orders", "k1", "other").unwrap();
    assert_eq!((reused.status, reused.word("code").unwrap()), (409, "key_reused".to_owned()));
    let mut taken = take_all(&java, &cluster.pair.vaults[0], "orders");
    taken.extend(take_all(&java, &cluster.pair.vaults[1], "orders"));
    taken.sort();
    assert_eq!(taken, [("one".to_owned(), id), ("two".to_owned(), other)]);
    cluster.stop().unwrap();
}

#[test]
fn whichever_vault_is_killed_under_load_each_answered_key_is_received_once() {
    const HANDLERS: usize = 4;
    const ROUNDS: usize = 4;
    let mut cluster = Cluster::start_with(&plan()).unwrap();
    let java = JavaClient::start(cluster.folder()).unwrap();
    let done = AtomicBool::new(false);
    let gateway = cluster.gateway.clone();
    let ids: BTreeMap<String, String> = std::thread::scope(|scope| {
        let handlers: Vec<_> = (0..HANDLERS)
            .map(|handler| {
                let (gateway, done) = (&gateway, &done);
                scope.spawn(move || handle(gateway, handler, done))
            })
            .collect();
        for round in 0..ROUNDS {
            let victim = cluster.pair.vaults[round % 2].program().unwrap();
            std::thread::sleep(Duration::from_millis(700));
            victim.kill().unwrap();
            std::thread::sleep(Duration::from_millis(500));
            victim.restart().unwrap();
            cluster.pair.wait_ready().unwrap();
        }
        done.store(true, Ordering::Relaxed);
        handlers.into_iter().flat_map(|handler| handler.join().unwrap()).collect()
    });
    let mut taken: Vec<_> =
        (0..2).flat_map(|at| take_all(&java, &cluster.pair.vaults[at], "orders")).collect();
    let count = taken.len();
    taken.sort();
    taken.dedup();
    assert_eq!(taken.len(), count, "some came twice");
    assert_eq!(taken, ids.into_iter().collect::<Vec<_>>());
    assert!(count >= HANDLERS * ROUNDS, "only {count} were posted");
    cluster.stop().unwrap();
}

/// Posts one text after the other until it is done, each until it is answered: the texts and their
/// messages' ids.
fn handle(gateway: &std::path::Path, handler: usize, done: &AtomicBool) -> Vec<(String, String)> {
    let mut ids = Vec::new();
    for number in 0.. {
        if done.load(Ordering::Relaxed) {
            break;
        }
        let text = format!("{handler}-{number}");
        let answer = wait::until(&format!("{text} is posted"), BACK, || {
            let call = harness::curl::Curl::new("http://gateway/v1/messages/orders").over(gateway);
            call.key(&text).header("Content-Type", "text/plain").body(&*text).send()?.expect(&[200, 201])
        });
        ids.push((text, answer.unwrap().word("id").unwrap()));
    }
    ids
}

#[test]
fn what_is_sent_by_hand_java_receives_and_a_dead_letter_that_is_retried_comes_again() {
    let folder = temporary_folder().unwrap();
    let pair = Pair::start(folder.path(), &plan()).unwrap();
    let java = JavaClient::start(folder.path()).unwrap();
    let vault = &pair.vaults[0];
    let sent =
        vault.command(&["message", "send", "orders", "bitter", "--property", "lot:=7", "--priority", "8"]);
    assert!(sent.unwrap().contains(" is in orders"));

    let dies = session(&java, vault, ONCE, Acknowledge::Transacted);
    let consumer = dies.consumer("orders").unwrap();
    for _ in 0..2 {
        let received = consumer.receive(SOON).unwrap().expect("nothing comes");
        assert_eq!((received.text(), received.priority), (Some("bitter"), 8));
        assert_eq!(received.properties["lot"], Value::Int(7));
        dies.rollback().unwrap();
    }
    let told = wait::until("it is a dead letter", SOON, || {
        let told = vault.command(&["message", "browse", "ActiveMQ.DLQ"])?;
        anyhow::ensure!(told.contains("from orders, poison"), "{told}");
        Ok(told)
    });
    assert!(told.unwrap().contains("redelivery policy"), "the reason is told");
    let listed = vault.command(&["message", "browse", "ActiveMQ.DLQ", "--body", "--json"]).unwrap();
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed[0]["body"]["text"], "bitter");
    assert_eq!((&listed[0]["died"]["queue"], &listed[0]["properties"]["lot"]), (&"orders".into(), &7.into()));
    let number = listed[0]["number"].to_string();
    let whole = vault.command(&["message", "browse", "ActiveMQ.DLQ", "--number", &number]).unwrap();
    assert!(whole.contains("died:       in orders, poison") && whole.ends_with("bitter\n"), "{whole}");

    let counted = format!("{:#}", vault.command(&["message", "retry", "--from", "orders"]).unwrap_err());
    assert!(counted.contains("1 dead letters: 1 of orders") && counted.contains("--yes"), "{counted}");
    let again = "1 dead letters are in their queues again\n";
    for (words, told) in [
        (["--from", "offers", "--yes"], "0 dead letters are in their queues again\n"),
        (["--reason", "Redelivery Policy", "--yes"], again),
    ] {
        assert_eq!(vault.command(&[&["message", "retry"], &words[..]].concat()).unwrap(), told);
    }
    let second = consumer.receive(SOON).unwrap().expect("nothing comes again");
    assert_eq!((second.text(), second.redelivered), (Some("bitter"), false));
    dies.rollback().unwrap();
    assert_eq!(consumer.receive(SOON).unwrap().expect("it comes once more").text(), Some("bitter"));
    dies.rollback().unwrap();
    let number = wait::until("it is a dead letter again", SOON, || {
        let listed = vault.command(&["message", "browse", "ActiveMQ.DLQ", "--json"])?;
        let listed: serde_json::Value = serde_json::from_str(&listed)?;
        anyhow::ensure!(listed[0]["number"].is_i64(), "{listed}");
        Ok(listed[0]["number"].to_string())
    });
    let number = number.unwrap();
    assert_eq!(vault.command(&["message", "retry", &number]).unwrap(), again);
    let again = consumer.receive(SOON).unwrap().expect("nothing comes again");
    assert_eq!((again.text(), again.redelivered), (Some("bitter"), false));
    dies.commit().unwrap();
    assert_eq!(consumer.receive(QUIET).unwrap(), None);
    let none = format!("{:#}", vault.command(&["message", "retry", &number]).unwrap_err());
    assert!(none.contains("none of these"), "{none}");
}

#[test]
fn an_operator_lists_moves_and_purges_and_is_asked_before_anything_is_lost() {
    let folder = temporary_folder().unwrap();
    let pair = Pair::start(folder.path(), &plan()).unwrap();
    let java = JavaClient::start(folder.path()).unwrap();
    let vault = &pair.vaults[1];
    let run = |words: &[&str]| vault.command(&[&["message"], words].concat());
    for number in 0..5 {
        run(&["send", "orders", &number.to_string()]).unwrap();
    }
    let queues = || depths(vault);
    assert_eq!(queues()["orders"], 5);
    assert!(run(&["queues"]).unwrap().contains("orders"));
    assert_eq!(
        run(&["move", "orders", "set aside", "--count", "2"]).unwrap(),
        "2 moved from orders to set aside\n"
    );
    let cut = run(&["browse", "orders", "--limit", "2", "--body"]).unwrap();
    assert!(cut.contains("  2\n") && cut.contains("  3\n") && cut.contains("… and more: --after "), "{cut}");
    let listed: serde_json::Value =
        serde_json::from_str(&run(&["browse", "orders", "--json"]).unwrap()).unwrap();
    let last = listed[2]["number"].to_string();
    assert_eq!(
        run(&["move", "orders", "set aside", "--number", &last]).unwrap(),
        "1 moved from orders to set aside\n"
    );
    assert_eq!((queues()["orders"], queues()["set aside"]), (2, 3));

    let session = session(&java, vault, "", Acknowledge::Auto);
    let aside = session.browse("set aside", 100).unwrap();
    assert_eq!(aside.iter().filter_map(Received::text).collect::<Vec<_>>(), ["0", "1", "4"]);

    let refused = format!("{:#}", run(&["purge", "orders"]).unwrap_err());
    assert!(refused.contains("orders has 2 messages") && refused.contains("add --yes"), "{refused}");
    assert_eq!(queues()["orders"], 2);
    assert_eq!(run(&["purge", "orders", "--yes"]).unwrap(), "2 messages of orders are deleted\n");
    run(&["remove", "orders"]).unwrap();
    assert_eq!(
        queues().keys().cloned().collect::<BTreeSet<_>>(),
        ["ActiveMQ.DLQ".into(), "set aside".into()].into()
    );
    let in_use = format!("{:#}", run(&["remove", "set aside"]).unwrap_err());
    assert!(in_use.contains("in use"), "{in_use}");
    let unknown = format!("{:#}", run(&["browse", "orders"]).unwrap_err());
    assert!(unknown.contains("there is none"), "{unknown}");
}

#[test]
fn a_pair_without_a_broker_tells_the_handler_and_its_operator_what_is_missing() {
    let folder = temporary_folder().unwrap();
    let pair = Pair::start(folder.path(), &PairPlan::default()).unwrap();
    let refused = format!("{:#}", pair.vaults[0].command(&["message", "send", "orders", "x"]).unwrap_err());
    assert!(refused.contains("no_broker") && refused.contains("[broker]"), "{refused}");
    let refused = pair.vaults[0].command(&["message", "queues"]).context("queues").unwrap_err();
    assert!(format!("{refused:#}").contains("no_broker"));
}
