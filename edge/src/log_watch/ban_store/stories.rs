//! What bans must survive: restarts, kills, full disks, damage and floods; on real files.
#![allow(clippy::disallowed_methods, reason = "stories wait and measure")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use proptest::prelude::{Strategy, any, proptest};

use super::{BanStore, BanStoreError, Change, KEEP, Lease, Position, Restored, StoredBan, WouldBan};

const NOW: Duration = Duration::from_secs(1_790_000_000);
const SOON: Duration = Duration::from_secs(30);

fn ban(number: u32) -> StoredBan {
    StoredBan {
        network: IpNet::from(IpAddr::V4(Ipv4Addr::from(number))),
        jail: "ssh".to_owned(),
        since: NOW,
        until: NOW + Duration::from_secs(600),
        offences: 5,
        times: 1,
        throttle: false,
        reason: "5 offences".to_owned(),
    }
}

fn change(number: u32) -> Change {
    Change::Ban(ban(number), vec![format!("sshd[1]: Failed password from {number}").into_bytes().into()])
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bans.db");
    (folder, file)
}

fn open(file: &Path) -> (BanStore, Restored) {
    BanStore::open(file, NOW).unwrap()
}

#[test]
fn everything_is_there_after_a_restart() {
    let (_folder, file) = folder();
    let (store, restored) = open(&file);
    assert_eq!(restored, Restored::default());
    let lease = Lease {
        id: store.lease_id(),
        network: "192.0.2.0/28".parse().unwrap(),
        ticket: "PT-7".to_owned(),
        since: NOW,
        until: NOW + SOON,
        ended: None,
    };
    let would = WouldBan {
        lease: 1,
        network: lease.network,
        jail: "http".to_owned(),
        at: NOW,
        line: (*b"GET /.env").into(),
    };
    let position =
        Position { path: "/var/log/a".into(), device: 1, inode: u64::MAX, offset: 3, fingerprint: 1 << 63 };
    let six = StoredBan { network: "2001:db8::/64".parse().unwrap(), times: 3, throttle: true, ..ban(0) };
    for change in [
        change(1),
        Change::Ban(six.clone(), Vec::new()),
        change(2),
        Change::End { network: ban(2).network, at: NOW + Duration::from_secs(1), forgiven: false },
        Change::Lease(lease.clone()),
        Change::WouldBan(would.clone()),
        Change::Off(Some(NOW + SOON)),
        Change::Positions(vec![position.clone()]),
    ] {
        store.save(change);
    }
    assert!(store.flush(SOON));
    assert_eq!(store.would_bans(1).unwrap(), [would]);
    let evidence = store.evidence(ban(1).network).unwrap();
    assert_eq!((evidence[0].at, &evidence[0].line[..]), (NOW, &b"sshd[1]: Failed password from 1"[..]));
    store.close();
    let (store, mut restored) = open(&file);
    restored.bans.sort_by_key(|ban| ban.network);
    let ended = StoredBan { until: NOW + Duration::from_secs(1), ..ban(2) };
    assert_eq!(restored.bans, [ban(1), ended, six]);
    assert_eq!(
        (restored.off, restored.leases, restored.positions),
        (Some(NOW + SOON), vec![lease], vec![position])
    );
    assert_eq!(store.lease_id(), 2, "a number is given once");
    store.save(Change::Clear);
    store.save(Change::Off(None));
    store.close();
    let (store, restored) = open(&file);
    assert_eq!((restored.bans, restored.off), (Vec::new(), None));
    assert_eq!(store.faults(), None);
    for entry in file.parent().unwrap().read_dir().unwrap() {
        assert_eq!(entry.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn history_is_forgotten_after_its_time_only() {
    let (_folder, file) = folder();
    let (store, _) = open(&file);
    store.save(change(1));
    store.close();
    let at = |now| BanStore::open(&file, now).unwrap().1.bans.len();
    assert_eq!(at(ban(1).until + KEEP), 1);
    assert_eq!(at(ban(1).until + KEEP + Duration::from_micros(1)), 0);
}

#[test]
fn evidence_is_bounded_in_lines_bytes_and_bans() {
    let (_folder, file) = folder();
    let (store, _) = open(&file);
    let long: Box<[u8]> = vec![b'x'; 4000].into();
    let chatty = StoredBan { reason: "ä".repeat(4000), ..ban(1) };
    store.save(Change::Ban(chatty, vec![long; 30]));
    assert!(store.flush(SOON));
    let evidence = store.evidence(ban(1).network).unwrap();
    assert_eq!((evidence.len(), evidence[0].line.len()), (10, 512));
    for number in 2..50_102 {
        store.save(change(number));
    }
    assert!(store.flush(SOON));
    assert_eq!(store.evidence(ban(1).network).unwrap(), [], "the oldest goes first");
    assert_eq!(store.evidence(ban(50_101).network).unwrap().len(), 1);
    store.close();
    assert!(open(&file).1.bans.iter().all(|ban| ban.reason.len() <= 512));
}

#[test]
fn a_damaged_file_is_moved_aside_and_told() {
    for damage in [&b"this is no database at all, and long enough to be read as one ............................................"[..], b"SQLite format 3\0 and then nonsense"] {
        let (_folder, file) = folder();
        std::fs::write(&file, damage).unwrap();
        let (store, restored) = open(&file);
        assert_eq!(restored, Restored::default());
        let aside = file.with_extension("db.damaged-1");
        assert_eq!(std::fs::read(&aside).unwrap(), damage, "kept for who wants to look");
        assert!(store.faults().unwrap().contains("is damaged"), "{:?}", store.faults());
        store.save(change(1));
        store.close();
        assert_eq!(open(&file).1.bans, [ban(1)]);
    }
}

#[test]
fn pages_damaged_in_the_middle_never_stop_edge() {
    let (_folder, file) = folder();
    let (store, _) = open(&file);
    (0..20_000).for_each(|number| store.save(change(number)));
    store.close();
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[40_000..200_000].fill(0xA5);
    std::fs::write(&file, bytes).unwrap();
    let (store, restored) = open(&file);
    assert_eq!(restored.bans, []);
    assert!(file.with_extension("db.damaged-1").exists());
    assert!(store.faults().is_some());
}

#[test]
fn a_newer_schema_and_another_program_s_database_are_refused_untouched() {
    let (_folder, file) = folder();
    open(&file).0.close();
    let other = rusqlite::Connection::open(&file).unwrap();
    other.pragma_update(None, "user_version", 99).unwrap();
    drop(other);
    let refused = BanStore::open(&file, NOW).err().unwrap();
    assert_eq!(
        refused.to_string(),
        format!(
            "ban store: {}: schema 99 is newer than this program's 2; install the newer program, or name another file",
            file.display()
        )
    );
    let file = file.with_extension("other");
    rusqlite::Connection::open(&file).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
    assert!(matches!(BanStore::open(&file, NOW), Err(BanStoreError::Foreign { .. })));
}

#[test]
fn a_missing_folder_says_who_must_make_it() {
    let refused = BanStore::open(Path::new("/nonexistent/bans.db"), NOW).err().unwrap().to_string();
    assert!(refused.contains("make its folder and give it to edge's user"), "{refused}");
}

/// The body of the process that is killed below; by itself it does nothing.
#[test]
fn child_that_writes_until_it_is_killed() {
    let Some(file) = std::env::var_os("EDGE_TEST_BAN_STORE") else { return };
    let (store, _) = open(Path::new(&file));
    for number in 0.. {
        store.save(change(number));
        if number % 500 == 499 {
            assert!(store.flush(SOON));
            std::fs::write(Path::new(&file).with_extension("flushed"), (number + 1).to_string()).unwrap();
        }
    }
}

#[test]
fn a_killed_program_keeps_every_ban_that_was_flushed() {
    let (_folder, file) = folder();
    let (_, module) = module_path!().split_once("::").unwrap();
    let child = format!("{module}::child_that_writes_until_it_is_killed");
    for round in 1..=5_u64 {
        let mut running = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &child])
            .env("EDGE_TEST_BAN_STORE", &file)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let flushed = file.with_extension("flushed");
        let began = Instant::now();
        while !flushed.exists() && began.elapsed() < SOON {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(37 * round));
        running.kill().unwrap();
        running.wait().unwrap();
        // It may have been killed while it wrote the number: the first flush was before that.
        let flushed: usize = std::fs::read_to_string(&flushed).unwrap().parse().unwrap_or(500);
        let (store, restored) = open(&file);
        assert_eq!(store.faults(), None);
        let found: std::collections::HashSet<_> = restored.bans.iter().map(|ban| ban.network).collect();
        for number in 0..flushed {
            assert!(found.contains(&ban(u32::try_from(number).unwrap()).network), "{number} of {flushed}");
        }
    }
}

/// A small file system of its own, unmounted when it goes.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(size: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", size, "edge-test"])
            .arg(folder.path())
            .status()
            .unwrap();
        assert!(mounted.success(), "this test mounts a tmpfs: run it as root");
        Self(folder)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _busy = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

fn until(mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < SOON, "it never comes");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_full_disk_is_counted_told_and_heals() {
    let disk = SmallDisk::new("size=2m");
    let file = disk.0.path().join("bans.db");
    let (store, _) = open(&file);
    store.save(change(0));
    assert!(store.flush(SOON));
    let ballast = disk.0.path().join("ballast");
    let _full = std::fs::write(&ballast, vec![1; 4 << 20]);
    (1..3000).for_each(|number| store.save(change(number)));
    store.save(Change::Off(Some(NOW)));
    assert!(!store.flush(SOON), "it does not claim what it has not");
    assert!(store.lost() > 0);
    let told = store.faults().unwrap();
    assert!(told.contains("full") && told.contains("not written"), "{told}");
    std::fs::remove_file(&ballast).unwrap();
    until(|| store.needs_resync());
    store.save(Change::Replace((0..3000).map(ban).collect()));
    assert!(store.flush(SOON));
    assert_eq!(store.faults(), None);
    assert!(!store.needs_resync());
    store.close();
    let (_store, restored) = open(&file);
    assert_eq!((restored.bans.len(), restored.off), (3000, Some(NOW)), "what no resync brings was owed");
}

#[test]
fn a_full_queue_is_counted_told_and_heals_without_waiting() {
    let (_folder, file) = folder();
    let (store, _) = open(&file);
    // Another program holds the file: nothing can be written for a while.
    let other = rusqlite::Connection::open(&file).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let began = Instant::now();
    (0..100_000).for_each(|number| store.save(change(number)));
    assert!(began.elapsed() < Duration::from_secs(3), "save never waits: {:?}", began.elapsed());
    store.save(Change::Off(Some(NOW)));
    assert!(store.lost() >= 100_000 - 65_536 - 16_384, "{}", store.lost());
    assert!(store.faults().unwrap().contains("queue is full"));
    other.execute_batch("ROLLBACK").unwrap();
    until(|| store.needs_resync());
    store.save(Change::Replace((0..100_000).map(ban).collect()));
    assert!(store.flush(SOON));
    assert_eq!(store.faults(), None);
    store.close();
    let restored = open(&file).1;
    assert_eq!((restored.bans.len(), restored.off), (100_000, Some(NOW)));
}

#[test]
fn a_flood_is_written_and_loaded_fast_enough() {
    let (_folder, file) = folder();
    let (store, _) = open(&file);
    let began = Instant::now();
    for number in 0..100_000_u32 {
        // Spread as attackers are, not in order.
        store.save(change(number.wrapping_mul(2_654_435_761)));
        if number % 2000 == 1999 {
            assert!(store.flush(SOON));
        }
    }
    let wrote = began.elapsed();
    store.close();
    let began = Instant::now();
    let (_store, restored) = open(&file);
    let loaded = began.elapsed();
    assert_eq!(restored.bans.len(), 100_000);
    println!("100,000 bans written in {wrote:?}, loaded in {loaded:?}");
    // Loose, because tests share the machine; a missing index or a sync a ban costs minutes.
    assert!(wrote < Duration::from_secs(20) && loaded < Duration::from_secs(4), "{wrote:?} {loaded:?}");
}

#[test]
fn networks_banned_again_and_again_take_no_more_room() {
    let (_folder, file) = folder();
    let (store, _) = open(&file);
    let rows = || -> i64 {
        let connection = rusqlite::Connection::open(&file).unwrap();
        connection.query_row("SELECT count(*) FROM bans", [], |row| row.get(0)).unwrap()
    };
    for number in 0..230_000_u32 {
        let again = StoredBan { offences: number, ..ban(number % 1000) };
        store.save(Change::Ban(again, Vec::new()));
        if number % 1000 == 999 && number % 4000 != 3999 {
            store.save(Change::End { network: ban(number % 1000).network, at: NOW, forgiven: true });
        }
        if number % 10_000 == 9999 {
            assert!(store.flush(SOON));
        }
    }
    until(|| rows() < 102_000 + 2000);
    store.close();
    let (store, restored) = open(&file);
    assert_eq!(restored.bans.len(), 1000);
    for ban in &restored.bans {
        assert!(ban.offences >= 229_000, "{ban:?}");
        let ended = ban.offences == 229_999;
        assert_eq!((ban.until == NOW, ban.times == 0), (ended, ended), "{ban:?}");
    }
    drop(store);
    // A day later the rest goes, and with it the ban that would bring an ended one back.
    let (store, _) = BanStore::open(&file, NOW).unwrap();
    store.save(Change::Ban(StoredBan { since: NOW + Duration::from_secs(100_000), ..ban(5) }, Vec::new()));
    assert!(store.flush(SOON));

    until(|| rows() <= 1000);
    store.close();
    assert_eq!(open(&file).1.bans.len(), 1000);
}

fn bans() -> impl Strategy<Value = StoredBan> {
    // All within the time that history is kept, or the oldest would rightly be forgotten.
    let times = (0..1_u64 << 39, 0..1_u64 << 40);
    (any::<[u8; 16]>(), any::<bool>(), 0u8..=32, "[a-z]{1,8}", times, any::<(u32, u16, bool)>(), ".{0,40}")
        .prop_map(|(bytes, v4, bits, jail, (since, length), (offences, times, throttle), reason)| {
            let address =
                if v4 { IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]]) } else { IpAddr::from(bytes) };
            let since = NOW + Duration::from_micros(since);
            let until = since + Duration::from_micros(length);
            StoredBan {
                network: IpNet::new(address, bits).unwrap(),
                jail,
                since,
                until,
                offences,
                times,
                throttle,
                reason,
            }
        })
}

proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(24))]
    #[test]
    fn any_bans_and_ends_come_back_as_a_plain_map_holds_them(steps in proptest::collection::vec((bans(), any::<u8>()), 1..30)) {
        let (_folder, file) = folder();
        let (store, _) = open(&file);
        let mut model = BTreeMap::new();
        for (ban, step) in steps {
            match step % 16 {
                0..=11 => {
                    model.insert(ban.network, ban.clone());
                    store.save(Change::Ban(ban, vec![[step].into()]));
                }
                12..=13 => {
                    if let Some((network, known)) = model.iter_mut().next() {
                        known.until = known.until.min(ban.since);
                        let forgiven = step % 16 == 13;
                        known.times = if forgiven { 0 } else { known.times };
                        store.save(Change::End { network: *network, at: ban.since, forgiven });
                    }
                }
                14 => {
                    model.clear();
                    store.save(Change::Clear);
                }
                _ => {
                    model = BTreeMap::from([(ban.network, ban.clone())]);
                    store.save(Change::Replace(vec![ban]));
                }
            }
        }
        store.close();
        let restored: BTreeMap<_, _> = open(&file).1.bans.into_iter().map(|ban| (ban.network, ban)).collect();
        assert_eq!(restored, model);
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_told_before_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing/bans.db");
    let told = BanStore::fault(&missing).unwrap().to_string();
    assert!(told.contains("make its folder and give it to edge's user"), "{told}");
    assert!(BanStore::fault(folder.path()).is_some(), "a folder is no file");
    assert!(BanStore::fault(&folder.path().join("bans.db")).is_none());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "looking leaves nothing behind");
}
