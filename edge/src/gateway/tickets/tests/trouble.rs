//! A witness that cannot be written, and stores of earlier versions: real files, disks and users.

use super::super::store::Sought;
use super::process::Edge;
use super::*;

#[tokio::test]
async fn while_the_witness_cannot_be_written_nothing_goes_out_and_afterwards_nothing_is_lost() {
    let disk = SmallDisk::new("size=8m");
    let (tickets, registry) = settled(settings(disk.0.path())).await;
    // So many that the log is copied into the file: from then on it is written over, and needs no room.
    let keys: Vec<_> = (0..3000).map(|number| format!("k{number}")).collect();
    assert!(tickets.write_down("INV", keys, FIRST).await.iter().all(Option::is_some));
    assert_eq!(ticket(&tickets, "before", FIRST).await, Some(FIRST));
    // The witness loses its page, so that to write it needs room, and there is none.
    let witness = disk.0.path().join("tickets.db.witness");
    let punched =
        Command::new("fallocate").args(["-p", "-o", "0", "-l", "4096"]).arg(&witness).status().unwrap();
    assert!(punched.success());
    let ballast = disk.0.path().join("ballast");
    let _full = std::fs::write(&ballast, vec![1; 16 << 20]);
    for life in [FIRST, SECOND] {
        assert_eq!(ticket(&tickets, "k", life).await, None);
        assert!(tickets.words().contains("its witness"), "{}", tickets.words());
        assert!(tickets.words().contains("No space left"), "{}", tickets.words());
        assert_eq!(figure(&registry, "edge_gateway_tickets_failing", ""), 1.0);
    }
    std::fs::remove_file(&ballast).unwrap();
    assert_eq!(ticket(&tickets, "k", SECOND).await, Some(FIRST), "it stood in the store all the time");
    assert_eq!(ticket(&tickets, "before", SECOND).await, Some(FIRST));
    assert_eq!(ticket(&tickets, "later", SECOND).await, Some(SECOND));
    assert_eq!(figure(&registry, "edge_gateway_tickets_failing", ""), 0.0);
    tickets.end().await;
    let (tickets, _) = start(settings(disk.0.path()));
    assert_eq!(tickets.doubt(), None);
}

#[test]
fn a_folder_in_which_edges_user_may_not_write_is_told_and_heals() {
    const NOBODY: u32 = 65534;
    let folder = tempfile::tempdir().unwrap();
    let start = || {
        let mut program = Command::new("setpriv");
        program
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(std::env::current_exe().unwrap());
        Edge::start_by(program, folder.path(), None)
    };
    let owner = |user| std::os::unix::fs::chown(folder.path(), Some(user), Some(user)).unwrap();
    let everybody_reads = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder.path(), everybody_reads).unwrap();
    owner(NOBODY);
    let mut edge = start();
    edge.settle();
    assert_eq!(edge.ask("k", FIRST), Some(FIRST));
    // The log stays beside the file, so that the witness is all that has to be made.
    edge.kill();
    std::fs::remove_file(folder.path().join("tickets.db.witness")).unwrap();
    owner(0);
    let mut edge = start();
    assert_eq!(edge.ask("k", SECOND), None);
    assert_eq!(edge.ask("fresh", SECOND), None);
    let words = edge.words();
    assert!(words.contains("its witness") && words.contains("ermission denied"), "{words}");
    owner(NOBODY);
    let mut turns = (0..1200).map(|_| std::thread::sleep(Duration::from_millis(50)));
    while edge.words().contains("NOT written") {
        turns.next().expect("it is never tried again");
    }
    assert_eq!(edge.ask("k", SECOND), Some(FIRST));
    assert_eq!(edge.ask("fresh", SECOND), None, "the witness was lost");
    edge.settle();
    assert_eq!(edge.ask("fresh", SECOND), Some(SECOND));
    edge.kill();
    assert!(!start().is_in_doubt());
}

/// What the second version of the file was; the third added a column.
const SECOND_VERSION: &str = "
    CREATE TABLE tickets (mark BLOB PRIMARY KEY, life BLOB NOT NULL, day INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE about (id INTEGER PRIMARY KEY CHECK (id = 1), secret BLOB NOT NULL,
        settled INTEGER NOT NULL, kept INTEGER NOT NULL, former INTEGER NOT NULL,
        ran INTEGER NOT NULL, place TEXT NOT NULL);
    PRAGMA journal_mode = wal;
    PRAGMA application_id = 1701082219;
    PRAGMA user_version = 2;
";
const THIRD_VERSION: &str = "
    ALTER TABLE about ADD COLUMN token BLOB NOT NULL DEFAULT x'';
    PRAGMA user_version = 3;
";

/// A store as that version of edge left it, in this boot, with these keys of 40 days.
fn written_by(version: i64, folder: &Path, keys: &[String]) {
    use std::os::unix::fs::MetadataExt;
    let file = folder.join("tickets.db");
    let secret = Secret::of(&file).unwrap();
    let mut connection = rusqlite::Connection::open(&file).unwrap();
    connection.execute_batch(SECOND_VERSION).unwrap();
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let about = std::fs::metadata(&file).unwrap();
    let place = format!("{} {}:{}", boot.trim(), about.dev(), about.ino());
    let values = rusqlite::params![secret.sign(), keys.len(), 40 * 86_400, place];
    let filling = connection.transaction().unwrap();
    filling.execute("INSERT INTO about VALUES (1, ?1, 1, ?2, 0, ?3, ?4)", values).unwrap();
    for (number, key) in keys.iter().enumerate() {
        let Sought { mark, .. } = secret.sought("INV", key);
        let values = rusqlite::params![mark, FIRST.0.to_be_bytes(), number % 40];
        filling.execute("INSERT INTO tickets VALUES (?1, ?2, ?3)", values).unwrap();
    }
    filling.commit().unwrap();
    if version == 3 {
        connection.execute_batch(THIRD_VERSION).unwrap();
        connection.execute("UPDATE about SET token = ?1", [[5_u8; 16]]).unwrap();
        std::fs::write(folder.join("tickets.db.witness"), [[5_u8; 16], [6; 16]].concat()).unwrap();
    }
}

#[test]
fn a_store_of_an_earlier_version_keeps_its_tickets_and_is_doubted_once() {
    for version in [2, 3] {
        let folder = tempfile::tempdir().unwrap();
        let keys: Vec<_> = (0..5000).map(|number| format!("k-{number}")).collect();
        written_by(version, folder.path(), &keys);
        let mut edge = Edge::start(folder.path());
        assert_eq!(edge.ask("fresh", SECOND), None, "whether it was put back, nobody knows");
        // What is not older than 30 days of running is there, in doubt too.
        assert_eq!(edge.ask_in_order("k", 10..40, SECOND), Some(FIRST));
        edge.settle();
        assert_eq!(edge.ask("fresh", SECOND), Some(SECOND));
        edge.kill();
        let mut edge = Edge::start(folder.path());
        assert!(!edge.is_in_doubt());
        assert_eq!(edge.ask_in_order("k", 4970..5000, SECOND), Some(FIRST));
        assert_eq!(edge.ask("fresh", FIRST), Some(SECOND));
        edge.end();
        let connection = rusqlite::Connection::open(folder.path().join("tickets.db")).unwrap();
        let (version, kept, rows): (i64, i64, i64) = connection
            .query_row(
                "SELECT user_version, kept, (SELECT count(*) FROM tickets) FROM pragma_user_version, about",
                [],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
            )
            .unwrap();
        assert_eq!((version, kept), (4, rows));
        assert!(rows > 3000, "{rows}");
    }
}
