//! Records in two rooms of one process, joined by a link that can be cut.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::*;
use crate::sequence::book::SeriesName;
use crate::sequence::protocol::{Memory, Write};
use crate::sequence::record::lease::{Claim, Holder};
use crate::sequence::record::{Content, Expect, Kind, Refused, Written};
use crate::sequence::tests::two;
use crate::sequence::{Forward, HangUp, Settings, Tell, Unheard};

fn lot(name: &str) -> RecordName {
    RecordName { owner: "erp".to_owned(), kind: Kind::Record, name: name.to_owned() }
}

fn put(value: &str, key: &str, expect: Expect) -> Wish {
    let content = Content { value: value.to_owned(), json: false };
    Wish::Put { written: Written { content, by: "www1".to_owned(), key: key.to_owned() }, expect }
}

fn shown(seen: Seen<Option<Held>>) -> (Option<(u64, String)>, bool) {
    let found = seen.found.and_then(|held| Some((held.version, held.written()?.content.value)));
    (found, seen.stale)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_vault_writes_the_other_reads_at_once_and_apart_only_what_may_be_old() {
    let two = two();
    let [a, b] = &two.rooms;
    let away = a.record(lot("x"), false).await.unwrap_err();
    assert!(matches!(away, RecordError::Apart(_)), "{away:?}");
    two.connect().await;
    assert_eq!(shown(b.record(lot("x"), false).await.unwrap()), (None, false));
    let done = b.write_record(lot("x"), put("10", "k1", Expect::Absent)).await.unwrap();
    assert_eq!((done.version, done.fresh), (1, true));
    for room in [a, b] {
        assert_eq!(shown(room.record(lot("x"), false).await.unwrap()), (Some((1, "10".to_owned())), false));
    }
    let again = a.write_record(lot("x"), put("10", "k1", Expect::Absent)).await.unwrap();
    assert_eq!((again.version, again.fresh), (1, false));
    let late = b.write_record(lot("x"), put("11", "k2", Expect::Absent)).await.unwrap_err();
    assert_eq!(late, RecordError::Refused(Refused::Differs { present: Some(1) }));
    two.cut().await;
    for room in [a, b] {
        let apart = room.record(lot("x"), false).await.unwrap_err();
        assert!(matches!(apart, RecordError::Apart(_)), "{apart:?}");
        let apart = room.write_record(lot("x"), put("12", "k3", Expect::Any)).await.unwrap_err();
        assert!(matches!(apart, RecordError::Apart(_)), "{apart:?}");
        assert_eq!(shown(room.record(lot("x"), true).await.unwrap()), (Some((1, "10".to_owned())), true));
    }
    two.connect().await;
    assert_eq!(b.write_record(lot("x"), put("12", "k3", Expect::Any)).await.unwrap().version, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_cannot_ask_the_other_vault_answers_no_read() {
    let two = two();
    two.connect().await;
    let [a, _] = &two.rooms;
    a.write_record(lot("x"), put("10", "k1", Expect::Absent)).await.unwrap();
    // The other vault hears nothing any more, and the owner does not know it yet.
    two.mute();
    let unsure = a.record(lot("x"), false).await.unwrap_err();
    assert_eq!(unsure, RecordError::Apart("the other vault does not answer".to_owned()));
    let refused = a.write_record(lot("x"), put("11", "k2", Expect::Absent)).await.unwrap_err();
    assert!(matches!(refused, RecordError::Apart(_)), "a refusal is a read too: {refused:?}");
}

/// 32 bidders at both vaults. Each version has one winner; what anybody reads never lies before
/// what was answered before the read began.
#[tokio::test(flavor = "multi_thread")]
async fn of_32_bidders_one_wins_each_version_and_no_read_goes_back() {
    let two = two();
    two.connect().await;
    let answered = Arc::new(AtomicU64::new(0));
    two.rooms[0].write_record(lot("x"), put("start", "start", Expect::Absent)).await.unwrap();
    let bidders: Vec<_> = (0..32)
        .map(|bidder| {
            let (room, answered) = (two.rooms[bidder % 2].clone(), Arc::clone(&answered));
            tokio::spawn(async move {
                let mut won = Vec::new();
                for bid in 0..20 {
                    let floor = answered.load(Ordering::SeqCst);
                    let (found, _) = shown(room.record(lot("x"), false).await.unwrap());
                    let (seen, _) = found.unwrap();
                    assert!(seen >= floor, "read {seen} after {floor} had been answered");
                    answered.fetch_max(seen, Ordering::SeqCst);
                    let key = format!("{bidder}-{bid}");
                    match room.write_record(lot("x"), put(&key, &key, Expect::Version(seen))).await {
                        Ok(done) => {
                            assert_eq!((done.version, done.fresh), (seen + 1, true));
                            answered.fetch_max(done.version, Ordering::SeqCst);
                            won.push((done.version, key));
                        }
                        Err(RecordError::Refused(Refused::Differs { present: Some(present) })) => {
                            assert!(present > seen);
                        }
                        Err(error) => panic!("{error:?}"),
                    }
                }
                won
            })
        })
        .collect();
    let mut won = vec![(1, "start".to_owned())];
    for bidder in bidders {
        won.extend(bidder.await.unwrap());
    }
    won.sort();
    let (versions, next) = two.rooms[1].record_versions(lot("x"), 0, 1000, false).await.unwrap().found;
    let stands: Vec<_> =
        versions.iter().map(|held| (held.version, held.written().unwrap().content.value)).collect();
    assert_eq!((won, None), (stands, next));
    assert!(versions.len() > 20, "only {} versions", versions.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_survives_a_session_and_is_told_to_no_second_holder() {
    let two = two();
    two.connect().await;
    let [a, b] = &two.rooms;
    let name = || RecordName { kind: Kind::Lease, ..lot("nightly") };
    let holder = |token: &str| Holder { by: "www1".to_owned(), token: token.to_owned() };
    let acquire = |token| Wish::Lease(Claim::Acquire { holder: holder(token), ttl: 5 });
    let lease = b.write_record(name(), acquire("one")).await.unwrap().lease.unwrap();
    assert_eq!(lease.epoch, 1);
    two.cut().await;
    two.connect().await;
    let refused = a.write_record(name(), acquire("two")).await.unwrap_err();
    assert!(matches!(refused, RecordError::Refused(Refused::Held { epoch: 1, .. })), "{refused:?}");
    let renew = Wish::Lease(Claim::Renew { holder: holder("one"), epoch: 1 });
    let renewed = b.write_record(name(), renew).await.unwrap();
    assert!(!renewed.fresh && renewed.lease.unwrap().left == 5000);
    tokio::time::sleep(Duration::from_millis(5100)).await;
    let next = a.write_record(name(), acquire("two")).await.unwrap().lease.unwrap();
    assert_eq!(next.epoch, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_goes_on_alone_by_an_operators_word_writes_and_reads_records() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.db");
    let mut journal = Journal::open(&file, 7).unwrap();
    let memory = Memory { epoch: 2, owns: true, alone: true, ..journal.memory().unwrap() };
    let told = Write { cut: None, entries: Vec::new(), rows: Vec::new(), memory };
    journal.write(&told).unwrap();
    drop(journal);
    let settings = Settings {
        journal: file,
        own: "a".to_owned(),
        peer: "b".to_owned(),
        owner: "b".to_owned(),
        run: crate::sequence::run_folder::run_folder(None, std::path::Path::new("/proc/control.sock")),
        database: None,
    };
    let nobody: Forward = Arc::new(|_| Box::pin(async { Err(Unheard::Away) }));
    let registry = prometheus::Registry::new();
    let (tell, hang_up): (Tell, HangUp) = (Box::new(|_| false), Box::new(|| {}));
    let shutdown = shared::shutdown::Shutdown::new();
    let (room, _events) =
        Sequence::start(&settings, &registry, tell, hang_up, nobody, shutdown.clone()).unwrap();
    assert_eq!(room.write_record(lot("x"), put("10", "k1", Expect::Absent)).await.unwrap().version, 1);
    assert_eq!(shown(room.record(lot("x"), false).await.unwrap()), (Some((1, "10".to_owned())), false));
    let series = SeriesName { owner: "erp".to_owned(), series: "INV".to_owned() };
    assert!(room.reserve(series, "k".to_owned(), None).await.is_err(), "numbers wait for a second vault");
    shutdown.cancel();
}
