//! Promises of the catalog: merging, group commit, keys, debts.

use proptest::prelude::{Just, Strategy, prop_oneof};
use proptest::{prop_assert_eq, proptest};

use super::*;
use crate::storage::object::{Metadata, OneOff};

fn entry(number: u8, key: &str, state: State) -> Entry {
    Entry {
        id: ObjectId::new([number; 32]),
        metadata: Metadata {
            owner: "erp".to_owned(),
            key: key.to_owned(),
            label: format!("label {number}"),
            media_type: "text/plain".to_owned(),
            size: u64::from(number),
            created: "2026-01-01T00:00:00Z".to_owned(),
            digest: "d".repeat(64),
        },
        state,
        origin: "vault-a".to_owned(),
        identity: Some(OneOff("AGE-SECRET-KEY-1".to_owned())),
        replicas: Vec::new(),
    }
}

fn servers() -> Vec<String> {
    vec!["one".to_owned(), "two".to_owned()]
}

fn catalog(folder: &Path) -> Catalog {
    Catalog::open(&folder.join("catalog.db"), &servers(), Steps::default()).unwrap()
}

fn in_memory() -> Connection {
    let db = Connection::open_in_memory().unwrap();
    db.execute_batch(MIGRATIONS[0]).unwrap();
    db
}

fn change() -> impl Strategy<Value = Change> {
    let state =
        prop_oneof![Just(State::Pending), Just(State::Dropped), Just(State::Stored), Just(State::Deleted)];
    let stored = prop_oneof![Just(vec![]), Just(vec!["one"]), Just(vec!["two"]), Just(vec!["one", "two"])];
    (0_u8..4, state, stored).prop_map(|(number, state, stored)| {
        let Entry { id, metadata, origin, identity, .. } = entry(number, "k", state);
        let stored_on = stored.into_iter().filter(|_| state == State::Stored).map(str::to_owned).collect();
        let identity = identity.filter(|_| state != State::Deleted);
        Change { seq: 0, id, metadata, state, origin, identity, stored_on }
    })
}

/// What a catalog tells after merging these, without the numbers.
fn told_after(changes: &[Change]) -> Vec<Change> {
    let db = in_memory();
    for change in changes {
        if merge_one(&db, change, &servers(), 0).unwrap() {
            rows::touch(&db, &change.id).unwrap();
        }
    }
    let mut told = changes_since(&db, 0, 100).unwrap();
    told.iter_mut().for_each(|change| change.seq = 0);
    told.sort_by_key(|change| change.id);
    told
}

proptest! {
    #[test]
    fn merging_comes_to_the_same_in_any_order_and_any_number_of_times(
        (changes, shuffled) in proptest::collection::vec(change(), 0..12)
            .prop_flat_map(|changes| (Just(changes.clone()), Just(changes).prop_shuffle())),
    ) {
        let once = told_after(&changes);
        prop_assert_eq!(&told_after(&shuffled), &once);
        prop_assert_eq!(&told_after(&[changes.clone(), shuffled].concat()), &once);
        // Two catalogs that tell each other everything agree and then fall silent.
        prop_assert_eq!(&told_after(&once), &once);
    }
}

#[tokio::test]
async fn a_key_is_answered_by_the_smallest_live_id_and_taken_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = catalog(folder.path());
    assert!(matches!(catalog.intend(entry(9, "k", State::Pending)).await.unwrap(), Intended::Recorded(1)));
    // An intent alone does not take the key: its upload may have died.
    assert!(matches!(catalog.intend(entry(5, "k", State::Pending)).await.unwrap(), Intended::Recorded(2)));
    for number in [9, 5] {
        catalog.stored(entry(number, "k", State::Pending), vec!["one".to_owned()], 7).await.unwrap();
    }
    let Intended::Taken(holder) = catalog.intend(entry(1, "k", State::Pending)).await.unwrap() else {
        panic!("the key is taken")
    };
    assert_eq!(holder.id, ObjectId::new([5; 32]));
    assert_eq!((holder.stored_on(), holder.owed_to()), (vec!["one".to_owned()], vec!["two".to_owned()]));
    assert!(catalog.entry(ObjectId::new([9; 32])).await.unwrap().is_some(), "the other id stays readable");
    assert_eq!(catalog.last_change(), 4);
}

#[tokio::test]
async fn deletion_destroys_the_identity_and_owes_both_removals() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = catalog(folder.path());
    let id = ObjectId::new([1; 32]);
    catalog.stored(entry(1, "k", State::Pending), servers(), 7).await.unwrap();
    catalog.delete(id, 8).await.unwrap();
    // Whatever comes later, it stays deleted.
    catalog.stored(entry(1, "k", State::Pending), servers(), 9).await.unwrap();
    catalog.observed(id, "one".to_owned(), ReplicaState::Stored, 9).await.unwrap();
    let deleted = catalog.entry(id).await.unwrap().unwrap();
    assert_eq!((deleted.state, deleted.identity), (State::Deleted, None));
    let counts = catalog.counts().await.unwrap();
    assert_eq!((counts.objects, counts.owed, counts.removals_owed), (0, 0, 2));
    catalog.removed(id, "one".to_owned()).await.unwrap();
    assert_eq!(catalog.counts().await.unwrap().removals_owed, 1);
}

#[tokio::test]
async fn a_copy_that_arrives_after_the_deletion_is_owed_removal_again() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = catalog(folder.path());
    let id = ObjectId::new([1; 32]);
    catalog.stored(entry(1, "k", State::Pending), servers(), 7).await.unwrap();
    catalog.delete(id, 8).await.unwrap();
    catalog.removed(id, "two".to_owned()).await.unwrap();
    catalog.observed(id, "two".to_owned(), ReplicaState::Stored, 9).await.unwrap();
    assert_eq!(catalog.counts().await.unwrap().removals_owed, 2);
}

#[tokio::test]
async fn debts_that_cannot_be_paid_do_not_fill_the_page() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = catalog(folder.path());
    let on = |name: &str| vec![name.to_owned()];
    // Two whose target is away, one that failed before, and the latest one, which can be paid.
    for (number, server) in [(1, "one"), (2, "one"), (3, "two"), (4, "two")] {
        let stored = entry(number, &number.to_string(), State::Pending);
        catalog.stored(stored, on(server), i64::from(number)).await.unwrap();
    }
    catalog.tried(vec![ObjectId::new([3; 32])]).await.unwrap();
    let condition = |server: &str, full| Condition { server: server.to_owned(), up: true, full, low: false };
    let full = vec![condition("one", false), condition("two", true)];
    let page: Vec<_> = catalog.debts(full, 1, 2).await.unwrap().into_iter().map(|debt| debt.id).collect();
    assert_eq!(page, [ObjectId::new([4; 32]), ObjectId::new([3; 32])]);
    for _ in 0..9 {
        catalog.tried(vec![ObjectId::new([3; 32])]).await.unwrap();
    }
    let due = |turn| {
        let (catalog, servers) = (catalog.clone(), vec![condition("one", false), condition("two", false)]);
        async move { catalog.debts(servers, turn, 9).await.unwrap().len() }
    };
    assert_eq!((due(63).await, due(64).await), (3, 4), "what fails again and again is tried more rarely");
    let mut away = vec![condition("one", false), condition("two", false)];
    away[1].up = false;
    assert_eq!(catalog.debts(away, 0, 9).await.unwrap(), [], "their sources are away");
}

#[tokio::test]
async fn what_is_taken_over_is_marked_with_it_and_a_new_catalog_has_no_marks() {
    let folder = tempfile::tempdir().unwrap();
    let first = catalog(folder.path());
    let mark = Mark { life: "peer's".to_owned(), upto: 7 };
    first.merge(Vec::new(), Some(mark.clone()), 0).await.unwrap();
    assert_eq!(first.heard().await.unwrap(), mark);
    first.intend(entry(1, "k", State::Pending)).await.unwrap();
    let told = Mark { life: first.life().to_owned(), upto: 1 };
    assert_eq!(first.shared(told.clone()).await.unwrap(), 1);
    let other = Catalog::open(&folder.path().join("new.db"), &servers(), Steps::default()).unwrap();
    assert_eq!(other.heard().await.unwrap(), Mark::default());
    assert_eq!(other.shared(told).await.unwrap(), 0);
}

#[tokio::test]
async fn what_was_seen_missing_stays_owed_until_it_is_seen_stored() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = catalog(folder.path());
    let id = ObjectId::new([1; 32]);
    let stored = catalog.stored(entry(1, "k", State::Pending), servers(), 7).await.unwrap();
    let Entry { metadata, state, origin, identity, .. } = stored;
    let stale = Change { seq: 1, id, metadata, state, origin, identity, stored_on: servers() };
    catalog.observed(id, "two".to_owned(), ReplicaState::Damaged, 8).await.unwrap();
    catalog.merge(vec![stale], None, 9).await.unwrap();
    assert_eq!(catalog.entry(id).await.unwrap().unwrap().owed_to(), ["two"]);
}

#[tokio::test]
async fn many_writers_share_commits_and_one_failure_stays_alone() {
    let folder = tempfile::tempdir().unwrap();
    let commits = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = Arc::clone(&commits);
    let steps = Steps::watched(move |_| {
        counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        // Gives the others time to queue up, as a disk's flush does.
        std::thread::sleep(Duration::from_millis(2));
    });
    let catalog = Catalog::open(&folder.path().join("c.db"), &servers(), steps).unwrap();
    let writes = (0..200_u8).map(|number| {
        let catalog = catalog.clone();
        tokio::spawn(async move { catalog.intend(entry(number, &number.to_string(), State::Pending)).await })
    });
    let bad = catalog.write(|db| {
        rows::touch(db, &ObjectId::new([250; 32]))?;
        db.execute("INSERT INTO nowhere VALUES (1)", [])
    });
    assert!(matches!(bad.await, Err(CatalogError::Sqlite(_))));
    for write in writes.collect::<Vec<_>>() {
        assert!(matches!(write.await.unwrap().unwrap(), Intended::Recorded(_)));
    }
    assert_eq!(catalog.changes_since(0, 1000).await.unwrap().len(), 200);
    assert_eq!(catalog.counts().await.unwrap().pending, 200);
    let commits = commits.load(std::sync::atomic::Ordering::SeqCst);
    assert!(commits < 150, "{commits} commits for 201 writes");
}

#[tokio::test]
async fn the_peer_is_told_each_objects_present_state_once_and_by_watch() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = catalog(folder.path());
    let mut watch = catalog.watch();
    catalog.intend(entry(1, "a", State::Pending)).await.unwrap();
    catalog.intend(entry(2, "b", State::Pending)).await.unwrap();
    catalog.stored(entry(1, "a", State::Pending), vec!["one".to_owned()], 7).await.unwrap();
    watch.changed().await.unwrap();
    assert_eq!(*watch.borrow_and_update(), 3);
    let told = catalog.changes_since(0, 10).await.unwrap();
    let brief: Vec<_> =
        told.iter().map(|change| (change.seq, change.state, change.stored_on.len())).collect();
    assert_eq!(brief, [(2, State::Pending, 0), (3, State::Stored, 1)]);
    let json = serde_json::to_string(&told).unwrap();
    assert_eq!(serde_json::from_str::<Vec<Change>>(&json).unwrap(), told);
}

#[tokio::test]
async fn a_reader_that_gave_up_does_not_take_its_connection_from_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = catalog(folder.path());
    let (mut releases, mut tasks) = (Vec::new(), Vec::new());
    for _ in 0..READERS {
        let (release, held) = std::sync::mpsc::channel::<()>();
        let (started, start) = oneshot::channel();
        let reader = catalog.clone();
        tasks.push(tokio::spawn(async move {
            let read = reader.read(move |_| {
                let _ = started.send(());
                let _ = held.recv();
                Ok(())
            });
            read.await.is_ok()
        }));
        start.await.unwrap();
        releases.push(release);
    }
    for task in tasks {
        task.abort();
        assert!(task.await.is_err());
    }
    let next = tokio::spawn(async move { catalog.counts().await.map(|counts| counts.objects) });
    tokio::task::yield_now().await;
    drop(releases);
    assert_eq!(next.await.unwrap().unwrap(), 0);
}
