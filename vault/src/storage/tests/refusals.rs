//! Promises about a file server that refuses, claims too much, or goes away in mid-walk: what it does not
//! do keeps nobody from what it does.

use super::upkeep::{ended, rebuilt};
use super::*;

#[tokio::test]
async fn a_file_server_that_takes_no_writes_is_read_on() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    let id = put(&storage, "before", b"before").await.unwrap().entry.id;
    // As a disk that fails, writing alone.
    std::fs::remove_dir(place.path("one/tmp")).unwrap();
    std::fs::write(place.path("one/tmp"), "").unwrap();
    std::fs::remove_dir_all(place.path("two")).unwrap();
    assert!(put(&storage, "neither", b"x").await.is_err());
    let after = storage.status().await.unwrap();
    assert!(after.file_servers[0].up, "{:?}", after.file_servers[0]);
    assert_eq!(read(&storage, &id, None).await.unwrap(), b"before");
}

/// A rotten inode or a hostile server; there is no end to reading it.
fn claim_too_much(replica: &Path) {
    let file = std::fs::OpenOptions::new().write(true).open(replica).unwrap();
    file.set_len(1 << 40).unwrap();
}

#[tokio::test]
async fn a_replica_that_claims_to_be_longer_than_its_object_is_set_aside_unread() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    let id = put(&storage, "k", b"content").await.unwrap().entry.id;
    let one = place.replicas("one").remove(0);
    for finder in ["scrub", "verify", "reader", "repair"] {
        claim_too_much(&one);
        match finder {
            "scrub" => {
                storage.scrub().await.unwrap();
                while storage.scrub_turn().await.unwrap() {}
            }
            "verify" => {
                let checked = storage.verify(&found(&storage, &id).await).await.unwrap();
                assert!(matches!(checked[0].refused, Some(FileServerError::Damaged { .. })));
            }
            "reader" => {
                let mut at_one = found(&storage, &id).await;
                at_one.replicas.retain(|(server, _)| server == "one");
                drop(storage.read(&at_one, None).await.unwrap());
                suspects_seen(&storage).await;
            }
            // Found there by the write itself.
            _ => {
                let owed = storage.0.catalog.observed(id, "one".to_owned(), ReplicaState::Owed, now());
                owed.await.unwrap();
            }
        }
        assert_eq!(storage.repair_turn().await.unwrap().copied, 1, "{finder}");
        assert_eq!(found(&storage, &id).await.stored_on(), ["one", "two"], "{finder}");
        assert!(one.metadata().unwrap().len() < 1 << 20, "{finder}");
    }
    // Nothing to copy from but that: the spool holds none of it.
    std::fs::remove_file(&place.replicas("two")[0]).unwrap();
    storage.0.catalog.observed(id, "two".to_owned(), ReplicaState::Owed, now()).await.unwrap();
    claim_too_much(&one);
    assert_eq!(storage.repair_turn().await.unwrap().failed, 1);
    assert!(!one.exists() && place.replicas("two").is_empty());
    assert_eq!(files_below(&place.path("one/quarantine")).len(), 5);
}

#[tokio::test]
async fn an_unknown_object_that_claims_more_than_is_accepted_is_left_alone() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    let id = ObjectId::new([7; 32]);
    let path = place.path("one").join(&id.to_string()[..2]).join(&id.to_string()[2..4]);
    std::fs::create_dir_all(&path).unwrap();
    let path = path.join(id.to_string());
    std::fs::write(&path, "x").unwrap();
    claim_too_much(&path);
    let refused = storage.find(&id).await.unwrap_err();
    assert!(refused.to_string().contains("storage.max_file"), "{refused}");
    assert!(path.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_id_waits_for_no_whole_objects_place() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    let (release, hang) = std::sync::mpsc::channel::<()>();
    let hang = Arc::new(Mutex::new(hang));
    for _ in 0..6 {
        let (storage, hang) = (storage.clone(), Arc::clone(&hang));
        tokio::spawn(async move {
            let held = storage.0.servers[0].run_long("held", move |_, _| {
                let _ = hang.lock().unwrap().recv();
                Ok(())
            });
            held.await
        });
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let unknown = ObjectId::new([7; 32]);
    let asked = tokio::time::timeout(Duration::from_secs(5), storage.find(&unknown));
    assert!(matches!(asked.await.unwrap().unwrap(), Found::Absent));
    drop(release);
}

#[tokio::test]
async fn a_debt_that_waits_for_room_is_paid_at_the_next_try_after_room_was_made() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    let id = put(&storage, "k", b"content").await.unwrap().entry.id;
    std::fs::remove_file(&place.replicas("two")[0]).unwrap();
    storage.0.catalog.observed(id, "two".to_owned(), ReplicaState::Owed, now()).await.unwrap();
    storage.0.servers[1].set_full(true);
    assert_eq!(storage.pay_turn().await.unwrap().copied, 1);
}

/// A replica that is a pipe without a writer hangs whoever opens it, as a dying server does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuilding_that_loses_a_file_server_in_mid_page_goes_on_from_before_that_page() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    let mut ids = Vec::new();
    for number in 0..10 {
        ids.push(put(&storage, &number.to_string(), b"content").await.unwrap().entry.id);
    }
    drop(storage);
    place.burn().await;
    let first = ids.iter().min().unwrap();
    let at = |server: &str| {
        let mut replicas = place.replicas(server).into_iter();
        replicas.find(|file| file.ends_with(first.to_string())).unwrap()
    };
    std::fs::remove_file(at("one")).unwrap();
    let (pipe, kept) = (at("two"), place.path("kept"));
    std::fs::rename(&pipe, &kept).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let mut settings = place.settings("vault-a");
    settings.file_server_timeout = Duration::from_millis(500);
    let storage = Storage::open(settings, "vault-a").await.unwrap();
    let stopped = rebuilt(&storage, None, false).await;
    assert!(!stopped.finished && stopped.last_error.is_some(), "{stopped:?}");
    // Lets the hanging one go.
    drop(std::fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap());
    std::fs::rename(&kept, &pipe).unwrap();
    storage.probe_turn().await;
    storage.rebuild(None, true).await.unwrap();
    assert!(ended(|| storage.rebuild_progress()).await.finished);
    assert_eq!(found(&storage, first).await.stored_on(), ["two"]);
    assert_eq!(storage.list(Wanted::default(), None, 100).await.unwrap().len(), 10);
}
