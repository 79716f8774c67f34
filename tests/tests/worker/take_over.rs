//! Who goes on with a job when its vault is frozen or dead: the other one, by itself where etcd is the
//! ledger, and at an operator's word where the ledger's owner is dead.

use harness::cluster::temporary_folder;
use harness::database_server::{DatabaseServer, Kind};
use harness::etcd_cluster::EtcdCluster;
use harness::upstream::Upstream;
use harness::vault_host::{Pair, Vault};
use harness::wait;

use crate::jobs::held_job;
use crate::{SOON, called, calls, job, last, pair};

fn epoch_of(pair: &Pair, handler: &Upstream) -> Vec<u64> {
    let calls = calls(handler);
    assert_eq!(calls.len(), 1, "one key: {calls:?} {:?}", job(&pair.vaults[1], "report"));
    let all = calls.values().flatten();
    all.map(|seen| seen.header("x-schedule-epoch").unwrap().parse().unwrap()).collect()
}

fn ends_on(vault: &Vault, by: &str) {
    wait::until("the run has ended there", SOON, || {
        let ended = last(vault, "report")?;
        anyhow::ensure!(ended == by, "on {ended}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_run_of_a_frozen_vault_is_taken_over_under_the_same_key_and_what_it_says_when_thawed_counts_no_more() {
    let (folder, handler) = (temporary_folder().unwrap(), Upstream::start().unwrap());
    let etcd = EtcdCluster::start(folder.path()).unwrap();
    let mut pair = pair(folder.path(), held_job(&handler) + &etcd.section("truth"));
    pair.vaults[0].command(&["worker", "run", "report"]).unwrap();
    called(&handler, 1);
    pair.vaults[0].program().unwrap().freeze().unwrap();
    called(&handler, 2);
    handler.release();
    ends_on(&pair.vaults[1], pair.vaults[1].name);
    pair.vaults[0].program().unwrap().thaw().unwrap();
    ends_on(&pair.vaults[0], pair.vaults[1].name);
    let epochs = epoch_of(&pair, &handler);
    assert!(epochs.len() >= 2 && epochs.iter().max() > epochs.iter().min(), "{epochs:?}");
    // Both are well, and so is the job.
    pair.vaults[0].command(&["worker", "run", "report"]).unwrap();
    ends_on(&pair.vaults[1], pair.vaults[0].name);
}

#[test]
fn a_dead_ledger_owners_run_waits_and_goes_on_at_the_other_vault_at_an_operators_word() {
    let (folder, handler) = (temporary_folder().unwrap(), Upstream::start().unwrap());
    let server = DatabaseServer::start(Kind::Postgres, folder.path(), "primary").unwrap();
    let database = format!(
        "[sequence.database]\nkind = \"postgres\"\nhosts = [\"{}\"]\npassword_file = \"{}\"\nauthority_file = \"{}\"\n",
        server.address,
        server.password_file.display(),
        server.authority.display()
    );
    let mut pair = pair(folder.path(), held_job(&handler) + &database);
    let said = pair.vaults[0].command(&["worker", "run", "report"]).unwrap();
    called(&handler, 1);
    pair.vaults[0].program().unwrap().kill().unwrap();
    let other = &pair.vaults[1];
    wait::until("it waits, and says for what", SOON, || {
        let job = job(other, "report")?;
        let trouble = job["trouble"].as_str().unwrap_or_default();
        anyhow::ensure!(
            trouble.contains("vault number take-over --alone") && job["running"].is_object(),
            "{job}"
        );
        Ok(())
    })
    .unwrap();
    other.command(&["number", "take-over", "--alone"]).unwrap();
    called(&handler, 2);
    handler.release();
    ends_on(other, other.name);
    assert!(said.starts_with(calls(&handler).keys().next().unwrap()), "{said}");
    let epochs = epoch_of(&pair, &handler);
    assert!(epochs.iter().max() > epochs.iter().min(), "{epochs:?}");
    // The old owner comes back, follows, and runs jobs again.
    pair.vaults[0].program().unwrap().restart().unwrap();
    pair.wait_ready().unwrap();
    pair.vaults[0].command(&["worker", "run", "report"]).unwrap();
    ends_on(&pair.vaults[1], pair.vaults[0].name);
}
