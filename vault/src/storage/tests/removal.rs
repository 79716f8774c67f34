//! Promises of a purge: nothing of a purged object stays on a file server, wherever it lay there,
//! and nothing is called gone before it is.

use super::*;

fn of(place: &Place, id: &ObjectId) -> Vec<std::path::PathBuf> {
    let mut left: Vec<_> =
        ["one", "two"].iter().flat_map(|server| files_below(&place.path(server))).collect();
    left.retain(|file| file.file_name().unwrap().to_string_lossy().starts_with(&id.to_string()));
    left
}

/// Spoils the replica on `server` and has it found, set aside and healed.
async fn spoil_and_heal(storage: &Storage, place: &Place, server: &str, id: &ObjectId) {
    let replica = place.replicas(server).into_iter().find(|file| file.ends_with(id.to_string())).unwrap();
    patrol::spoil(&replica, 0);
    storage.verify(&found(storage, id).await).await.unwrap();
    assert_eq!(storage.repair_turn().await.unwrap().copied, 1);
}

#[tokio::test]
async fn what_was_set_aside_of_a_purged_object_goes_too_whoever_set_it_aside() {
    let place = Place::new();
    let (storage, peer) = (place.open("vault-a").await, place.open("vault-b").await);
    let purged = put(&storage, "purged", b"purged").await.unwrap().entry.id;
    let kept = put(&storage, "kept", b"kept").await.unwrap().entry.id;
    patrol::sync_with(&storage, &peer).await;
    spoil_and_heal(&storage, &place, "one", &purged).await;
    spoil_and_heal(&storage, &place, "one", &kept).await;
    spoil_and_heal(&peer, &place, "two", &purged).await;
    assert_eq!(of(&place, &purged).len(), 4);
    erase(&storage, &purged).await;
    assert_eq!(of(&place, &purged), Vec::<std::path::PathBuf>::new());
    assert_eq!(of(&place, &kept).len(), 3, "that of others is the operator's");
    assert_eq!(storage.status().await.unwrap().removals_owed, 0);
    assert_eq!(read(&storage, &kept, None).await.unwrap(), b"kept");
    // A backup brings one back; the next comparison takes it away.
    let back = place.path("one").join(format!("quarantine/{purged}~{}", random_hex()));
    std::fs::write(&back, b"opens with the escrow key").unwrap();
    storage.sync().await.unwrap();
    assert!(!back.exists());
    assert_eq!(of(&place, &kept).len(), 3);
}

#[tokio::test]
async fn what_cannot_be_removed_from_quarantine_is_not_called_gone_and_keeps_no_other_waiting() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    let stuck = put(&storage, "stuck", b"stuck").await.unwrap().entry.id;
    let other = put(&storage, "other", b"other").await.unwrap().entry.id;
    // As a bad sector: nothing of this name can be unlinked.
    let aside = place.path("two").join(format!("quarantine/{stuck}~{}", random_hex()));
    std::fs::create_dir(&aside).unwrap();
    for id in [stuck, other] {
        storage.delete(&id).await.unwrap();
    }
    storage.0.catalog.purge(vec![stuck, other], now()).await.unwrap();
    let turn = storage.repair_turn().await.unwrap();
    assert_eq!((turn.removed, turn.failed), (3, 1));
    let owed = storage.owed(10).await.unwrap();
    assert_eq!((owed.len(), owed[0].id, owed[0].server.as_str(), owed[0].removal), (1, stuck, "two", true));
    assert!(owed[0].why.contains("cannot be removed"), "{}", owed[0].why);
    assert!(storage.status().await.unwrap().file_servers.iter().all(|server| server.up));
    std::fs::remove_dir(&aside).unwrap();
    assert_eq!(storage.repair_turn().await.unwrap().removed, 1);
    assert!(storage.owed(10).await.unwrap().is_empty());
}
