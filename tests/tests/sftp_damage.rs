//! Stories of file servers whose contents change behind the vaults' backs: rolled back to an old
//! copy, wiped, rotten in every way. Both vaults notice and heal at once, through the real
//! programs, and what was deleted stays deleted.
#![expect(clippy::unwrap_used, reason = "a story's own steps fail the story when they fail")]

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use harness::receipts::Receipt;
use harness::sftp_pair::{SftpPair, replicas};
use harness::sftp_server::SftpServer;
use harness::vault_host::{FILE_SERVERS, PairPlan};
use harness::wait;

const SOON: Duration = Duration::from_secs(60);
const KIB: usize = 1 << 10;

/// Uploads one file for each seed, alternately at both vaults; every seventh is not small.
fn upload_some(house: &SftpPair, seeds: std::ops::Range<usize>) -> Vec<Receipt> {
    let length = |seed: usize| if seed.is_multiple_of(7) { 1500 * KIB } else { KIB + 3 * seed };
    seeds.map(|seed| house.upload(seed % 2, seed as u64, length(seed)).unwrap()).collect()
}

fn ids(receipts: &[Receipt]) -> BTreeSet<String> {
    receipts.iter().map(|receipt| receipt.id.clone()).collect()
}

/// Waits until what both vaults noted on the server tells of everything that changed so far.
fn noted(house: &SftpPair) {
    let marker = |vault: &str| {
        let notes = house.servers[0].place.join("notes");
        let slots = [0, 1].map(|slot| notes.join(format!("generation.{vault}.{slot}")));
        slots.map(|file| file.metadata().and_then(|known| known.modified()).ok()).into_iter().max().flatten()
    };
    let before = ["vault-a", "vault-b"].map(marker);
    // One more change, so that the next notes come after everything else.
    upload_some(house, 900..902);
    wait::until("both vaults have noted it", SOON, || {
        let now = ["vault-a", "vault-b"].map(marker);
        anyhow::ensure!(now[0] > before[0] && now[1] > before[1], "{now:?}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_scrub_that_is_followed_fails_where_something_was_damaged_or_left_out() {
    let mut house = SftpPair::start().unwrap();
    let receipts = upload_some(&house, 1..9);
    house.settled(&receipts).unwrap();
    // The vaults share the objects: what the one finds the other does not look at.
    let follow = |house: &SftpPair| {
        let refusals = house.pair.vaults.each_ref().map(|vault| {
            vault.command(&["file", "scrub", "--follow"]).err().map(|error| format!("{error:#}"))
        });
        refusals.into_iter().flatten().collect::<Vec<_>>()
    };
    assert_eq!(follow(&house), Vec::<String>::new());
    let spoilt = house.servers[0].replica(&receipts[0].id);
    let mut bytes = std::fs::read(&spoilt).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&spoilt, bytes).unwrap();
    let told = follow(&house);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("1 of ") && told[0].contains("damaged or missing"), "{told:?}");
    house.settled(&receipts).unwrap();
    assert_eq!(follow(&house), Vec::<String>::new());
    house.servers[1].kill().unwrap();
    let told = follow(&house);
    assert_eq!(told.len(), 2, "{told:?}");
    let left_out = format!("could not be looked at on {}", FILE_SERVERS[1]);
    assert!(told.iter().all(|told| told.contains(&left_out)), "{told:?}");
}

#[test]
fn a_server_rolled_back_to_an_old_copy_is_noticed_by_both_vaults_and_catches_up() {
    let mut house = SftpPair::start().unwrap();
    let mut receipts = upload_some(&house, 1..16);
    house.settled(&receipts).unwrap();
    noted(&house);
    let backup = house.folder.path().join("backup");
    house.servers[0].back_up(&backup).unwrap();
    let old = replicas(&house.servers[0]).unwrap();

    let deleted = receipts.split_off(10);
    for (place, receipt) in deleted.iter().enumerate() {
        let call = house.files(place % 2).to(&format!("/{}", receipt.id)).method("DELETE");
        call.send().unwrap().expect(&[204]).unwrap();
    }
    receipts.extend(upload_some(&house, 20..40));
    house.settled(&receipts).unwrap();
    noted(&house);

    house.servers[0].kill().unwrap();
    house.servers[0].restore(&backup).unwrap();
    assert_eq!(replicas(&house.servers[0]).unwrap(), old);
    house.servers[0].start_again().unwrap();
    for vault in [0, 1] {
        wait::until("the restored server is noticed", SOON, || {
            let paris = house.server_status(vault, 0)?;
            anyhow::ensure!(paris["restored"].as_u64() >= Some(1), "{paris}");
            Ok(())
        })
        .unwrap();
    }
    house.settled(&receipts).unwrap();
    house.read_back(&receipts).unwrap();
    for receipt in &deleted {
        for vault in [0, 1] {
            let status = house.files(vault).to(&format!("/{}", receipt.id)).send().unwrap().status;
            assert_eq!(status, 410, "{} is back", receipt.id);
        }
    }
}

#[test]
fn a_wiped_server_is_believed_by_nobody_until_it_is_adopted_and_then_filled_again() {
    let mut house = SftpPair::start().unwrap();
    let mut receipts = upload_some(&house, 1..16);
    house.settled(&receipts).unwrap();
    house.servers[1].kill().unwrap();
    house.servers[1].wipe().unwrap();
    house.servers[1].start_again().unwrap();
    receipts.extend(upload_some(&house, 16..20));
    for vault in [0, 1] {
        wait::until("the reason is told", SOON, || {
            let lyon = house.server_status(vault, 1)?;
            let told = lyon["last_error"].as_str().unwrap_or_default();
            anyhow::ensure!(lyon["up"] == false && told.contains("marker is missing"), "{lyon}");
            Ok(())
        })
        .unwrap();
    }
    house.read_back(&receipts).unwrap();
    assert_eq!(std::fs::read_dir(&house.servers[1].place).unwrap().count(), 0, "it is not claimed");
    let told = house.pair.vaults[0].command(&["file", "adopt-server", FILE_SERVERS[1]]).unwrap();
    assert!(told.contains("is a new place now") && told.contains("so it is for the other vault"), "{told}");
    let again = house.pair.vaults[1].command(&["file", "adopt-server", FILE_SERVERS[1]]).unwrap_err();
    assert!(format!("{again:#}").contains("is the place it always was"), "{again:#}");
    house.settled(&receipts).unwrap();
    assert!(replicas(&house.servers[1]).unwrap().is_superset(&ids(&receipts)));
    house.read_back(&receipts).unwrap();
}

#[test]
fn what_is_deleted_leaves_both_servers_after_its_grace_also_one_that_was_away() {
    let plan = PairPlan { storage: "undelete_within = \"3s\"\n".to_owned(), ..PairPlan::default() };
    let mut house = SftpPair::start_with(plan, SftpServer::start).unwrap();
    let mut receipts = upload_some(&house, 1..9);
    house.settled(&receipts).unwrap();
    let deleted = receipts.split_off(5);
    house.servers[0].kill().unwrap();
    for (place, receipt) in deleted.iter().enumerate() {
        let call = house.files(place % 2).to(&format!("/{}", receipt.id));
        call.clone().method("DELETE").send().unwrap().expect(&[204]).unwrap();
        call.send().unwrap().expect(&[410]).unwrap();
    }
    assert!(replicas(&house.servers[1]).unwrap().is_superset(&ids(&deleted)), "not before the grace is over");
    wait::until("its bytes are gone where they can be removed", SOON, || {
        anyhow::ensure!(replicas(&house.servers[1])?.is_disjoint(&ids(&deleted)));
        Ok(())
    })
    .unwrap();
    house.servers[0].start_again().unwrap();
    wait::until("both hold exactly what is not deleted", SOON, || {
        for server in &house.servers {
            let there = replicas(server)?;
            anyhow::ensure!(there == ids(&receipts), "{}: {there:?}", server.place.display());
        }
        Ok(())
    })
    .unwrap();
    let refused = house.pair.vaults[0].command(&["file", "undelete", &deleted[0].id]).unwrap_err();
    assert!(format!("{refused:#}").contains("purged"), "{refused:#}");
    house.read_back(&receipts).unwrap();
}

/// Makes a replica rot, each time in another way.
fn spoil(replica: &Path, way: usize) {
    let mut bytes = std::fs::read(replica).unwrap();
    let middle = bytes.len() / 2;
    match way % 5 {
        // In the body, whatever its length.
        0 => bytes[middle.max(8192)] ^= 0x10,
        1 => bytes.truncate(middle),
        2 => bytes.fill(0),
        3 => bytes.clear(),
        _ => bytes.extend_from_slice(b"and more"),
    }
    std::fs::write(replica, bytes).unwrap();
}

#[test]
fn every_kind_of_rot_on_both_servers_is_found_and_healed_by_both_vaults_at_once() {
    let house = SftpPair::start().unwrap();
    let receipts = upload_some(&house, 1..31);
    house.settled(&receipts).unwrap();
    let sound: Vec<_> = receipts
        .iter()
        .map(|receipt| std::fs::read(house.servers[0].replica(&receipt.id)).unwrap())
        .collect();
    // Ten rot on the one server, ten others on the other, two are gone on each.
    for (way, receipt) in receipts.iter().take(20).enumerate() {
        spoil(&house.servers[way % 2].replica(&receipt.id), way / 2);
    }
    for (place, receipt) in receipts[20..24].iter().enumerate() {
        std::fs::remove_file(house.servers[place % 2].replica(&receipt.id)).unwrap();
    }
    // Readers find some, the scrubs and comparisons of both vaults the rest.
    let check = |vault: usize| {
        let vault = &house.pair.vaults[vault];
        vault.command(&["file", "scrub"])?;
        // Refused while one is under way that the vault began by itself.
        wait::until("a comparison", SOON, || vault.command(&["file", "sync"]).map(drop))
    };
    std::thread::scope(|scope| {
        let both = [0, 1].map(|vault| scope.spawn(move || check(vault)));
        house.read_back(&receipts).unwrap();
        both.into_iter().for_each(|one| one.join().unwrap().unwrap());
    });
    wait::until("every replica is as it was", SOON, || {
        for (receipt, sound) in receipts.iter().zip(&sound) {
            for server in &house.servers {
                let healed = std::fs::read(server.replica(&receipt.id)).unwrap_or_default() == *sound;
                anyhow::ensure!(healed, "{} on {}", receipt.id, server.place.display());
            }
        }
        Ok(())
    })
    .unwrap();
    house.settled(&receipts).unwrap();
    house.read_back(&receipts).unwrap();
    let aside =
        |server: usize| std::fs::read_dir(house.servers[server].place.join("quarantine")).unwrap().count();
    assert!(aside(0) >= 10 && aside(1) >= 10, "what is damaged is kept for the operator");
    for vault in &house.pair.vaults {
        for receipt in receipts.iter().step_by(6) {
            vault.command(&["file", "verify", &receipt.id]).unwrap();
        }
    }
}
