//! Promises of what operators do: a deletion can be taken back until it is purged, records follow
//! the keys through crashes and beside another vault, and a lost catalog comes back.

use super::super::witness::Witness;
use super::crash::dying_at;
use super::envelope::{BODY, read_slots, verify};
use super::tombstones::put_all;
use super::*;

/// Waits for the end of a walk.
pub(super) async fn ended(progress: impl Fn() -> Progress) -> Progress {
    loop {
        let now = progress();
        if !now.running {
            return now;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(super) async fn rewrapped(storage: &Storage) -> Progress {
    storage.rewrap(100_000).await.unwrap();
    ended(|| storage.rewrap_progress()).await
}

pub(super) async fn rebuilt(storage: &Storage, identity: Option<&str>, merge: bool) -> Progress {
    storage.rebuild(identity, merge).await.unwrap();
    ended(|| storage.rebuild_progress()).await
}

fn secret(identity: &age::x25519::Identity) -> String {
    use age::secrecy::ExposeSecret;
    identity.to_string().expose_secret().to_owned()
}

impl Place {
    pub(super) fn key_file(&self) -> std::path::PathBuf {
        self.path("active.key")
    }

    pub(super) fn identities(&self) -> Vec<age::x25519::Identity> {
        key::load(&self.key_file()).unwrap().into_iter().map(|key| key.identity).collect()
    }

    /// Every replica is whole and its record opens with the escrow key; returns in how many
    /// slots it opens with `identity`.
    pub(super) fn check_replicas(&self, identity: &age::x25519::Identity) -> usize {
        let mut opens = 0;
        for file in [self.replicas("one"), self.replicas("two")].concat() {
            let id: ObjectId = file.file_name().unwrap().to_str().unwrap().parse().unwrap();
            let bytes = std::fs::read(&file).unwrap();
            verify(&bytes[..], &id).unwrap();
            let slots = &bytes[..usize::try_from(BODY).unwrap()];
            read_slots(slots, std::slice::from_ref(&self.escrow)).unwrap();
            opens += slots
                .chunks(envelope::SLOT)
                .filter(|slot| read_slots(slot, std::slice::from_ref(identity)).is_ok())
                .count();
        }
        opens
    }
}

#[tokio::test]
async fn time_in_which_the_vault_did_not_run_takes_no_undeletion_away_and_a_deleted_file_can_be_found() {
    const DAY: i64 = 86_400;
    let place = Place::new();
    let storage = place.open("vault-a").await;
    let [lost, over, kept] = put_all(&storage, ["lost", "over", "kept"]).await;
    // Both eight days ago, of which the vault saw ten minutes of the one and all of the other.
    let began = now() - 8 * DAY;
    storage.0.catalog.delete(lost, began).await.unwrap();
    storage.0.catalog.delete(over, began - 8 * DAY).await.unwrap();
    let witness = Witness { watched: Some(began + 600), ..Witness::default() };
    storage.0.catalog.keep_witness(witness).await.unwrap();
    drop(storage);
    let storage = place.open("vault-a").await;
    let wanted = |label: Option<&str>| Wanted { deleted: true, label: label.map(str::to_owned), owner: None };
    let mut listed = storage.list(wanted(None), None, 10).await.unwrap();
    listed.sort_by_key(|listed| listed.deletion.unwrap().since);
    assert_eq!(listed.iter().map(|listed| listed.entry.id).collect::<Vec<_>>(), [over, lost]);
    let purges = listed[1].deletion.unwrap().purged_after - now();
    assert!((7 * DAY - 700..7 * DAY + 3600).contains(&purges), "{purges}");
    assert_eq!(storage.list(wanted(Some("no such label")), None, 10).await.unwrap(), []);
    let named = storage.list(Wanted::default(), None, 10).await.unwrap();
    assert_eq!(
        named.iter().map(|listed| (listed.entry.id, listed.deletion)).collect::<Vec<_>>(),
        [(kept, None)]
    );
    storage.undelete(&lost).await.unwrap();
    assert_eq!(read(&storage, &lost, None).await.unwrap(), b"lost");
    let late = storage.undelete(&over).await.unwrap_err();
    assert!(late.to_string().contains("about to be purged"), "{late}");
}

#[tokio::test]
async fn a_deleted_file_comes_back_until_it_is_purged_from_both_file_servers_for_ever() {
    let place = Place::new();
    let mut settings = place.settings("vault-a");
    settings.undelete_within = Duration::from_secs(3);
    let storage = Storage::open(settings, "vault-a").await.unwrap();
    let peer = place.open("vault-b").await;
    let tell = || async { peer.merge(storage.changes_since(0, 100).await.unwrap(), None).await.unwrap() };
    let id = put(&storage, "k", b"content").await.unwrap().entry.id;
    tell().await;
    storage.delete(&id).await.unwrap();
    storage.delete(&id).await.unwrap();
    tell().await;
    for vault in [&storage, &peer] {
        assert!(matches!(vault.find(&id).await.unwrap(), Found::Deleted(_)));
        assert!(vault.list(Wanted::default(), None, 10).await.unwrap().is_empty());
    }
    // Taken back at the other vault, which has to tell: nobody else can know.
    assert_eq!(peer.undelete(&id).await.unwrap(), Undeleted { peer_knows: false });
    storage.merge(peer.changes_since(0, 100).await.unwrap(), None).await.unwrap();
    assert_eq!(read(&storage, &id, None).await.unwrap(), b"content");

    storage.delete(&id).await.unwrap();
    tell().await;
    assert_eq!(storage.status().await.unwrap().deleted, 1);
    storage.set_peer_knowledge(Arc::new(|| Some(u64::MAX)));
    assert_eq!(storage.repair_turn().await.unwrap(), Turn::default(), "not yet");
    tokio::time::sleep(Duration::from_millis(4100)).await;
    assert!(matches!(storage.undelete(&id).await, Err(StorageError::TooLate { .. })));
    assert_eq!(storage.repair_turn().await.unwrap(), Turn::default(), "news may be under way");
    assert_eq!((place.replicas("one").len(), place.replicas("two").len()), (1, 1));
    std::fs::rename(place.path("two"), place.path("away")).unwrap();
    let turn = storage.repair_turn().await.unwrap();
    assert_eq!((turn.purged, place.replicas("one").len()), (1, 0));
    std::fs::rename(place.path("away"), place.path("two")).unwrap();
    storage.repair_turn().await.unwrap();
    storage.repair_turn().await.unwrap();
    assert!(place.replicas("two").is_empty());
    let status = storage.status().await.unwrap();
    assert_eq!((status.deleted, status.removals_owed), (0, 0));
    tell().await;
    for vault in [&storage, &peer] {
        assert!(matches!(vault.find(&id).await.unwrap(), Found::Deleted(_)));
        assert!(matches!(vault.undelete(&id).await, Err(StorageError::Purged { .. })));
        assert!(vault.0.catalog.entry(id).await.unwrap().unwrap().identity.is_none());
    }
    let unknown = ObjectId::new([9; 32]);
    assert!(matches!(storage.undelete(&unknown).await, Err(StorageError::Unknown { .. })));
}

#[tokio::test]
async fn a_new_key_waits_for_the_other_vault_and_then_every_record_follows_it() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    let earlier = place.identities().remove(0);
    for number in 0..5 {
        put(&storage, &number.to_string(), &text(1000)).await.unwrap();
    }
    key::rotate(&place.key_file(), clock()).unwrap();
    storage.repair_turn().await.unwrap();
    let newer = place.identities().remove(0);
    let uses = |keys: &Keys| keys.keys.iter().map(|key| (key.used, key.records)).collect::<Vec<_>>();
    assert_eq!(uses(&storage.keys().await.unwrap()), [(Use::Next, 0), (Use::Active, 10)]);
    put(&storage, "waits", b"x").await.unwrap();
    assert_eq!(place.check_replicas(&newer), 0, "nothing is sealed to a key that one vault has");

    let both = storage.status().await.unwrap().recipients;
    storage.hear_keys(peer_with(&both)).await.unwrap();
    put(&storage, "follows", b"x").await.unwrap();
    assert_eq!(uses(&storage.keys().await.unwrap()), [(Use::Active, 2), (Use::Earlier, 12)]);
    assert_eq!(place.check_replicas(&newer), 4);
    let bodies = || -> Vec<_> {
        let files = [place.replicas("one"), place.replicas("two")].concat();
        files
            .iter()
            .map(|file| std::fs::read(file).unwrap().split_off(usize::try_from(BODY).unwrap()))
            .collect()
    };
    let before = bodies();
    let told = rewrapped(&storage).await;
    assert_eq!((told.finished, told.done, told.failed, told.percent), (true, 12, 0, 100));
    assert_eq!((place.check_replicas(&newer), place.check_replicas(&earlier)), (28, 0));
    assert!(bodies() == before, "records only");
    assert_eq!(uses(&storage.keys().await.unwrap()), [(Use::Active, 14), (Use::Earlier, 0)]);
    assert_eq!(rewrapped(&storage).await.done, 0);

    // The choice outlives a restart; a vault that has not looked yet looks, and writes nothing.
    drop(storage);
    let (storage, peer) = (place.open("vault-a").await, place.open("vault-b").await);
    assert_eq!(storage.keys().await.unwrap().keys[0].used, Use::Active);
    peer.merge(storage.changes_since(0, 100).await.unwrap(), None).await.unwrap();
    peer.hear_keys(peer_with(&both)).await.unwrap();
    assert_eq!(uses(&peer.keys().await.unwrap()), [(Use::Active, 14), (Use::Earlier, 0)], "as it was told");
    for server in ["one", "two"] {
        peer.0.catalog.forget_seals(server.to_owned()).await.unwrap();
    }
    assert_eq!(peer.keys().await.unwrap().unseen_records, 14);
    let told = rewrapped(&peer).await;
    assert_eq!((told.done, told.passed, told.failed), (0, 14, 0));

    // Another escrow: its configuration is all that changes.
    drop((storage, peer));
    let mut place = place;
    let former = std::mem::replace(&mut place.escrow, age::x25519::Identity::generate());
    let storage = place.open("vault-a").await;
    assert_eq!(storage.keys().await.unwrap().other_records, 14);
    assert_eq!(rewrapped(&storage).await.done, 14);
    assert_eq!((place.check_replicas(&newer), place.check_replicas(&former)), (28, 0));
    let bad = std::fs::write(place.key_file(), "no key");
    bad.unwrap();
    storage.repair_turn().await.unwrap();
    assert_eq!(storage.status().await.unwrap().recipients, both, "a bad key file changes nothing");
}

#[tokio::test]
async fn a_record_that_no_key_opens_is_sealed_anew_from_the_catalog_and_a_strange_one_is_left() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    let [left, right] = ["left", "right"];
    for key in [left, right] {
        put(&storage, key, key.as_bytes()).await.unwrap();
    }
    let files = place.replicas("one");
    let bytes: Vec<_> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
    let body = usize::try_from(BODY).unwrap();
    // One lost both slots, the other has those of another object.
    std::fs::write(&files[0], [&vec![0; body], &bytes[0][body..]].concat()).unwrap();
    std::fs::write(&files[1], [&bytes[0][..body], &bytes[1][body..]].concat()).unwrap();
    key::rotate(&place.key_file(), clock()).unwrap();
    storage.repair_turn().await.unwrap();
    storage.hear_keys(peer_with(&storage.status().await.unwrap().recipients)).await.unwrap();
    let told = rewrapped(&storage).await;
    assert_eq!((told.done, told.failed), (3, 1));
    assert!(told.last_error.unwrap().contains("its record is another than the catalog's"));
    assert_eq!(place.check_replicas(&place.identities()[0]), 6);
    assert_eq!(std::fs::read(&files[1]).unwrap()[..body], bytes[0][..body], "left as it is");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_between_any_two_steps_of_rewrapping_loses_no_record_and_is_gone_on_with() {
    let mut fatal = 0;
    loop {
        let place = Place::new();
        let storage = place.open("vault-a").await;
        for key in ["first", "second"] {
            put(&storage, key, key.as_bytes()).await.unwrap();
        }
        key::rotate(&place.key_file(), clock()).unwrap();
        storage.repair_turn().await.unwrap();
        storage.hear_keys(peer_with(&storage.status().await.unwrap().recipients)).await.unwrap();
        drop(storage);

        let (steps, _, dead) = dying_at(fatal);
        let storage = Storage::open_watched(place.settings("vault-a"), "vault-a", steps).await.unwrap();
        // It may die before it has begun.
        let _ = storage.rewrap(100_000).await;
        ended(|| storage.rewrap_progress()).await;
        drop(storage);
        let newer = place.identities().remove(0);
        place.check_replicas(&newer);
        let storage = place.open("vault-a").await;
        let told = rewrapped(&storage).await;
        assert_eq!((told.finished, told.failed), (true, 0), "step {fatal}");
        assert_eq!(place.check_replicas(&newer), 8, "step {fatal}");
        if !dead.load(Ordering::SeqCst) {
            assert_eq!((told.done, told.passed), (0, 0));
            break;
        }
        fatal += 1;
    }
    assert!(fatal >= 17, "{fatal} steps are too few to be all of them");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_vaults_rewrap_at_once_and_no_record_is_lost() {
    let place = Place::new();
    let (storage, peer) = (place.open("vault-a").await, place.open("vault-b").await);
    for number in 0..20 {
        put(&storage, &number.to_string(), b"content").await.unwrap();
    }
    peer.merge(storage.changes_since(0, 100).await.unwrap(), None).await.unwrap();
    key::rotate(&place.key_file(), clock()).unwrap();
    for vault in [&storage, &peer] {
        vault.repair_turn().await.unwrap();
        vault.hear_keys(peer_with(&vault.status().await.unwrap().recipients)).await.unwrap();
    }
    let (left, right) = tokio::join!(rewrapped(&storage), rewrapped(&peer));
    assert!(left.finished && right.finished, "{left:?} {right:?}");
    place.check_replicas(&place.identities()[0]);
    rewrapped(&storage).await;
    assert_eq!(place.check_replicas(&place.identities()[0]), 80);
}

#[tokio::test]
async fn a_catalog_comes_back_from_the_file_servers_alone() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    let mut expected = Vec::new();
    for number in 0..30 {
        let stored = put(&storage, &number.to_string(), number.to_string().as_bytes()).await.unwrap();
        expected.push(stored.entry);
    }
    expected.sort_by_key(|entry| entry.id);
    assert!(matches!(storage.rebuild(None, false).await, Err(StorageError::NotEmpty)));
    drop(storage);
    // One replica was lost with the vaults.
    std::fs::remove_file(&place.replicas("two")[0]).unwrap();

    let storage = place.open("vault-c").await;
    expected.iter_mut().for_each(|entry| entry.origin = "vault-c".to_owned());
    std::fs::rename(place.path("two"), place.path("away")).unwrap();
    let told = rebuilt(&storage, None, false).await;
    assert!(!told.finished && told.last_error.unwrap().contains("both file servers must be listed"));
    std::fs::rename(place.path("away"), place.path("two")).unwrap();
    storage.repair_turn().await.unwrap();
    let told = rebuilt(&storage, None, false).await;
    assert_eq!((told.finished, told.done, told.passed, told.failed), (true, 30, 0, 0), "{told:?}");
    assert_eq!(storage.status().await.unwrap().owed, 1);
    assert_eq!(storage.repair_turn().await.unwrap().copied, 1);
    let listed = storage.list(Wanted::default(), None, 100).await.unwrap();
    assert_eq!(listed.into_iter().map(|listed| listed.entry).collect::<Vec<_>>(), expected);
    assert_eq!(read(&storage, &expected[7].id, None).await.unwrap(), expected[7].metadata.key.as_bytes());
    assert_eq!(storage.keys().await.unwrap().unseen_records, 30, "one replica of each was looked at");
    assert!(matches!(storage.rebuild(None, false).await, Err(StorageError::NotEmpty)));
    let told = rebuilt(&storage, None, true).await;
    assert_eq!((told.done, told.passed), (0, 30));
}

#[tokio::test]
async fn with_the_storage_key_lost_too_the_escrow_key_brings_the_catalog_back() {
    let place = Place::new();
    let id = put(&place.open("vault-a").await, "k", b"content").await.unwrap().entry.id;
    std::fs::remove_file(place.key_file()).unwrap();
    key::create(&place.key_file(), clock()).unwrap();
    let storage = place.open("vault-c").await;
    let told = rebuilt(&storage, None, false).await;
    assert_eq!((told.finished, told.done, told.failed), (true, 0, 1));
    let why = "none of these keys opens 1 files: name the right one with --identity";
    assert_eq!((told.unopened, told.last_error.as_deref()), (1, Some(why)));
    assert_eq!(storage.status().await.unwrap().unopened, 1);
    assert!(matches!(storage.rebuild(Some("no key"), false).await, Err(StorageError::Key(_))));
    let escrow = format!("# public key: somebody's\n{}\n", secret(&place.escrow));
    assert_eq!(rebuilt(&storage, Some(&escrow), false).await.done, 1);
    assert_eq!(storage.status().await.unwrap().unopened, 0);
    assert_eq!(read(&storage, &id, None).await.unwrap(), b"content");
    // And its record is brought to the new key.
    assert_eq!(rewrapped(&storage).await.done, 2);
    assert_eq!(place.check_replicas(&place.identities()[0]), 4);
}

#[tokio::test]
async fn rebuilding_resurrects_nothing_that_the_catalog_knows_to_be_gone() {
    let place = Place::new();
    let mut settings = place.settings("vault-a");
    settings.undelete_within = Duration::ZERO;
    let storage = Storage::open(settings, "vault-a").await.unwrap();
    let [gone, deleted] = ["gone", "deleted"];
    let gone = put(&storage, gone, b"gone").await.unwrap().entry.id;
    let file = place.replicas("one").remove(0);
    let kept = std::fs::read(&file).unwrap();
    storage.delete(&gone).await.unwrap();
    tokio::time::sleep(Duration::from_millis(2100)).await;
    assert_eq!(storage.repair_turn().await.unwrap().purged, 1);
    let deleted = put(&storage, deleted, b"deleted").await.unwrap().entry.id;
    storage.delete(&deleted).await.unwrap();
    // A backup of the file server brings the purged one back.
    std::fs::write(&file, kept).unwrap();
    let told = rebuilt(&storage, None, true).await;
    assert_eq!((told.done, told.passed), (1, 1));
    for id in [gone, deleted] {
        assert!(matches!(storage.find(&id).await.unwrap(), Found::Deleted(_)));
    }
    storage.repair_turn().await.unwrap();
    assert!(!file.exists(), "its removal was owed again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuilding_that_is_broken_off_anywhere_goes_on_where_it_was() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    for number in 0..20 {
        put(&storage, &number.to_string(), b"content").await.unwrap();
    }
    drop(storage);
    let mut fatal = 0;
    loop {
        let (steps, _, dead) = dying_at(fatal);
        // A state folder of its own, empty as after the fire.
        let vault = format!("life-{fatal}");
        let storage = Storage::open_watched(place.settings(&vault), &vault, steps).await.unwrap();
        let _ = storage.rebuild(None, false).await;
        ended(|| storage.rebuild_progress()).await;
        drop(storage);
        let storage = place.open(&vault).await;
        if !dead.load(Ordering::SeqCst) {
            break;
        }
        let known = storage.status().await.unwrap().objects;
        let told = rebuilt(&storage, None, false).await;
        assert_eq!((told.finished, known + told.done), (true, 20), "step {fatal}: {told:?}");
        assert_eq!(storage.status().await.unwrap().owed, 0);
        fatal += 1;
    }
    assert!(fatal >= 3, "{fatal} steps are too few to be all of them");
}

#[tokio::test]
async fn records_on_a_server_that_comes_back_from_a_backup_are_looked_at_and_rewrapped_again() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    for number in 0..3 {
        put(&storage, &number.to_string(), b"content").await.unwrap();
    }
    storage.patrol_turn().await.unwrap();
    place.back_up("two");
    key::rotate(&place.key_file(), clock()).unwrap();
    storage.repair_turn().await.unwrap();
    let both = storage.status().await.unwrap().recipients;
    storage.hear_keys(peer_with(&both)).await.unwrap();
    assert_eq!(rewrapped(&storage).await.done, 6);
    put(&storage, "later", b"content").await.unwrap();
    storage.patrol_turn().await.unwrap();
    let newer = place.identities().remove(0);
    assert_eq!(place.check_replicas(&newer), 16);

    place.restore("two");
    storage.patrol_turn().await.unwrap();
    storage.repair_turn().await.unwrap();
    assert_eq!(place.check_replicas(&newer), 10, "three records are of the earlier key again");
    let told = rewrapped(&storage).await;
    assert_eq!((told.done, told.failed), (3, 0), "{told:?}");
    assert_eq!(place.check_replicas(&newer), 16);
}

#[tokio::test]
async fn what_a_dead_peer_left_half_written_goes_by_age_without_a_restart() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    storage.tend_turn().await.unwrap();
    collected(&storage).await;
    let torn =
        ["one/tmp/vault-b~old", "two/tmp/vault-b~old", "one/tmp/vault-b~new"].map(|name| place.path(name));
    let two_days_ago = clock() - Duration::from_secs(2 * 86_400);
    for file in &torn {
        std::fs::write(file, "torn").unwrap();
    }
    for file in &torn[..2] {
        std::fs::File::options().write(true).open(file).unwrap().set_modified(two_days_ago).unwrap();
    }
    storage.tend_turn().await.unwrap();
    collected(&storage).await;
    assert_eq!(torn.map(|file| file.exists()), [false, false, true]);
}
