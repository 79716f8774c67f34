//! Stories of records, file names and leases, told through the HTTP API of a real pair, and a
//! check of histories: versions as callers saw them, while vaults are killed.
#![expect(clippy::unwrap_used, reason = "a story's own steps fail the story when they fail")]

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use harness::cluster::temporary_folder;
use harness::curl::{Answer, Curl};
use harness::vault_host::{Holder, Pair, PairPlan};
use harness::wait;
use shared::api::record::{FileName, Lease, NamedFile, Record};
use shared::api::{File, Page};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(30);
const BIDDERS: usize = 32;

struct House {
    pair: Pair,
    erp: Holder,
    _folder: TempDir,
}

fn house() -> House {
    let folder = temporary_folder().unwrap();
    let pair = Pair::start(folder.path(), &PairPlan::default()).unwrap();
    let erp = pair.enrol("edge", "erp", "www1").unwrap();
    House { pair, erp, _folder: folder }
}

impl House {
    fn call(&self, place: usize, path: &str) -> Curl {
        self.pair.vaults[place].call(&self.erp, path)
    }
    fn put(&self, place: usize, path: &str, condition: (&str, &str), key: &str, value: &str) -> Answer {
        put(self.call(place, path), condition, key, value).send().unwrap()
    }
    fn get(&self, place: usize, path: &str) -> Answer {
        self.call(place, path).send().unwrap()
    }
    fn kill(&mut self, place: usize) {
        self.pair.vaults[place].program().unwrap().kill().unwrap();
    }
    fn start_again(&mut self, place: usize) {
        self.pair.vaults[place].program().unwrap().restart().unwrap();
        self.pair.wait_ready().unwrap();
    }
}

fn put(call: Curl, condition: (&str, &str), key: &str, value: &str) -> Curl {
    call.method("PUT").header(condition.0, condition.1).key(key).body(value)
}

const NEW: (&str, &str) = ("If-None-Match", "*");

/// Status, ETag and `code` or body, as one looks at them.
fn seen(answer: &Answer) -> (u16, &str, String) {
    let word = answer.word("code").unwrap_or_else(|_| answer.text());
    (answer.status, answer.header("etag").unwrap_or_default(), word)
}

#[test]
fn a_record_is_written_by_whoever_has_seen_it_and_read_at_either_vault() {
    let house = house();
    let lot = "/v1/records/lots/7";
    let bare = house.call(0, lot).method("PUT").key("k0").body("10").send().unwrap();
    assert_eq!(seen(&bare), (428, "", "condition_missing".to_owned()));
    assert!(bare.word("detail").unwrap().ends_with("there is no such record, so If-None-Match: *"));
    let keyless = house.call(0, lot).method("PUT").header(NEW.0, NEW.1).body("10").send().unwrap();
    assert_eq!(seen(&keyless), (400, "", "key_missing".to_owned()));
    assert_eq!(seen(&house.get(0, lot)), (404, "", "not_found".to_owned()));

    let body = r#"{"name":"lots/7","version":1}"#.to_owned();
    assert_eq!(seen(&house.put(1, lot, NEW, "k1", "10")), (201, "\"1\"", body.clone()));
    assert_eq!(seen(&house.put(0, lot, NEW, "k1", "10")), (200, "\"1\"", body), "repeated");
    assert_eq!(seen(&house.put(0, lot, NEW, "k1", "99")), (409, "", "key_reused".to_owned()));
    assert_eq!(seen(&house.put(0, lot, NEW, "k2", "11")), (412, "\"1\"", "version_differs".to_owned()));
    for place in [0, 1] {
        assert_eq!(seen(&house.get(place, lot)), (200, "\"1\"", "10".to_owned()));
    }
    let known = house.call(1, lot).header("If-None-Match", "\"1\"").send().unwrap();
    assert_eq!(known.status, 304);
    assert_eq!(house.put(0, lot, ("If-Match", "\"1\""), "k3", "Öl 11").status, 201);
    assert_eq!(house.put(0, lot, ("If-Match", "*"), "k4", "12").status, 201);

    let json = put(house.call(0, "/v1/records/j"), NEW, "k5", "{").header("Content-Type", "application/json");
    assert_eq!(seen(&json.send().unwrap()).2, "bad_value");
    let long = house.put(0, "/v1/records/long", NEW, "k6", &"x".repeat((64 << 10) + 1));
    assert_eq!(seen(&long), (413, "", "too_large".to_owned()));
    assert_eq!(house.put(0, "/v1/records/long", NEW, "k7", &"\"".repeat(64 << 10)).status, 201);
    for bad in ["/v1/records/a//b", "/v1/records/a/", "/v1/records/a%2F..%2Fb", "/v1/records/a%00"] {
        assert_eq!(seen(&house.put(0, bad, NEW, "k8", "1")).0, 400, "{bad}");
    }

    let history: Page<Record> =
        serde_json::from_slice(&house.get(1, &format!("{lot}?history=true")).body).unwrap();
    let values: Vec<_> = history.items.iter().map(|item| (item.version, item.value.as_deref())).collect();
    assert_eq!(values, [(1, Some("10")), (2, Some("Öl 11")), (3, Some("12"))]);
    assert_eq!(history.items[0].by.as_deref(), Some("edge/erp/www1"));
    assert_eq!(house.get(1, &format!("{lot}?version=2")).text(), "Öl 11");
    let names = |path: &str| {
        let page: Page<Record> = serde_json::from_slice(&house.get(1, path).body).unwrap();
        page.items.into_iter().map(|item| item.name).collect::<Vec<_>>()
    };
    assert_eq!(names("/v1/records?prefix=lots/"), ["lots/7"]);
    assert_eq!(names("/v1/records?limit=1"), ["long"]);
    assert_eq!(names("/v1/records?after=long"), ["lots/7"]);

    let bare = house.call(1, lot).method("PUT").key("k10").body("13").send().unwrap();
    assert!(bare.word("detail").unwrap().contains("is in version 3, so If-Match: \"3\""), "{}", bare.text());
    let bare = house.call(0, "/v1/records/long").method("DELETE").send().unwrap();
    assert!(bare.word("detail").unwrap().contains("is in version 1, so If-Match: \"1\""), "{}", bare.text());
    let remove =
        |condition| house.call(1, lot).method("DELETE").header("If-Match", condition).send().unwrap();
    assert_eq!(remove("\"2\"").status, 412);
    assert_eq!([remove("\"3\"").status, remove("\"3\"").status], [204, 204]);
    assert_eq!(house.get(0, lot).status, 404);
    assert_eq!(house.get(0, &format!("{lot}?version=3")).text(), "12", "its versions stay");
    assert_eq!(house.put(0, lot, NEW, "k9", "13").header("etag"), Some("\"5\""));

    let stranger = house.pair.enrol("edge", "shop", "www9").unwrap();
    assert_eq!(house.pair.vaults[0].call(&stranger, lot).send().unwrap().status, 404);
    let theirs = house.pair.vaults[0].call(&stranger, &format!("{lot}?owner=erp")).send().unwrap();
    assert_eq!(seen(&theirs), (403, "", "owner_refused".to_owned()));
}

#[test]
fn an_operator_reads_writes_and_lists_records_on_the_command_line() {
    let house = house();
    let vault = &house.pair.vaults[1];
    let put = ["record", "put", "lots/7", "10", "--owner", "erp"];
    vault.command(&put).unwrap_err();
    let said = vault.command(&[&put[..], &["--new"]].concat()).unwrap();
    assert_eq!(said.trim(), "lots/7 is in version 1");
    let late = vault.command(&[&put[..], &["--new"]].concat()).unwrap_err();
    assert!(format!("{late:#}").contains("version_differs"), "{late:#}");
    vault.command(&["record", "put", "lots/7", "11", "--owner", "erp", "--if-version", "1"]).unwrap();
    assert_eq!(vault.command(&["record", "get", "lots/7", "--owner", "erp"]).unwrap().trim(), "11");
    assert_eq!(vault.command(&["record", "list", "--owner", "erp"]).unwrap().trim(), "lots/7  2  11");
}

#[test]
fn apart_a_record_is_refused_unless_the_reader_takes_what_may_be_old() {
    let mut house = house();
    let lot = "/v1/records/lots/7";
    assert_eq!(house.put(0, lot, NEW, "k1", "10").status, 201);
    house.kill(1);
    let refused = wait::until("records are refused", SOON, || house.call(0, lot).send()?.expect(&[503]));
    let refused = refused.unwrap();
    assert_eq!(seen(&refused), (503, "", "peer_away".to_owned()));
    assert!(refused.header("retry-after").is_some());
    assert_eq!(house.put(0, lot, ("If-Match", "*"), "k2", "11").status, 503);
    let old = house.get(0, &format!("{lot}?stale=true"));
    assert_eq!((seen(&old), old.header("vault-stale")), ((200, "\"1\"", "10".to_owned()), Some("true")));
    house.start_again(1);
    let sure = house.get(0, &format!("{lot}?stale=true"));
    assert_eq!((sure.status, sure.header("vault-stale")), (200, None));
}

#[test]
fn an_owner_that_went_on_alone_gives_way_and_what_it_wrote_is_listed_until_somebody_has_looked_at_it() {
    let mut house = house();
    assert_eq!(house.put(0, "/v1/records/both", NEW, "k0", "0").status, 201);
    let told = house.pair.vaults[0].command(&["number", "take-over"]).unwrap_err();
    let told = format!("{told:#}");
    assert!(told.contains("already_owner") && told.contains("(epoch 1)"), "{told}");
    // Each goes on alone, believing that the other is off for good.
    for (place, value) in [(0, "a"), (1, "b")] {
        house.kill(1 - place);
        if place == 1 {
            house.pair.vaults[1].program().unwrap().restart().unwrap();
            house.pair.vaults[1].wait_alive().unwrap();
        }
        wait::until("it is alone", SOON, || {
            let status = house.pair.vaults[place].control("/v1/status").send()?.json()?;
            anyhow::ensure!(status["pair"]["connected"] == false, "{status}");
            Ok(())
        })
        .unwrap();
        house.pair.vaults[place].command(&["number", "take-over", "--alone"]).unwrap();
        for lot in ["1", "2"] {
            let written =
                house.put(place, &format!("/v1/records/lots/{lot}"), NEW, &format!("{value}{lot}"), value);
            assert_eq!(written.status, 201, "{}", written.text());
        }
        let status = house.pair.vaults[place].control("/v1/status").send().unwrap().json().unwrap();
        assert_eq!(status["numbers"]["apart"]["records"], true, "{status}");
    }
    house.pair.vaults[0].program().unwrap().restart().unwrap();
    let verdict = |house: &House, place: usize| -> anyhow::Result<String> {
        let told = house.pair.vaults[place].command(&["--json", "status"])?;
        let status: serde_json::Value = serde_json::from_str(&told)?;
        Ok(status["wanting"].to_string())
    };
    wait::until("two owners are found out", SOON, || {
        let told = verdict(&house, 0)?;
        anyhow::ensure!(told.contains("in epoch 2") && told.contains("run vault number yield"), "{told}");
        Ok(())
    })
    .unwrap();
    let yielded = house.pair.vaults[0].command(&["number", "yield"]).unwrap();
    assert!(yielded.contains("at most 2 writes"), "{yielded}");
    house.pair.wait_ready().unwrap();
    assert_eq!(house.get(0, "/v1/records/lots/1").text(), "b", "the other's stand");

    assert!(
        verdict(&house, 0).unwrap().contains("2 writes of records that were answered here alone gave way")
    );
    assert_eq!(house.pair.vaults[1].command(&["number", "dropped"]).unwrap().trim(), "none");
    let dropped = |words: &[&str]| {
        let mut all = vec!["number", "dropped"];
        all.extend(words);
        house.pair.vaults[0].command(&all).unwrap()
    };
    let first = dropped(&["--limit", "1", "--done"]);
    assert!(
        first.contains("record lots/1 of erp, version 1:") && first.contains("there are more"),
        "{first}"
    );
    assert!(first.contains("1 are left: say it again with --after"), "{first}");
    let all = dropped(&[]);
    assert!(all.contains("lots/2 of erp") && !all.contains("there are more"), "{all}");
    assert!(dropped(&["--done"]).contains("none is left"));
    assert_eq!(verdict(&house, 0).unwrap(), "[]", "it tells of them no more");
    assert!(dropped(&[]).contains("lots/1"), "and keeps them to be read");
}

#[test]
fn a_name_points_at_a_file_in_versions_and_tells_when_the_file_is_deleted() {
    let house = house();
    let upload = |key: &str, body: &str| {
        let answer = house.call(0, "/v1/files").key(key).body(body).send().unwrap().expect(&[201]).unwrap();
        serde_json::from_slice::<File>(&answer.body).unwrap().id
    };
    let (first, second) = (upload("f1", "first draft"), upload("f2", "second draft"));
    let path = "/v1/names/contracts/2026/acme.txt";
    let point = |condition, key, id: &str| {
        let body = format!(r#"{{"file":"{id}"}}"#);
        let call = put(house.call(1, path), condition, key, &body);
        call.header("Content-Type", "application/json").send().unwrap()
    };
    assert_eq!(seen(&point(NEW, "n0", &"0".repeat(64))).2, "not_found", "no such file");
    assert_eq!(point(NEW, "n1", &first).status, 201);
    assert_eq!(point(("If-Match", "\"1\""), "n2", &second).status, 201);
    assert_eq!(point(("If-Match", "\"1\""), "n3", &first).status, 412);

    let content = |place, more: &str| house.get(place, &format!("{path}/content{more}"));
    for place in [0, 1] {
        assert_eq!(seen(&content(place, "")), (200, &*format!("\"{second}\""), "second draft".to_owned()));
    }
    assert_eq!(content(1, "?version=1").text(), "first draft");
    let part = house.call(1, &format!("{path}/content")).header("Range", "bytes=0-5").send().unwrap();
    assert_eq!((part.status, part.text().as_str()), (206, "second"));

    let gone = house.call(0, &format!("/v1/files/{second}")).method("DELETE").send().unwrap();
    assert_eq!(gone.status, 204);
    let told = wait::until("the other vault has heard of the deletion", SOON, || {
        let name: FileName = serde_json::from_slice(&house.call(1, path).send()?.expect(&[200])?.body)?;
        anyhow::ensure!(name.state != Some(NamedFile::Stored), "{name:?}");
        Ok(name)
    });
    let told = told.unwrap();
    assert_eq!(
        (told.version, told.file.as_deref(), told.state),
        (2, Some(second.as_str()), Some(NamedFile::Deleted))
    );
    assert_eq!(seen(&content(1, "")), (410, "", "deleted".to_owned()));
    let listed: Page<FileName> =
        serde_json::from_slice(&house.get(0, "/v1/names?prefix=contracts/").body).unwrap();
    assert_eq!(listed.items.iter().map(|name| name.state).collect::<Vec<_>>(), [Some(NamedFile::Deleted)]);
    assert_eq!(seen(&house.put(0, "/v1/names/a/content", NEW, "n4", "{}")).0, 400);
}

#[test]
fn a_lease_has_one_holder_and_each_new_one_a_greater_epoch() {
    let mut house = house();
    let name = "/v1/leases/jobs/nightly";
    let claim = |house: &House, place, method: &str, body: &str| {
        let call = house.call(place, name).method(method).header("Content-Type", "application/json");
        call.body(body).send().unwrap()
    };
    let lease = |answer: &Answer| serde_json::from_slice::<Lease>(&answer.body).unwrap();
    let acquire = |token: &str| format!(r#"{{"token":"{token}","ttl_seconds":3600}}"#);
    assert_eq!(seen(&claim(&house, 0, "POST", r#"{"token":"a","ttl_seconds":4}"#)).2, "bad_lease");
    assert_eq!(house.get(0, name).status, 404);
    let first = claim(&house, 1, "POST", &acquire("a"));
    assert_eq!((first.status, lease(&first).epoch), (201, 1));
    assert_eq!(claim(&house, 0, "POST", &acquire("a")).status, 200, "held already");
    assert_eq!(seen(&claim(&house, 0, "POST", &acquire("b"))), (409, "", "lease_held".to_owned()));
    assert_eq!(claim(&house, 0, "PUT", r#"{"token":"a","epoch":1}"#).status, 200);
    assert_eq!(seen(&claim(&house, 1, "PUT", r#"{"token":"b","epoch":1}"#)).2, "lease_lost");
    // Neither the owner's end nor the follower's opens it to a second holder.
    for place in [0, 1] {
        house.kill(place);
        house.start_again(place);
        assert_eq!(seen(&claim(&house, 1, "POST", &acquire("b"))).2, "lease_held");
    }
    let shown = lease(&house.get(1, name));
    assert_eq!((shown.holder.as_str(), shown.epoch), ("edge/erp/www1", 1));
    assert!(shown.left_ms.is_some_and(|left| left > 3_000_000), "{shown:?}");
    let bare = house.call(0, name).method("DELETE").send().unwrap();
    assert_eq!(seen(&bare).2, "bad_lease");
    assert!(bare.word("detail").unwrap().contains("?token=TOKEN&epoch=EPOCH"), "{}", bare.text());
    let release = |epoch| {
        let path = format!("{name}?token=a&epoch={epoch}");
        house.call(0, &path).method("DELETE").send().unwrap().status
    };
    assert_eq!([release(2), release(1), release(1)], [409, 204, 204]);
    let next = claim(&house, 0, "POST", &acquire("b"));
    assert_eq!((next.status, lease(&next).epoch), (201, 3));
}

/// One call as its caller saw it: when it began and ended on one clock that all share.
#[derive(Debug)]
struct Seen {
    began: u64,
    ended: u64,
    what: What,
}

#[derive(Debug)]
enum What {
    /// This version said that.
    Read(u64, String),
    /// This made that version.
    Wrote(u64, String),
    /// Refused: the record was in that version.
    Refused(u64, String),
}

/// Is there an order of all calls, each between its beginning and its end, in which a register
/// with versions answers so? `stands` is what every version says at the end. Versions say how the
/// writes are ordered, so it is enough that no call sees a version below one that was seen before
/// it began, and none that was not begun to be written before it ended.
fn check(calls: &[Seen], stands: &BTreeMap<u64, String>) -> Result<(), String> {
    let mut order: Vec<&Seen> = calls.iter().collect();
    order.sort_by_key(|call| call.began);
    let mut ends: Vec<(u64, u64)> = calls
        .iter()
        .map(|call| match &call.what {
            What::Read(version, _) | What::Wrote(version, _) | What::Refused(version, _) => {
                (call.ended, *version)
            }
        })
        .collect();
    ends.sort_unstable();
    let began: BTreeMap<u64, u64> = calls
        .iter()
        .filter_map(
            |call| if let What::Wrote(version, _) = call.what { Some((version, call.began)) } else { None },
        )
        .collect();
    let (mut floor, mut ended) = (0, ends.into_iter().peekable());
    for call in order {
        while let Some((_, version)) = ended.next_if(|(end, _)| *end < call.began) {
            floor = floor.max(version);
        }
        let (least, version) = match &call.what {
            What::Read(version, value) if stands.get(version) == Some(value) => (floor, *version),
            What::Wrote(version, value) if stands.get(version) == Some(value) => (floor + 1, *version),
            What::Refused(version, value) if !stands.values().any(|stands| stands == value) => {
                (floor, *version)
            }
            _ => return Err(format!("{call:?} is not what stands")),
        };
        if version < least {
            return Err(format!("{call:?} came after version {floor} had been seen"));
        }
        if began.get(&version).is_some_and(|began| *began > call.ended) {
            return Err(format!("{call:?} ended before that version was begun to be written"));
        }
    }
    Ok(())
}

#[test]
fn the_check_finds_what_no_register_would_answer() {
    let stands = BTreeMap::from([(1, "a".to_owned()), (2, "b".to_owned())]);
    let call = |began, ended, what| Seen { began, ended, what };
    let read = |version, value: &str| What::Read(version, value.to_owned());
    let wrote = |version, value: &str| What::Wrote(version, value.to_owned());
    let good = [call(1, 4, wrote(2, "b")), call(2, 3, read(1, "a")), call(2, 5, read(2, "b"))];
    assert_eq!(check(&good, &stands), Ok(()));
    let bad = [
        vec![call(1, 2, wrote(2, "b")), call(3, 4, read(1, "a"))],
        vec![call(1, 2, read(2, "b")), call(3, 4, wrote(2, "b"))],
        vec![call(1, 2, read(2, "a"))],
        vec![call(1, 2, wrote(2, "b")), call(1, 3, wrote(2, "c"))],
        vec![call(1, 2, read(2, "b")), call(3, 4, read(1, "a"))],
        vec![call(1, 2, What::Refused(1, "b".to_owned()))],
    ];
    for calls in bad {
        assert!(check(&calls, &stands).is_err(), "{calls:?}");
    }
}

#[test]
fn of_32_bidders_one_wins_each_version_whichever_vault_is_killed() {
    let mut house = house();
    let lot = "/v1/records/lots/7";
    assert_eq!(house.put(0, lot, NEW, "start", "start").status, 201);
    let calls = [0, 1].map(|place| house.call(place, lot).within(Duration::from_secs(10)));
    let (clock, over, histories) = (AtomicU64::new(0), AtomicBool::new(false), Mutex::new(Vec::new()));
    let deadline = wait::Deadline::after(Duration::from_secs(180));
    let tick = || clock.fetch_add(1, Ordering::SeqCst);
    let bid = |bidder: usize| {
        let mut history = Vec::new();
        for turn in 0_usize.. {
            if over.load(Ordering::SeqCst) || deadline.passed() {
                break;
            }
            let call = &calls[(bidder + turn) % 2];
            let (began, read, ended) = (tick(), call.send(), tick());
            let Some((version, value)) = read.ok().and_then(|read| version_of(&read, 200)) else { continue };
            history.push(Seen { began, ended, what: What::Read(version, value) });
            let key = format!("{bidder}-{turn}");
            let call = put(call.clone(), ("If-Match", &format!("\"{version}\"")), &key, &key);
            let (began, written, ended) = (tick(), call.send(), tick());
            // Without an answer, or in doubt, it may or may not stand.
            let Ok(written) = written else { continue };
            let what = match (version_of(&written, 201), version_of(&written, 412)) {
                (Some((version, _)), _) => What::Wrote(version, key),
                (_, Some((version, _))) => What::Refused(version, key),
                _ => continue,
            };
            history.push(Seen { began, ended, what });
        }
        histories.lock().unwrap().extend(history);
    };
    let mut before = 0;
    std::thread::scope(|scope| {
        for bidder in 0..BIDDERS {
            let bid = &bid;
            scope.spawn(move || bid(bidder));
        }
        // The owner, then the follower; they bid on while one is away and when it is there again.
        for place in [0, 1] {
            std::thread::sleep(Duration::from_secs(2));
            house.kill(place);
            std::thread::sleep(Duration::from_secs(1));
            house.start_again(place);
        }
        before = version_of(&house.get(1, lot), 200).map_or(0, |(version, _)| version);
        std::thread::sleep(Duration::from_secs(3));
        over.store(true, Ordering::SeqCst);
    });
    let mut stands = BTreeMap::new();
    let mut after = 0;
    loop {
        let path = format!("{lot}?history=true&limit=1000&after={after}");
        let page: Page<Record> = serde_json::from_slice(&house.get(1, &path).body).unwrap();
        stands.extend(page.items.into_iter().map(|item| (item.version, item.value.unwrap())));
        let Some(next) = page.next else { break };
        after = next.parse().unwrap();
    }
    let calls = histories.into_inner().unwrap();
    check(&calls, &stands).unwrap();
    let wrote = calls.iter().filter(|call| matches!(call.what, What::Wrote(..))).count();
    assert!(wrote > 4, "{wrote} of {} versions in {} calls", stands.len(), calls.len());
    assert!(stands.len() as u64 > before, "nobody wrote once both were there again");
}

fn version_of(answer: &Answer, status: u16) -> Option<(u64, String)> {
    let version = answer.header("etag")?.trim_matches('"').parse().ok()?;
    (answer.status == status).then(|| (version, answer.text()))
}
