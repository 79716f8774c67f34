//! Promises about a file server that gets on, but slowly: nobody waits for it who need not, and
//! what it does in the end counts.

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
