//! Stories of vaults that die at any moment while they work on SFTP servers, of what a server has
//! brought to its disk before a vault says yes, and of a vault whose clock is wrong.
#![expect(clippy::unwrap_used, reason = "a story's own steps fail the story when they fail")]

use std::ffi::OsString;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use harness::curl::Curl;
use harness::extent;
use harness::receipts::{Dice, Receipt};
use harness::sftp_pair::{SftpPair, replicas};
use harness::sftp_server::SftpServer;
use harness::vault_host::{PairPlan, Vault};
use harness::wait::{self, Deadline};

const SOON: Duration = Duration::from_secs(60);
const KIB: usize = 1 << 10;
/// Who uploads at the same time.
const LOADERS: u64 = 3;

/// Uploads one file after the other until `stop`, each until it is acknowledged or `stop`.
fn load(calls: &[Curl; 2], mut dice: Dice, seeds: &AtomicU64, stop: &AtomicBool, kept: &Mutex<Vec<Receipt>>) {
    while !stop.load(Ordering::Relaxed) {
        let seed = seeds.fetch_add(1, Ordering::Relaxed);
        let most = if dice.below(6) == 0 { 2500 * KIB } else { 60 * KIB };
        let length = dice.below(most);
        while !stop.load(Ordering::Relaxed) {
            // The other vault is asked with the same key, as edge does it.
            match Receipt::ask(&calls[dice.below(2)], seed, length) {
                Ok(receipt) => {
                    kept.lock().unwrap().push(receipt);
                    break;
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

fn pause(dice: &mut Dice, from: u64, to: usize) {
    std::thread::sleep(Duration::from_millis(from + dice.below(to) as u64));
}

/// Kills either vault or both, and starts them again, also before they were ready. Now and then a
/// server's sessions die just before; in the full run it is the whole server, or it hangs.
fn kill_at_random(
    vaults: &mut [Vault; 2],
    servers: &mut [SftpServer; 2],
    dice: &mut Dice,
    lasting: Duration,
) -> usize {
    let deadline = Deadline::after(lasting);
    let mut kills = 0;
    while !deadline.passed() {
        pause(dice, 150, 1500);
        let server = &mut servers[dice.below(2)];
        let blow = dice.below(if extent::is_full() { 8 } else { 4 });
        match blow {
            0 => server.kill_sessions().unwrap(),
            4 => server.kill().unwrap(),
            5 => server.freeze().unwrap(),
            _ => {}
        }
        let victims: &[usize] = [&[0][..], &[1], &[0, 1]][dice.below(3)];
        for victim in victims {
            vaults[*victim].program().unwrap().kill().unwrap();
            kills += 1;
        }
        pause(dice, 0, 200);
        for victim in victims {
            vaults[*victim].program().unwrap().restart().unwrap();
        }
        match blow {
            4 => {
                pause(dice, 0, 4000);
                server.start_again().unwrap();
            }
            5 => {
                pause(dice, 0, 6000);
                server.thaw().unwrap();
            }
            _ => {}
        }
    }
    kills
}

#[test]
fn vaults_killed_at_random_while_they_load_lose_nothing_that_they_acknowledged() {
    let mut house = SftpPair::start().unwrap();
    let seed = extent::seed();
    let lasting = extent::lasting(Duration::from_secs(15), Duration::from_secs(180));
    let calls = [house.files(0), house.files(1)];
    let (seeds, stop, kept) = (AtomicU64::new(1), AtomicBool::new(false), Mutex::default());
    let kills = std::thread::scope(|scope| {
        for loader in 0..LOADERS {
            let dice = Dice::new(seed * 100 + loader);
            let (calls, seeds, stop, kept) = (&calls, &seeds, &stop, &kept);
            scope.spawn(move || load(calls, dice, seeds, stop, kept));
        }
        let (vaults, servers) = (&mut house.pair.vaults, &mut house.servers);
        let mut dice = Dice::new(seed);
        let killed = std::panic::AssertUnwindSafe(|| kill_at_random(vaults, servers, &mut dice, lasting));
        let kills = std::panic::catch_unwind(killed);
        stop.store(true, Ordering::Relaxed);
        kills.unwrap()
    });
    let kept = kept.into_inner().unwrap();
    assert!(kept.len() >= 20 && kills >= 5, "seed {seed}: {} kept, {kills} kills", kept.len());

    // What was torn by the last death is collected at the next start.
    for vault in &mut house.pair.vaults {
        vault.program().unwrap().terminate().unwrap();
        vault.program().unwrap().restart().unwrap();
    }
    house.pair.wait_ready().unwrap();
    house.settled(&kept).unwrap();
    house.read_back(&kept).unwrap_or_else(|error| panic!("seed {seed}: {error:#}"));
    wait::until("what was torn is collected", SOON, || {
        let left = house.leftovers()?;
        anyhow::ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .unwrap_or_else(|error| panic!("seed {seed}: {error:#}"));
    let [paris, lyon] = [0, 1].map(|at| replicas(&house.servers[at]).unwrap());
    assert_eq!(paris, lyon, "seed {seed}: the file servers differ");
    // Asked again, a key answers what it answered.
    for (place, receipt) in kept.iter().enumerate().step_by(5) {
        let again = Receipt::ask(&house.files(place % 2), receipt.seed, receipt.length).unwrap();
        assert_eq!(again, *receipt, "seed {seed}");
    }
    assert_eq!(replicas(&house.servers[0]).unwrap(), paris, "seed {seed}: a key acted twice");

    // Would it be seen? One file lost, and one that is another.
    for server in &house.servers {
        std::fs::remove_file(server.replica(&kept[0].id)).unwrap();
    }
    house.read_back(&kept[..1]).unwrap_err();
    let forged = Receipt { seed: kept[1].seed + 1, length: kept[1].length.max(8), ..kept[1].clone() };
    house.read_back(&[forged]).unwrap_err();
}

/// What runs in front of a vault whose clock can be set by a file in its folder.
fn with_own_clock(folder: &Path) -> Vec<OsString> {
    let libraries = std::fs::read_dir("/usr/lib").unwrap().flatten();
    let library = libraries
        .map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"))
        .find(|library| library.exists())
        .expect("faketime is installed");
    let clock = folder.join("clock");
    std::fs::write(&clock, "+0\n").unwrap();
    let mut words: Vec<OsString> = vec!["env".into()];
    words.push(format!("LD_PRELOAD={}", library.display()).into());
    words.push(format!("FAKETIME_TIMESTAMP_FILE={}", clock.display()).into());
    // The system's clock alone is wrong, at once; intervals and files' times are right.
    words.extend(["FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1", "NO_FAKE_STAT=1"].map(Into::into));
    words
}

#[test]
fn a_clock_that_is_wrong_by_days_loses_nothing_and_what_is_owed_does_not_wait_for_it() {
    let plan = PairPlan { wrapper: Some(with_own_clock), ..PairPlan::default() };
    let mut house = SftpPair::start_with(plan, SftpServer::start).unwrap();
    let mut receipts = vec![house.upload(0, 1, 100 * KIB).unwrap(), house.upload(1, 2, 100 * KIB).unwrap()];
    house.settled(&receipts).unwrap();
    let mut days = vec![created(&house, &receipts[0])];
    for (seed, offset, anew) in [(10, "-10d", true), (20, "+3d", false), (30, "-1h", false), (40, "+0", true)]
    {
        let vault = &mut house.pair.vaults[1];
        std::fs::write(vault.folder.join("clock"), format!("{offset}\n")).unwrap();
        if anew {
            vault.program().unwrap().kill().unwrap();
            vault.program().unwrap().restart().unwrap();
            vault.wait_alive().unwrap();
        }
        // With such a clock no certificate may be valid: an operator on the host still gets in.
        house.servers[0].kill().unwrap();
        let by_operator = house.pair.vaults[1].control("/v1/files?owner=erp");
        let mine = Receipt::insist(&by_operator, seed, 100 * KIB).unwrap();
        let other = house.upload(0, seed + 1, 100 * KIB).unwrap();
        house.servers[0].start_again().unwrap();
        days.push(created(&house, &mine));
        receipts.extend([mine, other]);
        house.settled(&receipts).unwrap();
        let at_hand = house.pair.vaults[1].control("/v1/files");
        receipts.iter().try_for_each(|receipt| receipt.read_back(&at_hand)).unwrap();
        receipts.iter().try_for_each(|receipt| receipt.read_back(&house.files(0))).unwrap();
    }
    assert!(days[1] < days[0] && days[0] < days[2] && days[3] < days[2], "the clock was wrong: {days:?}");
    house.pair.wait_ready().unwrap();
    house.settled(&receipts).unwrap();
    house.read_back(&receipts).unwrap();
}

/// The day on which a file was stored, by the clock of who stored it.
fn created(house: &SftpPair, receipt: &Receipt) -> String {
    let path = format!("/v1/files/{}/description", receipt.id);
    let told = wait::until("it is described", SOON, || {
        house.pair.vaults[1].control(&path).send()?.expect(&[200])?.word("created")
    });
    told.unwrap().chars().take(10).collect()
}
