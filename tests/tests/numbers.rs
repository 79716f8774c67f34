//! Stories of series, periods, batches and exports, told through the vault pair's HTTP API and
//! the operator's commands. Which number is given when is the simulation's subject, not this one's.
#![expect(clippy::unwrap_used, reason = "a story's own steps fail the story when they fail")]

use std::path::PathBuf;

use harness::cluster::temporary_folder;
use harness::curl::{Answer, Curl};
use harness::program::{Ran, run};
use harness::vault_host::{Holder, NAMES, Pair, PairPlan};
use harness::{binaries, plain, wait};
use serde_json::{Value, json};
use shared::api::{BatchAnswer, Number, Page, Series, SeriesKind};
use tempfile::TempDir;

const SOON: std::time::Duration = std::time::Duration::from_secs(60);

/// A pair with an edge of owner `erp` and an operator enrolled.
struct House {
    pair: Pair,
    erp: Holder,
    operator: Holder,
    folder: TempDir,
}

fn house() -> House {
    let folder = temporary_folder().unwrap();
    let pair = Pair::start(folder.path(), &PairPlan::default()).unwrap();
    let erp = pair.enrol("edge", "erp", "www1").unwrap();
    let operator = pair.enrol("admin", "house", "alice").unwrap();
    House { pair, erp, operator, folder }
}

impl House {
    /// A call of one of the vaults as the edge of `erp`.
    fn erp(&self, vault: usize, path: &str) -> Curl {
        self.pair.vaults[vault].call(&self.erp, path)
    }

    fn post(&self, vault: usize, path: &str, body: &Value) -> Answer {
        let call = self.erp(vault, path).header("Content-Type", "application/json");
        call.method("POST").body(body.to_string()).send().unwrap()
    }

    fn define(&self, holder: &Holder, path: &str, body: &Value) -> Answer {
        let call = self.pair.vaults[1].call(holder, path).header("Content-Type", "application/json");
        call.method("PUT").body(body.to_string()).send().unwrap()
    }

    fn reserve(&self, vault: usize, path: &str, key: &str) -> Answer {
        self.erp(vault, path).key(key).method("POST").send().unwrap()
    }

    /// A command that needs no running vault, whatever its exit code.
    fn verify(&self, words: &[&str]) -> Ran {
        let mut all = vec!["number", "verify"];
        all.extend(words);
        run(&binaries::find("vault").unwrap(), &all).unwrap()
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let file = self.folder.path().join(name);
        std::fs::write(&file, text).unwrap();
        file
    }
}

fn is_problem(answer: &Answer, status: u16, code: &str) {
    assert_eq!(answer.status, status, "{}", answer.text());
    assert_eq!(answer.word("code").unwrap(), code, "{}", answer.text());
}

fn number(answer: &Answer) -> Number {
    serde_json::from_slice(&answer.body).unwrap_or_else(|_| panic!("{}: {}", answer.status, answer.text()))
}

#[test]
fn every_answer_tells_its_life_and_a_ticket_must_name_one() {
    let house = house();
    let asked = house.erp(0, "/v1/life").send().unwrap().expect(&[200]).unwrap();
    let life = asked.word("life").unwrap();
    assert!(life.len() == 32 && life.bytes().all(|byte| byte.is_ascii_hexdigit()), "{life}");
    for path in ["/v1/life", "/v1/series/INV/numbers", "/v1/series/INV/numbers/7", "/nowhere"] {
        let answer = house.erp(0, path).send().unwrap();
        assert_eq!(answer.header("vault-life"), Some(life.as_str()), "{path}");
    }
    let other = house.erp(1, "/v1/life").send().unwrap();
    assert_ne!(other.header("vault-life"), Some(life.as_str()), "the other vault lives another one");

    let with = |ticket: &str| {
        let call = house.erp(0, "/v1/series/INV/numbers").key("k").method("POST");
        call.header("Vault-Ticket", ticket).send().unwrap()
    };
    is_problem(&with("abc"), 400, "invalid");
    is_problem(&with(&"g".repeat(32)), 400, "invalid");
    assert_eq!(with(&life).status, 201);
    let long = house.reserve(0, "/v1/series/INV/numbers", &"k".repeat(256));
    assert_eq!(number(&long).number, 2);
    is_problem(&house.reserve(0, "/v1/series/INV/numbers", &"k".repeat(257)), 400, "key_invalid");
}

#[test]
fn a_vault_says_that_both_are_together_only_while_the_other_confirms_it() {
    let mut house = house();
    let together = |house: &House, vault: usize| {
        let answer = house.erp(vault, "/v1/life").send().unwrap().expect(&[200]).unwrap();
        answer.json().unwrap()["together"].as_bool().unwrap()
    };
    for vault in 0..2 {
        wait::until("they are together", SOON, || {
            anyhow::ensure!(together(&house, vault), "vault {vault} does not say so");
            Ok(())
        })
        .unwrap();
    }
    house.pair.vaults[1].program().unwrap().freeze().unwrap();
    assert!(!together(&house, 0), "the other one cannot have confirmed it");
    house.pair.vaults[1].program().unwrap().thaw().unwrap();
}

#[test]
fn forgotten_reservations_are_counted() {
    let mut house = house();
    let define = |series: &str, body: Value| {
        house
            .define(&house.operator, &format!("/v1/series/{series}?owner=erp"), &body)
            .expect(&[200])
            .unwrap()
    };
    define("SOON", json!({ "expires_after": 1 }));
    define("YEARLY", json!({ "expires_after": 1, "pattern": "{year}-{n}" }));
    define("LATE", json!({ "expires_after": 86_400 }));
    for (path, key) in [
        ("SOON/numbers", "a"),
        ("SOON/numbers", "b"),
        ("YEARLY/numbers?period=2026", "a"),
        ("YEARLY/numbers?period=2027", "a"),
        ("LATE/numbers", "a"),
        ("NEVER/numbers", "a"),
    ] {
        assert_eq!(house.reserve(0, &format!("/v1/series/{path}"), key).status, 201);
    }
    let void = house.post(0, "/v1/series/SOON/numbers/2/void", &json!({ "reason": "spoiled" }));
    assert_eq!(void.status, 200, "{}", void.text());
    std::thread::sleep(std::time::Duration::from_millis(1100));
    // It is counted as soon as a vault is started, and every half minute.
    let expired = |house: &House, wanted: f64| {
        wait::until("forgotten reservations", SOON, || {
            let found = plain::metric(house.pair.vaults[0].admin, "vault_sequence_reservations_expired")?;
            anyhow::ensure!(found == wanted, "{found}, not {wanted}");
            Ok(())
        })
        .unwrap();
    };
    let vault = house.pair.vaults[0].program().unwrap();
    vault.kill().unwrap();
    vault.restart().unwrap();
    house.pair.wait_ready().unwrap();
    expired(&house, 3.0);
    let confirm = |path: &str| {
        wait::until("confirmed", SOON, || {
            let call = house.erp(0, path).header("Content-Type", "application/json").method("POST");
            call.body(json!({ "document_hash": "5feceb66" }).to_string()).send()?.expect(&[200]).map(drop)
        })
        .unwrap();
    };
    confirm("/v1/series/SOON/numbers/1/confirm");
    confirm("/v1/series/YEARLY/numbers/1/confirm?period=2026");
    expired(&house, 1.0);
}

#[test]
fn an_operator_defines_a_series_and_its_numbers_read_so() {
    let house = house();
    let yearly = json!({ "pattern": "INV-{year}-{n:06}", "expires_after": 3600 });
    is_problem(&house.define(&house.erp, "/v1/series/INV", &yearly), 403, "role_refused");
    is_problem(&house.define(&house.operator, "/v1/series/INV", &yearly), 400, "invalid");
    let place = "/v1/series/INV?owner=erp";
    for (bad, told) in [
        (json!({ "pattern": "INV" }), "it must have the number once"),
        (json!({ "pattern": "{month}-{n}" }), "a month without its year comes again"),
        (json!({ "range": 1_000_001 }), "write at most 1000000"),
        (json!({ "expires_after": 0 }), "write at least 1"),
        (json!({ "colour": "blue" }), "unknown field"),
    ] {
        let refused = house.define(&house.operator, place, &bad);
        assert_eq!(refused.status, 400, "{bad}");
        assert!(refused.word("detail").unwrap().contains(told), "{}", refused.text());
    }
    let defined = house.define(&house.operator, place, &yearly).expect(&[200]).unwrap();
    let series: Series = serde_json::from_slice(&defined.body).unwrap();
    assert_eq!((series.kind, series.pattern.as_deref()), (SeriesKind::Strict, Some("INV-{year}-{n:06}")));

    is_problem(&house.reserve(0, "/v1/series/INV/numbers", "k1"), 400, "invalid");
    for (vault, key, period, text) in [
        (0, "k1", "2026", "INV-2026-000001"),
        (1, "k2", "2026", "INV-2026-000002"),
        (1, "k1", "2027", "INV-2027-000001"),
    ] {
        let answer = house.reserve(vault, &format!("/v1/series/INV/numbers?period={period}"), key);
        let given = number(&answer.expect(&[201]).unwrap());
        assert_eq!((given.text.as_deref(), given.period.as_deref()), (Some(text), Some(period)));
    }
    let confirm = "/v1/series/INV/numbers/2/confirm?period=2026";
    let confirmed = house.post(0, confirm, &json!({ "document_hash": "aa" }));
    assert_eq!(number(&confirmed).text.as_deref(), Some("INV-2026-000002"));
    let other = json!({ "pattern": "{n}" });
    is_problem(&house.define(&house.operator, place, &other), 409, "series_in_use");
    let listed = house.erp(1, "/v1/series").send().unwrap().expect(&[200]).unwrap();
    let page: Page<Series> = serde_json::from_slice(&listed.body).unwrap();
    let counts: Vec<_> = page.items[0].counts.iter().map(|count| (count.last, count.open)).collect();
    assert_eq!((page.items.len(), counts), (1, vec![(2, 1), (1, 1)]));
    is_problem(&house.erp(0, "/v1/series/NONE").send().unwrap(), 404, "not_found");
    let open = house.erp(0, "/v1/series/INV/numbers?period=2026&state=reserved").send().unwrap();
    let open: Page<Number> = serde_json::from_slice(&open.body).unwrap();
    assert_eq!(open.items.iter().map(|number| number.number).collect::<Vec<_>>(), [1]);
    let expired = house.erp(0, "/v1/series/INV/numbers?period=2026&state=expired").send().unwrap();
    assert_eq!(serde_json::from_slice::<Page<Number>>(&expired.body).unwrap().items, []);
}

#[test]
fn a_batch_gives_each_key_what_it_would_have_got_alone() {
    let mut house = house();
    let keys: Vec<String> = (0..10_000).map(|key| format!("{key:\"<200}")).collect();
    let path = "/v1/series/BULK/numbers/batch";
    let mut first = Vec::new();
    for vault in [0, 1] {
        let answer = house.post(vault, path, &json!({ "keys": keys })).expect(&[200]).unwrap();
        let answer: BatchAnswer = serde_json::from_slice(&answer.body).unwrap();
        let numbers: Vec<_> = answer.items.iter().map(|item| item.number.as_ref().unwrap().number).collect();
        assert_eq!(numbers, (1..=10_000).collect::<Vec<u64>>());
        assert!(answer.items.iter().map(|item| &item.key).eq(&keys));
        first = numbers;
    }
    assert_eq!(first.len(), 10_000);
    let mut more = keys.clone();
    more.push("one more".to_owned());
    is_problem(&house.post(0, path, &json!({ "keys": more })), 400, "invalid");
    is_problem(&house.post(0, path, &json!({ "keys": [] })), 400, "invalid");
    is_problem(&house.post(0, path, &json!({ "keys": ["a b"] })), 400, "invalid");
    is_problem(&house.post(0, path, &json!({ "keys": ["a"], "tickets": [] })), 400, "invalid");

    house.pair.vaults[1].program().unwrap().kill().unwrap();
    let refused = wait::until("the operator is refused", SOON, || {
        let (program, config) = (binaries::find("vault")?, house.pair.vaults[0].config.clone());
        let words = ["number", "reserve", "BULK", "new-1", "new-2", "--owner", "erp", "--config"];
        let ran = run(&program, &[&words[..], &[&config.to_string_lossy()]].concat())?;
        anyhow::ensure!(ran.code == Some(1), "{ran:?}");
        Ok(ran)
    });
    let refused = refused.unwrap();
    assert_eq!(refused.out.lines().count(), 2, "{refused:?}");
    assert!(refused.err.contains("2 of 2 keys got no number"), "{refused:?}");
    wait::until("the vaults are apart", std::time::Duration::from_secs(20), || {
        let answer = house.post(0, path, &json!({ "keys": [keys[7], "new"] })).expect(&[200])?;
        let answer: BatchAnswer = serde_json::from_slice(&answer.body)?;
        let [old, new] = answer.items.as_slice() else { anyhow::bail!("{answer:?}") };
        anyhow::ensure!(old.number.as_ref().is_some_and(|number| number.number == 8), "{old:?}");
        let code = new.problem.as_ref().map(|problem| problem.code.as_str());
        anyhow::ensure!(code == Some("peer_away"), "{new:?}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_vault_started_anew_and_alone_gives_numbers_by_a_token_that_works_once() {
    let mut house = house();
    let series = "/v1/series/POS?owner=erp";
    house.define(&house.operator, series, &json!({ "range": 10 })).expect(&[200]).unwrap();
    let path = "/v1/series/POS/numbers";
    let first = number(&house.reserve(0, path, "together")).number;
    // The ledger's owner makes it, for either vault.
    let make = |house: &House, by: usize, vault: &str| {
        house.pair.vaults[by].command(&["number", "token", "--for", vault])
    };
    let owner = 0;
    let why = |error: anyhow::Error| format!("{error:#}");
    let refused = why(make(&house, 1 - owner, NAMES[1]).unwrap_err());
    assert!(refused.contains("the ledger's owner makes it: run this on vault-a"), "{refused}");
    let refused = why(make(&house, owner, "nobody").unwrap_err());
    assert!(refused.contains("there is no vault nobody here; name vault-a or vault-b"), "{refused}");
    let printed = make(&house, owner, NAMES[1]).unwrap();
    let token = printed.lines().next().unwrap().to_owned();
    let open = |house: &House, token: &str| house.pair.vaults[1].command(&["number", "open", token]);
    let refused = why(open(&house, &token).unwrap_err());
    assert!(refused.contains("started anew"), "{refused}");
    for vault in &mut house.pair.vaults {
        vault.program().unwrap().kill().unwrap();
    }
    house.pair.vaults[1].program().unwrap().restart().unwrap();
    house.pair.vaults[1].wait_alive().unwrap();
    let ticketed = |house: &House, key: &str| {
        let life = house.erp(1, "/v1/life").send().unwrap().word("life").unwrap();
        let call = house.erp(1, path).key(key).method("POST");
        (call.header("Vault-Ticket", &life).send().unwrap(), life)
    };
    let (refused, before) = ticketed(&house, "alone-1");
    is_problem(&refused, 503, "peer_away");
    assert!(refused.text().contains("was started"), "{}", refused.text());
    let wrong = why(open(&house, "0123-4567-89ab-cdef-0123-4567-89ab-cdef").unwrap_err());
    assert!(wrong.contains("does not take that token"), "{wrong}");
    let about = |house: &House, vault: usize| {
        house.pair.vaults[vault].control("/v1/status").send().unwrap().json().unwrap()["numbers"].clone()
    };
    assert_eq!(about(&house, 1)["apart"]["gives"], false);
    let command = |house: &House, words: &[&str]| house.pair.vaults[1].command(words);
    let list = ["number", "list", "POS", "--owner", "erp"];
    let refused = why(command(&house, &list).unwrap_err());
    assert!(refused.contains("peer_away") && refused.contains("--stale"), "{refused}");
    let opened = open(&house, &token).unwrap();
    assert!(opened.contains("destroy the token"), "{opened}");
    let mut given = Vec::new();
    for count in 0..10 {
        let (answer, life) = ticketed(&house, &format!("alone-{count}"));
        assert_ne!(life, before, "a token begins a new life");
        given.push(number(&answer).number);
    }
    assert!(given.windows(2).all(|pair| pair[0] + 1 == pair[1]) && given[0] > first, "{given:?}");
    is_problem(&ticketed(&house, "one-too-many").0, 503, "peer_away");
    let apart = about(&house, 1)["apart"].clone();
    assert_eq!((&apart["by_token"], &apart["series"][0]["left"]), (&json!(true), &json!(0)), "{apart}");
    let listed = command(&house, &[&list[..], &["--stale"]].concat()).unwrap();
    assert_eq!(listed.matches("reserved, ALONE  alone-").count(), 10, "{listed}");
    assert!(listed.contains("and may be old"), "{listed}");
    let series = command(&house, &["number", "list", "--owner", "erp", "--stale"]).unwrap();
    assert!(series.contains("10 more were given here alone"), "{series}");
    let refused = house.reserve(1, path, "no-ticket");
    assert!(refused.text().contains("carries no ticket"), "{}", refused.text());

    // Killed and started again, it remembers that the token was used.
    house.pair.vaults[1].program().unwrap().kill().unwrap();
    house.pair.vaults[1].program().unwrap().restart().unwrap();
    house.pair.vaults[1].wait_alive().unwrap();
    assert!(why(open(&house, &token).unwrap_err()).contains("does not take that token"));
    assert_eq!(number(&ticketed(&house, "alone-3").0).number, given[3]);

    house.pair.vaults[0].program().unwrap().restart().unwrap();
    house.pair.wait_ready().unwrap();
    wait::until("the rows given alone stand in the ledger", SOON, || {
        let answer = house.erp(0, &format!("{path}/{}", given[9])).send()?.expect(&[200])?;
        anyhow::ensure!(answer.word("key")? == "alone-9", "{}", answer.text());
        Ok(())
    })
    .unwrap();
    let more = number(&house.reserve(0, path, "together-again")).number;
    assert!(!given.contains(&more), "{more}");

    // Another token is void once its vault has lost power, and everybody is told.
    make(&house, owner, NAMES[1]).unwrap();
    assert_eq!(about(&house, 0)["tokens"], json!([NAMES[1]]));
    house.pair.vaults[1].program().unwrap().kill().unwrap();
    house.pair.vaults[1].program().unwrap().restart().unwrap();
    house.pair.wait_ready().unwrap();
    for vault in 0..2 {
        let numbers = about(&house, vault);
        assert_eq!((&numbers["tokens"], &numbers["tokens_over"][0]["used"]), (&json!([]), &json!(false)));
        let log = house.pair.vaults[vault].program().unwrap().log_tail(200);
        assert!(log.contains("the token for vault-b is void"), "{log}");
    }
    for vault in &house.pair.vaults {
        let journal = vault.folder.join("state/journal.db");
        house.verify(&["--journal", journal.to_str().unwrap()]).well().unwrap();
    }
}

#[test]
fn what_an_operator_exports_is_proved_without_a_vault_and_a_forgery_is_not() {
    let house = house();
    let vault = &house.pair.vaults[1];
    let erp = |words: &[&str]| {
        let mut all = vec!["number"];
        all.extend(words);
        all.extend(["--owner", "erp"]);
        vault.command(&all).unwrap()
    };
    let defined = erp(&["define", "INV", "--pattern", "{year}/{n:03}"]);
    assert!(defined.starts_with("INV of erp: strict, {year}/{n:03}"), "{defined}");
    let defined = erp(&["define", "INV", "--expires-after", "3600"]);
    assert_eq!(
        defined,
        "INV of erp: strict, {year}/{n:03}, expires after 3600 s\n  before: strict, {year}/{n:03}\n"
    );
    let reserved = erp(&["reserve", "INV", "order-1", "order-2", "order-3", "--period", "2026"]);
    assert!(reserved.contains("2026/002  reserved  order-2"), "{reserved}");
    erp(&["confirm", "INV", "1", "5feceb66", "--period", "2026"]);
    erp(&["void", "INV", "2", "printer \"jam\", twice", "--period", "2026"]);
    erp(&["reserve", "OTHER", "order-1"]);
    let shown = erp(&["show", "INV", "2", "--period", "2026"]);
    assert!(shown.contains("printer \"jam\", twice") && shown.contains("2026/002"), "{shown}");
    assert!(erp(&["show", "INV", "--key", "order-3", "--period", "2026"]).contains("2026/003"));
    let series = erp(&["show", "INV"]);
    assert!(series.contains("2026: last number 3, 1 reserved, 0 of them expired"), "{series}");
    assert!(erp(&["list"]).contains("OTHER of erp: strict"));
    // A refusal is told once; of several keys each by itself, and then how many there were.
    let program = binaries::find("vault").unwrap();
    let config = vault.config.to_str().unwrap();
    let without_period = |keys: &[&str]| {
        let words = [&["number", "reserve", "INV", "--owner", "erp", "--config", config], keys].concat();
        let ran = run(&program, &words).unwrap();
        assert_eq!(ran.code, Some(1), "{ran:?}");
        (ran.out, ran.err)
    };
    let (out, err) = without_period(&["order-4"]);
    assert!(out.is_empty() && err.matches("counted by year").count() == 1, "{out}{err}");
    let life = house.erp(1, "/v1/life").send().unwrap().word("life").unwrap();
    assert_eq!(vault.command(&["number", "life"]).unwrap().trim(), life);
    let void = erp(&["list", "INV", "--period", "2026", "--state", "void"]);
    assert!(void.contains("2026/002  void  order-2") && !void.contains("order-1"), "{void}");
    assert!(vault.command(&["number", "void", "INV", "9", "x", "--owner", "erp"]).is_err());

    let table = erp(&["export", "INV"]);
    let document = erp(&["export", "INV", "--format", "json"]);
    for (name, text) in [("inv.csv", &table), ("inv.json", &document)] {
        let file = house.write(name, text);
        let proved = house.verify(&[file.to_str().unwrap()]).well().unwrap();
        assert!(proved.starts_with("proved: ") && proved.contains("of others by their hashes"), "{proved}");
        assert!(proved.contains("2 is void: printer \"jam\", twice"), "{proved}");
        for (what, forged) in [
            ("another document", text.replace("5feceb66", "5feceb67")),
            ("another key", text.replace("order-3", "order-4")),
            ("another reason", text.replace("twice", "thrice")),
            ("nothing after the half", text[..text.len() / 2].to_owned()),
        ] {
            assert_ne!(forged, *text, "{what}");
            let file = house.write("forged", &forged);
            let found = house.verify(&[file.to_str().unwrap()]);
            assert_eq!(found.code, Some(1), "{what}: {found:?}");
        }
    }
    for vault in &house.pair.vaults {
        let journal = vault.folder.join("state/journal.db");
        let proved = house.verify(&["--journal", journal.to_str().unwrap(), "--json"]).well().unwrap();
        let findings: Value = serde_json::from_str(&proved).unwrap();
        assert_eq!(findings["proved"], true, "{findings}");
        assert_eq!(findings["series"].as_array().map(Vec::len), Some(2), "{findings}");
    }
    let refused =
        format!("{:#}", vault.command(&["number", "export", "NONE", "--owner", "erp"]).unwrap_err());
    assert!(refused.contains("erp has no series NONE"), "{refused}");
    let refused = format!("{:#}", vault.command(&["number", "list", "NONE", "--owner", "erp"]).unwrap_err());
    assert!(refused.contains("erp has no series NONE"), "{refused}");
    for stranger in [vault.folder.join("state/catalog.db"), vault.config.clone()] {
        let refused = house.verify(&["--journal", stranger.to_str().unwrap()]);
        assert!(
            refused.code == Some(1) && refused.err.contains("name the journal.db of a vault's"),
            "{refused:?}"
        );
    }
    let stranger = house.write("stranger.csv", "a,b\n1,2\n");
    let refused = house.verify(&[stranger.to_str().unwrap()]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
}
