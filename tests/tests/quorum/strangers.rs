//! An etcd that is not the one of these two vaults, or a ledger in it that is not theirs: nothing is
//! given from it, nothing written to it, and the operator hears what to do.

use harness::cluster::temporary_folder;
use harness::etcd_cluster::EtcdCluster;
use harness::vault_host::{Pair, PairPlan};
use harness::wait;

use super::{SOON, assert_refused, log, number, number_soon, pair};

/// Writes `section` into both files and starts both anew.
fn restart_with(pair: &mut Pair, section: &str) {
    for vault in &mut pair.vaults {
        vault.program().unwrap().terminate().unwrap();
        let text = std::fs::read_to_string(&vault.config).unwrap();
        let text = text.split("[sequence.database]").next().unwrap().to_owned();
        std::fs::write(&vault.config, format!("{text}\n{section}")).unwrap();
    }
    for vault in &mut pair.vaults {
        vault.program().unwrap().restart().unwrap();
    }
    pair.vaults.iter().for_each(|vault| vault.wait_alive().unwrap());
}

#[test]
fn a_second_pair_of_vaults_with_the_same_prefix_is_refused_until_it_has_its_own() {
    let folder = temporary_folder().unwrap();
    let etcd = EtcdCluster::start(folder.path()).unwrap();
    let first = pair(folder.path(), &etcd, "truth");
    assert_eq!(number(&first.vaults[0], "INV", "k1"), 1);

    let other = folder.path().join("second");
    std::fs::create_dir(&other).unwrap();
    let plan = PairPlan { names: Some(["vault-c", "vault-d"]), ..PairPlan::default() };
    let mut second = Pair::start(&other, &plan).unwrap();
    assert_eq!(number(&second.vaults[0], "INV", "theirs"), 1);
    restart_with(&mut second, &etcd.section("truth"));
    for vault in &second.vaults {
        assert_refused(vault, "another pair of vaults needs another prefix (database)");
    }
    assert_eq!(number(&first.vaults[1], "INV", "k2"), 2, "theirs is none of this ledger's");

    restart_with(&mut second, &format!("{}database = \"second\"\n", etcd.section("truth")));
    assert_eq!(number_soon(&second.vaults[1], "INV", "refused"), 2);
    assert_eq!(number_soon(&second.vaults[0], "INV", "theirs"), 1);
    assert_eq!(number(&first.vaults[0], "INV", "k3"), 3);
}

#[test]
fn a_member_that_has_become_another_cluster_is_passed_over_and_named() {
    let folder = temporary_folder().unwrap();
    let mut etcd = EtcdCluster::start(folder.path()).unwrap();
    let pair = pair(folder.path(), &etcd, "truth");
    let stray = (etcd.leader().unwrap() + 1) % 3;
    for turn in 1..=4 {
        assert_eq!(number(&pair.vaults[turn % 2], "INV", &format!("k{turn}")), turn as u64);
    }
    etcd.set_apart(stray).unwrap();
    // Whichever member a vault had been connected to.
    for vault in &pair.vaults {
        number_soon(vault, "INV", "k5");
    }
    assert_eq!(number(&pair.vaults[0], "INV", "k6"), 6);

    // It is the only one left: no number is given from it, and the log says which it is.
    let others: Vec<usize> = (0..3).filter(|member| *member != stray).collect();
    for member in &others {
        etcd.members[*member].program.kill().unwrap();
    }
    let named = format!("{} holds 0 entries: etcd holds less of the ledger", etcd.members[stray].address);
    for vault in &pair.vaults {
        assert_refused(vault, "etcd");
        wait::until("the member is named", SOON, || {
            anyhow::ensure!(log(vault).contains(&named), "{named} is not in the log");
            Ok(())
        })
        .unwrap();
    }
    assert!(!etcd.holds_anything(stray).unwrap());
    for member in &others {
        etcd.members[*member].program.restart().unwrap();
    }
    for vault in &pair.vaults {
        number_soon(vault, "INV", "k7");
    }
    assert_eq!(number_soon(&pair.vaults[1], "INV", "k8"), number(&pair.vaults[0], "INV", "k8"));
    assert!(!etcd.holds_anything(stray).unwrap());
}
