//! Real files put back under a store whose process was killed or ended: it must never give a key
//! another ticket than the one that the key went out with, and must not doubt for nothing.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;

use super::super::seal::{Seal, Stamp};
use super::process::Edge;
use super::*;

/// Every file of the store.
const ALL: [&str; 5] =
    ["tickets.db", "tickets.db-wal", "tickets.db-shm", "tickets.db.witness", "tickets.db.seal"];
/// More tickets than the log holds before it is copied.
const MANY: u32 = 3000;
/// Longer than the coarsest tick by which a file system of today tells times apart.
const TICK: Duration = Duration::from_millis(20);

/// How files are put back.
#[derive(Debug, Clone, Copy)]
enum Way {
    InPlace,
    RemovedFirst,
    Renamed,
    /// With owner, mode and times of the files, as archives are.
    Archived,
    /// Only what differs by length or time, as `rsync` does.
    WhatDiffers,
}

const WAYS: [Way; 5] = [Way::InPlace, Way::RemovedFirst, Way::Renamed, Way::Archived, Way::WhatDiffers];

fn run(program: &str, args: &[&std::ffi::OsStr]) {
    assert!(Command::new(program).args(args).status().unwrap().success(), "{program} {args:?}");
}

fn back_up(folder: &Path) -> tempfile::TempDir {
    let backup = tempfile::tempdir_in(folder.parent().unwrap()).unwrap();
    for name in ALL {
        let file = folder.join(name);
        if file.exists() {
            run("cp", &["-a".as_ref(), file.as_os_str(), backup.path().join(name).as_os_str()]);
        }
    }
    backup
}

/// These files are as they were, or gone where there were none.
fn put_back(backup: &Path, folder: &Path, names: &[&str], way: Way) {
    std::thread::sleep(TICK);
    for name in names {
        let (from, to) = (backup.join(name), folder.join(name));
        if !from.exists() {
            let _absent = std::fs::remove_file(&to);
            continue;
        }
        match way {
            Way::InPlace => drop(std::fs::copy(&from, &to).unwrap()),
            Way::RemovedFirst => {
                let _absent = std::fs::remove_file(&to);
                std::fs::copy(&from, &to).unwrap();
            }
            Way::Renamed => {
                let fresh = folder.join("fresh");
                std::fs::copy(&from, &fresh).unwrap();
                std::fs::rename(&fresh, &to).unwrap();
            }
            Way::Archived => run("cp", &["-a".as_ref(), from.as_os_str(), to.as_os_str()]),
            Way::WhatDiffers => {
                let about = |file: &Path| {
                    let about = std::fs::metadata(file).ok()?;
                    Some((about.len(), about.modified().unwrap()))
                };
                if about(&from) != about(&to) {
                    run("cp", &["-a".as_ref(), from.as_os_str(), to.as_os_str()]);
                }
            }
        }
    }
}

/// A store that lost `lost` says so, keeps `kept`, and is sure again once both were together.
fn doubts(folder: &Path, how: &str) {
    // Twice, since a doubt outlives edge.
    for _ in 0..2 {
        let mut edge = Edge::start(folder);
        assert_eq!(edge.ask("lost", SECOND), None, "{how}");
        assert!(edge.is_in_doubt(), "{how}");
        edge.kill();
    }
    let mut edge = Edge::start(folder);
    edge.settle();
    assert_eq!(edge.ask("after", SECOND), Some(SECOND), "{how}");
    edge.kill();
    let mut edge = Edge::start(folder);
    assert!(!edge.is_in_doubt(), "{how}: no doubt lasts for ever");
    assert_eq!(edge.ask("after", FIRST), Some(SECOND), "{how}");
    edge.end();
    assert!(!Edge::start(folder).is_in_doubt(), "{how}");
}

#[test]
fn neither_a_killed_edge_nor_one_that_ended_is_doubted() {
    let folder = tempfile::tempdir().unwrap();
    let mut edge = Edge::start(folder.path());
    edge.settle();
    for round in 0..24 {
        assert_eq!(edge.ask_many(&format!("few-{round}"), 3, FIRST), Some(FIRST));
        if round % 2 == 0 {
            assert_eq!(edge.ask_many(&format!("many-{round}"), MANY, FIRST), Some(FIRST));
        }
        if round % 3 == 0 {
            edge.end()
        } else {
            edge.kill()
        }
        std::thread::sleep(TICK);
        edge = Edge::start(folder.path());
        assert!(!edge.is_in_doubt(), "after start {round}: {}", edge.words());
        assert_eq!(edge.ask_many(&format!("few-{round}"), 3, SECOND), Some(FIRST));
    }
}

/// The pages that stand in the log, as they are last, in the order in which they are copied.
fn pages_of_the_log(log: &Path) -> (usize, BTreeMap<u32, Vec<u8>>) {
    const HEADER: usize = 32;
    const FRAME: usize = 24;
    let log = std::fs::read(log).unwrap();
    let number = |at: usize| u32::from_be_bytes(log[at..at + 4].try_into().unwrap());
    let page = number(8) as usize;
    let frames = (HEADER..log.len()).step_by(FRAME + page);
    // Those of an earlier log behind them have another salt.
    let frames = frames.take_while(|at| number(at + 8) == number(16));
    let pages = frames.map(|at| (number(at), log[at + FRAME..at + FRAME + page].to_vec()));
    (page, pages.collect())
}

#[test]
fn an_edge_killed_while_it_copies_the_log_lost_nothing_and_is_not_doubted() {
    for copied in 0.. {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let mut edge = Edge::start(folder.path());
        edge.settle();
        // Fewer than the log holds before edge copies it itself.
        assert_eq!(edge.ask_many("logged", 900, FIRST), Some(FIRST));
        edge.kill();
        let file = folder.path().join("tickets.db");
        let (size, pages) = pages_of_the_log(&folder.path().join("tickets.db-wal"));
        assert!(pages.len() > 10);
        let witness = Stamp::at(&folder.path().join("tickets.db.witness")).unwrap();
        Seal::of(&file, None).unwrap().put(None, witness).unwrap();
        let into = std::fs::File::options().write(true).open(&file).unwrap();
        for (number, page) in pages.iter().take(copied) {
            into.write_all_at(page, (u64::from(*number) - 1) * size as u64).unwrap();
        }
        let mut edge = Edge::start(folder.path());
        assert!(!edge.is_in_doubt(), "{copied} of {}: {}", pages.len(), edge.words());
        assert_eq!(edge.ask_many("logged", 900, SECOND), Some(FIRST));
        edge.end();
        if copied >= pages.len() {
            break;
        }
    }
}

/// A backup while edge runs; then `lost` is written and copied from the log into the file, and more
/// into the log; then edge is killed.
fn killed_after_backup(folder: &Path) -> tempfile::TempDir {
    let mut edge = Edge::start(folder);
    edge.settle();
    assert_eq!(edge.ask_many("kept", MANY, FIRST), Some(FIRST));
    let backup = back_up(folder);
    assert_eq!(edge.ask("lost", FIRST), Some(FIRST));
    for round in 0..3 {
        assert_eq!(edge.ask_many(&format!("further-{round}"), MANY, FIRST), Some(FIRST));
    }
    assert_eq!(edge.ask("in-the-log", FIRST), Some(FIRST));
    edge.kill();
    assert!(folder.join("tickets.db-wal").exists());
    backup
}

#[test]
fn an_older_file_put_back_beside_the_log_of_a_killed_edge_is_doubted() {
    for way in WAYS {
        let folder = tempfile::tempdir().unwrap();
        let backup = killed_after_backup(folder.path());
        put_back(backup.path(), folder.path(), &["tickets.db"], way);
        doubts(folder.path(), &format!("{way:?}"));
    }
}

#[test]
fn everything_put_back_together_is_doubted() {
    for way in WAYS {
        let folder = tempfile::tempdir().unwrap();
        let backup = killed_after_backup(folder.path());
        put_back(backup.path(), folder.path(), &ALL, way);
        doubts(folder.path(), &format!("{way:?}, edge was killed"));
        // The same where edge had ended both times.
        let mut edge = Edge::start(folder.path());
        edge.ask("kept", SECOND).unwrap();
        edge.end();
        let backup = back_up(folder.path());
        let mut edge = Edge::start(folder.path());
        assert_eq!(edge.ask("lost", FIRST), Some(FIRST));
        edge.end();
        put_back(backup.path(), folder.path(), &ALL, way);
        let mut edge = Edge::start(folder.path());
        assert_eq!(edge.ask("lost", SECOND), None, "{way:?}");
        edge.settle();
        edge.end();
        assert!(!Edge::start(folder.path()).is_in_doubt());
    }
}

#[test]
fn any_few_of_the_files_put_back_are_doubted() {
    for way in [Way::InPlace, Way::Renamed] {
        for chosen in 1..1_u32 << ALL.len() {
            let names: Vec<&str> =
                (0..ALL.len()).filter(|at| chosen & 1 << at != 0).map(|at| ALL[at]).collect();
            let folder = tempfile::tempdir_in("/dev/shm").unwrap();
            // The log alone is copied, not the file: one run, in which the file stays the same.
            let mut edge = Edge::start(folder.path());
            edge.settle();
            edge.ask("kept", FIRST).unwrap();
            let backup = back_up(folder.path());
            edge.ask("lost", FIRST).unwrap();
            edge.kill();
            put_back(backup.path(), folder.path(), &names, way);
            let mut edge = Edge::start(folder.path());
            let told = edge.ask("lost", SECOND);
            assert_ne!(told, Some(SECOND), "{names:?} {way:?}");
            if told.is_none() {
                assert!(edge.is_in_doubt());
                edge.settle();
            }
            edge.kill();
        }
    }
}

/// Were the seal to say that all is well, the stories above would give a key a second ticket.
#[test]
fn a_store_that_heeded_no_seal_would_give_a_second_ticket() {
    let folder = tempfile::tempdir().unwrap();
    let backup = killed_after_backup(folder.path());
    put_back(backup.path(), folder.path(), &ALL, Way::InPlace);
    let file = folder.path().join("tickets.db");
    let stamp = |file: &Path| Stamp::at(file).unwrap();
    let seal = Seal::of(&file, None).unwrap();
    seal.put(Some(stamp(&file)), stamp(&folder.path().join("tickets.db.witness"))).unwrap();
    let mut edge = Edge::start(folder.path());
    assert!(!edge.is_in_doubt());
    assert_eq!(edge.ask("lost", SECOND), Some(SECOND));
}

#[test]
fn a_folder_that_was_away_while_another_store_was_in_use_is_doubted() {
    let base = tempfile::tempdir().unwrap();
    let (folder, away, memory) =
        (base.path().join("edge"), base.path().join("away"), base.path().join("control.tickets"));
    let start = || {
        let program = Command::new(std::env::current_exe().unwrap());
        Edge::start_by(program, &folder, Some(&memory))
    };
    std::fs::create_dir(&folder).unwrap();
    let mut edge = start();
    edge.settle();
    edge.ask("kept", FIRST).unwrap();
    edge.end();
    // What moves, and nothing is written meanwhile, is what it was.
    std::fs::rename(&folder, &away).unwrap();
    std::fs::rename(&away, &folder).unwrap();
    let mut edge = start();
    assert!(!edge.is_in_doubt());
    edge.kill();
    std::fs::rename(&folder, &away).unwrap();
    std::fs::create_dir(&folder).unwrap();
    let mut edge = start();
    edge.settle();
    assert_eq!(edge.ask("lost", FIRST), Some(FIRST));
    edge.kill();
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::rename(&away, &folder).unwrap();
    let mut edge = start();
    assert_eq!(edge.ask("kept", SECOND), Some(FIRST));
    assert_eq!(edge.ask("lost", SECOND), None);
    edge.settle();
    edge.kill();
    assert!(!start().is_in_doubt());
}

#[test]
fn two_edges_whose_stores_are_exchanged_doubt_both() {
    let base = tempfile::tempdir().unwrap();
    let [one, other, third] = ["one", "other", "third"].map(|name| base.path().join(name));
    for folder in [&one, &other] {
        std::fs::create_dir(folder).unwrap();
        let mut edge = Edge::start(folder);
        edge.settle();
        edge.ask(if *folder == one { "of-one" } else { "of-other" }, FIRST).unwrap();
        edge.end();
    }
    let exchange = || {
        for (from, to) in [(&one, &third), (&other, &one), (&third, &other)] {
            std::fs::rename(from, to).unwrap();
        }
    };
    exchange();
    assert_eq!(Edge::start(&one).ask("of-one", SECOND), None);
    assert_eq!(Edge::start(&other).ask("of-other", SECOND), None);
    exchange();
    assert_eq!(Edge::start(&one).ask("of-one", SECOND), Some(FIRST));
    assert_eq!(Edge::start(&one).ask("fresh", SECOND), None);
}

#[test]
fn a_second_edge_with_the_same_store_is_told_and_gives_no_tickets() {
    let folder = tempfile::tempdir().unwrap();
    let mut edge = Edge::start(folder.path());
    edge.settle();
    let mut second = Edge::start(folder.path());
    assert!(second.words().contains("another edge's"), "{}", second.words());
    assert_eq!(second.ask("k", SECOND), None);
    assert_eq!(edge.ask("k", FIRST), Some(FIRST));
}
