//! Stories of the background worker: two real vaults, handlers over HTTP, kill -9 and SIGSTOP. What
//! follows from each answer and each time is the rooms' own subject (`course`, `turn`, `shift`), not
//! this one's.
#![expect(clippy::unwrap_used, reason = "a story's own steps fail the story when they fail")]

mod alike;
mod deliveries;
mod jobs;
mod take_over;
mod upkeep;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use harness::upstream::{Seen, Upstream};
use harness::vault_host::{Pair, PairPlan, Vault};
use harness::wait;
use serde_json::Value;

/// A lease's time, a take-over and a slow machine.
const SOON: Duration = Duration::from_secs(240);

/// Two vaults with these further sections.
fn pair(folder: &Path, sections: String) -> Pair {
    Pair::start(folder, &PairPlan { storage: sections, ..PairPlan::default() }).unwrap()
}

fn status(vault: &Vault) -> Value {
    serde_json::from_str(&vault.command(&["worker", "status", "--json"]).unwrap()).unwrap()
}

/// How the job of that name stands at that vault.
fn job(vault: &Vault, name: &str) -> anyhow::Result<Value> {
    let status = status(vault);
    let found = status["jobs"].as_array().and_then(|jobs| jobs.iter().find(|job| job["name"] == name));
    found.cloned().with_context(|| status.to_string())
}

/// The vault on which the job's last run ended, and that it ended well.
fn last(vault: &Vault, name: &str) -> anyhow::Result<String> {
    let job = job(vault, name)?;
    anyhow::ensure!(job["last"]["fault"].is_null() && job["running"].is_null(), "{job}");
    Ok(job["last"]["by"].as_str().with_context(|| job.to_string())?.to_owned())
}

/// The handler's calls so far that it has answered, by `webhook-id`.
fn calls(handler: &Upstream) -> BTreeMap<String, Vec<Seen>> {
    let mut calls: BTreeMap<String, Vec<Seen>> = BTreeMap::new();
    for seen in handler.seen() {
        calls.entry(seen.header("webhook-id").unwrap()).or_default().push(seen);
    }
    calls
}

/// Waits until so many calls have come, answered or held.
fn called(handler: &Upstream, count: usize) {
    wait::until(&format!("the handler is called {count} times"), SOON, || {
        let (seen, held) = (handler.seen().len(), handler.held());
        anyhow::ensure!(seen + held >= count, "{seen} answered, {held} held");
        Ok(())
    })
    .unwrap();
}

/// Jobs that put one message into a queue each, whenever they are asked to.
fn seeds(count: usize, queue: &str) -> String {
    let seed = |number: usize| {
        format!(
            "[[schedule]]\nname = \"seed-{number}\"\ncron = \"0 0 1 1 *\"\nkind = \"message\"\n\
             queue = \"{queue}\"\ntext = \"event {number}\"\n"
        )
    };
    (0..count).map(seed).collect()
}

/// Has this vault run all seeds.
fn sow(vault: &Vault, count: usize) {
    for number in 0..count {
        vault.command(&["worker", "run", &format!("seed-{number}")]).unwrap();
    }
    wait::until("the messages are in their queue", SOON, || {
        (0..count).try_for_each(|number| last(vault, &format!("seed-{number}")).map(drop))
    })
    .unwrap();
}
