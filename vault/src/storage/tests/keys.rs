//! Promises of the keys of a pair: nothing is sealed to a key that one vault has alone, and what the
//! two vaults have differently, or what no key opens, is told for what it is.

use super::upkeep::{rebuilt, rewrapped};
use super::*;

impl Place {
    /// The key file is replaced by one with a new key alone.
    fn lose_key(&self) {
        std::fs::remove_file(self.key_file()).unwrap();
        key::create(&self.key_file(), clock()).unwrap();
    }
}

fn uses(keys: &Keys) -> Vec<(Use, bool, u64)> {
    keys.keys.iter().map(|key| (key.used, key.at_peer, key.records)).collect()
}

async fn recipients(storage: &Storage) -> Vec<String> {
    storage.status().await.unwrap().recipients
}

#[tokio::test]
async fn a_lone_new_key_seals_nothing_and_is_told_until_the_other_vault_has_it_too() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    let both = recipients(&storage).await;
    storage.hear_keys(peer_with(&both)).await.unwrap();
    let id = put(&storage, "before", b"content").await.unwrap().entry.id;
    assert_eq!(storage.key_trouble(), None);

    place.lose_key();
    storage.repair_turn().await.unwrap();
    let lone = recipients(&storage).await;
    assert!(lone.len() == 1 && lone != both);
    for heard in [false, true] {
        if heard {
            storage.hear_keys(peer_with(&both)).await.unwrap();
        }
        put(&storage, &format!("meanwhile {heard}"), b"content").await.unwrap();
        assert_eq!(place.check_replicas(&place.identities()[0]), 0, "one disk alone has it");
        let keys = storage.keys().await.unwrap();
        let expected = [(Use::Next, false, 0), (Use::Active, true, if heard { 6 } else { 4 })];
        assert_eq!(uses(&keys), expected);
        let trouble = keys.trouble.unwrap();
        assert!(trouble.contains(&format!("{} seals on", both[0])), "{trouble}");
        assert!(trouble.contains("storage.key_file differs"), "{trouble}");
        let refused = storage.rewrap(1000).await.unwrap_err().to_string();
        assert!(refused.contains("the newest key is not active yet: vault-b does not have it"), "{refused}");
    }

    drop(storage);
    let storage = place.open("vault-a").await;
    let refused = put(&storage, "after", b"content").await.unwrap_err();
    assert!(matches!(&refused, StorageError::NoKey { .. }), "{refused}");
    assert!(refused.to_string().contains("copy the file of vault-b"), "{refused}");
    let status = storage.status().await.unwrap();
    assert_eq!((status.recipient, status.key_trouble.is_some()), (None, true));
    assert_eq!(read(&storage, &id, None).await.unwrap(), b"content");
    assert!(matches!(storage.rewrap(1000).await, Err(StorageError::NotActive { .. })));

    storage.hear_keys(peer_with(&lone)).await.unwrap();
    put(&storage, "after", b"content").await.unwrap();
    assert_eq!(place.check_replicas(&place.identities()[0]), 4);
    assert_eq!((storage.key_trouble(), rewrapped(&storage).await.done), (None, 6));
}

#[tokio::test]
async fn vaults_that_never_had_a_key_in_common_refuse_uploads_once_they_know() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    put(&storage, "alone", b"content").await.unwrap();
    storage.hear_keys(peer_with(&["age1stranger".to_owned()])).await.unwrap();
    let refused = put(&storage, "known", b"content").await.unwrap_err();
    assert!(matches!(refused, StorageError::NoKey { .. }), "{refused}");
    storage.hear_keys(peer_with(&recipients(&storage).await)).await.unwrap();
    put(&storage, "known", b"content").await.unwrap();
}

#[tokio::test]
async fn another_escrow_on_the_other_vault_is_told() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    let own = storage.status().await.unwrap();
    for (escrow, same) in [(Some(own.escrow_recipient), true), (Some("age1other".to_owned()), false)] {
        storage.hear_keys(PeerKeys { recipients: own.recipients.clone(), escrow }).await.unwrap();
        let keys = storage.keys().await.unwrap();
        assert_eq!(keys.escrow_at_peer, Some(same));
        let told = keys.trouble.is_some_and(|what| what.contains("escrow_recipient differs"));
        assert_eq!((told, storage.status().await.unwrap().key_trouble.is_some()), (!same, !same));
    }
    // An earlier program does not tell.
    storage.hear_keys(peer_with(&own.recipients)).await.unwrap();
    assert_eq!((storage.keys().await.unwrap().escrow_at_peer, storage.key_trouble()), (None, None));
}

#[tokio::test]
async fn rewrapping_right_after_a_rotation_waits_for_the_other_vault_and_not_for_a_turn() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    put(&storage, "k", b"content").await.unwrap();
    let peers = Arc::new(Mutex::new(recipients(&storage).await));
    let answer = Arc::clone(&peers);
    storage.set_peer_keys(Arc::new(move || {
        let told = peer_with(&answer.lock().unwrap());
        Box::pin(std::future::ready(Some(told)))
    }));
    key::rotate(&place.key_file(), clock()).unwrap();
    let refused = storage.rewrap(1000).await.unwrap_err().to_string();
    assert!(refused.contains("vault-b does not have it"), "{refused}");
    *peers.lock().unwrap() =
        place.identities().iter().map(|identity| identity.to_public().to_string()).collect();
    assert_eq!(rewrapped(&storage).await.done, 2);
}

#[tokio::test]
async fn what_one_vault_wrote_or_rewrapped_the_other_need_not_look_at() {
    let place = Place::new();
    let (storage, peer) = (place.open("vault-a").await, place.open("vault-b").await);
    for number in 0..3 {
        put(&storage, &number.to_string(), b"content").await.unwrap();
    }
    let tell = async |from: &Storage, to: &Storage| {
        to.merge(from.changes_since(0, 100).await.unwrap(), None).await.unwrap();
    };
    tell(&storage, &peer).await;
    let keys = peer.keys().await.unwrap();
    assert_eq!((keys.keys[0].records, keys.unseen_records), (6, 0));
    key::rotate(&place.key_file(), clock()).unwrap();
    for vault in [&storage, &peer] {
        vault.repair_turn().await.unwrap();
        vault.hear_keys(peer_with(&recipients(vault).await)).await.unwrap();
    }
    let stale = peer.changes_since(0, 100).await.unwrap();
    assert_eq!(rewrapped(&storage).await.done, 6);
    // What the other vault still believes takes nothing back.
    storage.merge(stale, None).await.unwrap();
    tell(&storage, &peer).await;
    for vault in [&storage, &peer] {
        let keys = vault.keys().await.unwrap();
        assert_eq!(uses(&keys), [(Use::Active, true, 6), (Use::Earlier, true, 0)]);
    }
}

#[tokio::test]
async fn notes_of_another_key_are_no_restored_backup() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    put(&storage, "k", b"content").await.unwrap();
    storage.patrol_turn().await.unwrap();
    place.lose_key();
    storage.repair_turn().await.unwrap();
    for _ in 0..2 {
        storage.patrol_turn().await.unwrap();
        let restored: Vec<_> =
            storage.status().await.unwrap().file_servers.iter().map(|server| server.restored).collect();
        assert_eq!(restored, [0, 0]);
    }
    // Written anew, they tell a backup again.
    put(&storage, "later", b"content").await.unwrap();
    place.back_up("two");
    put(&storage, "last", b"content").await.unwrap();
    storage.patrol_turn().await.unwrap();
    place.restore("two");
    storage.patrol_turn().await.unwrap();
    assert_eq!(storage.status().await.unwrap().file_servers[1].restored, 1);
}

#[tokio::test]
async fn deletions_that_were_written_over_unread_are_told_by_every_rebuilding() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    let id = put(&storage, "k", b"content").await.unwrap().entry.id;
    storage.delete(&id).await.unwrap();
    storage.patrol_turn().await.unwrap();
    drop(storage);
    place.burn().await;
    place.lose_key();
    let storage = place.open("vault-a").await;
    for _ in 0..3 {
        storage.patrol_turn().await.unwrap();
    }
    assert_eq!(storage.status().await.unwrap().unopened, 1);
    use age::secrecy::ExposeSecret;
    let escrow = place.escrow.to_string();
    for merge in [false, true] {
        let told = rebuilt(&storage, Some(escrow.expose_secret()), merge).await;
        assert_eq!((told.deleted, told.failed), (0, 0), "{told:?}");
        assert!(told.warning.unwrap().contains("file servers one, two: what is noted there of deletions"));
    }
}

#[tokio::test]
async fn a_rebuilding_knows_the_keys_of_the_replica_alone_that_it_read() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    put(&storage, "k", b"content").await.unwrap();
    let earlier = std::fs::read(place.replicas("two").remove(0)).unwrap();
    key::rotate(&place.key_file(), clock()).unwrap();
    storage.repair_turn().await.unwrap();
    storage.hear_keys(peer_with(&recipients(&storage).await)).await.unwrap();
    assert_eq!(rewrapped(&storage).await.done, 2);
    // As if it had stopped half-way.
    std::fs::write(place.replicas("two").remove(0), earlier).unwrap();
    let both = recipients(&storage).await;
    drop(storage);
    place.burn().await;
    let storage = place.open("vault-a").await;
    storage.hear_keys(peer_with(&both)).await.unwrap();
    assert_eq!(rebuilt(&storage, None, false).await.done, 1);
    let keys = storage.keys().await.unwrap();
    assert_eq!((uses(&keys)[0].2, keys.unseen_records), (1, 1));
    assert_eq!(rewrapped(&storage).await.done, 1);
}
