//! The vaults' own upkeep, as jobs: seen, run now, paused over a restart, resumed.

use harness::cluster::temporary_folder;
use harness::{plain, wait};

use crate::{SOON, job, pair};

#[test]
fn the_vaults_own_upkeep_is_seen_run_now_paused_over_a_restart_and_resumed_like_other_jobs() {
    let folder = temporary_folder().unwrap();
    let mut pair = pair(folder.path(), String::new());
    let erp = pair.enrol("edge", "erp", "www1").unwrap();
    for vault in &pair.vaults {
        vault.command(&["worker", "pause", "storage.repair"]).unwrap();
    }
    for vault in &mut pair.vaults {
        vault.program().unwrap().kill().unwrap();
        vault.program().unwrap().restart().unwrap();
    }
    pair.wait_ready().unwrap();
    let upload = pair.vaults[0].call(&erp, "/v1/files").key("k1").body("content");
    let stored = upload.send().unwrap().expect(&[201]).unwrap().json().unwrap();
    let id = stored["id"].as_str().unwrap();
    let replica = &pair.replicas_of(id).unwrap()[0];
    std::fs::remove_file(replica).unwrap();

    let first = &pair.vaults[0];
    first.command(&["worker", "run", "storage.sync"]).unwrap();
    wait::until("the comparison has found it", SOON, || {
        let job = job(first, "storage.sync")?;
        anyhow::ensure!(job["last"]["result"] == "1 objects, 1 differences", "{job}");
        Ok(())
    })
    .unwrap();
    wait::until("the pause is told, and holds", SOON, || {
        let ready = plain::expect_ok(first.admin, "/readyz?verbose")?;
        anyhow::ensure!(ready.contains("[~] worker: storage.repair is paused"), "{ready}");
        let told = first.command(&["worker", "status"])?;
        anyhow::ensure!(told.contains("job storage.repair: PAUSED: paused by"), "{told}");
        let metrics = plain::expect_ok(first.admin, "/metrics")?;
        let counted = "vault_worker_runs_total{job=\"storage.sync\",outcome=\"done\"}";
        anyhow::ensure!(metrics.contains(counted), "{metrics}");
        Ok(())
    })
    .unwrap();
    assert!(!replica.exists());
    first.command(&["worker", "resume", "storage.repair"]).unwrap();
    wait::until("it is healed", SOON, || {
        anyhow::ensure!(replica.exists(), "{}", job(first, "storage.repair")?);
        Ok(())
    })
    .unwrap();
    first.command(&["worker", "run", "storage.scrub"]).unwrap();
    wait::until("a scrub has read what is there", SOON, || {
        let job = job(first, "storage.scrub")?;
        let result = job["last"]["result"].as_str().unwrap_or_default();
        anyhow::ensure!(result.contains("0 damaged") && job["next"].is_string(), "{job}");
        Ok(())
    })
    .unwrap();
}
