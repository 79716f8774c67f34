//! The store's promises, against the real file and the real thread.

mod doubts;
mod model;
mod process;
mod restored;
mod trouble;
mod wear;

use std::path::{Path, PathBuf};
use std::process::Command;

use shared::api::client::Tickets as _;

use super::writer::{Ask, Work, Writer};
use super::*;

const FIRST: Life = Life(1);
const SECOND: Life = Life(2);

fn settings(folder: &Path) -> Settings {
    Settings { store: folder.join("tickets.db"), memory: None, days: 30, most: 1_000_000 }
}

/// Deadlines that a slow machine does not meet by chance.
fn start(settings: Settings) -> (Tickets, Registry) {
    let registry = Registry::new();
    (Tickets::start(settings, Duration::from_secs(60), &registry).unwrap(), registry)
}

/// A store that knows that both vaults were together.
async fn settled(settings: Settings) -> (Tickets, Registry) {
    let (tickets, registry) = start(settings);
    assert_eq!(figure(&registry, "edge_gateway_tickets_doubted", ""), 1.0);
    tickets.were_together(tickets.doubt().unwrap());
    // Through the same queue: once it is answered, the word has arrived.
    tickets.write_down("NONE", vec!["first".to_owned()], FIRST).await;
    tickets.write_down("NONE", vec!["second".to_owned()], FIRST).await;
    assert_eq!(figure(&registry, "edge_gateway_tickets_doubted", ""), 0.0);
    (tickets, registry)
}

async fn ticket(tickets: &Tickets, key: &str, life: Life) -> Option<Life> {
    tickets.write_down("INV", vec![key.to_owned()], life).await[0]
}

fn figure(registry: &Registry, name: &str, label: &str) -> f64 {
    let families = registry.gather();
    let family = families.iter().find(|family| family.name() == name).unwrap();
    let metrics = family.get_metric().iter();
    let figures = metrics
        .filter(|metric| label.is_empty() || metric.get_label().iter().any(|pair| pair.value() == label))
        .map(|metric| metric.get_counter().get_value() + metric.get_gauge().get_value());
    figures.sum()
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

#[tokio::test]
async fn a_key_keeps_the_life_that_it_was_first_sent_to() {
    let folder = tempfile::tempdir().unwrap();
    let (tickets, registry) = settled(settings(folder.path())).await;
    let settling = figure(&registry, "edge_gateway_tickets_kept", "");
    assert_eq!(ticket(&tickets, "k", FIRST).await, Some(FIRST));
    assert_eq!(ticket(&tickets, "k", SECOND).await, Some(FIRST));
    let keys = ["new", "k", "new"].map(str::to_owned).to_vec();
    assert_eq!(tickets.write_down("INV", keys, SECOND).await, [Some(SECOND), Some(FIRST), Some(SECOND)]);
    assert_eq!(tickets.write_down("OTHER", vec!["k".to_owned()], SECOND).await, [Some(SECOND)]);
    drop(tickets);
    let (tickets, _) = start(settings(folder.path()));
    assert_eq!(ticket(&tickets, "k", SECOND).await, Some(FIRST));
    assert_eq!(ticket(&tickets, "new", FIRST).await, Some(SECOND));
    // k, the new one, the other series' k.
    assert_eq!(figure(&registry, "edge_gateway_tickets_kept", "") - settling, 3.0);
}

#[tokio::test]
async fn each_period_of_a_key_has_its_own_ticket() {
    let folder = tempfile::tempdir().unwrap();
    let (tickets, _) = settled(settings(folder.path())).await;
    let key = || vec!["k".to_owned()];
    assert_eq!(tickets.write_down("INV/2026", key(), FIRST).await, [Some(FIRST)]);
    assert_eq!(tickets.write_down("INV/2027", key(), SECOND).await, [Some(SECOND)]);
    assert_eq!(tickets.write_down("INV", key(), SECOND).await, [Some(SECOND)]);
    assert_eq!(tickets.write_down("INV/2026", key(), SECOND).await, [Some(FIRST)]);
}

#[tokio::test]
async fn the_store_holds_no_key_and_is_nobody_elses_to_read() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let (tickets, _) = settled(settings(folder.path())).await;
    for number in 0..100 {
        ticket(&tickets, &format!("order-4711-{number}"), FIRST).await.unwrap();
    }
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        for needle in [&b"order-4711"[..], b"INV"] {
            assert!(!bytes.windows(needle.len()).any(|part| part == needle), "{}", path.display());
        }
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{}", path.display());
    }
}

#[tokio::test]
async fn another_secret_is_a_lost_store() {
    let folder = tempfile::tempdir().unwrap();
    let (tickets, _) = settled(settings(folder.path())).await;
    ticket(&tickets, "k", FIRST).await.unwrap();
    drop(tickets);
    std::fs::remove_file(folder.path().join("tickets.db.key")).unwrap();
    let (tickets, _) = start(settings(folder.path()));
    assert_eq!(ticket(&tickets, "k", SECOND).await, None);
    assert!(folder.path().join("tickets.db.damaged").exists());
}

#[tokio::test]
async fn a_damaged_store_is_set_aside_and_another_programs_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tickets.db");
    std::fs::write(&file, "this is no database at all, and it is long enough to be one".repeat(100)).unwrap();
    let (tickets, _) = settled(settings(folder.path())).await;
    assert_eq!(ticket(&tickets, "k", FIRST).await, Some(FIRST));
    assert!(folder.path().join("tickets.db.damaged").exists());
    drop(tickets);

    let other = Settings { store: folder.path().join("other.db"), ..settings(folder.path()) };
    let connection = rusqlite::Connection::open(&other.store).unwrap();
    connection.execute_batch("CREATE TABLE theirs (x)").unwrap();
    drop(connection);
    let (tickets, registry) = start(other);
    assert_eq!(ticket(&tickets, "k", FIRST).await, None);
    assert!(tickets.words().contains("another program's"), "{}", tickets.words());
    assert_eq!(figure(&registry, "edge_gateway_tickets_failing", ""), 1.0);
}

#[tokio::test]
async fn what_waits_for_the_disk_shares_one_commit() {
    let folder = tempfile::tempdir().unwrap();
    let (tickets, registry) = settled(settings(folder.path())).await;
    let before = figure(&registry, "edge_gateway_ticket_commits_total", "");
    // The disk is busy with another's transaction until all 200 wait.
    let busy = rusqlite::Connection::open(folder.path().join("tickets.db")).unwrap();
    busy.execute_batch("BEGIN IMMEDIATE").unwrap();
    let asking: Vec<_> = (0..200)
        .map(|number| {
            let tickets = tickets.clone();
            tokio::spawn(async move { ticket(&tickets, &format!("k{number}"), FIRST).await })
        })
        .collect();
    // On one thread: they have all asked once this one runs again.
    tokio::task::yield_now().await;
    busy.execute_batch("ROLLBACK").unwrap();
    for asked in asking {
        assert_eq!(asked.await.unwrap(), Some(FIRST));
    }
    let commits = figure(&registry, "edge_gateway_ticket_commits_total", "") - before;
    assert!(commits <= 2.0, "{commits} commits for 200 keys");
}

#[tokio::test]
async fn a_full_disk_keeps_what_is_known_and_lets_new_keys_go_without() {
    let disk = SmallDisk::new("size=2m");
    let (tickets, registry) = settled(settings(disk.0.path())).await;
    assert_eq!(ticket(&tickets, "before", FIRST).await, Some(FIRST));
    let ballast = disk.0.path().join("ballast");
    // A whole page more than what is free does not fit.
    let _full = std::fs::write(&ballast, vec![1; 4 << 20]);
    let mut refused = Vec::new();
    for number in 0..500 {
        let key = format!("k{number}");
        match ticket(&tickets, &key, FIRST).await {
            Some(life) => assert_eq!(life, FIRST),
            None => refused.push(key),
        }
    }
    assert!(!refused.is_empty(), "the disk never filled up");
    assert_eq!(ticket(&tickets, "before", SECOND).await, Some(FIRST), "what is known is told");
    assert!(tickets.words().contains("NOT written"), "{}", tickets.words());
    assert_eq!(figure(&registry, "edge_gateway_tickets_failing", ""), 1.0);
    let without = figure(&registry, "edge_gateway_tickets_total", "without");
    assert_eq!(without, refused.len() as f64 + 1.0);
    std::fs::remove_file(&ballast).unwrap();
    // None of those that went without is half written.
    assert_eq!(ticket(&tickets, &refused[0], SECOND).await, Some(SECOND));
    assert_eq!(figure(&registry, "edge_gateway_tickets_failing", ""), 0.0);
    assert!(tickets.words().contains("kept"), "{}", tickets.words());
}

#[tokio::test]
async fn a_folder_that_cannot_be_used_is_told_and_heals() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("later");
    let (tickets, registry) = start(settings(&missing));
    assert_eq!(ticket(&tickets, "k", FIRST).await, None);
    assert!(fault(&settings(&missing)).unwrap().to_string().contains("make its folder"));
    assert_eq!(figure(&registry, "edge_gateway_tickets_failing", ""), 1.0);
    std::fs::create_dir(&missing).unwrap();
    assert!(fault(&settings(&missing)).is_none());
    let began = tokio::time::Instant::now();
    while figure(&registry, "edge_gateway_tickets_failing", "") == 1.0 {
        assert!(began.elapsed() < Duration::from_secs(60), "it is never tried again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn at_the_bound_new_keys_go_without_and_old_ones_keep_theirs() {
    let folder = tempfile::tempdir().unwrap();
    let (tickets, registry) = settled(Settings { most: 10, ..settings(folder.path()) }).await;
    let settling = figure(&registry, "edge_gateway_tickets_kept", "");
    let keys: Vec<_> = (0..20).map(|number| format!("k{number}")).collect();
    let lives = tickets.write_down("INV", keys.clone(), FIRST).await;
    let kept = u32::try_from(lives.iter().flatten().count()).unwrap();
    assert_eq!(f64::from(kept) + settling, 10.0, "some settled the store");
    assert_eq!(tickets.write_down("INV", keys, SECOND).await, lives);
    assert!(tickets.words().contains("gateway.max_tickets"), "{}", tickets.words());
    assert_eq!(figure(&registry, "edge_gateway_tickets_kept", ""), 10.0);
}
