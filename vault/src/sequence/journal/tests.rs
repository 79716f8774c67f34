//! What the journal promises whoever writes it: all of a write or nothing, found again after a start.

use super::super::entry::Draft;
use super::*;
use crate::sqlite::small_disk::SmallDisk;

fn chain(acts: &[(u64, &str, Act)]) -> Vec<Entry> {
    let mut tail = Tail::default();
    acts.iter()
        .map(|(number, key, act)| {
            let draft = Draft {
                owner: "erp".to_owned(),
                series: "INV".to_owned(),
                number: *number,
                key: (*key).to_owned(),
                act: act.clone(),
                at: -1,
                carried: None,
            };
            let entry = Entry::append(tail, 1, u128::MAX, draft);
            tail = entry.tail();
            entry
        })
        .collect()
}

fn whole(entries: &[Entry], memory: Memory) -> Write {
    Write { cut: None, entries: entries.to_vec(), rows: Vec::new(), memory }
}

fn name() -> SeriesName {
    SeriesName { owner: "erp".to_owned(), series: "INV".to_owned() }
}

#[test]
fn what_was_written_is_there_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("journal.db");
    let entries = chain(&[
        (1, "a", Act::Reserve(None)),
        (2, "b", Act::Reserve(None)),
        (1, "a", Act::Confirm("h".to_owned())),
    ]);
    let memory = Memory {
        journal: 5,
        epoch: 3,
        owns: true,
        alone: true,
        whole: true,
        solo: entries[0].tail(),
        peer_journal: Some(u128::MAX),
        peer_durable: 2,
        settled: 1,
    };
    Journal::open(&file, 5).unwrap().write(&whole(&entries, memory)).unwrap();
    let journal = Journal::open(&file, 6).unwrap();
    assert_eq!(journal.memory().unwrap(), memory);
    assert_eq!(journal.entries(0).unwrap(), entries);
    assert_eq!(journal.tail().unwrap(), entries[2].tail());
    let first = journal.by_key(&name(), "a").unwrap().unwrap();
    assert_eq!((first.number.number, first.number.state, first.index), (1, NumberState::Confirmed, 3));
    assert_eq!(
        journal.context(&name(), &Wish::Reserve { key: "c".to_owned(), ticket: None }).unwrap().last,
        2
    );
    assert_eq!(journal.numbers(&name(), Which::All, 1, 10).unwrap().len(), 1);
}

#[test]
fn a_second_reserve_of_a_number_or_key_is_refused_whole() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(&folder.path().join("journal.db"), 5).unwrap();
    let memory = journal.memory().unwrap();
    for second in [(1, "b"), (2, "a")] {
        let entries = chain(&[(1, "a", Act::Reserve(None)), (second.0, second.1, Act::Reserve(None))]);
        journal.write(&whole(&entries, memory)).unwrap_err();
        assert_eq!(journal.tail().unwrap(), Tail::default());
    }
}

#[test]
fn nothing_remains_of_a_write_for_which_the_disk_was_full() {
    use super::super::definition::Definition;
    use super::super::entry::{Birth, Grant};
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("journal.db");
    let mut journal = Journal::open(&file, 5).unwrap();
    let memory = journal.memory().unwrap();
    let available = Definition { range: 9, ..Definition::default() };
    let entries = chain(&[
        (0, "", Act::Define(available)),
        (1, "a", Act::Reserve(None)),
        (20, "a", Act::Grant(Grant { to: 28, life: 7 })),
        (0, "a", Act::Life(Birth { life: 7, former: None, proven: false })),
        (2, &"long".repeat(1 << 16), Act::Reserve(None)),
        (20, "a", Act::Close(Grant { to: 28, life: 7 })),
        (0, "", Act::Define(Definition::default())),
    ]);
    let kept = entries[3].tail();
    let cut = Write { cut: Some(kept), ..whole(&entries[4..5], memory) };
    for (first, failing) in [
        (&entries[..1], whole(&entries[1..], memory)),
        (&entries[1..4], whole(&entries[4..], memory)),
        (&entries[4..4], cut),
    ] {
        journal.write(&whole(first, memory)).unwrap();
        let before = journal.standing().clone();
        let pages: i64 = journal.connection.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
        journal.connection.pragma_update(None, "max_page_count", pages + 8).unwrap();
        let told = journal.write(&failing).unwrap_err().to_string();
        assert!(told.ends_with("database or disk is full; nothing of this write was kept"), "{told}");
        assert_eq!(journal.standing(), &before);
        assert_eq!(Journal::open(&file, 5).unwrap().standing(), &before);
        journal.connection.pragma_update(None, "max_page_count", 1 << 20).unwrap();
    }
    journal.write(&whole(&entries[4..], memory)).unwrap();
    assert_ne!(journal.standing(), &Standing::default());
    assert_eq!(Journal::open(&file, 5).unwrap().standing(), journal.standing());
}

#[test]
fn a_damaged_last_entry_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("journal.db");
    let mut journal = Journal::open(&file, 5).unwrap();
    let memory = journal.memory().unwrap();
    journal.write(&whole(&chain(&[(1, "a", Act::Reserve(None))]), memory)).unwrap();
    journal.connection.execute("UPDATE entry SET key = 'z'", []).unwrap();
    drop(journal);
    let told = Journal::open(&file, 5).unwrap_err().to_string();
    assert!(told.ends_with("entry 1 is damaged; stop this vault and restore its state folder"), "{told}");
}

#[test]
fn a_life_that_begins_on_a_full_disk_stands_in_the_journal_with_its_first_write_and_not_before() {
    let disk = SmallDisk::new("size=1m");
    let file = disk.path().join("journal.db");
    let mut journal = Journal::open(&file, 5).unwrap();
    assert!(journal.begin(7).unwrap().is_none() && journal.has_begun());
    disk.fill();
    // What the log's last page still takes is taken first.
    let full = (8..).find(|life| journal.begin(*life).unwrap().is_some()).unwrap();
    let before = journal.used_by().unwrap();
    assert!(!journal.has_begun() && before == Some(full - 1));
    let memory = journal.memory().unwrap();
    let write = |memory| Write { cut: None, entries: Vec::new(), rows: Vec::new(), memory };
    journal.write(&write(Memory { epoch: 2, ..memory })).unwrap_err();
    assert_eq!((journal.used_by().unwrap(), journal.memory().unwrap()), (before, memory));
    disk.make_room();
    assert_eq!(journal.used_by().unwrap(), before);
    journal.write(&write(Memory { epoch: 2, ..memory })).unwrap();
    assert!(journal.has_begun());
    assert_eq!((journal.used_by().unwrap(), journal.memory().unwrap().epoch), (Some(full), 2));
}
