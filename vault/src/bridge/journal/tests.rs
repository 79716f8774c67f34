//! The journal on a real disk: what it holds after each write, beside a plain model; a process that
//! is killed; a disk that is full.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;
use crate::openwire::{Destination, MessageKind, ProducerId, Text};

const BIRTH: Birth = [7; 16];

fn message(number: i64) -> Arc<Message> {
    let producer = ProducerId { connection: Text::shortened("p"), value: 1, session: 1 };
    let queue = Destination::queue(Text::shortened("orders"));
    let mut message = Message::new(MessageKind::Text, producer.message(number), queue);
    message.content = Some(vec![b'x'; 100].into());
    Arc::new(message)
}

fn numbers(rows: &[Row<Arc<Message>>]) -> Vec<i64> {
    rows.iter().map(|row| row.message.message_id.producer_sequence).collect()
}

const ENDS: &str = "erp -> dmz";

fn file(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("bridge.db")
}

fn open(folder: &tempfile::TempDir) -> Journal {
    Journal::open(&file(folder), BIRTH, ENDS).unwrap()
}

fn load(journal: &mut Journal, after: u64, most: usize, bytes: u64) -> Vec<Row<Arc<Message>>> {
    journal.load(after, most, bytes, &[], 0).unwrap().0
}

fn counts(journal: &Journal) -> Counts {
    journal.figures().unwrap().counts
}

#[test]
fn what_has_gone_on_leaves_room_in_the_file_for_what_comes() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(&folder);
    let before = journal.figures().unwrap().free;
    let fill = |number| Write::Batch(number, (0..2000).map(message).collect());
    journal.write(vec![fill(1)], 7).unwrap();
    assert_eq!(journal.figures().unwrap().free, before);
    journal.write(vec![Write::Drop(1)], 7).unwrap();
    let freed = journal.figures().unwrap().free;
    assert!(freed > 2000 * 100, "{freed}");
    journal.write(vec![fill(2)], 7).unwrap();
    assert!(journal.figures().unwrap().free < freed / 10);
}

#[tokio::test]
async fn the_file_of_an_emptied_journal_shrinks_while_nothing_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let (errands, mut told) = open(&folder).run().unwrap();
    let large = |number| {
        let content = vec![u8::try_from(number).unwrap(); 1 << 20];
        Arc::new(Message { content: Some(content.into()), ..(*message(number)).clone() })
    };
    let length = || std::fs::metadata(file(&folder)).unwrap().len();
    let ask = async |write| {
        errands.send(Errand::Write(write, 7)).await.unwrap();
    };
    ask(Write::Batch(1, (0..60).map(large).collect())).await;
    ask(Write::Ours { batch: 1, afresh: false }).await;
    ask(Write::Batch(2, vec![message(60)])).await;
    for _ in 0..3 {
        told.recv().await.unwrap();
    }
    assert!(length() > 60 << 20, "{}", length());
    ask(Write::Remove { forwarded: (1..=60).collect(), expired: vec![] }).await;
    told.recv().await.unwrap();
    let shrinks = async {
        while length() > MOST_FREE + (2 << 20) {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), shrinks).await.unwrap();
    // What is not ours yet has kept its place.
    ask(Write::Ours { batch: 2, afresh: false }).await;
    errands.send(Errand::Load { after: 0, rows: 9, bytes: u64::MAX, but: vec![], now: 0 }).await.unwrap();
    told.recv().await.unwrap();
    assert!(matches!(told.recv().await, Some(Told::Loaded(rows)) if numbers(&rows) == [60]));
}

#[test]
fn a_batch_keeps_the_source_that_it_was_written_under_and_the_journal_the_target() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(&folder);
    let batch = |number| Write::Batch(number, vec![message(0)]);
    let (left, right) = ([1; 16], [2; 16]);
    journal.write(vec![batch(1), Write::From(left), batch(2)], 7).unwrap();
    journal.write(vec![Write::From(right), batch(3), Write::To(left), Write::To(right)], 7).unwrap();
    drop(journal);
    let kept = open(&folder).kept(0).unwrap();
    assert_eq!((kept.source, kept.target, kept.last_sequence), (Some(right), Some(right), 3));
    let at: Vec<_> = kept.uncertain.values().map(|held| held.at).collect();
    assert_eq!(at, [None, Some(left), Some(right)]);
}

#[test]
fn what_was_found_to_be_the_sources_stays_so_and_since_the_first_time_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(&folder);
    let batch = |number| Write::Batch(number, vec![message(0)]);
    journal.write(vec![batch(1), batch(2), batch(3), Write::Return(vec![1])], 7_000).unwrap();
    journal.write(vec![Write::Return(vec![1, 2])], 9_000).unwrap();
    drop(journal);
    for (now, ages) in [(10_000, [3, 1]), (8_000, [1, 0])] {
        let kept = open(&folder).kept(now).unwrap();
        assert_eq!(kept.uncertain.keys().copied().collect::<Vec<_>>(), [3]);
        let found: Vec<_> =
            kept.returned.into_iter().map(|(batch, (age, _))| (batch, age.as_secs())).collect();
        assert_eq!(found, [(1, ages[0]), (2, ages[1])]);
    }
}

#[test]
fn rows_wait_once_they_are_ours_and_what_is_late_goes_behind_all() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(&folder);
    let batch =
        |number, messages: std::ops::Range<i64>| Write::Batch(number, messages.map(message).collect());
    journal.write(vec![batch(1, 0..2), batch(2, 2..4), Write::Ours { batch: 2, afresh: false }], 7).unwrap();
    assert_eq!(numbers(&load(&mut journal, 0, 10, u64::MAX)), [2, 3]);
    drop(journal);
    let mut journal = open(&folder);
    let kept = journal.kept(0).unwrap();
    assert_eq!((kept.next_batch, kept.waiting.rows), (3, 2));
    assert_eq!(kept.uncertain.keys().copied().collect::<Vec<_>>(), [1]);
    journal.write(vec![Write::Ours { batch: 1, afresh: true }], 7).unwrap();
    let rows = load(&mut journal, 0, 10, u64::MAX);
    assert_eq!(numbers(&rows), [2, 3, 0, 1]);
    assert_eq!(numbers(&load(&mut journal, rows[0].sequence, 2, u64::MAX)), [3, 0]);
    assert_eq!(numbers(&load(&mut journal, 0, 10, 1)), [2], "one row at least");
}

#[test]
fn all_that_is_journalled_is_forwarded_expired_dead_or_waits() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(&folder);
    journal.write(vec![Write::Batch(1, (0..6).map(message).collect())], 7).unwrap();
    assert_eq!(counts(&journal).journalled, 0);
    journal.write(vec![Write::Ours { batch: 1, afresh: false }], 7).unwrap();
    let sequences: Vec<u64> = load(&mut journal, 0, 10, u64::MAX).iter().map(|row| row.sequence).collect();
    let bury = Write::Bury { sequence: sequences[3], why: "too long".to_owned() };
    let remove = Write::Remove { forwarded: vec![sequences[0], sequences[2]], expired: vec![sequences[1]] };
    journal.write(vec![bury, remove], 7).unwrap();
    let counts = counts(&journal);
    assert_eq!(counts, Counts { journalled: 6, forwarded: 2, expired: 1, dead: 1 });
    assert_eq!((counts.waiting(), journal.kept(0).unwrap().waiting.rows), (2, 2));
    assert_eq!(numbers(&load(&mut journal, 0, 10, u64::MAX)), [4, 5]);
    journal.write(vec![Write::Remove { forwarded: sequences[4..].to_vec(), expired: vec![] }], 7).unwrap();
    assert_eq!(journal.kept(0).unwrap().waiting, Load::default());
}

#[test]
fn what_expired_is_marked_so() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(&folder);
    let expiring = |at| Arc::new(Message { expiration: at, ..(*message(at)).clone() });
    let messages = [0, 999, 1000, 1001].map(expiring).to_vec();
    journal.write(vec![Write::Batch(1, messages), Write::Ours { batch: 1, afresh: false }], 7).unwrap();
    let expired: Vec<bool> =
        journal.load(0, 10, u64::MAX, &[], 1000).unwrap().0.iter().map(|row| row.is_expired).collect();
    assert_eq!(expired, [false, true, true, false]);
}

#[test]
fn its_identity_is_given_once() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(&folder));
    let again = Journal::open(&file(&folder), [8; 16], ENDS).unwrap();
    assert_eq!(again.birth(), BIRTH);
}

#[tokio::test]
async fn errands_are_told_in_their_order_and_share_commits() {
    let folder = tempfile::tempdir().unwrap();
    let (errands, mut told) = open(&folder).run().unwrap();
    for batch in 1..=20 {
        errands.send(Errand::Write(Write::Batch(batch, vec![message(0)]), 7)).await.unwrap();
        errands.send(Errand::Write(Write::Ours { batch, afresh: false }, 7)).await.unwrap();
    }
    errands.send(Errand::Load { after: 0, rows: 100, bytes: u64::MAX, but: vec![], now: 0 }).await.unwrap();
    drop(errands);
    for _ in 0..40 {
        assert!(matches!(told.recv().await, Some(Told::Written(_))));
    }
    assert!(matches!(told.recv().await, Some(Told::Loaded(rows)) if rows.len() == 20));
    assert!(told.recv().await.is_none());
}

#[tokio::test]
async fn a_full_disk_is_told_and_nothing_of_the_write_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(&folder);
    journal.write(vec![Write::Batch(1, vec![message(1)])], 7).unwrap();
    let pages: i64 = journal.connection.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
    journal.connection.pragma_update(None, "max_page_count", pages + 2).unwrap();
    let (errands, mut told) = journal.run().unwrap();
    errands.send(Errand::Write(Write::Batch(2, (0..1000).map(message).collect()), 7)).await.unwrap();
    let Some(Told::Failed(error)) = told.recv().await else { panic!("it is full") };
    assert!(
        error.to_string().contains("database or disk is full; nothing of this write was kept"),
        "{error}"
    );
    assert!(told.recv().await.is_none(), "it has ended");
    let kept = open(&folder).kept(0).unwrap();
    assert_eq!(kept.uncertain.keys().copied().collect::<Vec<_>>(), [1]);
}

/// Three messages that wait, of which the second one is damaged on the disk.
fn damaged(folder: &tempfile::TempDir) -> Journal {
    let mut journal = open(folder);
    journal.write(vec![Write::Batch(1, (0..3).map(message).collect())], 7).unwrap();
    journal.write(vec![Write::Ours { batch: 1, afresh: false }], 8).unwrap();
    journal.connection.execute("UPDATE row SET message = x'ff00' WHERE sequence = 2", []).unwrap();
    journal
}

#[tokio::test]
async fn a_damaged_row_is_set_aside_and_the_others_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let journal = damaged(&folder);
    let bytes = journal.kept(0).unwrap().waiting.bytes;
    let (errands, mut told) = journal.run().unwrap();
    errands.send(Errand::Load { after: 0, rows: 10, bytes: u64::MAX, but: vec![], now: 0 }).await.unwrap();
    let Some(Told::Damaged(load, figures)) = told.recv().await else { panic!("it is damaged") };
    assert_eq!((load, figures.counts.dead), (Load { rows: 1, bytes: bytes / 3 }, 1));
    assert!(matches!(told.recv().await, Some(Told::Loaded(rows)) if numbers(&rows) == [0, 2]));
    let dead = dead_letters(&file(&folder), 0, 10).unwrap().letters;
    assert!(dead.len() == 1 && dead[0].message_id.is_none(), "{dead:?}");
    assert!(dead[0].why.starts_with("damaged here: "), "{dead:?}");
    assert_eq!(revive(&file(&folder), 0).unwrap(), 0, "it is no message");
    drop(errands);
    assert!(told.recv().await.is_none());
    let kept = open(&folder).kept(0).unwrap();
    assert_eq!((kept.waiting.rows, kept.dead.rows), (2, 1));
    let purge = || purge(&file(&folder), None).unwrap();
    assert_eq!((purge(), purge()), (1, 0));
}

#[test]
fn dead_letters_are_shown_with_their_reason_and_wait_again_behind_all_others() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(&folder);
    journal.write(vec![Write::Batch(1, (0..4).map(message).collect())], 7).unwrap();
    journal.write(vec![Write::Ours { batch: 1, afresh: false }], 8).unwrap();
    let bury = |sequence| Write::Bury { sequence, why: "no rights".to_owned() };
    journal.write(vec![bury(1), bury(3)], 9).unwrap();
    let first = dead_letters(&file(&folder), 0, 1).unwrap();
    assert_eq!((first.letters.len(), first.behind, first.total), (1, 1, 2));
    let dead = dead_letters(&file(&folder), 1, 10).unwrap();
    assert_eq!((dead.behind, dead.total), (0, 2));
    let dead = dead.letters;
    assert_eq!((dead.len(), dead[0].sequence, dead[0].why.as_str()), (1, 3, "no rights"));
    assert_eq!(
        (dead[0].message_id.as_deref(), dead[0].destination.as_deref()),
        (Some("p:1:1:2"), Some("queue://orders"))
    );
    let before = journal.kept(0).unwrap();
    assert_eq!(revive(&file(&folder), 10).unwrap(), 2);
    assert_eq!(numbers(&load(&mut journal, 0, 10, u64::MAX)), [1, 3, 0, 2]);
    let kept = journal.kept(0).unwrap();
    assert_eq!((kept.waiting, kept.dead), (before.waiting + before.dead, Load::default()));
    assert_eq!(counts(&journal), Counts { journalled: 4, ..Counts::default() });
    assert_eq!(journal.figures().unwrap().oldest, Some(7));
}

#[test]
fn what_is_passed_goes_behind_all_and_what_was_set_aside_is_settled_when_it_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(&folder);
    let to = |number: i64| {
        let name = if number % 2 == 0 { "orders" } else { "invoices" };
        let destination = Destination::queue(Text::shortened(name));
        Arc::new(Message { destination, ..(*message(number)).clone() })
    };
    journal.write(vec![Write::Batch(1, (1..=6).map(to).collect())], 7).unwrap();
    journal.write(vec![Write::Ours { batch: 1, afresh: false }], 7).unwrap();
    let first = load(&mut journal, 0, 1, 1).remove(0).destination;
    assert_eq!(numbers(&journal.load(0, 9, u64::MAX, &[first], 0).unwrap().0), [2, 4, 6]);
    let aside = |sequence, is_answered| Write::Aside { sequence, why: "no".to_owned(), is_answered };
    journal
        .write(vec![aside(1, true), Write::Acquit, aside(2, true), aside(3, false), aside(4, true)], 7)
        .unwrap();
    journal
        .write(vec![Write::Pass(vec![5]), Write::Remove { forwarded: vec![4], expired: vec![] }], 7)
        .unwrap();
    assert_eq!(numbers(&load(&mut journal, 0, 9, u64::MAX)), [1, 2, 3, 6, 5]);
    let before = journal.kept(0).unwrap();
    drop(journal);
    for _ in 0..2 {
        let mut journal = open(&folder);
        assert_eq!(numbers(&load(&mut journal, 0, 9, u64::MAX)), [1, 6, 5, 2]);
        let kept = journal.kept(0).unwrap();
        assert_eq!((kept.waiting.rows, kept.dead.rows), (before.waiting.rows - 1, 1));
        assert_eq!(kept.waiting.bytes + kept.dead.bytes, before.waiting.bytes);
    }
    assert_eq!(dead_letters(&file(&folder), 0, 10).unwrap().letters[0].why, "no");
}

#[test]
fn an_operator_buries_what_waits_and_purges_what_he_saw() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(&folder);
    journal.write(vec![Write::Batch(1, (0..4).map(message).collect())], 7).unwrap();
    journal.write(vec![Write::Ours { batch: 1, afresh: false }], 8).unwrap();
    journal.write(vec![Write::Batch(2, vec![message(4)])], 9).unwrap();
    assert_eq!(journal.figures().unwrap().first, Some(1));
    let bury = |sequence| bury(&file(&folder), sequence, "by hand".to_owned()).unwrap();
    assert_eq!([1, 2, 5, 6].map(bury), [true, true, false, false], "5 is not ours yet");
    assert_eq!((journal.figures().unwrap().first, counts(&journal).dead), (Some(3), 2));
    assert_eq!(dead_letters(&file(&folder), 0, 1).unwrap().letters[0].why, "by hand");
    assert_eq!(purge(&file(&folder), Some(1)).unwrap(), 1);
    assert_eq!(purge(&file(&folder), Some(u64::MAX)).unwrap(), 1);
}

#[test]
fn an_old_copy_gives_no_sequence_and_no_number_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(&folder);
    journal.write(vec![Write::Jump(9), Write::Batch(9, vec![message(0)])], 7).unwrap();
    journal.write(vec![Write::Ours { batch: 9, afresh: false }], 7).unwrap();
    assert_eq!(journal.kept(0).unwrap().next_batch, 10);
    assert!(load(&mut journal, 0, 1, 1)[0].sequence > JUMP);
}

#[test]
fn a_journal_that_holds_messages_leads_nowhere_else() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(&folder);
    journal.write(vec![Write::Batch(1, vec![message(0)])], 7).unwrap();
    drop(journal);
    assert_eq!(left(&file(&folder), "x").unwrap(), Left { name: "x".to_owned(), messages: 1, dead: 0 });
    let elsewhere = Journal::open(&file(&folder), BIRTH, "erp -> lab").unwrap_err().to_string();
    assert!(elsewhere.contains("1 messages in it were taken on the way erp -> dmz"), "{elsewhere}");
    let elsewhere = || Journal::open(&file(&folder), BIRTH, "erp -> lab");
    let mut journal = open(&folder);
    journal.write(vec![Write::Batch(2, vec![message(1)]), Write::Drop(1)], 7).unwrap();
    journal.write(vec![Write::Return(vec![2])], i64::MAX).unwrap();
    assert!(elsewhere().is_err(), "its commit may still come");
    journal
        .write(vec![Write::Drop(2), Write::Batch(3, vec![message(1)]), Write::Return(vec![3])], 7)
        .unwrap();
    drop(journal);
    assert_eq!(left(&file(&folder), "x").unwrap().messages, 0, "they are the source's");
    assert_eq!(elsewhere().unwrap().kept(0).unwrap().uncertain, BTreeMap::new());
}

/// Writes batch after batch and prints the number of each that is durable, until it is killed. Does
/// nothing unless the other half of this story asks.
#[test]
fn a_process_that_is_killed_child() {
    let Ok(file) = std::env::var("BRIDGE_JOURNAL_OF_THE_KILLED") else { return };
    let mut journal = Journal::open(Path::new(&file), BIRTH, ENDS).unwrap();
    for batch in 1.. {
        journal.write(vec![Write::Batch(batch, (0..5).map(message).collect())], 7).unwrap();
        journal.write(vec![Write::Ours { batch, afresh: false }], 7).unwrap();
        println!("durable {batch}");
    }
}

#[test]
fn a_process_that_is_killed_keeps_what_it_told() {
    let folder = tempfile::tempdir().unwrap();
    let name = "bridge::journal::tests::a_process_that_is_killed_child";
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env("BRIDGE_JOURNAL_OF_THE_KILLED", folder.path().join("bridge.db"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let told =
        lines.map_while(Result::ok).filter_map(|line| line.rsplit_once("durable ")?.1.parse::<u64>().ok());
    let last = told.take(20).last().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let mut journal = open(&folder);
    let counts = counts(&journal);
    assert!(counts.journalled >= 5 * last, "{counts:?} after {last}");
    assert_eq!(load(&mut journal, 0, usize::MAX, u64::MAX).len() as u64, counts.waiting());
}

/// What may come next, in the order in which a core would say it.
#[derive(Debug, Clone)]
enum Move {
    Batch(usize),
    Ours(usize, bool),
    Drop(usize),
    Remove(usize),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        (1..5_usize).prop_map(Move::Batch),
        (any::<usize>(), any::<bool>()).prop_map(|(which, afresh)| Move::Ours(which, afresh)),
        any::<usize>().prop_map(Move::Drop),
        (1..4_usize).prop_map(Move::Remove),
    ];
    proptest::collection::vec(one, 1..30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn whatever_is_written_reads_as_in_a_plain_model(moves in moves()) {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = open(&folder);
        let mut open_batches: BTreeMap<u64, Vec<(u64, i64)>> = BTreeMap::new();
        let mut waiting: BTreeMap<u64, i64> = BTreeMap::new();
        let (mut next_batch, mut last, mut name) = (1, 0, 0);
        for step in moves {
            let pick = |which: usize, batches: &BTreeMap<u64, Vec<(u64, i64)>>| {
                batches.keys().nth(which % batches.len().max(1)).copied()
            };
            let write = match step {
                Move::Batch(size) => {
                    let messages: Vec<_> = (0..size as u64).map(|at| (last + 1 + at, name + at as i64)).collect();
                    last += size as u64;
                    name += size as i64;
                    open_batches.insert(next_batch, messages.clone());
                    next_batch += 1;
                    Write::Batch(next_batch - 1, messages.into_iter().map(|(_, name)| message(name)).collect())
                }
                Move::Ours(which, afresh) => {
                    let Some(batch) = pick(which, &open_batches) else { continue };
                    let rows = open_batches.remove(&batch).unwrap();
                    let step = if afresh { last + 1 - rows[0].0 } else { 0 };
                    waiting.extend(rows.iter().map(|(sequence, name)| (sequence + step, *name)));
                    last = last.max(rows.last().unwrap().0 + step);
                    Write::Ours { batch, afresh }
                }
                Move::Drop(which) => {
                    let Some(batch) = pick(which, &open_batches) else { continue };
                    open_batches.remove(&batch);
                    Write::Drop(batch)
                }
                Move::Remove(number) => {
                    let forwarded: Vec<u64> = waiting.keys().take(number).copied().collect();
                    waiting.retain(|sequence, _| !forwarded.contains(sequence));
                    Write::Remove { forwarded, expired: vec![] }
                }
            };
            journal.write(vec![write], 7).unwrap();
        }
        let rows = load(&mut journal, 0, usize::MAX, u64::MAX);
        let found: Vec<_> = rows.iter().map(|row| (row.sequence, row.message.message_id.producer_sequence)).collect();
        prop_assert_eq!(found, waiting.into_iter().collect::<Vec<_>>());
        let kept = journal.kept(0).unwrap();
        prop_assert_eq!(kept.waiting.rows, rows.len() as u64);
        prop_assert_eq!(kept.waiting.bytes, rows.iter().map(|row| row.bytes).sum::<u64>());
        prop_assert_eq!(kept.next_batch, next_batch);
        prop_assert_eq!(kept.uncertain.keys().collect::<Vec<_>>(), open_batches.keys().collect::<Vec<_>>());
    }
}
