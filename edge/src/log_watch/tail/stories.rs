//! Rotation as it happens, on real files: under a writer that does not wait, across restarts, and
//! without inotify.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use proptest::prelude::{any, proptest};

use super::stream::FAILING;
use super::{Following, Position, Tail, TailError, Watched};

const ALL: usize = usize::MAX;

struct Followed {
    tail: Tail,
    woken: Receiver<()>,
}

fn follow_with(pattern: &Path, saved: &[Position], inotify: bool) -> Followed {
    let (wake, woken) = sync_channel(1);
    let watched = [Watched { pattern: pattern.to_owned(), tag: 7 }];
    let wake = move || {
        let _already = wake.try_send(());
    };
    Followed { tail: Tail::open_with(&watched, saved, inotify, wake).unwrap(), woken }
}

fn follow(pattern: &Path, saved: &[Position]) -> Followed {
    follow_with(pattern, saved, true)
}

impl Followed {
    /// Everything there is now; looking included.
    fn lines(&mut self) -> Vec<String> {
        self.tail.look();
        self.heard()
    }

    /// Everything that was heard of.
    fn heard(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        for _ in 0..1000 {
            let more = self.tail.read(ALL, &mut |tag, _, line| {
                assert_eq!(tag, 7);
                lines.push(String::from_utf8_lossy(line).into_owned());
            });
            if !more {
                break;
            }
        }
        lines
    }

    /// Waits for inotify alone.
    fn woken(&mut self) -> Vec<String> {
        for _ in 0..100 {
            let _timeout = self.woken.recv_timeout(Duration::from_millis(100));
            let lines = self.heard();
            if !lines.is_empty() {
                return lines;
            }
        }
        Vec::new()
    }
}

fn append(path: &Path, text: &str) {
    let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().canonicalize().unwrap();
    (folder, path)
}

/// Reads while `write` runs on a thread of its own, and until everything has settled.
fn while_writing(path: &Path, inotify: bool, write: impl FnOnce() + Send) -> Vec<usize> {
    let mut followed = follow_with(path, &[], inotify);
    let mut lines = Vec::new();
    std::thread::scope(|scope| {
        let writer = scope.spawn(write);
        let mut rounds = 0;
        loop {
            let done = writer.is_finished();
            let more = followed.tail.read(64 * 1024, &mut |_, _, line| {
                lines.push(String::from_utf8_lossy(line).into_owned());
            });
            if !more {
                let _timeout =
                    followed.woken.recv_timeout(Duration::from_millis(if inotify { 20 } else { 1 }));
                rounds += 1;
                if !inotify || rounds % 10 == 0 || done {
                    followed.tail.look();
                }
            }
            if done && !more {
                break;
            }
        }
    });
    lines.extend(followed.lines());
    lines.iter().map(|line| line.strip_prefix("line ").unwrap().parse().unwrap()).collect()
}

fn assert_each_once(lines: &[usize], count: usize) {
    let different: HashSet<_> = lines.iter().collect();
    assert_eq!(lines.len(), different.len(), "no line twice");
    let missing: Vec<_> = (0..count).filter(|line| !different.contains(line)).take(10).collect();
    assert_eq!(different.len(), count, "no line lost, missing {missing:?}");
}

fn write_renaming(path: &Path, count: usize) {
    let open = || OpenOptions::new().append(true).create(true).open(path).unwrap();
    let mut file = open();
    for line in 0..count {
        file.write_all(format!("line {line}\n").as_bytes()).unwrap();
        if line % 7001 == 7000 {
            for older in (1..20).rev() {
                let name = |number| PathBuf::from(format!("{}.{number}", path.display()));
                let _absent = std::fs::rename(name(older), name(older + 1));
            }
            std::fs::rename(path, format!("{}.1", path.display())).unwrap();
            // As programs do that learn of it late.
            for late in 0..3 {
                file.write_all(format!("line {}\n", count + line / 7001 * 3 + late).as_bytes()).unwrap();
            }
            file = open();
        }
    }
}

#[test]
fn each_line_comes_once_while_a_writer_is_rotated_by_rename() {
    let (_folder, path) = folder();
    let log = path.join("a.log");
    let count = 100_000;
    let lines = while_writing(&log, true, || write_renaming(&log, count));
    assert_each_once(&lines, count + count / 7001 * 3);
}

#[test]
fn each_line_comes_once_by_polling_alone() {
    let (_folder, path) = folder();
    let log = path.join("a.log");
    File::create(&log).unwrap();
    let lines = while_writing(&log, false, || {
        let mut file = OpenOptions::new().append(true).open(&log).unwrap();
        for line in 0..100_000 {
            file.write_all(format!("line {line}\n").as_bytes()).unwrap();
            if line % 25_000 == 24_999 {
                std::fs::rename(&log, format!("{}.{line}", log.display())).unwrap();
                file = OpenOptions::new().append(true).create(true).open(&log).unwrap();
                // Slower than looking, as rotation is.
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    });
    assert_each_once(&lines, 100_000);
}

#[test]
fn each_line_comes_once_while_a_symlink_is_swapped() {
    let (_folder, path) = folder();
    let (link, dated) = (path.join("current"), path.join("dated"));
    std::fs::create_dir(&dated).unwrap();
    File::create(dated.join("0")).unwrap();
    symlink(dated.join("0"), &link).unwrap();
    let lines = while_writing(&link, true, || {
        let mut file = OpenOptions::new().append(true).open(&link).unwrap();
        for line in 0..100_000 {
            file.write_all(format!("line {line}\n").as_bytes()).unwrap();
            if line % 9000 == 8999 {
                let next = dated.join(line.to_string());
                file = OpenOptions::new().append(true).create(true).open(&next).unwrap();
                symlink(&next, path.join("new")).unwrap();
                std::fs::rename(path.join("new"), &link).unwrap();
                // A link swapped twice before anybody looks leaves its middle target unseen.
                std::thread::sleep(Duration::from_millis(30));
            }
        }
    });
    assert_each_once(&lines, 100_000);
}

#[test]
fn copytruncate_loses_nothing_that_its_copy_holds() {
    let (_folder, path) = folder();
    let log = path.join("a.log");
    File::create(&log).unwrap();
    let lines = while_writing(&log, true, || {
        let mut file = OpenOptions::new().append(true).open(&log).unwrap();
        for line in 0..100_000 {
            file.write_all(format!("line {line}\n").as_bytes()).unwrap();
            if line % 9000 == 8999 {
                std::fs::copy(&log, format!("{}.{line}", log.display())).unwrap();
                file.set_len(0).unwrap();
                std::thread::sleep(Duration::from_millis(30));
            }
        }
    });
    assert_each_once(&lines, 100_000);
}

#[test]
fn copytruncate_beside_a_writer_gives_no_line_twice_and_loses_only_its_window() {
    let (_folder, path) = folder();
    let log = path.join("a.log");
    File::create(&log).unwrap();
    let windows = std::sync::Mutex::new(Vec::new());
    let lines = while_writing(&log, true, || {
        let written = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut file = OpenOptions::new().append(true).open(&log).unwrap();
                for line in 0..100_000 {
                    file.write_all(format!("line {line}\n").as_bytes()).unwrap();
                    written.store(line + 1, std::sync::atomic::Ordering::SeqCst);
                }
            });
            let mut round = 0;
            while written.load(std::sync::atomic::Ordering::SeqCst) < 100_000 {
                std::thread::sleep(Duration::from_millis(40));
                let before = written.load(std::sync::atomic::Ordering::SeqCst);
                std::fs::copy(&log, format!("{}.{round}", log.display())).unwrap();
                OpenOptions::new().write(true).open(&log).unwrap().set_len(0).unwrap();
                let after = written.load(std::sync::atomic::Ordering::SeqCst);
                windows.lock().unwrap().push(before..=after);
                round += 1;
            }
        });
    });
    let different: HashSet<_> = lines.iter().copied().collect();
    assert_eq!(different.len(), lines.len(), "no line twice");
    let windows = windows.into_inner().unwrap();
    let lost: Vec<_> = (0..100_000).filter(|line| !different.contains(line)).collect();
    let outside: Vec<_> = lost.iter().filter(|l| !windows.iter().any(|window| window.contains(*l))).collect();
    assert!(outside.is_empty(), "lost outside of {windows:?}: {outside:?}");
}

proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(48))]
    /// Writes, renames, copytruncates, reads and restarts in any order; logrotate runs at most
    /// once while nobody reads.
    #[test]
    fn each_line_comes_once_and_in_order_over_restarts_at_any_point(steps in proptest::collection::vec(any::<u8>(), 1..60)) {
        let (_folder, path) = folder();
        let log = path.join("a.log");
        File::create(&log).unwrap();
        let (mut followed, mut got, mut next, mut rotations) = (follow_with(&log, &[], false), Vec::new(), 0, 0);
        let mut rotate = |next: &mut usize, copy: bool| {
            rotations += 1;
            let old = path.join(format!("a.log.{rotations}"));
            if copy {
                std::fs::copy(&log, old).unwrap();
                OpenOptions::new().write(true).open(&log).unwrap().set_len(0).unwrap();
            } else {
                std::fs::rename(&log, old).unwrap();
            }
            append(&log, &format!("line {next}\n"));
            *next += 1;
        };
        for step in steps {
            match step % 8 {
                0..=2 => {
                    let mut text = String::new();
                    for _ in 0..=step {
                        text.push_str(&format!("line {next}\n"));
                        next += 1;
                    }
                    append(&log, &text);
                }
                3 => {
                    followed.tail.look();
                    followed.tail.read(usize::from(step), &mut |_, _, line| got.push(String::from_utf8_lossy(line).into_owned()));
                }
                // Copies are told from other files by their first 256 bytes.
                copying @ (4 | 5) => {
                    got.extend(followed.lines());
                    rotate(&mut next, copying == 5);
                    got.extend(followed.lines());
                }
                _ => {
                    let positions = followed.tail.positions();
                    drop(followed);
                    if step > 128 {
                        rotate(&mut next, false);
                    }
                    followed = follow_with(&log, &positions, false);
                }
            }
        }
        got.extend(followed.lines());
        let wanted: Vec<_> = (0..next).map(|line| format!("line {line}")).collect();
        assert_eq!(got, wanted);
    }
}

#[test]
fn inotify_alone_tells_of_lines_rotations_and_new_files() {
    let (_folder, path) = folder();
    let log = path.join("a.log");
    append(&log, "old\nhalf");
    let mut followed = follow(&log, &[]);
    assert_eq!(followed.heard(), [""; 0], "what was there at the start is not news");
    append(&log, " line\n");
    assert_eq!(followed.woken(), ["half line"]);
    std::fs::rename(&log, path.join("a.log.1")).unwrap();
    append(&path.join("a.log.1"), "late\n");
    append(&log, "new\n");
    let mut lines = followed.woken();
    while lines.len() < 2 {
        let more = followed.woken();
        assert!(!more.is_empty(), "{lines:?}");
        lines.extend(more);
    }
    assert_eq!(lines, ["late", "new"]);
    append(&path.join("a.log.1"), "later\n");
    assert_eq!(followed.woken(), ["later"], "a renamed file's writer is still heard");
    let state = &followed.tail.files()[0];
    assert!(state.inotify && state.rotations == 1 && state.behind == 0, "{state:?}");
}

#[test]
fn a_missing_folder_is_followed_when_it_appears() {
    let (_folder, path) = folder();
    let log = path.join("later/a.log");
    let mut followed = follow(&log, &[]);
    assert_eq!(followed.tail.files()[0].following, Following::Missing);
    std::fs::create_dir(path.join("later")).unwrap();
    append(&log, "first\n");
    assert_eq!(followed.lines(), ["first"], "from its beginning");
    append(&log, "second\n");
    assert_eq!(followed.woken(), ["second"], "and by inotify from now on");
    std::fs::remove_dir_all(path.join("later")).unwrap();
    followed.lines();
    assert_eq!(followed.tail.files()[0].following, Following::Missing);
    std::fs::create_dir(path.join("later")).unwrap();
    append(&log, "third\n");
    assert_eq!(followed.lines(), ["third"]);
    append(&log, "fourth\n");
    assert_eq!(followed.woken(), ["fourth"], "the new folder is watched");
}

#[test]
fn an_inode_used_again_is_read_from_its_beginning() {
    let (_folder, path) = folder();
    let log = path.join("a.log");
    append(&log, "one\ntwo\n");
    let mut followed = follow(&log, &[]);
    append(&log, "three\n");
    assert_eq!(followed.lines(), ["three"]);
    let mut positions = followed.tail.positions();
    drop(followed);
    std::fs::remove_file(&log).unwrap();
    append(&log, "other\nfile\nand longer\n");
    positions[0].inode = log.metadata().unwrap().ino();
    assert_eq!(follow(&log, &positions).lines(), ["other", "file", "and longer"]);
}

#[test]
fn a_file_truncated_and_grown_beyond_its_offset_is_noticed() {
    for inotify in [true, false] {
        let (_folder, path) = folder();
        let log = path.join("a.log");
        append(&log, "");
        let mut followed = follow_with(&log, &[], inotify);
        append(&log, "one\ntwo\n");
        assert_eq!(followed.lines(), ["one", "two"]);
        File::create(&log).unwrap().write_all(b"three\nfour\nfive\n").unwrap();
        assert_eq!(followed.lines(), ["three", "four", "five"], "inotify {inotify}");
        assert_eq!(followed.tail.files()[0].rotations, 1);
    }
}

#[test]
fn what_cannot_be_read_is_told_and_tried_again() {
    let (_folder, path) = folder();
    let log = path.join("a.log");
    // Unreadable even for root: a folder, and a FIFO that must not be waited for.
    std::fs::create_dir(&log).unwrap();
    let mut followed = follow(&log, &[]);
    let why = Following::Unreadable("it is no regular file".to_owned());
    assert_eq!(followed.tail.files()[0].following, why);
    std::fs::remove_dir(&log).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &log, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
        .unwrap();
    assert_eq!(followed.lines(), [""; 0]);
    assert_eq!(followed.tail.files()[0].following, why);
    std::fs::remove_file(&log).unwrap();
    symlink("a.log", &log).unwrap();
    followed.lines();
    assert!(
        matches!(&followed.tail.files()[0].following, Following::Unreadable(why) if why.contains("links"))
    );
    std::fs::remove_file(&log).unwrap();
    followed.lines();
    append(&log, "at last\n");
    assert_eq!(followed.lines(), ["at last"]);
}

#[test]
fn a_read_error_costs_no_line_and_repeats_none() {
    for restart in [false, true] {
        let (_folder, path) = folder();
        let log = path.join("a.log");
        append(&log, "old\n");
        let mut followed = follow(&log, &[]);
        append(&log, "one\ntwo\n");
        assert_eq!(followed.lines(), ["one", "two"]);
        FAILING.set(Some(log.metadata().unwrap().ino()));
        append(&log, "three\n");
        for _ in 0..3 {
            assert_eq!(followed.lines(), [""; 0]);
        }
        let state = followed.tail.files().remove(0).following;
        assert!(matches!(&state, Following::Unreadable(why) if why.contains("Input/output")), "{state:?}");
        if restart {
            let positions = followed.tail.positions();
            followed = follow(&log, &positions);
            assert_eq!(followed.lines(), [""; 0]);
            let positions = followed.tail.positions();
            followed = follow(&log, &positions);
        }
        FAILING.set(None);
        assert_eq!(followed.lines(), ["three"], "restart {restart}");
        append(&log, "four\n");
        assert_eq!(followed.lines(), ["four"]);
        assert_eq!(followed.tail.files()[0].following, Following::Followed);
    }
}

#[test]
fn a_log_rotated_while_it_cannot_be_read_is_read_on_where_it_lies_later() {
    let (_folder, path) = folder();
    let log = path.join("a.log");
    append(&log, "");
    let mut followed = follow(&log, &[]);
    append(&log, "one\n");
    assert_eq!(followed.lines(), ["one"]);
    FAILING.set(Some(log.metadata().unwrap().ino()));
    append(&log, "two\n");
    assert_eq!(followed.lines(), [""; 0]);
    std::fs::rename(&log, path.join("a.log.1")).unwrap();
    append(&log, "three\n");
    assert_eq!(followed.lines(), ["three"], "the new log does not wait for the old one");
    assert_eq!(followed.lines(), [""; 0]);
    FAILING.set(None);
    assert_eq!(followed.lines(), ["two"]);
    append(&log, "four\n");
    assert_eq!(followed.lines(), ["four"]);
}

#[test]
fn a_log_that_comes_back_after_long_is_read_on_where_it_was_left() {
    for replaced in [true, false] {
        let (_folder, path) = folder();
        let log = path.join("a.log");
        append(&log, "");
        let mut followed = follow(&log, &[]);
        append(&log, "one\n");
        assert_eq!(followed.lines(), ["one"]);
        std::fs::rename(&log, path.join("elsewhere")).unwrap();
        if replaced {
            std::fs::create_dir(&log).unwrap();
        }
        for _ in 0..700 {
            assert_eq!(followed.lines(), [""; 0]);
        }
        append(&path.join("elsewhere"), "two\n");
        if replaced {
            std::fs::remove_dir(&log).unwrap();
        }
        std::fs::rename(path.join("elsewhere"), &log).unwrap();
        let (first, second) = (followed.lines(), followed.lines());
        assert_eq!([first, second].concat(), ["two"], "replaced by a folder: {replaced}");
    }
}

#[test]
fn partial_long_and_holed_lines_are_kept_skipped_and_hopped_over() {
    let (_folder, path) = folder();
    let log = path.join("a.log");
    append(&log, "");
    let mut followed = follow(&log, &[]);
    append(&log, "par");
    assert_eq!(followed.lines(), [""; 0]);
    append(&log, "tial\r\n");
    assert_eq!(followed.lines(), ["partial"]);
    append(&log, &"x".repeat(700_000));
    assert_eq!(followed.lines(), [""; 0]);
    let positions = followed.tail.positions();
    assert_eq!(followed.tail.files()[0].long_lines, 1);
    drop(followed);
    let mut followed = follow(&log, &positions);
    append(&log, "xx\nfine\n");
    assert_eq!(followed.lines(), ["fine"], "the long line is skipped to its end after a restart, too");
    // copytruncate below a writer without O_APPEND: a hole, then its next line.
    let file = OpenOptions::new().write(true).open(&log).unwrap();
    file.set_len(0).unwrap();
    file.write_all_at(b"behind the hole\n", 3_000_000_123).unwrap();
    assert_eq!(followed.lines(), ["behind the hole"]);
    append(&log, "next\n");
    assert_eq!(followed.lines(), ["next"]);
}

#[test]
fn new_matches_of_a_pattern_are_read_from_their_beginning_and_rotated_ones_not_again() {
    let (_folder, path) = folder();
    append(&path.join("a.log"), "old\n");
    let mut followed = follow(&path.join("*.log*"), &[]);
    append(&path.join("b.log"), "b1\n");
    assert_eq!(followed.woken(), ["b1"]);
    append(&path.join("a.log"), "a1\n");
    assert_eq!(followed.woken(), ["a1"]);
    std::fs::rename(path.join("a.log"), path.join("a.log.1")).unwrap();
    assert_eq!(followed.lines(), [""; 0]);
    append(&path.join("a.log"), "a2\n");
    std::fs::write(path.join("c.log.gz"), "packed\n").unwrap();
    assert_eq!(followed.woken(), ["a2"]);
    std::fs::remove_file(path.join("b.log")).unwrap();
    for _ in 0..20 {
        assert_eq!(followed.lines(), [""; 0]);
    }
    let names: Vec<_> = followed.tail.files().into_iter().map(|file| file.path).collect();
    assert_eq!(names, [path.join("a.log")]);
}

#[test]
fn what_appeared_while_edge_was_down_is_new_and_what_a_new_pattern_finds_is_not() {
    let (_folder, path) = folder();
    append(&path.join("a.log"), "old\n");
    let mut followed = follow(&path.join("*.log"), &[]);
    assert_eq!(followed.lines(), [""; 0]);
    let positions = followed.tail.positions();
    drop(followed);
    append(&path.join("a.log"), "a\n");
    append(&path.join("b.log"), "b\n");
    append(&path.join("c.txt"), "c\n");
    assert_eq!(follow(&path.join("*.txt"), &positions).lines(), [""; 0], "an operator's new pattern");
    assert_eq!(follow(&path.join("*.log"), &positions).lines(), ["a", "b"]);
    let literal = path.join("later");
    let positions = follow(&literal, &[]).tail.positions();
    append(&literal, "first\n");
    assert_eq!(follow(&literal, &positions).lines(), ["first"], "it was waited for");
}

#[test]
fn a_pattern_s_log_rotated_while_edge_was_down_is_read_on_though_no_new_one_is_there() {
    let (_folder, path) = folder();
    let log = path.join("a.log");
    append(&log, "");
    let mut followed = follow(&path.join("*.log"), &[]);
    append(&log, "one\n");
    assert_eq!(followed.lines(), ["one"]);
    let positions = followed.tail.positions();
    drop(followed);
    append(&log, "two\n");
    std::fs::rename(&log, path.join("a.log.1")).unwrap();
    let mut followed = follow(&path.join("*.log"), &positions);
    assert_eq!(followed.lines(), ["two"]);
    append(&log, "three\n");
    assert_eq!(followed.woken(), ["three"]);
}

#[test]
fn a_log_unreadable_at_the_start_is_news_from_then_on() {
    let (_folder, path) = folder();
    let log = path.join("a.log");
    append(&log, "old\n");
    FAILING.set(Some(log.metadata().unwrap().ino()));
    let mut followed = follow(&log, &[]);
    append(&log, "new\n");
    assert_eq!(followed.lines(), [""; 0]);
    FAILING.set(None);
    assert_eq!(followed.lines(), ["new"]);
}

#[test]
fn two_sources_share_one_reading_of_a_log() {
    let (_folder, path) = folder();
    let log = path.join("a.log");
    let watched = [1, 2].map(|tag| Watched { pattern: log.clone(), tag });
    let mut tail = Tail::open(&watched, &[], || {}).unwrap();
    append(&log, "x\n");
    tail.look();
    let mut got = Vec::new();
    tail.read(ALL, &mut |tag, path, line| got.push((tag, path.to_owned(), line.to_vec())));
    assert_eq!(got, [(1, log.clone(), b"x".to_vec()), (2, log, b"x".to_vec())]);
}

#[test]
fn a_relative_name_is_refused_and_says_what_to_write() {
    let watched = [Watched { pattern: "logs/a.log".into(), tag: 0 }];
    let refused = Tail::open(&watched, &[], || {}).err().unwrap();
    assert_eq!(refused, TailError::Relative("logs/a.log".into()));
    assert_eq!(refused.to_string(), "log_watch: logs/a.log: is no absolute path; write it from `/` on");
}

#[test]
fn a_small_budget_is_kept_and_says_that_more_is_waiting() {
    let (_folder, path) = folder();
    let log = path.join("a.log");
    append(&log, "");
    let mut followed = follow(&log, &[]);
    let mut file = OpenOptions::new().append(true).mode(0o600).open(&log).unwrap();
    file.write_all("0123456789\n".repeat(100_000).as_bytes()).unwrap();
    followed.tail.look();
    let mut count = 0;
    assert!(followed.tail.read(1, &mut |_, _, _| count += 1));
    assert!(count > 0 && count < 30_000, "{count}: one block");
    assert_eq!(count + followed.heard().len(), 100_000);
}
