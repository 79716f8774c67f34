//! When the store may not know what was sent before: what it says, keeps and writes then. The
//! clocks are what the test says they are; the file is a real one.

use shared::api::client::Life;

use super::super::clock::Now;
use super::super::seal::{Seal, Stamp};
use super::super::store::Sought;
use super::*;

const DAY: u64 = 86_400;
/// Some day of 2026.
pub(super) const TODAY: u64 = 20_780 * DAY;

/// A writer without a thread, whose clocks are moved by hand.
pub(super) struct Hands {
    writer: Writer,
    standing: Standing,
    pub(super) wall: u64,
    running: u64,
}

impl Hands {
    /// Edge is started, at this time by the wall clock.
    pub(super) fn start(settings: Settings, wall: u64) -> Self {
        let standing = Standing::default();
        let metrics = Metrics::register(&Registry::new()).unwrap();
        let now = Self::at(wall, 0);
        let mut writer = Writer::new(settings, standing.clone(), metrics, now);
        writer.open(now);
        Self { writer, standing, wall, running: 0 }
    }

    fn at(wall: u64, running: u64) -> Now {
        Now { wall: Duration::from_secs(wall), running: Duration::from_secs(running) }
    }

    pub(super) fn turn(&mut self, work: Vec<Work>) {
        self.writer.turn(work, Self::at(self.wall, self.running));
    }

    /// Edge runs on, and the clock with it.
    fn run(&mut self, seconds: u64) {
        for step in std::iter::repeat_n(60, usize::try_from(seconds / 60).unwrap()) {
            (self.wall, self.running) = (self.wall + step, self.running + step);
            self.turn(Vec::new());
        }
    }

    /// The wall clock is set.
    pub(super) fn set(&mut self, wall: u64) {
        self.wall = wall;
        self.turn(Vec::new());
    }

    fn sought(&self, series: &str, key: &str) -> Sought {
        self.standing.told().secret.unwrap().sought(series, key)
    }

    fn ask_in(&mut self, series: &str, key: &str, life: Life) -> Option<Life> {
        let marks = vec![self.sought(series, key)];
        let (answer, mut answered) = oneshot::channel();
        self.turn(vec![Work::Ask(Ask { marks, life, answer })]);
        answered.try_recv().ok().and_then(|lives| lives[0])
    }

    pub(super) fn ask(&mut self, key: &str, life: Life) -> Option<Life> {
        self.ask_in("INV", key, life)
    }

    /// The files are left as they lie.
    pub(super) fn kill(self) {
        self.writer.kill();
    }

    pub(super) fn doubt(&self) -> Option<u64> {
        self.standing.told().doubt
    }

    fn words(&self) -> String {
        self.standing.told().words
    }

    /// Both vaults are together.
    pub(super) fn settle(&mut self) {
        let doubt = self.doubt().expect("there is a doubt to be ended");
        self.turn(vec![Work::WereTogether(doubt)]);
        assert_eq!(self.doubt(), None);
    }
}

#[test]
fn a_new_store_writes_no_ticket_before_both_vaults_were_together() {
    let folder = tempfile::tempdir().unwrap();
    let mut edge = Hands::start(settings(folder.path()), TODAY);
    assert_eq!(edge.ask("k", FIRST), None);
    assert!(edge.words().contains("is new"), "{}", edge.words());
    edge.settle();
    assert_eq!(edge.ask("k", SECOND), Some(SECOND));
    // It remembers that after a restart of edge, however that ended.
    edge.kill();
    let mut edge = Hands::start(settings(folder.path()), TODAY);
    assert_eq!(edge.doubt(), None);
    assert_eq!(edge.ask("l", FIRST), Some(FIRST));
    // A store in the place of a lost one does not.
    for file in ["tickets.db", "tickets.db-wal", "tickets.db-shm"] {
        let _absent = std::fs::remove_file(folder.path().join(file));
    }
    edge.run(60);
    assert_eq!(edge.ask("k", FIRST), None, "the file was removed under a running edge");
    assert!(edge.words().contains("is new"), "{}", edge.words());
}

#[test]
fn a_doubt_that_was_not_ended_outlives_edge() {
    let folder = tempfile::tempdir().unwrap();
    drop(Hands::start(settings(folder.path()), TODAY));
    let mut edge = Hands::start(settings(folder.path()), TODAY);
    assert_eq!(edge.ask("k", FIRST), None);
    edge.settle();
    assert_eq!(edge.ask("k", FIRST), Some(FIRST));
}

#[test]
fn what_was_seen_before_a_doubt_arose_does_not_end_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut edge = Hands::start(settings(folder.path()), TODAY);
    let before = edge.doubt().unwrap();
    edge.set(TODAY + DAY);
    edge.turn(vec![Work::WereTogether(before)]);
    assert!(edge.doubt().is_some_and(|doubt| doubt != before));
    edge.settle();
    // In one turn with the jump, too.
    let before = edge.doubt();
    assert_eq!(before, None);
    edge.wall += DAY;
    edge.turn(vec![Work::WereTogether(u64::MAX), Work::WereTogether(1)]);
    assert!(edge.doubt().is_some());
}

#[test]
fn a_clock_that_is_wrong_at_boot_forgets_nothing() {
    for wrong in [0, 129 * 365 * DAY] {
        let folder = tempfile::tempdir().unwrap();
        let mut edge = Hands::start(settings(folder.path()), wrong);
        edge.settle();
        assert_eq!(edge.ask("k", FIRST), Some(FIRST));
        edge.run(3600);
        // The time servers are reached.
        edge.set(TODAY);
        assert_eq!(edge.ask("k", SECOND), Some(FIRST));
        assert_eq!(edge.ask("fresh", SECOND), None, "not sure any more");
        assert!(edge.words().contains("clock went"), "{}", edge.words());
        edge.settle();
        edge.run(2 * DAY);
        assert_eq!(edge.ask("k", SECOND), Some(FIRST));
        drop(edge);
        let mut edge = Hands::start(settings(folder.path()), wrong);
        edge.run(2 * DAY);
        assert_eq!(edge.ask("k", SECOND), Some(FIRST));
    }
}

#[test]
fn a_clock_that_is_set_by_hours_forgets_nothing_and_is_doubted_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut edge = Hands::start(settings(folder.path()), TODAY);
    edge.settle();
    edge.ask("k", FIRST).unwrap();
    for set in [5 * 3600, 40 * DAY, 1000 * DAY, 3600] {
        let wall = if set == 3600 { edge.wall - set } else { edge.wall + set };
        edge.set(wall);
        let doubt = edge.doubt().expect("a set clock is a doubt");
        edge.run(2 * 3600);
        assert_eq!(edge.doubt(), Some(doubt), "it is one doubt");
        assert_eq!(edge.ask("k", SECOND), Some(FIRST));
        assert_eq!(edge.ask("fresh", SECOND), None);
        edge.settle();
    }
    assert_eq!(edge.ask("fresh", SECOND), Some(SECOND));
}

#[test]
fn a_clock_that_is_set_while_the_store_cannot_be_opened_is_doubted_when_it_can() {
    let folder = tempfile::tempdir().unwrap();
    let (file, away) = (folder.path().join("tickets.db"), folder.path().join("away.db"));
    let mut edge = Hands::start(settings(folder.path()), TODAY);
    edge.settle();
    drop(edge);
    std::fs::rename(&file, &away).unwrap();
    std::fs::create_dir(&file).unwrap();
    let mut edge = Hands::start(settings(folder.path()), TODAY);
    assert!(edge.words().contains("NOT written"), "{}", edge.words());
    edge.set(TODAY + DAY);
    std::fs::remove_dir(&file).unwrap();
    std::fs::rename(&away, &file).unwrap();
    edge.run(60);
    assert!(edge.words().contains("clock went"), "{}", edge.words());
    // The same without: it is the file that it was.
    edge.settle();
    drop(edge);
    assert_eq!(Hands::start(settings(folder.path()), TODAY).doubt(), None);
}

#[test]
fn a_small_correction_is_no_doubt() {
    let folder = tempfile::tempdir().unwrap();
    let mut edge = Hands::start(settings(folder.path()), TODAY);
    edge.settle();
    for _ in 0..100 {
        edge.set(edge.wall + 30);
        edge.run(600);
    }
    assert_eq!(edge.doubt(), None);
    assert_eq!(edge.ask("k", FIRST), Some(FIRST));
}

#[test]
fn a_host_that_was_off_for_long_has_all_its_tickets() {
    let folder = tempfile::tempdir().unwrap();
    let mut edge = Hands::start(settings(folder.path()), TODAY);
    edge.settle();
    edge.ask("k", FIRST).unwrap();
    drop(edge);
    for days in [31, 62, 400] {
        let mut edge = Hands::start(settings(folder.path()), TODAY + days * DAY);
        edge.run(3600);
        assert_eq!(edge.ask("k", SECOND), Some(FIRST), "off until day {days}");
    }
}

#[test]
fn a_store_from_another_boot_or_another_place_tells_what_it_knows_and_writes_nothing_new() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tickets.db");
    let mut edge = Hands::start(settings(folder.path()), TODAY);
    edge.settle();
    edge.ask("before", FIRST).unwrap();
    drop(edge);
    // A snapshot is taken, or a backup; what comes later is lost when it is put back.
    let snapshot = folder.path().join("snapshot.db");
    std::fs::copy(&file, &snapshot).unwrap();
    let mut edge = Hands::start(settings(folder.path()), TODAY);
    edge.ask("after", FIRST).unwrap();
    drop(edge);
    let put_back = |edge: &mut Hands| {
        assert_eq!(edge.ask("before", SECOND), Some(FIRST));
        assert_eq!(edge.ask("after", SECOND), None, "it may be one that was sent");
        edge.settle();
        assert_eq!(edge.ask("after", SECOND), Some(SECOND));
    };
    // The same disk, another boot.
    let connection = rusqlite::Connection::open(&file).unwrap();
    connection
        .execute(
            "DELETE FROM tickets WHERE mark = ?1",
            [Secret::of(&file).unwrap().sought("INV", "after").mark],
        )
        .unwrap();
    connection.execute("UPDATE about SET place = 'another boot' || substr(place, 37)", []).unwrap();
    drop(connection);
    put_back(&mut Hands::start(settings(folder.path()), TODAY));
    // Another file in its place.
    std::fs::rename(&snapshot, &file).unwrap();
    put_back(&mut Hands::start(settings(folder.path()), TODAY));
}

/// How a backup of the store is put back.
fn put_back(backup: &Path, file: &Path, in_place: bool) {
    use std::os::unix::fs::MetadataExt;
    let inode = || std::fs::metadata(file).unwrap().ino();
    let before = inode();
    if !in_place {
        std::fs::remove_file(file).unwrap();
    }
    std::fs::copy(backup, file).unwrap();
    assert!(!in_place || inode() == before);
}

#[test]
fn an_earlier_state_that_is_put_back_is_doubted_even_with_the_same_inode() {
    for in_place in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let (file, backup) = (folder.path().join("tickets.db"), folder.path().join("backup"));
        let mut edge = Hands::start(settings(folder.path()), TODAY);
        edge.settle();
        edge.ask("before", FIRST).unwrap();
        drop(edge);
        std::fs::copy(&file, &backup).unwrap();
        // The last state, which nobody can know.
        put_back(&backup, &file, in_place);
        let mut edge = Hands::start(settings(folder.path()), TODAY);
        edge.settle();
        assert_eq!(edge.ask("after", FIRST), Some(FIRST));
        drop(edge);
        put_back(&backup, &file, in_place);
        for _ in 0..2 {
            let mut edge = Hands::start(settings(folder.path()), TODAY);
            assert_eq!(edge.ask("before", SECOND), Some(FIRST));
            assert_eq!(edge.ask("after", SECOND), None, "it was sent, in place: {in_place}");
        }
        let mut edge = Hands::start(settings(folder.path()), TODAY);
        edge.settle();
        drop(edge);
        let mut edge = Hands::start(settings(folder.path()), TODAY);
        assert_eq!(edge.ask("after", SECOND), Some(SECOND), "no doubt lasts for ever");
    }
}

#[test]
fn a_store_whose_witness_is_lost_or_damaged_is_doubted_once() {
    let folder = tempfile::tempdir().unwrap();
    let witness = folder.path().join("tickets.db.witness");
    let mut edge = Hands::start(settings(folder.path()), TODAY);
    edge.settle();
    edge.ask("k", FIRST).unwrap();
    drop(edge);
    for damage in [&b""[..], b"short", &[7; 32], &[7; 33]] {
        std::fs::write(&witness, damage).unwrap();
        if damage.is_empty() {
            std::fs::remove_file(&witness).unwrap();
        }
        let mut edge = Hands::start(settings(folder.path()), TODAY);
        assert_eq!(edge.ask("k", SECOND), Some(FIRST));
        assert_eq!(edge.ask("fresh", SECOND), None);
        edge.settle();
        drop(edge);
        assert_eq!(Hands::start(settings(folder.path()), TODAY).doubt(), None);
    }
}

#[test]
fn edge_killed_between_the_store_and_its_witness_is_no_doubt_and_told_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (file, witness) = (folder.path().join("tickets.db"), folder.path().join("tickets.db.witness"));
    let mut edge = Hands::start(settings(folder.path()), TODAY);
    edge.settle();
    for (key, life) in [("one", FIRST), ("two", SECOND), ("three", FIRST)] {
        let before = std::fs::read(&witness).unwrap();
        assert_eq!(edge.ask(key, life), Some(life));
        edge.kill();
        // The commit is done, and the witness was not told.
        std::fs::write(&witness, before).unwrap();
        let stamp = |file: &Path| Stamp::at(file).unwrap();
        Seal::of(&file, None).unwrap().put(Some(stamp(&file)), stamp(&witness)).unwrap();
        edge = Hands::start(settings(folder.path()), TODAY);
        assert_eq!(edge.doubt(), None);
        assert_eq!(edge.ask(key, Life(9)), Some(life));
    }
}

#[test]
fn a_file_that_is_replaced_under_a_running_edge_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tickets.db");
    let mut edge = Hands::start(settings(folder.path()), TODAY);
    edge.settle();
    std::fs::copy(&file, folder.path().join("copy")).unwrap();
    edge.ask("k", FIRST).unwrap();
    std::fs::rename(folder.path().join("copy"), &file).unwrap();
    edge.run(60);
    assert_eq!(edge.ask("l", FIRST), None);
    assert!(edge.doubt().is_some(), "{}", edge.words());
}

#[test]
fn a_ticket_is_kept_for_as_many_days_as_edge_runs_and_no_longer() {
    let folder = tempfile::tempdir().unwrap();
    let mut edge = Hands::start(Settings { days: 3, ..settings(folder.path()) }, TODAY);
    edge.settle();
    edge.ask("k", FIRST).unwrap();
    edge.run(3 * DAY);
    assert_eq!(edge.ask("k", SECOND), Some(FIRST));
    // Restarts every 50 minutes lose some of the running time: it is kept the longer, and ends.
    let mut starts = 0;
    while edge.ask("k", SECOND) == Some(FIRST) {
        edge.run(50 * 60);
        drop(edge);
        edge = Hands::start(Settings { days: 3, ..settings(folder.path()) }, TODAY);
        starts += 1;
        if starts == 40 {
            edge.run(DAY + 3600);
        }
        assert!(starts < 50, "it is kept for ever");
    }
    assert_eq!(edge.ask("k", SECOND), Some(SECOND));
}

/// What the first version of the file was.
const FIRST_VERSION: &str = "
    CREATE TABLE tickets (mark BLOB PRIMARY KEY, life BLOB NOT NULL, day INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE about (id INTEGER PRIMARY KEY CHECK (id = 1), secret BLOB NOT NULL,
        both_gave INTEGER NOT NULL, kept INTEGER NOT NULL);
    PRAGMA application_id = 1701082219;
    PRAGMA user_version = 1;
";

#[test]
fn a_store_of_the_first_version_loses_no_ticket_for_their_whole_time() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tickets.db");
    let secret = Secret::of(&file).unwrap();
    let connection = rusqlite::Connection::open(&file).unwrap();
    connection.execute_batch(FIRST_VERSION).unwrap();
    connection.execute("INSERT INTO about VALUES (1, ?1, 1, 2)", [secret.sign()]).unwrap();
    // Their days are by clocks that were wrong.
    for (key, day) in [("early", 0_u32), ("late", 47_000)] {
        let values = rusqlite::params![secret.sought("INV", key).former, FIRST.0.to_be_bytes(), day];
        connection.execute("INSERT INTO tickets VALUES (?1, ?2, ?3)", values).unwrap();
    }
    drop(connection);
    let mut edge = Hands::start(Settings { days: 3, ..settings(folder.path()) }, TODAY);
    assert_eq!(edge.ask("fresh", SECOND), None, "whether it is whole, nobody knows");
    edge.settle();
    for _ in 0..2 {
        for key in ["early", "late"] {
            assert_eq!(edge.ask(key, SECOND), Some(FIRST));
            assert_eq!(edge.ask_in("INV/2026", key, SECOND), Some(FIRST), "its period was not written down");
        }
        assert_eq!(edge.ask_in("INV/2026", "fresh", SECOND), Some(SECOND));
        edge.run(3 * DAY);
    }
    // They are over; then each period has its own.
    edge.run(DAY);
    assert_eq!(edge.ask_in("INV/2026", "early", SECOND), Some(SECOND));
    assert_eq!(edge.ask_in("INV/2027", "early", FIRST), Some(FIRST));
    assert!(edge.words().starts_with("2 kept"), "{}", edge.words());
}
