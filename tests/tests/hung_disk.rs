//! A vault whose disk takes no more writes and refuses none, while its process and its connection
//! stand: the other vault does not wait for it, gives what it may give alone, and meets it again once
//! the disk goes on. Whoever owns the ledger.
#![expect(clippy::unwrap_used, reason = "a story's own steps fail the story when they fail")]

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use harness::cluster::temporary_folder;
use harness::vault_host::{Holder, Pair, PairPlan};
use harness::wait;
use serde_json::json;
use shared::api::{BatchAnswer, Series};

/// A round is waited for 3 s, and each look has its own deadline.
const SOON: Duration = Duration::from_secs(60);
/// A disk is let go after this time, whatever becomes of the test: what waits for it cannot be killed.
const LONGEST: &str = "90";

/// The vault's state lies on a file system of its own, which only it sees.
fn own_disk(folder: &Path) -> Vec<OsString> {
    let mount = "cd \"$0\" && truncate -s 64M disk.image && mkfs.ext4 -q disk.image && mkdir disk \
        && mount -o loop disk.image disk && cp -a state/. disk/ && chmod 700 disk \
        && mount --bind disk state && cd / && exec \"$@\"";
    let mut words: Vec<OsString> = ["unshare", "--mount", "sh", "-c", mount].map(Into::into).to_vec();
    words.push(folder.into());
    words
}

/// Nothing is written there as long as this lives.
struct Hung {
    disk: PathBuf,
    watch: Child,
}

impl Hung {
    fn begin(disk: PathBuf) -> Self {
        let let_go = "sleep \"$1\"; fsfreeze -u \"$0\"";
        let watch = Command::new("sh").args(["-c", let_go]).arg(&disk).arg(LONGEST).spawn().unwrap();
        let hung = Self { disk, watch };
        assert!(hung.tell("-f"), "the disk is frozen");
        hung
    }

    fn tell(&self, how: &str) -> bool {
        Command::new("fsfreeze").arg(how).arg(&self.disk).status().is_ok_and(|status| status.success())
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        self.tell("-u");
        // It may be over.
        drop(self.watch.kill());
        drop(self.watch.wait());
    }
}

struct House {
    pair: Pair,
    erp: Holder,
    asked: usize,
    _folder: tempfile::TempDir,
}

impl House {
    fn start() -> Self {
        let folder = temporary_folder().unwrap();
        let plan = PairPlan { wrapper: Some(own_disk), ..PairPlan::default() };
        let pair = Pair::start(folder.path(), &plan).unwrap();
        let erp = pair.enrol("edge", "erp", "www1").unwrap();
        let house = Self { pair, erp, asked: 0, _folder: folder };
        let define = ["number", "define", "TILL", "--owner", "erp", "--range", "1000"];
        house.pair.vaults[0].command(&define).unwrap();
        house.wait_for_ranges();
        house
    }

    /// Each vault has its own.
    fn wait_for_ranges(&self) {
        wait::until("ranges are set aside", SOON, || {
            let series = self.pair.vaults[0].call(&self.erp, "/v1/series/TILL").send()?.expect(&[200])?;
            let series: Series = serde_json::from_slice(&series.body)?;
            anyhow::ensure!(series.counts.iter().any(|count| count.ranges.len() == 2), "{series:?}");
            Ok(())
        })
        .unwrap();
    }

    /// Asks one vault for a number of a key that is first sent to it.
    fn reserve(&mut self, vault: usize, series: &str) -> anyhow::Result<u64> {
        self.asked += 1;
        let life = self.pair.vaults[vault].call(&self.erp, "/v1/life").send()?.word("life")?;
        let path = format!("/v1/series/{series}/numbers/batch");
        let call = self.pair.vaults[vault].call(&self.erp, &path).header("Content-Type", "application/json");
        let body = json!({ "keys": [format!("key-{}", self.asked)], "tickets": [life] }).to_string();
        let answer = call.within(Duration::from_secs(10)).method("POST").body(body).send()?.expect(&[200])?;
        let answer: BatchAnswer = serde_json::from_slice(&answer.body)?;
        let item = answer.items.into_iter().next();
        let item = item.ok_or_else(|| anyhow::anyhow!("nothing was answered"))?;
        match (item.number, item.problem) {
            (Some(number), _) => Ok(number.number),
            (None, problem) => anyhow::bail!("refused: {problem:?}"),
        }
    }

    /// Where the vault's state lies, seen from outside.
    fn disk(&mut self, vault: usize) -> PathBuf {
        let vault = &mut self.pair.vaults[vault];
        let pid = vault.program().unwrap().pid().unwrap();
        format!("/proc/{pid}/root{}", vault.folder.join("state").display()).into()
    }

    /// This vault's disk hangs, and the other one goes on; then both do.
    fn hang(&mut self, vault: usize) {
        let other = 1 - vault;
        let mut given = Vec::new();
        {
            let _hung = Hung::begin(self.disk(vault));
            for turn in 0..5 {
                let number = wait::until("the other gives alone", SOON, || self.reserve(other, "TILL"));
                given.push(number.unwrap());
                // Connections come and go meanwhile.
                std::thread::sleep(Duration::from_secs(turn));
            }
            let refused = format!("{:#}", self.reserve(other, "STRICT").unwrap_err());
            assert!(refused.contains("peer_away"), "{refused}");
            let status = self.pair.vaults[other].control("/v1/status").send().unwrap().json().unwrap();
            assert_eq!(status["numbers"]["together"], false, "{status}");
        }
        for vault in [other, vault] {
            let number = wait::until("both go on", SOON, || self.reserve(vault, "STRICT"));
            number.unwrap();
            given.push(wait::until("both go on", SOON, || self.reserve(vault, "TILL")).unwrap());
        }
        let count = given.len();
        given.sort_unstable();
        given.dedup();
        assert_eq!(given.len(), count, "no number twice");
        let log = self.pair.vaults[other].program().unwrap().log();
        assert!(log.contains("look at its disk"), "the log says where to look");
        self.wait_for_ranges();
    }
}

#[test]
fn a_vault_whose_disk_hangs_keeps_the_other_from_nothing_that_it_may_do_alone() {
    let mut house = House::start();
    // The owner of the ledger is the first.
    house.hang(1);
    house.hang(0);
    for vault in &mut house.pair.vaults {
        assert!(vault.program().unwrap().is_running(), "it was the same process all along");
    }
}
