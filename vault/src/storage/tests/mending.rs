//! Promises about rot in one of a replica's two records: found by the scrub and by `verify` although
//! the file can be read, written anew in place, and told.

use super::envelope::{BODY, SLOT, parse_slot};
use super::*;

const SLOTS: usize = 2 * SLOT;

/// Rots one slot of a replica.
fn rot(replica: &Path, side: usize) {
    let mut bytes = std::fs::read(replica).unwrap();
    bytes[side * SLOT + 1000] ^= 0x40;
    std::fs::write(replica, bytes).unwrap();
}

fn rotten_slots(replicas: &[std::path::PathBuf]) -> usize {
    let slots = replicas.iter().map(|replica| {
        let bytes = std::fs::read(replica).unwrap();
        assert!(bytes.len() > usize::try_from(BODY).unwrap());
        bytes[..SLOTS].chunks(SLOT).filter(|slot| parse_slot(slot).is_err()).count()
    });
    slots.sum()
}

fn counted(storage: &prometheus::Registry, name: &str) -> f64 {
    let families = storage.gather();
    let family = families.iter().find(|family| family.name() == name);
    family
        .map_or(0.0, |family| family.get_metric().iter().map(|metric| metric.get_counter().get_value()).sum())
}

#[tokio::test]
async fn a_scrub_finds_rot_in_one_of_two_records_and_writes_it_anew_from_the_other() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    for key in ["first", "second", "third"] {
        put(&storage, key, key.as_bytes()).await.unwrap();
    }
    let (one, two) = (place.replicas("one"), place.replicas("two"));
    let as_written: Vec<_> = one.iter().chain(&two).map(|replica| std::fs::read(replica).unwrap()).collect();
    rot(&one[0], 0);
    rot(&one[1], 1);
    rot(&two[1], 0);
    let all = [one, two].concat();
    assert_eq!(rotten_slots(&all), 3);
    storage.scrub().await.unwrap();
    while storage.scrub_turn().await.unwrap() {}
    let status = storage.status().await.unwrap();
    assert_eq!((status.scrub.checked, status.scrub.damaged, status.scrub.mended), (6, 0, 3));
    assert_eq!(status.owed, 0, "no replica is copied for it");
    let now: Vec<_> = all.iter().map(|replica| std::fs::read(replica).unwrap()).collect();
    assert!(now == as_written);
    let metrics = storage.metrics().await.unwrap();
    assert!((counted(&metrics, "vault_storage_records_rotten_total") - 3.0).abs() < 0.1);
    assert!((counted(&metrics, "vault_storage_records_mended_total") - 3.0).abs() < 0.1);
    // The round is kept as it ended.
    drop(storage);
    assert_eq!(place.open("vault-a").await.status().await.unwrap().scrub.mended, 3);
}

#[tokio::test]
async fn what_may_still_be_taken_back_is_scrubbed_and_healed_too() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    let id = put(&storage, "k", b"content").await.unwrap().entry.id;
    storage.delete(&id).await.unwrap();
    rot(&place.replicas("one")[0], 0);
    rot(&place.replicas("one")[0], 1);
    storage.scrub().await.unwrap();
    while storage.scrub_turn().await.unwrap() {}
    assert_eq!(storage.status().await.unwrap().scrub.damaged, 1);
    assert_eq!(storage.repair_turn().await.unwrap().copied, 1);
    std::fs::remove_dir_all(place.path("two")).unwrap();
    storage.undelete(&id).await.unwrap();
    assert_eq!(read(&storage, &id, None).await.unwrap(), b"content");
}

#[tokio::test]
async fn verifying_tells_of_a_rotten_record_and_mends_it() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    let entry = put(&storage, "k", b"content").await.unwrap().entry;
    rot(&place.replicas("two")[0], 0);
    let slots = async || {
        let checked = storage.verify(&entry).await.unwrap();
        assert!(checked.iter().all(|replica| replica.refused.is_none()));
        checked.into_iter().map(|replica| replica.slots).collect::<Vec<_>>()
    };
    assert_eq!(slots().await, [Slots::Whole, Slots::Mended]);
    assert_eq!(slots().await, [Slots::Whole, Slots::Whole]);
    // Both gone is damage of the replica as a whole.
    rot(&place.replicas("two")[0], 0);
    rot(&place.replicas("two")[0], 1);
    let checked = storage.verify(&entry).await.unwrap();
    assert!(matches!(checked[1].refused, Some(FileServerError::Damaged { .. })));
    assert_eq!(storage.repair_turn().await.unwrap().copied, 1);
    assert_eq!(slots().await, [Slots::Whole, Slots::Whole]);
}

/// One replica that cannot be read, on a server that is otherwise sound.
#[tokio::test]
async fn a_replica_that_cannot_be_read_is_owed_and_healed_whoever_finds_it_and_suspends_nobody() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    let id = put(&storage, "k", b"content").await.unwrap().entry.id;
    put(&storage, "beside", b"beside").await.unwrap();
    let replica = place.replicas("one").into_iter().find(|file| file.ends_with(id.to_string())).unwrap();
    for finder in ["reader", "verify", "scrub"] {
        file_server::contract::block(&replica);
        match finder {
            "reader" => {
                // The faster one is read first, and the other only where that fails.
                let entry = found(&storage, &id).await;
                let mut at_one = entry.clone();
                at_one.replicas.retain(|(server, _)| server == "one");
                let (_, plaintext) = storage.read(&at_one, None).await.unwrap();
                let read: Vec<_> = plaintext.try_collect().await.unwrap();
                assert_eq!(read.concat(), b"content");
            }
            "verify" => {
                let checked = storage.verify(&found(&storage, &id).await).await.unwrap();
                assert!(matches!(checked[0].refused, Some(FileServerError::Unreadable { .. })));
            }
            _ => {
                storage.scrub().await.unwrap();
                while storage.scrub_turn().await.unwrap() {}
                let round = storage.status().await.unwrap().scrub;
                assert_eq!((round.checked, round.damaged), (4, 1), "the rest of the server is read too");
            }
        }
        let status = storage.status().await.unwrap();
        assert_eq!((status.owed, status.file_servers[0].up), (1, true), "{finder}");
        assert!(replica.is_dir(), "nothing is moved before there is a copy to put in its place");
        let turn = storage.repair_turn().await.unwrap();
        assert_eq!((turn.copied, turn.failed), (1, 0), "{finder}");
        assert!(replica.is_file());
        assert_eq!(found(&storage, &id).await.stored_on(), ["one", "two"]);
    }
    // Neither replica: nothing is taken out of reach, and it is found again when it can be read.
    let other = place.path("two").join(replica.strip_prefix(place.path("one")).unwrap());
    let bytes = std::fs::read(&other).unwrap();
    for file in [&replica, &other] {
        file_server::contract::block(file);
    }
    assert!(matches!(read(&storage, &id, None).await, Err(StorageError::Unreadable { .. })));
    assert_eq!(storage.repair_turn().await.unwrap().copied, 0);
    assert!(replica.is_dir() && other.is_dir());
    std::fs::remove_dir(&other).unwrap();
    std::fs::write(&other, bytes).unwrap();
    for _ in 0..10 {
        storage.repair_turn().await.unwrap();
    }
    assert_eq!(found(&storage, &id).await.stored_on(), ["one", "two"]);
    assert_eq!(read(&storage, &id, None).await.unwrap(), b"content");
}

#[tokio::test]
async fn a_file_whose_replicas_are_both_damaged_is_told_as_lost_until_one_is_put_back() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    let id = put(&storage, "k", b"content").await.unwrap().entry.id;
    put(&storage, "other", b"other").await.unwrap();
    let kept = std::fs::read(place.replica("one", &id)).unwrap();
    for server in ["one", "two"] {
        let mut bytes = kept.clone();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(place.replica(server, &id), bytes).unwrap();
    }
    let entry = found(&storage, &id).await;
    let checked = storage.verify(&entry).await.unwrap();
    assert!(checked.iter().all(|replica| replica.refused.as_ref().unwrap().shows().is_some()));
    for _ in 0..2 {
        let status = storage.status().await.unwrap();
        assert_eq!((status.without_replica, status.owed), (1, 2));
        let owed = storage.owed(10).await.unwrap();
        assert!(owed.iter().all(|debt| debt.is_lost() && debt.why.contains("quarantine/")), "{owed:?}");
        storage.repair_turn().await.unwrap();
    }
    let gauges = storage.metrics().await.unwrap().gather();
    let lost = gauges.iter().find(|gauge| gauge.name() == "vault_storage_files_without_replica").unwrap();
    assert!((lost.get_metric()[0].get_gauge().get_value() - 1.0).abs() < f64::EPSILON);
    std::fs::write(place.replica("one", &id), &kept).unwrap();
    storage.verify(&found(&storage, &id).await).await.unwrap();
    let status = storage.status().await.unwrap();
    assert_eq!((status.without_replica, status.owed), (0, 1));
    storage.repair_turn().await.unwrap();
    assert_eq!(std::fs::read(place.replica("two", &id)).unwrap(), kept);
}
