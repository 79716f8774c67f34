//! Jobs by schedules: one vault at a time, each time once; pauses; keys.

use std::collections::BTreeSet;
use std::time::Duration;

use harness::cluster::temporary_folder;
use harness::etcd_cluster::EtcdCluster;
use harness::upstream::Upstream;
use harness::{plain, wait};

use crate::{SOON, called, calls, job, last, pair};

#[test]
fn a_job_runs_once_for_each_time_and_on_the_other_vault_once_its_own_is_killed() {
    let (folder, handler) = (temporary_folder().unwrap(), Upstream::start().unwrap());
    let etcd = EtcdCluster::start(folder.path()).unwrap();
    let mut pair = pair(
        folder.path(),
        format!(
            "[[schedule]]\nname = \"tick\"\ncron = \"*/10 * * * * *\"\nkind = \"http\"\nurl = \"http://{}/tick\"\n{}",
            handler.address,
            etcd.section("truth")
        ),
    );
    let runs = |count: usize| {
        wait::until("it runs", SOON, || {
            let calls = calls(&handler);
            anyhow::ensure!(calls.len() >= count, "{} of {count}", calls.len());
            Ok(calls)
        })
        .unwrap()
    };
    let before = runs(3);
    assert!(before.values().all(|calls| calls.len() == 1), "both vaults ran it: {before:?}");
    let by = wait::until("a run is told", SOON, || last(&pair.vaults[0], "tick")).unwrap();
    let holder = usize::from(by != pair.vaults[0].name);
    pair.vaults[holder].program().unwrap().kill().unwrap();
    let killed = runs(1).len();
    let other = &pair.vaults[1 - holder];
    wait::until("the other vault runs it", SOON, || {
        let by = last(other, "tick")?;
        anyhow::ensure!(by == other.name, "last on {by}");
        Ok(())
    })
    .unwrap();
    let after = runs(killed + 2);
    let repeated: Vec<_> = after.iter().filter(|(_, calls)| calls.len() > 1).collect();
    // At least once: the run that was under way at the kill, and no other.
    assert!(repeated.len() <= 1 && repeated.iter().all(|(_, calls)| calls.len() == 2), "{repeated:?}");
}

#[test]
fn a_run_under_way_when_its_vault_is_killed_is_run_again_under_its_own_key() {
    let (folder, handler) = (temporary_folder().unwrap(), Upstream::start().unwrap());
    let mut pair = pair(folder.path(), held_job(&handler));
    let vault = &mut pair.vaults[1];
    let said = vault.command(&["worker", "run", "report"]).unwrap();
    called(&handler, 1);
    vault.program().unwrap().kill().unwrap();
    vault.program().unwrap().restart().unwrap();
    // By whichever vault: apart neither may, and then the lease must end first.
    called(&handler, 2);
    handler.release();
    wait::until("it has ended well", SOON, || last(vault, "report")).unwrap();
    let calls = calls(&handler);
    let (key, twice) = calls.first_key_value().unwrap();
    assert!(calls.len() == 1 && twice.len() >= 2 && said.starts_with(key), "{said} {calls:?}");
    let epochs: BTreeSet<u64> =
        twice.iter().map(|seen| seen.header("x-schedule-epoch").unwrap().parse().unwrap()).collect();
    assert!(epochs.len() >= 2, "whoever begins it again has a greater epoch: {epochs:?}");
}

/// Its handler answers only once it is let go.
pub(crate) fn held_job(handler: &Upstream) -> String {
    format!(
        "[[schedule]]\nname = \"report\"\ncron = \"0 0 1 1 *\"\nkind = \"http\"\nurl = \"http://{}/hold\"\n\
         answer_timeout = \"10m\"\n",
        handler.address
    )
}

#[test]
fn a_job_paused_at_one_vault_runs_on_neither_but_when_asked_and_goes_on_when_resumed_at_the_other() {
    let (folder, handler) = (temporary_folder().unwrap(), Upstream::start().unwrap());
    let pair = pair(
        folder.path(),
        format!(
            "[[schedule]]\nname = \"tick\"\ncron = \"*/10 * * * * *\"\nkind = \"http\"\nurl = \"http://{}/tick\"\n",
            handler.address
        ),
    );
    let [first, second] = &pair.vaults;
    called(&handler, 1);
    first.command(&["worker", "pause", "tick"]).unwrap();
    wait::until("the other vault knows", SOON, || {
        let job = job(second, "tick")?;
        anyhow::ensure!(job["paused"].is_string() && job["running"].is_null(), "{job}");
        let ready = plain::expect_ok(second.admin, "/readyz?verbose")?;
        anyhow::ensure!(ready.contains("[~] worker: tick is paused"), "{ready}");
        Ok(())
    })
    .unwrap();
    let before = handler.seen().len();
    std::thread::sleep(Duration::from_secs(12));
    assert_eq!(handler.seen().len(), before, "it was due meanwhile");
    second.command(&["worker", "run", "tick"]).unwrap();
    called(&handler, before + 1);
    second.command(&["worker", "resume", "tick"]).unwrap();
    called(&handler, before + 2);
    assert!(calls(&handler).values().all(|calls| calls.len() == 1), "{:?}", calls(&handler));
}

#[test]
fn a_job_that_fails_again_and_again_is_told_with_what_to_do() {
    let (folder, handler) = (temporary_folder().unwrap(), Upstream::start().unwrap());
    handler.fail(true);
    let mut pair = pair(
        folder.path(),
        format!(
            "[[schedule]]\nname = \"report\"\ncron = \"0 0 1 1 *\"\nkind = \"http\"\nurl = \"http://{}/\"\n\
             tries = 1\n",
            handler.address
        ),
    );
    let vault = &mut pair.vaults[0];
    for failures in 1..=3 {
        vault.command(&["worker", "run", "report"]).unwrap();
        wait::until("it fails", SOON, || {
            let job = job(vault, "report")?;
            anyhow::ensure!(job["failures"] == failures && job["running"].is_null(), "{job}");
            Ok(())
        })
        .unwrap();
    }
    let log = vault.program().unwrap().log();
    assert!(log.contains("3 failures in a row. Once the cause is mended: vault worker run report"), "{log}");
    let metrics = wait::until("metrics follow", SOON, || {
        let metrics = plain::expect_ok(vault.admin, "/metrics")?;
        anyhow::ensure!(metrics.contains("vault_worker_job_failures{job=\"report\"} 3"), "{metrics}");
        Ok(metrics)
    });
    assert!(metrics.unwrap().contains("vault_worker_runs_total{job=\"report\",outcome=\"failed\"} 3"));
    handler.fail(false);
    vault.command(&["worker", "run", "report"]).unwrap();
    wait::until("it is well again", SOON, || last(vault, "report")).unwrap();
    assert_eq!(job(vault, "report").unwrap()["failures"], 0);
}
