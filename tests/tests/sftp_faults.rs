//! Stories of file servers that fail while a vault pair works on them: they die and hang in the
//! middle of large files, run full, lose their rights, change their host key. Nothing that was
//! acknowledged is lost, whoever calls is told the truth, and what is owed is paid by itself.
#![expect(clippy::unwrap_used, reason = "a story's own steps fail the story when they fail")]

use std::time::Duration;

use harness::receipts::{Receipt, noise};
use harness::sftp_pair::{SftpPair, replicas};
use harness::sftp_server::SftpServer;
use harness::vault_host::{FILE_SERVERS, PairPlan};
use harness::{plain, wait};

const SOON: Duration = Duration::from_secs(60);
/// The pair's `file_server_timeout`: who is refused at once must not wait for it.
const DEADLINE: Duration = Duration::from_secs(3);
const MIB: usize = 1 << 20;
/// Long enough on its way to be hit in the middle.
const LARGE: usize = 48 * MIB;
/// So much of a large file is under way when its server is hit.
const UNDER_WAY: u64 = 6 << 20;

/// How a server is hit, and how it comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blow {
    Kill,
    Freeze,
    KillSessions,
}

impl Blow {
    fn strike(self, server: &mut SftpServer) {
        match self {
            Self::Kill => server.kill().unwrap(),
            Self::Freeze => server.freeze().unwrap(),
            Self::KillSessions => server.kill_sessions().unwrap(),
        }
    }

    fn mend(self, server: &mut SftpServer) {
        match self {
            Self::Kill => server.start_again().unwrap(),
            Self::Freeze => server.thaw().unwrap(),
            Self::KillSessions => {}
        }
    }
}

#[test]
fn a_server_that_dies_or_hangs_in_mid_upload_costs_a_delay_and_no_file() {
    let mut house = SftpPair::start().unwrap();
    let mut receipts = Vec::new();
    let blows = [(0, Blow::Kill), (1, Blow::Freeze), (0, Blow::KillSessions)];
    for (seed, (victim, blow)) in (1..).zip(blows) {
        let call = house.files(victim);
        let server = &mut house.servers[victim];
        let receipt = std::thread::scope(|scope| {
            let upload = scope.spawn(|| Receipt::insist(&call, seed, LARGE));
            let written = wait::until("the replica is under way", SOON, || {
                let written = server.being_written()?;
                anyhow::ensure!(written >= UNDER_WAY, "{written} bytes");
                Ok(written)
            });
            blow.strike(server);
            assert!(written.unwrap() < LARGE as u64, "it was whole already");
            upload.join().unwrap().unwrap()
        });
        if blow != Blow::KillSessions {
            assert!(!house.servers[victim].replica(&receipt.id).exists(), "it was not hit in the middle");
        }
        // While it is still away, the other one answers.
        house.read_back(std::slice::from_ref(&receipt)).unwrap();
        receipts.push(receipt);
        blow.mend(&mut house.servers[victim]);
        house.settled(&receipts).unwrap();
    }
    house.read_back(&receipts).unwrap();
    wait::until("nothing is left of what was broken off", SOON, || {
        let left = house.leftovers()?;
        anyhow::ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_server_that_dies_or_hangs_in_mid_download_is_replaced_by_the_other_without_a_gap() {
    let mut house = SftpPair::start().unwrap();
    let receipt = house.upload(0, 1, LARGE).unwrap();
    house.settled(std::slice::from_ref(&receipt)).unwrap();
    for (vault, blow) in [(0, Blow::Kill), (1, Blow::Freeze), (0, Blow::KillSessions)] {
        let file = house.folder.path().join("download");
        let path = format!("/{}", receipt.id);
        let call = house.files(vault).to(&path).arg("--output").arg(&file).within(SOON);
        // Slow enough to be hit in the middle.
        let call = call.arg("--limit-rate").arg("12M").arg("--fail");
        let before = [0, 1].map(|at| house.servers[at].bytes_moved().unwrap());
        let servers = &mut house.servers;
        let victim = std::thread::scope(|scope| {
            let download = scope.spawn(|| call.output());
            let reading = wait::until("the replica is being read", SOON, || {
                let arrived = file.metadata()?.len();
                anyhow::ensure!(arrived >= UNDER_WAY, "{arrived} bytes");
                Ok(arrived)
            });
            let read =
                [0, 1].map(|at| servers[at].bytes_moved().unwrap_or_default().saturating_sub(before[at]));
            let victim = usize::from(read[1] > read[0]);
            blow.strike(&mut servers[victim]);
            assert!(reading.unwrap() < LARGE as u64, "it was whole already");
            assert!(read[victim] >= UNDER_WAY, "{read:?}: neither is being read");
            download.join().unwrap().unwrap();
            victim
        });
        receipt.compare(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        blow.mend(&mut house.servers[victim]);
        house.settled(std::slice::from_ref(&receipt)).unwrap();
    }
    house.read_back(&[receipt]).unwrap();
}

#[test]
fn a_silent_server_costs_an_upload_its_deadline_once_and_the_next_ones_nothing() {
    let house = SftpPair::start().unwrap();
    let mut receipts = vec![house.upload(0, 1, MIB).unwrap()];
    house.settled(&receipts).unwrap();
    house.servers[1].freeze().unwrap();
    let first = Duration::from_secs(9);
    for (seed, most) in [(2, first), (3, DEADLINE), (4, DEADLINE), (5, DEADLINE)] {
        let (asked, took) = wait::timed(|| Receipt::ask(&house.files(0), seed, 64 << 10));
        receipts.push(asked.unwrap());
        assert!(took < most, "upload {seed} took {took:?}");
    }
    let (read, took) = wait::timed(|| receipts[3].read_back(&house.files(0)));
    assert!(read.is_ok() && took < DEADLINE, "{read:?} took {took:?}");
    let admin = house.pair.vaults[0].admin;
    let metric = |name: &str| plain::metric(admin, &format!("vault_storage_file_server_{name}"));
    wait::until("what is owed is told, and for how long", SOON, || {
        let (owed, age) = (metric("owed_replicas")?, metric("owed_oldest_seconds")?);
        anyhow::ensure!(owed >= 4.0 && age >= 1.0, "{owed} for {age} s");
        Ok(())
    })
    .unwrap();
    // With the other one silent too, nobody says yes, and the key is good again later.
    house.servers[0].freeze().unwrap();
    let (refused, took) = wait::timed(|| house.files(0).key("k6").body(noise(6, 5000)).send().unwrap());
    assert_eq!((refused.status, refused.word("code").unwrap().as_str()), (503, "not_durable"));
    assert!(refused.header("retry-after").is_some() && took < first, "{refused:?} took {took:?}");
    for server in &house.servers {
        server.thaw().unwrap();
    }
    receipts.push(house.upload(1, 6, 5000).unwrap());
    house.settled(&receipts).unwrap();
    wait::until("nothing is owed", SOON, || {
        let owed = metric("owed_replicas")?;
        anyhow::ensure!(owed < 1.0, "{owed}");
        Ok(())
    })
    .unwrap();
    house.read_back(&receipts).unwrap();
}

#[test]
fn full_disks_are_told_and_cost_no_acknowledged_file_and_room_is_used_by_itself() {
    let small = |folder: &std::path::Path, place: &std::path::Path| {
        SftpServer::start_on_small_disk(120, folder, place)
    };
    let house = SftpPair::start_with(PairPlan::default(), small).unwrap();
    let mut receipts = vec![house.upload(0, 1, 2 * MIB).unwrap()];
    house.settled(&receipts).unwrap();

    house.servers[0].fill_up(MIB as u64 / 2).unwrap();
    for (vault, seed) in [(0, 2), (1, 3), (0, 4)] {
        receipts.push(Receipt::ask(&house.files(vault), seed, 2 * MIB).unwrap());
    }
    for vault in [0, 1] {
        let paris = house.server_status(vault, 0).unwrap();
        let told = paris["full"] == true || paris["low"] == true;
        assert!(told && paris["owed"].as_u64() > Some(0), "{paris}");
    }
    let owed = house.pair.vaults[0].command(&["file", "owed"]).unwrap();
    assert!(owed.contains("paris") && owed.contains("make room"), "{owed}");

    house.servers[1].fill_up(MIB as u64 / 2).unwrap();
    for (vault, seed) in [(0, 5), (1, 6), (0, 7), (1, 8)] {
        let refused = house.files(vault).key(format!("k{seed}")).body(noise(seed, 2 * MIB)).send().unwrap();
        assert_eq!(refused.status, 507, "{}", refused.text());
        assert_eq!(refused.word("code").unwrap(), "storage_full");
        assert!(refused.word("detail").unwrap().contains("makes room"), "{}", refused.text());
    }
    house.read_back(&receipts).unwrap();

    house.servers[1].make_room().unwrap();
    // Keys that were refused are good again.
    for (vault, seed) in [(0, 5), (1, 6)] {
        receipts.push(house.upload(vault, seed, 2 * MIB).unwrap());
    }
    house.servers[0].make_room().unwrap();
    house.settled(&receipts).unwrap();
    house.read_back(&receipts).unwrap();
    assert_eq!(house.leftovers().unwrap(), Vec::<String>::new());
}

#[test]
fn a_server_that_loses_its_rights_is_owed_until_it_has_them_again() {
    let house = SftpPair::start_with(PairPlan::default(), SftpServer::start_bound_by_modes).unwrap();
    let mut receipts = vec![house.upload(0, 1, MIB).unwrap()];
    house.settled(&receipts).unwrap();
    let modes = [("tmp", 0o500, "may not be written"), ("", 0o000, "may not even be looked into")];
    for (seed, (folder, mode, what)) in (2..).step_by(2).zip(modes) {
        house.servers[0].set_mode(folder, mode).unwrap();
        for vault in [0, 1] {
            let receipt = Receipt::insist(&house.files(vault), seed + vault as u64, MIB).unwrap();
            receipts.push(receipt);
        }
        house.read_back(&receipts).unwrap();
        wait::until("the reason is told", SOON, || {
            let paris = house.server_status(0, 0)?;
            let told = paris["last_error"].as_str().unwrap_or_default();
            anyhow::ensure!(told.contains("ermission denied"), "{what}: {paris}");
            anyhow::ensure!(paris["owed"].as_u64() >= Some(2), "{what}: {paris}");
            Ok(())
        })
        .unwrap();
        house.servers[0].set_mode(folder, 0o750).unwrap();
        house.settled(&receipts).unwrap();
    }
    house.read_back(&receipts).unwrap();
    let aside = house.servers[0].view().join("quarantine");
    assert_eq!(std::fs::read_dir(aside).unwrap().count(), 0, "what cannot be read is not damaged");
}

#[test]
fn another_host_key_under_a_running_vault_is_refused_until_an_operator_accepts_it() {
    let mut house = SftpPair::start().unwrap();
    let mut receipts = vec![house.upload(0, 1, MIB).unwrap()];
    house.settled(&receipts).unwrap();
    house.servers[1].kill().unwrap();
    house.servers[1].exchange_host_key().unwrap();
    house.servers[1].start_again().unwrap();
    for (vault, seed) in [(0, 2), (1, 3)] {
        receipts.push(house.upload(vault, seed, MIB).unwrap());
        wait::until("the reason is told", SOON, || {
            let lyon = house.server_status(vault, 1)?;
            let told = lyon["last_error"].as_str().unwrap_or_default();
            anyhow::ensure!(lyon["up"] == false && told.contains("host key"), "{lyon}");
            anyhow::ensure!(told.contains("NOT the one") && told.contains(FILE_SERVERS[1]), "{told}");
            Ok(())
        })
        .unwrap();
    }
    let there = replicas(&house.servers[1]).unwrap();
    assert_eq!(there.len(), 1, "nothing is given to a stranger: {there:?}");
    house.read_back(&receipts).unwrap();
    house.servers[1].pin_host_key().unwrap();
    house.settled(&receipts).unwrap();
    house.read_back(&receipts).unwrap();
}
