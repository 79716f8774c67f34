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
