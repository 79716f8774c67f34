//! Promises of deletions that outlive both catalogs: what the file servers note of them decides
//! when a catalog comes back from the file servers alone.

use super::super::witness::Witness;
use super::upkeep::{ended, rebuilt};
use super::*;

pub(super) async fn put_all<const N: usize>(storage: &Storage, keys: [&str; N]) -> [ObjectId; N] {
    let mut ids = [ObjectId::new([0; 32]); N];
    for (id, key) in ids.iter_mut().zip(keys) {
        *id = put(storage, key, key.as_bytes()).await.unwrap().entry.id;
    }
    ids
}

async fn told(teller: &Storage, listener: &Storage) {
    listener.merge(teller.changes_since(0, 100).await.unwrap(), None).await.unwrap();
}

#[tokio::test]
async fn with_both_catalogs_lost_what_was_deleted_stays_deleted_and_can_still_be_taken_back() {
    // Everything is there; one file server's notes are lost; the vault compares before the operator
    // rebuilds.
    for (lost, patrol_first) in [(None, false), (Some("one"), false), (Some("two"), true), (None, true)] {
        let place = Place::new();
        let (storage, peer) = (place.open("vault-a").await, place.open("vault-b").await);
        let [kept, deleted, twice, back, gone] =
            put_all(&storage, ["kept", "deleted", "twice", "back", "gone"]).await;
        for id in [deleted, twice, back] {
            storage.delete(&id).await.unwrap();
        }
        for id in [twice, back] {
            storage.undelete(&id).await.unwrap();
        }
        storage.delete(&twice).await.unwrap();
        erase(&storage, &gone).await;
        storage.patrol_turn().await.unwrap();
        // The other vault's notes are of before: the larger count wins.
        told(&storage, &peer).await;
        peer.delete(&back).await.unwrap();
        peer.patrol_turn().await.unwrap();
        told(&peer, &storage).await;
        storage.undelete(&back).await.unwrap();
        storage.patrol_turn().await.unwrap();
        drop((storage, peer));
        place.burn().await;
        if let Some(server) = lost {
            std::fs::remove_dir_all(place.path(server).join("notes")).unwrap();
        }

        let storage = place.open("vault-b").await;
        if patrol_first {
            storage.patrol_turn().await.unwrap();
        }
        // What the patrol found and took in is no use of the catalog.
        let progress = rebuilt(&storage, None, false).await;
        let found = if patrol_first { (0, 4) } else { (4, 0) };
        assert_eq!((progress.done, progress.passed), found, "{progress:?}");
        assert_eq!((progress.deleted, progress.failed, &progress.warning), (2, 0, &None), "{progress:?}");
        for id in [deleted, twice, gone] {
            assert!(matches!(storage.find(&id).await.unwrap(), Found::Deleted(_)), "{lost:?} {patrol_first}");
        }
        let mut listed: Vec<_> = storage.list(Wanted::default(), None, 10).await.unwrap();
        listed.sort_by_key(|listed| listed.entry.metadata.key.clone());
        assert_eq!(listed.iter().map(|listed| listed.entry.id).collect::<Vec<_>>(), [back, kept]);
        // With its whole grace, and only once.
        assert!(storage.status().await.unwrap().deleted_oldest_seconds.unwrap() < 60);
        assert!(matches!(put(&storage, "deleted", b"x").await, Err(StorageError::KeyDeleted { .. })));
        assert!(matches!(storage.undelete(&gone).await, Err(StorageError::Purged { .. })));
        storage.undelete(&twice).await.unwrap();
        assert_eq!(read(&storage, &twice, None).await.unwrap(), b"twice");
        // The next fire, and the other vault's older notes with it.
        storage.patrol_turn().await.unwrap();
        drop(storage);
        place.burn().await;
        let storage = place.open("vault-a").await;
        assert_eq!(rebuilt(&storage, None, false).await.deleted, 1);
        assert!(matches!(storage.find(&deleted).await.unwrap(), Found::Deleted(_)));
        assert_eq!(read(&storage, &twice, None).await.unwrap(), b"twice");
        assert_eq!(read(&storage, &back, None).await.unwrap(), b"back");
    }
}

#[tokio::test]
async fn notes_of_deletions_that_no_key_opens_are_told_and_stop_nothing() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    let [deleted] = put_all(&storage, ["deleted"]).await;
    storage.delete(&deleted).await.unwrap();
    storage.patrol_turn().await.unwrap();
    drop(storage);
    place.burn().await;
    let former = std::fs::read_to_string(place.key_file()).unwrap();
    std::fs::remove_file(place.key_file()).unwrap();
    key::create(&place.key_file(), clock()).unwrap();
    let storage = place.open("vault-a").await;
    let escrow = {
        use age::secrecy::ExposeSecret;
        place.escrow.to_string().expose_secret().to_owned()
    };
    let progress = rebuilt(&storage, Some(&escrow), false).await;
    assert_eq!((progress.done, progress.failed, progress.deleted), (1, 0, 0), "{progress:?}");
    assert!(progress.warning.unwrap().contains("opens with none of these keys"));
    // The former key turns up: what it opens counts, also for a catalog that is not empty.
    let progress = rebuilt(&storage, Some(&former), true).await;
    assert_eq!((progress.passed, progress.deleted, progress.warning), (1, 1, None));
    assert!(matches!(storage.find(&deleted).await.unwrap(), Found::Deleted(_)));
}

#[tokio::test]
async fn after_a_rotation_the_new_key_alone_opens_what_is_noted_of_deletions() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    let [deleted, gone] = put_all(&storage, ["deleted", "gone"]).await;
    storage.delete(&deleted).await.unwrap();
    erase(&storage, &gone).await;
    storage.patrol_turn().await.unwrap();
    key::rotate(&place.key_file(), clock()).unwrap();
    storage.repair_turn().await.unwrap();
    storage.hear_keys(peer_with(&storage.status().await.unwrap().recipients)).await.unwrap();
    assert!(storage.rewrap(1000).await.unwrap().running);
    ended(|| storage.rewrap_progress()).await;
    storage.patrol_turn().await.unwrap();
    drop(storage);
    place.burn().await;
    // The earlier key is taken out of the file.
    let keys = std::fs::read_to_string(place.key_file()).unwrap();
    let newest = keys.lines().take(3).collect::<Vec<_>>().join("\n");
    std::fs::write(place.key_file(), newest).unwrap();
    let storage = place.open("vault-a").await;
    assert_eq!(storage.status().await.unwrap().recipients.len(), 1);
    let progress = rebuilt(&storage, None, false).await;
    assert_eq!((progress.deleted, progress.warning), (1, None));
    for id in [deleted, gone] {
        assert!(matches!(storage.find(&id).await.unwrap(), Found::Deleted(_)));
    }
}

#[tokio::test]
async fn what_is_told_of_an_object_counts_when_it_is_found_in_any_order_and_a_purge_wins() {
    let place = Place::new();
    let names = ["one".to_owned(), "two".to_owned()];
    let entry = {
        let storage = place.open("vault-a").await;
        put(&storage, "k", b"content").await.unwrap().entry
    };
    let entry = Entry { state: State::Pending, replicas: Vec::new(), ..entry };
    for (number, (told, expected)) in [
        (vec![1], State::Deleted),
        (vec![1, 2], State::Stored),
        (vec![2, 1], State::Stored),
        (vec![2, 3, 1], State::Deleted),
    ]
    .into_iter()
    .enumerate()
    {
        for before in 0..=told.len() {
            let file = place.path(&format!("catalog-{number}-{before}.db"));
            let catalog = Catalog::open(&file, &names, Steps::default()).unwrap();
            let tell = async |told: &[u32]| {
                for revision in told {
                    catalog.take_over_revisions(vec![(entry.id, *revision)], now()).await.unwrap();
                }
            };
            let (first, second) = told.split_at(before);
            tell(first).await;
            let largest = first.iter().max().map(|revision| (entry.id, *revision));
            assert_eq!(
                catalog.revised_under(String::new()).await.unwrap(),
                largest.into_iter().collect::<Vec<_>>()
            );
            catalog.stored(entry.clone(), names.to_vec(), now()).await.unwrap();
            tell(second).await;
            let found = catalog.entry(entry.id).await.unwrap().unwrap();
            assert_eq!(found.state, expected, "{told:?} {before}");
            let kept = catalog.revised_under(entry.id.to_string()[..2].to_owned()).await.unwrap();
            assert_eq!(kept, [(entry.id, *told.iter().max().unwrap())], "noted again, once");
            catalog.bury(vec![entry.id], now()).await.unwrap();
            tell(&told).await;
            assert_eq!(catalog.entry(entry.id).await.unwrap().unwrap().state, State::Purged);
            assert_eq!(catalog.revised_under(String::new()).await.unwrap(), []);
        }
    }
}

#[tokio::test]
async fn the_peer_hears_of_a_deletion_before_it_is_acknowledged() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    let [id] = put_all(&storage, ["k"]).await;
    let heard = Arc::new(Mutex::new(Vec::new()));
    let listener = Arc::clone(&heard);
    storage.set_peer(Arc::new(move |change| {
        listener.lock().unwrap().push(change);
        Box::pin(std::future::ready(()))
    }));
    storage.delete(&id).await.unwrap();
    assert_eq!(*heard.lock().unwrap(), [storage.last_change()]);
    storage.delete(&id).await.unwrap();
    assert_eq!(heard.lock().unwrap().len(), 1, "nothing new");
}

#[tokio::test]
async fn a_clock_far_ahead_at_start_purges_nothing() {
    let place = Place::new();
    let (id, month) = {
        let storage = place.open("vault-a").await;
        let [id] = put_all(&storage, ["k"]).await;
        storage.delete(&id).await.unwrap();
        assert_eq!(storage.repair_turn().await.unwrap().purged, 0);
        // The clock of this life was a month behind that of the next.
        let month = 30 * 86_400;
        storage.0.catalog.keep_witness(Witness { watched: Some(now() - month), gaps: vec![] }).await.unwrap();
        (id, month)
    };
    let file = place.path("vault-a").join("catalog.db");
    let db = rusqlite::Connection::open(file).unwrap();
    db.execute("UPDATE objects SET deleted = deleted - ?1", [month]).unwrap();
    drop(db);
    let storage = place.open("vault-a").await;
    storage.set_peer_knowledge(Arc::new(|| Some(u64::MAX)));
    for _ in 0..4 {
        assert_eq!(storage.repair_turn().await.unwrap().purged, 0);
    }
    assert!(storage.0.catalog.entry(id).await.unwrap().unwrap().identity.is_some());
    assert_eq!(storage.0.catalog.witness().await.unwrap().gaps.len(), 1, "lasting");
}
