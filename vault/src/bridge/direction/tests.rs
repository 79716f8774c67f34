//! What can be said of a direction without brokers; with them it is tried by the stories.

use super::*;
use crate::openwire::Text;

fn settings(destination: &str) -> Settings {
    let broker = || Broker { uri: "tcp://127.0.0.1:1".parse().unwrap(), login: Login::default() };
    Settings {
        name: "a-to-b".to_owned(),
        vault: "left".to_owned(),
        file: PathBuf::from("bridge.db"),
        from: broker(),
        to: broker(),
        destination: Destination::queue(Text::shortened(destination)),
        limits: Limits::default(),
        prefetch: 1000,
    }
}

#[test]
fn a_pattern_that_covers_the_bridges_own_queues_is_refused() {
    for good in ["orders.>", "orders.new", "orders.*,invoices.>"] {
        assert_eq!(settings(good).check(), Ok(()), "{good}");
    }
    for bad in [">", "*.>", "orders.>,>", "vault.bridge.receipts.x", "orders,queue://>"] {
        let refused = settings(bad).check().unwrap_err().to_string();
        assert!(refused.starts_with(&format!("bridge a-to-b: queue://{bad} also names")), "{refused}");
    }
}

#[test]
fn each_vault_of_a_pair_has_receipts_of_its_own() {
    assert_eq!(settings("x").receipts(), "vault.bridge.receipts.a-to-b.left");
}

#[tokio::test]
async fn brokers_are_tried_one_after_the_other_and_each_round_waits_longer() {
    let uri: Uri = "failover:(tcp://a:1,tcp://b:1)?randomize=false&initialReconnectDelay=40".parse().unwrap();
    let mut tries = Tries::new(&uri);
    let mut waits = Vec::new();
    let mut hosts = String::new();
    for _ in 0..6 {
        hosts.push_str(&tries.address().host);
        let begun = Instant::now();
        tries.failed(None).await;
        waits.push(begun.elapsed().as_millis());
    }
    assert_eq!(hosts, "ababab");
    assert!(waits[1] >= 20 && waits[3] >= 40 && waits[5] >= 80, "{waits:?}");
    assert!(waits[0] < waits[1] && waits[2] < waits[3] && waits[4] < waits[5], "{waits:?}");
}

#[tokio::test]
async fn a_direction_whose_brokers_and_journal_are_away_says_so_and_stops_when_it_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let settings = |file: PathBuf| Arc::new(Settings { file, ..settings("orders.>") });
    let (status, mut shown) = watch::channel(Status::default());
    let shutdown = Shutdown::new();
    let away = settings(folder.path().join("no folder").join("bridge.db"));
    let running = tokio::spawn(run(away, status, shutdown.clone()));
    shown.wait_for(|status| status.journal.is_some()).await.unwrap();
    shutdown.cancel();
    running.await.unwrap();

    let (status, mut shown) = watch::channel(Status::default());
    let shutdown = Shutdown::new();
    let running = tokio::spawn(run(settings(folder.path().join("bridge.db")), status, shutdown.clone()));
    let away = |side: &Option<String>| {
        side.as_ref().is_some_and(|why| why.starts_with("tcp://127.0.0.1:1: connect"))
    };
    let shown = shown.wait_for(|status| away(&status.source) && away(&status.target)).await.unwrap().clone();
    assert_eq!((shown.journal, shown.counts), (None, Counts::default()));
    shutdown.cancel();
    running.await.unwrap();
}
