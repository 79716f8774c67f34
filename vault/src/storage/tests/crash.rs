//! The process dies at every step of an upload in turn. After the restart, what was
//! acknowledged is readable, what is readable is whole, and the retry of the key acts once.

use super::*;

/// Dies at the n-th step: that step panics, and so does every later one, for a dead process
/// takes no further step.
pub(super) fn dying_at(fatal: usize) -> (Steps, Arc<AtomicUsize>, Arc<AtomicBool>) {
    let (seen, dead) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let (count, died) = (Arc::clone(&seen), Arc::clone(&dead));
    let steps = Steps::watched(move |_: &Step| {
        if count.fetch_add(1, Ordering::SeqCst) >= fatal {
            died.store(true, Ordering::SeqCst);
        }
        assert!(!died.load(Ordering::SeqCst), "dies here");
    });
    (steps, seen, dead)
}

/// Nothing that compresses: a replica takes several writes, so that one can be torn.
pub(super) fn noise() -> Vec<u8> {
    let mut state = 1_u64;
    let next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(300_000).collect()
}

/// Runs two uploads in a life that ends at step `fatal`; true if it ended before they did.
async fn life(place: &Place, fatal: usize, acknowledged: &mut Vec<ObjectId>) -> bool {
    let (steps, _, dead) = dying_at(fatal);
    let Ok(storage) = Storage::open_watched(place.settings("vault-a"), "vault-a", steps).await else {
        return true;
    };
    for key in ["first", "second"] {
        let text = noise();
        // In a task of its own: the death must not be this test's.
        let (storage, key) = (storage.clone(), key.to_owned());
        let upload = tokio::spawn(async move { put(&storage, &key, &text).await });
        if let Ok(Ok(stored)) = upload.await {
            acknowledged.push(stored.entry.id);
        }
    }
    dead.load(Ordering::SeqCst)
}

async fn check(place: &Place, acknowledged: &[ObjectId], fatal: usize) {
    let storage = place.open("vault-a").await;
    collected(&storage).await;
    assert_eq!(
        place.rest(),
        Vec::<std::path::PathBuf>::new(),
        "step {fatal}: leftovers are collected at start"
    );
    for id in acknowledged {
        assert!(read(&storage, id, None).await.unwrap() == noise(), "step {fatal}: {id} was acknowledged");
    }
    // Whatever lies under an object's name is whole, acknowledged or not.
    for server in ["one", "two"] {
        for file in place.replicas(server) {
            let id: ObjectId = file.file_name().unwrap().to_str().unwrap().parse().unwrap();
            envelope::verify(std::fs::File::open(&file).unwrap(), &id).unwrap();
            assert!(read(&storage, &id, None).await.unwrap() == noise(), "step {fatal}");
        }
    }
    storage.repair_turn().await.unwrap();
    storage.repair_turn().await.unwrap();
    for key in ["first", "second"] {
        let retried = put(&storage, key, &noise()).await.unwrap();
        assert!(read(&storage, &retried.entry.id, None).await.unwrap() == noise());
    }
    let listed = storage.list(Wanted::default(), None, 100).await.unwrap();
    assert_eq!(listed.len(), 2, "step {fatal}: each key acted once");
    assert!(acknowledged.iter().all(|id| listed.iter().any(|listed| listed.entry.id == *id)), "step {fatal}");
    let status = storage.status().await.unwrap();
    assert_eq!((status.pending, status.owed), (0, 0), "step {fatal}: nothing stays open");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_any_step_loses_nothing_acknowledged_and_shows_nothing_half() {
    let mut fatal = 0;
    loop {
        let place = Place::new();
        let mut acknowledged = Vec::new();
        let died = life(&place, fatal, &mut acknowledged).await;
        check(&place, &acknowledged, fatal).await;
        if !died {
            assert_eq!(acknowledged.len(), 2);
            break;
        }
        fatal += 1;
    }
    assert!(fatal > 40, "{fatal} steps are too few to be all of them");
}
