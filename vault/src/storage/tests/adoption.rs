//! Promises about file servers that are not what one vault, or both, believe: what the other one adopts,
//! and what a visit finds. A mount is a link here that leads elsewhere.

use std::path::PathBuf;

use super::patrol::sync_with;
use super::*;

/// Where the vault has its file server "one" mounted.
fn mount_point(place: &Place, vault: &str) -> PathBuf {
    place.path(&format!("mount-{vault}"))
}

/// Has `folder` mounted there from now on.
fn mount(place: &Place, vault: &str, folder: &str) {
    let point = mount_point(place, vault);
    let _ = std::fs::remove_file(&point);
    std::fs::create_dir_all(place.path(folder)).unwrap();
    std::os::unix::fs::symlink(place.path(folder), point).unwrap();
}

async fn open(place: &Place, vault: &str) -> Storage {
    mount(place, vault, "old");
    let mut settings = place.settings(vault);
    settings.file_servers[0].path = mount_point(place, vault);
    Storage::open(settings, vault).await.unwrap()
}

/// Both vaults of a pair, which know three objects on the same two places.
async fn pair(place: &Place) -> (Storage, Storage) {
    let (here, other) = (open(place, "vault-a").await, open(place, "vault-b").await);
    for key in ["first", "second", "third"] {
        put(&here, key, key.as_bytes()).await.unwrap();
    }
    sync_with(&here, &other).await;
    (here, other)
}

async fn place_of(storage: &Storage) -> String {
    storage.0.catalog.place("one".to_owned()).await.unwrap().0.unwrap()
}

async fn adopted(storage: &Storage) -> Adoption {
    let AdoptedServer { server, place, .. } = storage.adopt_server("one").await.unwrap();
    assert_eq!(place, place_of(storage).await);
    Adoption { server, place }
}

#[tokio::test]
async fn what_one_vault_adopts_makes_the_other_claim_no_folder_whose_mount_is_missing() {
    let place = Place::new();
    let (here, other) = pair(&place).await;
    let before = place_of(&other).await;
    mount(&place, "vault-a", "new");
    mount(&place, "vault-b", "nothing");
    let told = adopted(&here).await;
    let refused = other.follow_adoption(told.clone()).await.unwrap_err();
    assert!(refused.to_string().contains("here stands no marker"), "{refused}");
    other.probe_turn().await;
    assert_eq!(std::fs::read_dir(place.path("nothing")).unwrap().count(), 0, "it is not claimed");
    assert!(!other.status().await.unwrap().file_servers[0].up);
    assert_eq!(place_of(&other).await, before);
    let later = put(&other, "later", b"later").await.unwrap().entry.id;
    assert_eq!(found(&other, &later).await.stored_on(), ["two"]);
    // Mounted at last, and told again.
    mount(&place, "vault-b", "new");
    for _ in 0..2 {
        other.follow_adoption(told.clone()).await.unwrap();
        assert_eq!(place_of(&other).await, told.place);
    }
    let status = other.status().await.unwrap();
    assert!(status.file_servers[0].up);
    assert_eq!(status.owed, 4);
    other.repair_turn().await.unwrap();
    assert_eq!(place.replicas("new").len(), 4);
}

#[tokio::test]
async fn a_place_that_one_vault_adopts_by_mistake_is_not_believed_by_the_other_which_goes_on() {
    let place = Place::new();
    let (here, other) = pair(&place).await;
    let before = place_of(&other).await;
    mount(&place, "vault-a", "nothing");
    let told = adopted(&here).await;
    let refused = other.follow_adoption(told.clone()).await.unwrap_err();
    assert!(matches!(refused, StorageError::OtherPlace { .. }), "{refused}");
    assert!(refused.to_string().contains(&format!("here stands place {before}")), "{refused}");
    let status = other.status().await.unwrap();
    assert!(status.file_servers[0].up, "{:?}", status.file_servers[0]);
    assert_eq!((status.owed, place_of(&other).await), (0, before.clone()));
    // The other one is right: said where it is wrong, it is so for both.
    mount(&place, "vault-a", "old");
    here.probe_turn().await;
    let told = adopted(&here).await;
    assert_eq!(told.place, before);
    other.follow_adoption(told).await.unwrap();
    assert_eq!(other.status().await.unwrap().owed, 0);
}

#[tokio::test]
async fn a_visit_writes_nothing_and_tells_what_is_free_on_a_place_that_nobody_knows_too() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    put(&storage, "k", b"content").await.unwrap();
    drop(storage);
    let settings = place.settings("vault-a");
    std::fs::remove_dir(place.path("one/tmp")).unwrap();
    place.wipe("two");
    let [one, two] = [0, 1].map(|at| visit(&settings, &settings.file_servers[at]).unwrap());
    assert!(one.place.unwrap().is_some());
    assert!(matches!(two.place, Err(FileServerError::NotOurs { .. })), "{:?}", two.place);
    assert!(one.free > Some(0) && two.free > Some(0), "{:?}, {:?}", one.free, two.free);
    assert!(!place.path("one/tmp").exists());
    assert_eq!(std::fs::read_dir(place.path("two")).unwrap().count(), 0);
    // To a vault that knows nothing it is a new place.
    let fresh = place.settings("vault-b");
    let two = visit(&fresh, &fresh.file_servers[1]).unwrap();
    assert!(matches!(two.place, Ok(None)) && two.free > Some(0), "{two:?}");
}

#[tokio::test]
async fn of_a_suspect_that_nobody_could_look_at_nothing_is_noted() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    let id = put(&storage, "k", b"content").await.unwrap().entry.id;
    let longest = envelope::longest(7);
    let away = FileServerError::Absent { server: String::new(), object: String::new() };
    storage.0.servers[0].suspend(&away);
    storage.0.look_at_suspect(id, 0, longest).await;
    assert_eq!(found(&storage, &id).await.stored_on(), ["one", "two"]);
    // What is damaged is so, also where it cannot be set aside.
    storage.probe_turn().await;
    patrol::spoil(&place.replicas("one")[0], 0);
    std::fs::remove_dir(place.path("one/quarantine")).unwrap();
    std::fs::write(place.path("one/quarantine"), b"no folder").unwrap();
    storage.0.look_at_suspect(id, 0, longest).await;
    assert_eq!(found(&storage, &id).await.stored_on(), ["two"]);
}
