//! The queues when things go badly: killed, on a full disk, with too much to hold, with readers who
//! do not read.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use super::*;
use crate::sqlite::small_disk::SmallDisk;

/// The body of the process that is killed below; by itself it does nothing.
#[test]
fn child_that_sends_and_consumes_until_it_is_killed() {
    let Some(folder) = std::env::var_os("VAULT_TEST_QUEUES").map(PathBuf::from) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (queues, orders) = (open(&folder), queue("orders"));
        let (session, mut deliveries) = queues.connect();
        consumer(&session, &orders, 100).await;
        let round = std::env::var("VAULT_TEST_ROUND").unwrap();
        for number in 0.. {
            let name = format!("{round}-{number}");
            keep(&session, to(&orders, &name)).await;
            // What was answered is told outside, one line each; half a line is no line.
            tell(&folder, "kept", &name);
            // Half of them are consumed.
            if number % 2 == 1 {
                let delivery = next(&mut deliveries).await;
                tell(&folder, "given", &delivery.message.name);
                acknowledge(&session, &delivery).await;
                session.sync().await.unwrap().await.unwrap();
                tell(&folder, "finished", &delivery.message.name);
            }
        }
    });
}

fn tell(folder: &Path, what: &str, name: &str) {
    use std::io::Write as _;
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(folder.join(what)).unwrap();
    file.write_all(format!("{name}\n").as_bytes()).unwrap();
}

fn told(folder: &Path, what: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(folder.join(what)).unwrap_or_default();
    text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).map(str::to_owned).collect()
}

#[tokio::test]
async fn a_killed_program_loses_nothing_answered_and_doubles_nothing_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let (_, module) = module_path!().split_once("::").unwrap();
    let child = format!("{module}::child_that_sends_and_consumes_until_it_is_killed");
    for round in 1..=5_u64 {
        let before = told(folder.path(), "finished").len();
        let mut running = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &child])
            .env("VAULT_TEST_QUEUES", folder.path())
            .env("VAULT_TEST_ROUND", round.to_string())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let began = Instant::now();
        while told(folder.path(), "finished").len() < before + 5 && began.elapsed() < SOON {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(13 * round));
        running.kill().unwrap();
        running.wait().unwrap();
    }
    let (kept, finished) = (told(folder.path(), "kept"), told(folder.path(), "finished"));
    let given = told(folder.path(), "given");
    assert!(finished.len() >= 25, "{} are finished", finished.len());
    let queues = open(folder.path());
    let (session, mut deliveries) = queues.connect();
    consumer(&session, &queue("orders"), 100_000).await;
    let depth =
        queues.list().await.unwrap().into_iter().find(|queue| queue.state.destination.name() == "orders");
    let depth = usize::try_from(depth.unwrap().state.depth).unwrap();
    let left: Vec<String> = names(&mut deliveries, depth).await;
    let distinct: BTreeSet<String> = left.iter().cloned().collect();
    assert_eq!(distinct.len(), left.len(), "each once");
    let again: Vec<_> = distinct.intersection(&finished).collect();
    assert!(again.is_empty(), "acknowledged durably and here again: {again:?}");
    // What was given to the process when it was killed may be finished without its word.
    let lost: Vec<_> =
        kept.iter().filter(|name| !distinct.contains(*name) && !given.contains(*name)).collect();
    assert!(lost.is_empty(), "answered and lost: {lost:?}");
    let unsaid = kept.iter().filter(|name| !distinct.contains(*name) && !finished.contains(*name)).count();
    assert!(unsaid <= 5, "{unsaid} are gone without a word, one for each kill at most");
}

#[tokio::test]
async fn a_full_disk_is_told_loses_nothing_and_heals_by_itself() {
    let disk = SmallDisk::new("size=8m");
    let mut settings = Settings::new(disk.path().join("queues.db"));
    settings.hold = Duration::from_millis(1);
    let (queues, orders) = (Queues::open(settings).unwrap(), queue("orders"));
    let (session, mut deliveries) = queues.connect();
    keep(&session, to(&orders, "a")).await;
    keep(&session, to(&orders, "b")).await;
    consumer(&session, &orders, 1).await;
    let first = next(&mut deliveries).await;
    disk.fill();
    let mut refused = None;
    let mut kept = 2;
    for number in 0..200 {
        let send = Send { message: message(&format!("n{number}"), 60_000), ..to(&orders, "") };
        match session.send(send, None).await {
            Ok(sent) => match sent.await {
                Ok(_) => kept += 1,
                Err(error) => refused = refused.or(Some(error.to_string())),
            },
            Err(held) => assert!(held.to_string().contains("the journal's disk has been full"), "{held}"),
        }
    }
    let refused = refused.expect("the disk is full");
    assert!(
        refused.contains("full") && refused.ends_with("nothing was kept, send it again later"),
        "{refused}"
    );
    assert!(queues.gate().trouble.is_some());
    // It is true at once, and written when it can be.
    acknowledge(&session, &first).await;
    assert_eq!(names(&mut deliveries, 1).await, ["b"]);
    disk.make_room();
    let began = Instant::now();
    while queues.gate().trouble.is_some() {
        assert!(began.elapsed() < SOON, "{:?}", queues.gate());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    until(&queues, None).await;
    keep(&session, to(&orders, "z")).await;
    drop((session, deliveries));
    queues.close().await;
    let queues = open(disk.path());
    let (session, mut deliveries) = queues.connect();
    consumer(&session, &orders, 1_000).await;
    let found = names(&mut deliveries, kept).await;
    assert_eq!((&*found[0], &**found.last().unwrap()), ("b", "z"), "a was acknowledged");
    assert!(is_quiet(&session, &mut deliveries).await, "what was refused is not there");
}

#[tokio::test]
async fn what_fills_the_disk_holds_its_senders_and_consuming_makes_room_again() {
    let disk = SmallDisk::new("size=24m");
    let mut settings = Settings::new(disk.path().join("queues.db"));
    settings.hold = Duration::from_millis(10);
    let (queues, orders) = (Queues::open(settings.clone()).unwrap(), queue("orders"));
    let (session, mut deliveries) = queues.connect();
    for round in 0..3 {
        let mut kept = 0;
        let refused = loop {
            let send = Send { message: message("m", 20_000), ..to(&orders, "") };
            match session.send(send, None).await {
                Ok(sent) => sent.await.map(|_| kept += 1).unwrap(),
                Err(refused) => break refused.to_string(),
            }
            assert!(kept < 1_200, "the disk is not bounded");
        };
        let words =
            "queues: the journal's disk has been full for 0 s; consume or purge messages, or make room";
        assert!(refused.starts_with(words), "{refused}");
        assert!(kept > 200, "round {round}: {kept} messages have room");
        assert_eq!((queues.gate().lack(true), queues.gate().trouble), (Some(Lack::Disk), None));
        let key = consumer(&session, &orders, 1).await;
        for _ in 0..kept {
            let delivery = next(&mut deliveries).await;
            acknowledge(&session, &delivery).await;
        }
        session.unsubscribe(key, Seen::Nothing).await.unwrap().await.unwrap();
        queues.settle().await.unwrap();
        until(&queues, None).await;
    }
    // One that does not fit is refused, and the others go on.
    let huge = Send { message: message("huge", 12 << 20), ..to(&orders, "") };
    let refused = session.send(huge, None).await.unwrap().await.unwrap_err().to_string();
    assert!(refused.contains("its disk is all but full"), "{refused}");
    keep(&session, to(&orders, "z")).await;
    assert_eq!(queues.gate().trouble, None);
}

#[tokio::test]
async fn on_a_disk_without_a_byte_of_room_what_waits_is_given_out() {
    let (disk, orders) = (SmallDisk::new("size=8m"), queue("orders"));
    let life = || rusqlite::Connection::open(disk.path().join("queues.db")).unwrap();
    let queues = open(disk.path());
    let (session, _) = queues.connect();
    keep(&session, to(&orders, "a")).await;
    drop(session);
    queues.close().await;
    // No more than the index of the log needs, which is made anew.
    std::fs::write(disk.path().join("index"), [0; 32 << 10]).unwrap();
    disk.fill();
    std::fs::remove_file(disk.path().join("index")).unwrap();
    let queues = open(disk.path());
    let (session, mut deliveries) = queues.connect();
    consumer(&session, &orders, 10).await;
    assert_eq!(names(&mut deliveries, 1).await, ["a"]);
    until(&queues, Some(Lack::Disk)).await;
    disk.make_room();
    until(&queues, None).await;
    keep(&session, to(&orders, "b")).await;
    drop((session, deliveries));
    queues.close().await;
    let lives: u64 = life().query_row("SELECT number FROM life", [], |row| row.get(0)).unwrap();
    assert_eq!(lives, 2, "a life that began without room is written with what comes first");
}

/// Waits until persistent messages lack that.
async fn until(queues: &Queues, lack: Option<Lack>) {
    let began = Instant::now();
    while queues.gate().lack(true) != lack {
        assert!(began.elapsed() < SOON, "{:?}", queues.gate());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_full_disk_on_which_only_the_log_can_make_room_is_opened() {
    let disk = SmallDisk::new("size=8m");
    let (copy, orders) = (tempfile::tempdir().unwrap(), queue("orders"));
    let logged = ["queues.db", "queues.db-wal"];
    for round in 0..3 {
        let queues = open(disk.path());
        let (session, _) = queues.connect();
        // What is sent and purged makes the file as large as it will be, and the log long again.
        for _ in 0..20 {
            keep(&session, Send { message: message("m", 60_000), ..to(&orders, "") }).await;
        }
        queues.purge(orders.clone()).await.unwrap();
        if round == 2 {
            // As a kill leaves it.
            for name in logged {
                std::fs::copy(disk.path().join(name), copy.path().join(name)).unwrap();
            }
        }
        drop(session);
        queues.close().await;
    }
    std::fs::remove_file(disk.path().join("queues.db")).unwrap();
    for name in logged {
        std::fs::copy(copy.path().join(name), disk.path().join(name)).unwrap();
    }
    // No more than the index of the log needs, which is made anew.
    std::fs::write(disk.path().join("index"), [0; 32 << 10]).unwrap();
    disk.fill();
    std::fs::remove_file(disk.path().join("index")).unwrap();
    let queues = open(disk.path());
    let (session, _) = queues.connect();
    keep(&session, to(&orders, "z")).await;
}

#[tokio::test]
async fn a_damaged_message_is_set_aside_and_the_others_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let (queues, orders) = (open(folder.path()), queue("orders"));
    let (session, _) = queues.connect();
    for name in ["a", "b", "c", "d"] {
        keep(&session, to(&orders, name)).await;
    }
    drop(session);
    queues.close().await;
    let file = rusqlite::Connection::open(folder.path().join("queues.db")).unwrap();
    file.execute("UPDATE message SET size = size + 1 WHERE name = 'b'", []).unwrap();
    drop(file);
    let queues = open(folder.path());
    let (session, mut deliveries) = queues.connect();
    let key = consumer(&session, &orders, 10).await;
    let mut given = Vec::new();
    for _ in 0..3 {
        let delivery = next(&mut deliveries).await;
        acknowledge(&session, &delivery).await;
        given.push(delivery.message.name.to_string());
    }
    assert_eq!(given, ["a", "c", "d"]);
    keep(&session, to(&orders, "e")).await;
    assert_eq!(names(&mut deliveries, 1).await, ["e"]);
    assert_eq!(queues.gate().trouble, None, "senders have no trouble");
    let seen = queues.browse(orders.clone(), Id::default(), 1, 1_000).await.unwrap();
    assert_eq!(seen.iter().map(|placed| &*placed.message.name).collect::<Vec<_>>(), ["e"]);
    session.unsubscribe(key, Seen::Nothing).await.unwrap().await.unwrap();
    assert_eq!(queues.purge(orders.clone()).await.unwrap(), 2, "the damaged one is removed as any other");
    queues.remove(orders).await.unwrap();
}

#[tokio::test]
async fn whoever_pulls_waits_for_room_in_the_inbox() {
    let folder = tempfile::tempdir().unwrap();
    let (queues, orders) = (open(folder.path()), queue("orders"));
    let (session, mut deliveries) = queues.connect();
    let key = consumer(&session, &orders, 0).await;
    let all = u32::try_from(queues.shared.settings.inbox_bytes).unwrap();
    let full = queues.shared.room.clone().acquire_many_owned(all).await.unwrap();
    let pull = session.pull(key, 1);
    tokio::pin!(pull);
    assert!(futures_util::poll!(&mut pull).is_pending());
    drop(full);
    pull.await.unwrap();
    keep(&session, to(&orders, "a")).await;
    assert_eq!(names(&mut deliveries, 1).await, ["a"]);
}

#[tokio::test]
async fn senders_are_held_while_memory_is_full_and_go_on_or_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = Settings::new(folder.path().join("queues.db"));
    (settings.memory_bytes, settings.hold) = (100_000, Duration::from_millis(300));
    let (queues, orders) = (Queues::open(settings).unwrap(), queue("orders"));
    let (session, mut deliveries) = queues.connect();
    let light = || Send { persistent: false, message: message("m", 10_000), ..to(&orders, "") };
    let mut sent = 0;
    let refused = loop {
        match session.send(light(), None).await {
            Ok(answer) => answer.await.map(|_| sent += 1).unwrap(),
            Err(refused) => break refused.to_string(),
        }
        assert!(sent < 100, "memory is not bounded");
    };
    assert!(sent >= 10, "{sent}");
    assert!(
        refused.starts_with(
            "queues: the memory for non-persistent messages has been full for 0 s; consume or purge"
        ),
        "{refused}"
    );
    assert!(queues.gate().memory && !queues.gate().journal);
    keep(&session, to(&orders, "persistent ones pass")).await;
    let (held, ()) = tokio::join!(session.send(light(), None), async {
        consumer(&session, &orders, 2).await;
        let first = next(&mut deliveries).await;
        let second = next(&mut deliveries).await;
        acknowledge(&session, &first).await;
        acknowledge(&session, &second).await;
    });
    held.unwrap().await.unwrap();
}

#[tokio::test]
async fn senders_are_held_while_the_journal_is_full() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = Settings::new(folder.path().join("queues.db"));
    (settings.journal_bytes, settings.hold) = (100_000, Duration::from_millis(300));
    let (queues, orders) = (Queues::open(settings).unwrap(), queue("orders"));
    let (session, _deliveries) = queues.connect();
    let send = || Send { message: message("m", 10_000), ..to(&orders, "") };
    let mut sent = 0;
    let refused = loop {
        match session.send(send(), None).await {
            Ok(answer) => answer.await.map(|_| sent += 1).unwrap(),
            Err(refused) => break refused.to_string(),
        }
        assert!(sent < 100, "the journal is not bounded");
    };
    assert!(refused.starts_with("queues: the journal has been full"), "{refused}");
    assert_eq!(queues.purge(orders.clone()).await.unwrap(), sent);
    keep(&session, send()).await;
}

#[tokio::test]
async fn a_reader_who_does_not_read_holds_its_share_and_stops_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = Settings::new(folder.path().join("queues.db"));
    settings.limits = Limits { outgoing_bytes: 1 << 20, ..Limits::default() };
    let (queues, orders) = (Queues::open(settings).unwrap(), queue("orders"));
    let (slow, mut slows) = queues.connect();
    let (quick, mut quicks) = queues.connect();
    for number in 0..1_000 {
        let send = Send { message: message(&number.to_string(), 4_096), ..to(&orders, "") };
        drop(slow.send(send, None).await.unwrap());
    }
    consumer(&slow, &orders, 10_000).await;
    slow.sync().await.unwrap().await.unwrap();
    let held = slows.inbox.len();
    assert!((2..=20).contains(&held), "{held} of its share of 64 KiB");
    consumer(&quick, &orders, 10_000).await;
    let rest = names(&mut quicks, 1_000 - held).await;
    assert_eq!(rest.last().map(String::as_str), Some("999"));
    assert_eq!(names(&mut slows, held).await.len(), held);
}

#[tokio::test]
async fn many_senders_share_a_commit() {
    let folder = tempfile::tempdir().unwrap();
    let (queues, orders) = (open(folder.path()), queue("orders"));
    let (session, _deliveries) = queues.connect();
    let mut answers = Vec::new();
    for number in 0..500 {
        answers.push(session.send(to(&orders, &number.to_string()), None).await.unwrap());
    }
    for answer in answers {
        answer.await.unwrap();
    }
    let commits = commits(&folder.path().join("queues.db-wal"));
    assert!((2..=250).contains(&commits), "{commits} commits of 500 messages");
}

/// How many transactions SQLite's log holds: the last frame of each tells the size of the file
/// (<https://www.sqlite.org/fileformat2.html#walformat>).
fn commits(log: &Path) -> usize {
    let log = std::fs::read(log).unwrap();
    let page = u32::from_be_bytes(log[8..12].try_into().unwrap()) as usize;
    log[32..].chunks_exact(24 + page).filter(|frame| frame[4..8] != [0; 4]).count()
}

#[tokio::test]
async fn far_more_than_the_window_comes_in_order_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (queues, orders) = (open(folder.path()), queue("orders"));
    let (session, _) = queues.connect();
    let mut last = None;
    for number in 0..5_000 {
        last = Some(session.send(to(&orders, &number.to_string()), None).await.unwrap());
    }
    last.unwrap().await.unwrap();
    drop(session);
    queues.close().await;
    let queues = open(folder.path());
    let (session, mut deliveries) = queues.connect();
    consumer(&session, &orders, 100).await;
    for number in 0..5_000 {
        let delivery = next(&mut deliveries).await;
        assert_eq!(*delivery.message.name, number.to_string());
        let answer = session
            .acknowledge(delivery.consumer, (None, delivery.id), AckKind::Standard, None)
            .await
            .unwrap();
        drop(answer);
    }
    session.sync().await.unwrap().await.unwrap();
    let status = queues.list().await.unwrap();
    let state = &status.iter().find(|queue| queue.state.destination == orders).unwrap().state;
    assert_eq!((state.depth, state.bytes, state.dequeued), (0, 0, 5_000));
}
