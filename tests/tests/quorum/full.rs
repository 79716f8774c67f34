//! An etcd that has no room left: callers, status and log hear it in etcd's own words, what is there is
//! read, and numbers go on by themselves once the operator has done what README says.

use std::collections::BTreeMap;
use std::time::Duration;

use harness::cluster::temporary_folder;
use harness::etcd_cluster::EtcdCluster;
use harness::wait;
use serde_json::{Value, json};

use super::{assert_refused, assert_whole, found, log, number, number_soon, pair, reserve, status};

/// Another program writes one key over and over, until etcd takes no more.
fn fill(etcd: &EtcdCluster) {
    let put = json!({ "key": "b3RoZXI=", "value": "A".repeat(100_000) }).to_string();
    let refused = (0..200).find_map(|_| etcd.say(0, "/v3/kv/put", &put).err());
    let refused = format!("{:#}", refused.unwrap());
    assert!(refused.contains("space exceeded"), "{refused}");
}

fn say(etcd: &EtcdCluster, member: usize, path: &str, body: &Value) -> Value {
    serde_json::from_str(&etcd.say(member, path, &body.to_string()).unwrap()).unwrap()
}

/// As README tells the operator to: `etcdctl compact`, `etcdctl defrag --cluster`, `etcdctl alarm disarm`.
fn make_room(etcd: &EtcdCluster) {
    let now = say(etcd, 0, "/v3/maintenance/status", &json!({}))["header"]["revision"].clone();
    say(etcd, 0, "/v3/kv/compaction", &json!({ "revision": now, "physical": true }));
    for member in 0..3 {
        say(etcd, member, "/v3/maintenance/defragment", &json!({}));
    }
    let alarms = say(etcd, 0, "/v3/maintenance/alarm", &json!({ "action": "GET" }));
    for alarm in alarms["alarms"].as_array().unwrap() {
        let disarm =
            json!({ "action": "DEACTIVATE", "memberID": alarm["memberID"], "alarm": alarm["alarm"] });
        say(etcd, 0, "/v3/maintenance/alarm", &disarm);
    }
}

#[test]
fn a_full_etcd_is_told_in_its_own_words_is_read_and_goes_on_by_itself_once_there_is_room() {
    let folder = temporary_folder().unwrap();
    let etcd = EtcdCluster::start_with(folder.path(), &["--quota-backend-bytes=4194304"]).unwrap();
    let pair = pair(folder.path(), &etcd, "truth");
    let mut given = BTreeMap::new();
    for turn in 0..6 {
        let key = format!("k{turn}");
        given.insert(key.clone(), number(&pair.vaults[turn % 2], "INV", &key));
    }
    fill(&etcd);
    let told = "mvcc: database space exceeded; make room as README says";
    for vault in &pair.vaults {
        assert_refused(vault, told);
        let (refused, took) = wait::timed(|| reserve(vault, "INV", "refused"));
        assert!(refused.text().contains("numbering_closed") && took < Duration::from_secs(1), "{took:?}");
        assert!(refused.text().contains(told), "{}", refused.text());
        // While it is tried again and again.
        std::thread::sleep(Duration::from_secs(3));
        assert_refused(vault, told);
        assert_eq!(status(vault)["needs_operator"], true);
        assert!(status(vault)["reason"].as_str().unwrap().contains(told), "{}", status(vault));
        let shown = format!("{:#}", vault.command(&["status"]).unwrap_err());
        assert!(shown.contains(told), "{shown}");
        let said = |line: &&str| line.contains(" ERROR ") && line.contains(told);
        let lines = log(vault).lines().filter(said).count();
        assert_eq!(lines, 1, "{}", log(vault));
        // What is there is read.
        assert_eq!([found(vault, "INV", "k3"), found(vault, "INV", "never")], [Some(given["k3"]), None]);
        let export = vault.control("/v1/series/INV/export?owner=erp").send().unwrap();
        assert!(export.expect(&[200]).unwrap().text().contains("k5"));
    }
    make_room(&etcd);
    for (turn, vault) in pair.vaults.iter().enumerate() {
        let key = format!("after{turn}");
        given.insert(key.clone(), number_soon(vault, "INV", &key));
        assert_eq!(status(vault)["reason"], Value::Null);
    }
    given.insert("refused".to_owned(), number(&pair.vaults[0], "INV", "refused"));
    assert_whole(&given);
}
