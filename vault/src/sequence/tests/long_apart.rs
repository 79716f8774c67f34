//! What happens when two vaults meet after one of them has gone on alone for very long.

use super::*;
use crate::sequence::entry::{Act, BATCH, Draft, Entry};
use crate::sequence::protocol::Write;

/// A million where `tests/run full` wants it; the gate has less time.
fn many() -> u64 {
    let full = std::env::var_os("STORIES").is_some_and(|extent| extent == "full");
    if full { 1_000_000 } else { 10_000 }
}

/// Enters so many versions of records, as an owner does that goes on alone.
fn write_alone(file: &std::path::Path, count: u64) {
    let mut journal = Journal::open(file, 1).unwrap();
    let (memory, mut tail) = (journal.memory().unwrap(), journal.tail().unwrap());
    assert!(memory.alone && memory.owns);
    let mut number = 0;
    while number < count {
        let entry = |_| {
            number += 1;
            let (owner, series, key) = ("erp".to_owned(), "record".to_owned(), format!("lots/{number}"));
            let act = Act::Put(format!(r#"{{"value":"{number}","by":"www1","key":"k"}}"#));
            let draft = Draft { owner, series, number: 1, key, act, at: 0, carried: None };
            let entry = Entry::append(tail, memory.epoch, 7, draft);
            tail = entry.tail();
            entry
        };
        let entries: Vec<Entry> = (0..BATCH).map(entry).collect();
        journal.write(&Write { cut: None, entries, rows: Vec::new(), memory }).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn vaults_that_meet_after_very_many_entries_come_together_at_the_first_try() {
    let two = two();
    two.connect().await;
    define(&two.rooms[0], Definition { range: 20, ..Definition::default() }).await.unwrap();
    set_aside(&two.rooms[0]).await;
    two.cut().await;
    assert_eq!(two.rooms[0].take_over(true).await, Ok(2));
    let folder = two.stop().await;
    write_alone(&folder.path().join("a.db"), many());
    let began = Instant::now();
    let two = two_in(folder);
    two.connect().await;
    eprintln!("together after {:?}, {} entries later", began.elapsed(), many());
    assert_eq!(two.hung_up.load(Ordering::SeqCst), 0, "it took more than one connection");
    let [a, b] = &two.rooms;
    assert!(b.status().entries > many());
    let done = b.reserve(invoices(), "k".to_owned(), Some(a.life())).await.unwrap();
    assert_eq!((done.number.number, done.fresh), (1, true));
}
