//! Stories of two vaults whose ledger is etcd itself: three real members, either vault gives
//! numbers at any time, with the other dead or cut off, and refuses only without a quorum. What
//! may happen between any two steps is the model's subject (`quorum_model.rs`), not this one's.
#![expect(clippy::unwrap_used, reason = "a story's own steps fail the story when they fail")]

mod full;
mod restored;
mod strangers;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use harness::cluster::temporary_folder;
use harness::curl::Answer;
use harness::etcd_cluster::EtcdCluster;
use harness::program::run;
use harness::vault_host::{Pair, PairPlan, Vault};
use harness::{binaries, ports, wait};
use serde_json::{Value, json};
use shared::api::Number;

const SOON: Duration = Duration::from_secs(30);

fn pair(folder: &Path, etcd: &EtcdCluster, role: &str) -> Pair {
    Pair::start(folder, &PairPlan { storage: etcd.section(role), ..PairPlan::default() }).unwrap()
}

/// Asks for a number over the vault's control socket.
fn reserve(vault: &Vault, series: &str, key: &str) -> Answer {
    let path = format!("/v1/series/{series}/numbers?owner=erp");
    vault.control(&path).method("POST").key(key).within(Duration::from_secs(8)).send().unwrap()
}

fn number(vault: &Vault, series: &str, key: &str) -> u64 {
    number_in(&reserve(vault, series, key).expect(&[200, 201]).unwrap())
}

fn number_in(answer: &Answer) -> u64 {
    serde_json::from_str::<Number>(&answer.text()).unwrap().number
}

/// The number that the vault finds for a key.
fn found(vault: &Vault, series: &str, key: &str) -> Option<u64> {
    let path = format!("/v1/series/{series}/numbers?owner=erp&key={key}");
    let answer = vault.control(&path).send().unwrap().expect(&[200, 404]).unwrap();
    (answer.status == 200).then(|| number_in(&answer))
}

/// What the vault has written into its log.
fn log(vault: &Vault) -> String {
    std::fs::read_to_string(vault.folder.join(format!("{}.log", vault.name))).unwrap()
}

/// Waits until a number is refused with these words, and that never ceases to be so.
fn assert_refused(vault: &Vault, words: &str) {
    wait::until("numbers are refused", SOON, || {
        let answer = reserve(vault, "INV", "refused");
        assert_eq!(answer.status, 503, "{}: {}", vault.name, answer.text());
        anyhow::ensure!(answer.text().contains(words), "{}: {}", vault.name, answer.text());
        Ok(())
    })
    .unwrap();
}

/// Waits until a number is given again.
fn number_soon(vault: &Vault, series: &str, key: &str) -> u64 {
    let given = wait::until("numbers are given again", SOON, || {
        let answer = reserve(vault, series, key);
        anyhow::ensure!(answer.status != 503, "{}: {}", vault.name, answer.text());
        Ok(number_in(&answer.expect(&[200, 201])?))
    });
    given.unwrap()
}

/// Every key has one number, each number one key, and none is missing.
fn assert_whole(given: &BTreeMap<String, u64>) {
    let mut numbers: Vec<u64> = given.values().copied().collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=given.len() as u64).collect::<Vec<_>>());
}

fn status(vault: &Vault) -> Value {
    vault.control("/v1/status").send().unwrap().json().unwrap()["numbers"].clone()
}

fn edit(vault: &Vault, from: &str, to: &str) {
    let text = std::fs::read_to_string(&vault.config).unwrap();
    assert!(text.contains(from), "{from} is not in {text}");
    std::fs::write(&vault.config, text.replace(from, to)).unwrap();
}

/// Both vaults end, and start again when `change` was made to their files.
fn restart_both(pair: &mut Pair, change: impl Fn(&Vault)) {
    for vault in &mut pair.vaults {
        vault.program().unwrap().terminate().unwrap();
        change(vault);
    }
    for vault in &mut pair.vaults {
        vault.program().unwrap().restart().unwrap();
    }
    for vault in &pair.vaults {
        vault.wait_alive().unwrap();
        vault.wait_together().unwrap();
    }
}

/// Callers of both vaults at once, until they are told to stop; a key that got no number is tried
/// again at the other vault.
fn load(
    pair: &Pair,
    series: &'static str,
    stop: &Arc<AtomicBool>,
) -> Vec<std::thread::JoinHandle<BTreeMap<String, u64>>> {
    let callers = (0..6).map(|caller| {
        let controls = [0, 1].map(|vault: usize| {
            pair.vaults[vault].control(&format!("/v1/series/{series}/numbers?owner=erp"))
        });
        let stop = Arc::clone(stop);
        std::thread::spawn(move || {
            let mut given = BTreeMap::new();
            for turn in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let key = format!("{series}-{caller}-{turn}");
                for attempt in 0.. {
                    let call = controls[(caller + attempt) % 2].clone().method("POST").key(&key);
                    let answer = call.within(Duration::from_secs(8)).send();
                    match answer {
                        Ok(answer) if matches!(answer.status, 200 | 201) => {
                            given.insert(key.clone(), number_in(&answer));
                            break;
                        }
                        Ok(answer) => assert_eq!(answer.status, 503, "{}", answer.text()),
                        Err(_away) => {}
                    }
                    assert!(attempt < 600, "{key} gets no number");
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
            given
        })
    });
    callers.collect()
}

fn join(callers: Vec<std::thread::JoinHandle<BTreeMap<String, u64>>>) -> BTreeMap<String, u64> {
    callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect()
}

/// What an auditor proves of a vault's journal.
fn assert_proved(vault: &mut Vault) {
    vault.program().unwrap().terminate().unwrap();
    let journal = vault.folder.join("state").join("journal.db");
    let words = ["number".into(), "verify".into(), "--journal".into(), journal.into_os_string()];
    run(&binaries::find("vault").unwrap(), &words).unwrap().well().unwrap();
}

#[test]
fn either_vault_gives_numbers_alone_while_a_quorum_of_etcd_stands() {
    let folder = temporary_folder().unwrap();
    let mut etcd = EtcdCluster::start(folder.path()).unwrap();
    let mut pair = pair(folder.path(), &etcd, "truth");
    assert_eq!(status(&pair.vaults[0])["owner"], "etcd");

    // Both at once; each answers what the other has given.
    let stop = Arc::new(AtomicBool::new(false));
    let callers = load(&pair, "INV", &stop);
    std::thread::sleep(Duration::from_secs(3));
    // One is killed in the middle of it, and comes back.
    pair.vaults[0].program().unwrap().kill().unwrap();
    for key in 0..20 {
        number(&pair.vaults[1], "ALONE", &format!("k{key}"));
    }
    pair.vaults[0].program().unwrap().restart().unwrap();
    pair.vaults[0].wait_together().unwrap();
    std::thread::sleep(Duration::from_secs(1));
    stop.store(true, Ordering::Relaxed);
    let given = join(callers);
    assert!(given.len() > 50, "{}", given.len());
    assert_whole(&given);
    for (key, number) in given.iter().step_by(7) {
        assert_eq!([0, 1].map(|vault| found(&pair.vaults[vault], "INV", key)), [Some(*number); 2]);
    }
    assert_eq!(found(&pair.vaults[0], "ALONE", "k19"), Some(20));
    assert_eq!(found(&pair.vaults[0], "ALONE", "never"), None);

    // What is entered at one is read at the other at once, and of two that write one wins.
    for turn in 0..10 {
        let path = format!("/v1/records/lot{turn}?owner=erp");
        let put = |vault: usize, condition: (&str, &str), key: &str| {
            let call = pair.vaults[vault].control(&path).method("PUT").header(condition.0, condition.1);
            call.key(key).body(key).send().unwrap()
        };
        put(turn % 2, ("If-None-Match", "*"), "first").expect(&[201]).unwrap();
        let read = pair.vaults[(turn + 1) % 2].control(&path).send().unwrap().expect(&[200]).unwrap();
        assert_eq!(read.text(), "first");
        let tag = read.header("etag").unwrap().to_owned();
        let (one, two) = std::thread::scope(|scope| {
            let one = scope.spawn(|| put(0, ("If-Match", &tag), "left").status);
            let two = scope.spawn(|| put(1, ("If-Match", &tag), "right").status);
            (one.join().unwrap(), two.join().unwrap())
        });
        assert!(matches!((one, two), (201, 412) | (412, 201)), "{one} {two}");
    }
    // So does an export.
    let exported =
        |vault: usize| pair.vaults[vault].control("/v1/series/EXP/export?owner=erp").send().unwrap();
    for turn in 0..10 {
        let key = format!("last-{turn}");
        number(&pair.vaults[turn % 2], "EXP", &key);
        assert!(exported((turn + 1) % 2).expect(&[200]).unwrap().text().contains(&key));
    }
    // A lease that is renewed at one vault is held at the other, which counts by its own clock.
    let lease = |vault: usize, method: &str, body: Value| {
        let call = pair.vaults[vault].control("/v1/leases/job?owner=erp").method(method);
        call.header("Content-Type", "application/json").body(body.to_string()).send().unwrap().status
    };
    assert_eq!(lease(0, "POST", json!({"token": "a", "ttl_seconds": 5})), 201);
    for _ in 0..2 {
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(lease(1, "PUT", json!({"token": "a", "epoch": 1})), 200);
        assert_eq!(lease(0, "POST", json!({"token": "b", "ttl_seconds": 5})), 409);
    }

    // No link between the two: they need none.
    let nobody = ports::free().unwrap();
    let addresses = [pair.vaults[0].api, pair.vaults[1].api];
    for vault in &mut pair.vaults {
        vault.program().unwrap().terminate().unwrap();
    }
    for (vault, peer) in [(0, 1), (1, 0)] {
        edit(
            &pair.vaults[vault],
            &format!("address = \"{}\"", addresses[peer]),
            &format!("address = \"{nobody}\""),
        );
        pair.vaults[vault].program().unwrap().restart().unwrap();
    }
    pair.vaults.iter().for_each(|vault| vault.wait_together().unwrap());
    assert_eq!(number(&pair.vaults[0], "ALONE", "k20"), 21);
    assert_eq!(number(&pair.vaults[1], "ALONE", "k21"), 22);
    assert_eq!(number(&pair.vaults[1], "ALONE", "k20"), 21);

    // One member less is nothing; without a second one nobody is answered, and is told why.
    let leader = etcd.leader().unwrap();
    etcd.members[leader].program.kill().unwrap();
    // Nobody leads until the two others have agreed, which may take them a second try.
    assert_eq!(number_soon(&pair.vaults[0], "ALONE", "k22"), 23);
    assert_eq!(number_soon(&pair.vaults[1], "ALONE", "k23"), 24);
    for vault in &pair.vaults {
        wait::until("it is told that no more may be lost", SOON, || {
            let thin = status(vault)["database"]["thin"].to_string();
            let gone = format!(
                "{} is away; 2 of 3 answer, one more loss stops numbers",
                etcd.members[leader].address
            );
            anyhow::ensure!(thin.contains(&gone), "{thin}");
            Ok(())
        })
        .unwrap();
    }
    etcd.members[(leader + 1) % 3].program.kill().unwrap();
    let refused = Mutex::new(None);
    wait::until("numbers are refused", SOON, || {
        let answer = reserve(&pair.vaults[0], "ALONE", "k24");
        anyhow::ensure!(answer.status == 503 && answer.text().contains("quorum"), "{}", answer.text());
        *refused.lock().unwrap() = Some(answer);
        Ok(())
    })
    .unwrap();
    let (refused, took) = wait::timed(|| reserve(&pair.vaults[0], "ALONE", "k25"));
    assert!(refused.status == 503 && took < Duration::from_secs(1), "{took:?}: {}", refused.text());
    let export = pair.vaults[1].control("/v1/series/EXP/export?owner=erp").send().unwrap();
    assert_eq!(export.status, 503, "an export from a journal that may lack the newest: {}", export.text());
    let told = pair.vaults[0].command(&["database", "status"]).unwrap();
    assert!(told.contains("etcd is the ledger") && told.contains("AWAY"), "{told}");
    assert!(told.contains("answers, but has no quorum") && !told.contains("primary"), "{told}");
    etcd.members[leader].program.restart().unwrap();
    wait::until("numbers are given again", SOON, || {
        let answer = reserve(&pair.vaults[0], "ALONE", "k24");
        anyhow::ensure!(answer.status != 503, "{}", answer.text());
        Ok(())
    })
    .unwrap();
    assert_eq!(number(&pair.vaults[0], "ALONE", "k24"), 25);
    etcd.members[(leader + 1) % 3].program.restart().unwrap();
    // Each vault finds the members again by itself.
    wait::until("the other gives numbers too", SOON, || {
        let answer = reserve(&pair.vaults[1], "ALONE", "k25");
        anyhow::ensure!(answer.status != 503, "{}", answer.text());
        Ok(())
    })
    .unwrap();
    assert_eq!(number(&pair.vaults[1], "ALONE", "k25"), 26);

    // A journal is only an index: it is made anew, and whoever asks meanwhile hears how far that is.
    let keys: Vec<String> = (0..2000).map(|key| format!("bulk{key}")).collect();
    let bulk = pair.vaults[0].control("/v1/series/BULK/numbers/batch?owner=erp").method("POST");
    let bulk = bulk.header("Content-Type", "application/json").body(json!({ "keys": keys }).to_string());
    bulk.within(SOON).send().unwrap().expect(&[200]).unwrap();
    pair.vaults[1].program().unwrap().kill().unwrap();
    for file in ["journal.db", "journal.db-wal", "journal.db-shm", "journal.witness"] {
        let _gone = std::fs::remove_file(pair.vaults[1].folder.join("state").join(file));
    }
    pair.vaults[1].program().unwrap().restart().unwrap();
    pair.vaults[1].wait_together().unwrap();
    assert!(log(&pair.vaults[1]).contains("(it has 0 of "), "{}", log(&pair.vaults[1]));
    assert_eq!(found(&pair.vaults[1], "ALONE", "k25"), Some(26));
    assert_eq!(number(&pair.vaults[1], "ALONE", "k26"), 27);
    assert_eq!(number(&pair.vaults[0], "INV", "another"), given.len() as u64 + 1);

    // An etcd that has lost what it held is not written to, and no number is given a second time.
    etcd.lose_everything().unwrap();
    for vault in &pair.vaults {
        wait::until("the loss is noticed", SOON, || {
            let answer = reserve(vault, "ALONE", "k27");
            anyhow::ensure!(answer.text().contains("holds less of the ledger"), "{}", answer.text());
            Ok(())
        })
        .unwrap();
        assert_eq!(status(vault)["needs_operator"], true);
        assert_eq!(status(vault)["database"]["phase"], "refused");
    }
    assert!(!etcd.holds_anything(0).unwrap());

    // There is no owner, and no way back to one by mistake.
    let told = pair.vaults[0].command(&["number", "take-over"]).unwrap_err();
    assert!(format!("{told:#}").contains("etcd holds this ledger"), "{told:#}");
    pair.vaults.iter_mut().for_each(assert_proved);
    edit(&pair.vaults[0], "role = \"truth\"", "role = \"copy\"");
    let vault = binaries::find("vault").unwrap();
    let words = ["serve".into(), "--config".into(), pair.vaults[0].config.clone().into_os_string()];
    let told = run(&vault, &words).unwrap();
    let words = ["check".into(), "--config".into(), pair.vaults[0].config.clone().into_os_string()];
    let checked = run(&vault, &words).unwrap();
    assert!(
        checked.code != Some(0) && checked.err.contains("this vault's ledger is etcd itself"),
        "{checked:?}"
    );
    assert!(
        told.err.contains("role = \\\"truth\\\"") || told.err.contains("role = \"truth\""),
        "{}",
        told.err
    );
}

#[test]
fn a_pair_moves_its_ledger_to_etcd_without_a_double_or_a_hole() {
    let folder = temporary_folder().unwrap();
    let etcd = EtcdCluster::start(folder.path()).unwrap();
    let mut pair = pair(folder.path(), &etcd, "copy");
    let define = pair.vaults[0].control("/v1/series/FREE?owner=erp").method("PUT");
    let define = define.header("Content-Type", "application/json").body(json!({"range": 10}).to_string());
    define.send().unwrap().expect(&[200, 201]).unwrap();
    let mut given = [BTreeMap::new(), BTreeMap::new()];
    let mut next = |pair: &Pair, upto: usize| {
        for turn in given[0].len()..upto {
            for (series, given) in ["INV", "FREE"].into_iter().zip(&mut given) {
                let key = format!("k{turn}");
                given.insert(key.clone(), number(&pair.vaults[turn % 2], series, &key));
            }
        }
        given.clone()
    };
    next(&pair, 20);

    // One alone does not begin, and gives nothing; nor does the other, which waits for its pair.
    pair.vaults[0].program().unwrap().terminate().unwrap();
    edit(&pair.vaults[0], "role = \"copy\"", "role = \"truth\"");
    pair.vaults[0].program().unwrap().restart().unwrap();
    pair.vaults[0].wait_alive().unwrap();
    wait::until("it says what it waits for", SOON, || {
        let answer = reserve(&pair.vaults[0], "INV", "early");
        anyhow::ensure!(answer.text().contains("does not hold the ledger yet"), "{}", answer.text());
        Ok(())
    })
    .unwrap();
    assert_eq!(reserve(&pair.vaults[1], "INV", "early").status, 503);

    restart_both(&mut pair, |vault| {
        if vault.name == "vault-b" {
            edit(vault, "role = \"copy\"", "role = \"truth\"");
        }
    });
    let all = next(&pair, 60);
    assert_whole(&all[0]);
    // Of the ranges of the pair's time every number is given, or was lost with its holder's life.
    let numbers: std::collections::BTreeSet<u64> = all[1].values().copied().collect();
    assert_eq!(numbers.len(), 60, "{numbers:?}");
    for (series, given) in ["INV", "FREE"].into_iter().zip(&all) {
        for (key, number) in given {
            assert_eq!([0, 1].map(|vault| found(&pair.vaults[vault], series, key)), [Some(*number); 2]);
        }
    }
    pair.vaults.iter_mut().for_each(assert_proved);
}
