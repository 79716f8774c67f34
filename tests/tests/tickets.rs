//! Stories of tickets: what handlers' keys get at edge's gateway while vaults, edge and the
//! tickets' store die. The series may be given by either vault alone, which is where one key
//! could get two numbers.
#![expect(clippy::unwrap_used, reason = "a story's own steps fail the story when they fail")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use harness::cluster::Cluster;
use harness::curl::Curl;
use harness::vault_host::files_below;
use harness::{plain, wait};

const SOON: Duration = Duration::from_secs(60);
const NUMBERS: &str = "/v1/series/ORDER/numbers";

/// A cluster whose series either vault may give alone.
fn defined() -> Cluster {
    let cluster = Cluster::start().unwrap();
    let define = cluster.pair.vaults[0].control("/v1/series/ORDER?owner=erp").method("PUT");
    let define = define.header("content-type", "application/json").body(r#"{"range":1000}"#);
    define.send().unwrap().expect(&[200, 201, 204]).unwrap();
    cluster
}

/// As [`defined`], and its edge writes tickets.
fn available() -> Cluster {
    let cluster = defined();
    let mut count = 0;
    wait::until("tickets are written", SOON, || {
        count += 1;
        given(&cluster, &format!("settles-{count}"))?;
        let kept = plain::metric(cluster.edge.admin, "edge_gateway_tickets_kept")?;
        anyhow::ensure!(kept >= 1.0, "{kept} kept");
        Ok(())
    })
    .unwrap();
    cluster
}

/// The key's number, or the refusal.
fn given(cluster: &Cluster, key: &str) -> anyhow::Result<u64> {
    let answer = cluster.handler(NUMBERS).key(key).method("POST").send()?.expect(&[200, 201])?;
    answer.json()?["number"].as_u64().ok_or_else(|| anyhow::anyhow!("{}", answer.text()))
}

/// The first of many keys that the one vault left gives a number: those that it had told the
/// other about before it knew stay in doubt until both are together.
fn given_alone(cluster: &Cluster, stem: &str) -> (String, u64) {
    let mut count = 0;
    wait::until("the vault that is left gives alone", SOON, || {
        count += 1;
        let key = format!("{stem}-{count}");
        given(cluster, &key).map(|number| (key, number))
    })
    .unwrap()
}

/// The key is refused for now, with the reason and when to ask again.
fn refused(cluster: &Cluster, key: &str) {
    let answer = cluster.handler(NUMBERS).key(key).method("POST").send().unwrap();
    let code = answer.word("code").unwrap_or_else(|_| answer.text());
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(["peer_away", "in_doubt"].contains(&code.as_str()), "{}", answer.text());
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
}

fn restart_edge(cluster: &mut Cluster) {
    cluster.edge.program.restart().unwrap();
    cluster.edge.wait_ready().unwrap();
}

#[test]
fn a_key_that_one_vault_answered_alone_gets_no_second_number_from_the_other() {
    let mut cluster = available();
    // vault-b hears nothing; vault-a is alone and gives of its own numbers.
    cluster.pair.vaults[1].program().unwrap().freeze().unwrap();
    let (by_a, first) = given_alone(&cluster, "by-a");
    cluster.edge.program.kill().unwrap();
    restart_edge(&mut cluster);
    assert_eq!(given(&cluster, &by_a).unwrap(), first, "the same key, the same number");

    // Now vault-b is alone, in the life in which it was given numbers of its own.
    cluster.pair.vaults[0].program().unwrap().kill().unwrap();
    cluster.pair.vaults[1].program().unwrap().thaw().unwrap();
    let (by_b, second) = given_alone(&cluster, "by-b");
    assert_ne!(first, second);
    refused(&cluster, &by_a);
    cluster.edge.program.kill().unwrap();
    restart_edge(&mut cluster);
    refused(&cluster, &by_a);
    assert_eq!(given(&cluster, &by_b).unwrap(), second);

    // A lost store knows no keys: then none gets a number from a vault that is alone.
    cluster.edge.program.kill().unwrap();
    let own = cluster.gateway.parent().unwrap().to_owned();
    let store: Vec<_> = files_below(&own)
        .unwrap()
        .into_iter()
        .filter(|file| file.to_string_lossy().contains("tickets.db"))
        .collect();
    assert!(store.len() >= 2, "the store and its secret: {store:?}");
    for file in store {
        let bytes = std::fs::read(&file).unwrap();
        for word in [&b"by-a"[..], b"by-b", b"settles", b"ORDER"] {
            assert!(!bytes.windows(word.len()).any(|part| part == word), "{} holds a key", file.display());
        }
        std::fs::remove_file(file).unwrap();
    }
    restart_edge(&mut cluster);
    refused(&cluster, &by_a);
    refused(&cluster, "new");

    // Together again, every key has the number that it was told.
    cluster.pair.vaults[0].program().unwrap().restart().unwrap();
    cluster.pair.wait_ready().unwrap();
    for (key, number) in [(&by_a, first), (&by_b, second)] {
        assert_eq!(wait::until(key, SOON, || given(&cluster, key)).unwrap(), number, "{key}");
    }
    let third = wait::until("numbers go on", SOON, || given(&cluster, "new")).unwrap();
    assert!(third != first && third != second);
}

/// What the other stories rest on: a vault that is alone believes a ticket, so that a second one
/// for the same key would give it a second number. Were this not so, they would show nothing.
#[test]
fn a_second_ticket_would_give_a_key_a_second_number() {
    let mut cluster = available();
    let life = cluster.pair.vaults[1].control("/v1/life").send().unwrap().word("life").unwrap();
    cluster.pair.vaults[1].program().unwrap().freeze().unwrap();
    let (key, first) = given_alone(&cluster, "by-a");
    cluster.pair.vaults[0].program().unwrap().kill().unwrap();
    cluster.pair.vaults[1].program().unwrap().thaw().unwrap();
    given_alone(&cluster, "by-b");
    refused(&cluster, &key);
    let call = cluster.pair.vaults[1].call(&cluster.holder, NUMBERS).method("POST");
    let answer = call.key(&key).header("vault-ticket", life).send().unwrap().expect(&[201]).unwrap();
    assert_ne!(answer.json().unwrap()["number"].as_u64(), Some(first));
}

#[test]
fn keys_under_way_at_a_vault_that_is_killed_get_one_number_each_or_none() {
    let mut cluster = available();
    let mut told: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
    for round in 0..4_u64 {
        let keys: Vec<_> = (0..8).map(|number| format!("round-{round}-{number}")).collect();
        let asking: Vec<_> = keys
            .into_iter()
            .map(|key| {
                let call = cluster.handler(NUMBERS).key(&key).method("POST");
                std::thread::spawn(move || {
                    let mut numbers = BTreeSet::new();
                    // Until it is told a number twice, or that it never gets one.
                    let done = wait::until("an answer", SOON * 2, || {
                        let answer = call.send()?;
                        if answer.status != 410 {
                            let answer = answer.expect(&[200, 201])?;
                            let first = numbers.is_empty();
                            numbers.extend(answer.json()?["number"].as_u64());
                            anyhow::ensure!(!first, "once more");
                        }
                        Ok(())
                    });
                    (key, numbers, done)
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(10 + 25 * round));
        let victim = cluster.pair.vaults[usize::try_from(round % 2).unwrap()].program().unwrap();
        victim.kill().unwrap();
        std::thread::sleep(Duration::from_millis(1500));
        victim.restart().unwrap();
        for asked in asking {
            let (key, numbers, done) = asked.join().unwrap();
            done.unwrap();
            told.entry(key).or_default().extend(numbers);
        }
        cluster.pair.wait_ready().unwrap();
    }
    for (key, numbers) in &mut told {
        if let Ok(number) = given(&cluster, key) {
            numbers.insert(number);
        }
    }
    let mut seen = BTreeSet::new();
    for (key, numbers) in &told {
        assert!(numbers.len() <= 1, "{key} was told {numbers:?}");
        for number in numbers {
            assert!(seen.insert(*number), "{number} was given twice: {told:?}");
        }
    }
    // Those that a killed vault had only just heard of get none; how many, the machine's speed decides.
    assert!(seen.len() >= told.len() / 4, "many keys get a number: {told:?}");
}

/// What became of these keys in one batch: their numbers, or none.
fn batch(cluster: &Cluster, keys: &[String]) -> anyhow::Result<Vec<Option<u64>>> {
    let call = cluster.handler(&format!("{NUMBERS}/batch")).header("Content-Type", "application/json");
    let body = serde_json::json!({ "keys": keys }).to_string();
    let answer = call.method("POST").body(body).send()?.expect(&[200])?.json()?;
    let items = answer["items"].as_array().cloned().unwrap_or_default();
    Ok(items.iter().map(|item| item["number"]["number"].as_u64()).collect())
}

#[test]
fn a_handler_that_sends_only_batches_gets_tickets_and_numbers_of_a_vault_alone() {
    let mut cluster = defined();
    let mut count = 0;
    let mut fresh = || {
        count += 1;
        ["x", "y", "z"].map(|key| format!("batch-{count}-{key}"))
    };
    wait::until("tickets are written", SOON, || {
        batch(&cluster, &fresh())?;
        let kept = plain::metric(cluster.edge.admin, "edge_gateway_tickets_kept")?;
        anyhow::ensure!(kept >= 3.0, "{kept} kept");
        Ok(())
    })
    .unwrap();
    cluster.pair.vaults[1].program().unwrap().freeze().unwrap();
    let (keys, numbers) = wait::until("vault-a gives alone", SOON, || {
        let keys = fresh();
        let numbers = batch(&cluster, &keys)?;
        anyhow::ensure!(numbers.iter().all(Option::is_some), "{numbers:?}");
        Ok((keys, numbers))
    })
    .unwrap();
    assert_eq!(batch(&cluster, &keys).unwrap(), numbers);
    cluster.pair.vaults[1].program().unwrap().thaw().unwrap();
}

#[test]
fn an_export_made_while_the_vaults_are_apart_says_what_is_not_in_it() {
    let mut cluster = available();
    let export = |cluster: &Cluster, name: &str| {
        let made = cluster.pair.vaults[0].command(&["number", "export", "ORDER", "--owner", "erp"]).unwrap();
        let file = cluster.pair.vaults[0].folder.join(name);
        std::fs::write(&file, &made).unwrap();
        let told = cluster.pair.vaults[0].command(&["number", "verify", file.to_str().unwrap()]).unwrap();
        assert!(told.starts_with("proved: "), "{told}");
        (made, told)
    };
    let (made, told) = export(&cluster, "together.csv");
    assert!(!made.contains(",apart,") && !told.contains("not the whole"), "{told}");
    cluster.pair.vaults[1].program().unwrap().freeze().unwrap();
    let (key, _) = given_alone(&cluster, "alone");
    given(&cluster, "alone-too").unwrap();
    let (made, told) = export(&cluster, "apart.csv");
    assert!(!made.contains(&key), "it is in no chain yet");
    let row: Vec<&str> = made.lines().filter(|line| line.contains(",apart,")).collect();
    assert!(row.len() == 1 && row[0].split(',').nth(6) == Some("2"), "{row:?}");
    assert!(told.contains("2 numbers that this one had given alone are not in it"), "{told}");
    cluster.pair.vaults[1].program().unwrap().thaw().unwrap();
    cluster.pair.wait_ready().unwrap();
    let (made, _) = wait::until("they have met", SOON, || {
        let (made, told) = export(&cluster, "again.csv");
        anyhow::ensure!(!made.contains(",apart,"), "{told}");
        Ok((made, told))
    })
    .unwrap();
    assert!(made.contains(&key) && made.contains("alone-too"));
}

#[test]
fn keys_of_an_edge_that_is_killed_again_and_again_get_one_number_each_or_none() {
    let mut cluster = available();
    cluster.pair.vaults[1].program().unwrap().freeze().unwrap();
    given_alone(&cluster, "warm");
    let mut told: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
    for round in 0..6 {
        let heard = Arc::new(AtomicUsize::new(0));
        let asking: Vec<_> = (0..8)
            .map(|thread| {
                let heard = Arc::clone(&heard);
                let calls: Vec<_> = (0..6)
                    .map(|number| format!("round-{round}-{thread}-{number}"))
                    .map(|key| (cluster.handler(NUMBERS).key(&key).method("POST"), key))
                    .collect();
                std::thread::spawn(move || {
                    let send = |(call, key): (Curl, String)| {
                        let answer = call.send().ok().and_then(|answer| answer.expect(&[200, 201]).ok());
                        let number = answer.and_then(|answer| answer.json().ok()?["number"].as_u64());
                        heard.fetch_add(usize::from(number.is_some()), Ordering::Relaxed);
                        (key, number)
                    };
                    calls.into_iter().map(send).collect::<Vec<_>>()
                })
            })
            .collect();
        // In the midst of them, at another place each time.
        wait::until("some are answered", SOON, || {
            let heard = heard.load(Ordering::Relaxed);
            anyhow::ensure!(heard > 5 * round, "{heard} answers");
            Ok(())
        })
        .unwrap();
        cluster.edge.program.kill().unwrap();
        restart_edge(&mut cluster);
        for (key, number) in asking.into_iter().flat_map(|asked| asked.join().unwrap()) {
            told.entry(key).or_default().extend(number);
        }
    }
    let heard = told.values().filter(|numbers| !numbers.is_empty()).count();
    assert!(heard < told.len(), "edge was never killed in the midst of them");
    // Half of those that were cut off are repeated where they went first, the others only at the
    // other vault, which is then alone.
    for (key, numbers) in told.iter_mut().step_by(2) {
        numbers.extend(given(&cluster, key).ok());
    }
    cluster.pair.vaults[0].program().unwrap().kill().unwrap();
    cluster.pair.vaults[1].program().unwrap().thaw().unwrap();
    given_alone(&cluster, "by-b");
    for (key, numbers) in &mut told {
        numbers.extend(given(&cluster, key).ok());
    }
    cluster.pair.vaults[0].program().unwrap().restart().unwrap();
    cluster.pair.wait_ready().unwrap();
    wait::until("numbers go on", SOON, || given(&cluster, "after")).unwrap();
    let mut seen = BTreeSet::new();
    for (key, numbers) in &mut told {
        numbers.extend(given(&cluster, key).ok());
        assert!(numbers.len() <= 1, "{key} was told {numbers:?}");
        for number in numbers.iter() {
            assert!(seen.insert(*number), "{number} was given twice: {key}");
        }
    }
    assert!(seen.len() * 2 > told.len(), "most keys get a number in the end: {}", seen.len());
}
