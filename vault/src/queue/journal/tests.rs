//! What the journal alone promises: bodies of any size whole, pages bounded, a write kept as a whole
//! or not at all. What it keeps through kills is told in the histories of the rules.

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
    let size = last.message.body.len();
    let marks = last.message.marks.clone();
    let step = Move { from: last.id, to, size, at: 7, expiration: 0, marks, origin: origin.clone() };
    journal.write(&Writes { moves: vec![step], ..Writes::default() }).unwrap();
    let dead = journal.read(to).unwrap().message;
    assert_eq!((&dead.body, &dead.origin, dead.expiration), (&last.message.body, &origin, 0));
    assert!(journal.read(last.id).is_err(), "it is in one place");
    let deletes = all.iter().map(|one| (one.id, one.message.body.len())).chain([(to, size)]).collect();
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
    assert_eq!(page(2, 100, 299), [3, 4]);
    assert_eq!(page(2, 100, 0), [3]);
    assert_eq!(page(9, 100, 1_000), [0; 0]);
    assert_eq!(journal.page(Level::new(1, 5), 0, 10, 1_000).unwrap(), Page::default());
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
        let deletes = gone.map(|(_, one)| (one.id, one.message.body.len())).collect();
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
    let deletes = all[1..].iter().map(|one| (one.id, one.message.body.len())).collect();
    journal.write(&stores(all.clone())).unwrap();
    journal.write(&Writes { deletes, ..Writes::default() }).unwrap();
    drop(journal);
    let length = || std::fs::metadata(folder.path().join("queues.db")).unwrap().len();
    assert!(length() > 50 << 20);
    let journal = open(&folder);
    assert!(length() < 1 << 20, "{}", length());
    assert_eq!(journal.read(all[0].id).unwrap(), all[0]);
}
