//! Promises of storage as a whole, on two real directories: what is acknowledged is readable,
//! whichever file server is lost and wherever the process dies.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::step::Step;
use super::*;

mod adoption;
mod crash;
mod keys;
mod mending;
mod patrol;
mod refusals;
mod removal;
mod scrub;
mod slow;
mod tasks;
mod tombstones;
mod upheaval;
mod upkeep;

struct Place {
    folder: tempfile::TempDir,
    escrow: age::x25519::Identity,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        key::create(&folder.path().join("active.key"), clock()).unwrap();
        Self { folder, escrow: age::x25519::Identity::generate() }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// Settings of one vault; both vaults of a pair use the same file servers and key.
    fn settings(&self, vault: &str) -> Settings {
        let state = self.path(vault);
        std::fs::create_dir_all(&state).unwrap();
        let server = |name: &str| FileServerSettings::directory(name, self.path(name));
        Settings {
            catalog: state.join("catalog.db"),
            spool: state.join("spool"),
            key_file: self.path("active.key"),
            escrow_recipient: self.escrow.to_public().to_string(),
            min_replicas: 1,
            max_file: ByteSize::mib(8),
            max_uploads: 8,
            retry_every: Duration::from_secs(10),
            undelete_within: Duration::from_secs(7 * 86_400),
            file_server_timeout: Duration::from_secs(20),
            peer: if vault == "vault-a" { "vault-b" } else { "vault-a" }.to_owned(),
            sync_every: Duration::ZERO,
            scrub_every: Duration::ZERO,
            scrub_rate: ByteSize::gib(1),
            inventory_every: Duration::ZERO,
            keep_free: ByteSize(0),
            file_servers: vec![server("one"), server("two")],
        }
    }

    async fn open(&self, vault: &str) -> Storage {
        Storage::open(self.settings(vault), vault).await.unwrap()
    }

    /// Both vaults' disks burn.
    async fn burn(&self) {
        for vault in ["vault-a", "vault-b"] {
            // A catalog that is still being closed would take its successor's log with it.
            let log = self.path(vault).join("catalog.db-wal");
            for _ in 0..500 {
                if !log.exists() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let _ = std::fs::remove_dir_all(self.path(vault));
        }
    }

    /// Every replica of every object, by file server.
    fn replicas(&self, server: &str) -> Vec<std::path::PathBuf> {
        files_below(&self.path(server))
            .into_iter()
            .filter(|file| file.file_name().unwrap().len() == 64)
            .collect()
    }

    fn rest(&self) -> Vec<std::path::PathBuf> {
        let mut rest: Vec<_> =
            ["one", "two"].iter().flat_map(|server| files_below(&self.path(server))).collect();
        rest.retain(|file| file.file_name().unwrap().len() != 64 && file.file_name().unwrap() != "marker");
        for vault in ["vault-a", "vault-b"] {
            rest.extend(files_below(&self.path(vault).join("spool")));
        }
        rest
    }
}

fn files_below(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path) }
    }
    found
}

/// What a vault with these keys answers.
fn peer_with(recipients: &[String]) -> PeerKeys {
    PeerKeys { recipients: recipients.to_vec(), escrow: None }
}

fn upload(key: &str) -> Upload {
    Upload {
        owner: "erp".to_owned(),
        key: key.to_owned(),
        label: "an invoice".to_owned(),
        media_type: "text/plain".to_owned(),
    }
}

fn text(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at / 7 % 251).to_le_bytes()[0]).collect()
}

async fn put(storage: &Storage, key: &str, text: &[u8]) -> Result<Stored, StorageError> {
    let pieces: Vec<_> = text.chunks(100_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    storage.put(upload(key), stream::iter(pieces)).await
}

/// Deletes for ever, as when the grace is over.
async fn erase(storage: &Storage, id: &ObjectId) {
    storage.delete(id).await.unwrap();
    assert_eq!(storage.0.catalog.purge(vec![*id], now()).await.unwrap(), 1);
    storage.repair_turn().await.unwrap();
}

/// Waits until what readers found damaged has been looked at.
async fn suspects_seen(storage: &Storage) {
    while !storage.0.suspects().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until what was left half-written is collected, if that has begun.
async fn collected(storage: &Storage) {
    for server in &storage.0.servers {
        server.collected().await;
    }
}

async fn found(storage: &Storage, id: &ObjectId) -> Entry {
    match storage.find(id).await.unwrap() {
        Found::Stored(entry) => *entry,
        other => panic!("{other:?}"),
    }
}

async fn read(storage: &Storage, id: &ObjectId, range: Option<Range<u64>>) -> Result<Vec<u8>, StorageError> {
    let entry = found(storage, id).await;
    let (length, plaintext) = storage.read(&entry, range).await?;
    let bytes = plaintext.try_fold(Vec::new(), |mut all, piece| async move {
        all.extend_from_slice(&piece);
        Ok(all)
    });
    let bytes = bytes.await?;
    assert_eq!(bytes.len() as u64, length);
    Ok(bytes)
}

#[tokio::test]
async fn what_is_put_lies_encrypted_on_both_and_reads_back_whole_and_in_ranges() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    for length in [0, 1, 70_000, (1 << 20) + 5, 3 << 20] {
        let text = text(length);
        let stored = put(&storage, &format!("k{length}"), &text).await.unwrap();
        assert!(stored.new);
        let id = stored.entry.id;
        assert_eq!(stored.entry.stored_on(), ["one", "two"]);
        assert!(read(&storage, &id, None).await.unwrap() == text);
        let size = length as u64;
        for range in [0..1, size / 3..size / 2 + 1, size.saturating_sub(1)..size, 5..u64::MAX] {
            if range.start < size {
                let end = usize::try_from(range.end.min(size)).unwrap();
                let expected = &text[usize::try_from(range.start).unwrap()..end];
                assert!(read(&storage, &id, Some(range)).await.unwrap() == expected);
            }
        }
        let entry = found(&storage, &id).await;
        assert!(matches!(storage.read(&entry, Some(size..size + 1)).await, Err(StorageError::Range { .. })));
    }
    let replicas = [place.replicas("one"), place.replicas("two")].concat();
    assert_eq!(replicas.len(), 10);
    for replica in replicas {
        let bytes = std::fs::read(replica).unwrap();
        assert!(!bytes.windows(10).any(|window| window == b"an invoice" || window == &text(40)[20..30]));
    }
    assert_eq!(place.rest(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn a_key_never_acts_twice() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    let first = put(&storage, "k", b"content").await.unwrap();
    let again = put(&storage, "k", b"content").await.unwrap();
    assert!(!again.new);
    assert_eq!(again.entry, first.entry);
    assert!(
        matches!(put(&storage, "k", b"other").await, Err(StorageError::KeyReused { id }) if id == first.entry.id)
    );
    let (left, right) = tokio::join!(put(&storage, "both", b"x"), put(&storage, "both", b"x"));
    let (left, right) = (left.unwrap(), right.unwrap());
    assert!(left.new != right.new && left.entry.id == right.entry.id);
    storage.delete(&first.entry.id).await.unwrap();
    assert!(matches!(put(&storage, "k", b"content").await, Err(StorageError::KeyDeleted { .. })));
    assert_eq!(place.replicas("one").len(), 2, "the deleted one is kept for its grace");
    assert!(storage.0.keys.lock().unwrap().is_empty(), "keys are not remembered for ever");
}

#[tokio::test]
async fn an_upload_that_breaks_off_or_is_too_large_leaves_nothing() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    let broken = stream::iter([Ok(Bytes::from(text(300_000))), Err(BodyError::Broken("reset".to_owned()))]);
    assert!(matches!(storage.put(upload("k"), broken).await, Err(StorageError::Body(_))));
    assert!(matches!(put(&storage, "k", &text(9 << 20)).await, Err(StorageError::TooLarge(_))));
    // A caller that goes away drops the whole call.
    let endless = stream::once(async { Ok(Bytes::from_static(b"x")) }).chain(stream::pending());
    let call = storage.put(upload("k"), endless);
    assert!(tokio::time::timeout(Duration::from_millis(50), call).await.is_err());
    assert!(place.replicas("one").is_empty() && place.replicas("two").is_empty());
    assert_eq!(storage.last_change(), 0);
    let stored = put(&storage, "k", b"now whole").await.unwrap();
    assert!(stored.new);
    assert_eq!(place.rest(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn too_many_uploads_are_refused_and_their_places_come_back() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    let mut waiting = Vec::new();
    for number in 0..8 {
        let storage = storage.clone();
        let slow = stream::pending();
        waiting.push(tokio::spawn(
            async move { storage.put(upload(&format!("w{number}")), slow).await.is_ok() },
        ));
    }
    while storage.0.uploads.available_permits() > 0 {
        tokio::task::yield_now().await;
    }
    assert!(matches!(put(&storage, "k", b"x").await, Err(StorageError::Busy(_))));
    for task in waiting {
        task.abort();
        assert!(task.await.is_err());
    }
    assert!(put(&storage, "k", b"x").await.is_ok());
}

#[tokio::test]
async fn one_file_server_is_enough_and_the_other_is_paid_later() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    std::fs::rename(place.path("two"), place.path("away")).unwrap();
    let stored = put(&storage, "k", b"content").await.unwrap().entry;
    assert_eq!((stored.stored_on(), stored.owed_to()), (vec!["one".to_owned()], vec!["two".to_owned()]));
    let status = storage.status().await.unwrap();
    assert_eq!((status.owed, status.file_servers[1].up), (1, false));
    assert_eq!(storage.repair_turn().await.unwrap(), Turn::default(), "nothing is tried while it is away");
    std::fs::rename(place.path("away"), place.path("two")).unwrap();
    let turn = storage.repair_turn().await.unwrap();
    assert_eq!((turn.copied, turn.failed), (1, 0));
    assert_eq!(found(&storage, &stored.id).await.stored_on(), ["one", "two"]);
    let (one, two) = (&place.replicas("one")[0], &place.replicas("two")[0]);
    assert_eq!(std::fs::read(one).unwrap(), std::fs::read(two).unwrap(), "copied as it is");
    std::fs::remove_dir_all(place.path("one")).unwrap();
    assert_eq!(read(&storage, &stored.id, None).await.unwrap(), b"content");
    let metrics = storage.metrics().await.unwrap().gather();
    assert!(metrics.iter().any(|family| family.name() == "vault_storage_healed_total"));
}

/// A marker that is a pipe without a writer hangs whoever opens it, as a dead network mount does.
#[tokio::test]
async fn a_hanging_mount_costs_one_upload_one_deadline_and_is_paid_when_it_is_back() {
    let place = Place::new();
    let mut settings = place.settings("vault-a");
    settings.file_server_timeout = Duration::from_millis(300);
    let storage = Storage::open(settings, "vault-a").await.unwrap();
    let (marker, kept) = (place.path("two/marker"), place.path("kept"));
    std::fs::rename(&marker, &kept).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&marker).status().unwrap().success());
    for key in ["first", "second"] {
        let stored = put(&storage, key, b"content").await.unwrap().entry;
        assert_eq!(stored.owed_to(), ["two"]);
        assert_eq!(read(&storage, &stored.id, None).await.unwrap(), b"content");
    }
    let errors = storage.status().await.unwrap().file_servers[1].errors;
    assert_eq!(errors, 1, "the second upload was not sent there");
    // Lets the hanging one go, which then finds a marker that is none.
    drop(std::fs::OpenOptions::new().read(true).write(true).open(&marker).unwrap());
    std::fs::rename(&kept, &marker).unwrap();
    let turn = storage.repair_turn().await.unwrap();
    assert_eq!((turn.copied, turn.failed), (2, 0));
}

#[tokio::test]
async fn an_upload_that_can_only_fail_is_refused_at_once_and_attempts_do_not_pile_up() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    storage.0.servers.iter().for_each(|server| server.set_full(true));
    let refused = storage.put(upload("k"), stream::pending()).await;
    assert!(matches!(refused, Err(StorageError::NoPlace { able: 0, full: true, .. })));
    assert_eq!(storage.last_change(), 0);
    storage.repair_turn().await.unwrap();
    assert!(put(&storage, "k", b"content").await.is_ok(), "space was found again");
}

#[tokio::test]
async fn nothing_is_acknowledged_that_is_not_durable_and_the_retry_answers_what_arrived() {
    let place = Place::new();
    let mut settings = place.settings("vault-a");
    settings.min_replicas = 2;
    let storage = Storage::open(settings, "vault-a").await.unwrap();
    std::fs::rename(place.path("two"), place.path("away")).unwrap();
    let Err(StorageError::NotDurable { id, durable: 1, needed: 2, .. }) =
        put(&storage, "k", b"content").await
    else {
        panic!("one replica is not two")
    };
    std::fs::rename(place.path("away"), place.path("two")).unwrap();
    storage.repair_turn().await.unwrap();
    let retried = put(&storage, "k", b"content").await.unwrap();
    assert_eq!((retried.entry.id, retried.new), (id, false));
    storage.repair_turn().await.unwrap();
    assert_eq!(found(&storage, &id).await.stored_on(), ["one", "two"]);
}

#[tokio::test]
async fn a_repeat_too_is_answered_only_when_enough_replicas_are_durable() {
    let place = Place::new();
    let mut settings = place.settings("vault-a");
    settings.min_replicas = 2;
    let storage = Storage::open(settings, "vault-a").await.unwrap();
    std::fs::rename(place.path("two"), place.path("away")).unwrap();
    let refused = put(&storage, "k", b"content").await;
    assert!(matches!(refused, Err(StorageError::NotDurable { .. })), "{refused:?}");
    // The one replica is found and adopted: it can be read, but the upload is not answered by it.
    assert_eq!(storage.repair_turn().await.unwrap().settled, 1);
    let Err(StorageError::NotDurable { id, durable: 1, needed: 2, .. }) =
        put(&storage, "k", b"content").await
    else {
        panic!("one replica is not two")
    };
    assert_eq!(read(&storage, &id, None).await.unwrap(), b"content");
    assert!(matches!(put(&storage, "k", b"other").await, Err(StorageError::KeyReused { .. })));
    std::fs::rename(place.path("away"), place.path("two")).unwrap();
    storage.probe_turn().await;
    let retried = put(&storage, "k", b"content").await.unwrap();
    assert_eq!((retried.entry.id, retried.new), (id, false));
    assert_eq!(retried.entry.stored_on(), ["one", "two"]);
    assert_eq!(place.replicas("two").len(), 1);
}

#[tokio::test]
async fn a_key_never_answers_two_objects_although_the_first_lies_on_too_few() {
    let place = Place::new();
    let mut settings = place.settings("vault-a");
    settings.min_replicas = 2;
    let storage = Storage::open(settings, "vault-a").await.unwrap();
    std::fs::rename(place.path("two"), place.path("away")).unwrap();
    let Err(StorageError::NotDurable { id, durable: 1, .. }) = put(&storage, "k", b"content").await else {
        panic!("one replica is not two")
    };
    std::fs::rename(place.path("away"), place.path("two")).unwrap();
    // Before anybody has settled the intent.
    storage.probe_turn().await;
    let again = put(&storage, "k", b"content").await.unwrap();
    assert_eq!((again.entry.id, again.new), (id, false));
    assert_eq!(again.entry.stored_on(), ["one", "two"]);
    storage.repair_turn().await.unwrap();
    assert_eq!(storage.list(Wanted::default(), None, 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn damage_is_never_released_and_is_healed_from_the_other_replica() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    let text = text(5 << 19);
    for (number, at) in [8192, 9000, -1_i64, -70_000].into_iter().enumerate() {
        let id = put(&storage, &number.to_string(), &text).await.unwrap().entry.id;
        let replica = place.replicas("one").into_iter().find(|file| file.ends_with(id.to_string())).unwrap();
        let mut bytes = std::fs::read(&replica).unwrap();
        let at = usize::try_from(if at < 0 { bytes.len() as i64 + at } else { at }).unwrap();
        bytes[at] ^= 4;
        std::fs::write(&replica, bytes).unwrap();
        assert!(read(&storage, &id, None).await.unwrap() == text, "the other replica is read");
        suspects_seen(&storage).await;
        let bad = found(&storage, &id).await;
        assert_eq!((bad.stored_on(), bad.owed_to()), (vec!["two".to_owned()], vec!["one".to_owned()]));
        assert!(!replica.exists(), "set aside");
        assert_eq!(storage.repair_turn().await.unwrap().copied, 1);
        assert_eq!(found(&storage, &id).await.stored_on(), ["one", "two"]);
    }
    assert_eq!(files_below(&place.path("one/quarantine")).len(), 4);
}

#[tokio::test]
async fn a_file_without_a_whole_replica_is_refused_not_invented() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    let id = put(&storage, "k", &text(100)).await.unwrap().entry.id;
    for server in ["one", "two"] {
        std::fs::remove_file(&place.replicas(server)[0]).unwrap();
    }
    assert!(matches!(read(&storage, &id, None).await, Err(StorageError::Unreadable { .. })));
    assert_eq!(storage.repair_turn().await.unwrap().failed, 1);
}

#[tokio::test]
async fn a_lost_catalog_is_no_lost_file() {
    let place = Place::new();
    let id = put(&place.open("vault-a").await, "k", b"content").await.unwrap().entry.id;
    let other = place.open("vault-b").await;
    let entry = found(&other, &id).await;
    assert_eq!((entry.metadata.owner.as_str(), entry.metadata.key.as_str()), ("erp", "k"));
    assert_eq!(read(&other, &id, None).await.unwrap(), b"content");
    let unknown = ObjectId::new([7; 32]);
    assert!(matches!(other.find(&unknown).await.unwrap(), Found::Absent));
    std::fs::rename(place.path("two"), place.path("away")).unwrap();
    assert!(
        matches!(other.find(&unknown).await, Err(StorageError::Unsure { .. })),
        "no is said only for sure"
    );
}

#[tokio::test]
async fn a_retry_at_the_other_vault_finds_the_intent_and_never_acts_twice() {
    let place = Place::new();
    let (storage, peer) = (place.open("vault-a").await, place.open("vault-b").await);
    let (teller, told) = (storage.clone(), peer.clone());
    storage.set_peer(Arc::new(move |seq| {
        let (teller, told) = (teller.clone(), told.clone());
        Box::pin(async move {
            let changes = teller.changes_since(0, 100).await.unwrap();
            assert_eq!(changes.last().unwrap().seq, seq);
            told.merge(changes, None).await.unwrap();
        })
    }));
    // The peer knows the intent only: what came after it was never told.
    let first = put(&storage, "k", b"content").await.unwrap().entry;
    let pending = peer.0.catalog.entry(first.id).await.unwrap().unwrap();
    assert_eq!(pending.state, State::Pending);
    let retried = put(&peer, "k", b"content").await.unwrap();
    assert_eq!((retried.entry.id, retried.new), (first.id, false));
    assert_eq!(place.replicas("one").len(), 1);
    // With nothing of it on the file servers, the retry acts and supersedes it.
    let second = put(&storage, "k2", b"content").await.unwrap().entry;
    for server in ["one", "two"] {
        let lost = place.replicas(server).into_iter().find(|file| file.ends_with(second.id.to_string()));
        std::fs::remove_file(lost.unwrap()).unwrap();
    }
    assert!(put(&peer, "k2", b"content").await.unwrap().new);
}

#[tokio::test]
async fn an_intent_that_its_own_vault_has_forgotten_is_asked_for_and_settled() {
    let place = Place::new();
    let (own, other) = (place.open("vault-a").await, place.open("vault-b").await);
    let model = put(&own, "model", b"content").await.unwrap().entry;
    let metadata = Metadata { key: "k".to_owned(), ..model.metadata.clone() };
    let model = Entry { metadata, state: State::Pending, replicas: Vec::new(), ..model };
    let intend = |id| own.0.catalog.intend(Entry { id, ..model.clone() });
    let pending = async |storage: &Storage| storage.status().await.unwrap().pending;
    let forgotten = ObjectId::new([1; 32]);
    intend(forgotten).await.unwrap();
    patrol::sync_with(&own, &other).await;
    // It comes to nothing, and the retry forgets it before the other vault hears of that.
    own.0.catalog.dropped(forgotten).await.unwrap();
    intend(ObjectId::new([2; 32])).await.unwrap();
    own.repair_turn().await.unwrap();
    patrol::sync_with(&own, &other).await;
    assert_eq!((pending(&own).await, pending(&other).await), (0, 1));

    let cursor = other.last_change();
    other.set_peer_up(tokio::sync::watch::channel(true).1);
    for _ in 0..40 {
        other.repair_turn().await.unwrap();
    }
    own.merge(other.changes_since(cursor, 10).await.unwrap(), None).await.unwrap();
    assert_eq!(pending(&own).await, 1, "it is an intent again");
    own.repair_turn().await.unwrap();
    patrol::sync_with(&own, &other).await;
    assert_eq!((pending(&own).await, pending(&other).await), (0, 0));
}

#[tokio::test]
async fn an_unmounted_directory_is_not_claimed_by_a_vault_that_knows_objects_there() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    put(&storage, "k", b"content").await.unwrap();
    let changes = storage.changes_since(0, 100).await.unwrap();
    drop(storage);
    std::fs::rename(place.path("one"), place.path("unmounted")).unwrap();
    std::fs::create_dir(place.path("one")).unwrap();
    let storage = place.open("vault-a").await;
    let status = storage.status().await.unwrap();
    assert!(!status.file_servers[0].up);
    let why = status.file_servers[0].last_error.clone().unwrap();
    assert!(
        why.contains("its marker is missing, and the catalog knows objects there: not mounted?"),
        "{why}"
    );
    // Neither does a vault that knows of them from its peer alone.
    let place_b = place.settings("vault-b");
    let catalog =
        Catalog::open(&place_b.catalog, &["one".to_owned(), "two".to_owned()], Steps::default()).unwrap();
    catalog.merge(changes, None, String::new(), 0).await.unwrap();
    let peer = Storage::open(place_b, "vault-b").await.unwrap();
    assert!(!peer.status().await.unwrap().file_servers[0].up);
    assert_eq!(files_below(&place.path("one")).len(), 0);
    std::fs::remove_dir(place.path("one")).unwrap();
    std::fs::rename(place.path("unmounted"), place.path("one")).unwrap();
    storage.repair_turn().await.unwrap();
    assert!(storage.status().await.unwrap().file_servers[0].up);
}
