//! Promises about a file server that gets on, but slowly: nobody waits for it who need not, and
//! what it does in the end counts.

use super::sessions::{Kind, Progress};
use super::upkeep::rebuilt;
use super::*;

/// Sleeps before every piece that is written to file server `two`.
async fn open_slow(place: &Place, timeout: Duration) -> Storage {
    let two = place.path("two");
    let steps = Steps::watched(move |step| {
        if matches!(step, Step::WriteFile(path) if path.starts_with(two.join("tmp"))) {
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    let mut settings = place.settings("vault-a");
    settings.file_server_timeout = timeout;
    settings.retry_every = Duration::from_millis(100);
    Storage::open_watched(settings, "vault-a", steps).await.unwrap()
}

fn noise(length: usize) -> Vec<u8> {
    let mut noise = vec![0; length];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    noise
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_waits_one_deadline_for_a_slow_file_server_and_its_late_replica_counts() {
    let place = Place::new();
    let storage = open_slow(&place, Duration::from_secs(1)).await;
    let stored = put(&storage, "k", &noise(8 << 20)).await.unwrap().entry;
    assert_eq!((stored.stored_on(), stored.owed_to()), (vec!["one".to_owned()], vec!["two".to_owned()]));
    assert_eq!(storage.pay_turn().await.unwrap(), Turn::default(), "nothing is copied beside it");
    let begun = tokio::time::Instant::now();
    while !found(&storage, &stored.id).await.owed_to().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it arrives in the end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(storage.status().await.unwrap().file_servers[1].up, "slow is not away");
    while !storage.0.live().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(place.rest(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_copy_keeps_neither_probes_nor_small_repairs_waiting() {
    let place = Place::new();
    let storage = open_slow(&place, Duration::from_secs(20)).await;
    storage.0.servers[1].suspend(&FileServerError::Absent { server: String::new(), object: String::new() });
    let id = put(&storage, "k", &noise(8 << 20)).await.unwrap().entry.id;
    storage.probe_turn().await;
    let paying = tokio::spawn({
        let storage = storage.clone();
        async move { storage.pay_turn().await.unwrap() }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    storage.probe_turn().await;
    storage.tend_turn().await.unwrap();
    assert!(!paying.is_finished(), "the copy is still under way");
    assert_eq!(paying.await.unwrap().failed, 0);
    assert_eq!(found(&storage, &id).await.stored_on(), ["one", "two"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_to_be_owed_beside_a_slow_copy_is_paid_meanwhile() {
    let place = Place::new();
    let storage = open_slow(&place, Duration::from_secs(20)).await;
    let [small, gone] = ["small", "gone"].map(|key| (key, storage.clone()));
    let small = put(&small.1, small.0, b"small").await.unwrap().entry.id;
    let gone = put(&gone.1, gone.0, b"gone").await.unwrap().entry.id;
    storage.0.servers[1].suspend(&FileServerError::Absent { server: String::new(), object: String::new() });
    let large = put(&storage, "k", &noise(8 << 20)).await.unwrap().entry.id;
    storage.probe_turn().await;
    let paying = tokio::spawn({
        let storage = storage.clone();
        async move { storage.pay_turn().await.unwrap() }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let replica = |id: ObjectId| {
        let mut replicas = place.replicas("two").into_iter();
        replicas.find(|file| file.ends_with(id.to_string()))
    };
    std::fs::remove_file(replica(small).unwrap()).unwrap();
    storage.0.catalog.observed(small, "two".to_owned(), ReplicaState::Owed, now()).await.unwrap();
    storage.delete(&gone).await.unwrap();
    storage.0.catalog.purge(vec![gone], now()).await.unwrap();
    while replica(small).is_none() || replica(gone).is_some() {
        assert!(!paying.is_finished(), "they waited for the large copy");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!paying.is_finished(), "the large copy is still under way");
    let paid = paying.await.unwrap();
    assert_eq!((paid.copied, paid.failed), (2, 0));
    assert_eq!(found(&storage, &large).await.stored_on(), ["one", "two"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_does_not_wait_until_a_bad_replica_is_read_whole_and_set_aside() {
    let place = Place::new();
    let steps = Steps::watched(|step| {
        if matches!(step, Step::Rename(_, to) if to.parent().unwrap().ends_with("quarantine")) {
            std::thread::sleep(Duration::from_secs(2));
        }
    });
    let storage = Storage::open_watched(place.settings("vault-a"), "vault-a", steps).await.unwrap();
    let id = put(&storage, "k", b"content").await.unwrap().entry.id;
    patrol::spoil(&place.replicas("one")[0], 0);
    // The bad one is read first.
    let mut at_one = found(&storage, &id).await;
    at_one.replicas.retain(|(server, _)| server == "one");
    let begun = tokio::time::Instant::now();
    for _ in 0..3 {
        let (_, plaintext) = storage.read(&at_one, None).await.unwrap();
        let read: Vec<_> = plaintext.try_collect().await.unwrap();
        assert_eq!(read.concat(), b"content");
    }
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    suspects_seen(&storage).await;
    assert_eq!(found(&storage, &id).await.stored_on(), ["two"]);
    assert_eq!(files_below(&place.path("one/quarantine")).len(), 1);
    assert_eq!(storage.repair_turn().await.unwrap().copied, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_copies_keep_no_comparison_removal_rebuilding_or_scrub_waiting() {
    let place = Place::new();
    let (held, reached, two) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)), place.path("two/tmp"));
    let (hold, reach) = (Arc::clone(&held), Arc::clone(&reached));
    let steps = Steps::watched(move |step| {
        if matches!(step, Step::WriteFile(path) if path.starts_with(&two)) && hold.load(Ordering::SeqCst) {
            reach.fetch_add(1, Ordering::SeqCst);
            while hold.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    });
    let mut settings = place.settings("vault-a");
    settings.file_server_timeout = Duration::from_secs(120);
    let storage = Storage::open_watched(settings, "vault-a", steps).await.unwrap();
    put(&storage, "kept", b"kept").await.unwrap();
    let gone = put(&storage, "gone", b"gone").await.unwrap().entry.id;
    let aside = place.path("two").join(format!("quarantine/{gone}~{}", random_hex()));
    std::fs::write(&aside, b"opens with the escrow key").unwrap();
    storage.0.servers[1].suspend(&FileServerError::Absent { server: String::new(), object: String::new() });
    for key in ["first", "second", "third", "fourth"] {
        put(&storage, key, &noise(2 << 20)[key.len()..]).await.unwrap();
    }
    storage.probe_turn().await;
    storage.delete(&gone).await.unwrap();
    storage.0.catalog.purge(vec![gone], now()).await.unwrap();
    held.store(true, Ordering::SeqCst);
    let paying = tokio::spawn({
        let storage = storage.clone();
        async move { storage.pay_turn().await.unwrap() }
    });
    let others = async {
        while reached.load(Ordering::SeqCst) < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // All four have asked for a place.
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(storage.sync().await.unwrap().unlisted, Vec::<String>::new());
        while storage.status().await.unwrap().removals_owed > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(!aside.exists());
        let told = rebuilt(&storage, None, true).await;
        assert_eq!((told.finished, told.failed), (true, 0), "{told:?}");
        storage.scrub().await.unwrap();
        while storage.scrub_turn().await.unwrap() {}
        let scrubbed = storage.status().await.unwrap().scrub;
        assert_eq!((scrubbed.checked, scrubbed.damaged, scrubbed.skipped), (6, 0, 0));
    };
    tokio::time::timeout(Duration::from_secs(30), others).await.expect("they wait for the copies");
    assert!(!paying.is_finished() && place.replicas("two").len() == 1, "no copy came to its end");
    held.store(false, Ordering::SeqCst);
    let paid = paying.await.unwrap();
    assert_eq!((paid.copied, paid.failed), (4, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collection_that_finds_no_place_keeps_neither_probing_nor_tending_and_is_queued_once() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    storage.tend_turn().await.unwrap();
    collected(&storage).await;
    let torn = place.path("one/tmp/vault-a~torn");
    std::fs::write(&torn, "torn").unwrap();
    let held = Arc::new(AtomicBool::new(true));
    let mut holding = Vec::new();
    // Whatever a collection could run in: three places in the background, and that of listings.
    for kind in [Kind::Background, Kind::Background, Kind::Background, Kind::Listing] {
        let (storage, held) = (storage.clone(), Arc::clone(&held));
        holding.push(tokio::spawn(async move {
            let hold = move |_: &dyn file_server::FileServer, progress: &Progress| {
                while held.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(10));
                    progress.note();
                }
                Ok(())
            };
            storage.0.servers[0].run_as(kind, "held", hold).await
        }));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let turns = async {
        storage.0.servers.iter().for_each(|server| {
            server.suspend(&FileServerError::Absent { server: String::new(), object: String::new() });
        });
        storage.probe_turn().await;
        assert!(storage.status().await.unwrap().file_servers.iter().all(|server| server.up));
        storage.tend_turn().await.unwrap();
        storage.0.servers[1].collected().await;
    };
    tokio::time::timeout(Duration::from_secs(10), turns).await.expect("they wait for the collection");
    assert!(torn.exists() && storage.0.servers[0].begin_collecting().is_none(), "one waits for its place");
    held.store(false, Ordering::SeqCst);
    for held in holding {
        held.await.unwrap().unwrap();
    }
    collected(&storage).await;
    assert!(!torn.exists());
}
