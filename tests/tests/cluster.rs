//! Stories of everything together: browsers in front of edge, handlers at its gateway, two
//! vaults behind, and the accidents that must not be noticed or must be told plainly.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use harness::cluster::{Cluster, temporary_folder};
use harness::program::{Program, Recipe, Signal};
use harness::{binaries, wait};
use shared::api::{File, Number};

const SOON: Duration = Duration::from_secs(60);

fn draw(cluster: &Cluster, key: &str) -> anyhow::Result<Number> {
    let call = cluster.handler("/v1/series/ORDER/numbers").key(key).method("POST");
    let answer = call.send()?.expect(&[200, 201])?;
    Ok(serde_json::from_slice(&answer.body)?)
}

fn upload(cluster: &Cluster, key: &str, body: &[u8]) -> anyhow::Result<File> {
    let answer = cluster.handler("/v1/files").key(key).body(body).send()?.expect(&[200, 201])?;
    Ok(serde_json::from_slice(&answer.body)?)
}

#[test]
fn the_quickstart_drives_the_whole_promise() {
    let quickstart = binaries::find("quickstart").unwrap();
    let ran = Command::new("timeout")
        .args(["--kill-after=30", "600"])
        .arg(quickstart)
        .arg("--check")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{said}\n{}", String::from_utf8_lossy(&ran.stderr));
    assert!(said.lines().filter(|line| line.starts_with("ok   ")).count() >= 20, "{said}");
    assert!(!said.contains("FAIL"), "{said}");
}

#[test]
fn ctrl_c_stops_the_quickstart_and_leaves_nothing() {
    let logs = temporary_folder().unwrap();
    let quickstart = binaries::find("quickstart").unwrap();
    let no_arguments: [&str; 0] = [];
    let mut program =
        Program::start(Recipe::new("quickstart", quickstart, no_arguments, logs.path())).unwrap();
    let said = wait::until("it says what to try", SOON, || {
        let said = program.log();
        anyhow::ensure!(said.contains("Ctrl-C stops everything"), "{said}");
        Ok(said)
    })
    .unwrap();
    let folder = said.lines().find_map(|line| line.strip_prefix("all of it in ")).unwrap();
    assert!(Path::new(folder).is_dir(), "{said}");
    program.signal(Signal::INT).unwrap();
    let status = program.wait(SOON).unwrap();
    assert!(status.success(), "{status} {}", program.log());
    assert!(!Path::new(folder).exists(), "{folder} is left");
    // Every program that it started names that folder in its arguments.
    let left: Vec<_> = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(folder))
        .collect();
    assert!(left.is_empty(), "still running: {left:?}");
}

#[test]
fn a_frozen_vault_delays_a_handler_but_loses_nothing() {
    let mut cluster = Cluster::start().unwrap();
    for victim in [1, 0] {
        let before = draw(&cluster, &format!("before-{victim}")).unwrap();
        cluster.pair.vaults[victim].program().unwrap().freeze().unwrap();
        let body = format!("uploaded while vault {victim} is frozen").into_bytes();
        let key = format!("frozen-{victim}");
        let file = wait::until("uploads go on", SOON, || upload(&cluster, &key, &body)).unwrap();
        let path = format!("/v1/files/{}", file.id);
        assert!(cluster.handler(&path).send().unwrap().body == body);
        let refused = wait::until("numbers are refused with a reason", SOON, || {
            let call = cluster.handler("/v1/series/ORDER/numbers").key(format!("alone-{victim}"));
            call.method("POST").send()?.expect(&[503])
        })
        .unwrap();
        assert!(refused.header("retry-after").is_some(), "{refused:?}");
        // The owner has the entry, the frozen vault perhaps not: this key must wait for it.
        let code = refused.word("code").unwrap();
        assert!(["peer_away", "in_doubt"].contains(&code.as_str()), "{}", refused.text());
        cluster.pair.vaults[victim].program().unwrap().thaw().unwrap();
        let after =
            wait::until("numbers go on", SOON, || draw(&cluster, &format!("after-{victim}"))).unwrap();
        assert!(after.number > before.number);
        let again = draw(&cluster, &format!("before-{victim}")).unwrap();
        assert_eq!(again.number, before.number, "the same key, the same number");
        cluster.pair.wait_ready().unwrap();
    }
    // Refused calls took no number with them: what was refused is asked again, and no hole is left.
    let refused: Vec<_> =
        [1, 0].map(|victim| draw(&cluster, &format!("alone-{victim}")).unwrap().number).to_vec();
    let last = draw(&cluster, "the last").err();
    assert!(last.is_some(), "a key with a blank is refused by the gateway's side too");
    let last = draw(&cluster, "the-last").unwrap().number;
    assert_eq!(last, 7, "before, after, alone, twice each, and the last; refused got {refused:?}");
}

#[test]
fn both_vaults_die_at_once_and_what_was_acknowledged_is_there_after_the_restart() {
    let mut cluster = Cluster::start().unwrap();
    let body = b"signed and sealed".repeat(10_000);
    let file = upload(&cluster, "sealed", &body).unwrap();
    let number = draw(&cluster, "sealed").unwrap();
    for vault in &mut cluster.pair.vaults {
        vault.program().unwrap().kill().unwrap();
    }
    let nobody = cluster.handler("/v1/series/ORDER/numbers").key("nobody").method("POST").send().unwrap();
    assert!([502, 503].contains(&nobody.status), "{nobody:?}");
    assert!(nobody.header("retry-after").is_some(), "{nobody:?}");
    for vault in &mut cluster.pair.vaults {
        vault.program().unwrap().restart().unwrap();
    }
    cluster.pair.wait_ready().unwrap();
    let again = wait::until("numbers go on", SOON, || draw(&cluster, "sealed")).unwrap();
    assert_eq!(again, number);
    let path = format!("/v1/files/{}", file.id);
    let answer =
        wait::until("the file is there", SOON, || cluster.handler(&path).send()?.expect(&[200])).unwrap();
    assert!(answer.body == body);
    assert_eq!(upload(&cluster, "sealed", &body).unwrap().id, file.id);
}

#[test]
fn edge_dies_and_comes_back_with_nothing_to_remember() {
    let mut cluster = Cluster::start().unwrap();
    let file = upload(&cluster, "kept", b"at the vaults").unwrap();
    cluster.edge.program.kill().unwrap();
    cluster.edge.program.restart().unwrap();
    cluster.edge.wait_ready().unwrap();
    let path = format!("/files/{}", file.id);
    let answer =
        wait::until("downloads go on", SOON, || cluster.edge.call(&path).send()?.expect(&[200])).unwrap();
    assert_eq!(answer.text(), "at the vaults");
    cluster.stop().unwrap();
}

#[test]
fn handlers_reach_numbers_and_files_and_nothing_else() {
    let cluster = Cluster::start().unwrap();
    for path in [
        "/",
        "/v1/status",
        "/v1/pki/certificates",
        "/v1/enrol",
        "/v1/seriesx/a/numbers",
        "/v1/files/../status",
    ] {
        let answer = cluster.handler(path).send().unwrap();
        assert!([400, 404].contains(&answer.status), "{path}: {} {}", answer.status, answer.text());
        assert!(!answer.word("detail").unwrap().is_empty(), "{path}");
    }
    // A call without a key is given one, and told which.
    let keyless =
        cluster.handler("/v1/series/ORDER/numbers").method("POST").send().unwrap().expect(&[201]).unwrap();
    let number: Number = serde_json::from_slice(&keyless.body).unwrap();
    assert_eq!(keyless.header("idempotency-key"), Some(number.key.as_str()));
}
