//! What can be said of a direction without brokers; with them it is tried by the stories.

use super::tries::Tries;
use super::*;
use crate::bridge::journal::Counts;
use crate::openwire::Text;

fn settings(destination: &str) -> Settings {
    let uri: Uri = "tcp://127.0.0.1:1".parse().unwrap();
    let broker = |name: &str| Broker { name: name.to_owned(), uri: uri.clone(), login: Login::default() };
    Settings {
        name: "a-to-b".to_owned(),
        vault: "left".to_owned(),
        file: PathBuf::from("bridge.db"),
        from: broker("erp"),
        to: broker("dmz"),
        destination: Destination::queue(Text::shortened(destination)),
        limits: Limits::default(),
        prefetch: 1000,
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
    let long = tries.wait(Some(Duration::ZERO));
    tries.worked();
    let soon = tries.wait(Some(Duration::ZERO));
    assert!(soon < long, "one that worked is tried again soon: {soon:?} after {long:?}");
    let waits = (0..100).map(|_| {
        tries.refused();
        tries.wait(Some(Duration::ZERO))
    });
    let waits: Vec<_> = waits.collect();
    assert!(waits[..64].iter().all(|it| *it <= soon * 2), "one that answers is not spared: {waits:?}");
    assert!(waits[99] > long, "one that refuses all is: {waits:?}");
}

/// A direction at work, and the ends to it.
struct Working {
    shown: watch::Receiver<Status>,
    asks: mpsc::Sender<Asked>,
    _stand_back: watch::Sender<bool>,
    shutdown: Shutdown,
    running: tokio::task::JoinHandle<()>,
}

impl Working {
    fn start(file: PathBuf) -> Self {
        let (status, shown) = watch::channel(Status::at(Instant::now()));
        let (asks, asked) = mpsc::channel(1);
        let (stand_back, heard) = watch::channel(false);
        let shutdown = Shutdown::new();
        let settings = Arc::new(Settings { file, ..settings("orders.>") });
        let ears = Ears { asked, stand_back: heard };
        let running = tokio::spawn(run(settings, status, ears, shutdown.clone()));
        Self { shown, asks, _stand_back: stand_back, shutdown, running }
    }

    async fn wish(&self, wish: Wish) -> Result<u64, JournalError> {
        let (answer, answered) = oneshot::channel();
        self.asks.send(Asked { wish, answer }).await.unwrap();
        answered.await.unwrap()
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.running.await.unwrap();
    }
}

#[tokio::test]
async fn a_direction_whose_brokers_and_journal_are_away_says_so_and_stops_when_it_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let mut away = Working::start(folder.path().join("no folder").join("bridge.db"));
    let shown = away.shown.wait_for(|status| status.journal.is_some()).await.unwrap().clone();
    assert_eq!((shown.state, shown.last_error.map(|error| error.what)), (State::Stopped, shown.journal));
    away.stop().await;

    let mut lonely = Working::start(folder.path().join("bridge.db"));
    let away = |side: &Option<String>| {
        side.as_ref().is_some_and(|why| why.starts_with("tcp://127.0.0.1:1: connect"))
    };
    let shown =
        lonely.shown.wait_for(|status| away(&status.source) && away(&status.target)).await.unwrap().clone();
    assert_eq!((shown.state, shown.journal, shown.figures.counts), (State::Away, None, Counts::default()));
    lonely.stop().await;
}

#[tokio::test]
async fn a_wish_about_dead_letters_is_fulfilled_while_nobody_works_with_the_journal_and_it_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut working = Working::start(folder.path().join("bridge.db"));
    working.shown.wait_for(|status| status.target.is_some()).await.unwrap();
    assert_eq!(working.wish(Wish::Revive).await.unwrap(), 0);
    assert_eq!(working.wish(Wish::Purge(None)).await.unwrap(), 0);
    working.shown.wait_for(|status| status.target.is_some()).await.unwrap();
    working.stop().await;
    // Where there is no journal there is an answer too.
    let away = Working::start(folder.path().join("no folder").join("bridge.db"));
    assert!(away.wish(Wish::Purge(None)).await.is_err());
    away.stop().await;
}
