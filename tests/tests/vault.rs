//! Stories of the vault pair, told through its HTTP API as edges, operators and strangers
//! call it. No edge runs here; curl shows the certificates.
#![expect(clippy::unwrap_used, reason = "a story's own steps fail the story when they fail")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use harness::cluster::temporary_folder;
use harness::curl::{Answer, Curl};
use harness::program::run;
use harness::raw::in_clear;
use harness::vault_host::{Holder, Pair, PairPlan, Vault, files_below};
use harness::{binaries, browser, plain, wait};
use shared::api::{File, IssuedCertificate, Number, NumberState, Page};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(30);

/// A pair with an edge of owner `erp` enrolled.
struct House {
    pair: Pair,
    erp: Holder,
    folder: TempDir,
}

fn house(plan: &PairPlan) -> House {
    let folder = temporary_folder().unwrap();
    let pair = Pair::start(folder.path(), plan).unwrap();
    let erp = pair.enrol("edge", "erp", "www1").unwrap();
    House { pair, erp, folder }
}

impl House {
    fn vault(&self, place: usize) -> &Vault {
        &self.pair.vaults[place]
    }

    /// A call of the first vault as the edge of `erp`.
    fn erp(&self, path: &str) -> Curl {
        self.vault(0).call(&self.erp, path)
    }

    fn upload(&self, key: &str, body: &[u8]) -> File {
        let answer = self.erp("/v1/files").key(key).body(body).send().unwrap().expect(&[201]).unwrap();
        serde_json::from_slice(&answer.body).unwrap()
    }

    /// What lies on the file servers and in the spools, the vaults' own markers and notes aside.
    fn leftovers(&self) -> Vec<std::path::PathBuf> {
        let spools = self.pair.vaults.iter().map(|vault| vault.folder.join("state/spool"));
        let folders = self.pair.file_servers.iter().cloned().chain(spools);
        let files = folders.filter(|folder| folder.exists()).flat_map(|folder| files_below(&folder).unwrap());
        let own = |file: &std::path::Path| {
            file.ends_with("marker") || file.parent().is_some_and(|folder| folder.ends_with("notes"))
        };
        files.filter(|file| !own(file)).collect()
    }
}

/// Is it a problem as RFC 9457 wants it, with that code?
fn is_problem(answer: &Answer, status: u16, code: &str) {
    assert_eq!(answer.status, status, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{answer:?}");
    assert_eq!(answer.word("code").unwrap(), code, "{}", answer.text());
    assert!(!answer.word("detail").unwrap().is_empty());
}

fn number(answer: &Answer) -> Number {
    serde_json::from_slice(&answer.body).unwrap_or_else(|_| panic!("{}: {}", answer.status, answer.text()))
}

#[test]
fn a_certificate_opens_its_owners_doors_and_no_others() {
    let house = house(&PairPlan::default());
    let stored = house.upload("contract", b"between you and me");
    let path = format!("/v1/files/{}", stored.id);

    let stranger = house.pair.enrol("edge", "shop", "www9").unwrap();
    let as_stranger = |path: &str| house.vault(0).call(&stranger, path);
    is_problem(&as_stranger(&path).send().unwrap(), 404, "not_found");
    is_problem(&as_stranger(&path).method("DELETE").send().unwrap(), 404, "not_found");
    let listed = as_stranger("/v1/files").send().unwrap().expect(&[200]).unwrap();
    assert_eq!(serde_json::from_slice::<Page<File>>(&listed.body).unwrap().items, []);
    // Series of the same name are two series.
    let draw = |call: Curl| number(&call.key("k1").method("POST").send().unwrap().expect(&[201]).unwrap());
    assert_eq!(draw(house.erp("/v1/series/INV/numbers")).number, 1);
    assert_eq!(draw(as_stranger("/v1/series/INV/numbers")).number, 1);

    for path in ["/v1/status", "/v1/pki/certificates"] {
        assert_eq!(house.erp(path).send().unwrap().status, 403, "{path}: operators only");
    }
    let token = house.erp("/v1/pki/tokens").header("Content-Type", "application/json");
    let token = token.body(r#"{"role":"admin","owner":"erp","name":"me"}"#).send().unwrap();
    assert_eq!(token.status, 403, "an edge makes no tokens");

    for path in [path.as_str(), "/v1/life"] {
        let nobody = house.vault(0).call_without_certificate(&house.erp, path);
        assert_eq!(nobody.send().unwrap().status, 401, "{path}");
    }
    let own = house.folder.path();
    let impostor = browser::Authority::new(own, "impostor").unwrap();
    let forged = impostor.issue_uri(own, "forged", "spiffe://loopback/admin/erp/root").unwrap();
    let forged =
        Holder { certificate: forged.certificate, key: forged.key, authority: house.erp.authority.clone() };
    let refused = house.vault(0).call(&forged, "/v1/status").send();
    assert!(refused.is_err(), "a foreign authority's certificate ends the handshake: {refused:?}");

    let operator = house.pair.enrol("admin", "erp", "alice").unwrap();
    assert_eq!(house.vault(0).call(&operator, "/v1/status").send().unwrap().status, 200);
}

#[test]
fn a_token_is_good_for_one_enrolment() {
    let house = house(&PairPlan::default());
    let first = house.vault(0);
    let token = first.token("edge", "erp", "www2").unwrap();
    let vault = binaries::find("vault").unwrap();
    let enrol = |folder: &str, token: &str| {
        let out = house.folder.path().join(folder);
        std::fs::create_dir_all(&out).unwrap();
        let dial = first.dial();
        let words = ["pki", "enrol", "--vault", &dial, "--token", token, "--out"];
        let words: Vec<_> = words.iter().map(AsRef::as_ref).chain([out.as_os_str()]).collect();
        run(&vault, &words).unwrap()
    };
    assert_eq!(enrol("once", &token).code, Some(0));
    let again = enrol("twice", &token);
    assert_eq!(again.code, Some(1), "{again:?}");
    assert!(files_below(&house.folder.path().join("twice")).unwrap().is_empty(), "nothing is left of it");

    // Another authority's pin: whoever answers there is not the vault of the token.
    let token = first.token("edge", "erp", "www3").unwrap();
    let (start, pin) = token.rsplit_once('.').unwrap();
    let other: String = pin.chars().rev().collect();
    let wrong = enrol("wrong", &format!("{start}.{other}"));
    assert_eq!(wrong.code, Some(1), "{wrong:?}");
    assert_eq!(enrol("right", &token).code, Some(0), "the token was not spent by the wrong pin");
}

#[test]
fn a_revoked_certificate_is_refused_by_both_vaults() {
    let house = house(&PairPlan::default());
    assert_eq!(house.erp("/v1/files").send().unwrap().status, 200);
    let listed = house.vault(0).control("/v1/pki/certificates").send().unwrap().expect(&[200]).unwrap();
    let issued: Page<IssuedCertificate> = serde_json::from_slice(&listed.body).unwrap();
    let own = issued.items.iter().find(|issued| issued.name == "www1").unwrap();
    house.vault(0).command(&["pki", "revoke", &own.serial]).unwrap();
    for vault in &house.pair.vaults {
        wait::until("refused", SOON, || {
            // Cut in the handshake or refused with words: both are a no.
            match vault.call(&house.erp, "/v1/files").send() {
                Ok(answer) if answer.status == 200 => anyhow::bail!("{} still answers", vault.name),
                _ => Ok(()),
            }
        })
        .unwrap();
    }
    let table = house.vault(1).command(&["pki", "list"]).unwrap();
    let line = table.lines().find(|line| line.contains(&own.serial)).unwrap();
    assert!(line.contains("revoked"), "{line}");
}

#[test]
fn a_vault_that_lost_its_registers_is_told_everything_again() {
    let mut house = house(&PairPlan::default());
    let kept = house.upload("kept", b"known to both");
    let shop = house.pair.enrol("edge", "shop", "www2").unwrap();
    let certificates = house.vault(0).control("/v1/pki/certificates").send().unwrap();
    let page: Page<IssuedCertificate> = serde_json::from_slice(&certificates.body).unwrap();
    let serial = &page.items.iter().find(|issued| issued.owner == "shop").unwrap().serial;
    house.vault(0).command(&["pki", "revoke", serial]).unwrap();
    let refused = |house: &House, place: usize| {
        let asked = house.vault(place).call(&shop, "/v1/files").send();
        anyhow::ensure!(!asked.is_ok_and(|answer| answer.status == 200), "vault {place} lets it in");
        Ok(())
    };
    wait::until("the other vault knows the revocation", SOON, || refused(&house, 1)).unwrap();
    for place in [0, 1] {
        house.pair.vaults[place].program().unwrap().kill().unwrap();
        let state = house.vault(place).folder.join("state");
        for file in files_below(&state).unwrap() {
            let name = file.file_name().unwrap().to_string_lossy().into_owned();
            if name.starts_with("catalog.db") || name.starts_with("pki.db") {
                std::fs::remove_file(file).unwrap();
            }
        }
        house.pair.vaults[place].program().unwrap().restart().unwrap();
        house.pair.wait_ready().unwrap();
        wait::until("a revoked certificate is refused again", SOON, || refused(&house, place)).unwrap();
        wait::until("the list is whole again", SOON, || {
            let listed = house.vault(place).call(&house.erp, "/v1/files").send()?.expect(&[200])?;
            let page: Page<File> = serde_json::from_slice(&listed.body)?;
            anyhow::ensure!(page.items.iter().any(|file| file.id == kept.id), "{}", listed.text());
            Ok(())
        })
        .unwrap();
        let again = house.vault(place).call(&house.erp, "/v1/files").key("kept").body(b"known to both");
        let again = again.send().unwrap().expect(&[200]).unwrap();
        let again: File = serde_json::from_slice(&again.body).unwrap();
        assert_eq!(again.id, kept.id, "the key has not acted twice");
    }
}

#[test]
fn numbers_follow_their_key_at_either_vault() {
    let house = house(&PairPlan::default());
    let draw = |vault: usize, key: &str| {
        let call = house.vault(vault).call(&house.erp, "/v1/series/INV/numbers");
        call.key(key).method("POST").send().unwrap()
    };
    let first = draw(0, "order-1");
    assert_eq!((first.status, number(&first).number), (201, 1));
    let again = draw(1, "order-1");
    assert_eq!((again.status, number(&again).number), (200, 1), "the other vault, the same key");
    let second = draw(1, "order-2");
    assert_eq!((second.status, number(&second).number), (201, 2));

    let post = |path: &str, body: &str| {
        let call = house.erp(path).header("Content-Type", "application/json");
        call.key("settle").body(body).send().unwrap()
    };
    let confirm = "/v1/series/INV/numbers/1/confirm";
    assert_eq!(number(&post(confirm, r#"{"document_hash":"aa"}"#)).state, NumberState::Confirmed);
    assert_eq!(post(confirm, r#"{"document_hash":"aa"}"#).status, 200, "the same again");
    is_problem(&post(confirm, r#"{"document_hash":"bb"}"#), 409, "already_confirmed");
    let spoil = "/v1/series/INV/numbers/2/void";
    let spoilt = number(&post(spoil, r#"{"reason":"printer jam"}"#));
    assert_eq!((spoilt.state, spoilt.reason.as_deref()), (NumberState::Void, Some("printer jam")));
    is_problem(&post("/v1/series/INV/numbers/2/confirm", r#"{"document_hash":"cc"}"#), 409, "already_void");

    for vault in &house.pair.vaults {
        let look = |path: &str| vault.call(&house.erp, path).send().unwrap();
        let by_key = look("/v1/series/INV/numbers?key=order-2").expect(&[200]).unwrap();
        assert_eq!((number(&by_key).number, number(&by_key).state), (2, NumberState::Void));
        assert_eq!(number(&look("/v1/series/INV/numbers/1")).document_hash.as_deref(), Some("aa"));
        assert_eq!(look("/v1/series/INV/numbers?key=nobody").status, 404);
        assert_eq!(look("/v1/series/INV/numbers/3").status, 404);
        let page = look("/v1/series/INV/numbers?after=0&limit=1").expect(&[200]).unwrap();
        let page: Page<Number> = serde_json::from_slice(&page.body).unwrap();
        assert_eq!((page.items.len(), page.next.is_some()), (1, true));
    }
}

#[test]
fn malformed_calls_get_a_reason_and_change_nothing() {
    let mut house = house(&PairPlan::default());
    let json = |call: Curl, body: &str| call.header("Content-Type", "application/json").body(body);
    let numbers = "/v1/series/INV/numbers";
    let long = "k".repeat(257);
    let name = "n".repeat(8 * 1024);
    let calls: Vec<(&str, Curl, &[u16])> = vec![
        ("no key", house.erp(numbers).method("POST"), &[400]),
        ("a key of 257 bytes", house.erp(numbers).key(&long).method("POST"), &[400]),
        ("a key with a blank", house.erp(numbers).key("a b").method("POST"), &[400]),
        (
            "a series that is no name",
            house.erp("/v1/series/a%20b/numbers").key("k").method("POST"),
            &[400, 404],
        ),
        ("a series that climbs", house.erp("/v1/series/%2e%2e/numbers").key("k").method("POST"), &[400, 404]),
        ("a number that is none", house.erp("/v1/series/INV/numbers/one"), &[400, 404]),
        ("no JSON", json(house.erp("/v1/series/INV/numbers/1/confirm"), "{"), &[400]),
        ("unknown fields", json(house.erp("/v1/series/INV/numbers/1/confirm"), r#"{"x":1}"#), &[400, 422]),
        (
            "JSON over the limit",
            json(house.erp("/v1/series/INV/numbers/1/void"), &"x".repeat(1 << 20)),
            &[400, 413],
        ),
        ("an upload without a key", house.erp("/v1/files").body("x"), &[400]),
        (
            "a label that is no UTF-8",
            house.erp("/v1/files").key("k").header("File-Label", "%ff").body("x"),
            &[400],
        ),
        ("an id that is none", house.erp("/v1/files/zz"), &[400, 404]),
        ("an id that climbs", house.erp("/v1/files/../../etc/passwd"), &[400, 404]),
        ("an id with a NUL", house.erp("/v1/files/a%00b"), &[400, 404]),
        ("a name of 8 KiB", house.erp(&format!("/v1/files/{name}")), &[400, 404, 414]),
        ("an unknown path", house.erp("/v2/everything"), &[404]),
        ("a wrong method", house.erp("/v1/files").method("PATCH"), &[405]),
    ];
    for (what, call, statuses) in calls {
        let answer = call.send().unwrap_or_else(|error| panic!("{what}: {error:#}"));
        assert!(statuses.contains(&answer.status), "{what}: {} {}", answer.status, answer.text());
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{what}: {answer:?}");
        assert!(!answer.word("detail").unwrap().is_empty(), "{what}");
    }
    // Not even HTTP, not even TLS.
    in_clear(house.vault(0).api, b"\x16\x03\x01\x02\x00\x01").unwrap();
    in_clear(house.vault(0).api, b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(house.leftovers(), Vec::<std::path::PathBuf>::new());
    let numbers = house.erp(numbers).send().unwrap().expect(&[200, 404]).unwrap();
    assert!(!numbers.text().contains("\"number\""), "no number was drawn: {}", numbers.text());
    for vault in &mut house.pair.vaults {
        let program = vault.program().unwrap();
        assert!(program.is_running() && !program.log().contains("panicked"), "{}", program.log_tail(40));
    }
}

#[test]
fn a_file_is_what_was_sent_at_either_vault_whole_and_in_parts() {
    let house = house(&PairPlan::default());
    let body: Vec<u8> = (0..3_000_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    let send = |key: &str, body: &[u8]| {
        let call = house.erp("/v1/files").key(key).header("Content-Type", "image/png");
        call.header("File-Label", "R%C3%A9sum%C3%A9.png").body(body).send().unwrap()
    };
    let created = send("scan", &body).expect(&[201]).unwrap();
    let file: File = serde_json::from_slice(&created.body).unwrap();
    assert_eq!(file.size, 3_000_000);
    assert_eq!((file.label.as_str(), file.media_type.as_str()), ("Résumé.png", "image/png"));
    assert_eq!(created.header("location"), Some(format!("/v1/files/{}", file.id).as_str()));
    let again = send("scan", &body).expect(&[200]).unwrap();
    assert_eq!(again.word("id").unwrap(), file.id);
    is_problem(&send("scan", b"something else"), 409, "key_reused");

    let path = format!("/v1/files/{}", file.id);
    let tag = format!("\"{}\"", file.id);
    for vault in &house.pair.vaults {
        let get = || vault.call(&house.erp, &path);
        let whole = get().send().unwrap().expect(&[200]).unwrap();
        assert!(whole.body == body, "{}: {} bytes", vault.name, whole.body.len());
        assert_eq!(whole.header("etag"), Some(tag.as_str()));
        assert_eq!(whole.header("content-type"), Some("image/png"));
        assert_eq!(whole.header("accept-ranges"), Some("bytes"));
        assert_eq!(whole.header("x-content-type-options"), Some("nosniff"));
        let head = get().method("HEAD").send().unwrap();
        assert_eq!((head.status, head.header("content-length")), (200, Some("3000000")));
        assert_eq!(get().header("If-None-Match", &tag).send().unwrap().status, 304);
        for (range, part) in [
            ("bytes=0-0", 0..1),
            ("bytes=1048570-1048585", 1_048_570..1_048_586),
            ("bytes=2999990-", 2_999_990..3_000_000),
            ("bytes=-10", 2_999_990..3_000_000),
            ("bytes=2999990-9999999", 2_999_990..3_000_000),
        ] {
            let answer = get().header("Range", range).send().unwrap();
            assert_eq!(answer.status, 206, "{range}");
            assert_eq!(Some(answer.body.as_slice()), body.get(part.clone()), "{range}");
            let span = format!("bytes {}-{}/3000000", part.start, part.end - 1);
            assert_eq!(answer.header("content-range"), Some(span.as_str()));
        }
        let beyond = get().header("Range", "bytes=3000000-").send().unwrap();
        assert_eq!((beyond.status, beyond.header("content-range")), (416, Some("bytes */3000000")));
        assert_eq!(get().header("Range", "bytes=0-1,5-6").send().unwrap().status, 200, "several: the whole");
    }

    let delete = || house.vault(1).call(&house.erp, &path).method("DELETE").send().unwrap().status;
    assert_eq!((delete(), delete()), (204, 204));
    for vault in &house.pair.vaults {
        wait::until("gone", SOON, || vault.call(&house.erp, &path).send()?.expect(&[410])).unwrap();
    }
}

#[test]
fn an_empty_file_is_a_file() {
    let house = house(&PairPlan::default());
    let file = house.upload("empty", b"");
    assert_eq!(file.size, 0);
    let answer = house.erp(&format!("/v1/files/{}", file.id)).send().unwrap();
    assert_eq!((answer.status, answer.body.len()), (200, 0));
}

#[test]
fn lists_come_in_pages_without_gaps_or_repeats() {
    let house = house(&PairPlan::default());
    let mut ids: Vec<_> =
        (0..7).map(|n| house.upload(&format!("doc-{n}"), format!("{n}").as_bytes()).id).collect();
    ids.sort();
    let mut listed = Vec::new();
    let mut after = String::new();
    for _ in 0..10 {
        let answer = house.erp(&format!("/v1/files?limit=3&after={after}")).send().unwrap();
        let page: Page<File> = serde_json::from_slice(&answer.expect(&[200]).unwrap().body).unwrap();
        assert!(page.items.len() <= 3);
        listed.extend(page.items.into_iter().map(|file| file.id));
        match page.next {
            Some(next) => after = next,
            None => break,
        }
    }
    listed.sort();
    assert_eq!(listed, ids);
}

#[test]
fn an_upload_that_is_too_large_or_breaks_off_leaves_nothing_behind() {
    let plan = PairPlan { storage: "max_file = \"1MiB\"\n".to_owned(), ..PairPlan::default() };
    let house = house(&plan);
    let large = vec![b'x'; 3 << 20];
    is_problem(&house.erp("/v1/files").key("large").body(large.clone()).send().unwrap(), 413, "too_large");
    let chunked = house.erp("/v1/files").key("large-chunked").header("Transfer-Encoding", "chunked");
    assert_eq!(chunked.body(large).send().unwrap().status, 413);
    let broken = house.erp("/v1/files").key("broken").arg("--limit-rate").arg("60k");
    let broken = broken.within(Duration::from_secs(2)).body(vec![b'y'; 1 << 20]).send();
    assert!(broken.is_err(), "the upload was to break off: {broken:?}");
    wait::until("nothing left", SOON, || {
        let left = house.leftovers();
        anyhow::ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .unwrap();
    // The key is still free.
    house.upload("broken", b"whole this time");
}

#[test]
fn an_operator_recovers_a_file_with_age_zstd_and_the_escrow_key_alone() {
    let house = house(&PairPlan::default());
    let body: Vec<u8> = (0..2_500_000_u32).flat_map(|n| (n / 7).to_le_bytes().into_iter().take(1)).collect();
    let file = house.upload("ledger-2024", &body);
    let replicas = wait::until("two replicas", SOON, || {
        let found = house.pair.replicas_of(&file.id)?;
        anyhow::ensure!(found.len() == 2, "{found:?}");
        Ok(found)
    })
    .unwrap();
    for replica in replicas {
        let recovered = recover(&replica, &house.pair.escrow, house.folder.path());
        assert!(recovered == body, "{}: {} bytes", replica.display(), recovered.len());
    }
}

/// The commands of the operator's guide, slot A.
fn recover(replica: &Path, escrow: &Path, folder: &Path) -> Vec<u8> {
    let script = r#"set -eu
umask 077
tail -c +65 "$1" | head -c 4032 | age -d -i "$2" > "$3/id"
tail -c +8193 "$1" | age -d -i "$3/id" | zstd -dq"#;
    let output = Command::new("bash")
        .args(["-c", script, "recover"])
        .args([replica, escrow, folder])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn damage_on_one_file_server_is_not_delivered_and_is_healed_from_the_other() {
    let house = house(&PairPlan::default());
    let body = b"worth keeping ".repeat(20_000);
    let file = house.upload("damaged", &body);
    let path = format!("/v1/files/{}", file.id);
    let replicas = wait::until("two replicas", SOON, || {
        let found = house.pair.replicas_of(&file.id)?;
        anyhow::ensure!(found.len() == 2, "{found:?}");
        Ok(found)
    })
    .unwrap();
    let [left, right] = replicas.as_slice() else { panic!("{replicas:?}") };
    let sound = std::fs::read(left).unwrap();

    let mut bent = sound.clone();
    let middle = bent.len() - 100;
    bent[middle] ^= 1;
    for damaged in [left, right] {
        std::fs::write(damaged, &bent).unwrap();
        for vault in &house.pair.vaults {
            let answer = vault.call(&house.erp, &path).send().unwrap().expect(&[200]).unwrap();
            assert!(answer.body == body, "{} delivers damage", vault.name);
        }
        std::fs::remove_file(damaged).ok();
        for vault in &house.pair.vaults {
            let answer = vault.call(&house.erp, &path).send().unwrap().expect(&[200]).unwrap();
            assert!(answer.body == body);
        }
        wait::until("healed", SOON, || {
            let healed = std::fs::read(damaged)?;
            anyhow::ensure!(healed == sound, "another file");
            Ok(())
        })
        .unwrap();
    }
}

#[test]
fn every_fault_of_a_configuration_is_told_at_once_and_nothing_is_started() {
    let folder = temporary_folder().unwrap();
    let file = folder.path().join("vault.toml");
    let port = harness::ports::free().unwrap();
    let text = format!(
        "name = \"a b\"\nsurprise = 1\n\n[api]\nlisten = \"{port}\"\nidle_timeout = \"30 secs\"\n\n\
         [pair]\npeer = \"vault-b\"\naddress = \"nowhere\"\n\n[storage]\nmax_file = \"4 gigs\"\n"
    );
    std::fs::write(&file, text).unwrap();
    let vault = binaries::find("vault").unwrap();
    for verb in ["check", "serve"] {
        let ran = run(&vault, &[verb.as_ref(), "--config".as_ref(), file.as_os_str()]).unwrap();
        assert_eq!(ran.code, Some(78), "{verb}: {ran:?}");
        let said = format!("{}{}", ran.out, ran.err);
        for (line, word) in
            [(1, "name"), (2, "surprise"), (6, "idle_timeout"), (10, "address"), (13, "max_file")]
        {
            let place = format!("{}:{line}:", file.display());
            let told = said.lines().any(|said| said.contains(&place) && said.contains(word));
            assert!(told, "{verb}: nothing about {place} {word}:\n{said}");
        }
        assert!(
            said.contains("key_file") && said.contains("file_server"),
            "{verb}: what is missing is told:\n{said}"
        );
        assert!(std::net::TcpStream::connect(port).is_err(), "{verb} started something");
    }
    assert_eq!(run(&vault, &["serve", "--no-such-flag"]).unwrap().code, Some(2));
}

/// The journal's files of a vault that is stopped.
fn journal_files(vault: &Vault) -> Vec<std::path::PathBuf> {
    let files = files_below(&vault.folder.join("state")).unwrap().into_iter();
    let is_journal = |file: &std::path::PathBuf| file.to_string_lossy().contains("state/journal.db");
    files.filter(is_journal).collect()
}

#[test]
fn a_lost_journal_is_denied_nothing_and_re_seeded_from_the_other_vault() {
    let mut house = house(&PairPlan::default());
    let numbers = "/v1/series/INV/numbers";
    let reserve = |house: &House, place: usize, key: &str| {
        house.vault(place).call(&house.erp, numbers).key(key).method("POST").send().unwrap()
    };
    for key in ["k1", "k2", "k3"] {
        reserve(&house, 0, key).expect(&[201]).unwrap();
    }
    let refused = house.vault(0).command(&["number", "re-seed"]).unwrap_err();
    assert!(format!("{refused:#}").contains("nothing to re-seed"), "{refused:#}");

    // The owner's journal is lost while the other is away: it knows nothing, and must not say
    // that there is nothing.
    for vault in &mut house.pair.vaults {
        vault.program().unwrap().terminate().unwrap();
    }
    for file in journal_files(house.vault(0)) {
        std::fs::remove_file(file).unwrap();
    }
    house.pair.vaults[0].program().unwrap().restart().unwrap();
    house.vault(0).wait_alive().unwrap();
    for path in ["?key=k1", "/1", ""] {
        is_problem(&house.erp(&format!("{numbers}{path}")).send().unwrap(), 503, "peer_away");
    }
    let confirm = house.erp(&format!("{numbers}/1/confirm")).header("Content-Type", "application/json");
    is_problem(&confirm.body(r#"{"document_hash":"h"}"#).send().unwrap(), 503, "peer_away");

    // They meet: both say what is wrong, on a link that stands for everything else.
    house.pair.vaults[1].program().unwrap().restart().unwrap();
    house.vault(1).wait_alive().unwrap();
    wait::until("closed", SOON, || {
        let answer = reserve(&house, 1, "k4").expect(&[503])?;
        anyhow::ensure!(answer.word("code")? == "numbering_closed", "{}", answer.text());
        Ok(())
    })
    .unwrap();
    is_problem(&house.erp(numbers).send().unwrap(), 503, "numbering_closed");
    house.upload("while-closed", b"files go on");

    let wrong_side = house.vault(0).command(&["number", "re-seed"]).unwrap_err();
    assert!(format!("{wrong_side:#}").contains("nothing to re-seed"), "{wrong_side:#}");
    let said = house.vault(1).command(&["number", "re-seed"]).unwrap();
    // Three about numbers, and the two lives.
    assert!(said.contains("5 entries are carried over"), "{said}");
    wait::until("numbers go on", SOON, || reserve(&house, 1, "k4").expect(&[201]).map(drop)).unwrap();
    for (key, expected) in [("k1", 1), ("k3", 3), ("k4", 4)] {
        for place in [0, 1] {
            let answer = reserve(&house, place, key).expect(&[200]).unwrap();
            assert_eq!(number(&answer).number, expected);
        }
    }
}

#[test]
fn both_journals_gone_close_numbering_instead_of_giving_numbers_again() {
    let mut house = house(&PairPlan::default());
    let numbers = "/v1/series/INV/numbers";
    let reserve = |house: &House, key: &str| house.erp(numbers).key(key).method("POST").send().unwrap();
    reserve(&house, "k1").expect(&[201]).unwrap();
    for vault in &mut house.pair.vaults {
        vault.program().unwrap().terminate().unwrap();
    }
    for place in [0, 1] {
        for file in journal_files(house.vault(place)) {
            std::fs::remove_file(file).unwrap();
        }
        house.pair.vaults[place].program().unwrap().restart().unwrap();
        house.vault(place).wait_alive().unwrap();
    }
    wait::until("closed", SOON, || {
        let answer = reserve(&house, "k2").expect(&[503])?;
        anyhow::ensure!(answer.word("code")? == "numbering_closed", "{}", answer.text());
        Ok(())
    })
    .unwrap();
    let refused = house.vault(0).command(&["number", "re-seed"]).unwrap_err();
    assert!(format!("{refused:#}").contains("nothing to re-seed"), "{refused:#}");
}

#[test]
fn what_one_vault_has_answered_the_other_shows_at_once() {
    let house = house(&PairPlan::default());
    let numbers = "/v1/series/INV/numbers";
    for turn in 0..30 {
        let (writer, reader) = (turn % 2, 1 - turn % 2);
        let key = format!("k{turn}");
        let made = house.vault(writer).call(&house.erp, numbers).key(&key).method("POST");
        let made = number(&made.send().unwrap().expect(&[201]).unwrap());
        for path in [format!("{numbers}/{}", made.number), format!("{numbers}?key={key}")] {
            let read = house.vault(reader).call(&house.erp, &path).send().unwrap().expect(&[200]).unwrap();
            assert_eq!(number(&read), made);
        }
        let listed = format!("{numbers}?after={}", made.number - 1);
        let listed = house.vault(reader).call(&house.erp, &listed).send().unwrap().expect(&[200]).unwrap();
        assert_eq!(serde_json::from_slice::<Page<Number>>(&listed.body).unwrap().items, [made]);
    }
    let beyond = house.erp(&format!("{numbers}?after={}", u64::MAX)).send().unwrap().expect(&[200]).unwrap();
    assert_eq!(serde_json::from_slice::<Page<Number>>(&beyond.body).unwrap().items, []);
}

#[test]
fn status_shows_both_sides_and_says_when_one_is_away() {
    let mut house = house(&PairPlan::default());
    let status = |house: &House| -> serde_json::Value {
        let said = house.vault(0).command(&["status", "--json"]).unwrap();
        serde_json::from_str(&said).unwrap()
    };
    let both = status(&house);
    assert_eq!(both["pair"]["its_status"]["numbers"]["together"], true, "{both}");
    assert_eq!(both["pair"]["its_status"]["files"]["owed"], 0, "{both}");
    house.pair.vaults[1].program().unwrap().kill().unwrap();
    let alone = wait::until("the other side is away", SOON, || {
        let alone = status(&house);
        anyhow::ensure!(alone["pair"]["connected"] == false, "{alone}");
        Ok(alone)
    })
    .unwrap();
    assert_eq!(alone["pair"]["its_status"]["error"], "the other vault vault-b is away", "{alone}");
}

#[test]
fn different_storage_keys_on_the_two_vaults_are_told() {
    let mut house = house(&PairPlan::default());
    let verbose = |house: &House| plain::expect_ok(house.vault(0).admin, "/readyz?verbose");
    wait::until("the keys are compared", SOON, || {
        let said = verbose(&house)?;
        anyhow::ensure!(said.contains("the same on both vaults"), "{said}");
        Ok(())
    })
    .unwrap();
    let key = house.vault(1).folder.join("storage.key");
    std::fs::remove_file(&key).unwrap();
    let unused = house.folder.path().join("another-escrow.key");
    let words = ["keys", "init", "--file", key.to_str().unwrap(), "--escrow", unused.to_str().unwrap()];
    house.vault(1).command(&words).unwrap();
    house.pair.vaults[1].program().unwrap().kill().unwrap();
    house.pair.vaults[1].program().unwrap().restart().unwrap();
    wait::until("the difference is told", SOON, || {
        let said = verbose(&house)?;
        anyhow::ensure!(said.contains("storage.key_file differs"), "{said}");
        Ok(())
    })
    .unwrap();
}
