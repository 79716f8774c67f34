//! Stories of a failover URI that names two brokers which know nothing of each other: what was under way at
//! one of them is neither lost nor doubled when the other one answers.

use std::path::Path;
use std::time::Duration;

use harness::activemq::ActiveMq;
use harness::bridging::{Sections, told, wait_carried_by, wait_forwarded};
use harness::broker::{Broker, failover};
use harness::cluster::temporary_folder;
use harness::java_client::{Acknowledge, JavaClient, Letter, Login};
use harness::vault_host::{Pair, PairPlan, Vault};
use harness::wait;
use serde_json::Value;

use super::{Flow, LATER, SOON, brokers, killed, seats};

/// Falls that may be needed until one comes in the middle of a commit.
const FALLS: usize = 12;

/// A pair between two sources or two targets under one name, and what is on the other side. Only its first vault
/// works, so that it goes from one broker to the other.
fn pair(folder: &Path, from: &[Broker], to: &[Broker]) -> Pair {
    let uris = |brokers: &[Broker]| brokers.iter().map(Broker::uri).collect::<Vec<_>>();
    let sections = Sections::default().brokers("from", &uris(from), "").brokers("to", &uris(to), "");
    let mut pair = sections.way("from", "to", "orders.>", "").start(folder, PairPlan::default()).unwrap();
    pair.vaults[1].program().unwrap().kill().unwrap();
    wait_carried_by(&pair.vaults[0], "from-to-to", SOON).unwrap();
    pair
}

/// The other one works too; so many messages pass in all.
fn all_pass(pair: &mut Pair, messages: u64) {
    pair.vaults[1].program().unwrap().restart().unwrap();
    pair.vaults[1].wait_ready().unwrap();
    wait_forwarded(pair, "from-to-to", messages, LATER).unwrap();
}

fn shown(vault: &Vault) -> Value {
    told(vault, "from-to-to").unwrap()
}

fn is_elsewhere(vault: &Vault) -> bool {
    shown(vault)["elsewhere"]["rows"].as_u64().unwrap() > 0
}

fn is_refused(vault: &Vault) -> bool {
    shown(vault)["target"].as_str().is_some_and(|why| why.contains("is another broker than the one"))
}

/// Is it so within a short while? It need not be.
fn happens(vault: &Vault, what: fn(&Vault) -> bool) -> bool {
    wait::until("it is so", Duration::from_secs(4), || {
        anyhow::ensure!(what(vault));
        Ok(())
    })
    .is_ok()
}

/// Waits until it is so no more.
fn is_over(vault: &Vault, what: fn(&Vault) -> bool) {
    wait::until("it is settled", SOON, || {
        anyhow::ensure!(!what(vault), "{}", shown(vault));
        Ok(())
    })
    .unwrap();
}

#[test]
fn two_sources_behind_one_uri_lose_and_double_nothing_when_either_falls() {
    let folder = temporary_folder().unwrap();
    let mut all = brokers(folder.path(), seats(["a", "b", "c"]).map(ActiveMq::at));
    let (from, to) = all.split_at_mut(2);
    let mut pair = pair(folder.path(), from, to);
    let uris = [0, 1].map(|which| failover(&[from[which].uri()], ""));
    let flow = Flow::begin(folder.path(), &uris, 20_000);
    let mut story = Vec::new();
    for fall in 0..FALLS {
        std::thread::sleep(Duration::from_millis(700));
        let which = fall % 2;
        from[which].kill().unwrap();
        let is_seen = happens(&pair.vaults[0], is_elsewhere);
        if is_seen && fall % 3 == 0 {
            // It knows afterwards too.
            killed(pair.vaults[0].program().unwrap());
            pair.vaults[0].wait_ready().unwrap();
        }
        from[which].restart().unwrap();
        is_over(&pair.vaults[0], is_elsewhere);
        story.push((which, is_seen));
        if story.iter().filter(|(_, is_seen)| *is_seen).count() >= 3 {
            break;
        }
    }
    assert!(story.iter().any(|(_, is_seen)| *is_seen), "no fall came in the middle of a commit: {story:?}");
    // Each vault carries from one of them.
    all_pass(&mut pair, 40_000);
    flow.end(&[to[0].uri()], &format!("{story:?}"));
}

#[test]
fn two_targets_behind_one_uri_double_nothing_when_either_falls_and_the_other_goes_on_with_what_comes() {
    let folder = temporary_folder().unwrap();
    let mut all = brokers(folder.path(), seats(["a", "b", "c"]).map(ActiveMq::at));
    let (from, to) = all.split_at_mut(1);
    let mut pair = pair(folder.path(), from, to);
    let flow = Flow::begin(folder.path(), &[failover(&[from[0].uri()], "")], 30_000);
    let mut story = Vec::new();
    let mut at = 0;
    for fall in 0..FALLS {
        std::thread::sleep(Duration::from_millis(700));
        to[at].kill().unwrap();
        let is_seen = happens(&pair.vaults[0], is_refused);
        if is_seen && fall % 3 == 0 {
            killed(pair.vaults[0].program().unwrap());
            pair.vaults[0].wait_ready().unwrap();
        }
        to[at].restart().unwrap();
        is_over(&pair.vaults[0], is_refused);
        story.push((at, is_seen));
        if story.iter().filter(|(_, is_seen)| *is_seen).count() >= 3 {
            break;
        }
        // Where nothing was under way the other one was taken, or had been there.
        at = if is_seen { at } else { 1 - at };
    }
    assert!(story.iter().any(|(_, is_seen)| *is_seen), "no fall came in the middle of a commit: {story:?}");
    all_pass(&mut pair, 30_000);
    let uris = [0, 1].map(|which| to[which].uri());
    flow.end(&uris, &format!("{story:?}"));

    // Nothing is under way: the other one takes what comes while one is away.
    to[at].kill().unwrap();
    let java = JavaClient::start(folder.path()).unwrap();
    let session = |uri: &str| java.connect(&Login::to(uri)).unwrap().session(Acknowledge::Auto).unwrap();
    let sent = session(&from[0].uri()).send("orders.new", &Letter::text("later")).unwrap();
    let receiver = session(&uris[1 - at]);
    let arrived = receiver.consumer("orders.new").unwrap().receive(SOON).unwrap().unwrap();
    assert_eq!(arrived.id, sent.id);
}
