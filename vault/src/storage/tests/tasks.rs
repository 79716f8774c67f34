//! Promises of long walks over a restart: they go on by themselves, and what cannot is told with
//! what to do.

use super::upkeep::ended;
use super::*;

/// One life of a vault in a runtime of its own, which ends as a killed process does.
fn life<T>(work: impl AsyncFnOnce() -> T) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let done = runtime.block_on(work());
    runtime.shutdown_background();
    done
}

#[test]
fn a_rewrapping_goes_on_by_itself_after_a_restart() {
    let place = Place::new();
    life(async || {
        let storage = place.open("vault-a").await;
        for number in 0..70 {
            put(&storage, &number.to_string(), b"content").await.unwrap();
        }
        key::rotate(&place.key_file(), clock()).unwrap();
        storage.repair_turn().await.unwrap();
        storage.hear_keys(peer_with(&storage.status().await.unwrap().recipients)).await.unwrap();
        // A second and more for each batch of 64.
        assert!(storage.rewrap(50).await.unwrap().running);
        while storage.rewrap_progress().done == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(matches!(storage.rewrap(50).await, Err(StorageError::Busy(_))));
    });
    life(async || {
        // The other file server is waited for.
        std::fs::rename(place.path("two"), place.path("away")).unwrap();
        let storage = place.open("vault-a").await;
        storage.repair_turn().await.unwrap();
        let waits = storage.status().await.unwrap().rewrap;
        assert!(!waits.running && waits.last_error.unwrap().contains("goes on by itself"));
        std::fs::rename(place.path("away"), place.path("two")).unwrap();
        storage.repair_turn().await.unwrap();
        storage.repair_turn().await.unwrap();
        let done = ended(|| storage.rewrap_progress()).await;
        assert!(done.finished && done.failed == 0 && done.last_error.is_none(), "{done:?}");
        assert!((1..140).contains(&done.done), "{done:?}");
        assert_eq!(storage.keys().await.unwrap().keys[0].records, 140);
    });
    life(async || {
        let storage = place.open("vault-a").await;
        storage.repair_turn().await.unwrap();
        assert_eq!(storage.rewrap_progress(), Progress::default(), "once it is done it is done");
    });
}

#[tokio::test]
async fn a_rebuilding_goes_on_by_itself_unless_it_needs_a_key_that_is_kept_nowhere() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    for number in 0..10 {
        put(&storage, &number.to_string(), b"content").await.unwrap();
    }
    drop(storage);
    let asked = |with_identity| format!(r#"{{"rebuild":{{"with_identity":{with_identity},"told":false}}}}"#);
    let storage = place.open("vault-c").await;
    storage.0.catalog.keep_asked("rebuild", Some(asked(false))).await.unwrap();
    drop(storage);
    let storage = place.open("vault-c").await;
    assert!(storage.rebuild_progress().last_error.unwrap().contains("goes on by itself"));
    storage.repair_turn().await.unwrap();
    let done = ended(|| storage.rebuild_progress()).await;
    assert_eq!((done.finished, done.done, done.last_error), (true, 10, None));
    assert_eq!(storage.0.catalog.asked("rebuild").await.unwrap(), None);

    storage.0.catalog.keep_asked("rebuild", Some(asked(true))).await.unwrap();
    drop(storage);
    for _ in 0..2 {
        // The status tells until it is gone on with, the log only once.
        let storage = place.open("vault-c").await;
        storage.repair_turn().await.unwrap();
        let told = storage.status().await.unwrap().rebuild;
        assert!(!told.running && told.last_error.unwrap().contains("--identity FILE goes on where it was"));
        assert!(storage.0.catalog.asked("rebuild").await.unwrap().unwrap().contains(r#""told":true"#));
    }
    let storage = place.open("vault-c").await;
    let done = super::upkeep::rebuilt(&storage, None, true).await;
    assert_eq!((done.finished, done.passed), (true, 10));
    assert_eq!(storage.0.catalog.asked("rebuild").await.unwrap(), None);
}
