//! Stories of the background worker: two real vaults, handlers over HTTP, kill -9. What follows from
//! each answer and each time is the rooms' own subject (`course`, `turn`), not this one's.
#![expect(clippy::unwrap_used, reason = "a story's own steps fail the story when they fail")]

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use harness::cluster::temporary_folder;
use harness::etcd_cluster::EtcdCluster;
use harness::upstream::{Seen, Upstream};
use harness::vault_host::{Pair, PairPlan, Vault};
use harness::wait;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);

/// Two vaults with these further sections.
fn pair(folder: &std::path::Path, sections: String) -> Pair {
    Pair::start(folder, &PairPlan { storage: sections, ..PairPlan::default() }).unwrap()
}

fn status(vault: &Vault) -> Value {
    serde_json::from_str(&vault.command(&["worker", "status", "--json"]).unwrap()).unwrap()
}

/// The handlers' calls so far that carry this header, by its value.
fn calls(handler: &Upstream, header: &str) -> BTreeMap<String, Vec<Seen>> {
    let mut calls: BTreeMap<String, Vec<Seen>> = BTreeMap::new();
    for seen in handler.seen() {
        calls.entry(seen.header(header).unwrap()).or_default().push(seen);
    }
    calls
}

#[test]
fn a_message_under_way_when_its_vault_is_killed_is_delivered_again_under_the_same_id() {
    let (folder, handler) = (temporary_folder().unwrap(), Upstream::start().unwrap());
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();
    let mut pair = pair(
        folder.path(),
        format!(
            "[[schedule]]\nname = \"seed\"\ncron = \"0 0 1 1 *\"\nkind = \"message\"\nqueue = \"orders\"\ntext = \"hello\"\n\
             [[delivery]]\nname = \"shop\"\nqueue = \"orders\"\nurl = \"http://{}/hold\"\nsecret_file = \"{}\"\n",
            handler.address,
            secret.display()
        ),
    );
    let vault = &mut pair.vaults[0];
    let said = vault.command(&["worker", "run", "seed"]).unwrap();
    assert!(said.starts_with("seed/20"), "{said}");
    wait::until("the handler is called", SOON, || {
        // The run itself must have ended, or the other vault would begin it again.
        let status = status(vault);
        anyhow::ensure!(handler.held() == 1 && status["jobs"][0]["state"]["last"].is_object(), "{status}");
        Ok(())
    })
    .unwrap();
    vault.program().unwrap().kill().unwrap();
    handler.release();
    vault.program().unwrap().restart().unwrap();
    let delivered = wait::until("it is delivered again", SOON, || {
        let calls = calls(&handler, "webhook-id");
        anyhow::ensure!(calls.values().map(Vec::len).sum::<usize>() >= 2, "{calls:?}");
        Ok(calls)
    });
    let delivered = delivered.unwrap();
    let (_, twice) = delivered.first_key_value().unwrap();
    assert_eq!((delivered.len(), twice.len()), (1, 2), "{delivered:?}");
    assert!(twice.iter().all(|seen| seen.body == b"hello" && seen.header("webhook-signature").is_some()));
    wait::until("nothing is left", SOON, || {
        let target = status(vault)["targets"][0].clone();
        anyhow::ensure!(target["delivered"] == 1 && target["under_way"] == 0, "{target}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_paused_target_gets_nothing_until_it_is_resumed_and_unknown_names_are_told() {
    let (folder, handler) = (temporary_folder().unwrap(), Upstream::start().unwrap());
    let pair = pair(
        folder.path(),
        format!(
            "[[schedule]]\nname = \"seed\"\ncron = \"0 0 1 1 *\"\nkind = \"message\"\nqueue = \"orders\"\n\
             [[delivery]]\nname = \"shop\"\nqueue = \"orders\"\nurl = \"http://{}/\"\n",
            handler.address
        ),
    );
    let vault = &pair.vaults[1];
    vault.command(&["worker", "pause", "shop"]).unwrap();
    vault.command(&["worker", "run", "seed"]).unwrap();
    wait::until("the message waits", SOON, || {
        let told = vault.command(&["worker", "status"])?;
        anyhow::ensure!(told.contains("1 under way") && told.contains("PAUSED: paused by"), "{told}");
        anyhow::ensure!(told.contains("on vault-b: done"), "{told}");
        Ok(())
    })
    .unwrap();
    assert!(handler.seen().is_empty());
    vault.command(&["worker", "resume", "shop"]).unwrap();
    wait::until("it is delivered", SOON, || {
        anyhow::ensure!(handler.seen().len() == 1, "{}", status(vault));
        Ok(())
    })
    .unwrap();
    let unknown = vault.command(&["worker", "run", "weekly"]).unwrap_err();
    assert!(format!("{unknown:#}").contains("there is no job weekly; these are: seed"), "{unknown:#}");
}

/// The vault on which the job's last run ended, and how often it has run.
fn last(vault: &Vault) -> anyhow::Result<String> {
    let job = status(vault)["jobs"][0].clone();
    let last = job["state"]["last"].clone();
    anyhow::ensure!(last["fault"].is_null(), "{job}");
    Ok(last["run"]["by"].as_str().with_context(|| job.to_string())?.to_owned())
}

#[test]
fn a_job_runs_once_for_each_time_and_on_the_other_vault_once_its_own_is_killed() {
    let (folder, handler) = (temporary_folder().unwrap(), Upstream::start().unwrap());
    let etcd = EtcdCluster::start(folder.path()).unwrap();
    let mut pair = pair(
        folder.path(),
        format!(
            "[[schedule]]\nname = \"tick\"\ncron = \"*/3 * * * * *\"\nkind = \"http\"\nurl = \"http://{}/tick\"\n{}",
            handler.address,
            etcd.section("truth")
        ),
    );
    let runs = |count: usize| {
        wait::until("it runs", SOON, || {
            let calls = calls(&handler, "webhook-id");
            anyhow::ensure!(calls.len() >= count, "{} of {count}", calls.len());
            Ok(calls)
        })
        .unwrap()
    };
    let before = runs(4);
    assert!(before.values().all(|calls| calls.len() == 1), "both vaults ran it: {before:?}");
    let by = wait::until("a run is told", SOON, || last(&pair.vaults[0])).unwrap();
    let holder = usize::from(by != pair.vaults[0].name);
    pair.vaults[holder].program().unwrap().kill().unwrap();
    let killed = runs(1).len();
    let other = &pair.vaults[1 - holder];
    wait::until("the other vault runs it", SOON, || {
        let by = last(other)?;
        anyhow::ensure!(by == other.name, "last on {by}");
        Ok(())
    })
    .unwrap();
    let after = runs(killed + 3);
    let repeated: Vec<_> = after.iter().filter(|(_, calls)| calls.len() > 1).collect();
    // At least once: the run that was under way at the kill, and no other.
    assert!(repeated.len() <= 1 && repeated.iter().all(|(_, calls)| calls.len() == 2), "{repeated:?}");
}
