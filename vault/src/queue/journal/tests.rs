//! What the journal alone promises: bodies of any size whole, pages bounded, a write kept as a whole
//! or not at all. What it keeps through kills is told in the histories of the rules.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::{BUSY, IDLE, Journal, PIECE};
use crate::queue::core::{Move, Page, Writes};
use crate::queue::message::{Cause, Destination, Id, Level, Marks, Message, Origin, Placed};

fn open(folder: &tempfile::TempDir) -> Journal {
    Journal::open(&folder.path().join("queues.db")).unwrap().0
}

fn placed(sequence: u64, size: usize) -> Placed {
    let body: Vec<u8> = (0..size).map(|place| u8::try_from(place % 251).unwrap()).collect();
    let message = Message {
        name: format!("ID:host-{sequence}").into(),
        at: 7,
        expiration: 9,
        marks: Marks::new(Some("g"), -1, ["ID:a", "b \"\n"]),
        origin: None,
        body: body.into(),
    };
    Placed { id: Level::new(1, 4).place(sequence), persistent: true, message: Arc::new(message) }
}

fn stores(stores: Vec<Placed>) -> Writes {
    let queue = Destination::queue("orders").unwrap();
    Writes { queues: vec![(1, Some(queue))], stores, ..Writes::default() }
}

fn pieces(journal: &Journal) -> u64 {
    journal.connection.query_row("SELECT count(*) FROM piece", [], |row| row.get(0)).unwrap()
}

#[test]
fn a_body_of_any_size_is_read_back_whole_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(&folder);
    let sizes = [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 4 * PIECE + 77];
    let all: Vec<Placed> = sizes.iter().enumerate().map(|(n, size)| placed(n as u64, *size)).collect();
    journal.write(&stores(all.clone())).unwrap();
    for one in &all {
        assert_eq!(journal.read(one.id).unwrap(), *one);
    }
    assert_eq!(journal.browse(1, Id::default(), 100, usize::MAX).unwrap().placed, all);
    let origin = Some(Origin { queue: "orders".to_owned(), cause: Cause::poison(Some("no stock")) });
    let (last, to) = (all.last().unwrap(), Level::new(0, 4).place(100));
    let (size, marks) = (last.message.size(), last.message.marks.clone());
    let becomes = size + origin.as_ref().unwrap().size();
    let step = Move { from: last.id, to, size, becomes, at: 7, expiration: 0, marks, origin: origin.clone() };
    journal.write(&Writes { moves: vec![step], ..Writes::default() }).unwrap();
    let dead = journal.read(to).unwrap().message;
    assert_eq!((&dead.body, &dead.origin, dead.expiration), (&last.message.body, &origin, 0));
    assert!(journal.read(last.id).is_err(), "it is in one place");
    let deletes = all.iter().map(|one| (one.id, one.message.size())).chain([(to, becomes)]).collect();
    journal.write(&Writes { deletes, ..Writes::default() }).unwrap();
    assert_eq!(
        (journal.browse(1, Id::default(), 100, usize::MAX).unwrap(), pieces(&journal)),
        (Page::default(), 0)
    );
    drop(journal);
    let kept = Journal::open(&folder.path().join("queues.db")).unwrap().1;
    assert_eq!(kept.levels, [], "what is over is counted down");
}

#[test]
fn a_page_ends_at_its_messages_and_bytes_but_has_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(&folder);
    journal.write(&stores((0..10).map(|number| placed(number, 100)).collect())).unwrap();
    let level = Level::new(1, 4);
    let page = |after, messages, bytes| -> Vec<u64> {
        let page = journal.page(level, after, messages, bytes).unwrap();
        page.placed.iter().map(|placed| placed.id.sequence()).collect()
    };
    assert_eq!(page(2, 3, usize::MAX), [3, 4, 5]);
    assert_eq!(page(2, 100, 3 * placed(3, 100).message.size() - 1), [3, 4]);
    assert_eq!(page(2, 100, 0), [3]);
    assert_eq!(page(9, 100, 1_000), [0; 0]);
    assert_eq!(journal.page(Level::new(1, 5), 0, 10, 1_000).unwrap(), Page::default());
}

/// As its rows count, by levels.
fn counted(journal: &Journal) -> Vec<(Level, u64, u64)> {
    let mut levels: BTreeMap<Level, (u64, u64)> = BTreeMap::new();
    for queue in 0..2 {
        for row in journal.rows_of(queue, Id::default(), 100).unwrap() {
            assert_eq!(row.size, journal.read(row.id).unwrap().message.size(), "one number for all");
            let level = levels.entry(row.id.level()).or_default();
            *level = (level.0 + 1, level.1 + row.size as u64);
        }
    }
    levels.into_iter().map(|(level, (rows, bytes))| (level, rows, bytes)).collect()
}

#[test]
fn levels_count_what_their_rows_count_and_those_of_an_older_file_are_counted_anew() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("queues.db");
    let mut journal = open(&folder);
    let mut all: Vec<Placed> = (1..=6).map(|number| placed(number, 1)).collect();
    all.extend([placed(7, 2 * PIECE), placed(8, 0)]);
    journal.write(&stores(all.clone())).unwrap();
    let origin = Some(Origin { queue: "örders".to_owned(), cause: Cause::poison(Some("no stöck")) });
    let (marks, size) = (all[0].message.marks.clone(), all[0].message.size());
    let becomes = size + origin.as_ref().unwrap().size();
    let to = Level::new(0, 9).place(20);
    let moves = vec![Move { from: all[0].id, to, size, becomes, at: 7, expiration: 0, marks, origin }];
    let deletes = vec![(all[1].id, all[1].message.size())];
    journal.write(&Writes { moves, deletes, ..Writes::default() }).unwrap();
    let expected = counted(&journal);
    assert_eq!(expected.iter().map(|(_, rows, _)| rows).sum::<u64>(), 7);
    drop(journal);
    let (journal, kept) = Journal::open(&file).unwrap();
    assert_eq!(kept.levels, expected);
    // As it was before all of a message counted.
    let bodies = "UPDATE level SET bytes = 2 * messages; PRAGMA user_version = 1";
    journal.connection.execute_batch(bodies).unwrap();
    drop(journal);
    for _ in 0..2 {
        assert_eq!(Journal::open(&file).unwrap().1.levels, expected);
    }
}

/// `MESSAGES` sets how many there are; the figures are printed.
#[test]
fn small_messages_take_less_of_the_disk_than_they_count() {
    let many = std::env::var("MESSAGES").ok().and_then(|text| text.parse().ok()).unwrap_or(10_000);
    for (body, queues) in [(1, 1), (1, 16), (200, 1), (200, 16)] {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = open(&folder);
        let one = |number: u64| {
            let queue = u16::try_from(number % queues).unwrap();
            let placed = placed(number, body);
            Placed { id: Level::new(queue, 4).place(number), ..placed }
        };
        let mut counted = 0;
        for first in (0..many).step_by(500) {
            let batch: Vec<Placed> = (first..many.min(first + 500)).map(one).collect();
            counted += batch.iter().map(|placed| placed.message.size() as u64).sum::<u64>();
            journal.write(&stores(batch)).unwrap();
        }
        journal.relieve();
        let length = std::fs::metadata(folder.path().join("queues.db")).unwrap().len();
        eprintln!("{many} messages of {body} bytes in {queues} queues count {counted}, and take {length}");
        assert!(length < counted && counted < 5 * length, "{length} {counted}");
    }
}

#[test]
fn nothing_remains_of_a_write_for_which_the_disk_was_full() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(&folder);
    journal.write(&stores(vec![placed(1, 100)])).unwrap();
    let pages: u64 = journal.connection.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
    let limit = |journal: &Journal, most: u64| {
        let set = |row: &rusqlite::Row<'_>| row.get::<_, u64>(0);
        journal.connection.query_row(&format!("PRAGMA max_page_count = {most}"), [], set).unwrap()
    };
    limit(&journal, pages + 2);
    let deletes = vec![(placed(1, 100).id, 100)];
    let refused = journal.write(&Writes { deletes, ..stores(vec![placed(2, 100_000)]) }).unwrap_err();
    assert!(refused.to_string().ends_with("full; nothing of this write was kept"), "{refused}");
    assert_eq!(journal.browse(1, Id::default(), 9, 900).unwrap().placed, [placed(1, 100)]);
    limit(&journal, 1_000_000);
    journal.write(&stores(vec![placed(2, 100_000)])).unwrap();
    assert_eq!(
        journal.browse(1, Id::default(), 9, usize::MAX).unwrap().placed,
        [placed(1, 100), placed(2, 100_000)]
    );
}

#[test]
fn a_page_passes_over_rows_that_are_damaged_and_names_them() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(&folder);
    let all: Vec<Placed> = (1..=5).map(|number| placed(number, 2 * PIECE)).collect();
    journal.write(&stores(all.clone())).unwrap();
    let [piece, size, name] = [0, 2, 3].map(|at: usize| all[at].id);
    let break_by = |sql: &str, id: Id| journal.connection.execute(sql, [id.number()]).unwrap();
    break_by("DELETE FROM piece WHERE piece = 1 AND place = ?1", piece);
    break_by("UPDATE message SET size = -1 WHERE place = ?1", size);
    break_by("UPDATE message SET name = CAST(X'ff' AS TEXT) WHERE place = ?1", name);
    let page = journal.page(Level::new(1, 4), 0, 10, usize::MAX).unwrap();
    assert_eq!((page.placed, page.damaged), (vec![all[1].clone(), all[4].clone()], vec![piece, size, name]));
    let told = journal.read(piece).unwrap_err().to_string();
    assert!(told.ends_with(&format!("message {} is damaged", piece.number())), "{told}");
    let rows = journal.rows_of(1, Id::default(), 10).unwrap();
    assert_eq!(rows.len(), 5, "operators may remove them");
}

#[test]
fn places_given_in_one_life_are_not_given_in_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("queues.db");
    let lives = [(); 3].map(|()| Journal::open(&file).unwrap().1.next);
    assert!(lives[0] > 0 && lives[0] + 1_000_000 < lives[1] && lives[1] + 1_000_000 < lives[2], "{lives:?}");
    let mut journal = open(&folder);
    let far = placed(1 << 40, 0);
    journal.write(&stores(vec![far.clone()])).unwrap();
    journal.write(&Writes { deletes: vec![(far.id, 0)], ..Writes::default() }).unwrap();
    drop(journal);
    assert_eq!(Journal::open(&file).unwrap().1.next, (1 << 40) + 1, "nor what was written and is over");
}

#[test]
fn what_has_waited_longest_is_found_whatever_its_priority() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(&folder);
    let at = |sequence, priority, at| {
        let message = Message { at, body: Bytes::new(), ..(*placed(0, 0).message).clone() };
        let id = Level::new(1, priority).place(sequence);
        Placed { id, persistent: true, message: Arc::new(message) }
    };
    journal.write(&stores(vec![at(5, 9, 50), at(6, 0, 20), at(7, 0, 10)])).unwrap();
    assert_eq!(journal.oldest(1).unwrap(), Some(20), "the first of each priority is looked at");
    assert_eq!(journal.oldest(2).unwrap(), None);
}

#[test]
fn expired_rows_are_paged_past_those_that_stay() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(&folder);
    journal.write(&stores((0..10).map(|number| placed(number, 1)).collect())).unwrap();
    let (mut after, mut seen) = ((0, Id::default()), Vec::new());
    loop {
        let page = journal.expired(9, after, 3).unwrap();
        let Some(last) = page.last() else { break };
        after = (last.expiration, last.id);
        seen.extend(page.iter().map(|row| row.id.sequence()));
    }
    assert_eq!(seen, (0..10).collect::<Vec<_>>());
}

#[test]
fn an_emptied_file_gives_its_room_back_and_keeps_what_it_holds() {
    let folder = tempfile::tempdir().unwrap();
    let length = || std::fs::metadata(folder.path().join("queues.db")).unwrap().len();
    let mut journal = open(&folder);
    let all: Vec<Placed> = (0..100).map(|number| placed(number, 2 * PIECE)).collect();
    journal.write(&stores(all.clone())).unwrap();
    journal.relieve();
    assert_eq!(journal.shrink(BUSY).unwrap(), 0, "it is full");
    let all_but = |kept: &[usize]| {
        let gone = all.iter().enumerate().filter(|(number, _)| !kept.contains(number));
        let deletes = gone.map(|(_, one)| (one.id, one.message.size())).collect();
        Writes { deletes, ..Writes::default() }
    };
    journal.write(&all_but(&[7, 98, 99])).unwrap();
    assert_eq!(journal.shrink(BUSY).unwrap(), 0, "this is too much to be written anew beside others");
    assert!(length() > 50 << 20);
    assert!(journal.shrink(IDLE).unwrap() > 45 << 20);
    assert!(length() < 2 << 20, "{}", length());
    let left: Vec<Placed> = [7, 98, 99].map(|number: usize| all[number].clone()).into();
    assert_eq!(journal.browse(1, Id::default(), 9, usize::MAX).unwrap().placed, left);
    journal.write(&stores(vec![placed(200, PIECE + 1)])).unwrap();
    assert_eq!(journal.read(placed(200, 0).id).unwrap(), placed(200, PIECE + 1));
}

#[test]
fn what_was_emptied_in_a_life_before_is_given_back_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(&folder);
    let all: Vec<Placed> = (0..100).map(|number| placed(number, 2 * PIECE)).collect();
    let deletes = all[1..].iter().map(|one| (one.id, one.message.size())).collect();
    journal.write(&stores(all.clone())).unwrap();
    journal.write(&Writes { deletes, ..Writes::default() }).unwrap();
    drop(journal);
    let length = || std::fs::metadata(folder.path().join("queues.db")).unwrap().len();
    assert!(length() > 50 << 20);
    let journal = open(&folder);
    assert!(length() < 1 << 20, "{}", length());
    assert_eq!(journal.read(all[0].id).unwrap(), all[0]);
}
