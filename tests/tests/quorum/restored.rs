//! etcd's data put back from a backup: what the vaults know of the ledger counts, also what only one
//! of them knows.

use std::collections::BTreeMap;

use harness::cluster::temporary_folder;
use harness::etcd_cluster::EtcdCluster;
use harness::wait;

use super::{SOON, assert_refused, assert_whole, found, number, number_soon, pair, status};

#[test]
fn an_etcd_that_lost_everything_is_filled_again_at_the_operators_word_and_the_lost_one_is_refused() {
    let folder = temporary_folder().unwrap();
    let mut etcd = EtcdCluster::start(folder.path()).unwrap();
    let mut pair = pair(folder.path(), &etcd, "truth");
    let mut given = BTreeMap::new();
    for turn in 0..10 {
        let key = format!("k{turn}");
        given.insert(key.clone(), number(&pair.vaults[turn % 2], "INV", &key));
    }
    let refill = |pair: &harness::vault_host::Pair| pair.vaults[0].command(&["number", "re-seed"]);
    let why = format!("{:#}", refill(&pair).unwrap_err());
    assert!(why.contains("etcd has not lost the ledger"), "{why}");
    // Both know the same, whichever gave the last.
    assert_eq!([0, 1].map(|vault| found(&pair.vaults[vault], "INV", "k9")), [Some(10); 2]);
    etcd.keep("lost").unwrap();
    pair.vaults.iter().for_each(|vault| assert_eq!(number_soon(vault, "INV", "k0"), given["k0"]));

    etcd.lose_everything().unwrap();
    pair.vaults.iter().for_each(|vault| assert_refused(vault, "run vault number re-seed"));
    pair.vaults[1].program().unwrap().freeze().unwrap();
    let why = format!("{:#}", refill(&pair).unwrap_err());
    assert!(why.contains("the other vault is not connected"), "{why}");
    assert!(!etcd.holds_anything(0).unwrap());
    pair.vaults[1].program().unwrap().thaw().unwrap();
    let told = wait::until("etcd is filled", SOON, || refill(&pair)).unwrap();
    assert!(told.contains("entries are carried over"), "{told}");
    for (turn, vault) in pair.vaults.iter().enumerate() {
        let key = format!("after{turn}");
        given.insert(key.clone(), number_soon(vault, "INV", &key));
    }
    // It was asked for while nothing was given, and gets a number now or then.
    given.insert("refused".to_owned(), number(&pair.vaults[0], "INV", "refused"));
    assert_whole(&given);
    for (key, number) in &given {
        assert_eq!([0, 1].map(|vault| found(&pair.vaults[vault], "INV", key)), [Some(*number); 2]);
    }

    // The lost one comes back; it is not the ledger any more. Nor is one filled by a vault that was
    // started anew.
    etcd.put_back("lost").unwrap();
    pair.vaults.iter().for_each(|vault| assert_refused(vault, "this etcd is not the one"));
    pair.vaults[0].program().unwrap().kill().unwrap();
    pair.vaults[0].program().unwrap().restart().unwrap();
    pair.vaults[0].wait_alive().unwrap();
    etcd.lose_everything().unwrap();
    pair.vaults.iter().for_each(|vault| assert_refused(vault, "run vault number re-seed"));
    let why = format!("{:#}", refill(&pair).unwrap_err());
    assert!(why.contains("vault-a was started anew"), "{why}");
    assert!(!etcd.holds_anything(1).unwrap());
}

#[test]
fn an_etcd_restored_from_a_backup_gives_no_number_again_also_by_a_vault_that_was_off() {
    let folder = temporary_folder().unwrap();
    let mut etcd = EtcdCluster::start(folder.path()).unwrap();
    let mut pair = pair(folder.path(), &etcd, "truth");
    let mut given = BTreeMap::new();
    for turn in 0..6 {
        let key = format!("k{turn}");
        given.insert(key.clone(), number(&pair.vaults[turn % 2], "INV", &key));
    }
    etcd.keep("backup").unwrap();
    assert_eq!(number_soon(&pair.vaults[1], "INV", "k0"), given["k0"]);

    // One is off while the other goes on: all that it knows of, the backup holds.
    pair.vaults[1].program().unwrap().kill().unwrap();
    for turn in 6..15 {
        let key = format!("k{turn}");
        given.insert(key.clone(), number_soon(&pair.vaults[0], "INV", &key));
    }
    etcd.keep("right").unwrap();
    etcd.put_back("backup").unwrap();
    let told = "put the right one back";
    assert_refused(&pair.vaults[0], told);
    pair.vaults[1].program().unwrap().restart().unwrap();
    pair.vaults[1].wait_alive().unwrap();
    assert_refused(&pair.vaults[1], told);
    for vault in &pair.vaults {
        assert_eq!(status(vault)["needs_operator"], true, "{}", status(vault));
        assert!(status(vault)["reason"].as_str().unwrap().contains(told));
    }

    // The right data is back: they go on by themselves.
    etcd.put_back("right").unwrap();
    given.insert("k15".to_owned(), number_soon(&pair.vaults[1], "INV", "k15"));
    given.insert("k16".to_owned(), number_soon(&pair.vaults[0], "INV", "k16"));
    // It was asked for while nothing was given, and gets a number now or then.
    given.insert("refused".to_owned(), number(&pair.vaults[0], "INV", "refused"));
    assert_whole(&given);
    for (key, number) in &given {
        assert_eq!([0, 1].map(|vault| found(&pair.vaults[vault], "INV", key)), [Some(*number); 2]);
    }

    // With both on, each knows by itself.
    etcd.put_back("backup").unwrap();
    pair.vaults.iter().for_each(|vault| assert_refused(vault, told));
}
