//! A vault whose disk is full refuses with the reason, forgets nothing that it answered, and goes on
//! by itself once there is room again; together with the other vault, and alone.
#![expect(clippy::unwrap_used, reason = "a story's own steps fail the story when they fail")]

use std::collections::BTreeMap;
use std::time::Duration;

use harness::cluster::temporary_folder;
use harness::small_disk::{self, SmallDisk};
use harness::vault_host::{Holder, Pair, PairPlan};
use harness::wait;
use serde_json::json;
use shared::api::{BatchAnswer, Problem, Series};

/// It is tried again every 10 s.
const SOON: Duration = Duration::from_secs(60);

struct House {
    pair: Pair,
    erp: Holder,
    disk: SmallDisk,
    /// What callers were told so far.
    told: BTreeMap<String, u64>,
    _folder: tempfile::TempDir,
}

impl House {
    fn start() -> Self {
        let folder = temporary_folder().unwrap();
        let plan = PairPlan { wrapper: Some(small_disk::wrapper), ..PairPlan::default() };
        let pair = Pair::start(folder.path(), &plan).unwrap();
        let erp = pair.enrol("edge", "erp", "www1").unwrap();
        let disk = SmallDisk::of(&pair.vaults[0]).unwrap();
        Self { pair, erp, disk, told: BTreeMap::new(), _folder: folder }
    }

    /// The vault's own life, which tickets name.
    fn life(&self) -> String {
        self.pair.vaults[0].call(&self.erp, "/v1/life").send().unwrap().word("life").unwrap()
    }

    /// Asks for a number for each of so many keys; tells why the first that got none did not.
    fn reserve(&mut self, series: &str, keys: std::ops::Range<usize>) -> Option<String> {
        let keys: Vec<String> = keys.map(|key| format!("{key:x<200}")).collect();
        let tickets = vec![self.life(); keys.len()];
        let path = format!("/v1/series/{series}/numbers/batch");
        let call = self.pair.vaults[0].call(&self.erp, &path).header("Content-Type", "application/json");
        let body = json!({ "keys": keys, "tickets": tickets }).to_string();
        let answer = call.within(Duration::from_secs(30)).method("POST").body(body).send().unwrap();
        let answer: BatchAnswer = serde_json::from_slice(&answer.expect(&[200]).unwrap().body).unwrap();
        let mut refused = None;
        for item in answer.items {
            match (item.number, item.problem) {
                (Some(number), _) => {
                    let before = self.told.insert(format!("{series} {}", item.key), number.number);
                    assert!(before.is_none_or(|before| before == number.number), "{} has two", item.key);
                }
                (None, problem) => {
                    let told = |problem: Problem| format!("{}: {problem}", problem.code);
                    refused = refused.or(problem.map(told));
                }
            }
        }
        refused
    }

    /// Fills the disk, asks until it is felt, and makes room again.
    fn without_room(&mut self, series: &str, while_full: impl Fn(&Self)) {
        assert_eq!(self.reserve(series, 0..100), None);
        self.disk.fill().unwrap();
        let refused = wait::until("the full disk is felt", SOON, || {
            let refused = self.reserve(series, 0..5_000);
            anyhow::ensure!(refused.as_ref().is_some_and(|why| why.contains("cannot write")), "{refused:?}");
            Ok(refused.unwrap_or_default())
        });
        let refused = refused.unwrap();
        assert!(refused.starts_with("peer_away: "), "{refused}");
        while_full(self);
        self.disk.make_room().unwrap();
        wait::until("it goes on by itself", SOON, || {
            let refused = self.reserve(series, 0..5_000);
            anyhow::ensure!(refused.is_none(), "{refused:?}");
            Ok(())
        })
        .unwrap();
        let numbers = self.told.iter().filter(|(key, _)| key.starts_with(series));
        let mut numbers: Vec<u64> = numbers.map(|(_, number)| *number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 5_000, "each key has one, and no two have the same");
    }
}

#[test]
fn a_vault_with_a_full_disk_says_so_and_goes_on_once_there_is_room() {
    let mut house = House::start();
    house.without_room("STRICT", |_| ());
    let last = *house.told.values().max().unwrap();
    assert_eq!(last, 5_000, "nothing was skipped");

    let define = ["number", "define", "TILL", "--owner", "erp", "--range", "100000"];
    house.pair.vaults[0].command(&define).unwrap();
    wait::until("ranges are set aside", SOON, || {
        let series = house.pair.vaults[0].call(&house.erp, "/v1/series/TILL").send()?.expect(&[200])?;
        let series: Series = serde_json::from_slice(&series.body)?;
        anyhow::ensure!(series.counts.iter().any(|count| count.ranges.len() == 2), "{series:?}");
        Ok(())
    })
    .unwrap();
    house.pair.vaults[1].program().unwrap().kill().unwrap();
    wait::until("they are apart", SOON, || {
        let status = house.pair.vaults[0].control("/v1/status").send()?.json()?;
        anyhow::ensure!(status["numbers"]["together"] == false, "{status}");
        Ok(())
    })
    .unwrap();
    house.without_room("TILL", |house| {
        let refused = house.pair.vaults[0].command(&["number", "take-over"]).unwrap_err();
        let refused = format!("{refused:#}");
        assert!(refused.contains("its journal could not be written; look at its disk"), "{refused}");
    });
    assert!(house.pair.vaults[0].program().unwrap().is_running(), "it was the same process all along");
}

#[test]
fn a_vault_that_is_killed_on_a_full_disk_starts_on_it_and_gives_numbers_once_there_is_room() {
    let mut house = House::start();
    house.without_room("STRICT", |_| ());
    house.disk.fill().unwrap();
    wait::until("the full disk is felt", SOON, || {
        let refused = house.reserve("AFTER", 0..1_000);
        anyhow::ensure!(refused.is_some(), "there was room");
        Ok(())
    })
    .unwrap();
    house.pair.vaults[0].program().unwrap().kill().unwrap();
    house.pair.vaults[0].program().unwrap().restart().unwrap();
    house.pair.vaults[0].wait_alive().unwrap();
    house.disk = SmallDisk::of(&house.pair.vaults[0]).unwrap();
    wait::until("it refuses with the reason", SOON, || {
        let refused = house.reserve("AFTER", 0..1_000).unwrap_or_default();
        anyhow::ensure!(refused.contains("cannot write"), "{refused}");
        Ok(())
    })
    .unwrap();
    house.disk.make_room().unwrap();
    wait::until("it gives numbers", SOON, || {
        let refused = house.reserve("AFTER", 0..1_000);
        anyhow::ensure!(refused.is_none(), "{refused:?}");
        Ok(())
    })
    .unwrap();
    assert_eq!(house.reserve("STRICT", 0..5_000), None, "the same as before");
    assert!(house.pair.vaults[0].program().unwrap().is_running(), "the same process since the kill");
}
