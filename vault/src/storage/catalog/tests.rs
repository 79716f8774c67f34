//! Promises of the catalog: merging, group commit, keys, debts.

use std::collections::BTreeMap;

use proptest::prelude::{Just, Strategy, prop_oneof};
use proptest::{prop_assert_eq, proptest};

use super::*;
use crate::storage::object::{Metadata, OneOff};
use crate::storage::witness::Witness;

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
    MIGRATIONS.iter().for_each(|migration| db.execute_batch(migration).unwrap());
    db
}

fn change() -> impl Strategy<Value = Change> {
    // Every state with a revision that it may have.
    let state = prop_oneof![
        Just((State::Pending, 0)),
        Just((State::Dropped, 0)),
        (0_u32..3).prop_map(|round| (State::Stored, 2 * round)),
        (0_u32..3).prop_map(|round| (State::Deleted, 2 * round + 1)),
        Just((State::Purged, 0)),
    ];
    let stored = prop_oneof![Just(vec![]), Just(vec!["one"]), Just(vec!["two"]), Just(vec!["one", "two"])];
    (0_u8..4, state, stored).prop_map(|(number, (state, revision), stored)| {
        let Entry { id, metadata, origin, identity, .. } = entry(number, "k", state);
        let known = matches!(state, State::Stored | State::Deleted);
        let stored_on = stored.into_iter().filter(|_| known).map(str::to_owned).collect();
        let identity = identity.filter(|_| state != State::Purged);
        let seals = BTreeMap::new();
        let change = Change { seq: 0, id, metadata, state, origin, revision, identity, stored_on, seals };
        assert!(change.is_sound());
        change
    })
}

/// What an operator or the clock does to an object of one of two catalogs, or news between them.
#[derive(Debug, Clone)]
enum Act {
    Delete(u8),
    Undelete(u8),
    Purge(u8),
    /// The peer is told what stands now; a copy of it may come again at any later time.
    Tell,
    Repeat(usize),
}

fn act() -> impl Strategy<Value = (bool, Act)> {
    let act = prop_oneof![
        (0_u8..3).prop_map(Act::Delete),
        (0_u8..3).prop_map(Act::Undelete),
        (0_u8..3).prop_map(Act::Purge),
        Just(Act::Tell),
        (0_usize..20).prop_map(Act::Repeat),
    ];
    (proptest::bool::ANY, act)
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

proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(48))]

    #[test]
    fn two_vaults_that_delete_undelete_and_purge_apart_end_in_the_same_state(
        acts in proptest::collection::vec(act(), 0..24),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
            let both = [catalog(folders[0].path()), catalog(folders[1].path())];
            for number in 0..3_u8 {
                both[0].stored(entry(number, &number.to_string(), State::Pending), servers(), 1).await.unwrap();
            }
            let mut old: Vec<Vec<Change>> = Vec::new();
            let mut purged = std::collections::HashSet::new();
            for (who, act) in acts {
                let (own, peer) = (&both[usize::from(who)], &both[usize::from(!who)]);
                match act {
                    Act::Delete(number) => {
                        own.delete(ObjectId::new([number; 32]), 5).await.unwrap();
                    }
                    Act::Undelete(number) => {
                        own.undelete(ObjectId::new([number; 32]), Witness::default(), 6, 100).await.unwrap();
                    }
                    Act::Purge(number) => {
                        let id = ObjectId::new([number; 32]);
                        if own.purge(vec![id], 7).await.unwrap() > 0 {
                            purged.insert(id);
                        }
                    }
                    Act::Tell => {
                        let told = own.changes_since(0, 100).await.unwrap();
                        old.push(told.clone());
                        peer.merge(told, None, String::new(), 8).await.unwrap();
                    }
                    Act::Repeat(which) => {
                        if let Some(told) = old.get(which) {
                            own.merge(told.clone(), None, String::new(), 9).await.unwrap();
                        }
                    }
                }
            }
            for round in 0..2 {
                for (own, peer) in [(&both[0], &both[1]), (&both[1], &both[0])] {
                    let before = peer.last_change();
                    peer.merge(own.changes_since(0, 100).await.unwrap(), None, String::new(), 10).await.unwrap();
                    assert!(round == 0 || peer.last_change() == before, "they fall silent");
                }
            }
            let mut told = Vec::new();
            for catalog in &both {
                let mut changes = catalog.changes_since(0, 100).await.unwrap();
                changes.iter_mut().for_each(|change| change.seq = 0);
                changes.sort_by_key(|change| change.id);
                told.push(changes);
            }
            assert_eq!(told[0], told[1]);
            for change in &told[0] {
                assert_eq!(change.state == State::Purged, purged.contains(&change.id), "purged is for ever");
            }
        });
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
async fn a_deleted_object_keeps_its_key_and_replicas_until_it_is_purged() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = catalog(folder.path());
    let id = ObjectId::new([1; 32]);
    catalog.stored(entry(1, "k", State::Pending), servers(), 7).await.unwrap();
    catalog.delete(id, 8).await.unwrap();
    // What is seen of it meanwhile does not bring it back.
    catalog.stored(entry(1, "k", State::Pending), servers(), 9).await.unwrap();
    catalog.observed(id, "one".to_owned(), ReplicaState::Stored, 9).await.unwrap();
    let deleted = catalog.entry(id).await.unwrap().unwrap();
    assert_eq!((deleted.state, deleted.identity.is_some()), (State::Deleted, true));
    let counts = catalog.counts().await.unwrap();
    assert_eq!((counts.objects, counts.deleted, counts.deleted_since), (0, 1, Some(8)));
    assert_eq!((counts.owed, counts.removals_owed), (0, 0));

    assert_eq!(
        catalog.undelete(id, Witness::default(), 18, 10).await.unwrap(),
        deletion::Undeletion::TooLate
    );
    assert!(matches!(
        catalog.undelete(id, Witness::default(), 17, 10).await.unwrap(),
        deletion::Undeletion::Done(_)
    ));
    assert_eq!(
        catalog.undelete(id, Witness::default(), 17, 10).await.unwrap(),
        deletion::Undeletion::NotDeleted
    );
    assert_eq!(catalog.purge(vec![id], 19).await.unwrap(), 0, "what was taken back is not purged");
    let back = catalog.entry(id).await.unwrap().unwrap();
    assert_eq!((back.state, back.stored_on()), (State::Stored, servers()));

    catalog.delete(id, 20).await.unwrap();
    assert_eq!(catalog.due(20, 9).await.unwrap(), []);
    assert_eq!(catalog.due(21, 9).await.unwrap()[0].id, id);
    assert_eq!(catalog.purge(vec![id], 30).await.unwrap(), 1);
    let purged = catalog.entry(id).await.unwrap().unwrap();
    assert_eq!((purged.state, purged.identity, purged.metadata.label.as_str()), (State::Purged, None, ""));
    assert_eq!(catalog.counts().await.unwrap().removals_owed, 2);
    assert_eq!(
        catalog.undelete(id, Witness::default(), 30, 1000).await.unwrap(),
        deletion::Undeletion::Purged
    );
    catalog.removed(id, "one".to_owned()).await.unwrap();
    assert_eq!(catalog.counts().await.unwrap().removals_owed, 1);
}

#[tokio::test]
async fn a_deletion_told_by_an_earlier_program_is_taken_for_a_purge() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = catalog(folder.path());
    let id = ObjectId::new([1; 32]);
    catalog.stored(entry(1, "k", State::Pending), servers(), 7).await.unwrap();
    let mut told = serde_json::to_value(&catalog.changes_since(0, 9).await.unwrap()[0]).unwrap();
    let fields = told.as_object_mut().unwrap();
    fields.remove("revision");
    fields.insert("state".to_owned(), "deleted".into());
    fields.insert("identity".to_owned(), serde_json::Value::Null);
    catalog.merge(vec![serde_json::from_value(told).unwrap()], None, String::new(), 9).await.unwrap();
    assert_eq!(catalog.entry(id).await.unwrap().unwrap().state, State::Purged);
}

#[tokio::test]
async fn a_copy_that_arrives_after_the_purge_is_owed_removal_again() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = catalog(folder.path());
    let id = ObjectId::new([1; 32]);
    catalog.stored(entry(1, "k", State::Pending), servers(), 7).await.unwrap();
    catalog.delete(id, 8).await.unwrap();
    catalog.purge(vec![id], 9).await.unwrap();
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
    first.merge(Vec::new(), Some(mark.clone()), String::new(), 0).await.unwrap();
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
    let stale = Change {
        seq: 1,
        id,
        metadata,
        state,
        origin,
        revision: 0,
        identity,
        stored_on: servers(),
        seals: BTreeMap::new(),
    };
    catalog.observed(id, "two".to_owned(), ReplicaState::Damaged, 8).await.unwrap();
    catalog.merge(vec![stale], None, String::new(), 9).await.unwrap();
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
