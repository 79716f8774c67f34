//! Stories of keys and of what comes back, told by an operator on the vaults' hosts: rotation and
//! recovery with stock programs, a deletion taken back, both disks lost; and what a terminal shows
//! of long work meanwhile.
#![expect(clippy::unwrap_used, reason = "a story's own steps fail the story when they fail")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use harness::binaries;
use harness::cluster::temporary_folder;
use harness::vault_host::{Holder, Pair, PairPlan, files_below};
use harness::wait;
use serde_json::Value;
use shared::api::{File, Page};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(30);

struct House {
    pair: Pair,
    erp: Holder,
    folder: TempDir,
}

impl House {
    fn new() -> Self {
        Self::planned(&PairPlan::default())
    }

    fn planned(plan: &PairPlan) -> Self {
        let folder = temporary_folder().unwrap();
        let pair = Pair::start(folder.path(), plan).unwrap();
        let erp = pair.enrol("edge", "erp", "www1").unwrap();
        Self { pair, erp, folder }
    }

    fn upload(&self, key: &str, body: &[u8]) -> File {
        let call = self.pair.vaults[0].call(&self.erp, "/v1/files").key(key).body(body);
        serde_json::from_slice(&call.send().unwrap().expect(&[201]).unwrap().body).unwrap()
    }

    fn status_of(&self, vault: usize, id: &str) -> anyhow::Result<u16> {
        Ok(self.pair.vaults[vault].call(&self.erp, &format!("/v1/files/{id}")).send()?.status)
    }

    fn json(&self, vault: usize, words: &[&str]) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.pair.vaults[vault].command(&[&["--json"], words].concat())?)?)
    }

    /// Both vaults die, and their catalogs are lost.
    fn burn_catalogs(&mut self) {
        for vault in &mut self.pair.vaults {
            vault.program().unwrap().kill().unwrap();
            for file in files_below(&vault.folder.join("state")).unwrap() {
                if file.file_name().unwrap().to_string_lossy().starts_with("catalog.db") {
                    std::fs::remove_file(file).unwrap();
                }
            }
        }
    }

    fn restart(&mut self) {
        for vault in &mut self.pair.vaults {
            vault.program().unwrap().restart().unwrap();
        }
        self.pair.wait_ready().unwrap();
    }

    /// What each key of a vault is for, the newest first.
    fn wait_for_uses(&self, expected: &[&str]) {
        wait::until("the keys are used so", SOON, || {
            for vault in [0, 1] {
                let keys = self.json(vault, &["keys", "list"])?;
                let uses: Vec<_> =
                    keys["keys"].as_array().into_iter().flatten().map(|key| &key["use"]).collect();
                anyhow::ensure!(uses == expected, "{keys}");
            }
            Ok(())
        })
        .unwrap();
    }
}

/// The commands of the operator's guide; `slot` is where the record's age file starts.
fn recover(replica: &Path, key: &Path, slot: &str, folder: &Path) -> Output {
    let script = r#"set -eu
umask 077
tail -c "+$4" "$1" | head -c 4032 | age -d -i "$2" > "$3/id"
tail -c +8193 "$1" | age -d -i "$3/id" | zstd -dq"#;
    let mut command = Command::new("bash");
    command.args(["-c", script, "recover"]).args([replica, key, folder]).arg(slot).output().unwrap()
}

#[test]
fn after_a_rotation_age_zstd_and_the_escrow_key_alone_recover_every_file() {
    let house = House::new();
    let text = |n: u8| -> Vec<u8> { (0..1_500_000_u32).map(|at| (at / 9).to_le_bytes()[0] ^ n).collect() };
    let key = |vault: usize| house.pair.vaults[vault].folder.join("storage.key");
    let before = house.upload("before", &text(1));
    let former = house.folder.path().join("former.key");
    std::fs::copy(key(0), &former).unwrap();

    house.pair.vaults[0].command(&["keys", "rotate"]).unwrap();
    wait::until("the new key waits for the other vault", SOON, || {
        let keys = house.json(0, &["keys", "list"])?;
        anyhow::ensure!(keys["keys"][0]["use"] == "next" && keys["keys"][1]["use"] == "active", "{keys}");
        Ok(())
    })
    .unwrap();
    std::fs::copy(key(0), key(1)).unwrap();
    house.wait_for_uses(&["active", "earlier"]);
    let after = house.upload("after", &text(2));
    let told = house.json(0, &["keys", "rewrap", "--per-second", "1000"]).unwrap();
    assert_eq!((&told["done"], &told["failed"]), (&2.into(), &0.into()), "{told}");

    for (file, body) in [(before, text(1)), (after, text(2))] {
        let replicas = house.pair.replicas_of(&file.id).unwrap();
        assert_eq!(replicas.len(), 2);
        for (replica, slot) in replicas.iter().flat_map(|replica| [(replica, "65"), (replica, "4161")]) {
            let recovered = recover(replica, &house.pair.escrow, slot, house.folder.path());
            assert!(recovered.stdout == body, "{}", String::from_utf8_lossy(&recovered.stderr));
            let refused = recover(replica, &former, slot, house.folder.path());
            assert!(!refused.status.success(), "the former key opens slot {slot} of {}", replica.display());
        }
        assert!(recover(&replicas[0], &key(1), "65", house.folder.path()).stdout == body);
    }
}

#[test]
fn keys_and_escrows_that_differ_are_told_on_both_vaults_and_a_lone_key_seals_nothing() {
    let mut house = House::new();
    let file = house.upload("before", b"content");
    house.wait_for_uses(&["active"]);
    let trouble = |house: &House, vault: usize, words: &str| {
        wait::until("the difference is told", SOON, || {
            let keys = house.json(vault, &["keys", "list"])?;
            let status = house.json(vault, &["status"])?;
            for told in [&keys["trouble"], &status["files"]["key_trouble"]] {
                anyhow::ensure!(told.as_str().is_some_and(|told| told.contains(words)), "{told}");
            }
            Ok(keys)
        })
        .unwrap()
    };
    // A second `keys init`, where the configuration says that the key lies.
    let key = house.pair.vaults[1].folder.join("storage.key");
    let former = std::fs::read(&key).unwrap();
    std::fs::remove_file(&key).unwrap();
    let unused = house.folder.path().join("unused.key");
    let told = house.json(1, &["keys", "init", "--escrow", unused.to_str().unwrap()]).unwrap();
    assert_eq!(told["key_file"], key.to_str().unwrap(), "{told}");
    let keys = trouble(&house, 1, "storage.key_file differs");
    let [lone, common] = [0, 1].map(|at| keys["keys"][at].clone());
    assert_eq!((&lone["use"], &lone["at_peer"]), (&"next".into(), &false.into()), "{keys}");
    assert_eq!((&common["use"], &common["at_peer"]), (&"active".into(), &true.into()), "{keys}");
    let refused = house.pair.vaults[1].command(&["keys", "rewrap"]).unwrap_err();
    assert!(format!("{refused:#}").contains("vault-a does not have it"), "{refused:#}");
    let refused = house.pair.vaults[1].command(&["check"]).unwrap_err();
    assert!(format!("{refused:#}").contains("storage.key_file differs"), "{refused:#}");
    let keys = trouble(&house, 0, "storage.key_file differs");
    assert_eq!(keys["keys"][0]["at_peer"], false, "{keys}");

    house.pair.vaults[1].program().unwrap().kill().unwrap();
    house.pair.vaults[1].program().unwrap().restart().unwrap();
    trouble(&house, 1, "uploads are refused");
    let put = |vault: usize, key: &str| {
        let call = house.pair.vaults[vault].call(&house.erp, "/v1/files").key(key).body(b"x");
        call.send().unwrap()
    };
    let refused = put(1, "lone");
    assert!(refused.status == 503 && refused.text().contains("no_key"), "{}", refused.text());
    assert_eq!((put(0, "still").status, house.status_of(1, &file.id).unwrap()), (201, 200));

    // The right key again, and another escrow's recipient.
    std::fs::write(&key, former).unwrap();
    house.wait_for_uses(&["active"]);
    assert_eq!(put(1, "again").status, 201);
    let config = &house.pair.vaults[1].config;
    let text = std::fs::read_to_string(config).unwrap();
    let own = text.split("escrow_recipient = \"").nth(1).unwrap().split('"').next().unwrap();
    let other = told["escrow_recipient"].as_str().unwrap();
    std::fs::write(config, text.replace(own, other)).unwrap();
    house.pair.vaults[1].program().unwrap().kill().unwrap();
    house.pair.vaults[1].program().unwrap().restart().unwrap();
    for vault in [0, 1] {
        let keys = trouble(&house, vault, "storage.escrow_recipient differs");
        assert_eq!(keys["escrow_at_peer"], false, "{keys}");
    }
}

#[test]
fn a_file_deleted_by_mistake_comes_back_at_both_vaults() {
    let house = House::new();
    let file = house.upload("contract", b"between you and me");
    let path = format!("/v1/files/{}", file.id);
    let deleted = house.pair.vaults[0].call(&house.erp, &path).method("DELETE").send().unwrap();
    assert_eq!(deleted.status, 204);
    let wait_for = |status: u16| {
        wait::until("both vaults say so", SOON, || {
            let told = (house.status_of(0, &file.id)?, house.status_of(1, &file.id)?);
            anyhow::ensure!(told == (status, status), "{told:?}");
            Ok(())
        })
        .unwrap();
    };
    wait_for(410);
    assert_eq!(house.pair.replicas_of(&file.id).unwrap().len(), 2, "its bytes are kept meanwhile");
    let status = house.json(0, &["status"]).unwrap();
    assert_eq!(status["files"]["deleted"], 1, "{status}");
    // An owner cannot; an operator at the other vault can.
    let undelete = format!("{path}/undelete");
    let refused = house.pair.vaults[1].call(&house.erp, &undelete).method("POST").send().unwrap();
    assert_eq!(refused.status, 403);
    let told = house.json(1, &["file", "undelete", &file.id]).unwrap();
    assert_eq!(told["peer_knows"], true, "{told}");
    wait_for(200);
    let unknown = "0".repeat(64);
    let refused = house.pair.vaults[1].command(&["file", "undelete", &unknown]).unwrap_err();
    assert!(format!("{refused:#}").contains("no such file"), "{refused:#}");
}

#[test]
fn with_both_vaults_disks_lost_the_file_servers_and_a_key_bring_every_file_back() {
    let mut house = House::new();
    let files: Vec<_> =
        (0..12).map(|n| house.upload(&format!("doc-{n}"), format!("text {n}").as_bytes())).collect();
    let refused = house.pair.vaults[0].command(&["file", "rebuild-catalog"]).unwrap_err();
    assert!(format!("{refused:#}").contains("say --merge"), "{refused:#}");
    house.burn_catalogs();
    for vault in &house.pair.vaults {
        // Not even the storage key is left.
        let key = vault.folder.join("storage.key");
        std::fs::remove_file(&key).unwrap();
    }
    let unused = house.folder.path().join("unused.key");
    let key = house.pair.vaults[0].folder.join("storage.key");
    let words = ["keys", "init", "--file", key.to_str().unwrap(), "--escrow", unused.to_str().unwrap()];
    house.pair.vaults[0].command(&words).unwrap();
    std::fs::copy(&key, house.pair.vaults[1].folder.join("storage.key")).unwrap();
    house.restart();

    let escrow = house.pair.escrow.to_str().unwrap();
    let told = house.json(0, &["file", "rebuild-catalog", "--identity", escrow]).unwrap();
    assert_eq!((&told["done"], &told["failed"]), (&12.into(), &0.into()), "{told}");
    for vault in &house.pair.vaults {
        wait::until("the list is whole again", SOON, || {
            let listed = vault.call(&house.erp, "/v1/files").send()?.expect(&[200])?;
            let page: Page<File> = serde_json::from_slice(&listed.body)?;
            anyhow::ensure!(page.items.len() == 12, "{}", listed.text());
            Ok(())
        })
        .unwrap();
        for (n, file) in files.iter().enumerate() {
            let read = vault.call(&house.erp, &format!("/v1/files/{}", file.id)).send().unwrap();
            assert_eq!((read.status, read.text()), (200, format!("text {n}")), "{}", vault.name);
        }
    }
}

#[test]
fn with_both_vaults_disks_lost_a_deleted_file_stays_deleted_until_an_operator_takes_it_back() {
    let plan = PairPlan { storage: "inventory_every = \"1s\"\n".to_owned(), ..PairPlan::default() };
    let mut house = House::planned(&plan);
    let [kept, deleted] = ["kept", "deleted"].map(|key| house.upload(key, key.as_bytes()));
    let gone = house.pair.vaults[0].call(&house.erp, &format!("/v1/files/{}", deleted.id)).method("DELETE");
    assert_eq!(gone.send().unwrap().status, 204);
    wait::until("both file servers know of the deletion", SOON, || {
        for server in &house.pair.file_servers {
            // The marker that counts the note comes last.
            let shelf = format!("revisions-{}.vault-a.", &deleted.id[..2]);
            let newest = |start: &str| {
                let notes = files_below(&server.join("notes")).unwrap_or_default();
                let called = |note: &&PathBuf| {
                    note.file_name().is_some_and(|name| name.to_string_lossy().starts_with(start))
                };
                notes.iter().filter(called).filter_map(|note| note.metadata().ok()?.modified().ok()).max()
            };
            let noted = newest(&shelf).zip(newest("generation.vault-a."));
            anyhow::ensure!(noted.is_some_and(|(shelf, marker)| marker > shelf), "{}", server.display());
        }
        Ok(())
    })
    .unwrap();
    house.burn_catalogs();
    // The notes of one file server are enough.
    for note in files_below(&house.pair.file_servers[0].join("notes")).unwrap() {
        let told = std::fs::read(&note).unwrap();
        assert!(!told.windows(3).any(|word| word == b"erp"), "{} names an owner", note.display());
        std::fs::remove_file(note).unwrap();
    }
    house.restart();
    // As the README says it, whatever the vaults found by themselves meanwhile.
    let told = house.json(0, &["file", "rebuild-catalog"]).unwrap();
    assert_eq!((&told["deleted"], &told["failed"]), (&1.into(), &0.into()), "{told}");
    let wait_for = |id: &str, status: u16| {
        wait::until("both vaults answer alike", SOON, || {
            let told = (house.status_of(0, id)?, house.status_of(1, id)?);
            anyhow::ensure!(told == (status, status), "{told:?}");
            Ok(())
        })
        .unwrap();
    };
    wait_for(&kept.id, 200);
    wait_for(&deleted.id, 410);
    house.json(1, &["file", "undelete", &deleted.id]).unwrap();
    wait_for(&deleted.id, 200);
}

/// What a command of the first vault shows, its errors and its bars too: on a terminal, or not.
fn shown(house: &House, words: &str, on_terminal: bool) -> String {
    let (binary, config) = (binaries::find("vault").unwrap(), &house.pair.vaults[0].config);
    let line = format!("{} --config {} {words}", binary.display(), config.display());
    let mut command = if on_terminal { Command::new("script") } else { Command::new("sh") };
    match on_terminal {
        true => command.args(["-qec", &line, "/dev/null"]).env("TERM", "xterm"),
        false => command.args(["-c", &line]),
    };
    let told = command.stdin(Stdio::null()).output().unwrap();
    assert!(told.status.success(), "{words}: {told:?}");
    String::from_utf8([told.stdout, told.stderr].concat()).unwrap()
}

#[test]
fn a_terminal_shows_a_bar_of_long_work_and_nothing_else_does() {
    let house = House::new();
    let document = house.folder.path().join("document");
    std::fs::write(&document, vec![7; 3 << 20]).unwrap();
    let put = format!("file put {} --owner erp", document.display());
    house.pair.vaults[0].command(&["keys", "rotate"]).unwrap();
    let id = house.upload("k", b"sealed to the earlier key").id;
    let keys = house.pair.vaults.each_ref().map(|vault| vault.folder.join("storage.key"));
    std::fs::copy(&keys[0], &keys[1]).unwrap();
    house.wait_for_uses(&["active", "earlier"]);
    let (get, verify) =
        (format!("file get {id} --output {}", document.display()), format!("file verify {id}"));
    for words in ["keys rewrap --per-second 1", &put, &get, &verify, "file scrub --follow"] {
        let bar = |text: &str| text.contains(['\u{2588}', '\u{2591}']);
        let told = shown(&house, words, true);
        assert!(bar(&told), "{words}: {told:?}");
        let json = format!("--json {words}");
        for (words, on_terminal) in [(words, false), (json.as_str(), true)] {
            let told = shown(&house, words, on_terminal);
            assert!(!bar(&told) && !told.contains('\u{1b}'), "{words}: {told:?}");
        }
        let told = shown(&house, &json, false);
        assert!(serde_json::from_str::<Value>(&told).is_ok(), "{words}: {told:?}");
    }
}
