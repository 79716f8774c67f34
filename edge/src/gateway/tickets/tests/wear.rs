//! What time and disks do to the store: old tickets, damaged pages, full disks, no rights.

use super::super::store::Store;
use super::*;

#[test]
fn old_tickets_are_forgotten_a_few_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let file: PathBuf = folder.path().join("tickets.db");
    let secret = Secret::of(&file).unwrap();
    let mut store = Store::open(&file, None, &secret, Some("boot")).unwrap();
    store.end_doubt().unwrap();
    let marks =
        |day: u32| (0..50).map(|number| secret.sought("INV", &format!("{day}-{number}"))).collect::<Vec<_>>();
    for day in [0, 1] {
        assert_eq!(store.write_down(&[(&marks(day), FIRST)], 1000).written, 50);
        store.pass(Duration::from_secs(86_400)).unwrap();
    }
    let (mut from, mut steps) = (None, 0);
    loop {
        from = store.thin_out(from, 1, 7).unwrap();
        steps += 1;
        if from.is_none() {
            break;
        }
    }
    assert!(steps >= 100 / 7, "{steps}");
    assert_eq!(store.kept(), 50);
    let round = store.write_down(&[(&marks(0), SECOND), (&marks(1), SECOND)], 1000);
    assert_eq!(round.lives, [vec![Some(SECOND); 50], vec![Some(FIRST); 50]]);
}

/// Waits until the thread has gone and all of it is in the file itself.
async fn closed(file: &Path) {
    let began = tokio::time::Instant::now();
    while PathBuf::from(format!("{}-wal", file.display())).exists() {
        assert!(began.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Overwrites the middle of the file, which begins and ends as before.
fn damage(file: &Path) {
    use std::os::unix::fs::FileExt;
    let opened = std::fs::File::options().write(true).open(file).unwrap();
    let pages = opened.metadata().unwrap().len() / 4096;
    assert!(pages > 20, "{pages} pages");
    for page in 8..pages {
        opened.write_all_at(&[0xa5; 4096], page * 4096).unwrap();
    }
}

#[tokio::test]
async fn damage_that_shows_only_later_is_set_aside_then_and_nothing_of_it_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tickets.db");
    for aside in ["tickets.db.damaged", "tickets.db.damaged-2"] {
        let (tickets, _) = settled(settings(folder.path())).await;
        let keys: Vec<_> = (0..5000).map(|number| format!("k{number}")).collect();
        let lives = tickets.write_down("INV", keys.clone(), FIRST).await;
        assert!(lives.iter().all(|life| *life == Some(FIRST)));
        drop(tickets);
        closed(&file).await;
        damage(&file);
        let (tickets, registry) = start(settings(folder.path()));
        // None of them gets another ticket, though the store was settled.
        let began = tokio::time::Instant::now();
        while !tickets.words().contains("is new") {
            let lives = tickets.write_down("INV", keys.clone(), SECOND).await;
            assert!(lives.iter().all(|life| *life != Some(SECOND)));
            assert!(began.elapsed() < Duration::from_secs(60), "{}", tickets.words());
        }
        let lives = tickets.write_down("INV", keys.clone(), SECOND).await;
        assert!(lives.iter().all(Option::is_none));
        assert!(folder.path().join(aside).exists(), "{}", tickets.words());
        assert_eq!(figure(&registry, "edge_gateway_tickets_failing", ""), 0.0);
        drop(tickets);
        closed(&file).await;
        std::fs::remove_file(&file).unwrap();
    }
    assert!(folder.path().join("tickets.db.damaged").exists(), "the first is still there");
}

#[test]
fn a_crash_while_a_damaged_store_is_set_aside_leaves_none_that_looks_whole() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tickets.db");
    let secret = Secret::of(&file).unwrap();
    let mut store = Store::open(&file, None, &secret, Some("boot")).unwrap();
    store.end_doubt().unwrap();
    let sought = [secret.sought("INV", "k")];
    store.write_down(&[(&sought, FIRST)], 10);
    // The first of the three renames is done, the second is not: the log is still in its place.
    assert!(folder.path().join("tickets.db-wal").exists());
    std::fs::rename(&file, folder.path().join("tickets.db.damaged")).unwrap();
    let mut fresh = Store::open(&file, None, &secret, Some("boot")).unwrap();
    assert!(fresh.doubt().is_some());
    assert_eq!(fresh.write_down(&[(&sought, SECOND)], 10).lives, [[None]]);
    assert_eq!(fresh.kept(), 0);
}

#[tokio::test]
async fn a_disk_that_may_not_be_written_is_told_and_forgets_nothing() {
    let disk = SmallDisk::new("size=4m");
    let (tickets, registry) = settled(settings(disk.0.path())).await;
    assert_eq!(ticket(&tickets, "before", FIRST).await, Some(FIRST));
    let again = |how: &str| {
        let done = Command::new("mount").args(["-o", how]).arg(disk.0.path()).status().unwrap();
        assert!(done.success());
    };
    drop(tickets);
    closed(&disk.0.path().join("tickets.db")).await;
    drop(registry);
    again("remount,ro");
    let (tickets, registry) = start(settings(disk.0.path()));
    assert_eq!(ticket(&tickets, "fresh", FIRST).await, None);
    assert!(tickets.words().contains("NOT written"), "{}", tickets.words());
    assert!(fault(&settings(disk.0.path())).is_some());
    assert_eq!(figure(&registry, "edge_gateway_tickets_failing", ""), 1.0);
    again("remount,rw");
    let began = tokio::time::Instant::now();
    while ticket(&tickets, "before", SECOND).await.is_none() {
        assert!(began.elapsed() < Duration::from_secs(60), "{}", tickets.words());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(ticket(&tickets, "before", SECOND).await, Some(FIRST));
    assert_eq!(ticket(&tickets, "later", SECOND).await, Some(SECOND), "it was never in doubt");
    assert!(!disk.0.path().join("tickets.db.damaged").exists());
}

/// As root nothing is forbidden, so this runs itself again as nobody.
#[test]
fn a_file_of_somebody_elses_is_told_and_left_alone() {
    const FOLDER: &str = "EDGE_TEST_TICKETS_FOLDER";
    let Ok(given) = std::env::var(FOLDER) else {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tickets.db");
        std::fs::write(&file, "somebody else's").unwrap();
        let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(folder.path(), everybody).unwrap();
        let theirs = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&file, theirs).unwrap();
        let again = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "gateway::tickets::tests::wear::a_file_of_somebody_elses_is_told_and_left_alone",
            ])
            .env(FOLDER, folder.path())
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&again.stdout);
        assert!(again.status.success() && told.contains("1 passed"), "{told}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "somebody else's");
        return;
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let (tickets, registry) = start(settings(Path::new(&given)));
        assert_eq!(ticket(&tickets, "k", FIRST).await, None);
        assert!(tickets.words().contains("ermission denied"), "{}", tickets.words());
        assert!(tickets.words().contains("give it to edge's user"), "{}", tickets.words());
        assert_eq!(figure(&registry, "edge_gateway_tickets_failing", ""), 1.0);
    });
}

#[tokio::test]
async fn a_hundred_thousand_keys_are_known_again_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (tickets, registry) = settled(settings(folder.path())).await;
    let before = figure(&registry, "edge_gateway_ticket_commits_total", "");
    let batch = |number: u32| (0..10_000).map(|key| format!("{number}-{key}")).collect::<Vec<_>>();
    for number in 0..10 {
        let lives = tickets.write_down("INV", batch(number), FIRST).await;
        assert!(lives.iter().all(|life| *life == Some(FIRST)));
    }
    assert_eq!(figure(&registry, "edge_gateway_ticket_commits_total", "") - before, 10.0);
    drop(tickets);
    let (tickets, _) = start(settings(folder.path()));
    for number in 0..10 {
        let lives = tickets.write_down("INV", batch(number), SECOND).await;
        assert!(lives.len() == 10_000 && lives.iter().all(|life| *life == Some(FIRST)));
    }
}
