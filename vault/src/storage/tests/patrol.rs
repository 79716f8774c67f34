//! File servers that are not as they were left: restored from a backup, wiped, rotten. On real
//! directories, copied and spoiled behind the vaults' back.

use super::*;
use crate::storage::inventory::Verdict;

impl Place {
    /// Keeps a copy of a file server as it is now.
    pub(super) fn back_up(&self, server: &str) {
        let copy = self.path(&format!("backup-{server}"));
        let _ = std::fs::remove_dir_all(&copy);
        copy_folder(&self.path(server), &copy);
    }

    /// Puts the copy in the file server's place.
    pub(super) fn restore(&self, server: &str) {
        std::fs::remove_dir_all(self.path(server)).unwrap();
        copy_folder(&self.path(&format!("backup-{server}")), &self.path(server));
    }

    pub(super) fn wipe(&self, server: &str) {
        std::fs::remove_dir_all(self.path(server)).unwrap();
        std::fs::create_dir(self.path(server)).unwrap();
    }

    pub(super) fn replica(&self, server: &str, id: &ObjectId) -> std::path::PathBuf {
        let text = id.to_string();
        self.path(server).join(&text[..2]).join(&text[2..4]).join(&text)
    }
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_folder(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

/// Spoils a replica in one of the ways a disk does.
pub(super) fn spoil(replica: &Path, way: usize) {
    let mut bytes = std::fs::read(replica).unwrap();
    match way % 3 {
        0 => {
            // In the body: of the two slots before it, one may rot.
            let at = bytes.len() - 10;
            bytes[at] ^= 0x10;
        }
        1 => bytes.truncate(bytes.len() - 1),
        _ => bytes.fill(0),
    }
    std::fs::write(replica, bytes).unwrap();
}

async fn put_some(storage: &Storage, keys: std::ops::Range<usize>) -> Vec<ObjectId> {
    let mut ids = Vec::new();
    for key in keys {
        ids.push(put(storage, &key.to_string(), &text(100 + key)).await.unwrap().entry.id);
    }
    ids
}

/// Repair turns until nothing is owed.
async fn settle(storage: &Storage) {
    for _ in 0..20 {
        storage.repair_turn().await.unwrap();
        let status = storage.status().await.unwrap();
        if status.owed + status.removals_owed == 0 {
            return;
        }
    }
    panic!("{:?}", storage.owed(10).await.unwrap());
}

pub(super) async fn sync_with(teller: &Storage, told: &Storage) {
    told.merge(teller.changes_since(0, 10_000).await.unwrap(), None).await.unwrap();
}

#[tokio::test]
async fn a_comparison_finds_what_is_missing_spoiled_unknown_and_risen_and_then_agrees() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    let ids = put_some(&storage, 0..8).await;
    assert!(storage.sync().await.unwrap().agreed());
    // Lost without a word.
    std::fs::remove_file(place.replica("one", &ids[0])).unwrap();
    // Deleted, and back.
    std::fs::copy(place.replica("two", &ids[1]), place.path("kept")).unwrap();
    erase(&storage, &ids[1]).await;
    std::fs::copy(place.path("kept"), place.replica("two", &ids[1])).unwrap();
    // Owed, and there by another's hand: whole, and spoiled.
    for (way, id) in ids[2..4].iter().enumerate() {
        storage.0.catalog.observed(*id, "one".to_owned(), ReplicaState::Owed, now()).await.unwrap();
        if way == 1 {
            spoil(&place.replica("one", id), 0);
        }
    }
    // Unknown to this catalog.
    let other = place.open("vault-b").await;
    let unknown = put(&other, "other", b"the other vault's").await.unwrap().entry.id;
    // Of another key.
    let (foreign, bytes) = file_server::contract::object(b"foreign");
    std::fs::create_dir_all(place.replica("one", &foreign).parent().unwrap()).unwrap();
    std::fs::write(place.replica("one", &foreign), bytes).unwrap();

    let synced = storage.sync().await.unwrap();
    let expected = Synced {
        sealed: 1,
        known: 8,
        listed: synced.listed,
        missing: 1,
        present: 1,
        damaged: 1,
        adopted: 1,
        foreign: 1,
        risen: 1,
        unlisted: Vec::new(),
    };
    assert_eq!(synced, expected);
    settle(&storage).await;
    assert!(!place.replica("two", &ids[1]).exists(), "removed again");
    assert!(matches!(storage.find(&ids[1]).await.unwrap(), Found::Deleted(_)));
    assert_eq!(read(&storage, &unknown, None).await.unwrap(), b"the other vault's");
    assert!(place.replica("one", &foreign).exists(), "left alone");
    std::fs::remove_file(place.replica("one", &foreign)).unwrap();
    assert!(storage.sync().await.unwrap().agreed());
}

#[tokio::test]
async fn a_server_restored_from_a_backup_is_noticed_and_gets_back_what_it_lost_and_nothing_deleted() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    let old = put_some(&storage, 0..6).await;
    storage.patrol_turn().await.unwrap();
    place.back_up("one");
    let new = put_some(&storage, 6..12).await;
    erase(&storage, &old[0]).await;
    storage.patrol_turn().await.unwrap();
    assert_eq!(storage.status().await.unwrap().file_servers[0].restored, 0);

    place.restore("one");
    assert!(place.replica("one", &old[0]).exists() && !place.replica("one", &new[0]).exists());
    storage.patrol_turn().await.unwrap();
    let status = storage.status().await.unwrap();
    assert_eq!((status.file_servers[0].restored, status.file_servers[1].restored), (1, 0));
    assert_eq!((status.owed, status.removals_owed), (6, 1));
    assert!(storage.owed(100).await.unwrap().iter().all(|debt| debt.server == "one"));
    settle(&storage).await;
    assert!(!place.replica("one", &old[0]).exists(), "a restore resurrects nothing");
    assert!(new.iter().all(|id| place.replica("one", id).exists()));
    storage.patrol_turn().await.unwrap();
    assert_eq!(storage.status().await.unwrap().file_servers[0].restored, 1, "noticed once");
}

#[tokio::test]
async fn the_inventories_alone_tell_what_a_restored_server_lacks() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    put_some(&storage, 0..3).await;
    storage.patrol_turn().await.unwrap();
    place.back_up("one");
    let new = put_some(&storage, 3..6).await;
    storage.patrol_turn().await.unwrap();
    place.restore("one");
    let server = &storage.0.servers[0];
    let id = storage.0.catalog.place("one".to_owned()).await.unwrap().0.unwrap();
    let (verdict, mut differing) = storage.0.differing(server, &id).await.unwrap();
    let mut expected: Vec<_> = new.iter().map(|id| id.to_string()[..4].to_owned()).collect();
    expected.sort_unstable();
    differing.sort_unstable();
    assert_eq!((verdict, differing), (Verdict::Behind, expected));
}

#[tokio::test]
async fn a_backup_older_than_the_first_inventory_is_noticed_too() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    let ids = put_some(&storage, 0..2).await;
    place.back_up("two");
    let later = put_some(&storage, 2..4).await;
    storage.patrol_turn().await.unwrap();
    place.restore("two");
    storage.patrol_turn().await.unwrap();
    assert_eq!(storage.status().await.unwrap().file_servers[1].restored, 1);
    settle(&storage).await;
    assert!(ids.iter().chain(&later).all(|id| place.replica("two", id).exists()));
}

#[tokio::test]
async fn a_wiped_server_is_nobodys_until_the_operator_adopts_it_and_then_gets_everything_back() {
    let place = Place::new();
    let (storage, peer) = (place.open("vault-a").await, place.open("vault-b").await);
    let ids = put_some(&storage, 0..5).await;
    sync_with(&storage, &peer).await;
    for vault in [&storage, &peer] {
        vault.patrol_turn().await.unwrap();
        assert!(matches!(vault.adopt_server("one").await, Err(StorageError::SamePlace { .. })));
        assert!(matches!(vault.adopt_server("three").await, Err(StorageError::NoSuchServer { .. })));
    }
    place.wipe("one");
    storage.patrol_turn().await.unwrap();
    storage.repair_turn().await.unwrap();
    assert!(!storage.status().await.unwrap().file_servers[0].up, "not believed");
    assert_eq!(files_below(&place.path("one")), Vec::<std::path::PathBuf>::new(), "and not touched");
    assert_eq!(storage.adopt_server("one").await.unwrap().owed, 5);
    settle(&storage).await;
    storage.patrol_turn().await.unwrap();
    assert!(ids.iter().all(|id| place.replica("one", id).exists()));
    // The other vault is told on its own, and finds all of it there.
    assert!(peer.adopt_server("one").await.is_ok());
    peer.patrol_turn().await.unwrap();
    assert_eq!(peer.status().await.unwrap().owed, 0);
    for vault in [&storage, &peer] {
        assert!(vault.sync().await.unwrap().agreed());
    }
}

#[tokio::test]
async fn a_server_whose_folders_went_under_a_running_vault_stays_up_and_is_paid_in_one_turn() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    let ids = put_some(&storage, 0..8).await;
    storage.patrol_turn().await.unwrap();
    place.wipe("one");
    storage.repair_turn().await.unwrap();
    storage.adopt_server("one").await.unwrap();
    let turn = storage.repair_turn().await.unwrap();
    assert_eq!((turn.copied, turn.failed), (8, 0));
    assert!(storage.status().await.unwrap().file_servers[0].up);
    assert!(ids.iter().all(|id| place.replica("one", id).exists()));
}

#[tokio::test]
async fn a_catalog_that_is_lost_learns_from_the_file_servers_what_was_deleted() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    let ids = put_some(&storage, 0..4).await;
    std::fs::copy(place.replica("two", &ids[0]), place.path("kept")).unwrap();
    erase(&storage, &ids[0]).await;
    storage.patrol_turn().await.unwrap();
    drop(storage);
    // Both catalogs are gone, and an old copy of a deleted file is back on a file server.
    place.burn().await;
    std::fs::copy(place.path("kept"), place.replica("two", &ids[0])).unwrap();
    for vault in ["vault-a", "vault-b"] {
        let anew = place.open(vault).await;
        anew.patrol_turn().await.unwrap();
        assert!(matches!(anew.find(&ids[0]).await.unwrap(), Found::Deleted(_)), "{vault}");
        assert_eq!(anew.list(Wanted::default(), None, 10).await.unwrap().len(), 3, "{vault}");
        assert!(read(&anew, &ids[1], None).await.is_ok(), "{vault}");
    }
    let again = place.open("vault-a").await;
    settle(&again).await;
    assert!(!place.replica("two", &ids[0]).exists());
}

#[tokio::test]
async fn a_first_comparison_reads_records_alone_and_keeps_no_note_of_a_deletion_waiting() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    let ids = put_some(&storage, 0..4).await;
    storage.delete(&ids[0]).await.unwrap();
    storage.patrol_turn().await.unwrap();
    drop(storage);
    place.burn().await;
    // Whoever read this body would find it damaged, on both.
    for server in ["one", "two"] {
        spoil(&place.replica(server, &ids[1]), 0);
    }
    let storage = place.open("vault-a").await;
    storage.compare_turn().await.unwrap();
    assert_eq!(storage.status().await.unwrap().objects, 0, "not before it is known what is deleted");
    storage.watch_turn().await.unwrap();
    // Both are noted before anything is compared, and a comparison is due also after a restart.
    let place_of = storage.0.catalog.place("one".to_owned()).await.unwrap().0.unwrap();
    let verdict = storage.0.differing(&storage.0.servers[0], &place_of).await.unwrap().0;
    assert_eq!(verdict, Verdict::Current);
    drop(storage);
    let storage = place.open("vault-a").await;
    storage.watch_turn().await.unwrap();
    storage.compare_turn().await.unwrap();
    assert_eq!(storage.status().await.unwrap().objects, 3);
    assert!(matches!(storage.find(&ids[0]).await.unwrap(), Found::Deleted(_)));
    assert!(["one", "two"].iter().all(|server| place.replica(server, &ids[1]).exists()));
    // What is read or scrubbed is verified then.
    assert!(read(&storage, &ids[1], None).await.is_err());
    assert!(read(&storage, &ids[2], None).await.is_ok());
}

#[tokio::test]
async fn a_comparison_that_is_asked_for_while_one_runs_is_not_forgotten() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    put_some(&storage, 0..2).await;
    storage.patrol_turn().await.unwrap();
    let running = async |storage: &Storage| storage.0.catalog.round("sync").await.unwrap().running;
    let (mut asked, mut attempts) = (false, 0);
    while !asked {
        // It may be over between two looks.
        attempts += 1;
        assert!(attempts < 1000, "no comparison was seen running");
        storage.0.request_comparison().await.unwrap();
        let done = std::cell::Cell::new(false);
        let comparing = async {
            storage.compare_turn().await.unwrap();
            done.set(true);
        };
        // The first thing that it does is to read the round; then it lists.
        let asking = async {
            while !storage.sync_progress().running && !done.get() {
                tokio::task::yield_now().await;
            }
            if !done.get() {
                storage.0.request_comparison().await.unwrap();
                asked = true;
            }
        };
        tokio::join!(comparing, asking);
    }
    assert!(running(&storage).await);
    storage.compare_turn().await.unwrap();
    assert!(!running(&storage).await);
}

#[tokio::test]
async fn a_folder_or_a_note_that_cannot_be_read_suspends_nobody() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    let ids = put_some(&storage, 0..3).await;
    storage.patrol_turn().await.unwrap();
    let folder = place.replica("one", &ids[0]).parent().unwrap().parent().unwrap().to_owned();
    std::fs::rename(&folder, place.path("kept")).unwrap();
    std::fs::write(&folder, "like a broken folder").unwrap();
    let notes = place.path("one").join("notes");
    for slot in ["generation.vault-a.0", "generation.vault-a.1"] {
        let _ = std::fs::remove_file(notes.join(slot));
        std::fs::create_dir(notes.join(slot)).unwrap();
    }
    let synced = storage.sync().await.unwrap();
    assert_eq!((synced.missing, synced.unlisted.len()), (0, 1), "{synced:?}");
    assert!(synced.unlisted[0].contains("fails:"), "{synced:?}");
    for _ in 0..3 {
        storage.patrol_turn().await.unwrap();
        assert!(storage.status().await.unwrap().file_servers.iter().all(|server| server.up));
    }
    let status = storage.status().await.unwrap();
    assert!(status.file_servers[0].restored <= 2, "the note is written anew: {status:?}");
    std::fs::remove_file(&folder).unwrap();
    std::fs::rename(place.path("kept"), &folder).unwrap();
    assert!(storage.sync().await.unwrap().agreed());
}

#[tokio::test]
async fn a_note_of_another_key_or_another_place_says_nothing() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    put_some(&storage, 0..2).await;
    storage.patrol_turn().await.unwrap();
    // The other server's notes are as good as none; a spoiled one is as new as it was left.
    let notes = |server: &str| place.path(server).join("notes");
    std::fs::remove_dir_all(notes("one")).unwrap();
    copy_folder(&notes("two"), &notes("one"));
    spoil(&notes("two").join("generation.vault-a.0"), 0);
    let _ = std::fs::remove_file(notes("two").join("generation.vault-a.1"));
    storage.patrol_turn().await.unwrap();
    let status = storage.status().await.unwrap();
    assert_eq!((status.file_servers[0].restored, status.file_servers[1].restored), (1, 0));
    assert_eq!(status.owed, 0, "nothing is missing");
    storage.patrol_turn().await.unwrap();
    let status = storage.status().await.unwrap();
    assert_eq!((status.file_servers[0].restored, status.file_servers[1].restored), (1, 0));
}

#[tokio::test]
async fn a_scrub_finds_every_kind_of_rot_and_survives_a_restart() {
    let place = Place::new();
    let mut settings = place.settings("vault-a");
    settings.scrub_every = Duration::from_secs(30 * 86_400);
    let storage = Storage::open(settings.clone(), "vault-a").await.unwrap();
    let ids = put_some(&storage, 0..70).await;
    for (way, id) in ids[..6].iter().enumerate() {
        spoil(&place.replica(["one", "two"][way % 2], id), way);
    }
    std::fs::remove_file(place.replica("one", &ids[6])).unwrap();
    assert!(storage.scrub_turn().await.unwrap(), "there is more");
    let half = storage.status().await.unwrap().scrub;
    assert!(half.running && half.position.is_some() && half.finished.is_none());
    drop(storage);
    let storage = Storage::open(settings, "vault-a").await.unwrap();
    while storage.scrub_turn().await.unwrap() {}
    let done = storage.status().await.unwrap().scrub;
    assert_eq!((done.running, done.checked, done.damaged), (false, 140, 7));
    assert!(done.finished.is_some());
    assert_eq!(storage.status().await.unwrap().owed, 7);
    settle(&storage).await;
    assert_eq!(files_below(&place.path("one/quarantine")).len(), 3);
    assert!(!storage.scrub_turn().await.unwrap(), "not due again");
    storage.scrub().await.unwrap();
    while storage.scrub_turn().await.unwrap() {}
    let again = storage.status().await.unwrap().scrub;
    assert_eq!((again.checked, again.damaged), (140, 0));
}

#[tokio::test]
async fn two_vaults_share_a_scrub_and_one_alone_does_all_of_it() {
    let place = Place::new();
    let (storage, peer) = (place.open("vault-a").await, place.open("vault-b").await);
    put_some(&storage, 0..20).await;
    sync_with(&storage, &peer).await;
    let (up, is_up) = watch::channel(true);
    let mut checked = 0;
    for vault in [&storage, &peer] {
        vault.set_peer_up(is_up.clone());
        vault.scrub().await.unwrap();
        while vault.scrub_turn().await.unwrap() {}
        checked += vault.status().await.unwrap().scrub.checked;
    }
    assert_eq!(checked, 40, "each replica once");
    up.send_replace(false);
    storage.scrub().await.unwrap();
    while storage.scrub_turn().await.unwrap() {}
    assert_eq!(storage.status().await.unwrap().scrub.checked, 40);
}

#[tokio::test]
async fn a_scrub_keeps_to_its_rate() {
    let place = Place::new();
    let mut settings = place.settings("vault-a");
    settings.scrub_rate = ByteSize::mib(1);
    let storage = Storage::open(settings, "vault-a").await.unwrap();
    // Nothing that compresses: 2 × 308 KiB.
    put(&storage, "k", &crash::noise()).await.unwrap();
    storage.scrub().await.unwrap();
    let begun = tokio::time::Instant::now();
    while storage.scrub_turn().await.unwrap() {}
    assert!(begun.elapsed() > Duration::from_millis(500), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_server_low_on_space_is_spared_while_the_other_has_room_and_paid_when_it_has_again() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    storage.0.servers[0].note_space(0, 1);
    let id = put(&storage, "k", b"content").await.unwrap().entry.id;
    assert_eq!(found(&storage, &id).await.stored_on(), ["two"]);
    let status = storage.status().await.unwrap();
    assert!(status.file_servers[0].low && !status.file_servers[0].full);
    assert_eq!((status.file_servers[0].owed, status.file_servers[1].owed), (1, 0));
    assert!(storage.owed(10).await.unwrap()[0].why.contains("make room"));
    // The next turn's probe finds room.
    settle(&storage).await;
    assert_eq!(found(&storage, &id).await.stored_on(), ["one", "two"]);
    // With both low, what is acknowledged is still on both.
    storage.0.servers[0].note_space(0, 1);
    storage.0.servers[1].note_space(0, 1);
    let id = put(&storage, "k2", b"content").await.unwrap().entry.id;
    assert_eq!(found(&storage, &id).await.stored_on(), ["one", "two"]);
}

#[tokio::test]
async fn the_space_floor_is_probed_each_turn() {
    let place = Place::new();
    let mut settings = place.settings("vault-a");
    settings.keep_free = ByteSize(u64::MAX);
    let storage = Storage::open(settings, "vault-a").await.unwrap();
    assert!(!storage.status().await.unwrap().file_servers[0].low);
    storage.repair_turn().await.unwrap();
    assert!(storage.status().await.unwrap().file_servers.iter().all(|server| server.low));
}

#[tokio::test]
async fn comparing_thousands_of_objects_takes_no_time_to_speak_of() {
    // A part of a big store: making the files takes most of this test's time.
    let place = Place::new();
    let storage = place.open("vault-a").await;
    let mut ids = Vec::new();
    let count = 3000_u32;
    for number in 0..count {
        let id = ObjectId::new(*blake3::hash(&number.to_be_bytes()).as_bytes());
        for server in ["one", "two"] {
            let path = place.replica(server, &id);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, b"").unwrap();
        }
        ids.push(id);
    }
    let known = put(&storage, "k", b"x").await.unwrap().entry;
    for chunk in ids.chunks(1000) {
        let changes = chunk.iter().map(|id| Change {
            seq: 1,
            id: *id,
            metadata: known.metadata.clone(),
            revision: 0,
            state: State::Stored,
            origin: "vault-b".to_owned(),
            identity: known.identity.clone(),
            stored_on: vec!["one".to_owned(), "two".to_owned()],
            seals: std::collections::BTreeMap::new(),
        });
        storage.merge(changes.collect(), None).await.unwrap();
    }
    let begun = tokio::time::Instant::now();
    let synced = storage.sync().await.unwrap();
    let took = begun.elapsed();
    println!("{count} objects on two servers compared in {took:?}");
    assert_eq!((synced.known, synced.listed), (u64::from(count) + 1, 2 * (u64::from(count) + 1)));
    assert!(synced.agreed(), "{synced:?}");
    let progress = storage.sync_progress();
    assert!(progress.finished && !progress.running, "{progress:?}");
    assert_eq!((progress.percent, progress.passed, progress.done), (100, synced.known, 0));
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test]
async fn a_file_server_that_lists_far_more_than_is_known_is_not_believed() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    let folder = place.path("one").join("ab/cd");
    std::fs::create_dir_all(&folder).unwrap();
    for number in 0..501 {
        std::fs::write(folder.join(format!("abcd{number:060x}")), b"").unwrap();
    }
    let synced = storage.sync().await.unwrap();
    assert_eq!((synced.foreign, synced.unlisted.len()), (0, 1), "{synced:?}");
    assert!(synced.unlisted[0].starts_with("one: lists more than 500 objects"), "{synced:?}");
    assert_eq!(files_below(&folder).len(), 501, "none of them was looked at");
}
